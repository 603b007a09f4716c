//! What the driver knows, and what it makes of each event. Nothing in here waits.

mod backends;
mod orders;
mod records;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshca_core::registry::BackendRegistry;
use meshca_core::resource::MeshTrust;
use meshca_core::secret::SecretStore;
use meshca_core::{Error, ErrorKind, Identity, Result};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cell::MeshCell;
use super::driver::Layer;
use super::event::{Event, Observer};
use super::handle::{Connection, Handle};
use super::job::{Done, Order};
use super::mesh::{self, Mesh};
use super::record::Record;
use super::{Command, ManagerOptions, Shared, Stats, TrustGate};
use crate::schedule::{Action, LaneId, Now, Scheduler};
use crate::select::IdentityRules;
use crate::trust::BackendKey;
use crate::{MeshResources, TrustVersion};
use orders::Later;
use workloads::Workloads;

/// What the embedder puts around everything.
pub(super) struct Around {
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) layers: Vec<Layer>,
}

/// See the [module](self).
pub(super) struct Engine {
    shared: Arc<Shared>,
    registry: Arc<BackendRegistry>,
    types: BTreeSet<String>,
    secrets: Arc<dyn SecretStore>,
    options: ManagerOptions,
    around: Around,
    scheduler: Scheduler,
    /// For workloads that no CA is to issue for.
    idle: LaneId,
    /// Numbers are not used again: results of jobs for a mesh that is gone are nobody's.
    meshes: BTreeMap<u64, Mesh>,
    by_name: HashMap<String, u64>,
    /// What waits for the record of a mesh to be read, in its order.
    reading: HashMap<String, Vec<Command>>,
    /// Which CA a lane is of.
    lanes: BTreeMap<LaneId, (u64, Arc<BackendKey>)>,
    /// Lanes of CAs that are gone, in which something is still in flight.
    closing: Vec<LaneId>,
    workloads: Workloads,
    jobs: JoinSet<()>,
    reports: UnboundedSender<Done>,
    started: Instant,
    tick: Duration,
    next_tick: Duration,
    next_revision: Duration,
    revision: Option<u64>,
    counter: u64,
    actions: Vec<Action>,
    /// What is to be asked for in this turn.
    orders: BTreeMap<LaneId, Vec<Order>>,
    /// Identities that others have taken the place of: see [`Batch`](super::job::Batch).
    spent: Vec<Arc<Identity>>,
    /// What was issued and is not valid yet, by when it is.
    later: BTreeMap<(Duration, u64), Later>,
}

impl Engine {
    pub(super) fn new(
        shared: Arc<Shared>,
        registry: BackendRegistry,
        secrets: Arc<dyn SecretStore>,
        mut options: ManagerOptions,
        around: Around,
        reports: UnboundedSender<Done>,
    ) -> Self {
        options.schedule = options.schedule.bounded();
        let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
        let mut scheduler = Scheduler::new(options.schedule.clone(), seed);
        Self {
            shared,
            types: registry.types().map(str::to_owned).collect(),
            registry: Arc::new(registry),
            revision: secrets.revision(),
            secrets,
            tick: (options.trust_refresh / 2).max(Duration::from_secs(1)),
            options,
            around,
            idle: scheduler.open_lane(),
            scheduler,
            meshes: BTreeMap::new(),
            by_name: HashMap::new(),
            reading: HashMap::new(),
            lanes: BTreeMap::new(),
            closing: Vec::new(),
            workloads: Workloads::default(),
            jobs: JoinSet::new(),
            reports,
            started: Instant::now(),
            next_tick: Duration::ZERO,
            next_revision: Duration::ZERO,
            counter: 0,
            actions: Vec::new(),
            orders: BTreeMap::new(),
            spent: Vec::new(),
            later: BTreeMap::new(),
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: self.shared.clock.now(),
            up: self.started.elapsed(),
        }
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn observe(&self, event: &Event<'_>) {
        for observer in &self.around.observers {
            let _ = guarded("an observer", || observer.observe(event));
        }
    }

    /// Whether certificates are under way.
    pub(super) fn is_issuing(&self) -> bool {
        self.scheduler.in_flight() > 0
    }

    /// Whether something is under way that should end in order.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_issuing() || self.meshes.values().any(|mesh| mesh.recorded.busy)
    }

