//! An API server in memory that keeps requests. The test decides what becomes of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use meshca_certmanager::{CertManagerIssuer, CertManagerSettings};
use meshca_core::resource::{CertManagerConf, IssuerRef};
use meshca_core::secret::SourceReader;
use meshca_core::{
    CertificateRequest, Clock, Error, Issuer, IssuingCa, KeyType, MemorySecretStore, PrivateKey,
};
use meshca_testkit::pki::{TestCa, to_pem};
use meshca_testkit::samples::*;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Answer, Call, Sender, answer, client, event, refusal, streamed};

pub(crate) const RESOURCE: &str = "certificaterequests";
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Makes of an object its status.
type Verdict = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

/// An API server, an approver and an issuer.
#[derive(Default)]
pub(crate) struct Server {
    pub(crate) objects: Mutex<BTreeMap<String, Value>>,
    pub(crate) watchers: Mutex<Vec<Sender>>,
    /// The watch says nothing more.
    pub(crate) mute: AtomicBool,
    pub(crate) version: AtomicUsize,
    pub(crate) calls: AtomicUsize,
    pub(crate) created: AtomicUsize,
    pub(crate) deleted: Mutex<Vec<String>>,
    /// What becomes of each request at once.
    verdict: Mutex<Option<Verdict>>,
    /// The issuer. Without one, a call that reads it never ends.
    pub(crate) issuer: Mutex<Option<Value>>,
    /// The verbs that the control plane lacks.
    pub(crate) denied: Mutex<Vec<&'static str>>,
    /// A webhook refuses each request.
    pub(crate) webhook_refuses: AtomicBool,
    /// The name of the control plane.
    pub(crate) user: Mutex<String>,
}

