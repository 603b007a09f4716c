//! Plans judge how strict a proxy is by the rules that decide it: those of `tls`.

use std::collections::{BTreeMap, BTreeSet};

use meshca_core::resource::{
    MeshTls, Metadata, Mode, Resource, Selector, TargetKind, TargetRef, TlsRule, labels,
};
use meshca_core::spiffe::{Environment, Workload};
use meshca_policy::BackendKey;
use meshca_policy::MeshResources;
use meshca_policy::migration::{
    Next, Observed, ObservedProxy, ObstacleKind, Plan, PlanOptions, Requirement, plan,
};
use meshca_policy::select::{IdentityRules, SelectOptions};
use meshca_policy::tls::{Proxy, TlsPolicy};
use proptest::prelude::*;

fn read(text: &str) -> MeshResources {
    let documents = Resource::parse(text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    MeshResources::from_resources(documents).unwrap()
}

fn classic(mode: &str) -> String {
    format!(
        "type: Mesh\nname: default\nmeshServices: {{mode: Exclusive}}\nmtls:\n  enabledBackend: ca-1\n  backends: [{{name: ca-1, type: builtin, mode: {mode}}}]\n"
    )
}

const MODERN: &str = "type: Mesh
name: default
meshServices: {mode: Exclusive}
---
type: MeshIdentity
name: all
mesh: default
spec:
  selector: {dataplane: {matchLabels: {}}}
  spiffeID: {trustDomain: example.org}
  provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}
";

/// A MeshTLS with a rule for each of these modes.
fn tls(name: &str, labels: &str, target: &str, modes: &[&str]) -> String {
    let rules: Vec<_> = modes
        .iter()
        .map(|mode| format!("{{default: {{mode: {mode}}}}}"))
        .collect();
    format!(
        "---\n{{type: MeshTLS, name: {name}, mesh: default, labels: {{{labels}}}, spec: {{targetRef: {{{target}}}, rules: [{}]}}}}\n",
        rules.join(", ")
    )
}

fn options() -> PlanOptions {
    PlanOptions::new("east")
}

fn obstacles(from: &str, to: &str) -> Vec<ObstacleKind> {
    match plan(&read(from), &read(to), &options()) {
        Ok(_) => Vec::new(),
        Err(obstacles) => obstacles.iter().map(|it| it.kind).collect(),
    }
}

const MESH: &str = "kind: Mesh";
const WEB: &str = "kind: Dataplane, labels: {app: web}";
const NAMED: &str = "kind: Dataplane, name: web-1";
const ZONE: &str = "kuma.io/origin: zone, kuma.io/zone";
const SHADOW: &str = "kuma.io/effect: shadow";
const OWNER: &str = "kuma.io/policy-role: workload-owner, k8s.kuma.io/namespace: shop";

