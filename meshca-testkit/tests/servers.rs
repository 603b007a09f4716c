//! The servers themselves: they start, work, and leave nothing behind.
//!
//! Each lives in a module of its name, so that `cargo xtask test` can say what was left out without it.
#![cfg(feature = "servers")]

use serde_json::json;

/// Skips a test whose server is missing; `cargo xtask test` counts these by their names.
macro_rules! needs {
    ($program:expr) => {
        if let Err(missing) = $program {
            eprintln!("left out: {missing}");
            return;
        }
    };
}

mod vault {
    use std::net::SocketAddr;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use tokio::net::TcpStream;

    use meshca_testkit::servers::{Vault, VaultOptions};

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
            .args(["--exact", "vault::hold"])
            .env("MESHCA_TEST_HOLD", &file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address: SocketAddr = loop {
            match std::fs::read_to_string(&file).map(|text| text.parse()) {
                Ok(Ok(address)) => break address,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
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

    use meshca_testkit::servers::Kube;

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

mod moto {
    use meshca_testkit::servers::Moto;

    use super::*;

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
