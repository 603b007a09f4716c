//! The lane of one issuer: its queue, its requests under way, and its breaker.

use std::collections::BTreeSet;
use std::time::Duration;

use super::breaker::Breaker;
use super::entry::{Entry, Priority};
use super::event::{Fault, Outcome};
use super::options::ScheduleOptions;
use super::queue::Queue;

/// Every eighth start of a lane goes to what waits behind the most urgent, so that all get a turn.
const FAIR: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) in_flight: usize,
    /// The number of certificates that one request asks for, one after the other; 0 counts as 1.
    pub(super) batch: usize,
    pub(super) queue: Queue,
    pub(super) backoff: BTreeSet<(Duration, u32)>,
    pub(super) breaker: Breaker,
    pub(super) paused: bool,
    /// How much it has signed, from 1 on.
    pub(super) signed: u32,
    starts: u32,
    /// What `Scheduler::wakes` has of it.
    pub(super) wake: Option<Duration>,
}

impl Lane {
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.queue.is_empty() && self.backoff.is_empty()
    }

    /// Returns `true` if the owner, the limit and the breaker let it start one more.
    pub(super) fn may_start(&self, options: &ScheduleOptions) -> bool {
        let limit = options.concurrency.max(1);
        !self.paused
            && self.in_flight < limit.saturating_mul(self.batch.max(1))
            && self.breaker.permits()
    }

    /// Starts the most urgent one; now and then the first of those behind.
    pub(super) fn start(&mut self, entries: &[Entry]) -> Option<u32> {
        self.starts = self.starts.wrapping_add(1);
        let from = match self.starts {
            n if n.is_multiple_of(FAIR * FAIR) => Priority::Prefetch,
            n if n.is_multiple_of(FAIR) => Priority::Renewal,
            _ => Priority::First,
        };
        let behind = self.queue.pop(from, entries);
        let next = behind.or_else(|| self.queue.pop(Priority::First, entries))?;
        self.in_flight += 1;
        self.breaker.started();
        Some(next)
    }

    /// Notes how a request ended, of a workload that may be `to_blame` if it is refused. Returns
    /// `true` if that shows that the issuer has recovered.
    pub(super) fn finished(
        &mut self,
        index: u32,
        outcome: &Outcome,
        to_blame: bool,
        up: Duration,
        options: &ScheduleOptions,
        rng: &mut fastrand::Rng,
    ) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Outcome::Issued(_) = outcome {
            self.signed = self.signed.wrapping_add(1).max(1);
        }
        match outcome {
            // An issuer that refuses one workload has answered as well.
            Outcome::Issued(_)
            | Outcome::Failed {
                fault: Fault::Workload,
                ..
            } => return self.breaker.succeeded(),
            Outcome::Failed {
                fault: Fault::Refused,
                ..
            } if to_blame => self.breaker.refused_one(up),
            Outcome::Failed { fault, .. } => self.breaker.failed(index, *fault, up, options, rng),
            Outcome::Discarded => self.breaker.unknown(),
        }
        false
    }

    /// Returns when a retry or the breaker's probe is due.
    pub(super) fn due(&self) -> Option<Duration> {
        let retry = self.backoff.first().map(|(until, _)| *until);
        [retry, self.breaker.until()].into_iter().flatten().min()
    }
}
