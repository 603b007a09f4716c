//! What the proxies of a mesh may hold, kept in the secret store.
//!
//! A control plane that starts knows of no proxy, and not every CA tells its roots at once; the data plane has been there all the time. The
//! record says which roots it may hold, and under which of them certificates may be valid. That is no secret, but a control plane has no
//! other place that outlives it. Replicas share the record: what one of them has given out, all keep trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use meshca_core::secret::{Expect, SecretKey, SecretStore, SecretValue, StoredForm};
use meshca_core::{Error, ErrorKind, Result, TrustBundle, TrustDomain, TrustRoot};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::BackendKey;
use crate::watch::{MARGIN, is_late};

/// The name of the secret is that of the mesh, and this.
const NAME: &str = "meshca-trust";

/// How the record is written.
const FORM: StoredForm = StoredForm::new(
    "the record of what proxies of this mesh trust",
    1,
    "restore the secret, or delete it to continue without one: then roots that only it lists are no longer trusted, and \
     proxies that connect again are not waited for before a new root is used",
)
.numbered_from_the_first();

/// How long a secret store may take.
const LIMIT: Duration = Duration::from_secs(30);

/// By how much a claim is more than what is stored already: what is stored is in whole seconds.
const STEP: Duration = Duration::from_secs(1);

/// How often it is tried when replicas write at the same time.
const TRIES: usize = 8;

/// A root in a trust domain, by its fingerprint.
pub(crate) type RootId = (TrustDomain, String);

/// The roots of a bundle.
pub(crate) fn roots_of(bundle: &TrustBundle) -> impl Iterator<Item = RootId> {
    let id = |root: &TrustRoot| {
        let domain = bundle.trust_domain().clone();
        (domain, root.fingerprint().to_owned())
    };
    bundle.roots().iter().map(id)
}

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Record {
    /// What each CA said last.
    pub(crate) said: BTreeMap<BackendKey, Said>,
    /// The roots under which certificates may be valid, or were when a CA last had them.
    pub(crate) used: BTreeMap<RootId, Used>,
}

/// The roots that a CA said are its.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    /// The type of the CA: one of another type under the same name is another CA.
    pub(crate) ca: String,
    pub(crate) bundle: TrustBundle,
}

/// A root under which certificates may be valid.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Used {
    pub(crate) backend: BackendKey,
    /// The root.
    pub(crate) bundle: TrustBundle,
    /// When the last of them ends, or later.
    pub(crate) until: SystemTime,
    /// Whether something was signed under it by a control plane of ours: then proxies were waited for. Else it is only kept in case.
    pub(crate) signed: bool,
}

/// How long this control plane has said in the record that it needs roots.
///
/// What is stored may cover more: for another replica, or a control plane before this one. Only what was said here is known
/// here to be no more than that.
#[derive(Debug, Default)]
pub(crate) struct Claims(BTreeMap<RootId, SystemTime>);

impl Claims {
    /// The needs that end later than was said.
    pub(crate) fn lacking(
        &self,
        needs: impl Iterator<Item = (RootId, SystemTime)>,
    ) -> BTreeMap<RootId, SystemTime> {
        let said = |root: &RootId, end| self.0.get(root).is_some_and(|said| *said >= end);
        needs.filter(|(root, end)| !said(root, *end)).collect()
    }

    /// Takes note of what was said of these roots.
    pub(crate) fn said(&mut self, needs: BTreeMap<RootId, SystemTime>, stored: &Record) {
        self.0.retain(|root, _| stored.used.contains_key(root));
        let until = |root: RootId| Some((root.clone(), stored.used.get(&root)?.until));
        self.0.extend(needs.into_keys().filter_map(until));
    }

    /// Whether something was said of this root here: then what others say of it is no less than that.
    pub(crate) fn has(&self, root: &RootId) -> bool {
        self.0.contains_key(root)
    }

    /// What others have said.
    pub(crate) fn others<'a>(
        &'a self,
        stored: &'a Record,
    ) -> impl Iterator<Item = (&'a RootId, &'a Used)> {
        let is_ours = |root: &RootId, used: &Used| self.0.get(root) >= Some(&used.until);
        stored
            .used
            .iter()
            .filter(move |(root, used)| !is_ours(root, used))
    }
}

