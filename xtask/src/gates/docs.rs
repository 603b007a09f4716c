//! Documentation without a warning, that of private items too: contributors read it.

use super::LeftOut;
use crate::cargo::cargo;
use crate::process::{self, Result};

pub(super) fn holds() -> Result<LeftOut> {
    process::run(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--locked",
        "--workspace",
        "--all-features",
        "--no-deps",
        "--document-private-items",
    ]))?;
    Ok(Vec::new())
}
