//! Text to a tree in which every key and value knows its place.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::mem;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, StructureStyle, Tag};

use super::node::{Entry, Node, Value, text_weight};
use super::path;
use super::scalar::{Failure, check_tag, resolve, resolve_tagged};
use super::violation::{Location, Report, Severity, Violation};

/// The largest input, in bytes: a control plane's whole configuration is far smaller.
pub(crate) const MAX_INPUT: usize = 16 << 20;
/// How deep mappings and sequences may nest.
pub(crate) const MAX_DEPTH: usize = 64;
/// How many values one input may hold.
const MAX_NODES: usize = 500_000;
/// How many of them may be copies that anchors and aliases make. People use them for a handful of
/// fields; only an attacker needs more.
const MAX_COPIES: usize = 20_000;
/// How long a field's name may be as JSON writes it, quotes and escapes included. A reader of YAML need not look further
/// for the colon (YAML 1.2 §7.4.2: 1024 characters), so a longer one could be read and not be written.
const MAX_NAME: usize = 1000;
/// From this size on, a set finds duplicate keys instead of comparing each with each.
const SMALL_MAPPING: usize = 16;

/// Reads every document of the input. What is wrong with the text goes into the report; the
/// documents before the first syntax error are returned all the same.
pub(crate) fn read<'a>(text: &'a [u8], report: &mut Report) -> Vec<Node<'a>> {
    let mut fail = |at, message| {
        report.push(Violation::new(Severity::Error, String::new(), at, message));
        Vec::new()
    };
    if text.len() > MAX_INPUT {
        let size = text.len() >> 20;
        return fail(
            Location::START,
            format!(
                "the input has {size} MiB, more than the {} MiB that are read",
                MAX_INPUT >> 20
            ),
        );
    }
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let valid = text.get(..error.valid_up_to()).unwrap_or_default();
            let at = end_of(&String::from_utf8_lossy(valid));
            return fail(at, "this is not text: YAML and JSON are UTF-8".to_owned());
        }
    };
    if let Some(index) = text.find('\0') {
        return fail(
            end_of(text.get(..index).unwrap_or_default()),
            "this is not text: it contains a NUL byte".to_owned(),
        );
    }
    let mut builder = Builder {
        report,
        documents: Vec::new(),
        open: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        copies: 0,
    };
    if let Err((at, message)) = builder.read(text) {
        builder
            .report
            .push(Violation::new(Severity::Error, String::new(), at, message));
    }
    builder.documents
}

/// The place right after the text.
fn end_of(text: &str) -> Location {
    let line = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = text
        .chars()
        .rev()
        .take_while(|character| *character != '\n')
        .count()
        + 1;
    Location::new(line, column)
}

/// A mapping or sequence that has not ended yet.
struct Open<'a> {
    at: Location,
    anchor: usize,
    /// The bracket that opened it, if it has one.
    bracket: Option<char>,
    content: Content<'a>,
}

enum Content<'a> {
    Seq(Vec<Node<'a>>),
    Map {
        entries: Vec<Entry<'a>>,
        key: Option<Key<'a>>,
        merges: Vec<Node<'a>>,
    },
}

