//! Time, and tasks that take time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::{Clock, Error, SecretStore};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::job::{Done, Report};
use super::setup::guarded;
use crate::schedule::Now;

/// See the [module](self).
pub(super) struct Clockwork {
    clock: Arc<dyn Clock>,
    started: Instant,
    /// Tasks end with the driver.
    jobs: JoinSet<()>,
    reports: UnboundedSender<Done>,
    /// The longest time between two ticks: what nobody tells of (a clock that was set, a step of
    /// a rotation) is found by looking.
    pub(super) period: Duration,
    pub(super) next_tick: Duration,
    /// The secret store's revision is read once per period, and not in each tick: the manager's
    /// own records change it, and are written for many meshes at a start.
    next_revision: Duration,
    revision: Option<u64>,
}

impl Clockwork {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        period: Duration,
        store: &dyn SecretStore,
        reports: UnboundedSender<Done>,
    ) -> Self {
        Self {
            clock,
            started: Instant::now(),
            jobs: JoinSet::new(),
            reports,
            period,
            next_tick: Duration::ZERO,
            next_revision: Duration::ZERO,
            revision: store.revision(),
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            wall: self.clock.now(),
            up: self.started.elapsed(),
        }
    }

    /// Has the next tick come no later than this.
    pub(super) fn wake_by(&mut self, up: Duration) {
        self.next_tick = self.next_tick.min(up);
    }

    /// Says whether a tick is due, and when the next one is.
    pub(super) fn ticks(&mut self, now: Now) -> bool {
        let due = now.up >= self.next_tick;
        if due {
            self.next_tick = now.up.saturating_add(self.period);
        }
        due
    }

    /// Whether the store tells of changes since the last look.
    pub(super) fn secrets_have_changed(&mut self, store: &dyn SecretStore, now: Now) -> bool {
        if now.up < self.next_revision {
            return false;
        }
        self.next_revision = now.up.saturating_add(self.period);
        let revision = guarded("a secret store", || store.revision()).flatten();
        std::mem::replace(&mut self.revision, revision) != revision
    }

    /// Forgets tasks that have ended.
    pub(super) fn reap(&mut self) {
        while self.jobs.try_join_next().is_some() {}
    }

    /// Starts a task, and has it reported how it ended, also if it panics.
    pub(super) fn start(
        &mut self,
        work: impl Future<Output = Done> + Send + 'static,
        panicked: impl FnOnce(Error) -> Done,
    ) {
        let report = Report::new(self.reports.clone(), panicked);
        self.jobs.spawn(async move { report.done(work.await) });
    }

    /// Starts a task that reports by itself.
    pub(super) fn start_reporting<F>(&mut self, work: impl FnOnce(UnboundedSender<Done>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.jobs.spawn(work(self.reports.clone()));
    }
}
