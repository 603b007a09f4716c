//! What core hands out, repairs and refuses.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Ca, DAY, FakeClock, HOUR, ca_params, domain, request, spec, start};
use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CertificateSpec, CheckReport, Clock, Csr, Error, ErrorKind,
    IssuedCertificate, Issuer, IssuingCa, KeyType, LifetimePolicy, Observation, PrivateKey, Proof,
    Result, SignedChain, TrustBundle, TrustDomain,
};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints, SanType,
};
use rustls_pki_types::CertificateDer;

fn key() -> PrivateKey {
    PrivateKey::generate(meshca_core::KeyType::P256).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn verify(
    chain: Vec<CertificateDer<'static>>,
    request: &CertificateRequest,
    bundle: &TrustBundle,
) -> Result<IssuedCertificate> {
    SignedChain::new(chain).verify(request, bundle, start())
}

type Change = fn(&mut CertificateParams);

/// A leaf that a CA made otherwise than it should, and what is said about it.
#[test]
fn a_leaf_must_be_what_was_requested() {
    let cases: &[(&str, Change)] = &[
        (
            "the URI `spiffe://example.org/admin` that was not requested",
            |leaf| {
                leaf.subject_alt_names
                    .push(uri("spiffe://example.org/admin"));
            },
        ),
        (
            "the URI `spiffe://example.orgi/ns/shop/sa/cart` that was not requested",
            |leaf| {
                leaf.subject_alt_names = vec![uri("spiffe://example.orgi/ns/shop/sa/cart")];
            },
        ),
        (
            "lacks the requested URI `spiffe://example.org/ns/shop/sa/cart`",
            |leaf| leaf.subject_alt_names.clear(),
        ),
        ("repeats a URI", |leaf| {
            let again = leaf.subject_alt_names[0].clone();
            leaf.subject_alt_names.push(again);
        }),
        (
            "the DNS name `www.example.org` that was not requested",
            |leaf| {
                leaf.subject_alt_names
                    .push(SanType::DnsName("www.example.org".try_into().unwrap()));
            },
        ),
        (
            "a name that was not requested: an IP address (4 bytes)",
            |leaf| {
                leaf.subject_alt_names
                    .push(SanType::IpAddress([127, 0, 0, 1].into()));
            },
        ),
        (
            "a name that was not requested: the e-mail address `root@example.org`",
            |leaf| {
                leaf.subject_alt_names
                    .push(SanType::Rfc822Name("root@example.org".try_into().unwrap()));
            },
        ),
        ("is a CA's, which no workload may hold", |leaf| {
            leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)
        }),
        ("may sign certificates or CRLs", |leaf| {
            leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)
        }),
        ("lacks the key usage `digitalSignature`", |leaf| {
            leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment]
        }),
        (
            "has no key usages (X.509-SVID §4.3), so Envoy refuses it; set the key usage `digitalSignature`",
            |leaf| leaf.key_usages.clear(),
        ),
        ("lacks the extended key usage `clientAuth`", |leaf| {
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("lacks the extended key usage `serverAuth`", |leaf| {
            leaf.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::Any,
            ];
        }),
        (
            "had ended when it arrived, at 2026-01-01T00:00:00Z",
            |leaf| leaf.not_after = start().into(),
        ),
        (
            "begins at 2026-01-01T00:01:01Z, more than 60s ahead",
            |leaf| {
                leaf.not_before = (start() + Duration::from_secs(61)).into();
            },
        ),
        (
            "lives for 3661s where at most 3600s were requested",
            |leaf| {
                leaf.not_after = (start() + HOUR + Duration::from_secs(61)).into();
            },
        ),
    ];
    let (root, key) = (Ca::root("root"), key());
    let request = request(&key);
    verify(vec![root.leaf(&request, |_| {})], &request, &root.bundle()).unwrap();
    for (message, change) in cases {
        let error =
            verify(vec![root.leaf(&request, change)], &request, &root.bundle()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
        assert!(
            error.to_string().contains(message),
            "expected: {message}\nfound:    {error}"
        );
        assert!(
            error
                .to_string()
                .contains("spiffe://example.org/ns/shop/sa/cart"),
            "{error}"
        );
    }
}

