//! What becomes of sessions and connections when an identity is renewed, and which TLS is spoken.

use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use meshca_core::resource::{Resource, TlsVersion};
use meshca_core::spiffe::Workload;
use meshca_core::{Clock, ErrorKind, KeyType};
use meshca_identity::rustls023::{PeerPolicy, PeerRule, Settings};
use meshca_identity::tls::{Proxy, TlsPolicy};
use meshca_identity::{Credentials, MeshResources};
use meshca_testkit::FakeClock;
use rustls::crypto::{CryptoProvider, KeyProvider};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, ProtocolVersion, ServerConfig, SignatureAlgorithm,
};
use tokio::sync::watch;

/// Neither side can be talked into a resumed session, which would skip the certificates.
#[tokio::test]
async fn nobody_resumes() {
    let (before, after, clock) = (ca("before"), ca("after"), FakeClock::new());
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let old = own(&before, "spiffe://example.org/ours");
    let new = own(&after, "spiffe://example.org/ours");
    for version in [&TLS12, &TLS13] {
        let peer = shown(&before, workload("spiffe://example.org/web"), clock.now());
        let stock_client = stock_client(Some(peer.clone()), &[version]);
        let stock_server = stock_server(peer, &[version]);

        // That they do resume among themselves is what makes the rest of this test mean something.
        let kinds = [HandshakeKind::Full, HandshakeKind::Resumed];
        for expected in kinds {
            let (client, server) = shake(&stock_client, &stock_server).await.both();
            assert_eq!((client.kind, server.kind), (expected, expected));
        }

        let server = settings.server_config(&old).unwrap();
        for _ in 0..3 {
            let (client, server) = shake(&stock_client, &server).await.both();
            let full = (HandshakeKind::Full, HandshakeKind::Full);
            assert_eq!((client.kind, server.kind), full, "{version:?}");
        }
        // The root of that client is believed no longer: whatever it kept does not help.
        let server = settings.server_config(&new).unwrap();
        let refused = shake(&stock_client, &server).await.refused_by_server();
        assert_eq!(refused.0, PeerRule::Path, "{version:?}");

        let client = settings.client_config(&old).unwrap();
        for _ in 0..3 {
            let (client, server) = shake(&client, &stock_server).await.both();
            let full = (HandshakeKind::Full, HandshakeKind::Full);
            assert_eq!((client.kind, server.kind), full, "{version:?}");
        }
        let client = settings.client_config(&new).unwrap();
        let refused = shake(&client, &stock_server).await.refused_by_client();
        assert_eq!(refused.0, PeerRule::Path, "{version:?}");
    }
}

/// In place, where rustls cannot tell one generation from the next.
#[tokio::test]
async fn nobody_resumes_where_credentials_change_in_place() {
    let (before, after, clock) = (ca("before"), ca("after"), FakeClock::new());
    let (sender, source) = watch::channel(Some(own(&before, "spiffe://example.org/ours")));
    let live = settings(PeerPolicy::SameDomain, &clock)
        .follow_in_place(source)
        .await
        .unwrap();
    let peer = shown(&before, workload("spiffe://example.org/web"), clock.now());
    let stock_client = stock_client(Some(peer.clone()), &[&TLS12, &TLS13]);
    let stock_server = stock_server(peer, &[&TLS12, &TLS13]);
    let (server, client) = (live.server(), live.client());
    for _ in 0..2 {
        let (end, _) = shake(&stock_client, &server).await.both();
        assert_eq!(end.kind, HandshakeKind::Full);
        let (end, _) = shake(&client, &stock_server).await.both();
        assert_eq!(end.kind, HandshakeKind::Full);
    }
    sender.send_replace(Some(own(&after, "spiffe://example.org/ours")));
    until(async || {
        shake(&client, &server)
            .await
            .client
            .is_ok_and(|it| it.peer.is_some())
    })
    .await;
    until(async || shake(&stock_client, &server).await.server.is_err()).await;
    let refused = shake(&stock_client, &server).await.refused_by_server();
    assert_eq!(refused.0, PeerRule::Path);
    let refused = shake(&client, &stock_server).await.refused_by_client();
    assert_eq!(refused.0, PeerRule::Path);
}

/// A task of its own has to see a change: asks again until it has, and leaves the waiting to the test runner.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    while !holds().await {
        tokio::task::yield_now().await;
    }
}

