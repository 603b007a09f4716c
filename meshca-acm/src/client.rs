//! The SDK's client, as these settings have it and nothing else does.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_acmpca::Client;
use aws_sdk_acmpca::config::retry::RetryConfig;
use aws_sdk_acmpca::config::timeout::TimeoutConfig;
use aws_sdk_acmpca::config::{BehaviorVersion, Config, Region};
use aws_smithy_async::time::TimeSource;
use meshca_core::Clock;

use crate::error::QuotaIsFinal;
use crate::settings::AcmSettings;

/// How long AWS has for one answer, and for a connection.
const ANSWER: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// How often a call is made again that was throttled or failed on the way; each of them costs a second or so.
const ATTEMPTS: u32 = 4;

/// Nothing is read from the environment: region and endpoint are those of the settings.
pub(crate) fn client(
    settings: &AcmSettings,
    credentials: SharedCredentialsProvider,
    clock: &Arc<dyn Clock>,
) -> Client {
    let mut config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(settings.arn.region().to_owned()))
        .credentials_provider(credentials)
        .time_source(Now(Arc::clone(clock)))
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .retry_classifier(QuotaIsFinal)
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT)
                .operation_attempt_timeout(ANSWER)
                .build(),
        );
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

/// The clock that we are given, for signatures.
#[derive(Debug)]
struct Now(Arc<dyn Clock>);

impl TimeSource for Now {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}
