//! The trust of one mesh: which roots its workloads hold, since when, and when one may go.
//!
//! Trust comes before use: a root is published before any certificate under it is handed out. And
//! it goes last: it stays until no certificate that was handed out under it can still be valid,
//! also if its CA or its MeshTrust does not list it any more. Kuma never removes a root, and
//! Linkerd removed one too early (linkerd2#4287).
//!
//! What replicas have handed out is known from the record that they share, and their clocks may be
//! wrong: its roots stay for a day longer. Nothing is removed by a clock that disagrees with the record.
//!
//! A root in a MeshTrust of an operator stays as long as it stands there. Only roots that came
//! from a CA of the manager are retired: when nothing needs them, and when they have ended.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshca_core::{Result, TrustBundle, TrustDomain, TrustRoot};

use crate::record::{Record, RootId, Said, Used, roots_of};
use crate::watch::MARGIN;
use crate::{Acknowledged, BackendKey, TrustBundles, TrustVersion};

/// How much longer than a certificate its root is kept: peers' clocks may be behind ours.
const CLOCK_SKEW: Duration = meshca_core::verify::CLOCK_SKEW;

/// Who says that a root is to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The issuer of a CA.
    Backend(BackendKey),
    /// A MeshTrust that an operator wrote, by namespace and name.
    Resource(String, String),
}

impl Origin {
    pub(crate) fn is_resource(&self) -> bool {
        self.backend().is_none()
    }

    fn backend(&self) -> Option<&BackendKey> {
        match self {
            Self::Backend(key) => Some(key),
            Self::Resource(..) => None,
        }
    }
}

/// The certificates that were handed out under a root.
#[derive(Debug)]
struct Use {
    /// The root alone.
    bundle: TrustBundle,
    backend: BackendKey,
    /// Each workload that holds a certificate under it now has a clone.
    holders: Holding,
    /// When the last certificate under it ends that this control plane has handed out. A workload
    /// that was forgotten may still present it, so this counts beside the holders.
    until: Option<SystemTime>,
    /// The same of other control planes, as the shared record has it.
    recorded: Option<SystemTime>,
    /// Whether a certificate was signed under it, here or by a control plane before. Then proxies
    /// were waited for. Else the root is only kept in case.
    signed: bool,
}

/// Reference count of the workloads that hold a certificate under a root. Each holder keeps a
/// clone. Dropping it releases the root without parsing the certificate that was replaced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holding(Arc<()>);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct TrustLedger {
    /// The roots that each origin lists now.
    sources: BTreeMap<Origin, TrustBundle>,
    /// The roots that certificates need, by trust domain and fingerprint, whether or not an
    /// origin lists them.
    uses: BTreeMap<TrustDomain, BTreeMap<String, Use>>,
    /// The least that a proxy has acknowledged which trusts the root: a root that was in use
    /// before this process began is trusted by proxies that have only what they had then.
    since: BTreeMap<RootId, Acknowledged>,
    /// The CAs of each published root. A CA can be gone before its root is, and plans ask whose
    /// root it was.
    owners: BTreeMap<RootId, BTreeSet<BackendKey>>,
    /// The CAs of which a root was taken away, with the version that did: proxies with less than
    /// that may still trust it.
    gone: BTreeMap<BackendKey, TrustVersion>,
    version: TrustVersion,
    published: Arc<TrustBundles>,
    /// Whether sources or uses have changed since the last publication.
    stale: bool,
    /// Roots that CAs name although they have ended. Nothing below one is accepted, so it is not
    /// published.
    ended: BTreeSet<RootId>,
    /// Whether something is trusted only because the clock is doubted.
    withheld: bool,
}

