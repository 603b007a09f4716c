//! As whom the control plane asks AWS.

use std::sync::Arc;
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result, SharedCredentialsProvider};
use aws_sdk_acmpca::config::BehaviorVersion;
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use meshca_core::resource::{AwsCredentials, DataSource};
use meshca_core::secret::SourceReader;
use meshca_core::{Clock, Error, ErrorKind, Retry, SecretValue};
use tokio::sync::OnceCell;

use crate::client::{Now, http_client, timeouts};
use crate::error::in_words;
use crate::role::AssumedRole;
use crate::settings::AcmSettings;

/// The metadata service of EC2.
const INSTANCE: &str = "instance (EC2)";

/// How long an access key is used before it is read again, so that a replaced one is noticed.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// The ID of a temporary key begins with this ("IAM identifiers", IAM's user guide).
const TEMPORARY: &str = "ASIA";

/// The access key of the settings; without one, what the control plane has of its own. A role of the
/// settings is assumed with either.
pub(crate) fn provider(
    settings: &AcmSettings,
    sources: &SourceReader,
    http: &SharedHttpClient,
    clock: &Arc<dyn Clock>,
) -> meshca_core::Result<SharedCredentialsProvider> {
    let own = without_role(settings, sources, http, clock)?;
    Ok(match &settings.role {
        Some(role) => assume(role, settings, own, http.clone(), clock),
        None => own,
    })
}

fn without_role(
    settings: &AcmSettings,
    sources: &SourceReader,
    http: &SharedHttpClient,
    clock: &Arc<dyn Clock>,
) -> meshca_core::Result<SharedCredentialsProvider> {
    if let Some(keys) = &settings.conf.credentials {
        let key = AccessKey {
            keys: keys.clone(),
            sources: sources.clone(),
            clock: Arc::clone(clock),
        };
        return Ok(provided(key, AccessKey::read));
    }
    if !sources.local_sources().lend_identity() {
        return Err(Error::new(
            ErrorKind::Denied,
            "this control plane does not act under its own AWS identity for a resource: set `auth.awsCredentials`",
        ));
    }
    let chain = Chain::new(settings.arn.region(), http)?;
    Ok(provided(chain, Chain::first))
}

/// A provider that asks this source each time.
fn provided<T, F>(source: T, provide: fn(Arc<T>) -> F) -> SharedCredentialsProvider
where
    T: Send + Sync + 'static,
    F: Future<Output = Result> + Send + 'static,
{
    let source = Arc::new(source);
    let provide = move || provide(Arc::clone(&source));
    SharedCredentialsProvider::new(provide_credentials_fn(provide))
}

/// An access key from where the settings say.
struct AccessKey {
    keys: AwsCredentials,
    sources: SourceReader,
    clock: Arc<dyn Clock>,
}

impl AccessKey {
    async fn read(self: Arc<Self>) -> Result {
        let part = async |source: &DataSource, setting: &'static str| {
            let value = self.sources.read(source).await;
            let value: SecretValue = value.map_err(|error| {
                CredentialsError::invalid_configuration(error.with_context("setting", setting))
            })?;
            // Files and `kubectl create secret` end with a line feed.
            let text = value.expose_str().map(str::trim);
            let text = text.filter(|text| !text.is_empty()).ok_or_else(|| {
                let error = Error::new(ErrorKind::InvalidConfig, "the value is empty, or no text");
                CredentialsError::invalid_configuration(error.with_context("setting", setting))
            })?;
            Ok(text.to_owned())
        };
        let (id, secret) = (&self.keys.access_key, &self.keys.access_key_secret);
        let id = part(id, "auth.awsCredentials.accessKey").await?;
        let secret = part(secret, "auth.awsCredentials.accessKeySecret").await?;
        let token = match &self.keys.session_token {
            Some(token) => Some(part(token, "auth.awsCredentials.sessionToken").await?),
            // AWS would say that it does not know the key.
            None if id.starts_with(TEMPORARY) => {
                return Err(CredentialsError::invalid_configuration(Error::new(
                    ErrorKind::InvalidConfig,
                    "the access key is a temporary one (`ASIA…`), which AWS takes with its session token only: set `auth.awsCredentials.sessionToken`",
                )));
            }
            None => None,
        };
        let expires = self.clock.now().checked_add(RELOAD_INTERVAL);
        // It takes ownership of them, and wipes them.
        let credentials = Credentials::new(id, secret, token, expires, "awsCredentials");
        Ok(credentials)
    }
}

