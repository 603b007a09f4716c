//! What the operator decides about a delegated CA.

use std::time::Duration;

use spiffe::TrustDomain;

use crate::{Error, ErrorKind, KeyType, LifetimePolicy, Result, SecretKey, SecretStore};

/// The lifetime that an intermediate is asked for unless told otherwise: 30 days. Vault's mounts give no more than 32 by default.
pub const DEFAULT_INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// The longest leaf unless told otherwise: five days, a sixth of [`DEFAULT_INTERMEDIATE_LIFETIME`].
pub const DEFAULT_DELEGATED_MAX_LEAF_LIFETIME: Duration = Duration::from_secs(5 * 24 * 3600);

/// An intermediate with less life than this is refused: an hour. The steps of the next rotation, and leaves that live
/// for a sixth of it, do not fit into less.
pub const MIN_INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(3600);

/// The part of an intermediate's life that a leaf may have: a sixth, as at SPIRE. The next
/// intermediate then signs before leaves would have to be cut short.
pub(super) const LEAF_PART: u32 = 6;

/// How a [`DelegatedIssuer`](super::DelegatedIssuer) gets its certificate, and for whom it signs.
#[derive(Clone, Debug)]
pub struct DelegatedSettings {
    pub(super) trust_domain: TrustDomain,
    pub(super) secrets: DelegatedSecrets,
    pub(super) key_type: KeyType,
    pub(super) lifetime: Duration,
    pub(super) lifetime_policy: LifetimePolicy,
    pub(super) max_leaf_lifetime: Duration,
    pub(super) path_len: u8,
    /// The type of the provider that the resource names, if it is one of a resource.
    pub(super) provider: Option<String>,
}

impl DelegatedSettings {
    /// A P-256 intermediate for this trust domain, for leaves only, that is asked for 30 days.
    pub fn new(trust_domain: TrustDomain, secrets: DelegatedSecrets) -> Self {
        Self {
            trust_domain,
            secrets,
            key_type: KeyType::default(),
            lifetime: DEFAULT_INTERMEDIATE_LIFETIME,
            lifetime_policy: LifetimePolicy::default(),
            max_leaf_lifetime: DEFAULT_DELEGATED_MAX_LEAF_LIFETIME,
            path_len: 0,
            provider: None,
        }
    }

    pub(crate) fn with_provider(mut self, provider: &str) -> Self {
        self.provider = Some(provider.to_owned());
        self
    }

    /// The type of the intermediate's key.
    #[must_use]
    pub fn with_key_type(mut self, key_type: KeyType) -> Self {
        self.key_type = key_type;
        self
    }

    /// The lifetime that the upstream is asked for; at least [`MIN_INTERMEDIATE_LIFETIME`].
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// What to do with an intermediate that lives longer than it was asked to: refuse it by
    /// default. A shorter one is used, and [warned of](crate::Issuer::check).
    #[must_use]
    pub fn with_lifetime_policy(mut self, policy: LifetimePolicy) -> Self {
        self.lifetime_policy = policy;
        self
    }

    /// The longest leaf; a sixth of the intermediate's life, if that is less.
    #[must_use]
    pub fn with_max_leaf_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_leaf_lifetime = lifetime;
        self
    }

    /// How many levels of CAs may stand below the intermediate: none by default. One that is the upstream of another
    /// delegated CA needs 1, and an upstream that grants it.
    #[must_use]
    pub fn with_path_len(mut self, path_len: u8) -> Self {
        self.path_len = path_len;
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        let second = Duration::from_secs(1);
        for (what, lifetime, least) in [
            ("intermediate", self.lifetime, MIN_INTERMEDIATE_LIFETIME),
            ("longest leaf", self.max_leaf_lifetime, second),
        ] {
            if lifetime < least {
                let (lifetime, least) = (lifetime.as_secs(), least.as_secs());
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "the lifetime of the {what} is {lifetime}s; set it to {least}s at least"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The secrets that a delegated CA is kept in: `<name>`, which holds certificates and state, `<name>.upstream`, which
/// says whose intermediates these are, and `<name>-key.g1`, `<name>-key.g2` …, the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelegatedSecrets {
    pub(super) state: SecretKey,
    pub(super) upstream: SecretKey,
}

impl DelegatedSecrets {
    /// Secrets of this name. Two CAs of one mesh need two names; replicas of one CA share one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if these are no names for a secret.
    pub fn new(mesh: &str, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let secrets = Self {
            upstream: SecretKey::new(mesh, format!("{name}.upstream"))?,
            state: SecretKey::new(mesh, name)?,
        };
        // The longest name that will ever be needed: better refused today than at the tenth rotation.
        secrets.key(u32::MAX)?;
        Ok(secrets)
    }

    /// `<identity>-intermediate`, for the provider of a MeshIdentity.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn for_identity(mesh: &str, identity: &str) -> Result<Self> {
        Self::new(mesh, format!("{identity}-intermediate"))
    }

    /// The same with `<mesh>.` before it, for a store in which a secret of another mesh has that name.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn for_identity_of_mesh(mesh: &str, identity: &str) -> Result<Self> {
        Self::for_identity(mesh, &format!("{mesh}.{identity}"))
    }

    /// Whether the store has anything of this CA.
    pub(in crate::builtin) async fn exist(&self, store: &dyn SecretStore) -> Result<bool> {
        Ok(store.get(&self.state).await?.is_some())
    }

    pub(super) fn key(&self, number: u32) -> Result<SecretKey> {
        let (mesh, name) = (self.state.mesh(), self.state.name());
        SecretKey::new(mesh, format!("{name}-key.g{number}"))
    }
}
