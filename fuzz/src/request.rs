//! Certificate signing requests: an accepted one is for the key that signed it, as its bytes say.

use std::sync::LazyLock;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use meshca_core::{CertificateRequest, CertificateSpec, Csr, KeyType, PrivateKey, SpiffeId};

use super::pki::{bits, key, now, sign, signed_part, values};

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| key(9));

static ALGORITHMS: [&dyn VerificationAlgorithm; 14] = [
    &ED25519,
    &ECDSA_P256_SHA256_ASN1,
    &ECDSA_P256_SHA384_ASN1,
    &ECDSA_P384_SHA256_ASN1,
    &ECDSA_P384_SHA384_ASN1,
    &ECDSA_P521_SHA256_ASN1,
    &ECDSA_P521_SHA384_ASN1,
    &ECDSA_P521_SHA512_ASN1,
    &RSA_PKCS1_2048_8192_SHA256,
    &RSA_PKCS1_2048_8192_SHA384,
    &RSA_PKCS1_2048_8192_SHA512,
    &RSA_PSS_2048_8192_SHA256,
    &RSA_PSS_2048_8192_SHA384,
    &RSA_PSS_2048_8192_SHA512,
];

/// RFC 8410 §3.
const ED25519_KEY: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
/// RFC 5480 §2.1.1.
const P521_KEY: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
    0x00, 0x23,
];

/// A byte that says what follows: a PEM text, DER, or what is to be signed by a fixed key.
pub fn csr(data: &[u8]) -> bool {
    let Some((kind, content)) = data.split_first() else {
        return false;
    };
    let csr = match kind % 3 {
        0 => Csr::from_der(content),
        1 => Csr::from_der(sign(content, &KEY)),
        _ => Csr::from_pem(&String::from_utf8_lossy(content)),
    };
    let csr = match csr {
        Ok(csr) => csr,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    // By hand: other readers look into the attributes, which are wishes that nobody here grants.
    let [info, _, signature] = values(csr.der())[..] else {
        panic!("a CSR has three parts");
    };
    let [_, _, key, ..] = values(info)[..] else {
        panic!("what is signed has at least three parts");
    };
    assert_eq!(key, csr.public_key().as_ref());
    let public = bits(values(key)[1]);
    assert!(
        ALGORITHMS.iter().any(|algorithm| {
            UnparsedPublicKey::new(*algorithm, public)
                .verify(info, bits(signature))
                .is_ok()
        }),
        "the signature is not that of the bytes in the CSR"
    );
    assert_eq!(Csr::from_pem(&csr.to_pem()).expect("what was written"), csr);

    let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").expect("a SPIFFE ID");
    let request = CertificateRequest::for_csr(CertificateSpec::workload(id), csr.clone(), now());
    if [ED25519_KEY, P521_KEY].contains(&values(key)[0]) {
        assert!(request.is_err(), "not a key for workloads");
        return true;
    }
    let request = request.expect("a request");
    assert_eq!(request.public_key(), csr.public_key());
    assert_eq!(request.csr().expect("the same"), &csr);
    true
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").expect("a SPIFFE ID");
    let spec = CertificateSpec::workload(id)
        .with_common_name("cart.mesh")
        .with_dns_name("cart.shop.svc");
    let made = |key: &PrivateKey| {
        let request = CertificateRequest::for_key(spec.clone(), key, now()).expect("a request");
        request.csr().expect("a CSR").clone()
    };
    let mut seeds = Vec::new();
    // Not a key for workloads, so core makes no such request.
    let names = CertificateSpec::intermediate(&super::pki::domain(), "below").expect("a spec");
    let fixed = CertificateRequest::for_key(names, &KEY, now()).expect("a request");
    let fixed = fixed.csr().expect("a CSR").clone();
    let with = |kind: u8, content: &[u8]| [&[kind][..], content].concat();
    seeds.push(("signed".to_owned(), with(1, &signed_part(fixed.der()))));
    seeds.push(("pem".to_owned(), with(2, fixed.to_pem().as_bytes())));
    seeds.push(("ed25519".to_owned(), with(0, fixed.der())));
    for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
        let csr = made(&PrivateKey::generate(key_type).expect("a key"));
        seeds.push((key_type.to_string().to_lowercase(), with(0, csr.der())));
    }
    seeds
}
