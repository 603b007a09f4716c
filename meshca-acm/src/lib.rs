//! Workload certificates from AWS Private CA, as an issuer for [meshca](meshca_core).
//!
//! The control plane makes a key and a CSR, has the CA sign it (`IssueCertificate`), fetches the result (`GetCertificate`), and hands out what
//! comes back only after [core](meshca_core::verify) has verified it. The private key never leaves the process.
//!
//! # From a resource
//!
//! A control plane that reads resources adds the [`factory`](crate::factory()) to its registry, and is done: backends of the types `acmpca` and `acm`
//! (or extensions of that name) are then built like any other. The facade `meshca` does it with its feature `acm`.
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
//!       enabledBackend: aws-1
//!       backends:
//!       - name: aws-1
//!         type: acmpca
//!         dpCert: {rotation: {expiration: 24h}}
//!         conf:
//!           arn: arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f
//!           auth:
//!             awsCredentials:
//!               accessKey: {secret: aws-access-key}
//!               accessKeySecret: {secret: aws-secret-key}
//! ")?;
//! let Some(Resource::Mesh(mesh)) = documents.into_iter().next() else { unreachable!() };
//! let backend = BackendConfig::classic(mesh.enabled_backend().ok_or("mTLS is off")?);
//!
//! // `check` reckons out when the CA's quota is used up, if it knows how many workloads there are.
//! let registry = BackendRegistry::new().with(meshca_acm::factory().with_fleet(500));
//! # let (secrets, clock) = (Arc::new(MemorySecretStore::new()), Arc::new(SystemClock::new()));
//! let context = BuildContext::new("default", mesh.trust_domain()?, secrets, clock);
//! let issuer = registry.build(&backend, &context).await?.issuer;
//! assert!(issuer.to_string().starts_with("AWS Private CA arn:aws:acm-pca:eu-central-1"));
//! // `issuer.check().await?` now says what an operator has to do before the first proxy asks.
//! # Ok(())
//! # }
//! ```
//!
//! Where a MeshIdentity says who signs, the provider is an `Extension` of that name, and its `config` has the same settings. There AWS can sign the CA of the
//! control plane instead of each workload: `mode: Intermediate`.
//!
//! ```
//! # use std::sync::Arc;
//! # use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
//! # use meshca_core::resource::Resource;
//! # use meshca_core::{MemorySecretStore, SystemClock, TrustDomain};
//! #
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let documents = Resource::parse("
//!     type: MeshIdentity
//!     name: identity
//!     mesh: default
//!     spec:
//!       selector: {dataplane: {matchLabels: {}}}
//!       spiffeID: {trustDomain: default}
//!       provider:
//!         type: Extension
//!         extension:
//!           name: acmpca
//!           config:
//!             mode: Leaf  # as it is if it is left out; else Intermediate
//!             arn: arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f
//!             auth:
//!               awsCredentials:
//!                 accessKey: {secret: aws-access-key}
//!                 accessKeySecret: {secret: aws-secret-key}
//! ")?;
//! let Some(Resource::MeshIdentity(identity)) = documents.into_iter().next() else { unreachable!() };
//! let config = BackendConfig::modern(&identity).ok_or("somebody else signs")?;
//! let registry = BackendRegistry::new().with(meshca_acm::factory());
//! # let (secrets, clock) = (Arc::new(MemorySecretStore::new()), Arc::new(SystemClock::new()));
//! # let context = BuildContext::new("default", TrustDomain::new("default")?, secrets, clock);
//! let issuer = registry.build(&config, &context).await?.issuer;
//! # assert!(issuer.to_string().starts_with("AWS Private CA"));
//! # Ok(())
//! # }
//! ```
//!
//! # What it takes care of
//!
//! - **Each certificate is paid for once.** A call that is repeated has the same idempotency token and asks for the same in everything, the absolute end too; calls
//!   for the same request at the same time are one. What was issued and could not be fetched is remembered for an hour, even if whoever called has given up
//!   meanwhile, and the next call for the same request fetches *that* one. (Repeat the request, as the wrapper `Retrying` of `meshca` does: a new key is a new request,
//!   and so is a later end. What a control plane had asked for when it died is asked for anew.)
//! - **Quotas.** 25 certificates per second are asked for and 75 fetched, first come first served, by all issuers of an account and region together. What is throttled all the
//!   same is tried again by the SDK; a CA that has signed all that it may is not, although the SDK would, and says to
//!   [come back](meshca_core::Retry::After) in ten minutes: its quota may have been raised.
//! - **Lifetimes.** Of minutes as well, which AWS has no unit for. What ends with the CA, or after the seven days of a CA for
//!   short-lived certificates, is [reported](meshca_core::Observation).
//! - **Backdating.** AWS' certificates begin an hour ago. Lifetimes and renewals are reckoned from when they are issued.
//! - **Trust.** The root of the CA's chain, recognised by what it is and not by where it stands; `caCert` pins it, and what would not lead to that is not
//!   bought. It is looked at again every five minutes; an outage of AWS, or a CA that is disabled or expired, takes no trust away, and the root of a renewed chain joins the earlier one.
//!   A chain that was imported without its root names its CAs: their certificates are good once the mesh has the root from elsewhere, such as a MeshTrust.
//! - **Credentials** live in memory that is wiped, and appear in no error, log or `Debug`. A resource cannot send them anywhere: endpoints,
//!   proxies and roles are options of the [factory](AcmFactory), of which a resource names one.
//! - **The environment** decides nothing, proxies included, but for the credentials of a control plane that has been given none: these are
//!   looked for in AWS' standard places.
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
//! # What was shown on what
//!
//! Every test talks HTTP through AWS' own SDK, to moto. By itself moto signs, with RSA keys and for a year; with a plugin of
//! `meshca-testkit` it behaves as AWS documents it. One test is for the real service, which meshca's own CI has no account for.
//!
//! | property | shown on |
//! |---|---|
//! | the conformance suite, EC and RSA, roots and subordinates, below `DelegatedIssuer` | moto with the plugin |
//! | lifetimes, templates, idempotency, certificates in progress, CA states, quotas, throttling | moto with the plugin |
//! | a certificate of another lifetime than was asked for is refused, or reported with [`AcceptIssuer`](meshca_core::LifetimePolicy::AcceptIssuer) | moto by itself |
//! | errors of IAM, credentials and clocks | the same, answering as it is told |
//! | proxies, endpoints, temporary keys, assumed roles | canned answers, and moto with the plugin behind a proxy |
//! | everything at once | AWS, with `MESHCA_AWS_CA_ARN` set: `cargo test -p meshca-acm -- --ignored` |
//!
//! # Retrying
//!
//! A call that fails says by its [`retry`](meshca_core::Error::retry) whether another try can help. Put the wrapper `Retrying` of `meshca` around the
//! issuer, or use a manager that retries.
//!
//! # For operators
//!
//! The [guide] leads from an ARN and an IAM policy to the first certificate, cross-account use included.
//!
//! # Rust
//!
//! 1.89, as all of meshca. The SDK's newest versions need a newer Rust; this crate takes those as of 1.99, the newest of which Cargo picks for the Rust that you
//! have said that you use.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arn;
mod authority;
mod check;
mod client;
mod credentials;
mod error;
mod factory;
mod facts;
mod issuer;
mod orders;
mod pace;
mod role;
mod settings;

#[doc = include_str!("../GUIDE.md")]
pub mod guide {}

pub use factory::{AcmFactory, factory};
pub use issuer::AcmIssuer;
pub use role::AssumedRole;
pub use settings::{
    AcmSettings, DEFAULT_CA_REFRESH, DEFAULT_FETCH_RATE, DEFAULT_ISSUE_RATE, DEFAULT_TIMEOUT,
    Template,
};
