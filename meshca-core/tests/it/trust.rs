//! Trust bundles: PEM, the SPIFFE format, and what is refused.

use std::time::Duration;

use crate::common::{Ca, ca_params, domain};
use meshca_core::{ErrorKind, TrustBundle, TrustDomain};
use proptest::prelude::*;
use rcgen::{IsCa, KeyPair};
use serde_json::{Value, json};

/// RFC 5280 §6.1: an anchor is a name and a key. Its version, its key usages and its own signature are
/// no part of a path.
#[test]
fn old_roots_are_roots() {
    for (what, pem) in [
        ("version 1", include_str!("../data/v1-root.pem")),
        (
            "signed with SHA-1, without key usages",
            include_str!("../data/sha1-root.pem"),
        ),
    ] {
        let bundle = TrustBundle::from_pem(domain(), pem).unwrap();
        assert!(bundle.roots()[0].is_self_signed(), "{what}");
        assert_eq!(bundle.dead_ends().count(), 0, "{what}");
    }
    // Its name is its own, and its signature is not.
    let (root, namesake) = (Ca::root("root"), Ca::root("root"));
    let cross = root.below("root");
    assert_ne!(root.der, namesake.der);
    let bundle = TrustBundle::new(domain(), [cross.der]).unwrap();
    assert!(!bundle.roots()[0].is_self_signed());
}

#[test]
fn a_bundle_tells_in_which_of_its_certificates_no_chain_may_end() {
    let root = Ca::root("root");
    let upper = root.below("upper");
    let lower = upper.below("lower");
    let mail = Ca::root_with({
        let mut params = ca_params("mail");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::EmailProtection];
        params
    });
    let told = |cas: &[&Ca]| {
        let all = cas.iter().map(|ca| ca.der.clone());
        let bundle = TrustBundle::new(domain(), all).unwrap();
        let told: Vec<_> = bundle.dead_ends().map(|(_, why)| why).collect();
        told
    };
    let missing = |anchor: &str, above: &str| {
        format!(
            "`CN={anchor}` in the trust bundle is an intermediate, and Envoy accepts no chain that ends in one; add its root to the bundle, for which the certificate of `CN={above}` is missing"
        )
    };
    assert_eq!(told(&[&lower, &root, &upper]), [""; 0]);
    assert_eq!(told(&[&lower]), [missing("lower", "upper")]);
    assert_eq!(
        told(&[&upper, &lower]),
        [missing("upper", "root"), missing("lower", "root")]
    );
    assert_eq!(told(&[&root, &lower]), [missing("lower", "upper")]);
    assert_eq!(
        told(&[&mail]),
        [
            "the root `CN=mail` is restricted to other purposes than server and client authentication"
        ]
    );
}

