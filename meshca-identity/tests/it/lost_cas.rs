//! CAs of the control plane itself whose secrets vanish, and clocks that are wrong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::world::*;
use meshca_core::secret::{Expect, SecretKey, SecretStore, SecretValue};
use meshca_core::{ErrorKind, MemorySecretStore, TrustDomain};
use meshca_identity::manager::Health;
use meshca_identity::{BackendKey, Handle, Manager};
use meshca_testkit::{FaultyIssuer, TokioClock};

const S: Duration = Duration::from_secs(1);

const CERTIFICATE: &str = "default.ca-builtin-cert-one";
const KEY: &str = "default.ca-builtin-key-one";
const RECORD: &str = "default.meshca-trust";

fn secret(name: &str) -> SecretKey {
    SecretKey::new("default", name).unwrap()
}

async fn delete(store: &MemorySecretStore, name: &str) -> Option<SecretValue> {
    let found = store.get(&secret(name)).await.unwrap()?;
    store.delete(&secret(name), &found.version).await.unwrap();
    Some(found.value)
}

fn root_of(handle: &Handle) -> String {
    let identity = handle.identity().unwrap();
    identity.certificate().root().fingerprint().to_owned()
}

fn trusted(manager: &Manager) -> BTreeSet<String> {
    let bundles = manager.mesh("default").trust();
    let roots = bundles.iter().flat_map(|it| it.roots().to_vec());
    roots.map(|root| root.fingerprint().to_owned()).collect()
}

/// A mesh with its own CA, and a proxy.
async fn running() -> (World, Handle) {
    let world = World::new();
    world.apply(&classic("builtin")).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    pass(HOUR).await;
    (world, handle)
}

#[tokio::test(start_paused = true)]
async fn a_ca_is_never_made_in_silence() {
    let (world, handle) = running().await;
    let told = format!(
        "has a new CA, `CN=default,OU=Mesh,O=meshca` (SHA-256 of its root: {})",
        root_of(&handle)
    );
    assert_eq!(world.log.count(&told), 1, "{:?}", world.log);
    drop(handle);
    let world = world.restarted(|_| {}).await;
    world.apply(&classic("builtin")).await;
    world.connect("w").await.ready().await.unwrap();
    assert_eq!(world.log.count("has a new CA"), 0);
}

#[tokio::test(start_paused = true)]
async fn secrets_that_are_deleted_while_it_runs_are_told_and_renewals_go_on() {
    let world = World::new();
    let daily = "type: builtin, dpCert: {rotation: {expiration: 1d}}";
    world
        .apply(&classic("builtin").replace("type: builtin", daily))
        .await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    let root = root_of(&handle);
    let (certificate, key) = (
        delete(&world.secrets, CERTIFICATE).await.unwrap(),
        delete(&world.secrets, KEY).await.unwrap(),
    );
    pass(6 * 60 * S).await;
    let told = "default: the backend `one` fails: secrets of the CA were deleted";
    assert!(world.log.count(told) > 0, "{:?}", world.log);
    let before = handle.identity().unwrap().certificate().serial().to_owned();
    for _ in 0..2 {
        pass(DAY).await;
        assert_eq!(
            (handle.health(), root_of(&handle)),
            (Health::Fresh, root.clone())
        );
    }
    assert_ne!(handle.identity().unwrap().certificate().serial(), before);
    for (name, value) in [(CERTIFICATE, certificate), (KEY, key)] {
        let name = secret(name);
        let put = world.secrets.put(&name, value, Expect::Absent);
        put.await.unwrap();
    }
    pass(60 * S).await;
    let told = world.log.count(told);
    pass(HOUR).await;
    assert_eq!(world.log.count("fails"), told, "it is well again");
}

/// A MeshIdentity whose CA is generated.
fn bundled(status: &str) -> String {
    format!(
        "{OFF}---\n{{type: MeshIdentity, name: id, mesh: default, spec: {{selector: {{dataplane: {{matchLabels: {{app: web}}}}}}, \
         spiffeID: {{trustDomain: example.org}}, provider: {{type: Bundled, bundled: {{insecureAllowSelfSigned: true, \
         autogenerate: {{enabled: true}}}}}}}}{status}}}\n"
    )
}

