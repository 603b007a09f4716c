//! The type of a CA and its settings, read by the reader of the type.

use std::borrow::Cow;
use std::sync::Arc;

use serde::ser::{Error as _, SerializeMap};

use super::any_settings::{AnySettings, Conf, Dialect, Model, Spelling};
use super::decode::{Clip, Context, Cursor, Fields, SettingsType};
use super::free_form::FreeForm;
use super::node::{Node, Value};
use super::path::Path;
use super::settings::{self, Settings};
use super::values;
use super::violation::{Location, Report};

mod acm;
mod builtin;
mod cert_manager;
mod vault;

pub use acm::{AcmConf, AwsCredentials};
pub use builtin::{BuiltinConf, ProvidedConf};
pub use cert_manager::{CertManagerConf, CertManagerUsage, IssuerRef};
pub use vault::{
    AlsoTrust, AppRoleAuth, AwsAuth, AwsAuthType, JwtAuth, KubernetesAuth, TlsAuth, VaultAuth,
    VaultConf, VaultTls,
};

/// The name under which the control plane knows an address or a role. An address itself is a
/// mistake.
fn option_name(at: Cursor<'_>) -> Option<String> {
    let name = settings::non_empty(at)?;
    match name.contains("://") || name.starts_with("arn:") {
        true => at.error(
            "is the name of an address or role in the options of the control plane, and not the address or role itself",
        ),
        false => Some(name),
    }
}

/// The types that are known without a client. The last is looked up first.
pub(crate) const OURS: &[SettingsType] = &[
    SettingsType::of::<CertManagerConf>(),
    SettingsType::of::<AcmConf>(),
    SettingsType::of::<VaultConf>(),
    SettingsType::of::<ProvidedConf>(),
    SettingsType::of::<BuiltinConf>(),
];

/// The type of a CA and its settings.
///
/// The same settings serve a backend of the classic model (`type` and `conf`) and an extension of the modern one (`name`
/// and `config`). Where a resource names a type whose [reader](super::settings) is not known, the settings are kept as a
/// [`FreeForm`], and [`BackendRegistry::resolve`](crate::BackendRegistry::resolve) reads them later.
///
/// ```
/// use meshca_core::resource::{BuiltinConf, Provider, VaultConf};
///
/// let provider = Provider::new(BuiltinConf::default());
/// assert_eq!(provider.type_name(), "builtin");
/// assert!(provider.settings::<BuiltinConf>().is_some());
/// assert!(provider.settings::<VaultConf>().is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Provider {
    type_name: Cow<'static, str>,
    spelling: Spelling,
    conf: Conf,
}

impl PartialEq for Provider {
    fn eq(&self, other: &Self) -> bool {
        self.type_name == other.type_name && self.conf == other.conf
    }
}

impl Provider {
    /// A type with these settings.
    pub fn new<T: Settings>(settings: T) -> Self {
        Self {
            type_name: Cow::Borrowed(T::TYPE),
            spelling: T::SPELLING,
            conf: Conf::Typed(Arc::new(settings)),
        }
    }

    /// A type whose reader is not known here, and its settings as a document has them.
    pub fn free_form(type_name: impl Into<String>, settings: FreeForm) -> Self {
        Self {
            type_name: Cow::Owned(type_name.into()),
            spelling: Spelling::ONE,
            conf: Conf::Free(settings),
        }
    }

    fn read(kind: Option<&SettingsType>, type_name: &str, conf: Conf) -> Self {
        Self {
            type_name: match kind {
                Some(kind) => Cow::Borrowed(kind.name),
                None => Cow::Owned(type_name.to_owned()),
            },
            spelling: kind.map_or(Spelling::ONE, |kind| kind.spelling),
            conf,
        }
    }

