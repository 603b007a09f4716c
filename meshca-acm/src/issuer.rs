//! The issuer: what AWS signs, as the contract has it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_acmpca::Client;
use aws_sdk_acmpca::error::ProvideErrorMetadata as _;
use aws_sdk_acmpca::primitives::Blob;
use aws_sdk_acmpca::types::{
    ApiPassthrough, Asn1Subject, ExtendedKeyUsage, ExtendedKeyUsageType, Extensions, GeneralName,
    KeyUsage, Validity, ValidityPeriodType,
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use meshca_core::secret::SourceReader;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, IssuedCertificate,
    Issuer, KeyType, Profile, RequestId, Result, Retry, SignedChain, TrustBundle,
};
use tokio::time::{Instant, sleep};

use crate::authority::{Authority, Facts, chain};
use crate::client::client;
use crate::credentials::provider;
use crate::error::{IN_PROGRESS, from_sdk, present};
use crate::pace::Paces;
use crate::settings::{AcmSettings, Template};

/// The longest certificate of a CA for short-lived ones, less the hour by which AWS backdates ("Certificate authority modes" in
/// the user guide: seven days).
const SHORT_LIVED: Duration = Duration::from_secs((7 * 24 - 1) * 3600);
/// The longest idempotency token.
const MAX_TOKEN: usize = 36;
/// The longest path length that there is a template for.
const MAX_PATH_LEN: u8 = 3;
/// How long a certificate that was issued, and that nobody came back for, is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// An issuer that has AWS Private CA sign.
pub struct AcmIssuer {
    pub(crate) settings: AcmSettings,
    pub(crate) client: Client,
    pub(crate) authority: Authority,
    clock: Arc<dyn Clock>,
    paces: Arc<Paces>,
    /// Certificates that are issued and paid for, but not handed out yet.
    issued: Mutex<HashMap<RequestId, Issued>>,
}

#[derive(Clone)]
struct Issued {
    certificate: String,
    note: Option<String>,
    at: Instant,
}

impl AcmIssuer {
    /// An issuer that has asked nobody yet.
    ///
    /// `sources` reads the credentials and `caCert` of the settings; `clock` is what requests are signed by, too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] if the settings name no credentials, and `sources` may not read what is the control plane's own;
    /// [`ErrorKind::InvalidConfig`] if the endpoint is no address.
    pub fn new(
        settings: AcmSettings,
        sources: SourceReader,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let paces = Arc::new(Paces::new(settings.rates));
        Self::with_paces(settings, sources, clock, paces)
    }

