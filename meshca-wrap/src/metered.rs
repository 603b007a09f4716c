//! Counting and timing.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Issuer, Result, SignedChain, TrustBundle,
};
use metrics::{SharedString, counter, gauge, histogram};
use tokio::time::Instant;

/// How many operations have ended: a counter.
pub const OPERATIONS_TOTAL: &str = "meshca_issuer_operations_total";
/// How long operations took, in seconds: a histogram.
pub const OPERATION_DURATION: &str = "meshca_issuer_operation_duration_seconds";
/// How many operations are under way: a gauge.
pub const OPERATIONS_IN_FLIGHT: &str = "meshca_issuer_operations_in_flight";

/// Counts and times what an issuer is asked for, through the [`metrics`](https://docs.rs/metrics) facade.
///
/// | metric | kind | unit | labels |
/// |---|---|---|---|
/// | [`meshca_issuer_operations_total`](OPERATIONS_TOTAL) | counter | | `issuer`, `operation`, `outcome` |
/// | [`meshca_issuer_operation_duration_seconds`](OPERATION_DURATION) | histogram | seconds | `issuer`, `operation`, `outcome` |
/// | [`meshca_issuer_operations_in_flight`](OPERATIONS_IN_FLIGHT) | gauge | | `issuer`, `operation` |
///
/// | label | values |
/// |---|---|
/// | `issuer` | what [`new`](Metered::new) is given: the type, such as `vault` |
/// | `operation` | `sign`, `trust_bundle`, `check` |
/// | `outcome` | `ok`, the [kind](meshca_core::ErrorKind::as_str) of the error, or `cancelled` for a call that was dropped |
///
/// No label grows with the mesh: no SPIFFE ID, no mesh, no address. The recorder is the one that the application has
/// installed when the operation ends. Names and labels follow the version like the rest of the API.
///
/// The outermost one measures what callers see; one next to the issuer, what the CA does. Give the two
/// different labels.
#[derive(Clone, Debug, derive_more::Display)]
#[display("{inner}")]
pub struct Metered<I> {
    inner: I,
    issuer: Arc<str>,
}

impl<I: Issuer> Metered<I> {
    /// With the type of the issuer as its label. Not a name that an operator chooses: every value is a time series.
    pub fn new(inner: I, issuer_type: impl Into<Arc<str>>) -> Self {
        Self {
            inner,
            issuer: issuer_type.into(),
        }
    }

    async fn metered<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let mut running = Running::start(SharedString::from(Arc::clone(&self.issuer)), operation);
        let answer = answer.await;
        running.outcome = match &answer {
            Ok(_) => "ok",
            Err(error) => error.kind().as_str(),
        };
        answer
    }
}

/// Reports when it is dropped, which happens to a cancelled call as well.
struct Running {
    issuer: SharedString,
    operation: &'static str,
    outcome: &'static str,
    began: Instant,
}

