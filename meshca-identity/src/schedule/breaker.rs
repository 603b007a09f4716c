//! Leaves an issuer alone that fails everybody.

use std::collections::BTreeSet;
use std::time::Duration;

use super::options::{ScheduleOptions, stretch};

/// Closed: everything goes. Open: nothing does. Then one probe goes, and what becomes of it decides.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
    /// How often it has opened since anything succeeded.
    opened: u32,
}

#[derive(Debug)]
enum State {
    /// Who has failed since the last success.
    Closed(BTreeSet<u32>),
    Open {
        until: Duration,
    },
    HalfOpen {
        probing: bool,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed(BTreeSet::new())
    }
}

impl Breaker {
    pub(super) fn permits(&self) -> bool {
        matches!(
            self.state,
            State::Closed(_) | State::HalfOpen { probing: false }
        )
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
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

    /// Says whether that has closed it. What was started before it opened counts as well: the issuer works.
    pub(super) fn succeeded(&mut self) -> bool {
        let was_closed = self.is_closed();
        *self = Self::default();
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
        up: Duration,
        options: &ScheduleOptions,
        rng: &mut fastrand::Rng,
    ) {
        match &mut self.state {
            State::Closed(failing) => {
                failing.insert(who);
                if failing.len() < options.breaker_threshold.max(1) {
                    return;
                }
            }
            // Started before it opened.
            State::Open { .. } => return,
            State::HalfOpen { .. } => {}
        }
        let doubled = options.doubled(self.opened);
        let longest = options.max_probe_interval.div_f64(1.5);
        let wait = stretch(doubled.min(longest), 1.0 + rng.f64() / 2.0);
        self.opened = self.opened.saturating_add(1);
        self.state = State::Open {
            until: up.saturating_add(wait),
        };
    }

    /// A workload that is gone does not count.
    pub(super) fn forget(&mut self, who: u32) {
        if let State::Closed(failing) = &mut self.state {
            failing.remove(&who);
        }
    }
}
