//! The roots of a CA that names its present roots only.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::verify::CLOCK_SKEW;
use crate::{IssuedCertificate, Result, TrustBundle, TrustDomain, TrustRoot};

/// How long a root counts as named after the CA has named another: answers that were under way
/// together may name either.
const OVERLAP: Duration = Duration::from_secs(300);

/// The roots of a CA that names its present ones and forgets the former ones, as cert-manager and AWS
/// Private CA do: for an [`Issuer::trust_bundle`](crate::Issuer::trust_bundle) of such a CA.
///
/// A former root goes when nothing lives under it: five minutes after another one was named, and once
/// every certificate that was accepted has ended. So what an issuer says does not depend on how long it
/// has been running; what other replicas have handed out, and what was handed out before a restart, is
/// in the record of the manager. A root that has expired goes at once.
#[derive(Debug, Default)]
pub struct NamedRoots {
    named: Option<TrustBundle>,
    /// How long each root is needed whatever is named, by its fingerprint.
    needed: BTreeMap<String, (TrustRoot, SystemTime)>,
}

impl NamedRoots {
    /// Nothing was named yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes which roots the CA has now.
    pub fn name(&mut self, roots: TrustBundle, now: SystemTime) {
        if self.named.as_ref() == Some(&roots) {
            return;
        }
        let until = now.checked_add(OVERLAP).unwrap_or(now);
        let before = self.named.replace(roots);
        for root in before.iter().flat_map(TrustBundle::roots) {
            self.need(root, until);
        }
    }

    /// Notes a certificate that was accepted: its root is needed until the certificate has ended. A root
    /// that was never named is not noted: it is one that its peers have from elsewhere.
    pub fn accept(&mut self, certificate: &IssuedCertificate) {
        let end = certificate.validity().not_after();
        let until = end.checked_add(CLOCK_SKEW).unwrap_or(end);
        let root = certificate.root();
        let named = { self.named.as_ref() }.is_some_and(|named| named.contains(root.der()));
        if named || self.needed.contains_key(root.fingerprint()) {
            self.need(root, until);
        }
    }

    fn need(&mut self, root: &TrustRoot, until: SystemTime) {
        let needed = self.needed.entry(root.fingerprint().to_owned());
        let (_, end) = needed.or_insert_with(|| (root.clone(), until));
        *end = until.max(*end);
    }

    /// Whether the CA has named a root.
    pub fn is_named(&self) -> bool {
        self.named.is_some()
    }

    /// The roots that peers must hold, without those that have expired: those named last come first.
    /// `None` if there are none.
    ///
    /// # Errors
    ///
    /// Those of [`TrustBundle::new`], which has accepted each of them before.
    pub fn roots(&mut self, domain: &TrustDomain, now: SystemTime) -> Result<Option<TrustBundle>> {
        self.needed.retain(|_, (_, until)| *until >= now);
        let named = self.named.iter().flat_map(TrustBundle::roots);
        let needed = self.needed.values().map(|(root, _)| root);
        let valid = { named.chain(needed) }
            .filter(|root| root.validity().not_after() > now)
            .map(|root| root.der().clone());
        let all = TrustBundle::new(domain.clone(), valid)?;
        Ok(Some(all).filter(|all| !all.is_empty()))
    }
}
