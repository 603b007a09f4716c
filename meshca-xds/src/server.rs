//! The server: Envoy's Secret Discovery Service (SDS), as a tower service.
//!
//! Each stream is a loop of its own, without a channel: it sends when the connection can take it, and reads when there is something to read.
//! So a proxy that is slow, stopped or gone holds up itself and nobody else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use futures_util::{FutureExt, Stream, stream};
use meshca_core::{Error, ErrorKind, Result};
use meshca_identity::Manager;
use meshca_identity::migration::Observed;
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use crate::allowance::Allowance;
use crate::authenticate::{Authenticator, Caller};
use crate::connections::{Connection, Connections};
use crate::event::{SdsEvent, SdsObserver};
use crate::options::SdsOptions;
use crate::pace::Pace;
use crate::proxies::{Member, Progress, Proxies};
use crate::proxy::{Fallback, MeshCache, ProxySecrets, Trust};
use crate::standing::Standing;
use crate::stream::{Bounds, Broken, Protocol, Secrets as _, TrustState, clip};

/// Serves each proxy its own identity and the trust of its mesh, and tells the manager what each has taken into use. Clones are the same one.
///
/// See the [crate] for a whole program, and for how to mount it in a server that is there already.
#[derive(Clone, Debug)]
pub struct SdsServer {
    pub(crate) shared: Arc<Shared>,
}

#[derive(derive_more::Debug)]
pub(crate) struct Shared {
    proxies: Arc<Proxies>,
    #[debug(skip)]
    authenticator: Arc<dyn Authenticator>,
    #[debug(skip)]
    observer: Option<Arc<dyn SdsObserver>>,
    pub(crate) options: SdsOptions,
    #[debug(skip)]
    pub(crate) connections: Arc<Connections>,
    #[debug(skip)]
    meshes: MeshCache,
}

/// The settings of an [`SdsServer`] that is to be: made by [`SdsServer::builder`].
///
/// The server's state, such as which proxies have a stream, is made once, with the builder.
#[derive(Debug)]
#[must_use = "no server exists before `build`"]
pub struct SdsServerBuilder(Shared);

impl SdsServerBuilder {
    /// Sets the limits.
    pub fn with_options(mut self, options: SdsOptions) -> Self {
        self.0.options = options;
        self.0.connections = Connections::new(&options);
        self
    }

    /// Sets the observer, which the server tells each event.
    pub fn with_observer(mut self, observer: Arc<dyn SdsObserver>) -> Self {
        self.0.observer = Some(observer);
        self
    }

    /// Makes the server.
    pub fn build(self) -> SdsServer {
        SdsServer {
            shared: Arc::new(self.0),
        }
    }
}

impl SdsServer {
    /// Makes a server with the default [limits](SdsOptions) and without an observer.
    /// [`builder`](Self::builder) takes other ones.
    ///
    /// Make one server for each manager, and clone it where it is served in several ways: two servers
    /// know nothing of each other's streams of one proxy.
    ///
    /// Turn on [`acknowledgements`](meshca_identity::ManagerOptions::acknowledgements) in the manager.
    /// Then the manager signs nothing under a new root before every proxy has acknowledged, through this
    /// server, that it trusts that root.
    pub fn new(manager: Manager, authenticator: impl Authenticator) -> Self {
        Self::builder(manager, authenticator).build()
    }

    /// Begins a server for the proxies that the authenticator knows.
    pub fn builder(manager: Manager, authenticator: impl Authenticator) -> SdsServerBuilder {
        SdsServerBuilder(Shared {
            proxies: Proxies::new(manager),
            authenticator: Arc::new(authenticator),
            observer: None,
            options: SdsOptions::default(),
            connections: Connections::new(&SdsOptions::default()),
            meshes: MeshCache::default(),
        })
    }

    pub(crate) fn options(&self) -> &SdsOptions {
        &self.shared.options
    }

    /// How many proxies have a stream now.
    pub fn connected(&self) -> usize {
        self.shared.proxies.count()
    }

