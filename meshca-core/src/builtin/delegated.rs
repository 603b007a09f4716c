//! A CA in this process whose own certificate another CA signs.
//!
//! [`DelegatedIssuer`] has an *intermediate* signed by any [`Issuer`] that can sign one, its upstream, and signs leaves with
//! it: the root stays in the company's CA, and a leaf costs microseconds and no call.
//!
//! # When to use it
//!
//! A certificate per workload from the upstream is the simpler choice: nothing but the company's CA ever signs, and that CA has a
//! record of every certificate. Delegate where that is too slow, too dear, or too many:
//!
//! - **AWS Private CA** bills every certificate, and by its default quotas one CA issues 25 per second and 1,000,000 in its life. A
//!   thousand workloads with certificates of an hour, renewed at half their life, need 48,000 a day, which is that CA's life in 21 days.
//!   Delegated with the defaults it is one certificate in 15 days, whatever the number of workloads and replicas.
//! - A CA that is far away, rate-limited or down for maintenance: leaves are signed for as long as the present intermediate lives.
//!
//! The price is a CA key in the mesh's [`SecretStore`]. Whoever steals it signs for the trust domain until the intermediate ends.
//!
//! ```text
//!             upstream: Vault, AWS Private CA, another DelegatedIssuer …          peers hold
//!                 │                                                            ┌─► its roots
//!   once in weeks │ Prepare: sign, prove with a throwaway leaf, publish ───────┘   and those of all
//!                 ▼                                                                that may be alive
//!   SecretStore ─ intermediate ── Activate ──► signs leaves: leaf + intermediate (+ upstream's), no root
//! ```
//!
//! # Steps
//!
//! [`load_or_create`](DelegatedIssuer::load_or_create) takes what is in the store, and asks the upstream only if nothing is.
//! After that nothing happens on its own: whoever drives asks [`rotation_due`](DelegatedIssuer::rotation_due) and calls
//!
//! 1. [`prepare_next`](DelegatedIssuer::prepare_next): the upstream signs, the ordinary verification proves the answer with a throwaway leaf,
//!    and the upstream's roots and that of the new intermediate are in the [trust bundle](Issuer::trust_bundle) from now on. It signs nothing yet.
//! 2. [`activate_next`](DelegatedIssuer::activate_next), when every peer holds the root: the new intermediate signs.
//! 3. [`retire`](DelegatedIssuer::retire): forgets intermediates that have ended, and their keys.
//!
//! [`follow_upstream`](DelegatedIssuer::follow_upstream) asks the upstream for its roots. Call it
//! every few minutes, or [`follow`](CaRotation::follow) of its rotation: that is how a rotation of
//! the upstream is seen. (The manager of `meshca-identity` does.) If the upstream stops publishing
//! the root of the present intermediate – it was replaced by another CA – the next one is due at
//! once. No leaf waits for any of this: [`sign`](Issuer::sign) and
//! [`trust_bundle`](Issuer::trust_bundle) never ask the upstream.
//!
//! A step that fails changes nothing, and the present intermediate signs on. When it nears its end leaves end with it, which is
//! [observed](crate::Observation::ShorterLifetime) on each; after its end there is a clear error, and the steps still work.
//!
//! # Replicas, crashes and what they cost
//!
//! **Replicas share one intermediate** through the store. With one of its own each, every replica and every restart would buy another, and keys
//! would be made as often. What is shared anyway is the trust, and that is all that peers depend on.
//!
//! The key is stored first, if there is none yet for that number; then the upstream is asked; then the certificate, the upstream's roots and the
//! announcement are stored in one conditional write:
//!
//! | crash or race | what follows | cost |
//! |---|---|---|
//! | after the key was stored | the next attempt takes that key: the same [request](crate::RequestId) | none |
//! | after the upstream signed | the same; an upstream that knows the request again returns the same certificate | one certificate at most |
//! | after it was announced | it is found | none |
//! | two replicas prepare at once | same key, same request; the first to write is announced, the other takes that | at most one certificate each |
//! | the answer is refused | number and key are given up, so that a CA that remembers requests does not return it for ever | one certificate for each attempt |
//! | two replicas activate at once | one write wins, the other finds it done | none |
//!
//! An old root stays in the bundle until the last intermediate under it has *ended*, not just until its last leaf should have: so a replica that
//! lost its store may sign on with what it has, and nothing that it signs is ever without its root.
//!
//! Replicas whose upstreams differ, during a change of configuration, each find the other's intermediate abandoned and replace it, every
//! [`RELOAD_INTERVAL`](super::RELOAD_INTERVAL) at most. All that they sign is trusted; bring the change out quickly.
//!
//! # Defaults
//!
//! | setting | default | test |
//! |---|---|---|
//! | key of the intermediate | P-256 | `defaults_are_what_the_docs_say` |
//! | lifetime that it is asked for | 30 days | `defaults_are_what_the_docs_say` |
//! | path length | 0: leaves only | `defaults_are_what_the_docs_say` |
//! | an intermediate that lives longer than asked | is refused | `a_bad_answer_is_refused_and_changes_nothing` |
//! | an intermediate with less than an hour to live | is refused | `a_bad_answer_is_refused_and_changes_nothing` |
//! | longest leaf | 5 days, and never more than a sixth of the intermediate's life | `leaves_live_for_a_sixth_and_never_past_the_end` |
//! | the next is prepared | with 30 days or half its life left | `steps_are_due_at_the_documented_times` |
//! | and signs | with 7 days or a sixth of its life left | `steps_are_due_at_the_documented_times` |
//! | … sooner | where leaves of more than 7 days are configured, so that none is cut short | `steps_are_due_at_the_documented_times` |
//! | replicas read the store again | every 5 minutes | `the_other_replica_trusts_before_anyone_signs` |

