use meshca_core::Clock;
use meshca_testkit::FakeClock;
use meshca_testkit::pki::TestCa;

use super::*;

fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn bundle() -> TrustBundle {
    let ca = TestCa::root("root", FakeClock::start()).unwrap();
    ca.bundle(domain()).unwrap()
}

/// The version after so many publications.
fn version(number: u64) -> TrustVersion {
    TrustVersion::new(TrustVersion::default().get() + number).unwrap()
}

fn names(ledger: &TrustLedger) -> usize {
    ledger
        .published()
        .0
        .get(&domain())
        .map_or(0, |it| it.roots().len())
}

#[test]
fn a_root_goes_when_nothing_under_it_can_be_valid_and_not_before() {
    let clock = FakeClock::new();
    let (hour, key) = (
        Duration::from_secs(3600),
        BackendKey::Modern("id".to_owned()),
    );
    let (old, new) = (bundle(), bundle());
    let mut ledger = TrustLedger::default();
    ledger.set(Origin::Backend(key.clone()), old.clone());
    assert!(ledger.publish(clock.now(), true).unwrap());
    let root = &old.roots()[0];
    // One workload holds a certificate; another one held a longer one and is gone.
    drop(ledger.hold(&key, &domain(), root, clock.now() + 3 * hour));
    let held = ledger.hold(&key, &domain(), root, clock.now() + hour);

    // The CA is another one now, and says nothing of the old root.
    ledger.set(Origin::Backend(key.clone()), new.clone());
    assert!(ledger.publish(clock.now(), true).unwrap());
    assert_eq!(names(&ledger), 2);
    assert_eq!(ledger.since(&old), Some(version(1).into()));
    assert_eq!(ledger.since(&new), Some(version(2).into()));
    let all = ledger.by_backend().unwrap();
    assert_eq!(all[&(key.clone(), domain())].roots().len(), 2);

    // Even without a holder, and without the CA.
    drop(held);
    ledger.unset(&Origin::Backend(key.clone()));
    clock.advance(3 * hour);
    ledger.publish(clock.now(), true).unwrap();
    assert!(ledger.holds(&domain(), root));
    clock.advance(CLOCK_SKEW + Duration::from_secs(1));
    assert!(ledger.publish(clock.now(), true).unwrap());
    assert_eq!(names(&ledger), 0);
    assert_eq!(ledger.since(&old), None);
}

#[test]
fn another_order_of_the_same_roots_is_no_news() {
    let key = BackendKey::Modern("id".to_owned());
    let (one, two) = (bundle(), bundle());
    let mut ledger = TrustLedger::default();
    ledger.set(Origin::Backend(key.clone()), one.union(&two).unwrap());
    assert!(ledger.publish(FakeClock::start(), true).unwrap());
    ledger.set(Origin::Backend(key.clone()), two.union(&one).unwrap());
    assert!(!ledger.publish(FakeClock::start(), true).unwrap());
    assert_eq!(ledger.published().1, version(1));
    ledger.set(Origin::Backend(key), two);
    assert!(ledger.publish(FakeClock::start(), true).unwrap());
}

/// What the key of a CA is worth nothing after.
#[test]
fn a_ca_is_left_until_everyone_has_heard_that_its_roots_are_gone() {
    let clock = FakeClock::new();
    let key = |name: &str| BackendKey::Classic(name.to_owned());
    let origin = |name: &str| Origin::Backend(key(name));
    let (hour, old, new) = (Duration::from_secs(3600), bundle(), bundle());
    let mut ledger = TrustLedger::default();
    let left = |ledger: &TrustLedger, acknowledged: u64| -> Vec<BackendKey> {
        let acknowledged = version(acknowledged).into();
        ledger.left(acknowledged).into_iter().cloned().collect()
    };
    ledger.set(origin("old"), old.clone());
    ledger.set(origin("new"), new);
    ledger.set(origin("same"), old.clone());
    ledger.publish(clock.now(), true).unwrap();
    let root = &old.roots()[0];
    drop(ledger.hold(&key("old"), &domain(), root, clock.now() + hour));
    assert_eq!(left(&ledger, 1), []);

    // Another one still stands for its root.
    ledger.unset(&origin("old"));
    ledger.publish(clock.now(), true).unwrap();
    assert_eq!(left(&ledger, 1), []);
    ledger.unset(&origin("same"));
    ledger.publish(clock.now(), true).unwrap();
    // Nobody does, and what it has signed can be valid.
    assert_eq!(left(&ledger, 1), [key("old"), key("same")]);
    assert_eq!(ledger.published().1, version(1));

    clock.advance(hour + CLOCK_SKEW + Duration::from_secs(1));
    assert!(ledger.publish(clock.now(), true).unwrap());
    assert_eq!(ledger.published().1, version(2));
    assert_eq!(left(&ledger, 1), [key("old"), key("same")]);
    assert_eq!(left(&ledger, 2), []);
    // It is back.
    ledger.set(origin("old"), old);
    assert_eq!(left(&ledger, 1), [key("same")]);
}

