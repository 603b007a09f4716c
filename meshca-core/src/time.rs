//! Time as an argument: the clock, validity periods, and when to renew.
//!
//! Nothing in the meshca crates asks the operating system for the time on its own; everything that
//! depends on it takes a [`Clock`]. That is what makes a year of rotations testable in a second.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use der::DateTime;

pub use crate::gcra::Gcra;
use crate::{Error, ErrorKind, Result};

/// Tells the wall-clock time.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use meshca_core::Clock;
///
/// #[derive(Debug)]
/// struct Noon;
///
/// impl Clock for Noon {
///     fn now(&self) -> SystemTime {
///         SystemTime::UNIX_EPOCH + Duration::from_secs(12 * 3600)
///     }
/// }
/// # assert!(Noon.now() > SystemTime::UNIX_EPOCH);
/// ```
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> SystemTime;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> SystemTime {
        (**self).now()
    }
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl SystemClock {
    /// The operating system's clock.
    pub fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// From when to when a certificate is valid, both ends included (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, derive_more::Display)]
#[display("{} to {}", rfc3339(*not_before), rfc3339(*not_after))]
pub struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Validity {
    /// A validity period.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if it would end before it begins.
    pub fn new(not_before: SystemTime, not_after: SystemTime) -> Result<Self> {
        if not_after < not_before {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "a validity cannot end before it begins",
            )
            .with_context("not before", rfc3339(not_before))
            .with_context("not after", rfc3339(not_after)));
        }
        Ok(Self {
            not_before,
            not_after,
        })
    }

    /// The first moment.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last moment.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether `now` lies in it.
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// How much is left at `now`; zero when it is over.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// When to renew: at a fraction of the lifetime that is drawn once per certificate.
///
/// The lifetime is counted from *issuance*, not from `NotBefore`: AWS Private CA backdates by an
/// hour, which would make a one-hour certificate half spent at birth. The draw spreads what was
/// issued together; drawing it anew at every check (as SPIRE does) would narrow the spread.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use meshca_core::RenewalPolicy;
///
/// let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
/// let not_after = issued + Duration::from_secs(1000);
/// let policy = RenewalPolicy::default();
/// assert_eq!(policy.renew_at(issued, not_after, 0.0), issued + Duration::from_secs(500));
/// assert!(policy.renew_at(issued, not_after, 0.999) < issued + Duration::from_secs(600));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RenewalPolicy {
    earliest: f64,
    latest: f64,
}

impl RenewalPolicy {
    /// Renews between two fractions of the lifetime, the default being 0.5 and 0.6.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] unless `0 < earliest <= latest < 1`.
    pub fn between(earliest: f64, latest: f64) -> Result<Self> {
        if 0.0 < earliest && earliest <= latest && latest < 1.0 {
            Ok(Self { earliest, latest })
        } else {
            Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "renewal fractions must satisfy 0 < earliest <= latest < 1, not {earliest} and {latest}"
                ),
            ))
        }
    }

    /// When to renew a certificate issued at `issued_at` that ends at `not_after`; see
    /// [`IssuedCertificate::issued_at`](crate::IssuedCertificate::issued_at) and
    /// [`validity`](crate::IssuedCertificate::validity).
    ///
    /// `draw` is a random number in `[0, 1)`, drawn once per certificate; what lies outside is
    /// clamped. The result is never after `not_after` and, for a certificate that had already
    /// ended when it was issued, it is `issued_at`.
    pub fn renew_at(&self, issued_at: SystemTime, not_after: SystemTime, draw: f64) -> SystemTime {
        let lifetime = not_after.duration_since(issued_at).unwrap_or_default();
        // The maximum of a number and none is the number.
        let draw = draw.max(0.0).clamp(0.0, 1.0);
        let fraction = self.earliest + (self.latest - self.earliest) * draw;
        issued_at
            .checked_add(lifetime.mul_f64(fraction))
            .unwrap_or(not_after)
    }
}

impl Default for RenewalPolicy {
    fn default() -> Self {
        Self {
            earliest: 0.5,
            latest: 0.6,
        }
    }
}

/// A point in time as people and logs read it.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    DateTime::try_from(time).map_or_else(
        |_| "a time outside the calendar".to_owned(),
        |time| time.to_string(),
    )
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The time that is this many seconds after 1970 began.
pub(crate) fn at(seconds: u64) -> SystemTime {
    later(SystemTime::UNIX_EPOCH, Duration::from_secs(seconds))
}

/// Certificates know whole seconds only.
pub(crate) fn whole_seconds(time: SystemTime) -> SystemTime {
    at(seconds(time))
}

/// Adds. A sum beyond all time counts as nothing added.
pub(crate) fn later(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_add(by).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn validity_knows_its_ends() {
        let validity = Validity::new(at(100), at(200)).unwrap();
        for (now, inside, remaining) in [
            (99, false, 101),
            (100, true, 100),
            (200, true, 0),
            (201, false, 0),
        ] {
            assert_eq!(validity.contains(at(now)), inside, "{now}");
            assert_eq!(
                validity.remaining(at(now)),
                Duration::from_secs(remaining),
                "{now}"
            );
        }
        assert_eq!(
            validity.to_string(),
            "1970-01-01T00:01:40Z to 1970-01-01T00:03:20Z"
        );
        assert_eq!(
            Validity::new(at(2), at(1)).unwrap_err().kind(),
            ErrorKind::InvalidRequest
        );
    }

    #[test]
    fn renewal_fractions_are_checked() {
        for (earliest, latest) in [
            (0.0, 0.5),
            (0.6, 0.5),
            (0.5, 1.0),
            (f64::NAN, 0.5),
            (0.5, f64::INFINITY),
        ] {
            assert!(
                RenewalPolicy::between(earliest, latest).is_err(),
                "{earliest} {latest}"
            );
        }
        assert_eq!(
            RenewalPolicy::between(0.5, 0.6).unwrap(),
            RenewalPolicy::default()
        );
    }

    proptest! {
        #[test]
        fn renewal_lies_between_the_fractions(
            issued in 0u64..4_000_000_000, lifetime in 0u64..1_000_000_000, draw: f64,
            earliest in 0.01f64..0.98, width in 0.0f64..0.5,
        ) {
            let latest = (earliest + width).min(0.99);
            let policy = RenewalPolicy::between(earliest, latest).unwrap();
            let renew = policy.renew_at(at(issued), at(issued + lifetime), draw);
            let after = renew.duration_since(at(issued)).unwrap().as_secs_f64();
            let lifetime = lifetime as f64;
            prop_assert!(after >= lifetime * earliest - 1e-3 && after <= lifetime * latest + 1e-3);
        }
    }
}
