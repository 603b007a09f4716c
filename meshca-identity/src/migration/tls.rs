//! Whether plaintext is accepted, and how a plan gets from one set of MeshTLS to another without opening a door.

use std::collections::{BTreeMap, BTreeSet};

use meshca_core::resource::{MeshTls, Mode, TargetKind};

use super::plan::{Action, Change};
use crate::MeshResources;

/// Which inbounds: those of a Dataplane that no policy treats apart, or one that has a section of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inbound<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) section: Option<&'a str>,
}

/// How strict the inbounds of a Dataplane are: the most specific MeshTLS with a mode, of equals the first by name; without one what
/// the enabled backend says; in the end strict.
pub(super) fn mode_of(
    resources: &MeshResources,
    labels: &BTreeMap<String, String>,
    inbound: Inbound<'_>,
) -> Mode {
    resources
        .tls
        .iter()
        .filter_map(|policy| {
            let mode = policy.rules.iter().find_map(|rule| rule.mode)?;
            let rank = rank(policy, labels, inbound)?;
            Some((std::cmp::Reverse(rank), &policy.metadata.name, mode))
        })
        .min_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)))
        .map(|(_, _, mode)| mode)
        .or_else(|| resources.mesh.enabled_backend().map(|backend| backend.mode))
        .unwrap_or_default()
}

/// How specific a policy is for a Dataplane; `None` if it is for others.
fn rank(
    policy: &MeshTls,
    labels: &BTreeMap<String, String>,
    inbound: Inbound<'_>,
) -> Option<(bool, u8, usize)> {
    let target = &policy.target;
    if target.kind == TargetKind::Mesh {
        return Some((false, 0, 0));
    }
    let mut wanted = target.labels.iter();
    if !wanted.all(|(label, value)| labels.get(label) == Some(value)) {
        return None;
    }
    let section = target.section_name.as_deref();
    if section.is_some() && section != inbound.section {
        return None;
    }
    match &target.name {
        Some(target) => {
            (Some(target.as_str()) == inbound.name).then_some((section.is_some(), 2, 0))
        }
        None => Some((section.is_some(), 1, target.labels.len())),
    }
}

/// Whether every proxy finds a mode without looking at the mesh.
pub(super) fn covers_all(tls: &[MeshTls]) -> bool {
    tls.iter().any(|policy| {
        policy.target.kind == TargetKind::Mesh
            && policy.rules.iter().any(|rule| rule.mode.is_some())
    })
}

/// Dataplanes that stand for all that the resources tell apart.
#[derive(Debug)]
pub(super) struct Kinds(Vec<Kind>);

type Kind = (BTreeMap<String, String>, Option<String>, Option<String>);

/// Up to so many different sets of labels every combination is looked at; beyond, each by itself and each pair.
const COMBINED: usize = 8;

impl Kinds {
    pub(super) fn new(all: &[&MeshResources]) -> Self {
        let mut sets = BTreeSet::new();
        let mut names = BTreeSet::from([None]);
        let mut sections = BTreeSet::from([None]);
        for resources in all {
            let selectors = resources
                .identities
                .iter()
                .filter_map(|it| it.selector.match_labels());
            let targets = resources.tls.iter().map(|policy| &policy.target);
            names.extend(targets.clone().map(|target| target.name.clone()));
            sections.extend(targets.clone().map(|target| target.section_name.clone()));
            sets.extend(
                selectors
                    .chain(targets.map(|target| &target.labels))
                    .filter(|labels| !labels.is_empty())
                    .cloned(),
            );
        }
        let mut kinds = BTreeSet::from([BTreeMap::new()]);
        let small = sets.len() <= COMBINED;
        for set in &sets {
            let base: Vec<_> = match small {
                true => kinds.iter().cloned().collect(),
                false => std::iter::once(BTreeMap::new())
                    .chain(sets.iter().cloned())
                    .collect(),
            };
            for mut labels in base {
                labels.extend(set.clone());
                kinds.insert(labels);
            }
        }
        let named = kinds
            .into_iter()
            .flat_map(|labels| names.iter().map(move |name| (labels.clone(), name.clone())));
        let all = named.flat_map(|(labels, name)| {
            let sections = sections.iter().cloned();
            sections.map(move |section| (labels.clone(), name.clone(), section))
        });
        Self(all.collect())
    }

    /// Those that refuse plaintext, by their place in the list.
    pub(super) fn strict(&self, resources: &MeshResources) -> BTreeSet<usize> {
        self.0
            .iter()
            .enumerate()
            .filter(|(_, (labels, name, section))| {
                let inbound = Inbound {
                    name: name.as_deref(),
                    section: section.as_deref(),
                };
                mode_of(resources, labels, inbound) == Mode::Strict
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Whether some accept plaintext.
    pub(super) fn any_permissive(&self, resources: &MeshResources) -> bool {
        self.strict(resources).len() < self.0.len()
    }
}

fn is_strict(policy: &MeshTls) -> bool {
    policy
        .rules
        .iter()
        .all(|rule| rule.mode.unwrap_or_default() == Mode::Strict)
}

/// Everything that is to be, those first that let plaintext in: a policy that makes an exception is there before the rule is.
pub(super) fn final_changes(now: &[MeshTls], to: &[MeshTls]) -> Vec<Change> {
    let same = |a: &MeshTls, b: &MeshTls| a.target == b.target && a.rules == b.rules;
    let mut wanted: Vec<&MeshTls> = to
        .iter()
        .filter(|policy| {
            !now.iter()
                .any(|it| key(it) == key(policy) && same(it, policy))
        })
        .collect();
    wanted.sort_by_key(|policy| is_strict(policy));
    let mut changes: Vec<Change> = wanted
        .into_iter()
        .map(|policy| {
            let why = match is_strict(policy) {
                true => "plaintext is refused",
                false => "plaintext is accepted as well, where this policy says so",
            };
            Change::put(policy.clone(), why)
        })
        .collect();
    changes.extend(
        now.iter()
            .filter(|policy| !to.iter().any(|it| key(it) == key(policy)))
            .map(|policy| Change {
                action: Action::delete("MeshTLS", &policy.metadata),
                why: "the mesh is to be without it".to_owned(),
            }),
    );
    changes
}

/// The policies that are to be, but accepting plaintext: so they change nothing for a mesh whose backend accepts it.
pub(super) fn permissive(to: &[MeshTls]) -> Vec<Change> {
    to.iter()
        .map(|policy| {
            let mut policy = policy.clone();
            for rule in &mut policy.rules {
                rule.mode = Some(Mode::Permissive);
            }
            Change::put(
                policy,
                "says what the mesh's backend says so far, so that the mesh does not need it any more; plaintext is still accepted",
            )
        })
        .collect()
}

fn key(policy: &MeshTls) -> (Option<&str>, &str) {
    let metadata = &policy.metadata;
    (metadata.namespace.as_deref(), &metadata.name)
}
