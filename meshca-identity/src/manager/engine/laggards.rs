//! Proxies that do not acknowledge: naming them, and going on without one that would cost all others.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshca_core::{RotationStep, TrustBundle};

use super::Engine;
use crate::manager::backend::Backend;
use crate::manager::event::Event;
use crate::manager::ids::MeshId;
use crate::manager::mesh::Mesh;
use crate::manager::workloads::Tracked;
use crate::schedule::{LaneId, Now, Ticket};
use crate::{Acknowledged, BackendKey, TrustVersion};

/// How long a proxy may take to acknowledge before it is named: Envoy takes what it is sent into use within a second.
const NAMED_AFTER: Duration = Duration::from_secs(60);

/// How many are named of one version.
const NAMED: usize = 100;

/// The part of a mesh that may be left behind, at least one proxy: a twentieth. More than that is no fault of a few
/// proxies.
const FEW: usize = 20;

/// The label with the namespace of a workload on Kubernetes.
const NAMESPACE: &str = "k8s.kuma.io/namespace";

/// A CA that waits for proxies.
struct Waiting {
    backend: BackendKey,
    lane: LaneId,
    /// Everything from here on has the roots that are waited for.
    since: Acknowledged,
    /// The CA that signs is about to end, and its certificates get shorter and shorter: how long they live says nothing.
    ends: bool,
}

impl Engine {
    /// Names those who lag, and goes on without one that would cost all others.
    pub(super) fn watch_laggards(&mut self, id: MeshId, now: Now) {
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        if mesh.gate.is_off() {
            return;
        }
        let (_, version) = mesh.ledger.published();
        match mesh.gate.news_of(version, now.up, NAMED_AFTER) {
            Some(Ok(())) => self.name_laggards(id, version),
            Some(Err(at)) => self.clockwork.wake_by(at),
            None => {}
        }
        let Some(part) = self.setup.options.release_laggards_at else {
            return;
        };
        for waiting in self.waiting(id) {
            if self.cannot_be_renewed(id, &waiting, part, now.wall) {
                self.release_laggards(id, &waiting);
            }
        }
    }

    fn name_laggards(&self, id: MeshId, version: TrustVersion) {
        let Some(mesh) = self.meshes.cell(id) else {
            return;
        };
        let lagging = self.workloads.in_mesh(id).filter(|it| {
            it.handles > 0
                && it.acknowledged > Acknowledged::Nothing
                && it.acknowledged < version.into()
        });
        for tracked in lagging.take(NAMED) {
            let (mesh, workload, acknowledged) =
                (mesh.name.as_str(), &*tracked.name, tracked.acknowledged);
            tracing::warn!(mesh, workload, %acknowledged, %version, "a proxy does not acknowledge the trust of its mesh");
            self.setup.observe(&Event::ProxyLags {
                mesh,
                workload,
                acknowledged,
                version,
            });
        }
    }

    /// The CAs that sign nothing before proxies trust a root.
    fn waiting(&self, id: MeshId) -> Vec<Waiting> {
        let Some(mesh) = self.meshes.get(id) else {
            return Vec::new();
        };
        let of = |(key, backend): (&BackendKey, &_)| mesh.waits_for(key, backend);
        mesh.backends.iter().filter_map(of).collect()
    }

    /// Whether a certificate of this CA has passed the part of its life by which it should have had a successor
    /// for long. One that has ended without a successor has passed it too.
    fn cannot_be_renewed(&self, id: MeshId, waiting: &Waiting, part: f64, now: SystemTime) -> bool {
        let is_late = |tracked: &Tracked| {
            let identity = tracked.cell.identity();
            let identity = identity.filter(|_| tracked.lane == waiting.lane);
            identity.is_some_and(|identity| {
                let certificate = identity.certificate();
                let (from, end) = (certificate.issued_at(), certificate.validity().not_after());
                let mut life = end.duration_since(from).unwrap_or_default();
                if waiting.ends
                    && let Some(want) = &tracked.want
                {
                    life = life.max(want.spec.lifetime());
                }
                let rest = life.mul_f64(1.0 - part.clamp(0.0, 1.0));
                end.checked_sub(rest).is_none_or(|late| late <= now)
            })
        };
        self.workloads.in_mesh(id).any(is_late)
    }

