//! One mesh: its CAs, its trust, and what was selected by its resources.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshca_core::registry::BackendRegistry;
use meshca_core::resource::{Form, Kri, MeshIdentity, MeshTrust, Metadata};
use meshca_core::{Error, ErrorKind, Result, RotationStep, TrustBundle, TrustDomain, TrustRoot};

use super::backend::{Backend, Reach, Wanted};
use super::cell::{MeshCell, PublishedTrust};
use super::gate::Gate;
use super::options::ManagerOptions;
use super::setup::guarded;
use super::status::{self, CaStatus, IdentityStatus};
use crate::record::{Claims, Record, RootId};
use crate::schedule::{LaneId, Now};
use crate::select::IdentityRules;
use crate::trust::{Origin, TrustLedger};
use crate::watch::ClockWatch;
use crate::{BackendKey, MeshResources, TrustVersion};

/// See the [module](self).
pub(super) struct Mesh {
    /// Everything that readers see.
    pub(super) cell: Arc<MeshCell>,
    /// As they were applied: plans compare them with what they ask for.
    pub(super) resources: Option<MeshResources>,
    /// As they are in force: a MeshIdentity that has become unusable stays what it was.
    pub(super) effective: Option<MeshResources>,
    /// The metadata of MeshIdentities that the resources have, or once had: their MeshTrusts
    /// outlive them.
    pub(super) named: BTreeMap<String, Metadata>,
    pub(super) rules: Option<IdentityRules>,
    pub(super) backends: BTreeMap<BackendKey, Backend>,
    pub(super) ledger: TrustLedger,
    pub(super) gate: Gate,
    pub(super) recorded: Recorded,
    /// What the MeshTrusts have that were generated for CAs of this mesh.
    pub(super) announced: BTreeMap<BackendKey, TrustBundle>,
    /// The roots that were warned of.
    pub(super) warned: BTreeSet<String>,
    /// The roots in MeshTrusts that are left out, as observers were told.
    pub(super) left_out: BTreeSet<String>,
}

/// The record of a mesh in the secret store, for control planes that come after this one.
#[derive(Default)]
pub(super) struct Recorded {
    /// The record as this process has read or written it last.
    pub(super) stored: Record,
    /// The CAs that this process has had: those that are gone leave the record, and those of
    /// other replicas stay in it.
    pub(super) had: BTreeSet<BackendKey>,
    /// A write is under way: the next one compares with its result.
    pub(super) busy: bool,
    /// The end of the backoff after a failed write.
    pub(super) write_at: Duration,
    /// What this process has said in it.
    pub(super) claims: Claims,
    /// Whether this control plane's clock may end what is in it.
    pub(super) clock: ClockWatch,
    /// Observers were told that it may not.
    pub(super) told: bool,
    /// When the record is read again although it should be as it was written: others write, and
    /// delete.
    pub(super) compare_at: Duration,
    pub(super) failures: u32,
}

impl Mesh {
    pub(super) fn new(cell: Arc<MeshCell>, version: TrustVersion, acknowledgements: bool) -> Self {
        // A mesh that comes back goes on counting; one that is new counts from where nobody has been before.
        let version = version.max(cell.trust.load().version);
        let trust = PublishedTrust {
            bundles: Arc::default(),
            version,
        };
        cell.trust.store(Arc::new(trust));
        Self {
            cell,
            resources: None,
            effective: None,
            named: BTreeMap::new(),
            rules: None,
            backends: BTreeMap::new(),
            ledger: TrustLedger::after(version),
            gate: Gate::new(acknowledgements),
            recorded: Recorded::default(),
            announced: BTreeMap::new(),
            warned: BTreeSet::new(),
            left_out: BTreeSet::new(),
        }
    }

    /// Whether a MeshIdentity can issue now. One whose CA is only being set up can, in a moment.
    pub(super) fn readiness(&self, identity: &MeshIdentity) -> Result<(), String> {
        let Some((_, backend)) = self.modern(&identity.metadata.name) else {
            return Ok(());
        };
        match (backend.life.issuer(), backend.life.error()) {
            (None, Some(error)) => Err(error.to_string()),
            _ => match &backend.reach.refused {
                Some(error) => Err(error.to_string()),
                None => Ok(()),
            },
        }
    }

