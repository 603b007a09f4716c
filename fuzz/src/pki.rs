//! A PKI that is the same in every run: Ed25519 keys from fixed bytes, whose signatures are
//! deterministic, and a P-256 key for workloads. The keys are no secrets and nothing trusts them.

use std::time::{Duration, SystemTime};

use meshca_core::{CertificateRequest, PrivateKey, Profile, Signer, TrustBundle, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose,
    PublicKeyData, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// 2026-01-01T00:00:00Z.
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

pub fn domain() -> TrustDomain {
    TrustDomain::new("example.org").expect("a trust domain")
}

/// The Ed25519 key made of 32 times this byte.
pub fn key(byte: u8) -> PrivateKey {
    // RFC 8410 §7.
    let mut der = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    der.extend([byte; 32]);
    PrivateKey::from_der(&PrivatePkcs8KeyDer::from(der).into()).expect("a key")
}

/// A P-256 key of one of the least numbers. Workloads may have no Ed25519 keys.
pub fn workload_key() -> PrivateKey {
    // RFC 5208 §5 and RFC 5915 §3, without the public key.
    let mut der = vec![
        0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
        0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25,
        0x02, 0x01, 0x01, 0x04, 0x20,
    ];
    der.extend([0; 31]);
    der.push(9);
    PrivateKey::from_der(&PrivatePkcs8KeyDer::from(der).into()).expect("a key")
}

/// A CA and its key.
pub struct Ca {
    pub key: PrivateKey,
    pub params: CertificateParams,
    pub der: CertificateDer<'static>,
}

pub struct Pki {
    pub root: Ca,
    pub issuing: Ca,
    /// The issuing CA, vouched for by the foreign root.
    pub cross: CertificateDer<'static>,
    /// Trusted by nobody.
    pub foreign: Ca,
    pub bundle: TrustBundle,
}

impl Pki {
    pub fn new() -> Self {
        let root = Ca::root("root", 1);
        let foreign = Ca::root("foreign", 3);
        let issuing = root.below("issuing", 2);
        let cross = foreign.sign(&issuing.params, &Key(&issuing.key));
        let bundle = TrustBundle::new(domain(), [root.der.clone()]).expect("a bundle");
        Self {
            root,
            issuing,
            cross,
            foreign,
            bundle,
        }
    }
}

impl Ca {
    fn root(name: &str, byte: u8) -> Self {
        let (params, key) = (params(name, byte), key(byte));
        let der = params
            .self_signed(&Key(&key))
            .expect("a root")
            .der()
            .clone();
        Self { key, params, der }
    }

    fn below(&self, name: &str, byte: u8) -> Self {
        let (params, key) = (params(name, byte), key(byte));
        let der = self.sign(&params, &Key(&key));
        Self { key, params, der }
    }

    pub fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> CertificateDer<'static> {
        let issuer = rcgen::Issuer::from_params(&self.params, Key(&self.key));
        params
            .signed_by(key, &issuer)
            .expect("a certificate")
            .der()
            .clone()
    }
}

fn params(name: &str, serial: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now() - Duration::from_secs(24 * 3600)).into();
    params.not_after = (now() + Duration::from_secs(365 * 24 * 3600)).into();
    params.serial_number = Some(SerialNumber::from(vec![serial]));
    params.use_authority_key_identifier_extension = true;
    params
}

/// The key that a certificate is requested for, as rcgen wants it.
pub struct RequestKey<'a>(pub &'a CertificateRequest);

impl PublicKeyData for RequestKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        let key = values(self.0.public_key());
        bits(key[1])
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.0.spec().profile() {
            Profile::Workload => &rcgen::PKCS_ECDSA_P256_SHA256,
            _ => &rcgen::PKCS_ED25519,
        }
    }
}

/// An Ed25519 key as rcgen wants it.
pub struct Key<'a>(pub &'a PrivateKey);

impl PublicKeyData for Key<'_> {
    fn der_bytes(&self) -> &[u8] {
        let spki = self.0.public_key();
        &spki[spki.len() - 32..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Key<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Signer::sign(self.0, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A DER value with this tag.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().position(|byte| *byte != 0).unwrap_or(7)..];
    let mut der = vec![tag];
    match significant {
        [short @ 0..0x80] => der.push(*short),
        long => {
            der.push(0x80 | long.len() as u8);
            der.extend(long);
        }
    }
    der.extend(content);
    der
}

/// The length of the header and of the whole of the first DER value, if it is all there.
fn measure(der: &[u8]) -> Option<(usize, usize)> {
    let (header, length) = match *der.get(1)? {
        short @ 0..0x80 => (2, usize::from(short)),
        long => {
            let bytes = der.get(2..2 + usize::from(long & 0x7f))?;
            let length = bytes.iter().try_fold(0_usize, |length, byte| {
                length.checked_mul(256)?.checked_add(usize::from(*byte))
            })?;
            (2 + bytes.len(), length)
        }
    };
    let end = header.checked_add(length)?;
    (end <= der.len()).then_some((header, end))
}

/// The frame of certificates (RFC 5280 §4.1) and of requests (RFC 2986 §4.2): what is signed, the
/// algorithm, the signature.
pub fn sign(content: &[u8], key: &PrivateKey) -> Vec<u8> {
    let mut bits = vec![0];
    bits.extend(Signer::sign(key, content).expect("a signature"));
    let algorithm = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
    tlv(0x30, &[content, &algorithm, &tlv(0x03, &bits)].concat())
}

/// The values in a DER value, each with its header.
pub fn values(der: &[u8]) -> Vec<&[u8]> {
    let (header, end) = measure(der).expect("a DER value");
    assert_eq!(end, der.len(), "something follows");
    let mut rest = &der[header..];
    let mut values = Vec::new();
    while !rest.is_empty() {
        let (_, end) = measure(rest).expect("a DER value");
        let (value, next) = rest.split_at(end);
        values.push(value);
        rest = next;
    }
    values
}

/// What a bit string of whole bytes holds.
pub fn bits(der: &[u8]) -> &[u8] {
    let (header, end) = measure(der).expect("a DER value");
    assert_eq!((der[0], der[header]), (0x03, 0), "a bit string");
    &der[header + 1..end]
}

/// What is signed of a certificate or a request.
pub fn signed_part(der: &[u8]) -> Vec<u8> {
    values(der)[0].to_vec()
}

/// A root with a new key of this type, which is not Ed25519.
pub fn root_of(key_type: meshca_core::KeyType) -> CertificateDer<'static> {
    let key = PrivateKey::generate(key_type).expect("a key");
    let key = key.expose_pkcs8().expect("PKCS#8");
    let pair = rcgen::KeyPair::try_from(key.expose()).expect("a key");
    let root = params("root", 1).self_signed(&pair).expect("a root");
    root.der().clone()
}
