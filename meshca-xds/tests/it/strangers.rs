//! Strangers: clients that open connections and prove nothing. What they take must be little, and no proxy may wait for it.
//!
//! The server runs in a process of its own, with few descriptors. That process is this program again, with the same test.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use http_body::Frame;
use meshca_xds::SdsOptions;
use prost::bytes::Bytes;
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::Endpoint;
use tower::{Service, ServiceExt};

use crate::world::{MODERN, SOON, Sotw, World};

const STREAM: &str = "http://sds/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
const STRANGERS: usize = 400;
/// As many as the process of the server may have.
const DESCRIPTORS: u64 = 256;

/// Set in the process of the server.
const ROLE: &str = "MESHCA_XDS_TEST_SERVER";
const SAYS: &str = "the server listens on ";

/// The process of the server; it ends with this.
struct Server {
    socket: PathBuf,
    child: Child,
}

impl Server {
    /// Starts the test of this name again, which is to call [`serve`] there.
    fn start(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let socket = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, socket) = line.split_once(SAYS)?;
            Some(PathBuf::from(socket))
        });
        // Nothing more is of interest, but the pipe must be read.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            socket: socket.expect("the server has not started"),
            child,
        }
    }

    /// A proxy that comes now, and how long it takes until it has its identity. It tries again where it is hung up on.
    async fn serves(&self, name: &str) -> (Sotw, DiscoveryResponse, Duration) {
        let begun = Instant::now();
        loop {
            let served = async {
                let address = format!("unix:{}", self.socket.display());
                let channel = Endpoint::from_shared(address).unwrap().connect().await;
                let mut proxy = Sotw::open(channel.ok()?, name);
                proxy.ask(&["default"]);
                Some((proxy.message().await.ok()??, proxy))
            };
            if let Some((response, proxy)) = served.await {
                return (proxy, response, begun.elapsed());
            }
            assert!(begun.elapsed() < SOON, "{name} is not served");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Server {
    /// The memory of its process, when that does not grow any more.
    async fn memory(&self) -> usize {
        let status = format!("/proc/{}/status", self.child.id());
        let mut last = 0;
        loop {
            let status = std::fs::read_to_string(&status).unwrap();
            let line = status.lines().find(|it| it.starts_with("VmRSS:"));
            let kib = line.unwrap().split_whitespace().nth(1).unwrap();
            let now = kib.parse::<usize>().unwrap() * 1024;
            if now <= last + last / 100 {
                return now;
            }
            last = now;
            sleep(Duration::from_millis(500)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves in this process, if it is the one for that, until the other one ends; returns whether it was.
///
/// So many of its descriptors are in use for something else.
async fn serve(used: usize, options: SdsOptions) -> bool {
    if std::env::var_os(ROLE).is_none() {
        return false;
    }
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let open = |_| std::fs::File::open("/dev/null").unwrap();
    let _used: Vec<_> = (0..used).map(open).collect();
    let world = World::new(MODERN, options).await;
    println!("{SAYS}{}", world.socket.display());
    std::io::stdout().flush().unwrap();
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    ended.await.unwrap().unwrap();
    world.stop().await;
    true
}

/// Connects as often as it is hung up on, and says nothing.
async fn silent(socket: &Path) {
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket).await {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_do_not_keep_a_proxy_waiting() {
    if !serve(0, SdsOptions::default()).await {
        proxies_are_served("strangers::silent_strangers_do_not_keep_a_proxy_waiting").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_where_the_process_has_no_descriptor_left() {
    if !serve(150, SdsOptions::default()).await {
        proxies_are_served("strangers::nor_do_they_where_the_process_has_no_descriptor_left").await;
    }
}

/// Beside many silent strangers, one proxy after the other is served.
async fn proxies_are_served(test: &str) {
    let server = Server::start(test);
    let mut strangers = JoinSet::new();
    for _ in 0..STRANGERS {
        let socket = server.socket.clone();
        strangers.spawn(async move { silent(&socket).await });
    }
    let mut proven = Vec::new();
    for round in 0..10 {
        let (proxy, response, took) = server.serves(&format!("web-{round}")).await;
        assert!(took < Duration::from_secs(5), "{round}: {took:?}");
        println!("{STRANGERS} silent strangers, {DESCRIPTORS} descriptors: served after {took:?}");
        proven.push((proxy, response));
    }
    // Whoever has proven who it is keeps its connection.
    for (proxy, response) in &mut proven {
        proxy.ack(response, &["default", "ALL"]);
        proxy.next().await;
    }
}

/// The beginning of a request, whose end never comes.
#[derive(Clone)]
struct Unfinished(Bytes);

impl Unfinished {
    /// Lacks the last byte of a message of this length.
    fn of(length: usize) -> Self {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(bytes.len() + length - 1, 0);
        Self(bytes.into())
    }
}

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match std::mem::take(&mut self.0) {
            none if none.is_empty() => Poll::Pending,
            all => Poll::Ready(Some(Ok(Frame::data(all)))),
        }
    }
}

/// A connection with so many streams, each of which has begun a request of this length.
async fn begun(socket: &Path, streams: usize, length: usize) -> JoinSet<()> {
    let channel = crate::world::connect(socket).await;
    let unfinished = Unfinished::of(length);
    let mut running = JoinSet::new();
    for _ in 0..streams {
        let (mut channel, unfinished) = (channel.clone(), unfinished.clone());
        running.spawn(async move {
            let request = Request::post(STREAM)
                .header("content-type", "application/grpc")
                .body(Body::new(unfinished))
                .unwrap();
            let _ = channel.ready().await.unwrap().call(request).await;
        });
    }
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_strangers_send_takes_little_memory() {
    const CONNECTIONS: usize = 40;
    const STREAMS: usize = 100;
    const KIB: usize = 1024;
    /// What a stream takes in a program that is not optimized, whatever is sent on it.
    const TASK: usize = 8 * KIB;
    if serve(0, SdsOptions::default()).await {
        return;
    }
    let server = Server::start("strangers::what_strangers_send_takes_little_memory");
    let _proxy = server.serves("web-0").await;
    let before = server.memory().await;
    // Just short of what a first request may have, and well over it.
    for length in [130_000, 260_000] {
        let mut strangers = Vec::new();
        for _ in 0..CONNECTIONS {
            strangers.push(begun(&server.socket, STREAMS, length).await);
        }
        let all = server.memory().await.saturating_sub(before);
        println!("{CONNECTIONS} strangers, {STREAMS} requests of {length} bytes each: {all} bytes");
        let (_, _, took) = server.serves("web-1").await;
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(
            all < CONNECTIONS * ((128 + 64) * KIB + STREAMS * TASK) + STREAMS * 128 * KIB,
            "{all}"
        );
    }
}
