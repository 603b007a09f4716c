//! The built-in CA: made once, loaded by all, replaced without a gap.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::common::{Ca, DAY, FakeClock, HOUR, ca_params, domain, spec, start};
use async_trait::async_trait;
use der::Decode as _;
use meshca_core::builtin::{
    BACKDATE, BuiltinIssuer, CaSecrets, CaSettings, MIN_CA_LIFETIME, ProvidedCa, RELOAD_INTERVAL,
    RotationStep,
};
use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
use meshca_core::resource::{
    Bundled, BundledCa, IdentityProvider, MeshIdentity, Metadata, Resource,
};
use meshca_core::{
    CaRotation as _, Capabilities, CertificateRequest, CertificateSpec, CheckReport, Clock,
    DirSecretStore, Error, ErrorKind, Expect, Issuer, IssuingCa, KeyType, MemorySecretStore,
    Observation, PrivateKey, Proof, Result, Retry, SecretKey, SecretStore, SecretValue,
    SignedChain, Signer, SpiffeId, StoredSecret, TrustBundle, Version,
};
use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, DnValue, IsCa, KeyUsagePurpose};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use x509_cert::Certificate;
use x509_cert::ext::pkix::KeyUsage;

fn settings() -> CaSettings {
    CaSettings::new(domain(), CaSecrets::for_backend("default", "ca-1").unwrap())
}

async fn builtin(store: &Arc<MemorySecretStore>, clock: &FakeClock) -> IssuingCa<BuiltinIssuer> {
    load(settings(), Arc::clone(store) as Arc<dyn SecretStore>, clock)
        .await
        .unwrap()
}

async fn load(
    settings: CaSettings,
    store: Arc<dyn SecretStore>,
    clock: &FakeClock,
) -> Result<IssuingCa<BuiltinIssuer>> {
    let issuer = BuiltinIssuer::load_or_create(settings, store, Arc::new(clock.clone())).await;
    issuer.map(IssuingCa::new)
}

fn read(der: &[u8]) -> Certificate {
    Certificate::from_der(der).unwrap()
}

/// What is built by construction must pass the verification that others have to.
async fn verified_like_anyone_elses(
    issuer: &dyn Issuer,
    request: &CertificateRequest,
    now: SystemTime,
) {
    let certificates = issuer.sign(request).await.unwrap().certificates().to_vec();
    let bundle = issuer.trust_bundle().await.unwrap();
    let issued = SignedChain::new(certificates)
        .verify(request, &bundle, now)
        .unwrap();
    assert_eq!(issued.proof(), Proof::Signatures);
    assert!(
        issued
            .observations()
            .iter()
            .all(|seen| matches!(seen, Observation::ShorterLifetime { .. })),
        "{:?}",
        issued.observations()
    );
}

#[tokio::test]
async fn defaults_are_what_the_docs_say() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let issuer = builtin(&store, &clock).await;
    let bundle = issuer.trust_bundle().await.unwrap();
    let root = &bundle.roots()[0];
    assert_eq!(root.subject(), "CN=example.org,OU=Mesh,O=meshca");
    assert_eq!(root.validity().not_after(), start() + 10 * 365 * DAY);
    assert_eq!(
        root.validity().not_before(),
        start() - Duration::from_secs(10)
    );
    assert_eq!(issuer.capabilities().max_lifetime(), Some(30 * DAY));
    let key = store
        .get(&SecretKey::new("default", "default.ca-builtin-key-ca-1").unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        PrivateKey::from_pem(key.value.expose_str().unwrap())
            .unwrap()
            .key_type(),
        KeyType::P256
    );

    let identity = issuer
        .issue(
            &CertificateSpec::workload(crate::common::spiffe_id()),
            &clock,
        )
        .await
        .unwrap();
    let certificate = identity.certificate();
    assert_eq!(certificate.validity().not_before(), start() - BACKDATE);
    assert_eq!(
        certificate.validity().not_after(),
        start() + DAY,
        "a leaf lives for a day by default"
    );
    assert_eq!(certificate.proof(), Proof::Construction);
    assert_eq!(certificate.issuer(), root.subject());
    assert_eq!(
        certificate.path(),
        ["(empty)", "CN=example.org,OU=Mesh,O=meshca"]
    );
    assert!(bundle.contains(certificate.root().der()));

    let leaf = read(&certificate.chain()[0]);
    let serial = leaf.tbs_certificate().serial_number().as_bytes();
    assert!(
        (14..=17).contains(&serial.len()),
        "128 random bits, give or take leading zeros: {serial:?}"
    );
    let hex: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(certificate.serial(), hex.trim_start_matches("00"));
    assert_eq!(certificate.chain().len(), 1, "peers have the root");
    assert!(leaf.tbs_certificate().subject().is_empty());
}

#[tokio::test]
async fn every_key_type_under_every_ca() {
    let clock = FakeClock::new();
    for ca_type in [
        KeyType::P256,
        KeyType::P384,
        KeyType::Ed25519,
        KeyType::Rsa2048,
    ] {
        let store = Arc::new(MemorySecretStore::new());
        let issuer = load(settings().with_key_type(ca_type), store, &clock)
            .await
            .unwrap();
        for leaf_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(leaf_type).unwrap();
            let spec = spec()
                .with_common_name("cart.mesh")
                .with_dns_name("cart.mesh")
                .with_uri("kuma://kuma.io/service/cart");
            let held = CertificateRequest::for_key(spec.clone(), &key, start()).unwrap();
            verified_like_anyone_elses(&*issuer, &held, start()).await;
            let proved =
                CertificateRequest::for_csr(spec, held.csr().unwrap().clone(), start()).unwrap();
            verified_like_anyone_elses(&*issuer, &proved, start()).await;
            let leaf = read(&issuer.sign(&held).await.unwrap().certificates()[0]);
            let (_, usage) = leaf
                .tbs_certificate()
                .get_extension::<KeyUsage>()
                .unwrap()
                .unwrap();
            assert!(usage.digital_signature());
            assert_eq!(usage.key_encipherment(), leaf_type.is_rsa(), "{leaf_type}");
        }
    }
}