    /// The CA of a MeshIdentity. There are few, and this is asked for every certificate: looking is quicker than making a key.
    pub(super) fn modern(&self, name: &str) -> Option<(&BackendKey, &Backend)> {
        let named = |key: &BackendKey| matches!(key, BackendKey::Modern(it) if it == name);
        self.backends.iter().find(|(key, _)| named(key))
    }

    /// A backend of the mesh.
    pub(super) fn classic(&self, name: &str) -> Option<(&BackendKey, &Backend)> {
        let named = |key: &BackendKey| matches!(key, BackendKey::Classic(it) if it == name);
        self.backends.iter().find(|(key, _)| named(key))
    }

    /// Works out what peers make of each CA by what origins of trust list now. Returns the CAs of which
    /// that is something else than before, with the error if they would refuse all that it signs.
    fn reach(&mut self, partial_chains: bool) -> Vec<(BackendKey, Option<Error>)> {
        let mut news = Vec::new();
        for (key, backend) in &mut self.backends {
            let Some(bundle) = &backend.bundle else {
                continue;
            };
            let listed = match self.ledger.listed(&backend.wanted.trust_domain) {
                Ok(listed) => listed.allow_partial_chains(partial_chains),
                Err(error) => {
                    tracing::error!(mesh = %self.cell.name, %error, "the trust of the mesh cannot be put together");
                    continue;
                }
            };
            let message = |reach: &Reach| reach.refused.as_ref().map(|it| it.message().to_owned());
            let before = std::mem::replace(&mut backend.reach, Reach::of(bundle, &listed));
            if message(&before) != message(&backend.reach) {
                news.push((key.clone(), backend.reach.refused.clone()));
            }
        }
        news
    }

    /// Whether a CA is set up, by all that is known of it.
    pub(super) fn is_set_up(&self, key: &BackendKey) -> bool {
        let backend = self
            .backends
            .get(key)
            .filter(|it| it.reach.refused.is_none());
        backend.is_some_and(|it| it.life.issuer().is_some() && it.life.error().is_none())
    }

    /// The step that the rotation of a CA needs and, where that is to sign with the next CA, whether
    /// every proxy that matters trusts all of its roots. Here rotations meet the gate.
    pub(super) fn next_step(
        &self,
        key: &BackendKey,
        backend: &Backend,
    ) -> (Option<RotationStep>, bool) {
        let ask = || backend.life.signer()?.rotation.as_ref()?.due();
        let due = guarded("an issuer, asked whether its CA is to be replaced", ask).flatten();
        // Nothing else waits for the gate, and asking it costs something where there are many meshes.
        let activates = due == Some(RotationStep::Activate);
        let is_open = |bundle| self.gate.is_open_for(bundle, &self.ledger);
        let trusted = activates && backend.bundle.as_ref().is_some_and(is_open);
        if activates && !trusted {
            tracing::debug!(mesh = %self.cell.name, backend = %key, "the next CA does not sign before every proxy trusts it");
        }
        (due, trusted)
    }

    pub(super) fn lanes(&self) -> Vec<LaneId> {
        self.backends.values().map(|backend| backend.lane).collect()
    }

    /// Whether this CA may sign now: it is set up as the resources say, and every proxy that
    /// matters trusts the root that it will sign under.
    pub(super) fn may_sign(&self, backend: &Backend) -> bool {
        if backend.life.signer().is_none() || backend.reach.refused.is_some() {
            return false;
        }
        self.gate.is_off() || { self.signs_under(backend) }
            .is_some_and(|it| self.gate.is_open_for(&it, &self.ledger))
    }

    /// The roots that a CA may sign under next, as far as can be told.
    pub(super) fn signs_under(&self, backend: &Backend) -> Option<TrustBundle> {
        let domain = &backend.wanted.trust_domain;
        let known = |root: &&TrustRoot| self.ledger.holds(domain, root);
        // It signs under the root that it signed under last, as far as the manager can tell; else
        // under any of those that workloads can know, or of those of them that it has signed
        // under before.
        let under: Vec<&TrustRoot> = match backend.signs_under.as_ref().filter(known) {
            Some(root) => vec![root],
            None => {
                let all: Vec<_> = backend.reach.ends().filter(known).collect();
                let signed = |root: &&TrustRoot| self.ledger.has_signed(domain, root);
                match all.iter().copied().filter(signed).collect::<Vec<_>>() {
                    signed if signed.is_empty() => all,
                    signed => signed,
                }
            }
        };
        let der = under.into_iter().map(|root| root.der().clone());
        TrustBundle::new(domain.clone(), der).ok()
    }

