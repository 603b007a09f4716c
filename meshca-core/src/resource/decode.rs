//! Reading typed values out of a located tree, with every violation recorded on the way.
//!
//! A reader is a function from a [`Cursor`] to `Option<T>`: `None` means that a violation was
//! recorded and the rest is still worth reading. Paths are linked lists on the stack and become
//! text only for a violation.

use std::cell::{Cell, RefCell};
use std::fmt;

use super::any_settings::{Conf, Model, Spelling};
use super::free_form::FreeForm;
use super::node::{Entry, Node, Value};
use super::path::Path;
use super::violation::{Location, Report, Severity, Violation};
use super::words::MAX_LISTED;
pub(crate) use super::words::{Clip, List, OneOf, nearest};

/// How often a name that was probably meant is looked for.
const MAX_SUGGESTIONS: usize = 1000;
/// In a mapping of more fields than anyone writes, nobody looks for misspelt ones that are missing.
const MAX_FIELDS: usize = 64;

/// The state that all readers of one input share.
pub(crate) struct Context<'o> {
    report: RefCell<Report>,
    lenient: Cell<bool>,
    suggestions: Cell<usize>,
    pub(crate) system_namespace: Option<&'o str>,
    types: &'o [SettingsType],
}

/// The reader of the settings of one type of CA, for [`ParseOptions::settings`](super::ParseOptions::settings).
///
/// [`of`](Self::of) makes one.
#[derive(Clone, Copy, Debug)]
pub struct SettingsType {
    pub(crate) name: &'static str,
    pub(crate) needs_expiration: Option<&'static str>,
    pub(crate) spelling: Spelling,
    pub(crate) read: fn(&mut Fields<'_>) -> Option<Conf>,
    #[cfg(feature = "schema")]
    pub(crate) schema: fn() -> Option<FreeForm>,
}

impl<'o> Context<'o> {
    pub(crate) fn new(
        report: Report,
        system_namespace: Option<&'o str>,
        types: &'o [SettingsType],
    ) -> Self {
        Self {
            report: RefCell::new(report),
            lenient: Cell::new(false),
            suggestions: Cell::new(MAX_SUGGESTIONS),
            system_namespace,
            types,
        }
    }

    /// The types that a resource of this model may name; one that was added later is found first.
    pub(crate) fn types(&self, model: Model) -> impl Iterator<Item = &'o SettingsType> {
        let fits = move |it: &&SettingsType| model == Model::Classic || it.spelling.extension;
        self.types.iter().rev().filter(fits)
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.report.borrow().has_errors()
    }

    pub(crate) fn into_report(self) -> Report {
        self.report.into_inner()
    }

    pub(crate) fn is_lenient(&self) -> bool {
        self.lenient.get()
    }

    /// Runs a reader whose errors are reported as warnings.
    pub(crate) fn leniently<T>(&self, lenient: bool, read: impl FnOnce() -> T) -> T {
        let before = self.lenient.replace(lenient || self.lenient.get());
        let value = read();
        self.lenient.set(before);
        value
    }

    fn record(
        &self,
        severity: Severity,
        path: impl fmt::Display,
        at: Location,
        message: impl fmt::Display,
    ) {
        let severity = match self.lenient.get() {
            true => Severity::Warning,
            false => severity,
        };
        self.report.borrow_mut().push_with(severity, || {
            Violation::new(severity, path.to_string(), at, message.to_string())
        });
    }

    /// The name that was probably meant, if there is exactly one. Only so many are looked for: a
    /// report holds no more, and a hostile input could ask for millions.
    pub(crate) fn nearest<'n>(&self, text: &str, names: &[&'n str]) -> Option<&'n str> {
        let left = self.suggestions.get().checked_sub(1)?;
        self.suggestions.set(left);
        nearest(text, names)
    }
}

/// A value in a document, and the place where a violation of it is reported. `Debug` prints the path only: the value may
/// be a secret.
#[derive(Clone, Copy, derive_more::Debug)]
#[debug("Cursor({path})")]
pub struct Cursor<'c> {
    pub(crate) node: &'c Node<'c>,
    pub(super) path: &'c Path<'c>,
    pub(crate) context: &'c Context<'c>,
}

impl<'c> Cursor<'c> {
    pub(crate) fn new(node: &'c Node<'c>, path: &'c Path<'c>, context: &'c Context<'c>) -> Self {
        Self {
            node,
            path,
            context,
        }
    }

    /// Records an error at this value, and returns the `None` that the reader returns. The message begins in lower case
    /// and names what to write instead. It must not repeat what may be a secret.
    pub fn error<T>(&self, message: impl fmt::Display) -> Option<T> {
        self.context
            .record(Severity::Error, self.path, self.node.at, message);
        None
    }

