//! One error type for every issuer, store and resource.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What every fallible function of the meshca crates returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done, what may be tried next, and where it happened.
///
/// The type is one word wide and cheap to clone, so an error can be kept as the last one seen and
/// shared between all who waited for the same attempt. [`Display`](fmt::Display) prints the message and the
/// context, never the [source](std::error::Error::source) (reporters walk the chain themselves) and
/// never a secret: messages are written by code that names settings, not their values.
///
/// # Example
///
/// ```
/// use meshca_core::{Error, ErrorKind, Retry};
///
/// let error = Error::new(ErrorKind::Denied, "the CA refused to sign: grant `update` on `pki/sign/mesh-dp`")
///     .with_context("backend", "vault-ca");
/// assert_eq!(error.retry(), Retry::Never);
/// assert_eq!(
///     error.to_string(),
///     "the CA refused to sign: grant `update` on `pki/sign/mesh-dp` (backend: vault-ca)"
/// );
/// ```
#[derive(Clone, derive_more::Debug)]
#[debug("{_0:?}")]
pub struct Error(Arc<Inner>);

#[derive(Clone, derive_more::Debug)]
#[debug("Error({kind:?}, {message:?}, {context:?}, {retry:?}, {source:?})")]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    retry: Retry,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of the given kind. The message says what went wrong and what to do next.
    ///
    /// The [retry advice](Error::retry) is the kind's own until [`with_retry`](Error::with_retry)
    /// overrides it.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            context: Vec::new(),
            retry: kind.default_retry(),
            source: None,
        }))
    }

    /// Adds where it happened, as a name and a value: `("backend", "vault-ca")`. Never a secret.
    #[must_use]
    pub fn with_context(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.inner().context.push((name, value.to_string()));
        self
    }

    /// Overrides the kind's retry advice.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.inner().retry = retry;
        self
    }

    /// Attaches the underlying error.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.inner().source = Some(Arc::from(source.into()));
        self
    }

    /// What sort of failure this is; match on it, never on the text.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether and when trying the same thing again can help.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// The message without context.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened, in the order in which it was added.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let context = self.0.context.iter();
        context.map(|(name, value)| (*name, value.as_str()))
    }

    fn inner(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for (index, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}: {value}", if index == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.0.source.as_deref()?)
    }
}

/// The sort of an [`Error`]. Low in number and stable, so it can be a metric label
/// ([`as_str`](ErrorKind::as_str)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The CA answered, but not with what it must answer: a foreign key, an extra name, a broken chain.
    BadResponse,
    /// Somebody else changed the same thing first; read it again.
    Conflict,
    /// Known, but not allowed: a policy, a role, an approver said no.
    Denied,
    /// A setting is wrong; nothing but a change of configuration helps.
    InvalidConfig,
    /// The request itself is wrong: a malformed CSR, a foreign trust domain.
    InvalidRequest,
    /// What was named does not exist.
    NotFound,
    /// Too many requests, or a quota is used up.
    RateLimited,
    /// No answer in time. Whether it was carried out is unknown.
    Timeout,
    /// Who we are is not known (any more): a missing, wrong or expired credential.
    Unauthenticated,
    /// Not reachable, or reachable and not able to work now.
    Unavailable,
    /// Asked for something this implementation cannot do.
    Unsupported,
    /// A defect of ours or of a library.
    Internal,
}

impl ErrorKind {
    /// A stable, lower-case name: `bad_response`, `rate_limited`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadResponse => "bad_response",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::InvalidConfig => "invalid_config",
            Self::InvalidRequest => "invalid_request",
            Self::NotFound => "not_found",
            Self::RateLimited => "rate_limited",
            Self::Timeout => "timeout",
            Self::Unauthenticated => "unauthenticated",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }

    fn default_retry(self) -> Retry {
        match self {
            Self::RateLimited | Self::Timeout | Self::Unavailable => Retry::Backoff,
            _ => Retry::Never,
        }
    }
}

/// Whether and when it makes sense to try the same thing again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// The same request will fail in the same way.
    Never,
    /// It may pass later: wait, longer each time.
    Backoff,
    /// The server said when: not before this much time has passed.
    After(Duration),
}
