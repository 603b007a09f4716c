//! The issuer: what AWS signs, as the contract has it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_acmpca::error::ProvideErrorMetadata as _;
use aws_sdk_acmpca::primitives::Blob;
use aws_sdk_acmpca::types::{
    ApiPassthrough, Asn1Subject, ExtendedKeyUsage, ExtendedKeyUsageType, Extensions, GeneralName,
    KeyUsage, Validity, ValidityPeriodType,
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use meshca_core::issuer::Evidence;
use meshca_core::secret::SourceReader;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer, KeyType,
    Profile, RequestId, Result, Retry, SignedChain, TrustBundle,
};
use tokio::time::{Instant, sleep};

use crate::authority::Authority;
use crate::client::{client, http_client};
use crate::credentials::provider;
use crate::error::{IN_PROGRESS, NOT_FOUND, contradicts, from_sdk, present};
use crate::facts::{Facts, chain};
use crate::orders::{Issued, Orders, Wish};
use crate::pace::Paces;
use crate::settings::{AcmSettings, Template};

/// The longest certificate of a CA for short-lived ones, less the hour by which AWS backdates ("Certificate authority modes" in
/// the user guide: seven days).
const SHORT_LIVED: Duration = Duration::from_secs((7 * 24 - 1) * 3600);
/// The longest idempotency token.
const MAX_TOKEN: usize = 36;
/// The longest pause between two tries to fetch a certificate.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// An issuer that has AWS Private CA sign.
#[derive(derive_more::Debug, derive_more::Display)]
#[debug("AcmIssuer {{ settings: {:?}, .. }}", authority.settings)]
#[display("AWS Private CA {}", authority.settings.arn)]
pub struct AcmIssuer {
    authority: Arc<Authority>,
    paces: Arc<Paces>,
    orders: Arc<Orders>,
    evidence: Evidence,
}

/// Why a certificate was not fetched.
enum Missed {
    /// It may be there the next time.
    Now(Error),
    /// AWS has lost it, or what it has is no certificate.
    Lost(Error),
}

impl AcmIssuer {
    /// An issuer that has asked nobody yet.
    ///
    /// `sources` reads the credentials and `caCert` of the settings; `clock` is what requests are signed by, too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] if the settings name no credentials, and `sources` may not read what is the control plane's own;
    /// [`ErrorKind::InvalidConfig`] if the endpoint or the proxy is no address, or settings do not go together.
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
        settings.judge()?;
        let http = http_client(settings.proxy.as_deref())?;
        let credentials = provider(&settings, &sources, &http, &clock)?;
        let client = client(&settings, credentials, http, &clock);
        Ok(Self {
            authority: Authority::new(settings, client, sources, clock),
            paces,
            orders: Arc::default(),
            evidence: Evidence::new(),
        })
    }

    /// The certificate of this request: the one that is there already, or a new one.
    async fn issue(&self, request: &CertificateRequest, wish: &Wish) -> Result<Issued> {
        if let Some(issued) = self.orders.issued(wish) {
            return Ok(issued);
        }
        let called = Instant::now();
        let facts = self.authority.able().await?;
        let (end, note) = self.end(request, &facts)?;
        let template = facts.template(request.spec().profile(), &self.authority.settings)?;
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
        let arn = self.authority.settings.arn.clone();
        let order = self
            .authority
            .client
            .issue_certificate()
            .certificate_authority_arn(arn.as_str())
            .csr(Blob::new(csr))
            .signing_algorithm(facts.signing_algorithm.clone())
            .template_arn(template)
            .validity(validity)
            .set_api_passthrough(passthrough)
            // The same for each try of this request, as everything else in it: it is billed once.
            .idempotency_token(token(
                request.id(),
                seconds,
                self.authority.settings.template,
            ));
        // Whoever gives up in the line has bought nothing.
        self.paces.issue.turn().await;
        let authority = Arc::clone(&self.authority);
        let ask = async move {
            let answer = order.send().await.map_err(|error| {
                let doubt = contradicts(error.code()) && facts.asked < called;
                let error = from_sdk(error, "IssueCertificate", &arn);
                if !doubt {
                    return error;
                }
                // Its key, its end or its state may be others than we know: the next try looks, and asks for what fits.
                authority.doubt();
                error.with_retry(Retry::Backoff)
            })?;
            Ok(Issued {
                certificate: present(answer.certificate_arn(), "ARN of a certificate")?.to_owned(),
                note,
            })
        };
        self.orders.place(wish, ask).await
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
        let now = self.authority.clock.now();
        if end <= now {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "the lifetime that was asked for is over before the CA was: make a new request",
            ));
        }
        if let Some(last) = facts.not_after.filter(|last| *last < end) {
            end = last;
            note = Some(
                "the CA ends before the lifetime that was asked for, so the certificate ends with it: renew the CA"
                    .to_owned(),
            );
        }
        if end <= now {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the certificate of the CA is at its end, and it signs nothing any more: renew it",
            ));
        }
        Ok((end, note))
    }

    /// The CSR, and what is said beside it.
    fn names(&self, request: &CertificateRequest) -> Result<(String, Option<ApiPassthrough>)> {
        let spec = request.spec();
        let template = self.authority.settings.template;
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
    async fn fetch(&self, certificate: &str) -> Result<SignedChain, Missed> {
        let deadline = Instant::now().checked_add(self.authority.settings.timeout);
        let arn = &self.authority.settings.arn;
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            self.paces.fetch.turn().await;
            let error = match self
                .authority
                .client
                .get_certificate()
                .certificate_authority_arn(arn.as_str())
                .certificate_arn(certificate)
                .send()
                .await
            {
                Ok(answer) => {
                    return present(answer.certificate(), "certificate")
                        .and_then(|certificate| chain(certificate, answer.certificate_chain()))
                        .map_err(Missed::Lost);
                }
                Err(error) => error,
            };
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if error.code() != Some(IN_PROGRESS) || left.is_some_and(|left| pause > left) {
                // A proxy's 404, or an answer that was cut, says nothing about a certificate that is paid for.
                let missed = match error.code() {
                    Some(NOT_FOUND) => Missed::Lost,
                    _ => Missed::Now,
                };
                return Err(missed(from_sdk(error, "GetCertificate", arn)));
            }
            sleep(pause).await;
        }
    }
}