    fn release_laggards(&mut self, id: MeshId, waiting: &Waiting) {
        let Some(mesh) = self.meshes.get(id) else {
            return;
        };
        let counted = || self.workloads.in_mesh(id).filter(|it| it.counts());
        let lagging: Vec<&Tracked> = counted()
            .filter(|it| it.acknowledged > Acknowledged::Nothing && it.acknowledged < waiting.since)
            .collect();
        let few = (counted().count() / FEW).max(1);
        // What it was sent has the roots that are waited for, and it is there and says nothing.
        let was_sent = |it: &&Tracked| {
            let sent = it.sent.map(Acknowledged::Version);
            it.handles > 0 && sent.is_some_and(|sent| sent >= waiting.since)
        };
        if lagging.is_empty()
            || lagging.len() > few
            || mesh.gate.returning.is_some()
            || mesh.gate.is_rejected_since(waiting.since)
            || !lagging.iter().all(was_sent)
        {
            return;
        }
        let lagging: Vec<Ticket> = lagging.into_iter().map(|it| it.ticket).collect();
        for ticket in lagging {
            self.release(ticket, waiting);
        }
    }

    fn release(&mut self, ticket: Ticket, waiting: &Waiting) {
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        // As one that has never acknowledged anything: it is waited for again when it does.
        let acknowledged = std::mem::take(&mut tracked.acknowledged);
        let (id, name) = (tracked.mesh, tracked.name.clone());
        if let Some(mesh) = self.meshes.cell(id) {
            let (mesh, workload) = (mesh.name.as_str(), &*name);
            let (backend, needed) = (&waiting.backend, waiting.since);
            tracing::warn!(mesh, workload, %backend, %acknowledged, %needed, "a new root is used without a proxy that does not answer");
            self.setup.observe(&Event::ProxyReleased {
                mesh,
                workload,
                backend,
                acknowledged,
                needed,
            });
        }
        self.count_acknowledgement(id, acknowledged, Acknowledged::Nothing);
    }

    /// A proxy was sent the trust of a version.
    pub(super) fn sent(&mut self, ticket: Ticket, version: TrustVersion) {
        if let Some(tracked) = self.workloads.get_mut(ticket) {
            tracked.sent = tracked.sent.max(Some(version));
        }
    }

    /// A proxy has refused the trust of a version.
    pub(super) fn rejected(&mut self, ticket: Ticket, version: TrustVersion) {
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        if tracked.rejected >= Some(version) {
            return;
        }
        tracked.rejected = Some(version);
        let (id, name, owner) = (tracked.mesh, tracked.name.clone(), tracked.owner());
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let suspected = mesh.gate.reject(version, owner);
        let Some(mesh) = self.meshes.cell(id) else {
            return;
        };
        let (mesh, workload) = (mesh.name.as_str(), &*name);
        tracing::warn!(mesh, workload, %version, "a proxy refuses the trust of its mesh");
        self.setup.observe(&Event::ProxyRefuses {
            mesh,
            workload,
            version,
        });
        if suspected {
            tracing::error!(mesh, %version, "proxies of several owners refuse the trust of their mesh");
            self.setup.observe(&Event::TrustSuspected { mesh, version });
        }
    }
}

impl Tracked {
    /// Whose proxy it is, as far as can be told: who runs a namespace, or else a service, decides what all of its proxies refuse.
    fn owner(&self) -> Arc<str> {
        if let Some(namespace) = self.workload.label(NAMESPACE) {
            return format!("namespace {namespace}").into();
        }
        match self.cell.identity() {
            Some(identity) => identity.spiffe_id().to_string().into(),
            None => Arc::clone(&self.name),
        }
    }
}

impl Mesh {
    /// What this CA waits for before it signs; `None` if it waits for no proxy.
    fn waits_for(&self, key: &BackendKey, backend: &Backend) -> Option<Waiting> {
        backend.life.signer()?;
        let (due, trusted) = self.next_step(key, backend);
        let activates = due == Some(RotationStep::Activate) && !trusted;
        let bundle: TrustBundle = match activates {
            true => backend.bundle.clone()?,
            false => self
                .signs_under(backend)
                .filter(|under| !self.gate.is_open_for(under, &self.ledger))?,
        };
        Some(Waiting {
            backend: key.clone(),
            lane: backend.lane,
            since: self.ledger.since(&bundle)?,
            ends: activates,
        })
    }
}
