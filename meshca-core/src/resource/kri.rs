//! Names of resources that are unique across a whole deployment.

use std::str::FromStr;

use super::decode::Clip;
use crate::{Error, ErrorKind};

/// A Kuma Resource Identifier: `kri_<short>_<mesh>_<zone>_<namespace>_<name>_<section>`, where every
/// part but the short name of the kind may be empty.
///
/// The short names are `m` (Mesh), `mid` (MeshIdentity), `mtrust` (MeshTrust), `mtls` (MeshTLS) and
/// `dp` (Dataplane).
///
/// ```
/// use meshca_core::resource::Kri;
///
/// let kri: Kri = "kri_mid_default_default_kuma-system_my-identity_".parse()?;
/// assert_eq!((kri.short(), kri.mesh(), kri.name()), ("mid", "default", "my-identity"));
/// assert_eq!(kri, Kri::new("mid", "default", "default", "kuma-system", "my-identity", "")?);
/// assert_eq!(kri.to_string(), "kri_mid_default_default_kuma-system_my-identity_");
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display)]
#[display("kri_{short}_{mesh}_{zone}_{namespace}_{name}_{section}")]
pub struct Kri {
    short: String,
    mesh: String,
    zone: String,
    namespace: String,
    name: String,
    section: String,
}

impl Kri {
    /// Puts the parts together.
    ///
    /// # Errors
    ///
    /// `InvalidConfig` if the short name is empty or a part contains `_`, which separates the parts.
    pub fn new(
        short: &str,
        mesh: &str,
        zone: &str,
        namespace: &str,
        name: &str,
        section: &str,
    ) -> Result<Self, Error> {
        let refuse = |message: String| Err(Error::new(ErrorKind::InvalidConfig, message));
        if short.is_empty() {
            let message = "a KRI needs the short name of a kind, such as `mid`";
            return refuse(message.to_owned());
        }
        let parts = [short, mesh, zone, namespace, name, section];
        if let Some(part) = parts.iter().find(|part| part.contains('_')) {
            let part = Clip(part);
            return refuse(format!(
                "`{part}` cannot be part of a KRI: `_` separates its parts"
            ));
        }
        let [short, mesh, zone, namespace, name, section] = parts.map(str::to_owned);
        Ok(Self {
            short,
            mesh,
            zone,
            namespace,
            name,
            section,
        })
    }

    /// The short name of the kind.
    pub fn short(&self) -> &str {
        &self.short
    }

    /// The mesh; empty for what belongs to none.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// The zone; empty for what was made on the global control plane.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The Kubernetes namespace; empty outside Kubernetes.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part of the resource that is meant; empty for all of it.
    pub fn section(&self) -> &str {
        &self.section
    }
}

impl FromStr for Kri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<_> = text.splitn(8, '_').collect();
        match parts.as_slice() {
            ["kri", short, mesh, zone, namespace, name, section] if !short.is_empty() => {
                Self::new(short, mesh, zone, namespace, name, section)
            }
            _ => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "`{}` is not a KRI: that is `kri_<short>_<mesh>_<zone>_<namespace>_<name>_<section>`",
                    Clip(text)
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn malformed_names_are_refused() {
        for text in [
            "",
            "kri",
            "kri_mid",
            "kri_mid_a_b_c_d",
            "kri_mid_a_b_c_d_e_f",
            "x_mid_a_b_c_d_e",
            "kri__a_b_c_d_e",
        ] {
            assert!(text.parse::<Kri>().is_err(), "{text}");
        }
        assert!(Kri::new("mid", "a_b", "", "", "", "").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(parts in prop::array::uniform5("[a-z0-9.-]{0,8}")) {
            let [mesh, zone, namespace, name, section] = &parts;
            let kri = Kri::new("mtrust", mesh, zone, namespace, name, section).unwrap();
            prop_assert_eq!(kri.to_string().parse::<Kri>().unwrap(), kri);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = text.parse::<Kri>();
        }
    }
}
