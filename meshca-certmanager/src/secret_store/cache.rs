//! What is known of the secrets, from wherever it was heard: the newest state wins.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshca_core::secret::MAX_STORE_LAG;
use tokio::time::Instant;

use super::object::{Object, TYPE};

/// For how long what was heard is served. The API server's own view may be some seconds behind, too.
const FRESH: Duration = MAX_STORE_LAG.saturating_sub(Duration::from_secs(5));

/// A cache that whoever hears of something fills.
pub(super) type Known = Mutex<Cache>;

pub(super) fn lock(known: &Known) -> MutexGuard<'_, Cache> {
    // Every change is whole, even if a holder of the lock panicked.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The states of all secrets of the namespace, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Cache {
    states: HashMap<String, State>,
    /// Everything that happened before is known.
    heard_at: Option<Instant>,
    revision: u64,
}

#[derive(Debug)]
struct State {
    at: u64,
    /// Nothing: it was deleted. Kept until the next list, or else a late word of an older state would revive it.
    object: Option<Object>,
}

/// A `resourceVersion` as the decimal number that it is, which grows with each change of anything.
///
/// Kubernetes promises the order since 1.35 (KEP-5504); etcd, which is behind every API server before, has always had it.
fn number(resource_version: &str) -> Option<u64> {
    resource_version.parse().ok()
}

impl Cache {
    /// Takes note of a change. Of a state whose place in the order is unknown, only that there was one: it will have to be asked for.
    pub(super) fn apply(&mut self, object: Object) {
        let name = object.metadata.name.clone();
        match number(&object.metadata.resource_version) {
            Some(at) => self.set(name, at, Some(object)),
            None => self.lose(&name),
        }
    }

    /// Takes note of a deletion; `at` as the watch has it, or as the last state was.
    pub(super) fn delete(&mut self, name: &str, at: &str) {
        match number(at) {
            Some(at) => self.set(name.to_owned(), at, None),
            None => self.lose(name),
        }
    }

    /// Takes note of what was asked for, and so may well be no change. The watch never speaks of Secrets of another type.
    pub(super) fn read(&mut self, object: Object) {
        let ordered = number(&object.metadata.resource_version).is_some();
        if ordered && object.type_ == TYPE {
            self.apply(object);
        } else {
            self.forget(&object.metadata.name);
        }
    }

    fn set(&mut self, name: String, at: u64, object: Option<Object>) {
        // A deletion that we made ourselves has the number of the state that it ended.
        let newer = self.states.get(&name).is_none_or(|state| {
            at > state.at || at == state.at && object.is_none() && state.object.is_some()
        });
        if newer {
            self.states.insert(name, State { at, object });
            self.changed();
        }
    }

    fn lose(&mut self, name: &str) {
        self.states.remove(name);
        self.changed();
    }

