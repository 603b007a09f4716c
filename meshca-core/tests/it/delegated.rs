//! The delegated CA: what an upstream signed signs, is replaced without a gap, and outlives outages.

use std::error::Error as _;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::common::{Ca, DAY, FakeClock, HOUR, RequestKey, ca_params, domain, spec, start};
use async_trait::async_trait;
use meshca_core::builtin::delegated::{DelegatedIssuer, DelegatedSecrets, DelegatedSettings};
use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings, ProvidedCa, RELOAD_INTERVAL};
use meshca_core::registry::{BackendConfig, BuildContext, IssuerFactory};
use meshca_core::resource::{
    Extension, ExtensionMode, FreeForm, IdentityProvider, MeshIdentity, Metadata, Provider,
};
use meshca_core::{
    BackendRegistry, BuiltIssuer, CaRotation, Capabilities, CertificateRequest, CertificateSpec,
    CheckReport, Clock, Error, ErrorKind, Expect, Issuer, IssuingCa, KeyType, LifetimePolicy,
    MemorySecretStore, Observation, PrivateKey, Profile, Proof, Result, Retry, RotationStep,
    SecretKey, SecretStore, SecretValue, SignedChain, SpiffeId, StoredSecret, TrustBundle,
    TrustDomain, Version,
};
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa};
use rustls_pki_types::CertificateDer;

const SECOND: Duration = Duration::from_secs(1);

/// An upstream that can be taken down, replaced, and watched.
#[derive(Debug)]
struct Upstream {
    inner: Mutex<BuiltIssuer>,
    down: AtomicBool,
    check_fails: AtomicBool,
    asked: Mutex<Vec<CertificateRequest>>,
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("company CA")
    }
}

impl Upstream {
    fn of(inner: impl Issuer) -> Arc<Self> {
        Self::built(Arc::new(inner).into())
    }

    fn built(inner: BuiltIssuer) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(inner),
            down: AtomicBool::new(false),
            check_fails: AtomicBool::new(false),
            asked: Mutex::default(),
        })
    }

    async fn builtin(clock: &FakeClock) -> Arc<Self> {
        let company = company("company", clock, 3650 * DAY).await;
        Self::built(BuiltIssuer::rotating(Arc::new(company)))
    }

    fn replace(&self, inner: impl Issuer) {
        *self.inner.lock().unwrap() = Arc::new(inner).into();
    }

    /// Another company, which can be rotated.
    fn move_to(&self, company: BuiltinIssuer) {
        *self.inner.lock().unwrap() = BuiltIssuer::rotating(Arc::new(company));
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn inner(&self) -> Result<Arc<dyn Issuer>> {
        if self.down.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the company CA is down"));
        }
        Ok(Arc::clone(&self.inner.lock().unwrap().issuer))
    }

    fn signed(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn ids(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .map(|request| request.id().to_string())
            .collect()
    }

    fn rotation(&self) -> Arc<dyn CaRotation> {
        self.inner.lock().unwrap().rotation.clone().unwrap()
    }

    /// Rotates a built-in upstream by a step.
    async fn rotate(&self, step: RotationStep) -> Result<()> {
        self.inner()?;
        self.rotation().rotate(step).await
    }
}

#[async_trait]
impl Issuer for Upstream {
    fn capabilities(&self) -> Capabilities {
        self.inner.lock().unwrap().issuer.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let inner = self.inner()?;
        self.asked.lock().unwrap().push(request.clone());
        inner.sign(request).await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.inner()?.trust_bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        if self.check_fails.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Denied, "grant `sign-intermediate`"));
        }
        self.inner()?.check().await
    }
}

async fn company(name: &str, clock: &FakeClock, lifetime: Duration) -> BuiltinIssuer {
    let secrets = CaSecrets::for_backend("default", name).unwrap();
    BuiltinIssuer::load_or_create(
        CaSettings::new(domain(), secrets)
            .with_lifetime(lifetime)
            .with_max_leaf_lifetime(DAY),
        Arc::new(MemorySecretStore::new()),
        Arc::new(clock.clone()),
    )
    .await
    .unwrap()
}

/// A store that can be cut off, or refuse to write one secret.
#[derive(Clone, Debug, Default)]
struct Store {
    inner: Arc<MemorySecretStore>,
    cut: Arc<AtomicBool>,
    refuses: Arc<Mutex<Option<&'static str>>>,
    reads: Arc<AtomicUsize>,
}

impl Store {
    /// Another replica's connection to the same store.
    fn link(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            ..Self::default()
        }
    }

    fn up(&self) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.cut.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the store is cut off"));
        }
        Ok(())
    }

    fn refuse(&self, name: Option<&'static str>) {
        *self.refuses.lock().unwrap() = name;
    }

    async fn text(&self, name: &str) -> Option<String> {
        let key = SecretKey::new("default", name).unwrap();
        let found = self.inner.get(&key).await.unwrap()?;
        Some(found.value.expose_str().unwrap().to_owned())
    }
}

#[async_trait]
impl SecretStore for Store {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        self.up()?;
        self.inner.get(key).await
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        self.up()?;
        if *self.refuses.lock().unwrap() == Some(key.name()) {
            return Err(Error::new(ErrorKind::Unavailable, "the disk is full"));
        }
        self.inner.put(key, value, expect).await
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.up()?;
        self.inner.delete(key, version).await
    }
}

fn settings() -> DelegatedSettings {
    DelegatedSettings::new(
        domain(),
        DelegatedSecrets::new("default", "mesh-ca").unwrap(),
    )
}

async fn bare(
    settings: DelegatedSettings,
    upstream: &Arc<Upstream>,
    store: &Store,
    clock: &FakeClock,
) -> Result<DelegatedIssuer> {
    DelegatedIssuer::load_or_create(
        settings,
        Arc::clone(upstream) as Arc<dyn Issuer>,
        Arc::new(store.clone()),
        Arc::new(clock.clone()),
    )
    .await
}

async fn load(
    settings: DelegatedSettings,
    upstream: &Arc<Upstream>,
    store: &Store,
    clock: &FakeClock,
) -> Result<IssuingCa<DelegatedIssuer>> {
    let issuer = bare(settings, upstream, store, clock).await;
    issuer.map(IssuingCa::new)
}

async fn delegated(
    upstream: &Arc<Upstream>,
    store: &Store,
    clock: &FakeClock,
) -> IssuingCa<DelegatedIssuer> {
    load(settings(), upstream, store, clock).await.unwrap()
}

