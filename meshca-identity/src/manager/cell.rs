//! What the manager publishes, for anybody to read without asking it: one cell for each workload, one for each mesh.

use std::sync::Arc;

use meshca_core::resource::MeshTrust;
use meshca_core::{Error, Identity};

use super::health::{Assignment, Health};
use super::primitives::{ArcSwap, ArcSwapOption, AtomicU8, Ordering};
use super::signal::Signal;
use super::status::IdentityStatus;
use crate::{BackendKey, MeshResources, TrustBundles, TrustVersion};

/// Of one workload.
#[derive(Debug, Default)]
pub(crate) struct WorkloadCell {
    identity: ArcSwapOption<Identity>,
    /// Who issued it; for a moment nobody, while it is replaced by another CA's.
    issued_by: ArcSwapOption<BackendKey>,
    error: ArcSwapOption<Error>,
    health: AtomicU8,
    assignment: AtomicU8,
    /// The trust when the mesh was removed: it gets no other one.
    removed: ArcSwapOption<PublishedTrust>,
    pub(crate) signal: Signal,
}

impl WorkloadCell {
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.load_full()
    }

    pub(crate) fn error(&self) -> Option<Error> {
        self.error.load().as_deref().cloned()
    }

    pub(crate) fn health(&self) -> Health {
        Health::from_u8(self.health.load(Ordering::Acquire))
    }

    pub(crate) fn assignment(&self) -> Assignment {
        Assignment::from_u8(self.assignment.load(Ordering::Acquire))
    }

    /// Gives back the one before.
    pub(crate) fn set_identity(&self, identity: Option<Arc<Identity>>) -> Option<Arc<Identity>> {
        self.identity.swap(identity)
    }

    /// The identity with the CA that issued it. While one is replaced by another CA's, there is none: that is announced when it is done.
    pub(crate) fn issued(&self) -> Option<(Arc<Identity>, Arc<BackendKey>)> {
        loop {
            let seen = self.signal.count();
            let by = self.issued_by.load_full()?;
            let identity = self.identity()?;
            let still = self.issued_by.load();
            let still = still.as_ref().is_some_and(|it| Arc::ptr_eq(it, &by));
            // It may have been another's in between: that would have been announced.
            if self.signal.count() == seen {
                return still.then_some((identity, by));
            }
        }
    }

    /// Before another CA's identity is set: that it is of nobody.
    pub(crate) fn prepare_issuer(&self, by: &BackendKey) {
        if self.issued_by.load().as_deref() != Some(by) {
            self.issued_by.store(None);
        }
    }

    /// After the identity is set.
    pub(crate) fn set_issuer(&self, by: &Arc<BackendKey>) {
        if self.issued_by.load().is_none() {
            self.issued_by.store(Some(Arc::clone(by)));
        }
    }

    pub(crate) fn set_error(&self, error: Option<Error>) {
        if error.is_some() || self.error.load().is_some() {
            self.error.store(error.map(Arc::new));
        }
    }

    /// Says whether that is news.
    pub(crate) fn set_health(&self, health: Health) -> bool {
        self.health.swap(health as u8, Ordering::AcqRel) != health as u8
    }

    /// Says whether that is news.
    pub(crate) fn set_assignment(&self, assignment: Assignment) -> bool {
        self.assignment.swap(assignment as u8, Ordering::AcqRel) != assignment as u8
    }

    /// The mesh is gone: a mesh that comes under its name is another one.
    pub(crate) fn remove(&self, trust: Arc<PublishedTrust>) {
        self.removed.store(Some(trust));
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load().is_some()
    }

    /// Whom it trusts, by what its mesh publishes.
    pub(crate) fn trust(&self, mesh: &MeshCell) -> Arc<PublishedTrust> {
        let removed = self.removed.load_full();
        removed.unwrap_or_else(|| Arc::clone(&mesh.trust.load()))
    }

    /// Tells all who wait that something of this is new.
    pub(crate) fn announce(&self) {
        self.signal.announce();
    }
}

/// Of one mesh.
#[derive(Debug)]
pub(crate) struct MeshCell {
    pub(crate) name: String,
    pub(crate) trust: ArcSwap<PublishedTrust>,
    pub(crate) trusts: ArcSwap<Vec<MeshTrust>>,
    pub(crate) statuses: ArcSwap<Vec<IdentityStatus>>,
    resources: ArcSwapOption<MeshResources>,
    pub(crate) signal: Signal,
}

#[derive(Debug, Default)]
pub(crate) struct PublishedTrust {
    pub(crate) bundles: Arc<TrustBundles>,
    pub(crate) version: TrustVersion,
}

impl MeshCell {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            trust: ArcSwap::default(),
            trusts: ArcSwap::default(),
            statuses: ArcSwap::default(),
            resources: ArcSwapOption::default(),
            signal: Signal::default(),
        }
    }

    pub(crate) fn resources(&self) -> Option<Arc<MeshResources>> {
        self.resources.load_full()
    }

    /// The same ones again are no news.
    pub(crate) fn set_resources(&self, resources: &MeshResources) {
        if self.resources.load().as_deref() != Some(resources) {
            self.resources.store(Some(Arc::new(resources.clone())));
            self.announce();
        }
    }

    /// Empties the cell of a mesh that is gone. The version still grows: proxies may come back
    /// with what was published before.
    pub(crate) fn empty(&self) {
        let version = self.trust.load().version.next();
        self.trust.store(Arc::new(PublishedTrust {
            bundles: Arc::default(),
            version,
        }));
        self.trusts.store(Arc::default());
        self.statuses.store(Arc::default());
        self.resources.store(None);
        self.announce();
    }

    pub(crate) fn announce(&self) {
        self.signal.announce();
    }
}
