//! Whether proxies trust a root: the answer that every new root waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshca_core::{TrustBundle, TrustRoot};

use crate::trust::TrustLedger;
use crate::{Acknowledged, TrustVersion};

/// The gate of one mesh.
#[derive(Debug)]
pub(super) struct Gate {
    /// Whether proxies acknowledge at all.
    acknowledgements: bool,
    /// How many proxies have acknowledged what. Those that have acknowledged nothing are not
    /// among them: they trust no root yet, and are not waited for.
    acks: BTreeMap<Acknowledged, usize>,
    /// An operator has decided not to wait for proxies.
    pub(super) broken_glass: bool,
    /// Until when proxies are expected back that a control plane before this one has served.
    pub(super) returning: Option<Duration>,
    /// The version that was published last, since when, and whether those who lag were named.
    watched: Option<(TrustVersion, Duration, bool)>,
    /// The newest versions that proxies have refused, and whose proxies those are.
    rejected: BTreeMap<TrustVersion, BTreeSet<Arc<str>>>,
}

/// So many owners whose proxies refuse the same are not at fault themselves.
const SEVERAL: usize = 2;

/// How many refused versions are remembered.
const REJECTED: usize = 64;

impl Gate {
    pub(super) fn new(acknowledgements: bool) -> Self {
        Self {
            acknowledgements,
            acks: BTreeMap::new(),
            broken_glass: false,
            returning: None,
            watched: None,
            rejected: BTreeMap::new(),
        }
    }

    /// `Ok` once for each version, when those who have not acknowledged it for this long are to be named; before that, when that
    /// is.
    pub(super) fn news_of(
        &mut self,
        version: TrustVersion,
        up: Duration,
        after: Duration,
    ) -> Option<Result<(), Duration>> {
        let watched = self.watched.filter(|(known, ..)| *known == version);
        let (_, since, named) = watched.unwrap_or((version, up, false));
        let at = since.saturating_add(after);
        let is_time = at <= up;
        self.watched = Some((version, since, named || is_time));
        match (named, is_time) {
            (true, _) => None,
            (false, true) => Some(Ok(())),
            (false, false) => Some(Err(at)),
        }
    }

    /// A proxy of this owner has refused this. Returns whether the bundle is suspected from now on: one owner's proxies may refuse
    /// whatever they like, and others cannot all be at fault.
    pub(super) fn reject(&mut self, version: TrustVersion, owner: Arc<str>) -> bool {
        let owners = self.rejected.entry(version).or_default();
        // More than are needed are not kept.
        let suspects = owners.len() < SEVERAL && owners.insert(owner) && owners.len() == SEVERAL;
        if self.rejected.len() > REJECTED {
            self.rejected.pop_first();
        }
        suspects
    }

    /// Whether proxies of several owners have refused something that has the roots which this one has.
    pub(super) fn is_rejected_since(&self, since: Acknowledged) -> bool {
        let newest = self.rejected.iter().rev();
        newest
            .take_while(|(version, _)| Acknowledged::Version(**version) >= since)
            .any(|(_, owners)| owners.len() >= SEVERAL)
    }

    /// Counts what a proxy has acknowledged, instead of what it had before. Says whether the gate
    /// may give another answer now.
    pub(super) fn count(&mut self, before: Acknowledged, after: Acknowledged) -> bool {
        let least = self.least();
        if let Some(count) = self.acks.get_mut(&before) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.acks.remove(&before);
            }
        }
        if after > Acknowledged::Nothing {
            *self.acks.entry(after).or_default() += 1;
        }
        self.acknowledgements && self.least() != least
    }

    /// The least that a proxy has acknowledged; `None` where no proxy is waited for.
    pub(super) fn least(&self) -> Option<Acknowledged> {
        self.acks.keys().next().copied()
    }

    /// What a proxy is taken to have, which has acknowledged this.
    pub(super) fn taken_for(
        &self,
        acknowledged: Acknowledged,
        published: TrustVersion,
    ) -> Acknowledged {
        match self.acknowledgements {
            true => acknowledged,
            false => published.into(),
        }
    }

    /// Whether every proxy that matters trusts these roots.
    pub(super) fn is_open_for(&self, bundle: &TrustBundle, ledger: &TrustLedger) -> bool {
        let Some(since) = ledger.since(bundle) else {
            // A proxy cannot trust what is not published.
            return false;
        };
        if !self.acknowledgements || self.broken_glass {
            return true;
        }
        let lags = self.least().is_some_and(|least| since > least);
        // Proxies that are not back yet cannot be asked. But all were waited for before the first
        // certificate under a root was signed.
        let known = |root: &TrustRoot| ledger.has_signed(bundle.trust_domain(), root);
        !lags && (self.returning.is_none() || bundle.roots().iter().all(known))
    }

    /// Whether it is open for everything, always.
    pub(super) fn is_off(&self) -> bool {
        !self.acknowledgements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_counted_and_not_proxies() {
        let mut gate = Gate::new(true);
        let version = |number| TrustVersion::new(number).unwrap();
        let since = |number| Acknowledged::Version(version(number));
        for owner in ["one", "one", "one"] {
            assert!(!gate.reject(version(3), owner.into()));
        }
        // Another one refuses something else.
        assert!(!gate.reject(version(2), "two".into()));
        assert!(!gate.is_rejected_since(since(1)));
        assert!(gate.reject(version(3), "two".into()));
        assert!(!gate.reject(version(3), "three".into()), "said once");
        assert!(gate.is_rejected_since(since(3)));
        assert!(!gate.is_rejected_since(since(4)));
    }
}

/// What the proxies of a mesh have acknowledged: that every proxy trusts a root is a fact, and
/// not a delay. Who is [left behind](super::ManagerOptions::release_laggards_at) counts as one that has acknowledged nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustGate {
    /// The version of the trust that is published.
    pub version: TrustVersion,
    /// How many proxies are connected.
    pub connected: usize,
    /// The proxies that have acknowledged less, by name, with what they have acknowledged. Those
    /// whose connection was lost a moment ago are among them: they still speak with their peers.
    pub lagging: Vec<(String, Acknowledged)>,
    /// Whether proxies may still be on their way back, because the control plane [has just
    /// started](crate::manager#across-restarts) and there is a record of what they hold.
    pub returning: bool,
}

impl TrustGate {
    /// Whether every proxy trusts all that is published: none lags, and none may be on its way
    /// back.
    pub fn is_open(&self) -> bool {
        self.lagging.is_empty() && !self.returning
    }
}
