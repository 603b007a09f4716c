//! Workload certificates from cert-manager.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod check;
mod conditions;
mod crd;
mod error;
mod issuer;
mod settings;
mod trust;
mod watch;

pub use issuer::CertManagerIssuer;
pub use settings::{CertManagerSettings, DEFAULT_TIMEOUT};
