//! Versions of a mesh's trust, and what proxies acknowledge of them.

use std::num::NonZeroU64;

use derive_more::{Display, From};

/// The version of the trust that a [`Manager`](crate::Manager) publishes for a mesh.
///
/// It grows with each change of the trust, also across restarts of the control plane. Versions of
/// different meshes cannot be compared.
#[derive(Clone, Copy, Debug, Display, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustVersion(NonZeroU64);

impl TrustVersion {
    /// The version with this number; `None` for zero, which no trust has.
    ///
    /// For control planes that send the number to a proxy and get it back. What the manager
    /// [publishes](crate::Handle::trust_version) is a version already.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number of the version.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The least version: that of a mesh without any trust, whose resources were never applied.
impl Default for TrustVersion {
    fn default() -> Self {
        Self(NonZeroU64::MIN)
    }
}

/// How much of its mesh's trust a proxy has acknowledged, the least first.
///
/// A proxy that has acknowledged one of these trusts all roots for which less is enough.
#[derive(Clone, Copy, Debug, Default, Display, From, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Acknowledged {
    /// Nothing. The manager assumes that the proxy trusts no root yet, and does not wait for it.
    #[default]
    #[display("nothing")]
    Nothing,
    /// Trust that a control plane published before this one started, in a version that this one
    /// does not know. The manager waits for the proxy before it signs under a root that was not
    /// in use then.
    #[display("trust from before")]
    FromBefore,
    /// The trust of this version.
    #[display("version {_0}")]
    #[from]
    Version(TrustVersion),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_later_is_more() {
        let version = |number| Acknowledged::Version(TrustVersion::new(number).unwrap());
        let first = Acknowledged::Version(TrustVersion::default());
        let all = [Acknowledged::Nothing, Acknowledged::FromBefore, first];
        assert!(all.is_sorted_by(|one, other| one < other));
        assert!(version(2) > first && version(3) > version(2));
        assert_eq!(TrustVersion::new(0), None);
        let last = TrustVersion::new(u64::MAX).unwrap();
        assert_eq!(last.next(), last);
    }
}
