//! Writing a certificate: what is the same in everything that a CA signs is encoded once.
//!
//! The names of the CA are copied from its certificate byte for byte, since path building compares them so (BoringSSL, Go
//! and rustls-webpki do), string types included.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use der::asn1::{
    AnyRef, BitStringRef, ContextSpecific, Ia5StringRef, ObjectIdentifier, OctetString,
    OctetStringRef, SetOfVec, UintRef, Utf8StringRef,
};
use der::oid::AssociatedOid;
use der::{
    DateTime, Encode, EncodeValue, FixedTag, Length, Sequence, Tag, TagMode, TagNumber, Writer,
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::spki::AlgorithmIdentifierRef;
use x509_cert::time::{Time, Validity};

use crate::x509::{CLIENT_AUTH, Parsed, SERVER_AUTH, key_oid};
use crate::{Error, ErrorKind, KeyType, Profile, Result};

/// What a CA repeats in everything that it signs.
#[derive(Debug)]
pub(crate) struct Template {
    algorithm: Vec<u8>,
    /// Its own subject.
    issuer: Vec<u8>,
    authority_key_identifier: Vec<u8>,
    /// The usage and the purposes.
    leaf_usage: Vec<u8>,
    /// RSA keys may be asked to encrypt a key (TLS 1.2 without forward secrecy); others cannot
    /// (RFC 8410 §5, RFC 5480 §3).
    leaf_usage_rsa: Vec<u8>,
    leaf_constraints: Vec<u8>,
    ca_usage: Vec<u8>,
    /// The extension with the key identifier, up to the identifier.
    key_identifier: Vec<u8>,
}

/// What one certificate says beside that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    /// Big-endian, not negative.
    pub(crate) serial: &'a [u8],
    /// In whole seconds, as its end.
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) common_name: Option<&'a str>,
    pub(crate) uris: &'a [String],
    pub(crate) dns_names: &'a [String],
    pub(crate) public_key: &'a SubjectPublicKeyInfoDer<'static>,
    pub(crate) is_rsa: bool,
    pub(crate) profile: Profile,
}

impl Template {
    /// What a CA with this certificate, and a key of this type, repeats.
    pub(crate) fn of(ca: &Parsed<'_>, key_type: KeyType) -> Result<Self> {
        Self::new(ca, key_type).map_err(internal)
    }

    fn new(ca: &Parsed<'_>, key_type: KeyType) -> der::Result<Self> {
        // A CA without an identifier is named by the one that it would have.
        let identifier = match ca.subject_key_identifier() {
            Some(identifier) => identifier,
            None => key_identifier(&ca.public_key).to_vec(),
        };
        let authority = AuthorityKeyIdentifier {
            key_identifier: Some(OctetString::new(identifier)?),
            ..AuthorityKeyIdentifier::default()
        };
        let no_ca = BasicConstraints {
            ca: false,
            path_len_constraint: None,
        };
        let purposes = extension(false, &ExtendedKeyUsage(vec![SERVER_AUTH, CLIENT_AUTH]))?;
        let usage = |usages| extension(true, &KeyUsage(usages));
        let leaf_usage = |usages| Ok::<_, der::Error>([usage(usages)?, purposes.clone()].concat());
        Ok(Self {
            issuer: ca.subject_name().der().to_owned(),
            algorithm: signature_algorithm(key_type)?,
            authority_key_identifier: extension(false, &authority)?,
            leaf_usage: leaf_usage(KeyUsages::DigitalSignature.into())?,
            leaf_usage_rsa: leaf_usage(KeyUsages::DigitalSignature | KeyUsages::KeyEncipherment)?,
            leaf_constraints: extension(true, &no_ca)?,
            ca_usage: usage(KeyUsages::KeyCertSign | KeyUsages::CRLSign)?,
            key_identifier: before_key_identifier()?,
        })
    }

