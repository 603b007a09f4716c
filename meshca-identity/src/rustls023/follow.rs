//! Following an identity through its renewals.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use meshca_core::{Error, ErrorKind, Result};
use rustls::{ClientConfig, ServerConfig};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::generation::Generation;
use super::settings::Settings;
use crate::Credentials;

type Source = watch::Receiver<Option<Credentials>>;
type Errors = watch::Sender<Option<Error>>;

/// Configurations that follow an identity: new ones for each generation of [`Credentials`].
///
/// New connections take the latest; those that are open go on with theirs. Clones follow the same identity.
#[derive(Clone, Debug)]
pub struct TlsConfigs {
    client: watch::Receiver<Arc<ClientConfig>>,
    server: watch::Receiver<Arc<ServerConfig>>,
    last_error: watch::Receiver<Option<Error>>,
}

impl TlsConfigs {
    /// The latest for connections to others.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client.borrow())
    }

    /// The latest for connections from others.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server.borrow())
    }

    /// Every generation for connections to others. It closes when the source of credentials does, and keeps the last one.
    pub fn watch_client(&self) -> watch::Receiver<Arc<ClientConfig>> {
        self.client.clone()
    }

    /// Every generation for connections from others.
    pub fn watch_server(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.server.clone()
    }

    /// Why the latest credentials could not be used, if so: the configurations are then those of the generation before.
    pub fn last_error(&self) -> Option<Error> {
        self.last_error.borrow().clone()
    }

    /// The same, to wait on.
    pub fn watch_last_error(&self) -> watch::Receiver<Option<Error>> {
        self.last_error.clone()
    }
}

/// Two configurations that last: what they show and believe changes in place.
///
/// It is for servers and clients that take a configuration once and for all. Where there is a choice, take [`TlsConfigs`]: rustls
/// sees a resolver and a verifier that never change, so whoever switches resumption on again here lets sessions outlive the
/// certificates that they were made with.
#[derive(Clone, Debug)]
pub struct LiveConfigs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    last_error: watch::Receiver<Option<Error>>,
}

impl LiveConfigs {
    /// For connections to others.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// For connections from others.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Why the latest credentials could not be used, if so: those before are still in place.
    pub fn last_error(&self) -> Option<Error> {
        self.last_error.borrow().clone()
    }

    /// The same, to wait on.
    pub fn watch_last_error(&self) -> watch::Receiver<Option<Error>> {
        self.last_error.clone()
    }
}

impl Settings {
    /// Waits for the first credentials and follows them from there, in a task that ends with the source, or when nobody holds
    /// a receiver any more.
    ///
    /// Credentials that cannot be used leave the generation before in place; this is logged and is the
    /// [`last_error`](TlsConfigs::last_error). So does `None`: certificates end by themselves.
    ///
    /// # Errors
    ///
    /// Those of [`client_config`](Self::client_config) for the first credentials; [`ErrorKind::Unavailable`] if the source ends
    /// before there are any; [`ErrorKind::Internal`] outside of a tokio runtime.
    pub async fn follow(self, mut source: Source) -> Result<TlsConfigs> {
        let runtime = runtime()?;
        let first = self.generation(&first(&mut source).await?)?;
        let (client, client_rx) = watch::channel(self.client(&first)?);
        let (server, server_rx) = watch::channel(self.server(&first)?);
        let (errors, last_error) = watch::channel(None);
        runtime.spawn(async move {
            let unwatched = async {
                client.closed().await;
                server.closed().await;
            };
            let renew = |credentials: &_| {
                let generation = self.generation(credentials)?;
                let (new_client, new_server) =
                    (self.client(&generation)?, self.server(&generation)?);
                client.send_replace(new_client);
                server.send_replace(new_server);
                Ok(())
            };
            let work = each(source, &errors, |credentials| Some(renew(credentials)));
            tokio::select! {
                () = unwatched => {}
                () = work => {}
            }
        });
        Ok(TlsConfigs {
            client: client_rx,
            server: server_rx,
            last_error,
        })
    }

    /// The same for configurations that last. The task ends with the source, or at the first change of it that finds nobody
    /// holding one of the configurations.
    ///
    /// # Errors
    ///
    /// As [`follow`](Self::follow).
    pub async fn follow_in_place(self, mut source: Source) -> Result<LiveConfigs> {
        let runtime = runtime()?;
        let (configs, current, errors) = self.live(&first(&mut source).await?)?;
        runtime.spawn(async move {
            each(source, &errors, |credentials| {
                let current = current.upgrade()?;
                let read = self.read(credentials);
                Some(read.map(|read| current.store(Arc::new(read))))
            })
            .await;
        });
        Ok(configs)
    }

