//! Templates as the resources carry them: parsed once, rendered often.

mod error;
mod lexer;
mod name;
mod parser;
mod path;
mod render;
mod shape;
mod trust_domain;

#[cfg(test)]
mod tests;

pub use error::TemplateError;
pub use name::NameTemplate;
pub use path::PathTemplate;
pub use trust_domain::{TrustDomainInputs, TrustDomainTemplate};

use serde::Serialize;

use super::workload::{NAMESPACE_LABEL, SERVICE_ACCOUNT_LABEL, WORKLOAD_LABEL};
use shape::Shape;

/// What a `replace` may blow a value up to, in bytes; no result may be nearly as long.
const MAX_REPLACED: usize = 8192;

/// A parsed template: what all kinds of template share.
#[derive(Clone, PartialEq, Eq, Hash, derive_more::Debug, derive_more::Display, Serialize)]
#[debug("{source:?}")]
#[display("{source}")]
#[serde(transparent)]
struct Template {
    source: Box<str>,
    #[serde(skip_serializing)]
    pieces: Vec<Piece>,
}

impl Template {
    fn parse(dialect: &'static Dialect, source: &str) -> Result<Self, TemplateError> {
        let parts = parser::parse(dialect, source)?;
        shape::check_literals(dialect, source, &parts)?;
        let mut pieces: Vec<Piece> = Vec::with_capacity(parts.len());
        for part in parts {
            match (pieces.last_mut(), part.piece) {
                (Some(Piece::Literal(text)), Piece::Literal(more)) => text.push_str(&more),
                (_, piece) => pieces.push(piece),
            }
        }
        Ok(Self {
            source: source.into(),
            pieces,
        })
    }
}

/// One piece of a template, in the order of output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Piece {
    Literal(String),
    Value(Value),
}

impl Piece {
    /// A piece that is nothing but a field: what the default templates are made of.
    fn field(field: Field) -> Self {
        Self::Value(Value::of(Source::Field(field)))
    }
}

/// A value and what is replaced in it, stage by stage.
///
/// `replace` is the only function that takes a value, and what it replaces is constant, so every
/// expression comes down to this: there is no tree to walk when rendering.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Value {
    source: Source,
    replacements: Vec<Replacement>,
}

impl Value {
    fn of(source: Source) -> Self {
        Self {
            source,
            replacements: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Field(Field),
    Label(String),
    Tag(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replacement {
    old: String,
    new: String,
}

impl Replacement {
    /// Appends `text` with every `old` replaced, as Go's `strings.ReplaceAll` does; an empty `old`
    /// matches before every character and at the end. Returns whether the result stayed within bounds.
    fn append(&self, text: &str, out: &mut String) -> bool {
        let start = out.len();
        let mut done = 0;
        for (at, found) in text.match_indices(self.old.as_str()) {
            out.push_str(text.get(done..at).unwrap_or_default());
            out.push_str(&self.new);
            done = at + found.len();
            if out.len() - start > MAX_REPLACED {
                return false;
            }
        }
        out.push_str(text.get(done..).unwrap_or_default());
        out.len() - start <= MAX_REPLACED
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Field {
    Mesh,
    Zone,
    Namespace,
    ServiceAccount,
    Workload,
    TrustDomain,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Zone => "Zone",
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Workload => "Workload",
            Self::TrustDomain => "TrustDomain",
        }
    }

    /// The label of a Dataplane that the field stands for.
    fn label(self) -> Option<&'static str> {
        match self {
            Self::Namespace => Some(NAMESPACE_LABEL),
            Self::ServiceAccount => Some(SERVICE_ACCOUNT_LABEL),
            Self::Workload => Some(WORKLOAD_LABEL),
            Self::Mesh | Self::Zone | Self::TrustDomain => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Label,
    Tag,
    Replace,
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Tag => "tag",
            Self::Replace => "replace",
        }
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Label | Self::Tag => "\"key\"",
            Self::Replace => "\"old\" \"new\" value",
        }
    }

    fn usage(self) -> String {
        format!("`{} {}`", self.name(), self.arguments())
    }
}

/// What one kind of template may use, and what its result must look like.
#[derive(Debug)]
struct Dialect {
    /// As in "a path template".
    name: &'static str,
    fields: &'static [Field],
    functions: &'static [Function],
    shape: Shape,
}

impl Dialect {
    /// The names that a template of this kind may use, and how they are used.
    fn names(&self) -> impl Iterator<Item = (&'static str, String)> {
        let fields = self.fields.iter();
        let fields = fields.map(|field| (field.name(), format!("`.{}`", field.name())));
        let functions = self.functions.iter();
        fields.chain(functions.map(|function| (function.name(), function.usage())))
    }

    /// All that a template of this kind may use, for a message.
    fn may_use(&self) -> String {
        let mut names: Vec<_> = self.names().map(|(_, usage)| usage).collect();
        let last = names.pop().unwrap_or_default();
        let names = names.join(", ");
        format!("a {} may use {names} and {last}", self.name)
    }
}

/// The conversions that every kind of template has by way of `parse` and `as_str`.
macro_rules! template_text {
    ($name:ident, $example:literal) => {
        impl $name {
            /// The text it was parsed from, unchanged.
            pub fn as_str(&self) -> &str {
                &self.0.source
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::spiffe::TemplateError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                Self::parse(&text).map_err(::serde::de::Error::custom)
            }
        }

        #[cfg(feature = "schema")]
        impl ::schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                ::schemars::json_schema!({ "type": "string", "examples": [$example] })
            }
        }
    };
}
use template_text;
