//! The tests of the crate from outside, as one program: linking is what costs.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests"
)]

#[cfg(feature = "identity")]
mod control_plane;
#[cfg(feature = "rustls")]
mod counters;
#[cfg(all(
    feature = "acm",
    feature = "certmanager",
    feature = "vault",
    feature = "xds-tls"
))]
mod envoy;
#[cfg(feature = "xds")]
mod envoy_sds;
mod examples;
mod fuzz_seeds;
#[cfg(all(feature = "acm", feature = "certmanager", feature = "vault"))]
mod hostile;
#[cfg(all(feature = "acm", feature = "certmanager", feature = "vault"))]
mod issuers;
#[cfg(feature = "identity")]
mod migrate;
#[cfg(feature = "rustls")]
mod oracle;
#[cfg(all(
    feature = "acm",
    feature = "certmanager",
    feature = "rustls",
    feature = "vault"
))]
mod providers;
mod readers;
#[cfg(feature = "rustls")]
mod rustls_mtls;
