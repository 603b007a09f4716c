//! What the other modules need to know of a certificate, read once.

use aws_lc_rs::digest::{SHA256, digest};
use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, OctetStringRef, UintRef};
use der::oid::AssociatedOid;
use der::{Decode, DecodeValue, FixedTag, Reader, Sequence, SliceReader, Tag, Tagged};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;
use x509_cert::certificate::Version;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
pub(crate) use x509_cert::der::oid::db::rfc5280::{
    ID_KP_CLIENT_AUTH as CLIENT_AUTH, ID_KP_SERVER_AUTH as SERVER_AUTH,
};
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use crate::Validity;

/// Algorithms and curves of public keys (RFC 3279 §2.3, RFC 5480 §2.1.1, RFC 8410 §3).
pub(crate) mod key_oid {
    pub(crate) use x509_cert::der::oid::db::rfc5912::{
        ID_EC_PUBLIC_KEY as EC, RSA_ENCRYPTION as RSA, SECP_256_R_1 as P256, SECP_384_R_1 as P384,
        SECP_521_R_1 as P521,
    };
    pub(crate) use x509_cert::der::oid::db::rfc8410::ID_ED_25519 as ED25519;
}

/// RFC 8017 appendix A.1.1.
#[derive(Sequence)]
pub(crate) struct RsaPublicKey<'a> {
    pub(crate) modulus: UintRef<'a>,
    pub(crate) exponent: UintRef<'a>,
}

/// RFC 5280 §4.1.1.
#[derive(Clone, Debug, DecodeValue)]
struct Signed<'a> {
    tbs: Tlv<'a>,
    algorithm: Tlv<'a>,
    signature: BitStringRef<'a>,
}

/// RFC 5280 §4.1.2, as x509-cert reads it, but without a copy of every string in it.
#[derive(Clone, Debug, DecodeValue)]
struct Tbs<'a> {
    #[asn1(context_specific = "0", default = "Default::default")]
    version: Version,
    serial: SerialNumber,
    algorithm: Tlv<'a>,
    issuer: NameRef<'a>,
    validity: x509_cert::time::Validity,
    subject: NameRef<'a>,
    public_key: Tlv<'a>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    issuer_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT", optional = "true")]
    subject_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Vec<ExtensionRef<'a>>>,
}

impl FixedTag for Signed<'_> {
    const TAG: Tag = Tag::Sequence;
}

impl FixedTag for Tbs<'_> {
    const TAG: Tag = Tag::Sequence;
}

/// RFC 5280 §4.1.2.9.
#[derive(Clone, Debug, DecodeValue)]
pub(crate) struct ExtensionRef<'a> {
    pub(crate) id: ObjectIdentifier,
    #[asn1(default = "Default::default")]
    pub(crate) critical: bool,
    value: &'a OctetStringRef,
}

impl<'a> ExtensionRef<'a> {
    pub(crate) fn value(&self) -> &'a [u8] {
        self.value.as_bytes()
    }
}

impl FixedTag for ExtensionRef<'_> {
    const TAG: Tag = Tag::Sequence;
}

/// A whole value as it stands in the certificate, header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tlv<'a>(&'a [u8]);

impl<'a> Decode<'a> for Tlv<'a> {
    type Error = der::Error;

    fn decode<R: Reader<'a>>(reader: &mut R) -> der::Result<Self> {
        reader.tlv_bytes().map(Self)
    }
}

/// A distinguished name in DER (RFC 5280 §4.1.2.4), well-formed. Compared byte for byte, as path building does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameRef<'a>(&'a [u8]);

impl<'a> Decode<'a> for NameRef<'a> {
    type Error = der::Error;

    fn decode<R: Reader<'a>>(reader: &mut R) -> der::Result<Self> {
        let name = Self(reader.tlv_bytes()?);
        let mut readable = true;
        name.for_each(|attribute, value| {
            readable &= readable_oid(attribute.as_bytes()) && readable_text(value);
        })?;
        match readable {
            true => Ok(name),
            // Envoy would refuse the whole trust bundle for it, not only this certificate.
            false => Err(Tag::Utf8String.value_error().into()),
        }
    }
}