    /// Writes a certificate and has it signed.
    ///
    /// # Errors
    ///
    /// Those of `sign`; [`ErrorKind::InvalidRequest`] for an end that X.509 cannot express.
    pub(crate) fn sign(
        &self,
        contents: &Contents<'_>,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>,
    ) -> Result<CertificateDer<'static>> {
        let validity = Validity::new(time(contents.not_before)?, time(contents.not_after)?);
        let tbs = self.tbs(contents, validity).map_err(internal)?;
        let signature = sign(&tbs)?;
        self.signed(&tbs, &signature).map_err(internal)
    }

    /// RFC 5280 §4.1.2.
    fn tbs(&self, contents: &Contents<'_>, validity: Validity) -> der::Result<Vec<u8>> {
        const VERSION_3: &[u8] = &[0xa0, 3, 2, 1, 2];
        let serial = UintRef::new(contents.serial)?.to_der()?;
        let validity = validity.to_der()?;
        let subject = subject(contents.common_name)?;
        let names = names(contents)?;
        let key_identifier = key_identifier(contents.public_key);
        let limit;
        let (usage, constraints) = match contents.profile {
            Profile::Workload if contents.is_rsa => (&self.leaf_usage_rsa, &self.leaf_constraints),
            Profile::Workload => (&self.leaf_usage, &self.leaf_constraints),
            Profile::Intermediate { path_len } => {
                let constraints = BasicConstraints {
                    ca: true,
                    path_len_constraint: Some(path_len),
                };
                limit = extension(true, &constraints)?;
                (&self.ca_usage, &limit)
            }
        };
        let extensions = ContextSpecific {
            tag_number: TagNumber(3),
            tag_mode: TagMode::Explicit,
            value: Parts(&[
                &self.authority_key_identifier,
                &names,
                usage,
                &self.key_identifier,
                &key_identifier,
                constraints,
            ]),
        }
        .to_der()?;
        Parts(&[
            VERSION_3,
            &serial,
            &self.algorithm,
            &self.issuer,
            &validity,
            &subject,
            contents.public_key,
            &extensions,
        ])
        .to_der()
    }

    /// RFC 5280 §4.1.
    fn signed(&self, tbs: &[u8], signature: &[u8]) -> der::Result<CertificateDer<'static>> {
        let signature = BitStringRef::from_bytes(signature)?.to_der()?;
        Ok(Parts(&[tbs, &self.algorithm, &signature]).to_der()?.into())
    }
}

/// A sequence of what is encoded already.
struct Parts<'a>(&'a [&'a [u8]]);

impl FixedTag for Parts<'_> {
    const TAG: Tag = Tag::Sequence;
}

impl EncodeValue for Parts<'_> {
    fn value_len(&self) -> der::Result<Length> {
        let total = self.0.iter().map(|part| part.len()).sum::<usize>();
        Length::try_from(total)
    }

    fn encode_value(&self, writer: &mut impl Writer) -> der::Result<()> {
        self.0.iter().try_for_each(|part| writer.write(part))
    }
}

/// RFC 5280 §4.1.2.9.
#[derive(Sequence)]
struct ExtensionRef<'a> {
    extn_id: ObjectIdentifier,
    #[asn1(default = "Default::default")]
    critical: bool,
    extn_value: &'a OctetStringRef,
}

fn extension<E: AssociatedOid + Encode>(critical: bool, value: &E) -> der::Result<Vec<u8>> {
    extension_of::<E>(critical, &value.to_der()?)
}

/// An extension whose value is encoded already.
fn extension_of<E: AssociatedOid>(critical: bool, value: &[u8]) -> der::Result<Vec<u8>> {
    ExtensionRef {
        extn_id: E::OID,
        critical,
        extn_value: OctetStringRef::new(value)?,
    }
    .to_der()
}

/// Empty, or a common name.
fn subject(common_name: Option<&str>) -> der::Result<Vec<u8>> {
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
    let Some(name) = common_name else {
        return Parts(&[]).to_der();
    };
    let attribute = AttributeTypeAndValue {
        oid: COMMON_NAME,
        value: AnyRef::from(Utf8StringRef::new(name)?).into(),
    };
    vec![SetOfVec::try_from([attribute])?].to_der()
}

