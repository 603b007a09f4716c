//! What a control plane sees of a mesh, and what a plan waits for.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use derive_more::Display;
use meshca_core::resource::Mode;
use meshca_core::spiffe::Environment;

use crate::select::{Assigned, IdentityRules, NO_ISSUER, SelectOptions};
use crate::tls::{Proxy, TlsPolicy};
use crate::{BackendKey, MeshResources};

/// What a control plane sees of its mesh.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Observed {
    /// The resources as they are now.
    pub resources: MeshResources,
    /// The CAs that are ready to sign: those whose [`Issuer::check`](meshca_core::Issuer::check)
    /// went well and, for MeshIdentities, whose roots are in a MeshTrust. An intermediate needs its
    /// root in the trust of the mesh, unless its peers take partial chains. While no proxy runs,
    /// nobody else can tell that the first one to start will be believed.
    pub ready: BTreeSet<BackendKey>,
    /// The proxies that run, connected or not.
    pub proxies: Vec<ObservedProxy>,
    /// Whether some may be missing, because the control plane has started and not all are back.
    /// Then nothing is taken for true of every proxy.
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

/// What a control plane knows of a proxy that runs: what the proxy has **acknowledged**, not what
/// was sent to it.
///
/// A proxy whose connection is lost stays as it was last seen. It still speaks with its peers, and
/// leaving it out would cut it off from them; leave it out once its workload is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObservedProxy {
    /// Its Dataplane, by which [`select`](crate::select) and [`tls`](crate::tls) decide what it is
    /// to have. Without a section: the observation is of the inbounds that no MeshTLS with a
    /// `sectionName` treats apart.
    pub proxy: Proxy,
    /// Whether it is connected, which only changes the words of what is waited for.
    pub connected: bool,
    /// The CAs all of whose roots it holds, in the trust domain that they sign for; of a CA that
    /// is not in the resources any more, those of whose roots it holds one that nobody else stands
    /// for.
    pub trusts: BTreeSet<BackendKey>,
    /// The CAs whose SPIFFE IDs it accepts of every peer. All backends share the classic one.
    pub accepts: BTreeSet<BackendKey>,
    /// Whose certificate it serves, if it has one.
    pub holds: Option<BackendKey>,
    /// Whether its inbounds accept plaintext.
    pub mode: Mode,
}

impl ObservedProxy {
    /// Connected, strict, and without anything else.
    pub fn new(proxy: Proxy) -> Self {
        Self {
            proxy,
            connected: true,
            trusts: BTreeSet::new(),
            accepts: BTreeSet::new(),
            holds: None,
            mode: Mode::Strict,
        }
    }

    /// The name of its Dataplane.
    pub fn name(&self) -> &str {
        &self.proxy.name
    }
}

/// What must be so before the next step. Everything but [`Ready`](Self::Ready) is asked of every
/// proxy that runs. `Display` says what is waited for, and why.
#[derive(Clone, Debug, Display, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Requirement {
    /// The CA can be reached and signs, and a MeshTrust has its roots.
    #[display("the CA of {_0} is ready")]
    Ready(BackendKey),
    /// Each proxy accepts the SPIFFE IDs of this CA.
    #[display("every proxy accepts {}", accepted(_0))]
    Accepts(BackendKey),
    /// Each proxy holds the roots of this CA.
    #[display(
        "every proxy holds the roots of {_0}, because one without them would refuse the first peer that has a new certificate"
    )]
    Trusts(BackendKey),
    /// The inbounds of each proxy are as strict as the resources say.
    #[display(
        "every proxy has been told how strict it is, because what told it so far may go next"
    )]
    Mode,
    /// Each proxy serves a certificate of the CA that the resources give it.
    #[display(
        "every proxy serves the certificate that it is given now, because what it had before may stop being believed next"
    )]
    Holds,
    /// No proxy holds the roots of this CA any more: it has become worthless to whoever has its
    /// key.
    #[display(
        "no proxy holds the roots of {_0} any more, because only then its key is worth nothing"
    )]
    Forgets(BackendKey),
}

fn accepted(issuer: &BackendKey) -> String {
    match issuer {
        BackendKey::Classic(_) => "the classic SPIFFE IDs, because some peers show them".to_owned(),
        BackendKey::Modern(_) => {
            format!("the SPIFFE IDs of {issuer}, because some peers will show them before others")
        }
    }
}

