//! The life of one CA under the manager: set up, looked at, rotated, and set up again when its settings change. Events in, effects out:
//! nothing here waits, asks the time or calls a CA.
//!
//! | state | issuer | built | failed | other settings |
//! |---|---|---|---|---|
//! | `New`: its settings were not tried | none | `Up` | `Down` | `New` |
//! | `Down`: its settings failed | none | `Up` | `Down` | `New` |
//! | `Up`: it works | signs | `Up` | `Fallback` | `Changing` |
//! | `Changing`: its new settings were not tried | does not sign | `Up` | `Fallback` | `Changing` |
//! | `Fallback`: its new settings failed | signs | `Up` | `Fallback` | `Changing` |
//!
//! Beside its state a CA has at most one [`Task`] under way. The manager starts each task that an effect names, and reports how it
//! ended. Whether every proxy trusts the next root is an input: who has to be asked for that is not this module's affair.

#[cfg(test)]
mod tests;

use std::time::Duration;

use meshca_core::RotationStep;

use crate::schedule::ScheduleOptions;

/// How often a CA is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace<'a> {
    /// Between two looks at its roots, as far as the manager wishes.
    pub(crate) look: Duration,
    /// The least between two looks, as the CA wishes. One that did not answer is asked again earlier: until then it is reported to fail.
    pub(crate) least: Duration,
    /// Between two readings of a CA whose key somebody else made and may replace, if nobody says that it has changed.
    pub(crate) reread: Duration,
    /// The waits after failures.
    pub(crate) backoff: &'a ScheduleOptions,
}

/// Work for a CA that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Make an issuer of the settings, and read its roots.
    Build,
    /// Read the roots.
    Look,
    /// Take the CA a step further in its replacement, and read the roots.
    Rotate(RotationStep),
}

/// Everything that a CA hears of.
#[derive(Clone, Debug)]
pub(crate) enum Event<I, E> {
    /// The resources have other settings for it.
    Changed {
        epoch: u64,
        /// Whether its key is somebody else's, who may replace it without a change of the resources.
        rereads: bool,
    },
    /// Time has passed, or what the gate says has changed.
    Tick {
        /// The step that its rotation needs.
        due: Option<RotationStep>,
        /// Whether every proxy that matters trusts all of its roots.
        trusted: bool,
    },
    /// Secrets may have changed.
    SecretsChanged {
        /// Somebody says so. Else the store has changed, as it does for each record too: then failures keep their backoff.
        told: bool,
    },
    /// It signed under a root that it had not named.
    UnknownRoot,
    /// A [`Task::Build`] has ended.
    Built { epoch: u64, result: Result<I, E> },
    /// A [`Task::Look`] or a [`Task::Rotate`] has ended.
    Asked { epoch: u64, result: Result<(), E> },
}

/// Everything that the manager does for a CA, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect<E> {
    /// Start this task.
    Start(Task),
    /// Tell observers that it was taken this step further.
    Rotated(RotationStep),
    /// Take the roots that the task brought.
    TakeRoots,
    /// Tell observers that it fails.
    Failing(E),
    /// Publish: its status is another one.
    Publish,
    /// Try again at once for the workloads that wait after failures.
    Resume,
    /// Tell observers that it is ready.
    Ready,
    /// Select again for all workloads: they may get a certificate now, or one of another CA.
    Review,
}

/// Everything that a CA can be in, between tasks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum CaState<I, E> {
    /// No attempt to set it up as the resources say now has ended, and there is no issuer of before. Its build is due.
    New {
        /// The last error with the settings before these, shown until there is news.
        fault: Option<E>,
    },
    /// It could not be set up, and there is no issuer of before.
    Down(Failure<E>),
    /// It is set up as the resources say.
    Up {
        serving: Serving<I>,
        /// When to set it up again because its key may have been replaced.
        reread_at: Option<Duration>,
        /// The error of the last look or rotation. The issuer signs all the same.
        fault: Option<E>,
    },
    /// No attempt to set it up as the resources say now has ended. Its build is due. The issuer of before does not sign: what it would
    /// sign is not what is wanted.
    Changing {
        former: Serving<I>,
        fault: Option<E>,
    },
    /// It could not be set up as the resources say now, or with the key that it has now. The issuer of before signs: what it signs is
    /// still accepted, and without it workloads would have nothing.
    Fallback {
        former: Serving<I>,
        failure: Failure<E>,
    },
}

