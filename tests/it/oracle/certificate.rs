//! A writer of certificates that says whatever it is told to: right, odd or damaged.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use meshca::Csr;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use rustls_pki_types::CertificateDer;

/// One value in DER.
pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut value = vec![tag];
    match content.len() {
        length @ 0..128 => value.push(length as u8),
        length => {
            let bytes = length.to_be_bytes();
            let first = bytes.iter().position(|byte| *byte != 0).unwrap();
            value.push(0x80 | (bytes.len() - first) as u8);
            value.extend(&bytes[first..]);
        }
    }
    value.extend(content);
    value
}

pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts)
}

/// Of up to five arcs below 2^14.
pub(crate) fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = vec![(arcs[0] * 40 + arcs[1]) as u8];
    for arc in &arcs[2..] {
        let mut groups = vec![(arc & 0x7f) as u8];
        let mut rest = arc >> 7;
        while rest > 0 {
            groups.push(0x80 | (rest & 0x7f) as u8);
            rest >>= 7;
        }
        content.extend(groups.iter().rev());
    }
    tlv(6, &[&content])
}

/// A name of one attribute, the common name, as a string of this type.
pub(crate) fn name(tag: u8, text: &[u8]) -> Vec<u8> {
    let attribute = sequence(&[&oid(&[2, 5, 4, 3]), &tlv(tag, &[text])]);
    sequence(&[&tlv(0x31, &[&attribute])])
}

pub(crate) const UTF8: u8 = 0x0c;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    P256,
    P384,
    P521,
    Rsa,
    Ed25519,
}

/// A key, and how what it signs is described.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) pair: KeyPair,
    /// The algorithm identifier of its signatures.
    algorithm: Vec<u8>,
    kind: Kind,
}

impl Key {
    fn new(kind: Kind) -> Self {
        let (algorithm, signature) = match kind {
            Kind::P256 => (
                &rcgen::PKCS_ECDSA_P256_SHA256,
                oid(&[1, 2, 840, 10045, 4, 3, 2]),
            ),
            Kind::P384 => (
                &rcgen::PKCS_ECDSA_P384_SHA384,
                oid(&[1, 2, 840, 10045, 4, 3, 3]),
            ),
            Kind::P521 => (
                &rcgen::PKCS_ECDSA_P521_SHA512,
                oid(&[1, 2, 840, 10045, 4, 3, 4]),
            ),
            Kind::Ed25519 => (&rcgen::PKCS_ED25519, oid(&[1, 3, 101, 112])),
            Kind::Rsa => (&rcgen::PKCS_RSA_SHA256, oid(&[1, 2, 840, 113549, 1, 1, 11])),
        };
        let parameters: &[u8] = if kind == Kind::Rsa { &[5, 0] } else { &[] };
        Self {
            pair: KeyPair::generate_for(algorithm).unwrap(),
            algorithm: sequence(&[&signature, parameters]),
            kind,
        }
    }

    /// One of its kind and use, the same in each run of the program.
    pub(crate) fn of(kind: Kind, whose: Whose) -> Arc<Self> {
        KEYS[&(kind, whose)].clone()
    }

    /// `None` if OpenSSL makes no such signature here, or none with this kind of key.
    fn sign_with_sha_1(&self, message: &[u8]) -> Option<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let (key, text) = (folder.path().join("key"), folder.path().join("text"));
        std::fs::write(&key, self.pair.serialize_pem()).unwrap();
        std::fs::write(&text, message).unwrap();
        let mut command = Command::new("openssl");
        command.args(["dgst", "-sha1", "-sign"]).args([key, text]);
        let output = command.output().ok()?;
        output.status.success().then_some(output.stdout)
    }

    /// It need not be one of a kind that we make.
    pub(crate) fn csr(&self) -> Csr {
        let csr = rcgen::CertificateParams::default().serialize_request(&self.pair);
        Csr::from_der(csr.unwrap().der().to_vec()).unwrap()
    }

    /// The first 20 bytes of what others would hash; any bytes serve.
    pub(crate) fn identifier(&self) -> Vec<u8> {
        let spki = self.pair.subject_public_key_info();
        spki[spki.len() - 20..].to_vec()
    }
}

/// The bearer of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whose {
    Leaf,
    /// The CA above the leaf.
    Lower,
    Upper,
    Root,
}

