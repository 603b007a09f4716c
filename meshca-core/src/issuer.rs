//! The contract between meshca and a CA.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use crate::flight::Flight;
use crate::verify::{self, Refusal};
use crate::{
    CertificateRequest, CertificateSpec, Clock, Error, ErrorKind, Identity, IssuedCertificate,
    KeyType, PrivateKey, Profile, Result, Retry, SignedChain, TrustBundle,
};

/// A CA that signs certificates for workloads.
///
/// This is the side that implementors see, and it is small on purpose. An issuer sends the request to its CA and
/// returns [what came back](SignedChain); it verifies nothing, repairs nothing and never sees a private key.
/// Everything a caller wants lives in [`IssuerExt`], which every issuer has.
///
/// An issuer is used from many tasks at once and is kept for as long as its configuration lives.
/// Its `Display` names it in logs: type and address, no secret.
///
/// The trait is an [`async_trait`](https://docs.rs/async-trait): add that crate to implement it, and write the
/// methods as the example does.
///
/// # Cancellation
///
/// Futures may be dropped at any await point. An implementor leaves nothing behind that the next
/// call with the same [`RequestId`](crate::RequestId) would not find again or replace.
///
/// # Example
///
/// ```
/// use async_trait::async_trait;
/// use meshca_core::{Capabilities, CertificateRequest, CheckReport, Issuer, Result, SignedChain, TrustBundle};
///
/// #[derive(Debug)]
/// struct MyCa {
///     bundle: TrustBundle,
/// }
///
/// impl std::fmt::Display for MyCa {
///     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
///         f.write_str("my-ca at ca.example.org")
///     }
/// }
///
/// #[async_trait]
/// impl Issuer for MyCa {
///     fn capabilities(&self) -> Capabilities {
///         // Whatever is not declared here is refused before `sign` is called.
///         Capabilities::new().with_lifetime_honoured(true).with_extra_uris(true)
///     }
///
///     async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
///         let answer = post(request.csr()?.to_pem(), request.spec().lifetime()).await?;
///         SignedChain::from_pem(&answer)
///     }
///
///     async fn trust_bundle(&self) -> Result<TrustBundle> {
///         Ok(self.bundle.clone())
///     }
///
///     async fn refresh_trust_bundle(&self) -> Result<TrustBundle> {
///         self.trust_bundle().await
///     }
///
///     async fn check(&self) -> Result<CheckReport> {
///         Ok(CheckReport::new())
///     }
/// }
/// # async fn post(_csr: String, _ttl: std::time::Duration) -> Result<String> { Ok(String::new()) }
/// ```
#[async_trait]
pub trait Issuer: Debug + Display + Send + Sync + 'static {
    /// What it can do. Cheap; does not ask the CA.
    fn capabilities(&self) -> Capabilities;

    /// Has the CA sign the request, and returns what it returned.
    ///
    /// # Errors
    ///
    /// With the [kind](crate::ErrorKind) and the [retry advice](crate::Retry) that fit the CA's answer.
    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain>;

    /// The roots that peers must hold to accept what it signs, those of a prepared next CA
    /// included. May be answered from a cache; it is asked for every certificate.
    async fn trust_bundle(&self) -> Result<TrustBundle>;

    /// The same, asking the CA again. Called when a chain ends in a root that
    /// [`trust_bundle`](Self::trust_bundle) does not hold, which is what a CA rotated under us looks like.
    async fn refresh_trust_bundle(&self) -> Result<TrustBundle>;

    /// Whether credentials, policy and settings suffice to sign, without signing.
    ///
    /// # Errors
    ///
    /// What would keep it from signing, and what an operator has to do about it.
    async fn check(&self) -> Result<CheckReport>;

    /// Tells it what became of a request once what [`sign`](Self::sign) returned was verified.
    ///
    /// An issuer that leaves something at its CA – an object per request, say – cleans it up here, and
    /// forgets an answer that was refused, or the next attempt would find it again. It cannot fail, and whoever issues does not wait for
    /// more than it awaits itself. Most have nothing to do. Wrappers forward it.
    async fn settled(
        &self,
        request: &CertificateRequest,
        outcome: Result<&IssuedCertificate, &Error>,
    ) {
        let _ = (request, outcome);
    }

    /// The replacement of its own CA, where that is for the holder of the issuer to drive; most
    /// have none. Wrappers forward it: what nobody drives comes to its end.
    fn rotation(&self) -> Option<&dyn CaRotation> {
        None
    }
}