impl Running {
    fn start(issuer: SharedString, operation: &'static str) -> Self {
        gauge!(OPERATIONS_IN_FLIGHT, "issuer" => issuer.clone(), "operation" => operation)
            .increment(1);
        Self {
            issuer,
            operation,
            outcome: "cancelled",
            began: Instant::now(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self {
            issuer,
            operation,
            outcome,
            began,
        } = self;
        gauge!(OPERATIONS_IN_FLIGHT, "issuer" => issuer.clone(), "operation" => *operation)
            .decrement(1);
        let labels = || {
            [
                metrics::Label::new("issuer", issuer.clone()),
                metrics::Label::from_static_parts("operation", operation),
                metrics::Label::from_static_parts("outcome", outcome),
            ]
            .to_vec()
        };
        counter!(OPERATIONS_TOTAL, labels()).increment(1);
        histogram!(OPERATION_DURATION, labels()).record(began.elapsed());
    }
}

#[async_trait]
#[deny(
    clippy::missing_trait_methods,
    reason = "a forgotten method would silently lose what the inner one does"
)]
impl<I: Issuer> Issuer for Metered<I> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        self.metered("sign", self.inner.sign(request)).await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.metered("trust_bundle", self.inner.trust_bundle())
            .await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.metered("check", self.inner.check()).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use meshca_core::{Error, ErrorKind};
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;
    use crate::testing::{Answer, OPERATIONS, Recorder, call};

    /// What `work` leaves in a recorder of its own: `name{label=value,…}` and the value.
    fn measured(work: impl Future<Output = ()>) -> BTreeMap<String, String> {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        metrics::with_local_recorder(&recorder, || runtime.block_on(work));
        snapshotter
            .snapshot()
            .into_vec()
            .into_iter()
            .map(|(key, _, _, value)| {
                let key = key.key();
                let labels: Vec<_> = key
                    .labels()
                    .map(|label| format!("{}={}", label.key(), label.value()))
                    .collect();
                let value = match value {
                    DebugValue::Counter(count) => count.to_string(),
                    DebugValue::Gauge(level) => level.to_string(),
                    DebugValue::Histogram(values) => format!("{values:?}"),
                };
                (format!("{}{{{}}}", key.name(), labels.join(",")), value)
            })
            .collect()
    }

    #[test]
    fn every_operation_is_counted_and_timed_by_its_outcome() {
        let kinds = [None, Some(ErrorKind::Denied), Some(ErrorKind::RateLimited)];
        for operation in OPERATIONS {
            for kind in kinds {
                let answer = kind.map_or(Answer::Passes, |kind| {
                    Answer::Fails(Error::new(kind, "for the test"))
                });
                let seen = measured(async {
                    let answer = answer.later(Duration::from_millis(250));
                    let issuer = Metered::new(Recorder::new().with_answers([answer]), "recorder");
                    let _ = call(&issuer, operation).await;
                    call(&issuer, operation).await.unwrap();
                });
                let outcome = kind.map_or("ok", ErrorKind::as_str);
                let base = format!("issuer=recorder,operation={operation}");
                let mut expected = BTreeMap::from([
                    (format!("{OPERATIONS_IN_FLIGHT}{{{base}}}"), "0"),
                    (format!("{OPERATIONS_TOTAL}{{{base},outcome=ok}}"), "2"),
                    (
                        format!("{OPERATION_DURATION}{{{base},outcome=ok}}"),
                        "[0.25, 0.0]",
                    ),
                ]);
                if outcome != "ok" {
                    let ok = format!("{base},outcome=ok");
                    let not = format!("{base},outcome={outcome}");
                    expected.insert(format!("{OPERATIONS_TOTAL}{{{ok}}}"), "1");
                    expected.insert(format!("{OPERATION_DURATION}{{{ok}}}"), "[0.0]");
                    expected.insert(format!("{OPERATIONS_TOTAL}{{{not}}}"), "1");
                    expected.insert(format!("{OPERATION_DURATION}{{{not}}}"), "[0.25]");
                }
                let expected: BTreeMap<_, _> = expected
                    .into_iter()
                    .map(|(key, value)| (key, value.to_owned()))
                    .collect();
                assert_eq!(seen, expected);
            }
        }
    }

    #[test]
    fn what_is_dropped_is_counted_as_cancelled_and_no_longer_in_flight() {
        let seen = measured(async {
            let issuer = Metered::new(
                Recorder::new().with_answers([Answer::Passes.later(Duration::from_secs(60))]),
                "recorder",
            );
            let limit = Duration::from_secs(1);
            let _ = tokio::time::timeout(limit, call(&issuer, "sign")).await;
        });
        let labels = "issuer=recorder,operation=sign";
        assert_eq!(
            seen[&format!("{OPERATIONS_TOTAL}{{{labels},outcome=cancelled}}")],
            "1"
        );
        assert_eq!(
            seen[&format!("{OPERATION_DURATION}{{{labels},outcome=cancelled}}")],
            "[1.0]"
        );
        assert_eq!(seen[&format!("{OPERATIONS_IN_FLIGHT}{{{labels}}}")], "0");
    }
}
