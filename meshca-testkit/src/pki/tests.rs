use meshca_core::{CertificateSpec, SignedChain, SpiffeId};

use super::*;
use crate::FakeClock;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn spec() -> CertificateSpec {
    let id = SpiffeId::new("spiffe://example.org/a").unwrap();
    CertificateSpec::workload(id)
}

/// What core says of a leaf of this CA, delivered with `extra`, by the root `trusted`.
fn verified(
    ca: &TestCa,
    spec: CertificateSpec,
    extra: &[CertificateDer<'static>],
    trusted: &TestCa,
) -> Result<Vec<String>> {
    let now = FakeClock::start();
    let key = PrivateKey::generate(KeyType::P256)?;
    let request = CertificateRequest::for_key(spec, &key, now)?;
    let leaf = ca.sign(&request, now)?;
    let chain = std::iter::once(leaf)
        .chain(ca.intermediates().iter().cloned())
        .chain(extra.iter().cloned());
    let bundle = trusted.bundle(domain())?;
    let issued = SignedChain::new(chain).verify(&request, &bundle, now)?;
    Ok(issued.path().to_vec())
}

#[test]
fn what_it_signs_verifies_for_every_type_of_ca_key() {
    let now = FakeClock::start();
    for key_type in [
        KeyType::P256,
        KeyType::P384,
        KeyType::Ed25519,
        KeyType::Rsa2048,
    ] {
        let options = |name: &str| TestCaOptions::new(name, now).with_key_type(key_type);
        let root = TestCa::root_with(options("root")).unwrap();
        let issuing = root.intermediate_with(options("issuing")).unwrap();
        assert_eq!(issuing.key().key_type(), key_type);
        assert_eq!(
            verified(&issuing, spec(), &[], &root).unwrap(),
            ["(empty)", "CN=issuing", "CN=root"]
        );
        assert_eq!(issuing.chain_pem(), issuing.pem() + &root.pem());
        let again = PrivateKey::from_pem(&root.key_pem().unwrap()).unwrap();
        assert_eq!(again.public_key(), root.key().public_key());
    }
}

#[test]
fn cross_signed_and_renewed_roots_lead_where_they_should() {
    let now = FakeClock::start();
    let (old, new) = (
        TestCa::root("old", now).unwrap(),
        TestCa::root("new", now).unwrap(),
    );
    assert!(verified(&new, spec(), &[], &old).is_err());
    let cross = new.cross_signed_by(&old).unwrap();
    assert_eq!(
        verified(&new, spec(), &[cross], &old).unwrap(),
        ["(empty)", "CN=new", "CN=old"]
    );
    let renewed = old.renewed(now - DAY, now + 20 * 365 * DAY).unwrap();
    assert_ne!(renewed.certificate(), old.certificate());
    verified(&old, spec(), &[], &renewed).unwrap();
    verified(&renewed, spec(), &[], &old).unwrap();
}

#[test]
fn limits_are_limits() {
    let now = FakeClock::start();
    let expired = TestCaOptions::new("expired", now).with_validity(now - 2 * DAY, now - DAY);
    let expired = TestCa::root_with(expired).unwrap();
    let error = verified(&expired, spec(), &[], &expired).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");

    let root = TestCa::root("root", now).unwrap();
    let limited = TestCaOptions::new("limited", now)
        .with_permitted_dns("example.org")
        .with_excluded_dns("secret.example.org");
    let limited = root.intermediate_with(limited).unwrap();
    for (name, allowed) in [
        ("a.example.org", true),
        ("a.secret.example.org", false),
        ("a.example.com", false),
    ] {
        let result = verified(&limited, spec().with_dns_name(name), &[], &root);
        assert_eq!(result.is_ok(), allowed, "{name}: {result:?}");
    }

    let last = TestCaOptions::new("last", now).with_path_len(0);
    let last = root.intermediate_with(last).unwrap();
    verified(&last, spec(), &[], &root).unwrap();
    let too_deep = last.intermediate("too deep").unwrap();
    let error = verified(&too_deep, spec(), &[], &root).unwrap_err();
    assert!(error.to_string().contains("path length"), "{error}");
}

#[test]
fn pem_is_read_back() {
    let root = TestCa::root("root", FakeClock::start()).unwrap();
    assert!(root.pem().lines().all(|line| line.len() <= 64));
    let read = SignedChain::from_pem(&root.pem()).unwrap();
    assert_eq!(read.certificates(), [root.certificate().clone()]);
}

#[test]
fn old_roots_are_roots_all_the_same() {
    let now = FakeClock::start();
    for key_type in [KeyType::P256, KeyType::Rsa2048] {
        let options = || TestCaOptions::new("root", now).with_key_type(key_type);
        let sound = TestCa::root_with(options()).unwrap();
        for options in [
            options().with_version_1(),
            options().with_sha1(),
            options().with_version_1().with_sha1(),
        ] {
            let root = TestCa::root_with(options).unwrap();
            assert!(root.pem() != sound.pem());
            let issuing = root.intermediate("issuing").unwrap();
            let path = verified(&issuing, spec(), &[], &root).unwrap();
            assert_eq!(path.last().unwrap(), "CN=root");
        }
        let old = TestCa::root_with(options().with_version_1()).unwrap();
        assert!(old.certificate().len() + 50 < sound.certificate().len());
    }
}
