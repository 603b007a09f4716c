//! Documentation without a warning, that of private items too: contributors read it.

use super::LeftOut;
use crate::cargo::cargo;
use crate::process::{self, Result};

pub(super) fn holds() -> Result<LeftOut> {
    let mut doc =
        cargo("doc --locked --workspace --all-features --no-deps --document-private-items");
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Vec::new())
}
