//! HTTP to one address: what connects, what trusts, what gives up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{self, Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use meshca_core::{Error, ErrorKind, Result, Retry};
use rustls_pki_types::ServerName;
use url::Url;
use zeroize::Zeroizing;

use crate::error::misconfigured;
use crate::token::Token;

/// Larger answers are refused: a chain has a few KiB, the list of a mount's issuers a few more.
const MAX_ANSWER: usize = 1 << 20;
/// No server knows today what it will be able to do after longer than this.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// A connection that was idle for longer is not used again: whatever stands between may have forgotten it.
const IDLE: Duration = Duration::from_secs(30);

/// One request. Its `Debug` does not show what is in it.
#[derive(derive_more::Debug)]
#[debug("Call({}, {} bytes)", self.describe(), body.len())]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Below `/v1/`, as segments that are not encoded yet.
    pub(crate) path: String,
    /// JSON.
    pub(crate) body: Bytes,
}

impl Call {
    fn only_reads(&self) -> bool {
        self.method == Method::GET || self.method.as_str() == "LIST"
    }

    /// The method and path, for messages.
    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// An answer, whatever its status. `Debug` does not print its content.
#[derive(derive_more::Debug)]
#[debug("Answer({status}, {} bytes)", body.len())]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    /// May hold a token.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// How long the server says to wait. A date instead of seconds is not understood: whoever waits knows better.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        let wait = seconds.trim().parse().ok().map(Duration::from_secs);
        wait.map(|wait| wait.min(MAX_WAIT))
    }

    pub(crate) fn content_type(&self) -> &str {
        let value = self.headers.get(CONTENT_TYPE);
        value.and_then(|it| it.to_str().ok()).unwrap_or("no type")
    }

    fn location(&self) -> Option<&str> {
        self.headers.get(LOCATION)?.to_str().ok()
    }
}

/// What makes connections: to the server itself, or through a proxy.
///
/// Proxies come from the settings alone. Nothing here reads the environment.
#[derive(Clone, Debug)]
pub(crate) enum Connector {
    Direct(HttpsConnector<HttpConnector>),
    Proxied(HttpsConnector<Tunnel<HttpConnector>>),
}

impl Connector {
    pub(crate) fn new(
        proxy: Option<&Proxy>,
        tls: rustls::ClientConfig,
        server_name: Option<ServerName<'static>>,
        timeout: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        tcp.set_keepalive(Some(IDLE));
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http();
        let builder = match server_name {
            Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
            None => builder,
        };
        let builder = builder.enable_http1();
        match proxy {
            None => Self::Direct(builder.wrap_connector(tcp)),
            Some(proxy) => Self::Proxied(builder.wrap_connector(Tunnel::new(proxy.0.clone(), tcp))),
        }
    }

    pub(crate) fn pool(&self) -> Pool {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE);
        match self {
            Self::Direct(connector) => Pool::Direct(builder.build(connector.clone())),
            Self::Proxied(connector) => Pool::Proxied(builder.build(connector.clone())),
        }
    }
}

/// Connections that are kept.
#[derive(Clone, Debug)]
pub(crate) enum Pool {
    Direct(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
    Proxied(Client<HttpsConnector<Tunnel<HttpConnector>>, Full<Bytes>>),
}

impl Pool {
    pub(crate) fn request(&self, request: Request<Full<Bytes>>) -> ResponseFuture {
        match self {
            Self::Direct(pool) => pool.request(request),
            Self::Proxied(pool) => pool.request(request),
        }
    }
}

/// An HTTP proxy that makes a tunnel for each connection (`CONNECT`, RFC 9110 §9.3.6).
#[derive(Clone, Debug, derive_more::Display)]
#[display("{}", _0.authority().map_or("", |it| it.as_str()))]
pub(crate) struct Proxy(Uri);

impl Proxy {
    /// From the setting `proxy`.
    ///
    /// # Errors
    ///
    /// If it is not a plain `http://` URL of a host and a port.
    pub(crate) fn new(setting: &str) -> Result<Self> {
        let url = Url::parse(setting).ok().filter(|url| {
            url.scheme() == "http"
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.path() == "/"
                && url.query().is_none()
        });
        let uri = url.and_then(|url| url.as_str().parse().ok());
        uri.map(Self).ok_or_else(|| {
            misconfigured("`proxy` must be the URL of a host and a port, such as `http://proxy.example:3128`, without a user name or path")
        })
    }
}

/// The connections to one Vault.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    connector: Connector,
    /// The pool and its number, which tells whether somebody else replaced it already.
    pool: Arc<Mutex<(u64, Pool)>>,
    base: Url,
    proxy: Option<Proxy>,
    namespace: Option<HeaderValue>,
    timeout: Duration,
}

