//! JSON Schema of the kinds, for editors and for whoever generates code.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, json_schema};
use serde_json::{Map, Value as Json, json};

use super::any_settings::Model;
use super::declare::Mapping;
use super::decode::{Context, SettingsType};
use super::describe::{Object, add_property, allow_null, tighten};
use super::metadata::{Kind, ObjectMeta, Scope, UniversalMeta};
use super::provider::{self, OURS};
use super::violation::Report;
use super::{
    Form, Mesh, MeshIdentity, MeshTls, MeshTrust, SecretResource, mesh, mesh_identity, mesh_tls,
    mesh_trust, secret,
};

/// The schema of the documents of a kind whose content is this mapping.
fn document<K: Kind, S: Mapping + JsonSchema>(form: Form, types: &[SettingsType]) -> String {
    let mut generator = generator();
    let mut document = Object::new(&[]);
    match form {
        Form::Kubernetes => {
            let mut metadata = Object::new(&[]);
            ObjectMeta::describe_fields(&mut metadata, &mut generator);
            document.add(
                "apiVersion",
                true,
                &[],
                json_schema!({ "const": K::API_VERSION }),
            );
            document.add("kind", true, &[], json_schema!({ "const": K::NAME }));
            if K::SCOPE == Scope::Global {
                metadata.remove("namespace");
            }
            document.add("metadata", true, &[], metadata.finish());
        }
        Form::Universal => {
            document.add("type", true, &[], json_schema!({ "const": K::NAME }));
            UniversalMeta::describe_fields(&mut document, &mut generator);
            if K::SCOPE == Scope::Global {
                document.remove("mesh");
            }
        }
    }
    let flat = K::FLAT_IN.contains(&form);
    if flat {
        let mut content = Object::new(&[]);
        S::describe_fields(&mut content, &mut generator);
        document.take(content, form == Form::Universal);
    }
    // In Universal form flat is the rule for some kinds, but documents with a `spec` exist.
    if !flat || form == Form::Universal {
        let required = !flat && K::SCOPE != Scope::Global;
        document.add("spec", required, &[], S::json_schema(&mut generator));
    }
    document.add("status", false, &[], json_schema!({ "type": "object" }));
    let mut document = document.finish().to_value();
    if let Json::Object(document) = &mut document {
        let definitions = definitions(generator, types);
        document.insert(
            "$schema".into(),
            "https://json-schema.org/draft/2020-12/schema".into(),
        );
        document.insert("title".into(), K::NAME.into());
        document.insert("$defs".into(), definitions.into());
    }
    tighten(&mut document);
    format!("{document:#}")
}

/// What holds if `field` says one of these types.
fn when(field: &str, types: &[&str], then: Json) -> Json {
    json!({
        "if": { "properties": { field: { "enum": types } }, "required": [field] },
        "then": then,
    })
}

/// What holds for a type of which nothing is known here.
fn otherwise(field: &str, known: &[&str], then: Json) -> Json {
    json!({
        "if": { "properties": { field: { "not": { "enum": known } } }, "required": [field] },
        "then": then,
    })
}

/// The settings in exactly one of these fields, and in none of the other blocks.
fn settings_in(fields: &[&str], settings: &Json, blocks: &[&str]) -> Json {
    let places: Vec<_> = fields
        .iter()
        .map(|field| {
            let mut properties = Map::new();
            for block in blocks {
                let content = match (block == field, fields.contains(block)) {
                    (true, _) => settings.clone(),
                    (false, true) => json!({ "type": "null" }),
                    (false, false) => json!(false),
                };
                properties.insert((*block).to_owned(), content);
            }
            json!({ "properties": properties, "required": [field] })
        })
        .collect();
    match places.as_slice() {
        [only] => only.clone(),
        _ => json!({ "oneOf": places }),
    }
}

