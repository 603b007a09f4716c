//! CAs whose secrets vanish, under a control plane that runs and before one that starts.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{DAY, FakeClock, HOUR, domain, spec, start};
use meshca_core::builtin::delegated::{DelegatedIssuer, DelegatedSecrets, DelegatedSettings};
use meshca_core::builtin::{
    BuiltinIssuer, CaSecrets, CaSettings, NewCa, RELOAD_INTERVAL, RotationStep,
};
use meshca_core::registry::{BackendConfig, BuildContext, BuiltIssuer, IssuerFactory};
use meshca_core::resource::{
    BuiltinConf, Bundled, BundledCa, Extension, ExtensionMode, FreeForm, IdentityProvider,
    MeshIdentity, Metadata, Provider,
};
use meshca_core::{
    BackendRegistry, CaRotation as _, Clock, Error, ErrorKind, Expect, Issuer, IssuingCa,
    MemorySecretStore, Result, SecretKey, SecretStore, SecretValue, TrustDomain,
};

const SECOND: Duration = Duration::from_secs(1);

const CERTIFICATE: &str = "default.ca-builtin-cert-ca-1";
const KEY: &str = "default.ca-builtin-key-ca-1";
const CERTIFICATE_2: &str = "default.ca-builtin-cert-ca-1.g2";
const KEY_2: &str = "default.ca-builtin-key-ca-1.g2";
const ROTATION: &str = "default.ca-builtin-cert-ca-1.rotation";

type Store = Arc<MemorySecretStore>;

fn name(name: &str) -> SecretKey {
    SecretKey::new("default", name).unwrap()
}

async fn get(store: &Store, of: &str) -> Option<SecretValue> {
    store.get(&name(of)).await.unwrap().map(|found| found.value)
}

async fn delete(store: &Store, of: &str) -> SecretValue {
    let found = store.get(&name(of)).await.unwrap().unwrap();
    store.delete(&name(of), &found.version).await.unwrap();
    found.value
}

async fn put(store: &Store, of: &str, value: SecretValue) {
    store.put(&name(of), value, Expect::Absent).await.unwrap();
}

fn settings(new_ca: NewCa) -> CaSettings {
    let secrets = CaSecrets::for_backend("default", "ca-1").unwrap();
    CaSettings::new(domain(), secrets).with_new_ca(new_ca)
}

async fn load(store: &Store, clock: &FakeClock, new_ca: NewCa) -> Result<IssuingCa<BuiltinIssuer>> {
    let (store, clock) = (store.clone(), Arc::new(clock.clone()));
    let issuer = BuiltinIssuer::load_or_create(settings(new_ca), store, clock).await;
    issuer.map(IssuingCa::new)
}

/// A CA that was rotated once, so that its second generation signs and its first is still trusted.
async fn rotated(clock: &FakeClock) -> (Store, IssuingCa<BuiltinIssuer>) {
    let store = Store::default();
    let issuer = load(&store, clock, NewCa::IfNoneExisted).await.unwrap();
    issuer.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    issuer.activate_next().await.unwrap();
    (store, issuer)
}

async fn root_of<I: Issuer>(issuer: &IssuingCa<I>, clock: &FakeClock) -> String {
    let identity = issuer.issue(&spec(), clock).await.unwrap();
    identity.certificate().root().fingerprint().to_owned()
}

