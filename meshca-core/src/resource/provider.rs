//! The settings of the CAs: typed for those that are known, free-form for the others.

use std::time::Duration;

use serde::Serialize;

use super::datasource::{self, DataSource};
use super::decode::{self, Clip, Cursor, Fields};
use super::duration;
use super::field::{Codec as _, optional};
use super::free_form::FreeForm;

mod acm;
mod cert_manager;
mod vault;

#[cfg(feature = "schema")]
pub(crate) use cert_manager::Wire as CertManagerWire;

pub use acm::{AcmConf, AwsCredentials};
pub use cert_manager::{CertManagerConf, IssuerRef};
pub use vault::{
    AppRoleAuth, AwsAuth, AwsAuthType, KubernetesAuth, TlsAuth, VaultAuth, VaultConf, VaultTls,
};

/// The type of a CA and its settings.
///
/// The same settings serve a backend of the classic model (`type` and `conf`) and an extension of the
/// modern one (`name` and `config`).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Provider {
    /// `builtin`: a CA in the control plane, which makes its own root.
    Builtin(BuiltinConf),
    /// `provided`: a CA in the control plane, with a certificate and key from elsewhere.
    Provided(ProvidedConf),
    /// `vault`: HashiCorp Vault or OpenBao.
    Vault(VaultConf),
    /// `certmanager` or `cert-manager`: cert-manager on Kubernetes.
    CertManager(CertManagerConf),
    /// `acmpca` or `acm`: AWS Private CA.
    Acm(AcmConf),
    /// Any other type: it belongs to whoever registered a factory for it.
    Other(OtherConf),
}

impl Provider {
    /// The name of the type, the same for both dialects: `builtin`, `provided`, `vault`,
    /// `certmanager`, `acmpca`, or what a third party calls its own.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Builtin(_) => "builtin",
            Self::Provided(_) => "provided",
            Self::Vault(_) => "vault",
            Self::CertManager(_) => "certmanager",
            Self::Acm(_) => "acmpca",
            Self::Other(other) => &other.type_name,
        }
    }
}

/// Settings of the built-in CA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuiltinConf {
    /// `caCert.RSAbits`: the size of the root's RSA key, 2048, 3072 or 4096. Absent: the CA chooses.
    pub rsa_bits: Option<u32>,
    /// `caCert.expiration`: the lifetime of the root. Absent: 10 years.
    pub expiration: Option<Duration>,
}

/// Settings of a CA whose certificate and key are provided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "ProvidedSettings")
)]
#[non_exhaustive]
pub struct ProvidedConf {
    /// The CA's certificate, with the intermediates that lead to its root if it is not one itself.
    pub cert: DataSource,
    /// The CA's private key.
    pub key: DataSource,
}

impl ProvidedConf {
    /// Both are needed.
    pub fn new(cert: DataSource, key: DataSource) -> Self {
        Self { cert, key }
    }
}

/// The settings of a type that is not known here.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OtherConf {
    /// What the document calls the type.
    pub type_name: String,
    /// Its settings, as they were read.
    pub conf: FreeForm,
}

impl OtherConf {
    /// A third party's type and its settings.
    pub fn new(type_name: impl Into<String>, conf: FreeForm) -> Self {
        Self {
            type_name: type_name.into(),
            conf,
        }
    }
}

/// Which of the field's spellings a document uses, so that it is written the way it was read.
///
/// The default is the product's: `acmpca`, `certmanager`, settings in `conf`, `issuerRef`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// `acm` and `cert-manager` instead of `acmpca` and `certmanager`.
    short_type: bool,
    /// Settings in `acm` and `certManager` instead of `conf`.
    block: bool,
    /// `issuerName`, `issuerKind` and `issuerGroup` instead of `issuerRef`.
    flat_issuer: bool,
}

impl Dialect {
    /// `acm` and `cert-manager`, settings in a block of that name, `issuerName`.
    pub const NAMED_BLOCKS: Self = Self {
        short_type: true,
        block: true,
        flat_issuer: true,
    };

    /// Only what makes a difference to a provider, so that equal documents are equal in memory.
    fn normalised(self, type_name: &str) -> Self {
        let two_spellings = matches!(type_name, "acm" | "acmpca" | "certmanager" | "cert-manager");
        let issuer = matches!(type_name, "certmanager" | "cert-manager");
        Self {
            short_type: self.short_type && two_spellings,
            block: self.block && two_spellings,
            flat_issuer: self.flat_issuer && issuer,
        }
    }