#[test]
fn a_chain_must_lead_to_the_bundle() {
    let key = key();
    let request = request(&key);
    let (root, foreign, namesake) = (Ca::root("root"), Ca::root("foreign"), Ca::root("root"));
    let intermediate = root.below("intermediate");
    let leaf = intermediate.leaf(&request, |_| {});
    let bundle = root.bundle();

    let limited = |change: fn(&mut CertificateParams)| {
        let mut params = ca_params("limited");
        change(&mut params);
        let ca = root.below_with(params);
        vec![ca.leaf(&request, |_| {}), ca.der]
    };
    let expired_root = {
        let mut params = ca_params("old root");
        params.not_after = (start() - HOUR).into();
        Ca::root_with(params)
    };
    let below_path_len_0 = {
        let mut params = ca_params("last ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let last = root.below_with(params);
        let too_deep = last.below("too deep");
        vec![too_deep.leaf(&request, |_| {}), too_deep.der, last.der]
    };
    let mut broken = leaf.to_vec();
    *broken.last_mut().unwrap() ^= 1;

    let other_key = crate::common::request(&self::key());
    let cases = [
        (vec![], &bundle, "returned no certificate"),
        (
            vec![CertificateDer::from(vec![1, 2, 3])],
            &bundle,
            "certificate 1 of the 1 that the CA returned: not an X.509 certificate",
        ),
        (
            vec![leaf.clone(); 33],
            &bundle,
            "returned 33 certificates; at most 32",
        ),
        (
            vec![
                intermediate.leaf(&other_key, |_| {}),
                intermediate.der.clone(),
            ],
            &bundle,
            "none of the 2 certificates that the CA returned is for the key",
        ),
        (
            vec![leaf.clone()],
            &bundle,
            "root unknown: the certificate was signed by `CN=intermediate`, which the CA did not return",
        ),
        (
            vec![leaf.clone(), intermediate.der.clone(), root.der.clone()],
            &foreign.bundle(),
            "root unknown: the chain ends in `CN=root`, which is not in the trust bundle (the bundle holds `CN=foreign`)",
        ),
        (
            vec![leaf.clone(), intermediate.der.clone()],
            &namesake.bundle(),
            "a signature in the chain does not verify",
        ),
        (
            vec![CertificateDer::from(broken), intermediate.der.clone()],
            &bundle,
            "a signature in the chain does not verify",
        ),
        (
            vec![expired_root.leaf(&request, |_| {})],
            &expired_root.bundle(),
            "the root `CN=old root` in the trust bundle is valid only from",
        ),
        (
            below_path_len_0,
            &bundle,
            "may not have a CA below it (path length)",
        ),
        (
            limited(|ca| ca.not_after = (start() - HOUR).into()),
            &bundle,
            "a certificate in the chain has expired",
        ),
        (
            limited(|ca| ca.not_before = (start() + 2 * HOUR).into()),
            &bundle,
            "a certificate in the chain is not valid yet",
        ),
        (
            limited(|ca| ca.not_after = (start() + HOUR / 2).into()),
            &bundle,
            "outlives its issuer `CN=limited`: peers will refuse it from 2026-01-01T00:30:00Z on",
        ),
        (
            limited(|ca| ca.is_ca = IsCa::ExplicitNoCa),
            &bundle,
            "signed another without being a CA",
        ),
        (
            limited(|ca| ca.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            &bundle,
            "restricted to other purposes",
        ),
        (
            limited(|ca| {
                ca.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DirectoryName({
                        let mut name = rcgen::DistinguishedName::new();
                        name.push(DnType::OrganizationName, "somebody else");
                        name
                    })],
                    excluded_subtrees: vec![],
                })
            }),
            &bundle,
            "constrained to other names",
        ),
    ];
    for (chain, bundle, message) in cases {
        let error = verify(chain, &request, bundle).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
        assert!(
            error.to_string().contains(message),
            "expected: {message}\nfound:    {error}"
        );
    }

    let elsewhere =
        TrustBundle::new(TrustDomain::new("example.com").unwrap(), [root.der.clone()]).unwrap();
    let error = verify(vec![leaf, intermediate.der], &request, &elsewhere).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the trust bundle is of another trust domain (bundle: example.com, request: example.org)"
    );
}

#[test]
fn what_is_sound_is_accepted_and_what_is_unusual_reported() {
    let key = key();
    let root = Ca::root("root");
    let accept = |spec: CertificateSpec, change: fn(&mut CertificateParams)| {
        let request = CertificateRequest::for_key(spec, &key, start()).unwrap();
        verify(vec![root.leaf(&request, change)], &request, &root.bundle()).unwrap()
    };

    let plain = accept(spec(), |_| {});
    assert_eq!(plain.observations(), []);
    assert_eq!(plain.proof(), Proof::Signatures);
    assert_eq!(plain.usable_from(), start());
    assert_eq!(plain.path(), ["(empty)", "CN=root"]);

    // Vault leaves have no BasicConstraints, which counts as "not a CA"; rcgen's NoCa is just that.
    let absent = accept(spec(), |leaf| leaf.is_ca = IsCa::NoCa);
    assert_eq!(absent.observations(), []);

    // It is for every purpose then.
    let no_purposes = accept(spec(), |leaf| leaf.extended_key_usages.clear());
    assert_eq!(no_purposes.observations(), []);

    let early = accept(spec(), |leaf| {
        leaf.not_before = (start() + Duration::from_secs(5)).into()
    });
    assert!(
        matches!(early.observations(), [Observation::NotYetValid { wait, .. }] if *wait == Duration::from_secs(5))
    );
    assert_eq!(early.usable_from(), start() + Duration::from_secs(5));

    let capped = accept(spec(), |leaf| leaf.not_after = (start() + HOUR / 2).into());
    assert!(
        matches!(capped.observations(), [Observation::ShorterLifetime { granted, .. }] if *granted == HOUR / 2),
        "{capped:?}"
    );

    let year = accept(
        spec().with_lifetime_policy(LifetimePolicy::AcceptIssuer),
        |leaf| leaf.not_after = (start() + 300 * DAY).into(),
    );
    assert!(
        matches!(year.observations(), [Observation::LongerLifetime { granted, .. }] if *granted == 300 * DAY)
    );

    // AWS backdates by an hour: what counts is what is left.
    let backdated = accept(spec(), |leaf| leaf.not_before = (start() - HOUR).into());
    assert_eq!(backdated.observations(), []);

    let named = accept(spec(), |leaf| {
        leaf.distinguished_name.push(DnType::CommonName, "added")
    });
    assert_eq!(
        named.observations()[0].to_string(),
        "the CA added the common name `added`"
    );

    let request = request(&key);
    let noted = SignedChain::new([root.leaf(&request, |_| {})])
        .with_note("TTL capped")
        .verify(&request, &root.bundle(), start())
        .unwrap();
    assert_eq!(
        noted.observations(),
        [Observation::IssuerNote("TTL capped".to_owned())]
    );
}