static KEYS: LazyLock<BTreeMap<(Kind, Whose), Arc<Key>>> = LazyLock::new(|| {
    let kinds = [Kind::P256, Kind::P384, Kind::P521, Kind::Rsa, Kind::Ed25519];
    let all = [Whose::Leaf, Whose::Lower, Whose::Upper, Whose::Root];
    let pairs = kinds
        .into_iter()
        .flat_map(|kind| all.map(|whose| (kind, whose)));
    pairs
        .map(|(kind, whose)| ((kind, whose), Arc::new(Key::new(kind))))
        .collect()
});

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Bytes(Vec<u8>),
    /// The identifier of the issuer's key.
    IssuersKey,
    /// The issuer's own issuer and serial number.
    IssuersSerial,
    /// The issuer's serial number, with this name in the place of its issuer.
    IssuersSerialUnder(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(crate) struct Extension {
    pub(crate) id: Vec<u8>,
    pub(crate) critical: bool,
    pub(crate) value: Value,
}

impl Extension {
    pub(crate) fn new(id: &[u32], critical: bool, value: Vec<u8>) -> Self {
        Self {
            id: oid(id),
            critical,
            value: Value::Bytes(value),
        }
    }
}

pub(crate) const SUBJECT_KEY: [u32; 4] = [2, 5, 29, 14];
pub(crate) const KEY_USAGE: [u32; 4] = [2, 5, 29, 15];
pub(crate) const ALT_NAMES: [u32; 4] = [2, 5, 29, 17];
pub(crate) const CONSTRAINTS: [u32; 4] = [2, 5, 29, 19];
pub(crate) const NAME_CONSTRAINTS: [u32; 4] = [2, 5, 29, 30];
pub(crate) const CRL_POINTS: [u32; 4] = [2, 5, 29, 31];
pub(crate) const POLICIES: [u32; 4] = [2, 5, 29, 32];
pub(crate) const POLICY_MAPPINGS: [u32; 4] = [2, 5, 29, 33];
pub(crate) const AUTHORITY_KEY: [u32; 4] = [2, 5, 29, 35];
pub(crate) const POLICY_CONSTRAINTS: [u32; 4] = [2, 5, 29, 36];
pub(crate) const PURPOSES: [u32; 4] = [2, 5, 29, 37];
pub(crate) const INHIBIT_ANY: [u32; 4] = [2, 5, 29, 54];
pub(crate) const NETSCAPE_TYPE: [u32; 7] = [2, 16, 840, 1, 113730, 1, 1];

/// Whether signatures with SHA-1 can be made here. AWS-LC makes none. OpenSSL may be missing, or a policy of the system
/// may forbid it to.
pub(crate) static SHA_1: LazyLock<bool> = LazyLock::new(|| {
    Key::of(Kind::P256, Whose::Root)
        .sign_with_sha_1(b"")
        .is_some()
});

/// How a certificate is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signing {
    Sound,
    /// By an algorithm with SHA-1. The signature verifies where it [can be made](SHA_1).
    Sha1,
    /// By an algorithm whose identifier is no sound object identifier.
    Damaged,
    Wrong,
}

/// A certificate that is not signed yet.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// As it is encoded: `None` is version 1.
    pub(crate) version: Option<u8>,
    pub(crate) serial: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    /// If it is not the subject of what signs it.
    pub(crate) issuer: Option<Vec<u8>>,
    /// Seconds from now.
    pub(crate) begins: i64,
    pub(crate) ends: i64,
    pub(crate) key: Arc<Key>,
    pub(crate) extensions: Vec<Extension>,
    pub(crate) signing: Signing,
    /// Whether it has the unique identifiers of version 2.
    pub(crate) identified: bool,
}

/// By what was signed, and the key and the message of the signature.
type Signed = BTreeMap<(Vec<u8>, Vec<u8>), CertificateDer<'static>>;

/// Certificates that were signed before. Signatures differ each time, and judges that get the same certificates again
/// are asked once.
static SIGNED: Mutex<Signed> = Mutex::new(BTreeMap::new());

/// All times are counted from here.
pub(crate) static NOW: LazyLock<SystemTime> = LazyLock::new(|| {
    let seconds =
        meshca::Clock::now(&meshca::SystemClock::new()).duration_since(SystemTime::UNIX_EPOCH);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unwrap().as_secs())
});

pub(crate) const DAY: i64 = 24 * 3600;

