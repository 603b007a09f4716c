//! Settings of cert-manager.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::super::datasource::DataSource;
#[cfg(feature = "schema")]
use super::super::free_form::FreeForm;
use super::super::settings::{self, Cursor, Dialect, Fields, Model, Settings, Spelling};
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
}

impl CertManagerConf {
    /// Only what is needed.
    pub fn new(issuer: IssuerRef) -> Self {
        Self {
            issuer,
            ca_cert: None,
            common_name: None,
            dns_names: Vec::new(),
        }
    }

    fn wire(&self, flat: bool) -> Wire<'_> {
        let Self {
            issuer,
            ca_cert,
            common_name,
            dns_names,
        } = self;
        let mut wire = Wire {
            issuer_ref: None,
            issuer_name: None,
            issuer_kind: None,
            issuer_group: None,
            ca_cert: ca_cert.as_ref(),
            common_name: common_name.as_ref(),
            dns_names,
        };
        if flat {
            wire.issuer_name = Some(&issuer.name);
            wire.issuer_kind = issuer.kind.as_deref();
            wire.issuer_group = issuer.group.as_deref();
        } else {
            wire.issuer_ref = Some(issuer);
        }
        wire
    }
}

/// Names an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct IssuerRef {
    /// Its name.
    pub name: String,
    /// `Issuer`, `ClusterIssuer` or the kind of an external issuer; see [`kind`](Self::kind).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The API group of the kind; see [`group`](Self::group).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
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

/// How the settings are written: with `issuerRef` or with `issuerName`.
#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(
        rename = "CertManagerSettings",
        description = "Which issuer of cert-manager signs: by `issuerRef`, or by `issuerName` and its companions"
    )
)]
#[serde(rename_all = "camelCase")]
struct Wire<'w> {
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer_ref: Option<&'w IssuerRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer_name: Option<&'w str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer_kind: Option<&'w str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer_group: Option<&'w str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_cert: Option<&'w DataSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    common_name: Option<&'w NameTemplate>,
    #[serde(skip_serializing_if = "<[NameTemplate]>::is_empty")]
    dns_names: &'w [NameTemplate],
}

impl Serialize for CertManagerConf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.wire(false).serialize(serializer)
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
        let flat = f.has("issuerName");
        let mut issuer = f.opt("issuerRef", issuer_ref);
        if flat {
            let name = f.opt("issuerName", settings::non_empty);
            let kind = f.opt("issuerKind", settings::non_empty);
            let group = f.opt("issuerGroup", settings::non_empty);
            issuer = name.map(|name| IssuerRef { name, kind, group });
        }
        let ca_cert = f.opt("caCert", settings::public);
        let common_name = f.opt("commonName", settings::name_template);
        let dns_names = f.list("dnsNames", settings::name_template);
        one?;
        Some(Self {
            issuer: issuer?,
            ca_cert,
            common_name,
            dns_names,
        })
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<Wire<'static>>()
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
        self.wire(dialect.flat_issuer)
    }
}

fn issuer_ref(at: Cursor<'_>) -> Option<IssuerRef> {
    at.mapping(|f| {
        let name = f.required("name", settings::non_empty);
        let kind = f.opt("kind", settings::non_empty);
        let group = f.opt("group", settings::non_empty);
        Some(IssuerRef {
            name: name?,
            kind,
            group,
        })
    })
}
