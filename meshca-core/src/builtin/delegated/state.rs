//! What a delegated CA keeps in its store.
//!
//! One secret holds everything but the keys, so that each step of a rotation is one conditional
//! write, and there is no half of a step to recover from.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::super::authority::Authority;
use super::super::follow::RELOAD_INTERVAL;
use super::super::issuer::{ACTIVATE_BEFORE, PREPARE_BEFORE};
pub(super) use super::super::store::{seconds, time};
use super::settings::{DelegatedSecrets, DelegatedSettings, LEAF_PART, MIN_INTERMEDIATE_LIFETIME};
use crate::secret::StoredForm;
use crate::time::rfc3339;
use crate::verify::CLOCK_SKEW;
use crate::{
    Error, ErrorKind, Expect, PrivateKey, Result, Retry, RotationStep, SecretStore,
    SecretStoreExt as _, SecretValue, TrustBundle, pem,
};

/// How often a change is tried again that others were faster with.
const ATTEMPTS: usize = 16;

/// The name of this secret stays, whatever else changes: it is read before anything is made, so its format also stands for the
/// names and the form of the keys.
const STATE: StoredForm = StoredForm::new(
    "the state of the delegated CA",
    1,
    "restore the secret, or delete it once no leaf of this CA is alive",
);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct State {
    /// Grows with every change, so that an older state is known for one.
    pub(super) revision: u64,
    /// The highest number that an intermediate ever had, or was given up with.
    pub(super) last: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) active: Option<Intermediate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<Next>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) retiring: Vec<Intermediate>,
    /// PEM, one each: what the upstream said last. Kept for the restart during its outage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) upstream_roots: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Next {
    /// Seconds since 1970.
    pub(super) prepared_at: u64,
    pub(super) intermediate: Intermediate,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Intermediate {
    pub(super) number: u32,
    /// Seconds since 1970. Its life counts from here: AWS backdates `NotBefore` by an hour.
    pub(super) issued_at: u64,
    /// Seconds since 1970: when it, or the first certificate above it, ends.
    pub(super) not_after: u64,
    /// PEM: itself and those above it, without the root.
    pub(super) chain: String,
    /// PEM.
    pub(super) root: String,
}

impl Intermediate {
    pub(super) fn life(&self) -> Duration {
        Duration::from_secs(self.not_after.saturating_sub(self.issued_at))
    }

    pub(super) fn remaining(&self, now: SystemTime) -> Duration {
        time(self.not_after).duration_since(now).unwrap_or_default()
    }

    /// Whether nothing below it can be alive, not even for a peer whose clock is behind.
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        time(self.not_after)
            .checked_add(CLOCK_SKEW)
            .is_some_and(|end| end < now)
    }

    /// How long a leaf of it may live.
    pub(super) fn longest_leaf(&self, settings: &DelegatedSettings) -> Duration {
        settings.max_leaf_lifetime.min(self.life() / LEAF_PART)
    }

    /// Names what the operator will regret about it, if it signs.
    pub(super) fn warnings(&self, settings: &DelegatedSettings) -> Vec<String> {
        let mut warnings = Vec::new();
        let (life, allowed) = (self.life(), self.life() / LEAF_PART);
        if allowed < settings.max_leaf_lifetime {
            warnings.push(format!(
                "leaves are to live for up to {}s, but an intermediate that lives for {}s gives them {}s, a sixth of that; let the upstream sign intermediates for {}s or ask for shorter leaves",
                settings.max_leaf_lifetime.as_secs(),
                life.as_secs(),
                allowed.as_secs(),
                settings.max_leaf_lifetime.saturating_mul(LEAF_PART).as_secs(),
            ));
        }
        if life < settings.lifetime / 10 * 9 {
            warnings.push(format!(
                "the upstream signed the intermediate for {}s where {}s were asked for; it ends at {}: raise the upstream's limit, or see whether the upstream itself is about to end",
                life.as_secs(),
                settings.lifetime.as_secs(),
                rfc3339(time(self.not_after)),
            ));
        }
        warnings
    }
}