#[test]
fn ends_are_where_a_chain_may_end() {
    let root = Ca::root("root");
    let upper = root.below("upper");
    let lower = upper.below("lower");
    let namesake = Ca::root("root");
    let of = |cas: &[&Ca]| {
        let all = cas.iter().map(|ca| ca.der.clone());
        TrustBundle::new(domain(), all).unwrap()
    };
    let ends = |bundle: &TrustBundle| -> Vec<String> {
        bundle.ends().map(|root| root.subject()).collect()
    };
    let bare = of(&[&lower]);
    assert_eq!(ends(&bare), [""; 0]);
    let both = of(&[&lower, &root]);
    assert_eq!(ends(&both), ["CN=root"]);
    let for_rustls = both.allow_partial_chains(true);
    assert_eq!(ends(&for_rustls), ["CN=lower", "CN=root"]);
    assert_eq!(for_rustls.dead_ends().count(), 0);

    // Peers hold more than leads on from it.
    let peers = of(&[&Ca::root("other"), &root, &namesake, &upper]);
    let completed = bare.completed_by(&peers).unwrap();
    assert_eq!(completed, of(&[&lower, &upper, &root]));
    assert_eq!(completed.dead_ends().count(), 0);
    assert_eq!(of(&[&root]).completed_by(&peers).unwrap(), of(&[&root]));
    // What has the name of the issuer and another key is not the issuer.
    let apart = of(&[&upper, &namesake]);
    assert_eq!(apart.dead_ends().count(), 1);
    assert_eq!(of(&[&upper]).completed_by(&apart).unwrap(), of(&[&upper]));
    // Peers decide in what a chain may end.
    let anywhere = bare.completed_by(&for_rustls).unwrap();
    assert_eq!(ends(&anywhere), ["CN=lower"]);
    let elsewhere = TrustDomain::new("other.example").unwrap();
    let elsewhere = TrustBundle::new(elsewhere, []).unwrap();
    let error = bare.completed_by(&elsewhere).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[test]
fn a_union_is_as_strict_as_its_strictest() {
    let root = Ca::root("root");
    let ca = root.below("mesh ca");
    let other = Ca::root("other").below("other ca");
    let strict = |ca: &Ca| TrustBundle::new(domain(), [ca.der.clone()]).unwrap();
    let lenient = |ca: &Ca| strict(ca).allow_partial_chains(true);
    for (one, two, ends) in [
        (strict(&ca), strict(&other), 0),
        (strict(&ca), lenient(&other), 0),
        (lenient(&ca), strict(&other), 0),
        (lenient(&ca), lenient(&other), 2),
    ] {
        assert_eq!(one.union(&two).unwrap().ends().count(), ends);
    }
    // One root more or less is no other bundle's opinion.
    let more = lenient(&ca).with_root(other.der.clone()).unwrap();
    assert_eq!(more.ends().count(), 2);
    assert_eq!(more.without_root(&other.der).unwrap(), lenient(&ca));
}

/// Envoy refuses the whole trust bundle for one of them.
#[test]
fn a_root_that_envoy_cannot_read_is_refused() {
    let utf8 = |text: &str| {
        let mut params = ca_params("");
        params.distinguished_name = rcgen::DistinguishedName::new();
        let value = rcgen::DnValue::Utf8String(text.to_owned());
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, value);
        Ca::root_with(params).der.to_vec()
    };
    let replaced = |der: &[u8], old: &[u8], new: &[u8]| {
        let mut der = der.to_vec();
        let places: Vec<_> = { 0..der.len() - old.len() }
            .filter(|at| der[*at..].starts_with(old))
            .collect();
        assert!(!places.is_empty());
        for at in places {
            der[at..at + new.len()].copy_from_slice(new);
        }
        der
    };
    let plain = utf8("Mueller");
    let cases = [
        ("Latin-1", replaced(&plain, b"Mue", b"M\xfc\xfc")),
        ("a surrogate", replaced(&plain, b"Mue", b"\xed\xa0\x80")),
        (
            "another type",
            replaced(&plain, b"\x0c\x07Mue", b"\x04\x07Mue"),
        ),
        (
            "half a character",
            replaced(&plain, b"\x0c\x07Mue", b"\x1e\x07Mue"),
        ),
        ("a noncharacter", utf8("M\u{fffe}ller")),
        (
            "a damaged attribute",
            replaced(&plain, b"\x06\x03\x55\x04\x03", b"\x06\x03\x55\x80\x03"),
        ),
    ];
    let read = |der: Vec<u8>| TrustBundle::new(domain(), [der.into()]);
    for (what, der) in cases {
        let error = read(der).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{what}");
    }
    let latin = replaced(&plain, b"\x0c\x07Mue", b"\x14\x07M\xfce");
    for der in [plain, utf8("Müller \u{1f512}"), latin] {
        read(der).unwrap();
    }
}

fn roots_of_every_type() -> Vec<Ca> {
    [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ]
    .into_iter()
    .map(|algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = ca_params(&format!("{algorithm:?}"));
        let der = params.self_signed(&key).unwrap().der().clone();
        Ca { params, key, der }
    })
    .collect()
}

