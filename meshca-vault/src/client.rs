//! A server that is called, and whose answers are read.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use meshca_core::resource::{VaultAuth, VaultConf};
use meshca_core::secret::{SourceReader, SourceRef};
use meshca_core::{Error, ErrorKind, Result, SecretValue, TrustBundle, TrustDomain};
use rustls_pki_types::ServerName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::{Host, Url};

use crate::api::{self, AuthInfo, Envelope};
use crate::error::misconfigured;
use crate::product::Product;
use crate::refusal::Refusal;
use crate::settings::VaultSettings;
use crate::tls::Material;
use crate::token::{Lease, Token};
use crate::transport::{Answer, Call, Proxy, Transport};

/// Why there is no answer to work with.
#[derive(Debug, derive_more::From)]
pub(crate) enum Failure {
    /// Nothing sound came back.
    Error(Error),
    /// The server, or a proxy, said no.
    Refused(Refusal),
}

impl Failure {
    /// `doing`: as in "Vault refused to …".
    pub(crate) fn into_error(self, doing: &str) -> Error {
        match self {
            Self::Error(error) => error,
            Self::Refused(refusal) => refusal.into_error(doing),
        }
    }
}

/// An answer's data, and what the server says beside it.
#[derive(Debug)]
pub(crate) struct Told<T> {
    pub(crate) data: T,
    pub(crate) warnings: Vec<String>,
}

/// One server as the settings describe it. TLS is set up at the first call, and anew when its sources change.
#[derive(derive_more::Debug)]
#[debug("VaultClient {{ base: \"{base}\", namespace: {namespace:?}, .. }}")]
pub(crate) struct VaultClient {
    base: Url,
    proxy: Option<Proxy>,
    namespace: Option<HeaderValue>,
    server_name: Option<ServerName<'static>>,
    conf: VaultConf,
    sources: SourceReader,
    timeout: Duration,
    transport: Mutex<Option<(Material, Transport)>>,
    product: Mutex<Shown>,
}

/// What the server has said of itself.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    product: Product,
    /// When it was asked, if it was.
    asked: Option<Instant>,
}

/// How long a server that did not say what it is is not asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// How long the question may take: an error waits for it.
const ASK_FOR: Duration = Duration::from_secs(2);

impl VaultClient {
    pub(crate) fn new(settings: &VaultSettings, sources: SourceReader) -> Result<Self> {
        let conf = settings.conf.clone();
        let address = conf.agent_address.as_ref().unwrap_or(&conf.address);
        let base = base(address)?;
        let proxy = settings.proxy.as_deref().map(Proxy::new).transpose()?;
        let namespace = conf.namespace.as_deref().map(namespace).transpose()?;
        let server_name = conf.tls.as_ref().and_then(|tls| tls.server_name.clone());
        let server_name = server_name.map(ServerName::try_from).transpose();
        Ok(Self {
            base,
            proxy,
            namespace,
            server_name: server_name.map_err(|error| {
                misconfigured("`tls.serverName` is neither a DNS name nor an IP address")
                    .with_source(error)
            })?,
            conf,
            sources,
            timeout: settings.request_timeout,
            transport: Mutex::default(),
            product: Mutex::default(),
        })
    }

    pub(crate) fn conf(&self) -> &VaultConf {
        &self.conf
    }

    /// Reads what a setting names.
    pub(crate) async fn read(
        &self,
        source: impl Into<SourceRef<'_>> + Send,
        setting: &'static str,
    ) -> Result<SecretValue> {
        let value = self.sources.read(source).await;
        value.map_err(|error| error.with_context("setting", setting))
    }

    /// Reads the roots that a setting names.
    pub(crate) async fn read_roots(
        &self,
        source: impl Into<SourceRef<'_>> + Send,
        trust_domain: &TrustDomain,
        setting: &'static str,
    ) -> Result<TrustBundle> {
        let roots = self.sources.read_roots(source, trust_domain).await;
        roots.map_err(|error| error.with_context("setting", setting))
    }

    /// The address that is called, for messages.
    pub(crate) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The proxy through which every connection goes, if there is one.
    #[cfg(feature = "aws-auth")]
    pub(crate) fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Whether others on the way can read along.
    pub(crate) fn is_open(&self) -> bool {
        let here = match self.base.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        self.base.scheme() == "http" && !here
    }

    fn transport(&self) -> MutexGuard<'_, Option<(Material, Transport)>> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the sources of the TLS settings again, and uses what changed.
    ///
    /// # Errors
    ///
    /// If one cannot be read or used; what is in use stays in use.
    pub(crate) async fn reload(&self) -> Result<Transport> {
        let material = self.material().await?;
        let mut current = self.transport();
        if let Some((used, transport)) = &*current
            && *used == material
        {
            return Ok(transport.clone());
        }
        let transport = self.connect(&material)?;
        *current = Some((material, transport.clone()));
        Ok(transport)
    }

    async fn material(&self) -> Result<Material> {
        let mut material = Material::default();
        if let Some(tls) = &self.conf.tls {
            material.skip_verify = tls.skip_verify;
            if let Some(source) = &tls.ca_cert {
                material.ca_cert = Some(self.read(source, "tls.caCert").await?);
            }
        }
        if let VaultAuth::Tls(auth) = &self.conf.auth {
            let certificate = self.read(&auth.client_cert, "auth.tls.clientCert").await?;
            let key = self.read(&auth.client_key, "auth.tls.clientKey").await?;
            material.client = Some((certificate, key));
        }
        Ok(material)
    }

