//! Proxies that are not who they seem, streams that are lost, and clients and observers that misbehave.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use hyper_util::rt::TokioIo;
use meshca_xds::{SdsEvent, SdsObserver, SdsOptions, SdsServer};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};

use crate::world::{
    KRI, MODERN, SOON, Sotw, World, by_node, node, rotated, secrets, take, with_root,
};

/// A connection that ends when the task does, without a word.
async fn cuttable(socket: &Path) -> (Channel, JoinHandle<()>) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut server = UnixStream::connect(socket).await.unwrap();
    let between = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut far, &mut server).await;
    });
    let mut near = Some(near);
    let connector = tower::service_fn(move |_| {
        let near = near.take().ok_or(std::io::ErrorKind::ConnectionRefused);
        async move { Ok::<_, std::io::Error>(TokioIo::new(near?)) }
    });
    let endpoint = Endpoint::from_static("http://sds");
    (
        endpoint.connect_with_connector(connector).await.unwrap(),
        between,
    )
}

/// Whether the certificate of a secret has these words in it: a SPIFFE ID is plain text in there.
fn is_of(secret: &secret::Type, words: &str) -> bool {
    let secret::Type::TlsCertificate(certificate) = secret else {
        panic!("not an identity");
    };
    let source = certificate.certificate_chain.as_ref().unwrap();
    let Some(Specifier::InlineString(pem)) = &source.specifier else {
        panic!("not inline");
    };
    let chain = meshca_core::SignedChain::from_pem(pem).unwrap();
    let leaf = &chain.certificates()[0];
    leaf.windows(words.len()).any(|it| it == words.as_bytes())
}

/// A StatefulSet's pod that is replaced, a Dataplane whose name is used again.
#[tokio::test]
async fn who_takes_over_a_name_does_not_get_the_key_of_who_had_it() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut payments = world.sotw("web-0#payments").await;
    let got = take(&mut payments, &["default"]).await;
    assert!(is_of(&got["default"], "/payments"));
    drop(payments);
    let mut guestbook = world.sotw("web-0#guestbook").await;
    let got = take(&mut guestbook, &["default"]).await;
    assert!(is_of(&got["default"], "/guestbook"));

    // While it is still there, somebody else comes under its name: its stream ends, and it gets nothing of that.
    let mut payments = world.sotw("web-0#payments").await;
    let got = take(&mut payments, &["default", "ALL"]).await;
    assert!(is_of(&got["default"], "/payments"));
    let status = loop {
        match guestbook.message().await {
            Ok(Some(response)) => {
                for (name, secret) in secrets(&response.resources) {
                    assert!(name != "default" || is_of(&secret, "/guestbook"));
                }
            }
            Ok(None) => panic!("it ended in peace"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    world.events.until("who this proxy is has changed").await;
    world.stop().await;
}

/// Envoy opens a stream for each secret, and each comes back by itself.
#[tokio::test]
async fn what_a_lost_stream_brought_still_counts() {
    for (lost, observed) in [("system_trust_bundle", true), (KRI, false)] {
        let world = World::new(MODERN, SdsOptions::default()).await;
        let mut one = world.sotw("web").await;
        take(&mut one, &["ALL", "default"]).await;
        let (channel, connection) = cuttable(&world.socket).await;
        let mut two = Sotw::open(channel, "web");
        take(&mut two, &[lost]).await;
        connection.abort();
        world.events.until("has ended").await;
        world.apply(&rotated()).await;
        let next = one.next().await;
        one.ack(&next, &["ALL", "default"]);
        if observed {
            // Listeners go by the trust that it brought: nothing is signed that they would refuse.
            one.quiet(Duration::from_millis(500)).await;
            assert!(!world.manager.gate("default").await.unwrap().is_open());
            // It is back, and as far as the other one.
            let mut two = world.sotw("web").await;
            take(&mut two, &[lost]).await;
        }
        let next = one.next().await;
        one.ack(&next, &["ALL", "default"]);
        world.events.until("`ALL`, `default`").await;
        if !observed {
            // A listener serves the certificate of before.
            let observed = world.server.observe("default").await.unwrap();
            assert!(observed.proxies[0].holds.is_none());
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn a_refusal_of_the_first_trust_is_no_acknowledgement() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    web.ask(&["ALL"]);
    let response = web.next().await;
    let observed = world.server.observe("default").await.unwrap();
    assert!(observed.proxies[0].trusts.is_empty());
    web.nack(&response, &["ALL"], "never");
    world.events.until("never").await;
    let observed = world.server.observe("default").await.unwrap();
    assert!(observed.proxies[0].trusts.is_empty());
    world.stop().await;
}

#[derive(Debug)]
struct Panicking;

impl SdsObserver for Panicking {
    fn observe(&self, _: &SdsEvent<'_>) {
        panic!("a mistake of an observer");
    }
}

#[tokio::test]
async fn an_observer_that_panics_harms_nobody() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let server = SdsServer::builder(world.manager.clone(), by_node)
        .with_observer(Arc::new(Panicking))
        .build();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sds.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve_unix(listener, std::future::pending()).await }
    });
    let mut web = Sotw::open(crate::world::connect(&socket).await, "web");
    take(&mut web, &["default", "ALL"]).await;
    serving.abort();
    world.stop().await;
}

