//! What cells and signals are made of. Here, and nowhere else, so that a model checker can put its own in their place (`model.rs`).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

pub(crate) use arc_swap::{ArcSwap, ArcSwapOption};
pub(crate) use tokio::sync::Notify;
