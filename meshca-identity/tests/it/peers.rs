//! Twenty ways in which other control planes have hurt their users, by number; each with the test that shows that we do not.
//!
//! | | what hurt | shown by |
//! |---|---|---|
//! | 1 | a good certificate is dropped when its renewal fails (istio#56452) | `manager::what_is_valid_is_served_through_an_outage_…` |
//! | 2 | a root that is exchanged breaks a live mesh (ztunnel#1679) | `manager::a_new_root_is_trusted_before_it_signs_…` |
//! | 3 | a trust domain cannot be changed without a restart (istio#53666) | `a_trust_domain_changes_without_a_restart` |
//! | 4 | roots reach a workload only when it asks for a certificate (istio#22993) | `roots_reach_workloads_that_ask_for_nothing` |
//! | 5 | a leaf arrives before its root (istio#47424) | `manager::a_new_root_is_trusted_before_it_signs_…`, `manager::with_acknowledgements_…` |
//! | 6 | a root is removed too early (linkerd2#4287) | `manager::a_new_root_…_and_the_old_one_while_anything_lives` |
//! | 7 | a secret that changes is not read again (linkerd2#15109) | `a_ca_that_is_exchanged_in_its_secret_is_noticed` |
//! | 8 | a CA that has expired cannot be replaced (linkerd2#4808) | `everything_has_expired_and_comes_back`, `manager::broken_glass_…` |
//! | 9 | all come at once (spire#4490) | `manager::ten_thousand_at_once_are_issued_once_each` |
//! | 10 | renewals come in bursts (istio-csr#217) | `schedule::what_began_together_does_not_stay_together` |
//! | 11 | one that hangs stops all (istio-csr#141) | `a_ca_that_hangs_holds_up_no_other` |
//! | 12 | an outage of the CA becomes a crash loop (spire#5038) | `manager::a_ca_that_cannot_be_built_is_said_and_tried_again` |
//! | 13 | a check that is too strict breaks an upgrade (spire#4351) | `meshca-core`: `what_is_sound_is_accepted_and_what_is_unusual_reported` |
//! | 14 | another root of AWS needs a restart (spire#1183) | as 2; `meshca-acm`: `a_root_that_is_replaced_stays_trusted` |
//! | 15 | the renewal of a token dies, or loops (spire#1985) | `meshca-vault`: `a_renewable_token_outlives_its_first_lease`, `a_revoked_token_is_replaced_within_the_same_call` |
//! | 16 | a change of settings is lost (consul#11363) | `settings_that_change_are_in_use_without_a_restart`, `manager::settings_that_fail_leave_…` |
//! | 17 | chain and `ca.crt` are confused (istio-csr#155) | `meshca-core`: `a_chain_must_lead_to_the_bundle` |
//! | 18 | `ca.crt` is missing, and something else is taken for it (istio-csr#283) | `meshca-certmanager`: `tests/it/answers.rs` |
//! | 19 | clocks differ (istio#32176) | `what_is_not_valid_yet_is_held_back_until_it_is` |
//! | 20 | memory and work grow out of hand (spire#2593, #2182) | `cargo bench --bench manager` |

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::world::{DAY, HOUR, OFF, World, classic, identity, pass, resources, workload};
use meshca_core::{Clock, SecretKey, SecretValue};
use meshca_core::{Expect, SecretStore};
use meshca_identity::manager::Health;
use meshca_testkit::pki::TestCa;
use meshca_testkit::{FakeClock, Fault};

