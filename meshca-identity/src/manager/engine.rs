//! What the driver knows, and what it makes of each event. Nothing in here waits.

mod backends;
mod workloads;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::BackendRegistry;
use meshca_core::secret::SecretStore;
use meshca_core::{Error, ErrorKind, Result};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cell::MeshCell;
use super::event::{Event, Observer};
use super::job::{Done, Order};
use super::mesh::Mesh;
use super::{Command, ManagerOptions, Shared, Stats, TrustGate};
use crate::MeshResources;
use crate::schedule::{Action, LaneId, Now, Scheduler};
use crate::select::IdentityRules;
use crate::trust::BackendKey;
use workloads::Workloads;

/// See the [module](self).
pub(super) struct Engine {
    shared: Arc<Shared>,
    registry: Arc<BackendRegistry>,
    types: BTreeSet<String>,
    secrets: Arc<dyn SecretStore>,
    options: ManagerOptions,
    observers: Vec<Arc<dyn Observer>>,
    scheduler: Scheduler,
    /// For workloads that no CA is to issue for.
    idle: LaneId,
    /// Numbers are not used again: results of jobs for a mesh that is gone are nobody's.
    meshes: HashMap<u64, Mesh>,
    by_name: HashMap<String, u64>,
    /// Which CA a lane is of.
    lanes: HashMap<LaneId, (u64, BackendKey)>,
    /// Lanes of CAs that are gone, in which something is still in flight.
    closing: Vec<LaneId>,
    workloads: Workloads,
    jobs: JoinSet<()>,
    reports: UnboundedSender<Done>,
    started: Instant,
    tick: Duration,
    next_tick: Duration,
    revision: Option<u64>,
    counter: u64,
    actions: Vec<Action>,
    /// What is to be asked for in this turn.
    orders: Vec<Order>,
}

impl Engine {
    pub(super) fn new(
        shared: Arc<Shared>,
        registry: BackendRegistry,
        secrets: Arc<dyn SecretStore>,
        options: ManagerOptions,
        observers: Vec<Arc<dyn Observer>>,
        reports: UnboundedSender<Done>,
    ) -> Self {
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
            observers,
            idle: scheduler.open_lane(),
            scheduler,
            meshes: HashMap::new(),
            by_name: HashMap::new(),
            lanes: HashMap::new(),
            closing: Vec::new(),
            workloads: Workloads::default(),
            jobs: JoinSet::new(),
            reports,
            started: Instant::now(),
            next_tick: Duration::ZERO,
            counter: 0,
            actions: Vec::new(),
            orders: Vec::new(),
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
        for observer in &self.observers {
            observer.observe(event);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.scheduler.in_flight()
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
                Action::Expired(ticket) => self.expired(ticket),
            }
        }
        self.actions = actions;
        self.start_orders();
        let wake = self.scheduler.next_wake();
        let wall = wake
            .wall
            .map(|at| at.duration_since(now.wall).unwrap_or_default());
        let up = [wake.up, Some(self.next_tick)].into_iter().flatten();
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
        let revision = self.secrets.revision();
        if revision != self.revision {
            self.revision = revision;
            self.look_at_all(now, false);
        }
        let ids: Vec<u64> = self.meshes.keys().copied().collect();
        for id in ids {
            self.look_after(id, now);
            self.publish_if_due(id, now);
            self.warn_of_roots(id, now);
        }
        self.forget_those_who_linger(now);
        self.close_lanes();
    }

    /// Has the next tick come no later than this.
    fn wake_by(&mut self, up: Duration) {
        self.next_tick = self.next_tick.min(up);
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Apply { resources, reply } => {
                let _ = reply.send(self.apply(*resources));
            }
            Command::RemoveMesh { name, reply } => {
                let _ = reply.send(self.remove_mesh(&name));
            }
            Command::Connect {
                mesh,
                name,
                workload,
                reply,
            } => {
                let id = self.mesh_of(&mesh);
                let (ticket, cell) = self.connect(id, name, workload, reply.is_some());
                if let Some(reply) = reply
                    && reply.send((ticket, cell)).is_err()
                {
                    // The caller has given up.
                    self.disconnect(ticket);
                }
            }
            Command::Disconnect { ticket } => self.disconnect(ticket),
            Command::Update { ticket, workload } => self.update(ticket, workload),
            Command::Acknowledge { ticket, version } => self.acknowledge(ticket, version),
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
            Done::Issued { ca, answers } => {
                for answer in answers {
                    self.issued(&ca, answer);
                }
            }
            Done::Built { ca, result } => self.built(&ca, result),
            Done::Looked { ca, result } => self.looked(&ca, result),
            Done::Rotated { ca, step, result } => self.rotated(&ca, step, result),
        }
    }

    fn mesh_of(&mut self, cell: &Arc<MeshCell>) -> u64 {
        if let Some(id) = self.by_name.get(&cell.name) {
            return *id;
        }
        let id = self.count();
        self.by_name.insert(cell.name.clone(), id);
        self.meshes.insert(id, Mesh::new(Arc::clone(cell)));
        id
    }

    fn find_mesh(&self, name: &str) -> Result<u64> {
        self.by_name.get(name).copied().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "there is no such mesh: apply its resources first",
            )
            .with_context("mesh", name.to_owned())
        })
    }

    fn apply(&mut self, resources: MeshResources) -> Result<()> {
        let cell = self.shared.mesh(resources.name());
        let id = self.mesh_of(&cell);
        let now = self.now();
        let zone = self.options.select.zone.clone();
        let rules = IdentityRules::new(&resources, self.options.select.clone());
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return Ok(());
        };
        let before = mesh.take_trusts(&resources, &zone)?;
        mesh.rules = Some(rules);
        mesh.broken_glass = false;
        self.take_backends(id, &resources, now);
        // What was signed before this process began, under roots that our own MeshTrusts still have.
        if let Some(mesh) = self.meshes.get_mut(&id) {
            for (key, bundle) in before {
                let Some(backend) = mesh.backends.get(&key) else {
                    continue;
                };
                let Some(until) = now.wall.checked_add(backend.config.lifetime()) else {
                    continue;
                };
                for root in bundle.roots() {
                    if !mesh.ledger.knows(bundle.trust_domain(), root) {
                        mesh.ledger.keep(&key, bundle.trust_domain(), root, until);
                    }
                }
            }
            mesh.resources = Some(resources);
        }
        self.look_after(id, now);
        self.publish(id, now);
        self.review_mesh(id);
        Ok(())
    }

    fn remove_mesh(&mut self, name: &str) -> Result<()> {
        let id = self.find_mesh(name)?;
        if let Some(mesh) = self.meshes.get_mut(&id) {
            mesh.rules = None;
            mesh.resources = None;
        }
        let keys: Vec<BackendKey> = self
            .meshes
            .get(&id)
            .map(|mesh| mesh.backends.keys().cloned().collect())
            .unwrap_or_default();
        self.review_mesh(id);
        for key in keys {
            self.drop_backend(id, &key);
        }
        if !self.workloads.any_in(id) {
            self.meshes.remove(&id);
            self.by_name.remove(name);
            self.shared.forget_mesh(name);
        }
        Ok(())
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
        let version = self
            .meshes
            .get(&id)
            .map_or(0, |mesh| mesh.ledger.published().1);
        let (connected, lagging) = self.workloads.lagging(id, version);
        Ok(TrustGate {
            version,
            connected,
            lagging,
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
