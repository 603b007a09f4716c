//! The ways to a token.

#[cfg(feature = "aws-auth")]
pub(crate) mod aws;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use meshca_core::resource::{AppRoleAuth, DataSource, JwtAuth, KubernetesAuth, TlsAuth, VaultAuth};
use meshca_core::secret::SourceRef;
use meshca_core::{Error, ErrorKind, Result, Retry, SecretValue};
use serde::Serialize;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest};
use zeroize::Zeroizing;

use crate::api::{self, TokenInfo};
use crate::client::{Failure, VaultClient, ttl};
use crate::error::misconfigured;
use crate::product::Product;
use crate::refusal::Refusal;
use crate::session::{Authority, Grant, Known};
use crate::token::{Lease, Token};
use crate::transport::{Call, grow};

/// Where Kubernetes mounts the token of a pod's service account.
pub(crate) const SERVICE_ACCOUNT_TOKEN: &str =
    "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Logs in in the way that the settings say.
pub(crate) struct Login {
    pub(crate) client: Arc<VaultClient>,
    #[cfg(feature = "aws-auth")]
    pub(crate) aws: aws::Signer,
}

#[async_trait]
impl Authority for Login {
    async fn log_in(&self) -> Result<Grant> {
        match &self.client.conf().auth {
            VaultAuth::Token(source) => self.given(source).await,
            VaultAuth::Tls(auth) => self.certificate(auth).await,
            VaultAuth::Kubernetes(auth) => self.kubernetes(auth).await,
            VaultAuth::AppRole(auth) => self.app_role(auth).await,
            VaultAuth::Jwt(auth) => self.jwt(auth).await,
            #[cfg(feature = "aws-auth")]
            VaultAuth::Aws(auth) => self.aws(auth).await,
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "this way to log in is not built in: turn on the feature `aws-auth` of `meshca-vault`, or use another one",
            )),
        }
    }

    async fn renew(&self, token: &Token) -> Result<Option<Lease>> {
        let call = api::call(&RenewTokenSelfRequest::default())?;
        match self.client.authenticate(&call, Some(token), None).await {
            Ok((_, lease)) => Ok(Some(lease)),
            // Dead, not renewable (any more), or not allowed to.
            Err(Failure::Refused(Refusal { status, .. }))
                if matches!(status.as_u16(), 400 | 403) =>
            {
                Ok(None)
            }
            Err(failure) => Err(failure.into_error("renew the token")),
        }
    }

    async fn look_up(&self, token: &Token) -> Result<Known> {
        let call = api::call(&LookupTokenSelfRequest::default())?;
        match self.client.ask::<TokenInfo>(&call, Some(token)).await {
            Ok(told) => Ok(Known::Alive(Lease {
                // A token at the very end of its life has `ttl: 0`, like one without an end.
                ttl: match told.data.expire_time {
                    Some(_) => Some(std::time::Duration::from_secs(told.data.ttl)),
                    None => ttl(told.data.ttl),
                },
                renewable: told.data.renewable,
            })),
            // "2 errors occurred: * permission denied * invalid token" is Vault's. Without the second, the token is dead or a
            // policy refuses, which is for another login to find out. These words only make it sooner and the error clearer.
            Err(Failure::Refused(refusal)) if refusal.status.as_u16() == 403 => {
                Ok(match refusal.says("invalid token") {
                    true => Known::Dead,
                    false => Known::Untold,
                })
            }
            Err(failure) => Err(failure.into_error("look up the token")),
        }
    }

    async fn reload(&self, token: Option<&Token>) -> Result<bool> {
        self.client.reload().await?;
        match (&self.client.conf().auth, token) {
            (VaultAuth::Token(source), Some(used)) => Ok(self.given(source).await?.token != *used),
            _ => Ok(false),
        }
    }

    fn only_given(&self) -> bool {
        matches!(self.client.conf().auth, VaultAuth::Token(_))
    }

    fn dead(&self) -> Error {
        let place = match &self.client.conf().auth {
            VaultAuth::Token(source) => SourceRef::from(source).to_string(),
            _ => "what the login gave".to_owned(),
        };
        Error::new(
            ErrorKind::Unauthenticated,
            format!(
                "{} does not know the token in {place} (any more): put a new one there; it is read again without a restart",
                self.client.known_product()
            ),
        )
        .with_retry(Retry::Backoff)
    }
}

