//! An API server in memory, for tests in which minutes pass: paused time jumps ahead while a socket is waited for.

pub(crate) mod server;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Bytes, Frame};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// How long every call takes at least.
pub(crate) const LATENCY: Duration = Duration::from_millis(1);

/// What is asked of the server.
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

impl Call {
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }

    /// Of the object that is meant.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

pub(crate) type Answer = Response<Lines>;
pub(crate) type Sender = mpsc::UnboundedSender<io::Result<Bytes>>;

/// A body that comes piece by piece, and ends when its sender is dropped.
pub(crate) struct Lines(mpsc::UnboundedReceiver<io::Result<Bytes>>);

impl Body for Lines {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = self.0.poll_recv(context);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// A client of a server that answers like this.
pub(crate) fn client<A: Future<Output = Answer> + Send + 'static>(
    answer: impl Fn(Call) -> A + Clone + Send + Sync + 'static,
) -> Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            tokio::time::sleep(LATENCY).await;
            let call = Call {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            Ok::<_, kube::Error>(answer(call).await)
        }
    });
    Client::new(service, "mesh-system")
}

pub(crate) fn answer(status: u16, value: Value) -> Answer {
    let (sender, mut answer) = streamed();
    *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
    sender.send(Ok(value.to_string().into())).unwrap();
    answer
}

/// An answer whose body is yet to come.
pub(crate) fn streamed() -> (Sender, Answer) {
    let (sender, lines) = mpsc::unbounded_channel();
    (sender, Response::new(Lines(lines)))
}

/// A line of a watch.
pub(crate) fn event(type_: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": type_, "object": object})).into()
}

pub(crate) fn refusal(code: u16, reason: &str, resource: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code,
        "message": reason, "details": {"name": "name", "kind": resource},
    })
}
