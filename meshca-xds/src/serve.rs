//! Serving on sockets: what an embedder without an xDS server of its own needs.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, stream};
use meshca_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, sleep};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::SdsServer;

impl SdsServer {
    /// Serves over a Unix socket until `shutdown` is ready, and then until the streams that are open have ended: end them by ending the
    /// driver of the manager, or drop this.
    ///
    /// The socket is as open as its folder and its mode are; [`Caller::unix_credentials`](crate::Caller::unix_credentials) says who is at the
    /// other end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if the server fails as a whole. A connection that fails harms no other.
    pub async fn serve_unix(
        &self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let accept = async move |listener: &UnixListener| Ok(listener.accept().await?.0);
        let incoming = self.incoming(listener, accept);
        self.serve(incoming, shutdown).await
    }

    /// Serves over TCP **without encryption**, as [`serve_unix`](Self::serve_unix) does: private keys go over it. It is for loopback, and for
    /// networks that encrypt by themselves; else use [`serve_tls`](Self::serve_tls).
    ///
    /// # Errors
    ///
    /// As [`serve_unix`](Self::serve_unix).
    pub async fn serve_tcp(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let accept = async move |listener: &TcpListener| {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let incoming = self.incoming(listener, accept);
        self.serve(incoming, shutdown).await
    }

    /// Serves over TLS, as [`serve_unix`](Self::serve_unix) does. What a client must show is in the configuration: with
    /// [`rustls023`](meshca_identity::rustls023) the server has an identity of the mesh itself, which is renewed like any other. Name `h2`
    /// in its `alpn_protocols`.
    ///
    /// # Errors
    ///
    /// As [`serve_unix`](Self::serve_unix).
    #[cfg(feature = "tls")]
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        use tokio::sync::mpsc;
        use tokio::task::JoinSet;

        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let limit = self.options().handshake;
        let accept = async move |listener: &TcpListener| {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let mut accepted = Box::pin(self.incoming(listener, accept));
        // Whoever dawdles over a handshake keeps nobody else waiting.
        let (ready, incoming) = mpsc::channel(1);
        let handshakes = async move {
            use futures_util::StreamExt;
            let mut running = JoinSet::new();
            while let Some(Ok(guarded)) = accepted.next().await {
                let (acceptor, ready) = (acceptor.clone(), ready.clone());
                while running.try_join_next().is_some() {}
                running.spawn(async move {
                    let Guarded { io, _permit } = guarded;
                    match tokio::time::timeout(limit, acceptor.accept(io)).await {
                        Ok(Ok(io)) => {
                            let _ = ready.send(Guarded { io, _permit }).await;
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(target: "meshca_xds", %error, "a TLS handshake failed");
                        }
                        Err(_) => {
                            tracing::debug!(target: "meshca_xds", "a TLS handshake took too long");
                        }
                    }
                });
            }
        };
        let incoming = stream::unfold(incoming, |mut incoming| async {
            let next = incoming.recv().await?;
            Some((Ok::<_, io::Error>(next), incoming))
        });
        tokio::select! {
            served = self.serve(incoming, shutdown) => served,
            () = async { handshakes.await; std::future::pending().await } => Ok(()),
        }
    }

    async fn serve<S, I>(&self, incoming: S, shutdown: impl Future<Output = ()>) -> Result<()>
    where
        S: Stream<Item = io::Result<I>>,
        I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let options = self.options();
        Server::builder()
            .max_concurrent_streams(options.max_streams)
            .http2_keepalive_interval(Some(options.keepalive))
            .http2_keepalive_timeout(Some(options.keepalive_timeout))
            .add_service(self.service())
            .serve_with_incoming_shutdown(incoming, shutdown)
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the server of secrets has failed")
                    .with_source(error)
            })
    }

    /// Connections, as many at a time as there may be.
    fn incoming<L, I, A>(
        &self,
        listener: L,
        accept: A,
    ) -> impl Stream<Item = io::Result<Guarded<I>>> + use<L, I, A>
    where
        A: AsyncFn(&L) -> io::Result<I>,
    {
        let permits = Arc::new(Semaphore::new(self.options().max_connections));
        stream::unfold(
            (listener, accept, permits),
            async |(listener, accept, permits)| {
                let _permit = Arc::clone(&permits).acquire_owned().await.ok()?;
                let io = loop {
                    match accept(&listener).await {
                        Ok(io) => break io,
                        // A client that is gone already, or no more file descriptors: neither is the end of a server.
                        Err(error) => {
                            tracing::warn!(target: "meshca_xds", %error, "a connection could not be accepted");
                            sleep(Duration::from_millis(100)).await;
                        }
                    }
                };
                Some((Ok(Guarded { io, _permit }), (listener, accept, permits)))
            },
        )
    }
}

/// What is known of a client after its handshake.
#[cfg(feature = "tls")]
#[derive(Clone)]
pub(crate) struct TlsClient {
    pub(crate) tcp: tonic::transport::server::TcpConnectInfo,
    pub(crate) certificates: Arc<[rustls_pki_types::CertificateDer<'static>]>,
}

#[cfg(feature = "tls")]
type TlsIo = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

#[cfg(feature = "tls")]
impl Connected for Guarded<TlsIo> {
    type ConnectInfo = TlsClient;

    fn connect_info(&self) -> TlsClient {
        let (tcp, connection) = self.io.get_ref();
        TlsClient {
            tcp: tcp.connect_info(),
            certificates: connection.peer_certificates().unwrap_or_default().into(),
        }
    }
}

/// A connection that counts.
struct Guarded<I> {
    io: I,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Guarded<tokio::net::TcpStream> {
    type ConnectInfo = tonic::transport::server::TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl Connected for Guarded<tokio::net::UnixStream> {
    type ConnectInfo = tonic::transport::server::UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
