//! Checks files of mesh resources, and says all that is wrong with them.
//!
//! ```text
//! cargo run --example check -- mesh.yaml identity.yaml
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use meshca::resource::ParseOptions;

/// Prints `FILE: ok, N resources`, or every violation with its place. Exits with 1 if there is one.
#[derive(Parser)]
struct Args {
    /// Files of one or many resources, in YAML or JSON.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The namespace that MeshIdentity and MeshTrust must be in, on Kubernetes.
    #[arg(long)]
    system_namespace: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut all_good = true;
    for file in &args.files {
        let name = file.display().to_string();
        let mut options = ParseOptions::new().source(&name);
        if let Some(namespace) = &args.system_namespace {
            options = options.system_namespace(namespace);
        }
        match std::fs::read(file) {
            Err(error) => {
                all_good = false;
                println!("{name}: {error}");
            }
            Ok(text) => match options.parse(text) {
                Ok(documents) => {
                    if !documents.warnings().is_empty() {
                        println!("{}", documents.warnings());
                    }
                    println!("{name}: ok, {} resources", documents.len());
                }
                Err(report) => {
                    all_good = false;
                    println!("{report}");
                }
            },
        }
    }
    if all_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
