//! Who is tested, and what cannot be read off it.

use std::time::Duration;

use async_trait::async_trait;
use meshca_core::{
    CertificateRequest, CertificateSpec, Clock, ErrorKind, Issuer, KeyType, LifetimePolicy,
    PrivateKey, Profile, Result, SignedChain, SpiffeId, TrustBundle, TrustDomain,
};

use super::faults::{Faults, told};
use super::judge::{self, Expected, Verdict};

/// How long one call to the issuer may take unless told otherwise: 30 seconds.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// What is asked for unless told otherwise.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// Replaces the CA behind an issuer, step by step.
///
/// A CA that is replaced in one step does it all in [`prepare`](Self::prepare), and nothing in
/// [`activate`](Self::activate).
#[async_trait]
pub trait Rotation: Send + Sync {
    /// Makes the next CA. Afterwards its root must be in the issuer's (refreshed) bundle.
    ///
    /// # Errors
    ///
    /// Whatever goes wrong; the check fails with it.
    async fn prepare(&self) -> Result<()>;

    /// Has the next CA sign. A fake clock is moved here too, where the issuer needs time between the steps.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare).
    async fn activate(&self) -> Result<()>;
}

/// An issuer under test, and what cannot be read off it.
///
/// ```no_run
/// # async fn f(issuer: &dyn meshca_core::Issuer) -> Result<(), Box<dyn std::error::Error>> {
/// use meshca_core::{SpiffeId, SystemClock};
/// use meshca_testkit::conformance::{self, Subject};
///
/// let clock = SystemClock::new();
/// let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?;
/// let subject = Subject::new(issuer, &clock, id).with_dns_name("cart.shop.svc");
/// conformance::run_all(&subject).await.assert_passed();
/// # Ok(())
/// # }
/// ```
#[derive(derive_more::Debug)]
#[debug("Subject {{ issuer: {issuer:?}, id: \"{id}\", .. }}")]
#[must_use]
pub struct Subject<'a> {
    pub(super) issuer: &'a dyn Issuer,
    pub(super) clock: &'a dyn Clock,
    pub(super) id: SpiffeId,
    pub(super) foreign_id: Option<SpiffeId>,
    pub(super) lifetime: Duration,
    pub(super) deadline: Duration,
    pub(super) dns_name: String,
    pub(super) uri: String,
    pub(super) common_name: String,
    pub(super) keys: Vec<&'a PrivateKey>,
    pub(super) refusals: Vec<(CertificateSpec, ErrorKind)>,
    pub(super) rotation: Option<&'a dyn Rotation>,
    pub(super) any_order: bool,
    pub(super) clock_ahead: Duration,
    pub(super) any_path_length: bool,
    pub(super) server: Option<String>,
}

impl<'a> Subject<'a> {
    /// An issuer, the clock that its certificates are judged by, and a SPIFFE ID that it signs for.
    pub fn new(issuer: &'a dyn Issuer, clock: &'a dyn Clock, id: SpiffeId) -> Self {
        Self {
            issuer,
            clock,
            // In a domain that begins like ours ends: who compares carelessly takes it for ours.
            foreign_id: SpiffeId::new(format!(
                "spiffe://foreign.{}{}",
                id.trust_domain(),
                id.path()
            ))
            .or_else(|_| SpiffeId::new("spiffe://foreign.invalid/testkit"))
            .ok(),
            dns_name: format!("testkit.{}", id.trust_domain()),
            id,
            lifetime: DEFAULT_LIFETIME,
            deadline: DEFAULT_DEADLINE,
            uri: "kuma://kuma.io/service/testkit".to_owned(),
            common_name: "testkit".to_owned(),
            keys: Vec::new(),
            refusals: Vec::new(),
            rotation: None,
            any_order: false,
            clock_ahead: Duration::ZERO,
            any_path_length: false,
            server: None,
        }
    }

    /// What is behind the issuer, with its version, for the report: `Vault 1.21.0`.
    pub fn with_server(mut self, server: impl Into<String>) -> Self {
        self.server = Some(server.into());
        self
    }