/// What is left of a CA, and what that shows.
#[tokio::test]
async fn a_ca_that_existed_is_not_made_again() {
    let existed = || NewCa::Existed("the trust record has its root".to_owned());
    let default = NewCa::default;
    let first: &[(&[&str], NewCa, &str)] = &[
        (
            &[CERTIFICATE],
            default(),
            "its key is there, and its certificate is not",
        ),
        (
            &[KEY],
            default(),
            "its certificate is there, and its key is not",
        ),
        (
            &[CERTIFICATE, KEY],
            existed(),
            "the trust record has its root",
        ),
        (
            &[CERTIFICATE, KEY],
            NewCa::Forbidden,
            "makes none on its own",
        ),
    ];
    let second: &[(&[&str], NewCa, &str)] = &[
        (
            &[CERTIFICATE_2, KEY_2],
            default(),
            "names it as the one that signs",
        ),
        (&[CERTIFICATE_2], default(), "its key is there"),
        (&[KEY_2], default(), "its certificate is there"),
        (
            &[CERTIFICATE_2, KEY_2],
            NewCa::Forbidden,
            "names it as the one that signs",
        ),
        (
            &[CERTIFICATE, KEY, ROTATION, CERTIFICATE_2, KEY_2],
            existed(),
            "trust record",
        ),
    ];
    for (is_rotated, (gone, new_ca, why)) in first
        .iter()
        .map(|case| (false, case))
        .chain(second.iter().map(|case| (true, case)))
    {
        let clock = FakeClock::new();
        let store = match is_rotated {
            true => rotated(&clock).await.0,
            false => {
                let store = Store::default();
                load(&store, &clock, NewCa::default()).await.unwrap();
                store
            }
        };
        for name in *gone {
            delete(&store, name).await;
        }
        let error = load(&store, &clock, new_ca.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let said = error.to_string();
        let (certificate, key) = match gone.contains(&ROTATION) || !is_rotated {
            true => (CERTIFICATE, KEY),
            false => (CERTIFICATE_2, KEY_2),
        };
        for part in [why, certificate, key, ROTATION, "Manager::confirm_new_ca"] {
            assert!(said.contains(part), "{gone:?}: no `{part}` in {said}");
        }
        for name in *gone {
            assert!(get(&store, name).await.is_none(), "{name} was written");
        }
    }
}

#[tokio::test]
async fn a_ca_is_made_where_none_existed_and_its_root_is_told() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let forbidden = load(&store, &clock, NewCa::Forbidden).await.unwrap_err();
    assert!(get(&store, KEY).await.is_none(), "{forbidden}");
    let made = load(&store, &clock, NewCa::default()).await.unwrap();
    let root = made.new_root().unwrap().fingerprint().to_owned();
    assert_eq!(root_of(&made, &clock).await, root);
    for new_ca in [NewCa::default(), NewCa::Forbidden, NewCa::Confirmed] {
        let loaded = load(&store, &clock, new_ca).await.unwrap();
        assert!(loaded.new_root().is_none());
        assert_eq!(root_of(&loaded, &clock).await, root);
    }
    assert!(
        get(&store, "default.ca-builtin-cert-ca-1.new")
            .await
            .is_none()
    );

    // The first start of a control plane that makes none on its own.
    let empty = Store::default();
    let confirmed = load(&empty, &clock, NewCa::Confirmed).await.unwrap();
    assert!(confirmed.new_root().is_some());
    assert!(get(&empty, KEY).await.is_some());
}

/// A new number, so that nothing is taken for what it is not; what is left stays trusted.
#[tokio::test]
async fn a_confirmed_ca_takes_the_place_of_a_lost_one() {
    for (gone, old_root_stays) in [
        (&[CERTIFICATE_2, KEY_2][..], false),
        (&[KEY_2], true),
        (&[CERTIFICATE_2], false),
        // The first one is only trusted by now, and its root is lost.
        (&[CERTIFICATE_2, KEY_2, CERTIFICATE], false),
    ] {
        let clock = FakeClock::new();
        let (store, former) = rotated(&clock).await;
        let old = root_of(&former, &clock).await;
        for name in gone {
            delete(&store, name).await;
        }
        let left: Vec<_> = {
            let mut left = Vec::new();
            for name in [CERTIFICATE_2, KEY_2] {
                left.push(get(&store, name).await);
            }
            left
        };
        let issuer = load(&store, &clock, NewCa::Confirmed).await.unwrap();
        let new = issuer.new_root().unwrap().clone();
        assert_eq!(root_of(&issuer, &clock).await, new.fingerprint());
        assert!(new.subject().contains("G3"), "{}", new.subject());
        let bundle = issuer.trust_bundle().await.unwrap();
        let has = |root: &str| bundle.roots().iter().any(|it| it.fingerprint() == root);
        assert!(has(new.fingerprint()));
        assert_eq!(has(&old), old_root_stays, "{gone:?}");
        for (name, before) in [CERTIFICATE_2, KEY_2].iter().zip(left) {
            assert!(get(&store, name).await == before, "{name} was touched");
        }
        // Everybody else takes it as well, without a confirmation.
        let replica = load(&store, &clock, NewCa::default()).await.unwrap();
        assert_eq!(root_of(&replica, &clock).await, new.fingerprint());
        clock.advance(40 * DAY);
        issuer.retire().await.unwrap();
        assert_eq!(issuer.trust_bundle().await.unwrap().roots().len(), 1);
    }
}

