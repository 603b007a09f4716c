//! What a stream and its connection have to tell each other, where this crate serves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Of one connection: whether somebody on it has proven who he is. The connection's own task keeps one for as long as it lives, and the
/// streams get it with each request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission(Arc<AtomicBool>);

impl Admission {
    pub(crate) fn admit(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn watch(&self) -> ConnectionWatch {
        ConnectionWatch(Arc::downgrade(&self.0))
    }
}

/// Knows whether a connection lives.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionWatch(Weak<AtomicBool>);

impl ConnectionWatch {
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}
