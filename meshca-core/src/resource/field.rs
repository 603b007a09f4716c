//! The fields of a resource: each has a name, a [`Codec`] for its value, and may be absent or not.
//!
//! The macros of [`declare`](super::declare) make types of them.

use std::marker::PhantomData;

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

    /// Returns `None` after it has recorded a violation, and for a [`group`] whose field is absent.
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
pub(crate) struct Each<C>(C);

pub(crate) fn each<C: Codec>(codec: C) -> Each<C> {
    Each(codec)
}

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
pub(crate) struct Group<C, P>(Field<C, P>);

pub(crate) fn group<C, P>(field: Field<C, P>) -> Group<C, P> {
    Group(field)
}

impl<C: Codec, P: Presence<C::Value>> Codec for Group<C, P> {
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
        let words: Vec<_> = self
            .0
            .iter()
            .map(|(word, _)| (*word, [].as_slice()))
            .collect();
        super::describe::words(&[], &words)
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
pub(crate) struct Described<C> {
    codec: C,
    #[cfg_attr(
        not(feature = "schema"),
        allow(dead_code, reason = "only the schema needs it")
    )]
    keywords: fn() -> Json,
}

pub(crate) fn described<C: Codec>(codec: C, keywords: fn() -> Json) -> Described<C> {
    Described { codec, keywords }
}

impl<C: Codec> Codec for Described<C> {
    type Value = C::Value;

    fn read(&self, at: Cursor<'_>) -> Option<Self::Value> {
        self.codec.read(at)
    }

    fn write<S: Serializer>(&self, value: &Self::Value, serializer: S) -> Result<S::Ok, S::Error> {
        self.codec.write(value, serializer)
    }

    #[cfg(feature = "schema")]
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        let mut schema = self.codec.schema(generator);
        if let (Some(schema), Json::Object(keywords)) = (schema.as_object_mut(), (self.keywords)())
        {
            schema.extend(keywords);
        }
        schema
    }
}

/// A field of a mapping: its name, its codec, and whether it may be absent.
pub(crate) struct Field<C, P> {
    pub(super) name: &'static str,
    codec: C,
    /// The reason why the field must be there, for the message.
    reason: Option<&'static str>,
    presence: PhantomData<P>,
}

/// The presence of a field: it says what the struct holds if the field is absent.
pub(crate) trait Presence<T> {
    type Held;
    const REQUIRED: bool;

    /// Makes what the struct holds of what was read, if that is possible.
    fn hold(content: Option<T>) -> Option<Self::Held>;

    /// Returns what is written, unless the field stays absent.
    fn written(held: &Self::Held) -> Option<&T>;
}

/// The field must be there.
pub(crate) enum Required {}

impl<T> Presence<T> for Required {
    type Held = T;
    const REQUIRED: bool = true;

    fn hold(content: Option<T>) -> Option<T> {
        content
    }

    fn written(held: &T) -> Option<&T> {
        Some(held)
    }
}

/// The field may be absent.
pub(crate) enum Optional {}

impl<T> Presence<T> for Optional {
    type Held = Option<T>;
    const REQUIRED: bool = false;

    fn hold(content: Option<T>) -> Option<Option<T>> {
        Some(content)
    }

    fn written(held: &Option<T>) -> Option<&T> {
        held.as_ref()
    }
}

/// The absence of the field means the default, which is not written either.
pub(crate) enum Defaulted {}

impl<T: Default + PartialEq> Presence<T> for Defaulted {
    type Held = T;
    const REQUIRED: bool = false;

    fn hold(content: Option<T>) -> Option<T> {
        Some(content.unwrap_or_default())
    }

    fn written(held: &T) -> Option<&T> {
        (*held != T::default()).then_some(held)
    }
}

pub(crate) fn required<C>(name: &'static str, codec: C) -> Field<C, Required> {
    Field::new(name, codec)
}

pub(crate) fn optional<C>(name: &'static str, codec: C) -> Field<C, Optional> {
    Field::new(name, codec)
}

pub(crate) fn defaulted<C>(name: &'static str, codec: C) -> Field<C, Defaulted> {
    Field::new(name, codec)
}

impl<C, P> Field<C, P> {
    fn new(name: &'static str, codec: C) -> Self {
        Self {
            name,
            codec,
            reason: None,
            presence: PhantomData,
        }
    }
}

impl<C> Field<C, Required> {
    /// The same, with the reason in the message where the field is missing.
    pub(crate) fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }
}

impl<C: Codec, P: Presence<C::Value>> Field<C, P> {
    /// Reads what the document says. `None` if that is wrong or absent.
    pub(crate) fn content(&self, f: &mut Fields<'_>) -> Option<C::Value> {
        let read = |at: Cursor<'_>| self.codec.read(at);
        match self.reason {
            Some(reason) if !f.has(self.name) => {
                f.know(&[self.name]);
                f.missing(self.name, format_args!("must be set: {reason}"))
            }
            _ if P::REQUIRED => f.required(self.name, read),
            _ => f.opt(self.name, read),
        }
    }

    /// Reads what the struct holds.
    pub(crate) fn read(&self, f: &mut Fields<'_>) -> Option<P::Held> {
        P::hold(self.content(f))
    }

    pub(crate) fn write<M: SerializeMap>(
        &self,
        held: &P::Held,
        map: &mut M,
    ) -> Result<(), M::Error> {
        match P::written(held) {
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
        object.add(self.name, P::REQUIRED, doc, self.codec.schema(generator));
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
