//! The roots that are trusted, and those of the mount that are not.
//!
//! A mount is shared: others keep roots in it, and certificates without keys are imported so that chains can be built. Any
//! root that is trusted may name every workload of the trust domain. So only those count to which a CA that signs for us
//! leads, and those that an operator names.

use std::sync::PoisonError;

use futures_util::{StreamExt, TryStreamExt, stream};
use meshca_core::resource::AlsoTrust;
use meshca_core::{Error, Result, Retry, SignedChain, TrustBundle};
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use vaultrs::api::pki::requests::{ListIssuersRequest, ReadIssuerCertificateRequest};

use crate::api::{self, IssuerInfo, KeyInfo, Keys};
use crate::client::{Failure, Told};
use crate::error::misconfigured;
use crate::issuer::VaultIssuer;
use crate::transport::Call;

/// How many issuers of a mount are read at the same time.
const AT_ONCE: usize = 8;

/// What is trusted, and what a look at the mount showed beside it.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) trusted: TrustBundle,
    /// Roots that are in the mount and not trusted.
    pub(crate) beyond: Vec<Beyond>,
    /// What the settings name and the mount does not have.
    pub(crate) notes: Vec<String>,
    /// The issuers of the mount, if they may be listed.
    pub(crate) listed: Option<Vec<Listed>>,
    /// The issuer that the settings pin, if the list has it.
    pinned: Option<Listed>,
}

impl Survey {
    /// Whether the pinned issuer has no key, and so signs nothing.
    pub(crate) fn lacks_key(&self) -> bool {
        let pinned = self.pinned.as_ref();
        pinned.is_some_and(|it| it.signs == Some(false))
    }
}

/// A root that is not trusted.
#[derive(Debug, derive_more::Display)]
#[display("`{subject}` (issuer `{issuer}`{})", if *signs == Some(false) { ", without a key" } else { "" })]
pub(crate) struct Beyond {
    subject: String,
    fingerprint: String,
    issuer: String,
    signs: Option<bool>,
}

/// An issuer of the mount.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    id: String,
    /// Empty if it has none.
    name: String,
    /// Whether the mount has its key; `None` where the server does not say.
    pub(crate) signs: Option<bool>,
}

impl Listed {
    fn new(id: String, info: Option<&KeyInfo>) -> Self {
        let key = info.and_then(|info| info.key_id.as_deref());
        Self {
            id,
            name: info
                .map(|info| info.issuer_name.clone())
                .unwrap_or_default(),
            signs: key.map(|key| !key.is_empty()),
        }
    }

    fn is(&self, reference: &str) -> bool {
        self.id == reference || self.name == reference
    }

    /// Its name, or its ID.
    pub(crate) fn called(&self) -> &str {
        match self.name.as_str() {
            "" => &self.id,
            name => name,
        }
    }
}

/// The roots among certificates.
pub(crate) struct Roots {
    pub(crate) bundle: TrustBundle,
    /// The other CAs.
    others: TrustBundle,
}

impl VaultIssuer {
    /// The roots that are trusted. Those of the mount that are not are told to the log, once.
    pub(crate) async fn bundle(&self) -> Result<TrustBundle> {
        let survey = self.survey().await?;
        self.report(&survey.beyond);
        Ok(survey.trusted)
    }

