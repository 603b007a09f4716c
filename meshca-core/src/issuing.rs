//! The caller's side of an issuer: certificates that are verified, and the roots they lead to.

use std::fmt;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, RwLock};
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, WeakShared};

use crate::sync::{lock, read, write};
use crate::verify::{self, Refusal};
use crate::{
    CertificateRequest, CertificateSpec, Clock, Error, ErrorKind, Identity, IssuedCertificate,
    Issuer, PrivateKey, Result, Retry, SignedChain, TrustBundle,
};

/// Has certificates issued, verifies them, and keeps the roots that peers must hold.
///
/// An [`Issuer`] is what the author of a provider writes. An `IssuingCa` is what its users hold:
/// make one for each issuer, and clone it. Clones share what is known. Everything else of the
/// issuer is reached through it, as through an `Arc`.
///
/// ```
/// use std::sync::Arc;
/// use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
/// use meshca_core::{CertificateSpec, IssuingCa, MemorySecretStore, SpiffeId, SystemClock, TrustDomain};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let clock = Arc::new(SystemClock::new());
/// let settings = CaSettings::new(TrustDomain::new("example.org")?, CaSecrets::for_backend("default", "ca")?);
/// let issuer = BuiltinIssuer::load_or_create(settings, Arc::new(MemorySecretStore::new()), clock.clone()).await?;
///
/// let ca = IssuingCa::new(issuer);
/// let spec = CertificateSpec::workload(SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?);
/// let identity = ca.issue(&spec, &*clock).await?;
/// let roots = ca.trust(&*clock).await?;
/// assert!(roots.contains(identity.certificate().root().der()));
/// # Ok(())
/// # }
/// ```
///
/// # Trust
///
/// This is the one place where the roots of a CA are cached. It asks the CA for them
///
/// - before the first certificate is requested: some CAs bill every certificate, and without roots
///   it cannot be verified;
/// - when an answer leads to an unknown root, at most once per answer: this is what a CA that was
///   rotated under us looks like;
/// - in [`trust`](Self::trust), if the CA's [own interval](crate::Capabilities::trust_interval)
///   has passed since the last time;
/// - in [`refresh`](Self::refresh).
///
/// One call is under way at a time, and all callers share its result. If the CA does not answer,
/// the known roots stay trusted, and [`trouble`](Self::trouble) says why. [`issue`](Self::issue)
/// does not look at the age of the roots, so it never waits for a CA that is slow to name them:
/// call `trust` regularly, as its result has to be given to peers anyway.
///
/// # Cancellation
///
/// Futures may be dropped at any await point. A caller that gives up takes nothing away from the
/// others: the call for the roots belongs to all who wait for it, and ends with the last of them.
#[derive(derive_more::Debug, derive_more::Display)]
#[debug("IssuingCa({:?}, {:?})", _0.issuer, _0.known())]
#[debug(bound(I: fmt::Debug))]
#[display("{}", _0.issuer)]
#[display(bound(I: fmt::Display))]
pub struct IssuingCa<I = Arc<dyn Issuer>>(Arc<Inner<I>>, Option<Arc<TrustBundle>>);

struct Inner<I> {
    issuer: I,
    /// Read for every certificate: a count of references, behind a lock that is written when roots
    /// change.
    known: RwLock<Option<Arc<TrustBundle>>>,
    /// Weak, since the call holds this: it lives as long as somebody waits for it.
    call: Mutex<Option<WeakShared<Call>>>,
    asked: Mutex<Asked>,
}

type Call = BoxFuture<'static, Result<Arc<TrustBundle>>>;

#[derive(Default)]
struct Asked {
    /// When `trust` has asked last, whatever came of it: a CA that is down is not asked more often
    /// than one that answers.
    at: Option<SystemTime>,
    /// Why the last call failed.
    trouble: Option<Error>,
}

impl<I: Issuer> IssuingCa<I> {
    /// Takes an issuer into use. Asks nothing yet.
    pub fn new(issuer: I) -> Self {
        let inner = Inner {
            issuer,
            known: RwLock::default(),
            call: Mutex::default(),
            asked: Mutex::default(),
        };
        Self(Arc::new(inner), None)
    }

