//! Secret values, the stores that keep them, and the places that a resource can name instead.
//!
//! A control plane keeps CA keys, tokens and certificates in a [`SecretStore`]. Two come with this
//! crate; the trait is small, so that another one is an afternoon's work:
//!
//! | store | keeps secrets | for |
//! |---|---|---|
//! | [`MemorySecretStore`] | in this process | tests, and control planes that make their CA anew at every start |
//! | [`DirSecretStore`] | as files that only their owner can use | one or more control planes on one machine |
//!
//! Every write is conditional: it names the state that it expects to replace ([`Expect`]), and
//! fails with [`ErrorKind::Conflict`] if it finds another. So replicas that share a store can race
//! and never overwrite each other. What belongs together is best stored under one key as one value:
//! then nobody can ever read halves of two. (The built-in CA keeps certificate and key under the two names
//! that the field uses, and is written so that two halves always fit.)
//!
//! A secret is addressed by a [`SecretKey`], the mesh that it belongs to and a name, and travels
//! as a [`SecretValue`], which is wiped from memory after use and cannot be printed.
//!
//! Resources name secrets through data sources; a [`SourceReader`] fetches what they name.
//!
//! # Example
//!
//! Three replicas start at once and need a CA. Each makes one, all use the same.
//!
//! ```
//! use std::sync::Arc;
//!
//! use meshca_core::secret::{
//!     DirSecretStore, Expect, SecretKey, SecretStore, SecretStoreExt, SecretValue, SourceReader, SourceRef,
//! };
//! use meshca_core::ErrorKind;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temp = tempfile::tempdir()?;
//! # let path = temp.path().join("secrets");
//! // In a real control plane: DirSecretStore::open("/var/lib/my-control-plane/secrets").
//! let store: Arc<dyn SecretStore> = Arc::new(DirSecretStore::open(&path)?);
//! let key = SecretKey::new("default", "default.ca-builtin-backend-1")?;
//!
//! let mut found = Vec::new();
//! for replica in 0..3 {
//!     let ca = store
//!         .get_or_create(&key, || Ok(SecretValue::from(format!("CA of replica {replica}").as_str())))
//!         .await?;
//!     found.push(ca.value);
//! }
//! assert!(found.iter().all(|value| value.expose() == b"CA of replica 0"));
//!
//! // A change names the state that it was made from …
//! let before = store.get(&key).await?.ok_or("it was just created")?;
//! let changed = SecretValue::from("CA, rotated");
//! store.put(&key, changed, Expect::Version(before.version.clone())).await?;
//!
//! // … so whoever comes second is told, and loses nothing.
//! let late = SecretValue::from("CA, rotated by someone else");
//! let error = store.put(&key, late, Expect::Version(before.version)).await.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Conflict);
//!
//! // What a resource of this mesh calls `secret: default.ca-builtin-backend-1`:
//! let reader = SourceReader::new(store, "default")?;
//! let ca = reader.read(SourceRef::Secret("default.ca-builtin-backend-1")).await?;
//! assert_eq!(ca.expose(), b"CA, rotated");
//! # Ok(())
//! # }
//! ```

mod dir;
mod file;
mod form;
mod memory;
mod source;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

pub use self::dir::DirSecretStore;
pub use self::form::StoredForm;
pub use self::memory::MemorySecretStore;
pub use self::source::{ListedSources, LocalSources, SourceReader, SourceRef};
use crate::{Error, ErrorKind, Result, Retry};

/// The largest secret that a store takes, in bytes: 1 MiB, as in Kubernetes.
pub const MAX_SECRET_SIZE: usize = 1024 * 1024;

/// How far a store may be behind what others have written: 30 seconds. See [`SecretStore`].
pub const MAX_STORE_LAG: Duration = Duration::from_secs(30);

/// The longest mesh or secret name, in bytes: that of a Kubernetes object.
const MAX_NAME_LEN: usize = 253;

/// Bytes that must not leak: wiped when the last holder drops them, never printed.
///
/// Clones share the bytes instead of copying them. Equality is compared in constant time.
///
/// ```
/// let token = meshca_core::SecretValue::from("s.abc");
/// assert_eq!(format!("{token:?}"), "SecretValue(5 bytes)");
/// assert_eq!(token.expose(), b"s.abc");
/// ```
#[derive(Clone, derive_more::Debug)]
#[debug("SecretValue({} bytes)", _0.len())]
pub struct SecretValue(Arc<Zeroizing<Vec<u8>>>);

