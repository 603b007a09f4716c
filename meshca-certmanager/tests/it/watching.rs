//! What the store of secrets serves while its watch is cut off, and what it learns without one.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshca_certmanager::KubeSecretStore;
use meshca_core::secret::MAX_STORE_LAG;
use meshca_core::{ErrorKind, Expect, Retry, SecretKey, SecretStore};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::api::{Answer, Call, answer, client, event, refusal, streamed};

/// How a watch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// In good order, for as long as was asked for.
    Sound,
    /// It ends in good order, but after so many seconds.
    Ends(u64),
    /// It says something of another secret, and is reset.
    Reset,
    /// The connection is open, and nothing comes, be it an end.
    Silent,
    TooOld,
}

struct Server {
    watch: Watch,
    /// Whether lists go on after the first one.
    lists: bool,
    secret: Mutex<Option<Value>>,
    calls: AtomicUsize,
    listed: AtomicUsize,
    read: AtomicUsize,
}

impl Server {
    fn new(watch: Watch, lists: bool, secret: Option<Value>) -> Arc<Self> {
        Arc::new(Self {
            watch,
            lists,
            secret: Mutex::new(secret),
            calls: AtomicUsize::default(),
            listed: AtomicUsize::default(),
            read: AtomicUsize::default(),
        })
    }

    fn store(self: &Arc<Self>) -> KubeSecretStore {
        let server = Arc::clone(self);
        let client = client(move |call| {
            let server = Arc::clone(&server);
            async move { server.answer(&call) }
        });
        KubeSecretStore::new(client, "mesh-system")
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn read(&self) -> usize {
        self.read.load(Ordering::SeqCst)
    }

    fn set(&self, secret: Option<Value>) {
        *self.secret.lock().unwrap() = secret;
    }

    fn answer(&self, call: &Call) -> Answer {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if call.is_watch() {
            return self.watch(&call.query);
        }
        let secret = self.secret.lock().unwrap().clone();
        if call.name() == "secrets" {
            if self.listed.fetch_add(1, Ordering::SeqCst) > 0 && !self.lists {
                return answer(503, refusal(503, "ServiceUnavailable", "secrets"));
            }
            let ours = secret.filter(|secret| secret["type"] == "system.kuma.io/secret");
            let items: Vec<Value> = ours.into_iter().collect();
            return answer(
                200,
                json!({"metadata": {"resourceVersion": "7"}, "items": items}),
            );
        }
        self.read.fetch_add(1, Ordering::SeqCst);
        match secret {
            Some(secret) => answer(200, secret),
            None => answer(404, refusal(404, "NotFound", "secrets")),
        }
    }

    fn watch(&self, query: &str) -> Answer {
        let (sender, answer) = streamed();
        let seconds = match self.watch {
            Watch::Sound => {
                let timeout = query
                    .split('&')
                    .find_map(|it| it.strip_prefix("timeoutSeconds="));
                timeout.unwrap().parse().unwrap()
            }
            Watch::Ends(seconds) => seconds,
            Watch::Silent => 1_000_000,
            Watch::Reset => {
                sender
                    .send(Ok(event("MODIFIED", &secret("other", "8", "x"))))
                    .unwrap();
                sender.send(Err(io::Error::other("reset"))).unwrap();
                return answer;
            }
            Watch::TooOld => {
                let gone = refusal(410, "Expired", "secrets");
                sender.send(Ok(event("ERROR", &gone))).unwrap();
                return answer;
            }
        };
        if seconds > 0 {
            tokio::spawn(async move {
                sleep(Duration::from_secs(seconds)).await;
                drop(sender);
            });
        }
        answer
    }
}

fn secret(name: &str, version: &str, value: &str) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": version},
        "type": "system.kuma.io/secret",
        "data": {"value": k8s_openapi::ByteString(value.as_bytes().to_vec())},
    })
}

fn key() -> SecretKey {
    SecretKey::new("default", "token").unwrap()
}

async fn value(store: &KubeSecretStore) -> String {
    let stored = store.get(&key()).await.unwrap().unwrap();
    stored.value.expose_str().unwrap().to_owned()
}

/// A proxy between us and the server may cut off each watch in a way of its own, and what the store serves is never too old.
#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_off_is_no_proof_of_having_heard() {
    for watch in [
        Watch::Ends(0),
        Watch::Ends(5),
        Watch::Reset,
        Watch::Silent,
        Watch::TooOld,
    ] {
        for lists in [true, false] {
            let server = Server::new(watch, lists, Some(secret("token", "5", "old")));
            let store = server.store();
            assert_eq!(value(&store).await, "old");
            for round in 0..10 {
                sleep(Duration::from_secs(7)).await;
                let (version, new) = (format!("1{round}"), format!("new {round}"));
                server.set(Some(secret("token", &version, &new)));
                sleep(MAX_STORE_LAG).await;
                assert_eq!(value(&store).await, new, "{watch:?}, lists: {lists}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_is_not_asked_without_a_pause() {
    for watch in [Watch::Ends(0), Watch::Reset, Watch::TooOld] {
        let server = Server::new(watch, true, Some(secret("token", "5", "old")));
        let store = server.store();
        value(&store).await;
        sleep(Duration::from_secs(60)).await;
        // A list and a watch, and then a pause of five seconds in the end.
        assert!(server.calls() < 60, "{watch:?}: {} calls", server.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_watch_is_sound_nobody_is_asked() {
    let server = Server::new(Watch::Sound, true, Some(secret("token", "5", "old")));
    let store = server.store();
    value(&store).await;
    let read = server.read();
    for _ in 0..600 {
        sleep(Duration::from_secs(1)).await;
        value(&store).await;
    }
    assert_eq!(server.read(), read);
    // One watch after the other.
    assert!(server.calls() < 70, "{} calls", server.calls());
}

#[tokio::test(start_paused = true)]
async fn a_secret_of_another_type_is_asked_for_each_time() {
    let mut opaque = secret("token", "5", "x");
    opaque["type"] = json!("Opaque");
    let server = Server::new(Watch::Sound, true, Some(opaque));
    let store = server.store();
    for _ in 0..2 {
        let error = store.get(&key()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        sleep(Duration::from_secs(5)).await;
    }
    server.set(None);
    assert!(store.get(&key()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn reading_what_is_absent_changes_nothing() {
    let server = Server::new(Watch::Sound, true, None);
    let store = server.store();
    assert!(store.get(&key()).await.unwrap().is_none());
    sleep(Duration::from_secs(1)).await;
    let revision = store.revision();
    for _ in 0..5 {
        assert!(store.get(&key()).await.unwrap().is_none());
    }
    assert_eq!(store.revision(), revision);
}

/// A conflict would have the writer read again and try again, for ever.
#[tokio::test(start_paused = true)]
async fn what_has_no_number_cannot_be_changed() {
    let server = Server::new(Watch::Sound, true, Some(secret("token", "five", "x")));
    let store = server.store();
    let stored = store.get(&key()).await.unwrap().unwrap();
    let expect = Expect::Version(stored.version.clone());
    for error in [
        store.put(&key(), "y".into(), expect).await.unwrap_err(),
        store.delete(&key(), &stored.version).await.unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unsupported, Retry::Never),
            "{error}"
        );
        assert!(
            error.to_string().contains("cannot be changed safely"),
            "{error}"
        );
    }
    // Somebody else's version is a conflict, as ever.
    let stale = Expect::Version(meshca_core::Version::new("four"));
    let error = store.put(&key(), "y".into(), stale).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
}
