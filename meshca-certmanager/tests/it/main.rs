//! The tests of the crate from outside, as one program: linking is what costs.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests"
)]

mod answers;
mod api;
mod common;
mod conformance;
mod ending;
mod environment;
mod faults;
mod manager;
mod pending;
mod report;
mod resources;
mod roots;
mod secret_store;
mod watching;
