//! From text to pieces: Go's `text/template` grammar, cut down to what a name needs.

use std::ops::Range;

use super::lexer::{Lexer, SPACES, Spanned, Token, right_delimiter};
use super::{Dialect, Function, Piece, Replacement, Source, TemplateError, Value};

/// How deep parentheses may nest. Go allows 10 000; nobody needs more than two.
const MAX_DEPTH: usize = 32;

const KEYWORDS: [&str; 10] = [
    "block", "break", "continue", "define", "else", "end", "if", "range", "template", "with",
];

/// A piece, and the bytes of the template it came from.
pub(super) struct Part {
    pub(super) piece: Piece,
    pub(super) span: Range<usize>,
    /// The span holds the literal itself, byte for byte, rather than an action that yields it.
    pub(super) verbatim: bool,
}

pub(super) fn parse(dialect: &'static Dialect, source: &str) -> Result<Vec<Part>, TemplateError> {
    let slice = |span: Range<usize>| source.get(span).unwrap_or_default();
    let mut parts = Vec::new();
    let mut start = 0;
    loop {
        let rest = slice(start..source.len());
        let open = rest.find("{{").map(|at| start + at);
        let mut text = open.map_or(rest, |open| slice(start..open));
        let mut body = open.map_or(source.len(), |open| open + 2);
        let inside = slice(body..source.len());
        if open.is_some()
            && inside
                .strip_prefix('-')
                .is_some_and(|rest| rest.starts_with(SPACES))
        {
            text = text.trim_end_matches(SPACES);
            body += 2;
        }
        if !text.is_empty() {
            let span = start..start + text.len();
            parts.push(Part {
                piece: Piece::Literal(text.to_owned()),
                span,
                verbatim: true,
            });
        }
        let Some(open) = open else { return Ok(parts) };

        let (end, trim) = if slice(body..source.len()).starts_with("/*") {
            comment(dialect, source, open, body)?
        } else {
            let mut parser = Parser {
                lexer: Lexer::new(dialect, source, open, body),
                peeked: None,
            };
            let (expression, (token, span)) = parser.pipeline(open, 0)?;
            let (trim, end) = (token == Token::End { trim: true }, span.end);
            let piece = match expression {
                Expression::Constant(text) => Piece::Literal(text),
                Expression::Value(value) => Piece::Value(value),
            };
            if piece != Piece::Literal(String::new()) {
                parts.push(Part {
                    piece,
                    span: open..end,
                    verbatim: false,
                });
            }
            (end, trim)
        };
        let after = slice(end..source.len());
        start = if trim {
            source.len() - after.trim_start_matches(SPACES).len()
        } else {
            end
        };
    }
}

/// Skips a comment whose `/*` is at `body`.
fn comment(
    dialect: &'static Dialect,
    source: &str,
    open: usize,
    body: usize,
) -> Result<(usize, bool), TemplateError> {
    let error = |span, message| Err(TemplateError::new(dialect.name, span, message));
    let text = source.get(body + 2..).unwrap_or_default();
    let Some(length) = text.find("*/") else {
        return error(
            open..body + 2,
            "this comment is never closed: `*/}}` is missing",
        );
    };
    let end = body + 2 + length + 2;
    match right_delimiter(source.get(end..).unwrap_or_default()) {
        Some((length, trim)) => Ok((end + length, trim)),
        None => error(
            end - 2..end,
            "a comment must end directly before `}}` or ` -}}`",
        ),
    }
}

/// What an expression comes down to once its constant parts are computed.
#[derive(Debug)]
enum Expression {
    Constant(String),
    Value(Value),
}

#[derive(Debug)]
enum Operand {
    Expression(Expression),
    Function(Function),
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    peeked: Option<Spanned<'a>>,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Result<Spanned<'a>, TemplateError> {
        match self.peeked.take() {
            Some(token) => Ok(token),
            None => self.lexer.next_token(),
        }
    }

