//! Go's `crypto/tls` as the other end of our configurations for rustls.

use std::sync::Arc;

use meshca::identity::rustls023::{PeerPolicy, Settings};
use meshca::identity::{Credentials, TrustBundles};
use meshca::{
    CertificateRequest, CertificateSpec, Identity, PrivateKey, SignedChain, SpiffeId, SystemClock,
    TrustDomain,
};
use meshca_testkit::pki::TestCa;
use rustls::NamedGroup;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{ask, readers};

fn identity() -> (Arc<Identity>, TrustBundles) {
    let now = meshca::Clock::now(&meshca::SystemClock::new());
    let domain = TrustDomain::new("example.org").unwrap();
    let root = TestCa::root("root", now).unwrap();
    let key = PrivateKey::generate(meshca::KeyType::P256).unwrap();
    let id = SpiffeId::new("spiffe://example.org/web").unwrap();
    let request = CertificateRequest::for_key(CertificateSpec::workload(id), &key, now).unwrap();
    let chain = SignedChain::new([root.sign(&request, now).unwrap()]);
    let bundle = root.bundle(domain).unwrap();
    let issued = chain.verify(&request, &bundle, now).unwrap();
    let mut trust = TrustBundles::new();
    trust.add(&bundle).unwrap();
    (Arc::new(Identity::new(issued, key).unwrap()), trust)
}

/// Both ends say which group they agreed on, whichever of them is the server and in whatever order the
/// provider has its groups.
#[tokio::test]
async fn go_and_we_agree_on_the_post_quantum_group() {
    let Some(go) = readers() else { return };
    let (identity, trust) = identity();
    let credentials = Credentials::new(Arc::clone(&identity), trust);
    let own = rustls::crypto::aws_lc_rs::default_provider();
    let without = CryptoProvider {
        kx_groups: { own.kx_groups.iter() }
            .copied()
            .filter(|group| group.name() != NamedGroup::X25519MLKEM768)
            .collect(),
        ..own.clone()
    };
    for (provider, expected) in [(own, "X25519MLKEM768"), (without, "X25519")] {
        let clock = Arc::new(SystemClock::new());
        let settings = Settings::new(PeerPolicy::SameDomain, Arc::new(provider), clock);
        for go_serves in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let question = json!({
                "ask": "handshake",
                "text": listener.local_addr().unwrap().to_string(),
                "server": go_serves,
                "chain": identity.chain_pem(),
                "key": identity.expose_key_pem().unwrap().expose_str().unwrap(),
                "roots": meshca_testkit::pki::to_pem(identity.certificate().root().der()),
            });
            let theirs = tokio::task::spawn_blocking(move || ask(go, &[question]).remove(0));
            let (tcp, _) = listener.accept().await.unwrap();
            let group = if go_serves {
                let config = settings.client_config(&credentials).unwrap();
                let name = ServerName::try_from("not-looked-at.example").unwrap();
                let connector = TlsConnector::from(config);
                let mut tls = connector.connect(name, tcp).await.unwrap();
                tls.write_all(b"!").await.unwrap();
                tls.get_ref().1.negotiated_key_exchange_group()
            } else {
                let config = settings.server_config(&credentials).unwrap();
                let mut tls = TlsAcceptor::from(config).accept(tcp).await.unwrap();
                tls.write_all(b"!").await.unwrap();
                tls.get_ref().1.negotiated_key_exchange_group()
            };
            let ours = group.unwrap().name();
            let theirs = theirs.await.unwrap().unwrap();
            assert_eq!(format!("{ours:?}"), expected, "Go serves: {go_serves}");
            assert_eq!(theirs["group"], expected, "Go serves: {go_serves}");
            assert_eq!(theirs["version"], "TLS 1.3");
        }
    }
}
