use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::{
    CertificateRequest, CertificateSpec, KeyType, PrivateKey, SpiffeId, TrustBundle, TrustDomain,
};

const HOUR: Duration = Duration::from_secs(3600);
const ID: &str = "spiffe://example.org/cart";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + DAY * 20_000
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lives(&mut params, 1000);
    params
}

fn lives(params: &mut CertificateParams, days: u32) {
    (params.not_before, params.not_after) = ((now() - DAY).into(), (now() + DAY * days).into());
}

fn key(of: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(of).unwrap()
}

/// What is done to a CA that is sound.
struct Change {
    params: Box<dyn Fn(&mut CertificateParams)>,
    key: &'static rcgen::SignatureAlgorithm,
}

fn change(params: impl Fn(&mut CertificateParams) + 'static) -> Change {
    Change {
        params: Box::new(params),
        key: &rcgen::PKCS_ECDSA_P256_SHA256,
    }
}

fn constraints(extension: rcgen::NameConstraints) -> Change {
    change(move |params| params.name_constraints = Some(extension.clone()))
}

fn custom(oid: &'static [u64], content: &'static [u8]) -> Change {
    change(move |params| {
        let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
        extension.set_criticality(true);
        params.custom_extensions = vec![extension];
    })
}

/// The chain of an issuing CA, below a sound root if it is an intermediate; and whether a leaf of it is verified.
fn made(change: &Change, root: bool) -> (SignedChain, bool) {
    let mut params = ca("Changed");
    (change.params)(&mut params);
    let changed_key = key(change.key);
    let (root_params, root_key) = (ca("Root"), key(&rcgen::PKCS_ECDSA_P256_SHA256));
    let chain: Vec<CertificateDer<'static>> = if root {
        vec![params.self_signed(&changed_key).unwrap().into()]
    } else {
        let top = Issuer::from_params(&root_params, &root_key);
        let changed = params.signed_by(&changed_key, &top).unwrap();
        vec![
            changed.into(),
            root_params.self_signed(&root_key).unwrap().into(),
        ]
    };
    let held = PrivateKey::generate(KeyType::P256).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (leaf.not_before, leaf.not_after) = ((now() - HOUR).into(), (now() + HOUR).into());
    let issuer = Issuer::from_params(&params, &changed_key);
    let leaf = leaf.signed_by(&**held.material(), &issuer).unwrap();
    let answer = SignedChain::new([leaf.into()].into_iter().chain(chain.iter().cloned()));
    let spec = CertificateSpec::workload(SpiffeId::new(ID).unwrap()).with_lifetime(HOUR);
    let request = CertificateRequest::for_key(spec, &held, now()).unwrap();
    let anchor = chain.last().cloned();
    let bundle = TrustBundle::new(TrustDomain::new("example.org").unwrap(), anchor);
    let verified = bundle.and_then(|bundle| answer.verify(&request, &bundle, now()));
    (SignedChain::new(chain), verified.is_ok())
}

fn judged(chain: &SignedChain, wanted: CaUse) -> (Vec<String>, Vec<String>) {
    let mut found = Findings::new();
    found.judge_authorities(chain, wanted, |_, _| "Make another".to_owned());
    let problems = found.problems().iter().map(ToString::to_string).collect();
    let warnings = match found.into_report() {
        Ok(report) => report.warnings,
        Err(_) => Vec::new(),
    };
    (problems, warnings)
}