mod obtain;
mod settings;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use async_trait::async_trait;

use self::obtain::{Obtained, check_upstream, obtain, roots_of};
use self::state::{DelegatedStore, Next, State, as_pem, seconds, time};
use super::authority::Authority;
use super::follow::AskLimit;
use crate::time::rfc3339;
use crate::{
    CaRotation, Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer,
    IssuingCa, KeyType, Profile, Result, Retry, RotationStep, SecretStore, SignedChain,
    TrustBundle,
};

pub use self::settings::{
    DEFAULT_DELEGATED_MAX_LEAF_LIFETIME, DEFAULT_INTERMEDIATE_LIFETIME, DelegatedSecrets,
    DelegatedSettings, MIN_INTERMEDIATE_LIFETIME,
};

/// Signs with an intermediate that an upstream signed. See the [module](self).
///
/// ```
/// use std::sync::Arc;
/// use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings, DelegatedIssuer, DelegatedSecrets, DelegatedSettings};
/// use meshca_core::{CertificateSpec, IssuingCa, MemorySecretStore, SpiffeId, SystemClock, TrustDomain};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let clock = Arc::new(SystemClock::new());
/// let domain = TrustDomain::new("example.org")?;
/// // Any issuer with the capability `intermediates`; here the built-in CA.
/// let company = CaSettings::new(domain.clone(), CaSecrets::for_backend("default", "company")?);
/// let company = BuiltinIssuer::load_or_create(company, Arc::new(MemorySecretStore::new()), clock.clone()).await?;
///
/// let settings = DelegatedSettings::new(domain, DelegatedSecrets::new("default", "mesh-ca")?);
/// let store = Arc::new(MemorySecretStore::new());
/// let issuer = DelegatedIssuer::load_or_create(settings, Arc::new(company), store, clock.clone()).await?;
///
/// let spec = CertificateSpec::workload(SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?);
/// let identity = IssuingCa::new(issuer).issue(&spec, &*clock).await?;
/// assert_eq!(identity.certificate().chain().len(), 2, "the leaf and the intermediate");
/// # Ok(())
/// # }
/// ```
pub struct DelegatedIssuer {
    settings: DelegatedSettings,
    upstream: IssuingCa,
    store: DelegatedStore,
    clock: Arc<dyn Clock>,
    current: RwLock<Arc<Snapshot>>,
    asked: AskLimit,
    /// Why there is no next intermediate, for whoever meets the end of the present one.
    last_failure: Mutex<Option<Error>>,
}

/// What was true when the store was read last. Replaced as a whole, never changed.
struct Snapshot {
    state: State,
    number: u32,
    active: Arc<Authority>,
    max_leaf_lifetime: std::time::Duration,
    bundle: TrustBundle,
    loaded_at: SystemTime,
}

