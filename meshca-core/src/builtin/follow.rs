//! Following a store that replicas share, without asking it too often.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long a failed read of the store is not repeated.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// One caller at a time asks the store, and none right after another, so that neither a thousand
/// callers nor a store that is down make a thousand reads.
#[derive(Debug)]
pub(super) struct AskLimit {
    /// When the store was last asked on behalf of a caller, whatever came of it.
    asked_at: Mutex<SystemTime>,
}

impl AskLimit {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            asked_at: Mutex::new(now),
        }
    }

    pub(super) fn may_ask(&self, now: SystemTime) -> bool {
        let mut asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back says nothing about how long ago it was.
        let may = now
            .duration_since(*asked_at)
            .map_or(true, |since| since >= ASK_INTERVAL);
        if may {
            *asked_at = now;
        }
        may
    }
}
