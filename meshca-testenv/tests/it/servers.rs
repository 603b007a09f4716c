//! The servers themselves: they start, work, and leave nothing behind.
//!
//! Each lives in a module of its name, so that `cargo xtask test` can say what was left out without it.

use serde_json::json;

use meshca_testenv::needs;
use meshca_testenv::servers::{Aws, AwsCaOptions, CertManager, Envoy, Kube, Moto, Vault};

/// A task may start a server, or wait for one. This is compiled and not run.
#[expect(dead_code, reason = "that it compiles is the test")]
fn servers_are_for_any_thread(
    vault: &mut Vault,
    kube: &mut Kube,
    certmanager: &mut CertManager,
    aws: &Aws,
    envoy: &mut Envoy,
) {
    fn sends(_: impl Send) {}
    sends((Vault::start(), vault.restart()));
    sends(vault.unseal());
    sends((Kube::start(), CertManager::start(kube)));
    sends(certmanager.restart(kube));
    sends(kube.restart_apiserver());
    sends((Moto::start(), Aws::start()));
    sends(aws.create_ca(&AwsCaOptions::new()));
    sends((envoy.restart(), Envoy::start(&json!({}))));
    sends(envoy.pause());
    sends(envoy.quit());
}

mod vault {
    use std::net::SocketAddr;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use tokio::net::TcpStream;

    use meshca_testenv::servers::{Vault, VaultOptions};

    use super::*;

    #[tokio::test]
    async fn a_vault_signs_and_keeps_its_data_when_it_is_killed() {
        needs!(Vault::program());
        let mut vault = Vault::start().await.unwrap();
        println!("Vault {}", vault.version());
        vault
            .write("sys/mounts/pki", json!({"type": "pki"}))
            .await
            .unwrap();
        let root = json!({"common_name": "root", "key_type": "ec"});
        vault
            .write("pki/root/generate/internal", root)
            .await
            .unwrap();
        let issuers = vault.list("pki/issuers").await.unwrap();

        vault.kill();
        assert!(vault.list("pki/issuers").await.is_err());
        vault.restart_sealed().await.unwrap();
        let (status, _) = vault.request("", "GET", "sys/health", None).await.unwrap();
        assert_eq!(status, 503);
        vault.unseal().await.unwrap();
        assert_eq!(
            vault.list("pki/issuers").await.unwrap()["data"],
            issuers["data"]
        );

        vault.seal().await.unwrap();
        assert!(vault.list("pki/issuers").await.is_err());
        vault.restart().await.unwrap();
        vault.list("pki/issuers").await.unwrap();
    }

    #[tokio::test]
    async fn a_vault_speaks_tls() {
        needs!(Vault::program());
        let vault = Vault::start_with(VaultOptions::new().with_tls())
            .await
            .unwrap();
        assert!(vault.address().starts_with("https://"));
        assert!(vault.ca_pem().is_some());
        vault.read("auth/token/lookup-self").await.unwrap();
    }

    /// Holds a Vault until it is killed: run by the next test, as a process of its own.
    #[tokio::test]
    async fn hold() {
        let Some(file) = std::env::var_os("MESHCA_TEST_HOLD") else {
            return;
        };
        let vault = Vault::start().await.unwrap();
        std::fs::write(file, vault.socket_addr().to_string()).unwrap();
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn a_vault_does_not_outlive_a_process_that_is_killed() {
        needs!(Vault::program());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("address");
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "servers::vault::hold"])
            .env("MESHCA_TEST_HOLD", &file)
            // It cannot remove its data when it is killed.
            .env("TMPDIR", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address: SocketAddr = loop {
            match std::fs::read_to_string(&file).map(|text| text.parse()) {
                Ok(Ok(address)) => break address,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            // Otherwise it waits for ever for what did not start.
            if let Some(status) = holder.try_wait().unwrap() {
                panic!("the holder ended: {status}");
            }
        };
        TcpStream::connect(address).await.unwrap();
        // As `kill -9` does: it cannot clean up.
        holder.kill().unwrap();
        holder.wait().unwrap();
        let gone = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .unwrap();
    }
}

mod kube {
    use std::time::Duration;

    use meshca_testenv::servers::Kube;

    use super::*;

    #[tokio::test]
    async fn an_api_server_knows_the_tokens_that_it_gave() {
        needs!(Kube::programs());
        let mut kube = Kube::start().await.unwrap();
        println!("Kubernetes {}", kube.version());
        kube.create_service_account("default", "mesh")
            .await
            .unwrap();
        let hour = Duration::from_secs(3600);
        let token = kube
            .token_for("default", "mesh", &["ca"], hour)
            .await
            .unwrap();
        kube.kill_apiserver();
        assert!(kube.request("", "GET", "version", None).await.is_err());
        kube.restart_apiserver().await.unwrap();
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": ["ca"]},
        });
        let review = kube
            .create("apis/authentication.k8s.io/v1/tokenreviews", review)
            .await
            .unwrap();
        assert_eq!(
            review["status"]["user"]["username"],
            "system:serviceaccount:default:mesh"
        );
        // It may do nothing, for nobody bound it to a role.
        let own = kube.token_for("default", "mesh", &[], hour).await.unwrap();
        let (status, _) = kube
            .request(&own, "GET", "api/v1/secrets", None)
            .await
            .unwrap();
        assert_eq!(status, 403);
    }
}

mod certmanager {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::string::Ia5String;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
    use serde_json::Value;

