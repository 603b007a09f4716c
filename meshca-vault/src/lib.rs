//! Workload certificates from the PKI engine of HashiCorp Vault or OpenBao, as an issuer for [meshca](meshca_core).
//!
//! The control plane makes a key and a CSR, logs in to Vault, has a role of the PKI engine sign, and hands out what comes
//! back only after [core](meshca_core::verify) has verified it. The private key never leaves the process.
//!
//! ```text
//!   CertificateRequest ─► VaultIssuer ── token ──► POST <pki>/sign/<role> ─► SignedChain ─► verified by core
//!                           │    ▲
//!                           │    └─ Sessions: one token, one login at a time, renewed at two thirds of its life
//!                           └─ TrustBundle: the roots that CAs lead to which sign for us, asked for again every minute
//! ```
//!
//! # From a resource
//!
//! A control plane that reads resources adds the [`factory`](crate::factory()) to its registry, and is done: backends of the type `vault`
//! (or extensions of that name) are then built like any other. The facade `meshca` does it with its feature `vault`.
//!
//! ```
//! # use std::sync::Arc;
//! use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
//! use meshca_core::resource::Resource;
//! # use meshca_core::{MemorySecretStore, SystemClock};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let documents = Resource::parse("
//!     type: Mesh
//!     name: default
//!     mtls:
//!       enabledBackend: vault-1
//!       backends:
//!       - name: vault-1
//!         type: vault
//!         dpCert: {rotation: {expiration: 24h}}
//!         conf:
//!           fromCp:
//!             address: https://vault.example:8200
//!             pki: kmesh-pki
//!             role: mesh-dp
//!             tls: {caCert: {secret: vault-ca}}
//!             auth: {kubernetes: {role: control-plane}}
//! ")?;
//! let Some(Resource::Mesh(mesh)) = documents.into_iter().next() else { unreachable!() };
//! let backend = BackendConfig::classic(mesh.enabled_backend().ok_or("mTLS is off")?);
//!
//! let registry = BackendRegistry::new().with(meshca_vault::factory());
//! # let (secrets, clock) = (Arc::new(MemorySecretStore::new()), Arc::new(SystemClock::new()));
//! let context = BuildContext::new("default", mesh.trust_domain()?, secrets, clock);
//! let issuer = registry.build(&backend, &context).await?.issuer;
//! assert_eq!(issuer.to_string(), "vault at https://vault.example:8200 (role mesh-dp of kmesh-pki)");
//! // `issuer.check().await?` now says what an operator has to do before the first proxy asks.
//! # Ok(())
//! # }
//! ```
//!
//! # What it takes care of
//!
//! - **Tokens.** Every way to log in that `VaultAuth` has: a token, a TLS certificate, Kubernetes, AppRole, JWT/OIDC, AWS (IAM). A
//!   token is renewed, or replaced, after about two thirds of its life. After a 403, `lookup-self` tells a dead token from a policy
//!   that refuses. Where it does not, as in OpenBao, another login does: only what a fresh token is refused as well is
//!   a policy's refusal. A dead token is replaced once, for all who wait, and the call repeated. A policy's refusal is
//!   an error that names the missing line of the policy. Failed logins are spaced from one second to thirty.
//! - **Replaced credentials.** Tokens, secret IDs, certificates and CAs are read again from where the settings say, at the latest
//!   after 30 s: no restart.
//! - **Lifetimes.** Vault caps a lifetime silently at the role's `max_ttl`: its warning becomes an
//!   [`Observation`](meshca_core::Observation). Where the CA itself ends earlier and Vault refuses, the lifetime that fits is asked for
//!   once, and reported.
//! - **Trust.** The roots to which issuers of the mount lead that have a key, so that one that is rotated inside Vault is trusted
//!   before it signs. With a pinned `issuer`, the roots to which its chain leads, and what `alsoTrust` announces. With `caCert`,
//!   exactly those. Other roots of the mount are reported, and not trusted. A mount without the root of its intermediate names
//!   that intermediate: its certificates are good once the mesh has the root from elsewhere, such as a MeshTrust.
//! - **Proxies.** Through the one that the settings name.
//! - **Secrets.** Tokens, secret IDs and bodies that carry them live in memory that is wiped, and appear in no error, log or `Debug`.
//!   What a proxy in between answers is not repeated, since it may repeat what was sent.
//!   (Buffers of the HTTP and TLS libraries are outside of this.)
//!
//! # What decides nothing
//!
//! No environment variable: not `VAULT_ADDR`, `VAULT_TOKEN`, `VAULT_SKIP_VERIFY`, no proxy variable, no region of AWS. Two things come from
//! the system, and only where the settings leave them open: without `tls.caCert`, the CAs that the system trusts; and for
//! `auth.aws`, credentials from the places where AWS' own tools look.
//!
//! # Retrying
//!
//! A call that fails says by its [`retry`](meshca_core::Error::retry) whether another try can help; it is not repeated here, but for
//! the cases above. Put the wrapper `Retrying` of `meshca` around the issuer, or use a manager that retries. When to renew a certificate
//! is for [`RenewalPolicy`](meshca_core::RenewalPolicy) to say.
//!
//! # For operators
//!
//! The [guide] leads from an empty Vault to the first certificate, with the role, the policy and each way to log in.
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `aws-auth` | yes | logging in with the AWS identity of the control plane |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod api;
mod auth;
mod check;
mod client;
mod error;
mod factory;
mod issuer;
mod policy;
mod product;
mod refusal;
mod role;
mod session;
mod settings;
mod sign;
mod tls;
mod token;
mod transport;
mod trust;

#[doc = include_str!("../GUIDE.md")]
pub mod guide {}

pub use factory::{VaultFactory, factory};
pub use issuer::VaultIssuer;
pub use settings::{DEFAULT_REQUEST_TIMEOUT, DEFAULT_TRUST_REFRESH, VaultSettings};