impl Record {
    /// Whether this, which is stored, says all that is so, and nothing of CAs that are gone.
    pub(crate) fn covers(&self, now: &Self, gone: &BTreeSet<BackendKey>) -> bool {
        let said = now
            .said
            .iter()
            .all(|(key, said)| self.said.get(key) == Some(said));
        let used = now.used.iter().all(|(root, used)| {
            let stored = self.used.get(root);
            stored.is_some_and(|it| it.until >= used.until && it.signed >= used.signed)
        });
        said && used && self.said.keys().all(|key| !gone.contains(key))
    }

    /// Whether a CA said last that this root is its.
    fn is_said(&self, root: &RootId) -> bool {
        let mut said = self.said.values().flat_map(|it| roots_of(&it.bundle));
        said.any(|it| it == *root)
    }

    /// The same for some time to come, for the roots that are `lacking` in what was `said`: each certificate ends later than the one before, and a record is not
    /// written for each.
    pub(crate) fn ahead(
        mut self,
        lacking: &BTreeMap<RootId, SystemTime>,
        said: &Claims,
        now: SystemTime,
    ) -> Self {
        for (root, used) in &mut self.used {
            let Some(need) = lacking.get(root).copied() else {
                let said = said.0.get(root).copied();
                used.until = used.until.max(said.unwrap_or(used.until));
                continue;
            };
            // Others have gone ahead of their needs already.
            let left = need.duration_since(now).unwrap_or_default();
            // Nothing is valid for longer than its root.
            let end = used
                .bundle
                .roots()
                .iter()
                .map(|it| it.validity().not_after());
            let end = end.max().unwrap_or(need).max(need);
            let until = need.checked_add(left).map_or(end, |it| it.min(end));
            let until = until.max(used.until);
            // As it will be read.
            used.until = time(seconds(until)).unwrap_or(until);
        }
        self
    }

    /// What others have stored, and this on top. `gone` are the CAs that this control plane had, and has no more: those that it does not
    /// know are others'. `claims` are the roots that this control plane needs for longer than it has said: others must see that,
    /// although what one of them has stored covers it.
    fn onto(
        self,
        stored: Self,
        gone: &BTreeSet<BackendKey>,
        claims: &BTreeMap<RootId, SystemTime>,
        now: Option<SystemTime>,
    ) -> Self {
        let mut both = stored;
        both.said.retain(|key, _| !gone.contains(key));
        both.said.extend(self.said);
        for (root, mut used) in self.used {
            if let Some(stored) = both.used.get(&root) {
                let more = stored.until.checked_add(STEP);
                let more = more.filter(|_| claims.contains_key(&root));
                used.until = used.until.max(more.unwrap_or(stored.until));
                used.signed |= stored.signed;
            }
            both.used.insert(root, used);
        }
        both.pruned(now)
    }

    /// When the newest entry ends.
    pub(crate) fn newest(&self) -> Option<SystemTime> {
        self.used.values().map(|used| used.until).max()
    }

    /// Without what nothing can be valid under by now, if there is a clock that says so. That something was signed under a root is known for as long as its
    /// CA has it.
    pub(crate) fn pruned(mut self, now: Option<SystemTime>) -> Self {
        let Some(now) = now else {
            return self;
        };
        let mut used = std::mem::take(&mut self.used);
        used.retain(|root, used| {
            let end = used.until.checked_add(MARGIN);
            end.is_none_or(|end| end >= now) || self.is_said(root)
        });
        Self { used, ..self }
    }