/// What verification refuses is what a check reports, and nothing else.
#[test]
fn a_check_finds_what_verification_refuses() {
    let uris = |permitted: &[&str], excluded: &[&str]| {
        let all = |uris: &[&str]| {
            let uri = |uri: &&str| GeneralSubtree::Rfc822Name((*uri).to_owned());
            uris.iter().map(uri).collect()
        };
        rcgen::NameConstraints {
            permitted_subtrees: all(permitted),
            excluded_subtrees: all(excluded),
        }
    };
    let dns = |permitted: &[&str]| rcgen::NameConstraints {
        permitted_subtrees: permitted
            .iter()
            .map(|it| GeneralSubtree::DnsName((*it).to_owned()))
            .collect(),
        excluded_subtrees: Vec::new(),
    };
    let directory = |excluded: bool| {
        let mut name = rcgen::DistinguishedName::new();
        name.push(DnType::OrganizationName, "Example");
        let subtrees = vec![GeneralSubtree::DirectoryName(name)];
        constraints(match excluded {
            false => rcgen::NameConstraints {
                permitted_subtrees: subtrees,
                excluded_subtrees: Vec::new(),
            },
            true => rcgen::NameConstraints {
                permitted_subtrees: Vec::new(),
                excluded_subtrees: subtrees,
            },
        })
    };
    // A sequence of subtrees with the URI `example.org`, permitted; and excluded, `example.com`.
    const PERMITTED: &[u8] = b"\x30\x11\xa0\x0f\x30\x0d\x86\x0bexample.org";
    const EXCLUDED: &[u8] = b"\x30\x11\xa1\x0f\x30\x0d\x86\x0bexample.com";
    const NAMES: &[u64] = &[2, 5, 29, 30];
    // One policy.
    const POLICIES: &[u8] = &[0x30, 0x06, 0x30, 0x04, 0x06, 0x02, 0x2a, 0x03];
    // `requireExplicitPolicy` 0.
    const DEMAND: &[u8] = &[0x30, 0x03, 0x80, 0x01, 0x00];
    for (what, change, fault, of_root) in [
        ("sound", change(|_| {}), None, None),
        ("no usages", change(|it| it.key_usages.clear()), None, None),
        (
            "no keyCertSign",
            change(|it| it.key_usages = vec![KeyUsagePurpose::CrlSign]),
            Some("`keyCertSign`"),
            Some("`keyCertSign`"),
        ),
        (
            "no CA",
            change(|it| it.is_ca = IsCa::ExplicitNoCa),
            Some("is not a CA"),
            Some("is not a CA"),
        ),
        (
            "servers only",
            change(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            Some("other purposes"),
            Some("other purposes"),
        ),
        (
            "both sides",
            change(|it| {
                it.extended_key_usages = vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ];
            }),
            None,
            None,
        ),
        (
            "no CA below it",
            change(|it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
            None,
            None,
        ),
        (
            "ended",
            change(|it| it.not_after = (now() - HOUR).into()),
            Some("has ended"),
            Some("has ended"),
        ),
        (
            "of tomorrow",
            change(|it| it.not_before = (now() + DAY).into()),
            Some("compare the clocks"),
            Some("compare the clocks"),
        ),
        (
            "these URIs",
            custom(NAMES, PERMITTED),
            Some("constrains URIs"),
            Some("constrains URIs"),
        ),
        (
            "not those URIs",
            custom(NAMES, EXCLUDED),
            Some("constrains URIs"),
            Some("constrains URIs"),
        ),
        (
            "mail",
            constraints(uris(&["example.org"], &["example.com"])),
            None,
            None,
        ),
        ("DNS names", constraints(dns(&["example.org"])), None, None),
        (
            "directory names",
            directory(false),
            Some("constrains directory names"),
            Some("constrains directory names"),
        ),
        (
            "not those directory names",
            directory(true),
            Some("constrains directory names"),
            Some("constrains directory names"),
        ),
        ("policies", custom(&[2, 5, 29, 32], POLICIES), None, None),
        (
            "a demand of policies",
            custom(&[2, 5, 29, 36], DEMAND),
            Some("demands"),
            None,
        ),
        (
            "something critical",
            custom(&[1, 2, 3], b""),
            Some("critical extension"),
            None,
        ),
        (
            "P-521",
            Change {
                key: &rcgen::PKCS_ECDSA_P521_SHA512,
                ..change(|_| {})
            },
            None,
            None,
        ),
        (
            "Ed25519",
            Change {
                key: &rcgen::PKCS_ED25519,
                ..change(|_| {})
            },
            None,
            None,
        ),
    ] {
        for (root, fault) in [(false, fault), (true, of_root)] {
            let (chain, verified) = made(&change, root);
            let (problems, _) = judged(&chain, CaUse::leaves(HOUR, now()));
            assert_eq!(
                verified,
                problems.is_empty(),
                "{what}, root {root}: {problems:?}"
            );
            match (fault, problems.as_slice()) {
                (None, []) => {}
                (Some(words), [problem]) => {
                    assert!(problem.contains(words), "{what}: {problem}");
                    assert!(problem.ends_with(". Make another"), "{problem}");
                }
                unexpected => panic!("{what}, root {root}: {unexpected:?}"),
            }
        }
    }
}

#[test]
fn weak_keys_and_old_signatures_are_found() {
    // What no library makes any more is made by changing bytes, which only the signature of a CA notices.
    let der = |change: &dyn Fn(&mut Vec<u8>)| {
        let params = ca("Old");
        let top = (ca("Root"), key(&rcgen::PKCS_ECDSA_P256_SHA256));
        let top = Issuer::from_params(&top.0, &top.1);
        let old = params
            .signed_by(&key(&rcgen::PKCS_ECDSA_P256_SHA256), &top)
            .unwrap();
        let mut der = old.der().to_vec();
        change(&mut der);
        SignedChain::new([CertificateDer::from(der)])
    };
    let replace = |from: &'static [u8], to: &'static [u8]| {
        der(&move |der: &mut Vec<u8>| {
            for at in 0..der.len() - from.len() {
                if der[at..].starts_with(from) {
                    der[at..at + to.len()].copy_from_slice(to);
                }
            }
        })
    };
    const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    const ECDSA_SHA224: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01];
    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const P192: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01];
    for (chain, words) in [
        (
            replace(ECDSA_SHA256, ECDSA_SHA224),
            "is signed with an algorithm that is not accepted (1.2.840.10045.4.3.1)",
        ),
        (
            replace(P256, P192),
            "has a key of a type that is not accepted (1.2.840.10045.3.1.1)",
        ),
    ] {
        let (problems, _) = judged(&chain, CaUse::leaves(HOUR, now()));
        assert!(problems[0].contains(words), "{problems:?}");
    }
}

