use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{SecretKey, SecretStore, SecretValue, file};
use crate::resource::{DataSource, SecureDataSource};
use crate::{Error, ErrorKind, Result, TrustBundle, TrustDomain};

/// Whether a resource may name files and environment variables of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LocalSources {
    /// Files and environment variables are read. The default, as everywhere in the field: who writes
    /// resources also runs the control plane.
    #[default]
    Allowed,
    /// They are refused. For a hosted control plane, whose users would otherwise read its own files.
    Refused,
    /// Those on a list are read, and all others refused. For a control plane whose operator mounts
    /// some files for its users.
    Listed(ListedSources),
}

impl LocalSources {
    /// Returns `true` if the control plane may act under its own identity for a resource that
    /// names no credentials: its AWS role, for instance.
    pub fn lend_identity(&self) -> bool {
        match self {
            Self::Allowed => true,
            Self::Refused => false,
            Self::Listed(listed) => listed.0.identity,
        }
    }
}

/// The local sources that resources may name, for [`LocalSources::Listed`]. Empty until something
/// is added.
///
/// ```
/// use meshca_core::secret::{ListedSources, LocalSources};
///
/// let listed = ListedSources::new().with_folder("/etc/mesh/public").with_variable("MESH_VAULT_TOKEN");
/// let local = LocalSources::Listed(listed);
/// assert!(!local.lend_identity());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[must_use]
pub struct ListedSources(Arc<Listed>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Listed {
    folders: BTreeSet<PathBuf>,
    variables: BTreeSet<String>,
    identity: bool,
}

impl ListedSources {
    /// Nothing: as [`LocalSources::Refused`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the files in this folder and in those below. Links in it are followed as long as they
    /// lead to a file in it, as those do by which Kubernetes mounts secrets.
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        Arc::make_mut(&mut self.0).folders.insert(folder.into());
        self
    }

    /// Adds the environment variable of this name.
    pub fn with_variable(mut self, name: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.0).variables.insert(name.into());
        self
    }

    /// Lets resources without credentials have the control plane act under its own identity.
    pub fn with_identity(mut self) -> Self {
        Arc::make_mut(&mut self.0).identity = true;
        self
    }

    /// Returns the file to open. `None` if it is not in a folder of the list.
    fn file(&self, path: &Path) -> Option<PathBuf> {
        let within = |path: &Path, folder: &Path| {
            path.starts_with(folder) && path.components().all(|part| part != Component::ParentDir)
        };
        let mut folders = self.0.folders.iter();
        let folder = folders.find(|folder| within(path, folder))?;
        // Only now is the file looked at: there must be no way to find out what lies elsewhere.
        match (path.canonicalize(), folder.canonicalize()) {
            (Ok(real), Ok(folder)) => within(&real, &folder).then_some(real),
            // It is not there, say: reading it gives the error.
            _ => Some(path.to_owned()),
        }
    }
}

/// Where a secret comes from: what both kinds of data source have in common, borrowed from either.
///
/// [`SourceReader::read`] takes it, and so a `&`[`DataSource`] and a `&`[`SecureDataSource`] as well.
/// Showing it tells the place and never the value: `secret vault-token`, `file /etc/ca.pem`,
/// `environment variable TOKEN`, `inline value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, derive_more::Display)]
#[non_exhaustive]
pub enum SourceRef<'a> {
    /// A secret of the mesh, by name.
    #[display("secret {_0}")]
    Secret(&'a str),
    /// A file on the control plane's host.
    #[display("file {}", _0.display())]
    File(&'a Path),
    /// An environment variable of the control plane, by name.
    #[display("environment variable {_0}")]
    EnvVar(&'a str),
    /// The value itself, written into the resource.
    #[display("inline value")]
    Inline(&'a SecretValue),
}

impl<'a> From<&'a DataSource> for SourceRef<'a> {
    fn from(source: &'a DataSource) -> Self {
        match source {
            DataSource::Secret(name) => Self::Secret(name),
            DataSource::File(path) => Self::File(path),
            DataSource::Inline(value) | DataSource::InlineString(value) => Self::Inline(value),
        }
    }
}

impl<'a> From<&'a SecureDataSource> for SourceRef<'a> {
    fn from(source: &'a SecureDataSource) -> Self {
        match source {
            SecureDataSource::Secret(name) => Self::Secret(name),
            SecureDataSource::File(path) => Self::File(path),
            SecureDataSource::EnvVar(name) => Self::EnvVar(name),
            SecureDataSource::InsecureInline(value) => Self::Inline(value),
        }
    }
}

/// Fetches what the data sources of one mesh's resources name.
///
/// Values are returned byte for byte: a trailing line feed of a token file is still there.
/// An empty value is an error from every source, since it is never what was meant.
///
/// ```
/// use std::sync::Arc;
///
/// use meshca_core::ErrorKind;
/// use meshca_core::resource::SecureDataSource;
/// use meshca_core::secret::{LocalSources, MemorySecretStore, SourceReader};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let path = temp.path().join("ca.pem");
/// # std::fs::write(&path, "-----BEGIN CERTIFICATE-----")?;
/// let reader = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
/// let source = SecureDataSource::File(path);
/// assert!(reader.read(&source).await?.expose().starts_with(b"-----BEGIN"));
///
/// let hosted = reader.with_local_sources(LocalSources::Refused);
/// assert_eq!(hosted.read(&source).await.unwrap_err().kind(), ErrorKind::Denied);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SourceReader {
    store: Arc<dyn SecretStore>,
    mesh: String,
    local: LocalSources,
}

