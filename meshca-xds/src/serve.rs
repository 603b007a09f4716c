//! Serving on sockets: what an embedder without an xDS server of its own needs.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep};
use tonic::codegen::{Service as _, http};
use tonic::transport::server::Connected;

#[cfg(feature = "tls")]
use crate::authenticate::TlsClient;
use crate::connections::{Connection, Peer, Seat};
use crate::{SdsServer, SdsService};

impl SdsServer {
    /// Serves over a Unix socket until `shutdown` is ready, and then until the streams that are open have ended: end them by ending the
    /// driver of the manager. Where this is dropped, every connection ends at once.
    ///
    /// A connection that fails harms no other. The server closes a connection on which no proxy has proven who it is within the time for
    /// [the first request](crate::SdsOptions::first_request) and for [the authenticator](crate::SdsOptions::authentication), and earlier if
    /// another one [needs its place](crate::SdsOptions::max_connections).
    ///
    /// The socket is as open as its folder and its mode are; [`Caller::unix_credentials`](crate::Caller::unix_credentials) says who is at the
    /// other end.
    pub async fn serve_unix(&self, listener: UnixListener, shutdown: impl Future<Output = ()>) {
        let accept = async move |listener: &UnixListener| {
            let (stream, _) = listener.accept().await?;
            let peer = match stream.peer_cred() {
                Ok(peer) => Peer::User(peer.uid()),
                Err(_) => Peer::Unknown,
            };
            Ok((stream, peer))
        };
        let incoming = self.incoming(listener, accept);
        self.serve(incoming, Connected::connect_info, shutdown)
            .await;
    }

    /// Serves over TCP **without encryption**, as [`serve_unix`](Self::serve_unix) does: private keys go over it. It is for loopback, and for
    /// networks that encrypt by themselves; else use [`serve_tls`](Self::serve_tls).
    pub async fn serve_tcp(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let incoming = self.incoming(listener, accept_tcp);
        self.serve(incoming, Connected::connect_info, shutdown)
            .await;
    }

