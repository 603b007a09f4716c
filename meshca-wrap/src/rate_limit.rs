//! Waiting one's turn.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::time::Gcra;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Error, ErrorKind, Issuer, Result, Retry,
    SignedChain, TrustBundle,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// So many per second, and so many at once after a pause.
///
/// ```
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use meshca_wrap::Rate;
///
/// let Some(fifty) = NonZeroU32::new(50) else { unreachable!() };
/// let rate = Rate::per_second(fifty);
/// assert_eq!(rate.interval(), Duration::from_millis(20));
/// assert_eq!(rate.burst(), fifty);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    interval: Duration,
    burst: NonZeroU32,
}

impl Rate {
    const SHORTEST: Duration = Duration::from_micros(1);
    const LONGEST: Duration = Duration::from_secs(3600);
    const MAX_BURST: u32 = 1_000_000;

    /// This many per second, and as many at once; a million at most.
    pub fn per_second(rate: NonZeroU32) -> Self {
        Self::every(Duration::from_secs(1) / rate.get()).with_burst(rate)
    }

    /// One in this time, and one at once. A microsecond at least, an hour at most.
    pub fn every(interval: Duration) -> Self {
        Self {
            interval: interval.clamp(Self::SHORTEST, Self::LONGEST),
            burst: NonZeroU32::MIN,
        }
    }

    /// This many at once after a pause; a million at most.
    #[must_use]
    pub fn with_burst(mut self, burst: NonZeroU32) -> Self {
        self.burst = NonZeroU32::new(burst.get().min(Self::MAX_BURST)).unwrap_or(burst);
        self
    }

    /// The time from one to the next.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How many at once.
    pub fn burst(&self) -> NonZeroU32 {
        self.burst
    }
}

/// Keeps below what a CA allows, so that it need not refuse.
///
/// `sign` and `trust_bundle` have a limit each, `check` has none. Whoever is too
/// early waits for the turn, first come first served. Whoever would have to wait for longer than is allowed
/// gets a [`RateLimited`](ErrorKind::RateLimited) error at once, which says [after what time](Retry::After)
/// to come back; the CA is not asked.
///
/// Clones share their limits.
#[derive(Clone, Debug, derive_more::Display)]
#[display("{inner}")]
pub struct RateLimited<I> {
    inner: I,
    max_wait: Duration,
    sign: Arc<Turnstile>,
    trust_bundle: Arc<Turnstile>,
}

const SIGN_RATE: NonZeroU32 = NonZeroU32::new(25).unwrap();
const TRUST_BURST: NonZeroU32 = NonZeroU32::new(5).unwrap();

impl<I: Issuer> RateLimited<I> {
    /// 25 signatures per second and at once, about what AWS Private CA allows an account by default; one
    /// trust bundle per second and 5 at once; 10 seconds to wait at most.
    pub fn new(inner: I) -> Self {
        Self {
            inner,
            max_wait: Duration::from_secs(10),
            sign: Arc::new(Turnstile::new(Rate::per_second(SIGN_RATE))),
            trust_bundle: Arc::new(Turnstile::new(
                Rate::every(Duration::from_secs(1)).with_burst(TRUST_BURST),
            )),
        }
    }

    /// Another limit for `sign`.
    #[must_use]
    pub fn with_sign(mut self, rate: Rate) -> Self {
        self.sign = Arc::new(Turnstile::new(rate));
        self
    }

    /// Another limit for `trust_bundle`.
    #[must_use]
    pub fn with_trust_bundle(mut self, rate: Rate) -> Self {
        self.trust_bundle = Arc::new(Turnstile::new(rate));
        self
    }

    /// For how long to wait at most. Zero refuses everybody who is too early.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }
}

#[async_trait]
#[deny(
    clippy::missing_trait_methods,
    reason = "a forgotten method would silently lose what the inner one does"
)]
impl<I: Issuer> Issuer for RateLimited<I> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        self.sign.pass(self.max_wait, "sign").await?;
        self.inner.sign(request).await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.trust_bundle
            .pass(self.max_wait, "trust_bundle")
            .await?;
        self.inner.trust_bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
}

/// Those who wait stand in line for a lock, and only the first one asks for the time of its turn.
#[derive(Debug)]
struct Turnstile {
    rate: Rate,
    begun: Instant,
    state: std::sync::Mutex<Gcra>,
    line: Mutex<()>,
    waiting: AtomicU32,
}

impl Turnstile {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            begun: Instant::now(),
            state: std::sync::Mutex::new(Gcra::new(rate.interval, rate.burst)),
            line: Mutex::new(()),
            waiting: AtomicU32::new(0),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Gcra> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass(&self, max_wait: Duration, operation: &'static str) -> Result<()> {
        let entered = Instant::now();
        let (place, ahead) = Place::take(&self.waiting);
        let refuse = |wait: Duration| {
            Error::new(
                ErrorKind::RateLimited,
                "too many requests for the limit that is set here; the CA was not asked",
            )
            .with_context("operation", operation)
            .with_context("one per", format_args!("{:?}", self.rate.interval))
            .with_retry(Retry::After(wait))
        };
        // Who cannot make it is told so now, rather than after having stood in line.
        let expected = self.state().wait(ahead, self.begun.elapsed());
        if expected > max_wait {
            return Err(refuse(expected));
        }
        let Ok(turn) = tokio::time::timeout(max_wait, self.line.lock()).await else {
            return Err(refuse(self.rate.interval));
        };
        let wait = self.state().wait(0, self.begun.elapsed());
        if entered.elapsed().saturating_add(wait) > max_wait {
            return Err(refuse(wait));
        }
        // A sleep of nothing lasts until the next millisecond.
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.state().take(self.begun.elapsed());
        drop((turn, place));
        Ok(())
    }
}

