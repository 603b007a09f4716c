//! The name of a CA in AWS.

use std::str::FromStr;

use meshca_core::{Error, ErrorKind, Result};

/// `arn:<partition>:acm-pca:<region>:<account>:certificate-authority/<id>`
/// (Service Authorization Reference, "Actions, resources, and condition keys for AWS Private Certificate Authority").
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[display("{text}")]
pub(crate) struct CaArn {
    text: String,
    partition: String,
    region: String,
    account: String,
}

impl CaArn {
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    pub(crate) fn account(&self) -> &str {
        &self.account
    }

    /// A template of AWS, in the partition of the CA: a CA in China refuses those of `aws`.
    pub(crate) fn template(&self, name: &str) -> String {
        format!("arn:{}:acm-pca:::template/{name}/V1", self.partition)
    }

    /// A certificate that this CA cannot have issued.
    pub(crate) fn no_certificate(&self) -> String {
        format!("{}/certificate/{}", self.text, "0".repeat(32))
    }
}

impl FromStr for CaArn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split(':').collect();
        let ["arn", partition, "acm-pca", region, account, resource] = *parts else {
            return Err(malformed(text));
        };
        let id = resource.strip_prefix("certificate-authority/");
        let sound = |part: &str| {
            let mut bytes = part.bytes();
            !part.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !id.is_some_and(sound) || ![partition, region, account].into_iter().all(sound) {
            return Err(malformed(text));
        }
        Ok(Self {
            text: text.to_owned(),
            partition: partition.to_owned(),
            region: region.to_owned(),
            account: account.to_owned(),
        })
    }
}

fn malformed(text: &str) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        "this is not the ARN of a CA: it has the form `arn:<partition>:acm-pca:<region>:<account>:certificate-authority/<id>`",
    )
    .with_context("arn", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_an_arn() {
        for (text, region, template) in [
            (
                "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/0a1b",
                "eu-central-1",
                "arn:aws:acm-pca:::template/EndEntityCertificate/V1",
            ),
            (
                "arn:aws-cn:acm-pca:cn-north-1:123456789012:certificate-authority/0a1b",
                "cn-north-1",
                "arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1",
            ),
        ] {
            let arn: CaArn = text.parse().unwrap();
            assert_eq!((arn.region(), arn.account()), (region, "123456789012"));
            assert_eq!(arn.template("EndEntityCertificate"), template);
            assert_eq!(arn.to_string(), text);
        }
        for broken in [
            "",
            "arn:aws:acm-pca:eu-central-1:123456789012",
            "arn:aws:acm:eu-central-1:123456789012:certificate-authority/0a1b",
            "arn:aws:acm-pca::123456789012:certificate-authority/0a1b",
            "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/",
            "arn:aws:acm-pca:eu-central-1:123456789012:certificate/0a1b",
            "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/0a1b/certificate/1",
            "arn:aws:acm-pca:eu central-1:123456789012:certificate-authority/0a1b",
            "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/0a1b:x",
        ] {
            let error = broken.parse::<CaArn>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{broken}");
        }
    }
}
