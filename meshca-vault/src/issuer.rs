//! The issuer, the paths at which the server signs, and the meaning of its refusals.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use meshca_core::issuer::Evidence;
use meshca_core::resource::VaultAuth;
use meshca_core::secret::{SourceReader, SourceRef};
use meshca_core::{Clock, Error, ErrorKind, Profile, Result, Retry};
use serde::de::DeserializeOwned;

use crate::auth::Login;
use crate::client::{Failure, Told, VaultClient};
use crate::policy::repair;
use crate::session::Sessions;
use crate::settings::VaultSettings;
use crate::transport::Call;

/// An issuer that has a role of Vault's PKI engine sign.
///
/// It lives in a tokio runtime: a task of its own keeps the token alive, and ends when the issuer
/// is dropped. See the [crate] for what it does, and [`VaultSettings`] for what it can be told.
#[derive(derive_more::Debug, derive_more::Display)]
#[debug("VaultIssuer {{ settings: {settings:?}, .. }}")]
#[display("{}", name(client))]
pub struct VaultIssuer {
    pub(crate) settings: VaultSettings,
    pub(crate) client: Arc<VaultClient>,
    pub(crate) sessions: Sessions,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) evidence: Evidence,
    /// The roots that the log was told are not trusted, by fingerprint.
    pub(crate) reported: Mutex<BTreeSet<String>>,
}

impl VaultIssuer {
    /// An issuer that has connected to nothing yet. To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for an address, a proxy, a namespace, a server name or an endpoint of STS that cannot be one;
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
        let local = sources.local_sources();
        let client = VaultClient::new(&settings, sources)?;
        let client = Arc::new(client);
        #[cfg(feature = "aws-auth")]
        if let VaultAuth::Aws(auth) = &settings.conf.auth {
            crate::auth::aws::Sts::new(auth, settings.sts_endpoint.as_deref())?;
        }
        #[cfg(feature = "aws-auth")]
        let aws = crate::auth::aws::Signer {
            access_key: settings.access_key.clone(),
            sts_endpoint: settings.sts_endpoint.clone(),
            proxy: client.proxy().cloned(),
            local,
        };
        let login = Login {
            client: Arc::clone(&client),
            #[cfg(feature = "aws-auth")]
            aws,
        };
        let name = name(&client);
        let sessions = Sessions::start(Arc::new(login), name);
        Ok(Self {
            settings,
            client,
            sessions,
            clock,
            evidence: Evidence::new(),
            reported: Mutex::default(),
        })
    }

    /// The path that signs, below `/v1/`; policies name it like this, too.
    pub(crate) fn path_for(&self, profile: Profile) -> String {
        let conf = self.client.conf();
        let (mount, role) = (conf.mount(), &conf.role);
        let leaf = !matches!(profile, Profile::Intermediate { .. });
        match &conf.issuer {
            Some(issuer) if leaf => format!("{mount}/issuer/{issuer}/sign/{role}"),
            Some(issuer) => format!("{mount}/issuer/{issuer}/sign-intermediate"),
            None if leaf => format!("{mount}/sign/{role}"),
            None => format!("{mount}/root/sign-intermediate"),
        }
    }

    /// Makes a call with the token, and with another one if that turns out to be dead.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<Told<T>, Failure> {
        self.sessions.ask(&self.client, call).await
    }

    /// `policy`: one that the token has, where that is known.
    pub(crate) fn refused(
        &self,
        failure: Failure,
        profile: Profile,
        policy: Option<&str>,
    ) -> Error {
        let refusal = match failure {
            Failure::Error(error) => return error,
            Failure::Refused(refusal) => refusal,
        };
        let (mount, role) = (self.client.conf().mount(), &self.client.conf().role);
        let path = self.path_for(profile);
        let trust_domain = &self.settings.trust_domain;
        let (product, command) = (refusal.product, refusal.product.command());
        let denied = |message: String| refusal.error(ErrorKind::Denied, &message);
        match refusal.status.as_u16() {
            403 if refusal.is_unsettled() => denied(format!(
                "{product} refused to sign, and does not say why: {} is dead (replace it), or a policy of it must grant `update` on `{path}`, unless `pki` or `role` is misspelt",
                self.token_in_words()
            )),
            403 => denied(format!(
                "{product} refused to sign: a policy of the token must grant `update` on `{path}`, unless `pki` or `role` is misspelt, which {product} does not tell apart. {}",
                repair(product, policy, &path, "update")
            )),
            404 | 405 => refusal.error(
                ErrorKind::NotFound,
                &format!(
                    "{product} has no PKI engine at `{mount}`: enable it with `{command} secrets enable -path={mount} pki`, or set `pki` to where it is"
                ),
            ),
            400 if refusal.says("unknown role") => refusal.error(
                ErrorKind::NotFound,
                &format!("{product} has no role `{role}` in `{mount}`: create it with `{command} write {mount}/roles/{role} …`"),
            ),
            // The server calls it an internal error.
            _ if refusal.says("no default issuer") => refusal
                .error(ErrorKind::InvalidConfig, &self.without_ca())
                .with_retry(Retry::Backoff),
            _ if refusal.says("unable to find PKI issuer") => refusal.error(
                ErrorKind::NotFound,
                &format!(
                    "the PKI engine at `{mount}` has no such issuer: import its CA, or correct `issuer` (`{command} list {mount}/issuers` shows them)"
                ),
            ),
            _ if refusal.says("unable to fetch corresponding key") => refusal
                .error(
                    ErrorKind::InvalidConfig,
                    &format!("the issuer that is to sign has no key in `{mount}`: import its key, or set `issuer` to another"),
                )
                .with_retry(Retry::Backoff),
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

    /// The token, for messages.
    fn token_in_words(&self) -> String {
        match &self.client.conf().auth {
            VaultAuth::Token(source) => format!("the token in {}", SourceRef::from(source)),
            _ => "the token".to_owned(),
        }
    }

    /// The words for a mount that is empty.
    pub(crate) fn without_ca(&self) -> String {
        let (mount, command) = (
            self.client.conf().mount(),
            self.client.known_product().command(),
        );
        format!(
            "the PKI engine at `{mount}` has no CA yet: make one with `{command} write {mount}/root/generate/internal …`, or import one"
        )
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
