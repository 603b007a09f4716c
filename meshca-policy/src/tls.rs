//! How strict a workload is: what MeshTLS and the classic backend say, and who decided it.
//!
//! # Which policy wins
//!
//! Every MeshTLS that targets the proxy is merged into one policy, field by field; what is more
//! specific overrides what is less so. The order is the one that Kuma's control plane sorts by
//! (`CompareByPolicyAttributes` and `CompareByDisplayName` in
//! `pkg/plugins/policies/core/rules/sort`, 2.12 to 3.0), from the weakest to the strongest:
//!
//! | | attribute | order |
//! |---|---|---|
//! | 1 | `targetRef` | `Mesh`, then `Dataplane`, then `Dataplane` with a `sectionName` |
//! | 2 | label `kuma.io/origin` | `global`, then none, then `zone` |
//! | 3 | label `kuma.io/policy-role` | `system` (or none), `producer`, `consumer`, `workload-owner` |
//! | 4 | label `kuma.io/display-name`, else the name | backwards: `zzz`, then `aaa`, so the first by the alphabet wins |
//! | 5 | the order of `rules` | the later rule wins |
//!
//! Kuma's documentation ranks a Dataplane by name above one by labels. Its code does not, and
//! neither does this: between the two, the lines below the first decide.
//!
//! # Which policy targets a proxy
//!
//! All that a `targetRef` of kind `Dataplane` names must fit: name, namespace (that of the policy,
//! if a name is given alone), labels, and section. A policy of the role `consumer` or
//! `workload-owner` is for proxies of its own namespace, and one that comes from a zone is for
//! that zone: a team cannot open the inbounds of another. Policies with the label `kuma.io/effect:
//! shadow` are for show.
//!
//! # Defaults
//!
//! Without a mode in any of them, the mode of the mesh's enabled classic backend applies, and
//! strict without such a backend. Versions and ciphers are of the whole mesh: from other targets
//! they are ignored, as resources refuse them.

use std::cmp::Reverse;
use std::fmt;

use meshca_core::resource::{
    MeshTls, Metadata, Mode, TargetKind, TargetRef, TlsCipher, TlsVersion, labels,
};
use meshca_core::spiffe::Workload;
use meshca_core::{Error, ErrorKind, Result};

use crate::MeshResources;

/// With the value `shadow` the policy is for show and decides nothing.
pub(crate) const EFFECT: &str = "kuma.io/effect";
const POLICY_ROLE: &str = "kuma.io/policy-role";

/// The labels by which policies are ranked and confined. A control plane sets them where they are
/// missing.
const SET_BY_CONTROL_PLANE: &[&str] = &[
    labels::ORIGIN,
    labels::ZONE,
    labels::DISPLAY_NAME,
    labels::K8S_NAMESPACE,
    POLICY_ROLE,
];

/// The proxy that a policy is asked for: its Dataplane, and one inbound of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proxy {
    /// The name of its Dataplane.
    pub name: String,
    /// The namespace of its Dataplane, on Kubernetes.
    pub namespace: Option<String>,
    /// Its labels.
    pub workload: Workload,
    /// The inbound in question: its name, or its port if it has no name. Without one, policies for
    /// single inbounds do not apply.
    pub section: Option<String>,
}

impl Proxy {
    /// A proxy as a whole. Its namespace is what the label `k8s.kuma.io/namespace` says, if that
    /// is there.
    pub fn new(name: impl Into<String>, workload: Workload) -> Self {
        Self {
            name: name.into(),
            namespace: workload.label(labels::K8S_NAMESPACE).map(str::to_owned),
            workload,
            section: None,
        }
    }

    /// The same in a namespace.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// One inbound of it, by its name or, if it has none, by its port.
    #[must_use]
    pub fn with_section(mut self, section: impl Into<String>) -> Self {
        self.section = Some(section.into());
        self
    }
}

/// A value and who decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decided<T> {
    /// What applies.
    pub value: T,
    /// Who says so.
    pub by: Decider,
}

impl<T> Decided<T> {
    fn by_default(value: T) -> Self {
        Self {
            value,
            by: Decider::Default,
        }
    }

    fn set(&mut self, value: T, by: &Decider) {
        self.value = value;
        self.by = by.clone();
    }
}

