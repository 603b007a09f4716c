//! go-spiffe on IDs, trust domains and bundles.

use std::time::Duration;

use meshca::spiffe::{PathTemplate, TrustDomainInputs, TrustDomainTemplate, Workload};
use meshca::{SpiffeId, TrustBundle, TrustDomain};
use serde_json::{Value, json};

use super::{ask, readers};
use crate::readers::emit;

#[test]
fn go_spiffe_reads_every_id_that_templates_make() {
    let Some(go) = readers() else { return };
    let long = "a".repeat(1900);
    let values = [
        "a", "Z", "0", "-", "_", "a.b", "...", ".a", "a..b", "-.-", "A_b-C.9", &long,
    ];
    let paths = [
        PathTemplate::KUBERNETES,
        PathTemplate::UNIVERSAL,
        r#"/{{ label "app" }}"#,
        r#"/x-{{ label "app" }}.y/{{ .TrustDomain }}"#,
        r#"/{{ .Workload | replace "a" "..." }}/{{ label "app" | replace "." "-" }}"#,
        "/fixed",
    ];
    let mut ids = Vec::new();
    for domain in ["prod", "a.b-c_d.e", "0", "-", "_"] {
        let domain = TrustDomainTemplate::parse("{{ .Mesh }}.{{ .Zone }}")
            .unwrap()
            .render(&TrustDomainInputs::new(domain, "z"))
            .unwrap();
        for (path, value) in paths
            .iter()
            .flat_map(|path| values.map(|value| (path, value)))
        {
            let workload: Workload = [
                ("k8s.kuma.io/namespace", value),
                ("k8s.kuma.io/service-account", "b"),
                ("kuma.io/workload", value),
                ("app", value),
            ]
            .into_iter()
            .collect();
            let template = PathTemplate::parse(path).unwrap();
            ids.extend(template.render(&domain, &workload));
        }
    }
    assert!(ids.len() > 200, "{}", ids.len());
    let questions: Vec<_> = ids
        .iter()
        .map(|id| json!({"ask": "id", "text": id.to_string()}))
        .collect();
    for (id, answer) in ids.iter().zip(ask(go, &questions)) {
        let expected = json!({
            "id": id.to_string(),
            "trust_domain": id.trust_domain().as_str(),
            "path": id.path(),
        });
        assert_eq!(answer, Ok(expected));
    }
}

/// Texts that are no SPIFFE ID, or are one at the edge.
const IDS: &[&str] = &[
    "",
    "spiffe",
    "spiffe:",
    "spiffe:/",
    "spiffe://",
    "spiffe:///a",
    "spiffe://a",
    "spiffe://a/",
    "spiffe://a/b",
    "spiffe://a/b/",
    "spiffe://a//b",
    "spiffe://a/./b",
    "spiffe://a/../b",
    "spiffe://a/.../b",
    "spiffe://a/b/..",
    "SPIFFE://a/b",
    "Spiffe://a/b",
    "https://a/b",
    "spiffe://A/b",
    "spiffe://a/B",
    "spiffe://a.b-c_d/e",
    "spiffe://./b",
    "spiffe://../b",
    "spiffe://-/b",
    "spiffe://a:443/b",
    "spiffe://user@a/b",
    "spiffe://a/b?c",
    "spiffe://a/b#c",
    "spiffe://a/b%2fc",
    "spiffe://a/b c",
    "spiffe://a/é",
    "spiffe://é/b",
    "spiffe://a/b\n",
    "spiffe://a/b\0",
    " spiffe://a/b",
    "spiffe://[::1]/b",
    "spiffe://a/*",
    "spiffe://a/~b",
    "spiffe://a/b;c",
    "spiffe://a\\b",
];

