//! `Secret`: a secret of a mesh as a resource.

use serde::Serializer;
use serde_json::json;

use super::datasource::{InlineText, base64};
use super::declare::{Mapping as _, mapping};
use super::decode::{Clip, Cursor, Fields};
use super::field::{Described, Group, optional, required, spelt};
use super::free_form::FreeForm;
use super::metadata::{self, Form, Kind, Metadata, Scope};
use super::values;
use crate::SecretValue;

/// The type of a Kubernetes Secret that belongs to a mesh.
const KUBERNETES_TYPE: &str = "system.kuma.io/secret";

/// A secret of a mesh. On Kubernetes this is a `v1` `Secret` of the type `system.kuma.io/secret` with the
/// one key `value`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SecretResource {
    /// Name, mesh and form.
    pub metadata: Metadata,
    /// The bytes, base64 in the document and decoded here. They are written with the resource.
    pub data: SecretValue,
}

impl Kind for SecretResource {
    const NAME: &'static str = "Secret";
    const API_VERSION: &'static str = "v1";
    const SCOPE: Scope = Scope::Mesh;
    const FLAT_IN: &[Form] = &[Form::Kubernetes, Form::Universal];

    fn read(f: &mut Fields<'_>, form: Form) -> Option<Self> {
        let metadata = metadata::read(f, form, Self::SCOPE);
        let data = match form {
            Form::Kubernetes => on_kubernetes(f),
            Form::Universal if f.has("spec") => {
                f.required("spec", Universal::read).map(|it| it.data)
            }
            Form::Universal => Universal::read_fields(f).map(|it| it.data),
        };
        f.finish();
        Some(Self {
            metadata: metadata?,
            data: data?,
        })
    }

    fn write<S: Serializer>(&self, form: Form, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { metadata, data } = self;
        let (none, data) = (FreeForm::default(), data.clone());
        match form {
            Form::Kubernetes => {
                let spec = OnKubernetes {
                    secret_type: (),
                    immutable: None,
                    data: Some(data),
                    string_data: None,
                };
                metadata::write::<Self, _, _>(metadata, &spec, &none, form, serializer)
            }
            Form::Universal => {
                let spec = Universal { data };
                metadata::write::<Self, _, _>(metadata, &spec, &none, form, serializer)
            }
        }
    }
}

impl SecretResource {
    /// A secret of that name.
    pub fn new(metadata: Metadata, data: SecretValue) -> Self {
        Self { metadata, data }
    }
}

mapping! {
    pub(super) struct OnKubernetes {
        secret_type: () = required("type", Described(
            spelt(secret_type, |()| KUBERNETES_TYPE),
            || json!({ "const": KUBERNETES_TYPE }),
        )),
        immutable: Option<bool> = optional("immutable", values::boolean),
        data: Option<SecretValue> = optional("data", Group(required("value", base64()))),
        string_data: Option<SecretValue> = optional("stringData", Group(required("value", InlineText))),
    }
}

mapping! {
    pub(super) struct Universal {
        data: SecretValue = required("data", Described(base64(), || json!({ "contentEncoding": "base64" }))),
    }
}

fn on_kubernetes(f: &mut Fields<'_>) -> Option<SecretValue> {
    let secret = OnKubernetes::read_fields(f);
    match (f.has("data"), f.has("stringData")) {
        (true, true) => f.refuse(
            "stringData",
            "the secret is in `data` already: keep one of them",
        ),
        (false, false) => f.missing("data", "must be set"),
        _ => secret.and_then(|secret| secret.data.or(secret.string_data)),
    }
}

fn secret_type(at: Cursor<'_>) -> Option<()> {
    match at.text()? {
        KUBERNETES_TYPE => Some(()),
        other => at.error(format_args!(
            "must be `{KUBERNETES_TYPE}`, `{}` is no secret of a mesh",
            Clip(other)
        )),
    }
}