    /// Makes configurations that last. They alone own what they show and believe: when the last of them goes, there is nothing
    /// left to keep up.
    fn live(
        &self,
        credentials: &Credentials,
    ) -> Result<(LiveConfigs, Weak<ArcSwap<Generation>>, Errors)> {
        let current = self.generation(credentials)?;
        let (errors, last_error) = watch::channel(None);
        let configs = LiveConfigs {
            client: self.client(&current)?,
            server: self.server(&current)?,
            last_error,
        };
        Ok((configs, Arc::downgrade(&current), errors))
    }

    /// Follows a workload of a [`Manager`](crate::Manager), which stays connected for as long as somebody holds one of the
    /// configurations, and [acknowledges](crate::Handle::acknowledge) its trust as soon as peers are judged by it.
    ///
    /// What it shows and believes changes in place: a handshake that began before a change is judged by what is believed when the
    /// peer's certificate arrives. With configurations that are taken anew for each connection, an acknowledgement would come too
    /// early for those under way.
    ///
    /// # Errors
    ///
    /// Those of [`Handle::ready`](crate::Handle::ready), which is waited for, and of [`follow`](Self::follow).
    pub async fn follow_workload(self, mut workload: crate::Handle) -> Result<LiveConfigs> {
        let runtime = runtime()?;
        let (version, credentials) = loop {
            workload.ready().await?;
            // The number first: the trust that is read after it is no older.
            let version = workload.trust_version();
            if let Some(credentials) = workload.credentials() {
                break (version, credentials);
            }
        };
        let (configs, current, errors) = self.live(&credentials)?;
        workload.acknowledge(version);
        runtime.spawn(async move {
            let mut identity = credentials.identity;
            loop {
                // Nobody tells of the last configuration that goes, so it is looked for.
                let changed = tokio::time::timeout(UNUSED, workload.changed()).await;
                let Some(current) = current.upgrade() else {
                    return;
                };
                match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => continue,
                }
                let version = workload.trust_version();
                // Who is given nothing any more shows what it has until that ends, and judges its peers as everybody does.
                identity = workload.identity().unwrap_or(identity);
                let credentials = Credentials::new(Arc::clone(&identity), workload.trust());
                let read = self.read(&credentials).map(|read| {
                    current.store(Arc::new(read));
                    workload.acknowledge(version);
                });
                followed(&credentials, read, &errors);
            }
        });
        Ok(configs)
    }
}

/// How long a workload stays connected whose configurations nobody holds.
const UNUSED: std::time::Duration = std::time::Duration::from_secs(30);

fn runtime() -> Result<Handle> {
    Handle::try_current().map_err(|error| {
        Error::new(
            ErrorKind::Internal,
            "credentials are followed by a task of tokio: call this within its runtime",
        )
        .with_source(error)
    })
}

async fn first(source: &mut Source) -> Result<Credentials> {
    let first = source.wait_for(Option::is_some).await;
    first
        .ok()
        .and_then(|credentials| credentials.clone())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the source of credentials ended before there were any",
            )
        })
}

/// Uses all further credentials, until the source ends or `apply` returns `None` because no configuration is left that uses them.
async fn each(
    mut source: Source,
    errors: &Errors,
    apply: impl Fn(&Credentials) -> Option<Result<()>>,
) {
    // `first` has left the version that it saw as seen.
    while source.changed().await.is_ok() {
        let Some(credentials) = source.borrow_and_update().clone() else {
            continue;
        };
        let Some(result) = apply(&credentials) else {
            return;
        };
        followed(&credentials, result, errors);
    }
}

/// Reports whether these credentials could be used.
fn followed(credentials: &Credentials, result: Result<()>, errors: &Errors) {
    let certificate = credentials.identity.certificate();
    let (spiffe_id, serial) = (certificate.spiffe_id(), certificate.serial());
    match &result {
        Ok(()) => {
            tracing::debug!(%spiffe_id, serial, validity = %certificate.validity(), "TLS configurations follow a new generation");
        }
        Err(error) => {
            tracing::warn!(%spiffe_id, serial, %error, "TLS configurations stay with the generation before");
        }
    }
    errors.send_replace(result.err());
}