    fn next_non_space(&mut self) -> Result<Spanned<'a>, TemplateError> {
        loop {
            let token = self.next()?;
            if token.0 != Token::Space {
                return Ok(token);
            }
        }
    }

    fn error(&self, span: Range<usize>, message: impl Into<String>) -> TemplateError {
        self.lexer.error(span, message)
    }

    /// Commands separated by `|`, up to the end of the action or of the parentheses.
    ///
    /// Like Go, it lets a `|` with nothing after it pass.
    fn pipeline(
        &mut self,
        open: usize,
        depth: usize,
    ) -> Result<(Expression, Spanned<'a>), TemplateError> {
        let mut value = None;
        loop {
            let token = self.next_non_space()?;
            match token {
                (Token::End { .. } | Token::RightParen, ref span) => {
                    return match value {
                        Some(value) => Ok((value, token)),
                        None => {
                            let message =
                                format!("nothing in here: {}", self.lexer.dialect.may_use());
                            Err(self.error(open..span.end, message))
                        }
                    };
                }
                (Token::Pipe, span) => return Err(self.error(span, "`|` has nothing before it")),
                first => value = Some(self.command(first, value, depth)?),
            }
        }
    }

    /// A function and its arguments, or a value alone. `piped` is what the stage before yielded.
    fn command(
        &mut self,
        first: Spanned<'a>,
        piped: Option<Expression>,
        depth: usize,
    ) -> Result<Expression, TemplateError> {
        let mut span = first.1.clone();
        let (head, head_span) = self.operand(first, depth)?;
        let mut arguments = Vec::new();
        loop {
            let next = self.next()?;
            // Go wants white space between operands.
            let (token, spaced) = match next.0 {
                Token::Space => (self.next_non_space()?, true),
                _ => (next, false),
            };
            match token {
                (Token::Pipe, _) => break,
                end @ (Token::End { .. } | Token::RightParen, _) => {
                    self.peeked = Some(end);
                    break;
                }
                (_, at) if !spaced => {
                    return Err(self.error(at, "white space is missing before this"));
                }
                token => {
                    let (operand, at) = self.operand(token, depth)?;
                    span.end = at.end;
                    match operand {
                        Operand::Expression(argument) => arguments.push((argument, at)),
                        Operand::Function(function) => {
                            let message = format!(
                                "a call among the arguments needs parentheses: `({} …)`",
                                function.name()
                            );
                            return Err(self.error(at, message));
                        }
                    }
                }
            }
        }
        let function = match head {
            Operand::Function(function) => function,
            Operand::Expression(value) => {
                return match (arguments.into_iter().next(), piped) {
                    (None, None) => Ok(value),
                    (Some((_, at)), _) => Err(self.error(at, "only a function takes arguments")),
                    (None, Some(_)) => Err(self.error(head_span, "only a function can follow `|`")),
                };
            }
        };
        if let Some(piped) = piped {
            arguments.push((piped, head_span));
        }
        self.call(function, arguments, span)
    }

    fn operand(
        &mut self,
        token: Spanned<'a>,
        depth: usize,
    ) -> Result<(Operand, Range<usize>), TemplateError> {
        let (token, mut span) = token;
        let operand = match token {
            Token::Text(text) => Operand::Expression(Expression::Constant(text)),
            Token::Field(name) => {
                let mut fields = self.lexer.dialect.fields.iter();
                match fields.find(|field| field.name() == name) {
                    Some(field) => {
                        Operand::Expression(Expression::Value(Value::of(Source::Field(*field))))
                    }
                    None => return Err(self.unknown("variable", &format!(".{name}"), span)),
                }
            }
            Token::Name(name) => Operand::Function(self.function(name, span.clone())?),
            Token::LeftParen if depth == MAX_DEPTH => {
                return Err(self.error(span, format!("parentheses nest deeper than {MAX_DEPTH}")));
            }
            Token::LeftParen => {
                let (value, (_, end)) = self.pipeline(span.start, depth + 1)?;
                span.end = end.end;
                Operand::Expression(value)
            }
            Token::End { .. } | Token::Pipe | Token::RightParen | Token::Space => {
                return Err(self.error(span, "a value is missing here"));
            }
        };
        match self.next()? {
            (Token::Field(_), at) => {
                Err(self.error(at, "fields of a value are not supported here"))
            }
            token => {
                self.peeked = Some(token);
                Ok((operand, span))
            }
        }
    }

    fn call(
        &self,
        function: Function,
        arguments: Vec<(Expression, Range<usize>)>,
        span: Range<usize>,
    ) -> Result<Expression, TemplateError> {
        let (count, name) = (arguments.len(), function.name());
        let expression = match function {
            Function::Label | Function::Tag => {
                let Ok([(key, at)]) = <[_; 1]>::try_from(arguments) else {
                    return Err(self.arity(function, count, span));
                };
                let Expression::Constant(key) = key else {
                    let message = format!("the key of `{name}` must be a string in quotes");
                    return Err(self.error(at, message));
                };
                if key.is_empty() {
                    return Err(self.error(at, format!("the key of `{name}` is empty")));
                }
                Expression::Value(Value::of(match function {
                    Function::Label => Source::Label(key),
                    _ => Source::Tag(key),
                }))
            }
            Function::Replace => {
                let Ok([old, new, (value, at)]) = <[_; 3]>::try_from(arguments) else {
                    return Err(self.arity(function, count, span));
                };
                let constant = |(argument, at)| match argument {
                    Expression::Constant(text) => Ok(text),
                    Expression::Value(_) => Err(self.error(
                        at,
                        "what `replace` looks for and puts in must be strings in quotes",
                    )),
                };
                let replacement = Replacement {
                    old: constant(old)?,
                    new: constant(new)?,
                };
                match value {
                    Expression::Constant(text) => {
                        let mut result = String::new();
                        if !replacement.append(&text, &mut result) {
                            return Err(self.error(at, "the result of `replace` is too long"));
                        }
                        Expression::Constant(result)
                    }
                    Expression::Value(mut value) => {
                        value.replacements.push(replacement);
                        Expression::Value(value)
                    }
                }
            }
        };
        Ok(expression)
    }

    fn arity(&self, function: Function, count: usize, span: Range<usize>) -> TemplateError {
        let wanted = match function {
            Function::Label | Function::Tag => "1 argument",
            Function::Replace => "3 arguments, the last of which may come through `|`",
        };
        let (name, usage) = (function.name(), function.usage());
        let message = format!("`{name}` takes {wanted}, not {count}: {usage}");
        self.error(span, message)
    }

    fn function(&self, name: &str, span: Range<usize>) -> Result<Function, TemplateError> {
        let mut functions = self.lexer.dialect.functions.iter();
        if let Some(function) = functions.find(|function| function.name() == name) {
            return Ok(*function);
        }
        if KEYWORDS.contains(&name) || ["nil", "true", "false"].contains(&name) {
            let message = format!(
                "`{name}` is not supported here: {}",
                self.lexer.dialect.may_use()
            );
            return Err(self.error(span, message));
        }
        Err(self.unknown("function", name, span))
    }

    fn unknown(&self, what: &str, name: &str, span: Range<usize>) -> TemplateError {
        let mut may_use = self.lexer.dialect.may_use();
        let suggestion = match self.suggest(name) {
            Some(suggestion) => {
                // What follows is a sentence of its own.
                may_use.replace_range(..1, "A");
                format!("; did you mean {suggestion}? ")
            }
            None => ": ".to_owned(),
        };
        // Names are bounded by nothing but the size of the template.
        let name: String = name.chars().take(64).collect();
        let message = format!("unknown {what} `{name}`{suggestion}{may_use}");
        self.error(span, message)
    }

    /// The nearest name that this template may use, dot or not, whatever the case.
    fn suggest(&self, name: &str) -> Option<String> {
        let plain = |name: &str| name.replace(['.', '_'], "").to_lowercase();
        let wanted = plain(name.get(..64).unwrap_or(name));
        let names = self.lexer.dialect.names().filter_map(|(name, usage)| {
            let distance = strsim::damerau_levenshtein(&plain(name), &wanted);
            (distance <= (name.len() / 3).max(1)).then_some((distance, usage))
        });
        let nearest = names.min_by_key(|(distance, _)| *distance)?;
        Some(nearest.1)
    }
}