impl TrustLedger {
    /// An empty ledger, whose first publication has the version after this.
    pub(crate) fn after(version: TrustVersion) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }

    /// The published trust and its version.
    pub(crate) fn published(&self) -> (Arc<TrustBundles>, TrustVersion) {
        (Arc::clone(&self.published), self.version)
    }

    /// Takes the roots that this origin lists now. They take effect with
    /// [`publish`](Self::publish).
    pub(crate) fn set(&mut self, origin: Origin, bundle: TrustBundle) {
        self.stale |= self.sources.get(&origin) != Some(&bundle);
        if let Origin::Backend(key) = &origin {
            self.gone.remove(key);
        }
        self.sources.insert(origin, bundle);
    }

    /// Forgets an origin.
    pub(crate) fn unset(&mut self, origin: &Origin) {
        self.stale |= self.sources.remove(origin).is_some();
    }

    /// Forgets all MeshTrusts, and returns what they listed.
    pub(crate) fn take_resources(&mut self) -> BTreeMap<Origin, TrustBundle> {
        let sources = std::mem::take(&mut self.sources).into_iter();
        let (gone, kept): (BTreeMap<_, _>, _) =
            sources.partition(|(origin, _)| origin.is_resource());
        self.sources = kept;
        self.stale |= !gone.is_empty();
        gone
    }

    /// All origins.
    pub(crate) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.sources.keys()
    }

    /// Records a certificate under this root. The caller hands it out only once the root [is
    /// published](Self::holds). The root stays published for as long as the certificate is held,
    /// and for as long as it may be valid.
    pub(crate) fn hold(
        &mut self,
        backend: &BackendKey,
        domain: &TrustDomain,
        root: &TrustRoot,
        until: SystemTime,
    ) -> Option<Holding> {
        let found = self.use_of(backend, domain, root)?;
        found.until = found.until.max(Some(until));
        found.signed = true;
        Some(found.holders.clone())
    }

    /// Records what a control plane before this one has handed out. Every proxy that it served
    /// trusts the roots that it signed under, so a proxy that comes back with its trust does.
    pub(crate) fn recall(&mut self, used: &Used) {
        self.share(used);
        if used.signed {
            let since = roots_of(&used.bundle).map(|root| (root, Acknowledged::FromBefore));
            self.since.extend(since);
        }
    }

    /// Records what a control plane beside this one, or before it, has handed out.
    pub(crate) fn share(&mut self, used: &Used) {
        let domain = used.bundle.trust_domain();
        for root in used.bundle.roots() {
            if let Some(found) = self.use_of(&used.backend, domain, root) {
                found.signed |= used.signed;
                found.recorded = found.recorded.max(Some(used.until));
            }
        }
    }

    /// Keeps a root under which certificates of before may be valid until then. Saying so again
    /// does not prolong it.
    pub(crate) fn keep(
        &mut self,
        backend: &BackendKey,
        domain: &TrustDomain,
        root: &TrustRoot,
        now: SystemTime,
        until: SystemTime,
    ) {
        let known = self.known_use(domain, root);
        let is_over = |it: &mut Use| it.until.max(it.recorded).is_none_or(|end| end < now);
        if known.is_none_or(is_over)
            && let Some(found) = self.use_of(backend, domain, root)
        {
            found.until = found.until.max(Some(until));
        }
    }

    fn known_use(&mut self, domain: &TrustDomain, root: &TrustRoot) -> Option<&mut Use> {
        self.uses.get_mut(domain)?.get_mut(root.fingerprint())
    }

    fn use_of(
        &mut self,
        backend: &BackendKey,
        domain: &TrustDomain,
        root: &TrustRoot,
    ) -> Option<&mut Use> {
        if self.known_use(domain, root).is_none() {
            let new = Use {
                bundle: TrustBundle::new(domain.clone(), [root.der().clone()]).ok()?,
                backend: backend.clone(),
                holders: Holding::default(),
                until: None,
                recorded: None,
                signed: false,
            };
            let uses = self.uses.entry(domain.clone()).or_default();
            uses.insert(root.fingerprint().to_owned(), new);
            self.stale = true;
        }
        self.known_use(domain, root)
    }

    /// Whether a certificate was signed under this root.
    pub(crate) fn has_signed(&self, domain: &TrustDomain, root: &TrustRoot) -> bool {
        let uses = self.uses.get(domain);
        let found = uses.and_then(|uses| uses.get(root.fingerprint()));
        found.is_some_and(|it| it.signed)
    }

    /// The roots that a CA named last.
    pub(crate) fn said(&self, key: &BackendKey) -> Option<&TrustBundle> {
        self.sources.get(&Origin::Backend(key.clone()))
    }

    /// Whether something is trusted only because the clock is doubted.
    pub(crate) fn is_withheld(&self) -> bool {
        self.withheld
    }

    /// Whether sources or uses are not published yet.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// The record for a control plane after this one. `ca` names the type of each CA.
    pub(crate) fn record<'a>(&self, ca: impl Fn(&BackendKey) -> Option<&'a str>) -> Record {
        let said = self.sources.iter().filter_map(|(origin, bundle)| {
            let key = origin.backend()?;
            let said = Said {
                ca: ca(key)?.to_owned(),
                bundle: bundle.clone(),
            };
            Some((key.clone(), said))
        });
        let used = self.uses.iter().flat_map(|(domain, uses)| {
            uses.iter().filter_map(|(root, it)| {
                let used = Used {
                    backend: it.backend.clone(),
                    bundle: it.bundle.clone(),
                    until: it.until.max(it.recorded)?,
                    signed: it.signed,
                };
                Some(((domain.clone(), root.clone()), used))
            })
        });
        Record {
            said: said.collect(),
            used: used.collect(),
        }
    }

    /// The roots that this control plane has handed out certificates under, with the end of the last
    /// one.
    pub(crate) fn needs(&self) -> impl Iterator<Item = (RootId, SystemTime)> {
        self.uses.iter().flat_map(|(domain, uses)| {
            let of = move |(root, it): (&String, &Use)| {
                Some(((domain.clone(), root.clone()), it.until?))
            };
            uses.iter().filter_map(of)
        })
    }

    /// All that origins list for this trust domain.
    pub(crate) fn listed(&self, domain: &TrustDomain) -> Result<TrustBundle> {
        let sources = self.sources.values();
        let mut of_domain = sources.filter(|it| it.trust_domain() == domain);
        of_domain.try_fold(TrustBundle::new(domain.clone(), [])?, |all, it| {
            all.union(it)
        })
    }

    /// Whether this root is published.
    pub(crate) fn holds(&self, domain: &TrustDomain, root: &TrustRoot) -> bool {
        self.published
            .get(domain)
            .is_some_and(|bundle| bundle.contains(root.der()))
    }

    /// The least that a proxy has acknowledged which trusts all of these roots; `None` if one of
    /// them is not published.
    pub(crate) fn since(&self, bundle: &TrustBundle) -> Option<Acknowledged> {
        roots_of(bundle)
            // One that has ended is nobody's to trust.
            .filter(|root| !self.ended.contains(root))
            .map(|root| self.since.get(&root).copied())
            .try_fold(Acknowledged::Nothing, |latest, since| {
                Some(latest.max(since?))
            })
    }

    /// The CAs whose roots a proxy may hold that has acknowledged this, although no CA lists them
    /// any more. Certificates under them can still be valid, or the proxy has not heard yet that
    /// they were taken away.
    pub(crate) fn left(&self, acknowledged: Acknowledged) -> BTreeSet<&BackendKey> {
        let stands_for = |(domain, root): &RootId| {
            self.sources.values().any(|it| {
                let mut roots = it.roots().iter();
                it.trust_domain() == domain && roots.any(|it| it.fingerprint() == root)
            })
        };
        let kept = self.owners.iter().filter(|(root, _)| !stands_for(root));
        let gone = self
            .gone
            .iter()
            .filter(|(_, version)| Acknowledged::Version(**version) > acknowledged);
        kept.flat_map(|(_, owners)| owners)
            .chain(gone.map(|(key, _)| key))
            .collect()
    }

    /// The roots of each CA: those that it named last, and those that certificates need.
    fn of_backends(&self) -> impl Iterator<Item = (&BackendKey, &TrustBundle)> {
        let own = self.sources.iter();
        let own = own.filter_map(|(origin, bundle)| Some((origin.backend()?, bundle)));
        let kept = self.uses.values().flat_map(BTreeMap::values);
        own.chain(kept.map(|it| (&it.backend, &it.bundle)))
    }

    /// Whether a CA has a root here, named or needed.
    pub(crate) fn is_of(&self, backend: &BackendKey) -> bool {
        self.of_backends().any(|(key, _)| key == backend)
    }

    /// Forgets the CAs whose roots were taken away before a version that all have.
    pub(crate) fn forget_gone(&mut self, least: Acknowledged) {
        let is_seen = |version: &TrustVersion| Acknowledged::Version(*version) <= least;
        self.gone.retain(|_, version| !is_seen(version));
    }

    /// Notes the CAs of all roots.
    fn note_owners(&mut self) {
        let mut owners = std::mem::take(&mut self.owners);
        for (key, bundle) in self.of_backends() {
            for root in roots_of(bundle) {
                owners.entry(root).or_default().insert(key.clone());
            }
        }
        self.owners = owners;
    }

    /// Publishes the roots that origins list and certificates need, and retires the others. Says
    /// whether the trust has changed. A clock that is doubted retires nothing.
    pub(crate) fn publish(&mut self, now: SystemTime, clock_agrees: bool) -> Result<bool> {
        let count = |uses: &BTreeMap<_, BTreeMap<_, _>>| uses.values().map(BTreeMap::len).sum();
        let before: usize = count(&self.uses);
        let ended = match clock_agrees {
            true => self.ended_by(now),
            false => std::mem::take(&mut self.ended),
        };
        let sources = &self.sources;
        let lasts = |end: SystemTime, margin| {
            let end = end.checked_add(margin);
            end.is_none_or(|end| end >= now)
        };
        let in_use = |it: &Use| {
            if roots_of(&it.bundle).all(|root| ended.contains(&root)) {
                return false;
            }
            // A root that its CA still names keeps `signed`: proxies that come back are not
            // waited for again.
            let said = sources.get(&Origin::Backend(it.backend.clone()));
            let has = |said: &TrustBundle| {
                said.trust_domain() == it.bundle.trust_domain()
                    && it
                        .bundle
                        .roots()
                        .iter()
                        .all(|root| said.contains(root.der()))
            };
            let held = Arc::strong_count(&it.holders.0) > 1;
            said.is_some_and(has)
                || it.until.is_some_and(|end| lasts(end, CLOCK_SKEW))
                || it.recorded.is_some_and(|end| lasts(end, MARGIN))
                // A certificate that has ended needs nothing, whoever holds it. Clocks are set.
                || held && it.until.is_some_and(|end| lasts(end, MARGIN))
        };
        let mut withheld = false;
        for uses in self.uses.values_mut() {
            uses.retain(|_, it| {
                let in_use = in_use(it);
                withheld |= !in_use;
                in_use || !clock_agrees
            });
        }
        self.withheld = withheld && !clock_agrees;
        self.uses.retain(|_, uses| !uses.is_empty());
        self.stale |= self.ended != ended && clock_agrees;
        self.ended = ended;
        if !self.stale && count(&self.uses) == before {
            return Ok(false);
        }
        self.stale = true;
        let mut bundles = TrustBundles::new();
        let kept = self.uses.values().flat_map(BTreeMap::values);
        for (origin, bundle) in &self.sources {
            match origin {
                Origin::Backend(_) => bundles.add(&self.living(bundle)?)?,
                Origin::Resource(..) => bundles.add(bundle)?,
            }
        }
        for it in kept {
            bundles.add(&it.bundle)?;
        }
        self.stale = false;
        self.note_owners();
        let roots =
            |it: &TrustBundles| -> BTreeSet<RootId> { it.iter().flat_map(roots_of).collect() };
        let domains =
            |it: &TrustBundles| Vec::from_iter(it.iter().map(|it| it.trust_domain().clone()));
        let before = (roots(&self.published), domains(&self.published));
        let roots = roots(&bundles);
        // The same roots in another order are not a reason to push to every proxy.
        if before == (roots.clone(), domains(&bundles)) {
            return Ok(false);
        }
        self.version = self.version.next();
        self.since.retain(|root, _| roots.contains(root));
        let (version, gone) = (self.version, &mut self.gone);
        self.owners.retain(|root, owners| {
            let there = roots.contains(root);
            if !there {
                gone.extend(owners.iter().map(|owner| (owner.clone(), version)));
            }
            there
        });
        for root in roots {
            let since = Acknowledged::Version(self.version);
            self.since.entry(root).or_insert(since);
        }
        self.published = Arc::new(bundles);
        Ok(true)
    }

    /// Roots of CAs that have ended by now, for peers with slow clocks too.
    fn ended_by(&self, now: SystemTime) -> BTreeSet<RootId> {
        let of = |bundle: &TrustBundle| {
            let has_ended = |root: &&TrustRoot| {
                let end = root.validity().not_after().checked_add(MARGIN);
                end.is_some_and(|end| end < now)
            };
            let domain = bundle.trust_domain().clone();
            let roots = bundle.roots().iter().filter(has_ended);
            roots
                .map(|root| (domain.clone(), root.fingerprint().to_owned()))
                .collect::<Vec<_>>()
        };
        self.of_backends()
            .flat_map(|(_, bundle)| of(bundle))
            .collect()
    }

    /// The roots of a bundle that have not ended.
    fn living(&self, bundle: &TrustBundle) -> Result<TrustBundle> {
        let mut living = bundle.clone();
        for root in bundle.roots() {
            let id = (bundle.trust_domain().clone(), root.fingerprint().to_owned());
            if self.ended.contains(&id) {
                living = living.without_root(root.der())?;
            }
        }
        Ok(living)
    }

    /// The content of MeshTrusts, for each CA and each trust domain: its roots, and those of
    /// before that certificates need.
    pub(crate) fn by_backend(&self) -> Result<BTreeMap<(BackendKey, TrustDomain), TrustBundle>> {
        let mut all: BTreeMap<(BackendKey, TrustDomain), TrustBundle> = BTreeMap::new();
        for (key, bundle) in self.of_backends() {
            let id = (key.clone(), bundle.trust_domain().clone());
            let bundle = self.living(bundle)?;
            let both = match all.get(&id) {
                Some(known) => known.union(&bundle)?,
                None => bundle,
            };
            all.insert(id, both);
        }
        Ok(all)
    }

    /// Roots that end before this time, with when they end.
    pub(crate) fn ending_before(&self, time: SystemTime) -> Vec<(TrustDomain, TrustRoot)> {
        let of = |bundle: &TrustBundle| {
            let domain = bundle.trust_domain().clone();
            let ending = bundle
                .roots()
                .iter()
                .filter(|root| root.validity().not_after() < time);
            ending
                .map(|root| (domain.clone(), root.clone()))
                .collect::<Vec<_>>()
        };
        self.published.iter().flat_map(of).collect()
    }
}
