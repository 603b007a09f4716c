//! From what a CA returned to what may be handed out.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use spiffe::SpiffeId;

use crate::x509::Parsed;
use crate::{CertificateSpec, Error, ErrorKind, Result, TrustRoot, Validity, pem};

/// What a CA returned, as it returned it: **unverified**.
///
/// [`Issuer`](crate::Issuer)s make these. Order, repetition and roots among the certificates do
/// not matter: [`verify`](Self::verify) rebuilds the chain. There is nothing else that one can do with it.
#[derive(Clone, derive_more::Debug)]
pub struct SignedChain {
    #[debug("{}", certificates.len())]
    certificates: Vec<CertificateDer<'static>>,
    notes: Vec<String>,
    #[debug(skip)]
    receipt: Option<Receipt>,
    #[cfg(feature = "builtin")]
    #[debug(skip)]
    constructed: Option<Box<Constructed>>,
}

/// Shared by the clones of an answer.
type Receipt = Arc<dyn Fn(Result<&IssuedCertificate, &Error>) -> Option<Settling> + Send + Sync>;

/// Ends when an issuer has cleaned up after an answer. The work does not depend on it: it is done
/// even if this is dropped.
pub type Settling = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the CA in this process knows of a certificate because it has just built it. Only core can
/// make one, which is why it may stand in for reading the certificate back.
#[cfg(feature = "builtin")]
#[derive(Clone, Debug)]
pub(crate) struct Constructed {
    pub(crate) request: crate::CertificateRequest,
    pub(crate) serial: String,
    pub(crate) validity: Validity,
    pub(crate) root: Arc<CertificateDer<'static>>,
}

impl SignedChain {
    /// The certificates that the CA returned, in any order, with or without the root.
    pub fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        Self {
            certificates: certificates.into_iter().collect(),
            notes: Vec::new(),
            receipt: None,
            #[cfg(feature = "builtin")]
            constructed: None,
        }
    }

    /// The same from PEM. Text around the blocks is skipped (RFC 7468 §2); other blocks than certificates are refused.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadResponse`] with the line of the first fault.
    pub fn from_pem(text: &str) -> Result<Self> {
        let certificates = pem::certificates(text).map_err(|error| {
            let why = format!("the CA did not return PEM certificates: {error}");
            Error::new(ErrorKind::BadResponse, why)
        })?;
        Ok(Self::new(certificates.into_iter().map(|(_, der)| der)))
    }

    /// Adds what the CA said beside the certificates, such as Vault's `warnings`. It becomes an
    /// [`Observation::IssuerNote`].
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Has the issuer hear what became of its answer: the certificate, or why it was refused. An
    /// answer that nobody verifies is neither: the issuer must be able to find it again for the
    /// same request.
    ///
    /// It is for an issuer that leaves something at its CA – an object per request, say – and
    /// cleans it up, or that would find a refused answer again at the next attempt. Verification
    /// calls it once for each clone of the answer that is verified. It must not block: slow work
    /// belongs to a task, and the future that is returned waits for that task.
    /// [`IssuingCa`](crate::IssuingCa) awaits it, so that nothing is lost when a control plane
    /// shuts down in order.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    /// use std::sync::Arc;
    /// # use meshca_core::{Error, ErrorKind, SignedChain};
    /// # let answer = SignedChain::new([]);
    ///
    /// let refused = Arc::new(AtomicUsize::new(0));
    /// let count = refused.clone();
    /// let answer = answer.with_receipt(move |outcome| {
    ///     count.fetch_add(usize::from(outcome.is_err()), Ordering::SeqCst);
    ///     None
    /// });
    /// # drop(answer);
    /// ```
    #[must_use]
    pub fn with_receipt(
        mut self,
        receipt: impl Fn(Result<&IssuedCertificate, &Error>) -> Option<Settling> + Send + Sync + 'static,
    ) -> Self {
        self.receipt = Some(Arc::new(receipt));
        self
    }

    /// Has somebody else hear whether the answer was accepted, before the receipt does.
    pub(crate) fn with_listener(mut self, listener: impl Fn(bool) + Send + Sync + 'static) -> Self {
        let receipt = self.receipt.take();
        self.with_receipt(move |outcome| {
            listener(outcome.is_ok());
            receipt.as_ref().and_then(|receipt| receipt(outcome))
        })
    }

    /// The certificates as they came.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// What the CA said beside them.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Tells the issuer what became of its answer.
    pub(crate) fn settle(&self, outcome: Result<&IssuedCertificate, &Error>) -> Option<Settling> {
        self.receipt.as_ref().and_then(|receipt| receipt(outcome))
    }

    #[cfg(feature = "builtin")]
    pub(crate) fn constructed(certificates: Vec<CertificateDer<'static>>, by: Constructed) -> Self {
        Self {
            constructed: Some(Box::new(by)),
            ..Self::new(certificates)
        }
    }

    #[cfg(feature = "builtin")]
    pub(crate) fn construction(&self) -> Option<&Constructed> {
        self.constructed.as_deref()
    }
}

