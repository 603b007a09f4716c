//! `cargo xtask test`: every test, and an honest account of what did not run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::cargo::{self, cargo};
use crate::process::{self, Result};
use crate::servers;

/// A program by which tests read what meshca wrote, so that not only our own code says it is right.
struct Reader {
    /// Its name. Tests that need it live in a module of the same name.
    name: &'static str,
    /// How to ask for its version.
    version: &'static [&'static str],
    /// What must succeed besides, in this folder of the workspace, before it can read anything.
    prepare: Option<(&'static str, &'static [&'static str])>,
    /// What it is good for, as the object of "tests of …".
    proves: &'static str,
    /// How to get it.
    install: &'static str,
}

const READERS: &[Reader] = &[
    Reader {
        name: "openssl",
        version: &["version"],
        prepare: None,
        proves: "keys, certificates and chains as another implementation reads them",
        install: "install it with `apt-get install openssl`, `dnf install openssl` or `brew install openssl`",
    },
    Reader {
        name: "go",
        version: &["version"],
        // The tests build a program that uses go-spiffe.
        prepare: Some(("testenv/readers", &["mod", "download"])),
        proves: "certificates, IDs, bundles and templates as Go reads them",
        install: "install the Go that `testenv/readers/go.mod` names, from https://go.dev/dl, and let it reach a module proxy once",
    },
];

impl Reader {
    /// Its version, or why it cannot be used.
    fn find(&self) -> Result<String> {
        let name = self.name;
        let version =
            process::probe(name, self.version).ok_or_else(|| format!("{name} not found"))?;
        if let Some((folder, arguments)) = self.prepare {
            let mut command = Command::new(name);
            command
                .current_dir(cargo::root().join(folder))
                // As the tests call it: a Go that is too old does not fetch a newer one.
                .env("GOTOOLCHAIN", "local")
                .args(arguments);
            process::run(&mut command)
                .map_err(|why| format!("{name} found, but in {folder} {why}"))?;
        }
        Ok(first_line(&version).to_owned())
    }
}

/// What is not here, and what cannot be proven without it.
struct Missing {
    /// The module in which the tests that need it live.
    module: &'static str,
    why: String,
    proves: &'static str,
    install: &'static str,
}

/// Lists the tests that a name filter can be about; doc tests have no module names.
const LIST: &str = "test --workspace --all-features --lib --bins --tests -- --list --format terse";

/// What tests need, as far as it is here.
#[derive(Default)]
struct Found {
    /// The variables that name the servers' programs.
    servers: Vec<(&'static str, PathBuf)>,
    missing: Vec<Missing>,
}

impl Found {
    fn look() -> Self {
        let mut found = Self::default();
        for reader in READERS {
            match reader.find() {
                Ok(version) => println!("{} found: {version}", reader.name),
                Err(why) => found.missing.push(Missing {
                    module: reader.name,
                    why,
                    proves: reader.proves,
                    install: reader.install,
                }),
            }
        }
        for program in servers::PROGRAMS {
            let module = program.module();
            match program.obtain() {
                Ok(path) => found.servers.push((program.variable, path)),
                // Once for all programs of a server.
                Err(_) if found.missing.iter().any(|missing| missing.module == module) => {}
                Err(why) => found.missing.push(Missing {
                    module,
                    why,
                    proves: program.proves(),
                    install: "see above",
                }),
            }
        }
        found
    }
}

/// The tests that need what is missing, and a note for each thing that is.
fn left_out(missing: &[Missing]) -> Result<(BTreeSet<String>, Vec<String>)> {
    let mut notes = Vec::new();
    let mut skipped = BTreeSet::new();
    if missing.is_empty() {
        return Ok((skipped, notes));
    }
    println!("looking which tests need what is missing");
    let names = test_names()?;
    for Missing {
        module,
        why,
        proves,
        install,
    } in missing
    {
        let mine: Vec<_> = names.iter().filter(|name| needs(name, module)).collect();
        let count = mine.len();
        skipped.extend(mine.into_iter().cloned());
        if count == 0 {
            println!("{why}, and no test needs it");
            continue;
        }
        let note = format!(
            "{why}: {count} {} of {proves} left out; {install}",
            if count == 1 { "test" } else { "tests" },
        );
        println!("WARNING: {note}");
        notes.push(note);
    }
    Ok((skipped, notes))
}

/// Runs the tests and returns cargo's own exit code.
pub(crate) fn run() -> Result<ExitCode> {
    let Found { servers, missing } = Found::look();
    let (skipped, left_out) = left_out(&missing)?;
    let reports = cargo::target_directory()?.join("conformance");
    let counters = cargo::target_directory()?.join("counters");
    for folder in [&reports, &counters] {
        let _ = fs::remove_dir_all(folder);
    }
    let mut command = cargo("test --workspace --all-features --no-fail-fast --");
    command
        .envs(servers)
        .env("MESHCA_CONFORMANCE_REPORTS", &reports)
        .env("MESHCA_COUNTERS", &counters);
    if std::io::stdout().is_terminal() {
        // What passes through a pipe loses its colours unless asked to keep them.
        command.arg("--color=always");
    }
    if !skipped.is_empty() {
        // By their whole names: a part such as `go::` is also in `cargo::`.
        command.arg("--exact");
    }
    for name in &skipped {
        command.args(["--skip", name]);
    }
    println!("running `{}`", process::line(&command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| process::not_started(&command, &error))?;
    let mut total = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        total = relay(BufReader::new(stdout), &mut std::io::stdout())
            .map_err(|error| format!("lost the output of `cargo test`: {error}"))?;
    }
    let status = child
        .wait()
        .map_err(|error| format!("lost `cargo test`: {error}"))?;

    println!("\nsummary of `cargo xtask test`");
    println!("  ran: {} passed, {} failed", total.passed, total.failed);
    for line in conformance(&reports) {
        println!("  conformance: {line}");
    }
    for line in counted(&counters) {
        println!("  {line}");
    }
    if total.ignored > 0 {
        println!(
            "  left out: {} tests are marked as ignored; the output above names them",
            total.ignored
        );
    }
    for note in &left_out {
        println!("  left out: {note}");
    }
    if total.ignored == 0 && left_out.is_empty() {
        println!("  left out: nothing");
    }
    if !status.success() {
        println!("  FAILED ({status}): the output above says where");
    }
    Ok(exit_code(status.code()))
}

/// What the conformance reports of issuers on real servers say, one in a line.
fn conformance(folder: &Path) -> Vec<String> {
    let mut lines: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let report = fs::read_to_string(entry.path()).ok()?;
            let server = report
                .lines()
                .find_map(|line| line.trim().strip_prefix("server: "));
            let verdict = report.lines().next_back()?.trim();
            Some(format!(
                "{verdict} against {}: {}",
                server.unwrap_or("a server that it does not name"),
                entry.path().display()
            ))
        })
        .collect();
    lines.sort();
    lines
}

