//! Plans from resources as operators write them.

use std::collections::BTreeSet;
use std::path::Path;

use meshca_core::resource::{CaBundle, MeshTls, Metadata, Mode, Resource, Selector, TlsRule};
use meshca_core::spiffe::Workload;
use meshca_policy::BackendKey;
use meshca_policy::MeshResources;
use meshca_policy::migration::{
    Action, Next, Observed, ObservedProxy, ObstacleKind, Plan, PlanOptions, plan,
};
use meshca_policy::tls::Proxy;

fn read(text: &str) -> MeshResources {
    let documents = Resource::parse(text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    MeshResources::from_resources(documents).unwrap()
}

fn example(name: &str) -> MeshResources {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/resources/migrate");
    read(&std::fs::read_to_string(folder.join(name)).unwrap())
}

fn options() -> PlanOptions {
    PlanOptions::new("default")
}

fn example_plan() -> Plan {
    plan(&example("mesh.yaml"), &example("vault.yaml"), &options()).unwrap()
}

#[test]
fn the_guide_has_the_plan_that_the_code_makes() {
    let plan = example_plan();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("MIGRATION.md");
    let guide = std::fs::read_to_string(path).unwrap();
    for printed in [plan.to_string(), plan.to_mermaid()] {
        assert!(
            guide.contains(&format!("\n{}\n```\n", printed.trim_end())),
            "MIGRATION.md should have:\n{printed}"
        );
    }
    let titles: Vec<_> = plan.steps().iter().map(|it| it.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "Assign identity",
            "Add trusted CA",
            "Enforce TLS",
            "Rotate",
            "Refuse plaintext",
            "Clean up"
        ]
    );
}

#[test]
fn a_plan_ends_where_it_was_to_end_and_its_resources_are_valid() {
    let (from, to) = (example("mesh.yaml"), example("vault.yaml"));
    let plan = plan(&from, &to, &options()).unwrap();
    let all = |plan: &Plan, now: &mut MeshResources| {
        for change in plan.steps().iter().flat_map(|step| &step.changes) {
            if let Action::Put(resource) = &change.action {
                resource.validate().unwrap();
            }
            change.apply_to(now);
        }
    };
    let mut now = from.clone();
    all(&plan, &mut now);
    assert_eq!(now, to);
    all(&plan.rollback(&now).unwrap(), &mut now);
    assert_eq!(now, from);
}

/// Classic, with one backend in this mode; and what else the mesh has.
fn classic(mode: &str, rest: &str) -> String {
    format!(
        "type: Mesh\nname: default\n{rest}\nmtls:\n  enabledBackend: ca-1\n  backends: [{{name: ca-1, type: builtin, mode: {mode}}}]\n"
    )
}

const EXCLUSIVE: &str = "meshServices: {mode: Exclusive}";
const MODERN_MESH: &str = "type: Mesh\nname: default\nmeshServices: {mode: Exclusive}\n";

fn identity(name: &str, selector: &str, domain: &str, provider: &str) -> String {
    format!(
        "---\ntype: MeshIdentity\nname: {name}\nmesh: default\nspec:\n  selector: {{dataplane: {{matchLabels: {selector}}}}}\n  \
         spiffeID: {{trustDomain: '{domain}'}}\n  provider: {provider}\n"
    )
}

const BUNDLED: &str =
    "{type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}";
const WITHOUT_TRUST: &str = "{type: Bundled, bundled: {meshTrustCreation: Disabled, insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}";

fn tls(name: &str, target: &str, mode: &str) -> String {
    format!(
        "---\ntype: MeshTLS\nname: {name}\nmesh: default\nspec: {{targetRef: {target}, rules: [{{default: {{mode: {mode}}}}}]}}\n"
    )
}

const MESH: &str = "{kind: Mesh}";
const SECTION: &str = "{kind: Dataplane, name: web-1, sectionName: main}";
const WEB: &str = "{kind: Dataplane, labels: {app: web}}";

