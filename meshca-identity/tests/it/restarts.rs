//! A control plane that is restarted, while its data plane goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::world::*;
use async_trait::async_trait;
use meshca_core::registry::BackendRegistry;
use meshca_core::resource::MeshTrust;
use meshca_core::secret::{Expect, SecretKey, SecretStore, SecretValue, StoredSecret, Version};
use meshca_core::spiffe::Environment;
use meshca_core::{Clock, Error, ErrorKind, MemorySecretStore, Result, TrustDomain};
use meshca_identity::manager::{DriverTask, Health};
use meshca_identity::select::SelectOptions;
use meshca_identity::{Acknowledged, Handle, Manager, ManagerOptions};
use meshca_testkit::{FaultyIssuer, TokioClock};

const S: Duration = Duration::from_secs(1);

fn acknowledged(options: &mut ManagerOptions) {
    options.acknowledgements = true;
}

fn foreign(world: &World) -> Arc<FaultyIssuer> {
    let domain = TrustDomain::new("default").unwrap();
    Arc::new(FaultyIssuer::new(domain, Arc::new(world.clock.clone())).unwrap())
}

/// The fingerprints of all roots that workloads are told to trust.
fn trusted(manager: &Manager) -> BTreeSet<String> {
    let bundles = manager.mesh("default").trust();
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
    let before = trusted(&world.manager);
    assert_eq!(before.len(), 2);

    world
        .cas
        .get("ca-b")
        .unbuildable
        .store(true, Ordering::SeqCst);
    let world = world.restarted(|_| {}).await;
    world.apply(TWO).await;
    // From the first moment on, and for as long as it takes.
    assert_eq!(trusted(&world.manager), before);
    pass(10 * DAY).await;
    assert_eq!(trusted(&world.manager), before);

    // What it says itself counts more.
    world.cas.get("ca-b").exchange(foreign(&world), Vec::new());
    world
        .cas
        .get("ca-b")
        .unbuildable
        .store(false, Ordering::SeqCst);
    pass(HOUR).await;
    let now = trusted(&world.manager);
    assert_eq!((now.len(), now.intersection(&before).count()), (2, 1));

    // And what the operator says most.
    let world = world.restarted(|_| {}).await;
    world.apply(&classic("ca-a")).await;
    pass(HOUR).await;
    assert_eq!(trusted(&world.manager).len(), 1);
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
    assert_eq!(trusted(&world.manager).len(), 2);
    // Certificates are for a day, so there may be others for as long.
    pass(DAY).await;
    assert!(trusted(&world.manager).contains(&old));
    // The record goes ahead by no more than as much again, and a day is left for clocks that are wrong.
    pass(DAY + HOUR).await;
    assert!(trusted(&world.manager).contains(&old));
    pass(DAY).await;
    assert_eq!(trusted(&world.manager).len(), 1);

    // What has ended is trusted by none that comes later.
    let world = world.restarted(|_| {}).await;
    world.apply(&classic("ca-a")).await;
    assert_eq!(trusted(&world.manager).len(), 1);
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
    assert_eq!(trusted(&world.manager).len(), 2);
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
    // So it does while somebody is back who has what he had before, and has not taken more into use yet.
    let early = world.connect("early").await;
    early.acknowledge(Acknowledged::FromBefore);
    let mut d = world.connect("d").await;
    let begun = tokio::time::Instant::now();
    d.ready().await.unwrap();
    assert_eq!(root_of(&d), old);
    assert!(begun.elapsed() < S);
    for handle in [&early, &d] {
        acknowledge(handle);
    }

    // The CA signs with the next one now. All who are here trust it, but not all are here.
    let ca = world.cas.get("ca-a");
    let former = ca.issuer();
    ca.exchange(next.clone(), vec![former]);
    let mut c = world.connect("c").await;
    pass(20 * S).await;
    assert!(c.identity().is_none());

    // One comes back with what it had, and is waited for until it has the new one.
    let b = world.connect("b").await;
    b.acknowledge(Acknowledged::FromBefore);
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

/// A secret store that fails, and takes its time, as it is told.
#[derive(Debug, Default)]
struct Store {
    inner: MemorySecretStore,
    unreadable: AtomicBool,
    unwritable: AtomicBool,
    /// How long the next read takes, in milliseconds.
    read_takes: AtomicU64,
    /// How long each write takes.
    writes_take: AtomicU64,
    writes: AtomicUsize,
    /// Whether it tells of changes.
    tells: AtomicBool,
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
        pass(Duration::from_millis(
            self.read_takes.swap(0, Ordering::SeqCst),
        ))
        .await;
        self.inner.get(key).await
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        fails(&self.unwritable)?;
        pass(Duration::from_millis(
            self.writes_take.load(Ordering::SeqCst),
        ))
        .await;
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.inner.put(key, value, expect).await
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.inner.delete(key, version).await
    }

    fn revision(&self) -> Option<u64> {
        let writes = self.writes.load(Ordering::SeqCst) as u64;
        self.tells.load(Ordering::SeqCst).then_some(writes)
    }
}

