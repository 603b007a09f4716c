//! Following a store that replicas share, without asking it too often.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::SecretStore;
use crate::secret::MAX_STORE_LAG;

/// How often an issuer reads its store again to follow what other replicas did: every five minutes.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// How long what was read is used: [`RELOAD_INTERVAL`] after a write, every replica knows of it, although its store may have
/// been behind when it read.
pub(super) const KNOWN_FOR: Duration = RELOAD_INTERVAL.saturating_sub(MAX_STORE_LAG);

/// How long the store is not asked again, whatever came of it.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// One caller at a time asks the store, and none right after another, so that neither a thousand
/// callers nor a store that is down make a thousand reads.
#[derive(Debug)]
pub(super) struct AskLimit {
    last: Mutex<Asked>,
}

#[derive(Debug)]
struct Asked {
    /// When the store was last asked on behalf of a caller, whatever came of it.
    at: SystemTime,
    /// What it told before it was last read.
    revision: Option<u64>,
}

/// The store is to be read now: this says what it told before.
pub(super) struct Due(Option<u64>);

impl AskLimit {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            last: Mutex::new(Asked {
                at: now,
                revision: None,
            }),
        }
    }

    /// Whether to read the store again: what was loaded is old, or the store says that something changed.
    pub(super) fn due(
        &self,
        now: SystemTime,
        loaded_at: SystemTime,
        store: &dyn SecretStore,
    ) -> Option<Due> {
        // A clock that was set back says nothing about how long ago it was.
        let within =
            |since: SystemTime, limit| now.duration_since(since).is_ok_and(|it| it < limit);
        let revision = store.revision();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = revision == last.revision;
        if within(last.at, ASK_INTERVAL) || unchanged && within(loaded_at, KNOWN_FOR) {
            return None;
        }
        last.at = now;
        Some(Due(revision))
    }

    /// It was read, after it was due.
    pub(super) fn read(&self, due: &Due) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.revision = due.0;
    }
}
