//! Features only add: any two of them, alone or together, build without a warning.

use super::LeftOut;
use crate::process::{self, Result};
use crate::tools;

pub(super) fn holds() -> Result<LeftOut> {
    // Clippy rather than `check`, since code that is dead without some feature is a warning, and
    // denying warnings for rustc would build every dependency again. cargo-hack's `--no-dev-deps`
    // is not needed (the resolver keeps their features apart when no test is built), and it would
    // rewrite the manifests for as long as it runs.
    let hack = "hack clippy --locked --workspace --exclude xtask --feature-powerset --depth 2 -- -D warnings";
    process::run(&mut tools::HACK.command(hack)?)?;
    Ok(Vec::new())
}