/// Proxies trust it already.
#[tokio::test]
async fn a_confirmed_ca_is_the_next_one_if_there_is_one() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let issuer = load(&store, &clock, NewCa::default()).await.unwrap();
    let prepared = issuer.prepare_next().await.unwrap();
    for name in [CERTIFICATE, KEY] {
        delete(&store, name).await;
    }
    let issuer = load(&store, &clock, NewCa::Confirmed).await.unwrap();
    assert!(issuer.new_root().is_none());
    let root = root_of(&issuer, &clock).await;
    assert!(prepared.roots().iter().any(|it| it.fingerprint() == root));
}

/// A crash between the two writes of the first CA.
#[tokio::test]
async fn a_ca_that_was_being_made_is_finished() {
    let (store, clock) = (Store::default(), FakeClock::new());
    load(&store, &clock, NewCa::default()).await.unwrap();
    let key = get(&store, KEY).await;
    delete(&store, CERTIFICATE).await;
    let mark = "default.ca-builtin-cert-ca-1.new";
    put(&store, mark, "this CA is being made".into()).await;
    let issuer = load(&store, &clock, NewCa::default()).await.unwrap();
    assert!(issuer.new_root().is_some());
    assert!(get(&store, KEY).await == key);
    assert!(get(&store, mark).await.is_none());
}

/// It says so, and signs with what it has, for as long as that lives.
#[tokio::test]
async fn a_ca_whose_secrets_are_deleted_signs_on_and_says_so() {
    for gone in [
        &[CERTIFICATE_2, KEY_2][..],
        &[KEY_2],
        &[CERTIFICATE_2],
        &[ROTATION],
        &[CERTIFICATE],
        &[CERTIFICATE, KEY, ROTATION, CERTIFICATE_2, KEY_2],
    ] {
        let clock = FakeClock::new();
        let (store, issuer) = rotated(&clock).await;
        let root = root_of(&issuer, &clock).await;
        let bundle = issuer.trust_bundle().await.unwrap();
        let mut deleted = Vec::new();
        for name in gone {
            deleted.push((name, delete(&store, name).await));
        }
        clock.advance(RELOAD_INTERVAL);
        assert_eq!(issuer.trust_bundle().await.unwrap(), bundle);
        let error = issuer.lost().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let said = error.to_string();
        for part in ["were deleted", CERTIFICATE_2, KEY_2, ROTATION] {
            assert!(said.contains(part), "no `{part}` in {said}");
        }
        issuer.check().await.unwrap_err();
        // Longer than the longest leaf: nothing was rotated meanwhile.
        for _ in 0..50 {
            clock.advance(DAY);
            let leaf = issuer
                .issue(&spec().with_lifetime(DAY), &clock)
                .await
                .unwrap();
            let validity = leaf.certificate().validity();
            assert_eq!(validity.remaining(clock.now()), DAY);
            let signed_by = leaf.certificate().root().fingerprint();
            assert_eq!(signed_by, root, "{gone:?}");
            if gone != [CERTIFICATE] {
                issuer.lost().unwrap();
            }
        }
        for (name, value) in deleted {
            put(&store, name, value).await;
        }
        clock.advance(10 * SECOND);
        let now = issuer.trust_bundle().await.unwrap();
        assert!(now.roots().iter().all(|it| bundle.contains(it.der())));
        assert!(issuer.lost().is_none());
        issuer.check().await.unwrap();
    }
}

/// It need not be restored before it ends.
#[tokio::test]
async fn a_ca_whose_secrets_are_deleted_is_replaced_by_its_next_one() {
    let clock = FakeClock::new();
    let (store, issuer) = rotated(&clock).await;
    let old = root_of(&issuer, &clock).await;
    delete(&store, CERTIFICATE_2).await;
    delete(&store, KEY_2).await;
    clock.advance(RELOAD_INTERVAL);
    issuer.prepare_next().await.unwrap();
    issuer.reload().await.unwrap_err();
    assert_eq!(root_of(&issuer, &clock).await, old);
    clock.advance(RELOAD_INTERVAL);
    issuer.activate_next().await.unwrap();
    let new = root_of(&issuer, &clock).await;
    assert_ne!(new, old);
    let restarted = load(&store, &clock, NewCa::default()).await.unwrap();
    for issuer in [&issuer, &restarted] {
        let trusted = issuer.trust_bundle().await.unwrap();
        for root in [&new, &old] {
            assert!(trusted.roots().iter().any(|it| it.fingerprint() == root));
        }
    }
}

