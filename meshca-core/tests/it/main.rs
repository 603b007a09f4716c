//! The tests of the crate from outside, as one program: linking is what costs.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests"
)]

#[cfg(feature = "builtin")]
mod builtin;
mod common;
mod defaults;
#[cfg(feature = "builtin")]
mod delegated;
mod ends;
#[cfg(all(feature = "builtin", unix))]
mod golden;
#[cfg(feature = "builtin")]
mod identity;
#[cfg(feature = "builtin")]
mod lost_cas;
mod resources;
mod secret_store;
mod shared_names;
mod spiffe_template_properties;
mod spiffe_templates;
mod tag_uris;
mod third_party;
mod trust;
mod verify;
