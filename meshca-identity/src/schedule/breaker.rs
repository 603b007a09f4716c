//! Leaves an issuer alone that fails everybody.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::event::Fault;
use super::options::{REFUSED_PER_DAY, ScheduleOptions, refused, stretch};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How many different workloads an issuer refuses in a row before the others wait for one of them: the first
/// may be to blame itself.
const REFUSES_ALL: usize = 2;

/// Closed: everything goes. Open: nothing does. Then one probe goes, and what becomes of it decides.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
    /// How often it has opened since anything succeeded.
    opened: u32,
    /// The last failure was that it did not answer.
    unreachable: bool,
    /// When requests were refused last, as many as may be in a day.
    refusals: VecDeque<Duration>,
}

#[derive(Debug)]
enum State {
    /// Who has failed since the last success, and who of them was refused.
    Closed {
        failing: BTreeSet<u32>,
        refused: BTreeSet<u32>,
    },
    Open {
        until: Duration,
    },
    HalfOpen {
        probing: bool,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed {
            failing: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }
}

impl Breaker {
    pub(super) fn permits(&self) -> bool {
        matches!(
            self.state,
            State::Closed { .. } | State::HalfOpen { probing: false }
        )
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    pub(super) fn is_outage(&self) -> bool {
        !self.is_closed() && self.unreachable
    }

    pub(super) fn started(&mut self) {
        if let State::HalfOpen { probing } = &mut self.state {
            *probing = true;
        }
    }

    /// When to look again.
    pub(super) fn until(&self) -> Option<Duration> {
        match self.state {
            State::Open { until } => Some(until),
            _ => None,
        }
    }

    pub(super) fn wake(&mut self, up: Duration) {
        if self.until().is_some_and(|until| until <= up) {
            self.state = State::HalfOpen { probing: false };
        }
    }

    /// Says whether that has closed it. What was started before it opened counts as well: the issuer works. What
    /// it has refused stays counted: it may refuse some workloads only.
    pub(super) fn succeeded(&mut self) -> bool {
        let was_closed = self.is_closed();
        self.state = State::default();
        self.opened = 0;
        !was_closed
    }

    /// A probe that says nothing about the issuer.
    pub(super) fn unknown(&mut self) {
        if let State::HalfOpen { probing } = &mut self.state {
            *probing = false;
        }
    }

    pub(super) fn failed(
        &mut self,
        who: u32,
        fault: Fault,
        up: Duration,
        options: &ScheduleOptions,
        rng: &mut fastrand::Rng,
    ) {
        let is_refusal = fault == Fault::Refused;
        self.unreachable = fault == Fault::Unreachable;
        if is_refusal {
            self.count_refusal(up);
        }
        match &mut self.state {
            State::Closed { failing, refused } => {
                failing.insert(who);
                if is_refusal {
                    refused.insert(who);
                }
                let many = options.breaker_threshold.max(1);
                if failing.len() < many && refused.len() < REFUSES_ALL.min(many) {
                    return;
                }
            }
            // Started before it opened.
            State::Open { .. } => return,
            State::HalfOpen { .. } => {}
        }
        let jitter = 1.0 + rng.f64() / 2.0;
        let wait = match is_refusal {
            true => refused(self.opened, jitter),
            false => {
                let longest = options.max_probe_interval.div_f64(1.5);
                stretch(options.doubled(self.opened).min(longest), jitter)
            }
        };
        self.opened = self.opened.saturating_add(1);
        let until = up.saturating_add(wait);
        self.state = State::Open {
            until: match is_refusal {
                true => until.max(self.may_be_refused_at()),
                false => until,
            },
        };
    }

    /// A workload was refused by its own fault.
    pub(super) fn refused_one(&mut self, up: Duration) {
        self.count_refusal(up);
        self.unknown();
    }

    fn count_refusal(&mut self, up: Duration) {
        self.refusals.push_back(up);
        if self.refusals.len() > REFUSED_PER_DAY {
            self.refusals.pop_front();
        }
    }

    /// The first moment at which one more refusal is not one too many in a day.
    pub(super) fn may_be_refused_at(&self) -> Duration {
        let first = self.refusals.front();
        let is_full = self.refusals.len() >= REFUSED_PER_DAY;
        let first = first.filter(|_| is_full);
        first.map_or(Duration::ZERO, |first| first.saturating_add(DAY))
    }

    /// A workload that is gone does not count.
    pub(super) fn forget(&mut self, who: u32) {
        if let State::Closed { failing, refused } = &mut self.state {
            failing.remove(&who);
            refused.remove(&who);
        }
    }
}
