//! What happens between the server and the proxies, for metrics, audit records and people.

use std::fmt::Debug;
use std::sync::Arc;

use meshca_core::Error;

/// Is told what happens. Called where it happens, which waits: hand on what takes time.
pub trait SdsObserver: Debug + Send + Sync + 'static {
    /// Something happened.
    fn observe(&self, event: &SdsEvent<'_>);
}

/// Which proxy.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[display("`{name}` of the mesh `{mesh}`")]
#[non_exhaustive]
pub struct ProxyId {
    /// Its mesh.
    pub mesh: Arc<str>,
    /// Its name in the mesh.
    pub name: Arc<str>,
}

/// What happened. `Display` is a line for a log.
#[derive(Clone, Debug, derive_more::Display)]
#[non_exhaustive]
pub enum SdsEvent<'a> {
    /// A stream was refused before anything was answered.
    #[display("a stream of a node that calls itself `{node}` is refused: {error}")]
    #[non_exhaustive]
    Refused {
        /// What its node called itself: a claim.
        node: &'a str,
        /// Why.
        error: &'a Error,
    },
    /// A proxy has opened a stream.
    #[display("the proxy {proxy} has opened a stream")]
    #[non_exhaustive]
    Connected {
        /// The proxy.
        proxy: &'a ProxyId,
    },
    /// A proxy asks for what is not its own, or is not there. It gets nothing: a mistake in its listeners, or worse.
    #[display("the proxy {proxy} asks for `{resource}`, which is not its own, and gets nothing")]
    #[non_exhaustive]
    NotItsOwn {
        /// The proxy.
        proxy: &'a ProxyId,
        /// What it asks for.
        resource: &'a str,
    },
    /// Something was sent.
    #[display("the proxy {proxy} was sent {secrets} secret{} ({nonce})", plural(*secrets))]
    #[non_exhaustive]
    Sent {
        /// The proxy.
        proxy: &'a ProxyId,
        /// The number of the response on its stream.
        nonce: &'a str,
        /// How many secrets are in it.
        secrets: usize,
    },
    /// A proxy has taken into use what was sent.
    #[display("the proxy {proxy} has taken into use {}", list(resources))]
    #[non_exhaustive]
    Acknowledged {
        /// The proxy.
        proxy: &'a ProxyId,
        /// The names of the secrets.
        resources: &'a [Arc<str>],
    },
    /// A proxy refuses what was sent, and goes on with what it had. The same is not sent again.
    #[display("the proxy {proxy} refuses {}: {message}", list(resources))]
    #[non_exhaustive]
    Rejected {
        /// The proxy.
        proxy: &'a ProxyId,
        /// The names of the secrets.
        resources: &'a [Arc<str>],
        /// Why, in Envoy's words, of which the first 256 characters are kept.
        message: &'a str,
    },
    /// A stream was ended by the server.
    #[display("a stream of the proxy {proxy} is ended: {why}")]
    #[non_exhaustive]
    Broken {
        /// The proxy.
        proxy: &'a ProxyId,
        /// Why.
        why: &'a str,
    },
    /// A stream has ended.
    #[display("a stream of the proxy {proxy} has ended")]
    #[non_exhaustive]
    Disconnected {
        /// The proxy.
        proxy: &'a ProxyId,
    },
}

/// The names of secrets, one after the other.
fn list(names: &[Arc<str>]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
