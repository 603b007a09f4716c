//! Leaving a failing CA alone.

mod state;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer, Result, Retry,
    SignedChain, SpiffeId, TrustBundle,
};
use tokio::time::Instant;

pub use self::state::BreakerState;
use self::state::{Breaking, Outcome, Rules, Ticket};
use super::rfc3339;

/// Stops asking a CA that fails for one identity after the other, and tries it from time to time.
///
/// ```text
///             enough identities failed               after a while, one call is let through
///   Closed ───────────────────────────────► Open ────────────────────────────────────► HalfOpen
///     ▲                                      ▲  it fails                                    │
///     │                                      └───────────────────────────────────────────────┤
///     └──────────────────────────────────────────────────────────────────────────────────────┘
///                                         a signature succeeds
/// ```
///
/// - **What counts** is a failure to sign that [may pass](meshca_core::Error::retry), once for each SPIFFE
///   ID: a single workload that fails again and again says nothing about the CA. It counts for a minute, and
///   until something is signed.
/// - **What does not**: errors that will not pass (the CA works, and says no), and
///   [`RateLimited`](ErrorKind::RateLimited) ones (the CA works, and says when). They neither open nor close it.
/// - **While it is open** signing fails at once with [`Unavailable`](ErrorKind::Unavailable) and
///   the time [after which](Retry::After) to come back; the message says since when, and the last
///   failure is the source. `trust_bundle` is passed on: it is asked for seldom, and a CA that
///   does not sign may still have new roots. So is `check`, since its caller wants to know the
///   present state.
/// - **A probe** is an ordinary request to sign, one at a time. One that is dropped leaves its place to the
///   next; one that has no answer for as long as the breaker stays open does as well.
///
/// Clones share their state.
#[derive(Clone, Debug, derive_more::Display)]
#[display("{inner}")]
pub struct Breaker<I> {
    inner: I,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    breaking: Breaking<SpiffeId>,
    opened: Option<SystemTime>,
    last: Option<Error>,
}

impl<I: Issuer> Breaker<I> {
    /// Opens after 10 different SPIFFE IDs have failed in a row within a minute, for 30 seconds at a time.
    ///
    /// The clock is for messages only: how long to wait is measured on tokio's clock, which nobody sets back.
    pub fn new(inner: I, clock: Arc<dyn Clock>) -> Self {
        let rules = Rules {
            threshold: 10,
            window: Duration::from_secs(60),
            open_for: Duration::from_secs(30),
        };
        Self {
            inner,
            shared: Shared::new(rules, clock),
        }
    }

    /// Opens after this many different SPIFFE IDs. Starts from nothing.
    #[must_use]
    pub fn with_threshold(self, identities: NonZeroUsize) -> Self {
        self.with_rules(|rules| rules.threshold = identities.get())
    }

    /// For how long a failure counts. Starts from nothing.
    #[must_use]
    pub fn with_window(self, window: Duration) -> Self {
        self.with_rules(|rules| rules.window = window)
    }

    /// How long nothing is asked before the next probe. Starts from nothing.
    #[must_use]
    pub fn with_open_for(self, open_for: Duration) -> Self {
        self.with_rules(|rules| rules.open_for = open_for)
    }

    fn with_rules(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        let mut rules = self.shared.state().breaking.rules();
        change(&mut rules);
        self.shared = Shared::new(rules, Arc::clone(&self.shared.clock));
        self
    }

    /// What it is doing now: for health and metrics.
    pub fn state(&self) -> BreakerState {
        self.shared.state().breaking.shown(self.shared.now())
    }
}

impl Shared {
    fn new(rules: Rules, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            origin: Instant::now(),
            state: Mutex::new(State {
                breaking: Breaking::new(rules),
                opened: None,
                last: None,
            }),
        })
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self) -> Result<Ticket> {
        let mut state = self.state();
        let asked = state.breaking.ask(self.now());
        asked.map_err(|wait| state.refusal(wait))
    }

    fn report(&self, ticket: Ticket, id: &SpiffeId, outcome: Outcome, error: Option<&Error>) {
        let mut state = self.state();
        if outcome == Outcome::Failed {
            state.last = error.cloned();
        }
        if state
            .breaking
            .report(ticket, id.clone(), outcome, self.now())
        {
            match outcome {
                Outcome::Passed => (state.opened, state.last) = (None, None),
                _ => state.opened = Some(self.clock.now()),
            }
        }
    }
}

impl State {
    fn refusal(&self, wait: Duration) -> Error {
        let mut error = Error::new(
            ErrorKind::Unavailable,
            "the CA is not asked for a while, because it failed for one identity after the other",
        )
        .with_retry(Retry::After(wait))
        .with_context("identities", self.breaking.rules().threshold);
        if let Some(opened) = self.opened {
            error = error.with_context("since", rfc3339(opened));
        }
        match &self.last {
            Some(last) => error.with_source(last.clone()),
            None => error,
        }
    }
}

/// A question whose answer is reported, be it that it was dropped.
struct Asked<'a> {
    shared: &'a Shared,
    ticket: Ticket,
    id: &'a SpiffeId,
    answered: bool,
}

impl Asked<'_> {
    fn answered(&mut self, answer: Result<&SignedChain, &Error>) {
        self.answered = true;
        let outcome = match answer {
            Ok(_) => Outcome::Passed,
            Err(error)
                if error.kind() == ErrorKind::RateLimited || error.retry() == Retry::Never =>
            {
                Outcome::Neutral
            }
            Err(_) => Outcome::Failed,
        };
        self.shared
            .report(self.ticket, self.id, outcome, answer.err());
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.shared
                .report(self.ticket, self.id, Outcome::Neutral, None);
        }
    }
}

#[async_trait]
#[deny(
    clippy::missing_trait_methods,
    reason = "a forgotten method would silently lose what the inner one does"
)]
impl<I: Issuer> Issuer for Breaker<I> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let mut asked = Asked {
            ticket: self.shared.ask()?,
            shared: &self.shared,
            id: request.spiffe_id(),
            answered: false,
        };
        let answer = self.inner.sign(request).await;
        asked.answered(answer.as_ref());
        answer
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.inner.trust_bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
}

#[cfg(test)]
mod tests;
