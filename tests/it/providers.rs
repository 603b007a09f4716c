//! One live mesh that moves from CA to CA – the built-in one, Vault, cert-manager, AWS Private CA – with the real servers, while
//! its workloads talk to each other all the time: no handshake fails.

use meshca::identity::MeshResources;
use meshca::resource::Resource;
use serde_json::{Value, json};

/// One MeshIdentity for all workloads, by this provider.
fn resources(provider: &Value) -> MeshResources {
    let mesh = json!({"type": "Mesh", "name": "default"});
    let identity = json!({
        "type": "MeshIdentity", "name": "all", "mesh": "default",
        "spec": {
            "selector": {"dataplane": {"matchLabels": {}}},
            "spiffeID": {"trustDomain": "example.org"},
            "provider": provider,
        },
    });
    let text = format!("{mesh}\n---\n{identity}\n");
    MeshResources::from_resources(Resource::parse(text).unwrap()).unwrap()
}

mod vault {
    use std::sync::Arc;
    use std::time::Duration;

    use meshca::identity::select::SelectOptions;
    use meshca::identity::{Manager, ManagerOptions};
    use meshca::spiffe::{Environment, Workload};
    use meshca::{BackendRegistry, MemorySecretStore, SystemClock};
    use meshca_testenv::needs;
    use meshca_testenv::servers::Vault;
    use serde_json::json;

    use crate::issuers::vault_provider;
    use crate::providers::resources;

    /// Vault signs an intermediate, and then gets another root: workloads trust that before
    /// anything leads to it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_root_above_an_intermediate_is_trusted_before_it_is_used() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        let mut provider = vault_provider(&vault).await;
        provider["extension"]["config"]["mode"] = json!("Intermediate");
        let registry = BackendRegistry::new().with(meshca::vault::factory());
        let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        options.trust_refresh = Duration::from_secs(1);
        let (secrets, clock) = (MemorySecretStore::new(), SystemClock::new());
        let (manager, driver) = Manager::new(registry, Arc::new(secrets), Arc::new(clock), options);
        let driver = driver.spawn();
        manager.apply(resources(&provider)).await.unwrap();
        let workload = Workload::from_label_list("app=web,kuma.io/workload=web").unwrap();
        let mut handle = manager.connect("default", "web", workload).await.unwrap();
        let identity = handle.ready().await.unwrap();
        assert_eq!(identity.certificate().chain().len(), 2);

