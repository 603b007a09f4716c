//! The life of one CA under the manager: set up, looked at, rotated, and set up again when its
//! settings change. Events in, effects out: nothing here waits, asks the time or calls a CA.
//!
//! | state | its issuer | built | failed | other settings |
//! |---|---|---|---|---|
//! | `New`: its settings were not tried | that of before, if any, does not sign | `Up` | `Down` | `New` |
//! | `Down`: its settings failed | that of before, if any, signs | `Up` | `Down` | `New` |
//! | `Up`: it works | signs | `Up` | `Down` | `New` |
//!
//! Beside its state a CA has at most one [`Task`] under way. The manager starts the task that a
//! [tick](Ca::tick) returns, and reports how it ended. Whether every proxy trusts the next root
//! is an input: who has to be asked for that is not this module's affair.

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
    /// The least between two looks, as the CA wishes. One that did not answer is asked again
    /// earlier: until then it is reported to fail.
    pub(crate) least: Duration,
    /// Between two readings of a CA whose key somebody else made and may replace, if nobody says
    /// that it has changed.
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

/// Everything that the manager does after a task, in the order in which it is returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect<E> {
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
enum CaState<E> {
    /// No attempt to set it up as the resources say now has ended. Its build is due. An issuer of
    /// before does not sign: what it would sign is not what is wanted. The last error with the
    /// settings before these is shown until there is news.
    New(Option<E>),
    /// It could not be set up as the resources say now, or with the key that it has now. An issuer
    /// of before signs: what it signs is still accepted, and without it workloads would have
    /// nothing.
    Down(Failure<E>),
    /// It is set up as the resources say, and has an issuer.
    Up {
        /// When to set it up again because its key may have been replaced.
        reread_at: Option<Duration>,
        /// The error of the last look or rotation. The issuer signs all the same.
        fault: Option<E>,
    },
}

/// An issuer, and when it needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Serving<I> {
    issuer: I,
    look_at: Duration,
    /// No step of its rotation is taken before this. A step can stay due, because another replica
    /// takes it or because it changes nothing, and is not to be taken in a loop.
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
    /// Which settings these are. A task that began with others may end at any time, and its
    /// result is of no interest.
    epoch: u64,
    /// Whether its key is somebody else's, who may replace it without a change of the resources.
    rereads: bool,
    state: CaState<E>,
    /// The issuer as it was set up last, in any state.
    serving: Option<Serving<I>>,
    job: Option<Job>,
}

impl<I, E: Clone> Ca<I, E> {
    /// A CA that the resources name, and did not name before.
    pub(crate) fn new(epoch: u64, rereads: bool) -> Self {
        Self {
            epoch,
            rereads,
            state: CaState::New(None),
            serving: None,
            job: None,
        }
    }

    /// Which settings it has: a task carries the number along, and so does its report.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The issuer as it was set up last, whether or not it may sign.
    pub(crate) fn issuer(&self) -> Option<&I> {
        self.serving.as_ref().map(|serving| &serving.issuer)
    }

    /// The issuer that may sign, as far as its settings go.
    pub(crate) fn signer(&self) -> Option<&I> {
        self.issuer()
            .filter(|_| !matches!(self.state, CaState::New(_)))
    }

    /// The last error, if it has not been overcome. An error of its settings hides those of an
    /// issuer of before.
    pub(crate) fn error(&self) -> Option<&E> {
        match &self.state {
            CaState::New(fault) | CaState::Up { fault, .. } => fault.as_ref(),
            CaState::Down(failure) => Some(&failure.error),
        }
    }