async fn next<T: Clone>(receiver: &mut watch::Receiver<T>) -> T {
    receiver.changed().await.unwrap();
    receiver.borrow_and_update().clone()
}

#[tokio::test]
async fn every_generation_has_its_configurations_and_old_connections_go_on() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let (sender, source) = watch::channel(None);
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let follow = tokio::spawn(settings.clone().follow(source));
    sender.send_replace(Some(own(&root, "spiffe://example.org/one")));
    let tls = follow.await.unwrap().unwrap();
    let (mut clients, mut servers) = (tls.watch_client(), tls.watch_server());

    let peer = own(&root, "spiffe://example.org/peer");
    let (peer_client, peer_server) = (
        settings.client_config(&peer).unwrap(),
        settings.server_config(&peer).unwrap(),
    );
    let mut connections = Vec::new();
    let names = ["one", "two", "three"].map(|name| format!("spiffe://example.org/{name}"));
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            sender.send_replace(Some(own(&root, name)));
            next(&mut clients).await;
            next(&mut servers).await;
        }
        for (client, server) in [
            (tls.client(), peer_server.clone()),
            (peer_client.clone(), tls.server()),
        ] {
            let (client, server) = shake(&client, &server).await.both();
            let seen = [client.peer.clone().unwrap(), server.peer.clone().unwrap()];
            assert!(seen.contains(&id(name)), "{seen:?}");
            connections.push((client.stream, server.stream));
        }
    }
    for (client, server) in &mut connections {
        talk(client, server).await;
    }
    assert!(tls.last_error().is_none());

    // Without a source, the last generation stays.
    drop(sender);
    assert!(clients.changed().await.is_err());
    let (client, _) = shake(&peer_client, &tls.server()).await.both();
    assert_eq!(client.peer, Some(id(&names[2])));
}

#[tokio::test]
async fn new_roots_reach_the_verifier_and_removed_ones_leave_it() {
    let (before, after, clock) = (ca("before"), ca("after"), FakeClock::new());
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let name = "spiffe://example.org/ours";
    let (sender, source) = watch::channel(Some(own(&before, name)));
    let tls = settings.follow(source).await.unwrap();
    let mut servers = tls.watch_server();
    let stock = |ca| {
        let peer = shown(ca, workload("spiffe://example.org/web"), clock.now());
        stock_client(Some(peer), &[&TLS13])
    };
    let (old, new) = (stock(&before), stock(&after));
    let both = trust(&[("example.org", &before), ("example.org", &after)]);
    let steps = [
        (None, (true, false)),
        (Some(credentials(&before, name, both.clone())), (true, true)),
        (Some(credentials(&after, name, both)), (true, true)),
        (Some(own(&after, name)), (false, true)),
    ];
    for (step, expected) in steps {
        if let Some(credentials) = step {
            sender.send_replace(Some(credentials));
            next(&mut servers).await;
        }
        let server = tls.server();
        let let_in = (
            shake(&old, &server).await.server.is_ok(),
            shake(&new, &server).await.server.is_ok(),
        );
        assert_eq!(let_in, expected);
    }
}

/// A provider that cannot use keys of a kind, as one of a certified module might.
#[derive(Debug)]
struct NoRsa;

impl KeyProvider for NoRsa {
    fn load_private_key(
        &self,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        let key = provider().key_provider.load_private_key(key)?;
        match key.algorithm() {
            SignatureAlgorithm::RSA => Err(rustls::Error::General("no RSA".to_owned())),
            _ => Ok(key),
        }
    }
}

fn without_rsa(clock: &FakeClock) -> Settings {
    let provider = CryptoProvider {
        key_provider: &NoRsa,
        ..(*provider()).clone()
    };
    Settings::new(
        PeerPolicy::SameDomain,
        Arc::new(provider),
        Arc::new(clock.clone()),
    )
}

