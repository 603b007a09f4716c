//! Giving up on an answer.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Error, ErrorKind, Issuer, Result, SignedChain,
    TrustBundle,
};

/// Gives up on an issuer that does not answer in time.
///
/// The inner future is dropped then, which every issuer must [bear](Issuer#cancellation). The error is a
/// [`Timeout`](ErrorKind::Timeout) that names the operation and the limit. Whether the CA has carried out what it was
/// asked for is unknown then; trying the same request again is safe, because it has the same
/// [ID](CertificateRequest::id).
#[derive(Clone, Debug, derive_more::Display)]
#[display("{inner}")]
pub struct TimeLimited<I> {
    inner: I,
    sign: Duration,
    trust_bundle: Duration,
    check: Duration,
}

impl<I: Issuer> TimeLimited<I> {
    /// 30 seconds to sign, 10 for the trust bundle, 30 to check.
    pub fn new(inner: I) -> Self {
        Self {
            inner,
            sign: Duration::from_secs(30),
            trust_bundle: Duration::from_secs(10),
            check: Duration::from_secs(30),
        }
    }

    /// Another limit for signing. An approver, or a CA that works through a queue, takes its time.
    #[must_use]
    pub fn with_sign(mut self, limit: Duration) -> Self {
        self.sign = limit;
        self
    }

    /// Another limit for the trust bundle.
    #[must_use]
    pub fn with_trust_bundle(mut self, limit: Duration) -> Self {
        self.trust_bundle = limit;
        self
    }

    /// Another limit for the check.
    #[must_use]
    pub fn with_check(mut self, limit: Duration) -> Self {
        self.check = limit;
        self
    }
}

async fn within<T>(
    limit: Duration,
    operation: &'static str,
    answer: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            "the CA did not answer in time; whether it did what it was asked for is unknown, and the same request \
             may be sent again",
        )
        .with_context("operation", operation)
        .with_context("limit", format_args!("{limit:?}"))),
    }
}

#[async_trait]
#[deny(
    clippy::missing_trait_methods,
    reason = "a forgotten method would silently lose what the inner one does"
)]
impl<I: Issuer> Issuer for TimeLimited<I> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        within(self.sign, "sign", self.inner.sign(request)).await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        within(self.trust_bundle, "trust_bundle", self.inner.trust_bundle()).await
    }

    async fn check(&self) -> Result<CheckReport> {
        within(self.check, "check", self.inner.check()).await
    }
}

#[cfg(test)]
mod tests {
    use meshca_core::Retry;
    use tokio::time::Instant;

    use super::*;
    use crate::testing::{Answer, OPERATIONS, Recorder, call};

    #[tokio::test(start_paused = true)]
    async fn each_operation_has_its_own_limit() {
        let secs = Duration::from_secs;
        let by_default = TimeLimited::new(Recorder::new());
        let set = TimeLimited::new(Recorder::new())
            .with_sign(secs(1))
            .with_trust_bundle(secs(2))
            .with_check(secs(3));
        for (issuer, limits) in [(by_default, [30, 10, 30]), (set, [1, 2, 3])] {
            for (operation, limit) in OPERATIONS.into_iter().zip(limits) {
                issuer
                    .inner
                    .answer(Answer::Passes.later(secs(limit) - Duration::from_millis(1)));
                call(&issuer, operation).await.unwrap();

                issuer.inner.answer(Answer::Passes.later(secs(limit + 1)));
                let began = Instant::now();
                let error = call(&issuer, operation).await.unwrap_err();
                assert_eq!(began.elapsed(), secs(limit), "{operation}");
                assert_eq!(error.kind(), ErrorKind::Timeout);
                assert_eq!(error.retry(), Retry::Backoff);
                assert!(
                    error
                        .to_string()
                        .ends_with(&format!("(operation: {operation}, limit: {limit}s)")),
                    "{error}"
                );
                assert!(error.message().contains("unknown"), "{error}");
            }
            assert_eq!(
                issuer.inner.dropped(),
                3,
                "what is too late is not left running"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_in_time_is_the_issuers_own() {
        let issuer = TimeLimited::new(Recorder::new());
        for operation in OPERATIONS {
            let denied = Error::new(ErrorKind::Denied, "no");
            issuer.inner.answer(Answer::Fails(denied));
            let error = call(&issuer, operation).await.unwrap_err();
            assert_eq!(error.to_string(), "no");
        }
    }
}
