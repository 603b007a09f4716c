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
        Value::Str(ref text) => {
            let meant = match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "y" => true,
                "no" | "off" | "n" => false,
                _ => return at.error("expected true or false, without quotes, found a string"),
            };
            at.error(format_args!(
                "expected true or false, and `{text}` is a string: write `{meant}`"
            ))
        }
        _ => at.expected("true or false"),
    }
}

/// Reads a whole number, from 0 on.
pub fn integer(at: Cursor<'_>) -> Option<u32> {
    let value = match at.node.value {
        Value::Int(value) => u32::try_from(value).ok(),
        Value::UInt(_) => None,
        _ => return at.expected("a whole number"),
    };
    value.or_else(|| at.error(format_args!("must be between 0 and {}", u32::MAX)))
}

pub(crate) fn string_map(at: Cursor<'_>) -> Option<BTreeMap<String, String>> {
    let Value::Map(entries) = &at.node.value else {
        return at.expected("a mapping");
    };
    let mut map = BTreeMap::new();
    for Entry { key, value, .. } in entries {
        let path = at.path.field(key);
        if let Some(text) = Cursor::new(value, &path, at.context).text() {
            map.insert(key.to_string(), text.to_owned());
        }
    }
    // A mapping has each key once.
    (map.len() == entries.len()).then_some(map)
}

pub(crate) fn free_form(at: Cursor<'_>) -> Option<FreeForm> {
    match &at.node.value {
        Value::Map(entries) => Some(FreeForm::from_entries(entries.iter())),
        _ => at.expected("a mapping"),
    }
}
