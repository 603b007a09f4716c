//! When to ask and when not: events in, decisions out. It knows no clock, no CA and no error.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// The state of a [`Breaker`](super::Breaker).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BreakerState {
    /// Everything is passed on.
    Closed,
    /// Nothing is.
    Open,
    /// The next call, or the one under way, decides.
    HalfOpen,
}

/// When the breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// How many different keys must fail.
    pub(super) threshold: usize,
    /// For how long a failure counts.
    pub(super) window: Duration,
    /// How long nothing is asked before it is tried, and how long a trial may take.
    pub(super) open_for: Duration,
}

/// What became of something that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It works.
    Passed,
    /// It may pass later: what the breaker is there for.
    Failed,
    /// It says nothing about whether the CA works: refused for its own sake, or dropped.
    Neutral,
}

/// Shows which question a report belongs to: the number of a probe, if it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(Option<u64>);

#[derive(Clone, Debug)]
enum Phase<K> {
    Closed { failing: HashMap<K, Duration> },
    Open { until: Duration },
    HalfOpen { probe: Option<Probe> },
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    number: u64,
    until: Duration,
}

/// The state of a breaker. Points in time are durations since an origin of the caller's, and never go back.
#[derive(Clone, Debug)]
pub(super) struct Breaking<K> {
    rules: Rules,
    phase: Phase<K>,
    probes: u64,
}

