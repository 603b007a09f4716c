//! The CAs of the real servers, set up as an operator would: what `provider` of a MeshIdentity says for each.

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use meshca::{Clock, SystemClock};
use meshca_testenv::servers::{Aws, AwsCaOptions, Kube, Vault};
use meshca_testkit::pki::{TestCa, to_pem};
use serde_json::{Value, json};

/// The built-in CA, with a root of its own.
pub(crate) fn bundled() -> Value {
    json!({
        "type": "Bundled",
        "bundled": {"insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}},
    })
}

/// How to reach a Vault with a CA that signs for the trust domains of the tests, the classic one among them.
pub(crate) async fn vault_from_cp(vault: &Vault) -> Value {
    let engine = json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}});
    vault.write("sys/mounts/pki", engine).await.unwrap();
    let root = json!({"common_name": "vault root", "key_type": "ec", "ttl": "87600h"});
    vault
        .write("pki/root/generate/internal", root)
        .await
        .unwrap();
    let role = role("72h");
    vault.write("pki/roles/mesh", role).await.unwrap();
    json!({
        "address": vault.address(), "role": "mesh",
        "auth": {"token": {"inlineString": vault.root_token()}},
    })
}

/// From now on that CA signs for so long at most.
#[cfg(unix)]
pub(crate) async fn vault_signs_for(vault: &Vault, longest: &str) {
    let role = role(longest);
    vault.write("pki/roles/mesh", role).await.unwrap();
}

fn role(longest: &str) -> Value {
    json!({
        "allowed_uri_sans": ["spiffe://example.org/*", "spiffe://default/*", "kuma://*"],
        "require_cn": false, "key_type": "any", "max_ttl": longest,
    })
}

/// The root of that CA.
pub(crate) async fn vault_root(vault: &Vault) -> String {
    let answer = vault.read("pki/cert/ca").await.unwrap();
    answer["data"]["certificate"].as_str().unwrap().to_owned()
}

pub(crate) async fn vault_provider(vault: &Vault) -> Value {
    extension("vault", &json!({"fromCp": vault_from_cp(vault).await}))
}

pub(crate) async fn certmanager_provider(kube: &Kube) -> Value {
    let root = TestCa::root("cert-manager root", SystemClock::new().now()).unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "ca"},
        "stringData": {
            "tls.crt": root.pem(), "tls.key": root.key_pem().unwrap(),
            "ca.crt": to_pem(root.root_certificate()),
        },
    });
    let path = "api/v1/namespaces/default/secrets";
    kube.create(path, secret).await.unwrap();
    let issuer = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Issuer",
        "metadata": {"name": "mesh-ca"}, "spec": {"ca": {"secretName": "ca"}},
    });
    let path = "apis/cert-manager.io/v1/namespaces/default/issuers";
    kube.create(path, issuer).await.unwrap();
    let config = json!({
        "issuerRef": {"name": "mesh-ca"}, "caCert": {"inlineString": root.pem()},
    });
    extension("certmanager", &config)
}

pub(crate) async fn aws_provider(aws: &Aws) -> Value {
    let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
    let credentials = json!({
        "accessKey": {"inlineString": "AKIAEXAMPLE"},
        "accessKeySecret": {"inlineString": "example"},
    });
    let config = json!({"arn": arn, "auth": {"awsCredentials": credentials}});
    extension("acmpca", &config)
}

fn extension(name: &str, config: &Value) -> Value {
    json!({"type": "Extension", "extension": {"name": name, "config": config}})
}

/// A client of the API server that may do everything.
pub(crate) async fn kube_client(kube: &Kube) -> Client {
    let config = Kubeconfig::from_yaml(&kube.kubeconfig(kube.admin_token())).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}
