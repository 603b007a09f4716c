//! The lanes of the scheduler, each of which is the queue of one CA.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ids::MeshId;
use crate::BackendKey;
use crate::schedule::{LaneId, Scheduler};

/// See the [module](self).
pub(super) struct Lanes {
    /// For workloads that no CA is to issue for. Nothing in it is ever started.
    pub(super) idle: LaneId,
    /// The CA of each lane. Its key is shared by all that is asked of it.
    owners: BTreeMap<LaneId, (MeshId, Arc<BackendKey>)>,
    /// Lanes of CAs that are gone, in which something is still in flight.
    closing: Vec<LaneId>,
}

impl Lanes {
    pub(super) fn new(scheduler: &mut Scheduler) -> Self {
        Self {
            idle: scheduler.open_lane(),
            owners: BTreeMap::new(),
            closing: Vec::new(),
        }
    }

    /// Opens the lane of a CA, in which nothing starts before the CA may sign.
    pub(super) fn open(
        &mut self,
        scheduler: &mut Scheduler,
        mesh: MeshId,
        key: &BackendKey,
    ) -> LaneId {
        let lane = scheduler.open_lane();
        scheduler.pause(lane, true);
        self.owners.insert(lane, (mesh, Arc::new(key.clone())));
        lane
    }

    pub(super) fn owner(&self, lane: LaneId) -> Option<(MeshId, &Arc<BackendKey>)> {
        let (mesh, key) = self.owners.get(&lane)?;
        Some((*mesh, key))
    }

    /// Has a lane closed once nothing is in flight in it. Until then its number is not given to
    /// another CA, which would count the answers to this one as its own.
    pub(super) fn retire(&mut self, lane: LaneId) {
        self.closing.push(lane);
    }

    pub(super) fn close_retired(&mut self, scheduler: &mut Scheduler) {
        let owners = &mut self.owners;
        self.closing.retain(|lane| {
            let closed = scheduler.close_lane(*lane);
            if closed {
                owners.remove(lane);
            }
            !closed
        });
    }
}
