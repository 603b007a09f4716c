//! Trying again.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable as _};
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Issuer, Result, Retry, SignedChain, TrustBundle,
};
use tokio::time::Instant;

/// How often and for how long [`Retrying`] tries.
///
/// ```
/// use std::time::Duration;
/// use meshca_wrap::RetryPolicy;
///
/// let policy = RetryPolicy::new().with_attempts(5).with_total(Duration::from_secs(60));
/// assert_eq!(policy.attempts(), 5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: u32,
    first_delay: Duration,
    max_delay: Duration,
    total: Duration,
}

impl RetryPolicy {
    /// Three attempts within 30 seconds, half a second apart at first and 5 seconds at most.
    pub fn new() -> Self {
        Self {
            attempts: 3,
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(5),
            total: Duration::from_secs(30),
        }
    }

    /// How often it is tried, the first time included. 0 counts as 1.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long to wait after the first failure, and after any: the delay doubles from the one to the other, and
    /// as much again is added at random at most.
    #[must_use]
    pub fn with_delays(mut self, first: Duration, max: Duration) -> Self {
        self.first_delay = first;
        self.max_delay = max.max(first);
        self
    }

    /// No attempt begins later than this after the first one. An attempt that has begun is not cut short.
    #[must_use]
    pub fn with_total(mut self, total: Duration) -> Self {
        self.total = total;
        self
    }

    /// How often it is tried, the first time included.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long to wait after the first failure, before anything is added at random.
    pub fn first_delay(&self) -> Duration {
        self.first_delay
    }

    /// How long to wait at most, before anything is added at random.
    pub fn max_delay(&self) -> Duration {
        self.max_delay
    }

    /// For how long attempts begin.
    pub fn total(&self) -> Duration {
        self.total
    }

    fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(self.first_delay)
            .with_max_delay(self.max_delay)
            .with_max_times(usize::try_from(self.attempts - 1).unwrap_or(usize::MAX))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// Tries again what may pass later.
///
/// The inner issuer's errors decide, by their [advice](meshca_core::Error::retry):
///
/// | advice | what happens |
/// |---|---|
/// | [`Never`](Retry::Never) | the error is returned |
/// | [`Backoff`](Retry::Backoff) | after a delay that doubles each time and has a random part |
/// | [`After`](Retry::After) | after that time **and** the delay, lest all who were told the same come back together |
///
/// Every attempt has the same [`CertificateRequest`], so that a CA which knows the request's ID signs once.
/// `sign` and `trust_bundle` are tried again. `check` is not, since its caller wants to
/// know the present state. When it gives up, the last error has the context `attempts`.
#[derive(Clone, Debug, derive_more::Display)]
#[display("{inner}")]
pub struct Retrying<I> {
    inner: I,
    policy: RetryPolicy,
}

impl<I: Issuer> Retrying<I> {
    /// With the default [policy](RetryPolicy::new).
    pub fn new(inner: I) -> Self {
        Self {
            inner,
            policy: RetryPolicy::new(),
        }
    }

    /// With another policy.
    #[must_use]
    pub fn with_policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    async fn retried<T, F>(&self, attempt: impl FnMut() -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        let began = Instant::now();
        let attempts = AtomicU32::new(1);
        let last = attempt
            .retry(self.policy.backoff())
            .sleep(tokio::time::sleep)
            .when(|error| error.retry() != Retry::Never)
            .adjust(|error, delay| {
                let delay = match error.retry() {
                    Retry::After(wait) => wait.saturating_add(delay?),
                    _ => delay?,
                };
                if began.elapsed().saturating_add(delay) > self.policy.total {
                    return None;
                }
                attempts.fetch_add(1, Ordering::Relaxed);
                Some(delay)
            })
            .await;
        last.map_err(|error| match attempts.load(Ordering::Relaxed) {
            1 if error.retry() == Retry::Never => error,
            attempts => error.with_context("attempts", attempts),
        })
    }
}

#[async_trait]
#[deny(
    clippy::missing_trait_methods,
    reason = "a forgotten method would silently lose what the inner one does"
)]
impl<I: Issuer> Issuer for Retrying<I> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        self.retried(|| self.inner.sign(request)).await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.retried(|| self.inner.trust_bundle()).await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
}