/// An issuer, and when it needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Serving<I> {
    issuer: I,
    look_at: Duration,
    /// No step of its rotation is taken before this. A step can stay due, because another replica takes it or because it changes
    /// nothing, and is not to be taken in a loop.
    rotate_at: Duration,
    /// The last step, and how often in a row it was taken.
    stepped: Option<(RotationStep, u32)>,
}

/// Why a CA could not be set up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Failure<E> {
    error: E,
    /// How many attempts in a row have failed.
    times: u32,
    retry_at: Duration,
}

/// A task that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Job {
    task: Task,
    /// Something has changed since it began, which it may not have seen.
    again: bool,
}

/// See the [module](self). `I` is an issuer, `E` an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ca<I, E> {
    /// Which settings these are. A task that began with others may end at any time, and its result is of no interest.
    epoch: u64,
    rereads: bool,
    state: CaState<I, E>,
    job: Option<Job>,
}

impl<I, E: Clone> Ca<I, E> {
    /// A CA that the resources name, and did not name before.
    pub(crate) fn new(epoch: u64, rereads: bool) -> Self {
        Self {
            epoch,
            rereads,
            state: CaState::New { fault: None },
            job: None,
        }
    }

    /// Which settings it has: a task carries the number along, and so does its report.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The issuer as it was set up last, whether or not it may sign.
    pub(crate) fn issuer(&self) -> Option<&I> {
        self.serving().map(|serving| &serving.issuer)
    }

    /// The issuer that may sign, as far as its settings go.
    pub(crate) fn signer(&self) -> Option<&I> {
        match self.state {
            CaState::Changing { .. } => None,
            _ => self.issuer(),
        }
    }

    /// The last error, if it has not been overcome. An error of its settings hides those of an issuer of before.
    pub(crate) fn error(&self) -> Option<&E> {
        match &self.state {
            CaState::New { fault }
            | CaState::Up { fault, .. }
            | CaState::Changing { fault, .. } => fault.as_ref(),
            CaState::Down(failure) | CaState::Fallback { failure, .. } => Some(&failure.error),
        }
    }

