//! A CA in a secret store: one generation after the other, each made of two secrets that can never
//! come from two different CAs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, ProvidedCa};
use super::follow::{RELOAD_INTERVAL, Snapshot};
use super::secrets::{Secrets, certificates, private_key};
use super::settings::{CaSettings, DEFAULT_MAX_LEAF_LIFETIME, Generation};
use crate::registry::NewCa;
use crate::secret::StoredForm;
use crate::time::{at, later, rfc3339, seconds};
use crate::verify::CLOCK_SKEW;
use crate::{
    Error, ErrorKind, Expect, Result, Retry, SecretKey, SecretStore, SecretStoreExt as _,
    SecretValue, TrustBundle, pem,
};

/// How much longer than needed a replaced CA is kept: whoever takes it out for good may have a clock that is ahead by as much.
pub(super) const CLOCK_MARGIN: Duration = Duration::from_secs(3600);

/// How often a lost CA is replaced when other replicas do the same.
const ATTEMPTS: usize = 4;

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

/// The stored state, and what it means by this clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) rotation: Rotation,
    /// The generation that signs: the active one or, while that has not begun, one before it.
    pub(super) signs: u32,
    /// When the generation begins that signs after this one. `None` if there is none, or none that is of use.
    pub(super) next_begins: Option<SystemTime>,
}

/// A generation that signs.
struct Signer {
    generation: u32,
    authority: Authority,
    /// Why it is not the active one.
    trouble: Result<()>,
}

