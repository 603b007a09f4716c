//! Mutual TLS with rustls, and identities that change while it is used.
//!
//! A server and its clients hold identities of a mesh. Clients connect all the time, each with a fresh handshake; meanwhile
//! every identity is issued anew again and again, and half-way the CA is replaced by another: first everybody believes both, then everybody
//! shows the new one, then the old one goes. No handshake fails.
//!
//! ```text
//! cargo run --release --example rustls_mtls --features rustls
//! cargo run --release --example rustls_mtls --features rustls -- --server tonic --clients 16 --rotations 100
//! ```

#[path = "common/outcome.rs"]
mod outcome;
#[path = "common/tls.rs"]
mod tls;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, Extension};
use axum::routing::get;
use clap::Parser;
use meshca::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
use meshca::identity::rustls023::{PeerPolicy, Settings, TlsConfigs};
use meshca::identity::{Credentials, TrustBundles};
use meshca::{
    CertificateSpec, Clock, Issuer as _, IssuingCa, MemorySecretStore, SpiffeId, SystemClock,
    TrustDomain,
};
use tls::{Caller, Http, Incoming};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Serves mutual TLS, and rotates identities and the CA under load.
#[derive(Parser)]
struct Args {
    /// What serves.
    #[arg(long, value_enum, default_value_t = Framework::Axum)]
    server: Framework,
    /// How many clients connect at the same time.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// How often all identities are issued anew.
    #[arg(long, default_value_t = 20)]
    rotations: u64,
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Framework {
    Axum,
    Tonic,
}

type AnyError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    outcome::exit_code(
        run(&Args::parse())
            .await
            .map_err(|error| error as Box<dyn Error>),
    )
}

async fn run(args: &Args) -> Result<(), AnyError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let domain = TrustDomain::new("kong-air")?;
    let (before, after) = (
        certificate_authority(&domain, &clock).await?,
        certificate_authority(&domain, &clock).await?,
    );

    let server_id = SpiffeId::from_segments(domain.clone(), &["flight-control"])?;
    let mut server = Workload::new(server_id.clone());
    let mut clients = Vec::new();
    for number in 0..args.clients.max(1) {
        let id = SpiffeId::from_segments(domain.clone(), &["passenger", &number.to_string()])?;
        clients.push(Workload::new(id));
    }
    let trust = Arc::new(trust(&[&before]).await?);
    for workload in clients.iter_mut().chain([&mut server]) {
        workload.issue(&before, &trust, &*clock).await?;
    }

    let settings = |peers| Settings::new(peers, tls::provider(), Arc::clone(&clock));
    let serving = server.follow(settings(PeerPolicy::SameDomain)).await?;
    let load = Arc::new(Load::new(clients.len()));
    let refusals = Arc::clone(&load);
    let incoming = Incoming::bind(&args.listen, serving, move |rule, error| {
        refusals.failed(&format!(
            "refused a client ({}): {error}",
            rule.map_or("other", |rule| rule.as_str())
        ));
    })
    .await?;
    let address = incoming.address();
    tokio::spawn(serve(args.server, incoming));

    let began = Instant::now();
    let mut tasks = Vec::new();
    for (number, workload) in clients.iter_mut().enumerate() {
        let client = Client {
            framework: args.server,
            address,
            tls: workload
                .follow(settings(PeerPolicy::exact([server_id.clone()])))
                .await?,
            id: workload.id.clone(),
        };
        tasks.push(tokio::spawn(Arc::clone(&load).run(number, client)));
    }
    // Opened before everything that follows.
    let first = clients.first_mut().ok_or("no client")?;
    let tls = first.follow(settings(PeerPolicy::exact([server_id])));
    let mut old = Connection::open(args.server, address, &tls.await?).await?;
    old.ask().await?;

    // A manager does what follows; it would send into the same channels.
    let mut everybody: Vec<&mut Workload> = clients.iter_mut().chain([&mut server]).collect();
    load.settle().await;
    rotate(&mut everybody, &before, args.rotations / 2, &load, &*clock).await?;
    println!("replacing the CA: everybody believes the new one as well");
    let both = Arc::new(self::trust(&[&before, &after]).await?);
    for workload in &mut everybody {
        workload.believe(&both).await?;
    }
    load.settle().await;
    println!("replacing the CA: everybody shows the new one");
    for workload in &mut everybody {
        workload.issue(&after, &both, &*clock).await?;
    }
    load.settle().await;
    println!("replacing the CA: nobody believes the old one any more");
    let new = Arc::new(self::trust(&[&after]).await?);
    for workload in &mut everybody {
        workload.believe(&new).await?;
    }
    load.settle().await;
    let rest = args.rotations - args.rotations / 2;
    rotate(&mut everybody, &after, rest, &load, &*clock).await?;

    load.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await?;
    }
    let answer = old.ask().await?;
    load.report(args, began.elapsed())?;
    println!("old connection   still answers: {answer}");
    Ok(())
}

