//! The server over TLS: who shows which certificate gets which identity.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use meshca_core::spiffe::Workload;
use meshca_core::{CertificateSpec, Clock, Issuer, IssuingCa, SpiffeId, SystemClock, TrustDomain};
use meshca_identity::rustls023::{PeerPolicy, Settings};
use meshca_identity::{Credentials, TrustBundles};
use meshca_testkit::FaultyIssuer;
use meshca_xds::{Attested, Caller, SdsOptions, SdsServer};
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::world::{MODERN, SOON, Sotw, World};

/// The CA of what proxies are born with.
struct Bootstrap {
    ca: IssuingCa<FaultyIssuer>,
    clock: Arc<dyn Clock>,
}

impl Bootstrap {
    fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let domain = TrustDomain::new("bootstrap").unwrap();
        let ca = IssuingCa::new(FaultyIssuer::new(domain, Arc::clone(&clock)).unwrap());
        Self { ca, clock }
    }

    async fn credentials(&self, name: &str) -> Credentials {
        let id = SpiffeId::new(format!("spiffe://bootstrap/{name}")).unwrap();
        let spec = CertificateSpec::workload(id);
        let identity = self.ca.issue(&spec, &*self.clock).await.unwrap();
        let mut trust = TrustBundles::new();
        trust.add(&self.ca.trust_bundle().await.unwrap()).unwrap();
        Credentials::new(identity, trust)
    }

    fn settings(&self) -> Settings {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Settings::new(PeerPolicy::SameDomain, provider, Arc::clone(&self.clock)).with_alpn(["h2"])
    }

    async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> Result<Channel, tonic::transport::Error> {
        let tls = self
            .settings()
            .client_config(&self.credentials(name).await)
            .unwrap();
        let connector = tower::service_fn(move |_| {
            let tls = TlsConnector::from(Arc::clone(&tls));
            async move {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from("control-plane").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
            }
        });
        Endpoint::from_static("http://control-plane")
            .connect_with_connector(connector)
            .await
    }
}

/// The last part of the SPIFFE ID that was shown is the name of the proxy.
fn by_certificate(caller: &Caller<'_>) -> meshca_core::Result<Attested> {
    let id = caller.spiffe_id()?;
    let name = id.path().trim_start_matches('/');
    assert!(
        caller
            .remote_address()
            .is_some_and(|it| it.ip().is_loopback())
    );
    Ok(Attested::new(
        "default",
        name,
        Workload::new().with_label("kuma.io/workload", name),
    ))
}

#[tokio::test]
async fn the_certificate_says_who_it_is_and_who_dawdles_holds_up_nobody() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let bootstrap = Bootstrap::new();
    let mut options = SdsOptions::default();
    options.handshake = Duration::from_millis(500);
    let server = SdsServer::builder(world.manager.clone(), by_certificate)
        .with_options(options)
        .build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = bootstrap
        .settings()
        .server_config(&bootstrap.credentials("control-plane").await)
        .unwrap();
    let serving = tokio::spawn({
        let server = server.clone();
        async move {
            server
                .serve_tls(listener, tls, std::future::pending())
                .await
        }
    });

    // They connect and say nothing.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let channel = bootstrap.connect(address, "web").await.unwrap();
    // It calls itself another one, which is only its word.
    let mut stream = Sotw::open(channel, "api");
    stream.ask(&[
        "spiffe://example.org/workload/web",
        "spiffe://example.org/workload/api",
    ]);
    let response = stream.next().await;
    let names: Vec<_> = crate::world::secrets(&response.resources)
        .into_iter()
        .map(|it| it.0)
        .collect();
    assert_eq!(names, ["spiffe://example.org/workload/web"]);
    // The silent are hung up on.
    for mut connection in silent {
        let end = tokio::time::timeout(SOON, connection.read_u8())
            .await
            .unwrap();
        assert!(end.is_err());
    }

    // Somebody with a certificate of another CA, and somebody with none.
    let stranger = Bootstrap::new().connect(address, "web").await;
    let plain = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await;
    for channel in [stranger, plain].into_iter().flatten() {
        let mut stream = Sotw::open(channel, "web");
        stream.ask(&["default"]);
        stream.message().await.unwrap_err();
    }
    assert_eq!(server.connected(), 1);
    serving.abort();
    world.stop().await;
}

/// The time for a proof begins with the connection, whatever the options leave to its handshake.
#[tokio::test]
async fn a_handshake_is_a_part_of_the_time_for_a_proof() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let bootstrap = Bootstrap::new();
    let mut options = SdsOptions::default();
    options.handshake = 10 * SOON;
    options.first_request = Duration::from_millis(200);
    options.authentication = Duration::from_millis(200);
    let server = SdsServer::builder(world.manager.clone(), by_certificate)
        .with_options(options)
        .build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = bootstrap
        .settings()
        .server_config(&bootstrap.credentials("control-plane").await)
        .unwrap();
    let never = std::future::pending();
    let serving = tokio::spawn(async move { server.serve_tls(listener, tls, never).await });
    let mut silent = TcpStream::connect(address).await.unwrap();
    let end = tokio::time::timeout(SOON, silent.read_u8()).await.unwrap();
    assert!(end.is_err());
    serving.abort();
    world.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_waits() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut options = SdsOptions::default();
    options.max_connections = 1;
    let server = SdsServer::builder(world.manager.clone(), |caller: &Caller<'_>| {
        assert!(caller.remote_address().is_some());
        Ok(Attested::new(
            "default",
            caller.node().id.replace('/', "-"),
            Workload::new().with_label("kuma.io/workload", "x"),
        ))
    })
    .with_options(options)
    .build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve_tcp(listener, std::future::pending()).await }
    });
    let connect = async || {
        Endpoint::from_shared(address.clone())
            .unwrap()
            .connect()
            .await
            .unwrap()
    };
    let mut first = Sotw::open(connect().await, "first");
    first.ask(&["default"]);
    first.next().await;
    let mut second = Sotw::open(connect().await, "second");
    second.ask(&["default"]);
    tokio::time::timeout(Duration::from_millis(200), second.message())
        .await
        .unwrap_err();
    // What waits was given up above, so it is asked anew.
    drop((first, second));
    let mut second = Sotw::open(connect().await, "second");
    second.ask(&["default"]);
    second.next().await;
    serving.abort();
    world.stop().await;
}
