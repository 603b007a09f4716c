//! What one end of a connection shows and believes.

use std::sync::Arc;

use meshca_core::Identity;

use crate::TrustBundles;

/// One generation of what a workload needs for mutual TLS: who it is, and whom it believes.
///
/// Cheap to clone: clones share both. The two belong together, because a new identity may only be shown once its peers hold
/// its root, and a root may only go when nobody shows what it signed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Credentials {
    /// The workload's certificate and key.
    pub identity: Arc<Identity>,
    /// The roots of every trust domain that it believes.
    pub trust: Arc<TrustBundles>,
}

impl Credentials {
    /// A generation.
    pub fn new(identity: impl Into<Arc<Identity>>, trust: impl Into<Arc<TrustBundles>>) -> Self {
        Self {
            identity: identity.into(),
            trust: trust.into(),
        }
    }
}
