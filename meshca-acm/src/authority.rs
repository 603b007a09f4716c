//! What the CA is: its key, its state, its end, and the root that it leads to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_sdk_acmpca::Client;
use aws_sdk_acmpca::types::{
    CertificateAuthorityStatus, CertificateAuthorityUsageMode, KeyAlgorithm, SigningAlgorithm,
};
use meshca_core::resource::DataSource;
use meshca_core::secret::SourceReader;
use meshca_core::{Error, ErrorKind, Result, Retry, SignedChain, TrustBundle};
use tokio::time::Instant;

use crate::error::{from_sdk, present};
use crate::settings::AcmSettings;

/// How long `caCert` is not read again.
const CA_CERT_FRESH: Duration = Duration::from_secs(30);

/// What is known of the CA, and how old that is.
pub(crate) struct Authority {
    settings: AcmSettings,
    client: Client,
    sources: SourceReader,
    known: Mutex<Option<Known>>,
    pinned: Mutex<Option<(TrustBundle, Instant)>>,
    /// One asks, and the others wait for what it hears.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Known {
    facts: Arc<Facts>,
    at: Instant,
    /// Something that was tried did not fit.
    doubtful: bool,
}

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) signing_algorithm: SigningAlgorithm,
    pub(crate) short_lived: bool,
    /// When the CA's own certificate ends.
    pub(crate) not_after: Option<SystemTime>,
    /// The CA's certificate and those above it.
    pub(crate) chain: SignedChain,
}

impl Authority {
    pub(crate) fn new(settings: AcmSettings, client: Client, sources: SourceReader) -> Self {
        Self {
            settings,
            client,
            sources,
            known: Mutex::default(),
            pinned: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, facts: Arc<Facts>) {
        *self.known() = Some(Known {
            facts,
            at: Instant::now(),
            doubtful: false,
        });
    }

    /// What is known; asked for when that is nothing, old or doubtful. An outage of AWS takes nothing away.
    pub(crate) async fn facts(&self) -> Result<Arc<Facts>> {
        let known = self.known().clone();
        if let Some(known) = &known
            && !known.doubtful
            && known.at.elapsed() < self.settings.ca_refresh
        {
            return Ok(Arc::clone(&known.facts));
        }
        match (self.refresh().await, known) {
            (Err(error), Some(known)) => {
                tracing::warn!(ca = %self.settings.arn, %error, "the CA could not be looked at again; what is known of it is used");
                // Not again with every call.
                self.set(Arc::clone(&known.facts));
                Ok(known.facts)
            }
            (asked, _) => asked,
        }
    }

    /// Has it looked at again by the next caller.
    pub(crate) fn doubt(&self) {
        if let Some(known) = &mut *self.known() {
            known.doubtful = true;
        }
    }

    pub(crate) async fn refresh(&self) -> Result<Arc<Facts>> {
        let called = Instant::now();
        let _turn = self.asking.lock().await;
        // Another caller has asked while we waited for our turn.
        if let Some(known) = self.known().as_ref().filter(|known| known.at >= called) {
            return Ok(Arc::clone(&known.facts));
        }
        let facts = Arc::new(self.ask().await?);
        self.set(Arc::clone(&facts));
        Ok(facts)
    }

    async fn ask(&self) -> Result<Facts> {
        let arn = &self.settings.arn;
        let described = self
            .client
            .describe_certificate_authority()
            .certificate_authority_arn(arn.as_str())
            .send()
            .await
            .map_err(|error| from_sdk(error, "DescribeCertificateAuthority", arn))?;
        let ca = present(described.certificate_authority(), "CA")?;
        if let Some(status) = ca.status()
            && *status != CertificateAuthorityStatus::Active
        {
            return Err(not_active(status));
        }
        let configuration = ca.certificate_authority_configuration();
        let configuration = present(configuration, "configuration of the CA")?;
        let answer = self
            .client
            .get_certificate_authority_certificate()
            .certificate_authority_arn(arn.as_str())
            .send()
            .await
            .map_err(|error| from_sdk(error, "GetCertificateAuthorityCertificate", arn))?;
        let certificate = present(answer.certificate(), "certificate of the CA")?;
        Ok(Facts {
            signing_algorithm: signing_algorithm(configuration.key_algorithm())?,
            short_lived: ca.usage_mode()
                == Some(&CertificateAuthorityUsageMode::ShortLivedCertificate),
            not_after: ca
                .not_after()
                .and_then(|end| SystemTime::try_from(*end).ok()),
            chain: chain(certificate, answer.certificate_chain())?,
        })
    }

    /// The roots of `caCert`, which decides; else the root that the CA leads to.
    pub(crate) async fn bundle(&self, again: bool) -> Result<TrustBundle> {
        match &self.settings.conf.ca_cert {
            Some(source) => self.pinned(source, again).await,
            None if again => self.root_of(&*self.refresh().await?),
            None => self.root_of(&*self.facts().await?),
        }
    }

    /// The same, by what is known of the CA already; `caCert` is read anew.
    pub(crate) async fn bundle_by(&self, facts: &Facts) -> Result<TrustBundle> {
        match &self.settings.conf.ca_cert {
            Some(source) => self.pinned(source, true).await,
            None => self.root_of(facts),
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

    /// By what it is, not by where it stands: a chain that was imported without its root ends in an intermediate.
    pub(crate) fn root_of(&self, facts: &Facts) -> Result<TrustBundle> {
        let domain = &self.settings.trust_domain;
        let mut roots: Option<TrustBundle> = None;
        for certificate in facts.chain.certificates() {
            let one = TrustBundle::new(domain.clone(), [certificate.clone()])?;
            if one
                .roots()
                .iter()
                .all(meshca_core::TrustRoot::is_self_signed)
            {
                roots = Some(match roots {
                    Some(all) => all.union(&one)?,
                    None => one,
                });
            }
        }
        roots.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidConfig,
                "the chain that was imported with the CA has no root: set `caCert` to the root that it leads to",
            )
            .with_retry(Retry::Backoff)
        })
    }
}