#[test]
fn what_cannot_be_known_is_a_warning() {
    let dns = || {
        constraints(rcgen::NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
            excluded_subtrees: Vec::new(),
        })
    };
    for (change, root, lifetime, words) in [
        (change(|_| {}), false, HOUR, ""),
        (
            dns(),
            false,
            HOUR,
            "the CA `CN=Changed` is constrained to some names",
        ),
        (
            change(|it| lives(it, 29)),
            false,
            HOUR,
            "the CA `CN=Changed` ends in 29 days. Make another",
        ),
        (change(|it| lives(it, 31)), false, HOUR, ""),
        (
            change(|it| lives(it, 59)),
            true,
            HOUR,
            "the root `CN=Changed` ends in 59 days. Make another",
        ),
        (change(|it| lives(it, 61)), true, HOUR, ""),
        (
            change(|it| lives(it, 2)),
            false,
            DAY * 3,
            "ends in 48 h, and certificates for 72 h are asked for",
        ),
    ] {
        let (chain, _) = made(&change, root);
        let (problems, warnings) = judged(&chain, CaUse::leaves(lifetime, now()));
        assert_eq!(problems, [""; 0]);
        match words {
            "" => assert_eq!(warnings, [""; 0]),
            words => assert!(
                warnings.len() == 1 && warnings[0].contains(words),
                "{warnings:?}"
            ),
        }
    }
}

