//! What every issuer must do, as functions that take any [`Issuer`](meshca_core::Issuer).
//!
//! Describe the issuer under test as a [`Subject`], then [`run_all`] and print the [`Report`]; or call
//! single checks. Which of them apply is read off the issuer's
//! [`Capabilities`](meshca_core::Capabilities) and the subject: what an issuer declares that it cannot do
//! appears in the report as *declared*, and is never silently skipped.
//!
//! | check | holds if |
//! |---|---|
//! | [`names_itself`] | `Display` names it in one line; neither that nor `Debug` shows key material |
//! | [`checks_itself`] | [`Issuer::check`](meshca_core::Issuer::check) passes |
//! | [`publishes_trust`] | the bundle is of the right trust domain, and holds roots that are valid now |
//! | [`requested_id`] | the certificate has the SPIFFE ID that was requested, and only it; is for the key of the request; leads to the bundle; is a workload's |
//! | [`passes_core`] | core's own verification hands it out |
//! | [`key_of_a_csr`] | the same for a key that only a CSR vouches for; names come from the request, not from the CSR |
//! | [`key_types`] | the same for every type of key that is declared |
//! | [`lifetime`] | the lifetime is the one requested, or declared not to be; never more than the declared maximum |
//! | [`further_names`] | DNS names, URIs, common names: signed where declared, refused early where not |
//! | [`intermediates`] | signed where declared, and able to sign; refused early where not |
//! | [`foreign_trust_domain`] | refused, and not as something to try again |
//! | [`malformed_csr`] | refused before any issuer sees it |
//! | [`errors_classified`] | each refusal has the kind and the retry advice of the contract |
//! | [`repeated_request`] | the same request can be made again |
//! | [`cancellation`] | a call dropped at any await point leaves the next one with the same request sound |
//! | [`quirks`](fn@quirks) | core takes what CAs do that is odd and sound, and refuses what is wrong, in this issuer's answers |
//! | [`concurrency`] | 64 requests at once, each answered with its own certificate and serial number |
//! | [`rotation`] | a new root is in the bundle before a leaf under it; old leaves stay valid |
//!
//! # Running it
//!
//! Inside a tokio runtime with time. Every call has a [deadline](Subject::with_deadline), so a
//! hanging issuer fails and does not hang the test. Tokio's *paused* time jumps forward whenever every task waits, and
//! waiting for a socket counts: do not pause it where the issuer talks to a real server.
//!
//! The suite signs about a hundred certificates. What is signed stays signed: do not run it against
//! a CA that bills each one.

mod checks;
mod faults;
mod judge;
mod quirks;
mod stress;
mod subject;

use std::fmt;
use std::path::Path;

use meshca_core::Error;

use self::checks::refusal;
use self::faults::Faults;
pub use checks::{
    checks_itself, errors_classified, foreign_trust_domain, further_names, intermediates,
    key_of_a_csr, key_types, lifetime, malformed_csr, names_itself, passes_core, publishes_trust,
    requested_id,
};
pub use quirks::quirks;
pub use stress::{cancellation, concurrency, repeated_request, rotation};
pub use subject::{DEFAULT_DEADLINE, Rotation, Subject};

/// How many requests [`concurrency`] makes at once.
pub const CONCURRENT_REQUESTS: usize = 64;

/// What one check found.
///
/// It passed if there are no [failures](Self::failures), whatever was
/// [declared](Self::declared).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    proved: Vec<String>,
    declared: Vec<String>,
    failures: Vec<String>,
}

impl Outcome {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// What was seen to work, in words.
    pub fn proved(&self) -> &[String] {
        &self.proved
    }

    /// What the issuer, or the one who runs the kit, says is not so.
    pub fn declared(&self) -> &[String] {
        &self.declared
    }

    /// What is wrong, in words.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Runs a check, which ends early where it cannot continue.
    async fn of(check: impl AsyncFnOnce(&mut Self) -> Result<(), Faults>) -> Self {
        let mut outcome = Self::default();
        if let Err(Faults(faults)) = check(&mut outcome).await {
            faults.into_iter().for_each(|fault| outcome.fail(fault));
        }
        outcome
    }

    fn prove(&mut self, what: impl Into<String>) {
        self.proved.push(what.into());
    }

    fn declare(&mut self, what: impl Into<String>) {
        self.declared.push(what.into());
    }

    fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.failures.contains(&what) {
            self.failures.push(what);
        }
    }

    fn fail_all(&mut self, context: &str, Faults(faults): Faults) {
        for fault in faults {
            self.fail(format!("{context}: {fault}"));
        }
    }

    /// Writes down what came of something that must succeed.
    fn expect<T>(&mut self, what: &str, done: Result<T, Faults>) -> Option<T> {
        match done {
            Ok(done) => {
                self.prove(what);
                Some(done)
            }
            Err(faults) => {
                self.fail_all(what, faults);
                None
            }
        }
    }

    /// Writes down whether an error is a refusal for good, as the contract wants it.
    fn expect_refusal(&mut self, what: &str, error: &Error) {
        match refusal(error) {
            Ok(()) => self.prove(format!("{what}: refused ({error})")),
            Err(why) => self.fail(format!("{what}: {why}")),
        }
    }
}

/// What [`run_all`] found, and about whom. Its `Display` is meant to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    issuer: String,
    about: Vec<String>,
    outcomes: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.outcomes.iter().all(|(_, outcome)| outcome.passed())
    }

    /// Writes it into a folder, under a name that says what was tested.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>, name: &str) -> std::io::Result<()> {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(
            folder.as_ref().join(format!("{name}.txt")),
            format!("{self}\n"),
        )
    }

    /// What it ran against: the `Display` of the issuer.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Each check by its name, in the order in which they ran.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, &Outcome)> {
        self.outcomes.iter().map(|(name, outcome)| (*name, outcome))
    }

    /// Everything that is wrong, each with the name of the check that found it.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.outcomes().flat_map(|(name, outcome)| {
            outcome
                .failures()
                .iter()
                .map(move |failure| (name, failure.as_str()))
        })
    }

    /// Prints the report, and panics if a check failed: how a test ends.
    ///
    /// # Panics
    ///
    /// If a check failed.
    #[track_caller]
    #[allow(
        clippy::panic,
        reason = "a failed assertion is what this function is for"
    )]
    pub fn assert_passed(&self) {
        println!("{self}");
        if !self.passed() {
            panic!("`{}` does not keep the contract:\n{self}", self.issuer);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "conformance of {}", self.issuer)?;
        for line in &self.about {
            writeln!(f, "  {line}")?;
        }
        for (name, outcome) in &self.outcomes {
            let word = match outcome {
                Outcome { failures, .. } if !failures.is_empty() => "FAILED",
                Outcome { declared, .. } if !declared.is_empty() => "declared",
                _ => "holds",
            };
            writeln!(f, "  {word:<9} {name}")?;
            for (mark, lines) in [
                ("FAILED: ", &outcome.failures),
                ("declared: ", &outcome.declared),
                ("", &outcome.proved),
            ] {
                for line in lines {
                    writeln!(f, "            {mark}{line}")?;
                }
            }
        }
        let failed = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| !outcome.passed())
            .count();
        let total = self.outcomes.len();
        match failed {
            0 => write!(f, "  all {total} checks hold"),
            _ => write!(f, "  {failed} of {total} checks FAILED"),
        }
    }
}

/// Runs every check, in the order of the [table](self), whatever the ones before found.
///
/// [`rotation`] comes last, since it changes the CA.
pub async fn run_all(subject: &Subject<'_>) -> Report {
    let outcomes = vec![
        ("names_itself", names_itself(subject).await),
        ("checks_itself", checks_itself(subject).await),
        ("publishes_trust", publishes_trust(subject).await),
        ("requested_id", requested_id(subject).await),
        ("passes_core", passes_core(subject).await),
        ("key_of_a_csr", key_of_a_csr(subject).await),
        ("key_types", key_types(subject).await),
        ("lifetime", lifetime(subject).await),
        ("further_names", further_names(subject).await),
        ("intermediates", intermediates(subject).await),
        ("foreign_trust_domain", foreign_trust_domain(subject).await),
        ("malformed_csr", malformed_csr(subject).await),
        ("errors_classified", errors_classified(subject).await),
        ("repeated_request", repeated_request(subject).await),
        ("cancellation", cancellation(subject).await),
        ("quirks", quirks(subject).await),
        ("concurrency", concurrency(subject).await),
        ("rotation", rotation(subject).await),
    ];
    Report {
        issuer: subject.issuer.to_string(),
        about: subject.about(),
        outcomes,
    }
}
