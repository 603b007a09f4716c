//! Which types of other crates appear in the public API: each is a promise to follow that crate's
//! major versions. The allow-list, with its reasons, is in each crate's `Cargo.toml`.

use super::{LeftOut, unless};
use crate::cargo;
use crate::process::{self, Result};
use crate::tools;

pub(super) fn holds() -> Result<LeftOut> {
    tools::need_toolchain(tools::NIGHTLY)?;
    let mut failures = Vec::new();
    for package in cargo::packages()?
        .iter()
        .filter(|package| package.published)
    {
        println!("  {}", package.name);
        let check = "check-external-types --all-features --manifest-path";
        let mut command = tools::EXTERNAL_TYPES.command(check)?;
        command
            .env("RUSTUP_TOOLCHAIN", tools::NIGHTLY)
            .env_remove("CARGO")
            .arg(&package.manifest);
        if let Err(failure) = process::run(&mut command) {
            failures.push(format!(
                "{}: {failure}; keep the type out of the public API, or allow it with a reason in {}",
                package.name,
                package.manifest.display(),
            ));
        }
    }
    unless(&failures)
}
