//! The tokens inside `{{` and `}}`, with the rules of Go's `text/template/parse`.

use std::ops::Range;

use super::{Dialect, TemplateError};
use crate::spiffe::shown::shown;

/// The white space of Go's template language; nothing else separates arguments or is trimmed.
pub(super) const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

const UNSPACED_TRIM: &str = "the `-` of ` -}}` must have white space before it";

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// `}}` or ` -}}`; the latter trims what follows.
    End {
        trim: bool,
    },
    Field(&'a str),
    LeftParen,
    Name(&'a str),
    Pipe,
    RightParen,
    Space,
    Text(String),
}

pub(super) type Spanned<'a> = (Token<'a>, Range<usize>);

/// Reads the tokens of one action.
pub(super) struct Lexer<'a> {
    pub(super) dialect: &'static Dialect,
    source: &'a str,
    /// Where `{{` is: what an action that is never closed is reported at.
    open: usize,
    pos: usize,
    parens: Vec<usize>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(dialect: &'static Dialect, source: &'a str, open: usize, pos: usize) -> Self {
        Self {
            dialect,
            source,
            open,
            pos,
            parens: Vec::new(),
        }
    }

    pub(super) fn error(&self, span: Range<usize>, message: impl Into<String>) -> TemplateError {
        TemplateError::new(self.dialect.name, span, message)
    }

    pub(super) fn text(&self, span: Range<usize>) -> &'a str {
        self.source.get(span).unwrap_or_default()
    }

    fn rest(&self) -> &'a str {
        self.text(self.pos..self.source.len())
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.pos += next.len_utf8();
        Some(next)
    }

    fn skip_while(&mut self, accept: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&accept) {
            self.bump();
        }
    }

    pub(super) fn next_token(&mut self) -> Result<Spanned<'a>, TemplateError> {
        let start = self.pos;
        if let Some((length, trim)) = right_delimiter(self.rest()) {
            if let Some(paren) = self.parens.last() {
                return Err(self.error(*paren..paren + 1, "`(` is never closed"));
            }
            self.pos += length;
            return Ok((Token::End { trim }, start..self.pos));
        }
        let Some(first) = self.bump() else {
            return Err(self.error(
                self.open..self.open + 2,
                "`{{` is never closed: `}}` is missing",
            ));
        };
        let token = match first {
            first if SPACES.contains(&first) => {
                while self.peek().is_some_and(|next| SPACES.contains(&next))
                    && right_delimiter(self.rest()).is_none()
                {
                    self.bump();
                }
                Token::Space
            }
            '|' => Token::Pipe,
            '(' => {
                self.parens.push(start);
                Token::LeftParen
            }
            ')' => {
                if self.parens.pop().is_none() {
                    return Err(self.error(start..self.pos, "`)` without `(`"));
                }
                Token::RightParen
            }
            '"' => self.quoted(start)?,
            '`' => self.raw(start)?,
            '.' => self.field(start)?,
            first if is_alphanumeric(first) && !first.is_numeric() => {
                self.word_end()?;
                Token::Name(self.text(start..self.pos))
            }
            other => return Err(self.unsupported(other, start)),
        };
        Ok((token, start..self.pos))
    }

    fn field(&mut self, start: usize) -> Result<Token<'a>, TemplateError> {
        if self.peek().is_some_and(|next| next.is_ascii_digit()) {
            return Err(self.unsupported('0', start));
        }
        self.word_end()?;
        if self.pos == start + 1 {
            let may_use = self.dialect.may_use();
            let message = format!(
                "`.` alone, everything the template is given, is not supported here: {may_use}"
            );
            return Err(self.error(start..self.pos, message));
        }
        Ok(Token::Field(self.text(start + 1..self.pos)))
    }

    /// Consumes the rest of a name. What may follow one directly is Go's `atTerminator`.
    fn word_end(&mut self) -> Result<(), TemplateError> {
        self.skip_while(is_alphanumeric);
        match self.peek() {
            None | Some('.' | ',' | '|' | ':' | ')' | '(') => Ok(()),
            Some(next) if SPACES.contains(&next) || self.rest().starts_with("}}") => Ok(()),
            Some('-') if self.rest().starts_with("-}}") => {
                Err(self.error(self.pos..self.pos + 1, UNSPACED_TRIM))
            }
            Some(next) => {
                let span = self.pos..self.pos + next.len_utf8();
                let message = format!("`{}` cannot follow a name directly", shown(next));
                Err(self.error(span, message))
            }
        }
    }

    /// An interpreted string: the opening quote has been read.
    fn quoted(&mut self, start: usize) -> Result<Token<'a>, TemplateError> {
        let mut bytes = Vec::new();
        loop {
            let at = self.pos;
            match self.bump() {
                Some('"') => break,
                Some('\\') => self.escape(start, at, &mut bytes)?,
                None | Some('\n') => return Err(self.unterminated(start)),
                Some(other) => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        let message = "the escapes of this string do not make valid UTF-8";
        String::from_utf8(bytes)
            .map(Token::Text)
            .map_err(|_| self.error(start..self.pos, message))
    }

    /// One escape of an interpreted string, as Go's `strconv.Unquote` reads it: the backslash has
    /// been read.
    fn escape(
        &mut self,
        string: usize,
        at: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), TemplateError> {
        let escape = match self.bump() {
            None | Some('\n') => return Err(self.unterminated(string)),
            Some(escape) => escape,
        };
        let byte = match escape {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' => b'\\',
            '"' => b'"',
            'x' | '0'..='7' => {
                let value = match escape.to_digit(8) {
                    Some(first) => self.digits(8, 2, first),
                    None => self.digits(16, 2, 0),
                };
                let Some(byte) = value.and_then(|value| u8::try_from(value).ok()) else {
                    let message = "this escape is not a byte: write `\\x` and two hexadecimal digits, or three octal digits up to `\\377`";
                    return Err(self.error(at..self.pos, message));
                };
                byte
            }
            'u' | 'U' => {
                let value = self.digits(16, if escape == 'u' { 4 } else { 8 }, 0);
                let Some(value) = value.and_then(char::from_u32) else {
                    return Err(self.error(at..self.pos, "this escape is not a Unicode character"));
                };
                bytes.extend_from_slice(value.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            other => {
                let message = format!(
                    "`\\{}` is not an escape of a Go string; to write a backslash, double it or use a `raw string`",
                    shown(other)
                );
                return Err(self.error(at..self.pos, message));
            }
        };
        bytes.push(byte);
        Ok(())
    }

    /// Exactly `count` more digits on top of `value`.
    fn digits(&mut self, radix: u32, count: usize, mut value: u32) -> Option<u32> {
        for _ in 0..count {
            let digit = self.peek()?.to_digit(radix)?;
            self.bump();
            value = value.checked_mul(radix)?.checked_add(digit)?;
        }
        Some(value)
    }

    /// A raw string: the opening quote has been read. Like Go, it drops carriage returns.
    fn raw(&mut self, start: usize) -> Result<Token<'a>, TemplateError> {
        self.skip_while(|next| next != '`');
        let text = self.text(start + 1..self.pos);
        if self.bump().is_none() {
            return Err(self.unterminated(start));
        }
        Ok(Token::Text(text.replace('\r', "")))
    }

    fn unterminated(&self, start: usize) -> TemplateError {
        self.error(start..start + 1, "this string is never closed")
    }

    fn unsupported(&self, first: char, start: usize) -> TemplateError {
        let span = start..self.pos;
        let message = match first {
            '-' if self.text(start..self.source.len()).starts_with("-}}") => UNSPACED_TRIM,
            '-' if start == self.open + 2 => "the `-` of `{{- ` must be followed by white space",
            '+' | '-' => "numbers are not supported here",
            first if first.is_numeric() => "numbers are not supported here",
            '$' | ':' | '=' | ',' => "variables are not supported here",
            '\'' => {
                "character constants are not supported here: a string is written in double quotes"
            }
            '/' if self.text(start..self.source.len()).starts_with("/*") => {
                "a comment must start directly after `{{` or `{{- `"
            }
            other => {
                let message = format!("`{}` is not expected here", shown(other));
                return self.error(span, message);
            }
        };
        self.error(span, message)
    }
}

/// The length of the closing delimiter that `text` starts with, and whether it trims what follows.
pub(super) fn right_delimiter(text: &str) -> Option<(usize, bool)> {
    if text.starts_with("}}") {
        return Some((2, false));
    }
    text.strip_prefix(SPACES)
        .is_some_and(|rest| rest.starts_with("-}}"))
        .then_some((4, true))
}

fn is_alphanumeric(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}
