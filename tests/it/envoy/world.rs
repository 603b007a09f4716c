//! A mesh for a test: a control plane with real CAs, and Envoys that get everything from it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, BackoffStrategy, ConfigSource, GrpcService, RetryPolicy,
};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use envoy_types::pb::google::protobuf::Duration as ProtoDuration;
use meshca::identity::migration::Observed;
use meshca::identity::rustls023::{LiveConfigs, PeerPolicy, Settings};
use meshca::identity::select::SelectOptions;
use meshca::identity::{Handle, Manager, ManagerOptions, MeshResources};
use meshca::resource::Resource;
use meshca::spiffe::Environment;
use meshca::xds::{Attested, Authenticator, Caller, SdsEvent, SdsObserver, SdsServer};
use meshca::{
    BackendRegistry, Clock, Error, ErrorKind, Identity, MemorySecretStore, SecretStore,
    SystemClock, TrustDomain,
};
use meshca_testenv::servers::{Envoy, Port};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::RwLock;

use crate::envoy::app;
use crate::envoy::control::{ControlPlane, MESH, Role, Spec, ZONE, workload};

/// Longer than anything takes that is to happen, on a machine that has other things to do.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How Envoys get their secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The server is mounted beside the control plane's own services, on their socket.
    Mounted,
    Unix,
    Tcp,
    /// Over TLS, where a proxy is who its certificate says.
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    StateOfTheWorld,
    Delta,
}

/// The system's, and what the test has added: what is kept until the last certificate of a CA has ended need not be waited for.
#[derive(Debug, Default)]
pub(crate) struct AheadClock(AtomicU64);

impl AheadClock {
    pub(crate) fn skip(&self, time: Duration) {
        self.0.fetch_add(time.as_secs(), Ordering::Relaxed);
    }
}

impl Clock for AheadClock {
    fn now(&self) -> SystemTime {
        SystemClock::new().now() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// What the server of secrets says.
#[derive(Debug, Default)]
pub(crate) struct Events {
    all: Mutex<Vec<String>>,
    acknowledged: AtomicUsize,
}

impl SdsObserver for Events {
    fn observe(&self, event: &SdsEvent<'_>) {
        if let SdsEvent::Acknowledged { resources, .. } = event {
            self.acknowledged
                .fetch_add(resources.len(), Ordering::Relaxed);
        }
        self.all.lock().unwrap().push(event.to_string());
    }
}

impl Events {
    /// How many secrets were taken into use.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(crate) fn with(&self, words: &str) -> Vec<String> {
        let all = self.all.lock().unwrap();
        all.iter()
            .filter(|it| it.contains(words))
            .cloned()
            .collect()
    }
}

pub(crate) struct Options {
    pub(crate) registry: BackendRegistry,
    pub(crate) transport: Transport,
    pub(crate) protocol: Protocol,
    /// As many servers as clients: `s-0`, `c-0` and so on. Further clients are known and do not run yet.
    pub(crate) pairs: usize,
    pub(crate) later: usize,
    pub(crate) accepted: Option<Vec<TrustDomain>>,
    /// Whether each request has a handshake of its own.
    pub(crate) once: bool,
    /// How long proxies without a connection are waited for, if it is not as long as usual.
    pub(crate) linger: Option<Duration>,
}

impl Options {
    pub(crate) fn new(registry: BackendRegistry) -> Self {
        Self {
            registry,
            transport: Transport::Mounted,
            protocol: Protocol::StateOfTheWorld,
            pairs: 1,
            later: 0,
            accepted: None,
            once: true,
            linger: None,
        }
    }
}

pub(crate) struct World {
    pub(crate) manager: Manager,
    pub(crate) server: SdsServer,
    pub(crate) control: ControlPlane,
    pub(crate) clock: Arc<AheadClock>,
    pub(crate) events: Arc<Events>,
    pub(crate) app: app::App,
    pub(crate) specs: Vec<Spec>,
    options: Options,
    /// What outlives a control plane.
    secrets: Arc<MemorySecretStore>,
    sds: Value,
    ads: PathBuf,
    folder: tempfile::TempDir,
    process: Option<Runtime>,
    // Given back when the Envoys are gone.
    _ports: Vec<Port>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running Envoy. Whoever has requests under way through it holds the lock to read; who restarts it, to write.
pub(crate) struct Sidecar {
    pub(crate) spec: Spec,
    /// The serial number of what it shows to the server of secrets.
    bootstrap: Option<String>,
    pub(crate) envoy: RwLock<Envoy>,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spec.name)
    }
}

