//! `MeshIdentity`: who gets which SPIFFE ID, and from which CA.

use std::time::Duration;

use serde::ser::{Error as _, SerializeMap as _};
use serde::{Serialize, Serializer};

use super::any_settings::Dialect;
use super::datasource::{self, SecureDataSource};
use super::declare::{Mapping as _, Words as _, json_schema, mapping, tagged, words};
use super::decode::{Cursor, Fields};
use super::duration;
use super::field::{Group, defaulted, optional, required, spelt};
use super::free_form::FreeForm;
use super::labels;
use super::mesh::DEFAULT_EXPIRATION;
use super::metadata::{self, Form, Kind, Metadata, Scope};
use super::node::{Entry, Node, Value};
use super::provider::{self, Provider};
use super::selector::Selector;
use super::template;
use super::values;
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

impl Kind for MeshIdentity {
    const NAME: &'static str = "MeshIdentity";
    const SCOPE: Scope = Scope::System;

    fn read(f: &mut Fields<'_>, form: Form) -> Option<Self> {
        let metadata = metadata::read(f, form, Self::SCOPE);
        let spec = f.required("spec", Spec::read);
        let status = f.opt("status", values::free_form).unwrap_or_default();
        f.finish();
        let spec = spec?;
        Some(Self {
            metadata: metadata?,
            selector: spec.selector,
            trust_domain: spec.spiffe_id.trust_domain,
            path: spec.spiffe_id.path,
            provider: spec.provider,
            status,
        })
    }

    fn write<S: Serializer>(&self, form: Form, serializer: S) -> Result<S::Ok, S::Error> {
        let spec = Spec {
            selector: self.selector.clone(),
            spiffe_id: SpiffeIdTemplates {
                trust_domain: self.trust_domain.clone(),
                path: self.path.clone(),
            },
            provider: self.provider.clone(),
        };
        metadata::write::<Self, _, _>(&self.metadata, &spec, &self.status, form, serializer)
    }
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
}

mapping! {
    #[derive(Clone)]
    pub(super) struct Spec {
        selector: Selector = defaulted("selector", Selector::read),
        spiffe_id: SpiffeIdTemplates = defaulted("spiffeID", SpiffeIdTemplates::read),
        provider: Option<IdentityProvider> = optional("provider", IdentityProvider::read),
    }
}

mapping! {
    #[derive(Clone, Default, PartialEq)]
    pub(super) struct SpiffeIdTemplates as "SpiffeId" {
        trust_domain: Option<TrustDomainTemplate> = optional("trustDomain", template::trust_domain),
        path: Option<PathTemplate> = optional("path", template::path),
    }
}

tagged! {
    /// Where the certificates of a [`MeshIdentity`] come from.
    #[derive(Clone, Debug, PartialEq)]
    #[allow(
        clippy::large_enum_variant,
        reason = "few exist at a time, and matching on them should stay plain"
    )]
    #[non_exhaustive]
    pub enum IdentityProvider as "Provider" refuses "does not go with this `type`: remove it or change the type" {
        /// `type: Bundled`: a CA in the control plane.
        Bundled(Bundled) = "Bundled" with required("bundled", spelt(bundled, BundledFields::of)),
        /// `type: Spire`: a SPIRE agent beside the proxy.
        Spire(Spire) = "Spire" with defaulted("spire", Spire::read),
        /// `type: Extension`: a CA outside, by name.
        Extension(Extension) = "Extension" with required("extension", extension),
    }
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
        let ca = BundledCa::Provided {
            certificate,
            private_key,
        };
        Self {
            insecure_allow_self_signed: false,
            ..Self::self_signed(ca)
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

words! {
    /// Whether the control plane is to make a [`MeshTrust`](super::MeshTrust) from the CA of a [`MeshIdentity`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum MeshTrustCreation {
        /// It is, under the name of the MeshIdentity.
        ///
        /// meshca only reads the wish. The control plane that embeds it makes the MeshTrust, from the issuer's
        /// [`trust_bundle`](crate::Issuer::trust_bundle) with
        /// [`MeshTrust::from_trust_bundle`](super::MeshTrust::from_trust_bundle), and keeps it up to date.
        Enabled = "Enabled" (default),
        /// Trust is distributed in another way.
        Disabled = "Disabled",
    }
}

mapping! {
    /// A SPIRE agent beside the proxy.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct Spire {
        /// `agent.timeout`: how long the proxy waits for the agent.
        pub agent_timeout: Option<Duration> = optional("agent", Group(optional("timeout", duration::go_duration()))),
    }
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

words! {
    /// What an external CA signs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum ExtensionMode {
        /// Every workload's certificate.
        Leaf = "Leaf" (default),
        /// The certificate of a CA in the control plane, which signs those of the workloads.
        Intermediate = "Intermediate",
    }
}

mapping! {
    /// A CA in the control plane.
    #[derive(Clone)]
    struct BundledFields as "Bundled" {
        mesh_trust_creation: MeshTrustCreation = defaulted("meshTrustCreation", MeshTrustCreation::read),
        allow_self_signed: Option<bool> = optional("insecureAllowSelfSigned", values::boolean),
        autogenerate: Option<bool> = optional("autogenerate", spelt(autogenerate, |on| Autogenerate {
            enabled: on.then_some(true),
        })),
        ca: Option<BundledCaFields> = optional("ca", BundledCaFields::read),
        expiry: Option<Duration> =
            optional("certificateParameters", Group(optional("expiry", duration::go_lifetime()))),
    }
}

