//! `MeshIdentity`: who gets which SPIFFE ID, and from which CA.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::any_settings::Dialect;
use super::datasource::{self, SecureDataSource};
use super::decode::{self, Cursor, Fields};
use super::duration;
use super::free_form::FreeForm;
use super::labels;
use super::mesh::DEFAULT_EXPIRATION;
use super::metadata::{self, API_VERSION, Form, Layout, Metadata, Scope, Written, may_be_absent};
use super::provider::{self, Provider, SettingsWire};
#[cfg(feature = "schema")]
use super::schema;
use super::selector::{self, Selector, SelectorWire};
use super::template;
use crate::spiffe::{
    Environment, PathTemplate, SpiffeId, TrustDomain, TrustDomainInputs, TrustDomainTemplate,
    Workload,
};

/// Gives the Dataplanes that it selects an identity.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MeshIdentity {
    /// Name, mesh and form. On Kubernetes it lives in the control plane's own namespace.
    pub metadata: Metadata,
    /// Which Dataplanes.
    pub selector: Selector,
    /// `spiffeID.trustDomain`: absent means [`TrustDomainTemplate::DEFAULT`].
    pub trust_domain: Option<TrustDomainTemplate>,
    /// `spiffeID.path`: absent means the default of the Dataplane's environment.
    pub path: Option<PathTemplate>,
    /// Which CA. Absent: the SPIFFE ID is announced and nothing is issued, which is the first step of
    /// a change of the trust domain.
    pub provider: Option<IdentityProvider>,
    /// What the control plane says about it.
    pub status: FreeForm,
}

impl MeshIdentity {
    /// Without a provider, selecting nothing.
    pub fn new(metadata: Metadata) -> Self {
        Self {
            metadata,
            selector: Selector::none(),
            trust_domain: None,
            path: None,
            provider: None,
            status: FreeForm::default(),
        }
    }

    /// The same with another selector.
    #[must_use]
    pub fn with_selector(mut self, selector: Selector) -> Self {
        self.selector = selector;
        self
    }

    /// The same with another provider.
    #[must_use]
    pub fn with_provider(mut self, provider: IdentityProvider) -> Self {
        self.provider = Some(provider);
        self
    }

    /// The trust domain in this zone: the template, or its default, with the labels of this
    /// resource.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) naming the label or variable that is missing or does
    /// not fit.
    pub fn trust_domain_in(&self, zone: &str) -> crate::Result<TrustDomain> {
        let mesh = self.metadata.mesh();
        let mut labels = self.metadata.labels.clone();
        labels.insert(labels::MESH.to_owned(), mesh.to_owned());
        let inputs = TrustDomainInputs::new(mesh, zone).with_labels(&labels);
        match &self.trust_domain {
            Some(template) => template.render(&inputs),
            None => TrustDomainTemplate::default().render(&inputs),
        }
    }

    /// The SPIFFE ID of a workload in this trust domain: the template, or the default of the
    /// workload's environment, with the labels of the workload.
    ///
    /// # Errors
    ///
    /// As [`trust_domain_in`](Self::trust_domain_in).
    pub fn spiffe_id_of(
        &self,
        trust_domain: &TrustDomain,
        workload: &Workload,
        environment: Environment,
    ) -> crate::Result<SpiffeId> {
        match &self.path {
            Some(template) => template.render(trust_domain, workload),
            None => PathTemplate::default_for(environment).render(trust_domain, workload),
        }
    }

    pub(super) fn write<S: Serializer>(
        &self,
        form: Form,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Self {
            metadata,
            selector,
            trust_domain,
            path,
            provider,
            status,
        } = self;
        let spec = SpecWire {
            selector: selector.wire(),
            spiffe_id: (trust_domain.is_some() || path.is_some()).then_some(SpiffeIdWire {
                trust_domain: trust_domain.as_ref(),
                path: path.as_ref(),
            }),
            provider: provider.as_ref().map(IdentityProvider::wire),
        };
        Written {
            api_version: API_VERSION,
            kind: "MeshIdentity",
            metadata,
            layout: Layout::Spec,
            spec,
            status: Cow::Borrowed(status),
        }
        .write(form, serializer)
    }
}

/// Where the certificates of a [`MeshIdentity`] come from.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "few exist at a time, and matching on them should stay plain"
)]
#[non_exhaustive]
pub enum IdentityProvider {
    /// `type: Bundled`: a CA in the control plane.
    Bundled(Bundled),
    /// `type: Spire`: a SPIRE agent beside the proxy.
    Spire(Spire),
    /// `type: Extension`: a CA outside, by name.
    Extension(Extension),
}

