//! Where a certificate, a key or a token comes from.

use std::path::PathBuf;

use crate::SecretValue;

/// A data source of the classic model (`Mesh.mtls`): exactly one of `secret`, `file`, `inline`
/// and `inlineString`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataSource {
    /// `secret`: the name of a secret of the mesh.
    Secret(String),
    /// `file`: a path on the control plane's host.
    File(PathBuf),
    /// `inline`: the bytes themselves, base64 in the document and decoded here.
    Inline(SecretValue),
    /// `inlineString`: the text itself.
    InlineString(SecretValue),
}

/// A data source of the modern model (`MeshIdentity`): `type` and the setting that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecureDataSource {
    /// `type: File`: an absolute path without `..` on the control plane's host.
    File(PathBuf),
    /// `type: Secret`: the name of a secret of the mesh.
    Secret(String),
    /// `type: EnvVar`: the name of an environment variable of the control plane.
    EnvVar(String),
    /// `type: InsecureInline`: the text itself.
    InsecureInline(SecretValue),
}
