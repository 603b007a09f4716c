//! The issuer on top of a CA: what signs now, what is trusted, and how one follows the other.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use spiffe::TrustDomain;

use super::authority::{Authority, ProvidedCa};
use super::follow::{Followed, KNOWN_FOR, RELOAD_INTERVAL, Snapshot, wait_for_replicas};
use super::settings::{CaSettings, DEFAULT_MAX_LEAF_LIFETIME};
use super::store::{
    CLOCK_MARGIN, CaStore, Loaded, Next, Retiring, Rotation, Stage, gone, has_begun,
};
#[cfg(doc)]
use crate::registry::NewCa;
use crate::time::{at, later, rfc3339, seconds};
use crate::{
    CaRotation, Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Expect,
    Issuer, Profile, Result, RotationStep, SecretStore, SignedChain, TrustBundle, TrustRoot,
    Validity,
};

/// When the CA of this process is replaced: the next one is prepared when this much is left (or half its life, if that is less) …
pub(super) const PREPARE_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// … and signs when this much is left (or a sixth of its life). SPIRE's numbers.
pub(super) const ACTIVATE_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a replaced CA is kept at least, even if it has ended by the clock that replaced it: a day.
/// A clock that is ahead is set right before.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// When the CA that comes after one of this life signs at the latest.
fn last_call(validity: Validity) -> SystemTime {
    let life = validity.remaining(validity.not_before());
    let end = validity.not_after();
    end.checked_sub(ACTIVATE_BEFORE.min(life / 6))
        .unwrap_or(end)
}

/// Whether a CA that begins then can take over from one of this life in time.
fn is_in_time(begins: SystemTime, from: Validity, now: SystemTime) -> bool {
    // One that has not begun itself leaves no time to wait for another.
    let waits = has_begun(from.not_before(), now) && begins <= last_call(from);
    waits || has_begun(begins, now)
}

/// Signs with a CA of this process. See the [module](crate::builtin).
#[derive(derive_more::Debug, derive_more::Display)]
#[debug(
    "BuiltinIssuer({self}, generation {}, {:?})",
    self.snapshot().state.signs,
    self.snapshot().active
)]
#[display("{} CA of {trust_domain}", if stored.is_some() { "built-in" } else { "provided" })]
pub struct BuiltinIssuer {
    trust_domain: TrustDomain,
    max_leaf_lifetime: Duration,
    clock: Arc<dyn Clock>,
    /// Where the CA is kept, unless the operator provides it.
    stored: Option<CaStore>,
    current: Followed<Stage>,
    new_root: Option<TrustRoot>,
}

impl BuiltinIssuer {
    /// Loads the CA from the store, or makes and stores one if there never was one; see [`NewCa`].
    ///
    /// Control planes that do this at the same time end up with the same CA.
    ///
    /// # Errors
    ///
    /// Those of the store; [`ErrorKind::NotFound`] if the CA is gone or may not be made, with the
    /// secrets to restore; [`ErrorKind::InvalidConfig`] if what is in it is no CA, if certificate
    /// and key do not fit each other, or if a new CA would live too short. A CA that has ended is loaded, so that it can be
    /// [replaced](Self::prepare_next); it signs nothing.
    pub async fn load_or_create(
        settings: CaSettings,
        store: Arc<dyn SecretStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        settings.validate()?;
        let store = CaStore::new(settings, store);
        let max_leaf_lifetime = store.settings.max_leaf_lifetime;
        let now = clock.now();
        let Loaded {
            mut rotation,
            new_root,
        } = store.load_or_create(now).await?;
        // Not before there is a CA: this secret shows that there was one.
        if max_leaf_lifetime > rotation.longest_leaf() {
            rotation = store.rotation_for(max_leaf_lifetime).await?;
        }
        let (snapshot, trouble) = store.load(rotation, None, now).await?;
        let new_root = new_root.and_then(|root| snapshot.bundle.root(&root).cloned());
        let current = Followed::new(0, snapshot);
        current.note(&trouble);
        Ok(Self {
            new_root,
            trust_domain: store.settings.trust_domain.clone(),
            max_leaf_lifetime,
            clock,
            stored: Some(store),
            current,
        })
    }