    /// The type's name as the dialect spells it.
    pub(crate) fn type_name(self, provider: &Provider) -> &str {
        match (provider, self.short_type) {
            (Provider::Acm(_), true) => "acm",
            (Provider::CertManager(_), true) => "cert-manager",
            _ => provider.type_name(),
        }
    }
}

/// The types whose settings are known in the modern model, in both spellings.
pub(crate) const EXTENSIONS: [&str; 5] = ["vault", "acmpca", "acm", "certmanager", "cert-manager"];
pub(crate) const BACKENDS: [&str; 7] = [
    "builtin",
    "provided",
    "vault",
    "acmpca",
    "acm",
    "certmanager",
    "cert-manager",
];

/// Whether the settings of this extension are known here, and therefore needed.
pub(crate) fn is_extension(name: &str) -> bool {
    EXTENSIONS.contains(&name)
}

/// Reads a type's name; a near miss of a known one is worth a warning, since it would be looked up
/// among the registered factories.
fn type_name(at: Cursor<'_>, known: &[&'static str]) -> Option<String> {
    let name = decode::non_empty(at)?;
    if !known.contains(&name.as_str())
        && let Some(meant) = at.context.nearest(&name, known)
    {
        at.warn(format_args!(
            "`{}` is not a type that is known here, did you mean `{meant}`? Otherwise it must be registered",
            Clip(&name)
        ));
    }
    Some(name)
}

pub(crate) fn backend_type(at: Cursor<'_>) -> Option<String> {
    type_name(at, &BACKENDS)
}

pub(crate) fn extension_name(at: Cursor<'_>) -> Option<String> {
    type_name(at, &EXTENSIONS)
}

/// Reads the settings of a classic backend from its `conf` or from the block that is named after the type.
pub(crate) fn backend_settings(f: &mut Fields<'_>, type_name: &str) -> Option<(Provider, Dialect)> {
    let block = match type_name {
        "acm" | "acmpca" => Some("acm"),
        "certmanager" | "cert-manager" => Some("certManager"),
        _ => None,
    };
    let mut dialect = Dialect::default();
    let mut source = "conf";
    if let Some(block) = block {
        match (f.has(block), f.has("conf")) {
            (true, true) => {
                f.know(&[block]);
                return f.refuse(
                    "conf",
                    format_args!("the settings are in `{block}` already: keep one of them"),
                );
            }
            (true, false) => {
                dialect.block = true;
                source = block;
                f.know(&["conf"]);
            }
            (false, _) => {
                f.know(&[block]);
            }
        }
    }
    if !matches!(
        type_name,
        "provided" | "vault" | "acm" | "acmpca" | "certmanager" | "cert-manager"
    ) && !f.has("conf")
    {
        f.know(&["conf"]);
        let provider = match type_name {
            "builtin" => Provider::Builtin(BuiltinConf::default()),
            _ => Provider::Other(OtherConf::new(type_name, FreeForm::default())),
        };
        return Some((provider, dialect));
    }
    f.required(source, |at| {
        let mut f = at.fields()?;
        let (provider, flat_issuer) = settings(&mut f, type_name, &BACKENDS)?;
        dialect.flat_issuer = flat_issuer;
        dialect.short_type = matches!(type_name, "acm" | "cert-manager");
        Some((provider, dialect.normalised(type_name)))
    })
    .or_else(|| {
        // Checks that are skipped leave settings that only their factory can judge.
        let lenient = f.cursor.context.is_lenient();
        let conf = lenient.then(|| f.opt(source, decode::free_form).unwrap_or_default())?;
        let dialect = Dialect {
            block: dialect.block,
            ..Dialect::default()
        };
        Some((Provider::Other(OtherConf::new(type_name, conf)), dialect))
    })
}

/// Reads the settings of an extension from what is left in its `config`.
pub(crate) fn extension_settings(f: &mut Fields<'_>, name: &str) -> Option<(Provider, Dialect)> {
    let (provider, flat_issuer) = settings(f, name, &EXTENSIONS)?;
    let short_type = matches!(name, "acm" | "cert-manager");
    Some((
        provider,
        Dialect {
            short_type,
            block: false,
            flat_issuer,
        }
        .normalised(name),
    ))
}