    /// A SPIFFE ID of a trust domain that it must not sign for. By default the same path in
    /// `foreign.<its own domain>`.
    pub fn with_foreign_id(mut self, id: SpiffeId) -> Self {
        self.foreign_id = Some(id);
        self
    }

    /// The lifetime to ask for, an hour by default; what the issuer declares as its maximum limits it.
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// How long one call may take, [`DEFAULT_DEADLINE`] by default.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// A DNS name that it signs, where it declares that it signs DNS names. `testkit.<trust domain>`
    /// by default.
    pub fn with_dns_name(mut self, name: impl Into<String>) -> Self {
        self.dns_name = name.into();
        self
    }

    /// A URI that it signs beside the SPIFFE ID, where it declares that it does.
    /// `kuma://kuma.io/service/testkit` by default.
    pub fn with_uri(mut self, uri: impl Into<String>) -> Self {
        self.uri = uri.into();
        self
    }

    /// A common name that it signs, where it declares that it does. `testkit` by default.
    pub fn with_common_name(mut self, name: impl Into<String>) -> Self {
        self.common_name = name.into();
        self
    }

    /// A key to use for its type instead of making one. RSA keys take long to make.
    pub fn with_key(mut self, key: &'a PrivateKey) -> Self {
        self.keys.push(key);
        self
    }

    /// Something that the CA refuses, by its policy for example, and the kind of error that it must be.
    pub fn with_refusal(mut self, spec: CertificateSpec, kind: ErrorKind) -> Self {
        self.refusals.push((spec, kind));
        self
    }

    /// How its CA is replaced; otherwise the report says that it was not tried.
    pub fn with_rotation(mut self, rotation: &'a dyn Rotation) -> Self {
        self.rotation = Some(rotation);
        self
    }

    /// Declares that the CA returns certificates in no particular order, or more than once. Core
    /// puts that right, but by default the kit wants to hear of it.
    pub fn with_unordered_chains(mut self) -> Self {
        self.any_order = true;
        self
    }

    /// Declares that the CA sets no path length in the intermediates that it signs. Core reports it, since the key is
    /// ours; but by default the kit wants to hear of it.
    pub fn with_unlimited_path_lengths(mut self) -> Self {
        self.any_path_length = true;
        self
    }

    /// Declares that the CA's clock is ahead of ours by up to this much. Core waits until a
    /// certificate begins, but by default the kit wants to hear of it.
    pub fn with_clock_ahead(mut self, by: Duration) -> Self {
        self.clock_ahead = by;
        self
    }

    pub(super) fn about(&self) -> Vec<String> {
        let capabilities = self.issuer.capabilities();
        let mut about = vec![
            format!(
                "asked for {} for {}s, each call within {:?}",
                self.id,
                self.granted_lifetime().as_secs(),
                self.deadline
            ),
            format!("it declares {capabilities:?}"),
        ];
        if let Some(server) = &self.server {
            about.push(format!("server: {server}"));
        }
        if self.any_order {
            about.push("declared: its chains come in no particular order".to_owned());
        }
        if self.any_path_length {
            about.push("declared: it sets no path length in intermediates".to_owned());
        }
        if !self.clock_ahead.is_zero() {
            about.push(format!(
                "declared: its clock may be {:?} ahead",
                self.clock_ahead
            ));
        }
        about
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        self.id.trust_domain()
    }

    /// What is asked for, within what it says it gives.
    pub(super) fn granted_lifetime(&self) -> Duration {
        match self.issuer.capabilities().max_lifetime() {
            Some(max) => self.lifetime.min(max),
            None => self.lifetime,
        }
    }

    pub(super) fn spec(&self) -> CertificateSpec {
        self.spec_for(self.id.clone())
    }

    pub(super) fn spec_for(&self, id: SpiffeId) -> CertificateSpec {
        self.with_policy(CertificateSpec::workload(id).with_lifetime(self.granted_lifetime()))
    }

    pub(super) fn with_policy(&self, spec: CertificateSpec) -> CertificateSpec {
        let honoured = self.issuer.capabilities().lifetime_honoured();
        spec.with_key_type(self.key_type())
            .with_lifetime_policy(if honoured {
                LifetimePolicy::AtMostRequested
            } else {
                LifetimePolicy::AcceptIssuer
            })
    }

