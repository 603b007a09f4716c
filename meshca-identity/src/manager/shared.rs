//! Both ends of the way from handles to the driver.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meshca_core::spiffe::Workload;
use meshca_core::{Clock, Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

use super::cell::{MeshCell, WorkloadCell};
use super::gate::TrustGate;
use super::health::Stats;
use super::options::ManagerOptions;
use super::primitives::{AtomicBool, Ordering};
use crate::migration::Observed;
use crate::schedule::Ticket;
use crate::select::Selection;
use crate::{Acknowledged, BackendKey, MeshResources, TrustVersion};

/// Everything that handles and the driver share.
pub(crate) struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    /// A cell outlives its mesh: readers may look at a mesh before its resources are applied, and
    /// after.
    meshes: RwLock<HashMap<String, Arc<MeshCell>>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) refresh_hint: Duration,
    pub(super) zone: String,
    /// The driver has ended. Those who wait for changes are woken to see it.
    pub(super) closed: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        commands: mpsc::UnboundedSender<Command>,
        clock: Arc<dyn Clock>,
        options: &ManagerOptions,
    ) -> Self {
        Self {
            commands,
            meshes: RwLock::default(),
            clock,
            refresh_hint: options.trust_refresh,
            zone: options.select.zone.clone(),
            closed: AtomicBool::new(false),
        }
    }

    /// Sends the driver a command. One that has ended needs none.
    pub(super) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    pub(super) fn mesh(&self, name: &str) -> Arc<MeshCell> {
        let read = self.meshes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = read.get(name) {
            return Arc::clone(cell);
        }
        drop(read);
        let mut write = self.meshes.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(MeshCell::new(name.to_owned()));
        Arc::clone(write.entry(name.to_owned()).or_insert_with(new))
    }

    pub(super) fn count_meshes(&self) -> usize {
        let read = self.meshes.read().unwrap_or_else(PoisonError::into_inner);
        read.len()
    }

    /// Forgets the cells that nobody holds, of meshes that are not known. Whoever is about to use one holds it.
    pub(super) fn forget_unused(&self, is_known: impl Fn(&str) -> bool) {
        let mut write = self.meshes.write().unwrap_or_else(PoisonError::into_inner);
        write.retain(|name, cell| Arc::strong_count(cell) > 1 || is_known(name));
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let read = self.meshes.read().unwrap_or_else(PoisonError::into_inner);
        for mesh in read.values() {
            mesh.signal.wake();
        }
    }
}

/// A request to the driver.
pub(crate) enum Command {
    Apply {
        resources: Box<MeshResources>,
        reply: oneshot::Sender<Result<()>>,
    },
    RemoveMesh {
        name: String,
        reply: oneshot::Sender<Result<()>>,
    },
    Connect {
        mesh: Arc<MeshCell>,
        name: Arc<str>,
        workload: Arc<Workload>,
        /// `None` if it is only expected.
        reply: Option<oneshot::Sender<(Connection, [u64; 2])>>,
    },
    Disconnect {
        ticket: Ticket,
    },
    Update {
        ticket: Ticket,
        workload: Arc<Workload>,
    },
    Acknowledge {
        ticket: Ticket,
        acknowledged: Acknowledged,
    },
    Sent {
        ticket: Ticket,
        version: TrustVersion,
    },
    Rejected {
        ticket: Ticket,
        version: TrustVersion,
    },
    Explain {
        ticket: Ticket,
        reply: oneshot::Sender<Result<Selection>>,
    },
    SecretsChanged,
    Gate {
        mesh: String,
        reply: oneshot::Sender<Result<TrustGate>>,
    },
    Observe {
        mesh: String,
        reply: oneshot::Sender<Result<Observed>>,
    },
    BreakGlass {
        mesh: String,
        reason: String,
        reply: oneshot::Sender<Result<()>>,
    },
    ConfirmNewCa {
        mesh: String,
        backend: BackendKey,
        reason: String,
        reply: oneshot::Sender<Result<()>>,
    },
    TryNow {
        mesh: String,
        backend: BackendKey,
        reply: oneshot::Sender<Result<()>>,
    },
    Stats {
        reply: oneshot::Sender<Stats>,
    },
}

/// The error of requests that no driver is left to answer.
pub(super) fn ended() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the driver of this manager has ended: run `Driver::run` for as long as the manager is used",
    )
}

/// A connected workload. The clones of a [`Handle`](super::Handle) share it, and it ends with the
/// last of them.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) cell: Arc<WorkloadCell>,
    pub(super) mesh: Arc<MeshCell>,
    pub(super) ticket: Ticket,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.send(Command::Disconnect {
            ticket: self.ticket,
        });
    }
}
