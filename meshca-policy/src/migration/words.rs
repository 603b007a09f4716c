//! A plan for people.

use std::fmt;

use super::observed::Requirement;
use super::plan::{Action, Change, Key, Plan};
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

impl Action {
    fn verb(&self) -> &'static str {
        match self {
            Self::Put(_) => "apply",
            Self::Delete { .. } => "delete",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, Key { kind, name, .. }) = (self.action.verb(), self.action.key());
        write!(f, "{verb} the {kind} `{name}`: {}", self.why)
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
                let (verb, Key { kind, name, .. }) = (change.action.verb(), change.action.key());
                line(format_args!("Operator->>CP: {verb} {kind} {name}"));
            }
            for requirement in self.news(index) {
                let (what, of) = match requirement {
                    Requirement::Ready(issuer) => {
                        line(format_args!("CP->>CP: CA of {} is ready", plain(issuer)));
                        continue;
                    }
                    Requirement::Accepts(issuer) => ("all accept the IDs of ", plain(issuer)),
                    Requirement::Trusts(issuer) => ("all hold the roots of ", plain(issuer)),
                    Requirement::Mode => ("all are as strict as told", ""),
                    Requirement::Holds => ("all serve their certificate", ""),
                    Requirement::Forgets(issuer) => ("none holds the roots of ", plain(issuer)),
                };
                line(format_args!("Proxies-->>CP: {what}{of}"));
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