    fn report(&self, beyond: &[Beyond]) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let new = beyond
            .iter()
            .filter(|root| reported.insert(root.fingerprint.clone()));
        let new: Vec<_> = new.map(ToString::to_string).collect();
        if !new.is_empty() {
            tracing::warn!(
                issuer = %self,
                roots = new.join(", "),
                "the mount holds roots that are not trusted; if one is of the next CA, name its issuer in `alsoTrust`"
            );
        }
    }

    /// Looks at the mount.
    ///
    /// # Errors
    ///
    /// If it does not become clear what to trust. What is only there to be reported is no reason for one.
    pub(crate) async fn survey(&self) -> Result<Survey> {
        let conf = self.client.conf();
        let mount = conf.mount();
        let mut notes = Vec::new();
        let (trusted, listed) = match (&conf.ca_cert, &conf.issuer) {
            (Some(source), _) => {
                let domain = &self.settings.trust_domain;
                let roots = self.client.read_roots(source, domain, "caCert").await?;
                (roots, self.list(mount).await.ok().flatten())
            }
            (None, Some(issuer)) => {
                let info = self.issuer(mount, issuer).await?.ok_or_else(|| {
                    misconfigured(format!(
                        "the PKI engine at `{mount}` has no issuer `{issuer}`: import its CA, or correct `issuer`"
                    ))
                    .with_retry(Retry::Backoff)
                })?;
                let mut roots = self.roots(&[info.pem()])?;
                self.announced(mount, &mut roots.bundle, &mut notes).await?;
                let anchors = self.sound(roots, &mut notes)?;
                (anchors, self.list(mount).await.ok().flatten())
            }
            (None, None) => {
                let listed = self.list(mount).await?;
                let mut roots = self.roots(&self.signers(mount, listed.as_deref()).await?)?;
                self.announced(mount, &mut roots.bundle, &mut notes).await?;
                (self.sound(roots, &mut notes)?, listed)
            }
        };
        let beyond = match &listed {
            Some(listed) => self.beyond(mount, listed, &trusted).await,
            None => Vec::new(),
        };
        let pinned = conf.issuer.as_ref().and_then(|issuer| {
            let mut listed = listed.iter().flatten();
            listed.find(|it| it.is(issuer)).cloned()
        });
        Ok(Survey {
            trusted,
            beyond,
            notes,
            listed,
            pinned,
        })
    }

    /// What the issuers that can sign are made of, each with its chain.
    async fn signers(&self, mount: &str, listed: Option<&[Listed]>) -> Result<Vec<String>> {
        match listed {
            Some(listed) if listed.is_empty() || listed.iter().any(|it| it.signs.is_some()) => {
                let signers = listed.iter().filter(|it| it.signs == Some(true));
                let signers: Vec<_> = signers.map(|it| it.id.clone()).collect();
                let infos = self.read_all(mount, signers).await?;
                Ok(infos.iter().map(|(_, info)| info.pem()).collect())
            }
            // Vault 1.11 does not say who has a key, those before have one CA, and a policy may hide the list. The chain of
            // the one that signs by default is open.
            _ => {
                let call = api::get(format!("{mount}/cert/ca_chain"));
                let told: Told<IssuerInfo> = self
                    .ask_openly(&call)
                    .await
                    .map_err(|failure| failure.into_error(&format!("give the CA of `{mount}`")))?;
                Ok(vec![told.data.pem()])
            }
        }
    }

    /// Adds what `alsoTrust` names.
    async fn announced(
        &self,
        mount: &str,
        bundle: &mut TrustBundle,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        for also in &self.client.conf().also_trust {
            let more = match also {
                AlsoTrust::Pem(pem) => {
                    let domain = self.settings.trust_domain.clone();
                    TrustBundle::from_pem(domain, pem)
                        .map_err(|error| error.with_context("setting", "alsoTrust"))?
                }
                AlsoTrust::Issuer(issuer) => match self.issuer(mount, issuer).await? {
                    None => {
                        notes.push(format!(
                            "`alsoTrust` names `{issuer}`, and the PKI engine at `{mount}` has no such issuer: make it, or correct the name"
                        ));
                        continue;
                    }
                    Some(info) => {
                        let roots = self.roots(&[info.pem()])?;
                        if roots.bundle.is_empty() {
                            notes.push(format!(
                                "`alsoTrust` names `{issuer}`, whose chain in `{mount}` has no root: import the root's certificate there, or name it in PEM"
                            ));
                        }
                        roots.bundle
                    }
                },
                _ => continue,
            };
            *bundle = bundle.union(&more)?;
        }
        Ok(())
    }

    /// The roots of the mount that are not trusted. What cannot be read is left out: nothing depends on it.
    async fn beyond(&self, mount: &str, listed: &[Listed], trusted: &TrustBundle) -> Vec<Beyond> {
        let conf = self.client.conf();
        let all_signers = conf.ca_cert.is_none() && conf.issuer.is_none();
        let others = listed
            .iter()
            .filter(|it| !(all_signers && it.signs == Some(true)));
        let ids = others.map(|it| it.id.clone()).collect();
        let infos = self.read_all(mount, ids).await.unwrap_or_default();
        let mut beyond = Vec::new();
        for (id, info) in infos {
            let Ok(roots) = self.roots(&[info.certificate]) else {
                continue;
            };
            for root in roots.bundle.roots() {
                let Some(issuer) = listed.iter().find(|it| it.id == id) else {
                    continue;
                };
                if !trusted.contains(root.der()) {
                    beyond.push(Beyond {
                        subject: root.subject(),
                        fingerprint: root.fingerprint().to_owned(),
                        issuer: issuer.called().to_owned(),
                        signs: issuer.signs,
                    });
                }
            }
        }
        // IDs are random, and so is the order of the list.
        beyond.sort_by(|a, b| a.subject.cmp(&b.subject));
        beyond
    }

    /// The issuers of the mount, if they may be listed.
    async fn list(&self, mount: &str) -> Result<Option<Vec<Listed>>> {
        let list = api::call(&ListIssuersRequest {
            mount: mount.to_owned(),
        })?;
        match self.ask_openly::<Keys>(&list).await {
            Ok(Told { data, .. }) => {
                let info = data.key_info.unwrap_or_default();
                let listed = |id: String| {
                    let info = info.get(&id);
                    Listed::new(id, info)
                };
                Ok(Some(data.keys.into_iter().map(listed).collect()))
            }
            Err(Failure::Refused(refusal)) if matches!(refusal.status.as_u16(), 403..=405) => {
                Ok(None)
            }
            Err(failure) => Err(failure.into_error(&format!("list the issuers of `{mount}`"))),
        }
    }

    /// Reads issuers, in this order. One that was deleted since it was listed is left out.
    async fn read_all(&self, mount: &str, ids: Vec<String>) -> Result<Vec<(String, IssuerInfo)>> {
        stream::iter(ids)
            .map(|id| async move {
                let info = self.issuer(mount, &id).await?;
                Ok(info.map(|info| (id, info)))
            })
            .buffered(AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await
    }

    /// Reads an issuer by its name, its ID or `default`. `None` if there is none.
    pub(crate) async fn issuer(&self, mount: &str, issuer: &str) -> Result<Option<IssuerInfo>> {
        let call = api::call(&ReadIssuerCertificateRequest {
            mount: mount.to_owned(),
            issuer: issuer.to_owned(),
        })?;
        match self.ask_openly(&call).await {
            Ok(told) => Ok(Some(told.data)),
            // The request has no other part that could be wrong than the name of the issuer.
            Err(Failure::Refused(refusal)) if matches!(refusal.status.as_u16(), 400 | 404) => {
                Ok(None)
            }
            Err(Failure::Refused(refusal)) if refusal.says("unable to find PKI issuer") => Ok(None),
            Err(failure) => {
                Err(failure.into_error(&format!("give the issuer `{issuer}` of `{mount}`")))
            }
        }
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

    pub(crate) fn roots(&self, texts: &[String]) -> Result<Roots> {
        let domain = &self.settings.trust_domain;
        let mut roots = Roots {
            bundle: TrustBundle::new(domain.clone(), [])?,
            others: TrustBundle::new(domain.clone(), [])?,
        };
        for certificate in certificates(texts)? {
            // One that cannot be a root is no reason to do without the others.
            match TrustBundle::new(domain.clone(), [certificate]) {
                Ok(one) => match one.roots() {
                    [root] if root.is_self_signed() => roots.bundle = roots.bundle.union(&one)?,
                    _ => roots.others = roots.others.union(&one)?,
                },
                Err(error) => {
                    tracing::warn!(%error, "a certificate of the PKI engine cannot be a root and is left out");
                }
            }
        }
        Ok(roots)
    }

    /// The roots. A mount without any names its intermediates: whether peers have their root is known
    /// elsewhere.
    fn sound(&self, roots: Roots, notes: &mut Vec<String>) -> Result<TrustBundle> {
        if !roots.bundle.is_empty() {
            return Ok(roots.bundle);
        }
        let Some(first) = roots.others.roots().first() else {
            return Err(misconfigured(self.without_ca()).with_retry(Retry::Backoff));
        };
        let mount = self.client.conf().mount();
        let command = self.client.known_product().command();
        notes.push(format!(
            "the PKI engine at `{mount}` holds the intermediate CA `{}` and not the root that it leads to, so Envoy accepts none of its certificates unless the mesh has the root in a MeshTrust: import the root's certificate with `{command} write {mount}/issuers/import/cert pem_bundle=@root.pem`, or name the root in `caCert`",
            first.subject()
        ));
        Ok(roots.others)
    }
}

/// The certificates in texts that are PEM, or empty.
fn certificates(texts: &[String]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut found = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        found.extend_from_slice(SignedChain::from_pem(text)?.certificates());
    }
    Ok(found)
}