    /// Reads what is stored for a mesh; a mesh that nobody has run has nothing, and so has one whose name is no name of a secret.
    ///
    /// # Errors
    ///
    /// Those of the store, and [`ErrorKind::InvalidConfig`] if it is damaged: without it nobody knows whom a new root would cut off.
    pub(crate) async fn read(store: &dyn SecretStore, mesh: &str) -> Result<Self> {
        let read = async {
            let Some(key) = key(mesh) else {
                return Ok(Self::default());
            };
            let stored = store.get(&key).await?;
            stored.map_or_else(
                || Ok(Self::default()),
                |it| Self::read_from(&key, &it.value),
            )
        };
        let outcome = within(read).await;
        outcome.map_err(|error| {
            if error.kind() == ErrorKind::InvalidConfig {
                return error;
            }
            let what = "the secret store does not say what proxies of this mesh trust, so nothing was changed: try again when it does";
            Error::new(error.kind(), what)
                .with_context("mesh", mesh.to_owned())
                .with_retry(error.retry())
                .with_source(error)
        })
    }

    /// What this says of roots that none of those says, or not for as long.
    pub(crate) fn beyond<'a>(&'a self, known: &'a [&Self]) -> impl Iterator<Item = &'a Used> {
        let news = self.used.iter().filter(|(root, used)| {
            let mut known = known.iter().filter_map(|it| it.used.get(*root));
            known.all(|it| it.until < used.until)
        });
        news.map(|(_, used)| used)
    }

    /// Stores this on top of what is there, whoever writes at the same time. Gives back what is stored then. `known` is what was
    /// stored when it was last read or written, and `now` ends what is there, if there is a clock that may.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub(crate) async fn write(
        &self,
        store: &dyn SecretStore,
        mesh: &str,
        gone: &BTreeSet<BackendKey>,
        claims: &BTreeMap<RootId, SystemTime>,
        known: &Self,
        now: Option<SystemTime>,
    ) -> Result<Self> {
        let Some(key) = key(mesh) else {
            return Ok(self.clone());
        };
        let write = async {
            let mut conflict = None;
            for _ in 0..TRIES {
                let (stored, expect) = match store.get(&key).await? {
                    Some(stored) => (
                        Self::read_from(&key, &stored.value)?,
                        Expect::Version(stored.version),
                    ),
                    None => (Self::default(), Expect::Absent),
                };
                // Others may have written what ended long ago by this clock: then it ends nothing.
                let news = stored.beyond(&[self, known]).map(|used| used.until).max();
                let agrees = |now: &SystemTime| news.is_none_or(|newest| !is_late(newest, *now));
                let both = self
                    .clone()
                    .onto(stored.clone(), gone, claims, now.filter(agrees));
                if both == stored {
                    return Ok(both);
                }
                match store.put(&key, both.to_value()?, expect).await {
                    Ok(_) => return Ok(both),
                    Err(error) if error.kind() == ErrorKind::Conflict => conflict = Some(error),
                    Err(error) => return Err(error),
                }
            }
            Err(conflict.unwrap_or_else(|| Error::new(ErrorKind::Conflict, "others were quicker")))
        };
        within(write).await
    }

    fn read_from(key: &SecretKey, value: &SecretValue) -> Result<Self> {
        let damaged = |why: String| FORM.damaged(key, &why);
        let document: Document = FORM.read(key, value)?;
        let bundle = |domain: &str, roots: &str| {
            let domain = TrustDomain::new(domain).map_err(|error| damaged(error.to_string()))?;
            TrustBundle::from_pem(domain, roots).map_err(|error| damaged(error.to_string()))
        };
        let mut record = Self::default();
        for ca in document.cas {
            let said = Said {
                ca: ca.r#type,
                bundle: bundle(&ca.trust_domain, &ca.roots)?,
            };
            record.said.insert(ca.backend, said);
        }
        for used in document.used {
            let bundle = bundle(&used.trust_domain, &used.root)?;
            let [_] = bundle.roots() else {
                return Err(damaged("more than one root".to_owned()));
            };
            let until = time(used.until);
            let until = until.ok_or_else(|| damaged("a time beyond all time".to_owned()))?;
            let roots: Vec<_> = roots_of(&bundle).collect();
            let used = Used {
                backend: used.backend,
                bundle,
                until,
                signed: used.signed,
            };
            record
                .used
                .extend(roots.into_iter().map(|root| (root, used.clone())));
        }
        Ok(record)
    }

    fn to_value(&self) -> Result<SecretValue> {
        // A CA without a root has said nothing.
        let said = self.said.iter().filter(|(_, it)| !it.bundle.is_empty());
        let cas = said.map(|(key, said)| Ca {
            backend: key.clone(),
            r#type: said.ca.clone(),
            trust_domain: said.bundle.trust_domain().to_string(),
            roots: said.bundle.to_pem(),
        });
        let used = self.used.values().map(|used| Root {
            backend: used.backend.clone(),
            trust_domain: used.bundle.trust_domain().to_string(),
            root: used.bundle.to_pem(),
            until: seconds(used.until),
            signed: used.signed,
        });
        FORM.write(&Document {
            cas: cas.collect(),
            used: used.collect(),
        })
    }
}

