//! What the manager costs beside the certificates that it manages: memory for each identity, its own CPU in a storm of renewals, the
//! time of an event, and that of a read.
//!
//! ```text
//! cargo bench --features identity --bench manager -- --identities 1000000 --storm 100000
//! ```
//!
//! Everything is real: the built-in CA signs, and each workload has labels and a key of its own. "Bare" is the same CA asked for the same
//! number of certificates without a manager, in the same run; memory is what the process has resident, so what the allocator wastes is
//! counted against us.

use std::collections::VecDeque;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use meshca::builtin;
use meshca::identity::manager::{Event, Observer};
use meshca::identity::select::SelectOptions;
use meshca::identity::{Handle, Manager, ManagerOptions, MeshResources};
use meshca::registry::{BackendConfig, BackendRegistry, BuildContext};
use meshca::resource::Resource;
use meshca::spiffe::{Environment, Workload};
use meshca::{Clock, Identity, Issuer, IssuerExt, MemorySecretStore};
use tokio::sync::Notify;
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MESH: &str = "
type: Mesh
name: default
---
type: MeshIdentity
name: all
mesh: default
spec:
  selector: {dataplane: {matchLabels: {}}}
  spiffeID: {trustDomain: example.org}
  provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}
";

/// How many requests are made at the same time, with and without the manager.
const AT_ONCE: usize = 16;

#[derive(Parser)]
struct Options {
    /// How many identities are held.
    #[arg(long, default_value_t = 1_000_000)]
    identities: usize,
    /// How many are renewed at once.
    #[arg(long, default_value_t = 100_000)]
    storm: usize,
    /// How often the storm is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A clock that is set forward.
#[derive(Clone, Debug)]
struct Ahead(Arc<AtomicU64>);

impl Clock for Ahead {
    #[expect(
        clippy::disallowed_methods,
        reason = "the wall clock, and what was added to it"
    )]
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// Counts what was handed out.
#[derive(Debug, Default)]
struct Counter {
    issued: AtomicUsize,
    more: Notify,
}

impl Observer for Counter {
    fn observe(&self, event: &Event<'_>) {
        if matches!(event, Event::Issued { .. } | Event::Renewed { .. }) {
            self.issued.fetch_add(1, Ordering::Relaxed);
            self.more.notify_one();
        }
    }
}

