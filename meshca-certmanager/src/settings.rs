//! What a [`CertManagerIssuer`](crate::CertManagerIssuer) is made from.

use std::num::NonZeroUsize;
use std::time::Duration;

use meshca_core::resource::CertManagerConf;
use meshca_core::{Error, ErrorKind, Result, TrustDomain};

/// How long a request may wait for approval and signature, where the settings do not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How many requests may wait at the same time, where the settings do not say.
pub const DEFAULT_MAX_PENDING: NonZeroUsize = NonZeroUsize::new(100).unwrap();

/// cert-manager's settings, and what the control plane adds to them.
///
/// | setting | default | test |
/// |---|---|---|
/// | [`with_timeout`](Self::with_timeout) | 60 s ([`DEFAULT_TIMEOUT`]) | `the_defaults_of_the_settings` |
/// | [`with_max_pending`](Self::with_max_pending) | 100 ([`DEFAULT_MAX_PENDING`]) | `the_defaults_of_the_settings` |
/// | [`with_owner`](Self::with_owner) | nobody | `the_defaults_of_the_settings` |
#[derive(Clone, Debug)]
#[must_use]
pub struct CertManagerSettings {
    pub(crate) conf: CertManagerConf,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) namespace: String,
    pub(crate) instance: String,
    pub(crate) timeout: Duration,
    pub(crate) max_pending: NonZeroUsize,
    /// Name and UID of a pod.
    pub(crate) owner: Option<(String, String)>,
}

impl CertManagerSettings {
    /// The settings of a resource, for the trust domain that the issuer signs for.
    ///
    /// `namespace`: where requests are created; an `Issuer` has to be there, too. `instance`: this replica of the control
    /// plane, as a label has it; the name of its pod, for example. No replica deletes the requests of another. All issuers of a process may
    /// share one instance; two processes that run at the same time must not, or each deletes what the other waits for.
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
        let edge = |c: char| c.is_ascii_alphanumeric();
        let sound = |c: char| edge(c) || matches!(c, '-' | '_' | '.');
        let edges = instance.starts_with(edge) && instance.ends_with(edge);
        if instance.len() > 63 || !edges || !instance.chars().all(sound) {
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
            max_pending: DEFAULT_MAX_PENDING,
            owner: None,
        })
    }

    /// How long a request may wait for approval and signature. What waits longer stays there for as long again, and a call for
    /// the same request finds it; then it is deleted, at the next of the clean-ups that are a timeout (and at least a second) apart.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many calls of an issuer may wait for cert-manager at the same time. Further calls wait their turn, which does not count
    /// against the timeout: cert-manager's own limits decide how fast it goes.
    ///
    /// There may be more `CertificateRequest`s than that: one that is signed stays until its certificate was verified, and one that was given
    /// up as [`with_timeout`](Self::with_timeout) says. Where nobody approves, these are up to three times as many.
    pub fn with_max_pending(mut self, max: NonZeroUsize) -> Self {
        self.max_pending = max;
        self
    }

    /// The pod that the control plane runs in, by its name and UID (which the downward API gives). It must be in the namespace of the
    /// requests.
    ///
    /// What a process that was killed has left is cleaned up by the next one of the same instance. Where pods come and go under
    /// ever new names, no such one may come; with an owner, Kubernetes deletes what the pod left when it is gone.
    pub fn with_owner(mut self, pod: impl Into<String>, uid: impl Into<String>) -> Self {
        self.owner = Some((pod.into(), uid.into()));
        self
    }
}

#[cfg(test)]
mod tests {
    use meshca_core::resource::IssuerRef;

    use super::*;

    fn settings(instance: &str) -> Result<CertManagerSettings> {
        let conf = CertManagerConf::new(IssuerRef::new("mesh-ca"));
        CertManagerSettings::new(conf, TrustDomain::new("default").unwrap(), "mesh", instance)
    }

    #[test]
    fn the_defaults_of_the_settings() {
        let settings = settings("replica-1").unwrap();
        assert_eq!(settings.timeout, Duration::from_secs(60));
        assert_eq!(settings.max_pending.get(), 100);
        assert_eq!(settings.owner, None);
    }

    #[test]
    fn an_instance_is_the_value_of_a_label() {
        for sound in ["a", "A.b_c-9", &"x".repeat(63)] {
            let _ = settings(sound).unwrap();
        }
        for broken in ["", "-a", "a.", "a b", "ä", "a/b", &"x".repeat(64)] {
            let error = settings(broken).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains("fit for a label"), "{error}");
        }
    }
}