/// Each generation has a name of its own, so peers that choose an anchor by name cannot take it.
#[tokio::test]
async fn a_next_root_that_is_not_valid_yet_stops_nobody() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let issuer = load(&store, &clock, NewCa::default()).await.unwrap();
    let ahead = FakeClock::new();
    ahead.advance(2 * HOUR);
    let replica = load(&store, &ahead, NewCa::default()).await.unwrap();
    replica.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    let bundle = issuer.trust_bundle().await.unwrap();
    assert_eq!(bundle.roots().len(), 2);
    let next = &bundle.roots()[1];
    assert!(next.validity().not_before() > clock.now());
    assert_ne!(next.subject(), bundle.roots()[0].subject());
    let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
    let request = meshca_core::CertificateRequest::for_key(spec(), &key, clock.now()).unwrap();
    let signed = issuer.sign(&request).await.unwrap();
    // As a peer verifies it, not as this process knows it.
    let seen = meshca_core::SignedChain::new(signed.certificates().to_vec());
    seen.verify(&request, &bundle, clock.now()).unwrap();
    let fresh = load(&store, &clock, NewCa::default()).await.unwrap();
    fresh.issue(&spec(), &clock).await.unwrap();
}

fn autogenerated() -> BackendConfig {
    let bundled = Bundled::self_signed(BundledCa::Autogenerate);
    let identity = MeshIdentity::new(Metadata::universal("id"));
    let identity = identity.with_provider(IdentityProvider::Bundled(bundled));
    BackendConfig::modern(&identity).unwrap()
}

fn context(store: &Store, clock: &FakeClock) -> BuildContext {
    BuildContext::new("default", domain(), store.clone(), Arc::new(clock.clone()))
}

#[tokio::test]
async fn a_factory_tells_of_what_it_made_and_can_be_forbidden_to() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let strict = BackendRegistry::new().with(meshca_core::builtin::factory().forbid_new_cas());
    let free = BackendRegistry::new().with(meshca_core::builtin::factory());
    let context = context(&store, &clock);
    let error = strict.build(&autogenerated(), &context).await.unwrap_err();
    let said = error.to_string();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for part in [
        "makes none on its own",
        "id-root-ca",
        "id-private-key",
        "backend: id",
    ] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    let existed = NewCa::Existed("a MeshTrust has its root".to_owned());
    let existed = context.clone().with_new_ca(existed);
    let error = free.build(&autogenerated(), &existed).await.unwrap_err();
    assert!(
        error.to_string().contains("a MeshTrust has its root"),
        "{error}"
    );

    let made = free.build(&autogenerated(), &context).await.unwrap();
    let root = made.new_root.unwrap();
    let trusted = made.issuer.trust_bundle().await.unwrap();
    assert!(trusted.contains(root.der()));
    for registry in [&strict, &free] {
        let loaded = registry.build(&autogenerated(), &existed).await.unwrap();
        assert!(loaded.new_root.is_none());
    }
    let store = Store::default();
    let confirmed = self::context(&store, &clock).with_new_ca(NewCa::Confirmed);
    let made = strict.build(&autogenerated(), &confirmed).await.unwrap();
    assert!(made.new_root.is_some());
}

// ---- delegated CAs ----

async fn company(name: &str, domain: TrustDomain, clock: &FakeClock) -> Arc<BuiltinIssuer> {
    let secrets = CaSecrets::for_backend("default", name).unwrap();
    let settings = CaSettings::new(domain, secrets);
    let store = Arc::new(MemorySecretStore::new());
    let issuer = BuiltinIssuer::load_or_create(settings, store, Arc::new(clock.clone())).await;
    Arc::new(issuer.unwrap())
}

async fn delegated(
    upstream: &Arc<BuiltinIssuer>,
    store: &Store,
    clock: &FakeClock,
) -> IssuingCa<DelegatedIssuer> {
    let secrets = DelegatedSecrets::new("default", "mesh-ca").unwrap();
    let settings = DelegatedSettings::new(domain(), secrets);
    let clock = Arc::new(clock.clone());
    let issuer =
        DelegatedIssuer::load_or_create(settings, upstream.clone(), store.clone(), clock).await;
    IssuingCa::new(issuer.unwrap())
}

