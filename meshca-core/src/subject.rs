//! Writing a CA's name exactly as it stands in its certificate.
//!
//! Path building compares names byte for byte (BoringSSL, Go and rustls-webpki do), so an issuer
//! field must repeat the CA's subject to the letter, string types included.

use der::asn1::{AnyRef, Ia5StringRef, PrintableStringRef, Utf8StringRef};
use der::{Encode, Tag, Tagged};
use rcgen::string::{BmpString, TeletexString};
use rcgen::{DistinguishedName, DnType, DnValue};
use x509_cert::name::Name;

use crate::x509::Parsed;
use crate::{Error, ErrorKind, Result};

/// The subject of a CA in rcgen's terms.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if rcgen cannot write this name byte for byte: several attributes in
/// one RDN, a rare string type, or an attribute that occurs twice.
pub(crate) fn to_rcgen(ca: &Parsed) -> Result<DistinguishedName> {
    let name = ca.certificate.tbs_certificate().subject();
    convert(name)
        .filter(|converted| encoding_of(converted) == name.to_der().ok())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "the CA's subject cannot be repeated byte for byte in what it signs; use a CA whose subject has one plain string per attribute",
            )
            .with_context("subject", ca.subject())
        })
}

fn convert(name: &Name) -> Option<DistinguishedName> {
    let mut converted = DistinguishedName::new();
    for rdn in name.iter_rdn() {
        let [attribute] = rdn.iter().collect::<Vec<_>>().try_into().ok()?;
        let arcs: Vec<u64> = attribute.oid.arcs().map(u64::from).collect();
        converted.push(
            DnType::from_oid(&arcs),
            value(AnyRef::from(&attribute.value))?,
        );
    }
    Some(converted)
}

fn value(any: AnyRef<'_>) -> Option<DnValue> {
    Some(match any.tag() {
        Tag::Utf8String => DnValue::Utf8String(
            any.decode_as::<Utf8StringRef<'_>>()
                .ok()?
                .as_str()
                .to_owned(),
        ),
        Tag::PrintableString => DnValue::PrintableString(
            any.decode_as::<PrintableStringRef<'_>>()
                .ok()?
                .as_str()
                .try_into()
                .ok()?,
        ),
        Tag::Ia5String => DnValue::Ia5String(
            any.decode_as::<Ia5StringRef<'_>>()
                .ok()?
                .as_str()
                .try_into()
                .ok()?,
        ),
        Tag::TeletexString => DnValue::TeletexString(
            TeletexString::try_from(std::str::from_utf8(any.value()).ok()?).ok()?,
        ),
        Tag::BmpString => DnValue::BmpString(BmpString::from_utf16be(any.value().to_vec()).ok()?),
        _ => return None,
    })
}

/// What rcgen would write: it offers no way to encode a name alone, so the name is taken from a CSR.
fn encoding_of(name: &DistinguishedName) -> Option<Vec<u8>> {
    use der::Decode as _;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = name.clone();
    let csr = params.serialize_request(&Unsigned).ok()?;
    let request = x509_cert::request::CertReq::from_der(csr.der()).ok()?;
    request.info.subject.to_der().ok()
}

/// A key that signs nothing, for text that nobody will verify.
struct Unsigned;

impl rcgen::PublicKeyData for Unsigned {
    fn der_bytes(&self) -> &[u8] {
        &[0; 32]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Unsigned {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(vec![0; 64])
    }
}
