//! A control plane that is restarted, while its data plane goes on.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::registry::BackendRegistry;
use meshca_core::secret::{Expect, SecretKey, SecretStore, SecretValue, StoredSecret, Version};
use meshca_core::spiffe::Environment;
use meshca_core::{Error, ErrorKind, MemorySecretStore, Result, TrustDomain};
use meshca_identity::select::SelectOptions;
use meshca_identity::{Handle, Manager, ManagerOptions};
use meshca_testkit::{FaultyIssuer, TokioClock};
use world::*;

const S: Duration = Duration::from_secs(1);

fn acknowledged(options: &mut ManagerOptions) {
    options.acknowledgements = true;
}

fn foreign(world: &World) -> Arc<FaultyIssuer> {
    let domain = TrustDomain::new("default").unwrap();
    Arc::new(FaultyIssuer::new(domain, Arc::new(world.clock.clone())).unwrap())
}

/// The fingerprints of all roots that workloads are told to trust.
fn trusted(world: &World) -> BTreeSet<String> {
    let bundles = world.manager.mesh("default").trust();
    let roots = bundles.iter().flat_map(|it| it.roots().to_vec());
    roots.map(|root| root.fingerprint().to_owned()).collect()
}

fn root_of(handle: &Handle) -> String {
    let identity = handle.identity().unwrap();
    identity.certificate().root().fingerprint().to_owned()
}

/// It has taken into use what it was given.
fn acknowledge(handle: &Handle) {
    handle.acknowledge(handle.trust_version());
}

const TWO: &str = "{type: Mesh, name: default, mtls: {enabledBackend: one, backends: [\
    {name: one, type: ca-a, conf: {}}, {name: two, type: ca-b, conf: {}}]}}";

/// Nobody else tells of the second backend of a mesh: no MeshTrust has it.
#[tokio::test(start_paused = true)]
async fn a_ca_that_cannot_be_reached_after_a_restart_stays_trusted() {
    let world = World::new();
    world.apply(TWO).await;
    world.connect("w").await.ready().await.unwrap();
    let before = trusted(&world);
    assert_eq!(before.len(), 2);

    world
        .cas
        .get("ca-b")
        .unbuildable
        .store(true, Ordering::SeqCst);
    let world = world.restarted(|_| {}).await;
    world.apply(TWO).await;
    // From the first moment on, and for as long as it takes.
    assert_eq!(trusted(&world), before);
    pass(10 * DAY).await;
    assert_eq!(trusted(&world), before);

    // What it says itself counts more.
    world.cas.get("ca-b").exchange(foreign(&world), Vec::new());
    world
        .cas
        .get("ca-b")
        .unbuildable
        .store(false, Ordering::SeqCst);
    pass(HOUR).await;
    let now = trusted(&world);
    assert_eq!((now.len(), now.intersection(&before).count()), (2, 1));

    // And what the operator says most.
    let world = world.restarted(|_| {}).await;
    world.apply(&classic("ca-a")).await;
    pass(HOUR).await;
    assert_eq!(trusted(&world).len(), 1);
}

/// The CA was exchanged while no control plane ran.
#[tokio::test(start_paused = true)]
async fn what_was_handed_out_before_a_restart_stays_trusted_until_it_ends() {
    let world = World::new();
    world.apply(&classic("ca-a")).await;
    let handle = world.connect("w").await;
    handle.clone().ready().await.unwrap();
    let old = root_of(&handle);
    pass(5 * DAY).await;
    drop(handle);

    let new = foreign(&world);
    world.cas.get("ca-a").exchange(new, Vec::new());
    let world = world.restarted(|_| {}).await;
    world.apply(&classic("ca-a")).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    assert_ne!(root_of(&handle), old);
    assert_eq!(trusted(&world).len(), 2);
    // Certificates are for a day, so there may be others for as long.
    pass(DAY).await;
    assert!(trusted(&world).contains(&old));
    // The record goes ahead by no more than as much again.
    pass(DAY + HOUR).await;
    assert_eq!(trusted(&world).len(), 1);

    // What has ended is trusted by none that comes later.
    let world = world.restarted(|_| {}).await;
    world.apply(&classic("ca-a")).await;
    assert_eq!(trusted(&world).len(), 1);
}

/// A mesh of two proxies that trust the root of `ca-a`, of which one has acknowledged the next root as well.
async fn in_the_middle_of_a_rotation() -> (World, Arc<FaultyIssuer>, String) {
    let world = World::with(acknowledged);
    world.apply(&classic("ca-a")).await;
    let (mut a, mut b) = (world.connect("a").await, world.connect("b").await);
    for handle in [&mut a, &mut b] {
        handle.ready().await.unwrap();
        acknowledge(handle);
    }
    let old = root_of(&a);
    pass(HOUR).await;
    let ca = world.cas.get("ca-a");
    let (former, next) = (ca.issuer(), foreign(&world));
    ca.exchange(former, vec![next.clone()]);
    pass(60 * S).await;
    assert_eq!(trusted(&world).len(), 2);
    acknowledge(&a);
    pass(60 * S).await;
    assert!(!world.manager.gate("default").await.unwrap().is_open());
    let world = world.restarted(acknowledged).await;
    (world, next, old)
}

