//! From what an operator wrote to an issuer that signs.
//!
//! ```text
//!   Mesh.mtls.backends[]      ─┐
//!                              ├─► BackendConfig ─► BackendRegistry ─► IssuerFactory ─► Issuer
//!   MeshIdentity.spec.provider ─┘                        ▲
//!                                  BuildContext: secrets, clock, trust domain
//! ```
//!
//! A registry is a value that the embedder fills; nothing registers itself. First-party
//! providers come through the same door as anyone's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use spiffe::{SpiffeId, TrustDomain};

use crate::resource::{
    Backend, Bundled, Extension, ExtensionMode, IdentityProvider, MeshIdentity, Provider,
};
use crate::secret::{LocalSources, SecretStore, SourceReader};
use crate::spiffe::{NameTemplate, Workload};
use crate::{CaRotation, CertificateSpec, Clock, Error, ErrorKind, Issuer, LifetimePolicy, Result};

/// One CA as a resource describes it, the same for both models.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    name: String,
    settings: BackendSettings,
    mode: ExtensionMode,
    lifetime: Duration,
    lifetime_policy: LifetimePolicy,
    request_timeout: Option<Duration>,
    model: Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Classic,
    Modern,
}

/// The settings of a CA.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BackendSettings {
    /// A backend of a `Mesh`, or an extension of a `MeshIdentity`: they have the same settings.
    Provider(Provider),
    /// The `Bundled` provider of a `MeshIdentity`.
    Bundled(Bundled),
}

impl BackendConfig {
    /// A backend of `Mesh.mtls`.
    pub fn classic(backend: &Backend) -> Self {
        // cert-manager decides on the lifetime unless the operator does.
        let lifetime_policy = match (&backend.provider, backend.dp_cert.expiration) {
            (Provider::CertManager(_), None) => LifetimePolicy::LeftToIssuer,
            _ => LifetimePolicy::AtMostRequested,
        };
        Self {
            name: backend.name.clone(),
            settings: BackendSettings::Provider(backend.provider.clone()),
            mode: ExtensionMode::Leaf,
            lifetime: backend.dp_cert.lifetime(),
            lifetime_policy,
            request_timeout: backend.dp_cert.request_timeout,
            model: Model::Classic,
        }
    }

    /// The provider of a MeshIdentity; `None` if it issues nothing: without a provider it only
    /// announces the ID, and `Spire` leaves the issuing to SPIRE.
    pub fn modern(identity: &MeshIdentity) -> Option<Self> {
        let name = identity.metadata.name.clone();
        let (settings, mode, lifetime) = match identity.provider.as_ref()? {
            IdentityProvider::Bundled(bundled) => (
                BackendSettings::Bundled(bundled.clone()),
                ExtensionMode::Leaf,
                bundled.lifetime(),
            ),
            IdentityProvider::Extension(Extension { provider, mode, .. }) => (
                BackendSettings::Provider(provider.clone()),
                *mode,
                crate::DEFAULT_LIFETIME,
            ),
            IdentityProvider::Spire(_) => return None,
        };
        // Its issuers may ignore what they are asked for, and an extension has no setting to ask for something else.
        let lifetime_policy = match settings {
            BackendSettings::Provider(Provider::CertManager(_)) => LifetimePolicy::AcceptIssuer,
            _ => LifetimePolicy::AtMostRequested,
        };
        Some(Self {
            name,
            settings,
            mode,
            lifetime,
            lifetime_policy,
            request_timeout: None,
            model: Model::Modern,
        })
    }

    /// The name of the backend, or of the MeshIdentity.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type that a [factory](IssuerFactory) is looked up by: `vault`, `builtin`, `Bundled`, …
    pub fn type_name(&self) -> &str {
        match &self.settings {
            BackendSettings::Provider(provider) => provider.type_name(),
            BackendSettings::Bundled(_) => "Bundled",
        }
    }

    /// The settings.
    pub fn settings(&self) -> &BackendSettings {
        &self.settings
    }

    /// Whether the CA signs leaves, or an intermediate that does.
    pub fn mode(&self) -> ExtensionMode {
        self.mode
    }