impl<K: Eq + Hash> Breaking<K> {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            phase: Phase::Closed {
                failing: HashMap::new(),
            },
            probes: 0,
        }
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn shown(&self, now: Duration) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until } if now < until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// May the CA be asked now? If so, [report](Self::report) what became of it; else come back after this time.
    pub(super) fn ask(&mut self, now: Duration) -> Result<Ticket, Duration> {
        match self.phase {
            Phase::Closed { .. } => return Ok(Ticket(None)),
            Phase::Open { until } if now < until => return Err(until - now),
            // One that neither returned nor was dropped must not keep the breaker open for ever.
            Phase::HalfOpen { probe: Some(probe) } if now < probe.until => {
                return Err(probe.until - now);
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => {}
        }
        self.probes += 1;
        self.phase = Phase::HalfOpen {
            probe: Some(Probe {
                number: self.probes,
                until: now.saturating_add(self.rules.open_for),
            }),
        };
        Ok(Ticket(Some(self.probes)))
    }

    /// What became of what was asked. Returns whether this opened or closed it.
    pub(super) fn report(
        &mut self,
        ticket: Ticket,
        key: K,
        outcome: Outcome,
        now: Duration,
    ) -> bool {
        match (&mut self.phase, outcome) {
            // Whoever brings it, and however long ago it was asked: it works.
            (Phase::Closed { failing }, Outcome::Passed) => {
                failing.clear();
                false
            }
            (Phase::Open { .. } | Phase::HalfOpen { .. }, Outcome::Passed) => {
                self.phase = Phase::Closed {
                    failing: HashMap::new(),
                };
                true
            }
            (Phase::Closed { failing }, Outcome::Failed) => {
                let window = self.rules.window;
                failing.retain(|_, at| now.saturating_sub(*at) < window);
                failing.insert(key, now);
                if failing.len() < self.rules.threshold {
                    return false;
                }
                self.open(now);
                true
            }
            (Phase::HalfOpen { probe }, outcome) => {
                // What was asked before it opened, or a probe that was given up, decides nothing any more.
                if ticket.0.is_none() || ticket.0 != probe.map(|probe| probe.number) {
                    return false;
                }
                *probe = None;
                if outcome == Outcome::Failed {
                    self.open(now);
                }
                false
            }
            (Phase::Closed { .. } | Phase::Open { .. }, _) => false,
        }
    }

    fn open(&mut self, now: Duration) {
        self.phase = Phase::Open {
            until: now.saturating_add(self.rules.open_for),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        threshold: 3,
        window: Duration::from_secs(60),
        open_for: Duration::from_secs(30),
    };

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Asks and reports at once.
    fn go(breaking: &mut Breaking<u8>, key: u8, outcome: Outcome, secs: u64) -> bool {
        match breaking.ask(at(secs)) {
            Ok(ticket) => {
                breaking.report(ticket, key, outcome, at(secs));
                true
            }
            Err(_) => false,
        }
    }

    #[test]
    fn it_opens_for_different_keys_in_a_row_within_the_window() {
        use Outcome::{Failed, Neutral, Passed};
        for (what, events, open) in [
            (
                "three in a row",
                vec![(1, Failed, 0), (2, Failed, 0), (3, Failed, 0)],
                true,
            ),
            ("one, however often", vec![(1, Failed, 0); 100], false),
            (
                "two",
                vec![(1, Failed, 0), (2, Failed, 0), (1, Failed, 0)],
                false,
            ),
            (
                "a success in between",
                vec![
                    (1, Failed, 0),
                    (2, Failed, 0),
                    (9, Passed, 0),
                    (3, Failed, 0),
                ],
                false,
            ),
            (
                "something neutral in between",
                vec![
                    (1, Failed, 0),
                    (2, Failed, 0),
                    (9, Neutral, 0),
                    (3, Failed, 0),
                ],
                true,
            ),
            (
                "too far apart",
                vec![(1, Failed, 0), (2, Failed, 1), (3, Failed, 60)],
                false,
            ),
            (
                "just not",
                vec![(1, Failed, 0), (2, Failed, 1), (3, Failed, 59)],
                true,
            ),
            (
                "the first one again, later",
                vec![
                    (1, Failed, 0),
                    (2, Failed, 50),
                    (1, Failed, 55),
                    (3, Failed, 70),
                ],
                true,
            ),
        ] {
            let mut breaking = Breaking::new(RULES);
            let mut last = 0;
            for (key, outcome, secs) in events {
                assert!(go(&mut breaking, key, outcome, secs), "{what}");
                last = secs;
            }
            assert_eq!(
                breaking.shown(at(last)) == BreakerState::Open,
                open,
                "{what}"
            );
            assert_eq!(breaking.ask(at(last)).is_err(), open, "{what}");
        }
    }

    fn opened() -> Breaking<u8> {
        let mut breaking = Breaking::new(RULES);
        for key in 1..=3 {
            go(&mut breaking, key, Outcome::Failed, 0);
        }
        breaking
    }

    fn probe(breaking: &mut Breaking<u8>, secs: u64) -> Ticket {
        match breaking.ask(at(secs)) {
            Ok(ticket) => ticket,
            Err(wait) => unreachable!("refused for {wait:?}"),
        }
    }

    #[test]
    fn one_probe_at_a_time_decides() {
        let mut breaking = opened();
        assert_eq!(breaking.ask(at(29)), Err(at(1)));
        let first = probe(&mut breaking, 30);
        assert_eq!(breaking.shown(at(30)), BreakerState::HalfOpen);
        assert_eq!(breaking.ask(at(31)), Err(at(29)));

        // It fails: closed to all for another while.
        breaking.report(first, 1, Outcome::Failed, at(32));
        assert_eq!(breaking.ask(at(33)), Err(at(29)));

        // It says nothing: the next one tries.
        let second = probe(&mut breaking, 62);
        breaking.report(second, 1, Outcome::Neutral, at(63));
        let third = probe(&mut breaking, 63);

        // It never comes back: after a while the next one tries, and the late answer opens nothing.
        assert_eq!(breaking.ask(at(92)), Err(at(1)));
        let fourth = probe(&mut breaking, 93);
        breaking.report(third, 1, Outcome::Failed, at(94));
        assert_eq!(breaking.shown(at(94)), BreakerState::HalfOpen);

        assert!(breaking.report(fourth, 1, Outcome::Passed, at(95)));
        assert_eq!(breaking.shown(at(95)), BreakerState::Closed);
        assert!(go(&mut breaking, 1, Outcome::Failed, 95));
        assert!(
            go(&mut breaking, 2, Outcome::Failed, 95),
            "it starts from nothing"
        );
    }

    #[derive(Clone, Debug)]
    enum Event {
        Wait(u64),
        Ask,
        /// Of the questions that are open, this one is answered.
        Answer(prop::sample::Index, u8, Outcome),
    }

    fn event() -> impl Strategy<Value = Event> {
        let outcome = prop_oneof![
            1 => Just(Outcome::Passed),
            6 => Just(Outcome::Failed),
            1 => Just(Outcome::Neutral),
        ];
        prop_oneof![
            (0u64..40).prop_map(Event::Wait),
            Just(Event::Ask),
            Just(Event::Ask),
            (any::<prop::sample::Index>(), 0u8..6, outcome)
                .prop_map(|(which, key, outcome)| Event::Answer(which, key, outcome)),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: it opens only for enough different keys without a success
        /// in between, it never lets two probes through at a time, it never refuses for longer than
        /// `open_for`, and a success closes it.
        #[test]
        fn it_holds_what_it_promises(events in prop::collection::vec(event(), 0..300)) {
            let mut breaking = Breaking::new(RULES);
            let mut now = Duration::ZERO;
            let mut open_questions: Vec<Ticket> = Vec::new();
            // Failures since the last success: the naive account of what may open it.
            let mut failed: Vec<(u8, Duration)> = Vec::new();
            let mut probes: Vec<(Ticket, Duration)> = Vec::new();
            for event in events {
                match event {
                    Event::Wait(secs) => now += at(secs),
                    Event::Ask => match breaking.ask(now) {
                        Ok(ticket) => {
                            if breaking.shown(now) != BreakerState::Closed {
                                let alive = probes.iter().filter(|(ticket, since)| {
                                    open_questions.contains(ticket) && now - *since < RULES.open_for
                                });
                                prop_assert_eq!(alive.count(), 0, "two probes at a time");
                                probes.push((ticket, now));
                            }
                            open_questions.push(ticket);
                        }
                        Err(wait) => {
                            prop_assert!(wait > Duration::ZERO && wait <= RULES.open_for);
                            prop_assert!(breaking.shown(now) != BreakerState::Closed);
                            let mut later = breaking.clone();
                            prop_assert!(later.ask(now + wait).is_ok());
                        }
                    },
                    Event::Answer(which, key, outcome) => {
                        if open_questions.is_empty() {
                            continue;
                        }
                        let ticket = open_questions.swap_remove(which.index(open_questions.len()));
                        let before = breaking.shown(now);
                        let changed = breaking.report(ticket, key, outcome, now);
                        let after = breaking.shown(now);
                        match outcome {
                            Outcome::Passed => {
                                failed.clear();
                                prop_assert_eq!(after, BreakerState::Closed);
                                prop_assert_eq!(changed, before != BreakerState::Closed);
                            }
                            Outcome::Failed => failed.push((key, now)),
                            Outcome::Neutral => prop_assert_eq!(after, before),
                        }
                        if before == BreakerState::Closed {
                            let mut recent: Vec<_> = failed
                                .iter()
                                .filter(|(_, at)| now - *at < RULES.window)
                                .map(|(key, _)| *key)
                                .collect();
                            recent.sort_unstable();
                            recent.dedup();
                            let opens = outcome == Outcome::Failed && recent.len() >= RULES.threshold;
                            prop_assert_eq!(after == BreakerState::Open, opens);
                        }
                    }
                }
            }
        }
    }
}
