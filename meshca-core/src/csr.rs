//! Certificate signing requests (PKCS#10, RFC 2986).

use std::fmt::Display;

use der::asn1::ObjectIdentifier;
use der::oid::AssociatedOid;
use der::{Decode, Encode};
use rustls_pki_types::{CertificateSigningRequestDer, SubjectPublicKeyInfoDer};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};
use x509_cert::request::{CertReq, ExtensionReq};

use crate::{Error, ErrorKind, Result, pem, x509};

/// A certificate signing request whose self-signature was verified.
///
/// It proves that whoever made it holds the private key, and nothing else: the names in it are
/// wishes. Which identity a certificate gets is said by the
/// [`CertificateRequest`](crate::CertificateRequest), never read from here.
#[derive(Clone, PartialEq, Eq, derive_more::Debug)]
#[debug("Csr(key {})", x509::fingerprint(public_key))]
pub struct Csr {
    der: CertificateSigningRequestDer<'static>,
    public_key: SubjectPublicKeyInfoDer<'static>,
}

impl Csr {
    /// Reads a CSR and verifies its self-signature.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if it is malformed, its signature is wrong, or its key is of a
    /// type or size that cannot be verified (RSA below 2048 bits among them).
    pub fn from_der(der: impl Into<Vec<u8>>) -> Result<Self> {
        let der = der.into();
        let refused = |why: &dyn Display| {
            let message = format!("the CSR is refused: {why}");
            Error::new(ErrorKind::InvalidRequest, message)
        };
        let malformed = |error| refused(&format_args!("it is malformed: {error}"));
        let request = CertReq::from_der(&der).map_err(malformed)?;
        let public_key = request.info.public_key.to_der().map_err(malformed)?.into();
        let message = request.info.to_der().map_err(malformed)?;
        let algorithm = request.algorithm.to_der().map_err(malformed)?;
        let signature = request.signature.as_bytes().unwrap_or_default();
        x509::verify(&public_key, &algorithm, &message, signature).map_err(|why| refused(&why))?;
        Ok(Self {
            der: der.into(),
            public_key,
        })
    }

    /// Reads a CSR from PEM: one `CERTIFICATE REQUEST` block and nothing else.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`], with the line where the PEM is at fault.
    pub fn from_pem(text: &str) -> Result<Self> {
        let der = pem::csr(text).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, format!("not a PEM CSR: {error}"))
        })?;
        Self::from_der(der)
    }

    /// What we made ourselves needs no second look.
    pub(crate) fn made(
        der: CertificateSigningRequestDer<'static>,
        public_key: SubjectPublicKeyInfoDer<'static>,
    ) -> Self {
        Self { der, public_key }
    }

    /// The DER form.
    pub fn der(&self) -> &CertificateSigningRequestDer<'static> {
        &self.der
    }

    /// The PEM form, as CAs want it.
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE REQUEST", &self.der)
    }

    /// The common names, URIs and DNS names that it asks for; `None` if it asks for anything else or cannot be read.
    pub(crate) fn names(&self) -> Option<(Vec<String>, Vec<String>, Vec<String>)> {
        const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
        let request = CertReq::from_der(&self.der).ok()?;
        let mut common_names = Vec::new();
        for attribute in request.info.subject.iter() {
            if attribute.oid != COMMON_NAME {
                return None;
            }
            let text = attribute.value.decode_as::<DirectoryString>().ok()?;
            common_names.push(text.value().into_owned());
        }
        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        let attributes = request.info.attributes.iter();
        let requests = attributes.filter(|one| one.oid == ExtensionReq::OID);
        for value in requests.flat_map(|one| one.values.iter()) {
            let extensions = value.decode_as::<ExtensionReq>().ok()?.0;
            let named = extensions.iter();
            for extension in named.filter(|one| one.extn_id == SubjectAltName::OID) {
                let names = SubjectAltName::from_der(extension.extn_value.as_bytes()).ok()?;
                for name in names.0 {
                    match name {
                        GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.to_string()),
                        GeneralName::DnsName(name) => dns_names.push(name.to_string()),
                        _ => return None,
                    }
                }
            }
        }
        Some((common_names, uris, dns_names))
    }

    /// The public key that it proves possession of.
    pub fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        &self.public_key
    }
}
