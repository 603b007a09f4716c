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
//! The store also says whose intermediates these are: the trust domain, the provider, and the upstream's name. A CA that
//! finds those of another one starts over with its own upstream; of the same trust domain, what the other signed stays trusted
//! until its intermediate has ended.
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

mod both;
mod obtain;
mod settings;
mod state;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use self::obtain::{Obtained, check_upstream, obtain, roots_of};
use self::state::{DelegatedStore, Next, State, Upstream, as_pem, domain_of};
use super::follow::{Followed, Snapshot, wait_for_replicas};
use crate::sync::lock;
use crate::time::{at, later, rfc3339, seconds};
use crate::{
    CaRotation, Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer,
    IssuingCa, Result, Retry, RotationStep, SecretStore, SignedChain, TrustBundle,
};

pub(super) use self::both::BothCas;
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
#[derive(derive_more::Debug, derive_more::Display)]
#[debug("DelegatedIssuer({self}, {:?})", self.snapshot().active)]
#[display("delegated CA of {} under {upstream}", store.settings.trust_domain)]
pub struct DelegatedIssuer {
    upstream: IssuingCa,
    /// The upstream as the store is told of it.
    named: Upstream,
    store: DelegatedStore,
    clock: Arc<dyn Clock>,
    current: Followed<State>,
    /// Why there is no next intermediate, for whoever meets the end of the present one.
    last_failure: Mutex<Option<Error>>,
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
        let store = DelegatedStore::new(settings, store);
        let (mut state, _) = store.secrets.read::<State>().await?;
        let ours = Upstream {
            trust_domain: store.settings.trust_domain.to_string(),
            provider: store.settings.provider.clone(),
            issuer: upstream.to_string(),
        };
        let recorded = store.recorded_upstream().await?;
        let foreign = state.active.clone().filter(|active| match &recorded {
            Some(recorded) => *recorded != ours,
            // It was written before this was kept.
            None => domain_of(active).is_some_and(|domain| domain != ours.trust_domain),
        });
        if state.active.is_none() || foreign.is_some() {
            let obtained = obtain(&store, &upstream, &*clock, &state).await?;
            let same_domain = foreign.as_ref().is_none_or(|foreign| {
                let domain = recorded.map(|recorded| recorded.trust_domain);
                let domain = domain.or_else(|| domain_of(foreign));
                domain.is_none_or(|domain| domain == ours.trust_domain)
            });
            let mut forgotten = Vec::new();
            let update = store.update(|state| match state.active == foreign {
                // Another replica was faster.
                false => Ok(None),
                true => obtained.announce(state, |state| {
                    forgotten = state.start_over(obtained.intermediate.clone(), same_domain);
                }),
            });
            state = update.await?;
            for number in forgotten {
                store.delete_key(number).await?;
            }
            // After the state: without this, the next start begins again once more.
            store.record_upstream(&ours).await?;
        }
        let revision = state.revision;
        let snapshot = store.snapshot(state, None, clock.now()).await?;
        Ok(Self {
            upstream,
            named: ours,
            store,
            clock,
            current: Followed::new(revision, snapshot),
            last_failure: Mutex::new(None),
        })
    }

    /// Reads the store again, to follow what another replica did.
    ///
    /// # Errors
    ///
    /// Those of the store; [`ErrorKind::NotFound`] if secrets of the CA were deleted. What was loaded
    /// before stays in use.
    pub async fn reload(&self) -> Result<()> {
        let outcome = self.read_again().await;
        self.current.note(&outcome);
        outcome
    }

    async fn read_again(&self) -> Result<()> {
        let (now, read) = (self.clock.now(), self.current.begin_read());
        let (state, _) = self.store.secrets.read::<State>().await?;
        let number = state.signing()?.number;
        self.follow(state, read, now).await?;
        self.store.require_key(number).await
    }

    /// Asks the upstream for its roots, and stores them for all replicas: so a rotation of the
    /// upstream is seen. The roots of everything that can be alive stay.
    ///
    /// # Errors
    ///
    /// Those of the upstream and of the store. What was loaded before stays in use.
    pub async fn follow_upstream(&self) -> Result<TrustBundle> {
        let roots = as_pem(&roots_of(&self.store.settings, &self.upstream).await?);
        let read = self.current.begin_read();
        let update = self.store.update(|state| {
            // A state that was taken away is not made again in halves.
            state.signing()?;
            let mut changed = state.clone();
            Ok(changed.set_upstream_roots(&roots).then_some(changed))
        });
        self.follow(update.await?, read, self.clock.now()).await
    }

    /// Takes a state into use, unless a newer one is.
    async fn follow(&self, state: State, read: u64, now: SystemTime) -> Result<TrustBundle> {
        let known = self.snapshot();
        let age = (state.revision, read);
        let snapshot = self.store.snapshot(state, Some(&known), now).await?;
        self.current.replace(age, snapshot, State::is_continued_by);
        Ok(self.snapshot().bundle.clone())
    }

    /// What is due now, by the state that was read last. Asks nobody.
    ///
    /// The next intermediate is due when 30 days or half the life of the present one are left, and signs when 7 days or a sixth of it
    /// are left, whichever is less; both at once if the upstream no longer publishes its root. Life counts from issuance.
    pub fn rotation_due(&self) -> Option<RotationStep> {
        let snapshot = self.snapshot();
        snapshot.state.due(&self.store.settings, self.clock.now())
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
        *lock(&self.last_failure) = prepared.as_ref().err().cloned();
        prepared
    }

    async fn prepare(&self) -> Result<TrustBundle> {
        let read = self.current.begin_read();
        let (mut state, _) = self.store.secrets.read::<State>().await?;
        state.signing()?;
        if state.usable_next(self.clock.now()).is_none() {
            let obtained = obtain(&self.store, &self.upstream, &*self.clock, &state).await?;
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
                    let replaced = replaced.map(|next| next.intermediate);
                    state.retiring.extend(replaced);
                })
            });
            state = update.await?;
            self.store.record_upstream(&self.named).await?;
        }
        self.follow(state, read, self.clock.now()).await
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
        let (state, _) = self.store.secrets.read::<State>().await?;
        let now = self.clock.now();
        let next = activatable(&state, now)?;
        // A key that is missing is noticed while the old one still signs.
        self.store.authority(&next.intermediate).await?;
        let number = next.intermediate.number;
        let read = self.current.begin_read();
        let update = self.store.update(|state| {
            if state.active.iter().any(|active| active.number == number) {
                return Ok(None);
            }
            if activatable(state, now)?.intermediate.number != number {
                return Err(overtaken("has prepared another intermediate"));
            }
            let mut changed = state.clone();
            changed.retiring.extend(changed.active.take());
            changed.active = changed.next.take().map(|next| next.intermediate);
            Ok(Some(changed))
        });
        self.follow(update.await?, read, self.clock.now())
            .await
            .map(drop)
    }

    /// Takes intermediates that have ended out of the state, and deletes their keys.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn retire(&self) -> Result<()> {
        let (now, read) = (self.clock.now(), self.current.begin_read());
        let mut gone = Vec::new();
        let update = self.store.update(|state| {
            let mut changed = state.clone();
            let over = changed.retiring.extract_if(.., |one| one.is_over(now));
            gone = over.collect();
            Ok((!gone.is_empty()).then_some(changed))
        });
        let state = update.await?;
        // Forgotten before it is deleted: nobody looks for what is not there any more.
        for retired in gone {
            self.store.delete_key(retired.number).await?;
        }
        self.follow(state, read, now).await.map(drop)
    }

    fn snapshot(&self) -> Arc<Snapshot<State>> {
        self.current.snapshot()
    }

    async fn fresh_snapshot(&self, now: SystemTime) -> Arc<Snapshot<State>> {
        let (store, reload) = (&self.store.secrets.store, || self.reload());
        self.current.fresh(now, store, reload).await
    }

    /// The roots that were published last.
    fn published(&self) -> TrustBundle {
        self.snapshot().bundle.clone()
    }

    /// Whether the last attempt at a next intermediate has failed.
    fn has_failed(&self) -> bool {
        lock(&self.last_failure).is_some()
    }

    /// The longest leaf that the intermediate signs.
    fn max_leaf_lifetime(&self, snapshot: &Snapshot<State>) -> Duration {
        let active = snapshot.state.active.as_ref();
        active.map_or(Duration::ZERO, |active| {
            active.longest_leaf(&self.store.settings)
        })
    }

    /// Why there is nothing to sign with, if that is so.
    fn check_alive(&self, snapshot: &Snapshot<State>, now: SystemTime) -> Result<()> {
        let (subject, end) = (&snapshot.active.subject, snapshot.active.not_after);
        if now < end {
            return Ok(());
        }
        let end = rfc3339(end);
        let error = Error::new(
            ErrorKind::Unavailable,
            format!(
                "the intermediate `{subject}` ended at {end}; have the upstream sign the next one"
            ),
        )
        .with_context("upstream", &self.upstream);
        Err(match &*lock(&self.last_failure) {
            Some(failure) => error.with_source(failure.clone()),
            None => error,
        })
    }
}

