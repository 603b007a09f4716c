//! One mesh: its CAs, its trust, and what was selected by its resources.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::{BackendConfig, BackendSettings};
use meshca_core::resource::{
    Backend as ClassicBackend, BundledCa, IdentityProvider, Kri, MeshIdentity, MeshTrust,
    MeshTrustCreation, Metadata, Provider,
};
use meshca_core::{Error, ErrorKind, Issuer, Result, TrustBundle, TrustDomain, TrustRoot};

use super::cell::{MeshCell, PublishedTrust};
use super::status::{self, CaState, IdentityStatus};
use crate::MeshResources;
use crate::schedule::LaneId;
use crate::select::IdentityRules;
use crate::trust::{BackendKey, Origin, TrustLedger};

/// See the [module](self).
pub(super) struct Mesh {
    pub(super) cell: Arc<MeshCell>,
    pub(super) resources: Option<MeshResources>,
    pub(super) rules: Option<IdentityRules>,
    pub(super) backends: BTreeMap<BackendKey, Backend>,
    pub(super) ledger: TrustLedger,
    /// How many connected proxies have acknowledged which trust; those that never have do not count, they trust nobody yet.
    pub(super) acks: BTreeMap<u64, usize>,
    /// Nobody is waited for.
    pub(super) broken_glass: bool,
    /// The roots that were warned of.
    pub(super) warned: BTreeSet<String>,
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
    /// Whether its certificate and key are somebody else's, who replaces them without telling the resources. Other issuers read again
    /// themselves what they need.
    pub(super) fn is_given(&self) -> bool {
        match self.config.settings() {
            BackendSettings::Provider(Provider::Provided(_)) => true,
            BackendSettings::Bundled(bundled) => matches!(bundled.ca, BundledCa::Provided { .. }),
            _ => false,
        }
    }
}

/// A CA that the resources name.
pub(super) struct Wanted {
    pub(super) wish: Wish,
    pub(super) config: BackendConfig,
    pub(super) trust_domain: TrustDomain,
    pub(super) distributed: bool,
}

impl Mesh {
    pub(super) fn new(cell: Arc<MeshCell>) -> Self {
        Self {
            cell,
            resources: None,
            rules: None,
            backends: BTreeMap::new(),
            ledger: TrustLedger::default(),
            acks: BTreeMap::new(),
            broken_glass: false,
            warned: BTreeSet::new(),
        }
    }

    /// Whether a MeshIdentity can issue now. One whose CA is only being set up can, in a moment.
    pub(super) fn readiness(&self, identity: &MeshIdentity) -> Result<(), String> {
        let key = BackendKey::Modern(identity.metadata.name.clone());
        match self.backends.get(&key) {
            Some(backend) if backend.issuer.is_none() => match &backend.error {
                Some(error) => Err(error.to_string()),
                None => Ok(()),
            },
            _ => Ok(()),
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
            Some(since) => !acknowledgements || self.broken_glass || since <= self.acknowledged(),
            None => false,
        }
    }

    /// Whether this CA may sign now, as far as trust goes.
    pub(super) fn may_sign(&self, backend: &Backend, acknowledgements: bool) -> bool {
        if backend.issuer.is_none() || backend.setting_up {
            return false;
        }
        if !acknowledgements || !backend.distributed {
            return true;
        }
        let under = match (&backend.signs_under, &backend.bundle) {
            (Some(root), _) => {
                TrustBundle::new(backend.trust_domain.clone(), [root.der().clone()]).ok()
            }
            (None, bundle) => bundle.clone(),
        };
        under.is_some_and(|under| self.trusted_by_all(&under, acknowledgements))
    }

    /// Gives what is known to all who read it. Says whether the trust is another one.
    pub(super) fn publish(&mut self, types: &BTreeSet<String>, zone: &str) -> bool {
        let (bundles, version) = self.ledger.published();
        let trust_changed = self.cell.trust.load().version != version;
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
        let (mut trusts, mut statuses) = (Vec::new(), Vec::new());
        for identity in self.resources.iter().flat_map(|it| &it.identities) {
            let key = BackendKey::Modern(identity.metadata.name.clone());
            let backend = self.backends.get(&key);
            let trust = match backend {
                Some(backend) if backend.distributed => self.mesh_trust(identity, &key, zone),
                _ => Ok(None),
            };
            let trust = trust.map(|trust| trusts.extend(trust));
            let state = match backend {
                Some(Backend {
                    error: Some(error),
                    issuer,
                    config,
                    ..
                }) => CaState::Failing {
                    error,
                    registered: types.contains(config.type_name()),
                    serving: issuer.is_some(),
                },
                Some(Backend {
                    issuer: Some(_), ..
                }) => CaState::Ready,
                _ => CaState::Building,
            };
            let spiffe = identity.trust_domain_in(zone).map(drop);
            statuses.push(status::of(identity, spiffe, state, trust));
        }
        (trusts, statuses)
    }

    /// The MeshTrust of a MeshIdentity: under its name, with its CA's roots.
    fn mesh_trust(
        &self,
        identity: &MeshIdentity,
        key: &BackendKey,
        zone: &str,
    ) -> Result<Option<MeshTrust>> {
        let Some(bundle) = self.ledger.bundle_of(key)? else {
            return Ok(None);
        };
        let of = &identity.metadata;
        let mut metadata = match of.form {
            meshca_core::resource::Form::Universal => Metadata::universal(&of.name),
            _ => Metadata::kubernetes(&of.name),
        };
        metadata.mesh.clone_from(&of.mesh);
        metadata.namespace.clone_from(&of.namespace);
        let mut trust = MeshTrust::from_trust_bundle(metadata, &bundle)?;
        trust.origin = origin_of(identity, zone);
        Ok(Some(trust))
    }

    /// What MeshTrusts say. Those that we made ourselves say what we know better, but for what was signed before we came.
    pub(super) fn take_trusts(
        &mut self,
        resources: &MeshResources,
        zone: &str,
    ) -> Result<Vec<(BackendKey, TrustBundle)>> {
        let own: Vec<(&MeshIdentity, Kri)> = resources
            .identities
            .iter()
            .filter_map(|it| Some((it, origin_of(it, zone)?)))
            .collect();
        let (mut written, mut before) = (Vec::new(), Vec::new());
        for trust in &resources.trusts {
            let bundle = trust.to_trust_bundle()?;
            let origin = own
                .iter()
                .find(|(_, kri)| trust.origin.as_ref() == Some(kri));
            match origin {
                Some((identity, _)) => {
                    before.push((BackendKey::Modern(identity.metadata.name.clone()), bundle));
                }
                None => {
                    let namespace = trust.metadata.namespace.clone().unwrap_or_default();
                    written.push((
                        Origin::Resource(namespace, trust.metadata.name.clone()),
                        bundle,
                    ));
                }
            }
        }
        let gone: Vec<Origin> = self
            .ledger
            .origins()
            .filter(|it| matches!(it, Origin::Resource(..)))
            .cloned()
            .collect();
        for origin in gone {
            self.ledger.unset(&origin);
        }
        for (origin, bundle) in written {
            self.ledger.set(origin, bundle);
        }
        Ok(before)
    }
}

fn origin_of(identity: &MeshIdentity, zone: &str) -> Option<Kri> {
    let of = &identity.metadata;
    let namespace = of.namespace.as_deref().unwrap_or_default();
    // Names with `_` have no KRI.
    Kri::new("mid", of.mesh(), zone, namespace, &of.name, "").ok()
}

/// The CAs that the resources name, and what is wrong with the others.
pub(super) fn wanted(
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
                    config: BackendConfig::classic(backend),
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
                    config,
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
