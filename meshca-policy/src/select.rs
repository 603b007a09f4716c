//! Which identity a workload gets, and why.
//!
//! A MeshIdentity that selects the workload wins over the classic CAs of its `Mesh`; of several
//! the one with the most `matchLabels`, and of those the first by name, as Kuma has it. A
//! MeshIdentity without a provider announces a SPIFFE ID and issues nothing. It takes no part in
//! the contest: that is what makes it a safe first step of a change of the trust domain.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::resource::{IdentityProvider, MeshIdentity};
use meshca_core::spiffe::{Environment, Workload};
use meshca_core::{Error, Result, SpiffeId, TrustDomain};

use crate::{BackendKey, MeshResources};

/// Why a workload gets nothing.
pub(crate) const NO_ISSUER: &str =
    "no MeshIdentity with a provider selects it, and the mesh has no enabled backend";

/// What selection must know beside the resources.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelectOptions {
    /// The zone of this control plane, for `{{ .Zone }}`.
    pub zone: String,
    /// What the SPIFFE IDs of MeshIdentities without a path template look like.
    pub environment: Environment,
    /// What to do if the MeshIdentity that wins is not ready.
    pub unready: Unready,
}

impl SelectOptions {
    /// In this zone; whoever wins is waited for.
    pub fn new(zone: impl Into<String>, environment: Environment) -> Self {
        Self {
            zone: zone.into(),
            environment,
            unready: Unready::default(),
        }
    }

    /// The same with another choice for winners that are not ready.
    #[must_use]
    pub fn with_unready(mut self, unready: Unready) -> Self {
        self.unready = unready;
        self
    }
}

/// What to do if the MeshIdentity that wins is not ready: its CA cannot be built, or the workload
/// lacks a label of the SPIFFE ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unready {
    /// Wait for it, as Kuma does: a workload that was given one identity by the operator does not
    /// appear under another. What it holds already stays with it while that is valid.
    #[default]
    Wait,
    /// Take the next one that is ready, and the classic CA after the last.
    Next,
}

/// The resources of a mesh, prepared for selection.
#[derive(Clone, Debug)]
pub struct IdentityRules {
    /// Best first.
    rules: Vec<Rule>,
    mesh: meshca_core::resource::Mesh,
    options: SelectOptions,
}

#[derive(Clone, Debug)]
struct Rule {
    identity: Arc<MeshIdentity>,
    labels: usize,
    trust_domain: Result<TrustDomain, Error>,
}

impl IdentityRules {
    /// Prepares the resources.
    pub fn new(resources: &MeshResources, options: SelectOptions) -> Self {
        let mut rules: Vec<Rule> = resources
            .identities
            .iter()
            .filter_map(|identity| {
                Some(Rule {
                    labels: identity.selector.match_labels()?.len(),
                    trust_domain: identity.trust_domain_in(&options.zone),
                    identity: Arc::new(identity.clone()),
                })
            })
            .collect();
        rules.sort_by_cached_key(|it| (Reverse(it.labels), it.identity.metadata.name.clone()));
        Self {
            rules,
            mesh: resources.mesh.clone(),
            options,
        }
    }

    /// What this workload gets, and how that came about. `ready` says why a MeshIdentity cannot
    /// issue now, if it cannot.
    pub fn select(
        &self,
        workload: &Workload,
        ready: impl Fn(&MeshIdentity) -> Result<(), String>,
    ) -> Selection {
        let mut candidates = Vec::new();
        let assigned = self.walk(workload, ready, |rule, verdict| {
            candidates.push(Candidate {
                identity: rule.identity.metadata.name.clone(),
                labels: rule.labels,
                verdict,
            });
            true
        });
        Selection {
            assigned,
            candidates,
        }
    }

    /// Decides the same, without how that came about: a mesh has many workloads.
    pub fn assign(
        &self,
        workload: &Workload,
        ready: impl Fn(&MeshIdentity) -> Result<(), String>,
    ) -> Assigned {
        self.walk(workload, ready, |_, verdict| {
            matches!(verdict, Verdict::Announced(_) | Verdict::NotReady(_))
        })
    }