/// Another replica was faster, with something else.
fn overtaken(what: &str) -> Error {
    let why = format!("another replica {what} meanwhile; try again");
    Error::new(ErrorKind::Conflict, why).with_retry(Retry::Backoff)
}

impl Obtained {
    /// The state with this in it. Nothing, if another replica got the same and has announced it.
    fn announce(&self, state: &State, place: impl FnOnce(&mut State)) -> Result<Option<State>> {
        let number = self.intermediate.number;
        if state.refers_to(number) {
            return Ok(None);
        }
        if state.last >= number {
            return Err(overtaken("gave up this intermediate or replaced it"));
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
        let end = rfc3339(at(next.intermediate.not_after));
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("the intermediate that was prepared ended at {end}; prepare another"),
        ));
    }
    wait_for_replicas("intermediate", state.ready_at(next), now)?;
    Ok(next)
}

#[async_trait]
impl Issuer for DelegatedIssuer {
    fn capabilities(&self) -> Capabilities {
        let snapshot = self.snapshot();
        let longest = self.max_leaf_lifetime(&snapshot);
        let capabilities = snapshot.active.capabilities(longest);
        // The driver of the rotation follows the upstream as often as it reads these roots.
        capabilities.with_trust_interval(self.upstream.capabilities().trust_interval())
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        request.require_trust_domain(&self.store.settings.trust_domain)?;
        let now = self.clock.now();
        let snapshot = self.fresh_snapshot(now).await;
        self.check_alive(&snapshot, now)?;
        let last_leaf = later(now, self.max_leaf_lifetime(&snapshot));
        snapshot.active.sign(request, now, last_leaf)
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
        let active = snapshot.state.active.iter();
        let mut warnings: Vec<String> = active
            .flat_map(|active| active.warnings(&self.store.settings))
            .collect();
        // An upstream that cannot sign is a pity today; what it signed before still does.
        let upstream = &self.upstream;
        match upstream.check().await {
            Ok(report) => {
                let found = report.warnings.iter();
                warnings.extend(found.map(|warning| format!("upstream {upstream}: {warning}")));
            }
            Err(error) => {
                let end = rfc3339(snapshot.active.not_after);
                warnings.push(format!(
                    "the upstream {upstream} cannot sign now: {error}; the present intermediate ends at {end}"
                ));
            }
        }
        Ok(CheckReport { warnings })
    }
}

#[async_trait]
impl CaRotation for DelegatedIssuer {
    fn due(&self) -> Option<RotationStep> {
        self.rotation_due()
    }

    fn lost(&self) -> Option<Error> {
        self.current.trouble()
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