#[tokio::test]
async fn intermediates_can_be_signed_two_levels_deep_and_no_deeper() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let issuer = builtin(&store, &clock).await;
    let key = PrivateKey::generate(KeyType::P256).unwrap();
    let upper = CertificateSpec::intermediate(&domain(), "upper")
        .unwrap()
        .with_path_len(1)
        .with_lifetime(300 * DAY);
    let request = CertificateRequest::for_key(upper, &key, start()).unwrap();
    let issued = issuer.issue_for(&request, &clock).await.unwrap();
    assert_eq!(
        issued.validity().not_after(),
        start() + 300 * DAY,
        "the limit for leaves is not one for CAs"
    );
    let root = issuer.trust_bundle().await.unwrap().to_pem();
    let upper = ProvidedCa::from_pem(
        &(issued.chain_pem() + &root),
        key.expose_pem().unwrap().expose_str().unwrap(),
    )
    .unwrap();
    let upper = BuiltinIssuer::provided(domain(), upper, Arc::new(clock.clone()));
    let upper = IssuingCa::new(upper.unwrap());
    assert!(upper.capabilities().intermediates());

    let identity = upper.issue(&spec(), &clock).await.unwrap();
    assert_eq!(
        identity.certificate().path(),
        ["(empty)", "CN=upper", "CN=example.org,OU=Mesh,O=meshca"]
    );
    assert_eq!(
        identity.certificate().chain().len(),
        2,
        "the intermediate is delivered with the leaf"
    );
    verified_like_anyone_elses(&*upper, &crate::common::request(identity.key()), start()).await;

    let lower = CertificateSpec::intermediate(&domain(), "lower").unwrap();
    upper.issue(&lower, &clock).await.unwrap();
    let error = upper
        .issue(&lower.with_path_len(1), &clock)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_foreign_trust_domain_is_refused() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let issuer = builtin(&store, &clock).await;
    for id in [
        "spiffe://example.orgi/a",
        "spiffe://example.or/a",
        "spiffe://sub.example.org/a",
    ] {
        let error = issuer
            .sign(
                &CertificateRequest::for_key(
                    CertificateSpec::workload(SpiffeId::new(id).unwrap()),
                    &PrivateKey::generate(KeyType::P256).unwrap(),
                    start(),
                )
                .unwrap(),
            )
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[tokio::test]
async fn nothing_outlives_the_ca() {
    let clock = FakeClock::new();
    let issuer = load(
        settings().with_lifetime(2 * DAY),
        Arc::new(MemorySecretStore::new()),
        &clock,
    )
    .await
    .unwrap();
    clock.advance(DAY + 12 * HOUR);
    let identity = issuer
        .issue(&spec().with_lifetime(DAY), &clock)
        .await
        .unwrap();
    assert_eq!(
        identity.certificate().validity().not_after(),
        start() + 2 * DAY
    );
    let [
        Observation::ShorterLifetime {
            requested, granted, ..
        },
    ] = identity.certificate().observations()
    else {
        panic!()
    };
    assert_eq!((*requested, *granted), (DAY, 12 * HOUR));
    let report = issuer.check().await.unwrap();
    assert_eq!(
        report.warnings,
        ["the CA `CN=example.org,OU=Mesh,O=meshca` ends at 2026-01-03T00:00:00Z; rotate it"]
    );

    clock.advance(12 * HOUR);
    let error = issuer.issue(&spec(), &clock).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("ended at 2026-01-03T00:00:00Z; rotate it"),
        "{error}"
    );
    assert!(issuer.check().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_creators_share_one_ca() {
    for round in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn SecretStore> = if round % 4 == 0 {
            Arc::new(DirSecretStore::open(dir.path().join("state")).unwrap())
        } else {
            Arc::new(MemorySecretStore::new())
        };
        let clock = FakeClock::new();
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (store, clock) = (Arc::clone(&store), clock.clone());
                tokio::spawn(async move {
                    let issuer = load(settings(), store, &clock).await.unwrap();
                    issuer.issue(&spec(), &clock).await.unwrap();
                    issuer.trust_bundle().await.unwrap().to_pem()
                })
            })
            .collect();
        let mut roots = Vec::new();
        for task in tasks {
            roots.push(task.await.unwrap());
        }
        roots.dedup();
        assert_eq!(roots.len(), 1);
    }
}

#[tokio::test]
async fn halves_of_two_cas_are_noticed() {
    let clock = FakeClock::new();
    let (cert_name, key_name) = (
        "default.ca-builtin-cert-ca-1",
        "default.ca-builtin-key-ca-1",
    );
    let name = |name: &str| SecretKey::new("default", name).unwrap();
    let other = Ca::root("other");
    let key = PrivateKey::generate(KeyType::P256)
        .unwrap()
        .expose_pem()
        .unwrap();
    let cases: [(Option<SecretValue>, Option<SecretValue>, &str); 5] = [
        (
            Some(other.pem().as_str().into()),
            Some(key.clone()),
            "the key does not belong to the certificate `CN=other`",
        ),
        (
            Some(other.pem().as_str().into()),
            None,
            "its certificate is there, and its key is not",
        ),
        (
            Some("junk".into()),
            Some(key.clone()),
            "cannot be read: line 1: no `-----BEGIN CERTIFICATE-----` in it",
        ),
        (
            Some(other.pem().as_str().into()),
            Some("junk".into()),
            "not a PEM private key: line 1",
        ),
        (
            None,
            Some(key.clone()),
            "its key is there, and its certificate is not",
        ),
    ];
    for (certificate, key, message) in cases {
        let store = Arc::new(MemorySecretStore::new());
        for (name, value) in [(name(cert_name), &certificate), (name(key_name), &key)] {
            if let Some(value) = value {
                store
                    .put(&name, value.clone(), Expect::Absent)
                    .await
                    .unwrap();
            }
        }
        let error = load(
            settings(),
            Arc::clone(&store) as Arc<dyn SecretStore>,
            &clock,
        )
        .await
        .unwrap_err();
        assert!(
            error.to_string().contains(message),
            "expected: {message}\nfound:    {error}"
        );
        assert!(error.to_string().contains(key_name), "{error}");
        // Nothing was written over what was there.
        let found = store
            .get(&name(cert_name))
            .await
            .unwrap()
            .map(|found| found.value);
        assert_eq!(found, certificate);
    }
}

