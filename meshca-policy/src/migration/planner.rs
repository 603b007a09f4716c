//! From two sets of resources to the steps between them.
//!
//! All moves are one: whoever may issue at the end is made known first (his CA, his SPIFFE IDs,
//! his roots), then the choice of who issues moves, and whoever does not issue any more is
//! forgotten last. What a given move does not need leaves its step empty, and an empty step leaves
//! only its gate.

mod checks;

use std::collections::BTreeSet;

use meshca_core::resource::{Backend, Mesh, MeshIdentity, MeshTrust, Metadata, Mtls, Selector};

use super::mode;
use super::observed::Requirement;
use super::obstacles::{Obstacle, Obstacles};
use super::options::PlanOptions;
use super::plan::{self, Change, Plan, Step};
use crate::BackendKey;
use crate::MeshResources;

/// Plans the way from the resources that a mesh has to those that it is to have.
///
/// # Errors
///
/// Everything that is in the way, with what to do first.
pub fn plan(
    from: &MeshResources,
    to: &MeshResources,
    options: &PlanOptions,
) -> Result<Plan, Obstacles> {
    Planner::new(from, to, options, false).plan()
}

impl Plan {
    /// Plans the way back to where this plan began, from wherever the mesh is now, in the middle
    /// of a step as well. It follows the same rules: peers believe the certificates of the new CA
    /// until no proxy has one. What had been good enough to begin with is good enough to go back
    /// to.
    ///
    /// # Errors
    ///
    /// Obstacles, if the resources were changed in another way than the plan does.
    pub fn rollback(&self, now: &MeshResources) -> Result<Self, Obstacles> {
        let options = PlanOptions {
            canary: None,
            ..self.options.clone()
        };
        Planner::new(now, &self.from, &options, true).plan()
    }
}

struct Planner<'a> {
    from: &'a MeshResources,
    to: &'a MeshResources,
    options: &'a PlanOptions,
    back: bool,
    obstacles: Vec<Obstacle>,
    steps: Vec<Step>,
    states: Vec<MeshResources>,
}

impl<'a> Planner<'a> {
    fn new(
        from: &'a MeshResources,
        to: &'a MeshResources,
        options: &'a PlanOptions,
        back: bool,
    ) -> Self {
        Self {
            from,
            to,
            options,
            back,
            obstacles: Vec::new(),
            steps: Vec::new(),
            states: vec![from.clone()],
        }
    }

    fn plan(mut self) -> Result<Plan, Obstacles> {
        self.look_for_obstacles();
        self.assign_identity();
        self.add_trust();
        self.enforce_tls();
        self.try_it();
        self.rotate();
        self.tighten();
        self.clean_up();
        self.no_door_opens();
        if !self.obstacles.is_empty() {
            return Err(Obstacles(self.obstacles));
        }
        Ok(Plan {
            from: self.from.clone(),
            to: self.to.clone(),
            options: self.options.clone(),
            steps: self.steps,
            states: self.states,
        })
    }

    /// The resources after the last step so far.
    fn now(&self) -> &MeshResources {
        self.states.last().unwrap_or(self.from)
    }

    fn step(
        &mut self,
        title: &str,
        why: &str,
        changes: Vec<Change>,
        gate: Vec<Requirement>,
        afterwards: Option<&str>,
    ) {
        let afterwards = afterwards.map(str::to_owned);
        let (title, why) = match self.steps.last_mut() {
            // Nothing to apply: what is to be waited for is waited for with the step before.
            Some(last) if changes.is_empty() => {
                let new = gate.into_iter();
                let new: Vec<_> = new.filter(|it| !last.gate.contains(it)).collect();
                last.gate.extend(new);
                last.afterwards.extend(afterwards);
                return;
            }
            None if changes.is_empty() && gate.is_empty() => return,
            None if changes.is_empty() => (
                "Look first",
                "the resources are as they should be, the proxies may not be there yet",
            ),
            _ => (title, why),
        };
        let mut after = self.now().clone();
        for change in &changes {
            change.apply_to(&mut after);
        }
        self.states.push(after);
        self.steps.push(Step {
            title: title.to_owned(),
            why: why.to_owned(),
            changes,
            gate,
            afterwards: afterwards.into_iter().collect(),
        });
    }

    // Who issues.

    /// Who issues for somebody at the end.
    fn arriving(&self) -> BTreeSet<BackendKey> {
        let identities = issuing(self.to).filter(|it| it.selector.match_labels().is_some());
        self.to
            .mesh
            .enabled_backend()
            .map(|backend| BackendKey::classic(&backend.name))
            .into_iter()
            .chain(identities.map(BackendKey::of))
            .collect()
    }

