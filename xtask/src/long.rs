//! `cargo xtask long`: what takes too long for `.ci/run`. What was run last is recorded in `LONG.md`, all at once or in parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::cargo;
use crate::process::{self, Result};
use crate::tools::MUTANTS;

/// Fields without which no check is missing. cargo-mutants 27.0.0 does not apply its filters to mutants of fields.
const NO_CHECKS: &[&str] = &[
    "delete field error from struct Refusal",
    "delete field refresh_hint from struct Self",
    "delete field sequence from struct Self",
];

/// The oracle of libraries, in the only package and with the only feature that it needs.
const PACKAGE: &str = "meshca";
const FEATURES: &str = "rustls";
const TEST: [&str; 3] = [
    "--test",
    "it",
    "oracle::certificates_with_one_oddity_are_judged_as_others",
];

/// How many times as long as without a mutant the tests may take.
const PATIENCE: u32 = 5;

/// Where the last whole run is recorded.
const RECORD: &str = "LONG.md";

#[derive(Args)]
pub(crate) struct Options {
    /// Only the mutants whose names match this regular expression; `--list` has the names
    #[arg(long, value_name = "REGEX")]
    only: Option<String>,
    /// One part of all mutants, as `2/8`; the first one is 0, and all together are a whole run
    #[arg(long, value_name = "PART", value_parser = part)]
    shard: Option<String>,
    /// Print the names of the mutants
    #[arg(long)]
    list: bool,
}

/// Takes the checks of certificates out, one by one, and proves that the oracle notices each time.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    MUTANTS.install()?;
    let mut command = MUTANTS.command("mutants --workspace --in-place --no-shuffle --no-times")?;
    for (option, value) in [("--re", &options.only), ("--shard", &options.shard)] {
        if let Some(value) = value {
            command.arg(option).arg(value);
        }
    }
    if options.list {
        process::run(command.arg("--list"))?;
        return Ok(ExitCode::SUCCESS);
    }
    for judge in ["openssl", "go"] {
        if process::probe(judge, &["version"]).is_none() {
            return Err(format!("{judge} not found: the oracle would not ask it"));
        }
    }
    if !process::output(&mut cargo::git("status --porcelain --untracked-files=no"))?.is_empty() {
        return Err("there are changes that are not committed, and only commits are tested".into());
    }
    let commit = process::output(&mut cargo::git("rev-parse --short HEAD"))?;
    let folder = cargo::target_directory()?.join("long");
    let tree = unpack(&folder)?;
    let out = folder.join("mutants.out");
    let _ = fs::remove_dir_all(&out);
    let prepare = |command: &mut Command| {
        command
            .current_dir(&tree)
            .env("CARGO_TARGET_DIR", folder.join("target"))
            // Linking is half of what a mutant costs, and the backtraces of failures are not read.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "1")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null());
    };
    // cargo-mutants would build the mutated packages for its own, and not the one with the oracle.
    let mut took = Duration::ZERO;
    for arguments in [&["--no-run"][..], &[]] {
        let mut baseline = cargo::cargo("test");
        prepare(&mut baseline);
        baseline.args(["--package", PACKAGE, "--features", FEATURES]);
        let ran;
        (ran, took) = process::timed(|| process::run(baseline.args(TEST).args(arguments)));
        ran?;
    }
    let seconds = took.as_secs().saturating_add(1) * u64::from(PATIENCE);
    prepare(&mut command);
    command
        .arg("--output")
        .arg(&folder)
        .args(["--baseline", "skip", "--timeout", &seconds.to_string()])
        .args(["--test-package", PACKAGE, "--features", FEATURES, "--"])
        .args(TEST);
    // It also fails for each mutant that nobody noticed.
    { command.status() }.map_err(|error| process::not_started(&command, &error))?;
    let counts = Counts::read(&out.join("outcomes.json"))?;
    println!("{counts}");
    if options.only.is_none() {
        record(options.shard.as_deref(), commit.trim(), &counts)?;
    }
    // A mutant with which the oracle does not end is noticed as well.
    Ok(match counts.missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The files of `HEAD`, always in the same folder, so that what they need is built once.
fn unpack(folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    let failed = |error| format!("{}: {error}", tree.display());
    // What a run that was interrupted had changed there goes.
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).map_err(failed)?;
    let archive = folder.join("tree.tar");
    process::run(cargo::git("archive --format tar HEAD --output").arg(&archive))?;
    let mut tar = Command::new("tar");
    // As of now: by the time of the commit, cargo would take older builds for newer ones.
    tar.arg("-xmf").arg(&archive).arg("-C").arg(&tree);
    process::run(&mut tar)?;
    Ok(tree)
}

/// What became of the mutants.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    all: u64,
    caught: u64,
    missed: u64,
    timeout: u64,
    /// They do not compile.
    unviable: u64,
}