#[tokio::test]
async fn what_a_mesh_identity_issued_is_its_proxys_when_that_is_gone() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    take(&mut web, &[KRI, "ALL"]).await;
    let nowhere = "{type: Secret, secretRef: {kind: Secret, name: nowhere}}";
    let next = MODERN.replace("name: everyone", "name: next").replace(
        "autogenerate: {enabled: true}",
        &format!("ca: {{certificate: {nowhere}, privateKey: {nowhere}}}"),
    );
    world.apply(&next).await;
    drop(web);
    // Envoy is restarted with the listener that it had, and the CA that is to come is not there.
    let mut web = world.delta("web").await;
    web.subscribe(&[KRI]);
    let response = web.next().await;
    assert_eq!(response.removed_resources, Vec::<String>::new());
    assert_eq!(response.resources[0].name, KRI);
    world.stop().await;
}

/// What a server says to a request that is none of gRPC.
async fn status_of(world: &World, method: &str, kind: Option<&str>) -> u16 {
    let mut channel = world.channel().await.ready_oneshot().await.unwrap();
    let mut request = Request::builder().method(method);
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let uri = "http://sds/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
    let request = request.uri(uri).body(Body::empty()).unwrap();
    channel.call(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn what_is_not_grpc_is_not_served() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    for (method, kind, wanted) in [
        ("GET", Some("application/grpc"), 405),
        ("POST", Some("text/plain"), 415),
        ("POST", None, 415),
    ] {
        assert_eq!(
            status_of(&world, method, kind).await,
            wanted,
            "{method} {kind:?}"
        );
    }
    world.stop().await;
}

#[tokio::test]
async fn a_stranger_does_not_keep_a_connection_by_asking_for_anything() {
    let mut options = SdsOptions::default();
    options.first_request = Duration::from_millis(200);
    options.authentication = Duration::from_millis(200);
    options.max_connections = 1;
    let world = World::new(MODERN, options).await;
    let mut stranger = world.channel().await.ready_oneshot().await.unwrap();
    let request = Request::builder().method("POST").uri("http://sds/nothing");
    let request = request.header("content-type", "application/grpc");
    let answer = stranger.call(request.body(Body::empty()).unwrap()).await;
    assert!(answer.is_ok());
    let mut refused = world.sotw("stranger/web").await;
    let mut web = world.sotw("web").await;
    web.ask(&["default"]);
    web.next().await;
    drop((stranger, refused.message()));
    world.stop().await;
}

#[tokio::test]
async fn the_audit_is_not_flooded_by_one_stream_and_knows_why_it_ended() {
    let mut options = SdsOptions::default();
    options.max_request = 8_000;
    let world = World::new(MODERN, options).await;
    let mut web = world.delta("web").await;
    let names = |round: usize| (0..99).map(move |it| format!("{round}-{it}")).collect();
    for round in 1..20 {
        web.send(DeltaDiscoveryRequest {
            resource_names_subscribe: names(round),
            resource_names_unsubscribe: names(round - 1),
            ..DeltaDiscoveryRequest::default()
        });
    }
    web.subscribe(&[&"n".repeat(9_000)]);
    let status = loop {
        if let Err(status) = web.message().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    world
        .events
        .until("is ended: Error, decoded message length too large")
        .await;
    let all = world.events.all();
    let foreign = all.iter().filter(|it| it.contains("not its own")).count();
    assert_eq!(foreign, 20);
    world.until_nobody_is_connected().await;
    world.stop().await;
}

#[tokio::test]
async fn what_a_proxy_gives_up_is_not_waited_for() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let channel = world.channel().await;
    let mut one = Sotw::open(channel.clone(), "web");
    take(&mut one, &["ALL", "default"]).await;
    // On the same connection, as Envoy does.
    let mut two = Sotw::open(channel, "web");
    take(&mut two, &["system_trust_bundle"]).await;
    world.apply(&rotated()).await;
    let late = two.next().await;
    let next = one.next().await;
    one.ack(&next, &["ALL", "default"]);
    one.quiet(Duration::from_millis(300)).await;
    // Its listener is removed, and with that what everybody waited for.
    drop((two, late));
    one.next().await;
    world.stop().await;
}

/// Node metadata of so many bytes.
fn metadata(bytes: usize) -> Struct {
    let kind = Some(Kind::StringValue("x".repeat(bytes)));
    Struct {
        fields: HashMap::from([("labels".to_owned(), Value { kind })]),
    }
}

/// Asks for the identity with this much metadata of the node.
fn with_metadata(name: &str, bytes: usize) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node {
            metadata: Some(metadata(bytes)),
            ..node(name)
        }),
        resource_names: vec!["default".to_owned()],
        ..DiscoveryRequest::default()
    }
}

