//! The names of CAs.

use meshca_core::resource::MeshIdentity;

/// A CA that the resources of a mesh name: by the name of the resource, since its roots may be
/// known only once it runs.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(
    clippy::exhaustive_enums,
    reason = "who stores these names must not overlook a third model"
)]
pub enum BackendKey {
    /// A backend of `Mesh.mtls`, by its name.
    #[display("the backend `{_0}`")]
    Classic(String),
    /// The provider of a MeshIdentity, by the identity's name.
    #[display("the MeshIdentity `{_0}`")]
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
