//! A tree of values in which every key and value knows its place.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::violation::Location;

/// A value and the place where it starts.
#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    pub(crate) value: Value<'a>,
    pub(crate) at: Location,
}

#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Above `i64::MAX`.
    UInt(u64),
    /// Always finite.
    Float(f64),
    Str(Cow<'a, str>),
    Seq(Vec<Node<'a>>),
    Map(Vec<Entry<'a>>),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) key_at: Location,
    pub(crate) value: Node<'a>,
}

impl<'a> Entry<'a> {
    pub(crate) fn unlocated(key: impl Into<Cow<'a, str>>, value: Node<'a>) -> Self {
        Self {
            key: key.into(),
            key_at: Location::NONE,
            value,
        }
    }
}

impl<'a> Node<'a> {
    /// A value that was not read from text.
    pub(crate) fn unlocated(value: Value<'a>) -> Self {
        Self {
            value,
            at: Location::NONE,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// What the value is, for "expected …, found …".
    pub(crate) fn describe(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::UInt(_) | Value::Float(_) => "a number",
            Value::Str(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node<'a>> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The text in a field of this mapping.
    pub(crate) fn text_of(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Whether a field of this mapping is this text.
    pub(crate) fn says(&self, key: &str, expected: &str) -> bool {
        self.text_of(key) == Some(expected)
    }

    pub(crate) fn to_json(&self) -> Json {
        // It cannot fail: keys are texts.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// What an alias to this value adds to the count of values: texts weigh by their length, since
    /// every copy may have to be held.
    pub(super) fn weight(&self) -> usize {
        match &self.value {
            Value::Str(text) => text_weight(text),
            Value::Seq(items) => 1 + items.iter().map(Node::weight).sum::<usize>(),
            Value::Map(entries) => {
                1 + entries
                    .iter()
                    .map(|entry| text_weight(&entry.key) + entry.value.weight())
                    .sum::<usize>()
            }
            _ => 1,
        }
    }

    pub(super) fn depth(&self) -> usize {
        match &self.value {
            Value::Seq(items) => 1 + items.iter().map(Node::depth).max().unwrap_or_default(),
            Value::Map(entries) => {
                let depths = entries.iter().map(|entry| entry.value.depth());
                1 + depths.max().unwrap_or_default()
            }
            _ => 0,
        }
    }
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) => serializer.serialize_i64(*value),
            Value::UInt(value) => serializer.serialize_u64(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Str(text) => serializer.serialize_str(text),
            Value::Seq(items) => serializer.collect_seq(items),
            Value::Map(entries) => {
                serializer.collect_map(entries.iter().map(|it| (&it.key, &it.value)))
            }
        }
    }
}

pub(super) fn text_weight(text: &str) -> usize {
    1 + text.len() / 32
}
