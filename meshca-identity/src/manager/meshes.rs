//! All meshes, by number and by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use meshca_core::{Error, ErrorKind, Identity, Result};

use super::backend::Backend;
use super::cell::MeshCell;
use super::ids::{CaRef, MeshId};
use super::lanes::Lanes;
use super::mesh::Mesh;
use super::shared::Command;
use crate::TrustVersion;
use crate::schedule::LaneId;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Meshes {
    by_id: BTreeMap<MeshId, Mesh>,
    by_name: HashMap<String, MeshId>,
    /// Commands that wait for the record of a mesh to be read, in their order: what follows the
    /// first resources of a mesh is about them.
    pub(super) reading: HashMap<String, Vec<Command>>,
    last_id: u32,
    last_epoch: u64,
}

impl Meshes {
    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn get(&self, id: MeshId) -> Option<&Mesh> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: MeshId) -> Option<&mut Mesh> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (MeshId, &Mesh)> {
        self.by_id.iter().map(|(id, mesh)| (*id, mesh))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Mesh> {
        self.by_id.values_mut()
    }

    pub(super) fn cell(&self, id: MeshId) -> Option<Arc<MeshCell>> {
        self.get(id).map(|mesh| Arc::clone(&mesh.cell))
    }

    /// A mesh of which something is known.
    pub(super) fn find(&self, name: &str) -> Result<(MeshId, &Mesh)> {
        let found = self.by_name.get(name);
        let found = found.and_then(|id| Some((*id, self.by_id.get(id)?)));
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "there is no such mesh: apply its resources first",
            )
            .with_context("mesh", name.to_owned())
        })
    }

    /// The mesh of a cell, which may be new here.
    pub(super) fn open(
        &mut self,
        cell: &Arc<MeshCell>,
        wall: SystemTime,
        acknowledgements: bool,
    ) -> MeshId {
        if let Some(id) = self.by_name.get(&cell.name) {
            return *id;
        }
        self.last_id += 1;
        let id = MeshId(self.last_id);
        self.by_name.insert(cell.name.clone(), id);
        // Versions grow across restarts too: what a proxy has acknowledged to the process before
        // this one is less than any of ours.
        let since_1970 = wall.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since_1970.unwrap_or_default().as_secs();
        let version = TrustVersion::new(seconds.saturating_mul(1024)).unwrap_or_default();
        let mesh = Mesh::new(Arc::clone(cell), version, acknowledgements);
        self.by_id.insert(id, mesh);
        id
    }

    /// Forgets a mesh. Its cell stays, for those who look at it and for when it comes back.
    pub(super) fn remove(&mut self, id: MeshId) {
        if let Some(mesh) = self.by_id.remove(&id) {
            self.by_name.remove(&mesh.cell.name);
            mesh.cell.empty();
        }
    }

    /// Whether the resources of a mesh have not been applied.
    pub(super) fn is_new(&self, name: &str) -> bool {
        let known = self.find(name);
        known.map_or(true, |(_, mesh)| mesh.resources.is_none())
    }

    /// The number of the next settings of a CA.
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.last_epoch += 1;
        self.last_epoch
    }

    /// The CA that is meant, as it is now.
    pub(super) fn backend(&self, ca: &CaRef) -> Option<&Backend> {
        self.get(ca.mesh)?.backends.get(&*ca.key)
    }

    pub(super) fn backend_mut(&mut self, ca: &CaRef) -> Option<&mut Backend> {
        self.get_mut(ca.mesh)?.backends.get_mut(&*ca.key)
    }

    /// The CA that a job was for, unless its settings have changed since.
    pub(super) fn current(&mut self, ca: &CaRef) -> Option<&mut Backend> {
        let backend = self.backend_mut(ca)?;
        (backend.life.epoch() == ca.epoch).then_some(backend)
    }

    /// The CA of a lane, as it is now.
    pub(super) fn of_lane(&self, lanes: &Lanes, lane: LaneId) -> Option<(CaRef, &Backend)> {
        let (mesh, key) = lanes.owner(lane)?;
        let backend = self.get(mesh)?.backends.get(&**key)?;
        let ca = CaRef {
            mesh,
            key: Arc::clone(key),
            epoch: backend.life.epoch(),
        };
        Some((ca, backend))
    }

    /// Whether the CA of a lane still names the root of a certificate that it signed.
    pub(super) fn names_root(&self, lanes: &Lanes, lane: LaneId, identity: &Identity) -> bool {
        let backend = lanes
            .owner(lane)
            .and_then(|(mesh, key)| self.get(mesh)?.backends.get(&**key));
        backend.is_none_or(|backend| backend.reach.names(identity.certificate().root()))
    }
}
