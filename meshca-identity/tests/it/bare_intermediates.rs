//! CAs that have an intermediate and not its root: Envoy accepts nothing below them until the root is
//! in the trust of their mesh.

use std::time::Duration;

use crate::world::{DAY, HOUR, OFF, World, identity, pass};
use meshca_core::{Expect, SecretKey, SecretStore, SecretValue, TrustDomain};
use meshca_identity::manager::{Assignment, Health};
use meshca_identity::{BackendKey, Handle, ManagerOptions};
use meshca_testkit::FakeClock;
use meshca_testkit::pki::{TestCa, TestCaOptions};

const S: Duration = Duration::from_secs(1);

const CLASSIC: &str = "{type: Mesh, name: default, mtls: {enabledBackend: one, backends: [{name: one, \
    type: provided, conf: {cert: {secret: ca.crt}, key: {secret: ca.key}}}]}}\n";

/// A mesh whose MeshIdentity has the CA of the secrets.
fn modern(creation: &str) -> String {
    let source =
        |name: &str| format!("{{type: Secret, secretRef: {{kind: Secret, name: {name}}}}}");
    let (certificate, key) = (source("ca.crt"), source("ca.key"));
    format!(
        "{OFF}---\n{{type: MeshIdentity, name: id, mesh: default, spec: {{selector: {{dataplane: {{matchLabels: {{}}}}}}, \
         spiffeID: {{trustDomain: default}}, provider: {{type: Bundled, bundled: {{meshTrustCreation: {creation}, \
         autogenerate: {{enabled: false}}, ca: {{certificate: {certificate}, privateKey: {key}}}}}}}}}}}\n"
    )
}

/// A MeshTrust of an operator.
fn trusting(name: &str, pem: &str) -> String {
    let pem = pem.trim_end().replace('\n', "\n          ");
    format!(
        "---\ntype: MeshTrust\nname: {name}\nmesh: default\nspec:\n  trustDomain: default\n  caBundles:\n    - type: Pem\n      pem:\n        value: |\n          {pem}\n"
    )
}

/// A company's root, and the CA of the mesh below it, without it.
struct Corporate {
    world: World,
    root: TestCa,
    ca: TestCa,
}

impl Corporate {
    async fn with(change: impl FnOnce(&mut ManagerOptions)) -> Self {
        let root = TestCa::root("corporate root", FakeClock::start()).unwrap();
        Self::below(root, false, change).await
    }

    async fn below(
        root: TestCa,
        with_root: bool,
        change: impl FnOnce(&mut ManagerOptions),
    ) -> Self {
        let world = World::with(change);
        let ca = root.intermediate("mesh ca").unwrap();
        let chain = match with_root {
            true => ca.chain_pem(),
            false => ca.pem(),
        };
        let pairs = [("ca.crt", chain), ("ca.key", ca.key_pem().unwrap())];
        for (name, value) in pairs {
            let key = SecretKey::new("default", name).unwrap();
            let value = SecretValue::from(value.as_str());
            world
                .secrets
                .put(&key, value, Expect::Absent)
                .await
                .unwrap();
        }
        Self { world, root, ca }
    }

    /// The text of the conditions of the MeshIdentity.
    fn status(&self) -> String {
        let statuses = self.world.manager.mesh("default").identity_statuses();
        let conditions = statuses.iter().flat_map(|it| &it.conditions);
        conditions.map(|it| format!("{it}\n")).collect()
    }

    async fn is_ready(&self) -> bool {
        let observed = self.world.manager.observe("default").await.unwrap();
        !observed.ready.is_empty()
    }

    /// Peers are proven by what is published, as Envoy proves them.
    fn is_served(&self, handle: &Handle) {
        let identity = handle.identity().unwrap();
        let certificate = identity.certificate();
        assert_eq!(certificate.root().der(), self.root.certificate());
        assert_eq!(certificate.chain()[1..], [self.ca.certificate().clone()]);
        let trust = handle.trust();
        let bundle = trust.for_peer(identity.spiffe_id()).unwrap();
        assert!(bundle.ends().any(|end| end == certificate.root()));
    }
}

