//! The part of a control plane that meshca leaves to others: it sends listeners and clusters (over ADS), and knows which of them each
//! proxy has taken into use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::config::listener::v3::FilterChain;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;
use futures_util::Stream;
use meshca::identity::migration::Observed;
use meshca::identity::select::{Assigned, IdentityRules, SelectOptions};
use meshca::identity::tls::{Proxy, TlsPolicy};
use meshca::identity::{BackendKey, Handle, Manager, MeshResources};
use meshca::resource::{Metadata, Mode};
use meshca::spiffe::{Environment, Workload};
use meshca::xds::contexts::{TlsContexts, inbound_chains};
use meshca::xds::names;
use meshca::{SpiffeId, TrustDomain};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::envoy::messages;

pub(crate) const MESH: &str = "default";
pub(crate) const ZONE: &str = "east";

const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// What a sidecar is for.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Takes plaintext here from its application; a request goes to the server that its path begins with.
    Client { egress: SocketAddr },
    /// Takes mutual TLS here, for the application there.
    Server {
        inbound: SocketAddr,
        app: SocketAddr,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) role: Role,
}

impl Spec {
    pub(crate) fn workload(&self) -> Workload {
        workload(&self.name)
    }
}

/// The workload of a proxy of this name, in both models.
pub(crate) fn workload(name: &str) -> Workload {
    Workload::new()
        .with_label("kuma.io/workload", name)
        .with_tag("kuma.io/service", name)
}

/// What proxies call the identity that a MeshIdentity gives them.
pub(crate) fn kri(identity: &str) -> Option<String> {
    let metadata = Metadata::universal(identity).with_mesh(MESH);
    Some(metadata.kri("mid", ZONE)?.to_string())
}

/// Clones are the same one.
#[derive(Clone)]
pub(crate) struct ControlPlane(Arc<Shared>);

struct Shared {
    manager: Manager,
    specs: Vec<Spec>,
    /// Where proxies get their secrets.
    secrets: ConfigSource,
    /// The trust domains that inbounds accept, if not those that are believed.
    accepted: Option<Vec<TrustDomain>>,
    /// Whether each request has a handshake of its own.
    once: bool,
    progress: Mutex<BTreeMap<String, Progress>>,
    refusals: Mutex<Vec<String>>,
}

/// All that is sent to one proxy, and what it means.
#[derive(Debug, PartialEq)]
struct Config {
    /// Whose certificates its listeners and clusters ask for.
    issuer: Option<BackendKey>,
    accepts: BTreeSet<BackendKey>,
    mode: Mode,
    clusters: Vec<Any>,
    listeners: Vec<Any>,
}

impl Config {
    fn of(&self, kind: &str) -> &[Any] {
        match kind {
            CLUSTERS => &self.clusters,
            _ => &self.listeners,
        }
    }
}

/// What a proxy has taken into use, by type.
type Progress = BTreeMap<&'static str, Arc<Config>>;

impl ControlPlane {
    pub(crate) fn new(
        manager: Manager,
        specs: Vec<Spec>,
        secrets: ConfigSource,
        accepted: Option<Vec<TrustDomain>>,
        once: bool,
    ) -> Self {
        Self(Arc::new(Shared {
            manager,
            specs,
            secrets,
            accepted,
            once,
            progress: Mutex::default(),
            refusals: Mutex::default(),
        }))
    }

    /// What proxies did not take, in their words.
    pub(crate) fn refusals(&self) -> Vec<String> {
        self.0.refusals.lock().unwrap().clone()
    }

    /// Fills in what only the sender of listeners and clusters knows. A proxy that is not one of ours has neither, and takes all.
    pub(crate) fn complete(&self, observed: &mut Observed) {
        let all = issuers(&observed.resources);
        let progress = self.0.progress.lock().unwrap();
        for proxy in &mut observed.proxies {
            if !self.0.specs.iter().any(|it| it.name == proxy.name()) {
                proxy.accepts.clone_from(&all);
                continue;
            }
            let of = |kind| progress.get(proxy.name())?.get(kind);
            let (Some(clusters), Some(listeners)) = (of(CLUSTERS), of(LISTENERS)) else {
                // It has just come, or is away: it is not known what it does.
                proxy.accepts.clear();
                proxy.holds = None;
                continue;
            };
            proxy.accepts = &clusters.accepts & &listeners.accepts;
            proxy.mode = listeners.mode;
            // It may have the new secret, and listeners that serve the one of another name.
            if clusters.issuer != proxy.holds || listeners.issuer != proxy.holds {
                proxy.holds = None;
            }
        }
    }

