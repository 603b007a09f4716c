//! What proxies call their secrets.
//!
//! | name | what it is | whose word |
//! |---|---|---|
//! | `identity_cert:secret:<mesh>` | the identity | Kuma's classic resources |
//! | `mesh_ca:secret:<mesh>` | the trust | Kuma's classic resources |
//! | `kri_mid_<mesh>_<zone>_<namespace>_<name>_` | the identity, of this MeshIdentity | Kuma's MeshIdentity |
//! | `system_trust_bundle` | the trust | Kuma's MeshTrust |
//! | `default`, or the SPIFFE ID itself | the identity | SPIRE's agent |
//! | `ROOTCA` | the trust, of the proxy's own trust domain alone | SPIRE's agent |
//! | `spiffe://<trust domain>` | the trust, of this trust domain alone | SPIRE's agent |
//! | `ALL` | the trust | SPIRE's agent |

/// The trust of the mesh, in the modern model.
pub const SYSTEM_TRUST_BUNDLE: &str = "system_trust_bundle";
/// The identity, as a SPIRE agent calls it (`default_svid_name`).
pub const SPIRE_IDENTITY: &str = "default";
/// The trust of the proxy's own trust domain, as a SPIRE agent calls it (`default_bundle_name`).
pub const SPIRE_BUNDLE: &str = "ROOTCA";
/// The trust of all trust domains, as a SPIRE agent calls it (`default_all_bundles_name`).
pub const SPIRE_ALL_BUNDLES: &str = "ALL";

const CLASSIC_IDENTITY: &str = "identity_cert:secret:";
const CLASSIC_TRUST: &str = "mesh_ca:secret:";

/// The identity, in the classic model.
///
/// ```
/// assert_eq!(meshca_xds::names::classic_identity("default"), "identity_cert:secret:default");
/// ```
pub fn classic_identity(mesh: &str) -> String {
    format!("{CLASSIC_IDENTITY}{mesh}")
}

/// The trust, in the classic model.
///
/// ```
/// assert_eq!(meshca_xds::names::classic_trust("default"), "mesh_ca:secret:default");
/// ```
pub fn classic_trust(mesh: &str) -> String {
    format!("{CLASSIC_TRUST}{mesh}")
}

pub(crate) fn is_classic_identity(name: &str, mesh: &str) -> bool {
    name.strip_prefix(CLASSIC_IDENTITY) == Some(mesh)
}

pub(crate) fn is_classic_trust(name: &str, mesh: &str) -> bool {
    name.strip_prefix(CLASSIC_TRUST) == Some(mesh)
}
