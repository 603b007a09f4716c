//! Keeps every workload of a mesh in possession of a valid, verified identity and of the right trust.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bundles;
mod credentials;
pub mod migration;
mod resources;
#[cfg(feature = "rustls023")]
pub mod rustls023;
pub mod select;
pub mod tls;

pub use bundles::TrustBundles;
pub use credentials::Credentials;
pub use resources::MeshResources;
