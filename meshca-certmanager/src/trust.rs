//! The roots that peers must hold.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshca_core::issuer::Flight;
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
    clock: Arc<dyn Clock>,
    known: Mutex<Option<Known>>,
    /// One asks, and the others wait for what it hears, be it an error.
    flight: Flight<TrustBundle>,
}

#[derive(Clone)]
struct Known {
    bundle: TrustBundle,
    at: Instant,
    /// Whether a caller has got it, or it is news.
    told: bool,
}

impl Trust {
    pub(crate) fn new(signing: Arc<Signing>, sources: SourceReader, clock: Arc<dyn Clock>) -> Self {
        Self {
            signing,
            sources,
            clock,
            known: Mutex::default(),
            flight: Flight::new(|task| drop(tokio::spawn(task))),
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, for a caller, if it is fit for that.
    fn tell(&self, fit: impl FnOnce(&Known) -> bool) -> Option<TrustBundle> {
        let mut known = self.known();
        let known = known.as_mut().filter(|known| fit(known))?;
        known.told = true;
        Some(known.bundle.clone())
    }

    pub(crate) async fn bundle(self: &Arc<Self>) -> Result<TrustBundle> {
        if self.signing.settings.conf.ca_cert.is_none() {
            return match self.tell(|_| true) {
                Some(bundle) => Ok(bundle),
                None => self.shared().await,
            };
        }
        // A root that the operator adds must be known before anything is signed under it.
        if let Some(fresh) = self.tell(|known| known.at.elapsed() < FRESH) {
            return Ok(fresh);
        }
        let error = match self.shared().await {
            Ok(bundle) => return Ok(bundle),
            Err(error) => error,
        };
        let known = self.known().as_mut().map(|known| {
            // It will do for as long again.
            known.at = Instant::now();
            known.bundle.clone()
        });
        let known = known.ok_or_else(|| error.clone())?;
        tracing::warn!(%error, "`caCert` could not be read again; what is known stays trusted");
        Ok(known)
    }

    /// Whether `caCert` can be read. Which root the issuer leads to is seen with its first certificate only.
    pub(crate) async fn check(&self) -> Result<()> {
        match &self.signing.settings.conf.ca_cert {
            Some(source) => self.read(source).await.map(drop),
            None => Ok(()),
        }
    }

    pub(crate) async fn refresh(self: &Arc<Self>) -> Result<TrustBundle> {
        // The answer that somebody could not verify has brought the root with it.
        let news = self.signing.settings.conf.ca_cert.is_none();
        match self.tell(|known| news && !known.told) {
            Some(fresh) => Ok(fresh),
            None => self.shared().await,
        }
    }

    /// A task of its own: whoever gives up takes nothing away from the others.
    async fn shared(self: &Arc<Self>) -> Result<TrustBundle> {
        let trust = Arc::clone(self);
        let fetch = || async move {
            match &trust.signing.settings.conf.ca_cert {
                Some(source) => trust.read(source).await,
                None => trust.ask().await,
            }
        };
        self.flight.join(fetch).await
    }

    async fn read(&self, source: &DataSource) -> Result<TrustBundle> {
        let domain = &self.signing.settings.trust_domain;
        let read = self.sources.read_roots(source, domain).await;
        let bundle = read.map_err(|error| error.with_context("setting", "caCert"))?;
        *self.known() = Some(Known {
            bundle: bundle.clone(),
            at: Instant::now(),
            told: true,
        });
        Ok(bundle)
    }

    /// An issuer names its CA in an answer only, so it is asked for something that nobody will use.
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
        self.signing.settled(&request, false).await;
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
