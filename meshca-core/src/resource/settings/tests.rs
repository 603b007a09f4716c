use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use crate::resource::{DataSource, FreeForm, SecureDataSource};

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Settings {
    url: String,
    port: Option<u16>,
    ratio: f64,
    flags: Vec<bool>,
    ports: BTreeMap<u16, Name>,
    way: Option<Way>,
    nested: Nested,
    token: Option<DataSource>,
    key: Option<SecureDataSource>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
struct Nested {
    list: Vec<Required>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Required {
    name: Name,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Name(String);

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Way {
    Plain,
    Login(Name),
    Pair(u8, u8),
    Named { user: String },
}

fn decode(json: serde_json::Value) -> Result<Settings, String> {
    FreeForm::from_serialize(&json)
        .unwrap()
        .decode::<Settings>()
        .map_err(|error| error.to_string())
}

#[test]
fn settings_of_all_shapes_are_read() {
    let settings = decode(json!({
        "url": "a", "port": 1, "ratio": 2, "flags": [true], "ports": { "80": "http" }, "way": "plain",
        "nested": { "list": [{ "name": "b", "more": 1 }] },
        "token": { "inline": "aGVsbG8=" }, "key": { "type": "EnvVar", "envVar": { "name": "KEY" } },
    }))
    .unwrap();
    assert_eq!(
        settings,
        Settings {
            url: "a".into(),
            port: Some(1),
            ratio: 2.0,
            flags: vec![true],
            ports: BTreeMap::from([(80, Name("http".into()))]),
            way: Some(Way::Plain),
            nested: Nested {
                list: vec![Required {
                    name: Name("b".into())
                }]
            },
            token: Some(DataSource::Inline("hello".into())),
            key: Some(SecureDataSource::EnvVar("KEY".into())),
        }
    );
    for (way, expected) in [
        (json!({ "login": "me" }), Way::Login(Name("me".into()))),
        (json!({ "pair": [1, 2] }), Way::Pair(1, 2)),
        (
            json!({ "named": { "user": "me" } }),
            Way::Named { user: "me".into() },
        ),
    ] {
        assert_eq!(decode(json!({ "way": way })).unwrap().way, Some(expected));
    }
    assert_eq!(
        decode(json!({ "port": null })).unwrap(),
        Settings::default()
    );
}

#[test]
fn errors_name_the_field_and_not_the_value() {
    for (json, message) in [
        (
            json!({ "url": 1 }),
            "url: expected a string, found a number",
        ),
        (
            json!({ "port": "hush" }),
            "port: expected a whole number from 0 (u16), found a string",
        ),
        (
            json!({ "port": 70000 }),
            "port: expected a whole number from 0 (u16), which this number is not",
        ),
        (
            json!({ "flags": [true, "hush"] }),
            "flags[1]: expected true or false, found a string",
        ),
        (
            json!({ "nested": { "list": [{ "name": "a" }, {}] } }),
            "nested.list[1].name: must be set",
        ),
        (
            json!({ "nested": "hush" }),
            "nested: expected a mapping, found a string",
        ),
        (
            json!({ "urll": "hush" }),
            "urll: unknown field, did you mean `url`?",
        ),
        (
            json!({ "x y": 1 }),
            "[\"x y\"]: unknown field: here can be `url`, `port`, `ratio`, `flags`, `ports`, `way`, `nested`, \
             `token` and `key`",
        ),
        (
            json!({ "way": "plian" }),
            "way: unknown value `plian`, did you mean `plain`?",
        ),
        (
            json!({ "way": {} }),
            "way: exactly one of `plain`, `login`, `pair` and `named` must be set",
        ),
        (
            json!({ "way": "login" }),
            "way: `login` needs settings: write it as a mapping",
        ),
        (
            json!({ "way": { "named": { "user": 1 } } }),
            "way.named.user: expected a string, found a number",
        ),
        (
            json!({ "token": { "secret": "a", "file": "b" } }),
            "token: exactly one of `secret`, `file`, `inline` and `inlineString` must be set, here are `secret` \
             and `file`",
        ),
        (
            json!({ "token": { "secert": "hush" } }),
            "token: secert: unknown field, did you mean `secret`?",
        ),
        (
            json!({ "key": { "type": "File", "file": { "path": "a" } } }),
            "key: file.path: must be an absolute path without `..`",
        ),
    ] {
        let error = decode(json).unwrap_err();
        assert_eq!(error, format!("the settings do not fit: {message}"));
        assert!(!error.contains("hush"), "{error}");
    }
}
