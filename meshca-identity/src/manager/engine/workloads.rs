//! Workloads: who is connected, and what each is to have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::spiffe::Workload;
use meshca_core::{CertificateSpec, Error, ErrorKind, Result};

use super::Engine;
use crate::Acknowledged;
use crate::manager::cell::WorkloadCell;
use crate::manager::health::{Assignment, Health};
use crate::manager::ids::{CaRef, MeshId, number};
use crate::manager::workloads::{Tracked, Want, held};
use crate::migration::{Observed, ObservedProxy};
use crate::schedule::{LaneId, Priority, Ticket};
use crate::select::{Assigned, Selection, Source};
use crate::tls::{Proxy, TlsPolicy};

/// What a workload is to have.
pub(super) enum Target {
    /// A certificate of the CA of this lane.
    Issue { lane: LaneId, want: Want },
    /// Nothing yet. What it has, it keeps.
    Wait(String),
    /// A SPIRE agent gives it what it has.
    Agent,
    /// Nothing.
    Nothing,
}

impl Engine {
    pub(super) fn connect(
        &mut self,
        mesh: MeshId,
        name: Arc<str>,
        workload: Arc<Workload>,
        handle: bool,
    ) -> (Ticket, Arc<WorkloadCell>) {
        let up = self.clockwork.now().up;
        let is_removed = |ticket: &Ticket| self.workloads.get(*ticket).is_some_and(|it| it.removed);
        let named = self.workloads.named(mesh, &name);
        let (before, known) = (named.filter(is_removed), named.filter(|it| !is_removed(it)));
        let ticket = match known {
            Some(ticket) => {
                // Who is only expected says nothing about who is there.
                if handle || self.workloads.get(ticket).is_some_and(|it| it.handles == 0) {
                    if handle && self.is_somebody_else(ticket, &workload) {
                        // A name that is used again: nobody gets the key of who had it before.
                        self.take_away(ticket, Assignment::Waiting);
                    }
                    self.update(ticket, workload);
                }
                ticket
            }
            None => {
                let ticket = self.scheduler.insert(self.lanes.idle);
                self.workloads.insert(Tracked {
                    ticket,
                    mesh,
                    name,
                    workload,
                    cell: Arc::default(),
                    handles: u32::from(handle),
                    lane: self.lanes.idle,
                    want: None,
                    held: None,
                    held_for: None,
                    from: self.lanes.idle,
                    under: None,
                    acknowledged: Acknowledged::Nothing,
                    sent: None,
                    rejected: None,
                    removed: false,
                    lingers: None,
                });
                self.review(ticket);
                ticket
            }
        };
        if let Some(before) = before {
            // Whoever had this name in a mesh that was removed has what it holds. Not before the new one is
            // there: with its last workload the mesh would go.
            self.forget(before);
        }
        if handle {
            self.workloads.linger(ticket, None);
            self.scheduler.raise(ticket, Priority::First);
        } else if self.workloads.get(ticket).is_some_and(|it| it.handles == 0) {
            let until = up.saturating_add(self.setup.options.linger);
            self.workloads.linger(ticket, Some(until));
        }
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return (ticket, Arc::default());
        };
        if handle && known.is_some() {
            tracked.handles += 1;
        }
        (ticket, Arc::clone(&tracked.cell))
    }

    /// Whether what is held under a name was issued to somebody that this workload is not, by the resources as they are now: that they
    /// have changed since makes nobody another one.
    fn is_somebody_else(&self, ticket: Ticket, workload: &Workload) -> bool {
        let Some(tracked) = self.workloads.get(ticket) else {
            return false;
        };
        let Some(before) = &tracked.held_for else {
            return false;
        };
        if **before == *workload {
            return false;
        }
        let rules = self
            .meshes
            .get(tracked.mesh)
            .and_then(|it| it.rules.as_ref());
        let Some(rules) = rules else { return true };
        let who = |workload| rules.assign(workload, |_| Ok(())).spiffe_id().cloned();
        who(before).is_none_or(|before| who(workload) != Some(before))
    }

    pub(super) fn disconnect(&mut self, ticket: Ticket) {
        let up = self.clockwork.now().up;
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        tracked.handles = tracked.handles.saturating_sub(1);
        if tracked.handles > 0 {
            return;
        }
        // What it trusts still counts: a proxy that has lost its connection goes on speaking with its peers.
        let until = up.saturating_add(self.setup.options.linger);
        self.workloads.linger(ticket, Some(until));
    }

    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.scheduler.remove(ticket);
        let Some(tracked) = self.workloads.remove(ticket) else {
            return;
        };
        let before = tracked.acknowledged;
        self.count_acknowledgement(tracked.mesh, before, Acknowledged::Nothing);
        self.forget_mesh_if_empty(tracked.mesh);
    }

    pub(super) fn update(&mut self, ticket: Ticket, workload: Arc<Workload>) {
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        if tracked.workload != workload {
            tracked.workload = workload;
            self.review(ticket);
        }
    }

    pub(super) fn acknowledge(&mut self, ticket: Ticket, acknowledged: Acknowledged) {
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        let Some(mesh) = self.meshes.get(tracked.mesh) else {
            return;
        };
        // A version that was never published is of another process, or a mistake: it says nothing.
        let (_, published) = mesh.ledger.published();
        if acknowledged <= tracked.acknowledged || acknowledged > published.into() {
            return;
        }
        let before = std::mem::replace(&mut tracked.acknowledged, acknowledged);
        let mesh = tracked.mesh;
        self.count_acknowledgement(mesh, before, acknowledged);
    }

    pub(super) fn count_acknowledgement(
        &mut self,
        id: MeshId,
        before: Acknowledged,
        after: Acknowledged,
    ) {
        let mesh = self.meshes.get_mut(id);
        if mesh.is_some_and(|mesh| mesh.gate.count(before, after)) {
            self.pause_lanes(id);
            // A rotation may have waited for this.
            self.clockwork.wake_by(Duration::ZERO);
        }
    }

    pub(super) fn explain(&self, ticket: Ticket) -> Result<Selection> {
        let found = self.workloads.get(ticket).and_then(|tracked| {
            let mesh = self.meshes.get(tracked.mesh)?;
            let rules = mesh.rules.as_ref()?;
            Some(rules.select(&tracked.workload, |it| mesh.readiness(it)))
        });
        found.ok_or_else(not_applied)
    }

    /// What a plan for moving the mesh wants to know.
    pub(super) fn observed(&self, name: &str) -> Result<Observed> {
        let (id, mesh) = self.meshes.find(name)?;
        let resources = mesh.resources.clone().ok_or_else(not_applied)?;
        let mut observed = Observed::new(resources);
        observed.returning = mesh.gate.returning.is_some();
        let (_, published) = mesh.ledger.published();
        let mut since = Vec::new();
        for (key, backend) in &mesh.backends {
            let trusted = backend.reach.needed();
            if let Some(least) = trusted.and_then(|it| mesh.ledger.since(&it)) {
                since.push((key, least));
                if mesh.is_set_up(key) {
                    observed.ready.insert(key.clone());
                }
            }
        }
        // By what is acknowledged, which is the same for most.
        let mut left = BTreeMap::new();
        for tracked in self.workloads.in_mesh(id) {
            if !tracked.counts() {
                continue;
            }
            let acknowledged = mesh.gate.taken_for(tracked.acknowledged, published);
            let dataplane = Proxy::new(&*tracked.name, Workload::clone(&tracked.workload));
            let mut proxy = ObservedProxy::new(dataplane);
            proxy.connected = tracked.handles > 0;
            let trusted = since.iter().filter(|(_, least)| *least <= acknowledged);
            proxy.trusts = trusted.map(|(key, _)| (*key).clone()).collect();
            // Of a CA that is not there any more it may still hold the roots, which must be seen to be gone.
            let left = left.entry(acknowledged).or_insert_with(|| {
                let mut left = mesh.ledger.left(acknowledged);
                left.retain(|key| !mesh.backends.contains_key(*key));
                left
            });
            proxy.trusts.extend(left.iter().map(|key| (*key).clone()));
            proxy.holds = match tracked.cell.identity() {
                Some(_) => self
                    .lanes
                    .owner(tracked.from)
                    .map(|(_, key)| (**key).clone()),
                None => None,
            };
            proxy.mode = TlsPolicy::mode_of(&observed.resources, &proxy.proxy).value;
            observed.proxies.push(proxy);
        }
        Ok(observed)
    }

    pub(super) fn target(&self, tracked: &Tracked) -> Target {
        let waits = |why: &str| Target::Wait(why.to_owned());
        if tracked.removed {
            return waits("its mesh was removed: it has to connect again");
        }
        let Some(mesh) = self.meshes.get(tracked.mesh) else {
            return waits("its mesh is gone");
        };
        let Some(rules) = &mesh.rules else {
            return waits("the resources of its mesh have not been applied, or it was removed");
        };
        let assigned = rules.assign(&tracked.workload, |it| mesh.readiness(it));
        let (found, id) = match assigned {
            Assigned::Modern {
                source: Source::Spire { .. },
                ..
            } => return Target::Agent,
            Assigned::Modern {
                identity,
                spiffe_id,
                ..
            } => (mesh.modern(&identity.metadata.name), spiffe_id),
            Assigned::Classic { backend, spiffe_id } => (mesh.classic(&backend), spiffe_id),
            Assigned::Waiting { why, .. } => return Target::Wait(why),
            Assigned::Nothing(_) => return Target::Nothing,
        };
        let Some((_, backend)) = found else {
            return waits("its CA cannot be set up: see the resources of its mesh");
        };
        if let (None, Some(error)) = (backend.life.issuer(), backend.life.error()) {
            return Target::Wait(error.to_string());
        }
        if let Some(error) = &backend.reach.refused {
            return Target::Wait(error.to_string());
        }
        match backend
            .wanted
            .config
            .certificate_spec(id, &tracked.workload)
        {
            Ok(spec) => Target::Issue {
                lane: backend.lane,
                want: Want {
                    number: number_of(backend.uid, &spec),
                    spec,
                },
            },
            Err(error) => Target::Wait(error.to_string()),
        }
    }

    pub(super) fn review_mesh(&mut self, id: MeshId) {
        for ticket in self.workloads.tickets(id, |_| true) {
            self.review(ticket);
        }
    }

    /// Works out anew what a workload is to have, and has issued what it does not.
    pub(super) fn review(&mut self, ticket: Ticket) {
        let Some(tracked) = self.workloads.get(ticket) else {
            return;
        };
        let target = self.target(tracked);
        let wall = self.clockwork.now().wall;
        let idle = self.lanes.idle;
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        let cell = Arc::clone(&tracked.cell);
        match target {
            Target::Issue { lane, want } => {
                let mut news = cell.set_assignment(Assignment::Issuer);
                if news {
                    // What was waited for is there.
                    cell.set_error(None);
                }
                if tracked.wants(want.number) && tracked.lane == lane {
                    return;
                }
                let holds = tracked.held == Some(want.number);
                tracked.want = Some(want);
                tracked.lane = lane;
                let valid = cell
                    .identity()
                    .filter(|it| it.certificate().validity().not_after() > wall);
                match valid {
                    Some(identity)
                        if holds && self.meshes.names_root(&self.lanes, lane, &identity) =>
                    {
                        self.scheduler.adopt(ticket, lane, held(&identity));
                        cell.set_error(None);
                        news |= cell.set_health(Health::Fresh);
                    }
                    Some(_) => self.scheduler.reissue(ticket, lane, Priority::Renewal),
                    None if tracked.handles == 0 => {
                        self.scheduler.reissue(ticket, lane, Priority::Prefetch);
                    }
                    None => self.scheduler.reissue(ticket, lane, Priority::First),
                }
                if news {
                    cell.announce();
                }
            }
            Target::Wait(why) => {
                tracked.want = None;
                tracked.lane = idle;
                self.scheduler.rest(ticket, idle, false);
                cell.set_error(Some(Error::new(ErrorKind::InvalidConfig, why)));
                if cell.set_assignment(Assignment::Waiting) {
                    cell.announce();
                }
            }
            Target::Agent => self.take_away(ticket, Assignment::Agent),
            Target::Nothing => self.take_away(ticket, Assignment::Nobody),
        }
    }

    /// The operator decided that it has nothing from us.
    fn take_away(&mut self, ticket: Ticket, assignment: Assignment) {
        self.scheduler.rest(ticket, self.lanes.idle, true);
        let idle = self.lanes.idle;
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        tracked.want = None;
        tracked.held = None;
        tracked.held_for = None;
        tracked.under = None;
        tracked.lane = idle;
        let cell = Arc::clone(&tracked.cell);
        let before = cell.set_identity(None);
        cell.set_error(None);
        let healthy = cell.set_health(Health::Pending);
        if cell.set_assignment(assignment) || before.is_some() || healthy {
            cell.announce();
        }
    }

    /// The workloads of a mesh that is removed keep what they hold. They are forgotten as if they had lost their
    /// connection, which is to be ended.
    pub(super) fn detach(&mut self, id: MeshId) {
        let Some(cell) = self.meshes.cell(id) else {
            return;
        };
        let trust = cell.trust.load_full();
        let until = self
            .clockwork
            .now()
            .up
            .saturating_add(self.setup.options.linger);
        for ticket in self.workloads.tickets(id, |it| !it.removed) {
            self.workloads.linger(ticket, Some(until));
            if let Some(tracked) = self.workloads.get_mut(ticket) {
                tracked.removed = true;
                tracked.cell.remove(Arc::clone(&trust));
                tracked.cell.announce();
            }
            self.review(ticket);
        }
    }

    /// A CA is gone.
    pub(super) fn move_to_idle(&mut self, mesh: MeshId, lane: LaneId) {
        let idle = self.lanes.idle;
        for ticket in self.workloads.tickets(mesh, |it| it.lane == lane) {
            self.scheduler.rest(ticket, idle, false);
            if let Some(tracked) = self.workloads.get_mut(ticket) {
                tracked.lane = idle;
                tracked.want = None;
            }
        }
    }

    /// A CA has other roots: whoever holds something under one that it does not stand for any more gets something new.
    pub(super) fn reissue_those_without_root(&mut self, ca: &CaRef) {
        let Some(backend) = self.meshes.backend(ca) else {
            return;
        };
        let (lane, reach) = (backend.lane, &backend.reach);
        let without = self.workloads.tickets(ca.mesh, |it| {
            let identity = it.cell.identity().filter(|_| it.lane == lane);
            identity.is_some_and(|identity| !reach.names(identity.certificate().root()))
        });
        for ticket in without {
            if let Some(tracked) = self.workloads.get_mut(ticket) {
                tracked.held = None;
            }
            self.scheduler.reissue(ticket, lane, Priority::Renewal);
        }
    }
}

fn not_applied() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "the resources of this mesh have not been applied, or it was removed",
    )
}

/// The number of a certificate: it stands for the CA and for all that is asked of it.
fn number_of(uid: u64, spec: &CertificateSpec) -> u64 {
    number(&(
        (uid, spec.spiffe_id(), spec.lifetime()),
        (spec.lifetime_policy(), spec.key_type()),
        (spec.common_name(), spec.dns_names(), spec.uris()),
    ))
}
