//! Where a certificate, a key or a token comes from.

use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serializer;
use serde::ser::Error as _;
use serde_json::json;
use zeroize::Zeroizing;

use super::declare::{Mapping as _, mapping, one_of, tagged};
use super::decode::Cursor;
use super::field::{Choice, Codec, Described, Group, required, spelt};
use super::values;
use crate::SecretValue;

one_of! {
    /// A data source of the classic model (`Mesh.mtls`): exactly one of `secret`, `file`, `inline`
    /// and `inlineString`.
    ///
    /// It says where the bytes are; reading them is another step. Inline bytes are wiped on drop and not
    /// printed by `Debug`, but they are written out again with the resource.
    ///
    /// It can be a field of a third party's own settings: [`settings`](super::settings#how-a-reader-works) has an example.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum DataSource {
        /// `secret`: the name of a secret of the mesh.
        Secret(String) = ("secret", values::non_empty),
        /// `file`: a path on the control plane's host.
        File(PathBuf) = ("file", path),
        /// `inline`: the bytes themselves, base64 in the document and decoded here.
        Inline(SecretValue) = ("inline", base64()),
        /// `inlineString`: the text itself.
        InlineString(SecretValue) = ("inlineString", InlineText),
    }
}

tagged! {
    /// A data source of the modern model (`MeshIdentity`): a `type`, and the setting of that type.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum SecureDataSource refuses "does not go with this `type`, which takes `{own}`: keep one of them" {
        /// `type: File`: an absolute path without `..` on the control plane's host.
        File(PathBuf) = "File" with required("file", Group(required("path", Described(absolute_path, || json!({ "pattern": "^/" }))))),
        /// `type: Secret`: the name of a secret of the mesh.
        Secret(String) = "Secret" with required("secretRef", spelt(secret_ref, |name| SecretRef {
            kind: (),
            name: name.clone(),
        })),
        /// `type: EnvVar`: the name of an environment variable of the control plane.
        EnvVar(String) = "EnvVar" with required("envVar", Group(required("name", variable))),
        /// `type: InsecureInline`: the text itself.
        InsecureInline(SecretValue) = "InsecureInline" with required("insecureInline", Group(required("value", InlineText))),
    }
}

mapping! {
    #[derive(Clone)]
    struct SecretRef {
        kind: () = required("kind", Choice(&[("Secret", ())])),
        name: String = required("name", values::non_empty),
    }
}

fn secret_ref(at: Cursor<'_>) -> Option<String> {
    SecretRef::read(at).map(|secret| secret.name)
}

const IN_PLAIN_SIGHT: &str = "secret material in plain sight: everyone who may read this resource has it; \
                              keep it in a secret of the mesh and name that here";

/// Reads a source of something public, such as a CA certificate.
pub fn public(at: Cursor<'_>) -> Option<DataSource> {
    DataSource::read(at)
}

/// Reads a source of a key, a token or a password. One that is inline is worth a warning.
pub fn secret(at: Cursor<'_>) -> Option<DataSource> {
    at.visit(&["inline"], &|at| at.warn(IN_PLAIN_SIGHT));
    at.visit(&["inlineString"], &|at| at.warn(IN_PLAIN_SIGHT));
    DataSource::read(at)
}

/// A secure source of a private key: inline is worth a warning.
pub(crate) fn secure_secret(at: Cursor<'_>) -> Option<SecureDataSource> {
    if at.node.says("type", "InsecureInline") {
        at.visit(&["insecureInline", "value"], &|at| at.warn(IN_PLAIN_SIGHT));
    }
    SecureDataSource::read(at)
}

/// A path, as the operating system has it.
pub(crate) fn path(at: Cursor<'_>) -> Option<PathBuf> {
    values::non_empty(at).map(PathBuf::from)
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
    let name = values::non_empty(at)?;
    if name.contains(['=', '\0']) {
        return at.error("is not the name of an environment variable: it contains `=`");
    }
    Some(name)
}

/// Base64 with padding; line breaks and blanks inside are accepted, as block scalars have them.
pub(crate) fn base64() -> impl Codec<Value = SecretValue> {
    spelt(read_base64, |value| STANDARD.encode(value.expose()))
}

fn read_base64(at: Cursor<'_>) -> Option<SecretValue> {
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

/// A value that is a text. It is written without a copy, which nothing would wipe.
pub(crate) struct InlineText;

impl Codec for InlineText {
    type Value = SecretValue;

    fn read(&self, at: Cursor<'_>) -> Option<SecretValue> {
        values::non_empty(at).map(|text| SecretValue::new(text.into_bytes()))
    }

    fn write<S: Serializer>(&self, value: &SecretValue, serializer: S) -> Result<S::Ok, S::Error> {
        match value.expose_str() {
            Some(text) => serializer.serialize_str(text),
            None => Err(S::Error::custom("an inline value that is not text")),
        }
    }

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<String>()
    }
}
