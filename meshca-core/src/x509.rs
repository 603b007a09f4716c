//! What the other modules need to know of a certificate, read once.

use aws_lc_rs::digest::{SHA256, digest};
use der::asn1::{BitStringRef, ObjectIdentifier};
use der::oid::AssociatedOid;
use der::{Decode, Encode};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::DirectoryString;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::Validity;

/// Algorithms and curves of public keys (RFC 3279 §2.3, RFC 5480 §2.1.1, RFC 8410 §3).
pub(crate) mod key_oid {
    use der::asn1::ObjectIdentifier;

    pub(crate) const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    pub(crate) const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
    pub(crate) const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
    pub(crate) const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
    pub(crate) const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
    pub(crate) const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
}

pub(crate) const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
pub(crate) const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// A certificate and what was read from it. Nothing in here says that anybody vouches for it.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) certificate: Certificate,
    pub(crate) validity: Validity,
    pub(crate) public_key: SubjectPublicKeyInfoDer<'static>,
}

impl Parsed {
    /// Reads a certificate; the error says in a few words why it is none.
    pub(crate) fn read(der: CertificateDer<'static>) -> Result<Self, String> {
        let certificate = Certificate::from_der(&der)
            .map_err(|error| format!("not an X.509 certificate: {error}"))?;
        let tbs = certificate.tbs_certificate();
        let validity = tbs.validity();
        let validity = Validity::new(
            validity.not_before.to_system_time(),
            validity.not_after.to_system_time(),
        )
        .map_err(|error| error.to_string())?;
        let public_key = tbs.subject_public_key_info();
        // With another number of bits, one key would have several encodings.
        if public_key.subject_public_key.as_bytes().is_none() {
            return Err("its public key cannot be read: it does not end with a byte".to_owned());
        }
        let public_key = public_key
            .to_der()
            .map_err(|error| format!("its public key cannot be read: {error}"))?
            .into();
        Ok(Self {
            certificate,
            validity,
            public_key,
            der,
        })
    }

    pub(crate) fn subject(&self) -> String {
        display_name(self.certificate.tbs_certificate().subject())
    }

    pub(crate) fn issuer(&self) -> String {
        display_name(self.certificate.tbs_certificate().issuer())
    }

    /// Colon-free lower-case hex, as `openssl x509 -serial` prints it (in upper case).
    pub(crate) fn serial(&self) -> String {
        hex(self
            .certificate
            .tbs_certificate()
            .serial_number()
            .as_bytes())
    }

    pub(crate) fn is_self_issued(&self) -> bool {
        self.certificate.tbs_certificate().subject() == self.certificate.tbs_certificate().issuer()
    }

    /// Whether its own key made its signature: what makes a root a root.
    pub(crate) fn is_self_signed(&self) -> bool {
        self.is_self_issued() && self.is_signed_by(&self.public_key)
    }

    /// Whether the holder of this key signed it. One signature verification.
    pub(crate) fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let Ok(tbs) = self.certificate.tbs_certificate().to_der() else {
            return false;
        };
        let Some(signature) = self.certificate.signature().as_bytes() else {
            return false;
        };
        let Ok(algorithm) = self.certificate.signature_algorithm().to_der() else {
            return false;
        };
        verify(key, &algorithm, &tbs, signature).is_ok()
    }

    /// `None` where the extension is absent, which counts as "not a CA".
    pub(crate) fn basic_constraints(&self) -> Result<Option<BasicConstraints>, der::Error> {
        self.extension()
    }

    #[cfg(feature = "builtin")]
    pub(crate) fn has_name_constraints(&self) -> bool {
        const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");
        let extensions = self.certificate.tbs_certificate().extensions();
        extensions.is_some_and(|all| all.iter().any(|one| one.extn_id == NAME_CONSTRAINTS))
    }

    #[cfg(feature = "builtin")]
    pub(crate) fn is_ca(&self) -> bool {
        matches!(self.basic_constraints(), Ok(Some(constraints)) if constraints.ca)
    }

    pub(crate) fn key_usage(&self) -> Result<Option<KeyUsage>, der::Error> {
        // The reader of `KeyUsage` sees usages in bits that the value says it does not have. Others
        // ignore those bits or refuse the certificate (X.690 §11.2.1: they are zero).
        if let Some(bits) = self.extension::<RawKeyUsage<'_>>()? {
            let unused = (1_u16 << bits.0.unused_bits()) - 1;
            let last = bits.0.raw_bytes().last().copied().unwrap_or_default();
            if u16::from(last) & unused != 0 {
                return Err(der::ErrorKind::Value {
                    tag: der::Tag::BitString,
                }
                .into());
            }
        }
        self.extension()
    }

    pub(crate) fn extended_key_usage(&self) -> Result<Option<ExtendedKeyUsage>, der::Error> {
        self.extension()
    }

    pub(crate) fn subject_key_identifier(&self) -> Option<Vec<u8>> {
        self.extension::<x509_cert::ext::pkix::SubjectKeyIdentifier>()
            .ok()
            .flatten()
            .map(|ski| ski.0.into_bytes().into())
    }

    pub(crate) fn subject_alt_names(&self) -> Result<Vec<GeneralName>, der::Error> {
        Ok(self
            .extension::<SubjectAltName>()?
            .map(|names| names.0)
            .unwrap_or_default())
    }

    /// All of them: a second one is how a name is smuggled in.
    pub(crate) fn common_names(&self) -> Vec<String> {
        const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
        let subject = self.certificate.tbs_certificate().subject();
        let names = subject
            .iter()
            .filter(|attribute| attribute.oid == COMMON_NAME);
        names
            .map(|name| {
                let text = name.value.decode_as::<DirectoryString>();
                text.map_or_else(
                    |_| "(a common name that cannot be read)".to_owned(),
                    |text| text.value().into_owned(),
                )
            })
            .collect()
    }

    fn extension<'a, T>(&'a self) -> Result<Option<T>, der::Error>
    where
        T: Decode<'a, Error = der::Error> + AssociatedOid,
    {
        Ok(self
            .certificate
            .tbs_certificate()
            .get_extension::<T>()?
            .map(|(_, value)| value))
    }
}

