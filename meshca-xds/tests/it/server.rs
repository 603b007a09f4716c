//! The server with clients that speak its protocol, well and badly.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use meshca_identity::Acknowledged;
use meshca_xds::{SdsObserver, SdsOptions, SdsServer, names};
use tonic::Code;

use crate::world::{KRI, MODERN, SOON, Sotw, World, by_node, node, rotated, secrets, take};

#[tokio::test]
async fn a_proxy_gets_its_identity_and_the_trust_of_its_mesh() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    let wanted = [KRI, names::SYSTEM_TRUST_BUNDLE];
    web.ask(&wanted);
    // The trust is there at once or soon, the identity when it is issued.
    let mut got = BTreeMap::new();
    while got.len() < 2 {
        let response = web.next().await;
        got.extend(secrets(&response.resources));
        web.ack(&response, &wanted);
    }
    assert!(matches!(got[KRI], secret::Type::TlsCertificate(_)));
    let trust = &got[names::SYSTEM_TRUST_BUNDLE];
    assert!(matches!(trust, secret::Type::ValidationContext(_)));
    web.quiet(Duration::from_millis(200)).await;
    world.events.until("has taken into use").await;
    let gate = world.manager.gate("default").await.unwrap();
    assert!(gate.is_open(), "{gate:?}");
    let observed = world.server.observe("default").await.unwrap();
    assert_eq!(observed.proxies.len(), 1);
    assert!(observed.proxies[0].holds.is_some());
    drop(web);
    world.events.until("has ended").await;
    assert_eq!(world.server.connected(), 0);
    world.stop().await;
}

#[tokio::test]
async fn delta_tells_what_is_there_and_what_is_not() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.delta("web").await;
    let other = "kri_mid_default_east__admins_";
    web.subscribe(&["default", "ALL", other]);
    let mut got = BTreeMap::new();
    let mut removed = Vec::new();
    while got.len() < 2 || removed.is_empty() {
        let response = web.next().await;
        for resource in &response.resources {
            got.insert(resource.name.clone(), resource.version.clone());
        }
        removed.extend(response.removed_resources.iter().cloned());
        web.ack(&response);
    }
    assert_eq!(removed, [other]);
    world
        .events
        .until("asks for `kri_mid_default_east__admins_`, which is not its own")
        .await;
    world.stop().await;
}

#[tokio::test]
async fn a_proxy_that_refuses_is_left_alone_until_there_is_something_else() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut steady = world.sotw("steady").await;
    take(&mut steady, &["default", "ALL"]).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &["ALL"]).await;
    // A storm: whatever it says, it gets no answer, and others theirs.
    web.ask(&["ALL", "default"]);
    let response = web.next().await;
    for _ in 0..50 {
        web.nack(&response, &["ALL", "default"], "no room\u{1b}[31m for it");
    }
    web.quiet(Duration::from_millis(300)).await;
    let said = world
        .events
        .until("the proxy `web` of the mesh `default` refuses")
        .await;
    assert!(
        said.ends_with("refuses `ALL`, `default`: no room [31m for it"),
        "{said}"
    );
    let nacks = world
        .events
        .all()
        .into_iter()
        .filter(|it| it.contains("refuses"));
    assert_eq!(nacks.count(), 1);
    // It did not take its identity into use, which a plan waits for.
    let observed = world.server.observe("default").await.unwrap();
    let holds: BTreeMap<_, _> = observed
        .proxies
        .iter()
        .map(|it| (it.name(), it.holds.is_some()))
        .collect();
    assert_eq!(holds, BTreeMap::from([("steady", true), ("web", false)]));

    // New roots come to both. The one that refused is waited for by everybody.
    world.apply(&rotated()).await;
    let next = steady.next().await;
    steady.ack(&next, &["default", "ALL"]);
    let next = web.next().await;
    web.nack(&next, &["ALL", "default"], "still none");
    world.events.until("still none").await;
    let gate = world.manager.gate("default").await.unwrap();
    let lagging: Vec<_> = gate.lagging.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(lagging, ["web"]);
    steady.quiet(Duration::from_millis(300)).await;
    // It comes again, and takes what there is: now everybody moves.
    drop(web);
    let mut web = world.sotw("web").await;
    take(&mut web, &["ALL"]).await;
    let moved = steady.next().await;
    let moved = secrets(&moved.resources);
    assert!(moved.iter().any(|(name, _)| name == "default"));
    world.stop().await;
}

