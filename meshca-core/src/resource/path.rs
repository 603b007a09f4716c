//! The way to a value, for messages.
//!
//! Paths are linked lists on the stack and become text only for a violation.

use std::fmt;

use super::words::Clip;

/// The way from the top of a document to a value.
#[derive(Clone, Copy)]
pub(crate) struct Path<'c> {
    parent: Option<&'c Path<'c>>,
    segment: Segment<'c>,
}

#[derive(Clone, Copy)]
enum Segment<'c> {
    Root,
    Field(&'c str),
    Index(usize),
}

impl Path<'_> {
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        segment: Segment::Root,
    };
}

impl<'c> Path<'c> {
    pub(crate) fn field(&'c self, name: &'c str) -> Self {
        Self {
            parent: Some(self),
            segment: Segment::Field(name),
        }
    }

    pub(crate) fn index(&'c self, index: usize) -> Self {
        Self {
            parent: Some(self),
            segment: Segment::Index(index),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nested = self.parent.is_some_and(|parent| parent.parent.is_some());
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Field(name) => write_field(f, name, nested),
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
