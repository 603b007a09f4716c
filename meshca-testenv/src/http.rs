//! An HTTP/1.1 server on loopback that gives canned answers, sound or broken.
//!
//! For the fault tests of clients that speak HTTP to a CA: the client under test speaks real HTTP to a
//! real socket, and the answer can be wrong in ways that no server library would let it be.
//!
//! It needs a tokio runtime with I/O and time, on real time: paused time jumps ahead while a socket is
//! waited for.
//!
//! ```
//! use meshca_testenv::http::{CannedResponse, CannedServer};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let server = CannedServer::start().await?;
//! server.answer(CannedResponse::new(503).with_header("retry-after", "7"));
//!
//! let mut client = tokio::net::TcpStream::connect(server.address()).await?;
//! client.write_all(b"GET /v1/sys/health HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n").await?;
//! let mut answer = String::new();
//! client.read_to_string(&mut answer).await?;
//!
//! assert!(answer.starts_with("HTTP/1.1 503 "));
//! assert_eq!(server.requests()[0].path(), "/v1/sys/health");
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::listener::Listener;

/// How large a request's head may be.
const MAX_HEAD: usize = 64 * 1024;
/// How large its body may be.
const MAX_BODY: usize = 16 * 1024 * 1024;
/// How many headers it may have.
const MAX_HEADERS: usize = 128;

/// What the server does with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct CannedResponse {
    path: Option<String>,
    delay: Duration,
    action: Action,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut_at: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Answers with this status, the headers and the body.
    Answer(u16),
    /// Sends the body alone.
    Raw,
    Hang,
}

impl CannedResponse {
    /// An answer with this status, without a body.
    pub fn new(status: u16) -> Self {
        Self::of(Action::Answer(status))
    }

    /// An answer with a JSON body, whether or not it is JSON.
    pub fn json(status: u16, body: impl Into<String>) -> Self {
        Self::new(status)
            .with_header("content-type", "application/json")
            .with_body(body.into())
    }

    /// Closes the connection without an answer.
    pub fn close() -> Self {
        Self::raw("")
    }

    /// Sends these bytes as they are, HTTP or not, and closes the connection.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::of(Action::Raw).with_body(bytes)
    }

    /// Never answers, and keeps the connection open for as long as the server lives.
    pub fn hang() -> Self {
        Self::of(Action::Hang)
    }

    fn of(action: Action) -> Self {
        Self {
            path: None,
            delay: Duration::ZERO,
            action,
            headers: Vec::new(),
            body: Vec::new(),
            cut_at: None,
        }
    }

    /// Adds a header. `content-length` is added by itself, unless it is given here.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn with_body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// Sends only this many bytes of the body, though the header promises all, and closes the
    /// connection.
    pub fn truncated_at(mut self, bytes: usize) -> Self {
        self.cut_at = Some(bytes);
        self
    }

    /// Waits this long before it answers.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Keeps it for requests whose path begins like this, for clients whose requests come in no
    /// certain order.
    pub fn for_path(mut self, prefix: impl Into<String>) -> Self {
        self.path = Some(prefix.into());
        self
    }

    fn fits(&self, request: &RecordedRequest) -> bool {
        self.path
            .as_ref()
            .is_none_or(|prefix| request.path.starts_with(prefix))
    }
}

/// A request as the server read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRequest {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl RecordedRequest {
    /// `GET`, `POST`, …
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The target as it was sent, with its query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The first header of this name, whatever the case of its letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body; that of a chunked request is joined.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

#[derive(Debug, Default)]
struct State {
    queue: Mutex<VecDeque<CannedResponse>>,
    requests: watch::Sender<Vec<RecordedRequest>>,
}

impl State {
    fn queue(&self) -> MutexGuard<'_, VecDeque<CannedResponse>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_for(&self, request: &RecordedRequest) -> CannedResponse {
        let mut queue = self.queue();
        let found = queue.iter().position(|response| response.fits(request));
        found
            .and_then(|index| queue.remove(index))
            .unwrap_or_else(|| {
                let (method, path) = (&request.method, &request.path);
                CannedResponse::new(500)
                    .with_body(format!("no canned response is left for {method} {path}\n"))
            })
    }
}

/// A server on a free port of 127.0.0.1. It stops, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct CannedServer {
    listener: Listener,
    state: Arc<State>,
}

