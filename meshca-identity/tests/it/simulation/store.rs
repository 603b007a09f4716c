//! A secret store that does what none should.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::secret::{Expect, SecretKey, SecretStore, SecretValue, StoredSecret, Version};
use meshca_core::{Error, ErrorKind, Result};

/// What goes wrong between a replica and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Every call fails.
    Fails,
    /// Every call takes so long.
    Delays(Duration),
    /// Writes are confirmed and lost.
    Loses,
    /// Of two writes one is confirmed and lost: half of a pair.
    Tears,
}

/// How many backups there are.
const BACKUPS: usize = 6;

#[derive(Debug, Default)]
pub(super) struct Store(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    secrets: BTreeMap<SecretKey, (SecretValue, u64)>,
    last: u64,
    backups: VecDeque<BTreeMap<SecretKey, SecretValue>>,
    /// By replica.
    trouble: BTreeMap<usize, Trouble>,
    puts: u64,
    /// Something was lost since this was looked at last.
    injured: bool,
}

impl Store {
    pub(super) fn set_trouble(&self, replica: usize, trouble: Option<Trouble>) {
        let mut state = self.0.lock().unwrap();
        state.trouble.remove(&replica);
        state.trouble.extend(trouble.map(|it| (replica, it)));
    }

    pub(super) fn trouble(&self, replica: usize) -> Option<Trouble> {
        self.0.lock().unwrap().trouble.get(&replica).copied()
    }

    pub(super) fn is_injured(&self) -> bool {
        self.0.lock().unwrap().injured
    }

    /// An operator has seen to what was lost.
    pub(super) fn is_healed(&self) {
        self.0.lock().unwrap().injured = false;
    }

    pub(super) fn back_up(&self) {
        let mut state = self.0.lock().unwrap();
        let values = state.secrets.iter();
        let backup = values.map(|(key, (value, _))| (key.clone(), value.clone()));
        let backup = backup.collect();
        state.backups.push_back(backup);
        if state.backups.len() > BACKUPS {
            state.backups.pop_front();
        }
    }

    /// Everything is as it was when the oldest backup was made.
    pub(super) fn roll_back(&self) {
        let mut state = self.0.lock().unwrap();
        let Some(backup) = state.backups.pop_front() else {
            return;
        };
        state.secrets.clear();
        for (key, value) in backup {
            state.last += 1;
            let version = state.last;
            state.secrets.insert(key, (value, version));
        }
        state.injured = true;
    }

    /// The states of built-in CAs, which are no secrets.
    pub(super) fn rotations(&self) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let states = state.secrets.iter();
        let states = states.filter(|(key, _)| key.name().ends_with(".rotation"));
        let text = |value: &SecretValue| value.expose_str().unwrap_or_default().to_owned();
        states
            .map(|(key, (value, _))| format!("{key}: {}", text(value)))
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().secrets.len()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let state = self.0.lock().unwrap();
        state.secrets.keys().map(ToString::to_string).collect()
    }
}

/// The store as one replica sees it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) store: Arc<Store>,
    pub(super) replica: usize,
}

impl View {
    /// What befalls a call; `Ok(true)` if a write is to be lost.
    async fn befalls(&self, writes: bool) -> Result<bool> {
        let trouble = self.store.trouble(self.replica);
        match trouble {
            None => Ok(false),
            Some(Trouble::Fails) => Err(Error::new(ErrorKind::Unavailable, "it was told to fail")),
            Some(Trouble::Delays(by)) => {
                tokio::time::sleep(by).await;
                Ok(false)
            }
            Some(trouble) if writes => {
                let mut state = self.store.0.lock().unwrap();
                state.puts += 1;
                let lost = trouble == Trouble::Loses || state.puts.is_multiple_of(2);
                state.injured |= lost;
                Ok(lost)
            }
            Some(_) => Ok(false),
        }
    }
}

#[async_trait]
impl SecretStore for View {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        self.befalls(false).await?;
        let state = self.store.0.lock().unwrap();
        let found = state.secrets.get(key);
        let stored = |(value, version): &(SecretValue, u64)| {
            StoredSecret::new(value.clone(), Version::new(version.to_string()))
        };
        Ok(found.map(stored))
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        let lost = self.befalls(true).await?;
        let mut state = self.store.0.lock().unwrap();
        let found = state.secrets.get(key);
        let current = found.map(|(_, version)| Version::new(version.to_string()));
        expect.check(key, current.as_ref())?;
        state.last += 1;
        let version = state.last;
        if !lost {
            state.secrets.insert(key.clone(), (value, version));
        }
        Ok(Version::new(version.to_string()))
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        let lost = self.befalls(true).await?;
        let mut state = self.store.0.lock().unwrap();
        let found = state.secrets.get(key);
        let current = found.map(|(_, version)| Version::new(version.to_string()));
        Expect::Version(version.clone()).check(key, current.as_ref())?;
        if !lost {
            state.secrets.remove(key);
        }
        Ok(())
    }
}