/// What control planes have in common.
#[derive(Default)]
struct Around {
    store: Arc<Store>,
    clock: TokioClock,
    cas: Cas,
}

/// A control plane.
struct Running {
    manager: Manager,
    log: Arc<Log>,
    driver: DriverTask,
}

impl Around {
    fn start(&self) -> Running {
        self.start_with(|_| {})
    }

    fn start_with(&self, change: impl FnOnce(&mut ManagerOptions)) -> Running {
        let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        options.seed = Some(1);
        change(&mut options);
        let registry = BackendRegistry::new()
            .with(meshca_core::builtin::factory())
            .with(self.cas.clone());
        let secrets: Arc<dyn SecretStore> = self.store.clone();
        let clock = Arc::new(self.clock.clone());
        let (manager, driver) = Manager::new(registry, secrets, clock, options);
        let log = Arc::new(Log::default());
        Running {
            manager,
            driver: driver.with_observer(log.clone()).spawn(),
            log,
        }
    }

    /// Another CA, for this trust domain.
    fn another(&self, domain: &str) -> Arc<FaultyIssuer> {
        let domain = TrustDomain::new(domain).unwrap();
        Arc::new(FaultyIssuer::new(domain, Arc::new(self.clock.clone())).unwrap())
    }
}

impl Running {
    async fn apply(&self, text: &str) {
        self.manager.apply(resources(text)).await.unwrap();
    }

    /// With the MeshTrusts that were written before.
    async fn apply_with(&self, text: &str, trusts: &[MeshTrust]) {
        let mut resources = resources(text);
        resources.trusts = trusts.to_vec();
        self.manager.apply(resources).await.unwrap();
    }

    async fn connect(&self, name: &str) -> Handle {
        let connected = self.manager.connect("default", name, workload(name));
        connected.await.unwrap()
    }

    /// Connected, with an identity, and what it trusts is acknowledged.
    async fn serve(&self, name: &str) -> Handle {
        let mut handle = self.connect(name).await;
        handle.ready().await.unwrap();
        acknowledge(&handle);
        handle
    }

    async fn stop(self) {
        self.driver.stop().await.unwrap();
    }
}

