//! The issuer on top of a CA: what signs now, what is trusted, and how one follows the other.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use spiffe::TrustDomain;

use super::authority::{Authority, ProvidedCa};
use super::follow::{AskLimit, KNOWN_FOR, RELOAD_INTERVAL};
use super::settings::{CaSettings, DEFAULT_MAX_LEAF_LIFETIME};
use super::store::{CaStore, Next, Retiring, Rotation, seconds, time};
use crate::time::rfc3339;
use crate::{
    CaRotation, Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer,
    KeyType, Profile, Result, Retry, RotationStep, SecretStore, SignedChain, TrustBundle, pem,
};

/// How much longer than needed a replaced CA is kept: whoever takes it out for good may have a clock that is ahead by as much.
const CLOCK_MARGIN: Duration = Duration::from_secs(3600);

/// When the CA of this process is replaced: the next one is prepared when this much is left (or half its life, if that is less) …
pub(super) const PREPARE_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// … and signs when this much is left (or a sixth of its life). SPIRE's numbers.
pub(super) const ACTIVATE_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Signs with a CA of this process. See the [module](crate::builtin).
pub struct BuiltinIssuer {
    trust_domain: TrustDomain,
    max_leaf_lifetime: Duration,
    clock: Arc<dyn Clock>,
    source: Source,
    current: RwLock<Arc<Snapshot>>,
    asked: AskLimit,
    reads: AtomicU64,
}

enum Source {
    Stored {
        store: CaStore,
        settings: CaSettings,
    },
    Provided,
}

/// What was true when the store was read last. Replaced as a whole, never changed.
struct Snapshot {
    rotation: Rotation,
    active: Arc<Authority>,
    bundle: TrustBundle,
    loaded_at: SystemTime,
    /// Which read of the store it comes from. Clocks are set back; this is not.
    read: u64,
}

impl BuiltinIssuer {
    /// Loads the CA from the store, or makes and stores one if there is none.
    ///
    /// Control planes that do this at the same time end up with the same CA.
    ///
    /// # Errors
    ///
    /// Those of the store; [`ErrorKind::InvalidConfig`] if what is in it is no CA, or if certificate
    /// and key do not fit each other. A CA that has ended is loaded, so that it can be
    /// [replaced](Self::prepare_next); it signs nothing.
    pub async fn load_or_create(
        settings: CaSettings,
        store: Arc<dyn SecretStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let store = CaStore {
            store,
            secrets: settings.secrets.clone(),
        };
        let now = clock.now();
        let rotation = store.rotation_for(settings.max_leaf_lifetime).await?;
        let active = store.create(&settings, rotation.active, now).await?;
        let snapshot = Self::load(
            &store,
            &settings.trust_domain,
            rotation,
            Some(active),
            (now, 0),
        )
        .await?;
        Ok(Self {
            trust_domain: settings.trust_domain.clone(),
            max_leaf_lifetime: settings.max_leaf_lifetime,
            clock,
            current: RwLock::new(Arc::new(snapshot)),
            asked: AskLimit::new(now),
            reads: AtomicU64::new(1),
            source: Source::Stored { store, settings },
        })
    }

    /// Signs with a CA that the operator provides.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] with the reason if it must not be used: not a CA, no
    /// `keyCertSign`, expired, an incomplete chain, a key of another certificate, self-signed where that is not allowed.
    pub fn provided(
        trust_domain: TrustDomain,
        ca: ProvidedCa,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let now = clock.now();
        let active = Authority::new(ca, Some(now))?;
        active.prove(&trust_domain, now)?;
        let bundle = TrustBundle::new(trust_domain.clone(), [active.root().clone()])?;
        let rotation = Rotation::first();
        Ok(Self {
            trust_domain,
            max_leaf_lifetime: DEFAULT_MAX_LEAF_LIFETIME,
            current: RwLock::new(Arc::new(Snapshot {
                rotation,
                active: Arc::new(active),
                bundle,
                loaded_at: now,
                read: 0,
            })),
            asked: AskLimit::new(now),
            reads: AtomicU64::new(1),
            clock,
            source: Source::Provided,
        })
    }

