use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Scheduler {
    /// Has an identity issued, and then kept fresh.
    fn add(&mut self, lane: LaneId, priority: Priority) -> Ticket {
        let ticket = self.insert(lane);
        self.reissue(ticket, lane, priority);
        ticket
    }
}

/// A day of 1970, at the start.
fn start() -> Now {
    Now {
        wall: SystemTime::UNIX_EPOCH + DAY,
        up: Duration::ZERO,
    }
}

/// A world around a scheduler: two clocks, and an issuer that takes its time.
struct World {
    scheduler: Scheduler,
    wall: SystemTime,
    up: Duration,
    /// What is under way: when it ends, and for whom.
    working: BTreeSet<(Duration, usize)>,
    tickets: BTreeMap<usize, Ticket>,
    latency: Duration,
    lifetime: Duration,
    /// Issued, per identity, at which time since the start.
    issued: BTreeMap<usize, Vec<Duration>>,
    failed: Vec<(Duration, usize)>,
    late: BTreeMap<usize, u32>,
    expired: BTreeMap<usize, u32>,
    most_in_flight: usize,
    /// How the issuer fails a workload at a time.
    fails: fn(Duration, usize) -> Option<Fault>,
}

impl World {
    fn new(options: ScheduleOptions) -> Self {
        Self {
            scheduler: Scheduler::new(options, 7),
            wall: SystemTime::UNIX_EPOCH + 1000 * DAY,
            up: Duration::ZERO,
            working: BTreeSet::new(),
            tickets: BTreeMap::new(),
            latency: Duration::from_millis(5),
            lifetime: DAY,
            issued: BTreeMap::new(),
            failed: Vec::new(),
            late: BTreeMap::new(),
            expired: BTreeMap::new(),
            most_in_flight: 0,
            fails: |_, _| None,
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: self.wall,
            up: self.up,
        }
    }

    fn add(&mut self, lane: LaneId, priority: Priority) -> Ticket {
        let ticket = self.scheduler.add(lane, priority);
        self.tickets.insert(ticket.index(), ticket);
        ticket
    }

    fn poll(&mut self) {
        let mut actions = Vec::new();
        self.scheduler.poll(self.now(), &mut actions);
        for action in actions {
            match action {
                Action::Issue(ticket) => {
                    let fresh = self
                        .working
                        .insert((self.up + self.latency, ticket.index()));
                    assert!(fresh, "two requests for one identity");
                    assert_eq!(
                        self.working
                            .iter()
                            .filter(|it| it.1 == ticket.index())
                            .count(),
                        1,
                        "two requests for one identity"
                    );
                }
                Action::Late(ticket) => {
                    *self.late.entry(ticket.index()).or_default() += 1;
                }
                Action::Expired(ticket) => {
                    *self.expired.entry(ticket.index()).or_default() += 1;
                }
            }
        }
        self.most_in_flight = self.most_in_flight.max(self.working.len());
        assert_eq!(self.working.len(), self.scheduler.in_flight());
    }

    /// Goes to the next event, at most until then.
    fn step(&mut self, until: Duration) {
        let wake = self.scheduler.next_wake();
        let by_wall = wake
            .wall
            .map(|at| self.up + at.duration_since(self.wall).unwrap_or_default());
        let ends = self.working.first().map(|(at, _)| *at);
        let next = [by_wall, wake.up, ends, Some(until)].into_iter().flatten();
        let next = next.min().unwrap().max(self.up);
        self.wall += next - self.up;
        self.up = next;
        while let Some(&(at, index)) = self.working.first()
            && at <= self.up
        {
            self.working.remove(&(at, index));
            let outcome = if let Some(fault) = (self.fails)(self.up, index) {
                self.failed.push((self.up, index));
                let retry = match fault {
                    Fault::Unreachable => Retry::Backoff,
                    _ => Retry::Never,
                };
                Outcome::Failed { retry, fault }
            } else {
                self.issued.entry(index).or_default().push(self.up);
                Outcome::Issued(Held {
                    issued_at: self.wall,
                    not_after: self.wall + self.lifetime,
                })
            };
            let now = self.now();
            self.scheduler.finished(self.tickets[&index], outcome, now);
        }
        self.poll();
    }

