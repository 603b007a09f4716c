//! The issuer: what cert-manager signs, as the contract has it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::Client;
use meshca_core::issuer::Evidence;
use meshca_core::secret::SourceReader;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Issuer, KeyType, Result, SignedChain,
    TrustBundle,
};

use crate::heard::{Heard, MARGIN, hours};
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
    pub(crate) heard: Arc<Heard>,
    evidence: Evidence,
}

/// An answer that was read, and is not verified.
struct Answered {
    uid: String,
    chain: SignedChain,
    /// How long the CA lives, if the certificate outlives it.
    outlived: Option<Duration>,
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
            heard: Arc::default(),
            evidence: Evidence::new(),
        }
    }

    /// Has the request signed, and takes note of what the answer says of the CA.
    async fn answer(
        &self,
        request: &CertificateRequest,
        cut: Option<Duration>,
    ) -> Result<Answered> {
        let answer = self.signing.sign(request, cut).await?;
        self.learn(&answer);
        let chain = match answer.chain() {
            Ok(chain) => chain,
            // It cannot be verified, and the next attempt must not find it.
            Err(error) => {
                if let Some(deleted) = self.signing.settle(request.id(), true) {
                    deleted.await;
                }
                return Err(error);
            }
        };
        let now = self.clock.now();
        let outlived = self.heard.outlived(&chain, request, cut.is_some(), now);
        Ok(Answered {
            uid: answer.uid,
            chain,
            // A CA that has ended signs nothing that is of use.
            outlived: outlived.and_then(|end| end.duration_since(now).ok()),
        })
    }
}

impl CertManagerIssuer {
    /// Has a request of this trust domain signed.
    async fn signed(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let mut cut = self.heard.cut(request, self.clock.now());
        let mut answered = self.answer(request, cut).await?;
        if let Some(left) = answered.outlived {
            // An issuer that signs past the end of its CA is asked for what is left. One that was
            // asked for no more than that, and gives more, is not asked again.
            let shorter = self.heard.cut(request, self.clock.now());
            let less = |shorter: &Duration| cut.is_none_or(|cut| *shorter + MARGIN < cut);
            if let Some(shorter) = shorter.filter(less) {
                tracing::warn!(
                    issuer = %self,
                    left = %hours(left),
                    "the CA ends before what it has signed, so shorter certificates are requested: renew the CA"
                );
                cut = Some(shorter);
                self.signing.step_over(request.id(), &answered.uid).await;
                answered = self.answer(request, cut).await?;
            }
        }
        let chain = match cut.and(self.heard.ca_end()) {
            Some(end) => {
                let left = end.duration_since(self.clock.now()).unwrap_or_default();
                answered.chain.with_note(format!(
                    "the CA of the issuer ends in {}, so the certificate ends with it: renew the CA",
                    hours(left)
                ))
            }
            None => answered.chain,
        };
        let (signing, id) = (Arc::clone(&self.signing), request.id().clone());
        let heard = Arc::clone(&self.heard);
        Ok(chain.with_receipt(move |outcome| {
            if let Ok(certificate) = outcome {
                heard.accepted(certificate);
            }
            signing.settle(&id, outcome.is_err())
        }))
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
        self.evidence.watch(self.signed(request).await)
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let mut found = self.evidence.begin_check();
        self.look_at_all(&mut found).await;
        found.into_report()
    }
}