#[tokio::test]
async fn a_generation_that_cannot_be_used_leaves_the_one_before() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let good = own(&root, "spiffe://example.org/good");
    let better = own(&root, "spiffe://example.org/better");
    let bad = with_key(&root, "spiffe://example.org/bad", KeyType::Rsa2048);
    let settings = without_rsa(&clock);
    let peer = own(&root, "spiffe://example.org/peer");
    let peer = settings.client_config(&peer).unwrap();
    let serves = async |config: Arc<ServerConfig>| {
        let (client, _) = shake(&peer, &config).await.both();
        client.peer.unwrap().path().to_owned()
    };

    let (sender, source) = watch::channel(Some(good.clone()));
    let tls = settings.clone().follow(source.clone()).await.unwrap();
    let live = settings.clone().follow_in_place(source).await.unwrap();
    let (mut errors, mut live_errors) = (tls.watch_last_error(), live.watch_last_error());
    sender.send_replace(Some(bad.clone()));
    for errors in [&mut errors, &mut live_errors] {
        let error = next(errors).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(
            error.to_string(),
            "the crypto provider cannot use the key of the identity (spiffe id: spiffe://example.org/bad)"
        );
    }
    assert_eq!(serves(tls.server()).await, "/good");
    assert_eq!(serves(live.server()).await, "/good");

    // Nothing at all leaves it as well, and what comes next is used.
    sender.send_replace(None);
    tokio::task::yield_now().await;
    assert_eq!(serves(tls.server()).await, "/good");
    sender.send_replace(Some(better));
    for errors in [&mut errors, &mut live_errors] {
        assert!(next(errors).await.is_none());
    }
    assert_eq!(serves(tls.server()).await, "/better");
    assert_eq!(serves(live.server()).await, "/better");
    assert!(tls.last_error().is_none() && live.last_error().is_none());

    // There is nothing to go back to at the beginning.
    let (_sender, source) = watch::channel(Some(bad));
    let error = settings.follow(source).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn the_task_ends_when_nobody_is_left() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let (sender, source) = watch::channel(Some(own(&root, "spiffe://example.org/ours")));
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let tls = settings.clone().follow(source.clone()).await.unwrap();
    let mut servers = tls.watch_server();
    drop(tls);
    drop(source);
    // One receiver is enough to go on.
    sender.send_replace(Some(own(&root, "spiffe://example.org/ours")));
    next(&mut servers).await;
    drop(servers);
    sender.closed().await;

    let live = settings
        .clone()
        .follow_in_place(sender.subscribe())
        .await
        .unwrap();
    let server = live.server();
    drop(live);
    sender.send_replace(Some(own(&root, "spiffe://example.org/ours")));
    until(async || sender.receiver_count() == 1).await;
    drop(server);
    until(async || {
        sender.send_replace(Some(own(&root, "spiffe://example.org/ours")));
        tokio::task::yield_now().await;
        sender.receiver_count() == 0
    })
    .await;

    // A source that ends before it begins.
    let (sender, source) = watch::channel(None::<Credentials>);
    drop(sender);
    let error = settings.follow(source).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// From a MeshTLS to what is spoken: versions, ciphers; a peer that can do other things only is refused.
