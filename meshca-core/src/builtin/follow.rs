//! Following a store that replicas share, without asking it too often.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use super::authority::Authority;
use crate::secret::MAX_STORE_LAG;
use crate::sync::{lock, read, write};
use crate::{Error, ErrorKind, Result, Retry, SecretStore, TrustBundle};

/// How often an issuer reads its store again to follow what other replicas did: every five minutes.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// How long what was read is used: [`RELOAD_INTERVAL`] after a write, every replica knows of it, although its store may have
/// been behind when it read.
pub(super) const KNOWN_FOR: Duration = RELOAD_INTERVAL.saturating_sub(MAX_STORE_LAG);

/// How long the store is not asked again, whatever came of it.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// The CA as the last read of the store found it. A later read replaces all of it.
#[derive(Debug)]
pub(super) struct Snapshot<S> {
    pub(super) state: S,
    pub(super) active: Arc<Authority>,
    pub(super) bundle: TrustBundle,
    pub(super) loaded_at: SystemTime,
}

/// Tells an older snapshot from a newer one: the revision of the state, then which read of the
/// store it comes from. Clocks are set back; these are not.
pub(super) type Age = (u64, u64);

/// The newest snapshot. One caller at a time asks the store for another, and none right after
/// another, so that neither a thousand callers nor a store that is down make a thousand reads.
#[derive(Debug)]
pub(super) struct Followed<S> {
    current: RwLock<(Age, Arc<Snapshot<S>>)>,
    reads: AtomicU64,
    asked: Mutex<Asked>,
    /// Why the last read found nothing to sign with, though the store did answer.
    trouble: Mutex<Option<Error>>,
}

#[derive(Debug)]
struct Asked {
    /// When the store was last asked on behalf of a caller, whatever came of it.
    at: SystemTime,
    /// What it told before it was last read.
    revision: Option<u64>,
}

impl<S> Followed<S> {
    pub(super) fn new(revision: u64, snapshot: Snapshot<S>) -> Self {
        let asked = Asked {
            at: snapshot.loaded_at,
            revision: None,
        };
        Self {
            current: RwLock::new(((revision, 0), Arc::new(snapshot))),
            reads: AtomicU64::new(1),
            asked: Mutex::new(asked),
            trouble: Mutex::default(),
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot<S>> {
        Arc::clone(&read(&self.current).1)
    }

    /// Counts a read of the store that begins now.
    pub(super) fn begin_read(&self) -> u64 {
        self.reads.fetch_add(1, Ordering::SeqCst)
    }

    /// Replaces the snapshot, unless another call has read later and finished sooner.
    ///
    /// Revisions are compared only where the new state `continues` the known one. A state that was
    /// deleted and made again counts from one.
    pub(super) fn replace(
        &self,
        age: Age,
        snapshot: Snapshot<S>,
        continues: impl FnOnce(&S, &S) -> bool,
    ) {
        let mut current = write(&self.current);
        let newer = match continues(&current.1.state, &snapshot.state) {
            true => age >= current.0,
            false => age.1 >= current.0.1,
        };
        if newer {
            *current = (age, Arc::new(snapshot));
        }
    }

    /// Takes note of how a read ended. An outage says nothing about what is stored.
    pub(super) fn note(&self, outcome: &Result<()>) {
        use ErrorKind::{InvalidConfig, NotFound};
        match outcome {
            Ok(()) => *lock(&self.trouble) = None,
            Err(error) if matches!(error.kind(), InvalidConfig | NotFound) => {
                *lock(&self.trouble) = Some(error.clone());
            }
            Err(_) => {}
        }
    }

    /// Why what is stored is not what signs, by the last read that the store answered.
    pub(super) fn trouble(&self) -> Option<Error> {
        lock(&self.trouble).clone()
    }

    /// Returns what to sign with. It is read again when it is old or has changed, and kept when that fails: an
    /// outage of the store must not stop a CA that needs nothing from it.
    pub(super) async fn fresh<F: Future<Output = Result<()>>>(
        &self,
        now: SystemTime,
        store: &dyn SecretStore,
        reload: impl FnOnce() -> F,
    ) -> Arc<Snapshot<S>> {
        let snapshot = self.snapshot();
        let revision = store.revision();
        // Boxed, as this is part of every signature: the kilobytes of a future for what is rarely done would be allocated for each.
        if !self.is_due(now, snapshot.loaded_at, revision) {
            return snapshot;
        }
        if Box::pin(reload()).await.is_ok() {
            lock(&self.asked).revision = revision;
        }
        self.snapshot()
    }

    /// Decides whether to read the store again: the snapshot is old, or the store has another revision.
    fn is_due(&self, now: SystemTime, loaded_at: SystemTime, revision: Option<u64>) -> bool {
        // A clock that was set back says nothing about how long ago it was.
        let within =
            |since: SystemTime, limit| now.duration_since(since).is_ok_and(|ago| ago < limit);
        // What was restored is seen soon.
        let troubled = lock(&self.trouble).is_some();
        let mut asked = lock(&self.asked);
        let unchanged = revision == asked.revision && !troubled;
        if within(asked.at, ASK_INTERVAL) || unchanged && within(loaded_at, KNOWN_FOR) {
            return false;
        }
        asked.at = now;
        true
    }
}

/// Refuses what is next until it is `ready`: when every replica trusts its root.
pub(super) fn wait_for_replicas(next: &str, ready: SystemTime, now: SystemTime) -> Result<()> {
    let early = ready.duration_since(now).unwrap_or_default();
    if early.is_zero() {
        return Ok(());
    }
    let why = format!(
        "the next {next} was prepared a moment ago; other replicas may not trust its root yet"
    );
    Err(Error::new(ErrorKind::Unavailable, why).with_retry(Retry::After(early)))
}
