//! Pushes the identities and the trust of a service mesh to Envoy, and knows what each proxy has taken into use.
//!
//! [`meshca_identity`] keeps every workload in possession of an identity. This crate turns that into the secrets that Envoy asks for
//! over its Secret Discovery Service (SDS), serves them, and closes the loop: what a proxy **acknowledges** is told to the manager,
//! which signs nothing under a new root before every proxy that is there has it ([how long](embedding) those that are away are waited for). So a live mesh moves from one CA to another by facts, and not by
//! delays.
//!
//! ```text
//!   Manager ── Handle: identity, trust, changed ──► SdsServer ── secrets ──► Envoy
//!      ▲                                               │  ▲                    │
//!      └────────── acknowledge: trust number ──────────┘  └──── ACK, NACK ─────┘
//! ```
//!
//! # A complete program
//!
//! ```
//! use std::sync::Arc;
//!
//! use meshca_core::registry::BackendRegistry;
//! use meshca_core::resource::Resource;
//! use meshca_core::spiffe::{Environment, Workload};
//! use meshca_core::{Error, ErrorKind, MemorySecretStore, SystemClock, builtin};
//! use meshca_identity::select::SelectOptions;
//! use meshca_identity::{Manager, ManagerOptions, MeshResources};
//! use meshca_xds::{Attested, Caller, SdsServer};
//! use tokio::net::UnixListener;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The manager, as everywhere; proxies acknowledge.
//! let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
//! options.acknowledgements = true;
//! let (manager, driver) = Manager::new(
//!     BackendRegistry::new().with(builtin::factory()),
//!     Arc::new(MemorySecretStore::new()),
//!     Arc::new(SystemClock::new()),
//!     options,
//! );
//! let driver = driver.spawn();
//! manager.apply(MeshResources::from_resources(Resource::parse("
//! {type: Mesh, name: default}
//! ---
//! type: MeshIdentity
//! name: everyone
//! mesh: default
//! spec:
//!   selector: {dataplane: {matchLabels: {}}}
//!   spiffeID: {trustDomain: example.org}
//!   provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}
//! ")?)?).await?;
//!
//! // Who is who: here, a user of the system is the proxy `web-1`, and people are nobody. The node's own word is never enough.
//! let authenticator = |caller: &Caller<'_>| {
//!     let peer = caller.unix_credentials();
//!     let peer = peer.ok_or_else(|| Error::new(ErrorKind::Unauthenticated, "not on the Unix socket"))?;
//!     match peer.uid() {
//!         0..1000 => Ok(Attested::new("default", "web-1", Workload::from_label_list("kuma.io/workload=web")?)),
//!         other => Err(Error::new(ErrorKind::Denied, format!("the user {other} is no proxy"))),
//!     }
//! };
//! let folder = tempfile::tempdir()?;
//! let listener = UnixListener::bind(folder.path().join("sds.sock"))?;
//! let server = SdsServer::new(manager, authenticator);
//! # let shutdown = std::future::ready(());
//! server.serve_unix(listener, shutdown).await;
//! driver.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! An Envoy with an `sds_config` that leads to this socket and the name `default` gets the certificate of `web-1`; with `ALL`, the
//! bundles of every trust domain. The example `envoy_sds` of the facade writes such a configuration, and runs two Envoys with it.
//!
//! # Where to read on
//!
//! | module | what it is about |
//! |---|---|
//! | [`server`] | the service, and serving it |
//! | [`embedding`] | an xDS server that is there already, and one push as a picture |
//! | [`names`] | what proxies call their secrets: Kuma's classic and modern names, SPIRE's |
//! | [`secrets`] | the messages, as pure functions |
//! | [`contexts`] | TLS contexts for listeners and clusters: SANs, versions, ciphers, permissive inbounds |
//!
//! # What a proxy can count on
//!
//! - It gets its own identity and the trust of its mesh, whatever it asks for. What it may call them is in [`names`]; another name
//!   gets nothing, and is told to the [observer](SdsObserver) for the audit.
//! - Exactly what it asks for is in a response, and never an empty one: Envoy refuses a response with a secret that it does not
//!   expect, and one without any.
//! - The same content has the same version and the same bytes, from every replica. Nothing is sent twice that has not changed, but at the
//!   beginning of a stream of the state of the world, whose version does not say what the client still has.
//! - One response is under way at a time on a stream. A proxy that is slow gets the newest when it is ready, and nothing queues for it.
//! - What it refuses is not sent again until it changes, and holds up nobody but those who must wait for it to trust a new root.
//! - What it has, it keeps: nothing is ever taken away, and an identity that has ended is not handed out anew.
//!
//! # Secrets in memory
//!
//! Private keys are wiped where meshca holds them. To be sent, a key is written into the buffers of protobuf, HTTP/2 and TLS, which are not
//! wiped. It is never in an event, an error or a log.
//!
//! # Defaults
//!
//! | what | default | test |
//! |---|---|---|
//! | the largest request | 256 KiB | `options::the_defaults` |
//! | the largest request before a connection is proven, and all that it has in memory until then | 128 KiB | `options::the_defaults`, `strangers::what_strangers_send_takes_little_memory` |
//! | the same of all unproven clients together | 64 MiB | `allowance::all_together_have_a_limit` |
//! | names on one stream | 100 | `options::the_defaults` |
//! | bytes of one name, and of a node's id | 1,024 | `options::the_defaults` |
//! | streams on one connection | 100 | `options::the_defaults` |
//! | connections | 20,000, and never more than the process may have descriptors, less a quarter, 1,024 at most | `options::the_defaults`, `connections::descriptors_are_left_to_the_rest_of_the_process` |
//! | an unproven connection stays, where others need its place | 250 ms at least | `connections::the_oldest_gives_way_after_its_time` |
//! | requests on one stream | 10 per second, and 100 at once | `options::the_defaults`, `server::who_talks_too_fast_is_listened_to_later` |
//! | time for the first request, the authenticator, a TLS handshake | 10 s each | `options::the_defaults` |
//! | time for a proof on a connection, with the handshake | as for the first request and the authenticator: 20 s | `connections::a_proof_has_one_deadline` |
//! | keepalive | after 30 s, answered within 20 s | `options::the_defaults` |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `tls` | no | serving over TLS, by rustls |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod allowance;
mod authenticate;
mod connections;
pub mod contexts;
mod event;
mod grpc;
pub mod names;
mod options;
mod pace;
mod proxies;
mod proxy;
pub mod secrets;
mod serve;
pub mod server;
mod standing;
mod stream;

/// An xDS server that is there already: how to mount the service, what to refer to, and one push as a picture.
#[doc = include_str!("../EMBEDDING.md")]
pub mod embedding {
    #[cfg(doc)]
    use crate::SdsServer;
}

pub use authenticate::{Attested, Authenticator, Caller};
pub use event::{ProxyId, SdsEvent, SdsObserver};
pub use grpc::SdsService;
pub use options::SdsOptions;
pub use proxy::ProxySecrets;
pub use server::{SdsServer, SdsServerBuilder};
pub use standing::Standing;