impl Transport {
    pub(crate) fn new(
        base: Url,
        proxy: Option<Proxy>,
        namespace: Option<HeaderValue>,
        tls: rustls::ClientConfig,
        server_name: Option<ServerName<'static>>,
        timeout: Duration,
    ) -> Self {
        let connector = Connector::new(proxy.as_ref(), tls, server_name, timeout);
        Self {
            pool: Arc::new(Mutex::new((0, connector.pool()))),
            connector,
            base,
            proxy,
            namespace,
            timeout,
        }
    }

    /// Makes the request, and follows a standby's redirect to the active node. What only reads is tried a second time when
    /// the connection breaks: it may have been one that the server had closed already.
    ///
    /// # Errors
    ///
    /// If nothing, or nothing whole, comes back. Any status is an answer.
    pub(crate) async fn send(&self, call: &Call, token: Option<&Token>) -> Result<Answer> {
        let url = self.url(call)?;
        let answer = match self.attempt(call, &url, token).await {
            Err(error) if call.only_reads() && error.kind() == ErrorKind::Unavailable => {
                self.attempt(call, &url, token).await
            }
            outcome => outcome,
        }?;
        if !matches!(
            answer.status,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
        ) {
            return Ok(answer);
        }
        let active = redirect(&url, answer.location())?;
        let answer = self.attempt(call, &active, token).await?;
        if answer.status.is_redirection() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the node {} that a standby node named as the active one redirects, too: the cluster is without a leader",
                    authority(&active)
                ),
            ));
        }
        Ok(answer)
    }

    fn url(&self, call: &Call) -> Result<Url> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| misconfigured("the address cannot have a path"))?
            .pop_if_empty()
            .push("v1")
            .extend(call.path.split('/'));
        Ok(url)
    }

    async fn attempt(&self, call: &Call, url: &Url, token: Option<&Token>) -> Result<Answer> {
        let mut request = Request::builder()
            .method(&call.method)
            .uri(self.uri(url)?)
            // An agent's listener may insist on it, as a guard against forged requests.
            .header("x-vault-request", "true");
        if !call.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        // Not for `sys/`, which is above all namespaces.
        if let Some(namespace) = &self.namespace
            && !call.path.starts_with("sys/health")
        {
            request = request.header("x-vault-namespace", namespace);
        }
        if let Some(token) = token {
            request = request.header("x-vault-token", token.header());
        }
        let request = request
            .body(Full::new(call.body.clone()))
            .map_err(|error| misconfigured("no such request can be made").with_source(error))?;
        debug_assert!(!request.headers().contains_key(HOST));
        let (number, pool) = self.pool().clone();
        let exchange = self.exchange(&pool, request, url);
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.replace(number);
                Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "no answer from {} within {} ms: is it overloaded, or the network broken?",
                        authority(url),
                        self.timeout.as_millis()
                    ),
                ))
            }
        }
    }

    /// A proxy has to be told the port, also where it is the usual one of `http`.
    fn uri(&self, url: &Url) -> Result<Uri> {
        let wrong = || misconfigured("no such request can be made");
        let uri: Uri = url.as_str().parse().map_err(|_| wrong())?;
        if self.proxy.is_none() || url.port().is_some() || url.scheme() != "http" {
            return Ok(uri);
        }
        let mut parts = uri.into_parts();
        parts.authority = authority(url).parse().ok();
        Uri::from_parts(parts).map_err(|_| wrong())
    }

    async fn exchange(
        &self,
        pool: &Pool,
        request: Request<Full<Bytes>>,
        url: &Url,
    ) -> Result<Answer> {
        let sent = pool.request(request).await;
        let response = sent.map_err(|error| unreachable(error, url, self.proxy.as_ref()))?;
        let (parts, body) = response.into_parts();
        let mut bytes = Zeroizing::new(Vec::with_capacity(8 * 1024));
        let mut body = Limited::new(body, MAX_ANSWER);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => Error::new(
                    ErrorKind::BadResponse,
                    format!(
                        "the answer of {} is larger than {MAX_ANSWER} bytes: is the address right?",
                        authority(url)
                    ),
                ),
                false => Error::new(
                    ErrorKind::Unavailable,
                    format!("the answer of {} broke off", authority(url)),
                )
                .with_source(error),
            })?;
            if let Some(data) = frame.data_ref() {
                grow(&mut bytes, data);
            }
        }
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: bytes,
        })
    }

    fn pool(&self) -> MutexGuard<'_, (u64, Pool)> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves all connections behind: where one is dead without having been closed, the others are, too.
    fn replace(&self, number: u64) {
        let mut current = self.pool();
        if current.0 == number {
            *current = (number.wrapping_add(1), self.connector.pool());
        }
    }
}

/// Appends without leaving unwiped copies of what was there behind.
pub(crate) fn grow(bytes: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    if bytes.capacity() - bytes.len() < data.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity((bytes.len() + data.len()) * 2));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(data);
}