    /// Does what is due, and says how long it takes until something else is.
    pub(super) fn turn(&mut self) -> Duration {
        while self.jobs.try_join_next().is_some() {}
        let now = self.now();
        if now.up >= self.next_tick {
            self.tick(now);
        }
        let mut actions = std::mem::take(&mut self.actions);
        self.scheduler.poll(now, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Issue(ticket) => self.issue(ticket),
                Action::Late(ticket) => self.late(ticket),
                Action::Expired(ticket) => self.expired(ticket),
            }
        }
        self.actions = actions;
        self.hand_out_later(now);
        self.start_orders();
        self.forget_those_who_linger(now);
        let wake = self.scheduler.next_wake();
        let wall = wake
            .wall
            .map(|at| at.duration_since(now.wall).unwrap_or_default());
        let more = self.scheduler.has_more().then_some(now.up);
        let later = self.later.first_key_value().map(|((at, _), _)| *at);
        let lingers = self.workloads.next_to_forget();
        let up = [wake.up, Some(self.next_tick), more, later, lingers];
        let up = up.into_iter().flatten();
        let up = up.map(|at| at.saturating_sub(now.up)).min();
        // Timers are exact to the millisecond; a wait of nothing would not let anybody else run.
        [wall, up, Some(self.tick)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.tick)
            .max(Duration::from_millis(1))
    }

    fn tick(&mut self, now: Now) {
        self.next_tick = now.up.saturating_add(self.tick);
        if now.up >= self.next_revision {
            // Not each time that something else is looked at: records are secrets as well, and are written for many meshes at a start.
            self.next_revision = now.up.saturating_add(self.tick);
            let revision = guarded("a secret store", || self.secrets.revision()).flatten();
            if revision != self.revision {
                self.revision = revision;
                self.look_at_all(now, false);
            }
        }
        let ids: Vec<u64> = self.meshes.keys().copied().collect();
        for id in ids {
            self.look_after(id, now);
            self.publish_if_due(id, now);
            self.warn_of_roots(id, now);
            self.expect_back(id, now);
            self.store_record(id, now);
            self.forget_mesh_if_empty(id);
        }
        self.close_lanes();
    }

    /// Has the next tick come no later than this.
    fn wake_by(&mut self, up: Duration) {
        self.next_tick = self.next_tick.min(up);
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Apply { resources, reply } => {
                let name = resources.name().to_owned();
                let is_new = self.is_new(&name);
                match self.reading.get_mut(&name) {
                    Some(waiting) => waiting.push(Command::Apply { resources, reply }),
                    None if is_new => {
                        self.read_record(Command::Apply { resources, reply }, name);
                    }
                    None => {
                        let _ = reply.send(self.apply(*resources, None));
                    }
                }
            }
            Command::RemoveMesh { name, reply } => match self.reading.get_mut(&name) {
                Some(waiting) => waiting.push(Command::RemoveMesh { name, reply }),
                None => {
                    let _ = reply.send(self.remove_mesh(&name));
                }
            },
            Command::Connect {
                mesh,
                name,
                workload,
                reply,
            } => {
                let id = self.mesh_of(&mesh);
                let seen = mesh.signal.count();
                let (ticket, cell) = self.connect(id, name, workload, reply.is_some());
                if let Some(reply) = reply {
                    let seen = [cell.signal.count(), seen];
                    let connection = Connection {
                        shared: Arc::clone(&self.shared),
                        cell,
                        mesh,
                        ticket,
                    };
                    let handle = Handle {
                        connection: Arc::new(connection),
                        seen,
                    };
                    // Whoever has given up drops it, here or in the channel, and is disconnected by that.
                    let _ = reply.send(handle);
                }
            }
            Command::Disconnect { ticket } => self.disconnect(ticket),
            Command::Update { ticket, workload } => self.update(ticket, workload),
            Command::Acknowledge {
                ticket,
                acknowledged,
            } => self.acknowledge(ticket, acknowledged),
            Command::Explain { ticket, reply } => {
                let _ = reply.send(self.explain(ticket));
            }
            Command::SecretsChanged => {
                let now = self.now();
                self.look_at_all(now, true);
            }
            Command::Gate { mesh, reply } => {
                let _ = reply.send(self.gate(&mesh));
            }
            Command::Observe { mesh, reply } => {
                let _ = reply.send(self.observed(&mesh));
            }
            Command::BreakGlass {
                mesh,
                reason,
                reply,
            } => {
                let _ = reply.send(self.break_glass(&mesh, &reason));
            }
            Command::Stats { reply } => {
                let _ = reply.send(self.stats());
            }
        }
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Issued { ca, answers } => self.answered(&ca, answers),
            Done::Deferred { ca, orders } => self.not_together(&ca, orders),
            Done::Built { ca, result } => self.built(&ca, result),
            Done::Looked { ca, result } => self.looked(&ca, result),
            Done::Rotated { ca, step, result } => self.rotated(&ca, step, result),
            Done::Recorded {
                mesh,
                record,
                result,
            } => self.recorded(mesh, &record, result),
            Done::Read { mesh, result } => self.read(&mesh, result),
        }
    }

    fn mesh_of(&mut self, cell: &Arc<MeshCell>) -> u64 {
        if let Some(id) = self.by_name.get(&cell.name) {
            return *id;
        }
        let id = self.count();
        self.by_name.insert(cell.name.clone(), id);
        // Versions grow across restarts too: what a proxy has acknowledged to the process before this one is less than any of ours.
        let since_1970 = self.now().wall.duration_since(SystemTime::UNIX_EPOCH);
        let number = since_1970
            .unwrap_or_default()
            .as_secs()
            .saturating_mul(1024);
        let version = TrustVersion::new(number).unwrap_or_default();
        self.meshes.insert(id, Mesh::new(Arc::clone(cell), version));
        id
    }

    fn find_mesh(&self, name: &str) -> Result<u64> {
        let found = self.by_name.get(name).copied();
        found.ok_or_else(|| unknown_mesh().with_context("mesh", name.to_owned()))
    }

    /// Whether the resources of a mesh have not been applied.
    fn is_new(&self, mesh: &str) -> bool {
        let known = self.by_name.get(mesh);
        let known = known.and_then(|id| self.meshes.get(id));
        known.is_none_or(|mesh| mesh.resources.is_none())
    }

    /// With what is stored of the mesh, if it is [new](Self::is_new).
    fn apply(&mut self, resources: MeshResources, record: Option<Record>) -> Result<()> {
        let bundles = resources
            .trusts
            .iter()
            .map(MeshTrust::to_trust_bundle)
            .collect::<Result<Vec<_>>>()?;
        let cell = self.shared.mesh(resources.name());
        let id = self.mesh_of(&cell);
        let now = self.now();
        let zone = self.options.select.zone.clone();
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return Ok(());
        };
        let effective = effective(&resources, mesh.effective.take(), &zone);
        let (wanted, wrong) = mesh::wanted(&effective, &zone);
        let before = mesh.take_trusts(&effective, bundles, &wanted, &zone);
        mesh.rules = Some(IdentityRules::new(&effective, self.options.select.clone()));
        mesh.broken_glass = false;
        for identity in &effective.identities {
            let name = identity.metadata.name.clone();
            mesh.named.insert(name, identity.metadata.clone());
        }
        self.take_backends(id, wanted, wrong, now);
        if let Some(mesh) = self.meshes.get_mut(&id) {
            mesh.recorded.had.extend(mesh.backends.keys().cloned());
            if let Some(record) = record {
                mesh.recall(record, now, self.options.linger);
                mesh.remember(before, now.wall);
            }
            mesh.cell.set_resources(&resources);
            mesh.effective = Some(effective);
            mesh.resources = Some(resources);
        }
        self.look_after(id, now);
        self.publish(id, now);
        self.review_mesh(id);
        // What has to be stored, and who is expected back, is looked at with the rest.
        self.wake_by(now.up);
        Ok(())
    }

    fn remove_mesh(&mut self, name: &str) -> Result<()> {
        let id = self.find_mesh(name)?;
        let now = self.now();
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return Ok(());
        };
        mesh.rules = None;
        mesh.resources = None;
        mesh.effective = None;
        let origins = mesh.ledger.origins().filter(|it| it.is_resource()).cloned();
        for origin in origins.collect::<Vec<_>>() {
            mesh.ledger.unset(&origin);
        }
        let keys: Vec<BackendKey> = mesh.backends.keys().cloned().collect();
        self.review_mesh(id);
        for key in keys {
            self.drop_backend(id, &key);
        }
        self.publish(id, now);
        self.store_record(id, now);
        self.forget_mesh_if_empty(id);
        Ok(())
    }

    /// Nobody is left in it, and nothing is said of it. Its cell stays, for whoever looks at it and for when it comes back.
    fn forget_mesh_if_empty(&mut self, id: u64) {
        let wall = self.now().wall;
        let gone = self
            .meshes
            .get(&id)
            .is_some_and(|mesh| mesh.resources.is_none() && mesh.is_recorded(wall));
        if gone
            && !self.workloads.any_in(id)
            && let Some(mesh) = self.meshes.remove(&id)
        {
            self.by_name.remove(&mesh.cell.name);
            mesh.cell.empty();
        }
    }

    /// Roots that nothing is left of are retired.
    fn publish_if_due(&mut self, id: u64, now: Now) {
        if self.put_trust_together(id, now) {
            self.publish(id, now);
        }
    }

    fn put_trust_together(&mut self, id: u64, now: Now) -> bool {
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return false;
        };
        mesh.ledger.publish(now.wall).unwrap_or_else(|error| {
            tracing::error!(mesh = %mesh.cell.name, %error, "the trust of the mesh cannot be put together; what was published stays");
            false
        })
    }

    /// Makes the trust of a mesh what it is to be now, and its status what it is.
    fn publish(&mut self, id: u64, now: Now) {
        self.put_trust_together(id, now);
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return;
        };
        let changed = mesh.publish(&self.types, &self.options.select.zone);
        let cell = Arc::clone(&mesh.cell);
        self.pause_lanes(id);
        if changed {
            // It is to be stored.
            self.wake_by(now.up);
            let (mesh, version) = (cell.name.as_str(), cell.trust.load().version);
            self.observe(&Event::TrustChanged { mesh, version });
        }
    }

    /// Has each CA of a mesh sign if it may, and only then.
    fn pause_lanes(&mut self, id: u64) {
        let Some(mesh) = self.meshes.get(&id) else {
            return;
        };
        for backend in mesh.backends.values() {
            let paused = !mesh.may_sign(backend, self.options.acknowledgements);
            self.scheduler.pause(backend.lane, paused);
        }
    }

    fn warn_of_roots(&mut self, id: u64, now: Now) {
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return;
        };
        let Some(soon) = now.wall.checked_add(self.options.root_warning) else {
            return;
        };
        let news: Vec<_> = mesh
            .ledger
            .ending_before(soon)
            .into_iter()
            .filter(|(_, root)| mesh.warned.insert(root.fingerprint().to_owned()))
            .collect();
        let cell = Arc::clone(&mesh.cell);
        for (trust_domain, root) in news {
            self.observe(&Event::RootEnding {
                mesh: &cell.name,
                trust_domain: &trust_domain,
                subject: &root.subject(),
                not_after: root.validity().not_after(),
            });
        }
    }

    fn gate(&self, name: &str) -> Result<TrustGate> {
        let id = self.find_mesh(name)?;
        let mesh = self.meshes.get(&id).ok_or_else(unknown_mesh)?;
        let (_, version) = mesh.ledger.published();
        let returning = mesh.returning.is_some();
        let (connected, lagging) = self.workloads.lagging(id, version);
        Ok(TrustGate {
            version,
            connected,
            lagging,
            returning,
        })
    }

    fn break_glass(&mut self, name: &str, reason: &str) -> Result<()> {
        let id = self.find_mesh(name)?;
        tracing::error!(
            mesh = name,
            reason,
            "break glass: new roots are used although proxies have not acknowledged them"
        );
        self.observe(&Event::BreakGlass { mesh: name, reason });
        if let Some(mesh) = self.meshes.get_mut(&id) {
            mesh.broken_glass = true;
        }
        let now = self.now();
        self.look_after(id, now);
        self.publish(id, now);
        Ok(())
    }

    fn stats(&self) -> Stats {
        let mut stats = self.workloads.stats();
        stats.in_flight = self.scheduler.in_flight();
        let lanes = self.meshes.values().flat_map(|mesh| mesh.backends.values());
        stats.open_breakers = lanes.filter(|it| self.scheduler.is_open(it.lane)).count();
        stats
    }

    fn cell_of(&self, mesh: u64) -> Option<Arc<MeshCell>> {
        self.meshes.get(&mesh).map(|mesh| Arc::clone(&mesh.cell))
    }
}

fn unknown_mesh() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "there is no such mesh: apply its resources first",
    )
}

/// The resources as they are in force: a MeshIdentity whose trust domain cannot be made stays what it was when it could. Its
/// status says what is wrong with it.
fn effective(
    resources: &MeshResources,
    before: Option<MeshResources>,
    zone: &str,
) -> MeshResources {
    let mut effective = resources.clone();
    let before = before.map(|it| it.identities).unwrap_or_default();
    for identity in &mut effective.identities {
        if identity.trust_domain_in(zone).is_err()
            && let Some(sound) = before
                .iter()
                .find(|it| it.metadata.name == identity.metadata.name)
        {
            *identity = sound.clone();
        }
    }
    effective
}

/// Calls what others wrote: a panic in there harms nobody but them.
fn guarded<T>(what: &str, call: impl FnOnce() -> T) -> Option<T> {
    let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    called
        .inspect_err(|_| tracing::error!("{what} panicked: this is a bug in it"))
        .ok()
}

/// A number that stands for something; the same in every process of this build.
fn number(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