#[test]
fn go_spiffe_refuses_the_ids_that_we_refuse() {
    let Some(go) = readers() else { return };
    let mut texts: Vec<String> = IDS.iter().map(|text| (*text).to_owned()).collect();
    texts.push(format!("spiffe://{}/b", "a".repeat(255)));
    texts.push(format!("spiffe://a/{}", "b".repeat(2048 - 11)));
    let too_long = [
        format!("spiffe://{}/b", "a".repeat(256)),
        format!("spiffe://a/{}", "b".repeat(2049 - 11)),
    ];
    let ask_all = |texts: &[String]| {
        let questions: Vec<_> = texts
            .iter()
            .map(|text| json!({"ask": "id", "text": text}))
            .collect();
        ask(go, &questions)
    };
    let mut normalised = Vec::new();
    for (text, answer) in texts.iter().zip(ask_all(&texts)) {
        match (SpiffeId::new(text), answer) {
            (Ok(id), Ok(theirs)) => {
                let ours = json!({
                    "id": id.to_string(),
                    "trust_domain": id.trust_domain().as_str(),
                    "path": id.path(),
                });
                assert_eq!(ours, theirs, "{text:?}");
            }
            (Err(_), Err(_)) => {}
            (Ok(id), Err(_)) if text.eq_ignore_ascii_case(&id.to_string()) => {
                normalised.push(text.as_str());
            }
            (ours, theirs) => panic!("{text:?}: we {ours:?}, go-spiffe {theirs:?}"),
        }
    }
    // The `spiffe` crate reads schemes and trust domains in upper case and makes them lower case; go-spiffe
    // refuses them. Neither writes any.
    assert_eq!(normalised, ["SPIFFE://a/b", "Spiffe://a/b", "spiffe://A/b"]);
    // go-spiffe leaves lengths (SPIFFE-ID §2.1 and §2.3) to whoever makes an ID.
    for answer in ask_all(&too_long) {
        assert!(answer.is_ok(), "{answer:?}");
    }
    for text in &too_long {
        let path = PathTemplate::parse(text.strip_prefix("spiffe://a").unwrap());
        let refused = match path {
            Ok(template) => template
                .render(&TrustDomain::new("a").unwrap(), &Workload::new())
                .is_err(),
            Err(_) => true,
        };
        assert!(refused, "a template makes {} bytes", text.len());
    }
}

#[test]
fn go_spiffe_refuses_the_trust_domains_that_we_refuse() {
    let Some(go) = readers() else { return };
    let texts = [
        "a",
        "a.b",
        "a-b_c.9",
        "",
        "A",
        "a b",
        "a/b",
        "a:1",
        "u@a",
        "é",
        "a%41",
        "*.a",
        ".",
        "..",
        "-",
        "spiffe://a",
        "spiffe://a/b",
        "spiffe:/a",
        "https://a",
        "a\n",
    ];
    let questions = texts.map(|text| json!({"ask": "trust domain", "text": text}));
    for (text, theirs) in texts.into_iter().zip(ask(go, &questions)) {
        let ours = TrustDomain::new(text);
        match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) => assert_eq!(theirs, ours.as_str(), "{text:?}"),
            (Err(_), Err(_)) => {}
            // The same difference as for IDs.
            (Ok(ours), Err(_)) if text == "A" => assert_eq!(ours.as_str(), "a"),
            _ => panic!("{text:?}: we {ours:?}, go-spiffe {theirs:?}"),
        }
    }
}

fn read(go: &std::path::Path, bundles: &[TrustBundle]) -> Vec<Value> {
    let questions: Vec<_> = bundles
        .iter()
        .map(|bundle| {
            json!({
                "ask": "bundle",
                "trust_domain": bundle.trust_domain().as_str(),
                "text": bundle.to_spiffe_json(),
                "roots": bundle.to_pem(),
            })
        })
        .collect();
    ask(go, &questions)
        .into_iter()
        .map(|answer| answer.unwrap_or_else(|error| panic!("{error}")))
        .collect()
}

#[test]
fn go_spiffe_reads_every_bundle_and_what_it_writes_reads_back() {
    let Some(go) = readers() else { return };
    let mut bundles: Vec<_> = emit::ALL
        .iter()
        .map(|emitted| emitted.bundle.clone())
        .collect();
    let all = bundles
        .iter()
        .cloned()
        .reduce(|all, one| all.union(&one).unwrap())
        .unwrap();
    bundles.push(all.clone());
    bundles.push(TrustBundle::new(emit::domain(), []).unwrap());
    bundles.push(
        all.clone()
            .with_sequence(0)
            .with_refresh_hint(Duration::from_secs(300)),
    );
    bundles.push(all.with_sequence(u64::MAX));
    for (bundle, answer) in bundles.iter().zip(read(go, &bundles)) {
        let fingerprints: Vec<_> = bundle
            .roots()
            .iter()
            .map(|root| root.fingerprint())
            .collect();
        if bundle.is_empty() {
            assert_eq!(answer["authorities"], json!(null));
        } else {
            assert_eq!(answer["authorities"], json!(fingerprints));
        }
        assert_eq!(answer["sequence"], json!(bundle.sequence()));
        let hint = bundle.refresh_hint().map(|hint| hint.as_secs_f64());
        assert_eq!(answer["refresh_hint"].as_f64(), hint);
        let marshalled = answer["marshalled"].as_str().unwrap();
        if bundle.is_empty() {
            // `keys` must be there (SPIFFE Trust Domain and Bundle §4.1.3): go-spiffe does not read this either.
            assert!(marshalled.contains(r#""keys":null"#), "{marshalled}");
            TrustBundle::from_spiffe_json(emit::domain(), marshalled).unwrap_err();
            continue;
        }
        let again = TrustBundle::from_spiffe_json(emit::domain(), marshalled).unwrap();
        assert_eq!(again, *bundle);
        assert_eq!(answer["pem"], bundle.to_pem());
    }
}
