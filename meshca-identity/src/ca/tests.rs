//! Every order of events that a CA can live through, until nothing new comes of it.

use std::collections::BTreeSet;

use meshca_testkit::search::{self, Model, Seen, Transition, Violation};

use super::*;

/// The present settings, and any before them: only the difference counts.
const EPOCH: u64 = 1;
const BEFORE: u64 = 0;

/// Time is in units, and stands still at zero: timers come nearer instead, so that what is alike
/// is equal.
const NOW: Duration = Duration::ZERO;
const UNIT: Duration = Duration::from_secs(1);

fn backoff() -> ScheduleOptions {
    ScheduleOptions {
        min_backoff: UNIT,
        max_backoff: 2 * UNIT,
        ..ScheduleOptions::default()
    }
}

fn pace(backoff: &ScheduleOptions) -> Pace<'_> {
    Pace {
        look: UNIT,
        least: 2 * UNIT,
        reread: 3 * UNIT,
        backoff,
    }
}

/// The longest that nothing is due.
const HORIZON: Duration = Duration::from_secs(3);

/// Everything that a CA hears of.
#[derive(Clone, Copy, Debug)]
enum Event {
    Changed {
        rereads: bool,
    },
    Tick(Option<RotationStep>, bool),
    SecretsChanged {
        told: bool,
    },
    UnknownRoot,
    /// An operator confirms a new CA in the place of one that is lost.
    Confirmed,
    Built {
        epoch: u64,
        result: Result<OfNow, ()>,
    },
    Asked {
        epoch: u64,
        result: Result<(), ()>,
    },
}

/// An issuer: whether it was built of the present settings.
type OfNow = bool;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    ca: Ca<OfNow, ()>,
    running: Option<Task>,
    /// A task of settings before these.
    stale: Option<Task>,
    /// Something has changed that no look or build has begun after.
    owed: bool,
    /// Builds, looks and rotations that have ended just now, and for which there is no reason to
    /// begin another one at once.
    just_ended: [bool; 3],
    /// The secrets of the CA were deleted: it cannot be set up.
    gone: bool,
    /// A new CA may be made in its place.
    confirmed: bool,
    /// No build has begun since that was confirmed.
    owed_build: bool,
    /// A rule that the last event broke.
    broken: Option<&'static str>,
}

/// A rule that is left out, to see that the search finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Epochs,
    Gate,
    OneAtATime,
    LookingAgain,
    PauseOfRotation,
    RetryOfBuilds,
    FormerIssuer,
    NextLook,
    Confirmation,
}

#[derive(Debug)]
struct Life {
    without: Option<Without>,
    kinds: BTreeSet<(&'static str, &'static str)>,
}

fn index(task: Task) -> usize {
    match task {
        Task::Build => 0,
        Task::Look => 1,
        Task::Rotate(_) => 2,
    }
}

const STEPS: [RotationStep; 3] = [
    RotationStep::Prepare,
    RotationStep::Activate,
    RotationStep::Retire,
];

/// Has a CA hear of something; returns what is to be done, and the task that is to be started.
fn happen(ca: &mut Ca<OfNow, ()>, event: Event) -> (Vec<Effect<()>>, Option<Task>) {
    let options = backoff();
    let pace = pace(&options);
    let mut started = None;
    let effects = match event {
        Event::Built { epoch, result } => ca.built(epoch, result, NOW, &pace),
        Event::Asked { epoch, result } => ca.asked(epoch, result, NOW, &pace),
        other => {
            match other {
                Event::Changed { rereads } => ca.change(EPOCH + 1, rereads),
                Event::Tick(due, trusted) => started = ca.tick(due, trusted, NOW),
                Event::SecretsChanged { told } => ca.secrets_changed(told, NOW),
                Event::Confirmed => ca.set_up_again(NOW),
                _ => ca.look_now(NOW),
            }
            Vec::new()
        }
    };
    (effects, started)
}

impl Life {
    fn is_without(&self, rule: Without) -> bool {
        self.without == Some(rule)
    }