fn record() -> SecretKey {
    SecretKey::new("default", "default.meshca-trust").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_read_is_an_error_of_the_first_apply_and_of_no_other() {
    let around = Around::default();
    let (store, it) = (&around.store, around.start());
    store.unreadable.store(true, Ordering::SeqCst);
    let wanted = || resources(&classic("ca-a"));
    let error = it.manager.apply(wanted()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("nothing was changed: try again"),
        "{error}"
    );
    let error = it.manager.gate("default").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // It hangs, for longer than is waited for.
    store.unreadable.store(false, Ordering::SeqCst);
    store.read_takes.store(3_600_000, Ordering::SeqCst);
    let error = it.manager.apply(wanted()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);

    it.apply(&classic("ca-a")).await;
    it.serve("w").await;
    store.unreadable.store(true, Ordering::SeqCst);
    it.apply(&classic("ca-a")).await;
    it.apply(&classic("ca-b")).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_written_is_said_and_costs_nobody_anything() {
    let around = Around::default();
    let (store, it) = (&around.store, around.start());
    store.unwritable.store(true, Ordering::SeqCst);
    it.apply(&classic("ca-a")).await;
    let _w = it.serve("w").await;
    pass(HOUR).await;
    let said = it.log.count("could not be stored");
    // After 5 s first, and every five minutes in the end.
    assert!((10..30).contains(&said), "{said}");
    assert!(store.inner.get(&record()).await.unwrap().is_none());

    store.unwritable.store(false, Ordering::SeqCst);
    pass(HOUR).await;
    assert!(store.inner.get(&record()).await.unwrap().is_some());
    assert!(it.log.count("could not be stored") <= said + 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_damaged_is_not_passed_over() {
    let around = Around::default();
    let store = &around.store.inner;
    for (damaged, why) in [
        ("", "EOF"),
        ("{}", "format"),
        (
            r#"{"format":1,"cas":[{"backend":{"classic":"one"},"type":"ca-a","trustDomain":"x y","roots":""}],"used":[]}"#,
            "domain",
        ),
        (
            r#"{"format":1,"cas":[],"used":[{"backend":{"modern":"id"},"trustDomain":"x","root":"none","until":1,"signed":true}]}"#,
            "PEM",
        ),
    ] {
        let key = record();
        if let Some(before) = store.get(&key).await.unwrap() {
            store.delete(&key, &before.version).await.unwrap();
        }
        store
            .put(&key, damaged.into(), Expect::Absent)
            .await
            .unwrap();
        let it = around.start();
        let applied = it.manager.apply(resources(&classic("ca-a"))).await;
        let error = applied.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        let chain = format!("{error:?} {error}");
        assert!(
            chain.contains(why) && error.to_string().contains("or delete it"),
            "{chain}"
        );
    }
}

/// A replica of a newer version has replaced the record.
#[tokio::test(start_paused = true)]
async fn a_record_of_a_newer_version_is_left_alone_and_reported() {
    let around = Around::default();
    let store = &around.store.inner;
    let it = around.start();
    it.apply(&classic("ca-a")).await;
    let _w = it.serve("w").await;
    pass(60 * S).await;
    let stored = store.get(&record()).await.unwrap().unwrap();
    let newer = r#"{"format":2,"cas":[],"used":[]}"#;
    let expect = Expect::Version(stored.version);
    store.put(&record(), newer.into(), expect).await.unwrap();
    pass(3 * DAY).await;
    let after = store.get(&record()).await.unwrap().unwrap();
    assert_eq!(after.value.expose_str(), Some(newer));
    assert!(it.log.count("upgrade this replica") > 0);
    // Certificates are renewed all the same.
    assert!(it.log.count(" is spiffe") > 3);

    let it = around.start();
    let applied = it.manager.apply(resources(&classic("ca-a"))).await;
    let error = applied.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    let said = error.to_string();
    assert!(
        said.contains("its format is 2") && said.contains("upgrade this replica"),
        "{said}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_record_is_not_written_for_each_certificate() {
    let around = Around::default();
    let it = around.start();
    it.apply(&classic("ca-a")).await;
    let mut handles = Vec::new();
    for n in 0..10 {
        handles.push(it.connect(&format!("w{n}")).await);
    }
    pass(20 * DAY).await;
    let written = around.store.writes.load(Ordering::SeqCst);
    let issued = it.log.count(" is spiffe");
    assert!(issued > 300, "{issued}");
    assert!(written <= 25, "{written}");
}

/// In a store that tells of changes each record is one.
#[tokio::test(start_paused = true)]
async fn records_that_are_written_do_not_have_every_ca_looked_at() {
    let around = Around::default();
    around.store.tells.store(true, Ordering::SeqCst);
    let it = around.start();
    let mut handles = Vec::new();
    for n in 0..50 {
        let mesh = format!("m{n}");
        let text = classic("ca-a").replace("name: default", &format!("name: {mesh}"));
        it.apply(&text).await;
        let connected = it.manager.connect(&mesh, "w", workload("w"));
        handles.push(connected.await.unwrap());
    }
    pass(S).await;
    assert!(around.store.writes.load(Ordering::SeqCst) >= 50);
    let looks = around.cas.get("ca-a").looks.load(Ordering::SeqCst);
    assert!(looks <= 4 * 50, "{looks}");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_somebody_deletes_is_written_again() {
    let around = Around::default();
    let store = &around.store.inner;
    let it = around.start();
    it.apply(&classic("ca-a")).await;
    let _w = it.serve("w").await;
    pass(60 * S).await;
    let stored = store.get(&record()).await.unwrap().unwrap();
    store.delete(&record(), &stored.version).await.unwrap();
    pass(HOUR).await;
    let again = store.get(&record()).await.unwrap().unwrap();
    assert!(again.value == stored.value);
}

/// Replicas add to the record, and take nothing of each other away.
#[tokio::test(start_paused = true)]
async fn what_a_replica_has_handed_out_all_keep_trusted() {
    let around = Around::default();
    let (one, two) = (around.start(), around.start());
    for it in [&one, &two] {
        it.apply(&classic("ca-a")).await;
    }
    let w = one.serve("w").await;
    let old = root_of(&w);
    pass(HOUR).await;
    // The CA is exchanged, and gives out nothing for now.
    let ca = around.cas.get("ca-a");
    ca.exchange(around.another("default"), Vec::new());
    ca.down(Some(ErrorKind::Unavailable));
    pass(600 * S).await;
    assert_eq!(root_of(&w), old);
    for it in [&one, &two] {
        assert!(trusted(&it.manager).contains(&old));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_with_older_resources_takes_nothing_away() {
    let around = Around::default();
    let one = around.start();
    one.apply(TWO).await;
    let _w = one.serve("w").await;
    pass(60 * S).await;
    let both = trusted(&one.manager);
    let two = around.start();
    two.apply(&classic("ca-a")).await;
    pass(60 * S).await;
    two.stop().await;
    one.stop().await;
    around
        .cas
        .get("ca-b")
        .unbuildable
        .store(true, Ordering::SeqCst);
    let it = around.start();
    it.apply(TWO).await;
    assert_eq!(trusted(&it.manager), both);
}

/// Only our own MeshTrust has a root: that somebody could hold it does not say that everybody does.
#[tokio::test(start_paused = true)]
async fn a_root_that_is_only_kept_in_case_is_not_known_to_all() {
    let around = Around::default();
    let text = OFF.to_owned() + &identity("id", "ca-a");
    let it = around.start_with(acknowledged);
    it.apply(&text).await;
    let (a, _b) = (it.serve("a").await, it.serve("b").await);
    let old = root_of(&a);
    pass(HOUR).await;
    // The next root is published while the store is down.
    around.store.unwritable.store(true, Ordering::SeqCst);
    let ca = around.cas.get("ca-a");
    let (former, next) = (ca.issuer(), around.another("example.org"));
    ca.exchange(former.clone(), vec![next.clone()]);
    pass(60 * S).await;
    let trusts = it.manager.mesh("default").mesh_trusts();
    it.stop().await;
    around.store.unwritable.store(false, Ordering::SeqCst);
    ca.exchange(next, vec![former]);
    for _ in 0..2 {
        let it = around.start_with(acknowledged);
        it.apply_with(&text, &trusts).await;
        acknowledge(&it.connect("a").await);
        let c = it.connect("c").await;
        pass(20 * S).await;
        assert!(it.manager.gate("default").await.unwrap().returning);
        assert!(c.identity().is_none() || root_of(&c) == old);
        it.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ca_of_another_type_inherits_nothing() {
    let around = Around::default();
    let it = around.start();
    it.apply(TWO).await;
    it.serve("w").await;
    it.stop().await;
    around
        .cas
        .get("ca-c")
        .unbuildable
        .store(true, Ordering::SeqCst);
    let it = around.start();
    it.apply(&TWO.replace("ca-b", "ca-c")).await;
    assert_eq!(trusted(&it.manager).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_mesh_that_was_removed_for_long_comes_back_without_its_trust() {
    let around = Around::default();
    let it = around.start();
    it.apply(TWO).await;
    pass(60 * S).await;
    it.manager.remove_mesh("default").await.unwrap();
    pass(30 * DAY).await;
    for ca in ["ca-a", "ca-b"] {
        around.cas.get(ca).unbuildable.store(true, Ordering::SeqCst);
    }
    it.apply(TWO).await;
    pass(60 * S).await;
    assert_eq!(trusted(&it.manager).len(), 0);
}

/// A mesh whose record could not be written is not forgotten before it is.
#[tokio::test(start_paused = true)]
async fn a_mesh_that_was_removed_for_a_moment_comes_back_with_its_trust() {
    for unwritable in [false, true] {
        let around = Around::default();
        around.store.unwritable.store(unwritable, Ordering::SeqCst);
        let it = around.start();
        it.apply(&classic("ca-a")).await;
        let old = root_of(&it.serve("w").await);
        pass(120 * S).await;
        it.manager.remove_mesh("default").await.unwrap();
        around.store.unwritable.store(false, Ordering::SeqCst);
        pass(HOUR).await;
        let another = around.another("default");
        around.cas.get("ca-a").exchange(another, Vec::new());
        it.apply(&classic("ca-a")).await;
        pass(60 * S).await;
        assert!(trusted(&it.manager).contains(&old), "{unwritable}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_mesh_while_its_record_is_read_comes_after() {
    let around = Around::default();
    let it = around.start();
    let w = it.connect("w").await;
    around.store.read_takes.store(10_000, Ordering::SeqCst);
    let manager = it.manager.clone();
    let first = tokio::spawn(async move { manager.apply(resources(&classic("ca-a"))).await });
    pass(S).await;
    it.apply(&classic("ca-b")).await;
    first.await.unwrap().unwrap();
    let now = it.manager.mesh("default").resources().unwrap();
    assert_eq!(*now, resources(&classic("ca-b")));

    it.manager.remove_mesh("default").await.unwrap();
    around.store.read_takes.store(10_000, Ordering::SeqCst);
    let manager = it.manager.clone();
    let first = tokio::spawn(async move { manager.apply(resources(&classic("ca-a"))).await });
    pass(S).await;
    it.manager.remove_mesh("default").await.unwrap();
    first.await.unwrap().unwrap();
    assert!(w.selection().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_out_at_the_end_is_stored() {
    // While the CA is at work, and while the record is being written.
    for (slow, writes_take, after) in [(2 * S, 0, S), (5 * S / 1000, 1000, S / 5)] {
        let around = Around::default();
        let ca = around.cas.get("ca-a");
        ca.slow(slow);
        around
            .store
            .writes_take
            .store(writes_take, Ordering::SeqCst);
        let it = around.start();
        it.apply(&classic("ca-a")).await;
        let w = it.connect("w").await;
        pass(after).await;
        it.stop().await;
        let old = root_of(&w);
        ca.exchange(around.another("default"), Vec::new());
        let it = around.start();
        it.apply(&classic("ca-a")).await;
        pass(60 * S).await;
        assert!(trusted(&it.manager).contains(&old), "{slow:?}");
    }
}

/// All that was signed has ended: nobody is waited for, least of all under the root that all have.
#[tokio::test(start_paused = true)]
async fn after_a_long_outage_nobody_is_waited_for() {
    let around = Around::default();
    let patient = |options: &mut ManagerOptions| {
        options.acknowledgements = true;
        options.linger = HOUR;
    };
    let it = around.start_with(patient);
    it.apply(&classic("ca-a")).await;
    it.serve("w").await;
    pass(60 * S).await;
    it.stop().await;
    pass(5 * DAY).await;
    let it = around.start_with(patient);
    it.apply(&classic("ca-a")).await;
    let mut w = it.connect("w").await;
    w.acknowledge(Acknowledged::FromBefore);
    pass(S).await;
    acknowledge(&w);
    let begun = tokio::time::Instant::now();
    w.ready().await.unwrap();
    assert!(begun.elapsed() < S);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_went_ahead_and_came_back_loses_nothing() {
    let around = Around::default();
    let it = around.start();
    it.apply(&classic("ca-a")).await;
    let w = it.serve("w").await;
    let old = root_of(&w);
    let ca = around.cas.get("ca-a");
    ca.down(Some(ErrorKind::Unavailable));
    around.clock.advance(5 * DAY);
    pass(60 * S).await;
    // Something is stored then.
    it.apply(TWO).await;
    pass(60 * S).await;
    around.clock.set_back(5 * DAY);
    pass(HOUR).await;
    it.stop().await;
    ca.exchange(around.another("default"), Vec::new());
    let it = around.start();
    it.apply(&classic("ca-a")).await;
    pass(60 * S).await;
    assert!(trusted(&it.manager).contains(&old));
}

/// Our own MeshTrust knows better.
#[tokio::test(start_paused = true)]
async fn a_record_that_could_not_be_written_for_days_takes_nothing_away() {
    let around = Around::default();
    let text = OFF.to_owned() + &identity("id", "ca-a");
    let it = around.start();
    it.apply(&text).await;
    let w = it.serve("w").await;
    pass(HOUR).await;
    around.store.unwritable.store(true, Ordering::SeqCst);
    pass(4 * DAY).await;
    let (old, trusts) = (root_of(&w), it.manager.mesh("default").mesh_trusts());
    it.stop().await;
    around.store.unwritable.store(false, Ordering::SeqCst);
    let another = around.another("example.org");
    around.cas.get("ca-a").exchange(another, Vec::new());
    let it = around.start();
    it.apply_with(&text, &trusts).await;
    pass(60 * S).await;
    assert!(trusted(&it.manager).contains(&old));
}

/// No secret can have its name, so there is no record of it; it works all the same.
#[tokio::test(start_paused = true)]
async fn a_mesh_whose_name_is_no_name_of_a_secret_has_no_record() {
    let around = Around::default();
    let it = around.start();
    it.apply(&classic("ca-a").replace("name: default", "name: my_mesh"))
        .await;
    let connected = it.manager.connect("my_mesh", "w", workload("w"));
    connected.await.unwrap().ready().await.unwrap();
    assert_eq!(around.store.writes.load(Ordering::SeqCst), 0);
    assert_eq!(it.log.count("could not be stored"), 0);
}

/// What it signed is trusted for as long as that is valid, which is no reason to sign more.
#[tokio::test(start_paused = true)]
async fn a_ca_whose_root_was_taken_out_of_the_meshtrust_stops() {
    let text = "{type: Mesh, name: default}\n---\n{type: MeshIdentity, name: id, mesh: default, spec: {selector: {dataplane: {matchLabels: {}}}, \
        spiffeID: {trustDomain: example.org}, provider: {type: Bundled, bundled: {meshTrustCreation: Disabled, insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}}}\n";
    let around = Around::default();
    let it = around.start();
    it.apply(text).await;
    pass(S).await;
    // As an operator has it who copies the root by hand.
    let key = SecretKey::new("default", "id-root-ca").unwrap();
    let root = around.store.inner.get(&key).await.unwrap().unwrap();
    let root = root.value.expose_str().unwrap().to_owned();
    let domain = TrustDomain::new("example.org").unwrap();
    let bundle = meshca_core::TrustBundle::from_pem(domain, &root).unwrap();
    let metadata = meshca_core::resource::Metadata::universal("by-hand").with_mesh("default");
    let trust = MeshTrust::from_trust_bundle(metadata, &bundle).unwrap();
    it.apply_with(text, &[trust]).await;
    let w = it.serve("w").await;
    pass(HOUR).await;
    assert_eq!(w.health(), Health::Fresh);
    it.stop().await;
    drop(w);

    let it = around.start();
    it.apply(text).await;
    assert_eq!(trusted(&it.manager).len(), 1);
    let w = it.connect("w").await;
    pass(3 * DAY).await;
    assert!(w.identity().is_none());
    assert_eq!(trusted(&it.manager).len(), 0);
}

/// It is the record that goes ahead of what was handed out, and not the trust.
#[tokio::test(start_paused = true)]
async fn whoever_handed_it_out_knows_when_it_ends() {
    let around = Around::default();
    let it = around.start();
    it.apply(&classic("ca-a")).await;
    let w = it.serve("w").await;
    let old = root_of(&w);
    let end = w.identity().unwrap().certificate().validity().not_after();
    pass(HOUR).await;
    let another = around.another("default");
    around.cas.get("ca-a").exchange(another, Vec::new());
    pass(HOUR).await;
    assert_ne!(root_of(&w), old);
    let left = end.duration_since(around.clock.now()).unwrap();
    pass(left).await;
    assert!(trusted(&it.manager).contains(&old));
    pass(600 * S).await;
    assert!(!trusted(&it.manager).contains(&old));
}