    /// What a proxy is to have now.
    async fn config(&self, spec: &Spec, handle: &Handle) -> Option<Config> {
        let resources = handle.mesh().resources()?;
        let issuer = match handle.issued() {
            Some((_, by)) => Some((*by).clone()),
            None => assigned(&handle.selection().await.ok()?.assigned),
        };
        let contexts = match &issuer {
            Some(BackendKey::Modern(name)) => {
                let kri = kri(name)?;
                TlsContexts::new(kri, names::SYSTEM_TRUST_BUNDLE)
            }
            _ => TlsContexts::new(names::classic_identity(MESH), names::classic_trust(MESH)),
        };
        let contexts = contexts.with_source(self.0.secrets.clone());
        let proxy = Proxy::new(spec.name.clone(), spec.workload());
        let policy = TlsPolicy::resolve(&resources, &proxy).ok()?;

        let servers = || {
            let specs = self.0.specs.iter();
            specs.filter_map(|it| match it.role {
                Role::Server { inbound, .. } => Some((it, inbound)),
                Role::Client { .. } => None,
            })
        };
        let peers: BTreeMap<&str, Vec<SpiffeId>> = self
            .0
            .specs
            .iter()
            .map(|it| (it.name.as_str(), expected(&resources, &it.workload())))
            .collect();
        let mut domains: BTreeSet<TrustDomain> = handle
            .trust()
            .iter()
            .map(|it| it.trust_domain().clone())
            .collect();
        domains.extend(peers.values().flatten().map(|id| id.trust_domain().clone()));
        if let Some(accepted) = &self.0.accepted {
            domains = accepted.iter().cloned().collect();
        }
        // Of every peer: an ID that it would have is accepted here if clients list it and servers believe its domain.
        let accepts = issuers(&resources).into_iter().filter(|issuer| {
            self.0.specs.iter().all(|peer| {
                let id = id_by(&resources, issuer, &peer.workload());
                let listed = |id: &SpiffeId| {
                    peers
                        .get(peer.name.as_str())
                        .is_some_and(|it| it.contains(id))
                        && domains.contains(id.trust_domain())
                };
                id.as_ref().is_some_and(listed)
            })
        });
        let accepts = accepts.collect();

        let (mut clusters, mut listeners) = (Vec::new(), Vec::new());
        match spec.role {
            Role::Client { egress } => {
                let mut routes = Vec::new();
                for (server, inbound) in servers() {
                    let name = server.name.as_str();
                    let outbound = contexts.outbound(&policy, name, &peers[name]);
                    let socket = Some(messages::tls(outbound));
                    let cluster = messages::cluster(name, inbound, socket, self.0.once);
                    clusters.push(pack_any(cluster));
                    routes.push((format!("/{name}/"), name));
                }
                let routes: Vec<_> = routes
                    .iter()
                    .map(|(path, to)| (path.as_str(), *to))
                    .collect();
                let chain = FilterChain {
                    filters: vec![messages::http("egress", &routes)],
                    ..FilterChain::default()
                };
                listeners.push(pack_any(messages::listener("egress", egress, vec![chain])));
            }
            Role::Server { inbound, app } => {
                clusters.push(pack_any(messages::cluster("app", app, None, false)));
                let domains: Vec<_> = domains.into_iter().collect();
                let chains = inbound_chains(policy.mode.value).into_iter().map(|chain| {
                    let application_tls =
                        chain.matches.transport_protocol == "tls" && !chain.mesh_tls;
                    let filter = match application_tls {
                        true => messages::tcp("inbound", "app"),
                        false => messages::http("inbound", &[("/", "app")]),
                    };
                    let context = || messages::tls(contexts.inbound(&policy, &domains));
                    FilterChain {
                        filter_chain_match: Some(chain.matches),
                        filters: vec![filter],
                        transport_socket: chain.mesh_tls.then(context),
                        ..FilterChain::default()
                    }
                });
                let listener = messages::listener("inbound", inbound, chains.collect());
                listeners.push(pack_any(listener));
            }
        }
        Some(Config {
            issuer,
            accepts,
            mode: policy.mode.value,
            clusters,
            listeners,
        })
    }

    async fn serve(
        self,
        mut inbound: Streaming<DiscoveryRequest>,
        outbound: mpsc::Sender<DiscoveryResponse>,
    ) {
        let Ok(Some(first)) = inbound.message().await else {
            return;
        };
        let node = first.node.as_ref().map_or("", |node| node.id.as_str());
        let name = node.split_once('/').map_or("", |(_, name)| name);
        if let Some(spec) = self.0.specs.iter().find(|it| it.name == name) {
            self.session(spec, first, &mut inbound, &outbound).await;
            self.0.progress.lock().unwrap().remove(&spec.name);
        }
    }