async fn intermediate_of<I: Issuer>(issuer: &IssuingCa<I>, clock: &FakeClock) -> Vec<u8> {
    let identity = issuer.issue(&spec(), clock).await.unwrap();
    identity.certificate().chain()[1].to_vec()
}

/// Its revisions begin again at one, which is less than what others have read.
#[tokio::test]
async fn a_state_that_is_made_again_is_followed_by_those_that_run() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = company("company", domain(), &clock).await;
    let running = delegated(&upstream, &store, &clock).await;
    for _ in 0..3 {
        running.prepare_next().await.unwrap();
        clock.advance(RELOAD_INTERVAL);
        running.activate_next().await.unwrap();
    }
    let old = intermediate_of(&running, &clock).await;
    delete(&store, "mesh-ca").await;
    clock.advance(RELOAD_INTERVAL);
    running.trust_bundle().await.unwrap();
    let error = running.lost().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    running.follow_upstream().await.unwrap_err();
    assert!(
        get(&store, "mesh-ca").await.is_none(),
        "half of a state was written"
    );
    assert_eq!(intermediate_of(&running, &clock).await, old);

    let restarted = delegated(&upstream, &store, &clock).await;
    let new = intermediate_of(&restarted, &clock).await;
    assert_ne!(new, old);
    clock.advance(RELOAD_INTERVAL);
    assert_eq!(intermediate_of(&running, &clock).await, new);
    assert!(running.lost().is_none());
    running.prepare_next().await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_deleted_is_missed_before_the_next_start() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = company("company", domain(), &clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    let key = delete(&store, "mesh-ca-key.g1").await;
    clock.advance(RELOAD_INTERVAL);
    issuer.trust_bundle().await.unwrap();
    let error = issuer.lost().unwrap();
    assert!(error.to_string().contains("mesh-ca-key.g1"), "{error}");
    issuer.issue(&spec(), &clock).await.unwrap();
    put(&store, "mesh-ca-key.g1", key).await;
    clock.advance(10 * SECOND);
    issuer.trust_bundle().await.unwrap();
    assert!(issuer.lost().is_none());
}