/// Who decided.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decider {
    /// Nobody.
    #[display("by default")]
    Default,
    /// The mesh's enabled classic backend.
    #[display("by the backend `{_0}` of the mesh")]
    Backend(String),
    /// A MeshTLS, by its name; with its namespace before it if it has one: `kuma-system/strict`.
    #[display("by the MeshTLS `{_0}`")]
    MeshTls(String),
}

/// What applies to a proxy's TLS. `Display` explains it to an operator.
///
/// ```
/// use meshca_core::resource::{Mode, Resource};
/// use meshca_core::spiffe::Workload;
/// use meshca_policy::MeshResources;
/// use meshca_policy::tls::{Proxy, TlsPolicy};
///
/// let resources = MeshResources::from_resources(Resource::parse("
/// {type: Mesh, name: default}
/// ---
/// {type: MeshTLS, name: all, mesh: default, spec: {rules: [{default: {mode: Strict, tlsVersion: {min: TLS12}}}]}}
/// ---
/// type: MeshTLS
/// name: moving
/// mesh: default
/// spec: {targetRef: {kind: Dataplane, labels: {app: web}}, rules: [{default: {mode: Permissive}}]}
/// ")?)?;
/// let policy = TlsPolicy::resolve(&resources, &Proxy::new("web-1", Workload::from_label_list("app=web")?))?;
/// assert_eq!(policy.mode.value, Mode::Permissive);
/// assert_eq!(
///     policy.to_string(),
///     "permissive by the MeshTLS `moving`; from TLS12 by the MeshTLS `all`, up to TLSAuto by default; ciphers: the proxy's own by default"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsPolicy {
    /// Whether inbounds accept plaintext as well.
    pub mode: Decided<Mode>,
    /// The oldest version; [`Auto`](TlsVersion::Auto) leaves it to the TLS library.
    pub min_version: Decided<TlsVersion>,
    /// The newest version; [`Auto`](TlsVersion::Auto) leaves it to the TLS library.
    pub max_version: Decided<TlsVersion>,
    /// The ciphers for TLS up to 1.2, best first; none leaves them to the TLS library.
    pub ciphers: Decided<Vec<TlsCipher>>,
}

impl Default for TlsPolicy {
    /// Strict, and all else left to the TLS library.
    fn default() -> Self {
        Self {
            mode: Decided::by_default(Mode::Strict),
            min_version: Decided::by_default(TlsVersion::Auto),
            max_version: Decided::by_default(TlsVersion::Auto),
            ciphers: Decided::by_default(Vec::new()),
        }
    }
}

impl TlsPolicy {
    /// What the resources of a mesh say for a proxy; the [module](self) has the rules.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if one MeshTLS sets a `min` above the `max` of another: no
    /// version is left.
    pub fn resolve(resources: &MeshResources, proxy: &Proxy) -> Result<Self> {
        let policy = Self::merged(resources, proxy);
        policy.check_versions()?;
        Ok(policy)
    }

    /// Returns the mode alone, as [`resolve`](Self::resolve) decides it. It is known even if the
    /// policies leave no TLS version.
    pub fn mode_of(resources: &MeshResources, proxy: &Proxy) -> Decided<Mode> {
        Self::merged(resources, proxy).mode
    }

    fn merged(resources: &MeshResources, proxy: &Proxy) -> Self {
        let mut policy = Self::default();
        if let Some(backend) = resources.mesh.enabled_backend() {
            let by = Decider::Backend(backend.name.clone());
            policy.mode.set(backend.mode, &by);
        }
        let mut matching: Vec<&MeshTls> = resources
            .tls
            .iter()
            .filter(|candidate| Demand::of(candidate).is_some_and(|it| it.is_met_by(proxy)))
            .collect();
        matching.sort_by_cached_key(|candidate| Rank::of(candidate));
        for resource in matching {
            policy.merge(resource);
        }
        policy
    }

