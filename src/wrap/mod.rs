//! Wrappers
#[cfg(feature = "audit")]
mod audit;
#[cfg(feature = "breaker")]
mod breaker;
#[cfg(feature = "metrics")]
mod metered;
#[cfg(feature = "rate-limit")]
mod rate_limit;
#[cfg(feature = "retry")]
mod retry;
#[cfg(test)]
mod testing;
#[cfg(feature = "timeout")]
mod timeout;

#[cfg(feature = "audit-tracing")]
pub use self::audit::TracingSink;
#[cfg(feature = "audit")]
pub use self::audit::{
    AuditRecord, AuditSink, Audited, JsonLinesSink, OnLostRecord, Outcome, Refusal, Repair,
    Requested, Signed, SyncPolicy,
};
#[cfg(feature = "breaker")]
pub use self::breaker::{Breaker, BreakerState};
#[cfg(feature = "metrics")]
pub use self::metered::{Metered, OPERATION_DURATION, OPERATIONS_IN_FLIGHT, OPERATIONS_TOTAL};
#[cfg(feature = "rate-limit")]
pub use self::rate_limit::{Rate, RateLimited};
#[cfg(feature = "retry")]
pub use self::retry::{RetryPolicy, Retrying};
#[cfg(feature = "timeout")]
pub use self::timeout::TimeLimited;

/// A point in time as people and logs read it, to the millisecond.
#[cfg(any(feature = "audit", feature = "breaker"))]
fn rfc3339(time: std::time::SystemTime) -> String {
    use time::format_description::well_known::Rfc3339;
    time.duration_since(std::time::SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i128::try_from(since.as_millis()).ok())
        .and_then(|millis| millis.checked_mul(1_000_000))
        .and_then(|nanos| time::OffsetDateTime::from_unix_timestamp_nanos(nanos).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "a time outside the calendar".to_owned())
}

#[cfg(all(
    test,
    feature = "audit",
    feature = "breaker",
    feature = "metrics",
    feature = "rate-limit",
    feature = "retry",
    feature = "timeout",
))]
mod tests;
