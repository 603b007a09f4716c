//! Everything that the driver knows, in parts that own their state, and what it makes of each
//! event. Nothing in here waits.

mod backends;
mod laggards;
mod orders;
mod records;
mod workloads;

use std::sync::Arc;
use std::time::Duration;

use meshca_core::resource::MeshTrust;
use meshca_core::{Error, Result};
use tokio::sync::mpsc::UnboundedSender;

use super::backend;
use super::cell::MeshCell;
use super::clockwork::Clockwork;
use super::event::Event;
use super::gate::TrustGate;
use super::health::Stats;
use super::ids::MeshId;
use super::job::Done;
use super::lanes::Lanes;
use super::meshes::Meshes;
use super::outbox::Outbox;
use super::setup::Setup;
use super::shared::{Command, Connection};
use super::workloads::Workloads;
use crate::record::Record;
use crate::schedule::{Action, Now, Scheduler};
use crate::select::IdentityRules;
use crate::{BackendKey, MeshResources};

/// See the [module](self).
pub(super) struct Engine {
    setup: Setup,
    clockwork: Clockwork,
    scheduler: Scheduler,
    lanes: Lanes,
    meshes: Meshes,
    workloads: Workloads,
    outbox: Outbox,
}

impl Engine {
    pub(super) fn new(mut setup: Setup, reports: UnboundedSender<Done>) -> Self {
        let options = &mut setup.options;
        options.schedule = options.schedule.clone().bounded();
        let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
        let mut scheduler = Scheduler::new(options.schedule.clone(), seed);
        let period = (options.trust_refresh / 2).max(Duration::from_secs(1));
        let clock = Arc::clone(&setup.shared.clock);
        Self {
            clockwork: Clockwork::new(clock, period, &*setup.secrets, reports),
            lanes: Lanes::new(&mut scheduler),
            setup,
            scheduler,
            meshes: Meshes::default(),
            workloads: Workloads::default(),
            outbox: Outbox::default(),
        }
    }

    /// Whether certificates are under way.
    pub(super) fn is_issuing(&self) -> bool {
        self.scheduler.in_flight() > 0
    }

