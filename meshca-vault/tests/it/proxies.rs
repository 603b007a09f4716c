//! Every connection goes through the proxy of the settings, and through no other.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use meshca_core::registry::{BackendConfig, BuildContext};
use meshca_core::resource::{AwsAuth, AwsAuthType, Backend, Provider, VaultAuth, VaultConf};
use meshca_core::{BackendRegistry, ErrorKind, Issuer};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_vault::VaultSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::*;

/// An HTTP proxy that makes every tunnel lead to one place, so that names need not be known.
struct Proxy {
    address: SocketAddr,
    /// What it was asked to connect to.
    asked: Arc<Mutex<Vec<String>>>,
    _task: tokio::task::JoinSet<()>,
}

impl Proxy {
    async fn start(target: SocketAddr, answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut task = tokio::task::JoinSet::new();
        let log = Arc::clone(&asked);
        task.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(tunnel(client, target, answer, Arc::clone(&log)));
            }
        });
        Self {
            address,
            asked,
            _task: task,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn tunnel(
    mut client: TcpStream,
    target: SocketAddr,
    answer: &'static str,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap_or_default().to_owned();
    asked.lock().unwrap().push(line);
    let answered = format!("HTTP/1.1 {answer}\r\n\r\n");
    if client.write_all(answered.as_bytes()).await.is_err() || !answer.starts_with("200") {
        return;
    }
    if let Ok(mut server) = TcpStream::connect(target).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn issuer_by(address: &str, proxy: &str) -> meshca_vault::VaultIssuer {
    let store = secrets(&[("vault-token", "hvs.token")]).await;
    let conf = VaultConf::new(address, ROLE, token_auth());
    bare(VaultSettings::new(conf, domain()).with_proxy(proxy), &store)
}

#[tokio::test]
async fn requests_go_through_the_proxy() {
    let server = CannedServer::start().await.unwrap();
    let root =
        meshca_testkit::pki::TestCa::root("Root", std::time::SystemTime::UNIX_EPOCH).unwrap();
    let proxy = Proxy::start(server.address(), "200 Connection established").await;
    for (address, asked) in [
        ("http://vault.test:8200", "CONNECT vault.test:8200 HTTP/1.1"),
        ("http://vault.test", "CONNECT vault.test:80 HTTP/1.1"),
    ] {
        let list = serde_json::json!({"data": {"keys": ["1"], "key_info": {"1": {"key_id": "k"}}}});
        server.answer(CannedResponse::json(200, list.to_string()).for_path("/v1/pki/issuers"));
        let info = serde_json::json!({"data": {"certificate": root.pem()}});
        server.answer(CannedResponse::json(200, info.to_string()).for_path("/v1/pki/issuer/1/"));
        let issuer = issuer_by(address, &proxy.url()).await;
        let bundle = issuer.trust_bundle().await.unwrap();
        assert_eq!(bundle.roots().len(), 1);
        let tunnels = proxy.asked();
        assert!(tunnels.iter().any(|line| line == asked), "{tunnels:?}");
    }
    assert!(
        server.connections() <= proxy.asked().len(),
        "none is made beside the proxy"
    );
}

#[tokio::test]
async fn a_resource_names_a_proxy_of_the_factory() {
    let factory = || {
        meshca_vault::factory()
            .with_named_proxy("egress", "http://egress.example:3128")
            .with_named_sts_endpoint("vpc", "https://sts.eu-central-1.example")
    };
    let build = async |factory: meshca_vault::VaultFactory, conf: VaultConf| {
        let backend = Backend::new("ca", Provider::new(conf));
        let registry = BackendRegistry::new().with(factory);
        let store = secrets(&[("vault-token", "hvs.token")]).await;
        let context = BuildContext::new("default", domain(), store, clock());
        registry
            .build(&BackendConfig::classic(&backend), &context)
            .await
            .map(drop)
    };
    let conf = |proxy: Option<&str>| {
        let mut conf = VaultConf::new("https://vault.example", ROLE, token_auth());
        conf.proxy = proxy.map(str::to_owned);
        conf
    };
    build(factory(), conf(None)).await.unwrap();
    build(factory(), conf(Some("egress"))).await.unwrap();
    // Its default is looked at where a resource names none.
    let broken = factory().with_proxy("nowhere");
    build(broken.clone(), conf(Some("egress"))).await.unwrap();
    let error = build(broken, conf(None)).await.unwrap_err();
    assert!(error.to_string().contains("`proxy` must be"), "{error}");
    let error = build(factory(), conf(Some("mine"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("egress"), "{error}");

    let mut sts = AwsAuth::new(AwsAuthType::Iam);
    for (endpoint, sound) in [("vpc", true), ("https://evil.example", false)] {
        sts.sts_endpoint = Some(endpoint.to_owned());
        let auth = VaultAuth::Aws(sts.clone());
        let built = build(
            factory(),
            VaultConf::new("https://vault.example", ROLE, auth),
        )
        .await;
        assert_eq!(built.is_ok(), sound, "{endpoint}: {built:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let server = CannedServer::start().await.unwrap();
    for (answer, words) in [
        (
            "407 Proxy Authentication Required",
            "authorization required",
        ),
        ("403 Forbidden", "unsuccessful"),
    ] {
        let proxy = Proxy::start(server.address(), answer).await;
        let issuer = issuer_by("https://vault.test:8200", &proxy.url()).await;
        let error = issuer.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        let expected = format!(
            "the proxy {} does not connect us to vault.test:8200",
            proxy.address
        );
        assert!(text.contains(&expected) && text.contains(words), "{text}");
    }
    let gone = Proxy::start(server.address(), "200 OK").await.url();
    let issuer = issuer_by("https://vault.test:8200", &gone).await;
    let text = issuer.check().await.unwrap_err().to_string();
    assert!(
        text.contains("cannot connect to vault.test:8200 through the proxy 127.0.0.1:"),
        "{text}"
    );
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn a_proxy_that_cannot_be_one_is_refused_at_once() {
    let store = secrets(&[]).await;
    for proxy in [
        "https://proxy.example",
        "http://me:pass@proxy.example",
        "proxy.example",
    ] {
        let conf = VaultConf::new("https://vault.example", ROLE, token_auth());
        let settings = VaultSettings::new(conf, domain()).with_proxy(proxy);
        let error = meshca_vault::VaultIssuer::new(settings, sources(&store), clock()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains("`proxy` must be"), "{error}");
        assert!(!error.to_string().contains("pass"), "{error}");
    }
}

mod vault {
    use meshca_core::resource::{DataSource, VaultTls};
    use meshca_testenv::needs;
    use meshca_testenv::servers::{Vault, VaultOptions};
    use serde_json::json;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn tls_is_with_the_server_and_not_with_the_proxy() {
        needs!(Vault::program());
        let vault = Vault::start_with(VaultOptions::new().with_tls())
            .await
            .unwrap();
        set_up(&vault, "ec").await;
        let token = token(&vault, json!({"period": "24h"})).await;
        let store = secrets(&[
            ("vault-token", &token),
            ("vault-ca", vault.ca_pem().unwrap()),
        ])
        .await;
        let proxy = Proxy::start(vault.socket_addr(), "200 OK").await;
        // No such port: what is not proxied fails.
        let mut conf = VaultConf::new("https://localhost:1", ROLE, token_auth());
        let mut tls = VaultTls::default();
        tls.ca_cert = Some(DataSource::Secret("vault-ca".to_owned()));
        conf.tls = Some(tls);
        let issuer = issuer(
            VaultSettings::new(conf, domain()).with_proxy(proxy.url()),
            &store,
        );
        assert_eq!(issuer.check().await.unwrap().warnings, [""; 0]);
        issuer.issue(&spec(), &*clock()).await.unwrap();
        assert!(
            proxy
                .asked()
                .iter()
                .all(|line| line == "CONNECT localhost:1 HTTP/1.1")
        );
    }
}