/// For each: the MeshTLS before and after. Some proxy refuses plaintext before and accepts it
/// after.
#[test]
fn a_door_that_would_open_is_found_whatever_decides_it() {
    let strict = |name, labels, target| tls(name, labels, target, &["Strict"]);
    let open = |name, labels, target| tls(name, labels, target, &["Permissive"]);
    let cases = [
        (
            "the last rule decides",
            tls("all", "", MESH, &["Strict"]),
            tls("all", "", MESH, &["Strict", "Permissive"]),
        ),
        (
            "the last rule has decided",
            tls("all", "", MESH, &["Permissive", "Strict"]),
            tls("all", "", MESH, &["Permissive"]),
        ),
        (
            "a policy for show decides nothing",
            strict("a", SHADOW, MESH) + &strict("b", "", MESH),
            strict("a", SHADOW, MESH) + &open("b", "", MESH),
        ),
        (
            "a policy becomes one for show",
            open("z", "", MESH) + &strict("a", "", MESH),
            open("z", "", MESH) + &strict("a", SHADOW, MESH),
        ),
        (
            "a zone overrides what is global",
            strict("a", "", MESH) + &strict("b", "kuma.io/origin: zone", MESH),
            strict("a", "", MESH) + &open("b", "kuma.io/origin: zone", MESH),
        ),
        (
            "an owner overrides the operator, in his namespace",
            strict("a", "", MESH) + &strict("b", OWNER, MESH),
            strict("a", "", MESH) + &open("b", OWNER, MESH),
        ),
        (
            "the display name decides",
            strict("a", "kuma.io/display-name: z", MESH) + &strict("b", "", MESH),
            strict("a", "kuma.io/display-name: z", MESH) + &open("b", "", MESH),
        ),
        (
            "a name does not override labels",
            open("z", "", WEB) + &strict("b", "", NAMED),
            open("a", "", WEB) + &strict("b", "", NAMED),
        ),
        (
            "more labels do not override fewer",
            open("m", "", "kind: Dataplane, labels: {app: web}")
                + &strict("b", "", "kind: Dataplane, labels: {app: web, tier: front}"),
            open("a", "", "kind: Dataplane, labels: {app: web}")
                + &strict("b", "", "kind: Dataplane, labels: {app: web, tier: front}"),
        ),
        (
            "a name is one of a namespace",
            open("m", "", MESH)
                + &strict("a", "k8s.kuma.io/namespace: shop", NAMED)
                + &strict("b", "k8s.kuma.io/namespace: bank", NAMED),
            open("m", "", MESH) + &strict("b", "k8s.kuma.io/namespace: bank", NAMED),
        ),
        (
            "a policy of one zone is not for another",
            open("m", "", MESH)
                + &strict("a", &format!("{ZONE}: east"), MESH)
                + &strict("b", &format!("{ZONE}: west"), MESH),
            open("m", "", MESH) + &strict("b", &format!("{ZONE}: west"), MESH),
        ),
        (
            "the display name of a proxy is a name of it",
            open("m", "", MESH)
                + &strict(
                    "a",
                    "",
                    "kind: Dataplane, name: web-1, labels: {kuma.io/display-name: web}",
                )
                + &strict("b", "", "kind: Dataplane, name: web"),
            open("m", "", MESH)
                + &open(
                    "a",
                    "",
                    "kind: Dataplane, name: web-1, labels: {kuma.io/display-name: web}",
                )
                + &strict("b", "", "kind: Dataplane, name: web"),
        ),
    ];
    let from = MODERN.to_owned();
    let to = MODERN.replace("name: all", "name: next");
    let mut missed = Vec::new();
    for (name, before, after) in cases {
        if obstacles(&(from.clone() + &before), &(to.clone() + &after)) != [ObstacleKind::Loosens] {
            missed.push(name);
        }
        // Without a change there is nothing in the way.
        for same in [&before, &after] {
            let found = obstacles(&(from.clone() + same), &(to.clone() + same));
            assert_eq!(found, [], "{name}, unchanged");
        }
    }
    assert_eq!(missed, [""; 0]);
}

#[test]
fn a_policy_that_covers_some_or_is_for_show_does_not_stand_in_for_the_backend() {
    let cases = [
        (
            "the whole mesh",
            tls("all", "", MESH, &["Permissive"]),
            true,
        ),
        (
            "every Dataplane",
            tls("all", "", "kind: Dataplane", &["Permissive"]),
            true,
        ),
        ("for show", tls("all", SHADOW, MESH, &["Permissive"]), false),
        ("an owner", tls("all", OWNER, MESH, &["Permissive"]), false),
        (
            "another zone",
            tls("all", &format!("{ZONE}: west"), MESH, &["Permissive"]),
            false,
        ),
    ];
    for (name, policy, covers) in cases {
        let found = obstacles(&classic("PERMISSIVE"), &(MODERN.to_owned() + &policy));
        let expected = match covers {
            true => vec![],
            false => vec![ObstacleKind::PermissiveWithoutMeshTls],
        };
        assert_eq!(found, expected, "{name}");
    }
}

fn web() -> Proxy {
    Proxy::new("web-1", Workload::new())
}

fn told(resources: &MeshResources) -> Mode {
    TlsPolicy::resolve(resources, &web()).unwrap().mode.value
}

