//! The built-in CA: in this process, with its key in a [`SecretStore`](crate::SecretStore) or given by the operator.
//!
//! [`BuiltinIssuer`] is Kuma's `builtin` and `provided` backend and MeshIdentity's `Bundled`
//! provider in one, and the reference that every other issuer is compared with. A CA in this process
//! whose own certificate a company's CA signs is a [`DelegatedIssuer`]; see [`delegated`].
//!
//! # A CA of one's own
//!
//! ```
//! use std::sync::Arc;
//! use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
//! use meshca_core::{CertificateSpec, IssuingCa, MemorySecretStore, SpiffeId, SystemClock, TrustDomain};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clock = Arc::new(SystemClock::new());
//! let store = Arc::new(MemorySecretStore::new());
//! let settings = CaSettings::new(TrustDomain::new("example.org")?, CaSecrets::for_backend("default", "ca-1")?);
//! let issuer = BuiltinIssuer::load_or_create(settings, store, clock.clone()).await?;
//!
//! let spec = CertificateSpec::workload(SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?);
//! let identity = IssuingCa::new(issuer).issue(&spec, &*clock).await?;
//! println!("{}", identity.chain_pem());
//! # Ok(())
//! # }
//! ```
//!
//! # Replacing it
//!
//! Trust comes before use, and outlives it:
//!
//! 1. [`prepare_next`](BuiltinIssuer::prepare_next) makes the next CA. Its root is in the
//!    [trust bundle](crate::Issuer::trust_bundle) from now on, and it signs nothing yet.
//! 2. When every peer holds the new root, [`activate_next`](BuiltinIssuer::activate_next) has it
//!    sign. The old root stays in the bundle for as long as a leaf of the old CA can be alive.
//! 3. [`retire`](BuiltinIssuer::retire) takes out what has outlived its leaves, and deletes its key.
//!
//! Replicas that share a store follow each other: each reads the store again every
//! [`RELOAD_INTERVAL`], activation is refused until that has passed since preparation, and a
//! replica that cannot read the store issues shorter and shorter certificates rather than one that outlives the trust in it.
//!
//! # When it is gone
//!
//! A new CA cuts off all who trust the old one. So it is made only where nothing shows that there was one; see [`NewCa`]. Else
//! [`load_or_create`](BuiltinIssuer::load_or_create) fails with the names of the secrets to restore. A CA whose secrets are
//! deleted while it runs signs on with what it holds, and [`lost`](crate::CaRotation::lost) says so.
//!
//! # Defaults
//!
//! | setting | default | test |
//! |---|---|---|
//! | key of a generated CA | P-256 | `defaults_are_what_the_docs_say` |
//! | lifetime of a generated CA | 10 years | `defaults_are_what_the_docs_say` |
//! | shortest lifetime of a generated CA | 1 hour | `a_ca_that_would_live_too_short_is_not_made` |
//! | longest leaf | 30 days | `defaults_are_what_the_docs_say` |
//! | `NotBefore` of what it signs | 10 s before now, not before the CA's own | `defaults_are_what_the_docs_say` |
//! | a replaced CA is kept | until the last leaf below it has ended, and for a day at least | `a_ca_that_has_ended_can_be_replaced` |
//! | a CA that begins later than a minute from now | signs nothing while one before it lives | `a_generation_that_has_not_begun_replaces_none_that_works` |
//! | serial numbers | 128 random bits | `defaults_are_what_the_docs_say` |
//! | a CA where none existed | is made, and told of | `a_ca_is_made_where_none_existed_and_its_root_is_told` |
//! | a CA that existed | is not made again | `a_ca_that_existed_is_not_made_again` |

mod authority;
pub mod delegated;
mod factory;
mod follow;
mod issuer;
mod secrets;
mod settings;
mod store;

pub use authority::{BACKDATE, ProvidedCa};
pub use delegated::{DelegatedIssuer, DelegatedSecrets, DelegatedSettings};
pub(crate) use factory::delegate;
pub use factory::{BuiltinFactory, factory};
pub use follow::RELOAD_INTERVAL;
pub use issuer::BuiltinIssuer;
pub use settings::{
    CaSecrets, CaSettings, DEFAULT_CA_LIFETIME, DEFAULT_MAX_LEAF_LIFETIME, MIN_CA_LIFETIME,
};

pub use crate::issuer::RotationStep;
pub use crate::registry::NewCa;
