//! Keeps every workload of a mesh in possession of a valid, verified identity and of the right trust.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bundles;
mod credentials;
pub mod manager;
pub mod migration;
mod resources;
#[cfg(feature = "rustls023")]
pub mod rustls023;
mod schedule;
pub mod select;
pub mod tls;
mod trust;

pub use bundles::TrustBundles;
pub use credentials::Credentials;
pub use manager::{Handle, Manager, ManagerOptions};
pub use resources::MeshResources;
pub use schedule::ScheduleOptions;
pub use trust::BackendKey;
