//! Secrets in a real API server, as the service account that our RBAC makes.

mod kube {
    use std::sync::Arc;
    use std::time::Duration;

    use ::kube::Client;
    use meshca_certmanager::KubeSecretStore;
    use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
    use meshca_core::{
        ErrorKind, Expect, Issuer, IssuingCa, Retry, SecretKey, SecretStore, TrustBundle, Version,
    };
    use meshca_testenv::needs;
    use meshca_testenv::servers::Kube;
    use meshca_testkit::secret_store::{Names, assert_contract};
    use serde_json::{Value, json};

    use crate::common::*;

    fn key(name: &str) -> SecretKey {
        SecretKey::new("default", name).unwrap()
    }

    fn path(name: &str) -> String {
        format!("api/v1/namespaces/{NAMESPACE}/secrets/{name}")
    }

    async fn store(kube: &Kube) -> KubeSecretStore {
        KubeSecretStore::new(client(kube).await, NAMESPACE)
    }

    async fn text(store: &dyn SecretStore, name: &str) -> Option<String> {
        let stored = store.get(&key(name)).await.unwrap()?;
        Some(stored.value.expose_str().unwrap().to_owned())
    }

    async fn write(
        store: &dyn SecretStore,
        name: &str,
        value: &str,
        expect: Expect,
    ) -> meshca_core::Result<Version> {
        store.put(&key(name), value.into(), expect).await
    }

