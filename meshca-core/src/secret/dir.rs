use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

use super::{Expect, SecretKey, SecretStore, SecretValue, StoredSecret, Version, file};
use crate::{Error, ErrorKind, Result, x509};

/// The random key that versions are made with. It also marks the directory as one of ours.
const VERSION_KEY: &str = ".version-key";
const VERSION_KEY_LEN: usize = 32;

/// Keeps secrets as files, `<directory>/<mesh>/<name>`, that only their owner can use.
///
/// For control planes that run on one machine, several of them if need be: the directory may be shared
/// by any number of processes and of stores in one process. It must be on a local file system, or on one
/// whose file locks work between all machines that use it.
///
/// - **Owner only.** Directories are created with mode 0700 and files with 0600, never wider for an
///   instant. As `ssh` does, the store refuses to read a file that other users can read or write, and to
///   use a directory that others can write to; the error says which `chmod` to run. A secret that is a
///   symbolic link is refused too. Files, directories, everything above them, and links on the way must belong to the
///   user of this process or to root, and nobody else may write to a directory above, unless it is sticky, as `/tmp` is.
///   (Owners and modes are those of Unix. Elsewhere, restrict the directory yourself.)
/// - **All or nothing.** A value is written to a temporary file, synced to disk and renamed into place,
///   and then the directory is synced. What a crashed process leaves behind is never read, and is deleted
///   when the store is opened or the mesh is next written to.
/// - **Conditional between processes.** Comparing and writing happen under a lock on `<mesh>/.lock`, so
///   meshes do not wait for each other. The system releases the lock of a process that ends. Reading
///   takes no lock.
/// - **Gone is not empty.** A directory that vanished after it was opened, say an unmounted volume, is
///   an error and not a store without secrets, so that no second CA is made.
///
/// A file holds exactly the bytes of the secret. An operator can put one there by hand, best by
/// renaming it into place. Nothing else is in the directory but names that begin with a dot.
///
/// # Versions
///
/// A version is a keyed digest of the value; the key is random and stays in the directory. So the same
/// value has the same version again: if a secret changes from A to B and back to A, a write that
/// expects the first A passes. It replaces exactly the bytes that its caller read, as it should. It also means
/// that restoring a backup or touching a file is not a change.
///
/// # Blocking
///
/// Methods do local file I/O on the thread that polls them, a few milliseconds for a write on common
/// disks, and a write waits for other writers of the same mesh. Secrets are read and written rarely;
/// if that is too long for your executor, call the store from a thread where blocking is fine.
///
/// # Example
///
/// ```
/// use meshca_core::secret::{DirSecretStore, Expect, SecretKey, SecretStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let path = temp.path().join("secrets");
/// let store = DirSecretStore::open(&path)?;
/// let key = SecretKey::new("default", "vault-token")?;
/// store.put(&key, "s.abc".into(), Expect::Absent).await?;
///
/// assert_eq!(std::fs::read(path.join("default/vault-token"))?, b"s.abc");
/// # Ok(())
/// # }
/// ```
#[derive(derive_more::Debug)]
#[debug("DirSecretStore({root:?})")]
pub struct DirSecretStore {
    root: PathBuf,
    version_key: hmac::Key,
}