#[tokio::test(start_paused = true)]
async fn a_root_that_nobody_has_used_waits_for_proxies_that_are_not_back_yet() {
    let (world, next, old) = in_the_middle_of_a_rotation().await;
    world.apply(&classic("ca-a")).await;
    let mut a = world.connect("a").await;
    a.ready().await.unwrap();
    // What was in use goes on at once.
    assert_eq!(root_of(&a), old);
    acknowledge(&a);
    assert!(world.manager.gate("default").await.unwrap().returning);
    assert!(world.manager.observe("default").await.unwrap().returning);

    // The CA signs with the next one now. All who are here trust it, but not all are here.
    let ca = world.cas.get("ca-a");
    let former = ca.issuer();
    ca.exchange(next.clone(), vec![former]);
    let mut c = world.connect("c").await;
    pass(20 * S).await;
    assert!(c.identity().is_none());

    // One comes back with what it had, and is waited for until it has the new one.
    let b = world.connect("b").await;
    b.acknowledge(1);
    pass(HOUR).await;
    assert!(!world.manager.gate("default").await.unwrap().returning);
    assert!(c.identity().is_none());
    acknowledge(&b);
    c.ready().await.unwrap();
    assert_ne!(root_of(&c), old);
    for handle in [&a, &c] {
        acknowledge(handle);
    }
    let gate = world.manager.gate("default").await.unwrap();
    assert!(gate.is_open(), "{gate:?}");
}

#[tokio::test(start_paused = true)]
async fn proxies_that_do_not_come_back_are_waited_for_as_long_as_those_that_are_lost() {
    let (world, next, _) = in_the_middle_of_a_rotation().await;
    let ca = world.cas.get("ca-a");
    let former = ca.issuer();
    ca.exchange(next, vec![former]);
    let begun = tokio::time::Instant::now();
    world.apply(&classic("ca-a")).await;
    let mut a = world.connect("a").await;
    acknowledge(&a);
    a.ready().await.unwrap();
    let waited = begun.elapsed();
    assert!((60 * S..75 * S).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_breaks_the_glass_waits_for_nobody_who_may_come_back() {
    let (world, next, _) = in_the_middle_of_a_rotation().await;
    world.cas.get("ca-a").exchange(next, Vec::new());
    world.apply(&classic("ca-a")).await;
    let mut a = world.connect("a").await;
    pass(20 * S).await;
    assert!(a.identity().is_none());
    world
        .manager
        .break_glass("default", "no way back")
        .await
        .unwrap();
    let begun = tokio::time::Instant::now();
    a.ready().await.unwrap();
    assert!(begun.elapsed() < 20 * S);
}

/// A first start, and a mesh in which nothing was ever signed, know of nobody who could come back.
#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_where_nobody_was() {
    let world = World::with(acknowledged);
    world.apply(&classic("ca-a")).await;
    pass(HOUR).await;
    let world = world.restarted(acknowledged).await;
    let begun = tokio::time::Instant::now();
    world.apply(&classic("ca-a")).await;
    world.connect("w").await.ready().await.unwrap();
    assert!(begun.elapsed() < S);
    assert!(!world.manager.gate("default").await.unwrap().returning);
}

/// A secret store that fails as it is told.
#[derive(Debug)]
struct Store {
    inner: MemorySecretStore,
    unreadable: AtomicBool,
    unwritable: AtomicBool,
    writes: AtomicUsize,
}

impl Store {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemorySecretStore::new(),
            unreadable: AtomicBool::new(false),
            unwritable: AtomicBool::new(false),
            writes: AtomicUsize::new(0),
        })
    }
}

fn fails(when: &AtomicBool) -> Result<()> {
    match when.load(Ordering::SeqCst) {
        true => Err(Error::new(ErrorKind::Unavailable, "the store is down")),
        false => Ok(()),
    }
}

#[async_trait]
impl SecretStore for Store {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        fails(&self.unreadable)?;
        self.inner.get(key).await
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        fails(&self.unwritable)?;
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.inner.put(key, value, expect).await
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.inner.delete(key, version).await
    }
}

/// A manager at this store.
fn at(store: &Arc<Store>) -> (Manager, Arc<Log>, meshca_identity::manager::DriverTask) {
    let options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
    let registry = BackendRegistry::new().with(Cas::default());
    let clock = Arc::new(TokioClock::new());
    let secrets: Arc<dyn SecretStore> = store.clone();
    let (manager, driver) = Manager::new(registry, secrets, clock, options);
    let log = Arc::new(Log::default());
    let task = driver.with_observer(log.clone()).spawn();
    (manager, log, task)
}

