//! The environment decides nothing that the settings decide: no proxy, address, token or namespace.

use std::process::Command;

use meshca_core::Issuer;
use meshca_core::resource::{VaultConf, VaultTls};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_vault::VaultSettings;

use crate::common::*;

const ADDRESS: &str = "MESHCA_TEST_ADDRESS";

/// What the program itself does under the environment of the next test.
#[tokio::test]
async fn child_under_an_environment() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    let store = secrets(&[("vault-token", "hvs.token")]).await;
    for skip_verify in [false, true] {
        let mut conf = VaultConf::new(&address, ROLE, token_auth());
        let mut tls = VaultTls::default();
        tls.skip_verify = skip_verify;
        conf.tls = Some(tls);
        let issuer = bare(VaultSettings::new(conf, domain()), &store);
        issuer.check().await.unwrap_err();
        issuer.trust_bundle().await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_clients_read_an_environment_and_we_do_not() {
    let elsewhere = CannedServer::start().await.unwrap();
    for scheme in ["http", "https"] {
        let server = CannedServer::start().await.unwrap();
        for _ in 0..50 {
            server.answer(CannedResponse::json(400, r#"{"errors": []}"#));
        }
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "environment::child_under_an_environment"]);
        program.env(ADDRESS, format!("{scheme}://{}", server.address()));
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            program.env(variable, elsewhere.url());
            program.env(variable.to_lowercase(), elsewhere.url());
        }
        program.env_remove("NO_PROXY").env_remove("no_proxy");
        for variable in [
            "VAULT_ADDR",
            "VAULT_AGENT_ADDR",
            "VAULT_HTTP_PROXY",
            "VAULT_PROXY_ADDR",
            "BAO_ADDR",
        ] {
            program.env(variable, elsewhere.url());
        }
        for variable in ["VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_WRAP_TTL"] {
            program.env(variable, "elsewhere");
        }
        let output = tokio::task::spawn_blocking(move || program.output());
        let output = output.await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(elsewhere.connections(), 0);
        assert!(server.connections() > 0, "{output:?}");
        let requests = server.requests();
        assert_eq!(requests.is_empty(), scheme == "https");
        for request in requests {
            let told = format!("{request:?}");
            assert!(!told.contains("elsewhere"), "{told}");
        }
    }
}