#[test]
fn the_spiffe_format_has_the_keys_that_json_web_keys_have() {
    let roots = roots_of_every_type();
    let bundle = TrustBundle::new(domain(), roots.iter().map(|root| root.der.clone()))
        .unwrap()
        .with_sequence(7)
        .with_refresh_hint(Duration::from_millis(60_999));
    let json: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
    assert_eq!(json["spiffe_sequence"], 7);
    assert_eq!(json["spiffe_refresh_hint"], 60);
    let expected = [
        ("EC", "P-256", 43),
        ("EC", "P-384", 64),
        ("EC", "P-521", 88),
        ("OKP", "Ed25519", 43),
    ];
    for (key, (kty, crv, length)) in json["keys"].as_array().unwrap().iter().zip(expected) {
        assert_eq!(
            (&key["use"], &key["kty"], &key["crv"]),
            (&json!("x509-svid"), &json!(kty), &json!(crv))
        );
        assert_eq!(key["x"].as_str().unwrap().len(), length);
        assert_eq!(
            key.get("y").map(|y| y.as_str().unwrap().len()),
            (kty == "EC").then_some(length)
        );
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
    }
    let rsa = &json["keys"][4];
    assert_eq!((&rsa["kty"], &rsa["e"]), (&json!("RSA"), &json!("AQAB")));
    assert_eq!(rsa["n"].as_str().unwrap().len(), 342);
    assert_eq!(
        TrustBundle::from_spiffe_json(domain(), &bundle.to_spiffe_json()).unwrap(),
        bundle
    );
}

#[test]
fn keys_that_are_not_for_svids_are_ignored_and_broken_ones_are_not() {
    use base64::Engine as _;
    let root = Ca::root("root");
    let x5c = base64::engine::general_purpose::STANDARD.encode(&root.der);
    let good = json!({"kty": "EC", "use": "x509-svid", "x5c": [x5c]});
    let read =
        |keys: Value| TrustBundle::from_spiffe_json(domain(), &json!({ "keys": keys }).to_string());

    let others = json!([{"kty": "EC", "use": "jwt-svid", "kid": "a"}, {"kty": "EC"}, {"use": "later"}, good, good]);
    assert_eq!(read(others).unwrap(), root.bundle());
    assert!(
        read(json!([])).unwrap().is_empty(),
        "an empty bundle says that nobody vouches any more"
    );

    let leaf = {
        let mut params = ca_params("leaf");
        params.is_ca = IsCa::ExplicitNoCa;
        base64::engine::general_purpose::STANDARD.encode(Ca::root_with(params).der)
    };
    for (keys, message) in [
        (
            json!([good, {"use": "x509-svid", "x5c": [x5c]}]),
            "keys[1]: `kty` must be set",
        ),
        (
            json!([{"kty": "EC", "use": "x509-svid"}]),
            "keys[0]: `x5c` must hold exactly one certificate, not 0",
        ),
        (
            json!([{"kty": "EC", "use": "x509-svid", "x5c": [x5c, x5c]}]),
            "exactly one certificate, not 2",
        ),
        (
            json!([{"kty": "EC", "use": "x509-svid", "x5c": ["*"]}]),
            "keys[0]: `x5c` is not base64",
        ),
        (
            json!([{"kty": "EC", "use": "x509-svid", "x5c": ["AAAA"]}]),
            "keys[0]: not an X.509 certificate",
        ),
        (
            json!([{"kty": "EC", "use": "x509-svid", "x5c": [leaf]}]),
            "`CN=leaf` is not a CA",
        ),
        (json!({}), "not a SPIFFE bundle: invalid type"),
    ] {
        let error = read(keys).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(
            error.to_string().contains(message),
            "expected: {message}\nfound:    {error}"
        );
        assert!(error.to_string().contains("trust domain: example.org"));
    }
    assert!(TrustBundle::from_spiffe_json(domain(), "{").is_err());
}

