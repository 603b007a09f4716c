//! The door through which the registry gets the issuer.

use std::sync::Arc;

use async_trait::async_trait;
use meshca_core::Result;
use meshca_core::registry::{BackendConfig, BuildContext, BuiltIssuer, Choices, IssuerFactory};
#[cfg(feature = "aws-auth")]
use meshca_core::resource::VaultAuth;
use meshca_core::resource::settings::SettingsType;
use meshca_core::resource::{ExtensionMode, VaultConf};

use crate::issuer::VaultIssuer;
use crate::settings::VaultSettings;

/// Builds issuers of the type `vault`.
///
/// Resources choose among its proxies and endpoints of STS by `proxy` and `auth.aws.stsEndpoint`, and
/// cannot name others.
#[derive(Clone, Debug)]
#[must_use]
pub struct VaultFactory {
    proxies: Choices<String>,
    #[cfg(feature = "aws-auth")]
    sts_endpoints: Choices<String>,
}

/// For [`BackendRegistry::with`](meshca_core::BackendRegistry::with).
///
/// ```
/// use meshca_core::BackendRegistry;
///
/// let registry = BackendRegistry::new().with(meshca_vault::factory());
/// assert_eq!(registry.types().collect::<Vec<_>>(), ["vault"]);
/// ```
pub fn factory() -> VaultFactory {
    VaultFactory::default()
}

impl Default for VaultFactory {
    fn default() -> Self {
        Self {
            proxies: Choices::new("proxy"),
            #[cfg(feature = "aws-auth")]
            sts_endpoints: Choices::new("auth.aws.stsEndpoint"),
        }
    }
}

impl VaultFactory {
    /// See [`VaultSettings::with_proxy`]; for CAs of resources that name no proxy.
    pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
        self.proxies = self.proxies.with_default(url.into());
        self
    }

    /// Adds a proxy that resources may name: `proxy: <name>`.
    pub fn with_named_proxy(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.proxies = self.proxies.with(name, url.into());
        self
    }

    /// See [`VaultSettings::with_sts_endpoint`]; for CAs of resources that name no endpoint.
    #[cfg(feature = "aws-auth")]
    pub fn with_sts_endpoint(mut self, url: impl Into<String>) -> Self {
        self.sts_endpoints = self.sts_endpoints.with_default(url.into());
        self
    }

    /// Adds an endpoint of STS that resources may name: `auth.aws.stsEndpoint: <name>`.
    #[cfg(feature = "aws-auth")]
    pub fn with_named_sts_endpoint(
        mut self,
        name: impl Into<String>,
        url: impl Into<String>,
    ) -> Self {
        self.sts_endpoints = self.sts_endpoints.with(name, url.into());
        self
    }
}

#[async_trait]
impl IssuerFactory for VaultFactory {
    fn settings(&self) -> Vec<SettingsType> {
        vec![SettingsType::of::<VaultConf>()]
    }

    async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
        let conf: &VaultConf = config.settings()?;
        let mut settings = VaultSettings::new(conf.clone(), context.trust_domain().clone())
            .with_lifetime(config.lifetime())
            .with_tag_uris(config.has_tag_uris())
            .with_intermediates(config.mode() == ExtensionMode::Intermediate);
        settings.proxy = self.proxies.choose(conf.proxy.as_deref())?.cloned();
        #[cfg(feature = "aws-auth")]
        if let VaultAuth::Aws(auth) = &conf.auth {
            let chosen = self.sts_endpoints.choose(auth.sts_endpoint.as_deref())?;
            settings.sts_endpoint = chosen.cloned();
        }
        settings.request_timeout = config.request_timeout().unwrap_or(settings.request_timeout);
        let issuer = VaultIssuer::new(settings, context.sources()?, Arc::clone(context.clock()))?;
        Ok(Arc::new(issuer).into())
    }
}