    /// Goes through those that select it, best first, for as long as `each` wants to hear of more.
    fn walk(
        &self,
        workload: &Workload,
        ready: impl Fn(&MeshIdentity) -> Result<(), String>,
        mut each: impl FnMut(&Rule, Verdict) -> bool,
    ) -> Assigned {
        let mut assigned = None;
        for rule in &self.rules {
            if !rule.identity.selector.matches(workload.labels()) {
                continue;
            }
            let source = source(&rule.identity);
            let id = match &rule.trust_domain {
                Ok(domain) => {
                    let environment = self.options.environment;
                    rule.identity.spiffe_id_of(domain, workload, environment)
                }
                Err(error) => Err(error.clone()),
            };
            let verdict = match (id, source) {
                (Ok(id), None) => Verdict::Announced(id),
                _ if assigned.is_some() => Verdict::Outranked,
                (Ok(spiffe_id), Some(source)) => match ready(&rule.identity) {
                    Ok(()) => {
                        assigned = Some(Assigned::Modern {
                            identity: Arc::clone(&rule.identity),
                            spiffe_id,
                            source,
                        });
                        Verdict::Won
                    }
                    Err(why) => Verdict::NotReady(why),
                },
                (Err(error), _) => Verdict::NotReady(error.to_string()),
            };
            if let Verdict::NotReady(why) = &verdict
                && self.options.unready == Unready::Wait
                && source.is_some()
            {
                assigned = Some(Assigned::Waiting {
                    issuer: BackendKey::of(&rule.identity),
                    why: why.clone(),
                });
            }
            if !each(rule, verdict) {
                break;
            }
        }
        assigned.unwrap_or_else(|| self.classic(workload))
    }

    fn classic(&self, workload: &Workload) -> Assigned {
        let Some(backend) = self.mesh.enabled_backend() else {
            return Assigned::Nothing(NO_ISSUER.to_owned());
        };
        match self.mesh.spiffe_id_of(workload) {
            Ok(spiffe_id) => Assigned::Classic {
                backend: backend.name.clone(),
                spiffe_id,
            },
            Err(error) => Assigned::Waiting {
                issuer: BackendKey::classic(&backend.name),
                why: error.to_string(),
            },
        }
    }
}

fn source(identity: &MeshIdentity) -> Option<Source> {
    Some(match identity.provider.as_ref()? {
        IdentityProvider::Spire(spire) => Source::Spire {
            agent_timeout: spire.agent_timeout,
        },
        _ => Source::Issuer,
    })
}

/// What a workload gets, and how that came about. `Display` explains it to an operator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Selection {
    /// What it gets.
    pub assigned: Assigned,
    /// Every MeshIdentity that selects it, best first.
    pub candidates: Vec<Candidate>,
}

impl Selection {
    /// SPIFFE IDs that the workload may have one day: those of MeshIdentities without a provider.
    /// Peers should accept them already.
    pub fn announced(&self) -> impl Iterator<Item = &SpiffeId> {
        self.candidates.iter().filter_map(|it| match &it.verdict {
            Verdict::Announced(id) => Some(id),
            _ => None,
        })
    }

    /// The SPIFFE ID that it gets, if any.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.assigned.spiffe_id()
    }
}

/// What a workload gets.
#[derive(Clone, Debug)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a control plane must know what to do in every case"
)]
pub enum Assigned {
    /// The identity of a MeshIdentity.
    Modern {
        /// The one that won.
        identity: Arc<MeshIdentity>,
        /// The SPIFFE ID.
        spiffe_id: SpiffeId,
        /// Who issues.
        source: Source,
    },
    /// The classic identity of `Mesh.mtls`.
    Classic {
        /// The enabled backend.
        backend: String,
        /// The SPIFFE ID.
        spiffe_id: SpiffeId,
    },
    /// Nothing yet: the MeshIdentity that won is not ready, and is [waited for](Unready::Wait), or
    /// the workload lacks what the classic SPIFFE ID is made of.
    Waiting {
        /// The CA that issues once nothing is lacking.
        issuer: BackendKey,
        /// What it lacks.
        why: String,
    },
    /// Nothing, and nothing is owed; with the reason.
    Nothing(String),
}