/// The host and port, for messages.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port_or_known_default() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Where a standby node sends us: to the same path of the active node, never from TLS to none.
fn redirect(from: &Url, location: Option<&str>) -> Result<Url> {
    let refuse = |why: &str| {
        Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} redirects {why}: set `api_addr` of the cluster's nodes, or use the address of a load balancer",
                authority(from)
            ),
        )
        .with_retry(Retry::Backoff))
    };
    let Some(to) = location.and_then(|location| from.join(location).ok()) else {
        return refuse("without saying where");
    };
    if to.scheme() != from.scheme() {
        return refuse("to another protocol, to which no token is sent");
    }
    if to.path() != from.path() || to.query().is_some() || !to.username().is_empty() {
        return refuse("to something that is not the same request at another node");
    }
    Ok(to)
}

/// The words for a connection that failed.
fn unreachable(error: legacy::Error, url: &Url, proxy: Option<&Proxy>) -> Error {
    let host = authority(url);
    if let Some(tls) = find::<rustls::Error>(&error) {
        return distrust(tls, &host).with_source(error);
    }
    let io = find::<std::io::Error>(&error);
    let (what, next) = match (error.is_connect(), io, proxy) {
        (true, Some(io), None) => (
            format!("cannot connect to {host}: {}", said(io)),
            "is it running, and the address right?",
        ),
        (true, Some(io), Some(proxy)) => (
            format!(
                "cannot connect to {host} through the proxy {proxy}: {}",
                said(io)
            ),
            "is the proxy running, and `proxy` right?",
        ),
        (true, None, Some(proxy)) => (
            format!(
                "the proxy {proxy} does not connect us to {host}: {}",
                root_cause(&error)
            ),
            "does it allow `CONNECT` to that host and port without a login?",
        ),
        (true, None, None) => (format!("cannot connect to {host}"), "is the address right?"),
        (false, ..) => (
            format!("the connection to {host} broke before the answer"),
            "whether it was carried out is unknown",
        ),
    };
    Error::new(ErrorKind::Unavailable, format!("{what} ({next})")).with_source(error)
}

/// The last error in the chain of causes, in its own words.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// What the system says, without the number.
fn said(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_lowercase(),
        None => text,
    }
}

fn distrust(error: &rustls::Error, host: &str) -> Error {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls};
    let (kind, message) = match error {
        Tls::InvalidCertificate(Bad::UnknownIssuer) => (
            ErrorKind::InvalidConfig,
            format!(
                "the certificate of {host} is not from a CA that is trusted: `tls.caCert` must hold the one that issued it"
            ),
        ),
        Tls::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => (
            ErrorKind::InvalidConfig,
            format!(
                "the certificate of {host} is for another name: correct the address, or set `tls.serverName` to the name that it has"
            ),
        ),
        Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => (
            ErrorKind::Unavailable,
            format!("the certificate of {host} has expired: renew the one of its listener"),
        ),
        Tls::InvalidCertificate(bad) => (
            ErrorKind::Unavailable,
            format!(
                "the certificate of {host} is not sound ({bad}): give the listener one that a CA issued for its name"
            ),
        ),
        Tls::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::CertificateExpired,
        ) => (
            ErrorKind::Unauthenticated,
            format!(
                "{host} refuses our certificate: set `auth.tls` to one that its listener trusts"
            ),
        ),
        Tls::InvalidMessage(_) => (
            ErrorKind::InvalidConfig,
            format!("{host} does not speak TLS: is the address one of `http://`?"),
        ),
        _ => (
            ErrorKind::Unavailable,
            format!("no TLS connection to {host}: {error}"),
        ),
    };
    // A secret or the server may be about to change.
    Error::new(kind, message).with_retry(Retry::Backoff)
}

/// The first error of this type in the chain of causes. `io::Error` hides what it carries from that chain.
fn find<'e, E: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        if let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            && let Some(found) = find(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        for (setting, shown) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("http://proxy.example/", "proxy.example"),
            ("http://[::1]:3128", "[::1]:3128"),
        ] {
            assert_eq!(Proxy::new(setting).unwrap().to_string(), shown);
        }
        for setting in [
            "proxy.example:3128",
            "https://proxy.example:3128",
            "http://me:secret@proxy.example",
            "http://proxy.example/path",
            "http://proxy.example/?a",
            "",
        ] {
            let error = Proxy::new(setting).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{setting}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_redirect_is_followed_to_the_same_request_only() {
        let from = Url::parse("https://standby.example:8200/v1/pki/sign/mesh").unwrap();
        let same = "https://active.example:8200/v1/pki/sign/mesh";
        assert_eq!(redirect(&from, Some(same)).unwrap().as_str(), same);
        for location in [
            None,
            Some("http://active.example:8200/v1/pki/sign/mesh"),
            Some("https://active.example:8200/v1/pki/sign/other"),
            Some("https://active.example:8200/v1/pki/sign/mesh?token=x"),
            Some("https://user@active.example:8200/v1/pki/sign/mesh"),
            Some("https://[broken"),
        ] {
            let error = redirect(&from, location).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{location:?}");
        }
    }
}
