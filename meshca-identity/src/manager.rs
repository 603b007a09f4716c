//! Keeps the identities of all connected workloads fresh.
//!
//! ```text
//!   resources, secrets, workloads         readers
//!          │ commands                        ▲ lock-free
//!          ▼                                 │
//!   ┌──────────────────────── Driver ────────┴───────┐
//!   │ selection ─► scheduler ─► jobs ─► trust ─► cell│ ──► Observer
//!   └────────────────────────────│───────────────────┘
//!                                ▼
//!                     Issuer (one lane for each CA)
//! ```
//!
//! A [`Manager`] is a handle that is cheap to clone; the [`Driver`] is a future that the embedder runs, and owns all state. A connected
//! workload is a [`Handle`]: it reads what is published for it without a lock, and waits for changes.
//!
//! # What is kept
//!
//! - **A certificate that is valid is served**, whatever its CA does, until there is another one.
//! - **Trust before use.** A root is published before anything under it is handed out, and stays for as long as something that was
//!   handed out under it can be valid.
//! - **Only what must be is issued again**: a workload whose SPIFFE ID, names or CA have changed, whose root its CA does not stand for any
//!   more, or whose certificate nears its end.
//! - **CAs do not hold each other up.** Each has its own queue, limit and breaker.
//!
//! # Across restarts
//!
//! The data plane outlives its control plane. So the manager keeps a record of each mesh in the [`SecretStore`], as the secret
//! `<mesh>.meshca-trust`: which roots each CA had last, and until when certificates may be valid under which root. One that starts reads it
//! before the resources of the mesh [are in force](Manager::apply), and
//!
//! - trusts what was trusted, until each CA has said itself which roots it has, and for as long as what was handed out may be valid (up to as
//!   long again, since a record is not written for each certificate, and a day, since clocks go wrong): a CA that cannot be reached in this
//!   moment takes nothing away from proxies that reconnect;
//! - makes no new CA in the place of one that the record lists, unless an operator [confirms](Manager::confirm_new_ca) it;
//! - where proxies [acknowledge](ManagerOptions::acknowledgements), signs under a root under which nothing was signed before only after the
//!   time of [`linger`](ManagerOptions::linger), in which all proxies can come back and be asked. What has been in use goes on at once.
//!
//! A clock that is ahead must not end what others still need. The manager removes trust by time only while its clock agrees: when the record is
//! first read, with the newest entry that others have written, and after that with the time that has passed, give or take a day. Else it
//! removes nothing, and [says so](Event::ClockDoubted), until the clock is set right, another replica's entry agrees, or 30 days have passed. A
//! clock that is ahead by more than a day, but by less than the newest entry lasts, is not noticed at a start; nor is one that was ahead before
//! the restart already, when it handed out certificates.
//!
//! Replicas that share a store share the record, so a root that one of them needs is trusted by all. They do not share
//! acknowledgements: each waits for its own proxies, and takes what another has begun to sign under for known to those that come back. There is
//! no record after a restart with a [`MemorySecretStore`](meshca_core::MemorySecretStore), and none of a mesh whose name cannot be that
//! of a secret. Whoever can write to the store can have proxies trust a root, by the record as by the key of a CA.

mod backend;
mod cell;
mod checkup;
mod clockwork;
mod driver;
mod engine;
mod event;
mod gate;
mod handle;
mod health;
mod ids;
mod job;
mod lanes;
mod mesh;
mod meshes;
#[cfg(test)]
mod model;
mod options;
mod outbox;
mod primitives;
mod setup;
mod shared;
mod signal;
mod status;
mod workloads;

use std::fmt;
use std::sync::Arc;

use meshca_core::registry::BackendRegistry;
use meshca_core::spiffe::Workload;
use meshca_core::{Clock, Result, SecretStore};
use tokio::sync::{mpsc, oneshot};

use crate::migration::Observed;
use crate::{BackendKey, MeshResources};
use shared::{Command, Shared, ended};