impl Counts {
    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file);
        let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
        Self::parse(&text)
            .ok_or_else(|| format!("{} does not have the expected counts", file.display()))
    }

    /// `None` also where the tests failed without a mutant.
    fn parse(text: &str) -> Option<Self> {
        let outcomes: Value = serde_json::from_str(text).ok()?;
        let count = |name: &str| outcomes.get(name)?.as_u64();
        let no_checks = { outcomes.get("outcomes")?.as_array()?.iter() }.filter(|outcome| {
            let name = outcome
                .pointer("/scenario/Mutant/name")
                .and_then(Value::as_str);
            let is_listed = |name: &str| NO_CHECKS.iter().any(|listed| name.contains(listed));
            outcome.get("summary").and_then(Value::as_str) == Some("MissedMutant")
                && name.is_some_and(is_listed)
        });
        let no_checks = u64::try_from(no_checks.count()).ok()?;
        let counts = Self {
            all: count("total_mutants")?.checked_sub(no_checks)?,
            caught: count("caught")?,
            missed: count("missed")?.checked_sub(no_checks)?,
            timeout: count("timeout")?,
            unviable: count("unviable")?,
        };
        let tested = counts.caught + counts.missed + counts.timeout + counts.unviable;
        (tested == counts.all).then_some(counts)
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            all,
            caught,
            missed,
            timeout,
            unviable,
        } = self;
        write!(
            f,
            "{all} mutants; noticed: {caught}, not noticed: {missed}, timed out: {timeout}, not compiled: {unviable}"
        )
    }
}

/// A part, as `2/8`.
fn part(text: &str) -> Result<String> {
    let numbers = text.split_once('/').and_then(|(part, of)| {
        let numbers = (part.parse::<u32>().ok()?, of.parse::<u32>().ok()?);
        (numbers.0 < numbers.1).then_some(numbers)
    });
    let (part, of) = numbers.ok_or("a part is written as `2/8`, and the first one is `0/8`")?;
    Ok(format!("{part}/{of}"))
}

fn record(shard: Option<&str>, commit: &str, counts: &Counts) -> Result<()> {
    let date = time::OffsetDateTime::now_utc().date();
    let file = cargo::root().join(RECORD);
    let failed = |error| format!("{}: {error}", file.display());
    let before = fs::read_to_string(&file).map_err(failed)?;
    let row = format!(
        "| {} | {commit} | {date} | {counts} |",
        shard.unwrap_or("all")
    );
    fs::write(&file, with_row(&before, &row)).map_err(failed)
}

/// The record with this row in it. Parts of another division are no parts of the same run.
fn with_row(before: &str, row: &str) -> String {
    let part = |row: &str| {
        row.split('|')
            .nth(1)
            .map_or(String::new(), |it| it.trim().to_owned())
    };
    let of = |part: &str| part.split_once('/').map(|(_, of)| of.to_owned());
    let new = part(row);
    let kept = before.lines().filter(|line| {
        let old = part(line);
        old.contains('/') && old != new && of(&old) == of(&new)
    });
    let mut rows: Vec<&str> = kept.chain([row]).collect();
    rows.sort_unstable();
    format!(
        "# What `cargo xtask long` found last\n\n\
         The command takes too long for `.ci/run`, and writes this file. It takes each check of certificates out \
         (`.cargo/mutants.toml`), and\nthe oracle must notice. `--shard 0/8` to `--shard 7/8` are a whole run in parts.\n\n\
         | part | commit | date | counts |\n|---|---|---|---|\n{}\n",
        rows.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_replaces_itself_and_no_other() {
        let one = with_row(
            "# old\n\n| part | commit |\n|---|---|\n| all | a | b | c |\n",
            "| 1/8 | a | b | c |",
        );
        let two = with_row(&one, "| 0/8 | d | e | f |");
        assert!(
            two.ends_with("|---|---|---|---|\n| 0/8 | d | e | f |\n| 1/8 | a | b | c |\n"),
            "{two}"
        );
        let again = with_row(&two, "| 1/8 | g | h | i |");
        assert!(
            again.ends_with("|\n| 0/8 | d | e | f |\n| 1/8 | g | h | i |\n"),
            "{again}"
        );
        let other = with_row(&again, "| 0/4 | j | k | l |");
        assert!(other.ends_with("---|\n| 0/4 | j | k | l |\n"), "{other}");
        let all = with_row(&again, "| all | j | k | l |");
        assert!(all.ends_with("---|\n| all | j | k | l |\n"), "{all}");
        assert_eq!(part("07/8").as_deref(), Ok("7/8"));
        assert!(part("8/8").is_err() && part("x").is_err());
    }

    #[test]
    fn a_run_counts_if_each_mutant_was_tested() {
        let outcomes = |caught: u64| {
            format!(
                r#"{{"outcomes":[
                    {{"summary":"MissedMutant","scenario":{{"Mutant":{{"name":"a.rs:1:2: delete field sequence from struct Self expression in a"}}}}}},
                    {{"summary":"MissedMutant","scenario":{{"Mutant":{{"name":"a.rs:3:4: replace a -> bool with true"}}}}}}
                ],"total_mutants":8,"missed":2,"caught":{caught},"timeout":0,"unviable":2,"success":0}}"#
            )
        };
        let counts = Counts {
            all: 7,
            caught: 4,
            missed: 1,
            timeout: 0,
            unviable: 2,
        };
        assert_eq!(Counts::parse(&outcomes(4)), Some(counts));
        // The tests fail without a mutant, so that none was tested.
        assert_eq!(Counts::parse(&outcomes(0)), None);
    }
}
