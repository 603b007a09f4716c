//! One mesh: its CAs, its trust, and what was selected by its resources.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshca_core::registry::{BackendConfig, BackendRegistry};
use meshca_core::resource::{
    Backend as ClassicBackend, Form, IdentityProvider, Kri, MeshIdentity, MeshTrust,
    MeshTrustCreation, Metadata,
};
use meshca_core::{
    Error, ErrorKind, Issuer, Result, RotationStep, TrustBundle, TrustDomain, TrustRoot,
};

use super::cell::{MeshCell, PublishedTrust};
use super::job;
use super::record::Record;
use super::status::{self, CaState, IdentityStatus};
use crate::MeshResources;
use crate::schedule::{LaneId, Now};
use crate::select::IdentityRules;
use crate::trust::{BackendKey, Origin, TrustLedger};

/// See the [module](self).
pub(super) struct Mesh {
    pub(super) cell: Arc<MeshCell>,
    pub(super) resources: Option<MeshResources>,
    /// The same as they are in force.
    pub(super) effective: Option<MeshResources>,
    /// What MeshIdentities are called that the resources have, or once had: MeshTrusts outlive them.
    pub(super) named: BTreeMap<String, Metadata>,
    pub(super) rules: Option<IdentityRules>,
    pub(super) backends: BTreeMap<BackendKey, Backend>,
    pub(super) ledger: TrustLedger,
    /// How many connected proxies have acknowledged which trust; those that never have do not count, they trust nobody yet.
    pub(super) acks: BTreeMap<u64, usize>,
    /// Nobody is waited for.
    pub(super) broken_glass: bool,
    /// Until when proxies are expected that a control plane before this one has served.
    pub(super) returning: Option<Duration>,
    pub(super) recorded: Recorded,
    /// The roots that were warned of.
    pub(super) warned: BTreeSet<String>,
}

/// What is stored of a mesh for those who come after.
#[derive(Default)]
pub(super) struct Recorded {
    /// As this process has read or written it last.
    pub(super) stored: Record,
    /// The CAs that this process has had.
    pub(super) had: BTreeSet<BackendKey>,
    /// It is being written.
    pub(super) busy: bool,
    /// Not before this, after it could not be written.
    pub(super) write_at: Duration,
    /// When it is compared with what is stored, whatever is known of that: others write, and delete.
    pub(super) compare_at: Duration,
    pub(super) failures: u32,
}

/// What the resources say of a CA: where that is the same, nothing need be set up anew.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wish {
    Classic(ClassicBackend),
    Modern(IdentityProvider),
}

/// One CA.
pub(super) struct Backend {
    pub(super) wish: Wish,
    pub(super) config: BackendConfig,
    pub(super) trust_domain: TrustDomain,
    pub(super) lane: LaneId,
    /// Another type or trust domain makes another CA of it, whose certificates are not those of the former.
    pub(super) uid: u64,
    /// What it was asked to do while it was busy, it does after that.
    pub(super) look_again: bool,
    /// The step that it was taken last in its replacement, and how often in a row.
    pub(super) stepped: Option<(RotationStep, u32)>,
    /// Results of jobs that began before are of no interest.
    pub(super) epoch: u64,
    pub(super) issuer: Option<Arc<dyn Issuer>>,
    pub(super) bundle: Option<TrustBundle>,
    /// How long it takes for a certificate.
    pub(super) takes: Option<Duration>,
    /// The root that the last certificate led to.
    pub(super) signs_under: Option<TrustRoot>,
    pub(super) error: Option<Error>,
    pub(super) failures: u32,
    /// A job for it is under way.
    pub(super) busy: bool,
    /// When to set it up, if that is to be done.
    pub(super) build_at: Option<Duration>,
    /// It is being set up as the resources say now, and has not failed at that. What it was before does not sign for what is wanted
    /// now; if this fails, it does.
    pub(super) setting_up: bool,
    pub(super) look_at: Duration,
    /// Not before this, after it could not be rotated.
    pub(super) rotate_at: Duration,
    /// Whether its roots are given to workloads by us; else they have to stand in a MeshTrust.
    pub(super) distributed: bool,
}

impl Backend {
    /// How many certificates are asked for by one task: as many as its CA signs while a task is woken for nothing else. Powers of two, so that
    /// it is not another number after each answer: limits go by it.
    pub(super) fn together(&self) -> usize {
        let Some(takes) = self.takes else {
            return 1;
        };
        let together = job::TOGETHER.as_nanos() / takes.as_nanos().max(1);
        let together = usize::try_from(together).unwrap_or(MOST_TOGETHER);
        1 << together.clamp(1, MOST_TOGETHER).ilog2()
    }

    /// Returns `true` if the owner of its certificate and key replaces them without a change of the resources. Other issuers
    /// read again themselves what they need.
    pub(super) fn is_given(&self) -> bool {
        self.config.holds_the_ca()
    }
}

/// The most certificates that one task asks for: the answers to them are less than a kilobyte, for the reason that is given in `job::issue`.
const MOST_TOGETHER: usize = 16;