/// Each alone is enough.
#[tokio::test(start_paused = true)]
async fn after_a_restart_any_witness_keeps_a_ca_from_being_made_again() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Witness {
        Record,
        Announced,
        Status,
        StatusOfALostCa,
        Key,
        Certificate,
        Nothing,
    }
    use Witness::*;
    for witness in [
        Record,
        Announced,
        Status,
        StatusOfALostCa,
        Key,
        Certificate,
        Nothing,
    ] {
        let world = World::new();
        world.apply(&bundled("")).await;
        let mut handle = world.connect("w").await;
        handle.ready().await.unwrap();
        let old = root_of(&handle);
        pass(HOUR).await;
        let written = world.manager.mesh("default").mesh_trusts();
        drop(handle);
        let world = world.restarted(|_| {}).await;
        for (name, kept) in [
            ("id-root-ca", Certificate),
            ("id-private-key", Key),
            (RECORD, Record),
        ] {
            if witness != kept {
                delete(&world.secrets, name).await.unwrap();
            }
        }
        let status = match witness {
            Status => {
                ", status: {conditions: [{type: Provider, status: 'True', reason: ProviderInitialized}]}"
            }
            StatusOfALostCa => {
                ", status: {conditions: [{type: Provider, status: 'False', reason: ProviderCaLost}]}"
            }
            _ => {
                ", status: {conditions: [{type: Provider, status: 'False', reason: ProviderInitializationError}]}"
            }
        };
        let mut all = resources(&bundled(status));
        if witness == Announced {
            all.trusts = written.to_vec();
        }
        world.manager.apply(all.clone()).await.unwrap();
        let mut handle = world.connect("w").await;
        pass(HOUR).await;
        if witness == Nothing {
            assert!(handle.identity().is_some());
            assert_eq!(world.log.count("has a new CA"), 1);
            continue;
        }
        assert!(handle.identity().is_none(), "{witness:?}");
        assert_eq!(world.log.count("has a new CA"), 0, "{witness:?}");
        let says = |part: &str| {
            let statuses = world.manager.mesh("default").identity_statuses();
            let provider = statuses[0].condition("Provider").unwrap();
            assert!(
                provider.to_string().contains(part),
                "{witness:?}: {provider}"
            );
            assert!(world.log.count(part) > 0, "{witness:?}: {part}");
        };
        for part in [
            "the CA existed (",
            "id-root-ca",
            "id-private-key",
            "Manager::confirm_new_ca",
        ] {
            says(part);
        }
        // The status that is written now does not make it forget.
        all.identities[0].status = Default::default();
        all.trusts.clear();
        world.manager.apply(all).await.unwrap();
        pass(HOUR).await;
        assert!(handle.identity().is_none(), "{witness:?}");

        let key = BackendKey::Modern("id".to_owned());
        world
            .manager
            .confirm_new_ca("default", &key, "Jo: the backup is lost")
            .await
            .unwrap();
        handle.ready().await.unwrap();
        assert_eq!(
            world
                .log
                .count("a new CA for the MeshIdentity `id` was confirmed (Jo: the backup is lost)"),
            1,
            "{:?}",
            world.log
        );
        assert_eq!(world.log.count("has a new CA"), 1);
        assert_ne!(root_of(&handle), old);
        assert_eq!(
            trusted(&world.manager).contains(&old),
            matches!(witness, Record | Announced | Certificate),
            "{witness:?}"
        );
        // It is confirmed once.
        let error = world
            .manager
            .confirm_new_ca("default", &key, "again")
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let world = world.restarted(|_| {}).await;
        for name in [
            "id-root-ca",
            "id-private-key",
            "id-root-ca.g2",
            "id-private-key.g2",
        ] {
            delete(&world.secrets, name).await;
        }
        world.manager.apply(resources(&bundled(""))).await.unwrap();
        let handle = world.connect("w").await;
        pass(HOUR).await;
        assert!(handle.identity().is_none(), "{witness:?}");
    }
}