/// Signs a leaf, and has it pass the verification that others' leaves have to.
async fn leaf<I: Issuer>(
    issuer: &IssuingCa<I>,
    lifetime: Duration,
    clock: &FakeClock,
) -> Result<Leaf> {
    let key = PrivateKey::generate(KeyType::P256).unwrap();
    let request =
        CertificateRequest::for_key(spec().with_lifetime(lifetime), &key, clock.now()).unwrap();
    let constructed = issuer.issue_for(&request, clock).await?;
    let bundle = issuer.trust_bundle().await.unwrap();
    let verified = SignedChain::new(constructed.chain().to_vec())
        .verify(&request, &bundle, clock.now())
        .unwrap();
    assert_eq!(constructed.proof(), Proof::Construction);
    assert_eq!(verified.proof(), Proof::Signatures);
    assert_eq!(verified.path(), constructed.path());
    assert_eq!(verified.root(), constructed.root());
    assert_eq!(verified.observations(), constructed.observations());
    Ok(Leaf {
        chain: constructed.chain().to_vec(),
        root: constructed.root().der().clone(),
        issuer: constructed.issuer().to_owned(),
        path: constructed.path().to_vec(),
        not_after: constructed.validity().not_after(),
        observations: constructed.observations().to_vec(),
    })
}

#[derive(Clone, Debug)]
struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    issuer: String,
    path: Vec<String>,
    not_after: SystemTime,
    observations: Vec<Observation>,
}

#[tokio::test]
async fn defaults_are_what_the_docs_say() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;

    let asked = upstream.asked.lock().unwrap()[0].clone();
    assert_eq!(
        asked.spec().profile(),
        Profile::Intermediate { path_len: 0 }
    );
    assert_eq!(asked.spec().lifetime(), 30 * DAY);
    assert_eq!(asked.spec().key_type(), KeyType::P256);
    assert_eq!(
        asked.spec().lifetime_policy(),
        LifetimePolicy::AtMostRequested
    );
    assert_eq!(asked.spiffe_id().to_string(), "spiffe://example.org");
    assert_eq!(issuer.capabilities().max_lifetime(), Some(5 * DAY));
    assert!(!issuer.capabilities().intermediates());
    assert_eq!(
        issuer.to_string(),
        "delegated CA of example.org under company CA"
    );

    let leaf = leaf(&issuer, HOUR, &clock).await.unwrap();
    assert_eq!(leaf.chain.len(), 2, "leaf and intermediate, never the root");
    assert!(!leaf.chain.contains(&leaf.root));
    let name = asked.spec().common_name().unwrap();
    assert!(name.starts_with("example.org intermediate "), "{name}");
    assert_eq!(
        leaf.path,
        [
            "(empty)".to_owned(),
            format!("CN={name}"),
            "CN=example.org,OU=Mesh,O=meshca".to_owned()
        ]
    );
    assert_eq!(
        issuer.trust_bundle().await.unwrap(),
        upstream.trust_bundle().await.unwrap()
    );
    assert_eq!(upstream.signed(), 1);
}

#[tokio::test]
async fn every_leaf_that_the_builtin_ca_signs_is_signed_here_too() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    for (key_type, of_leaves) in [
        (KeyType::P384, KeyType::P384),
        (KeyType::Ed25519, KeyType::P256),
    ] {
        let settings = DelegatedSettings::new(
            domain(),
            DelegatedSecrets::new("default", format!("ca-{key_type}").to_lowercase()).unwrap(),
        )
        .with_key_type(key_type);
        let issuer = load(settings, &upstream, &store, &clock).await.unwrap();
        let spec = spec()
            .with_common_name("cart.mesh")
            .with_dns_name("cart.mesh")
            .with_uri("kuma://kuma.io/service/cart");
        let key = PrivateKey::generate(of_leaves).unwrap();
        let request = CertificateRequest::for_key(spec, &key, start()).unwrap();
        let chain = issuer.sign(&request).await.unwrap().certificates().to_vec();
        let bundle = issuer.trust_bundle().await.unwrap();
        let issued = SignedChain::new(chain)
            .verify(&request, &bundle, start())
            .unwrap();
        assert_eq!(issued.observations(), []);
    }
    let issuer = delegated(&upstream, &store, &clock).await;
    let foreign = CertificateSpec::workload(SpiffeId::new("spiffe://example.com/a").unwrap());
    let error = issuer.issue(&foreign, &clock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn leaves_live_for_a_sixth_and_never_past_the_end() {
    let clock = FakeClock::new();
    let upstream = Upstream::builtin(&clock).await;
    let store = Store::default();
    let issuer = load(
        settings().with_lifetime(12 * DAY),
        &upstream,
        &store,
        &clock,
    )
    .await
    .unwrap();
    assert_eq!(issuer.capabilities().max_lifetime(), Some(2 * DAY));
    for (now, asked, granted) in [
        (Duration::ZERO, HOUR, HOUR),
        (Duration::ZERO, 2 * DAY, 2 * DAY),
        (Duration::ZERO, 3 * DAY, 2 * DAY),
        (9 * DAY, 3 * DAY, 2 * DAY),
        (11 * DAY, 2 * DAY, DAY),
        (12 * DAY - SECOND, HOUR, SECOND),
    ] {
        clock.set(start() + now);
        let leaf = leaf(&issuer, asked, &clock).await.unwrap();
        assert_eq!(leaf.not_after, start() + now + granted, "{now:?} {asked:?}");
        let shorter = leaf
            .observations
            .iter()
            .any(|seen| matches!(seen, Observation::ShorterLifetime { .. }));
        assert_eq!(shorter, granted < asked, "{:?}", leaf.observations);
    }
}

#[tokio::test]
async fn steps_are_due_at_the_documented_times() {
    for (life, longest_leaf, prepare_left, activate_left) in [
        (30 * DAY, 5 * DAY, 15 * DAY, 5 * DAY),
        (365 * DAY, 5 * DAY, 30 * DAY, 7 * DAY),
        (12 * HOUR, HOUR, 6 * HOUR, 2 * HOUR),
        (365 * DAY, 30 * DAY, 60 * DAY, 30 * DAY),
        (60 * DAY, 30 * DAY, 30 * DAY, 10 * DAY),
    ] {
        let (store, clock) = (Store::default(), FakeClock::new());
        let upstream = Upstream::builtin(&clock).await;
        let settings = settings()
            .with_lifetime(life)
            .with_max_leaf_lifetime(longest_leaf);
        let issuer = load(settings, &upstream, &store, &clock).await.unwrap();
        let end = start() + life;
        let due = |left: Duration| {
            clock.set(end - left);
            issuer.rotation_due()
        };
        assert_eq!(due(prepare_left + SECOND), None);
        assert_eq!(due(prepare_left), Some(RotationStep::Prepare));
        issuer.prepare_next().await.unwrap();
        if prepare_left > activate_left + SECOND {
            assert_eq!(due(activate_left + SECOND), None);
        }
        let full = issuer.capabilities().max_lifetime().unwrap();
        assert!(full <= activate_left, "no leaf is cut short before");
        assert_eq!(due(activate_left), Some(RotationStep::Activate));
        issuer.activate_next().await.unwrap();
        assert_eq!(issuer.rotation_due(), None);
        assert_eq!(upstream.signed(), 2);
        clock.set(end + 61 * SECOND);
        let rotation: &dyn CaRotation = &*issuer;
        let mut steps = Vec::new();
        while let Some(step) = rotation.due() {
            rotation.rotate(step).await.unwrap();
            steps.push(step);
        }
        assert!(steps.contains(&RotationStep::Retire), "{steps:?}");
        assert!(store.text("mesh-ca-key.g1").await.is_none());
    }
}

/// What the docs say that it costs.
#[tokio::test]
async fn a_certificate_in_fifteen_days_is_all_that_the_upstream_signs() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    for _ in 0..360 {
        clock.advance(DAY);
        while let Some(step) = issuer.rotation_due() {
            issuer.rotate(step).await.unwrap();
        }
        leaf(&issuer, 4 * DAY, &clock).await.unwrap();
    }
    assert_eq!(upstream.signed(), 1 + 360 / 15);
}

