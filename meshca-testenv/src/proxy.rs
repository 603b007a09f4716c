//! An HTTP proxy on loopback that says where its clients wanted to go.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::listener::Listener;

/// How large the head of a first request may be.
const MAX_HEAD: usize = 64 * 1024;

/// A forward proxy: `CONNECT host:port`, and requests with a whole URL. It stops, with all its
/// connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    listener: Listener,
    targets: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If no port can be listened on.
    pub async fn start() -> io::Result<Self> {
        let targets = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&targets);
        let listener = Listener::start(move |client| {
            let noted = Arc::clone(&noted);
            async move {
                // How a connection ends is the client's business.
                let _ = serve(client, &noted).await;
            }
        });
        Ok(Self {
            listener: listener.await?,
            targets,
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// The `host:port` of each connection, in order.
    pub fn targets(&self) -> Vec<String> {
        let targets = self.targets.lock();
        targets.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(mut client: TcpStream, noted: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split_whitespace();
    let (method, url) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let host = url.strip_prefix("http://").unwrap_or(url);
    let host = host.split('/').next().unwrap_or_default();
    let target = match host.contains(':') {
        true => host.to_owned(),
        false => format!("{host}:80"),
    };
    noted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(target.clone());
    let Ok(mut server) = TcpStream::connect(&target).await else {
        let refusal = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(refusal).await;
    };
    match method {
        "CONNECT" => client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?,
        // Servers take requests with whole URLs (RFC 9112 §3.2.2).
        _ => server.write_all(&head).await?,
    }
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
