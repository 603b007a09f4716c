//! When certificates are asked for, as the embedder sets it.

use std::time::Duration;

use meshca_core::{RenewalPolicy, Retry};

use super::event::Fault;

/// How many requests an issuer may refuse in a day, before nothing is asked that it has refused: it may bill each.
pub(super) const REFUSED_PER_DAY: usize = 24;

/// The wait after a first refusal, and the longest.
const REFUSED: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(3600)];

/// The wait after so many refusals before this one; `jitter` is from 1 to 1.5.
pub(super) fn refused(times: u32, jitter: f64) -> Duration {
    let [first, longest] = REFUSED;
    let wait = first.saturating_mul(4u32.saturating_pow(times));
    stretch(wait.min(longest.div_f64(1.5)), jitter)
}

/// The shortest wait, whatever the options say.
const LEAST: Duration = Duration::from_millis(100);

/// When certificates are asked for: renewal, limits, backoff and breaker.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ScheduleOptions {
    /// When a certificate is renewed.
    pub renewal: RenewalPolicy,
    /// How many requests one issuer works on at the same time. Issuers do not share it: one that
    /// hangs holds up no other.
    pub concurrency: usize,
    /// The wait after a first failure; it doubles with each one that follows.
    pub min_backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// How many different workloads fail in a row, at one issuer, before it is left alone. Two that it refuses are
    /// enough.
    pub breaker_threshold: usize,
    /// The longest time between two probes of an issuer that is left alone.
    pub max_probe_interval: Duration,
}

impl Default for ScheduleOptions {
    /// Renewal between 50 % and 60 % of the lifetime, 16 requests at a time, backoff from 5
    /// seconds to 5 minutes, a breaker that opens at 10 failing workloads and probes after 5
    /// seconds to a minute.
    ///
    /// An issuer that answers, but with nothing that can be used, may bill each answer. From the second workload on that it
    /// refuses, one finds out for all: after a minute, up to an hour, and 24 times a day at most.
    fn default() -> Self {
        Self {
            renewal: RenewalPolicy::default(),
            concurrency: 16,
            min_backoff: Duration::from_secs(5),
            max_backoff: Duration::from_secs(300),
            breaker_threshold: 10,
            max_probe_interval: Duration::from_secs(60),
        }
    }
}

impl ScheduleOptions {
    /// The same, so that nobody is asked in a loop, whatever is set.
    pub(crate) fn bounded(mut self) -> Self {
        self.min_backoff = self.min_backoff.max(LEAST);
        self.max_backoff = self.max_backoff.max(self.min_backoff);
        self.max_probe_interval = self.max_probe_interval.max(self.min_backoff);
        self
    }

    /// The wait after so many failures before this one, without limit and jitter.
    pub(crate) fn doubled(&self, times: u32) -> Duration {
        self.min_backoff.saturating_mul(1u32 << times.min(16))
    }

    /// Returns the wait after a failure, the last of so many in a row. `left` is the rest of the held
    /// certificate, `jitter` a number from 0 to 1.
    pub(super) fn wait(
        &self,
        times: u8,
        (retry, fault): (Retry, Fault),
        left: Option<Duration>,
        jitter: f64,
    ) -> Duration {
        let (min, max) = (self.min_backoff, self.max_backoff);
        // Between 1 and 1.5.
        let jitter = 1.0 + jitter / 2.0;
        let doubled = self.doubled(u32::from(times.saturating_sub(1)));
        let mut wait = match fault {
            Fault::Refused => refused(u32::from(times.saturating_sub(1)), jitter),
            _ => stretch(doubled.min(max.div_f64(1.5)), jitter),
        };
        // As the end comes nearer the tries come closer together.
        if let Some(left) = left {
            wait = wait.min((left / 4).max(min));
        }
        match retry {
            // The same request would fail again. The next one is new, but not before somebody has had time to change something.
            Retry::Never if fault != Fault::Refused => wait = stretch(max, jitter / 1.5),
            Retry::After(least) => wait = wait.max(stretch(least, 1.0 + (jitter - 1.0) / 5.0)),
            _ => {}
        }
        // Not even a CA that wants to be left alone for a day may cost what is valid.
        left.map_or(wait, |left| wait.min((left / 2).max(min)))
    }

    /// The wait after so many failures in a row, this one included.
    pub(crate) fn after(&self, times: u32) -> Duration {
        self.doubled(times.saturating_sub(1)).min(self.max_backoff)
    }
}

/// Multiplies a wait. One that a CA asks for may be any number: a year is for ever, here.
pub(super) fn stretch(wait: Duration, factor: f64) -> Duration {
    wait.min(Duration::from_secs(366 * 24 * 3600))
        .mul_f64(factor)
}