/// Builds what it was given, under two names.
#[derive(Debug)]
struct Given(&'static str, Arc<BuiltinIssuer>);

#[async_trait::async_trait]
impl IssuerFactory for Given {
    fn types(&self) -> Vec<String> {
        vec![self.0.to_owned()]
    }

    async fn build(&self, _: &BackendConfig, _: &BuildContext) -> Result<BuiltIssuer> {
        let issuer: Arc<dyn Issuer> = self.1.clone();
        Ok(issuer.into())
    }
}

fn intermediate(provider: Provider) -> BackendConfig {
    let mut extension = Extension::new(provider);
    extension.mode = ExtensionMode::Intermediate;
    let identity = MeshIdentity::new(Metadata::universal("cart"));
    let identity = identity.with_provider(IdentityProvider::Extension(extension));
    BackendConfig::modern(&identity).unwrap()
}

/// `mode: Intermediate` of one provider, then of another, without a change of the name.
#[tokio::test]
async fn another_provider_starts_over() {
    let other: TrustDomain = TrustDomain::new("new.example").unwrap();
    for new_domain in [None, Some(other)] {
        for says_whose in [true, false] {
            let (store, clock) = (Store::default(), FakeClock::new());
            let a = company("a", domain(), &clock).await;
            let b_domain = new_domain.clone().unwrap_or_else(domain);
            let b = company("b", b_domain.clone(), &clock).await;
            let registry = BackendRegistry::new()
                .with(Given("ca-a", a.clone()))
                .with(Given("ca-b", b.clone()));
            let of = |ca: &str| intermediate(Provider::free_form(ca, FreeForm::default()));
            let under_a = context(&store, &clock);
            registry.build(&of("ca-a"), &under_a).await.unwrap();
            let same = registry.build(&of("ca-a"), &under_a).await.unwrap();
            let same = IssuingCa::new(same.issuer);
            let before = intermediate_of(&same, &clock).await;
            if !says_whose {
                // As a version before this one has left it.
                delete(&store, "cart-intermediate.upstream").await;
            }
            let clock: Arc<dyn Clock> = Arc::new(clock.clone());
            let under_b =
                BuildContext::new("default", b_domain.clone(), store.clone(), clock.clone());
            let built = registry.build(&of("ca-b"), &under_b).await.unwrap();
            let roots = built.issuer.trust_bundle().await.unwrap();
            let [a_root, b_root] = [&a, &b].map(|it| it.new_root().unwrap().der().clone());
            if new_domain.is_none() && !says_whose {
                // Nothing tells them apart until the roots are compared, which the driver does at once.
                assert!(roots.contains(&a_root));
                let rotation = built.rotation.unwrap();
                rotation.follow().await.unwrap();
                assert_eq!(rotation.due(), Some(RotationStep::Prepare));
                continue;
            }
            assert!(roots.contains(&b_root));
            // What ca-a has signed is trusted until it ends, in its own trust domain.
            assert_eq!(roots.contains(&a_root), new_domain.is_none());
            let id = format!("spiffe://{b_domain}/cart").parse().unwrap();
            let spec = meshca_core::CertificateSpec::workload(id).with_lifetime(HOUR);
            let issuing = IssuingCa::new(built.issuer);
            let leaf = issuing.issue(&spec, &*clock).await.unwrap();
            assert_eq!(*leaf.certificate().root().der(), b_root);
            assert_ne!(leaf.certificate().chain()[1].to_vec(), before);
            assert_eq!(
                get(&store, "cart-intermediate-key.g1").await.is_some(),
                new_domain.is_none(),
                "a key that signs for nobody is deleted"
            );
            // The next start finds its own.
            let again = registry.build(&of("ca-b"), &under_b).await.unwrap();
            let again = IssuingCa::new(again.issuer);
            let next = again.issue(&spec, &*clock).await.unwrap();
            assert_eq!(next.certificate().chain()[1], leaf.certificate().chain()[1]);
        }
    }
}

/// `mode: Intermediate` around a CA of this process: nobody else would replace that.
#[tokio::test]
async fn a_ca_above_that_is_ours_is_rotated_as_well() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let mut conf = BuiltinConf::default();
    conf.expiration = Some(120 * DAY);
    let config = intermediate(Provider::new(conf));
    let registry = BackendRegistry::new().with(meshca_core::builtin::factory());
    let built = registry
        .build(&config, &context(&store, &clock))
        .await
        .unwrap();
    let first = built.new_root.unwrap();
    let (issuer, rotation) = (IssuingCa::new(built.issuer), built.rotation.unwrap());
    let mut living: Vec<meshca_core::Identity> = Vec::new();
    let mut steps = Vec::new();
    while clock.now() < start() + 400 * DAY {
        clock.advance(2 * HOUR);
        rotation.follow().await.unwrap();
        if let Some(step) = rotation.due() {
            let done = rotation.rotate(step).await;
            steps.push((step, done.err().map(|error: Error| error.kind())));
        }
        let identity = issuer.issue(&spec().with_lifetime(DAY), &clock).await;
        living.push(identity.unwrap_or_else(|error| panic!("{:?}: {error}", clock.now())));
        living.retain(|it| it.certificate().validity().not_after() > clock.now());
        let trusted = issuer.trust_bundle().await.unwrap();
        for identity in &living {
            assert!(trusted.contains(identity.certificate().root().der()));
        }
    }
    let root = living.last().unwrap().certificate().root().clone();
    assert_ne!(root.fingerprint(), first.fingerprint());
    let trusted = issuer.trust_bundle().await.unwrap();
    assert!(!trusted.contains(first.der()), "{steps:?}");
}

/// The state that named it is lost as well: it has signed nothing, and what comes next has another number.
#[tokio::test]
async fn half_of_a_pair_that_no_state_names_is_passed_over() {
    let clock = FakeClock::new();
    let store = Arc::new(MemorySecretStore::new());
    let issuer = load(&store, &clock, NewCa::default()).await.unwrap();
    issuer.prepare_next().await.unwrap();
    delete(&store, KEY_2).await;
    delete(&store, ROTATION).await;
    let issuer = load(&store, &clock, NewCa::default()).await.unwrap();
    let old = root_of(&issuer, &clock).await;
    issuer.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    issuer.activate_next().await.unwrap();
    assert_ne!(root_of(&issuer, &clock).await, old);
    assert!(get(&store, CERTIFICATE_2).await.is_none());
}
