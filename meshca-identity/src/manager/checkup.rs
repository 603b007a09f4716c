//! Asking a CA from time to time whether it would sign, without having it sign: what somebody repairs is seen soon, and costs
//! nothing.

use std::time::Duration;

use meshca_core::{Error, ErrorKind};

/// Between two checks, unless the CA wants to be asked for its roots more seldom than that.
pub(super) const EVERY: Duration = Duration::from_secs(5 * 60);

/// Between two checks of a CA that does not answer.
pub(super) const OUTAGE: Duration = Duration::from_secs(3);

/// When a CA is checked, and what came of it last.
#[derive(Debug, Default)]
pub(super) struct Checkup {
    next: Duration,
    running: bool,
    /// It did not answer last.
    away: bool,
    /// The kind of error for which it would not sign; the inner `None` if it would. Texts may differ each time.
    verdict: Option<Option<ErrorKind>>,
}

impl Checkup {
    /// Whether to begin one now.
    pub(super) fn begins(&mut self, up: Duration) -> bool {
        let due = !self.running && self.next <= up;
        self.running |= due;
        due
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Duration> {
        (!self.running).then_some(self.next)
    }

    /// Has the next one come no later than this.
    pub(super) fn no_later_than(&mut self, up: Duration) {
        self.next = self.next.min(up);
    }

    /// One has ended, and the next is due then. Says whether the CA was away, and is back. (A check that passed all
    /// the time says nothing about an outage.)
    pub(super) fn ended(&mut self, next: Duration, away: bool) -> bool {
        self.running = false;
        self.next = next;
        std::mem::replace(&mut self.away, away) && !away
    }

    /// Takes note of a verdict, and says whether it is another one than before.
    pub(super) fn is_news(&mut self, error: Option<&Error>) -> bool {
        let verdict = Some(error.map(Error::kind));
        let before = std::mem::replace(&mut self.verdict, verdict);
        before != self.verdict
    }

    /// Whether it would not sign, by the last verdict.
    pub(super) fn refuses(&self) -> bool {
        matches!(self.verdict, Some(Some(_)))
    }
}
