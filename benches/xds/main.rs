//! Our side of `cargo xtask bench xds`: what the server of secrets costs for each proxy that is connected.
//!
//! It speaks like `speed.rs`: `CASE NANOSECONDS THREADS` is answered with `OPERATIONS NANOSECONDS`, what goes wrong with `error MESSAGE`. How
//! many proxies there are, and how many of them stop reading, are its two arguments. The proxies are tonic clients in a process of their
//! own, this program again, so that CPU and memory here are those of the control plane alone; both share the machine, and its clock.
//!
//! | case | operations, and what of |
//! |---|---|
//! | `memory` | proxies, and bytes: what this process has resident more than before they connected, manager's part and all; after two pushes |
//! | `push` | proxies that are pushed a new identity, and the CPU of this process until the last has received it |
//! | `acknowledge` | the same proxies, which acknowledge what they have received only now, and the CPU of this process until it has heard all |
//! | `written` | as many responses with the same secrets, encoded by prost and written to as many sockets, and the CPU of that |
//! | `p50`, `p99` | one, and the time until this part of the proxies has received what was pushed |
//! | `p99-slow` | the same, of the others, while some have stopped reading |
//! | `connect` | proxies that connect at once, known ones, and the time until all have identity and trust |
//! | `connect-cpu` | the same, and the CPU of this process |
//! | `first` | the same in the beginning, when all identities are to be issued: the CPU of this process |
//!
//! **A push does not have the CA's work in it.** The manager has threads of its own; those that serve are held while it renews all identities,
//! and measuring begins when they are let go: they find an identity for each proxy, encode it, and send it. From then on all CPU of the process
//! counts.
//!
//! **A push ends when the bytes are with the proxies.** What they answer is a second thing: they hold their acknowledgements back until the last
//! of them has received what is new. `push` is the CPU until then: to be woken, to find out what is new, to encode it, HTTP/2, and the system
//! calls with all that the kernel does in them. `acknowledge` is the CPU from the word to go on until all acknowledgements are read, decoded
//! and booked.
//!
//! **`written` is what no server can do without.** For each proxy it takes the `Arc<Identity>` that the manager keeps, makes PEM of its chain
//! and of its key, of them a `Secret`, an `Any`, a `DiscoveryResponse`, and one buffer, and writes that to a socket of the proxy's own with one
//! system call; somebody reads at the other end. The trust, which is one for all, is packed once. It waits for nothing and looks nothing up, on
//! one thread. Before it there is a whole push that is not measured: so the identities are as new as those of a push, and whatever they left
//! in the caches has given way to the connections. It is not spared what the kernel does: both write over the same kind of socket, to
//! readers of the same kind.
//!
//! **What the memory of a proxy is made of**, by heaptrack, in bytes that were asked for. Of the buffers only the pages that were ever used are
//! resident, which is why `memory` says less than the sum. What the kernel keeps for a socket is in no process, and not in it.
//!
//! | bytes | of what |
//! |---|---|
//! | 16,384 | h2's buffer for what it writes |
//! | 12,764 | h2's buffers for what it reads, and for headers |
//! | 7,981 | the connection: its task, with hyper's and h2's state (3,584), h2's tables of streams and frames |
//! | 4,292 | the stream: the session, names and versions, 512 bytes for requests |
//! | 4,235 | what the manager keeps: the identity and its key, the workload |
//! | 1,360 | the rest |

mod proxies;

use std::future::pending;
use std::io::{BufRead as _, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use meshca::identity::manager::{DriverTask, Event, Observer};
use meshca::identity::select::SelectOptions;
use meshca::identity::{Handle, Manager, ManagerOptions, MeshResources};
use meshca::registry::BackendRegistry;
use meshca::resource::Resource;
use meshca::spiffe::{Environment, Workload};
use meshca::xds::secrets::{SECRET_TYPE, identity_secret, trust_secret};
use meshca::xds::{Attested, Caller, SdsEvent, SdsObserver, SdsServer, names};
use meshca::{Clock, Identity, MemorySecretStore, builtin};
use prost::Message as _;
use rustix::process::{Resource as Limited, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

use proxies::Proxies;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MESH: &str = "
type: Mesh
name: default
---
type: MeshIdentity
name: all
mesh: default
spec:
  selector: {dataplane: {matchLabels: {}}}
  spiffeID: {trustDomain: example.org}
  provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}
";

/// What that MeshIdentity is called by proxies.
const IDENTITY: &str = "kri_mid_default_east__all_";

/// Threads that serve.
const SERVING: usize = 2;

fn main() -> Result<()> {
    more_files();
    const USAGE: &str = "PROXIES SLOW tcp|unix";
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().ok_or(USAGE);
    let first = argument()?;
    if first == proxies::ARGUMENT {
        return proxies::run();
    }
    let (proxies, slow) = (first.parse()?, argument()?.parse()?);
    let mut bench = match argument()?.as_str() {
        "tcp" => Bench::new(proxies, slow, Transport::Tcp)?,
        "unix" => Bench::new(proxies, slow, Transport::Unix)?,
        _ => return Err(USAGE.into()),
    };
    let mut to = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let case = line.split(' ').next().unwrap_or_default();
        match bench.answer(case) {
            Ok((operations, of)) => writeln!(to, "{operations} {}", of.max(1.0))?,
            Err(error) => writeln!(to, "error {error}")?,
        }
        to.flush()?;
    }
    Ok(())
}