/// A place in line, given up when dropped, by one who leaves as well.
struct Place<'a>(&'a AtomicU32);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicU32) -> (Self, u32) {
        let ahead = waiting.fetch_add(1, Ordering::AcqRel);
        (Self(waiting), ahead)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::testing::{OPERATIONS, Recorder, call, request};

    fn rate(interval: Duration, burst: u32) -> Rate {
        Rate::every(interval).with_burst(NonZeroU32::new(burst).unwrap())
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn rates_stay_within_what_can_be_reckoned() {
        let most = NonZeroU32::MAX;
        for (rate, interval, burst) in [
            (Rate::per_second(NonZeroU32::MIN), secs(1), 1),
            (Rate::per_second(most), Duration::from_micros(1), 1_000_000),
            (Rate::every(Duration::ZERO), Duration::from_micros(1), 1),
            (
                Rate::every(Duration::MAX).with_burst(most),
                secs(3600),
                1_000_000,
            ),
        ] {
            assert_eq!((rate.interval(), rate.burst().get()), (interval, burst));
            let _ = Turnstile::new(rate);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn defaults_are_what_the_docs_say() {
        let issuer = RateLimited::new(Recorder::new());
        assert_eq!(issuer.max_wait, secs(10));
        assert_eq!(issuer.sign.rate, rate(Duration::from_millis(40), 25));
        assert_eq!(issuer.trust_bundle.rate, rate(secs(1), 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_waits_its_turn() {
        // Rate, longest wait, callers; for each of them when it passes, or after what time it is to come back.
        for (rate, max_wait, expected) in [
            (rate(secs(1), 1), 10, vec![Ok(0), Ok(1), Ok(2), Ok(3)]),
            (
                rate(secs(1), 3),
                10,
                vec![Ok(0), Ok(0), Ok(0), Ok(1), Ok(2)],
            ),
            (
                rate(secs(5), 1),
                10,
                vec![Ok(0), Ok(5), Ok(10), Err(15), Err(15)],
            ),
            (rate(secs(5), 2), 0, vec![Ok(0), Ok(0), Err(5), Err(5)]),
        ] {
            let issuer = Arc::new(
                RateLimited::new(Recorder::new())
                    .with_sign(rate)
                    .with_max_wait(secs(max_wait)),
            );
            let began = Instant::now();
            let mut callers = tokio::task::JoinSet::new();
            for caller in 0..expected.len() {
                let issuer = Arc::clone(&issuer);
                callers.spawn(async move {
                    let result = match issuer.sign(&request("cart")).await {
                        Ok(_) => Ok(began.elapsed().as_secs_f64().round() as u64),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::RateLimited);
                            let Retry::After(after) = error.retry() else {
                                unreachable!("{error}")
                            };
                            assert!(
                                began.elapsed() < Duration::from_millis(1),
                                "refused at once"
                            );
                            Err(after.as_secs_f64().round() as u64)
                        }
                    };
                    (caller, result)
                });
                tokio::task::yield_now().await;
            }
            let mut results = callers.join_all().await;
            results.sort_by_key(|(caller, _)| *caller);
            let results: Vec<_> = results.into_iter().map(|(_, result)| result).collect();
            assert_eq!(results, expected, "{rate:?}, {max_wait}");
            let asked = expected.iter().filter(|result| result.is_ok()).count();
            assert_eq!(issuer.inner.calls().len(), asked, "{rate:?}, {max_wait}");
        }
    }

    #[tokio::test]
    async fn who_is_within_the_limit_does_not_wait() {
        let issuer = RateLimited::new(Recorder::new());
        for operation in OPERATIONS {
            let call = std::pin::pin!(call(&issuer, operation));
            let now = call.poll(&mut Context::from_waker(Waker::noop()));
            assert!(now.is_ready(), "{operation}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_operation_has_its_own_limit() {
        let issuer = RateLimited::new(Recorder::new())
            .with_sign(Rate::every(secs(1)))
            .with_trust_bundle(Rate::every(secs(2)));
        for (operation, wait) in OPERATIONS.into_iter().zip([1, 2, 0]) {
            let began = Instant::now();
            call(&issuer, operation).await.unwrap();
            assert!(began.elapsed() < Duration::from_millis(1), "{operation}");
            call(&issuer, operation).await.unwrap();
            let waited = began.elapsed().as_secs_f64().round() as u64;
            assert_eq!(waited, wait, "{operation}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_takes_nothing() {
        let issuer = RateLimited::new(Recorder::new())
            .with_sign(Rate::every(secs(1)))
            .with_max_wait(secs(2));
        let request = request("cart");
        issuer.sign(&request).await.unwrap();
        for _ in 0..100 {
            tokio::select! {
                biased;
                _ = issuer.sign(&request) => unreachable!("a second has not passed"),
                () = std::future::ready(()) => {}
            }
        }
        let began = Instant::now();
        issuer.sign(&request).await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(1002));
        assert_eq!(issuer.inner.calls().len(), 2);
    }
}
