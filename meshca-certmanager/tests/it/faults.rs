//! What goes wrong between us, the API server, cert-manager and its approvers.

mod certmanager {
    mod kube {
        use std::sync::Arc;
        use std::time::Duration;

        use meshca_certmanager::CertManagerIssuer;
        use meshca_core::{
            CertificateSpec, Clock, Error, ErrorKind, Issuer, IssuingCa, Retry, SpiffeId,
        };
        use meshca_testenv::servers::{CertManager, CertManagerOptions, Kube};
        use meshca_testkit::pki::TestCa;
        use serde_json::{Value, json};

        use crate::common::*;
        use crate::needs;

        const APPROVER: &str = "certificaterequests-approver";

        struct Cluster {
            // It ends before the API server that it talks to.
            cert_manager: CertManager,
            kube: Kube,
            issuer: Arc<IssuingCa<CertManagerIssuer>>,
        }

        impl Cluster {
            async fn start(without: &[&str], timeout: Duration) -> Self {
                Self::start_at(without, timeout, 20).await
            }

            /// With so many calls of the API server per second for cert-manager.
            async fn start_at(without: &[&str], timeout: Duration, api_rate: u32) -> Self {
                let kube = Kube::start().await.unwrap();
                let options = without
                    .iter()
                    .fold(CertManagerOptions::new(), |options, &name| {
                        options.without(name)
                    })
                    .with_api_rate(api_rate);
                let cert_manager = CertManager::start_with(&kube, options).await.unwrap();
                set_up(&kube).await;
                let root = TestCa::root("Example root", clock().now()).unwrap();
                ca_secret(&kube, NAMESPACE, &root).await;
                issuer_object(&kube, "Issuer").await;
                let mut conf = conf("Issuer");
                conf.ca_cert = Some(meshca_core::resource::DataSource::InlineString(
                    root.pem().as_str().into(),
                ));
                let settings = settings(conf).with_timeout(timeout);
                let issuer = Arc::new(issuer(settings, client(&kube).await));
                Self {
                    cert_manager,
                    kube,
                    issuer,
                }
            }

            async fn issue(&self) -> Result<(), Error> {
                self.issuer.issue(&spec(), &*clock()).await.map(drop)
            }

            fn path(name: &str) -> String {
                format!("apis/cert-manager.io/v1/namespaces/{NAMESPACE}/certificaterequests/{name}")
            }

