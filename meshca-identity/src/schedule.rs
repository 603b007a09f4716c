//! When each identity is issued, renewed and tried again. Events in, actions out: nothing here waits, asks the time or calls a CA.
//!
//! ```text
//!             first issuance, renewals due, retries due            ┌─ breaker open, lane held, limit reached: it waits
//!   add ───► │ one queue per issuer (a lane), by priority │ ───► Action::Issue ───► finished(Issued) ──► renew at 50–60 %
//!   reissue  │ first < renewal < prefetch                 │           ▲                finished(Failed) ─┐
//!                                                                    └──── backoff 5 s … 5 min ─────────┘
//! ```
//!
//! Two clocks are needed. Certificates end by the wall clock, which may be set; renewals are due by it. Backoff and breakers go by time
//! since the start, which only runs forward: setting the clock back must not make anybody wait for an hour.
//!
//! Every event costs O(log n) for n identities, but for the wall clock being set back, which looks at each once.

mod breaker;
mod entry;
mod event;
mod lane;
mod options;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use meshca_core::Retry;

use breaker::Breaker;
use entry::{Entry, Phase, Timer, entry_phase};
use lane::Lane;

pub(crate) use entry::{Held, LaneId, Priority, Ticket};
pub(crate) use event::{Action, Fault, Now, Outcome, Wake};
pub use options::ScheduleOptions;

/// How far the wall clock may go back before certificates are looked at again: clocks are corrected by seconds all the time, and
/// verifiers allow for as much.
const SET_BACK: Duration = Duration::from_secs(60);

/// For how many renewals that come due at once there is always room.
const SPARE: usize = 256;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Scheduler {
    options: ScheduleOptions,
    rng: fastrand::Rng,
    entries: Vec<Entry>,
    free: Vec<u32>,
    lanes: Vec<Option<Lane>>,
    timers: BTreeSet<(SystemTime, u32)>,
    wakes: BTreeSet<(Duration, LaneId)>,
    /// Lanes that may have something to start.
    runnable: BTreeSet<LaneId>,
    /// Renewals that have come due: the minute in which what is held ends, whose it is, and whether it has ended.
    due: Vec<(u64, u32, bool)>,
    seq: u64,
    wall: Option<SystemTime>,
}

impl Scheduler {
    /// `seed` decides on all jitter.
    pub(crate) fn new(options: ScheduleOptions, seed: u64) -> Self {
        Self {
            options: options.bounded(),
            rng: fastrand::Rng::with_seed(seed),
            entries: Vec::new(),
            free: Vec::new(),
            lanes: Vec::new(),
            timers: BTreeSet::new(),
            wakes: BTreeSet::new(),
            runnable: BTreeSet::new(),
            due: Vec::new(),
            seq: 0,
            wall: None,
        }
    }

    pub(crate) fn open_lane(&mut self) -> LaneId {
        match self.lanes.iter().position(Option::is_none) {
            Some(index) => {
                if let Some(free) = self.lanes.get_mut(index) {
                    *free = Some(Lane::default());
                }
                LaneId(index as u32)
            }
            None => {
                self.lanes.push(Some(Lane::default()));
                LaneId(self.lanes.len() as u32 - 1)
            }
        }
    }

    /// Forgets a lane that has neither entries nor anything in flight; says whether it was so.
    pub(crate) fn close_lane(&mut self, id: LaneId) -> bool {
        let idle = self.lane(id).is_some_and(Lane::is_idle);
        if idle && let Some(slot) = self.lanes.get_mut(id.0 as usize) {
            if let Some(wake) = slot.take().and_then(|lane| lane.wake) {
                self.wakes.remove(&(wake, id));
            }
            self.runnable.remove(&id);
        }
        idle
    }

    /// Nothing of a lane is started while it is paused.
    pub(crate) fn pause(&mut self, id: LaneId, paused: bool) {
        if let Some(lane) = self.lane_mut(id) {
            lane.paused = paused;
        }
        self.refresh(id);
    }

    /// So many are asked for by one request: the limit is for what an issuer works on at the same time.
    pub(crate) fn set_batch(&mut self, id: LaneId, batch: usize) {
        if let Some(lane) = self.lane_mut(id)
            && lane.batch != batch
        {
            lane.batch = batch;
            self.refresh(id);
        }
    }

