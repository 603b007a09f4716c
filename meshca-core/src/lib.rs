//! meshca-core
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod error;
mod pem;
pub mod resource;
pub mod secret;
pub mod spiffe;

pub use error::{Error, ErrorKind, Result, Retry};
pub use secret::{Expect, SecretKey, SecretStore, SecretValue, StoredSecret, Version};