/// Follows a plan with one proxy that does at once what it is told.
fn follow(plan: &Plan, from: &str) -> MeshResources {
    let mut observed = Observed::new(read(from));
    let (old, new) = (
        BackendKey::Classic("ca-1".to_owned()),
        BackendKey::Modern("all".to_owned()),
    );
    observed.ready = [old.clone(), new.clone()].into();
    for _ in 0..100 {
        let now = &observed.resources;
        let mut proxy = ObservedProxy::new(web());
        let classic = now.mesh.enabled_backend().is_some();
        let trusted = [(classic, &old), (true, &new)].into_iter();
        proxy.trusts = trusted.filter(|it| it.0).map(|it| it.1.clone()).collect();
        proxy.accepts = observed.ready.clone();
        let selects = now
            .identities
            .iter()
            .any(|it| it.provider.is_some() && it.selector.match_labels().is_some());
        proxy.holds = Some(if selects { new.clone() } else { old.clone() });
        proxy.mode = told(now);
        observed.proxies = vec![proxy];
        match plan.next(&observed) {
            Next::Apply { changes, .. } => {
                for change in &changes {
                    change.apply_to(&mut observed.resources);
                }
            }
            Next::Done => return observed.resources,
            other => panic!("{other:?}\n{plan}"),
        }
    }
    panic!("it does not arrive\n{plan}");
}

/// What a proxy does is what the last rule says; the gate asks for nothing else.
#[test]
fn the_gate_opens_for_proxies_that_do_as_they_are_told() {
    for (modes, end) in [
        (&["Strict", "Permissive"][..], Mode::Permissive),
        (&["Permissive", "Strict"], Mode::Strict),
    ] {
        let from = classic("PERMISSIVE");
        let to = MODERN.to_owned() + &tls("all", "", MESH, modes);
        let plan = plan(&read(&from), &read(&to), &options()).unwrap();
        let arrived = follow(&plan, &from);
        assert_eq!(told(&arrived), end, "{modes:?}");
    }
}

/// Two policies change places with one: what is strict at both ends is strict in between, on the
/// way there and on the way back.
#[test]
fn policies_come_and_go_in_an_order_that_opens_no_door() {
    let two = tls("a", "", MESH, &["Strict"]) + &tls("b", "", MESH, &["Strict", "Permissive"]);
    let one = tls("m", "", MESH, &["Strict"]);
    let from = MODERN.to_owned() + &two;
    let to = MODERN.replace("name: all", "name: next") + &one;
    let there = plan(&read(&from), &read(&to), &options()).unwrap();
    let mut now = read(&from);
    let strict = |plan: &Plan, now: &mut MeshResources| {
        for change in plan.steps().iter().flat_map(|it| &it.changes) {
            change.apply_to(now);
            assert_eq!(told(now), Mode::Strict, "{change}\n{plan}");
        }
    };
    strict(&there, &mut now);
    assert_eq!(now.tls, read(&to).tls);
    strict(&there.rollback(&now).unwrap(), &mut now);
    assert_eq!(now.tls.len(), 2);
}

/// A label that decides whether a policy counts is carried along with it.
#[test]
fn a_policy_that_was_for_show_counts_when_the_plan_is_done() {
    let policy = |labels| tls("all", labels, MESH, &["Strict"]);
    let from = classic("PERMISSIVE") + &policy(SHADOW);
    let to = MODERN.to_owned() + &policy("");
    let plan = plan(&read(&from), &read(&to), &options()).unwrap();
    let arrived = follow(&plan, &from);
    assert_eq!(arrived.tls, read(&to).tls);
}

// Random resources and random proxies.

fn some<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(proptest::sample::select(values.to_vec()))
}

fn rarely<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.2, of(values))
}

fn of<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = T> {
    proptest::sample::select(values.to_vec())
}

fn labelled(
    names: &'static [(&'static str, &'static [&'static str])],
    share: f64,
) -> impl Strategy<Value = BTreeMap<String, String>> {
    let each: Vec<_> = names
        .iter()
        .map(|(name, values)| {
            let value = proptest::option::weighted(share, of(values));
            value.prop_map(move |it| Some((*name, it?)))
        })
        .collect();
    each.prop_map(|all| {
        let all = all.into_iter().flatten();
        all.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    })
}

