//! What an embedder holds for each connected workload, and for each mesh.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use meshca_core::resource::MeshTrust;
use meshca_core::spiffe::Workload;
use meshca_core::{Error, ErrorKind, Identity, Result, TrustDomain};
use tokio::sync::oneshot;

use super::cell::{MeshCell, WorkloadCell};
use super::health::{Assignment, Health};
use super::status::IdentityStatus;
use super::{Command, Shared};
use crate::TrustBundles;
use crate::schedule::Ticket;
use crate::select::Selection;

/// A connected workload: its identity is kept fresh for as long as this is held.
///
/// Reading takes no lock and asks nobody. Two handles for the same name – a proxy that reconnects before its old connection is
/// noticed to be dead – share one identity. After the last one is dropped the identity is kept for the time that
/// [`ManagerOptions::linger`](super::ManagerOptions::linger) says, and is then forgotten.
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) cell: Arc<WorkloadCell>,
    pub(super) mesh: Arc<MeshCell>,
    pub(super) ticket: Ticket,
    /// Generations of the workload and of the mesh that [`changed`](Self::changed) has told of.
    pub(super) seen: (u64, u64),
}

impl Handle {
    /// The identity that the workload has now; it may have [ended](Health::Expired).
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.cell.identity()
    }

    /// Whom it trusts. What its own peers present is always in it: roots are published before they are used.
    pub fn trust(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.mesh.trust.load().bundles)
    }

    /// The number of [`trust`](Self::trust), for [`acknowledge`](Self::acknowledge). Read it **before** the trust that is sent.
    pub fn trust_version(&self) -> u64 {
        self.mesh.trust.load().version
    }

    /// How it is doing, by the clock.
    pub fn health(&self) -> Health {
        let health = self.cell.health();
        match self.cell.identity() {
            Some(identity)
                if identity.certificate().validity().not_after() < self.shared.clock.now() =>
            {
                Health::Expired
            }
            _ => health,
        }
    }

    /// Who is to give it its identity.
    pub fn assignment(&self) -> Assignment {
        self.cell.assignment()
    }

    /// Why the last try failed, if it did.
    pub fn error(&self) -> Option<Error> {
        self.cell.error()
    }

    /// Waits until identity, health, assignment or trust are not what the last call (or `connect`) saw.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when the driver has ended: nothing will change any more.
    pub async fn changed(&mut self) -> Result<()> {
        loop {
            let workload = self.cell.changed.notified();
            let mesh = self.mesh.changed.notified();
            let closing = self.shared.closing.notified();
            tokio::pin!(workload, mesh, closing);
            workload.as_mut().enable();
            mesh.as_mut().enable();
            closing.as_mut().enable();
            let now = (self.cell.generation(), self.mesh.generation());
            if now != self.seen {
                self.seen = now;
                return Ok(());
            }
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(super::ended());
            }
            tokio::select! {
                () = workload => {}
                () = mesh => {}
                () = closing => {}
            }
        }
    }

    /// Waits for an identity that is valid.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if none is issued for it here ([`Assignment::Agent`], [`Assignment::Nobody`]); that the driver has
    /// ended. A CA that fails is no error, it is waited for: see [`error`](Self::error).
    pub async fn ready(&mut self) -> Result<Arc<Identity>> {
        loop {
            if let Some(identity) = self.identity()
                && self.health() != Health::Expired
            {
                return Ok(identity);
            }
            match self.assignment() {
                Assignment::Agent => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "this workload gets its identity from a SPIRE agent",
                    ));
                }
                Assignment::Nobody => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "this workload gets no identity: no MeshIdentity selects it, and the mesh has no enabled backend",
                    ));
                }
                _ => self.changed().await?,
            }
        }
    }

    /// The workload has other labels or tags now. If that makes it someone else, it gets another identity.
    pub fn update(&self, workload: Workload) {
        self.shared.send(Command::Update {
            ticket: self.ticket,
            workload: Arc::new(workload),
        });
    }

    /// The proxy has taken the trust with this [number](Self::trust_version) into use.
    ///
    /// Where [`ManagerOptions::acknowledgements`](super::ManagerOptions::acknowledgements) is on, nothing is signed under a new root
    /// before every proxy has said this.
    pub fn acknowledge(&self, trust_version: u64) {
        self.shared.send(Command::Acknowledge {
            ticket: self.ticket,
            version: trust_version,
        });
    }

    /// What was selected for it, and why.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when the driver has ended; [`ErrorKind::NotFound`] if the resources of the mesh were not applied.
    pub async fn selection(&self) -> Result<Selection> {
        let (reply, answer) = oneshot::channel();
        let ticket = self.ticket;
        self.shared.send(Command::Explain { ticket, reply });
        answer.await.map_err(|_| super::ended())?
    }

    /// The mesh that it is in.
    pub fn mesh(&self) -> MeshView {
        MeshView {
            shared: Arc::clone(&self.shared),
            seen: self.mesh.generation(),
            cell: Arc::clone(&self.mesh),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("mesh", &self.mesh.name)
            .field("identity", &self.identity())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.send(Command::Disconnect {
            ticket: self.ticket,
        });
    }
}

/// What holds for all workloads of a mesh.
#[derive(Clone)]
pub struct MeshView {
    pub(super) shared: Arc<Shared>,
    pub(super) cell: Arc<MeshCell>,
    pub(super) seen: u64,
}

impl MeshView {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.cell.name
    }

    /// Whom its workloads trust, those without a MeshIdentity as well.
    pub fn trust(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.cell.trust.load().bundles)
    }

    /// The number of [`trust`](Self::trust). It grows.
    pub fn trust_version(&self) -> u64 {
        self.cell.trust.load().version
    }

    /// The trust of one domain as a SPIFFE bundle document, with the version as its sequence number (SPIFFE Trust Domain and
    /// Bundle §4).
    pub fn spiffe_bundle(&self, trust_domain: &TrustDomain) -> Option<String> {
        let trust = self.cell.trust.load();
        let bundle = trust.bundles.get(trust_domain)?.clone();
        Some(
            bundle
                .with_sequence(trust.version)
                .with_refresh_hint(self.shared.refresh_hint)
                .to_spiffe_json(),
        )
    }

    /// The MeshTrusts that are to exist for the CAs of MeshIdentities with `meshTrustCreation: Enabled`: store them, so that other
    /// zones and people see them. Roots are added to them before they are used, and retired after.
    pub fn mesh_trusts(&self) -> Arc<Vec<MeshTrust>> {
        self.cell.trusts.load_full()
    }

    /// The status of each MeshIdentity.
    pub fn identity_statuses(&self) -> Arc<Vec<IdentityStatus>> {
        self.cell.statuses.load_full()
    }

    /// Waits until any of these are not what the last call saw, or this view when it was made.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when the driver has ended.
    pub async fn changed(&mut self) -> Result<()> {
        loop {
            let mesh = self.cell.changed.notified();
            let closing = self.shared.closing.notified();
            tokio::pin!(mesh, closing);
            mesh.as_mut().enable();
            closing.as_mut().enable();
            let now = self.cell.generation();
            if now != self.seen {
                self.seen = now;
                return Ok(());
            }
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(super::ended());
            }
            tokio::select! {
                () = mesh => {}
                () = closing => {}
            }
        }
    }
}

impl fmt::Debug for MeshView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshView")
            .field("name", &self.cell.name)
            .field("trust", &self.trust())
            .finish_non_exhaustive()
    }
}
