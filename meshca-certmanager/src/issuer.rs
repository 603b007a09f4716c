//! The issuer: a request becomes a `CertificateRequest`, and its status a chain.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use meshca_core::secret::SourceReader;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, IssuedCertificate,
    Issuer, KeyType, Profile, RequestId, Result, Retry, SignedChain, TrustBundle,
};
use tokio::time::{Instant, timeout_at};

use crate::conditions::{Progress, Wait, progress};
use crate::crd::{self, ObjectReference, Spec};
use crate::error::{code, from_kube};
use crate::settings::CertManagerSettings;
use crate::trust::Trust;
use crate::watch::{INSTANCE, MANAGED_BY, Requests};

const RESOURCE: &str = "certificaterequests.cert-manager.io";
/// How many failed objects of one request are stepped over before that is an error of its own.
const MAX_ATTEMPTS: u32 = 100;

/// An issuer that has cert-manager sign.
///
/// It lives in a tokio runtime: a task of its own watches the requests, from the first one on until the issuer is dropped.
pub struct CertManagerIssuer {
    inner: Arc<Inner>,
    trust: Trust,
    clock: Arc<dyn Clock>,
}

pub(crate) struct Inner {
    pub(crate) settings: CertManagerSettings,
    pub(crate) client: Client,
    api: Api<crd::CertificateRequest>,
    requests: OnceLock<Requests>,
    /// Requests under way: the object of each, and how many failed before it.
    attempts: Mutex<HashMap<RequestId, Attempt>>,
}

#[derive(Clone, Debug, Default)]
struct Attempt {
    number: u32,
    /// The object, once it is there: its name, and its UID if it is ours to delete.
    object: Option<(String, Option<String>)>,
}

/// What an issuer answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) certificate: Vec<u8>,
    pub(crate) ca: Option<Vec<u8>>,
}

impl CertManagerIssuer {
    /// An issuer that has asked nobody yet.
    ///
    /// `client` acts as the control plane's service account; the role that it needs is in `examples/resources/cert-manager/rbac.yaml`.
    pub fn new(
        settings: CertManagerSettings,
        client: Client,
        sources: SourceReader,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let api = Api::namespaced(client.clone(), &settings.namespace);
        let inner = Arc::new(Inner {
            settings,
            client,
            api,
            requests: OnceLock::new(),
            attempts: Mutex::default(),
        });
        let trust = Trust::new(Arc::clone(&inner), sources);
        Self {
            inner,
            trust,
            clock,
        }
    }
}

impl Inner {
    fn requests(&self) -> &Requests {
        self.requests
            .get_or_init(|| Requests::watch(self.api.clone(), self.name()))
    }

    pub(crate) fn name(&self) -> String {
        let issuer = &self.settings.conf.issuer;
        format!(
            "cert-manager ({} {} of {}, requests in {})",
            issuer.kind(),
            issuer.name,
            issuer.group(),
            self.settings.namespace
        )
    }

    fn attempt(&self, id: &RequestId) -> Attempt {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.get(id).cloned().unwrap_or_default()
    }

