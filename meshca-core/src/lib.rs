//! meshca-core
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "builtin")]
pub mod builtin;
pub mod certificate;
mod csr;
pub mod error;
mod identity;
pub mod issuer;
mod key;
mod pem;
pub mod registry;
pub mod request;
pub mod resource;
pub mod secret;
pub mod spiffe;
mod subject;
pub mod time;
pub mod trust;
pub mod verify;
mod x509;

pub use ::spiffe::{SpiffeId, TrustDomain};
pub use certificate::{IssuedCertificate, Observation, Proof, SignedChain};
pub use csr::Csr;
pub use error::{Error, ErrorKind, Result, Retry};
pub use identity::Identity;
pub use issuer::{CaRotation, Capabilities, CheckReport, Issuer, IssuerExt, RotationStep};
pub use key::{KeyType, PrivateKey, Signer};
pub use registry::{BackendRegistry, IssuerFactory};
pub use request::{
    CertificateRequest, CertificateSpec, DEFAULT_LIFETIME, LifetimePolicy, Profile, RequestId,
};
pub use secret::{
    DirSecretStore, Expect, MemorySecretStore, SecretKey, SecretStore, SecretStoreExt, SecretValue,
    StoredSecret, Version,
};
pub use time::{Clock, RenewalPolicy, SystemClock, Validity};
pub use trust::{TrustBundle, TrustRoot};
