//! A CA in a secret store: one generation after the other, each made of two secrets that can never
//! come from two different CAs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::authority::{Authority, ProvidedCa};
use super::follow::Snapshot;
use super::secrets::{Secrets, certificates, private_key};
use super::settings::{CaSettings, DEFAULT_MAX_LEAF_LIFETIME};
use crate::secret::StoredForm;
use crate::time::at;
use crate::{
    Error, ErrorKind, Result, SecretStore, SecretStoreExt as _, SecretValue, TrustBundle, pem,
};

/// The name of this secret never changes, and it is read before anything is made. So its format
/// also stands for the names and the forms of a CA's other secrets.
const ROTATION: StoredForm = StoredForm::new(
    "the state of the CA's rotation",
    1,
    "restore the secret from a backup",
);

/// Which generation signs, which is trusted already, which is still trusted. Absent: the first one
/// signs, and there is no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Rotation {
    pub(super) active: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<Next>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) retiring: Vec<Retiring>,
    /// Seconds. The longest leaf that any replica was ever set up to sign, if it is longer than
    /// [`DEFAULT_MAX_LEAF_LIFETIME`]: lowering the setting does not shorten what was signed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) longest_leaf: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Next {
    pub(super) generation: u32,
    /// Seconds since 1970.
    pub(super) prepared_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Retiring {
    pub(super) generation: u32,
    /// Seconds since 1970: when the last leaf of this CA has ended.
    pub(super) trusted_until: u64,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            active: 1,
            next: None,
            retiring: Vec::new(),
            longest_leaf: None,
        }
    }
}

impl Rotation {
    /// How long a leaf may live that is not known here to have ended.
    pub(super) fn longest_leaf(&self) -> Duration {
        self.longest_leaf
            .map_or(DEFAULT_MAX_LEAF_LIFETIME, Duration::from_secs)
    }

    /// A number that was never in use: they only grow, so what a crash left behind of a retired CA is never taken up again.
    pub(super) fn unused(&self) -> u32 {
        let last = self.next.as_ref().map(|next| next.generation);
        last.unwrap_or(self.active).saturating_add(1)
    }
}

impl Retiring {
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        at(self.trusted_until) < now
    }
}

/// Reads and writes a CA's secrets.
#[derive(Debug)]
pub(super) struct CaStore {
    pub(super) secrets: Secrets,
    pub(super) settings: CaSettings,
}

impl CaStore {
    pub(super) fn new(settings: CaSettings, store: Arc<dyn SecretStore>) -> Self {
        let secrets = Secrets {
            store,
            state: settings.secrets.rotation.clone(),
            form: ROTATION,
        };
        Self { secrets, settings }
    }

    /// The state, after having made sure that leaves of this length are reckoned with.
    pub(super) async fn rotation_for(&self, max_leaf_lifetime: Duration) -> Result<Rotation> {
        let update = self.secrets.update(|rotation: &Rotation| {
            let longer = max_leaf_lifetime > rotation.longest_leaf();
            Ok(longer.then(|| Rotation {
                longest_leaf: Some(max_leaf_lifetime.as_secs()),
                ..rotation.clone()
            }))
        });
        update.await
    }

    /// Loads what this state says, beside the CA that signs.
    pub(super) async fn snapshot(
        &self,
        rotation: Rotation,
        active: Authority,
        now: SystemTime,
    ) -> Result<Snapshot<Rotation>> {
        let trust_domain = &self.settings.trust_domain;
        // One that does not sign now has nothing to prove; it may have to be replaced, or to wait.
        if active.validity.not_before() <= now && now < active.not_after {
            active.prove(trust_domain, now)?;
        }
        let mut roots = vec![active.root.as_ref().clone()];
        // A next one that is unusable signs nothing yet; the CA that does must not stop because of
        // it. Activation refuses it, and preparation replaces it.
        roots.extend(
            self.next(&rotation)
                .await?
                .map(|next| next.root.as_ref().clone()),
        );
        for retiring in rotation.retiring.iter().filter(|one| !one.is_over(now)) {
            let name = self
                .settings
                .secrets
                .generation(retiring.generation)?
                .certificate;
            let what = "the certificate of a retiring CA";
            let text = self.secrets.require(&name, what).await?;
            let chain = certificates(text.expose_str().unwrap_or_default(), what)?;
            roots.extend(chain.into_iter().next_back().map(|(_, root)| root));
        }
        Ok(Snapshot {
            state: rotation,
            active: Arc::new(active),
            bundle: TrustBundle::new(trust_domain.clone(), roots)?,
            loaded_at: now,
        })
    }

