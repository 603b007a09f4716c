//! A request becomes a `CertificateRequest`, and its status an answer.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use meshca_core::certificate::Settling;
use meshca_core::{
    CertificateRequest, Error, ErrorKind, LifetimePolicy, Profile, RequestId, Result, Retry,
    SignedChain,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::attempts::{Attempts, Leftovers, Object, wanted};
use crate::conditions::{Progress, Wait, progress};
use crate::crd::{self, GROUP, ObjectReference, Spec};
use crate::error::{code, limited};
use crate::rights::{Grant, refused};
use crate::settings::CertManagerSettings;
use crate::watch::{INSTANCE, MANAGED_BY, Requests};

/// What the control plane does with requests.
const VERBS: [&str; 5] = ["create", "get", "list", "watch", "delete"];
/// How many useless objects of one request are stepped over in one call.
const MAX_STEPS: u32 = 100;
/// The shortest time between two clean-ups, however short the timeout is.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The usages of the CA that `mode: Intermediate` has signed.
const CA_USAGES: [&str; 3] = ["cert sign", "crl sign", "digital signature"];
/// As good as for ever; beyond it, some clocks end.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Has certificates signed, and cleans up. What it returns is unverified.
pub(crate) struct Signing {
    pub(crate) settings: CertManagerSettings,
    pub(crate) client: Client,
    api: Api<crd::CertificateRequest>,
    attempts: Arc<Attempts>,
    pending: Semaphore,
    work: OnceLock<Work>,
}

/// What goes on in the background, from the first request on.
struct Work {
    requests: Requests,
    _cleaning: JoinSet<()>,
    /// An answer may be verified outside of the runtime.
    runtime: Handle,
}

/// What an issuer answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The UID of the object that has it.
    pub(crate) uid: String,
    pub(crate) certificate: Vec<u8>,
    pub(crate) ca: Option<Vec<u8>>,
}

impl Signing {
    pub(crate) fn new(settings: CertManagerSettings, client: Client) -> Self {
        Self {
            api: Api::namespaced(client.clone(), &settings.namespace),
            pending: Semaphore::new(settings.max_pending.get()),
            settings,
            client,
            attempts: Attempts::new(),
            work: OnceLock::new(),
        }
    }

