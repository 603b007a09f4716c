//! The fields of a resource: each has a name, a [`Codec`] for its value, and may be absent or not.
//!
//! The macros of [`declare`](super::declare) make types of them.

#[cfg(feature = "schema")]
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::decode::{Cursor, Fields};
#[cfg(feature = "schema")]
use super::describe::Object;
use super::free_form::FreeForm;

/// Lets bounds name `JsonSchema` where no schema is made.
#[cfg(not(feature = "schema"))]
mod without_schema {
    pub(crate) trait JsonSchema {}
    impl<T: ?Sized> JsonSchema for T {}
}
#[cfg(not(feature = "schema"))]
use without_schema::JsonSchema;

/// Reads a value, writes it, and describes it in the JSON Schema.
///
/// A reading function is a codec if the type that it returns implements `Serialize` and `JsonSchema`.
pub(crate) trait Codec {
    type Value;

    /// Returns `None` after it has recorded a violation, and for a [`Group`] whose field is absent.
    fn read(&self, at: Cursor<'_>) -> Option<Self::Value>;

    fn write<S: Serializer>(&self, value: &Self::Value, serializer: S) -> Result<S::Ok, S::Error>;

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema;
}

impl<T: Serialize + JsonSchema, F: Fn(Cursor<'_>) -> Option<T>> Codec for F {
    type Value = T;

    fn read(&self, at: Cursor<'_>) -> Option<T> {
        self(at)
    }

    fn write<S: Serializer>(&self, value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// A value on its way to being written.
struct Written<'w, C: Codec>(&'w C, &'w C::Value);

impl<C: Codec> Serialize for Written<'_, C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.write(self.1, serializer)
    }
}

/// A list.
pub(crate) struct Each<C>(pub(crate) C);

impl<C: Codec> Codec for Each<C> {
    type Value = Vec<C::Value>;

    fn read(&self, at: Cursor<'_>) -> Option<Self::Value> {
        at.list(|at| self.0.read(at))
    }

    fn write<S: Serializer>(&self, values: &Self::Value, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| Written(&self.0, value)))
    }

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "array", "items": self.0.schema(generator) })
    }
}

/// A mapping of one field, which stands for the value of that field.
pub(crate) struct Group<C: Codec, H>(pub(crate) Field<C, H>);

impl<C: Codec, H> Codec for Group<C, H> {
    type Value = C::Value;

    fn read(&self, at: Cursor<'_>) -> Option<Self::Value> {
        at.mapping(|f| self.0.content(f))
    }

    fn write<S: Serializer>(&self, value: &Self::Value, serializer: S) -> Result<S::Ok, S::Error> {
        let Field { name, codec, .. } = &self.0;
        serializer.collect_map([(name, Written(codec, value))])
    }

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        let mut object = Object::new(&[]);
        self.0.describe(&mut object, &[], generator);
        object.finish()
    }
}

/// One of a few words, for a type that is spelt in several ways or has no words of its own.
pub(crate) struct Choice<T: 'static>(pub(crate) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Codec for Choice<T> {
    type Value = T;

    fn read(&self, at: Cursor<'_>) -> Option<T> {
        at.choice(self.0)
    }

    fn write<S: Serializer>(&self, value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(word(self.0, value))
    }

    #[cfg(feature = "schema")]
    fn schema(&self, _: &mut SchemaGenerator) -> Schema {
        let words = self.0.iter().map(|(word, _)| (*word, [].as_slice()));
        super::describe::words(&[], &words.collect::<Vec<_>>())
    }
}

pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    let found = words.iter().find(|(_, other)| other == value);
    found.map(|(word, _)| *word).unwrap_or_default()
}

/// A value that is written as one of another type, which has the shape of the document.
struct Spelt<T, W> {
    read: fn(Cursor<'_>) -> Option<T>,
    shape: W,
}

pub(crate) fn spelt<T, S: Serialize + JsonSchema>(
    read: fn(Cursor<'_>) -> Option<T>,
    shape: fn(&T) -> S,
) -> impl Codec<Value = T> {
    try_spelt(read, move |value| Ok(shape(value)))
}

/// The same where some values cannot be written; `shape` says why.
pub(crate) fn try_spelt<T, S: Serialize + JsonSchema>(
    read: fn(Cursor<'_>) -> Option<T>,
    shape: impl Fn(&T) -> Result<S, &'static str>,
) -> impl Codec<Value = T> {
    Spelt { read, shape }
}

impl<T, S: Serialize + JsonSchema, W: Fn(&T) -> Result<S, &'static str>> Codec for Spelt<T, W> {
    type Value = T;

    fn read(&self, at: Cursor<'_>) -> Option<T> {
        (self.read)(at)
    }

    fn write<Z: Serializer>(&self, value: &T, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let shape = (self.shape)(value).map_err(Z::Error::custom)?;
        shape.serialize(serializer)
    }

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<S>()
    }
}

/// A codec whose schema says more than the type does, such as a pattern.
pub(crate) struct Described<C>(
    pub(crate) C,
    #[cfg_attr(
        not(feature = "schema"),
        allow(dead_code, reason = "only the schema needs it")
    )]
    pub(crate) fn() -> Json,
);

