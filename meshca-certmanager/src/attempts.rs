//! Which objects belong to requests that are under way here, and which were left by somebody who is gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use meshca_core::RequestId;
use tokio::time::Instant;

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
    /// The number of objects before the present one that were of no use.
    number: u32,
    /// The object, once it is there.
    object: Option<Object>,
    /// The name of the last object that was asked for.
    expected: Option<String>,
    callers: usize,
    /// Since when nobody waits.
    idle_since: Instant,
}

/// Those of all issuers here. Issuers that are built one by one know nothing of each other, but act as one instance: what one waits
/// for must not look left over to another.
static ALL: Mutex<Vec<Weak<Attempts>>> = Mutex::new(Vec::new());

/// The names of all objects that somebody in this process may still want. One in another cluster may have such a name as well,
/// and then it is left alone for a while.
pub(crate) fn wanted() -> HashSet<String> {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let mut names = HashSet::new();
    for attempts in all.iter().filter_map(Weak::upgrade) {
        let entries = attempts.lock();
        names.extend(entries.values().filter_map(|entry| entry.expected.clone()));
    }
    names
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
    pub(crate) fn new() -> Arc<Self> {
        let new = Arc::new(Self::default());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|attempts| attempts.strong_count() > 0);
        all.push(Arc::downgrade(&new));
        new
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller begins to wait, until what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>, id: &RequestId) -> Caller {
        let mut entries = self.lock();
        let entry = entries.entry(id.clone()).or_insert_with(|| Entry {
            number: 0,
            object: None,
            expected: None,
            callers: 0,
            idle_since: Instant::now(),
        });
        entry.callers += 1;
        Caller {
            attempts: Arc::clone(self),
            id: id.clone(),
        }
    }

    /// Returns the number of objects of a request that were of no use.
    pub(crate) fn number(&self, id: &RequestId) -> u32 {
        self.lock().get(id).map_or(0, |entry| entry.number)
    }

    /// An object of this name is about to be asked for: from its first moment on, it is wanted.
    pub(crate) fn expect(&self, id: &RequestId, name: &str) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.expected = Some(name.to_owned());
        }
    }

    /// Notes how far a request has come. Nothing, if it is settled.
    pub(crate) fn set(&self, id: &RequestId, number: u32, object: Option<Object>) {
        if let Some(entry) = self.lock().get_mut(id) {
            (entry.number, entry.object) = (number, object);
        }
    }

    /// What was decided of this object is final, so the next try is another one. What is to be deleted, if nobody has been told before.
    pub(crate) fn useless(&self, id: &RequestId, uid: &str) -> Option<Object> {
        let mut entries = self.lock();
        let entry = entries.get_mut(id)?;
        let object = entry.object.take_if(|object| object.uid == uid)?;
        entry.number += 1;
        Some(object)
    }

    /// The request is done with; what is to be deleted of it. Nothing, while another caller waits for the same object: it settles it, too.
    ///
    /// What was refused must not be found again, and not every object is ours to delete: the number of the next one is remembered until
    /// the request is [`abandoned`](Self::abandoned).
    pub(crate) fn settle(&self, id: &RequestId, refused: bool) -> Option<Object> {
        let mut entries = self.lock();
        let entry = entries.get_mut(id)?;
        if entry.callers > 0 {
            return None;
        }
        if !refused {
            return entries.remove(id)?.object;
        }
        let object = entry.object.take()?;
        entry.number += 1;
        entry.idle_since = Instant::now();
        Some(object)
    }

    /// Gives up those that nobody has waited for this long; what is to be deleted of them.
    pub(crate) fn abandoned(&self, now: Instant, patience: Duration) -> Vec<Object> {
        self.lock()
            .extract_if(|_, entry| {
                entry.callers == 0 && now.duration_since(entry.idle_since) >= patience
            })
            .filter_map(|(_, entry)| entry.object)
            .collect()
    }
}