const NAMES: &[&str] = &["web-1", "web-2", "db"];
const NAMESPACES: &[&str] = &["shop", "bank"];
/// Labels of proxies, and what policies look for.
const OF_PROXIES: &[(&str, &[&str])] = &[
    ("app", &["web", "db"]),
    ("tier", &["front"]),
    (labels::ZONE, &["east", "west", "north"]),
    (labels::DISPLAY_NAME, &["web-1", "web-2"]),
    (labels::K8S_NAMESPACE, NAMESPACES),
    ("kuma.io/service", &["s"]),
    ("kuma.io/workload", &["w"]),
];
const OF_POLICIES: &[(&str, &[&str])] = &[
    ("kuma.io/effect", &["shadow"]),
    (
        "kuma.io/policy-role",
        &["system", "producer", "consumer", "workload-owner", "other"],
    ),
    (labels::ORIGIN, &["global", "zone"]),
    (labels::ZONE, &["east", "west"]),
    (labels::DISPLAY_NAME, &["m", "n"]),
    (labels::K8S_NAMESPACE, NAMESPACES),
];

fn target() -> impl Strategy<Value = TargetRef> {
    let labels = labelled(OF_PROXIES, 0.2);
    let dataplane = (rarely(NAMES), rarely(NAMESPACES), labels, rarely(&["http"]));
    let dataplane = dataplane.prop_map(|(name, namespace, labels, section)| {
        let mut target = TargetRef::default();
        target.kind = TargetKind::Dataplane;
        target.name = name.map(str::to_owned);
        target.namespace = namespace.map(str::to_owned);
        target.labels = labels;
        target.section_name = section.map(str::to_owned);
        target
    });
    prop_oneof![Just(TargetRef::default()), dataplane]
}

fn policy() -> impl Strategy<Value = MeshTls> {
    let modes = proptest::option::weighted(0.8, of(&[Mode::Strict, Mode::Permissive]));
    let rules = proptest::collection::vec(modes, 1..3);
    let metadata = (
        of(&["a", "b", "z"]),
        some(NAMESPACES),
        labelled(OF_POLICIES, 0.2),
    );
    (metadata, target(), rules).prop_map(|((name, namespace, labels), target, modes)| {
        let mut metadata = Metadata::universal(name).with_mesh("default");
        metadata.namespace = namespace.map(str::to_owned);
        metadata.labels = labels;
        let mut policy = MeshTls::new(metadata, TlsRule::default());
        policy.target = target;
        let rule = |mode| {
            let mut rule = TlsRule::default();
            rule.mode = mode;
            rule
        };
        policy.rules = modes.into_iter().map(rule).collect();
        policy
    })
}

/// A mesh with a classic backend.
fn mesh() -> impl Strategy<Value = MeshResources> {
    let identities =
        proptest::collection::btree_map(of(&["i", "j", "k"]), labelled(OF_PROXIES, 0.3), 0..3);
    let policies = proptest::collection::vec(policy(), 0..5);
    let backend = of(&["STRICT", "PERMISSIVE"]);
    (backend, identities, policies).prop_map(|(mode, identities, policies)| {
        let mut mesh = read(&classic(mode));
        for (name, labels) in identities {
            let mut identity = read(MODERN).identities.remove(0);
            name.clone_into(&mut identity.metadata.name);
            identity.selector = Selector::labels(labels);
            mesh.identities.push(identity);
        }
        add(&mut mesh, policies);
        mesh
    })
}

fn proxy() -> impl Strategy<Value = Proxy> {
    let labels = labelled(OF_PROXIES, 0.7);
    let parts = (
        of(NAMES),
        some(NAMESPACES),
        labels,
        some(&["http", "admin"]),
    );
    parts.prop_map(|(name, namespace, labels, section)| {
        let workload = labels
            .into_iter()
            .fold(Workload::new(), |it, (name, value)| {
                it.with_label(name, value)
            });
        let mut proxy = Proxy::new(name, workload);
        proxy.namespace = proxy.namespace.or(namespace.map(str::to_owned));
        proxy.section = section.map(str::to_owned);
        proxy
    })
}

/// The same mesh with some policies removed and others added: what two unlike meshes have in
/// common opens too many doors.
fn changed(from: MeshResources) -> impl Strategy<Value = (MeshResources, MeshResources)> {
    let gone = proptest::collection::vec(proptest::bool::weighted(0.3), from.tls.len());
    let new = proptest::collection::vec(policy(), 0..3);
    (gone, new).prop_map(move |(gone, new)| {
        let mut to = from.clone();
        let mut gone = gone.into_iter();
        to.tls.retain(|_| gone.next() != Some(true));
        add(&mut to, new);
        (from.clone(), to)
    })
}

