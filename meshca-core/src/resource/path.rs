//! The way to a value, for messages.
//!
//! Paths are linked lists on the stack and become text only for a violation.

use std::fmt;

use super::words::Clip;

/// The way from the top of a document to a value.
#[derive(Clone, Copy)]
pub(crate) enum Path<'c> {
    Root,
    Field(&'c Path<'c>, &'c str),
    Index(&'c Path<'c>, usize),
}

impl<'c> Path<'c> {
    pub(crate) fn field(&'c self, name: &'c str) -> Self {
        Self::Field(self, name)
    }

    pub(crate) fn index(&'c self, index: usize) -> Self {
        Self::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Field(parent, name) => {
                parent.fmt(f)?;
                write_field(f, name, !matches!(parent, Self::Root))
            }
        }
    }
}

/// Adds a field to a path. Names that could be mistaken for something else are quoted, escaped and
/// clipped: they come from outside.
pub(crate) fn write_field(path: &mut impl fmt::Write, name: &str, nested: bool) -> fmt::Result {
    if !is_simple(name) {
        return write!(path, "[\"{}\"]", Clip(name));
    }
    if nested {
        path.write_char('.')?;
    }
    path.write_str(name)
}

fn is_simple(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
