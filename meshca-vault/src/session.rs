//! The token that requests are made with, kept alive and replaced when it is dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::issuer::Flight;
use meshca_core::{Error, ErrorKind, Result, Retry};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::client::{Failure, Told, VaultClient};
use crate::token::{Lease, Token};
use crate::transport::Call;

/// A token is renewed, or replaced, after a share of its lifetime between these two: about two thirds of it, and
/// not at the same moment in every replica that started with us.
const RENEW_AFTER: (f64, f64) = (0.61, 0.72);

/// How often credentials are read again, so that a changed one is noticed without a restart.
pub(crate) const RELOAD_INTERVAL: Duration = Duration::from_secs(30);

/// As good as for ever.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long a login, or reading the credentials, may take: longer than any answer of Vault or AWS, for stores that hang.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is left of a given token when renewing it is given up: its maximum is reached.
const LAST_RENEWAL: Duration = Duration::from_secs(5);

/// How long a failed login, or renewal, is left alone: from the first to the second, twice as long each time.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where tokens come from.
#[async_trait]
pub(crate) trait Authority: Send + Sync + 'static {
    /// A token.
    async fn log_in(&self) -> Result<Grant>;

    /// A longer life for the token; `None` if Vault does not know it (any more).
    async fn renew(&self, token: &Token) -> Result<Option<Lease>>;

    /// What Vault knows of the token.
    async fn look_up(&self, token: &Token) -> Result<Known>;

    /// Reads the credentials again; whether they are others than those of the token.
    async fn reload(&self, token: Option<&Token>) -> Result<bool>;

    /// Whether the token is given to us: then there is no other one to log in for.
    fn only_given(&self) -> bool;

    /// The error that says that the credentials still give the token which Vault no longer takes.
    fn dead(&self) -> Error;
}

/// What a login gives.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) token: Token,
    /// `None` if the login did not tell.
    pub(crate) lease: Option<Lease>,
}

/// What Vault knows of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Alive(Lease),
    Dead,
    /// The server refuses this question as well: the token is dead, or has no right to look itself up. OpenBao never says
    /// which, and neither does a Vault before 1.10.
    Untold,
}

/// What a refused request is to do.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// The token was dead, or may have been; here is another one. Try once more.
    Replaced(Arc<Token>),
    /// The token is alive, so it is a policy that refuses.
    Refused,
    /// The server does not say which, and no other token can be had before so much time has passed.
    Unsettled(Duration),
}

/// The token in use.
#[derive(Debug)]
struct Current {
    token: Arc<Token>,
    /// When it is to be looked up, renewed or replaced; `None` for never.
    due: Option<Instant>,
    /// When it is dead; `None` for never, as far as we know.
    ends: Option<Instant>,
    lease: Option<Lease>,
    /// The longest lease that it had: less of it means that its maximum is near.
    longest: Option<Duration>,
    /// What failed in a row.
    failures: u32,
}

impl Current {
    fn new(token: Token, lease: Option<Lease>) -> Self {
        let mut current = Self {
            token: Arc::new(token),
            due: Some(Instant::now()),
            ends: None,
            lease: None,
            longest: None,
            failures: 0,
        };
        if let Some(lease) = lease {
            current.extend(lease);
        }
        current
    }

    fn extend(&mut self, lease: Lease) {
        let now = Instant::now();
        let (earliest, latest) = RENEW_AFTER;
        let share = earliest + (latest - earliest) * fastrand::f64();
        // Vault's numbers have no bound; a clock has.
        let ttl = lease.ttl.map(|ttl| ttl.min(CENTURY));
        // However short a lease is, Vault is not asked again at once.
        self.due = ttl.map(|ttl| now + ttl.mul_f64(share).max(BACKOFF.0));
        self.ends = ttl.map(|ttl| now + ttl);
        self.lease = Some(lease);
        self.longest = self.longest.max(lease.ttl);
        self.failures = 0;
    }

    fn alive(&self) -> bool {
        self.ends.is_none_or(|ends| Instant::now() < ends)
    }

    /// Not yet: it failed.
    fn put_off(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.due = Some(Instant::now() + backoff(self.failures));
    }