    /// Reads settings that are still free-form with the reader of their type, if that is among these.
    pub(crate) fn resolved(&self, types: &[SettingsType], model: Model) -> Result<Self, Report> {
        let field = match model {
            Model::Classic => "conf",
            Model::Modern => "config",
        };
        let context = Context::new(Report::default(), None, types);
        match (&self.conf, find(&context, &self.type_name, model)) {
            (Conf::Free(conf), Some(kind)) => {
                let node = conf.to_node().map_err(|error| {
                    let mut report = Report::default();
                    report.fail(Location::NONE, error.to_string());
                    report
                })?;
                let conf = read_alone(kind, &node, field)?;
                Ok(Self::read(Some(kind), &self.type_name, conf))
            }
            _ => Ok(self.clone()),
        }
    }

    /// The name of the type, the same for both dialects: `builtin`, `provided`, `vault`, `certmanager`, `acmpca`, or the
    /// name of a third party's.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// The settings, if they are of this type. Those of a type whose reader is not known are a [`FreeForm`].
    pub fn settings<T: 'static>(&self) -> Option<&T> {
        self.conf.get()
    }

    pub(crate) fn typed(&self) -> Option<&dyn AnySettings> {
        self.conf.typed()
    }

    /// The type's name as the dialect spells it.
    pub(crate) fn type_name_in(&self, dialect: Dialect) -> &str {
        match self.spelling.alias {
            Some(alias) if dialect.short_type => alias,
            _ => &self.type_name,
        }
    }

    /// The settings as the dialect spells them.
    pub(crate) fn written(&self, dialect: Dialect) -> serde_json::Result<Node<'static>> {
        match &self.conf {
            Conf::Typed(settings) => settings.written(dialect),
            Conf::Free(fields) => fields.to_node(),
        }
    }

    /// Writes the field of a backend that holds its settings, if there are any.
    pub(crate) fn write_in_backend<M: SerializeMap>(
        &self,
        dialect: Dialect,
        map: &mut M,
    ) -> Result<(), M::Error> {
        let content = self.written(dialect).map_err(M::Error::custom)?;
        let block = self.spelling.block.filter(|_| dialect.block);
        match &content.value {
            Value::Map(fields) if fields.is_empty() => Ok(()),
            _ => map.serialize_entry(block.unwrap_or("conf"), &content),
        }
    }
}

fn find<'o>(context: &Context<'o>, name: &str, model: Model) -> Option<&'o SettingsType> {
    let named = |it: &&SettingsType| it.name == name || it.spelling.alias == Some(name);
    context.types(model).find(named)
}

/// Reads a type's name; a near miss of a known one is worth a warning, since it would be looked up
/// among the registered factories.
fn type_name(at: Cursor<'_>, model: Model) -> Option<String> {
    let name = values::non_empty(at)?;
    let known: Vec<_> = at
        .context
        .types(model)
        .flat_map(|it| [Some(it.name), it.spelling.alias])
        .flatten()
        .collect();
    if !known.contains(&name.as_str())
        && let Some(meant) = at.context.nearest(&name, &known)
    {
        at.warn(format_args!(
            "`{}` is not a type that is known here, did you mean `{meant}`? Otherwise it must be registered",
            Clip(&name)
        ));
    }
    Some(name)
}

pub(crate) fn backend_type(at: Cursor<'_>) -> Option<String> {
    type_name(at, Model::Classic)
}

pub(crate) fn extension_name(at: Cursor<'_>) -> Option<String> {
    type_name(at, Model::Modern)
}