/// The subject alternative names, which are critical where there is no other name (RFC 5280 §4.2.1.6).
fn names(contents: &Contents<'_>) -> der::Result<Vec<u8>> {
    fn name(tag: u32, text: &str) -> der::Result<ContextSpecific<Ia5StringRef<'_>>> {
        Ok(ContextSpecific {
            tag_number: TagNumber(tag),
            tag_mode: TagMode::Implicit,
            value: Ia5StringRef::new(text)?,
        })
    }
    // The tags of `GeneralName`.
    const DNS_NAME: u32 = 2;
    const URI: u32 = 6;
    let uris = contents.uris.iter().map(|uri| name(URI, uri));
    let dns = contents.dns_names.iter().map(|dns| name(DNS_NAME, dns));
    let names = uris.chain(dns).collect::<der::Result<Vec<_>>>()?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    extension_of::<SubjectAltName>(contents.common_name.is_none(), &names.to_der()?)
}

/// An identifier has always the same length, so all that is before it is the same, too.
fn before_key_identifier() -> der::Result<Vec<u8>> {
    let any = OctetStringRef::new(&[0; KEY_IDENTIFIER])?.to_der()?;
    let mut extension = extension_of::<SubjectKeyIdentifier>(false, &any)?;
    extension.truncate(extension.len().saturating_sub(KEY_IDENTIFIER));
    Ok(extension)
}

const KEY_IDENTIFIER: usize = 20;

