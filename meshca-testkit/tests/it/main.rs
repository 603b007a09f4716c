//! The tests of the crate from outside, as one program: linking is what costs.
#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

mod conformance;
mod faults;
mod liars;
mod secret_store;
