//! The `rust-version` in `Cargo.toml` is a promise: this builds everything with it.

use super::LeftOut;
use crate::cargo;
use crate::process::{self, Result};
use crate::tools;

pub(super) fn holds() -> Result<LeftOut> {
    let toolchain = cargo::msrv_toolchain()?;
    tools::need_toolchain(&toolchain)?;
    process::run(cargo::cargo_of(&toolchain).args([
        "check",
        "--locked",
        "--workspace",
        "--all-targets",
        "--all-features",
    ]))?;
    Ok(Vec::new())
}
