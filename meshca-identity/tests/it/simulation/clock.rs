//! Clocks that differ.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use meshca_core::Clock;
use meshca_testkit::FakeClock;
use tokio::time::Instant;

/// A clock that goes with tokio's time, ahead of the true one or behind it. Clones are the same clock.
#[derive(Clone, Debug)]
pub(super) struct SkewedClock {
    begun: Instant,
    ahead: Arc<AtomicI64>,
}

impl SkewedClock {
    /// A clock that is right, in a world that has `begun` then.
    pub(super) fn right(begun: Instant) -> Self {
        let ahead = Arc::default();
        Self { begun, ahead }
    }

    /// Sets it: this many seconds ahead of the truth, or behind it.
    pub(super) fn set(&self, ahead: i64) {
        self.ahead.store(ahead, Ordering::SeqCst);
    }

    pub(super) fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::SeqCst)
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> SystemTime {
        let truth = FakeClock::start() + self.begun.elapsed();
        let ahead = self.ahead();
        let by = Duration::from_secs(ahead.unsigned_abs());
        match ahead < 0 {
            true => truth - by,
            false => truth + by,
        }
    }
}
