//! `Secret`: a secret of a mesh as a resource.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::datasource::{base64, write_base64};
use super::decode::{self, Clip, Cursor, Fields};
use super::free_form::FreeForm;
use super::metadata::{self, Form, Layout, Metadata, Scope, Written};
use crate::SecretValue;

/// The type of a Kubernetes Secret that belongs to a mesh.
pub(crate) const KUBERNETES_TYPE: &str = "system.kuma.io/secret";

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

impl SecretResource {
    /// A secret of that name.
    pub fn new(metadata: Metadata, data: SecretValue) -> Self {
        Self { metadata, data }
    }

    pub(super) fn write<S: Serializer>(
        &self,
        form: Form,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Self { metadata, data } = self;
        let spec = match form {
            Form::Kubernetes => SpecWire::Kubernetes {
                type_name: KUBERNETES_TYPE,
                data: DataWire {
                    value: data.clone(),
                },
            },
            Form::Universal => SpecWire::Universal { data: data.clone() },
        };
        Written {
            api_version: "v1",
            kind: "Secret",
            metadata,
            layout: Layout::Flat,
            spec,
            status: Cow::Owned(FreeForm::default()),
        }
        .write(form, serializer)
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum SpecWire {
    Kubernetes {
        #[serde(rename = "type")]
        type_name: &'static str,
        data: DataWire,
    },
    Universal {
        #[serde(serialize_with = "write_base64")]
        data: SecretValue,
    },
}

#[derive(Serialize)]
struct DataWire {
    #[serde(serialize_with = "write_base64")]
    value: SecretValue,
}

/// Reads a `Secret` whose `apiVersion` and `kind`, or `type`, have been read.
pub(super) fn read(f: &mut Fields<'_>, form: Form) -> Option<SecretResource> {
    let metadata = metadata::read(f, form, Scope::Mesh);
    let data = match form {
        Form::Kubernetes => kubernetes(f),
        Form::Universal if f.has("spec") => f.required("spec", |at| {
            let mut f = at.fields()?;
            let data = f.required("data", base64);
            f.finish();
            data
        }),
        Form::Universal => f.required("data", base64),
    };
    f.finish();
    Some(SecretResource {
        metadata: metadata?,
        data: data?,
    })
}

fn kubernetes(f: &mut Fields<'_>) -> Option<SecretValue> {
    f.required("type", |at| match at.text()? {
        KUBERNETES_TYPE => Some(()),
        other => at.error(format_args!(
            "must be `{KUBERNETES_TYPE}`, `{}` is no secret of a mesh",
            Clip(other)
        )),
    });
    f.opt("immutable", decode::boolean);
    match (f.has("data"), f.has("stringData")) {
        (true, true) => f.refuse(
            "stringData",
            "the secret is in `data` already: keep one of them",
        ),
        (false, true) => {
            f.know(&["data"]);
            f.opt("stringData", |at| {
                value(at, |at| {
                    decode::non_empty(at).map(|text| SecretValue::from(text.as_str()))
                })
            })
        }
        _ => {
            f.know(&["stringData"]);
            f.required("data", |at| value(at, base64))
        }
    }
}

fn value(at: Cursor<'_>, read: fn(Cursor<'_>) -> Option<SecretValue>) -> Option<SecretValue> {
    let mut f = at.fields()?;
    let value = f.required("value", read);
    f.finish();
    value
}