#[test]
fn all_requested_names_are_there() {
    let (root, key) = (Ca::root("root"), key());
    let spec = spec()
        .with_common_name("cart.mesh")
        .with_dns_name("cart.mesh")
        .with_uri("kuma://kuma.io/service/cart");
    let request = CertificateRequest::for_key(spec, &key, start()).unwrap();
    let complete = |leaf: &mut CertificateParams| {
        leaf.distinguished_name
            .push(DnType::CommonName, "cart.mesh");
        leaf.subject_alt_names
            .push(uri("kuma://kuma.io/service/cart"));
        leaf.subject_alt_names
            .push(SanType::DnsName("cart.mesh".try_into().unwrap()));
    };
    verify(
        vec![root.leaf(&request, complete)],
        &request,
        &root.bundle(),
    )
    .unwrap();
    let sorted = root.leaf(&request, |leaf| {
        complete(leaf);
        leaf.subject_alt_names.swap(0, 1);
    });
    let error = verify(vec![sorted], &request, &root.bundle()).unwrap_err();
    let message = "the first URI of the certificate is `kuma://kuma.io/service/cart`, so Envoy does not find its SPIFFE ID";
    assert!(error.to_string().contains(message), "{error}");
    for (take, message) in [
        (2, "lacks the requested DNS name `cart.mesh`"),
        (1, "lacks the requested URI `kuma://kuma.io/service/cart`"),
    ] {
        let incomplete = root.leaf(&request, |leaf| {
            complete(leaf);
            leaf.subject_alt_names.truncate(take);
        });
        let error = verify(vec![incomplete], &request, &root.bundle()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    for (name, message) in [
        ("other", "common name `other` where `cart.mesh`"),
        ("", "lacks the requested common name"),
    ] {
        let leaf = root.leaf(&request, |leaf| {
            complete(leaf);
            leaf.distinguished_name = rcgen::DistinguishedName::new();
            if !name.is_empty() {
                leaf.distinguished_name.push(DnType::CommonName, name);
            }
        });
        let error = verify(vec![leaf], &request, &root.bundle()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn requests_that_contradict_themselves_are_refused() {
    let key = key();
    let no_path =
        CertificateSpec::workload(meshca_core::SpiffeId::new("spiffe://example.org").unwrap());
    for (spec, message) in [
        (no_path, "must have a path"),
        (
            spec().with_lifetime(Duration::ZERO),
            "must live for a second",
        ),
        (
            spec().with_uri("spiffe://example.org/second"),
            "exactly one SPIFFE ID",
        ),
        (
            spec().with_uri("SPIFFE://example.org/second"),
            "exactly one SPIFFE ID",
        ),
        (spec().with_uri("https://example.org/"), "no URIs but tags"),
        (spec().with_uri("no uri"), "not a URI"),
        (spec().with_uri("kuma://tag/ä"), "not a URI"),
        (spec().with_dns_name("a b"), "not a DNS name"),
        (spec().with_dns_name(""), "not a DNS name"),
        (
            spec().with_common_name("x".repeat(65)),
            "a common name has 1 to 64",
        ),
        (spec().with_common_name("a\nb"), "a common name has 1 to 64"),
    ] {
        let error = CertificateRequest::for_key(spec, &key, start()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains(message), "{error}");
    }
    let csr = request(&key).csr().unwrap().clone();
    let intermediate = CertificateSpec::intermediate(&domain(), "ca").unwrap();
    assert_eq!(
        CertificateRequest::for_csr(intermediate, csr, start())
            .unwrap_err()
            .kind(),
        ErrorKind::Unsupported
    );
}

/// Envoy would refuse each handshake, so no CA is asked. A CA may have such a key.
#[tokio::test]
async fn no_ca_is_asked_for_a_workload_with_a_key_that_envoy_refuses() {
    let refused = |error: Error, key: &str| {
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(
            error.to_string(),
            format!(
                "a workload's key must be P-256, P-384 or RSA: Envoy refuses keys of other types in every handshake (key type: {key})"
            )
        );
    };
    let clock = FakeClock::new();
    let issuer = IssuingCa::new(NeverAsked);
    for key_type in KeyType::ALL {
        let key = PrivateKey::generate(key_type).unwrap();
        let requested = CertificateRequest::for_key(spec(), &key, start());
        assert_eq!(requested.is_ok(), key_type.is_for_workloads(), "{key_type}");
        assert_eq!(key_type == KeyType::Ed25519, requested.is_err());
        let below = CertificateSpec::intermediate(&domain(), "below").unwrap();
        CertificateRequest::for_key(below, &key, start()).unwrap();
    }
    let spec_of = spec().with_key_type(KeyType::Ed25519);
    refused(issuer.issue(&spec_of, &clock).await.unwrap_err(), "Ed25519");

    for (algorithm, shown) in [
        (&rcgen::PKCS_ED25519, "Ed25519"),
        // secp521r1
        (&rcgen::PKCS_ECDSA_P521_SHA512, "1.3.132.0.35"),
    ] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key);
        let csr = Csr::from_der(csr.unwrap().der().to_vec()).unwrap();
        let request = CertificateRequest::for_csr(spec(), csr, start());
        refused(request.unwrap_err(), shown);
    }
}

#[derive(Debug)]
struct NeverAsked;

impl fmt::Display for NeverAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("never asked")
    }
}

#[async_trait]
impl Issuer for NeverAsked {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_key_types(KeyType::ALL)
    }

    async fn sign(&self, _: &CertificateRequest) -> Result<SignedChain> {
        panic!("asked");
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        panic!("asked");
    }

    async fn check(&self) -> Result<CheckReport> {
        panic!("asked");
    }
}

