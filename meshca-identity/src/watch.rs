//! Whether this control plane's clock may decide that trust has ended.
//!
//! Replicas share the record of what proxies trust. One whose clock is ahead would take roots out of
//! it under which certificates are alive. So a clock has to agree with the newest entry of the record
//! when that is first read, and after that with the time that has passed since, and with what others
//! write.

use std::time::{Duration, SystemTime};

use crate::schedule::Now;

/// How much longer than what is in the record its trust is kept, in the record and by those who read it: a day. Clocks go
/// wrong, here and at replicas.
pub(crate) const MARGIN: Duration = Duration::from_secs(24 * 3600);

/// How long a clock is doubted at most: as long as certificates of workloads usually live. What was
/// valid when the doubt began has ended then, whatever the clock says.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What others still write has ended two days ago at most, by a clock that agrees: they keep it for a
/// [day](MARGIN), and their clocks may be behind by another.
const LATE: Duration = MARGIN.saturating_mul(2);

/// Whether what others have written now has ended so long ago that one of the clocks is wrong.
pub(crate) fn is_late(newest: SystemTime, now: SystemTime) -> bool {
    newest.checked_add(LATE).is_some_and(|end| end < now)
}

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ClockWatch {
    /// The record was not read: there is nothing that could be removed.
    #[default]
    Unread,
    /// The clock agreed then. It may be ahead of what has passed since by a day.
    Agreed(Now),
    Doubted {
        /// When the doubt began.
        since: Duration,
        because: Doubt,
    },
}

/// Why a clock is doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// By it, the newest entry of the record, which lasts until then, has ended.
    AfterNewest(SystemTime),
    /// It was set ahead after this, when it agreed.
    SetAheadAfter(Now),
}

impl Doubt {
    fn holds(self, now: Now) -> bool {
        match self {
            Self::AfterNewest(newest) => now.wall > newest,
            Self::SetAheadAfter(then) => is_ahead(then, now),
        }
    }
}

/// Whether the clock has gone on by more than the time that has passed, and a day.
fn is_ahead(then: Now, now: Now) -> bool {
    let passed = now.up.saturating_sub(then.up).saturating_add(MARGIN);
    now.wall.duration_since(then.wall).unwrap_or_default() > passed
}

impl ClockWatch {
    /// Takes note of the newest entry that others have in the record, `None` if it has none. What
    /// this control plane has written itself says nothing about its clock.
    pub(crate) fn read(&mut self, newest: Option<SystemTime>, now: Now) {
        let doubt = newest.map(Doubt::AfterNewest);
        let doubt = doubt.filter(|doubt| doubt.holds(now));
        match (*self, doubt) {
            (Self::Unread, Some(because)) => {
                let since = now.up;
                *self = Self::Doubted { since, because };
            }
            (Self::Unread, None) => *self = Self::Agreed(now),
            (Self::Agreed(_), Some(Doubt::AfterNewest(newest))) if is_late(newest, now.wall) => {
                let since = now.up;
                let because = Doubt::AfterNewest(newest);
                *self = Self::Doubted { since, because };
            }
            (
                Self::Doubted {
                    because: Doubt::AfterNewest(_),
                    ..
                },
                None,
            ) if newest.is_some() => *self = Self::Agreed(now),
            _ => {}
        }
    }

    /// Whether trust may be removed by this clock now.
    pub(crate) fn agrees(&mut self, now: Now) -> bool {
        match *self {
            Self::Unread => true,
            Self::Agreed(then) => {
                let because = Doubt::SetAheadAfter(then);
                if because.holds(now) {
                    let since = now.up;
                    *self = Self::Doubted { since, because };
                    return false;
                }
                true
            }
            Self::Doubted { since, because } => {
                let over = now.up.saturating_sub(since) >= PATIENCE;
                match (because.holds(now), because) {
                    (true, _) if !over => return false,
                    (false, Doubt::SetAheadAfter(then)) => *self = Self::Agreed(then),
                    _ => *self = Self::Agreed(now),
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use meshca_testkit::FakeClock;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(up: Duration, ahead: Duration) -> Now {
        let wall = FakeClock::start() + up + ahead;
        Now { up, wall }
    }

    #[test]
    fn a_clock_agrees_with_the_newest_entry_and_with_the_time_that_passes() {
        let newest = FakeClock::start() + 36 * HOUR;
        for (entry, ahead, agrees) in [
            (None, 1000 * DAY, true),
            (Some(newest), Duration::ZERO, true),
            (Some(newest), 36 * HOUR, true),
            (Some(newest), 37 * HOUR, false),
            (Some(newest), 1000 * DAY, false),
        ] {
            let mut watch = ClockWatch::default();
            watch.read(entry, at(HOUR, ahead.saturating_sub(HOUR)));
            let said = watch.agrees(at(HOUR, ahead.saturating_sub(HOUR)));
            assert_eq!(said, agrees, "{entry:?} {ahead:?}");
        }
        // It runs for a year, and is right.
        let mut watch = ClockWatch::default();
        watch.read(Some(newest), at(HOUR, Duration::ZERO));
        for day in 0..365 {
            assert!(watch.agrees(at(day * DAY + HOUR, Duration::ZERO)));
        }
        // It is set ahead, and back.
        let year = 365 * DAY;
        assert!(watch.agrees(at(year, DAY)));
        assert!(!watch.agrees(at(year, DAY + HOUR)));
        assert!(!watch.agrees(at(year + HOUR, 10 * DAY)));
        watch.read(
            Some(FakeClock::start() + 2 * year),
            at(year + HOUR, 10 * DAY),
        );
        assert!(!watch.agrees(at(year + HOUR, 10 * DAY)));
        assert!(watch.agrees(at(year + HOUR, Duration::ZERO)));
        // What others write is not new. They may be a day behind, and keep it for a day.
        watch.read(
            Some(FakeClock::start() + year - 2 * DAY),
            at(year, Duration::ZERO),
        );
        assert!(watch.agrees(at(year, Duration::ZERO)));
        watch.read(
            Some(FakeClock::start() + year - 3 * DAY),
            at(year, Duration::ZERO),
        );
        assert!(!watch.agrees(at(year, Duration::ZERO)));
    }

    #[test]
    fn a_doubt_ends_with_a_newer_entry_with_a_clock_that_is_set_right_and_after_a_month() {
        let newest = FakeClock::start() + DAY;
        let doubted = || {
            let mut watch = ClockWatch::default();
            watch.read(Some(newest), at(Duration::ZERO, 5 * DAY));
            assert!(!watch.agrees(at(HOUR, 5 * DAY)));
            watch
        };
        let mut by_another = doubted();
        // Another entry that has ended as well is no reason.
        by_another.read(Some(newest + DAY), at(HOUR, 5 * DAY));
        assert!(!by_another.agrees(at(HOUR, 5 * DAY)));
        by_another.read(Some(newest + 6 * DAY), at(HOUR, 5 * DAY));
        assert!(by_another.agrees(at(HOUR, 5 * DAY)));

        assert!(doubted().agrees(at(HOUR, Duration::ZERO)));

        let mut alone = doubted();
        assert!(!alone.agrees(at(PATIENCE - HOUR, 5 * DAY)));
        assert!(alone.agrees(at(PATIENCE, 5 * DAY)));
        assert!(alone.agrees(at(PATIENCE + 100 * DAY, 5 * DAY)));
    }
}
