//! Putting values in. Everything here treats them as written by somebody else.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::shape::Shape;
use super::{Piece, Replacement, Source, Template, Value};
use crate::{Error, ErrorKind, Result};

/// What a `replace` may blow a value up to, in bytes; no result may be nearly as long.
const MAX_REPLACED: usize = 8192;

/// How much of an outside value a message shows, in characters.
const MAX_SHOWN: usize = 64;

/// Room to reserve for a value that is not known yet.
const TYPICAL_VALUE: usize = 32;

/// Where values come from.
pub(super) trait Values {
    fn get(&self, source: &Source) -> Result<&str>;
}

impl Template {
    /// Renders and checks the result. The only allocation is the result, unless a value goes
    /// through more than one `replace`.
    pub(super) fn render(&self, shape: Shape, values: &impl Values) -> Result<String> {
        let capacity = self.pieces.iter().map(|piece| match piece {
            Piece::Literal(text) => text.len(),
            Piece::Value(_) => TYPICAL_VALUE,
        });
        let mut out = String::with_capacity(capacity.sum());
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Value(value) => value.render(shape, values, &mut out)?,
            }
        }
        match shape.check_whole(&out) {
            Ok(()) => Ok(out),
            Err(reason) => Err(refused_whole(shape, &out, &reason)),
        }
    }
}

impl Value {
    fn render(&self, shape: Shape, values: &impl Values, out: &mut String) -> Result<()> {
        let text = values.get(&self.source)?;
        let start = out.len();
        match self.replacements.split_last() {
            None => out.push_str(text),
            Some((last, rest)) => {
                let mut stage = Cow::Borrowed(text);
                let mut fits = true;
                for replacement in rest {
                    let mut next = String::new();
                    fits = fits && replace_into(&mut next, &stage, replacement);
                    stage = Cow::Owned(next);
                }
                if !(fits && replace_into(out, &stage, last)) {
                    return Err(self.refused(text, None, "`replace` makes it too long"));
                }
            }
        }
        let rendered = out.get(start..).unwrap_or_default();
        shape.check_value(rendered).map_err(|reason| {
            let replaced = (!self.replacements.is_empty()).then_some(rendered);
            self.refused(text, replaced, &reason)
        })
    }

    #[cold]
    fn refused(&self, value: &str, replaced: Option<&str>, reason: &str) -> Error {
        let mut message = format!(
            "{} has the value `{}`",
            described(&self.source),
            Shown(value)
        );
        if let Some(replaced) = replaced {
            let _ = write!(
                message,
                ", which `replace` turns into `{}`",
                Shown(replaced)
            );
        }
        Error::new(ErrorKind::InvalidRequest, format!("{message}: {reason}"))
    }
}

#[cold]
fn refused_whole(shape: Shape, text: &str, reason: &str) -> Error {
    let what = shape.result();
    Error::new(
        ErrorKind::InvalidRequest,
        format!(
            "the template gives `{}`, which is no {what}: {reason}",
            Shown(text)
        ),
    )
}

/// How a message names where a value came from: the thing to change, so the label rather than the
/// variable.
pub(super) fn described(source: &Source) -> String {
    match source {
        Source::Field(field) => match field.label() {
            Some(label) => format!("label `{label}`"),
            None => format!("`.{}`", field.name()),
        },
        Source::Label(key) => format!("label `{}`", Shown(key)),
        Source::Tag(key) => format!("tag `{}`", Shown(key)),
    }
}

/// Appends `text` with every `old` replaced, as Go's `strings.ReplaceAll` does; an empty `old`
/// matches before every character and at the end. Returns whether the result stayed within bounds.
pub(super) fn replace_into(out: &mut String, text: &str, replacement: &Replacement) -> bool {
    let start = out.len();
    let mut done = 0;
    for (at, found) in text.match_indices(replacement.old.as_str()) {
        out.push_str(text.get(done..at).unwrap_or_default());
        out.push_str(&replacement.new);
        done = at + found.len();
        if out.len() - start > MAX_REPLACED {
            return false;
        }
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out.len() - start <= MAX_REPLACED
}

/// The beginning of an outside value, escaped: what a message may show of it.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut length = 0;
        for character in self.0.chars() {
            let escaped = character.escape_default();
            length += escaped.len();
            if length > MAX_SHOWN {
                return f.write_str("…");
            }
            write!(f, "{escaped}")?;
        }
        Ok(())
    }
}
