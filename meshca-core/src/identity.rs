//! A workload's certificate together with its key.

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::SpiffeId;

use crate::{Error, ErrorKind, IssuedCertificate, PrivateKey, Result, SecretValue};

/// What a workload needs to prove who it is: a verified certificate and the key that it is for.
#[derive(Debug)]
pub struct Identity {
    certificate: IssuedCertificate,
    key: PrivateKey,
}

impl Identity {
    /// Joins a certificate with its key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if the certificate is for another key.
    pub fn new(certificate: IssuedCertificate, key: PrivateKey) -> Result<Self> {
        if certificate.public_key() != key.public_key() {
            let message = "the certificate is for another key";
            return Err(Error::new(ErrorKind::InvalidRequest, message)
                .with_context("spiffe id", certificate.spiffe_id()));
        }
        Ok(Self { certificate, key })
    }

    /// The verified certificate.
    pub fn certificate(&self) -> &IssuedCertificate {
        &self.certificate
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Who it is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.certificate.spiffe_id()
    }

    /// Leaf and intermediates as PEM, for a file named `cert.pem`.
    pub fn chain_pem(&self) -> String {
        self.certificate.chain_pem()
    }

    /// The key as a PEM `PRIVATE KEY` block, in memory that is wiped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if it cannot be encoded.
    pub fn expose_key_pem(&self) -> Result<SecretValue> {
        self.key.expose_pem()
    }

    /// What rustls makes its `CertifiedKey` of: chain and key in its own vocabulary.
    ///
    /// The key leaves wiped memory here: rustls keeps what it parses from it. `PrivateKeyDer` can be
    /// zeroized when done, but does not do it on its own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if the key cannot be encoded.
    pub fn to_rustls(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let key = PrivatePkcs8KeyDer::from(self.key.expose_pkcs8()?.expose().to_vec());
        Ok((self.certificate.chain().to_vec(), key.into()))
    }

    /// The same as the `spiffe` crate's X.509-SVID, which wipes its copy of the key as well.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if that crate refuses what we verified.
    #[cfg(feature = "svid")]
    pub fn to_x509_svid(&self) -> Result<spiffe::X509Svid> {
        let chain = self.certificate.chain().iter();
        let chain = chain.map(AsRef::as_ref).collect::<Vec<&[u8]>>().concat();
        let svid = spiffe::X509Svid::parse_from_der(&chain, self.key.expose_pkcs8()?.expose());
        svid.map_err(|error| {
            Error::new(ErrorKind::Internal, "the spiffe crate refuses the SVID").with_source(error)
        })
    }
}
