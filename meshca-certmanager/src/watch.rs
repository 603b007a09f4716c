//! One watch for all requests that wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::crd::CertificateRequest;

/// The label that all our requests have.
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "meshca");
/// The label that says which replica made one.
pub(crate) const INSTANCE: &str = "meshca.io/instance";

/// What is known of our requests, kept up to date by a task that ends with this.
pub(crate) struct Requests {
    store: Store<CertificateRequest>,
    namespace: String,
    waiting: Arc<Waiting>,
    trouble: Arc<Mutex<Option<String>>>,
    task: AbortHandle,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Requests {
    /// Must be called inside a tokio runtime.
    pub(crate) fn watch(api: Api<CertificateRequest>, namespace: &str, issuer: String) -> Self {
        let (store, writer) = reflector::store();
        let waiting = Arc::new(Waiting::default());
        let (label, value) = MANAGED_BY;
        let config = watcher::Config::default().labels(&format!("{label}={value}"));
        let events = watcher(api, config)
            .default_backoff()
            // What is not needed is not kept.
            .modify(|request| request.metadata = slim(&request.metadata))
            .reflect(writer);
        let told = Arc::clone(&waiting);
        let trouble = Arc::default();
        let noted = Arc::clone(&trouble);
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                note(&noted, event.as_ref().err());
                match event {
                    Ok(Event::Apply(request) | Event::Delete(request)) => {
                        told.tell(request.metadata.name.as_deref().unwrap_or_default());
                    }
                    Ok(Event::InitDone) => told.tell_all(),
                    Ok(Event::Init | Event::InitApply(_)) => {}
                    // It goes on by itself: relisting after 410 Gone, with pauses that grow.
                    Err(error) => {
                        tracing::warn!(%issuer, %error, "the watch on certificate requests was interrupted");
                    }
                }
            }
        });
        Self {
            store,
            namespace: namespace.to_owned(),
            waiting,
            trouble,
            task: task.abort_handle(),
        }
    }

    /// For whoever waits for news of one.
    pub(crate) fn news_of(&self, name: &str) -> News {
        let mut senders = self.waiting.lock();
        let receiver = match senders.entry(name.to_owned()) {
            Entry::Occupied(sender) => sender.get().subscribe(),
            Entry::Vacant(place) => place.insert(watch::Sender::new(())).subscribe(),
        };
        News {
            name: name.to_owned(),
            receiver,
            waiting: Arc::clone(&self.waiting),
        }
    }

    /// What is known of one; `None` if it is not there (yet).
    pub(crate) fn get(&self, name: &str) -> Option<Arc<CertificateRequest>> {
        self.store
            .get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// Why nothing is heard of them, if that is so.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All that are known.
    pub(crate) fn all(&self) -> Vec<Arc<CertificateRequest>> {
        self.store.state()
    }
}

fn note(trouble: &Mutex<Option<String>>, error: Option<&watcher::Error>) {
    let mut trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner);
    *trouble = error.map(ToString::to_string);
}

/// Who waits for news of which object. Not one signal for all: of a thousand that wait, one is meant.
#[derive(Default)]
struct Waiting(Mutex<HashMap<String, watch::Sender<()>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, name: &str) {
        if let Some(sender) = self.lock().get(name) {
            sender.send_replace(());
        }
    }

    fn tell_all(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }
}

/// News of one object, for as long as this lives.
pub(crate) struct News {
    name: String,
    receiver: watch::Receiver<()>,
    waiting: Arc<Waiting>,
}

impl News {
    /// What is looked at from now on needs no news.
    pub(crate) fn look(&mut self) {
        self.receiver.borrow_and_update();
    }

    /// Waits for something after the last [`look`](Self::look).
    pub(crate) async fn wait(&mut self) {
        // The sender is there for as long as we are.
        drop(self.receiver.changed().await);
    }
}

impl Drop for News {
    fn drop(&mut self) {
        let mut senders = self.waiting.lock();
        if let Entry::Occupied(sender) = senders.entry(std::mem::take(&mut self.name))
            // Ours.
            && sender.get().receiver_count() <= 1
        {
            sender.remove();
        }
    }
}

fn slim(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        labels: metadata.labels.clone(),
        ..ObjectMeta::default()
    }
}