#[test]
fn what_is_in_the_way_is_said() {
    use ObstacleKind::*;
    let strict = classic("STRICT", EXCLUSIVE);
    let permissive = classic("PERMISSIVE", EXCLUSIVE);
    let new = |selector, domain, provider| {
        MODERN_MESH.to_owned() + &identity("new", selector, domain, provider)
    };
    let modern = |rest: &str| new("{}", "example.org", BUNDLED) + rest;
    let old = MODERN_MESH.to_owned() + &identity("old", "{}", "old.org", BUNDLED);
    let other_ca = old.replace(
        "autogenerate: {enabled: true}",
        "ca: {certificate: {type: EnvVar, envVar: {name: C}}, privateKey: {type: EnvVar, envVar: {name: K}}}",
    );
    let for_web = identity("new", "{app: web}", "example.org", BUNDLED);
    let taken = identity("new-announced", "{a: b}", "example.com", BUNDLED);
    let open_web = tls("all", MESH, "Strict") + &tls("web", WEB, "Permissive");
    let untold = r#"{{ label "none" }}.org"#;
    let tags = "MeshTrafficPermission allow-shop";
    let cases: Vec<(&str, &String, String, &str, Vec<ObstacleKind>)> = vec![
        ("sound", &strict, modern(""), "", vec![]),
        ("tag rules", &strict, modern(""), tags, vec![TagRule]),
        (
            "tags do not matter between classic CAs",
            &strict,
            strict.replace("ca-1", "ca-2"),
            tags,
            vec![],
        ),
        (
            "permissive, and nobody says more",
            &permissive,
            modern(""),
            "",
            vec![PermissiveWithoutMeshTls],
        ),
        (
            "a MeshTLS for some is not enough",
            &permissive,
            modern(&tls("web", WEB, "Permissive")),
            "",
            vec![PermissiveWithoutMeshTls],
        ),
        (
            "permissive stays permissive",
            &permissive,
            modern(&tls("all", MESH, "Permissive")),
            "",
            vec![],
        ),
        (
            "strict with an exception",
            &permissive,
            modern(&open_web),
            "",
            vec![],
        ),
        (
            "a door would open",
            &strict,
            modern(&tls("all", MESH, "Permissive")),
            "",
            vec![Loosens],
        ),
        (
            "a door would open for some",
            &strict,
            modern(&open_web),
            "",
            vec![Loosens],
        ),
        (
            "a door would open at one inbound",
            &strict,
            modern(&tls("web", SECTION, "Permissive")),
            "",
            vec![Loosens],
        ),
        (
            "a door would open with another backend",
            &strict,
            permissive.replace("ca-1", "ca-2"),
            "",
            vec![Loosens],
        ),
        (
            "some would be left",
            &strict,
            MODERN_MESH.to_owned() + &for_web,
            "",
            vec![NotCovered],
        ),
        (
            "the backend stays for the others",
            &strict,
            strict.clone() + &for_web,
            "",
            vec![],
        ),
        (
            "another CA under the same name",
            &old,
            other_ca,
            "",
            vec![SameName],
        ),
        (
            "another trust domain under the same name",
            &old,
            old.replace("old.org", "new.org"),
            "",
            vec![SameName],
        ),
        (
            "another CA in a backend of the same name",
            &strict,
            strict.replace("type: builtin", "type: theirs"),
            "",
            vec![SameName],
        ),
        (
            "a name that the plan needs",
            &strict,
            modern(&taken),
            "",
            vec![SameName],
        ),
        (
            "nobody brings the roots",
            &strict,
            new("{}", "example.org", "{type: Spire}"),
            "",
            vec![NoTrust],
        ),
        (
            "a trust domain that cannot be told",
            &strict,
            new("{}", untold, BUNDLED),
            "",
            vec![Template],
        ),
        (
            "another mesh",
            &strict,
            strict.replace("name: default", "name: other"),
            "",
            vec![AnotherMesh],
        ),
    ];
    let check = |name: &str, from: &str, to: &str, tags: &str, expected: &[ObstacleKind]| {
        let mut options = options();
        if !tags.is_empty() {
            options = options.with_tag_rule(tags);
        }
        let found: Vec<ObstacleKind> = match plan(&read(from), &read(to), &options) {
            Ok(_) => Vec::new(),
            Err(obstacles) => {
                for obstacle in &obstacles {
                    assert!(!obstacle.first.is_empty(), "{obstacle}");
                    assert!(obstacle.to_string().contains(". First: "), "{obstacle}");
                }
                obstacles.iter().map(|it| it.kind).collect()
            }
        };
        assert_eq!(found, expected, "{name}");
    };
    for (name, from, to, tags, expected) in cases {
        check(name, from, &to, tags, &expected);
    }
    for mode in ["", "meshServices: {mode: Everywhere}", "meshServices: {}"] {
        let from = classic("STRICT", mode);
        check(mode, &from, &modern(""), "", &[MeshServices]);
    }
    let nobody = MODERN_MESH.to_owned();
    check("nobody", &nobody, &modern(""), "", &[NoIdentity]);
    check(
        "all at once",
        &classic("PERMISSIVE", ""),
        &new("{app: web}", "example.org", WITHOUT_TRUST),
        tags,
        &[
            NoTrust,
            NotCovered,
            TagRule,
            MeshServices,
            PermissiveWithoutMeshTls,
        ],
    );
}