/// How an [`IssuedCertificate`] came to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, derive_more::Display)]
#[non_exhaustive]
pub enum Proof {
    /// Every signature from the leaf to the root was verified.
    #[display("every signature up to the root was verified")]
    Signatures,
    /// The CA of this process built it for this request with a key in its own memory, and its root
    /// is in the bundle.
    #[display("built by the CA in this process, whose root is in the bundle")]
    Construction,
}

/// Something unusual but sound about a certificate: to be reported, not to be refused.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[non_exhaustive]
pub enum Observation {
    /// It ends before the lifetime that was asked for.
    #[display("the CA granted {}s of the {}s asked for", granted.as_secs(), requested.as_secs())]
    #[non_exhaustive]
    ShorterLifetime {
        /// What was asked for.
        requested: Duration,
        /// What is left of it now.
        granted: Duration,
    },
    /// It ends after the lifetime that was asked for; only seen under
    /// [`LifetimePolicy::AcceptIssuer`](crate::LifetimePolicy::AcceptIssuer).
    #[display(
        "the CA granted {}s where {}s were asked for",
        granted.as_secs(),
        requested.as_secs()
    )]
    #[non_exhaustive]
    LongerLifetime {
        /// What was asked for.
        requested: Duration,
        /// What is left of it now.
        granted: Duration,
    },
    /// It becomes valid only in a moment: hold it back until then.
    #[display("it becomes valid in {}s", wait.as_secs())]
    #[non_exhaustive]
    NotYetValid {
        /// How long to wait.
        wait: Duration,
    },
    /// The CA sent the certificates in another order, repeated some, or added some that do not
    /// belong to the chain.
    #[display("the CA's chain was out of order or had extra certificates; it was rebuilt")]
    ChainRebuilt,
    /// The subject carries a common name that was not asked for.
    #[display("the CA added the common name `{}`", name.escape_debug())]
    #[non_exhaustive]
    UnrequestedCommonName {
        /// The name.
        name: String,
    },
    /// An intermediate may have any number of CAs below it, where a limit was asked for.
    #[display("the CA set no limit to the CAs below the intermediate")]
    UnlimitedPathLength,
    /// What the CA itself said.
    #[display("the CA notes: {}", _0.escape_debug())]
    IssuerNote(String),
}

/// A certificate that was **verified** for its request: right key, right names, right purpose, a
/// sound lifetime, and a path to the trust bundle.
///
/// Made by [`SignedChain::verify`] alone, so nobody can hand out one that was not.
#[derive(Clone, derive_more::Debug)]
#[debug("IssuedCertificate({}, {serial} of {}, {validity})", self.spiffe_id(), self.issuer())]
pub struct IssuedCertificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) spec: CertificateSpec,
    pub(crate) public_key: SubjectPublicKeyInfoDer<'static>,
    pub(crate) serial: String,
    pub(crate) validity: Validity,
    pub(crate) issued_at: SystemTime,
    pub(crate) usable_from: SystemTime,
    pub(crate) root: TrustRoot,
    pub(crate) proof: Proof,
    pub(crate) observations: Vec<Observation>,
}

impl IssuedCertificate {
    /// The leaf, then the intermediates in order; never the root, which peers have.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The same as PEM.
    pub fn chain_pem(&self) -> String {
        self.chain
            .iter()
            .map(|certificate| pem::encode("CERTIFICATE", certificate))
            .collect()
    }

    /// Whose certificate it is; an intermediate's is that of its trust domain.
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.spec.spiffe_id()
    }

    /// The key it is for.
    pub fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        &self.public_key
    }

    /// The serial number in lower-case hex, which is unique at its issuer (RFC 5280 §4.1.2.2).
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The name of the CA that signed it, for people: read from the leaf each time.
    pub fn issuer(&self) -> String {
        let issuers = self.read_names(|certificate| certificate.issuer());
        issuers.into_iter().next().unwrap_or_default()
    }

    /// From when to when it is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// When it was verified: what a [`RenewalPolicy`](crate::RenewalPolicy) counts from.
    pub fn issued_at(&self) -> SystemTime {
        self.issued_at
    }

    /// From when peers accept it: now, or in a moment for a CA whose clock is ahead of ours.
    pub fn usable_from(&self) -> SystemTime {
        self.usable_from
    }

    /// The subjects from the leaf to the root, for people: read from the chain each time.
    pub fn path(&self) -> Vec<String> {
        self.read_names(|certificate| certificate.subject())
    }

    /// The root that its path ends in: peers must hold it.
    pub fn root(&self) -> &TrustRoot {
        &self.root
    }

    /// How it came to be trusted.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Names are for logs and consoles; a million certificates need not carry them around.
    fn read_names(&self, name: impl Fn(&Parsed<'_>) -> String) -> Vec<String> {
        let all = self.chain.iter().chain([self.root.der()]);
        all.filter_map(|der| Parsed::read(der).ok())
            .map(|read| name(&read))
            .collect()
    }

    /// What was unusual about it.
    pub fn observations(&self) -> &[Observation] {
        &self.observations
    }
}
