//! The roots that peers must hold.

use std::time::Duration;

use meshca_core::resource::DataSource;
use meshca_core::{
    CertificateRequest, CertificateSpec, Error, ErrorKind, KeyType, PrivateKey, Result, Retry,
    SpiffeId, TrustBundle, TrustRoot,
};

use crate::issuer::CertManagerIssuer;
use crate::signing::{Answer, certificates};

/// The roots of `caCert`; where that is not set, the roots that issuers name in `status.ca`.
impl CertManagerIssuer {
    pub(crate) async fn bundle(&self) -> Result<TrustBundle> {
        if let Some(source) = &self.signing.settings.conf.ca_cert {
            let pinned = self.read(source).await?;
            self.heard.lock().pinned = Some(pinned.clone());
            return Ok(pinned);
        }
        let domain = &self.signing.settings.trust_domain;
        let named = self.heard.lock().roots.roots(domain, self.clock.now())?;
        match named {
            Some(bundle) => Ok(bundle),
            None => self.ask().await,
        }
    }

    /// Whether `caCert` can be read. Which root the issuer leads to is seen with its first certificate only.
    pub(crate) async fn can_be_read(&self) -> Result<Option<TrustBundle>> {
        match &self.signing.settings.conf.ca_cert {
            Some(source) => self.read(source).await.map(Some),
            None => Ok(None),
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
        let now = self.clock.now();
        let request = CertificateRequest::for_key(spec, &key, now)?;
        let answer = self.signing.sign(&request, None).await;
        // Whatever came of it: it is never asked for again.
        if let Some(deleted) = self.signing.settle(request.id(), false) {
            deleted.await;
        }
        let answer = answer?;
        self.learn(&answer);
        if let Ok(chain) = answer.chain() {
            self.heard.outlived(&chain, &request, false, now);
        }
        let mut heard = self.heard.lock();
        heard.roots.roots(domain, now)?.ok_or_else(|| {
            let why = match heard.roots.is_named() {
                true => "the CA that the issuer names in `status.ca` has expired: renew the CA of the issuer",
                false => "the issuer does not say in `status.ca` which CA its certificates lead to: set `caCert` to the root",
            };
            Error::new(ErrorKind::InvalidConfig, why).with_retry(Retry::Backoff)
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
        let all = named.certificates().iter().cloned();
        let one = |der| TrustBundle::new(domain.clone(), [der]).ok();
        // It may be the highest intermediate. Whether peers have its root is known elsewhere.
        let (roots, others): (Vec<_>, Vec<_>) = all
            .filter_map(one)
            .flat_map(|one| one.roots().to_vec())
            .partition(TrustRoot::is_self_signed);
        let named = if roots.is_empty() { others } else { roots };
        let named = named.iter().map(|root| root.der().clone());
        let named = TrustBundle::new(domain.clone(), named);
        if let Some(named) = named.ok().filter(|named| !named.is_empty()) {
            self.heard.lock().roots.name(named, self.clock.now());
        }
    }
}