impl CannedServer {
    /// Starts a server.
    ///
    /// # Errors
    ///
    /// If no port of 127.0.0.1 can be listened on.
    pub async fn start() -> io::Result<Self> {
        let state = Arc::<State>::default();
        let served = Arc::clone(&state);
        let listener = Listener::start(move |stream| converse(stream, Arc::clone(&served)));
        Ok(Self {
            listener: listener.await?,
            state,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// The same as the beginning of a URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Appends a response to the queue: each is used once, in order. A request for which none is left
    /// gets a 500 that says so.
    pub fn answer(&self, response: CannedResponse) {
        self.state.queue().push_back(response);
    }

    /// How many responses are left.
    pub fn remaining(&self) -> usize {
        self.state.queue().len()
    }

    /// Every request so far, in the order in which they arrived as a whole.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.state.requests.borrow().clone()
    }

    /// Waits until this many requests have arrived, and returns them.
    pub async fn received(&self, count: usize) -> Vec<RecordedRequest> {
        let mut requests = self.state.requests.subscribe();
        match requests.wait_for(|requests| requests.len() >= count).await {
            Ok(requests) => requests.clone(),
            // Not before the state is gone, which `self` holds.
            Err(_) => self.requests(),
        }
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.listener.accepted()
    }
}

/// One connection, until either side has enough.
async fn converse(stream: TcpStream, state: Arc<State>) {
    let mut stream = BufStream::new(stream);
    while let Ok(Some(request)) = read_request(&mut stream).await {
        let closes = request
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let mut response = state.next_for(&request);
        let head_only = request.method == "HEAD";
        state
            .requests
            .send_modify(|requests| requests.push(request));
        if !response.delay.is_zero() {
            tokio::time::sleep(response.delay).await;
        }
        let (head, stays) = match response.action {
            Action::Hang => return std::future::pending().await,
            Action::Raw => (String::new(), false),
            Action::Answer(status) => {
                let head = head(status, &response.headers, response.body.len());
                (head, response.cut_at.is_none() && !closes)
            }
        };
        response.body.truncate(match head_only {
            true => 0,
            false => response.cut_at.unwrap_or(usize::MAX),
        });
        let bytes = [head.into_bytes(), response.body].concat();
        if write(&mut stream, &bytes).await.is_err() || !stays {
            break;
        }
    }
    // Orderly, so that the client reads what was sent before it learns of the end.
    let _ = stream.shutdown().await;
}

async fn write(stream: &mut BufStream<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn head(status: u16, headers: &[(String, String)], length: usize) -> String {
    let mut text = format!("HTTP/1.1 {status} canned\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let given = |name: &str| headers.iter().any(|(h, _)| h.eq_ignore_ascii_case(name));
    if !given("content-length") && !given("transfer-encoding") && status != 204 {
        text.push_str(&format!("content-length: {length}\r\n"));
    }
    text.push_str("\r\n");
    text
}

/// The next request of a connection; `None` where the client is done.
async fn read_request(stream: &mut BufStream<TcpStream>) -> io::Result<Option<RecordedRequest>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut bytes).await? == 0 {
            return Ok(None);
        }
        if bytes.len() > MAX_HEAD {
            return Err(invalid("the head is too long"));
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(&bytes).map_err(invalid)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut request = RecordedRequest {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: parsed.path.unwrap_or_default().to_owned(),
        headers: parsed
            .headers
            .iter()
            .map(|header| (header.name.to_owned(), text(header.value)))
            .collect(),
        body: Vec::new(),
    };
    let is = |name: &str, value: &str| {
        let found = request.header(name);
        found.is_some_and(|found| found.to_ascii_lowercase().ends_with(value))
    };
    if is("expect", "100-continue") {
        write(stream, b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    request.body = if is("transfer-encoding", "chunked") {
        read_chunks(stream).await?
    } else {
        let length = request.header("content-length").unwrap_or("0");
        read(stream, length.trim().parse().map_err(invalid)?).await?
    };
    Ok(Some(request))
}

async fn read_chunks(stream: &mut BufStream<TcpStream>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        // An extension may follow the size.
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size.trim(), 16).map_err(invalid)?;
        body.extend(read(stream, size).await?);
        if body.len() > MAX_BODY {
            return Err(invalid("the body is too long"));
        }
        // Each chunk is followed by an empty line, and so is the last, which is empty itself. Trailers
        // are not understood.
        read(stream, 2).await?;
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Exactly this many bytes.
async fn read(stream: &mut BufStream<TcpStream>, length: usize) -> io::Result<Vec<u8>> {
    if length > MAX_BODY {
        return Err(invalid("the body is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