impl SecretValue {
    /// Takes ownership of the bytes, without a copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The bytes themselves: the one way to read them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// For implementors of [`SecretStore`]: whether it may be stored under this key, by its size.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if it is larger than [`MAX_SECRET_SIZE`].
    pub fn check_size(&self, key: &SecretKey) -> Result<()> {
        let size = self.expose().len();
        if size <= MAX_SECRET_SIZE {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("the secret has {size} bytes: store at most {MAX_SECRET_SIZE} under one name"),
        )
        .with_context("secret", key))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for SecretValue {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes().to_vec())
    }
}

impl PartialEq for SecretValue {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.expose(), other.expose()).is_ok()
    }
}

impl Eq for SecretValue {}

/// Names a secret: the mesh that it belongs to, and its name there. Shown as `mesh/name`.
///
/// Both are DNS subdomain names as Kubernetes defines them (after RFC 1123): at most 253 bytes of
/// `a`–`z`, `0`–`9`, `-` and `.`, where each part between dots begins and ends with a letter or a
/// digit. That is checked once, here, so a store can use either as the name of a Kubernetes object,
/// of a file or of a path segment without escaping: none is empty, hidden, `.` or `..`, and none
/// has a separator in it.
///
/// ```
/// use meshca_core::SecretKey;
///
/// let key = SecretKey::new("default", "default.ca-builtin-backend-1")?;
/// assert_eq!((key.mesh(), key.name()), ("default", "default.ca-builtin-backend-1"));
/// assert_eq!(key.to_string(), "default/default.ca-builtin-backend-1");
///
/// assert!(SecretKey::new("default", "../other-mesh/token").is_err());
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display)]
#[display("{mesh}/{name}")]
pub struct SecretKey {
    mesh: String,
    name: String,
}

impl SecretKey {
    /// The key of the secret `name` in `mesh`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if either is not a lower-case DNS subdomain name.
    pub fn new(mesh: impl Into<String>, name: impl Into<String>) -> Result<Self> {
        let (mesh, name) = (mesh.into(), name.into());
        check_name("mesh", &mesh)?;
        check_name("secret", &name)?;
        Ok(Self { mesh, name })
    }

    /// The mesh that the secret belongs to.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// The name of the secret within its mesh.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn check_name(of: &'static str, name: &str) -> Result<()> {
    let length = name.len();
    let why = if length > MAX_NAME_LEN {
        format!("the {of} name is {length} bytes long: shorten it to {MAX_NAME_LEN}")
    } else if !name.split('.').all(is_label) {
        format!(
            "the {of} name {name:?} cannot be used: write lower-case letters, digits, `-` and `.`, \
             and begin and end each part between dots with a letter or a digit"
        )
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidConfig, why))
}

fn is_label(label: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

/// A secret as it was read, with the version that a later [`put`](SecretStore::put) can insist on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredSecret {
    /// The bytes.
    pub value: SecretValue,
    /// Which state of it this is.
    pub version: Version,
}

impl StoredSecret {
    /// What a store answers: the value, and the version that it has there.
    pub fn new(value: SecretValue, version: Version) -> Self {
        Self { value, version }
    }
}

/// An opaque mark of one state of a secret; only equality means anything.
///
/// It tells nothing about the value and may be logged or put into a status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

impl Version {
    /// For implementors of [`SecretStore`]: a version from whatever tells states apart there, such as
    /// a Kubernetes `resourceVersion`.
    ///
    /// Not a plain digest of the value: it would let anyone who sees it test guesses of a weak
    /// secret.
    pub fn new(version: impl Into<String>) -> Self {
        Self(version.into())
    }

    /// The text that the store made it from.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a write insists on finding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expect {
    /// There is no such secret yet.
    Absent,
    /// The secret is in exactly this state.
    Version(Version),
}

