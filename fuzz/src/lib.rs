//! What the fuzz targets do with their input. A plain test feeds the committed seeds to the same functions
//! (`tests/it/fuzz_seeds.rs` of the workspace).
//!
//! Each function panics if a promise is broken, and says whether the input was accepted.

mod chain;
mod pki;
mod request;
mod resource;
mod template;
mod trust;

pub use chain::returned_chain;
pub use request::csr;
pub use resource::resource;
pub use template::template;
pub use trust::{jwks_bundle, pem_bundle};

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("csr", csr),
    ("jwks_bundle", jwks_bundle),
    ("pem_bundle", pem_bundle),
    ("resource", resource),
    ("returned_chain", returned_chain),
    ("template", template),
];

/// Seeds that cannot be written by hand, by target and name. `cargo run --example write_seeds` writes them.
pub fn binary_seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, seed) in chain::seeds() {
        seeds.push(("returned_chain", name, seed));
    }
    for (name, seed) in request::seeds() {
        seeds.push(("csr", name, seed));
    }
    for (name, seed) in trust::pem_seeds() {
        seeds.push(("pem_bundle", name, seed));
    }
    for (name, seed) in trust::jwks_seeds() {
        seeds.push(("jwks_bundle", name, seed));
    }
    seeds
}
