//! cert-manager in a Kubernetes API server, and a bare loop of kube's beside it.
//!
//! | case | what |
//! |---|---|
//! | `certmanager` | key, CSR, `CertificateRequest`, verification, deletion: `IssuerExt::issue` through `meshca-certmanager` |
//! | `certmanager-bare` | create a `CertificateRequest`, wait for it on one watch for all, delete it: no key, no CSR, no verification |
//! | `certmanager-calls` | calls of the API server, not time: of some hundred issuances, 64 at once |

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use kube::{Api, Client, Config};
use meshca::certmanager::{CertManagerIssuer, CertManagerSettings};
use meshca::resource::{CertManagerConf, DataSource, IssuerRef};
use meshca::secret::SourceReader;
use meshca::{
    CertificateRequest, Clock as _, IssuerExt as _, KeyType, MemorySecretStore, PrivateKey,
    SystemClock, TrustDomain,
};
use meshca_testenv::servers::{CertManager, CertManagerOptions, Kube};
use meshca_testkit::pki::{TestCa, to_pem};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tower::util::MapRequestLayer;

use crate::{Provider, Result, spec};

const NAMESPACE: &str = "default";
/// Issuances of which the calls are counted, and how many of them at once.
const COUNTED: (usize, usize) = (640, 64);

pub(crate) struct Bench {
    issuer: CertManagerIssuer,
    calls: Arc<AtomicUsize>,
    bare: Bare,
    // It ends before the API server.
    _cert_manager: CertManager,
    _kube: Kube,
}

impl Bench {
    pub(crate) async fn new() -> Result<Self> {
        let kube = Kube::start().await?;
        // cert-manager's own limits are not what is measured.
        let options = CertManagerOptions::new().with_api_rate(10_000);
        let cert_manager = CertManager::start_with(&kube, options).await?;
        let root = TestCa::root("Example root", SystemClock::new().now())?;
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": "ca"},
            "stringData": {
                "tls.crt": root.pem(),
                "tls.key": root.key_pem()?,
                "ca.crt": to_pem(root.root_certificate()),
            },
        });
        let path = format!("api/v1/namespaces/{NAMESPACE}/secrets");
        kube.create(&path, secret).await?;
        let issuer = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "Issuer",
            "metadata": {"name": "mesh-ca"},
            "spec": {"ca": {"secretName": "ca"}},
        });
        let path = format!("apis/cert-manager.io/v1/namespaces/{NAMESPACE}/issuers");
        kube.create(&path, issuer).await?;

        let config = Kubeconfig::from_yaml(&kube.kubeconfig(kube.admin_token()))?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        let counting = MapRequestLayer::new(move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            request
        });
        let counted = ClientBuilder::try_from(config.clone())?
            .with_layer(&counting)
            .build();
        let bare = Bare::new(Client::try_from(config)?)?;
        let bench = Self {
            issuer: issuer_on(counted, &root)?,
            calls,
            bare,
            _cert_manager: cert_manager,
            _kube: kube,
        };
        // Until the issuer is ready, and everybody has looked around.
        bench.run("certmanager").await?;
        bench.run("certmanager-bare").await?;
        Ok(bench)
    }
}

#[async_trait]
impl Provider for Bench {
    async fn run(&self, case: &str) -> Result<()> {
        match case {
            "certmanager" => {
                self.issuer.issue(&spec()?, &SystemClock::new()).await?;
                Ok(())
            }
            "certmanager-bare" => self.bare.request().await,
            _ => Err(format!("there is no case `{case}`").into()),
        }
    }

    async fn count(&self, case: &str) -> Result<Option<(usize, usize)>> {
        if case != "certmanager-calls" {
            return Ok(None);
        }
        let (all, at_once) = COUNTED;
        let before = self.calls.load(Ordering::Relaxed);
        let issued = futures_util::stream::iter(0..all)
            .map(|_| self.run("certmanager"))
            .buffer_unordered(at_once);
        let outcomes: Vec<Result<()>> = issued.collect().await;
        outcomes.into_iter().collect::<Result<()>>()?;
        Ok(Some((all, self.calls.load(Ordering::Relaxed) - before)))
    }
}

fn issuer_on(client: Client, root: &TestCa) -> Result<CertManagerIssuer> {
    let mut conf = CertManagerConf::new(IssuerRef::new("mesh-ca"));
    conf.ca_cert = Some(DataSource::InlineString(root.pem().as_str().into()));
    let domain = TrustDomain::new("example.org")?;
    let settings = CertManagerSettings::new(conf, domain, NAMESPACE, "bench")?;
    let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
    let clock = Arc::new(SystemClock::new());
    Ok(CertManagerIssuer::new(settings, client, sources, clock))
}

/// Who waits for which object.
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<String, oneshot::Sender<()>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What somebody would write who needs a certificate and has kube.
struct Bare {
    api: Api<DynamicObject>,
    object: DynamicObject,
    waiting: Waiting,
    number: AtomicUsize,
    watch: tokio::task::AbortHandle,
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Bare {
    fn new(client: Client) -> Result<Self> {
        let kind = GroupVersionKind::gvk("cert-manager.io", "v1", "CertificateRequest");
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &resource);
        let key = PrivateKey::generate(KeyType::P256)?;
        let request = CertificateRequest::for_key(spec()?, &key, SystemClock::new().now())?;
        let pem = request.csr()?.to_pem().into_bytes();
        let mut object = DynamicObject::new("", &resource);
        object.metadata.labels = Some([("bench".to_owned(), "bare".to_owned())].into());
        object.data = json!({"spec": {
            "request": k8s_openapi::ByteString(pem),
            "issuerRef": {"name": "mesh-ca", "kind": "Issuer", "group": "cert-manager.io"},
            "duration": "3600s",
            "usages": ["digital signature", "key encipherment", "server auth", "client auth"],
        }});
        let waiting = Waiting::default();
        let watch = tokio::spawn(tell(api.clone(), Arc::clone(&waiting))).abort_handle();
        Ok(Self {
            api,
            object,
            waiting,
            number: AtomicUsize::new(0),
            watch,
        })
    }

    async fn request(&self) -> Result<()> {
        let name = format!("bare-{}", self.number.fetch_add(1, Ordering::Relaxed));
        let (sender, ready) = oneshot::channel();
        lock(&self.waiting).insert(name.clone(), sender);
        let mut object = self.object.clone();
        object.metadata.name = Some(name.clone());
        self.api.create(&PostParams::default(), &object).await?;
        ready.await?;
        self.api.delete(&name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Tells who waits for an object that it is ready.
async fn tell(api: Api<DynamicObject>, waiting: Waiting) {
    let config = watcher::Config::default().labels("bench=bare");
    let mut events = std::pin::pin!(watcher(api, config));
    while let Some(event) = events.next().await {
        let Ok(watcher::Event::Apply(object)) = event else {
            continue;
        };
        let certificate = object.data.pointer("/status/certificate");
        if certificate.and_then(Value::as_str).is_some() {
            let name = object.metadata.name.unwrap_or_default();
            if let Some(sender) = lock(&waiting).remove(&name) {
                let _ = sender.send(());
            }
        }
    }
}
