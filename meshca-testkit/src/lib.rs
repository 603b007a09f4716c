//! x
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod conformance;
mod faulty;
pub mod pki;

pub use clock::FakeClock;
pub use faulty::{Fault, FaultyIssuer};