/// Each secret alone is enough, in both models, and what is deleted can be restored. The state of the
/// rotation is there where certificates live for longer than 30 days.
#[tokio::test(start_paused = true)]
async fn each_secret_that_is_left_keeps_a_ca_from_being_made_again() {
    let long = "type: builtin, dpCert: {rotation: {expiration: 40d}}";
    let classic = classic("builtin").replace("type: builtin", long);
    let modern = bundled("").replace(
        "autogenerate:",
        "certificateParameters: {expiry: 960h}, autogenerate:",
    );
    for (text, certificate, key) in [
        (classic, CERTIFICATE, KEY),
        (modern, "id-root-ca", "id-private-key"),
    ] {
        let rotation = format!("{certificate}.rotation");
        let all = [certificate, key, &rotation, RECORD];
        for witness in all {
            let what = format!("{witness} of {certificate}");
            let world = World::new();
            world.apply(&text).await;
            let mut handle = world.connect("w").await;
            handle.ready().await.unwrap();
            let old = root_of(&handle);
            pass(HOUR).await;
            drop(handle);
            let world = world.restarted(|_| {}).await;
            let mut kept = Vec::new();
            for name in all.into_iter().filter(|name| *name != witness) {
                let value = delete(&world.secrets, name).await;
                kept.push((name, value.expect(&what)));
            }
            world.apply(&text).await;
            let mut handle = world.connect("w").await;
            pass(HOUR).await;
            assert!(handle.identity().is_none(), "{what}");
            assert_eq!(world.log.count("has a new CA"), 0, "{what}");
            for part in [
                "the CA existed (",
                "restore the secrets",
                certificate,
                key,
                &rotation,
                "Manager::confirm_new_ca",
            ] {
                assert!(world.log.count(part) > 0, "{what}: {part}: {:?}", world.log);
            }

            for (name, value) in kept {
                let name = secret(name);
                // The record is written anew while the CA is gone.
                let _ = world.secrets.put(&name, value, Expect::Absent).await;
            }
            handle.ready().await.unwrap();
            assert_eq!(root_of(&handle), old, "{what}");
        }
    }
}

/// The roots in the record.
async fn recorded(world: &World) -> String {
    let found = world.secrets.get(&secret(RECORD)).await.unwrap().unwrap();
    found.value.expose_str().unwrap().to_owned()
}

fn another(world: &World) -> Arc<FaultyIssuer> {
    let domain = TrustDomain::new("default").unwrap();
    Arc::new(FaultyIssuer::new(domain, Arc::new(world.clock.clone())).unwrap())
}