impl State {
    /// Says what is due, as a function of what is stored and of the time.
    ///
    /// SPIRE's numbers, moved forward where longer leaves were configured: the next intermediate signs before one of
    /// them would have to be cut short.
    pub(super) fn due(
        &self,
        settings: &DelegatedSettings,
        now: SystemTime,
    ) -> Option<RotationStep> {
        let active = self.active.as_ref()?;
        let life = active.life();
        let activate_before = ACTIVATE_BEFORE
            .max(settings.max_leaf_lifetime)
            .min(life / LEAF_PART);
        let prepare_before = PREPARE_BEFORE
            .max(activate_before.saturating_mul(2))
            .min(life / 2);
        let left = active.remaining(now);
        let abandoned = self.is_abandoned(active);
        let next = self.usable_next(now);
        let activate = next.is_some_and(|next| {
            (left <= activate_before || abandoned) && self.ready_at(next) <= now
        });
        if activate {
            Some(RotationStep::Activate)
        } else if next.is_none() && (left <= prepare_before || abandoned) {
            Some(RotationStep::Prepare)
        } else {
            let over = self.retiring.iter().any(|retiring| retiring.is_over(now));
            over.then_some(RotationStep::Retire)
        }
    }

    /// Whether the upstream no longer publishes the root of this one, as after its replacement by another CA.
    pub(super) fn is_abandoned(&self, intermediate: &Intermediate) -> bool {
        !self.upstream_roots.is_empty() && !self.upstream_roots.contains(&intermediate.root)
    }

    /// What is next, if it is worth signing with.
    pub(super) fn usable_next(&self, now: SystemTime) -> Option<&Next> {
        self.next.as_ref().filter(|next| {
            next.intermediate.remaining(now) >= MIN_INTERMEDIATE_LIFETIME
                && !self.is_abandoned(&next.intermediate)
        })
    }

    /// What signs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if nothing does, though something did.
    pub(super) fn signing(&self) -> Result<&Intermediate> {
        self.active.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "the state of the delegated CA was taken away; restore the secret, or build the issuer anew to start over",
            )
        })
    }

    /// When every replica trusts the root of what is next: at once if it is the root of what
    /// signs now, else when all have read the store again.
    pub(super) fn ready_at(&self, next: &Next) -> SystemTime {
        let prepared = time(next.prepared_at);
        let known = self
            .active
            .as_ref()
            .is_some_and(|active| active.root == next.intermediate.root);
        if known {
            prepared
        } else {
            // Whole seconds are stored: the fraction that was cut off is waited for.
            let wait = RELOAD_INTERVAL + Duration::from_secs(1);
            prepared.checked_add(wait).unwrap_or(prepared)
        }
    }

    /// Takes over the upstream's roots, in the order that we had: a CA that lists its roots in
    /// another order has not changed, and no peer need hear of it. Says whether anything is new.
    pub(super) fn set_upstream_roots(&mut self, roots: &[String]) -> bool {
        let kept = self
            .upstream_roots
            .iter()
            .filter(|root| roots.contains(root));
        let new = roots
            .iter()
            .filter(|root| !self.upstream_roots.contains(root));
        let merged: Vec<String> = kept.chain(new).cloned().collect();
        let changed = merged != self.upstream_roots;
        self.upstream_roots = merged;
        changed
    }

    fn intermediates(&self) -> impl Iterator<Item = &Intermediate> {
        let next = self.next.as_ref().map(|next| &next.intermediate);
        self.active.iter().chain(next).chain(&self.retiring)
    }

    pub(super) fn refers_to(&self, number: u32) -> bool {
        self.intermediates().any(|one| one.number == number)
    }

    /// The upstream's roots and those of everything that can be alive.
    pub(super) fn bundle(
        &self,
        settings: &DelegatedSettings,
        now: SystemTime,
    ) -> Result<TrustBundle> {
        let living = self.intermediates().filter(|one| !one.is_over(now));
        let text: String = self
            .upstream_roots
            .iter()
            .chain(living.map(|one| &one.root))
            .map(String::as_str)
            .collect();
        let roots = pem::certificates(&text).map_err(|error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("the roots in the state of the delegated CA are damaged: {error}"),
            )
        })?;
        TrustBundle::new(
            settings.trust_domain.clone(),
            roots.into_iter().map(|(_, root)| root),
        )
    }
}

