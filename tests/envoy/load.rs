//! Steady load: every client asks every server, all the time, and somebody tries without TLS.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshca::resource::Mode;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::app;
use crate::control::Role;
use crate::world::{SOON, Sidecar};

/// Requests under way at the same time, and how long each waits for its turn: as much as leaves two cores time for the rest.
const WORKERS: usize = 6;
const PAUSE: Duration = Duration::from_millis(20);
const PROBES: Duration = Duration::from_millis(200);

pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    members: Mutex<Vec<Arc<Sidecar>>>,
    requests: AtomicUsize,
    failures: Mutex<Vec<String>>,
    probes: AtomicUsize,
    answered: AtomicUsize,
    /// Of Envoys that were restarted since.
    handshakes: AtomicU64,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) requests: usize,
    pub(crate) failures: Vec<String>,
    /// Attempts without TLS, and how many of them were answered.
    pub(crate) probes: usize,
    pub(crate) answered: usize,
    pub(crate) handshakes: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} failed, {} handshakes, {} of {} attempts without TLS answered",
            self.requests,
            self.failures.len(),
            self.handshakes,
            self.answered,
            self.probes,
        )
    }
}

impl Counts {
    /// Nothing has failed, and plaintext was taken only where it may.
    pub(crate) fn assert_good(&self, mode: Mode) {
        let first: Vec<_> = self.failures.iter().take(5).collect();
        assert!(first.is_empty(), "{self}: {first:#?}");
        assert!(self.requests > 100 && self.probes > 10, "{self}");
        // Each request has a handshake of its own.
        assert!(self.handshakes >= self.requests as u64, "{self}");
        match mode {
            Mode::Strict => assert_eq!(self.answered, 0, "{self}"),
            // Else an attempt would prove nothing.
            _ => assert_eq!(self.answered, self.probes, "{self}"),
        }
    }
}

impl Load {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for worker in 0..WORKERS {
            let shared = Arc::clone(&shared);
            tasks.spawn(async move {
                for round in worker.. {
                    shared.ask(round).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        let probing = Arc::clone(&shared);
        tasks.spawn(async move {
            for round in 0.. {
                probing.probe(round).await;
                tokio::time::sleep(PROBES).await;
            }
        });
        Self { shared, tasks }
    }

    /// From now on this one is asked, or asks.
    pub(crate) fn join(&self, sidecar: &Arc<Sidecar>) {
        self.shared.members.lock().unwrap().push(Arc::clone(sidecar));
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Ends it; what is under way is not part of it.
    pub(crate) async fn end(mut self) -> Counts {
        self.tasks.shutdown().await;
        let members = self.shared.members.lock().unwrap().clone();
        let mut handshakes = self.shared.handshakes.load(Ordering::Relaxed);
        // Workers tell the main thread what they have counted now and then.
        let requests = self.requests();
        let mut counted = 0;
        crate::world::until("Envoys do not count their handshakes", async || {
            counted = handshakes;
            for member in &members {
                counted += made(member).await;
            }
            counted >= requests as u64
        })
        .await;
        handshakes = counted;
        Counts {
            requests,
            failures: std::mem::take(&mut *self.shared.failures.lock().unwrap()),
            probes: self.shared.probes.load(Ordering::Relaxed),
            answered: self.shared.answered.load(Ordering::Relaxed),
            handshakes,
        }
    }
}

/// How many handshakes this Envoy has made as a client.
async fn made(sidecar: &Sidecar) -> u64 {
    let stats = sidecar.envoy.read().await.stats(r"^cluster\.s-\d+\.ssl\.handshake$").await;
    stats.unwrap_or_default().values().sum()
}

impl Shared {
    fn all(&self, choose: impl Fn(&Role) -> bool) -> Vec<Arc<Sidecar>> {
        let members = self.members.lock().unwrap();
        members.iter().filter(|it| choose(&it.spec.role)).cloned().collect()
    }

    async fn ask(&self, round: usize) {
        let clients = self.all(|role| matches!(role, Role::Client { .. }));
        let servers = self.all(|role| matches!(role, Role::Server { .. }));
        let client = clients.get(round % clients.len().max(1));
        let server = servers.get(round / clients.len().max(1) % servers.len().max(1));
        let (Some(client), Some(server)) = (client, server) else {
            return;
        };
        let Role::Client { egress } = client.spec.role else {
            return;
        };
        // Whoever is restarted waits until this is over, and this until it is back.
        let (_client, _server) = (client.envoy.read().await, server.envoy.read().await);
        let path = format!("/{}/{round}", server.name());
        let answer = app::get(egress, &path).await;
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(why) = answer {
            self.failures.lock().unwrap().push(format!("{client:?}: {why}"));
        }
    }

    /// Asks without TLS.
    async fn probe(&self, round: usize) {
        let servers = self.all(|role| matches!(role, Role::Server { .. }));
        let Some(server) = servers.get(round % servers.len().max(1)) else {
            return;
        };
        let Role::Server { inbound, .. } = server.spec.role else {
            return;
        };
        let _server = server.envoy.read().await;
        let asked = async {
            let mut answer = Vec::new();
            // Refused is what it should be, and a reset is a way to be refused.
            let _ = app::send(inbound, "/plain").await?.read_to_end(&mut answer).await;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(SOON, asked).await;
        self.probes.fetch_add(1, Ordering::Relaxed);
        if matches!(answer, Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.1 200")) {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}