/// Life counts from issuance: a CA that backdates by an hour does not make an intermediate old.
#[tokio::test]
async fn a_backdated_intermediate_is_not_old() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::of(Forger::new(|root, request| {
        let mut params = intermediate_params(request);
        params.not_before = (start() - 6 * HOUR).into();
        vec![certify(params, request, root)]
    }));
    let issuer = load(
        settings().with_lifetime(12 * HOUR),
        &upstream,
        &store,
        &clock,
    )
    .await
    .unwrap();
    assert_eq!(issuer.capabilities().max_lifetime(), Some(2 * HOUR));
    clock.advance(5 * HOUR);
    assert_eq!(issuer.rotation_due(), None);
}

#[tokio::test]
async fn the_other_replica_trusts_before_anyone_signs() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let settings = || settings().with_lifetime(60 * DAY);
    let issuer = load(settings(), &upstream, &store, &clock).await.unwrap();
    let replica = load(settings(), &upstream, &store.link(), &clock)
        .await
        .unwrap();
    let old = leaf(&issuer, DAY, &clock).await.unwrap();
    let error = issuer.activate_next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);

    // The upstream rotates; its new root is published as soon as anybody asks.
    upstream.rotate(RotationStep::Prepare).await.unwrap();
    let refreshed = issuer.follow_upstream().await.unwrap();
    assert_eq!(refreshed.roots().len(), 2);
    assert_eq!(issuer.rotation_due(), None, "both roots are good");
    clock.advance(RELOAD_INTERVAL);
    assert_eq!(replica.trust_bundle().await.unwrap(), refreshed);
    upstream.rotate(RotationStep::Activate).await.unwrap();

    let both = issuer.prepare_next().await.unwrap();
    assert_eq!(both, refreshed);
    assert_eq!(issuer.prepare_next().await.unwrap(), both);
    assert_eq!(upstream.signed(), 2, "doing it twice changes nothing");
    let still = leaf(&issuer, DAY, &clock).await.unwrap();
    assert_eq!(still.issuer, old.issuer, "what is prepared does not sign");

    let error = issuer.activate_next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let Retry::After(wait) = error.retry() else {
        panic!("{error:?}")
    };
    clock.advance(wait);
    assert!(replica.trust_bundle().await.unwrap() == both);
    issuer.activate_next().await.unwrap();
    let new = leaf(&issuer, DAY, &clock).await.unwrap();
    assert_ne!(new.root, old.root);

    // The replica signs with the old one until it reads the store; that is trusted by all.
    let late = leaf(&replica, 5 * DAY, &clock).await.unwrap();
    assert_eq!(late.issuer, old.issuer);
    clock.advance(RELOAD_INTERVAL);
    assert_eq!(
        leaf(&replica, DAY, &clock).await.unwrap().issuer,
        new.issuer
    );

    // The upstream keeps its old root for as long as the intermediate below it can live.
    clock.set(start() + 50 * DAY);
    upstream.rotate(RotationStep::Retire).await.unwrap();
    let bundle = issuer.follow_upstream().await.unwrap();
    assert!(upstream.trust_bundle().await.unwrap().contains(&old.root));
    assert!(bundle.contains(&old.root));
    clock.set(start() + 90 * DAY);
    upstream.rotate(RotationStep::Retire).await.unwrap();
    issuer.follow_upstream().await.unwrap();
    assert!(store.text("mesh-ca-key.g1").await.is_some());
    issuer.retire().await.unwrap();
    assert!(!issuer.trust_bundle().await.unwrap().contains(&old.root));
    assert!(store.text("mesh-ca-key.g1").await.is_none());
    assert!(store.text("mesh-ca-key.g2").await.is_some());
}

#[tokio::test]
async fn a_root_that_everyone_has_needs_no_waiting() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    let old = leaf(&issuer, HOUR, &clock).await.unwrap();
    let before = issuer.trust_bundle().await.unwrap();
    assert_eq!(issuer.prepare_next().await.unwrap(), before);
    issuer.activate_next().await.unwrap();
    let new = leaf(&issuer, HOUR, &clock).await.unwrap();
    assert_ne!(new.issuer, old.issuer);
    assert_eq!(new.root, old.root);
    assert_eq!(issuer.trust_bundle().await.unwrap(), before);
}

#[tokio::test]
async fn an_outage_of_the_upstream_lasts_as_long_as_the_intermediate() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    upstream.set_down(true);

    clock.set(start() + 15 * DAY);
    assert_eq!(issuer.rotation_due(), Some(RotationStep::Prepare));
    let error = issuer.prepare_next().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the company CA is down (upstream: company CA)"
    );
    assert_eq!(error.retry(), Retry::Backoff);
    assert!(issuer.follow_upstream().await.is_err());
    assert!(
        store.text("mesh-ca-key.g2").await.is_none(),
        "no side effect"
    );
    let report = issuer.check().await.unwrap();
    assert_eq!(
        report.warnings,
        [
            "the upstream company CA cannot sign now: the company CA is down; the present intermediate ends at 2026-01-31T00:00:00Z"
        ]
    );
    for (left, granted) in [(10 * DAY, 5 * DAY), (DAY, DAY), (SECOND, SECOND)] {
        clock.set(start() + 30 * DAY - left);
        let leaf = leaf(&issuer, 5 * DAY, &clock).await.unwrap();
        assert_eq!(leaf.not_after, clock.now() + granted);
        // A restart needs the upstream as little.
        let restarted = delegated(&upstream, &store.link(), &clock).await;
        self::leaf(&restarted, HOUR, &clock).await.unwrap();
        assert_eq!(
            restarted.trust_bundle().await.unwrap(),
            issuer.trust_bundle().await.unwrap()
        );
    }

    clock.set(start() + 30 * DAY);
    let error = leaf(&issuer, HOUR, &clock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error
            .to_string()
            .contains("ended at 2026-01-31T00:00:00Z; have the upstream sign the next one"),
        "{error}"
    );
    let source = error.source().unwrap().to_string();
    assert!(source.contains("the company CA is down"), "{source}");
    assert!(issuer.check().await.is_err());

    // Even a restart after the end is no trap.
    let restarted = delegated(&upstream, &store.link(), &clock).await;
    assert!(leaf(&restarted, HOUR, &clock).await.is_err());
    assert_eq!(restarted.rotation_due(), Some(RotationStep::Prepare));
    upstream.set_down(false);
    restarted.prepare_next().await.unwrap();
    assert_eq!(restarted.rotation_due(), Some(RotationStep::Activate));
    restarted.activate_next().await.unwrap();
    leaf(&restarted, HOUR, &clock).await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    leaf(&issuer, HOUR, &clock).await.unwrap();
}

