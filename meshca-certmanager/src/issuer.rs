//! The issuer: what cert-manager signs, as the contract has it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kube::Client;
use meshca_core::secret::SourceReader;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Issuer, KeyType, Result, SignedChain,
    TrustBundle,
};

use crate::settings::CertManagerSettings;
use crate::signing::Signing;

/// An issuer that has cert-manager sign.
///
/// It lives in a tokio runtime: a task of its own watches the requests, from the first one on until the issuer is dropped.
#[derive(derive_more::Debug, derive_more::Display)]
#[debug("CertManagerIssuer {{ settings: {:?}, .. }}", signing.settings)]
#[display("{}", signing.name())]
pub struct CertManagerIssuer {
    pub(crate) signing: Arc<Signing>,
    pub(crate) sources: SourceReader,
    pub(crate) clock: Arc<dyn Clock>,
    /// The roots that answers have named. Not a cache: an issuer names its CA in answers only, and
    /// there is nothing else to ask.
    pub(crate) heard: Mutex<Option<TrustBundle>>,
}

impl CertManagerIssuer {
    /// An issuer that has asked nobody yet.
    ///
    /// `client` acts as the control plane's service account; the role that it needs is in `examples/resources/cert-manager/rbac.yaml`.
    pub fn new(
        settings: CertManagerSettings,
        client: Client,
        sources: SourceReader,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            signing: Arc::new(Signing::new(settings, client)),
            sources,
            clock,
            heard: Mutex::default(),
        }
    }
}

#[async_trait]
impl Issuer for CertManagerIssuer {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(true)
            .with_key_types(KeyType::ALL)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.signing.settings.trust_domain)?;
        let answer = self.signing.sign(request).await?;
        self.learn(&answer);
        let (signing, id) = (Arc::clone(&self.signing), request.id().clone());
        match answer.chain() {
            Ok(chain) => {
                Ok(chain.with_receipt(move |outcome| signing.settle(&id, outcome.is_err())))
            }
            // It cannot be verified, and the next attempt must not find it.
            Err(error) => {
                if let Some(deleted) = signing.settle(&id, true) {
                    deleted.await;
                }
                Err(error)
            }
        }
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let report = crate::check::check(&self.signing).await?;
        self.can_be_read().await?;
        Ok(report)
    }
}
