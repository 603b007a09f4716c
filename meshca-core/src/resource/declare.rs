//! One declaration for each type of a resource, from which it is read, written and described.
//!
//! - [`mapping!`] declares a struct. Beside each field stand its name in documents, whether it may
//!   be absent, and the [`Codec`](super::field::Codec) of its value.
//! - [`words!`] declares an enum of words.
//! - [`one_of!`] declares an enum of which a document sets exactly one field.
//! - [`tagged!`] declares an enum whose field `type` says which other field belongs to it.
//!
//! A rule between fields is code. It calls [`Mapping::read_fields`] and judges the result before
//! [`Fields::finish`] reports the unknown fields.

#[cfg(feature = "schema")]
use schemars::SchemaGenerator;
use serde::ser::SerializeMap;

use super::decode::{Cursor, Fields};
#[cfg(feature = "schema")]
use super::describe::Object;
use super::field::word;

/// Implements `JsonSchema`, under another name than the type's if `as` says so.
macro_rules! json_schema {
    ($name:ident $(as $schema:literal)?, $generator:ident => $body:expr) => {
        #[cfg(feature = "schema")]
        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                let names = [$($schema,)? stringify!($name)];
                names.first().copied().unwrap_or_default().into()
            }

            fn json_schema($generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                $body
            }
        }
    };
}
pub(crate) use json_schema;

/// A struct that [`mapping!`] declares.
pub(crate) trait Mapping: Sized {
    /// The fields one by one; `None` for a field that cannot be made.
    type Parts;

