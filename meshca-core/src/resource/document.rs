//! Text to a tree in which every key and value knows its place.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

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
    let mut builder = Builder {
        report,
        documents: Vec::new(),
        open: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        copies: 0,
    };
    if let Err((at, message)) = checked(text).and_then(|text| builder.read(text)) {
        builder.report.fail(at, message);
    }
    builder.documents
}

fn checked(input: &[u8]) -> Result<&str, Failure> {
    let limit = MAX_INPUT >> 20;
    if input.len() > MAX_INPUT {
        let size = input.len() >> 20;
        let message = format!("the input has {size} MiB, more than the {limit} MiB that are read");
        return Err((Location::START, message));
    }
    let text = std::str::from_utf8(input).map_err(|error| {
        let valid = input.get(..error.valid_up_to()).unwrap_or_default();
        let at = end_of(&String::from_utf8_lossy(valid));
        (at, "this is not text: YAML and JSON are UTF-8".to_owned())
    })?;
    match text.split_once('\0') {
        Some((before, _)) => {
            let message = "this is not text: it contains a NUL byte";
            Err((end_of(before), message.to_owned()))
        }
        None => Ok(text),
    }
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
    Map(OpenMap<'a>),
}

#[derive(Default)]
struct OpenMap<'a> {
    entries: Vec<Entry<'a>>,
    key: Option<Key<'a>>,
    merges: Vec<Node<'a>>,
}

/// Finds the place of the next key, if one is expected.
fn key_slot<'o, 'a>(open: &'o mut [Open<'a>]) -> Option<&'o mut Option<Key<'a>>> {
    match &mut open.last_mut()?.content {
        Content::Map(map) if map.key.is_none() => Some(&mut map.key),
        _ => None,
    }
}

fn not_a_name(at: Location) -> Failure {
    (at, "a field name must be a string".to_owned())
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
                    let bracket = (style == StructureStyle::Flow).then_some('{');
                    self.start(at, anchor, bracket, Content::Map(OpenMap::default()))?;
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
        let mut open = self.open.iter().rev();
        match (unclosed, open.find_map(|it| Some((it.bracket?, it.at)))) {
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
        if key_slot(&mut self.open).is_some() {
            return Err(not_a_name(at));
        }
        self.open.push(Open {
            at,
            anchor,
            bracket,
            content,
        });
        Ok(())
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
        if let Some(key) = key_slot(&mut self.open) {
            check_tag(tag, "str", at)?;
            // A `<<` in quotes is an ordinary field name.
            let merge = plain && text == "<<";
            if anchor != 0 {
                let weight = text_weight(&text);
                let value = Value::Str(text.clone());
                self.anchors.insert(anchor, (Node { value, at }, weight));
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
        match (key_slot(&mut self.open), node.value.clone()) {
            (None, value) => self.add(Node { value, at }, 0),
            (Some(key), Value::Str(text)) => {
                *key = Some(field(text, at)?);
                Ok(())
            }
            (Some(_), _) => Err(not_a_name(at)),
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
            Content::Map(mut map) => {
                self.drop_duplicates(&mut map.entries);
                if !map.merges.is_empty() {
                    merge(&mut map.entries, map.merges)?;
                }
                Value::Map(map.entries)
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
            Some(Content::Map(map)) => match map.key.take() {
                Some(Key::Merge) => map.merges.push(node),
                Some(Key::Field(key, key_at)) => map.entries.push(Entry {
                    key,
                    key_at,
                    value: node,
                }),
                None => return Err(not_a_name(node.at)),
            },
        }
        Ok(())
    }

    fn drop_duplicates(&mut self, entries: &mut Vec<Entry<'a>>) {
        let unique = match entries.len() {
            0..=SMALL_MAPPING => entries.iter().enumerate().all(|(index, entry)| {
                let mut earlier = entries.iter().take(index);
                earlier.all(|it| it.key != entry.key)
            }),
            many => {
                let mut seen = HashSet::<&str>::with_capacity(many);
                entries.iter().all(|entry| seen.insert(&entry.key))
            }
        };
        if unique {
            return;
        }
        let path = self.path();
        let mut seen = HashSet::new();
        for entry in entries.extract_if(.., |entry| !seen.insert(entry.key.clone())) {
            self.report.push_with(Severity::Error, || {
                let path = child(path.clone(), &entry.key);
                let message = "this field is given twice: keep one of them";
                Violation::new(Severity::Error, path, entry.key_at, message.to_owned())
            });
        }
    }

    /// The path of the mapping that has just been closed.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.content {
                Content::Seq(items) => path.push_str(&format!("[{}]", items.len())),
                Content::Map(map) => {
                    if let Some(Key::Field(key, _)) = &map.key {
                        path = child(path, key);
                    }
                }
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
            let merged = merged.into_iter();
            entries.extend(merged.filter(|entry| seen.insert(entry.key.clone())));
            Ok(())
        }
        _ => {
            let message = "`<<` merges a mapping or a list of mappings";
            Err((node.at, message.to_owned()))
        }
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
    match *copies > MAX_COPIES {
        true => {
            let message = format!("anchors and aliases repeat more than {MAX_COPIES} values");
            Err((at, message))
        }
        false => Ok(()),
    }
}

fn location(marker: &Marker) -> Location {
    Location::new(marker.line(), marker.col() + 1)
}
