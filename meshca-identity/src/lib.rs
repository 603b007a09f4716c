//! Keeps every workload of a mesh in possession of a valid, verified identity and of the right trust: through renewals, changes of the
//! CA, outages, and the move from one CA to another.
//!
//! This is what a control plane runs. It hands in the resources that an operator wrote and the workloads that are connected; it gets,
//! for each of them, a certificate with its key and the bundles of all trust domains, and hears of every change.
//!
//! ```text
//!   Mesh, MeshIdentity, MeshTrust, MeshTLS        workloads (labels)
//!                    │ apply                            │ connect
//!                    ▼                                  ▼
//!   select ──────► Manager / Driver ◄───────────────────┘
//!   who gets what    │        │ schedule: when
//!                    ▼        ▼
//!              Issuer (a CA) ──► verified Identity ──► trust: published before, kept after
//!                                                          │
//!                                    Handle ◄──────────────┘
//!                                      │ identity(), trust(), changed()
//!                                      ▼
//!                            rustls023, Envoy, anything
//! ```
//!
//! # A complete program
//!
//! ```
//! use std::sync::Arc;
//!
//! use meshca_core::registry::BackendRegistry;
//! use meshca_core::resource::Resource;
//! use meshca_core::spiffe::{Environment, Workload};
//! use meshca_core::{MemorySecretStore, SystemClock, builtin};
//! use meshca_identity::select::SelectOptions;
//! use meshca_identity::{Manager, ManagerOptions, MeshResources};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The CAs that resources may name. Those of the other crates are added in the same way.
//! let registry = BackendRegistry::new().with(builtin::factory());
//! let options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
//! let secrets = Arc::new(MemorySecretStore::new());
//! let (manager, driver) = Manager::new(registry, secrets, Arc::new(SystemClock::new()), options);
//! let driver = driver.spawn();
//!
//! // What the operator wrote: all that belongs to one mesh, whenever any of it changes.
//! let documents = Resource::parse("
//! {type: Mesh, name: default}
//! ---
//! type: MeshIdentity
//! name: everyone
//! mesh: default
//! spec:
//!   selector: {dataplane: {matchLabels: {}}}
//!   spiffeID: {trustDomain: example.org}
//!   provider:
//!     type: Bundled
//!     bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}
//! ")?;
//! manager.apply(MeshResources::from_resources(documents)?).await?;
//!
//! // A proxy has connected. Its identity is kept fresh until the handle is dropped.
//! let workload = Workload::from_label_list("app=web,kuma.io/workload=web")?;
//! let mut handle = manager.connect("default", "web-1", workload).await?;
//! let identity = handle.ready().await?;
//! assert_eq!(identity.spiffe_id().to_string(), "spiffe://example.org/workload/web");
//!
//! // Whom it trusts; its own root is always among them.
//! let trust = handle.trust();
//! let bundle = trust.for_peer(identity.spiffe_id()).ok_or("its own trust domain")?;
//! assert!(bundle.contains(identity.certificate().root().der()));
//!
//! // Why it is who it is, for an operator.
//! assert_eq!(
//!     handle.selection().await?.to_string(),
//!     "spiffe://example.org/workload/web, by the MeshIdentity `everyone`\n\
//!      - `everyone` selects it by 0 labels: the most specific, then the first by name",
//! );
//! driver.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! In a real one a task per proxy waits on [`Handle::changed`] and pushes what is new; where that is rustls, the feature `rustls023`
//! does it.
//!
//! # Where to read on
//!
//! | module | what it is about |
//! |---|---|
//! | [`manager`] | issuing, renewing, trust, health, observers: the loop that a control plane runs |
//! | [`select`] | which MeshIdentity a workload gets, and why |
//! | [`tls`] | how strict a proxy is: MeshTLS, and the classic backend's mode |
//! | [`migration`] | plans for moving a live mesh from one CA, model or trust domain to another |
//! | `rustls023` | configurations for rustls that follow an identity (feature `rustls023`) |
//!
//! # Defaults
//!
//! | what | default | test |
//! |---|---|---|
//! | renewal | between 50 % and 60 % of the lifetime, drawn once per certificate | `schedule::a_year_of_a_thousand_identities` |
//! | requests at the same time, for each CA | 16 | `manager::ten_thousand_at_once_are_issued_once_each` |
//! | wait after a failure | 5 s, doubled up to 5 min, with jitter of a half | `schedule::backoff_doubles_up_to_five_minutes_and_is_spread` |
//! | a CA is left alone | after 10 workloads have failed in a row; a probe after 5 s to 1 min | `schedule::the_breaker_opens_at_ten_different_workloads_and_lets_one_try` |
//! | a CA whose answers are refused | is asked by one workload after 1 min to 1 h, 24 times a day at most | `schedule::what_an_issuer_refuses_to_all_is_asked_for_24_times_a_day` |
//! | a CA is checked, without a signature | every 5 min, or as seldom as it wishes to be asked for its roots; every 3 s while it does not answer | `faults::a_ca_that_is_back_is_found_within_seconds` |
//! | a MeshIdentity that wins and is not ready | is waited for | `select::a_winner_that_is_not_ready_is_said_and_the_choice_is_the_operators`, in `meshca-policy` |
//! | the identity of a workload without a connection | kept for 60 s | `manager::who_disconnects_is_remembered_for_a_minute` |
//! | roots of a CA are read again | every 30 s | `manager::the_defaults_of_the_manager` |
//! | time for one certificate | 60 s, or `dpCert.requestTimeout` | `manager::the_defaults_of_the_manager` |
//! | proxies acknowledge trust | not expected | `manager::the_defaults_of_the_manager` |
//! | a proxy that does not acknowledge | is named after a minute; left behind at 80 % of the lifetime of what cannot be renewed | `laggards::one_that_stops_to_acknowledge_is_named_and_costs_nobody_else` |
//! | chains may end in an intermediate | no | `manager::the_defaults_of_the_manager` |
//! | a root that ends is warned of | 30 days before | `manager::the_defaults_of_the_manager` |
//! | a root that has ended | leaves the trust a day after | `trust::a_root_that_has_ended_is_not_published` |
//! | a root that only the record needs | stays for a day longer | `trust::what_is_known_from_the_record_is_kept_for_a_day_longer` |
//! | a clock that disagrees with the record | removes no trust, for 30 days at most | `watch::a_doubt_ends_with_a_newer_entry_with_a_clock_that_is_set_right_and_after_a_month` |
//! | a generated CA that existed and is gone | is not made again | `lost_cas::after_a_restart_any_witness_keeps_a_ca_from_being_made_again` |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `rustls023` | no | configurations for rustls 0.23, with the crypto provider as an argument |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acknowledged;
mod bundles;
mod ca;
mod credentials;
pub mod manager;
mod record;
#[cfg(feature = "rustls023")]
pub mod rustls023;
mod schedule;
mod trust;
mod watch;

pub use acknowledged::{Acknowledged, TrustVersion};
pub use bundles::TrustBundles;
pub use credentials::Credentials;
pub use manager::{Handle, Manager, ManagerOptions};
#[doc(inline)]
pub use meshca_policy::{BackendKey, MeshResources, migration, select, tls};
pub use schedule::ScheduleOptions;
