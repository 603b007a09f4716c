//! cert-manager keeps the contract, as the service account that our RBAC makes.

mod certmanager {
    mod kube {
        use std::sync::Arc;
        use std::time::Duration;

        use async_trait::async_trait;
        use meshca_core::builtin::{DelegatedIssuer, DelegatedSecrets, DelegatedSettings};
        use meshca_core::resource::DataSource;
        use meshca_core::{
            CertificateRequest, CertificateSpec, Clock, ErrorKind, Expect, Issuer, KeyType,
            MemorySecretStore, PrivateKey, Result, SecretKey, SecretStore, SpiffeId,
        };
        use meshca_testenv::servers::{CertManager, Kube};
        use meshca_testkit::conformance::{self, Rotation, Subject};
        use meshca_testkit::pki::{TestCa, TestCaOptions};

        use crate::common::*;
        use crate::needs;

        async fn prove(
            name: &str,
            kube: &Kube,
            issuer: &dyn Issuer,
            rotation: Option<&dyn Rotation>,
        ) {
            let clock = clock();
            let elsewhere = SpiffeId::new("spiffe://example.com/ns/shop/sa/cart").unwrap();
            let mut subject = rsa_keys()
                .iter()
                .fold(Subject::new(issuer, &*clock, id()), Subject::with_key)
                .with_server(format!(
                    "cert-manager 1.21.2 on Kubernetes {}",
                    kube.version()
                ))
                .with_refusal(CertificateSpec::workload(elsewhere), ErrorKind::Denied);
            if issuer.capabilities().intermediates() {
                // cert-manager knows no path lengths.
                subject = subject.with_unlimited_path_lengths();
            }
            if let Some(rotation) = rotation {
                subject = subject.with_rotation(rotation);
            }
            let report = conformance::run_all(&subject).await;
            println!("{report}");
            if let Some(folder) = std::env::var_os("MESHCA_CONFORMANCE_REPORTS") {
                report.save(folder, &format!("certmanager-{name}")).unwrap();
            }
            report.assert_passed();
        }

        fn now() -> std::time::SystemTime {
            clock().now()
        }

        /// An operator puts another CA into the issuer's secret.
        struct NewSecret<'a> {
            kube: &'a Kube,
            issuer: &'a dyn Issuer,
            next: TestCa,
        }

        #[async_trait]
        impl Rotation for NewSecret<'_> {
            async fn prepare(&self) -> Result<()> {
                replace_ca_secret(self.kube, CERT_MANAGER, &self.next).await;
                let published = async {
                    loop {
                        // An issuer names its CA in its answers.
                        let key = PrivateKey::generate(KeyType::P256)?;
                        let request = CertificateRequest::for_key(spec(), &key, now())?;
                        self.issuer.sign(&request).await?;
                        let bundle = self.issuer.trust_bundle().await?;
                        if bundle.contains(self.next.root_certificate()) {
                            return Ok(());
                        }
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(20), published)
                    .await
                    .unwrap()
            }

            async fn activate(&self) -> Result<()> {
                Ok(())
            }
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn with_a_ca_cluster_issuer() {
            needs!();
            let kube = Kube::start().await.unwrap();
            let cert_manager = CertManager::start(&kube).await.unwrap();
            set_up(&kube).await;
            let root = TestCa::root("Example root", now()).unwrap();
            ca_secret(&kube, CERT_MANAGER, &root).await;
            issuer_object(&kube, "ClusterIssuer").await;
            let issuer = issuer(settings(conf("ClusterIssuer")), client(&kube).await);
            let rotation = NewSecret {
                kube: &kube,
                issuer: &*issuer,
                next: TestCa::root("Example root 2", now()).unwrap(),
            };
            prove("cluster-issuer", &kube, &*issuer, Some(&rotation)).await;
            drop(cert_manager);
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn with_an_intermediate_of_each_kind() {
            needs!();
            let kube = Kube::start().await.unwrap();
            let cert_manager = CertManager::start(&kube).await.unwrap();
            set_up(&kube).await;
            let rsa = rsa_keys()[0].key_type();
            for (number, key_type) in [KeyType::P384, rsa].into_iter().enumerate() {
                let root = TestCaOptions::new("Example root", now()).with_key_type(key_type);
                let root = TestCa::root_with(root).unwrap();
                let issuing = TestCaOptions::new("Example issuing", now()).with_key_type(key_type);
                let issuing = root.intermediate_with(issuing).unwrap();
                replace_ca_secret(&kube, NAMESPACE, &issuing).await;
                if number == 0 {
                    issuer_object(&kube, "Issuer").await;
                }
                let mut conf = conf("Issuer");
                // `status.ca` is what the secret has as `ca.crt`; once it decides, and once the setting.
                if number == 1 {
                    conf.ca_cert = Some(DataSource::InlineString(root.pem().as_str().into()));
                }
                let issuer = issuer(settings(conf), client(&kube).await);
                // cert-manager takes a moment to see the new secret.
                let signs = async {
                    while issuer.issue(&spec(), &*clock()).await.is_err()
                        || !issuer
                            .trust_bundle()
                            .await
                            .is_ok_and(|bundle| bundle.contains(root.certificate()))
                    {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(20), signs)
                    .await
                    .unwrap();
                prove(&format!("issuer-{key_type}"), &kube, &*issuer, None).await;
                // The kit does not settle all that it asks for, and would ask the next issuer for the same.
                delete_requests(&kube).await;
            }
            drop(cert_manager);
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn below_a_delegated_ca() {
            needs!();
            let kube = Kube::start().await.unwrap();
            let cert_manager = CertManager::start(&kube).await.unwrap();
            set_up(&kube).await;
            let root = TestCa::root("Example root", now()).unwrap();
            let issuing = root.intermediate("Example issuing").unwrap();
            for (kind, namespace, ca) in [
                ("ClusterIssuer", CERT_MANAGER, &root),
                ("Issuer", NAMESPACE, &issuing),
            ] {
                ca_secret(&kube, namespace, ca).await;
                issuer_object(&kube, kind).await;
                let store = Arc::new(MemorySecretStore::new());
                let ca_cert = SecretKey::new("default", "ca-cert").unwrap();
                let pem = root.pem().as_str().into();
                store.put(&ca_cert, pem, Expect::Absent).await.unwrap();
                let mut conf = conf(kind);
                conf.ca_cert = Some(DataSource::Secret("ca-cert".to_owned()));
                let upstream = bare(settings(conf), client(&kube).await, store.clone());
                let secrets = DelegatedSecrets::for_identity("default", "delegated").unwrap();
                let issuer = DelegatedIssuer::load_or_create(
                    DelegatedSettings::new(domain(), secrets),
                    Arc::new(upstream),
                    store,
                    clock(),
                )
                .await
                .unwrap();
                prove(&format!("delegated-{kind}"), &kube, &issuer, None).await;
            }
            drop(cert_manager);
        }
    }
}