    /// Whether two MeshIdentities give a workload the same SPIFFE ID. A label of the resource can
    /// be part of the trust domain.
    fn same_ids(&self, a: &MeshIdentity, b: &MeshIdentity) -> bool {
        let domain = |it: &MeshIdentity| it.trust_domain_in(&self.options.zone).ok();
        a.path == b.path && a.trust_domain == b.trust_domain && domain(a) == domain(b)
    }

    /// Whether it issues already for everyone that it is to issue for.
    fn is_unchanged(&self, identity: &MeshIdentity) -> bool {
        named(self.from, &identity.metadata)
            .is_some_and(|it| it.provider.is_some() && it.selector == identity.selector)
    }

    /// MeshIdentities that issue now and are not to do so any more.
    fn leaving(&self) -> impl Iterator<Item = &'a MeshIdentity> {
        let to = self.to;
        issuing(self.from)
            .filter(move |it| named(to, &it.metadata).is_none_or(|it| it.provider.is_none()))
    }

    /// Whose SPIFFE IDs must be announced, because peers would not know them otherwise while the
    /// choice moves: whoever comes, goes or changes its range, if there is more than one kind of
    /// SPIFFE ID at all.
    fn announced(&self) -> Vec<&'a MeshIdentity> {
        let all = || issuing(self.from).chain(issuing(self.to));
        let classic = self
            .from
            .mesh
            .enabled_backend()
            .or(self.to.mesh.enabled_backend())
            .is_some();
        let mut kinds: Vec<&MeshIdentity> = Vec::new();
        for identity in all() {
            if !kinds.iter().any(|it| self.same_ids(it, identity)) {
                kinds.push(identity);
            }
        }
        if kinds.len() + usize::from(classic) < 2 {
            return Vec::new();
        }
        let arriving = issuing(self.to)
            .filter(|it| !self.is_unchanged(it) && it.selector.match_labels().is_some());
        let leaving = self
            .leaving()
            .filter(|it| it.selector.match_labels().is_some());
        arriving.chain(leaving).collect()
    }

    // The steps.

    fn assign_identity(&mut self) {
        let mut changes = Vec::new();
        let mut gate = Vec::new();
        for identity in self.announced() {
            let announcer = announcer(identity);
            let name = &identity.metadata.name;
            if named(self.from, &announcer.metadata) != Some(&announcer) {
                changes.push(Change::put(
                    announcer,
                    &format!(
                        "announces the SPIFFE IDs of `{name}`, so that peers accept them before and after anyone holds them"
                    ),
                ));
            }
            gate.push(Requirement::Accepts(BackendKey::of(identity)));
        }
        for identity in &self.to.identities {
            let idle = || identity.clone().with_selector(Selector::none());
            let (put, why) = match (named(self.from, &identity.metadata), &identity.provider) {
                (None, None) => (identity.clone(), "announces a SPIFFE ID and issues nothing"),
                (None, Some(_)) => (
                    idle(),
                    "selects nobody yet: its CA is set up, or asked whether it would sign",
                ),
                (Some(now), Some(_)) if now.provider.is_none() => (
                    idle(),
                    "gets its provider, and selects nobody yet: its CA is set up, or asked whether it would sign",
                ),
                _ => continue,
            };
            changes.push(Change::put(put, why));
        }
        self.step(
            "Assign identity",
            "a CA that cannot sign, and a SPIFFE ID that peers do not know, are found out before anyone depends on them",
            changes,
            gate,
            Some("nobody's certificate has changed; everyone would accept the new SPIFFE IDs"),
        );
    }

    /// `Mesh.mtls` with the CAs of both ends; leaves still come from where they come from.
    fn both(&self) -> Option<Mtls> {
        let (from, to) = match (&self.from.mesh.mtls, &self.to.mesh.mtls) {
            (Some(from), Some(to)) => (from, to),
            (one, other) => return one.as_ref().or(other.as_ref()).cloned(),
        };
        let mut both = from.clone();
        both.skip_validation |= to.skip_validation;
        let new = |it: &&Backend| !from.backends.iter().any(|known| known.name == it.name);
        both.backends
            .extend(to.backends.iter().filter(new).cloned());
        both.enabled_backend = from.enabled().or(to.enabled()).map(|it| it.name.clone());
        Some(both)
    }

    fn add_trust(&mut self) {
        let mut changes = Vec::new();
        let mut gate = Vec::new();
        let both = self.both();
        if both != self.from.mesh.mtls {
            changes.push(Change::put(
                with_mtls(&self.from.mesh, both),
                "lists the CAs of both ends: every proxy holds the roots of each, and certificates still come from where they came from",
            ));
        }
        for trust in &self.to.trusts {
            let domain = &trust.trust_domain;
            match find(&self.from.trusts, &trust.metadata, |it| &it.metadata) {
                None => changes.push(Change::put(
                    trust.clone(),
                    &format!("makes the roots of the trust domain `{domain}` known to every proxy"),
                )),
                Some(now) if now.trust_domain != trust.trust_domain => {}
                Some(now) => {
                    let new = trust.ca_bundles.iter();
                    let new: Vec<_> = new.filter(|it| !plan::has_bundle(now, it)).collect();
                    if !new.is_empty() {
                        let mut union = now.clone();
                        union.ca_bundles.extend(new.into_iter().cloned());
                        changes.push(Change::put(
                            union,
                            &format!("adds the new roots of the trust domain `{domain}` and keeps the old ones"),
                        ));
                    }
                }
            }
        }
        for issuer in self.arriving() {
            gate.push(Requirement::Ready(issuer.clone()));
            gate.push(Requirement::Trusts(issuer.clone()));
            gate.push(Requirement::Accepts(issuer));
        }
        // A control plane that makes MeshTrusts by itself may have done all of this step: the gate
        // before it must not be lost.
        if let Some(before) = self.steps.last() {
            let mut all = before.gate.clone();
            all.extend(gate.into_iter().filter(|it| !before.gate.contains(it)));
            gate = all;
        }
        self.step(
            "Add trusted CA",
            "a certificate must not be handed out before every peer can verify it",
            changes,
            gate,
            Some("every proxy believes the old and the new CA"),
        );
    }

    fn enforce_tls(&mut self) {
        let kinds = mode::kinds(&[self.from], 1);
        let changes = if kinds.iter().all(|it| mode::is_strict(self.from, it)) {
            mode::final_changes(&self.from.tls, &self.to.tls)
        } else if self.from.tls.is_empty() && !self.back {
            mode::permissive(&self.to.tls)
        } else {
            Vec::new()
        };
        self.tls_step(
            "Enforce TLS",
            "how strict a proxy is must not depend on what is about to go",
            changes,
            "no proxy is less strict than before",
        );
    }

    fn tls_step(&mut self, title: &str, why: &str, changes: Vec<Change>, afterwards: &str) {
        if !changes.is_empty() {
            let gate = vec![Requirement::Mode];
            self.step(title, why, changes, gate, Some(afterwards));
        }
    }

    fn try_it(&mut self) {
        let Some(canary) = &self.options.canary else {
            return;
        };
        let few = |identity: &MeshIdentity| {
            let mut labels = identity.selector.match_labels()?.clone();
            labels.extend(canary.clone());
            Some(identity.clone().with_selector(Selector::labels(labels)))
        };
        let changes: Vec<_> = issuing(self.to)
            .filter(|it| !self.is_unchanged(it))
            .filter_map(few)
            .map(|it| Change::put(it, "selects a few for a start"))
            .collect();
        if !changes.is_empty() {
            self.step(
                "Try it on a few",
                "what nobody has thought of hurts a few only",
                changes,
                vec![Requirement::Holds],
                Some("these have their new certificates and speak with all others"),
            );
        }
    }

    fn rotate(&mut self) {
        // Those who come before those who go: in between nobody is without an identity, and
        // whoever of both wins is believed.
        let now = self.now();
        let mut changes: Vec<Change> = issuing(self.to)
            .filter(|it| named(now, &it.metadata).is_none_or(|now| now.selector != it.selector))
            .map(|it| Change::put(it.clone(), "selects those that it is to select"))
            .collect();
        for identity in self.leaving() {
            if identity.selector.match_labels().is_some() {
                let idle = identity.clone().with_selector(Selector::none());
                changes.push(Change::put(idle, "selects nobody any more"));
            }
        }
        let enabled = self.to.mesh.enabled_backend().map(|it| it.name.clone());
        if let (Some(enabled), Some(mtls)) = (enabled, &now.mesh.mtls)
            && mtls.enabled_backend.as_ref() != Some(&enabled)
        {
            let why = format!("certificates come from `{enabled}` from now on");
            let mut mtls = mtls.clone();
            mtls.enabled_backend = Some(enabled);
            changes.push(Change::put(with_mtls(&now.mesh, Some(mtls)), &why));
        }
        self.step(
            "Rotate",
            "every proxy knows how to verify what is issued now, so certificates can be replaced in any order",
            changes,
            vec![Requirement::Holds],
            Some("every proxy serves a certificate of the new CA; the old one is still believed"),
        );
    }

    fn tighten(&mut self) {
        let changes = mode::final_changes(&self.now().tls, &self.to.tls);
        let (title, why, afterwards) = match self.back {
            true => (
                "Restore TLS",
                "how strict a proxy is becomes what it was",
                "proxies are as strict as they were",
            ),
            false => (
                "Refuse plaintext",
                "everyone has an identity now; make sure that nobody outside of the mesh still comes without",
                "plaintext is accepted only where the resources say so",
            ),
        };
        self.tls_step(title, why, changes, afterwards);
    }

    fn clean_up(&mut self) {
        let now = self.now();
        let mut changes = Vec::new();
        let mut gate = vec![Requirement::Holds, Requirement::Mode];
        if !plan::same_mtls(&now.mesh, &self.to.mesh) {
            let why = match self.to.mesh.mtls {
                None => "the mesh does not need a CA of its own any more",
                Some(_) => "lists only the CAs that are left",
            };
            let mesh = with_mtls(&now.mesh, self.to.mesh.mtls.clone());
            changes.push(Change::put(mesh, why));
        }
        for identity in &now.identities {
            match named(self.to, &identity.metadata) {
                Some(to) if plan::same_identity(to, identity) => {}
                Some(to) => changes.push(Change::put(to.clone(), "announces and issues nothing")),
                None => {
                    let why = match identity.provider {
                        Some(_) => "nobody holds a certificate of its CA",
                        None => "its SPIFFE IDs need not be announced any more",
                    };
                    changes.push(Change::delete("MeshIdentity", &identity.metadata, why));
                }
            }
        }
        // After the MeshIdentities: as long as one is there, the control plane may make its
        // MeshTrust again.
        for trust in &now.trusts {
            match find(&self.to.trusts, &trust.metadata, |it| &it.metadata) {
                // Nobody wrote it: the control plane made it, and it is in use.
                None if issuing(self.to).any(|it| is_made_from(trust, it)) => {}
                None => changes.push(forget(&trust.metadata)),
                Some(to) if trust.ca_bundles.iter().any(|it| !plan::has_bundle(to, it)) => {
                    changes.push(Change::put(
                        to.clone(),
                        "keeps only the roots that are needed",
                    ));
                }
                Some(_) => {}
            }
        }
        for identity in self.leaving() {
            let trust =
                |all: &[MeshTrust]| find(all, &identity.metadata, |it| &it.metadata).is_some();
            if !trust(&self.to.trusts) {
                if !trust(&now.trusts) {
                    changes.push(forget(&identity.metadata));
                }
                gate.push(Requirement::Forgets(BackendKey::of(identity)));
            }
        }
        let backends = |mesh: &'a Mesh| mesh.mtls.iter().flat_map(|it| &it.backends);
        for backend in backends(&self.from.mesh) {
            if !backends(&self.to.mesh).any(|it| it.name == backend.name) {
                gate.push(Requirement::Forgets(BackendKey::classic(&backend.name)));
            }
        }
        let afterwards =
            "only the new CA is believed: whoever has the old one's key has gained nothing";
        let afterwards = Some(afterwards).filter(|_| !changes.is_empty());
        self.step(
            "Clean up",
            "a root that nobody needs is a root that can be stolen",
            changes,
            gate,
            afterwards,
        );
    }
}

