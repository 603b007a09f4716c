//! The roots that peers must hold.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use meshca_core::resource::DataSource;
use meshca_core::{
    CertificateRequest, CertificateSpec, Error, ErrorKind, KeyType, PrivateKey, Result, Retry,
    SpiffeId, TrustBundle,
};

use crate::issuer::CertManagerIssuer;
use crate::signing::{Answer, certificates};

/// The roots of `caCert`; where that is not set, the roots that issuers name in `status.ca`.
impl CertManagerIssuer {
    fn heard(&self) -> MutexGuard<'_, Option<TrustBundle>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn bundle(&self) -> Result<TrustBundle> {
        if let Some(source) = &self.signing.settings.conf.ca_cert {
            return self.read(source).await;
        }
        let heard = self.heard().clone();
        match heard {
            Some(bundle) => Ok(bundle),
            None => self.ask().await,
        }
    }

    /// Whether `caCert` can be read. Which root the issuer leads to is seen with its first certificate only.
    pub(crate) async fn can_be_read(&self) -> Result<()> {
        match &self.signing.settings.conf.ca_cert {
            Some(source) => self.read(source).await.map(drop),
            None => Ok(()),
        }
    }

    async fn read(&self, source: &DataSource) -> Result<TrustBundle> {
        let domain = &self.signing.settings.trust_domain;
        let read = self.sources.read_roots(source, domain).await;
        read.map_err(|error| error.with_context("setting", "caCert"))
    }

    /// An issuer names its CA in an answer only, so it is asked for a certificate that nobody will
    /// use.
    async fn ask(&self) -> Result<TrustBundle> {
        let domain = &self.signing.settings.trust_domain;
        let id = SpiffeId::new(format!("spiffe://{domain}/meshca/throwaway"));
        let id = id.map_err(|error| {
            Error::new(ErrorKind::Internal, "not a SPIFFE ID").with_source(error)
        })?;
        let key = PrivateKey::generate(KeyType::P256)?;
        let spec = CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600));
        let request = CertificateRequest::for_key(spec, &key, self.clock.now())?;
        let answer = self.signing.sign(&request).await;
        // Whatever came of it: it is never asked for again.
        if let Some(deleted) = self.signing.settle(request.id(), false) {
            deleted.await;
        }
        self.learn(&answer?);
        self.heard().clone().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidConfig,
                "the issuer does not say in `status.ca` which root its certificates lead to: set `caCert` to that root",
            )
            .with_retry(Retry::Backoff)
        })
    }

    /// Takes note of the root that an issuer names. `caCert` decides where it is set.
    pub(crate) fn learn(&self, answer: &Answer) {
        if self.signing.settings.conf.ca_cert.is_some() {
            return;
        }
        let domain = &self.signing.settings.trust_domain;
        let Some(named) = answer.ca.as_deref().and_then(|ca| certificates(ca).ok()) else {
            return;
        };
        for certificate in named.certificates() {
            // It may be the highest intermediate, which nobody should take for a root.
            let is_root = |one: &TrustBundle| one.roots().iter().all(|it| it.is_self_signed());
            let one = TrustBundle::new(domain.clone(), [certificate.clone()]).ok();
            if let Some(one) = one.filter(is_root) {
                let mut heard = self.heard();
                *heard = Some(match heard.take() {
                    Some(bundle) => bundle.union(&one).unwrap_or(bundle),
                    None => one,
                });
            }
        }
    }
}