fn add(mesh: &mut MeshResources, policies: Vec<MeshTls>) {
    let key = |it: &MeshTls| (it.metadata.namespace.clone(), it.metadata.name.clone());
    for policy in policies {
        mesh.tls.retain(|it| key(it) != key(&policy));
        mesh.tls.push(policy);
    }
}

fn mode(resources: &MeshResources, proxy: &Proxy) -> Mode {
    let policy = TlsPolicy::resolve(resources, proxy).unwrap();
    assert_eq!(policy.mode, TlsPolicy::mode_of(resources, proxy));
    policy.mode.value
}

fn is_strict(resources: &MeshResources, proxy: &Proxy) -> bool {
    mode(resources, proxy) == Mode::Strict
}

/// No proxy that refuses plaintext at both of these ends accepts it in between.
fn keeps_shut(plan: &Plan, ends: [&MeshResources; 2], proxies: &[Proxy]) {
    let mut now = plan.from().clone();
    for change in plan.steps().iter().flat_map(|it| &it.changes) {
        change.apply_to(&mut now);
        for proxy in proxies {
            let shut = ends.iter().all(|it| is_strict(it, proxy));
            assert!(
                !shut || is_strict(&now, proxy),
                "{proxy:?}\n{change}\n{plan}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What a gate wants of a proxy is what `tls` and `select` say.
    #[test]
    fn a_gate_wants_of_a_proxy_what_the_rules_give_it(resources in mesh(), proxy in proxy()) {
        let mut proxy = proxy;
        proxy.section = None;
        let plan = plan(&resources, &resources, &options()).unwrap();
        let rules = SelectOptions::new("east", Environment::Universal);
        let rules = IdentityRules::new(&resources, rules);
        let issuer = rules.select(&proxy.workload, |_| Ok(())).assigned.issuer();

        let keys = resources.identities.iter().map(|it| BackendKey::Modern(it.metadata.name.clone()));
        let keys: BTreeSet<_> = keys.chain([BackendKey::Classic("ca-1".to_owned())]).collect();
        for told in [Mode::Strict, Mode::Permissive] {
            for held in &keys {
                let mut seen = ObservedProxy::new(proxy.clone());
                (seen.trusts, seen.accepts) = (keys.clone(), keys.clone());
                (seen.mode, seen.holds) = (told, Some(held.clone()));
                let mut observed = Observed::new(resources.clone());
                observed.ready = keys.clone();
                observed.proxies.push(seen);
                let waiting = match plan.next(&observed) {
                    Next::Done => Vec::new(),
                    Next::Wait { waiting, .. } => waiting.into_iter().map(|it| it.requirement).collect(),
                    other => panic!("{other:?}"),
                };
                let is = |it| waiting.contains(&it);
                prop_assert_eq!(is(Requirement::Mode), told != mode(&resources, &proxy));
                prop_assert_eq!(is(Requirement::Holds), issuer.as_ref() != Some(held));
            }
        }
    }

    /// A plan opens no door to any proxy that there could be, on the way there or, from anywhere
    /// on it, on the way back.
    #[test]
    fn no_plan_opens_a_door_to_any_proxy(
        mut ends in mesh().prop_flat_map(changed),
        proxies in proptest::collection::vec(proxy(), 100),
        turn in 0..6_usize,
    ) {
        // This is not about identities.
        ends.0.identities.clear();
        ends.1.identities.clear();
        let there = match plan(&ends.0, &ends.1, &options()) {
            Err(obstacles) => {
                prop_assert!(obstacles.iter().all(|it| it.kind == ObstacleKind::Loosens), "{}", obstacles);
                return Ok(());
            }
            Ok(plan) => plan,
        };
        keeps_shut(&there, [&ends.0, &ends.0], &proxies);
        let mut now = ends.0.clone();
        let changes = there.steps().iter().flat_map(|it| &it.changes);
        changes.take(turn).for_each(|it| it.apply_to(&mut now));
        if let Ok(back) = there.rollback(&now) {
            keeps_shut(&back, [&now, &ends.0], &proxies);
        }
    }
}