fn record() -> SecretKey {
    SecretKey::new("default", "default.meshca-trust").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_read_is_an_error_of_the_first_apply_and_of_no_other() {
    let store = Store::new();
    let (manager, _, _driver) = at(&store);
    store.unreadable.store(true, Ordering::SeqCst);
    let wanted = || resources(&classic("ca-a"));
    let error = manager.apply(wanted()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error
            .to_string()
            .contains("nothing was applied: apply again"),
        "{error}"
    );
    assert_eq!(
        manager.gate("default").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );

    store.unreadable.store(false, Ordering::SeqCst);
    manager.apply(wanted()).await.unwrap();
    let mut handle = manager
        .connect("default", "w", workload("w"))
        .await
        .unwrap();
    handle.ready().await.unwrap();
    store.unreadable.store(true, Ordering::SeqCst);
    manager.apply(wanted()).await.unwrap();
    manager.apply(resources(&classic("ca-b"))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_written_is_said_and_costs_nobody_anything() {
    let store = Store::new();
    store.unwritable.store(true, Ordering::SeqCst);
    let (manager, log, _driver) = at(&store);
    manager.apply(resources(&classic("ca-a"))).await.unwrap();
    let mut handle = manager
        .connect("default", "w", workload("w"))
        .await
        .unwrap();
    handle.ready().await.unwrap();
    pass(HOUR).await;
    let said = log.count("could not be stored");
    // After 5 s first, and every five minutes in the end.
    assert!((10..30).contains(&said), "{said}");
    assert!(store.inner.get(&record()).await.unwrap().is_none());

    store.unwritable.store(false, Ordering::SeqCst);
    pass(HOUR).await;
    assert!(store.inner.get(&record()).await.unwrap().is_some());
    assert!(log.count("could not be stored") <= said + 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_damaged_is_not_passed_over() {
    let store = Store::new();
    for (damaged, why) in [
        ("", "EOF"),
        ("{}", "format"),
        (r#"{"format":2,"cas":[],"used":[]}"#, "its format is 2"),
        (
            r#"{"format":1,"cas":[{"backend":{"classic":"one"},"trustDomain":"x y","roots":""}],"used":[]}"#,
            "domain",
        ),
        (
            r#"{"format":1,"cas":[],"used":[{"backend":{"modern":"id"},"trustDomain":"x","root":"none","until":1}]}"#,
            "PEM",
        ),
    ] {
        let key = record();
        if let Some(before) = store.inner.get(&key).await.unwrap() {
            store.inner.delete(&key, &before.version).await.unwrap();
        }
        store
            .inner
            .put(&key, damaged.into(), Expect::Absent)
            .await
            .unwrap();
        let (manager, _, _driver) = at(&store);
        let error = manager
            .apply(resources(&classic("ca-a")))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        let chain = format!("{error:?} {error}");
        assert!(
            chain.contains(why) && chain.contains("delete the secret"),
            "{chain}"
        );
    }
}

/// Replicas add to the record, and take nothing of each other away.
#[tokio::test(start_paused = true)]
async fn replicas_share_what_they_know() {
    let store = Store::new();
    let replicas = [at(&store), at(&store), at(&store)];
    for (manager, _, _) in &replicas {
        // Each has a CA of its own here: the test's CAs are one for each registry.
        manager.apply(resources(&classic("ca-a"))).await.unwrap();
    }
    for (n, (manager, _, _)) in replicas.iter().enumerate() {
        let name = format!("w{n}");
        let mut handle = manager
            .connect("default", name, workload("w"))
            .await
            .unwrap();
        handle.ready().await.unwrap();
    }
    pass(HOUR).await;
    let (manager, _, _driver) = at(&store);
    manager.apply(resources(&classic("ca-a"))).await.unwrap();
    let roots: usize = manager
        .mesh("default")
        .trust()
        .iter()
        .map(|it| it.roots().len())
        .sum();
    // Those of the three, and soon its own.
    assert!(roots >= 3, "{roots}");
}

#[tokio::test(start_paused = true)]
async fn the_record_is_not_written_for_each_certificate() {
    let store = Store::new();
    let (manager, log, _driver) = at(&store);
    manager.apply(resources(&classic("ca-a"))).await.unwrap();
    let mut handles = Vec::new();
    for n in 0..10 {
        let name = format!("w{n}");
        handles.push(
            manager
                .connect("default", name, workload("w"))
                .await
                .unwrap(),
        );
    }
    pass(20 * DAY).await;
    let (issued, written) = (log.count(" is spiffe"), store.writes.load(Ordering::SeqCst));
    assert!(issued > 300, "{issued}");
    assert!(written <= 25, "{written}");
}