/// A CA in the control plane.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bundled {
    /// Whether the control plane is to make a MeshTrust from the CA.
    pub mesh_trust_creation: MeshTrustCreation,
    /// Whether the CA may be its own root.
    pub insecure_allow_self_signed: bool,
    /// The CA.
    pub ca: BundledCa,
    /// `certificateParameters.expiry`: the lifetime of a workload's certificate; see
    /// [`lifetime`](Self::lifetime).
    pub expiry: Option<Duration>,
}

impl Bundled {
    /// A CA that signed itself.
    pub fn self_signed(ca: BundledCa) -> Self {
        Self {
            mesh_trust_creation: MeshTrustCreation::default(),
            insecure_allow_self_signed: true,
            ca,
            expiry: None,
        }
    }

    /// A CA that somebody else signed.
    pub fn intermediate(certificate: SecureDataSource, private_key: SecureDataSource) -> Self {
        Self {
            mesh_trust_creation: MeshTrustCreation::default(),
            insecure_allow_self_signed: false,
            ca: BundledCa::Provided {
                certificate,
                private_key,
            },
            expiry: None,
        }
    }

    /// The lifetime of a workload's certificate: 24 hours if the document does not say.
    pub fn lifetime(&self) -> Duration {
        self.expiry.unwrap_or(DEFAULT_EXPIRATION)
    }
}

/// Where the key of a bundled CA comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BundledCa {
    /// `autogenerate`: the control plane makes the CA.
    Autogenerate,
    /// `ca`: it was made elsewhere.
    Provided {
        /// The certificate.
        certificate: SecureDataSource,
        /// The private key.
        private_key: SecureDataSource,
    },
}

/// Whether the control plane is to make a [`MeshTrust`](super::MeshTrust) from the CA of a [`MeshIdentity`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum MeshTrustCreation {
    /// It is, under the name of the MeshIdentity.
    ///
    /// meshca only reads the wish. The control plane that embeds it makes the MeshTrust, from the issuer's
    /// [`trust_bundle`](crate::Issuer::trust_bundle) with
    /// [`MeshTrust::from_trust_bundle`](super::MeshTrust::from_trust_bundle), and keeps it up to date.
    #[default]
    Enabled,
    /// Trust is distributed in another way.
    Disabled,
}

/// A SPIRE agent beside the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spire {
    /// `agent.timeout`: how long the proxy waits for the agent.
    pub agent_timeout: Option<Duration>,
}

/// A CA outside, by name.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Extension {
    /// `name` and `config`, the same settings as those of a classic backend.
    pub provider: Provider,
    /// What the CA signs.
    pub mode: ExtensionMode,
    /// How the name and the settings are spelt.
    pub dialect: Dialect,
}

impl Extension {
    /// The CA signs every workload's certificate.
    pub fn new(provider: Provider) -> Self {
        Self {
            provider,
            mode: ExtensionMode::default(),
            dialect: Dialect::default(),
        }
    }
}

/// What an external CA signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum ExtensionMode {
    /// Every workload's certificate.
    #[default]
    Leaf,
    /// The certificate of a CA in the control plane, which signs those of the workloads.
    Intermediate,
}

impl ExtensionMode {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct SpecWire<'w> {
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<SelectorWire<'w>>,
    #[serde(rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<SpiffeIdWire<'w>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<ProviderWire<'w>>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "SpiffeId")
)]
#[serde(rename_all = "camelCase")]
struct SpiffeIdWire<'w> {
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_domain: Option<&'w TrustDomainTemplate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'w PathTemplate>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Provider")
)]
#[serde(tag = "type")]
enum ProviderWire<'w> {
    Bundled {
        bundled: BundledWire<'w>,
    },
    Spire {
        #[serde(skip_serializing_if = "Option::is_none")]
        spire: Option<SpireWire>,
    },
    Extension {
        extension: ExtensionWire<'w>,
    },
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Bundled")
)]
#[serde(rename_all = "camelCase")]
struct BundledWire<'w> {
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh_trust_creation: Option<MeshTrustCreation>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure_allow_self_signed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    autogenerate: Option<AutogenerateWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<CaWire<'w>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_parameters: Option<CertificateParametersWire>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Autogenerate")
)]
struct AutogenerateWire {
    #[serde(skip_serializing_if = "may_be_absent")]
    enabled: bool,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "BundledCa")
)]
#[serde(rename_all = "camelCase")]
struct CaWire<'w> {
    certificate: &'w SecureDataSource,
    private_key: &'w SecureDataSource,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "CertificateParameters")
)]
struct CertificateParametersWire {
    #[serde(
        skip_serializing_if = "may_be_absent",
        serialize_with = "duration::serialize_go"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<duration::GoDuration>"))]
    expiry: Option<Duration>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Spire")
)]
struct SpireWire {
    #[serde(skip_serializing_if = "may_be_absent")]
    agent: AgentWire,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "SpireAgent")
)]
struct AgentWire {
    #[serde(
        skip_serializing_if = "may_be_absent",
        serialize_with = "duration::serialize_go"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<duration::GoDuration>"))]
    timeout: Option<Duration>,
}