    /// Signs with a CA that the operator provides: its certificate and those above it.
    ///
    /// Without the root, the last of them is its only trust anchor. Envoy accepts nothing that it
    /// signs unless the root is in the trust bundle of the peers; see [`TrustBundle::dead_ends`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] with the reason if it must not be used: not a CA, no
    /// `keyCertSign`, expired, a gap in the chain, a key of another certificate, self-signed where
    /// that is not allowed.
    pub fn provided(
        trust_domain: TrustDomain,
        ca: ProvidedCa,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let now = clock.now();
        let active = Authority::new(ca, Some(now))?;
        active.prove(&trust_domain, now)?;
        let rotation = Rotation::default();
        let snapshot = Snapshot {
            state: Stage {
                signs: rotation.active,
                rotation,
                next_begins: None,
            },
            bundle: TrustBundle::new(trust_domain.clone(), [active.root.as_ref().clone()])?,
            active: Arc::new(active),
            loaded_at: now,
        };
        Ok(Self {
            trust_domain,
            max_leaf_lifetime: DEFAULT_MAX_LEAF_LIFETIME,
            clock,
            stored: None,
            current: Followed::new(0, snapshot),
            new_root: None,
        })
    }

    /// The longest leaf of a provided CA; [`CaSettings`] has it for a stored one.
    #[must_use]
    pub fn with_max_leaf_lifetime(mut self, lifetime: Duration) -> Self {
        if self.stored.is_none() {
            self.max_leaf_lifetime = lifetime;
        }
        self
    }

    /// The root of the CA, if it was made when this issuer was, since there was none in the store.
    pub fn new_root(&self) -> Option<&TrustRoot> {
        self.new_root.as_ref()
    }

    /// Reads the store again, to follow what another replica did.
    ///
    /// # Errors
    ///
    /// Those of the store; [`ErrorKind::NotFound`] if secrets of the CA were deleted;
    /// [`ErrorKind::InvalidConfig`] if the CA that is to sign has not begun by this clock. What was loaded
    /// before stays in use, and signs for as long as it lives.
    pub async fn reload(&self) -> Result<()> {
        self.follow().await.flatten()
    }

    /// The same; the inner result says what is wrong although there is a CA that signs.
    async fn follow(&self) -> Result<Result<()>> {
        let Some(store) = &self.stored else {
            return Ok(Ok(()));
        };
        let outcome = self.read_again(store).await;
        match &outcome {
            Ok(outcome) => self.current.note(outcome),
            Err(error) => self.current.note(&Err(error.clone())),
        }
        outcome
    }

    async fn read_again(&self, store: &CaStore) -> Result<Result<()>> {
        let (now, read) = (self.clock.now(), self.current.begin_read());
        let known = self.snapshot();
        let (rotation, expect) = store.secrets.read::<Rotation>().await?;
        let names = store.settings.secrets.generation(known.state.signs)?;
        let before = &known.state.rotation;
        // A state that is gone is not one that says that the first CA signs.
        let forgotten = expect == Expect::Absent && *before != Rotation::default();
        let unchanged = forgotten || rotation == *before;
        let found = match forgotten {
            true => {
                let why = "the state of the CA's rotation is not there any more";
                Err(Error::new(ErrorKind::NotFound, why))
            }
            false => store.load(rotation, Some(&known), now).await,
        };
        let lost = |error: Error| match error.kind() {
            ErrorKind::NotFound => gone(&names, &store.secrets.state).with_source(error),
            _ => error,
        };
        let (snapshot, outcome) = match found {
            Ok((snapshot, outcome)) => (snapshot, outcome.map_err(lost)),
            // No replica has put another CA in its place, so what it signs is trusted as before.
            Err(error) if unchanged && error.kind() == ErrorKind::NotFound => {
                let held = Snapshot {
                    state: known.state.clone(),
                    active: Arc::clone(&known.active),
                    bundle: known.bundle.clone(),
                    loaded_at: now,
                };
                (held, Err(lost(error)))
            }
            Err(error) => return Err(error),
        };
        self.current.replace((0, read), snapshot, |_, _| true);
        Ok(outcome)
    }

    /// What the CA needs next, if anything: the next one is due when 30 days or half its life are
    /// left, and signs when 7 days or a sixth of it are left, whichever is less. One that would begin
    /// too late for that is none: the control plane that made it had its clock ahead. Where the CA that signs has
    /// not begun itself, both are due at once; one that has ended before it was used is prepared again.
    pub fn rotation_due(&self) -> Option<RotationStep> {
        self.stored.as_ref()?;
        let now = self.clock.now();
        let snapshot = self.snapshot();
        let (stage, validity) = (&snapshot.state, snapshot.active.validity);
        let left = validity.remaining(now);
        let retiring = &stage.rotation.retiring;
        // One that signs goes when it has ended.
        let is_over = |it: &Retiring| it.generation != stage.signs && it.is_over(now);
        // One that has not begun, by the clock that made it, signs nothing: its end is no measure.
        let begun = has_begun(validity.not_before(), now);
        let next = stage
            .next_begins
            .filter(|begins| is_in_time(*begins, validity, now));
        let step = if let Some(begins) = next {
            let is_time = now >= last_call(validity) || !begun;
            let may = has_begun(begins, now) && stage.rotation.next.is_some();
            (is_time && may).then_some(RotationStep::Activate)
        } else {
            let life = validity.remaining(validity.not_before());
            let is_late = left <= PREPARE_BEFORE.min(life / 2);
            (is_late || !begun).then_some(RotationStep::Prepare)
        };
        // What can wait comes last: a caller may have it wait.
        let is_over = retiring.iter().any(is_over);
        step.or(is_over.then_some(RotationStep::Retire))
    }