    /// As a JSON merge patch (RFC 7386): what is absent stays as it is, a list is replaced as a
    /// whole.
    fn merge(&mut self, resource: &MeshTls) {
        let by = Decider::MeshTls(full_name(&resource.metadata));
        if let Some(mode) = stated_mode(resource) {
            self.mode.set(mode, &by);
        }
        if resource.target.kind != TargetKind::Mesh {
            return;
        }
        for rule in &resource.rules {
            let versions = rule.tls_version.unwrap_or_default();
            if let Some(min) = versions.min {
                self.min_version.set(min, &by);
            }
            if let Some(max) = versions.max {
                self.max_version.set(max, &by);
            }
            if !rule.tls_ciphers.is_empty() {
                self.ciphers.set(rule.tls_ciphers.clone(), &by);
            }
        }
    }

    fn check_versions(&self) -> Result<()> {
        let (min, max) = (&self.min_version, &self.max_version);
        if min.value == TlsVersion::Auto || max.value == TlsVersion::Auto || min.value <= max.value
        {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "no TLS version is left: `min` is {} {}, and `max` is {} {}; change one of them",
                min.value.as_str(),
                min.by,
                max.value.as_str(),
                max.by
            ),
        ))
    }
}

impl fmt::Display for TlsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode.value {
            Mode::Permissive => "permissive",
            _ => "strict",
        };
        write!(
            f,
            "{mode} {}; from {} {}, up to {} {}; ciphers: ",
            self.mode.by,
            self.min_version.value.as_str(),
            self.min_version.by,
            self.max_version.value.as_str(),
            self.max_version.by
        )?;
        if self.ciphers.value.is_empty() {
            f.write_str("the proxy's own")?;
        }
        for (index, cipher) in self.ciphers.value.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", cipher.as_str())?;
        }
        write!(f, " {}", self.ciphers.by)
    }
}

/// Returns the mode that a policy asks for, if it asks for one: that of its last rule with a mode.
pub(crate) fn stated_mode(policy: &MeshTls) -> Option<Mode> {
    policy.rules.iter().rev().find_map(|rule| rule.mode)
}

/// Returns whether `stored` already has everything by which `wanted` decides.
///
/// A control plane adds labels of its own, such as the origin. Those that `wanted` leaves out may
/// therefore be there. The effect is the operator's: without the label the policy counts.
pub(crate) fn decides_alike(stored: &MeshTls, wanted: &MeshTls) -> bool {
    let (has, asks) = (&stored.metadata, &wanted.metadata);
    stored.target == wanted.target
        && stored.rules == wanted.rules
        && has.label(EFFECT) == asks.label(EFFECT)
        && SET_BY_CONTROL_PLANE
            .iter()
            .all(|label| asks.label(label).is_none() || has.label(label) == asks.label(label))
}

/// Completes `wanted` with the labels that the control plane has set on the policy that it
/// replaces.
pub(crate) fn in_place_of(wanted: &MeshTls, stored: &MeshTls) -> MeshTls {
    let mut policy = wanted.clone();
    for label in SET_BY_CONTROL_PLANE {
        if let Some(value) = stored.metadata.label(label) {
            let labels = &mut policy.metadata.labels;
            labels
                .entry((*label).to_owned())
                .or_insert_with(|| value.to_owned());
        }
    }
    policy
}

/// How specific a policy is; the greatest has the last word.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    dataplane: bool,
    section: bool,
    origin: u8,
    role: u8,
    display_name: Reverse<String>,
    /// Kuma leaves it to chance from here on; two control planes should agree.
    full_name: Reverse<String>,
}

impl Rank {
    pub(crate) fn of(resource: &MeshTls) -> Self {
        let MeshTls {
            metadata, target, ..
        } = resource;
        let dataplane = target.kind == TargetKind::Dataplane;
        Self {
            dataplane,
            section: dataplane && target.section_name.is_some(),
            origin: match metadata.label(labels::ORIGIN) {
                Some("global") => 0,
                Some("zone") => 2,
                _ => 1,
            },
            role: match metadata.label(POLICY_ROLE) {
                None | Some("" | "system") => 1,
                Some("producer") => 2,
                Some("consumer") => 3,
                Some("workload-owner") => 4,
                // One that nobody knows must not override what is known.
                Some(_) => 0,
            },
            display_name: Reverse(display_name(metadata).to_owned()),
            full_name: Reverse(full_name(metadata)),
        }
    }
}

fn display_name(metadata: &Metadata) -> &str {
    metadata
        .label(labels::DISPLAY_NAME)
        .unwrap_or(&metadata.name)
}