#[test]
fn a_ca_needs_room_for_what_is_below_it() {
    let room = |room| change(move |it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(room)));
    for (room_left, intermediates, sound) in [(0, false, true), (0, true, false), (1, true, true)] {
        for root in [false, true] {
            let (chain, _) = made(&room(room_left), root);
            let wanted = match intermediates {
                true => CaUse::intermediates(HOUR, now()),
                false => CaUse::leaves(HOUR, now()),
            };
            assert_eq!(judged(&chain, wanted).0.is_empty(), sound);
        }
    }
    // The root counts the CAs below it.
    let (root, root_key) = (ca("Root"), key(&rcgen::PKCS_ECDSA_P256_SHA256));
    let mut narrow = ca("Root");
    narrow.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let top = Issuer::from_params(&root, &root_key);
    let below = ca("Below")
        .signed_by(&key(&rcgen::PKCS_ECDSA_P256_SHA256), &top)
        .unwrap();
    let chain = SignedChain::new([below.into(), narrow.self_signed(&root_key).unwrap().into()]);
    let (problems, _) = judged(&chain, CaUse::leaves(HOUR, now()));
    assert!(
        problems[0].contains("the root `CN=Root` cannot be used"),
        "{problems:?}"
    );
    assert!(
        problems[0].contains("may have 0 CAs below it, and 1 are needed"),
        "{problems:?}"
    );
}

/// A CA that was certified again under its key is used by the certificate that is sound.
#[test]
fn one_sound_certificate_of_a_ca_is_enough() {
    let (params, own) = (ca("Renewed"), key(&rcgen::PKCS_ECDSA_P256_SHA256));
    let mut ended = ca("Renewed");
    ended.not_after = (now() - HOUR).into();
    let both = [ended, params].map(|params| params.self_signed(&own).unwrap().into());
    let (problems, _) = judged(&SignedChain::new(both.clone()), CaUse::leaves(HOUR, now()));
    assert_eq!(problems, [""; 0]);
    let [ended, _] = both;
    let (problems, _) = judged(&SignedChain::new([ended]), CaUse::leaves(HOUR, now()));
    assert_eq!(problems.len(), 1);
}

#[test]
fn one_usable_root_is_enough() {
    let root = |ended: bool| {
        let mut params = ca(if ended { "Former" } else { "Present" });
        if ended {
            params.not_after = (now() - HOUR).into();
        }
        let key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
        CertificateDer::from(params.self_signed(&key).unwrap())
    };
    for (roots, problems, warnings) in [
        (vec![root(false)], 0, 0),
        (vec![root(true)], 1, 0),
        (vec![root(true), root(false)], 0, 1),
        // Of one name, so they are reported once.
        (vec![root(true), root(true)], 1, 0),
    ] {
        let mut found = Findings::new();
        let bundle = TrustBundle::new(TrustDomain::new("example.org").unwrap(), roots).unwrap();
        found.judge_roots(&bundle, CaUse::leaves(HOUR, now()), "Make another");
        assert_eq!(found.problems().len(), problems);
        if let Ok(report) = found.into_report() {
            assert_eq!(report.warnings.len(), warnings);
        }
    }
}

#[test]
fn an_intermediate_without_its_root_is_a_warning() {
    let (root, own) = (ca("Root"), key(&rcgen::PKCS_ECDSA_P256_SHA256));
    let der = CertificateDer::from(root.self_signed(&own).unwrap());
    let below = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let below = ca("Below").signed_by(&below, &rcgen::Issuer::new(root, own));
    let below = CertificateDer::from(below.unwrap());
    for (anchors, warnings) in [
        (vec![der.clone()], vec![]),
        (vec![below.clone(), der], vec![]),
        (
            vec![below],
            vec![
                "`caCert` holds the intermediate CA `CN=Below` and not the root that it leads to, so Envoy accepts nothing below it unless the mesh has the root in a MeshTrust: add the certificate of `CN=Root` to `caCert`",
            ],
        ),
    ] {
        let mut found = Findings::new();
        let bundle = TrustBundle::new(TrustDomain::new("example.org").unwrap(), anchors).unwrap();
        found.judge_dead_ends(&bundle, "caCert");
        assert_eq!(found.into_report().unwrap().warnings, warnings);
    }
}
