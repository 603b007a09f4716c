//! One control plane of several, with a clock of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use meshca_core::registry::BackendRegistry;
use meshca_core::spiffe::Environment;
use meshca_core::{Clock, ErrorKind};
use meshca_identity::manager::{DriverTask, Event, Observer};
use meshca_identity::select::SelectOptions;
use meshca_identity::{BackendKey, Manager, ManagerOptions};
use tokio::time::Instant;

use super::S;
use super::cas::{Cas, Told};
use super::clock::SkewedClock;
use super::spec::{MESHES, Spec};
use super::store::{Store, View};

/// Something that a control plane told.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: Instant,
    pub(super) kind: &'static str,
    pub(super) mesh: String,
    pub(super) workload: Option<String>,
    pub(super) backend: Option<BackendKey>,
    /// A CA has answered with nothing of use.
    pub(super) refused: bool,
    pub(super) text: String,
}

/// What was told and not looked at yet.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<Vec<Entry>>);

impl Log {
    pub(super) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Observer for Log {
    fn observe(&self, event: &Event<'_>) {
        let refused = match event {
            Event::Failing { error, .. } => matches!(
                error.kind(),
                ErrorKind::BadResponse
                    | ErrorKind::Denied
                    | ErrorKind::InvalidConfig
                    | ErrorKind::NotFound
                    | ErrorKind::Unauthenticated
                    | ErrorKind::Unsupported
            ),
            _ => false,
        };
        self.0.lock().unwrap().push(Entry {
            at: Instant::now(),
            kind: event.as_str(),
            mesh: event.mesh().to_owned(),
            workload: event.workload().map(str::to_owned),
            backend: event.backend().cloned(),
            refused,
            text: event.to_string(),
        });
    }
}

/// What a control plane is made of.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) store: Arc<Store>,
    pub(super) cas: Cas,
    pub(super) told: Told,
    pub(super) acknowledgements: bool,
    pub(super) seed: u64,
}

pub(super) struct Replica {
    pub(super) number: usize,
    /// How often it was started.
    pub(super) life: usize,
    pub(super) clock: SkewedClock,
    pub(super) manager: Manager,
    pub(super) log: Arc<Log>,
    driver: DriverTask,
    /// The resources in force.
    pub(super) applied: [Option<Spec>; 2],
    /// What was written and has not arrived.
    pub(super) pending: VecDeque<(usize, Spec)>,
}

impl Replica {
    pub(super) fn start(number: usize, life: usize, clock: SkewedClock, parts: &Parts) -> Self {
        let registry = BackendRegistry::new()
            .with(meshca_core::builtin::factory())
            .with(parts.cas.clone());
        let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        options.seed = Some(parts.seed + number as u64);
        options.acknowledgements = parts.acknowledgements;
        // Days pass, and what is looked at each half minute is looked at for nothing nearly always.
        options.trust_refresh = 2400 * S;
        let store = Arc::clone(&parts.store);
        let secrets = Arc::new(View {
            store,
            replica: number,
        });
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let (manager, driver) = Manager::new(registry, secrets, shared, options);
        let (log, told) = (Arc::new(Log::default()), parts.told.clone());
        let driver = driver
            .with_observer(log.clone())
            .with_layer(move |config, issuer| told.tap(number, config, issuer));
        Self {
            number,
            life,
            clock,
            manager,
            log,
            driver: driver.spawn(),
            applied: [None; 2],
            pending: VecDeque::new(),
        }
    }

    /// Another process in its place: the one before was stopped in order, or killed.
    pub(super) async fn restarted(self, in_order: bool, parts: &Parts) -> Self {
        let mut pending = VecDeque::new();
        for (mesh, applied) in self.applied.into_iter().enumerate() {
            pending.extend(applied.map(|it| (mesh, it)));
        }
        pending.extend(self.pending);
        match in_order {
            true => self.driver.stop().await.unwrap(),
            false => drop(self.driver),
        }
        let mut new = Self::start(self.number, self.life + 1, self.clock, parts);
        new.pending = pending;
        new
    }

    /// Takes what operators wrote, as long as nothing keeps it from that.
    pub(super) async fn catch_up(&mut self) -> Result<(), String> {
        while let Some((mesh, spec)) = self.pending.front().copied() {
            let name = MESHES[mesh];
            match spec.resources(name) {
                Some(resources) => {
                    if let Err(error) = self.manager.apply(resources).await {
                        return Err(error.to_string());
                    }
                    self.applied[mesh] = Some(spec);
                }
                None => {
                    // It may have come and gone before this one began.
                    let _ = self.manager.remove_mesh(name).await;
                    self.applied[mesh] = None;
                }
            }
            self.pending.pop_front();
        }
        Ok(())
    }
}
