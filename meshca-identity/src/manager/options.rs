//! The settings of a manager.

use std::time::Duration;

use meshca_core::secret::LocalSources;

use crate::schedule::ScheduleOptions;
use crate::select::SelectOptions;

/// The settings of a [`Manager`](crate::Manager).
///
/// ```
/// use std::time::Duration;
///
/// use meshca_core::spiffe::Environment;
/// use meshca_identity::ManagerOptions;
/// use meshca_identity::select::SelectOptions;
///
/// let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Kubernetes));
/// options.acknowledgements = true;
/// options.linger = Duration::from_secs(300);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ManagerOptions {
    /// Zone, environment, and what to do with MeshIdentities that win and are not ready.
    pub select: SelectOptions,
    /// Renewal, limits, backoff and breaker.
    pub schedule: ScheduleOptions,
    /// How long the identity of a workload without a handle is kept: proxies reconnect, and some
    /// CAs bill every certificate. As long does a control plane that [has
    /// started](crate::manager#across-restarts) wait for proxies to come back. 60 s.
    pub linger: Duration,
    /// How often a CA is asked for its roots, and the CA above it. A CA that declares a longer
    /// [interval](meshca_core::Capabilities::trust_interval) is asked that seldom, unless
    /// [secrets have changed](crate::Manager::secrets_changed). Twice as often the manager looks
    /// whether a store [tells of changes](meshca_core::SecretStore::revision), whether a CA is to
    /// be replaced, and whether the clock was set. 30 s.
    pub trust_refresh: Duration,
    /// How long a CA may take for one certificate where the resource does not say. 60 s.
    pub request_timeout: Duration,
    /// Whether proxies [acknowledge](crate::Handle::acknowledge) the trust that they have taken
    /// into use. With it nothing is signed under a new root before each of them has; without it,
    /// publishing comes first and that is all. Off.
    pub acknowledgements: bool,
    /// The part of a certificate's lifetime after which a new root is used without proxies that do not
    /// acknowledge it, if a certificate that old cannot be renewed otherwise; `None`: never. 0.8.
    ///
    /// One proxy that is stuck, or hostile, would cost all others what they hold. It is left behind only if it is
    /// connected, [was sent](crate::Handle::sent) the root and has not acknowledged it, unless proxies of several owners
    /// have [refused](crate::Handle::rejected) it, and
    /// if those left behind are a twentieth of the mesh at most, or one. Each is
    /// [named](crate::manager::Event::ProxyReleased). While a CA still signs under a root that all trust, nobody is; and a plan for
    /// moving a mesh waits for everybody.
    pub release_laggards_at: Option<f64>,
    /// How long before its end a root is [warned](crate::manager::Event::RootEnding) of. 30 days.
    pub root_warning: Duration,
    /// Whether chains may end in an intermediate, as they may for rustls and Go. **Envoy accepts no
    /// such chain**, so this is for meshes without it. The published bundles [carry the
    /// decision](meshca_core::TrustBundle::allow_partial_chains) to all that verify against them.
    /// Without it, nothing is issued under an intermediate whose root is not in the trust of its mesh.
    /// Off.
    pub allow_partial_chains: bool,
    /// Whether data sources may name files and environment variables of the control plane.
    pub local_sources: LocalSources,
    /// What all jitter is drawn from; random where it is not set.
    pub seed: Option<u64>,
}

impl ManagerOptions {
    /// The defaults, for this zone and environment.
    pub fn new(select: SelectOptions) -> Self {
        Self {
            select,
            schedule: ScheduleOptions::default(),
            linger: Duration::from_secs(60),
            trust_refresh: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            acknowledgements: false,
            release_laggards_at: Some(0.8),
            root_warning: Duration::from_secs(30 * 24 * 3600),
            allow_partial_chains: false,
            local_sources: LocalSources::default(),
            seed: None,
        }
    }
}
