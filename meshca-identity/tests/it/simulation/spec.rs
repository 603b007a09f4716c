//! Resources, as operators write and change them.

use meshca_identity::MeshResources;

use super::cas::TYPES;
use super::dice::Dice;
use crate::world::resources;

/// The names of meshes. They are used again, by other tenants too.
pub(super) const MESHES: [&str; 2] = ["m0", "m1"];

/// Who signs for a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The mesh was removed.
    Gone,
    /// Without identities.
    Off,
    /// The built-in CA, which is replaced every other day.
    Classic,
    /// A generated CA.
    Bundled,
    /// A CA of these types.
    Vendor(usize),
    /// Two MeshIdentities with a CA each, of which one wins.
    Two,
}

/// The resources of one mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) tenant: usize,
    pub(super) kind: Kind,
    /// Which trust domain.
    pub(super) domain: usize,
    /// How often settings were changed.
    pub(super) edits: usize,
}

impl Spec {
    pub(super) fn drawn(dice: &mut Dice) -> Self {
        Self {
            tenant: 0,
            kind: Self::some_kind(dice),
            domain: 0,
            edits: 0,
        }
    }

    pub(super) fn some_kind(dice: &mut Dice) -> Kind {
        use Kind::*;
        dice.pick(&[
            Classic,
            Classic,
            Classic,
            Vendor(0),
            Vendor(1),
            Bundled,
            Two,
        ])
    }

    /// Whether workloads are to have identities.
    pub(super) fn is_on(&self) -> bool {
        !matches!(self.kind, Kind::Gone | Kind::Off)
    }

    pub(super) fn trust_domain(&self, mesh: &str) -> String {
        match self.kind {
            Kind::Classic => mesh.to_owned(),
            _ => format!("d{}.t{}.{mesh}.org", self.domain, self.tenant),
        }
    }

    /// Who a workload of this name is to be.
    pub(super) fn spiffe_id(&self, mesh: &str, name: &str) -> String {
        let domain = self.trust_domain(mesh);
        match self.kind {
            Kind::Classic => format!("spiffe://{domain}/{name}"),
            _ => format!("spiffe://{domain}/workload/{name}"),
        }
    }

    /// The CA of its workloads that is not built in.
    pub(super) fn vendor(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Vendor(n) => Some(TYPES[n]),
            Kind::Two => Some(TYPES[1]),
            _ => None,
        }
    }

    /// The names of its CAs.
    pub(super) fn backends(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Gone | Kind::Off => &[],
            Kind::Classic => &["one"],
            Kind::Bundled | Kind::Vendor(_) => &["id"],
            Kind::Two => &["id", "more"],
        }
    }

    /// `None` if the mesh is gone.
    pub(super) fn resources(&self, mesh: &str) -> Option<MeshResources> {
        let off = format!("{{type: Mesh, name: {mesh}}}\n");
        let domain = self.trust_domain(mesh);
        let identity = |name: &str, labels: &str, provider: &str| {
            format!(
                "---\n{{type: MeshIdentity, name: {name}, mesh: {mesh}, spec: {{selector: {{dataplane: {{matchLabels: {labels}}}}}, \
                 spiffeID: {{trustDomain: {domain}}}, provider: {provider}}}}}\n"
            )
        };
        let vendor = |n: usize| {
            format!(
                "{{type: Extension, extension: {{name: {}, config: {{x: {}}}}}}}",
                TYPES[n], self.edits
            )
        };
        let text = match self.kind {
            Kind::Gone => return None,
            Kind::Off => off,
            Kind::Classic => format!(
                "{{type: Mesh, name: {mesh}, mtls: {{enabledBackend: one, backends: [{{name: one, type: builtin, \
                 dpCert: {{rotation: {{expiration: {}h}}}}, conf: {{caCert: {{expiration: 48h}}}}}}]}}}}\n",
                6 - self.edits % 3
            ),
            Kind::Bundled => {
                off + &identity(
                    "id",
                    "{}",
                    "{type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}",
                )
            }
            Kind::Vendor(n) => off + &identity("id", "{}", &vendor(n)),
            Kind::Two => {
                off + &identity("id", "{}", &vendor(0))
                    + &identity("more", "{app: web}", &vendor(1))
            }
        };
        Some(resources(&text))
    }
}