fn vault() -> BackendKey {
    BackendKey::Modern("vault".into())
}

fn ca_1() -> BackendKey {
    BackendKey::Classic("ca-1".into())
}

/// The mesh of the example after so many steps, with two proxies that have seen it all.
fn after(plan: &Plan, steps: usize) -> Observed {
    let mut observed = Observed::new(plan.from().clone());
    for change in plan.steps().iter().take(steps).flat_map(|it| &it.changes) {
        change.apply_to(&mut observed.resources);
    }
    observed.ready.insert(vault());
    observed.ready.insert(ca_1());
    for name in ["a", "b"] {
        let mut proxy = ObservedProxy::new(Proxy::new(name, Workload::new()));
        proxy.trusts = BTreeSet::from([ca_1(), vault()]);
        proxy.accepts = BTreeSet::from([ca_1(), vault()]);
        proxy.mode = if steps < 5 {
            Mode::Permissive
        } else {
            Mode::Strict
        };
        proxy.holds = Some(if steps < 4 { ca_1() } else { vault() });
        observed.proxies.push(proxy);
    }
    observed
}

#[test]
fn who_is_waited_for_is_named() {
    let plan = example_plan();
    let waiting = |observed: &Observed| match plan.next(observed) {
        Next::Wait { step, waiting } => {
            let lines = waiting.iter().map(ToString::to_string);
            (step, lines.collect::<Vec<_>>().join("\n"))
        }
        other => panic!("{other:?}"),
    };

    let mut observed = after(&plan, 1);
    observed.proxies[0].accepts.remove(&vault());
    let what = "the proxy `a`: does not accept the SPIFFE IDs of the MeshIdentity `vault` yet";
    assert_eq!(waiting(&observed), (1, what.to_owned()));

    let mut observed = after(&plan, 2);
    observed.proxies[1].trusts.clear();
    observed.proxies[1].connected = false;
    observed.ready.clear();
    let what = "the MeshIdentity `vault`: its CA is not ready\n\
                the proxy `b`: does not hold the roots of the MeshIdentity `vault` yet; it is not connected and goes on with \
                what it has: reconnect it, or end it";
    assert_eq!(waiting(&observed), (2, what.to_owned()));
    // It is gone, and need not be waited for.
    observed.proxies.pop();
    observed.ready.insert(vault());
    assert!(matches!(plan.next(&observed), Next::Apply { step: 3, .. }));

    // Who is not seen may be on the way back.
    observed.returning = true;
    let what = "the control plane has started, and proxies may not be back yet";
    assert_eq!(waiting(&observed), (2, what.to_owned()));

    let mut observed = after(&plan, 4);
    observed.proxies[0].holds = Some(ca_1());
    observed.proxies[1].holds = None;
    let what = "the proxy `a`: serves a certificate of the backend `ca-1`, and not of the MeshIdentity `vault` yet\n\
                the proxy `b`: has no certificate of the MeshIdentity `vault` yet";
    assert_eq!(waiting(&observed), (4, what.to_owned()));

    let mut observed = after(&plan, 5);
    observed.proxies[0].mode = Mode::Permissive;
    let what = "the proxy `a`: still accepts plaintext";
    assert_eq!(waiting(&observed), (5, what.to_owned()));

    let mut observed = after(&plan, 6);
    observed.proxies[0].trusts.remove(&ca_1());
    let what = "the proxy `b`: still holds the roots of the backend `ca-1`";
    assert_eq!(waiting(&observed), (6, what.to_owned()));
    observed.proxies[1].trusts.remove(&ca_1());
    assert_eq!(plan.next(&observed), Next::Done);
}