impl DelegatedIssuer {
    /// Loads the intermediate from the store without asking the upstream, whether it still lives or not. If there
    /// never was one, has the upstream sign the first, which signs at once: there is nothing else that could.
    ///
    /// Control planes that do this at the same time end up with the same intermediate.
    ///
    /// # Errors
    ///
    /// Those of the store; [`ErrorKind::Unsupported`] if the upstream signs no intermediates;
    /// [`ErrorKind::InvalidConfig`] if a setting cannot work, or if what is in the store is damaged; for the first one also those of
    /// [`prepare_next`](Self::prepare_next).
    pub async fn load_or_create(
        settings: DelegatedSettings,
        upstream: Arc<dyn Issuer>,
        store: Arc<dyn SecretStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        settings.validate()?;
        check_upstream(&settings, &*upstream)?;
        let upstream = IssuingCa::new(upstream);
        let store = DelegatedStore {
            store,
            secrets: settings.secrets.clone(),
        };
        let (mut state, _) = store.state().await?;
        if state.active.is_none() {
            let obtained = obtain(&settings, &store, &upstream, &*clock, &state).await?;
            state = store
                .update(|state| match &state.active {
                    Some(_) => Ok(None),
                    None => obtained.announce(state, |state| {
                        state.active = Some(obtained.intermediate.clone());
                    }),
                })
                .await?;
        }
        let now = clock.now();
        let snapshot = Snapshot::load(&settings, &store, state, None, now).await?;
        Ok(Self {
            settings,
            upstream,
            store,
            clock,
            current: RwLock::new(Arc::new(snapshot)),
            asked: AskLimit::new(now),
            last_failure: Mutex::new(None),
        })
    }

    /// Reads the store again, to follow what another replica did.
    ///
    /// # Errors
    ///
    /// Those of the store. What was loaded before stays in use.
    pub async fn reload(&self) -> Result<()> {
        let now = self.clock.now();
        let (state, _) = self.store.state().await?;
        self.follow(state, now).await
    }

    /// Asks the upstream for its roots, and stores them for all replicas: so a rotation of the
    /// upstream is seen. The roots of everything that can be alive stay.
    ///
    /// # Errors
    ///
    /// Those of the upstream and of the store. What was loaded before stays in use.
    pub async fn follow_upstream(&self) -> Result<TrustBundle> {
        let roots = as_pem(&roots_of(&self.settings, &self.upstream).await?);
        let state = self
            .store
            .update(|state| {
                let mut changed = state.clone();
                Ok(changed.set_upstream_roots(&roots).then_some(changed))
            })
            .await?;
        self.follow(state, self.clock.now()).await?;
        Ok(self.snapshot().bundle.clone())
    }

    async fn follow(&self, state: State, now: SystemTime) -> Result<()> {
        let known = self.snapshot();
        let snapshot =
            Snapshot::load(&self.settings, &self.store, state, Some(&known), now).await?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Another call may have read later and finished sooner.
        let order = |snapshot: &Snapshot| (snapshot.state.revision, snapshot.loaded_at);
        if order(&snapshot) >= order(&current) {
            *current = Arc::new(snapshot);
        }
        Ok(())
    }

    /// What is due now, by the state that was read last. Asks nobody.
    ///
    /// The next intermediate is due when 30 days or half the life of the present one are left, and signs when 7 days or a sixth of it
    /// are left, whichever is less; both at once if the upstream no longer publishes its root. Life counts from issuance.
    pub fn rotation_due(&self) -> Option<RotationStep> {
        self.snapshot().state.due(&self.settings, self.clock.now())
    }

    /// Has the upstream sign the next intermediate, proves it, and publishes its root and the upstream's. It signs
    /// nothing yet. Doing it again changes nothing, unless what is next is of no use any more.
    ///
    /// # Errors
    ///
    /// Those of the upstream and of the store, with nothing changed;
    /// [`ErrorKind::BadResponse`] if what the upstream signed must not be used: it does not verify, lives too long or for less than
    /// [`MIN_INTERMEDIATE_LIFETIME`], or lacks the path length asked for.
    pub async fn prepare_next(&self) -> Result<TrustBundle> {
        let prepared = self.prepare().await;
        *self
            .last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = prepared.as_ref().err().cloned();
        prepared
    }

    async fn prepare(&self) -> Result<TrustBundle> {
        let (mut state, _) = self.store.state().await?;
        state.signing()?;
        if state.usable_next(self.clock.now()).is_none() {
            let (settings, store) = (&self.settings, &self.store);
            let obtained = obtain(settings, store, &self.upstream, &*self.clock, &state).await?;
            let now = self.clock.now();
            let update = self.store.update(|state| {
                if state.usable_next(now).is_some() {
                    return Ok(None);
                }
                obtained.announce(state, |state| {
                    let replaced = state.next.replace(Next {
                        prepared_at: seconds(now),
                        intermediate: obtained.intermediate.clone(),
                    });
                    state
                        .retiring
                        .extend(replaced.map(|next| next.intermediate));
                })
            });
            state = update.await?;
        }
        self.follow(state, self.clock.now()).await?;
        Ok(self.snapshot().bundle.clone())
    }

