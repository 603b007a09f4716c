//! The service as gRPC, by hand: what tonic generates keeps buffers of 24 KiB for each stream, and a stream of secrets has nothing to say for
//! hours. Here a response is bytes as long as they are on their way, and what reads requests begins small.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use http_body::Frame;
use prost::Message;
use prost::bytes::{BufMut, Bytes};
use tonic::body::Body;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

use crate::SdsServer;
use crate::allowance::Bounded;
use crate::connections::Connection;
use crate::server::{Session, Shared};
use crate::stream::Protocol;
use crate::stream::delta::Delta;
use crate::stream::sotw::Sotw;

const STREAM: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
const DELTA: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";

/// Envoy's Secret Discovery Service, to be added to a tonic server or any other that takes tower services:
/// [`SdsServer::service`] makes it. Clones are the same one.
#[derive(Clone, Debug)]
pub struct SdsService(SdsServer);

impl SdsServer {
    /// The service, to be added to any tonic server, with the limits on messages. What it needs of the connection, such as limits on streams
    /// and keepalive, is the server's.
    pub fn service(&self) -> SdsService {
        SdsService(self.clone())
    }
}

impl NamedService for SdsService {
    const NAME: &'static str = "envoy.service.secret.v3.SecretDiscoveryService";
}

impl<B> Service<http::Request<B>> for SdsService
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let shared = Arc::clone(&self.0.shared);
        let kind = request.headers().get(http::header::CONTENT_TYPE);
        let refused = match kind.and_then(|it| it.to_str().ok()) {
            _ if request.method() != http::Method::POST => {
                Some(http::StatusCode::METHOD_NOT_ALLOWED)
            }
            Some(kind) if kind.starts_with("application/grpc") => None,
            _ => Some(http::StatusCode::UNSUPPORTED_MEDIA_TYPE),
        };
        if let Some(status) = refused {
            let mut response = http::Response::new(Body::empty());
            *response.status_mut() = status;
            return Box::pin(async { Ok(response) });
        }
        match request.uri().path() {
            STREAM => Box::pin(open::<Sotw, B>(shared, request)),
            DELTA => Box::pin(open::<Delta, B>(shared, request)),
            _ => Box::pin(async {
                let status = Status::unimplemented(
                    "secrets are streamed, so that a renewal reaches the proxy: use StreamSecrets or DeltaSecrets",
                );
                Ok(status.into_http())
            }),
        }
    }
}

async fn open<P, B>(
    shared: Arc<Shared>,
    request: http::Request<B>,
) -> Result<http::Response<Body>, Infallible>
where
    P: Protocol,
    B: http_body::Body + Send + 'static,
    B::Error: Into<StdError>,
{
    let (head, body) = request.into_parts();
    let allowance = match head.extensions.get::<Arc<Connection>>() {
        Some(connection) => Arc::clone(&connection.allowance),
        None => shared.connections.allowance(),
    };
    let body = match allowance.enter(&head.headers) {
        Ok(share) => Bounded::new(body, share),
        Err(status) => return Ok(shared.refuse(status).into_http()),
    };
    let most = shared.options.max_request;
    let requests = Requests(PhantomData);
    let inbound: Streaming<P::Request> = Streaming::new_request(requests, body, None, Some(most));
    let metadata = MetadataMap::from_headers(head.headers);
    let request = Request::from_parts(metadata, head.extensions, inbound);
    Ok(
        match Session::<P>::begin(shared, request, &allowance).await {
            Ok(session) => {
                let responses = Responses {
                    messages: Box::pin(session.into_messages()),
                    ended: false,
                };
                let mut response = http::Response::new(Body::new(responses));
                let grpc = http::HeaderValue::from_static("application/grpc");
                let headers = response.headers_mut();
                headers.insert(http::header::CONTENT_TYPE, grpc);
                response
            }
            Err(status) => status.into_http(),
        },
    )
}

/// Reads requests.
struct Requests<R>(PhantomData<fn() -> R>);

/// Most requests are acknowledgements, and shorter; the first one has a node in it.
const REQUEST: usize = 512;
/// So many bytes are taken from a connection before another one has its turn.
const TURN: usize = 32 * 1024;

impl<R: Message + Default> Decoder for Requests<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        let decoded = R::decode(from);
        decoded
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(REQUEST, TURN)
    }
}

/// A message as gRPC has it: not compressed, so long.
fn framed(message: &impl Message) -> Bytes {
    const PREFIX: usize = 5;
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut framed);
    framed.into()
}

/// What is sent on a stream.
struct Responses<S> {
    messages: Pin<Box<S>>,
    ended: bool,
}

impl<M: Message, S: Stream<Item = Result<M, Status>>> http_body::Body for Responses<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.messages.as_mut().poll_next(cx)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(framed(&message))))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        // A message that is no header is left out, and the code is there.
        let _ = status.add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
