//! Two Envoys that speak with each other by what one issuer signs, and what is true of them with each.

use std::collections::{BTreeMap, BTreeSet};

use meshca::resource::Mode;
use meshca::{BackendRegistry, TrustDomain};
use meshca_testenv::servers::{Envoy, Port};
use rustls::NamedGroup;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::envoy::app;
use crate::envoy::control::Role;
use crate::envoy::load::Load;
use crate::envoy::world::{
    Options, Protocol, SOON, Sidecar, Transport, World, node, serial, serial_of, until,
};

/// A mesh whose workloads all have a MeshIdentity, `all`, of this provider.
fn resources(provider: &Value, path: &str) -> String {
    let mesh = json!({"type": "Mesh", "name": "default"});
    let mut all = identity("all", "example.org", &json!({}), provider);
    all["spec"]["spiffeID"]["path"] = json!(path);
    format!("{mesh}\n---\n{all}\n")
}

const PATH: &str = "/workload/{{ label \"kuma.io/workload\" }}";
const OTHER_PATH: &str = "/renamed/{{ label \"kuma.io/workload\" }}";

fn identity(name: &str, domain: &str, labels: &Value, provider: &Value) -> Value {
    json!({
        "type": "MeshIdentity", "name": name, "mesh": "default",
        "spec": {
            "selector": {"dataplane": {"matchLabels": labels}},
            "spiffeID": {"trustDomain": domain},
            "provider": provider,
        },
    })
}

/// The built-in CA, with certificates that live so long.
fn bundled_for(expiry: &str) -> Value {
    let mut provider = crate::issuers::bundled();
    provider["bundled"]["certificateParameters"] = json!({"expiry": expiry});
    provider
}

fn egress(sidecar: &Sidecar) -> std::net::SocketAddr {
    match sidecar.spec.role {
        Role::Client { egress } => egress,
        Role::Server { .. } => panic!("{sidecar:?} is no client"),
    }
}

/// The serial number of the certificate that a server shows to a new connection of a workload without an Envoy.
async fn shown(world: &World, server: &Sidecar) -> String {
    let Role::Server { inbound, .. } = server.spec.role else {
        panic!("{server:?} is no server");
    };
    let tls = world.rustls("somebody").await;
    let tcp = TcpStream::connect(inbound).await.unwrap();
    let name = ServerName::try_from("mesh.invalid").unwrap();
    let connected = TlsConnector::from(tls.client()).connect(name, tcp).await;
    let connection = connected.unwrap();
    let group = connection.get_ref().1.negotiated_key_exchange_group();
    assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
    serial_of(&connection.get_ref().1.peer_certificates().unwrap()[0])
}