#[test]
fn a_request_keeps_its_id_and_its_csr() {
    let key = key();
    let first = request(&key);
    let csr = first.csr().unwrap();
    assert_eq!(
        csr,
        first.clone().csr().unwrap(),
        "a retry sends the same bytes"
    );
    assert_eq!(Csr::from_pem(&csr.to_pem()).unwrap(), *csr);
    assert_eq!(csr.public_key(), key.public_key());

    let later = CertificateRequest::for_csr(spec(), csr.clone(), start() + HOUR).unwrap();
    assert_eq!(first.id(), later.id(), "the time is no part of it");
    assert_eq!(first.id().as_str().len(), 32);
    for other in [
        CertificateRequest::for_key(spec(), &self::key(), start()),
        CertificateRequest::for_key(spec().with_lifetime(2 * HOUR), &key, start()),
        CertificateRequest::for_key(spec().with_dns_name("a"), &key, start()),
        CertificateRequest::for_key(spec().with_common_name("a"), &key, start()),
        CertificateRequest::for_key(spec().with_uri("kuma://a/b"), &key, start()),
    ] {
        assert_ne!(first.id(), other.unwrap().id());
    }
    assert_eq!(first.not_after(), start() + HOUR);
    assert_eq!(first.not_after(), first.not_after());
}

#[test]
fn malformed_csrs_are_refused() {
    let good = request(&key()).csr().unwrap().der().to_vec();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut trailing = good.clone();
    trailing.push(0);
    for (der, message) in [
        (vec![], "malformed"),
        (b"garbage".to_vec(), "malformed"),
        (good[..good.len() / 2].to_vec(), "malformed"),
        (trailing, "malformed"),
        (forged, "its signature does not verify"),
    ] {
        let error = Csr::from_der(der).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains(message), "{error}");
    }
    assert!(
        Csr::from_pem("no pem")
            .unwrap_err()
            .to_string()
            .contains("line 1")
    );
}

#[test]
fn intermediates_are_proven_with_their_own_key() {
    let (root, key) = (Ca::root("root"), key());
    let spec = CertificateSpec::intermediate(&domain(), "mesh ca")
        .unwrap()
        .with_lifetime(30 * DAY);
    let request = CertificateRequest::for_key(spec, &key, start()).unwrap();
    let ca = |change: fn(&mut CertificateParams)| {
        root.leaf(&request, |params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "mesh ca");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.extended_key_usages.clear();
            change(params);
        })
    };
    let issued = verify(vec![root.der.clone(), ca(|_| {})], &request, &root.bundle()).unwrap();
    assert_eq!(issued.path(), ["CN=mesh ca", "CN=root"]);
    // A trust domain's ID is optional in a CA.
    verify(
        vec![ca(|params| params.subject_alt_names.clear())],
        &request,
        &root.bundle(),
    )
    .unwrap();

    let unlimited = ca(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let issued = verify(vec![unlimited], &request, &root.bundle()).unwrap();
    assert_eq!(issued.observations(), [Observation::UnlimitedPathLength]);

    let cases: [(Change, &str); 4] = [
        (|params| params.is_ca = IsCa::ExplicitNoCa, "is not a CA's"),
        (
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
            "has the path length 1 where 0 was requested",
        ),
        (
            |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature],
            "lacks the key usage `keyCertSign`",
        ),
        (
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection],
            "restricted to other purposes",
        ),
    ];
    for (change, message) in cases {
        let error = verify(vec![ca(change)], &request, &root.bundle()).unwrap_err();
        assert!(
            error.to_string().contains(message),
            "expected: {message}\nfound:    {error}"
        );
    }
    // One level too deep is found by the throwaway leaf, not by reading the certificate.
    let mut last = ca_params("last");
    last.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let last = root.below_with(last);
    let too_deep = last.leaf(&request, |params| {
        params
            .distinguished_name
            .push(DnType::CommonName, "mesh ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages.clear();
    });
    let error = verify(vec![too_deep, last.der], &request, &root.bundle()).unwrap_err();
    assert!(error.to_string().contains("path length"), "{error}");
}