/// Where a control plane keeps secrets: CA keys, tokens, certificates.
///
/// Every write is conditional, so replicas that share a store can race and never overwrite each
/// other: the loser gets [`ErrorKind::Conflict`] and reads again.
/// [`SecretStoreExt`] has what is built on top, for every store.
///
/// # What an implementor owes
///
/// - Comparing and writing is one step for everyone who uses the same store, in whatever process.
/// - After `put` has returned, every `get` through the same store finds that value or a later one, also after a crash.
///   A `get` through another store on the same secrets may be behind, by no more than [`MAX_STORE_LAG`]; writes never
///   are. A `get` beside a `put` finds the old value or the new one, never a mixture.
/// - After a conflict, `get` finds what it was about.
/// - After an error other than a conflict, the write may or may not have happened.
/// - "There is no such secret" (`None`) is said only if that is certain. Whoever reads `None` may
///   make a new CA, so a store that is not reachable or not mounted answers with an error.
/// - Errors name the secret and never show its value.
#[async_trait]
pub trait SecretStore: fmt::Debug + Send + Sync + 'static {
    /// Reads a secret; `None` if there is none of that name.
    ///
    /// # Errors
    ///
    /// [`Denied`](ErrorKind::Denied), also for the secret of another mesh where meshes share the names;
    /// [`Unavailable`](ErrorKind::Unavailable) and others, as the store finds.
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>>;

    /// Writes a secret if what is there is what was expected.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if something else is there, or nothing although a version
    /// was expected: nothing was changed. [`InvalidRequest`](ErrorKind::InvalidRequest) if the value
    /// is larger than [`MAX_SECRET_SIZE`]. Others as in [`get`](SecretStore::get).
    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version>;

    /// Deletes a secret that is in the given state. Deleting what is not there is a conflict.
    ///
    /// # Errors
    ///
    /// As in [`put`](SecretStore::put).
    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()>;

    /// A number that changes when the store learns that a secret has changed, whoever changed it. It costs next to nothing, so
    /// whoever keeps what was read compares it at each use, and reads again at once.
    ///
    /// `None`, the default: this store is not told. The same number is no promise: a store may miss a change, or hear of
    /// it late, so read again from time to time as well.
    fn revision(&self) -> Option<u64> {
        None
    }
}

const _: fn(&dyn SecretStore) = |_| {};

macro_rules! forward {
    ($pointer:ident) => {
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<T: SecretStore + ?Sized> SecretStore for $pointer<T> {
            async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
                (**self).get(key).await
            }

            async fn put(
                &self,
                key: &SecretKey,
                value: SecretValue,
                expect: Expect,
            ) -> Result<Version> {
                (**self).put(key, value, expect).await
            }

            async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
                (**self).delete(key, version).await
            }

            fn revision(&self) -> Option<u64> {
                (**self).revision()
            }
        }
    };
}

forward!(Arc);
forward!(Box);

/// What every [`SecretStore`] can do on top of reading and conditional writing.
pub trait SecretStoreExt: SecretStore {
    /// Reads a secret, or makes and stores it if there is none.
    ///
    /// Of all who race to create the same secret, one wins, and all of them – in this process or
    /// another – get the winner's value. What they made themselves is wiped and never seen by anyone.
    ///
    /// Dropping the future is safe: the secret was stored or was not, and the next call finds out.
    ///
    /// # Errors
    ///
    /// Those of the store and of `make`. [`Conflict`](ErrorKind::Conflict), worth a retry, if
    /// the secret was created and deleted by others at this very moment.
    fn get_or_create<'a>(
        &'a self,
        key: &'a SecretKey,
        make: impl FnOnce() -> Result<SecretValue> + Send + 'a,
    ) -> impl Future<Output = Result<StoredSecret>> + Send + 'a {
        async move {
            if let Some(found) = self.get(key).await? {
                return Ok(found);
            }
            let value = make()?;
            match self.put(key, value.clone(), Expect::Absent).await {
                Ok(version) => Ok(StoredSecret::new(value, version)),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    self.get(key).await?.ok_or_else(|| {
                        Error::new(
                            ErrorKind::Conflict,
                            "others created the secret and deleted it again: try again",
                        )
                        .with_context("secret", key)
                        .with_retry(Retry::Backoff)
                    })
                }
                Err(error) => Err(error),
            }
        }
    }
}

impl<S: SecretStore + ?Sized> SecretStoreExt for S {}

impl Expect {
    /// For implementors of [`SecretStore`]: whether a secret that is now in the state `current` may be written or deleted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`], which tells the caller what to do.
    pub fn check(&self, key: &SecretKey, current: Option<&Version>) -> Result<()> {
        let message = match (self, current) {
            (Expect::Absent, None) => return Ok(()),
            (Expect::Version(expected), Some(current)) if expected == current => return Ok(()),
            (Expect::Absent, Some(_)) => "the secret exists already: read it, and use or change it",
            (Expect::Version(_), Some(_)) => {
                "someone else changed the secret: read it again, and repeat the change from there"
            }
            (Expect::Version(_), None) => {
                "the secret was deleted: read again, and decide anew whether to create it"
            }
        };
        Err(Error::new(ErrorKind::Conflict, message).with_context("secret", key))
    }
}

#[cfg(test)]
mod tests;
