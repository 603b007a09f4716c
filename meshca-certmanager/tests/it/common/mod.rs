//! A cluster as an operator sets it up, and issuers on it that may do what `rbac.yaml` says and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use meshca_certmanager::{CertManagerIssuer, CertManagerSettings};
use meshca_core::resource::{CertManagerConf, IssuerRef};
use meshca_core::secret::SourceReader;
use meshca_core::{IssuingCa, MemorySecretStore};
use meshca_testenv::servers::Kube;
use serde_json::{Value, json};

/// Where the control plane is, and its requests.
pub(crate) const NAMESPACE: &str = "mesh-system";
/// Where cert-manager keeps the secrets of ClusterIssuers.
pub(crate) const CERT_MANAGER: &str = "cert-manager";

/// Leaves a test out whose servers are missing.
#[macro_export]
macro_rules! needs {
    () => {
        meshca_testenv::needs!(Kube::programs().and_then(|_| CertManager::program()))
    };
}

pub(crate) use meshca_testkit::samples::*;
/// The control plane's namespace, service account and rights, from the file that we ship.
pub(crate) async fn set_up(kube: &Kube) {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    kube.create("api/v1/namespaces", namespace).await.unwrap();
    kube.create_service_account(NAMESPACE, "control-plane")
        .await
        .unwrap();
    let rbac = include_str!("../../../../examples/resources/cert-manager/rbac.yaml");
    for document in rbac.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
        let path = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => {
                format!("apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}")
            }
            None => format!("apis/rbac.authorization.k8s.io/v1/{plural}"),
        };
        kube.create(&path, object).await.unwrap();
    }
}

/// A client that is the control plane, by a token from the TokenRequest API.
pub(crate) async fn client(kube: &Kube) -> Client {
    Client::try_from(config(kube).await).unwrap()
}

async fn config(kube: &Kube) -> Config {
    let hour = Duration::from_secs(3600);
    let token = kube
        .token_for(NAMESPACE, "control-plane", &[], hour)
        .await
        .unwrap();
    let config = Kubeconfig::from_yaml(&kube.kubeconfig(&token)).unwrap();
    Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .unwrap()
}

fn secret_with(ca: &meshca_testkit::pki::TestCa) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "ca"},
        "stringData": {
            "tls.crt": ca.chain_pem(),
            "tls.key": ca.key_pem().unwrap(),
            "ca.crt": meshca_testkit::pki::to_pem(ca.root_certificate()),
        },
    })
}

/// A CA for an issuer: the secret with its certificate, its key, and its root.
pub(crate) async fn ca_secret(kube: &Kube, namespace: &str, ca: &meshca_testkit::pki::TestCa) {
    let path = format!("api/v1/namespaces/{namespace}/secrets");
    kube.create(&path, secret_with(ca)).await.unwrap();
}

/// The same, whether there is one or not.
pub(crate) async fn replace_ca_secret(
    kube: &Kube,
    namespace: &str,
    ca: &meshca_testkit::pki::TestCa,
) {
    let path = format!("api/v1/namespaces/{namespace}/secrets/ca");
    let secret = Some(secret_with(ca));
    let answer = kube.request(kube.admin_token(), "PUT", &path, secret).await;
    if answer.unwrap().0 == 404 {
        ca_secret(kube, namespace, ca).await;
    }
}

/// `kind` is `Issuer` or `ClusterIssuer`; its CA is in the secret `ca`.
pub(crate) async fn issuer_object(kube: &Kube, kind: &str) {
    let object = json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": kind,
        "metadata": {"name": "mesh-ca"},
        "spec": {"ca": {"secretName": "ca"}},
    });
    let path = match kind {
        "Issuer" => format!("apis/cert-manager.io/v1/namespaces/{NAMESPACE}/issuers"),
        _ => "apis/cert-manager.io/v1/clusterissuers".to_owned(),
    };
    kube.create(&path, object).await.unwrap();
    let path = format!("{path}/mesh-ca");
    let ready = async {
        loop {
            let (_, object) = kube
                .request(kube.admin_token(), "GET", &path, None)
                .await
                .unwrap();
            let conditions = object["status"]["conditions"].as_array();
            let ready = conditions
                .into_iter()
                .flatten()
                .any(|it| it["type"] == "Ready" && it["status"] == "True");
            if ready {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ready)
        .await
        .unwrap();
}

pub(crate) fn conf(kind: &str) -> CertManagerConf {
    let mut issuer = IssuerRef::new("mesh-ca");
    issuer.kind = Some(kind.to_owned());
    CertManagerConf::new(issuer)
}

pub(crate) fn settings(conf: CertManagerConf) -> CertManagerSettings {
    CertManagerSettings::new(conf, domain(), NAMESPACE, "replica-1").unwrap()
}

pub(crate) fn issuer(
    settings: CertManagerSettings,
    client: Client,
) -> IssuingCa<CertManagerIssuer> {
    issuer_with(settings, client, Arc::new(MemorySecretStore::new()))
}

pub(crate) fn issuer_with(
    settings: CertManagerSettings,
    client: Client,
    store: Arc<MemorySecretStore>,
) -> IssuingCa<CertManagerIssuer> {
    IssuingCa::new(bare(settings, client, store))
}

pub(crate) fn bare(
    settings: CertManagerSettings,
    client: Client,
    store: Arc<MemorySecretStore>,
) -> CertManagerIssuer {
    let sources = SourceReader::new(store, "default").unwrap();
    CertManagerIssuer::new(settings, client, sources, clock())
}

pub(crate) async fn delete_requests(kube: &Kube) {
    let path = format!("apis/cert-manager.io/v1/namespaces/{NAMESPACE}/certificaterequests");
    let answer = kube
        .request(kube.admin_token(), "DELETE", &path, None)
        .await;
    assert_eq!(answer.unwrap().0, 200);
}

/// How many requests there are.
pub(crate) async fn requests(kube: &Kube) -> usize {
    let path = format!("apis/cert-manager.io/v1/namespaces/{NAMESPACE}/certificaterequests");
    let (_, list) = kube
        .request(kube.admin_token(), "GET", &path, None)
        .await
        .unwrap();
    list["items"].as_array().unwrap().len()
}

/// The same client, and how many requests it has made.
pub(crate) async fn counting_client(kube: &Kube) -> (Client, impl Fn() -> usize + use<>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let counting = tower::util::MapRequestLayer::new(move |request| {
        counter.fetch_add(1, Ordering::Relaxed);
        request
    });
    let client = ClientBuilder::try_from(config(kube).await)
        .unwrap()
        .with_layer(&counting)
        .build();
    (client, move || count.load(Ordering::Relaxed))
}