    fn connect(&self, material: &Material) -> Result<Transport> {
        let tls = match self.base.scheme() {
            "https" => material.config()?,
            _ => Material::no_config()?,
        };
        Ok(Transport::new(
            self.base.clone(),
            self.proxy.clone(),
            self.namespace.clone(),
            tls,
            self.server_name.clone(),
            self.timeout,
        ))
    }

    /// Makes a call, whatever comes back.
    pub(crate) async fn send(&self, call: &Call, token: Option<&Token>) -> Result<Answer> {
        let known = self.transport().as_ref().map(|(_, known)| known.clone());
        let transport = match known {
            Some(transport) => transport,
            None => self.reload().await?,
        };
        transport.send(call, token).await
    }

    /// Makes a call that is answered with data.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        call: &Call,
        token: Option<&Token>,
    ) -> Result<Told<T>, Failure> {
        let answer = self.success(call, token, None).await?;
        let envelope: Envelope<'_, T> = read(&answer, call)?;
        let warnings = envelope.warnings.unwrap_or_default();
        let data = envelope
            .data
            .ok_or_else(|| unreadable(call, "there is no `data` in it"))?;
        Ok(Told { data, warnings })
    }

    /// Makes a call that is answered with a token and its lease. `secret`: what no message may repeat.
    pub(crate) async fn authenticate(
        &self,
        call: &Call,
        token: Option<&Token>,
        secret: Option<&str>,
    ) -> Result<(Token, Lease), Failure> {
        let answer = self.success(call, token, secret).await?;
        let envelope: Envelope<'_, serde::de::IgnoredAny> = read(&answer, call)?;
        let AuthInfo {
            client_token,
            lease_duration,
            renewable,
        } = envelope
            .auth
            .ok_or_else(|| unreadable(call, "there is no `auth` in it"))?;
        let lease = Lease {
            ttl: ttl(lease_duration),
            renewable,
        };
        Ok((Token::new(client_token.as_bytes())?, lease))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.product.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The product as far as it is known, without a question.
    pub(crate) fn known_product(&self) -> Product {
        self.shown().product
    }

    /// Asks for the health of the server, which needs no login, and remembers what it is.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub(crate) async fn health(&self) -> Result<Answer> {
        self.shown().asked = Some(Instant::now());
        let answer = self.send(&api::get("sys/health"), None).await?;
        let product = Product::of_health(&answer.body);
        if product != Product::Unknown {
            self.shown().product = product;
        }
        Ok(answer)
    }

    /// The product, for a message. The server is asked where that is not known yet.
    async fn product(&self) -> Product {
        let Shown { product, asked } = *self.shown();
        if product == Product::Unknown && asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN) {
            // Without an answer the message does without the name.
            let _ = tokio::time::timeout(ASK_FOR, self.health()).await;
        }
        self.known_product()
    }

    async fn success(
        &self,
        call: &Call,
        token: Option<&Token>,
        secret: Option<&str>,
    ) -> Result<Answer, Failure> {
        let answer = self.send(call, token).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let secret = secret.or(token.map(Token::expose));
        let refusal = Refusal::read(&answer, self.product().await, secret);
        match refusal.somebody_elses(self.address()) {
            Some(error) => Err(Failure::Error(error)),
            None => Err(Failure::Refused(refusal)),
        }
    }
}

/// Vault's 0 is a lease that does not end.
pub(crate) fn ttl(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn read<'a, T: Deserialize<'a>>(answer: &'a Answer, call: &Call) -> Result<Envelope<'a, T>> {
    let envelope: Envelope<'a, T> = serde_json::from_slice(&answer.body).map_err(|error| {
        // The text is not repeated, since it may be a secret's; where it breaks off is enough.
        unreadable(
            call,
            &format!(
                "it is not the JSON that was expected ({:?} at line {}, column {})",
                error.classify(),
                error.line(),
                error.column()
            ),
        )
    })?;
    match envelope.is_wrapped() {
        true => Err(unreadable(
            call,
            "it is wrapped: a policy with `min_wrapping_ttl`, or a proxy that sets `X-Vault-Wrap-TTL`, must leave this path alone",
        )),
        false => Ok(envelope),
    }
}

fn unreadable(call: &Call, why: &str) -> Error {
    Error::new(
        ErrorKind::BadResponse,
        format!("the answer to `{}` cannot be used: {why}", call.describe()),
    )
    .with_retry(meshca_core::Retry::Backoff)
}

fn base(address: &str) -> Result<Url> {
    let wrong = |what: &str| {
        Err(misconfigured(format!(
            "the address {what}: it must be one such as `https://vault.example:8200`"
        )))
    };
    match Url::parse(address) {
        Err(_) => wrong("is no URL"),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            wrong("is neither `https://` nor `http://`")
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            wrong("holds a user name or password")
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            wrong("holds more than a host, a port and a path")
        }
        Ok(url) => Ok(url),
    }
}

fn namespace(name: &str) -> Result<HeaderValue> {
    let graphic = name.bytes().all(|byte| byte.is_ascii_graphic());
    let value = HeaderValue::from_str(name.trim_matches('/'));
    match value {
        Ok(value) if graphic && !value.is_empty() => Ok(value),
        _ => Err(misconfigured(
            "`namespace` must be a path of plain segments, such as `teams/mesh`",
        )),
    }
}