#[test]
fn pem_bundles_are_strict() {
    let (root, other) = (Ca::root("root"), Ca::root("other"));
    let leaf = {
        let mut params = ca_params("leaf");
        params.is_ca = IsCa::NoCa;
        Ca::root_with(params)
    };
    let both = root.pem() + "\n" + &other.pem() + &root.pem();
    let bundle = TrustBundle::from_pem(domain(), &both).unwrap();
    assert_eq!(
        bundle
            .roots()
            .iter()
            .map(|root| root.subject())
            .collect::<Vec<_>>(),
        ["CN=root", "CN=other"],
        "doubles are dropped"
    );
    for (text, message) in [
        (String::new(), "there is no certificate in it"),
        (
            "hello".to_owned(),
            "line 1: no `-----BEGIN CERTIFICATE-----` in it",
        ),
        (
            root.pem() + "----- BEGIN CERTIFICATE-----\n" + &other.pem(),
            "this is part of a PEM block whose `-----BEGIN …` is missing or damaged",
        ),
        (root.pem() + &leaf.pem(), "`CN=leaf` is not a CA"),
        (
            root.pem().replace("CERTIFICATE", "PRIVATE KEY"),
            "line 1: expected a CERTIFICATE, found a PRIVATE KEY",
        ),
        (
            root.pem().replace("-----END CERTIFICATE-----", ""),
            "has no end",
        ),
    ] {
        let error = TrustBundle::from_pem(domain(), &text).unwrap_err();
        assert!(
            error.to_string().contains(message),
            "expected: {message}\nfound:    {error}"
        );
        assert!(
            !error.to_string().contains("MIG"),
            "no key material in an error: {error}"
        );
    }
}

#[test]
fn bundles_join_within_a_trust_domain_only() {
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let joined = one.bundle().with_sequence(3).union(&two.bundle()).unwrap();
    assert_eq!((joined.roots().len(), joined.sequence()), (2, Some(3)));
    assert_eq!(
        joined.without_root(&one.der).unwrap().roots()[0].der(),
        &two.der
    );
    let foreign =
        TrustBundle::new(TrustDomain::new("example.com").unwrap(), [two.der.clone()]).unwrap();
    let error = one.bundle().union(&foreign).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bundles of different trust domains cannot be joined (one: example.org, other: example.com)"
    );
}

#[cfg(feature = "svid")]
#[test]
fn a_bundle_in_the_spiffe_crates_type() {
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let bundle = one
        .bundle()
        .union(&two.bundle())
        .unwrap()
        .to_x509_bundle()
        .unwrap();
    let authorities: Vec<_> = bundle
        .authorities()
        .iter()
        .map(|authority| authority.as_bytes().to_vec())
        .collect();
    assert_eq!(authorities, [one.der.to_vec(), two.der.to_vec()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn both_formats_are_read_as_they_were_written(
        names in prop::collection::vec("[a-zA-Z0-9 äöü]{1,20}", 0..5),
        sequence in prop::option::of(any::<u64>()), hint in prop::option::of(0u64..1 << 53),
    ) {
        let roots: Vec<_> = names.iter().map(|name| Ca::root(name).der).collect();
        let mut bundle = TrustBundle::new(domain(), roots).unwrap();
        if !bundle.is_empty() {
            prop_assert_eq!(&TrustBundle::from_pem(domain(), &bundle.to_pem()).unwrap(), &bundle);
        }
        if let Some(sequence) = sequence {
            bundle = bundle.with_sequence(sequence);
        }
        if let Some(hint) = hint {
            bundle = bundle.with_refresh_hint(Duration::from_secs(hint));
        }
        prop_assert_eq!(TrustBundle::from_spiffe_json(domain(), &bundle.to_spiffe_json()).unwrap(), bundle);
    }

    #[test]
    fn any_text_is_a_bundle_or_an_error(text in ".{0,200}") {
        let _ = TrustBundle::from_pem(domain(), &text);
        let _ = TrustBundle::from_spiffe_json(domain(), &text);
    }
}
