//! What is in the way of a plan.

use meshca_core::resource::{
    IdentityProvider, Mesh, MeshIdentity, MeshTrustCreation, Mode, Selector,
};
use serde::Deserialize;

use super::super::mode;
use super::super::obstacles::{Obstacle, ObstacleKind};
use super::super::plan;
use super::{Planner, announcer, find, issuing, named};

impl<'a> Planner<'a> {
    fn obstacle(
        &mut self,
        kind: ObstacleKind,
        resource: impl Into<String>,
        why: impl Into<String>,
        first: impl Into<String>,
    ) {
        self.obstacles.push(Obstacle {
            kind,
            resource: resource.into(),
            why: why.into(),
            first: first.into(),
        });
    }

    /// Finds the first change after which a proxy accepts plaintext that refuses it now, also in the
    /// middle of a step. On the way back, it counts only if the mesh refused it before as well.
    pub(super) fn no_door_opens(&mut self) {
        let mut before = vec![self.from];
        before.extend(Some(self.to).filter(|_| self.back));
        let states: Vec<_> = before.iter().copied().chain(&self.states).collect();
        // What decides at each of these times, and what decides on the way.
        let mut strict = mode::kinds(&states, before.len() + 1);
        strict.retain(|kind| before.iter().all(|it| mode::is_strict(it, kind)));

        let mut now = self.from.clone();
        let mut changes = self.steps.iter().flat_map(|step| &step.changes);
        let opens = changes.find(|change| {
            change.apply_to(&mut now);
            matches!(change.action.key().kind, "Mesh" | "MeshTLS")
                && strict.iter().any(|kind| !mode::is_strict(&now, kind))
        });
        if let Some(change) = opens {
            let key = change.action.key();
            let resource = format!("{} {}", key.kind, key.name);
            self.obstacle(
                ObstacleKind::Loosens,
                resource,
                "with it, plaintext would be accepted where it is refused now",
                "move the mesh as strict as it is, and change how strict it is by itself, before or after",
            );
        }
    }

    pub(super) fn look_for_obstacles(&mut self) {
        let (from, to) = (self.from, self.to);
        if from.name() != to.name() {
            self.obstacle(
                ObstacleKind::AnotherMesh,
                format!("Mesh {}", to.name()),
                format!("the mesh that is to be moved is `{}`", from.name()),
                "plan each mesh by itself",
            );
        }
        self.same_names();
        self.trust_domains();
        if self.back {
            return;
        }
        let mesh = format!("Mesh {}", from.name());
        if from.mesh.enabled_backend().is_none() && issuing(from).next().is_none() {
            self.obstacle(
                ObstacleKind::NoIdentity,
                mesh.clone(),
                "nobody in it has an identity, so there is nothing to move",
                "switch mTLS on, with a backend in `mode: PERMISSIVE` or a MeshIdentity and a MeshTLS in `mode: Permissive`, \
                 until every proxy has a certificate",
            );
        }
        let catch_all = |it: &MeshIdentity| it.selector == Selector::all();
        if to.mesh.enabled_backend().is_none() && !issuing(to).any(catch_all) {
            self.obstacle(
                ObstacleKind::NotCovered,
                mesh.clone(),
                "Dataplanes that no MeshIdentity selects would be left without an identity",
                "add a MeshIdentity with `selector: {dataplane: {matchLabels: {}}}` to what the mesh is to have: \
                 a more specific one still wins; or keep the backend for them",
            );
        }
        if from.mesh.enabled_backend().is_none() || self.announced().is_empty() {
            return;
        }
        // From here on, classic identities go: of all or of some.
        for policy in self.options.tag_rules.clone() {
            self.obstacle(
                ObstacleKind::TagRule,
                policy,
                "it tells peers apart by their `kuma://` tags, and certificates of a MeshIdentity carry a SPIFFE ID only, so it \
                 would match nobody",
                "let it match SPIFFE IDs (`spiffe://<trust domain>/…`), of both models as long as both are in use",
            );
        }
        if !is_exclusive(&from.mesh) {
            self.obstacle(
                ObstacleKind::MeshServices,
                mesh.clone(),
                "`meshServices.mode` is not `Exclusive`: peers are then addressed by their tag `kuma.io/service`, and proxies do not \
                 learn which SPIFFE IDs a MeshIdentity gives them",
                "set `meshServices: {mode: Exclusive}`, and move routes and policies to MeshServices",
            );
        }
        let permissive = from
            .mesh
            .enabled_backend()
            .is_some_and(|it| it.mode == Mode::Permissive);
        let covered = |resources| mode::covers_all(resources, &self.options.zone);
        if permissive && !covered(from) && !covered(to) {
            self.obstacle(
                ObstacleKind::PermissiveWithoutMeshTls,
                mesh,
                "its backend is PERMISSIVE, and no MeshTLS says whether plaintext is to be accepted without it: the default is \
                 Strict, and whoever comes in plaintext would be cut off",
                "add a MeshTLS for the whole mesh to what it is to have: `mode: Permissive` to leave that as it is, or `mode: Strict` \
                 to have plaintext refused at the end, once nobody needs it",
            );
        }
    }

