//! Which objects belong to requests that are under way here, and which were left by somebody who is gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshca_core::RequestId;
use tokio::time::Instant;

/// How far one request has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    /// How many objects before this one were of no use.
    pub(crate) number: u32,
    /// The object, once it is there.
    pub(crate) object: Option<Object>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Whether it is ours to delete.
    pub(crate) ours: bool,
}

/// The requests under way.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<HashMap<RequestId, Entry>>);

#[derive(Debug)]
struct Entry {
    attempt: Attempt,
    callers: usize,
    /// Since when nobody waits.
    idle_since: Instant,
}

/// Somebody waits for a request.
pub(crate) struct Caller {
    attempts: Arc<Attempts>,
    id: RequestId,
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut entries = self.attempts.lock();
        if let Some(entry) = entries.get_mut(&self.id) {
            entry.callers = entry.callers.saturating_sub(1);
            entry.idle_since = Instant::now();
        }
    }
}

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller begins to wait, until what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>, id: &RequestId) -> Caller {
        let mut entries = self.lock();
        let entry = entries.entry(id.clone()).or_insert_with(|| Entry {
            attempt: Attempt::default(),
            callers: 0,
            idle_since: Instant::now(),
        });
        entry.callers += 1;
        Caller {
            attempts: Arc::clone(self),
            id: id.clone(),
        }
    }

    pub(crate) fn get(&self, id: &RequestId) -> Attempt {
        let entries = self.lock();
        let entry = entries.get(id);
        entry.map(|entry| entry.attempt.clone()).unwrap_or_default()
    }

    /// Notes how far a request has come. Nothing, if it is settled.
    pub(crate) fn set(&self, id: &RequestId, attempt: Attempt) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.attempt = attempt;
        }
    }

    /// The request is done with; what is to be deleted of it.
    pub(crate) fn settle(&self, id: &RequestId) -> Option<Object> {
        self.lock().remove(id)?.attempt.object
    }

    /// Gives up those that nobody has waited for this long; what is to be deleted of them.
    pub(crate) fn abandoned(&self, now: Instant, patience: Duration) -> Vec<Object> {
        self.lock()
            .extract_if(|_, entry| {
                entry.callers == 0 && now.duration_since(entry.idle_since) >= patience
            })
            .filter_map(|(_, entry)| entry.attempt.object)
            .collect()
    }

    /// The UIDs of all objects that somebody here may still want.
    fn wanted(&self) -> HashSet<String> {
        let entries = self.lock();
        let objects = entries
            .values()
            .filter_map(|entry| entry.attempt.object.as_ref());
        objects.map(|object| object.uid.clone()).collect()
    }
}

/// Objects that carry our name, and that nobody here knows of: of a process before this one, or because a deletion failed.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(HashMap<Object, Instant>);

impl Leftovers {
    /// Those of the objects `present` that nobody has wanted all the time since this was asked `patience` or longer ago: one
    /// that was created a moment ago is not known here yet, and one of an issuer that is being replaced still has its caller.
    pub(crate) fn due(
        &mut self,
        present: impl IntoIterator<Item = Object>,
        attempts: &Attempts,
        now: Instant,
        patience: Duration,
    ) -> Vec<Object> {
        let wanted = attempts.wanted();
        let unwanted = present
            .into_iter()
            .filter(|object| !wanted.contains(&object.uid));
        let mut seen: HashMap<_, _> = unwanted
            .map(|object| {
                let since = self.0.get(&object).copied().unwrap_or(now);
                (object, since)
            })
            .collect();
        let due = seen
            .extract_if(|_, since| now.duration_since(*since) >= patience)
            .map(|(object, _)| object)
            .collect();
        self.0 = seen;
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use meshca_core::{CertificateRequest, CertificateSpec, KeyType, PrivateKey, SpiffeId};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn object(name: &str) -> Object {
        Object {
            name: name.to_owned(),
            uid: format!("uid of {name}"),
            ours: true,
        }
    }

    fn id() -> RequestId {
        let spec = CertificateSpec::workload(SpiffeId::new("spiffe://example.org/a").unwrap());
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        let request = CertificateRequest::for_key(spec, &key, SystemTime::UNIX_EPOCH).unwrap();
        request.id().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn what_everybody_has_given_up_is_abandoned_after_a_while() {
        let (attempts, id) = (Arc::new(Attempts::default()), id());
        let first = attempts.enter(&id);
        let second = attempts.enter(&id);
        let attempt = Attempt {
            number: 2,
            object: Some(object("a")),
        };
        attempts.set(&id, attempt);
        let abandoned = || attempts.abandoned(Instant::now(), MINUTE);
        drop(first);
        tokio::time::advance(2 * MINUTE).await;
        assert_eq!(abandoned(), []);
        drop(second);
        assert_eq!(abandoned(), []);
        // Somebody comes back in time, and finds how far it was.
        tokio::time::advance(MINUTE / 2).await;
        let third = attempts.enter(&id);
        assert_eq!(attempts.get(&id).number, 2);
        tokio::time::advance(2 * MINUTE).await;
        assert_eq!(abandoned(), []);
        drop(third);
        tokio::time::advance(MINUTE).await;
        assert_eq!(abandoned(), [object("a")]);
        assert_eq!(abandoned(), []);
        assert_eq!(attempts.get(&id).number, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_for_long_enough_is_left_over() {
        let (attempts, id) = (Arc::new(Attempts::default()), id());
        let _caller = attempts.enter(&id);
        let attempt = Attempt {
            number: 0,
            object: Some(object("wanted")),
        };
        attempts.set(&id, attempt);
        let mut leftovers = Leftovers::default();
        let mut due = |names: &[&str]| {
            let present = names.iter().map(|name| object(name));
            leftovers.due(present, &attempts, Instant::now(), MINUTE)
        };
        assert_eq!(due(&["wanted", "old"]), []);
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(due(&["wanted", "old", "new"]), []);
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(due(&["wanted", "old", "new"]), [object("old")]);
        // If deleting it fails, it is due again later.
        assert_eq!(due(&["wanted", "old", "new"]), []);
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(due(&["wanted", "old", "new"]), [object("new")]);
    }
}
