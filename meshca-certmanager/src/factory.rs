//! The door through which the registry gets the issuer.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use kube::Client;
use meshca_core::Result;
use meshca_core::registry::{BackendConfig, BuildContext, BuiltIssuer, IssuerFactory};
use meshca_core::resource::CertManagerConf;
use meshca_core::resource::settings::SettingsType;

use crate::issuer::CertManagerIssuer;
use crate::settings::{CertManagerSettings, DEFAULT_MAX_PENDING};

/// Builds issuers of the type `certmanager` (or `cert-manager`).
#[derive(Clone, derive_more::Debug)]
#[debug("CertManagerFactory {{ namespace: {namespace:?}, instance: {instance:?}, .. }}")]
#[must_use]
pub struct CertManagerFactory {
    client: Client,
    namespace: String,
    instance: String,
    max_pending: NonZeroUsize,
    owner: Option<(String, String)>,
}

/// For [`BackendRegistry::with`](meshca_core::BackendRegistry::with): a factory of issuers that act through this client,
/// make their requests in this namespace, and are this instance of the control plane (see [`CertManagerSettings::new`]).
pub fn factory(
    client: Client,
    namespace: impl Into<String>,
    instance: impl Into<String>,
) -> CertManagerFactory {
    CertManagerFactory {
        client,
        namespace: namespace.into(),
        instance: instance.into(),
        max_pending: DEFAULT_MAX_PENDING,
        owner: None,
    }
}

impl CertManagerFactory {
    /// See [`CertManagerSettings::with_max_pending`]; for each of its issuers.
    pub fn with_max_pending(mut self, max: NonZeroUsize) -> Self {
        self.max_pending = max;
        self
    }

    /// See [`CertManagerSettings::with_owner`].
    pub fn with_owner(mut self, pod: impl Into<String>, uid: impl Into<String>) -> Self {
        self.owner = Some((pod.into(), uid.into()));
        self
    }
}

#[async_trait]
impl IssuerFactory for CertManagerFactory {
    fn settings(&self) -> Vec<SettingsType> {
        vec![SettingsType::of::<CertManagerConf>()]
    }

    async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
        let conf: &CertManagerConf = config.settings()?;
        let mut settings = CertManagerSettings::new(
            conf.clone(),
            context.trust_domain().clone(),
            &self.namespace,
            &self.instance,
        )?;
        settings.max_pending = self.max_pending;
        settings.owner.clone_from(&self.owner);
        settings.timeout = config.request_timeout().unwrap_or(settings.timeout);
        let (client, clock) = (self.client.clone(), Arc::clone(context.clock()));
        let issuer = CertManagerIssuer::new(settings, client, context.sources()?, clock);
        Ok(Arc::new(issuer).into())
    }
}