    use meshca_testenv::servers::{CertManager, CertManagerOptions, Kube};

    use super::*;

    const ISSUERS: &str = "apis/cert-manager.io/v1/clusterissuers";
    const REQUESTS: &str = "apis/cert-manager.io/v1/namespaces/default/certificaterequests";

    /// Starts it, with a CA as ClusterIssuer `mesh`.
    async fn started(kube: &Kube, options: CertManagerOptions) -> CertManager {
        let certmanager = CertManager::start_with(kube, options).await.unwrap();
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "ca"},
            "type": "kubernetes.io/tls",
            "stringData": {
                "tls.crt": ca.self_signed(&key).unwrap().pem(),
                "tls.key": key.serialize_pem(),
            },
        });
        let namespace = certmanager.namespace();
        kube.create(&format!("api/v1/namespaces/{namespace}/secrets"), secret)
            .await
            .unwrap();
        let issuer = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "ClusterIssuer",
            "metadata": {"name": "mesh"},
            "spec": {"ca": {"secretName": "ca"}},
        });
        kube.create(ISSUERS, issuer).await.unwrap();
        until(kube, &format!("{ISSUERS}/mesh"), "Ready", "True").await;
        certmanager
    }

    /// Asks for a certificate.
    async fn request(kube: &Kube, name: &str) {
        let mut csr = CertificateParams::default();
        let id = Ia5String::try_from("spiffe://mesh.example/web").unwrap();
        csr.subject_alt_names = vec![SanType::URI(id)];
        let csr = csr
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap();
        let request = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {"name": name},
            "spec": {
                "issuerRef": {"name": "mesh", "kind": "ClusterIssuer", "group": "cert-manager.io"},
                "request": STANDARD.encode(csr.pem().unwrap()),
                "usages": ["digital signature", "server auth", "client auth"],
            },
        });
        kube.create(REQUESTS, request).await.unwrap();
    }

    /// Waits for a condition of an object, and returns the object.
    async fn until(kube: &Kube, path: &str, condition: &str, status: &str) -> Value {
        let mut last = Value::Null;
        for _ in 0..600 {
            let (_, object) = kube
                .request(kube.admin_token(), "GET", path, None)
                .await
                .unwrap();
            let conditions = object["status"]["conditions"].as_array();
            if conditions
                .into_iter()
                .flatten()
                .any(|it| it["type"] == condition && it["status"] == status)
            {
                return object;
            }
            last = object;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{path} is not {condition}={status}: {last:#}");
    }

    #[tokio::test]
    async fn a_request_is_approved_and_signed_also_after_restarts() {
        needs!(Kube::programs());
        needs!(CertManager::program());
        let mut kube = Kube::start().await.unwrap();
        let mut certmanager = started(&kube, CertManagerOptions::new()).await;
        request(&kube, "first").await;
        let signed = until(&kube, &format!("{REQUESTS}/first"), "Ready", "True").await;
        assert!(signed["status"]["certificate"].is_string(), "{signed:#}");
        assert!(signed["status"]["ca"].is_string(), "{signed:#}");

        certmanager.kill();
        request(&kube, "second").await;
        certmanager.restart(&kube).await.unwrap();
        until(&kube, &format!("{REQUESTS}/second"), "Ready", "True").await;

        kube.restart_apiserver().await.unwrap();
        request(&kube, "third").await;
        until(&kube, &format!("{REQUESTS}/third"), "Ready", "True").await;
    }

    #[tokio::test]
    async fn without_the_approver_others_decide() {
        needs!(Kube::programs());
        needs!(CertManager::program());
        let kube = Kube::start().await.unwrap();
        let _certmanager = started(
            &kube,
            CertManagerOptions::new().without("certificaterequests-approver"),
        )
        .await;
        for (name, decision, ready) in [("yes", "Approved", "True"), ("no", "Denied", "False")] {
            request(&kube, name).await;
            let path = format!("{REQUESTS}/{name}");
            let (_, mut object) = kube
                .request(kube.admin_token(), "GET", &path, None)
                .await
                .unwrap();
            assert_eq!(object["status"].get("certificate"), None);
            object["status"] = json!({"conditions": [{
                "type": decision,
                "status": "True",
                "reason": "test",
                "message": "as the test says",
            }]});
            // The issuer's controller may have written to it in between; then again.
            for attempt in 0.. {
                let (status, answer) = kube
                    .request(
                        kube.admin_token(),
                        "PUT",
                        &format!("{path}/status"),
                        Some(object.clone()),
                    )
                    .await
                    .unwrap();
                if status == 200 {
                    break;
                }
                assert!(status == 409 && attempt < 20, "{status} {answer:#}");
                let (_, now) = kube
                    .request(kube.admin_token(), "GET", &path, None)
                    .await
                    .unwrap();
                object["metadata"] = now["metadata"].clone();
            }
            until(&kube, &path, "Ready", ready).await;
        }
    }
}

mod moto {
    use meshca_testenv::needs;
    use meshca_testenv::servers::Moto;

    #[tokio::test]
    async fn moto_answers_for_sts() {
        needs!(Moto::program());
        let moto = Moto::start().await.unwrap();
        let identity = moto
            .form("sts", "Action=GetCallerIdentity&Version=2011-06-15")
            .await
            .unwrap();
        assert!(
            identity.contains("<Account>123456789012</Account>"),
            "{identity}"
        );
    }
}
