//! What is known of the CA – its key, its state, its end, its root – and for how long that is good.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_sdk_acmpca::Client;
use aws_sdk_acmpca::types::{CertificateAuthorityStatus, CertificateAuthorityUsageMode};
use meshca_core::issuer::{Flight, NamedRoots};
use meshca_core::resource::DataSource;
use meshca_core::secret::SourceReader;
use meshca_core::{Clock, Error, ErrorKind, IssuedCertificate, Result, SignedChain, TrustBundle};
use tokio::time::{Instant, timeout};

use crate::error::{from_sdk, present};
use crate::facts::{Facts, chain, not_active, signing_algorithm};
use crate::settings::AcmSettings;

/// How long `caCert` is not read again.
const CA_CERT_FRESH: Duration = Duration::from_secs(30);
/// How long a caller waits for AWS to say anew what is known already; less than what callers have for a trust bundle.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long AWS is left alone, and what is known is used, after it did not answer.
const PUT_OFF: Duration = Duration::from_secs(30);

/// What is known of the CA, and how old that is.
pub(crate) struct Authority {
    pub(crate) settings: AcmSettings,
    pub(crate) client: Client,
    sources: SourceReader,
    pub(crate) clock: Arc<dyn Clock>,
    known: Mutex<Known>,
    pinned: Mutex<Option<(TrustBundle, Instant)>>,
    flight: Flight<Arc<Facts>>,
}

/// Ages are reckoned from when AWS was asked, and a failure makes nothing younger.
#[derive(Default)]
struct Known {
    facts: Option<Arc<Facts>>,
    /// When something that was tried did not fit the facts.
    doubted: Option<Instant>,
    /// AWS did not answer, and is not asked before.
    not_before: Option<Instant>,
    roots: NamedRoots,
}

impl Known {
    /// The facts, and whether AWS should be asked again.
    fn facts(&self, refresh: Duration) -> Option<(Arc<Facts>, bool)> {
        let facts = self.facts.as_ref()?;
        let put_off = self.not_before.is_some_and(|then| Instant::now() < then);
        let doubtful = self.doubted.is_some_and(|when| when >= facts.asked);
        let old = facts.asked.elapsed() >= refresh;
        Some((Arc::clone(facts), !put_off && (doubtful || old)))
    }

    fn put_off(&mut self, refresh: Duration) {
        self.not_before = Instant::now().checked_add(PUT_OFF.min(refresh));
    }

    /// Takes what AWS said, and the roots that the chain has, if it has one.
    fn learn(&mut self, facts: Arc<Facts>, roots: Option<TrustBundle>, now: SystemTime) {
        if let Some(roots) = roots {
            self.roots.name(roots, now);
        }
        self.facts = Some(facts);
        self.not_before = None;
    }
}

