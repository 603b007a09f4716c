//! Secret values and the stores that keep them.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::Result;

/// Bytes that must not leak: wiped when the last holder drops them, never printed.
///
/// Clones share the bytes instead of copying them. Equality is compared in constant time.
///
/// ```
/// let token = meshca_core::SecretValue::from("s.abc");
/// assert_eq!(format!("{token:?}"), "SecretValue(5 bytes)");
/// assert_eq!(token.expose(), b"s.abc");
/// ```
#[derive(Clone)]
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

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretValue({} bytes)", self.0.len())
    }
}

/// Names a secret: secrets belong to a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretKey {
    mesh: String,
    name: String,
}

/// A secret as it was read, with the version that a later [`put`](SecretStore::put) can insist on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredSecret {
    /// The bytes.
    pub value: SecretValue,
    /// Which state of it this is.
    pub version: Version,
}

/// An opaque mark of one state of a secret; only equality means anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

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
/// other: the loser gets [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) and reads again.
#[async_trait]
pub trait SecretStore: fmt::Debug + Send + Sync + 'static {
    /// Reads a secret; `None` if there is none of that name.
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>>;

    /// Writes a secret if what is there is what was expected.
    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version>;

    /// Deletes a secret that is in the given state. Deleting what is not there is a conflict.
    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()>;
}