    fn run(&mut self, until: Duration) {
        self.poll();
        while self.up < until {
            self.step(until);
        }
    }

    fn issuances(&self) -> usize {
        self.issued.values().map(Vec::len).sum()
    }
}

#[test]
fn a_year_of_a_thousand_identities() {
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..1000 {
        world.add(lane, Priority::First);
    }
    world.run(365 * DAY);
    assert!(world.expired.is_empty());
    assert!(world.most_in_flight <= 16);
    // Between 50 % and 60 % of a day: some 664 in a year each.
    for times in world.issued.values() {
        assert!((600..=731).contains(&times.len()), "{}", times.len());
        for pair in times.windows(2) {
            let after = (pair[1] - pair[0]).as_secs_f64() / DAY.as_secs_f64();
            assert!((0.499..=0.601).contains(&after), "renewed after {after}");
        }
    }
}

#[test]
fn what_began_together_does_not_stay_together() {
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..2000 {
        world.add(lane, Priority::First);
    }
    world.run(DAY.mul_f64(0.61));
    let minute = |at: Duration| at.as_secs() / 60;
    let mut per_minute = BTreeMap::<u64, usize>::new();
    for times in world.issued.values() {
        *per_minute.entry(minute(times[1])).or_default() += 1;
    }
    // 144 minutes for 2,000: some 14 in each.
    assert!(per_minute.len() > 130, "{}", per_minute.len());
    assert!(*per_minute.values().max().unwrap() < 40);
}

#[test]
fn ten_thousand_at_once_are_issued_once_each_within_the_limit() {
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..10_000 {
        world.add(lane, Priority::First);
    }
    world.run(HOUR);
    assert_eq!(world.issuances(), 10_000);
    assert_eq!(world.most_in_flight, 16);
}

#[test]
fn an_outage_of_forty_percent_costs_nobody_and_is_not_hammered() {
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..1000 {
        world.add(lane, Priority::First);
    }
    // The worst time for it: it begins as the first is due and ends when little is left.
    world.fails =
        |up, _| ((DAY.mul_f64(0.5)..DAY.mul_f64(0.9)).contains(&up)).then_some(Fault::Unreachable);
    world.run(2 * DAY);
    assert!(world.expired.is_empty(), "{:?}", world.expired);
    // One probe a minute, and those that were on their way when the breaker opened.
    let tries = world.failed.len();
    let minutes = DAY.mul_f64(0.4).as_secs() as usize / 60;
    assert!(
        (minutes / 2..2 * minutes).contains(&tries),
        "{tries} tries in {minutes} minutes"
    );
    // All are back within minutes of its end.
    let end = DAY.mul_f64(0.9);
    for times in world.issued.values() {
        assert!(
            times
                .iter()
                .any(|at| *at > DAY.mul_f64(0.49) && *at < end + Duration::from_secs(120))
        );
    }
}

#[test]
fn what_ends_without_a_successor_is_said_once_and_comes_back() {
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..100 {
        world.add(lane, Priority::First);
    }
    world.fails =
        |up, _| ((DAY.mul_f64(0.4)..DAY.mul_f64(1.5)).contains(&up)).then_some(Fault::Unreachable);
    world.run(DAY.mul_f64(1.4));
    assert_eq!(world.expired.len(), 100);
    assert!(world.expired.values().all(|times| *times == 1));
    world.run(DAY.mul_f64(1.5) + Duration::from_secs(120));
    assert!(world.issued.values().all(|times| times.len() == 2));
}