impl Login {
    /// `auth.token`: nobody is asked.
    async fn given(&self, source: &DataSource) -> Result<Grant> {
        let value = self.client.read(source, "auth.token").await?;
        let token = Token::new(value.expose());
        Ok(Grant {
            token: token.map_err(|error| error.with_context("source", SourceRef::from(source)))?,
            lease: None,
        })
    }

    /// `auth.tls`: the connection says who we are.
    async fn certificate(&self, auth: &TlsAuth) -> Result<Grant> {
        // The certificate may have been renewed since the connection was set up.
        self.client.reload().await?;
        let mount = auth.mount.as_deref().unwrap_or("cert");
        let hint = format!(
            "is the certificate, or the CA that issued it, registered there (`auth/{mount}/certs/…`), and unexpired?"
        );
        let body = BTreeMap::<&str, &str>::new();
        self.log_in_at(mount, "cert", &body, None, &hint).await
    }

    /// `auth.kubernetes`: the API server vouches for our service account.
    async fn kubernetes(&self, auth: &KubernetesAuth) -> Result<Grant> {
        let path = auth.service_account_token_path.as_deref();
        let path = path.unwrap_or(Path::new(SERVICE_ACCOUNT_TOKEN));
        // Each time: the kubelet replaces it before it expires.
        let setting = "auth.kubernetes.serviceAccountTokenPath";
        let jwt = self.client.read(SourceRef::File(path), setting).await?;
        let jwt = text(&jwt, "the service account's token")?;
        let role = auth.role.as_str();
        let hint = format!(
            "is its config right (`kubernetes_host`, `token_reviewer_jwt`), and does its role `{role}` name this service account, its namespace and the token's audience?"
        );
        let mount = auth.mount.as_deref().unwrap_or("kubernetes");
        let body = BTreeMap::from([("role", role), ("jwt", jwt)]);
        self.log_in_at(mount, "kubernetes", &body, Some(jwt), &hint)
            .await
    }

    /// `auth.appRole`.
    async fn app_role(&self, auth: &AppRoleAuth) -> Result<Grant> {
        let secret = self
            .client
            .read(&auth.secret_id, "auth.appRole.secretId")
            .await?;
        let secret_id = text(&secret, "the secret ID")?;
        let body = BTreeMap::from([("role_id", auth.role_id.as_str()), ("secret_id", secret_id)]);
        let hint = "is `roleId` the role's, and is the secret ID one of it that is neither expired nor used up?";
        let mount = auth.mount.as_deref().unwrap_or("approle");
        self.log_in_at(mount, "approle", &body, Some(secret_id), hint)
            .await
    }

    /// `auth.jwt`: an identity provider vouches for us.
    async fn jwt(&self, auth: &JwtAuth) -> Result<Grant> {
        // Each time: such tokens are short-lived, and something replaces them.
        let token = self.client.read(&auth.token, "auth.jwt.token").await?;
        let jwt = text(&token, "the JSON Web Token")?;
        let mut body = BTreeMap::from([("jwt", jwt)]);
        if let Some(role) = &auth.role {
            body.insert("role", role);
        }
        let role = auth.role.as_deref().unwrap_or("(its default)");
        let hint = format!(
            "is the token unexpired and signed by the provider that its config names, and does its role `{role}` take these claims (`bound_audiences`, `bound_subject`, `bound_claims`, `user_claim`)?"
        );
        let mount = auth.mount.as_deref().unwrap_or("jwt");
        self.log_in_at(mount, "jwt", &body, Some(jwt), &hint).await
    }

    /// `auth.aws`: AWS vouches for the signature under a request to it, which Vault sends on.
    #[cfg(feature = "aws-auth")]
    async fn aws(&self, auth: &meshca_core::resource::AwsAuth) -> Result<Grant> {
        let body = self.aws.login(auth).await?;
        let role = auth.role.as_deref().unwrap_or("(none set)");
        let hint = format!(
            "is this principal bound to its role `{role}` (`bound_iam_principal_arn`), are `iamServerIdHeader` and `stsRegion` what its config has (`iam_server_id_header_value`, `sts_region`)?"
        );
        let mount = auth.mount.as_deref().unwrap_or("aws");
        self.log_in_at(mount, "aws", &body, None, &hint).await
    }

