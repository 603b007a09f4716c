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
use tokio::task::JoinSet;

use crate::crd::CertificateRequest;
use crate::error::line;

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
    _task: JoinSet<()>,
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
        let mut task = JoinSet::new();
        task.spawn(async move {
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
            _task: task,
        }
    }

    /// For whoever waits for news of one.
    pub(crate) fn news_of(&self, name: &str) -> News {
        self.waiting.news_of(name)
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
    *trouble = error.map(|error| line(&error.to_string()));
}

/// Who waits for news of which object. Not one signal for all: of a thousand that wait, one is meant.
#[derive(Default)]
struct Waiting(Mutex<HashMap<String, Place>>);

struct Place {
    sender: watch::Sender<()>,
    /// How many wait here. Receivers that are dropped side by side, outside the lock, would each take the other for one that stays.
    count: usize,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news_of(self: &Arc<Self>, name: &str) -> News {
        let mut places = self.lock();
        let place = places.entry(name.to_owned()).or_insert_with(|| Place {
            sender: watch::Sender::new(()),
            count: 0,
        });
        place.count += 1;
        News {
            name: name.to_owned(),
            receiver: place.sender.subscribe(),
            waiting: Arc::clone(self),
        }
    }

    fn tell(&self, name: &str) {
        if let Some(place) = self.lock().get(name) {
            place.sender.send_replace(());
        }
    }

    fn tell_all(&self) {
        for place in self.lock().values() {
            place.sender.send_replace(());
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
        let mut places = self.waiting.lock();
        if let Entry::Occupied(mut place) = places.entry(std::mem::take(&mut self.name)) {
            place.get_mut().count -= 1;
            if place.get().count == 0 {
                place.remove();
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_no_more_leaves_nothing_behind() {
        let waiting = Arc::new(Waiting::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        drop((waiting.news_of("a"), waiting.news_of("a")));
                    }
                });
            }
        });
        assert!(waiting.lock().is_empty());
    }
}
