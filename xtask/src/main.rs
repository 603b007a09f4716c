//! Development tasks of the meshca workspace; run `cargo xtask help`.

mod bench;
mod cargo;
mod fuzz;
mod gates;
mod lines;
mod long;
mod process;
mod servers;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Development tasks of the meshca workspace"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every test and doc test, against real servers, and build every example; say what was left out, and why
    Test,
    /// Prove what the project promises: dependencies, public API, MSRV, features, docs, licences
    Gates {
        /// Only these gates; all of them when none is named
        names: Vec<gates::Gate>,
    },
    /// Run the fuzz targets
    Fuzz(fuzz::Arguments),
    /// Measure the speed against peers and limits; writes `bench.json` into the target directory
    Bench(bench::Options),
    /// Get the real servers that the tests use; keep some up for interactive work
    Servers {
        #[command(subcommand)]
        action: servers::Action,
    },
    Lines(lines::Options),
    /// Take each check of certificates out, and prove that the oracle notices; hours. What was run last is in `LONG.md`
    Long(long::Options),
    /// Install the toolchains and cargo subcommands the gates need, where they are missing
    Tools,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test => test::run(),
        Task::Gates { names } => gates::run(&names),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(options) => bench::run(&options),
        Task::Servers { action } => servers::run(&action),
        Task::Lines(options) => lines::run(&options),
        Task::Long(options) => long::run(&options),
        Task::Tools => tools::install(),
    };
    match result {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
