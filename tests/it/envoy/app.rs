//! The application behind every server sidecar, and how requests are made: HTTP/1.1, as little of it as it takes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Answers with the path; one that ends in `/stream` with a body that grows until [`end`](Self::end).
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    ended: watch::Sender<bool>,
    _serving: JoinSet<()>,
}

impl App {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, end) = watch::channel(false);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                while connections.try_join_next().is_some() {}
                connections.spawn(answer(tcp, end.clone()));
            }
        });
        Self {
            address,
            ended,
            _serving: serving,
        }
    }

    /// Ends the answers that grow.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }
}

/// One connection, with requests that have no body.
async fn answer(mut tcp: TcpStream, end: watch::Receiver<bool>) -> io::Result<()> {
    let mut heard = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = heard.windows(4).position(|it| it == b"\r\n\r\n") {
                break heard.drain(..at + 4).collect::<Vec<u8>>();
            }
            if tcp.read_buf(&mut heard).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&head);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let last = head.contains("\r\nconnection: close\r\n");
        if path.ends_with("/stream") {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            tcp.write_all(head.as_bytes()).await?;
            while !*end.borrow() {
                tcp.write_all(b"1\r\n.\r\n").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tcp.write_all(b"0\r\n\r\n").await?;
        } else {
            let length = path.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}");
            tcp.write_all(answer.as_bytes()).await?;
        }
        if last {
            return Ok(());
        }
    }
}

/// Sends a request over a connection of its own.
pub(crate) async fn send(to: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut tcp = TcpStream::connect(to).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: mesh\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    Ok(tcp)
}

/// Asks for a path, and gives the whole answer.
///
/// # Errors
///
/// The answer, or why there is none, unless it is the path.
pub(crate) async fn get(to: SocketAddr, path: &str) -> Result<String, String> {
    let asked = async {
        let mut tcp = send(to, path).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    match tokio::time::timeout(crate::envoy::world::SOON, asked).await {
        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") && answer.ends_with(path) => {
            Ok(answer)
        }
        Ok(Ok(answer)) => Err(format!("{path}: {answer:?}")),
        Ok(Err(error)) => Err(format!("{path}: {error}")),
        Err(_) => Err(format!("{path}: no answer")),
    }
}