#[test]
fn a_certificate_is_not_proven_by_another_for_the_same_key() {
    let (root, foreign, key) = (Ca::root("root"), Ca::root("foreign"), key());
    let spec = CertificateSpec::intermediate(&domain(), "mesh ca")
        .unwrap()
        .with_lifetime(30 * DAY);
    let intermediate = CertificateRequest::for_key(spec, &key, start()).unwrap();
    let below = |ca: &Ca| {
        ca.leaf(&intermediate, |params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "mesh ca");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.extended_key_usages.clear();
        })
    };
    let workload = request(&key);
    let cases = [
        (&intermediate, below(&root), below(&foreign)),
        (
            &workload,
            root.leaf(&workload, |_| {}),
            foreign.leaf(&workload, |_| {}),
        ),
    ];
    for (request, proven, unproven) in cases {
        for chain in [
            vec![proven.clone(), unproven.clone()],
            vec![unproven.clone(), proven.clone()],
        ] {
            let issued = verify(chain, request, &root.bundle()).unwrap();
            assert_eq!(issued.chain(), std::slice::from_ref(&proven));
        }
        let error = verify(vec![unproven], request, &root.bundle()).unwrap_err();
        assert!(error.to_string().contains("root unknown"), "{error}");
    }
}

/// Returns what it is told to, and counts how often it was asked for trust.
#[derive(Debug)]
struct Scripted {
    chain: SignedChain,
    /// The first answer, and those after it.
    bundles: (TrustBundle, Result<TrustBundle>),
    asked: Mutex<u32>,
    settled: Arc<Mutex<Vec<bool>>>,
}

impl Scripted {
    fn new(chain: SignedChain, first: TrustBundle, then: Result<TrustBundle>) -> Self {
        Self {
            chain,
            bundles: (first, then),
            asked: Mutex::default(),
            settled: Arc::default(),
        }
    }

    fn settled(&self) -> Vec<bool> {
        std::mem::take(&mut *self.settled.lock().unwrap())
    }
}

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scripted")
    }
}

#[async_trait]
impl Issuer for Scripted {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    async fn sign(&self, _: &CertificateRequest) -> Result<SignedChain> {
        let settled = Arc::clone(&self.settled);
        Ok(self.chain.clone().with_receipt(move |outcome| {
            settled.lock().unwrap().push(outcome.is_ok());
            None
        }))
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        match *asked {
            1 => Ok(self.bundles.0.clone()),
            _ => self.bundles.1.clone(),
        }
    }

    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::new())
    }
}

#[tokio::test]
async fn trust_is_asked_for_again_when_a_root_is_unknown_and_only_then() {
    let (old, new, key) = (Ca::root("old"), Ca::root("new"), key());
    let request = request(&key);
    let unavailable = || Err(Error::new(ErrorKind::Unavailable, "down"));
    let cases = [
        (
            new.leaf(&request, |_| {}),
            Ok(old.bundle().union(&new.bundle()).unwrap()),
            Ok(()),
            1,
        ),
        (old.leaf(&request, |_| {}), unavailable(), Ok(()), 0),
        (
            new.leaf(&request, |_| {}),
            Ok(old.bundle()),
            Err(ErrorKind::BadResponse),
            1,
        ),
        (
            new.leaf(&request, |_| {}),
            unavailable(),
            Err(ErrorKind::BadResponse),
            1,
        ),
        (
            old.leaf(&request, |leaf| leaf.key_usages.clear()),
            unavailable(),
            Err(ErrorKind::BadResponse),
            0,
        ),
    ];
    for (leaf, renewed, outcome, refreshed) in cases {
        let issuer = Scripted::new(SignedChain::new([leaf]), old.bundle(), renewed);
        let issuer = Arc::new(issuer);
        let through_pointers: Box<dyn Issuer> = Box::new(Arc::clone(&issuer));
        let result = IssuingCa::new(through_pointers)
            .issue_for(&request, &FakeClock::new())
            .await;
        assert_eq!(result.map(|_| ()).map_err(|error| error.kind()), outcome);
        assert_eq!(*issuer.asked.lock().unwrap(), 1 + refreshed);
        assert_eq!(issuer.settled(), [outcome.is_ok()]);
    }
}

#[tokio::test]
async fn an_answer_that_is_verified_by_hand_is_settled_as_well() {
    let (root, foreign, key) = (Ca::root("root"), Ca::root("foreign"), key());
    let request = request(&key);
    let chain = SignedChain::new([root.leaf(&request, |_| {})]);
    let issuer = Scripted::new(chain, root.bundle(), Ok(root.bundle()));
    for (bundle, accepted) in [(root.bundle(), true), (foreign.bundle(), false)] {
        let chain = issuer.sign(&request).await.unwrap();
        let verified = chain.verify(&request, &bundle, FakeClock::new().now());
        assert_eq!(verified.is_ok(), accepted);
        assert_eq!(issuer.settled(), [accepted]);
    }
    // What nobody verifies may be good, or not.
    drop(issuer.sign(&request).await.unwrap());
    assert_eq!(issuer.settled(), [] as [bool; 0]);
}

