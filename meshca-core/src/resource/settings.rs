//! Foreign settings into a type of the caller's, with errors like those for resources: they name the
//! field, and never repeat the value, which may be a secret.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value as Json};

use super::decode::{Clip, List, nearest, write_field};

/// Reads the fields; the error begins with the field that is wrong.
pub(crate) fn decode<'de, T: Deserialize<'de>>(
    fields: &'de Map<String, Json>,
) -> Result<T, SettingsError> {
    T::deserialize(Fields(fields))
}

/// What does not fit, and where.
#[derive(Debug)]
pub(crate) struct SettingsError {
    /// From the value outwards.
    path: Vec<Segment>,
    message: String,
}

#[derive(Debug)]
enum Segment {
    Field(String),
    Index(usize),
}

impl SettingsError {
    fn new(message: impl fmt::Display) -> Self {
        Self {
            path: Vec::new(),
            message: message.to_string(),
        }
    }

    fn at(mut self, segment: Segment) -> Self {
        self.path.push(segment);
        self
    }

    /// The same, inside a field.
    pub(crate) fn inside(self, field: &str) -> Self {
        self.at(Segment::Field(field.to_owned()))
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.path.iter().rev().enumerate() {
            match segment {
                Segment::Field(name) => write_field(f, name, index > 0)?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        if !self.path.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for SettingsError {}

fn describe(unexpected: &Unexpected<'_>) -> &'static str {
    match unexpected {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Str(_) | Unexpected::Char(_) => "a string",
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a mapping",
        _ => "something else",
    }
}

impl de::Error for SettingsError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message)
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format_args!(
            "expected {}, found {}",
            Plainly(expected),
            describe(&unexpected)
        ))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format_args!(
            "expected {}, which this {} is not",
            Plainly(expected),
            describe(&unexpected).trim_start_matches("a ")
        ))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let error = match nearest(field, expected) {
            Some(meant) => Self::new(format_args!("unknown field, did you mean `{meant}`?")),
            None if expected.is_empty() => Self::new("unknown field: there are none"),
            None => Self::new(format_args!(
                "unknown field: here can be {}",
                List(expected)
            )),
        };
        error.inside(field)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        // The names of variants are short; what is longer may be something secret in the wrong place.
        let given = match variant.len() {
            0..=32 => format!(" `{}`", Clip(variant)),
            _ => String::new(),
        };
        match nearest(variant, expected) {
            Some(meant) => Self::new(format_args!(
                "unknown value{given}, did you mean `{meant}`?"
            )),
            None => Self::new(format_args!(
                "unknown value{given}: here can be {}",
                List(expected)
            )),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("must be set").inside(field)
    }
}

/// What serde's own types say that they expect, in the words of the reports.
struct Plainly<'e>(&'e dyn Expected);

impl fmt::Display for Plainly<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(match text.as_str() {
            "a boolean" => "true or false",
            "a sequence" => "a list",
            "a map" => "a mapping",
            other if other.starts_with("struct ") => "a mapping",
            "u8" | "u16" | "u32" | "u64" | "usize" => {
                return write!(f, "a whole number from 0 ({text})");
            }
            "i8" | "i16" | "i32" | "i64" | "isize" => return write!(f, "a whole number ({text})"),
            "f32" | "f64" => "a number",
            other => other,
        })
    }
}

struct Fields<'de>(&'de Map<String, Json>);

impl<'de> Deserializer<'de> for Fields<'de> {
    type Error = SettingsError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingsError> {
        visitor.visit_map(Entries {
            entries: self.0.iter(),
            value: None,
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingsError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        let mut entries = self.0.iter();
        match (entries.next(), entries.next()) {
            (Some((name, content)), None) => visitor.visit_enum(Variant {
                name,
                content: Some(content),
            }),
            _ => Err(SettingsError::new(format_args!(
                "exactly one of {} must be set",
                List(variants)
            ))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[derive(Clone, Copy)]
struct Content<'de>(&'de Json);

impl<'de> Deserializer<'de> for Content<'de> {
    type Error = SettingsError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingsError> {
        match self.0 {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(*value),
            Json::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => visitor.visit_borrowed_str(text),
            Json::Array(items) => visitor.visit_seq(Items {
                items: items.iter(),
                index: 0,
            }),
            Json::Object(fields) => Fields(fields).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingsError> {
        match self.0 {
            Json::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        match self.0 {
            Json::String(name) => visitor.visit_enum(Variant {
                name,
                content: None,
            }),
            Json::Object(fields) => Fields(fields).deserialize_enum(name, variants, visitor),
            _ => Err(SettingsError::new(format_args!(
                "expected one of {}",
                List(variants)
            ))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Json>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = SettingsError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, SettingsError> {
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        seed.deserialize(Content(item))
            .map(Some)
            .map_err(|error| error.at(Segment::Index(index)))
    }
}

struct Entries<'de> {
    entries: serde_json::map::Iter<'de>,
    value: Option<(&'de str, &'de Json)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = SettingsError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, SettingsError> {
        let Some((key, value)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, value));
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, SettingsError> {
        let (key, value) = self
            .value
            .take()
            .ok_or_else(|| SettingsError::new("a value without a key"))?;
        seed.deserialize(Content(value))
            .map_err(|error| error.inside(key))
    }
}

/// The name of a field, for types that are keyed by something else than text as well.
struct Key<'de>(&'de str);

macro_rules! number_keys {
    ($($method:ident $visit:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingsError> {
            match self.0.parse() {
                Ok(number) => visitor.$visit(number),
                Err(_) => visitor.visit_borrowed_str(self.0),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = SettingsError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingsError> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingsError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        visitor.visit_enum(Variant {
            name: self.0,
            content: None,
        })
    }

    number_keys! {
        deserialize_u8 visit_u8 deserialize_u16 visit_u16 deserialize_u32 visit_u32 deserialize_u64 visit_u64
        deserialize_i8 visit_i8 deserialize_i16 visit_i16 deserialize_i32 visit_i32 deserialize_i64 visit_i64
        deserialize_bool visit_bool
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

struct Variant<'de> {
    name: &'de str,
    content: Option<&'de Json>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = SettingsError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), SettingsError> {
        let name: StrDeserializer<'_, SettingsError> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> Variant<'de> {
    fn read<T>(
        self,
        read: impl FnOnce(Content<'de>) -> Result<T, SettingsError>,
    ) -> Result<T, SettingsError> {
        match self.content {
            Some(content) => read(Content(content)).map_err(|error| error.inside(self.name)),
            None => Err(SettingsError::new(format_args!(
                "`{}` needs settings: write it as a mapping",
                Clip(self.name)
            ))),
        }
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = SettingsError;

    fn unit_variant(self) -> Result<(), SettingsError> {
        match self.content {
            None => Ok(()),
            Some(_) => self.read(Deserialize::deserialize),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, SettingsError> {
        self.read(|content| seed.deserialize(content))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        self.read(|content| content.deserialize_any(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingsError> {
        self.read(|content| content.deserialize_any(visitor))
    }
}

#[cfg(test)]
mod tests;
