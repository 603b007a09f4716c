//! An identity in the types of others, and the traits that embedders count on.

use std::sync::Arc;

use crate::common::{FakeClock, domain, request, start};
use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
use meshca_core::{ErrorKind, Identity, IssuingCa, KeyType, MemorySecretStore, PrivateKey};

async fn issuer(clock: &FakeClock) -> IssuingCa<BuiltinIssuer> {
    let settings = CaSettings::new(domain(), CaSecrets::for_backend("default", "ca-1").unwrap());
    let issuer = BuiltinIssuer::load_or_create(
        settings,
        Arc::new(MemorySecretStore::new()),
        Arc::new(clock.clone()),
    );
    IssuingCa::new(issuer.await.unwrap())
}

#[tokio::test]
async fn a_certificate_goes_with_its_own_key_only() {
    let clock = FakeClock::new();
    let issuer = issuer(&clock).await;
    let key = PrivateKey::generate(KeyType::P256).unwrap();
    let certificate = issuer.issue_for(&request(&key), &clock).await.unwrap();
    let other = PrivateKey::generate(KeyType::P256).unwrap();
    assert_eq!(
        Identity::new(certificate.clone(), other)
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidRequest
    );
    let identity = Identity::new(certificate, key).unwrap();

    let (chain, key) = identity.to_rustls().unwrap();
    assert_eq!(chain, identity.certificate().chain());
    let again = PrivateKey::from_der(&key).unwrap();
    assert_eq!(again.public_key(), identity.key().public_key());

    // What is printed tells who, and nothing of the key.
    let printed = format!("{identity:?}");
    assert!(
        printed.contains("spiffe://example.org/ns/shop/sa/cart")
            && printed.contains("PrivateKey(P-256)"),
        "{printed}"
    );
    let pem = identity.expose_key_pem().unwrap();
    let secret = pem.expose_str().unwrap().lines().nth(1).unwrap();
    assert!(!printed.contains(secret));
}

#[cfg(feature = "svid")]
#[tokio::test]
async fn an_identity_as_the_spiffe_crates_svid() {
    let clock = FakeClock::new();
    let issuer = issuer(&clock).await;
    for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
        let identity = issuer
            .issue(&crate::common::spec().with_key_type(key_type), &clock)
            .await
            .unwrap();
        let svid = identity.to_x509_svid().unwrap();
        assert_eq!(svid.spiffe_id(), identity.spiffe_id());
        assert_eq!(
            svid.cert_chain().len(),
            identity.certificate().chain().len()
        );
    }
}

#[test]
fn types_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<meshca_core::Error>();
    shared::<Identity>();
    shared::<PrivateKey>();
    shared::<meshca_core::CertificateRequest>();
    shared::<meshca_core::TrustBundle>();
    shared::<meshca_core::SignedChain>();
    shared::<Arc<dyn meshca_core::Issuer>>();
    shared::<Arc<dyn meshca_core::SecretStore>>();
    shared::<Arc<dyn meshca_core::Clock>>();
    assert_eq!(
        size_of::<meshca_core::Error>(),
        size_of::<usize>(),
        "errors are one word"
    );
    assert!(start() > std::time::SystemTime::UNIX_EPOCH);
}
