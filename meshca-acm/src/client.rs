//! The SDK's clients, as these settings have them and nothing else does.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_acmpca::Client;
use aws_sdk_acmpca::config::retry::RetryConfig;
use aws_sdk_acmpca::config::timeout::TimeoutConfig;
use aws_sdk_acmpca::config::{BehaviorVersion, Config, Region};
use aws_smithy_async::time::TimeSource;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use meshca_core::{Clock, Error, ErrorKind, Result};

use crate::error::QuotaIsFinal;
use crate::settings::AcmSettings;

/// How long AWS has for one answer, and for a connection.
const ANSWER: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// How often a call is made again that was throttled or failed on the way; each of them costs a second or so.
const ATTEMPTS: u32 = 4;

/// Nothing is read from the environment: region, endpoint and proxy are those of the settings.
pub(crate) fn client(
    settings: &AcmSettings,
    credentials: SharedCredentialsProvider,
    http: SharedHttpClient,
    clock: &Arc<dyn Clock>,
) -> Client {
    let mut config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(settings.arn.region().to_owned()))
        .use_fips(settings.conf.fips)
        .credentials_provider(credentials)
        .http_client(http)
        .time_source(Now(Arc::clone(clock)))
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .retry_classifier(QuotaIsFinal)
        .timeout_config(timeouts());
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

/// For each call, whatever it asks of AWS.
pub(crate) fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .operation_attempt_timeout(ANSWER)
        .build()
}

/// The SDK's HTTP client, by this proxy or none. Its default one takes proxies from the environment.
pub(crate) fn http_client(proxy: Option<&str>) -> Result<SharedHttpClient> {
    let proxy = match proxy {
        None => ProxyConfig::disabled(),
        Some(url) => {
            let invalid = |why: String| {
                let why = format!(
                    "the proxy is not an address such as `http://proxy.example:3128`: {why}"
                );
                Error::new(ErrorKind::InvalidConfig, why)
            };
            // The SDK would take a part of the address for the user's name, and send it.
            if !url.starts_with("http://") || url.contains('@') {
                return Err(invalid(
                    "it begins with `http://` and holds no user".to_owned(),
                ));
            }
            ProxyConfig::all(url).map_err(|error| invalid(error.to_string()))?
        }
    };
    Ok(
        Builder::new().build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder()
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .proxy_config(proxy.clone());
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(components.and_then(|it| it.sleep_impl()));
            connector.build()
        }),
    )
}

/// The clock that we are given, for signatures.
#[derive(Debug)]
pub(crate) struct Now(pub(crate) Arc<dyn Clock>);

impl TimeSource for Now {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}