    /// What is due, if anything is.
    fn chore(&self, only_given: bool) -> Option<Chore> {
        if self.due.is_none_or(|due| Instant::now() < due) {
            return None;
        }
        let Some(Lease { ttl, renewable }) = self.lease else {
            return Some(Chore::LookUp);
        };
        // A lease that shrinks ends for good: better a new login now than a dead token then.
        let shrunk = ttl < self.longest.map(|longest| longest / 2);
        Some(match (renewable, only_given) {
            (true, true) if !shrunk || ttl > Some(LAST_RENEWAL) => Chore::Renew,
            (true, false) if !shrunk => Chore::Renew,
            (_, true) => Chore::Warn,
            (_, false) => Chore::LogIn,
        })
    }
}

/// What the keeper has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chore {
    LookUp,
    Renew,
    LogIn,
    Warn,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    /// What Vault no longer takes: getting it once more is no login.
    dead: Option<Arc<Token>>,
    failed: Option<Failed>,
    /// The last login whose only reason was a refusal that the server did not explain.
    doubted: Option<Instant>,
}

/// The last login, if it failed.
#[derive(Debug)]
struct Failed {
    error: Error,
    /// When the next one may be made.
    next: Instant,
    /// How many failed in a row.
    times: u32,
}

struct Inner {
    authority: Arc<dyn Authority>,
    /// For messages.
    name: String,
    state: Mutex<State>,
    logins: Flight<Arc<Token>>,
    verdicts: Flight<Verdict>,
    /// Tells the keeper that there is a new token.
    changed: Arc<Notify>,
}

/// The sessions of one issuer: one token at a time, and one login at a time.
///
/// A task keeps the token alive; it ends with the sessions.
pub(crate) struct Sessions {
    inner: Arc<Inner>,
    _keeper: JoinSet<()>,
}

impl Sessions {
    /// Must be called inside a tokio runtime with time.
    pub(crate) fn start(authority: Arc<dyn Authority>, name: String) -> Self {
        let inner = Arc::new(Inner {
            authority,
            name,
            state: Mutex::default(),
            logins: Flight::new(|task| drop(tokio::spawn(task))),
            verdicts: Flight::new(|task| drop(tokio::spawn(task))),
            changed: Arc::default(),
        });
        let mut keeper = JoinSet::new();
        keeper.spawn(keep(Arc::downgrade(&inner), Arc::clone(&inner.changed)));
        Self {
            inner,
            _keeper: keeper,
        }
    }

    /// The token, from a login if there is none.
    ///
    /// # Errors
    ///
    /// Those of the login. After a failed one, everyone gets its error until the next may be made.
    pub(crate) async fn token(&self) -> Result<Arc<Token>> {
        self.inner.token().await
    }

    /// The same as it is now: a login that failed a moment ago is made again.
    ///
    /// # Errors
    ///
    /// Those of the login.
    pub(crate) async fn token_now(&self) -> Result<Arc<Token>> {
        self.inner.forgive();
        self.inner.token().await
    }

