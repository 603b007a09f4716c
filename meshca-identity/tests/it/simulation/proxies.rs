//! Proxies, honest and not.

use std::sync::Arc;

use meshca_core::TrustDomain;
use meshca_identity::{Acknowledged, Handle, TrustBundles, TrustVersion};
use tokio::time::Instant;

use super::dice::Dice;
use super::replica::Replica;
use super::spec::MESHES;
use crate::world::workload;

/// What a proxy does with trust that it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It uses it, and says so.
    Prompt,
    /// The same, some time later.
    Late,
    /// It says nothing, and uses what it had.
    Silent,
    /// It says that it uses it, and what nobody has published, and does not.
    False,
    /// It refuses it, and uses what it had.
    Refuses,
}

pub(super) const MANNERS: [Manner; 5] = [
    Manner::Prompt,
    Manner::Late,
    Manner::Silent,
    Manner::False,
    Manner::Refuses,
];

pub(super) struct Proxy {
    pub(super) name: String,
    pub(super) mesh: usize,
    pub(super) tenant: usize,
    pub(super) replica: usize,
    pub(super) handle: Option<Handle>,
    pub(super) manner: Manner,
    /// The trust that it uses.
    pub(super) uses: Arc<TrustBundles>,
    /// The process that it has that from, by replica and life, to which it has acknowledged it.
    ground: Option<(usize, usize)>,
    /// The version of that.
    pub(super) acknowledged: Option<TrustVersion>,
    connected: Instant,
    /// It is known to be left behind.
    pub(super) released: bool,
    /// It has refused something in this process.
    pub(super) has_refused: bool,
    /// The serial number that was seen last.
    pub(super) seen: Option<String>,
}

impl Proxy {
    pub(super) fn new(mesh: usize, number: usize, tenant: usize, replica: usize) -> Self {
        Self {
            name: format!("t{tenant}-w{number}"),
            mesh,
            tenant,
            replica,
            handle: None,
            manner: Manner::Prompt,
            uses: Arc::default(),
            ground: None,
            acknowledged: None,
            connected: Instant::now(),
            released: false,
            has_refused: false,
            seen: None,
        }
    }

    pub(super) async fn connect(&mut self, replica: &Replica) {
        let name = self.name.as_str();
        let manager = &replica.manager;
        let handle = manager.connect(MESHES[self.mesh], name, workload(name));
        let handle = handle.await.unwrap();
        if !self.uses.is_empty() && self.manner != Manner::False {
            handle.acknowledge(Acknowledged::FromBefore);
        }
        if self.ground != Some((replica.number, replica.life)) {
            self.ground = None;
            self.has_refused = false;
            self.released = false;
        }
        // It is sent all anew over a new connection.
        self.acknowledged = None;
        self.replica = replica.number;
        self.connected = Instant::now();
        self.seen = None;
        self.handle = Some(handle);
    }

    /// Does with the newest trust what it does.
    pub(super) fn act(&mut self, life: usize, dice: &mut Dice) {
        let Some(handle) = &self.handle else {
            return;
        };
        let version = handle.trust_version();
        handle.sent(version);
        if self.acknowledged == Some(version) && self.manner != Manner::False {
            return;
        }
        match self.manner {
            Manner::Prompt => {}
            Manner::Late if dice.one_in(6) => {}
            Manner::Late | Manner::Silent => return,
            Manner::False => {
                let unpublished = TrustVersion::new(version.get() + 1000).unwrap();
                handle.acknowledge(dice.pick(&[version, unpublished, TrustVersion::default()]));
                handle.acknowledge(version);
                // What it says is of no use from here on.
                self.ground = None;
                self.acknowledged = None;
                return;
            }
            Manner::Refuses => {
                handle.rejected(version);
                self.has_refused = true;
                return;
            }
        }
        self.uses = handle.trust();
        handle.acknowledge(version);
        self.acknowledged = Some(version);
        self.ground = Some((self.replica, life));
        self.released = false;
    }

    /// Whether it is owed trust before use by a process since before `then`: it is connected, what it acknowledged it uses,
    /// and it has that from there.
    pub(super) fn is_owed(&self, replica: usize, life: usize, then: Instant) -> bool {
        self.handle.is_some()
            && self.manner != Manner::False
            && !self.released
            && self.ground == Some((replica, life))
            && self.connected < then
    }

    /// Whether it has ever told the truth about what it uses, to any process.
    pub(super) fn is_grounded(&self) -> bool {
        self.handle.is_some() && self.manner != Manner::False && self.ground.is_some()
    }

    pub(super) fn trusts(&self, domain: &TrustDomain, root: &meshca_core::TrustRoot) -> bool {
        let bundle = self.uses.get(domain);
        bundle.is_some_and(|it| it.contains(root.der()))
    }

    /// Whether its mesh waits for it.
    pub(super) fn lags(&self) -> bool {
        let handle = self.handle.as_ref();
        let version = handle.map(Handle::trust_version);
        self.handle.is_some() && !self.uses.is_empty() && self.acknowledged < version
    }
}