    /// Records a warning at this value, for what works and will be regretted.
    pub fn warn(&self, message: impl fmt::Display) {
        self.context
            .record(Severity::Warning, self.path, self.node.at, message);
    }

    pub(super) fn expected<T>(&self, what: &str) -> Option<T> {
        self.error(format_args!(
            "expected {what}, found {}",
            self.node.describe()
        ))
    }

    pub(crate) fn fields(self) -> Option<Fields<'c>> {
        self.as_mapping().or_else(|| self.expected("a mapping"))
    }

    /// The fields, if this is a mapping, which is left to the reader.
    pub(crate) fn as_mapping(self) -> Option<Fields<'c>> {
        match &self.node.value {
            Value::Map(entries) => Some(Fields {
                cursor: self,
                entries,
                known: Vec::with_capacity(8),
                missing: RefCell::default(),
            }),
            _ => None,
        }
    }

    /// Reads a mapping. What `read` does not ask for is an unknown field.
    pub fn mapping<T>(self, read: impl FnOnce(&mut Fields<'_>) -> Option<T>) -> Option<T> {
        let mut fields = self.fields()?;
        let value = read(&mut fields);
        fields.finish();
        value
    }

    /// Reads a text, which may be empty; [`settings::non_empty`](super::settings::non_empty) refuses that.
    pub fn text(self) -> Option<&'c str> {
        match &self.node.value {
            Value::Str(text) => Some(text),
            Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) => {
                self.error(format_args!(
                    "expected a string, found {}: put it in quotes",
                    self.node.describe()
                ))
            }
            _ => self.expected("a string"),
        }
    }

    /// Reads every item of a list; `None` if one of them is wrong.
    pub fn list<T>(self, mut read: impl FnMut(Cursor<'_>) -> Option<T>) -> Option<Vec<T>> {
        let Value::Seq(nodes) = &self.node.value else {
            return self.expected("a list");
        };
        let mut items = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.iter().enumerate() {
            let path = self.path.index(index);
            items.extend(read(Cursor::new(node, &path, self.context)));
        }
        (items.len() == nodes.len()).then_some(items)
    }

    /// Judges the value at the end of a path of fields. A list on the way stands for all of its
    /// items. A value of another shape is left to its reader.
    pub(crate) fn visit(self, path: &[&'static str], judge: &dyn Fn(Cursor<'_>)) {
        match (&self.node.value, path) {
            (_, []) => judge(self),
            (Value::Seq(_), _) => {
                self.list(|at| {
                    at.visit(path, judge);
                    Some(())
                });
            }
            (_, [first, rest @ ..]) => {
                if let Some(f) = self.as_mapping() {
                    f.child(first, |at| {
                        at.visit(rest, judge);
                        Some(())
                    });
                }
            }
        }
    }

    /// Reads one of a few words, and returns what stands beside it.
    pub fn choice<T: Copy>(self, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.none_of(&names, format_args!("unknown value `{}`", Clip(text)))
    }

    /// Refuses a text that is none of these names, with the one that was probably meant.
    pub(crate) fn none_of<T>(self, names: &[&str], message: impl fmt::Display) -> Option<T> {
        match self.context.nearest(self.text()?, names) {
            Some(meant) => self.error(format_args!("{message}, did you mean `{meant}`?")),
            None => self.error(format_args!("{message}: it is {}", OneOf(names))),
        }
    }
}

/// A mapping whose fields are asked for by name. A field that no reader asked for is unknown, which is an error.
#[derive(derive_more::Debug)]
#[debug("Fields({})", cursor.path)]
pub struct Fields<'c> {
    pub(crate) cursor: Cursor<'c>,
    entries: &'c [Entry<'c>],
    known: Vec<&'static str>,
    missing: RefCell<Vec<Missing>>,
}

/// An error about something that is not there. It is held back until it is known which fields nobody
/// asked for: if one of those is a misspelling of what is missing, it alone is worth reporting.
struct Missing {
    /// The fields that would have prevented the error.
    names: Vec<&'static str>,
    lenient: bool,
    path: String,
    at: Location,
    message: String,
}

