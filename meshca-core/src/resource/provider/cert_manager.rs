//! Settings of cert-manager.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::json;

use super::super::datasource::DataSource;
use super::super::declare::{Mapping as _, Words as _, mapping, words};
use super::super::field::{Described, Each, defaulted, optional, required};
#[cfg(feature = "schema")]
use super::super::free_form::FreeForm;
use super::super::settings::{self, Cursor, Dialect, Fields, Model, Settings, Spelling};
use super::super::values;
use crate::LifetimePolicy;
use crate::spiffe::NameTemplate;

/// Which issuer of cert-manager signs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CertManagerConf {
    /// The issuer.
    pub issuer: IssuerRef,
    /// The roots that the issuer must chain to; without them it must fill `status.ca`.
    pub ca_cert: Option<DataSource>,
    /// A template for the certificate's common name. No common name if absent.
    pub common_name: Option<NameTemplate>,
    /// Templates for DNS names beside the SPIFFE ID.
    pub dns_names: Vec<NameTemplate>,
    /// The usages of workloads' certificates, as the `CertificateRequest` lists them. Empty for
    /// [`DEFAULT_USAGES`](Self::DEFAULT_USAGES); see [`usages`](Self::usages).
    pub usages: Vec<CertManagerUsage>,
    /// Annotations of each `CertificateRequest`, for issuers that take a policy or a zone from
    /// there.
    pub annotations: BTreeMap<String, String>,
}

impl CertManagerConf {
    /// The usages where the document does not say.
    pub const DEFAULT_USAGES: [CertManagerUsage; 4] = [
        CertManagerUsage::DigitalSignature,
        CertManagerUsage::KeyEncipherment,
        CertManagerUsage::ServerAuth,
        CertManagerUsage::ClientAuth,
    ];

    /// Only what is needed.
    pub fn new(issuer: IssuerRef) -> Self {
        Self {
            issuer,
            ca_cert: None,
            common_name: None,
            dns_names: Vec::new(),
            usages: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// The usages of workloads' certificates.
    pub fn usages(&self) -> &[CertManagerUsage] {
        match self.usages.as_slice() {
            [] => &Self::DEFAULT_USAGES,
            usages => usages,
        }
    }
}

words! {
    /// A usage that a `CertificateRequest` may ask for (`KeyUsage` of cert-manager's API). Those of
    /// CAs, and those that no proxy needs, are not among them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum CertManagerUsage {
        /// `digitalSignature`.
        DigitalSignature = "digital signature",
        /// `keyEncipherment`, for RSA keys in TLS 1.2.
        KeyEncipherment = "key encipherment",
        /// `keyAgreement`.
        KeyAgreement = "key agreement",
        /// The extended usage of servers.
        ServerAuth = "server auth",
        /// The extended usage of clients.
        ClientAuth = "client auth",
    }
}

impl CertManagerUsage {
    /// The usage as cert-manager spells it.
    pub fn as_str(self) -> &'static str {
        self.word()
    }
}

mapping! {
    /// Names an issuer.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct IssuerRef {
        /// Its name.
        pub name: String = required("name", settings::non_empty),
        /// `Issuer`, `ClusterIssuer` or the kind of an external issuer; see [`kind`](Self::kind).
        pub kind: Option<String> = optional("kind", settings::non_empty),
        /// The API group of the kind; see [`group`](Self::group).
        pub group: Option<String> = optional("group", settings::non_empty),
    }
}

impl IssuerRef {
    /// The kind where the document does not say.
    pub const DEFAULT_KIND: &'static str = "Issuer";
    /// The group where the document does not say.
    pub const DEFAULT_GROUP: &'static str = "cert-manager.io";

    /// An `Issuer` of `cert-manager.io`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: None,
            group: None,
        }
    }

    /// The kind, or its default `Issuer`.
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or(Self::DEFAULT_KIND)
    }

    /// The group, or its default `cert-manager.io`.
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(Self::DEFAULT_GROUP)
    }
}

mapping! {
    /// Which issuer of cert-manager signs: by `issuerRef`, or by `issuerName` and its companions.
    struct SettingsFields as "CertManagerSettings" {
        issuer_ref: Option<IssuerRef> = optional("issuerRef", IssuerRef::read),
        issuer_name: Option<String> = optional("issuerName", settings::non_empty),
        issuer_kind: Option<String> = optional("issuerKind", settings::non_empty),
        issuer_group: Option<String> = optional("issuerGroup", settings::non_empty),
        ca_cert: Option<DataSource> = optional("caCert", settings::public),
        common_name: Option<NameTemplate> = optional("commonName", settings::name_template),
        dns_names: Vec<NameTemplate> = defaulted("dnsNames", Each(settings::name_template)),
        usages: Vec<CertManagerUsage> = defaulted("usages", Described(usages, || json!({ "minItems": 1 }))),
        annotations: BTreeMap<String, String> = defaulted("annotations", annotations),
    }
}