#[tokio::test(start_paused = true)]
async fn issues_with_its_root_in_a_mesh_trust_and_only_then() {
    for (what, text) in [
        ("classic", CLASSIC.to_owned()),
        ("modern", modern("Enabled")),
        ("distributed by an operator", modern("Disabled")),
    ] {
        let it = Corporate::with(|_| {}).await;
        let is_modern = what != "classic";
        it.world.apply(&text).await;
        let mut first = it.world.connect("first").await;
        pass(HOUR).await;
        assert!(first.identity().is_none(), "{what}");
        assert_eq!(first.assignment(), Assignment::Waiting, "{what}");
        let error = first.error().unwrap().to_string();
        let way_out = "`CN=mesh ca` in the trust bundle is an intermediate, and Envoy accepts no chain that ends in one; \
            add its root to the bundle, for which the certificate of `CN=corporate root` is missing. Put it into a MeshTrust of the trust domain `default`";
        assert!(error.contains(way_out), "{what}: {error}");
        assert!(!it.is_ready().await, "{what}");
        assert_eq!(it.world.log.count(way_out), 1, "{what}: {:?}", it.world.log);
        assert_eq!(
            it.world.log.count("is ready"),
            0,
            "{what}: {:?}",
            it.world.log
        );
        if is_modern {
            let status = it.status();
            let provider = "Provider=False ProviderValidationError: ";
            assert!(status.contains(provider), "{what}: {status}");
            assert!(status.contains(way_out), "{what}: {status}");
            assert!(status.contains("Ready=False"), "{what}: {status}");
        }

        // A root of the same name is not that root.
        let namesake = TestCa::root("corporate root", FakeClock::start()).unwrap();
        let namesake = trusting("namesake", &namesake.pem());
        it.world.apply(&(text.clone() + &namesake)).await;
        pass(HOUR).await;
        assert!(first.identity().is_none(), "{what}");

        let with_root = text.clone() + &trusting("corporate", &it.root.pem());
        it.world.apply(&with_root).await;
        first.ready().await.unwrap();
        it.is_served(&first);
        assert!(it.is_ready().await, "{what}");
        assert_eq!(
            it.world.log.count("is ready"),
            1,
            "{what}: {:?}",
            it.world.log
        );
        if is_modern {
            let status = it.status();
            assert!(status.contains("Provider=True"), "{what}: {status}");
            assert!(status.contains("Ready=True"), "{what}: {status}");
        }
        let before = first.identity().unwrap().certificate().serial().to_owned();
        // It is renewed, and costs one certificate each time.
        pass(DAY).await;
        let after = first.identity().unwrap().certificate().serial().to_owned();
        assert_ne!(before, after, "{what}");
        assert!(
            it.world.log.count("renewed") <= 2,
            "{what}: {:?}",
            it.world.log
        );
        it.is_served(&first);

        // Taken away again: what was handed out stays good, and no more of it is.
        it.world.apply(&text).await;
        let second = it.world.connect("second").await;
        pass(S).await;
        it.is_served(&first);
        assert!(second.identity().is_none(), "{what}");
        assert!(!it.is_ready().await, "{what}");
        if is_modern {
            assert!(it.status().contains("Ready=False"), "{what}");
        }
        it.world.apply(&with_root).await;
        pass(60 * S).await;
        it.is_served(&second);
        assert_eq!(first.health(), Health::Fresh, "{what}");
        let kept = first.identity().unwrap().certificate().serial().to_owned();
        assert_eq!(kept, after, "{what}: it was issued again for nothing");

        it.world.apply(&text).await;
        pass(3 * DAY).await;
        let bundles = it.world.manager.mesh("default").trust();
        let domain = TrustDomain::new("default").unwrap();
        let held = bundles.get(&domain);
        assert!(
            held.is_none_or(|held| !held.contains(it.root.certificate())),
            "{what}: nothing needs the root any more"
        );
    }
}

/// Proxies are asked for the root, not only for what the CA names.
#[tokio::test(start_paused = true)]
async fn its_root_waits_for_acknowledgements() {
    let it = Corporate::with(|options| options.acknowledgements = true).await;
    it.world.apply(CLASSIC).await;
    let mut handle = it.world.connect("w").await;
    pass(S).await;
    handle.acknowledge(handle.trust_version());
    let with_root = CLASSIC.to_owned() + &trusting("corporate", &it.root.pem());
    it.world.apply(&with_root).await;
    pass(HOUR).await;
    assert!(handle.identity().is_none());
    handle.acknowledge(handle.trust_version());
    handle.ready().await.unwrap();
    it.is_served(&handle);
}