    /// Gives what is known to all who read it.
    pub(super) fn publish(&mut self, registry: &BackendRegistry, options: &ManagerOptions) -> News {
        let reach = self.reach(options.allow_partial_chains);
        let (mut bundles, version) = self.ledger.published();
        if options.allow_partial_chains {
            bundles = Arc::new(bundles.with_partial_chains());
        }
        let before = self.cell.trust.load();
        let trust_changed = before.version != version || before.bundles != bundles;
        if trust_changed {
            self.cell
                .trust
                .store(Arc::new(PublishedTrust { bundles, version }));
        }
        self.forget_names();
        let (trusts, statuses) = self.outputs(registry, &options.select.zone);
        let mut changed = trust_changed;
        if *self.cell.trusts.load_full() != trusts {
            self.cell.trusts.store(Arc::new(trusts));
            changed = true;
        }
        if *self.cell.statuses.load_full() != statuses {
            self.cell.statuses.store(Arc::new(statuses));
            changed = true;
        }
        if changed {
            self.cell.announce();
        }
        News {
            trust_changed,
            reach,
        }
    }

    /// Forgets the metadata of MeshIdentities that are gone, and so is all that came of them.
    fn forget_names(&mut self) {
        let identities = self.effective.iter().flat_map(|it| &it.identities);
        let there: BTreeSet<&str> = identities.map(|it| it.metadata.name.as_str()).collect();
        let ledger = &self.ledger;
        self.named.retain(|name, _| {
            there.contains(name.as_str()) || ledger.is_of(&BackendKey::Modern(name.clone()))
        });
    }

    /// Forgets the CAs of which no proxy that is there can hold a root.
    pub(super) fn forget_gone(&mut self) {
        let (_, published) = self.ledger.published();
        let least = self.gate.least().unwrap_or(published.into());
        let least = self.gate.taken_for(least, published);
        self.ledger.forget_gone(least);
    }

    fn outputs(
        &self,
        registry: &BackendRegistry,
        zone: &str,
    ) -> (Vec<MeshTrust>, Vec<IdentityStatus>) {
        let (mut trusts, mut failed) = (Vec::new(), BTreeMap::new());
        let bundles = self.ledger.by_backend().unwrap_or_else(|error| {
            tracing::error!(mesh = %self.cell.name, %error, "the MeshTrusts of the mesh cannot be put together");
            BTreeMap::new()
        });
        for ((key, domain), bundle) in &bundles {
            let BackendKey::Modern(name) = key else {
                continue;
            };
            let Some(metadata) = self.named.get(name) else {
                continue;
            };
            let now = self.backends.get(key).map(|it| &it.wanted.trust_domain);
            match mesh_trust(metadata, bundle, now.is_none_or(|now| now == domain), zone) {
                Ok(trust) => trusts.push(trust),
                Err(error) => {
                    failed.insert(name.as_str(), error);
                }
            }
        }
        let identities = self.resources.iter().flat_map(|it| &it.identities);
        let statuses = identities
            .map(|identity| {
                let name = identity.metadata.name.as_str();
                let backend = self.backends.get(&BackendKey::Modern(name.to_owned()));
                let refused = backend.and_then(|backend| backend.reach.refused.as_ref());
                let is_registered = |name: &str| registry.types().any(|it| it == name);
                let error = backend.and_then(|backend| backend.life.error());
                let state = match (backend, error.or(refused)) {
                    (Some(backend), Some(error)) => CaStatus::Failing {
                        error,
                        registered: is_registered(backend.wanted.config.type_name()),
                        lost: backend.witness.is_some() && error.kind() == ErrorKind::NotFound,
                        serving: backend.life.issuer().is_some() && refused.is_none(),
                    },
                    (Some(backend), None) if backend.life.issuer().is_some() => CaStatus::Ready,
                    _ => CaStatus::Building,
                };
                let spiffe = identity.trust_domain_in(zone).map(drop);
                let trust = failed.get(name).cloned().map_or(Ok(()), Err);
                status::of(identity, spiffe, state, trust)
            })
            .collect();
        (trusts, statuses)
    }