    /// The longest leaf of a provided CA; [`CaSettings`] has it for a stored one.
    #[must_use]
    pub fn with_max_leaf_lifetime(mut self, lifetime: Duration) -> Self {
        if let Source::Provided = self.source {
            self.max_leaf_lifetime = lifetime;
        }
        self
    }

    /// Reads the store again, to follow what another replica did.
    ///
    /// # Errors
    ///
    /// Those of the store. What was loaded before stays in use.
    pub async fn reload(&self) -> Result<()> {
        let Source::Stored { store, settings } = &self.source else {
            return Ok(());
        };
        let read = (self.clock.now(), self.reads.fetch_add(1, Ordering::SeqCst));
        let (rotation, _) = store.rotation().await?;
        let snapshot = Self::load(store, &settings.trust_domain, rotation, None, read).await?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Another call may have read later and finished sooner.
        if snapshot.read > current.read {
            *current = Arc::new(snapshot);
        }
        Ok(())
    }

    async fn load(
        store: &CaStore,
        trust_domain: &TrustDomain,
        rotation: Rotation,
        active: Option<Authority>,
        (now, read): (SystemTime, u64),
    ) -> Result<Snapshot> {
        let active = match active {
            Some(active) => active,
            None => store.authority(rotation.active).await?,
        };
        // One that does not sign now has nothing to prove; it may have to be replaced, or to wait.
        if active.validity().not_before() <= now && now < active.not_after() {
            active.prove(trust_domain, now)?;
        }
        let mut bundle = TrustBundle::new(trust_domain.clone(), [active.root().clone()])?;
        if let Some(next) = &rotation.next {
            match store.authority(next.generation).await {
                Ok(next) => bundle = bundle.with_root(next.root().clone())?,
                // It signs nothing yet; the CA that does must not stop because of it. Activation
                // refuses it, and preparation replaces it.
                Err(error) if is_unusable(&error) => {}
                Err(error) => return Err(error),
            }
        }
        for retiring in rotation
            .retiring
            .iter()
            .filter(|retiring| time(retiring.trusted_until) >= now)
        {
            let text = store.certificate(retiring.generation).await?;
            let certificates =
                pem::certificates(text.expose_str().unwrap_or_default()).map_err(|error| {
                    Error::new(
                        ErrorKind::InvalidConfig,
                        "the certificate of a retiring CA is damaged",
                    )
                    .with_source(error)
                })?;
            if let Some((_, root)) = certificates.into_iter().next_back() {
                bundle = bundle.with_root(root)?;
            }
        }
        Ok(Snapshot {
            rotation,
            active: Arc::new(active),
            bundle,
            loaded_at: now,
            read,
        })
    }

    /// What the CA needs next, if anything: the next one is due when 30 days or half its life are
    /// left, and signs when 7 days or a sixth of it are left, whichever is less.
    pub fn rotation_due(&self) -> Option<RotationStep> {
        let Source::Stored { .. } = &self.source else {
            return None;
        };
        let now = self.clock.now();
        let snapshot = self.snapshot();
        let validity = snapshot.active.validity();
        let life = validity
            .not_after()
            .duration_since(validity.not_before())
            .unwrap_or_default();
        let left = validity.remaining(now);
        if snapshot
            .rotation
            .retiring
            .iter()
            .any(|retiring| time(retiring.trusted_until) < now)
        {
            Some(RotationStep::Retire)
        } else if snapshot.rotation.next.is_some() {
            (left <= ACTIVATE_BEFORE.min(life / 6)).then_some(RotationStep::Activate)
        } else {
            (left <= PREPARE_BEFORE.min(life / 2)).then_some(RotationStep::Prepare)
        }
    }

