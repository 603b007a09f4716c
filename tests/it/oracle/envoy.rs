//! The verdicts of a real Envoy with the validator that meshes use, of certificates that a rustls without opinions
//! shows to it: as a client of its listeners, and as the server behind its clusters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meshca_testenv::Credulous;
use meshca_testenv::servers::Envoy;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::oracle::Verdict;
use crate::oracle::cases::{Case, Plan, Shape};
use crate::oracle::others::{Sides, pem};

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certified(case: &Case) -> Arc<CertifiedKey> {
    let key = PrivatePkcs8KeyDer::from(case.plan.leaf.key.pair.serialize_der());
    let key = provider()
        .key_provider
        .load_private_key(key.into())
        .unwrap();
    Arc::new(CertifiedKey::new(case.sent.clone(), key))
}

/// The newest version of TLS that Envoy speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Newest {
    /// As in the contexts that we make.
    Tls13,
    /// As in a mesh whose policy says so.
    Tls12,
}

impl Newest {
    fn parameters(self) -> Value {
        let version = match self {
            Self::Tls13 => "TLSv1_3",
            Self::Tls12 => "TLSv1_2",
        };
        json!({"tls_maximum_protocol_version": version})
    }
}

/// What a proxy of the mesh has in its TLS contexts, with one bundle.
fn context(anchors: &[CertificateDer<'_>], newest: Newest) -> Value {
    let own = Plan::sound().build(String::new(), Shape::Direct, Vec::new());
    json!({
        "tls_params": newest.parameters(),
        "tls_certificates": [{
            "certificate_chain": {"inline_string": pem(&own.sent)},
            "private_key": {"inline_string": own.plan.leaf.key.pair.serialize_pem()},
        }],
        "validation_context": {
            "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"prefix": "spiffe://example.org/"}},
            ],
            "custom_validator_config": {
                "name": "envoy.tls.cert_validator.spiffe",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                    "trust_domains": [
                        {"name": "example.org", "trust_bundle": {"inline_string": pem(anchors)}},
                    ],
                },
            },
        },
    })
}

fn listener(path: &Path, anchors: &[CertificateDer<'_>], newest: Newest) -> Value {
    json!({
        "name": path.file_name().unwrap().to_str().unwrap(),
        "address": {"pipe": {"path": path}},
        "filter_chains": [{
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": context(anchors, newest),
                },
            },
            "filters": [{
                "name": "envoy.filters.network.echo",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo",
                },
            }],
        }],
    })
}

fn cluster(number: usize, server: &Path, anchors: &[CertificateDer<'_>], newest: Newest) -> Value {
    let name = format!("case-{number}");
    json!({
        "name": name,
        "connect_timeout": "30s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"pipe": {"path": server}}}},
            ]}],
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": format!("{name}.example.org"),
                "common_tls_context": context(anchors, newest),
            },
        },
    })
}

fn egress(path: &Path, count: usize) -> Value {
    let routes = (0..count).map(|number| {
        json!({
            "match": {"path": format!("/{number}")},
            "route": {"cluster": format!("case-{number}"), "timeout": "30s"},
        })
    });
    json!({
        "name": "egress",
        "address": {"pipe": {"path": path}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "egress",
                "route_config": {"virtual_hosts": [
                    {"name": "all", "domains": ["*"], "routes": routes.collect::<Vec<_>>()},
                ]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    },
                }],
            },
        }]}],
    })
}

fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "node": {"id": "oracle", "cluster": "oracle"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

/// Judges all cases, in their order. Their bundles must be readable.
pub(crate) async fn judge(cases: &[&Case], newest: Newest) -> Vec<Sides> {
    let folder = tempfile::tempdir().unwrap();
    let server = folder.path().join("server");
    serve(UnixListener::bind(&server).unwrap(), cases);
    let mut bundles: BTreeMap<String, (PathBuf, &[CertificateDer<'_>])> = BTreeMap::new();
    for case in cases {
        let path = folder.path().join(format!("l{}", bundles.len()));
        { bundles.entry(pem(&case.anchors)) }.or_insert((path, &case.anchors));
    }
    let out = folder.path().join("egress");
    let mut listeners: Vec<_> = { bundles.values() }
        .map(|(path, anchors)| listener(path, anchors, newest))
        .collect();
    listeners.push(egress(&out, cases.len()));
    let clusters = cases.iter().enumerate();
    let clusters = clusters.map(|(number, case)| cluster(number, &server, &case.anchors, newest));
    let bootstrap = bootstrap(&listeners, &clusters.collect::<Vec<_>>());
    let envoy = Envoy::start(&bootstrap).await.unwrap();
    envoy.until_live(SOON).await.unwrap();
    let mut verdicts = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let sides = async {
            Sides {
                client: connect(&bundles[&pem(&case.anchors)].0, case).await,
                server: call(&out, number).await,
            }
        };
        verdicts.push(tokio::time::timeout(SOON, sides).await.expect(&case.name));
    }
    verdicts
}

/// Whether Envoy starts with this bundle.
pub(crate) async fn reads(anchors: &[CertificateDer<'_>]) -> Verdict {
    let cluster = cluster(0, Path::new("/nowhere"), anchors, Newest::Tls13);
    Envoy::start(&bootstrap(&[], &[cluster]))
        .await
        .map(drop)
        .into()
}

/// Connects to a listener as a client that shows the certificates of the case.
async fn connect(listener: &Path, case: &Case) -> Verdict {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Credulous::new(provider()))
        .with_client_cert_resolver(Arc::new(Shown(certified(case))));
    config.enable_sni = false;
    let outcome = async {
        let socket = UnixStream::connect(listener).await?;
        let name = ServerName::try_from("envoy.example.org").unwrap();
        let mut tls = TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await?;
        tls.write_all(b"ok").await?;
        let mut answer = [0; 2];
        // A refusal arrives after the handshake (RFC 8446 §4.4.2.4).
        tls.read_exact(&mut answer).await.map(drop)
    };
    outcome.await.into()
}

/// Has Envoy connect to a server that shows the certificates of the case.
async fn call(egress: &Path, number: usize) -> Verdict {
    let mut socket = UnixStream::connect(egress).await.unwrap();
    let request = format!("GET /{number} HTTP/1.1\r\nhost: oracle\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    match answer.starts_with("HTTP/1.1 204") {
        true => Verdict::Accepted,
        false => Verdict::Refused(answer.lines().last().unwrap_or_default().to_owned()),
    }
}

/// Serves whoever connects, with the certificates of the case that it asks for.
fn serve(listener: UnixListener, cases: &[&Case]) {
    let all = cases.iter().map(|case| certified(case)).collect();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByNumber(all)));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut tls = acceptor.accept(socket).await?;
                let mut request = [0; 1024];
                if tls.read(&mut request).await? > 0 {
                    let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                    tls.write_all(answer).await?;
                    tls.shutdown().await?;
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
}

#[derive(Debug)]
struct ByNumber(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByNumber {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.strip_prefix("case-")?;
        let number: usize = name.split('.').next()?.parse().ok()?;
        self.0.get(number).cloned()
    }
}

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