/// The roots of a bundle as the state keeps them.
pub(super) fn as_pem(bundle: &TrustBundle) -> Vec<String> {
    bundle
        .roots()
        .iter()
        .map(|root| pem::encode("CERTIFICATE", root.der()))
        .collect()
}

/// Reads and writes the secrets.
#[derive(Debug)]
pub(super) struct DelegatedStore {
    pub(super) store: Arc<dyn SecretStore>,
    pub(super) secrets: DelegatedSecrets,
}

impl DelegatedStore {
    pub(super) async fn state(&self) -> Result<(State, Expect)> {
        let name = self.secrets.state()?;
        let Some(found) = self.store.get(&name).await? else {
            return Ok((State::default(), Expect::Absent));
        };
        let state = STATE.read(&name, &found.value)?;
        Ok((state, Expect::Version(found.version)))
    }

    /// Changes the state, from the newest there is. `change` is called again when others were
    /// faster, and returns nothing if there is nothing left to do.
    pub(super) async fn update(
        &self,
        mut change: impl FnMut(&State) -> Result<Option<State>> + Send,
    ) -> Result<State> {
        let name = self.secrets.state()?;
        for _ in 0..ATTEMPTS {
            let (state, expect) = self.state().await?;
            let Some(mut changed) = change(&state)? else {
                return Ok(state);
            };
            changed.revision = state.revision.saturating_add(1);
            match self.store.put(&name, STATE.write(&changed)?, expect).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(changed),
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            "others keep changing the state of the delegated CA; try again",
        )
        .with_context("secret", &name)
        .with_retry(Retry::Backoff))
    }

    /// The key of a number: the one that is in the store, so that all who race, and whoever comes after a
    /// crash, ask the upstream for the same.
    pub(super) async fn key_or_create(
        &self,
        settings: &DelegatedSettings,
        number: u32,
    ) -> Result<PrivateKey> {
        let name = self.secrets.key(number)?;
        let key_type = settings.key_type;
        let found = self
            .store
            .get_or_create(&name, move || PrivateKey::generate(key_type)?.expose_pem())
            .await?;
        read_key(&found.value).map_err(|error| error.with_context("secret", &name))
    }

    pub(super) async fn delete_key(&self, number: u32) -> Result<()> {
        let name = self.secrets.key(number)?;
        if let Some(found) = self.store.get(&name).await? {
            self.store.delete(&name, &found.version).await?;
        }
        Ok(())
    }

    /// An intermediate with its key, ready to sign.
    pub(super) async fn authority(&self, intermediate: &Intermediate) -> Result<Authority> {
        let name = self.secrets.key(intermediate.number)?;
        let found = self.store.get(&name).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "the key of the delegated CA is missing; restore it from a backup",
            )
            .with_context("secret", &name)
        })?;
        let located = |error: Error| error.with_context("secret", &name);
        assemble(intermediate, read_key(&found.value).map_err(located)?).map_err(located)
    }
}

pub(super) fn assemble(intermediate: &Intermediate, key: PrivateKey) -> Result<Authority> {
    let text = [intermediate.chain.as_str(), intermediate.root.as_str()].concat();
    let chain = pem::certificates(&text).map_err(|error| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("the certificates of the delegated CA are damaged: {error}"),
        )
    })?;
    Authority::issued(chain, Arc::new(key))
}

fn read_key(value: &SecretValue) -> Result<PrivateKey> {
    PrivateKey::from_pem(value.expose_str().unwrap_or_default())
}
