//! What a check finds: everything at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{CheckReport, Error, Result, Retry, SignedChain};

/// Whether the last request of an issuer worked: a certificate was accepted since the last check, and
/// no request has failed after it.
///
/// An [`Issuer`](crate::Issuer) holds one, has it [watch](Self::watch) each request, and
/// [begins](Self::begin_check) each check with it. Clones share what is known.
///
/// ```
/// use meshca_core::issuer::Evidence;
/// use meshca_core::{Error, ErrorKind};
///
/// let evidence = Evidence::new();
/// // In `sign`:
/// let signed = evidence.watch(Err(Error::new(ErrorKind::Denied, "no")));
/// // In `check`:
/// let mut found = evidence.begin_check();
/// found.problem(Error::new(ErrorKind::Denied, "the role may not sign: run `…`"));
/// found.into_report().unwrap_err();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Evidence(Arc<AtomicBool>);

impl Evidence {
    /// Nothing was requested yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches a request: takes the result of asking the CA, and returns it with an answer that also
    /// reports here what its verification makes of it. The answer keeps its
    /// [receipt](SignedChain::with_receipt).
    ///
    /// A request that is refused before the CA is asked need not be watched: it proves nothing.
    ///
    /// # Errors
    ///
    /// The error that it was given.
    pub fn watch(&self, signed: Result<SignedChain>) -> Result<SignedChain> {
        match signed {
            Ok(answer) => {
                let evidence = self.clone();
                Ok(answer.with_listener(move |accepted| evidence.set(accepted)))
            }
            Err(error) => {
                self.set(false);
                Err(error)
            }
        }
    }

    fn set(&self, works: bool) {
        self.0.store(works, Ordering::Relaxed);
    }

    /// Begins a check. A certificate that was accepted before counts for this check and for no later
    /// one.
    pub fn begin_check(&self) -> Findings {
        Findings {
            proven: self.0.swap(false, Ordering::Relaxed),
            ..Findings::default()
        }
    }
}

/// Collects what an [`Issuer::check`](crate::Issuer::check) finds, so that its report has
/// everything that is wrong and not the first of it alone.
///
/// A [problem](Self::problem) keeps the issuer from signing, as the check concludes from rights,
/// settings and certificates. A certificate that was [accepted](Evidence) since the last check
/// disproves that, so the problem becomes a warning. A [failure](Self::failure) is what the check has
/// met itself, and nothing disproves it. What the check cannot find out is a [warning](Self::warn).
///
/// ```
/// use meshca_core::issuer::Findings;
/// use meshca_core::{Error, ErrorKind};
///
/// let mut found = Findings::new();
/// found.warn("the CA ends in 12 days: renew it");
/// found.problem(Error::new(ErrorKind::Denied, "the role may not sign: run `…`"));
/// found.problem(Error::new(ErrorKind::InvalidConfig, "the CA's key is of a type that no proxy verifies: …"));
/// let error = found.into_report().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Denied);
/// assert!(error.message().starts_with("2 problems: (1) the role may not sign"));
/// assert!(error.message().ends_with("warnings: (1) the CA ends in 12 days: renew it"));
/// ```
#[derive(Debug, Default)]
pub struct Findings {
    failures: Vec<Error>,
    problems: Vec<Error>,
    warnings: Vec<String>,
    proven: bool,
}

impl Findings {
    /// Begins a check of an issuer that has no [`Evidence`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what keeps the issuer from signing as far as can be concluded, with what repairs it. Two
    /// parts of a check that report the same count as one.
    pub fn problem(&mut self, error: Error) {
        add(&mut self.problems, error);
    }

    /// Adds what keeps the issuer from signing now, such as a sealed server or a refused login: no
    /// earlier signature outranks it.
    pub fn failure(&mut self, error: Error) {
        add(&mut self.failures, error);
    }

    /// Whether a failure was found, after which other parts of the check can find out nothing.
    pub fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// The problems found so far.
    pub fn problems(&self) -> &[Error] {
        &self.problems
    }

