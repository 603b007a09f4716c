//! The proxies that are connected, each with its streams, and how far each is.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use meshca_core::Result;
use meshca_core::spiffe::Workload;
use meshca_identity::{Handle, Manager};
use tokio::sync::OnceCell;

use crate::authenticate::Attested;
use crate::event::ProxyId;
use crate::secrets::identity_version;
use crate::stream::TrustState;

/// All of them.
pub(crate) struct Proxies {
    manager: Manager,
    entries: Mutex<HashMap<ProxyId, Weak<Entry>>>,
}

/// One proxy; it is connected for as long as a stream holds this.
pub(crate) struct Entry {
    pub(crate) id: ProxyId,
    connected: OnceCell<Arc<Connected>>,
    proxies: Weak<Proxies>,
}

pub(crate) struct Connected {
    pub(crate) handle: Handle,
    state: Mutex<State>,
}

struct State {
    workload: Arc<Workload>,
    next: u64,
    streams: BTreeMap<u64, Progress>,
    /// What the manager was told last.
    told: u64,
}

/// How far one stream is.
#[derive(Clone, Debug)]
struct Progress {
    trust: TrustState,
    identities: Vec<Option<Arc<str>>>,
}

/// What a proxy that is older than this process has acknowledged: less than anything of this one.
const BEFORE: u64 = 1;

impl Proxies {
    pub(crate) fn new(manager: Manager) -> Arc<Self> {
        Arc::new(Self {
            manager,
            entries: Mutex::default(),
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
        let workload = Arc::new(attested.workload);
        let entry = self.entry(&id);
        let connect = || async {
            let handle = self
                .manager
                .connect(&id.mesh, Arc::clone(&id.name), Arc::clone(&workload))
                .await?;
            Ok::<_, meshca_core::Error>(Arc::new(Connected {
                handle,
                state: Mutex::new(State {
                    workload: Arc::clone(&workload),
                    next: 0,
                    streams: BTreeMap::new(),
                    told: 0,
                }),
            }))
        };
        let connected: &Arc<Connected> = entry.connected.get_or_try_init(connect).await?;
        let connected = Arc::clone(connected);
        let mut state = connected.state();
        // The newest word on who it is counts, for all its streams.
        if state.workload != workload {
            state.workload = Arc::clone(&workload);
            connected.handle.update((*workload).clone());
        }
        let stream = state.next;
        state.next += 1;
        drop(state);
        let handle = connected.handle.clone();
        Ok(Member {
            stream,
            handle,
            connected,
            entry,
        })
    }

    fn entry(self: &Arc<Self>, id: &ProxyId) -> Arc<Entry> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(id).and_then(Weak::upgrade) {
            return entry;
        }
        let entry = Arc::new(Entry {
            id: id.clone(),
            connected: OnceCell::new(),
            proxies: Arc::downgrade(self),
        });
        entries.insert(id.clone(), Arc::downgrade(&entry));
        entry
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ProxyId, Weak<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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
            .streams
            .values()
            .flat_map(|stream| &stream.identities)
            .peekable();
        Some(
            served.peek().is_some()
                && served.all(|it| it.is_some() && it.as_deref() == current.as_deref()),
        )
    }
}

impl Connected {
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
    /// Its own, to wait for changes on.
    pub(crate) handle: Handle,
    connected: Arc<Connected>,
    entry: Arc<Entry>,
}

impl Member {
    pub(crate) fn id(&self) -> &ProxyId {
        &self.entry.id
    }

    /// Who the proxy is now.
    pub(crate) fn workload(&self) -> Arc<Workload> {
        Arc::clone(&self.connected.state().workload)
    }

    /// This stream is so far; the proxy is as far as the last of its streams.
    pub(crate) fn report(&self, trust: TrustState, identities: Vec<Option<Arc<str>>>) {
        let mut state = self.connected.state();
        let progress = Progress { trust, identities };
        state.streams.insert(self.stream, progress);
        let mut least = None;
        for stream in state.streams.values() {
            let at = match stream.trust {
                TrustState::At(version) => version,
                TrustState::Older => BEFORE,
                TrustState::NotAsked | TrustState::Nothing => continue,
            };
            least = Some(least.map_or(at, |it: u64| it.min(at)));
        }
        if let Some(least) = least
            && least > state.told
        {
            state.told = least;
            self.connected.handle.acknowledge(least);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.connected.state().streams.remove(&self.stream);
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}
