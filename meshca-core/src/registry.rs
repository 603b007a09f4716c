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

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spiffe::{SpiffeId, TrustDomain};

pub use crate::choices::Choices;
use crate::resource::settings::{Model, SettingsType};
use crate::resource::{
    AnySettings, Backend, Bundled, BundledCa, Extension, ExtensionMode, IdentityProvider,
    MeshIdentity, OURS, Provider,
};
use crate::secret::{LocalSources, SecretStore, SourceReader};
use crate::spiffe::{Workload, tag_uri::tag_uri};
use crate::{CaRotation, CertificateSpec, Clock, Error, ErrorKind, Issuer, Result, TrustRoot};

pub use crate::new_ca::NewCa;

/// One CA as a resource describes it, the same for both models.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    name: String,
    ca: Ca,
    mode: ExtensionMode,
    /// The lifetime that the operator set, if there is a setting for it.
    expiration: Option<Duration>,
    request_timeout: Option<Duration>,
    model: Model,
}

#[derive(Clone, Debug)]
enum Ca {
    /// A backend of a `Mesh`, or an extension of a `MeshIdentity`: they have the same settings.
    Provider(Provider),
    /// The `Bundled` provider of a `MeshIdentity`.
    Bundled(Bundled),
}

impl BackendConfig {
    /// A backend of `Mesh.mtls`.
    pub fn classic(backend: &Backend) -> Self {
        Self {
            name: backend.name.clone(),
            ca: Ca::Provider(backend.provider.clone()),
            mode: ExtensionMode::Leaf,
            expiration: backend.dp_cert.expiration,
            request_timeout: backend.dp_cert.request_timeout,
            model: Model::Classic,
        }
    }

    /// The provider of a MeshIdentity; `None` if it issues nothing: without a provider it only
    /// announces the ID, and `Spire` leaves the issuing to SPIRE.
    pub fn modern(identity: &MeshIdentity) -> Option<Self> {
        let (ca, mode, expiration) = match identity.provider.clone()? {
            IdentityProvider::Bundled(bundled) => {
                let expiration = bundled.expiry;
                (Ca::Bundled(bundled), ExtensionMode::Leaf, expiration)
            }
            IdentityProvider::Extension(Extension { provider, mode, .. }) => {
                (Ca::Provider(provider), mode, None)
            }
            IdentityProvider::Spire(_) => return None,
        };
        Some(Self {
            name: identity.metadata.name.clone(),
            ca,
            mode,
            expiration,
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
        match &self.ca {
            Ca::Provider(provider) => provider.type_name(),
            Ca::Bundled(_) => "Bundled",
        }
    }

    /// Returns the settings as the factory's own type. Those of a type without a [reader](IssuerFactory::settings) are a
    /// [`FreeForm`](crate::resource::FreeForm), those of the provider `Bundled` a [`Bundled`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if they are settings of another type.
    pub fn settings<T: 'static>(&self) -> Result<&T> {
        let settings = match &self.ca {
            Ca::Provider(provider) => provider.settings(),
            Ca::Bundled(bundled) => (bundled as &dyn Any).downcast_ref(),
        };
        settings.ok_or_else(|| {
            let name = self.type_name().escape_debug();
            let why = format!("the settings of this `{name}` are not what its factory reads");
            Error::new(ErrorKind::InvalidConfig, why)
        })
    }

    /// Returns `true` if the settings name the certificate and key of the CA itself, which their owner replaces without a
    /// change of the resource.
    pub fn holds_the_ca(&self) -> bool {
        match &self.ca {
            Ca::Provider(_) => self.typed().is_some_and(AnySettings::holds_the_ca),
            Ca::Bundled(bundled) => matches!(bundled.ca, BundledCa::Provided { .. }),
        }
    }

    fn typed(&self) -> Option<&dyn AnySettings> {
        match &self.ca {
            Ca::Provider(provider) => provider.typed(),
            Ca::Bundled(_) => None,
        }
    }

    /// Whether the CA signs leaves, or an intermediate that does.
    pub fn mode(&self) -> ExtensionMode {
        self.mode
    }

    /// How long its certificates are to live.
    pub fn lifetime(&self) -> Duration {
        self.expiration.unwrap_or(crate::DEFAULT_LIFETIME)
    }

    /// How long the CA has to answer one request, if the resource says: `dpCert.requestTimeout`.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.request_timeout
    }