impl World {
    pub(crate) async fn start(options: Options, resources: &str) -> Self {
        let app = app::App::start().await;
        let (mut specs, mut ports) = (Vec::new(), Vec::new());
        let mut spec =
            |name: String, role: fn(std::net::SocketAddr, std::net::SocketAddr) -> Role| {
                let port = Port::free().unwrap();
                let role = role(port.address(), app.address);
                ports.push(port);
                specs.push(Spec { name, role });
            };
        for n in 0..options.pairs {
            spec(format!("s-{n}"), |inbound, app| Role::Server {
                inbound,
                app,
            });
        }
        for n in 0..options.pairs + options.later {
            spec(format!("c-{n}"), |egress, _| Role::Client { egress });
        }
        let clock = Arc::new(AheadClock::default());
        let secrets = Arc::new(MemorySecretStore::new());
        let events = Arc::new(Events::default());
        let folder = tempfile::tempdir().unwrap();
        let ads = folder.path().join("xds.sock");
        let setting = (&clock, &secrets, &events);
        let begun = begin(&options, setting, &specs, &ads, parse(resources)).await;
        Self {
            manager: begun.manager,
            server: begun.server,
            control: begun.control,
            sds: begun.sds,
            process: Some(begun.process),
            clock,
            events,
            app,
            specs,
            options,
            secrets,
            ads,
            folder,
            _ports: ports,
        }
    }

    /// Another control plane takes the place of this one, which ends in the middle of whatever it does.
    pub(crate) async fn restart(&mut self) {
        let resources = self.manager.mesh(MESH).resources().unwrap();
        assert_eq!(self.control.refusals(), [""; 0]);
        self.kill();
        std::fs::remove_file(&self.ads).unwrap();
        let setting = (&self.clock, &self.secrets, &self.events);
        let resources = MeshResources::clone(&resources);
        let begun = begin(&self.options, setting, &self.specs, &self.ads, resources).await;
        self.manager = begun.manager;
        self.server = begun.server;
        self.control = begun.control;
        self.process = Some(begun.process);
    }

    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }

    pub(crate) async fn apply(&self, resources: &str) {
        self.manager.apply(parse(resources)).await.unwrap();
    }

    /// What a plan is to know: what is acknowledged, of secrets as well as of listeners and clusters.
    pub(crate) async fn observe(&self) -> Observed {
        let mut observed = self.server.observe(MESH).await.unwrap();
        self.control.complete(&mut observed);
        observed
    }

    /// Where the SDS server listens with a Unix socket.
    pub(crate) fn socket(&self) -> &std::path::Path {
        &self.ads
    }

    /// What the manager has for a workload; as long as this lives, it is connected.
    pub(crate) async fn handle(&self, name: &str) -> Handle {
        let connected = self.manager.connect(MESH, name, workload(name));
        let mut handle = connected.await.unwrap();
        tokio::time::timeout(SOON, handle.ready())
            .await
            .unwrap()
            .unwrap();
        handle
    }

    pub(crate) async fn identity(&self, name: &str) -> Arc<Identity> {
        self.handle(name).await.identity().unwrap()
    }

    /// Configurations for a peer without an Envoy.
    pub(crate) async fn rustls(&self, name: &str) -> LiveConfigs {
        let handle = self.handle(name).await;
        settings(PeerPolicy::SameDomain)
            .follow_workload(handle)
            .await
            .unwrap()
    }

    /// Starts the Envoy of this name, and waits until it serves.
    pub(crate) async fn sidecar(&self, name: &str) -> Arc<Sidecar> {
        let spec = self.specs.iter().find(|it| it.name == name).unwrap();
        let bootstrap = json!({
            "node": node(name),
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}],
                },
                "cds_config": {"resource_api_version": "V3", "ads": {}},
                "lds_config": {"resource_api_version": "V3", "ads": {}},
            },
            "static_resources": {"clusters": [
                grpc_cluster("control-plane", &json!({"pipe": {"path": self.ads}})),
                self.sds_cluster(name).await,
            ]},
        });
        let envoy = Envoy::start(&bootstrap).await.unwrap();
        envoy.until_live(SOON).await.unwrap();
        let certificate = self.folder.path().join(format!("{name}-chain.pem"));
        let certificate = std::fs::read(certificate).ok();
        let certificate = certificate.map(|pem| CertificateDer::from_pem_slice(&pem).unwrap());
        Arc::new(Sidecar {
            spec: spec.clone(),
            bootstrap: certificate.map(|der| serial_of(&der)),
            envoy: RwLock::new(envoy),
        })
    }

    /// Where the secrets come from, as a cluster of a bootstrap.
    pub(crate) async fn sds_cluster(&self, name: &str) -> Value {
        let mut cluster = grpc_cluster("sds", &self.sds);
        if self.options.transport == Transport::Tls {
            // What an operator gives a proxy before it has a control plane.
            let identity = self.identity(name).await;
            let file = |what: &str| self.folder.path().join(format!("{name}-{what}.pem"));
            let key = identity.expose_key_pem().unwrap();
            let root = meshca_testkit::pki::to_pem(identity.certificate().root().der());
            std::fs::write(file("chain"), identity.chain_pem()).unwrap();
            std::fs::write(file("key"), key.expose_str().unwrap()).unwrap();
            std::fs::write(file("root"), root).unwrap();
            cluster["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": "control-plane",
                    "common_tls_context": {
                        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                        "tls_certificates": [{
                            "certificate_chain": {"filename": file("chain")},
                            "private_key": {"filename": file("key")},
                        }],
                        "validation_context": {
                            "trusted_ca": {"filename": file("root")},
                            "match_typed_subject_alt_names": [{
                                "san_type": "URI",
                                "matcher": {"exact": "spiffe://example.org/workload/control-plane"},
                            }],
                        },
                    },
                },
            });
        }
        cluster
    }
}

