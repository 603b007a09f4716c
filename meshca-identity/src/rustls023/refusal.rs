//! Why a peer is refused, in words and as a name to count by.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use meshca_core::peer::Refusal;
use rustls::{CertificateError, OtherError};

/// The rule that a refused peer broke. Few and stable, so it can be a metric label ([`as_str`](Self::as_str)).
///
/// ```
/// use meshca_identity::rustls023::PeerRule;
///
/// let error = rustls::Error::NoCertificatesPresented;
/// assert_eq!(PeerRule::find(&error), Some(PeerRule::NoCertificate));
/// assert_eq!(PeerRule::find(&rustls::Error::DecryptError), None);
/// ```
#[derive(Clone, Copy, Debug, derive_more::Display, PartialEq, Eq, Hash)]
#[display("{}", self.as_str())]
#[non_exhaustive]
pub enum PeerRule {
    /// It showed no certificate.
    NoCertificate,
    /// Its certificate, or one of its chain, cannot be read.
    Encoding,
    /// Its certificate does not carry exactly one URI that is the SPIFFE ID of a workload (SPIFFE X.509-SVID §2, §3.1).
    SpiffeId,
    /// Its certificate is one to sign certificates with (SPIFFE X.509-SVID §5.2).
    NotALeaf,
    /// There are no roots for the trust domain in its SPIFFE ID.
    UnknownTrustDomain,
    /// Its chain does not lead to a root of the trust domain in its SPIFFE ID (RFC 5280 §6).
    Path,
    /// A certificate of its chain is expired or not valid yet.
    Validity,
    /// Its certificate is for another purpose (RFC 5280 §4.2.1.12).
    Purpose,
    /// It is who it says, and not among those that are allowed.
    NotAllowed,
}

impl PeerRule {
    /// A stable, lower-case name: `spiffe_id`, `not_allowed`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Encoding => "encoding",
            Self::SpiffeId => "spiffe_id",
            Self::NotALeaf => "not_a_leaf",
            Self::UnknownTrustDomain => "unknown_trust_domain",
            Self::Path => "path",
            Self::Validity => "validity",
            Self::Purpose => "purpose",
            Self::NotAllowed => "not_allowed",
        }
    }

    /// The rule behind the error of a handshake: a [`rustls::Error`], or an [`io::Error`] around one. `None` if the handshake
    /// failed for another reason, such as the peer refusing *us*.
    pub fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        rustls_error(error).and_then(Self::of)
    }

    /// The same in words for a log, with who the peer is where that is known: rustls itself prints only how it keeps them.
    pub fn explain(error: &(dyn StdError + 'static)) -> Option<String> {
        let error = rustls_error(error)?;
        let rule = Self::of(error)?;
        Some(match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.to_string()
            }
            rustls::Error::NoCertificatesPresented => "the peer showed no certificate".to_owned(),
            other => format!("{other} ({rule})"),
        })
    }

    fn of(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::NoCertificatesPresented => Some(Self::NoCertificate),
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYetContext { .. } => Some(Self::Validity),
                CertificateError::BadEncoding => Some(Self::Encoding),
                CertificateError::Other(OtherError(inner)) => inner
                    .downcast_ref::<PeerRefusal>()
                    .map(|refusal| refusal.rule),
                _ => None,
            },
            _ => None,
        }
    }
}

fn rustls_error<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error);
        }
        // `source` of an I/O error skips the error that it wraps.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// What stands in the [`OtherError`] of rustls.
#[derive(Debug, derive_more::Display, derive_more::Error)]
#[display("{message}")]
pub(super) struct PeerRefusal {
    rule: PeerRule,
    message: String,
}

impl PeerRefusal {
    pub(super) fn new(rule: PeerRule, message: impl Into<String>) -> Self {
        Self {
            rule,
            message: message.into(),
        }
    }
}

impl From<PeerRefusal> for rustls::Error {
    fn from(refusal: PeerRefusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Returns the error by which rustls refuses this peer. Where rustls has one of its own for the rule,
/// it is that one, so that the peer receives the alert that fits.
pub(super) fn refused(refusal: Refusal) -> rustls::Error {
    let rule = match refusal {
        Refusal::Expired {
            time, not_after, ..
        } => return CertificateError::ExpiredContext { time, not_after }.into(),
        Refusal::NotYetValid {
            time, not_before, ..
        } => return CertificateError::NotValidYetContext { time, not_before }.into(),
        Refusal::Encoding(_) => PeerRule::Encoding,
        Refusal::SpiffeId(_) => PeerRule::SpiffeId,
        Refusal::NotALeaf(_) => PeerRule::NotALeaf,
        Refusal::UnknownTrustDomain(_) => PeerRule::UnknownTrustDomain,
        Refusal::Purpose(_) => PeerRule::Purpose,
        // The rules that core may add are about the path.
        _ => PeerRule::Path,
    };
    PeerRefusal::new(rule, refusal.to_string()).into()
}
