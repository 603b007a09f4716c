//! What happened, for metrics, audit records and events.

use std::fmt;
use std::time::{Duration, SystemTime};

use meshca_core::{Error, RotationStep, SpiffeId, TrustDomain};

use crate::{Acknowledged, BackendKey, TrustVersion};

/// Is told what happens. Called by the driver itself, which waits: hand on what takes time. A panic in here is logged, and harms nobody else.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use meshca_identity::manager::{Event, Observer};
///
/// #[derive(Debug, Default)]
/// struct Issued(AtomicUsize);
///
/// impl Observer for Issued {
///     fn observe(&self, event: &Event<'_>) {
///         if let Event::Issued { .. } = event {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    fn observe(&self, event: &Event<'_>);
}

/// What happened. `Display` is a line for a log.
#[derive(Clone, Debug, derive_more::Display)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A workload has its first identity.
    #[display("{mesh}/{workload} is {spiffe_id} (serial {serial})")]
    #[non_exhaustive]
    Issued {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// Who it is.
        spiffe_id: &'a SpiffeId,
        /// The serial number of its certificate.
        serial: &'a str,
        /// When it ends.
        not_after: SystemTime,
        /// How long the CA took.
        took: Duration,
    },
    /// A workload has the next one.
    #[display(
        "{mesh}/{workload} is {spiffe_id} {} (serial {serial})",
        since(before, spiffe_id)
    )]
    #[non_exhaustive]
    Renewed {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// Who it was: the same, but for a change of its labels or of the resources.
        before: &'a SpiffeId,
        /// Who it is.
        spiffe_id: &'a SpiffeId,
        /// The serial number of its certificate.
        serial: &'a str,
        /// When it ends.
        not_after: SystemTime,
        /// How long the CA took.
        took: Duration,
    },
    /// A CA did not give a workload what it was asked for. It is tried again.
    #[display("{mesh}/{workload} gets nothing from {backend}: {error}")]
    #[non_exhaustive]
    Failing {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// What went wrong.
        error: &'a Error,
    },
    /// A renewal failed for the first time, or there is none at three quarters of the lifetime, whatever the reason; what the workload holds is
    /// still valid.
    #[display("{mesh}/{workload} cannot be renewed; what it holds is still valid")]
    #[non_exhaustive]
    Stale {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
    },
    /// What a workload holds has ended, and there is no other.
    #[display("{mesh}/{workload} holds nothing that is valid")]
    #[non_exhaustive]
    Expired {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
    },
    /// A proxy has not acknowledged the trust of its mesh for a minute. Before a CA uses a new root, it is waited
    /// for. Told once for each version, of a hundred proxies at most.
    #[display("{mesh}/{workload} has acknowledged {acknowledged} of the trust, and not {version}")]
    #[non_exhaustive]
    ProxyLags {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
        /// All that it has acknowledged.
        acknowledged: Acknowledged,
        /// The version that it has not.
        version: TrustVersion,
    },
    /// A proxy refuses the trust of its mesh, and goes on with what it had: a fault of that proxy, as long as no
    /// [`TrustSuspected`](Self::TrustSuspected) follows. It is said once for each version.
    #[display("{mesh}/{workload} refuses version {version} of the trust, and keeps what it had")]
    #[non_exhaustive]
    ProxyRefuses {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
        /// What it refuses.
        version: TrustVersion,
    },
    /// Proxies of several owners refuse the same trust, so that it is at fault and not they. No proxy is left behind for what came with it or
    /// after it. Owners are told apart by the namespaces of their proxies, or by SPIFFE IDs.
    #[display(
        "{mesh}: proxies of several owners refuse version {version} of the trust: look at the roots that came with it"
    )]
    #[non_exhaustive]
    TrustSuspected {
        /// The mesh.
        mesh: &'a str,
        /// What they refuse.
        version: TrustVersion,
    },
    /// A CA uses a new root without a proxy that does not answer: others would have lost what they hold. See
    /// [`ManagerOptions::release_laggards_at`](super::ManagerOptions::release_laggards_at).
    #[display(
        "{mesh}/{workload} is left behind: {backend} uses a new root, and it has acknowledged {acknowledged} and not {needed}"
    )]
    #[non_exhaustive]
    ProxyReleased {
        /// The mesh.
        mesh: &'a str,
        /// The name that it connected under.
        workload: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// All that it has acknowledged.
        acknowledged: Acknowledged,
        /// What it would have had to acknowledge.
        needed: Acknowledged,
    },
    /// A CA is ready.
    #[display("{mesh}: {backend} is ready")]
    #[non_exhaustive]
    BackendReady {
        /// The mesh.
        mesh: &'a str,
        /// The CA.
        backend: &'a BackendKey,
    },
    /// A CA cannot be set up, or its roots cannot be read. It is tried again, and this is said each time; what worked before goes on.
    /// Or peers would refuse what it signs, since the trust of the mesh lacks its root. Then it issues
    /// nothing until the root is there, which [`BackendReady`](Self::BackendReady) reports.
    #[display("{mesh}: {backend} fails: {error}")]
    #[non_exhaustive]
    BackendFailing {
        /// The mesh.
        mesh: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// What went wrong.
        error: &'a Error,
    },
    /// A CA that is asked from time to time says that it would not sign, and why; or without an error that it would again. What it
    /// signs all the same counts for more.
    #[display("{mesh}: {backend} {}", verdict(*error))]
    #[non_exhaustive]
    Checked {
        /// The mesh.
        mesh: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// Why it would not.
        error: Option<&'a Error>,
    },
    /// A CA was taken a step further in its replacement.
    #[display("{mesh}: {backend} {}", done(*step))]
    #[non_exhaustive]
    Rotated {
        /// The mesh.
        mesh: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// The step.
        step: RotationStep,
    },
    /// The trust of a mesh is another one.
    #[display("{mesh}: its trust is another one, version {version}")]
    #[non_exhaustive]
    TrustChanged {
        /// The mesh.
        mesh: &'a str,
        /// Its version; it grows.
        version: TrustVersion,
    },
    /// A root that workloads trust ends soon, or has ended. Said once for each.
    #[display("{mesh}: the root `{subject}` of {trust_domain} ends soon or has ended: replace it")]
    #[non_exhaustive]
    RootEnding {
        /// The mesh.
        mesh: &'a str,
        /// Whose root.
        trust_domain: &'a TrustDomain,
        /// Its subject.
        subject: &'a str,
        /// When it ends.
        not_after: SystemTime,
    },
    /// A root in a MeshTrust cannot be an anchor. It is left out of the trust of the mesh, since Envoy would refuse the
    /// whole trust for it; the others stand. Said once, until the resources name it no more.
    #[display("{mesh}: a root is left out of its trust: {error}")]
    #[non_exhaustive]
    RootLeftOut {
        /// The mesh.
        mesh: &'a str,
        /// Which root, where it is named, and why.
        error: &'a Error,
    },
    /// What proxies may hold could not be [stored](crate::manager#across-restarts). It is tried again, and this is said each time; a control
    /// plane that starts in the meantime knows less than this one.
    #[display(
        "{mesh}: what its proxies trust could not be stored for a control plane that comes after this one: {error}"
    )]
    #[non_exhaustive]
    NotRecorded {
        /// The mesh.
        mesh: &'a str,
        /// What went wrong.
        error: &'a Error,
    },
    /// A CA was made, since there was none in the secret store, and nothing showed that there was one
    /// before, or an operator had [confirmed](Event::NewCaConfirmed) it.
    #[display("{mesh}: {backend} has a new CA, `{subject}` (SHA-256 of its root: {fingerprint})")]
    #[non_exhaustive]
    CaCreated {
        /// The mesh.
        mesh: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// The subject of its root.
        subject: &'a str,
        /// SHA-256 of its root in lower-case hex.
        fingerprint: &'a str,
    },
    /// Somebody decided that a new CA takes the place of one whose secrets are lost.
    #[display("{mesh}: a new CA for {backend} was confirmed ({reason})")]
    #[non_exhaustive]
    NewCaConfirmed {
        /// The mesh.
        mesh: &'a str,
        /// The CA.
        backend: &'a BackendKey,
        /// Who and why, in the words of who did it.
        reason: &'a str,
    },
    /// By this control plane's clock something in the trust record has ended, but the clock
    /// [disagrees](crate::manager#across-restarts) with the record or with the time that has passed. No
    /// root is removed. Said once for each doubt.
    #[display(
        "{mesh}: no root is removed, since the clock of this control plane disagrees with what others have recorded or was set ahead: compare the clocks of all replicas"
    )]
    #[non_exhaustive]
    ClockDoubted {
        /// The mesh.
        mesh: &'a str,
        /// What the clock says.
        clock: SystemTime,
    },
    /// Somebody decided not to wait for proxies that do not trust a root yet: connections to those will fail.
    #[display(
        "{mesh}: BREAK GLASS: new roots are used although proxies have not acknowledged them ({reason})"
    )]
    #[non_exhaustive]
    BreakGlass {
        /// The mesh.
        mesh: &'a str,
        /// Why, in the words of who did it.
        reason: &'a str,
    },
}