/// By this issuer, over this transport and protocol: requests succeed, what Envoys show is the manager's, and a renewal reaches them while
/// an answer is under way, which goes on.
pub(crate) async fn speak_with_each_other(
    registry: BackendRegistry,
    provider: &Value,
    transport: Transport,
    protocol: Protocol,
) {
    let mut options = Options::new(registry);
    options.transport = transport;
    options.protocol = protocol;
    let world = World::start(options, &resources(provider, PATH)).await;
    let (server, client) = (world.sidecar("s-0").await, world.sidecar("c-0").await);
    let egress = egress(&client);
    for _ in 0..3 {
        app::get(egress, "/s-0/hello").await.unwrap();
    }
    let first = server.until_shows_its_own(&world).await;
    client.until_shows_its_own(&world).await;
    assert_eq!(shown(&world, &server).await, serial(&first));

    // One answer, on one connection, from before the renewal until after it.
    let mut stream = app::send(egress, "/s-0/stream").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"HTTP/1.1 200");

    // Everyone gets another name, and so another certificate, whoever issues.
    world.apply(&resources(provider, OTHER_PATH)).await;
    for name in ["s-0", "c-0"] {
        until(&format!("`{name}` is not renamed"), async || {
            let id = world.identity(name).await.spiffe_id().to_string();
            id.starts_with("spiffe://example.org/renamed/")
        })
        .await;
    }
    let second = server.until_shows_its_own(&world).await;
    client.until_shows_its_own(&world).await;
    until("the client does not expect the new name", async || {
        let envoy = client.envoy.read().await;
        let clusters = envoy.config_dump("dynamic_active_clusters").await.unwrap();
        json!(clusters).to_string().contains("/renamed/s-0")
    })
    .await;
    assert_ne!(serial(&first), serial(&second));
    assert_eq!(shown(&world, &server).await, serial(&second));
    for _ in 0..3 {
        app::get(egress, "/s-0/hello").await.unwrap();
    }

    world.app.end();
    let mut rest = String::new();
    let ended = tokio::time::timeout(SOON, stream.read_to_string(&mut rest)).await;
    ended.unwrap().unwrap();
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "it was cut off");
    let stats = client.envoy.read().await;
    let stats = stats
        .stats(
            r"^cluster\.(s-0|sds)\.(ssl\.(fail|handshake|curves)|upstream_cx_destroy_local_with)",
        )
        .await;
    let stats = stats.unwrap();
    // Between two Envoys, and between an Envoy and our server.
    for (name, handshakes) in stats
        .iter()
        .filter(|(name, _)| name.ends_with(".ssl.handshake"))
    {
        let group = name.replace(".handshake", ".curves.X25519MLKEM768");
        assert_eq!(stats.get(&group).unwrap_or(&0), handshakes, "{stats:?}");
    }
    assert!(stats["cluster.s-0.ssl.handshake"] >= 7, "{stats:?}");
    assert_eq!(stats["cluster.s-0.ssl.fail_verify_error"], 0, "{stats:?}");
    assert_eq!(world.control.refusals(), [""; 0]);
    assert_eq!(world.events.with("refuses"), [""; 0]);
}

/// Certificates that live for seconds are renewed again and again under load. No request fails, and one answer is under way all the time.
pub(crate) async fn are_renewed_under_load(registry: BackendRegistry) {
    const RENEWALS: usize = 2;
    let mut options = Options::new(registry);
    options.transport = Transport::Unix;
    options.protocol = Protocol::Delta;
    let world = World::start(options, &resources(&bundled_for("16s"), PATH)).await;
    let (server, client) = (world.sidecar("s-0").await, world.sidecar("c-0").await);
    let mut load = Load::start();
    load.join(&server);
    load.join(&client);
    let mut stream = app::send(egress(&client), "/s-0/stream").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();

    let mut seen = BTreeSet::new();
    until("it is not renewed", async || {
        seen.insert(shown(&world, &server).await);
        seen.len() > RENEWALS
    })
    .await;
    world.app.end();
    let mut rest = String::new();
    let ended = tokio::time::timeout(SOON, stream.read_to_string(&mut rest)).await;
    ended.unwrap().unwrap();
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "it was cut off");
    let counts = load.end().await;
    println!("{RENEWALS} renewals under load: {counts}");
    counts.assert_good(Mode::Strict);
}

