//! Keeps every workload of a mesh in possession of a valid, verified identity and of the right trust.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bundles;
pub mod migration;
mod resources;
#[cfg(feature = "rustls023")]
pub mod rustls023;
mod schedule;
pub mod select;
pub mod tls;

pub use bundles::TrustBundles;
pub use resources::MeshResources;
pub use schedule::ScheduleOptions;