fn field(name: Cow<'_, str>, at: Location) -> Result<Key<'_>, Failure> {
    // An escape has six characters at most.
    let long = name.len() > MAX_NAME / 6
        && serde_json::to_string(&name).is_ok_and(|json| json.chars().count() > MAX_NAME);
    match long {
        false => Ok(Key::Field(name, at)),
        true => Err((
            at,
            format!("a field name of more than {MAX_NAME} characters, quotes and escapes included"),
        )),
    }
}

/// A key whose value has not been read yet.
enum Key<'a> {
    Field(Cow<'a, str>, Location),
    /// A plain `<<`.
    Merge,
}

struct Builder<'a, 'r> {
    report: &'r mut Report,
    documents: Vec<Node<'a>>,
    open: Vec<Open<'a>>,
    anchors: HashMap<usize, (Node<'a>, usize)>,
    nodes: usize,
    copies: usize,
}

impl<'a> Builder<'a, '_> {
    fn read(&mut self, text: &'a str) -> Result<(), Failure> {
        let mut options = granit_parser::options! {
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH
        };
        options.set_emit_comments(false);
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) =
                event.map_err(|error| (location(error.marker()), self.explain(error.kind())))?;
            let at = location(&span.start);
            match event {
                Event::Scalar(text, style, anchor, tag) => {
                    self.scalar(text, style, anchor, tag.as_deref(), at)?
                }
                Event::SequenceStart(style, anchor, tag) => {
                    check_tag(tag.as_deref(), "seq", at)?;
                    let bracket = (style == StructureStyle::Flow).then_some('[');
                    self.start(at, anchor, bracket, Content::Seq(Vec::new()))?;
                }
                Event::MappingStart(style, anchor, tag) => {
                    check_tag(tag.as_deref(), "map", at)?;
                    self.start(
                        at,
                        anchor,
                        (style == StructureStyle::Flow).then_some('{'),
                        Content::Map {
                            entries: Vec::new(),
                            key: None,
                            merges: Vec::new(),
                        },
                    )?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.end()?,
                Event::Alias(anchor) => self.alias(anchor, at)?,
                Event::DocumentEnd => self.anchors.clear(),
                _ => {}
            }
        }
        Ok(())
    }

    fn explain(&self, kind: &ErrorKind) -> String {
        let unclosed = match kind {
            ErrorKind::RecursionLimitExceeded => return too_deep(),
            // What the parser stumbles over may be sound, and stand where it does not expect it only because
            // a bracket or a quote is still open.
            ErrorKind::InvalidColonPlacement
            | ErrorKind::ExpectedFlowMappingSeparator
            | ErrorKind::ExpectedFlowSequenceSeparator
            | ErrorKind::UnexpectedEofImplicitFlowMapping
            | ErrorKind::FlowMappingValueAdjacentCollection
            | ErrorKind::BlockEntryInFlowCollection
            | ErrorKind::InvalidIndentation
            | ErrorKind::InvalidFlowScalarIndent
            | ErrorKind::InvalidQuotedScalarIndent
            | ErrorKind::InvalidTrailingSingleQuotedScalar
            | ErrorKind::InvalidTrailingDoubleQuotedScalar
            | ErrorKind::DocumentIndicatorInQuotedScalar
            | ErrorKind::MappingKeyNotAllowed
            | ErrorKind::MappingValueNotAllowed
            | ErrorKind::SimpleKeyExpected
            | ErrorKind::PlainScalarStartsWithDashFlowIndicator => true,
            _ => false,
        };
        let opened = self
            .open
            .iter()
            .rev()
            .find_map(|open| open.bracket.map(|bracket| (bracket, open.at)));
        match (unclosed, opened) {
            (true, Some((bracket, at))) => format!(
                "syntax error: {kind}, or the `{bracket}` in line {}, column {} was not closed",
                at.line(),
                at.column()
            ),
            (true, None) => {
                format!("syntax error: {kind}, or something opened before it was not closed")
            }
            (false, _) => format!("syntax error: {kind}"),
        }
    }

    fn count(&mut self, at: Location) -> Result<(), Failure> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err((at, format!("the input holds more than {MAX_NODES} values")));
        }
        Ok(())
    }

    fn start(
        &mut self,
        at: Location,
        anchor: usize,
        bracket: Option<char>,
        content: Content<'a>,
    ) -> Result<(), Failure> {
        self.count(at)?;
        if self.open.len() >= MAX_DEPTH {
            return Err((at, too_deep()));
        }
        if self.expects_key() {
            return Err((at, "a field name must be a string".to_owned()));
        }
        self.open.push(Open {
            at,
            anchor,
            bracket,
            content,
        });
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                content: Content::Map { key: None, .. },
                ..
            })
        )
    }

    fn scalar(
        &mut self,
        text: Cow<'a, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        at: Location,
    ) -> Result<(), Failure> {
        self.count(at)?;
        let plain = style == ScalarStyle::Plain;
        if let Some(Open {
            content: Content::Map {
                key: key @ None, ..
            },
            ..
        }) = self.open.last_mut()
        {
            check_tag(tag, "str", at)?;
            // A `<<` in quotes is an ordinary field name.
            let merge = plain && text == "<<";
            if anchor != 0 {
                let weight = text_weight(&text);
                self.anchors.insert(
                    anchor,
                    (
                        Node {
                            value: Value::Str(text.clone()),
                            at,
                        },
                        weight,
                    ),
                );
            }
            *key = Some(if merge { Key::Merge } else { field(text, at)? });
            return Ok(());
        }
        let value = match tag {
            None if plain => resolve(text, at)?,
            None => Value::Str(text),
            Some(tag) => resolve_tagged(text, tag, at)?,
        };
        self.add(Node { value, at }, anchor)
    }

    fn alias(&mut self, anchor: usize, at: Location) -> Result<(), Failure> {
        let Some((node, weight)) = self.anchors.get(&anchor) else {
            return Err((at, "an alias inside the value it stands for".to_owned()));
        };
        count_copies(&mut self.copies, *weight, at)?;
        if self.open.len() + node.depth() > MAX_DEPTH {
            return Err((at, too_deep()));
        }
        let node = Node {
            value: node.value.clone(),
            at,
        };
        match self.open.last_mut() {
            Some(Open {
                content: Content::Map {
                    key: key @ None, ..
                },
                ..
            }) => match node.value {
                Value::Str(text) => {
                    *key = Some(field(text, at)?);
                    Ok(())
                }
                _ => Err((at, "a field name must be a string".to_owned())),
            },
            _ => self.add(node, 0),
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(Open {
            at,
            anchor,
            content,
            ..
        }) = self.open.pop()
        else {
            return Err((Location::NONE, "an end without a start".to_owned()));
        };
        let value = match content {
            Content::Seq(items) => Value::Seq(items),
            Content::Map {
                mut entries,
                merges,
                ..
            } => {
                self.drop_duplicates(&mut entries);
                if !merges.is_empty() {
                    merge(&mut entries, merges)?;
                }
                Value::Map(entries)
            }
        };
        self.add(Node { value, at }, anchor)
    }

    /// Puts a finished value where it belongs.
    fn add(&mut self, node: Node<'a>, anchor: usize) -> Result<(), Failure> {
        if anchor != 0 {
            let weight = node.weight();
            count_copies(&mut self.copies, weight, node.at)?;
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => {
                if !node.is_null() {
                    self.documents.push(node);
                }
            }
            Some(Content::Seq(items)) => items.push(node),
            Some(Content::Map {
                entries,
                key,
                merges,
            }) => match mem::take(key) {
                Some(Key::Merge) => merges.push(node),
                Some(Key::Field(key, key_at)) => entries.push(Entry {
                    key,
                    key_at,
                    value: node,
                }),
                None => return Err((node.at, "a field name must be a string".to_owned())),
            },
        }
        Ok(())
    }

    fn drop_duplicates(&mut self, entries: &mut Vec<Entry<'a>>) {
        let mut duplicates = Vec::new();
        if entries.len() <= SMALL_MAPPING {
            for (index, entry) in entries.iter().enumerate() {
                if entries
                    .iter()
                    .take(index)
                    .any(|earlier| earlier.key == entry.key)
                {
                    duplicates.push(index);
                }
            }
        } else {
            let mut seen = HashSet::with_capacity(entries.len());
            for (index, entry) in entries.iter().enumerate() {
                if !seen.insert(entry.key.as_ref()) {
                    duplicates.push(index);
                }
            }
        }
        if duplicates.is_empty() {
            return;
        }
        let path = self.path();
        let mut index = 0;
        let mut duplicates = duplicates.into_iter().peekable();
        entries.retain(|entry| {
            let duplicate = duplicates.next_if_eq(&index).is_some();
            index += 1;
            if duplicate {
                self.report.push_with(Severity::Error, || {
                    let path = child(path.clone(), &entry.key);
                    let message = "this field is given twice: keep one of them";
                    Violation::new(Severity::Error, path, entry.key_at, message.to_owned())
                });
            }
            !duplicate
        });
    }

    /// The path of the mapping that has just been closed.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.content {
                Content::Seq(items) => path.push_str(&format!("[{}]", items.len())),
                Content::Map {
                    key: Some(Key::Field(key, _)),
                    ..
                } => path = child(path, key),
                Content::Map { .. } => {}
            }
        }
        path
    }
}