fn settings(peers: PeerPolicy) -> Settings {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Settings::new(peers, provider, Arc::new(SystemClock::new()))
}

pub(crate) fn parse(resources: &str) -> MeshResources {
    MeshResources::from_resources(Resource::parse(resources).unwrap()).unwrap()
}

pub(crate) fn node(name: &str) -> Value {
    json!({"id": format!("{MESH}/{name}"), "cluster": name})
}

fn grpc_cluster(name: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address}}]},
        ]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
    })
}

/// The cluster `sds`, waited for as long as it takes, and asked again soon after it was lost.
fn source(protocol: Protocol) -> ConfigSource {
    let millis = |nanos: i32| {
        Some(ProtoDuration {
            seconds: 0,
            nanos: nanos * 1_000_000,
        })
    };
    let retry = RetryPolicy {
        retry_back_off: Some(BackoffStrategy {
            base_interval: millis(50),
            max_interval: millis(500),
        }),
        ..RetryPolicy::default()
    };
    let api = match protocol {
        Protocol::StateOfTheWorld => ApiType::Grpc,
        Protocol::Delta => ApiType::DeltaGrpc,
    };
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: Some(ProtoDuration::default()),
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
            api_type: api.into(),
            transport_api_version: ApiVersion::V3.into(),
            set_node_on_first_message_only: true,
            grpc_services: vec![GrpcService {
                target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                    cluster_name: "sds".to_owned(),
                    retry_policy: Some(retry),
                    ..EnvoyGrpc::default()
                })),
                ..GrpcService::default()
            }],
            ..ApiConfigSource::default()
        })),
        ..ConfigSource::default()
    }
}

/// A control plane that has begun.
struct Begun {
    manager: Manager,
    server: SdsServer,
    control: ControlPlane,
    sds: Value,
    /// All that it does; it ends with this, and so do its connections.
    process: Runtime,
}

async fn begin(
    options: &Options,
    (clock, secrets, events): (&Arc<AheadClock>, &Arc<MemorySecretStore>, &Arc<Events>),
    specs: &[Spec],
    ads: &std::path::Path,
    resources: MeshResources,
) -> Begun {
    let mut of_manager = ManagerOptions::new(SelectOptions::new(ZONE, Environment::Universal));
    of_manager.acknowledgements = true;
    of_manager.trust_refresh = Duration::from_secs(2);
    if let Some(linger) = options.linger {
        of_manager.linger = linger;
    }
    let (manager, driver) = Manager::new(
        options.registry.clone(),
        Arc::clone(secrets) as Arc<dyn SecretStore>,
        Arc::clone(clock) as Arc<dyn Clock>,
        of_manager,
    );
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    process.spawn(driver.run(std::future::pending()));
    manager.apply(resources).await.unwrap();
    let server = SdsServer::builder(manager.clone(), Attester(options.transport))
        .with_observer(Arc::clone(events) as Arc<dyn SdsObserver>)
        .build();
    let control = ControlPlane::new(
        manager.clone(),
        specs.to_vec(),
        source(options.protocol),
        options.accepted.clone(),
        options.once,
    );
    let ours = AggregatedDiscoveryServiceServer::new(control.clone());
    let router = tonic::transport::Server::builder()
        .add_service(ours)
        .add_service(server.service());
    let at = ads.to_owned();
    process.spawn(async move {
        let listener = UnixListener::bind(at).unwrap();
        let incoming = futures_util::stream::unfold(listener, async |listener| {
            Some((listener.accept().await.map(|it| it.0), listener))
        });
        router.serve_with_incoming(incoming).await.unwrap();
    });
    let transport = options.transport;
    let (its, of_it, ads) = (server.clone(), manager.clone(), ads.to_owned());
    let sds = process.spawn(async move { serve(&its, &of_it, transport, &ads).await });
    Begun {
        sds: sds.await.unwrap(),
        manager,
        server,
        control,
        process,
    }
}