#[test]
fn a_step_that_was_begun_is_ended() {
    let plan = example_plan();
    let mut observed = after(&plan, 0);
    let names = |observed: &Observed| match plan.next(observed) {
        Next::Apply { step: 1, changes } => {
            let names = changes.iter().map(|change| match &change.action {
                Action::Put(resource) => resource.metadata().name.clone(),
                other => panic!("{other:?}"),
            });
            names.collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&observed), ["vault-announced", "vault"]);
    for _ in 0..2 {
        plan.steps()[0].changes[0].apply_to(&mut observed.resources);
        assert_eq!(names(&observed), ["vault"]);
    }
}

#[test]
fn what_others_wrote_stays() {
    let plan = example_plan();
    let mut observed = after(&plan, 5);
    // Somebody switched on tracing while the plan was under way, and the server made notes.
    let rest = "meshServices: {mode: Exclusive}\ntracing: {defaultBackend: jaeger}";
    observed.resources.mesh = read(&classic("PERMISSIVE", rest)).mesh;
    for identity in &mut observed.resources.identities {
        let labels = &mut identity.metadata.labels;
        labels.insert("kuma.io/origin".into(), "zone".into());
    }
    let Next::Apply { step: 6, changes } = plan.next(&observed) else {
        panic!("{:?}", plan.next(&observed));
    };
    let Action::Put(Resource::Mesh(mesh)) = &changes[0].action else {
        panic!("{changes:?}");
    };
    assert_eq!(mesh.mtls, None);
    assert!(mesh.rest.keys().any(|key| key == "tracing"));
}

#[test]
fn a_control_plane_may_add_roots_of_its_own() {
    let plan = example_plan();
    let mut observed = after(&plan, 2);
    let trust = &mut observed.resources.trusts[0];
    let other = CaBundle::Pem("another".into());
    let ours = std::mem::replace(&mut trust.ca_bundles, vec![other.clone()]).remove(0);
    let Next::Apply { step: 2, changes } = plan.next(&observed) else {
        panic!("{:?}", plan.next(&observed));
    };
    let Action::Put(Resource::MeshTrust(trust)) = &changes[0].action else {
        panic!("{changes:?}");
    };
    assert_eq!(trust.ca_bundles, [ours, other]);
    changes[0].apply_to(&mut observed.resources);
    assert!(matches!(plan.next(&observed), Next::Apply { step: 3, .. }));
}

#[test]
fn a_hand_in_the_middle_stops_the_plan() {
    type Hand = fn(&mut MeshResources);
    let plan = example_plan();
    let cases: [(usize, Hand, &str); 3] = [
        (
            2,
            |it| it.identities[0].selector = Selector::labels([("app", "web")]),
            "MeshIdentity vault-announced",
        ),
        (
            5,
            |it| {
                let metadata = Metadata::universal("all").with_mesh("default");
                it.tls = vec![MeshTls::new(metadata, TlsRule::default())];
            },
            "MeshTLS all",
        ),
        (
            3,
            |it| it.mesh.mtls.as_mut().unwrap().backends[0].mode = Mode::Strict,
            "Mesh default",
        ),
    ];
    for (steps, hand, expected) in cases {
        let mut observed = after(&plan, steps);
        hand(&mut observed.resources);
        match plan.next(&observed) {
            Next::Diverged { resources } => assert_eq!(resources, [expected]),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
