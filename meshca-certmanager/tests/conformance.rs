//! cert-manager keeps the contract, as the service account that our RBAC makes.
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
        use meshca_core::{CertificateSpec, Clock, ErrorKind, Issuer, SpiffeId};
        use meshca_testkit::conformance::{self, Subject};
        use meshca_testkit::pki::TestCa;
        use meshca_testkit::servers::{CertManager, Kube};

        use crate::common::*;
        use crate::needs;

        async fn prove(name: &str, kube: &Kube, issuer: &dyn Issuer) {
            let clock = clock();
            let elsewhere = SpiffeId::new("spiffe://example.com/ns/shop/sa/cart").unwrap();
            let subject = rsa_keys()
                .iter()
                .fold(Subject::new(issuer, &*clock, id()), Subject::with_key)
                .with_server(format!(
                    "cert-manager 1.21.2 on Kubernetes {}",
                    kube.version()
                ))
                .with_unlimited_path_lengths()
                .with_refusal(CertificateSpec::workload(elsewhere), ErrorKind::Denied);
            let report = conformance::run_all(&subject).await;
            println!("{report}");
            if let Some(folder) = std::env::var_os("MESHCA_CONFORMANCE_REPORTS") {
                report.save(folder, &format!("certmanager-{name}")).unwrap();
            }
            report.assert_passed();
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn with_a_ca_cluster_issuer() {
            needs!();
            let kube = Kube::start().await.unwrap();
            let cert_manager = CertManager::start(&kube).await.unwrap();
            set_up(&kube).await;
            let root = TestCa::root("Example root", clock().now()).unwrap();
            ca_secret(&kube, CERT_MANAGER, &root).await;
            issuer_object(&kube, "ClusterIssuer").await;
            let issuer = issuer(settings(conf("ClusterIssuer")), client(&kube).await);
            prove("cluster-issuer", &kube, &issuer).await;
            drop(cert_manager);
        }
    }
}
