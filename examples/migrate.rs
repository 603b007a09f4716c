//! Plans how a live mesh gets from one CA, model or trust domain to another, or says what is in the way.
//!
//! ```text
//! cargo run --example migrate --features identity -- --from mesh.yaml --to vault.yaml
//! ```

#[path = "common/outcome.rs"]
mod outcome;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use meshca::identity::MeshResources;
use meshca::identity::migration::{Action, Plan, PlanOptions, plan};
use meshca::resource::{ParseOptions, Resource};
use serde_json::Value;

/// Prints the plan: what to apply, in which order, and what to wait for in between. Exits with 1 if there is none, and says why.
#[derive(Parser)]
struct Args {
    /// Files of what the mesh has: its Mesh, and every MeshIdentity, MeshTrust and MeshTLS in it.
    #[arg(long, required = true, num_args = 1..)]
    from: Vec<PathBuf>,
    /// Files of what it is to have, all of it.
    #[arg(long, required = true, num_args = 1..)]
    to: Vec<PathBuf>,
    /// Files of the mesh's other policies, to look for rules that go by the tags of peers.
    #[arg(long, num_args = 1..)]
    policies: Vec<PathBuf>,
    /// The zone that the plan is for.
    #[arg(long, default_value = "default")]
    zone: String,
    /// Dataplanes that get their new identities first: k=v,k=v.
    #[arg(long)]
    canary: Option<String>,
    /// Print the way back instead, from where it would begin after this step.
    #[arg(long, value_name = "STEP")]
    back_from: Option<usize>,
    /// Print a Mermaid diagram instead.
    #[arg(long)]
    mermaid: bool,
    /// Print the resources as well, as they are to be applied.
    #[arg(long)]
    yaml: bool,
}

fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let (from, to) = (read(&args.from)?, read(&args.to)?);
    let mut options = PlanOptions::new(&args.zone);
    if let Some(labels) = &args.canary {
        let labels = labels.split(',').map(|label| {
            let pair = label.split_once('=');
            pair.ok_or_else(|| format!("`{label}` is no label: write k=v"))
        });
        options = options.with_canary(labels.collect::<Result<Vec<_>, _>>()?);
    }
    for file in &args.policies {
        for policy in tag_rules(file)? {
            options = options.with_tag_rule(policy);
        }
    }
    let mut plan = plan(&from, &to, &options).map_err(|obstacles| {
        let lines: String = obstacles.iter().map(|it| format!("\n- {it}")).collect();
        format!("the mesh cannot be moved as it is:{lines}")
    })?;
    if let Some(step) = args.back_from {
        let mut now = from;
        for change in plan.steps().iter().take(step).flat_map(|it| &it.changes) {
            change.apply_to(&mut now);
        }
        plan = plan.rollback(&now)?;
    }
    match args.mermaid {
        true => print!("{}", plan.to_mermaid()),
        false => print!("{plan}"),
    }
    if args.yaml {
        print_resources(&plan)?;
    }
    Ok(())
}

fn read(files: &[PathBuf]) -> Result<MeshResources, Box<dyn Error>> {
    let mut resources: Vec<Resource> = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let text = fs::read(file).map_err(|error| format!("{name}: {error}"))?;
        let documents = ParseOptions::new().source(&name).parse(text)?;
        if !documents.warnings().is_empty() {
            eprintln!("{}", documents.warnings());
        }
        resources.extend(documents);
    }
    Ok(MeshResources::from_resources(resources)?)
}

/// Policies that tell peers apart by what only certificates of the classic model say.
fn tag_rules(file: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let name = |document: &Value| {
        let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").or(text("/type")).unwrap_or("a policy");
        let name = text("/metadata/name")
            .or(text("/name"))
            .unwrap_or("without a name");
        format!("{kind} {name}")
    };
    let rules = documents.iter().filter(|document| goes_by_tags(document));
    Ok(rules.map(name).collect())
}

fn goes_by_tags(document: &Value) -> bool {
    let kind = document.get("kind").or(document.get("type"));
    match kind.and_then(Value::as_str) {
        Some("TrafficPermission") => true,
        Some("MeshTrafficPermission") => {
            let from = document.pointer("/spec/from").and_then(Value::as_array);
            let all = |rule: &Value| {
                rule.pointer("/targetRef/kind").and_then(Value::as_str) == Some("Mesh")
            };
            from.is_some_and(|rules| !rules.iter().all(all)) || says_kuma(document)
        }
        _ => says_kuma(document),
    }
}

fn says_kuma(value: &Value) -> bool {
    match value {
        Value::String(text) => text.starts_with("kuma://"),
        Value::Array(items) => items.iter().any(says_kuma),
        Value::Object(fields) => fields.values().any(says_kuma),
        _ => false,
    }
}

fn print_resources(plan: &Plan) -> Result<(), Box<dyn Error>> {
    for (index, step) in plan.steps().iter().enumerate() {
        println!("\n# {}. {}", index + 1, step.title);
        for change in &step.changes {
            println!("---");
            match &change.action {
                Action::Put(resource) => print!("{}", resource.to_yaml()?),
                Action::Delete { kind, name, .. } => println!("# delete the {kind} `{name}`"),
                other => return Err(format!("cannot print {other:?}").into()),
            }
        }
    }
    Ok(())
}