    pub(crate) fn with_paces(
        settings: AcmSettings,
        sources: SourceReader,
        clock: Arc<dyn Clock>,
        paces: Arc<Paces>,
    ) -> Result<Self> {
        if let Some(endpoint) = &settings.endpoint
            && !endpoint.starts_with("https://")
            && !endpoint.starts_with("http://")
        {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the endpoint must begin with `https://` or `http://`",
            )
            .with_context("endpoint", endpoint.escape_debug()));
        }
        let credentials = provider(
            settings.conf.credentials.as_ref(),
            &sources,
            settings.arn.region(),
            &clock,
        )?;
        let client = client(&settings, credentials, &clock);
        Ok(Self {
            authority: Authority::new(settings.clone(), client.clone(), sources),
            settings,
            client,
            clock,
            paces,
            issued: Mutex::default(),
        })
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    fn issued(&self) -> MutexGuard<'_, HashMap<RequestId, Issued>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The certificate of this request: the one that is there already, or a new one.
    async fn issue(&self, request: &CertificateRequest) -> Result<Issued> {
        if let Some(issued) = self.issued().get(request.id()) {
            return Ok(issued.clone());
        }
        let facts = self.authority.facts().await?;
        let (end, note) = self.end(request, &facts)?;
        let template = self.template(request.spec().profile(), &facts)?;
        let seconds = end
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let validity = Validity::builder()
            .r#type(ValidityPeriodType::Absolute)
            .value(i64::try_from(seconds).unwrap_or(i64::MAX))
            .build()
            .map_err(internal)?;
        let (csr, passthrough) = self.names(request)?;
        let token: String = request.id().as_str().chars().take(MAX_TOKEN).collect();
        self.paces.issue.turn().await;
        let arn = &self.settings.arn;
        let answer = self
            .client
            .issue_certificate()
            .certificate_authority_arn(arn.as_str())
            .csr(Blob::new(csr))
            .signing_algorithm(facts.signing_algorithm.clone())
            .template_arn(template)
            .validity(validity)
            .set_api_passthrough(passthrough)
            // The same for each try of this request, as everything else in it: it is billed once.
            .idempotency_token(token)
            .send()
            .await
            .map_err(|error| from_sdk(error, "IssueCertificate", arn))
            .inspect_err(|error| {
                // Its key, its end or its state may be others than we know.
                if matches!(
                    error.kind(),
                    ErrorKind::InvalidRequest | ErrorKind::Unavailable
                ) {
                    self.authority.doubt();
                }
            })?;
        let issued = Issued {
            certificate: present(answer.certificate_arn(), "ARN of a certificate")?.to_owned(),
            note,
            at: Instant::now(),
        };
        let mut all = self.issued();
        all.retain(|_, issued| issued.at.elapsed() < REMEMBERED);
        all.insert(request.id().clone(), issued.clone());
        Ok(issued)
    }

    /// When the certificate is to end, and a word if that is earlier than was asked for. It depends on the request and the CA and not on
    /// the time of the call: every try must ask for the same.
    fn end(
        &self,
        request: &CertificateRequest,
        facts: &Facts,
    ) -> Result<(SystemTime, Option<String>)> {
        let mut end = request.not_after();
        let mut note = None;
        if facts.short_lived {
            let longest = request.created().checked_add(SHORT_LIVED);
            if let Some(longest) = longest.filter(|longest| *longest < end) {
                end = longest;
                note =
                    Some("the CA is for short-lived certificates: seven days at most".to_owned());
            }
        }
        if let Some(last) = facts.not_after.filter(|last| *last < end) {
            end = last;
            note = Some(
                "the CA ends before the lifetime that was asked for, so the certificate ends with it: renew the CA"
                    .to_owned(),
            );
        }
        if end <= self.clock.now() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the certificate of the CA is at its end, and it signs nothing any more: renew it",
            ));
        }
        Ok((end, note))
    }

    pub(crate) fn template(&self, profile: Profile, facts: &Facts) -> Result<String> {
        let unsupported = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
        let name = match profile {
            Profile::Intermediate { .. } if facts.short_lived => {
                return unsupported(
                    "the CA is for short-lived certificates, and cannot sign intermediates: use one of the mode GENERAL_PURPOSE, or `mode: Leaf`"
                        .to_owned(),
                );
            }
            Profile::Intermediate { path_len } if path_len > MAX_PATH_LEN => {
                return unsupported(format!(
                    "AWS has templates for path lengths up to {MAX_PATH_LEN}, and none for {path_len}"
                ));
            }
            Profile::Intermediate { path_len } => {
                format!("SubordinateCACertificate_PathLen{path_len}")
            }
            _ => self.settings.template.name().to_owned(),
        };
        Ok(self.settings.arn.template(&name))
    }

    /// The CSR, and what is said beside it.
    fn names(&self, request: &CertificateRequest) -> Result<(String, Option<ApiPassthrough>)> {
        let spec = request.spec();
        let template = self.settings.template;
        let by_api = matches!(
            template,
            Template::EndEntityApiPassthrough | Template::BlankApiCsrPassthrough
        );
        if !by_api || spec.profile() != Profile::Workload {
            return Ok((request.named_csr()?.to_pem(), None));
        }
        let uris = spec.all_uris().map(|uri| {
            GeneralName::builder()
                .uniform_resource_identifier(uri)
                .build()
        });
        let dns = spec
            .dns_names()
            .iter()
            .map(|name| GeneralName::builder().dns_name(name).build());
        let mut extensions = Extensions::builder();
        extensions = extensions.set_subject_alternative_names(Some(uris.chain(dns).collect()));
        if template == Template::BlankApiCsrPassthrough {
            let usage = |usage: ExtendedKeyUsageType| {
                ExtendedKeyUsage::builder()
                    .extended_key_usage_type(usage)
                    .build()
            };
            extensions = extensions
                .key_usage(
                    KeyUsage::builder()
                        .digital_signature(true)
                        .key_encipherment(true)
                        .build(),
                )
                .extended_key_usage(usage(ExtendedKeyUsageType::ServerAuth))
                .extended_key_usage(usage(ExtendedKeyUsageType::ClientAuth));
        }
        let subject = spec
            .common_name()
            .map(|name| Asn1Subject::builder().common_name(name).build());
        let passthrough = ApiPassthrough::builder()
            .extensions(extensions.build())
            .set_subject(subject)
            .build();
        Ok((request.csr()?.to_pem(), Some(passthrough)))
    }

    /// Fetches a certificate as soon as it is there.
    async fn fetch(&self, certificate: &str) -> Result<SignedChain> {
        let deadline = Instant::now() + self.settings.timeout;
        let arn = &self.settings.arn;
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(3))
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            self.paces.fetch.turn().await;
            let error = match self
                .client
                .get_certificate()
                .certificate_authority_arn(arn.as_str())
                .certificate_arn(certificate)
                .send()
                .await
            {
                Ok(answer) => {
                    let certificate = present(answer.certificate(), "certificate")?;
                    return chain(certificate, answer.certificate_chain());
                }
                Err(error) => error,
            };
            let pause = pauses.next().unwrap_or(self.settings.timeout);
            if error.code() != Some(IN_PROGRESS) || Instant::now() + pause > deadline {
                return Err(from_sdk(error, "GetCertificate", arn));
            }
            sleep(pause).await;
        }
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "a request of AWS cannot be built").with_source(error)
}