/// Whether a generation can sign, or has a clock in front of ours made it.
pub(super) fn has_begun(begins: SystemTime, now: SystemTime) -> bool {
    begins <= later(now, CLOCK_SKEW)
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

    /// Loads what this state says. If the CA that signs is `known` already and its secrets are gone,
    /// it is used as it is known. The second result says what is wrong although there is one that signs.
    pub(super) async fn load(
        &self,
        rotation: Rotation,
        known: Option<&Snapshot<Stage>>,
        now: SystemTime,
    ) -> Result<(Snapshot<Stage>, Result<()>)> {
        let known = known.filter(|known| known.state.signs == rotation.active);
        let (signs, active, trouble) = match (self.signer(&rotation, now).await, known) {
            (Ok(signer), _) => (
                signer.generation,
                Arc::new(signer.authority),
                signer.trouble,
            ),
            (Err(error), Some(known)) if error.kind() == ErrorKind::NotFound => {
                (rotation.active, Arc::clone(&known.active), Err(error))
            }
            (Err(error), _) => return Err(error),
        };
        Ok((self.snapshot(rotation, signs, active, now).await?, trouble))
    }

    /// The generation that signs by this clock. One that has not begun, or has ended, replaces none that works: the clock
    /// of whoever made it was wrong, or ours is. In all cases what the former one signs ends before its root is taken out.
    async fn signer(&self, rotation: &Rotation, now: SystemTime) -> Result<Signer> {
        let active = self.authority(rotation.active).await?;
        let lives = |it: &Authority| has_begun(it.validity.not_before(), now) && now < it.not_after;
        let mut formers = rotation.retiring.iter().rev();
        while !lives(&active)
            && let Some(former) = formers.next()
        {
            let generation = former.generation;
            if former.is_over(now) {
                continue;
            }
            let found = usable(self.authority(generation).await)?;
            if let Some(former) = found.filter(lives) {
                return Ok(Signer {
                    generation,
                    trouble: Err(not_alive(&active, &former, now)),
                    authority: former,
                });
            }
        }
        Ok(Signer {
            generation: rotation.active,
            authority: active,
            trouble: Ok(()),
        })
    }

    /// Loads what this state says, beside the CA that signs.
    async fn snapshot(
        &self,
        rotation: Rotation,
        signs: u32,
        active: Arc<Authority>,
        now: SystemTime,
    ) -> Result<Snapshot<Stage>> {
        let trust_domain = &self.settings.trust_domain;
        // One that does not sign now has nothing to prove; it may have to be replaced, or to wait.
        if active.validity.not_before() <= now && now < active.not_after {
            active.prove(trust_domain, now)?;
        }
        let mut roots = vec![active.root.as_ref().clone()];
        let mut next_begins = None;
        if signs != rotation.active {
            let waits = self.authority(rotation.active).await?;
            next_begins = begins(&waits, now);
            roots.push(waits.root.as_ref().clone());
        }
        // A next one that is unusable signs nothing yet; the CA that does must not stop because of
        // it. Activation refuses it, and preparation replaces it.
        if let Some(next) = self.next(&rotation).await? {
            next_begins = begins(&next, now);
            roots.push(next.root.as_ref().clone());
        }
        let retiring = rotation.retiring.iter();
        for retiring in retiring.filter(|one| one.generation != signs && !one.is_over(now)) {
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
            state: Stage {
                rotation,
                signs,
                next_begins,
            },
            active,
            bundle: TrustBundle::new(trust_domain.clone(), roots)?,
            loaded_at: now,
        })
    }

    /// Returns the next CA, if there is one that is neither damaged nor gone. A store that does not answer is an error.
    pub(super) async fn next(&self, rotation: &Rotation) -> Result<Option<Authority>> {
        match &rotation.next {
            Some(next) => usable(self.authority(next.generation).await),
            None => Ok(None),
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

    /// The CA that signs, with the state; the first one is made if there never was one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there was a CA, or if none may be made. Nothing is written then.
    pub(super) async fn load_or_create(&self, now: SystemTime) -> Result<Loaded> {
        for _ in 0..ATTEMPTS {
            let (rotation, expect) = self.secrets.read::<Rotation>().await?;
            let names = self.settings.secrets.generation(rotation.active)?;
            let lost = match self.find(&names).await? {
                Found::Pair => {
                    let new_root = None;
                    return Ok(Loaded { rotation, new_root });
                }
                Found::Part(what) => Some(what),
                Found::Nothing if expect != Expect::Absent => {
                    let secret = &self.secrets.state;
                    Some(format!(
                        "the secret `{secret}` names it as the one that signs"
                    ))
                }
                Found::Nothing => None,
            };
            let existed = match (&self.settings.new_ca, lost) {
                (NewCa::Confirmed, Some(_)) => {
                    match self.replace_lost(rotation, expect, now).await {
                        Err(error) if error.kind() == ErrorKind::Conflict => continue,
                        replaced => return replaced,
                    }
                }
                (NewCa::Existed(witness), lost) => Some(lost.unwrap_or_else(|| witness.clone())),
                (_, Some(lost)) => Some(lost),
                (NewCa::Forbidden, None) => None,
                (NewCa::Confirmed | NewCa::IfNoneExisted, None) => {
                    match self.create_first(now).await {
                        // Others made it, so fast that the mark has gone again.
                        Err(error) if error.kind() == ErrorKind::Conflict => continue,
                        created => return created,
                    }
                }
            };
            return Err(missing(&names, &self.secrets.state, existed));
        }
        let why = "other replicas keep changing the state of the CA; try again";
        Err(Error::new(ErrorKind::Conflict, why).with_retry(Retry::Backoff))
    }

    /// What the store has of a generation. One that is being made counts as nothing.
    async fn find(&self, names: &Generation) -> Result<Found> {
        let (secrets, store) = (&self.settings.secrets, &self.secrets.store);
        let has = async |name| store.get(name).await.map(|found| found.is_some());
        // The key is stored first: where a certificate is, its key was there before.
        let certificate = has(&names.certificate).await?;
        let key = has(&names.key).await?;
        Ok(match (certificate, key) {
            (true, true) => Found::Pair,
            (true, false) => Found::Part("its certificate is there, and its key is not".to_owned()),
            (false, false) => Found::Nothing,
            (false, true) if has(&secrets.in_the_making).await? => Found::Nothing,
            // Whoever made it may have completed it between the two looks.
            (false, true) if has(&names.certificate).await? => Found::Pair,
            (false, true) => Found::Part("its key is there, and its certificate is not".to_owned()),
        })
    }

    async fn create_first(&self, now: SystemTime) -> Result<Loaded> {
        let (name, store) = (&self.settings.secrets.in_the_making, &self.secrets.store);
        let mark = || Ok(SecretValue::from("this CA is being made"));
        store.get_or_create(name, mark).await?;
        let rotation = Rotation::default();
        let new_root = self.create(rotation.active, now).await?;
        // Others may have done it. One that stays says nothing while the pair is complete.
        let _ = self.secrets.delete(name).await;
        Ok(Loaded { rotation, new_root })
    }

    /// Puts a CA of a new number in the place of one that is lost: the next one, if it was prepared.
    async fn replace_lost(
        &self,
        rotation: Rotation,
        expect: Expect,
        now: SystemTime,
    ) -> Result<Loaded> {
        let prepared = self.next(&rotation).await?.is_some();
        let generation = match &rotation.next {
            Some(next) if prepared => next.generation,
            _ => self.unused(&rotation).await?,
        };
        let new_root = self.create(generation, now).await?;
        let last_leaf = later(now, RELOAD_INTERVAL.saturating_add(rotation.longest_leaf()));
        let lost = Retiring {
            generation: rotation.active,
            trusted_until: seconds(later(last_leaf, CLOCK_MARGIN)),
        };
        let mut replaced = Rotation {
            active: generation,
            next: None,
            retiring: Vec::new(),
            ..rotation
        };
        // Of those that went before, what is left of their certificates is trusted as before.
        for former in rotation.retiring.into_iter().chain([lost]) {
            let names = self.settings.secrets.generation(former.generation)?;
            if self.secrets.store.get(&names.certificate).await?.is_some() {
                replaced.retiring.push(former);
            }
        }
        self.secrets.write(&replaced, expect).await?;
        let rotation = replaced;
        Ok(Loaded { rotation, new_root })
    }

    async fn has_lost_its_key(&self, names: &Generation) -> Result<bool> {
        let store = &self.secrets.store;
        Ok(
            store.get(&names.certificate).await?.is_some()
                && store.get(&names.key).await?.is_none(),
        )
    }

    /// A number for the next generation. The store may have lost a state that named later ones, and the key of one of
    /// these: nothing signs with that any more. Its certificate is deleted, so that a store that goes on losing keys is not filled.
    pub(super) async fn unused(&self, rotation: &Rotation) -> Result<u32> {
        let mut generation = rotation.unused();
        loop {
            let names = self.settings.secrets.generation(generation)?;
            if !self.has_lost_its_key(&names).await? {
                return Ok(generation);
            }
            self.secrets.delete(&names.certificate).await?;
            generation = generation.saturating_add(1);
        }
    }

    /// Makes one generation if there is none. Gives back the root of one that was made here.
    ///
    /// The key comes first, and the certificate is derived from whichever key is in the store: of
    /// all who race to make a CA, every one stores a certificate for the same key.
    pub(super) async fn create(
        &self,
        generation: u32,
        now: SystemTime,
    ) -> Result<Option<Arc<CertificateDer<'static>>>> {
        let names = self.settings.secrets.generation(generation)?;
        let store = &self.secrets.store;
        // A certificate without its key is a lost key: a new one would not fit it.
        if self.has_lost_its_key(&names).await? {
            return Err(names.locate(Error::new(
                ErrorKind::NotFound,
                "the CA has a certificate but no key; restore the key",
            )));
        }
        let key_type = self.settings.key_type;
        let key = self.secrets.key_or_create(&names.key, key_type).await?;
        let private = private_key(&key).map_err(|error| names.locate(error))?;
        let mut made = None;
        let make = || {
            let name = common_name(self.settings.trust_domain.as_str(), generation);
            let der = Authority::self_signed(&self.settings, &name, &private, now)?;
            let pem = SecretValue::new(pem::encode("CERTIFICATE", &der).into_bytes());
            made = Some(pem.clone());
            Ok(pem)
        };
        let certificate = store.get_or_create(&names.certificate, make).await?.value;
        let authority = read(&certificate, &key).map_err(|error| names.locate(error))?;
        Ok((made == Some(certificate)).then_some(authority.root))
    }

    /// Stores the certificate of a generation if it is not there.
    pub(super) async fn keep_certificate(&self, generation: u32, held: &Authority) -> Result<()> {
        let names = self.settings.secrets.generation(generation)?;
        let make = || {
            let pem = pem::encode("CERTIFICATE", &held.root);
            Ok(SecretValue::new(pem.into_bytes()))
        };
        let kept = self.secrets.store.get_or_create(&names.certificate, make);
        kept.await.map(drop)
    }

    pub(super) async fn delete(&self, generation: u32) -> Result<()> {
        let names = self.settings.secrets.generation(generation)?;
        self.secrets.delete(&names.key).await?;
        self.secrets.delete(&names.certificate).await
    }
}

