//! Our side of `cargo xtask bench manager`: what the manager costs beside the certificates that it manages.
//!
//! It speaks like `speed.rs`: `CASE NANOSECONDS THREADS` is answered with `OPERATIONS NANOSECONDS`, what goes wrong with `error MESSAGE`. How
//! many identities are held, and how many are renewed at once, are its two arguments.
//!
//! | case | operations, and what of |
//! |---|---|
//! | `memory` | identities that are held, and bytes beyond their certificates and keys: what the process has resident, so what the allocator wastes counts |
//! | `event` | labels of a workload that change nothing, and the time that deciding so takes, with all identities held |
//! | `read` | reads of an identity through a handle |
//! | `storm` | identities renewed at once, and the CPU of all threads |
//! | `bare` | as many renewed by the same CA without a manager, and the CPU of all threads |
//! | `dropped` | as many certificates of the same CA that nobody keeps |
//!
//! Everything is real: the built-in CA signs, and each workload has labels and a key of its own.
//!
//! What `storm` is compared with is `bare`: a loop that issues, and puts what it gets in the place of what it had. It waits for nobody, tells
//! nobody, and knows beforehand what to ask for. That it keeps its identities is no luxury: a hundred thousand of them do not fit into any
//! cache, so each one that is replaced is fetched from memory to be wiped and freed, and that is so for whoever has them. What it costs is
//! the difference between `bare` and `dropped`.

use std::hint::black_box;
use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use meshca::builtin;
use meshca::identity::manager::{Event, Observer};
use meshca::identity::select::SelectOptions;
use meshca::identity::{Handle, Manager, ManagerOptions, MeshResources};
use meshca::registry::{BackendConfig, BackendRegistry, BuildContext};
use meshca::resource::Resource;
use meshca::spiffe::{Environment, Workload};
use meshca::{Clock, Identity, IssuingCa, MemorySecretStore};
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
    rounds: AtomicUsize,
    /// Whom to wake, and when: waking for each is not what is measured.
    wanted: AtomicUsize,
    enough: Notify,
}

impl Observer for Counter {
    fn observe(&self, event: &Event<'_>) {
        if matches!(event, Event::Issued { .. } | Event::Renewed { .. }) {
            let issued = self.issued.fetch_add(1, Ordering::SeqCst) + 1;
            if issued == self.wanted.load(Ordering::SeqCst) {
                self.enough.notify_one();
            }
        }
    }
}

impl Counter {
    async fn reach(&self, count: usize) {
        self.wanted.store(count, Ordering::SeqCst);
        while self.issued.load(Ordering::SeqCst) < count {
            self.enough.notified().await;
        }
    }
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut numbers = std::env::args().skip(1);
        let mut number = || {
            numbers
                .next()
                .ok_or("IDENTITIES STORM")?
                .parse::<usize>()
                .map_err(|error| error.to_string())
        };
        let mut bench = Bench::new(number()?, number()?);
        let mut to = std::io::stdout();
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let case = line.split(' ').next().unwrap_or_default();
            match bench.answer(case).await {
                Ok((operations, of)) => writeln!(to, "{operations} {}", of.max(1.0))?,
                Err(error) => writeln!(to, "error {error}")?,
            }
            to.flush()?;
        }
        // A million handles that are dropped are a million commands to a driver that nobody needs any more.
        std::mem::forget(bench);
        Ok(())
    })
}

/// What was set up for a case is kept for the next.
struct Bench {
    identities: usize,
    renewed: usize,
    held: Option<Held>,
    storm: Option<(World, Vec<Handle>)>,
    bare: Option<Bare>,
}

/// All identities, and what each takes.
struct Held {
    world: World,
    handles: Vec<Handle>,
    bytes: f64,
}

impl Bench {
    fn new(identities: usize, renewed: usize) -> Self {
        Self {
            identities,
            renewed,
            held: None,
            storm: None,
            bare: None,
        }
    }

    /// Operations, and what they took.
    async fn answer(&mut self, case: &str) -> Result<(usize, f64)> {
        match case {
            "memory" => {
                let held = self.held().await?;
                Ok((held.handles.len(), held.bytes))
            }
            "event" => self.held().await?.events().await,
            "read" => Ok(self.held().await?.reads()),
            "storm" => self.storm().await,
            "bare" => self.bare(true).await,
            "dropped" => self.bare(false).await,
            _ => Err(format!("there is no case `{case}`").into()),
        }
    }

