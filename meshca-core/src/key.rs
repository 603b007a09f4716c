//! Private keys: made here, wiped when dropped, never copied by accident.

pub(crate) mod encoding;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsBigEndian as _, AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256,
};
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use zeroize::Zeroizing;

use crate::{Error, ErrorKind, Result, SecretValue, pem};

/// The kinds of key that workloads and CAs use. The default is P-256.
///
/// Each signs with the one algorithm that the field pairs it with: ECDSA with SHA-256 (P-256) or
/// SHA-384 (P-384), Ed25519, RSA PKCS#1 v1.5 with SHA-256.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display,
)]
#[non_exhaustive]
pub enum KeyType {
    /// ECDSA on P-256: the default; ten microseconds to make.
    #[default]
    #[display("P-256")]
    P256,
    /// ECDSA on P-384. Envoy accepts it from servers with TLS 1.3 only.
    #[display("P-384")]
    P384,
    /// Ed25519, for CAs only: Envoy and browsers refuse it in handshakes.
    Ed25519,
    /// RSA with 2048 bits: a tenth of a second to make, on the calling thread.
    #[display("RSA-2048")]
    Rsa2048,
    /// RSA with 3072 bits.
    #[display("RSA-3072")]
    Rsa3072,
    /// RSA with 4096 bits: seconds to make, on the calling thread.
    #[display("RSA-4096")]
    Rsa4096,
}

impl KeyType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::P256,
        Self::P384,
        Self::Ed25519,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
    ];

    /// The RSA type of this many bits.
    pub fn rsa(bits: u32) -> Option<Self> {
        match bits {
            2048 => Some(Self::Rsa2048),
            3072 => Some(Self::Rsa3072),
            4096 => Some(Self::Rsa4096),
            _ => None,
        }
    }

    /// Whether it is an RSA type of any size.
    pub fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096)
    }

    /// The RSA type with a modulus of this many bytes.
    fn of_modulus(bytes: usize) -> Option<Self> {
        u32::try_from(bytes * 8).ok().and_then(Self::rsa)
    }
}

impl FromStr for KeyType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|key_type| key_type.to_string().eq_ignore_ascii_case(name))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    "unknown key type; use P-256, P-384, Ed25519, RSA-2048, RSA-3072 or RSA-4096",
                )
                .with_context("key type", name.escape_debug())
            })
    }
}

/// Something that can sign for a CA: a key in memory, or one that stays in an HSM.
///
/// Implement it to keep a CA's key outside the process. [`PrivateKey`] is the in-memory one.
/// Signing is synchronous, as it is in rustls: an HSM that needs the network belongs behind an
/// [`Issuer`](crate::Issuer) of its own.
///
/// # Example
///
/// ```
/// use std::sync::Arc;
/// use meshca_core::pki_types::SubjectPublicKeyInfoDer;
/// use meshca_core::{Error, ErrorKind, KeyType, Result, Signer};
///
/// #[derive(Debug)]
/// struct Hsm {
///     slot: u32,
///     /// As the device exports it, or as it stands in the CA's certificate.
///     public_key: SubjectPublicKeyInfoDer<'static>,
/// }
///
/// impl Signer for Hsm {
///     fn key_type(&self) -> KeyType {
///         KeyType::P256
///     }
///
///     fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
///         &self.public_key
///     }
///
///     fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
///         ecdsa_sha256(self.slot, message)
///             .ok_or_else(|| Error::new(ErrorKind::Unavailable, "the HSM does not answer"))
///     }
/// }
/// # fn ecdsa_sha256(_slot: u32, _message: &[u8]) -> Option<Vec<u8>> { None }
///
/// # let root = include_str!("../tests/data/root.pem");
/// # let hsm = Hsm { slot: 0, public_key: vec![0; 91].into() };
/// # #[cfg(feature = "builtin")] {
/// let ca = meshca_core::builtin::ProvidedCa::with_signer(root, Arc::new(hsm))?;
/// # let _ = ca; }
/// # Ok::<(), Error>(())
/// ```
pub trait Signer: fmt::Debug + Send + Sync + 'static {
    /// The type of the key; it decides the [algorithm](KeyType) of the signature.
    fn key_type(&self) -> KeyType;

    /// The public half.
    fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static>;

    /// Signs a message (not a digest of it). ECDSA signatures are in ASN.1 form, as X.509 carries
    /// them (RFC 3279 §2.2.3).
    ///
    /// # Errors
    ///
    /// Whatever the device says; [`ErrorKind::Unavailable`] if trying again may help.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>>;
}