    fn same_names(&mut self) {
        for identity in &self.to.identities {
            let name = &identity.metadata.name;
            let other_ca = |now: &&MeshIdentity| {
                now.provider.is_some()
                    && identity.provider.is_some()
                    && !(self.same_ids(now, identity) && plan::same_provider(now, identity))
            };
            if named(self.from, &identity.metadata)
                .filter(other_ca)
                .is_some()
            {
                self.obstacle(
                    ObstacleKind::SameName,
                    format!("MeshIdentity {name}"),
                    "its provider or its SPIFFE IDs would change in place, and certificates of before and after must be valid side by side",
                    "leave it as it is, and give the new one another name",
                );
            }
        }
        for identity in self.announced() {
            let announcer = announcer(identity).metadata;
            let taken = [self.from, self.to]
                .iter()
                .filter_map(|resources| named(resources, &announcer))
                .any(|it| it.provider.is_some());
            if taken {
                self.obstacle(
                    ObstacleKind::SameName,
                    format!("MeshIdentity {}", announcer.name),
                    format!(
                        "the plan needs this name to announce the SPIFFE IDs of `{}`",
                        identity.metadata.name
                    ),
                    "give one of them another name",
                );
            }
        }
        let backends = |mesh: &'a Mesh| mesh.mtls.iter().flat_map(|it| &it.backends);
        for backend in backends(&self.to.mesh) {
            let mut now = backends(&self.from.mesh).filter(|it| it.name == backend.name);
            if now.any(|it| it.provider != backend.provider) {
                self.obstacle(
                    ObstacleKind::SameName,
                    format!("Mesh {}, backend {}", self.to.name(), backend.name),
                    "its CA would change in place, and the roots of both must be believed side by side",
                    "leave it as it is, and give the new one another name",
                );
            }
        }
        for trust in &self.to.trusts {
            let now = find(&self.from.trusts, &trust.metadata, |it| &it.metadata);
            if now.is_some_and(|it| it.trust_domain != trust.trust_domain) {
                self.obstacle(
                    ObstacleKind::SameName,
                    format!("MeshTrust {}", trust.metadata.name),
                    "its trust domain would change in place, and the roots of both must be believed side by side",
                    "leave it as it is, and give the new one another name",
                );
            }
        }
    }

    fn trust_domains(&mut self) {
        for identity in &self.to.identities {
            let resource = format!("MeshIdentity {}", identity.metadata.name);
            let domain = match identity.trust_domain_in(&self.options.zone) {
                Ok(domain) => domain,
                Err(error) => {
                    self.obstacle(
                        ObstacleKind::Template,
                        resource,
                        format!("its trust domain cannot be told: {error}"),
                        "correct `spiffeID.trustDomain`",
                    );
                    continue;
                }
            };
            let brought = match &identity.provider {
                None => true,
                Some(IdentityProvider::Spire(_)) => false,
                Some(IdentityProvider::Bundled(it)) => {
                    it.mesh_trust_creation == MeshTrustCreation::Enabled
                }
                Some(_) => true,
            };
            if !brought && !self.to.trusts.iter().any(|it| it.trust_domain == domain) {
                self.obstacle(
                    ObstacleKind::NoTrust,
                    resource,
                    format!("nobody makes a MeshTrust for it, and none is given for the trust domain `{domain}`: its certificates would be refused"),
                    "add a MeshTrust with the roots of its CA",
                );
            }
        }
    }
}

/// Whether services are addressed as MeshServices only.
fn is_exclusive(mesh: &Mesh) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rest {
        mesh_services: Option<MeshServices>,
    }
    #[derive(Deserialize)]
    struct MeshServices {
        mode: Option<String>,
    }
    let rest = mesh.rest.decode::<Rest>();
    let mode = rest.ok().and_then(|rest| rest.mesh_services?.mode);
    mode.as_deref() == Some("Exclusive")
}