    /// Makes the next CA. Its root is trusted from now on; it signs nothing yet. Doing it again
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// Those of the store; [`ErrorKind::Conflict`] if another replica changed the rotation at the
    /// same time; [`ErrorKind::Unsupported`] for a provided CA, which its operator replaces.
    pub async fn prepare_next(&self) -> Result<TrustBundle> {
        let (store, settings) = self.stored()?;
        let (rotation, expect) = store.rotation().await?;
        let now = self.clock.now();
        let usable = match &rotation.next {
            None => false,
            Some(next) => match store.authority(next.generation).await {
                Ok(next) => next.not_after() > now,
                Err(error) if is_unusable(&error) => false,
                Err(error) => return Err(error),
            },
        };
        if !usable {
            let generation = rotation.unused();
            // Stored before it is announced: whoever reads the announcement finds the CA.
            store.create(settings, generation, now).await?;
            let next = Next {
                generation,
                prepared_at: seconds(now),
            };
            store
                .set_rotation(
                    &Rotation {
                        next: Some(next),
                        ..rotation
                    },
                    expect,
                )
                .await?;
        }
        self.reload().await?;
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
    /// [`Retry::After`] if it is too early; else as [`prepare_next`](Self::prepare_next).
    pub async fn activate_next(&self) -> Result<()> {
        let (store, _) = self.stored()?;
        let (mut rotation, expect) = store.rotation().await?;
        let Some(next) = rotation.next.take() else {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "no next CA is prepared; prepare one and let every peer trust it first",
            ));
        };
        let now = self.clock.now();
        let ready = time(next.prepared_at)
            .checked_add(RELOAD_INTERVAL)
            .unwrap_or(now);
        if let Ok(early) = ready.duration_since(now)
            && !early.is_zero()
        {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the next CA was prepared a moment ago; other replicas may not trust it yet",
            )
            .with_retry(Retry::After(early)));
        }
        let successor = store.authority(next.generation).await?;
        if successor.not_after() <= now {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "the next CA has ended before it was used; prepare another one",
            ));
        }
        successor.prove(&self.trust_domain, now)?;
        // A replica may sign with the old CA until it reads the store again.
        let last_leaf = RELOAD_INTERVAL.saturating_add(rotation.longest_leaf());
        let last_leaf = now.checked_add(last_leaf).unwrap_or(now);
        // No leaf outlives its CA, so nobody needs the root of one that has ended.
        let snapshot = self.snapshot();
        let end_of_ca = if snapshot.rotation.active == rotation.active {
            snapshot.active.not_after()
        } else {
            last_leaf
        };
        rotation.retiring.push(Retiring {
            generation: rotation.active,
            trusted_until: seconds(last_leaf.min(end_of_ca)).saturating_add(CLOCK_MARGIN.as_secs()),
        });
        rotation.active = next.generation;
        store.set_rotation(&rotation, expect).await?;
        self.reload().await
    }

    /// Takes CAs whose last leaf has ended out of the bundle for good, and deletes their keys.
    ///
    /// # Errors
    ///
    /// As [`prepare_next`](Self::prepare_next).
    pub async fn retire(&self) -> Result<()> {
        let (store, _) = self.stored()?;
        let now = self.clock.now();
        let (mut rotation, expect) = store.rotation().await?;
        let (kept, gone): (Vec<_>, Vec<_>) = rotation
            .retiring
            .into_iter()
            .partition(|retiring| time(retiring.trusted_until) >= now);
        rotation.retiring = kept;
        if !gone.is_empty() {
            // Forgotten before it is deleted: nobody looks for what is not there any more.
            store.set_rotation(&rotation, expect).await?;
            for retired in gone {
                store.delete(retired.generation).await?;
            }
        }
        self.reload().await
    }

    fn stored(&self) -> Result<(&CaStore, &CaSettings)> {
        match &self.source {
            Source::Stored { store, settings } => Ok((store, settings)),
            Source::Provided => Err(Error::new(
                ErrorKind::Unsupported,
                "a provided CA is replaced by whoever provides it",
            )),
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What to sign with: read again when it is old or has changed, but kept when that fails. An outage of the
    /// store must not stop a CA that needs nothing from it.
    async fn fresh_snapshot(&self, now: SystemTime) -> Arc<Snapshot> {
        let snapshot = self.snapshot();
        let Source::Stored { store, .. } = &self.source else {
            return snapshot;
        };
        let due = self.asked.due(now, snapshot.loaded_at, &store.store);
        // Boxed, as this is part of every signature: the kilobytes of a future for what is rarely done would be allocated for each.
        if let Some(due) = due
            && Box::pin(self.reload()).await.is_ok()
        {
            self.asked.read(&due);
            return self.snapshot();
        }
        snapshot
    }

    fn kind(&self) -> &'static str {
        match self.source {
            Source::Stored { .. } => "built-in",
            Source::Provided => "provided",
        }
    }
}