/// Not every name that a mesh can have outside of Kubernetes is one that a secret can have.
fn key(mesh: &str) -> Option<SecretKey> {
    SecretKey::new(mesh, format!("{mesh}.{NAME}")).ok()
}

/// Rounded up.
fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    let begun = u64::from(since.subsec_nanos() > 0);
    since.as_secs().saturating_add(begun)
}

fn time(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(LIMIT, work).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Timeout,
            format!("the secret store did not answer within {LIMIT:?}"),
        ))
    })
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    cas: Vec<Ca>,
    used: Vec<Root>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Ca {
    #[serde(with = "Key")]
    backend: BackendKey,
    r#type: String,
    trust_domain: String,
    roots: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Root {
    #[serde(with = "Key")]
    backend: BackendKey,
    trust_domain: String,
    root: String,
    /// Seconds since 1970.
    until: u64,
    signed: bool,
}

/// The stored form of a [`BackendKey`], whose own crate has none.
#[derive(Serialize, Deserialize)]
#[serde(remote = "BackendKey", rename_all = "camelCase")]
enum Key {
    Classic(String),
    Modern(String),
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use meshca_core::secret::{StoredSecret, Version};
    use meshca_core::{Clock, MemorySecretStore};
    use meshca_testkit::FakeClock;
    use meshca_testkit::pki::TestCa;
    use std::sync::Mutex;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn bundle() -> TrustBundle {
        let ca = TestCa::root("root", FakeClock::start()).unwrap();
        let domain = TrustDomain::new("example.org").unwrap();
        ca.bundle(domain).unwrap()
    }

    fn key(name: &str) -> BackendKey {
        BackendKey::Modern(name.to_owned())
    }

    fn stored() -> SecretKey {
        super::key("default").unwrap()
    }

    fn said(bundle: &TrustBundle) -> Said {
        Said {
            ca: "ca-a".to_owned(),
            bundle: bundle.clone(),
        }
    }

    fn id(bundle: &TrustBundle) -> RootId {
        roots_of(bundle).next().unwrap()
    }

    /// A CA with one root, which is used until then.
    fn record(name: &str, bundle: &TrustBundle, until: SystemTime) -> Record {
        let used = Used {
            backend: key(name),
            bundle: bundle.clone(),
            until,
            signed: true,
        };
        Record {
            said: BTreeMap::from([(key(name), said(bundle))]),
            used: BTreeMap::from([(id(bundle), used)]),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let now = FakeClock::start();
        let mut record = record("a", &bundle(), now + HOUR);
        let two = bundle().union(&bundle()).unwrap();
        let classic = BackendKey::Classic("b".to_owned());
        record.said.insert(classic, said(&two));
        let read = Record::read_from(&stored(), &record.to_value().unwrap()).unwrap();
        assert!(read.covers(&record, &BTreeSet::new()));
        assert_eq!(read.said, record.said);
        // Whole seconds, and never too short.
        for (root, used) in &record.used {
            let late = read.used[root].until.duration_since(used.until).unwrap();
            assert!(late <= Duration::from_secs(1), "{late:?}");
        }
    }

    /// Control planes at commit 3213fda have written these for a classic and a modern mesh, and read what is written now.
    #[test]
    fn what_was_stored_is_read_and_written_in_the_same_form() {
        let goldens = [
            (
                include_bytes!(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/tests/golden/3213fda/classic/classic.meshca-trust"
                ))
                .as_slice(),
                BackendKey::Classic("ca-1".to_owned()),
                "builtin",
            ),
            (
                include_bytes!(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/tests/golden/3213fda/modern/modern.meshca-trust"
                )),
                key("everyone"),
                "Bundled",
            ),
        ];
        for (bytes, backend, ca) in goldens {
            let value = SecretValue::new(bytes.to_vec());
            let record = Record::read_from(&stored(), &value).unwrap();
            let said = &record.said[&backend];
            let used: Vec<_> = record.used.values().collect();
            assert_eq!((said.ca.as_str(), used.len()), (ca, 1));
            assert_eq!(used[0].bundle, said.bundle);
            assert!(used[0].signed && used[0].backend == backend);
            assert!(used[0].until > FakeClock::start());
            assert!(record.to_value().unwrap() == value);
        }
    }

    #[tokio::test]
    async fn a_record_of_a_newer_or_an_unknown_form_is_left_alone() {
        let clock = FakeClock::new();
        let ours = record("a", &bundle(), clock.now() + HOUR);
        let sound = ours.to_value().unwrap();
        let sound: serde_json::Value = serde_json::from_slice(sound.expose()).unwrap();
        let newer = "upgrade this replica";
        for (place, field, why) in [
            ("", "format", newer),
            ("", "alien", "unknown field `alien`"),
            ("/cas/0", "alien", "unknown field `alien`"),
            ("/used/0", "alien", "unknown field `alien`"),
        ] {
            let mut other = sound.clone();
            other.pointer_mut(place).unwrap()[field] = 2.into();
            let value = SecretValue::new(serde_json::to_vec(&other).unwrap());
            let store = MemorySecretStore::new();
            let before = store.put(&stored(), value, Expect::Absent).await.unwrap();
            let theirs = record("b", &bundle(), clock.now() + HOUR);
            let none = BTreeSet::new();
            for outcome in [
                Record::read(&store, "default").await,
                theirs
                    .write(
                        &store,
                        "default",
                        &none,
                        &BTreeMap::new(),
                        &Record::default(),
                        Some(clock.now()),
                    )
                    .await,
            ] {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidConfig);
                let said = error.to_string();
                let named = said.contains("(secret: default/default.meshca-trust)");
                assert!(named && said.contains(why), "{said}");
            }
            let after = store.get(&stored()).await.unwrap().unwrap();
            assert_eq!(after.version, before, "{place} {field}");
        }
    }

    #[test]
    fn what_others_know_is_kept_and_what_has_ended_is_not() {
        let now = FakeClock::start();
        let [one, two, ended] = [bundle(), bundle(), bundle()];
        let mut stored = record("a", &one, now + 3 * HOUR);
        let gone = record("gone", &ended, now - MARGIN - HOUR);
        stored.said.extend(gone.said);
        stored.used.extend(gone.used);
        let mut ours = record("b", &two, now + HOUR);
        ours.used.extend(record("a", &one, now + HOUR).used);

        let both = ours.onto(
            stored,
            &BTreeSet::from([key("gone")]),
            &BTreeMap::new(),
            Some(now),
        );
        assert_eq!(Vec::from_iter(both.said.keys()), [&key("a"), &key("b")]);
        let until = |bundle: &TrustBundle| both.used.get(&id(bundle)).map(|it| it.until);
        assert_eq!(until(&one), Some(now + 3 * HOUR));
        assert_eq!(until(&two), Some(now + HOUR));
        assert_eq!(until(&ended), None);
        // A clock that is doubted ends nothing.
        let gone = record("gone", &ended, now - MARGIN - HOUR);
        assert_eq!(gone.clone().pruned(None), gone);
    }

    #[test]
    fn it_goes_ahead_by_as_much_again_and_not_past_the_end_of_the_root() {
        let now = FakeClock::start();
        let root = bundle();
        let end = root.roots()[0].validity().not_after();
        let left = end.duration_since(now).unwrap();
        let none = BTreeMap::new();
        let claimed = |end| BTreeMap::from([(id(&root), end)]);
        let until = |record: &Record| record.used[&id(&root)].until;

        let now_and_then = record("a", &root, now + HOUR);
        let stored = now_and_then
            .clone()
            .ahead(&claimed(now + HOUR), &Claims::default(), now);
        assert_eq!(until(&stored), now + 2 * HOUR);
        assert!(stored.covers(&record("a", &root, now + 2 * HOUR), &BTreeSet::new()));
        assert!(!stored.covers(&record("a", &root, now + 3 * HOUR), &BTreeSet::new()));
        // What was said already is not moved on.
        let again = now_and_then.onto(stored, &BTreeSet::new(), &none, Some(now + HOUR / 2));
        assert_eq!(until(&again), now + 2 * HOUR);
        let near = record("a", &root, now + left * 3 / 4);
        assert_eq!(
            until(&near.ahead(&claimed(now + left * 3 / 4), &Claims::default(), now)),
            end
        );
    }

    /// What another replica has said would cover it, and would not tell that one of it.
    #[test]
    fn what_is_claimed_can_be_seen_by_others() {
        let now = FakeClock::start();
        let (root, none) = (bundle(), BTreeSet::new());
        let [ours, theirs] = [2, 5].map(|hours| record("a", &root, now + hours * HOUR));
        let need = || [(id(&root), now + HOUR)].into_iter();
        let mut claims = Claims::default();
        let lacking = claims.lacking(need());
        assert_eq!(lacking, need().collect());
        let stored = ours
            .clone()
            .onto(theirs.clone(), &none, &lacking, Some(now));
        assert_eq!(stored.used[&id(&root)].until, now + 5 * HOUR + STEP);
        assert_eq!(claims.others(&theirs).count(), 1);
        claims.said(lacking, &stored);
        assert_eq!(claims.lacking(need()).len(), 0);
        let nothing = BTreeMap::new();
        // If somebody deletes the record, it is written as it was.
        let again = record("a", &root, now + HOUR).ahead(&nothing, &claims, now);
        assert_eq!(again.used, stored.used);
        assert_eq!(claims.others(&stored).count(), 0);
        // What is not claimed again changes nothing.
        let again = ours.onto(stored.clone(), &none, &nothing, Some(now));
        assert_eq!(again, stored);
        let more = record("a", &root, now + 6 * HOUR);
        assert_eq!(claims.others(&more).count(), 1);
    }

    /// Another replica writes whenever somebody has read.
    #[derive(Debug)]
    struct Busy {
        inner: MemorySecretStore,
        others: Mutex<Vec<SecretValue>>,
    }

    #[async_trait]
    impl SecretStore for Busy {
        async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
            let found = self.inner.get(key).await?;
            let other = self.others.lock().unwrap().pop();
            if let Some(other) = other {
                let expect = match &found {
                    Some(found) => Expect::Version(found.version.clone()),
                    None => Expect::Absent,
                };
                self.inner.put(key, other, expect).await?;
            }
            Ok(found)
        }

        async fn put(
            &self,
            key: &SecretKey,
            value: SecretValue,
            expect: Expect,
        ) -> Result<Version> {
            self.inner.put(key, value, expect).await
        }

        async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
            self.inner.delete(key, version).await
        }
    }

    #[tokio::test]
    async fn whoever_writes_at_the_same_time_loses_nothing() {
        let clock = FakeClock::new();
        let until = clock.now() + HOUR;
        let [ours, theirs] = [bundle(), bundle()];
        let other = record("a", &theirs, until).to_value().unwrap();
        let own = id(&ours);
        for times in [1, TRIES - 1, TRIES] {
            let store = Busy {
                inner: MemorySecretStore::new(),
                others: Mutex::new(vec![other.clone(); times]),
            };
            let (ours, none) = (record("b", &ours, until), BTreeSet::new());
            let outcome = ours
                .write(
                    &store,
                    "default",
                    &none,
                    &BTreeMap::new(),
                    &Record::default(),
                    Some(clock.now()),
                )
                .await;
            if times == TRIES {
                // Later it is tried again.
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Conflict);
                continue;
            }
            outcome.unwrap();
            let read = Record::read(&store, "default").await.unwrap();
            let roots = Vec::from_iter(read.used.into_keys());
            assert_eq!(roots.len(), 2);
            assert!(roots.contains(&own) && roots.contains(&id(&theirs)));
        }
    }
}