impl<'c> Fields<'c> {
    /// Reads a field that may be absent. An explicit null is as good as absent.
    pub fn opt<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Cursor<'_>) -> Option<T>,
    ) -> Option<T> {
        self.know(&[name]);
        self.child(name, read)
    }

    /// Looks at a field, which stays unknown if no reader asks for it.
    fn child<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Cursor<'_>) -> Option<T>,
    ) -> Option<T> {
        self.read_child(name, self.peek(name)?, read)
    }

    fn read_child<T>(
        &self,
        name: &'static str,
        node: &Node<'_>,
        read: impl FnOnce(Cursor<'_>) -> Option<T>,
    ) -> Option<T> {
        let path = self.cursor.path.field(name);
        read(Cursor::new(node, &path, self.cursor.context))
    }

    /// Reads a field that must be there.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Cursor<'_>) -> Option<T>,
    ) -> Option<T> {
        self.demanded(name, "must be set", read)
    }

    /// The same with a message of its own where the field is not there.
    pub(super) fn demanded<T>(
        &mut self,
        name: &'static str,
        message: &'static str,
        read: impl FnOnce(Cursor<'_>) -> Option<T>,
    ) -> Option<T> {
        self.know(&[name]);
        match self.peek(name) {
            Some(node) => self.read_child(name, node, read),
            None => self.missing(name, message),
        }
    }

    /// Fields that are read elsewhere or not judged.
    pub(crate) fn know(&mut self, names: &[&'static str]) {
        for name in names {
            if !self.known.contains(name) {
                self.known.push(name);
            }
        }
    }

    /// Reads a list that may be absent, which is the same as empty.
    pub fn list<T>(
        &mut self,
        name: &'static str,
        read: impl FnMut(Cursor<'_>) -> Option<T>,
    ) -> Vec<T> {
        self.opt(name, |at| at.list(read)).unwrap_or_default()
    }

    /// Whether a field is there and not null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.peek(name).is_some()
    }

    fn peek(&self, name: &str) -> Option<&'c Node<'c>> {
        self.entries
            .iter()
            .find(|entry| entry.key == name)
            .map(|entry| &entry.value)
            .filter(|node| !node.is_null())
    }

    /// Records an error about a field (or a path of fields) that is not there, at this mapping.
    pub(crate) fn missing<T>(&self, name: &'static str, message: impl fmt::Display) -> Option<T> {
        self.hold_back(&[name], Some(name), self.cursor.node.at, message)
    }

    /// Records an error about a path of fields of which a part is missing, at the innermost mapping
    /// on the way. If the next field of that mapping is misspelt, that is reported instead.
    pub(crate) fn demand(&self, path: &'static str, message: &str) {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        if !self.has(name) {
            self.missing::<()>(path, message);
        } else if !rest.is_empty() {
            self.child(name, |at| {
                let inner = at.as_mapping()?;
                let misspelt = !inner.has(first(rest)) && inner.may_be_misspelt(&[rest]);
                if !misspelt {
                    inner.demand(rest, message);
                }
                Some(())
            });
        }
    }

    /// Records an error about this mapping that any of these fields would have prevented.
    pub(crate) fn missing_any<T>(
        &self,
        names: &[&'static str],
        message: impl fmt::Display,
    ) -> Option<T> {
        self.hold_back(names, None, self.cursor.node.at, message)
    }

    /// Records an error at a field that another field would have prevented.
    pub(crate) fn refuse_without<T>(
        &self,
        name: &'static str,
        other: &'static str,
        message: impl fmt::Display,
    ) -> Option<T> {
        let at = self.peek(name).map_or(self.cursor.node.at, |node| node.at);
        self.hold_back(&[other], Some(name), at, message)
    }

    fn hold_back<T>(
        &self,
        names: &[&'static str],
        field: Option<&str>,
        at: Location,
        message: impl fmt::Display,
    ) -> Option<T> {
        let context = self.cursor.context;
        let mut path = self.cursor.path.to_string();
        if let Some(field) = field {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(field);
        }
        if self.may_be_misspelt(names) {
            self.missing.borrow_mut().push(Missing {
                names: names.to_vec(),
                lenient: context.is_lenient(),
                path,
                at,
                message: message.to_string(),
            });
        } else {
            context.record(Severity::Error, path, at, message);
        }
        None
    }

    /// Whether a field is near enough to one of these to be meant for it.
    fn may_be_misspelt(&self, names: &[&'static str]) -> bool {
        self.entries.len() <= MAX_FIELDS
            && self.entries.iter().any(|entry| {
                names
                    .iter()
                    .any(|name| nearest(&entry.key, &[first(name)]).is_some())
            })
    }

    /// Reports what is missing, unless it is there under one of these misspelt names.
    fn report_missing(&self, misspelt: &[&str]) {
        let context = self.cursor.context;
        for missing in self.missing.take() {
            let mut names = missing.names.iter();
            if !names.any(|name| misspelt.contains(&first(name))) {
                context.leniently(missing.lenient, || {
                    context.record(Severity::Error, missing.path, missing.at, missing.message);
                });
            }
        }
    }

    /// Records an error at a field's key, if the field is there; it counts as known.
    pub(crate) fn refuse<T>(
        &mut self,
        name: &'static str,
        message: impl fmt::Display,
    ) -> Option<T> {
        let mut given = self.entries.iter().filter(|entry| !entry.value.is_null());
        if let Some(entry) = given.find(|entry| entry.key == name) {
            self.know(&[name]);
            self.refuse_entry(entry, message);
        }
        None
    }

    fn refuse_entry(&self, entry: &Entry<'_>, message: impl fmt::Display) {
        let path = self.cursor.path.field(&entry.key);
        self.cursor
            .context
            .record(Severity::Error, path, entry.key_at, message);
    }

    fn refuse_misspelt(&self, entry: &Entry<'_>, meant: &str) {
        self.refuse_entry(
            entry,
            format_args!("unknown field, did you mean `{meant}`?"),
        );
    }

    /// Requires exactly one of these fields; `None` after a violation. Read each of them with [`opt`](Self::opt) in any case.
    pub fn exactly_one(&mut self, names: &[&'static str]) -> Option<()> {
        self.know(names);
        let given = names.iter().copied().filter(|name| self.has(name));
        let all = List(names);
        let rule = format_args!("exactly one of {all} must be set");
        match given.collect::<Vec<_>>().as_slice() {
            [_] => Some(()),
            [] => self.missing_any(names, rule),
            several => {
                let several = List(several);
                self.cursor
                    .error(format_args!("{rule}, here are {several}"))
            }
        }
    }

    /// Reads the word in `type`. Beside each word stands the field that belongs to it. The fields of
    /// the other words are refused, for a reason in which `{own}` stands for the field of this word.
    ///
    /// If the word is wrong, the only field that is there tells which word was meant, so that the
    /// field is judged as well.
    pub(crate) fn tag(
        &mut self,
        words: &[(&'static str, &'static str)],
        refusal: &str,
    ) -> Option<&'static str> {
        let choices: Vec<_> = words.iter().map(|pair| (pair.0, *pair)).collect();
        if let Some((word, own)) = self.required("type", |at| at.choice(&choices)) {
            for (_, field) in words {
                if *field != own && self.has(field) {
                    self.refuse::<()>(field, refusal.replace("{own}", own));
                }
            }
            return Some(word);
        }
        let mut likely = words
            .iter()
            .filter(|(_, field)| words.len() == 1 || self.has(field));
        let only = likely.next().filter(|_| likely.next().is_none());
        words.iter().for_each(|(_, field)| self.know(&[field]));
        only.map(|(word, _)| *word)
    }

    /// Every field that nobody asked for is a violation.
    pub(crate) fn finish(&self) {
        let context = self.cursor.context;
        let unknown: Vec<_> = self
            .leftovers()
            .map(|entry| (entry, context.nearest(&entry.key, &self.known)))
            .collect();
        let misspelt: Vec<_> = unknown.iter().filter_map(|(_, meant)| *meant).collect();
        self.report_missing(&misspelt);
        for (entry, meant) in unknown {
            match meant {
                Some(name) => self.refuse_misspelt(entry, name),
                None if self.known.len() > MAX_LISTED => self.refuse_entry(entry, "unknown field"),
                None => {
                    let known = List(&self.known);
                    self.refuse_entry(entry, format_args!("unknown field: here can be {known}"));
                }
            }
        }
    }

    /// Whether there is no field that nobody asked for.
    pub(crate) fn all_known(&self) -> bool {
        self.leftovers().next().is_none()
    }

    fn leftovers(&self) -> impl Iterator<Item = &'c Entry<'c>> {
        self.entries
            .iter()
            .filter(|entry| !self.known.iter().any(|name| *name == entry.key))
    }

    /// Keeps what nobody asked for, except near misses of fields of ours.
    pub(crate) fn rest(&self, ours: &[&str], theirs: &[&str]) -> FreeForm {
        self.report_missing(&[]);
        FreeForm::from_entries(self.leftovers().filter(|entry| {
            let close = ours.iter().find(|name| {
                !theirs.contains(&entry.key.as_ref())
                    && (entry.key.eq_ignore_ascii_case(name)
                        || strsim::osa_distance(&entry.key, name) == 1)
            });
            if let Some(name) = close {
                self.refuse_misspelt(entry, name);
            }
            close.is_none()
        }))
    }

    /// Keeps those of the leftovers that are named, and counts them as known.
    pub(crate) fn keep(&mut self, names: &[&'static str]) -> FreeForm {
        self.know(names);
        FreeForm::from_entries(
            self.entries
                .iter()
                .filter(|entry| names.contains(&entry.key.as_ref())),
        )
    }

    /// Everything that was not asked for, without a judgement.
    pub(crate) fn remaining(&self) -> FreeForm {
        FreeForm::from_entries(self.leftovers())
    }
}

/// The first field of a path.
fn first(path: &'static str) -> &'static str {
    path.split('.').next().unwrap_or_default()
}

impl Drop for Fields<'_> {
    /// What is missing is reported even if the reader gave up before it judged the other fields.
    fn drop(&mut self) {
        self.report_missing(&[]);
    }
}
