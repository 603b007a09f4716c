//! Workload certificates from HashiCorp Vault.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod api;
mod auth;
mod check;
mod client;
mod factory;
mod flight;
mod issuer;
mod refusal;
mod session;
mod settings;
mod tls;
mod token;
mod transport;
mod trust;

pub use factory::{VaultFactory, factory};
pub use issuer::VaultIssuer;
pub use settings::{DEFAULT_REQUEST_TIMEOUT, DEFAULT_TRUST_REFRESH, VaultSettings};