    /// Must be called inside a tokio runtime.
    pub(crate) fn requests(self: &Arc<Self>) -> &Requests {
        let work = self.work.get_or_init(|| {
            let mut cleaning = JoinSet::new();
            cleaning.spawn(clean_up(Arc::downgrade(self), self.settings.timeout));
            Work {
                requests: Requests::watch(self.api.clone(), &self.settings.namespace, self.name()),
                _cleaning: cleaning,
                runtime: Handle::current(),
            }
        });
        &work.requests
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

    fn issuer_ref(&self) -> ObjectReference {
        let issuer = &self.settings.conf.issuer;
        ObjectReference {
            name: issuer.name.clone(),
            kind: Some(issuer.kind().to_owned()),
            group: Some(issuer.group().to_owned()),
        }
    }

    fn spec(&self, request: &CertificateRequest, cut: Option<Duration>) -> Result<Spec> {
        let spec = request.spec();
        let usages: Vec<String> = match spec.profile() {
            Profile::Workload => {
                let usages = self.settings.conf.usages().iter();
                usages.map(|usage| usage.as_str().to_owned()).collect()
            }
            _ => CA_USAGES.map(str::to_owned).into(),
        };
        Ok(Spec {
            request: ByteString(request.named_csr()?.to_pem().into_bytes()),
            issuer_ref: self.issuer_ref(),
            duration: match (cut, spec.lifetime_policy()) {
                (Some(cut), _) => Some(cut),
                (None, LifetimePolicy::LeftToIssuer) => None,
                (None, _) => Some(spec.lifetime()),
            }
            .map(|duration| format!("{}s", duration.as_secs())),
            is_ca: spec.profile() != Profile::Workload,
            usages,
        })
    }

    /// The object of this request: the one that is outstanding, or a new one. What is of no use is stepped over.
    async fn submit(
        &self,
        request: &CertificateRequest,
        cut: Option<Duration>,
    ) -> Result<crd::CertificateRequest> {
        let (spec, id) = (self.spec(request, cut)?, request.id());
        let first = self.attempts.number(id);
        let next = first.saturating_add(MAX_STEPS);
        for number in first..next {
            let name = object_name(id, number);
            self.attempts.expect(id, &name);
            let object = self.create(&name, spec.clone()).await?;
            // The same request, made to another issuer before the settings were changed.
            if object.spec.request != spec.request || object.spec.issuer_ref != spec.issuer_ref {
                continue;
            }
            let mine = self.object(&object);
            // An earlier process left it: what failed cannot be tried again.
            if matches!(progress(object.status.as_ref()), Progress::Failed(_)) {
                self.delete(&mine).await;
                continue;
            }
            self.attempts.set(id, number, Some(mine));
            return Ok(object);
        }
        self.attempts.set(id, next, None);
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "each of the {MAX_STEPS} certificate requests from `{}` on has failed, or is for another issuer: delete them, or try again for those after them",
                object_name(id, first)
            ),
        )
        .with_retry(Retry::Backoff))
    }

    /// How to find it again, and whether it is ours to delete.
    fn object(&self, object: &crd::CertificateRequest) -> Object {
        let metadata = &object.metadata;
        let labels = metadata.labels.as_ref();
        Object {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            ours: labels.and_then(|labels| labels.get(INSTANCE)) == Some(&self.settings.instance),
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
            annotations: Some(self.settings.conf.annotations.clone()).filter(|it| !it.is_empty()),
            owner_references: self.settings.owner.as_ref().map(|(pod, uid)| {
                vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: pod.clone(),
                    uid: uid.clone(),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        };
        let object = crd::CertificateRequest::new(metadata, spec);
        // Once more for what is deleted between the two calls.
        for _ in 0..3 {
            match limited(self.api.create(&PostParams::default(), &object)).await {
                Err(error) if code(&error) == Some(409) => {}
                Ok(made) => return Ok(made),
                Err(error) => return Err(self.refused(error, "create").await),
            }
            match limited(self.api.get_opt(name)).await {
                Ok(Some(existing)) => return Ok(existing),
                Ok(None) => {}
                Err(error) => return Err(self.refused(error, "get").await),
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("the certificate request `{name}` comes and goes: who else makes it?"),
        )
        .with_retry(Retry::Backoff))
    }

    /// What the control plane does with requests.
    pub(crate) fn grant(&self) -> Grant<'_> {
        Grant {
            group: GROUP,
            resource: "certificaterequests",
            verbs: &VERBS,
            namespace: Some(&self.settings.namespace),
        }
    }

    /// The error of a call that was refused.
    async fn refused(&self, error: kube::Error, verb: &str) -> Error {
        let doing = format!("{verb} a certificate request");
        refused(&self.client, self.grant(), error, &doing, verb).await
    }

    /// Waits until somebody decided.
    async fn decided(self: &Arc<Self>, object: &crd::CertificateRequest) -> Result<Progress> {
        let mut last = progress(object.status.as_ref());
        // What the watch knows may be older.
        if !matches!(last, Progress::Pending(_)) {
            return Ok(last);
        }
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let requests = self.requests();
        let mut news = requests.news_of(name);
        let deadline = after(self.settings.timeout);
        let mut seen = false;
        loop {
            news.look();
            match requests.get(name) {
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
            if timeout_at(deadline, news.wait()).await.is_err() {
                // For want of news, perhaps: then it is looked at once more.
                let now = limited(self.api.get_opt(name)).await.ok().flatten();
                if let Some(now) = now.filter(|now| now.metadata.uid == object.metadata.uid) {
                    last = progress(now.status.as_ref());
                }
                return match last {
                    Progress::Pending(wait) => Err(self.late(wait, name, requests.trouble())),
                    decided => Ok(decided),
                };
            }
        }
    }

    fn late(&self, wait: Wait, name: &str, trouble: Option<String>) -> Error {
        let seconds = self.settings.timeout.as_secs_f32();
        let why = match wait {
            Wait::Approval => {
                "nobody approved it: is cert-manager's approver running, or does a policy have to allow this issuer?".to_owned()
            }
            // cert-manager waits for the issuer to appear, and says `Referenced "Issuer" not found`.
            Wait::Issuer(said) if said.contains("not found") => {
                let issuer = &self.settings.conf.issuer;
                return Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "there is no {} `{}`, or what it needs: create it, or correct `issuerRef` (cert-manager: {said})",
                        issuer.kind(),
                        issuer.name
                    ),
                )
                .with_context("request", name)
                .with_retry(Retry::Backoff);
            }
            Wait::Issuer(said) if !said.is_empty() => {
                format!("it was approved, and the issuer says `{said}`")
            }
            Wait::Issuer(_) => "it was approved, and the issuer did nothing: is its controller running?".to_owned(),
        };
        let error = Error::new(
            ErrorKind::Timeout,
            format!("the certificate request was not decided within {seconds} s: {why}"),
        )
        .with_context("request", name);
        match trouble {
            Some(trouble) => error.with_context("the watch on requests", trouble),
            None => error,
        }
    }

    /// Deletes an object, if it is ours. What cannot be deleted now is cleaned up later.
    async fn delete(&self, object: &Object) {
        if !object.ours {
            return;
        }
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(object.uid.clone()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let name = &object.name;
        if let Err(error) = limited(self.api.delete(name, &parameters)).await
            && !matches!(code(&error), Some(404 | 409))
        {
            tracing::warn!(request = %name, %error, "a certificate request could not be deleted");
        }
    }

    /// Has one signed, without having it verified. `cut` is the lifetime to ask for instead of that
    /// of the request. An answer that is there already may have another.
    pub(crate) async fn sign(
        self: &Arc<Self>,
        request: &CertificateRequest,
        cut: Option<Duration>,
    ) -> Result<Answer> {
        // The watch before the object: no change is missed.
        self.requests();
        let _permit = self.pending.acquire().await.map_err(|error| {
            Error::new(ErrorKind::Internal, "the issuer is shut down").with_source(error)
        })?;
        let _caller = self.attempts.enter(request.id());
        let object = self.submit(request, cut).await?;
        let name = object.metadata.name.clone().unwrap_or_default();
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let error = match self.decided(&object).await? {
            Progress::Ready { certificate, ca } => {
                return Ok(Answer {
                    uid,
                    certificate,
                    ca,
                });
            }
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
        self.step_over(request.id(), &uid).await;
        Err(error.with_context("request", name))
    }

    /// Has the next call for a request make another object. This one is deleted.
    pub(crate) async fn step_over(&self, id: &RequestId, uid: &str) {
        if let Some(object) = self.attempts.useless(id, uid) {
            self.delete(&object).await;
        }
    }

    /// Notes at once that a request is done with: its object is not needed any more, and a refused
    /// one must not be found again.
    ///
    /// A task deletes the object, so that verification need not wait for it, and a caller that
    /// gives up does not stop it. What is returned ends with that task.
    pub(crate) fn settle(self: &Arc<Self>, id: &RequestId, refused: bool) -> Option<Settling> {
        let object = self.attempts.settle(id, refused).filter(|it| it.ours)?;
        let (signing, runtime) = (Arc::clone(self), self.work.get()?.runtime.clone());
        let deleted = runtime.spawn(async move { signing.delete(&object).await });
        Some(Box::pin(async move { drop(deleted.await) }))
    }

    /// Our objects, as far as they are known; those for an issuer that the settings no longer name, too.
    fn present(&self) -> Vec<Object> {
        let Some(work) = self.work.get() else {
            return Vec::new();
        };
        let all = work.requests.all();
        all.iter()
            .map(|object| self.object(object))
            .filter(|object| object.ours)
            .collect()
    }
}

/// Deletes from time to time what callers gave up, what could not be deleted before, and what an earlier process of this instance left.
async fn clean_up(signing: Weak<Signing>, timeout: Duration) {
    let patience = timeout.max(MIN_PAUSE);
    let mut leftovers = Leftovers::default();
    loop {
        sleep(patience).await;
        let Some(signing) = signing.upgrade() else {
            return;
        };
        let now = Instant::now();
        let mut due = signing.attempts.abandoned(now, patience);
        // In this order: what is there now was wanted before, if anybody wants it.
        let present = signing.present();
        due.extend(leftovers.due(present, &wanted(), now, patience));
        for object in &due {
            // Deleting the ones before took its time, and somebody may have come back.
            if !wanted().contains(&object.name) {
                signing.delete(object).await;
            }
        }
        if !due.is_empty() {
            tracing::info!(
                issuer = %signing.name(),
                deleted = due.len(),
                "certificate requests that nobody waits for were deleted"
            );
        }
    }
}

/// When a time is over.
fn after(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or_else(|| now + FOREVER)
}

fn object_name(id: &RequestId, attempt: u32) -> String {
    match attempt {
        0 => format!("meshca-{id}"),
        attempt => format!("meshca-{id}-{attempt}"),
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