/// Two replicas, of which one has a clock that is days ahead. Certificates of the old CA live until
/// tomorrow.
#[tokio::test(start_paused = true)]
async fn a_replica_whose_clock_is_ahead_ends_no_trust() {
    let right = World::new();
    right.apply(&classic("ca-a")).await;
    let mut handle = right.connect("w").await;
    handle.ready().await.unwrap();
    let old = root_of(&handle);
    pass(HOUR).await;
    let new = another(&right);
    right.cas.get("ca-a").exchange(new, Vec::new());
    pass(HOUR).await;
    assert_ne!(root_of(&handle), old);
    let both = trusted(&right.manager);
    assert_eq!(both.len(), 2);

    let clock = TokioClock::new();
    clock.advance(10 * DAY + 2 * HOUR);
    let wrong = World::on(clock, right.secrets.clone(), right.cas.clone(), |_| {});
    wrong.apply(&classic("ca-a")).await;
    let _w = wrong.connect("w2").await;
    pass(12 * HOUR).await;
    assert_eq!(trusted(&wrong.manager), both);
    assert_eq!(trusted(&right.manager), both);
    assert_eq!(wrong.log.count("no root is removed"), 1, "{:?}", wrong.log);
    assert_eq!(right.log.count("no root is removed"), 0);
    // A third one starts from what is recorded.
    let third = World::on(
        right.clock.clone(),
        right.secrets.clone(),
        right.cas.clone(),
        |_| {},
    );
    third.apply(&classic("ca-a")).await;
    assert_eq!(trusted(&third.manager), both);
    assert_eq!(recorded(&right).await.matches("signed").count(), 2);

    // The clock is set right, and all forget it in time.
    wrong.clock.set_back(10 * DAY + 2 * HOUR);
    pass(4 * DAY).await;
    for world in [&right, &wrong, &third] {
        assert_eq!(trusted(&world.manager).len(), 1, "{:?}", world.log);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_ahead_ends_no_trust() {
    let world = World::new();
    world.apply(&classic("ca-a")).await;
    let mut handle = world.connect("w").await;
    handle.ready().await.unwrap();
    pass(HOUR).await;
    world.cas.get("ca-a").exchange(another(&world), Vec::new());
    pass(HOUR).await;
    let both = trusted(&world.manager);
    assert_eq!(both.len(), 2);
    world.clock.advance(100 * DAY);
    pass(HOUR).await;
    assert_eq!(trusted(&world.manager), both);
    assert_eq!(world.log.count("no root is removed"), 1, "{:?}", world.log);
    world.clock.set_back(100 * DAY);
    pass(12 * HOUR).await;
    assert_eq!(trusted(&world.manager), both);
    pass(3 * DAY).await;
    assert_eq!(trusted(&world.manager).len(), 1);
}

/// A control plane that was off for months knows what it was told, and not what happened since.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_right_after_a_long_time_is_believed_in_the_end() {
    let world = World::new();
    world.apply(&classic("ca-a")).await;
    world.connect("w").await.ready().await.unwrap();
    pass(HOUR).await;
    world.cas.get("ca-a").exchange(another(&world), Vec::new());
    let World {
        driver,
        clock,
        secrets,
        cas,
        ..
    } = world;
    driver.stop().await.unwrap();
    pass(60 * DAY).await;
    let world = World::on(clock, secrets, cas, |_| {});
    world.apply(&classic("ca-a")).await;
    let _w = world.connect("w").await;
    pass(29 * DAY).await;
    assert_eq!(trusted(&world.manager).len(), 2);
    assert_eq!(world.log.count("no root is removed"), 1);
    pass(2 * DAY).await;
    assert_eq!(trusted(&world.manager).len(), 1);
}

/// Its CA was replaced, and it cannot be renewed. What it holds is worth nothing.
#[tokio::test(start_paused = true)]
async fn an_identity_that_has_ended_keeps_no_root() {
    let world = World::with_ca(|_| {}).await;
    let mut stuck = world.connect("w").await;
    stuck.ready().await.unwrap();
    let old = root_of(&stuck);
    pass(HOUR).await;
    let domain = TrustDomain::new("example.org").unwrap();
    let new = FaultyIssuer::new(domain, Arc::new(world.clock.clone())).unwrap();
    let ca = world.cas.get("ca-a");
    ca.down(Some(ErrorKind::Denied));
    ca.exchange(Arc::new(new), Vec::new());
    pass(4 * DAY).await;
    assert_eq!(stuck.health(), Health::Expired);
    assert!(!trusted(&world.manager).contains(&old));
}

/// A clock that is ahead takes a CA a step further, is set further ahead, and right again within hours.
#[tokio::test(start_paused = true)]
async fn a_doubted_clock_forgets_no_former_ca() {
    let built_in = classic("builtin").replace(
        "type: builtin, conf: {}",
        "type: builtin, dpCert: {rotation: {expiration: 6h}}, conf: {caCert: {expiration: 48h}}",
    );
    let slowly = |options: &mut meshca_identity::ManagerOptions| options.trust_refresh = 600 * S;
    let right = World::with(slowly);
    right.apply(&built_in).await;
    let mut handle = right.connect("w").await;
    handle.ready().await.unwrap();
    let clock = TokioClock::new();
    let wrong = World::on(clock, right.secrets.clone(), right.cas.clone(), slowly);
    wrong.apply(&built_in).await;
    pass(HOUR).await;
    for ahead in [10 * DAY, 75 * DAY] {
        wrong.clock.advance(ahead);
        pass(2 * HOUR).await;
    }
    assert!(wrong.log.count("signs with its next CA") > 0);
    assert!(wrong.log.count("no root is removed") > 0);
    wrong.clock.set_back(85 * DAY);
    for hour in 0..96 {
        pass(HOUR).await;
        assert_eq!(
            handle.health(),
            Health::Fresh,
            "hour {hour}: {:?}",
            handle.error()
        );
    }
}
