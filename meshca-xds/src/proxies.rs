//! The proxies that are connected, each with its streams, and how far each is.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use meshca_core::Result;
use meshca_core::spiffe::Workload;
use meshca_identity::{Acknowledged, Handle, Manager};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::authenticate::Attested;
use crate::event::ProxyId;
use crate::proxy::{Fallback, Trust};
use crate::secrets::identity_version;
use crate::stream::TrustState;

/// All of them.
#[derive(derive_more::Debug)]
#[debug("{} proxies", self.count())]
pub(crate) struct Proxies {
    manager: Manager,
    entries: Mutex<HashMap<ProxyId, Weak<Entry>>>,
    /// Proxies that refused trust of their mesh, connected or not: one that is restarted has none to keep, if it refuses it again.
    #[debug(skip)]
    fallbacks: Mutex<Fallbacks>,
}

type Fallbacks = HashMap<ProxyId, (Arc<Workload>, Fallback)>;

/// One proxy, as it was attested; it is connected for as long as a stream holds this.
pub(crate) struct Entry {
    pub(crate) id: ProxyId,
    workload: Arc<Workload>,
    /// Somebody was attested under this name who is not this workload. The streams of this one end, and say anew who they are.
    superseded: AtomicBool,
    connected: OnceCell<Arc<Connected>>,
    proxies: Weak<Proxies>,
}

pub(crate) struct Connected {
    pub(crate) handle: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    streams: BTreeMap<u64, Progress>,
    /// Streams that have ended a moment ago: what they brought is still in use, until another one brings it or it is given up.
    ended: Vec<(u64, Progress)>,
    /// The last report to the manager: it takes no interest in less, and need not be told the
    /// same twice.
    told: Acknowledged,
}

/// How far one stream is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    pub(crate) trust: TrustState,
    /// The versions of the identity in use, see [`Subscriptions::identities`](crate::stream).
    pub(crate) identities: Vec<Option<Arc<str>>>,
    /// All that it asks for.
    pub(crate) names: Vec<Arc<str>>,
}

/// How long a stream that has ended counts, if no other one asks for what it asked for: a proxy tries to connect again for longer than it
/// waits between two tries (Envoy: 30 s).
const RECONNECTS: Duration = Duration::from_secs(60);

impl Proxies {
    pub(crate) fn new(manager: Manager) -> Arc<Self> {
        Arc::new(Self {
            manager,
            entries: Mutex::default(),
            fallbacks: Mutex::default(),
        })
    }

    pub(crate) fn manager(&self) -> &Manager {
        &self.manager
    }

    /// A stream of this proxy has begun.
    pub(crate) async fn join(self: &Arc<Self>, attested: Attested) -> Result<Member> {
        let id = ProxyId {
            mesh: attested.mesh.into(),
            name: attested.name.into(),
        };
        let entry = self.entry(&id, attested.workload);
        let connect = || async {
            let workload = Arc::clone(&entry.workload);
            let handle = self
                .manager
                .connect(&id.mesh, Arc::clone(&id.name), workload)
                .await?;
            Ok::<_, meshca_core::Error>(Arc::new(Connected {
                handle,
                state: Mutex::default(),
            }))
        };
        let connected: &Arc<Connected> = entry.connected.get_or_try_init(connect).await?;
        let connected = Arc::clone(connected);
        let mut state = connected.state();
        let stream = state.next;
        state.next += 1;
        drop(state);
        let handle = connected.handle.clone();
        Ok(Member {
            stream,
            given_up: false,
            handle,
            connected,
            entry,
        })
    }

    /// The newest word on who a proxy is counts.
    fn entry(self: &Arc<Self>, id: &ProxyId, workload: Workload) -> Arc<Entry> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(id).and_then(Weak::upgrade) {
            if *entry.workload == workload && !entry.is_removed() {
                return entry;
            }
            entry.superseded.store(true, Ordering::SeqCst);
        }
        let entry = Arc::new(Entry {
            id: id.clone(),
            workload: Arc::new(workload),
            superseded: AtomicBool::new(false),
            connected: OnceCell::new(),
            proxies: Arc::downgrade(self),
        });
        entries.insert(id.clone(), Arc::downgrade(&entry));
        entry
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ProxyId, Weak<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the proxy of a stream accepted last, if it has refused trust since.
    pub(crate) fn accepted(&self, member: &Member) -> Option<Trust> {
        let fallbacks = self.fallbacks();
        let (workload, fallback) = fallbacks.get(member.id())?;
        // A name that was taken over is another proxy's.
        (**workload == **member.workload()).then(|| fallback.accepted.clone())
    }

    pub(crate) fn fall_back(&self, member: &Member, to: &Fallback) {
        let id = member.id();
        let mut fallbacks = self.fallbacks();
        // What was refused before this is no more.
        fallbacks.retain(|it, (_, known)| it.mesh != id.mesh || known.refused == to.refused);
        fallbacks.insert(id.clone(), (Arc::clone(member.workload()), to.clone()));
    }

