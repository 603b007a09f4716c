//! The state and the keys that a CA keeps in a store which replicas share.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::secret::StoredForm;
use crate::{
    Error, ErrorKind, Expect, KeyType, PrivateKey, Result, Retry, SecretKey, SecretStore,
    SecretStoreExt as _, SecretValue, Version, pem,
};

/// The number of attempts at a change when other replicas change the state first.
const ATTEMPTS: usize = 16;

/// The secrets of a CA. One of them is its state, which says what signs and what is trusted.
#[derive(Debug)]
pub(super) struct Secrets {
    pub(super) store: Arc<dyn SecretStore>,
    pub(super) state: SecretKey,
    pub(super) form: StoredForm,
}

impl Secrets {
    /// The state, and the version to insist on when changing it.
    pub(super) async fn read<S: DeserializeOwned + Default>(&self) -> Result<(S, Expect)> {
        let Some(found) = self.store.get(&self.state).await? else {
            return Ok((S::default(), Expect::Absent));
        };
        let state = self.form.read(&self.state, &found.value)?;
        Ok((state, Expect::Version(found.version)))
    }

    pub(super) async fn write<S: Serialize>(&self, state: &S, expect: Expect) -> Result<Version> {
        let value = self.form.write(state)?;
        self.store.put(&self.state, value, expect).await
    }

    /// Changes the state, from the newest there is. `change` is called again when others were
    /// faster, and returns nothing if there is nothing left to do.
    pub(super) async fn update<S: DeserializeOwned + Serialize + Default + Send + Sync>(
        &self,
        mut change: impl FnMut(&S) -> Result<Option<S>> + Send,
    ) -> Result<S> {
        for _ in 0..ATTEMPTS {
            let (state, expect) = self.read().await?;
            let Some(changed) = change(&state)? else {
                return Ok(state);
            };
            match self.write(&changed, expect).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                written => return written.map(|_| changed),
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            "other replicas keep changing the state of the CA; try again",
        )
        .with_context("secret", &self.state)
        .with_retry(Retry::Backoff))
    }

    /// Reads a secret that must be there.
    pub(super) async fn require(&self, name: &SecretKey, what: &str) -> Result<SecretValue> {
        let found = self.store.get(name).await?.ok_or_else(|| {
            let why = format!("{what} is missing; restore it from a backup");
            Error::new(ErrorKind::NotFound, why).with_context("secret", name)
        })?;
        Ok(found.value)
    }

    /// Returns the stored key, and makes it if there is none. Replicas that race, and a process after a crash, use the same key.
    pub(super) async fn key_or_create(
        &self,
        name: &SecretKey,
        key_type: KeyType,
    ) -> Result<SecretValue> {
        let make = move || PrivateKey::generate(key_type)?.expose_pem();
        Ok(self.store.get_or_create(name, make).await?.value)
    }

    pub(super) async fn delete(&self, name: &SecretKey) -> Result<()> {
        if let Some(found) = self.store.get(name).await? {
            self.store.delete(name, &found.version).await?;
        }
        Ok(())
    }
}

pub(super) fn private_key(value: &SecretValue) -> Result<PrivateKey> {
    PrivateKey::from_pem(value.expose_str().unwrap_or_default())
}

/// Reads certificates in PEM, each with its line. An error says what cannot be read.
pub(super) fn certificates(
    text: &str,
    what: &str,
) -> Result<Vec<(usize, CertificateDer<'static>)>> {
    pem::certificates(text).map_err(|error| {
        let why = format!("{what} cannot be read: {error}");
        Error::new(ErrorKind::InvalidConfig, why)
    })
}
