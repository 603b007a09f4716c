//! The names of CAs.

use std::fmt;

use meshca_core::resource::MeshIdentity;

/// A CA that the resources of a mesh name: by the name of the resource, since its roots may be
/// known only once it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(
    clippy::exhaustive_enums,
    reason = "who stores these names must not overlook a third model"
)]
pub enum BackendKey {
    /// A backend of `Mesh.mtls`, by its name.
    Classic(String),
    /// The provider of a MeshIdentity, by the identity's name.
    Modern(String),
}

impl BackendKey {
    pub(crate) fn classic(backend: &str) -> Self {
        Self::Classic(backend.to_owned())
    }

    pub(crate) fn of(identity: &MeshIdentity) -> Self {
        Self::Modern(identity.metadata.name.clone())
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Classic(name) => write!(f, "the backend `{name}`"),
            Self::Modern(name) => write!(f, "the MeshIdentity `{name}`"),
        }
    }
}
