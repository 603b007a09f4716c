//! Not faster than a quota of AWS allows.

use std::num::NonZeroU32;
use std::time::Duration;

use meshca_core::time::Gcra;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::settings::Rates;

/// What all issuers of one account in one region share.
#[derive(Debug)]
pub(crate) struct Paces {
    pub(crate) issue: Pace,
    pub(crate) fetch: Pace,
}

impl Paces {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            issue: Pace::new(rates.issue),
            fetch: Pace::new(rates.fetch),
        }
    }
}

/// Lets callers go one after the other, first come first served: those who wait stand in line for the
/// lock.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Mutex<Gcra>,
    begun: Instant,
}

impl Pace {
    fn new(per_second: NonZeroU32) -> Self {
        // No burst beyond a fifth of a second: AWS counts as well, and not from the same moment as we do.
        let burst = NonZeroU32::new(per_second.get() / 5).unwrap_or(NonZeroU32::MIN);
        Self {
            rate: Mutex::new(Gcra::new(Duration::from_secs(1) / per_second.get(), burst)),
            begun: Instant::now(),
        }
    }

    pub(crate) async fn turn(&self) {
        let mut rate = self.rate.lock().await;
        let wait = rate.wait(0, self.begun.elapsed());
        // A sleep of nothing lasts until the next millisecond.
        if !wait.is_zero() {
            sleep(wait).await;
        }
        rate.take(self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn who_is_within_the_rate_does_not_wait() {
        let pace = Pace::new(NonZeroU32::new(25).unwrap());
        for _ in 0..5 {
            let turn = std::pin::pin!(pace.turn());
            let now = turn.poll(&mut Context::from_waker(Waker::noop()));
            assert!(now.is_ready());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_go_one_after_the_other() {
        let pace = Arc::new(Pace::new(NonZeroU32::new(25).unwrap()));
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let pace = Arc::clone(&pace);
            tasks.spawn(async move {
                pace.turn().await;
                begun.elapsed()
            });
        }
        let mut at = tasks.join_all().await;
        at.sort();
        // In no second more than the quota and a small burst.
        for window in at.windows(31) {
            assert!(
                window[30] - window[0] >= Duration::from_secs(1),
                "{window:?}"
            );
        }
        assert!(at[999] < Duration::from_secs(41), "{:?}", at[999]);
    }
}
