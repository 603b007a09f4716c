//! A CA in a secret store: one generation after the other, each made of two secrets that can never
//! come from two different CAs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::authority::{Authority, ProvidedCa};
use super::settings::{CaSecrets, CaSettings, DEFAULT_MAX_LEAF_LIFETIME};
use crate::secret::StoredForm;
use crate::{
    Error, ErrorKind, Expect, PrivateKey, Result, Retry, SecretKey, SecretStore,
    SecretStoreExt as _, SecretValue, Version, pem,
};

/// The name of this secret stays, whatever else changes: it is read before anything is made, so its format also stands for the
/// names and the forms of a CA's other secrets.
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

impl Rotation {
    pub(super) fn first() -> Self {
        Self {
            active: 1,
            next: None,
            retiring: Vec::new(),
            longest_leaf: None,
        }
    }

    /// How long a leaf may live that is not known here to have ended.
    pub(super) fn longest_leaf(&self) -> Duration {
        self.longest_leaf
            .map_or(DEFAULT_MAX_LEAF_LIFETIME, Duration::from_secs)
    }

    /// A number that was never in use: they only grow, so what a crash left behind of a retired CA is never taken up again.
    pub(super) fn unused(&self) -> u32 {
        self.next
            .as_ref()
            .map_or(self.active, |next| next.generation)
            .saturating_add(1)
    }
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

pub(super) fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Reads and writes a CA's secrets.
#[derive(Debug)]
pub(super) struct CaStore {
    pub(super) store: Arc<dyn SecretStore>,
    pub(super) secrets: CaSecrets,
}

impl CaStore {
    /// The state of the rotation, and the version to insist on when changing it.
    pub(super) async fn rotation(&self) -> Result<(Rotation, Expect)> {
        let key = self.secrets.rotation()?;
        let Some(found) = self.store.get(&key).await? else {
            return Ok((Rotation::first(), Expect::Absent));
        };
        let rotation = ROTATION.read(&key, &found.value)?;
        Ok((rotation, Expect::Version(found.version)))
    }

    pub(super) async fn set_rotation(
        &self,
        rotation: &Rotation,
        expect: Expect,
    ) -> Result<Version> {
        let key = self.secrets.rotation()?;
        let value = ROTATION.write(rotation)?;
        self.store.put(&key, value, expect).await
    }

    /// The same, after having made sure that leaves of this length are reckoned with.
    pub(super) async fn rotation_for(&self, max_leaf_lifetime: Duration) -> Result<Rotation> {
        for _ in 0..8 {
            let (mut rotation, expect) = self.rotation().await?;
            if rotation.longest_leaf() >= max_leaf_lifetime {
                return Ok(rotation);
            }
            rotation.longest_leaf = Some(max_leaf_lifetime.as_secs());
            match self.set_rotation(&rotation, expect).await {
                // Another replica was faster, perhaps with the same.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(rotation),
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            "other replicas keep changing the state of the CA's rotation; try again",
        )
        .with_retry(Retry::Backoff))
    }

    /// One generation, ready to sign. It must exist.
    pub(super) async fn authority(&self, generation: u32) -> Result<Authority> {
        let key_name = self.secrets.key(generation)?;
        let certificate_name = self.secrets.certificate(generation)?;
        let missing = |name: &SecretKey| {
            Error::new(
                ErrorKind::NotFound,
                "a secret of the built-in CA is missing; restore it from a backup",
            )
            .with_context("secret", name)
        };
        let key = self
            .store
            .get(&key_name)
            .await?
            .ok_or_else(|| missing(&key_name))?;
        let certificate = self
            .store
            .get(&certificate_name)
            .await?
            .ok_or_else(|| missing(&certificate_name))?;
        read(&certificate.value, &key.value).map_err(|error| {
            error
                .with_context("certificate", &certificate_name)
                .with_context("key", &key_name)
        })
    }

    /// The certificates of a generation that no longer signs, as PEM.
    pub(super) async fn certificate(&self, generation: u32) -> Result<SecretValue> {
        let name = self.secrets.certificate(generation)?;
        let found = self.store.get(&name).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "the certificate of a retiring CA is missing; restore it from a backup",
            )
            .with_context("secret", &name)
        })?;
        Ok(found.value)
    }

    /// One generation; made if there is none.
    ///
    /// The key comes first, and the certificate is derived from whichever key is in the store: of
    /// all who race to make a CA, every one stores a certificate for the same key.
    pub(super) async fn create(
        &self,
        settings: &CaSettings,
        generation: u32,
        now: SystemTime,
    ) -> Result<Authority> {
        let key_name = self.secrets.key(generation)?;
        let certificate_name = self.secrets.certificate(generation)?;
        let located = |error: Error| {
            error
                .with_context("certificate", &certificate_name)
                .with_context("key", &key_name)
        };
        let key_type = settings.key_type;
        // A certificate without its key is a lost key: a new one would not fit it.
        if self.store.get(&certificate_name).await?.is_some()
            && self.store.get(&key_name).await?.is_none()
        {
            return Err(located(Error::new(
                ErrorKind::NotFound,
                "the built-in CA has a certificate but no key; restore the key, or delete the certificate to start a new CA",
            )));
        }
        let key = self
            .store
            .get_or_create(&key_name, move || {
                PrivateKey::generate(key_type)?.expose_pem()
            })
            .await?;
        let private =
            PrivateKey::from_pem(key.value.expose_str().unwrap_or_default()).map_err(located)?;
        let certificate = self
            .store
            .get_or_create(&certificate_name, || {
                let name = common_name(settings.trust_domain.as_str(), generation);
                let der = Authority::self_signed(
                    &settings.trust_domain,
                    &name,
                    &private,
                    settings.lifetime,
                    now,
                )?;
                Ok(SecretValue::new(
                    pem::encode("CERTIFICATE", &der).into_bytes(),
                ))
            })
            .await?;
        read(&certificate.value, &key.value).map_err(located)
    }

    pub(super) async fn delete(&self, generation: u32) -> Result<()> {
        for name in [
            self.secrets.key(generation)?,
            self.secrets.certificate(generation)?,
        ] {
            if let Some(found) = self.store.get(&name).await? {
                self.store.delete(&name, &found.version).await?;
            }
        }
        Ok(())
    }
}

fn read(certificate: &SecretValue, key: &SecretValue) -> Result<Authority> {
    let text = |value: &SecretValue| value.expose_str().map(str::to_owned);
    let certificates = text(certificate)
        .ok_or_else(|| Error::new(ErrorKind::InvalidConfig, "the CA's certificate is not PEM"))?;
    let ca = ProvidedCa::from_pem(&certificates, key.expose_str().unwrap_or_default())?
        .allow_self_signed(true);
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