/// Serves secrets, and says where, as an address of Envoy's.
async fn serve(
    server: &SdsServer,
    manager: &Manager,
    transport: Transport,
    ads: &std::path::Path,
) -> Value {
    let server = server.clone();
    let never = std::future::pending();
    let tcp = || async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        (listener, address)
    };
    match transport {
        Transport::Mounted => json!({"pipe": {"path": ads}}),
        Transport::Unix => {
            let path = ads.with_file_name("sds.sock");
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(async move { server.serve_unix(listener, never).await });
            json!({"pipe": {"path": path}})
        }
        Transport::Tcp => {
            let (listener, address) = tcp().await;
            tokio::spawn(async move { server.serve_tcp(listener, never).await });
            address
        }
        Transport::Tls => {
            let own = manager.connect(MESH, "control-plane", workload("control-plane"));
            let settings = settings(PeerPolicy::SameDomain).with_alpn(["h2"]);
            let tls = settings.follow_workload(own.await.unwrap()).await.unwrap();
            let (listener, address) = tcp().await;
            tokio::spawn(async move {
                // It follows the renewals of its identity by itself.
                server.serve_tls(listener, tls.server(), never).await;
            });
            address
        }
    }
}

/// Over TLS, a proxy is who its certificate says. Else it is who it says it is: what no real authenticator believes.
struct Attester(Transport);

#[async_trait::async_trait]
impl Authenticator for Attester {
    async fn authenticate(&self, caller: &Caller<'_>) -> meshca::Result<Attested> {
        let refused = || Error::new(ErrorKind::Unauthenticated, "it does not say who it is");
        let id = match self.0 {
            Transport::Tls => caller.spiffe_id()?.to_string(),
            _ => caller.node().id.clone(),
        };
        let (_, name) = id.rsplit_once('/').ok_or_else(refused)?;
        Ok(Attested::new(MESH, name, workload(name)))
    }
}

impl Sidecar {
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// The serial numbers of the certificates that it shows, to its peers and to the server of secrets.
    pub(crate) async fn serials(&self) -> BTreeSet<String> {
        let certs = self.envoy.read().await.certs().await.unwrap();
        let chains = certs.iter().filter_map(|it| it["cert_chain"].as_array());
        let leaves = chains.filter_map(|chain| chain.first());
        let serial = |it: &Value| Some(trimmed(it["serial_number"].as_str()?));
        leaves.filter_map(serial).collect()
    }

    /// Waits until it shows to its peers what the manager has for it now, and nothing else.
    pub(crate) async fn until_shows_its_own(&self, world: &World) -> Arc<Identity> {
        let handle = world.handle(self.name()).await;
        let (mut shown, mut wanted) = (BTreeSet::new(), BTreeSet::new());
        let waiting = async {
            loop {
                // It may be renewed meanwhile.
                let identity = handle.identity().unwrap();
                wanted = BTreeSet::from([serial(&identity)]);
                wanted.extend(self.bootstrap.clone());
                shown = self.serials().await;
                if shown == wanted {
                    return identity;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, waiting).await;
        waited.unwrap_or_else(|_| panic!("{self:?} shows {shown:?} and not {wanted:?}"))
    }
}

/// The serial number of an identity's leaf, in hex.
pub(crate) fn serial(identity: &Identity) -> String {
    serial_of(identity.certificate().chain()[0].as_ref())
}

pub(crate) fn serial_of(der: &[u8]) -> String {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    trimmed(&format!("{:x}", certificate.serial))
}

/// Zeros at the beginning are written by some.
fn trimmed(hex: &str) -> String {
    hex.trim_start_matches('0').to_owned()
}

/// Waits until it is so, as long as [`SOON`].
pub(crate) async fn until(otherwise: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    waited.unwrap_or_else(|_| panic!("{otherwise}"));
}