/// Adds the fields of the `<<` mappings that the mapping does not have itself; earlier ones win.
fn merge<'a>(entries: &mut Vec<Entry<'a>>, merges: Vec<Node<'a>>) -> Result<(), Failure> {
    let mut seen: HashSet<Cow<'a, str>> = entries.iter().map(|entry| entry.key.clone()).collect();
    let mut add = |node: Node<'a>| match node.value {
        Value::Map(merged) => {
            entries.extend(
                merged
                    .into_iter()
                    .filter(|entry| seen.insert(entry.key.clone())),
            );
            Ok(())
        }
        _ => Err((
            node.at,
            "`<<` merges a mapping or a list of mappings".to_owned(),
        )),
    };
    for node in merges {
        match node.value {
            Value::Seq(nodes) => nodes.into_iter().try_for_each(&mut add)?,
            _ => add(node)?,
        }
    }
    Ok(())
}

fn child(mut path: String, key: &str) -> String {
    // Writing to a string does not fail.
    let nested = !path.is_empty();
    let _ = path::write_field(&mut path, key, nested);
    path
}

fn too_deep() -> String {
    format!("nested more than {MAX_DEPTH} levels deep")
}

/// To be asked before copies are made.
fn count_copies(copies: &mut usize, weight: usize, at: Location) -> Result<(), Failure> {
    *copies = copies.saturating_add(weight);
    if *copies > MAX_COPIES {
        return Err((
            at,
            format!("anchors and aliases repeat more than {MAX_COPIES} values"),
        ));
    }
    Ok(())
}

fn location(marker: &Marker) -> Location {
    Location::new(marker.line(), marker.col() + 1)
}
