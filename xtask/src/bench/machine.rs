//! On what, with what and when it was measured.

use std::collections::BTreeMap;
use std::fs;

use super::plan::Program;
use super::program::{self, Running};
use crate::cargo;
use crate::process;

/// Crates whose speed is part of the result.
const CRATES: [&str; 4] = ["aws-lc-rs", "rcgen", "rustls-webpki", "granit-parser"];

/// The same of Go modules.
const MODULES: [&str; 2] = ["github.com/smallstep/certificates", "sigs.k8s.io/yaml"];

pub(super) fn print(running: &BTreeMap<Program, Running>, smoke: bool) {
    println!("machine  {}", machine());
    let mut with = vec![rust()];
    with.extend(crates());
    with.extend(go(running));
    println!("with     {}", with.join(", "));
    if !smoke {
        println!("date     {}", date());
    }
}

pub(super) fn date() -> String {
    time::OffsetDateTime::now_utc().date().to_string()
}

/// The processor and how many threads it runs at once.
pub(super) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or_else(
        |_| "an unknown number of cores".to_owned(),
        |count| format!("{count} cores"),
    );
    let model = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| model(&text).map(str::to_owned))
        .or_else(|| process::probe("sysctl", &["-n", "machdep.cpu.brand_string"]))
        .unwrap_or_else(|| "unknown processor".to_owned());
    format!(
        "{model}, {cores}, {} {}",
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

fn model(cpuinfo: &str) -> Option<&str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim())
    })
}

pub(super) fn rust() -> String {
    process::probe("rustc", &["--version"])
        .map_or_else(|| "an unknown rustc".to_owned(), |line| words(&line, 2))
}

fn crates() -> Vec<String> {
    let lock = fs::read_to_string(cargo::root().join("Cargo.lock")).unwrap_or_default();
    CRATES
        .iter()
        .filter_map(|name| Some(format!("{name} {}", locked(&lock, name)?)))
        .collect()
}

/// The version of a crate in `Cargo.lock`, where it follows the name.
fn locked<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let name = format!("name = \"{name}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines
        .nth(1)?
        .strip_prefix("version = \"")?
        .strip_suffix('"')
}

/// What the peers were really built of: it is written in them.
fn go(running: &BTreeMap<Program, Running>) -> Vec<String> {
    let Some(go) = program::go().filter(|_| running.len() > 1) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for peer in running
        .iter()
        .filter(|(program, _)| **program != Program::Ours)
    {
        let executable = peer.1.executable.to_string_lossy();
        let about = process::probe(&go, &["version", "-m", &executable]).unwrap_or_default();
        if found.is_empty() {
            let version = about
                .lines()
                .next()
                .and_then(|line| line.split(": ").last());
            found.extend(version.map(|version| format!("Go {}", version.trim_start_matches("go"))));
        }
        found.extend(about.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (Some("dep"), Some(module), Some(version)) =
                (words.next(), words.next(), words.next())
            else {
                return None;
            };
            MODULES
                .contains(&module)
                .then(|| format!("{module} {version}"))
        }));
    }
    found
}

fn words(line: &str, count: usize) -> String {
    line.split_whitespace()
        .take(count)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_in_what_linux_tells() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: x\nmodel name\t: Fast CPU @ 3 GHz\n";
        assert_eq!(model(cpuinfo), Some("Fast CPU @ 3 GHz"));
        assert_eq!(model("processor\t: 0\n"), None);
    }

    #[test]
    fn versions_are_found_in_the_lock_file() {
        let lock = "[[package]]\nname = \"a-b\"\nversion = \"9.0.0\"\n\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\nsource = \"x\"\n";
        assert_eq!(locked(lock, "a"), Some("1.2.3"));
        assert_eq!(locked(lock, "c"), None);
    }
}