/// How the CA of an issuer is replaced before it ends: whoever holds the issuer asks now and then what is due, and has it done.
///
/// Trust comes before use. [`Prepare`](RotationStep::Prepare) puts the next root into the
/// [trust bundle](Issuer::trust_bundle); before [`Activate`](RotationStep::Activate), whoever drives makes sure that every peer holds it.
#[async_trait]
pub trait CaRotation: Send + Sync {
    /// What is due now. Cheap; asks nobody.
    fn due(&self) -> Option<RotationStep>;

    /// Takes a step. One that somebody else has taken already changes nothing or says so.
    ///
    /// # Errors
    ///
    /// Those of the CA and its store; what signed before goes on signing.
    async fn rotate(&self, step: RotationStep) -> Result<()>;
}

/// What a CA that nears its end needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RotationStep {
    /// Make the next CA, which signs nothing yet, and trust its root.
    Prepare,
    /// Sign with it, once every peer holds its root.
    Activate,
    /// Forget what has outlived everything that it signed.
    Retire,
}

const _: fn(&dyn Issuer) = |_| {};

/// What [`Issuer::check`] found beside "it works".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// What works but will be regretted, in sentences for an operator.
    pub warnings: Vec<String>,
}

impl CheckReport {
    /// Nothing to complain about.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a warning.
    #[must_use]
    pub fn with_warning(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }
}

/// What an [`Issuer`] can do: declared, so that a difference is known before it hurts.
///
/// Everything is off until it is said to be on. [`IssuerExt`] refuses a request for names or
/// intermediates that are not declared, with [`ErrorKind::Unsupported`] and before
/// [`sign`](Issuer::sign) is called, because many CAs would silently leave them out. The rest is for whoever
/// sets an issuer up, and for the conformance suite, which proves what is declared.
///
/// An issuer for the classic model needs [`with_extra_uris`](Self::with_extra_uris): classic
/// certificates carry a `kuma://<tag>/<value>` URI for every tag of the workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    lifetime_honoured: bool,
    max_lifetime: Option<Duration>,
    dns_names: bool,
    extra_uris: bool,
    common_name: bool,
    intermediates: bool,
    key_types: Vec<KeyType>,
}

impl Capabilities {
    /// None, for P-256 keys.
    pub fn new() -> Self {
        Self {
            key_types: vec![KeyType::P256],
            ..Self::default()
        }
    }

    /// Says whether the CA gives the lifetime that is asked for (within its maximum) or decides on
    /// its own. One that decides is used with
    /// [`LifetimePolicy::AcceptIssuer`](crate::LifetimePolicy::AcceptIssuer).
    #[must_use]
    pub fn with_lifetime_honoured(mut self, honoured: bool) -> Self {
        self.lifetime_honoured = honoured;
        self
    }

    /// Says that the CA gives no more than this.
    #[must_use]
    pub fn with_max_lifetime(mut self, max: Duration) -> Self {
        self.max_lifetime = Some(max);
        self
    }

    /// Says whether it signs DNS names beside the SPIFFE ID.
    #[must_use]
    pub fn with_dns_names(mut self, able: bool) -> Self {
        self.dns_names = able;
        self
    }

    /// Says whether it signs further URIs beside the SPIFFE ID.
    #[must_use]
    pub fn with_extra_uris(mut self, able: bool) -> Self {
        self.extra_uris = able;
        self
    }

    /// Says whether it puts a common name into the subject.
    #[must_use]
    pub fn with_common_name(mut self, able: bool) -> Self {
        self.common_name = able;
        self
    }

    /// Says whether it signs [intermediates](Profile::Intermediate).
    #[must_use]
    pub fn with_intermediates(mut self, able: bool) -> Self {
        self.intermediates = able;
        self
    }

    /// Says which keys it signs certificates for.
    #[must_use]
    pub fn with_key_types(mut self, key_types: impl IntoIterator<Item = KeyType>) -> Self {
        self.key_types = key_types.into_iter().collect();
        self
    }

    /// Whether the CA gives the lifetime that is asked for.
    pub fn lifetime_honoured(&self) -> bool {
        self.lifetime_honoured
    }

    /// The longest lifetime, if it is known.
    pub fn max_lifetime(&self) -> Option<Duration> {
        self.max_lifetime
    }

    /// Whether it signs DNS names.
    pub fn dns_names(&self) -> bool {
        self.dns_names
    }

    /// Whether it signs further URIs.
    pub fn extra_uris(&self) -> bool {
        self.extra_uris
    }

    /// Whether it sets a common name.
    pub fn common_name(&self) -> bool {
        self.common_name
    }

    /// Whether it signs intermediates.
    pub fn intermediates(&self) -> bool {
        self.intermediates
    }

    /// The types of key that it signs certificates for.
    pub fn key_types(&self) -> &[KeyType] {
        &self.key_types
    }