#[tokio::test]
async fn the_tls_policy_is_spoken() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let ours = own(&root, "spiffe://example.org/ours");
    let peer = shown(&root, workload("spiffe://example.org/web"), clock.now());
    let tls = |text: &str| {
        let text = format!(
            "{{type: Mesh, name: default}}\n---\n{{type: MeshTLS, name: t, mesh: default, spec: {{rules: [{{default: {{{text}}}}}]}}}}"
        );
        let resources = MeshResources::from_resources(Resource::parse(text).unwrap()).unwrap();
        TlsPolicy::resolve(&resources, &Proxy::new("web-1", Workload::new())).unwrap()
    };
    let (v12, v13) = (ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3);
    let aes256 = "tlsCiphers: [ECDHE-RSA-AES256-GCM-SHA384, ECDHE-ECDSA-AES256-GCM-SHA384]";
    // What a peer speaks that can do both, 1.2 only, 1.3 only.
    let cases = [
        ("mode: Strict".to_owned(), [Some(v13), Some(v12), Some(v13)]),
        (
            "tlsVersion: {min: TLS10}".to_owned(),
            [Some(v13), Some(v12), Some(v13)],
        ),
        (
            "tlsVersion: {min: TLSAuto, max: TLSAuto}".to_owned(),
            [Some(v13), Some(v12), Some(v13)],
        ),
        (
            "tlsVersion: {max: TLS12}".to_owned(),
            [Some(v12), Some(v12), None],
        ),
        (
            "tlsVersion: {min: TLS12, max: TLS12}".to_owned(),
            [Some(v12), Some(v12), None],
        ),
        (
            "tlsVersion: {min: TLS13}".to_owned(),
            [Some(v13), None, Some(v13)],
        ),
        (aes256.to_owned(), [Some(v13), Some(v12), Some(v13)]),
        // No cipher of 1.2 fits the key.
        (
            "tlsCiphers: [ECDHE-RSA-AES256-GCM-SHA384]".to_owned(),
            [Some(v13), None, Some(v13)],
        ),
    ];
    for (text, expected) in cases {
        let settings = settings(PeerPolicy::SameDomain, &clock)
            .with_tls_policy(&tls(&text))
            .unwrap();
        let (client, server) = (
            settings.client_config(&ours).unwrap(),
            settings.server_config(&ours).unwrap(),
        );
        for (versions, expected) in [&[&TLS12, &TLS13][..], &[&TLS12], &[&TLS13]]
            .iter()
            .zip(expected)
        {
            let outcomes = [
                shake(&stock_client(Some(peer.clone()), versions), &server).await,
                shake(&client, &stock_server(peer.clone(), versions)).await,
            ];
            for outcome in outcomes {
                let spoken = outcome.client.as_ref().map(|it| it.version).ok();
                assert_eq!(spoken, expected, "{text} {versions:?} {outcome:?}");
                if spoken == Some(v12) && text == aes256 {
                    let suite = outcome.client.unwrap().suite;
                    assert_eq!(suite, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384);
                }
            }
        }
    }

    let error = settings(PeerPolicy::SameDomain, &clock)
        .with_tls_policy(&tls("tlsVersion: {max: TLS11}"))
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (
            ErrorKind::Unsupported,
            "rustls has TLS 1.2 and 1.3 only, and `max` is TLS11 by the MeshTLS `t`"
        )
    );
    let mut policy = tls("tlsCiphers: [ECDHE-ECDSA-CHACHA20-POLY1305]");
    let gcm_only = CryptoProvider {
        cipher_suites: rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
            .iter()
            .copied()
            .filter(|suite| !format!("{:?}", suite.suite()).contains("CHACHA"))
            .collect(),
        ..(*provider()).clone()
    };
    let gcm_only = || {
        let provider = Arc::new(gcm_only.clone());
        Settings::new(PeerPolicy::SameDomain, provider, Arc::new(clock.clone()))
    };
    let error = gcm_only().with_tls_policy(&policy).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the crypto provider has none of the ciphers ECDHE-ECDSA-CHACHA20-POLY1305 by the MeshTLS `t`; \
         allow others, or set `tlsVersion.min` to `TLS13`"
    );
    policy.min_version.value = TlsVersion::Tls13;
    gcm_only().with_tls_policy(&policy).unwrap();
}

/// Nothing here may read a default of the process, which another library may have set.
#[tokio::test]
async fn the_default_of_the_process_does_not_count() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let nothing = CryptoProvider {
        cipher_suites: Vec::new(),
        ..(*provider()).clone()
    };
    nothing.install_default().unwrap();
    let ours = own(&root, "spiffe://example.org/ours");
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let (client, server): (Arc<ClientConfig>, Arc<ServerConfig>) = (
        settings.client_config(&ours).unwrap(),
        settings.server_config(&ours).unwrap(),
    );
    shake(&client, &server).await.both();
}

/// A clock that is ahead lets nobody in whom the others' clocks would refuse, and needs no help of the system's clock.
#[tokio::test]
async fn time_is_that_of_the_clock() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let ours = own(&root, "spiffe://example.org/ours");
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let (client, server) = (
        settings.client_config(&ours).unwrap(),
        settings.server_config(&ours).unwrap(),
    );
    shake(&client, &server).await.both();
    // The same configurations, when their own certificates have run out.
    clock.advance(Duration::from_secs(25 * 3600));
    let refused = shake(&client, &server).await.refused_by_client();
    assert_eq!(refused.0, PeerRule::Validity);
}

#[test]
fn nothing_prints_a_key() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let ours = own(&root, "spiffe://example.org/ours");
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let key = ours.identity.key().expose_pkcs8().unwrap();
    let bytes = format!("{:?}", &key.expose()[key.expose().len() - 8..]);
    let hex: String = key
        .expose()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let shown = format!(
        "{settings:?} {:?} {:?} {:?} {ours:?}",
        settings.client_config(&ours).unwrap(),
        settings.server_config(&ours).unwrap(),
        settings.verifier(&ours).unwrap()
    );
    let bytes = bytes.trim_matches(['[', ']']);
    assert!(!shown.contains(bytes) && !shown.contains(&hex[hex.len() - 16..]));
    assert!(shown.contains("spiffe://example.org/ours"));
}