    /// How long its certificates are to live.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// How long the CA has to answer one request, if the resource says: `dpCert.requestTimeout`.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.request_timeout
    }

    /// Whether its certificates carry `kuma://<tag>/<value>` URIs beside the SPIFFE ID, as in the classic model.
    pub fn has_tag_uris(&self) -> bool {
        self.model == Model::Classic
    }

    /// The settings of a type that meshca does not know, as the factory's own type.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] that names the field (`conf.url: expected a string, …`, and `config.url` for an
    /// extension); [`ErrorKind::Unsupported`] if the type is known here: then [`settings`](Self::settings) has them, read
    /// already.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        match &self.settings {
            BackendSettings::Provider(Provider::Other(other)) => {
                other.conf.decode_field(match self.model {
                    Model::Classic => "conf",
                    Model::Modern => "config",
                })
            }
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the settings of the type `{}` are known to meshca: take them from `settings()`",
                    self.type_name()
                ),
            )),
        }
    }

    /// What to ask the CA for: this identity, with the lifetime and the names that the resource
    /// adds to it.
    ///
    /// | | classic | modern |
    /// |---|---|---|
    /// | lifetime | `dpCert.rotation.expiration`, or 24 h; cert-manager is not asked for one if it is absent | `certificateParameters.expiry` of `Bundled`, or 24 h: an `Extension` has no setting for it |
    /// | a longer one than asked for | refused; where cert-manager was not asked, reported | refused; of cert-manager, reported |
    /// | common name | `commonName` | `commonName` |
    /// | DNS names | `dnsNames` of cert-manager | `dnsNames` of cert-manager |
    /// | URIs beside the SPIFFE ID | `kuma://<tag>/<value>`, one for each value of each tag | none |
    ///
    /// Since a classic certificate carries the tags, an issuer for the classic model needs
    /// [`Capabilities::with_extra_uris(true)`](crate::Capabilities::with_extra_uris).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if a template cannot be rendered for this workload, naming the label or tag.
    pub fn certificate_spec(
        &self,
        spiffe_id: SpiffeId,
        workload: &Workload,
    ) -> Result<CertificateSpec> {
        let mut spec = CertificateSpec::workload(spiffe_id)
            .with_lifetime(self.lifetime)
            .with_lifetime_policy(self.lifetime_policy);
        let (common_name, dns_names): (Option<&NameTemplate>, &[NameTemplate]) = match &self
            .settings
        {
            BackendSettings::Provider(Provider::Vault(vault)) => (vault.common_name.as_ref(), &[]),
            BackendSettings::Provider(Provider::Acm(acm)) => (acm.common_name.as_ref(), &[]),
            BackendSettings::Provider(Provider::CertManager(conf)) => {
                (conf.common_name.as_ref(), &conf.dns_names)
            }
            _ => (None, &[]),
        };
        if let Some(template) = common_name {
            spec = spec.with_common_name(template.render(workload)?);
        }
        for template in dns_names {
            spec = spec.with_dns_name(template.render(workload)?);
        }
        if self.model == Model::Classic {
            // Kuma's classic leaves carry every tag, and its traffic policies match on them.
            for (tag, values) in workload.tags() {
                for value in values {
                    spec = spec.with_uri(format!("kuma://{tag}/{value}"));
                }
            }
        }
        Ok(spec)
    }
}

/// What a factory may use to build an issuer. There is nothing else: no globals, no environment.
#[derive(Clone, Debug)]
pub struct BuildContext {
    mesh: String,
    trust_domain: TrustDomain,
    secrets: Arc<dyn SecretStore>,
    local_sources: LocalSources,
    clock: Arc<dyn Clock>,
}

impl BuildContext {
    /// The context of one mesh (or of one of its trust domains).
    pub fn new(
        mesh: impl Into<String>,
        trust_domain: TrustDomain,
        secrets: Arc<dyn SecretStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            mesh: mesh.into(),
            trust_domain,
            secrets,
            local_sources: LocalSources::default(),
            clock,
        }
    }

    /// Decides whether data sources may name files and environment variables of the control plane.
    #[must_use]
    pub fn with_local_sources(mut self, local: LocalSources) -> Self {
        self.local_sources = local;
        self
    }

    /// The mesh.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// The trust domain that the issuer signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The mesh's secrets.
    pub fn secrets(&self) -> &Arc<dyn SecretStore> {
        &self.secrets
    }

    /// The time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Reads the data sources of settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the mesh has a name that no secret can have.
    pub fn sources(&self) -> Result<SourceReader> {
        Ok(
            SourceReader::new(Arc::clone(&self.secrets), self.mesh.clone())?
                .with_local_sources(self.local_sources),
        )
    }
}