impl Assigned {
    /// The CA that issues, or that will once nothing is lacking; `None` if nothing is owed.
    pub fn issuer(&self) -> Option<BackendKey> {
        match self {
            Self::Modern { identity, .. } => Some(BackendKey::of(identity)),
            Self::Classic { backend, .. } => Some(BackendKey::classic(backend)),
            Self::Waiting { issuer, .. } => Some(issuer.clone()),
            Self::Nothing(_) => None,
        }
    }

    /// The SPIFFE ID that is given now, if any.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Modern { spiffe_id, .. } | Self::Classic { spiffe_id, .. } => Some(spiffe_id),
            Self::Waiting { .. } | Self::Nothing(_) => None,
        }
    }
}

/// Who issues what a MeshIdentity promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The CA of its provider.
    Issuer,
    /// A SPIRE agent beside the proxy, which takes its identity from there: nothing is issued
    /// here.
    Spire {
        /// How long the proxy waits for the agent, if the resource says.
        agent_timeout: Option<Duration>,
    },
}

/// A MeshIdentity that selects a workload.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// Its name.
    pub identity: String,
    /// How many labels its selector has.
    pub labels: usize,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a [`Candidate`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The workload gets its identity from this one.
    Won,
    /// Another one has more labels, or as many and a name before its.
    Outranked,
    /// It has no provider, and announces this SPIFFE ID.
    Announced(SpiffeId),
    /// It cannot give this workload an identity now.
    NotReady(String),
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.assigned {
            Assigned::Modern {
                identity,
                spiffe_id,
                ..
            } => write!(
                f,
                "{spiffe_id}, by the MeshIdentity `{}`",
                identity.metadata.name
            )?,
            Assigned::Classic { backend, spiffe_id } => {
                write!(f, "{spiffe_id}, by the backend `{backend}` of the mesh")?;
            }
            Assigned::Waiting {
                issuer: issuer @ BackendKey::Modern(_),
                why,
            } => write!(f, "nothing before {issuer} is ready: {why}")?,
            Assigned::Waiting { why, .. } => write!(f, "nothing yet: {why}")?,
            Assigned::Nothing(why) => write!(f, "nothing: {why}")?,
        }
        for candidate in &self.candidates {
            let Candidate {
                identity, labels, ..
            } = candidate;
            let plural = if *labels == 1 { "" } else { "s" };
            write!(f, "\n- `{identity}` selects it by {labels} label{plural}: ")?;
            match &candidate.verdict {
                Verdict::Won => f.write_str("the most specific, then the first by name")?,
                Verdict::Outranked => f.write_str("outranked")?,
                Verdict::Announced(id) => write!(f, "announces {id} and has no provider")?,
                Verdict::NotReady(why) => write!(f, "not ready: {why}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meshca_core::resource::Resource;

    use super::*;

    const MESH: &str = "
type: Mesh
name: default
mtls:
  enabledBackend: ca-1
  backends: [{name: ca-1, type: builtin}]
";

    fn rules(text: &str, unready: Unready) -> IdentityRules {
        let documents = Resource::parse(text).unwrap();
        let resources = MeshResources::from_resources(documents).unwrap();
        let options = SelectOptions::new("east", Environment::Universal).with_unready(unready);
        IdentityRules::new(&resources, options)
    }

    fn identity(name: &str, selector: &str, provider: bool) -> String {
        let provider = match provider {
            true => {
                "{type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}"
            }
            false => "null",
        };
        let provider = match provider {
            "null" => String::new(),
            provider => format!(", provider: {provider}"),
        };
        format!(
            "---\n{{type: MeshIdentity, name: {name}, mesh: default, spec: {{{selector}spiffeID: {{trustDomain: {name}.org}}{provider}}}}}\n"
        )
    }

    fn selector(labels: &str) -> String {
        format!("selector: {{dataplane: {{matchLabels: {{{labels}}}}}}}, ")
    }

    fn workload() -> Workload {
        Workload::from_label_list("app=web,tier=front,kuma.io/workload=w,kuma.io/service=web")
            .unwrap()
    }

    /// Name, selector, has a provider; what is expected of all of them together.
    #[test]
    fn the_most_specific_wins_then_the_first_by_name() {
        let (all, app, both) = (
            selector(""),
            selector("app: web"),
            selector("app: web, tier: front"),
        );
        type Case<'a> = (&'a [(&'a str, &'a str, bool)], &'a str);
        let cases: &[Case<'_>] = &[
            (&[], "spiffe://default/web"),
            // No `selector`, or one for others: nothing.
            (&[("a", "", true)], "spiffe://default/web"),
            (&[("a", &selector("app: db"), true)], "spiffe://default/web"),
            (&[("a", &all, true)], "spiffe://a.org/workload/w"),
            (
                &[("a", &all, true), ("b", &app, true)],
                "spiffe://b.org/workload/w",
            ),
            (
                &[("c", &app, true), ("b", &app, true), ("a", &all, true)],
                "spiffe://b.org/workload/w",
            ),
            (
                &[("a", &app, true), ("z", &both, true)],
                "spiffe://z.org/workload/w",
            ),
            // One without a provider only announces.
            (
                &[("a", &both, false), ("b", &all, true)],
                "spiffe://b.org/workload/w",
            ),
            (&[("a", &all, false)], "spiffe://default/web"),
        ];
        for (identities, expected) in cases {
            let text: String = std::iter::once(MESH.to_owned())
                .chain(identities.iter().map(|(n, s, p)| identity(n, s, *p)))
                .collect();
            let selection = rules(&text, Unready::Wait).select(&workload(), |_| Ok(()));
            let got = selection.spiffe_id().map(ToString::to_string);
            assert_eq!(got.as_deref(), Some(*expected), "{selection}");
            let announced = selection.announced().count();
            let without = identities.iter().filter(|(_, _, p)| !p).count();
            assert_eq!(announced, without, "{selection}");
        }
    }

    #[test]
    fn a_winner_that_is_not_ready_is_said_and_the_choice_is_the_operators() {
        let text = [
            MESH.to_owned(),
            identity("first", &selector("app: web"), true),
            identity("second", &selector(""), true),
        ]
        .concat();
        let ready = |identity: &MeshIdentity| match identity.metadata.name.as_str() {
            "first" => Err("Vault is sealed".to_owned()),
            _ => Ok(()),
        };
        let waits = rules(&text, Unready::Wait).select(&workload(), ready);
        assert!(matches!(&waits.assigned, Assigned::Waiting { .. }));
        assert_eq!(
            waits.to_string(),
            "nothing before the MeshIdentity `first` is ready: Vault is sealed\n\
             - `first` selects it by 1 label: not ready: Vault is sealed\n\
             - `second` selects it by 0 labels: outranked"
        );
        let falls_back = rules(&text, Unready::Next).select(&workload(), ready);
        assert_eq!(
            falls_back.to_string(),
            "spiffe://second.org/workload/w, by the MeshIdentity `second`\n\
             - `first` selects it by 1 label: not ready: Vault is sealed\n\
             - `second` selects it by 0 labels: the most specific, then the first by name"
        );
        let none = rules(&text, Unready::Next).select(&workload(), |_| Err("down".to_owned()));
        assert!(matches!(&none.assigned, Assigned::Classic { .. }), "{none}");
    }

    #[test]
    fn a_label_that_is_missing_is_named() {
        let text = [MESH.to_owned(), identity("a", &selector(""), true)].concat();
        let unnamed = Workload::from_label_list("app=web,kuma.io/service=web").unwrap();
        let selection = rules(&text, Unready::Wait).select(&unnamed, |_| Ok(()));
        assert!(matches!(&selection.assigned, Assigned::Waiting { .. }));
        assert!(
            selection.to_string().contains("kuma.io/workload"),
            "{selection}"
        );
    }

    #[test]
    fn spire_issues_for_itself() {
        let text = format!(
            "{MESH}---\n{{type: MeshIdentity, name: s, mesh: default, spec: {{{}provider: {{type: Spire, spire: {{agent: {{timeout: 3s}}}}}}}}}}",
            selector("")
        );
        let selection = rules(&text, Unready::Wait).select(&workload(), |_| Ok(()));
        let Assigned::Modern {
            source, spiffe_id, ..
        } = &selection.assigned
        else {
            panic!("{selection}")
        };
        assert_eq!(
            *source,
            Source::Spire {
                agent_timeout: Some(Duration::from_secs(3))
            }
        );
        assert_eq!(
            spiffe_id.to_string(),
            "spiffe://default.east.mesh.local/workload/w"
        );
    }
}