    /// The same CA for peers that hold this bundle: its certificates are verified against the roots
    /// that it names, [completed](TrustBundle::completed_by) by these. It is for a CA that names an
    /// intermediate and does not have the root, which peers need.
    ///
    /// What is known of the CA is shared with `self`. [`trust`](Self::trust) still returns what the CA
    /// names.
    #[must_use]
    pub fn for_peers_with(&self, peers: TrustBundle) -> Self {
        Self(Arc::clone(&self.0), Some(Arc::new(peers)))
    }

    /// The bundle to verify against.
    fn anchors(&self, known: &Arc<TrustBundle>) -> Result<Arc<TrustBundle>> {
        match &self.1 {
            None => Ok(Arc::clone(known)),
            Some(peers) => known.completed_by(peers).map(Arc::new),
        }
    }

    /// The issuer.
    pub fn issuer(&self) -> &I {
        &self.0.issuer
    }

    /// Makes a key, has a certificate signed for it, and verifies the answer.
    ///
    /// RSA keys take a tenth of a second or more of the calling thread; make them elsewhere and
    /// use [`issue_for`](Self::issue_for) where that matters.
    ///
    /// # Errors
    ///
    /// Those of [`Issuer::sign`] and [`Issuer::trust_bundle`]; [`ErrorKind::Unsupported`] for what
    /// the issuer does not declare in its [`capabilities`](Issuer::capabilities);
    /// [`ErrorKind::BadResponse`] if the answer must not be handed out.
    pub async fn issue(&self, spec: &CertificateSpec, clock: &dyn Clock) -> Result<Identity> {
        let key = PrivateKey::generate(spec.key_type())?;
        let request = CertificateRequest::for_key(spec.clone(), &key, clock.now())?;
        Identity::new(self.issue_for(&request, clock).await?, key)
    }

    /// Has a certificate signed for a request, and verifies the answer.
    ///
    /// # Errors
    ///
    /// As [`issue`](Self::issue).
    pub async fn issue_for(
        &self,
        request: &CertificateRequest,
        clock: &dyn Clock,
    ) -> Result<IssuedCertificate> {
        let issuer = &self.0.issuer;
        let named = |error: Error| error.with_context("issuer", issuer);
        issuer.capabilities().require(request).map_err(named)?;
        // In boxes, what is seldom done: this is part of every certificate, and large futures cost
        // more than small ones.
        let roots = match self.0.known() {
            Some(known) => known,
            None => Box::pin(self.ask()).await.map_err(named)?,
        };
        let chain = issuer.sign(request).await.map_err(named)?;
        let anchors = self.anchors(&roots).map_err(named)?;
        let outcome = match verify::verify(&chain, request, &anchors, clock.now()) {
            Ok(certificate) => Ok(certificate),
            Err(Refusal {
                root_unknown: true,
                error,
            }) => {
                let again = self.verify_again(&chain, request, &roots, clock, error);
                Box::pin(again).await
            }
            Err(Refusal { error, .. }) => Err(error),
        };
        if let Some(settling) = chain.settle(outcome.as_ref()) {
            settling.await;
        }
        outcome.map_err(named)
    }

    /// Verifies an answer that leads to none of the roots in `tried`.
    async fn verify_again(
        &self,
        chain: &SignedChain,
        request: &CertificateRequest,
        tried: &Arc<TrustBundle>,
        clock: &dyn Clock,
        error: Error,
    ) -> Result<IssuedCertificate> {
        // Another answer may have had the CA asked since, and hundreds may come together.
        let known = self.0.known().filter(|known| known != tried);
        if let Some(known) = &known {
            match verify::verify(chain, request, &*self.anchors(known)?, clock.now()) {
                Err(refusal) if refusal.root_unknown => {}
                outcome => return outcome.map_err(|refusal| refusal.error),
            }
        }
        match self.ask().await {
            Ok(renewed) if renewed == *tried => Err(error),
            Ok(renewed) => {
                let anchors = self.anchors(&renewed)?;
                verify::verify(chain, request, &anchors, clock.now())
                    .map_err(|refusal| refusal.error)
            }
            // The certificate may be a good one: it is worth another look, soon.
            Err(unknown) => Err(error
                .with_context("trust could not be refreshed", unknown)
                .with_retry(Retry::Backoff)),
        }
    }

