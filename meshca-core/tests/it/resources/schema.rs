//! The JSON Schemas take what is read and refuse what is not.

use meshca_core::resource::settings::{self, Fields, Settings, SettingsType};
use meshca_core::resource::*;
use proptest::prelude::*;
use serde_json::Value as Json;

use crate::resources::round_trip::any_resource;
use crate::resources::{data, example, one};

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

/// Whether a value is what a schema says: the part of JSON Schema (draft 2020-12) that is used here.
/// The crates that know all of it need other versions of what is in the tree already.
fn fits(root: &Json, schema: &Json, value: &Json) -> bool {
    let Json::Object(keywords) = schema else {
        return schema == &Json::Bool(true);
    };
    keywords
        .iter()
        .all(|(keyword, rule)| keeps(root, keywords, keyword, rule, value))
}

fn keeps(
    root: &Json,
    schema: &serde_json::Map<String, Json>,
    keyword: &str,
    rule: &Json,
    value: &Json,
) -> bool {
    let fit = |schema: &Json| fits(root, schema, value);
    let list = || rule.as_array().unwrap();
    let properties = |rule: &Json| rule.as_object().cloned().unwrap_or_default();
    match keyword {
        "$schema" | "$defs" | "title" | "description" | "contentEncoding" | "default"
        | "examples" => true,
        // Both are judged with `if`.
        "then" => schema.contains_key("if"),
        "format" => matches!(rule.as_str(), Some("uint32")),
        "$ref" => {
            let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
            fit(root["$defs"].get(name).unwrap())
        }
        "type" => match rule {
            Json::String(name) => is_type(name, value),
            _ => list()
                .iter()
                .any(|name| is_type(name.as_str().unwrap(), value)),
        },
        "const" => rule == value,
        "enum" => list().contains(value),
        "minimum" => value
            .as_f64()
            .is_none_or(|number| number >= rule.as_f64().unwrap()),
        "minLength" => value
            .as_str()
            .is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap()),
        "minItems" => value
            .as_array()
            .is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
        "pattern" => value.as_str().is_none_or(|text| {
            regex::Regex::new(rule.as_str().unwrap())
                .unwrap()
                .is_match(text)
        }),
        "allOf" => list().iter().all(fit),
        "anyOf" => list().iter().any(fit),
        "oneOf" => list().iter().filter(|schema| fit(schema)).count() == 1,
        "not" => !fit(rule),
        "if" => !fit(rule) || fit(&schema["then"]),
        "required" => value.as_object().is_none_or(|fields| {
            list()
                .iter()
                .all(|name| fields.contains_key(name.as_str().unwrap()))
        }),
        "properties" => value.as_object().is_none_or(|fields| {
            properties(rule).iter().all(|(name, schema)| {
                fields
                    .get(name)
                    .is_none_or(|value| fits(root, schema, value))
            })
        }),
        "additionalProperties" => value.as_object().is_none_or(|fields| {
            let known = schema.get("properties").map(properties).unwrap_or_default();
            fields
                .iter()
                .filter(|(name, _)| !known.contains_key(*name))
                .all(|(_, value)| fits(root, rule, value))
        }),
        "items" => value
            .as_array()
            .is_none_or(|items| items.iter().all(|item| fits(root, rule, item))),
        other => panic!("the keyword `{other}` is not known here"),
    }
}

fn is_type(name: &str, value: &Json) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    }
}

fn fits_schema(json: &Json) -> bool {
    let (form, kind) = match json.get("kind") {
        Some(kind) => (Form::Kubernetes, kind),
        None => (Form::Universal, &json["type"]),
    };
    let schema = schema(kind.as_str().unwrap(), form);
    fits(&schema, &schema, json)
}

fn to_json(yaml: &str) -> Json {
    // A mesh takes any content.
    let text = format!("type: Mesh\nname: a\nx:\n  {}", yaml.replace('\n', "\n  "));
    let json: Json = serde_json::from_str(&one(text).to_json().unwrap()).unwrap();
    json["x"].clone()
}

#[track_caller]
fn known(resource: &Resource) {
    for form in [Form::Kubernetes, Form::Universal] {
        let json: Json = serde_json::from_str(&resource.to_json_as(form).unwrap()).unwrap();
        assert!(
            fits_schema(&json),
            "{json:#}\n{:#}",
            schema(resource.kind(), form)
        );
    }
}