impl DirSecretStore {
    /// Opens a directory, and creates it with its parents if there is none. A relative path is relative to the
    /// working directory of now, not to that of a later read.
    ///
    /// The directory itself may be a symbolic link, and its mode is the operator's choice as long as no one
    /// else can write to it.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if the path is not a directory, or if it or anything above it belongs
    /// to another user than ours and root, or can be written to by others;
    /// [`Denied`](ErrorKind::Denied) if this process may not use it;
    /// [`Unavailable`](ErrorKind::Unavailable) and others for what the file system reports.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let root = std::path::absolute(path)
            .map_err(|error| file::io_error("open the secret directory", path, error))?;
        file::check_above(&root)?;
        if !file::check_dir(&root, true)? {
            create_root(&root)?;
            file::check_dir(&root, true)?;
        }
        let version_key = version_key(&root)?;
        let store = Self { root, version_key };
        store.remove_leftovers()?;
        Ok(store)
    }

    fn remove_leftovers(&self) -> Result<()> {
        let failed = |error| file::io_error("list the secret directory", &self.root, error);
        file::remove_leftover(&self.root)?;
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_str();
            let ours = name.is_some_and(|name| super::check_name("mesh", name).is_ok());
            if ours && entry.file_type().map_err(failed)?.is_dir() {
                file::remove_leftover(&entry.path())?;
            }
        }
        Ok(())
    }

    fn mesh_dir(&self, key: &SecretKey) -> PathBuf {
        self.root.join(key.mesh())
    }

    fn read(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        let dir = self.mesh_dir(key);
        if file::check_dir(&dir, false)?
            && let Some(value) = file::read_private(&dir.join(key.name()))?
        {
            let version = self.version(key, &value);
            return Ok(Some(StoredSecret::new(value, version)));
        }
        self.check_present()?;
        Ok(None)
    }

    fn write(&self, key: &SecretKey, value: &SecretValue, expect: &Expect) -> Result<Version> {
        value.check_size(key)?;
        self.check_present()?;
        let dir = self.mesh_dir(key);
        if !file::check_dir(&dir, false)? {
            expect.check(key, None)?;
            file::create_dir(&dir, false)?;
            file::check_dir(&dir, false)?;
        }
        let _lock = file::lock(&dir)?;
        self.require(key, expect)?;
        file::replace(&dir, key.name(), value.expose())?;
        if *expect == Expect::Absent {
            // The mesh's directory may be new, made by us or by another writer just before us.
            file::sync_dir(&self.root)?;
        }
        Ok(self.version(key, value))
    }

    fn remove(&self, key: &SecretKey, version: &Version) -> Result<()> {
        let expect = Expect::Version(version.clone());
        let dir = self.mesh_dir(key);
        if !file::check_dir(&dir, false)? {
            return self.require(key, &expect);
        }
        let _lock = file::lock(&dir)?;
        self.require(key, &expect)?;
        file::delete(&dir, key.name())
    }

    fn require(&self, key: &SecretKey, expect: &Expect) -> Result<()> {
        let current = self.read(key)?.map(|stored| stored.version);
        expect.check(key, current.as_ref())
    }

    fn check_present(&self) -> Result<()> {
        if file::exists(&self.root.join(VERSION_KEY))? {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the secret directory is not the one that was opened: mount or restore it",
        )
        .with_context("path", self.root.display()))
    }

    fn version(&self, key: &SecretKey, value: &SecretValue) -> Version {
        let mut digest = hmac::Context::with_key(&self.version_key);
        digest.update(key.to_string().as_bytes());
        digest.update(&[0]);
        digest.update(value.expose());
        let tag = digest.sign();
        Version::new(x509::hex(tag.as_ref().get(..16).unwrap_or_default()))
    }
}

/// Creates the directory and what is missing above it, and makes sure that all of it survives a power cut.
fn create_root(root: &Path) -> Result<()> {
    let above = || root.ancestors().skip(1);
    let missing = above().take_while(|dir| !dir.exists()).count();
    file::create_dir(root, true)?;
    above().take(missing + 1).try_for_each(file::sync_dir)
}

/// Reads the key of the directory, or makes the one that all processes will use.
fn version_key(root: &Path) -> Result<hmac::Key> {
    let path = root.join(VERSION_KEY);
    let _lock = file::lock(root)?;
    if let Some(key) = file::read_private(&path)? {
        if key.expose().len() != VERSION_KEY_LEN {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the file that versions are made with is damaged: stop all who use the directory, delete this \
                 file, and start again; no secret depends on it",
            )
            .with_context("path", path.display()));
        }
        return Ok(hmac::Key::new(hmac::HMAC_SHA256, key.expose()));
    }
    let mut key = Zeroizing::new([0; VERSION_KEY_LEN]);
    rand::fill(key.as_mut_slice()).map_err(|_| {
        Error::new(
            ErrorKind::Internal,
            "the system has no random bytes to give",
        )
    })?;
    file::replace(root, VERSION_KEY, key.as_slice())?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()))
}

#[async_trait]
impl SecretStore for DirSecretStore {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        self.read(key)
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        self.write(key, &value, &expect)
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.remove(key, version)
    }
}

#[cfg(test)]
mod tests;