mapping! {
    struct Autogenerate {
        enabled: Option<bool> = optional("enabled", values::boolean),
    }
}

mapping! {
    #[derive(Clone)]
    struct BundledCaFields as "BundledCa" {
        certificate: SecureDataSource = required("certificate", SecureDataSource::read),
        private_key: SecureDataSource = required("privateKey", datasource::secure_secret),
    }
}

impl BundledFields {
    fn of(bundled: &Bundled) -> Self {
        let ca = match &bundled.ca {
            BundledCa::Autogenerate => None,
            BundledCa::Provided {
                certificate,
                private_key,
            } => Some(BundledCaFields {
                certificate: certificate.clone(),
                private_key: private_key.clone(),
            }),
        };
        Self {
            mesh_trust_creation: bundled.mesh_trust_creation,
            allow_self_signed: bundled.insecure_allow_self_signed.then_some(true),
            autogenerate: ca.is_none().then_some(true),
            ca,
            expiry: bundled.expiry,
        }
    }
}

impl Serialize for Extension {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut config = self
            .provider
            .written(self.dialect)
            .map_err(S::Error::custom)?;
        if self.mode != ExtensionMode::default() {
            // Settings without a field may be written as nothing at all.
            if let Value::Null = config.value {
                config.value = Value::Map(Vec::new());
            }
            let Value::Map(fields) = &mut config.value else {
                return Err(S::Error::custom("the settings of a CA must be a mapping"));
            };
            let mode = Node::unlocated(Value::Str(self.mode.word().into()));
            fields.insert(0, Entry::unlocated("mode", mode));
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", self.provider.type_name_in(self.dialect))?;
        map.serialize_entry("config", &config)?;
        map.end()
    }
}

json_schema! {
    // `schema::by_type` adds the settings of the types that are known.
    Extension, generator => schemars::json_schema!({
        "description": "A CA outside, by name. The settings depend on the name.",
        "type": "object",
        "properties": {
            "name": {},
            "config": {
                "type": ["object", "null"],
                "properties": { "mode": generator.subschema_for::<Option<ExtensionMode>>() },
                "additionalProperties": true,
            },
        },
        "required": ["name"],
        "additionalProperties": false,
    })
}

/// Said here and, for a resource that nobody validated, by the factory.
pub(crate) const SELF_SIGNED_NOT_ALLOWED: &str = "self-signed certificates are not allowed, and an autogenerated CA is one; \
     set `insecureAllowSelfSigned: true` or provide a `ca`";

fn bundled(at: Cursor<'_>) -> Option<Bundled> {
    at.mapping(|f| {
        let fields = BundledFields::read_fields(f)?;
        let allow_self_signed = settled(f, "insecureAllowSelfSigned", fields.allow_self_signed);
        let autogenerate = settled(f, "autogenerate", fields.autogenerate);
        let ca = match (autogenerate, f.has("ca")) {
            (Some(true), true) => f.refuse("ca", "excludes `autogenerate`: keep one of them"),
            (Some(true), false) if allow_self_signed == Some(false) => f.refuse_without(
                "autogenerate",
                "insecureAllowSelfSigned",
                SELF_SIGNED_NOT_ALLOWED,
            ),
            (Some(true), false) => Some(BundledCa::Autogenerate),
            (_, true) => fields.ca.map(|ca| BundledCa::Provided {
                certificate: ca.certificate,
                private_key: ca.private_key,
            }),
            (Some(false), false) => f.missing_any(
                &["ca", "autogenerate"],
                "either `ca` must be set or `autogenerate.enabled` be true: there is no CA",
            ),
            (None, false) => None,
        };
        Some(Bundled {
            mesh_trust_creation: fields.mesh_trust_creation,
            insecure_allow_self_signed: allow_self_signed?,
            ca: ca?,
            expiry: fields.expiry,
        })
    })
}

fn autogenerate(at: Cursor<'_>) -> Option<bool> {
    at.mapping(|f| {
        let (enabled,) = Autogenerate::read_parts(f);
        // A misspelt `enabled` is reported; what it says is not known.
        settled(f, "enabled", enabled.flatten()).filter(|_| f.all_known())
    })
}

/// A switch that is off where it is absent. Where it is there and wrong, it is not known, and nothing follows from it.
fn settled(f: &Fields<'_>, field: &str, value: Option<bool>) -> Option<bool> {
    value.or((!f.has(field)).then_some(false))
}

fn extension(at: Cursor<'_>) -> Option<Extension> {
    let mut f = at.fields()?;
    let name = f.required("name", provider::extension_name);
    f.know(&["config"]);
    let extension = name.and_then(|name| match f.has("config") {
        true => f.opt("config", |at| {
            let mut f = at.fields()?;
            let mode = f.opt("mode", ExtensionMode::read);
            let (provider, dialect) = provider::extension_settings(&mut f, &name)?;
            Some(Extension {
                provider,
                mode: mode.unwrap_or_default(),
                dialect,
            })
        }),
        false => provider::extension_without_settings(&f, &name).map(Extension::new),
    });
    f.finish();
    extension
}
