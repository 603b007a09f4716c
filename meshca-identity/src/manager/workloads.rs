//! Workloads that are connected or remembered, and what each is to have.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use meshca_core::spiffe::Workload;
use meshca_core::{CertificateSpec, Identity};

use super::cell::WorkloadCell;
use super::health::{Health, Stats};
use super::ids::MeshId;
use crate::schedule::{Held, LaneId, Ticket};
use crate::trust::Holding;
use crate::{Acknowledged, TrustVersion};

/// One workload, connected or remembered. There may be a million: what can be worked out again is
/// not kept.
pub(super) struct Tracked {
    pub(super) ticket: Ticket,
    pub(super) mesh: MeshId,
    pub(super) name: Arc<str>,
    pub(super) workload: Arc<Workload>,
    pub(super) cell: Arc<WorkloadCell>,
    pub(super) handles: u32,
    pub(super) lane: LaneId,
    /// The certificate that it is to have. Two of them are compared by their numbers, so a review
    /// costs no comparison of names.
    pub(super) want: Option<Want>,
    /// The number of the certificate that it has.
    pub(super) held: Option<u64>,
    /// Who it was when it got its certificate: a name that is used again by somebody else must
    /// not get this one's key.
    pub(super) held_for: Option<Arc<Workload>>,
    /// The lane that its certificate came from, which is not always the one that the next comes
    /// from.
    pub(super) from: LaneId,
    /// Keeps the root of its certificate published.
    pub(super) under: Option<Holding>,
    pub(super) acknowledged: Acknowledged,
    /// The newest trust that it was sent, where that is told.
    pub(super) sent: Option<TrustVersion>,
    /// The newest trust that it has refused.
    pub(super) rejected: Option<TrustVersion>,
    /// Its mesh was removed: it gets nothing from one that comes under the same name.
    pub(super) removed: bool,
    /// When it is forgotten, without a handle.
    pub(super) lingers: Option<Duration>,
}

/// All workloads.
#[derive(Default)]
pub(super) struct Workloads {
    /// By the index of their tickets: in the order of memory, in which a storm of renewals goes
    /// through them.
    slots: Vec<Option<Tracked>>,
    names: HashMap<(MeshId, Arc<str>), Ticket>,
    /// The workloads of each mesh.
    members: HashMap<MeshId, BTreeSet<Ticket>>,
    /// Those without a handle, by when they are forgotten.
    lingering: BTreeSet<(Duration, Ticket)>,
}

impl Workloads {
    pub(super) fn get(&self, ticket: Ticket) -> Option<&Tracked> {
        let found = self.slots.get(ticket.index())?.as_ref()?;
        (found.ticket == ticket).then_some(found)
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Tracked> {
        let found = self.slots.get_mut(ticket.index())?.as_mut()?;
        (found.ticket == ticket).then_some(found)
    }

    fn iter(&self) -> impl Iterator<Item = &Tracked> {
        self.slots.iter().flatten()
    }

    pub(super) fn in_mesh(&self, mesh: MeshId) -> impl Iterator<Item = &Tracked> {
        let members = self.members.get(&mesh).into_iter().flatten();
        members.filter_map(|ticket| self.get(*ticket))
    }

    pub(super) fn tickets(&self, mesh: MeshId, choose: impl Fn(&Tracked) -> bool) -> Vec<Ticket> {
        let chosen = self.in_mesh(mesh).filter(|it| choose(it));
        chosen.map(|it| it.ticket).collect()
    }

    pub(super) fn any_in(&self, mesh: MeshId) -> bool {
        self.members.contains_key(&mesh)
    }

    pub(super) fn named(&self, mesh: MeshId, name: &Arc<str>) -> Option<Ticket> {
        self.names.get(&(mesh, Arc::clone(name))).copied()
    }

    /// When the next one is to be forgotten.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        self.lingering.first().map(|(until, _)| *until)
    }

    /// A workload whose time without a handle is over.
    pub(super) fn next_to_forget(&mut self, now: Duration) -> Option<Ticket> {
        let (until, ticket) = *self.lingering.first()?;
        (until <= now).then(|| {
            self.lingering.remove(&(until, ticket));
            ticket
        })
    }

    pub(super) fn lagging(
        &self,
        mesh: MeshId,
        version: TrustVersion,
    ) -> (usize, Vec<(String, Acknowledged)>) {
        let connected = || self.in_mesh(mesh).filter(|it| it.counts());
        let lagging = connected().filter(|it| it.acknowledged < version.into());
        let named = lagging.map(|it| (it.name.to_string(), it.acknowledged));
        (connected().count(), named.collect())
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for tracked in self.iter() {
            match tracked.cell.health() {
                Health::Pending => stats.pending += 1,
                Health::Fresh => stats.fresh += 1,
                Health::Stale => stats.stale += 1,
                Health::Expired => stats.expired += 1,
            }
        }
        stats
    }

    pub(super) fn insert(&mut self, tracked: Tracked) {
        let (ticket, index) = (tracked.ticket, tracked.ticket.index());
        let name = (tracked.mesh, Arc::clone(&tracked.name));
        self.members.entry(tracked.mesh).or_default().insert(ticket);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(tracked);
        }
        self.names.insert(name, ticket);
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Tracked> {
        self.get(ticket)?;
        let tracked = self.slots.get_mut(ticket.index())?.take()?;
        // Another one may have the name by now.
        let name = (tracked.mesh, Arc::clone(&tracked.name));
        if self.names.get(&name) == Some(&ticket) {
            self.names.remove(&name);
        }
        if let Some(members) = self.members.get_mut(&tracked.mesh) {
            members.remove(&ticket);
            if members.is_empty() {
                self.members.remove(&tracked.mesh);
            }
        }
        Some(tracked)
    }

    /// Has it forgotten at a time, or not.
    pub(super) fn linger(&mut self, ticket: Ticket, until: Option<Duration>) {
        let Some(tracked) = self.get_mut(ticket) else {
            return;
        };
        let before = std::mem::replace(&mut tracked.lingers, until);
        if let Some(before) = before {
            self.lingering.remove(&(before, ticket));
        }
        if let Some(until) = until {
            self.lingering.insert((until, ticket));
        }
    }
}

/// A certificate that is wanted.
#[derive(Clone)]
pub(super) struct Want {
    /// Stands for the CA and for all that is asked of it: the same number is the same certificate.
    pub(super) number: u64,
    pub(super) spec: CertificateSpec,
}

impl Tracked {
    /// Whether a proxy may be there: one that is connected, or that has lost its connection and
    /// still speaks with its peers.
    pub(super) fn counts(&self) -> bool {
        self.handles > 0 || self.acknowledged > Acknowledged::Nothing
    }

    /// Whether this is what it is to have.
    pub(super) fn wants(&self, number: u64) -> bool {
        self.want.as_ref().is_some_and(|it| it.number == number)
    }
}

/// A certificate as the scheduler sees it.
pub(super) fn held(identity: &Identity) -> Held {
    let certificate = identity.certificate();
    Held {
        issued_at: certificate.issued_at(),
        not_after: certificate.validity().not_after(),
    }
}