            /// The one request that there is, once it is there.
            async fn pending(&self) -> Value {
                let list = Self::path("").trim_end_matches('/').to_owned();
                loop {
                    let (_, list) = self
                        .kube
                        .request(self.kube.admin_token(), "GET", &list, None)
                        .await
                        .unwrap();
                    if let Some(item) = list["items"].as_array().and_then(|items| items.first()) {
                        return item.clone();
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }

            async fn set_status(&self, mut object: Value, status: Value) {
                object["status"] = status;
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                let path = format!("{}/status", Self::path(&name));
                let (code, answer) = self
                    .kube
                    .request(self.kube.admin_token(), "PUT", &path, Some(object))
                    .await
                    .unwrap();
                assert_eq!(code, 200, "{answer}");
            }

            async fn gone(&self) {
                let none = async {
                    while requests(&self.kube).await > 0 {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                // What callers gave up is deleted after the timeout of the issuer, which is 20 s at most here, and as long again.
                tokio::time::timeout(Duration::from_secs(60), none)
                    .await
                    .expect("requests are left behind");
            }
        }

        fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
            json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn what_approvers_and_issuers_say() {
            needs!();
            let cluster = Arc::new(Cluster::start(&[APPROVER], Duration::from_secs(3)).await);
            let encoded = |pem: &str| k8s_openapi::ByteString(pem.as_bytes().to_vec());
            let foreign = TestCa::root("Somebody else", clock().now()).unwrap();
            let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
            let id = SpiffeId::new("spiffe://example.org/ns/other/sa/admin").unwrap();
            let other = meshca_core::CertificateRequest::for_key(
                CertificateSpec::workload(id),
                &key,
                clock().now(),
            )
            .unwrap();
            let stolen = meshca_testkit::pki::to_pem(&foreign.sign(&other, clock().now()).unwrap());
            let approved = condition("Approved", "True", "test", "fine");
            for (status, kind, retry, words) in [
                (
                    json!({"conditions": [condition("Denied", "True", "policy.example", "no such name")]}),
                    ErrorKind::Denied,
                    Retry::Never,
                    "policy.example: no such name",
                ),
                (
                    json!({"conditions": [approved, condition("InvalidRequest", "True", "BadCSR", "no good")]}),
                    ErrorKind::InvalidRequest,
                    Retry::Never,
                    "BadCSR: no good",
                ),
                (
                    json!({"conditions": [approved, condition("Ready", "False", "Failed", "upstream is away")]}),
                    ErrorKind::Unavailable,
                    Retry::Backoff,
                    "upstream is away",
                ),
                (
                    // A controller that answers with somebody else's certificate.
                    json!({
                        "conditions": [approved, condition("Ready", "True", "Issued", "")],
                        "certificate": encoded(&stolen),
                        "ca": encoded(&foreign.pem()),
                    }),
                    ErrorKind::BadResponse,
                    Retry::Never,
                    "for the key of the request",
                ),
                (
                    json!({
                        "conditions": [approved, condition("Ready", "True", "Issued", "")],
                        "certificate": encoded("garbage"),
                    }),
                    ErrorKind::BadResponse,
                    Retry::Never,
                    "PEM",
                ),
            ] {
                let issuing = Arc::clone(&cluster);
                let call = tokio::spawn(async move { issuing.issue().await });
                let object = cluster.pending().await;
                cluster.set_status(object, status).await;
                let error = call.await.unwrap().unwrap_err();
                assert_eq!((error.kind(), error.retry()), (kind, retry), "{error}");
                assert!(error.to_string().contains(words), "{error}");
                cluster.gone().await;
            }

            let error = cluster.issue().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            assert!(error.to_string().contains("nobody approved it"), "{error}");
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_request_that_is_still_there_is_found_again() {
            needs!();
            let cluster = Cluster::start(&[APPROVER], Duration::from_secs(2)).await;
            let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
            let request =
                meshca_core::CertificateRequest::for_key(spec(), &key, clock().now()).unwrap();
            for _ in 0..2 {
                let error = cluster.issuer.sign(&request).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
                assert_eq!(requests(&cluster.kube).await, 1);
            }
            // A control plane that was restarted.
            let mut settings = conf("Issuer");
            settings.ca_cert = None;
            let restarted = Arc::new(issuer(settings_of(settings), client(&cluster.kube).await));
            let call = {
                let (restarted, request) = (Arc::clone(&restarted), request.clone());
                tokio::spawn(async move { restarted.sign(&request).await })
            };
            let object = cluster.pending().await;
            cluster
                .set_status(
                    object,
                    json!({"conditions": [condition("Approved", "True", "test", "fine")]}),
                )
                .await;
            call.await.unwrap().unwrap();
            assert_eq!(requests(&cluster.kube).await, 1);
        }

        fn settings_of(
            conf: meshca_core::resource::CertManagerConf,
        ) -> meshca_certmanager::CertManagerSettings {
            settings(conf).with_timeout(Duration::from_secs(20))
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn deleted_while_pending() {
            needs!();
            let cluster = Arc::new(Cluster::start(&[APPROVER], Duration::from_secs(20)).await);
            let issuing = Arc::clone(&cluster);
            let call = tokio::spawn(async move { issuing.issue().await });
            let object = cluster.pending().await;
            // So that the watch has seen it.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let path = Cluster::path(object["metadata"]["name"].as_str().unwrap());
            cluster
                .kube
                .request(cluster.kube.admin_token(), "DELETE", &path, None)
                .await
                .unwrap();
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::Unavailable, Retry::Backoff),
                "{error}"
            );
            assert!(
                error.to_string().contains("deleted while it was pending"),
                "{error}"
            );
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn five_hundred_at_once_while_the_api_server_restarts() {
            needs!();
            let mut cluster = Cluster::start_at(&[], Duration::from_secs(20), 100).await;
            let issuer = Arc::clone(&cluster.issuer);
            cluster.issue().await.unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..500 {
                let issuer = Arc::clone(&issuer);
                tasks.spawn(async move {
                    // As a caller that follows the advice.
                    for _ in 0..200 {
                        match issuer.issue(&spec(), &*clock()).await {
                            Ok(_) => return,
                            Err(error) => {
                                assert_ne!(error.retry(), Retry::Never, "{error}");
                                tokio::time::sleep(Duration::from_millis(200)).await;
                            }
                        }
                    }
                    panic!("no certificate after 200 tries");
                });
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            // The others wait their turn here, and not as objects there; some are done and about to be deleted.
            let there = requests(&cluster.kube).await;
            assert!((1..=110).contains(&there), "{there} requests at once");
            cluster.kube.kill_apiserver();
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.kube.restart_apiserver().await.unwrap();
            cluster.cert_manager.restart(&cluster.kube).await.unwrap();
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            cluster.gone().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn check_says_what_is_missing() {
            needs!();
            let cluster = Cluster::start(&[], Duration::from_secs(20)).await;
            cluster.issuer.check().await.unwrap();
            let kube = &cluster.kube;
            let admin = kube.admin_token();
            let says = async |kind: ErrorKind, words: &str| {
                let error = cluster.issuer.check().await.unwrap_err();
                assert_eq!(error.kind(), kind, "{error}");
                assert!(
                    error.to_string().contains(words),
                    "`{words}` is missing in: {error}"
                );
            };
            let issuers = format!("apis/cert-manager.io/v1/namespaces/{NAMESPACE}/issuers/mesh-ca");
            kube.request(
                admin,
                "DELETE",
                &format!("api/v1/namespaces/{NAMESPACE}/secrets/ca"),
                None,
            )
            .await
            .unwrap();
            // cert-manager looks again when the issuer changes.
            let (_, mut object) = kube.request(admin, "GET", &issuers, None).await.unwrap();
            object["spec"]["ca"]["secretName"] = json!("gone");
            kube.request(admin, "PUT", &issuers, Some(object))
                .await
                .unwrap();
            let not_ready = async {
                while cluster.issuer.check().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), not_ready)
                .await
                .unwrap();
            says(ErrorKind::Unavailable, "is not ready").await;
            kube.request(admin, "DELETE", &issuers, None).await.unwrap();
            says(
                ErrorKind::NotFound,
                "there is no Issuer `mesh-ca` in the namespace `mesh-system`",
            )
            .await;
            let role =
                format!("apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/meshca");
            kube.request(admin, "DELETE", &role, None).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            says(
                ErrorKind::Denied,
                "`create`, `get`, `list`, `watch`, `delete`",
            )
            .await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn five_thousand_leave_nothing_behind() {
            needs!();
            let cluster = Cluster::start_at(&[], Duration::from_secs(60), 1000).await;
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..50 {
                let issuer = Arc::clone(&cluster.issuer);
                tasks.spawn(async move {
                    for _ in 0..100 {
                        issuer.issue(&spec(), &*clock()).await.unwrap();
                    }
                });
            }
            tasks.join_all().await;
            assert_eq!(requests(&cluster.kube).await, 0);
        }

        /// What a process that was killed has left is deleted by the next one of the same instance, and by no other.
        #[tokio::test(flavor = "multi_thread")]
        async fn what_a_killed_process_left_is_cleaned_up() {
            needs!();
            let cluster = Cluster::start(&[APPROVER], Duration::from_secs(2)).await;
            let instance = |name: &str| {
                meshca_certmanager::CertManagerSettings::new(
                    conf("Issuer"),
                    domain(),
                    NAMESPACE,
                    name,
                )
                .unwrap()
                .with_timeout(Duration::from_secs(2))
                .with_owner("pod-1", "0b8ad9f4-7a6b-4f6a-a3c5-1a5d1f8a9d11")
            };
            let new = async |name: &str| issuer(instance(name), client(&cluster.kube).await);
            let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
            let mut left = Vec::new();
            for name in ["replica-1", "replica-1", "replica-2"] {
                let killed = new(name).await;
                let request =
                    meshca_core::CertificateRequest::for_key(spec(), &key, clock().now()).unwrap();
                killed.sign(&request).await.unwrap_err();
                left.push(request);
                // Its tasks end without having cleaned up.
                drop(killed);
            }
            assert_eq!(requests(&cluster.kube).await, 3);
            let pod = cluster.pending().await["metadata"]["ownerReferences"][0].clone();
            assert_eq!(
                (&pod["kind"], &pod["name"]),
                (&json!("Pod"), &json!("pod-1"))
            );

            // The next one; it wants one of them still, again and again.
            let next = new("replica-1").await;
            let wanted = left.pop().unwrap();
            let wanted_by = tokio::spawn({
                let first = left.pop().unwrap();
                async move {
                    for _ in 0..6 {
                        next.sign(&first).await.unwrap_err();
                    }
                    next
                }
            });
            tokio::time::sleep(Duration::from_secs(9)).await;
            // What it wants, and that of the other instance.
            assert_eq!(requests(&cluster.kube).await, 2);
            let next = wanted_by.await.unwrap();
            // Given up as well.
            let gone = async {
                while requests(&cluster.kube).await > 1 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), gone)
                .await
                .unwrap();
            let other = cluster.pending().await;
            assert_eq!(
                other["metadata"]["labels"]["meshca.io/instance"],
                "replica-2"
            );
            drop((next, wanted));
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn an_issuer_that_is_switched_while_requests_are_pending() {
            needs!();
            let cluster = Arc::new(Cluster::start(&[APPROVER], Duration::from_secs(20)).await);
            let kube = &cluster.kube;
            let approved =
                || json!({"conditions": [condition("Approved", "True", "test", "fine")]});

            // Its CA is replaced: `caCert` does not know the new root.
            let issuing = Arc::clone(&cluster);
            let call = tokio::spawn(async move { issuing.issue().await });
            let object = cluster.pending().await;
            let next = TestCa::root("Another root", clock().now()).unwrap();
            replace_ca_secret(kube, NAMESPACE, &next).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            cluster.set_status(object, approved()).await;
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
            assert!(error.to_string().contains("root"), "{error}");
            cluster.gone().await;

            // The settings name another issuer, for the same request: both have theirs.
            let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
            let request =
                meshca_core::CertificateRequest::for_key(spec(), &key, clock().now()).unwrap();
            ca_secret(kube, CERT_MANAGER, &next).await;
            issuer_object(kube, "ClusterIssuer").await;
            let switched = Arc::new(issuer(
                settings(conf("ClusterIssuer")).with_timeout(Duration::from_secs(20)),
                client(kube).await,
            ));
            let before = tokio::spawn({
                let (issuer, request) = (Arc::clone(&cluster.issuer), request.clone());
                async move { issuer.sign(&request).await }
            });
            let first = cluster.pending().await;
            let after = tokio::spawn({
                let (issuer, request) = (Arc::clone(&switched), request.clone());
                async move { issuer.sign(&request).await }
            });
            while requests(kube).await < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let name = first["metadata"]["name"].as_str().unwrap();
            for name in [name.to_owned(), format!("{name}-1")] {
                let admin = kube.admin_token();
                let (_, object) = kube
                    .request(admin, "GET", &Cluster::path(&name), None)
                    .await
                    .unwrap();
                cluster.set_status(object, approved()).await;
            }
            before.await.unwrap().unwrap();
            after.await.unwrap().unwrap();
        }

        /// CA issuers do not backdate: by a clock that is behind, the certificate is not valid yet.
        #[tokio::test(flavor = "multi_thread")]
        async fn clocks_that_differ() {
            needs!();
            let cluster = Cluster::start(&[], Duration::from_secs(20)).await;
            let issue = async |behind: Duration| {
                let clock = meshca_testkit::FakeClock::at(clock().now() - behind);
                cluster.issuer.issue(&spec(), &clock).await
            };
            let identity = issue(Duration::from_secs(30)).await.unwrap();
            let held = identity.certificate().observations().iter().any(|seen| {
                matches!(seen, meshca_core::Observation::NotYetValid { wait, .. }
                    if *wait > Duration::from_secs(20) && *wait <= Duration::from_secs(31))
            });
            assert!(held, "{:?}", identity.certificate().observations());
            let error = issue(Duration::from_secs(600)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
            assert!(error.to_string().contains("clock"), "{error}");
            // An hour ahead, the hour that it lives is over.
            let ahead = meshca_testkit::FakeClock::at(clock().now() + Duration::from_secs(3700));
            let error = cluster.issuer.issue(&spec(), &ahead).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
            cluster.gone().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn the_lifetime_is_asked_for_or_left_to_the_issuer() {
            needs!();
            let cluster = Cluster::start(&[], Duration::from_secs(20)).await;
            let left = spec().with_lifetime_policy(meshca_core::LifetimePolicy::LeftToIssuer);
            let identity = cluster.issuer.issue(&left, &*clock()).await.unwrap();
            // cert-manager's default is 90 days.
            let longer = identity.certificate().observations().iter().any(|seen| {
                matches!(seen, meshca_core::Observation::LongerLifetime { granted, .. }
                    if *granted > Duration::from_secs(89 * 24 * 3600))
            });
            assert!(longer, "{:?}", identity.certificate().observations());
            let identity = cluster.issuer.issue(&spec(), &*clock()).await.unwrap();
            assert_eq!(identity.certificate().observations(), []);
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_token_that_ends_is_not_the_end() {
            needs!();
            let cluster = Cluster::start(&[], Duration::from_secs(20)).await;
            let kube = &cluster.kube;
            cluster.issue().await.unwrap();
            // What the token stood for is gone, and comes back, as a rotated signing key would have it.
            let account = format!("api/v1/namespaces/{NAMESPACE}/serviceaccounts/control-plane");
            let admin = kube.admin_token();
            let bindings = format!(
                "apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings/meshca"
            );
            let (_, mut binding) = kube.request(admin, "GET", &bindings, None).await.unwrap();
            kube.request(admin, "DELETE", &bindings, None)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let error = cluster.issue().await.unwrap_err();
            assert_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::Denied, Retry::Backoff),
                "{error}"
            );
            binding["metadata"]["resourceVersion"].take();
            binding["metadata"]["uid"].take();
            let list = bindings.trim_end_matches("/meshca");
            kube.create(list, binding).await.unwrap();
            let again = async {
                while cluster.issue().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), again)
                .await
                .unwrap();
            kube.request(admin, "DELETE", &account, None).await.unwrap();
            let refused = async {
                loop {
                    match cluster.issue().await {
                        Err(error) if error.kind() == ErrorKind::Unauthenticated => return error,
                        _ => tokio::time::sleep(Duration::from_millis(200)).await,
                    }
                }
            };
            let error = tokio::time::timeout(Duration::from_secs(30), refused)
                .await
                .unwrap();
            assert_eq!(error.retry(), Retry::Backoff, "{error}");
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn without_the_right_to_watch() {
            needs!();
            let cluster = Cluster::start(&[], Duration::from_secs(3)).await;
            let kube = &cluster.kube;
            let path =
                format!("apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/meshca");
            let admin = kube.admin_token();
            let (_, mut role) = kube.request(admin, "GET", &path, None).await.unwrap();
            role["rules"][0]["verbs"] = json!(["create", "get", "delete"]);
            kube.request(admin, "PUT", &path, Some(role)).await.unwrap();
            let missing = async {
                while cluster.issuer.check().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), missing)
                .await
                .unwrap();
            // It takes as long as the request may wait, but what was signed meanwhile is not lost.
            cluster.issue().await.unwrap();
            cluster.gone().await;
        }
    }
}