#[tokio::test]
async fn what_an_issuer_cannot_sign_is_refused_before_it_is_asked() {
    let root = Ca::root("root");
    let issuer = Scripted::new(SignedChain::new([]), root.bundle(), Ok(root.bundle()));
    let issuer = IssuingCa::new(issuer);
    for spec in [
        spec().with_dns_name("a.example.org"),
        spec().with_uri("kuma://kuma.io/service/cart"),
        spec().with_common_name("cart"),
        CertificateSpec::intermediate(&domain(), "ca").unwrap(),
    ] {
        let error = issuer.issue(&spec, &FakeClock::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("issuer: scripted"), "{error}");
    }
    assert_eq!(*issuer.asked.lock().unwrap(), 0);
}

/// Some CAs send the root along. That adds no trust.
#[test]
fn a_root_that_comes_along_with_a_bare_intermediate() {
    let (root, key) = (Ca::root("root"), key());
    let issuing = root.below("issuing");
    let request = request(&key);
    let leaf = issuing.leaf(&request, |_| {});
    let sent = || vec![leaf.clone(), issuing.der.clone(), root.der.clone()];
    let bare = issuing.bundle();
    let error = verify(sent(), &request, &bare).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert!(
        error
            .to_string()
            .contains("`CN=root`, which is not in the trust bundle"),
        "{error}"
    );
    let both = bare.union(&root.bundle()).unwrap();
    for bundle in [root.bundle(), both] {
        let issued = verify(sent(), &request, &bundle).unwrap();
        assert_eq!(issued.chain(), [leaf.clone(), issuing.der.clone()]);
        assert_eq!(issued.root().der(), &root.der);
    }
    // Without it, what is told is what the bundle lacks.
    let error = verify(sent()[..2].to_vec(), &request, &bare).unwrap_err();
    assert!(error.to_string().contains("is an intermediate"), "{error}");
    let issued = verify(sent(), &request, &bare.allow_partial_chains(true)).unwrap();
    assert_eq!(issued.chain(), std::slice::from_ref(&leaf));
    assert_eq!(issued.root().der(), &issuing.der);
}

#[test]
fn a_cross_signed_root_is_followed_to_the_root_that_is_trusted() {
    let (old, new, key) = (Ca::root("old"), Ca::root("new"), key());
    let request = request(&key);
    let bridge = new.cross_signed_by(&old);
    let leaf = new.leaf(&request, |_| {});
    let chain = vec![leaf.clone(), new.der.clone(), bridge.clone()];
    let for_old = verify(chain.clone(), &request, &old.bundle()).unwrap();
    assert_eq!(for_old.chain(), [leaf.clone(), bridge]);
    assert_eq!(for_old.path(), ["(empty)", "CN=new", "CN=old"]);
    let for_new = verify(chain, &request, &new.bundle()).unwrap();
    assert_eq!(for_new.chain(), [leaf]);
}

/// webpki leaves these to its caller; Envoy, Go and OpenSSL refuse them all.
#[test]
fn cas_and_roots_must_be_what_peers_accept() {
    let key = key();
    let request = request(&key);
    let with = |change: Change| {
        let mut params = ca_params("bad");
        change(&mut params);
        params
    };
    let no_cert_sign: Change = |ca| ca.key_usages = vec![KeyUsagePurpose::CrlSign];
    let email: Change =
        |ca| ca.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    let no_ca_below: Change = |ca| ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));

    let good = Ca::root("root");
    let bad = good.below_with(with(no_cert_sign));
    let error = verify(
        vec![bad.leaf(&request, |_| {}), bad.der],
        &request,
        &good.bundle(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`CN=bad` may not sign certificates"),
        "{error}"
    );

    for (change, message) in [
        (no_cert_sign, "`CN=bad` may not sign certificates"),
        (email, "the root `CN=bad` is restricted to other purposes"),
    ] {
        let root = Ca::root_with(with(change));
        let error =
            verify(vec![root.leaf(&request, |_| {})], &request, &root.bundle()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    let root = Ca::root_with(with(no_ca_below));
    verify(vec![root.leaf(&request, |_| {})], &request, &root.bundle()).unwrap();
    let below = root.below("below");
    let error = verify(
        vec![below.leaf(&request, |_| {}), below.der],
        &request,
        &root.bundle(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("may have 0 CAs below it, and 1 are"),
        "{error}"
    );
}

/// Without a need for policies, it is no matter what a certificate says about them (RFC 5280 §6.1.5 (g)).
#[test]
fn critical_policies_are_stepped_over_and_their_signatures_verified() {
    let key = key();
    let request = request(&key);
    let root = Ca::root("root");
    let policies: Change = |ca| {
        let any = vec![0x30, 8, 0x30, 6, 6, 4, 0x55, 0x1d, 0x20, 0];
        let mut policies = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 32], any);
        policies.set_criticality(true);
        ca.custom_extensions.push(policies);
    };
    let ca = root.below_with({
        let mut params = ca_params("policies");
        policies(&mut params);
        params
    });
    let leaf = ca.leaf(&request, policies);
    let chain = vec![leaf.clone(), ca.der.clone()];
    let issued = verify(chain.clone(), &request, &root.bundle()).unwrap();
    assert_eq!(issued.chain(), chain, "as they were signed");

    for (broken, which) in [(0, "the leaf"), (1, "the CA")] {
        let mut chain = chain.clone();
        let mut der = chain[broken].to_vec();
        *der.last_mut().unwrap() ^= 1;
        chain[broken] = der.into();
        let error = verify(chain, &request, &root.bundle()).unwrap_err();
        assert!(
            error.to_string().contains("does not verify"),
            "{which}: {error}"
        );
    }
    // Not critical is another certificate than the one that was signed.
    let mut chain = chain;
    let mut der = chain[1].to_vec();
    let at = der
        .windows(8)
        .position(|it| it == [6, 3, 0x55, 0x1d, 0x20, 1, 1, 0xff]);
    der[at.unwrap() + 7] = 0;
    chain[1] = der.into();
    verify(chain, &request, &root.bundle()).unwrap_err();
}

/// Envoy and OpenSSL do not even try an issuer with another identifier.
#[test]
fn a_certificate_names_the_key_of_its_issuer() {
    let key = key();
    let request = request(&key);
    let root = Ca::root("root");
    let renewed = {
        let mut params = ca_params("root");
        params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7; 20]);
        let der = params.self_signed(&root.key).unwrap().der().clone();
        meshca_core::TrustBundle::new(domain(), [der]).unwrap()
    };
    let leaf = root.leaf(&request, |leaf| {
        leaf.use_authority_key_identifier_extension = true;
    });
    verify(vec![leaf.clone()], &request, &root.bundle()).unwrap();
    let error = verify(vec![leaf], &request, &renewed).unwrap_err();
    let message = "names another certificate as that of its issuer than the one of `CN=root` here (authority key identifier), so Envoy refuses it";
    assert!(error.to_string().contains(message), "{error}");
}

