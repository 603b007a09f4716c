//! Who is at the other end of a stream: for the embedder to find out.

use async_trait::async_trait;
use envoy_types::pb::envoy::config::core::v3::Node;
#[cfg(doc)]
use meshca_core::ErrorKind;
use meshca_core::spiffe::Workload;
use meshca_core::{Result, SecretValue};
use tonic::Extensions;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{TcpConnectInfo, UdsConnectInfo};

/// Finds out which proxy has opened a stream. It is asked once for each stream, before anything is answered.
///
/// **What the node says of itself is a claim**: anybody can send any. Believe it as far as something else proves it – a token, a client
/// certificate, the user behind a Unix socket – and refuse the rest: the proxy gets the identity of whom this names.
///
/// A closure that does not wait is one:
///
/// ```
/// use meshca_core::spiffe::Workload;
/// use meshca_core::{Error, ErrorKind};
/// use meshca_xds::{Attested, Authenticator, Caller};
///
/// /// One proxy for each token; the token comes from a file that only its pod can read.
/// fn by_token(tokens: Vec<(String, Attested)>) -> impl Authenticator {
///     move |caller: &Caller<'_>| {
///         let token = caller.bearer_token().ok_or_else(|| refused("a bearer token is needed"))?;
///         let known = tokens.iter().find(|(known, _)| token == known.as_str().into());
///         known.map(|(_, proxy)| proxy.clone()).ok_or_else(|| refused("nobody has this token"))
///     }
/// }
///
/// fn refused(why: &'static str) -> Error {
///     Error::new(ErrorKind::Unauthenticated, why)
/// }
///
/// let web = Workload::from_label_list("kuma.io/workload=web").expect("labels");
/// by_token(vec![("s3cret".to_owned(), Attested::new("default", "web-1", web))]);
/// ```
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Who this is.
    ///
    /// # Errors
    ///
    /// Whoever it is gets nothing. [`ErrorKind::Unavailable`] says that it cannot be found out now, and that the proxy is to come again; any
    /// other, that it is refused. The proxy is not told why, the [observer](crate::SdsObserver) is.
    async fn authenticate(&self, caller: &Caller<'_>) -> Result<Attested>;
}

#[async_trait]
impl<F> Authenticator for F
where
    F: Fn(&Caller<'_>) -> Result<Attested> + Send + Sync + 'static,
{
    async fn authenticate(&self, caller: &Caller<'_>) -> Result<Attested> {
        self(caller)
    }
}

/// A proxy, as it was proven to be.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Attested {
    /// Its mesh.
    pub mesh: String,
    /// Its name, which is unique in its mesh: that of its Dataplane.
    pub name: String,
    /// Its labels and tags, which decide who it is.
    pub workload: Workload,
}

impl Attested {
    /// A proxy.
    pub fn new(mesh: impl Into<String>, name: impl Into<String>, workload: Workload) -> Self {
        Self {
            mesh: mesh.into(),
            name: name.into(),
            workload,
        }
    }
}

/// Who has opened a stream, and how.
#[derive(Clone, Copy, derive_more::Debug)]
// Headers have tokens in them.
#[debug("Caller({:?} from {:?})", node.id, self.remote_address())]
pub struct Caller<'a> {
    pub(crate) node: &'a Node,
    pub(crate) metadata: &'a MetadataMap,
    pub(crate) extensions: &'a Extensions,
}

impl<'a> Caller<'a> {
    /// What it says of itself: a claim.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// The headers of the stream.
    pub fn metadata(&self) -> &'a MetadataMap {
        self.metadata
    }

    /// What the transport and the layers before this service know of the connection.
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }

    /// The token of the header `authorization: Bearer …`. Compare it as it is: that takes the same time for every wrong one.
    pub fn bearer_token(&self) -> Option<SecretValue> {
        let value = self.metadata.get("authorization")?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| SecretValue::from(token.trim()))
    }

    /// The certificates that it has shown, leaf first, where this crate [serves TLS](crate::SdsServer::serve_tls): the configuration of the
    /// server has verified them, if it was told to. Of a server of the embedder's, [`extensions`](Self::extensions) has them.
    #[cfg(feature = "tls")]
    pub fn certificates(&self) -> &'a [rustls_pki_types::CertificateDer<'static>] {
        let client = self.extensions.get::<TlsClient>();
        client.map_or(&[], |client| &client.certificates)
    }

    /// Where it comes from, if it came over TCP.
    pub fn remote_address(&self) -> Option<std::net::SocketAddr> {
        #[cfg(feature = "tls")]
        if let Some(client) = self.extensions.get::<TlsClient>() {
            return client.tcp.remote_addr();
        }
        self.extensions.get::<TcpConnectInfo>()?.remote_addr()
    }

    /// The process and user at the other end of a Unix socket, as the kernel knows them.
    pub fn unix_credentials(&self) -> Option<tokio::net::unix::UCred> {
        self.extensions.get::<UdsConnectInfo>()?.peer_cred
    }

    /// The SPIFFE ID in the certificate that it has shown.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unauthenticated`] if it has shown none, or one that does not have exactly one URI that is a SPIFFE ID (SPIFFE
    /// X509-SVID §2).
    #[cfg(feature = "tls")]
    pub fn spiffe_id(&self) -> Result<meshca_core::SpiffeId> {
        let certificates = self.certificates();
        let leaf = certificates.first().ok_or_else(|| {
            meshca_core::Error::new(
                meshca_core::ErrorKind::Unauthenticated,
                "no certificate was shown: the server must ask for one, and the proxy have one",
            )
        })?;
        meshca_identity::rustls023::certificate_id(leaf)
    }
}

/// The address and the certificates of a client after its handshake.
#[cfg(feature = "tls")]
#[derive(Clone)]
pub(crate) struct TlsClient {
    pub(crate) tcp: TcpConnectInfo,
    pub(crate) certificates: std::sync::Arc<[rustls_pki_types::CertificateDer<'static>]>,
}
