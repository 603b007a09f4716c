//! A control plane, as small as it can be: resources and workloads in, identities that are kept fresh out.
//!
//! Reads the resources of one mesh, runs the manager, and follows each workload and the mesh itself as a real one would to push what is
//! new to proxies and to store what is to be seen by others. A file that is changed is read again.
//!
//! ```text
//! cargo run --example control_plane --features identity -- --for 5
//! cargo run --example control_plane --features identity,vault -- --resources mesh.yaml --workload app=web,kuma.io/workload=web
//! ```

#[path = "common/outcome.rs"]
mod outcome;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use meshca::identity::manager::{Event, Health, MeshView, Observer};
use meshca::identity::select::SelectOptions;
use meshca::identity::{Handle, Manager, ManagerOptions, MeshResources};
use meshca::resource::ParseOptions;
use meshca::spiffe::{Environment, Workload};
use meshca::{MemorySecretStore, SystemClock};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// Keeps workloads in possession of identities, and prints what it would push and store.
#[derive(Parser)]
struct Args {
    /// The resources of one mesh, in YAML or JSON.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/resources/control-plane/mesh.yaml"))]
    resources: PathBuf,
    /// Labels of the workloads that are connected: k=v,k=v.
    #[arg(long, default_values = ["app=web,kuma.io/workload=web", "app=db,kuma.io/workload=db"])]
    workload: Vec<String>,
    /// The zone that the control plane runs in.
    #[arg(long, default_value = "default")]
    zone: String,
    /// How long to run, in seconds.
    #[arg(long = "for", default_value_t = 60)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()).await)
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let ends = Instant::now() + Duration::from_secs(args.seconds);
    let options = ManagerOptions::new(SelectOptions::new(&args.zone, Environment::Universal));
    // A real one keeps its secrets: in a directory, in Kubernetes, or in a store of its own. The factories of meshca-certmanager and
    // of your own CAs are added to the registry in the same way.
    let (manager, driver) = Manager::new(
        meshca::backend_registry(),
        Arc::new(MemorySecretStore::new()),
        Arc::new(SystemClock::new()),
        options,
    );
    let driver = driver.with_observer(Arc::new(Log)).spawn();

    let (mut applied, resources) = read(&args.resources)?;
    let mesh = resources.name().to_owned();
    manager.apply(resources).await?;

    let mut tasks = JoinSet::new();
    tasks.spawn(follow_mesh(manager.mesh(&mesh)));
    for (number, labels) in args.workload.iter().enumerate() {
        let workload = Workload::from_label_list(labels)?;
        let name = format!("proxy-{}", number + 1);
        let handle = manager.connect(&mesh, name.as_str(), workload).await?;
        println!("{name}: {}", handle.selection().await?);
        tasks.spawn(follow_proxy(name, handle));
    }

    let mut look = interval(Duration::from_secs(1));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sleep_until(ends) => break,
            _ = look.tick() => {}
        }
        let text = fs::read_to_string(&args.resources)?;
        if text == applied {
            continue;
        }
        // What is wrong with a file is said, and what was applied before stays in force.
        match read(&args.resources) {
            Ok((text, resources)) => {
                manager.apply(resources).await?;
                applied = text;
            }
            Err(error) => eprintln!("not applied: {error}"),
        }
    }
    println!("{:?}", manager.stats().await?);
    // What CAs are working on is waited for; the tasks see that nothing more will come.
    driver.stop().await?;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn read(file: &Path) -> Result<(String, MeshResources), Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    let source = file.display().to_string();
    let documents = ParseOptions::new().source(source).parse(&text)?;
    Ok((text, MeshResources::from_resources(documents)?))
}

/// What a control plane does for each proxy that is connected; dropping the handle is the disconnection.
async fn follow_proxy(name: String, mut handle: Handle) {
    let mut serial = String::new();
    loop {
        match (handle.identity(), handle.health()) {
            (Some(identity), health) => {
                let certificate = identity.certificate();
                if certificate.serial() != serial {
                    certificate.serial().clone_into(&mut serial);
                    println!(
                        "{name}: push {} ({})",
                        identity.spiffe_id(),
                        certificate.validity()
                    );
                }
                if health != Health::Fresh {
                    println!("{name}: {health}: {:?}", handle.error());
                }
            }
            (None, _) => {
                let why = handle.error().map(|error| error.to_string());
                println!(
                    "{name}: nothing to push ({:?}): {}",
                    handle.assignment(),
                    why.unwrap_or_default()
                );
            }
        }
        if handle.changed().await.is_err() {
            return;
        }
    }
}

/// What a control plane does for each mesh: trust goes to all proxies, MeshTrusts and statuses are stored.
async fn follow_mesh(mut mesh: MeshView) {
    while mesh.changed().await.is_ok() {
        for bundle in mesh.trust().iter() {
            let roots: Vec<_> = bundle.roots().iter().map(|root| root.subject()).collect();
            println!(
                "{}: push trust in {}: {}",
                mesh.name(),
                bundle.trust_domain(),
                roots.join(", ")
            );
        }
        for trust in mesh.mesh_trusts().iter() {
            println!("{}: store MeshTrust `{}`", mesh.name(), trust.metadata.name);
        }
        for status in mesh.identity_statuses().iter() {
            for condition in &status.conditions {
                println!(
                    "{}: store status of `{}`: {condition}",
                    mesh.name(),
                    status.name
                );
            }
        }
    }
}

/// What happened, for a log; metrics and audit records are made in the same way.
#[derive(Debug)]
struct Log;

impl Observer for Log {
    fn observe(&self, event: &Event<'_>) {
        println!("event: {event}");
    }
}
