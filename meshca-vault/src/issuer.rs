//! The issuer: a request, a token, a signature.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::secret::SourceReader;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer, KeyType,
    Profile, Result, Retry, SignedChain, TrustBundle,
};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vaultrs::api::pki::requests::{SignCertificateRequest, SignIntermediateRequest};

use crate::api::{self, Signed};
use crate::auth::Login;
use crate::client::{Failure, Told, VaultClient};
use crate::session::Sessions;
use crate::settings::VaultSettings;
use crate::transport::Call;
use crate::trust::Trust;

/// What the second request may be later than the first, where a certificate is to end with the CA.
const CA_END_MARGIN: Duration = Duration::from_secs(5);

/// An issuer that has a role of Vault's PKI engine sign.
///
/// It lives in a tokio runtime: a task of its own keeps the token alive, and ends when the issuer
/// is dropped. See the [crate] for what it does, and [`VaultSettings`] for what it can be told.
pub struct VaultIssuer {
    pub(crate) settings: VaultSettings,
    pub(crate) client: Arc<VaultClient>,
    pub(crate) sessions: Arc<Sessions>,
    trust: Trust,
    pub(crate) clock: Arc<dyn Clock>,
}

impl VaultIssuer {
    /// An issuer that has connected to nothing yet. To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for an address, a namespace or a server name that cannot be one;
    /// [`ErrorKind::Internal`] outside of a tokio runtime.
    pub fn new(
        settings: VaultSettings,
        sources: SourceReader,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::new(
                ErrorKind::Internal,
                "an issuer on Vault must be made inside a tokio runtime, in which it keeps its token alive",
            ));
        }
        #[cfg(feature = "aws-auth")]
        let aws = crate::auth::aws::Signer {
            access_key: settings.access_key.clone(),
            local: sources.local_sources(),
        };
        let client = VaultClient::new(settings.conf.clone(), sources, settings.request_timeout)?;
        let client = Arc::new(client);
        let login = Login {
            client: Arc::clone(&client),
            #[cfg(feature = "aws-auth")]
            aws,
        };
        let name = name(&client);
        let sessions = Arc::new(Sessions::start(Arc::new(login), name));
        let trust = Trust::new(
            settings.trust_domain.clone(),
            Arc::clone(&client),
            Arc::clone(&sessions),
        );
        Ok(Self {
            settings,
            client,
            sessions,
            trust,
            clock,
        })
    }

    /// The path that signs leaves, below `/v1/`; policies name it like this, too.
    fn sign_path(&self) -> String {
        let (mount, role) = (self.client.conf().mount(), &self.client.conf().role);
        match &self.client.conf().issuer {
            Some(issuer) => format!("{mount}/issuer/{issuer}/sign/{role}"),
            None => format!("{mount}/sign/{role}"),
        }
    }

    fn intermediate_path(&self) -> String {
        let mount = self.client.conf().mount();
        match &self.client.conf().issuer {
            Some(issuer) => format!("{mount}/issuer/{issuer}/sign-intermediate"),
            None => format!("{mount}/root/sign-intermediate"),
        }
    }

    fn call(&self, request: &CertificateRequest, lifetime: Duration) -> Result<Call> {
        let spec = request.spec();
        let conf = self.client.conf();
        // The names twice: a role uses those of the CSR or these, as its `use_csr_sans` says, and ignores the others.
        let uris: Vec<String> = spec.all_uris().collect();
        if let Some(uri) = uris.iter().find(|uri| uri.contains(',')) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "Vault takes URIs as a list with commas, so none may hold a comma",
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

    pub(crate) fn path_for(&self, profile: Profile) -> String {
        match profile {
            Profile::Intermediate { .. } => self.intermediate_path(),
            _ => self.sign_path(),
        }
    }

    /// Makes a call with the token, and with another one if that turns out to be dead.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<Told<T>, Failure> {
        self.sessions.ask(&self.client, call).await
    }

    pub(crate) fn refused(&self, failure: Failure, profile: Profile) -> Error {
        let refusal = match failure {
            Failure::Error(error) => return error,
            Failure::Refused(refusal) => refusal,
        };
        let (mount, role) = (self.client.conf().mount(), &self.client.conf().role);
        let path = self.path_for(profile);
        let trust_domain = &self.settings.trust_domain;
        let denied = |message: String| refusal.error(ErrorKind::Denied, &message);
        match refusal.status.as_u16() {
            403 => denied(format!(
                "Vault refused to sign: a policy of the token must grant `update` on `{path}`, unless `pki` or `role` is misspelt, which Vault does not tell apart"
            )),
            404 | 405 => refusal.error(
                ErrorKind::NotFound,
                &format!(
                    "Vault has no PKI engine at `{mount}`: enable it with `vault secrets enable -path={mount} pki`, or set `pki` to where it is"
                ),
            ),
            400 if refusal.says("unknown role") => refusal.error(
                ErrorKind::NotFound,
                &format!("Vault has no role `{role}` in `{mount}`: create it with `vault write {mount}/roles/{role} …`"),
            ),
            // Vault calls it an internal error.
            _ if refusal.says("no default issuer") => {
                refusal.error(ErrorKind::InvalidConfig, &without_ca(mount)).with_retry(Retry::Backoff)
            }
            400 if refusal.says("unable to find PKI issuer") => refusal.error(
                ErrorKind::NotFound,
                &format!("the PKI engine at `{mount}` has no such issuer: import its CA, or correct `issuer`"),
            ),
            400 if refusal.says("URI") => denied(format!(
                "the role `{role}` does not allow these URIs: its `allowed_uri_sans` must hold `spiffe://{trust_domain}/*`{}",
                if self.settings.tag_uris { " and `kuma://*`" } else { "" }
            )),
            400 if refusal.says("common_name field is required") => denied(format!(
                "the role `{role}` insists on a common name, which a SPIFFE certificate has not: set `require_cn=false` on it"
            )),
            400 if refusal.says("not allowed") || refusal.says("role requires") => {
                denied(format!("the role `{role}` does not allow what was asked for"))
            }
            _ => refusal.into_error("sign"),
        }
    }
}