#[tokio::test]
async fn an_outage_of_the_store_stops_nothing() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    store.cut.store(true, Ordering::SeqCst);
    for days in [1, 10, 24] {
        clock.set(start() + days * DAY);
        let full = leaf(&issuer, 5 * DAY, &clock).await.unwrap();
        assert_eq!(full.not_after, clock.now() + 5 * DAY);
        let reads = store.reads.load(Ordering::SeqCst);
        leaf(&issuer, HOUR, &clock).await.unwrap();
        assert_eq!(
            store.reads.load(Ordering::SeqCst),
            reads,
            "a store that is down is not hammered"
        );
    }
    for error in [
        issuer.prepare_next().await.err(),
        issuer.activate_next().await.err(),
        issuer.retire().await.err(),
        issuer.follow_upstream().await.err(),
    ] {
        assert_eq!(error.unwrap().kind(), ErrorKind::Unavailable);
    }
    assert_eq!(upstream.signed(), 1);
    store.cut.store(false, Ordering::SeqCst);
    issuer.prepare_next().await.unwrap();
}

#[tokio::test]
async fn a_crash_after_any_step_is_taken_up() {
    let clock = FakeClock::new();
    for first in [true, false] {
        let store = Store::default();
        let upstream = Upstream::builtin(&clock).await;
        let (state, key) = if first {
            ("mesh-ca", "mesh-ca-key.g1")
        } else {
            delegated(&upstream, &store, &clock).await;
            ("mesh-ca", "mesh-ca-key.g2")
        };
        let attempt = async || -> Result<()> {
            let issuer = load(settings(), &upstream, &store, &clock).await?;
            if !first {
                issuer.prepare_next().await?;
            }
            Ok(())
        };
        upstream.asked.lock().unwrap().clear();

        // Before the key: nothing was asked.
        store.refuse(Some(key));
        attempt().await.unwrap_err();
        assert_eq!(upstream.signed(), 0);

        // After the key, while the upstream signs.
        store.refuse(None);
        upstream.replace(Failing(company("failing", &clock, 3650 * DAY).await));
        assert_eq!(attempt().await.unwrap_err().kind(), ErrorKind::Timeout);
        let stored = store.text(key).await.unwrap();
        upstream.replace(company("company", &clock, 3650 * DAY).await);

        // After the upstream signed.
        store.refuse(Some(state));
        attempt().await.unwrap_err();

        // The request was the same each time, so an upstream that remembers it signs but once.
        store.refuse(None);
        attempt().await.unwrap();
        let ids = upstream.ids();
        assert_eq!(ids.len(), 3);
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(store.text(key).await.unwrap(), stored);

        // After it was announced: nothing is asked any more.
        attempt().await.unwrap();
        assert_eq!(upstream.signed(), 3);
        let issuer = delegated(&upstream, &store, &clock).await;
        let before = leaf(&issuer, HOUR, &clock).await.unwrap();
        if !first {
            clock.advance(RELOAD_INTERVAL + SECOND);
            issuer.activate_next().await.unwrap();
            let restarted = delegated(&upstream, &store, &clock).await;
            let after = leaf(&restarted, HOUR, &clock).await.unwrap();
            assert_ne!(after.issuer, before.issuer);
            let bundle = restarted.trust_bundle().await.unwrap();
            assert!(bundle.contains(&before.root) && bundle.contains(&after.root));
        }
        assert_eq!(upstream.signed(), 3);
    }
}

/// Signs nothing in time.
#[derive(Debug)]
struct Failing(BuiltinIssuer);

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

#[async_trait]
impl Issuer for Failing {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn sign(&self, _: &CertificateRequest) -> Result<SignedChain> {
        Err(Error::new(ErrorKind::Timeout, "no answer"))
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.0.trust_bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.0.check().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_replicas_share_one_intermediate() {
    for _ in 0..20 {
        let (store, clock) = (Store::default(), FakeClock::new());
        let upstream = Upstream::builtin(&clock).await;
        let tasks: Vec<_> = (0..6)
            .map(|_| {
                let (store, upstream, clock) = (store.link(), Arc::clone(&upstream), clock.clone());
                tokio::spawn(async move {
                    let issuer = delegated(&upstream, &store, &clock).await;
                    let first = leaf(&issuer, HOUR, &clock).await.unwrap();
                    issuer.prepare_next().await.unwrap();
                    match issuer.activate_next().await {
                        Ok(()) => {}
                        // Somebody else did.
                        Err(error) => assert!(
                            matches!(
                                error.kind(),
                                ErrorKind::InvalidRequest | ErrorKind::Conflict
                            ),
                            "{error}"
                        ),
                    }
                    first
                })
            })
            .collect();
        let mut bundle = upstream.trust_bundle().await.unwrap();
        for task in tasks {
            let leaf = task.await.unwrap();
            assert!(bundle.contains(&leaf.root));
            bundle = bundle.with_root(leaf.root).unwrap();
        }
        assert_eq!(bundle.roots().len(), 1);
        let issuer = delegated(&upstream, &store, &clock).await;
        leaf(&issuer, HOUR, &clock).await.unwrap();
        let mut ids = upstream.ids();
        ids.sort();
        ids.dedup();
        assert!(
            ids.len() <= 7,
            "one request for each number that was in use: {ids:?}"
        );
    }
}

/// Two replicas prepare at once: one intermediate is announced, and both follow it.
#[tokio::test]
async fn replicas_that_prepare_at_once_announce_one() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let one = delegated(&upstream, &store, &clock).await;
    let other = delegated(&upstream, &store.link(), &clock).await;
    // While the upstream signs for one replica, the other one does all of it.
    upstream.replace(Interrupted {
        inner: company("another", &clock, 3650 * DAY).await,
        meanwhile: Mutex::new(Some(other.clone())),
    });
    let bundle = one.prepare_next().await.unwrap();
    assert_eq!(bundle, other.trust_bundle().await.unwrap());
    let ids = upstream.ids();
    assert_eq!(ids.len(), 3, "the first, and each replica's");
    assert_eq!(ids[1], ids[2], "the same request");
    clock.advance(RELOAD_INTERVAL + SECOND);
    one.activate_next().await.unwrap();
    other.reload().await.unwrap();
    assert_eq!(
        leaf(&one, HOUR, &clock).await.unwrap().issuer,
        leaf(&other, HOUR, &clock).await.unwrap().issuer
    );
}

#[derive(Debug)]
struct Interrupted {
    inner: BuiltinIssuer,
    meanwhile: Mutex<Option<IssuingCa<DelegatedIssuer>>>,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

#[async_trait]
impl Issuer for Interrupted {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(other) = meanwhile {
            other.prepare_next().await.unwrap();
        }
        self.inner.sign(request).await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.inner.trust_bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
}

#[tokio::test]
async fn a_delegated_ca_below_a_delegated_ca() {
    let clock = FakeClock::new();
    let company = Upstream::builtin(&clock).await;
    let upper = |path_len| {
        let secrets = DelegatedSecrets::new("default", format!("region-{path_len}")).unwrap();
        DelegatedSettings::new(domain(), secrets)
            .with_path_len(path_len)
            .with_lifetime(180 * DAY)
    };
    let store = Store::default();
    let leaves_only = bare(upper(0), &company, &store, &clock).await.unwrap();
    let error = load(settings(), &Upstream::of(leaves_only), &store, &clock)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(store.text("mesh-ca-key.g1").await.is_none());

    let region = bare(upper(1), &company, &store, &clock).await.unwrap();
    let region = Upstream::built(BuiltIssuer::rotating(Arc::new(region)));
    let issuer = load(settings(), &region, &store, &clock).await.unwrap();
    let old = leaf(&issuer, HOUR, &clock).await.unwrap();
    assert_eq!(old.path.len(), 4);
    assert_eq!(old.chain.len(), 3, "leaf, zone, region");
    assert_eq!(old.path[3], "CN=example.org,OU=Mesh,O=meshca");

    // The company rotates its root, and each level follows in its turn.
    company.rotate(RotationStep::Prepare).await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    company.rotate(RotationStep::Activate).await.unwrap();
    let upper = region.rotation();
    for rotation in [&*upper, &*issuer as &dyn CaRotation] {
        rotation.rotate(RotationStep::Prepare).await.unwrap();
        clock.advance(RELOAD_INTERVAL + SECOND);
        rotation.rotate(RotationStep::Activate).await.unwrap();
        let bundle = issuer.trust_bundle().await.unwrap();
        assert!(bundle.contains(&old.root));
        leaf(&issuer, HOUR, &clock).await.unwrap();
    }
    let new = leaf(&issuer, HOUR, &clock).await.unwrap();
    assert_eq!(new.path[3], "CN=example.org G2,OU=Mesh,O=meshca");
}

/// A CA that answers with whatever the test makes of the request.
struct Forger<F> {
    root: Ca,
    answer: F,
}

impl<F: Fn(&Ca, &CertificateRequest) -> Vec<CertificateDer<'static>>> Forger<F> {
    fn new(answer: F) -> Self {
        Self {
            root: Ca::root("company root"),
            answer,
        }
    }
}

impl<F> fmt::Debug for Forger<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Forger")
    }
}