    /// As an operator who uses kubectl.
    async fn apply(kube: &Kube, name: &str, change: Value) {
        let mut secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "system.kuma.io/secret",
            "metadata": {"name": name, "labels": {"kuma.io/mesh": "default"}},
        });
        for (field, value) in change.as_object().unwrap() {
            secret[field] = value.clone();
        }
        let admin = kube.admin_token();
        let (code, answer) = kube
            .request(admin, "PUT", &path(name), Some(secret.clone()))
            .await
            .unwrap();
        if code == 404 {
            let list = path("").trim_end_matches('/').to_owned();
            kube.create(&list, secret).await.unwrap();
        } else {
            assert_eq!(code, 200, "{answer}");
        }
    }

    async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let wait = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("not within 20 s: {what}"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_contract() {
        needs!(Kube::programs());
        let kube = Kube::start().await.unwrap();
        set_up(&kube).await;
        let store = store(&kube).await;
        store.check().await.unwrap();
        assert_contract(&store, Names::Shared).await;
        // As Kuma writes it.
        let admin = kube.admin_token();
        let (_, secret) = kube
            .request(admin, "GET", &path("bytes"), None)
            .await
            .unwrap();
        assert_eq!(secret["type"], "system.kuma.io/secret");
        assert_eq!(
            secret["metadata"]["labels"],
            json!({"kuma.io/mesh": "default"})
        );
        assert_eq!(secret["data"].as_object().unwrap().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_an_operator_writes_is_seen_and_kept() {
        needs!(Kube::programs());
        let kube = Kube::start().await.unwrap();
        set_up(&kube).await;
        let (store, requests) = counted(&kube).await;
        apply(&kube, "token", json!({"stringData": {"value": "one"}})).await;
        assert_eq!(text(&store, "token").await.as_deref(), Some("one"));

        // Nobody asks for what is known.
        until("the watch is at work", async || {
            let before = requests();
            text(&store, "token").await;
            requests() == before
        })
        .await;
        let before = requests();
        for _ in 0..1000 {
            text(&store, "token").await;
        }
        // The watch is renewed from time to time.
        assert!(requests() - before <= 2);

        // And a change is seen without asking.
        let revision = store.revision();
        apply(&kube, "token", json!({"stringData": {"value": "two"}})).await;
        until("the change is seen", async || {
            text(&store, "token").await.as_deref() == Some("two")
        })
        .await;
        assert_ne!(store.revision(), revision);
        assert!(requests() - before <= 3);

        // One without the label is the mesh `default`'s, and what else is in it stays.
        let metadata = json!({"name": "plain", "annotations": {"note": "mine"}});
        let data = json!({"value": "one", "other": "kept"});
        apply(
            &kube,
            "plain",
            json!({"metadata": metadata, "stringData": data}),
        )
        .await;
        let stored = store.get(&key("plain")).await.unwrap().unwrap();
        let put = write(&store, "plain", "two", Expect::Version(stored.version));
        put.await.unwrap();
        let admin = kube.admin_token();
        let (_, secret) = kube
            .request(admin, "GET", &path("plain"), None)
            .await
            .unwrap();
        assert_eq!(secret["metadata"]["annotations"]["note"], "mine");
        assert_eq!(
            secret["data"],
            json!({"value": "dHdv", "other": "a2VwdA=="})
        );

        let deleted = kube.request(admin, "DELETE", &path("plain"), None).await;
        assert_eq!(deleted.unwrap().0, 200);
        until("the deletion is seen", async || {
            text(&store, "plain").await.is_none()
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_not_ours_is_refused_in_words() {
        needs!(Kube::programs());
        let kube = Kube::start().await.unwrap();
        set_up(&kube).await;
        let store = store(&kube).await;
        let value = json!({"value": "x"});
        for (name, change, words) in [
            (
                "opaque",
                json!({"type": "Opaque", "stringData": value}),
                "of the type `Opaque`",
            ),
            (
                "empty",
                json!({"stringData": {"token": "x"}}),
                "no key `value`",
            ),
            (
                "foreign",
                json!({"metadata": {"name": "foreign", "labels": {"kuma.io/mesh": "shop"}}, "stringData": value}),
                "belongs to the mesh `shop`",
            ),
        ] {
            apply(&kube, name, change).await;
            for _ in 0..2 {
                let error = store.get(&key(name)).await.unwrap_err();
                let kind = match name {
                    "foreign" => ErrorKind::Denied,
                    _ => ErrorKind::InvalidConfig,
                };
                assert_eq!(error.kind(), kind, "{error}");
                assert!(error.to_string().contains(words), "{error}");
                // From the watch, the second time.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        // Neither is it changed or deleted, by whoever knows its version.
        let shop = SecretKey::new("shop", "foreign").unwrap();
        let theirs = store.get(&shop).await.unwrap().unwrap();
        let deleted = store.delete(&key("foreign"), &theirs.version).await;
        assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Denied);
        let changed = Expect::Version(theirs.version.clone());
        let changed = write(&store, "foreign", "y", changed).await;
        assert_eq!(changed.unwrap_err().kind(), ErrorKind::Denied);
        assert!(store.get(&shop).await.unwrap() == Some(theirs));
        let frozen = json!({"immutable": true, "stringData": value});
        apply(&kube, "frozen", frozen).await;
        let version = store.get(&key("frozen")).await.unwrap().unwrap().version;
        let put = write(&store, "frozen", "secret-value", Expect::Version(version));
        let error = put.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        assert!(error.to_string().contains("immutable"), "{error}");
        assert!(!format!("{error:?}").contains("secret-value"), "{error:?}");

        let mesh = SecretKey::new("m".repeat(64), "name").unwrap();
        let error = store.put(&mesh, "x".into(), Expect::Absent).await;
        assert!(error.unwrap_err().to_string().contains("at most 63"));

        let elsewhere = KubeSecretStore::new(client(&kube).await, "kube-system");
        let error = elsewhere.get(&key("a")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(
            error
                .to_string()
                .contains("add the verb `get` on `secrets`"),
            "{error}"
        );
        let error = elsewhere.check().await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`get`, `list`, `watch`, `create`, `patch`, `delete`"),
            "{error}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_api_server_that_is_away() {
        needs!(Kube::programs());
        let mut kube = Kube::start().await.unwrap();
        set_up(&kube).await;
        let store = store(&kube).await;
        let put = write(&store, "token", "one", Expect::Absent);
        let version = put.await.unwrap();
        kube.kill_apiserver();
        // What is not known is never "not there".
        let error = store.get(&key("other")).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, Retry::Backoff),
            "{error}"
        );
        let put = write(&store, "token", "two", Expect::Version(version));
        assert_eq!(put.await.unwrap_err().kind(), ErrorKind::Unavailable);
        kube.restart_apiserver().await.unwrap();
        until("it is back", async || {
            store.get(&key("other")).await.is_ok()
        })
        .await;
        apply(&kube, "token", json!({"stringData": {"value": "three"}})).await;
        until("changes are seen again", async || {
            text(&store, "token").await.as_deref() == Some("three")
        })
        .await;
    }

    /// A hundred times.
    #[tokio::test(flavor = "multi_thread")]
    async fn three_replicas_that_start_at_once_have_one_ca() {
        needs!(Kube::programs());
        let kube = Kube::start().await.unwrap();
        set_up(&kube).await;
        let mut stores = Vec::new();
        for _ in 0..3 {
            stores.push(Arc::new(store(&kube).await) as Arc<dyn SecretStore>);
        }
        for round in 0..100 {
            let mut tasks = tokio::task::JoinSet::new();
            for store in &stores {
                let store = Arc::clone(store);
                tasks.spawn(async move {
                    let secrets =
                        CaSecrets::for_backend("default", &format!("ca-{round}")).unwrap();
                    let settings = CaSettings::new(domain(), secrets);
                    BuiltinIssuer::load_or_create(settings, store, clock())
                        .await
                        .unwrap()
                });
            }
            let replicas = tasks.join_all().await;
            let bundle: TrustBundle = replicas[0].trust_bundle().await.unwrap();
            assert_eq!(bundle.roots().len(), 1);
            for replica in &replicas {
                assert_eq!(
                    replica.trust_bundle().await.unwrap(),
                    bundle,
                    "round {round}"
                );
                // Verified against what the others publish: the key fits the certificate.
                let request = meshca_core::CertificateRequest::for_key(
                    spec(),
                    &meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap(),
                    meshca_core::Clock::now(&*clock()),
                )
                .unwrap();
                let chain = replica.sign(&request).await.unwrap();
                let chain = meshca_core::SignedChain::new(chain.certificates().to_vec());
                chain
                    .verify(&request, &bundle, meshca_core::Clock::now(&*clock()))
                    .unwrap();
            }
        }
        // A change of one is seen by the others.
        let settings = || {
            let secrets = CaSecrets::for_backend("default", "ca-0").unwrap();
            CaSettings::new(domain(), secrets)
        };
        let load = async |store: &Arc<dyn SecretStore>| {
            BuiltinIssuer::load_or_create(settings(), Arc::clone(store), clock())
                .await
                .unwrap()
        };
        let (one, other) = (load(&stores[0]).await, load(&stores[1]).await);
        let published = one.prepare_next().await.unwrap();
        until("the next root is known to the other replica", async || {
            other.trust_bundle().await.unwrap() == published
        })
        .await;
        let other = IssuingCa::new(other);
        other.issue(&spec(), &*clock()).await.unwrap();
    }

    /// A store, and how many requests it has made.
    async fn counted(kube: &Kube) -> (KubeSecretStore, impl Fn() -> usize) {
        let (client, count): (Client, _) = counting_client(kube).await;
        (KubeSecretStore::new(client, NAMESPACE), count)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn writers_that_race_lose_nothing() {
        needs!(Kube::programs());
        let kube = Kube::start().await.unwrap();
        set_up(&kube).await;
        let mut stores = Vec::new();
        for _ in 0..3 {
            stores.push(Arc::new(store(&kube).await));
        }
        let put = write(&*stores[0], "count", "0", Expect::Absent);
        let _: Version = put.await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for store in &stores {
            let store = Arc::clone(store);
            tasks.spawn(async move {
                for _ in 0..50 {
                    loop {
                        let stored = store.get(&key("count")).await.unwrap().unwrap();
                        let count: u32 = stored.value.expose_str().unwrap().parse().unwrap();
                        let next = (count + 1).to_string();
                        let expect = Expect::Version(stored.version);
                        match store.put(&key("count"), next.as_str().into(), expect).await {
                            Ok(_) => break,
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                        }
                    }
                }
            });
        }
        tasks.join_all().await;
        // What others wrote may be a moment behind.
        until("every increment is there", async || {
            text(&*stores[0], "count").await.as_deref() == Some("150")
        })
        .await;
    }
}