/// The bits of a `KeyUsage` as they are written.
struct RawKeyUsage<'a>(BitStringRef<'a>);

impl AssociatedOid for RawKeyUsage<'_> {
    const OID: ObjectIdentifier = KeyUsage::OID;
}

impl<'a> der::DecodeValue<'a> for RawKeyUsage<'a> {
    type Error = der::Error;

    fn decode_value<R: der::Reader<'a>>(reader: &mut R, header: der::Header) -> der::Result<Self> {
        BitStringRef::decode_value(reader, header).map(Self)
    }
}

impl der::FixedTag for RawKeyUsage<'_> {
    const TAG: der::Tag = der::Tag::BitString;
}

/// SHA-256 of the DER form: what `openssl x509 -fingerprint -sha256` prints, without colons.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

/// A distinguished name as RFC 4514 writes it, in the certificate's own order.
fn display_name(name: &x509_cert::name::Name) -> String {
    if name.is_empty() {
        "(empty)".to_owned()
    } else {
        name.to_string()
    }
}

/// Verifies a signature whose algorithm is given as a DER `AlgorithmIdentifier`.
pub(crate) fn verify(
    key: &SubjectPublicKeyInfoDer<'_>,
    algorithm: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), &'static str> {
    // pki-types keeps the content of the AlgorithmIdentifier sequence, without its header.
    let content = der::asn1::AnyRef::from_der(algorithm)
        .map_err(|_| "its signature algorithm cannot be read")?;
    let fits = |candidate: &&dyn SignatureVerificationAlgorithm| {
        candidate.signature_alg_id().as_ref() == content.value()
    };
    verify_with(key, message, signature, fits)
}

/// Verifies a signature made by one of our keys, with the algorithm that the key implies.
#[cfg(any(test, feature = "builtin"))]
pub(crate) fn verify_with_any_algorithm(
    key: &SubjectPublicKeyInfoDer<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), &'static str> {
    verify_with(key, message, signature, |_| true)
}

fn verify_with(
    key: &SubjectPublicKeyInfoDer<'_>,
    message: &[u8],
    signature: &[u8],
    fits: impl Fn(&&dyn SignatureVerificationAlgorithm) -> bool,
) -> Result<(), &'static str> {
    let spki =
        SubjectPublicKeyInfoRef::from_der(key).map_err(|_| "the public key cannot be read")?;
    let key_algorithm = spki
        .algorithm
        .to_der()
        .map_err(|_| "the public key cannot be read")?;
    let key_algorithm =
        der::asn1::AnyRef::from_der(&key_algorithm).map_err(|_| "the public key cannot be read")?;
    let mut candidates = webpki::ALL_VERIFICATION_ALGS
        .iter()
        .copied()
        .filter(|candidate| candidate.public_key_alg_id().as_ref() == key_algorithm.value())
        .filter(fits)
        .peekable();
    if candidates.peek().is_none() {
        return Err("its signature algorithm is not supported");
    }
    // Keys are whole bytes; with another number of bits, one key would have several encodings.
    let public = spki
        .subject_public_key
        .as_bytes()
        .ok_or("the public key cannot be read")?;
    if candidates.any(|candidate| {
        candidate
            .verify_signature(public, message, signature)
            .is_ok()
    }) {
        Ok(())
    } else {
        Err("its signature does not verify")
    }
}
