//! Everything that the embedder hands in, which does not change.

use std::sync::Arc;

use meshca_core::registry::{BackendConfig, BackendRegistry};
use meshca_core::{Issuer, SecretStore};

use super::event::{Event, Observer};
use super::options::ManagerOptions;
use super::shared::Shared;

/// Puts something around an issuer.
pub(super) type Layer =
    Arc<dyn Fn(&BackendConfig, Arc<dyn Issuer>) -> Arc<dyn Issuer> + Send + Sync>;

/// See the [module](self).
pub(super) struct Setup {
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Arc<BackendRegistry>,
    pub(super) secrets: Arc<dyn SecretStore>,
    pub(super) options: ManagerOptions,
    pub(super) observers: Vec<Arc<dyn Observer>>,
    /// The last one is outermost.
    pub(super) layers: Vec<Layer>,
}

impl Setup {
    pub(super) fn observe(&self, event: &Event<'_>) {
        for observer in &self.observers {
            let _ = guarded("an observer", || observer.observe(event));
        }
    }
}

/// Calls code of the embedder: a panic in it is logged, and harms no mesh.
pub(super) fn guarded<T>(what: &str, call: impl FnOnce() -> T) -> Option<T> {
    let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    called
        .inspect_err(|_| tracing::error!("{what} panicked: this is a bug in it"))
        .ok()
}
