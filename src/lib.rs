//! Enterprise PKI for service-mesh control planes.
//!
//! meshca turns what an operator wrote – Mesh, MeshIdentity, MeshTrust and MeshTLS resources, on
//! Kubernetes or Universal – into **verified** X.509 identities (SPIFFE) from the company's own CA.
//!
//! This crate is the front door: it re-exports [`meshca-core`](meshca_core) and, feature by feature, the
//! crates around it, and it knows a [registry](backend_registry) with everything that is switched on.
//! A library that extends meshca depends on `meshca-core` alone.
//!
//! # From a resource to a certificate
//!
//! ```
//! use std::sync::Arc;
//!
//! use meshca::registry::{BackendConfig, BuildContext};
//! use meshca::resource::Resource;
//! use meshca::spiffe::Workload;
//! use meshca::{IssuerExt, MemorySecretStore, SystemClock};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let documents = Resource::parse("
//!     type: Mesh
//!     name: default
//!     mtls:
//!       enabledBackend: ca-1
//!       backends:
//!       - name: ca-1
//!         type: builtin
//! ")?;
//! let Some(Resource::Mesh(mesh)) = documents.into_iter().next() else { unreachable!() };
//! let Some(backend) = mesh.enabled_backend() else { unreachable!() };
//! let workload = Workload::new().with_tag("kuma.io/service", "cart");
//!
//! let clock = Arc::new(SystemClock::new());
//! let secrets = Arc::new(MemorySecretStore::new());
//! let context = BuildContext::new("default", mesh.trust_domain()?, secrets, clock.clone());
//! let backend = BackendConfig::classic(backend);
//! let issuer = meshca::backend_registry().build(&backend, &context).await?;
//!
//! let spec = backend.certificate_spec(mesh.spiffe_id_of(&workload)?, &workload)?;
//! let identity = issuer.issue(&spec, &*clock).await?;
//! assert_eq!(identity.spiffe_id().to_string(), "spiffe://default/cart");
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! Features only ever add; none is on by default.
//!
//! | feature | adds |
//! |---|---|
//! | `schema` | JSON Schema for every resource |
//! | `svid` | conversions to the X.509-SVID types of the `spiffe` crate |
//! | `vault` | HashiCorp Vault: the type `vault`, and the module of the same name |
//! | `acm` | AWS Private CA: the type `acmpca`, and the module `acm` |
//! | `certmanager` | cert-manager, and secrets in Kubernetes: the module of the same name |
//! | `k8s-latest` | `certmanager`, for the newest version of Kubernetes; leave it off where your program depends on `k8s-openapi` with another one |
//! | `identity` | keeps every workload of a mesh in possession of an identity: the module of the same name |
//! | `xds` | `identity`, and a server that gives identities and trust to Envoy: the module of the same name |
//! | `xds-tls` | `xds` and `rustls`, and that server over TLS |
//! | `rustls` | `identity`, and configurations for rustls that follow an identity through its renewals |
//! | `retry` | issuer wrapper: tries again as the error advises |
//! | `rate-limit` | issuer wrapper: signatures per second, with a burst |
//! | `timeout` | issuer wrapper: gives up on a CA that does not answer |
//! | `breaker` | issuer wrapper: leaves a failing CA alone for a while |
//! | `audit` | issuer wrapper: one record for each signature or refusal, and a file of JSON lines for them |
//! | `audit-tracing` | a sink that hands audit records to `tracing` |
//! | `metrics` | issuer wrapper: counts and times operations through the `metrics` facade |
//!
//! The wrappers are in the module `wrap`, which says how they stack. They need tokio, which of the rest only the providers link.
//!
//! The examples `quickstart` and `check` show the whole way for an operator's files, `custom_issuer` how to add a CA
//! of your own, `vault` how to have HashiCorp Vault sign, and `certmanager` and `acm` the same for cert-manager and AWS Private CA.
//! `control_plane` keeps the identities of a whole mesh fresh, and is where to begin with a control plane of your own.
//! `rustls_mtls` serves mutual TLS with axum and tonic, and rotates the identities under load. `envoy_sds` gives two Envoys their
//! identities, and exchanges their CA.
//! `migrate` plans how a live mesh gets from one CA to another.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "acm")]
#[cfg_attr(docsrs, doc(cfg(feature = "acm")))]
#[doc(inline)]
pub use meshca_acm as acm;
#[cfg(feature = "certmanager")]
#[cfg_attr(docsrs, doc(cfg(feature = "certmanager")))]
#[doc(inline)]
pub use meshca_certmanager as certmanager;
pub use meshca_core::*;
#[cfg(feature = "identity")]
#[cfg_attr(docsrs, doc(cfg(feature = "identity")))]
#[doc(inline)]
pub use meshca_identity as identity;
#[cfg(feature = "vault")]
#[cfg_attr(docsrs, doc(cfg(feature = "vault")))]
#[doc(inline)]
pub use meshca_vault as vault;
#[cfg(feature = "xds")]
#[cfg_attr(docsrs, doc(cfg(feature = "xds")))]
#[doc(inline)]
pub use meshca_xds as xds;

#[cfg(any(
    feature = "audit",
    feature = "breaker",
    feature = "metrics",
    feature = "rate-limit",
    feature = "retry",
    feature = "timeout",
))]
#[doc(inline)]
pub use meshca_wrap as wrap;

/// A registry with the built-in CA and every provider whose feature is on, and which needs nothing but that: cert-manager
/// is reached through the control plane's own Kubernetes client, so add `certmanager::factory(client, namespace, instance)`.
///
/// Add your own in the same way, with [`BackendRegistry::with`].
pub fn backend_registry() -> BackendRegistry {
    let registry = BackendRegistry::new().with(builtin::factory());
    #[cfg(feature = "acm")]
    let registry = registry.with(meshca_acm::factory());
    #[cfg(feature = "vault")]
    let registry = registry.with(meshca_vault::factory());
    registry
}
