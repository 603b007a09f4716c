//! The issuer: what cert-manager signs, as the contract has it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kube::Client;
use meshca_core::secret::SourceReader;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, IssuedCertificate, Issuer,
    KeyType, Result, SignedChain, TrustBundle,
};

use crate::settings::CertManagerSettings;
use crate::signing::Signing;
use crate::trust::Trust;

/// An issuer that has cert-manager sign.
///
/// It lives in a tokio runtime: a task of its own watches the requests, from the first one on until the issuer is dropped.
pub struct CertManagerIssuer {
    signing: Arc<Signing>,
    trust: Arc<Trust>,
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
        let signing = Arc::new(Signing::new(settings, client));
        let trust = Arc::new(Trust::new(Arc::clone(&signing), sources, clock));
        Self { signing, trust }
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
        self.trust.learn(&answer);
        let chain = answer.chain();
        if chain.is_err() {
            // Nobody will verify it, and the next try must not find it.
            self.signing.settled(request, true).await;
        }
        chain
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.trust.bundle().await
    }

    async fn refresh_trust_bundle(&self) -> Result<TrustBundle> {
        self.trust.refresh().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let report = crate::check::check(&self.signing).await?;
        self.trust.check().await?;
        Ok(report)
    }

    async fn settled(
        &self,
        request: &CertificateRequest,
        outcome: Result<&IssuedCertificate, &Error>,
    ) {
        self.signing.settled(request, outcome.is_err()).await;
    }
}

impl fmt::Display for CertManagerIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.signing.name())
    }
}

impl fmt::Debug for CertManagerIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertManagerIssuer")
            .field("settings", &self.signing.settings)
            .finish_non_exhaustive()
    }
}
