//! The `rust-version` in `Cargo.toml` is a promise: this builds everything with it.

use super::LeftOut;
use crate::cargo::{self, cargo};
use crate::process::{self, Result};
use crate::tools;

pub(super) fn holds() -> Result<LeftOut> {
    let toolchain = cargo::msrv_toolchain()?;
    tools::need_toolchain(&toolchain)?;
    let check = format!("+{toolchain} check --locked --workspace --all-targets --all-features");
    // The outer cargo leaves its own path here, and the inner one would hand it on.
    process::run(cargo(&check).env_remove("CARGO"))?;
    Ok(Vec::new())
}
