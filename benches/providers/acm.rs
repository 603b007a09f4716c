//! AWS Private CA, as moto and meshca's plugin stand for it, and a bare loop of the SDK beside it.
//!
//! | case | what |
//! |---|---|
//! | `acm` | key, CSR, `IssueCertificate`, `GetCertificate`, verification: `IssuerExt::issue` through `meshca-acm` |
//! | `acm-bare` | the same two calls by the SDK, with a CSR that was made before: no key, no verification |

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_acmpca::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_acmpca::primitives::Blob;
use aws_sdk_acmpca::types::{SigningAlgorithm, Validity, ValidityPeriodType};
use meshca::acm::{AcmIssuer, AcmSettings};
use meshca::resource::{AcmConf, AwsCredentials, DataSource};
use meshca::secret::SourceReader;
use meshca::{
    CertificateRequest, CertificateSpec, Clock as _, IssuerExt as _, KeyType, MemorySecretStore,
    PrivateKey, SpiffeId, SystemClock, TrustDomain,
};
use meshca_testkit::servers::{Aws, AwsCaOptions};

use crate::{Provider, Result};

pub(crate) struct Bench {
    issuer: AcmIssuer,
    bare: aws_sdk_acmpca::Client,
    arn: String,
    csr: Blob,
    _aws: Aws,
}

impl Bench {
    pub(crate) async fn new() -> Result<Self> {
        let aws = Aws::start().await?;
        let arn = aws.create_ca(&AwsCaOptions::new()).await?;
        let mut conf = AcmConf::new(&arn);
        conf.credentials = Some(AwsCredentials::new(
            DataSource::InlineString("AKIAEXAMPLE".into()),
            DataSource::InlineString("example".into()),
        ));
        // AWS' quotas are not what is measured.
        let any = NonZeroU32::new(1_000_000).ok_or("zero")?;
        let settings = AcmSettings::new(conf, TrustDomain::new("example.org")?)?
            .with_issue_rate(any)
            .with_fetch_rate(any)
            .with_endpoint(aws.address());
        let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
        let issuer = AcmIssuer::new(settings, sources, Arc::new(SystemClock::new()))?;
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(
                "AKIAEXAMPLE",
                "example",
                None,
                None,
                "bench",
            ))
            .endpoint_url(aws.address())
            .build();
        let key = PrivateKey::generate(KeyType::P256)?;
        let request = CertificateRequest::for_key(spec()?, &key, SystemClock::new().now())?;
        Ok(Self {
            issuer,
            bare: aws_sdk_acmpca::Client::from_conf(config),
            arn,
            csr: Blob::new(request.csr()?.to_pem()),
            _aws: aws,
        })
    }

    async fn bare(&self) -> Result<()> {
        let validity = Validity::builder()
            .r#type(ValidityPeriodType::Days)
            .value(1)
            .build()?;
        let issued = self
            .bare
            .issue_certificate()
            .certificate_authority_arn(&self.arn)
            .csr(self.csr.clone())
            .signing_algorithm(SigningAlgorithm::Sha256Withecdsa)
            .validity(validity)
            .send()
            .await?;
        self.bare
            .get_certificate()
            .certificate_authority_arn(&self.arn)
            .set_certificate_arn(issued.certificate_arn)
            .send()
            .await?;
        Ok(())
    }
}

#[async_trait]
impl Provider for Bench {
    async fn run(&self, case: &str) -> Result<()> {
        match case {
            "acm" => {
                self.issuer.issue(&spec()?, &SystemClock::new()).await?;
                Ok(())
            }
            "acm-bare" => self.bare().await,
            _ => Err(format!("there is no case `{case}`").into()),
        }
    }

    async fn count(&self, _: &str) -> Result<Option<(usize, usize)>> {
        Ok(None)
    }
}

fn spec() -> Result<CertificateSpec> {
    let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?;
    Ok(CertificateSpec::workload(id).with_lifetime(std::time::Duration::from_secs(3600)))
}