    /// Whether no task is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.job.is_none()
    }

    /// When it needs an [`Event::Tick`] at the latest. While a task is under way, its report comes first.
    pub(crate) fn next_wake(&self, now: Duration) -> Option<Duration> {
        if self.job.is_some() {
            return None;
        }
        let serving = self.serving();
        let look = serving.map(|serving| serving.look_at);
        // Whether a step is due then, only the rotation itself knows.
        let rotate = serving.map(|serving| serving.rotate_at);
        let rotate = rotate.filter(|at| *at > now);
        [self.build_at(), look, rotate].into_iter().flatten().min()
    }

    /// Takes an event, and says what to do.
    pub(crate) fn on(
        &mut self,
        event: Event<I, E>,
        now: Duration,
        pace: &Pace<'_>,
    ) -> Vec<Effect<E>> {
        match event {
            Event::Changed { epoch, rereads } => {
                self.change(epoch, rereads);
                Vec::new()
            }
            Event::Tick { due, trusted } => self.tick(due, trusted, now),
            Event::SecretsChanged { told } => {
                self.look_anew(told, now);
                Vec::new()
            }
            Event::UnknownRoot => {
                self.look_now(now);
                Vec::new()
            }
            Event::Built { epoch, result } => match self.end(epoch) {
                Some(job) => self.built(result, job.again, now, pace),
                None => Vec::new(),
            },
            Event::Asked { epoch, result } => match self.end(epoch) {
                Some(Job {
                    task: Task::Rotate(step),
                    ..
                }) => self.rotated(step, result, now, pace),
                Some(job) => self.looked(result, job.again, now, pace),
                None => Vec::new(),
            },
        }
    }

    /// The result of a task that is under way comes too late for the new settings.
    fn change(&mut self, epoch: u64, rereads: bool) {
        self.epoch = epoch;
        self.rereads = rereads;
        self.job = None;
        let before = std::mem::replace(&mut self.state, CaState::New { fault: None });
        self.state = match before {
            CaState::Down(failure) => CaState::New {
                fault: Some(failure.error),
            },
            CaState::Up { serving, fault, .. } => CaState::Changing {
                former: serving,
                fault,
            },
            CaState::Fallback { former, failure } => CaState::Changing {
                former,
                fault: Some(failure.error),
            },
            new @ (CaState::New { .. } | CaState::Changing { .. }) => new,
        };
    }

    /// Starts what is due: the settings first, without which nothing else counts; then the rotation, which must not be late; then a look.
    fn tick(&mut self, due: Option<RotationStep>, trusted: bool, now: Duration) -> Vec<Effect<E>> {
        if self.job.is_some() {
            return Vec::new();
        }
        // Trust before use: the next CA signs only once every proxy trusts its root.
        let step = due.filter(|step| *step != RotationStep::Activate || trusted);
        let task = match (self.build_at(), self.serving()) {
            (Some(at), _) if at <= now => Task::Build,
            (_, Some(serving)) => match step.filter(|_| serving.rotate_at <= now) {
                Some(step) => Task::Rotate(step),
                None if serving.look_at <= now => Task::Look,
                None => return Vec::new(),
            },
            (_, None) => return Vec::new(),
        };
        self.job = Some(Job { task, again: false });
        vec![Effect::Start(task)]
    }

    fn look_anew(&mut self, told: bool, now: Duration) {
        self.look_now(now);
        let serves = self.serving().is_some();
        match &mut self.state {
            CaState::Up { reread_at, .. } if self.rereads => *reread_at = Some(now),
            CaState::Down(failure) | CaState::Fallback { failure, .. }
                if told || (serves && self.rereads) =>
            {
                failure.retry_at = now;
            }
            _ => {}
        }
    }

    fn look_now(&mut self, now: Duration) {
        if let Some(job) = &mut self.job {
            job.again = true;
        }
        if let Some(serving) = self.serving_mut() {
            serving.look_at = now;
        }
    }

    /// Takes note that the task has ended. `None` if one has ended that began with other settings.
    fn end(&mut self, epoch: u64) -> Option<Job> {
        match epoch == self.epoch {
            true => self.job.take(),
            false => None,
        }
    }

    fn built(
        &mut self,
        result: Result<I, E>,
        again: bool,
        now: Duration,
        pace: &Pace<'_>,
    ) -> Vec<Effect<E>> {
        let after = |wait: Duration| match again {
            true => now,
            false => now.saturating_add(wait),
        };
        let had_fault = self.error().is_some();
        let before = std::mem::replace(&mut self.state, CaState::New { fault: None });
        let was_up = matches!(before, CaState::Up { .. });
        let (former, failures) = match before {
            CaState::New { .. } => (None, 0),
            CaState::Down(failure) => (None, failure.times),
            CaState::Up { serving, .. } => (Some(serving), 0),
            CaState::Changing { former, .. } => (Some(former), 0),
            CaState::Fallback { former, failure } => (Some(former), failure.times),
        };
        match result {
            Ok(issuer) => {
                let first = former.is_none();
                let (rotate_at, stepped) = former
                    .map(|former| (former.rotate_at, former.stepped))
                    .unwrap_or_default();
                self.state = CaState::Up {
                    serving: Serving {
                        issuer,
                        look_at: after(pace.look.max(pace.least)),
                        rotate_at,
                        stepped,
                    },
                    reread_at: self.rereads.then(|| after(pace.reread)),
                    fault: None,
                };
                let mut effects = vec![Effect::TakeRoots, Effect::Publish];
                effects.extend((!was_up).then_some(Effect::Resume));
                effects.extend((first || had_fault).then_some(Effect::Ready));
                effects.extend(first.then_some(Effect::Review));
                effects
            }
            Err(error) => {
                let times = failures.saturating_add(1);
                let failure = Failure {
                    error: error.clone(),
                    times,
                    retry_at: after(pace.backoff.after(times)),
                };
                self.state = match former {
                    Some(former) => CaState::Fallback { former, failure },
                    None => CaState::Down(failure),
                };
                let mut effects = vec![Effect::Failing(error), Effect::Publish];
                // Workloads that it would have won may get another CA.
                effects.extend((!had_fault).then_some(Effect::Review));
                effects
            }
        }
    }

    fn looked(
        &mut self,
        result: Result<(), E>,
        again: bool,
        now: Duration,
        pace: &Pace<'_>,
    ) -> Vec<Effect<E>> {
        let wait = match (again, &result) {
            (true, _) => Duration::ZERO,
            (false, Ok(())) => pace.look.max(pace.least),
            (false, Err(_)) => pace.look,
        };
        if let Some(serving) = self.serving_mut() {
            serving.look_at = now.saturating_add(wait);
        }
        self.asked(result)
    }

    fn rotated(
        &mut self,
        step: RotationStep,
        result: Result<(), E>,
        now: Duration,
        pace: &Pace<'_>,
    ) -> Vec<Effect<E>> {
        let done = result.is_ok();
        if let Some(serving) = self.serving_mut() {
            let times = match serving.stepped {
                Some((before, times)) if before == step => times.saturating_add(1),
                _ => 1,
            };
            serving.stepped = Some((step, times));
            let wait = match done {
                true => pace.backoff.after(times),
                false => pace.backoff.max_backoff,
            };
            serving.rotate_at = now.saturating_add(wait);
        }
        let mut effects = Vec::from_iter(done.then_some(Effect::Rotated(step)));
        effects.extend(self.asked(result));
        effects
    }

    /// An issuer has answered, or not. What it said before stays trusted, and it signs all the same.
    fn asked(&mut self, result: Result<(), E>) -> Vec<Effect<E>> {
        let fault = match &mut self.state {
            CaState::Up { fault, .. } => Some(fault),
            // An issuer of before says nothing about the settings that failed.
            _ => None,
        };
        match result {
            Ok(()) => {
                let recovered = fault.is_some_and(|fault| fault.take().is_some());
                let mut effects = vec![Effect::TakeRoots];
                effects.extend(recovered.then_some(Effect::Publish));
                effects
            }
            Err(error) => {
                if let Some(fault) = fault {
                    *fault = Some(error.clone());
                }
                vec![Effect::Failing(error), Effect::Publish]
            }
        }
    }

    /// When it is to be set up; `None` if it is, and nobody else replaces its key.
    fn build_at(&self) -> Option<Duration> {
        match &self.state {
            CaState::New { .. } | CaState::Changing { .. } => Some(Duration::ZERO),
            CaState::Down(failure) | CaState::Fallback { failure, .. } => Some(failure.retry_at),
            CaState::Up { reread_at, .. } => *reread_at,
        }
    }

    fn serving(&self) -> Option<&Serving<I>> {
        match &self.state {
            CaState::New { .. } | CaState::Down(_) => None,
            CaState::Up { serving, .. } => Some(serving),
            CaState::Changing { former, .. } | CaState::Fallback { former, .. } => Some(former),
        }
    }

    fn serving_mut(&mut self) -> Option<&mut Serving<I>> {
        match &mut self.state {
            CaState::New { .. } | CaState::Down(_) => None,
            CaState::Up { serving, .. } => Some(serving),
            CaState::Changing { former, .. } | CaState::Fallback { former, .. } => Some(former),
        }
    }
}
