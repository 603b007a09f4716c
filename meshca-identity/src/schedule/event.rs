//! The events that go into the scheduler, and the actions that come out.

use std::time::{Duration, SystemTime};

use meshca_core::Retry;

use super::entry::{Held, Ticket};

/// The time, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// The wall clock.
    pub(crate) wall: SystemTime,
    /// Since the start.
    pub(crate) up: Duration,
}

/// The time when something is due next, by either clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wake {
    pub(crate) wall: Option<SystemTime>,
    pub(crate) up: Option<Duration>,
}

/// A task for the owner of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask the issuer, and say how that [finished](super::Scheduler::finished).
    Issue(Ticket),
    /// Its certificate should have had a successor by now, and no failure was reported.
    Late(Ticket),
    /// Its certificate has ended without a successor.
    Expired(Ticket),
}

/// The end of an [`Action::Issue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Issued(Held),
    Failed {
        retry: Retry,
        /// Whether it may be the issuer's fault. What is wrong with one workload says nothing about the next.
        issuer: bool,
    },
    /// It is not what is wanted any more, and that says nothing about the issuer.
    Discarded,
}
