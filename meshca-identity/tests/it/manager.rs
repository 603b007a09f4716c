//! The manager, with CAs that do as told and time that is paused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::world::{DAY, HOUR, OFF, World, classic, identity, pass, workload};
use meshca_core::spiffe::Environment;
use meshca_core::{Clock, ErrorKind};
use meshca_identity::ManagerOptions;
use meshca_identity::manager::{Assignment, Health};
use meshca_identity::select::SelectOptions;
use meshca_testkit::{FakeClock, Fault, FaultyIssuer};

#[tokio::test(start_paused = true)]
async fn a_workload_gets_its_identity_and_keeps_one_for_a_year() {
    let world = World::with(|options| options.trust_refresh = HOUR);
    world
        .apply(&(OFF.to_owned() + &identity("id", "ca-a")))
        .await;
    let mut handles = Vec::new();
    for n in 0..10 {
        handles.push(world.connect(&format!("w-{n}")).await);
    }
    for handle in &mut handles {
        let identity = handle.ready().await.unwrap();
        assert!(
            identity
                .spiffe_id()
                .to_string()
                .starts_with("spiffe://example.org/workload/w-")
        );
        assert_eq!(handle.health(), Health::Fresh);
        let trust = handle.trust();
        let bundle = trust.for_peer(identity.spiffe_id()).unwrap();
        assert!(bundle.contains(identity.certificate().root().der()));
    }
    for _ in 0..365 {
        pass(DAY).await;
        for handle in &handles {
            let identity = handle.identity().unwrap();
            assert!(
                identity
                    .certificate()
                    .validity()
                    .contains(world.clock.now())
            );
        }
    }
    let asked = world.cas.get("ca-a").times_asked();
    assert!((10 * 600..10 * 732).contains(&asked), "{asked}");
    assert_eq!(world.log.count("gets nothing"), 0);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_at_once_are_issued_once_each() {
    let world = World::with_ca(|_| {}).await;
    let mut handles = Vec::new();
    for n in 0..10_000 {
        handles.push(world.connect(&format!("w-{n}")).await);
    }
    for handle in &mut handles {
        handle.ready().await.unwrap();
    }
    let ca = world.cas.get("ca-a");
    assert_eq!(ca.times_asked(), 10_000);
    assert_eq!(ca.most_at_once.load(Ordering::SeqCst), 16);
}

/// Peers' pain 1: a good certificate dropped because its renewal failed.
#[tokio::test(start_paused = true)]
async fn what_is_valid_is_served_through_an_outage_then_said_to_have_ended_then_it_recovers() {
    let world = World::with_ca(|_| {}).await;
    let mut handle = world.connect("w").await;
    let first = handle.ready().await.unwrap();
    let ca = world.cas.get("ca-a");
    ca.down(Some(ErrorKind::Unavailable));
    pass(DAY.mul_f64(0.7)).await;
    assert_eq!(handle.health(), Health::Stale);
    assert_eq!(
        handle.identity().unwrap().certificate().serial(),
        first.certificate().serial()
    );
    assert_eq!(handle.error().unwrap().kind(), ErrorKind::Unavailable);
    assert_eq!(world.log.count("cannot be renewed"), 1);
    pass(DAY.mul_f64(0.31)).await;
    assert_eq!(handle.health(), Health::Expired);
    assert_eq!(world.log.count("holds nothing that is valid"), 1);
    ca.down(None);
    pass(Duration::from_secs(310)).await;
    assert_eq!(handle.health(), Health::Fresh);
    assert_ne!(
        handle.identity().unwrap().certificate().serial(),
        first.certificate().serial()
    );
    assert!(handle.error().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_forty_percent_of_the_lifetime_costs_nobody_an_identity() {
    let world = World::with_ca(|_| {}).await;
    let mut handles = Vec::new();
    for n in 0..200 {
        handles.push(world.connect(&format!("w-{n}")).await);
    }
    for handle in &mut handles {
        handle.ready().await.unwrap();
    }
    pass(DAY.mul_f64(0.5)).await;
    let ca = world.cas.get("ca-a");
    let before = ca.times_asked();
    ca.down(Some(ErrorKind::Unavailable));
    pass(DAY.mul_f64(0.4)).await;
    assert!(
        ca.times_asked() - before < 1200,
        "{}",
        ca.times_asked() - before
    );
    ca.down(None);
    pass(Duration::from_secs(120)).await;
    assert!(handles.iter().all(|it| it.health() == Health::Fresh));
    assert_eq!(world.log.count("holds nothing"), 0);
    assert_eq!(world.manager.stats().await.unwrap().fresh, 200);
}

/// What the CA returns is refused by verification: it is a failure like any other, and nothing bad is handed out.
#[tokio::test(start_paused = true)]
async fn nothing_unverified_is_handed_out() {
    let world = World::with_ca(|_| {}).await;
    pass(Duration::from_secs(1)).await;
    let ca = world.cas.get("ca-a");
    ca.issuer().misbehave(Fault::WrongKey);
    let mut handle = world.connect("w").await;
    pass(Duration::from_secs(60)).await;
    assert!(handle.identity().is_none());
    assert_eq!(handle.health(), Health::Pending);
    assert_eq!(handle.error().unwrap().kind(), ErrorKind::BadResponse);
    ca.issuer().behave();
    handle.ready().await.unwrap();
}

/// The field's checklist 5: labels that change make another identity; what does not change the identity does not.
#[tokio::test(start_paused = true)]
async fn only_what_must_be_is_issued_again() {
    let world = World::new();
    let text = OFF.to_owned() + &identity("id", "ca-a");
    world.apply(&text).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    let ca = world.cas.get("ca-a");
    assert_eq!(ca.times_asked(), 1);

    // The same again, another label, another connection under the same name: nothing.
    world.apply(&text).await;
    handle.update(workload("w").with_label("version", "2"));
    let second = world.connect("w").await;
    pass(Duration::from_secs(60)).await;
    assert_eq!(ca.times_asked(), 1);
    assert_eq!(ca.builds.load(Ordering::SeqCst), 1);
    drop(second);
    pass(10 * Duration::from_secs(60)).await;
    assert!(handle.identity().is_some());

    // Another name is another identity; the old one is held until there is a new one.
    ca.down(Some(ErrorKind::Unavailable));
    handle.update(workload("other"));
    pass(Duration::from_secs(3)).await;
    assert!(
        handle
            .identity()
            .unwrap()
            .spiffe_id()
            .path()
            .ends_with("/w")
    );
    ca.down(None);
    pass(Duration::from_secs(10)).await;
    assert!(
        handle
            .identity()
            .unwrap()
            .spiffe_id()
            .path()
            .ends_with("/other")
    );

    // A change and its reversal in flight cost nothing more than what is needed.
    let before = ca.times_asked();
    ca.slow(Duration::from_secs(5));
    handle.update(workload("third"));
    pass(Duration::from_secs(1)).await;
    handle.update(workload("other"));
    pass(Duration::from_secs(60)).await;
    assert!(
        handle
            .identity()
            .unwrap()
            .spiffe_id()
            .path()
            .ends_with("/other")
    );
    assert_eq!(ca.times_asked() - before, 1);
}

/// Peers' pains 2, 5 and 6, and 14: the CA's root changes under a live mesh, without a restart.
#[tokio::test(start_paused = true)]
async fn a_new_root_is_trusted_before_it_signs_and_the_old_one_while_anything_lives() {
    let world = World::with_ca(|_| {}).await;
    let mut handles = Vec::new();
    for n in 0..20 {
        handles.push(world.connect(&format!("w-{n}")).await);
    }
    for handle in &mut handles {
        handle.ready().await.unwrap();
    }
    let ca = world.cas.get("ca-a");
    let old = ca.issuer();
    let domain = handles[0]
        .identity()
        .unwrap()
        .spiffe_id()
        .trust_domain()
        .clone();
    let new = Arc::new(FaultyIssuer::new(domain.clone(), Arc::new(world.clock.clone())).unwrap());
    // The old CA is gone without a word.
    ca.exchange(new.clone(), Vec::new());
    let roots =
        |handle: &meshca_identity::Handle| handle.trust().get(&domain).unwrap().roots().len();
    let mut both = false;
    for _ in 0..120 {
        pass(Duration::from_millis(500)).await;
        both |= roots(&handles[0]) == 2;
        for handle in &handles {
            // Identity first, then trust: as a reader would.
            let identity = handle.identity().unwrap();
            let trust = handle.trust();
            assert!(
                trust
                    .get(&domain)
                    .unwrap()
                    .contains(identity.certificate().root().der())
            );
        }
    }
    assert!(both);
    use meshca_core::Issuer as _;
    let bundle = new.trust_bundle().await.unwrap();
    for handle in &handles {
        assert!(
            bundle.contains(handle.identity().unwrap().certificate().root().der()),
            "all are under the new root"
        );
    }
    // The old leaves are valid for a day; so long is their root.
    pass(DAY.mul_f64(0.9)).await;
    assert_eq!(roots(&handles[0]), 2);
    pass(DAY.mul_f64(0.2)).await;
    assert_eq!(roots(&handles[0]), 1);
    let old = old.trust_bundle().await.unwrap();
    assert!(
        !handles[0]
            .trust()
            .get(&domain)
            .unwrap()
            .contains(old.roots()[0].der())
    );
}

/// The gate: nothing is signed under a new root before every proxy has taken it into use.
#[tokio::test(start_paused = true)]
async fn with_acknowledgements_a_new_root_waits_for_the_last_proxy() {
    let world = World::with_ca(|options| options.acknowledgements = true).await;
    let (mut quick, mut slow) = (world.connect("quick").await, world.connect("slow").await);
    for handle in [&mut quick, &mut slow] {
        handle.ready().await.unwrap();
        handle.acknowledge(handle.trust_version());
    }
    let gate = world.manager.gate("default").await.unwrap();
    assert!(gate.is_open(), "{gate:?}");
    let first = gate.version;
    let ca = world.cas.get("ca-a");
    let old = ca.issuer();
    let domain = quick.identity().unwrap().spiffe_id().trust_domain().clone();
    let new = Arc::new(FaultyIssuer::new(domain, Arc::new(world.clock.clone())).unwrap());
    ca.exchange(new.clone(), vec![old]);
    // It trusts both and signs with the new one: renewals find that out.
    pass(DAY.mul_f64(0.7)).await;
    use meshca_core::Issuer as _;
    let bundle = new.trust_bundle().await.unwrap();
    let is_new = |handle: &meshca_identity::Handle| {
        bundle.contains(handle.identity().unwrap().certificate().root().der())
    };
    assert!(!is_new(&quick) && !is_new(&slow));
    quick.acknowledge(quick.trust_version());
    pass(Duration::from_secs(60)).await;
    assert!(!is_new(&quick));
    let gate = world.manager.gate("default").await.unwrap();
    assert_eq!(gate.lagging, [("slow".to_owned(), first.into())]);
    // Valid all the time; then the last one has it.
    slow.acknowledge(slow.trust_version());
    pass(Duration::from_secs(60)).await;
    assert!(is_new(&quick) && is_new(&slow));
}

#[tokio::test(start_paused = true)]
async fn broken_glass_waits_for_nobody_and_is_said_loudly() {
    let world = World::with_ca(|options| options.acknowledgements = true).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    handle.acknowledge(handle.trust_version());
    let ca = world.cas.get("ca-a");
    let domain = handle
        .identity()
        .unwrap()
        .spiffe_id()
        .trust_domain()
        .clone();
    // Everything has expired, and the CA is another one.
    ca.down(Some(ErrorKind::Unavailable));
    pass(2 * DAY).await;
    assert_eq!(handle.health(), Health::Expired);
    ca.down(None);
    let new = Arc::new(FaultyIssuer::new(domain, Arc::new(world.clock.clone())).unwrap());
    ca.exchange(new, Vec::new());
    pass(HOUR).await;
    assert_eq!(
        handle.health(),
        Health::Expired,
        "the proxy has not acknowledged"
    );
    world.manager.break_glass("default", "INC-1").await.unwrap();
    pass(Duration::from_secs(60)).await;
    assert_eq!(handle.health(), Health::Fresh);
    assert_eq!(world.log.count("BREAK GLASS"), 1);
    let unknown = world.manager.break_glass("other", "").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn classic_then_modern_then_off() {
    let world = World::new();
    world.apply(&classic("ca-a")).await;
    let mut handle = world.connect("w").await;
    let id = |handle: &meshca_identity::Handle| handle.identity().unwrap().spiffe_id().to_string();
    handle.ready().await.unwrap();
    assert_eq!(id(&handle), "spiffe://default/w");
    // A MeshIdentity takes over; the classic roots stay for those who still hold classic identities.
    world
        .apply(&(classic("ca-a") + &identity("id", "ca-b")))
        .await;
    pass(Duration::from_secs(5)).await;
    assert_eq!(id(&handle), "spiffe://example.org/workload/w");
    assert_eq!(handle.trust().iter().count(), 2);
    let explained = handle.selection().await.unwrap().to_string();
    assert!(
        explained.contains("by the MeshIdentity `id`"),
        "{explained}"
    );
    // Its MeshTrust is to exist.
    let trusts = world.manager.mesh("default").mesh_trusts();
    assert_eq!(trusts.len(), 1);
    assert_eq!(trusts[0].metadata.name, "id");
    assert_eq!(
        trusts[0].origin.as_ref().unwrap().to_string(),
        "kri_mid_default_east__id_"
    );
    // Nothing at all: nothing is kept, and waiting for an identity says why.
    world.apply(OFF).await;
    pass(Duration::from_secs(1)).await;
    assert!(handle.identity().is_none());
    assert_eq!(handle.assignment(), Assignment::Nobody);
    assert_eq!(
        handle.ready().await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

/// The MeshTrust that the control plane of another zone generated for the same MeshIdentity: only that one knows who still needs its
/// roots.
#[tokio::test(start_paused = true)]
async fn what_another_zone_has_announced_is_not_retired_here() {
    let world = World::with_ca(|o| o.trust_refresh = Duration::from_secs(3600)).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    let domain = meshca_core::TrustDomain::new("example.org").unwrap();
    let ca = |name| meshca_testkit::pki::TestCa::root(name, world.clock.now()).unwrap();
    let [west, ours] = [ca("west"), ca("ours")].map(|ca| ca.bundle(domain.clone()).unwrap());
    let trust = |zone: &str, bundle: &meshca_core::TrustBundle| {
        let pem = bundle.to_pem();
        let pem: String = pem
            .lines()
            .map(|line| format!("        {line}\n"))
            .collect();
        format!(
            "---\ntype: MeshTrust\nname: of-{zone}\nmesh: default\nspec:\n  trustDomain: example.org\n  origin: {{kri: kri_mid_default_{zone}__id_}}\n  caBundles:\n  - type: Pem\n    pem:\n      value: |\n{pem}"
        )
    };
    let both = trust("west", &west) + &trust("east", &ours);
    world
        .apply(&(OFF.to_owned() + &identity("id", "ca-a") + &both))
        .await;
    let trusts = |bundle: &meshca_core::TrustBundle| {
        let trusted = handle.trust();
        let trusted = trusted.get(&domain).unwrap();
        trusted.contains(bundle.roots()[0].der())
    };
    for _ in 0..3 {
        pass(20 * DAY).await;
        assert!(trusts(&west));
    }
    // What a control plane of this zone had announced is retired by what this one knows.
    assert!(!trusts(&ours));
}

/// One mesh's broken CA must not hold up another's (the field's checklist 2); and it gets ready when the CA does.
#[tokio::test(start_paused = true)]
async fn a_ca_that_cannot_be_built_is_said_and_tried_again() {
    let world = World::new();
    let ca = world.cas.get("ca-a");
    ca.unbuildable.store(true, Ordering::SeqCst);
    world
        .apply(&(OFF.to_owned() + &identity("id", "ca-a")))
        .await;
    let mut handle = world.connect("w").await;
    pass(Duration::from_secs(20)).await;
    let view = world.manager.mesh("default");
    let statuses = view.identity_statuses();
    let ready = statuses[0].condition("Ready").unwrap();
    assert_eq!((ready.status, ready.reason), (Some(false), "Failure"));
    let provider = statuses[0].condition("Provider").unwrap();
    assert_eq!(provider.reason, "ProviderInitializationError");
    assert!(
        provider.message.contains("it cannot be built"),
        "{}",
        provider.message
    );
    assert_eq!(handle.assignment(), Assignment::Waiting);
    assert!(
        handle
            .error()
            .unwrap()
            .to_string()
            .contains("it cannot be built")
    );
    pass(HOUR).await;
    assert!(
        ca.builds.load(Ordering::SeqCst) < 25,
        "{}",
        ca.builds.load(Ordering::SeqCst)
    );
    ca.unbuildable.store(false, Ordering::SeqCst);
    // An operator who has mended it need not wait.
    world.manager.secrets_changed();
    pass(Duration::from_secs(1)).await;
    handle.ready().await.unwrap();
    let statuses = view.identity_statuses();
    assert_eq!(statuses[0].condition("Ready").unwrap().status, Some(true));
}

#[tokio::test(start_paused = true)]
async fn settings_that_fail_leave_the_former_issuer_at_work() {
    let world = World::with_ca(|_| {}).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    let ca = world.cas.get("ca-a");
    ca.unbuildable.store(true, Ordering::SeqCst);
    let changed = identity("id", "ca-a").replace("config: {}", "config: {x: 1}");
    world.apply(&(OFF.to_owned() + &changed)).await;
    pass(3 * DAY).await;
    assert_eq!(handle.health(), Health::Fresh);
    let statuses = world.manager.mesh("default").identity_statuses();
    let provider = statuses[0].condition("Provider").unwrap();
    assert!(
        provider.message.contains("goes on issuing"),
        "{}",
        provider.message
    );
    assert_eq!(statuses[0].condition("Ready").unwrap().status, Some(true));
}

#[tokio::test(start_paused = true)]
async fn clocks_that_jump_cost_nobody_an_identity() {
    for by in [1i64, -1] {
        let world = World::new();
        world
            .apply(&(OFF.to_owned() + &identity("id", "ca-a")))
            .await;
        let mut handles = Vec::new();
        for n in 0..50 {
            handles.push(world.connect(&format!("w-{n}")).await);
        }
        for handle in &mut handles {
            handle.ready().await.unwrap();
        }
        match by {
            1 => world.clock.advance(HOUR),
            _ => world.clock.set_back(HOUR),
        }
        pass(Duration::from_secs(60)).await;
        for _ in 0..100 {
            for handle in &handles {
                let validity = handle.identity().unwrap().certificate().validity();
                let now = world.clock.now();
                assert!(
                    validity.not_after() > now
                        && validity.not_before() <= now + Duration::from_secs(60),
                    "{by}"
                );
            }
            pass(HOUR).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_disconnects_is_remembered_for_a_minute() {
    let world = World::with_ca(|_| {}).await;
    let mut handle = world.connect("w").await;
    let serial = handle
        .ready()
        .await
        .unwrap()
        .certificate()
        .serial()
        .to_owned();
    drop(handle);
    pass(Duration::from_secs(30)).await;
    let again = world.connect("w").await;
    assert_eq!(again.identity().unwrap().certificate().serial(), serial);
    drop(again);
    pass(Duration::from_secs(90)).await;
    let stats = world.manager.stats().await.unwrap();
    assert_eq!(stats.fresh + stats.pending, 0);
    let mut anew = world.connect("w").await;
    assert!(anew.identity().is_none());
    anew.ready().await.unwrap();
    // In flight when it goes.
    world.cas.get("ca-a").slow(Duration::from_secs(200));
    let gone = world.connect("x").await;
    pass(Duration::from_secs(1)).await;
    drop(gone);
    pass(Duration::from_secs(300)).await;
    assert_eq!(world.manager.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_prefetched_identity_is_there_when_its_workload_comes() {
    let world = World::with_ca(|_| {}).await;
    world.manager.prefetch("default", "w", workload("w"));
    pass(Duration::from_secs(10)).await;
    let handle = world.connect("w").await;
    assert!(handle.identity().is_some());
    assert_eq!(world.cas.get("ca-a").times_asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_ends_leaves_what_was_issued_and_says_so() {
    let World {
        manager, driver, ..
    } = {
        let world = World::new();
        world
            .apply(&(OFF.to_owned() + &identity("id", "ca-a")))
            .await;
        world
    };
    let mut handle = manager
        .connect("default", "w", workload("w"))
        .await
        .unwrap();
    handle.ready().await.unwrap();
    while tokio::time::timeout(Duration::from_secs(1), handle.changed())
        .await
        .is_ok()
    {}
    let waits = tokio::spawn(async move {
        let changed = handle.changed().await;
        (handle, changed)
    });
    tokio::task::yield_now().await;
    driver.stop().await.unwrap();
    let (handle, changed) = waits.await.unwrap();
    assert_eq!(changed.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(handle.identity().is_some());
    let refused = manager.connect("default", "x", workload("x")).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn roots_that_end_are_warned_of_once() {
    let world = World::new();
    world.apply(&classic("builtin")).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    assert_eq!(world.log.count("ends soon"), 0);
    // The built-in CA lives for ten years.
    world.clock.advance(3640 * DAY);
    pass(HOUR).await;
    assert_eq!(
        world.log.count("ends soon"),
        1,
        "{:?}",
        world.log.0.lock().unwrap()
    );
    let start = FakeClock::start();
    assert!(world.clock.now() > start);
}

/// The built-in CA is replaced before it ends, by the manager, and nobody notices.
#[tokio::test(start_paused = true)]
async fn the_builtin_ca_is_rotated_by_the_manager() {
    let world = World::with(|options| options.trust_refresh = HOUR);
    let text = classic("builtin").replace("conf: {}", "conf: {caCert: {expiration: 60d}}");
    world.apply(&text).await;
    let mut handle = world.connect("w").await;
    let first = handle
        .ready()
        .await
        .unwrap()
        .certificate()
        .root()
        .fingerprint()
        .to_owned();
    for _ in 0..70 {
        pass(DAY).await;
        let identity = handle.identity().unwrap();
        let now = world.clock.now();
        assert!(identity.certificate().validity().contains(now));
        assert!(identity.certificate().root().validity().contains(now));
        let trust = handle.trust();
        assert!(
            trust
                .for_peer(identity.spiffe_id())
                .unwrap()
                .contains(identity.certificate().root().der())
        );
    }
    assert_ne!(
        handle
            .identity()
            .unwrap()
            .certificate()
            .root()
            .fingerprint(),
        first
    );
    assert!(world.log.count("signs with its next CA") >= 1);
    assert!(world.log.count("has forgotten its former CA") >= 1);
    let trust = handle.trust();
    assert!(trust.iter().all(|bundle| {
        bundle
            .roots()
            .iter()
            .all(|root| root.fingerprint() != first)
    }));
}

#[test]
fn the_defaults_of_the_manager() {
    let select = SelectOptions::new("east", Environment::Universal);
    let options = ManagerOptions::new(select);
    let minute = Duration::from_secs(60);
    assert_eq!(options.linger, minute);
    assert_eq!(options.trust_refresh, minute / 2);
    assert_eq!(options.request_timeout, minute);
    assert!(!options.acknowledgements);
    assert!(!options.allow_partial_chains);
    assert_eq!(options.root_warning, 30 * DAY);
    assert_eq!(options.release_laggards_at, Some(0.8));
    assert_eq!(options.schedule.concurrency, 16);
    assert_eq!(options.schedule.breaker_threshold, 10);
}

/// What the facade's `Metered` and `Audited` are put around issuers with.
#[tokio::test(start_paused = true)]
async fn layers_are_around_every_ca() {
    use std::sync::Mutex;

    use meshca_core::registry::BackendRegistry;
    use meshca_core::{MemorySecretStore, builtin};
    use meshca_identity::Manager;

    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, outer) = (Arc::clone(&seen), Arc::clone(&seen));
    let options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
    let registry = BackendRegistry::new().with(builtin::factory());
    let clock = Arc::new(meshca_testkit::TokioClock::new());
    let (manager, driver) =
        Manager::new(registry, Arc::new(MemorySecretStore::new()), clock, options);
    let driver = driver
        .with_layer(move |config, issuer| {
            inner
                .lock()
                .unwrap()
                .push(format!("inner {}", config.name()));
            issuer
        })
        .with_layer(move |config, issuer| {
            outer
                .lock()
                .unwrap()
                .push(format!("outer {}", config.name()));
            issuer
        })
        .spawn();
    manager
        .apply(crate::world::resources(&classic("builtin")))
        .await
        .unwrap();
    let mut handle = manager
        .connect("default", "w", workload("w"))
        .await
        .unwrap();
    handle.ready().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["inner one", "outer one"]);
    driver.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn other_resources_wake_those_who_push_them() {
    let world = World::new();
    world.apply(&classic("ca-a")).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    while tokio::time::timeout(Duration::from_secs(60), handle.changed())
        .await
        .is_ok()
    {}
    world.apply(&classic("ca-a")).await;
    assert!(
        tokio::time::timeout(Duration::from_secs(60), handle.changed())
            .await
            .is_err()
    );
    let tls = "---\n{type: MeshTLS, name: all, mesh: default, spec: {targetRef: {kind: Mesh}, rules: [{default: {mode: Permissive}}]}}\n";
    world.apply(&(classic("ca-a") + tls)).await;
    handle.changed().await.unwrap();
    let resources = handle.mesh().resources().unwrap();
    let proxy = meshca_identity::tls::Proxy::new("w", workload("w"));
    let policy = meshca_identity::tls::TlsPolicy::resolve(&resources, &proxy).unwrap();
    assert_eq!(policy.mode.value, meshca_core::resource::Mode::Permissive);
}

#[tokio::test(start_paused = true)]
async fn who_takes_over_a_name_does_not_get_the_key_of_who_had_it() {
    let world = World::with_ca(|_| {}).await;
    let ca = world.cas.get("ca-a");
    let named = |name: &str| workload(name);
    let first = world.manager.connect("default", "pod-0", named("payments"));
    let mut first = first.await.unwrap();
    let before = first.ready().await.unwrap();
    // Back after a moment, it finds what it had, whatever else is new about it.
    drop(first);
    let same = named("payments").with_label("version", "2");
    let same = world
        .manager
        .connect("default", "pod-0", same)
        .await
        .unwrap();
    assert!(Arc::ptr_eq(&same.identity().unwrap(), &before));
    // Another one under its name finds nothing, even if the CA has nothing for it, and the other is still connected.
    ca.down(Some(ErrorKind::Unavailable));
    let other = world
        .manager
        .connect("default", "pod-0", named("guestbook"));
    let mut other = other.await.unwrap();
    assert!(other.identity().is_none());
    pass(Duration::from_secs(3)).await;
    assert!(other.identity().is_none());
    ca.down(None);
    let id = other.ready().await.unwrap().spiffe_id().to_string();
    assert!(id.ends_with("/guestbook"), "{id}");
}