    /// Whether no task is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.job.is_none()
    }

    /// When it needs a [tick](Self::tick) at the latest. While a task is under way, its report
    /// comes first.
    pub(crate) fn next_wake(&self, now: Duration) -> Option<Duration> {
        if !self.is_idle() {
            return None;
        }
        let serving = self.serving.as_ref();
        let look = serving.map(|serving| serving.look_at);
        // Whether a step is due then, only the rotation itself knows.
        let rotate = serving.map(|serving| serving.rotate_at);
        let rotate = rotate.filter(|at| *at > now);
        [self.build_at(), look, rotate].into_iter().flatten().min()
    }

    /// The resources have other settings for it. The result of a task that is under way comes too
    /// late.
    pub(crate) fn change(&mut self, epoch: u64, rereads: bool) {
        self.state = CaState::New(self.error().cloned());
        self.epoch = epoch;
        self.rereads = rereads;
        self.job = None;
    }

    /// Time has passed, or the gate gives another answer. `due` is the step that its rotation
    /// needs; `trusted` says whether every proxy that matters trusts all of its roots.
    ///
    /// Starts what is due: a build first, without which nothing else counts; then a step of the
    /// rotation, which must not be late; then a look.
    pub(crate) fn tick(
        &mut self,
        due: Option<RotationStep>,
        trusted: bool,
        now: Duration,
    ) -> Option<Task> {
        if !self.is_idle() {
            return None;
        }
        // Trust before use: the next CA signs only once every proxy trusts its root.
        let step = due.filter(|step| *step != RotationStep::Activate || trusted);
        let task = match (self.build_at(), &self.serving) {
            (Some(at), _) if at <= now => Task::Build,
            (_, Some(serving)) => match step.filter(|_| serving.rotate_at <= now) {
                Some(step) => Task::Rotate(step),
                None => (serving.look_at <= now).then_some(Task::Look)?,
            },
            (_, None) => return None,
        };
        self.job = Some(Job { task, again: false });
        Some(task)
    }

    /// Secrets may have changed. `told`: somebody says so. Else the store has changed, as it does
    /// for each record too; then failures keep their backoff.
    pub(crate) fn secrets_changed(&mut self, told: bool, now: Duration) {
        self.look_now(now);
        let again = told || (self.rereads && self.serving.is_some());
        match &mut self.state {
            CaState::Up { reread_at, .. } if self.rereads => *reread_at = Some(now),
            CaState::Down(failure) if again => failure.retry_at = now,
            _ => {}
        }
    }

    /// Another CA may be made in the place of one that is lost: it is set up again as soon as no task
    /// is under way.
    pub(crate) fn set_up_again(&mut self, now: Duration) {
        if let Some(job) = &mut self.job {
            job.again |= job.task == Task::Build;
        }
        match &mut self.state {
            CaState::New(_) => {}
            CaState::Down(failure) => failure.retry_at = now,
            CaState::Up { reread_at, .. } => *reread_at = Some(now),
        }
    }

    /// Its roots have changed, or may have: it signed under one that it had not named.
    pub(crate) fn look_now(&mut self, now: Duration) {
        if let Some(job) = &mut self.job {
            job.again = true;
        }
        if let Some(serving) = &mut self.serving {
            serving.look_at = now;
        }
    }

    /// A [`Task::Build`] has ended.
    pub(crate) fn built(
        &mut self,
        epoch: u64,
        result: Result<I, E>,
        now: Duration,
        pace: &Pace<'_>,
    ) -> Vec<Effect<E>> {
        let Some(job) = self.end(epoch) else {
            return Vec::new();
        };
        let after = |wait: Duration| match job.again {
            true => now,
            false => now.saturating_add(wait),
        };
        let had_fault = self.error().is_some();
        let was_up = matches!(self.state, CaState::Up { .. });
        match result {
            Ok(issuer) => {
                let first = self.serving.is_none();
                let former = self.serving.take();
                let (rotate_at, stepped) = former
                    .map(|former| (former.rotate_at, former.stepped))
                    .unwrap_or_default();
                self.serving = Some(Serving {
                    issuer,
                    look_at: after(pace.look.max(pace.least)),
                    rotate_at,
                    stepped,
                });
                self.state = CaState::Up {
                    reread_at: self.rereads.then(|| after(pace.reread)),
                    fault: None,
                };
                let effects = [
                    Some(Effect::TakeRoots),
                    Some(Effect::Publish),
                    (!was_up).then_some(Effect::Resume),
                    (first || had_fault).then_some(Effect::Ready),
                    first.then_some(Effect::Review),
                ];
                effects.into_iter().flatten().collect()
            }
            Err(error) => {
                let times = match &self.state {
                    CaState::Down(failure) => failure.times.saturating_add(1),
                    _ => 1,
                };
                self.state = CaState::Down(Failure {
                    error: error.clone(),
                    times,
                    retry_at: after(pace.backoff.after(times)),
                });
                let mut effects = vec![Effect::Failing(error), Effect::Publish];
                // Workloads that it would have won may get another CA.
                effects.extend((!had_fault).then_some(Effect::Review));
                effects
            }
        }
    }

    /// A [`Task::Look`] or a [`Task::Rotate`] has ended. If badly, the known roots stay trusted
    /// and the issuer signs all the same.
    pub(crate) fn asked(
        &mut self,
        epoch: u64,
        result: Result<(), E>,
        now: Duration,
        pace: &Pace<'_>,
    ) -> Vec<Effect<E>> {
        let Some(job) = self.end(epoch) else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        let done = result.is_ok();
        if let Some(serving) = &mut self.serving {
            if let Task::Rotate(step) = job.task {
                effects.extend(done.then_some(Effect::Rotated(step)));
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
            } else {
                let wait = match (job.again, done) {
                    (true, _) => Duration::ZERO,
                    (false, true) => pace.look.max(pace.least),
                    (false, false) => pace.look,
                };
                serving.look_at = now.saturating_add(wait);
            }
        }
        let fault = match &mut self.state {
            CaState::Up { fault, .. } => Some(fault),
            // An issuer of before says nothing about the settings that failed.
            _ => None,
        };
        match (result, fault) {
            (Ok(()), fault) => {
                let recovered = fault.is_some_and(|fault| fault.take().is_some());
                effects.push(Effect::TakeRoots);
                effects.extend(recovered.then_some(Effect::Publish));
            }
            (Err(error), fault) => {
                fault.map(|fault| fault.replace(error.clone()));
                effects.extend([Effect::Failing(error), Effect::Publish]);
            }
        }
        effects
    }

    /// Takes note that the task has ended. `None` if one has ended that began with other settings.
    fn end(&mut self, epoch: u64) -> Option<Job> {
        self.job.take_if(|_| epoch == self.epoch)
    }

    /// When it is to be set up; `None` if it is, and nobody else replaces its key.
    fn build_at(&self) -> Option<Duration> {
        match &self.state {
            CaState::New(_) => Some(Duration::ZERO),
            CaState::Down(failure) => Some(failure.retry_at),
            CaState::Up { reread_at, .. } => *reread_at,
        }
    }
}
