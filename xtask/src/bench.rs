//! `cargo xtask bench`: how fast, and how fast compared with whom.

mod instructions;
mod machine;
mod plan;
mod program;
mod report;
mod since;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::cargo;
use crate::process::Result;
use plan::{Bench, Contender, Program};
use program::{Missing, Running};
use report::Row;

/// What to measure, and how thoroughly.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Only cases whose name starts like this, `issue` for example; all when none is given
    names: Vec<String>,
    /// How often every contender has its turn
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long a turn is
    #[arg(long, default_value_t = 200, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    turn: u32,
    /// Count instructions instead of time: does not depend on how busy the machine is
    #[arg(long)]
    instructions: bool,
    /// Compare with the programs of an earlier commit instead of with peers, in the same run
    #[arg(long, value_name = "COMMIT", conflicts_with_all = ["instructions", "smoke"])]
    since: Option<String>,
    /// Only prove that everything still runs: one short turn each, built without optimisation
    #[arg(long, conflicts_with_all = ["instructions", "rounds", "turn"])]
    smoke: bool,
}

/// Runs the benchmarks and prints one table.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let chosen = plan::chosen(&options.names)?;
    if options.instructions {
        return instructions::run(&chosen);
    }
    let (rounds, turn) = if options.smoke {
        (1, Duration::from_millis(1))
    } else {
        (options.rounds, Duration::from_millis(options.turn.into()))
    };

    if let Some(commit) = &options.since {
        return since::run(&chosen, commit, rounds, turn).map(|()| ExitCode::SUCCESS);
    }
    let directory = cargo::target_directory()?;
    let documents = directory.join("bench").join("resources.json");
    let here = cargo::Tree::here();
    let mut running = BTreeMap::new();
    let mut left_out = Vec::new();
    for program in plan::programs(&chosen) {
        match program::start(program, options.smoke, &directory, &documents, &here) {
            Ok(started) => {
                running.insert(program, started);
            }
            Err(Missing(why)) if program != Program::Ours => {
                left_out.push(format!("{}: {why}", program.what()));
            }
            Err(Missing(why)) => return Err(why),
        }
    }

    let mut rows = Vec::new();
    for bench in &chosen {
        println!("measuring {}", bench.name());
        rows.extend(measure(bench, rounds, turn, &mut running)?);
    }

    println!();
    machine::print(&running, options.smoke);
    if !options.smoke {
        println!(
            "method   {rounds} rounds; in each, every contender has one turn of {turn:?}, one after the \
             other; medians; one thread and GOMAXPROCS=1 where nothing else is said"
        );
        println!("\n{}", report::table(&rows));
    }
    for note in &left_out {
        println!("left out: {note}");
    }
    if options.smoke {
        // Without optimisation the numbers mean nothing, so none are shown.
        println!("all {} comparisons ran", rows.len());
        return Ok(ExitCode::SUCCESS);
    }
    let file = directory.join("bench.json");
    fs::write(&file, report::json(&rows)?)
        .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    println!("written to {}", file.display());
    Ok(ExitCode::SUCCESS)
}

/// Interleaves the contenders: whatever disturbs the machine disturbs them alike.
fn measure(
    bench: &Bench,
    rounds: u32,
    turn: Duration,
    running: &mut BTreeMap<Program, Running>,
) -> Result<Vec<Row>> {
    let there: Vec<&Contender> = bench
        .contenders()
        .filter(|contender| running.contains_key(&contender.program))
        .collect();
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); there.len()];
    for _ in 0..rounds {
        for (contender, samples) in there.iter().zip(&mut samples) {
            if let Some(program) = running.get_mut(&contender.program) {
                samples.push(program.turn(contender, turn)?);
            }
        }
    }
    let samples: Vec<(&str, Vec<f64>)> = there
        .iter()
        .map(|contender| contender.name)
        .zip(samples)
        .collect();
    Ok(report::rows(bench, &samples))
}