    /// Has the CA take an event, and checks every rule that is about it.
    fn after(&self, world: &World, mut event: Event) -> World {
        let mut after = world.clone();
        let gate = match &mut event {
            Event::Tick(_, trusted) => {
                let gate = *trusted;
                *trusted |= self.is_without(Without::Gate);
                gate
            }
            _ => true,
        };
        let stale = match &mut event {
            Event::Built { epoch, .. } | Event::Asked { epoch, .. } => {
                let stale = *epoch == BEFORE;
                if self.is_without(Without::Epochs) && after.running.is_some() {
                    *epoch = EPOCH;
                }
                stale
            }
            _ => false,
        };
        if self.is_without(Without::OneAtATime) && matches!(event, Event::Tick(..)) {
            after.ca.job = None;
        }
        let changed = matches!(event, Event::Changed { .. });
        let (effects, started) = happen(&mut after.ca, event);
        self.leave_out(&world.ca, &mut after.ca, event);
        let mut break_if = |broken: bool, rule| {
            if broken {
                after.broken = Some(rule);
            }
        };
        break_if(
            stale && (!effects.is_empty() || after.ca != world.ca),
            "the answer to an earlier task counts",
        );
        break_if(
            world.ca.signer().is_some() && after.ca.signer().is_none() && !changed,
            "an issuer that signs is taken away",
        );
        break_if(
            world.ca.issuer().is_some() && after.ca.issuer().is_none(),
            "an issuer is forgotten",
        );
        let status = |ca: &Ca<_, _>| (ca.signer().is_some(), ca.error().is_some());
        break_if(
            status(&world.ca) != status(&after.ca)
                && !changed
                && !effects.contains(&Effect::Publish),
            "the status is another one and is not published",
        );
        let reviewed = effects.contains(&Effect::Review);
        break_if(
            world.ca.issuer().is_none() && after.ca.issuer().is_some() && !reviewed,
            "workloads do not hear of their CA",
        );
        if let Some(task) = started {
            break_if(after.running.is_some(), "two tasks of one CA at once");
            break_if(
                task == Task::Rotate(RotationStep::Activate) && !gate,
                "the next CA signs before every proxy trusts it",
            );
            break_if(after.just_ended[index(task)], "the same again, at once");
            break_if(
                after.owed_build && task != Task::Build,
                "a confirmed CA waits for something else",
            );
            after.owed_build &= task != Task::Build;
            after.running = Some(task);
            after.owed &= matches!(task, Task::Rotate(_));
        }
        after.canonical()
    }

    /// As if a rule were not there.
    fn leave_out(&self, before: &Ca<OfNow, ()>, ca: &mut Ca<OfNow, ()>, event: Event) {
        let Some(without) = self.without else {
            return;
        };
        match (without, event) {
            (Without::LookingAgain, Event::SecretsChanged { .. }) => {
                if let Some(job) = &mut ca.job {
                    job.again = false;
                }
            }
            (Without::Confirmation, Event::Confirmed) => *ca = before.clone(),
            (Without::PauseOfRotation, Event::Asked { .. }) => {
                if let Some(serving) = &mut ca.serving {
                    serving.rotate_at = NOW;
                }
            }
            (Without::RetryOfBuilds, Event::Built { .. }) => {
                if let CaState::Down(failure) = &mut ca.state {
                    failure.retry_at = Duration::MAX;
                }
            }
            (Without::FormerIssuer, Event::Built { .. }) => {
                if let CaState::Down(_) = &ca.state {
                    ca.serving = None;
                }
            }
            (Without::NextLook, Event::Asked { .. }) => {
                if let Some(serving) = &mut ca.serving {
                    serving.look_at = Duration::MAX;
                }
            }
            _ => {}
        }
    }

    fn tick(&self, world: &World, due: Option<RotationStep>, trusted: bool) -> World {
        self.after(world, Event::Tick(due, trusted))
    }

    fn ended(&self, world: &World, task: Task, epoch: u64, result: Result<(), ()>) -> World {
        let mut world = world.clone();
        match epoch {
            EPOCH => {
                let owed = match task {
                    Task::Build => world.owed || world.owed_build,
                    Task::Look => world.owed,
                    Task::Rotate(_) => false,
                };
                if task == Task::Build && result.is_ok() {
                    world.gone = false;
                    world.confirmed = false;
                    world.owed_build = false;
                }
                world.running = None;
                world.just_ended[index(task)] = !owed;
            }
            _ => world.stale = None,
        }
        let event = match task {
            Task::Build => Event::Built {
                epoch,
                result: result.map(|()| epoch == EPOCH),
            },
            Task::Look | Task::Rotate(_) => Event::Asked { epoch, result },
        };
        let mut after = self.after(&world, event);
        if epoch == EPOCH && result.is_err() && after.ca.error().is_none() {
            after.broken = Some("a CA that is gone is not reported");
        }
        after
    }
}