/// Whoever is of a trust domain that is believed, and not accepted here, is refused, also if the name of one is how that of the other begins.
pub(crate) async fn refuse_other_domains(registry: BackendRegistry) {
    let mut options = Options::new(registry);
    options.later = 2;
    options.accepted = Some(vec![TrustDomain::new("example.org").unwrap()]);
    let mesh = json!({"type": "Mesh", "name": "default"});
    let provider = crate::issuers::bundled();
    let of = |name: &str, domain: &str, workload: &str| {
        let labels = match workload {
            "" => json!({}),
            workload => json!({"kuma.io/workload": workload}),
        };
        identity(name, domain, &labels, &provider)
    };
    let resources = [
        mesh,
        of("all", "example.org", ""),
        of("longer", "example.orgi", "c-1"),
        of("other", "other.test", "c-2"),
    ];
    let resources: Vec<_> = resources.iter().map(Value::to_string).collect();
    let world = World::start(options, &resources.join("\n---\n")).await;
    let server = world.sidecar("s-0").await;
    let refused = r"^listener\..*\.ssl\.(fail|handshake|connection_error)";
    let mut before = 0;
    for (client, domain, accepted) in [
        ("c-0", "example.org", true),
        ("c-1", "example.orgi", false),
        ("c-2", "other.test", false),
    ] {
        let client = world.sidecar(client).await;
        let identity = client.until_shows_its_own(&world).await;
        let id = identity.spiffe_id().to_string();
        assert!(id.starts_with(&format!("spiffe://{domain}/")), "{id}");
        let answer = app::get(egress(&client), "/s-0/hello").await;
        assert_eq!(answer.is_ok(), accepted, "{id}: {answer:?}");
        let count = |stats: &BTreeMap<String, u64>| -> u64 {
            let san = |(name, count): (&String, &u64)| {
                name.ends_with(".fail_verify_san").then_some(*count)
            };
            stats.iter().filter_map(san).sum()
        };
        let envoy = server.envoy.read().await;
        let counted = envoy.until_stats(refused, SOON, |stats| (count(stats) > before) != accepted);
        before = count(&counted.await.unwrap());
    }
}

/// An Envoy as somebody has it who runs a SPIRE agent: static, and the names are SPIRE's.
pub(crate) async fn take_spires_names(registry: BackendRegistry) {
    let mut options = Options::new(registry);
    options.transport = Transport::Unix;
    let world = World::start(options, &resources(&crate::issuers::bundled(), PATH)).await;
    for (bundle, protocol) in [("ROOTCA", "GRPC"), ("ALL", "DELTA_GRPC")] {
        let (inbound, egress) = (Port::free().unwrap(), Port::free().unwrap());
        let secret = |name: &str| {
            json!({"name": name, "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": protocol,
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
                },
            }})
        };
        let tls = |kind: &str, identity: &str, peer: &Value| {
            let context = json!({
                "tls_certificate_sds_secret_configs": [secret(identity)],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": peer}],
                    },
                    "validation_context_sds_secret_config": secret(bundle),
                },
            });
            let mut config = json!({
                "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext"),
                "common_tls_context": context,
            });
            if kind == "Downstream" {
                config["require_client_certificate"] = json!(true);
            }
            json!({"name": "envoy.transport_sockets.tls", "typed_config": config})
        };
        let pipe = |at: &Port, to: &str, socket: Option<Value>| {
            let mut chain = json!({"filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": to,
                    "cluster": to,
                },
            }]});
            if let Some(socket) = socket {
                chain["transport_socket"] = socket;
            }
            json!({"name": to, "address": address(at.address()), "filter_chains": [chain]})
        };
        let cluster = |name: &str, to: std::net::SocketAddr, socket: Option<Value>| {
            let mut cluster = json!({
                "name": name,
                "type": "STATIC",
                "load_assignment": {"cluster_name": name, "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": address(to)}}]},
                ]},
            });
            if let Some(socket) = socket {
                cluster["transport_socket"] = socket;
            }
            cluster
        };
        // One proxy on both ends; the SPIFFE ID is a name of its identity as well.
        let id = "spiffe://example.org/workload/web";
        let server = tls(
            "Downstream",
            "default",
            &json!({"prefix": "spiffe://example.org/"}),
        );
        let client = tls("Upstream", id, &json!({"exact": id}));
        let bootstrap = json!({
            "node": node("web"),
            "static_resources": {
                "listeners": [
                    pipe(&inbound, "app", Some(server)),
                    pipe(&egress, "web", None),
                ],
                "clusters": [
                    world.sds_cluster("web").await,
                    cluster("app", world.app.address, None),
                    cluster("web", inbound.address(), Some(client)),
                ],
            },
        });
        let envoy = Envoy::start(&bootstrap).await.unwrap();
        envoy.until_live(SOON).await.unwrap();
        app::get(egress.address(), "/hello").await.unwrap();
        let certs = envoy.certs().await.unwrap();
        let id = |it: &Value| it["cert_chain"][0]["subject_alt_names"][0]["uri"] == id;
        assert!(!certs.is_empty() && certs.iter().all(id), "{certs:?}");
    }
}