impl<F> fmt::Display for Forger<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("forger")
    }
}

#[async_trait]
impl<F> Issuer for Forger<F>
where
    F: Fn(&Ca, &CertificateRequest) -> Vec<CertificateDer<'static>> + Send + Sync + 'static,
{
    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_intermediates(true)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        Ok(SignedChain::new((self.answer)(&self.root, request)))
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        Ok(self.root.bundle())
    }

    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::new())
    }
}

fn intermediate_params(request: &CertificateRequest) -> CertificateParams {
    let path_len = match request.spec().profile() {
        Profile::Intermediate { path_len } => path_len,
        other => unreachable!("{other:?} was requested"),
    };
    let mut params = ca_params(request.spec().common_name().unwrap());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.not_before = (request.created() - Duration::from_secs(10)).into();
    params.not_after = request.not_after().into();
    params
}

fn certify(
    params: CertificateParams,
    request: &CertificateRequest,
    ca: &Ca,
) -> CertificateDer<'static> {
    params
        .signed_by(&RequestKey(request), &ca.issuer())
        .unwrap()
        .der()
        .clone()
}

type Answer = fn(&Ca, &CertificateRequest) -> Vec<CertificateDer<'static>>;

fn changed(
    root: &Ca,
    request: &CertificateRequest,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<CertificateDer<'static>> {
    let mut params = intermediate_params(request);
    change(&mut params);
    vec![certify(params, request, root)]
}

#[tokio::test]
async fn a_bad_answer_is_refused_and_changes_nothing() {
    let cases: [(&str, u8, Answer, &str); 12] = [
        (
            "nothing",
            0,
            |_, _| Vec::new(),
            "the CA returned no certificate",
        ),
        (
            "another key",
            0,
            |root, request| vec![root.below(request.spec().common_name().unwrap()).der],
            "is for the key of the request",
        ),
        (
            "over-long",
            0,
            |root, request| {
                changed(root, request, |params| {
                    params.not_after = (request.not_after() + DAY).into();
                })
            },
            "2592000s were requested",
        ),
        (
            "short",
            0,
            |root, request| {
                changed(root, request, |params| {
                    params.not_after = (request.created() + HOUR - SECOND).into();
                })
            },
            "is refused: it ends at 2026-01-16T00:59:59Z, in 3599s; 3600s are the least that can be used, and 2592000s were asked for",
        ),
        (
            "ended",
            0,
            |root, request| {
                changed(root, request, |params| {
                    params.not_after = (request.created() - SECOND).into();
                })
            },
            "had ended when it arrived",
        ),
        (
            "no CA",
            0,
            |root, request| changed(root, request, |params| params.is_ca = IsCa::ExplicitNoCa),
            "is not a CA's",
        ),
        (
            "a larger path length",
            0,
            |root, request| {
                changed(root, request, |params| {
                    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
                })
            },
            "path length 1 where 0 was requested",
        ),
        (
            "a smaller path length",
            1,
            |root, request| {
                changed(root, request, |params| {
                    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                })
            },
            "its path length is less than the 1 asked for",
        ),
        (
            "below a CA that allows none",
            0,
            |root, request| {
                let mut params = ca_params("leaves only");
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                let ca = root.below_with(params);
                vec![certify(intermediate_params(request), request, &ca), ca.der]
            },
            "path",
        ),
        (
            "an incomplete chain",
            0,
            |root, request| {
                let ca = root.below("in between");
                vec![certify(intermediate_params(request), request, &ca)]
            },
            "root unknown",
        ),
        (
            "an unknown root",
            0,
            |_, request| {
                let root = Ca::root("a stranger");
                vec![
                    certify(intermediate_params(request), request, &root),
                    root.der,
                ]
            },
            "root unknown: the chain ends in `CN=a stranger`",
        ),
        (
            "another name",
            0,
            |root, request| {
                changed(root, request, |params| {
                    params.subject_alt_names = vec![rcgen::SanType::URI(
                        "spiffe://example.com".try_into().unwrap(),
                    )];
                })
            },
            "that was not requested",
        ),
    ];
    for (case, path_len, answer, message) in cases {
        let (store, clock) = (Store::default(), FakeClock::new());
        let sound = Upstream::of(Forger::new(|root, request| {
            vec![certify(intermediate_params(request), request, root)]
        }));
        let settings = || settings().with_path_len(path_len);
        let issuer = load(settings(), &sound, &store, &clock).await.unwrap();
        clock.advance(15 * DAY);
        let (before, old) = (
            issuer.trust_bundle().await.unwrap(),
            leaf(&issuer, HOUR, &clock).await.unwrap(),
        );

        sound.replace(Forger::new(answer));
        let error = issuer.prepare_next().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{case}: {error}");
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(
            error.to_string().contains(message) || source.contains(message),
            "{case}: expected: {message}\nfound: {error}\n{source}"
        );
        assert_eq!(issuer.trust_bundle().await.unwrap(), before, "{case}");
        assert_eq!(issuer.rotation_due(), Some(RotationStep::Prepare), "{case}");
        assert_eq!(
            issuer.activate_next().await.unwrap_err().kind(),
            ErrorKind::InvalidRequest,
            "{case}"
        );
        assert_eq!(
            leaf(&issuer, HOUR, &clock).await.unwrap().issuer,
            old.issuer
        );
        assert!(
            store.text("mesh-ca-key.g2").await.is_none(),
            "{case}: keys do not pile up"
        );

        // An upstream that remembers requests is not asked for the bad answer again.
        issuer.prepare_next().await.unwrap_err();
        let ids = sound.ids();
        assert_ne!(ids[1], ids[2], "{case}");

        // The same at the very first start: a clear error, and nothing in the way of the next one.
        let fresh = Store::default();
        let error = load(settings(), &sound, &fresh, &clock).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{case}: {error}");
        sound.replace(company("repaired", &clock, 3650 * DAY).await);
        let issuer = load(settings(), &sound, &fresh, &clock).await.unwrap();
        leaf(&issuer, HOUR, &clock).await.unwrap();
    }
}