#[async_trait]
impl Issuer for AcmIssuer {
    /// Without Ed25519, which AWS does not accept in CSRs.
    fn capabilities(&self) -> Capabilities {
        let keys = KeyType::ALL.into_iter();
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(true)
            .with_key_types(keys.filter(|key| *key != KeyType::Ed25519))
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.settings.trust_domain)?;
        let issued = self.issue(request).await?;
        let chain = self.fetch(&issued.certificate).await.inspect_err(|error| {
            // AWS has lost it, or what it has is no certificate: fetching it again does not help.
            if matches!(error.kind(), ErrorKind::BadResponse | ErrorKind::NotFound) {
                self.issued().remove(request.id());
            }
        })?;
        Ok(match issued.note {
            Some(note) => chain.with_note(note),
            None => chain,
        })
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.authority.bundle(false).await
    }

    async fn refresh_trust_bundle(&self) -> Result<TrustBundle> {
        self.authority.bundle(true).await
    }

    async fn check(&self) -> Result<CheckReport> {
        let checked = crate::check::check(self).await;
        checked.map_err(|error| error.with_context("issuer", self))
    }

    async fn settled(
        &self,
        request: &CertificateRequest,
        outcome: Result<&IssuedCertificate, &Error>,
    ) {
        // What may be good after all, once the trust in it can be looked up, is not bought again.
        if outcome.is_ok() || outcome.is_err_and(|error| error.retry() == Retry::Never) {
            self.issued().remove(request.id());
        }
    }
}

impl fmt::Display for AcmIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AWS Private CA {}", self.settings.arn)
    }
}

impl fmt::Debug for AcmIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmIssuer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