#[cfg(test)]
mod tests {
    use meshca_core::{Error, ErrorKind};

    use super::*;
    use crate::testing::{Answer, Recorder, request};

    fn fails(retry: Retry) -> Answer {
        Answer::Fails(Error::new(ErrorKind::Unavailable, "no").with_retry(retry))
    }

    fn retrying(answers: impl IntoIterator<Item = Answer>) -> Retrying<Recorder> {
        Retrying::new(Recorder::new().with_answers(answers))
    }

    #[test]
    fn defaults_are_what_the_docs_say() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.attempts(), 3);
        assert_eq!(policy.first_delay(), Duration::from_millis(500));
        assert_eq!(policy.max_delay(), Duration::from_secs(5));
        assert_eq!(policy.total(), Duration::from_secs(30));
        assert_eq!(policy.with_attempts(0).attempts(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_advice_of_the_error_decides() {
        let after = |secs| Retry::After(Duration::from_secs(secs));
        let ms = Duration::from_millis;
        // What the CA answers, whether the call passes, how often it was asked, and how long that took.
        for (answers, passes, asked, least, most) in [
            (vec![], true, 1, ms(0), ms(1)),
            (vec![fails(Retry::Never)], false, 1, ms(0), ms(1)),
            (vec![fails(Retry::Backoff)], true, 2, ms(500), ms(1001)),
            (
                vec![fails(Retry::Backoff), fails(Retry::Backoff)],
                true,
                3,
                ms(1500),
                ms(3002),
            ),
            (
                vec![fails(Retry::Backoff), fails(Retry::Never)],
                false,
                2,
                ms(500),
                ms(1001),
            ),
            (
                vec![
                    fails(Retry::Backoff),
                    fails(Retry::Backoff),
                    fails(Retry::Backoff),
                ],
                false,
                3,
                ms(1500),
                ms(3002),
            ),
            (vec![fails(after(7))], true, 2, ms(7500), ms(8001)),
            // Later than attempts may begin: not waited for.
            (vec![fails(after(40))], false, 1, ms(0), ms(1)),
            (
                vec![fails(after(20)), fails(after(20))],
                false,
                2,
                ms(20_500),
                ms(21_001),
            ),
            (vec![fails(after(u64::MAX))], false, 1, ms(0), ms(1)),
        ] {
            let text = format!("{answers:?}");
            let issuer = retrying(answers);
            let began = Instant::now();
            let result = issuer.sign(&request("cart")).await;
            let took = began.elapsed();
            assert_eq!(result.is_ok(), passes, "{text}");
            assert_eq!(issuer.inner.calls().len(), asked, "{text}");
            assert!((least..=most).contains(&took), "{text}: {took:?}");
            if let Err(error) = result {
                let attempts = error.context().find(|(name, _)| *name == "attempts");
                let told = asked > 1 || error.retry() != Retry::Never;
                assert_eq!(
                    attempts.map(|(_, attempts)| attempts.to_owned()),
                    told.then(|| asked.to_string()),
                    "{text}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_operation_but_check_is_tried_again() {
        let issuer = retrying([]);
        for (operation, asked) in [("sign", 2), ("trust_bundle", 2), ("check", 1)] {
            issuer.inner.answer(fails(Retry::Backoff));
            let passed = match operation {
                "sign" => issuer.sign(&request("cart")).await.is_ok(),
                "trust_bundle" => issuer.trust_bundle().await.is_ok(),
                _ => issuer.check().await.is_ok(),
            };
            assert_eq!(passed, asked == 2, "{operation}");
            assert_eq!(
                issuer.inner.take_calls(),
                vec![operation; asked],
                "{operation}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_attempt_has_the_same_request() {
        let issuer = retrying([fails(Retry::Backoff), fails(Retry::Backoff)]);
        let request = request("cart");
        issuer.sign(&request).await.unwrap();
        assert_eq!(issuer.inner.requests(), vec![request.id().clone(); 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_is_not_tried_again() {
        let issuer = retrying([fails(Retry::Backoff)]);
        let request = request("cart");
        tokio::select! {
            _ = issuer.sign(&request) => unreachable!("half a second has not passed"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(issuer.inner.calls(), ["sign"]);
    }
}
