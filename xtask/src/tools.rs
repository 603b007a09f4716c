//! The programs that the gates and the fuzz targets need, each in the one version that is known to work.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::cargo;
use crate::process::{self, Result};

/// The toolchain whose rustdoc JSON [`EXTERNAL_TYPES`] reads. The two belong together: the format
/// has no stability promise, so a newer nightly needs a newer tool. The fuzz targets are built with it, too.
pub(crate) const NIGHTLY: &str = "nightly-2026-03-20";

/// Licences, bans, sources, advisories.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    ask: &["--version"],
};
/// Every combination of features.
pub(crate) const HACK: Tool = Tool {
    name: "cargo-hack",
    version: "0.6.46",
    ask: &["hack", "--version"],
};
/// Types of other crates in our public API.
pub(crate) const EXTERNAL_TYPES: Tool = Tool {
    name: "cargo-check-external-types",
    version: "0.5.0",
    ask: &["--version"],
};
/// The fuzz targets.
pub(crate) const FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    ask: &["--version"],
};

/// Checks taken out, for `cargo xtask long`. No gate needs it, so that task installs it.
pub(crate) const MUTANTS: Tool = Tool {
    name: "cargo-mutants",
    version: "27.0.0",
    ask: &["mutants", "--version"],
};

/// Instruction counts. No gate needs it, so it is not installed with the others; its version is that of
/// the crate `gungraun` in `Cargo.toml`.
pub(crate) const GUNGRAUN_RUNNER: Tool = Tool {
    name: "gungraun-runner",
    version: "0.20.0",
    ask: &["--version"],
};

const ALL: [Tool; 4] = [DENY, HACK, EXTERNAL_TYPES, FUZZ];

/// A cargo subcommand from crates.io; the crate and the program have the same name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    /// How to ask it for its version.
    ask: &'static [&'static str],
}

impl Tool {
    /// The program itself, so that no other version on `PATH` is taken instead, with these arguments between spaces.
    pub(crate) fn command(self, arguments: &str) -> Result<Command> {
        let program = self.find().ok_or_else(|| self.missing())?;
        let mut command = Command::new(program);
        command
            .current_dir(cargo::root())
            .args(arguments.split_whitespace());
        Ok(command)
    }

    fn find(self) -> Option<PathBuf> {
        let ours = directory().ok().map(|directory| {
            directory
                .join("bin")
                .join(format!("{}{}", self.name, std::env::consts::EXE_SUFFIX))
        });
        ours.into_iter()
            .chain(process::on_path(self.name))
            .find(|program| {
                process::probe(program, self.ask)
                    .is_some_and(|answer| answer.split_whitespace().last() == Some(self.version))
            })
    }

    /// Builds it, unless it is there.
    pub(crate) fn install(self) -> Result<()> {
        let Self { name, version, .. } = self;
        if let Some(program) = self.find() {
            println!("{name} {version}: there ({})", program.display());
            return Ok(());
        }
        let directory = directory()?;
        println!("{name} {version}: building it in {}", directory.display());
        let install = format!("install --locked --quiet {name} --version {version} --root");
        process::run(
            Command::new("cargo")
                .args(install.split_whitespace())
                .arg(&directory)
                // A quick build: the tools ask for whole-program optimisation, which takes minutes, and
                // then run for a second.
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
                // Not the workspace's: these builds share nothing with it.
                .env("CARGO_TARGET_DIR", directory.join("target")),
        )
    }

    fn missing(self) -> String {
        let Self { name, version, .. } = self;
        let with_the_others = if ALL.iter().any(|tool| tool.name == name) {
            "`cargo xtask tools`, or with "
        } else {
            ""
        };
        format!(
            "{name} {version} not found: install it with {with_the_others}`cargo install --locked {name} \
             --version {version}`"
        )
    }
}

/// Fails, with the command that helps, unless rustup has this toolchain.
pub(crate) fn need_toolchain(toolchain: &str) -> Result<()> {
    let Some(installed) = process::probe("rustup", &["toolchain", "list"]) else {
        return Err(format!(
            "rustup not found: Rust {toolchain} cannot be chosen without it; install it as \
             https://rustup.rs tells"
        ));
    };
    if has_toolchain(&installed, toolchain) {
        Ok(())
    } else {
        Err(format!(
            "Rust {toolchain} not found: install it with `cargo xtask tools`, or with \
             `rustup toolchain install {toolchain} --profile minimal`"
        ))
    }
}

/// Whether `rustup toolchain list` names the toolchain, for whatever host.
fn has_toolchain(list: &str, toolchain: &str) -> bool {
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .any(|name| {
            name.strip_prefix(toolchain)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
}

/// Installs what is missing; leaves alone what is there.
pub(crate) fn install() -> Result<ExitCode> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if process::probe("cargo", &[subcommand, "--version"]).is_some() {
            println!("{component}: there");
        } else {
            println!("{component}: adding it");
            process::run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    for toolchain in [cargo::msrv_toolchain()?.as_str(), NIGHTLY] {
        if need_toolchain(toolchain).is_ok() {
            println!("Rust {toolchain}: there");
            continue;
        }
        println!("Rust {toolchain}: installing it");
        let install = format!("toolchain install {toolchain} --profile minimal --no-self-update");
        process::run(Command::new("rustup").args(install.split_whitespace()))?;
    }
    for tool in ALL {
        tool.install()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where tools are built and kept.
fn directory() -> Result<PathBuf> {
    Ok(cache()?.join("tools"))
}

/// What is built once is kept here: a cache folder, outside the repository.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => std::env::home_dir()
            .ok_or("no home directory: set XDG_CACHE_HOME to where tools and servers may be kept")?
            .join(".cache"),
    };
    Ok(cache.join("meshca"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchains_are_recognised_in_what_rustup_lists() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\n\
                    nightly-2026-03-20-x86_64-unknown-linux-gnu\n1.89.0-x86_64-unknown-linux-gnu\n";
        for (toolchain, there) in [
            ("1.89.0", true),
            ("nightly-2026-03-20", true),
            ("1.89.1", false),
            ("1.8", false),
        ] {
            assert_eq!(has_toolchain(list, toolchain), there, "{toolchain}");
        }
    }

    #[test]
    fn a_missing_tool_is_named_with_the_command_that_installs_it() {
        let tool = Tool {
            name: "cargo-nothing",
            version: "1.2.3",
            ask: &["--version"],
        };
        let message = tool.command("").unwrap_err();
        assert!(
            message.contains("cargo install --locked cargo-nothing --version 1.2.3"),
            "{message}"
        );
    }
}