    /// Refuses early, and in words, what the CA would refuse late or silently leave out.
    fn check(&self, request: &CertificateRequest) -> Result<()> {
        let spec = request.spec();
        if let Some(key_type) = request.key_type()
            && !self.key_types.contains(&key_type)
        {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "this issuer does not declare that it signs for {key_type} keys (`Capabilities::with_key_types`)"
                ),
            ));
        }
        let lacking = [
            (
                spec.profile() != Profile::Workload && !self.intermediates,
                "intermediate CAs (`Capabilities::with_intermediates`)",
            ),
            (
                !spec.dns_names().is_empty() && !self.dns_names,
                "DNS names (`Capabilities::with_dns_names`)",
            ),
            (
                !spec.uris().is_empty() && !self.extra_uris,
                "URIs beside the SPIFFE ID (`Capabilities::with_extra_uris`)",
            ),
            (
                spec.profile() == Profile::Workload
                    && spec.common_name().is_some()
                    && !self.common_name,
                "common names (`Capabilities::with_common_name`)",
            ),
        ];
        match lacking.into_iter().find(|(lacking, _)| *lacking) {
            Some((_, what)) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("this issuer does not declare that it signs {what}"),
            )),
            None => Ok(()),
        }
    }
}

/// What callers do with an issuer. Every [`Issuer`] has it, behind `dyn`, `Arc` and `Box` as well.
pub trait IssuerExt: Issuer {
    /// Makes a key, has a certificate signed for it, and verifies what came back.
    ///
    /// RSA keys take a tenth of a second or more of the calling thread; make them elsewhere and use
    /// [`issue_for`](Self::issue_for) where that matters.
    ///
    /// # Errors
    ///
    /// Those of [`Issuer::sign`], and [`ErrorKind::BadResponse`] if what came back must not be handed out.
    fn issue<'a>(
        &'a self,
        spec: &'a CertificateSpec,
        clock: &'a dyn Clock,
    ) -> impl Future<Output = Result<Identity>> + Send + 'a {
        async move {
            let key = PrivateKey::generate(spec.key_type())?;
            let request = CertificateRequest::for_key(spec.clone(), &key, clock.now())?;
            Identity::new(self.issue_for(&request, clock).await?, key)
        }
    }

    /// Has a certificate signed for a request and verifies what came back.
    ///
    /// # Errors
    ///
    /// As [`issue`](Self::issue).
    fn issue_for<'a>(
        &'a self,
        request: &'a CertificateRequest,
        clock: &'a dyn Clock,
    ) -> impl Future<Output = Result<IssuedCertificate>> + Send + 'a {
        async move {
            let named = |error: Error| error.with_context("issuer", self);
            self.capabilities().check(request).map_err(named)?;
            // First, because some CAs bill every certificate that they sign: without trust it is worth nothing.
            let bundle = self.trust_bundle().await.map_err(named)?;
            let chain = self.sign(request).await.map_err(named)?;
            let outcome = match verify::verify(&chain, request, &bundle, clock.now()) {
                Ok(certificate) => Ok(certificate),
                Err(Refusal {
                    root_unknown: true,
                    error,
                }) => match self.refresh_trust_bundle().await {
                    Ok(renewed) if renewed == bundle => Err(error),
                    Ok(renewed) => chain.verify(request, &renewed, clock.now()),
                    // The certificate may be a good one: it is worth another look, soon.
                    Err(unknown) => Err(error
                        .with_context("trust could not be refreshed", unknown)
                        .with_retry(Retry::Backoff)),
                },
                Err(Refusal { error, .. }) => Err(error),
            };
            self.settled(request, outcome.as_ref()).await;
            outcome.map_err(named)
        }
    }
}

impl<I: Issuer + ?Sized> IssuerExt for I {}

macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(
            clippy::missing_trait_methods,
            reason = "a forgotten method would silently lose what the inner one does"
        )]
        impl<I: Issuer + ?Sized> Issuer for $pointer<I> {
            fn capabilities(&self) -> Capabilities {
                (**self).capabilities()
            }

            async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
                (**self).sign(request).await
            }

            async fn trust_bundle(&self) -> Result<TrustBundle> {
                (**self).trust_bundle().await
            }

            async fn refresh_trust_bundle(&self) -> Result<TrustBundle> {
                (**self).refresh_trust_bundle().await
            }

            async fn check(&self) -> Result<CheckReport> {
                (**self).check().await
            }

            async fn settled(
                &self,
                request: &CertificateRequest,
                outcome: Result<&IssuedCertificate, &Error>,
            ) {
                (**self).settled(request, outcome).await;
            }

            fn rotation(&self) -> Option<&dyn CaRotation> {
                (**self).rotation()
            }
        }
    };
}

forward!(Arc);
forward!(Box);
