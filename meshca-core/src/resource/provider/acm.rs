//! Settings of AWS Private CA.

use serde_json::json;

use super::super::datasource::DataSource;
use super::super::declare::{Mapping, mapping};
use super::super::decode::Clip;
use super::super::field::{Described, Group, defaulted, optional, required};
#[cfg(feature = "schema")]
use super::super::free_form::FreeForm;
use super::super::settings::{self, Cursor, Fields, Settings, Spelling};
use super::option_name;
use crate::spiffe::NameTemplate;

mapping! {
    /// Which CA of AWS Private CA signs, and how to log in.
    #[derive(Clone, Debug, PartialEq)]
    #[non_exhaustive]
    pub struct AcmConf as "AcmSettings" {
        /// The CA: `arn:aws:acm-pca:<region>:<account>:certificate-authority/<id>`. The region is in it.
        pub arn: String = required("arn", Described(arn, || json!({
            "pattern": "^arn:[0-9A-Za-z-]+:acm-pca:[0-9A-Za-z-]+:[0-9A-Za-z-]+:certificate-authority/[0-9A-Za-z-]+$",
        }))),
        /// A template for the certificate's common name. No common name if absent.
        pub common_name: Option<NameTemplate> = optional("commonName", settings::name_template),
        /// The roots that the CA must chain to; what the CA says of itself if absent.
        pub ca_cert: Option<DataSource> = optional("caCert", settings::public),
        /// Calls AWS' endpoints for FIPS 140 in the region.
        pub fips: bool = defaulted("fips", settings::boolean),
        /// The name of an endpoint to call instead of AWS' own: a VPC endpoint. What the name stands
        /// for is an option of the control plane, as for the other names here.
        pub endpoint: Option<String> = optional("endpoint", option_name),
        /// The name of a proxy. Without it, the control plane's default. The environment does not
        /// count.
        pub proxy: Option<String> = optional("proxy", option_name),
        /// The name of a role to assume before the CA is called.
        pub assume_role: Option<String> = optional("assumeRole", option_name),
        /// How to log in; the SDK's default chain if absent.
        pub credentials: Option<AwsCredentials> =
            optional("auth", Group(optional("awsCredentials", AwsCredentials::read))),
    }
}

impl AcmConf {
    /// With the SDK's default chain of credentials.
    pub fn new(arn: impl Into<String>) -> Self {
        Self {
            arn: arn.into(),
            common_name: None,
            ca_cert: None,
            fips: false,
            endpoint: None,
            proxy: None,
            assume_role: None,
            credentials: None,
        }
    }
}

mapping! {
    /// `auth.awsCredentials`: an access key.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct AwsCredentials {
        /// The key's ID.
        pub access_key: DataSource = required("accessKey", settings::public),
        /// The key.
        pub access_key_secret: DataSource = required("accessKeySecret", settings::secret),
        /// The session token of a temporary key, whose ID begins with `ASIA`.
        pub session_token: Option<DataSource> = optional("sessionToken", settings::secret),
    }
}

impl AwsCredentials {
    /// Both are needed. A temporary key needs the [session token](Self::session_token) as well.
    pub fn new(access_key: DataSource, access_key_secret: DataSource) -> Self {
        Self {
            access_key,
            access_key_secret,
            session_token: None,
        }
    }
}

impl Settings for AcmConf {
    const TYPE: &'static str = "acmpca";
    const SPELLING: Spelling = Spelling {
        alias: Some("acm"),
        block: Some("acm"),
        ..Spelling::ONE
    };

    fn read(f: &mut Fields<'_>) -> Option<Self> {
        Self::read_fields(f)
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<Self>()
    }

    fn common_name(&self) -> Option<&NameTemplate> {
        self.common_name.as_ref()
    }
}

/// The ARN of a CA (AWS Private CA API, `CreateCertificateAuthority`).
fn arn(at: Cursor<'_>) -> Option<String> {
    let text = settings::non_empty(at)?;
    let Some([region, account, id]) = parts(&text) else {
        return at.error(format_args!(
            "`{}` is not the ARN of a CA: that is `arn:aws:acm-pca:<region>:<account>:certificate-authority/<id>`",
            Clip(&text)
        ));
    };
    let doubt = if !account.bytes().all(|byte| byte.is_ascii_digit()) || account.len() != 12 {
        Some(("account", account, "12 digits"))
    } else if !region.contains('-') || !region.bytes().any(|byte| byte.is_ascii_digit()) {
        Some(("region", region, "a name such as `eu-central-1`"))
    } else if !is_uuid(id) {
        Some(("certificate-authority ID", id, "a UUID"))
    } else {
        None
    };
    if let Some((what, value, expected)) = doubt {
        at.warn(format_args!(
            "the {what} `{}` looks like a placeholder: it should be {expected}",
            Clip(value)
        ));
    }
    Some(text)
}

/// The region, the account and the ID.
fn parts(arn: &str) -> Option<[&str; 3]> {
    let sound = |part: &&str| {
        let mut bytes = part.bytes();
        !part.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let (owner, id) = arn.split_once(":certificate-authority/")?;
    match *owner.split(':').collect::<Vec<_>>() {
        ["arn", partition, "acm-pca", region, account] => [partition, region, account, id]
            .iter()
            .all(sound)
            .then_some([region, account, id]),
        _ => None,
    }
}

fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let groups: Vec<_> = text.split('-').collect();
    groups.len() == lengths.len()
        && groups.iter().zip(lengths).all(|(group, length)| {
            group.len() == length && group.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}
