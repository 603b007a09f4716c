//! JSON Schema of the kinds, for editors and for whoever generates code.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value as Json, json};

use super::any_settings::Model;
use super::declare::Mapping as _;
use super::decode::{Context, SettingsType};
use super::mesh::BackendFields;
use super::metadata::{API_VERSION, OBJECT_META, UNIVERSAL_META};
use super::provider::{self, OURS};
use super::violation::Report;
use super::{
    ExtensionMode, Form, Mesh, MeshIdentity, MeshTls, MeshTrust, SecretResource, mesh,
    mesh_identity, mesh_tls, mesh_trust, secret,
};

/// The schema of a kind whose content is in `spec`.
fn of<S: JsonSchema>(kind: &str, form: Form, types: &[SettingsType]) -> String {
    let mut generator = generator();
    let spec = S::json_schema(&mut generator).to_value();
    let content = Map::from_iter([("spec".to_owned(), spec)]);
    let definitions = definitions(generator, types);
    match form {
        Form::Kubernetes => {
            let namespaced = kind != "Mesh";
            kubernetes(
                kind,
                API_VERSION,
                namespaced,
                namespaced,
                content,
                definitions,
            )
        }
        Form::Universal => universal(kind, true, Some("spec"), content, false, definitions),
    }
}

/// The schema of a kind whose content is beside the name, in Universal form.
fn flat<S: JsonSchema>(kind: &str, in_mesh: bool, open: bool, types: &[SettingsType]) -> String {
    let mut generator = generator();
    let spec = S::json_schema(&mut generator).to_value();
    let mut content = properties(&spec);
    // Flat is the rule, but documents with a `spec` exist.
    content.insert("spec".to_owned(), spec);
    universal(
        kind,
        in_mesh,
        None,
        content,
        open,
        definitions(generator, types),
    )
}

fn properties(schema: &Json) -> Map<String, Json> {
    match schema.get("properties") {
        Some(Json::Object(properties)) => properties.clone(),
        _ => Map::new(),
    }
}

/// The schema of a mapping, made field by field.
pub(super) struct Object {
    schema: Map<String, Json>,
    properties: Map<String, Json>,
    required: Vec<Json>,
}