    /// One that wants nothing yet.
    pub(crate) fn insert(&mut self, lane: LaneId) -> Ticket {
        let index = self.free.pop().unwrap_or(self.entries.len() as u32);
        let generation = match self.entries.get_mut(index as usize) {
            Some(entry) => {
                *entry = Entry::new(entry.generation, lane);
                entry.generation
            }
            None => {
                self.entries.push(Entry::new(0, lane));
                0
            }
        };
        Ticket { index, generation }
    }

    /// Forgets an identity. What is in flight for it ends as [`Outcome`]s of nobody.
    pub(crate) fn remove(&mut self, ticket: Ticket) {
        let Some(index) = self.find(ticket) else {
            return;
        };
        self.disarm(index);
        self.leave(index);
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        entry.generation = entry.generation.wrapping_add(1);
        entry.held = None;
        match entry.phase {
            Phase::InFlight { lane } => entry.phase = Phase::Leaving { lane },
            _ => {
                entry.phase = Phase::Free;
                self.free.push(index);
            }
        }
    }

    /// Has a certificate issued anew, from this lane: what is held is not what should be.
    pub(crate) fn reissue(&mut self, ticket: Ticket, lane: LaneId, priority: Priority) {
        let Some((index, entry)) = self.place(ticket, lane, false) else {
            return;
        };
        if matches!(entry.phase, Phase::InFlight { .. }) {
            entry.again = true;
        } else {
            self.enqueue(index, priority);
        }
    }

    /// One that waits becomes more urgent.
    pub(crate) fn raise(&mut self, ticket: Ticket, to: Priority) {
        if let Some(index) = self.find(ticket)
            && let Phase::Queued { priority, .. } = entry_phase(&self.entries, index)
            && to < priority
        {
            self.leave(index);
            self.enqueue(index, to);
        }
    }

    /// Has nothing issued until [`reissue`](Self::reissue), and waits in this lane; what is held stays until it ends, or is dropped
    /// now.
    pub(crate) fn rest(&mut self, ticket: Ticket, lane: LaneId, drop_held: bool) {
        let Some((index, entry)) = self.place(ticket, lane, true) else {
            return;
        };
        entry.again = false;
        if drop_held {
            entry.held = None;
        }
        let held = entry.held;
        if !matches!(entry.phase, Phase::InFlight { .. }) {
            entry.phase = Phase::Resting;
        }
        self.disarm(index);
        if let Some(held) = held {
            self.arm(index, held.not_after, Timer::Expire);
        }
    }

    /// How an [`Action::Issue`] ended. Says whether anybody is still interested.
    pub(crate) fn finished(&mut self, ticket: Ticket, outcome: Outcome, now: Now) -> bool {
        let Some(entry) = self.entries.get_mut(ticket.index as usize) else {
            return false;
        };
        let (started_in, leaving) = match entry.phase {
            Phase::InFlight { lane } if entry.generation == ticket.generation => (lane, false),
            Phase::Leaving { lane } if entry.generation == ticket.generation.wrapping_add(1) => {
                (lane, true)
            }
            _ => return false,
        };
        let (index, again) = (ticket.index, std::mem::take(&mut entry.again));
        let rests = entry.rests;
        entry.phase = match leaving {
            true => Phase::Free,
            false => Phase::Resting,
        };
        self.settle_lane(started_in, index, &outcome, now);
        if leaving {
            self.free.push(index);
            return false;
        }
        match outcome {
            Outcome::Issued(held) => self.hold(index, held, again),
            _ if rests => {}
            Outcome::Discarded => self.enqueue(index, Priority::First),
            Outcome::Failed { .. } if again => self.enqueue(index, Priority::First),
            Outcome::Failed { retry, fault } => self.back_off(index, (retry, fault), now),
        }
        true
    }

    /// What is held is what is wanted, from this lane.
    pub(crate) fn adopt(&mut self, ticket: Ticket, lane: LaneId, held: Held) {
        let Some((index, entry)) = self.place(ticket, lane, false) else {
            return;
        };
        if matches!(entry.phase, Phase::InFlight { .. }) {
            // What comes is of before, but the next one is due when this one is.
            entry.again = false;
        }
        self.hold(index, held, false);
    }

