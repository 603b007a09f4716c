//! CAs: what the resources want of them, and the effects of what they live through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::BuildContext;
use meshca_core::{Error, Result};

use super::Engine;
use crate::BackendKey;
use crate::ca::{self, Effect, Pace, Task};
use crate::manager::backend::{Backend, Wanted};
use crate::manager::event::Event;
use crate::manager::ids::{CaRef, MeshId};
use crate::manager::job::{self, Before, Done, LiveCa, Roots};
use crate::manager::options::ManagerOptions;
use crate::trust::Origin;

/// How long a CA may take to be set up, or to say which roots it has.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a CA whose key somebody else made is read again from where it is kept, if nobody says that it has changed.
const REREAD: Duration = Duration::from_secs(300);

fn pace<'a>(options: &'a ManagerOptions, ca: Option<&LiveCa>) -> Pace<'a> {
    Pace {
        look: options.trust_refresh,
        least: ca.map(|ca| ca.trust_interval).unwrap_or_default(),
        reread: REREAD,
        backoff: &options.schedule,
    }
}

impl Engine {
    /// Makes the CAs of a mesh those that the resources name. Of those in `wrong` it can only be reported why there is none.
    pub(super) fn take_backends(
        &mut self,
        id: MeshId,
        wanted: BTreeMap<BackendKey, Wanted>,
        wrong: &[(BackendKey, Error)],
    ) {
        let Some(mesh) = self.meshes.get(id) else {
            return;
        };
        for (backend, error) in wrong {
            self.setup.observe(&Event::BackendFailing {
                mesh: &mesh.cell.name,
                backend,
                error,
            });
        }
        let keys = mesh.backends.keys();
        let gone = keys.filter(|key| !wanted.contains_key(*key));
        for key in gone.cloned().collect::<Vec<_>>() {
            self.drop_backend(id, &key);
        }
        for (key, wanted) in wanted {
            self.take_backend(id, key, wanted);
        }
    }

    fn take_backend(&mut self, id: MeshId, key: BackendKey, wanted: Wanted) {
        let epoch = self.meshes.next_epoch();
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let Some(backend) = mesh.backends.get_mut(&key) else {
            let lane = self.lanes.open(&mut self.scheduler, id, &key);
            let new = Backend::new(&key, wanted, lane, epoch);
            mesh.backends.insert(key, new);
            return;
        };
        if !wanted.is_same_ca(&backend.wanted) {
            // The former CA's certificates are not what is wanted now, so nothing more of it is signed.
            *backend = Backend::new(&key, wanted, backend.lane, epoch);
            mesh.ledger.unset(&Origin::Backend(key));
            return;
        }
        backend.wanted.distributed = wanted.distributed;
        if backend.wanted.wish == wanted.wish {
            return;
        }
        let rereads = wanted.is_given();
        backend.wanted = wanted;
        let lane = backend.lane;
        if let Some((ca, _)) = self.meshes.of_lane(&self.lanes, lane) {
            self.tell(&ca, ca::Event::Changed { epoch, rereads }, None);
        }
    }

    /// Forgets a CA that the resources do not name any more. Its certificates are served while they are valid.
    pub(super) fn drop_backend(&mut self, id: MeshId, key: &BackendKey) {
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let Some(backend) = mesh.backends.remove(key) else {
            return;
        };
        mesh.ledger.unset(&Origin::Backend(key.clone()));
        self.scheduler.pause(backend.lane, true);
        self.move_to_idle(id, backend.lane);
        self.lanes.retire(backend.lane);
    }

    /// Has the CAs of a mesh do what is due.
    pub(super) fn look_after(&mut self, id: MeshId) {
        let Some(mesh) = self.meshes.get(id) else {
            return;
        };
        let idle = mesh.backends.iter().filter(|(_, it)| it.life.is_idle());
        let ticks: Vec<_> = idle
            .map(|(key, backend)| (backend.lane, mesh.tick(key, backend)))
            .collect();
        for (lane, tick) in ticks {
            if let Some((ca, _)) = self.meshes.of_lane(&self.lanes, lane) {
                self.tell(&ca, tick, None);
            }
        }
    }

    /// Has all CAs looked at again, since secrets may have changed.
    pub(super) fn secrets_changed(&mut self, told: bool) {
        let lanes = self.meshes.iter().flat_map(|(_, it)| it.backends.values());
        for lane in lanes.map(|it| it.lane).collect::<Vec<_>>() {
            if let Some((ca, _)) = self.meshes.of_lane(&self.lanes, lane) {
                self.tell(&ca, ca::Event::SecretsChanged { told }, None);
            }
        }
    }

    pub(super) fn built(&mut self, ca: &CaRef, result: Result<(LiveCa, Roots)>) {
        let (result, roots) = match result {
            Ok((live, roots)) => (Ok(live), Some(roots)),
            Err(error) => (Err(error), None),
        };
        let epoch = ca.epoch;
        self.tell(ca, ca::Event::Built { epoch, result }, roots);
    }

