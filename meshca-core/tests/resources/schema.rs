//! The JSON Schemas know every field that is read and written.

use meshca_core::resource::*;
use proptest::prelude::*;
use serde_json::Value as Json;

use crate::round_trip::any_resource;
use crate::{data, example, one};

fn schema(kind: &str, form: Form) -> Json {
    let text = match kind {
        "Mesh" => Mesh::json_schema(form),
        "MeshIdentity" => MeshIdentity::json_schema(form),
        "MeshTrust" => MeshTrust::json_schema(form),
        "MeshTLS" => MeshTls::json_schema(form),
        _ => SecretResource::json_schema(form),
    };
    serde_json::from_str(&text).unwrap()
}

/// The alternatives that a schema stands for: each is a set of schemas that hold together.
fn alternatives<'s>(root: &'s Json, schema: &'s Json) -> Vec<Vec<&'s Json>> {
    let mut sets = vec![vec![schema]];
    let mut all = |branches: Vec<Vec<&'s Json>>| {
        sets = sets
            .iter()
            .flat_map(|set| {
                branches
                    .iter()
                    .map(|branch| [set.as_slice(), branch.as_slice()].concat())
            })
            .collect();
    };
    if let Some(Json::String(reference)) = schema.get("$ref") {
        let name = reference.strip_prefix("#/$defs/").unwrap();
        all(alternatives(root, &root["$defs"][name]));
    }
    for keyword in ["anyOf", "oneOf"] {
        if let Some(Json::Array(branches)) = schema.get(keyword) {
            all(branches
                .iter()
                .flat_map(|branch| alternatives(root, branch))
                .collect());
        }
    }
    if let Some(Json::Array(parts)) = schema.get("allOf") {
        for part in parts {
            all(alternatives(root, part));
        }
    }
    sets
}

/// Whether a value is what the schema says, in the parts of JSON Schema that are used, with the
/// difference that a field must be known unless the schema says that anything goes.
fn fits(root: &Json, schema: &Json, value: &Json) -> bool {
    alternatives(root, schema).iter().any(|set| {
        set.iter().all(|part| fits_one(root, part, value)) && fields_known(root, set, value)
    })
}

fn fits_one(root: &Json, schema: &Json, value: &Json) -> bool {
    let is_type = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    };
    let types = match &schema["type"] {
        Json::String(name) => is_type(name),
        Json::Array(names) => names.iter().any(|name| is_type(name.as_str().unwrap())),
        _ => true,
    };
    let constant = schema.get("const").is_none_or(|constant| constant == value);
    let listed = schema["enum"]
        .as_array()
        .is_none_or(|values| values.contains(value));
    let required = schema["required"].as_array().is_none_or(|names| {
        names
            .iter()
            .all(|name| value.get(name.as_str().unwrap()).is_some())
    });
    let items = match (schema.get("items"), value) {
        (Some(schema), Json::Array(items)) => items.iter().all(|item| fits(root, schema, item)),
        _ => true,
    };
    types && constant && listed && required && items
}

fn fields_known(root: &Json, set: &[&Json], value: &Json) -> bool {
    let Json::Object(fields) = value else {
        return true;
    };
    fields.iter().all(|(name, value)| {
        let known: Vec<_> = set
            .iter()
            .filter_map(|schema| schema["properties"].get(name))
            .collect();
        if !known.is_empty() {
            return known.iter().all(|schema| fits(root, schema, value));
        }
        let plain_object =
            |schema: &&&Json| schema["type"] == "object" && schema.get("properties").is_none();
        set.iter()
            .any(|schema| match schema.get("additionalProperties") {
                Some(Json::Bool(open)) => *open,
                Some(additional) => fits(root, additional, value),
                None => plain_object(&schema),
            })
            || set.iter().all(|schema| **schema == Json::Bool(true))
    })
}

#[track_caller]
fn known(resource: &Resource) {
    for form in [Form::Kubernetes, Form::Universal] {
        let schema = schema(resource.kind(), form);
        let json: Json = serde_json::from_str(&resource.to_json_as(form).unwrap()).unwrap();
        assert!(fits(&schema, &schema, &json), "{json:#}\n{schema:#}");
    }
}

#[test]
fn documents_fit_their_schema() {
    known(&one(
        std::fs::read_to_string(data("mesh-full.yaml")).unwrap()
    ));
    for name in ["vault", "acm", "cert-manager", "mesh-identity"] {
        known(&one(example(&format!("scenarios/{name}-kubernetes.yaml"))));
    }
    // Fields that need not be given.
    for text in [
        r#"{"type": "MeshTLS", "name": "a", "spec": {"rules": [{"default": {}}]}}"#,
        r#"{"type": "Mesh", "name": "a", "mtls": {}}"#,
        r#"{"type": "Mesh", "name": "a", "mtls": {"backends": [{"name": "a", "type": "builtin", "dpCert": {"rotation": {}}, "rootChain": {}, "conf": {"caCert": {}}}]}}"#,
        r#"{"type": "MeshIdentity", "name": "a", "spec": {"provider": {"type": "Spire", "spire": {"agent": {}}}}}"#,
        r#"{"apiVersion": "v1", "kind": "Secret", "type": "system.kuma.io/secret", "metadata": {"name": "a", "uid": "x"}, "immutable": true, "stringData": {"value": "a"}}"#,
    ] {
        let resource = one(text);
        let schema = schema(resource.kind(), resource.metadata().form);
        assert!(
            fits(&schema, &schema, &serde_json::from_str(text).unwrap()),
            "{text}\n{schema:#}"
        );
    }
}

#[test]
fn what_is_wrong_does_not_fit() {
    for text in [
        r#"{"type": "MeshIdentity", "name": "a", "spec": {"slector": {}}}"#,
        r#"{"type": "MeshIdentity", "name": "a"}"#,
        r#"{"type": "MeshIdentity", "name": "a", "spec": {"provider": {"type": "Bundle"}}}"#,
        r#"{"type": "MeshTLS", "name": "a", "spec": {"rules": [{"default": {"mode": "STRICT"}}]}}"#,
        r#"{"type": "Mesh", "name": "a", "mtls": {"enabled": "a"}}"#,
        r#"{"type": "MeshTrust", "name": "a", "spec": {"trustDomain": "a"}}"#,
    ] {
        let value: Json = serde_json::from_str(text).unwrap();
        let schema = schema(value["type"].as_str().unwrap(), Form::Universal);
        assert!(!fits(&schema, &schema, &value), "{text}");
        assert!(Resource::parse(text).is_err());
    }
}

proptest! {
    #[test]
    fn every_field_is_in_the_schema(resource in any_resource()) {
        known(&resource);
    }
}
