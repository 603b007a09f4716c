//! The roots of a mount.

use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use meshca_core::{Error, Result, Retry, SignedChain, TrustBundle};
use serde::de::DeserializeOwned;
use vaultrs::api::pki::requests::{ListIssuersRequest, ReadIssuerCertificateRequest};

use crate::api::{self, IssuerInfo, Keys};
use crate::client::{Failure, Told};
use crate::error::misconfigured;
use crate::issuer::{VaultIssuer, without_ca};
use crate::transport::Call;

/// How many issuers of a mount are read at the same time.
const AT_ONCE: usize = 8;

impl VaultIssuer {
    /// Asks Vault for the roots that the issuers of the mount lead to.
    pub(crate) async fn bundle(&self) -> Result<TrustBundle> {
        let mount = self.client.conf().mount();
        if let Some(texts) = self.issuers(mount).await? {
            return self.roots(&texts);
        }
        // Vault before 1.11, or a policy that hides the list.
        let call = api::get(format!("{mount}/cert/ca_chain"));
        let told: Told<IssuerInfo> = self
            .ask_openly(&call)
            .await
            .map_err(|failure| failure.into_error(&format!("give the CA of `{mount}`")))?;
        let mut texts = vec![told.data.pem()];
        if let Some(issuer) = &self.client.conf().issuer {
            let call = api::get(format!("{mount}/issuer/{issuer}/json"));
            let told: Told<IssuerInfo> = self.ask_openly(&call).await.map_err(|failure| {
                failure.into_error(&format!("give the issuer `{issuer}` of `{mount}`"))
            })?;
            texts.push(told.data.pem());
        }
        self.roots(&texts)
    }

    /// What the issuers of the mount are made of, if they may be listed.
    async fn issuers(&self, mount: &str) -> Result<Option<Vec<String>>> {
        let list = api::call(&ListIssuersRequest {
            mount: mount.to_owned(),
        })?;
        let keys = match self.ask_openly::<Keys>(&list).await {
            Ok(told) => told.data.keys,
            Err(Failure::Refused(refusal)) if matches!(refusal.status.as_u16(), 403..=405) => {
                return Ok(None);
            }
            Err(failure) => {
                return Err(failure.into_error(&format!("list the issuers of `{mount}`")));
            }
        };
        let texts = stream::iter(keys)
            .map(|issuer| async move {
                let call = api::call(&ReadIssuerCertificateRequest {
                    mount: mount.to_owned(),
                    issuer,
                })?;
                match self.ask_openly::<IssuerInfo>(&call).await {
                    Ok(told) => Ok(Some(told.data.pem())),
                    // Deleted since it was listed.
                    Err(Failure::Refused(refusal)) if refusal.status == StatusCode::NOT_FOUND => {
                        Ok(None)
                    }
                    Err(failure) => {
                        Err(failure.into_error(&format!("give the issuers of `{mount}`")))
                    }
                }
            })
            .buffered(AT_ONCE)
            .try_filter_map(|text| async move { Ok(text) })
            .try_collect()
            .await?;
        Ok(Some(texts))
    }

    /// These paths are open to everyone, unless a proxy or a custom policy says otherwise: no login for trust alone.
    async fn ask_openly<T: DeserializeOwned>(&self, call: &Call) -> Result<Told<T>, Failure> {
        match self.client.ask(call, None).await {
            Err(Failure::Refused(refusal)) if matches!(refusal.status.as_u16(), 401 | 403) => {
                self.ask(call).await
            }
            outcome => outcome,
        }
    }

    fn roots(&self, texts: &[String]) -> Result<TrustBundle> {
        let mut roots = TrustBundle::new(self.settings.trust_domain.clone(), [])?;
        let mut others = Vec::new();
        for text in texts.iter().filter(|text| !text.is_empty()) {
            for certificate in SignedChain::from_pem(text)?.certificates() {
                // One that cannot be a root is no reason to do without the others.
                match TrustBundle::new(self.settings.trust_domain.clone(), [certificate.clone()]) {
                    Ok(one) => match one.roots() {
                        [root] if root.is_self_signed() => roots = roots.union(&one)?,
                        rest => others.extend(rest.iter().map(|it| it.subject())),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "a certificate of Vault's PKI cannot be a root and is left out");
                    }
                }
            }
        }
        if roots.is_empty() {
            return Err(self.rootless(&others));
        }
        Ok(roots)
    }

    fn rootless(&self, others: &[String]) -> Error {
        let mount = self.client.conf().mount();
        let message = match others {
            [] => without_ca(mount),
            [first, ..] => format!(
                "the PKI engine at `{mount}` holds the intermediate CA `{first}` and not the root that it leads to: import the root's certificate with `vault write {mount}/issuers/import/cert pem_bundle=@root.pem`"
            ),
        };
        misconfigured(message).with_retry(Retry::Backoff)
    }
}