pub use driver::{Driver, DriverTask};
pub use event::{Event, Observer};
pub use gate::TrustGate;
pub use handle::{Handle, MeshView};
pub use health::{Assignment, Health, Stats};
pub use options::ManagerOptions;
pub use status::{Condition, IdentityStatus};

/// The handle to a [`Driver`]; clones are the same one. See the [module](self).
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
}

impl Manager {
    /// A manager and the driver that does its work.
    pub fn new(
        registry: BackendRegistry,
        secrets: Arc<dyn SecretStore>,
        clock: Arc<dyn Clock>,
        options: ManagerOptions,
    ) -> (Self, Driver) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(commands, clock, &options));
        let driver = Driver::new(Arc::clone(&shared), receiver, registry, secrets, options);
        (Self { shared }, driver)
    }

    /// Puts the resources of a mesh into force, all of them. Applying the same again changes
    /// nothing.
    ///
    /// Returns when they are in force; CAs that are new are set up after that, see
    /// [`identity_statuses`](MeshView::identity_statuses).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](meshca_core::ErrorKind::InvalidConfig) for resources that
    /// cannot stand beside each other, or a MeshTrust with something that is no CA: then what was
    /// applied before stays in force. For a mesh that is new here, or comes back, those of the
    /// secret store, which knows what proxies of it [may hold](crate::manager#across-restarts):
    /// nothing is in force then, and the manager does not try it again: apply them again.
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn apply(&self, resources: MeshResources) -> Result<()> {
        resources.validate()?;
        self.ask(|reply| Command::Apply {
            resources: Box::new(resources),
            reply,
        })
        .await?
    }

    /// The mesh is gone. Its workloads keep what they hold until it ends, and get nothing new: a mesh
    /// of the same name may be somebody else's, and their [handles](Handle::is_removed) are not taken over by it. A mesh that was
    /// removed by mistake is applied again; its proxies connect again, and what they held stays valid and trusted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](meshca_core::ErrorKind::NotFound) if it is not known;
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn remove_mesh(&self, name: impl Into<String>) -> Result<()> {
        let name = name.into();
        self.ask(|reply| Command::RemoveMesh { name, reply })
            .await?
    }

    /// Connects a workload under this name, which is unique in its mesh. The mesh need not be
    /// known yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn connect(
        &self,
        mesh: &str,
        name: impl Into<Arc<str>>,
        workload: impl Into<Arc<Workload>>,
    ) -> Result<Handle> {
        let mesh = self.shared.mesh(mesh);
        let connected = self.ask(|reply| Command::Connect {
            mesh,
            name: name.into(),
            workload: workload.into(),
            reply: Some(reply),
        });
        let (connection, seen) = connected.await?;
        Ok(Handle {
            connection: Arc::new(connection),
            seen,
        })
    }

    /// A workload is expected: its identity is made when nothing more urgent is to be done, and kept for the time of
    /// [`linger`](ManagerOptions::linger).
    pub fn prefetch(
        &self,
        mesh: &str,
        name: impl Into<Arc<str>>,
        workload: impl Into<Arc<Workload>>,
    ) {
        self.shared.send(Command::Connect {
            mesh: self.shared.mesh(mesh),
            name: name.into(),
            workload: workload.into(),
            reply: None,
        });
    }

    /// Secrets have changed: CAs are looked at again now, and those that could not be set up are tried again.
    pub fn secrets_changed(&self) {
        self.shared.send(Command::SecretsChanged);
    }

    /// What holds for all workloads of a mesh. It need not be there yet, and may go and come back.
    pub fn mesh(&self, name: &str) -> MeshView {
        let cell = self.shared.mesh(name);
        MeshView {
            shared: Arc::clone(&self.shared),
            seen: cell.signal.count(),
            cell,
        }
    }

    /// What the connected proxies of a mesh have acknowledged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](meshca_core::ErrorKind::NotFound) if the mesh is not known;
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn gate(&self, mesh: impl Into<String>) -> Result<TrustGate> {
        let mesh = mesh.into();
        self.ask(|reply| Command::Gate { mesh, reply }).await?
    }

    /// For the day everything has expired: new roots of this mesh are used at once, without
    /// waiting for proxies to acknowledge them, until its resources are applied again.
    /// Connections to proxies that do not have them fail.
    ///
    /// Nothing else is needed to introduce a new CA: it is never measured by the one that it
    /// replaces. It is [observed](Event::BreakGlass) and logged as an error, with the reason.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](meshca_core::ErrorKind::NotFound) if the mesh is not known;
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn break_glass(
        &self,
        mesh: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<()> {
        let (mesh, reason) = (mesh.into(), reason.into());
        self.ask(|reply| Command::BreakGlass {
            mesh,
            reason,
            reply,
        })
        .await?
    }

    /// Confirms that a new CA is made in the place of one whose secrets are lost for good.
    ///
    /// The built-in CA makes no new CA where something shows that there was one: the [trust
    /// record](crate::manager#across-restarts), a MeshTrust that was generated for it, the status of its
    /// MeshIdentity, the secret of its rotation, or half of its pair. Peers that trust the old CA refuse
    /// what a new one signs until they hold its root. Restore the secrets instead where that is
    /// possible; the error of the backend names them.
    ///
    /// The CA is set up again at once. The confirmation holds until that has worked, or this process
    /// ends. It is [observed](Event::NewCaConfirmed) and logged as a warning, with the reason, and the
    /// new root is [observed](Event::CaCreated) as every other. Say in `reason` who has decided it and
    /// why: the manager knows no users.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](meshca_core::ErrorKind::NotFound) if the mesh or its CA is not known;
    /// [`ErrorKind::InvalidRequest`](meshca_core::ErrorKind::InvalidRequest) if the CA works, so that
    /// there is nothing to confirm;
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn confirm_new_ca(
        &self,
        mesh: impl Into<String>,
        backend: &BackendKey,
        reason: impl Into<String>,
    ) -> Result<()> {
        let (mesh, reason) = (mesh.into(), reason.into());
        let backend = backend.clone();
        self.ask(|reply| Command::ConfirmNewCa {
            mesh,
            backend,
            reason,
            reply,
        })
        .await?
    }

    /// Sets a CA up again, and asks it at once for all that waits after failures.
    ///
    /// Somebody has repaired it. Nobody need say so where resources or [secrets](Self::secrets_changed) were
    /// changed for it, or other roots. Else a CA that answered with nothing of use is asked again
    /// within the hour, by one workload: it may bill each answer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](meshca_core::ErrorKind::NotFound) if the mesh or its CA is not known;
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn try_now(&self, mesh: impl Into<String>, backend: &BackendKey) -> Result<()> {
        let (mesh, backend) = (mesh.into(), backend.clone());
        self.ask(|reply| Command::TryNow {
            mesh,
            backend,
            reply,
        })
        .await?
    }

    /// What a [`Plan`](crate::migration::Plan) asks for before its next step, as far as it is
    /// seen from here:
    ///
    /// | | |
    /// |---|---|
    /// | `resources` | as they were applied |
    /// | `ready` | the CAs that are set up, whose roots are published |
    /// | `trusts` | the CAs whose roots were published when the proxy [acknowledged](Handle::acknowledge) last; without [acknowledgements](ManagerOptions::acknowledgements), all that are published |
    /// | `holds` | the CA of the certificate that was handed out last |
    /// | `connected` | whether there is a [`Handle`]; proxies are in it until they are [forgotten](ManagerOptions::linger) |
    ///
    /// Which SPIFFE IDs a proxy **accepts** and how **strict** it is, only the component that
    /// configures the proxy knows: `accepts` is empty, and `mode` is what the resources say. Fill
    /// them in.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](meshca_core::ErrorKind::NotFound) if the mesh is not known;
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn observe(&self, mesh: impl Into<String>) -> Result<Observed> {
        let mesh = mesh.into();
        self.ask(|reply| Command::Observe { mesh, reply }).await?
    }

    /// How many workloads are in which state.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`](meshca_core::ErrorKind::Unavailable) when the driver has ended.
    pub async fn stats(&self) -> Result<Stats> {
        self.ask(|reply| Command::Stats { reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.send(command(reply));
        answer.await.map_err(|_| ended())
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}
