//! Workload certificates from AWS Private CA, as an issuer for [meshca](meshca_core).
//!
//! The control plane makes a key and a CSR, has the CA sign with `IssueCertificate`, fetches the result with `GetCertificate`, and hands out
//! what comes back only after [core](meshca_core::verify) has verified it.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arn;
mod authority;
mod check;
mod client;
mod credentials;
mod error;
mod factory;
mod issuer;
mod pace;
mod settings;

#[doc = include_str!("../GUIDE.md")]
pub mod guide {}

pub use factory::{AcmFactory, factory};
pub use issuer::AcmIssuer;
pub use settings::{
    AcmSettings, DEFAULT_CA_REFRESH, DEFAULT_FETCH_RATE, DEFAULT_ISSUE_RATE, DEFAULT_TIMEOUT,
    Template,
};
