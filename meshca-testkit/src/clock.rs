//! A clock that stands still until it is told otherwise.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use meshca_core::Clock;

/// A [`Clock`] that a test sets. Clones are the same clock, so one is given away and one is kept.
///
/// ```
/// use std::time::Duration;
/// use meshca_core::Clock;
/// use meshca_testkit::FakeClock;
///
/// let clock = FakeClock::new();
/// let shared = clock.clone();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(shared.now(), FakeClock::start() + Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct FakeClock(Arc<Mutex<SystemTime>>);

impl FakeClock {
    /// Where a new clock stands: 2026-01-01T00:00:00Z.
    pub fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    /// A clock that stands at the [start](Self::start).
    pub fn new() -> Self {
        Self::at(Self::start())
    }

    /// A clock that stands at this time.
    pub fn at(now: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// Moves it forward; to where the calendar ends at most.
    pub fn advance(&self, by: Duration) {
        let mut now = self.lock();
        if let Some(later) = now.checked_add(by) {
            *now = later;
        }
    }

    /// Sets it, backwards as well.
    pub fn set(&self, now: SystemTime) {
        *self.lock() = now;
    }

    fn lock(&self) -> MutexGuard<'_, SystemTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for FakeClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for FakeClock {
    fn now(&self) -> SystemTime {
        *self.lock()
    }
}

/// A [`Clock`] that goes with tokio's time, paused or not, and that a test may set. Clones are the same clock.
///
/// In a test with `start_paused = true` a year passes as fast as what happens in it.
///
/// ```
/// use std::time::Duration;
/// use meshca_core::Clock;
/// use meshca_testkit::{FakeClock, TokioClock};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let clock = TokioClock::new();
/// tokio::time::sleep(Duration::from_secs(365 * 24 * 3600)).await;
/// assert!(clock.now() >= FakeClock::start() + Duration::from_secs(365 * 24 * 3600));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TokioClock {
    started: tokio::time::Instant,
    at_start: FakeClock,
}

impl TokioClock {
    /// A clock that stands at the [start](FakeClock::start) now.
    pub fn new() -> Self {
        Self {
            started: tokio::time::Instant::now(),
            at_start: FakeClock::new(),
        }
    }

    /// Sets it forward, and tokio's time goes on as before.
    pub fn advance(&self, by: Duration) {
        self.at_start.advance(by);
    }

    /// Sets it back.
    pub fn set_back(&self, by: Duration) {
        let now = self.at_start.now();
        self.at_start.set(now.checked_sub(by).unwrap_or(now));
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        let at_start = self.at_start.now();
        at_start
            .checked_add(self.started.elapsed())
            .unwrap_or(at_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_only_when_told() {
        let clock = FakeClock::new();
        assert_eq!(clock.now(), FakeClock::start());
        assert_ne!(FakeClock::start(), SystemTime::UNIX_EPOCH);
        let other = clock.clone();
        std::thread::spawn(move || other.advance(Duration::from_secs(5)))
            .join()
            .unwrap();
        assert_eq!(clock.now(), FakeClock::start() + Duration::from_secs(5));
        clock.set(SystemTime::UNIX_EPOCH);
        assert_eq!(clock.now(), SystemTime::UNIX_EPOCH);
        clock.set(FakeClock::start());
        clock.advance(Duration::MAX);
        assert_eq!(clock.now(), FakeClock::start());
    }
}
