//! What a control plane sees of a mesh, and what a plan waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meshca_core::resource::Mode;

use super::tls;
use crate::BackendKey;
use crate::MeshResources;

/// What a control plane sees of its mesh.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Observed {
    /// The resources as they are now.
    pub resources: MeshResources,
    /// The CAs that are ready to sign: those whose [`Issuer::check`](meshca_core::Issuer::check) went well and, for MeshIdentities,
    /// whose roots are in a MeshTrust. While no proxy runs, nobody else can tell that the first one to start will be believed.
    pub ready: BTreeSet<BackendKey>,
    /// The proxies that run, connected or not.
    pub proxies: Vec<Proxy>,
    /// Whether some may be missing, because the control plane has started and not all are back. Then nothing is taken for true of every
    /// proxy.
    pub returning: bool,
}

impl Observed {
    /// Resources, with no CA ready and no proxy.
    pub fn new(resources: MeshResources) -> Self {
        Self {
            resources,
            ready: BTreeSet::new(),
            proxies: Vec::new(),
            returning: false,
        }
    }
}

/// What a control plane knows of a proxy that runs: what the proxy has **acknowledged**, not what was sent to it.
///
/// A proxy whose connection is lost stays as it was last seen. It still speaks with its peers, and leaving it out would cut it off
/// from them; leave it out once its workload is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proxy {
    /// The name of its Dataplane.
    pub name: String,
    /// The labels of its Dataplane.
    pub labels: BTreeMap<String, String>,
    /// Whether it is connected, which only changes the words of what is waited for.
    pub connected: bool,
    /// The CAs all of whose roots it holds, in the trust domain that they sign for; of a CA that is not in the resources any more, those of
    /// whose roots it holds one that nobody else stands for.
    pub trusts: BTreeSet<BackendKey>,
    /// The CAs whose SPIFFE IDs it accepts of every peer. All backends share the classic one.
    pub accepts: BTreeSet<BackendKey>,
    /// Whose certificate it serves, if it has one.
    pub holds: Option<BackendKey>,
    /// Whether its inbounds refuse plaintext, but for those that a MeshTLS with a `sectionName` treats apart.
    pub mode: Mode,
}

impl Proxy {
    /// Connected, strict, and without anything else.
    pub fn new(name: impl Into<String>, labels: BTreeMap<String, String>) -> Self {
        Self {
            name: name.into(),
            labels,
            connected: true,
            trusts: BTreeSet::new(),
            accepts: BTreeSet::new(),
            holds: None,
            mode: Mode::Strict,
        }
    }
}

/// What must be so before the next step. Everything but [`Ready`](Self::Ready) is asked of every proxy that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Condition {
    /// The CA can be reached and signs, and a MeshTrust has its roots.
    Ready(BackendKey),
    /// Each proxy accepts the SPIFFE IDs of this CA.
    Accepts(BackendKey),
    /// Each proxy holds the roots of this CA.
    Trusts(BackendKey),
    /// The inbounds of each proxy are as strict as the resources say.
    Mode,
    /// Each proxy serves a certificate of the CA that the resources give it.
    Holds,
    /// No proxy holds the roots of this CA any more: it has become worthless to whoever has its key.
    Forgets(BackendKey),
}

/// What a [`Plan`](super::Plan) waits for. `Display` is a line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The name of the proxy; `None` if it is a CA that is waited for.
    pub proxy: Option<String>,
    /// What is not yet so.
    pub condition: Condition,
    /// The same in words.
    pub what: String,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.proxy, &self.condition) {
            (Some(proxy), _) => write!(f, "the proxy `{proxy}`: {}", self.what),
            (None, Condition::Ready(issuer)) => write!(f, "{issuer}: {}", self.what),
            (None, _) => f.write_str(&self.what),
        }
    }
}