/// What a [`Plan`](super::Plan) waits for. `Display` is a line for the operator.
#[derive(Clone, Debug, Display, PartialEq, Eq)]
#[display("{}{what}", self.who())]
#[non_exhaustive]
pub struct Waiting {
    /// The name of the proxy; `None` if it is a CA that is waited for.
    pub proxy: Option<String>,
    /// What is not yet so.
    pub requirement: Requirement,
    /// The same in words.
    pub what: String,
}

impl Waiting {
    fn who(&self) -> String {
        match (&self.proxy, &self.requirement) {
            (Some(proxy), _) => format!("the proxy `{proxy}`: "),
            (None, Requirement::Ready(issuer)) => format!("{issuer}: "),
            (None, _) => String::new(),
        }
    }
}

/// Returns what of a gate is not so yet.
pub(super) fn missing(gate: &[Requirement], observed: &Observed, zone: &str) -> Vec<Waiting> {
    // A proxy that is not seen may not meet what is required of every proxy.
    let mut of_all = gate
        .iter()
        .filter(|it| !matches!(it, Requirement::Ready(_)));
    let unseen = of_all.next().filter(|_| observed.returning);
    let why = "the control plane has started, and proxies may not be back yet";
    let unseen = unseen.map(|it| it.is_waited_for(None, why));
    // Prepared for the first proxy that needs them, since few gates do. The environment only
    // decides what SPIFFE IDs look like. A control plane may let workloads fall back to another CA
    // while theirs is not ready. The plan waits for theirs: the other one may be about to go.
    let rules = LazyCell::new(|| {
        let options = SelectOptions::new(zone, Environment::Universal);
        IdentityRules::new(&observed.resources, options)
    });
    let assigned = |proxy: &Proxy| rules.assign(&proxy.workload, |_| Ok(()));
    let seen = gate.iter().flat_map(|it| it.missing(observed, &assigned));
    unseen.into_iter().chain(seen).collect()
}

impl Requirement {
    fn is_waited_for(&self, proxy: Option<&ObservedProxy>, what: impl Into<String>) -> Waiting {
        Waiting {
            proxy: proxy.map(|it| it.name().to_owned()),
            requirement: self.clone(),
            what: what.into(),
        }
    }

    fn missing(&self, observed: &Observed, assigned: &dyn Fn(&Proxy) -> Assigned) -> Vec<Waiting> {
        if let Self::Ready(issuer) = self {
            return match observed.ready.contains(issuer) {
                true => Vec::new(),
                false => vec![self.is_waited_for(None, "its CA is not ready")],
            };
        }
        let missing = observed.proxies.iter().filter_map(|proxy| {
            let mut what = self.missing_at(proxy, &observed.resources, assigned)?;
            if !proxy.connected {
                what.push_str(
                    "; it is not connected and goes on with what it has: reconnect it, or end it",
                );
            }
            Some(self.is_waited_for(Some(proxy), what))
        });
        missing.collect()
    }

    fn missing_at(
        &self,
        proxy: &ObservedProxy,
        resources: &MeshResources,
        assigned: &dyn Fn(&Proxy) -> Assigned,
    ) -> Option<String> {
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
                let wanted = TlsPolicy::mode_of(resources, &proxy.proxy).value;
                let what = match wanted {
                    Mode::Strict => "still accepts plaintext",
                    _ => "does not accept plaintext yet",
                };
                (proxy.mode != wanted).then(|| what.to_owned())
            }
            Self::Holds => {
                let assigned = assigned(&proxy.proxy);
                match (assigned.issuer(), &proxy.holds) {
                    (None, _) => Some(NO_ISSUER.to_owned()),
                    (wanted, held) if wanted == *held => None,
                    (Some(wanted), Some(held)) => Some(format!(
                        "serves a certificate of {held}, and not of {wanted} yet"
                    )),
                    (Some(wanted), None) => Some(format!("has no certificate of {wanted} yet")),
                }
            }
        }
    }
}

/// The classic SPIFFE ID does not say which backend issued it.
fn accepts(proxy: &ObservedProxy, issuer: &BackendKey) -> bool {
    match issuer {
        BackendKey::Classic(_) => {
            let mut accepted = proxy.accepts.iter();
            accepted.any(|it| matches!(it, BackendKey::Classic(_)))
        }
        BackendKey::Modern(_) => proxy.accepts.contains(issuer),
    }
}