impl<'a> Event<'a> {
    /// The name of it, for labels of metrics: `issued`, `backend_failing`, …
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Issued { .. } => "issued",
            Self::Renewed { .. } => "renewed",
            Self::Failing { .. } => "failing",
            Self::Stale { .. } => "stale",
            Self::Expired { .. } => "expired",
            Self::ProxyLags { .. } => "proxy_lags",
            Self::ProxyReleased { .. } => "proxy_released",
            Self::ProxyRefuses { .. } => "proxy_refuses",
            Self::TrustSuspected { .. } => "trust_suspected",
            Self::BackendReady { .. } => "backend_ready",
            Self::BackendFailing { .. } => "backend_failing",
            Self::Checked { .. } => "checked",
            Self::Rotated { .. } => "rotated",
            Self::TrustChanged { .. } => "trust_changed",
            Self::RootEnding { .. } => "root_ending",
            Self::RootLeftOut { .. } => "root_left_out",
            Self::NotRecorded { .. } => "not_recorded",
            Self::BreakGlass { .. } => "break_glass",
            Self::CaCreated { .. } => "ca_created",
            Self::NewCaConfirmed { .. } => "new_ca_confirmed",
            Self::ClockDoubted { .. } => "clock_doubted",
        }
    }

    /// The mesh that it is about.
    pub fn mesh(&self) -> &'a str {
        match self {
            Self::Issued { mesh, .. }
            | Self::Renewed { mesh, .. }
            | Self::Failing { mesh, .. }
            | Self::Stale { mesh, .. }
            | Self::Expired { mesh, .. }
            | Self::ProxyLags { mesh, .. }
            | Self::ProxyReleased { mesh, .. }
            | Self::ProxyRefuses { mesh, .. }
            | Self::TrustSuspected { mesh, .. }
            | Self::BackendReady { mesh, .. }
            | Self::BackendFailing { mesh, .. }
            | Self::Checked { mesh, .. }
            | Self::Rotated { mesh, .. }
            | Self::TrustChanged { mesh, .. }
            | Self::RootEnding { mesh, .. }
            | Self::RootLeftOut { mesh, .. }
            | Self::NotRecorded { mesh, .. }
            | Self::CaCreated { mesh, .. }
            | Self::NewCaConfirmed { mesh, .. }
            | Self::ClockDoubted { mesh, .. }
            | Self::BreakGlass { mesh, .. } => mesh,
        }
    }

    /// The name of the workload that it is about, if it is about one.
    pub fn workload(&self) -> Option<&'a str> {
        match self {
            Self::Issued { workload, .. }
            | Self::Renewed { workload, .. }
            | Self::Failing { workload, .. }
            | Self::Stale { workload, .. }
            | Self::ProxyLags { workload, .. }
            | Self::ProxyReleased { workload, .. }
            | Self::ProxyRefuses { workload, .. }
            | Self::Expired { workload, .. } => Some(workload),
            _ => None,
        }
    }

    /// The CA that it is about, if it is about one.
    pub fn backend(&self) -> Option<&'a BackendKey> {
        match self {
            Self::Issued { backend, .. }
            | Self::Renewed { backend, .. }
            | Self::Failing { backend, .. }
            | Self::ProxyReleased { backend, .. }
            | Self::BackendReady { backend, .. }
            | Self::BackendFailing { backend, .. }
            | Self::CaCreated { backend, .. }
            | Self::NewCaConfirmed { backend, .. }
            | Self::Checked { backend, .. }
            | Self::Rotated { backend, .. } => Some(backend),
            _ => None,
        }
    }
}

/// The effect of a step of a rotation, as the end of a sentence about a CA.
fn done(step: RotationStep) -> &'static str {
    match step {
        RotationStep::Prepare => "has its next CA prepared",
        RotationStep::Activate => "signs with its next CA",
        _ => "has forgotten its former CA",
    }
}

/// The end of a sentence about a CA that was checked.
fn verdict(error: Option<&Error>) -> String {
    error.map_or_else(
        || "would sign again".to_owned(),
        |error| format!("would not sign: {error}"),
    )
}

/// Compares the SPIFFE ID with the one before the renewal, as the end of a sentence about it.
fn since(before: &SpiffeId, now: &SpiffeId) -> String {
    match before == now {
        true => "again".to_owned(),
        false => format!("now, and was {before}"),
    }
}
