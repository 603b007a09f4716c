//! One CA of a mesh: what the resources want of it, its life, and what is known of it.

use std::collections::BTreeMap;
use std::time::Duration;

use meshca_core::registry::{BackendConfig, BackendRegistry, NewCa};
use meshca_core::resource::{Backend as ClassicBackend, IdentityProvider, MeshTrustCreation};
use meshca_core::{Error, ErrorKind, TrustBundle, TrustDomain, TrustRoot};

use super::checkup::Checkup;
use super::ids::number;
use super::job::{self, LiveCa};
use crate::ca::Ca;
use crate::schedule::LaneId;
use crate::{BackendKey, MeshResources};

/// The part of the resources that a CA is set up by: where it is the same, nothing needs to be
/// set up again.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wish {
    Classic(ClassicBackend),
    Modern(IdentityProvider),
}

/// A CA that the resources name.
pub(super) struct Wanted {
    pub(super) wish: Wish,
    pub(super) config: BackendConfig,
    pub(super) trust_domain: TrustDomain,
    /// Whether the manager gives its roots to workloads; else they have to stand in a MeshTrust.
    pub(super) distributed: bool,
}

impl Wanted {
    /// Returns `true` if the owner of its certificate and key replaces them without a change of the
    /// resources. Other issuers read again themselves what they need.
    pub(super) fn is_given(&self) -> bool {
        self.config.holds_the_ca()
    }

    /// Whether it is the same CA as before, if with other settings. Another type or trust domain
    /// makes another one of it, whose certificates are not those of the former.
    pub(super) fn is_same_ca(&self, before: &Self) -> bool {
        self.trust_domain == before.trust_domain
            && self.config.type_name() == before.config.type_name()
    }
}

/// See the [module](self).
pub(super) struct Backend {
    pub(super) wanted: Wanted,
    pub(super) life: Ca<LiveCa, Error>,
    pub(super) checkup: Checkup,
    pub(super) lane: LaneId,
    /// Stands for the CA in the numbers of certificates. It has the same one whenever it comes
    /// back, so what it signed is known again.
    pub(super) uid: u64,
    /// The roots that it named last.
    pub(super) bundle: Option<TrustBundle>,
    /// What peers make of that.
    pub(super) reach: Reach,
    /// The root of the last certificate: the one that the next will have, as far as the manager
    /// can tell before it is signed.
    pub(super) signs_under: Option<TrustRoot>,
    /// What shows that its CA existed, as soon as something has. It may not be there for long: a
    /// status is written anew while the CA fails.
    pub(super) witness: Option<String>,
    /// The resources had another CA here a moment ago, so what is known of that says nothing of
    /// this one.
    pub(super) replaces: bool,
    /// An operator wants a new CA in the place of one that is lost.
    pub(super) confirmed: bool,
    /// How long a certificate takes: decides how many one task asks for.
    pub(super) takes: Option<Duration>,
}

impl Backend {
    /// A CA that the resources name, and did not name before.
    pub(super) fn new(key: &BackendKey, wanted: Wanted, lane: LaneId, epoch: u64) -> Self {
        Self {
            uid: number(&(key, wanted.config.type_name(), &wanted.trust_domain)),
            life: Ca::new(epoch, wanted.is_given()),
            checkup: Checkup::default(),
            wanted,
            lane,
            bundle: None,
            reach: Reach::default(),
            signs_under: None,
            witness: None,
            replaces: false,
            confirmed: false,
            takes: None,
        }
    }

    /// Whether a CA that is not in the secret store may be made, by what is known of it now.
    pub(super) fn new_ca(&mut self, witness: Option<String>) -> NewCa {
        if !self.replaces && self.witness.is_none() {
            self.witness = witness;
        }
        match &self.witness {
            _ if self.confirmed => NewCa::Confirmed,
            Some(witness) => NewCa::Existed(witness.clone()),
            None => NewCa::default(),
        }
    }

    /// It was set up: what was decided about it is done.
    pub(super) fn is_set_up(&mut self) {
        self.witness = None;
        self.replaces = false;
        self.confirmed = false;
    }