/// Each proxy is two sockets here, one of them for `written`; what shells allow is often less.
fn more_files() {
    let Rlimit { maximum, .. } = getrlimit(Limited::Nofile);
    let current = maximum;
    // Without, it fails where there are too few.
    let _ = setrlimit(Limited::Nofile, Rlimit { current, maximum });
}

/// How proxies are connected.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp,
    Unix,
}

/// As many connections may wait to be accepted as the system allows, which is mostly this.
const BACKLOG: u32 = 4096;

/// A clock that is set forward.
#[derive(Clone, Debug)]
struct Ahead(Arc<AtomicU64>);

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        wall() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// Counts, and wakes who waits for that many.
#[derive(Debug, Default)]
struct Counter {
    count: AtomicUsize,
    wanted: AtomicUsize,
    reached: Mutex<()>,
    wake: Condvar,
}

impl Counter {
    fn add(&self, more: usize) {
        let count = self.count.fetch_add(more, Ordering::SeqCst) + more;
        // Waking for each is not what is measured.
        if count >= self.wanted.load(Ordering::SeqCst) {
            let _reached = self.reached.lock();
            self.wake.notify_all();
        }
    }

    fn set(&self, wanted: usize) {
        self.count.store(0, Ordering::SeqCst);
        self.wanted.store(wanted, Ordering::SeqCst);
    }

    fn wait(&self, what: &str) -> Result<()> {
        let reached = || self.count.load(Ordering::SeqCst) >= self.wanted.load(Ordering::SeqCst);
        let lock = self.reached.lock().map_err(|_| "a thread has panicked")?;
        let waited = self
            .wake
            .wait_timeout_while(lock, Duration::from_secs(120), |()| !reached())
            .map_err(|_| "a thread has panicked")?;
        match waited.1.timed_out() {
            true => Err(format!(
                "{what}: {:?} of {:?}",
                self.count.load(Ordering::SeqCst),
                self.wanted
            )
            .into()),
            false => Ok(()),
        }
    }
}

/// Identities that the manager has handed out.
#[derive(Debug, Default)]
struct Issued(Counter);

impl Observer for Issued {
    fn observe(&self, event: &Event<'_>) {
        if matches!(event, Event::Issued { .. } | Event::Renewed { .. }) {
            self.0.add(1);
        }
    }
}

/// Responses that were acknowledged.
#[derive(Debug, Default)]
struct Acknowledged(Counter);

impl SdsObserver for Acknowledged {
    fn observe(&self, event: &SdsEvent<'_>) {
        if let SdsEvent::Acknowledged { .. } = event {
            self.0.add(1);
        }
    }
}

/// What was set up for a case is kept for the next.
struct Bench {
    count: usize,
    slow: usize,
    transport: Transport,
    managing: Runtime,
    serving: Runtime,
    manager: Manager,
    server: SdsServer,
    clock: Ahead,
    issued: Arc<Issued>,
    acknowledged: Arc<Acknowledged>,
    proxies: Proxies,
    /// Where they find the server.
    address: String,
    /// CPU of connecting for the first time, and bytes.
    first: Option<(f64, f64)>,
    bare: Option<Bare>,
    _driver: DriverTask,
}

/// Sockets that are only written to, and the proxies whose secrets are written.
struct Bare {
    sockets: Vec<Box<dyn Write>>,
    handles: Vec<Handle>,
}

/// What a push takes.
struct Push {
    /// CPU until all have received it.
    sent: f64,
    /// CPU from then on, until all have acknowledged it.
    acknowledged: f64,
    latencies: proxies::Latencies,
}