#[tokio::test]
async fn who_comes_with_trust_of_before_is_waited_for() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    // It had something from another process of this control plane, and does not take the new one yet.
    web.send(DiscoveryRequest {
        version_info: "of another time".to_owned(),
        resource_names: vec![names::SYSTEM_TRUST_BUNDLE.to_owned()],
        ..DiscoveryRequest::default()
    });
    let held_back = web.next().await;
    let open = async {
        loop {
            let gate = world.manager.gate("default").await.unwrap();
            if gate.lagging == [("web".to_owned(), Acknowledged::FromBefore)] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, open).await.unwrap();
    web.ack(&held_back, &[names::SYSTEM_TRUST_BUNDLE]);
    let open = async {
        while !world.manager.gate("default").await.unwrap().is_open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, open).await.unwrap();

    // With deltas it says what it has, which is not sent again.
    let mut delta = world.delta("api").await;
    delta.subscribe(&["ALL"]);
    let first = delta.next().await;
    delta.ack(&first);
    let mut known = std::collections::HashMap::new();
    known.insert("ALL".to_owned(), first.resources[0].version.clone());
    drop(delta);
    let mut delta = world.delta("api").await;
    delta.send(DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["ALL".to_owned(), "ROOTCA".to_owned()],
        initial_resource_versions: known,
        ..DeltaDiscoveryRequest::default()
    });
    let second = delta.next().await;
    let names: Vec<_> = second.resources.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["ROOTCA"]);
    world.stop().await;
}

#[tokio::test]
async fn a_proxy_is_as_far_as_the_last_of_its_streams() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut one = world.sotw("web").await;
    take(&mut one, &["ALL"]).await;
    let mut two = world.sotw("web").await;
    take(&mut two, &["system_trust_bundle"]).await;
    let mut identity = world.sotw("web").await;
    take(&mut identity, &["default"]).await;
    assert_eq!(world.server.connected(), 1);
    let gate = async || world.manager.gate("default").await.unwrap();
    assert!(gate().await.is_open());
    world.apply(&rotated()).await;
    let next = one.next().await;
    one.ack(&next, &["ALL"]);
    let late = two.next().await;
    world.events.until("has taken into use `ALL`").await;
    identity.quiet(Duration::from_millis(300)).await;
    assert!(!gate().await.is_open());
    two.ack(&late, &["system_trust_bundle"]);
    identity.next().await;
    world.stop().await;
}

#[tokio::test]
async fn spires_names_are_known() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    let own = "spiffe://example.org/workload/web";
    let got = take(
        &mut web,
        &["default", "ROOTCA", "ALL", own, "spiffe://example.org"],
    )
    .await;
    let is_identity = |name: &str| matches!(got[name], secret::Type::TlsCertificate(_));
    for name in ["default", own] {
        assert!(is_identity(name), "{name}");
    }
    for name in ["ROOTCA", "ALL", "spiffe://example.org"] {
        assert!(!is_identity(name), "{name}");
    }
    // Another's name is nobody's here.
    let other = "spiffe://example.org/workload/api";
    web.ask(&["default", other, "identity_cert:secret:other"]);
    world
        .events
        .until(&format!("asks for `{other}`, which is not its own"))
        .await;
    world
        .events
        .until("asks for `identity_cert:secret:other`, which is not its own")
        .await;
    web.quiet(Duration::from_millis(200)).await;
    world.stop().await;
}

/// What a server says to a client that does this, and the word for the audit.
async fn refused(world: &World, name: &str, request: DiscoveryRequest) -> (Code, String) {
    let mut stream = Sotw::open(world.channel().await, name);
    stream.send(request);
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended in peace"),
            Err(status) => return (status.code(), status.message().to_owned()),
        }
    }
}

