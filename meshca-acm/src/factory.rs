//! The door through which the registry gets the issuer.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use meshca_core::Result;
use meshca_core::registry::{BackendConfig, BuildContext, BuiltIssuer, Choices, IssuerFactory};
use meshca_core::resource::settings::SettingsType;
use meshca_core::resource::{AcmConf, ExtensionMode};

use crate::issuer::AcmIssuer;
use crate::pace::Paces;
use crate::role::AssumedRole;
use crate::settings::{AcmSettings, Rates, Template};

/// Builds issuers of the type `acmpca` (or `acm`). All that are for CAs of one account in one region share its rates, for so do
/// their quotas at AWS.
///
/// Resources choose among its endpoints, proxies and roles by `endpoint`, `proxy` and `assumeRole`,
/// and cannot name others.
#[derive(Debug)]
#[must_use]
pub struct AcmFactory {
    rates: Rates,
    template: Template,
    fleet: Option<u64>,
    endpoints: Choices<String>,
    proxies: Choices<String>,
    roles: Choices<AssumedRole>,
    /// By account and region.
    paces: Mutex<HashMap<(String, String), Arc<Paces>>>,
}

/// For [`BackendRegistry::with`](meshca_core::BackendRegistry::with).
pub fn factory() -> AcmFactory {
    AcmFactory::default()
}

impl Default for AcmFactory {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            template: Template::default(),
            fleet: None,
            endpoints: Choices::new("endpoint"),
            proxies: Choices::new("proxy"),
            roles: Choices::new("assumeRole"),
            paces: Mutex::default(),
        }
    }
}

impl AcmFactory {
    /// See [`AcmSettings::with_issue_rate`] and [`AcmSettings::with_fetch_rate`].
    pub fn with_rates(mut self, issue: NonZeroU32, fetch: NonZeroU32) -> Self {
        self.rates = Rates { issue, fetch };
        self
    }

    /// See [`AcmSettings::with_template`].
    pub fn with_template(mut self, template: Template) -> Self {
        self.template = template;
        self
    }

    /// See [`AcmSettings::with_fleet`]; for each of its issuers.
    pub fn with_fleet(mut self, workloads: u64) -> Self {
        self.fleet = Some(workloads);
        self
    }

    /// See [`AcmSettings::with_endpoint`]; for CAs of resources that name no endpoint.
    pub fn with_endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoints = self.endpoints.with_default(url.into());
        self
    }

    /// Adds an endpoint that resources may name: `endpoint: <name>`.
    pub fn with_named_endpoint(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.endpoints = self.endpoints.with(name, url.into());
        self
    }

    /// See [`AcmSettings::with_proxy`]; for CAs of resources that name no proxy.
    pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
        self.proxies = self.proxies.with_default(url.into());
        self
    }

    /// Adds a proxy that resources may name: `proxy: <name>`.
    pub fn with_named_proxy(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.proxies = self.proxies.with(name, url.into());
        self
    }

    /// Adds a role that resources may name: `assumeRole: <name>`. Every resource may name it, and it
    /// is assumed with the credentials of the resource. Those of the control plane itself are used
    /// only where it [lends](meshca_core::secret::LocalSources::lend_identity) them.
    pub fn with_named_role(mut self, name: impl Into<String>, role: AssumedRole) -> Self {
        self.roles = self.roles.with(name, role);
        self
    }
}

#[async_trait]
impl IssuerFactory for AcmFactory {
    fn settings(&self) -> Vec<SettingsType> {
        vec![SettingsType::of::<AcmConf>()]
    }

    async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
        let conf: &AcmConf = config.settings()?;
        let mut settings = AcmSettings::new(conf.clone(), context.trust_domain().clone())?
            .with_lifetime(config.lifetime())
            .with_intermediates(config.mode() == ExtensionMode::Intermediate);
        settings.template = self.template;
        settings.rates = self.rates;
        settings.fleet = self.fleet;
        settings.endpoint = self.endpoints.choose(conf.endpoint.as_deref())?.cloned();
        settings.proxy = self.proxies.choose(conf.proxy.as_deref())?.cloned();
        settings.role = self.roles.choose(conf.assume_role.as_deref())?.cloned();
        settings.timeout = config.request_timeout().unwrap_or(settings.timeout);
        let (account, region) = (settings.arn.account(), settings.arn.region());
        let paces = {
            let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
            let paces = paces.entry((account.to_owned(), region.to_owned()));
            Arc::clone(paces.or_insert_with(|| Arc::new(Paces::new(self.rates))))
        };
        let clock = Arc::clone(context.clock());
        let issuer = AcmIssuer::with_paces(settings, context.sources()?, clock, paces)?;
        Ok(Arc::new(issuer).into())
    }
}
