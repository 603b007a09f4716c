//! What a check finds: everything at once.

use crate::usages::check_root;
use crate::x509::Parsed;
use crate::{CheckReport, Error, ErrorKind, Result, SignedChain};

/// Collects what an [`Issuer::check`](crate::Issuer::check) finds, so that its report has
/// everything that is wrong and not the first of it alone.
///
/// A problem keeps the issuer from signing. What the check cannot find out is a
/// [warning](Self::warn), never a problem.
///
/// ```
/// use meshca_core::issuer::Findings;
/// use meshca_core::{Error, ErrorKind};
///
/// let mut found = Findings::new();
/// found.warn("the CA ends in 12 days: renew it");
/// found.problem(Error::new(ErrorKind::Denied, "the role may not sign: run `…`"));
/// found.problem(Error::new(ErrorKind::InvalidConfig, "the CA's key is of a type that no proxy verifies: …"));
/// let error = found.into_report(false).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Denied);
/// assert!(error.message().starts_with("2 problems: (1) the role may not sign"));
/// assert!(error.message().ends_with("warnings: (1) the CA ends in 12 days: renew it"));
/// ```
#[derive(Debug, Default)]
pub struct Findings {
    problems: Vec<Error>,
    warnings: Vec<String>,
}

impl Findings {
    /// Nothing found yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what keeps the issuer from signing, with what repairs it. Two parts of a check that
    /// say the same count as one.
    pub fn problem(&mut self, error: Error) {
        let text = error.to_string();
        if self.problems.iter().all(|known| known.to_string() != text) {
            self.problems.push(error);
        }
    }

    /// Adds what works and will be regretted, or what the check could not find out.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Takes the result of one part of the check. Its error is a [problem](Self::problem).
    pub fn take<T>(&mut self, part: Result<T>) -> Option<T> {
        part.map_err(|error| self.problem(error)).ok()
    }

    /// Judges the certificates of a CA and of those above it, in any order: what verification will
    /// refuse below them is a problem. Whether names are within their constraints is seen with the
    /// first certificate only, which is a warning.
    pub fn judge_authorities(&mut self, chain: &SignedChain) {
        for der in chain.certificates() {
            let ca = match Parsed::read(der) {
                Ok(ca) => ca,
                Err(why) => {
                    self.refused(format_args!("one cannot be read: {why}"));
                    continue;
                }
            };
            let subject = ca.subject();
            let is_ca = matches!(ca.basic_constraints(), Ok(Some(constraints)) if constraints.ca);
            if !is_ca {
                self.refused(format_args!(
                    "`{subject}` is not a CA (BasicConstraints cA is not set)"
                ));
            }
            if let Err(why) = check_root(&ca) {
                self.refused(why);
            }
            if ca.has_name_constraints() {
                self.warn(format!(
                    "the CA `{subject}` is constrained to some names: whether those of the mesh are among them is seen with the first certificate, and constraints of URIs are not supported"
                ));
            }
        }
    }

    fn refused(&mut self, why: impl std::fmt::Display) {
        let why = format!(
            "what the CA signs will be refused, for a certificate in its chain: {why}; have that CA certified again"
        );
        self.problem(Error::new(ErrorKind::InvalidConfig, why));
    }

    /// Makes the report. With `proven`, a certificate of the issuer was accepted since its last
    /// check, and no request has failed after it. That outranks every problem found, so each
    /// becomes a warning.
    ///
    /// # Errors
    ///
    /// The problem, if there is one. If there are several, an error with the kind and the retry
    /// advice of the first, whose message has all of them. The warnings follow.
    pub fn into_report(self, proven: bool) -> Result<CheckReport> {
        let Self {
            mut problems,
            mut warnings,
        } = self;
        if proven {
            let doubts = problems.drain(..).map(|problem| {
                format!(
                    "this check failed, but a certificate was issued since the last one: {problem}"
                )
            });
            warnings.splice(..0, doubts);
        }
        let Some(first) = problems.first().cloned() else {
            let mut report = CheckReport::new();
            report.warnings = warnings;
            return Ok(report);
        };
        if problems.len() == 1 && warnings.is_empty() {
            return Err(first);
        }
        let mut message = match problems.len() {
            1 => first.to_string(),
            count => format!("{count} problems: {}", numbered(&problems)),
        };
        if !warnings.is_empty() {
            message = format!("{message}; warnings: {}", numbered(&warnings));
        }
        Err(Error::new(first.kind(), message)
            .with_retry(first.retry())
            .with_source(first))
    }
}

fn numbered<T: std::fmt::Display>(all: &[T]) -> String {
    let all = (1..)
        .zip(all)
        .map(|(number, one)| format!("({number}) {one}"));
    all.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Retry;

    fn found(problems: &[&'static str], warnings: &[&str]) -> Findings {
        let mut found = Findings::new();
        for text in problems {
            let kind = ErrorKind::Denied;
            found.take::<()>(Err(Error::new(kind, *text).with_retry(Retry::Backoff)));
        }
        for text in warnings {
            found.warn(*text);
        }
        found
    }

    #[test]
    fn a_report_has_everything() {
        for (problems, warnings, expected) in [
            (&["a"][..], &[][..], "a"),
            (&["a", "b"], &[], "2 problems: (1) a; (2) b"),
            (&["a", "b", "a"], &[], "2 problems: (1) a; (2) b"),
            (&["a"], &["x", "y"], "a; warnings: (1) x; (2) y"),
            (
                &["a", "b"],
                &["x"],
                "2 problems: (1) a; (2) b; warnings: (1) x",
            ),
        ] {
            let error = found(problems, warnings).into_report(false).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::Denied, Retry::Backoff)
            );
            let report = found(problems, warnings).into_report(true).unwrap();
            let different = std::collections::BTreeSet::from_iter(problems).len();
            assert_eq!(report.warnings.len(), different + warnings.len());
            assert!(report.warnings[0].ends_with("since the last one: a"));
        }
        let report = found(&[], &["x"]).into_report(false).unwrap();
        assert_eq!(report.warnings, ["x"]);
    }
}