/// A proxy is server and client, so a list without both is suspicious; the issuer may add them.
fn usages(at: Cursor<'_>) -> Option<Vec<CertManagerUsage>> {
    let usages = at.list(CertManagerUsage::read)?;
    if usages.is_empty() {
        return at.error("must name a usage, or be left out");
    }
    for needed in [CertManagerUsage::ServerAuth, CertManagerUsage::ClientAuth] {
        if !usages.contains(&needed) {
            at.warn(format_args!(
                "without `{}`, most issuers sign what verification refuses: a proxy is server and client",
                needed.as_str()
            ));
        }
    }
    Some(usages)
}

/// Annotations of Kubernetes objects. Those of cert-manager itself are refused: one of them names a
/// Secret that an issuer reads.
fn annotations(at: Cursor<'_>) -> Option<BTreeMap<String, String>> {
    let annotations = values::string_map(at)?;
    for name in annotations.keys() {
        if let Some(why) = refused_annotation(name) {
            return at.error(format_args!("`{}`: {why}", name.escape_debug()));
        }
    }
    Some(annotations)
}

/// The rules of Kubernetes for the keys of annotations: a name, behind a DNS prefix or not.
fn refused_annotation(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let edge = |c: char| c.is_ascii_alphanumeric();
    let within = |c: char| edge(c) || matches!(c, '-' | '_' | '.');
    let sound = |text: &str, longest: usize| {
        text.len() <= longest
            && text.starts_with(edge)
            && text.ends_with(edge)
            && text.chars().all(within)
    };
    if !sound(name, 63) || !prefix.is_none_or(|prefix| sound(prefix, 253)) {
        return Some(
            "the key of an annotation is a name of up to 63 letters, digits, `-`, `_` and `.`, such as `example.com/policy`",
        );
    }
    matches!(
        prefix,
        Some("cert-manager.io" | "acme.cert-manager.io" | "experimental.cert-manager.io")
    )
    .then_some("annotations of cert-manager itself are not for resources to set")
}

impl SettingsFields {
    fn of(conf: &CertManagerConf, flat: bool) -> Self {
        let issuer = conf.issuer.clone();
        let (issuer_ref, issuer_name, issuer_kind, issuer_group) = match flat {
            true => (None, Some(issuer.name), issuer.kind, issuer.group),
            false => (Some(issuer), None, None, None),
        };
        Self {
            issuer_ref,
            issuer_name,
            issuer_kind,
            issuer_group,
            ca_cert: conf.ca_cert.clone(),
            common_name: conf.common_name.clone(),
            dns_names: conf.dns_names.clone(),
            usages: conf.usages.clone(),
            annotations: conf.annotations.clone(),
        }
    }
}

impl Serialize for CertManagerConf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        SettingsFields::of(self, false).serialize(serializer)
    }
}

impl Settings for CertManagerConf {
    const TYPE: &'static str = "certmanager";
    const SPELLING: Spelling = Spelling {
        alias: Some("cert-manager"),
        block: Some("certManager"),
        flat_issuer: true,
        ..Spelling::ONE
    };

    fn read(f: &mut Fields<'_>) -> Option<Self> {
        let one = f.exactly_one(&["issuerRef", "issuerName"]);
        let fields = SettingsFields::read_fields(f)?;
        if !f.has("issuerName") {
            for (field, inside) in [("issuerKind", "kind"), ("issuerGroup", "group")] {
                let message = format_args!("goes with `issuerName`: write `issuerRef.{inside}`");
                f.refuse::<()>(field, message);
            }
        }
        let (kind, group) = (fields.issuer_kind, fields.issuer_group);
        let flat = fields
            .issuer_name
            .map(|name| IssuerRef { name, kind, group });
        one?;
        Some(Self {
            issuer: fields.issuer_ref.or(flat)?,
            ca_cert: fields.ca_cert,
            common_name: fields.common_name,
            dns_names: fields.dns_names,
            usages: fields.usages,
            annotations: fields.annotations,
        })
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<SettingsFields>()
    }

    /// cert-manager's issuers may ignore the lifetime that they are asked for. It is asked for one if the operator set it,
    /// and in the modern model, where there is no setting.
    fn lifetime_policy(&self, model: Model, expiration: Option<Duration>) -> LifetimePolicy {
        match (model, expiration) {
            (Model::Modern, _) => LifetimePolicy::AcceptIssuer,
            (Model::Classic, None) => LifetimePolicy::LeftToIssuer,
            (Model::Classic, Some(_)) => LifetimePolicy::AtMostRequested,
        }
    }

    fn common_name(&self) -> Option<&NameTemplate> {
        self.common_name.as_ref()
    }

    fn dns_names(&self) -> &[NameTemplate] {
        &self.dns_names
    }

    fn in_dialect(&self, dialect: Dialect) -> impl Serialize {
        SettingsFields::of(self, dialect.flat_issuer)
    }
}
