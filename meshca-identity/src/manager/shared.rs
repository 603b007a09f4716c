//! Both ends of the way from handles to the driver.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meshca_core::{Clock, Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

use super::cell::{MeshCell, WorkloadCell};
use super::engine::Engine;
use super::options::ManagerOptions;
use super::primitives::{AtomicBool, Ordering};
use crate::MeshResources;
use crate::schedule::Ticket;

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
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Has the driver do something.
    pub(super) fn run(&self, work: impl FnOnce(&mut Engine) + Send + 'static) {
        self.send(Command::Run(Box::new(work)));
    }

    /// Sends the driver a command, and waits for its reply.
    pub(super) async fn request<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply));
        answer.await.map_err(|_| ended())
    }

    /// Has the driver do something, and waits for the result. If the caller has given up, the result is dropped, here or
    /// in the channel.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T> {
        self.request(|reply| {
            Command::Run(Box::new(|engine: &mut Engine| {
                drop(reply.send(work(engine)));
            }))
        })
        .await
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

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let read = self.meshes.read().unwrap_or_else(PoisonError::into_inner);
        for mesh in read.values() {
            mesh.signal.wake();
        }
    }
}

/// A request to the driver.
pub(super) enum Command {
    Apply {
        resources: Box<MeshResources>,
        reply: oneshot::Sender<Result<()>>,
    },
    RemoveMesh {
        name: String,
        reply: oneshot::Sender<Result<()>>,
    },
    /// Anything else: it need not wait for the record of a mesh to be read.
    Run(Work),
}

/// Work on what the driver owns.
pub(super) type Work = Box<dyn FnOnce(&mut Engine) + Send>;

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
        let ticket = self.ticket;
        self.shared.run(move |engine| engine.disconnect(ticket));
    }
}