async fn certificate_authority(
    domain: &TrustDomain,
    clock: &Arc<dyn Clock>,
) -> Result<IssuingCa<BuiltinIssuer>, AnyError> {
    let settings = CaSettings::new(domain.clone(), CaSecrets::for_backend("kong-air", "ca-1")?);
    let store = Arc::new(MemorySecretStore::new());
    let issuer = BuiltinIssuer::load_or_create(settings, store, Arc::clone(clock)).await?;
    Ok(IssuingCa::new(issuer))
}

async fn trust(issuers: &[&IssuingCa<BuiltinIssuer>]) -> Result<TrustBundles, AnyError> {
    let mut trust = TrustBundles::new();
    for issuer in issuers {
        trust.add(&issuer.trust_bundle().await?)?;
    }
    Ok(trust)
}

/// A workload, as whoever issues its identities sees it.
struct Workload {
    id: SpiffeId,
    credentials: watch::Sender<Option<Credentials>>,
    in_use: Vec<watch::Receiver<Arc<rustls::ServerConfig>>>,
}

impl Workload {
    fn new(id: SpiffeId) -> Self {
        Self {
            id,
            credentials: watch::Sender::new(None),
            in_use: Vec::new(),
        }
    }

    /// What the workload itself does: it takes its configurations from here.
    async fn follow(&mut self, settings: Settings) -> meshca::Result<TlsConfigs> {
        let tls = settings.follow(self.credentials.subscribe()).await?;
        self.in_use.push(tls.watch_server());
        Ok(tls)
    }

    async fn issue(
        &mut self,
        issuer: &IssuingCa<BuiltinIssuer>,
        trust: &Arc<TrustBundles>,
        clock: &dyn Clock,
    ) -> Result<(), AnyError> {
        let spec = CertificateSpec::workload(self.id.clone());
        let identity = issuer.issue(&spec, clock).await?;
        self.send(Credentials::new(identity, Arc::clone(trust)))
            .await
    }

    async fn believe(&mut self, trust: &Arc<TrustBundles>) -> Result<(), AnyError> {
        let credentials = self.credentials.borrow().clone();
        let mut credentials = credentials.ok_or("nothing was issued yet")?;
        credentials.trust = Arc::clone(trust);
        self.send(credentials).await
    }

    /// Done when new connections use it.
    async fn send(&mut self, credentials: Credentials) -> Result<(), AnyError> {
        self.credentials.send_replace(Some(credentials));
        for in_use in &mut self.in_use {
            in_use.changed().await?;
        }
        Ok(())
    }
}

async fn rotate(
    everybody: &mut [&mut Workload],
    issuer: &IssuingCa<BuiltinIssuer>,
    times: u64,
    load: &Load,
    clock: &dyn Clock,
) -> Result<(), AnyError> {
    let trust = Arc::new(trust(&[issuer]).await?);
    for _ in 0..times {
        for workload in &mut *everybody {
            workload.issue(issuer, &trust, clock).await?;
        }
        load.settle().await;
    }
    println!("rotated          {times} times");
    Ok(())
}

/// The two servers differ in where they find the caller.
async fn serve(server: Framework, incoming: Incoming) -> Result<(), AnyError> {
    match server {
        Framework::Axum => {
            let router = axum::Router::new().route(
                "/whoami",
                get(async |ConnectInfo(Caller(id)): ConnectInfo<Caller>| id.to_string()),
            );
            axum::serve(
                incoming,
                router.into_make_service_with_connect_info::<Caller>(),
            )
            .await?;
        }
        Framework::Tonic => {
            // A generated service is added with `add_service`; it finds the caller in `request.extensions()`.
            let router = axum::Router::new().route(
                "/whoami",
                get(async |Extension(Caller(id)): Extension<Caller>| id.to_string()),
            );
            tonic::transport::Server::builder()
                .add_routes(router.into())
                .serve_with_incoming(incoming.into_stream())
                .await?;
        }
    }
    Ok(())
}