#[tokio::test]
async fn bad_requests_end_their_stream_and_nothing_else() {
    let mut options = SdsOptions::default();
    options.max_request = 20_000;
    options.max_names = 3;
    options.max_name = 100;
    options.first_request = Duration::from_millis(300);
    let world = World::new(MODERN, options).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &["default", "ALL"]).await;

    let asks = |names: &[&str]| DiscoveryRequest {
        resource_names: names.iter().map(|&it| it.to_owned()).collect(),
        ..DiscoveryRequest::default()
    };
    let kind = Some(Kind::StringValue("x".repeat(30_000)));
    let metadata = Struct {
        fields: std::collections::HashMap::from([("labels".to_owned(), Value { kind })]),
    };
    let oversized = DiscoveryRequest {
        node: Some(Node {
            metadata: Some(metadata),
            ..node("big")
        }),
        ..asks(&["default"])
    };
    let foreign_type = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..asks(&["default"])
    };
    for (name, request, code, said, audit) in [
        (
            "nobody",
            DiscoveryRequest {
                node: Some(Node::default()),
                ..asks(&["default"])
            },
            Code::Unauthenticated,
            "it is not proven who this proxy is",
            "the node has no name",
        ),
        (
            "stranger/web",
            asks(&["default"]),
            Code::PermissionDenied,
            "this proxy may not have an identity here",
            "strangers get nothing",
        ),
        (
            "many",
            asks(&["1", "2", "3", "4"]),
            Code::ResourceExhausted,
            "4 resources are asked for on one stream, which may ask for 3",
            "4 resources are asked for",
        ),
        (
            "long",
            asks(&[&"n".repeat(101)]),
            Code::ResourceExhausted,
            "the name of a resource has 101 bytes, and may have 100",
            "101 bytes",
        ),
        (
            "cds",
            foreign_type,
            Code::InvalidArgument,
            "this service has `type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret` only",
            "Secret` only",
        ),
        (
            "big",
            oversized,
            Code::ResourceExhausted,
            "message length too large",
            "",
        ),
    ] {
        let (got, message) = refused(&world, name, request).await;
        assert_eq!(got, code, "{name}: {message}");
        assert!(message.contains(said), "{name}: {message}");
        world.events.until(audit).await;
    }
    // The audit knows why, and the proxy does not.
    let (_, message) = refused(&world, "stranger/web", asks(&["default"])).await;
    assert!(!message.contains("strangers"), "{message}");

    // Who says nothing is not waited for.
    let mut silent = Sotw::open(world.channel().await, "silent");
    let status = silent.message().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // Who becomes somebody else is not believed.
    let mut thief = world.sotw("thief").await;
    take(&mut thief, &["default"]).await;
    let request = DiscoveryRequest {
        node: Some(node("web")),
        ..asks(&["default", "ALL"])
    };
    thief.send(request);
    let status = loop {
        if let Err(status) = thief.message().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    world.apply(&rotated()).await;
    let next = web.next().await;
    web.ack(&next, &["default", "ALL"]);
    world.stop().await;
}

#[tokio::test]
async fn who_talks_too_fast_is_listened_to_later() {
    let mut options = SdsOptions::default();
    options.request_rate = std::num::NonZeroU32::new(100).unwrap();
    let world = World::new(MODERN, options).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &["default"]).await;
    let begun = tokio::time::Instant::now();
    // A thousand at once are free.
    let request = DiscoveryRequest {
        response_nonce: "stale".to_owned(),
        resource_names: vec!["default".to_owned()],
        ..DiscoveryRequest::default()
    };
    for _ in 0..1_100 {
        web.send(request.clone());
    }
    web.send(DiscoveryRequest {
        response_nonce: "1".to_owned(),
        resource_names: vec!["default".to_owned(), "ALL".to_owned()],
        ..DiscoveryRequest::default()
    });
    web.next().await;
    assert!(
        begun.elapsed() >= Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    world.stop().await;
}