    /// Makes the next CA. Its root is trusted from now on; it signs nothing yet. Doing it again
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// Those of the store; [`ErrorKind::Conflict`] if another replica changed the rotation at the
    /// same time; [`ErrorKind::Unsupported`] for a provided CA, which its operator replaces.
    pub async fn prepare_next(&self) -> Result<TrustBundle> {
        let store = self.store()?;
        let (rotation, expect) = store.secrets.read::<Rotation>().await?;
        let now = self.clock.now();
        let signs = self.snapshot().active.validity;
        let is_of_use = |next: Authority| {
            now < next.not_after && is_in_time(next.validity.not_before(), signs, now)
        };
        if !store.next(&rotation).await?.is_some_and(is_of_use) {
            let generation = store.unused(&rotation).await?;
            let replaced = rotation.next.as_ref().map(|next| next.generation);
            // Stored before it is announced: whoever reads the announcement finds the CA.
            let _ = store.create(generation, now).await?;
            let announced = Rotation {
                next: Some(Next {
                    generation,
                    prepared_at: seconds(now),
                }),
                ..rotation
            };
            store.secrets.write(&announced, expect).await?;
            if let Some(replaced) = replaced {
                // It has signed nothing, and nothing names it any more. If it stays, that costs only room.
                let _ = store.delete(replaced).await;
            }
        }
        let _ = self.follow().await?;
        self.trust_bundle().await
    }

    /// Has the next CA sign from now on. The old root stays in the bundle until the last leaf that
    /// any replica can have signed with it has ended.
    ///
    /// That every peer holds the new root is for the caller to know. That every *replica* can is
    /// known here: it is refused until [`RELOAD_INTERVAL`] has passed since preparation.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if nothing is prepared; [`ErrorKind::Unavailable`] with
    /// [`Retry::After`](crate::Retry::After) if it is too early; else as [`prepare_next`](Self::prepare_next).
    pub async fn activate_next(&self) -> Result<()> {
        let store = self.store()?;
        let (mut rotation, expect) = store.secrets.read::<Rotation>().await?;
        let Some(next) = rotation.next.take() else {
            let known = self.snapshot();
            let known = known.state.rotation.next.as_ref();
            if known.is_some_and(|known| known.generation == rotation.active) {
                // Another replica was faster.
                return self.follow().await.map(drop);
            }
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "no next CA is prepared; prepare one and let every peer trust it first",
            ));
        };
        let now = self.clock.now();
        let ready = later(at(next.prepared_at), RELOAD_INTERVAL);
        wait_for_replicas("CA", ready, now)?;
        let successor = store.authority(next.generation).await?;
        if successor.not_after <= now {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "the next CA has ended before it was used; prepare another one",
            ));
        }
        successor.prove(&self.trust_domain, now)?;
        // A replica may sign with the old CA until it reads the store again.
        let last_leaf = later(now, RELOAD_INTERVAL.saturating_add(rotation.longest_leaf()));
        let snapshot = self.snapshot();
        let signs = snapshot.state.signs;
        let retire = |generation| {
            // No leaf outlives its CA, so nobody needs the root of one that has ended. But a clock that is
            // ahead can say so of one that lives, and this is soon seen.
            let end = match signs == generation {
                true => last_leaf
                    .min(snapshot.active.not_after)
                    .max(later(now, KEPT)),
                false => last_leaf,
            };
            Retiring {
                generation,
                trusted_until: seconds(later(end, CLOCK_MARGIN)),
            }
        };
        if signs == rotation.active {
            // It may have been deleted; its peers are to trust it as before.
            store.keep_certificate(signs, &snapshot.active).await?;
        }
        // One that signs although it was to retire goes on from now.
        for former in rotation
            .retiring
            .iter_mut()
            .filter(|it| it.generation == signs)
        {
            former.trusted_until = former.trusted_until.max(retire(signs).trusted_until);
        }
        rotation.retiring.push(retire(rotation.active));
        rotation.active = next.generation;
        store.secrets.write(&rotation, expect).await?;
        self.follow().await.map(drop)
    }

    /// Takes CAs whose last leaf has ended out of the bundle for good, and deletes their keys.
    ///
    /// # Errors
    ///
    /// As [`prepare_next`](Self::prepare_next).
    pub async fn retire(&self) -> Result<()> {
        let store = self.store()?;
        let now = self.clock.now();
        let (mut rotation, expect) = store.secrets.read::<Rotation>().await?;
        let signs = self.snapshot().state.signs;
        let gone = rotation
            .retiring
            .extract_if(.., |it| it.generation != signs && it.is_over(now));
        let gone: Vec<_> = gone.collect();
        if !gone.is_empty() {
            // Forgotten before it is deleted: nobody looks for what is not there any more.
            store.secrets.write(&rotation, expect).await?;
            for retired in gone {
                store.delete(retired.generation).await?;
            }
        }
        self.follow().await.map(drop)
    }

    fn store(&self) -> Result<&CaStore> {
        self.stored.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "a provided CA is replaced by whoever provides it",
            )
        })
    }

    fn snapshot(&self) -> Arc<Snapshot<Stage>> {
        self.current.snapshot()
    }

    async fn fresh_snapshot(&self, now: SystemTime) -> Arc<Snapshot<Stage>> {
        let Some(store) = &self.stored else {
            return self.snapshot();
        };
        let reload = || self.reload();
        self.current.fresh(now, &store.secrets.store, reload).await
    }
}