/// Builds issuers of some types.
///
/// This is the door through which every provider comes in, ours and yours. Settings of a type
/// that meshca does not know arrive as [`Provider::Other`], to be
/// [decoded](BackendConfig::decode) into the provider's own.
///
/// ```
/// use std::sync::Arc;
///
/// use async_trait::async_trait;
/// use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext, BuiltIssuer, IssuerFactory};
/// use meshca_core::resource::{DataSource, Resource};
/// # use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
/// # use meshca_core::{ErrorKind, MemorySecretStore, SecretKey, SecretStore, Expect, SystemClock};
/// use meshca_core::{Issuer, Result, SecretValue};
///
/// /// `conf` of a backend, or `config` of an extension. A misspelt field is an error.
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields, rename_all = "camelCase")]
/// struct Settings {
///     url: String,
///     /// One of `secret`, `file`, `inline` and `inlineString`.
///     token: DataSource,
/// }
///
/// #[derive(Debug)]
/// struct StepFactory;
///
/// #[async_trait]
/// impl IssuerFactory for StepFactory {
///     fn types(&self) -> Vec<String> {
///         vec!["step-ca".to_owned()]
///     }
///
///     async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
///         let conf: Settings = config.decode()?;
///         let token: SecretValue = context.sources()?.read(&conf.token).await?;
///         Ok(connect(&conf.url, token, context).await?.into())
///     }
/// }
/// # async fn connect(_: &str, _: SecretValue, context: &BuildContext) -> Result<Arc<dyn Issuer>> {
/// #     // Stands for a client of the CA.
/// #     let settings = CaSettings::new(context.trust_domain().clone(), CaSecrets::for_backend("default", "ca")?);
/// #     let issuer = BuiltinIssuer::load_or_create(settings, context.secrets().clone(), context.clock().clone()).await?;
/// #     Ok(Arc::new(issuer))
/// # }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// let text = "
///     type: Mesh
///     name: default
///     mtls:
///       enabledBackend: corporate
///       backends:
///       - name: corporate
///         type: step-ca
///         conf: {url: 'https://ca.example', token: {secret: step-token}}
/// ";
/// # let secrets = Arc::new(MemorySecretStore::new());
/// # secrets.put(&SecretKey::new("default", "step-token")?, "hush".into(), Expect::Absent).await?;
/// let build = async |text: &str| -> std::result::Result<_, Box<dyn std::error::Error>> {
///     let documents = Resource::parse(text)?;
///     let Some(Resource::Mesh(mesh)) = documents.iter().next() else { return Err("no Mesh".into()) };
///     let backend = BackendConfig::classic(mesh.enabled_backend().ok_or("mTLS is off")?);
///     // `secrets` is the control plane's `SecretStore`.
///     let context = BuildContext::new("default", mesh.trust_domain()?, secrets.clone(), Arc::new(SystemClock::new()));
///     Ok(BackendRegistry::new().with(StepFactory).build(&backend, &context).await?)
/// };
/// let issuer = build(text).await?;
/// # drop(issuer);
///
/// let error = build(&text.replace("url:", "urll:")).await.unwrap_err();
/// assert!(error.to_string().starts_with("the settings do not fit: conf.urll: unknown field, did you mean `url`?"));
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait IssuerFactory: fmt::Debug + Send + Sync + 'static {
    /// The types that it builds, as [`BackendConfig::type_name`] spells them.
    fn types(&self) -> Vec<String>;

    /// Builds one. Connects to nothing that it need not: [`Issuer::check`] is for that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for settings that cannot work; those of the secrets that it reads.
    async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer>;
}

