//! What is wrong with a document, and where.

use std::fmt;

use crate::{Error, ErrorKind};

/// How many violations of each severity a report keeps; the rest are only counted.
const LIMIT: usize = 100;

/// A place in the text that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    line: u32,
    column: u32,
}

impl Location {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
    /// Marks a node that was not read from text.
    pub(crate) const NONE: Self = Self { line: 0, column: 0 };

    pub(crate) fn new(line: usize, column: usize) -> Self {
        Self {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }

    /// The line, counted from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The column in characters, counted from 1.
    pub fn column(&self) -> u32 {
        self.column
    }
}

/// Whether a [`Violation`] makes the document unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Severity {
    /// It works, but the operator will regret it: `skipVerify: true`, a private key in plain sight.
    Warning,
    /// It cannot be used as it is.
    Error,
}

/// One broken rule: the field, the place in the text and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    severity: Severity,
    path: String,
    location: Option<Location>,
    message: String,
}

impl Violation {
    pub(crate) fn new(severity: Severity, path: String, at: Location, message: String) -> Self {
        Self {
            severity,
            path,
            location: (at != Location::NONE).then_some(at),
            message,
        }
    }

    /// Whether this makes the document unusable or is only a warning.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// The field from the top of its document: `spec.mtls.backends[0].conf.fromCp.role`. Empty
    /// where the document as a whole is meant.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where in the text: the value; for an unknown field its key; for a missing field the mapping
    /// that lacks it. `None` for a resource that was built in code.
    pub fn location(&self) -> Option<Location> {
        self.location
    }

    /// What is wrong and what to do about it.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Location { line, column }) = self.location {
            write!(f, "{line}:{column}: ")?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// All violations that were found in one input, in the order of the text.
///
/// [`Display`](fmt::Display) prints one line for each, led by the name of the source if it is known:
///
/// ```text
/// mesh.yaml:14:13: spec.mtls.backends[0].conf.fromCp.role: must be set
/// ```
///
/// At most 100 violations of each [`Severity`] are kept; a last line counts the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    source: Option<String>,
    violations: Vec<Violation>,
    errors: usize,
    warnings: usize,
}

impl Report {
    pub(crate) fn new(source: Option<String>) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }

    /// Adds an error about the input as a whole.
    pub(crate) fn fail(&mut self, at: Location, message: String) {
        self.push_with(Severity::Error, || {
            Violation::new(Severity::Error, String::new(), at, message)
        });
    }

    /// Composes the violation only if it is kept.
    pub(crate) fn push_with(&mut self, severity: Severity, violation: impl FnOnce() -> Violation) {
        let count = match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= LIMIT {
            self.violations.push(violation());
        }
    }

    /// Brings the violations into the order of the text, whatever order the rules ran in.
    pub(crate) fn sort(&mut self) {
        self.violations.sort_by_key(|violation| violation.location);
    }

    /// The name of the file or other source, if the caller gave one.
    pub fn source_name(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// The violations in the order of the text, errors and warnings mixed.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Those that make the document unusable.
    pub fn errors(&self) -> impl Iterator<Item = &Violation> {
        self.of(Severity::Error)
    }

    /// Those that do not.
    pub fn warnings(&self) -> impl Iterator<Item = &Violation> {
        self.of(Severity::Warning)
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Violation> {
        let violations = self.violations.iter();
        violations.filter(move |violation| violation.severity == severity)
    }

    /// Whether there is at least one error.
    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Returns the report of warnings, or that of errors as the error.
    pub(crate) fn without_errors(self) -> Result<Self, Self> {
        match self.has_errors() {
            true => Err(self),
            false => Ok(self),
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |text: &dyn fmt::Display, located: bool| match &self.source {
            Some(source) if located => format!("{source}:{text}"),
            Some(source) => format!("{source}: {text}"),
            None => text.to_string(),
        };
        let violations = self.violations.iter();
        let mut lines: Vec<_> = violations
            .map(|it| line(it, it.location.is_some()))
            .collect();
        for (count, what) in [(self.errors, "violation"), (self.warnings, "warning")] {
            if let Some(more @ 1..) = count.checked_sub(LIMIT) {
                let plural = if more == 1 { "" } else { "s" };
                lines.push(line(&format_args!("and {more} more {what}{plural}"), false));
            }
        }
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Report {}

impl From<Report> for Error {
    /// An [`ErrorKind::InvalidConfig`] whose message is the whole report.
    fn from(report: Report) -> Self {
        Error::new(ErrorKind::InvalidConfig, report.to_string())
    }
}
