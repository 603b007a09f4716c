//! AWS Private CA as moto with our plugin stands for it, and issuers on it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meshca_acm::{AcmIssuer, AcmSettings};
use meshca_core::resource::{AcmConf, AwsCredentials, DataSource};
use meshca_core::secret::SourceReader;
use meshca_core::{
    CertificateSpec, KeyType, MemorySecretStore, PrivateKey, SpiffeId, SystemClock, TrustDomain,
};
use meshca_testkit::servers::Aws;
use serde_json::Value;

/// Skips a test whose server is missing; `cargo xtask test` counts these by their names.
#[macro_export]
macro_rules! needs {
    () => {
        if let Err(missing) = Aws::program() {
            eprintln!("left out: {missing}");
            return;
        }
    };
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

pub(crate) fn id() -> SpiffeId {
    SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").unwrap()
}

pub(crate) fn spec() -> CertificateSpec {
    CertificateSpec::workload(id()).with_lifetime(Duration::from_secs(3600))
}

pub(crate) fn clock() -> Arc<SystemClock> {
    Arc::new(SystemClock::new())
}

/// RSA keys take seconds to make, and these tests are about CAs.
pub(crate) fn rsa_keys() -> &'static [PrivateKey] {
    static KEYS: OnceLock<Vec<PrivateKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        KeyType::ALL
            .into_iter()
            .filter(|key_type| key_type.is_rsa())
            .map(|key_type| PrivateKey::generate(key_type).unwrap())
            .collect()
    })
}

/// With an access key; moto checks no signature.
pub(crate) fn conf(arn: &str) -> AcmConf {
    let mut conf = AcmConf::new(arn);
    conf.credentials = Some(AwsCredentials::new(
        DataSource::InlineString("AKIAIOSFODNN7EXAMPLE".into()),
        DataSource::InlineString("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n".into()),
    ));
    conf
}

pub(crate) fn settings(address: impl Into<String>, arn: &str) -> AcmSettings {
    AcmSettings::new(conf(arn), domain())
        .unwrap()
        .with_endpoint(address)
}

pub(crate) fn sources() -> SourceReader {
    SourceReader::new(Arc::new(MemorySecretStore::new()), "default").unwrap()
}

pub(crate) fn issuer(settings: AcmSettings) -> AcmIssuer {
    AcmIssuer::new(settings, sources(), clock()).unwrap()
}

/// How often AWS was called, and how many certificates a CA has made.
pub(crate) async fn calls(aws: &Aws, operation: &str) -> u64 {
    aws.calls().await.unwrap()[operation].as_u64().unwrap_or(0)
}

pub(crate) async fn issued(aws: &Aws, arn: &str) -> u64 {
    let calls: Value = aws.calls().await.unwrap();
    calls["issued"][arn].as_u64().unwrap_or(0)
}