/// Nobody fails, and yet nothing comes: a lane that is held, or a breaker that is open.
#[test]
fn what_is_late_is_said_once_whatever_the_reason() {
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..10 {
        world.add(lane, Priority::First);
    }
    world.run(HOUR);
    world.scheduler.pause(lane, true);
    world.run(DAY.mul_f64(0.74));
    assert!(world.late.is_empty());
    world.run(DAY.mul_f64(0.76));
    assert_eq!(world.late.len(), 10);
    world.run(2 * DAY);
    assert!(
        world
            .late
            .values()
            .chain(world.expired.values())
            .all(|times| *times == 1)
    );
    assert_eq!(world.expired.len(), 10);
}

#[test]
fn no_options_and_no_lifetimes_make_a_loop() {
    let options = ScheduleOptions {
        min_backoff: Duration::ZERO,
        max_backoff: Duration::ZERO,
        max_probe_interval: Duration::ZERO,
        ..ScheduleOptions::default()
    };
    let mut world = World::new(options);
    let lane = world.scheduler.open_lane();
    world.add(lane, Priority::First);
    world.fails = |_, _| Some(Fault::Unreachable);
    world.run(Duration::from_secs(60));
    assert!(world.failed.len() <= 1000, "{}", world.failed.len());

    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    world.lifetime = Duration::from_secs(1);
    world.add(lane, Priority::First);
    world.run(Duration::from_secs(60));
    assert!(world.issuances() <= 13, "{}", world.issuances());
}

#[test]
fn the_first_come_before_renewals_and_both_before_prefetch_but_nobody_starves() {
    let options = ScheduleOptions {
        concurrency: 1,
        ..ScheduleOptions::default()
    };
    let mut scheduler = Scheduler::new(options, 1);
    let lane = scheduler.open_lane();
    let now = start();
    let prefetch: Vec<_> = (0..5)
        .map(|_| scheduler.add(lane, Priority::Prefetch))
        .collect();
    let renewal: Vec<_> = (0..5)
        .map(|_| scheduler.add(lane, Priority::Renewal))
        .collect();
    for _ in 0..1000 {
        scheduler.add(lane, Priority::First);
    }
    let mut order = Vec::new();
    loop {
        let mut actions = Vec::new();
        scheduler.poll(now, &mut actions);
        let Some(Action::Issue(ticket)) = actions.pop() else {
            break;
        };
        order.push(ticket);
        let held = Held {
            issued_at: now.wall,
            not_after: now.wall + DAY,
        };
        scheduler.finished(ticket, Outcome::Issued(held), now);
    }
    assert_eq!(order.len(), 1010);
    let at = |tickets: &[Ticket]| -> Vec<usize> {
        tickets
            .iter()
            .map(|it| order.iter().position(|o| o == it).unwrap() + 1)
            .collect()
    };
    assert_eq!(at(&renewal), [8, 16, 24, 32, 40]);
    assert_eq!(
        at(&prefetch)[..2],
        [48, 56],
        "renewals are done, so prefetch has their turn"
    );
}

#[test]
fn of_those_that_are_due_at_once_what_ends_first_comes_first() {
    let minute = Duration::from_secs(60);
    let mut scheduler = Scheduler::new(ScheduleOptions::default(), 7);
    let lane = scheduler.open_lane();
    let mut actions = Vec::new();
    // Those of one minute are as urgent as each other.
    let ends = [3, 1, 2, 1, 3, 1].map(|n| DAY + n * minute);
    let tickets = ends.map(|lifetime| {
        let ticket = scheduler.add(lane, Priority::First);
        scheduler.poll(start(), &mut actions);
        let held = Held {
            issued_at: start().wall,
            not_after: start().wall + lifetime,
        };
        scheduler.finished(ticket, Outcome::Issued(held), start());
        ticket
    });
    actions.clear();
    let now = Now {
        wall: start().wall + DAY.mul_f64(0.7),
        up: DAY.mul_f64(0.7),
    };
    scheduler.poll(now, &mut actions);
    let order = [1, 3, 5, 2, 0, 4].map(|n: usize| Action::Issue(tickets[n]));
    assert_eq!(actions, order);
}