/// Whether a control plane makes this MeshTrust from this MeshIdentity.
fn is_made_from(trust: &MeshTrust, identity: &MeshIdentity) -> bool {
    let name = identity.metadata.name.as_str();
    match &trust.origin {
        Some(origin) => origin.name() == name,
        None => trust.metadata.name == name,
    }
}

fn forget(trust: &Metadata) -> Change {
    Change::delete("MeshTrust", trust, "no certificate in use needs its roots")
}

fn with_mtls(mesh: &Mesh, mtls: Option<Mtls>) -> Mesh {
    let mut mesh = mesh.clone();
    mesh.mtls = mtls;
    mesh
}

fn issuing(resources: &MeshResources) -> impl Iterator<Item = &MeshIdentity> {
    resources
        .identities
        .iter()
        .filter(|identity| identity.provider.is_some())
}

fn named<'r>(resources: &'r MeshResources, name: &Metadata) -> Option<&'r MeshIdentity> {
    find(&resources.identities, name, |it| &it.metadata)
}

fn find<'r, T>(all: &'r [T], name: &Metadata, metadata: fn(&T) -> &Metadata) -> Option<&'r T> {
    all.iter().find(|it| {
        let it = metadata(it);
        it.name == name.name && it.namespace == name.namespace
    })
}

/// A MeshIdentity that only announces, for everyone, what another one gives. The more specific a
/// MeshIdentity is the later it is known who gets it, and it does no harm to expect of a workload
/// an ID that only it could have.
fn announcer(identity: &MeshIdentity) -> MeshIdentity {
    let mut metadata = identity.metadata.clone();
    metadata.name.push_str("-announced");
    metadata.annotations.clear();
    metadata.rest = Default::default();
    let mut announcer = MeshIdentity::new(metadata).with_selector(Selector::all());
    announcer.trust_domain = identity.trust_domain.clone();
    announcer.path = identity.path.clone();
    announcer
}
