//! How fast a client may talk.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

/// How many seconds' worth of requests may come at once.
const BURST: u32 = 10;

/// The requests of a stream, no faster than so many per second after a burst (GCRA): who talks faster is listened to later, and its own
/// connection holds it back. The state is one instant, on the clock that tests can stop.
#[derive(Debug)]
pub(crate) struct Pace {
    every: Duration,
    /// When as much was said as may be until then.
    spent: Instant,
}

impl Pace {
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        Self {
            every: Duration::from_secs(1) / per_second.get(),
            spent: Instant::now(),
        }
    }

    /// When the next request may be read.
    fn next(&self) -> Instant {
        let burst = Duration::from_secs(BURST.into());
        self.spent.checked_sub(burst).unwrap_or(self.spent)
    }

    /// The next request. Given up and called again, it goes on where it was.
    pub(crate) async fn read<R>(
        &mut self,
        inbound: &mut Streaming<R>,
    ) -> Result<Option<R>, Status> {
        let next = self.next();
        if next > Instant::now() {
            sleep_until(next).await;
        }
        let request = inbound.message().await?;
        self.spent = self.spent.max(Instant::now()) + self.every;
        Ok(request)
    }
}