    fn hold(&mut self, index: u32, held: Held, again: bool) {
        let draw = self.rng.f64();
        let renew_at = self
            .options
            .renewal
            .renew_at(held.issued_at, held.not_after, draw);
        // A CA that nears its end gives less each time, and must not be asked more and more often.
        let soonest = held.issued_at.checked_add(self.options.min_backoff);
        let renew_at = soonest.map_or(renew_at, |soonest| renew_at.max(soonest));
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        entry.held = Some(held);
        entry.failures = 0;
        entry.refused_after = 0;
        entry.to_blame = false;
        match (again, entry.rests) {
            (true, _) => {
                self.arm(index, held.late(), Timer::Late);
                self.enqueue(index, Priority::First);
            }
            (false, true) => self.arm(index, held.not_after, Timer::Expire),
            (false, false) => self.arm(index, renew_at, Timer::Renew),
        }
    }

    fn settle_lane(&mut self, id: LaneId, index: u32, outcome: &Outcome, now: Now) {
        let (options, rng) = (&self.options, &mut self.rng);
        let Some(Some(lane)) = self.lanes.get_mut(id.0 as usize) else {
            return;
        };
        let mut to_blame = false;
        if let (
            Outcome::Failed {
                fault: Fault::Refused,
                ..
            },
            Some(entry),
        ) = (outcome, self.entries.get_mut(index as usize))
        {
            let before = std::mem::replace(&mut entry.refused_after, lane.signed.max(1));
            entry.to_blame |= before != 0 && before != entry.refused_after;
            to_blame = entry.to_blame;
        }
        if lane.finished(index, outcome, to_blame, now.up, options, rng) {
            self.wake_lane(id, false);
        }
        self.refresh(id);
    }

    /// The issuer is another one, or somebody has seen to it: what it did before says nothing.
    pub(crate) fn begin_anew(&mut self, id: LaneId) {
        if let Some(lane) = self.lane_mut(id) {
            lane.breaker = Breaker::default();
        }
        self.wake_lane(id, true);
    }

    /// Whoever waits after a failure need not wait any longer: the issuer works, or is another one. The limit keeps them from coming
    /// all at once. Those who are `to_blame` themselves are woken only if it is another one.
    fn wake_lane(&mut self, id: LaneId, to_blame: bool) {
        let (entries, lanes) = (&self.entries, &mut self.lanes);
        let Some(Some(lane)) = lanes.get_mut(id.0 as usize) else {
            return;
        };
        let is_woken = |(_, index): &(Duration, u32)| {
            let entry = entries.get(*index as usize);
            entry.is_none_or(|it| to_blame || !it.to_blame)
        };
        let waiting = std::mem::take(&mut lane.backoff).into_iter();
        let (woken, left): (BTreeSet<_>, BTreeSet<_>) = waiting.partition(is_woken);
        lane.backoff = left;
        for (_, index) in woken {
            if to_blame && let Some(entry) = self.entries.get_mut(index as usize) {
                entry.refused_after = 0;
                entry.to_blame = false;
            }
            self.enqueue(index, Priority::Renewal);
        }
        self.refresh(id);
    }

