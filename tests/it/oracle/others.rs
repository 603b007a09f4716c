//! The verdicts of OpenSSL, Go's `crypto/x509` and go-spiffe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::oracle::Verdict;
use crate::oracle::cases::Case;
use crate::readers::go;

pub(crate) fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let block = |der: &CertificateDer<'_>| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = { text.as_bytes().chunks(64) }
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        let body = lines.join("\n");
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    certificates.iter().map(block).collect()
}

/// The verdicts on both sides of a connection.
pub(crate) struct Sides {
    pub(crate) client: Verdict,
    pub(crate) server: Verdict,
}

pub(crate) struct FromGo {
    pub(crate) x509: Sides,
    pub(crate) spiffe: Sides,
}

/// `None` where there is no Go.
pub(crate) fn go(cases: &[Case]) -> Option<Vec<FromGo>> {
    let program = go::readers()?;
    let questions: Vec<Value> = cases
        .iter()
        .map(|case| {
            json!({
                "ask": "peer",
                "trust_domain": "example.org",
                "chain": pem(&case.sent),
                "roots": pem(&case.anchors),
            })
        })
        .collect();
    let verdicts = go::ask(program, &questions).into_iter().map(|answer| {
        let answer = answer.unwrap();
        let of = |what: &str| match answer[what].as_str().unwrap() {
            "" => Verdict::Accepted,
            why => Verdict::Refused(why.to_owned()),
        };
        FromGo {
            x509: Sides {
                client: of("client"),
                server: of("server"),
            },
            // It does not look at purposes, and its user's rules are those of an SVID.
            spiffe: Sides {
                client: of("spiffe"),
                server: of("spiffe"),
            },
        }
    });
    Some(verdicts.collect())
}

/// `None` where there is no OpenSSL. One process judges all leaves that have the same certificates above them.
pub(crate) fn openssl(cases: &[Case]) -> Option<Vec<Sides>> {
    let version = Command::new("openssl").arg("version").output();
    if version.is_err() {
        eprintln!(
            "\n*** openssl not found: what OpenSSL says of other CAs' certificates was NOT tested. \
             Install it (Debian: apt-get install openssl). ***\n"
        );
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut groups: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (number, case) in cases.iter().enumerate() {
        let leaf = folder.path().join(format!("{number}.pem"));
        std::fs::write(leaf, pem(&case.sent[..1])).unwrap();
        let above = (pem(&case.anchors), pem(&case.sent[1..]));
        groups.entry(above).or_default().push(number);
    }
    let mut accepted = BTreeSet::new();
    let mut words: BTreeMap<(usize, &str), String> = BTreeMap::new();
    for ((anchors, others), numbers) in groups {
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        file("anchors", &anchors);
        file("others", &others);
        for purpose in ["sslclient", "sslserver"] {
            for some in numbers.chunks(1000) {
                let output = verify(folder.path(), purpose, !others.is_empty(), some);
                for number in some {
                    let file = format!("{number}.pem");
                    if output.0.lines().any(|line| line == format!("{file}: OK")) {
                        accepted.insert((*number, purpose));
                    } else {
                        let said = output.1.lines().filter(|line| line.contains("error"));
                        words.insert((*number, purpose), said.take(2).collect());
                    }
                }
            }
        }
    }
    let verdict = |number, purpose| match accepted.contains(&(number, purpose)) {
        true => Verdict::Accepted,
        false => Verdict::Refused(words[&(number, purpose)].clone()),
    };
    let sides = (0..cases.len()).map(|number| Sides {
        client: verdict(number, "sslclient"),
        server: verdict(number, "sslserver"),
    });
    Some(sides.collect())
}

fn verify(folder: &Path, purpose: &str, others: bool, leaves: &[usize]) -> (String, String) {
    let mut command = Command::new("openssl");
    command.current_dir(folder);
    command.args(["verify", "-no-CApath", "-no-CAstore", "-purpose", purpose]);
    command.args(["-CAfile", "anchors"]);
    if others {
        command.args(["-untrusted", "others"]);
    }
    command.args(leaves.iter().map(|number| format!("{number}.pem")));
    let output = command.output().unwrap();
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