    /// Adds what works and will be regretted, or what the check could not find out.
    pub fn warn(&mut self, warning: impl Into<String>) {
        let warning = warning.into();
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Takes what a part of the check found. Its problems are those of the whole, or warnings.
    pub(crate) fn include(&mut self, part: Self, problems: bool) {
        for problem in part.problems {
            match problems {
                true => self.problem(problem),
                false => self.warn(problem.to_string()),
            }
        }
        part.warnings
            .into_iter()
            .for_each(|warning| self.warn(warning));
    }

    /// Takes the result of one part of the check. Its error is a [problem](Self::problem).
    pub fn take<T>(&mut self, part: Result<T>) -> Option<T> {
        part.map_err(|error| self.problem(error)).ok()
    }

    /// Makes the report.
    ///
    /// # Errors
    ///
    /// What was found, if that is one problem or failure. If there are several, an error with the kind
    /// of the first, whose message has all of them; it is not worth a retry if one of them is not. The
    /// warnings follow.
    pub fn into_report(self) -> Result<CheckReport> {
        let Self {
            failures: mut wrong,
            problems,
            mut warnings,
            proven,
        } = self;
        if proven {
            let doubts = problems.into_iter().map(|problem| {
                format!(
                    "this check failed, but a certificate was issued since the last one: {problem}"
                )
            });
            warnings.splice(..0, doubts);
        } else {
            problems
                .into_iter()
                .for_each(|problem| add(&mut wrong, problem));
        }
        let Some(first) = wrong.first().cloned() else {
            let mut report = CheckReport::new();
            report.warnings = warnings;
            return Ok(report);
        };
        if wrong.len() == 1 && warnings.is_empty() {
            return Err(first);
        }
        let mut message = match wrong.len() {
            1 => first.to_string(),
            count => format!("{count} problems: {}", numbered(&wrong)),
        };
        if !warnings.is_empty() {
            message = format!("{message}; warnings: {}", numbered(&warnings));
        }
        let hopeless = wrong.iter().any(|error| error.retry() == Retry::Never);
        let retry = match hopeless {
            true => Retry::Never,
            false => first.retry(),
        };
        Err(Error::new(first.kind(), message)
            .with_retry(retry)
            .with_source(first))
    }
}

/// Two that say the same count as one.
fn add(errors: &mut Vec<Error>, error: Error) {
    let text = error.to_string();
    if errors.iter().all(|known| known.to_string() != text) {
        errors.push(error);
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
    use std::time::{Duration, SystemTime};

    use rcgen::{
        BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    };

    use super::*;
    use crate::{
        CertificateRequest, CertificateSpec, ErrorKind, KeyType, PrivateKey, SpiffeId, TrustBundle,
        TrustDomain,
    };

    fn error((text, retry): (&'static str, Retry)) -> Error {
        Error::new(ErrorKind::Denied, text).with_retry(retry)
    }

    const A: (&str, Retry) = ("a", Retry::Backoff);
    const B: (&str, Retry) = ("b", Retry::Backoff);
    const NEVER: (&str, Retry) = ("never", Retry::Never);

    #[test]
    fn a_report_has_everything() {
        type Texts = &'static [(&'static str, Retry)];
        for (failures, problems, warnings, expected, retry) in [
            (
                &[][..] as Texts,
                &[A][..] as Texts,
                &[][..],
                "a",
                Retry::Backoff,
            ),
            (
                &[],
                &[A, B],
                &[],
                "2 problems: (1) a; (2) b",
                Retry::Backoff,
            ),
            (
                &[],
                &[A, B, A],
                &[],
                "2 problems: (1) a; (2) b",
                Retry::Backoff,
            ),
            (
                &[],
                &[A, NEVER],
                &[],
                "2 problems: (1) a; (2) never",
                Retry::Never,
            ),
            (
                &[],
                &[A],
                &["x", "y"],
                "a; warnings: (1) x; (2) y",
                Retry::Backoff,
            ),
            (&[B], &[A], &[], "2 problems: (1) b; (2) a", Retry::Backoff),
            (&[A], &[A], &[], "a", Retry::Backoff),
            (
                &[],
                &[A, B],
                &["x"],
                "2 problems: (1) a; (2) b; warnings: (1) x",
                Retry::Backoff,
            ),
        ] {
            for proven in [false, true] {
                let mut found = Findings {
                    proven,
                    ..Findings::new()
                };
                failures.iter().for_each(|one| found.failure(error(*one)));
                problems.iter().for_each(|one| {
                    found.take::<()>(Err(error(*one)));
                });
                warnings.iter().for_each(|one| found.warn(*one));
                let different = found.problems().len();
                match (proven, failures) {
                    (false, _) => {
                        let error = found.into_report().unwrap_err();
                        assert_eq!(error.to_string(), expected);
                        assert_eq!((error.kind(), error.retry()), (ErrorKind::Denied, retry));
                    }
                    (true, []) => {
                        let report = found.into_report().unwrap();
                        assert_eq!(report.warnings.len(), different + warnings.len());
                        assert!(report.warnings[0].ends_with("since the last one: a"));
                    }
                    (true, _) => {
                        let error = found.into_report().unwrap_err().to_string();
                        assert!(error.starts_with(failures[0].0), "{error}");
                        assert!(error.contains("since the last one: a"), "{error}");
                    }
                }
            }
        }
        let mut found = Findings::new();
        found.warn("x");
        assert_eq!(found.into_report().unwrap().warnings, ["x"]);
    }

    #[test]
    fn the_last_request_since_the_last_check_decides() {
        enum Step {
            /// Asks the CA, which refuses.
            Refused,
            /// Asks it, and does not verify the answer.
            Unverified,
            /// Asks it, and verifies the answer.
            Verified(bool),
            Check,
        }
        use Step::*;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        let id = SpiffeId::new("spiffe://example.org/cart").unwrap();
        let request =
            CertificateRequest::for_key(CertificateSpec::workload(id), &key, now).unwrap();
        let (ca_key, other_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let bundle = |key: &KeyPair| {
            let root = ca.self_signed(key).unwrap();
            TrustBundle::new(TrustDomain::new("example.org").unwrap(), [root.into()]).unwrap()
        };
        let (roots, strangers) = (bundle(&ca_key), bundle(&other_key));
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        let uri = request.spiffe_id().to_string();
        leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (leaf.not_before, leaf.not_after) = (now.into(), (now + Duration::from_secs(3600)).into());
        let issuer = Issuer::from_params(&ca, &ca_key);
        let leaf = leaf.signed_by(&**key.material(), &issuer).unwrap();
        let signed = SignedChain::new([leaf.into()]);
        for (steps, works) in [
            (&[][..], false),
            (&[Unverified], false),
            (&[Verified(true)], true),
            (&[Verified(true), Unverified], true),
            (&[Verified(true), Check], false),
            (&[Verified(true), Check, Verified(true)], true),
            (&[Verified(true), Refused], false),
            (&[Verified(true), Verified(false)], false),
            (&[Verified(false), Verified(true)], true),
            (&[Refused, Verified(true)], true),
        ] {
            let evidence = Evidence::new();
            for step in steps {
                let heard = Arc::new(AtomicBool::new(false));
                let receipt = Arc::clone(&heard);
                let answer = signed.clone().with_receipt(move |_| {
                    receipt.store(true, Ordering::Relaxed);
                    None
                });
                match step {
                    Refused => drop(evidence.watch(Err(Error::new(ErrorKind::Denied, "no")))),
                    Unverified => drop(evidence.watch(Ok(answer))),
                    Verified(accepted) => {
                        let answer = evidence.watch(Ok(answer)).unwrap();
                        let bundle = match accepted {
                            true => &roots,
                            false => &strangers,
                        };
                        assert_eq!(answer.verify(&request, bundle, now).is_ok(), *accepted);
                        assert!(heard.load(Ordering::Relaxed), "the receipt is kept");
                    }
                    Check => drop(evidence.begin_check()),
                }
            }
            assert_eq!(evidence.begin_check().proven, works);
        }
    }
}