/// Adds what depends on the type of a CA to the definition of a backend or an extension.
fn by_type(definitions: &mut Map<String, Json>, model: Model, types: &[SettingsType]) {
    let (definition, field) = match model {
        Model::Classic => ("Backend", "type"),
        Model::Modern => ("Extension", "name"),
    };
    let Some(definition) = definitions.get_mut(definition) else {
        return;
    };
    let context = Context::new(Report::default(), None, types);
    let blocks = provider::blocks(&context);
    let (mut known, mut conditions) = (Vec::new(), Vec::new());
    for kind in context.types(model) {
        let names: Vec<_> = [Some(kind.name), kind.spelling.alias]
            .into_iter()
            .flatten()
            .collect();
        let mut settings = match (kind.schema)() {
            Some(schema) => json!(schema),
            None => json!({ "type": "object", "additionalProperties": true }),
        };
        tighten(&mut settings);
        if model == Model::Modern {
            // It is judged by the definition itself.
            add_property(&mut settings, "mode", json!(true));
        }
        let optional = provider::without_settings(Some(kind)).is_some();
        if optional {
            allow_null(&mut settings);
        }
        let then = match (model, optional, kind.spelling.block) {
            (Model::Modern, true, _) => json!({ "properties": { "config": settings } }),
            (Model::Modern, false, _) => {
                json!({ "properties": { "config": settings }, "required": ["config"] })
            }
            (Model::Classic, true, _) => only_conf(settings, &blocks),
            (Model::Classic, false, Some(block)) => {
                settings_in(&["conf", block], &settings, &blocks)
            }
            (Model::Classic, false, None) => settings_in(&["conf"], &settings, &blocks),
        };
        conditions.push(when(field, &names, then));
        known.extend(names);
    }
    let name = json!({
        "description": "A type that is known here, or one that the control plane has registered.",
        "anyOf": [{ "enum": known }, { "type": "string", "minLength": 1 }],
    });
    add_property(definition, field, name);
    if model == Model::Classic {
        let any = json!({ "type": ["object", "null"] });
        conditions.push(otherwise(field, &known, only_conf(any.clone(), &blocks)));
        for block in &blocks {
            add_property(definition, block, any.clone());
        }
    }
    if let Json::Object(definition) = definition {
        definition.insert("allOf".into(), Json::Array(conditions));
    }
}

/// Settings that may be absent, in `conf` and in no other block.
fn only_conf(settings: Json, blocks: &[&str]) -> Json {
    let block = |block: &&str| ((*block).to_owned(), json!(false));
    let mut properties: Map<_, _> = blocks.iter().map(block).collect();
    properties.insert("conf".into(), settings);
    json!({ "properties": properties })
}

/// What is written is what may be read, so the schema is that of writing.
fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
}

fn definitions(mut generator: SchemaGenerator, types: &[SettingsType]) -> Map<String, Json> {
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(tighten);
    by_type(&mut definitions, Model::Classic, types);
    by_type(&mut definitions, Model::Modern, types);
    definitions
}

/// The schema of each kind.
macro_rules! schema {
    ($type:ident, $kind:literal, $form:ident => $schema:expr) => {
        #[cfg_attr(docsrs, doc(cfg(feature = "schema")))]
        impl $type {
            #[doc = concat!("The JSON Schema (draft 2020-12) of a `", $kind, "` in the given form, as JSON text.")]
            ///
            /// It refuses what reading refuses in the shape of the document: unknown fields, wrong types and words,
            /// two data sources, settings that do not belong to the type of the CA. It does not know the rules between
            /// fields (`enabledBackend` names a backend, Vault needs `expiration`, `ca` or `autogenerate`), those
            /// within a text (templates, certificates, names), a near miss of `mtls` among the sections of a `Mesh`
            /// that are not ours, and `skipValidation`, under which reading only warns about the settings of a backend.
            /// A document that fits it should still be read.
            pub fn json_schema($form: Form) -> String {
                $schema
            }
        }
    };
}

/// The schema of a kind that names CAs.
macro_rules! schema_by_type {
    ($type:ident, $kind:literal, $spec:ty) => {
        schema!($type, $kind, form => Self::json_schema_with(form, OURS));

        #[cfg_attr(docsrs, doc(cfg(feature = "schema")))]
        impl $type {
            /// As [`json_schema`](Self::json_schema), with the settings of these types of CAs: those of
            /// [`BackendRegistry::settings`](crate::BackendRegistry::settings).
            pub fn json_schema_with(form: Form, types: &[SettingsType]) -> String {
                document::<$type, $spec>(form, types)
            }
        }
    };
}

schema_by_type!(Mesh, "Mesh", mesh::Spec);
schema_by_type!(MeshIdentity, "MeshIdentity", mesh_identity::Spec);
schema!(MeshTrust, "MeshTrust", form => document::<MeshTrust, mesh_trust::Spec>(form, &[]));
schema!(MeshTls, "MeshTLS", form => document::<MeshTls, mesh_tls::Spec>(form, &[]));
schema!(SecretResource, "Secret", form => match form {
    Form::Kubernetes => document::<SecretResource, secret::OnKubernetes>(form, &[]),
    Form::Universal => document::<SecretResource, secret::Universal>(form, &[]),
});
