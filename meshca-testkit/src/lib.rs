//! x
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod conformance;
mod faulty;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod http;
pub mod pki;
#[cfg(feature = "relay")]
#[cfg_attr(docsrs, doc(cfg(feature = "relay")))]
pub mod relay;

pub use clock::FakeClock;
pub use faulty::{Fault, FaultyIssuer};
