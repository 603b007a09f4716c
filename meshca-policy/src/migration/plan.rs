//! A plan, and where a mesh is on it.

use std::collections::BTreeSet;

use meshca_core::resource::{
    CaBundle, IdentityProvider, MeshIdentity, MeshTrust, Metadata, Mtls, Resource,
};

use super::observed::{self, Observed, Requirement, Waiting};
use super::options::PlanOptions;
use crate::MeshResources;
use crate::tls;

/// The way of a mesh from the resources that it has to those that it is to have.
///
/// `Display` is the plan in words for the operator, [`to_mermaid`](Self::to_mermaid) the same as a
/// picture.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) from: MeshResources,
    pub(super) to: MeshResources,
    pub(super) options: PlanOptions,
    pub(super) steps: Vec<Step>,
    /// The resources before the first step and after each.
    pub(super) states: Vec<MeshResources>,
}

/// What is applied together, and what to wait for then.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// A few words: `Add trusted CA`.
    pub title: String,
    /// Why it is needed.
    pub why: String,
    /// What to apply, in this order. Only a first step may have nothing.
    pub changes: Vec<Change>,
    /// What must be so before the next step.
    pub gate: Vec<Requirement>,
    /// What is true once the gate is passed.
    pub afterwards: Vec<String>,
}

/// A resource to apply or to delete. Doing it twice does what doing it once does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// What to do.
    pub action: Action,
    /// What that is for.
    pub why: String,
}

/// What to do with a resource.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "few exist at a time, and matching on them should stay plain"
)]
#[non_exhaustive]
pub enum Action {
    /// Create it, or replace it.
    Put(Resource),
    /// Delete it, if it is there.
    Delete {
        /// Its kind, as documents spell it.
        kind: &'static str,
        /// Its Kubernetes namespace.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Next {
    /// Apply these changes, in this order. They are made for the resources as they are: what is
    /// not the plan's business in them stays, and what has been applied already is left out.
    Apply {
        /// The number of the step, counted from 1.
        step: usize,
        /// What is left of its changes.
        changes: Vec<Change>,
    },
    /// Apply nothing before all of this is so.
    Wait {
        /// The number of the step whose gate it is, counted from 1.
        step: usize,
        /// Who is waited for, and for what.
        waiting: Vec<Waiting>,
    },
    /// The mesh has arrived.
    Done,
    /// Somebody changed these resources in another way than the plan does, so that it is unknown
    /// what is safe. Put them back, or make a new plan from what is there.
    Diverged {
        /// The resources that fit none of the steps that the others fit.
        resources: Vec<String>,
    },
}

impl Plan {
    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Where the plan begins.
    pub fn from(&self) -> &MeshResources {
        &self.from
    }

    /// Where the plan ends.
    pub fn to(&self) -> &MeshResources {
        &self.to
    }

    /// What to do now. It depends on what is observed and on nothing else.
    pub fn next(&self, observed: &Observed) -> Next {
        let now = &observed.resources;
        let Some((reached, exactly)) = self.reached(now) else {
            return Next::Diverged {
                resources: self.diverged(now),
            };
        };
        // A step that has been begun is ended: its gate was passed when it was.
        let passed = reached.checked_sub(1).and_then(|it| self.steps.get(it));
        if let (true, Some(step)) = (exactly, passed) {
            let waiting = observed::missing(&step.gate, observed, &self.options.zone);
            if !waiting.is_empty() {
                return Next::Wait {
                    step: reached,
                    waiting,
                };
            }
        }
        let Some(step) = self.steps.get(reached) else {
            return Next::Done;
        };
        let changes = step
            .changes
            .iter()
            .filter(|change| !self.is_applied(change, reached + 1, now))
            .map(|change| self.on_top_of(change, now))
            .collect();
        Next::Apply {
            step: reached + 1,
            changes,
        }
    }

    /// The last step whose changes are all there, and whether nothing of the next one is.
    fn reached(&self, now: &MeshResources) -> Option<(usize, bool)> {
        let keys = self.keys();
        (0..self.states.len()).rev().find_map(|step| {
            let exactly = keys.iter().all(|key| self.fits(key, step, now));
            let between = || {
                keys.iter()
                    .all(|key| self.fits(key, step, now) || self.fits(key, step + 1, now))
            };
            (exactly || between()).then_some((step, exactly))
        })
    }

    /// What keeps the resources from being at any step: what differs from the step that most of
    /// them are at.
    fn diverged(&self, now: &MeshResources) -> Vec<String> {
        let keys = self.keys();
        (0..self.states.len())
            .map(|step| -> Vec<String> {
                keys.iter()
                    .filter(|key| !self.fits(key, step, now) && !self.fits(key, step + 1, now))
                    .map(|key| format!("{} {}", key.kind, key.name))
                    .collect()
            })
            .min_by_key(Vec::len)
            .unwrap_or_default()
    }

