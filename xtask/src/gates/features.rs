//! Features only add: any two of them, alone or together, build without a warning.

use super::LeftOut;
use crate::process::{self, Result};
use crate::tools;

pub(super) fn check() -> Result<LeftOut> {
    // Clippy rather than `check`, since code that is dead without some feature is a warning, and
    // denying warnings for rustc would build every dependency again. cargo-hack's `--no-dev-deps`
    // is not needed (the resolver keeps their features apart when no test is built), and it would
    // rewrite the manifests for as long as it runs.
    let all = [
        "--workspace",
        "--exclude",
        "xtask",
        "--exclude",
        "meshca-certmanager",
    ];
    powerset(&all)?;
    // `k8s-openapi` builds with exactly one version of Kubernetes, which this one always has here.
    powerset(&[
        "--package",
        "meshca-certmanager",
        "--features",
        "k8s-latest",
    ])?;
    Ok(Vec::new())
}

fn powerset(packages: &[&str]) -> Result<()> {
    process::run(
        tools::HACK
            .command()?
            .args(["hack", "clippy", "--locked"])
            .args(packages)
            .args(["--feature-powerset", "--depth", "2", "--", "-D", "warnings"]),
    )
}