/// The settings, and whether the issuer is spelt without `issuerRef`.
fn settings(f: &mut Fields<'_>, type_name: &str, known: &[&str]) -> Option<(Provider, bool)> {
    let type_name = if known.contains(&type_name) {
        type_name
    } else {
        return Some((other(f, type_name), false));
    };
    let mut flat_issuer = false;
    let provider = match type_name {
        "builtin" => builtin(f).map(Provider::Builtin),
        "provided" => provided(f).map(Provider::Provided),
        "vault" => vault::read(f).map(Provider::Vault),
        "acm" | "acmpca" => acm::read(f).map(Provider::Acm),
        _ => cert_manager::read(f).map(|(conf, flat)| {
            flat_issuer = flat;
            Provider::CertManager(conf)
        }),
    };
    f.finish();
    Some((provider?, flat_issuer))
}

fn other(f: &Fields<'_>, type_name: &str) -> Provider {
    Provider::Other(OtherConf::new(type_name, f.remaining()))
}

fn builtin(f: &mut Fields<'_>) -> Option<BuiltinConf> {
    let ca_cert = f.opt("caCert", |at| {
        let mut f = at.fields()?;
        let rsa_bits = f.opt("RSAbits", |at| match decode::integer(at)? {
            bits @ (2048 | 3072 | 4096) => Some(bits),
            _ => at.error("must be 2048, 3072 or 4096"),
        });
        let expiration = optional("expiration", duration::mesh_lifetime()).content(&mut f);
        f.finish();
        Some(BuiltinConf {
            rsa_bits,
            expiration,
        })
    });
    Some(ca_cert.unwrap_or_default())
}

fn provided(f: &mut Fields<'_>) -> Option<ProvidedConf> {
    let cert = f.required("cert", datasource::public);
    let key = f.required("key", datasource::secret);
    Some(ProvidedConf {
        cert: cert?,
        key: key?,
    })
}

/// How settings are written.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum SettingsWire<'w> {
    Builtin(BuiltinWire),
    Provided(&'w ProvidedConf),
    Vault(VaultWire<'w>),
    CertManager(cert_manager::Wire<'w>),
    Acm(&'w AcmConf),
    Other(&'w FreeForm),
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "BuiltinSettings")
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BuiltinWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_cert: Option<CaCertWire>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "BuiltinCaCert")
)]
struct CaCertWire {
    #[serde(rename = "RSAbits", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("enum" = [2048, 3072, 4096, null])))]
    rsa_bits: Option<u32>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_lifetime"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<duration::MeshDuration>"))]
    expiration: Option<Duration>,
}

fn write_lifetime<S: serde::Serializer>(
    lifetime: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration::mesh_lifetime().write(&lifetime.unwrap_or_default(), serializer)
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "VaultSettings")
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VaultWire<'w> {
    from_cp: &'w VaultConf,
}

/// The fields of a backend that hold its settings: exactly one is set, if there are any.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendSettingsWire<'w> {
    #[serde(skip_serializing_if = "Option::is_none")]
    conf: Option<SettingsWire<'w>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acm: Option<SettingsWire<'w>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert_manager: Option<SettingsWire<'w>>,
}

impl Provider {
    pub(crate) fn settings(&self, dialect: Dialect) -> SettingsWire<'_> {
        match self {
            Self::Builtin(BuiltinConf {
                rsa_bits,
                expiration,
            }) => SettingsWire::Builtin(BuiltinWire {
                ca_cert: (rsa_bits.is_some() || expiration.is_some()).then_some(CaCertWire {
                    rsa_bits: *rsa_bits,
                    expiration: *expiration,
                }),
            }),
            Self::Provided(conf) => SettingsWire::Provided(conf),
            Self::Vault(conf) => SettingsWire::Vault(VaultWire { from_cp: conf }),
            Self::CertManager(conf) => SettingsWire::CertManager(conf.wire(dialect.flat_issuer)),
            Self::Acm(conf) => SettingsWire::Acm(conf),
            Self::Other(other) => SettingsWire::Other(&other.conf),
        }
    }

    pub(crate) fn backend_settings(&self, dialect: Dialect) -> BackendSettingsWire<'_> {
        let settings = Some(self.settings(dialect));
        let mut wire = BackendSettingsWire::default();
        match (self, self.type_name()) {
            (Self::Builtin(conf), _) if *conf == BuiltinConf::default() => {}
            (Self::Other(other), _) if other.conf.is_empty() => {}
            (_, "acm" | "acmpca") if dialect.block => wire.acm = settings,
            (_, "certmanager" | "cert-manager") if dialect.block => wire.cert_manager = settings,
            _ => wire.conf = settings,
        }
        wire
    }
}