    async fn held(&mut self) -> Result<&Held> {
        if self.held.is_none() {
            // First, while nothing has been freed that it could be put into; and kept, for the same reason.
            let sample = self.identities.min(self.renewed);
            let before = resident()?;
            let mut bare = Bare::new().await?;
            bare.issue(sample, true).await?;
            std::mem::forget(bare);
            let own = (resident()? - before) / sample as f64;

            let world = World::new().await?;
            let before = resident()?;
            let handles = world.connect(self.identities).await?;
            world.counter.reach(self.identities).await;
            let bytes = resident()? - before - own * self.identities as f64;
            self.held = Some(Held {
                world,
                handles,
                bytes,
            });
        }
        self.held.as_ref().ok_or_else(|| "it was made".into())
    }

    /// Renews all at once.
    async fn storm(&mut self) -> Result<(usize, f64)> {
        if self.storm.is_none() {
            let world = World::new().await?;
            let handles = world.connect(self.renewed).await?;
            world.counter.reach(self.renewed).await;
            self.storm = Some((world, handles));
        }
        let (world, _) = self.storm.as_ref().ok_or("it was made")?;
        let before = world.counter.issued.load(Ordering::Relaxed);
        let begun = cpu()?;
        // Past the last renewal of what lives for a day, before the end of any.
        world.clock.0.fetch_add(15 * 3600, Ordering::Relaxed);
        world.counter.reach(before + self.renewed).await;
        Ok((self.renewed, (cpu()? - begun) * 1e9))
    }

    /// The same without a manager.
    async fn bare(&mut self, keep: bool) -> Result<(usize, f64)> {
        let bare = match &mut self.bare {
            Some(bare) => bare,
            None => {
                let mut bare = Bare::new().await?;
                bare.issue(self.renewed, true).await?;
                self.bare.insert(bare)
            }
        };
        let begun = cpu()?;
        bare.issue(self.renewed, keep).await?;
        Ok((self.renewed, (cpu()? - begun) * 1e9))
    }
}

impl Held {
    /// Labels that change nothing, one by one.
    async fn events(&self) -> Result<(usize, f64)> {
        let count = self.handles.len().min(100_000);
        let round = self.world.counter.rounds.fetch_add(1, Ordering::Relaxed);
        let workloads: Vec<Workload> = (0..count)
            .map(|n| workload(&format!("w-{n}")).with_label("round", round.to_string()))
            .collect();
        let begun = now();
        for (handle, workload) in self.handles.iter().zip(workloads) {
            handle.update(workload);
        }
        // Answered after all of them.
        let _ = self.world.manager.gate("unknown").await;
        Ok((count, begun.elapsed().as_nanos() as f64))
    }

    fn reads(&self) -> (usize, f64) {
        const READS: usize = 1_000_000;
        let begun = now();
        if let Some(handle) = self.handles.first() {
            for _ in 0..READS {
                black_box(handle.identity());
            }
        }
        (READS, begun.elapsed().as_nanos() as f64)
    }
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
struct Bare {
    ca: IssuingCa,
    config: BackendConfig,
    /// What each task has.
    held: Vec<Vec<Option<Arc<Identity>>>>,
}

impl Bare {
    async fn new() -> Result<Self> {
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
        let built = BackendRegistry::new()
            .with(builtin::factory())
            .build(&config, &context)
            .await?;
        Ok(Self {
            ca: IssuingCa::new(built.issuer),
            config,
            held: vec![Vec::new(); AT_ONCE],
        })
    }

    /// As many certificates, by as many tasks as the manager has requests under way; nobody waits for anybody.
    async fn issue(&mut self, count: usize, keep: bool) -> Result<()> {
        let mut jobs = JoinSet::new();
        for (task, mut held) in std::mem::take(&mut self.held).into_iter().enumerate() {
            let (ca, config) = (self.ca.clone(), self.config.clone());
            jobs.spawn(async move {
                let clock = Ahead(Arc::default());
                let numbers = (task..count).step_by(AT_ONCE);
                held.resize(numbers.len(), None);
                for (n, held) in numbers.zip(&mut held) {
                    let id = meshca::SpiffeId::new(format!("spiffe://example.org/workload/w-{n}"))?;
                    let spec = config.certificate_spec(id, &Workload::new())?;
                    let issued = Arc::new(ca.issue(&spec, &clock).await?);
                    if keep {
                        *held = Some(issued);
                    }
                }
                Result::<_>::Ok(held)
            });
        }
        while let Some(done) = jobs.join_next().await {
            self.held.push(done??);
        }
        Ok(())
    }
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
