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
//! use meshca_core::{CertificateSpec, Issuer, IssuerExt, MemorySecretStore, SpiffeId, SystemClock, TrustDomain};
//!
//! # async fn run(client: kube::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let conf = CertManagerConf::new(IssuerRef::new("mesh-ca"));
//! let settings = CertManagerSettings::new(conf, TrustDomain::new("default")?, "mesh-system", "control-plane-0")?;
//! let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
//! let clock = Arc::new(SystemClock::new());
//! let issuer = CertManagerIssuer::new(settings, client, sources, clock.clone());
//!
//! for warning in issuer.check().await?.warnings {
//!     eprintln!("{warning}");
//! }
//! let spec = CertificateSpec::workload(SpiffeId::new("spiffe://default/ns/shop/sa/cart")?);
//! let identity = issuer.issue(&spec, &*clock).await?;
//! # drop(identity);
//! # Ok(())
//! # }
//! ```
//!
//! With resources, add the [`factory`](crate::factory()) to a registry instead.
//!
//! # What it takes care of
//!
//! - **One object for each request**, named after its digest: a call that is repeated, by a restarted control plane as well,
//!   finds the outstanding one. What has *failed* is final for cert-manager, so the next try is another object.
//! - **One watch for all**, which survives restarts of the API server; not one for each request.
//! - **Every ending**: denied, invalid (where `Ready` is never set), failed, not approved, deleted. Each says what to do.
//! - **Nothing is left behind**: an object is deleted once its certificate was verified, or refused.
//! - **Names come from the CSR** with cert-manager, so a CSR that asks for other names than the identity has is refused.
//!
//! # Trust
//!
//! `caCert` decides which roots certificates lead to. Without it, a root that an issuer names in `status.ca` is trusted (an intermediate is
//! not); before the first certificate, one that nobody uses is asked for, to see it. Issuers that name none need `caCert`.
//!
//! # What the control plane may do
//!
//! `examples/resources/cert-manager/rbac.yaml` of the repository: create, get, list, watch and delete requests in one namespace, and read issuers. Never
//! approve them.
//!
//! # Not here yet
//!
//! A store for secrets on Kubernetes, and cleaning up what a control plane that was killed has left. Objects that it left have
//! the label `app.kubernetes.io/managed-by=meshca`.
//!
//! [`k8s-openapi`](https://docs.rs/k8s-openapi) builds for exactly one version of Kubernetes, which your program chooses: add it to your
//! dependencies with a feature such as `latest` or `v1_36`.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attempts;
mod check;
mod conditions;
mod crd;
mod error;
mod factory;
mod issuer;
mod rights;
mod secret_store;
mod settings;
mod signing;
mod trust;
mod watch;

pub use factory::{CertManagerFactory, factory};
pub use issuer::CertManagerIssuer;
pub use secret_store::KubeSecretStore;
pub use settings::{CertManagerSettings, DEFAULT_MAX_PENDING, DEFAULT_TIMEOUT};