    /// Remembers which roots are left out, and returns those that were not before.
    pub(super) fn left_out_anew(&mut self, errors: impl Iterator<Item = Error>) -> Vec<Error> {
        let errors: BTreeMap<String, Error> =
            errors.map(|error| (error.to_string(), error)).collect();
        let now = errors.keys().cloned().collect();
        let before = std::mem::replace(&mut self.left_out, now);
        let new = errors
            .into_iter()
            .filter(|(text, _)| !before.contains(text));
        new.map(|(_, error)| error).collect()
    }

    /// What MeshTrusts say. Those that we made ourselves say what we know better, but for what was signed before we came: that is
    /// returned.
    pub(super) fn take_trusts(
        &mut self,
        resources: &MeshResources,
        bundles: Vec<TrustBundle>,
        wanted: &BTreeMap<BackendKey, Wanted>,
        zone: &str,
    ) -> Vec<(BackendKey, TrustBundle)> {
        let own: Vec<(BackendKey, Kri)> = resources
            .identities
            .iter()
            .map(|it| (BackendKey::Modern(it.metadata.name.clone()), &it.metadata))
            .filter(|(key, _)| wanted.contains_key(key))
            .filter_map(|(key, metadata)| Some((key, metadata.kri("mid", zone)?)))
            .collect();
        let mut gone = self.ledger.take_resources();
        let (mut before, mut unreadable) = (Vec::new(), Vec::new());
        for (trust, bundle) in resources.trusts.iter().zip(bundles) {
            let ours = own
                .iter()
                .find(|(_, kri)| trust.origin.as_ref() == Some(kri));
            match ours {
                Some((key, _)) => before.push((key.clone(), bundle)),
                None => {
                    let namespace = trust.metadata.namespace.clone().unwrap_or_default();
                    let origin = Origin::Resource(namespace, trust.metadata.name.clone());
                    match bundle.is_empty() {
                        true => unreadable.push(origin),
                        false => self.ledger.set(origin, bundle),
                    }
                }
            }
        }
        // A mistake in a MeshTrust does not take the last root from a trust domain of the mesh.
        let own = |domain: &TrustDomain| wanted.values().any(|it| &it.trust_domain == domain);
        for origin in unreadable {
            if let Some(last) = gone.remove(&origin)
                && own(last.trust_domain())
                && { self.ledger.listed(last.trust_domain()) }.is_ok_and(|it| it.is_empty())
            {
                self.ledger.set(origin, last);
            }
        }
        before
    }
}

impl Mesh {
    /// What a control plane before this one has given out. Proxies that hold something of it may come back until then.
    pub(super) fn recall(&mut self, record: Record, now: Now, linger: Duration) {
        for (key, said) in &record.said {
            let bundle = &said.bundle;
            // What a CA said last is so until it says something else.
            let is_it = |it: &&Backend| {
                let wanted = &it.wanted;
                &wanted.trust_domain == bundle.trust_domain()
                    && wanted.config.type_name() == said.ca
            };
            if let Some(backend) = self.backends.get(key).filter(is_it)
                && backend.wanted.distributed
                && backend.bundle.is_none()
            {
                let origin = Origin::Backend(key.clone());
                self.ledger.set(origin, bundle.clone());
            }
        }
        self.recorded.clock.read(record.newest(), now);
        for used in record.used.values() {
            self.ledger.recall(used);
            if used.until >= now.wall {
                self.gate.returning = Some(now.up.saturating_add(linger));
            }
        }
        self.recorded.stored = record;
    }

