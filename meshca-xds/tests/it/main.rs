//! The tests of the crate from outside, as one program: linking is what costs.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests"
)]

mod attacks;
mod observe;
mod options;
mod secrets;
mod server;
mod strangers;
#[cfg(feature = "tls")]
mod tls;
mod world;
