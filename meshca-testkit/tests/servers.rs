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
    use meshca_testkit::servers::{Vault, VaultOptions};

    use super::*;

    #[tokio::test]
    async fn a_vault_signs_and_keeps_its_data_when_it_is_killed() {
        needs!(Vault::program());
        let mut vault = Vault::start().await.unwrap();
        println!("Vault {}", vault.version());
        vault.write("sys/mounts/pki", json!({"type": "pki"})).await.unwrap();
        let root = json!({"common_name": "root", "key_type": "ec"});
        vault.write("pki/root/generate/internal", root).await.unwrap();
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
        let vault = Vault::start_with(VaultOptions::new().with_tls()).await.unwrap();
        assert!(vault.address().starts_with("https://"));
        assert!(vault.ca_pem().is_some());
        vault.read("auth/token/lookup-self").await.unwrap();
    }
}
