//! The parts of a JSON Schema.

use schemars::Schema;
use serde_json::{Map, Value as Json, json};

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

    pub(super) fn remove(&mut self, name: &str) {
        self.properties.remove(name);
    }

    /// Adds the fields of another mapping, of which none is required if they may be elsewhere.
    pub(super) fn take(&mut self, other: Self, elsewhere: bool) {
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

pub(super) fn add_property(schema: &mut Json, name: &str, property: Json) {
    if let Some(Json::Object(properties)) = schema.get_mut("properties") {
        properties.insert(name.to_owned(), property);
    }
}

/// Makes a schema as strict as reading is, and as lenient: what is not free form has no further fields,
/// and a field that may be absent may be null.
pub(super) fn tighten(schema: &mut Json) {
    let Json::Object(schema) = schema else {
        return;
    };
    if let Some(Json::String(description)) = schema.get_mut("description") {
        // What follows the first paragraph is for users of the Rust types.
        let first = description.split("\n\n").next().unwrap_or_default();
        *description = without_links(first).replace('\n', " ");
    }
    let required = schema.get("required").and_then(Json::as_array).cloned();
    let required = required.unwrap_or_default();
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

pub(super) fn allow_null(schema: &mut Json) {
    let absent = json!({ "type": "null" });
    let Json::Object(fields) = schema else {
        return;
    };
    if fields.is_empty() || matches!(fields.get("type"), Some(Json::Array(_))) {
        return;
    }
    let constant = fields.contains_key("enum") || fields.contains_key("const");
    if !constant && let Some(name @ Json::String(_)) = fields.get_mut("type") {
        *name = json!([name, "null"]);
        return;
    }
    if let Some(Json::Array(schemas)) = fields.get_mut("anyOf") {
        if !schemas.contains(&absent) {
            schemas.push(absent);
        }
        return;
    }
    let description = fields.remove("description");
    let mut wrapped = Map::from_iter([("anyOf".into(), json!([fields, absent]))]);
    wrapped.extend(description.map(|it| ("description".into(), it)));
    *schema = wrapped.into();
}

/// Rustdoc's links mean nothing in a schema: their texts remain.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        let (label, behind) = after.split_once(']').unwrap_or_default();
        let target = behind.strip_prefix('(').and_then(|it| it.split_once(')'));
        let (shown, next) = match target {
            Some((_, behind)) => (label, behind),
            None if label.starts_with('`') => (label, behind),
            None => ("[", after),
        };
        plain.push_str(shown);
        rest = next;
    }
    plain.push_str(rest);
    plain
}