#[tokio::test]
async fn the_end_of_the_control_plane_is_the_end_of_every_stream() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &["default"]).await;
    let idle = world.channel().await;
    let manager = world.manager.clone();
    let events = std::sync::Arc::clone(&world.events);
    world.stop().await;
    let status = web.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    events.until("has ended").await;
    drop((idle, manager));
}

#[tokio::test]
async fn connections_cut_at_any_moment_leave_nothing_behind() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    for round in 0..60_u64 {
        let mut web = world.sotw(&format!("web-{}", round % 7)).await;
        web.ask(&["default", "ALL"]);
        if round % 3 == 1 {
            web.next().await;
        }
        if round % 3 == 2 {
            let response = web.next().await;
            web.ack(&response, &["default", "ALL"]);
        }
        tokio::time::sleep(Duration::from_micros(round * 50)).await;
        drop(web);
    }
    world.until_nobody_is_connected().await;
    world.stop().await;
}

#[tokio::test]
async fn the_service_is_one_of_a_tonic_servers() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let service = world.server.service();
    let serving = tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming(incoming).await
    });
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap();
    let mut web = Sotw::open(channel.connect().await.unwrap(), "web");
    take(&mut web, &["default", "ALL"]).await;
    // Its end is told as gRPC tells it.
    web.ask(&[&"n".repeat(2_000)]);
    let status = web.message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    serving.abort();
    world.stop().await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_for_is_closed() {
    use tokio::io::AsyncReadExt;
    let mut options = SdsOptions::default();
    options.first_request = Duration::from_millis(200);
    options.authentication = Duration::from_millis(200);
    let world = World::new(MODERN, options).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &["default"]).await;
    let mut silent = tokio::net::UnixStream::connect(&world.socket)
        .await
        .unwrap();
    let mut said = Vec::new();
    let end = silent.read_to_end(&mut said);
    tokio::time::timeout(SOON, end).await.unwrap().unwrap();
    // One that asks stays, for as long as it likes.
    web.quiet(Duration::from_millis(400)).await;
    world.apply(&rotated()).await;
    let mut all = world.sotw("other").await;
    take(&mut all, &["default"]).await;
    web.next().await;
    world.stop().await;
}

#[tokio::test]
async fn a_server_that_is_dropped_drops_its_connections() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &["default"]).await;
    world.stop_serving();
    web.message().await.unwrap_err();
    world.until_nobody_is_connected().await;
    world.stop().await;
}

#[tokio::test]
async fn a_clone_is_the_same_server() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &["default"]).await;
    assert_eq!(world.server.connected(), 1);
    assert_eq!(world.server.clone().connected(), 1);
}

#[tokio::test]
async fn settings_hold_in_whatever_order_they_are_made() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut options = SdsOptions::default();
    options.max_names = 7;
    let observer = || Arc::clone(&world.events) as Arc<dyn SdsObserver>;
    let builder = || SdsServer::builder(world.manager.clone(), by_node);
    for server in [
        builder()
            .with_options(options)
            .with_observer(observer())
            .build(),
        builder()
            .with_observer(observer())
            .with_options(options)
            .build(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("sds.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let serving = tokio::spawn(async move {
            server.serve_unix(listener, std::future::pending()).await;
        });
        let mut web = Sotw::open(crate::world::connect(&socket).await, "web");
        web.ask(&["1", "2", "3", "4", "5", "6", "7", "8"]);
        let status = web.message().await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        world.events.until("has ended").await;
        world.events.clear();
        serving.abort();
    }
    world.stop().await;
}

/// The next mesh of its name may be another tenant's.
#[tokio::test]
async fn the_streams_of_a_mesh_that_is_removed_end() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    let before = take(&mut web, &["default", "ALL"]).await;
    world.manager.remove_mesh("default").await.unwrap();
    let ended = loop {
        match web.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), tonic::Code::Unavailable);
    assert_eq!(ended.message(), "the mesh was removed");
    world.apply(MODERN).await;
    let mut again = world.sotw("web").await;
    let after = take(&mut again, &["default", "ALL"]).await;
    assert_ne!(after["default"], before["default"], "another key");
    world.stop().await;
}