/// The CA that signs.
pub(super) struct Loaded {
    pub(super) rotation: Rotation,
    /// The root of a CA that was made here.
    pub(super) new_root: Option<Arc<CertificateDer<'static>>>,
}

/// What there is of a generation.
enum Found {
    Pair,
    /// The text says what is there and what is not.
    Part(String),
    Nothing,
}

/// The error of a CA that is not in the store and is not made. `existed` says what shows that it was
/// there.
fn missing(names: &Generation, rotation: &SecretKey, existed: Option<String>) -> Error {
    let Generation { certificate, key } = names;
    let what = match existed {
        Some(witness) => format!(
            "the CA existed ({witness}), and no new one was made, since peers that trust it would refuse what another one signs; restore"
        ),
        None => "the CA is not in the secret store, and this control plane makes none on its own; provide".to_owned(),
    };
    let why = format!(
        "{what} the secrets `{certificate}` and `{key}`, and `{rotation}` if the CA was ever rotated, or confirm a new CA with `Manager::confirm_new_ca` (without a manager: `CaSettings::with_new_ca(NewCa::Confirmed)`)"
    );
    Error::new(ErrorKind::NotFound, why)
}

/// `None` for a generation that is damaged or gone. A store that does not answer is an error.
fn usable(found: Result<Authority>) -> Result<Option<Authority>> {
    use ErrorKind::{InvalidConfig, NotFound, Unsupported};
    match found {
        Err(error) if matches!(error.kind(), InvalidConfig | NotFound | Unsupported) => Ok(None),
        found => found.map(Some),
    }
}