impl Draft {
    /// Replaces an extension, adds it, or takes it away.
    pub(crate) fn set(&mut self, id: &[u32], extension: Option<(bool, Vec<u8>)>) {
        let encoded = oid(id);
        let place = self.extensions.iter().position(|one| one.id == encoded);
        let new = extension.map(|(critical, value)| Extension::new(id, critical, value));
        match (place, new) {
            (Some(place), Some(new)) => self.extensions[place] = new,
            (Some(place), None) => drop(self.extensions.remove(place)),
            (None, Some(new)) => self.extensions.push(new),
            (None, None) => {}
        }
    }

    pub(crate) fn critical(&mut self, id: &[u32], critical: bool) {
        let id = oid(id);
        for extension in self.extensions.iter_mut().filter(|one| one.id == id) {
            extension.critical = critical;
        }
    }

    /// Writes and signs it. Without an issuer it signs itself.
    pub(crate) fn sign(&self, issuer: Option<&Self>) -> CertificateDer<'static> {
        let above = issuer.unwrap_or(self);
        let version = self.version.map(|version| tlv(0xa0, &[&[2, 1, version]]));
        let (algorithm, key) = match (self.signing, above.key.kind) {
            (Signing::Sha1, Kind::Rsa) => (
                sequence(&[&oid(&[1, 2, 840, 113549, 1, 1, 5]), &[5, 0]]),
                &above.key,
            ),
            (Signing::Sha1, _) => (sequence(&[&oid(&[1, 2, 840, 10045, 4, 1])]), &above.key),
            (Signing::Damaged, _) => (sequence(&[&tlv(6, &[&[0x2a, 0x80, 4]])]), &above.key),
            _ => (above.key.algorithm.clone(), &above.key),
        };
        let serial_under = |issuer: &[u8]| {
            let issuer = tlv(0xa1, &[&tlv(0xa4, &[issuer])]);
            sequence(&[&issuer, &tlv(0x82, &[&above.serial])])
        };
        let mut extensions = Vec::new();
        for extension in &self.extensions {
            let value = match &extension.value {
                Value::Bytes(bytes) => bytes.clone(),
                Value::IssuersKey => sequence(&[&tlv(0x80, &[&above.key.identifier()])]),
                Value::IssuersSerial => {
                    let issuer = above.issuer.as_ref().unwrap_or(&above.subject);
                    serial_under(issuer)
                }
                Value::IssuersSerialUnder(issuer) => serial_under(issuer),
            };
            let critical: &[u8] = if extension.critical {
                &[1, 1, 0xff]
            } else {
                &[]
            };
            extensions.push(sequence(&[&extension.id, critical, &tlv(4, &[&value])]));
        }
        let extensions: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
        let extensions = match extensions.is_empty() {
            true => Vec::new(),
            false => tlv(0xa3, &[&sequence(&extensions)]),
        };
        let tbs = sequence(&[
            &version.unwrap_or_default(),
            &tlv(2, &[&self.serial]),
            &algorithm,
            self.issuer.as_ref().unwrap_or(&above.subject),
            &sequence(&[&time(self.begins), &time(self.ends)]),
            &self.subject,
            &self.key.pair.subject_public_key_info(),
            match self.identified {
                true => &[0x81, 2, 0, 1, 0x82, 2, 0, 1],
                false => &[],
            },
            &extensions,
        ]);
        let message: &[u8] = match self.signing {
            Signing::Wrong => b"something else",
            _ => &tbs,
        };
        let by = [&key.pair.subject_public_key_info(), message].concat();
        let mut signed = SIGNED.lock().unwrap();
        let certificate = signed.entry((tbs.clone(), by)).or_insert_with(|| {
            let by_openssl = match self.signing {
                Signing::Sha1 => key.sign_with_sha_1(message),
                _ => None,
            };
            let signature = by_openssl.unwrap_or_else(|| key.pair.sign(message).unwrap());
            sequence(&[&tbs, &algorithm, &tlv(3, &[&[0], &signature])]).into()
        });
        certificate.clone()
    }
}

/// RFC 5280 §4.1.2.5.
fn time(seconds: i64) -> Vec<u8> {
    let now = NOW.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let at = i64::try_from(now.as_secs()).unwrap() + seconds;
    let at = time::OffsetDateTime::from_unix_timestamp(at).unwrap();
    let rest = format!(
        "{:02}{:02}{:02}{:02}{:02}Z",
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    match at.year() {
        year @ 1950..2050 => tlv(0x17, &[format!("{:02}{rest}", year % 100).as_bytes()]),
        year => tlv(0x18, &[format!("{year:04}{rest}").as_bytes()]),
    }
}