    /// What [`Manager::observe`] sees of a mesh, with what the proxies here have acknowledged in place of what they were given: a proxy
    /// `holds` a certificate when all its streams that have an identity have acknowledged it. Of a proxy that is away nobody knows what it
    /// holds, as it may be given another one meanwhile: it says so when it is back.
    ///
    /// Names that are not the proxy's own any more do not count, such as those of listeners that were replaced and still drain. Whoever
    /// sends listeners that ask for other names than before waits until those are acknowledged as well.
    ///
    /// Which SPIFFE IDs a proxy **accepts**, and how **strict** it is, is in its listeners and clusters: whoever sends those fills it in.
    ///
    /// # Errors
    ///
    /// Those of [`Manager::observe`].
    pub async fn observe(&self, mesh: &str) -> Result<Observed> {
        let proxies = &self.shared.proxies;
        let mut observed = proxies.manager().observe(mesh).await?;
        for proxy in &mut observed.proxies {
            if proxies.serves(mesh, proxy.name()) != Some(true) {
                proxy.holds = None;
            }
        }
        Ok(observed)
    }
}

impl Shared {
    fn observe(&self, event: &SdsEvent<'_>) {
        match event {
            SdsEvent::Refused { .. }
            | SdsEvent::NotItsOwn { .. }
            | SdsEvent::Rejected { .. }
            | SdsEvent::Broken { .. } => tracing::warn!(target: "meshca_xds", "{event}"),
            _ => tracing::debug!(target: "meshca_xds", "{event}"),
        }
        let Some(observer) = &self.observer else {
            return;
        };
        // One that panics harms no stream. It may be told of the end of one that panicked already, where another panic is the end of all.
        if catch_unwind(AssertUnwindSafe(|| observer.observe(event))).is_err() {
            tracing::error!(target: "meshca_xds", "the observer has panicked");
        }
    }

    /// Who has opened this stream, in at most so long.
    async fn admit(&self, caller: &Caller<'_>) -> Result<Member, Status> {
        let asked = self.authenticator.authenticate(caller);
        let attested = match timeout(self.options.authentication, asked).await {
            Ok(attested) => attested,
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "the authenticator did not answer within {:?}",
                    self.options.authentication
                ),
            )),
        };
        let attested = attested.map_err(|error| {
            self.observe(&SdsEvent::Refused {
                node: &clip(&caller.node.id),
                error: &error,
            });
            match error.kind() {
                ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::RateLimited => {
                    Status::unavailable("it cannot be found out now who this proxy is")
                }
                ErrorKind::Denied => {
                    Status::permission_denied("this proxy may not have an identity here")
                }
                _ => Status::unauthenticated("it is not proven who this proxy is"),
            }
        })?;
        let member = self.proxies.join(attested).await;
        // Only the driver's end is an error.
        let member = member.map_err(|_| Status::unavailable("the control plane is going down"))?;
        self.observe(&SdsEvent::Connected { proxy: member.id() });
        Ok(member)
    }

    /// A stream ends before anybody knows whose it is.
    pub(crate) fn refuse(&self, status: Status) -> Status {
        let why = clip(status.message());
        self.observe(&SdsEvent::Refused {
            node: "",
            error: &Error::new(ErrorKind::InvalidRequest, why),
        });
        status
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            names: self.options.max_names,
            name: self.options.max_name,
        }
    }
}

/// So many names of others are told of on one stream: who asks for more has been noticed.
const FOREIGN: usize = 20;

/// So many requests are looked past for the end of a stream.
const LAST_WORDS: usize = 16;

/// Whether a stream ended by itself and not with its connection: by a reset, which tonic calls by these names (gRPC over HTTP/2, "Errors").
fn is_reset(status: &Status) -> bool {
    matches!(status.code(), Code::Cancelled | Code::Internal)
}

