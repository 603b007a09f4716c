//! The roots that peers must hold.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshca_core::resource::DataSource;
use meshca_core::secret::SourceReader;
use meshca_core::{
    CertificateRequest, CertificateSpec, Clock, Error, ErrorKind, KeyType, PrivateKey, Result,
    Retry, SpiffeId, TrustBundle,
};
use tokio::time::Instant;

use crate::signing::{Answer, Signing, certificates};

/// How long `caCert` is not read again.
const FRESH: Duration = Duration::from_secs(30);

/// The roots of `caCert`; where that is not set, what issuers say in `status.ca`, if it is a root.
pub(crate) struct Trust {
    signing: Arc<Signing>,
    sources: SourceReader,
    known: Mutex<Option<Known>>,
    /// One asks, and the others wait for what it hears.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Known {
    bundle: TrustBundle,
    at: Instant,
    /// Whether a caller has got it, or it is news.
    told: bool,
}

impl Trust {
    pub(crate) fn new(signing: Arc<Signing>, sources: SourceReader) -> Self {
        Self {
            signing,
            sources,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, bundle: TrustBundle, told: bool) {
        *self.known() = Some(Known {
            bundle,
            at: Instant::now(),
            told,
        });
    }

    /// What is known, for a caller, if it is fit for that.
    fn tell(&self, fit: impl FnOnce(&Known) -> bool) -> Option<TrustBundle> {
        let mut known = self.known();
        let known = known.as_mut().filter(|known| fit(known))?;
        known.told = true;
        Some(known.bundle.clone())
    }

    pub(crate) async fn bundle(&self, clock: &dyn Clock) -> Result<TrustBundle> {
        let Some(source) = &self.signing.settings.conf.ca_cert else {
            return match self.tell(|_| true) {
                Some(bundle) => Ok(bundle),
                None => self.refresh(clock).await,
            };
        };
        // A root that the operator adds must be known before anything is signed under it.
        if let Some(fresh) = self.tell(|known| known.at.elapsed() < FRESH) {
            return Ok(fresh);
        }
        match (self.read(source).await, self.tell(|_| true)) {
            (Err(error), Some(known)) => {
                tracing::warn!(%error, "`caCert` could not be read again; what is known stays trusted");
                self.set(known.clone(), true);
                Ok(known)
            }
            (read, _) => read,
        }
    }

    /// Whether `caCert` can be read. Which root the issuer leads to is seen with its first certificate only.
    pub(crate) async fn check(&self) -> Result<()> {
        match &self.signing.settings.conf.ca_cert {
            Some(source) => self.read(source).await.map(drop),
            None => Ok(()),
        }
    }

    pub(crate) async fn refresh(&self, clock: &dyn Clock) -> Result<TrustBundle> {
        if let Some(source) = &self.signing.settings.conf.ca_cert {
            return self.read(source).await;
        }
        let called = Instant::now();
        let _turn = self.asking.lock().await;
        // Another caller has asked; or the answer that somebody could not verify has brought the root with it.
        if let Some(fresh) = self.tell(|known| !known.told || known.at >= called) {
            return Ok(fresh);
        }
        self.ask(clock).await
    }

    async fn read(&self, source: &DataSource) -> Result<TrustBundle> {
        let domain = &self.signing.settings.trust_domain;
        let read = self.sources.read_roots(source, domain).await;
        let bundle = read.map_err(|error| error.with_context("setting", "caCert"))?;
        self.set(bundle.clone(), true);
        Ok(bundle)
    }

    /// An issuer names its CA in an answer only, so it is asked for something that nobody will use.
    async fn ask(&self, clock: &dyn Clock) -> Result<TrustBundle> {
        let domain = &self.signing.settings.trust_domain;
        let id = SpiffeId::new(format!("spiffe://{domain}/meshca/throwaway"));
        let id = id.map_err(|error| {
            Error::new(ErrorKind::Internal, "not a SPIFFE ID").with_source(error)
        })?;
        let key = PrivateKey::generate(KeyType::P256)?;
        let spec = CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600));
        let request = CertificateRequest::for_key(spec, &key, clock.now())?;
        let answer = self.signing.sign(&request).await;
        self.signing.settled(&request).await;
        self.learn(&answer?);
        self.tell(|_| true).ok_or_else(|| {
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
            let Ok(one) = TrustBundle::new(domain.clone(), [certificate.clone()]) else {
                continue;
            };
            // It may be the highest intermediate, which nobody should take for a root.
            if !one.roots().iter().all(|root| root.is_self_signed()) {
                continue;
            }
            let mut known = self.known();
            let (all, told) = match known.take() {
                Some(Known { bundle, told, .. }) => {
                    let all = bundle.union(&one).unwrap_or_else(|_| bundle.clone());
                    let told = told && all == bundle;
                    (all, told)
                }
                None => (one, false),
            };
            *known = Some(Known {
                bundle: all,
                at: Instant::now(),
                told,
            });
        }
    }
}