/// A control plane that was restarted, and applies what it wrote itself again and again.
#[test]
fn what_is_kept_is_not_kept_longer_by_being_said_again() {
    let (clock, key) = (FakeClock::new(), BackendKey::Modern("id".to_owned()));
    let (hour, old) = (Duration::from_secs(3600), bundle());
    let mut ledger = TrustLedger::default();
    for trusted in [1, 1, 0] {
        if trusted == 1 {
            let until = clock.now() + hour;
            ledger.keep(&key, &domain(), &old.roots()[0], clock.now(), until);
        }
        ledger.publish(clock.now(), true).unwrap();
        assert_eq!(names(&ledger), trusted);
        clock.advance(Duration::from_secs(40 * 60));
    }
}

#[test]
fn what_an_operator_wrote_stays_and_origins_add_up() {
    let (one, other) = (bundle(), bundle());
    let mut ledger = TrustLedger::default();
    let origin = |name: &str| Origin::Resource(String::new(), name.to_owned());
    ledger.set(origin("a"), one.clone());
    ledger.set(origin("b"), one.union(&other).unwrap());
    let far = FakeClock::start() + Duration::from_secs(1_000_000_000);
    ledger.publish(far, true).unwrap();
    assert_eq!(names(&ledger), 2);
    ledger.unset(&origin("b"));
    ledger.publish(far, true).unwrap();
    assert_eq!(names(&ledger), 1);
    assert!(!ledger.publish(far, true).unwrap(), "nothing changed");
    assert_eq!(ledger.published().1, version(2));
}

/// Whoever holds it: it could be a workload that will never be renewed.
#[test]
fn a_certificate_that_has_ended_keeps_no_root() {
    let (clock, key) = (FakeClock::new(), BackendKey::Modern("id".to_owned()));
    let (hour, old) = (Duration::from_secs(3600), bundle());
    let mut ledger = TrustLedger::default();
    let root = &old.roots()[0];
    let held = ledger.hold(&key, &domain(), root, clock.now() + hour);
    for (advance, trusted) in [(hour / 2, 1), (hour, 1), (MARGIN - hour, 1), (hour, 0)] {
        clock.advance(advance);
        ledger.publish(clock.now(), true).unwrap();
        assert_eq!(names(&ledger), trusted, "{:?}", clock.now());
    }
    assert!(held.is_some());
}

/// A day longer, since other clocks may be wrong.
#[test]
fn what_is_known_from_the_record_is_kept_for_a_day_longer() {
    let (clock, key) = (FakeClock::new(), BackendKey::Modern("id".to_owned()));
    let (hour, old) = (Duration::from_secs(3600), bundle());
    let used = Used {
        backend: key,
        bundle: old,
        until: clock.now() + hour,
        signed: true,
    };
    let mut ledger = TrustLedger::default();
    ledger.share(&used);
    for (advance, agrees, trusted, withheld) in [
        (hour, true, 1, false),
        (MARGIN, true, 1, false),
        (hour, false, 1, true),
        (100 * MARGIN, false, 1, true),
        (hour, true, 0, false),
    ] {
        clock.advance(advance);
        ledger.publish(clock.now(), agrees).unwrap();
        assert_eq!((names(&ledger), ledger.is_withheld()), (trusted, withheld));
    }
}

