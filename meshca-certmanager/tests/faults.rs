//! What goes wrong between us, the API server, cert-manager and its approvers.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod common;

mod certmanager {
    mod kube {
        use std::sync::Arc;
        use std::time::Duration;

        use meshca_certmanager::CertManagerIssuer;
        use meshca_core::{
            CertificateSpec, Clock, Error, ErrorKind, Issuer, IssuerExt, Retry, SpiffeId,
        };
        use meshca_testkit::pki::TestCa;
        use meshca_testkit::servers::{CertManager, Kube};
        use serde_json::{Value, json};

        use crate::common::*;
        use crate::needs;

        const APPROVER: &str = "certificaterequests-approver";

        struct Cluster {
            // It ends before the API server that it talks to.
            cert_manager: CertManager,
            kube: Kube,
            issuer: Arc<CertManagerIssuer>,
        }

        impl Cluster {
            async fn start(without: &[&str], timeout: Duration) -> Self {
                let kube = Kube::start().await.unwrap();
                let cert_manager = CertManager::start_without(&kube, without).await.unwrap();
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
                tokio::time::timeout(Duration::from_secs(10), none)
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
            let mut cluster = Cluster::start(&[], Duration::from_secs(60)).await;
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
            cluster.kube.kill_apiserver();
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.kube.restart_apiserver().await.unwrap();
            cluster.cert_manager.restart(&cluster.kube).await.unwrap();
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
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
        async fn nothing_is_left_behind() {
            needs!();
            let cluster = Cluster::start(&[], Duration::from_secs(30)).await;
            for _ in 0..10 {
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..30 {
                    let issuer = Arc::clone(&cluster.issuer);
                    tasks.spawn(async move { issuer.issue(&spec(), &*clock()).await.unwrap() });
                }
                tasks.join_all().await;
            }
            assert_eq!(requests(&cluster.kube).await, 0);
        }
    }
}