    /// Has the next intermediate sign from now on. The old root stays in the bundle until the old intermediate has ended.
    ///
    /// That every peer holds a new root is for the caller to know. That every *replica* publishes it is known here:
    /// activation is refused until [`RELOAD_INTERVAL`](super::RELOAD_INTERVAL) has passed since preparation, unless the root is the same.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if nothing is prepared, or what is has ended; [`ErrorKind::Unavailable`] with
    /// [`Retry::After`] if it is too early; those of the store. Nothing has changed then.
    pub async fn activate_next(&self) -> Result<()> {
        let (state, _) = self.store.state().await?;
        let now = self.clock.now();
        let next = activatable(&state, now)?;
        // A key that is missing is noticed while the old one still signs.
        self.store.authority(&next.intermediate).await?;
        let number = next.intermediate.number;
        let state = self
            .store
            .update(|state| {
                if state
                    .active
                    .as_ref()
                    .is_some_and(|active| active.number == number)
                {
                    return Ok(None);
                }
                let next = activatable(state, now)?;
                if next.intermediate.number != number {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        "another replica has prepared another intermediate meanwhile; try again",
                    )
                    .with_retry(Retry::Backoff));
                }
                let mut changed = state.clone();
                changed.retiring.extend(changed.active.take());
                changed.active = changed.next.take().map(|next| next.intermediate);
                Ok(Some(changed))
            })
            .await?;
        self.follow(state, self.clock.now()).await
    }

    /// Takes intermediates that have ended out of the state, and deletes their keys.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn retire(&self) -> Result<()> {
        let now = self.clock.now();
        let mut gone = Vec::new();
        let state = self
            .store
            .update(|state| {
                let mut changed = state.clone();
                let (over, kept) = changed
                    .retiring
                    .into_iter()
                    .partition(|retiring| retiring.is_over(now));
                (gone, changed.retiring) = (over, kept);
                Ok((!gone.is_empty()).then_some(changed))
            })
            .await?;
        // Forgotten before it is deleted: nobody looks for what is not there any more.
        for retired in gone {
            self.store.delete_key(retired.number).await?;
        }
        self.follow(state, now).await
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What to sign with: read again when it is old or has changed, but kept when that fails. An outage of the
    /// store must not stop a CA that needs nothing from it.
    async fn fresh_snapshot(&self, now: SystemTime) -> Arc<Snapshot> {
        let snapshot = self.snapshot();
        let due = self.asked.due(now, snapshot.loaded_at, &self.store.store);
        if let Some(due) = due
            && self.reload().await.is_ok()
        {
            self.asked.read(&due);
            return self.snapshot();
        }
        snapshot
    }

    /// Why there is nothing to sign with, if that is so.
    fn check_alive(&self, snapshot: &Snapshot, now: SystemTime) -> Result<()> {
        let end = snapshot.active.not_after();
        if now < end {
            return Ok(());
        }
        let error = Error::new(
            ErrorKind::Unavailable,
            format!(
                "the intermediate `{}` ended at {}; have the upstream sign the next one",
                snapshot.active.subject(),
                rfc3339(end)
            ),
        )
        .with_context("upstream", &self.upstream);
        let failure = self
            .last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Err(match &*failure {
            Some(failure) => error.with_source(failure.clone()),
            None => error,
        })
    }
}

impl Snapshot {
    async fn load(
        settings: &DelegatedSettings,
        store: &DelegatedStore,
        state: State,
        known: Option<&Self>,
        now: SystemTime,
    ) -> Result<Self> {
        let intermediate = state.signing()?;
        let active = match known.filter(|known| known.number == intermediate.number) {
            Some(known) => Arc::clone(&known.active),
            None => Arc::new(store.authority(intermediate).await?),
        };
        Ok(Self {
            number: intermediate.number,
            active,
            max_leaf_lifetime: intermediate.longest_leaf(settings),
            bundle: state.bundle(settings, now)?,
            state,
            loaded_at: now,
        })
    }
}

