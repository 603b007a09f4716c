//! The proxies: tonic clients in a process of their own, which does what it is told on its standard input.

use std::fmt::Display;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use futures_util::stream;
use futures_util::task::AtomicWaker;
use hyper_util::rt::TokioIo;
use meshca::xds::names;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::{IDENTITY, Result, Transport, now, wall};

/// What makes this program be the proxies.
pub(crate) const ARGUMENT: &str = "--proxies";

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(120);

/// What the proxy of this number is called.
pub(crate) fn name(n: usize) -> String {
    format!("w-{n}")
}

/// How long it took until proxies had what was pushed, in nanoseconds.
pub(crate) struct Latencies {
    /// Half of them.
    pub(crate) half: f64,
    /// 99 of 100.
    pub(crate) most: f64,
}

/// The process. It ends when this is dropped, or with its parent.
pub(crate) struct Proxies {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl Proxies {
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().ok_or("it has a standard output")?);
        Ok(Self {
            child,
            to,
            from,
            folder,
        })
    }

    /// A path for a socket of the server.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("sds.sock")
    }

    /// So many connect at once; how long it took in nanoseconds until all had what they asked for.
    pub(crate) fn connect(&mut self, count: usize, address: &str) -> Result<f64> {
        Ok(self
            .ask(format_args!("connect {count} {address}"))?
            .parse()?)
    }

    pub(crate) fn disconnect(&mut self) -> Result<()> {
        self.ask("disconnect").map(drop)
    }

    /// From now on they do not acknowledge what they receive.
    pub(crate) fn hold(&mut self) -> Result<()> {
        self.ask("hold").map(drop)
    }

    /// They acknowledge what they have received, and what they will.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        self.ask("go on").map(drop)
    }

    /// So many responses have come since.
    pub(crate) fn received(&mut self, count: usize, since: SystemTime) -> Result<Latencies> {
        let since = since.duration_since(UNIX_EPOCH)?.as_nanos();
        let answer = self.ask(format_args!("received {count} {since}"))?;
        let (half, most) = answer.split_once(' ').ok_or("two numbers")?;
        Ok(Latencies {
            half: half.parse()?,
            most: most.parse()?,
        })
    }

    /// The first so many read nothing any more.
    pub(crate) fn stall(&mut self, count: usize) -> Result<()> {
        self.ask(format_args!("stall {count}")).map(drop)
    }

    pub(crate) fn resume(&mut self) -> Result<()> {
        self.ask("stall 0").map(drop)
    }

    /// Sockets at whose other ends everything is read, and nothing done with it.
    pub(crate) fn bare(
        &mut self,
        count: usize,
        transport: Transport,
    ) -> Result<Vec<Box<dyn io::Write>>> {
        let mut sockets: Vec<Box<dyn io::Write>> = Vec::with_capacity(count);
        match transport {
            Transport::Tcp => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                self.tell(format_args!("bare {count} {}", listener.local_addr()?))?;
                for _ in 0..count {
                    let socket = listener.accept()?.0;
                    socket.set_nodelay(true)?;
                    sockets.push(Box::new(socket));
                }
            }
            Transport::Unix => {
                let path = self.folder.path().join("bare.sock");
                let listener = UnixListener::bind(&path)?;
                self.tell(format_args!("bare {count} {}", path.display()))?;
                for _ in 0..count {
                    sockets.push(Box::new(listener.accept()?.0));
                }
            }
        }
        self.answer()?;
        Ok(sockets)
    }

    /// So many bytes have been read from these.
    pub(crate) fn drained(&mut self, bytes: usize) -> Result<()> {
        self.ask(format_args!("drained {bytes}")).map(drop)
    }

    fn ask(&mut self, what: impl Display) -> Result<String> {
        self.tell(what)?;
        self.answer()
    }

    fn tell(&mut self, what: impl Display) -> Result<()> {
        let to = self.to.as_mut().ok_or("it has a standard input")?;
        writeln!(to, "{what}")?;
        Ok(to.flush()?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let line = line.trim_end();
        match line.strip_prefix("error ") {
            Some(error) => Err(format!("the proxies: {error}").into()),
            None if line.is_empty() => Err("the proxies have ended".into()),
            None => Ok(line.to_owned()),
        }
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.to = None;
        let _ = self.child.wait();
    }
}

/// The process's own side.
pub(crate) fn run() -> Result<()> {
    let runtime = crate::threads("proxies", 2)?;
    let _entered = runtime.enter();
    let mut all = All::default();
    let mut to = io::stdout();
    for line in io::stdin().lock().lines() {
        let line = line?;
        match all.told(&line) {
            Ok(answer) => writeln!(to, "{answer}")?,
            Err(error) => writeln!(to, "error {line}: {error}")?,
        }
        to.flush()?;
    }
    runtime.shutdown_background();
    Ok(())
}

#[derive(Default)]
struct All {
    tasks: JoinSet<()>,
    doors: Vec<Arc<Door>>,
    responses: Option<mpsc::Receiver<Response>>,
    /// Whether they hold their acknowledgements back.
    held: watch::Sender<bool>,
    bare: JoinSet<()>,
    drained: Arc<AtomicUsize>,
}

/// What a proxy has received.
struct Response {
    at: SystemTime,
    /// How many secrets, or how it failed.
    secrets: Result<usize>,
}