impl Bench {
    fn new(count: usize, slow: usize, transport: Transport) -> Result<Self> {
        let managing = threads("manage", 1)?;
        let serving = threads("serve", SERVING)?;
        let clock = Ahead(Arc::default());
        let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        options.trust_refresh = Duration::from_secs(1);
        options.acknowledgements = true;
        let (manager, driver) = Manager::new(
            BackendRegistry::new().with(builtin::factory()),
            Arc::new(MemorySecretStore::new()),
            Arc::new(clock.clone()),
            options,
        );
        let issued = Arc::new(Issued::default());
        let driver = driver.with_observer(Arc::clone(&issued) as Arc<dyn Observer>);
        let driver = {
            let _entered = managing.enter();
            driver.spawn()
        };
        let mesh = MeshResources::from_resources(Resource::parse(MESH)?)?;
        managing.block_on(manager.apply(mesh))?;

        let acknowledged = Arc::new(Acknowledged::default());
        let server = SdsServer::builder(manager.clone(), by_node)
            .with_observer(Arc::clone(&acknowledged) as Arc<dyn SdsObserver>)
            .build();
        let proxies = Proxies::start()?;
        let (serve, socket) = (server.clone(), proxies.socket());
        let address = serving.block_on(async {
            Result::<_>::Ok(match transport {
                Transport::Tcp => {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
                    let listener = socket.listen(BACKLOG)?;
                    let address = listener.local_addr()?.to_string();
                    tokio::spawn(async move { serve.serve_tcp(listener, pending()).await });
                    address
                }
                Transport::Unix => {
                    // Of the standard library, as its queue is longer than tokio's.
                    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
                    listener.set_nonblocking(true)?;
                    let listener = tokio::net::UnixListener::from_std(listener)?;
                    tokio::spawn(async move { serve.serve_unix(listener, pending()).await });
                    socket.display().to_string()
                }
            })
        })?;
        Ok(Self {
            count,
            slow,
            transport,
            managing,
            serving,
            manager,
            server,
            clock,
            issued,
            acknowledged,
            proxies,
            address,
            first: None,
            bare: None,
            _driver: driver,
        })
    }

    /// Operations, and what they took.
    fn answer(&mut self, case: &str) -> Result<(usize, f64)> {
        let (cpu, bytes) = self.first()?;
        match case {
            "memory" => Ok((self.count, bytes)),
            "first" => Ok((self.count, cpu)),
            "push" => Ok((self.count, self.push(self.count)?.sent)),
            "acknowledge" => Ok((self.count, self.push(self.count)?.acknowledged)),
            "written" => Ok((self.count, self.written()?)),
            "p50" => Ok((1, self.push(self.count)?.latencies.half)),
            "p99" => Ok((1, self.push(self.count)?.latencies.most)),
            "p99-slow" => self.push_past_slow(),
            "connect" => Ok((self.count, self.connect()?.0)),
            "connect-cpu" => Ok((self.count, self.connect()?.1)),
            _ => Err(format!("there is no case `{case}`").into()),
        }
    }

    /// All connect, and get an identity that is issued for them.
    fn first(&mut self) -> Result<(f64, f64)> {
        if let Some(first) = self.first {
            return Ok(first);
        }
        self.issued.0.set(usize::MAX);
        self.acknowledged.0.set(usize::MAX);
        let (resident_before, begun) = (resident()?, cpu());
        self.proxies.connect(self.count, &self.address)?;
        let cpu = cpu() - begun;
        // What a connection and a stream need for more than their beginning, they have after this.
        self.push(self.count)?;
        self.push(self.count)?;
        let first = (cpu, resident()? - resident_before);
        self.first = Some(first);
        Ok(first)
    }