    /// One proxy, until its stream ends.
    async fn session(
        &self,
        spec: &Spec,
        request: DiscoveryRequest,
        inbound: &mut Streaming<DiscoveryRequest>,
        outbound: &mpsc::Sender<DiscoveryResponse>,
    ) -> Option<()> {
        let name = spec.name.as_str();
        let connected = self.0.manager.connect(MESH, name, spec.workload());
        let mut handle = connected.await.ok()?;
        // By type, with the number of the response and whether it is answered.
        let mut sent: BTreeMap<&'static str, (Option<Arc<Config>>, u64, bool)> = BTreeMap::new();
        let mut heard = Some(request);
        loop {
            if let Some(request) = heard.take() {
                let kind = match request.type_url.as_str() {
                    CLUSTERS => CLUSTERS,
                    _ => LISTENERS,
                };
                let (config, nonce, answered) = sent.entry(kind).or_insert((None, 0, true));
                if let (Some(config), false) = (config, *answered)
                    && request.response_nonce == nonce.to_string()
                {
                    *answered = true;
                    match &request.error_detail {
                        Some(error) => {
                            let refusal = format!("{name}: {}", error.message);
                            self.0.refusals.lock().unwrap().push(refusal);
                        }
                        None => self.took(name, kind, config),
                    }
                }
            }
            if let Some(config) = self.config(spec, &handle).await.map(Arc::new) {
                // Clusters first: what listeners refer to is there. New ones wait until the last are taken into use.
                for kind in [CLUSTERS, LISTENERS] {
                    let Some((last, nonce, answered)) = sent.get_mut(kind) else {
                        break;
                    };
                    if !*answered {
                        break;
                    }
                    let same = last
                        .as_ref()
                        .is_some_and(|it| it.of(kind) == config.of(kind));
                    if same {
                        // The same bytes with another meaning, or none.
                        self.took(name, kind, &config);
                        *last = Some(Arc::clone(&config));
                        continue;
                    }
                    *last = Some(Arc::clone(&config));
                    *nonce += 1;
                    *answered = false;
                    let response = DiscoveryResponse {
                        version_info: nonce.to_string(),
                        resources: config.of(kind).to_vec(),
                        type_url: kind.to_owned(),
                        nonce: nonce.to_string(),
                        ..DiscoveryResponse::default()
                    };
                    outbound.send(response).await.ok()?;
                    break;
                }
            }
            tokio::select! {
                next = inbound.message() => heard = Some(next.ok()??),
                changed = handle.changed() => changed.ok()?,
            }
        }
    }

    fn took(&self, name: &str, kind: &'static str, config: &Arc<Config>) {
        let mut progress = self.0.progress.lock().unwrap();
        let of = progress.entry(name.to_owned()).or_default();
        of.insert(kind, Arc::clone(config));
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().serve(request.into_inner(), sender));
        let responses = futures_util::stream::unfold(receiver, async |mut receiver| {
            Some((Ok(receiver.recv().await?), receiver))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("ask for the state of the world"))
    }
}

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// Everyone who may issue for somebody.
fn issuers(resources: &MeshResources) -> BTreeSet<BackendKey> {
    let classic = resources.mesh.mtls.iter().flat_map(|mtls| &mtls.backends);
    let modern = resources.identities.iter();
    classic
        .map(|it| BackendKey::Classic(it.name.clone()))
        .chain(modern.map(|it| BackendKey::Modern(it.metadata.name.clone())))
        .collect()
}

fn assigned(to: &Assigned) -> Option<BackendKey> {
    match to {
        Assigned::Modern { identity, .. } => {
            Some(BackendKey::Modern(identity.metadata.name.clone()))
        }
        Assigned::Classic { backend, .. } => Some(BackendKey::Classic(backend.clone())),
        _ => None,
    }
}

/// The SPIFFE IDs that a workload may show: the one that it is given, those that are announced for it, and the classic one while there is
/// an enabled backend.
fn expected(resources: &MeshResources, workload: &Workload) -> Vec<SpiffeId> {
    let options = SelectOptions::new(ZONE, Environment::Universal);
    let selection = IdentityRules::new(resources, options).select(workload, |_| Ok(()));
    let mut ids: Vec<SpiffeId> = selection.announced().cloned().collect();
    ids.extend(selection.spiffe_id().cloned());
    if resources.mesh.enabled_backend().is_some() {
        ids.extend(resources.mesh.spiffe_id_of(workload).ok());
    }
    ids
}

/// The SPIFFE ID that this issuer would give it.
fn id_by(resources: &MeshResources, issuer: &BackendKey, workload: &Workload) -> Option<SpiffeId> {
    match issuer {
        BackendKey::Modern(name) => {
            let mut all = resources.identities.iter();
            let identity = all.find(|it| it.metadata.name == *name)?;
            let domain = identity.trust_domain_in(ZONE).ok()?;
            identity
                .spiffe_id_of(&domain, workload, Environment::Universal)
                .ok()
        }
        _ => resources.mesh.spiffe_id_of(workload).ok(),
    }
}
