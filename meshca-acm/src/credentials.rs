//! As whom the control plane asks AWS.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Provided;
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
        return Ok(SharedCredentialsProvider::new(AccessKey {
            keys: keys.clone(),
            sources: sources.clone(),
            clock: Arc::clone(clock),
        }));
    }
    if sources.local_sources() == LocalSources::Refused {
        return Err(Error::new(
            ErrorKind::Denied,
            "this control plane does not act under its own AWS identity for a resource: set `auth.awsCredentials`",
        ));
    }
    Ok(SharedCredentialsProvider::new(Chain::new(region)))
}

/// An access key from where the settings say.
struct AccessKey {
    keys: AwsCredentials,
    sources: SourceReader,
    clock: Arc<dyn Clock>,
}

impl AccessKey {
    async fn read(&self) -> Result {
        let part = async |source: &DataSource, setting: &'static str| {
            let value = self.sources.read(source).await;
            let value: SecretValue = value.map_err(|error| {
                CredentialsError::invalid_configuration(error.with_context("setting", setting))
            })?;
            // Files and `kubectl create secret` end with a line feed.
            let text = value.expose_str().map(str::trim);
            match text {
                Some(text) if !text.is_empty() => Ok(text.to_owned()),
                _ => Err(CredentialsError::invalid_configuration(
                    Error::new(ErrorKind::InvalidConfig, "the value is empty, or no text")
                        .with_context("setting", setting),
                )),
            }
        };
        let id = part(&self.keys.access_key, "auth.awsCredentials.accessKey").await?;
        let secret = part(
            &self.keys.access_key_secret,
            "auth.awsCredentials.accessKeySecret",
        )
        .await?;
        let expires = self.clock.now().checked_add(RELOAD_INTERVAL);
        // It takes ownership of both, and wipes them.
        Ok(Credentials::new(
            id,
            secret,
            None,
            expires,
            "awsCredentials",
        ))
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").finish_non_exhaustive()
    }
}

impl ProvideCredentials for AccessKey {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        Provided::new(self.read())
    }
}

/// The places of the SDK's default chain, in its order, each with a name: the SDK's own chain does not say which of them failed.
/// Processes and SSO, which are for people, are not among them.
struct Chain(Vec<(&'static str, SharedCredentialsProvider)>);

impl Chain {
    fn new(region: &str) -> Self {
        let region = Region::new(region.to_owned());
        let conf = ProviderConfig::default().with_region(Some(region));
        let named = |name, provider| (name, provider);
        Self(vec![
            named(
                "environment",
                SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()),
            ),
            named(
                "profile",
                SharedCredentialsProvider::new(
                    ProfileFileCredentialsProvider::builder()
                        .configure(&conf)
                        .build(),
                ),
            ),
            named(
                "web identity (EKS)",
                SharedCredentialsProvider::new(
                    WebIdentityTokenCredentialsProvider::builder()
                        .configure(&conf)
                        .build(),
                ),
            ),
            named(
                "container (ECS, EKS Pod Identity)",
                SharedCredentialsProvider::new(
                    EcsCredentialsProvider::builder().configure(&conf).build(),
                ),
            ),
            named(
                INSTANCE,
                SharedCredentialsProvider::new(
                    ImdsCredentialsProvider::builder().configure(&conf).build(),
                ),
            ),
        ])
    }

    async fn first(&self) -> Result {
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

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Chain").finish_non_exhaustive()
    }
}

impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        Provided::new(self.first())
    }
}
