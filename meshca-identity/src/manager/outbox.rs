//! Certificates on their way: requests that go out in this turn, and answers that are not handed
//! out yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::Identity;

use super::ids::CaRef;
use super::job::Order;
use crate::schedule::{Action, LaneId, Ticket};
use crate::trust::Holding;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Outbox {
    /// Filled and emptied in each turn; kept for its memory.
    pub(super) actions: Vec<Action>,
    /// Requests of this turn. They are collected, since one task can ask a quick CA for several.
    pub(super) orders: BTreeMap<LaneId, Vec<Order>>,
    /// Identities that others have taken the place of: see [`Batch`](super::job::Batch).
    pub(super) spent: Vec<Arc<Identity>>,
    /// Certificates that are not valid yet, by when they are.
    later: BTreeMap<(Duration, u64), Later>,
    /// Tells apart what is valid at the same time.
    counter: u64,
}

/// A certificate that was issued and admitted.
pub(super) struct Later {
    pub(super) ticket: Ticket,
    pub(super) ca: CaRef,
    pub(super) want: u64,
    pub(super) took: Duration,
    pub(super) identity: Arc<Identity>,
    /// Keeps its root published, from before it is handed out.
    pub(super) under: Option<Holding>,
}

impl Outbox {
    /// Keeps a certificate until it is valid.
    pub(super) fn keep(&mut self, until: Duration, later: Later) {
        self.counter += 1;
        self.later.insert((until, self.counter), later);
    }

    /// A certificate that is valid by now.
    pub(super) fn next_valid(&mut self, now: Duration) -> Option<Later> {
        let first = self.later.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// When the next one is valid.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        self.later.keys().next().map(|(at, _)| *at)
    }

    /// As many spent identities as there are new ones to come.
    pub(super) fn spent(&mut self, count: usize) -> Vec<Arc<Identity>> {
        let rest = self.spent.len().saturating_sub(count);
        self.spent.split_off(rest)
    }
}
