//! What an [`AcmIssuer`](crate::AcmIssuer) is made from.

use std::num::NonZeroU32;
use std::time::Duration;

use meshca_core::resource::AcmConf;
use meshca_core::{DEFAULT_LIFETIME, Error, ErrorKind, Result, TrustDomain};

use crate::arn::CaArn;
use crate::role::AssumedRole;

/// How many certificates are asked for per second, where the settings do not say: AWS' default quota of an account in a region
/// ("AWS Private CA endpoints and quotas").
pub const DEFAULT_ISSUE_RATE: NonZeroU32 = NonZeroU32::new(25).unwrap();

/// How many certificates are fetched per second, where the settings do not say; a quota like the other one.
pub const DEFAULT_FETCH_RATE: NonZeroU32 = NonZeroU32::new(75).unwrap();

/// For how long an issued certificate is fetched, where the settings do not say. AWS mostly needs less than a second.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// After how long the CA is looked at again, where the settings do not say: its state, its certificate, its root.
pub const DEFAULT_CA_REFRESH: Duration = Duration::from_secs(300);

/// Not with every call.
const MIN_CA_REFRESH: Duration = Duration::from_secs(1);

/// What AWS puts into a workload's certificate, by a template of its own
/// ("Understanding certificate templates" in AWS' user guide).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Template {
    /// `EndEntityCertificate/V1`: for server and client, with the names of the CSR. The only one that another account may use
    /// by default.
    #[default]
    EndEntity,
    /// `EndEntityClientAuthCertificate/V1`: for clients only. Verification refuses such a certificate, for a proxy is both;
    /// for setups whose CA policy adds the server's usage.
    EndEntityClientAuth,
    /// `EndEntityCertificate_APIPassthrough/V1`: as the first, but the names are those that the control plane sends beside
    /// the CSR, and those of the CSR do not count.
    EndEntityApiPassthrough,
    /// `BlankEndEntityCertificate_APICSRPassthrough/V1`: everything is what the control plane sends.
    BlankApiCsrPassthrough,
}

impl Template {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EndEntity => "EndEntityCertificate",
            Self::EndEntityClientAuth => "EndEntityClientAuthCertificate",
            Self::EndEntityApiPassthrough => "EndEntityCertificate_APIPassthrough",
            Self::BlankApiCsrPassthrough => "BlankEndEntityCertificate_APICSRPassthrough",
        }
    }

    /// Tells it from the others, in as few characters as can be.
    pub(crate) fn code(self) -> char {
        match self {
            Self::EndEntity => 'e',
            Self::EndEntityClientAuth => 'c',
            Self::EndEntityApiPassthrough => 'a',
            Self::BlankApiCsrPassthrough => 'b',
        }
    }
}

/// The settings of AWS Private CA, and what the control plane adds to them.
///
/// | setting | default | test |
/// |---|---|---|
/// | [`with_template`](Self::with_template) | [`Template::EndEntity`] | `the_defaults_of_the_settings` |
/// | [`with_issue_rate`](Self::with_issue_rate) | 25 per second ([`DEFAULT_ISSUE_RATE`]) | `the_defaults_of_the_settings` |
/// | [`with_fetch_rate`](Self::with_fetch_rate) | 75 per second ([`DEFAULT_FETCH_RATE`]) | `the_defaults_of_the_settings` |
/// | [`with_timeout`](Self::with_timeout) | 60 s ([`DEFAULT_TIMEOUT`]) | `the_defaults_of_the_settings` |
/// | [`with_ca_refresh`](Self::with_ca_refresh) | 5 min ([`DEFAULT_CA_REFRESH`]) | `the_defaults_of_the_settings` |
/// | [`with_lifetime`](Self::with_lifetime) | 24 h ([`DEFAULT_LIFETIME`]) | `the_defaults_of_the_settings` |
/// | [`with_fleet`](Self::with_fleet) | not known | `the_defaults_of_the_settings` |
/// | [`with_endpoint`](Self::with_endpoint) | AWS' own | `the_defaults_of_the_settings` |
/// | [`with_proxy`](Self::with_proxy) | none, whatever the environment says | `the_defaults_of_the_settings`, `the_environment_names_no_proxy` |
/// | [`with_role`](Self::with_role) | none | `the_defaults_of_the_settings` |
#[derive(Clone, Debug)]
#[must_use]
pub struct AcmSettings {
    pub(crate) conf: AcmConf,
    pub(crate) arn: CaArn,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) template: Template,
    pub(crate) rates: Rates,
    pub(crate) timeout: Duration,
    pub(crate) ca_refresh: Duration,
    pub(crate) lifetime: Duration,
    pub(crate) fleet: Option<u64>,
    pub(crate) intermediates: bool,
    pub(crate) endpoint: Option<String>,
    pub(crate) proxy: Option<String>,
    pub(crate) role: Option<AssumedRole>,
}

