//! The tests of the crate from outside, as one program: linking is what costs.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests"
)]

mod aws;
mod envoy;
mod http;
mod relay;
mod servers;
