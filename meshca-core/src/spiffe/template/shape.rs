//! What the result of each kind of template must look like: as a whole, in its literal parts, and
//! in every value that is put in.

use std::ops::Range;

use super::parser::Part;
use super::{Dialect, Piece, TemplateError};
use crate::spiffe::shown::shown;

/// The longest trust domain name: SPIFFE-ID §2.1.
pub(super) const MAX_TRUST_DOMAIN: usize = 255;
/// The longest SPIFFE ID that may be generated, in bytes: SPIFFE-ID §2.3.
pub(super) const MAX_SPIFFE_ID: usize = 2048;
/// The longest common name: RFC 5280, appendix A.1, `ub-common-name`.
pub(super) const MAX_COMMON_NAME: usize = 64;
/// The longest label of a DNS name: RFC 1035 §2.3.4.
const MAX_DNS_LABEL: usize = 63;

/// The form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// SPIFFE-ID §2.1, lower case only.
    TrustDomain,
    /// SPIFFE-ID §2.2: `/` and non-empty segments that are not `.` or `..`.
    Path,
    /// Labels of a DNS name, with `_` allowed for.
    CommonName,
}

impl Shape {
    /// What a message calls the result.
    pub(super) fn result(self) -> &'static str {
        match self {
            Self::TrustDomain => "trust domain",
            Self::Path => "SPIFFE ID",
            Self::CommonName => "common name",
        }
    }

    pub(super) fn max_length(self) -> usize {
        match self {
            Self::TrustDomain => MAX_TRUST_DOMAIN,
            Self::Path => MAX_SPIFFE_ID,
            Self::CommonName => MAX_COMMON_NAME,
        }
    }

    fn separator(self) -> Option<char> {
        match self {
            Self::TrustDomain => None,
            Self::Path => Some('/'),
            Self::CommonName => Some('.'),
        }
    }

    /// Whether a value, and a literal apart from separators, may contain this.
    fn allows(self, character: char) -> bool {
        match character {
            'a'..='z' | '0'..='9' | '.' | '-' | '_' => true,
            'A'..='Z' => self != Self::TrustDomain,
            _ => false,
        }
    }

    fn alphabet(self) -> &'static str {
        match self {
            Self::TrustDomain => {
                "a trust domain has only lower-case letters, digits, `.`, `-` and `_`"
            }
            Self::Path => "a path segment has only letters, digits, `.`, `-` and `_`",
            Self::CommonName => "a common name has only letters, digits, `.`, `-` and `_`",
        }
    }

    /// Why this character is refused.
    fn refusal(self, character: char) -> String {
        match (self, character) {
            (Self::TrustDomain, 'A'..='Z') => {
                format!(
                    "`{character}`: {}, and nothing is lower-cased silently",
                    self.alphabet()
                )
            }
            (Self::TrustDomain | Self::Path, '/') => {
                "`/` would change the shape of the SPIFFE ID".to_owned()
            }
            _ => format!("`{}`: {}", shown(character), self.alphabet()),
        }
    }

    /// Whether `value` may stand where a template has an action; why not, if not.
    pub(super) fn check_value(self, value: &str) -> Result<(), String> {
        if !value.bytes().all(|byte| self.allows(char::from(byte))) {
            let refused = value.chars().find(|character| !self.allows(*character));
            return Err(self.refusal(refused.unwrap_or_default()));
        }
        let (length, max) = (value.len(), self.max_length());
        if length > max {
            let what = self.result();
            return Err(format!(
                "{length} bytes are too long: a {what} has at most {max}"
            ));
        }
        match value {
            "" | "." | ".." => {
                let what = self.result();
                Err(format!("this would change the shape of the {what}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether `text` is a whole result. The checks of values and literals leave little to find
    /// here, but an identity is not the place to rely on that.
    pub(super) fn check_whole(self, text: &str) -> Result<(), String> {
        let (length, max) = (text.len(), self.max_length());
        if length > max {
            let what = self.result();
            return Err(format!(
                "it is {length} bytes long, and a {what} has at most {max}"
            ));
        }
        match self {
            Self::TrustDomain => self.check_value(text),
            Self::Path => {
                let Some(segments) = text.strip_prefix('/') else {
                    return Err("it must start with `/`".to_owned());
                };
                segments
                    .split('/')
                    .try_for_each(|segment| self.check_value(segment))
            }
            Self::CommonName => text.split('.').try_for_each(|label| match label.len() {
                0 => Err("a part between dots is empty".to_owned()),
                1..=MAX_DNS_LABEL => self.check_value(label),
                _ => Err(format!(
                    "a part between dots has at most {MAX_DNS_LABEL} characters"
                )),
            }),
        }
    }
}

/// Checks at configuration time all that does not depend on values.
pub(super) fn check_literals(
    dialect: &Dialect,
    source: &str,
    parts: &[Part],
) -> Result<(), TemplateError> {
    let shape = dialect.shape;
    let error =
        |span: Range<usize>, message: String| Err(TemplateError::new(dialect.name, span, message));
    let mut segment = Segment::new(true, 0..0);
    let mut length = 0;
    for part in parts {
        let text = match &part.piece {
            Piece::Literal(text) => text,
            Piece::Value(_) if shape == Shape::Path && segment.first => {
                return error(part.span.clone(), "a path must start with `/`".to_owned());
            }
            Piece::Value(_) => {
                segment.dynamic = true;
                continue;
            }
        };
        length += text.len();
        if length > shape.max_length() {
            let (what, max) = (shape.result(), shape.max_length());
            let message = format!("this is too long: a {what} has at most {max} bytes");
            return error(part.span.clone(), message);
        }
        for (index, character) in text.char_indices() {
            let start = part.span.start + index;
            let at = match part.verbatim {
                true => start..start + character.len_utf8(),
                false => part.span.clone(),
            };
            if Some(character) == shape.separator() {
                if let Err((span, message)) = segment.close(shape, at.clone()) {
                    return error(span, message);
                }
            } else if shape == Shape::Path && segment.first {
                return error(at, "a path must start with `/`".to_owned());
            } else if shape.allows(character) {
                segment.push(character, at);
            } else {
                return error(at, shape.refusal(character));
            }
        }
    }
    if parts.is_empty() {
        let message = format!(
            "the template is empty; leave it out to get the default {}",
            shape.result()
        );
        return error(source.len()..source.len(), message);
    }
    segment
        .finish(shape)
        .or_else(|(span, message)| error(span, message))
}

/// What lies between two separators, while it is read.
struct Segment {
    /// No separator was seen yet.
    first: bool,
    /// The separator before it.
    separator: Range<usize>,
    dynamic: bool,
    text: String,
    span: Range<usize>,
}

impl Segment {
    fn new(first: bool, separator: Range<usize>) -> Self {
        Self {
            first,
            separator,
            dynamic: false,
            text: String::new(),
            span: 0..0,
        }
    }

    fn push(&mut self, character: char, at: Range<usize>) {
        if self.text.is_empty() {
            self.span.start = at.start;
        }
        self.span.end = at.end;
        self.text.push(character);
    }

    /// Ends the segment at a separator, where the next one begins.
    fn close(&mut self, shape: Shape, at: Range<usize>) -> Result<(), (Range<usize>, String)> {
        let opens_path = shape == Shape::Path && self.first;
        if !opens_path {
            self.refuse_empty(shape, &at, "nothing stands before this separator")?;
        }
        *self = Self::new(false, at);
        Ok(())
    }

    fn finish(&self, shape: Shape) -> Result<(), (Range<usize>, String)> {
        if shape == Shape::TrustDomain {
            return Ok(());
        }
        self.refuse_empty(
            shape,
            &self.separator,
            "nothing stands after this separator",
        )
    }

    fn refuse_empty(
        &self,
        shape: Shape,
        at: &Range<usize>,
        empty: &str,
    ) -> Result<(), (Range<usize>, String)> {
        if self.dynamic {
            return Ok(());
        }
        let (at, message) = match (shape, self.text.as_str()) {
            (Shape::Path, "") => (
                at,
                format!("{empty}: a path has no empty segments and no `/` at its end"),
            ),
            (_, "") => (
                at,
                format!("{empty}: a {} has no empty parts", shape.result()),
            ),
            (Shape::Path, dots @ ("." | "..")) => (
                &self.span,
                format!("`{dots}` cannot be a segment of a path"),
            ),
            _ => return Ok(()),
        };
        Err((at.clone(), message))
    }
}