/// Which key a certificate is for: a short hash of it (RFC 7093 §2, method 1).
fn key_identifier(public_key: &SubjectPublicKeyInfoDer<'_>) -> [u8; KEY_IDENTIFIER] {
    let hash = digest(&SHA256, public_key);
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

/// How a key of this type signs certificates (RFC 5758 §3.2, RFC 8410 §3, RFC 4055 §5).
fn signature_algorithm(key_type: KeyType) -> der::Result<Vec<u8>> {
    const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
    const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
    const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
    let (oid, parameters) = match key_type {
        KeyType::P256 => (ECDSA_SHA256, None),
        KeyType::P384 => (ECDSA_SHA384, None),
        KeyType::Ed25519 => (key_oid::ED25519, None),
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => (RSA_SHA256, Some(AnyRef::NULL)),
    };
    AlgorithmIdentifierRef { oid, parameters }.to_der()
}

fn time(time: SystemTime) -> Result<Time> {
    let message = "the lifetime ends after the year 9999, which X.509 cannot express";
    DateTime::try_from(time)
        .map(Time::from)
        .map_err(|_| Error::new(ErrorKind::InvalidRequest, message))
}

fn internal(error: der::Error) -> Error {
    Error::new(ErrorKind::Internal, "could not build a certificate").with_source(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
        KeyUsagePurpose, SanType, SerialNumber,
    };

    use der::Decode;

    use super::*;
    use crate::PrivateKey;

    fn named(names: &[(DnType, &str)]) -> DistinguishedName {
        let mut subject = DistinguishedName::new();
        for (kind, name) in names {
            subject.push(kind.clone(), *name);
        }
        subject
    }

    fn ca(key: &PrivateKey, with_identifier: bool) -> (CertificateParams, CertificateDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&[
            (DnType::OrganizationName, "Ünicode"),
            (DnType::CommonName, "CA"),
        ]);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.is_ca = match with_identifier {
            true => IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            // The only kind for which rcgen leaves the identifier out.
            false => IsCa::NoCa,
        };
        params.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 8]);
        let certificate = params.self_signed(&**key.material()).unwrap();
        (params, certificate.der().clone())
    }

    /// Another library writes the same certificate, byte for byte.
    #[test]
    fn what_is_written_is_what_rcgen_writes() {
        let year = Duration::from_secs(31_557_600);
        let begin = SystemTime::UNIX_EPOCH + year * 56;
        let rsa = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let keys = [KeyType::P256, KeyType::P384, KeyType::Ed25519]
            .map(|key_type| PrivateKey::generate(key_type).unwrap());
        let keys: Vec<&PrivateKey> = keys.iter().chain([&rsa]).collect();
        let contents = |key: &'static _, profile| Contents {
            serial: &[0, 0x80, 1, 2],
            not_before: begin,
            not_after: begin + year,
            common_name: None,
            uris: &[],
            dns_names: &[],
            public_key: key,
            is_rsa: false,
            profile,
        };
        let leaf = Profile::Workload;
        let intermediate = Profile::Intermediate { path_len: 3 };
        let (one, two) = (
            ["spiffe://a.b/c".to_owned()],
            ["spiffe://a.b/c".to_owned(), "kuma://x/y".to_owned()],
        );
        let dns = ["a.example".to_owned(), "b.example".to_owned()];
        for (ca_key, subject_key, with_identifier) in keys
            .iter()
            .flat_map(|ca| keys.iter().map(move |key| (ca, key, true)))
            .chain([(&keys[0], &keys[1], false)])
        {
            let (issuer, certificate) = ca(ca_key, with_identifier);
            let parsed = Parsed::read(&certificate).unwrap();
            let template = Template::of(&parsed, ca_key.key_type()).unwrap();
            let public_key: &'static _ = Box::leak(Box::new(subject_key.public_key().clone()));
            let base = |profile| Contents {
                is_rsa: subject_key.key_type().is_rsa(),
                ..contents(public_key, profile)
            };
            for contents in [
                Contents {
                    uris: &one,
                    ..base(leaf)
                },
                Contents {
                    uris: &two,
                    dns_names: &dns,
                    ..base(leaf)
                },
                Contents {
                    uris: &one,
                    common_name: Some("cart.mesh ü"),
                    ..base(leaf)
                },
                Contents {
                    uris: &one,
                    not_after: begin + year * 40,
                    serial: &[0x7f; 16],
                    ..base(leaf)
                },
                Contents {
                    uris: &one,
                    common_name: Some("CA"),
                    ..base(intermediate)
                },
                Contents {
                    common_name: Some("CA"),
                    ..base(intermediate)
                },
            ] {
                let written = template
                    .sign(&contents, |message| ca_key.material().sign(message))
                    .unwrap();
                assert_eq!(
                    tbs(&written),
                    tbs(&by_rcgen(
                        &contents,
                        subject_key,
                        &issuer,
                        ca_key,
                        with_identifier
                    )),
                    "{contents:?}"
                );
                let read = Parsed::read(&written).unwrap();
                assert!(read.is_signed_by(ca_key.public_key()), "{contents:?}");
            }
        }
    }

    fn tbs(certificate: &CertificateDer<'_>) -> Vec<u8> {
        let read = x509_cert::Certificate::from_der(certificate).unwrap();
        let mut tbs = read.tbs_certificate().to_der().unwrap();
        tbs.extend(read.signature_algorithm().to_der().unwrap());
        tbs
    }

    fn by_rcgen(
        contents: &Contents<'_>,
        key: &PrivateKey,
        issuer: &CertificateParams,
        ca_key: &PrivateKey,
        with_identifier: bool,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = match contents.common_name {
            Some(name) => named(&[(DnType::CommonName, name)]),
            None => DistinguishedName::new(),
        };
        let uris = contents
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
        let dns = contents
            .dns_names
            .iter()
            .map(|dns| SanType::DnsName(dns.as_str().try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(contents.serial));
        params.not_before = contents.not_before.into();
        params.not_after = contents.not_after.into();
        match contents.profile {
            Profile::Workload => {
                params.is_ca = IsCa::ExplicitNoCa;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                if contents.is_rsa {
                    params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
                }
                params.extended_key_usages = vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ];
            }
            Profile::Intermediate { path_len } => {
                params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(path_len));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            }
        }
        let mut issuer = issuer.clone();
        if !with_identifier {
            issuer.key_identifier_method = KeyIdMethod::Sha256;
        }
        let issuer = rcgen::Issuer::from_params(&issuer, &**ca_key.material());
        let certificate = params.signed_by(&**key.material(), &issuer).unwrap();
        certificate.der().clone()
    }
}
