//! Configurations for rustls 0.23 that follow an identity through its renewals.
//!
//! [`Settings`] say what stays: who may be at the other end, TLS versions, the crypto provider, the clock. From them and the
//! current [`Credentials`](crate::Credentials) come configurations for both ends of mutual TLS:
//!
//! - [`Settings::follow`] gives [`TlsConfigs`]: a fresh `Arc<ClientConfig>` and `Arc<ServerConfig>` for each generation. **Take this one
//!   if you can**: ask for [`server()`](TlsConfigs::server) when a connection comes in, and for [`client()`](TlsConfigs::client) before you
//!   make one.
//! - [`Settings::follow_in_place`] gives [`LiveConfigs`]: one configuration of each kind, for servers and clients that take it once
//!   and for all.
//! - [`Settings::client_config`] and [`Settings::server_config`] are what both are made of.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use meshca_core::{CertificateSpec, IssuingCa, SpiffeId, SystemClock, TrustDomain};
//! use meshca_identity::rustls023::{PeerPolicy, Settings};
//! use meshca_identity::{Credentials, TrustBundles};
//! # use meshca_core::{Clock, MemorySecretStore, builtin::{BuiltinIssuer, CaSecrets, CaSettings}};
//! # let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
//! # let domain = TrustDomain::new("example.org")?;
//! # let settings = CaSettings::new(domain.clone(), CaSecrets::for_backend("default", "ca-1")?);
//! # let issuer = BuiltinIssuer::load_or_create(settings, Arc::new(MemorySecretStore::new()), clock.clone()).await?;
//!
//! // What a manager does: it sends credentials whenever they change.
//! let (sender, credentials) = tokio::sync::watch::channel(None);
//! let ca = IssuingCa::new(issuer);
//! let identity = ca.issue(&CertificateSpec::workload(SpiffeId::new("spiffe://example.org/web")?), &*clock).await?;
//! let mut trust = TrustBundles::new();
//! trust.add(&ca.trust(&*clock).await?)?;
//! sender.send_replace(Some(Credentials::new(identity, trust)));
//!
//! // What a server does.
//! let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
//! let tls = Settings::new(PeerPolicy::SameDomain, provider, clock).with_alpn(["h2"]).follow(credentials).await?;
//! let acceptor = tokio_rustls::TlsAcceptor::from(tls.server());
//! # let _ = acceptor;
//! # Ok(())
//! # }
//! ```
//!
//! # What a peer must show
//!
//! 1. A certificate. Client authentication is never optional.
//! 2. All that [`meshca_core::peer`] proves, at the time of the [`Clock`](meshca_core::Clock) in
//!    the settings.
//! 3. A SPIFFE ID that the [`PeerPolicy`] allows.
//!
//! The trust domain and not a prefix is compared, so `spiffe://example.orgi/web` does not belong to
//! `example.org`. The name that a client connects to is never looked at: **a client says whom it
//! means with [`PeerPolicy::Exact`]**.
//!
//! Certificates of the classic model carry the tags of a Dataplane as further URIs (`kuma://…`) if you ask the CA for them. They
//! are no X.509-SVIDs then, and are refused here unless you [allow tags](Settings::allow_tags).
//!
//! # Refusals
//!
//! [`PeerRule::find`] says which rule a refused peer broke, and [`PeerRule::explain`] says it in words. The other side hears nothing but an
//! alert; with TLS 1.3 a client hears it after its own handshake has succeeded, when it first reads (RFC 8446 §4.4.2.4, §6.2).
//!
//! # Resumption
//!
//! It is off, on both sides. A resumed session skips the certificates: a peer whose certificate has expired, or whose root was
//! removed, would be let in for as long as its ticket lasts. rustls ties a client's sessions to the resolver and the verifier of
//! a configuration, so [`TlsConfigs`] would be safe on that side; a server restores what the client showed the first time. With mutual TLS in a
//! mesh, connections are few and long, and a full handshake costs less than a millisecond.
//!
//! # Key exchange
//!
//! Groups are offered and taken in this order: X25519MLKEM768, X25519, P-256, P-384, and then whatever else the crypto provider has.
//! The first one is a hybrid of an elliptic curve and ML-KEM (draft-ietf-tls-ecdhe-mlkem): traffic that somebody records today cannot
//! be read by a quantum computer of tomorrow. It needs TLS 1.3. Envoy 1.40 and Go 1.24 have
//! it first by default, so that both agree on it with us. A provider without ML-KEM, such as that of `ring`, keeps its own order;
//! [`Settings::is_post_quantum`] says so, and so does a warning in the log.
//!
//! # The private key
//!
//! The key that an [`Identity`](meshca_core::Identity) holds is wiped when its last holder goes. rustls parses it from a copy that it takes for
//! itself, and the crypto provider keeps what it parses for as long as a configuration lives: neither is wiped by us.
//!
//! # tonic, axum, hyper
//!
//! All of them serve connections that somebody else accepted, which is what makes a fresh configuration for each possible: accept TCP,
//! ask for `tls.server()`, shake hands with `tokio_rustls::TlsAcceptor`, ask [`peer_id`] who it is, and hand the stream on.
//!
//! - **hyper**: `hyper_util::server::conn::auto::Builder::serve_connection(TokioIo::new(stream), service)`, as the example `rustls_mtls` does.
//! - **axum**: the same with `hyper_util::service::TowerToHyperService::new(router)`; put the peer's ID into the request's extensions. Or implement
//!   `axum::serve::Listener` around the acceptor, with the ID as its `Addr`, and take it from `ConnectInfo`.
//! - **tonic, server**: `Server::builder().add_service(…).serve_with_incoming(stream of TLS streams)`; implement `Connected` for a wrapper that carries the ID.
//!   Its own `ServerTlsConfig` has no place for a verifier.
//! - **tonic, client**: `Endpoint::connect_with_connector(tower::service_fn(…))`, whose function connects TCP, shakes hands with
//!   `TlsConnector::from(tls.client())`, and returns `TokioIo::new(stream)`.

mod follow;
mod generation;
mod peer;
mod protocol;
mod refusal;
mod settings;

pub use follow::{LiveConfigs, TlsConfigs};
pub use peer::{PeerPolicy, PeerVerifier, certificate_id, peer_id};
pub use refusal::PeerRule;
pub use settings::Settings;