/// Envoy has no `X509_V_FLAG_PARTIAL_CHAIN`.
#[test]
fn an_intermediate_alone_is_no_end_of_a_chain() {
    let key = key();
    let request = request(&key);
    let root = Ca::root("root");
    let ca = root.below("mesh ca");
    let leaf = ca.leaf(&request, |_| {});
    let (chain, whole) = (vec![leaf.clone()], vec![leaf, ca.der.clone()]);
    let alone = ca.bundle();
    for chain in [&chain, &whole] {
        let error = verify(chain.clone(), &request, &alone).unwrap_err();
        let message = "`CN=mesh ca` in the trust bundle is an intermediate, and Envoy accepts no chain that ends in one; add its root to the bundle, for which the certificate of `CN=root` is missing";
        assert!(error.to_string().contains(message), "{error}");
    }
    let both = alone.union(&root.bundle()).unwrap();
    for chain in [&chain, &whole] {
        let issued = verify(chain.clone(), &request, &both).unwrap();
        assert_eq!(issued.chain(), whole);
        assert_eq!(issued.root().der(), &root.der);
    }
    let for_rustls = alone.allow_partial_chains(true);
    for chain in [&chain, &whole] {
        let issued = verify(chain.clone(), &request, &for_rustls).unwrap();
        assert_eq!(issued.root().der(), &ca.der);
    }
}

/// Every renewal of a CA under its old key has two certificates of one name and key in flight.
#[test]
fn of_several_paths_one_that_lasts_is_taken() {
    let key = key();
    let request = request(&key);
    let renew = |ca: &Ca, issuer: Option<&Ca>| {
        let mut old = ca.params.clone();
        old.not_after = (start() + HOUR / 2).into();
        old.serial_number = Some(7u64.into());
        match issuer {
            Some(issuer) => old.signed_by(&ca.key, &issuer.issuer()),
            None => old.self_signed(&ca.key),
        }
        .unwrap()
        .der()
        .clone()
    };
    let root = Ca::root("root");
    let intermediate = root.below("intermediate");
    let leaf = intermediate.leaf(&request, |_| {});
    let old_intermediate = renew(&intermediate, Some(&root));
    let old_root = renew(&root, None);
    for chain in [
        vec![
            leaf.clone(),
            old_intermediate.clone(),
            intermediate.der.clone(),
        ],
        vec![
            leaf.clone(),
            intermediate.der.clone(),
            old_intermediate.clone(),
        ],
    ] {
        let issued = verify(chain, &request, &root.bundle()).unwrap();
        assert_eq!(issued.chain(), [leaf.clone(), intermediate.der.clone()]);
    }
    for roots in [[&old_root, &root.der], [&root.der, &old_root]] {
        let bundle = TrustBundle::new(domain(), roots.map(Clone::clone)).unwrap();
        let chain = vec![leaf.clone(), intermediate.der.clone()];
        let issued = verify(chain, &request, &bundle).unwrap();
        assert_eq!(issued.root().der(), &root.der);
    }
    let error = verify(vec![leaf, old_intermediate], &request, &root.bundle()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("outlives its issuer `CN=intermediate`"),
        "{error}"
    );
}