#[async_trait]
impl Issuer for BuiltinIssuer {
    fn capabilities(&self) -> Capabilities {
        let capabilities = self.snapshot().active.capabilities(self.max_leaf_lifetime);
        // How often the store is read is decided here already.
        capabilities.with_trust_interval(Duration::ZERO)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.trust_domain)?;
        let now = self.clock.now();
        let spec = request.spec();
        if let (Some(store), Profile::Intermediate { .. }) = (&self.stored, spec.profile()) {
            // The root must outlive it as it outlives leaves.
            Box::pin(store.rotation_for(spec.lifetime())).await?;
        }
        let snapshot = self.fresh_snapshot(now).await;
        let mut last_leaf = later(now, self.max_leaf_lifetime);
        if self.stored.is_some() {
            // Counted from when the store was read: if another replica has put this CA out of
            // use since, the trust in it ends then.
            let trusted = KNOWN_FOR.saturating_add(self.max_leaf_lifetime);
            last_leaf = last_leaf.min(later(snapshot.loaded_at, trusted));
        }
        snapshot.active.sign(request, now, last_leaf)
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        Ok(self.fresh_snapshot(self.clock.now()).await.bundle.clone())
    }

    async fn check(&self) -> Result<CheckReport> {
        let trouble = match self.follow().await? {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
            outcome => outcome.err(),
        };
        let now = self.clock.now();
        let active = &self.snapshot().active;
        let (subject, validity, not_after) = (&active.subject, active.validity, active.not_after);
        if !validity.contains(now) || not_after <= now {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the CA is not valid now; rotate or replace it",
            )
            .with_context("subject", subject)
            .with_context("valid", validity));
        }
        active.check_signer()?;
        let mut report = CheckReport::new();
        if let Some(trouble) = trouble {
            report = report.with_warning(trouble.to_string());
        }
        if let Some(id) = active.foreign_id(&self.trust_domain) {
            report = report.with_warning(format!(
                "the CA `{subject}` carries the SPIFFE ID `{id}` and signs for the trust domain `{}`; strict peers refuse that",
                self.trust_domain
            ));
        }
        if not_after.duration_since(now).unwrap_or_default() < PREPARE_BEFORE {
            let end = rfc3339(not_after);
            report = report.with_warning(format!("the CA `{subject}` ends at {end}; rotate it"));
        }
        Ok(report)
    }
}

#[async_trait]
impl CaRotation for BuiltinIssuer {
    fn due(&self) -> Option<RotationStep> {
        self.rotation_due()
    }

    fn lost(&self) -> Option<Error> {
        self.current.trouble()
    }

    async fn rotate(&self, step: RotationStep) -> Result<()> {
        let take = async || match step {
            RotationStep::Prepare => self.prepare_next().await.map(drop),
            RotationStep::Activate => self.activate_next().await,
            RotationStep::Retire => self.retire().await,
        };
        match take().await {
            // Another replica takes the same step at this moment: what it has done is found.
            Err(error) if error.kind() == ErrorKind::Conflict => take().await,
            outcome => outcome,
        }
    }
}
