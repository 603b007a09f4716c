//! What stands between meshca's rustls configurations and the servers and clients of others. Copy what you need.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use meshca::SpiffeId;
use meshca::identity::rustls023::{PeerRule, TlsConfigs, peer_id};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::transport::{Channel, Endpoint};

/// How long a client may take over its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who called, proven by the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) SpiffeId);

/// Connections that have shaken hands. The latest configuration is asked for when a connection comes in.
pub(crate) struct Incoming {
    address: SocketAddr,
    ready: mpsc::Receiver<Accepted>,
}

impl Incoming {
    /// `refused` hears of every client that was not let in.
    pub(crate) async fn bind(
        address: &str,
        tls: TlsConfigs,
        refused: impl Fn(Option<PeerRule>, &io::Error) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = sender.closed() => return,
                };
                // A client that is gone already, or no file descriptor left: neither is the end of a server.
                let Ok((tcp, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let (tls, sender, refused) = (tls.clone(), sender.clone(), refused.clone());
                // In a task of its own: a client that is slow must not hold up the next one.
                tokio::spawn(async move {
                    match tokio::time::timeout(PATIENCE, accept(tcp, &tls)).await {
                        Ok(Ok(accepted)) => drop(sender.send(accepted).await),
                        Ok(Err(error)) => refused(PeerRule::find(&error), &error),
                        Err(late) => refused(None, &late.into()),
                    }
                });
            }
        });
        Ok(Self { address, ready })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `tonic::transport::Server::serve_with_incoming`.
    pub(crate) fn into_stream(
        mut self,
    ) -> impl futures_util::Stream<Item = Result<Accepted, io::Error>> {
        futures_util::stream::poll_fn(move |context| {
            self.ready.poll_recv(context).map(|next| next.map(Ok))
        })
    }
}

async fn accept(tcp: TcpStream, tls: &TlsConfigs) -> io::Result<Accepted> {
    tcp.set_nodelay(true)?;
    let stream = TlsAcceptor::from(tls.server()).accept(tcp).await?;
    let caller = peer_id(stream.get_ref().1).map_err(io::Error::other)?;
    Ok(Accepted {
        stream,
        caller: Caller(caller),
    })
}

/// For `axum::serve`. Handlers take `ConnectInfo<Caller>`.
impl axum::serve::Listener for Incoming {
    type Io = server::TlsStream<TcpStream>;
    type Addr = Caller;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(Accepted { stream, caller }) => (stream, caller),
            // The runtime is shutting down.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Incoming>> for Caller {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Incoming>) -> Self {
        stream.remote_addr().clone()
    }
}

/// One connection. tonic puts the [`Caller`] into the extensions of every request on it.
pub(crate) struct Accepted {
    stream: server::TlsStream<TcpStream>,
    caller: Caller,
}

impl tonic::transport::server::Connected for Accepted {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connects and shakes hands. Whom it may reach says the [`PeerPolicy`](meshca::identity::rustls023::PeerPolicy) of the
/// configuration; the address is only an address.
pub(crate) async fn connect(
    address: SocketAddr,
    tls: &TlsConfigs,
) -> io::Result<client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(tls.client()).connect(name, tcp).await
}

/// A channel for the clients that tonic generates. It connects anew with the latest configuration when its connection ends.
pub(crate) async fn channel(
    address: SocketAddr,
    tls: TlsConfigs,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = tls.clone();
        async move { connect(address, &tls).await.map(TokioIo::new) }
    });
    // The scheme says that tonic is not to do TLS itself.
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_with_connector(connector)
        .await
}

/// One request of HTTP/1.1 on a connection, or several one after the other.
pub(crate) struct Http {
    sender: hyper::client::conn::http1::SendRequest<String>,
}

impl Http {
    pub(crate) async fn over(
        stream: client::TlsStream<TcpStream>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
        let request = http::Request::get(path)
            .header(http::header::HOST, "mesh")
            .body(String::new())?;
        self.sender.ready().await?;
        read(self.sender.send_request(request).await?).await
    }
}

/// The same over a channel of tonic, which is a service of HTTP/2.
pub(crate) async fn get_over_channel(
    mut channel: Channel,
    path: &str,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    use tower::Service as _;
    let request = http::Request::get(path).body(tonic::body::Body::empty())?;
    poll_fn(|context| channel.poll_ready(context)).await?;
    read(channel.call(request).await?).await
}

async fn read<B>(response: http::Response<B>) -> Result<String, Box<dyn Error + Send + Sync>>
where
    B: http_body_util::BodyExt + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let status = response.status();
    let body = response.into_body().collect().await.map_err(Into::into)?;
    let text = String::from_utf8(body.to_bytes().to_vec())?;
    match status.is_success() {
        true => Ok(text),
        false => Err(format!("{status}: {text}").into()),
    }
}

/// Both ends in one process can share the default provider; a library takes one as an argument.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