#[tokio::test]
async fn provided_cas_are_checked() {
    let clock = FakeClock::new();
    let root = Ca::root("corp root");
    let intermediate = root.below("corp mesh ca");
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = ca_params("bad ca");
        change(&mut params);
        let ca = root.below_with(params);
        (ca.pem() + &root.pem(), ca.key.serialize_der())
    };
    let key = |ca: &Ca| ca.key.serialize_der();
    let full = intermediate.pem() + &root.pem();
    let cases = [
        (
            (String::new(), key(&intermediate)),
            "its chain has 0 certificates",
        ),
        (
            (full.clone(), key(&root)),
            "line 1 of its certificates: the key does not belong to the certificate `CN=corp mesh ca`",
        ),
        (
            (root.pem() + &intermediate.pem(), key(&root)),
            "`CN=corp mesh ca` did not sign `CN=corp root` before it; order the chain",
        ),
        (
            (
                intermediate.pem() + &Ca::root("corp root").pem(),
                key(&intermediate),
            ),
            "did not sign",
        ),
        (
            (root.pem(), key(&root)),
            "self-signed certificates are not allowed; set `insecureAllowSelfSigned: true`",
        ),
        (
            changed(|ca| ca.is_ca = IsCa::ExplicitNoCa),
            "`CN=bad ca` is not a CA",
        ),
        (
            changed(|ca| ca.key_usages = vec![KeyUsagePurpose::CrlSign]),
            "key usage `keyCertSign` is missing",
        ),
        (
            changed(|ca| ca.key_usages.push(KeyUsagePurpose::KeyAgreement)),
            "has the key usage `keyAgreement`",
        ),
        (
            changed(|ca| ca.not_after = (start() - HOUR).into()),
            "ended at 2025-12-31T23:00:00Z; renew it",
        ),
        (
            changed(|ca| ca.not_before = (start() + HOUR).into()),
            "begins only at 2026-01-01T01:00:00Z",
        ),
        (
            (
                full.clone() + "-----BEGIN\n" + &root.pem(),
                key(&intermediate),
            ),
            "this is part of a PEM block whose `-----BEGIN …` is missing or damaged",
        ),
    ];
    let provided = |(certificates, key): (String, Vec<u8>)| {
        let key = PrivateKey::from_der(&key.try_into().unwrap())
            .unwrap()
            .expose_pem()
            .unwrap();
        let ca = ProvidedCa::from_pem(&certificates, key.expose_str().unwrap())?;
        BuiltinIssuer::provided(domain(), ca, Arc::new(clock.clone())).map(IssuingCa::new)
    };
    for (ca, message) in cases {
        let error = provided(ca).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(
            error.to_string().contains(message),
            "expected: {message}\nfound:    {error}"
        );
    }

    // Those that `openssl req -x509` makes have no key usages.
    let without_usages = changed(|ca| ca.key_usages.clear());
    let issuer = provided(without_usages).unwrap();
    issuer.issue(&spec(), &clock).await.unwrap();
    let plain_root = Ca::root_with({
        let mut params = ca_params("plain root");
        params.key_usages.clear();
        params
    });
    let below = plain_root.below("below");
    let issuer = provided((below.pem() + &plain_root.pem(), key(&below))).unwrap();
    issuer.issue(&spec(), &clock).await.unwrap();
    let plain_key = PrivateKey::from_der(&key(&plain_root).try_into().unwrap()).unwrap();
    let plain_key = plain_key.expose_pem().unwrap();
    let alone = ProvidedCa::from_pem(&plain_root.pem(), plain_key.expose_str().unwrap());
    let alone = alone.unwrap().allow_self_signed(true);
    let issuer = BuiltinIssuer::provided(domain(), alone, Arc::new(clock.clone())).unwrap();
    let issuer = IssuingCa::new(issuer);
    let identity = issuer.issue(&spec(), &clock).await.unwrap();
    verified_like_anyone_elses(&*issuer, &crate::common::request(identity.key()), start()).await;

    let issuer = provided((full, key(&intermediate))).unwrap();
    let identity = issuer.issue(&spec(), &clock).await.unwrap();
    assert_eq!(
        identity.certificate().path(),
        ["(empty)", "CN=corp mesh ca", "CN=corp root"]
    );
    assert_eq!(issuer.to_string(), "provided CA of example.org");
    assert_eq!(
        issuer.prepare_next().await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    verified_like_anyone_elses(&*issuer, &crate::common::request(identity.key()), start()).await;
}

/// Its root may be elsewhere in the trust of its mesh.
#[tokio::test]
async fn a_bare_intermediate_loads_and_leads_to_the_root_of_its_peers() {
    let clock = FakeClock::new();
    let root = Ca::root("corp root");
    let upper = root.below("corp ca");
    let lower = upper.below("corp mesh ca");
    let of = |cas: &[&Ca]| {
        let all = cas.iter().map(|ca| ca.der.clone());
        TrustBundle::new(domain(), all).unwrap()
    };
    let key = |ca: &Ca| {
        let key = PrivateKey::from_der(&ca.key.serialize_der().try_into().unwrap());
        key.unwrap().expose_pem().unwrap()
    };
    for (chain, anchor) in [
        (vec![&lower], &lower),
        (vec![&lower, &upper], &upper),
        (vec![&lower, &upper, &root], &root),
    ] {
        let pem: String = chain.iter().map(|ca| ca.pem()).collect();
        let ca = ProvidedCa::from_pem(&pem, key(&lower).expose_str().unwrap()).unwrap();
        let issuer = BuiltinIssuer::provided(domain(), ca, Arc::new(clock.clone()));
        let issuer = IssuingCa::new(issuer.unwrap());
        let named = issuer.trust_bundle().await.unwrap();
        assert_eq!(named, of(&[anchor]));
        let alone = issuer.issue(&spec(), &clock).await;
        match named.ends().count() {
            0 => {
                let error = alone.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::BadResponse);
                assert!(error.to_string().contains("is an intermediate"), "{error}");
            }
            _ => drop(alone.unwrap()),
        }
        let peers = of(&[&upper, &Ca::root("other"), &root]);
        let among_peers = issuer.for_peers_with(peers);
        let issued = among_peers.issue(&spec(), &clock).await.unwrap();
        let certificate = issued.certificate();
        assert_eq!(certificate.root().der(), &root.der);
        assert_eq!(
            certificate.chain()[1..],
            [lower.der.clone(), upper.der.clone()]
        );
        assert_eq!(issuer.trust(&clock).await.unwrap(), named);
        let for_rustls = named.clone().allow_partial_chains(true);
        let issuer = issuer.for_peers_with(for_rustls);
        let issued = issuer.issue(&spec(), &clock).await.unwrap();
        assert_eq!(issued.certificate().root().der(), &anchor.der);
        assert_eq!(issued.certificate().proof(), Proof::Construction);
    }
    // It must be able to sign what peers accept, all the same.
    let narrow = root.below_with({
        let mut params = ca_params("narrow");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params
    });
    let below = narrow.below("below");
    let pem = below.pem() + &narrow.pem();
    let ca = ProvidedCa::from_pem(&pem, key(&below).expose_str().unwrap()).unwrap();
    let error = BuiltinIssuer::provided(domain(), ca, Arc::new(clock)).unwrap_err();
    assert!(error.to_string().contains("path length"), "{error}");
}

