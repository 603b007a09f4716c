//! The DER forms that a key is written in for every certificate.
//!
//! AWS-LC writes them as well, by way of generic structures that take ten times as long. That is
//! a fifth of the time of a signature.

use der::asn1::{AnyRef, BitStringRef};
use der::{Decode, Encode, Sequence, Tag};
use rustls_pki_types::{AlgorithmIdentifier, SubjectPublicKeyInfoDer, alg_id};
use x509_cert::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use crate::x509::RsaPublicKey;
use crate::x509::key_oid::{EC, ED25519, P256, P384, RSA};
use crate::{Error, ErrorKind, KeyType, Result};

/// RFC 5280 §4.1.2.7.
#[derive(Sequence)]
struct PublicKeyInfo<'a> {
    algorithm: AnyRef<'a>,
    key: BitStringRef<'a>,
}

/// PKCS#8 (RFC 5208 §5) with an EC key (RFC 5915 §3) in it, up to the scalar. All lengths are known.
const P256_PKCS8: &[u8] = &[
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
    0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02,
    0x01, 0x01, 0x04, 0x20,
];
const P384_PKCS8: &[u8] = &[
    0x30, 0x81, 0xb6, 0x02, 0x01, 0x00, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
    0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x04, 0x81, 0x9e, 0x30, 0x81, 0x9b, 0x02, 0x01,
    0x01, 0x04, 0x30,
];
/// What stands between the scalar and the public point.
const P256_POINT: &[u8] = &[0xa1, 0x44, 0x03, 0x42, 0x00];
const P384_POINT: &[u8] = &[0xa1, 0x64, 0x03, 0x62, 0x00];

fn algorithm(key_type: KeyType) -> der::Result<AnyRef<'static>> {
    let algorithm: &'static AlgorithmIdentifier = match key_type {
        KeyType::P256 => &alg_id::ECDSA_P256,
        KeyType::P384 => &alg_id::ECDSA_P384,
        KeyType::Ed25519 => &alg_id::ED25519,
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => &alg_id::RSA_ENCRYPTION,
    };
    // pki-types keeps the content of the AlgorithmIdentifier sequence, without its header.
    AnyRef::new(Tag::Sequence, algorithm)
}

/// Whether workloads may have keys of this algorithm. Envoy accepts handshakes that are signed with
/// these, as a client and as a server, and with no others.
fn fits_workloads(algorithm: &AlgorithmIdentifierRef<'_>) -> bool {
    match algorithm.oid {
        EC => matches!(algorithm.parameters_oid(), Ok(P256 | P384)),
        RSA => true,
        _ => false,
    }
}

/// Applies [`KeyType::is_for_workloads`] to any key, also to one of a type that is not made here.
pub(crate) fn is_for_workloads(public_key: &SubjectPublicKeyInfoDer<'_>) -> bool {
    SubjectPublicKeyInfoRef::from_der(public_key).is_ok_and(|key| fits_workloads(&key.algorithm))
}

/// Names the type of any public key, for people.
pub(crate) fn shown(public_key: &SubjectPublicKeyInfoDer<'_>) -> String {
    if let Some(key_type) = KeyType::of(public_key) {
        return key_type.to_string();
    }
    match SubjectPublicKeyInfoRef::from_der(public_key) {
        Ok(key) => match (key.algorithm.oid, key.algorithm.parameters_oid()) {
            (EC, Ok(curve)) => curve.to_string(),
            (other, _) => other.to_string(),
        },
        Err(_) => "unreadable".to_owned(),
    }
}

impl KeyType {
    /// Whether workloads may have keys of this type. Envoy refuses handshakes that are signed with
    /// Ed25519, on both sides, so it is for CAs.
    pub fn is_for_workloads(self) -> bool {
        algorithm(self)
            .and_then(|algorithm| algorithm.decode_as::<AlgorithmIdentifierRef<'_>>())
            .is_ok_and(|algorithm| fits_workloads(&algorithm))
    }

    /// The type of a public key; `None` for one that is not among them.
    pub(crate) fn of(public_key: &SubjectPublicKeyInfoDer<'_>) -> Option<Self> {
        let info = SubjectPublicKeyInfoRef::from_der(public_key).ok()?;
        match info.algorithm.oid {
            EC => match info.algorithm.parameters_oid().ok()? {
                P256 => Some(Self::P256),
                P384 => Some(Self::P384),
                _ => None,
            },
            ED25519 => Some(Self::Ed25519),
            RSA => {
                let key = RsaPublicKey::from_der(info.subject_public_key.raw_bytes()).ok()?;
                Self::of_modulus(key.modulus.as_bytes().len())
            }
            _ => None,
        }
    }
}

pub(super) fn public_key(
    key_type: KeyType,
    bits: &[u8],
) -> Result<SubjectPublicKeyInfoDer<'static>> {
    let encode = || {
        let algorithm = algorithm(key_type)?;
        let key = BitStringRef::from_bytes(bits)?;
        PublicKeyInfo { algorithm, key }.to_der()
    };
    let encoded = encode().map_err(|error| {
        Error::new(ErrorKind::Internal, "could not encode a key").with_source(error)
    })?;
    Ok(encoded.into())
}

pub(super) fn ec_private_key(key_type: KeyType, scalar: &[u8], point: &[u8]) -> Result<Vec<u8>> {
    let parts = match (key_type, scalar.len(), point.len()) {
        (KeyType::P256, 32, 65) => [P256_PKCS8, scalar, P256_POINT, point],
        (KeyType::P384, 48, 97) => [P384_PKCS8, scalar, P384_POINT, point],
        _ => {
            return Err(Error::new(
                ErrorKind::Internal,
                "could not encode a private key",
            ));
        }
    };
    // Of its exact size at once, so that no copy of the key is left behind by growing.
    Ok(parts.concat())
}
