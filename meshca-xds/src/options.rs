//! How much a proxy may ask for, and how long anything may take.

use std::num::NonZeroU32;
use std::time::Duration;

/// Limits of the server. The [defaults](crate#defaults) are for Envoys; what is over a limit ends that stream or connection, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SdsOptions {
    /// The largest request, in bytes: a node with all its metadata is in it. 256 KiB.
    pub max_request: usize,
    /// The largest first request of a stream, in bytes, as long as no proxy has proven on the connection who it is, and the most that such a
    /// connection has in memory of the requests and headers of all its streams. 128 KiB: an Envoy sends 61 kB of names of its extensions
    /// (1.40), and the metadata of its node.
    ///
    /// Streams for which there is no room are read later, when the first of them has proven who the proxy is. All connections of a server
    /// have 64 MiB together; where that is used up, the one that has most gives way. HTTP/2 keeps 64 KiB of unread data besides.
    ///
    /// A client that sends the requests of several streams in turns may have begun more than there is room for. One such connection at a time
    /// may have as much as all its streams need.
    ///
    /// In a server of the embedder's own ([`SdsServer::service`](crate::SdsServer::service)), this is for each stream.
    pub max_first_request: usize,
    /// Names on one stream. 100.
    pub max_names: usize,
    /// Bytes of one name, and of the id of a node. 1,024.
    pub max_name: usize,
    /// Streams on one connection; an Envoy may open one for each secret. 100.
    pub max_streams: u32,
    /// Connections at the same time over all sockets of a server, where this crate [serves](crate::SdsServer::serve_tcp). 20,000.
    ///
    /// There are never more than the process may have descriptors (`RLIMIT_NOFILE`), less a quarter of those, 1,024 at most, for what else
    /// the process has open. Where there is no room, a connection on which no proxy has proven yet who it is gives way to a new one: first
    /// one without a request that the authenticator judges, then one of the peer (address, or user of a Unix socket) with the most of them,
    /// then the oldest. Each keeps its place for 250 ms at least. A proxy that has proven who it is keeps its connection.
    pub max_connections: usize,
    /// Requests per second on one stream, after a burst of ten times that: what comes faster is read later. 10.
    pub request_rate: NonZeroU32,
    /// How long a stream may take to say who it is. 10 s.
    pub first_request: Duration,
    /// How long the authenticator may take. 10 s.
    pub authentication: Duration,
    /// How long a TLS handshake may take. 10 s.
    pub handshake: Duration,
    /// How often a connection without traffic is asked whether it is still there. 30 s.
    pub keepalive: Duration,
    /// How long it may take to answer that. 20 s.
    pub keepalive_timeout: Duration,
}

const TEN: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

impl Default for SdsOptions {
    fn default() -> Self {
        Self {
            max_request: 256 * 1024,
            max_first_request: 128 * 1024,
            max_names: 100,
            max_name: 1024,
            max_streams: 100,
            max_connections: 20_000,
            request_rate: TEN,
            first_request: Duration::from_secs(10),
            authentication: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}