    /// Whether its certificates carry `kuma://<tag>/<value>` URIs beside the SPIFFE ID, as in the classic model.
    pub fn has_tag_uris(&self) -> bool {
        self.model == Model::Classic
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
    /// Names and the policy on lifetimes are those of the [settings](crate::resource::settings::Settings), so a third
    /// party's CA has its own.
    ///
    /// Since a classic certificate carries the tags, an issuer for the classic model needs
    /// [`Capabilities::with_extra_uris(true)`](crate::Capabilities::with_extra_uris).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if a template cannot be rendered for this workload, or if a tag would change the
    /// shape of its URI (a `/` in a value, a part that is empty, `.` or `..`, a character that is no letter, digit,
    /// `.`, `-`, `_` or `:`); it names the label or tag.
    pub fn certificate_spec(
        &self,
        spiffe_id: SpiffeId,
        workload: &Workload,
    ) -> Result<CertificateSpec> {
        let mut spec = CertificateSpec::workload(spiffe_id).with_lifetime(self.lifetime());
        if let Some(settings) = self.typed() {
            spec = spec.with_lifetime_policy(settings.lifetime_policy(self.model, self.expiration));
            if let Some(template) = settings.common_name() {
                spec = spec.with_common_name(template.render(workload)?);
            }
            for template in settings.dns_names() {
                spec = spec.with_dns_name(template.render(workload)?);
            }
        }
        if self.model == Model::Classic {
            // Kuma's classic leaves carry every tag, and its traffic policies match on them.
            for (tag, values) in workload.tags() {
                for value in values {
                    spec = spec.with_uri(tag_uri(tag, value)?);
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
    new_ca: NewCa,
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
            new_ca: NewCa::default(),
        }
    }

    /// Decides whether data sources may name files and environment variables of the control plane.
    #[must_use]
    pub fn with_local_sources(mut self, local: LocalSources) -> Self {
        self.local_sources = local;
        self
    }

    /// Says whether a CA that is not in the secret store may be made.
    #[must_use]
    pub fn with_new_ca(mut self, new_ca: NewCa) -> Self {
        self.new_ca = new_ca;
        self
    }

    /// Whether a CA that is not in the secret store may be made.
    pub fn new_ca(&self) -> &NewCa {
        &self.new_ca
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
        let reader = SourceReader::new(Arc::clone(&self.secrets), &self.mesh)?;
        Ok(reader.with_local_sources(self.local_sources.clone()))
    }
}

/// Builds issuers of some types.
///
/// This is the door through which every provider comes in, ours and yours. The settings are a type with a
/// [reader](crate::resource::settings), which also decides on names and lifetimes. The factory hands out that reader, and
/// builds issuers from the settings that it read.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use async_trait::async_trait;
/// use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext, BuiltIssuer, IssuerFactory};
/// use meshca_core::resource::settings::{self, Fields, Model, Settings, SettingsType};
/// use meshca_core::resource::{DataSource, ParseOptions, Resource};
/// use meshca_core::spiffe::{NameTemplate, Workload};
/// # use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
/// # use meshca_core::{ErrorKind, MemorySecretStore, SecretKey, SecretStore, Expect, SystemClock};
/// use meshca_core::{Issuer, LifetimePolicy, Result, SecretValue};
///
/// /// `conf` of a backend, or `config` of an extension.
/// #[derive(Debug, PartialEq, serde::Serialize)]
/// #[serde(rename_all = "camelCase")]
/// struct StepSettings {
///     url: String,
///     /// One of `secret`, `file`, `inline` and `inlineString`.
///     token: DataSource,
///     dns_names: Vec<NameTemplate>,
/// }
///
/// impl Settings for StepSettings {
///     const TYPE: &'static str = "step-ca";
///
///     fn read(fields: &mut Fields<'_>) -> Option<Self> {
///         let url = fields.required("url", settings::non_empty);
///         let token = fields.required("token", settings::secret);
///         let dns_names = fields.list("dnsNames", settings::name_template);
///         Some(Self { url: url?, token: token?, dns_names })
///     }
///
///     fn dns_names(&self) -> &[NameTemplate] {
///         &self.dns_names
///     }
///
///     /// This CA decides on lifetimes itself.
///     fn lifetime_policy(&self, _: Model, _: Option<Duration>) -> LifetimePolicy {
///         LifetimePolicy::AcceptIssuer
///     }
/// }
///
/// #[derive(Debug)]
/// struct StepFactory;
///
/// #[async_trait]
/// impl IssuerFactory for StepFactory {
///     fn settings(&self) -> Vec<SettingsType> {
///         vec![SettingsType::of::<StepSettings>()]
///     }
///
///     async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
///         let conf: &StepSettings = config.settings()?;
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
/// let registry = BackendRegistry::new().with(StepFactory);
/// let text = "\
/// type: Mesh
/// name: default
/// mtls:
///   enabledBackend: corporate
///   backends:
///   - name: corporate
///     type: step-ca
///     conf:
///       url: https://ca.example
///       token: {secret: step-token}
///       dnsNames: ['{{ label \"app\" }}.example']
/// ";
/// let options = ParseOptions::new().settings(registry.settings());
/// let report = options.parse(text.replace("url:", "urll:")).unwrap_err();
/// assert_eq!(report.to_string(), "9:7: mtls.backends[0].conf.urll: unknown field, did you mean `url`?");
///
/// let documents = options.parse(text)?;
/// let Some(Resource::Mesh(mesh)) = documents.iter().next() else { return Err("no Mesh".into()) };
/// let backend = BackendConfig::classic(mesh.enabled_backend().ok_or("mTLS is off")?);
///
/// let workload = Workload::new().with_label("app", "cart").with_tag("kuma.io/service", "cart");
/// let spec = backend.certificate_spec(mesh.spiffe_id_of(&workload)?, &workload)?;
/// assert_eq!(spec.dns_names(), ["cart.example"]);
/// assert_eq!(spec.lifetime_policy(), LifetimePolicy::AcceptIssuer);
///
/// // `secrets` is the control plane's `SecretStore`.
/// # let secrets = Arc::new(MemorySecretStore::new());
/// # secrets.put(&SecretKey::new("default", "step-token")?, "hush".into(), Expect::Absent).await?;
/// let context = BuildContext::new("default", mesh.trust_domain()?, secrets, Arc::new(SystemClock::new()));
/// let issuer = registry.build(&backend, &context).await?;
/// # drop(issuer);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait IssuerFactory: fmt::Debug + Send + Sync + 'static {
    /// Returns the readers of its types' settings. Without one, the settings of a type are not judged, and are a
    /// [`FreeForm`](crate::resource::FreeForm).
    fn settings(&self) -> Vec<SettingsType> {
        Vec::new()
    }

    /// The types that it builds, as [`BackendConfig::type_name`] spells them. By default those of
    /// [`settings`](Self::settings).
    fn types(&self) -> Vec<String> {
        let types = self.settings();
        types.iter().map(|it| it.name().to_owned()).collect()
    }

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
#[derive(Clone, derive_more::Debug)]
#[non_exhaustive]
pub struct BuiltIssuer {
    /// Signs. An issuer that wraps it takes its place, and need not know of the rotation.
    pub issuer: Arc<dyn Issuer>,
    /// The replacement of its CA, where that is for the holder of the issuer to drive. A CA that
    /// nobody replaces ends.
    #[debug("{}", rotation.is_some())]
    pub rotation: Option<Arc<dyn CaRotation>>,
    /// The root of a CA that was made just now, since there was none: its holder tells of it.
    pub new_root: Option<TrustRoot>,
}

impl BuiltIssuer {
    /// An issuer that is its own rotation.
    pub fn rotating(issuer: Arc<impl Issuer + CaRotation>) -> Self {
        Self {
            rotation: Some(issuer.clone()),
            issuer,
            new_root: None,
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
            new_root: None,
        }
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
#[derive(Clone, Debug)]
pub struct BackendRegistry {
    factories: BTreeMap<String, Arc<dyn IssuerFactory>>,
    settings: Vec<SettingsType>,
}

impl Default for BackendRegistry {
    fn default() -> Self {
        Self {
            factories: BTreeMap::new(),
            settings: OURS.to_vec(),
        }
    }
}

impl BackendRegistry {
    /// Builds nothing yet. It can read the settings of meshca's own types, which need no client.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a factory. Where two build the same type, the one that was added last does.
    #[must_use]
    pub fn with(mut self, factory: impl IssuerFactory) -> Self {
        let factory: Arc<dyn IssuerFactory> = Arc::new(factory);
        for kind in factory.settings() {
            kind.add_to(&mut self.settings);
        }
        for name in factory.types() {
            self.factories.insert(name, Arc::clone(&factory));
        }
        self
    }

    /// The readers of settings, for [`ParseOptions::settings`](crate::resource::ParseOptions::settings).
    pub fn settings(&self) -> Vec<SettingsType> {
        self.settings.clone()
    }

    /// Reads settings whose reader was not known where the resource was read, such as by serde or without
    /// [`ParseOptions::settings`](crate::resource::ParseOptions::settings). [`build`](Self::build) and the manager call
    /// this themselves. Call it before [`certificate_spec`](BackendConfig::certificate_spec), which takes names and the
    /// policy on lifetimes from the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] with all violations.
    pub fn resolve(&self, config: &BackendConfig) -> Result<BackendConfig> {
        let mut config = config.clone();
        if let Ca::Provider(provider) = &mut config.ca {
            *provider = provider.resolved(&self.settings, config.model)?;
        }
        Ok(config)
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
        self.build_bare(config, context).await.map_err(|error| {
            error
                .with_context("mesh", context.mesh())
                .with_context("backend", config.name())
        })
    }

    async fn build_bare(
        &self,
        config: &BackendConfig,
        context: &BuildContext,
    ) -> Result<BuiltIssuer> {
        let name = config.type_name();
        let factory = self.factories.get(name).ok_or_else(|| {
            let known = match self.types().collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => "none".to_owned(),
                known => known,
            };
            let name = name.escape_debug();
            let why = format!("no issuer of the type `{name}` is registered (there are: {known})");
            Error::new(ErrorKind::InvalidConfig, why)
        })?;
        let config = self.resolve(config)?;
        let built = factory.build(&config, context).await?;
        match config.mode() {
            ExtensionMode::Leaf => Ok(built),
            #[cfg(feature = "builtin")]
            ExtensionMode::Intermediate => crate::builtin::delegate(built, &config, context).await,
            #[cfg(not(feature = "builtin"))]
            ExtensionMode::Intermediate => Err(Error::new(
                ErrorKind::Unsupported,
                "`mode: Intermediate` needs the built-in CA: build with the feature `builtin`, or use `mode: Leaf`",
            )),
        }
    }
}
