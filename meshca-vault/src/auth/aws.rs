//! A signed `GetCallerIdentity`, by which AWS tells Vault who we are.
//!
//! Vault sends the request on to AWS; the secret key stays here. See Vault's `auth/aws`, "IAM auth method".

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full, Limited};
use meshca_core::resource::{AwsAuth, AwsAuthType};
use meshca_core::secret::LocalSources;
use meshca_core::{Error, ErrorKind, Result, Retry, SecretValue};
use reqsign_aws_v4::{Credential, DefaultCredentialProvider, RequestSigner};
use reqsign_core::{Context, FileRead, HttpSend, OsEnv, ProvideCredential, SignRequest};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use url::Url;
use zeroize::Zeroize;

use crate::error::misconfigured;
use crate::tls::Material;
use crate::transport::{Connector, Pool, Proxy};

/// The global endpoint, which is Vault's default, and the region that its signatures are for.
const STS: (&str, &str) = ("sts.amazonaws.com", "us-east-1");

/// How regions begin that are not of the partition `aws`, and the suffix of the hosts there.
const PARTITIONS: [(&str, &str); 6] = [
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
];

/// What a request for STS is made out to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sts {
    url: Url,
    /// As the header has it.
    host: String,
    region: String,
}

impl Sts {
    /// What the settings say. Nothing of it comes from the environment: Vault sends the request on to the endpoint that it is
    /// configured with itself, and AWS compares the region in the signature with that.
    ///
    /// # Errors
    ///
    /// If the endpoint is not an `https://` host, or its name does not say its region and nothing else does.
    pub(crate) fn new(auth: &AwsAuth, endpoint: Option<&str>) -> Result<Self> {
        let region = auth.sts_region.as_deref();
        let address = match (endpoint, region) {
            (Some(endpoint), _) => endpoint.to_owned(),
            (None, None) => format!("https://{}", STS.0),
            (None, Some(region)) => {
                let named = |(prefix, _): &&(&str, &str)| region.starts_with(prefix);
                let suffix = PARTITIONS.iter().find(named).map(|(_, suffix)| *suffix);
                let suffix = suffix.unwrap_or("amazonaws.com");
                format!("https://sts.{region}.{suffix}")
            }
        };
        let url = Url::parse(&address).ok().filter(|url| {
            let plain = url.username().is_empty() && url.password().is_none();
            url.scheme() == "https" && url.path() == "/" && url.query().is_none() && plain
        });
        let host = url.as_ref().and_then(Url::host_str).map(str::to_owned);
        let (Some(url), Some(host)) = (url, host) else {
            return Err(misconfigured(
                "`auth.aws.stsEndpoint` must be the URL of a host, such as `https://sts.eu-central-1.amazonaws.com`",
            ));
        };
        let region = match region {
            Some(region) => region.to_owned(),
            None => region_of(&host).ok_or_else(|| {
                misconfigured(
                    "the name of `auth.aws.stsEndpoint` does not say its region: set `auth.aws.stsRegion` to Vault's `sts_region`",
                )
            })?,
        };
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        Ok(Self { url, host, region })
    }
}

/// The region in the name of an endpoint: `sts.REGION.…`, `sts-fips.REGION.…`, `vpce-….sts.REGION.vpce.…`.
fn region_of(host: &str) -> Option<String> {
    if host == STS.0 {
        return Some(STS.1.to_owned());
    }
    let mut labels = host.split('.');
    labels.find(|label| matches!(*label, "sts" | "sts-fips"))?;
    let region = labels.next()?;
    let sound = region.contains('-') && region.ends_with(|last: char| last.is_ascii_digit());
    if !sound {
        return None;
    }
    Some(region.to_owned())
}

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
    /// What the request is made out to, if not to the endpoint of the region.
    pub(crate) sts_endpoint: Option<String>,
    /// For AWS' own services, where they give the identity by HTTPS.
    pub(crate) proxy: Option<Proxy>,
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
        let Sts { url, host, region } = Sts::new(auth, self.sts_endpoint.as_deref())?;
        let mut request = Request::post(url.as_str()).header(HOST, host).header(
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
        let context = context(self.proxy.as_ref())?;
        let mut credential = self.credential(&context).await?;
        let signed = RequestSigner::new("sts", &region)
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
            iam_request_url: BASE64_STANDARD.encode(url.as_str()),
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
fn context(proxy: Option<&Proxy>) -> Result<Context> {
    Ok(Context::new()
        .with_file_read(Files)
        .with_http_send(Metadata::new(proxy)?)
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
struct Metadata {
    /// For the metadata services, which are on this host or next to it and speak plain HTTP.
    near: Pool,
    /// For STS.
    far: Pool,
}

impl Metadata {
    fn new(proxy: Option<&Proxy>) -> Result<Self> {
        let pool = |proxy, tls| Connector::new(proxy, tls, None, ANSWER).pool();
        Ok(Self {
            near: pool(None, Material::no_config()?),
            far: pool(proxy, Material::default().config()?),
        })
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
        let pool = match request.uri().scheme_str() {
            Some("https") => &self.far,
            _ => &self.near,
        };
        let answer = tokio::time::timeout(ANSWER, pool.request(request.map(Full::new)));
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

#[cfg(test)]
mod tests {
    use meshca_core::ErrorKind;

    use super::*;

    fn sts(region: Option<&str>, endpoint: Option<&str>) -> Result<Sts> {
        let mut auth = AwsAuth::new(AwsAuthType::Iam);
        auth.sts_region = region.map(str::to_owned);
        Sts::new(&auth, endpoint)
    }

    #[test]
    fn requests_are_made_out_to_the_region_of_the_settings() {
        let vpc = "https://vpce-0a1b-c2d3.sts.eu-central-1.vpce.amazonaws.com";
        for (region, endpoint, host, scope) in [
            (None, None, "sts.amazonaws.com", "us-east-1"),
            (
                Some("eu-central-1"),
                None,
                "sts.eu-central-1.amazonaws.com",
                "eu-central-1",
            ),
            (
                Some("us-gov-west-1"),
                None,
                "sts.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
            ),
            (
                Some("cn-north-1"),
                None,
                "sts.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
            ),
            (
                None,
                Some("https://sts.eu-west-1.amazonaws.com/"),
                "sts.eu-west-1.amazonaws.com",
                "eu-west-1",
            ),
            (
                None,
                Some("https://sts-fips.us-east-2.amazonaws.com"),
                "sts-fips.us-east-2.amazonaws.com",
                "us-east-2",
            ),
            (
                None,
                Some("https://sts.amazonaws.com"),
                "sts.amazonaws.com",
                "us-east-1",
            ),
            (
                None,
                Some(vpc),
                vpc.strip_prefix("https://").unwrap(),
                "eu-central-1",
            ),
            (
                Some("eu-central-1"),
                Some("https://sts.corp.example:8443"),
                "sts.corp.example:8443",
                "eu-central-1",
            ),
        ] {
            let sts = sts(region, endpoint).unwrap();
            assert_eq!((sts.host.as_str(), sts.region.as_str()), (host, scope));
        }
    }

    #[test]
    fn an_endpoint_that_says_no_region_is_refused() {
        for endpoint in [
            "https://sts.corp.example",
            "https://sts.example",
            "http://sts.eu-west-1.amazonaws.com",
            "https://sts.eu-west-1.amazonaws.com/path",
            "https://me:secret@sts.eu-west-1.amazonaws.com",
            "sts.eu-west-1.amazonaws.com",
        ] {
            let error = sts(None, Some(endpoint)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{endpoint}");
            assert!(error.to_string().contains("`auth.aws.sts"), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
