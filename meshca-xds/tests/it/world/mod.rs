//! A control plane in a test: the built-in CA, resources as text, the server on a Unix socket, and clients that say what they are told to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::rpc::Status as RpcStatus;
use meshca_core::registry::BackendRegistry;
use meshca_core::resource::Resource;
use meshca_core::spiffe::{Environment, Workload};
use meshca_core::{Error, ErrorKind, MemorySecretStore, SystemClock, builtin};
use meshca_identity::manager::{DriverTask, Event, Observer};
use meshca_identity::select::SelectOptions;
use meshca_identity::{Manager, ManagerOptions, MeshResources};
use meshca_xds::{Attested, Caller, SdsEvent, SdsObserver, SdsOptions, SdsServer};
use prost::Message;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

/// One mesh whose workloads all have a MeshIdentity, `everyone`, of a CA of its own.
pub(crate) const MODERN: &str = "
{type: Mesh, name: default}
---
type: MeshIdentity
name: everyone
mesh: default
spec:
  selector: {dataplane: {matchLabels: {}}}
  spiffeID: {trustDomain: example.org}
  provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}
";

/// What `everyone` is called by proxies.
pub(crate) const KRI: &str = "kri_mid_default_east__everyone_";

/// Longer than anything takes that is to happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Keeps what happened, as its `Display` has it.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Vec<String>>);

impl SdsObserver for Events {
    fn observe(&self, event: &SdsEvent<'_>) {
        self.0.lock().unwrap().push(event.to_string());
    }
}

impl Observer for Events {
    fn observe(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(event.to_string());
    }
}