/// Peers compare names byte for byte: the issuer field must repeat the CA's subject in its own string types.
#[tokio::test]
async fn a_provided_cas_name_is_repeated_to_the_letter() {
    let clock = FakeClock::new();
    let mut params = ca_params("");
    let mut name = rcgen::DistinguishedName::new();
    name.push(
        DnType::CountryName,
        DnValue::PrintableString("DE".try_into().unwrap()),
    );
    name.push(
        DnType::OrganizationName,
        DnValue::Utf8String("Müller & Söhne".into()),
    );
    name.push(
        DnType::OrganizationalUnitName,
        DnValue::TeletexString("Mesh".try_into().unwrap()),
    );
    name.push(
        DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 25]),
        DnValue::Ia5String("example".try_into().unwrap()),
    );
    name.push(
        DnType::CommonName,
        DnValue::BmpString("CA ü".try_into().unwrap()),
    );
    params.distinguished_name = name;
    params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7; 20]);
    let root = Ca::root_with(params);
    let key = PrivateKey::from_der(&root.key.serialize_der().try_into().unwrap()).unwrap();
    let ca = ProvidedCa::with_signer(&root.pem(), Arc::new(key))
        .unwrap()
        .allow_self_signed(true);
    let issuer = BuiltinIssuer::provided(domain(), ca, Arc::new(clock.clone())).unwrap();
    let key = PrivateKey::generate(KeyType::P256).unwrap();
    verified_like_anyone_elses(&issuer, &crate::common::request(&key), start()).await;
}

/// A CA whose key is in a device.
#[derive(Debug)]
struct Device {
    key: PrivateKey,
    answer: fn(Result<Vec<u8>>) -> Result<Vec<u8>>,
}

impl Signer for Device {
    fn key_type(&self) -> KeyType {
        self.key.key_type()
    }

    fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        self.key.public_key()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        (self.answer)(Signer::sign(&self.key, message))
    }
}

#[tokio::test]
async fn a_signer_in_a_device_is_heard_and_not_believed() {
    let clock = FakeClock::new();
    let root = Ca::root("hsm root");
    let issuer = |answer| {
        let key = PrivateKey::from_der(&root.key.serialize_der().try_into().unwrap()).unwrap();
        let device = Arc::new(Device { key, answer });
        let ca = ProvidedCa::with_signer(&root.pem(), device).unwrap();
        let clock = Arc::new(clock.clone());
        let issuer = BuiltinIssuer::provided(domain(), ca.allow_self_signed(true), clock);
        IssuingCa::new(issuer.unwrap())
    };
    let sound = issuer(|signature| signature);
    sound.check().await.unwrap();
    let identity = sound.issue(&spec(), &clock).await.unwrap();
    assert_eq!(identity.certificate().proof(), Proof::Signatures);

    let locked = issuer(|_| {
        Err(Error::new(
            ErrorKind::Unavailable,
            "the HSM is locked; log in",
        ))
    });
    for error in [
        locked.check().await.unwrap_err(),
        locked.issue(&spec(), &clock).await.unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, Retry::Backoff)
        );
        assert!(
            error.to_string().starts_with("the HSM is locked; log in"),
            "{error}"
        );
    }

    let lying = issuer(|_| Ok(vec![1, 2, 3]));
    assert_eq!(
        lying.check().await.unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    let error = lying.issue(&spec(), &clock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert!(
        error
            .to_string()
            .contains("a signature in the chain does not verify"),
        "{error}"
    );
}

/// Answers one request with the certificate of another one, as a broken wrapper might.
#[derive(Debug)]
struct Swapping(IssuingCa<BuiltinIssuer>, SignedChain);

impl fmt::Display for Swapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("swapping")
    }
}

#[async_trait]
impl Issuer for Swapping {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn sign(&self, _: &CertificateRequest) -> Result<SignedChain> {
        Ok(self.1.clone())
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.0.trust_bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.0.check().await
    }
}

#[tokio::test]
async fn construction_vouches_for_its_own_request_and_root_only() {
    let clock = FakeClock::new();
    let issuer = builtin(&Arc::new(MemorySecretStore::new()), &clock).await;
    let (mine, theirs) = (
        PrivateKey::generate(KeyType::P256).unwrap(),
        PrivateKey::generate(KeyType::P256).unwrap(),
    );
    let chain = issuer.sign(&crate::common::request(&theirs)).await.unwrap();
    let foreign = Ca::root("foreign").bundle();
    assert!(
        chain
            .clone()
            .verify(&crate::common::request(&theirs), &foreign, start())
            .unwrap_err()
            .to_string()
            .contains("root unknown")
    );

    let swapping = IssuingCa::new(Swapping(issuer, chain.clone()));
    swapping
        .issue_for(&crate::common::request(&theirs), &clock)
        .await
        .unwrap();
    let error = swapping
        .issue_for(&crate::common::request(&mine), &clock)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("is for the key of the request"),
        "{error}"
    );
    // The same key, but another identity: the digest of the request tells them apart.
    let other = CertificateSpec::workload(SpiffeId::new("spiffe://example.org/admin").unwrap());
    let error = swapping
        .issue_for(
            &CertificateRequest::for_key(other, &theirs, start()).unwrap(),
            &clock,
        )
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("that was not requested"),
        "{error}"
    );
    // A late answer is no answer.
    clock.advance(2 * HOUR);
    let error = swapping
        .issue_for(&crate::common::request(&theirs), &clock)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("had ended when it arrived"),
        "{error}"
    );
}