#[test]
fn one_issuer_that_hangs_holds_up_no_other() {
    let mut scheduler = Scheduler::new(ScheduleOptions::default(), 1);
    let (hangs, works) = (scheduler.open_lane(), scheduler.open_lane());
    for _ in 0..100 {
        scheduler.add(hangs, Priority::First);
    }
    let now = start();
    let mut actions = Vec::new();
    scheduler.poll(now, &mut actions);
    assert_eq!(actions.len(), 16);
    actions.clear();
    let ticket = scheduler.add(works, Priority::First);
    scheduler.poll(now, &mut actions);
    assert_eq!(actions, [Action::Issue(ticket)]);
}

#[test]
fn a_lane_that_is_paused_starts_nothing() {
    let mut scheduler = Scheduler::new(ScheduleOptions::default(), 1);
    let lane = scheduler.open_lane();
    let now = start();
    scheduler.pause(lane, true);
    let ticket = scheduler.add(lane, Priority::First);
    let mut actions = Vec::new();
    scheduler.poll(now, &mut actions);
    assert!(actions.is_empty());
    scheduler.pause(lane, false);
    scheduler.poll(now, &mut actions);
    assert_eq!(actions, [Action::Issue(ticket)]);
}

#[test]
fn what_was_removed_in_flight_ends_as_nobodys_and_its_number_is_used_again() {
    let mut scheduler = Scheduler::new(ScheduleOptions::default(), 1);
    let lane = scheduler.open_lane();
    let now = start();
    let held = Outcome::Issued(Held {
        issued_at: now.wall,
        not_after: now.wall + DAY,
    });
    let gone = scheduler.add(lane, Priority::First);
    let mut actions = Vec::new();
    scheduler.poll(now, &mut actions);
    scheduler.remove(gone);
    // Its number is not free before its request has ended.
    let next = scheduler.add(lane, Priority::First);
    assert_ne!(next.index(), gone.index());
    assert!(!scheduler.finished(gone, held, now));
    assert!(!scheduler.finished(gone, held, now), "twice");
    assert_eq!(scheduler.in_flight(), 0);
    let again = scheduler.add(lane, Priority::First);
    assert_eq!(again.index(), gone.index());
    assert_ne!(again, gone);
    scheduler.remove(gone);
    actions.clear();
    scheduler.poll(now, &mut actions);
    assert_eq!(
        actions.len(),
        2,
        "a ticket of one that is gone removes nobody"
    );
    // Lanes close when nothing is left in them.
    assert!(!scheduler.close_lane(lane));
    for ticket in [next, again] {
        scheduler.finished(ticket, held, now);
        scheduler.remove(ticket);
    }
    assert!(scheduler.close_lane(lane));
}

#[test]
fn what_is_wanted_anew_in_flight_is_asked_for_again() {
    let mut scheduler = Scheduler::new(ScheduleOptions::default(), 1);
    let (old, new) = (scheduler.open_lane(), scheduler.open_lane());
    let now = start();
    let ticket = scheduler.add(old, Priority::First);
    let mut actions = Vec::new();
    scheduler.poll(now, &mut actions);
    scheduler.reissue(ticket, new, Priority::First);
    actions.clear();
    scheduler.poll(now, &mut actions);
    assert!(actions.is_empty(), "single flight");
    scheduler.finished(ticket, Outcome::Discarded, now);
    scheduler.poll(now, &mut actions);
    assert_eq!(actions, [Action::Issue(ticket)]);
    assert!(scheduler.close_lane(old));
}

