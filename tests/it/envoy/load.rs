//! Steady load: every client asks every server, all the time, and somebody tries without TLS.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshca::resource::Mode;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::envoy::app;
use crate::envoy::control::Role;
use crate::envoy::world::{SOON, Sidecar};

/// How long there is nothing to do from each client to each server between two requests: so long that two cores have time for the rest.
const PAUSE: Duration = Duration::from_millis(20);
/// What an Envoy counts when something is wrong.
const COMPLAINTS: &str = r"fail|error|reject|not_ready|no_filter_chain|destroy_remote_with";
const PROBES: Duration = Duration::from_millis(200);

pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    begun: Instant,
    members: Mutex<Vec<Arc<Sidecar>>>,
    requests: AtomicUsize,
    failures: Mutex<Vec<String>>,
    probes: AtomicUsize,
    answered: AtomicUsize,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) requests: usize,
    pub(crate) failures: Vec<String>,
    /// Attempts without TLS, and how many of them were answered.
    pub(crate) probes: usize,
    pub(crate) answered: usize,
    pub(crate) handshakes: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} failed, {} handshakes, {} of {} attempts without TLS answered",
            grouped(self.requests),
            grouped(self.failures.len()),
            grouped(self.handshakes),
            self.answered,
            self.probes,
        )
    }
}

/// A number as people read it: `12,345`.
fn grouped(number: impl ToString) -> String {
    let digits = number.to_string();
    let group = |(at, digit): (usize, char)| {
        let comma = at > 0 && (digits.len() - at).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(group).collect()
}

impl Counts {
    /// Nothing has failed, and plaintext was taken only where it may.
    pub(crate) fn assert_good(&self, mode: Mode) {
        let first: Vec<_> = self.failures.iter().take(5).collect();
        assert!(first.is_empty(), "{self}: {first:#?}");
        assert!(self.requests > 100 && self.probes > 10, "{self}");
        // Each request has a handshake of its own.
        assert!(self.handshakes >= self.requests, "{self}");
        match mode {
            Mode::Strict => assert_eq!(self.answered, 0, "{self}"),
            // Else an attempt would prove nothing.
            _ => assert_eq!(self.answered, self.probes, "{self}"),
        }
    }
}

impl Load {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            members: Mutex::default(),
            requests: AtomicUsize::new(0),
            failures: Mutex::default(),
            probes: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        let probing = Arc::clone(&shared);
        tasks.spawn(async move {
            for round in 0.. {
                probing.probe(round).await;
                tokio::time::sleep(PROBES).await;
            }
        });
        Self { shared, tasks }
    }

    /// From now on this one is asked by all clients, or asks all servers.
    pub(crate) fn join(&mut self, sidecar: &Arc<Sidecar>) {
        let mut members = self.shared.members.lock().unwrap();
        for other in members.iter() {
            let (client, server) = match (&sidecar.spec.role, &other.spec.role) {
                (Role::Client { egress }, Role::Server { .. }) => ((sidecar, *egress), other),
                (Role::Server { .. }, Role::Client { egress }) => ((other, *egress), sidecar),
                _ => continue,
            };
            let (client, server) = ((Arc::clone(client.0), client.1), Arc::clone(server));
            let shared = Arc::clone(&self.shared);
            self.tasks.spawn(async move {
                for round in 0_u64.. {
                    shared.ask(&client.0, client.1, &server, round).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        members.push(Arc::clone(sidecar));
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Ends it; what is under way is not part of it.
    pub(crate) async fn end(mut self) -> Counts {
        self.tasks.shutdown().await;
        let members = self.shared.members.lock().unwrap().clone();
        // Workers tell the main thread what they have counted now and then.
        let requests = self.requests();
        let failures = std::mem::take(&mut *self.shared.failures.lock().unwrap());
        if !failures.is_empty() {
            for member in &members {
                let counted = member.envoy.read().await.stats(COMPLAINTS).await;
                let counted = counted.unwrap_or_default().into_iter();
                let counted: Vec<_> = counted.filter(|(_, count)| *count > 0).collect();
                println!("{member:?} counts {counted:?}");
            }
        }
        let mut handshakes = 0;
        crate::envoy::world::until("Envoys do not count their handshakes", async || {
            handshakes = 0;
            for member in &members {
                handshakes += made(member).await;
            }
            handshakes >= requests - failures.len()
        })
        .await;
        Counts {
            requests,
            failures,
            probes: self.shared.probes.load(Ordering::Relaxed),
            answered: self.shared.answered.load(Ordering::Relaxed),
            handshakes,
        }
    }
}

/// How many handshakes this Envoy has made as a client.
async fn made(sidecar: &Sidecar) -> usize {
    let stats = sidecar
        .envoy
        .read()
        .await
        .stats(r"^cluster\.s-\d+\.ssl\.handshake$")
        .await;
    let made: u64 = stats.unwrap_or_default().values().sum();
    usize::try_from(made).unwrap()
}

impl Shared {
    async fn ask(&self, client: &Sidecar, egress: SocketAddr, server: &Sidecar, round: u64) {
        // Whoever is restarted waits until this is over, and this until it is back.
        let (_client, _server) = (client.envoy.read().await, server.envoy.read().await);
        let path = format!("/{}/{round}", server.name());
        let answer = app::get(egress, &path).await;
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(why) = answer {
            let at = self.begun.elapsed().as_secs_f64();
            let why = format!("{at:.1} s: {client:?}: {why}");
            self.failures.lock().unwrap().push(why);
        }
    }

    /// Asks without TLS.
    async fn probe(&self, round: usize) {
        let members = self.members.lock().unwrap().clone();
        let servers = members.iter().filter_map(|it| match it.spec.role {
            Role::Server { inbound, .. } => Some((it, inbound)),
            Role::Client { .. } => None,
        });
        let servers: Vec<_> = servers.collect();
        let Some((server, inbound)) = servers.get(round % servers.len().max(1)) else {
            return;
        };
        let _server = server.envoy.read().await;
        let asked = async {
            let mut answer = Vec::new();
            // Refused is what it should be, and a reset is a way to be refused.
            let _ = app::send(*inbound, "/plain")
                .await?
                .read_to_end(&mut answer)
                .await;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(SOON, asked).await;
        self.probes.fetch_add(1, Ordering::Relaxed);
        if matches!(answer, Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.1 200")) {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}
