//! What OpenSSL says of every kind of certificate and bundle.

use std::fs;
use std::path::Path;
use std::process::Command;

use meshca::Profile;

use crate::readers::emit;

fn is_missing() -> bool {
    let missing = Command::new("openssl").arg("version").output().is_err();
    if missing {
        eprintln!(
            "\n*** openssl not found: what OpenSSL says of our certificates was NOT tested. \
             Install it (Debian: apt-get install openssl). ***\n"
        );
    }
    missing
}

fn openssl(arguments: &[&str], files: &[(&str, &Path)]) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments);
    for (flag, file) in files {
        if !flag.is_empty() {
            command.arg(flag);
        }
        command.arg(file);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{complaints}");
    text
}

#[test]
fn accepts_every_kind_of_certificate_and_its_key() {
    if !is_missing() {
        judge(&emit::ALL);
    }
}

fn judge(all: &[emit::Emitted]) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (chain, key, bundle) = (file("chain.pem"), file("key.pem"), file("bundle.pem"));
    for emitted in all {
        let name = &emitted.name;
        fs::write(&chain, emitted.issued.chain_pem()).unwrap();
        fs::write(&key, &emitted.key_pem).unwrap();
        fs::write(&bundle, emitted.bundle.to_pem()).unwrap();
        let purposes: &[&[&str]] = match emitted.request.spec().profile() {
            Profile::Workload => &[&["-purpose", "sslserver"], &["-purpose", "sslclient"]],
            _ => &[&[]],
        };
        for purpose in purposes {
            let arguments = [&["verify", "-x509_strict"], *purpose].concat();
            let files = [
                ("-CAfile", &*bundle),
                ("-untrusted", &*chain),
                ("", &*chain),
            ];
            let verdict = openssl(&arguments, &files);
            assert!(verdict.trim_end().ends_with(": OK"), "{name}: {verdict}");
        }
        let of_certificate = openssl(&["x509", "-noout", "-pubkey"], &[("-in", &chain)]);
        let of_key = openssl(&["pkey", "-pubout"], &[("-in", &key)]);
        assert_eq!(of_certificate, of_key, "{name}");
        let found = openssl(&["storeutl", "-noout", "-certs"], &[("", &bundle)]);
        let expected = format!("Total found: {}", emitted.bundle.roots().len());
        assert!(found.contains(&expected), "{name}: {found}");
    }
}

#[test]
fn reads_a_bundle_of_many_roots() {
    if is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = emit::ALL
        .iter()
        .map(|emitted| emitted.bundle.clone())
        .reduce(|all, one| all.union(&one).unwrap())
        .unwrap();
    let file = folder.path().join("bundle.pem");
    fs::write(&file, bundle.to_pem()).unwrap();
    let found = openssl(&["storeutl", "-noout", "-certs"], &[("", &file)]);
    let expected = format!("Total found: {}", bundle.roots().len());
    assert!(found.contains(&expected), "{found}");

    let chain = folder.path().join("chain.pem");
    for emitted in emit::ALL.iter() {
        fs::write(&chain, emitted.issued.chain_pem()).unwrap();
        let files = [("-CAfile", &*file), ("-untrusted", &*chain), ("", &*chain)];
        openssl(&["verify", "-x509_strict"], &files);
    }
}

#[cfg(feature = "vault")]
mod vault {
    use super::*;

    #[test]
    fn accepts_what_vault_signs() {
        if let Some(all) = emit::VAULT.as_ref()
            && !is_missing()
        {
            judge(all);
        }
    }
}