    /// Reads the fields for a type that has others as well, or judges some of them together.
    fn read_parts(f: &mut Fields<'_>) -> Self::Parts;

    /// Reads the fields, and leaves unknown ones to the caller.
    fn read_fields(f: &mut Fields<'_>) -> Option<Self>;

    fn write_fields<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error>;

    #[cfg(feature = "schema")]
    fn describe_fields(object: &mut Object, generator: &mut SchemaGenerator);

    fn read(at: Cursor<'_>) -> Option<Self> {
        at.mapping(Self::read_fields)
    }
}

/// Declares a struct and how documents spell its fields.
///
/// ```text
/// mapping! {
///     /// A range of TLS versions.
///     #[derive(Clone, Debug)]
///     pub struct TlsVersions as "Versions" {
///         /// The oldest.
///         pub min: Option<TlsVersion> = optional("min", TlsVersion::read),
///     }
/// }
/// ```
///
/// The first paragraph of a doc comment becomes the description in the JSON Schema. The struct has
/// its own name there unless `as` gives it another.
macro_rules! mapping {
    (
        $(#[doc = $doc:expr])*
        $(#[derive($($derive:ident),*)] $(#[$meta:meta])*)?
        $vis:vis struct $name:ident $(as $schema:literal)? {
            $($(#[doc = $field_doc:expr])* $field_vis:vis $field:ident: $type:ty = $declared:expr,)*
        }
    ) => {
        $(#[doc = $doc])*
        $(#[derive($($derive),*)] $(#[$meta])*)?
        $vis struct $name {
            $($(#[doc = $field_doc])* $field_vis $field: $type,)*
        }

        impl $crate::resource::declare::Mapping for $name {
            type Parts = ($(Option<$type>,)*);

            fn read_parts(f: &mut $crate::resource::decode::Fields<'_>) -> Self::Parts {
                ($($declared.read(f),)*)
            }

            fn read_fields(f: &mut $crate::resource::decode::Fields<'_>) -> Option<Self> {
                let ($($field,)*) = Self::read_parts(f);
                Some(Self { $($field: $field?,)* })
            }

            fn write_fields<M: ::serde::ser::SerializeMap>(
                &self,
                map: &mut M,
            ) -> ::std::result::Result<(), M::Error> {
                $($declared.write(&self.$field, map)?;)*
                Ok(())
            }

            #[cfg(feature = "schema")]
            fn describe_fields(
                object: &mut $crate::resource::describe::Object,
                generator: &mut ::schemars::SchemaGenerator,
            ) {
                $($declared.describe(object, &[$($field_doc),*], generator);)*
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::std::result::Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                $crate::resource::declare::Mapping::write_fields(self, &mut map)?;
                ::serde::ser::SerializeMap::end(map)
            }
        }

        $crate::resource::declare::json_schema! {
            $name $(as $schema)? , generator => {
                let mut object = $crate::resource::describe::Object::new(&[$($doc),*]);
                <Self as $crate::resource::declare::Mapping>::describe_fields(&mut object, generator);
                object.finish()
            }
        }
    };
}
pub(crate) use mapping;

/// An enum that [`words!`] declares.
pub(crate) trait Words: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];

    fn read(at: Cursor<'_>) -> Option<Self> {
        at.choice(Self::WORDS)
    }

    fn word(self) -> &'static str {
        word(Self::WORDS, &self)
    }
}

/// Declares an enum and the words that documents have for its variants.
macro_rules! words {
    (
        $(#[doc = $doc:expr])*
        #[derive($($derive:ident),*)]
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[doc = $variant_doc:expr])* $variant:ident = $word:literal $(($default:ident))?,)*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive($($derive,)* ::serde::Serialize)]
        $(#[$meta])*
        $vis enum $name {
            $($(#[doc = $variant_doc])* $(#[$default])? #[serde(rename = $word)] $variant,)*
        }

        impl $crate::resource::declare::Words for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),*];
        }

        $crate::resource::declare::json_schema! {
            $name, _generator => {
                $crate::resource::describe::words(&[$($doc),*], &[$(($word, &[$($variant_doc),*])),*])
            }
        }
    };
}
pub(crate) use words;

/// Declares an enum of which a document sets exactly one field.
macro_rules! one_of {
    (
        $(#[doc = $doc:expr])*
        #[derive($($derive:ident),*)]
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[doc = $variant_doc:expr])* $variant:ident($content:ty) = ($field:literal, $codec:expr),)*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive($($derive),*)]
        $(#[$meta])*
        $vis enum $name {
            $($(#[doc = $variant_doc])* $variant($content),)*
        }

        impl $name {
            pub(super) fn read(at: $crate::resource::decode::Cursor<'_>) -> Option<Self> {
                at.mapping(|f| {
                    let one = f.exactly_one(&[$($field),*]);
                    let given = [$($crate::resource::field::optional($field, $codec).content(f).map(Self::$variant)),*];
                    one.and(given.into_iter().flatten().next())
                })
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::std::result::Result<S::Ok, S::Error> {
                match self {
                    $(Self::$variant(content) => {
                        let field = $crate::resource::field::required($field, $codec);
                        $crate::resource::field::Group(field).write(content, serializer)
                    })*
                }
            }
        }

        $crate::resource::declare::json_schema! {
            $name, generator => {
                let alternatives = [$({
                    let mut object = $crate::resource::describe::Object::new(&[$($variant_doc),*]);
                    $crate::resource::field::required($field, $codec).describe(&mut object, &[], generator);
                    object.finish()
                }),*];
                $crate::resource::describe::one_of(&[$($doc),*], alternatives)
            }
        }
    };
}
pub(crate) use one_of;

/// Declares an enum whose field `type` says which other field belongs to it.
///
/// The fields of other types are refused, for the reason that follows `refuses`. In it `{own}`
/// stands for the field of this type.
macro_rules! tagged {
    (
        $(#[doc = $doc:expr])*
        #[derive($($derive:ident),*)]
        $(#[$meta:meta])*
        $vis:vis enum $name:ident $(as $schema:literal)? refuses $refusal:literal {
            $($(#[doc = $variant_doc:expr])* $variant:ident($content:ty) = $word:literal with $declared:expr,)*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive($($derive),*)]
        $(#[$meta])*
        $vis enum $name {
            $($(#[doc = $variant_doc])* $variant($content),)*
        }

        impl $name {
            pub(super) fn read(at: $crate::resource::decode::Cursor<'_>) -> Option<Self> {
                at.mapping(|f| match f.tag(&[$(($word, $declared.name)),*], $refusal)? {
                    $($word => $declared.read(f).map(Self::$variant),)*
                    _ => None,
                })
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::std::result::Result<S::Ok, S::Error> {
                use ::serde::ser::SerializeMap as _;

                let mut map = serializer.serialize_map(None)?;
                match self {
                    $(Self::$variant(content) => {
                        map.serialize_entry("type", $word)?;
                        $declared.write(content, &mut map)?;
                    })*
                }
                map.end()
            }
        }

        $crate::resource::declare::json_schema! {
            $name $(as $schema)? , generator => {
                let alternatives = [$({
                    let mut object = $crate::resource::describe::Object::new(&[$($variant_doc),*]);
                    object.add("type", true, &[], ::schemars::json_schema!({ "type": "string", "const": $word }));
                    $declared.describe(&mut object, &[], generator);
                    object.finish()
                }),*];
                $crate::resource::describe::one_of(&[$($doc),*], alternatives)
            }
        }
    };
}
pub(crate) use tagged;