impl<C: Codec> Codec for Described<C> {
    type Value = C::Value;

    fn read(&self, at: Cursor<'_>) -> Option<Self::Value> {
        self.0.read(at)
    }

    fn write<S: Serializer>(&self, value: &Self::Value, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.write(value, serializer)
    }

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        let mut schema = self.0.schema(generator);
        if let (Some(schema), Json::Object(keywords)) = (schema.as_object_mut(), (self.1)()) {
            schema.extend(keywords);
        }
        schema
    }
}

/// A field of a mapping: its name, its codec, and what the struct holds (`H`), also if the field is absent.
pub(crate) struct Field<C: Codec, H> {
    pub(super) name: &'static str,
    codec: C,
    /// The message where the field is absent and must be there.
    missing: Option<&'static str>,
    /// Makes what the struct holds of what was read, if that is possible.
    hold: fn(Option<C::Value>) -> Option<H>,
    /// Returns what is written, unless the field stays absent.
    written: fn(&H) -> Option<&C::Value>,
}

/// The field must be there.
pub(crate) fn required<C: Codec>(name: &'static str, codec: C) -> Field<C, C::Value> {
    Field {
        name,
        codec,
        missing: Some("must be set"),
        hold: |content| content,
        written: |held| Some(held),
    }
}

/// The field may be absent.
pub(crate) fn optional<C: Codec>(name: &'static str, codec: C) -> Field<C, Option<C::Value>> {
    Field {
        name,
        codec,
        missing: None,
        hold: Some,
        written: Option::as_ref,
    }
}

/// The absence of the field means the default, which is not written either.
pub(crate) fn defaulted<C: Codec>(name: &'static str, codec: C) -> Field<C, C::Value>
where
    C::Value: Default + PartialEq,
{
    Field {
        missing: None,
        hold: |content| Some(content.unwrap_or_default()),
        written: |held| (*held != C::Value::default()).then_some(held),
        ..required(name, codec)
    }
}

impl<C: Codec> Field<C, C::Value> {
    /// The same with another message where the field is missing.
    pub(crate) fn or_say(mut self, message: &'static str) -> Self {
        self.missing = Some(message);
        self
    }
}

impl<C: Codec, H> Field<C, H> {
    /// Reads what the document says. `None` if that is wrong or absent.
    pub(crate) fn content(&self, f: &mut Fields<'_>) -> Option<C::Value> {
        let read = |at: Cursor<'_>| self.codec.read(at);
        match self.missing {
            Some(message) => f.demanded(self.name, message, read),
            None => f.opt(self.name, read),
        }
    }

    /// Reads what the struct holds.
    pub(crate) fn read(&self, f: &mut Fields<'_>) -> Option<H> {
        (self.hold)(self.content(f))
    }

    pub(crate) fn write<M: SerializeMap>(&self, held: &H, map: &mut M) -> Result<(), M::Error> {
        match (self.written)(held) {
            Some(content) => map.serialize_entry(self.name, &Written(&self.codec, content)),
            None => Ok(()),
        }
    }

    #[cfg(feature = "schema")]
    pub(crate) fn describe(
        &self,
        object: &mut Object,
        doc: &[&str],
        generator: &mut SchemaGenerator,
    ) {
        let content = self.codec.schema(generator);
        object.add(self.name, self.missing.is_some(), doc, content);
    }
}

/// Fields that are not ours: they have no meaning here, and are written back as they are.
pub(crate) enum Foreign {
    /// Those of these names.
    Named(&'static [&'static str]),
    /// All that are left, unless they are near misses of `ours`. These are not suspected: `theirs`.
    Rest {
        ours: &'static [&'static str],
        theirs: &'static [&'static str],
    },
}

impl Foreign {
    pub(crate) fn read(&self, f: &mut Fields<'_>) -> Option<FreeForm> {
        match self {
            Self::Named(names) => Some(f.keep(names)),
            Self::Rest { ours, theirs } => Some(f.rest(ours, theirs)),
        }
    }

    pub(crate) fn write<M: SerializeMap>(
        &self,
        fields: &FreeForm,
        map: &mut M,
    ) -> Result<(), M::Error> {
        fields
            .fields()
            .try_for_each(|(name, value)| map.serialize_entry(name, value))
    }

    #[cfg(feature = "schema")]
    pub(crate) fn describe(&self, object: &mut Object, _: &[&str], _: &mut SchemaGenerator) {
        match self {
            Self::Named(names) => names
                .iter()
                .for_each(|name| object.add(name, false, &[], true.into())),
            Self::Rest { .. } => object.open(),
        }
    }
}