/// Calls per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) issue: NonZeroU32,
    pub(crate) fetch: NonZeroU32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            issue: DEFAULT_ISSUE_RATE,
            fetch: DEFAULT_FETCH_RATE,
        }
    }
}

impl AcmSettings {
    /// The settings of a resource, for the trust domain that the CA signs for. Region and partition are those of the ARN.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the ARN is none of a CA.
    pub fn new(conf: AcmConf, trust_domain: TrustDomain) -> Result<Self> {
        Ok(Self {
            arn: conf.arn.parse()?,
            conf,
            trust_domain,
            template: Template::default(),
            rates: Rates::default(),
            timeout: DEFAULT_TIMEOUT,
            ca_refresh: DEFAULT_CA_REFRESH,
            lifetime: DEFAULT_LIFETIME,
            fleet: None,
            intermediates: false,
            endpoint: None,
            proxy: None,
            role: None,
        })
    }

    /// What AWS puts into a workload's certificate. Intermediates always have `SubordinateCACertificate_PathLen<n>/V1`.
    pub fn with_template(mut self, template: Template) -> Self {
        self.template = template;
        self
    }

    /// How many certificates are asked for per second; further calls wait their turn. The quota is one for all control planes
    /// of an account in a region: share it between them.
    pub fn with_issue_rate(mut self, per_second: NonZeroU32) -> Self {
        self.rates.issue = per_second;
        self
    }

    /// How many certificates are fetched per second; three times as many as are asked for is about right.
    pub fn with_fetch_rate(mut self, per_second: NonZeroU32) -> Self {
        self.rates.fetch = per_second;
        self
    }

    /// For how long an issued certificate is fetched. What is not there by then is not lost: the next call for the same request
    /// goes on fetching it. With zero, it is asked for once per call.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// After how long the CA is looked at again, so that a renewed certificate of it is noticed; a second at least.
    pub fn with_ca_refresh(mut self, interval: Duration) -> Self {
        self.ca_refresh = interval.max(MIN_CA_REFRESH);
        self
    }

    /// The lifetime that certificates will be asked for; only [`check`](meshca_core::Issuer::check) uses it, for what it will cost.
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// How many workloads there are, about; only [`check`](meshca_core::Issuer::check) uses it, and warns if the CA's quota is
    /// used up within a year.
    pub fn with_fleet(mut self, workloads: u64) -> Self {
        self.fleet = Some(workloads);
        self
    }

    /// Says that the CA will sign intermediates instead of leaves (`mode: Intermediate`); only
    /// [`check`](meshca_core::Issuer::check) uses it.
    pub fn with_intermediates(mut self, signed: bool) -> Self {
        self.intermediates = signed;
        self
    }

    /// Calls another address than AWS' own for the region: a VPC endpoint, or a test server. It begins with `https://` or `http://`.
    /// It does not go with `fips`: name the endpoint for FIPS then.
    pub fn with_endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Reaches AWS (the CA, and STS for a role) through an HTTP proxy, `http://proxy.example:3128`.
    /// The connection through it is encrypted by the endpoint's `https://`, and the proxy sees the
    /// name of the endpoint. The metadata services of EC2, ECS and EKS are asked directly.
    pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Assumes this role before the CA is called.
    pub fn with_role(mut self, role: AssumedRole) -> Self {
        self.role = Some(role);
        self
    }