impl World {
    /// Numbers that make no difference any more are all the same.
    fn canonical(mut self) -> Self {
        self.ca.epoch = EPOCH;
        if let CaState::Down(failure) = &mut self.ca.state {
            failure.times = failure.times.min(2);
        }
        if let Some(serving) = &mut self.ca.serving {
            serving.stepped = serving.stepped.map(|(step, times)| (step, times.min(2)));
        }
        self
    }

    fn after_a_unit(&self) -> Self {
        let mut after = self.clone();
        let pass = |at: &mut Duration| *at = at.saturating_sub(UNIT);
        match &mut after.ca.state {
            CaState::Down(failure) => pass(&mut failure.retry_at),
            CaState::Up { reread_at, .. } => reread_at.iter_mut().for_each(pass),
            CaState::New(_) => {}
        }
        if let Some(serving) = &mut after.ca.serving {
            pass(&mut serving.look_at);
            pass(&mut serving.rotate_at);
        }
        after.just_ended = [false; 3];
        after
    }

    fn kind(&self) -> (&'static str, &'static str) {
        let state = match (&self.ca.state, &self.ca.serving) {
            (CaState::New(_), None) => "new",
            (CaState::Down(_), None) => "down",
            (CaState::Up { .. }, _) => "up",
            (CaState::New(_), Some(_)) => "changing",
            (CaState::Down(_), Some(_)) => "fallback",
        };
        let job = match self.ca.job.map(|job| job.task) {
            None => "idle",
            Some(Task::Build) => "builds",
            Some(Task::Look) => "looks",
            Some(Task::Rotate(_)) => "rotates",
        };
        (state, job)
    }
}

impl Model for Life {
    type State = World;

    fn start(&mut self) -> World {
        World {
            ca: Ca::new(EPOCH, false),
            running: None,
            stale: None,
            owed: false,
            just_ended: [false; 3],
            gone: false,
            confirmed: false,
            owed_build: false,
            broken: None,
        }
    }

    fn violation(&mut self, world: &World) -> Option<String> {
        let ca = &world.ca;
        self.kinds.insert(world.kind());
        let rule = |broken: bool, rule: &str| broken.then(|| rule.to_owned());
        if let Some(broken) = world.broken {
            return Some(broken.to_owned());
        }
        let built_now = match &ca.state {
            CaState::Up { .. } => Some(ca.issuer() == Some(&true)),
            CaState::New(_) => ca.issuer().map(|former| !former),
            // Its key may be what could not be read again.
            CaState::Down(_) => None,
        };
        if built_now == Some(false) {
            return Some("a state has the issuer of another one".to_owned());
        }
        let job = ca.job.map(|job| job.task);
        if job != world.running {
            return Some("it waits for a task that is not there, or forgets one".to_owned());
        }
        if let Some(task) = job {
            return rule(
                task != Task::Build && ca.signer().is_none(),
                "an issuer that does not sign is asked",
            );
        }
        let Some(wake) = ca.next_wake(NOW).filter(|wake| *wake <= HORIZON) else {
            return Some("nothing will happen any more".to_owned());
        };
        if world.owed_build && wake > NOW {
            return Some("a confirmed CA is not set up".to_owned());
        }
        if world.owed && wake > NOW {
            return Some("a change of secrets is not looked at".to_owned());
        }
        let starts = |due| self.tick(world, due, false).running.is_some();
        let rotates =
            ca.signer().is_some() && ca.serving.as_ref().is_some_and(|it| it.rotate_at <= NOW);
        rule(
            starts(None) != (wake <= NOW),
            "it is woken for nothing, or not for what is due",
        )
        .or_else(|| {
            rule(
                rotates && !starts(Some(RotationStep::Prepare)),
                "a step that is due is not taken",
            )
        })
    }

