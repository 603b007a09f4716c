//! Credentials, stock peers, and handshakes over real sockets.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use meshca_core::{
    CertificateRequest, CertificateSpec, Identity, KeyType, PrivateKey, SignedChain, SpiffeId,
    TrustDomain,
};
use meshca_identity::rustls023::{PeerPolicy, PeerRule, Settings, peer_id};
use meshca_identity::{Credentials, TrustBundles};
use meshca_testenv::Credulous;
use meshca_testkit::FakeClock;
use meshca_testkit::pki::TestCa;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, CommonState, HandshakeKind, NamedGroup, ProtocolVersion,
    ServerConfig, SupportedProtocolVersion,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::new(text).unwrap()
}

pub(crate) fn ca(name: &str) -> TestCa {
    TestCa::root(name, FakeClock::start()).unwrap()
}

pub(crate) fn trust(bundles: &[(&str, &TestCa)]) -> TrustBundles {
    let mut trust = TrustBundles::new();
    for (name, ca) in bundles {
        trust.add(&ca.bundle(domain(name)).unwrap()).unwrap();
    }
    trust
}

/// A certificate and its key, sound or not.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Clone for Shown {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// What `ca` signs for the spec at `now`, without anybody looking at it.
pub(crate) fn shown(ca: &TestCa, spec: CertificateSpec, now: SystemTime) -> Shown {
    let key = PrivateKey::generate(spec.key_type()).unwrap();
    let request = CertificateRequest::for_key(spec, &key, now).unwrap();
    let mut chain = vec![ca.sign(&request, now).unwrap()];
    chain.extend(ca.intermediates().iter().cloned());
    Shown {
        chain,
        key: pkcs8(&key),
    }
}

pub(crate) fn pkcs8(key: &PrivateKey) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.expose_pkcs8().unwrap().expose().to_vec()).into()
}

pub(crate) fn workload(name: &str) -> CertificateSpec {
    CertificateSpec::workload(id(name))
}

/// A verified identity, as a manager has it.
pub(crate) fn identity(ca: &TestCa, spec: CertificateSpec, now: SystemTime) -> Identity {
    let key = PrivateKey::generate(spec.key_type()).unwrap();
    let request = CertificateRequest::for_key(spec, &key, now).unwrap();
    let mut chain = vec![ca.sign(&request, now).unwrap()];
    chain.extend(ca.intermediates().iter().cloned());
    let bundle = ca
        .bundle(request.spiffe_id().trust_domain().clone())
        .unwrap();
    let issued = SignedChain::new(chain)
        .verify(&request, &bundle, now)
        .unwrap();
    Identity::new(issued, key).unwrap()
}

pub(crate) fn credentials(ca: &TestCa, name: &str, trust: TrustBundles) -> Credentials {
    Credentials::new(identity(ca, workload(name), FakeClock::start()), trust)
}

/// Credentials of `example.org` that believe its CA alone.
pub(crate) fn own(ca: &TestCa, name: &str) -> Credentials {
    credentials(ca, name, trust(&[("example.org", ca)]))
}

pub(crate) fn with_key(ca: &TestCa, name: &str, key_type: KeyType) -> Credentials {
    let spec = workload(name).with_key_type(key_type);
    Credentials::new(
        identity(ca, spec, FakeClock::start()),
        trust(&[("example.org", ca)]),
    )
}

pub(crate) fn settings(peers: PeerPolicy, clock: &FakeClock) -> Settings {
    Settings::new(peers, provider(), Arc::new(clock.clone()))
}

/// Any TLS peer of no mesh: it believes everybody, and keeps sessions and tickets as rustls does by default.
pub(crate) fn stock_client(
    shown: Option<Shown>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Credulous::new(provider()));
    Arc::new(match shown {
        Some(Shown { chain, key }) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    })
}

pub(crate) fn stock_server(
    Shown { chain, key }: Shown,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(Credulous::new(provider()))
        .with_single_cert(chain, key)
        .unwrap();
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    Arc::new(config)
}

/// One end of a connection that stands.
#[derive(Debug)]
pub(crate) struct End<S> {
    pub(crate) peer: Option<SpiffeId>,
    pub(crate) kind: HandshakeKind,
    pub(crate) version: ProtocolVersion,
    pub(crate) suite: CipherSuite,
    /// None was agreed on where a session of TLS 1.2 is resumed.
    pub(crate) group: Option<NamedGroup>,
    pub(crate) alpn: Option<Vec<u8>>,
    pub(crate) stream: S,
}

impl<S> End<S> {
    fn of(stream: S, connection: impl FnOnce(&S) -> &CommonState) -> Self {
        let state = connection(&stream);
        Self {
            peer: peer_id(state).ok(),
            kind: state.handshake_kind().unwrap(),
            version: state.protocol_version().unwrap(),
            suite: state.negotiated_cipher_suite().unwrap().suite(),
            group: state.negotiated_key_exchange_group().map(|it| it.name()),
            alpn: state.alpn_protocol().map(<[u8]>::to_vec),
            stream,
        }
    }
}

pub(crate) type ClientEnd = End<client::TlsStream<TcpStream>>;
pub(crate) type ServerEnd = End<server::TlsStream<TcpStream>>;

/// How a handshake ended on both sides.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) client: io::Result<ClientEnd>,
    pub(crate) server: io::Result<ServerEnd>,
}

impl Outcome {
    pub(crate) fn both(self) -> (ClientEnd, ServerEnd) {
        (self.client.unwrap(), self.server.unwrap())
    }

    /// The rule by which the server refused the client; the client must have noticed.
    pub(crate) fn refused_by_server(self) -> (PeerRule, String) {
        let error = self.server.unwrap_err();
        self.client.unwrap_err();
        rule(&error)
    }

    /// The rule by which the client refused the server; the server must have noticed.
    pub(crate) fn refused_by_client(self) -> (PeerRule, String) {
        let error = self.client.unwrap_err();
        let told = self.server.unwrap_err();
        assert_eq!(PeerRule::find(&told), None, "{told}");
        rule(&error)
    }
}

fn rule(error: &io::Error) -> (PeerRule, String) {
    let rule = PeerRule::find(error);
    (rule.unwrap_or_else(|| panic!("{error}")), error.to_string())
}

/// Connects over loopback. The server greets, so that a client of TLS 1.3 learns whether it was accepted, and sees tickets.
pub(crate) async fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async {
        let (tcp, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::clone(server)).accept(tcp).await?;
        stream.write_all(b"hello").await?;
        stream.flush().await?;
        Ok(End::of(stream, |stream| stream.get_ref().1))
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("not-looked-at.example").unwrap();
        let connector = TlsConnector::from(Arc::clone(client));
        let mut stream = connector.connect(name, tcp).await?;
        stream.read_exact(&mut [0; 5]).await?;
        Ok(End::of(stream, |stream| stream.get_ref().1))
    };
    let (client, server) = tokio::join!(connect, accept);
    Outcome { client, server }
}

/// Whether a connection still carries data both ways.
pub(crate) async fn talk(
    one: &mut (impl AsyncRead + AsyncWrite + Unpin),
    other: &mut (impl AsyncRead + AsyncWrite + Unpin),
) {
    let mut buffer = [0; 4];
    one.write_all(b"ping").await.unwrap();
    one.flush().await.unwrap();
    other.read_exact(&mut buffer).await.unwrap();
    other.write_all(b"pong").await.unwrap();
    other.flush().await.unwrap();
    one.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"pong");
}
