//! A role that the control plane assumes before it calls a CA.

use std::sync::Arc;

use aws_config::sts::AssumeRoleProvider;
use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_acmpca::config::BehaviorVersion;
use aws_sdk_acmpca::config::timeout::TimeoutConfig;
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use meshca_core::{Clock, Error, ErrorKind, Retry};
use tokio::sync::OnceCell;

use crate::client::{ANSWER, CONNECT, Now};
use crate::credentials::provided;
use crate::error::in_words;
use crate::settings::AcmSettings;

/// A role of IAM to act under: that of the account which owns the CA, for instance.
///
/// The control plane assumes it with the credentials of the resource, or with its own identity.
///
/// ```
/// use meshca_acm::AssumedRole;
///
/// let role = AssumedRole::new("arn:aws:iam::123456789012:role/pca-issuer").with_external_id("mesh-1");
/// let factory = meshca_acm::factory().with_named_role("security-account", role);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct AssumedRole {
    arn: String,
    external_id: Option<String>,
    session_name: String,
    sts_endpoint: Option<String>,
}

impl AssumedRole {
    /// The role with this ARN, under the session name `meshca`.
    pub fn new(arn: impl Into<String>) -> Self {
        Self {
            arn: arn.into(),
            external_id: None,
            session_name: "meshca".to_owned(),
            sts_endpoint: None,
        }
    }

    /// Sends the external ID that the role's trust policy demands.
    pub fn with_external_id(mut self, id: impl Into<String>) -> Self {
        self.external_id = Some(id.into());
        self
    }

    /// Sets the name of the session, by which CloudTrail tells control planes apart: 2 to 64
    /// letters, digits and `=,.@-_`.
    pub fn with_session_name(mut self, name: impl Into<String>) -> Self {
        self.session_name = name.into();
        self
    }

    /// Calls another address than AWS' own for STS in the CA's region: a VPC endpoint, or a test
    /// server.
    pub fn with_sts_endpoint(mut self, url: impl Into<String>) -> Self {
        self.sts_endpoint = Some(url.into());
        self
    }
}

/// Assumes a role when credentials are first needed.
struct Assuming {
    role: AssumedRole,
    config: SdkConfig,
    provider: OnceCell<AssumeRoleProvider>,
}

/// The credentials of the role, by these. The SDK keeps them until shortly before they expire.
pub(crate) fn assume(
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
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT)
                .operation_attempt_timeout(ANSWER)
                .build(),
        );
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
    async fn assume(self: Arc<Self>) -> aws_credential_types::provider::Result {
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