/// The lifetime that fits, if Vault refuses because its CA ends before.
///
/// "cannot satisfy request, as TTL would result in notAfter of X that is beyond the expiration of the CA certificate at
/// Y": both times are by Vault's clock, and ours is not needed.
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
        let profile = request.spec().profile();
        let lifetime = request.spec().lifetime();
        let mut notes = Vec::new();
        let told: Told<Signed> = match self.ask(&self.call(request, lifetime)?).await {
            Ok(told) => told,
            Err(failure) => {
                let Some(left) = fitting(&failure, lifetime) else {
                    return Err(self.refused(failure, profile));
                };
                if left.is_zero() {
                    return Err(expired_ca(failure));
                }
                notes.push(format!(
                    "Vault's CA ends before the lifetime that was asked for, so {} s were asked for instead: renew the CA",
                    left.as_secs()
                ));
                self.ask(&self.call(request, left)?)
                    .await
                    .map_err(|failure| self.refused(failure, profile))?
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

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.trust.bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let checked = crate::check::check(self).await;
        checked.map_err(|error| error.with_context("issuer", self))
    }
}

/// The words for a mount that is empty.
pub(crate) fn without_ca(mount: &str) -> String {
    format!(
        "the PKI engine at `{mount}` has no CA yet: make one with `vault write {mount}/root/generate/internal …`, or import one"
    )
}

fn expired_ca(failure: Failure) -> Error {
    match failure {
        Failure::Error(error) => error,
        Failure::Refused(refusal) => refusal.error(
            ErrorKind::Unavailable,
            "Vault's CA is at its end and signs nothing any more: renew it, or make another issuer the default",
        ),
    }
}

fn name(client: &VaultClient) -> String {
    let conf = client.conf();
    let (address, mount, role) = (client.address(), conf.mount(), &conf.role);
    match &conf.issuer {
        Some(issuer) => format!("vault at {address} (role {role} of {mount}, issuer {issuer})"),
        None => format!("vault at {address} (role {role} of {mount})"),
    }
}

impl fmt::Display for VaultIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(&self.client))
    }
}

impl fmt::Debug for VaultIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultIssuer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