    pub(super) fn asked(&mut self, ca: &CaRef, result: Result<Roots>) {
        let (result, roots) = match result {
            Ok(roots) => (Ok(()), Some(roots)),
            Err(error) => (Err(error), None),
        };
        let epoch = ca.epoch;
        self.tell(ca, ca::Event::Asked { epoch, result }, roots);
    }

    /// Tells a CA of an event that may have brought roots, and does what follows from it.
    pub(super) fn tell(
        &mut self,
        ca: &CaRef,
        event: ca::Event<LiveCa, Error>,
        mut roots: Option<Roots>,
    ) {
        let now = self.clockwork.now();
        let Some(backend) = self.meshes.backend_mut(ca) else {
            return;
        };
        let live = match &event {
            ca::Event::Built { result, .. } => result.as_ref().ok(),
            _ => backend.life.issuer(),
        };
        let pace = pace(&self.setup.options, live);
        let effects = backend.life.on(event, now.up, &pace);
        if let Some(at) = backend.life.next_wake(now.up) {
            self.clockwork.wake_by(at);
        }
        let lane = backend.lane;
        let Some(cell) = self.meshes.cell(ca.mesh) else {
            return;
        };
        let (mesh, backend) = (cell.name.as_str(), &*ca.key);
        let mut published = false;
        for effect in effects {
            match effect {
                Effect::Start(task) => self.start(ca, task),
                Effect::TakeRoots => {
                    if let Some(roots) = roots.take() {
                        published = self.take_roots(ca, roots);
                    }
                }
                Effect::Publish if published => {}
                Effect::Publish => self.publish(ca.mesh, now),
                Effect::Resume => self.scheduler.wake_lane(lane),
                Effect::Review => self.review_mesh(ca.mesh),
                Effect::Ready => self.setup.observe(&Event::BackendReady { mesh, backend }),
                Effect::Rotated(step) => self.setup.observe(&Event::Rotated {
                    mesh,
                    backend,
                    step,
                }),
                Effect::Failing(error) => self.setup.observe(&Event::BackendFailing {
                    mesh,
                    backend,
                    error: &error,
                }),
            }
        }
    }

    fn start(&mut self, ca: &CaRef, task: Task) {
        let Some(mesh) = self.meshes.get(ca.mesh) else {
            return;
        };
        let Some(backend) = mesh.backends.get(&*ca.key) else {
            return;
        };
        let ca = CaRef {
            epoch: backend.life.epoch(),
            ..ca.clone()
        };
        let before = Before {
            bundle: mesh.ledger.said(&ca.key).cloned(),
            mesh: mesh.cell.name.clone(),
            secrets: Arc::clone(&self.setup.secrets),
        };
        let panicked = ca.clone();
        match (task, backend.life.issuer().cloned()) {
            (Task::Build, _) => {
                let context = BuildContext::new(
                    mesh.cell.name.clone(),
                    backend.wanted.trust_domain.clone(),
                    Arc::clone(&self.setup.secrets),
                    Arc::clone(&self.setup.shared.clock),
                )
                .with_local_sources(self.setup.options.local_sources);
                let registry = Arc::clone(&self.setup.registry);
                let config = backend.wanted.config.clone();
                let layers = self.setup.layers.clone();
                let build = async move {
                    let result = job::build(registry, config, context, layers, before, LIMIT).await;
                    Done::Built { ca, result }
                };
                self.clockwork.start(build, |error| Done::Built {
                    ca: panicked,
                    result: Err(error),
                });
            }
            (_, Some(live)) => {
                let ask = async move {
                    let result = match task {
                        Task::Rotate(step) => job::rotate(live, step, before, LIMIT).await,
                        _ => job::look(live, before, LIMIT).await,
                    };
                    Done::Asked { ca, result }
                };
                self.clockwork.start(ask, |error| Done::Asked {
                    ca: panicked,
                    result: Err(error),
                });
            }
            // Without an issuer there is nothing to ask.
            (_, None) => {}
        }
    }

    /// Takes the roots of a CA, and says whether it has published because they are others than before.
    pub(super) fn take_roots(&mut self, ca: &CaRef, roots: Roots) -> bool {
        let Roots { bundle, record } = roots;
        let now = self.clockwork.now();
        let Some(mesh) = self.meshes.get_mut(ca.mesh) else {
            return false;
        };
        let Some(backend) = mesh.backends.get_mut(&*ca.key) else {
            return false;
        };
        let changed = backend.bundle.as_ref() != Some(&bundle);
        // A root that the CA does not name any more is not the one that it will sign under.
        backend
            .signs_under
            .take_if(|root| !bundle.contains(root.der()));
        backend.bundle = Some(bundle.clone());
        let distributed = backend.wanted.distributed;
        if let Some(record) = record {
            for used in record.beyond(&[&mesh.recorded.stored]) {
                mesh.ledger.share(used);
            }
        }
        let origin = Origin::Backend((*ca.key).clone());
        match distributed {
            true => mesh.ledger.set(origin, bundle),
            false => mesh.ledger.unset(&origin),
        }
        if changed {
            self.publish(ca.mesh, now);
            self.reissue_those_without_root(ca);
            if !distributed {
                // Whether it can issue depends on what MeshTrusts say of its roots.
                self.review_mesh(ca.mesh);
            }
        }
        changed
    }
}
