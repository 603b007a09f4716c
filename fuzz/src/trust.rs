//! Trust bundles: what is read can be written, and reads back as the same.

use meshca_core::{Csr, KeyType, PrivateKey, SignedChain, TrustBundle};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::*;

use super::pki::{Pki, domain};

/// A PEM text.
pub fn pem_bundle(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    // The other readers of PEM share the code; that they do not panic is what is seen here.
    let _ = PrivateKey::from_pem(&text);
    let _ = Csr::from_pem(&text);
    let chain = SignedChain::from_pem(&text);
    let bundle = match TrustBundle::from_pem(domain(), &text) {
        Ok(bundle) => bundle,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert!(!bundle.is_empty());
    let chain = chain.expect("the same text holds certificates");
    let begins = text.matches("-----BEGIN CERTIFICATE-----").count();
    assert_eq!(chain.certificates().len(), begins, "one was lost");
    assert!(
        chain
            .certificates()
            .iter()
            .all(|certificate| bundle.contains(certificate)),
        "one was lost"
    );
    sound(&bundle);
    true
}

/// A JWK Set.
pub fn jwks_bundle(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let bundle = match TrustBundle::from_spiffe_json(domain(), &text) {
        Ok(bundle) => bundle,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    // Numbers that are out of range, in fields that nobody reads, are nobody's concern.
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) {
        let keys = json["keys"].as_array().expect("keys").iter();
        let ours = keys.filter(|key| key["use"] == "x509-svid").count();
        assert!(bundle.roots().len() <= ours);
        assert_eq!(bundle.is_empty(), ours == 0);
    }
    sound(&bundle);
    true
}

fn sound(bundle: &TrustBundle) {
    for root in bundle.roots() {
        let (rest, read) = X509Certificate::from_der(root.der()).expect("a certificate");
        assert!(rest.is_empty(), "something follows the certificate");
        assert!(read.is_ca(), "not a CA");
        let _ = root.is_self_signed();
    }
    let json = bundle.to_spiffe_json();
    let again = TrustBundle::from_spiffe_json(domain(), &json).expect("what was written");
    assert_eq!(again, *bundle, "{json}");
    if !bundle.is_empty() {
        let again = TrustBundle::from_pem(domain(), &bundle.to_pem()).expect("what was written");
        assert!(
            again
                .roots()
                .iter()
                .map(|root| root.der())
                .eq(bundle.roots().iter().map(|root| root.der()))
        );
    }
    assert_eq!(bundle.union(bundle).expect("the same domain"), *bundle);
}

fn roots() -> Vec<(String, CertificateDer<'static>)> {
    let pki = Pki::new();
    let mut roots = vec![("ed25519".to_owned(), pki.root.der)];
    for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
        roots.push((
            key_type.to_string().to_lowercase(),
            super::pki::root_of(key_type),
        ));
    }
    roots
}

pub fn pem_seeds() -> Vec<(String, Vec<u8>)> {
    bundles(|bundle| bundle.to_pem())
}

pub fn jwks_seeds() -> Vec<(String, Vec<u8>)> {
    bundles(|bundle| {
        bundle
            .clone()
            .with_sequence(7)
            .with_refresh_hint(std::time::Duration::from_secs(300))
            .to_spiffe_json()
    })
}

fn bundles(write: impl Fn(&TrustBundle) -> String) -> Vec<(String, Vec<u8>)> {
    let roots = roots();
    let of = |roots: Vec<CertificateDer<'static>>| {
        let bundle = TrustBundle::new(domain(), roots).expect("a bundle");
        write(&bundle).into_bytes()
    };
    let mut seeds: Vec<_> = roots
        .iter()
        .map(|(name, root)| (name.clone(), of(vec![root.clone()])))
        .collect();
    let two = roots.iter().take(2).map(|(_, root)| root.clone()).collect();
    seeds.push(("two".to_owned(), of(two)));
    seeds
}
