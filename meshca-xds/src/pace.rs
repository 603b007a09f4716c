//! How fast a client may talk.

use std::num::NonZeroU32;
use std::time::Duration;

use meshca_core::time::Gcra;
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

/// How many seconds' worth of requests may come at once.
const BURST: u32 = 10;

/// Reads the requests of a stream, no faster than a rate. A client that talks faster is read later, and
/// its own connection holds it back.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Gcra,
    begun: Instant,
}

impl Pace {
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        let every = Duration::from_secs(1) / per_second.get();
        let burst = NonZeroU32::MIN.saturating_add(per_second.get().saturating_mul(BURST) - 1);
        Self {
            rate: Gcra::new(every, burst),
            begun: Instant::now(),
        }
    }

    /// The next request. A caller that drops this and calls it again loses none, since a request counts
    /// only once it was read.
    pub(crate) async fn read<R>(
        &mut self,
        inbound: &mut Streaming<R>,
    ) -> Result<Option<R>, Status> {
        let wait = self.rate.wait(0, self.begun.elapsed());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let request = inbound.message().await?;
        self.rate.take(self.begun.elapsed());
        Ok(request)
    }
}