    /// Makes a call with the token, and with another one if that turns out to be dead.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        client: &VaultClient,
        call: &Call,
    ) -> Result<Told<T>, Failure> {
        let token = self.token().await?;
        let refusal = match client.ask(call, Some(&token)).await {
            Err(Failure::Refused(refusal)) if refusal.status.as_u16() == 403 => refusal,
            outcome => return outcome,
        };
        match self.refused(&token).await? {
            Verdict::Refused => Err(refusal.into()),
            Verdict::Unsettled(wait) => Err(refusal.unsettled(wait).into()),
            // Refused again, it is the policy; there is no third try.
            Verdict::Replaced(token) => client.ask(call, Some(&token)).await,
        }
    }

    /// What to do about an answer that this token is not allowed something.
    ///
    /// # Errors
    ///
    /// Those of the login, if the token is dead.
    pub(crate) async fn refused(&self, used: &Arc<Token>) -> Result<Verdict> {
        let inner = &self.inner;
        if let Some(newer) = inner.newer_than(used) {
            return Ok(Verdict::Replaced(newer));
        }
        let (call, used) = (Arc::clone(inner), Arc::clone(used));
        inner.verdicts.join(|| call.judge(used)).await
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn token(self: &Arc<Self>) -> Result<Arc<Token>> {
        if let Some(current) = &self.state().current
            && current.alive()
        {
            return Ok(Arc::clone(&current.token));
        }
        self.log_in().await
    }

    fn newer_than(&self, used: &Arc<Token>) -> Option<Arc<Token>> {
        let state = self.state();
        let current = state.current.as_ref().filter(|current| current.alive())?;
        (!Arc::ptr_eq(&current.token, used)).then(|| Arc::clone(&current.token))
    }

    async fn log_in(self: &Arc<Self>) -> Result<Arc<Token>> {
        let call = Arc::clone(self);
        self.logins.join(|| call.log_in_now()).await
    }

    async fn log_in_now(self: Arc<Self>) -> Result<Arc<Token>> {
        if let Some(failed) = &self.state().failed {
            let wait = failed.next.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                let error = failed.error.clone();
                return Err(match error.kind() {
                    ErrorKind::Unsupported => error,
                    _ => error.with_retry(Retry::After(wait)),
                });
            }
        }
        let granted = timeout(DEADLINE, self.grant()).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Timeout,
                "logging in took too long: does the secret store, or AWS' metadata service, answer?",
            ))
        });
        let granted = granted.map_err(|error| match (error.kind(), error.retry()) {
            // Credentials are read again each time, so another try may find better ones.
            (kind, Retry::Never) if kind != ErrorKind::Unsupported => {
                error.with_retry(Retry::Backoff)
            }
            _ => error,
        });
        let mut state = self.state();
        match granted {
            Ok(Grant { token, lease }) => {
                (state.dead, state.failed) = (None, None);
                if let Some(current) = state.current.as_ref().filter(|it| *it.token == token) {
                    return Ok(Arc::clone(&current.token));
                }
                let current = Current::new(token, lease);
                let token = Arc::clone(&current.token);
                state.current = Some(current);
                self.changed.notify_one();
                Ok(token)
            }
            Err(error) => {
                let times = state.failed.take().map_or(1, |failed| failed.times + 1);
                state.failed = Some(Failed {
                    error: error.clone(),
                    next: Instant::now() + backoff(times),
                    times,
                });
                Err(error)
            }
        }
    }

    /// A token that Vault takes, as far as we know.
    async fn grant(&self) -> Result<Grant> {
        let grant = self.authority.log_in().await?;
        let dead = self.state().dead.clone();
        if dead.is_some_and(|dead| *dead == grant.token)
            && self.authority.look_up(&grant.token).await? == Known::Dead
        {
            return Err(self.authority.dead());
        }
        Ok(grant)
    }

    async fn judge(self: Arc<Self>, used: Arc<Token>) -> Result<Verdict> {
        let known = self.authority.look_up(&used).await?;
        if let Known::Alive(_) = known {
            return Ok(Verdict::Refused);
        }
        if let Some(newer) = self.newer_than(&used) {
            return Ok(Verdict::Replaced(newer));
        }
        if known == Known::Untold {
            return self.doubt(&used).await;
        }
        {
            let mut state = self.state();
            state
                .current
                .take_if(|current| Arc::ptr_eq(&current.token, &used));
            state.dead = Some(used);
        }
        self.log_in().await.map(Verdict::Replaced)
    }

    /// Decides by another token what the server does not say. If a policy refuses, the other one is refused as well, so
    /// these logins are spaced. The token in use stays in use until there is another.
    async fn doubt(self: &Arc<Self>, used: &Arc<Token>) -> Result<Verdict> {
        {
            let now = Instant::now();
            let mut state = self.state();
            let next = state.doubted.map(|last| last + BACKOFF.1);
            if let Some(next) = next.filter(|next| now < *next) {
                return Ok(Verdict::Unsettled(next - now));
            }
            state.doubted = Some(now);
        }
        let other = self.log_in().await?;
        Ok(match *other == **used {
            // A token that is given to us, and no other is there.
            true => Verdict::Unsettled(BACKOFF.1),
            false => Verdict::Replaced(other),
        })
    }

    /// Forgets that a login failed: somebody wants to know how it is now.
    fn forgive(&self) {
        self.state().failed = None;
    }

    /// Changes the token in use, if it still is this one.
    fn update(&self, token: &Arc<Token>, change: impl FnOnce(&mut Current)) {
        let mut state = self.state();
        if let Some(current) = &mut state.current
            && Arc::ptr_eq(&current.token, token)
        {
            change(current);
        }
    }

    /// Reads the credentials again.
    async fn reload(&self) {
        let token = self.state().current.as_ref().map(|it| it.token.clone());
        let reloaded = timeout(DEADLINE, self.authority.reload(token.as_deref())).await;
        match reloaded.unwrap_or(Ok(false)) {
            Ok(false) => {}
            Ok(true) => {
                let mut state = self.state();
                // What failed with the old credentials says nothing about the new ones.
                state.failed = None;
                state.current = None;
            }
            Err(error) => {
                tracing::warn!(issuer = %self.name, %error, "the credentials to log in with cannot be read; those in use stay in use");
            }
        }
    }

    /// Does what is due.
    async fn tend(self: &Arc<Self>) {
        let only_given = self.authority.only_given();
        let todo = {
            let state = self.state();
            match &state.current {
                Some(current) => current
                    .chore(only_given)
                    .map(|chore| Some((Arc::clone(&current.token), chore))),
                // A token that was given is kept alive from the beginning; others wait for the first request.
                None => {
                    let due = state
                        .failed
                        .as_ref()
                        .is_none_or(|it| it.next <= Instant::now());
                    (only_given && due).then_some(None)
                }
            }
        };
        let (token, chore) = match todo {
            None => return,
            Some(None) => {
                // An error reaches whoever makes the first request.
                let _ = self.log_in().await;
                return;
            }
            Some(Some(todo)) => todo,
        };
        let done = match chore {
            Chore::LookUp => self.authority.look_up(&token).await,
            Chore::Renew => self.authority.renew(&token).await.map(|lease| match lease {
                Some(lease) => Known::Alive(lease),
                None if only_given => Known::Untold,
                None => Known::Dead,
            }),
            Chore::LogIn => return self.replace(&token).await,
            Chore::Warn => {
                tracing::warn!(issuer = %self.name, "the token cannot be renewed any more: replace it before it ends");
                return self.update(&token, |current| current.due = None);
            }
        };
        match done {
            Ok(Known::Alive(lease)) => self.update(&token, |current| {
                if only_given && lease.ttl < current.longest.map(|longest| longest / 2) {
                    tracing::warn!(issuer = %self.name, left = ?lease.ttl, "the token nears its maximum lifetime: replace it before it ends");
                }
                current.extend(lease);
            }),
            Ok(Known::Untold) if chore == Chore::Renew => {
                tracing::warn!(issuer = %self.name, "the token is not renewed: replace it before it ends, or grant `update` on `auth/token/renew-self`");
                self.update(&token, Current::put_off);
            }
            // It may not ask, so nobody knows when it ends; the next request shows whether it is dead.
            Ok(Known::Untold) => self.update(&token, |current| current.due = None),
            Ok(Known::Dead) if only_given => self.update(&token, |current| current.due = None),
            Ok(Known::Dead) => self.replace(&token).await,
            Err(error) => {
                tracing::warn!(issuer = %self.name, %error, "the token was not renewed yet");
                self.update(&token, Current::put_off);
            }
        }
    }

    async fn replace(self: &Arc<Self>, token: &Arc<Token>) {
        if let Err(error) = self.log_in().await {
            tracing::warn!(issuer = %self.name, %error, "no new token yet");
            self.update(token, Current::put_off);
        }
    }
}

/// Keeps the token alive for as long as there are sessions.
async fn keep(inner: Weak<Inner>, changed: Arc<Notify>) {
    let mut next_reload = Instant::now() + RELOAD_INTERVAL;
    loop {
        let Some(inner) = inner.upgrade() else { return };
        if Instant::now() >= next_reload {
            inner.reload().await;
            next_reload = Instant::now() + RELOAD_INTERVAL;
        }
        inner.tend().await;
        let due = inner.state().current.as_ref().and_then(|it| it.due);
        drop(inner);
        let wake = due.map_or(next_reload, |due| due.min(next_reload));
        let _ = timeout(
            wake.saturating_duration_since(Instant::now()),
            changed.notified(),
        )
        .await;
    }
}

/// Twice as long each time, and not the same for everyone.
fn backoff(times: u32) -> Duration {
    let (first, last) = BACKOFF;
    let doubled = first.saturating_mul(1 << times.saturating_sub(1).min(16));
    doubled.min(last).mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests;