impl SourceReader {
    /// A reader of the secrets that `store` keeps for `mesh`, with local sources allowed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the mesh cannot be part of a [`SecretKey`].
    pub fn new(store: Arc<dyn SecretStore>, mesh: impl Into<String>) -> Result<Self> {
        let mesh = mesh.into();
        super::check_name("mesh", &mesh)?;
        Ok(Self {
            store,
            mesh,
            local: LocalSources::default(),
        })
    }

    /// Decides whether files and environment variables are read.
    #[must_use]
    pub fn with_local_sources(mut self, local: LocalSources) -> Self {
        self.local = local;
        self
    }

    /// Whether files and environment variables are read: what else belongs to the control plane, such as its own
    /// identity, is for those resources only that may read these.
    pub fn local_sources(&self) -> LocalSources {
        self.local.clone()
    }

    /// Fetches the value that a data source names.
    ///
    /// - A secret is read from the store, in the reader's mesh.
    /// - A file has an absolute path without `..`, and is a regular file of at most
    ///   [`MAX_SECRET_SIZE`](super::MAX_SECRET_SIZE). Symbolic links are followed, and the mode is not
    ///   looked at, for that is how Kubernetes mounts secrets. It is read on the thread that polls this.
    /// - An environment variable is looked up only because the source names it. The system's own copy of it
    ///   stays in memory and cannot be wiped.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if there is no such secret, file or variable;
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if a name or path breaks the rules, or the value is empty;
    /// [`Denied`](ErrorKind::Denied) if the source is local and refused or not listed, or the system
    /// refuses to open the file;
    /// others as the store and the file system report.
    pub async fn read(&self, source: impl Into<SourceRef<'_>> + Send) -> Result<SecretValue> {
        let source = source.into();
        let value = match source {
            SourceRef::Secret(name) => self.secret(name).await,
            SourceRef::File(path) => match &self.local {
                LocalSources::Allowed => read_file(path),
                LocalSources::Listed(listed) => match listed.file(path) {
                    Some(path) => read_file(&path),
                    None => Err(not_listed(source, "a file in a folder that it lists")),
                },
                LocalSources::Refused => Err(refused(source)),
            },
            SourceRef::EnvVar(name) => match &self.local {
                LocalSources::Allowed => read_env(name),
                LocalSources::Listed(listed) if listed.0.variables.contains(name) => read_env(name),
                LocalSources::Listed(_) => Err(not_listed(source, "a variable that it lists")),
                LocalSources::Refused => Err(refused(source)),
            },
            SourceRef::Inline(value) => Ok(value.clone()),
        }?;
        if value.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the data source is empty: put the value there",
            )
            .with_context("source", source));
        }
        Ok(value)
    }

    /// Fetches the roots of a trust domain, in PEM.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read); [`InvalidConfig`](ErrorKind::InvalidConfig) if it is no text; those of
    /// [`TrustBundle::from_pem`].
    pub async fn read_roots(
        &self,
        source: impl Into<SourceRef<'_>> + Send,
        trust_domain: &TrustDomain,
    ) -> Result<TrustBundle> {
        let pem = self.read(source).await?;
        let text = pem.expose_str().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidConfig,
                "the value is no text: it must be PEM",
            )
        })?;
        TrustBundle::from_pem(trust_domain.clone(), text)
    }

    async fn secret(&self, name: &str) -> Result<SecretValue> {
        let mesh = &self.mesh;
        let key = SecretKey::new(mesh, name)?;
        let stored = self.store.get(&key).await?.ok_or_else(|| {
            let why = format!(
                "there is no secret `{key}`: create a secret named `{name}` in mesh `{mesh}`, \
                 or correct the name in the resource"
            );
            Error::new(ErrorKind::NotFound, why)
        })?;
        Ok(stored.value)
    }
}

fn refused(source: SourceRef<'_>) -> Error {
    Error::new(
        ErrorKind::Denied,
        "this control plane does not read its own files and environment variables for a resource: \
         store the value as a secret of the mesh, and name that",
    )
    .with_context("source", source)
}

fn not_listed(source: SourceRef<'_>, listed: &str) -> Error {
    let why = format!(
        "this control plane does not read this for a resource: store the value as a secret of the \
         mesh and name that, or name {listed}"
    );
    Error::new(ErrorKind::Denied, why).with_context("source", source)
}

fn read_file(path: &Path) -> Result<SecretValue> {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || climbs {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            "the path of a data source begins at the root and has no `..`: write it out in full",
        )
        .with_context("path", path.display()));
    }
    file::read_named(path)?.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "the file does not exist: create it on the control plane's host, or correct the path",
        )
        .with_context("path", path.display())
    })
}

fn read_env(name: &str) -> Result<SecretValue> {
    let value = std::env::var_os(name).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "the environment variable is not set: set it for the control plane and restart it, \
             or correct the name",
        )
        .with_context("variable", name)
    })?;
    Ok(SecretValue::new(value.into_encoded_bytes()))
}

#[cfg(test)]
mod tests;