/// Whether a CA in the store is damaged or gone, in contrast to a store that does not answer.
fn is_unusable(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidConfig | ErrorKind::NotFound | ErrorKind::Unsupported
    )
}

#[async_trait]
impl Issuer for BuiltinIssuer {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_max_lifetime(self.max_leaf_lifetime)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(self.snapshot().active.allows_intermediate(0))
            .with_key_types(KeyType::ALL)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.trust_domain)?;
        let now = self.clock.now();
        if let (Source::Stored { store, .. }, Profile::Intermediate { .. }) =
            (&self.source, request.spec().profile())
        {
            // The root must outlive it as it outlives leaves.
            Box::pin(store.rotation_for(request.spec().lifetime())).await?;
        }
        let snapshot = self.fresh_snapshot(now).await;
        let latest = match (&self.source, request.spec().profile()) {
            // An intermediate is a CA that its owner rotates; it may live for as long as this one.
            (_, Profile::Intermediate { .. }) => snapshot.active.not_after(),
            (Source::Provided, Profile::Workload) => {
                now.checked_add(self.max_leaf_lifetime).unwrap_or(now)
            }
            // Counted from when the store was read: if another replica has put this CA out of
            // use since, the trust in it ends then.
            (Source::Stored { .. }, Profile::Workload) => {
                let trusted = KNOWN_FOR.saturating_add(self.max_leaf_lifetime);
                let allowed = now.checked_add(self.max_leaf_lifetime).unwrap_or(now);
                snapshot
                    .loaded_at
                    .checked_add(trusted)
                    .unwrap_or(now)
                    .min(allowed)
            }
        };
        snapshot.active.sign(request, now, latest)
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        Ok(self.fresh_snapshot(self.clock.now()).await.bundle.clone())
    }

    async fn refresh_trust_bundle(&self) -> Result<TrustBundle> {
        self.reload().await?;
        Ok(self.snapshot().bundle.clone())
    }

    async fn check(&self) -> Result<CheckReport> {
        self.reload().await?;
        let now = self.clock.now();
        let snapshot = self.snapshot();
        let validity = snapshot.active.validity();
        if !validity.contains(now) || snapshot.active.not_after() <= now {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the CA is not valid now; rotate or replace it",
            )
            .with_context("subject", snapshot.active.subject())
            .with_context("valid", validity));
        }
        snapshot.active.check_signer()?;
        let mut report = CheckReport::new();
        if let Some(id) = snapshot.active.foreign_id(&self.trust_domain) {
            report = report.with_warning(format!(
                "the CA `{}` carries the SPIFFE ID `{id}` and signs for the trust domain `{}`; strict peers refuse that",
                snapshot.active.subject(),
                self.trust_domain
            ));
        }
        if snapshot
            .active
            .not_after()
            .duration_since(now)
            .unwrap_or_default()
            < PREPARE_BEFORE
        {
            let end = rfc3339(snapshot.active.not_after());
            report = report.with_warning(format!(
                "the CA `{}` ends at {end}; rotate it",
                snapshot.active.subject()
            ));
        }
        Ok(report)
    }

    fn rotation(&self) -> Option<&dyn CaRotation> {
        match self.source {
            Source::Stored { .. } => Some(self),
            Source::Provided => None,
        }
    }
}

#[async_trait]
impl CaRotation for BuiltinIssuer {
    fn due(&self) -> Option<RotationStep> {
        self.rotation_due()
    }

    async fn rotate(&self, step: RotationStep) -> Result<()> {
        match step {
            RotationStep::Prepare => self.prepare_next().await.map(drop),
            RotationStep::Activate => self.activate_next().await,
            RotationStep::Retire => self.retire().await,
        }
    }
}

impl fmt::Display for BuiltinIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CA of {}", self.kind(), self.trust_domain)
    }
}

impl fmt::Debug for BuiltinIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        f.debug_struct("BuiltinIssuer")
            .field("kind", &self.kind())
            .field("trust_domain", &self.trust_domain.as_str())
            .field("ca", &snapshot.active)
            .field("generation", &snapshot.rotation.active)
            .finish_non_exhaustive()
    }
}
