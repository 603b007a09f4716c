//! As whom the control plane asks AWS.

use std::sync::Arc;
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result, SharedCredentialsProvider};
use aws_types::region::Region;
use meshca_core::resource::{AwsCredentials, DataSource};
use meshca_core::secret::{LocalSources, SourceReader};
use meshca_core::{Clock, Error, ErrorKind, SecretValue};

use crate::error::in_words;

/// The metadata service of EC2.
const INSTANCE: &str = "instance (EC2)";

/// How long an access key is used before it is read again, so that a replaced one is noticed.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// The access key of the settings; without one, what the control plane has of its own.
pub(crate) fn provider(
    credentials: Option<&AwsCredentials>,
    sources: &SourceReader,
    region: &str,
    clock: &Arc<dyn Clock>,
) -> meshca_core::Result<SharedCredentialsProvider> {
    if let Some(keys) = credentials {
        let key = AccessKey {
            keys: keys.clone(),
            sources: sources.clone(),
            clock: Arc::clone(clock),
        };
        return Ok(provided(key, AccessKey::read));
    }
    if sources.local_sources() == LocalSources::Refused {
        return Err(Error::new(
            ErrorKind::Denied,
            "this control plane does not act under its own AWS identity for a resource: set `auth.awsCredentials`",
        ));
    }
    Ok(provided(Chain::new(region), Chain::first))
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
        let expires = self.clock.now().checked_add(RELOAD_INTERVAL);
        // It takes ownership of both, and wipes them.
        let credentials = Credentials::new(id, secret, None, expires, "awsCredentials");
        Ok(credentials)
    }
}

/// The places of the SDK's default chain, in its order, each with a name: the SDK's own chain does not say which of them failed.
/// Processes and SSO, which are for people, are not among them.
struct Chain(Vec<(&'static str, Arc<dyn ProvideCredentials>)>);

impl Chain {
    fn new(region: &str) -> Self {
        let region = Region::new(region.to_owned());
        let conf = ProviderConfig::default().with_region(Some(region));
        let environment = EnvironmentVariableCredentialsProvider::new();
        let profile = ProfileFileCredentialsProvider::builder().configure(&conf);
        let token = WebIdentityTokenCredentialsProvider::builder().configure(&conf);
        let container = EcsCredentialsProvider::builder().configure(&conf);
        let instance = ImdsCredentialsProvider::builder().configure(&conf);
        Self(vec![
            ("environment", Arc::new(environment)),
            ("profile", Arc::new(profile.build())),
            ("web identity (EKS)", Arc::new(token.build())),
            (
                "container (ECS, EKS Pod Identity)",
                Arc::new(container.build()),
            ),
            (INSTANCE, Arc::new(instance.build())),
        ])
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
