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
mod check;
mod common;
mod conformance;
mod environment;
mod faults;
mod logins;
mod openbao;
mod proxies;
mod resources;
mod trust;
