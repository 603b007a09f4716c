//! What an embedder holds for each connected workload, and for each mesh.

use std::fmt;
use std::sync::Arc;

use meshca_core::resource::MeshTrust;
use meshca_core::spiffe::Workload;
use meshca_core::{Error, ErrorKind, Identity, Result, TrustDomain};
use tokio::sync::{oneshot, watch};

use super::cell::{MeshCell, WorkloadCell};
use super::health::{Assignment, Health};
use super::shared::{Command, Connection, Shared, ended};
use super::signal::news;
use super::status::IdentityStatus;
use crate::select::Selection;
use crate::{Acknowledged, BackendKey, Credentials, MeshResources, TrustBundles, TrustVersion};

/// A connected workload: its identity is kept fresh for as long as this is held.
///
/// Reading takes no lock and asks nobody. Two handles for the same name – a proxy that reconnects before its old connection is
/// noticed to be dead – share one identity, and so do clones of one, each of which waits for [changes](Self::changed) on its own. After
/// the last one is dropped the identity is kept for the time that [`ManagerOptions::linger`](super::ManagerOptions::linger) says, and is
/// then forgotten.
///
/// A handle belongs to one life of its mesh. After [`remove_mesh`](super::Manager::remove_mesh) it gets nothing new, also if a
/// mesh of that name is applied again: that may be somebody else's. End the connection of the proxy, see anew who it is
/// when it comes back, and connect it again.
#[derive(Clone)]
pub struct Handle {
    pub(super) connection: Arc<Connection>,
    /// Generations of the workload and of the mesh that [`changed`](Self::changed) has told of.
    pub(super) seen: [u64; 2],
}

