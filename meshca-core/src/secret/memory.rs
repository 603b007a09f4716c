use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;

use super::{Expect, SecretKey, SecretStore, SecretValue, StoredSecret, Version};
use crate::Result;
use crate::sync::lock;

/// Keeps secrets in this process, for as long as the store lives.
///
/// Share it as `Arc<dyn SecretStore>`; it is not `Clone`, so nobody has to wonder whether a clone
/// is the same store. Versions are counted through the whole store and never come back, not even
/// after a secret was deleted.
///
/// ```
/// use meshca_core::secret::{Expect, MemorySecretStore, SecretKey, SecretStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> meshca_core::Result<()> {
/// let store = MemorySecretStore::new();
/// let key = SecretKey::new("default", "vault-token")?;
/// store.put(&key, "s.abc".into(), Expect::Absent).await?;
///
/// let token = store.get(&key).await?.expect("stored above");
/// assert_eq!(token.value.expose(), b"s.abc");
/// # Ok(())
/// # }
/// ```
#[derive(Default, derive_more::Debug)]
#[debug("MemorySecretStore({} secrets)", lock(state).secrets.len())]
pub struct MemorySecretStore {
    /// Every change is one insertion or one removal, so it is whole even if a holder of the lock
    /// panicked.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    secrets: HashMap<SecretKey, StoredSecret>,
    last_version: u64,
}

impl MemorySecretStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl SecretStore for MemorySecretStore {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        Ok(lock(&self.state).secrets.get(key).cloned())
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        value.check_size(key)?;
        let mut state = lock(&self.state);
        let current = state.secrets.get(key).map(|stored| &stored.version);
        expect.check(key, current)?;
        state.last_version += 1;
        let version = Version::new(state.last_version.to_string());
        state
            .secrets
            .insert(key.clone(), StoredSecret::new(value, version.clone()));
        Ok(version)
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        let mut state = lock(&self.state);
        let current = state.secrets.get(key).map(|stored| &stored.version);
        Expect::Version(version.clone()).check(key, current)?;
        state.secrets.remove(key);
        Ok(())
    }
}
