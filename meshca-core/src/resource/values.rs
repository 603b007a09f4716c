//! Readers of plain values.

use std::collections::BTreeMap;

use super::decode::Cursor;
use super::free_form::FreeForm;
use super::node::{Entry, Value};

/// Reads a text that is not empty.
pub fn non_empty(at: Cursor<'_>) -> Option<String> {
    match at.text()? {
        "" => at.error("must not be empty"),
        text => Some(text.to_owned()),
    }
}

/// Reads `true` or `false`.
pub fn boolean(at: Cursor<'_>) -> Option<bool> {
    match at.node.value {
        Value::Bool(value) => Some(value),
        Value::Str(ref text) => match text.as_ref() {
            "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => at.error(format_args!(
                "expected true or false, and `{text}` is a string: write `true`"
            )),
            "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => at.error(format_args!(
                "expected true or false, and `{text}` is a string: write `false`"
            )),
            _ => at.error("expected true or false, without quotes, found a string"),
        },
        _ => at.expected("true or false"),
    }
}

/// Reads a whole number, from 0 on.
pub fn integer(at: Cursor<'_>) -> Option<u32> {
    match at.node.value {
        Value::Int(value) => match u32::try_from(value) {
            Ok(value) => Some(value),
            Err(_) => at.error(format_args!("must be between 0 and {}", u32::MAX)),
        },
        Value::UInt(_) => at.error(format_args!("must be between 0 and {}", u32::MAX)),
        _ => at.expected("a whole number"),
    }
}

pub(crate) fn string_map(at: Cursor<'_>) -> Option<BTreeMap<String, String>> {
    let Value::Map(entries) = &at.node.value else {
        return at.expected("a mapping");
    };
    let mut map = Some(BTreeMap::new());
    for Entry { key, value, .. } in entries {
        let path = at.path.field(key);
        match Cursor::new(value, &path, at.context).text() {
            Some(text) => {
                if let Some(map) = &mut map {
                    map.insert(key.to_string(), text.to_owned());
                }
            }
            None => map = None,
        }
    }
    map
}

pub(crate) fn free_form(at: Cursor<'_>) -> Option<FreeForm> {
    match &at.node.value {
        Value::Map(entries) => Some(FreeForm::from_entries(entries.iter())),
        _ => at.expected("a mapping"),
    }
}