#[derive(Serialize)]
struct ExtensionWire<'w> {
    name: &'w str,
    config: ConfigWire<'w>,
}

#[derive(Serialize)]
struct ConfigWire<'w> {
    #[serde(skip_serializing_if = "ExtensionMode::is_default")]
    mode: ExtensionMode,
    #[serde(flatten)]
    settings: SettingsWire<'w>,
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for ExtensionWire<'_> {
    fn schema_name() -> Cow<'static, str> {
        "Extension".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schema::extension(generator)
    }
}

impl IdentityProvider {
    fn wire(&self) -> ProviderWire<'_> {
        match self {
            Self::Bundled(Bundled {
                mesh_trust_creation,
                insecure_allow_self_signed,
                ca,
                expiry,
            }) => {
                let (autogenerate, ca) = match ca {
                    BundledCa::Autogenerate => (Some(AutogenerateWire { enabled: true }), None),
                    BundledCa::Provided {
                        certificate,
                        private_key,
                    } => (
                        None,
                        Some(CaWire {
                            certificate,
                            private_key,
                        }),
                    ),
                };
                ProviderWire::Bundled {
                    bundled: BundledWire {
                        mesh_trust_creation: (*mesh_trust_creation != MeshTrustCreation::default())
                            .then_some(*mesh_trust_creation),
                        insecure_allow_self_signed: *insecure_allow_self_signed,
                        autogenerate,
                        ca,
                        certificate_parameters: expiry.map(|expiry| CertificateParametersWire {
                            expiry: Some(expiry),
                        }),
                    },
                }
            }
            Self::Spire(Spire { agent_timeout }) => ProviderWire::Spire {
                spire: agent_timeout.map(|timeout| SpireWire {
                    agent: AgentWire {
                        timeout: Some(timeout),
                    },
                }),
            },
            Self::Extension(Extension {
                provider,
                mode,
                dialect,
            }) => ProviderWire::Extension {
                extension: ExtensionWire {
                    name: provider.type_name_in(*dialect),
                    config: ConfigWire {
                        mode: *mode,
                        settings: provider.written(*dialect),
                    },
                },
            },
        }
    }
}