#[tokio::test]
async fn a_lifetime_of_the_upstreams_choice_is_accepted_where_that_is_set() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::of(Forger::new(|root, request| {
        changed(root, request, |params| {
            params.not_after = (start() + 60 * DAY).into();
        })
    }));
    let settings = settings().with_lifetime_policy(LifetimePolicy::AcceptIssuer);
    let issuer = load(settings, &upstream, &store, &clock).await.unwrap();
    assert_eq!(issuer.check().await.unwrap().warnings, [""; 0]);
    clock.set(start() + 29 * DAY);
    assert_eq!(issuer.rotation_due(), None);
}

#[tokio::test]
async fn what_cannot_work_fails_before_it_costs() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let untouched = async |expected: &str, error: Error| {
        assert!(
            error.to_string().contains(expected),
            "expected: {expected}\nfound:    {error}"
        );
        assert_eq!(upstream.signed(), 0);
        for name in ["mesh-ca", "mesh-ca-key.g1"] {
            assert!(store.text(name).await.is_none(), "{expected}");
        }
    };

    upstream.check_fails.store(true, Ordering::SeqCst);
    let error = load(settings(), &upstream, &store, &clock).await;
    untouched(
        "grant `sign-intermediate` (upstream: company CA)",
        error.unwrap_err(),
    )
    .await;
    upstream.check_fails.store(false, Ordering::SeqCst);

    upstream.set_down(true);
    let error = load(settings(), &upstream, &store, &clock).await;
    untouched("is down", error.unwrap_err()).await;
    upstream.set_down(false);

    let forger = Upstream::of(Forger::new(|_, _| Vec::new()));
    let error = load(
        settings().with_key_type(KeyType::P384),
        &forger,
        &store,
        &clock,
    )
    .await;
    untouched("keys; choose another key type", error.unwrap_err()).await;

    let other = TrustDomain::new("example.com").unwrap();
    let secrets = DelegatedSecrets::new("default", "mesh-ca").unwrap();
    let error = load(
        DelegatedSettings::new(other, secrets),
        &upstream,
        &store,
        &clock,
    )
    .await;
    untouched("serves another trust domain", error.unwrap_err()).await;

    for (settings, expected) in [
        (
            settings().with_lifetime(HOUR - SECOND),
            "the lifetime of the intermediate is 3599s; set it to 3600s at least",
        ),
        (
            settings().with_max_leaf_lifetime(Duration::ZERO),
            "the lifetime of the longest leaf is 0s",
        ),
    ] {
        let error = load(settings, &upstream, &store, &clock).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        untouched(expected, error).await;
    }
    for (mesh, name) in [
        ("default", "Ca"),
        ("", "ca"),
        ("default", &*"x".repeat(245)),
    ] {
        assert!(DelegatedSecrets::new(mesh, name).is_err(), "{mesh} {name}");
    }
}

#[tokio::test]
async fn an_upstream_that_was_replaced_is_left_at_once() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    issuer.prepare_next().await.unwrap();
    let old = leaf(&issuer, 5 * DAY, &clock).await.unwrap();
    assert_eq!(issuer.rotation_due(), None);

    upstream.replace(company("new-company", &clock, 3650 * DAY).await);
    issuer.follow_upstream().await.unwrap();
    assert_eq!(
        issuer.rotation_due(),
        Some(RotationStep::Prepare),
        "what is next is of the old CA, too"
    );
    let both = issuer.prepare_next().await.unwrap();
    assert_eq!(both.roots().len(), 2);
    assert_eq!(
        issuer.rotation_due(),
        None,
        "the root is not known everywhere"
    );
    clock.advance(RELOAD_INTERVAL + SECOND);
    assert_eq!(issuer.rotation_due(), Some(RotationStep::Activate));
    issuer.activate_next().await.unwrap();
    let new = leaf(&issuer, HOUR, &clock).await.unwrap();
    assert_ne!(new.root, old.root);
    clock.set(old.not_after);
    issuer.retire().await.unwrap();
    assert!(issuer.trust_bundle().await.unwrap().contains(&old.root));
    clock.set(start() + 30 * DAY + 2 * RELOAD_INTERVAL);
    issuer.retire().await.unwrap();
    assert_eq!(issuer.trust_bundle().await.unwrap().roots().len(), 1);
}

/// What is prepared may still be activated when the upstream has changed its mind.
#[tokio::test]
async fn what_is_next_stays_trusted() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    upstream.replace(company("second", &clock, 3650 * DAY).await);
    let second = upstream.trust_bundle().await.unwrap();
    issuer.prepare_next().await.unwrap();
    upstream.replace(company("third", &clock, 3650 * DAY).await);
    let bundle = issuer.follow_upstream().await.unwrap();
    assert_eq!(bundle.roots().len(), 3);
    assert!(bundle.contains(second.roots()[0].der()));
    clock.advance(RELOAD_INTERVAL + SECOND);
    issuer.activate_next().await.unwrap();
    let leaf = leaf(&issuer, HOUR, &clock).await.unwrap();
    assert!(second.contains(&leaf.root));
}

#[tokio::test]
async fn what_will_be_regretted_is_said_with_numbers() {
    let (store, clock) = (Store::default(), FakeClock::new());
    // An upstream that is about to end cannot sign for longer.
    let upstream = Upstream::of(company("old", &clock, 6 * DAY).await);
    let issuer = delegated(&upstream, &store, &clock).await;
    let warnings = issuer.check().await.unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "leaves are to live for up to 432000s, but an intermediate that lives for 518400s gives them 86400s, a sixth of that; let the upstream sign intermediates for 2592000s or ask for shorter leaves",
            "the upstream signed the intermediate for 518400s where 2592000s were asked for; it ends at 2026-01-07T00:00:00Z: raise the upstream's limit, or see whether the upstream itself is about to end",
            "upstream company CA: the CA `CN=example.org,OU=Mesh,O=meshca` ends at 2026-01-07T00:00:00Z; rotate it",
        ]
    );
}

