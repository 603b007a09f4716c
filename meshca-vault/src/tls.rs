//! How the server is trusted, and how we show who we are.

use std::sync::Arc;

use meshca_core::{Error, ErrorKind, Result, SecretValue};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
    WantsVerifier,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::error::misconfigured;

/// What the settings name, as it is now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Material {
    pub(crate) ca_cert: Option<SecretValue>,
    pub(crate) skip_verify: bool,
    /// The certificate and its key.
    pub(crate) client: Option<(SecretValue, SecretValue)>,
}

impl Material {
    /// Trusts nobody: for a connection without TLS, which needs no CAs in memory.
    pub(crate) fn no_config() -> Result<ClientConfig> {
        let trusting = builder()?.with_root_certificates(RootCertStore::empty());
        Ok(trusting.with_no_client_auth())
    }

    pub(crate) fn config(&self) -> Result<ClientConfig> {
        let builder = builder()?;
        let builder = match &self.ca_cert {
            _ if self.skip_verify => {
                let anyone = NoVerification(Arc::clone(builder.crypto_provider()));
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(anyone))
            }
            Some(roots) => builder.with_root_certificates(root_store(roots)?),
            None => builder.with_platform_verifier().map_err(|error| {
                misconfigured("the CAs of this system cannot be read: set `tls.caCert`")
                    .with_source(error)
            })?,
        };
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, "auth.tls.clientCert")?;
                let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| {
                    misconfigured("`auth.tls.clientKey` holds no private key in PEM")
                })?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    misconfigured(
                        "`auth.tls.clientKey` is not the key of `auth.tls.clientCert`, or of no known type",
                    )
                    .with_source(error)
                })?
            }
        };
        // A resumed session would keep a client certificate alive that was replaced.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    builder
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, "TLS cannot be set up").with_source(error))
}

fn root_store(pem: &SecretValue) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, "tls.caCert")? {
        roots.add(certificate).map_err(|error| {
            misconfigured("`tls.caCert` holds a certificate that cannot be a root")
                .with_source(error)
        })?;
    }
    Ok(roots)
}

fn certificates(pem: &SecretValue, setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let broken = |what: &str| {
        misconfigured(format!(
            "`{setting}` {what}: it must be one or more certificates in PEM"
        ))
    };
    let certificates = CertificateDer::pem_slice_iter(pem.expose())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| broken("is not sound PEM"))?;
    match certificates.is_empty() {
        true => Err(broken("holds no certificate")),
        false => Ok(certificates),
    }
}

/// `tls.skipVerify`: anyone may be the server. Only that the handshake is its own is proven.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