/// Who does not meet these yet.
pub(super) fn missing(gate: &[Condition], observed: &Observed) -> Vec<Waiting> {
    // Whoever is not seen may not meet what is asked of every proxy.
    let mut of_all = gate.iter().filter(|it| !matches!(it, Condition::Ready(_)));
    let unseen = of_all.next().filter(|_| observed.returning);
    let unseen = unseen.map(|condition| Waiting {
        proxy: None,
        condition: condition.clone(),
        what: "the control plane has started, and proxies may not be back yet".to_owned(),
    });
    let seen = gate.iter().flat_map(|it| it.missing(observed));
    unseen.into_iter().chain(seen).collect()
}

impl Condition {
    fn missing(&self, observed: &Observed) -> Vec<Waiting> {
        if let Self::Ready(issuer) = self {
            return match observed.ready.contains(issuer) {
                true => Vec::new(),
                false => vec![Waiting {
                    proxy: None,
                    condition: self.clone(),
                    what: "its CA is not ready".to_owned(),
                }],
            };
        }
        let missing = observed.proxies.iter().filter_map(|proxy| {
            let mut what = self.missing_at(proxy, &observed.resources)?;
            if !proxy.connected {
                what.push_str(
                    "; it is not connected and goes on with what it has: reconnect it, or end it",
                );
            }
            Some(Waiting {
                proxy: Some(proxy.name.clone()),
                condition: self.clone(),
                what,
            })
        });
        missing.collect()
    }

    fn missing_at(&self, proxy: &Proxy, resources: &MeshResources) -> Option<String> {
        match self {
            Self::Ready(_) => None,
            Self::Accepts(issuer) => (!accepts(proxy, issuer))
                .then(|| format!("does not accept the SPIFFE IDs of {issuer} yet")),
            Self::Trusts(issuer) => (!proxy.trusts.contains(issuer))
                .then(|| format!("does not hold the roots of {issuer} yet")),
            Self::Forgets(issuer) => proxy
                .trusts
                .contains(issuer)
                .then(|| format!("still holds the roots of {issuer}")),
            Self::Mode => {
                let inbound = tls::Inbound {
                    name: Some(&proxy.name),
                    section: None,
                };
                let wanted = tls::mode_of(resources, &proxy.labels, inbound);
                (proxy.mode != wanted).then(|| {
                    match wanted {
                        Mode::Strict => "still accepts plaintext",
                        _ => "does not accept plaintext yet",
                    }
                    .to_owned()
                })
            }
            Self::Holds => {
                let wanted = assigned(resources, &proxy.labels);
                match (&wanted, &proxy.holds) {
                    (None, _) => Some(
                        "no MeshIdentity with a provider selects it, and the mesh has no enabled backend".to_owned(),
                    ),
                    (Some(wanted), Some(held)) if wanted == held => None,
                    (Some(wanted), Some(held)) => {
                        Some(format!("serves a certificate of {held}, and not of {wanted} yet"))
                    }
                    (Some(wanted), None) => {
                        Some(format!("has no certificate of {wanted} yet"))
                    }
                }
            }
        }
    }
}

/// The classic SPIFFE ID does not say which backend issued it.
fn accepts(proxy: &Proxy, issuer: &BackendKey) -> bool {
    match issuer {
        BackendKey::Classic(_) => proxy
            .accepts
            .iter()
            .any(|accepted| matches!(accepted, BackendKey::Classic(_))),
        BackendKey::Modern(_) => proxy.accepts.contains(issuer),
    }
}

/// Who issues for a Dataplane with these labels, as [`select`](crate::select) has it if every CA is ready.
pub(super) fn assigned(
    resources: &MeshResources,
    labels: &BTreeMap<String, String>,
) -> Option<BackendKey> {
    resources
        .identities
        .iter()
        .filter(|identity| identity.provider.is_some() && identity.selector.matches(labels))
        .min_by_key(|identity| {
            let labels = identity.selector.match_labels().map_or(0, BTreeMap::len);
            (std::cmp::Reverse(labels), &identity.metadata.name)
        })
        .map(BackendKey::of)
        .or_else(|| {
            let backend = resources.mesh.enabled_backend()?;
            Some(BackendKey::classic(&backend.name))
        })
}