    /// Everything that the plan changes.
    fn keys(&self) -> BTreeSet<Key<'_>> {
        let changes = self.steps.iter().flat_map(|step| &step.changes);
        changes.map(|change| change.action.key()).collect()
    }

    /// Whether a resource is as it is to be after a step.
    fn fits(&self, key: &Key<'_>, step: usize, now: &MeshResources) -> bool {
        let Some(state) = self.states.get(step) else {
            return false;
        };
        match (find(state, key), find(now, key)) {
            (Some(Found::Mesh(wanted)), Some(Found::Mesh(found))) => same_mtls(wanted, found),
            (Some(Found::Identity(wanted)), Some(Found::Identity(found))) => {
                same_identity(wanted, found)
            }
            (Some(Found::Tls(wanted)), Some(Found::Tls(found))) => {
                tls::decides_alike(found, wanted)
            }
            (Some(Found::Trust(wanted)), Some(Found::Trust(found))) => {
                // The control plane may have added roots of its own. Of those that the plan knows,
                // none is missing and none left over.
                let known = self.known_bundles(key);
                wanted.trust_domain == found.trust_domain
                    && known
                        .iter()
                        .all(|bundle| has_bundle(wanted, bundle) == has_bundle(found, bundle))
            }
            (None, None) => true,
            // A control plane makes the MeshTrust of a MeshIdentity by itself: it may be there
            // before the plan puts it.
            (None, Some(Found::Trust(_))) => !self.deleted(key, step),
            _ => false,
        }
    }

    fn deleted(&self, key: &Key<'_>, step: usize) -> bool {
        self.steps.iter().take(step).any(|step| {
            step.changes.iter().any(|change| {
                matches!(change.action, Action::Delete { .. }) && change.action.key() == *key
            })
        })
    }

    fn known_bundles(&self, key: &Key<'_>) -> Vec<&CaBundle> {
        self.states
            .iter()
            .filter_map(|state| match find(state, key)? {
                Found::Trust(trust) => Some(&trust.ca_bundles),
                _ => None,
            })
            .flatten()
            .collect()
    }

    fn is_applied(&self, change: &Change, step: usize, now: &MeshResources) -> bool {
        let key = change.action.key();
        match change.action {
            Action::Delete { .. } => find(now, &key).is_none(),
            Action::Put(_) => find(now, &key).is_some() && self.fits(&key, step, now),
        }
    }

    /// The change, with everything that is not the plan's business as it is now.
    fn on_top_of(&self, planned: &Change, now: &MeshResources) -> Change {
        let key = planned.action.key();
        let found = find(now, &key);
        let mut change = planned.clone();
        let Action::Put(resource) = &mut change.action else {
            return change;
        };
        match (&mut *resource, found) {
            (Resource::Mesh(put), Some(Found::Mesh(_))) => {
                let mut mesh = now.mesh.clone();
                mesh.mtls = put.mtls.take();
                *put = mesh;
            }
            (Resource::MeshIdentity(put), Some(Found::Identity(found))) => {
                keep_envelope(&mut put.metadata, &found.metadata);
                put.status = found.status.clone();
            }
            (Resource::MeshTls(put), Some(Found::Tls(found))) => {
                let effect = put.metadata.label(tls::EFFECT).is_some();
                keep_envelope(&mut put.metadata, &found.metadata);
                // Whether a policy counts is the plan's business.
                if !effect {
                    put.metadata.labels.remove(tls::EFFECT);
                }
                put.status = found.status.clone();
            }
            (Resource::MeshTrust(put), Some(Found::Trust(found))) => {
                keep_envelope(&mut put.metadata, &found.metadata);
                put.status = found.status.clone();
                put.origin = found.origin.clone();
                let known = self.known_bundles(&key);
                let added = found
                    .ca_bundles
                    .iter()
                    .filter(|bundle| !known.iter().any(|it| same_bundle(it, bundle)));
                put.ca_bundles.extend(added.cloned());
            }
            _ => {}
        }
        change
    }
}

impl Change {
    pub(super) fn put(resource: impl Into<Resource>, why: &str) -> Self {
        Self {
            action: Action::Put(resource.into()),
            why: why.to_owned(),
        }
    }

    pub(super) fn delete(kind: &'static str, metadata: &Metadata, why: &str) -> Self {
        Self {
            action: Action::Delete {
                kind,
                namespace: metadata.namespace.clone(),
                name: metadata.name.clone(),
            },
            why: why.to_owned(),
        }
    }