#[tokio::test]
async fn trust_comes_before_use_and_outlives_it() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let issuer = builtin(&store, &clock).await;
    let replica = builtin(&store, &clock).await;
    let old = issuer.issue(&spec(), &clock).await.unwrap();
    assert_eq!(
        issuer.activate_next().await.unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );

    let both = issuer.prepare_next().await.unwrap();
    assert_eq!(both.roots().len(), 2);
    assert_eq!(
        issuer.prepare_next().await.unwrap(),
        both,
        "doing it twice changes nothing"
    );
    let still = issuer.issue(&spec(), &clock).await.unwrap();
    assert_eq!(
        still.certificate().root(),
        old.certificate().root(),
        "what is prepared does not sign"
    );

    let error = issuer.activate_next().await.unwrap_err();
    assert_eq!(error.retry(), Retry::After(RELOAD_INTERVAL));
    clock.advance(RELOAD_INTERVAL);
    assert_eq!(
        replica.trust_bundle().await.unwrap(),
        both,
        "the other replica has seen it by now"
    );
    issuer.activate_next().await.unwrap();
    let new = issuer.issue(&spec(), &clock).await.unwrap();
    assert_ne!(new.certificate().root(), old.certificate().root());
    assert_eq!(
        new.certificate().issuer(),
        "CN=example.org G2,OU=Mesh,O=meshca"
    );

    // The replica has not noticed; what it signs is trusted for as long as it lives.
    let late = replica.issue(&spec(), &clock).await.unwrap();
    assert_eq!(late.certificate().root(), old.certificate().root());
    assert!(
        issuer
            .trust_bundle()
            .await
            .unwrap()
            .contains(late.certificate().root().der())
    );
    clock.advance(RELOAD_INTERVAL);
    let followed = replica.issue(&spec(), &clock).await.unwrap();
    assert_eq!(followed.certificate().root(), new.certificate().root());

    assert_eq!(issuer.rotation_due(), None);
    clock.advance(30 * DAY + 2 * HOUR);
    assert_eq!(issuer.rotation_due(), Some(RotationStep::Retire));
    issuer.retire().await.unwrap();
    let bundle = issuer.trust_bundle().await.unwrap();
    assert_eq!(bundle.roots().len(), 1);
    assert!(bundle.contains(new.certificate().root().der()));
    let gone = store
        .get(&SecretKey::new("default", "default.ca-builtin-key-ca-1").unwrap())
        .await
        .unwrap();
    assert!(gone.is_none(), "the key of a retired CA is deleted");

    let restarted = builtin(&store, &clock).await;
    let identity = restarted.issue(&spec(), &clock).await.unwrap();
    assert_eq!(identity.certificate().root(), new.certificate().root());
}

/// What is signed by construction is not looked at again, so the CA is, when it is loaded.
#[tokio::test]
async fn a_provided_ca_whose_leaves_peers_would_refuse_is_refused() {
    let clock = FakeClock::new();
    let provided = |ca: &Ca, chain: String| {
        let key = PrivateKey::from_der(&ca.key.serialize_der().try_into().unwrap()).unwrap();
        let key = key.expose_pem().unwrap();
        let ca = ProvidedCa::from_pem(&chain, key.expose_str().unwrap())?;
        BuiltinIssuer::provided(domain(), ca, Arc::new(clock.clone())).map(IssuingCa::new)
    };
    let root = Ca::root("root");
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = ca_params("ca");
        change(&mut params);
        root.below_with(params)
    };
    let limited = changed(|ca| ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0)));
    let too_deep = limited.below("too deep");
    let error = provided(&too_deep, too_deep.pem() + &limited.pem() + &root.pem()).unwrap_err();
    assert!(error.to_string().contains("path length"), "{error}");

    let email = changed(|ca| {
        ca.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::EmailProtection]
    });
    let error = provided(&email, email.pem() + &root.pem()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("peers would refuse what it signs"),
        "{error}"
    );

    // Some names only: which ones is found out for every certificate.
    let corp = changed(|ca| {
        ca.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("corp.example".to_owned())],
            excluded_subtrees: vec![],
        });
    });
    let issuer = provided(&corp, corp.pem() + &root.pem()).unwrap();
    let allowed = spec().with_dns_name("cart.corp.example");
    let identity = issuer.issue(&allowed, &clock).await.unwrap();
    assert_eq!(identity.certificate().proof(), Proof::Signatures);
    let foreign = spec().with_dns_name("cart.other.example");
    let error = issuer.issue(&foreign, &clock).await.unwrap_err();
    assert!(
        error.to_string().contains("constrained to other names"),
        "{error}"
    );

    // A root that comes twice is still self-signed.
    let error = provided(&root, root.pem() + &root.pem()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("self-signed certificates are not allowed"),
        "{error}"
    );
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_stop_a_replica_from_following() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let fast = FakeClock::new();
    fast.advance(HOUR);
    builtin(&store, &clock).await;
    let follower = builtin(&store, &fast).await;
    fast.set(start());
    let leader = builtin(&store, &clock).await;
    let both = leader.prepare_next().await.unwrap();
    assert_eq!(follower.trust_bundle().await.unwrap(), both);
    for clock in [&clock, &fast] {
        clock.advance(RELOAD_INTERVAL);
    }
    leader.activate_next().await.unwrap();
    follower.reload().await.unwrap();
    let new = follower.issue(&spec(), &fast).await.unwrap();
    assert_eq!(
        new.certificate().issuer(),
        "CN=example.org G2,OU=Mesh,O=meshca"
    );
}

#[tokio::test]
async fn a_next_ca_that_is_of_no_use_stops_nobody_and_is_replaced() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let issuer = builtin(&store, &clock).await;
    issuer.prepare_next().await.unwrap();
    let name = SecretKey::new("default", "default.ca-builtin-cert-ca-1.g2").unwrap();
    let found = store.get(&name).await.unwrap().unwrap();
    let broken = SecretValue::from("no certificate");
    store
        .put(&name, broken, Expect::Version(found.version))
        .await
        .unwrap();

    let restarted = builtin(&store, &clock).await;
    restarted.issue(&spec(), &clock).await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    assert_eq!(
        restarted.activate_next().await.unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    builtin(&store, &clock)
        .await
        .issue(&spec(), &clock)
        .await
        .unwrap();

    restarted.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    restarted.activate_next().await.unwrap();
    let identity = restarted.issue(&spec(), &clock).await.unwrap();
    assert_eq!(
        identity.certificate().issuer(),
        "CN=example.org G3,OU=Mesh,O=meshca"
    );
}

#[tokio::test]
async fn a_root_outlives_the_intermediates_below_it() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let issuer = builtin(&store, &clock).await;
    let spec = CertificateSpec::intermediate(&domain(), "lower").unwrap();
    let year = spec.with_lifetime(365 * DAY);
    let lower = issuer.issue(&year, &clock).await.unwrap();
    issuer.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    issuer.activate_next().await.unwrap();
    clock.set(lower.certificate().validity().not_after());
    issuer.retire().await.unwrap();
    assert!(
        issuer
            .trust_bundle()
            .await
            .unwrap()
            .contains(lower.certificate().root().der())
    );
}