/// A certificate and those above it, as AWS has both in PEM.
pub(crate) fn chain(certificate: &str, above: Option<&str>) -> Result<SignedChain> {
    SignedChain::from_pem(&[certificate, above.unwrap_or_default()].join("\n"))
}

fn not_active(status: &CertificateAuthorityStatus) -> Error {
    use CertificateAuthorityStatus::{Creating, Deleted, Disabled, Expired, PendingCertificate};
    let advice = match status {
        Creating => "wait until AWS has made it",
        PendingCertificate => {
            "install its certificate (`acm-pca:ImportCertificateAuthorityCertificate`)"
        }
        Disabled => {
            "enable it (`aws acm-pca update-certificate-authority --status ACTIVE --certificate-authority-arn …`)"
        }
        Expired => "renew its certificate",
        Deleted => {
            "restore it (`aws acm-pca restore-certificate-authority --certificate-authority-arn …`), or use another one"
        }
        _ => "see what AWS' console says of it",
    };
    Error::new(
        ErrorKind::Unavailable,
        format!("the CA is not active but {}: {advice}", status.as_str()),
    )
    .with_retry(Retry::Backoff)
}

/// It must be of the family of the CA's key (`IssueCertificate` of the API reference).
fn signing_algorithm(key: &KeyAlgorithm) -> Result<SigningAlgorithm> {
    match key {
        KeyAlgorithm::EcPrime256v1 => Ok(SigningAlgorithm::Sha256Withecdsa),
        KeyAlgorithm::EcSecp384r1 => Ok(SigningAlgorithm::Sha384Withecdsa),
        KeyAlgorithm::EcSecp521r1 => Ok(SigningAlgorithm::Sha512Withecdsa),
        KeyAlgorithm::Rsa2048 | KeyAlgorithm::Rsa3072 | KeyAlgorithm::Rsa4096 => {
            Ok(SigningAlgorithm::Sha256Withrsa)
        }
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the key of the CA is {}, whose signatures proxies cannot verify: use a CA with an EC or RSA key",
                other.as_str()
            ),
        )),
    }
}