impl Object {
    pub(super) fn new(doc: &[&str]) -> Self {
        Self {
            schema: described(doc),
            properties: Map::new(),
            required: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, name: &str, required: bool, doc: &[&str], mut content: Schema) {
        content.ensure_object().extend(described(doc));
        self.properties.insert(name.to_owned(), content.to_value());
        if required {
            self.required.push(name.into());
        }
    }

    pub(super) fn finish(mut self) -> Schema {
        self.schema.insert("type".into(), "object".into());
        self.schema
            .insert("properties".into(), self.properties.into());
        if !self.required.is_empty() {
            self.schema.insert("required".into(), self.required.into());
        }
        self.schema.into()
    }
}

/// The schema of an enum of words.
pub(super) fn words(doc: &[&str], words: &[(&str, &[&str])]) -> Schema {
    let mut schema = described(doc);
    if words.iter().all(|(_, doc)| doc.is_empty()) {
        schema.insert("type".into(), "string".into());
        schema.insert("enum".into(), words.iter().map(|(word, _)| *word).collect());
    } else {
        let alternatives = words.iter().map(|(word, doc)| {
            let mut alternative = described(doc);
            alternative.insert("type".into(), "string".into());
            alternative.insert("const".into(), (*word).into());
            Json::Object(alternative)
        });
        schema.insert("oneOf".into(), alternatives.collect());
    }
    schema.into()
}

/// The schema of an enum of mappings.
pub(super) fn one_of<const N: usize>(doc: &[&str], alternatives: [Schema; N]) -> Schema {
    let mut schema = described(doc);
    schema.insert(
        "oneOf".into(),
        alternatives.map(Schema::to_value).to_vec().into(),
    );
    schema.into()
}

/// The description, if there is one: the first paragraph, since what follows is for users of the Rust types.
fn described(doc: &[&str]) -> Map<String, Json> {
    let lines: Vec<_> = doc
        .iter()
        .map(|line| line.trim())
        .take_while(|line| !line.is_empty())
        .collect();
    match lines.is_empty() {
        true => Map::new(),
        false => Map::from_iter([("description".into(), lines.join("\n").into())]),
    }
}

fn add_property(schema: &mut Json, name: &str, property: Json) {
    if let Some(Json::Object(properties)) = schema.get_mut("properties") {
        properties.insert(name.to_owned(), property);
    }
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

/// A CA of the classic model. What is in `conf` depends on `type`: [`by_type`] adds that.
pub(super) fn backend(generator: &mut SchemaGenerator) -> Schema {
    let mut object = Object::new(&["A CA of the mesh. The settings depend on its type."]);
    let name =
        json_schema!({ "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" });
    object.add("name", true, &[], name);
    BackendFields::describe_fields(&mut object, generator);
    let conf = json_schema!({ "type": ["object", "null"] });
    object.add("conf", false, &[], conf);
    object.finish()
}

/// A CA of the modern model that is named. What is in `config` depends on `name`: [`by_type`] adds that.
pub(super) fn extension(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "A CA outside, by name. The settings depend on the name.",
        "type": "object",
        "properties": {
            "name": {},
            "config": {
                "type": ["object", "null"],
                "properties": { "mode": generator.subschema_for::<Option<ExtensionMode>>() },
                "additionalProperties": true,
            },
        },
        "required": ["name"],
        "additionalProperties": false,
    })
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

/// Makes a schema as strict as reading is, and as lenient: what is not free form has no further fields,
/// and a field that may be absent may be null.
fn tighten(schema: &mut Json) {
    let Json::Object(schema) = schema else {
        return;
    };
    if let Some(Json::String(description)) = schema.get_mut("description") {
        // What follows the first paragraph is for users of the Rust types.
        let first = description.split("\n\n").next().unwrap_or_default();
        *description = without_links(first).replace('\n', " ");
    }
    let required: Vec<_> = match schema.get("required") {
        Some(Json::Array(names)) => names.clone(),
        _ => Vec::new(),
    };
    if let Some(Json::Object(properties)) = schema.get_mut("properties") {
        for (name, property) in properties.iter_mut() {
            tighten(property);
            if !required.iter().any(|needed| needed == name) {
                allow_null(property);
            }
        }
        schema
            .entry("additionalProperties")
            .or_insert(Json::Bool(false));
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get_mut(keyword) {
            tighten(schema);
        }
    }
    for keyword in ["oneOf", "anyOf"] {
        if let Some(Json::Array(schemas)) = schema.get_mut(keyword) {
            schemas.iter_mut().for_each(tighten);
        }
    }
}

fn allow_null(schema: &mut Json) {
    let absent = json!({ "type": "null" });
    let Json::Object(fields) = schema else {
        return;
    };
    match fields.get_mut("type") {
        Some(Json::Array(_)) => return,
        Some(Json::String(name)) => {
            let name = name.clone();
            if !fields.contains_key("enum") && !fields.contains_key("const") {
                fields.insert("type".into(), json!([name, "null"]));
                return;
            }
        }
        _ => {}
    }
    if fields.is_empty() {
        return;
    }
    if let Some(Json::Array(schemas)) = fields.get_mut("anyOf") {
        if !schemas.contains(&absent) {
            schemas.push(absent);
        }
        return;
    }
    let description = fields.remove("description");
    let mut wrapped = json!({ "anyOf": [fields, absent] });
    if let (Some(description), Json::Object(wrapped)) = (description, &mut wrapped) {
        wrapped.insert("description".into(), description);
    }
    *schema = wrapped;
}

/// Rustdoc's links mean nothing in a schema: their texts remain.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        let link = after.split_once(']').and_then(|(label, after)| {
            let target = after
                .strip_prefix('(')
                .and_then(|after| after.split_once(')'));
            match target {
                Some((_, after)) => Some((label, after)),
                None if label.starts_with('`') => Some((label, after)),
                None => None,
            }
        });
        match link {
            Some((label, after)) => {
                plain.push_str(label);
                rest = after;
            }
            None => {
                plain.push('[');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
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

fn kubernetes(
    kind: &str,
    api_version: &str,
    namespaced: bool,
    needs_spec: bool,
    content: Map<String, Json>,
    definitions: Map<String, Json>,
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
    text(kind, &properties, &required, false, definitions)
}

fn universal(
    kind: &str,
    in_mesh: bool,
    needed: Option<&str>,
    content: Map<String, Json>,
    open: bool,
    definitions: Map<String, Json>,
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
    text(kind, &properties, &required, open, definitions)
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
    definitions: Map<String, Json>,
) -> String {
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": open,
        "$defs": definitions,
    });
    tighten(&mut schema);
    format!("{schema:#}")
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
    ($type:ident, $kind:literal, $form:ident, $types:ident => $schema:expr) => {
        schema!($type, $kind, form => Self::json_schema_with(form, OURS));

        #[cfg_attr(docsrs, doc(cfg(feature = "schema")))]
        impl $type {
            /// As [`json_schema`](Self::json_schema), with the settings of these types of CAs: those of
            /// [`BackendRegistry::settings`](crate::BackendRegistry::settings).
            pub fn json_schema_with($form: Form, $types: &[SettingsType]) -> String {
                $schema
            }
        }
    };
}

schema_by_type!(Mesh, "Mesh", form, types => match form {
    Form::Kubernetes => of::<mesh::SpecWire<'static>>("Mesh", form, types),
    Form::Universal => flat::<mesh::SpecWire<'static>>("Mesh", false, true, types),
});
schema_by_type!(MeshIdentity, "MeshIdentity", form, types => of::<mesh_identity::Spec>("MeshIdentity", form, types));
schema!(MeshTrust, "MeshTrust", form => of::<mesh_trust::Spec>("MeshTrust", form, &[]));
schema!(MeshTls, "MeshTLS", form => of::<mesh_tls::Spec>("MeshTLS", form, &[]));
schema!(SecretResource, "Secret", form => match form {
    Form::Kubernetes => {
        let mut generator = generator();
        let content = properties(&secret::OnKubernetes::json_schema(&mut generator).to_value());
        kubernetes("Secret", "v1", true, false, content, Map::new())
    }
    Form::Universal => flat::<secret::Universal>("Secret", true, false, &[]),
});