#[test]
fn a_certificate_is_usable_when_all_of_its_path_is() {
    let key = key();
    let request = request(&key);
    let soon = Duration::from_secs(40);
    let early = |name: &str| {
        let mut params = ca_params(name);
        params.not_before = (start() + soon).into();
        params
    };
    let root = Ca::root("root");
    let late = root.below_with(early("late"));
    let late_root = Ca::root_with(early("late root"));
    for (chain, bundle) in [
        (
            vec![late.leaf(&request, |_| {}), late.der.clone()],
            root.bundle(),
        ),
        (vec![late_root.leaf(&request, |_| {})], late_root.bundle()),
    ] {
        let issued = verify(chain, &request, &bundle).unwrap();
        assert_eq!(issued.usable_from(), start() + soon);
        assert!(matches!(
            issued.observations(),
            [Observation::NotYetValid { wait, .. }] if *wait == soon
        ));
    }
    // A stranger's dates are nobody's business.
    let leaf = root.leaf(&request, |_| {});
    let issued = verify(vec![leaf, late_root.der], &request, &root.bundle()).unwrap();
    assert_eq!(issued.usable_from(), start());
}

#[test]
fn order_says_nothing_about_which_certificate_is_meant() {
    let (root, key) = (Ca::root("root"), key());
    let request = request(&key);
    let stale = root.leaf(&request, |leaf| {
        leaf.not_before = (start() - 2 * HOUR).into();
        leaf.not_after = (start() - HOUR).into();
    });
    let fresh = root.leaf(&request, |_| {});
    for chain in [
        [stale.clone(), fresh.clone()],
        [fresh.clone(), stale.clone()],
    ] {
        let issued = verify(chain.to_vec(), &request, &root.bundle()).unwrap();
        assert_eq!(issued.chain(), std::slice::from_ref(&fresh));
    }
}

#[test]
fn a_second_common_name_is_not_smuggled_in() {
    let (root, key) = (Ca::root("root"), key());
    let wanted = spec().with_common_name("cart");
    let request = CertificateRequest::for_key(wanted, &key, start()).unwrap();
    let leaf = root.leaf(&request, |leaf| {
        leaf.distinguished_name.push(DnType::CommonName, "cart");
        let second = DnType::CustomDnType(vec![2, 5, 4, 3]);
        leaf.distinguished_name.push(second, "admin");
    });
    let error = verify(vec![leaf], &request, &root.bundle()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the common name `admin` where `cart`"),
        "{error}"
    );
}

#[tokio::test]
async fn keys_that_are_not_declared_are_refused_before_the_ca_is_asked() {
    let root = Ca::root("root");
    let issuer = Scripted::new(SignedChain::new([]), root.bundle(), Ok(root.bundle()));
    let issuer = IssuingCa::new(issuer);
    let clock = FakeClock::new();
    let rsa = spec().with_key_type(meshca_core::KeyType::Rsa2048);
    let error = issuer.issue(&rsa, &clock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("RSA-2048 keys"), "{error}");
    assert_eq!(*issuer.asked.lock().unwrap(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any order, repetitions, strangers, with or without the root: the same chain is delivered.
    /// Without one of its links: nothing is.
    #[test]
    fn chains_are_rebuilt(
        depth in 1usize..5,
        strangers in 0usize..3,
        repeated in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        with_root: bool,
        missing in prop::option::of(any::<prop::sample::Index>()),
        order in any::<u64>(),
    ) {
        let key = key();
        let request = request(&key);
        let root = Ca::root("root");
        let mut cas = vec![root];
        for level in 0..depth {
            let next = cas.last().unwrap().below(&format!("level {level}"));
            cas.push(next);
        }
        let leaf = cas.last().unwrap().leaf(&request, |_| {});
        let intermediates: Vec<_> = cas.iter().skip(1).rev().map(|ca| ca.der.clone()).collect();
        let expected: Vec<_> = std::iter::once(leaf.clone()).chain(intermediates.clone()).collect();

        let mut links = intermediates;
        if let Some(missing) = missing {
            let gone = missing.index(links.len());
            links.remove(gone);
        }
        let mut sent = vec![leaf];
        sent.extend(links);
        sent.extend(repeated.iter().map(|index| sent[index.index(sent.len())].clone()).collect::<Vec<_>>());
        sent.extend((0..strangers).map(|n| Ca::root(&format!("stranger {n}")).der));
        if with_root {
            sent.push(cas[0].der.clone());
        }
        shuffle(&mut sent, order);

        let result = verify(sent, &request, &cas[0].bundle());
        match missing {
            None => {
                let issued = result.unwrap();
                prop_assert_eq!(issued.chain(), expected);
            }
            Some(_) => prop_assert!(result.unwrap_err().to_string().contains("root unknown")),
        }
    }

    #[test]
    fn whatever_comes_back_is_verified_or_refused(
        certificates in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
        flip in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let (root, key) = (Ca::root("root"), key());
        let request = request(&key);
        let bundle = root.bundle();
        let garbage = certificates.into_iter().map(CertificateDer::from);
        let _ = SignedChain::new(garbage).verify(&request, &bundle, start());
        let mut leaf = root.leaf(&request, |_| {}).to_vec();
        let index = flip.index(leaf.len());
        leaf[index] ^= 1 << bit;
        prop_assert!(verify(vec![CertificateDer::from(leaf)], &request, &bundle).is_err());
    }
}

fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for index in (1..items.len()).rev() {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(index, usize::try_from(seed >> 33).unwrap() % (index + 1));
    }
}