/// Objects that carry our name, and that nobody here knows of: of a process before this one, or because a deletion failed.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(HashMap<Object, Instant>);

impl Leftovers {
    /// Those of the objects `present` that were not [`wanted`] whenever this was asked, since `patience` or longer ago: a caller may come
    /// back for what it gave up.
    pub(crate) fn due(
        &mut self,
        present: impl IntoIterator<Item = Object>,
        wanted: &HashSet<String>,
        now: Instant,
        patience: Duration,
    ) -> Vec<Object> {
        let unwanted = present
            .into_iter()
            .filter(|object| !wanted.contains(&object.name));
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
        let (attempts, id) = (Attempts::new(), id());
        let first = attempts.enter(&id);
        let second = attempts.enter(&id);
        attempts.set(&id, 2, Some(object("a")));
        let abandoned = || attempts.abandoned(Instant::now(), MINUTE);
        drop(first);
        tokio::time::advance(2 * MINUTE).await;
        assert_eq!(abandoned(), []);
        drop(second);
        assert_eq!(abandoned(), []);
        // Somebody comes back in time, and finds how far it was.
        tokio::time::advance(MINUTE / 2).await;
        let third = attempts.enter(&id);
        assert_eq!(attempts.number(&id), 2);
        tokio::time::advance(2 * MINUTE).await;
        assert_eq!(abandoned(), []);
        drop(third);
        tokio::time::advance(MINUTE).await;
        assert_eq!(abandoned(), [object("a")]);
        assert_eq!(abandoned(), []);
        assert_eq!(attempts.number(&id), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_for_long_enough_is_left_over() {
        let wanted = HashSet::from(["wanted".to_owned()]);
        let mut leftovers = Leftovers::default();
        let mut due = |names: &[&str]| {
            let present = names.iter().map(|name| object(name));
            leftovers.due(present, &wanted, Instant::now(), MINUTE)
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

    #[tokio::test]
    async fn what_any_issuer_waits_for_is_wanted() {
        let (one, other) = (Attempts::new(), Attempts::new());
        let (first, second) = (id(), id());
        let callers = (one.enter(&first), other.enter(&second));
        one.expect(&first, "of one");
        other.expect(&second, "of the other");
        let both =
            |names: &HashSet<String>| names.contains("of one") && names.contains("of the other");
        assert!(both(&wanted()));
        // Nobody waits, but somebody may come back.
        drop(callers);
        assert!(both(&wanted()));
        drop(one);
        assert!(!wanted().contains("of one"));
        other.settle(&second, false);
        assert!(!wanted().contains("of the other"));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_last_settles() {
        let (attempts, id) = (Attempts::new(), id());
        let first = attempts.enter(&id);
        attempts.set(&id, 0, Some(object("a")));
        let second = attempts.enter(&id);
        drop(first);
        for refused in [false, true] {
            assert_eq!(attempts.settle(&id, refused), None, "the second one waits");
        }
        drop(second);
        assert_eq!(attempts.settle(&id, true), Some(object("a")));
        // It is stepped over for a while.
        assert_eq!(attempts.number(&id), 1);
        assert_eq!(attempts.settle(&id, true), None);
        assert_eq!(attempts.number(&id), 1);
        tokio::time::advance(MINUTE).await;
        assert_eq!(attempts.abandoned(Instant::now(), MINUTE), []);
        assert_eq!(attempts.number(&id), 0);

        // One that comes late with the end of an object that is known to be of no use.
        let _callers = (attempts.enter(&id), attempts.enter(&id));
        attempts.set(&id, 0, Some(object("a")));
        assert_eq!(attempts.useless(&id, &object("a").uid), Some(object("a")));
        attempts.set(&id, 1, Some(object("b")));
        assert_eq!(attempts.useless(&id, &object("a").uid), None);
        assert_eq!(attempts.lock()[&id].object, Some(object("b")));
    }
}