    /// Serves over TLS, as [`serve_unix`](Self::serve_unix) does. What a client must show is in the configuration: with
    /// [`rustls023`](meshca_identity::rustls023) the server has an identity of the mesh itself, which is renewed like any other. Name `h2`
    /// in its `alpn_protocols`.
    ///
    /// An Envoy whose cluster says nothing else comes with TLS 1.2, which has no post-quantum key exchange: let its `tls_params` have
    /// `tls_maximum_protocol_version: TLSv1_3`.
    #[cfg(feature = "tls")]
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: impl Future<Output = ()>,
    ) {
        use tokio::sync::mpsc;

        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let limit = self.options().handshake;
        let mut accepted = Box::pin(self.incoming(listener, accept_tcp));
        // Whoever dawdles over a handshake keeps nobody else waiting.
        let (ready, incoming) = mpsc::channel(1);
        let handshakes = async move {
            let mut running = JoinSet::new();
            loop {
                let (io, seat) = tokio::select! {
                    next = accepted.next() => match next {
                        Some(seated) => seated,
                        None => break,
                    },
                    // Nobody is served any more: the listener is closed, and who shakes hands is hung up on.
                    () = ready.closed() => break,
                };
                let (acceptor, ready) = (acceptor.clone(), ready.clone());
                while running.try_join_next().is_some() {}
                running.spawn(async move {
                    let handshake = tokio::time::timeout(limit, acceptor.accept(io));
                    let shaken = tokio::select! {
                        shaken = handshake => shaken,
                        why = seat.closes() => {
                            tracing::debug!(target: "meshca_xds", why, "a TLS handshake is cut off");
                            return;
                        }
                    };
                    match shaken {
                        Ok(Ok(io)) => {
                            let _ = ready.send((io, seat)).await;
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
            Some((next, incoming))
        });
        let info = |io: &tokio_rustls::server::TlsStream<TcpStream>| {
            let (tcp, connection) = io.get_ref();
            TlsClient {
                tcp: tcp.connect_info(),
                certificates: connection.peer_certificates().unwrap_or_default().into(),
            }
        };
        tokio::select! {
            () = self.serve(incoming, info, shutdown) => {}
            () = async { handshakes.await; std::future::pending().await } => {}
        }
    }

    /// Serves on these connections, of each of which `info` says what is known.
    async fn serve<I, C>(
        &self,
        incoming: impl Stream<Item = Seated<I>>,
        info: impl Fn(&I) -> C,
        shutdown: impl Future<Output = ()>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        C: Clone + Send + Sync + 'static,
    {
        let options = self.options();
        // Without tonic's own server: the layers in it are made for each connection and stream, and nothing here needs them.
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(options.max_streams)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .keep_alive_interval(options.keepalive)
            .keep_alive_timeout(options.keepalive_timeout);
        let connections = GracefulShutdown::new();
        // What is left of them ends with this.
        let mut tasks = JoinSet::new();
        {
            let (mut incoming, mut shutdown) = (pin!(incoming), pin!(shutdown));
            loop {
                let (io, seat) = tokio::select! {
                    next = incoming.next() => match next {
                        Some(seated) => seated,
                        None => break,
                    },
                    () = &mut shutdown => break,
                };
                while tasks.try_join_next().is_some() {}
                let service = OfConnection {
                    info: info(&io),
                    service: self.service(),
                    connection: Arc::clone(&seat.0),
                };
                let connection = http.serve_connection(TokioIo::new(io), service);
                let connection = connections.watch(connection);
                tasks.spawn(async move {
                    let ended = tokio::select! {
                        ended = connection => ended,
                        why = seat.closes() => {
                            tracing::debug!(target: "meshca_xds", why, "a connection is closed");
                            return;
                        }
                    };
                    if let Err(error) = ended {
                        tracing::debug!(target: "meshca_xds", %error, "a connection has failed");
                    }
                });
            }
        }
        connections.shutdown().await;
    }

    /// Accepts connections, and makes room for each.
    fn incoming<L, I, A>(
        &self,
        listener: L,
        accept: A,
    ) -> impl Stream<Item = Seated<I>> + use<L, I, A>
    where
        A: AsyncFn(&L) -> io::Result<(I, Peer)>,
    {
        let connections = Arc::clone(&self.shared.connections);
        stream::unfold(
            (listener, accept, connections, None),
            async |(listener, accept, connections, mut warned)| {
                let (io, peer) = loop {
                    match accept(&listener).await {
                        Ok(accepted) => break accepted,
                        // A client that is gone already, or no more file descriptors: neither is the end of a server.
                        Err(error) => {
                            let now = Instant::now();
                            if warned.is_none_or(|it| now - it >= WARNS) {
                                warned = Some(now);
                                tracing::warn!(target: "meshca_xds", %error, "a connection could not be accepted");
                            }
                            match Errno::from_io_error(&error) {
                                // Other parts of the process use more than was left to them.
                                Some(Errno::MFILE | Errno::NFILE) => {
                                    connections.free_a_descriptor().await;
                                }
                                _ => sleep(Duration::from_millis(100)).await,
                            }
                        }
                    }
                };
                let seat = connections.seat(peer).await;
                Some(((io, seat), (listener, accept, connections, warned)))
            },
        )
    }
}

/// How much a client may send that is not read yet: what HTTP/2 begins with, and the least that it allows for a connection (RFC 9113 §6.9.2).
/// The windows of a connection cannot grow when it is proven, but requests are small and read at once.
const WINDOW: u32 = 65_535;

/// How often the log has that no connection can be accepted: the kernel says so for as long as a client waits.
const WARNS: Duration = Duration::from_secs(10);

/// The service for what comes over one connection, of which something is known.
struct OfConnection<I> {
    info: I,
    service: SdsService,
    connection: Arc<Connection>,
}

impl<I: Clone + Send + Sync + 'static> hyper::service::Service<http::Request<Incoming>>
    for OfConnection<I>
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = tonic::codegen::BoxFuture<Self::Response, Self::Error>;

    fn call(&self, mut request: http::Request<Incoming>) -> Self::Future {
        request
            .extensions_mut()
            .insert(Arc::clone(&self.connection));
        request.extensions_mut().insert(self.info.clone());
        self.service.clone().call(request)
    }
}

/// A connection, and its room among as many as there may be.
type Seated<I> = (I, Seat);

async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, Peer)> {
    let (stream, address) = listener.accept().await?;
    // It fails for a client that is gone already.
    let _ = stream.set_nodelay(true);
    Ok((stream, Peer::of_address(address.ip())))
}
