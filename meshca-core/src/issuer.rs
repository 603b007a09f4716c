//! The contract between meshca and a CA.

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use crate::authorities::CaUse;
pub use crate::findings::{Evidence, Findings};
pub use crate::flight::Flight;
pub use crate::named_roots::NamedRoots;
use crate::{
    CertificateRequest, Error, ErrorKind, KeyType, Profile, Result, SignedChain, TrustBundle,
};

/// How often a CA is asked for its roots, unless it [says
/// otherwise](Capabilities::with_trust_interval): every 30 seconds.
pub const DEFAULT_TRUST_INTERVAL: Duration = Duration::from_secs(30);

/// A CA that signs certificates for workloads.
///
/// This is the side that implementors see, and it is small on purpose. An issuer sends the request
/// to its CA and returns [the answer](SignedChain); it verifies nothing, repairs nothing and never
/// sees a private key. Callers make an [`IssuingCa`](crate::IssuingCa) of it, which has everything
/// that they want.
///
/// An issuer that leaves something at its CA, or must not find a refused answer again, gives the
/// answer a [receipt](SignedChain::with_receipt).
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
///         // A request for anything that is not declared here is refused before `sign` is called.
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

    /// Asks the CA which roots peers must hold to accept what it signs, those of a prepared next
    /// CA included.
    ///
    /// [`IssuingCa`](crate::IssuingCa) remembers the answer, shares one call among all callers,
    /// and asks again. So this caches nothing: it asks where the answer is kept. An issuer that
    /// hears of roots in other ways than by asking (in the answers to requests, for instance)
    /// returns what it has heard.
    ///
    /// # Errors
    ///
    /// Those of the CA. The roots that are known already stay trusted.
    async fn trust_bundle(&self) -> Result<TrustBundle>;

    /// Whether credentials, policy and settings suffice to sign, without signing.
    ///
    /// # Errors
    ///
    /// What would keep it from signing, and what an operator has to do about it.
    async fn check(&self) -> Result<CheckReport>;
}

/// The replacement of an issuer's CA before it ends, to be driven by the holder of the issuer: it
/// looks now and then which step is due, and takes it. A [factory](crate::IssuerFactory) returns
/// it [beside the issuer](crate::registry::BuiltIssuer).
///
/// Trust comes before use. [`Prepare`](RotationStep::Prepare) puts the next root into the [trust
/// bundle](Issuer::trust_bundle). Before [`Activate`](RotationStep::Activate), the driver makes
/// sure that every peer holds it.
#[async_trait]
pub trait CaRotation: Send + Sync + 'static {
    /// Returns the step that is due now. Cheap; asks neither a CA nor a store.
    fn due(&self) -> Option<RotationStep>;

    /// Why a control plane that starts now could not load the CA, although this one signs with it: its
    /// secrets were deleted or damaged. It is found when the [trust bundle](Issuer::trust_bundle) is
    /// read. The driver reports it. Cheap; asks neither a CA nor a store.
    fn lost(&self) -> Option<Error> {
        None
    }

    /// Asks the CA above this one for its roots, where there is one that may be replaced by
    /// others: their next root belongs into the [trust bundle](Issuer::trust_bundle) before
    /// anything leads to it. The driver calls this before it reads the trust bundle. Most have
    /// nothing to do.
    ///
    /// # Errors
    ///
    /// Those of the CA above. What is known of it stays trusted.
    async fn follow(&self) -> Result<()> {
        Ok(())
    }

    /// Takes a step. One that another process has taken already changes nothing or says so.
    ///
    /// # Errors
    ///
    /// Those of the CA and its store. The CA that signed before still signs.
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
/// Everything is off until it is declared. [`IssuingCa`](crate::IssuingCa) refuses a request for
/// names or intermediates that are not declared, with [`ErrorKind::Unsupported`] and before
/// [`sign`](Issuer::sign) is called, because many CAs would silently leave them out. The rest is
/// for those who set an issuer up, and for the conformance suite, which proves what is declared.
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
    trust_interval: Duration,
}

impl Capabilities {
    /// None, for P-256 keys.
    pub fn new() -> Self {
        Self {
            key_types: vec![KeyType::P256],
            trust_interval: DEFAULT_TRUST_INTERVAL,
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

    /// Says how long a CA is not asked for its roots again ([`DEFAULT_TRUST_INTERVAL`] by
    /// default). It is longer where asking is billed or throttled, and nothing where it is only
    /// reading.
    #[must_use]
    pub fn with_trust_interval(mut self, interval: Duration) -> Self {
        self.trust_interval = interval;
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

    /// How long the CA is not asked for its roots again.
    pub fn trust_interval(&self) -> Duration {
        self.trust_interval
    }

    /// Refuses early, and in words, a request that the CA would refuse late or cut silently.
    /// [`IssuingCa`](crate::IssuingCa) calls it before each request.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] with the capability that is not declared.
    pub fn require(&self, request: &CertificateRequest) -> Result<()> {
        let spec = request.spec();
        let workload = spec.profile() == Profile::Workload;
        let unknown = |key_type: &KeyType| !self.key_types.contains(key_type);
        let what = if let Some(key_type) = request.key_type().filter(unknown) {
            &format!("for {key_type} keys (`Capabilities::with_key_types`)")
        } else if !workload && !self.intermediates {
            "intermediate CAs (`Capabilities::with_intermediates`)"
        } else if !spec.dns_names().is_empty() && !self.dns_names {
            "DNS names (`Capabilities::with_dns_names`)"
        } else if !spec.uris().is_empty() && !self.extra_uris {
            "URIs beside the SPIFFE ID (`Capabilities::with_extra_uris`)"
        } else if workload && spec.common_name().is_some() && !self.common_name {
            "common names (`Capabilities::with_common_name`)"
        } else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("this issuer does not declare that it signs {what}"),
        ))
    }
}

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

            async fn check(&self) -> Result<CheckReport> {
                (**self).check().await
            }
        }
    };
}

forward!(Arc);
forward!(Box);