/// Whether the BoringSSL family reads a text in a name: a string of one of these types, of Unicode
/// characters where the type has them. Latin-1 bytes in a `UTF8String` are how most offenders look.
fn readable_text(value: AnyRef<'_>) -> bool {
    let content = value.value();
    match value.tag() {
        Tag::Utf8String => {
            std::str::from_utf8(content).is_ok_and(|text| text.chars().all(is_for_interchange))
        }
        Tag::BmpString => {
            let (units, rest) = content.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
            // One unit is one character there: a surrogate is none.
            rest.is_empty() && { units }
                .all(|unit| char::from_u32(unit.into()).is_some_and(is_for_interchange))
        }
        Tag::PrintableString
        | Tag::TeletexString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString
        | Tag::BitString => true,
        _ => false,
    }
}

/// Whether it is not one of the noncharacters of Unicode (§23.7).
fn is_for_interchange(character: char) -> bool {
    let code = u32::from(character);
    code & 0xfffe != 0xfffe && !(0xfdd0..=0xfdef).contains(&code)
}

/// Whether each number in the content of an OBJECT IDENTIFIER is as short as it can be, and complete
/// (X.690 §8.19.2).
fn readable_oid(content: &[u8]) -> bool {
    let mut begins = true;
    for byte in content {
        if begins && *byte == 0x80 {
            return false;
        }
        begins = byte & 0x80 == 0;
    }
    begins && !content.is_empty()
}

impl<'a> NameRef<'a> {
    pub(crate) fn der(self) -> &'a [u8] {
        self.0
    }

    fn for_each(self, mut found: impl FnMut(ObjectIdentifier, AnyRef<'a>)) -> der::Result<()> {
        let content = |any: AnyRef<'a>, tag: Tag| {
            any.tag().assert_eq(tag)?;
            SliceReader::new(any.value())
        };
        let mut rdns = content(AnyRef::from_der(self.0)?, Tag::Sequence)?;
        while !rdns.is_finished() {
            let mut rdn = content(AnyRef::decode(&mut rdns)?, Tag::Set)?;
            while !rdn.is_finished() {
                let mut attribute = content(AnyRef::decode(&mut rdn)?, Tag::Sequence)?;
                found(attribute.decode()?, attribute.decode()?);
                attribute.finish()?;
            }
        }
        Ok(())
    }

    /// As RFC 4514 writes it, in the certificate's own order.
    fn display(self) -> String {
        match Name::from_der(self.0) {
            Ok(name) if name.is_empty() => "(empty)".to_owned(),
            Ok(name) => name.to_string(),
            Err(_) => "(a name that cannot be read)".to_owned(),
        }
    }
}

/// A certificate and what was read from it, in place. Nothing in here says that anybody vouches for it.
#[derive(Clone, Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) der: &'a CertificateDer<'a>,
    pub(crate) validity: Validity,
    pub(crate) public_key: SubjectPublicKeyInfoDer<'a>,
    signed: Signed<'a>,
    tbs: Tbs<'a>,
}

fn unreadable_oid() -> String {
    "not an X.509 certificate: it has a damaged object identifier".to_owned()
}

