//! AWS Private CA as moto with our plugin stands for it, and issuers on it.

use std::sync::Arc;

use meshca_acm::{AcmIssuer, AcmSettings};
use meshca_core::resource::{AcmConf, AwsCredentials, DataSource};
use meshca_core::secret::SourceReader;
use meshca_core::{IssuingCa, MemorySecretStore};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_testenv::servers::Aws;
use serde_json::Value;

/// Leaves a test out whose servers are missing.
#[macro_export]
macro_rules! needs {
    () => {
        meshca_testenv::needs!(Aws::program())
    };
}

pub(crate) use meshca_testkit::samples::*;

/// For servers that do not look at it.
pub(crate) const ARN: &str = "arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/11111111-1111-1111-1111-111111111111";

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

pub(crate) fn issuer(settings: AcmSettings) -> IssuingCa<AcmIssuer> {
    IssuingCa::new(bare(settings))
}

pub(crate) fn bare(settings: AcmSettings) -> AcmIssuer {
    AcmIssuer::new(settings, sources(), clock()).unwrap()
}

/// A server that refuses everything.
pub(crate) async fn canned() -> CannedServer {
    let server = CannedServer::start().await.unwrap();
    for _ in 0..20 {
        server.answer(CannedResponse::new(400));
    }
    server
}

/// How often AWS was called, and how many certificates a CA has made.
pub(crate) async fn calls(aws: &Aws, operation: &str) -> u64 {
    aws.calls().await.unwrap()[operation].as_u64().unwrap_or(0)
}

pub(crate) async fn issued(aws: &Aws, arn: &str) -> u64 {
    let calls: Value = aws.calls().await.unwrap();
    calls["issued"][arn].as_u64().unwrap_or(0)
}
