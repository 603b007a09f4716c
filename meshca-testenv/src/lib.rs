//! What the tests of this repository run against. It is not published.
//!
//! - [`servers`]: the real Vault, Kubernetes API server, cert-manager and moto, for the main paths of
//!   issuers; and Envoy, for what is made of certificates.
//! - [`http`]: a server that gives canned HTTP answers, sound or broken.
//! - [`proxy`]: an HTTP proxy that says where its clients wanted to go.
//! - [`Credulous`]: a TLS verifier that believes everybody.
//! - [`relay`]: a TCP relay that delays, cuts, resets and goes silent.
//!
//! All are on loopback. An issuer's author needs none of this: `meshca-testkit` has what proves an issuer.

mod credulous;
pub mod http;
mod listener;
pub mod proxy;
pub mod relay;
pub mod servers;

pub use credulous::Credulous;