/// A client of HTTP/2 that decides itself in which order it sends.
struct Frames {
    socket: UnixStream,
    /// How much data it may send on the connection.
    window: usize,
    /// The streams on which data came.
    answered: BTreeSet<u32>,
}

impl Frames {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;

    async fn connect(socket: &Path) -> Self {
        let mut socket = UnixStream::connect(socket).await.unwrap();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        socket.write_all(preface).await.unwrap();
        let mut it = Self {
            socket,
            window: 65_535,
            answered: BTreeSet::new(),
        };
        it.send(Self::SETTINGS, 0, 0, &[]).await;
        // All answers find room.
        let more = (16_u32 << 20).to_be_bytes();
        it.send(Self::WINDOW_UPDATE, 0, 0, &more).await;
        it
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        frame.extend_from_slice(payload);
        self.socket.write_all(&frame).await.unwrap();
    }

    async fn open(&mut self, stream: u32) {
        const END_HEADERS: u8 = 4;
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "sds"),
            (
                ":path",
                "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            ),
            ("content-type", "application/grpc"),
        ] {
            // A literal without indexing (RFC 7541 §6.2.2).
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.send(Self::HEADERS, END_HEADERS, stream, &block).await;
    }

    /// Waits for something of the server.
    async fn hear(&mut self) {
        let mut head = [0; 9];
        let read = self.socket.read_exact(&mut head);
        timeout(SOON, read).await.expect("stuck").unwrap();
        let [a, b, c, kind, _, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.socket.read_exact(&mut payload).await.unwrap();
        match (kind, u32::from_be_bytes(stream)) {
            (Self::DATA, stream) => drop(self.answered.insert(stream)),
            (Self::WINDOW_UPDATE, 0) => {
                let more = u32::from_be_bytes(payload.try_into().unwrap());
                self.window += usize::try_from(more).unwrap();
            }
            _ => {}
        }
    }
}

/// Sends a frame of each stream in turn, so that more requests have begun than there is room for before one is whole.
#[tokio::test]
async fn a_client_that_sends_its_streams_in_turns_is_served_on_all() {
    for (streams, bytes) in [(10, 94_000), (100, 60_000)] {
        let world = World::new(MODERN, SdsOptions::default()).await;
        let message = with_metadata("web", bytes).encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let message = [&[0], &length[..], &message].concat();
        let mut client = Frames::connect(&world.socket).await;
        let streams: Vec<u32> = (0..streams).map(|it| 2 * it + 1).collect();
        for &stream in &streams {
            client.open(stream).await;
        }
        for part in message.chunks(16_000) {
            for &stream in &streams {
                while client.window < part.len() {
                    client.hear().await;
                }
                client.window -= part.len();
                client.send(Frames::DATA, 0, stream, part).await;
            }
        }
        while client.answered.len() < streams.len() {
            client.hear().await;
        }
        let all = world.events.all();
        assert!(!all.iter().any(|it| it.contains("refused")), "{all:#?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn a_first_request_that_is_too_long_is_refused_with_what_to_do() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    web.send(with_metadata("web", 140_000));
    let status = web.message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let said = status.message();
    assert!(said.starts_with("the first request has 1400"), "{said}");
    assert!(said.contains("131072 before it is proven"), "{said}");
    assert!(said.ends_with("raise `max_first_request`"), "{said}");
    world.events.until("raise `max_first_request`").await;

    // On a connection that is proven it may be longer.
    let channel = world.channel().await;
    let mut web = Sotw::open(channel.clone(), "web");
    take(&mut web, &["default"]).await;
    let mut second = Sotw::open(channel, "web");
    second.send(with_metadata("web", 200_000));
    second.next().await;
    world.stop().await;
}

/// What one proxy refuses is its own affair: it falls back to the trust that it accepted last, also when it is restarted, and the others move.
#[tokio::test]
async fn who_refuses_trust_keeps_what_it_accepted_last() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut steady = world.sotw("steady").await;
    take(&mut steady, &["ALL"]).await;
    let mut web = world.sotw("web").await;
    let names = ["ALL", "default"];
    let before = take(&mut web, &names).await;
    // There is another root, which its CA does not use.
    world.apply(&with_root("partner.example")).await;
    let response = steady.next().await;
    steady.ack(&response, &["ALL"]);
    let refused = web.next().await;
    web.nack(&refused, &names, "cannot read partner.example");
    world.events.until("cannot read partner.example").await;
    let event = "default/web refuses version";
    assert!(
        world
            .managers
            .until(event)
            .await
            .contains("keeps what it had")
    );
    web.quiet(Duration::from_millis(200)).await;
    drop(web);
    world
        .events
        .until("a stream of the proxy `web` of the mesh `default` has ended")
        .await;

    // It may take it now. If not, it is not left without any.
    let mut web = world.sotw("web").await;
    web.ask(&names);
    let again = web.next().await;
    assert_eq!(again.resources, refused.resources);
    web.nack(&again, &names, "still not");
    let after = web.next().await;
    let of_after: HashMap<_, _> = secrets(&after.resources).into_iter().collect();
    assert_eq!(of_after, before.into_iter().collect());
    let before = of_after;
    web.ack(&after, &names);
    web.quiet(Duration::from_millis(200)).await;
    assert_ne!(secrets(&refused.resources)[0].1, before["ALL"]);
    // Another one, and anything new, come as ever.
    let mut other = world.sotw("other").await;
    let of_others = take(&mut other, &["ALL"]).await;
    assert_ne!(of_others["ALL"], before["ALL"]);
    world.apply(&with_root("another.example")).await;
    let next = web.next().await;
    let next: HashMap<_, _> = secrets(&next.resources).into_iter().collect();
    assert_ne!(next["ALL"], before["ALL"]);
    assert!(
        !world
            .managers
            .all()
            .iter()
            .any(|it| it.contains("several owners"))
    );
    world.stop().await;
}
