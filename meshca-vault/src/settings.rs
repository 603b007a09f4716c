//! What a [`VaultIssuer`](crate::VaultIssuer) is made from.

use std::time::Duration;

#[cfg(feature = "aws-auth")]
use meshca_core::SecretValue;
use meshca_core::resource::VaultConf;
use meshca_core::{DEFAULT_LIFETIME, TrustDomain};

/// Vault's settings, and what the control plane adds to them.
///
/// | setting | default |
/// |---|---|
/// | [`with_request_timeout`](Self::with_request_timeout) | 10 s ([`DEFAULT_REQUEST_TIMEOUT`]) |
/// | [`with_trust_refresh`](Self::with_trust_refresh) | 60 s ([`DEFAULT_TRUST_REFRESH`]) |
/// | [`with_lifetime`](Self::with_lifetime) | 24 h ([`DEFAULT_LIFETIME`]) |
///
/// The `VaultConf` has defaults of its own: the mount is `pki`, the auth methods are at their usual paths, there is no proxy, and
/// the AWS login is for the global endpoint of STS.
#[derive(Clone, derive_more::Debug)]
#[debug(
    "VaultSettings {{ address: {:?}, mount: {:?}, role: {:?}, trust_domain: {trust_domain:?}, .. }}",
    conf.address, conf.mount(), conf.role
)]
#[must_use]
pub struct VaultSettings {
    pub(crate) conf: VaultConf,
    pub(crate) proxy: Option<String>,
    #[cfg(feature = "aws-auth")]
    pub(crate) sts_endpoint: Option<String>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) request_timeout: Duration,
    pub(crate) trust_refresh: Duration,
    pub(crate) lifetime: Duration,
    pub(crate) tag_uris: bool,
    pub(crate) intermediates: bool,
    #[cfg(feature = "aws-auth")]
    pub(crate) access_key: Option<crate::auth::aws::AccessKey>,
}

/// How long Vault has for one answer, where the settings do not say.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// After how long the roots are asked for again, where the settings do not say.
pub const DEFAULT_TRUST_REFRESH: Duration = Duration::from_secs(60);

impl VaultSettings {
    /// The settings of a resource, for the trust domain that Vault signs for.
    pub fn new(conf: VaultConf, trust_domain: TrustDomain) -> Self {
        Self {
            conf,
            proxy: None,
            #[cfg(feature = "aws-auth")]
            sts_endpoint: None,
            trust_domain,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            trust_refresh: DEFAULT_TRUST_REFRESH,
            lifetime: DEFAULT_LIFETIME,
            tag_uris: false,
            intermediates: false,
            #[cfg(feature = "aws-auth")]
            access_key: None,
        }
    }

    /// The HTTP proxy through which every connection goes, by `CONNECT`: `http://proxy.example:3128`. There is none by
    /// default, whatever the environment says. The name that a resource chose counts for the
    /// [factory](crate::VaultFactory) only.
    pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// For `auth.aws`: the endpoint of STS that the request is made out to, such as
    /// `https://vpce-….sts.eu-central-1.vpce.amazonaws.com`: Vault's `sts_endpoint`. That of the region by default. The name
    /// that a resource chose counts for the [factory](crate::VaultFactory) only.
    #[cfg(feature = "aws-auth")]
    pub fn with_sts_endpoint(mut self, url: impl Into<String>) -> Self {
        self.sts_endpoint = Some(url.into());
        self
    }

    /// How long Vault has for one answer, the time to connect included.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// After how long the roots are asked for again, so that a new one is known before it signs.
    pub fn with_trust_refresh(mut self, interval: Duration) -> Self {
        self.trust_refresh = interval;
        self
    }

    /// The lifetime that certificates will be asked for; only [`check`](meshca_core::Issuer::check) uses it, to say
    /// that the role does not allow it.
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Says that certificates will carry `kuma://<tag>/<value>` URIs, as in the classic model; only
    /// [`check`](meshca_core::Issuer::check) uses it, to say that the role does not allow them.
    pub fn with_tag_uris(mut self, carried: bool) -> Self {
        self.tag_uris = carried;
        self
    }

    /// Says that Vault will sign intermediate CAs instead of leaves (`mode: Intermediate`); only
    /// [`check`](meshca_core::Issuer::check) uses it, to look at the right policy.
    pub fn with_intermediates(mut self, signed: bool) -> Self {
        self.intermediates = signed;
        self
    }

    /// For `auth.aws`: logs in with this access key. Without it, with the AWS identity of the control plane, which is
    /// looked for where AWS' own tools look: environment, profile, web identity (EKS), ECS, EC2.
    #[cfg(feature = "aws-auth")]
    pub fn with_aws_access_key(
        mut self,
        id: impl Into<String>,
        secret: SecretValue,
        session_token: Option<SecretValue>,
    ) -> Self {
        self.access_key = Some(crate::auth::aws::AccessKey {
            id: id.into(),
            secret,
            session_token,
        });
        self
    }
}
