//! Credentials as rustls uses them.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use meshca_core::{Error, ErrorKind, Result, SpiffeId, TrustDomain};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::{Credentials, TrustBundles};

/// One generation of [`Credentials`], read once.
pub(super) struct Generation {
    pub(super) spiffe_id: SpiffeId,
    pub(super) trust_domain: TrustDomain,
    pub(super) trust: Arc<TrustBundles>,
    key: Arc<CertifiedKey>,
}

impl Generation {
    pub(super) fn new(credentials: &Credentials, provider: &CryptoProvider) -> Result<Self> {
        let spiffe_id = credentials.identity.spiffe_id().clone();
        let (chain, key) = credentials.identity.to_rustls()?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
            Error::new(
                ErrorKind::Unsupported,
                "the crypto provider cannot use the key of the identity",
            )
            .with_context("spiffe id", &spiffe_id)
            .with_source(error)
        })?;
        Ok(Self {
            trust_domain: spiffe_id.trust_domain().clone(),
            trust: Arc::clone(&credentials.trust),
            key: Arc::new(key),
            spiffe_id,
        })
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("spiffe_id", &self.spiffe_id.to_string())
            .finish_non_exhaustive()
    }
}

/// Shows the certificate of the current generation, to whomever asks.
pub(super) struct Resolver(pub(super) Arc<ArcSwap<Generation>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0.load().spiffe_id.to_string();
        f.debug_tuple("Resolver").field(&id).finish()
    }
}
