//! Who may be at the other end, and how that is proven.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use meshca_core::peer::{self, Peer};
use meshca_core::{Clock, Error, ErrorKind, Result, SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CommonState, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::generation::Generation;
use super::refusal::{PeerRefusal, PeerRule, refused};

/// Which of the peers that have proven who they are may talk to us.
///
/// There is no "any": who believes several trust domains names those that are meant. An empty set allows nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerPolicy {
    /// Every workload of the own trust domain.
    SameDomain,
    /// Every workload of these trust domains. The own one counts only if it is among them.
    AllowDomains(BTreeSet<TrustDomain>),
    /// These workloads. For a client it is the way to say which server is meant: names of hosts are never looked at.
    Exact(BTreeSet<SpiffeId>),
}

impl PeerPolicy {
    /// Every workload of these trust domains.
    pub fn domains(domains: impl IntoIterator<Item = TrustDomain>) -> Self {
        Self::AllowDomains(domains.into_iter().collect())
    }

    /// These workloads.
    pub fn exact(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self::Exact(ids.into_iter().collect())
    }

    /// Whether a peer of this name is allowed, for a workload of the trust domain `own`. Whether the peer *has* this name is
    /// another question.
    pub fn allows(&self, peer: &SpiffeId, own: &TrustDomain) -> bool {
        match self {
            Self::SameDomain => peer.trust_domain() == own,
            Self::AllowDomains(domains) => domains.contains(peer.trust_domain()),
            Self::Exact(ids) => ids.contains(peer),
        }
    }
}

/// Proves who a peer is by its SPIFFE ID; for both ends of a connection. The [module](super) has the rules.
///
/// It never looks at DNS names, IP addresses or common names, and not at the name that a client connects to either.
#[derive(derive_more::Debug)]
pub struct PeerVerifier {
    #[debug("{:?}", generation.load())]
    pub(super) generation: Arc<ArcSwap<Generation>>,
    pub(super) peers: PeerPolicy,
    #[debug(skip)]
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tags: bool,
    #[debug(skip)]
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn verify(&self, peer: Peer<'_>) -> Result<(), rustls::Error> {
        let generation = self.generation.load();
        let roots_of = |domain: &_| generation.trust.get(domain);
        let id = peer
            .allow_tags(self.tags)
            .prove(roots_of, self.algorithms.all, self.clock.now())
            .map_err(refused)?;
        if !self.peers.allows(&id, generation.spiffe_id.trust_domain()) {
            return Err(PeerRefusal::new(
                PeerRule::NotAllowed,
                format!("the peer is {id}, and the policy does not allow it"),
            )
            .into());
        }
        Ok(())
    }
}

/// Implements the methods that both verifier traits of rustls share, by the algorithms of the provider.
macro_rules! signatures_by_algorithm {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, cert, dss, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(Peer::server(end_entity, intermediates))?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_by_algorithm!();
}

impl ClientCertVerifier for PeerVerifier {
    /// None: a client has one certificate, and during a rotation it may be of a root that this server holds and its list did
    /// not name.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(Peer::client(end_entity, intermediates))?;
        Ok(ClientCertVerified::assertion())
    }

    signatures_by_algorithm!();
}

/// Who is at the other end of an established connection, for authorization.
///
/// It is proven if the connection was made with a configuration of this module. With another verifier it is what the peer says.
///
/// ```no_run
/// # async fn run(acceptor: tokio_rustls::TlsAcceptor, tcp: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
/// let stream = acceptor.accept(tcp).await?;
/// let (_, connection) = stream.get_ref();
/// let caller = meshca_identity::rustls023::peer_id(connection)?;
/// println!("{caller} is calling");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`ErrorKind::Unauthenticated`] if the handshake is not over, or if the peer showed no X.509-SVID.
pub fn peer_id(connection: &CommonState) -> Result<SpiffeId> {
    let unauthenticated = |why: String| Error::new(ErrorKind::Unauthenticated, why);
    let leaf = connection
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or_else(|| unauthenticated("the peer has shown no certificate".to_owned()))?;
    certificate_id(leaf)
}

/// Who a certificate is for that a peer has shown, where a framework hands out the certificate and not the connection. As with
/// [`peer_id`], whoever verified it decides what that is worth.
///
/// # Errors
///
/// [`ErrorKind::Unauthenticated`] if it is no X.509-SVID.
pub fn certificate_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId> {
    peer::claimed_id(leaf)
        .map_err(|refusal| Error::new(ErrorKind::Unauthenticated, refusal.to_string()))
}
