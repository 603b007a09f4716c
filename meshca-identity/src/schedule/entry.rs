//! One identity, as the scheduler sees it.

use std::time::{Duration, SystemTime};

/// The fraction of a lifetime after which a certificate without a successor is late.
const LATE: f64 = 0.75;

/// One identity that is kept fresh. A ticket of one that was removed means nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Ticket {
    /// Where its owner may keep what belongs to it: the numbers of the removed are used again.
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }
}

/// The queue of one issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LaneId(pub(super) u32);

/// What is more urgent comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// It has nothing, or not what it should have.
    First,
    /// It has something that is valid.
    Renewal,
    /// Nobody is connected yet.
    Prefetch,
}

/// A certificate, as far as the scheduler cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) issued_at: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Held {
    /// Returns the time from which its renewal is late.
    pub(super) fn late(self) -> SystemTime {
        let lifetime = self
            .not_after
            .duration_since(self.issued_at)
            .unwrap_or_default();
        self.issued_at
            .checked_add(lifetime.mul_f64(LATE))
            .unwrap_or(self.not_after)
            .min(self.not_after)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is wanted, or what is held is fresh.
    Resting,
    Queued {
        priority: Priority,
        seq: u64,
    },
    InFlight {
        lane: LaneId,
    },
    Backoff {
        until: Duration,
    },
    /// Removed while in flight: the slot is free when that ends.
    Leaving {
        lane: LaneId,
    },
    Free,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Renew,
    Late,
    Expire,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// Tells the ticket of a workload from that of a removed one, whose slot it has.
    pub(super) generation: u32,
    pub(super) lane: LaneId,
    pub(super) phase: Phase,
    pub(super) held: Option<Held>,
    /// Its timer by the wall clock. There is one, since each follows from the one before.
    pub(super) timer: Option<(SystemTime, Timer)>,
    /// What `Scheduler::timers` has of it: no later than the timer. One that is put off is found
    /// out when this comes, so that a renewal that nothing is wrong with does not move it for
    /// being under way.
    pub(super) look_at: Option<SystemTime>,
    /// In a row; the backoff grows with them.
    pub(super) failures: u8,
    /// How much the issuer had signed when it refused this one last; 0 if it did not.
    pub(super) refused_after: u32,
    /// It was refused, and again when others were not: the fault is its own.
    pub(super) to_blame: bool,
    /// It was wanted again while it was in flight: what comes is not what is wanted any more.
    pub(super) again: bool,
    /// Nothing more is wanted: what is in flight is kept if it comes, and nothing follows it.
    pub(super) rests: bool,
}

impl Entry {
    /// Makes an entry that wants nothing yet.
    pub(super) fn new(generation: u32, lane: LaneId) -> Self {
        Self {
            generation,
            lane,
            phase: Phase::Resting,
            held: None,
            timer: None,
            look_at: None,
            failures: 0,
            refused_after: 0,
            to_blame: false,
            again: false,
            rests: false,
        }
    }
}

pub(super) fn entry_phase(entries: &[Entry], index: u32) -> Phase {
    entries
        .get(index as usize)
        .map_or(Phase::Free, |entry| entry.phase)
}