impl Handle {
    /// The identity that the workload has now; it may have [ended](Health::Expired).
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.connection.cell.identity()
    }

    /// The identity with the CA that issued it, of which the resources say more. For a moment there is none while another CA's identity
    /// takes its place: [`changed`](Self::changed) tells when it has.
    pub fn issued(&self) -> Option<(Arc<Identity>, Arc<BackendKey>)> {
        self.connection.cell.issued()
    }

    /// Whom it trusts. What its own peers present is always in it: roots are published before they are used.
    pub fn trust(&self) -> Arc<TrustBundles> {
        let Connection { cell, mesh, .. } = &*self.connection;
        Arc::clone(&cell.trust(mesh).bundles)
    }

    /// Whether its mesh was removed: it gets nothing new, ever.
    pub fn is_removed(&self) -> bool {
        self.connection.cell.is_removed()
    }

    /// Identity and trust together, as a TLS library needs them; `None` without an identity.
    pub fn credentials(&self) -> Option<Credentials> {
        credentials(&self.connection.cell, &self.connection.mesh)
    }

    /// The same as a channel, which [`rustls023`](crate::rustls023) follows, by a task of the current tokio runtime that ends with the
    /// last receiver or the driver. **Keep the handle**: the channel does not keep the workload connected, and without a handle nothing
    /// new comes.
    pub fn watch_credentials(&self) -> watch::Receiver<Option<Credentials>> {
        let (sender, receiver) = watch::channel(self.credentials());
        let (shared, cell, mesh) = (
            Arc::clone(&self.connection.shared),
            Arc::clone(&self.connection.cell),
            Arc::clone(&self.connection.mesh),
        );
        tokio::spawn(async move {
            // What came after the first value was read is told at once.
            let mut seen = [0, 0];
            loop {
                tokio::select! {
                    changed = changed(&shared, &cell, &mesh, &mut seen) => {
                        let now = credentials(&cell, &mesh);
                        sender.send_if_modified(|before| {
                            let news = !same(before.as_ref(), now.as_ref());
                            if news {
                                *before = now;
                            }
                            news
                        });
                        if changed.is_err() {
                            return;
                        }
                    }
                    () = sender.closed() => return,
                }
            }
        });
        receiver
    }

    /// The version of [`trust`](Self::trust), for [`acknowledge`](Self::acknowledge). Read it
    /// **before** the trust that is sent.
    pub fn trust_version(&self) -> TrustVersion {
        let Connection { cell, mesh, .. } = &*self.connection;
        cell.trust(mesh).version
    }

    /// How it is doing, by the clock.
    pub fn health(&self) -> Health {
        let health = self.connection.cell.health();
        match self.connection.cell.identity() {
            Some(identity)
                if identity.certificate().validity().not_after()
                    < self.connection.shared.clock.now() =>
            {
                Health::Expired
            }
            _ => health,
        }
    }

    /// Who is to give it its identity.
    pub fn assignment(&self) -> Assignment {
        self.connection.cell.assignment()
    }

    /// Why the last try failed, if it did.
    pub fn error(&self) -> Option<Error> {
        self.connection.cell.error()
    }

    /// Waits until identity, health, assignment or trust, or the resources of the mesh, are not what the last call (or `connect`) saw.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when its mesh [was removed](Self::is_removed), and
    /// [`ErrorKind::Unavailable`] when the driver has ended: nothing will change any more.
    pub async fn changed(&mut self) -> Result<()> {
        changed(
            &self.connection.shared,
            &self.connection.cell,
            &self.connection.mesh,
            &mut self.seen,
        )
        .await
    }

    /// Waits for an identity that is valid, for as long as it takes: put a `tokio::time::timeout` around it, and see
    /// [`error`](Self::error) and [`Manager::gate`](super::Manager::gate) for what it waits for. Send the proxy its trust before that: with
    /// acknowledgements its identity may wait for it to be acknowledged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if none is issued for it here ([`Assignment::Agent`], [`Assignment::Nobody`]); those of
    /// [`changed`](Self::changed). A CA that fails is no error, it is waited for: see [`error`](Self::error).
    pub async fn ready(&mut self) -> Result<Arc<Identity>> {
        loop {
            if let Some(identity) = self.identity()
                && self.health() != Health::Expired
            {
                return Ok(identity);
            }
            match self.assignment() {
                Assignment::Agent => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "this workload gets its identity from a SPIRE agent",
                    ));
                }
                Assignment::Nobody => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "this workload gets no identity: no MeshIdentity selects it, and the mesh has no enabled backend",
                    ));
                }
                _ => self.changed().await?,
            }
        }
    }

    /// The workload has other labels or tags now. If that makes it someone else, it gets another identity.
    pub fn update(&self, workload: Workload) {
        self.connection.shared.send(Command::Update {
            ticket: self.connection.ticket,
            workload: Arc::new(workload),
        });
    }

    /// Records that the proxy now uses trust of this [version](Self::trust_version).
    ///
    /// Where [`ManagerOptions::acknowledgements`](super::ManagerOptions::acknowledgements) is on,
    /// the manager signs under a new root only after every proxy that has ever acknowledged
    /// anything has acknowledged a version with that root. The manager assumes that a proxy that
    /// has acknowledged nothing trusts no root yet, and does not wait for it.
    ///
    /// If a proxy comes back with trust from before a restart, of the control plane or of its own
    /// connection, acknowledge [`Acknowledged::FromBefore`] at once: the manager waits for it
    /// from then on. Losing a connection withdraws nothing until the workload is
    /// [forgotten](super::ManagerOptions::linger). The manager ignores versions that it has not
    /// published, and less than what was acknowledged before.
    pub fn acknowledge(&self, acknowledged: impl Into<Acknowledged>) {
        self.connection.shared.send(Command::Acknowledge {
            ticket: self.connection.ticket,
            acknowledged: acknowledged.into(),
        });
    }

    /// Records that the proxy was sent trust of this [version](Self::trust_version), over a connection that is there
    /// for as long as a handle is.
    ///
    /// Only a proxy of which this is known is ever
    /// [left behind](super::ManagerOptions::release_laggards_at).
    pub fn sent(&self, version: TrustVersion) {
        let ticket = self.connection.ticket;
        self.connection
            .shared
            .send(Command::Sent { ticket, version });
    }

    /// Records that the proxy has refused trust of this [version](Self::trust_version), and goes on with what it had
    /// before. The proxy is [named](super::Event::ProxyRefuses). Where proxies of several owners refuse the same version, that is
    /// [suspected](super::Event::TrustSuspected), and nobody is left behind for a root that came with it or after it.
    pub fn rejected(&self, version: TrustVersion) {
        let ticket = self.connection.ticket;
        self.connection
            .shared
            .send(Command::Rejected { ticket, version });
    }

    /// What was selected for it, and why.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when the driver has ended; [`ErrorKind::NotFound`] if the resources of the mesh were not applied.
    pub async fn selection(&self) -> Result<Selection> {
        let (reply, answer) = oneshot::channel();
        let ticket = self.connection.ticket;
        self.connection
            .shared
            .send(Command::Explain { ticket, reply });
        answer.await.map_err(|_| ended())?
    }

    /// The mesh that it is in.
    pub fn mesh(&self) -> MeshView {
        MeshView {
            shared: Arc::clone(&self.connection.shared),
            seen: self.connection.mesh.signal.count(),
            cell: Arc::clone(&self.connection.mesh),
        }
    }
}

