//! JSON Schema of the kinds, for editors and for whoever generates code.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value as Json, json};

use super::any_settings::Model;
use super::declare::Mapping;
use super::decode::{Context, SettingsType};
use super::mesh::BackendFields;
use super::metadata::{Kind, ObjectMeta, Scope, UniversalMeta};
use super::provider::{self, OURS};
use super::violation::Report;
use super::{
    ExtensionMode, Form, Mesh, MeshIdentity, MeshTls, MeshTrust, SecretResource, mesh,
    mesh_identity, mesh_tls, mesh_trust, secret,
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
            document.add(
                "metadata",
                true,
                &[],
                metadata.without(K::SCOPE, "namespace").finish(),
            );
        }
        Form::Universal => {
            document.add("type", true, &[], json_schema!({ "const": K::NAME }));
            UniversalMeta::describe_fields(&mut document, &mut generator);
            document = document.without(K::SCOPE, "mesh");
        }
    }
    let flat = K::LAYOUT.is_flat(form);
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
        if !doc.is_empty() {
            content.ensure_object().extend(described(doc));
        }
        self.properties.insert(name.to_owned(), content.to_value());
        if required {
            self.required.push(name.into());
        }
    }

    /// Lets it have other fields.
    pub(super) fn open(&mut self) {
        self.schema
            .insert("additionalProperties".into(), true.into());
    }

    /// The same without a field that resources of no mesh do not have.
    fn without(mut self, scope: Scope, name: &str) -> Self {
        if scope == Scope::Global {
            self.properties.remove(name);
        }
        self
    }

    /// Adds the fields of another mapping, of which none is required if they may be elsewhere.
    fn take(&mut self, other: Self, elsewhere: bool) {
        self.schema.extend(other.schema);
        self.properties.extend(other.properties);
        if !elsewhere {
            self.required.extend(other.required);
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
