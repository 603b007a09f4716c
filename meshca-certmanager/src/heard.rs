//! What the answers of an issuer have shown of its CA.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use meshca_core::issuer::NamedRoots;
use meshca_core::{
    CertificateRequest, IssuedCertificate, LifetimePolicy, SignedChain, TrustBundle,
};

/// The shortest lifetime that is asked for. cert-manager has no minimum for a
/// `CertificateRequest`, unlike for a `Certificate`. A shorter one ends while it is handed out.
const SHORTEST: Duration = Duration::from_secs(60);
/// How long before its CA a certificate is to end, at most: a CA issuer counts from the moment in
/// which it signs.
pub(crate) const MARGIN: Duration = Duration::from_secs(60);

/// What answers have shown of the CA. Not a cache: an issuer names its CA in answers only, and
/// there is nothing else to ask.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<State>);

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The roots that answers name.
    pub(crate) roots: NamedRoots,
    /// The roots of `caCert`, as they were read last.
    pub(crate) pinned: Option<TrustBundle>,
    /// When the first CA above the last certificate ends.
    ca_end: Option<SystemTime>,
    /// How long a certificate lives if the issuer decides.
    own_choice: Option<Duration>,
}

impl Heard {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a certificate that was accepted.
    pub(crate) fn accepted(&self, certificate: &IssuedCertificate) {
        self.lock().roots.accept(certificate);
    }

    /// When the first CA above the last certificate ends, as far as an answer has shown it.
    pub(crate) fn ca_end(&self) -> Option<SystemTime> {
        self.lock().ca_end
    }

    /// The lifetime to ask for if the CA does not live as long as the certificate would.
    pub(crate) fn cut(&self, request: &CertificateRequest, now: SystemTime) -> Option<Duration> {
        let state = self.lock();
        let left = state.ca_end?.duration_since(now).unwrap_or_default();
        let left = left.saturating_sub(MARGIN.min(left / 10));
        let granted = match request.spec().lifetime_policy() {
            LifetimePolicy::LeftToIssuer => state.own_choice?,
            _ => request.spec().lifetime(),
        };
        // Also where nothing is left: the answer shows whether the CA was renewed.
        (granted > left).then_some(left.max(SHORTEST))
    }

    /// Takes note of when the CA ends, and returns that end if the certificate outlives it.
    /// `cut`: whether less than the request says was asked for.
    pub(crate) fn outlived(
        &self,
        chain: &SignedChain,
        request: &CertificateRequest,
        cut: bool,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let mut state = self.lock();
        let ends = chain.ends(request, state.pinned.as_ref());
        state.ca_end = ends.map(|ends| ends.issuers);
        let ends = ends?;
        if !cut && request.spec().lifetime_policy() == LifetimePolicy::LeftToIssuer {
            state.own_choice = ends.certificate.duration_since(now).ok();
        }
        (ends.certificate > ends.issuers).then_some(ends.issuers)
    }
}

/// A time that is left, for people.
pub(crate) fn hours(left: Duration) -> String {
    let minutes = left.as_secs() / 60;
    match (minutes / (24 * 60), minutes / 60, minutes % 60) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, _, _) => format!("{days} days"),
    }
}