/// A private key, made or loaded here.
///
/// It is wiped when it is dropped, cannot be cloned or displayed, and its `Debug` shows the type
/// only. [`expose_pkcs8`](Self::expose_pkcs8) and [`expose_pem`](Self::expose_pem) are the only ways to read it.
///
/// ```
/// use meshca_core::{KeyType, PrivateKey};
///
/// let key = PrivateKey::generate(KeyType::P256)?;
/// assert_eq!(format!("{key:?}"), "PrivateKey(P-256)");
/// let again = PrivateKey::from_pem(key.expose_pem()?.expose_str().unwrap_or_default())?;
/// assert_eq!(key.public_key(), again.public_key());
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(derive_more::Debug)]
#[debug("PrivateKey({})", _0.key_type)]
pub struct PrivateKey(Arc<KeyMaterial>);

/// What a [`PrivateKey`] owns. Shared, never copied, with the requests made for it.
pub(crate) struct KeyMaterial {
    pair: Pair,
    key_type: KeyType,
    public_key: SubjectPublicKeyInfoDer<'static>,
}

/// aws-lc wipes its key structures when it frees them.
enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl Pair {
    /// The public half, without the algorithm.
    fn public_bits(&self) -> &[u8] {
        match self {
            Self::Ecdsa(pair) => pair.public_key().as_ref(),
            Self::Ed25519(pair) => pair.public_key().as_ref(),
            Self::Rsa(pair) => pair.public_key().as_ref(),
        }
    }
}

impl PrivateKey {
    /// Makes a new key with the operating system's randomness.
    ///
    /// RSA keys take from a tenth of a second to several seconds of the calling thread.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if the random number generator fails.
    pub fn generate(key_type: KeyType) -> Result<Self> {
        let failed = |_| {
            Error::new(ErrorKind::Internal, "could not generate a private key")
                .with_context("key type", key_type)
        };
        let ecdsa = |algorithm| EcdsaKeyPair::generate(algorithm).map(Pair::Ecdsa);
        let rsa = |size| RsaKeyPair::generate(size).map(Pair::Rsa);
        let pair = match key_type {
            KeyType::P256 => ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
            KeyType::P384 => ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
            KeyType::Ed25519 => Ed25519KeyPair::generate().map(Pair::Ed25519),
            KeyType::Rsa2048 => rsa(KeySize::Rsa2048),
            KeyType::Rsa3072 => rsa(KeySize::Rsa3072),
            KeyType::Rsa4096 => rsa(KeySize::Rsa4096),
        };
        Self::from_pair(pair.map_err(failed)?, key_type)
    }

    /// Reads a key from PEM: one block `PRIVATE KEY` (PKCS#8), `EC PRIVATE KEY` (SEC 1) or
    /// `RSA PRIVATE KEY` (PKCS#1), and nothing else.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] with the line of what is wrong, or if the key is damaged;
    /// [`ErrorKind::Unsupported`] if its type is none of [`KeyType`]. The key is never in the error.
    pub fn from_pem(text: &str) -> Result<Self> {
        let der = pem::private_key(text).map_err(|error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("not a PEM private key: {error}"),
            )
        })?;
        Self::from_der(&Zeroizing::new(der))
    }

    /// Reads a key from its DER form.
    ///
    /// # Errors
    ///
    /// As [`from_pem`](Self::from_pem).
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self> {
        let bytes = der.secret_der();
        for (algorithm, key_type) in [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, KeyType::P256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, KeyType::P384),
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, bytes) {
                return Self::from_pair(Pair::Ecdsa(pair), key_type);
            }
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
            return Self::from_pair(Pair::Ed25519(pair), KeyType::Ed25519);
        }
        let rsa = match der {
            PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(bytes),
            _ => RsaKeyPair::from_pkcs8(bytes),
        };
        let pair = rsa.map_err(|_| {
            Error::new(
                ErrorKind::InvalidConfig,
                "not a usable private key: expected an unencrypted P-256, P-384, Ed25519 or RSA key (2048 bits or more)",
            )
        })?;
        let bytes = pair.public_modulus_len();
        let key_type = KeyType::of_modulus(bytes).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "RSA keys must have 2048, 3072 or 4096 bits",
            )
            .with_context("bits", bytes * 8)
        })?;
        Self::from_pair(Pair::Rsa(pair), key_type)
    }

    fn from_pair(pair: Pair, key_type: KeyType) -> Result<Self> {
        Ok(Self(Arc::new(KeyMaterial {
            public_key: encoding::public_key(key_type, pair.public_bits())?,
            pair,
            key_type,
        })))
    }

    /// The type of the key.
    pub fn key_type(&self) -> KeyType {
        self.0.key_type
    }

    /// The public half.
    pub fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        &self.0.public_key
    }

    /// The key itself as PKCS#8 DER (RFC 5208), in memory that is wiped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if it cannot be encoded.
    pub fn expose_pkcs8(&self) -> Result<SecretValue> {
        let failed = |_| Error::new(ErrorKind::Internal, "could not encode a private key");
        // The library's own buffers are wiped when they are dropped.
        Ok(SecretValue::new(match &self.0.pair {
            Pair::Ecdsa(pair) => {
                let scalar = pair.private_key().as_be_bytes().map_err(failed)?;
                let point = pair.public_key().as_ref();
                encoding::ec_private_key(self.0.key_type, scalar.as_ref(), point)?
            }
            Pair::Ed25519(pair) => pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let der: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
                der.as_ref().to_vec()
            }
        }))
    }

    /// The key itself as a PEM `PRIVATE KEY` block, in memory that is wiped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if it cannot be encoded.
    pub fn expose_pem(&self) -> Result<SecretValue> {
        Ok(SecretValue::new(
            pem::encode("PRIVATE KEY", self.expose_pkcs8()?.expose()).into_bytes(),
        ))
    }

    pub(crate) fn material(&self) -> &Arc<KeyMaterial> {
        &self.0
    }
}