#[test]
fn documents_fit_their_schema() {
    known(&one(
        std::fs::read_to_string(data("mesh-full.yaml")).unwrap()
    ));
    for name in ["vault", "acm", "cert-manager", "mesh-identity"] {
        for form in ["kubernetes", "universal"] {
            let text = example(&format!("scenarios/{name}-{form}.yaml"));
            assert!(fits_schema(&to_json(&text)), "{name}-{form}");
            known(&one(text));
        }
    }
    for name in ["mesh-builtin.yaml", "mesh-identity.yaml"] {
        assert!(fits_schema(&to_json(&example(name))), "{name}");
    }
    // Fields that need not be given, null instead of absent, and older shapes.
    let mesh = |backend: &str| {
        format!(
            "{{type: Mesh, name: a, mtls: {{enabledBackend: a, backends: [{backend}]}}, logging: {{x: 1}}}}"
        )
    };
    let provider =
        |provider: &str| format!("{{type: MeshIdentity, name: a, spec: {{provider: {provider}}}}}");
    let pem = std::fs::read_to_string(data("ca.pem")).unwrap();
    let pem = serde_json::to_string(&pem).unwrap();
    for text in [
        "{type: MeshTLS, name: a, spec: {rules: [{default: {}}]}}".to_owned(),
        "{type: MeshTLS, name: a, spec: {targetRef: {kind: Dataplane, labels: {a: b}}, rules: [{default: {mode: Strict}}]}}".into(),
        "{type: MeshTLS, name: a, spec: {from: [{targetRef: {kind: Mesh}, default: {tlsVersion: {min: TLS12}, tlsCiphers: [ECDHE-RSA-AES128-GCM-SHA256]}}]}}".into(),
        "{type: Mesh, name: a, mtls: {}}".into(),
        "{type: Mesh, name: a, mtls: null}".into(),
        "{type: Mesh, name: a, spec: {mtls: {backends: null, enabledBackend: null, skipValidation: null}}}".into(),
        mesh("{name: a, type: builtin, mode: null, dpCert: {rotation: {}}, rootChain: {}, conf: {caCert: {}}}"),
        mesh("{name: a, type: builtin, dpCert: {rotation: {expiration: 1d}, requestTimeout: 15ms}, conf: null}"),
        mesh("{name: a, type: builtin, conf: {caCert: {RSAbits: 2048, expiration: 10y}}}"),
        mesh("{name: a, type: provided, mode: PERMISSIVE, conf: {cert: {file: /a}, key: {inline: YQ==}}}"),
        mesh("{name: a, type: acm, conf: {arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x'}}"),
        mesh("{name: a, type: acmpca, conf: null, acm: {arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x', auth: {}}}"),
        mesh("{name: a, type: cert-manager, certManager: {issuerName: a, issuerKind: Issuer, dnsNames: [a.b]}}"),
        mesh("{name: a, type: certmanager, conf: {issuerRef: {name: a}, caCert: {secret: a}}}"),
        mesh("{name: a, type: certmanager, conf: {issuerRef: {name: a}, usages: [client auth, server auth], annotations: {a.b/c: d, e: ''}}}"),
        mesh("{name: a, type: acm, conf: {arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x', fips: true, endpoint: a, proxy: b, assumeRole: c, auth: {awsCredentials: {accessKey: {secret: a}, accessKeySecret: {secret: b}, sessionToken: {secret: c}}}}}"),
        mesh("{name: a, type: step-ca, conf: {url: 'https://a', deep: {down: [1]}}}"),
        mesh("{name: a, type: step-ca}"),
        mesh("{name: a, type: vault, dpCert: {rotation: {expiration: 1d}}, conf: {fromCp: {address: 'https://a', role: r, tls: {skipVerify: false}, auth: {appRole: {roleId: a, secretId: {secret: a}}}}}}"),
        provider("{type: Spire, spire: {agent: {}}}"),
        provider("{type: Spire, spire: {agent: {timeout: 1m30s}}}"),
        provider("{type: Spire}"),
        provider("{type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}, certificateParameters: {expiry: 1.5h}}}"),
        provider("{type: Extension, extension: {name: step-ca, config: {url: a, mode: Intermediate}}}"),
        provider("{type: Extension, extension: {name: step-ca}}"),
        provider("{type: Extension, extension: {name: builtin, config: {anything: 1}}}"),
        provider("{type: Extension, extension: {name: acm, config: {mode: Leaf, arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x'}}}"),
        provider("{type: Extension, extension: {name: certmanager, config: {issuerRef: {name: a}}}}"),
        provider("{type: Extension, extension: {name: vault, config: {fromCp: {address: 'http://a', role: r, auth: {token: {secret: t}}}}}}"),
        format!("{{type: MeshTrust, name: a, spec: {{trustDomain: a, caBundles: [{{type: Pem, pem: {{value: {pem}}}}}], origin: {{kri: kri_mid_m_east_kuma-system_a_}}}}}}"),
        "{apiVersion: v1, kind: Secret, type: system.kuma.io/secret, metadata: {name: a, uid: x}, immutable: true, stringData: {value: a}}".into(),
        "{type: Secret, name: a, mesh: m, data: aGVsbG8=}".into(),
        "{type: Secret, name: a, mesh: m, spec: {data: aGVsbG8=}}".into(),
    ] {
        one(&text);
        assert!(fits_schema(&to_json(&text)), "{text}");
    }
}

