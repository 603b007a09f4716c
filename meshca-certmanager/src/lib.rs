//! Workload certificates from cert-manager on Kubernetes, as an issuer for [meshca](meshca_core).
//!
//! The control plane makes a key and a CSR, creates a `CertificateRequest` as its own service account, waits until cert-manager
//! has signed it, and hands out what comes back only after [core](meshca_core::verify) has verified it.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use meshca_certmanager::{CertManagerIssuer, CertManagerSettings};
//! use meshca_core::resource::{CertManagerConf, IssuerRef};
//! use meshca_core::secret::SourceReader;
//! use meshca_core::{CertificateSpec, Issuer, IssuingCa, MemorySecretStore, SpiffeId, SystemClock, TrustDomain};
//!
//! # async fn run(client: kube::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let conf = CertManagerConf::new(IssuerRef::new("mesh-ca"));
//! let settings = CertManagerSettings::new(conf, TrustDomain::new("default")?, "mesh-system", "control-plane-0")?;
//! let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
//! let clock = Arc::new(SystemClock::new());
//! let ca = IssuingCa::new(CertManagerIssuer::new(settings, client, sources, clock.clone()));
//!
//! for warning in ca.check().await?.warnings {
//!     eprintln!("{warning}");
//! }
//! let spec = CertificateSpec::workload(SpiffeId::new("spiffe://default/ns/shop/sa/cart")?);
//! let identity = ca.issue(&spec, &*clock).await?;
//! # drop(identity);
//! # Ok(())
//! # }
//! ```
//!
//! With resources, add the [`factory`](crate::factory()) to a registry instead.
//!
//! # From a resource
//!
//! A control plane that reads resources adds the [`factory`](crate::factory()) to its registry, and is done: backends of the type
//! `certmanager` (or extensions of that name) are then built like any other.
//!
//! ```no_run
//! # use std::sync::Arc;
//! use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
//! # use meshca_core::resource::Mesh;
//! # use meshca_core::{SecretStore, SystemClock};
//!
//! # async fn run(client: kube::Client, mesh: Mesh) -> Result<(), Box<dyn std::error::Error>> {
//! let secrets = Arc::new(meshca_certmanager::KubeSecretStore::new(client.clone(), "mesh-system"));
//! let registry = BackendRegistry::new()
//!     .with(meshca_certmanager::factory(client, "mesh-system", "control-plane-0"));
//! let context = BuildContext::new("default", mesh.trust_domain()?, secrets, Arc::new(SystemClock::new()));
//! let backend = mesh.enabled_backend().ok_or("mTLS is off")?;
//! let issuer = registry.build(&BackendConfig::classic(backend), &context).await?;
//! # drop(issuer);
//! # Ok(())
//! # }
//! ```
//!
//! A `MeshIdentity` names it as an extension, and has a mode that a `Mesh` has not: with `Intermediate`, cert-manager signs the CA of the
//! control plane and not each workload.
//!
//! ```no_run
//! # use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
//! # use meshca_core::resource::Resource;
//! # async fn run(registry: &BackendRegistry, context: &BuildContext) -> Result<(), Box<dyn std::error::Error>> {
//! let text = "
//! apiVersion: kuma.io/v1alpha1
//! kind: MeshIdentity
//! metadata: {name: identity, namespace: mesh-system, labels: {kuma.io/mesh: default}}
//! spec:
//!   selector: {dataplane: {matchLabels: {}}}
//!   spiffeID: {trustDomain: default}
//!   provider:
//!     type: Extension
//!     extension:
//!       name: certmanager
//!       config:
//!         mode: Leaf
//!         issuerRef: {name: mesh-ca}
//!         caCert: {secret: mesh-ca-root}
//! ";
//! for resource in Resource::parse(text)? {
//!     if let Resource::MeshIdentity(identity) = resource {
//!         let config = BackendConfig::modern(&identity).ok_or("it has no provider of certificates")?;
//!         let issuer = registry.build(&config, context).await?;
//!         # drop(issuer);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What it takes care of
//!
//! - **One object for each request**, named after its digest: a call that is repeated, by a restarted control plane as well,
//!   finds the outstanding one. What has *failed* is final for cert-manager, so the next try is another object.
//! - **One watch for all**, which survives restarts of the API server; not one for each request.
//! - **Every ending**: denied, invalid (where `Ready` is never set), failed, not approved, deleted. Each says what to do.
//! - **Nothing is left behind.** An object is deleted once its certificate was verified, or refused; what callers give up, or a process
//!   that was killed has left, is deleted after the timeout, by the instance that made it and no other.
//! - **Bounds.** At most 100 requests of an issuer wait at once; further calls wait their turn. What was given up stays for a while, so where nobody
//!   approves there may be three times as many objects. A call of the API server has ten seconds.
//! - **Names come from the CSR** with cert-manager, so a CSR that asks for other names than the identity has is refused.
//!
//! # The holder of the issuer drives its rotation
//!
//! With `mode: Intermediate` the first certificate of the CA in this process is requested when the
//! issuer is built, and kept in the secret store, which has to be durable. The holder of the
//! issuer requests the next ones: every few minutes, call
//! [`follow`](meshca_core::CaRotation::follow) of the
//! [rotation](meshca_core::BuiltIssuer::rotation), and take the step that is due. The module
//! `builtin` of `meshca-core` says how long intermediates and leaves live. The manager of
//! `meshca-identity` does all of it.
//!
//! # Trust
//!
//! `caCert` decides which roots certificates lead to; it is read again every half minute. A certificate that is refused because its root is unknown
//! leads to one that `caCert` does not have.
//!
//! Without it, the root that an issuer names in `status.ca` is trusted. If it names an intermediate,
//! peers need the root from elsewhere, such as a MeshTrust. To see what it names, a certificate that is
//! not used is requested before the first one. Issuers that name nothing need `caCert`. A root that is not named any more leaves trust when the last certificate under it
//! has ended, and a root that has expired leaves at once.
//!
//! # A CA near its end
//!
//! CA issuers of cert-manager sign past the end of their CA. Verification refuses what outlives its
//! CA, so the issuer asks again for what is left, and remembers it. Each such certificate carries an
//! [`Observation::IssuerNote`](meshca_core::Observation::IssuerNote).
//!
//! # Secrets
//!
//! [`KubeSecretStore`] keeps the secrets of the control plane where Kuma keeps them, for all replicas: the built-in CA, tokens, roots.
//!
//! # For operators
//!
//! The [guide] leads from an empty cluster to the first certificate, with the issuer and the control plane's rights, which are
//! to create, get, list, watch and delete requests in one namespace, and to read issuers. Never to approve them.
//!
//! # Your Cargo.toml
//!
//! The control plane brings its own `kube::Client`, so it decides how its cluster is reached, and chooses kube's features. kube
//! reads `HTTPS_PROXY` for a kubeconfig that names no proxy. Here the environment decides nothing:
//!
//! ```no_run
//! # async fn run() -> Result<kube::Client, Box<dyn std::error::Error>> {
//! let mut config = kube::Config::infer().await?;
//! config.proxy_url = None;
//! let client = kube::Client::try_from(config)?;
//! # Ok(client)
//! # }
//! ```
//!
//! With the features below, TLS is by the
//! cryptographic library that meshca has anyway; kube's default brings a second one, and where both are linked rustls panics
//! at the first connection, because it cannot know which is meant.
//!
//! ```toml
//! kube = { version = "5", default-features = false, features = ["client", "rustls-tls", "aws-lc-rs"] }
//! meshca-certmanager = { version = "0.1", features = ["k8s-latest"] }
//! ```
//!
//! # The version of Kubernetes
//!
//! [`k8s-openapi`](https://docs.rs/k8s-openapi) builds for exactly one version of Kubernetes, and its build
//! script panics where none or two are chosen. Your program chooses, in one of two ways:
//!
//! - the feature `k8s-latest` of this crate, or of the facade `meshca`, takes the newest version;
//! - a program that already depends on `k8s-openapi` with a feature such as `v1_36` leaves `k8s-latest`
//!   off. A library leaves it off, too.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `k8s-latest` | no | the choice of the newest version of Kubernetes |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attempts;
mod check;
mod conditions;
mod crd;
mod error;
mod factory;
mod heard;
mod issuer;
mod rights;
mod secret_store;
mod settings;
mod signing;
mod trust;
mod watch;

#[doc = include_str!("../GUIDE.md")]
pub mod guide {}

pub use factory::{CertManagerFactory, factory};
pub use issuer::CertManagerIssuer;
pub use secret_store::KubeSecretStore;
pub use settings::{CertManagerSettings, DEFAULT_MAX_PENDING, DEFAULT_TIMEOUT};
