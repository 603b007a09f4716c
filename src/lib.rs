//! meshca
pub use meshca_core::*;