    /// `secret`: what no message may repeat. `hint`: what to look at if the credentials are refused.
    async fn log_in_at(
        &self,
        mount: &str,
        kind: &str,
        body: &impl Serialize,
        secret: Option<&str>,
        hint: &str,
    ) -> Result<Grant> {
        let call = Call {
            method: Method::POST,
            path: format!("auth/{}/login", mount.trim_matches('/')),
            body: secret_body(body)?,
        };
        match self.client.authenticate(&call, None, secret).await {
            Ok((token, lease)) => Ok(Grant {
                token,
                lease: Some(lease),
            }),
            Err(Failure::Error(error)) => Err(error.with_context("login", &call.path)),
            Err(Failure::Refused(refusal)) => Err(match refusal.status.as_u16() {
                // The server calls it an internal error: it names identities after the common name.
                500 if refusal.says("missing name in alias") => refusal
                    .error(
                        ErrorKind::Unauthenticated,
                        &format!(
                            "{} needs a common name in our certificate, by which it names us: use another one for `auth.tls`",
                            refusal.product
                        ),
                    )
                    .with_retry(Retry::Backoff),
                // STS says so, and the server repeats it.
                400 if kind == "aws" && refusal.says("Credential should be scoped to a valid region") => refusal
                    .error(
                        ErrorKind::Unauthenticated,
                        &format!(
                            "{} has STS of another region look at our login than it is signed for: set `stsRegion` under `auth.aws` to the `sts_region` of its config (`{} read auth/{mount}/config/client`)",
                            refusal.product,
                            refusal.product.command()
                        ),
                    )
                    .with_retry(Retry::Backoff),
                400 | 401 | 403 => refusal
                    .error(
                        ErrorKind::Unauthenticated,
                        &format!(
                            "{} refused the login at `auth/{mount}`: {hint} Is the auth method enabled there?",
                            refusal.product
                        ),
                    )
                    // The credentials are read again each time, so a corrected one is found.
                    .with_retry(Retry::Backoff),
                404 | 405 if refusal.product == Product::OpenBao && kind == "aws" => refusal
                    .error(
                        ErrorKind::NotFound,
                        "OpenBao has no login by AWS identities: use another way under `auth`, such as `kubernetes`, `jwt` or `appRole`",
                    )
                    .with_retry(Retry::Backoff),
                404 | 405 => refusal.error(
                    ErrorKind::NotFound,
                    &format!(
                        "{} has no auth method at `auth/{mount}`: enable it with `{} auth enable -path={mount} {kind}`, or set `mount`",
                        refusal.product,
                        refusal.product.command()
                    ),
                )
                .with_retry(Retry::Backoff),
                _ => refusal.into_error("log us in"),
            }),
        }
    }
}

/// A secret that is to go into JSON. A line break at its end is how files end.
fn text<'s>(secret: &'s SecretValue, what: &str) -> Result<&'s str> {
    match secret.expose_str().map(str::trim) {
        Some(text) if !text.is_empty() && !text.contains(char::is_control) => Ok(text),
        _ => Err(misconfigured(format!(
            "{what} is empty, not text, or more than one line"
        ))),
    }
}

/// JSON in memory that is wiped after the last use, and is written nowhere else on the way.
fn secret_body(body: &impl Serialize) -> Result<Bytes> {
    /// Grows without leaving copies behind.
    struct Wiped(Zeroizing<Vec<u8>>);

    impl std::io::Write for Wiped {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            grow(&mut self.0, data);
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let mut json = Wiped(Zeroizing::new(Vec::with_capacity(4096)));
    serde_json::to_writer(&mut json, body).map_err(|error| {
        Error::new(ErrorKind::Internal, "a login cannot be written as JSON").with_source(error)
    })?;
    Ok(Bytes::from_owner(json.0))
}
