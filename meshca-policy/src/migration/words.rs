//! A plan for people.

use std::fmt;

use super::observed::Requirement;
use super::plan::{Action, Change, Plan};
use crate::BackendKey;
use crate::MeshResources;

/// Who issues, in words.
fn issuers(resources: &MeshResources) -> String {
    let mut names: Vec<String> = resources
        .identities
        .iter()
        .filter(|it| it.provider.is_some())
        .map(|it| BackendKey::of(it).to_string())
        .collect();
    let backend = resources.mesh.enabled_backend();
    names.extend(backend.map(|it| BackendKey::classic(&it.name).to_string()));
    match names.is_empty() {
        true => "no CA".to_owned(),
        false => names.join(" and "),
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.action.key();
        let verb = match self.action {
            Action::Put(_) => "apply",
            Action::Delete { .. } => "delete",
        };
        write!(f, "{verb} the {} `{}`: {}", key.kind, key.name, self.why)
    }
}

/// What is waited for, and why.
impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(issuer) => write!(f, "the CA of {issuer} is ready"),
            Self::Accepts(BackendKey::Classic(_)) => f.write_str(
                "every proxy accepts the classic SPIFFE IDs, because some peers show them",
            ),
            Self::Accepts(issuer) => write!(
                f,
                "every proxy accepts the SPIFFE IDs of {issuer}, because some peers will show them before others"
            ),
            Self::Trusts(issuer) => write!(
                f,
                "every proxy holds the roots of {issuer}, because one without them would refuse the first peer that has a new certificate"
            ),
            Self::Mode => f.write_str(
                "every proxy has been told how strict it is, because what told it so far may go next",
            ),
            Self::Holds => f.write_str(
                "every proxy serves the certificate that it is given now, because what it had before may stop being believed next",
            ),
            Self::Forgets(issuer) => write!(
                f,
                "no proxy holds the roots of {issuer} any more, because only then its key is worth nothing"
            ),
        }
    }
}

/// The plan in words, with numbered steps.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "The mesh `{}` moves from {} to {}.",
            self.from.name(),
            issuers(&self.from),
            issuers(&self.to)
        )?;
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(f, "\n{}. {}: {}.", index + 1, step.title, step.why)?;
            for change in &step.changes {
                writeln!(f, "   - {change}")?;
            }
            let gate = self.news(index);
            if !gate.is_empty() {
                writeln!(f, "   Wait until")?;
                for requirement in gate {
                    writeln!(f, "   - {requirement}")?;
                }
            }
            for fact in &step.afterwards {
                writeln!(f, "   Then {fact}.")?;
            }
        }
        Ok(())
    }
}

impl Plan {
    /// What a gate asks for that none before it has: who once trusts and accepts goes on doing so
    /// until the end.
    fn news(&self, step: usize) -> Vec<&Requirement> {
        let before = || self.steps.iter().take(step).flat_map(|step| &step.gate);
        let lasts = |it: &Requirement| !matches!(it, Requirement::Mode | Requirement::Holds);
        let gate = self.steps.get(step).into_iter().flat_map(|it| &it.gate);
        gate.filter(|it| !(lasts(it) && before().any(|known| known == *it)))
            .collect()
    }

    /// The plan as a Mermaid sequence diagram: who does what, and what is waited for.
    pub fn to_mermaid(&self) -> String {
        let mut text = String::from(
            "sequenceDiagram\n    participant Operator\n    participant CP as Control plane\n    participant Proxies\n",
        );
        let mut line = |words: fmt::Arguments<'_>| {
            text.push_str("    ");
            // `;` ends a statement and `#` begins an entity.
            text.push_str(&words.to_string().replace(';', ",").replace('#', ""));
            text.push('\n');
        };
        for (index, step) in self.steps.iter().enumerate() {
            line(format_args!(
                "Note over Operator,Proxies: {}. {}",
                index + 1,
                step.title
            ));
            for change in &step.changes {
                let key = change.action.key();
                let verb = match change.action {
                    Action::Put(_) => "apply",
                    Action::Delete { .. } => "delete",
                };
                line(format_args!(
                    "Operator->>CP: {verb} {} {}",
                    key.kind, key.name
                ));
            }
            for requirement in self.news(index) {
                match requirement {
                    Requirement::Ready(issuer) => {
                        line(format_args!("CP->>CP: CA of {} is ready", plain(issuer)));
                    }
                    Requirement::Accepts(issuer) => line(format_args!(
                        "Proxies-->>CP: all accept the IDs of {}",
                        plain(issuer)
                    )),
                    Requirement::Trusts(issuer) => line(format_args!(
                        "Proxies-->>CP: all hold the roots of {}",
                        plain(issuer)
                    )),
                    Requirement::Mode => {
                        line(format_args!("Proxies-->>CP: all are as strict as told"));
                    }
                    Requirement::Holds => {
                        line(format_args!("Proxies-->>CP: all serve their certificate"));
                    }
                    Requirement::Forgets(issuer) => line(format_args!(
                        "Proxies-->>CP: none holds the roots of {}",
                        plain(issuer)
                    )),
                }
            }
            for fact in &step.afterwards {
                line(format_args!("Note over Proxies: {fact}"));
            }
        }
        text
    }
}

fn plain(issuer: &BackendKey) -> &str {
    match issuer {
        BackendKey::Classic(name) | BackendKey::Modern(name) => name,
    }
}