/// Its CA names it still, and no peer would accept what is below it.
#[test]
fn a_root_that_has_ended_is_not_published() {
    let (clock, key) = (FakeClock::new(), BackendKey::Modern("id".to_owned()));
    let (old, new) = (bundle(), bundle());
    let end = old.roots()[0].validity().not_after();
    let later = TestCa::root("later", end)
        .unwrap()
        .bundle(domain())
        .unwrap();
    let mut ledger = TrustLedger::default();
    ledger.set(Origin::Backend(key.clone()), old.union(&later).unwrap());
    let by_hand = Origin::Resource(String::new(), "by-hand".to_owned());
    ledger.set(by_hand.clone(), new.clone());
    clock.set(end);
    ledger.publish(clock.now(), true).unwrap();
    assert_eq!(names(&ledger), 3);
    clock.advance(MARGIN + Duration::from_secs(1));
    ledger.publish(clock.now(), false).unwrap();
    assert_eq!(names(&ledger), 3, "by a clock that is doubted");
    assert!(ledger.publish(clock.now(), true).unwrap());
    // What an operator wrote stays.
    assert_eq!(names(&ledger), 2);
    assert!(!ledger.holds(&domain(), &old.roots()[0]));
    assert!(!ledger.publish(clock.now(), true).unwrap());
    let written = ledger.by_backend().unwrap();
    assert_eq!(written[&(key.clone(), domain())], later);
    // The gate does not wait for proxies to trust it.
    let both = old.union(&later).unwrap();
    assert_eq!(ledger.since(&both), ledger.since(&later));
    assert!(ledger.since(&both).is_some());
}

mod replicas {
    //! Control planes that share a record, with clocks of their own.

    use std::collections::BTreeSet;

    use meshca_core::MemorySecretStore;
    use proptest::prelude::*;

    use super::*;
    use crate::record::Claims;
    use crate::schedule::Now;
    use crate::watch::ClockWatch;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    const LIFETIME: Duration = DAY;

    #[derive(Clone, Debug)]
    enum Op {
        Advance(u64),
        Issue(usize),
        /// The CA has another root.
        Replace,
        /// A control plane crashes, and another one starts in its place.
        Restart(usize),
        /// The clock of the second one is set ahead, or back to where it was.
        SetAhead(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (1_u64..3 * 3600).prop_map(Op::Advance),
            3 => (3600_u64..3 * 24 * 3600).prop_map(Op::Advance),
            5 => (0_usize..2).prop_map(Op::Issue),
            2 => Just(Op::Replace),
            2 => (0_usize..2).prop_map(Op::Restart),
            1 => prop_oneof![Just(0), 0_u64..24, 5_u64 * 24..400 * 24].prop_map(Op::SetAhead),
        ]
    }

    #[derive(Default)]
    struct Replica {
        ledger: TrustLedger,
        watch: ClockWatch,
        stored: Record,
        claims: Claims,
        started: Duration,
        ahead: Duration,
    }

    fn key() -> BackendKey {
        BackendKey::Modern("id".to_owned())
    }

    impl Replica {
        fn now(&self, passed: Duration) -> Now {
            Now {
                wall: FakeClock::start() + passed + self.ahead,
                up: passed - self.started,
            }
        }

        async fn start(store: &MemorySecretStore, passed: Duration, ahead: Duration) -> Self {
            let mut new = Self {
                started: passed,
                ahead,
                ..Self::default()
            };
            let record = Record::read(store, "default").await.unwrap();
            new.watch.read(record.newest(), new.now(passed));
            for used in record.used.values() {
                new.ledger.recall(used);
            }
            new.stored = record;
            new
        }