    /// The proxy has accepted the newest trust.
    pub(crate) fn recover(&self, member: &Member) {
        self.fallbacks().remove(member.id());
    }

    fn fallbacks(&self) -> MutexGuard<'_, Fallbacks> {
        self.fallbacks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How many proxies have a stream.
    pub(crate) fn count(&self) -> usize {
        self.entries().len()
    }

    /// Whether a proxy serves the identity that it has now, on all that it serves. `None`: it is not connected here.
    pub(crate) fn serves(&self, mesh: &str, name: &str) -> Option<bool> {
        let id = ProxyId {
            mesh: mesh.into(),
            name: name.into(),
        };
        let entry = self.entries().get(&id).and_then(Weak::upgrade)?;
        let connected = entry.connected.get()?;
        let current = connected.handle.identity();
        let current = current.map(|identity| identity_version(&identity));
        let state = connected.state();
        let mut served = state
            .counted()
            .flat_map(|stream| &stream.identities)
            .peekable();
        Some(
            served.peek().is_some()
                && served.all(|it| it.is_some() && it.as_deref() == current.as_deref()),
        )
    }
}

impl Entry {
    /// Whether its mesh was removed, so that a stream of now is of another one.
    fn is_removed(&self) -> bool {
        let connected = self.connected.get();
        connected.is_some_and(|it| it.handle.is_removed())
    }
}

impl State {
    /// The streams, and those that have ended and were not followed by another.
    fn counted(&self) -> impl Iterator<Item = &Progress> {
        let ended = self.ended.iter().map(|(_, progress)| progress);
        self.streams.values().chain(ended)
    }

    /// What the proxy has acknowledged on all of its streams, if that is more than was reported.
    fn news(&mut self) -> Option<Acknowledged> {
        // A proxy whose streams have only been sent their first trust has acknowledged nothing.
        // Once one stream has, the others hold it back: it may begin with what they were sent.
        let has_taken = |it: &Progress| matches!(it.trust, TrustState::At(_) | TrustState::Older);
        let taken = self.counted().any(has_taken);
        let on_each = self.counted().filter_map(|stream| match stream.trust {
            TrustState::At(version) | TrustState::First(version) => Some(version.into()),
            TrustState::Older => Some(Acknowledged::FromBefore),
            TrustState::NotAsked | TrustState::Nothing => None,
        });
        let least = on_each.min()?;
        (taken && least > self.told).then(|| {
            self.told = least;
            least
        })
    }
}

impl Connected {
    /// Tells the manager what is new.
    fn acknowledge(&self, state: &mut State) {
        if let Some(acknowledged) = state.news() {
            self.handle.acknowledge(acknowledged);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(proxies) = self.proxies.upgrade() {
            let mut entries = proxies.entries();
            // It may have been followed by another one.
            if entries
                .get(&self.id)
                .is_some_and(|it| it.strong_count() == 0)
            {
                entries.remove(&self.id);
            }
        }
    }
}

/// One stream of a proxy.
pub(crate) struct Member {
    stream: u64,
    /// The proxy has ended it, and does not want any more what it asked for.
    pub(crate) given_up: bool,
    /// Its own, to wait for changes on.
    pub(crate) handle: Handle,
    connected: Arc<Connected>,
    entry: Arc<Entry>,
}

impl Member {
    pub(crate) fn id(&self) -> &ProxyId {
        &self.entry.id
    }

    /// Who the proxy is.
    pub(crate) fn workload(&self) -> &Arc<Workload> {
        &self.entry.workload
    }

    /// Another one was attested under its name: nothing more is for this stream.
    pub(crate) fn is_superseded(&self) -> bool {
        self.entry.superseded.load(Ordering::SeqCst)
    }

    /// This stream is so far; the proxy is as far as the last of its streams.
    pub(crate) fn report(&self, progress: Progress) {
        let mut state = self.connected.state();
        // What has come back counts as what it is now.
        state
            .ended
            .retain(|(_, ended)| !ended.names.iter().all(|it| progress.names.contains(it)));
        state.streams.insert(self.stream, progress);
        self.connected.acknowledge(&mut state);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.connected.state();
        let Some(progress) = state.streams.remove(&self.stream) else {
            return;
        };
        // A proxy without any stream is the manager's to wait for.
        let runtime = tokio::runtime::Handle::try_current();
        if let Ok(runtime) = runtime
            && !self.given_up
            && !state.streams.is_empty()
            && !progress.names.is_empty()
        {
            let ended = self.stream;
            state.ended.push((ended, progress));
            let connected = Arc::downgrade(&self.connected);
            runtime.spawn(async move {
                sleep(RECONNECTS).await;
                if let Some(connected) = connected.upgrade() {
                    let mut state = connected.state();
                    state.ended.retain(|(stream, _)| *stream != ended);
                    connected.acknowledge(&mut state);
                }
            });
        }
        self.connected.acknowledge(&mut state);
    }
}
