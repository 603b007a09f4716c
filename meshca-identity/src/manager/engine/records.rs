//! What outlives this process: storing what proxies may hold, and waiting for those that come back.

use std::sync::Arc;

use meshca_core::Result;

use super::Engine;
use crate::manager::event::Event;
use crate::manager::job::{Done, Report};
use crate::manager::record::Record;
use crate::schedule::Now;

impl Engine {
    /// Proxies that a control plane before this one has served are waited for, but not for ever.
    pub(super) fn expect_back(&mut self, id: u64, now: Now) {
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return;
        };
        match mesh.returning {
            Some(until) if until <= now.up => {
                mesh.returning = None;
                self.pause_lanes(id);
                // The replacement of a CA may have waited for this.
                self.look_after(id, now);
            }
            Some(until) => self.wake_by(until),
            None => {}
        }
    }

    /// Stores what proxies may hold, if that is not what is stored.
    pub(super) fn store_record(&mut self, id: u64, now: Now) {
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return;
        };
        let record = mesh.ledger.record();
        let recorded = &mut mesh.recorded;
        if recorded.busy || recorded.stored.covers(&record) {
            return;
        }
        if now.up < recorded.write_at {
            let at = recorded.write_at;
            return self.wake_by(at);
        }
        recorded.busy = true;
        let before = recorded.stored.said.keys();
        let dropped = before.filter(|key| !record.said.contains_key(*key));
        let dropped = dropped.cloned().collect();
        let record = record.ahead(&recorded.stored, now.wall);
        let (name, secrets) = (mesh.cell.name.clone(), Arc::clone(&self.secrets));
        let report = Report::new(self.reports.clone(), |error| Done::Recorded {
            mesh: id,
            record: record.clone(),
            result: Err(error),
        });
        self.jobs.spawn(async move {
            let write = record.clone();
            let result = write.write(&*secrets, &name, &dropped, now.wall).await;
            report.done(Done::Recorded {
                mesh: id,
                record,
                result,
            });
        });
    }

    pub(super) fn recorded(&mut self, id: u64, record: Record, result: Result<()>) {
        let now = self.now();
        let Some(mesh) = self.meshes.get_mut(&id) else {
            return;
        };
        let (cell, recorded) = (Arc::clone(&mesh.cell), &mut mesh.recorded);
        recorded.busy = false;
        match result {
            Ok(()) => {
                recorded.failures = 0;
                recorded.stored = record;
                // It may be another one by now.
                self.wake_by(now.up);
            }
            Err(error) => {
                recorded.failures = recorded.failures.saturating_add(1);
                let failures = recorded.failures;
                let wait = self.backoff(failures);
                if let Some(mesh) = self.meshes.get_mut(&id) {
                    mesh.recorded.write_at = now.up.saturating_add(wait);
                }
                self.wake_by(now.up.saturating_add(wait));
                self.observe(&Event::NotRecorded {
                    mesh: &cell.name,
                    error: &error,
                });
            }
        }
    }
}
