//! From credentials to configurations.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use meshca_core::{Clock, Error, ErrorKind, Result};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::UnixTime;

use super::generation::{Generation, Resolver};
use super::peer::{PeerPolicy, PeerVerifier};
use super::protocol::Protocol;
use crate::Credentials;
use crate::tls::TlsPolicy;

/// What is the same for every generation: who may be at the other end, versions and ciphers, the crypto provider, the clock.
///
/// ```
/// use std::sync::Arc;
/// use meshca_core::SystemClock;
/// use meshca_identity::rustls023::{PeerPolicy, Settings};
/// use meshca_identity::tls::TlsPolicy;
///
/// let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
/// let settings = Settings::new(PeerPolicy::SameDomain, provider, Arc::new(SystemClock::new()))
///     .with_tls_policy(&TlsPolicy::default())?
///     .with_alpn(["h2"]);
/// # let _ = settings;
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    peers: PeerPolicy,
    protocol: Protocol,
    clock: Arc<dyn Clock>,
    alpn: Vec<Vec<u8>>,
    tags: bool,
}

impl Settings {
    /// TLS 1.2 and 1.3 with all that the provider offers. It also says which signatures count; the default of the process, if
    /// there is one, is not looked at.
    ///
    /// The key exchange is [post-quantum first](super#key-exchange), in whatever order the provider has its groups.
    pub fn new(peers: PeerPolicy, provider: Arc<CryptoProvider>, clock: Arc<dyn Clock>) -> Self {
        Self {
            peers,
            protocol: Protocol::of_provider(provider),
            clock,
            alpn: Vec::new(),
            tags: false,
        }
    }

    /// The same for peers of the classic model, whose certificates carry the tags of a Dataplane as
    /// further URIs (`kuma://…`). By default they are refused, as the X.509-SVID specification has it.
    #[must_use]
    pub fn allow_tags(mut self, allow: bool) -> Self {
        self.tags = allow;
        self
    }

    /// The same with the versions and ciphers of a policy only.
    ///
    /// rustls has no TLS before 1.2, so a policy that allows 1.0 gets 1.2. The ciphers are for TLS 1.2; those that the provider
    /// lacks are left out, and the suites of TLS 1.3 are the provider's. The mode is not for a TLS library: whether to accept
    /// plaintext as well is decided before there is TLS.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if nothing that the policy allows is left.
    pub fn with_tls_policy(mut self, policy: &TlsPolicy) -> Result<Self> {
        self.protocol = self.protocol.restricted(policy)?;
        Ok(self)
    }

    /// Whether the key exchange is [post-quantum first](super#key-exchange): false where the provider has no X25519MLKEM768.
    pub fn is_post_quantum(&self) -> bool {
        self.protocol.is_post_quantum()
    }

    /// The same with application protocols (RFC 7301), best first: `h2`, `http/1.1`.
    #[must_use]
    pub fn with_alpn<P: Into<Vec<u8>>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.alpn = protocols.into_iter().map(Into::into).collect();
        self
    }

    /// For connections to others, each of which shows its certificate.
    ///
    /// rustls wants a server's name for a connection. It is sent as SNI if it is a DNS name, and nothing else is done with it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if the provider cannot use the key, or can do none of the TLS versions;
    /// [`ErrorKind::InvalidConfig`] if a root cannot be used.
    pub fn client_config(&self, credentials: &Credentials) -> Result<Arc<ClientConfig>> {
        self.client(&self.generation(credentials)?)
    }

    /// For connections from others. Every client must show its certificate.
    ///
    /// # Errors
    ///
    /// As [`client_config`](Self::client_config).
    pub fn server_config(&self, credentials: &Credentials) -> Result<Arc<ServerConfig>> {
        self.server(&self.generation(credentials)?)
    }

    /// Only the verifier, for a configuration that you build yourself. **Switch resumption off there**, as
    /// [the module](super#resumption) explains.
    ///
    /// # Errors
    ///
    /// As [`client_config`](Self::client_config).
    pub fn verifier(&self, credentials: &Credentials) -> Result<Arc<PeerVerifier>> {
        Ok(self.verifier_of(&self.generation(credentials)?))
    }

    pub(super) fn read(&self, credentials: &Credentials) -> Result<Generation> {
        Generation::new(credentials, &self.protocol.provider)
    }

    pub(super) fn generation(&self, credentials: &Credentials) -> Result<Arc<ArcSwap<Generation>>> {
        Ok(Arc::new(ArcSwap::from_pointee(self.read(credentials)?)))
    }

    pub(super) fn client(
        &self,
        generation: &Arc<ArcSwap<Generation>>,
    ) -> Result<Arc<ClientConfig>> {
        let Protocol { provider, versions } = &self.protocol;
        let mut config =
            ClientConfig::builder_with_details(Arc::clone(provider), self.time_provider())
                .with_protocol_versions(versions)
                .map_err(no_config)?
                .dangerous()
                .with_custom_certificate_verifier(self.verifier_of(generation))
                .with_client_cert_resolver(Arc::new(Resolver(Arc::clone(generation))));
        config.resumption = Resumption::disabled();
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(Arc::new(config))
    }

    pub(super) fn server(
        &self,
        generation: &Arc<ArcSwap<Generation>>,
    ) -> Result<Arc<ServerConfig>> {
        let Protocol { provider, versions } = &self.protocol;
        let mut config =
            ServerConfig::builder_with_details(Arc::clone(provider), self.time_provider())
                .with_protocol_versions(versions)
                .map_err(no_config)?
                .with_client_cert_verifier(self.verifier_of(generation))
                .with_cert_resolver(Arc::new(Resolver(Arc::clone(generation))));
        // No tickets, which it would not accept, and no sessions; its ticketer makes none by default.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(Arc::new(config))
    }

    fn verifier_of(&self, generation: &Arc<ArcSwap<Generation>>) -> Arc<PeerVerifier> {
        Arc::new(PeerVerifier {
            generation: Arc::clone(generation),
            peers: self.peers.clone(),
            clock: Arc::clone(&self.clock),
            tags: self.tags,
            algorithms: self.protocol.provider.signature_verification_algorithms,
        })
    }

    fn time_provider(&self) -> Arc<dyn TimeProvider> {
        Arc::new(ClockTime(Arc::clone(&self.clock)))
    }
}

fn no_config(error: rustls::Error) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the crypto provider does not suffice for the TLS versions",
    )
    .with_source(error)
}

/// Our clock as rustls reads it.
#[derive(derive_more::Debug)]
#[debug("{_0:?}")]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}