    /// What shows, beside its secrets, that the CA of a backend existed.
    pub(super) fn witness(&self, key: &BackendKey) -> Option<String> {
        let backend = self.backends.get(key)?;
        let kind = backend.wanted.config.type_name();
        let said = self.recorded.stored.said.get(key);
        if said.is_some_and(|said| said.ca != kind) {
            // All that is known of this name is of another CA.
            return None;
        }
        let root = |bundle: &TrustBundle| bundle.roots().first().cloned();
        let named = |what: &str, root: TrustRoot| {
            let (subject, fingerprint) = (root.subject(), root.fingerprint().to_owned());
            format!("{what} its root `{subject}`, SHA-256 {fingerprint}")
        };
        let mut used = self.recorded.stored.used.values();
        let used = used.find(|used| used.signed && used.backend == *key);
        let recorded = said.map(|said| &said.bundle).and_then(root);
        if let Some(root) = recorded.or_else(|| root(&used?.bundle)) {
            return Some(named("the trust record of the mesh has", root));
        }
        if let Some(root) = self.announced.get(key).and_then(root) {
            return Some(named("the MeshTrust that was generated for it has", root));
        }
        let BackendKey::Modern(name) = key else {
            return None;
        };
        let mut identities = self.effective.iter().flat_map(|it| &it.identities);
        let identity = identities.find(|it| it.metadata.name == *name)?;
        let shows = status::shows_a_ca(identity);
        shows.then(|| "the status of the MeshIdentity says so".to_owned())
    }

    /// The time, if the clock agrees with the record.
    pub(super) fn clock(&mut self, now: Now) -> Option<SystemTime> {
        self.recorded.clock.agrees(now).then_some(now.wall)
    }

    /// What is to be stored for those who come after, and the CAs that it was once true of.
    pub(super) fn record(&self, now: Option<SystemTime>) -> (Record, BTreeSet<BackendKey>) {
        let ca = |key: &BackendKey| Some(self.backends.get(key)?.wanted.config.type_name());
        let record = self.ledger.record(ca).pruned(now);
        let gone = self.recorded.had.iter();
        let gone = gone.filter(|key| !record.said.contains_key(*key)).cloned();
        let gone = gone.collect();
        (record, gone)
    }

    /// The roots that proxies of this control plane need for longer than the record says.
    pub(super) fn claims(&self) -> BTreeMap<RootId, SystemTime> {
        self.recorded.claims.lacking(self.ledger.needs())
    }

    /// Whether what is stored is what is to be.
    pub(super) fn is_recorded(&mut self, now: Now) -> bool {
        let clock = self.clock(now);
        let (record, gone) = self.record(clock);
        let recorded = &self.recorded;
        !recorded.busy && recorded.stored.covers(&record, &gone) && self.claims().is_empty()
    }

    /// What was signed before this process began, under roots that our own MeshTrusts still have. When that ends nobody knows: it
    /// is as long as CAs usually let it be, or until the root itself ends.
    pub(super) fn remember(&mut self, before: Vec<(BackendKey, TrustBundle)>, now: SystemTime) {
        for (key, bundle) in before {
            let lifetime = self.backends.get(&key);
            let lifetime = lifetime.map(|it| it.wanted.config.lifetime());
            let lifetime = lifetime.unwrap_or_default().max(REMEMBERED);
            for root in bundle.roots() {
                let domain = bundle.trust_domain();
                let end = root.validity().not_after();
                let until = now.checked_add(lifetime).map_or(end, |it| it.min(end));
                self.ledger.keep(&key, domain, root, now, until);
            }
        }
    }
}

/// The changes that a publication brings.
pub(super) struct News {
    /// Whether the trust is another one.
    pub(super) trust_changed: bool,
    /// CAs that issue again because peers can follow them to a root, and with an error those that do
    /// so no longer.
    pub(super) reach: Vec<(BackendKey, Option<Error>)>,
}

/// How long a root of before is kept at least, if it lives so long: the longest that certificates of workloads usually live.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

/// The MeshTrust for a CA: under the name of its MeshIdentity; for the roots of a trust domain that it had before, with that in
/// the name.
fn mesh_trust(of: &Metadata, bundle: &TrustBundle, current: bool, zone: &str) -> Result<MeshTrust> {
    let domain = bundle.trust_domain();
    let name = match current {
        true => of.name.clone(),
        false => format!("{}-{}", of.name, domain.as_ref().replace(['.', '_'], "-")),
    };
    let mut metadata = match of.form {
        Form::Universal => Metadata::universal(name),
        _ => Metadata::kubernetes(name),
    };
    metadata.mesh.clone_from(&of.mesh);
    metadata.namespace.clone_from(&of.namespace);
    let mut trust = MeshTrust::from_trust_bundle(metadata, bundle)?;
    trust.origin = of.kri("mid", zone);
    Ok(trust)
}