/// Another CA of the mesh may bring the root.
#[tokio::test(start_paused = true)]
async fn the_root_of_another_ca_of_the_mesh_will_do() {
    let it = Corporate::with(|_| {}).await;
    let put = async |name: &str, value: &str| {
        let key = SecretKey::new("default", name).unwrap();
        let value = SecretValue::from(value);
        it.world.secrets.put(&key, value, Expect::Absent).await
    };
    let other = it.root.intermediate("other ca").unwrap();
    let text = "{type: Mesh, name: default, mtls: {enabledBackend: one, backends: [\
        {name: one, type: provided, conf: {cert: {secret: ca.crt}, key: {secret: ca.key}}}, \
        {name: two, type: provided, conf: {cert: {secret: other.crt}, key: {secret: other.key}}}]}}";
    it.world.apply(text).await;
    let mut handle = it.world.connect("w").await;
    pass(HOUR).await;
    assert!(handle.identity().is_none());
    put("other.crt", &(other.pem() + &it.root.pem()))
        .await
        .unwrap();
    put("other.key", &other.key_pem().unwrap()).await.unwrap();
    it.world.manager.secrets_changed();
    pass(HOUR).await;
    handle.ready().await.unwrap();
    it.is_served(&handle);
}

/// For meshes without Envoy.
#[tokio::test(start_paused = true)]
async fn partial_chains_are_a_setting_of_the_manager() {
    let it = Corporate::with(|options| options.allow_partial_chains = true).await;
    it.world.apply(&modern("Enabled")).await;
    let mut handle = it.world.connect("w").await;
    let identity = handle.ready().await.unwrap();
    assert_eq!(identity.certificate().root().der(), it.ca.certificate());
    assert!(it.status().contains("Ready=True"));
    let observed = it.world.manager.observe("default").await.unwrap();
    assert!(
        observed
            .ready
            .contains(&BackendKey::Modern("id".to_owned()))
    );
    // Peers follow.
    let trust = handle.trust();
    let bundle = trust.for_peer(identity.spiffe_id()).unwrap();
    assert_eq!(bundle.ends().count(), 1);
    pass(3 * DAY).await;
    assert_eq!(handle.health(), Health::Fresh);
}

/// A CA elsewhere that does not have its root signs the CA of the control plane.
#[tokio::test(start_paused = true)]
async fn a_ca_below_a_bare_intermediate_is_ready_when_its_root_is_known() {
    let it = Corporate::with(|_| {}).await;
    let text = identity("id", "held")
        .replace("config: {}", "config: {mode: Intermediate}")
        .replace("trustDomain: example.org", "trustDomain: default");
    let text = OFF.to_owned() + &text;
    it.world.apply(&text).await;
    let mut first = it.world.connect("first").await;
    pass(HOUR).await;
    assert!(first.identity().is_none());
    assert!(!it.is_ready().await);
    let status = it.status();
    assert!(
        status.contains("for which the certificate of `CN=corporate root` is missing"),
        "{status}"
    );
    let text = text + &trusting("corporate", &it.root.pem());
    it.world.apply(&text).await;
    first.ready().await.unwrap();
    assert!(it.is_ready().await);
    let identity = first.identity().unwrap();
    let certificate = identity.certificate();
    assert_eq!(certificate.root().der(), it.root.certificate());
    assert_eq!(certificate.chain().len(), 3);
    assert_eq!(&certificate.chain()[2], it.ca.certificate());
}

/// Roots as old companies have them: in the chain of the CA, or in a MeshTrust beside it.
#[tokio::test(start_paused = true)]
async fn old_roots_are_roots() {
    let options = || TestCaOptions::new("old root", FakeClock::start());
    for (what, options) in [
        ("version 1", options().with_version_1()),
        ("SHA-1", options().with_sha1()),
        ("both", options().with_version_1().with_sha1()),
    ] {
        for with_root in [true, false] {
            for text in [CLASSIC.to_owned(), modern("Enabled")] {
                let root = TestCa::root_with(options.clone()).unwrap();
                let it = Corporate::below(root, with_root, |_| {}).await;
                let text = match with_root {
                    true => text,
                    false => text + &trusting("corporate", &it.root.pem()),
                };
                it.world.apply(&text).await;
                let mut handle = it.world.connect("first").await;
                let ready = tokio::time::timeout(HOUR, handle.ready()).await;
                ready
                    .unwrap_or_else(|_| panic!("{what}: {:?}", it.world.log))
                    .unwrap();
                it.is_served(&handle);
            }
        }
    }
}
