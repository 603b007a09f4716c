//! Numbers that stand for meshes and CAs while the manager lives.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::BackendKey;

/// A mesh. The number of one that is gone is not used again, so that the result of a task for it
/// is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct MeshId(pub(super) u32);

/// A CA, as it was when a task for it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CaRef {
    pub(super) mesh: MeshId,
    /// Shared: there is one for every certificate.
    pub(super) key: Arc<BackendKey>,
    /// See [`Ca::epoch`](crate::ca::Ca::epoch).
    pub(super) epoch: u64,
}

/// A number that stands for something; the same in every process of this build.
pub(super) fn number(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
