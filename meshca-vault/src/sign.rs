//! The issuer at work: a request, a token, a signature.

use std::time::Duration;

use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Error, ErrorKind, Issuer, KeyType, Profile,
    Result, SignedChain, TrustBundle,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vaultrs::api::pki::requests::{SignCertificateRequest, SignIntermediateRequest};

use crate::api::{self, Signed};
use crate::check::check;
use crate::client::{Failure, Told};
use crate::issuer::VaultIssuer;
use crate::transport::Call;

/// The time that may pass before the second request, where a certificate is to end with the CA.
const CA_END_MARGIN: Duration = Duration::from_secs(5);

impl VaultIssuer {
    fn call(&self, request: &CertificateRequest, lifetime: Duration) -> Result<Call> {
        let spec = request.spec();
        let conf = self.client.conf();
        // The names twice: a role uses those of the CSR or these, as its `use_csr_sans` says, and ignores the others.
        let uris: Vec<String> = spec.all_uris().collect();
        if let Some(uri) = uris.iter().find(|uri| uri.contains(',')) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "Vault and OpenBao take URIs as a list with commas, so none may hold a comma",
            )
            .with_context("uri", uri.escape_debug()));
        }
        let csr = Some(request.csr()?.to_pem());
        let ttl = Some(format!("{}s", lifetime.as_secs()));
        let uri_sans = Some(uris.join(","));
        let alt_names = (!spec.dns_names().is_empty()).then(|| spec.dns_names().join(","));
        let common_name = spec.common_name().map(str::to_owned);
        let mut call = match spec.profile() {
            Profile::Intermediate { path_len } => api::call(&SignIntermediateRequest {
                mount: conf.mount().to_owned(),
                csr,
                common_name,
                uri_sans,
                alt_names,
                ttl,
                max_path_length: Some(i32::from(path_len)),
                exclude_cn_from_sans: Some(true),
                format: Some("pem".to_owned()),
                ..SignIntermediateRequest::default()
            }),
            _ => api::call(&SignCertificateRequest {
                mount: conf.mount().to_owned(),
                role: conf.role.clone(),
                csr,
                common_name,
                uri_sans,
                alt_names,
                ttl,
                exclude_cn_from_sans: Some(true),
                format: Some("pem".to_owned()),
                ..SignCertificateRequest::default()
            }),
        }?;
        // vaultrs knows the paths of the default issuer only.
        call.path = self.path_for(spec.profile());
        Ok(call)
    }

    /// Has a request of this trust domain signed.
    async fn signed(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let profile = request.spec().profile();
        let lifetime = request.spec().lifetime();
        let mut notes = Vec::new();
        let told: Told<Signed> = match self.ask(&self.call(request, lifetime)?).await {
            Ok(told) => told,
            Err(failure) => {
                let Some(left) = fitting(&failure, lifetime) else {
                    return Err(self.refused(failure, profile, None));
                };
                if left.is_zero() {
                    return Err(expired_ca(failure));
                }
                notes.push(format!(
                    "the CA ends before the lifetime that was asked for, so {} s were asked for instead: renew the CA",
                    left.as_secs()
                ));
                self.ask(&self.call(request, left)?)
                    .await
                    .map_err(|failure| self.refused(failure, profile, None))?
            }
        };
        let chain = SignedChain::from_pem(&told.data.pem())?;
        for warning in told.warnings {
            if !notes.contains(&warning) {
                notes.push(warning);
            }
        }
        Ok(notes.into_iter().fold(chain, SignedChain::with_note))
    }
}

/// The lifetime that fits, if the server refuses because its CA ends before.
///
/// "cannot satisfy request, as TTL would result in notAfter of X that is beyond the expiration of the CA certificate at
/// Y": both times are by the server's clock, and ours is not needed.
fn fitting(failure: &Failure, lifetime: Duration) -> Option<Duration> {
    let Failure::Refused(refusal) = failure else {
        return None;
    };
    let (before, end) = refusal
        .reasons
        .split_once(" that is beyond the expiration of the CA certificate at ")?;
    let (_, wanted) = before.rsplit_once("notAfter of ")?;
    let time = |text: &str| {
        let text = text.trim_end_matches([';', ',', '.']);
        OffsetDateTime::parse(text, &Rfc3339).ok()
    };
    let beyond = time(wanted)? - time(end.split_whitespace().next()?)?;
    let fitting = lifetime
        .checked_sub(beyond.try_into().ok()?)
        .and_then(|left| left.checked_sub(CA_END_MARGIN))
        .unwrap_or_default();
    Some(Duration::from_secs(fitting.as_secs()))
}

#[async_trait]
impl Issuer for VaultIssuer {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(true)
            .with_key_types(KeyType::ALL)
            .with_trust_interval(self.settings.trust_refresh)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.settings.trust_domain)?;
        self.evidence.watch(self.signed(request).await)
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let mut found = self.evidence.begin_check();
        check(self, &mut found).await;
        let report = found.into_report();
        report.map_err(|error| error.with_context("issuer", self))
    }
}

fn expired_ca(failure: Failure) -> Error {
    match failure {
        Failure::Error(error) => error,
        Failure::Refused(refusal) => refusal.error(
            ErrorKind::Unavailable,
            "the CA is at its end and signs nothing any more: renew it, or make another issuer the default",
        ),
    }
}
