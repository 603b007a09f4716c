//! What happens between the server and the proxies, for metrics, audit records and people.

use std::fmt;
use std::sync::Arc;

use meshca_core::Error;

/// Is told what happens. Called where it happens, which waits: hand on what takes time.
pub trait SdsObserver: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    fn observe(&self, event: &SdsEvent<'_>);
}

/// Which proxy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ProxyId {
    /// Its mesh.
    pub mesh: Arc<str>,
    /// Its name in the mesh.
    pub name: Arc<str>,
}

impl fmt::Display for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of the mesh `{}`", self.name, self.mesh)
    }
}

/// What happened. `Display` is a line for a log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SdsEvent<'a> {
    /// A stream was refused before anything was answered.
    #[non_exhaustive]
    Refused {
        /// What its node called itself: a claim.
        node: &'a str,
        /// Why.
        error: &'a Error,
    },
    /// A proxy has opened a stream.
    #[non_exhaustive]
    Connected {
        /// The proxy.
        proxy: &'a ProxyId,
    },
    /// A proxy asks for what is not its own, or is not there. It gets nothing: a mistake in its listeners, or worse.
    #[non_exhaustive]
    NotItsOwn {
        /// The proxy.
        proxy: &'a ProxyId,
        /// What it asks for.
        resource: &'a str,
    },
    /// Something was sent.
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
    #[non_exhaustive]
    Acknowledged {
        /// The proxy.
        proxy: &'a ProxyId,
        /// The names of the secrets.
        resources: &'a [Arc<str>],
    },
    /// A proxy refuses what was sent, and goes on with what it had. The same is not sent again.
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
    #[non_exhaustive]
    Broken {
        /// The proxy.
        proxy: &'a ProxyId,
        /// Why.
        why: &'a str,
    },
    /// A stream has ended.
    #[non_exhaustive]
    Disconnected {
        /// The proxy.
        proxy: &'a ProxyId,
    },
}

impl fmt::Display for SdsEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { node, error } => {
                write!(
                    f,
                    "a stream of a node that calls itself `{node}` is refused: {error}"
                )
            }
            Self::Connected { proxy } => write!(f, "the proxy {proxy} has opened a stream"),
            Self::NotItsOwn { proxy, resource } => write!(
                f,
                "the proxy {proxy} asks for `{resource}`, which is not its own, and gets nothing"
            ),
            Self::Sent {
                proxy,
                nonce,
                secrets,
            } => {
                let plural = if *secrets == 1 { "" } else { "s" };
                write!(
                    f,
                    "the proxy {proxy} was sent {secrets} secret{plural} ({nonce})"
                )
            }
            Self::Acknowledged { proxy, resources } => {
                write!(
                    f,
                    "the proxy {proxy} has taken into use {}",
                    Names(resources)
                )
            }
            Self::Rejected {
                proxy,
                resources,
                message,
            } => write!(
                f,
                "the proxy {proxy} refuses {}: {message}",
                Names(resources)
            ),
            Self::Broken { proxy, why } => {
                write!(f, "a stream of the proxy {proxy} is ended: {why}")
            }
            Self::Disconnected { proxy } => write!(f, "a stream of the proxy {proxy} has ended"),
        }
    }
}

struct Names<'a>(&'a [Arc<str>]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}`{name}`")?;
        }
        Ok(())
    }
}