impl Server {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        client(move |call| Arc::clone(&server).answer(call))
    }

    pub(crate) fn issuer(
        self: &Arc<Self>,
        settings: CertManagerSettings,
    ) -> IssuingCa<CertManagerIssuer> {
        self.issuer_at(settings, clock())
    }

    pub(crate) fn issuer_at(
        self: &Arc<Self>,
        settings: CertManagerSettings,
        clock: Arc<dyn Clock>,
    ) -> IssuingCa<CertManagerIssuer> {
        let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default").unwrap();
        IssuingCa::new(CertManagerIssuer::new(
            settings,
            self.client(),
            sources,
            clock,
        ))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    pub(crate) fn created(&self) -> usize {
        self.created.load(Ordering::SeqCst)
    }

    pub(crate) fn deleted(&self) -> Vec<String> {
        self.deleted.lock().unwrap().clone()
    }

    pub(crate) fn decide(&self, verdict: Value) {
        self.decide_by(move |_| verdict.clone());
    }

    /// Makes of each object its status.
    pub(crate) fn decide_by(&self, verdict: impl Fn(&Value) -> Value + Send + Sync + 'static) {
        *self.verdict.lock().unwrap() = Some(Arc::new(verdict));
    }

    pub(crate) fn set_status(&self, name: &str, status: &Value) {
        let mut objects = self.objects.lock().unwrap();
        // It may have been deleted.
        if let Some(object) = objects.get_mut(name) {
            object["status"] = status.clone();
            object["metadata"]["resourceVersion"] = json!(self.next().to_string());
            self.tell("MODIFIED", object);
        }
    }

    fn next(&self) -> usize {
        self.version.fetch_add(1, Ordering::SeqCst) + 10
    }

    fn tell(&self, type_: &str, object: &Value) {
        if !self.mute.load(Ordering::SeqCst) {
            let mut watchers = self.watchers.lock().unwrap();
            watchers.retain(|watcher| watcher.send(Ok(event(type_, object))).is_ok());
        }
    }

    async fn answer(self: Arc<Self>, call: Call) -> Answer {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if call.is_watch() {
            let (sender, answer) = streamed();
            self.watchers.lock().unwrap().push(sender);
            return answer;
        }
        let name = call.name().to_owned();
        match (call.method.as_str(), name.as_str()) {
            ("POST", "selfsubjectaccessreviews") => {
                let mut review = call.body;
                let verb = &review["spec"]["resourceAttributes"]["verb"];
                let allowed = !self
                    .denied
                    .lock()
                    .unwrap()
                    .iter()
                    .any(|denied| verb == denied);
                review["status"] = json!({"allowed": allowed});
                answer(201, review)
            }
            ("POST", "selfsubjectreviews") => {
                let mut review = call.body;
                let name = self.user.lock().unwrap().clone();
                review["status"] = json!({"userInfo": {"username": name}});
                answer(201, review)
            }
            ("GET", RESOURCE) => {
                let objects: Vec<Value> = self.objects.lock().unwrap().values().cloned().collect();
                answer(
                    200,
                    json!({
                        "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequestList",
                        "metadata": {"resourceVersion": "5"}, "items": objects,
                    }),
                )
            }
            ("POST", _) if self.denied.lock().unwrap().contains(&"create") => {
                answer(403, refusal(403, "Forbidden", RESOURCE))
            }
            ("POST", _) if self.webhook_refuses.load(Ordering::SeqCst) => {
                let said = "admission webhook \"policy.example\" denied the request: no";
                let mut refused = refusal(403, "Forbidden", RESOURCE);
                refused["message"] = json!(said);
                answer(403, refused)
            }
            ("POST", _) => self.create(call.body),
            ("DELETE", _) => {
                let object = self.objects.lock().unwrap().remove(&name);
                match object {
                    Some(object) => {
                        self.tell("DELETED", &object);
                        self.deleted.lock().unwrap().push(name);
                        answer(
                            200,
                            json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                        )
                    }
                    None => answer(404, refusal(404, "NotFound", RESOURCE)),
                }
            }
            _ if call.path.contains("/issuers/") => {
                let issuer = self.issuer.lock().unwrap().clone();
                match issuer {
                    Some(Value::Null) => answer(404, refusal(404, "NotFound", "issuers")),
                    Some(issuer) => answer(200, issuer),
                    None => std::future::pending().await,
                }
            }
            _ => match self.objects.lock().unwrap().get(&name) {
                Some(object) => answer(200, object.clone()),
                None => answer(404, refusal(404, "NotFound", RESOURCE)),
            },
        }
    }

    pub(crate) fn create(self: Arc<Self>, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if self.objects.lock().unwrap().contains_key(&name) {
            return answer(409, refusal(409, "AlreadyExists", RESOURCE));
        }
        self.created.fetch_add(1, Ordering::SeqCst);
        let version = self.next();
        object["metadata"]["uid"] = json!(format!("uid {version}"));
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        self.objects
            .lock()
            .unwrap()
            .insert(name.clone(), object.clone());
        self.tell("ADDED", &object);
        let verdict = self.verdict.lock().unwrap().clone();
        if let Some(verdict) = verdict.map(|decide| decide(&object)) {
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                sleep(Duration::from_millis(5)).await;
                server.set_status(&name, &verdict);
            });
        }
        answer(201, object)
    }
}

pub(crate) fn conf(issuer: &str) -> CertManagerConf {
    CertManagerConf::new(IssuerRef::new(issuer))
}

pub(crate) fn settings_for(
    conf: CertManagerConf,
    instance: &str,
    timeout: Duration,
) -> CertManagerSettings {
    CertManagerSettings::new(conf, domain(), "mesh-system", instance)
        .unwrap()
        .with_timeout(timeout)
}

pub(crate) fn settings(timeout: Duration) -> CertManagerSettings {
    settings_for(conf("mesh-ca"), "replica-1", timeout)
}

pub(crate) fn request() -> CertificateRequest {
    let key = PrivateKey::generate(KeyType::P256).unwrap();
    CertificateRequest::for_key(spec(), &key, clock().now()).unwrap()
}

pub(crate) fn root() -> TestCa {
    TestCa::root("Example root", clock().now()).unwrap()
}

pub(crate) fn ready(certificate: &str) -> Value {
    json!({
        "conditions": [{"type": "Ready", "status": "True", "reason": "Issued", "message": ""}],
        "certificate": k8s_openapi::ByteString(certificate.as_bytes().to_vec()),
    })
}

pub(crate) fn signed(request: &CertificateRequest, root: &TestCa) -> Value {
    ready(&to_pem(&root.sign(request, clock().now()).unwrap()))
}

pub(crate) fn failed() -> Value {
    json!({"conditions": [{"type": "Ready", "status": "False", "reason": "Failed", "message": "away"}]})
}

pub(crate) async fn sign(
    issuer: &CertManagerIssuer,
    request: &CertificateRequest,
) -> Result<(), Error> {
    issuer.sign(request).await.map(drop)
}