/// `Retry`, and between which times the next try comes, in seconds.
#[test]
fn waits_are_as_advised() {
    let cases = [
        (Retry::Backoff, 5.0..=7.5),
        (Retry::Never, 200.0..=300.0),
        (Retry::After(Duration::from_secs(60)), 60.0..=66.1),
        (Retry::After(Duration::from_secs(1)), 5.0..=7.5),
        (Retry::After(Duration::MAX), 3.1e7..=3.5e7),
    ];
    // With something that is valid for an hour, half of that is the most.
    let held = Held {
        issued_at: SystemTime::UNIX_EPOCH + DAY,
        not_after: SystemTime::UNIX_EPOCH + DAY + HOUR,
    };
    for (retry, expected) in cases {
        let mut scheduler = Scheduler::new(ScheduleOptions::default(), 3);
        let lane = scheduler.open_lane();
        let now = start();
        let ticket = scheduler.add(lane, Priority::First);
        scheduler.poll(now, &mut Vec::new());
        scheduler.finished(
            ticket,
            Outcome::Failed {
                retry,
                fault: Fault::Unreachable,
            },
            now,
        );
        let wait = scheduler.next_wake().up.unwrap().as_secs_f64();
        assert!(expected.contains(&wait), "{retry:?}: {wait}");

        let ticket = scheduler.insert(lane);
        scheduler.adopt(ticket, lane, held);
        scheduler.reissue(ticket, lane, Priority::Renewal);
        scheduler.poll(now, &mut Vec::new());
        scheduler.finished(
            ticket,
            Outcome::Failed {
                retry,
                fault: Fault::Unreachable,
            },
            now,
        );
        let wait = scheduler.next_wake().up.unwrap().as_secs_f64();
        assert!(wait <= 1800.0, "{retry:?}: {wait}");
    }
}

#[test]
fn backoff_doubles_up_to_five_minutes_and_is_spread() {
    let mut scheduler = Scheduler::new(ScheduleOptions::default(), 3);
    let lane = scheduler.open_lane();
    let wall = SystemTime::UNIX_EPOCH + DAY;
    let ticket = scheduler.add(lane, Priority::First);
    let mut up = Duration::ZERO;
    let mut waits = Vec::new();
    for _ in 0..12 {
        let mut actions = Vec::new();
        scheduler.poll(Now { wall, up }, &mut actions);
        assert_eq!(actions, [Action::Issue(ticket)]);
        let outcome = Outcome::Failed {
            retry: Retry::Backoff,
            fault: Fault::Workload,
        };
        scheduler.finished(ticket, outcome, Now { wall, up });
        let next = scheduler.next_wake().up.unwrap();
        waits.push((next - up).as_secs_f64());
        up = next;
    }
    for (n, wait) in waits.iter().enumerate() {
        let base = (5.0 * 2f64.powi(n as i32)).min(200.0);
        assert!((base..=base * 1.5).contains(wait), "{n}: {wait}");
    }
    let last: BTreeSet<_> = waits[6..].iter().map(|it| it.to_bits()).collect();
    assert_eq!(last.len(), 6, "no two waits are the same");
}

#[test]
fn the_breaker_opens_at_ten_different_workloads_and_lets_one_try() {
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    world.fails = |up, _| (up < Duration::from_secs(600)).then_some(Fault::Unreachable);
    // Nine may fail as often as they like.
    for _ in 0..9 {
        world.add(lane, Priority::First);
    }
    world.run(Duration::from_secs(60));
    assert!(!world.scheduler.is_open(lane));
    for _ in 0..200 {
        world.add(lane, Priority::First);
    }
    let before = world.failed.len();
    world.run(Duration::from_secs(600));
    assert!(world.scheduler.is_open(lane));
    let during = world.failed.len() - before;
    assert!(
        (12..=60).contains(&during),
        "{during} tries in nine minutes"
    );
    world.run(Duration::from_secs(665));
    assert!(!world.scheduler.is_open(lane));
    assert_eq!(world.issued.len(), 209, "all come at once when it works");
}

#[test]
fn clocks_that_jump() {
    // Forward by an hour and more: what is due is renewed, nobody is hurt.
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..100 {
        world.add(lane, Priority::First);
    }
    world.run(HOUR);
    world.wall += HOUR;
    world.run(13 * HOUR);
    assert!(world.expired.is_empty());
    // By then the wall clock has gone 14 hours, 2 of which nobody has waited for.
    assert!((100..=200).contains(&world.issuances()));
    assert!(
        world
            .issued
            .values()
            .any(|times| times.len() == 2 && times[1] < 12 * HOUR)
    );

    // Back by an hour: what was issued an hour ahead is not valid yet, and is made anew at once.
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..100 {
        world.add(lane, Priority::First);
    }
    world.run(Duration::from_secs(60));
    world.wall -= HOUR;
    world.run(Duration::from_secs(61));
    assert_eq!(world.issuances(), 200);
    // By half a minute: nothing happens.
    world.wall -= Duration::from_secs(30);
    world.run(Duration::from_secs(70));
    assert_eq!(world.issuances(), 200);
    world.run(10 * DAY);
    assert!(world.expired.is_empty());
}