    /// The type of key for checks that are not about keys: the first that is declared and that
    /// workloads may have.
    pub(super) fn key_type(&self) -> KeyType {
        let capabilities = self.issuer.capabilities();
        let mut types = capabilities.key_types().iter().copied();
        let first = types.find(|key_type| key_type.is_for_workloads());
        first.unwrap_or_default()
    }

    /// A request with a new key, for what is not to be mistaken for an earlier request.
    pub(super) fn new_request(&self, spec: CertificateSpec) -> Result<CertificateRequest> {
        let key = PrivateKey::generate(spec.key_type())?;
        CertificateRequest::for_key(spec, &key, self.clock.now())
    }

    /// `sign` within the deadline.
    pub(super) async fn sign(
        &self,
        request: &CertificateRequest,
    ) -> Result<Result<SignedChain>, Faults> {
        self.within("sign", self.issuer.sign(request)).await
    }

    /// The answer of `sign`, which must succeed.
    pub(super) async fn chain(&self, request: &CertificateRequest) -> Result<SignedChain, Faults> {
        self.call("sign", self.issuer.sign(request)).await
    }

    pub(super) async fn bundle(&self) -> Result<TrustBundle, Faults> {
        self.call("trust_bundle", self.issuer.trust_bundle()).await
    }

    /// A call that must succeed, within the deadline.
    pub(super) async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T, Faults> {
        let answer = self.within(what, call).await?;
        Ok(answer.map_err(|error| format!("`{what}` failed: {}", told(&error)))?)
    }

    pub(super) async fn within<T>(
        &self,
        what: &str,
        call: impl Future<Output = T>,
    ) -> Result<T, Faults> {
        let answer = tokio::time::timeout(self.deadline, call).await;
        Ok(answer.map_err(|_| {
            format!(
                "`{what}` did not answer within {:?} (slow, or waiting for what never comes)",
                self.deadline
            )
        })?)
    }

    /// Has a request signed, with the bundle as core would fetch it, and judges the answer.
    pub(super) async fn signed(
        &self,
        request: &CertificateRequest,
        key: Option<&PrivateKey>,
    ) -> Result<Signed, Faults> {
        let bundle = self.bundle().await?;
        self.signed_under(&bundle, request, key).await
    }

    /// Has a request signed, and judges the answer by a bundle that is known, as core does with all but the first.
    pub(super) async fn signed_under(
        &self,
        bundle: &TrustBundle,
        request: &CertificateRequest,
        key: Option<&PrivateKey>,
    ) -> Result<Signed, Faults> {
        let chain = self.chain(request).await?;
        let mut verdict = self.judge(&chain, request, key, bundle);
        if verdict.root_unknown {
            let renewed = self.bundle().await?;
            if renewed != *bundle {
                verdict = self.judge(&chain, request, key, &renewed);
            }
        }
        if verdict.faults.0.is_empty() {
            Ok(Signed { chain, verdict })
        } else {
            Err(verdict.faults)
        }
    }

    pub(super) fn judge(
        &self,
        chain: &SignedChain,
        request: &CertificateRequest,
        key: Option<&PrivateKey>,
        bundle: &TrustBundle,
    ) -> Verdict {
        let capabilities = self.issuer.capabilities();
        let workload = request.spec().profile() == Profile::Workload;
        let requested = request.spec().lifetime();
        judge::judge(
            chain.certificates(),
            &Expected {
                request,
                key,
                bundle,
                now: self.clock.now(),
                tolerance: (capabilities.lifetime_honoured() && workload)
                    .then(|| Duration::from_secs(60).min(requested / 10)),
                max_lifetime: capabilities.max_lifetime().filter(|_| workload),
                any_order: self.any_order,
                clock_ahead: self.clock_ahead,
                any_path_length: self.any_path_length,
            },
        )
    }
}

/// A sound answer.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) chain: SignedChain,
    pub(super) verdict: Verdict,
}
