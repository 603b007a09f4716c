//! Why a mesh cannot be moved, and what to do first.

use derive_more::{Display, Error};

/// One reason why there is no plan.
#[derive(Clone, Debug, Display, PartialEq, Eq)]
#[display("{resource}: {why}. First: {first}.")]
#[non_exhaustive]
pub struct Obstacle {
    /// What kind of reason.
    pub kind: ObstacleKind,
    /// The resource: `MeshIdentity vault`.
    pub resource: String,
    /// Why it is in the way.
    pub why: String,
    /// What to do first.
    pub first: String,
}

/// Why a mesh cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ObstacleKind {
    /// The resources are those of two meshes.
    AnotherMesh,
    /// Nobody has an identity now, or nobody is to have one.
    NoIdentity,
    /// Some Dataplanes would be left without an identity.
    NotCovered,
    /// A policy tells peers apart by `kuma://` tags, which modern certificates do not carry.
    TagRule,
    /// The mesh accepts plaintext, and no MeshTLS says whether it is to do so without `Mesh.mtls`.
    PermissiveWithoutMeshTls,
    /// Plaintext would be accepted where it is refused now.
    Loosens,
    /// `meshServices.mode` is not `Exclusive`, so peers are not known by what MeshIdentities
    /// announce.
    MeshServices,
    /// The same name stands for another CA, which would leave no time for both.
    SameName,
    /// Nothing would bring the roots of a CA to the proxies.
    NoTrust,
    /// A template does not fit.
    Template,
}

/// All reasons why there is no plan. `Display` has one line for each.
#[derive(Clone, Debug, Display, Error, PartialEq, Eq)]
#[display("{}", lines(_0))]
pub struct Obstacles(#[error(not(source))] pub(super) Vec<Obstacle>);

fn lines(obstacles: &[Obstacle]) -> String {
    let lines: Vec<_> = obstacles.iter().map(Obstacle::to_string).collect();
    lines.join("\n")
}

impl Obstacles {
    /// The reasons, at least one.
    pub fn iter(&self) -> std::slice::Iter<'_, Obstacle> {
        self.0.iter()
    }
}

impl<'o> IntoIterator for &'o Obstacles {
    type Item = &'o Obstacle;
    type IntoIter = std::slice::Iter<'o, Obstacle>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
