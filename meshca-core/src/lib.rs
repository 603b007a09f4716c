//! Verified workload identities for a service mesh, from whatever CA the company has.
//!
//! A control plane reads the resources that an operator wrote, and owes every proxy an X.509
//! certificate that its peers accept. This crate is the part in between: it reads the resources,
//! decides what a workload's SPIFFE ID is, asks a CA for a certificate, and – before anybody gets
//! it – proves that what came back is what was asked for.
//!
//! ```text
//!   Mesh, MeshIdentity          labels of a proxy
//!   YAML or JSON                       │
//!        │ resource                    │ spiffe (templates)
//!        ▼                             ▼
//!   BackendConfig ── registry ──►   Issuer  ◄── CertificateRequest: SPIFFE ID, lifetime, CSR
//!                                      │ sign
//!                                      ▼
//!                                 SignedChain  (unverified)
//!                                      │ verify, against the TrustBundle
//!                                      ▼
//!                              IssuedCertificate ── + PrivateKey ──► Identity
//! ```
//!
//! It does no network I/O, starts no threads, reads no environment and keeps no global state; time and secrets
//! are handed in. CAs that need a network are crates of their own, which implement [`Issuer`]. The
//! built-in CA needs none and lives [here](builtin).
//!
//! # A complete program
//!
//! ```
//! use std::sync::Arc;
//!
//! use meshca_core::builtin;
//! use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
//! use meshca_core::resource::Resource;
//! use meshca_core::spiffe::{Environment, Workload};
//! use meshca_core::{IssuingCa, MemorySecretStore, SystemClock};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // What the operator wrote. All that is wrong with it is reported at once, with line and column.
//! let documents = Resource::parse("
//!     type: MeshIdentity
//!     name: flight-control
//!     mesh: default
//!     spec:
//!       selector: {dataplane: {matchLabels: {app: flight-control}}}
//!       spiffeID: {trustDomain: '{{ .Mesh }}.example.org'}
//!       provider:
//!         type: Bundled
//!         bundled:
//!           insecureAllowSelfSigned: true
//!           autogenerate: {enabled: true}
//! ")?;
//! let Some(Resource::MeshIdentity(identity)) = documents.into_iter().next() else { return Ok(()) };
//!
//! // What is known of the proxy, and who it therefore is.
//! let workload = Workload::from_label_list("app=flight-control,kuma.io/workload=fc-7")?;
//! assert!(identity.selector.matches(workload.labels()));
//! let trust_domain = identity.trust_domain_in("zone-1")?;
//! let spiffe_id = identity.spiffe_id_of(&trust_domain, &workload, Environment::Universal)?;
//! assert_eq!(spiffe_id.to_string(), "spiffe://default.example.org/workload/fc-7");
//!
//! // The CA that the resource names, built by the factory that is registered for its type.
//! let clock = Arc::new(SystemClock::new());
//! let secrets = Arc::new(MemorySecretStore::new());
//! let context = BuildContext::new("default", trust_domain, secrets, clock.clone());
//! let Some(backend) = BackendConfig::modern(&identity) else { return Ok(()) };
//! let built = BackendRegistry::new().with(builtin::factory()).build(&backend, &context).await?;
//! let ca = IssuingCa::new(built.issuer);
//!
//! // Key, request, signature, verification: one call.
//! let spec = backend.certificate_spec(spiffe_id, &workload)?;
//! let identity = ca.issue(&spec, &*clock).await?;
//! println!("{} until {}", identity.spiffe_id(), identity.certificate().validity());
//!
//! // For rustls: chain and key for `with_single_cert`, and what goes into the `RootCertStore` of
//! // its peers. (The stock verifiers of rustls look for a DNS name; one that looks for the SPIFFE
//! // ID belongs to the embedder.)
//! let (chain, key) = identity.to_rustls()?;
//! let bundle = ca.trust(&*clock).await?;
//! let roots: Vec<_> = bundle.roots().iter().map(|root| root.der().clone()).collect();
//! # let _ = (chain, key, roots);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to read on
//!
//! | module | what it is about |
//! |---|---|
//! | [`resource`] | Mesh, MeshIdentity, MeshTrust, MeshTLS, Secret: reading, checking, writing |
//! | [`spiffe`] | SPIFFE IDs, and the templates that make them from labels |
//! | [`registry`] | from a resource to an issuer; how a third party adds its own |
//! | [`issuer`], [`IssuingCa`] | the contract with a CA, and the caller's side of it |
//! | [`request`] | what is asked of a CA |
//! | [`certificate`], [`verify`] | what came back, and the rules that it must satisfy |
//! | [`peer`] | who is at the other end of a connection, by the certificates that it shows |
//! | [`trust`] | trust bundles, as PEM and in the SPIFFE format |
//! | [`builtin`] | a CA in this process, and how it is replaced without a gap |
//! | [`secret`] | secrets and where they are kept |
//! | [`time`] | the clock, validity, and when to renew |
//! | [`error`] | what can go wrong, and whether to try again |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `builtin` | yes | the [built-in CA](builtin) |
//! | `schema` | no | JSON Schema for every resource (`Resource::json_schema`) |
//! | `svid` | no | conversions to the X.509-SVID types of the `spiffe` crate |
//!
//! Features only ever add. There is one cryptographic library, AWS-LC, and no way to choose another:
//! what is verified must not depend on what else is linked.
//!
//! # Defaults
//!
//! Stated once, here and in the chapters of [`builtin`](builtin#defaults) and [`spiffe`](spiffe#what-each-template-may-use),
//! each proved by a test.
//!
//! | what | default | test |
//! |---|---|---|
//! | lifetime of a workload's certificate | 24 h | `the_defaults_of_the_crate_page` |
//! | a lifetime longer than asked for | refused | `the_defaults_of_the_crate_page` |
//! | type of a workload's key | P-256 | `the_defaults_of_the_crate_page` |
//! | how far a CA's clock may be ahead | 60 s | `a_leaf_must_be_what_was_requested` |
//! | renewal | between 50 % and 60 % of the lifetime | `the_defaults_of_the_crate_page` |
//! | mode of a backend | strict | `the_defaults_of_the_crate_page` |
//! | time limit for fetching a CA's chain | 10 s | `the_defaults_of_the_crate_page` |
//! | mount of Vault's PKI | `pki` | `the_defaults_of_the_crate_page` |
//! | usages of a `CertificateRequest` | `digital signature`, `key encipherment`, `server auth`, `client auth` | `the_defaults_of_the_crate_page` |
//! | roots that are trusted of that mount | those to which issuers lead that can sign; with a pinned `issuer`, those to which it leads | `of_a_shared_mount_those_that_sign_for_us` of `meshca-vault` |
//! | mounts of Vault's auth methods | `approle`, `aws`, `cert`, `jwt`, `kubernetes` | `each_method_can_be_mounted_anywhere` of `meshca-vault` |
//! | STS of Vault's AWS login | the global endpoint, `us-east-1` | `the_request_is_signed_for_the_region_and_made_out_to_the_endpoint` of `meshca-vault` |
//! | proxy to Vault | none | `the_defaults_of_the_crate_page` |
//! | kind and group of a cert-manager issuer | `Issuer`, `cert-manager.io` | `the_defaults_of_the_crate_page` |
//! | MeshTrust for the CA of a MeshIdentity | created | `the_defaults_of_the_crate_page` |
//! | files and environment variables as data sources | allowed | `the_defaults_of_the_crate_page` |
//! | size of a secret | at most 1 MiB | `the_defaults_of_the_crate_page` |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod authorities;
#[cfg(feature = "builtin")]
pub mod builtin;
pub mod certificate;
mod choices;
mod csr;
mod encode;
pub mod error;
mod findings;
mod flight;
mod gcra;
mod identity;
pub mod issuer;
mod issuing;
mod key;
mod named_roots;
mod new_ca;
pub mod peer;
mod pem;
pub mod registry;
pub mod request;
pub mod resource;
pub mod secret;
pub mod spiffe;
mod sync;
pub mod time;
pub mod trust;
mod usages;
pub mod verify;
mod x509;

pub use ::spiffe::{SpiffeId, TrustDomain};
pub use certificate::{IssuedCertificate, Observation, Proof, SignedChain};
pub use csr::Csr;
pub use error::{Error, ErrorKind, Result, Retry};
pub use identity::Identity;
pub use issuer::{CaRotation, Capabilities, CheckReport, Issuer, RotationStep};
pub use issuing::IssuingCa;
pub use key::{KeyType, PrivateKey, Signer};
pub use registry::{BackendRegistry, BuiltIssuer, IssuerFactory};
pub use request::{
    CertificateRequest, CertificateSpec, DEFAULT_LIFETIME, LifetimePolicy, Profile, RequestId,
};
/// Certificates, keys and CSRs as this crate and rustls pass them on.
pub use rustls_pki_types as pki_types;
pub use secret::{
    DirSecretStore, Expect, MemorySecretStore, SecretKey, SecretStore, SecretStoreExt, SecretValue,
    StoredSecret, Version,
};
pub use time::{Clock, RenewalPolicy, SystemClock, Validity};
pub use trust::{TrustBundle, TrustRoot};