/// Why backends of this type must set `dpCert.rotation.expiration`, if they must.
pub(crate) fn needs_expiration(context: &Context<'_>, type_name: &str) -> Option<&'static str> {
    find(context, type_name, Model::Classic)?.needs_expiration
}

/// The fields of a backend that hold settings of some type.
pub(crate) fn blocks(context: &Context<'_>) -> Vec<&'static str> {
    let blocks = context.types(Model::Classic);
    let blocks = blocks.filter_map(|it| it.spelling.block);
    std::iter::once("conf").chain(blocks).collect()
}

/// Reads the settings, which are all that is left of these fields.
fn settings(kind: Option<&SettingsType>, f: &mut Fields<'_>) -> Option<Conf> {
    let Some(kind) = kind else {
        return Some(Conf::Free(f.remaining()));
    };
    let conf = (kind.read)(f);
    f.finish();
    if conf.is_none() && !f.cursor.context.has_errors() && !f.cursor.context.is_lenient() {
        // Without an error the resource would be left out and nothing reported.
        return f
            .cursor
            .error("these settings are refused, and their reader does not say why");
    }
    conf
}

/// Reads settings outside of their document. The report names the field that holds them.
fn read_alone(kind: &SettingsType, node: &Node<'_>, field: &str) -> Result<Conf, Report> {
    let context = Context::new(Report::default(), None, &[]);
    let path = Path::Root.field(field);
    let conf = Cursor::new(node, &path, &context)
        .fields()
        .and_then(|mut f| settings(Some(kind), &mut f));
    let report = context.into_report();
    conf.filter(|_| !report.has_errors()).ok_or(report)
}

/// Reads the settings of a document that has none. Returns `None` if the type needs some.
pub(crate) fn without_settings(kind: Option<&SettingsType>) -> Option<Conf> {
    let Some(kind) = kind else {
        return Some(Conf::Free(FreeForm::default()));
    };
    read_alone(kind, &Node::unlocated(Value::Map(Vec::new())), "").ok()
}

/// Reads the settings of a classic backend from its `conf` or from the block that is named after the type.
pub(crate) fn backend_settings(f: &mut Fields<'_>, type_name: &str) -> Option<(Provider, Dialect)> {
    let kind = find(f.cursor.context, type_name, Model::Classic);
    let spelling = kind.map_or(Spelling::ONE, |kind| kind.spelling);
    let mut place = "conf";
    if let Some(block) = spelling.block {
        match (f.has(block), f.has("conf")) {
            (true, true) => {
                f.know(&[block]);
                return f.refuse(
                    "conf",
                    format_args!("the settings are in `{block}` already: keep one of them"),
                );
            }
            (true, false) => {
                place = block;
                f.know(&["conf"]);
            }
            (false, _) => f.know(&[block]),
        }
    }
    let mut dialect = Dialect {
        short_type: spelling.alias == Some(type_name),
        block: place != "conf",
        flat_issuer: false,
    };
    if !f.has(place)
        && let Some(conf) = without_settings(kind)
    {
        f.know(&[place]);
        return Some((Provider::read(kind, type_name, conf), dialect));
    }
    let conf = f.required(place, |at| {
        let mut f = at.fields()?;
        dialect.flat_issuer = spelling.flat_issuer && f.has("issuerName");
        settings(kind, &mut f)
    });
    // Checks that are skipped leave settings that only their factory can judge.
    let lenient = f.cursor.context.is_lenient();
    let conf = conf.or_else(|| {
        dialect.flat_issuer = false;
        lenient.then(|| Conf::Free(f.opt(place, values::free_form).unwrap_or_default()))
    })?;
    Some((Provider::read(kind, type_name, conf), dialect))
}

/// Reads the settings of an extension from what is left in its `config`.
pub(crate) fn extension_settings(f: &mut Fields<'_>, name: &str) -> Option<(Provider, Dialect)> {
    let kind = find(f.cursor.context, name, Model::Modern);
    let spelling = kind.map_or(Spelling::ONE, |kind| kind.spelling);
    let dialect = Dialect {
        short_type: spelling.alias == Some(name),
        block: false,
        flat_issuer: spelling.flat_issuer && f.has("issuerName"),
    };
    let conf = settings(kind, f)?;
    Some((Provider::read(kind, name, conf), dialect))
}

/// The settings of an extension that has no `config`.
pub(crate) fn extension_without_settings(f: &Fields<'_>, name: &str) -> Option<Provider> {
    let kind = find(f.cursor.context, name, Model::Modern);
    match without_settings(kind) {
        Some(conf) => Some(Provider::read(kind, name, conf)),
        None => f.missing(
            "config",
            format_args!("must be set: `{}` has settings", Clip(name)),
        ),
    }
}