    /// Whether something is under way that should end in order.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_issuing() || self.meshes.iter().any(|(_, mesh)| mesh.recorded.busy)
    }

    /// Does what is due, and says how long it takes until something else is.
    pub(super) fn turn(&mut self) -> Duration {
        self.clockwork.reap();
        let now = self.clockwork.now();
        if self.clockwork.ticks(now) {
            self.tick(now);
        }
        let mut actions = std::mem::take(&mut self.outbox.actions);
        self.scheduler.poll(now, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Issue(ticket) => self.issue(ticket),
                Action::Late(ticket) => self.late(ticket),
                Action::Expired(ticket) => self.expired(ticket),
            }
        }
        self.outbox.actions = actions;
        self.hand_out_later(now);
        self.start_orders();
        while let Some(ticket) = self.workloads.next_to_forget(now.up) {
            self.forget(ticket);
        }
        self.until_next(now)
    }

    fn until_next(&self, now: Now) -> Duration {
        let wake = self.scheduler.next_wake();
        let wall = wake
            .wall
            .map(|at| at.duration_since(now.wall).unwrap_or_default());
        let up = [
            wake.up,
            Some(self.clockwork.next_tick),
            self.scheduler.has_more().then_some(now.up),
            self.outbox.next_wake(),
            self.workloads.next_wake(),
        ];
        let up = up.into_iter().flatten();
        let up = up.map(|at| at.saturating_sub(now.up)).min();
        // Timers are exact to the millisecond; a wait of nothing would not let anybody else run.
        [wall, up, Some(self.clockwork.period)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.clockwork.period)
            .max(Duration::from_millis(1))
    }

    fn tick(&mut self, now: Now) {
        let secrets = &*self.setup.secrets;
        if self.clockwork.secrets_have_changed(secrets, now) {
            self.secrets_changed(false);
        }
        let ids: Vec<MeshId> = self.meshes.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.look_after(id);
            self.publish_if_due(id, now);
            if let Some(mesh) = self.meshes.get_mut(id) {
                mesh.forget_gone();
            }
            self.watch_laggards(id, now);
            self.warn_of_roots(id, now);
            self.expect_back(id, now);
            self.store_record(id, now);
            self.forget_mesh_if_empty(id);
        }
        self.lanes.close_retired(&mut self.scheduler);
        // Somebody may have looked at a mesh that was never applied, or looked on after it was gone.
        if self.setup.shared.count_meshes() > self.meshes.count() {
            let meshes = &self.meshes;
            self.setup
                .shared
                .forget_unused(|name| meshes.find(name).is_ok());
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        // While the record of a mesh is read, commands about its resources wait, in their order.
        let about = match &command {
            Command::Apply { resources, .. } => Some(resources.name()),
            Command::RemoveMesh { name, .. } => Some(name.as_str()),
            _ => None,
        };
        if let Some(waiting) = about.and_then(|mesh| self.meshes.reading.get_mut(mesh)) {
            return waiting.push(command);
        }
        match command {
            Command::Apply { ref resources, .. } if self.meshes.is_new(resources.name()) => {
                let mesh = resources.name().to_owned();
                self.read_record(mesh, command);
            }
            Command::Apply { resources, reply } => {
                let _ = reply.send(self.apply(*resources, None));
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
                let seen = mesh.signal.count();
                let (ticket, cell) = self.connect(id, name, workload, reply.is_some());
                if let Some(reply) = reply {
                    let seen = [cell.signal.count(), seen];
                    let connection = Connection {
                        shared: Arc::clone(&self.setup.shared),
                        cell,
                        mesh,
                        ticket,
                    };
                    // A caller that has given up drops it, here or in the channel, and is
                    // disconnected by that.
                    let _ = reply.send((connection, seen));
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
            Command::SecretsChanged => self.secrets_changed(true),
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
            Command::ConfirmNewCa {
                mesh,
                backend,
                reason,
                reply,
            } => {
                let _ = reply.send(self.confirm_new_ca(&mesh, &backend, &reason));
            }
            Command::Sent { ticket, version } => self.sent(ticket, version),
            Command::Rejected { ticket, version } => self.rejected(ticket, version),
            Command::TryNow {
                mesh,
                backend,
                reply,
            } => {
                let _ = reply.send(self.try_now(&mesh, &backend));
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
            Done::Asked { ca, result } => self.asked(&ca, result),
            Done::Checked { ca, result } => self.checked(&ca, result),
            Done::Recorded {
                mesh,
                claims,
                result,
            } => self.recorded(mesh, claims, result),
            Done::Read { mesh, result } => self.read(&mesh, result),
        }
    }

    fn mesh_of(&mut self, cell: &Arc<MeshCell>) -> MeshId {
        let wall = self.clockwork.now().wall;
        let acknowledgements = self.setup.options.acknowledgements;
        self.meshes.open(cell, wall, acknowledgements)
    }

    /// Takes the resources of a mesh, with its record if it is
    /// [new](super::meshes::Meshes::is_new).
    fn apply(&mut self, resources: MeshResources, record: Option<Record>) -> Result<()> {
        let trusts = resources.trusts.iter().map(MeshTrust::to_readable_bundle);
        let (bundles, left_out): (Vec<_>, Vec<_>) = trusts.unzip();
        let cell = self.setup.shared.mesh(resources.name());
        let id = self.mesh_of(&cell);
        let now = self.clockwork.now();
        let zone = self.setup.options.select.zone.clone();
        let Some(mesh) = self.meshes.get_mut(id) else {
            return Ok(());
        };
        let effective = effective(&resources, mesh.effective.take(), &zone);
        let (wanted, wrong) = backend::wanted(&self.setup.registry, &effective, &zone);
        for error in mesh.left_out_anew(left_out.into_iter().flatten()) {
            let mesh = resources.name();
            tracing::warn!(%mesh, %error, "a root is left out of the trust of the mesh");
            let error = &error;
            self.setup.observe(&Event::RootLeftOut { mesh, error });
        }
        let before = mesh.take_trusts(&effective, bundles, &wanted, &zone);
        let announced = before.iter().cloned().collect();
        mesh.rules = Some(IdentityRules::new(
            &effective,
            self.setup.options.select.clone(),
        ));
        mesh.gate.broken_glass = false;
        for identity in &effective.identities {
            let name = identity.metadata.name.clone();
            mesh.named.insert(name, identity.metadata.clone());
        }
        self.take_backends(id, wanted, &wrong);
        if let Some(mesh) = self.meshes.get_mut(id) {
            mesh.recorded.had.extend(mesh.backends.keys().cloned());
            if let Some(record) = record {
                mesh.recall(record, now, self.setup.options.linger);
                mesh.remember(before, now.wall);
            }
            mesh.announced = announced;
            mesh.cell.set_resources(&resources);
            mesh.effective = Some(effective);
            mesh.resources = Some(resources);
        }
        self.look_after(id);
        self.publish(id, now);
        self.review_mesh(id);
        // The next tick stores the record, and looks at who is expected back.
        self.clockwork.wake_by(now.up);
        Ok(())
    }

    fn remove_mesh(&mut self, name: &str) -> Result<()> {
        let (id, _) = self.meshes.find(name)?;
        let now = self.clockwork.now();
        self.detach(id);
        let Some(mesh) = self.meshes.get_mut(id) else {
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
        for key in keys {
            self.drop_backend(id, &key);
        }
        self.publish(id, now);
        self.store_record(id, now);
        self.forget_mesh_if_empty(id);
        Ok(())
    }

    /// Forgets a mesh of which nothing is left: neither resources nor workloads, nor anything to
    /// store.
    fn forget_mesh_if_empty(&mut self, id: MeshId) {
        let now = self.clockwork.now();
        let gone = self
            .meshes
            .get_mut(id)
            .is_some_and(|mesh| mesh.resources.is_none() && mesh.is_recorded(now));
        if gone && !self.workloads.any_in(id) {
            self.meshes.remove(id);
        }
    }

    /// Retires roots that nothing needs any more.
    fn publish_if_due(&mut self, id: MeshId, now: Now) {
        if self.put_trust_together(id, now) {
            self.publish(id, now);
        }
    }

    fn put_trust_together(&mut self, id: MeshId, now: Now) -> bool {
        let Some(mesh) = self.meshes.get_mut(id) else {
            return false;
        };
        let agrees = mesh.clock(now).is_some();
        let changed = mesh.ledger.publish(now.wall, agrees).unwrap_or_else(|error| {
            tracing::error!(mesh = %mesh.cell.name, %error, "the trust of the mesh cannot be put together; what was published stays");
            false
        });
        let withheld = mesh.ledger.is_withheld();
        if withheld && !std::mem::replace(&mut mesh.recorded.told, withheld) {
            let cell = Arc::clone(&mesh.cell);
            let (mesh, clock) = (cell.name.as_str(), now.wall);
            tracing::warn!(
                mesh,
                "the clock disagrees with the trust record, so no root is removed"
            );
            self.setup.observe(&Event::ClockDoubted { mesh, clock });
        } else {
            mesh.recorded.told = withheld;
        }
        changed
    }

    /// Makes the trust of a mesh what it is to be now, and its status what it is.
    fn publish(&mut self, id: MeshId, now: Now) {
        self.put_trust_together(id, now);
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let news = mesh.publish(&self.setup.registry, &self.setup.options);
        let cell = Arc::clone(&mesh.cell);
        self.pause_lanes(id);
        self.tell_reach(id, &cell, &news.reach);
        if news.trust_changed {
            // The next tick stores it.
            self.clockwork.wake_by(now.up);
            let (mesh, version) = (cell.name.as_str(), cell.trust.load().version);
            let event = Event::TrustChanged { mesh, version };
            self.setup.observe(&event);
        }
    }

    /// Tells of CAs whose certificates peers accept from now on, or no longer.
    fn tell_reach(&mut self, id: MeshId, cell: &MeshCell, news: &[(BackendKey, Option<Error>)]) {
        let mesh = cell.name.as_str();
        for (backend, error) in news {
            if let Some(error) = error {
                tracing::warn!(mesh, %backend, %error, "peers would refuse what a CA signs, so nothing of it is handed out");
                self.setup.observe(&Event::BackendFailing {
                    mesh,
                    backend,
                    error,
                });
            } else if self.meshes.get(id).is_some_and(|it| it.is_set_up(backend)) {
                self.setup.observe(&Event::BackendReady { mesh, backend });
            }
        }
        if !news.is_empty() {
            self.review_mesh(id);
        }
    }

    /// Has each CA of a mesh sign if it may, and only then.
    fn pause_lanes(&mut self, id: MeshId) {
        let Some(mesh) = self.meshes.get(id) else {
            return;
        };
        for backend in mesh.backends.values() {
            let paused = !mesh.may_sign(backend);
            self.scheduler.pause(backend.lane, paused);
        }
    }

    fn warn_of_roots(&mut self, id: MeshId, now: Now) {
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let Some(soon) = now.wall.checked_add(self.setup.options.root_warning) else {
            return;
        };
        let ending = mesh.ledger.ending_before(soon);
        mesh.warned.retain(|warned| {
            let mut ending = ending.iter();
            ending.any(|(_, root)| root.fingerprint() == warned)
        });
        let news: Vec<_> = ending
            .into_iter()
            .filter(|(_, root)| mesh.warned.insert(root.fingerprint().to_owned()))
            .collect();
        let cell = Arc::clone(&mesh.cell);
        for (trust_domain, root) in news {
            self.setup.observe(&Event::RootEnding {
                mesh: &cell.name,
                trust_domain: &trust_domain,
                subject: &root.subject(),
                not_after: root.validity().not_after(),
            });
        }
    }

    fn gate(&self, name: &str) -> Result<TrustGate> {
        let (id, mesh) = self.meshes.find(name)?;
        let (_, version) = mesh.ledger.published();
        let (connected, lagging) = self.workloads.lagging(id, version);
        Ok(TrustGate {
            version,
            connected,
            lagging,
            returning: mesh.gate.returning.is_some(),
        })
    }

    fn break_glass(&mut self, name: &str, reason: &str) -> Result<()> {
        let (id, _) = self.meshes.find(name)?;
        tracing::error!(
            mesh = name,
            reason,
            "break glass: new roots are used although proxies have not acknowledged them"
        );
        self.setup
            .observe(&Event::BreakGlass { mesh: name, reason });
        if let Some(mesh) = self.meshes.get_mut(id) {
            mesh.gate.broken_glass = true;
        }
        let now = self.clockwork.now();
        self.look_after(id);
        self.publish(id, now);
        Ok(())
    }

    fn stats(&self) -> Stats {
        let mut stats = self.workloads.stats();
        stats.meshes = self.setup.shared.count_meshes();
        stats.in_flight = self.scheduler.in_flight();
        let meshes = self.meshes.iter();
        let lanes = meshes.flat_map(|(_, mesh)| mesh.backends.values());
        stats.open_breakers = lanes.filter(|it| self.scheduler.is_open(it.lane)).count();
        stats
    }
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