fn full_name(metadata: &Metadata) -> String {
    match &metadata.namespace {
        Some(namespace) => format!("{namespace}/{}", metadata.name),
        None => metadata.name.clone(),
    }
}

/// What a proxy must be for a policy to target it.
pub(crate) struct Demand<'a> {
    /// `None` means the whole mesh.
    dataplane: Option<&'a TargetRef>,
    namespace: Option<&'a str>,
    zone: Option<&'a str>,
}

impl<'a> Demand<'a> {
    /// Returns what a policy demands, or `None` if it targets no proxy at all.
    pub(crate) fn of(policy: &'a MeshTls) -> Option<Self> {
        let metadata = &policy.metadata;
        if metadata.label(EFFECT) == Some("shadow") {
            return None;
        }
        let dataplane = Some(&policy.target).filter(|it| it.kind == TargetKind::Dataplane);
        // What another control plane sent lies in the system namespace; the label keeps where it
        // was made.
        let own = metadata
            .label(labels::K8S_NAMESPACE)
            .or(metadata.namespace.as_deref());
        // A name alone means a neighbour; without a name, a namespace counts only if it is written.
        let named = dataplane.and_then(|it| {
            let written = it.namespace.as_deref();
            written.or(own.filter(|_| it.name.is_some()))
        });
        let confined = matches!(
            metadata.label(POLICY_ROLE),
            Some("consumer" | "workload-owner")
        );
        if confined && (own.is_none() || named.is_some_and(|it| Some(it) != own)) {
            return None;
        }
        let zone = metadata.label(labels::ZONE);
        Some(Self {
            dataplane,
            namespace: if confined { own } else { named },
            zone: zone.filter(|_| metadata.label(labels::ORIGIN) == Some("zone")),
        })
    }

    fn is_met_by(&self, proxy: &Proxy) -> bool {
        let workload = &proxy.workload;
        // A proxy that does not say its zone may be in any.
        let here = |zone| workload.label(labels::ZONE).is_none_or(|it| it == zone);
        let there = |it| proxy.namespace.as_deref() == Some(it);
        let targeted = |target: &TargetRef| {
            let mut labels = target.labels.iter();
            let section = target.section_name.as_ref();
            is_named(target, proxy)
                && labels.all(|(name, value)| workload.label(name) == Some(value))
                && section.is_none_or(|it| proxy.section.as_ref() == Some(it))
        };
        self.zone.is_none_or(here)
            && self.namespace.is_none_or(there)
            && self.dataplane.is_none_or(targeted)
    }

    /// Gives a proxy what it lacks to meet this demand, and nothing else; `None` if it has
    /// something that contradicts. A proxy without a name has an empty one.
    pub(crate) fn joined_to(&self, proxy: &Proxy) -> Option<Proxy> {
        let mut joined = proxy.clone();
        let add = |joined: &mut Proxy, name: &str, value: &str| {
            if joined.workload.label(name).is_none() {
                joined.workload = std::mem::take(&mut joined.workload).with_label(name, value);
            }
        };
        if let Some(target) = self.dataplane {
            for (name, value) in &target.labels {
                add(&mut joined, name, value);
            }
            match &target.name {
                Some(_) if is_named(target, &joined) => {}
                Some(wanted) if joined.name.is_empty() => joined.name.clone_from(wanted),
                Some(wanted) => add(&mut joined, labels::DISPLAY_NAME, wanted),
                None => {}
            }
            joined.section = joined.section.or(target.section_name.clone());
        }
        // The label and the namespace are two ways to say the same thing, so no proxy has two
        // values.
        let labelled = joined
            .workload
            .label(labels::K8S_NAMESPACE)
            .map(str::to_owned);
        let wanted = self.namespace.map(str::to_owned);
        joined.namespace = joined.namespace.or(labelled.clone()).or(wanted);
        let contradicts = labelled.is_some() && labelled != joined.namespace;
        (!contradicts && self.is_met_by(&joined)).then_some(joined)
    }
}

fn is_named(target: &TargetRef, proxy: &Proxy) -> bool {
    let display_name = proxy.workload.label(labels::DISPLAY_NAME);
    let mut names = display_name.into_iter().chain([proxy.name.as_str()]);
    target
        .name
        .as_deref()
        .is_none_or(|wanted| names.any(|it| it == wanted))
}
