//! What a delegated CA keeps in its store.
//!
//! One secret holds everything but the keys, so that each step of a rotation is one conditional
//! write, and there is no half of a step to recover from.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::super::authority::Authority;
use super::super::follow::{RELOAD_INTERVAL, Snapshot};
use super::super::issuer::{ACTIVATE_BEFORE, PREPARE_BEFORE};
use super::super::secrets::{Secrets, certificates, private_key};
use super::settings::{DelegatedSettings, LEAF_PART, MIN_INTERMEDIATE_LIFETIME};
use crate::secret::StoredForm;
use crate::time::{at, later, rfc3339};
use crate::verify::CLOCK_SKEW;
use crate::x509::Parsed;
use crate::{
    Error, ErrorKind, Expect, PrivateKey, Result, RotationStep, SecretStore, TrustBundle, pem,
};

/// The name of this secret never changes, and it is read before anything is made. So its format
/// also stands for the names and the form of the keys.
const STATE: StoredForm = StoredForm::new(
    "the state of the delegated CA",
    1,
    "restore the secret, or delete it once no leaf of this CA is alive",
);

/// A secret of its own, as the state's readers of before refuse a field that they do not know.
const UPSTREAM: StoredForm = StoredForm::new(
    "the name of the CA above the delegated CA",
    1,
    "delete the secret, and it is written again",
);

/// Whose intermediates the state holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Upstream {
    pub(super) trust_domain: String,
    /// The type of the provider, where a resource names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) provider: Option<String>,
    /// Type and address, as the issuer names itself.
    pub(super) issuer: String,
}

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
        at(self.not_after).duration_since(now).unwrap_or_default()
    }

    /// Whether nothing below it can be alive, not even for a peer whose clock is behind.
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        later(at(self.not_after), CLOCK_SKEW) < now
    }

    /// Returns the longest lifetime of a leaf below it.
    pub(super) fn longest_leaf(&self, settings: &DelegatedSettings) -> Duration {
        settings.max_leaf_lifetime.min(self.life() / LEAF_PART)
    }

    /// Names what the operator will regret about it, if it signs.
    pub(super) fn warnings(&self, settings: &DelegatedSettings) -> Vec<String> {
        let mut warnings = Vec::new();
        let leaf = settings.max_leaf_lifetime;
        let (life, asked, allowed) = (self.life(), settings.lifetime, self.life() / LEAF_PART);
        if allowed < leaf {
            warnings.push(format!(
                "leaves are to live for up to {}s, but an intermediate that lives for {}s gives them {}s, a sixth of that; let the upstream sign intermediates for {}s or ask for shorter leaves",
                leaf.as_secs(),
                life.as_secs(),
                allowed.as_secs(),
                leaf.saturating_mul(LEAF_PART).as_secs(),
            ));
        }
        if life < asked / 10 * 9 {
            warnings.push(format!(
                "the upstream signed the intermediate for {}s where {}s were asked for; it ends at {}: raise the upstream's limit, or see whether the upstream itself is about to end",
                life.as_secs(),
                asked.as_secs(),
                rfc3339(at(self.not_after)),
            ));
        }
        warnings
    }
}

impl State {
    /// Returns the step that is due. It depends on the stored state, the settings and the time only.
    ///
    /// The numbers are SPIRE's. Where longer leaves are configured, the next intermediate signs
    /// earlier, before one of them would have to be cut short.
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

    /// Whether `newer` can be a later state of this CA, rather than one of another CA that was put
    /// in its place. What signs now is kept until it has ended.
    pub(super) fn is_continued_by(&self, newer: &Self) -> bool {
        let known = |other: &Self, one: &Intermediate| other.intermediates().any(|it| it == one);
        match (&self.active, &newer.active) {
            (Some(active), Some(newest)) => known(newer, active) || known(self, newest),
            _ => true,
        }
    }

    /// Begins again with an intermediate of another CA. What went before stays trusted until it ends
    /// if it was of the same trust domain. Returns the numbers of those that are forgotten.
    pub(super) fn start_over(&mut self, with: Intermediate, same_domain: bool) -> Vec<u32> {
        let former: Vec<_> = self.intermediates().cloned().collect();
        self.active = Some(with);
        self.next = None;
        self.retiring.clear();
        if same_domain {
            self.retiring = former;
            return Vec::new();
        }
        former.into_iter().map(|one| one.number).collect()
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
        let prepared = at(next.prepared_at);
        let mut active = self.active.iter();
        if active.any(|active| active.root == next.intermediate.root) {
            return prepared;
        }
        // Whole seconds are stored: the fraction that was cut off is waited for.
        later(prepared, RELOAD_INTERVAL + Duration::from_secs(1))
    }

    /// Takes over the upstream's roots, in the order that we had: a CA that lists its roots in
    /// another order has not changed, and no peer need hear of it. Says whether anything is new.
    pub(super) fn set_upstream_roots(&mut self, roots: &[String]) -> bool {
        let known = &self.upstream_roots;
        let kept = known.iter().filter(|root| roots.contains(root));
        let new = roots.iter().filter(|root| !known.contains(root));
        let merged = kept.chain(new).cloned().collect();
        let before = std::mem::replace(&mut self.upstream_roots, merged);
        before != self.upstream_roots
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
        let living = living.map(|one| &one.root);
        let roots: String = self.upstream_roots.iter().chain(living).cloned().collect();
        let roots = certificates(&roots, "the roots in the state of the delegated CA")?;
        TrustBundle::new(
            settings.trust_domain.clone(),
            roots.into_iter().map(|(_, root)| root),
        )
    }
}

