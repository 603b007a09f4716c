//! Where a certificate, a key or a token comes from.

use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::decode::{self, Cursor};
use crate::SecretValue;

/// A data source of the classic model (`Mesh.mtls`): exactly one of `secret`, `file`, `inline`
/// and `inlineString`.
///
/// It says where the bytes are; reading them is another step. Inline bytes are wiped on drop and not
/// printed by `Debug`, but they are written out again with the resource.
///
/// It can be a field of a third party's own settings: [`settings`](super::settings#how-a-reader-works) has an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum DataSource {
    /// `secret`: the name of a secret of the mesh.
    Secret(String),
    /// `file`: a path on the control plane's host.
    File(PathBuf),
    /// `inline`: the bytes themselves, base64 in the document and decoded here.
    #[serde(serialize_with = "write_base64")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    Inline(SecretValue),
    /// `inlineString`: the text itself.
    #[serde(serialize_with = "write_text")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    InlineString(SecretValue),
}

/// A data source of the modern model (`MeshIdentity`): `type` and the setting that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "SecureWire")]
#[non_exhaustive]
pub enum SecureDataSource {
    /// `type: File`: an absolute path without `..` on the control plane's host.
    File(PathBuf),
    /// `type: Secret`: the name of a secret of the mesh.
    Secret(String),
    /// `type: EnvVar`: the name of an environment variable of the control plane.
    EnvVar(String),
    /// `type: InsecureInline`: the text itself.
    InsecureInline(SecretValue),
}

#[derive(Clone, Copy)]
enum SecureType {
    File,
    Secret,
    EnvVar,
    InsecureInline,
}

