//! Putting values in. Everything here treats them as written by somebody else.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::shape::Shape;
use super::{Piece, Source, Template, Value};
use crate::spiffe::shown::Shown;
use crate::{Error, ErrorKind, Result};

/// Room to reserve for a value that is not known yet.
const TYPICAL_VALUE: usize = 32;

/// Where values come from.
pub(super) trait Values {
    fn get(&self, source: &Source) -> Result<&str>;
}

impl Template {
    /// Renders and checks the result.
    pub(super) fn render(&self, shape: Shape, values: &impl Values) -> Result<String> {
        let out = self.render_unchecked(shape, values)?;
        match shape.check_whole(&out) {
            Ok(()) => Ok(out),
            Err(reason) => Err(refused_whole(shape, &out, &reason)),
        }
    }

    /// Renders with a check of each value, for a caller who then checks the whole. The only
    /// allocation is the result, unless a value goes through more than one `replace`.
    pub(super) fn render_unchecked(&self, shape: Shape, values: &impl Values) -> Result<String> {
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
        Ok(out)
    }
}

impl Value {
    fn render(&self, shape: Shape, values: &impl Values, out: &mut String) -> Result<()> {
        let text = values.get(&self.source)?;
        let Some((last, rest)) = self.replacements.split_last() else {
            shape
                .check_value(text)
                .map_err(|reason| self.refused(text, None, &reason))?;
            out.push_str(text);
            return Ok(());
        };
        let start = out.len();
        let mut stage = Cow::Borrowed(text);
        let mut fits = true;
        for replacement in rest {
            let mut next = String::new();
            fits = fits && replacement.append(&stage, &mut next);
            stage = Cow::Owned(next);
        }
        if !(fits && last.append(&stage, out)) {
            return Err(self.refused(text, None, "`replace` makes it too long"));
        }
        let replaced = out.get(start..).unwrap_or_default();
        shape
            .check_value(replaced)
            .map_err(|reason| self.refused(text, Some(replaced), &reason))
    }

    #[cold]
    fn refused(&self, value: &str, replaced: Option<&str>, reason: &str) -> Error {
        let mut message = described(&self.source);
        match (value, replaced) {
            ("", None | Some("")) => message.push_str(" has an empty value"),
            // A `replace` that found nothing explains nothing.
            (value, replaced) if replaced.is_none_or(|replaced| replaced == value) => {
                let _ = write!(message, " has the value `{}`", Shown(value));
            }
            (value, replaced) => {
                let (value, replaced) = (Shown(value), Shown(replaced.unwrap_or_default()));
                let _ = write!(
                    message,
                    " has the value `{value}`, of which `replace` makes `{replaced}`"
                );
            }
        }
        Error::new(ErrorKind::InvalidRequest, format!("{message}: {reason}"))
    }
}

#[cold]
fn refused_whole(shape: Shape, text: &str, reason: &str) -> Error {
    let (text, what) = (Shown(text), shape.result());
    let message = format!("the template gives `{text}`, which is no {what}: {reason}");
    Error::new(ErrorKind::InvalidRequest, message)
}

/// How a message names where a value came from: the thing to change, so the label rather than the
/// variable.
fn described(source: &Source) -> String {
    match source {
        Source::Field(field) => match field.label() {
            Some(label) => format!("label `{label}`"),
            None => format!("`.{}`", field.name()),
        },
        Source::Label(key) => format!("label `{}`", Shown(key)),
        Source::Tag(key) => format!("tag `{}`", Shown(key)),
    }
}
