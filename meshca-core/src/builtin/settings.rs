//! What the operator decides about the built-in CA.

use std::time::Duration;

use spiffe::TrustDomain;

use crate::registry::NewCa;
use crate::{Error, ErrorKind, KeyType, Result, SecretKey, SecretStore};

/// How long a generated CA lives unless told otherwise: ten years of 365 days, as Kuma's do.
pub const DEFAULT_CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A CA is made for an hour at least. The steps in which it is replaced do not fit into less.
pub const MIN_CA_LIFETIME: Duration = crate::resource::MIN_CA_LIFETIME;

/// The longest lifetime that the built-in CA gives a leaf unless told otherwise: 30 days.
pub const DEFAULT_MAX_LEAF_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// How the CA in a store is made, and for whom it signs.
#[derive(Clone, Debug)]
pub struct CaSettings {
    pub(super) trust_domain: TrustDomain,
    pub(super) secrets: CaSecrets,
    pub(super) key_type: KeyType,
    pub(super) lifetime: Duration,
    pub(super) max_leaf_lifetime: Duration,
    pub(super) new_ca: NewCa,
}

impl CaSettings {
    /// A P-256 CA for this trust domain that lives for ten years.
    pub fn new(trust_domain: TrustDomain, secrets: CaSecrets) -> Self {
        Self {
            trust_domain,
            secrets,
            key_type: KeyType::default(),
            lifetime: DEFAULT_CA_LIFETIME,
            max_leaf_lifetime: DEFAULT_MAX_LEAF_LIFETIME,
            new_ca: NewCa::default(),
        }
    }

    /// The type of key of a CA that is made; one that exists keeps its own.
    #[must_use]
    pub fn with_key_type(mut self, key_type: KeyType) -> Self {
        self.key_type = key_type;
        self
    }

    /// How long a CA that is made lives; at least [`MIN_CA_LIFETIME`].
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Says whether a CA that is not in the store may be made: [`NewCa::IfNoneExisted`] unless told
    /// otherwise.
    #[must_use]
    pub fn with_new_ca(mut self, new_ca: NewCa) -> Self {
        self.new_ca = new_ca;
        self
    }

    /// The longest leaf; 30 days unless told otherwise.
    ///
    /// A replaced CA stays trusted for as long as a leaf of it can be alive: for 30 days, or for
    /// the longest leaf that any replica was ever set up with, which the store remembers if it is
    /// more. A shorter setting does not shorten that, since nobody knows what was set before.
    #[must_use]
    pub fn with_max_leaf_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_leaf_lifetime = lifetime;
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.lifetime >= MIN_CA_LIFETIME {
            return Ok(());
        }
        let (lifetime, least) = (self.lifetime.as_secs(), MIN_CA_LIFETIME.as_secs());
        let message = format!("the lifetime of the CA is {lifetime}s; set it to {least}s at least");
        Err(Error::new(ErrorKind::InvalidConfig, message))
    }
}

/// The secrets that a CA is kept in.
///
/// The names are those that the field uses, so that an existing CA is found. Later generations add
/// `.g2`, `.g3` …, and `<certificate>.rotation` says which of them signs. `<certificate>.new` is there
/// while the first one is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSecrets {
    mesh: String,
    certificate: String,
    key: String,
    pub(super) rotation: SecretKey,
    /// There from before the first generation is made until it is complete: so a key without a
    /// certificate is known for one that a crash left behind, or for one that has lost it.
    pub(super) in_the_making: SecretKey,
}

/// The secrets of one CA among those that replace each other.
pub(super) struct Generation {
    pub(super) certificate: SecretKey,
    pub(super) key: SecretKey,
}

impl Generation {
    pub(super) fn locate(&self, error: Error) -> Error {
        error
            .with_context("certificate", &self.certificate)
            .with_context("key", &self.key)
    }
}

impl CaSecrets {
    /// `<mesh>.ca-builtin-cert-<backend>` and `<mesh>.ca-builtin-key-<backend>`, as Kuma names them.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) if these are no names for a secret.
    pub fn for_backend(mesh: &str, backend: &str) -> Result<Self> {
        Self::checked(
            mesh,
            format!("{mesh}.ca-builtin-cert-{backend}"),
            format!("{mesh}.ca-builtin-key-{backend}"),
        )
    }

    /// `<identity>-root-ca` and `<identity>-private-key`, as Kuma names those of a MeshIdentity.
    ///
    /// # Errors
    ///
    /// As [`for_backend`](Self::for_backend).
    pub fn for_identity(mesh: &str, identity: &str) -> Result<Self> {
        Self::checked(
            mesh,
            format!("{identity}-root-ca"),
            format!("{identity}-private-key"),
        )
    }

    /// The same with `<mesh>.` before them, for a store in which the secrets of another mesh have those names.
    ///
    /// # Errors
    ///
    /// As [`for_backend`](Self::for_backend).
    pub fn for_identity_of_mesh(mesh: &str, identity: &str) -> Result<Self> {
        Self::for_identity(mesh, &format!("{mesh}.{identity}"))
    }

    /// Whether the store has anything of this CA.
    pub(super) async fn exist(&self, store: &dyn SecretStore) -> Result<bool> {
        let first = self.generation(1)?;
        for name in [&first.certificate, &first.key, &self.rotation] {
            if store.get(name).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn checked(mesh: &str, certificate: String, key: String) -> Result<Self> {
        let secrets = Self {
            mesh: mesh.to_owned(),
            rotation: SecretKey::new(mesh, format!("{certificate}.rotation"))?,
            in_the_making: SecretKey::new(mesh, format!("{certificate}.new"))?,
            certificate,
            key,
        };
        // The longest names that will ever be needed: better refused today than at the tenth rotation.
        secrets.generation(u32::MAX)?;
        Ok(secrets)
    }

    pub(super) fn generation(&self, generation: u32) -> Result<Generation> {
        let name = |of: &str| match generation {
            1 => SecretKey::new(&self.mesh, of),
            _ => SecretKey::new(&self.mesh, format!("{of}.g{generation}")),
        };
        Ok(Generation {
            certificate: name(&self.certificate)?,
            key: name(&self.key)?,
        })
    }
}
