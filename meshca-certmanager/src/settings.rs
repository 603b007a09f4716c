//! What a [`CertManagerIssuer`](crate::CertManagerIssuer) is made from.

use std::time::Duration;

use meshca_core::resource::CertManagerConf;
use meshca_core::{Error, ErrorKind, Result, TrustDomain};

/// How long a request may wait for approval and signature, where the settings do not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// cert-manager's settings, and what the control plane adds to them.
///
/// | setting | default |
/// |---|---|
/// | [`with_timeout`](Self::with_timeout) | 60 s ([`DEFAULT_TIMEOUT`]) |
#[derive(Clone, Debug)]
pub struct CertManagerSettings {
    pub(crate) conf: CertManagerConf,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) namespace: String,
    pub(crate) instance: String,
    pub(crate) timeout: Duration,
}

impl CertManagerSettings {
    /// The settings of a resource, for the trust domain that the issuer signs for.
    ///
    /// `namespace`: where requests are created; an `Issuer` has to be there, too. `instance`: this replica of the control
    /// plane, as a label has it; the name of its pod, for example. No replica deletes the requests of another.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the instance cannot be the value of a label (RFC 1123, at most 63 characters).
    pub fn new(
        conf: CertManagerConf,
        trust_domain: TrustDomain,
        namespace: impl Into<String>,
        instance: impl Into<String>,
    ) -> Result<Self> {
        let instance = instance.into();
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let bytes = || instance.bytes();
        if instance.len() > 63
            || !bytes().all(sound)
            || !edge(bytes().next())
            || !edge(bytes().next_back())
        {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the instance must be fit for a label: 1 to 63 letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends",
            )
            .with_context("instance", instance.escape_debug()));
        }
        Ok(Self {
            conf,
            trust_domain,
            namespace: namespace.into(),
            instance,
            timeout: DEFAULT_TIMEOUT,
        })
    }

    /// How long a request may wait for approval and signature. What waits longer stays there, and the next call for the same
    /// request finds it.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}
