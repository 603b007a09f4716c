//! A Vault as an operator sets it up, and issuers on it.

use std::sync::Arc;
use std::time::Duration;

use meshca_core::resource::{DataSource, VaultAuth, VaultConf};
use meshca_core::secret::SourceReader;
use meshca_core::{Expect, IssuingCa, MemorySecretStore, SecretKey, SecretStore};
use meshca_testenv::servers::Vault;
use meshca_vault::{VaultIssuer, VaultSettings};
use serde_json::{Value, json};

pub(crate) const MESH: &str = "default";
pub(crate) const ROLE: &str = "mesh-dp";

pub(crate) use meshca_testkit::samples::*;
/// What the guide tells operators to set on the role.
pub(crate) fn role() -> Value {
    json!({
        "allowed_uri_sans": "spiffe://example.org/*,kuma://*",
        "require_cn": false,
        "use_csr_sans": false,
        "use_csr_common_name": false,
        "key_type": "any",
        "max_ttl": "720h",
        "no_store": true,
        // For the names of the conformance suite.
        "allowed_domains": "example.org,testkit",
        "allow_subdomains": true,
        "allow_bare_domains": true,
        "enforce_hostnames": false,
    })
}

/// What the guide tells operators to grant.
pub(crate) const POLICY: &str = r#"
path "pki/sign/mesh-dp" { capabilities = ["update"] }
path "pki/roles/mesh-dp" { capabilities = ["read"] }
path "pki/root/sign-intermediate" { capabilities = ["update"] }
"#;

/// A PKI engine with a root, the role and the policy.
pub(crate) async fn set_up(vault: &Vault, key_type: &str) {
    mount(vault, "pki").await;
    let root = json!({"common_name": "Example root", "key_type": key_type, "ttl": "87600h"});
    vault
        .write("pki/root/generate/internal", root)
        .await
        .unwrap();
    roles(vault).await;
}

pub(crate) async fn mount(vault: &Vault, path: &str) {
    let engine = json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}});
    vault
        .write(&format!("sys/mounts/{path}"), engine)
        .await
        .unwrap();
}

pub(crate) async fn roles(vault: &Vault) {
    vault
        .write(&format!("pki/roles/{ROLE}"), role())
        .await
        .unwrap();
    vault
        .write("sys/policies/acl/mesh", json!({"policy": POLICY}))
        .await
        .unwrap();
}

/// A token with the policy.
pub(crate) async fn token(vault: &Vault, options: Value) -> String {
    let mut request = json!({"policies": ["mesh"]});
    for (name, value) in options.as_object().unwrap() {
        request[name] = value.clone();
    }
    let made = vault.write("auth/token/create", request).await.unwrap();
    made["auth"]["client_token"].as_str().unwrap().to_owned()
}

/// The control plane's secrets.
pub(crate) async fn secrets(values: &[(&str, &str)]) -> Arc<MemorySecretStore> {
    let store = Arc::new(MemorySecretStore::new());
    for (name, value) in values {
        put(&store, name, value).await;
    }
    store
}

pub(crate) async fn put(store: &MemorySecretStore, name: &str, value: &str) {
    let key = SecretKey::new(MESH, name).unwrap();
    let expect = match store.get(&key).await.unwrap() {
        Some(entry) => Expect::Version(entry.version),
        None => Expect::Absent,
    };
    store.put(&key, value.into(), expect).await.unwrap();
}

pub(crate) fn sources(store: &Arc<MemorySecretStore>) -> SourceReader {
    let store: Arc<dyn SecretStore> = store.clone();
    SourceReader::new(store, MESH).unwrap()
}

pub(crate) fn token_auth() -> VaultAuth {
    VaultAuth::Token(DataSource::Secret("vault-token".to_owned()))
}

pub(crate) fn settings(address: &str, auth: VaultAuth) -> VaultSettings {
    VaultSettings::new(VaultConf::new(address, ROLE, auth), domain())
        .with_lifetime(Duration::from_secs(3600))
}

pub(crate) fn issuer(
    settings: VaultSettings,
    store: &Arc<MemorySecretStore>,
) -> IssuingCa<VaultIssuer> {
    IssuingCa::new(bare(settings, store))
}

pub(crate) fn bare(settings: VaultSettings, store: &Arc<MemorySecretStore>) -> VaultIssuer {
    VaultIssuer::new(settings, sources(store), clock()).unwrap()
}

/// An issuer with a token of the policy.
pub(crate) async fn with_token(vault: &Vault) -> IssuingCa<VaultIssuer> {
    let store = secrets(&[("vault-token", &token(vault, json!({})).await)]).await;
    issuer(settings(vault.address(), token_auth()), &store)
}