impl Obtained {
    /// The state with this in it. Nothing, if another replica got the same and has announced it.
    fn announce(&self, state: &State, place: impl FnOnce(&mut State)) -> Result<Option<State>> {
        let number = self.intermediate.number;
        if state.refers_to(number) {
            return Ok(None);
        }
        if state.last >= number {
            return Err(Error::new(
                ErrorKind::Conflict,
                "another replica gave up this intermediate or replaced it meanwhile; try again",
            )
            .with_retry(Retry::Backoff));
        }
        let mut changed = state.clone();
        changed.last = number;
        changed.set_upstream_roots(&self.upstream_roots);
        place(&mut changed);
        Ok(Some(changed))
    }
}

fn activatable(state: &State, now: SystemTime) -> Result<&Next> {
    let Some(next) = &state.next else {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "no next intermediate is prepared; prepare one and let every peer trust it first",
        ));
    };
    if next.intermediate.remaining(now).is_zero() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "the intermediate that was prepared ended at {}; prepare another",
                rfc3339(time(next.intermediate.not_after))
            ),
        ));
    }
    let early = state.ready_at(next).duration_since(now).unwrap_or_default();
    if !early.is_zero() {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "the next intermediate was prepared a moment ago; other replicas may not trust its root yet",
        )
        .with_retry(Retry::After(early)));
    }
    Ok(next)
}

#[async_trait]
impl Issuer for DelegatedIssuer {
    fn capabilities(&self) -> Capabilities {
        let snapshot = self.snapshot();
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_max_lifetime(snapshot.max_leaf_lifetime)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(snapshot.active.allows_intermediate(0))
            .with_key_types(KeyType::ALL)
            // The driver of the rotation follows the upstream as often as it reads these roots.
            .with_trust_interval(self.upstream.capabilities().trust_interval())
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.settings.trust_domain)?;
        let now = self.clock.now();
        let snapshot = self.fresh_snapshot(now).await;
        self.check_alive(&snapshot, now)?;
        let latest = match request.spec().profile() {
            Profile::Workload => now.checked_add(snapshot.max_leaf_lifetime).unwrap_or(now),
            // A CA that its owner rotates; it may live for as long as this one.
            Profile::Intermediate { .. } => snapshot.active.not_after(),
        };
        snapshot.active.sign(request, now, latest)
    }

    /// The roots that are in the store. They do not depend on an upstream that does not answer:
    /// replicas must trust the root of a next intermediate in time, whether they can reach the
    /// upstream or not.
    async fn trust_bundle(&self) -> Result<TrustBundle> {
        Ok(self.fresh_snapshot(self.clock.now()).await.bundle.clone())
    }

    async fn check(&self) -> Result<CheckReport> {
        self.reload().await?;
        let now = self.clock.now();
        let snapshot = self.snapshot();
        self.check_alive(&snapshot, now)?;
        let mut report = CheckReport::new();
        if let Some(active) = &snapshot.state.active {
            for warning in active.warnings(&self.settings) {
                report = report.with_warning(warning);
            }
        }
        // An upstream that cannot sign is a pity today; what it signed before still does.
        match self.upstream.check().await {
            Ok(upstream) => {
                for warning in upstream.warnings {
                    report = report.with_warning(format!("upstream {}: {warning}", self.upstream));
                }
            }
            Err(error) => {
                report = report.with_warning(format!(
                    "the upstream {} cannot sign now: {error}; the present intermediate ends at {}",
                    self.upstream,
                    rfc3339(snapshot.active.not_after())
                ));
            }
        }
        Ok(report)
    }
}

#[async_trait]
impl CaRotation for DelegatedIssuer {
    fn due(&self) -> Option<RotationStep> {
        self.rotation_due()
    }

    async fn follow(&self) -> Result<()> {
        self.follow_upstream().await.map(drop)
    }

    async fn rotate(&self, step: RotationStep) -> Result<()> {
        match step {
            RotationStep::Prepare => self.prepare_next().await.map(drop),
            RotationStep::Activate => self.activate_next().await,
            RotationStep::Retire => self.retire().await,
        }
    }
}

impl fmt::Display for DelegatedIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "delegated CA of {} under {}",
            self.settings.trust_domain, self.upstream
        )
    }
}

impl fmt::Debug for DelegatedIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        f.debug_struct("DelegatedIssuer")
            .field("trust_domain", &self.settings.trust_domain.as_str())
            .field("upstream", &self.upstream)
            .field("ca", &snapshot.active)
            .field("number", &snapshot.number)
            .finish_non_exhaustive()
    }
}