/// Reads a `MeshIdentity` whose `apiVersion` and `kind`, or `type`, have been read.
pub(super) fn read(f: &mut Fields<'_>, form: Form) -> Option<MeshIdentity> {
    let metadata = metadata::read(f, form, Scope::System);
    let spec = f.required("spec", |at| {
        let mut f = at.fields()?;
        let selector = f.opt("selector", selector::read).unwrap_or_default();
        let spiffe_id = f.opt("spiffeID", |at| {
            let mut f = at.fields()?;
            let trust_domain = f.opt("trustDomain", template::trust_domain);
            let path = f.opt("path", template::path);
            f.finish();
            Some((trust_domain, path))
        });
        let provider = f.opt("provider", provider);
        f.finish();
        let (trust_domain, path) = spiffe_id.unwrap_or_default();
        Some((selector, trust_domain, path, provider))
    });
    let status = f.opt("status", decode::free_form).unwrap_or_default();
    f.finish();
    let (selector, trust_domain, path, provider) = spec?;
    Some(MeshIdentity {
        metadata: metadata?,
        selector,
        trust_domain,
        path,
        provider,
        status,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Type {
    Bundled,
    Spire,
    Extension,
}

fn provider(at: Cursor<'_>) -> Option<IdentityProvider> {
    let mut f = at.fields()?;
    let kind = f.required("type", |at| {
        at.choice(&[
            ("Bundled", Type::Bundled),
            ("Spire", Type::Spire),
            ("Extension", Type::Extension),
        ])
    });
    for (name, owner) in [
        ("bundled", Type::Bundled),
        ("spire", Type::Spire),
        ("extension", Type::Extension),
    ] {
        match kind {
            Some(kind) if kind != owner && f.has(name) => {
                f.refuse::<()>(
                    name,
                    "does not go with this `type`: remove it or change the type",
                );
            }
            _ => {
                f.know(&[name]);
            }
        }
    }
    let provider = match kind {
        Some(Type::Bundled) => f
            .required("bundled", bundled)
            .map(IdentityProvider::Bundled),
        Some(Type::Spire) if !f.has("spire") => Some(IdentityProvider::Spire(Spire::default())),
        Some(Type::Spire) => f.opt("spire", spire).map(IdentityProvider::Spire),
        Some(Type::Extension) => f
            .required("extension", extension)
            .map(IdentityProvider::Extension),
        None => None,
    };
    f.finish();
    provider
}

/// Said here and, for a resource that nobody validated, by the factory.
pub(crate) const SELF_SIGNED_NOT_ALLOWED: &str = "self-signed certificates are not allowed, and an autogenerated CA is one; \
     set `insecureAllowSelfSigned: true` or provide a `ca`";

fn bundled(at: Cursor<'_>) -> Option<Bundled> {
    let mut f = at.fields()?;
    let mesh_trust_creation = f.opt("meshTrustCreation", |at| {
        at.choice(&[
            ("Enabled", MeshTrustCreation::Enabled),
            ("Disabled", MeshTrustCreation::Disabled),
        ])
    });
    let allow_self_signed = f.value_or_default("insecureAllowSelfSigned", decode::boolean);
    let autogenerate = f.value_or_default("autogenerate", |at| {
        let mut f = at.fields()?;
        let enabled = f.value_or_default("enabled", decode::boolean);
        f.finish();
        // A misspelt `enabled` was reported; what it says is not known.
        enabled.filter(|_| f.all_known())
    });
    let provided = f.opt("ca", |at| {
        let mut f = at.fields()?;
        let certificate = f.required("certificate", datasource::secure_public);
        let private_key = f.required("privateKey", datasource::secure_secret);
        f.finish();
        Some(BundledCa::Provided {
            certificate: certificate?,
            private_key: private_key?,
        })
    });
    let ca = match (autogenerate, f.has("ca")) {
        (Some(true), true) => f.refuse("ca", "excludes `autogenerate`: keep one of them"),
        (Some(true), false) if allow_self_signed == Some(false) => f.refuse_without(
            "autogenerate",
            "insecureAllowSelfSigned",
            SELF_SIGNED_NOT_ALLOWED,
        ),
        (Some(true), false) => Some(BundledCa::Autogenerate),
        (_, true) => provided,
        (Some(false), false) => f.missing_any(
            &["ca", "autogenerate"],
            "either `ca` must be set or `autogenerate.enabled` be true: there is no CA",
        ),
        (None, false) => None,
    };
    let expiry = f.opt("certificateParameters", |at| {
        let mut f = at.fields()?;
        let expiry = f.opt("expiry", duration::go_lifetime);
        f.finish();
        expiry
    });
    f.finish();
    Some(Bundled {
        mesh_trust_creation: mesh_trust_creation.unwrap_or_default(),
        insecure_allow_self_signed: allow_self_signed?,
        ca: ca?,
        expiry,
    })
}

fn spire(at: Cursor<'_>) -> Option<Spire> {
    let mut f = at.fields()?;
    let agent_timeout = f.opt("agent", |at| {
        let mut f = at.fields()?;
        let timeout = f.opt("timeout", duration::go);
        f.finish();
        timeout
    });
    f.finish();
    Some(Spire { agent_timeout })
}

fn extension(at: Cursor<'_>) -> Option<Extension> {
    let mut f = at.fields()?;
    let name = f.required("name", provider::extension_name);
    let Some(name) = name else {
        f.know(&["config"]);
        f.finish();
        return None;
    };
    let config = match f.has("config") {
        true => f.opt("config", |at| {
            let mut f = at.fields()?;
            let mode = f.opt("mode", |at| {
                at.choice(&[
                    ("Leaf", ExtensionMode::Leaf),
                    ("Intermediate", ExtensionMode::Intermediate),
                ])
            });
            let (provider, dialect) = provider::extension_settings(&mut f, &name)?;
            Some(Extension {
                provider,
                mode: mode.unwrap_or_default(),
                dialect,
            })
        }),
        false => provider::extension_without_settings(&f, &name).map(Extension::new),
    };
    f.know(&["config"]);
    f.finish();
    config
}