impl<'a> Parsed<'a> {
    /// Reads a certificate; the error says in a few words why it is none.
    pub(crate) fn read(der: &'a CertificateDer<'a>) -> Result<Self, String> {
        let unreadable = |error| format!("not an X.509 certificate: {error}");
        let signed = Signed::from_der(der).map_err(unreadable)?;
        let tbs = Tbs::from_der(signed.tbs.0).map_err(unreadable)?;
        let algorithm = |tlv: Tlv<'a>| {
            let read = AlgorithmIdentifierRef::from_der(tlv.0).map_err(unreadable)?;
            match readable_oid(read.oid.as_bytes()) {
                true => Ok(()),
                false => Err(unreadable_oid()),
            }
        };
        algorithm(signed.algorithm)?;
        // The same by rule (RFC 5280 §4.1.1.2), so the second is seldom read.
        if tbs.algorithm != signed.algorithm {
            algorithm(tbs.algorithm)?;
        }
        let extensions = || tbs.extensions.iter().flatten();
        if !extensions().all(|one| readable_oid(one.id.as_bytes())) {
            return Err(unreadable_oid());
        }
        // RFC 5280 §4.1.2.8 and §4.1.2.9.
        let identified = tbs.issuer_unique_id.is_some() || tbs.subject_unique_id.is_some();
        if tbs.version != Version::V3 && tbs.extensions.is_some()
            || tbs.version == Version::V1 && identified
        {
            return Err("it has fields that its version does not allow".to_owned());
        }
        let validity = Validity::new(
            tbs.validity.not_before.to_system_time(),
            tbs.validity.not_after.to_system_time(),
        )
        .map_err(|error| error.to_string())?;
        let public_key = SubjectPublicKeyInfoRef::from_der(tbs.public_key.0).map_err(unreadable)?;
        let curve = public_key.algorithm.parameters;
        let curve = curve.filter(|curve| curve.tag() == Tag::ObjectIdentifier);
        if !readable_oid(public_key.algorithm.oid.as_bytes())
            || !curve.is_none_or(|curve| readable_oid(curve.value()))
        {
            return Err(unreadable_oid());
        }
        // With another number of bits, one key would have several encodings.
        if public_key.subject_public_key.as_bytes().is_none() {
            return Err("its public key cannot be read: it does not end with a byte".to_owned());
        }
        Ok(Self {
            der,
            validity,
            public_key: tbs.public_key.0.into(),
            signed,
            tbs,
        })
    }

    pub(crate) fn subject(&self) -> String {
        self.tbs.subject.display()
    }

    pub(crate) fn issuer(&self) -> String {
        self.tbs.issuer.display()
    }

    pub(crate) fn subject_name(&self) -> NameRef<'a> {
        self.tbs.subject
    }

    pub(crate) fn issuer_name(&self) -> NameRef<'a> {
        self.tbs.issuer
    }

    /// Colon-free lower-case hex, as `openssl x509 -serial` prints it (in upper case).
    pub(crate) fn serial(&self) -> String {
        hex(self.tbs.serial.as_bytes())
    }

    pub(crate) fn is_self_issued(&self) -> bool {
        self.tbs.subject == self.tbs.issuer
    }

    /// Whether it is a root: self-issued, and its own key made its signature. Nobody relies on that
    /// signature (RFC 5280 §6.1), so one by an algorithm that is not verified here, such as SHA-1,
    /// speaks for the root as well.
    pub(crate) fn is_self_signed(&self) -> bool {
        self.is_self_issued()
            && !matches!(
                self.signature_by(&self.public_key),
                Err(BadSignature::Wrong)
            )
    }

    /// Whether the holder of this key signed it. One signature verification.
    pub(crate) fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        self.signature_by(key).is_ok()
    }

    fn signature_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> Result<(), BadSignature> {
        let signature = self.signed.signature.as_bytes();
        let signature = signature.ok_or(BadSignature::Wrong)?;
        verify(key, self.signed.algorithm.0, self.tbs_der(), signature)
    }

    /// The algorithm of its signature, an `AlgorithmIdentifier` in DER.
    pub(crate) fn signature_algorithm(&self) -> &'a [u8] {
        self.signed.algorithm.0
    }

    /// The part of it that is signed.
    pub(crate) fn tbs_der(&self) -> &'a [u8] {
        self.signed.tbs.0
    }

    pub(crate) fn extensions(&self) -> &[ExtensionRef<'a>] {
        self.tbs.extensions.as_deref().unwrap_or_default()
    }

    /// Whether it is of version 1 or 2, which had no extensions.
    pub(crate) fn has_old_version(&self) -> bool {
        self.tbs.version != Version::V3
    }

    pub(crate) fn serial_number(&self) -> &SerialNumber {
        &self.tbs.serial
    }

    /// `None` where the extension is absent, which counts as "not a CA".
    pub(crate) fn basic_constraints(&self) -> Result<Option<BasicConstraints>, der::Error> {
        self.extension()
    }

    #[cfg(feature = "builtin")]
    pub(crate) fn has_name_constraints(&self) -> bool {
        let mut extensions = self.tbs.extensions.iter().flatten();
        extensions.any(|one| one.id == x509_cert::ext::pkix::NameConstraints::OID)
    }

    /// Whether it may be a CA's. A root of version 1 could not say so (RFC 5280 §6.1.4 (k)).
    pub(crate) fn is_ca(&self) -> bool {
        match self.has_old_version() {
            true => self.is_self_issued(),
            false => matches!(self.basic_constraints(), Ok(Some(constraints)) if constraints.ca),
        }
    }

    pub(crate) fn key_usage(&self) -> Result<Option<KeyUsage>, der::Error> {
        // The reader of `KeyUsage` sees usages in bits that the value says it does not have. Others
        // ignore those bits or refuse the certificate (X.690 §11.2.1: they are zero).
        let Some(value) = self.extension_value(KeyUsage::OID)? else {
            return Ok(None);
        };
        let bits = BitStringRef::from_der(value)?;
        let unused = (1_u16 << bits.unused_bits()) - 1;
        let last = bits.raw_bytes().last().copied().unwrap_or_default();
        if u16::from(last) & unused != 0 {
            return Err(Tag::BitString.value_error().into());
        }
        KeyUsage::from_der(value).map(Some)
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
        let names = self.extension::<SubjectAltName>()?;
        Ok(names.map(|names| names.0).unwrap_or_default())
    }

    #[cfg(feature = "builtin")]
    pub(crate) fn uris(&self) -> Result<Vec<String>, der::Error> {
        let uri = |name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().to_owned()),
            _ => None,
        };
        Ok(self
            .subject_alt_names()?
            .into_iter()
            .filter_map(uri)
            .collect())
    }

    /// All of them: a second one is how a name is smuggled in.
    pub(crate) fn common_names(&self) -> Vec<String> {
        const UNREADABLE: &str = "(a common name that cannot be read)";
        let mut names = Vec::new();
        let read = self.tbs.subject.for_each(|attribute, value| {
            if attribute == COMMON_NAME {
                let text = value.decode_as::<DirectoryString>();
                names.push(
                    text.map_or_else(|_| UNREADABLE.to_owned(), |text| text.value().into_owned()),
                );
            }
        });
        if read.is_err() {
            names.push(UNREADABLE.to_owned());
        }
        names
    }

    pub(crate) fn extension<T>(&self) -> Result<Option<T>, der::Error>
    where
        T: Decode<'a, Error = der::Error> + AssociatedOid,
    {
        self.extension_value(T::OID)?.map(T::from_der).transpose()
    }

    /// At most one of a kind: a second one is an error.
    fn extension_value(&self, id: ObjectIdentifier) -> Result<Option<&'a [u8]>, der::Error> {
        let extensions = self.tbs.extensions.iter().flatten();
        let mut found = extensions.filter(|one| one.id == id);
        let value = found.next().map(|one| one.value.as_bytes());
        match found.next() {
            None => Ok(value),
            Some(_) => Err(der::ErrorKind::Failed.into()),
        }
    }
}