/// Everything has ended while the control plane was down: the CA must still be replaceable.
#[tokio::test]
async fn a_ca_that_has_ended_can_be_replaced() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let short = || settings().with_lifetime(10 * DAY);
    let shared = || Arc::clone(&store) as Arc<dyn SecretStore>;
    load(short(), shared(), &clock).await.unwrap();
    clock.advance(20 * DAY);
    let issuer = load(short(), shared(), &clock).await.unwrap();
    assert_eq!(issuer.rotation_due(), Some(RotationStep::Prepare));
    let error = issuer.issue(&spec(), &clock).await.unwrap_err();
    assert!(error.to_string().contains("ended at 2026-01-11"), "{error}");
    issuer.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    issuer.activate_next().await.unwrap();
    issuer.issue(&spec(), &clock).await.unwrap();
    // For as long as a clock may be wrong, it is kept.
    issuer.retire().await.unwrap();
    assert_eq!(issuer.trust_bundle().await.unwrap().roots().len(), 2);
    clock.advance(DAY + 2 * HOUR);
    issuer.retire().await.unwrap();
    assert_eq!(issuer.trust_bundle().await.unwrap().roots().len(), 1);
}

#[tokio::test]
async fn a_longer_leaf_of_the_past_keeps_its_root() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let shared = || Arc::clone(&store) as Arc<dyn SecretStore>;
    let generous = load(
        settings().with_max_leaf_lifetime(90 * DAY),
        shared(),
        &clock,
    )
    .await
    .unwrap();
    let long = generous
        .issue(&spec().with_lifetime(90 * DAY), &clock)
        .await
        .unwrap();
    // The operator thinks better of it, and rotates the CA.
    let strict = load(settings().with_max_leaf_lifetime(DAY), shared(), &clock)
        .await
        .unwrap();
    strict.prepare_next().await.unwrap();
    clock.advance(RELOAD_INTERVAL);
    strict.activate_next().await.unwrap();
    clock.set(long.certificate().validity().not_after());
    strict.retire().await.unwrap();
    let bundle = strict.trust_bundle().await.unwrap();
    assert!(bundle.contains(long.certificate().root().der()));
    clock.advance(2 * HOUR);
    strict.retire().await.unwrap();
    assert_eq!(strict.trust_bundle().await.unwrap().roots().len(), 1);
}

#[tokio::test]
async fn rotation_is_due_at_the_documented_times() {
    let clock = FakeClock::new();
    for (lifetime, prepare, activate) in [
        (365 * DAY, 335 * DAY, 358 * DAY),
        (12 * DAY, 6 * DAY, 10 * DAY),
    ] {
        clock.set(start());
        let issuer = load(
            settings().with_lifetime(lifetime),
            Arc::new(MemorySecretStore::new()),
            &clock,
        )
        .await
        .unwrap();
        clock.set(start() + prepare - HOUR);
        assert_eq!(issuer.rotation_due(), None);
        clock.set(start() + prepare + HOUR);
        assert_eq!(issuer.rotation_due(), Some(RotationStep::Prepare));
        issuer.prepare_next().await.unwrap();
        assert_eq!(issuer.rotation_due(), None);
        clock.set(start() + activate + HOUR);
        assert_eq!(issuer.rotation_due(), Some(RotationStep::Activate));
    }
}

/// A store that can be taken down.
#[derive(Debug, Default)]
struct Flaky {
    store: MemorySecretStore,
    down: AtomicBool,
}

impl Flaky {
    fn up(&self) -> Result<()> {
        if self.down.load(Ordering::SeqCst) {
            Err(Error::new(ErrorKind::Unavailable, "down"))
        } else {
            Ok(())
        }
    }
}

#[derive(Debug, Clone)]
struct Link(Arc<Flaky>, Arc<AtomicBool>);