/// What a factory builds.
///
/// ```
/// # use std::sync::Arc;
/// # use meshca_core::{BuiltIssuer, Issuer};
/// fn most_have_only_an_issuer(issuer: impl Issuer) -> BuiltIssuer {
///     Arc::new(issuer).into()
/// }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct BuiltIssuer {
    /// Signs. An issuer that wraps it takes its place, and need not know of the rotation.
    pub issuer: Arc<dyn Issuer>,
    /// The replacement of its CA, where that is for the holder of the issuer to drive. A CA that
    /// nobody replaces ends.
    pub rotation: Option<Arc<dyn CaRotation>>,
}

impl BuiltIssuer {
    /// An issuer that is its own rotation.
    pub fn rotating(issuer: Arc<impl Issuer + CaRotation>) -> Self {
        Self {
            rotation: Some(issuer.clone()),
            issuer,
        }
    }
}

impl<I: Issuer> From<Arc<I>> for BuiltIssuer {
    fn from(issuer: Arc<I>) -> Self {
        let issuer: Arc<dyn Issuer> = issuer;
        issuer.into()
    }
}

impl From<Arc<dyn Issuer>> for BuiltIssuer {
    fn from(issuer: Arc<dyn Issuer>) -> Self {
        Self {
            issuer,
            rotation: None,
        }
    }
}

impl fmt::Debug for BuiltIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuiltIssuer")
            .field("issuer", &self.issuer)
            .field("rotates", &self.rotation.is_some())
            .finish()
    }
}

/// Which factory builds which type.
///
/// ```
/// use meshca_core::{BackendRegistry, builtin};
///
/// let registry = BackendRegistry::new().with(builtin::factory());
/// assert_eq!(registry.types().collect::<Vec<_>>(), ["Bundled", "builtin", "provided"]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct BackendRegistry {
    factories: BTreeMap<String, Arc<dyn IssuerFactory>>,
}

impl BackendRegistry {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a factory. Where two build the same type, the one that was added last does.
    #[must_use]
    pub fn with(mut self, factory: impl IssuerFactory) -> Self {
        let factory: Arc<dyn IssuerFactory> = Arc::new(factory);
        for name in factory.types() {
            self.factories.insert(name, Arc::clone(&factory));
        }
        self
    }

    /// The types that it knows, sorted.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.factories.keys().map(String::as_str)
    }

    /// Builds the issuer of a backend. With `mode: Intermediate`, what the factory built signs the
    /// certificate of a `DelegatedIssuer` (feature `builtin`), which is returned.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a type that no factory was added for;
    /// [`ErrorKind::Unsupported`] for `mode: Intermediate` with an issuer that signs none; those of the factory, with the
    /// name of the backend.
    pub async fn build(
        &self,
        config: &BackendConfig,
        context: &BuildContext,
    ) -> Result<BuiltIssuer> {
        let built = match self.factories.get(config.type_name()) {
            Some(factory) => match factory.build(config, context).await {
                Ok(built) => in_mode(built, config, context).await,
                Err(error) => Err(error),
            },
            None => {
                let known: Vec<_> = self.types().collect();
                let known = if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                };
                Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "no issuer of the type `{}` is registered (there are: {known})",
                        config.type_name().escape_debug()
                    ),
                ))
            }
        };
        built.map_err(|error| {
            error
                .with_context("mesh", context.mesh())
                .with_context("backend", config.name())
        })
    }
}

#[cfg(feature = "builtin")]
async fn in_mode(
    built: BuiltIssuer,
    config: &BackendConfig,
    context: &BuildContext,
) -> Result<BuiltIssuer> {
    match config.mode() {
        ExtensionMode::Leaf => Ok(built),
        ExtensionMode::Intermediate => {
            crate::builtin::delegate(built.issuer, config, context).await
        }
    }
}

#[cfg(not(feature = "builtin"))]
#[allow(
    clippy::unused_async,
    reason = "the same signature with and without the feature"
)]
async fn in_mode(
    built: BuiltIssuer,
    config: &BackendConfig,
    _: &BuildContext,
) -> Result<BuiltIssuer> {
    match config.mode() {
        ExtensionMode::Leaf => Ok(built),
        ExtensionMode::Intermediate => Err(Error::new(
            ErrorKind::Unsupported,
            "`mode: Intermediate` needs the built-in CA: build with the feature `builtin`, or use `mode: Leaf`",
        )),
    }
}
