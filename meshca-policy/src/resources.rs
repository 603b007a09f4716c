//! What an operator wrote about one mesh.

use std::collections::BTreeSet;

use meshca_core::resource::{Mesh, MeshIdentity, MeshTls, MeshTrust, Metadata, Resource};
use meshca_core::{Error, ErrorKind, Result};

/// The resources of one mesh, all of them: the manager is given the whole, and finds out itself
/// what has changed.
///
/// ```
/// use meshca_core::resource::Resource;
/// use meshca_policy::MeshResources;
///
/// let documents = Resource::parse("
/// {type: Mesh, name: default}
/// ---
/// {type: MeshIdentity, name: all, mesh: default, spec: {selector: {dataplane: {matchLabels: {}}}}}
/// ")?;
/// let resources = MeshResources::from_resources(documents)?;
/// assert_eq!((resources.name(), resources.identities.len()), ("default", 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MeshResources {
    /// The mesh itself, with its classic CAs.
    pub mesh: Mesh,
    /// Who gets which identity.
    pub identities: Vec<MeshIdentity>,
    /// Whose certificates are believed.
    pub trusts: Vec<MeshTrust>,
    /// How strict proxies are.
    pub tls: Vec<MeshTls>,
}

impl MeshResources {
    /// A mesh without any other resource.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            mesh,
            identities: Vec::new(),
            trusts: Vec::new(),
            tls: Vec::new(),
        }
    }

    /// Sorts what was read; secrets are left out, they belong into a
    /// [`SecretStore`](meshca_core::SecretStore).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if there is not exactly one `Mesh`, if a resource belongs to
    /// another mesh, or if two of a kind have the same name and namespace; of MeshIdentities, the
    /// same name.
    pub fn from_resources(resources: impl IntoIterator<Item = Resource>) -> Result<Self> {
        let (mut meshes, mut identities, mut trusts, mut tls) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for resource in resources {
            match resource {
                Resource::Mesh(mesh) => meshes.push(mesh),
                Resource::MeshIdentity(identity) => identities.push(identity),
                Resource::MeshTrust(trust) => trusts.push(trust),
                Resource::MeshTls(policy) => tls.push(policy),
                _ => {}
            }
        }
        let mut meshes = meshes.into_iter();
        let (Some(mesh), None) = (meshes.next(), meshes.next()) else {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the resources of a mesh include exactly one `Mesh`: give each mesh its own call",
            ));
        };
        let all = Self {
            mesh,
            identities,
            trusts,
            tls,
        };
        all.validate()?;
        Ok(all)
    }

    /// The name of the mesh.
    pub fn name(&self) -> &str {
        &self.mesh.metadata.name
    }

    /// Refuses resources that cannot stand beside each other, as
    /// [`from_resources`](Self::from_resources) does with those that it reads.
    ///
    /// # Errors
    ///
    /// Those of [`from_resources`](Self::from_resources).
    pub fn validate(&self) -> Result<()> {
        self.check("MeshIdentity", &self.identities, |it| &it.metadata)?;
        self.check("MeshTrust", &self.trusts, |it| &it.metadata)?;
        self.check("MeshTLS", &self.tls, |it| &it.metadata)
    }

    fn check<T>(&self, kind: &'static str, all: &[T], of: fn(&T) -> &Metadata) -> Result<()> {
        let mut seen = BTreeSet::new();
        for metadata in all.iter().map(of) {
            let refuse = |why: String| {
                Err(Error::new(ErrorKind::InvalidConfig, why).with_context(kind, &metadata.name))
            };
            if metadata.mesh() != self.name() {
                return refuse(format!(
                    "it belongs to the mesh `{}`, and these are the resources of `{}`",
                    metadata.mesh(),
                    self.name()
                ));
            }
            // A MeshIdentity lives in the namespace of the control plane, and names a CA's
            // secrets and a MeshTrust: there is one.
            let namespace = metadata.namespace.as_deref();
            let namespace = namespace.filter(|_| kind != "MeshIdentity");
            if !seen.insert((namespace, metadata.name.as_str())) {
                return refuse("there are two of this name".to_owned());
            }
        }
        Ok(())
    }
}