    /// Refuses what cannot work together, and names that no factory has resolved.
    pub(crate) fn judge(&self) -> Result<()> {
        let invalid = |setting: &'static str, why: String| {
            Err(Error::new(ErrorKind::InvalidConfig, why).with_context("setting", setting))
        };
        if let Some(endpoint) = &self.endpoint {
            if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
                return invalid(
                    "endpoint",
                    format!(
                        "the endpoint must begin with `https://` or `http://`, and is `{}`",
                        endpoint.escape_debug()
                    ),
                );
            }
            if self.conf.fips {
                return invalid(
                    "fips",
                    "`fips` chooses AWS' own endpoint, and another one is set: leave `fips` out, and have the endpoint be one for FIPS"
                        .to_owned(),
                );
            }
        }
        for (setting, named, known) in [
            ("endpoint", &self.conf.endpoint, self.endpoint.is_some()),
            ("proxy", &self.conf.proxy, self.proxy.is_some()),
            ("assumeRole", &self.conf.assume_role, self.role.is_some()),
        ] {
            if named.is_some() && !known {
                return invalid(
                    setting,
                    "the resource names one of the control plane's options, which the factory resolves: set it here as well"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together() {
        type Change = fn(&mut AcmSettings);
        let cases: [(Change, Option<&str>); 8] = [
            (
                |it| it.endpoint = Some("https://vpce.example".to_owned()),
                None,
            ),
            (
                |it| it.endpoint = Some("vpce.example".to_owned()),
                Some("must begin with"),
            ),
            (|it| it.conf.fips = true, None),
            (
                |it| {
                    it.conf.fips = true;
                    it.endpoint = Some("https://vpce.example".to_owned());
                },
                Some("leave `fips` out"),
            ),
            (
                |it| it.conf.endpoint = Some("vpce".to_owned()),
                Some("which the factory resolves"),
            ),
            (
                |it| it.conf.proxy = Some("egress".to_owned()),
                Some("setting: proxy"),
            ),
            (
                |it| it.conf.assume_role = Some("a".to_owned()),
                Some("setting: assumeRole"),
            ),
            (
                |it| {
                    it.conf.proxy = Some("egress".to_owned());
                    it.proxy = Some("http://proxy.example:3128".to_owned());
                },
                None,
            ),
        ];
        for (number, (change, words)) in cases.into_iter().enumerate() {
            let conf =
                AcmConf::new("arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/1");
            let mut settings =
                AcmSettings::new(conf, TrustDomain::new("default").unwrap()).unwrap();
            change(&mut settings);
            match (settings.judge(), words) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => {
                    assert!(error.to_string().contains(words), "case {number}: {error}");
                }
                (result, _) => panic!("case {number}: {result:?}"),
            }
        }
    }

    #[test]
    fn the_defaults_of_the_settings() {
        let conf = AcmConf::new("arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/1");
        let settings = AcmSettings::new(conf, TrustDomain::new("default").unwrap()).unwrap();
        assert_eq!(settings.template, Template::EndEntity);
        assert_eq!(settings.rates.issue.get(), 25);
        assert_eq!(settings.rates.fetch.get(), 75);
        assert_eq!(settings.timeout, Duration::from_secs(60));
        assert_eq!(settings.ca_refresh, Duration::from_secs(300));
        assert_eq!(settings.lifetime, Duration::from_secs(24 * 3600));
        assert_eq!((settings.fleet, &settings.endpoint), (None, &None));
        assert_eq!((&settings.proxy, &settings.role), (&None, &None));
        assert!(!settings.conf.fips);
        let settings = settings.with_ca_refresh(Duration::ZERO);
        assert_eq!(settings.ca_refresh, Duration::from_secs(1));
    }
}