/// What tests counted that are about many requests, one in a line and a file.
fn counted(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut lines: Vec<String> = entries
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .collect();
    lines.sort();
    lines
}

/// Cargo's exit code, or failure if a signal ended it.
fn exit_code(code: Option<i32>) -> ExitCode {
    match code.map(u8::try_from) {
        Some(Ok(code)) => ExitCode::from(code),
        _ => ExitCode::FAILURE,
    }
}

/// The names of all tests but doc tests.
fn test_names() -> Result<Vec<String>> {
    let list = process::output(&mut cargo(LIST))?;
    Ok(list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect())
}

/// Whether a test lives in the module of this reader.
fn needs(test: &str, reader: &str) -> bool {
    let mut modules: Vec<_> = test.split("::").collect();
    modules.pop();
    modules.contains(&reader)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What the test programs counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Shows the output as it comes and adds up the result lines in it.
fn relay(mut from: impl BufRead, to: &mut impl Write) -> std::io::Result<Counts> {
    let mut total = Counts::default();
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        if let Some(counts) = result_line(&String::from_utf8_lossy(&line)) {
            total.passed += counts.passed;
            total.failed += counts.failed;
            total.ignored += counts.ignored;
        }
        line.clear();
    }
    Ok(total)
}

/// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
fn result_line(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in numbers.split("; ") {
        match part.split_once(' ') {
            Some((number, "passed")) => counts.passed = number.parse().ok()?,
            Some((number, "failed")) => counts.failed = number.parse().ok()?,
            Some((number, "ignored")) => counts.ignored = number.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_needs_the_reader_whose_module_it_lives_in() {
        for (test, needed) in [
            ("openssl::reads_the_chain", true),
            ("certificate::tests::openssl::reads_the_chain", true),
            ("certificate::tests::openssl", false),
            ("not_openssl::reads", false),
            ("go::openssl::reads", true),
            ("go::reads", false),
        ] {
            assert_eq!(needs(test, "openssl"), needed, "{test}");
        }
    }

    #[test]
    fn result_lines_are_added_up_and_everything_is_shown() {
        let output = "running 2 tests\ntest a ... ok\n\
            test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.10s\n\
            test result: \u{1b}[31mFAILED\u{1b}[m. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let mut shown = Vec::new();
        let total = relay(output.as_bytes(), &mut shown).unwrap();
        assert_eq!(
            total,
            Counts {
                passed: 7,
                failed: 1,
                ignored: 1
            }
        );
        assert_eq!(shown, output.as_bytes());
    }

    #[test]
    fn cargos_exit_code_is_passed_on() {
        assert_eq!(exit_code(Some(0)), ExitCode::SUCCESS);
        assert_eq!(exit_code(Some(101)), ExitCode::from(101));
        assert_eq!(exit_code(None), ExitCode::FAILURE);
    }
}