    /// Does without what is known of it. If that was nothing, nothing has changed.
    pub(super) fn forget(&mut self, name: &str) {
        let state = self.states.remove(name);
        if state.is_some_and(|state| state.object.is_some()) {
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.revision = self.revision.wrapping_add(1);
    }

    /// Takes note of everything that there was at one time. What was heard of later stays.
    pub(super) fn replace(&mut self, objects: Vec<Object>, at: &str) {
        let at = number(at);
        let listed: HashSet<&str> = objects.iter().map(|it| it.metadata.name.as_str()).collect();
        let gone = self.states.extract_if(|name, state| {
            !listed.contains(name.as_str()) && at.is_none_or(|at| state.at <= at)
        });
        if gone.filter(|(_, state)| state.object.is_some()).count() > 0 {
            self.changed();
        }
        for object in objects {
            self.apply(object);
        }
    }

    /// Everything that happened before this is known.
    pub(super) fn heard(&mut self, at: Instant) {
        self.heard_at = self.heard_at.max(Some(at));
    }

    /// A secret that is certainly there, or was a moment ago.
    pub(super) fn get(&self, name: &str, now: Instant) -> Option<&Object> {
        let heard_at = self.heard_at?;
        if now.duration_since(heard_at) > FRESH {
            return None;
        }
        self.states.get(name)?.object.as_ref()
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(name: &str, at: u64) -> Object {
        let json = json!({
            "metadata": {"name": name, "resourceVersion": at.to_string()},
            "type": "system.kuma.io/secret",
            "data": {"value": "eA=="},
        });
        serde_json::from_value(json).unwrap()
    }

    fn version(cache: &Cache, now: Instant) -> Option<String> {
        let object = cache.get("a", now)?;
        Some(object.metadata.resource_version.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_heard_of_any_more_is_not_served() {
        let mut cache = Cache::default();
        cache.apply(object("a", 1));
        assert_eq!(version(&cache, Instant::now()), None, "nobody watches");
        cache.heard(Instant::now());
        tokio::time::advance(FRESH).await;
        assert_eq!(version(&cache, Instant::now()).as_deref(), Some("1"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(version(&cache, Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_deleted_is_not_revived_by_late_news() {
        let mut cache = Cache::default();
        let now = Instant::now();
        cache.heard(now);
        cache.apply(object("a", 5));
        // We deleted it; the watch has yet to say what came before.
        cache.delete("a", "5");
        cache.apply(object("a", 4));
        cache.apply(object("a", 5));
        assert_eq!(version(&cache, now), None);
        cache.delete("a", "6");
        cache.apply(object("a", 7));
        assert_eq!(version(&cache, now).as_deref(), Some("7"));
        // A list from before does not take away what we wrote since.
        cache.replace(vec![object("b", 3)], "6");
        assert_eq!(version(&cache, now).as_deref(), Some("7"));
        cache.replace(Vec::new(), "8");
        assert_eq!(version(&cache, now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_without_a_place_in_the_order_is_asked_for_each_time() {
        let mut cache = Cache::default();
        let now = Instant::now();
        cache.heard(now);
        cache.apply(object("a", 1));
        let mut strange = object("a", 2);
        strange.metadata.resource_version = "two".to_owned();
        let before = cache.revision();
        cache.apply(strange);
        assert_eq!(version(&cache, now), None);
        assert_ne!(cache.revision(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn the_revision_changes_when_something_has_changed() {
        let mut cache = Cache::default();
        cache.apply(object("a", 1));
        let unordered = |name: &str| {
            let mut object = object(name, 2);
            object.metadata.resource_version = "two".to_owned();
            object
        };
        let mut revision = cache.revision();
        let mut changed = |cache: &Cache| {
            let before = std::mem::replace(&mut revision, cache.revision());
            before != revision
        };
        // What is only read: absent, without a number, known.
        cache.forget("absent");
        cache.read(unordered("b"));
        cache.read(object("a", 1));
        cache.replace(vec![object("a", 1)], "3");
        assert!(!changed(&cache));
        cache.read(object("a", 4));
        assert!(changed(&cache));
        // What the watch speaks of is a change, whether it has a number or not.
        for _ in 0..2 {
            cache.apply(unordered("b"));
            assert!(changed(&cache));
        }
        cache.read(unordered("a"));
        assert!(changed(&cache), "what was known is not known any more");
        cache.apply(object("a", 5));
        assert!(changed(&cache));
        cache.replace(Vec::new(), "6");
        assert!(changed(&cache));
        cache.replace(Vec::new(), "7");
        assert!(!changed(&cache));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_before_does_not_revive_what_was_deleted() {
        let mut cache = Cache::default();
        let now = Instant::now();
        cache.heard(now);
        cache.apply(object("a", 5));
        cache.delete("a", "5");
        cache.replace(vec![object("a", 5)], "6");
        assert_eq!(version(&cache, now), None);
    }

    proptest! {
        /// However often and in whatever order the states of one secret are heard of, the last one is what is known.
        #[test]
        fn the_newest_state_wins(
            (deleted, order) in (1..12_u64).prop_flat_map(|count| {
                let numbers: Vec<u64> = (1..=count).chain(1..=count).collect();
                (prop::collection::vec(any::<bool>(), numbers.len()), Just(numbers).prop_shuffle())
            })
        ) {
            let mut cache = Cache::default();
            let now = Instant::now();
            cache.heard(now);
            let last = order.iter().copied().max().unwrap_or(0);
            for at in order {
                if deleted[usize::try_from(at).unwrap() - 1] {
                    cache.delete("a", &at.to_string());
                } else {
                    cache.apply(object("a", at));
                }
            }
            let expected = (!deleted[usize::try_from(last).unwrap() - 1]).then(|| last.to_string());
            prop_assert_eq!(version(&cache, now), expected);
        }
    }
}