/// What tonic calls out of range is a limit here.
fn too_large(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

/// One stream of one proxy.
pub(crate) struct Session<P: Protocol> {
    shared: Arc<Shared>,
    member: Member,
    inbound: Streaming<P::Request>,
    protocol: P,
    node: String,
    secrets: ProxySecrets,
    /// The newest trust that was taken into use on this stream, or before it by a proxy that has refused trust since.
    accepted: Option<Trust>,
    /// In place of what the proxy refuses.
    fallback: Option<Fallback>,
    /// What its proxy was told last of how far it is.
    reported: Option<Progress>,
    pace: Pace,
    /// How many names it has asked for that are not its own.
    foreign: usize,
    /// A response was made, and nothing has come or changed since: there is no other one.
    answered: bool,
}

impl<P: Protocol> Session<P> {
    /// Waits for the first request, finds out whose it is, and hears it.
    pub(crate) async fn begin(
        shared: Arc<Shared>,
        request: Request<Streaming<P::Request>>,
        allowance: &Allowance,
    ) -> Result<Box<Self>, Status> {
        let (metadata, extensions, mut inbound) = request.into_parts();
        let first = timeout(shared.options.first_request, inbound.message()).await;
        let first = match first {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None)) => {
                return Err(shared.refuse(Status::invalid_argument(
                    "the stream ended before a request came",
                )));
            }
            Ok(Err(status)) => return Err(shared.refuse(too_large(status))),
            Err(_) => return Err(shared.refuse(Status::deadline_exceeded("no request came"))),
        };
        let nobody = Node::default();
        let node = P::node(&first).unwrap_or(&nobody);
        if node.id.len() > shared.options.max_name {
            return Err(shared.refuse(Status::resource_exhausted("the id of the node is too long")));
        }
        let caller = Caller {
            node,
            metadata: &metadata,
            extensions: &extensions,
        };
        // None: the server that this service is mounted in has the connections.
        let connection = extensions.get::<Arc<Connection>>();
        let judged = connection.map(Connection::judge);
        let member = shared.admit(&caller).await?;
        match connection {
            Some(connection) => connection.prove(),
            None => allowance.lift(),
        }
        drop(judged);
        let secrets = ProxySecrets::with(&member.handle, member.workload(), &shared.meshes);
        let accepted = shared.proxies.accepted(&member);
        let mut session = Self {
            node: node.id.clone(),
            protocol: P::new(shared.bounds()),
            pace: Pace::new(shared.options.request_rate),
            shared,
            member,
            inbound,
            secrets,
            accepted,
            fallback: None,
            reported: None,
            foreign: 0,
            answered: false,
        };
        session.hear(&first)?;
        // It moves with each response.
        Ok(Box::new(session))
    }

    /// The next response; `None` when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<P::Response>, Status> {
        loop {
            if self.member.is_superseded() {
                let status = Status::unavailable("who this proxy is has changed: come again");
                return Err(self.broken(status));
            }
            if !std::mem::take(&mut self.answered) {
                let answer = self.protocol.answer(&self.secrets);
                let answer =
                    answer.map_err(|error| self.broken(Status::internal(error.to_string())))?;
                self.report();
                if let Some(response) = answer {
                    if let Some(trust) = self.protocol.subscriptions().sent_trust(&self.secrets) {
                        self.member.handle.sent(trust);
                    }
                    let (nonce, secrets) = P::nonce(&response);
                    self.shared.observe(&SdsEvent::Sent {
                        proxy: self.member.id(),
                        nonce,
                        secrets,
                    });
                    self.answered = true;
                    return Ok(Some(response));
                }
            }
            tokio::select! {
                heard = self.pace.read(&mut self.inbound) => match heard {
                    Ok(Some(request)) => self.hear(&request)?,
                    Ok(None) => {
                        self.member.given_up = true;
                        return Ok(None);
                    }
                    Err(status) => {
                        self.member.given_up = is_reset(&status);
                        return Err(self.broken(too_large(status)));
                    }
                },
                changed = self.member.handle.changed() => {
                    changed.map_err(|error| match error.kind() {
                        ErrorKind::NotFound => Status::unavailable("the mesh was removed"),
                        _ => Status::unavailable("the control plane is going down"),
                    })?;
                    let Member { handle, .. } = &self.member;
                    self.secrets.update(handle, self.member.workload(), &self.shared.meshes);
                    self.fall_back();
                }
            }
        }
    }

    fn hear(&mut self, request: &P::Request) -> Result<(), Status> {
        if let Some(node) = P::node(request)
            && node.id != self.node
            && !node.id.is_empty()
        {
            let why = "the node is another one than at its beginning";
            return Err(self.broken(Status::invalid_argument(why)));
        }
        let heard = self.protocol.hear(request).map_err(|broken| {
            self.broken(match broken {
                Broken::Protocol(why) => Status::invalid_argument(why),
                Broken::Limit(why) => Status::resource_exhausted(why),
            })
        })?;
        let proxy = self.member.id();
        let mut refuses_trust = false;
        if let Some(nack) = &heard.nacked {
            if let Some(trust) = nack.trust
                && nack.names.iter().any(|it| self.secrets.is_trust(it))
            {
                self.member.handle.rejected(trust);
                refuses_trust = true;
            }
            self.shared.observe(&SdsEvent::Rejected {
                proxy,
                resources: &nack.names,
                message: &nack.message,
            });
        }
        if refuses_trust
            && let Some(accepted) = &self.accepted
            && let Some(fallback) = self.secrets.fallback(accepted)
        {
            self.shared.proxies.fall_back(&self.member, &fallback);
            self.secrets.fall_back(&fallback);
            self.fallback = Some(fallback);
            self.protocol.subscriptions_mut().forgive(&self.secrets);
        }
        if let Some(resources) = &heard.acked {
            self.shared
                .observe(&SdsEvent::Acknowledged { proxy, resources });
        }
        for resource in &heard.new {
            if self.foreign < FOREIGN && self.secrets.standing(resource) == Standing::Foreign {
                self.foreign += 1;
                let resource = &clip(resource);
                self.shared
                    .observe(&SdsEvent::NotItsOwn { proxy, resource });
            }
        }
        Ok(())
    }

    /// The proxy is given what it accepted last for as long as there is nothing but what it refuses.
    fn fall_back(&mut self) {
        let Some(fallback) = &self.fallback else {
            return;
        };
        if !self.secrets.fall_back(fallback) {
            self.fallback = None;
        }
    }

    fn report(&mut self) {
        let subscriptions = self.protocol.subscriptions();
        let progress = Progress {
            trust: subscriptions.trust(&self.secrets),
            identities: subscriptions.identities(&self.secrets),
            names: subscriptions.names(),
        };
        let newest = self.secrets.trust_version();
        if progress.trust == TrustState::At(newest) {
            self.accepted = Some(self.secrets.trust());
        }
        if self.reported.as_ref() != Some(&progress) {
            if self.fallback.is_none() && progress.trust == TrustState::At(newest) {
                self.shared.proxies.recover(&self.member);
            }
            self.member.report(progress.clone());
            self.reported = Some(progress);
        }
    }

    /// The stream ends by this.
    fn broken(&self, status: Status) -> Status {
        self.shared.observe(&SdsEvent::Broken {
            proxy: self.member.id(),
            why: status.message(),
        });
        status
    }

    /// What is sent on it, until it ends.
    pub(crate) fn into_messages(
        self: Box<Self>,
    ) -> impl Stream<Item = Result<P::Response, Status>> + Send + 'static {
        stream::unfold(Some(self), |session| async {
            let mut session = session?;
            let message = session.next().await.transpose()?;
            let session = message.is_ok().then_some(session);
            Some((message, session))
        })
    }
}

impl<P: Protocol> Drop for Session<P> {
    fn drop(&mut self) {
        // Whoever sends drops this when the client has reset the stream, and does not say so. Envoy asks for nothing any more just before.
        for _ in 0..LAST_WORDS {
            match self.inbound.message().now_or_never() {
                Some(Ok(Some(_))) => continue,
                Some(Ok(None)) => self.member.given_up = true,
                Some(Err(status)) => self.member.given_up |= is_reset(&status),
                None => {}
            }
            break;
        }
        self.shared.observe(&SdsEvent::Disconnected {
            proxy: self.member.id(),
        });
    }
}