    /// Does it to resources in memory. Done twice it is the same as done once.
    pub fn apply_to(&self, resources: &mut MeshResources) {
        fn put<T: Clone>(all: &mut Vec<T>, resource: &T, metadata: fn(&T) -> &Metadata) {
            let named = |it: &Metadata| (it.namespace.clone(), it.name.clone());
            let name = named(metadata(resource));
            match all.iter_mut().find(|it| named(metadata(it)) == name) {
                Some(found) => *found = resource.clone(),
                None => all.push(resource.clone()),
            }
        }
        match &self.action {
            Action::Put(Resource::Mesh(mesh)) => resources.mesh = mesh.clone(),
            Action::Put(Resource::MeshIdentity(it)) => {
                put(&mut resources.identities, it, |it| &it.metadata);
            }
            Action::Put(Resource::MeshTrust(it)) => {
                put(&mut resources.trusts, it, |it| &it.metadata);
            }
            Action::Put(Resource::MeshTls(it)) => put(&mut resources.tls, it, |it| &it.metadata),
            Action::Put(_) => {}
            Action::Delete {
                kind,
                namespace,
                name,
            } => {
                let other = |it: &Metadata| it.namespace != *namespace || it.name != *name;
                match *kind {
                    "MeshIdentity" => resources.identities.retain(|it| other(&it.metadata)),
                    "MeshTrust" => resources.trusts.retain(|it| other(&it.metadata)),
                    "MeshTLS" => resources.tls.retain(|it| other(&it.metadata)),
                    _ => {}
                }
            }
        }
    }
}

impl Action {
    pub(super) fn key(&self) -> Key<'_> {
        match self {
            Self::Put(resource) => Key {
                kind: resource.kind(),
                namespace: resource.metadata().namespace.as_deref(),
                name: &resource.metadata().name,
            },
            Self::Delete {
                kind,
                namespace,
                name,
            } => Key {
                kind,
                namespace: namespace.as_deref(),
                name,
            },
        }
    }
}

/// Which resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key<'a> {
    pub(super) kind: &'static str,
    namespace: Option<&'a str>,
    pub(super) name: &'a str,
}

impl Key<'_> {
    fn is(&self, metadata: &Metadata) -> bool {
        self.namespace == metadata.namespace.as_deref() && self.name == metadata.name
    }
}

enum Found<'a> {
    Mesh(&'a meshca_core::resource::Mesh),
    Identity(&'a MeshIdentity),
    Trust(&'a MeshTrust),
    Tls(&'a meshca_core::resource::MeshTls),
}

fn find<'a>(resources: &'a MeshResources, key: &Key<'_>) -> Option<Found<'a>> {
    let MeshResources {
        identities,
        trusts,
        tls,
        ..
    } = resources;
    match key.kind {
        "Mesh" => Some(Found::Mesh(&resources.mesh)),
        "MeshIdentity" => named(identities, key, |it| &it.metadata).map(Found::Identity),
        "MeshTrust" => named(trusts, key, |it| &it.metadata).map(Found::Trust),
        "MeshTLS" => named(tls, key, |it| &it.metadata).map(Found::Tls),
        _ => None,
    }
}

fn named<'a, T>(all: &'a [T], key: &Key<'_>, metadata: fn(&T) -> &Metadata) -> Option<&'a T> {
    all.iter().find(|it| key.is(metadata(it)))
}

/// Annotations, labels and what the server keeps belong to others.
fn keep_envelope(put: &mut Metadata, found: &Metadata) {
    put.annotations = found.annotations.clone();
    put.rest = found.rest.clone();
    for (label, value) in &found.labels {
        put.labels
            .entry(label.clone())
            .or_insert_with(|| value.clone());
    }
}

pub(super) fn same_mtls(a: &meshca_core::resource::Mesh, b: &meshca_core::resource::Mesh) -> bool {
    let (a, b) = match (&a.mtls, &b.mtls) {
        (Some(a), Some(b)) => (a, b),
        (None, None) => return true,
        (Some(one), None) | (None, Some(one)) => return *one == Mtls::default(),
    };
    a.enabled_backend == b.enabled_backend
        && a.backends.len() == b.backends.len()
        && a.backends.iter().zip(&b.backends).all(|(a, b)| {
            // How the settings are spelt is nobody's concern.
            a.name == b.name
                && a.provider == b.provider
                && a.mode == b.mode
                && a.dp_cert == b.dp_cert
                && a.root_chain == b.root_chain
        })
}

pub(super) fn same_identity(a: &MeshIdentity, b: &MeshIdentity) -> bool {
    a.selector == b.selector
        && a.trust_domain == b.trust_domain
        && a.path == b.path
        && same_provider(a, b)
}

pub(super) fn same_provider(a: &MeshIdentity, b: &MeshIdentity) -> bool {
    match (&a.provider, &b.provider) {
        (Some(IdentityProvider::Extension(a)), Some(IdentityProvider::Extension(b))) => {
            a.provider == b.provider && a.mode == b.mode
        }
        (a, b) => a == b,
    }
}

pub(super) fn has_bundle(trust: &MeshTrust, bundle: &CaBundle) -> bool {
    trust.ca_bundles.iter().any(|it| same_bundle(it, bundle))
}

fn same_bundle(a: &CaBundle, b: &CaBundle) -> bool {
    match (a, b) {
        (CaBundle::Pem(a), CaBundle::Pem(b)) => a.trim() == b.trim(),
        // A kind that is yet to come.
        #[allow(unreachable_patterns, reason = "the enum grows")]
        _ => a == b,
    }
}