/// How a [`SecureDataSource`] is written.
#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(
        description = "Where a certificate or key comes from: `type` and the setting that belongs to it"
    )
)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
enum SecureWire {
    File { file: FilePath },
    Secret { secret_ref: SecretRef },
    EnvVar { env_var: EnvVar },
    InsecureInline { insecure_inline: InsecureInline },
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct FilePath {
    #[cfg_attr(feature = "schema", schemars(extend("pattern" = "^/")))]
    path: PathBuf,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct SecretRef {
    kind: SecretKind,
    name: String,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
enum SecretKind {
    Secret,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct EnvVar {
    name: String,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct InsecureInline {
    #[serde(serialize_with = "write_text")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    value: SecretValue,
}

impl From<SecureDataSource> for SecureWire {
    fn from(source: SecureDataSource) -> Self {
        match source {
            SecureDataSource::File(path) => Self::File {
                file: FilePath { path },
            },
            SecureDataSource::Secret(name) => Self::Secret {
                secret_ref: SecretRef {
                    kind: SecretKind::Secret,
                    name,
                },
            },
            SecureDataSource::EnvVar(name) => Self::EnvVar {
                env_var: EnvVar { name },
            },
            SecureDataSource::InsecureInline(value) => Self::InsecureInline {
                insecure_inline: InsecureInline { value },
            },
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for SecureDataSource {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecureDataSource".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        SecureWire::json_schema(generator)
    }
}

const IN_PLAIN_SIGHT: &str = "secret material in plain sight: everyone who may read this resource has it; \
                              keep it in a secret of the mesh and name that here";

/// Reads a source of something public, such as a CA certificate.
pub fn public(at: Cursor<'_>) -> Option<DataSource> {
    classic(at, false)
}

/// Reads a source of a key, a token or a password. One that is inline is worth a warning.
pub fn secret(at: Cursor<'_>) -> Option<DataSource> {
    classic(at, true)
}

fn classic(at: Cursor<'_>, secret: bool) -> Option<DataSource> {
    let inline = |at: Cursor<'_>| {
        if secret {
            at.warn(IN_PLAIN_SIGHT);
        }
    };
    let mut f = at.fields()?;
    let one = f.exactly_one(&["secret", "file", "inline", "inlineString"]);
    let sources = [
        f.opt("secret", decode::non_empty).map(DataSource::Secret),
        f.opt("file", decode::non_empty)
            .map(|path| DataSource::File(path.into())),
        f.opt("inline", |at| {
            inline(at);
            base64(at).map(DataSource::Inline)
        }),
        f.opt("inlineString", |at| {
            inline(at);
            decode::non_empty(at)
                .map(|text| DataSource::InlineString(SecretValue::new(text.into_bytes())))
        }),
    ];
    f.finish();
    one.and(sources.into_iter().flatten().next())
}

/// A secure source of something public.
pub(crate) fn secure_public(at: Cursor<'_>) -> Option<SecureDataSource> {
    secure(at, false)
}

/// A secure source of a private key: inline is worth a warning.
pub(crate) fn secure_secret(at: Cursor<'_>) -> Option<SecureDataSource> {
    secure(at, true)
}

fn secure(at: Cursor<'_>, secret: bool) -> Option<SecureDataSource> {
    let mut f = at.fields()?;
    let kind = f.required("type", |at| {
        at.choice(&[
            ("File", SecureType::File),
            ("Secret", SecureType::Secret),
            ("EnvVar", SecureType::EnvVar),
            ("InsecureInline", SecureType::InsecureInline),
        ])
    });
    let settings = ["file", "secretRef", "envVar", "insecureInline"];
    let Some(kind) = kind else {
        f.know(&settings);
        f.finish();
        return None;
    };
    let own = match kind {
        SecureType::File => "file",
        SecureType::Secret => "secretRef",
        SecureType::EnvVar => "envVar",
        SecureType::InsecureInline => "insecureInline",
    };
    for other in settings.into_iter().filter(|setting| *setting != own) {
        if f.has(other) {
            f.refuse::<()>(
                other,
                format_args!("does not go with this `type`, which takes `{own}`: keep one of them"),
            );
        }
    }
    let source = f.required(own, |at| {
        let mut f = at.fields()?;
        let source = match kind {
            SecureType::File => f
                .required("path", absolute_path)
                .map(SecureDataSource::File),
            SecureType::Secret => {
                let kind = f.required("kind", |at| at.choice(&[("Secret", ())]));
                let name = f.required("name", decode::non_empty);
                kind.and(name).map(SecureDataSource::Secret)
            }
            SecureType::EnvVar => f.required("name", variable).map(SecureDataSource::EnvVar),
            SecureType::InsecureInline => f.required("value", |at| {
                if secret {
                    at.warn(IN_PLAIN_SIGHT);
                }
                decode::non_empty(at).map(|text| {
                    SecureDataSource::InsecureInline(SecretValue::new(text.into_bytes()))
                })
            }),
        };
        f.finish();
        source
    });
    f.finish();
    source
}

fn absolute_path(at: Cursor<'_>) -> Option<PathBuf> {
    let text = at.text()?;
    let path = Path::new(text);
    if !text.starts_with('/')
        || path
            .components()
            .any(|component| component == Component::ParentDir)
    {
        return at.error("must be an absolute path without `..`");
    }
    Some(path.to_owned())
}

fn variable(at: Cursor<'_>) -> Option<String> {
    let name = decode::non_empty(at)?;
    if name.contains(['=', '\0']) {
        return at.error("is not the name of an environment variable: it contains `=`");
    }
    Some(name)
}

/// Base64 with padding; line breaks and blanks inside are accepted, as block scalars have them.
pub(crate) fn base64(at: Cursor<'_>) -> Option<SecretValue> {
    let text = at.text()?;
    let compact = Zeroizing::new(
        text.chars()
            .filter(|character| !character.is_ascii_whitespace())
            .collect::<String>(),
    );
    match STANDARD.decode(compact.as_bytes()) {
        Ok(bytes) if bytes.is_empty() => at.error("must not be empty"),
        Ok(bytes) => Some(SecretValue::new(bytes)),
        Err(_) => at.error("is not base64 (RFC 4648, section 4, with padding)"),
    }
}

pub(crate) fn write_base64<S: Serializer>(
    value: &SecretValue,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(value.expose()))
}

fn write_text<S: Serializer>(value: &SecretValue, serializer: S) -> Result<S::Ok, S::Error> {
    match value.expose_str() {
        Some(text) => serializer.serialize_str(text),
        None => Err(S::Error::custom("an inline value that is not text")),
    }
}
