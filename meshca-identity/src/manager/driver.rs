//! The loop that owns all state: commands, results of jobs and time in; work and published state out.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::{BackendConfig, BackendRegistry};
use meshca_core::{Issuer, Result, SecretStore};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::engine::Engine;
use super::event::Observer;
use super::options::ManagerOptions;
use super::setup::Setup;
use super::shared::{Command, Shared};

/// How many commands are taken before time is looked at again.
const AT_ONCE: usize = 256;

/// How long certificates that a CA is making are waited for at the end, which may have been paid for, and a record that is being written.
const GRACE: Duration = Duration::from_secs(5);

/// Does the work of a [`Manager`](super::Manager) for as long as it is run.
#[must_use = "nothing happens unless it is run"]
pub struct Driver {
    setup: Setup,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        registry: BackendRegistry,
        secrets: Arc<dyn SecretStore>,
        options: ManagerOptions,
    ) -> Self {
        let setup = Setup {
            shared,
            registry: Arc::new(registry),
            secrets,
            options,
            observers: Vec::new(),
            layers: Vec::new(),
        };
        Self { setup, commands }
    }

    /// Adds an observer.
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.setup.observers.push(observer);
        self
    }

    /// Wraps the issuer of every CA when the manager sets it up. The last layer is outermost. With
    /// `mode: Intermediate` a layer is around the issuer in this process, which signs the workloads'
    /// certificates.
    ///
    /// `Audited`, `Metered` and `RateLimited` of the crate `meshca-wrap` are meant for this. Its `Retrying`,
    /// `Breaker` and `TimeLimited` are not: the manager retries, has a breaker for each CA and limits the
    /// time of an attempt, and a second one would hide from it what the CA answered.
    pub fn with_layer(
        mut self,
        layer: impl Fn(&BackendConfig, Arc<dyn Issuer>) -> Arc<dyn Issuer> + Send + Sync + 'static,
    ) -> Self {
        self.setup.layers.push(Arc::new(layer));
        self
    }

    /// Works until `shutdown` is ready. Then nothing new is begun; what CAs and the secret store are working on is waited for, five seconds
    /// at most.
    /// Identities can be read after that, and do not change any more.
    ///
    /// Runs in a tokio runtime with time. Dropping the future ends the work at once.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self {
            setup,
            mut commands,
        } = self;
        let _close = Close(Arc::clone(&setup.shared));
        let (reports, mut done) = mpsc::unbounded_channel();
        let mut engine = Engine::new(setup, reports);
        tokio::pin!(shutdown);
        loop {
            let wake = Instant::now() + engine.turn();
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(first) = done.recv() => {
                    engine.done(first);
                    for _ in 1..AT_ONCE {
                        let Ok(next) = done.try_recv() else { break };
                        engine.done(next);
                    }
                }
                Some(first) = commands.recv() => {
                    engine.command(first);
                    for _ in 1..AT_ONCE {
                        let Ok(next) = commands.try_recv() else { break };
                        engine.command(next);
                    }
                }
                () = sleep_until(wake) => {}
            }
            // Deciding on a million workloads takes a moment in which other tasks of this thread are to have their turn.
            tokio::task::yield_now().await;
        }
        let rest = async {
            engine.end();
            loop {
                if !engine.is_issuing() {
                    engine.store_records();
                }
                if !engine.is_awaited() {
                    break;
                }
                let Some(next) = done.recv().await else { break };
                engine.done(next);
            }
        };
        let _ = timeout(GRACE, rest).await;
    }

    /// Runs as a task of the current runtime, until it is told to [stop](DriverTask::stop) or the task is dropped.
    pub fn spawn(self) -> DriverTask {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(self.run(async {
            // Dropped is as good as told.
            let _ = stopped.await;
        }));
        DriverTask { stop, task }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("registry", &self.setup.registry)
            .field("options", &self.setup.options)
            .finish_non_exhaustive()
    }
}

/// A [`Driver`] that runs. It stops when this is dropped.
#[derive(Debug)]
#[must_use = "the driver stops when this is dropped"]
pub struct DriverTask {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl DriverTask {
    /// Has it stop, and waits until it has.
    ///
    /// # Errors
    ///
    /// [`Internal`](meshca_core::ErrorKind::Internal) if it panicked, as an [`Observer`] can make it.
    pub async fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.task.await.map_err(|error| {
            meshca_core::Error::new(
                meshca_core::ErrorKind::Internal,
                "the driver did not end in order",
            )
            .with_source(error)
        })
    }
}

/// Wakes all who wait for changes when the driver ends, however it does.
struct Close(Arc<Shared>);

impl Drop for Close {
    fn drop(&mut self) {
        self.0.close();
    }
}