        let next = json!({"common_name": "next root", "issuer_name": "next", "key_type": "ec"});
        let next = vault.write("pki/root/rotate/internal", next).await.unwrap();
        let next = next["data"]["certificate"]
            .as_str()
            .unwrap()
            .trim()
            .to_owned();
        // Vault is asked every minute, and now.
        manager.secrets_changed();
        let published = async {
            loop {
                let trust = handle.trust();
                let bundle = trust.for_peer(identity.spiffe_id()).unwrap();
                if bundle.to_pem().contains(&next) {
                    return bundle.roots().len();
                }
                handle.changed().await.unwrap();
            }
        };
        let roots = tokio::time::timeout(Duration::from_secs(20), published);
        assert_eq!(roots.await.unwrap(), 2);
        let root = handle.identity().unwrap().certificate().root().subject();
        assert_eq!(root, "CN=vault root", "nothing leads to the next one yet");
        driver.stop().await.unwrap();
    }

    mod kube {
        mod certmanager {
            mod moto {
                use std::collections::BTreeSet;
                use std::sync::atomic::{AtomicUsize, Ordering};
                use std::sync::{Arc, Mutex};
                use std::time::Duration;

                use ::kube::Client;
                use meshca::identity::manager::{DriverTask, Health};
                use meshca::identity::rustls023::{LiveConfigs, PeerPolicy, Settings};
                use meshca::identity::select::SelectOptions;
                use meshca::identity::{Handle, Manager, ManagerOptions};
                use meshca::spiffe::{Environment, Workload};
                use meshca::{
                    BackendRegistry, MemorySecretStore, SystemClock, acm, builtin, certmanager,
                    vault,
                };
                use meshca_testenv::needs;
                use meshca_testenv::servers::{Aws, CertManager, Kube, Vault};
                use rustls_pki_types::ServerName;
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                use tokio::net::{TcpListener, TcpStream};
                use tokio::task::JoinSet;
                use tokio_rustls::{TlsAcceptor, TlsConnector};

                use crate::issuers::{
                    aws_provider, bundled, certmanager_provider, kube_client, vault_provider,
                };
                use crate::providers::resources;

                const WORKLOADS: usize = 20;
                const CONNECTIONS: usize = 200;

                /// A workload: it serves, and what it needs to call others.
                struct Proxy {
                    handle: Handle,
                    tls: LiveConfigs,
                    address: std::net::SocketAddr,
                }

                #[derive(Default)]
                struct Counts {
                    handshakes: AtomicUsize,
                    failures: Mutex<Vec<String>>,
                }

                async fn serve(tls: LiveConfigs, listener: TcpListener, counts: Arc<Counts>) {
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        let acceptor = TlsAcceptor::from(tls.server());
                        let counts = Arc::clone(&counts);
                        tokio::spawn(async move {
                            let answered = async {
                                let mut tls = acceptor.accept(tcp).await?;
                                tls.write_all(b"k").await?;
                                tls.shutdown().await
                            };
                            if let Err(error) = answered.await {
                                counts
                                    .failures
                                    .lock()
                                    .unwrap()
                                    .push(format!("server: {error}"));
                            }
                        });
                    }
                }

                async fn call(from: &Proxy, to: &Proxy, counts: &Counts) {
                    let called = async {
                        let tcp = TcpStream::connect(to.address).await?;
                        let name = ServerName::try_from("mesh.invalid").unwrap();
                        let connector = TlsConnector::from(from.tls.client());
                        let mut tls = connector.connect(name, tcp).await?;
                        let mut answer = [0];
                        tls.read_exact(&mut answer).await.map(|_| ())
                    };
                    match called.await {
                        Ok(()) => {
                            counts.handshakes.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            counts
                                .failures
                                .lock()
                                .unwrap()
                                .push(format!("client: {error}"));
                        }
                    }
                }

                fn manager(client: Client, aws: &Aws) -> (Manager, DriverTask) {
                    let registry = BackendRegistry::new()
                        .with(builtin::factory())
                        .with(vault::factory())
                        .with(certmanager::factory(client, "default", "test"))
                        .with(acm::factory().with_endpoint(aws.address()));
                    let mut options =
                        ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
                    options.acknowledgements = true;
                    options.trust_refresh = Duration::from_secs(2);
                    let (manager, driver) = Manager::new(
                        registry,
                        Arc::new(MemorySecretStore::new()),
                        Arc::new(SystemClock::new()),
                        options,
                    );
                    (manager, driver.spawn())
                }

                #[tokio::test(flavor = "multi_thread")]
                async fn from_ca_to_ca_under_load_without_one_failed_handshake() {
                    needs!(
                        Vault::program(),
                        Kube::programs().and_then(|_| CertManager::program()),
                        Aws::program()
                    );
                    let vault_server = Vault::start().await.unwrap();
                    let kube = Kube::start().await.unwrap();
                    let _cert_manager = CertManager::start(&kube).await.unwrap();
                    let aws = Aws::start().await.unwrap();
                    let client = kube_client(&kube).await;
                    let (manager, _driver) = manager(client, &aws);

                    let stages = [
                        ("built-in", bundled()),
                        ("Vault", vault_provider(&vault_server).await),
                        ("cert-manager", certmanager_provider(&kube).await),
                        ("AWS", aws_provider(&aws).await),
                        ("built-in again", bundled()),
                    ];
                    manager.apply(resources(&stages[0].1)).await.unwrap();

                    let counts = Arc::new(Counts::default());
                    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                    let mut proxies = Vec::new();
                    for n in 0..WORKLOADS {
                        let name = format!("w-{n}");
                        let labels: Workload =
                            [("kuma.io/workload", name.as_str())].into_iter().collect();
                        // One connection to read, one that is followed: both are the same workload.
                        let handle = manager
                            .connect("default", name.clone(), labels.clone())
                            .await
                            .unwrap();
                        let followed = manager.connect("default", name, labels).await.unwrap();
                        let clock = Arc::new(SystemClock::new());
                        let settings =
                            Settings::new(PeerPolicy::SameDomain, Arc::clone(&provider), clock);
                        let tls = settings.follow_workload(followed).await.unwrap();
                        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                        let address = listener.local_addr().unwrap();
                        tokio::spawn(serve(tls.clone(), listener, Arc::clone(&counts)));
                        proxies.push(Proxy {
                            handle,
                            tls,
                            address,
                        });
                    }
                    let proxies = Arc::new(proxies);
                    let mut load = JoinSet::new();
                    for n in 0..CONNECTIONS {
                        let (proxies, counts) = (Arc::clone(&proxies), Arc::clone(&counts));
                        load.spawn(async move {
                            for round in n.. {
                                let from = &proxies[round * 7 % WORKLOADS];
                                let to = &proxies[(round * 3 + n) % WORKLOADS];
                                call(from, to, &counts).await;
                                tokio::time::sleep(Duration::from_millis(50)).await;
                            }
                        });
                    }

                    let roots = || -> BTreeSet<String> {
                        let root = |proxy: &Proxy| {
                            assert_ne!(proxy.handle.health(), Health::Expired);
                            proxy
                                .handle
                                .identity()
                                .unwrap()
                                .certificate()
                                .root()
                                .fingerprint()
                                .to_owned()
                        };
                        proxies.iter().map(root).collect()
                    };
                    let mut last = roots();
                    assert_eq!(last.len(), 1);
                    for (name, provider) in &stages[1..] {
                        let before = counts.handshakes.load(Ordering::Relaxed);
                        manager.apply(resources(provider)).await.unwrap();
                        let moved = async {
                            loop {
                                let now = roots();
                                if now.len() == 1 && now.is_disjoint(&last) {
                                    return now;
                                }
                                tokio::time::sleep(Duration::from_millis(100)).await;
                            }
                        };
                        let moved = tokio::time::timeout(Duration::from_secs(120), moved).await;
                        let status = manager.mesh("default").identity_statuses();
                        last = moved.unwrap_or_else(|_| panic!("not at {name}: {status:?}"));
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        let handshakes = counts.handshakes.load(Ordering::Relaxed) - before;
                        println!("to {name}: {handshakes} handshakes meanwhile");
                        assert!(handshakes > 100);
                    }
                    load.shutdown().await;
                    let failures = counts.failures.lock().unwrap();
                    let failed: Vec<_> = failures.iter().filter(|it| !is_cut_off(it)).collect();
                    println!(
                        "{} handshakes, {} failed",
                        counts.handshakes.load(Ordering::Relaxed),
                        failed.len()
                    );
                    assert!(failed.is_empty(), "{failed:?}");
                }

                /// Calls that were under way when the load was taken away: their servers saw the end of them.
                fn is_cut_off(failure: &str) -> bool {
                    failure.starts_with("server: ")
                        && ["eof", "reset", "Broken pipe"]
                            .iter()
                            .any(|it| failure.contains(it))
                }
            }
        }
    }
}