impl Authority {
    pub(crate) fn new(
        settings: AcmSettings,
        client: Client,
        sources: SourceReader,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            client,
            sources,
            clock,
            known: Mutex::default(),
            pinned: Mutex::default(),
            flight: Flight::new(|task| drop(tokio::spawn(task))),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known; asked for when that is nothing, old or doubtful. An outage of AWS takes nothing away, and holds nobody up.
    pub(crate) async fn facts(self: &Arc<Self>) -> Result<Arc<Facts>> {
        let known = self.known().facts(self.settings.ca_refresh);
        match known {
            None => self.refresh().await,
            Some((facts, false)) => Ok(facts),
            Some((facts, true)) => Ok(self.renewed().await.unwrap_or(facts)),
        }
    }

    /// Asks AWS, and does not wait long where something is known. The call continues, and while
    /// AWS is put off no other caller waits for it.
    async fn renewed(self: &Arc<Self>) -> Result<Arc<Facts>> {
        if self.known().facts.is_none() {
            return self.refresh().await;
        }
        timeout(PATIENCE, self.refresh()).await.unwrap_or_else(|_| {
            self.known().put_off(self.settings.ca_refresh);
            Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "AWS did not describe the CA within {} s; what is known of it is used",
                    PATIENCE.as_secs()
                ),
            ))
        })
    }

    /// Has it looked at again by the next caller.
    pub(crate) fn doubt(&self) {
        self.known().doubted = Some(Instant::now());
    }

    /// Asks AWS, once for all who want to know meanwhile.
    pub(crate) async fn refresh(self: &Arc<Self>) -> Result<Arc<Facts>> {
        let authority = Arc::clone(self);
        self.flight
            .join(|| async move { authority.ask_and_learn().await })
            .await
    }

    async fn ask_and_learn(&self) -> Result<Arc<Facts>> {
        match self.ask().await {
            Ok(facts) => {
                let facts = Arc::new(facts);
                let roots = facts.roots(&self.settings.trust_domain).ok();
                self.known()
                    .learn(Arc::clone(&facts), roots, self.clock.now());
                Ok(facts)
            }
            Err(error) => {
                let mut known = self.known();
                if known.facts.is_some() {
                    tracing::warn!(ca = %self.settings.arn, %error, "the CA could not be looked at again; what is known of it is used");
                    known.put_off(self.settings.ca_refresh);
                }
                Err(error)
            }
        }
    }

    async fn ask(&self) -> Result<Facts> {
        use CertificateAuthorityStatus::{Active, Disabled, Expired};
        let asked = Instant::now();
        let arn = &self.settings.arn;
        let described = self
            .client
            .describe_certificate_authority()
            .certificate_authority_arn(arn.as_str())
            .send()
            .await
            .map_err(|error| from_sdk(error, "DescribeCertificateAuthority", arn))?;
        let ca = present(described.certificate_authority(), "CA")?;
        let configuration = ca.certificate_authority_configuration();
        let configuration = present(configuration, "configuration of the CA")?;
        let status = ca.status().cloned().unwrap_or(Active);
        let chain = match status {
            Active | Disabled | Expired => self.ask_for_chain().await?,
            // AWS does not give it then. What was signed by a CA that is deleted since is still in use.
            _ => match self.known().facts.as_ref() {
                Some(facts) => facts.chain.clone(),
                None => return Err(not_active(&status)),
            },
        };
        Ok(Facts {
            status,
            signing_algorithm: signing_algorithm(configuration.key_algorithm())?,
            short_lived: ca.usage_mode()
                == Some(&CertificateAuthorityUsageMode::ShortLivedCertificate),
            not_after: ca
                .not_after()
                .and_then(|end| SystemTime::try_from(*end).ok()),
            chain,
            asked,
        })
    }

    async fn ask_for_chain(&self) -> Result<SignedChain> {
        let arn = &self.settings.arn;
        let answer = self
            .client
            .get_certificate_authority_certificate()
            .certificate_authority_arn(arn.as_str())
            .send()
            .await
            .map_err(|error| from_sdk(error, "GetCertificateAuthorityCertificate", arn))?;
        let certificate = present(answer.certificate(), "certificate of the CA")?;
        chain(certificate, answer.certificate_chain())
    }

    /// The facts of a CA whose certificates will be accepted. Before it is refused, it is looked at again: it may have been enabled,
    /// or renewed, since.
    pub(crate) async fn able(self: &Arc<Self>) -> Result<Arc<Facts>> {
        let called = Instant::now();
        let pinned = match &self.settings.conf.ca_cert {
            Some(source) => Some(self.pinned(source, false).await?),
            None => None,
        };
        let able = |facts: &Facts| {
            facts.require_active()?;
            pinned
                .as_ref()
                .map_or(Ok(()), |pinned| facts.require_below(pinned))
        };
        let facts = self.facts().await?;
        match able(&facts) {
            Err(_) if facts.asked < called => {
                self.doubt();
                let facts = self.facts().await?;
                able(&facts).map(|()| facts)
            }
            outcome => outcome.map(|()| facts),
        }
    }

    /// How often the roots are asked for: reading `caCert` costs AWS nothing.
    pub(crate) fn trust_interval(&self) -> Duration {
        match self.settings.conf.ca_cert {
            Some(_) => CA_CERT_FRESH,
            None => self.settings.ca_refresh,
        }
    }

    /// The roots of `caCert`, which decides; else those that the CA leads to, and former ones under
    /// which something may live.
    pub(crate) async fn bundle(self: &Arc<Self>) -> Result<TrustBundle> {
        match &self.settings.conf.ca_cert {
            Some(source) => self.pinned(source, true).await,
            None => self.roots(&*self.renewed().await?),
        }
    }

    /// Reads the roots of `caCert`; `None` where it is not set.
    pub(crate) async fn pinned_roots(&self) -> Result<Option<TrustBundle>> {
        match &self.settings.conf.ca_cert {
            Some(source) => self.pinned(source, true).await.map(Some),
            None => Ok(None),
        }
    }

    /// Notes a certificate that was accepted.
    pub(crate) fn accepted(&self, certificate: &IssuedCertificate) {
        self.known().roots.accept(certificate);
    }

    fn roots(&self, facts: &Facts) -> Result<TrustBundle> {
        let domain = &self.settings.trust_domain;
        match self.known().roots.roots(domain, self.clock.now())? {
            Some(roots) => Ok(roots),
            None => facts.roots(domain),
        }
    }

    async fn pinned(&self, source: &DataSource, again: bool) -> Result<TrustBundle> {
        let lock = || self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().clone();
        if let Some((bundle, at)) = &known
            && !again
            && at.elapsed() < CA_CERT_FRESH
        {
            return Ok(bundle.clone());
        }
        let read = self
            .sources
            .read_roots(source, &self.settings.trust_domain)
            .await
            .map_err(|error| error.with_context("setting", "caCert"));
        let bundle = match (read, known) {
            (Ok(bundle), _) => bundle,
            (Err(error), Some((known, _))) if !again => {
                tracing::warn!(%error, "`caCert` could not be read again; what is known stays trusted");
                known
            }
            (Err(error), _) => return Err(error),
        };
        *lock() = Some((bundle.clone(), Instant::now()));
        Ok(bundle)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aws_sdk_acmpca::types::SigningAlgorithm;
    use meshca_core::{
        CertificateRequest, CertificateSpec, KeyType, PrivateKey, SpiffeId, TrustDomain,
    };
    use meshca_testkit::pki::{TestCa, TestCaOptions};
    use tokio::time::advance;

    use super::*;

    const REFRESH: Duration = Duration::from_secs(300);

    fn facts(ca: &TestCa) -> Arc<Facts> {
        Arc::new(Facts {
            status: CertificateAuthorityStatus::Active,
            signing_algorithm: SigningAlgorithm::Sha256Withecdsa,
            short_lived: false,
            not_after: None,
            chain: SignedChain::new(ca.chain().iter().cloned()),
            asked: Instant::now(),
        })
    }

    fn root(name: &str, now: SystemTime, lives: Duration) -> TestCa {
        let options = TestCaOptions::new(name, now).with_validity(now, now + lives);
        TestCa::root_with(options).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_puts_off_and_makes_nothing_young() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let facts = facts(&root("one", now, REFRESH));
        let mut known = Known::default();
        let due = |known: &Known| known.facts(REFRESH).is_some_and(|(_, due)| due);
        assert!(known.facts(REFRESH).is_none());
        known.learn(Arc::clone(&facts), None, now);
        assert!(!due(&known));
        advance(REFRESH).await;
        assert!(due(&known));
        known.put_off(REFRESH);
        assert!(!due(&known));
        // Not after as long as a success would have been good for.
        advance(PUT_OFF).await;
        assert!(due(&known));
        // Nor does a doubt hurry AWS when it does not answer.
        known.put_off(REFRESH);
        known.doubted = Some(Instant::now());
        assert!(!due(&known));
        advance(PUT_OFF).await;
        assert!(due(&known));

        known.learn(self::facts(&root("two", now, REFRESH)), None, now);
        assert!(!due(&known));
        advance(Duration::from_millis(1)).await;
        known.doubted = Some(Instant::now());
        assert!(due(&known));
    }

    /// A certificate of the CA, for an hour from then on.
    fn accepted(ca: &TestCa, domain: &TrustDomain, now: SystemTime) -> IssuedCertificate {
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        let id = SpiffeId::new(format!("spiffe://{domain}/cart")).unwrap();
        let spec = CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600));
        let request = CertificateRequest::for_key(spec, &key, now).unwrap();
        let roots = facts(ca).roots(domain).unwrap();
        let chain = SignedChain::new([ca.sign(&request, now).unwrap()]);
        chain.verify(&request, &roots, now).unwrap()
    }

    #[tokio::test]
    async fn a_chain_that_was_imported_without_its_root_names_its_cas() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let domain = TrustDomain::new("default").unwrap();
        let root = TestCa::root("root", now).unwrap();
        let ca = root.intermediate("ca").unwrap();
        let of = |chain: &[&TestCa]| {
            let chain = chain.iter().map(|ca| ca.certificate().clone());
            let mut facts = Arc::into_inner(facts(&root)).unwrap();
            facts.chain = SignedChain::new(chain);
            facts.roots(&domain).unwrap()
        };
        assert_eq!(of(&[&ca, &root]), root.bundle(domain.clone()).unwrap());
        let bare = of(&[&ca]);
        assert!(bare.contains(ca.certificate()));
        assert_eq!(bare.ends().count(), 0);
    }

    #[tokio::test]
    async fn a_former_root_goes_when_nothing_lives_under_it() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let domain = TrustDomain::new("default").unwrap();
        let mut known = Known::default();
        let (one, two, three, four) = (
            root("one", now, 99 * hour),
            root("two", now, 99 * hour),
            root("three", now, 99 * hour),
            root("four", now, 5 * hour),
        );
        for (ca, used, at, expected) in [
            (Some(&one), true, now, vec![&one]),
            (Some(&two), false, now, vec![&two, &one]),
            // A chain that was imported without its root.
            (None, false, now + minute, vec![&two, &one]),
            // Its certificate lives, and two was named a moment ago.
            (
                Some(&three),
                false,
                now + 2 * minute,
                vec![&three, &one, &two],
            ),
            (None, false, now + 10 * minute, vec![&three, &one]),
            (None, false, now + 2 * hour, vec![&three]),
            (Some(&four), true, now + 4 * hour, vec![&four, &three]),
            // One that has expired.
            (Some(&one), false, now + 5 * hour, vec![&one]),
        ] {
            let roots = ca.map(|ca| facts(ca).roots(&domain).unwrap());
            known.learn(facts(ca.unwrap_or(&one)), roots, at);
            if let Some(ca) = ca.filter(|_| used) {
                known.roots.accept(&accepted(ca, &domain, at));
            }
            let roots = known.roots.roots(&domain, at).unwrap().unwrap();
            let found: BTreeSet<_> = roots.roots().iter().map(|root| root.subject()).collect();
            let expected: BTreeSet<_> = expected
                .iter()
                .map(|ca| facts(ca).roots(&domain).unwrap().roots()[0].subject())
                .collect();
            assert_eq!(found, expected);
        }
    }
}
