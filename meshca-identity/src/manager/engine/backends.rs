//! CAs: setting them up, looking at their roots, replacing them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::BuildContext;
use meshca_core::{Error, Result, RotationStep};

use super::{Engine, guarded, number};
use crate::manager::event::Event;
use crate::manager::job::{self, Before, CaRef, Done, LiveCa, Report, Roots};
use crate::manager::mesh::{Backend, Wanted};
use crate::schedule::Now;
use crate::trust::{BackendKey, Origin};

/// How long a CA may take to be set up, or to say which roots it has.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a CA whose key somebody else made is read again from where it is kept, if nobody says that it has changed.
const AGAIN: Duration = Duration::from_secs(300);

impl Engine {
    /// Makes the CAs of a mesh those that the resources name; of some it can only be said what is wrong with them.
    pub(super) fn take_backends(
        &mut self,
        id: u64,
        wanted: BTreeMap<BackendKey, Wanted>,
        wrong: Vec<(BackendKey, Error)>,
        now: Now,
    ) {
        for (key, error) in wrong {
            if let Some(cell) = self.cell_of(id) {
                let mesh = cell.name.as_str();
                self.observe(&Event::BackendFailing {
                    mesh,
                    backend: &key,
                    error: &error,
                });
            }
        }
        let gone: Vec<BackendKey> = match self.meshes.get(&id) {
            Some(mesh) => mesh.backends.keys(),
            None => return,
        }
        .filter(|key| !wanted.contains_key(*key))
        .cloned()
        .collect();
        for key in gone {
            self.drop_backend(id, &key);
        }
        for (key, wanted) in wanted {
            self.take_backend(id, key, wanted, now);
        }
    }

    fn take_backend(&mut self, id: u64, key: BackendKey, wanted: Wanted, now: Now) {
        let epoch = self.count();
        // The same CA has the same number, whenever it comes back.
        let uid = number(&(&key, wanted.config.type_name(), &wanted.trust_domain));
        let known = self
            .meshes
            .get_mut(&id)
            .and_then(|mesh| mesh.backends.get_mut(&key));
        match known {
            Some(backend) => {
                backend.distributed = wanted.distributed;
                let same_ca = backend.trust_domain == wanted.trust_domain
                    && backend.config.type_name() == wanted.config.type_name();
                if same_ca && backend.wish == wanted.wish {
                    return;
                }
                backend.wish = wanted.wish;
                backend.config = wanted.config;
                backend.epoch = epoch;
                backend.busy = false;
                backend.failures = 0;
                backend.build_at = Some(now.up);
                backend.setting_up = true;
                if !same_ca {
                    // What it signed so far is not what is wanted now, so nothing more of that is signed.
                    backend.trust_domain = wanted.trust_domain;
                    backend.uid = uid;
                    backend.issuer = None;
                    backend.bundle = None;
                    backend.signs_under = None;
                    backend.error = None;
                    if let Some(mesh) = self.meshes.get_mut(&id) {
                        mesh.ledger.unset(&Origin::Backend(key));
                    }
                }
            }
            None => {
                let lane = self.scheduler.open_lane();
                self.scheduler.pause(lane, true);
                self.lanes.insert(lane, (id, Arc::new(key.clone())));
                let backend = Backend {
                    wish: wanted.wish,
                    config: wanted.config,
                    trust_domain: wanted.trust_domain,
                    lane,
                    uid,
                    look_again: false,
                    stepped: None,
                    epoch,
                    issuer: None,
                    bundle: None,
                    takes: None,
                    signs_under: None,
                    error: None,
                    failures: 0,
                    busy: false,
                    build_at: Some(now.up),
                    setting_up: true,
                    look_at: Duration::MAX,
                    rotate_at: Duration::ZERO,
                    distributed: wanted.distributed,
                };
                if let Some(mesh) = self.meshes.get_mut(&id) {
                    mesh.backends.insert(key, backend);
                }
            }
        }
    }

