//! CAs: what the resources want of them, and the effects of what they live through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::{BuildContext, NewCa};
use meshca_core::{Error, ErrorKind, Result, RotationStep};

use super::Engine;
use crate::BackendKey;
use crate::ca::{Effect, Pace, Task};
use crate::manager::backend::{Backend, Wanted};
use crate::manager::checkup;
use crate::manager::event::Event;
use crate::manager::ids::{CaRef, MeshId};
use crate::manager::job::{self, Before, Done, LiveCa, Roots};
use crate::manager::options::ManagerOptions;
use crate::schedule::Fault;
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

fn split<T>(result: Result<(T, Roots)>) -> (Result<T>, Option<Roots>) {
    match result {
        Ok((other, roots)) => (Ok(other), Some(roots)),
        Err(error) => (Err(error), None),
    }
}

/// Logs why a CA fails, unless it failed like that before.
fn log_news(ca: &CaRef, backend: &Backend, error: Option<&Error>) {
    let before = backend.life.error().map(Error::message);
    if let Some(error) = error.filter(|error| Some(error.message()) != before) {
        let backend = &*ca.key;
        tracing::warn!(%backend, %error, "a CA fails; what worked before continues");
    }
}

impl Engine {
    /// Makes the CAs of a mesh those that the resources name. Of those in `wrong` it can only be
    /// reported why there is none.
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
            // The former CA's certificates are not what is wanted now, so nothing more of it is
            // signed.
            *backend = Backend::new(&key, wanted, backend.lane, epoch);
            backend.replaces = true;
            mesh.ledger.unset(&Origin::Backend(key));
            return;
        }
        backend.wanted.distributed = wanted.distributed;
        if backend.wanted.wish == wanted.wish {
            return;
        }
        backend.life.change(epoch, wanted.is_given());
        // The CA was the operator's, and is ours to make now.
        backend.replaces |= backend.wanted.is_given() && !wanted.is_given();
        backend.wanted = wanted;
    }

    /// Forgets a CA that the resources do not name any more. Its certificates are served while
    /// they are valid.
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
        let now = self.clockwork.now();
        let up = now.up;
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let (clock_agrees, lanes) = (mesh.clock(now).is_some(), mesh.lanes());
        for lane in lanes {
            let Some((ca, backend)) = self.meshes.of_lane(&self.lanes, lane) else {
                continue;
            };
            if backend.life.is_idle()
                && let Some(mesh) = self.meshes.get(id)
            {
                let (due, trusted) = mesh.next_step(&ca.key, backend);
                // A former CA that is gone is gone for all, and a clock that is ahead says so too early.
                let due = due.filter(|it| clock_agrees || *it != RotationStep::Retire);
                if let Some(backend) = self.meshes.backend_mut(&ca)
                    && let Some(task) = backend.life.tick(due, trusted, up)
                {
                    self.start(&ca, task);
                }
            }
            self.check(&ca, up);
            self.wake_for(&ca, up);
        }
    }

    /// Has the next tick come no later than this CA needs it.
    fn wake_for(&mut self, ca: &CaRef, up: Duration) {
        let Some(backend) = self.meshes.backend(ca) else {
            return;
        };
        let checkup = backend.life.signer().and(backend.checkup.next());
        let wakes = [backend.life.next_wake(up), checkup];
        for at in wakes.into_iter().flatten() {
            self.clockwork.wake_by(at);
        }
    }

    /// Has a CA say whether it would sign, if that is due.
    fn check(&mut self, ca: &CaRef, up: Duration) {
        let Some(backend) = self.meshes.backend_mut(ca) else {
            return;
        };
        let Some(live) = backend.life.signer().cloned() else {
            return;
        };
        if !backend.checkup.begins(up) {
            return;
        }
        let (ca, panicked) = (ca.clone(), ca.clone());
        let check = async move {
            let result = job::check(live, LIMIT).await;
            Done::Checked { ca, result }
        };
        self.clockwork.start(check, |error| Done::Checked {
            ca: panicked,
            result: Err(error),
        });
    }

    /// What a CA has said. It decides on nothing but when it is asked again: a signature says more.
    pub(super) fn checked(&mut self, ca: &CaRef, result: Result<()>) {
        let up = self.clockwork.now().up;
        let Some(backend) = self.meshes.backend_mut(ca) else {
            return;
        };
        let lane = backend.lane;
        let is_outage = self.scheduler.is_outage(lane);
        let error = result.err();
        let fault = error.as_ref().map(|error| Fault::of(error.kind()));
        let is_away = fault == Some(Fault::Unreachable);
        let least = backend.life.issuer().map(|ca| ca.trust_interval);
        let wait = match is_away && is_outage {
            true => checkup::OUTAGE,
            false => checkup::EVERY.max(least.unwrap_or_default()),
        };
        let is_back = backend.checkup.ended(up.saturating_add(wait), is_away);
        let refused = backend.checkup.refuses();
        let is_news = !is_away && backend.checkup.is_news(error.as_ref());
        if let Some(cell) = self.meshes.cell(ca.mesh).filter(|_| is_news)
            && (refused || error.is_some())
        {
            let (mesh, backend) = (cell.name.as_str(), &*ca.key);
            let error = error.as_ref();
            self.setup.observe(&Event::Checked {
                mesh,
                backend,
                error,
            });
        }
        if is_news || (is_outage && is_back) {
            self.scheduler.begin_anew(lane);
        }
        self.wake_for(ca, up);
    }

    /// A CA that does not answer is asked again soon, without having it sign.
    pub(super) fn watch_outage(&mut self, ca: &CaRef, up: Duration) {
        let Some(backend) = self.meshes.backend_mut(ca) else {
            return;
        };
        if self.scheduler.is_outage(backend.lane) {
            let soon = up.saturating_add(checkup::OUTAGE);
            backend.checkup.no_later_than(soon);
            self.wake_for(ca, up);
        }
    }

    /// Has all CAs looked at again, since secrets may have changed.
    pub(super) fn secrets_changed(&mut self, told: bool) {
        let up = self.clockwork.now().up;
        for mesh in self.meshes.iter_mut() {
            for backend in mesh.backends.values_mut() {
                backend.life.secrets_changed(told, up);
                if told {
                    self.scheduler.begin_anew(backend.lane);
                }
            }
        }
        self.clockwork.wake_by(up);
    }

    /// Has a CA looked at again, which signed under a root that it had not named.
    pub(super) fn look_now(&mut self, ca: &CaRef) {
        let up = self.clockwork.now().up;
        if let Some(backend) = self.meshes.backend_mut(ca) {
            backend.life.look_now(up);
        }
        self.wake_for(ca, up);
    }

    pub(super) fn built(&mut self, ca: &CaRef, result: Result<(LiveCa, Roots)>) {
        let up = self.clockwork.now().up;
        if let Ok((live, _)) = &result {
            self.tell_of_new(ca, live);
        }
        let Some(backend) = self.meshes.backend_mut(ca) else {
            return;
        };
        let (result, roots) = split(result);
        log_news(ca, backend, result.as_ref().err());
        let pace = pace(&self.setup.options, result.as_ref().ok());
        if result.is_ok() && backend.life.epoch() == ca.epoch {
            backend.is_set_up();
        }
        let effects = backend.life.built(ca.epoch, result, up, &pace);
        self.carry_out(ca, effects, roots);
    }

    /// A CA that was made is told of, whether or not the resources still want it.
    fn tell_of_new(&self, ca: &CaRef, live: &LiveCa) {
        let (Some(root), Some(cell)) = (&live.new_root, self.meshes.cell(ca.mesh)) else {
            return;
        };
        let (mesh, backend) = (cell.name.as_str(), &*ca.key);
        let (subject, fingerprint) = (&*root.subject(), root.fingerprint());
        tracing::warn!(mesh, %backend, subject, fingerprint, "a new CA was made");
        self.setup.observe(&Event::CaCreated {
            mesh,
            backend,
            subject,
            fingerprint,
        });
    }

    pub(super) fn confirm_new_ca(
        &mut self,
        mesh: &str,
        backend: &BackendKey,
        reason: &str,
    ) -> Result<()> {
        let now = self.clockwork.now();
        let (id, found) = self.meshes.find(mesh)?;
        let found = found.backends.get(backend);
        let life = &found.ok_or_else(|| no_such_ca(mesh, backend))?.life;
        if life.issuer().is_some() && life.error().is_none() {
            let why = "the CA works: there is nothing to confirm";
            let error = Error::new(ErrorKind::InvalidRequest, why);
            let error = error.with_context("mesh", mesh.to_owned());
            return Err(error.with_context("backend", backend));
        }
        tracing::warn!(mesh, %backend, reason, "a new CA was confirmed in the place of one that is lost");
        self.setup.observe(&Event::NewCaConfirmed {
            mesh,
            backend,
            reason,
        });
        let found = self.meshes.get_mut(id);
        if let Some(backend) = found.and_then(|mesh| mesh.backends.get_mut(backend)) {
            backend.confirmed = true;
            backend.life.set_up_again(now.up);
        }
        self.look_after(id);
        Ok(())
    }

    /// Somebody has seen to a CA: nothing that failed is waited for.
    pub(super) fn try_now(&mut self, mesh: &str, backend: &BackendKey) -> Result<()> {
        let up = self.clockwork.now().up;
        let (id, _) = self.meshes.find(mesh)?;
        let found = self.meshes.get_mut(id);
        let found = found.and_then(|mesh| mesh.backends.get_mut(backend));
        let found = found.ok_or_else(|| no_such_ca(mesh, backend))?;
        let lane = found.lane;
        found.life.set_up_again(up);
        self.scheduler.begin_anew(lane);
        self.look_after(id);
        Ok(())
    }

    pub(super) fn asked(&mut self, ca: &CaRef, result: Result<Roots>) {
        let up = self.clockwork.now().up;
        // Its roots count also where it could not be set up again.
        let result = match result {
            Ok(mut roots) => match roots.trouble.take() {
                Some(trouble) => {
                    if self.meshes.current(ca).is_some() {
                        self.take_roots(ca, roots);
                    }
                    Err(trouble)
                }
                None => Ok(roots),
            },
            Err(error) => Err(error),
        };
        let Some(backend) = self.meshes.backend_mut(ca) else {
            return;
        };
        let (result, roots) = split(result.map(|roots| ((), roots)));
        log_news(ca, backend, result.as_ref().err());
        let pace = pace(&self.setup.options, backend.life.issuer());
        let effects = backend.life.asked(ca.epoch, result, up, &pace);
        self.carry_out(ca, effects, roots);
    }

    /// Does what follows from the end of a task, which may have brought roots.
    fn carry_out(&mut self, ca: &CaRef, effects: Vec<Effect<Error>>, mut roots: Option<Roots>) {
        let now = self.clockwork.now();
        self.wake_for(ca, now.up);
        let (Some(cell), Some(lane)) = (
            self.meshes.cell(ca.mesh),
            self.meshes.backend(ca).map(|backend| backend.lane),
        ) else {
            return;
        };
        let (mesh, backend) = (cell.name.as_str(), &*ca.key);
        let mut published = false;
        for effect in effects {
            match effect {
                Effect::TakeRoots => {
                    let roots = roots.take();
                    published = roots.is_some_and(|roots| self.take_roots(ca, roots));
                }
                Effect::Publish if published => {}
                Effect::Publish => self.publish(ca.mesh, now),
                Effect::Resume => self.scheduler.begin_anew(lane),
                Effect::Review => self.review_mesh(ca.mesh),
                Effect::Ready => {
                    let found = self.meshes.get(ca.mesh);
                    if found.is_some_and(|it| it.is_set_up(backend)) {
                        self.setup.observe(&Event::BackendReady { mesh, backend });
                    }
                }
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
        let new_ca = match task {
            Task::Build => self.new_ca(ca),
            _ => NewCa::default(),
        };
        let Some(mesh) = self.meshes.get(ca.mesh) else {
            return;
        };
        let Some(backend) = mesh.backends.get(&*ca.key) else {
            return;
        };
        let ca = ca.clone();
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
                .with_new_ca(new_ca)
                .with_local_sources(self.setup.options.local_sources.clone());
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

    /// Whether this CA may be made if it is not there.
    fn new_ca(&mut self, ca: &CaRef) -> NewCa {
        let mesh = self.meshes.get(ca.mesh);
        let witness = mesh.and_then(|mesh| mesh.witness(&ca.key));
        let backend = self.meshes.backend_mut(ca);
        backend.map_or_else(NewCa::default, |backend| backend.new_ca(witness))
    }

    /// Takes the roots of a CA, and says whether it has published because they are others than
    /// before.
    pub(super) fn take_roots(&mut self, ca: &CaRef, roots: Roots) -> bool {
        let Roots { bundle, record, .. } = roots;
        let now = self.clockwork.now();
        let Some(mesh) = self.meshes.get_mut(ca.mesh) else {
            return false;
        };
        let Some(backend) = mesh.backends.get_mut(&*ca.key) else {
            return false;
        };
        let changed = backend.bundle.as_ref() != Some(&bundle);
        // A root that the CA does not name any more is not the one that it will sign under. (It may
        // never have named it, if peers had it from elsewhere.)
        backend
            .signs_under
            .take_if(|root| changed && !bundle.contains(root.der()));
        backend.bundle = Some(bundle.clone());
        let (distributed, lane) = (backend.wanted.distributed, backend.lane);
        if let Some(record) = record {
            for (_, used) in mesh.recorded.claims.others(&record) {
                mesh.ledger.share(used);
            }
        }
        let origin = Origin::Backend((*ca.key).clone());
        match distributed {
            true => mesh.ledger.set(origin, bundle),
            false => mesh.ledger.unset(&origin),
        }
        if changed {
            // What it signed may have been refused for its root.
            self.scheduler.begin_anew(lane);
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

fn no_such_ca(mesh: &str, backend: &BackendKey) -> Error {
    let error = Error::new(ErrorKind::NotFound, "the mesh has no such CA");
    let error = error.with_context("mesh", mesh.to_owned());
    error.with_context("backend", backend)
}