/// A CA that the resources name.
pub(super) struct Wanted {
    pub(super) wish: Wish,
    pub(super) config: BackendConfig,
    pub(super) trust_domain: TrustDomain,
    pub(super) distributed: bool,
}

impl Mesh {
    pub(super) fn new(cell: Arc<MeshCell>, version: u64) -> Self {
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
            acks: BTreeMap::new(),
            broken_glass: false,
            returning: None,
            recorded: Recorded::default(),
            warned: BTreeSet::new(),
        }
    }

    /// Whether a MeshIdentity can issue now. One whose CA is only being set up can, in a moment.
    pub(super) fn readiness(&self, identity: &MeshIdentity) -> Result<(), String> {
        let Some((_, backend)) = self.modern(&identity.metadata.name) else {
            return Ok(());
        };
        match (&backend.issuer, &backend.error) {
            (None, Some(error)) => Err(error.to_string()),
            _ => match self.untrusted(backend) {
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

    /// Why nothing of a CA can be handed out whose roots somebody else is to distribute, and has not.
    pub(super) fn untrusted(&self, backend: &Backend) -> Option<Error> {
        let bundle = backend.bundle.as_ref().filter(|_| !backend.distributed)?;
        // That something it signed may still be valid is no reason to go on.
        let known = |root: &TrustRoot| self.ledger.knows(&backend.trust_domain, root);
        match bundle.roots() {
            [first, ..] if !bundle.roots().iter().any(known) => Some(untrusted(first)),
            _ => None,
        }
    }

    /// The oldest trust that a connected proxy has taken into use.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acks
            .first_key_value()
            .map_or(u64::MAX, |(version, _)| *version)
    }

    /// Whether every proxy that matters trusts this.
    pub(super) fn trusted_by_all(&self, bundle: &TrustBundle, acknowledgements: bool) -> bool {
        match self.ledger.since(bundle) {
            Some(since) => {
                let waits = since > self.acknowledged() || !self.is_known_to_returning(bundle);
                !acknowledgements || self.broken_glass || !waits
            }
            None => false,
        }
    }

    /// Whether proxies that are not back yet trust this: before something was signed under it they were waited for.
    fn is_known_to_returning(&self, bundle: &TrustBundle) -> bool {
        let known = |root: &TrustRoot| self.ledger.has_signed(bundle.trust_domain(), root);
        self.returning.is_none() || bundle.roots().iter().all(known)
    }

    /// Whether this CA may sign now, as far as trust goes.
    pub(super) fn may_sign(&self, backend: &Backend, acknowledgements: bool) -> bool {
        if backend.issuer.is_none() || backend.setting_up || self.untrusted(backend).is_some() {
            return false;
        }
        if !acknowledgements {
            return true;
        }
        let known = |root: &&TrustRoot| self.ledger.holds(&backend.trust_domain, root);
        // It signs under the root that it signed under last, as far as anybody knows; else under any of those that workloads can know, or of
        // those of them that it has signed under before.
        let under: Vec<&TrustRoot> = match backend.signs_under.as_ref().filter(known) {
            Some(root) => vec![root],
            None => {
                let roots = backend.bundle.iter().flat_map(TrustBundle::roots);
                let all: Vec<_> = roots.filter(known).collect();
                let signed =
                    |root: &&TrustRoot| self.ledger.has_signed(&backend.trust_domain, root);
                match all.iter().copied().filter(signed).collect::<Vec<_>>() {
                    signed if signed.is_empty() => all,
                    signed => signed,
                }
            }
        };
        let der = under.into_iter().map(|root| root.der().clone());
        TrustBundle::new(backend.trust_domain.clone(), der)
            .is_ok_and(|under| self.trusted_by_all(&under, acknowledgements))
    }

    /// Gives what is known to all who read it. Says whether the trust is another one.
    pub(super) fn publish(&mut self, types: &BTreeSet<String>, zone: &str) -> bool {
        let (bundles, version) = self.ledger.published();
        let before = self.cell.trust.load();
        let trust_changed = before.version != version || before.bundles != bundles;
        if trust_changed {
            self.cell
                .trust
                .store(Arc::new(PublishedTrust { bundles, version }));
        }
        let (trusts, statuses) = self.outputs(types, zone);
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
        trust_changed
    }

    fn outputs(
        &self,
        types: &BTreeSet<String>,
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
            let now = self.backends.get(key).map(|it| &it.trust_domain);
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
                let untrusted = backend.and_then(|backend| self.untrusted(backend));
                let error = match backend {
                    Some(Backend {
                        error: Some(error), ..
                    }) => Some(error),
                    _ => untrusted.as_ref(),
                };
                let state = match (backend, error) {
                    (Some(backend), Some(error)) => CaState::Failing {
                        error,
                        registered: types.contains(backend.config.type_name()),
                        serving: backend.issuer.is_some() && untrusted.is_none(),
                    },
                    (Some(backend), None) if backend.issuer.is_some() => CaState::Ready,
                    _ => CaState::Building,
                };
                let spiffe = identity.trust_domain_in(zone).map(drop);
                let trust = failed.get(name).cloned().map_or(Ok(()), Err);
                status::of(identity, spiffe, state, trust)
            })
            .collect();
        (trusts, statuses)
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
        let gone = self.ledger.origins().filter(|it| it.is_resource()).cloned();
        for origin in gone.collect::<Vec<_>>() {
            self.ledger.unset(&origin);
        }
        let mut before = Vec::new();
        for (trust, bundle) in resources.trusts.iter().zip(bundles) {
            let ours = own
                .iter()
                .find(|(_, kri)| trust.origin.as_ref() == Some(kri));
            match ours {
                Some((key, _)) => before.push((key.clone(), bundle)),
                None => {
                    let namespace = trust.metadata.namespace.clone().unwrap_or_default();
                    let origin = Origin::Resource(namespace, trust.metadata.name.clone());
                    self.ledger.set(origin, bundle);
                }
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
                &it.trust_domain == bundle.trust_domain() && it.config.type_name() == said.ca
            };
            if let Some(backend) = self.backends.get(key).filter(is_it)
                && backend.distributed
                && backend.bundle.is_none()
            {
                let origin = Origin::Backend(key.clone());
                self.ledger.set(origin, bundle.clone());
            }
        }
        for used in record.used.values() {
            self.ledger.recall(used);
            if used.until >= now.wall {
                self.returning = Some(now.up.saturating_add(linger));
            }
        }
        self.recorded.stored = record;
    }

    /// What is to be stored for those who come after, and the CAs that it was once true of.
    pub(super) fn record(&self, now: SystemTime) -> (Record, BTreeSet<BackendKey>) {
        let ca = |key: &BackendKey| Some(self.backends.get(key)?.config.type_name());
        let record = self.ledger.record(ca).pruned(now);
        let gone = self.recorded.had.iter();
        let gone = gone.filter(|key| !record.said.contains_key(*key)).cloned();
        let gone = gone.collect();
        (record, gone)
    }

    /// Whether what is stored is what is to be.
    pub(super) fn is_recorded(&self, now: SystemTime) -> bool {
        let (record, gone) = self.record(now);
        !self.recorded.busy && self.recorded.stored.covers(&record, &gone)
    }

    /// What was signed before this process began, under roots that our own MeshTrusts still have. When that ends nobody knows: it
    /// is as long as CAs usually let it be, or until the root itself ends.
    pub(super) fn remember(&mut self, before: Vec<(BackendKey, TrustBundle)>, now: SystemTime) {
        for (key, bundle) in before {
            let lifetime = self.backends.get(&key).map(|it| it.config.lifetime());
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

/// The CAs that the resources name, and what is wrong with the others.
pub(super) fn wanted(
    registry: &BackendRegistry,
    resources: &MeshResources,
    zone: &str,
) -> (BTreeMap<BackendKey, Wanted>, Vec<(BackendKey, Error)>) {
    let (mut wanted, mut wrong) = (BTreeMap::new(), Vec::new());
    for backend in resources.mesh.mtls.iter().flat_map(|mtls| &mtls.backends) {
        let key = BackendKey::Classic(backend.name.clone());
        match resources.mesh.trust_domain() {
            Ok(trust_domain) => {
                let new = Wanted {
                    wish: Wish::Classic(backend.clone()),
                    config: resolved(registry, BackendConfig::classic(backend)),
                    trust_domain,
                    distributed: true,
                };
                wanted.insert(key, new);
            }
            Err(error) => wrong.push((key, error)),
        }
    }
    for identity in &resources.identities {
        let key = BackendKey::Modern(identity.metadata.name.clone());
        let (Some(config), Some(provider)) = (BackendConfig::modern(identity), &identity.provider)
        else {
            continue;
        };
        match identity.trust_domain_in(zone) {
            Ok(trust_domain) => {
                let distributed = match provider {
                    IdentityProvider::Bundled(bundled) => {
                        bundled.mesh_trust_creation == MeshTrustCreation::Enabled
                    }
                    _ => true,
                };
                let new = Wanted {
                    wish: Wish::Modern(provider.clone()),
                    config: resolved(registry, config),
                    trust_domain,
                    distributed,
                };
                wanted.insert(key, new);
            }
            Err(error) => wrong.push((key, error)),
        }
    }
    (wanted, wrong)
}

/// The settings as the CA's factory reads them. If it cannot, building the CA reports why.
fn resolved(registry: &BackendRegistry, config: BackendConfig) -> BackendConfig {
    registry.resolve(&config).unwrap_or(config)
}

/// Why nothing under this root is handed out.
pub(super) fn untrusted(root: &TrustRoot) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "the CA signs under the root `{}`, which no MeshTrust has: add it to one, or set `meshTrustCreation: Enabled`",
            root.subject()
        ),
    )
    .with_retry(meshca_core::Retry::Backoff)
}
