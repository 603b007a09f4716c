//! Whom a workload believes: the bundles of all trust domains of its mesh.

use std::collections::BTreeMap;
use std::fmt;

use meshca_core::{Result, SpiffeId, TrustBundle, TrustDomain};

/// One [`TrustBundle`] for each trust domain.
///
/// A peer is judged by the roots of the trust domain in its own SPIFFE ID and by no others (SPIFFE X509-SVID §5.1): a root of one
/// domain must not vouch for another.
///
/// ```
/// use meshca_core::{TrustBundle, TrustDomain};
/// use meshca_identity::TrustBundles;
///
/// # let pem = include_str!("../../meshca-core/tests/data/root.pem");
/// let domain = TrustDomain::new("example.org").expect("a trust domain");
/// let mut bundles = TrustBundles::new();
/// bundles.add(&TrustBundle::from_pem(domain.clone(), pem)?)?;
/// assert_eq!(bundles.get(&domain).map(|bundle| bundle.roots().len()), Some(1));
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct TrustBundles(BTreeMap<TrustDomain, TrustBundle>);

impl TrustBundles {
    /// Nobody is believed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the roots of a bundle to those of its trust domain.
    ///
    /// # Errors
    ///
    /// Those of [`TrustBundle::union`].
    pub fn add(&mut self, bundle: &TrustBundle) -> Result<()> {
        let domain = bundle.trust_domain();
        let all = match self.0.get(domain) {
            Some(known) => known.union(bundle)?,
            None => bundle.clone(),
        };
        self.0.insert(domain.clone(), all);
        Ok(())
    }

    /// The same, for peers that let a chain end in an intermediate.
    pub(crate) fn with_partial_chains(&self) -> Self {
        let all = self.0.iter();
        let all = all.map(|(domain, it)| (domain.clone(), it.clone().allow_partial_chains(true)));
        Self(all.collect())
    }

    /// The roots of a trust domain.
    pub fn get(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        self.0.get(domain)
    }

    /// The roots that a peer of this name is judged by.
    pub fn for_peer(&self, peer: &SpiffeId) -> Option<&TrustBundle> {
        self.0.get(peer.trust_domain())
    }

    /// All, in the order of their trust domains.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.0.values()
    }

    /// Whether there is no trust domain.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.iter().map(|(domain, bundle)| {
                let roots: Vec<_> = bundle.roots().iter().map(|it| it.fingerprint()).collect();
                (domain.to_string(), roots)
            }))
            .finish()
    }
}