    /// Returns the roots that peers must hold. Asks the CA if its interval has passed.
    ///
    /// # Errors
    ///
    /// Those of [`Issuer::trust_bundle`], as long as no roots are known. Later failures are told
    /// by [`trouble`](Self::trouble).
    pub async fn trust(&self, clock: &dyn Clock) -> Result<TrustBundle> {
        let known = self.0.known();
        let now = clock.now();
        {
            let interval = self.0.issuer.capabilities().trust_interval();
            let mut asked = lock(&self.0.asked);
            // A clock that was set back says nothing about how long ago it was.
            let since = asked.at.and_then(|at| now.duration_since(at).ok());
            if let Some(known) = &known
                && since.is_some_and(|since| since < interval)
            {
                return Ok(TrustBundle::clone(known));
            }
            asked.at = Some(now);
        }
        match (self.refresh().await, known) {
            (Err(_), Some(known)) => Ok(TrustBundle::clone(&known)),
            (asked, _) => asked,
        }
    }

    /// Asks the CA for its roots now, or waits for the call that is under way.
    ///
    /// # Errors
    ///
    /// Those of [`Issuer::trust_bundle`], to all who wait. The known roots stay known.
    pub async fn refresh(&self) -> Result<TrustBundle> {
        self.ask().await.map(|roots| TrustBundle::clone(&roots))
    }

    /// The roots as the CA has named them last, if it ever has. Asks nothing.
    pub fn known(&self) -> Option<TrustBundle> {
        self.0.known().as_deref().cloned()
    }

    /// Why the CA did not name its roots when it was asked last. The known roots stay trusted.
    pub fn trouble(&self) -> Option<Error> {
        lock(&self.0.asked).trouble.clone()
    }

    async fn ask(&self) -> Result<Arc<TrustBundle>> {
        let call = {
            let mut slot = lock(&self.0.call);
            match slot.as_ref().and_then(WeakShared::upgrade) {
                Some(call) => call,
                None => {
                    let call = Inner::ask(Arc::clone(&self.0)).boxed().shared();
                    *slot = call.downgrade();
                    call
                }
            }
        };
        call.await
    }
}

impl<I> Inner<I> {
    fn known(&self) -> Option<Arc<TrustBundle>> {
        read(&self.known).clone()
    }
}

impl<I: Issuer> Inner<I> {
    async fn ask(inner: Arc<Self>) -> Result<Arc<TrustBundle>> {
        let answer = AssertUnwindSafe(inner.issuer.trust_bundle());
        // A panic would take the result away from all who wait.
        let answer = answer.catch_unwind().await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                "an issuer panicked when it was asked for its roots: this is a bug in it",
            ))
        });
        let answer = answer.map(Arc::new);
        if let Ok(roots) = &answer {
            *write(&inner.known) = Some(Arc::clone(roots));
        }
        lock(&inner.asked).trouble = answer.as_ref().err().cloned();
        // The result is of this moment: the next caller asks again.
        *lock(&inner.call) = None;
        answer
    }
}

impl<I> Clone for IssuingCa<I> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), self.1.clone())
    }
}