    fn successors(&mut self, world: &World) -> Vec<Transition<World>> {
        let mut all = Vec::new();
        let mut add = |kind: &'static str, what: String, after: World| {
            let action = match what.is_empty() {
                true => kind.to_owned(),
                false => format!("{kind}: {what}"),
            };
            all.push(Transition {
                kind,
                action,
                after,
                forward: true,
            });
        };
        add("time passes", String::new(), world.after_a_unit());
        for due in [None].into_iter().chain(STEPS.map(Some)) {
            for trusted in [false, true] {
                let what = format!("due {due:?}, trusted by all: {trusted}");
                add("tick", what, self.tick(world, due, trusted));
            }
        }
        if world.running.is_none() || world.stale.is_none() {
            for rereads in [false, true] {
                let mut before = world.clone();
                before.stale = before.running.take().or(before.stale);
                before.owed = false;
                before.just_ended[..2].fill(false);
                let mut after = self.after(&before, Event::Changed { rereads });
                if let Some(serving) = &mut after.ca.serving {
                    serving.issuer = false;
                }
                add("settings change", String::new(), after);
            }
        }
        for told in [false, true] {
            let mut before = world.clone();
            let concerned = before.ca.issuer().is_some() || before.running.is_some();
            before.owed |= concerned || told;
            before.just_ended[..2].fill(false);
            let after = self.after(&before, Event::SecretsChanged { told });
            add("secrets change", format!("told: {told}"), after);
        }
        if world.ca.issuer().is_some() {
            let mut before = world.clone();
            before.owed = true;
            before.just_ended[..2].fill(false);
            add(
                "unknown root",
                String::new(),
                self.after(&before, Event::UnknownRoot),
            );
        }
        if !world.gone {
            let mut after = world.clone();
            after.gone = true;
            add("secrets are deleted", String::new(), after);
        } else {
            let mut restored = world.clone();
            restored.gone = false;
            add("secrets are restored", String::new(), restored);
        }
        if world.gone && (world.ca.error().is_some() || world.ca.issuer().is_none()) {
            let mut before = world.clone();
            (before.confirmed, before.owed_build) = (true, true);
            before.just_ended[..2].fill(false);
            let after = self.after(&before, Event::Confirmed);
            add("a new CA is confirmed", String::new(), after);
        }
        for result in [Ok(()), Err(())] {
            let how = if result.is_ok() { "well" } else { "badly" };
            let lost = world.gone && !world.confirmed && result.is_ok();
            if let Some(task) = world.running.filter(|task| !lost || *task != Task::Build) {
                let after = self.ended(world, task, EPOCH, result);
                add("task ends", format!("{task:?} {how}"), after);
            }
            if let Some(task) = world.stale {
                let after = self.ended(world, task, BEFORE, result);
                add("stale task ends", format!("{task:?} {how}"), after);
            }
        }
        all
    }

    /// It is set up, and well.
    fn is_end(&mut self, world: &World) -> bool {
        let well = world.ca.signer().is_some() && world.ca.error().is_none();
        world.running.is_none() && well && !world.gone
    }

    fn describe(&mut self, world: &World) -> Vec<String> {
        vec![format!("{world:#?}")]
    }
}

fn explore(without: Option<Without>) -> (Result<Seen, Violation>, Life) {
    let mut life = Life {
        without,
        kinds: BTreeSet::new(),
    };
    (search::explore(&mut life), life)
}

#[test]
fn no_order_of_events_loses_anything_or_signs_too_early() {
    let (outcome, Life { kinds, .. }) = explore(None);
    let seen = outcome.unwrap_or_else(|violation| panic!("{violation}"));
    let Seen {
        states,
        transitions,
        actions,
        ..
    } = seen;
    println!("{states} states, {transitions} transitions: {actions:?}");
    assert_eq!(actions.len(), 10);
    // Nothing can be asked of a CA without an issuer, or while its new settings were not tried.
    println!("{} kinds of states: {kinds:?}", kinds.len());
    assert_eq!(kinds.len(), 14);
}

#[test]
fn the_search_finds_each_rule_that_is_left_out() {
    for (without, rule) in [
        (Without::Epochs, "the answer to an earlier task counts"),
        (Without::Gate, "the next CA signs before every proxy"),
        (Without::OneAtATime, "two tasks of one CA at once"),
        (
            Without::LookingAgain,
            "a change of secrets is not looked at",
        ),
        (Without::PauseOfRotation, "the same again, at once"),
        (Without::RetryOfBuilds, "nothing will happen any more"),
        (Without::FormerIssuer, "an issuer"),
        (Without::NextLook, "nothing will happen any more"),
        (Without::Confirmation, "a confirmed CA is not set up"),
    ] {
        let (outcome, _) = explore(Some(without));
        let violation = outcome.expect_err("it should have been found");
        assert!(violation.what.starts_with(rule), "{without:?}: {violation}");
        println!("without {without:?}: {}", violation.what);
        assert!(violation.trace.len() <= 9, "{violation}");
    }
}
