//! The roots that peers must hold.

use std::sync::{Arc, Mutex, PoisonError};

use meshca_core::secret::SourceReader;
use meshca_core::{
    CertificateRequest, CertificateSpec, Clock, Error, ErrorKind, KeyType, PrivateKey, Result,
    Retry, SpiffeId, TrustBundle,
};
use std::time::Duration;

use crate::issuer::{Answer, Inner, certificates};

/// The roots of `caCert`; where that is not set, what issuers say in `status.ca`, if it is a root.
pub(crate) struct Trust {
    inner: Arc<Inner>,
    sources: SourceReader,
    known: Mutex<Option<TrustBundle>>,
}

impl Trust {
    pub(crate) fn new(inner: Arc<Inner>, sources: SourceReader) -> Self {
        Self {
            inner,
            sources,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> Option<TrustBundle> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    pub(crate) async fn bundle(&self, clock: &dyn Clock) -> Result<TrustBundle> {
        match self.known() {
            Some(bundle) => Ok(bundle),
            None => self.refresh(clock).await,
        }
    }

    pub(crate) async fn refresh(&self, clock: &dyn Clock) -> Result<TrustBundle> {
        let domain = self.inner.settings.trust_domain.clone();
        if let Some(source) = &self.inner.settings.conf.ca_cert {
            let pem = self.sources.read(source).await;
            let pem = pem.map_err(|error| error.with_context("setting", "caCert"))?;
            let text = pem.expose_str().ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    "`caCert` is no text: it must be PEM",
                )
            })?;
            let bundle = TrustBundle::from_pem(domain, text)?;
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(bundle.clone());
            return Ok(bundle);
        }
        // An issuer names its CA in an answer only, so it is asked for something that nobody will use.
        let id = SpiffeId::new(format!("spiffe://{domain}/meshca/throwaway"));
        let id = id.map_err(|error| {
            Error::new(ErrorKind::Internal, "not a SPIFFE ID").with_source(error)
        })?;
        let key = PrivateKey::generate(KeyType::P256)?;
        let spec = CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600));
        let request = CertificateRequest::for_key(spec, &key, clock.now())?;
        let answer = self.inner.sign(&request).await;
        self.inner.settled(&request).await;
        self.learn(&answer?);
        self.known().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidConfig,
                "the issuer does not say in `status.ca` which root its certificates lead to: set `caCert` to that root",
            )
            .with_retry(Retry::Backoff)
        })
    }

    /// Takes note of the root that an issuer names. `caCert` decides where it is set.
    pub(crate) fn learn(&self, answer: &Answer) {
        if self.inner.settings.conf.ca_cert.is_some() {
            return;
        }
        let domain = &self.inner.settings.trust_domain;
        let Some(named) = answer.ca.as_deref().and_then(|ca| certificates(ca).ok()) else {
            return;
        };
        for certificate in named.certificates() {
            let Ok(one) = TrustBundle::new(domain.clone(), [certificate.clone()]) else {
                continue;
            };
            // It may be the highest intermediate, which nobody should take for a root.
            if !one.roots().iter().all(|root| root.is_self_signed()) {
                continue;
            }
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let all = match known.take() {
                Some(before) => before.union(&one).unwrap_or(before),
                None => one,
            };
            *known = Some(all);
        }
    }
}
