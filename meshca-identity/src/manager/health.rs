//! How a workload is doing.

use derive_more::Display;

/// What a workload's identity is worth.
///
/// An outage of a CA is a matter of readiness, never of liveness: restarting a control plane does not bring its CA back.
#[derive(Clone, Copy, Debug, Default, Display, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[display("{}", self.as_str())]
#[non_exhaustive]
#[repr(u8)]
pub enum Health {
    /// It has none yet.
    #[default]
    Pending = 0,
    /// Valid, and renewed in time.
    Fresh = 1,
    /// Valid, but its renewal fails.
    Stale = 2,
    /// It has ended, and there is no other.
    Expired = 3,
}

impl Health {
    pub(crate) fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Fresh,
            2 => Self::Stale,
            3 => Self::Expired,
            _ => Self::Pending,
        }
    }

    /// The name of it, for labels of metrics: `pending`, `fresh`, `stale`, `expired`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Expired => "expired",
        }
    }
}

/// Who is to give a workload its identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Assignment {
    /// Not known yet: the resources of its mesh have not been applied, or what was selected for it is not ready.
    #[default]
    Waiting = 0,
    /// A CA, by this manager.
    Issuer = 1,
    /// A SPIRE agent beside the proxy: nothing is issued here.
    Agent = 2,
    /// Nobody: mTLS is off for it.
    Nobody = 3,
}

impl Assignment {
    pub(crate) fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Issuer,
            2 => Self::Agent,
            3 => Self::Nobody,
            _ => Self::Waiting,
        }
    }
}

/// Numbers of a [`Manager`](crate::Manager), for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Meshes of which something is known, or that somebody looks at.
    pub meshes: usize,
    /// Workloads without an identity.
    pub pending: usize,
    /// Workloads that are well.
    pub fresh: usize,
    /// Workloads whose renewal fails.
    pub stale: usize,
    /// Workloads whose identity has ended.
    pub expired: usize,
    /// Requests that CAs are working on.
    pub in_flight: usize,
    /// CAs that are left alone because they failed too many.
    pub open_breakers: usize,
}