#[tokio::test]
async fn damage_in_the_store_is_named_and_left_alone() {
    let clock = FakeClock::new();
    let upstream = Upstream::builtin(&clock).await;
    let other = PrivateKey::generate(KeyType::P256)
        .unwrap()
        .expose_pem()
        .unwrap();
    for (name, value, message) in [
        (
            "mesh-ca",
            Some("junk".into()),
            "cannot be read; restore the secret",
        ),
        (
            "mesh-ca-key.g1",
            Some("junk".into()),
            "not a PEM private key: line 1",
        ),
        (
            "mesh-ca-key.g1",
            Some(other),
            "the key does not belong to the certificate",
        ),
        (
            "mesh-ca-key.g1",
            None,
            "the key of the delegated CA is missing",
        ),
    ] {
        let store = Store::default();
        let running = delegated(&upstream, &store, &clock).await;
        let key = SecretKey::new("default", name).unwrap();
        let found = store.get(&key).await.unwrap().unwrap();
        match &value {
            Some(value) => {
                let value: &SecretValue = value;
                store
                    .put(&key, value.clone(), Expect::Version(found.version))
                    .await
                    .unwrap();
            }
            None => store.delete(&key, &found.version).await.unwrap(),
        }
        let error = load(settings(), &upstream, &store, &clock)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains(message) && error.to_string().contains(name),
            "expected: {message}\nfound:    {error}"
        );
        let left = store.get(&key).await.unwrap().map(|found| found.value);
        assert_eq!(left, value);
        clock.advance(RELOAD_INTERVAL);
        leaf(&running, HOUR, &clock).await.unwrap();
    }
}

/// A running CA neither forgets what it knows nor buys what nobody could sign with.
#[tokio::test]
async fn a_state_that_was_taken_away_is_missed() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    let key = SecretKey::new("default", "mesh-ca").unwrap();
    let found = store.get(&key).await.unwrap().unwrap();
    store.delete(&key, &found.version).await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    leaf(&issuer, HOUR, &clock).await.unwrap();
    let error = issuer.prepare_next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("was taken away"), "{error}");
    assert_eq!(upstream.signed(), 1);
    delegated(&upstream, &store, &clock).await;
}

/// A key that is lost is noticed before it is needed.
#[tokio::test]
async fn what_cannot_sign_is_not_activated() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    issuer.prepare_next().await.unwrap();
    let key = SecretKey::new("default", "mesh-ca-key.g2").unwrap();
    let found = store.get(&key).await.unwrap().unwrap();
    store.delete(&key, &found.version).await.unwrap();
    let error = issuer.activate_next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let restarted = delegated(&upstream, &store, &clock).await;
    leaf(&restarted, HOUR, &clock).await.unwrap();
}

#[tokio::test]
async fn secrets_are_never_printed() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let issuer = delegated(&upstream, &store, &clock).await;
    let pem = store.text("mesh-ca-key.g1").await.unwrap();
    let body: Vec<&str> = pem.lines().filter(|line| !line.contains("--")).collect();
    assert!(!body.is_empty());
    upstream.set_down(true);
    let error = issuer.prepare_next().await.unwrap_err();
    let state = store.text("mesh-ca").await.unwrap();
    let printed = format!(
        "{issuer:?} {issuer:#?} {issuer} {error:?} {state} {:?}",
        settings()
    );
    for line in body {
        assert!(!printed.contains(line), "{printed}");
    }
    assert!(!printed.contains("PRIVATE KEY"));
}

/// Builds what the test gives it.
#[derive(Debug)]
struct Factory(Arc<Upstream>);

#[async_trait]
impl IssuerFactory for Factory {
    fn types(&self) -> Vec<String> {
        vec!["my-ca".to_owned()]
    }

    async fn build(&self, _: &BackendConfig, _: &BuildContext) -> Result<BuiltIssuer> {
        Ok(Arc::clone(&self.0).into())
    }
}

#[tokio::test]
async fn an_extension_in_mode_intermediate_is_delegated() {
    let (store, clock) = (Store::default(), FakeClock::new());
    let upstream = Upstream::builtin(&clock).await;
    let registry = BackendRegistry::new().with(Factory(Arc::clone(&upstream)));
    let context = BuildContext::new(
        "default",
        domain(),
        Arc::new(store.clone()),
        Arc::new(clock.clone()),
    );
    let config = |mode| BackendConfig::modern(&identity(mode)).unwrap();

    let direct = registry
        .build(&config(ExtensionMode::Leaf), &context)
        .await
        .unwrap();
    assert_eq!(direct.issuer.to_string(), "company CA");
    assert!(direct.rotation.is_none());

    let built = registry
        .build(&config(ExtensionMode::Intermediate), &context)
        .await
        .unwrap();
    let (issuer, rotation) = (IssuingCa::new(built.issuer), built.rotation.unwrap());
    assert_eq!(
        issuer.to_string(),
        "delegated CA of example.org under company CA"
    );
    let leaf = leaf(&issuer, DAY, &clock).await.unwrap();
    assert_eq!(leaf.chain.len(), 2);
    assert!(store.text("cart-intermediate").await.is_some());
    assert_eq!(rotation.due(), None);
    clock.advance(15 * DAY);
    assert_eq!(rotation.due(), Some(RotationStep::Prepare));

    // What cannot sign intermediates is refused in words.
    let leaves_only = Arc::clone(issuer.issuer());
    let registry = BackendRegistry::new().with(Factory(Upstream::of(leaves_only)));
    let error = registry
        .build(&config(ExtensionMode::Intermediate), &context)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error
            .to_string()
            .contains("cannot sign intermediate CAs; let it sign every leaf, or use another CA"),
        "{error}"
    );
    assert!(error.to_string().contains("backend: cart"), "{error}");
}

fn identity(mode: ExtensionMode) -> MeshIdentity {
    let mut extension = Extension::new(Provider::free_form("my-ca", FreeForm::default()));
    extension.mode = mode;
    MeshIdentity::new(Metadata::universal("cart"))
        .with_provider(IdentityProvider::Extension(extension))
}

#[derive(Clone, Debug)]
enum Op {
    Advance(u64),
    Issue(usize),
    Step(usize, RotationStep),
    Due(usize),
    Refresh(usize),
    Cut(usize, bool),
    Restart(usize),
    Down(bool),
    Upstream(RotationStep),
    Replace,
}

fn op() -> impl Strategy<Value = Op> {
    let step = || {
        prop_oneof![
            Just(RotationStep::Prepare),
            Just(RotationStep::Activate),
            Just(RotationStep::Retire)
        ]
    };
    let replica = 0usize..3;
    prop_oneof![
        4 => (6u64..200_000).prop_map(Op::Advance),
        3 => (200u64..400).prop_map(Op::Advance),
        6 => replica.clone().prop_map(Op::Issue),
        6 => (replica.clone(), step()).prop_map(|(replica, step)| Op::Step(replica, step)),
        3 => replica.clone().prop_map(Op::Due),
        3 => replica.clone().prop_map(Op::Refresh),
        2 => (replica.clone(), any::<bool>()).prop_map(|(replica, cut)| Op::Cut(replica, cut)),
        1 => replica.prop_map(Op::Restart),
        1 => any::<bool>().prop_map(Op::Down),
        4 => step().prop_map(Op::Upstream),
        1 => Just(Op::Replace),
    ]
}