impl Counter {
    async fn reach(&self, count: usize) {
        while self.issued.load(Ordering::Relaxed) < count {
            self.more.notified().await;
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<bool> {
    let mut held = true;
    // First, while nothing has been freed that it could be put into.
    let own = identity_size(options.storm).await?;
    let before = resident()?;
    let world = World::new().await?;
    let begun = now();
    let handles = world.connect(options.identities).await?;
    world.counter.reach(options.identities).await;
    let took = begun.elapsed();
    let each = (resident()? - before) / options.identities as f64;
    let beyond = each - own;
    held &= say(
        "memory for each identity",
        &format!("{:.2} KiB", beyond / 1024.0),
        beyond <= 1536.0,
        "<= 1.5 KiB",
    );
    println!(
        "    {} identities in {:.1} s; {:.2} KiB each, of which certificate and key {:.2} KiB; the rest is name, labels, SPIFFE ID, \
         schedule and what handles read",
        options.identities,
        took.as_secs_f64(),
        each / 1024.0,
        own / 1024.0
    );

    let event = events(&world, &handles).await?;
    held &= say(
        "one event",
        &format!("{:.2} us", event * 1e6),
        event <= 5e-6,
        "<= 5 us",
    );
    let (hot, spread) = reads(&handles);
    held &= say(
        "one read",
        &format!("{:.1} ns", hot * 1e9),
        hot <= 50e-9,
        "<= 50 ns",
    );
    println!(
        "    {:.1} ns where each read is of another workload, and memory has to be waited for",
        spread * 1e9
    );
    let (ratio, bare, storm) = storm(options).await?;
    held &= say(
        "CPU of the manager in a storm",
        &format!("{:.1} % of signing", ratio * 100.0),
        ratio <= 0.10,
        "<= 10 %",
    );
    println!(
        "    {} renewals: {:.1} us each with the manager, {:.1} us bare",
        options.storm,
        bare_us(storm, options.storm),
        bare_us(bare, options.storm)
    );

    // A million handles that are dropped are a million commands to a driver that nobody needs any more.
    std::mem::forget(handles);
    Ok(held)
}

fn bare_us(cpu: f64, count: usize) -> f64 {
    cpu * 1e6 / count as f64
}

fn say(what: &str, value: &str, held: bool, wanted: &str) -> bool {
    let verdict = match held {
        true => "holds",
        false => "MISSED",
    };
    println!("{what:<32} {value:>22}   wanted {wanted:<12} {verdict}");
    held
}

struct World {
    manager: Manager,
    clock: Ahead,
    counter: Arc<Counter>,
    _driver: meshca::identity::manager::DriverTask,
}

impl World {
    async fn new() -> Result<Self> {
        let clock = Ahead(Arc::default());
        let counter = Arc::new(Counter::default());
        let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        options.trust_refresh = Duration::from_secs(2);
        options.schedule.concurrency = AT_ONCE;
        let (manager, driver) = Manager::new(
            BackendRegistry::new().with(builtin::factory()),
            Arc::new(MemorySecretStore::new()),
            Arc::new(clock.clone()),
            options,
        );
        let observer: Arc<dyn Observer> = counter.clone();
        let driver = driver.with_observer(observer).spawn();
        manager
            .apply(MeshResources::from_resources(Resource::parse(MESH)?)?)
            .await?;
        Ok(Self {
            manager,
            clock,
            counter,
            _driver: driver,
        })
    }

    async fn connect(&self, count: usize) -> Result<Vec<Handle>> {
        let mut handles = Vec::with_capacity(count);
        for n in 0..count {
            let name = format!("w-{n}");
            let workload = workload(&name);
            handles.push(self.manager.connect("default", name, workload).await?);
        }
        Ok(handles)
    }
}

fn workload(name: &str) -> Workload {
    [
        ("app", "checkout"),
        ("version", "v1"),
        ("kuma.io/workload", name),
        ("kuma.io/zone", "east"),
    ]
    .into_iter()
    .collect()
}

/// The built-in CA without a manager.
async fn bare_issuer() -> Result<(Arc<dyn Issuer>, BackendConfig)> {
    let documents = Resource::parse(MESH)?;
    let identity = documents
        .into_iter()
        .find_map(|it| match it {
            Resource::MeshIdentity(identity) => Some(identity),
            _ => None,
        })
        .ok_or("there is a MeshIdentity")?;
    let config = BackendConfig::modern(&identity).ok_or("it has a provider")?;
    let domain = identity.trust_domain_in("east")?;
    let clock = Arc::new(Ahead(Arc::default()));
    let secrets = Arc::new(MemorySecretStore::new());
    let context = BuildContext::new("default", domain, secrets, clock);
    let issuer = BackendRegistry::new()
        .with(builtin::factory())
        .build(&config, &context)
        .await?;
    Ok((issuer, config))
}

/// As many certificates, asked for in the same number of tasks.
async fn bare(count: usize) -> Result<Vec<Arc<Identity>>> {
    let (issuer, config) = bare_issuer().await?;
    let clock = Ahead(Arc::default());
    let mut jobs = JoinSet::new();
    let mut issued = Vec::with_capacity(count);
    let mut waiting: VecDeque<usize> = (0..count).collect();
    loop {
        while jobs.len() < AT_ONCE
            && let Some(n) = waiting.pop_front()
        {
            let id = meshca::SpiffeId::new(format!("spiffe://example.org/workload/w-{n}"))?;
            let spec = config.certificate_spec(id, &Workload::new())?;
            let (issuer, clock) = (Arc::clone(&issuer), clock.clone());
            jobs.spawn(async move { issuer.issue(&spec, &clock).await.map(Arc::new) });
        }
        match jobs.join_next().await {
            Some(done) => issued.push(done??),
            None => return Ok(issued),
        }
    }
}

async fn identity_size(count: usize) -> Result<f64> {
    let before = resident()?;
    let issued = bare(count).await?;
    let size = (resident()? - before) / count as f64;
    // Kept: what is measured after this must not find its memory free.
    std::mem::forget(issued);
    Ok(size)
}

/// Renews all at once; the median of what that costs beyond signing, over signing.
async fn storm(options: &Options) -> Result<(f64, f64, f64)> {
    let world = World::new().await?;
    let handles = world.connect(options.storm).await?;
    world.counter.reach(options.storm).await;
    let (mut bares, mut storms) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let begun = cpu()?;
        drop(bare(options.storm).await?);
        bares.push(cpu()? - begun);

        let begun = cpu()?;
        world.clock.0.fetch_add(15 * 3600, Ordering::Relaxed);
        world.counter.reach(options.storm * (round + 1)).await;
        storms.push(cpu()? - begun);
    }
    drop(handles);
    let (bare, storm) = (median(bares), median(storms));
    Ok(((storm - bare) / bare, bare, storm))
}

/// Labels that change nothing, one by one.
async fn events(world: &World, handles: &[Handle]) -> Result<f64> {
    let mut rounds = Vec::new();
    let count = handles.len().min(100_000);
    for round in 0..5 {
        let workloads: Vec<Workload> = (0..count)
            .map(|n| workload(&format!("w-{n}")).with_label("round", round.to_string()))
            .collect();
        world.manager.stats().await?;
        let begun = now();
        for (handle, workload) in handles.iter().zip(workloads) {
            handle.update(workload);
        }
        // Answered after all of them.
        let _ = world.manager.gate("unknown").await;
        rounds.push(begun.elapsed().as_secs_f64() / count as f64);
    }
    Ok(median(rounds))
}

fn reads(handles: &[Handle]) -> (f64, f64) {
    let time = |each: &mut dyn FnMut(usize)| {
        let mut rounds = Vec::new();
        for _ in 0..5 {
            let begun = now();
            for n in 0..1_000_000 {
                each(n);
            }
            rounds.push(begun.elapsed().as_secs_f64() / 1e6);
        }
        median(rounds)
    };
    let Some(first) = handles.first() else {
        return (f64::MAX, f64::MAX);
    };
    let hot = time(&mut |_| {
        black_box(first.identity());
    });
    let spread = time(&mut |n| {
        // A stride that is no friend of any cache.
        if let Some(handle) = handles.get(n.wrapping_mul(7919) % handles.len()) {
            black_box(handle.identity());
        }
    });
    (hot, spread)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::MAX)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what a benchmark is for is to take the time"
)]
fn now() -> Instant {
    Instant::now()
}

/// Bytes of this process that are in memory.
fn resident() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

/// Seconds of all processors that this process has used.
fn cpu() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let after = text
        .rsplit(')')
        .next()
        .ok_or("no name in /proc/self/stat")?;
    let mut fields = after.split_whitespace().skip(11);
    let mut next = || -> Result<f64> { Ok(fields.next().ok_or("too short")?.parse()?) };
    // Ticks of a hundredth of a second, on every Linux there is.
    Ok((next()? + next()?) / 100.0)
}
