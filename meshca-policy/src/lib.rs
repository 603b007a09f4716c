//! What the resources of a mesh mean: for workloads, for proxies, and on the way to other
//! resources.
//!
//! All of it is computation on what an operator wrote and a control plane sees. So this crate
//! links no runtime, and a tool that plans a migration or explains a policy builds nothing else. A
//! control plane uses it through `meshca-identity`, whose manager issues and renews by these rules
//! and offers them under the same names.
//!
//! ```
//! use meshca_core::resource::{Mode, Resource};
//! use meshca_core::spiffe::{Environment, Workload};
//! use meshca_policy::MeshResources;
//! use meshca_policy::select::{IdentityRules, SelectOptions};
//! use meshca_policy::tls::{Proxy, TlsPolicy};
//!
//! let resources = MeshResources::from_resources(Resource::parse("
//! type: Mesh
//! name: default
//! mtls:
//!   enabledBackend: ca-1
//!   backends: [{name: ca-1, type: builtin, mode: PERMISSIVE}]
//! ")?)?;
//! let workload = Workload::from_label_list("kuma.io/service=web")?;
//!
//! let options = SelectOptions::new("east", Environment::Universal);
//! let selection = IdentityRules::new(&resources, options).select(&workload, |_| Ok(()));
//! assert_eq!(selection.to_string(), "spiffe://default/web, by the backend `ca-1` of the mesh");
//!
//! let policy = TlsPolicy::resolve(&resources, &Proxy::new("web-1", workload))?;
//! assert_eq!(policy.mode.value, Mode::Permissive);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to read on
//!
//! | module | what it is about |
//! |---|---|
//! | [`select`] | which MeshIdentity a workload gets, and why |
//! | [`tls`] | how strict a proxy is: MeshTLS, and the classic backend's mode |
//! | [`migration`] | plans for moving a live mesh from one CA, model or trust domain to another |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend_key;
pub mod migration;
mod resources;
pub mod select;
pub mod tls;

pub use backend_key::BackendKey;
pub use resources::MeshResources;