    /// All go, and come again, for what they had.
    fn connect(&mut self) -> Result<(f64, f64)> {
        self.proxies.disconnect()?;
        let waiting = now();
        while self.server.connected() > 0 {
            if waiting.elapsed() > Duration::from_secs(60) {
                return Err("the server does not see that its clients are gone".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.acknowledged.0.set(usize::MAX);
        let begun = cpu();
        let took = self.proxies.connect(self.count, &self.address)?;
        Ok((took, cpu() - begun))
    }

    /// A new identity for each proxy, of which so many read.
    fn push(&mut self, reading: usize) -> Result<Push> {
        self.proxies.hold()?;
        let let_go = self.hold();
        self.issued.0.set(self.count);
        // Past the last renewal of what lives for a day, before the end of any.
        self.clock.0.fetch_add(15 * 3600, Ordering::Relaxed);
        self.issued.0.wait("identities were renewed")?;
        // Answered when the manager has done what came before.
        let _ = self.managing.block_on(self.manager.gate("unknown"));
        self.acknowledged.0.set(reading);
        let (begun, changed) = (cpu(), wall());
        let_go.wait();
        let latencies = self.proxies.received(reading, changed)?;
        let received = cpu();
        self.proxies.go_on()?;
        self.acknowledged.0.wait("responses were acknowledged")?;
        Ok(Push {
            sent: received - begun,
            acknowledged: cpu() - received,
            latencies,
        })
    }

    /// Nothing is served until somebody waits at this.
    fn hold(&self) -> Arc<Barrier> {
        let held = Arc::new(Barrier::new(SERVING + 1));
        let let_go = Arc::new(Barrier::new(SERVING + 1));
        for _ in 0..SERVING {
            let (held, let_go) = (Arc::clone(&held), Arc::clone(&let_go));
            self.serving.spawn(async move {
                held.wait();
                let_go.wait();
            });
        }
        held.wait();
        let_go
    }

    fn push_past_slow(&mut self) -> Result<(usize, f64)> {
        self.proxies.stall(self.slow)?;
        let reading = self.count - self.slow;
        // What the slow ones do not read is under way after the first, and what is new for them piles up after the second.
        self.push(reading)?;
        let most = self.push(reading)?.latencies.most;
        self.acknowledged.0.set(2 * self.slow);
        self.proxies.resume()?;
        // What was under way, and the newest instead of all that they missed.
        self.acknowledged
            .0
            .wait("responses that came late were acknowledged")?;
        self.proxies.received(2 * self.slow, wall())?;
        Ok((1, most))
    }

    /// The secrets that the proxies have now, as bytes on sockets.
    fn written(&mut self) -> Result<f64> {
        if self.bare.is_none() {
            self.bare = Some(Bare {
                sockets: self.proxies.bare(self.count, self.transport)?,
                handles: self.handles()?,
            });
        }
        self.push(self.count)?;
        let bare = self.bare.as_mut().ok_or("it was made")?;
        let identities = bare.handles.iter().map(Handle::identity);
        let identities: Option<Vec<Arc<Identity>>> = identities.collect();
        let identities = identities.ok_or("all have an identity")?;
        let trust = bare.handles.first().ok_or("there are proxies")?.trust();
        let trust = packed(&trust_secret(names::SYSTEM_TRUST_BUNDLE, &trust));
        let mut bytes = 0;
        let begun = cpu();
        for (socket, identity) in bare.sockets.iter_mut().zip(&identities) {
            let message = encoded(identity, &trust)?;
            bytes += message.len();
            socket.write_all(&message)?;
        }
        let cpu = cpu() - begun;
        self.proxies.drained(bytes)?;
        Ok(cpu)
    }

    /// What the server has of each proxy.
    fn handles(&self) -> Result<Vec<Handle>> {
        let mut handles = Vec::with_capacity(self.count);
        for n in 0..self.count {
            let name = proxies::name(n);
            let workload = Arc::new(workload(&name));
            let connect = self.manager.connect("default", name, workload);
            handles.push(self.managing.block_on(connect)?);
        }
        Ok(handles)
    }
}

/// A response as it is on the wire, with as many bytes before it as gRPC and HTTP/2 have there.
fn encoded(identity: &Identity, trust: &Any) -> Result<Vec<u8>> {
    let response = DiscoveryResponse {
        version_info: "0123456789abcdef0123456789abcdef".to_owned(),
        resources: vec![packed(&identity_secret(IDENTITY, identity)?), trust.clone()],
        type_url: SECRET_TYPE.to_owned(),
        nonce: "2".to_owned(),
        ..DiscoveryResponse::default()
    };
    const BEFORE: usize = 5 + 9;
    let mut message = Vec::with_capacity(BEFORE + response.encoded_len());
    message.resize(BEFORE, 0);
    response.encode_raw(&mut message);
    Ok(message)
}

fn packed(secret: &Secret) -> Any {
    Any {
        type_url: SECRET_TYPE.to_owned(),
        value: secret.encode_to_vec(),
    }
}

/// Believes a node whose id is its name.
fn by_node(caller: &Caller<'_>) -> meshca::Result<Attested> {
    let name = &caller.node().id;
    Ok(Attested::new("default", name.clone(), workload(name)))
}

fn workload(name: &str) -> Workload {
    [
        ("app", "checkout"),
        ("version", "v1"),
        ("kuma.io/workload", name),
        ("kuma.io/zone", "east"),
    ]
    .into_iter()
    .collect()
}

/// The name is for profilers.
fn threads(name: &str, count: usize) -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .worker_threads(count)
        .enable_all()
        .build()?)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what a benchmark is for is to take the time"
)]
fn now() -> Instant {
    Instant::now()
}

/// The clock that two processes have in common.
#[expect(
    clippy::disallowed_methods,
    reason = "what a benchmark is for is to take the time"
)]
fn wall() -> SystemTime {
    SystemTime::now()
}

/// Bytes of this process that are in memory.
fn resident() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

/// Nanoseconds of all processors that this process has used.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