impl Link {
    fn up(&self) -> Result<()> {
        self.0.up()?;
        if self.1.load(Ordering::SeqCst) {
            Err(Error::new(ErrorKind::Unavailable, "cut off"))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl SecretStore for Link {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        self.up()?;
        self.0.store.get(key).await
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        self.up()?;
        self.0.store.put(key, value, expect).await
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.up()?;
        self.0.store.delete(key, version).await
    }
}

#[derive(Clone, Debug)]
enum Op {
    Advance(u64),
    /// The clock was wrong, and is set back.
    SetBack(u64),
    Issue(usize),
    Prepare(usize),
    Activate(usize),
    Retire(usize),
    Cut(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1u64..200_000).prop_map(Op::Advance),
        2 => (200u64..400).prop_map(Op::Advance),
        1 => (1u64..3600).prop_map(Op::SetBack),
        6 => (0usize..3).prop_map(Op::Issue),
        3 => (0usize..3).prop_map(Op::Prepare),
        3 => (0usize..3).prop_map(Op::Activate),
        2 => (0usize..3).prop_map(Op::Retire),
        2 => (0usize..3, any::<bool>()).prop_map(|(replica, cut)| Op::Cut(replica, cut)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Three replicas rotate, issue and lose their store in any order: at every moment, every leaf
    /// that is alive leads to a root that a control plane with a working store publishes.
    #[test]
    fn no_living_leaf_is_ever_without_its_root(ops in prop::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (store, clock) = (Arc::new(Flaky::default()), FakeClock::new());
            let settings = || settings().with_max_leaf_lifetime(2 * DAY).with_lifetime(20 * 365 * DAY);
            let mut replicas = Vec::new();
            for _ in 0..3 {
                let link = Link(Arc::clone(&store), Arc::default());
                let issuer = load(settings(), Arc::new(link.clone()), &clock).await.unwrap();
                replicas.push((issuer, link));
            }
            let mut leaves = Vec::new();
            for op in ops {
                match op {
                    Op::Advance(seconds) => clock.advance(Duration::from_secs(seconds)),
                    Op::SetBack(seconds) => clock.set(clock.now() - Duration::from_secs(seconds)),
                    Op::Issue(n) => {
                        // A replica that was cut off for too long refuses, which is the point.
                        if let Ok(identity) = replicas[n].0.issue(&spec().with_lifetime(2 * DAY), &clock).await {
                            leaves.push(identity.certificate().clone());
                        }
                    }
                    Op::Prepare(n) => { let _ = replicas[n].0.prepare_next().await; }
                    Op::Activate(n) => { let _ = replicas[n].0.activate_next().await; }
                    Op::Retire(n) => { let _ = replicas[n].0.retire().await; }
                    Op::Cut(n, cut) => replicas[n].1.1.store(cut, Ordering::SeqCst),
                }
                let published = load(settings(), Arc::new(Link(Arc::clone(&store), Arc::default())), &clock).await.unwrap()
                    .trust_bundle().await.unwrap();
                leaves.retain(|leaf| leaf.validity().not_after() >= clock.now());
                for leaf in &leaves {
                    prop_assert!(published.contains(leaf.root().der()), "{leaf:?} has lost its root");
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn an_outage_of_the_store_shortens_certificates_before_it_stops_them() {
    let clock = FakeClock::new();
    let link = Link(Arc::default(), Arc::default());
    let issuer = load(
        settings().with_max_leaf_lifetime(DAY),
        Arc::new(link.clone()),
        &clock,
    )
    .await
    .unwrap();
    link.1.store(true, Ordering::SeqCst);
    let spec = spec().with_lifetime(DAY);
    for (hours, granted) in [(0, 24 * 3600), (12, 12 * 3600 + 270), (24, 270)] {
        clock.set(start() + hours * HOUR);
        let validity = issuer
            .issue(&spec, &clock)
            .await
            .unwrap()
            .certificate()
            .validity();
        assert_eq!(
            validity.remaining(clock.now()),
            Duration::from_secs(granted),
            "after {hours} hours"
        );
    }
    clock.advance(HOUR);
    assert!(issuer.issue(&spec, &clock).await.is_err());
    link.1.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(10));
    issuer.issue(&spec, &clock).await.unwrap();
}

/// A store that is told of changes.
#[derive(Debug, Default)]
struct Told(MemorySecretStore, AtomicU64);

#[async_trait]
impl SecretStore for Told {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        self.0.get(key).await
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.put(key, value, expect).await
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.delete(key, version).await
    }

    fn revision(&self) -> Option<u64> {
        Some(self.1.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_change_that_the_store_tells_of_is_seen_within_seconds() {
    let clock = FakeClock::new();
    let store: Arc<dyn SecretStore> = Arc::new(Told::default());
    let one = load(settings(), Arc::clone(&store), &clock).await.unwrap();
    let other = load(settings(), store, &clock).await.unwrap();
    let published = one.prepare_next().await.unwrap();
    assert_ne!(other.trust_bundle().await.unwrap(), published);
    clock.advance(Duration::from_secs(6));
    assert_eq!(other.trust_bundle().await.unwrap(), published);
}

#[test]
fn ca_secrets_have_the_fields_names_and_must_fit() {
    for (mesh, backend) in [
        ("default", "Ca"),
        ("default", "a/b"),
        ("", "ca"),
        ("default", &"x".repeat(250)),
    ] {
        let error = CaSecrets::for_backend(mesh, backend).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::InvalidConfig | ErrorKind::InvalidRequest
            ),
            "{error}"
        );
    }
    CaSecrets::for_identity("default", "flight-operations-id").unwrap();
}

/// Reading refuses it as well; a resource that was built in code need not have been read.
#[tokio::test]
async fn an_autogenerated_ca_must_be_allowed_to_sign_itself() {
    let mut bundled = Bundled::self_signed(BundledCa::Autogenerate);
    bundled.insecure_allow_self_signed = false;
    let identity = MeshIdentity::new(Metadata::universal("id"))
        .with_provider(IdentityProvider::Bundled(bundled));
    let config = BackendConfig::modern(&identity).unwrap();
    let context = BuildContext::new(
        "default",
        domain(),
        Arc::new(MemorySecretStore::new()),
        Arc::new(FakeClock::new()),
    );
    let registry = BackendRegistry::new().with(meshca_core::builtin::factory());
    let error = registry.build(&config, &context).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let report = Resource::from(identity).validate().unwrap_err();
    let message = report.violations()[0].message();
    assert!(error.to_string().starts_with(message), "{error}");
}

#[tokio::test]
async fn a_ca_that_would_live_too_short_is_not_made() {
    let clock = FakeClock::new();
    let second = Duration::from_secs(1);
    for (lifetime, made) in [
        (Duration::ZERO, false),
        (second / 1000, false),
        (MIN_CA_LIFETIME - second, false),
        (MIN_CA_LIFETIME, true),
    ] {
        let store = Arc::new(MemorySecretStore::new());
        let settings = settings().with_lifetime(lifetime);
        match load(settings, store, &clock).await {
            Ok(_) => assert!(made, "{lifetime:?}"),
            Err(error) => {
                assert!(!made, "{lifetime:?}: {error}");
                assert_eq!(error.kind(), ErrorKind::InvalidConfig);
                assert!(error.to_string().contains("3600s at least"), "{error}");
            }
        }
    }
}

/// One of two replicas has its clock ahead, and takes the CA through its rotation. When its clock is right again, and at the other one all
/// the time, the next CA begins only in the future.
#[tokio::test]
async fn a_generation_that_has_not_begun_replaces_none_that_works() {
    let lifetime = 90 * DAY;
    let years = 10 * 365 * DAY;
    for (lifetime, ahead) in [
        (lifetime, 85 * DAY),
        (lifetime, 89 * DAY),
        (years, 3650 * DAY),
        (years, 4000 * DAY),
    ] {
        let store = Arc::new(MemorySecretStore::new());
        let shared = || Arc::clone(&store) as Arc<dyn SecretStore>;
        let settings = || settings().with_lifetime(lifetime);
        let (good, bad) = (FakeClock::new(), FakeClock::new());
        let replica = load(settings(), shared(), &good).await.unwrap();
        let first = replica.issue(&spec(), &good).await.unwrap();
        let other = load(settings(), shared(), &bad).await.unwrap();
        bad.advance(ahead);
        for _ in 0..4 {
            let step = other.rotation_due();
            match step {
                Some(step) => other.rotate(step).await.unwrap(),
                None => break,
            }
            bad.advance(RELOAD_INTERVAL);
        }
        assert_ne!(
            other.rotation_due(),
            Some(RotationStep::Activate),
            "{ahead:?}"
        );

        // Both are right now.
        good.advance(HOUR);
        bad.set(good.now());
        let started = load(settings(), shared(), &good).await.unwrap();
        for replica in [&replica, &other, &started] {
            let told = replica.reload().await.err();
            let told = told.unwrap_or_else(|| panic!("{ahead:?} {replica:?}"));
            assert!(told.to_string().contains("clock"), "{told}");
            let identity = replica.issue(&spec(), &good).await.unwrap();
            assert_eq!(identity.certificate().root(), first.certificate().root());
        }
        // It heals by the ordinary rotation: there is a certificate in each hour.
        let end = good.now() + lifetime.min(200 * DAY);
        while good.now() < end {
            good.advance(6 * HOUR);
            if let Some(step) = replica.rotation_due() {
                let _ = replica.rotate(step).await;
            }
            replica.issue(&spec(), &good).await.unwrap();
        }
        if lifetime < years {
            replica.reload().await.unwrap();
        }
    }
}

/// The manager of each replica takes the steps as they come due.
#[tokio::test]
async fn a_step_that_another_replica_has_taken_is_no_failure() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let replicas = [builtin(&store, &clock).await, builtin(&store, &clock).await];
    for step in [
        RotationStep::Prepare,
        RotationStep::Activate,
        RotationStep::Retire,
    ] {
        for replica in &replicas {
            replica.rotate(step).await.unwrap();
        }
        clock.advance(match step {
            RotationStep::Prepare => RELOAD_INTERVAL,
            _ => 2 * DAY,
        });
    }
    let spec = spec();
    let one = replicas[0].issue(&spec, &clock).await.unwrap();
    let other = replicas[1].issue(&spec, &clock).await.unwrap();
    assert_eq!(one.certificate().root(), other.certificate().root());
    // Nothing was prepared, and nobody has activated it.
    let error = replicas[0].activate_next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

/// Nothing has used it in time: the CA was not needed, or a proxy did not acknowledge its root.
#[tokio::test]
async fn a_next_ca_that_ended_before_it_was_used_is_prepared_again() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let short = || settings().with_lifetime(10 * DAY);
    let shared = || Arc::clone(&store) as Arc<dyn SecretStore>;
    let issuer = load(short(), shared(), &clock).await.unwrap();
    clock.advance(6 * DAY);
    issuer.rotate(RotationStep::Prepare).await.unwrap();
    clock.advance(20 * DAY);
    let started = load(short(), shared(), &clock).await.unwrap();
    for issuer in [issuer, started] {
        issuer.reload().await.unwrap();
        while let Some(step) = issuer.rotation_due() {
            issuer.rotate(step).await.unwrap();
            clock.advance(RELOAD_INTERVAL);
        }
        issuer.issue(&spec(), &clock).await.unwrap();
    }
    // Nothing is left of it.
    let ended = SecretKey::new("default", "default.ca-builtin-cert-ca-1.g2").unwrap();
    assert_eq!(store.get(&ended).await.unwrap(), None);
}

/// The clock that made the only CA there is was wrong, and is right again.
#[tokio::test]
async fn a_first_ca_that_has_not_begun_is_replaced_at_once() {
    let store = Arc::new(MemorySecretStore::new());
    let shared = || Arc::clone(&store) as Arc<dyn SecretStore>;
    let settings = || settings().with_lifetime(90 * DAY);
    let (good, bad) = (FakeClock::new(), FakeClock::new());
    bad.advance(85 * DAY);
    load(settings(), shared(), &bad).await.unwrap();
    let replica = load(settings(), shared(), &good).await.unwrap();
    replica.issue(&spec(), &good).await.unwrap_err();
    for step in [RotationStep::Prepare, RotationStep::Activate] {
        assert_eq!(replica.rotation_due(), Some(step));
        replica.rotate(step).await.unwrap();
        good.advance(RELOAD_INTERVAL);
    }
    replica.issue(&spec(), &good).await.unwrap();
    assert_eq!(replica.rotation_due(), None);
}

/// A clock that was ahead has activated a generation of the future, and nobody has used the one of now before the
/// former one ended.
#[tokio::test]
async fn a_next_ca_signs_at_once_where_the_active_one_has_not_begun() {
    let store = Arc::new(MemorySecretStore::new());
    let shared = || Arc::clone(&store) as Arc<dyn SecretStore>;
    let settings = || settings().with_lifetime(2 * DAY);
    let (good, bad) = (FakeClock::new(), FakeClock::new());
    let replica = load(settings(), shared(), &good).await.unwrap();
    let other = load(settings(), shared(), &bad).await.unwrap();
    bad.advance(10 * DAY);
    for step in [RotationStep::Prepare, RotationStep::Activate] {
        other.rotate(step).await.unwrap();
        bad.advance(RELOAD_INTERVAL);
    }
    good.advance(36 * HOUR);
    replica.reload().await.unwrap_err();
    replica.rotate(RotationStep::Prepare).await.unwrap();
    good.advance(14 * HOUR);
    let _ = replica.reload().await;
    assert_eq!(replica.rotation_due(), Some(RotationStep::Activate));
    replica.rotate(RotationStep::Activate).await.unwrap();
    replica.issue(&spec(), &good).await.unwrap();
}

/// The clock of whoever activated it is behind.
#[tokio::test]
async fn a_generation_that_has_ended_replaces_none_that_works() {
    let store = Arc::new(MemorySecretStore::new());
    let shared = || Arc::clone(&store) as Arc<dyn SecretStore>;
    let settings = || settings().with_lifetime(2 * DAY);
    let (good, bad) = (FakeClock::new(), FakeClock::new());
    good.advance(10 * DAY);
    let replica = load(settings(), shared(), &good).await.unwrap();
    let first = replica.issue(&spec(), &good).await.unwrap();
    let other = load(settings(), shared(), &bad).await.unwrap();
    for step in [RotationStep::Prepare, RotationStep::Activate] {
        other.rotate(step).await.unwrap();
        bad.advance(RELOAD_INTERVAL);
    }
    let told = replica.reload().await.unwrap_err().to_string();
    assert!(
        told.contains("clock") && told.contains("ended at"),
        "{told}"
    );
    for hour in 0..48 {
        let identity = replica.issue(&spec(), &good).await.unwrap();
        let root = identity.certificate().root();
        assert!(hour > 24 || root == first.certificate().root());
        good.advance(HOUR);
        if let Some(step) = replica.rotation_due() {
            let _ = replica.rotate(step).await;
        }
    }
    replica.reload().await.unwrap();
}

/// A clock was ahead for so long that the CA of before is gone, and the one that is to come next begins in the future as well.
#[tokio::test]
async fn generations_that_have_not_begun_do_not_wait_for_each_other() {
    let (store, clock) = (Arc::new(MemorySecretStore::new()), FakeClock::new());
    let shared = Arc::clone(&store) as Arc<dyn SecretStore>;
    let settings = settings().with_lifetime(90 * DAY);
    let issuer = load(settings, shared, &clock).await.unwrap();
    for (days, step) in [
        (85, RotationStep::Prepare),
        (0, RotationStep::Activate),
        (60, RotationStep::Prepare),
        (0, RotationStep::Retire),
    ] {
        clock.advance(days * DAY + RELOAD_INTERVAL);
        assert_eq!(issuer.rotation_due(), Some(step));
        issuer.rotate(step).await.unwrap();
    }
    clock.set(start() + HOUR);
    issuer.reload().await.unwrap();
    issuer.issue(&spec(), &clock).await.unwrap_err();
    for step in [RotationStep::Prepare, RotationStep::Activate] {
        assert_eq!(issuer.rotation_due(), Some(step));
        issuer.rotate(step).await.unwrap();
        clock.advance(RELOAD_INTERVAL);
    }
    issuer.issue(&spec(), &clock).await.unwrap();
}
