//! `cargo xtask fuzz`: the fuzz targets on their seeds and beyond.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::Args;

use crate::cargo;
use crate::process::{self, Result};
use crate::tools;

/// A fuzz target.
struct Target {
    name: &'static str,
    /// Of the files in `fuzz/dictionaries`.
    dictionary: &'static str,
    /// In bytes: enough for several of the seeds at once.
    max_len: u32,
}

const TARGETS: [Target; 6] = [
    Target::new("csr", "der", 2048),
    Target::new("jwks_bundle", "jwks_bundle", 4096),
    Target::new("pem_bundle", "pem_bundle", 4096),
    Target::new("resource", "resource", 4096),
    Target::new("returned_chain", "der", 2048),
    Target::new("template", "template", 512),
];

/// How long a smoke run is, for each target.
const SMOKE_SECONDS: u64 = 5;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The target; all of them when none is named
    target: Option<String>,
    /// A few seconds for each target, on the committed seeds alone
    #[arg(long)]
    smoke: bool,
    /// How long, for each target
    #[arg(long, default_value_t = 600, conflicts_with = "smoke")]
    seconds: u64,
}

impl Target {
    const fn new(name: &'static str, dictionary: &'static str, max_len: u32) -> Self {
        Self {
            name,
            dictionary,
            max_len,
        }
    }

    /// `cargo fuzz` for this target, in the folder `fuzz`.
    fn command(&self, seconds: u64, smoke: bool) -> Result<Command> {
        let Self {
            name,
            dictionary,
            max_len,
        } = self;
        let root = cargo::root().join("fuzz");
        // New inputs go to the first folder: never to the seeds.
        let corpus = if smoke {
            let scratch = root.join("target").join("smoke").join(name);
            let _ = fs::remove_dir_all(&scratch);
            scratch
        } else {
            root.join("corpus").join(name)
        };
        fs::create_dir_all(&corpus)
            .map_err(|error| format!("cannot make {}: {error}", corpus.display()))?;
        let mut command = cargo_fuzz()?;
        command
            // Nothing of ours is unsafe, so that a sanitizer costs time and finds nothing.
            .args(["run", "--fuzz-dir", ".", "--sanitizer", "none", name])
            .args([corpus, PathBuf::from("seeds").join(name)])
            .args([
                "--".to_owned(),
                format!("-dict=dictionaries/{dictionary}.dict"),
                format!("-max_len={max_len}"),
                format!("-max_total_time={seconds}"),
                "-rss_limit_mb=2048".to_owned(),
                "-timeout=10".to_owned(),
                "-print_final_stats=1".to_owned(),
            ]);
        Ok(command)
    }
}

/// `cargo-fuzz` of the version that we pin, with the nightly that we pin.
fn cargo_fuzz() -> Result<Command> {
    let mut command = tools::FUZZ.command("fuzz")?;
    command
        .current_dir(cargo::root().join("fuzz"))
        .env("RUSTUP_TOOLCHAIN", tools::NIGHTLY)
        // The outer cargo leaves its own path here, and it is another one.
        .env_remove("CARGO");
    Ok(command)
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let smoke = arguments.smoke || arguments.target.is_none();
    let targets: Vec<&Target> = TARGETS
        .iter()
        .filter(|target| {
            arguments
                .target
                .as_deref()
                .is_none_or(|name| name == target.name)
        })
        .collect();
    if targets.is_empty() {
        let names = TARGETS.map(|target| target.name).join(", ");
        return Err(format!("no such fuzz target: there are {names}"));
    }
    if let Err(why) = tools::need_toolchain(tools::NIGHTLY).and_then(|()| cargo_fuzz()) {
        if arguments.target.is_some() {
            return Err(why);
        }
        println!("  left out: {} fuzz targets: {why}", targets.len());
        return Ok(ExitCode::SUCCESS);
    }
    for target in targets {
        if smoke {
            let executions = quietly(&mut target.command(SMOKE_SECONDS, true)?)?;
            println!("{}: {executions} inputs, nothing found", target.name);
        } else {
            process::run(&mut target.command(arguments.seconds, false)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs it and says how many inputs it tried; what it prints is shown if it fails.
fn quietly(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| process::not_started(command, &error))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{text}");
        return Err(format!(
            "`{}` failed ({}); put the input that it names into `fuzz/seeds` with the repair",
            process::line(command),
            output.status
        ));
    }
    executions(&text)
        .map(str::to_owned)
        .ok_or_else(|| format!("`{}` says nothing of what it did", process::line(command)))
}

fn executions(statistics: &str) -> Option<&str> {
    statistics.lines().find_map(|line| {
        let number = line.strip_prefix("stat::number_of_executed_units:")?;
        Some(number.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_known_and_has_seeds_and_a_dictionary() {
        let folder = cargo::root().join("fuzz");
        let mut found: Vec<String> = fs::read_dir(folder.join("fuzz_targets"))
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                path.file_stem().unwrap().to_string_lossy().into_owned()
            })
            .collect();
        found.sort();
        assert_eq!(found, TARGETS.map(|target| target.name));
        for target in TARGETS {
            assert!(folder.join("seeds").join(target.name).is_dir());
            let dictionary = format!("dictionaries/{}.dict", target.dictionary);
            assert!(folder.join(dictionary).is_file());
        }
    }

    #[test]
    fn the_number_of_inputs_is_read() {
        let text = "Done 12 runs\nstat::number_of_executed_units: 12\nstat::average: 1\n";
        assert_eq!(executions(text), Some("12"));
        assert_eq!(executions("nothing"), None);
    }
}
