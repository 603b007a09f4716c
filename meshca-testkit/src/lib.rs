//! What every [meshca](https://docs.rs/meshca) issuer must do, as tests for yours too.
//!
//! An [`Issuer`](meshca_core::Issuer) connects a CA with meshca. Core verifies whatever it returns, so a
//! faulty one cannot do harm; but it can fail at three in the morning. This crate finds out before:
//!
//! - [`conformance`]: the contract as a suite of checks against any `&dyn Issuer`, each of which says
//!   in words what is wrong. It judges certificates itself and does not ask core.
//! - [`samples`]: a trust domain, a workload and keys to begin with.
//! - [`secret_store`]: the same for a [`SecretStore`](meshca_core::SecretStore).
//! - [`FaultyIssuer`]: a CA that misbehaves [as told](Fault), to prove that whatever stands on top of an
//!   issuer – a wrapper, a manager, core itself – copes with it.
//! - [`pki`]: roots, intermediates, cross-signed, renewed, expired and constrained CAs with keys of any
//!   type; and a [`FakeClock`] for them to live by.
//! - [`search`]: a breadth-first search through every state of a model.
//!
//! **The API is not stable.** Checks are added and sharpened in any release, patch releases included: an
//! issuer that passed may fail the next one, which is what it is for. Depend on one exact version, in
//! `[dev-dependencies]`.
//!
//! # Testing an issuer of your own
//!
//! A complete test of an issuer that knows SPIFFE IDs and P-256 keys, and whose CA decides on the lifetime.
//! The CA is one of this crate's; yours is behind a network.
//!
//! ```
//! use async_trait::async_trait;
//! use meshca_core::{
//!     Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer, Result, SignedChain,
//!     SpiffeId, TrustBundle, TrustDomain,
//! };
//! use meshca_testkit::FakeClock;
//! use meshca_testkit::conformance::{self, Subject};
//! use meshca_testkit::pki::TestCa;
//!
//! #[derive(Debug)]
//! struct MyCa {
//!     trust_domain: TrustDomain,
//!     ca: TestCa,
//!     clock: FakeClock,
//! }
//!
//! impl std::fmt::Display for MyCa {
//!     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
//!         f.write_str("my-ca at ca.example.org")
//!     }
//! }
//!
//! #[async_trait]
//! impl Issuer for MyCa {
//!     fn capabilities(&self) -> Capabilities {
//!         // What is not declared here appears in the report as declared to be missing.
//!         Capabilities::new()
//!     }
//!
//!     async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
//!         request.require_trust_domain(&self.trust_domain)?;
//!         let leaf = self.ca.sign(request, self.clock.now())?;
//!         Ok(SignedChain::new([leaf]))
//!     }
//!
//!     async fn trust_bundle(&self) -> Result<TrustBundle> {
//!         self.ca.bundle(self.trust_domain.clone())
//!     }
//!
//!     async fn check(&self) -> Result<CheckReport> {
//!         Ok(CheckReport::new())
//!     }
//! }
//!
//! // In a test of yours: #[tokio::test]
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let clock = FakeClock::new();
//!     let issuer = MyCa {
//!         trust_domain: TrustDomain::new("example.org")?,
//!         ca: TestCa::root("my root", clock.now())?,
//!         clock: clock.clone(),
//!     };
//!     let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?;
//!     let report = conformance::run_all(&Subject::new(&issuer, &clock, id)).await;
//!     report.assert_passed();
//!     Ok(())
//! }
//! ```
//!
//! It prints whom it tested and what it found:
//!
//! ```text
//! conformance of my-ca at ca.example.org
//!   asked for spiffe://example.org/ns/shop/sa/cart for 3600s, each call within 30s
//!   it declares Capabilities { lifetime_honoured: false, max_lifetime: None, dns_names: false, … }
//!   holds     requested_id
//!             a certificate for a key that we hold
//!   declared  intermediates
//!             declared: not supported: intermediates
//!   …
//!   all 18 checks hold
//! ```
//!
//! A CA whose certificates live by the real time is tested with
//! [`SystemClock`](meshca_core::SystemClock). Run the suite through `Arc<dyn Issuer>` as well where you
//! wrap issuers: that is how a wrapper that forgets to forward a method is caught.

mod clock;
pub mod conformance;
mod faulty;
pub mod pki;
pub mod samples;
pub mod search;
pub mod secret_store;

pub use clock::{FakeClock, TokioClock};
pub use faulty::{Fault, FaultyIssuer};
