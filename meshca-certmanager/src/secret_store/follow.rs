//! Hears of every change, by a list and a watch from there on.
//!
//! kube's own `watcher` does not say that it is alive while nothing changes, and a cache that is served must know.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::runtime::watcher::DefaultBackoff;
use tokio::time::{Instant, sleep, timeout_at};

use super::api::Api;
use super::cache::{Known, lock};
use super::object::{Object, TYPE};
use crate::error::{CALL_TIMEOUT, code, limited};

/// How long one watch lasts. Its end in good order is the proof that nothing was missed until it began, so two of them are shorter
/// than what is known may be served.
const WATCH: Duration = Duration::from_secs(10);
/// How much sooner the server may end it.
const EARLY: Duration = Duration::from_secs(1);
/// The longest pause after a failure: a change is to be seen within seconds.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Secrets on a page of a list; each may have a megabyte.
const PAGE: u32 = 20;

/// Never ends.
pub(super) async fn follow(api: Api, known: Arc<Known>) {
    let mut pauses = DefaultBackoff::default();
    let mut said = String::new();
    loop {
        let end = match list(&api, &known).await {
            Ok(from) => watch(&api, &known, from).await,
            Err(error) => Some(error),
        };
        if let Some(error) = end {
            let error = error.to_string();
            // Once, and not every few seconds for as long as a right is missing.
            if error != said {
                tracing::warn!(
                    namespace = %api.namespace,
                    %error,
                    "secrets cannot be watched for now: they are listed again, or read one by one"
                );
                said = error;
            }
        }
        // Whatever the end was: a server that ends every watch at once would be asked without a pause.
        pause(&mut pauses).await;
    }
}

async fn pause(pauses: &mut DefaultBackoff) {
    let pause = pauses.next().unwrap_or(MAX_PAUSE);
    sleep(pause.min(MAX_PAUSE)).await;
}

fn selector() -> String {
    format!("type={TYPE}")
}

/// Everything that there is, and the state to watch from.
async fn list(api: &Api, known: &Known) -> Result<String, kube::Error> {
    let mut objects = Vec::new();
    let mut parameters = ListParams::default().fields(&selector()).limit(PAGE);
    // All pages show the state of the first one.
    let asked = Instant::now();
    let at = loop {
        let page = api.list(&parameters).await?;
        objects.extend(page.items);
        match page.metadata.next.filter(|next| !next.is_empty()) {
            Some(next) => parameters.continue_token = Some(next),
            None => break page.metadata.resource_version,
        }
    };
    let mut known = lock(known);
    known.replace(objects, &at);
    known.heard(asked);
    Ok(at)
}

/// Watches for as long as each watch can begin where the last one ended in good order. Says what was wrong, if it was more than that
/// the states to begin with are too old.
///
/// Neither the head of an answer nor an event shows that one hears of everything: a proxy may cut off each watch after that.
async fn watch(api: &Api, known: &Known, mut from: String) -> Option<kube::Error> {
    let seconds = u32::try_from(WATCH.as_secs()).unwrap_or(u32::MAX);
    let parameters = WatchParams::default().fields(&selector()).timeout(seconds);
    loop {
        let began = Instant::now();
        let events = match limited(api.watch(&parameters, &from)).await {
            Ok(events) => events,
            Err(error) => return unless_too_old(error),
        };
        let mut events = std::pin::pin!(events);
        loop {
            // The server ends it; this is for one that cannot say so any more.
            let event = match timeout_at(began + WATCH + CALL_TIMEOUT, events.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return unless_too_old(error),
                Err(_) => return Some(broken("the watch does not end")),
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    from.clone_from(&object.metadata.resource_version);
                    lock(known).apply(object);
                }
                WatchEvent::Deleted(Object { metadata, .. }) => {
                    lock(known).delete(&metadata.name, &metadata.resource_version);
                    from = metadata.resource_version;
                }
                WatchEvent::Bookmark(bookmark) => from = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return unless_too_old(kube::Error::Api(status)),
            }
        }
        if began.elapsed() + EARLY < WATCH {
            return Some(broken("the watch was ended before its time"));
        }
        lock(known).heard(began);
    }
}

/// A list says what came since better than we could guess.
fn unless_too_old(error: kube::Error) -> Option<kube::Error> {
    match code(&error) {
        Some(410) => None,
        _ => Some(error),
    }
}

fn broken(what: &'static str) -> kube::Error {
    kube::Error::Service(what.into())
}