/// Identity first: the trust that is read after it has its root.
fn credentials(cell: &WorkloadCell, mesh: &MeshCell) -> Option<Credentials> {
    let identity = cell.identity()?;
    Some(Credentials::new(
        identity,
        Arc::clone(&cell.trust(mesh).bundles),
    ))
}

fn same(one: Option<&Credentials>, other: Option<&Credentials>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => {
            Arc::ptr_eq(&one.identity, &other.identity) && Arc::ptr_eq(&one.trust, &other.trust)
        }
        (None, None) => true,
        _ => false,
    }
}

/// Waits until something is not what was seen.
async fn changed(
    shared: &Shared,
    cell: &WorkloadCell,
    mesh: &MeshCell,
    seen: &mut [u64; 2],
) -> Result<()> {
    let told = match cell.is_removed() {
        true => true,
        false => news(&cell.signal, Some(&mesh.signal), seen, &shared.closed).await,
    };
    match (told, cell.is_removed()) {
        (_, true) => Err(Error::new(
            ErrorKind::NotFound,
            "its mesh was removed: connect it again, after having seen who it is",
        )
        .with_context("mesh", mesh.name.clone())),
        (true, false) => Ok(()),
        (false, false) => Err(ended()),
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("mesh", &self.connection.mesh.name)
            .field("identity", &self.identity())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

/// What holds for all workloads of a mesh.
#[derive(Clone)]
pub struct MeshView {
    pub(super) shared: Arc<Shared>,
    pub(super) cell: Arc<MeshCell>,
    pub(super) seen: u64,
}

impl MeshView {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.cell.name
    }

    /// Whom its workloads trust, those without a MeshIdentity as well.
    pub fn trust(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.cell.trust.load().bundles)
    }

    /// The version of [`trust`](Self::trust). It grows.
    pub fn trust_version(&self) -> TrustVersion {
        self.cell.trust.load().version
    }

    /// The trust of one domain as a SPIFFE bundle document, with the version as its sequence number (SPIFFE Trust Domain and
    /// Bundle §4).
    pub fn spiffe_bundle(&self, trust_domain: &TrustDomain) -> Option<String> {
        let trust = self.cell.trust.load();
        let bundle = trust.bundles.get(trust_domain)?.clone();
        Some(
            bundle
                .with_sequence(trust.version.get())
                .with_refresh_hint(self.shared.refresh_hint)
                .to_spiffe_json(),
        )
    }

    /// The resources as they were applied last, of which [`TlsPolicy::resolve`](crate::tls::TlsPolicy::resolve) makes what a proxy is to be
    /// told; [`changed`](Self::changed) tells of others, and so does that of a [`Handle`].
    pub fn resources(&self) -> Option<Arc<MeshResources>> {
        self.cell.resources()
    }

    /// The MeshTrusts that are to exist for the CAs of MeshIdentities with `meshTrustCreation: Enabled`: store them, so that other
    /// zones and people see them, and [apply](super::Manager::apply) them with the rest. Roots are added to them before they are used, and retired after: those of a MeshIdentity that is gone, or of a
    /// trust domain that it had before, have a MeshTrust until nothing under them can be valid. (Classic CAs have none.)
    pub fn mesh_trusts(&self) -> Arc<Vec<MeshTrust>> {
        self.cell.trusts.load_full()
    }

    /// The status of each MeshIdentity.
    pub fn identity_statuses(&self) -> Arc<Vec<IdentityStatus>> {
        self.cell.statuses.load_full()
    }

    /// The zone of this control plane, which is part of the [KRI](meshca_core::resource::Metadata::kri) of a MeshIdentity.
    pub fn zone(&self) -> &str {
        &self.shared.zone
    }

    /// Waits until any of these are not what the last call saw, or this view when it was made.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when the driver has ended.
    pub async fn changed(&mut self) -> Result<()> {
        let mut seen = [self.seen, 0];
        let news = news(&self.cell.signal, None, &mut seen, &self.shared.closed).await;
        [self.seen, _] = seen;
        match news {
            true => Ok(()),
            false => Err(ended()),
        }
    }
}

impl fmt::Debug for MeshView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshView")
            .field("name", &self.cell.name)
            .field("trust", &self.trust())
            .finish_non_exhaustive()
    }
}
