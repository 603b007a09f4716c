//! Issuers around an issuer: retries, limits, a breaker, audit, metrics.
//!
//! Each of these implements [`Issuer`](meshca_core::Issuer) for any issuer that it is given, an `Arc<dyn Issuer>`
//! included, and passes every method on. The rotation of a CA is [beside its
//! issuer](meshca_core::registry::BuiltIssuer), and the receipt is in the
//! [answer](meshca_core::SignedChain::with_receipt), so a wrapper need not know of them. Their `Display`
//! is that of the issuer inside. Each has a feature of its own, so that an application links what it
//! uses and nothing else.
//!
//! | feature | wrapper | what it does | default | test |
//! |---|---|---|---|---|
//! | `retry` | [`Retrying`] | tries again as the error [advises](meshca_core::Error::retry) | 3 attempts within 30 s; 0.5 s to 5 s apart, and up to as much again at random | `retry::…::defaults_are_what_the_docs_say` |
//! | `rate-limit` | [`RateLimited`] | so many signatures per second; others wait their turn | 25 per second and at once; a trust bundle each second, 5 at once; at most 10 s to wait | `rate_limit::…::defaults_are_what_the_docs_say` |
//! | `timeout` | [`TimeLimited`] | gives up on an answer | `sign` and `check` 30 s, trust bundle 10 s | `timeout::…::each_operation_has_its_own_limit` |
//! | `breaker` | [`Breaker`] | leaves a CA alone that fails for one identity after the other | after 10 SPIFFE IDs within 60 s, for 30 s | `breaker::…::defaults_are_what_the_docs_say` |
//! | `audit` | [`Audited`] | one record for each signature and refusal, to a [file](JsonLinesSink) or a [sink](AuditSink) of yours | no certificate without a record; the file is synced by the system | `audit::…::a_lost_record_is_counted_and_by_default_holds_the_certificate_back`, `audit::…::the_default_leaves_syncing_to_the_system` |
//! | `audit-tracing` | [`TracingSink`] | audit records as events of `tracing` | | |
//! | `metrics` | [`Metered`] | counts and times operations through the `metrics` facade | | |
//!
//! # In which order
//!
//! They compose in any order; every one changes what the ones outside of it see. From the outside in:
//!
//! ```text
//! Audited        one record for what the caller asked, however often it was tried
//!  Metered       what callers see; a second one, inside, would measure the CA
//!   Retrying     tries again, and waits as long as those below say
//!    Breaker     answers at once while the CA is down: no place in the line is taken, no time is lost
//!     RateLimited  counts every attempt, as the CA does; its own refusals do not open the breaker
//!      TimeLimited   measures the CA, not the wait for a turn
//!       the issuer
//! ```
//!
//! # Under a manager
//!
//! The manager of `meshca-identity` retries, limits the time of an attempt and has a circuit breaker for
//! each CA. Another one around the issuer would hide from it what the CA answered. Put only [`Audited`],
//! [`Metered`] and [`RateLimited`] around an issuer there, by the driver's `with_layer`. [`Retrying`],
//! [`Breaker`] and [`TimeLimited`] are for programs that call an issuer themselves.
//!
//! # All of them
#![cfg_attr(
    all(
        feature = "audit",
        feature = "breaker",
        feature = "metrics",
        feature = "rate-limit",
        feature = "retry",
        feature = "timeout",
    ),
    doc = "```"
)]
#![cfg_attr(
    not(all(
        feature = "audit",
        feature = "breaker",
        feature = "metrics",
        feature = "rate-limit",
        feature = "retry",
        feature = "timeout",
    )),
    doc = "```ignore"
)]
//! use std::num::{NonZeroU32, NonZeroUsize};
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
//! use meshca_wrap::{
//!     Audited, Breaker, JsonLinesSink, Metered, Rate, RateLimited, RetryPolicy, Retrying, SyncPolicy, TimeLimited,
//! };
//! use meshca_core::{CertificateSpec, Clock, IssuingCa, MemorySecretStore, SpiffeId, SystemClock, TrustDomain};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("audit.jsonl");
//! let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
//! let settings = CaSettings::new(TrustDomain::new("example.org")?, CaSecrets::for_backend("default", "ca-1")?);
//! let store = Arc::new(MemorySecretStore::new());
//! let issuer = BuiltinIssuer::load_or_create(settings, store, clock.clone()).await?;
//!
//! let fifty = NonZeroU32::new(50).ok_or("not zero")?;
//! let twenty = NonZeroUsize::new(20).ok_or("not zero")?;
//! let issuer = TimeLimited::new(issuer).with_sign(Duration::from_secs(5));
//! let issuer = RateLimited::new(issuer).with_sign(Rate::per_second(fifty));
//! let issuer = Breaker::new(issuer, clock.clone()).with_threshold(twenty);
//! let issuer = Retrying::new(issuer).with_policy(RetryPolicy::new().with_attempts(4));
//! let issuer = Metered::new(issuer, "builtin");
//! let issuer = Audited::new(issuer, JsonLinesSink::open(&path, SyncPolicy::System)?, clock.clone());
//!
//! let spec = CertificateSpec::workload(SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?);
//! let identity = IssuingCa::new(issuer).issue(&spec, &clock).await?;
//! let record = std::fs::read_to_string(&path)?;
//! assert!(record.contains(identity.certificate().serial()));
//! # Ok(())
//! # }
//! ```
//!
//! # Time
//!
//! Delays, limits and durations are measured on [tokio's clock](https://docs.rs/tokio/1/tokio/time/), which nobody sets back and
//! which tests can pause. Points in time that people read – when a record was written, since when a breaker is open – come from
//! the [`Clock`](meshca_core::Clock) that is handed in. All wrappers therefore need a tokio runtime with its timer enabled.
//!
//! # Cancellation
//!
//! A dropped future drops what is inside of it; nothing runs on. It leaves the line of a rate limiter, gives a breaker's probe to the next
//! caller, and is recorded and counted as cancelled.
#![cfg_attr(docsrs, feature(doc_cfg))]

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

#[cfg(test)]
#[cfg(all(
    feature = "audit",
    feature = "breaker",
    feature = "metrics",
    feature = "rate-limit",
    feature = "retry",
    feature = "timeout",
))]
mod tests;