    fn remember(&self, id: &RequestId, attempt: Attempt) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.insert(id.clone(), attempt);
    }

    fn spec(&self, request: &CertificateRequest) -> Result<Spec> {
        let issuer = &self.settings.conf.issuer;
        let spec = request.spec();
        let usages: &[&str] = match spec.profile() {
            Profile::Workload => &[
                "digital signature",
                "key encipherment",
                "server auth",
                "client auth",
            ],
            _ => &["cert sign", "crl sign", "digital signature"],
        };
        Ok(Spec {
            request: ByteString(request.named_csr()?.to_pem().into_bytes()),
            issuer_ref: ObjectReference {
                name: issuer.name.clone(),
                kind: Some(issuer.kind().to_owned()),
                group: Some(issuer.group().to_owned()),
            },
            duration: Some(format!("{}s", spec.lifetime().as_secs())),
            is_ca: spec.profile() != Profile::Workload,
            usages: usages.iter().map(|&usage| usage.to_owned()).collect(),
        })
    }

    /// The object of this request: the one that is outstanding, or a new one. Failed ones are stepped over.
    async fn submit(&self, request: &CertificateRequest) -> Result<crd::CertificateRequest> {
        let spec = self.spec(request)?;
        let mut attempt = self.attempt(request.id());
        loop {
            let name = object_name(request.id(), attempt.number);
            let object = self.create(&name, spec.clone()).await?;
            if object.spec.request != spec.request || object.spec.issuer_ref != spec.issuer_ref {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "the certificate request `{name}` is there already, and is another one: delete it"
                    ),
                ));
            }
            let ours = object
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(INSTANCE))
                == Some(&self.settings.instance);
            attempt.object = Some((name.clone(), object.metadata.uid.clone().filter(|_| ours)));
            self.remember(request.id(), attempt.clone());
            if !matches!(progress(object.status.as_ref()), Progress::Failed(_)) {
                return Ok(object);
            }
            // An earlier process left it: what failed cannot be tried again.
            self.delete(&attempt).await;
            attempt = Attempt {
                number: attempt.number + 1,
                object: None,
            };
            if attempt.number >= MAX_ATTEMPTS {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "there are {MAX_ATTEMPTS} failed certificate requests like `{name}`: delete them"
                    ),
                ));
            }
        }
    }

    async fn create(&self, name: &str, spec: Spec) -> Result<crd::CertificateRequest> {
        let (label, value) = MANAGED_BY;
        let labels = BTreeMap::from([
            (label.to_owned(), value.to_owned()),
            (INSTANCE.to_owned(), self.settings.instance.clone()),
        ]);
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.settings.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        let object = crd::CertificateRequest::new(metadata, spec);
        // Once more for what is deleted between the two calls.
        for _ in 0..3 {
            match self.api.create(&PostParams::default(), &object).await {
                Ok(created) => return Ok(created),
                Err(error) if code(&error) == Some(409) => match self.api.get_opt(name).await {
                    Ok(Some(existing)) => return Ok(existing),
                    Ok(None) => {}
                    Err(error) => {
                        return Err(from_kube(
                            error,
                            "read a certificate request",
                            "get",
                            RESOURCE,
                        ));
                    }
                },
                Err(error) => {
                    return Err(from_kube(
                        error,
                        "create a certificate request",
                        "create",
                        RESOURCE,
                    ));
                }
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("the certificate request `{name}` comes and goes: who else makes it?"),
        )
        .with_retry(Retry::Backoff))
    }

    /// Waits until somebody decided.
    async fn decided(&self, object: &crd::CertificateRequest) -> Result<Progress> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let requests = self.requests();
        let mut changes = requests.changes();
        let deadline = Instant::now() + self.settings.timeout;
        let mut last = progress(object.status.as_ref());
        let mut seen = false;
        loop {
            changes.borrow_and_update();
            match requests.get(&self.settings.namespace, name) {
                // An object of that name that was there before is not this one.
                Some(known) if known.metadata.uid == object.metadata.uid => {
                    seen = true;
                    last = progress(known.status.as_ref());
                }
                None if seen => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the certificate request was deleted while it was pending: who else cleans up?",
                    )
                    .with_context("request", name));
                }
                _ => {}
            }
            if !matches!(last, Progress::Pending(_)) {
                return Ok(last);
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(self.late(last, name));
            }
        }
    }

    fn late(&self, last: Progress, name: &str) -> Error {
        let seconds = self.settings.timeout.as_secs_f32();
        let why = match last {
            Progress::Pending(Wait::Approval) => {
                "nobody approved it: is cert-manager's approver running, or does a policy have to allow this issuer?".to_owned()
            }
            Progress::Pending(Wait::Issuer(said)) if !said.is_empty() => {
                format!("it was approved, and the issuer says `{said}`")
            }
            _ => "it was approved, and the issuer did nothing: is its controller running?".to_owned(),
        };
        Error::new(
            ErrorKind::Timeout,
            format!("the certificate request was not decided within {seconds} s: {why}"),
        )
        .with_context("request", name)
    }

    /// Deletes what an attempt left, if it is ours. What cannot be deleted is cleaned up later.
    async fn delete(&self, attempt: &Attempt) {
        let Some((name, Some(uid))) = &attempt.object else {
            return;
        };
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        if let Err(error) = self.api.delete(name, &parameters).await
            && !matches!(code(&error), Some(404 | 409))
        {
            tracing::warn!(request = %name, %error, "a certificate request could not be deleted");
        }
    }

    /// Has one signed, without having it verified.
    pub(crate) async fn sign(&self, request: &CertificateRequest) -> Result<Answer> {
        // The watch before the object: no change is missed.
        self.requests();
        let object = self.submit(request).await?;
        let name = object.metadata.name.clone().unwrap_or_default();
        let error = match self.decided(&object).await? {
            Progress::Ready { certificate, ca } => return Ok(Answer { certificate, ca }),
            Progress::Denied(said) => Error::new(
                ErrorKind::Denied,
                format!(
                    "an approver of cert-manager denied the request (`{said}`): its policy must allow this issuer and these names"
                ),
            ),
            Progress::Invalid(said) => Error::new(
                ErrorKind::InvalidRequest,
                format!("the issuer says that the request is invalid (`{said}`)"),
            ),
            Progress::Failed(said) => Error::new(
                ErrorKind::Unavailable,
                format!("the issuer failed (`{said}`); cert-manager does not say whether for good"),
            ),
            Progress::Pending(_) => Error::new(
                ErrorKind::Internal,
                "a pending request was taken for a decided one",
            ),
        };
        // Final for this object, so the next try is another one.
        let attempt = self.attempt(request.id());
        self.delete(&attempt).await;
        self.remember(
            request.id(),
            Attempt {
                number: attempt.number + 1,
                object: None,
            },
        );
        Err(error.with_context("request", name))
    }

    pub(crate) async fn settled(&self, request: &CertificateRequest) {
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            attempts.remove(request.id())
        };
        if let Some(attempt) = attempt {
            self.delete(&attempt).await;
        }
    }
}