#[tokio::test(start_paused = true)]
async fn a_trust_domain_changes_without_a_restart() {
    let world = World::new();
    let old = identity("old", "ca-a");
    world.apply(&(OFF.to_owned() + &old)).await;
    let (mut one, mut other) = (world.connect("one").await, world.connect("other").await);
    for handle in [&mut one, &mut other] {
        handle.ready().await.unwrap();
    }
    // First it is only announced, and nothing is issued.
    let announced = "---\n{type: MeshIdentity, name: new, mesh: default, spec: {selector: {dataplane: {matchLabels: {app: web}}}, \
                     spiffeID: {trustDomain: example.com}}}\n";
    world.apply(&(OFF.to_owned() + &old + announced)).await;
    pass(Duration::from_secs(10)).await;
    let selection = one.selection().await.unwrap();
    assert_eq!(
        selection.announced().next().unwrap().to_string(),
        "spiffe://example.com/workload/one"
    );
    assert_eq!(
        one.identity().unwrap().spiffe_id().trust_domain().as_ref(),
        "example.org"
    );
    // Then it has a CA, and wins.
    let new = announced.replace(
        "example.com}}",
        "example.com}, provider: {type: Extension, extension: {name: ca-b, config: {}}}}",
    );
    world.apply(&(OFF.to_owned() + &old + &new)).await;
    for _ in 0..100 {
        pass(Duration::from_millis(100)).await;
        // Whoever has which identity, the other one trusts it.
        for (from, to) in [(&one, &other), (&other, &one)] {
            let identity = from.identity().unwrap();
            let trust = to.trust();
            let bundle = trust.for_peer(identity.spiffe_id()).unwrap();
            assert!(bundle.contains(identity.certificate().root().der()));
        }
    }
    for handle in [&one, &other] {
        assert_eq!(
            handle
                .identity()
                .unwrap()
                .spiffe_id()
                .trust_domain()
                .as_ref(),
            "example.com"
        );
    }
    // The old domain is trusted for as long as somebody may present it, and then no longer.
    world.apply(&(OFF.to_owned() + &new)).await;
    pass(HOUR).await;
    assert_eq!(one.trust().iter().count(), 2);
    pass(DAY).await;
    assert_eq!(one.trust().iter().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn roots_reach_workloads_that_ask_for_nothing() {
    let world = World::new();
    world.apply(&classic("ca-a")).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    while tokio::time::timeout(Duration::from_secs(1), handle.changed())
        .await
        .is_ok()
    {}
    let pem = TestCa::root("partner", FakeClock::start()).unwrap().pem();
    let pem = pem.replace('\n', "\n          ");
    let trust = format!(
        "---\ntype: MeshTrust\nname: partner\nmesh: default\nspec:\n  trustDomain: partner.org\n  caBundles:\n    - type: Pem\n      pem:\n        value: |\n          {pem}\n"
    );
    world.apply(&(classic("ca-a") + &trust)).await;
    handle.changed().await.unwrap();
    let domains: Vec<_> = handle
        .trust()
        .iter()
        .map(|it| it.trust_domain().to_string())
        .collect();
    assert_eq!(domains, ["default", "partner.org"]);
    assert_eq!(world.cas.get("ca-a").times_asked(), 1);
    let partner = handle.trust().iter().last().unwrap().trust_domain().clone();
    let document = handle.mesh().spiffe_bundle(&partner).unwrap();
    let sequence = format!("\"spiffe_sequence\": {}", handle.trust_version());
    assert!(document.contains(&sequence), "{document}");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_exchanged_in_its_secret_is_noticed() {
    let world = World::new();
    let (first, second) = (
        TestCa::root("first", FakeClock::start()).unwrap(),
        TestCa::root("second", FakeClock::start()).unwrap(),
    );
    let put = async |ca: &TestCa| {
        let pairs = [("ca.crt", ca.pem()), ("ca.key", ca.key_pem().unwrap())];
        for (name, value) in pairs {
            let key = SecretKey::new("default", name).unwrap();
            let expect = match world.secrets.get(&key).await.unwrap() {
                Some(stored) => Expect::Version(stored.version),
                None => Expect::Absent,
            };
            let value = SecretValue::from(value.as_str());
            world.secrets.put(&key, value, expect).await.unwrap();
        }
    };
    put(&first).await;
    let conf = "conf: {cert: {secret: ca.crt}, key: {secret: ca.key}}";
    let mesh = classic("provided").replace("conf: {}", conf);
    world.apply(&mesh).await;
    let mut handle = world.connect("w").await;
    let root = |handle: &meshca_identity::Handle| {
        handle.identity().unwrap().certificate().root().subject()
    };
    handle.ready().await.unwrap();
    assert!(root(&handle).contains("first"));
    put(&second).await;
    world.manager.secrets_changed();
    pass(Duration::from_secs(300)).await;
    assert!(root(&handle).contains("second"), "{}", root(&handle));
    assert_eq!(handle.trust().iter().next().unwrap().roots().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn everything_has_expired_and_comes_back() {
    let world = World::new();
    world.apply(&classic("builtin")).await;
    let mut handle = world.connect("w").await;
    let before = handle.ready().await.unwrap();
    // Nobody was here for eleven years; the CA lived for ten.
    world.clock.advance(11 * 365 * DAY);
    assert_eq!(handle.health(), Health::Expired);
    pass(Duration::from_secs(600)).await;
    assert_eq!(handle.health(), Health::Fresh, "{:?}", handle.error());
    let now = handle.identity().unwrap();
    assert_ne!(
        now.certificate().root().fingerprint(),
        before.certificate().root().fingerprint()
    );
    assert!(now.certificate().validity().contains(world.clock.now()));
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_hangs_holds_up_no_other() {
    let world = World::new();
    world.cas.get("ca-a").slow(Duration::MAX / 4);
    world.apply(&classic("ca-a")).await;
    let second = resources(&classic("ca-b").replace("name: default", "name: second"));
    world.manager.apply(second).await.unwrap();
    let mut hanging = Vec::new();
    for n in 0..100 {
        hanging.push(world.connect(&format!("w-{n}")).await);
    }
    pass(Duration::from_secs(1)).await;
    let mut works = world
        .manager
        .connect("second", "w", workload("w"))
        .await
        .unwrap();
    tokio::time::timeout(Duration::from_secs(1), works.ready())
        .await
        .unwrap()
        .unwrap();
    // And one that hangs is given up on, and asked again without a herd.
    pass(HOUR).await;
    let asked = world.cas.get("ca-a").times_asked();
    assert!((16..120).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn settings_that_change_are_in_use_without_a_restart() {
    let world = World::with_ca(|_| {}).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    let ca = world.cas.get("ca-a");
    let changed = identity("id", "ca-a").replace("config: {}", "config: {x: 1}");
    world.apply(&(OFF.to_owned() + &changed)).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(ca.builds.load(Ordering::SeqCst), 2);
    assert_eq!(
        ca.times_asked(),
        1,
        "the same CA, and what it signed is still good"
    );
    // Another CA is another matter.
    world
        .apply(&(OFF.to_owned() + &identity("id", "ca-b")))
        .await;
    pass(Duration::from_secs(10)).await;
    assert_eq!(world.cas.get("ca-b").times_asked(), 1);
    assert_eq!(handle.health(), Health::Fresh);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_valid_yet_is_held_back_until_it_is() {
    let world = World::with_ca(|_| {}).await;
    pass(Duration::from_secs(1)).await;
    let ahead = Duration::from_secs(30);
    world
        .cas
        .get("ca-a")
        .issuer()
        .misbehave(Fault::NotBeforeAhead(ahead));
    let mut handle = world.connect("w").await;
    pass(Duration::from_secs(25)).await;
    assert!(handle.identity().is_none());
    let identity = handle.ready().await.unwrap();
    assert!(
        identity
            .certificate()
            .validity()
            .contains(world.clock.now())
    );
    assert_eq!(world.cas.get("ca-a").times_asked(), 1);
}
