//! `cargo xtask bench --since COMMIT`: this tree against an earlier one, in the same run.
//!
//! Figures of two days are not compared: the machine differs more than the code does. Both trees are
//! built here, and their programs have their turns one after the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::plan::{Bench, Program};
use super::program::{self, Missing, Running};
use super::report;
use crate::cargo::{self, Tree};
use crate::process::{self, Result};

/// The share of the earlier speed that a change keeps, or has to explain.
const WANTED: f64 = 0.97;

/// Measures the benches of this tree and of the commit, and prints one table.
pub(super) fn run(benches: &[Bench], commit: &str, rounds: u32, turn: Duration) -> Result<()> {
    let target = cargo::target_directory()?;
    let there = checkout(commit, &target)?;
    let documents = target.join("bench").join("resources.json");
    let mut programs: BTreeMap<Program, (Running, Running)> = BTreeMap::new();
    let mut left_out = Vec::new();
    for program in program::of_ours(benches) {
        let both = program::start(program, false, &target, &documents, &Tree::here());
        let both = both.and_then(|now| {
            let then = program::start(program, false, &target, &documents, &there)?;
            Ok((now, then))
        });
        match both {
            Ok(both) => drop(programs.insert(program, both)),
            Err(Missing(why)) => left_out.push(format!("{}: {why}", program.what())),
        }
    }
    let mut body = Vec::new();
    let mut slower = 0;
    for bench in benches {
        let Some((now, then)) = programs.get_mut(&bench.ours.program) else {
            continue;
        };
        println!("measuring {}", bench.name());
        let (mut of_now, mut of_then, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            // Which of them comes first alternates: the second finds a warmer machine.
            let (ours, theirs) = if round % 2 == 0 {
                let ours = now.turn(&bench.ours, turn)?;
                (ours, then.turn(&bench.ours, turn))
            } else {
                let theirs = then.turn(&bench.ours, turn);
                (now.turn(&bench.ours, turn)?, theirs)
            };
            let theirs = match theirs {
                Ok(theirs) => theirs,
                // A case that is younger than the commit, as a rule.
                Err(why) => {
                    left_out.push(format!("{} at {commit}: {why}", bench.name()));
                    break;
                }
            };
            of_now.push(ours);
            of_then.push(theirs);
            ratios.push(theirs / ours);
        }
        if ratios.is_empty() {
            continue;
        }
        let ratio = report::median(&ratios);
        slower += usize::from(ratio < WANTED);
        let (unit, nanoseconds) = bench.unit;
        let figure = |samples: &[f64]| {
            let value = report::rounded(report::median(samples) / nanoseconds);
            format!("{value} {unit}")
        };
        body.push([
            bench.name(),
            figure(&of_now),
            figure(&of_then),
            format!("{ratio:.3}"),
            format!("≥ {WANTED}"),
        ]);
    }
    let head = ["case", "now", commit, "ratio", "wanted"].map(str::to_owned);
    println!("\n{}", report::layout(&head, &body));
    println!(
        "{rounds} rounds of {turn:?} each; medians; above 1 is faster now; below {WANTED}: {slower}"
    );
    for note in &left_out {
        println!("left out: {note}");
    }
    Ok(())
}

/// The files of a commit, in a folder of the target directory, with a target directory of its own.
fn checkout(commit: &str, target: &Path) -> Result<Tree> {
    let folder = target.join("since");
    let mut git = cargo::git("rev-parse --verify --end-of-options");
    // By its hash: a branch, or `HEAD~5`, is another commit tomorrow.
    let hash = process::output(git.arg(format!("{commit}^{{commit}}")))?;
    let root = folder.join(hash.trim());
    if !root.is_dir() {
        println!("unpacking {commit}");
        fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        let archive = folder.join("tree.tar");
        let mut git = cargo::git("archive --format tar --output");
        git.arg(&archive).arg(hash.trim());
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(&archive).arg("-C").arg(&root);
        process::run(&mut git)
            .and_then(|()| process::run(&mut tar))
            .inspect_err(|_| drop(fs::remove_dir_all(&root)))?;
    }
    Ok(Tree::at(root, folder.join("target")))
}