        /// Everything that the manager does in a tick.
        async fn tick(&mut self, store: &MemorySecretStore, root: &TrustBundle, passed: Duration) {
            let now = self.now(passed);
            self.ledger.set(Origin::Backend(key()), root.clone());
            let agrees = self.watch.agrees(now);
            self.ledger.publish(now.wall, agrees).unwrap();
            let clock = agrees.then_some(now.wall);
            let ours = self.ledger.record(|_| Some("ca")).pruned(clock);
            let claims = self.claims.lacking(self.ledger.needs());
            let ours = ours.ahead(&claims, &self.claims, now.wall);
            let none = BTreeSet::new();
            let written = ours.write(store, "default", &none, &claims, &self.stored, clock);
            let written = written.await.unwrap();
            self.claims.said(claims, &written);
            let mut newest = None;
            for (root, used) in self.claims.others(&written) {
                let known = self.stored.used.get(root).map(|it| it.until);
                let is_news = known < Some(used.until) && !self.claims.has(root);
                newest = newest.max(is_news.then_some(used.until));
                self.ledger.share(used);
            }
            if newest.is_some() {
                self.watch.read(newest, now);
            }
            self.stored = written;
            let agrees = self.watch.agrees(now);
            self.ledger.publish(now.wall, agrees).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// One clock is right, and the other one up to a day ahead, or far ahead: at every moment every
        /// living certificate leads to a root that both publish, and that one who starts now would.
        #[test]
        fn no_clock_ends_the_trust_in_what_lives(
            ops in prop::collection::vec(op(), 1..60),
            ahead in prop_oneof![Just(0), 0_u64..24, 5_u64 * 24..400 * 24],
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let store = MemorySecretStore::new();
                let mut roots = vec![bundle()];
                let mut passed = Duration::ZERO;
                let mut is_wrong = ahead > 0;
                let ahead = ahead as u32 * HOUR;
                let mut replicas = [
                    Replica::start(&store, passed, Duration::ZERO).await,
                    Replica::start(&store, passed, ahead).await,
                ];
                let mut living: Vec<(SystemTime, TrustBundle)> = Vec::new();
                let mut vouches_for_itself = false;
                for op in ops {
                    match op {
                        Op::Advance(seconds) => passed += Duration::from_secs(seconds),
                        Op::Issue(which) => {
                            let root = roots.last().unwrap();
                            let until = replicas[which].now(passed).wall + LIFETIME;
                            let replica = &mut replicas[which];
                            // What begins in the future is of no use to anybody yet.
                            if which == 0 {
                                living.push((until, root.clone()));
                            }
                            vouches_for_itself |= which == 1 && replica.ahead > DAY;
                            drop(replica.ledger.hold(&key(), &domain(), &root.roots()[0], until));
                        }
                        Op::Replace if roots.len() < 5 => roots.push(bundle()),
                        Op::Replace => {}
                        // It would take its own entry for that of another one.
                        Op::Restart(1) if vouches_for_itself => {}
                        Op::Restart(which) => {
                            let ahead = replicas[which].ahead;
                            replicas[which] = Replica::start(&store, passed, ahead).await;
                        }
                        // A clock that was wrong from the start is not set further.
                        Op::SetAhead(hours) if ahead.is_zero() => {
                            is_wrong |= hours > 0;
                            replicas[1].ahead = hours as u32 * HOUR;
                        }
                        Op::SetAhead(_) => {}
                    }
                    let root = roots.last().unwrap().clone();
                    for replica in &mut replicas {
                        replica.tick(&store, &root, passed).await;
                    }
                    // The first hears of what the second has written an hour later at most.
                    replicas[0].tick(&store, &root, passed).await;
                    let now = FakeClock::start() + passed;
                    living.retain(|(until, _)| *until >= now);
                    let third = Replica::start(&store, passed, Duration::ZERO).await;
                    let mut third = third.ledger;
                    third.set(Origin::Backend(key()), root);
                    third.publish(now, true).unwrap();
                    for (_, root) in &living {
                        let root = &root.roots()[0];
                        for (who, ledger) in [&replicas[0].ledger, &third, &replicas[1].ledger].iter().enumerate() {
                            // What it has written itself is all that its clock could disagree with.
                            if who == 2 && vouches_for_itself {
                                continue;
                            }
                            prop_assert!(ledger.holds(&domain(), root), "{who} has lost it");
                        }
                    }
                }
                // And it shrinks.
                if !is_wrong {
                    let root = roots.last().unwrap().clone();
                    for _ in 0..8 {
                        passed += DAY;
                        for replica in &mut replicas {
                            replica.tick(&store, &root, passed).await;
                        }
                    }
                    passed += 40 * DAY;
                    for replica in &mut replicas {
                        replica.tick(&store, &root, passed).await;
                        prop_assert_eq!(names(&replica.ledger), 1);
                    }
                }
                Ok(())
            })?;
        }
    }
}
