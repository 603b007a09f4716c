//! The events that go into the scheduler, and the actions that come out.

use std::time::{Duration, SystemTime};

use meshca_core::{ErrorKind, Retry};

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

/// What a failure says about the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: what is wrong with one workload says nothing about the next.
    Workload,
    /// It answers, and the answer is of no use. It may bill each, and gives the next workload the same one, unless the fault is
    /// that workload's after all.
    Refused,
    /// It does not answer, or cannot work now.
    Unreachable,
}

impl Fault {
    pub(crate) fn of(error: ErrorKind) -> Self {
        match error {
            ErrorKind::InvalidRequest => Self::Workload,
            ErrorKind::BadResponse
            | ErrorKind::Denied
            | ErrorKind::InvalidConfig
            | ErrorKind::NotFound
            | ErrorKind::Unauthenticated
            | ErrorKind::Unsupported => Self::Refused,
            _ => Self::Unreachable,
        }
    }
}

/// The end of an [`Action::Issue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Issued(Held),
    Failed {
        retry: Retry,
        fault: Fault,
    },
    /// It is not what is wanted any more, and that says nothing about the issuer.
    Discarded,
}