fn object_name(id: &RequestId, attempt: u32) -> String {
    match attempt {
        0 => format!("meshca-{id}"),
        attempt => format!("meshca-{id}-{attempt}"),
    }
}

#[async_trait]
impl Issuer for CertManagerIssuer {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(true)
            .with_key_types(KeyType::ALL)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let trust_domain = request.spiffe_id().trust_domain();
        let settings = &self.inner.settings;
        if *trust_domain != settings.trust_domain {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "this issuer signs for the trust domain `{}` only",
                    settings.trust_domain
                ),
            )
            .with_context("asked for", trust_domain));
        }
        let answer = self.inner.sign(request).await?;
        self.trust.learn(&answer);
        let chain = answer.chain();
        if chain.is_err() {
            // Nobody will verify it, and the next try must not find it.
            self.inner.settled(request).await;
        }
        chain
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.trust.bundle(&*self.clock).await
    }

    async fn refresh_trust_bundle(&self) -> Result<TrustBundle> {
        self.trust.refresh(&*self.clock).await
    }

    async fn check(&self) -> Result<CheckReport> {
        crate::check::check(&self.inner).await
    }

    async fn settled(&self, request: &CertificateRequest, _: Result<&IssuedCertificate, &Error>) {
        // Whatever came of it: what was verified is not needed any more, and what was refused must not be found again.
        self.inner.settled(request).await;
    }
}

impl Answer {
    /// Everything in it that is a certificate.
    pub(crate) fn chain(&self) -> Result<SignedChain> {
        let chain = certificates(&self.certificate)?;
        let ca = match &self.ca {
            Some(ca) => certificates(ca)?,
            None => SignedChain::new([]),
        };
        let known = |one: &_| chain.certificates().contains(one);
        let above = ca.certificates().iter().filter(|one| !known(one)).cloned();
        Ok(SignedChain::new(
            chain.certificates().iter().cloned().chain(above),
        ))
    }
}

pub(crate) fn certificates(pem: &[u8]) -> Result<SignedChain> {
    let text = std::str::from_utf8(pem).map_err(|error| {
        Error::new(ErrorKind::BadResponse, "the issuer did not return PEM").with_source(error)
    })?;
    SignedChain::from_pem(text)
}

impl fmt::Display for CertManagerIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.name())
    }
}

impl fmt::Debug for CertManagerIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertManagerIssuer")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}