impl All {
    fn told(&mut self, line: &str) -> Result<String> {
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or("it ends too early");
        let what = word()?;
        let mut number = || -> Result<usize> { Ok(word()?.parse()?) };
        match what {
            "connect" => {
                let count = number()?;
                let begun = now();
                self.connect(count, word()?)?;
                return Ok(begun.elapsed().as_nanos().to_string());
            }
            "disconnect" => {
                self.tasks.abort_all();
                self.doors.clear();
            }
            "hold" => drop(self.held.send_replace(true)),
            "go" => drop(self.held.send_replace(false)),
            "received" => {
                let (count, since) = (number()?, number()?);
                return self.received(count, since);
            }
            "stall" => {
                let count = number()?;
                for (n, door) in self.doors.iter().enumerate() {
                    door.set(n < count);
                }
            }
            "bare" => {
                let count = number()?;
                self.bare(count, word()?)?;
            }
            "drained" => {
                let wanted = number()?;
                let begun = now();
                while self.drained.load(Ordering::SeqCst) < wanted {
                    if begun.elapsed() > LONG {
                        return Err("they were not read".into());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                self.drained.fetch_sub(wanted, Ordering::SeqCst);
            }
            _ => return Err("unknown".into()),
        }
        Ok("ok".to_owned())
    }

    fn connect(&mut self, count: usize, address: &str) -> Result<()> {
        let address: Arc<str> = address.into();
        let (sender, receiver) = mpsc::channel();
        self.responses = Some(receiver);
        self.tasks = JoinSet::new();
        for n in 0..count {
            let door = Arc::new(Door::default());
            self.doors.push(Arc::clone(&door));
            let (address, sender) = (Arc::clone(&address), sender.clone());
            let held = self.held.subscribe();
            self.tasks.spawn(async move {
                let failed = match proxy(n, address, door, held, &sender).await {
                    Ok(()) => "the stream has ended".into(),
                    Err(error) => error,
                };
                let _ = sender.send(Response {
                    at: wall(),
                    secrets: Err(failed),
                });
            });
        }
        // The trust alone, if the identity takes longer.
        let mut ready = 0;
        while ready < count {
            if self.next()?.secrets? == 2 {
                ready += 1;
            }
        }
        Ok(())
    }

    fn next(&self) -> Result<Response> {
        let responses = self.responses.as_ref().ok_or("nobody is connected")?;
        Ok(responses.recv_timeout(LONG)?)
    }

    fn received(&self, count: usize, since: usize) -> Result<String> {
        let since = UNIX_EPOCH + Duration::from_nanos(since as u64);
        let mut took = Vec::with_capacity(count);
        while took.len() < count {
            let Response { at, secrets } = self.next()?;
            secrets?;
            took.push(at.duration_since(since).unwrap_or_default().as_nanos());
        }
        took.sort_unstable();
        let at = |percent: usize| {
            let index = took.len().saturating_sub(1) * percent / 100;
            took.get(index).copied().unwrap_or_default()
        };
        Ok(format!("{} {}", at(50), at(99)))
    }

    fn bare(&mut self, count: usize, address: &str) -> Result<()> {
        for _ in 0..count {
            let mut stream = Handle::current().block_on(connected(address))?;
            let drained = Arc::clone(&self.drained);
            self.bare.spawn(async move {
                let mut buffer = vec![0; 8192];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    drained.fetch_add(read, Ordering::SeqCst);
                }
            });
        }
        Ok(())
    }
}

/// A proxy with one stream, which acknowledges whatever comes, unless it is to hold that back.
async fn proxy(
    n: usize,
    address: Arc<str>,
    door: Arc<Door>,
    mut held: watch::Receiver<bool>,
    sender: &mpsc::Sender<Response>,
) -> Result<()> {
    let connector = tower::service_fn(move |_| {
        let (address, door) = (Arc::clone(&address), Arc::clone(&door));
        async move {
            let io = connected(&address).await?;
            io::Result::Ok(TokioIo::new(Behind { io, door }))
        }
    });
    // Nobody looks at the address.
    let channel = Endpoint::from_static("http://sds")
        .connect_with_connector(connector)
        .await?;
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let (requests, receiver) = tokio::sync::mpsc::unbounded_channel();
    let first = DiscoveryRequest {
        node: Some(Node {
            id: name(n),
            ..Node::default()
        }),
        ..request()
    };
    requests.send(first)?;
    let outbound = stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    let mut responses = client.stream_secrets(outbound).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let DiscoveryResponse {
            version_info,
            nonce,
            resources,
            ..
        } = response;
        // Before it is told that this has come: whoever is told may let them hold back the next.
        let hold = *held.borrow();
        let _ = sender.send(Response {
            at: wall(),
            secrets: Ok(resources.len()),
        });
        if hold {
            held.wait_for(|held| !held).await?;
        }
        requests.send(DiscoveryRequest {
            version_info,
            response_nonce: nonce,
            ..request()
        })?;
    }
    Ok(())
}

fn request() -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: vec![IDENTITY.to_owned(), names::SYSTEM_TRUST_BUNDLE.to_owned()],
        ..DiscoveryRequest::default()
    }
}

/// A path is that of a Unix socket. The queue in front of one is as long as the system says; who finds it full comes again.
async fn connected(address: &str) -> io::Result<Box<dyn Stream>> {
    if !address.starts_with('/') {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        return Ok(Box::new(stream));
    }
    loop {
        match UnixStream::connect(address).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a proxy that has stopped reads through.
#[derive(Default)]
struct Door {
    closed: AtomicBool,
    waiting: AtomicWaker,
}

impl Door {
    fn set(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
        self.waiting.wake();
    }
}

struct Behind {
    io: Box<dyn Stream>,
    door: Arc<Door>,
}

impl AsyncRead for Behind {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.door.waiting.register(cx.waker());
        match self.door.closed.load(Ordering::SeqCst) {
            true => Poll::Pending,
            false => Pin::new(&mut self.io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Behind {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