struct Client {
    framework: Framework,
    address: SocketAddr,
    tls: TlsConfigs,
    id: SpiffeId,
}

impl Client {
    /// Connects, asks, and is satisfied if the server says the right name. Tells how long it took to connect.
    async fn call(&self) -> Result<Duration, AnyError> {
        let began = Instant::now();
        let mut connection = Connection::open(self.framework, self.address, &self.tls).await?;
        let took = began.elapsed();
        let answer = connection.ask().await?;
        match answer == self.id.to_string() {
            true => Ok(took),
            false => Err(format!("{} was taken for {answer}", self.id).into()),
        }
    }
}

enum Connection {
    Http(Http),
    Channel(tonic::transport::Channel),
}

impl Connection {
    async fn open(
        framework: Framework,
        address: SocketAddr,
        tls: &TlsConfigs,
    ) -> Result<Self, AnyError> {
        Ok(match framework {
            Framework::Axum => Self::Http(Http::over(tls::connect(address, tls).await?).await?),
            Framework::Tonic => Self::Channel(tls::channel(address, tls.clone()).await?),
        })
    }

    async fn ask(&mut self) -> Result<String, AnyError> {
        match self {
            Self::Http(http) => http.get("/whoami").await,
            Self::Channel(channel) => tls::get_over_channel(channel.clone(), "/whoami").await,
        }
    }
}

/// Clients that never rest, and what came of it.
struct Load {
    stop: AtomicBool,
    /// How many rounds each client has ended.
    rounds: Vec<AtomicU64>,
    progress: Notify,
    handshakes: Mutex<Vec<Duration>>,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn new(clients: usize) -> Self {
        Self {
            stop: AtomicBool::new(false),
            rounds: std::iter::repeat_with(AtomicU64::default)
                .take(clients)
                .collect(),
            progress: Notify::new(),
            handshakes: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    async fn run(self: Arc<Self>, number: usize, client: Client) {
        while !self.stop.load(Ordering::Relaxed) {
            match client.call().await {
                Ok(took) => lock(&self.handshakes).push(took),
                Err(error) => self.failed(&error.to_string()),
            }
            if let Some(rounds) = self.rounds.get(number) {
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            self.progress.notify_waiters();
        }
    }

    fn failed(&self, why: &str) {
        lock(&self.failures).push(why.to_owned());
    }

    /// Waits until every client has begun and ended a round: whoever had the configuration of before is done with it. A control
    /// plane waits for its proxies to acknowledge instead.
    async fn settle(&self) {
        let seen = || self.rounds.iter().map(|it| it.load(Ordering::Relaxed));
        let goals: Vec<u64> = seen().map(|rounds| rounds + 2).collect();
        loop {
            let progress = self.progress.notified();
            if seen().zip(&goals).all(|(rounds, goal)| rounds >= *goal) {
                return;
            }
            progress.await;
        }
    }

    fn report(&self, args: &Args, took: Duration) -> Result<(), AnyError> {
        let mut handshakes = lock(&self.handshakes).clone();
        handshakes.sort();
        let percentile = |percent: usize| {
            let at = handshakes.len().saturating_mul(percent) / 100;
            handshakes.get(at).copied().unwrap_or_default()
        };
        let failures = lock(&self.failures);
        println!(
            "server           {:?}, {} clients",
            args.server, args.clients
        );
        println!(
            "handshakes       {} in {:.1} s, {:.0} a second",
            handshakes.len(),
            took.as_secs_f64(),
            handshakes.len() as f64 / took.as_secs_f64()
        );
        println!(
            "each took        {:.1} ms (median), {:.1} ms (99 of 100)",
            percentile(50).as_secs_f64() * 1e3,
            percentile(99).as_secs_f64() * 1e3
        );
        println!("failed           {}", failures.len());
        match failures.first() {
            None => Ok(()),
            Some(first) => Err(format!("{} failed; the first: {first}", failures.len()).into()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
