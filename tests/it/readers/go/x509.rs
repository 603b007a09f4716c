//! `crypto/x509` and go-spiffe on every kind of certificate.

use std::time::SystemTime;

use meshca::{KeyType, Profile};
use serde_json::json;

use super::{ask, readers};
use crate::readers::emit;

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

#[test]
fn crypto_x509_reads_every_kind_of_certificate_as_we_meant_it() {
    let Some(go) = readers() else { return };
    let questions: Vec<_> = emit::ALL
        .iter()
        .map(|emitted| {
            json!({
                "ask": "certificate",
                "chain": emitted.issued.chain_pem(),
                "roots": emitted.bundle.to_pem(),
            })
        })
        .collect();
    for (emitted, answer) in emit::ALL.iter().zip(ask(go, &questions)) {
        let name = &emitted.name;
        let read = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (issued, spec) = (&emitted.issued, emitted.request.spec());
        let workload = spec.profile() == Profile::Workload;
        let path_len = match spec.profile() {
            Profile::Intermediate { path_len } => i64::from(path_len),
            _ => -1,
        };
        let key_usages = match spec.profile() {
            Profile::Workload if emitted.key_type.is_rsa() => read["key_usages"].clone(),
            Profile::Workload => json!(["digitalSignature"]),
            _ => json!(["cRLSign", "keyCertSign"]),
        };
        let list = |names: Vec<String>| {
            if names.is_empty() {
                json!(null)
            } else {
                json!(names)
            }
        };
        let uris: Vec<String> = if workload {
            spec.all_uris().collect()
        } else {
            Vec::new()
        };
        let key = match emitted.key_type {
            KeyType::Ed25519 => "Ed25519",
            rsa if rsa.is_rsa() => "RSA",
            _ => "ECDSA",
        };
        let signature = match emitted.ca_key_type {
            KeyType::P256 => "ECDSA-SHA256",
            KeyType::P384 => "ECDSA-SHA384",
            KeyType::Ed25519 => "Ed25519",
            _ => "SHA256-RSA",
        };
        let expected = json!({
            "subject": spec.common_name().map_or(String::new(), |name| format!("CN={name}")),
            "issuer": read["issuer"],
            "serial": issued.serial().trim_start_matches('0'),
            "not_before": unix(issued.validity().not_before()),
            "not_after": unix(issued.validity().not_after()),
            "uris": if workload { list(uris) } else { read["uris"].clone() },
            "dns_names": list(spec.dns_names().to_vec()),
            "other_names": 0,
            "common_name": spec.common_name().unwrap_or_default(),
            "is_ca": !workload,
            "max_path_len": path_len,
            "key_usages": key_usages,
            "purposes": if workload { json!(["clientAuth", "serverAuth"]) } else { json!(null) },
            "key": key,
            "signature": signature,
            "not_handled": 0,
            "subject_key_id": read["subject_key_id"],
            "authority_key_id_matches": true,
            "path": 2 + emitted.intermediates,
        });
        assert_eq!(read, expected, "{name}");
        assert_eq!(read["subject_key_id"].as_bool(), Some(true), "{name}");
        assert!(!read["issuer"].as_str().unwrap().is_empty(), "{name}");
    }
}

#[test]
fn go_spiffe_reads_every_svid_with_its_key() {
    let Some(go) = readers() else { return };
    let workloads: Vec<_> = emit::ALL
        .iter()
        .filter(|emitted| emitted.request.spec().profile() == Profile::Workload)
        .collect();
    let other_key = &workloads
        .iter()
        .find(|emitted| emitted.key_type == KeyType::P384)
        .unwrap()
        .key_pem;
    let question = |emitted: &emit::Emitted, key: &str| {
        json!({
            "ask": "svid",
            "trust_domain": emit::domain().as_str(),
            "chain": emitted.issued.chain_pem(),
            "key": key,
            "roots": emitted.bundle.to_pem(),
        })
    };
    let questions: Vec<_> = workloads
        .iter()
        .map(|emitted| question(emitted, &emitted.key_pem))
        .chain([question(workloads[0], other_key)])
        .collect();
    let mut answers = ask(go, &questions);
    let of_other_key = answers.pop().unwrap().unwrap_err();
    assert!(of_other_key.contains("does not match"), "{of_other_key}");
    for (emitted, answer) in workloads.into_iter().zip(answers) {
        let name = &emitted.name;
        if !emitted.request.spec().uris().is_empty() {
            // SPIFFE X.509-SVID §2 allows one URI name and no more. The names of the classic model
            // are URIs, too; proxies that use them look for the one that is a SPIFFE ID.
            let error = answer.unwrap_err();
            assert!(error.contains("more than one URI SAN"), "{name}: {error}");
            continue;
        }
        let read = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = json!({
            "id": emitted.issued.spiffe_id().to_string(),
            "path": 2 + emitted.intermediates,
        });
        assert_eq!(read, expected, "{name}");
    }
}

#[cfg(feature = "vault")]
mod vault {
    use super::*;

    #[test]
    fn go_reads_what_vault_signs() {
        let (Some(go), Some(all)) = (readers(), emit::VAULT.as_ref()) else {
            return;
        };
        let question = |ask: &str, emitted: &emit::Emitted| {
            json!({
                "ask": ask,
                "trust_domain": emit::domain().as_str(),
                "chain": emitted.issued.chain_pem(),
                "key": emitted.key_pem,
                "roots": emitted.bundle.to_pem(),
            })
        };
        let questions: Vec<_> = all
            .iter()
            .flat_map(|emitted| [question("certificate", emitted), question("svid", emitted)])
            .collect();
        let answers = ask(go, &questions);
        for (emitted, answers) in all.iter().zip(answers.chunks(2)) {
            let name = &emitted.name;
            let id = emitted.issued.spiffe_id().to_string();
            let read = answers[0]
                .as_ref()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(read["uris"], json!([id]), "{name}");
            assert_eq!(
                read["purposes"],
                json!(["clientAuth", "serverAuth"]),
                "{name}"
            );
            assert_eq!(read["path"], json!(2 + emitted.intermediates), "{name}");
            let read = answers[1]
                .as_ref()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(read["id"], json!(id), "{name}");
        }
    }
}