    fn back_off(&mut self, index: u32, why: (Retry, Fault), now: Now) {
        let jitter = self.rng.f64();
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        entry.failures = entry.failures.saturating_add(1);
        let left = |held: Held| held.not_after.duration_since(now.wall).ok();
        let left = entry.held.and_then(left);
        let wait = self.options.wait(entry.failures, why, left, jitter);
        let mut until = now.up.saturating_add(wait);
        let (lane, held) = (entry.lane, entry.held);
        if let (_, Fault::Refused) = why {
            let free = self.lane(lane).map(|it| it.breaker.may_be_refused_at());
            until = until.max(free.unwrap_or_default());
        }
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.phase = Phase::Backoff { until };
        }
        if let Some(lane) = self.lane_mut(lane) {
            lane.backoff.insert((until, index));
        }
        if let Some(held) = held
            && held.not_after > now.wall
        {
            // That it fails has been said.
            self.arm(index, held.not_after, Timer::Expire);
        }
        self.refresh(lane);
    }

    /// What is due now.
    pub(crate) fn poll(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.watch_the_clock(now.wall);
        while let Some(&(at, index)) = self.timers.first()
            && at <= now.wall
        {
            self.timers.pop_first();
            let Some(entry) = self.entries.get_mut(index as usize) else {
                continue;
            };
            entry.look_at = None;
            if let Some((at, timer)) = entry.timer
                && at > now.wall
            {
                self.arm(index, at, timer);
                continue;
            }
            match (entry.timer.take(), entry.held) {
                (Some((_, Timer::Late)), Some(held)) => {
                    actions.push(Action::Late(Ticket {
                        index,
                        generation: entry.generation,
                    }));
                    self.arm(index, held.not_after, Timer::Expire);
                }
                (Some((at, Timer::Renew)), Some(held)) => {
                    self.arm(index, held.late().max(at), Timer::Late);
                    if matches!(entry_phase(&self.entries, index), Phase::Resting) {
                        let ended = held.not_after <= now.wall;
                        self.due.push((minute(held.not_after), index, ended));
                    }
                }
                (Some((_, Timer::Expire)), _) => actions.push(Action::Expired(Ticket {
                    index,
                    generation: entry.generation,
                })),
                _ => {}
            }
        }
        self.enqueue_due();
        while let Some(&(at, id)) = self.wakes.first()
            && at <= now.up
        {
            self.wakes.remove(&(at, id));
            let due = match self.lane_mut(id) {
                Some(lane) => {
                    lane.wake = None;
                    lane.breaker.wake(now.up);
                    let later = lane.backoff.split_off(&(now.up, u32::MAX));
                    std::mem::replace(&mut lane.backoff, later)
                }
                None => continue,
            };
            for (_, index) in due {
                let has = |held: Held| held.not_after > now.wall;
                let held = self.entries.get(index as usize).and_then(|it| it.held);
                let priority = match held.is_some_and(has) {
                    true => Priority::Renewal,
                    false => Priority::First,
                };
                self.enqueue(index, priority);
            }
            self.refresh(id);
        }
        while let Some(&id) = self.runnable.first() {
            self.start(id, actions);
            self.runnable.remove(&id);
        }
    }

    /// Many are due at once after a machine was suspended, or its clock set forward. What ends first comes first. What ends within the same
    /// minute comes in the order of its number, in which it lies in memory, here and at its owner: that costs half of what to and fro does
    /// (bench `manager/storm`).
    fn enqueue_due(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        due.sort_unstable();
        for (_, index, ended) in due.drain(..) {
            let priority = match ended {
                true => Priority::First,
                false => Priority::Renewal,
            };
            self.enqueue(index, priority);
        }
        // Those of a storm are not kept room for.
        due.shrink_to(SPARE);
        self.due = due;
    }

    /// Starts what this lane may start.
    fn start(&mut self, id: LaneId, actions: &mut Vec<Action>) {
        while let Some(Some(lane)) = self.lanes.get_mut(id.0 as usize)
            && lane.may_start(&self.options)
            && let Some(index) = lane.start(&self.entries)
        {
            if let Some(entry) = self.entries.get_mut(index as usize) {
                entry.phase = Phase::InFlight { lane: id };
                actions.push(Action::Issue(Ticket {
                    index,
                    generation: entry.generation,
                }));
            }
        }
    }

    /// A clock that was set back makes certificates that are not valid yet.
    fn watch_the_clock(&mut self, wall: SystemTime) {
        let went_back = self
            .wall
            .is_some_and(|before| wall.checked_add(SET_BACK).is_some_and(|it| it < before));
        self.wall = Some(wall);
        if !went_back {
            return;
        }
        for index in 0..self.entries.len() as u32 {
            let Some(entry) = self.entries.get(index as usize) else {
                continue;
            };
            if entry.phase == Phase::Resting
                && entry.timer.is_some_and(|(_, timer)| timer == Timer::Renew)
                && entry.held.is_some_and(|held| {
                    wall.checked_add(SET_BACK)
                        .is_some_and(|it| it < held.issued_at)
                })
            {
                if let Some(held) = entry.held {
                    self.arm(index, held.not_after, Timer::Expire);
                }
                self.enqueue(index, Priority::First);
            }
        }
    }

    /// When to [poll](Self::poll) next, if nothing else happens.
    pub(crate) fn next_wake(&self) -> Wake {
        Wake {
            wall: self.timers.first().map(|(at, _)| *at),
            up: self.wakes.first().map(|(at, _)| *at),
        }
    }

    /// Whether it is to be asked for again, sooner than what it holds needs it.
    pub(crate) fn is_waiting(&self, ticket: Ticket) -> bool {
        self.find(ticket).is_some_and(|index| {
            let phase = entry_phase(&self.entries, index);
            matches!(phase, Phase::Queued { .. } | Phase::Backoff { .. })
        })
    }

    /// Whether something may be started that came after the last [poll](Self::poll).
    pub(crate) fn has_more(&self) -> bool {
        !self.runnable.is_empty()
    }

    /// Whether an issuer is left alone because too many have failed.
    pub(crate) fn is_open(&self, id: LaneId) -> bool {
        self.lane(id).is_some_and(|lane| !lane.breaker.is_closed())
    }

    /// Whether an issuer is left alone because it does not answer.
    pub(crate) fn is_outage(&self, id: LaneId) -> bool {
        self.lane(id).is_some_and(|lane| lane.breaker.is_outage())
    }

    /// How many requests are under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.in_flight).sum()
    }

    fn enqueue(&mut self, index: u32, priority: Priority) {
        let seq = self.seq;
        self.seq += 1;
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        entry.phase = Phase::Queued { priority, seq };
        let id = entry.lane;
        if let Some(lane) = self.lane_mut(id) {
            lane.queue.push(priority, seq, index);
        }
        self.runnable.insert(id);
    }

    /// Moves an identity to this lane, out of the queue or the backoff in which it waits.
    fn place(&mut self, ticket: Ticket, lane: LaneId, rests: bool) -> Option<(u32, &mut Entry)> {
        let index = self.find(ticket)?;
        self.leave(index);
        let entry = self.entries.get_mut(index as usize)?;
        entry.lane = lane;
        entry.rests = rests;
        Some((index, entry))
    }

    /// Takes it out of the queue or the backoff that it is in.
    fn leave(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        let (id, phase) = (entry.lane, entry.phase);
        let Some(Some(lane)) = self.lanes.get_mut(id.0 as usize) else {
            return;
        };
        if matches!(phase, Phase::Queued { .. } | Phase::Backoff { .. }) {
            entry.phase = Phase::Resting;
        }
        match phase {
            Phase::Queued { .. } => lane.queue.left(&self.entries),
            Phase::Backoff { until } => {
                lane.backoff.remove(&(until, index));
            }
            _ => {}
        }
        lane.breaker.forget(index);
        self.refresh(id);
    }

    fn arm(&mut self, index: u32, at: SystemTime, timer: Timer) {
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        entry.timer = Some((at, timer));
        if entry.look_at.is_some_and(|look_at| look_at <= at) {
            return;
        }
        if let Some(before) = entry.look_at.replace(at) {
            self.timers.remove(&(before, index));
        }
        self.timers.insert((at, index));
    }

    fn disarm(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        entry.timer = None;
        if let Some(before) = entry.look_at.take() {
            self.timers.remove(&(before, index));
        }
    }

    /// Keeps `wakes` and `runnable` true to a lane.
    fn refresh(&mut self, id: LaneId) {
        let Some(Some(lane)) = self.lanes.get_mut(id.0 as usize) else {
            return;
        };
        let wake = lane.due();
        let before = std::mem::replace(&mut lane.wake, wake);
        let runnable = !lane.queue.is_empty() && lane.may_start(&self.options);
        if before != wake {
            if let Some(before) = before {
                self.wakes.remove(&(before, id));
            }
            if let Some(wake) = wake {
                self.wakes.insert((wake, id));
            }
        }
        if runnable {
            self.runnable.insert(id);
        }
    }

    fn find(&self, ticket: Ticket) -> Option<u32> {
        let entry = self.entries.get(ticket.index as usize)?;
        (entry.generation == ticket.generation
            && !matches!(entry.phase, Phase::Free | Phase::Leaving { .. }))
        .then_some(ticket.index)
    }

    fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.get(id.0 as usize)?.as_ref()
    }

    fn lane_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.get_mut(id.0 as usize)?.as_mut()
    }
}

fn minute(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs() / 60
}