#[test]
fn what_is_wrong_does_not_fit() {
    let mesh = |backend: &str| {
        format!("{{type: Mesh, name: a, mtls: {{enabledBackend: a, backends: [{backend}]}}}}")
    };
    let vault = |from_cp: &str| {
        mesh(&format!(
            "{{name: a, type: vault, dpCert: {{rotation: {{expiration: 1d}}}}, conf: {{fromCp: {from_cp}}}}}"
        ))
    };
    let provider =
        |provider: &str| format!("{{type: MeshIdentity, name: a, spec: {{provider: {provider}}}}}");
    for text in [
        "{type: MeshIdentity, name: a, spec: {slector: {}}}".to_owned(),
        "{type: MeshIdentity, name: a}".into(),
        "{type: MeshIdentity, name: a, spec: {selector: {dataplane: {matchLabel: {a: b}}}}}".into(),
        provider("{type: Bundle}"),
        provider("{type: Bundled, bundled: {autogenerate: {enabled: yes}}}"),
        provider("{type: Bundled, bundled: {insecureAllowSelfsigned: true, autogenerate: {enabled: true}}}"),
        provider("{type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}, certificateParameters: {expiry: 1d}}}"),
        provider("{type: Bundled, bundled: {ca: {certificate: {type: File, secretRef: {kind: Secret, name: a}}, privateKey: {type: Secret, secretRef: {kind: Secret, name: a}}}}}"),
        provider("{type: Bundled, bundled: {ca: {certificate: {type: File, file: {path: a}}, privateKey: {type: Secret, secretRef: {kind: Secret, name: a}}}}}"),
        provider("{type: Spire, spire: {agent: {timeout: 5}}}"),
        provider("{type: Extension, extension: {name: vault}}"),
        provider("{type: Extension, extension: {name: vault, config: {url: a}}}"),
        provider("{type: Extension, extension: {name: acm, config: {mode: leaf, arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x'}}}"),
        provider("{type: Extension, extension: {name: step-ca, config: {mode: leaf}}}"),
        "{type: MeshTLS, name: a, spec: {rules: [{default: {mode: STRICT}}]}}".into(),
        "{type: MeshTLS, name: a, spec: {rules: [{default: {tlsVersion: {min: TLS14}}}]}}".into(),
        "{type: Mesh, name: a, mtls: {enabled: a}}".into(),
        "{type: Mesh, name: a, mtls: {enabledBakend: a}}".into(),
        "{apiVersion: kuma.io/v1alpha1, kind: Mesh, metadata: {name: a}, spec: {mtls: {enabledBakend: a}}}".into(),
        "{apiVersion: kuma.io/v1alpha1, kind: Mesh, metadata: {nmae: a}}".into(),
        "{type: Mesh, name: a, spec: {mtls: {enabledBakend: a}}}".into(),
        mesh("{name: a, type: builtin, bogus: 1}"),
        mesh("{name: A, type: builtin}"),
        mesh("{name: a, type: builtin, mode: strict}"),
        mesh("{name: a, type: builtin, conf: {caCert: {RSAbits: '2048'}}}"),
        mesh("{name: a, type: builtin, conf: {caCert: {RSAbits: 1024}}}"),
        mesh("{name: a, type: builtin, conf: {caCert: {expiration: 1h30m}}}"),
        mesh("{name: a, type: builtin, conf: {url: a}}"),
        mesh("{name: a, type: builtin, acm: {arn: a}}"),
        mesh("{name: a, type: provided}"),
        mesh("{name: a, type: provided, conf: {cert: {file: /a}}}"),
        mesh("{name: a, type: provided, conf: {cert: {file: /a, secret: b}, key: {secret: c}}}"),
        mesh("{name: a, type: acm, conf: {issuerRef: {name: a}}}"),
        mesh("{name: a, type: acm, acm: {arn: 'arn:aws:s3:::bucket'}}"),
        mesh("{name: a, type: cert-manager, acm: {arn: a}}"),
        mesh("{name: a, type: certmanager, conf: {issuerRef: {name: a}, usages: [cert sign]}}"),
        mesh("{name: a, type: certmanager, conf: {issuerRef: {name: a}, usages: []}}"),
        mesh("{name: a, type: certmanager, conf: {issuerRef: {name: a}, annotations: {a: 1}}}"),
        mesh("{name: a, type: acm, conf: {arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x', fips: 'true'}}"),
        mesh("{name: a, type: step-ca, acm: {a: 1}}"),
        mesh("{name: a, type: step-ca, conf: 1}"),
        vault("{adress: 'https://a', role: r, auth: {token: {secret: t}}}"),
        vault("{address: 'a', role: r, auth: {token: {secret: t}}}"),
        vault("{address: 'https://a', role: r, auth: {tokn: {secret: t}}}"),
        vault("{address: 'https://a', role: r, auth: {token: {secret: t, file: f}}}"),
        vault("{address: 'https://a', role: r, auth: {token: {secret: t}, kubernetes: {role: r}}}"),
        vault("{address: 'https://a', role: r, tls: {skipVerify: 'true'}, auth: {token: {secret: t}}}"),
        "{type: MeshTrust, name: a, spec: {trustDomain: a}}".into(),
        "{type: MeshTrust, name: a, spec: {trustDomain: a, caBundles: [{type: PEM, pem: {value: a}}]}}".into(),
        "{type: Secret, name: a, data: 1}".into(),
        "{apiVersion: v1, kind: Secret, metadata: {name: a}, data: {value: YQ==}}".into(),
        "{apiVersion: v1, kind: Secret, type: Opaque, metadata: {name: a}, data: {value: YQ==}}".into(),
        "{apiVersion: v1, kind: Secret, type: system.kuma.io/secret, metadata: {name: a}, data: {value: YQ==, other: YQ==}}".into(),
    ] {
        assert!(!fits_schema(&to_json(&text)), "{text}");
        assert!(Resource::parse(&text).is_err(), "{text}");
    }
}

