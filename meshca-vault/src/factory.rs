//! The door through which the registry gets the issuer.

use std::sync::Arc;

use async_trait::async_trait;
use meshca_core::Result;
use meshca_core::registry::{BackendConfig, BuildContext, BuiltIssuer, IssuerFactory};
use meshca_core::resource::settings::SettingsType;
use meshca_core::resource::{ExtensionMode, VaultConf};

use crate::issuer::VaultIssuer;
use crate::settings::VaultSettings;

/// Builds issuers of the type `vault`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct VaultFactory;

/// For [`BackendRegistry::with`](meshca_core::BackendRegistry::with).
///
/// ```
/// use meshca_core::BackendRegistry;
///
/// let registry = BackendRegistry::new().with(meshca_vault::factory());
/// assert_eq!(registry.types().collect::<Vec<_>>(), ["vault"]);
/// ```
pub fn factory() -> VaultFactory {
    VaultFactory
}

impl VaultFactory {
    /// Returns every URL that the settings of a backend name, with the setting that names it: see
    /// [`VaultConf::endpoints`]. A policy on who may point credentials where asks here.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](meshca_core::ErrorKind::InvalidConfig) if the backend is of another type.
    pub fn endpoints<'c>(&self, config: &'c BackendConfig) -> Result<Vec<(&'static str, &'c str)>> {
        Ok(config.settings::<VaultConf>()?.endpoints())
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
        settings.request_timeout = config.request_timeout().unwrap_or(settings.request_timeout);
        let issuer = VaultIssuer::new(settings, context.sources()?, Arc::clone(context.clock()))?;
        Ok(Arc::new(issuer).into())
    }
}