/// Tells AWS that it is the same wish again, within minutes of the last time. What else is in the request stands in it too, because AWS does
/// not say what it makes of a token that comes back with another end. A hundred bits of the ID are enough.
fn token(id: &RequestId, end: u64, template: Template) -> String {
    let token = format!("{end:x}-{}-{}", template.code(), id.as_str());
    token.chars().take(MAX_TOKEN).collect()
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "a request of AWS cannot be built").with_source(error)
}

impl AcmIssuer {
    /// Has a request of this trust domain signed.
    async fn signed(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let wish = Wish::of(request);
        let issued = self.issue(request, &wish).await?;
        let fetched = self.fetch(&issued.certificate).await;
        let chain = fetched.map_err(|missed| match missed {
            Missed::Now(error) => error,
            // Fetching it again does not help.
            Missed::Lost(error) => {
                self.orders.forget(&wish);
                error
            }
        })?;
        let chain = match issued.note {
            Some(note) => chain.with_note(note),
            None => chain,
        };
        let (orders, authority) = (Arc::clone(&self.orders), Arc::clone(&self.authority));
        Ok(chain.with_receipt(move |outcome| {
            if let Ok(certificate) = outcome {
                authority.accepted(certificate);
            }
            // A certificate that may be good after all, once its root can be looked up, is not
            // bought again.
            if outcome.is_ok() || outcome.is_err_and(|error| error.retry() == Retry::Never) {
                orders.forget(&wish);
            }
            None
        }))
    }
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
            .with_trust_interval(self.authority.trust_interval())
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.authority.settings.trust_domain)?;
        self.evidence.watch(self.signed(request).await)
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.authority.bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let mut found = self.evidence.begin_check();
        crate::check::check(&self.authority, &mut found).await;
        let report = found.into_report();
        report.map_err(|error| error.with_context("issuer", self))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use meshca_core::PrivateKey;
    use meshca_testkit::samples::spec;

    use super::*;

    #[test]
    fn a_token_stands_for_all_that_is_asked_for() {
        let id = || {
            let key = PrivateKey::generate(KeyType::P256).unwrap();
            let request = CertificateRequest::for_key(spec(), &key, SystemTime::UNIX_EPOCH);
            request.unwrap().id().clone()
        };
        let (one, other) = (id(), id());
        let end = 1_800_000_000;
        let mut tokens = HashSet::new();
        for (id, end, template) in [
            (&one, end, Template::EndEntity),
            (&other, end, Template::EndEntity),
            (&one, end + 1, Template::EndEntity),
            (&one, end, Template::EndEntityClientAuth),
            (&one, end, Template::EndEntityApiPassthrough),
            (&one, end, Template::BlankApiCsrPassthrough),
        ] {
            let token = super::token(id, end, template);
            assert_eq!(token.len(), MAX_TOKEN, "{token}");
            assert_eq!(token, super::token(id, end, template));
            assert!(tokens.insert(token));
        }
    }
}