/// Single steps, and now and then the ones that matter most in a row.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let changeover = (0usize..3, 0usize..3, 0u64..310).prop_map(|(one, other, wait)| {
        vec![
            Op::Replace,
            Op::Step(one, RotationStep::Prepare),
            Op::Advance(wait),
            Op::Step(other, RotationStep::Activate),
            Op::Issue(other),
            Op::Issue(one),
        ]
    });
    let few = prop_oneof![9 => op().prop_map(|op| vec![op]), 1 => changeover];
    prop::collection::vec(few, 1..50).prop_map(|few| few.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Three replicas rotate, issue, restart and lose their store in any order, while the upstream rotates, goes down
    /// and is replaced by another CA. At every moment, every leaf that is alive leads to a root that a control plane with a
    /// working store publishes; and no leaf is handed out before every connected replica publishes its root.
    #[test]
    fn no_living_leaf_is_ever_without_its_root(ops in ops()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (store, clock) = (Store::default(), FakeClock::new());
            let upstream = Upstream::builtin(&clock).await;
            let settings = || settings().with_lifetime(10 * DAY).with_max_leaf_lifetime(2 * DAY);
            let mut replicas = Vec::new();
            for _ in 0..3 {
                let link = store.link();
                replicas.push((load(settings(), &upstream, &link, &clock).await.unwrap(), link));
            }
            let (mut leaves, mut companies) = (Vec::<Leaf>::new(), 0);
            for op in ops {
                match op {
                    Op::Advance(seconds) => clock.advance(Duration::from_secs(seconds)),
                    Op::Issue(n) => {
                        if let Ok(issued) = leaf(&replicas[n].0, 2 * DAY, &clock).await {
                            for (other, link) in &replicas {
                                if !link.cut.load(Ordering::SeqCst) {
                                    let bundle = other.trust_bundle().await.unwrap();
                                    // A replica that was cut off signs with what the others still trust.
                                    prop_assert!(bundle.contains(&issued.root), "used before it was trusted");
                                }
                            }
                            leaves.push(issued);
                        }
                    }
                    Op::Step(n, step) => { let _ = replicas[n].0.rotate(step).await; }
                    Op::Due(n) => {
                        if let Some(step) = replicas[n].0.rotation_due() {
                            let _ = replicas[n].0.rotate(step).await;
                        }
                    }
                    Op::Refresh(n) => { let _ = replicas[n].0.follow_upstream().await; }
                    Op::Cut(n, cut) => {
                        replicas[n].1.cut.store(cut, Ordering::SeqCst);
                        // A store that failed is not asked again for a moment.
                        clock.advance(Duration::from_secs(6));
                    }
                    Op::Restart(n) => {
                        let link = store.link();
                        replicas[n] = (load(settings(), &upstream, &link, &clock).await.unwrap(), link);
                    }
                    Op::Down(down) => upstream.set_down(down),
                    Op::Upstream(step) => { let _ = upstream.rotate(step).await; }
                    Op::Replace => {
                        companies += 1;
                        upstream.move_to(company(&format!("company-{companies}"), &clock, 3650 * DAY).await);
                    }
                }
                let published = load(settings(), &upstream, &store, &clock).await.unwrap()
                    .trust_bundle().await.unwrap();
                leaves.retain(|leaf| leaf.not_after >= clock.now());
                for leaf in &leaves {
                    prop_assert!(published.contains(&leaf.root), "{leaf:?} has lost its root");
                }
            }
            Ok(())
        })?;
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Driven by nothing but what is due, with an upstream that is down now and then and rotates, leaves are always signed in full.
    #[test]
    fn whoever_does_what_is_due_never_notices(
        days in prop::collection::vec((any::<bool>(), 0u8..8), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (store, clock) = (Store::default(), FakeClock::new());
            let upstream = Upstream::builtin(&clock).await;
            let issuer = delegated(&upstream, &store, &clock).await;
            let mut down_for = 0;
            for (down, event) in days {
                // Down for nine days at most, which is less than lies between preparing and activating.
                down_for = if down && down_for < 9 { down_for + 1 } else { 0 };
                upstream.set_down(down_for > 0);
                match event {
                    0 => { let _ = upstream.rotate(RotationStep::Prepare).await; }
                    1 => { let _ = upstream.rotate(RotationStep::Activate).await; }
                    2 => { let _ = upstream.rotate(RotationStep::Retire).await; }
                    _ => {}
                }
                for _ in 0..2 {
                    let _ = issuer.follow_upstream().await;
                    if let Some(step) = issuer.rotation_due() {
                        let _ = issuer.rotate(step).await;
                    }
                    clock.advance(12 * HOUR);
                }
                let issued = leaf(&issuer, 4 * DAY, &clock).await.unwrap();
                prop_assert_eq!(issued.observations, []);
            }
            Ok(())
        })?;
    }
}

/// Its root may be elsewhere in the trust of its mesh, as with any other CA.
#[tokio::test]
async fn an_upstream_that_does_not_have_its_root() {
    let clock = FakeClock::new();
    let root = Ca::root("corp root");
    let lower = root.below("corp mesh ca");
    let key = PrivateKey::from_der(&lower.key.serialize_der().try_into().unwrap()).unwrap();
    let key = key.expose_pem().unwrap();
    let provided = |chain: &[&Ca]| {
        let pem: String = chain.iter().map(|ca| ca.pem()).collect();
        let ca = ProvidedCa::from_pem(&pem, key.expose_str().unwrap()).unwrap();
        BuiltinIssuer::provided(domain(), ca, Arc::new(clock.clone())).unwrap()
    };
    let upstream = Upstream::of(provided(&[&lower]));
    let store = Store::default();
    let issuer = delegated(&upstream, &store, &clock).await;
    assert_eq!(issuer.trust_bundle().await.unwrap(), lower.bundle());
    let error = issuer.issue(&spec(), &clock).await.unwrap_err();
    assert!(error.to_string().contains("is an intermediate"), "{error}");
    let served = async |issuer: &IssuingCa<DelegatedIssuer>| {
        let among_peers = issuer.for_peers_with(root.bundle());
        let issued = among_peers.issue(&spec(), &clock).await.unwrap();
        let certificate = issued.certificate();
        assert_eq!(certificate.root().der(), &root.der);
        assert_eq!(certificate.chain().len(), 3);
        assert_eq!(certificate.chain()[2], lower.der);
    };
    served(&issuer).await;
    let again = delegated(&upstream, &store, &clock).await;
    served(&again).await;
    assert_eq!(upstream.signed(), 1);

    // The root is added where the CA is.
    upstream.replace(provided(&[&lower, &root]));
    again.follow_upstream().await.unwrap();
    served(&again).await;
    again.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL + SECOND);
    again.activate_next().await.unwrap();
    let issued = again.issue(&spec(), &clock).await.unwrap();
    assert_eq!(issued.certificate().root().der(), &root.der);
}
