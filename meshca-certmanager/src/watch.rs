//! One watch for all requests that wait.

use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
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
    changes: watch::Receiver<u64>,
    task: AbortHandle,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Requests {
    /// Must be called inside a tokio runtime.
    pub(crate) fn watch(api: Api<CertificateRequest>, name: String) -> Self {
        let (store, writer) = reflector::store();
        let (changed, changes) = watch::channel(0_u64);
        let (label, value) = MANAGED_BY;
        let config = watcher::Config::default().labels(&format!("{label}={value}"));
        let events = watcher(api, config)
            .default_backoff()
            // What is not needed is not kept.
            .modify(|request| request.metadata = slim(&request.metadata))
            .reflect(writer);
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(_) => changed.send_modify(|count| *count = count.wrapping_add(1)),
                    // It goes on by itself: relisting after 410 Gone, with pauses that grow.
                    Err(error) => {
                        tracing::warn!(issuer = %name, %error, "the watch on certificate requests was interrupted");
                    }
                }
            }
        });
        Self {
            store,
            changes,
            task: task.abort_handle(),
        }
    }

    /// Waits for the next change of any of them, after what `seen` has seen.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// What is known of one; `None` if it is not there (yet).
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<CertificateRequest>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
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
