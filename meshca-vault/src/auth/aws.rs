//! A signed `GetCallerIdentity`, by which AWS tells Vault who we are.
//!
//! Vault sends the request on to AWS; the secret key stays here. See Vault's `auth/aws`, "IAM auth method".

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use meshca_core::resource::{AwsAuth, AwsAuthType};
use meshca_core::secret::LocalSources;
use meshca_core::{Error, ErrorKind, Result, Retry, SecretValue};
use reqsign_aws_v4::{Credential, DefaultCredentialProvider, RequestSigner};
use reqsign_core::{Context, FileRead, HttpSend, OsEnv, ProvideCredential, SignRequest};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use zeroize::Zeroize;

use crate::error::misconfigured;
use crate::tls::Material;

/// The global endpoint, which is Vault's default, and the region that its signatures are for.
const STS: (&str, &str) = ("sts.amazonaws.com", "us-east-1");
const REQUEST: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const SERVER_ID: &str = "x-vault-aws-iam-server-id";

/// An access key, where the control plane does not use its own identity.
#[derive(Clone)]
pub(crate) struct AccessKey {
    pub(crate) id: String,
    pub(crate) secret: SecretValue,
    pub(crate) session_token: Option<SecretValue>,
}

/// Signs with the control plane's AWS identity.
#[derive(derive_more::Debug)]
#[debug("Signer {{ access_key: {}, .. }}", access_key.is_some())]
pub(crate) struct Signer {
    pub(crate) access_key: Option<AccessKey>,
    /// Whether the control plane's own identity may be used.
    pub(crate) local: LocalSources,
}

/// What `auth/aws/login` takes.
#[derive(Serialize)]
pub(super) struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    iam_http_request_method: &'static str,
    iam_request_url: String,
    iam_request_body: String,
    iam_request_headers: String,
}

impl Signer {
    pub(super) async fn login(&self, auth: &AwsAuth) -> Result<Body> {
        if auth.auth_type != AwsAuthType::Iam {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "`auth.aws.type: EC2` is not supported: use `IAM`, which works on EC2 as well",
            ));
        }
        let (host, region) = STS;
        let url = format!("https://{host}/");
        let mut request = Request::post(&url).header(HOST, host).header(
            CONTENT_TYPE,
            "application/x-www-form-urlencoded; charset=utf-8",
        );
        if let Some(id) = &auth.iam_server_id_header {
            let id = HeaderValue::from_str(id).map_err(|error| {
                misconfigured(
                    "`auth.aws.iamServerIdHeader` holds characters that no header can carry",
                )
                .with_source(error)
            })?;
            request = request.header(SERVER_ID, id);
        }
        let request = request.body(Bytes::from_static(REQUEST.as_bytes()));
        let (mut parts, body) = request.map_err(internal)?.into_parts();
        let context = context()?;
        let mut credential = self.credential(&context).await?;
        let signed = RequestSigner::new("sts", region)
            .with_standard_session_token()
            .sign_request(&context, &mut parts, Some(&credential), None)
            .await;
        credential.secret_access_key.zeroize();
        credential.session_token.zeroize();
        signed.map_err(internal)?;
        let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, value) in &parts.headers {
            let value = value.to_str().map_err(internal)?;
            headers.entry(name.as_str()).or_default().push(value);
        }
        let headers = serde_json::to_vec(&headers).map_err(internal)?;
        Ok(Body {
            role: auth.role.clone(),
            iam_http_request_method: "POST",
            iam_request_url: BASE64_STANDARD.encode(url),
            iam_request_body: BASE64_STANDARD.encode(body),
            iam_request_headers: BASE64_STANDARD.encode(headers),
        })
    }

    async fn credential(&self, context: &Context) -> Result<Credential> {
        if let Some(key) = &self.access_key {
            let text = |secret: &SecretValue| {
                let text = secret.expose_str().map(|text| text.trim().to_owned());
                text.ok_or_else(|| misconfigured("the AWS secret access key is no text"))
            };
            return Ok(Credential {
                access_key_id: key.id.clone(),
                secret_access_key: text(&key.secret)?,
                session_token: key.session_token.as_ref().map(text).transpose()?,
                expires_in: None,
            });
        }
        if !self.local.lend_identity() {
            return Err(Error::new(
                ErrorKind::Denied,
                "`auth.aws` would use the control plane's own AWS identity, which local sources are refused for: use another way to log in",
            ));
        }
        let found = DefaultCredentialProvider::new()
            .provide_credential(context)
            .await;
        let nothing = || {
            Error::new(
                ErrorKind::Unauthenticated,
                "the control plane has no AWS identity: give it one by a role (EC2, ECS, EKS) or by an access key in the environment or the profile",
            )
            .with_retry(Retry::Backoff)
        };
        found
            .map_err(|error| nothing().with_source(error))?
            .ok_or_else(nothing)
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "the AWS request cannot be signed").with_source(error)
}

/// The places in which AWS credentials are by custom: environment, profile, web identity, ECS, EC2.
fn context() -> Result<Context> {
    Ok(Context::new()
        .with_file_read(Files)
        .with_http_send(Metadata::new()?)
        .with_env(OsEnv))
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        std::fs::read(path).map_err(|error| {
            reqsign_core::Error::unexpected("a file cannot be read").with_source(error)
        })
    }
}

/// Asks AWS' own services for credentials.
#[derive(Debug)]
struct Metadata(
    Client<
        hyper_rustls::HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>,
        Full<Bytes>,
    >,
);

impl Metadata {
    fn new() -> Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(Material::default().config()?)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }
}

/// How long AWS' services have for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// More than any answer of the metadata services or STS.
const MAX_ANSWER: usize = 64 * 1024;

impl HttpSend for Metadata {
    async fn http_send(
        &self,
        request: Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            reqsign_core::Error::unexpected("no answer from AWS").with_source(Opaque(error))
        };
        // None of these takes long where it is there at all; where it is not, packets may just vanish.
        let answer = tokio::time::timeout(ANSWER, self.0.request(request.map(Full::new)));
        let response = answer.await.map_err(|late| failed(late.into()))?;
        let (parts, body) = response.map_err(|error| failed(error.into()))?.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(failed)?;
        Ok(http::Response::from_parts(parts, body.to_bytes()))
    }
}

/// A boxed error as one of a type.
#[derive(Debug, derive_more::Display, derive_more::Error)]
struct Opaque(#[error(not(source))] Box<dyn std::error::Error + Send + Sync>);