impl Events {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Waits until something was said that has all of these words in it.
    pub(crate) async fn until(&self, words: &str) -> String {
        let found = async {
            loop {
                if let Some(found) = self.all().into_iter().find(|it| it.contains(words)) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(SOON, found).await;
        found.unwrap_or_else(|_| panic!("nobody said `{words}`: {:#?}", self.all()))
    }
}

/// The control plane.
pub(crate) struct World {
    pub(crate) manager: Manager,
    pub(crate) server: SdsServer,
    pub(crate) events: Arc<Events>,
    /// What the manager says.
    pub(crate) managers: Arc<Events>,
    pub(crate) socket: PathBuf,
    serving: tokio::task::JoinHandle<()>,
    driver: Option<DriverTask>,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn until_nobody_is_connected(&self) {
        let gone = async {
            while self.server.connected() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, gone).await.unwrap();
    }

    /// With these resources, and a server with these limits.
    pub(crate) async fn new(resources: &str, options: SdsOptions) -> Self {
        let registry = BackendRegistry::new().with(builtin::factory());
        let mut manager = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        manager.acknowledgements = true;
        let (manager, driver) = Manager::new(
            registry,
            Arc::new(MemorySecretStore::new()),
            Arc::new(SystemClock::new()),
            manager,
        );
        let managers = Arc::new(Events::default());
        let driver = driver.with_observer(Arc::clone(&managers) as Arc<dyn Observer>);
        let driver = driver.spawn();
        let events = Arc::new(Events::default());
        let server = SdsServer::builder(manager.clone(), by_node)
            .with_options(options)
            .with_observer(Arc::clone(&events) as Arc<dyn SdsObserver>)
            .build();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("sds.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let serving = server.clone();
        let serving = tokio::spawn(async move {
            let never = std::future::pending();
            serving.serve_unix(listener, never).await;
        });
        let world = Self {
            manager,
            server,
            events,
            managers,
            socket,
            serving,
            driver: Some(driver),
            _folder: folder,
        };
        world.apply(resources).await;
        world
    }

    pub(crate) async fn apply(&self, resources: &str) {
        let resources = MeshResources::from_resources(Resource::parse(resources).unwrap()).unwrap();
        self.manager.apply(resources).await.unwrap();
    }

    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Channel {
        connect(&self.socket).await
    }

    /// A state-of-the-world stream of a proxy of this name, on a connection of its own, which has asked for nothing yet.
    pub(crate) async fn sotw(&self, name: &str) -> Sotw {
        Sotw::open(self.channel().await, name)
    }

    pub(crate) async fn delta(&self, name: &str) -> Delta {
        Delta::open(self.channel().await, name)
    }

    pub(crate) fn stop_serving(&self) {
        self.serving.abort();
    }

    /// The driver ends, and with it every stream.
    pub(crate) async fn stop(mut self) {
        if let Some(driver) = self.driver.take() {
            driver.stop().await.unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Believes a node whose id is `mesh/name`, with the workload of that name: what no real authenticator does.
pub(crate) fn by_node(caller: &Caller<'_>) -> meshca_core::Result<Attested> {
    let (mesh, name) = caller
        .node()
        .id
        .split_once('/')
        .ok_or_else(|| Error::new(ErrorKind::Unauthenticated, "the node has no name"))?;
    if mesh == "stranger" {
        return Err(Error::new(ErrorKind::Denied, "strangers get nothing"));
    }
    // `name#workload` is a proxy of another workload than its name says.
    let (name, of) = name.split_once('#').unwrap_or((name, name));
    Ok(Attested::new(mesh, name, workload(of)))
}

/// The workload of a proxy of this name.
pub(crate) fn workload(name: &str) -> Workload {
    Workload::new()
        .with_label("kuma.io/workload", name)
        .with_tag("kuma.io/service", name)
}

pub(crate) async fn connect(socket: &Path) -> Channel {
    let address = format!("unix:{}", socket.display());
    let endpoint = Endpoint::from_shared(address).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) fn node(name: &str) -> Node {
    Node {
        id: match name.contains('/') {
            true => name.to_owned(),
            false => format!("default/{name}"),
        },
        ..Node::default()
    }
}

pub(crate) fn nack(message: &str) -> RpcStatus {
    RpcStatus {
        code: 3,
        message: message.to_owned(),
        ..RpcStatus::default()
    }
}

/// Everything that is asked for, taken into use.
pub(crate) async fn take(stream: &mut Sotw, names: &[&str]) -> BTreeMap<String, secret::Type> {
    stream.ask(names);
    let mut got = BTreeMap::new();
    while got.len() < names.len() {
        let response = stream.next().await;
        got.extend(secrets(&response.resources));
        stream.ack(&response, names);
    }
    got
}

/// `MODERN` with another CA for the same identity: all are issued anew, under a new root.
pub(crate) fn rotated() -> String {
    MODERN.replace("name: everyone", "name: everybody")
}

/// A root of another zone that all are to trust.
pub(crate) fn with_root(domain: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = root.self_signed(&key).unwrap().pem();
    let pem = pem
        .lines()
        .fold(String::new(), |text, line| text + "\n            " + line);
    format!(
        "{MODERN}
---
type: MeshTrust
name: other
mesh: default
spec:
  trustDomain: {domain}
  caBundles:
    - type: Pem
      pem:
        value: |{pem}
"
    )
}

/// The secrets of a response by name.
pub(crate) fn secrets(
    resources: &[envoy_types::pb::google::protobuf::Any],
) -> Vec<(String, secret::Type)> {
    resources
        .iter()
        .map(|any| {
            let secret = Secret::decode(&*any.value).unwrap();
            (secret.name, secret.r#type.unwrap())
        })
        .collect()
}

/// A stream of the state of the world.
pub(crate) struct Sotw {
    pub(crate) requests: mpsc::UnboundedSender<DiscoveryRequest>,
    opening: Option<tokio::task::JoinHandle<Result<Streaming<DiscoveryResponse>, tonic::Status>>>,
    responses: Option<Streaming<DiscoveryResponse>>,
    node: Option<Node>,
    /// Of the last response that was read.
    nonce: String,
    /// Kept, as the stream ends with its connection.
    _channel: Channel,
}

impl Sotw {
    pub(crate) fn open(channel: Channel, name: &str) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut client = SecretDiscoveryServiceClient::new(channel.clone());
        let outbound = futures_util::stream::unfold(receiver, |mut receiver| async {
            let next = receiver.recv().await?;
            Some((next, receiver))
        });
        let opening = tokio::spawn(async move {
            let answer = client.stream_secrets(Request::new(outbound)).await?;
            Ok(answer.into_inner())
        });
        Self {
            requests,
            opening: Some(opening),
            responses: None,
            node: Some(node(name)),
            nonce: String::new(),
            _channel: channel,
        }
    }

    pub(crate) fn send(&mut self, mut request: DiscoveryRequest) {
        if request.node.is_none() {
            request.node = self.node.take();
        }
        // The server may have ended the stream.
        let _ = self.requests.send(request);
    }

    pub(crate) fn ask(&mut self, names: &[&str]) {
        self.send(DiscoveryRequest {
            resource_names: owned(names),
            response_nonce: self.nonce.clone(),
            ..DiscoveryRequest::default()
        });
    }

    pub(crate) fn ack(&mut self, response: &DiscoveryResponse, names: &[&str]) {
        self.send(DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            resource_names: owned(names),
            ..DiscoveryRequest::default()
        });
    }

    pub(crate) fn nack(&mut self, response: &DiscoveryResponse, names: &[&str], why: &str) {
        self.send(DiscoveryRequest {
            response_nonce: response.nonce.clone(),
            resource_names: owned(names),
            error_detail: Some(nack(why)),
            ..DiscoveryRequest::default()
        });
    }

    /// The next message, or how the stream ended.
    pub(crate) async fn message(&mut self) -> Result<Option<DiscoveryResponse>, tonic::Status> {
        let next = async {
            if let Some(opening) = self.opening.take() {
                self.responses = Some(opening.await.unwrap()?);
            }
            match &mut self.responses {
                Some(responses) => responses.message().await,
                None => Ok(None),
            }
        };
        tokio::time::timeout(SOON, next)
            .await
            .expect("nothing was sent")
    }

    pub(crate) async fn next(&mut self) -> DiscoveryResponse {
        let response = self.message().await.unwrap();
        let response = response.expect("the stream has ended");
        self.nonce.clone_from(&response.nonce);
        response
    }

    /// Nothing comes for a while.
    pub(crate) async fn quiet(&mut self, wait: Duration) {
        if let Ok(message) = tokio::time::timeout(wait, self.message()).await {
            panic!("something was sent: {message:?}");
        }
    }
}

/// A delta stream.
pub(crate) struct Delta {
    pub(crate) requests: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    opening:
        Option<tokio::task::JoinHandle<Result<Streaming<DeltaDiscoveryResponse>, tonic::Status>>>,
    responses: Option<Streaming<DeltaDiscoveryResponse>>,
    node: Option<Node>,
    _channel: Channel,
}

impl Delta {
    pub(crate) fn open(channel: Channel, name: &str) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut client = SecretDiscoveryServiceClient::new(channel.clone());
        let outbound = futures_util::stream::unfold(receiver, |mut receiver| async {
            let next = receiver.recv().await?;
            Some((next, receiver))
        });
        let opening = tokio::spawn(async move {
            let answer = client.delta_secrets(Request::new(outbound)).await?;
            Ok(answer.into_inner())
        });
        Self {
            requests,
            opening: Some(opening),
            responses: None,
            node: Some(node(name)),
            _channel: channel,
        }
    }

    pub(crate) fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        if request.node.is_none() {
            request.node = self.node.take();
        }
        let _ = self.requests.send(request);
    }

    pub(crate) fn subscribe(&mut self, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            resource_names_subscribe: owned(names),
            ..DeltaDiscoveryRequest::default()
        });
    }

    pub(crate) fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        });
    }

    pub(crate) async fn message(
        &mut self,
    ) -> Result<Option<DeltaDiscoveryResponse>, tonic::Status> {
        let next = async {
            if let Some(opening) = self.opening.take() {
                self.responses = Some(opening.await.unwrap()?);
            }
            match &mut self.responses {
                Some(responses) => responses.message().await,
                None => Ok(None),
            }
        };
        tokio::time::timeout(SOON, next)
            .await
            .expect("nothing was sent")
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.message().await.unwrap().expect("the stream has ended")
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}