/// SHA-256 of the DER form: what `openssl x509 -fingerprint -sha256` prints, without colons.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        digits.push(digit(byte >> 4));
        digits.push(digit(byte & 15));
    }
    digits
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, derive_more::Display)]
pub(crate) enum BadSignature {
    #[display("its signature does not verify")]
    Wrong,
    /// The algorithm or the kind of key is not known here, so nothing can be said of the signature.
    #[display("its signature algorithm is not supported")]
    Unknown,
}

/// Verifies a signature whose algorithm is given as a DER `AlgorithmIdentifier`.
pub(crate) fn verify(
    key: &SubjectPublicKeyInfoDer<'_>,
    algorithm: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    // pki-types keeps the content of the AlgorithmIdentifier sequence, without its header.
    let content = AnyRef::from_der(algorithm).map_err(|_| BadSignature::Unknown)?;
    verify_with(key, message, signature, |candidate| {
        candidate.signature_alg_id().as_ref() == content.value()
    })
}

/// Verifies a signature made by one of our keys, with the algorithm that the key implies.
#[cfg(any(test, feature = "builtin"))]
pub(crate) fn verify_with_any_algorithm(
    key: &SubjectPublicKeyInfoDer<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    verify_with(key, message, signature, |_| true)
}

fn verify_with(
    key: &SubjectPublicKeyInfoDer<'_>,
    message: &[u8],
    signature: &[u8],
    fits: impl Fn(&dyn SignatureVerificationAlgorithm) -> bool,
) -> Result<(), BadSignature> {
    let key = RawPublicKeyEntity::try_from(key).map_err(|_| BadSignature::Unknown)?;
    let mut refusal = BadSignature::Unknown;
    for candidate in webpki::ALL_VERIFICATION_ALGS
        .iter()
        .filter(|one| fits(**one))
    {
        match key.verify_signature(*candidate, message, signature) {
            Ok(()) => return Ok(()),
            // The algorithm is for keys of another type.
            Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
            Err(_) => refusal = BadSignature::Wrong,
        }
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use der::Encode;
    use x509_cert::Certificate;

    use super::*;

    /// What is read in place is what x509-cert reads into copies: nothing is accepted that it refuses.
    #[test]
    fn damage_is_noticed_wherever_x509_cert_notices_it() {
        let mut params = rcgen::CertificateParams::new(vec!["cart.mesh".to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let key = crate::PrivateKey::generate(crate::KeyType::P256).unwrap();
        let sound = params.self_signed(&**key.material()).unwrap();
        let sound = sound.der().to_vec();
        let (mut refused, mut accepted) = (0, 0);
        for at in 0..sound.len() {
            for bit in 0..8 {
                let mut damaged = sound.clone();
                damaged[at] ^= 1 << bit;
                let damaged = CertificateDer::from(damaged);
                let expected = Certificate::from_der(&damaged);
                match (Parsed::read(&damaged), expected) {
                    (Ok(read), Ok(expected)) => {
                        accepted += 1;
                        let tbs = expected.tbs_certificate();
                        let place = format!("bit {bit} of byte {at}");
                        let names = (tbs.subject().to_der(), tbs.issuer().to_der());
                        assert_eq!(read.subject_name().der(), names.0.unwrap(), "{place}");
                        assert_eq!(read.issuer_name().der(), names.1.unwrap(), "{place}");
                        let key = tbs.subject_public_key_info().to_der().unwrap();
                        assert_eq!(read.public_key.as_ref(), key, "{place}");
                        assert_eq!(
                            read.serial(),
                            hex(tbs.serial_number().as_bytes()),
                            "{place}"
                        );
                        let usage = tbs.get_extension::<BasicConstraints>();
                        let usage = usage.map(|found| found.map(|(_, value)| value));
                        assert_eq!(read.basic_constraints().ok(), usage.ok(), "{place}");
                    }
                    (Ok(_), Err(error)) => panic!("bit {bit} of byte {at}: {error}"),
                    (Err(_), _) => refused += 1,
                }
            }
        }
        assert!(refused > 1000 && accepted > 1000, "{refused} {accepted}");
    }
}
