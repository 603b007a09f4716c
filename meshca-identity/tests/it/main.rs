//! The tests of the crate from outside, as one program: linking is what costs.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests"
)]

mod bare_intermediates;
mod common;
mod faults;
mod field;
mod laggards;
mod lost_cas;
mod manager;
mod moves;
mod peers;
#[cfg(feature = "rustls023")]
mod provers;
mod restarts;
#[cfg(feature = "rustls023")]
mod rustls_peers;
#[cfg(feature = "rustls023")]
mod rustls_rotation;
mod simulation;
mod third_party;
mod world;
