//! JSON Schema of the kinds, for editors and for whoever generates code.

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value as Json, json};

use super::Form;
use super::metadata::{API_VERSION, OBJECT_META, UNIVERSAL_META};
use super::secret::KUBERNETES_TYPE;
use super::{
    Mesh, MeshIdentity, MeshTls, MeshTrust, SecretResource, mesh, mesh_identity, mesh_tls,
    mesh_trust,
};

/// The schema of a kind whose content is in `spec`, in Universal form perhaps beside the name.
fn of<S: JsonSchema>(kind: &str, form: Form, flat_universal: bool) -> String {
    let mut generator = generator();
    let spec = S::json_schema(&mut generator);
    let mut properties = Map::new();
    match form {
        Form::Kubernetes => {
            properties.insert("spec".into(), spec.to_value());
            kubernetes(
                kind,
                API_VERSION,
                kind != "Mesh",
                kind != "Mesh",
                properties,
                generator,
            )
        }
        Form::Universal if flat_universal => {
            if let Some(Json::Object(content)) = spec.get("properties") {
                properties.extend(content.clone());
            }
            universal(kind, false, None, properties, true, generator)
        }
        Form::Universal => {
            properties.insert("spec".into(), spec.to_value());
            universal(kind, true, Some("spec"), properties, false, generator)
        }
    }
}

/// What is written is what may be read, so the schema is that of writing.
fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
}

fn kubernetes(
    kind: &str,
    api_version: &str,
    namespaced: bool,
    needs_spec: bool,
    content: Map<String, Json>,
    generator: SchemaGenerator,
) -> String {
    let mut metadata =
        json!({ "name": { "type": "string" }, "labels": strings(), "annotations": strings() });
    if let Json::Object(metadata) = &mut metadata {
        if namespaced {
            metadata.insert("namespace".into(), json!({ "type": "string" }));
        }
        metadata.extend(
            OBJECT_META
                .iter()
                .map(|name| ((*name).to_owned(), json!(true))),
        );
    }
    let mut properties = json!({
        "apiVersion": { "const": api_version },
        "kind": { "const": kind },
        "metadata": {
            "type": "object",
            "properties": metadata,
            "required": ["name"],
            "additionalProperties": false,
        },
        "status": { "type": "object" },
    });
    let mut required = vec!["apiVersion", "kind", "metadata"];
    required.extend(
        needs_spec
            .then_some("spec")
            .filter(|spec| content.contains_key(*spec)),
    );
    extend(&mut properties, content);
    text(kind, &properties, &required, false, generator)
}

fn universal(
    kind: &str,
    in_mesh: bool,
    needed: Option<&str>,
    content: Map<String, Json>,
    open: bool,
    generator: SchemaGenerator,
) -> String {
    let mut properties = json!({
        "type": { "const": kind },
        "name": { "type": "string" },
        "labels": strings(),
        "status": { "type": "object" },
    });
    if let Json::Object(properties) = &mut properties {
        if in_mesh {
            properties.insert("mesh".into(), json!({ "type": "string" }));
        }
        properties.extend(
            UNIVERSAL_META
                .iter()
                .map(|name| ((*name).to_owned(), json!(true))),
        );
    }
    extend(&mut properties, content);
    let mut required = vec!["type", "name"];
    required.extend(needed);
    text(kind, &properties, &required, open, generator)
}

fn strings() -> Json {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

fn extend(properties: &mut Json, content: Map<String, Json>) {
    if let Json::Object(properties) = properties {
        properties.extend(content);
    }
}

fn text(
    kind: &str,
    properties: &Json,
    required: &[&str],
    open: bool,
    mut generator: SchemaGenerator,
) -> String {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": open,
        "$defs": generator.take_definitions(true),
    });
    format!("{schema:#}")
}

/// The schema of each kind.
macro_rules! schema {
    ($type:ident, $kind:literal, $form:ident => $schema:expr) => {
        #[cfg_attr(docsrs, doc(cfg(feature = "schema")))]
        impl $type {
            #[doc = concat!("The JSON Schema (draft 2020-12) of a `", $kind, "` in the given form, as JSON text.")]
            ///
            /// It says which fields there are and what they look like. Rules between fields are beyond it:
            /// reading the document checks those.
            pub fn json_schema($form: Form) -> String {
                $schema
            }
        }
    };
}

schema!(Mesh, "Mesh", form => of::<mesh::SpecWire<'static>>("Mesh", form, true));
schema!(MeshIdentity, "MeshIdentity", form => of::<mesh_identity::SpecWire<'static>>("MeshIdentity", form, false));
schema!(MeshTrust, "MeshTrust", form => of::<mesh_trust::SpecWire<'static>>("MeshTrust", form, false));
schema!(MeshTls, "MeshTLS", form => of::<mesh_tls::SpecWire<'static>>("MeshTLS", form, false));
schema!(SecretResource, "Secret", form => secret(form));

fn secret(form: Form) -> String {
    let generator = generator();
    match form {
        Form::Kubernetes => {
            let value = json!({ "type": "object", "properties": { "value": { "type": "string" } }, "required": ["value"] });
            let content = json!({
                "type": { "const": KUBERNETES_TYPE }, "immutable": { "type": "boolean" }, "data": value, "stringData": value,
            });
            kubernetes("Secret", "v1", true, false, object(content), generator)
        }
        Form::Universal => {
            let content = json!({ "data": { "type": "string", "contentEncoding": "base64" } });
            universal(
                "Secret",
                true,
                Some("data"),
                object(content),
                false,
                generator,
            )
        }
    }
}

fn object(json: Json) -> Map<String, Json> {
    match json {
        Json::Object(fields) => fields,
        _ => Map::new(),
    }
}
