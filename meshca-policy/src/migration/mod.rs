//! Moves a live mesh from one CA, model or trust domain to another without a failed handshake.
//!
//! [`plan()`] compares the resources that a mesh has with those that it is to have, and answers
//! with the [`Step`]s between: which resources to apply, and the [`Requirement`]s that every proxy
//! must meet before the next step. What it cannot move it refuses, with all reasons at once and
//! what to do first ([`Obstacles`]).
//!
//! | from | to | how |
//! |---|---|---|
//! | a classic CA | another classic CA | both listed, then the other one enabled, then the first one removed |
//! | `Mesh.mtls` | MeshIdentity | the four steps below |
//! | a MeshIdentity | one with another CA, another trust domain, or both | side by side, then the selector moves |
//! | MeshIdentity | `Mesh.mtls` | the same four steps |
//! | the middle of any of these | where it began | [`Plan::rollback`] |
//!
//! A plan keeps no cursor. [`Plan::next`] finds out from what is [observed](Observed) which step
//! the mesh is at, so that a control plane that restarts, and an operator who applies something
//! twice, do no harm.
//!
//! ```
//! use meshca_core::resource::Resource;
//! use meshca_policy::MeshResources;
//! use meshca_policy::migration::{Next, Observed, PlanOptions, plan};
//!
//! let from = MeshResources::from_resources(Resource::parse("
//! type: Mesh
//! name: default
//! mtls:
//!   enabledBackend: ca-1
//!   backends: [{name: ca-1, type: builtin}]
//! ")?)?;
//! let to = MeshResources::from_resources(Resource::parse("
//! type: Mesh
//! name: default
//! mtls:
//!   enabledBackend: ca-2
//!   backends: [{name: ca-2, type: builtin}]
//! ")?)?;
//! let plan = plan(&from, &to, &PlanOptions::new("zone-1"))?;
//! let titles: Vec<_> = plan.steps().iter().map(|step| step.title.as_str()).collect();
//! assert_eq!(titles, ["Add trusted CA", "Rotate", "Clean up"]);
//!
//! // No proxy is connected, so nobody has to be waited for but the CA.
//! let mut observed = Observed::new(from);
//! let Next::Apply { step: 1, changes } = plan.next(&observed) else { unreachable!() };
//! for change in &changes {
//!     change.apply_to(&mut observed.resources);
//! }
//! let Next::Wait { step: 1, waiting } = plan.next(&observed) else { unreachable!() };
//! assert_eq!(waiting[0].to_string(), "the backend `ca-2`: its CA is not ready");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is taken for granted
//!
//! The plans are safe under these rules, which the manager of `meshca-identity` and Kuma's control
//! plane follow:
//!
//! - A proxy trusts the roots of every listed backend while the mesh has an enabled one, and those
//!   of every MeshTrust, whether or not a MeshIdentity selects it.
//! - It accepts of each peer the SPIFFE ID that the resources give that peer, those that
//!   MeshIdentities without a provider announce for it, and its classic one while the mesh has an
//!   enabled backend.
//! - It gets its identity by [`select`](crate::select), and keeps what it holds until the new one
//!   is there.
//! - How strict it is, [`tls`](crate::tls) decides. This depends on labels that control planes
//!   add, such as the origin of a MeshTLS. A plan reads them in what the mesh has, and keeps them
//!   where it replaces a policy. Write those of new policies into what the mesh is to have.
//! - One that starts gets all of this as it is then, before it takes part.
//! - One that has lost its control plane goes on with what it has. It is therefore waited for,
//!   until it is back or gone.
//!
//! The tests explore every order in which proxies can see what a plan does (`migration/model`).
//!
//! One plan is for one zone: the trust domain of a MeshIdentity may be another in each
//! ([`PlanOptions::new`]).
#![doc = include_str!("../../MIGRATION.md")]

mod mode;
#[cfg(test)]
mod model;
mod observed;
mod obstacles;
mod options;
mod plan;
mod planner;
mod words;

pub use observed::{Observed, ObservedProxy, Requirement, Waiting};
pub use obstacles::{Obstacle, ObstacleKind, Obstacles};
pub use options::PlanOptions;
pub use plan::{Action, Change, Next, Plan, Step};
pub use planner::plan;