/// The trust domain that an intermediate was signed for, if it says so.
pub(super) fn domain_of(intermediate: &Intermediate) -> Option<String> {
    let chain = certificates(&intermediate.chain, "the chain of the delegated CA").ok()?;
    let (_, own) = chain.first()?;
    let uris = Parsed::read(own).ok()?.uris().ok()?;
    let id = uris.iter().find_map(|uri| uri.strip_prefix("spiffe://"));
    id.map(str::to_owned)
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
    pub(super) secrets: Secrets,
    pub(super) settings: DelegatedSettings,
}

impl DelegatedStore {
    pub(super) fn new(settings: DelegatedSettings, store: Arc<dyn SecretStore>) -> Self {
        let secrets = Secrets {
            store,
            state: settings.secrets.state.clone(),
            form: STATE,
        };
        Self { secrets, settings }
    }

    /// Whose intermediates the state holds, if it says so.
    pub(super) async fn recorded_upstream(&self) -> Result<Option<Upstream>> {
        let key = &self.settings.secrets.upstream;
        let found = self.secrets.store.get(key).await?;
        found.map(|it| UPSTREAM.read(key, &it.value)).transpose()
    }

    pub(super) async fn record_upstream(&self, upstream: &Upstream) -> Result<()> {
        let (key, store) = (&self.settings.secrets.upstream, &self.secrets.store);
        let value = UPSTREAM.write(upstream)?;
        let expect = match store.get(key).await? {
            Some(found) if found.value == value => return Ok(()),
            Some(found) => Expect::Version(found.version),
            None => Expect::Absent,
        };
        let written = store.put(key, value, expect).await;
        match written {
            // Another replica has written, and every replica can start again from what it wrote.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            written => written.map(drop),
        }
    }

    /// Changes the state, as [`Secrets::update`] does. Each change has a revision of its own.
    pub(super) async fn update(
        &self,
        mut change: impl FnMut(&State) -> Result<Option<State>> + Send,
    ) -> Result<State> {
        let update = self.secrets.update(|state: &State| {
            let revision = state.revision.saturating_add(1);
            Ok(change(state)?.map(|changed| State {
                revision,
                ..changed
            }))
        });
        update.await
    }

    /// Loads what this state says. A CA that is known already is not read again.
    pub(super) async fn snapshot(
        &self,
        state: State,
        known: Option<&Snapshot<State>>,
        now: SystemTime,
    ) -> Result<Snapshot<State>> {
        let intermediate = state.signing()?;
        let same = |known: &&Snapshot<State>| known.state.active.as_ref() == Some(intermediate);
        let active = match known.filter(same) {
            Some(known) => Arc::clone(&known.active),
            None => {
                let authority = self.authority(intermediate).await?;
                if let Some(id) = authority.foreign_id(&self.settings.trust_domain) {
                    let why = format!(
                        "the state of the delegated CA is that of another trust domain: its intermediate carries the SPIFFE ID `{id}`; let all replicas run with the same resources"
                    );
                    let error = Error::new(ErrorKind::InvalidConfig, why);
                    return Err(error.with_context("secret", &self.settings.secrets.state));
                }
                Arc::new(authority)
            }
        };
        Ok(Snapshot {
            active,
            bundle: state.bundle(&self.settings, now)?,
            state,
            loaded_at: now,
        })
    }

    /// The key of a number, so that all ask the upstream for the same.
    pub(super) async fn key_or_create(&self, number: u32) -> Result<PrivateKey> {
        let name = self.settings.secrets.key(number)?;
        let key_type = self.settings.key_type;
        let found = self.secrets.key_or_create(&name, key_type).await?;
        private_key(&found).map_err(|error| error.with_context("secret", &name))
    }

    /// Makes sure that the key of what signs is still there, for the control plane that starts next.
    pub(super) async fn require_key(&self, number: u32) -> Result<()> {
        let name = self.settings.secrets.key(number)?;
        let key = self.secrets.require(&name, "the key of the delegated CA");
        key.await.map(drop)
    }

    pub(super) async fn delete_key(&self, number: u32) -> Result<()> {
        let name = self.settings.secrets.key(number)?;
        self.secrets.delete(&name).await
    }

    /// An intermediate with its key, ready to sign.
    pub(super) async fn authority(&self, intermediate: &Intermediate) -> Result<Authority> {
        let name = self.settings.secrets.key(intermediate.number)?;
        let found = self
            .secrets
            .require(&name, "the key of the delegated CA")
            .await?;
        let authority = private_key(&found).and_then(|key| assemble(intermediate, key));
        authority.map_err(|error| error.with_context("secret", &name))
    }
}

pub(super) fn assemble(intermediate: &Intermediate, key: PrivateKey) -> Result<Authority> {
    let text = [intermediate.chain.as_str(), intermediate.root.as_str()].concat();
    let chain = certificates(&text, "the chain of the delegated CA")?;
    Authority::issued(chain, Arc::new(key))
}

#[cfg(test)]
mod tests {
    use super::super::DelegatedSecrets;
    use super::*;
    use crate::SecretValue;

    /// So a replica of that version reads what this one writes.
    #[test]
    fn it_is_written_as_it_was_at_3213fda() {
        for mesh in ["first", "prepared", "activated", "all"] {
            let secrets = DelegatedSecrets::new(&format!("delegated-{mesh}"), "mesh-ca");
            let key = secrets.unwrap().state;
            let golden = format!("tests/golden/3213fda/{key}");
            let golden = SecretValue::new(std::fs::read(golden).unwrap());
            let state: State = STATE.read(&key, &golden).unwrap();
            assert!(STATE.write(&state).unwrap() == golden, "{mesh}");
        }
    }
}