fn descriptions(schema: &Json) -> Vec<&str> {
    match schema {
        Json::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| match (name.as_str(), value) {
                ("description", Json::String(text)) => vec![text.as_str()],
                _ => descriptions(value),
            })
            .collect(),
        Json::Array(items) => items.iter().flat_map(descriptions).collect(),
        _ => Vec::new(),
    }
}

/// Names and descriptions are read by people who do not know the code.
#[test]
fn nothing_internal_leaks() {
    for kind in ["Mesh", "MeshIdentity", "MeshTrust", "MeshTLS", "Secret"] {
        for form in [Form::Kubernetes, Form::Universal] {
            let schema = schema(kind, form);
            for name in schema["$defs"].as_object().unwrap().keys() {
                assert!(
                    !name.contains("Wire") && !name.ends_with(char::is_numeric),
                    "{name}"
                );
            }
            for description in descriptions(&schema) {
                for internal in ["](", "Self::", "[`", "is written"] {
                    assert!(!description.contains(internal), "{kind}: {description}");
                }
            }
        }
    }
}

/// Settings of a type that is not ours.
#[derive(Debug, PartialEq, serde::Serialize)]
struct Theirs {
    url: String,
}

impl Settings for Theirs {
    const TYPE: &'static str = "theirs";

    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let url = fields.required("url", settings::non_empty);
        fields.opt("note", settings::non_empty);
        Some(Self { url: url? })
    }

    fn schema() -> Option<FreeForm> {
        let text = serde_json::json!({ "type": "string", "minLength": 1 });
        let schema = serde_json::json!({
            "type": "object", "properties": { "url": text, "note": text }, "required": ["url"],
        });
        FreeForm::from_serialize(&schema).ok()
    }
}

#[test]
fn a_schema_with_a_third_party_takes_what_its_reader_takes() {
    let theirs = SettingsType::of::<Theirs>();
    let options = ParseOptions::new().settings([theirs]);
    let types = [theirs];
    for (settings, sound) in [
        ("CONF: {url: a}", true),
        ("CONF: {url: a, note: b}", true),
        ("CONF: {url: a, note: null}", true),
        ("CONF: {url: a, nota: b}", false),
        ("CONF: {url: 1}", false),
        ("CONF: {url: a, note: ''}", false),
        ("CONF: {note: b}", false),
        ("CONF: {}", false),
        ("CONF: null", false),
        ("mode: STRICT", false),
    ] {
        let classic = format!(
            "{{type: Mesh, name: a, mtls: {{backends: [{{name: a, type: theirs, {}}}]}}}}",
            settings.replace("CONF", "conf")
        );
        let modern = format!(
            "{{type: MeshIdentity, name: a, spec: {{provider: {{type: Extension, extension: {{name: theirs, {}}}}}}}}}",
            settings.replace("CONF", "config")
        );
        for (text, schema) in [
            (classic, Mesh::json_schema_with(Form::Universal, &types)),
            (
                modern,
                MeshIdentity::json_schema_with(Form::Universal, &types),
            ),
        ] {
            let schema: Json = serde_json::from_str(&schema).unwrap();
            assert_eq!(fits(&schema, &schema, &to_json(&text)), sound, "{text}");
            assert_eq!(options.parse(&text).is_ok(), sound, "{text}");
        }
    }
}

proptest! {
    #[test]
    fn every_field_is_in_the_schema(resource in any_resource()) {
        known(&resource);
    }
}