/// An Envoy with ten secrets and so much metadata that ten first requests are more than a connection may have in memory before it is proven
/// whose it is. Besides its metadata, 61 kB of each are the list of its extensions. It opens a stream for each secret, and none of them is refused or comes again.
pub(crate) async fn come_with_long_nodes(registry: BackendRegistry) {
    const KRI: &str = "kri_mid_default_east__all_";
    let identities = [
        ("default", "GRPC"),
        ("default", "DELTA_GRPC"),
        ("spiffe://example.org/workload/web", "GRPC"),
        (KRI, "GRPC"),
        (KRI, "DELTA_GRPC"),
    ];
    let trust = [
        ("ROOTCA", "GRPC"),
        ("ALL", "GRPC"),
        ("ALL", "DELTA_GRPC"),
        ("system_trust_bundle", "GRPC"),
        ("spiffe://example.org", "GRPC"),
    ];
    let mut options = Options::new(registry);
    options.transport = Transport::Tls;
    let world = World::start(options, &resources(&crate::issuers::bundled(), PATH)).await;
    // It is issued already.
    let _web = world.handle("web").await;
    let mut took = Vec::new();
    for metadata in [32, 32 * 1024] {
        let cluster = |number: usize, kind: &str, (name, protocol): (&str, &str)| {
            let secret = json!({"name": name, "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": protocol,
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
                },
            }});
            let context = match kind {
                "identity" => json!({"tls_certificate_sds_secret_configs": [secret]}),
                _ => json!({"validation_context_sds_secret_config": secret}),
            };
            json!({
                "name": format!("{kind}-{number}"),
                "type": "STATIC",
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": context,
                }},
            })
        };
        let mut clusters = vec![world.sds_cluster("web").await];
        let of = |kind: &'static str| move |(n, it)| cluster(n, kind, it);
        clusters.extend(identities.into_iter().enumerate().map(of("identity")));
        clusters.extend(trust.into_iter().enumerate().map(of("trust")));
        let mut node = node("web");
        node["metadata"] = json!({"dataplane": "x".repeat(metadata)});
        let before = world.events.acknowledged();
        let bootstrap = json!({"node": node, "static_resources": {"clusters": clusters}});
        let begun = tokio::time::Instant::now();
        let envoy = Envoy::start(&bootstrap).await.unwrap();
        until("ten secrets are not in use", async || {
            world.events.acknowledged() >= before + 10
        })
        .await;
        took.push(begun.elapsed());
        let counted = envoy
            .stats(r"^cluster\.sds\.upstream_(cx_total|rq_total|rq_rx_reset|rq_retry)$")
            .await
            .unwrap();
        let of = |name: &str| {
            counted
                .get(&format!("cluster.sds.upstream_{name}"))
                .copied()
        };
        assert_eq!(of("cx_total"), Some(1), "{counted:?}");
        assert_eq!(of("rq_total"), Some(10), "{counted:?}");
        assert_eq!(of("rq_rx_reset").unwrap_or(0), 0, "{counted:?}");
    }
    assert_eq!(world.events.with("is refused"), [""; 0]);
    println!(
        "ten secrets in use with 32 bytes of metadata and with 32 KiB, from the start of Envoy: {took:?}"
    );
    assert!(
        took[1] < took[0] + std::time::Duration::from_secs(1),
        "{took:?}"
    );
}

fn address(at: std::net::SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}