impl<I> Deref for IssuingCa<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.0.issuer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use spiffe::TrustDomain;

    use super::*;
    use crate::{Capabilities, CheckReport};

    const SECOND: Duration = Duration::from_secs(1);

    /// A CA that takes a second to name its roots: bundles that are numbered.
    #[derive(Debug, Default)]
    struct Slow {
        asked: AtomicUsize,
        down: AtomicBool,
        panics: AtomicBool,
    }

    impl fmt::Display for Slow {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("slow")
        }
    }

    #[async_trait]
    impl Issuer for Slow {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new().with_trust_interval(10 * SECOND)
        }

        async fn sign(&self, _: &CertificateRequest) -> Result<SignedChain> {
            Err(Error::new(ErrorKind::Unsupported, "it only names roots"))
        }

        async fn trust_bundle(&self) -> Result<TrustBundle> {
            tokio::time::sleep(SECOND).await;
            let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(!self.panics.load(Ordering::SeqCst), "on purpose");
            if self.down.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Unavailable, format!("down {number}")));
            }
            let domain = TrustDomain::new("example.org").unwrap();
            Ok(TrustBundle::new(domain, [])?.with_sequence(number as u64))
        }

        async fn check(&self) -> Result<CheckReport> {
            Ok(CheckReport::new())
        }
    }

    #[derive(Debug)]
    struct Paused(tokio::time::Instant);

    impl Clock for Paused {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + self.0.elapsed()
        }
    }

    fn ca() -> (IssuingCa<Slow>, Paused) {
        let clock = Paused(tokio::time::Instant::now());
        (IssuingCa::new(Slow::default()), clock)
    }

    fn number(roots: Result<TrustBundle>) -> u64 {
        roots.unwrap().sequence().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_come_meanwhile_share_one_call_and_one_who_gives_up_takes_nothing() {
        let (ca, _) = ca();
        let waiters: Vec<_> = (0..100)
            .map(|_| {
                let ca = ca.clone();
                tokio::spawn(async move { ca.refresh().await })
            })
            .collect();
        tokio::time::sleep(SECOND / 2).await;
        let begun = tokio::time::Instant::now();
        let mut waiters = waiters.into_iter();
        // The first is the one that has begun it.
        waiters.next().unwrap().abort();
        for waiter in waiters {
            assert_eq!(number(waiter.await.unwrap()), 1);
        }
        assert!(begun.elapsed() <= SECOND / 2, "it was begun once more");
        assert_eq!(number(ca.refresh().await), 2);
        // A call that nobody waits for is not served later.
        tokio::time::timeout(SECOND / 2, ca.refresh())
            .await
            .unwrap_err();
        assert_eq!(number(ca.refresh().await), 3);
        assert!(ca.0.call.lock().unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn roots_are_asked_for_again_after_the_interval_of_the_ca() {
        let (ca, clock) = ca();
        assert_eq!(number(ca.trust(&clock).await), 1);
        for (pass, expected) in [(8, 1), (2, 2), (8, 2), (2, 3)] {
            tokio::time::sleep(pass * SECOND).await;
            assert_eq!(number(ca.trust(&clock).await), expected);
        }
        assert_eq!(number(ca.refresh().await), 4);
        assert_eq!(ca.known().unwrap().sequence(), Some(4));
    }

    #[tokio::test(start_paused = true)]
    async fn known_roots_stay_trusted_and_the_trouble_is_told() {
        let (ca, clock) = ca();
        ca.down.store(true, Ordering::SeqCst);
        let (one, other) = tokio::join!(ca.trust(&clock), ca.trust(&clock));
        for error in [one.unwrap_err(), other.unwrap_err()] {
            assert_eq!(error.message(), "down 1", "both wait for the same call");
        }
        ca.down.store(false, Ordering::SeqCst);
        assert_eq!(number(ca.trust(&clock).await), 2);
        assert!(ca.trouble().is_none());
        ca.down.store(true, Ordering::SeqCst);
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(number(ca.trust(&clock).await), 2);
        assert_eq!(ca.trouble().unwrap().message(), "down 3");
        // A CA that is down is asked no more often than one that answers.
        assert_eq!(number(ca.trust(&clock).await), 2);
        assert_eq!(ca.asked.load(Ordering::SeqCst), 3);
        assert_eq!(ca.refresh().await.unwrap_err().message(), "down 4");

        ca.panics.store(true, Ordering::SeqCst);
        let (one, other) = tokio::join!(ca.refresh(), ca.refresh());
        for error in [one.unwrap_err(), other.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Internal);
        }
        ca.panics.store(false, Ordering::SeqCst);
        ca.down.store(false, Ordering::SeqCst);
        assert_eq!(number(ca.refresh().await), 6);
        assert!(ca.trouble().is_none());
    }
}