/// The places of the SDK's default chain, in its order, each with a name: the SDK's own chain does not say which of them failed.
/// Processes and SSO, which are for people, are not among them.
struct Chain(Vec<(&'static str, Arc<dyn ProvideCredentials>)>);

impl Chain {
    /// `http` reaches AWS. Metadata services are on this machine, so no proxy leads to them.
    fn new(region: &str, http: &SharedHttpClient) -> meshca_core::Result<Self> {
        let region = Region::new(region.to_owned());
        let conf = ProviderConfig::default().with_region(Some(region));
        let near = conf.clone().with_http_client(http_client(None)?);
        let conf = conf.with_http_client(http.clone());
        let environment = EnvironmentVariableCredentialsProvider::new();
        let profile = ProfileFileCredentialsProvider::builder().configure(&conf);
        let token = WebIdentityTokenCredentialsProvider::builder().configure(&conf);
        let container = EcsCredentialsProvider::builder().configure(&near);
        let instance = ImdsCredentialsProvider::builder().configure(&near);
        Ok(Self(vec![
            ("environment", Arc::new(environment)),
            ("profile", Arc::new(profile.build())),
            ("web identity (EKS)", Arc::new(token.build())),
            (
                "container (ECS, EKS Pod Identity)",
                Arc::new(container.build()),
            ),
            (INSTANCE, Arc::new(instance.build())),
        ]))
    }

    async fn first(self: Arc<Self>) -> Result {
        let mut without = Vec::new();
        for (name, provider) in &self.0 {
            match provider.provide_credentials().await {
                Ok(credentials) => return Ok(credentials),
                Err(CredentialsError::CredentialsNotLoaded(_)) => without.push(*name),
                // Nobody sets it up, and where it is not there it fails in many ways.
                Err(_) if *name == INSTANCE => without.push(*name),
                // One that is set up and fails: another identity instead of it would surprise.
                Err(error) => {
                    return Err(CredentialsError::provider_error(Error::new(
                        ErrorKind::Unauthenticated,
                        format!("`{name}` is set up and failed: {}", in_words(&error)),
                    )));
                }
            }
        }
        Err(CredentialsError::not_loaded(Error::new(
            ErrorKind::Unauthenticated,
            format!(
                "none from {}: set one of these up, or name an access key as `auth.awsCredentials`",
                without.join(", ")
            ),
        )))
    }
}

/// Assumes a role when credentials are first needed.
struct Assuming {
    role: AssumedRole,
    config: SdkConfig,
    provider: OnceCell<AssumeRoleProvider>,
}

/// The credentials of the role, by these. The SDK keeps them until shortly before they expire.
fn assume(
    role: &AssumedRole,
    settings: &AcmSettings,
    by: SharedCredentialsProvider,
    http: SharedHttpClient,
    clock: &Arc<dyn Clock>,
) -> SharedCredentialsProvider {
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(settings.arn.region().to_owned()))
        .credentials_provider(by)
        .http_client(http)
        .sleep_impl(TokioSleep::new())
        .time_source(Now(Arc::clone(clock)))
        .timeout_config(timeouts());
    match &role.sts_endpoint {
        Some(endpoint) => config = config.endpoint_url(endpoint),
        None => config = config.use_fips(settings.conf.fips),
    }
    let assuming = Assuming {
        role: role.clone(),
        config: config.build(),
        provider: OnceCell::new(),
    };
    provided(assuming, Assuming::assume)
}

impl Assuming {
    async fn assume(self: Arc<Self>) -> Result {
        let make = || {
            let mut provider = AssumeRoleProvider::builder(&self.role.arn)
                .session_name(&self.role.session_name)
                .configure(&self.config);
            if let Some(id) = &self.role.external_id {
                provider = provider.external_id(id);
            }
            provider.build()
        };
        let provider = self.provider.get_or_init(make).await;
        provider.provide_credentials().await.map_err(|error| {
            // The provider of the credentials below has said what is wrong with them.
            if let CredentialsError::InvalidConfiguration(_) = error {
                return error;
            }
            let why = format!(
                "the role `{}` cannot be assumed: {}. Its trust policy must allow `sts:AssumeRole` to these credentials{}",
                self.role.arn,
                in_words(&error),
                match &self.role.external_id {
                    Some(_) => ", with the external ID that the control plane sends",
                    None => "; if it demands an external ID, set that for the role in the control plane",
                }
            );
            CredentialsError::provider_error(
                Error::new(ErrorKind::Unauthenticated, why).with_retry(Retry::Backoff),
            )
        })
    }
}