    /// The resources do not name it any more. What it signed is served while it is valid.
    pub(super) fn drop_backend(&mut self, id: u64, key: &BackendKey) {
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return;
        };
        let Some(backend) = mesh.backends.remove(key) else {
            return;
        };
        mesh.ledger.unset(&Origin::Backend(key.clone()));
        self.scheduler.pause(backend.lane, true);
        self.move_to_idle(id, backend.lane);
        self.closing.push(backend.lane);
    }

    /// Has done what is due for the CAs of a mesh.
    pub(super) fn look_after(&mut self, id: u64, now: Now) {
        let acknowledgements = self.options.acknowledgements;
        let mut wake = Duration::MAX;
        let mut due = Vec::new();
        let Some(mesh) = self.meshes.get(&id) else {
            return;
        };
        for (key, backend) in &mesh.backends {
            if backend.busy {
                continue;
            }
            if let Some(at) = backend.build_at {
                if at <= now.up {
                    due.push((key.clone(), Due::Build));
                    continue;
                }
                wake = wake.min(at);
            }
            let Some(ca) = &backend.issuer else {
                continue;
            };
            let ask = || ca.rotation.as_ref().and_then(|rotation| rotation.due());
            let step = guarded("an issuer, asked whether its CA is to be replaced", ask).flatten();
            let trusted = || {
                let bundle = backend.bundle.as_ref();
                bundle.is_some_and(|bundle| mesh.trusted_by_all(bundle, acknowledgements))
            };
            match step {
                Some(RotationStep::Activate) if !trusted() => {
                    tracing::debug!(mesh = %mesh.cell.name, backend = %key, "the next CA does not sign before every proxy trusts it");
                }
                Some(step) if backend.rotate_at <= now.up => {
                    due.push((key.clone(), Due::Rotate(step)));
                    continue;
                }
                _ => {}
            }
            match backend.look_at <= now.up {
                true => due.push((key.clone(), Due::Look)),
                false => wake = wake.min(backend.look_at),
            }
        }
        for (key, what) in due {
            self.begin(id, &key, what);
        }
        self.wake_by(wake);
    }

    fn begin(&mut self, id: u64, key: &BackendKey, what: Due) {
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return;
        };
        let name = mesh.cell.name.clone();
        let before = Before {
            bundle: mesh.ledger.said(key).cloned(),
            mesh: name.clone(),
            secrets: Arc::clone(&self.secrets),
        };
        let Some(backend) = mesh.backends.get_mut(key) else {
            return;
        };
        backend.busy = true;
        let ca = CaRef {
            mesh: id,
            key: Arc::new(key.clone()),
            epoch: backend.epoch,
        };
        let reports = self.reports.clone();
        match (what, backend.issuer.clone()) {
            (Due::Build, _) => {
                backend.build_at = None;
                let context = BuildContext::new(
                    name,
                    backend.trust_domain.clone(),
                    Arc::clone(&self.secrets),
                    Arc::clone(&self.shared.clock),
                )
                .with_local_sources(self.options.local_sources);
                let (registry, config) = (Arc::clone(&self.registry), backend.config.clone());
                let layers = self.around.layers.clone();
                self.jobs.spawn(async move {
                    let report = Report::new(reports, |error| Done::Built {
                        ca: ca.clone(),
                        result: Err(error),
                    });
                    let result = job::build(registry, config, context, layers, before, LIMIT).await;
                    report.done(Done::Built { ca, result });
                });
            }
            (Due::Look, Some(live)) => {
                self.jobs.spawn(async move {
                    let report = Report::new(reports, |error| Done::Looked {
                        ca: ca.clone(),
                        result: Err(error),
                    });
                    let result = job::look(live, before, LIMIT).await;
                    report.done(Done::Looked { ca, result });
                });
            }
            (Due::Rotate(step), Some(live)) => {
                self.jobs.spawn(async move {
                    let report = Report::new(reports, |error| Done::Rotated {
                        ca: ca.clone(),
                        step,
                        result: Err(error),
                    });
                    let result = job::rotate(live, step, before, LIMIT).await;
                    report.done(Done::Rotated { ca, step, result });
                });
            }
            (Due::Look | Due::Rotate(_), None) => backend.busy = false,
        }
    }

    /// Secrets may have changed. `all`: whoever could not be set up is tried again now.
    pub(super) fn look_at_all(&mut self, now: Now, all: bool) {
        for mesh in self.meshes.values_mut() {
            for backend in mesh.backends.values_mut() {
                backend.look_again = backend.busy;
                if backend.issuer.is_some() {
                    backend.look_at = now.up;
                    if backend.is_given() {
                        backend.build_at = Some(now.up);
                    }
                }
                if all && let Some(at) = &mut backend.build_at {
                    *at = now.up;
                }
            }
        }
        self.wake_by(now.up);
    }

    /// The CA that is meant, as it is now.
    pub(super) fn backend(&self, ca: &CaRef) -> Option<&Backend> {
        self.meshes.get(&ca.mesh)?.backends.get(&*ca.key)
    }

    /// The CA that a job was for, if that is still of interest.
    pub(super) fn ca(&mut self, ca: &CaRef) -> Option<&mut Backend> {
        let backend = self.meshes.get_mut(&ca.mesh)?.backends.get_mut(&*ca.key)?;
        (backend.epoch == ca.epoch).then_some(backend)
    }

    pub(super) fn built(&mut self, ca: &CaRef, result: Result<(LiveCa, Roots)>) {
        let now = self.now();
        let refresh = self.options.trust_refresh;
        let Some(backend) = self.ca(ca) else {
            return;
        };
        backend.busy = false;
        let set_up = std::mem::take(&mut backend.setting_up) || backend.failures > 0;
        let again = std::mem::take(&mut backend.look_again);
        match result {
            Ok((issuer, roots)) => {
                let first = backend.issuer.replace(issuer).is_none();
                let news = first || backend.error.is_some();
                let lane = backend.lane;
                if backend.is_given() {
                    let wait = if again { Duration::ZERO } else { AGAIN };
                    backend.build_at = Some(now.up.saturating_add(wait));
                }
                backend.failures = 0;
                backend.look_at = backend.next_look(now, refresh);
                self.take_roots(ca, roots, true);
                if set_up {
                    self.scheduler.wake_lane(lane);
                }
                if news && let Some(cell) = self.cell_of(ca.mesh) {
                    let (mesh, backend) = (cell.name.as_str(), &ca.key);
                    self.observe(&Event::BackendReady { mesh, backend });
                }
                if first {
                    self.review_mesh(ca.mesh);
                }
            }
            Err(error) => {
                backend.failures = backend.failures.saturating_add(1);
                let failures = backend.failures;
                let news = backend.error.replace(error.clone()).is_none();
                let wait = match again {
                    true => Duration::ZERO,
                    false => self.backoff(failures),
                };
                if let Some(backend) = self.ca(ca) {
                    backend.build_at = Some(now.up.saturating_add(wait));
                }
                self.wake_by(now.up.saturating_add(wait));
                self.failing(ca, &error);
                self.publish(ca.mesh, now);
                if news {
                    // Those that it would have won may get another one.
                    self.review_mesh(ca.mesh);
                }
            }
        }
    }

    pub(super) fn looked(&mut self, ca: &CaRef, result: Result<Roots>) {
        let now = self.now();
        let refresh = self.options.trust_refresh;
        let Some(backend) = self.ca(ca) else {
            return;
        };
        backend.busy = false;
        backend.look_at = match std::mem::take(&mut backend.look_again) {
            true => now.up,
            // One that did not answer is not made to wait for the end of its interval: until then
            // it is said to fail.
            false if result.is_err() => now.up.saturating_add(refresh),
            false => backend.next_look(now, refresh),
        };
        let look_at = backend.look_at;
        self.wake_by(look_at);
        match result {
            Ok(roots) => self.take_roots(ca, roots, false),
            Err(error) => self.looks_bad(ca, error, now),
        }
    }

    pub(super) fn rotated(&mut self, ca: &CaRef, step: RotationStep, result: Result<Roots>) {
        let now = self.now();
        let Some(backend) = self.ca(ca) else {
            return;
        };
        backend.busy = false;
        // A step that stays due, because somebody else takes it or it changes nothing, is not taken in a loop.
        let times = match backend.stepped {
            Some((before, times)) if before == step => times.saturating_add(1),
            _ => 1,
        };
        backend.stepped = Some((step, times));
        let wait = match result.is_ok() {
            true => self.backoff(times),
            false => self.options.schedule.max_backoff,
        };
        if let Some(backend) = self.ca(ca) {
            backend.rotate_at = now.up.saturating_add(wait);
        }
        self.wake_by(now.up.saturating_add(wait));
        match result {
            Ok(roots) => {
                if let Some(cell) = self.cell_of(ca.mesh) {
                    let (mesh, backend) = (cell.name.as_str(), &ca.key);
                    self.observe(&Event::Rotated {
                        mesh,
                        backend,
                        step,
                    });
                }
                self.take_roots(ca, roots, false);
            }
            Err(error) => self.looks_bad(ca, error, now),
        }
    }

    /// What it said before stays trusted, and it goes on issuing if it can.
    fn looks_bad(&mut self, ca: &CaRef, error: Error, now: Now) {
        if let Some(backend) = self.ca(ca) {
            backend.error = Some(error.clone());
        }
        self.failing(ca, &error);
        self.publish(ca.mesh, now);
    }

    /// These are the roots of a CA now.
    pub(super) fn take_roots(&mut self, ca: &CaRef, roots: Roots, built: bool) {
        let Roots { bundle, record } = roots;
        let now = self.now();
        let Some(backend) = self.ca(ca) else {
            return;
        };
        // What it cannot be set up with stays said, although what was set up before works.
        let recovered = backend.failures == 0 && backend.error.take().is_some();
        let changed = backend.bundle.as_ref() != Some(&bundle);
        if backend
            .signs_under
            .as_ref()
            .is_some_and(|root| !bundle.contains(root.der()))
        {
            backend.signs_under = None;
        }
        backend.bundle = Some(bundle.clone());
        let distributed = backend.distributed;
        if let Some(mesh) = self.meshes.get_mut(&ca.mesh) {
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
        }
        if changed || recovered || built {
            self.publish(ca.mesh, now);
        }
        if changed {
            self.reissue_those_without_root(ca);
            if !distributed {
                // Whether it can issue depends on what MeshTrusts say of its roots.
                self.review_mesh(ca.mesh);
            }
        }
    }

    pub(super) fn backoff(&self, failures: u32) -> Duration {
        let options = &self.options.schedule;
        let doubled = options.doubled(failures.saturating_sub(1));
        doubled.min(options.max_backoff)
    }

    fn failing(&self, ca: &CaRef, error: &Error) {
        if let Some(cell) = self.cell_of(ca.mesh) {
            let (mesh, backend) = (cell.name.as_str(), &ca.key);
            self.observe(&Event::BackendFailing {
                mesh,
                backend,
                error,
            });
        }
    }

    pub(super) fn close_lanes(&mut self) {
        let scheduler = &mut self.scheduler;
        let lanes = &mut self.lanes;
        self.closing.retain(|lane| {
            let closed = scheduler.close_lane(*lane);
            if closed {
                lanes.remove(lane);
            }
            !closed
        });
    }
}

/// What is to be done for a CA.
enum Due {
    Build,
    Look,
    Rotate(RotationStep),
}