impl Signer for PrivateKey {
    fn key_type(&self) -> KeyType {
        self.0.key_type
    }

    fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        &self.0.public_key
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.0.sign(message)
    }
}

impl KeyMaterial {
    pub(crate) fn key_type(&self) -> KeyType {
        self.key_type
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        let signed = match &self.pair {
            Pair::Ecdsa(pair) => pair
                .sign(&random, message)
                .map(|made| made.as_ref().to_vec()),
            Pair::Ed25519(pair) => pair.try_sign(message).map(|made| made.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map(|()| signature)
            }
        };
        signed.map_err(|_| Error::new(ErrorKind::Internal, "could not sign with a private key"))
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        &self.public_key
    }
}

impl rcgen::PublicKeyData for KeyMaterial {
    fn subject_public_key_info(&self) -> Vec<u8> {
        self.public_key.to_vec()
    }

    fn der_bytes(&self) -> &[u8] {
        self.pair.public_bits()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.key_type {
            KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyType::Ed25519 => &rcgen::PKCS_ED25519,
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl rcgen::SigningKey for KeyMaterial {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::PublicKeyX509Der;

    use super::*;

    #[test]
    fn every_type_survives_pem_and_signs() {
        for key_type in KeyType::ALL {
            let key = PrivateKey::generate(key_type).unwrap();
            let pem = key.expose_pem().unwrap();
            let again = PrivateKey::from_pem(pem.expose_str().unwrap()).unwrap();
            assert_eq!(again.key_type(), key_type);
            assert_eq!(KeyType::of(key.public_key()), Some(key_type));
            assert_eq!(again.public_key(), key.public_key());
            assert_eq!(key_type.to_string().parse::<KeyType>().unwrap(), key_type);
            // The forms that we write are those that AWS-LC would write.
            let (public, private) = match &key.0.pair {
                Pair::Ecdsa(pair) => (
                    AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap(),
                    pair.to_pkcs8v1().unwrap().as_ref().to_vec(),
                ),
                Pair::Ed25519(pair) => (
                    AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap(),
                    pair.to_pkcs8v1().unwrap().as_ref().to_vec(),
                ),
                Pair::Rsa(pair) => (
                    AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap(),
                    AsDer::<Pkcs8V1Der<'_>>::as_der(pair)
                        .unwrap()
                        .as_ref()
                        .to_vec(),
                ),
            };
            assert_eq!(key.public_key().as_ref(), public.as_ref());
            assert_eq!(key.expose_pkcs8().unwrap().expose(), private);
            let signature = Signer::sign(&again, b"message").unwrap();
            crate::x509::verify_with_any_algorithm(key.public_key(), b"message", &signature)
                .unwrap();
            assert!(
                crate::x509::verify_with_any_algorithm(key.public_key(), b"messag3", &signature)
                    .is_err()
            );
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_repeating_it() {
        let garbage = pem::encode("PRIVATE KEY", b"not a key at all");
        let encrypted = pem::encode("ENCRYPTED PRIVATE KEY", b"secret");
        for (text, kind) in [
            ("", ErrorKind::InvalidConfig),
            (garbage.as_str(), ErrorKind::InvalidConfig),
            (encrypted.as_str(), ErrorKind::InvalidConfig),
        ] {
            let error = PrivateKey::from_pem(text).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(
                !format!("{error} {error:?}").contains("bm90IGEga2V5"),
                "{error:?}"
            );
        }
    }
}
