//! `cargo deny`, by the rules in `deny.toml`.

use super::LeftOut;
use crate::process::{self, Result};
use crate::tools;

pub(super) fn holds() -> Result<LeftOut> {
    process::run(&mut tools::DENY.command("check bans licenses sources")?)?;

    // Fetching is a step of its own, because `check advisories` fails alike when the database cannot
    // be reached and when it knows of a problem; only the first may be left out.
    let mut fetch = tools::DENY.command("fetch db")?;
    // Git would otherwise ask the terminal for a password where a proxy wants one.
    if let Err(failure) = process::run(fetch.env("GIT_TERMINAL_PROMPT", "0")) {
        return Ok(vec![format!(
            "advisories were NOT checked: the RustSec database could not be fetched ({failure}; see \
             above); whether a dependency has a known vulnerability or was withdrawn is unknown"
        )]);
    }
    process::run(&mut tools::DENY.command("--offline check advisories")?)?;
    Ok(Vec::new())
}
