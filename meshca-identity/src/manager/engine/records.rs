//! What outlives this process: storing what proxies may hold, and waiting for those that come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshca_core::Result;

use super::Engine;
use crate::BackendKey;
use crate::manager::event::Event;
use crate::manager::ids::MeshId;
use crate::manager::job::Done;
use crate::manager::shared::Command;
use crate::record::{Record, RootId};
use crate::schedule::Now;

/// How often what is stored is compared with what is to be.
const COMPARED: Duration = Duration::from_secs(3600);

impl Engine {
    /// Proxies that a control plane before this one has served are waited for, but not for ever.
    pub(super) fn expect_back(&mut self, id: MeshId, now: Now) {
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        match mesh.gate.returning {
            Some(until) if until <= now.up => {
                mesh.gate.returning = None;
                self.pause_lanes(id);
                // A rotation may have waited for this.
                self.look_after(id);
            }
            Some(until) => self.clockwork.wake_by(until),
            None => {}
        }
    }

    /// Has the record of a mesh read before its first resources are in force. Commands about it
    /// wait until then.
    pub(super) fn read_record(&mut self, mesh: String, first: Command) {
        let (secrets, unread) = (Arc::clone(&self.setup.secrets), mesh.clone());
        self.meshes.reading.insert(mesh.clone(), vec![first]);
        let read = async move {
            let result = Record::read(&*secrets, &mesh).await;
            Done::Read { mesh, result }
        };
        self.clockwork.start(read, |error| Done::Read {
            mesh: unread,
            result: Err(error),
        });
    }

    pub(super) fn read(&mut self, mesh: &str, result: Result<Record>) {
        let mut result = Some(result);
        for command in self.meshes.reading.remove(mesh).unwrap_or_default() {
            match (command, result.take()) {
                (Command::Apply { resources, reply }, Some(result)) => {
                    let applied = result.and_then(|record| self.apply(*resources, Some(record)));
                    let _ = reply.send(applied);
                }
                (command, _) => self.command(command),
            }
        }
    }

    /// This is the end: what could not be stored so far is tried once more.
    pub(in crate::manager) fn end(&mut self) {
        for mesh in self.meshes.iter_mut() {
            mesh.recorded.write_at = Duration::ZERO;
            mesh.recorded.failures = 0;
        }
    }

    /// Stores what has happened last.
    pub(in crate::manager) fn store_records(&mut self) {
        let now = self.clockwork.now();
        let meshes = self.meshes.iter();
        let meshes = meshes.filter(|(_, mesh)| mesh.recorded.failures == 0);
        for id in meshes.map(|(id, _)| id).collect::<Vec<_>>() {
            self.store_record(id, now);
        }
    }

    /// Stores what proxies may hold, if that is not what is stored.
    pub(super) fn store_record(&mut self, id: MeshId, now: Now) {
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let clock = mesh.clock(now);
        let (record, gone) = mesh.record(clock);
        let claims = mesh.claims();
        let recorded = &mut mesh.recorded;
        let compared = now.up < recorded.compare_at || record == Record::default();
        let covered = claims.is_empty() && recorded.stored.covers(&record, &gone);
        if recorded.busy || (compared && covered) {
            return;
        }
        if now.up < recorded.write_at {
            let at = recorded.write_at;
            return self.clockwork.wake_by(at);
        }
        recorded.busy = true;
        let record = record.ahead(&claims, &recorded.claims, now.wall);
        let (name, secrets) = (mesh.cell.name.clone(), Arc::clone(&self.setup.secrets));
        let (unwritten, known) = (claims.clone(), recorded.stored.clone());
        let write = async move {
            let written = record.write(&*secrets, &name, &gone, &claims, &known, clock);
            let result = written.await;
            Done::Recorded {
                mesh: id,
                claims,
                result,
            }
        };
        self.clockwork.start(write, move |error| Done::Recorded {
            mesh: id,
            claims: unwritten,
            result: Err(error),
        });
    }

    pub(super) fn recorded(
        &mut self,
        id: MeshId,
        claims: BTreeMap<RootId, SystemTime>,
        result: Result<Record>,
    ) {
        let now = self.clockwork.now();
        let Some(mesh) = self.meshes.get_mut(id) else {
            return;
        };
        let (cell, recorded) = (Arc::clone(&mesh.cell), &mut mesh.recorded);
        recorded.busy = false;
        match result {
            Ok(stored) => {
                recorded.failures = 0;
                recorded.claims.said(claims, &stored);
                // Others may have handed out what is not known here, or for longer. What was said here is known better.
                let mut newest = None;
                for (root, used) in recorded.claims.others(&stored) {
                    let known = recorded.stored.used.get(root).map(|it| it.until);
                    let is_news = known < Some(used.until) && !recorded.claims.has(root);
                    newest = newest.max(is_news.then_some(used.until));
                    mesh.ledger.share(used);
                }
                // What they have written since tells whether the clocks agree.
                if newest.is_some() {
                    recorded.clock.read(newest, now);
                }
                let backends = &mesh.backends;
                let is_there = |key: &BackendKey| backends.contains_key(key);
                let in_it = |key: &BackendKey| stored.said.contains_key(key);
                recorded.had.retain(|key| is_there(key) || in_it(key));
                mesh.recorded.stored = stored;
                mesh.recorded.compare_at = now.up.saturating_add(COMPARED);
                // What is to be stored may be another one by now.
                self.clockwork.wake_by(now.up);
                self.forget_mesh_if_empty(id);
            }
            Err(error) => {
                recorded.failures = recorded.failures.saturating_add(1);
                let failures = recorded.failures;
                let wait = self.setup.options.schedule.after(failures);
                if let Some(mesh) = self.meshes.get_mut(id) {
                    mesh.recorded.write_at = now.up.saturating_add(wait);
                }
                self.clockwork.wake_by(now.up.saturating_add(wait));
                self.setup.observe(&Event::NotRecorded {
                    mesh: &cell.name,
                    error: &error,
                });
            }
        }
    }
}
