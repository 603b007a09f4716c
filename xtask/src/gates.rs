//! `cargo xtask gates`: what the project promises, proved.

mod deny;
mod dependencies;
mod docs;
mod features;
mod msrv;
mod package;
mod public_api;
mod sources;

use std::process::ExitCode;

use clap::ValueEnum;

use crate::process::{self, Result};

/// A promise that is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gate {
    /// Each crate links only what it may, and what it uses
    Dependencies,
    /// Types of other crates in the public API are the ones we chose
    PublicApi,
    /// Everything builds with the oldest Rust that is promised
    Msrv,
    /// Every combination of two features builds without a warning
    Features,
    /// The documentation builds without a warning
    Docs,
    /// Each package builds from what a registry would get, with its documentation and its licence
    Package,
    /// Licences, duplicate and banned crates, sources, advisories
    Deny,
    /// No machine's paths in the files, and the lints apply to every crate
    Sources,
}

/// What a gate that held did not look at, and why; mostly nothing.
type LeftOut = Vec<String>;

/// Holds if there are no problems.
fn unless(problems: &[String]) -> Result<LeftOut> {
    match problems {
        [] => Ok(Vec::new()),
        problems => Err(problems.join("\n")),
    }
}

impl Gate {
    fn holds(self) -> Result<LeftOut> {
        match self {
            Self::Dependencies => dependencies::holds(),
            Self::PublicApi => public_api::holds(),
            Self::Msrv => msrv::holds(),
            Self::Features => features::holds(),
            Self::Docs => docs::holds(),
            Self::Package => package::holds(),
            Self::Deny => deny::holds(),
            Self::Sources => sources::holds(),
        }
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Checks the gates named, or all; goes on after one that fails, so that one run tells everything.
pub(crate) fn run(names: &[Gate]) -> Result<ExitCode> {
    let gates = if names.is_empty() {
        Gate::value_variants()
    } else {
        names
    };
    let mut lines = Vec::new();
    let mut failed = false;
    for gate in gates {
        println!("gate {}: checking", gate.name());
        let (result, took) = process::timed(|| gate.holds());
        let line = match result {
            Ok(left_out) => {
                let mut line = format!("gate {}: holds ({:.1} s)", gate.name(), took.as_secs_f64());
                for note in left_out {
                    line.push_str("\n  WARNING, left out: ");
                    line.push_str(&note);
                }
                line
            }
            Err(message) => {
                failed = true;
                format!(
                    "gate {}: FAILED\n  {}",
                    gate.name(),
                    message.replace('\n', "\n  ")
                )
            }
        };
        println!("{line}");
        lines.push(line);
    }
    if gates.len() > 1 {
        println!("\nsummary of `cargo xtask gates`");
        for line in lines {
            println!("{line}");
        }
    }
    Ok(u8::from(failed).into())
}