    /// How many certificates are asked for by one task: as many as its CA signs while a task is
    /// woken for nothing else. Powers of two, so that it is not another number after each answer:
    /// limits go by it.
    pub(super) fn together(&self) -> usize {
        let Some(takes) = self.takes else {
            return 1;
        };
        let together = job::TOGETHER.as_nanos() / takes.as_nanos().max(1);
        let together = usize::try_from(together).unwrap_or(MOST_TOGETHER);
        1 << together.clamp(1, MOST_TOGETHER).ilog2()
    }
}

/// The most certificates that one task asks for: the answers to them are less than a kilobyte,
/// for the reason that is given in `job::issue`.
const MOST_TOGETHER: usize = 16;

/// The CAs that the resources name, and the errors of the others.
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

/// The place of a CA in the trust of its mesh. It changes with the roots that CAs name and with the
/// MeshTrusts, and is worked out when these are published.
#[derive(Default)]
pub(super) struct Reach {
    /// The roots that the CA named and, where they lead to no root, those in the trust of the mesh
    /// that lead on. `None` as long as the CA has named none.
    anchors: Option<TrustBundle>,
    /// The same, if it is more than the CA named: what it signs is to be verified against these.
    pub(super) beyond: Option<TrustBundle>,
    /// The reason why peers would refuse whatever the CA signs.
    pub(super) refused: Option<Error>,
}

impl Reach {
    /// Works it out for a CA that named this `bundle`, where the origins of trust list `listed`.
    pub(super) fn of(bundle: &TrustBundle, listed: &TrustBundle) -> Self {
        // Most CAs name their root, and need nobody else's.
        let leads_on = bundle.dead_ends().next().is_some();
        let beyond = leads_on.then(|| bundle.completed_by(listed));
        let beyond = beyond.transpose().unwrap_or_else(|error| {
            tracing::error!(%error, "a CA names roots of another trust domain");
            None
        });
        let anchors = beyond.as_ref().unwrap_or(bundle).clone();
        let known = |root: &&TrustRoot| listed.contains(root.der());
        let refused = match anchors.ends().next() {
            // Certificates that it signed may still be valid, with their root published. That is not a
            // reason to sign more.
            Some(root) if !anchors.ends().any(|root| known(&root)) => Some(untrusted(root)),
            Some(_) => None,
            None => {
                let mut dead_ends = anchors.dead_ends();
                dead_ends.next().map(|(_, why)| no_root(&why, bundle))
            }
        };
        Self {
            anchors: Some(anchors),
            beyond,
            refused,
        }
    }

    /// The roots that peers need to accept what the CA signs, if there are any.
    pub(super) fn needed(&self) -> Option<TrustBundle> {
        let Some(beyond) = &self.beyond else {
            return self.anchors.clone();
        };
        let ends = beyond.ends().map(|root| root.der().clone());
        let ends = TrustBundle::new(beyond.trust_domain().clone(), ends).ok();
        ends.filter(|ends| !ends.is_empty())
    }

    /// The roots in which chains of the CA end.
    pub(super) fn ends(&self) -> impl Iterator<Item = &TrustRoot> {
        self.anchors.iter().flat_map(TrustBundle::ends)
    }

    /// Whether a certificate under this root is as good as what the CA signs now.
    pub(super) fn names(&self, root: &TrustRoot) -> bool {
        let anchors = self.anchors.as_ref();
        anchors.is_none_or(|anchors| anchors.contains(root.der()))
    }
}

fn no_root(why: &str, bundle: &TrustBundle) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "peers would refuse all that the CA signs: {why}. Put it into a MeshTrust of the trust domain `{}`, or behind the CA's own certificate (`ca`, `caCert`, the CA's chain); for a mesh without Envoy, set `ManagerOptions::allow_partial_chains`",
            bundle.trust_domain()
        ),
    )
    .with_retry(meshca_core::Retry::Backoff)
}

/// Returns the error of certificates under this root, which are not handed out.
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
