//! Placeholder.
use std::process::ExitCode;

use super::plan::Bench;
use crate::process::Result;

pub(super) fn run(_: &[Bench]) -> Result<ExitCode> {
    Err("not here yet".to_owned())
}