/// When a CA begins, if it has not ended.
fn begins(authority: &Authority, now: SystemTime) -> Option<SystemTime> {
    let lives = now < authority.not_after;
    lives.then(|| authority.validity.not_before())
}

/// The error of an active CA that does not live by this clock, where a former one does.
fn not_alive(active: &Authority, signs: &Authority, now: SystemTime) -> Error {
    let lives = match begins(active, now) {
        Some(begins) => format!("begins only at {}", rfc3339(begins)),
        None => format!("ended at {}", rfc3339(active.not_after)),
    };
    let (active, signs) = (&active.subject, &signs.subject);
    let why = format!(
        "the CA `{active}` is to sign and {lives}, so `{signs}` signs until another one does: the clock of one of the control planes that share it is wrong; compare them"
    );
    Error::new(ErrorKind::InvalidConfig, why)
}

/// The error of a running CA whose secrets were deleted.
pub(super) fn gone(names: &Generation, rotation: &SecretKey) -> Error {
    let Generation { certificate, key } = names;
    let why = format!(
        "secrets of the CA were deleted; it signs on with what this process holds, and a control plane that starts now issues nothing: restore what is missing of `{certificate}`, `{key}` and `{rotation}` from a backup"
    );
    Error::new(ErrorKind::NotFound, why)
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