    /// Returns the next CA, if there is one that is neither damaged nor gone. A store that does not answer is an error.
    pub(super) async fn next(&self, rotation: &Rotation) -> Result<Option<Authority>> {
        use ErrorKind::{InvalidConfig, NotFound, Unsupported};
        let Some(next) = &rotation.next else {
            return Ok(None);
        };
        match self.authority(next.generation).await {
            Err(error) if matches!(error.kind(), InvalidConfig | NotFound | Unsupported) => {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// One generation, ready to sign. It must exist.
    pub(super) async fn authority(&self, generation: u32) -> Result<Authority> {
        let names = self.settings.secrets.generation(generation)?;
        let what = "a secret of the built-in CA";
        let key = self.secrets.require(&names.key, what).await?;
        let certificate = self.secrets.require(&names.certificate, what).await?;
        read(&certificate, &key).map_err(|error| names.locate(error))
    }

    /// One generation; made if there is none.
    ///
    /// The key comes first, and the certificate is derived from whichever key is in the store: of
    /// all who race to make a CA, every one stores a certificate for the same key.
    pub(super) async fn create(&self, generation: u32, now: SystemTime) -> Result<Authority> {
        let names = self.settings.secrets.generation(generation)?;
        let store = &self.secrets.store;
        // A certificate without its key is a lost key: a new one would not fit it.
        if store.get(&names.certificate).await?.is_some() && store.get(&names.key).await?.is_none()
        {
            return Err(names.locate(Error::new(
                ErrorKind::NotFound,
                "the built-in CA has a certificate but no key; restore the key, or delete the certificate to start a new CA",
            )));
        }
        let key_type = self.settings.key_type;
        let key = self.secrets.key_or_create(&names.key, key_type).await?;
        let private = private_key(&key).map_err(|error| names.locate(error))?;
        let make = || {
            let name = common_name(self.settings.trust_domain.as_str(), generation);
            let der = Authority::self_signed(&self.settings, &name, &private, now)?;
            let pem = pem::encode("CERTIFICATE", &der);
            Ok(SecretValue::new(pem.into_bytes()))
        };
        let certificate = store.get_or_create(&names.certificate, make).await?;
        read(&certificate.value, &key).map_err(|error| names.locate(error))
    }

    pub(super) async fn delete(&self, generation: u32) -> Result<()> {
        let names = self.settings.secrets.generation(generation)?;
        self.secrets.delete(&names.key).await?;
        self.secrets.delete(&names.certificate).await
    }
}

fn read(certificate: &SecretValue, key: &SecretValue) -> Result<Authority> {
    let ca = ProvidedCa::from_secrets(certificate, key)?.allow_self_signed(true);
    Authority::new(ca, None)
}

/// At most 64 characters (RFC 5280 appendix A.1), and another one for every generation: two CAs
/// of one name would be told apart by their key identifiers only.
fn common_name(trust_domain: &str, generation: u32) -> String {
    let short: String = trust_domain.chars().take(48).collect();
    if generation == 1 {
        short
    } else {
        format!("{short} G{generation}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::CaSecrets;

    /// So a replica of that version reads what this one writes.
    #[test]
    fn it_is_written_as_it_was_at_3213fda() {
        for mesh in ["prepared", "activated", "all"] {
            let key = CaSecrets::for_backend(mesh, "ca-1").unwrap();
            let key = key.rotation;
            let golden = format!("tests/golden/3213fda/{key}");
            let golden = SecretValue::new(std::fs::read(golden).unwrap());
            let rotation: Rotation = ROTATION.read(&key, &golden).unwrap();
            assert!(ROTATION.write(&rotation).unwrap() == golden, "{mesh}");
        }
    }
}