#[derive(Clone, Debug)]
enum Event {
    Add(u8),
    Remove(u8),
    Reissue(u8, u8),
    Rest(u8),
    Advance(u16),
    SetClock(i16),
    Toggle(u8),
    Pause(u8, bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<u8>().prop_map(Event::Add),
        2 => any::<u8>().prop_map(Event::Remove),
        2 => any::<(u8, u8)>().prop_map(|(a, b)| Event::Reissue(a, b)),
        1 => any::<u8>().prop_map(Event::Rest),
        8 => any::<u16>().prop_map(Event::Advance),
        1 => any::<i16>().prop_map(Event::SetClock),
        1 => any::<u8>().prop_map(Event::Toggle),
        1 => any::<(u8, bool)>().prop_map(|(a, b)| Event::Pause(a, b)),
    ]
}

proptest! {
    /// Whatever happens in whatever order: one request at a time for each, never more than the limit, and in the end – when the
    /// issuers work and nothing is paused – everybody who wants a certificate has one.
    #[test]
    fn nobody_is_forgotten_and_nobody_is_served_twice(events in prop::collection::vec(event(), 1..200), seed: u64) {
        let options = ScheduleOptions { concurrency: 3, ..ScheduleOptions::default() };
        let mut scheduler = Scheduler::new(options, seed);
        let lanes: Vec<LaneId> = (0..3).map(|_| scheduler.open_lane()).collect();
        let pick = |n: u8| lanes[usize::from(n) % 3];
        let (mut wall, mut up) = (SystemTime::UNIX_EPOCH + 1000 * DAY, Duration::ZERO);
        let mut live: Vec<(Ticket, LaneId, bool, Option<SystemTime>)> = Vec::new();
        let mut working: Vec<(Ticket, LaneId)> = Vec::new();
        let mut down = [false; 3];
        for event in events.into_iter().chain([Event::Pause(0, false), Event::Pause(1, false), Event::Pause(2, false)])
            .chain((0..400).map(|_| Event::Advance(u16::MAX))) {
            let settling = matches!(event, Event::Advance(u16::MAX));
            if settling { down = [false; 3]; }
            match event {
                Event::Add(n) => live.push((scheduler.add(pick(n), Priority::First), pick(n), true, None)),
                Event::Remove(n) if !live.is_empty() => {
                    let (ticket, ..) = live.swap_remove(usize::from(n) % live.len());
                    scheduler.remove(ticket);
                }
                Event::Reissue(n, l) if !live.is_empty() => {
                    let at = usize::from(n) % live.len();
                    live[at].1 = pick(l);
                    live[at].2 = true;
                    scheduler.reissue(live[at].0, pick(l), Priority::Renewal);
                }
                Event::Rest(n) if !live.is_empty() => {
                    let at = usize::from(n) % live.len();
                    live[at].2 = false;
                    scheduler.rest(live[at].0, live[at].1, n % 2 == 0);
                }
                Event::Toggle(n) => down[usize::from(n) % 3] ^= true,
                Event::Pause(n, paused) => scheduler.pause(pick(n), paused),
                Event::SetClock(by) => {
                    let by = i64::from(by);
                    let size = Duration::from_secs(by.unsigned_abs());
                    if by < 0 { wall -= size } else { wall += size }
                }
                Event::Advance(secs) => {
                    let by = Duration::from_secs(u64::from(secs).min(300));
                    wall += by;
                    up += by;
                }
                _ => {}
            }
            // All that is under way ends, in some order, and what follows starts.
            for round in 0..2 {
                let mut actions = Vec::new();
                scheduler.poll(Now { wall, up }, &mut actions);
                for action in actions {
                    let Action::Issue(ticket) = action else { continue };
                    prop_assert!(!working.iter().any(|(it, _)| it.index() == ticket.index()), "two at once");
                    let (_, lane, wanted, _) = *live.iter().find(|it| it.0 == ticket).expect("one that is there");
                    prop_assert!(wanted);
                    working.push((ticket, lane));
                }
                for lane in &lanes {
                    prop_assert!(working.iter().filter(|(_, it)| it == lane).count() <= 3);
                }
                if round == 0 {
                    for (ticket, lane) in std::mem::take(&mut working) {
                        let fails = down[lanes.iter().position(|it| *it == lane).unwrap()];
                        let held = Held { issued_at: wall, not_after: wall + DAY };
                        let outcome = if fails {
                            Outcome::Failed { retry: Retry::Backoff, fault: Fault::Unreachable }
                        } else {
                            Outcome::Issued(held)
                        };
                        let interested = scheduler.finished(ticket, outcome, Now { wall, up });
                        let found = live.iter_mut().find(|it| it.0 == ticket);
                        prop_assert_eq!(interested, found.is_some());
                        if let Some(found) = found && !fails { found.3 = Some(held.not_after); }
                    }
                }
            }
        }
        for (ticket, _, wanted, until) in live {
            if wanted {
                prop_assert!(until.is_some_and(|until| until > wall), "{ticket:?} has nothing");
            }
        }
    }
}

