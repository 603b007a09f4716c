//! `cargo xtask bench --instructions`: what a processor has to do, however busy the machine is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::Value;

use super::plan::Bench;
use super::{machine, report};
use crate::cargo;
use crate::process::{self, Result};
use crate::tools;

/// One operation under callgrind.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Count {
    instructions: f64,
    /// Percent more than in the run before, if there was one on this machine.
    change: Option<f64>,
}

pub(super) fn run(benches: &[Bench]) -> Result<ExitCode> {
    let valgrind = process::probe("valgrind", &["--version"]).ok_or(
        "valgrind not found, which counts the instructions: install it with `apt-get install valgrind` or \
         `dnf install valgrind`; it runs on Linux",
    )?;
    let runner = PathBuf::from(tools::GUNGRAUN_RUNNER.command("")?.get_program());
    println!("building meshca's side");
    let executable = cargo::bench_executable(&cargo::Tree::here(), "instructions", &[], false)?;
    println!("counting, which takes a minute");
    let mut command = Command::new(executable);
    command
        .current_dir(cargo::root())
        .args(["--bench", "--output-format=json"])
        .env("PATH", first_on_path(&runner)?);
    let counts = counts(&process::output(&mut command)?);

    println!("\nmachine  {}", machine::machine());
    println!("with     {}, {valgrind}", machine::rust());
    println!("date     {}", machine::date());
    println!(
        "method   callgrind; instructions of one operation, the mean of several, after a first one that \
         is not counted; keys and signatures differ from run to run, and the numbers with them by some \
         tenths of a percent\n"
    );
    print!("{}", table(benches, &counts)?);
    Ok(ExitCode::SUCCESS)
}

/// The benchmark looks for its runner on `PATH`; this makes it find the version that belongs to it.
fn first_on_path(runner: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ours = runner.parent().map(Path::to_path_buf);
    std::env::join_paths(ours.into_iter().chain(std::env::split_paths(&path)))
        .map_err(|error| format!("cannot put {} on PATH: {error}", runner.display()))
}

/// The runner prints one JSON object per line and case.
fn counts(output: &str) -> BTreeMap<String, Count> {
    output
        .lines()
        .filter_map(|line| count(&serde_json::from_str(line).ok()?))
        .collect()
}

fn count(summary: &Value) -> Option<(String, Count)> {
    let id = summary.get("id")?.as_str()?;
    // The functions are named after how often they do it.
    let times: f64 = summary
        .get("function_name")?
        .as_str()?
        .strip_prefix("times_")?
        .parse()
        .ok()?;
    let metric = summary.pointer("/profiles/0/data/total/metrics/Ir")?;
    let change = metric.pointer("/change/diff_pct").and_then(|change| {
        change
            .as_f64()
            .or_else(|| change.as_str().and_then(|text| text.parse().ok()))
    });
    let total = metric.pointer("/values/new")?.as_f64()?;
    let count = Count {
        instructions: total / times,
        change,
    };
    Some((id.to_owned(), count))
}

fn table(benches: &[Bench], counts: &BTreeMap<String, Count>) -> Result<String> {
    let of = |id: &str| {
        counts
            .get(id)
            .copied()
            .ok_or_else(|| format!("the runner counted nothing for `{id}`; what it said is above"))
    };
    let head = [
        "case",
        "meshca",
        "since the last run",
        "against",
        "theirs",
        "ratio",
    ];
    let mut body = Vec::new();
    for bench in benches {
        let Some(counted) = bench.counted else {
            continue;
        };
        let ours = of(counted.ours)?;
        let (name, theirs, ratio) = match counted.bare {
            Some((name, id)) => {
                let theirs = of(id)?.instructions;
                let ratio = theirs / ours.instructions;
                (name, format!("{theirs:.0}"), format!("{ratio:.3}"))
            }
            None => ("", String::new(), String::new()),
        };
        body.push([
            bench.name(),
            format!("{:.0}", ours.instructions),
            ours.change.map_or_else(
                || "first run".to_owned(),
                |change| format!("{change:+.2} %"),
            ),
            name.to_owned(),
            theirs,
            ratio,
        ]);
    }
    Ok(report::layout(&head.map(str::to_owned), &body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan;

    #[test]
    fn what_the_runner_prints_becomes_a_table() {
        let line = |id: &str, total: u32, change: &str| {
            format!(
                r#"{{"id":"{id}","function_name":"times_20","profiles":[{{"data":{{"total":{{"metrics":{{"Ir":{{{change}"values":{{"new":{total}}}}}}}}}}}}}]}}"#
            )
        };
        let output = [
            "something else".to_owned(),
            line("verify", 2000, r#""change":{"diff_pct":"-1.5"},"#),
            line("verify_webpki", 1800, ""),
        ]
        .join("\n");
        let counts = counts(&output);
        let verify = plan::chosen(&["verify".to_owned()]).unwrap();
        let table = table(&verify, &counts).unwrap();
        assert!(
            table.ends_with(
                "| verify/leaf | 100    | -1.50 %            | webpki  | 90     | 0.900 |\n"
            ),
            "{table}"
        );
    }

    #[test]
    fn a_case_that_was_not_counted_is_named() {
        let all = plan::chosen(&[]).unwrap();
        assert!(
            table(&all, &BTreeMap::new())
                .unwrap_err()
                .contains("`issue`")
        );
    }
}
