//! A proxy that is no Envoy, and says no when it is told to.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::rpc::Status as RpcStatus;
use meshca::xds::names;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::envoy::control::MESH;

pub(crate) const NAME: &str = "stubborn";

/// Takes the secrets of the proxy [`NAME`] into use: it keeps and acknowledges what it gets.
pub(crate) struct Stubborn {
    refusing: watch::Sender<bool>,
    seen: Arc<Mutex<Seen>>,
    _running: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    secrets: Vec<Secret>,
    refused: usize,
}

impl Stubborn {
    pub(crate) fn start(socket: &Path) -> Self {
        let (refusing, listening) = watch::channel(false);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
        let mut running = JoinSet::new();
        let sees = Arc::clone(&seen);
        running.spawn(async move {
            let mut listening = listening;
            loop {
                // It comes again when it has changed its mind: what was refused on a stream is not sent there again.
                let _ = stream(&endpoint, &mut listening, &sees).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self {
            refusing,
            seen,
            _running: running,
        }
    }

    /// From now on it refuses all that is new to it.
    pub(crate) fn refuse(&self) {
        self.refusing.send_replace(true);
    }

    pub(crate) fn give_in(&self) {
        self.refusing.send_replace(false);
    }

    /// How often it has refused.
    pub(crate) fn refused(&self) -> usize {
        self.seen.lock().unwrap().refused
    }

    /// What it has, in words.
    pub(crate) fn secrets(&self) -> String {
        format!("{:#?}", self.seen.lock().unwrap().secrets)
    }
}

async fn stream(
    endpoint: &Endpoint,
    refusing: &mut watch::Receiver<bool>,
    seen: &Mutex<Seen>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = SecretDiscoveryServiceClient::new(endpoint.connect().await?);
    let (requests, receiver) = mpsc::unbounded_channel();
    let outbound = futures_util::stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    });
    let resource_names: Vec<_> = [names::SPIRE_IDENTITY, names::SPIRE_ALL_BUNDLES]
        .map(str::to_owned)
        .into();
    let first = DiscoveryRequest {
        node: Some(Node {
            id: format!("{MESH}/{NAME}"),
            ..Node::default()
        }),
        resource_names: resource_names.clone(),
        ..DiscoveryRequest::default()
    };
    requests.send(first)?;
    let mut responses = client.stream_secrets(outbound).await?.into_inner();
    let mut version = String::new();
    refusing.mark_unchanged();
    loop {
        let response = tokio::select! {
            response = responses.message() => response?.ok_or("it has ended")?,
            changed = refusing.changed() => match *refusing.borrow_and_update() {
                true => continue,
                false => return Ok(changed?),
            },
        };
        let secrets = response.resources.iter();
        let secrets = secrets.map(|any| Secret::decode(&*any.value));
        let secrets = secrets.collect::<Result<Vec<_>, _>>()?;
        let mut answer = DiscoveryRequest {
            response_nonce: response.nonce,
            resource_names: resource_names.clone(),
            ..DiscoveryRequest::default()
        };
        let mut seen = seen.lock().unwrap();
        if *refusing.borrow() && secrets != seen.secrets {
            seen.refused += 1;
            answer.error_detail = Some(RpcStatus {
                code: 3,
                message: "I would rather not".to_owned(),
                ..RpcStatus::default()
            });
        } else {
            seen.secrets = secrets;
            version = response.version_info;
        }
        answer.version_info.clone_from(&version);
        requests.send(answer)?;
    }
}
