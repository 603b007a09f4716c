//! AWS Private CA, as moto and meshca's plugin stand for it, and a bare loop of the SDK beside it.
//!
//! | case | what |
//! |---|---|
//! | `acm` | CSR, `IssueCertificate`, `GetCertificate`: `Issuer::sign` through `meshca-acm`, for a new request each time |
//! | `acm-bare` | the same two calls by the SDK, with the same in them, and a CSR that was made before |
//! | `acm-issue` | key, CSR, both calls, verification: `IssuerExt::issue` |

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_acmpca::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_acmpca::primitives::Blob;
use aws_sdk_acmpca::types::{SigningAlgorithm, Validity, ValidityPeriodType};
use meshca::acm::{AcmIssuer, AcmSettings};
use meshca::resource::{AcmConf, AwsCredentials, DataSource};
use meshca::secret::SourceReader;
use meshca::{
    CertificateRequest, Clock as _, Error, ErrorKind, Issuer as _, IssuerExt as _, KeyType,
    MemorySecretStore, PrivateKey, SystemClock, TrustDomain,
};
use meshca_testenv::servers::{Aws, AwsCaOptions};

use crate::{Provider, Result, spec};

const LIFETIME: Duration = Duration::from_secs(3600);

pub(crate) struct Bench {
    issuer: AcmIssuer,
    bare: aws_sdk_acmpca::Client,
    arn: String,
    key: PrivateKey,
    csr: Blob,
    number: AtomicU64,
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
            key,
            csr: Blob::new(request.csr()?.to_pem()),
            number: AtomicU64::new(0),
            _aws: aws,
        })
    }

    async fn bare(&self) -> Result<()> {
        let end = SystemClock::new().now() + LIFETIME;
        let end = end.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let validity = Validity::builder()
            .r#type(ValidityPeriodType::Absolute)
            .value(end.try_into()?)
            .build()?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let issued = self
            .bare
            .issue_certificate()
            .certificate_authority_arn(&self.arn)
            .csr(self.csr.clone())
            .signing_algorithm(SigningAlgorithm::Sha256Withecdsa)
            .template_arn("arn:aws:acm-pca:::template/EndEntityCertificate/V1")
            .validity(validity)
            .idempotency_token(format!("bare-{number:031}"))
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
                let now = SystemClock::new().now();
                // Its identifier is that of its content, so the content must be new: it would be found otherwise.
                let number = self.number.fetch_add(1, Ordering::Relaxed);
                let spec = spec()?.with_uri(format!("kuma://bench/{number}"));
                let request = CertificateRequest::for_key(spec, &self.key, now)?;
                let chain = self.issuer.sign(&request).await;
                let outcome = chain.as_ref().map(drop);
                let unverified = Error::new(ErrorKind::Internal, "nobody looked at it");
                self.issuer.settled(&request, Err(&unverified)).await;
                Ok(outcome.map_err(Clone::clone)?)
            }
            "acm-issue" => {
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