/// Each refusal may have been signed, and billed.
#[test]
fn what_an_issuer_refuses_to_all_is_asked_for_24_times_a_day() {
    for count in [1, 2, 50, 500] {
        let mut world = World::new(ScheduleOptions::default());
        let lane = world.scheduler.open_lane();
        for _ in 0..count {
            world.add(lane, Priority::First);
        }
        world.fails = |up, _| (up < 3 * DAY).then_some(Fault::Refused);
        for day in 1..=3 {
            let before = world.failed.len();
            world.run(day * DAY);
            let asked = world.failed.len() - before;
            assert!((8..=24).contains(&asked), "{count}: {asked} on day {day}");
        }
        assert_eq!(world.issuances(), 0);
        // Settings, secrets or somebody end the wait.
        world.scheduler.begin_anew(lane);
        world.run(3 * DAY + Duration::from_secs(60));
        assert_eq!(world.issuances(), count);
    }
    // Nobody has told: it is found out within the hour by one, and then by all.
    let mut world = World::new(ScheduleOptions::default());
    let lane = world.scheduler.open_lane();
    for _ in 0..50 {
        world.add(lane, Priority::First);
    }
    world.fails = |up, _| (up < 2 * HOUR).then_some(Fault::Refused);
    world.run(3 * HOUR + Duration::from_secs(60));
    assert_eq!(world.issuances(), 50);
}

/// A role that allows the names of all others.
#[test]
fn those_that_are_refused_alone_hold_up_no_other() {
    for refused in [1, 3, 10] {
        let mut world = World::new(ScheduleOptions::default());
        let lane = world.scheduler.open_lane();
        for _ in 0..100 {
            world.add(lane, Priority::First);
        }
        world.fails = match refused {
            1 => |_, index| (index < 1).then_some(Fault::Refused),
            3 => |_, index| (index < 3).then_some(Fault::Refused),
            _ => |_, index| (index < 10).then_some(Fault::Refused),
        };
        world.run(HOUR);
        assert_eq!(world.issuances(), 100 - refused, "within the hour");
        for day in 1..=10 {
            let before = world.failed.len();
            world.run(day * DAY);
            let asked = world.failed.len() - before;
            assert!(asked <= 24 + refused, "{refused}: {asked} on day {day}");
        }
        assert!(
            world
                .late
                .keys()
                .chain(world.expired.keys())
                .next()
                .is_none()
        );
    }
}
