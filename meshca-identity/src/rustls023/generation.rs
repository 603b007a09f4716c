//! Credentials as rustls uses them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use meshca_core::{Error, ErrorKind, Result, SpiffeId};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::{Credentials, TrustBundles};

/// One generation of [`Credentials`], read once.
#[derive(derive_more::Debug)]
#[debug("Generation({spiffe_id})")]
pub(super) struct Generation {
    pub(super) spiffe_id: SpiffeId,
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
            trust: Arc::clone(&credentials.trust),
            key: Arc::new(key),
            spiffe_id,
        })
    }
}

/// Shows the certificate of the current generation, to whomever asks.
#[derive(derive_more::Debug)]
pub(super) struct Resolver(#[debug("{}", _0.load().spiffe_id)] pub(super) Arc<ArcSwap<Generation>>);

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
