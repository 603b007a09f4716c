use std::collections::{BTreeMap, BTreeSet};

use meshca_core::resource::{MeshTls, MeshTrust, Metadata, Mode, Resource, TlsRule};

use super::explore::{Explorer, Extent, Seen, Violation};
use super::world::{ZONE, pem};
use crate::BackendKey;
use crate::MeshResources;
use crate::migration::{Change, Plan, PlanOptions, Requirement, plan};

/// YAML without MeshTrusts, and the MeshTrusts: a trust domain and whose roots are in it.
fn resources(text: &str, trusts: &[(&str, &str, &[&str])]) -> MeshResources {
    let documents = Resource::parse(text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    let mut resources = MeshResources::from_resources(documents).unwrap();
    for (name, domain, roots) in trusts {
        let metadata = Metadata::universal(*name).with_mesh("default");
        let domain = meshca_core::TrustDomain::new(domain).unwrap();
        let mut trust = MeshTrust::new(metadata, domain, pem(roots[0]));
        trust.ca_bundles = roots.iter().map(|root| pem(root)).collect();
        resources.trusts.push(trust);
    }
    resources
}

fn classic(backends: &[(&str, &str)]) -> String {
    let enabled = backends[0].0;
    let mut text = format!(
        "type: Mesh\nname: default\nmeshServices: {{mode: Exclusive}}\nmtls:\n  enabledBackend: {enabled}\n  backends:\n"
    );
    for (name, mode) in backends {
        text += &format!("  - {{name: {name}, type: builtin, mode: {mode}}}\n");
    }
    text
}

const NO_CA: &str = "type: Mesh\nname: default\nmeshServices: {mode: Exclusive}\n";

fn identity(name: &str, domain: &str, selector: &str) -> String {
    format!(
        "---\ntype: MeshIdentity\nname: {name}\nmesh: default\nspec:\n  selector: {{dataplane: {{matchLabels: {selector}}}}}\n  \
         spiffeID: {{trustDomain: {domain}, path: '/workload/{{{{ .Workload }}}}'}}\n  \
         provider: {{type: Bundled, bundled: {{insecureAllowSelfSigned: true, autogenerate: {{enabled: true}}}}}}\n"
    )
}

fn tls(mode: &str) -> String {
    format!(
        "---\ntype: MeshTLS\nname: all\nmesh: default\nspec: {{targetRef: {{kind: Mesh}}, rules: [{{default: {{mode: {mode}}}}}]}}\n"
    )
}

/// All moves, each with what it is called.
fn moves() -> Vec<(&'static str, MeshResources, MeshResources, PlanOptions)> {
    let plain = PlanOptions::new(ZONE);
    let strict = classic(&[("ca-1", "STRICT")]);
    let permissive = classic(&[("ca-1", "PERMISSIVE")]);
    // Their names decide who wins while both select.
    let [early, late] = ["a-new", "z-new"];
    let all = |name, domain| identity(name, domain, "{}");
    vec![
        (
            "classic CA to classic CA",
            resources(&strict, &[]),
            resources(&classic(&[("ca-2", "STRICT")]), &[]),
            plain.clone(),
        ),
        (
            "classic to modern",
            resources(&strict, &[]),
            resources(
                &(NO_CA.to_owned() + &all("vault", "example.org") + &tls("Strict")),
                &[("vault", "example.org", &["vault"])],
            ),
            plain.clone(),
        ),
        (
            "classic to modern, from PERMISSIVE to Strict, and with a canary",
            resources(&permissive, &[]),
            resources(
                &(NO_CA.to_owned() + &all("own", "example.org") + &tls("Strict")),
                &[],
            ),
            plain.clone().with_canary([("app", "web")]),
        ),
        (
            "classic to modern, with an exception, where the last rule decides",
            resources(&permissive, &[]),
            resources(
                &(NO_CA.to_owned()
                    + &all("own", "example.org")
                    + &tls("Permissive}}, {default: {mode: Strict")
                    + &tls("Strict}}, {default: {mode: Permissive")
                        .replace("name: all", "name: web")
                        .replace("kind: Mesh", "kind: Dataplane, labels: {app: web}")),
                &[],
            ),
            plain.clone(),
        ),
        (
            "classic to two modern CAs",
            resources(&strict, &[]),
            resources(
                &(NO_CA.to_owned()
                    + &all("rest", "example.org")
                    + &identity("special", "db.example.org", "{app: db}")),
                &[],
            ),
            plain.clone(),
        ),
        (
            "classic to modern for some",
            resources(&strict, &[]),
            resources(
                &(strict.clone() + &identity("special", "db.example.org", "{app: db}")),
                &[],
            ),
            plain.clone(),
        ),
        (
            "classic to another classic CA, and to modern for some",
            resources(&strict, &[]),
            resources(
                &(classic(&[("ca-2", "STRICT")])
                    + &identity("special", "db.example.org", "{app: db}")),
                &[],
            ),
            plain.clone(),
        ),
        (
            "modern to classic",
            resources(&(NO_CA.to_owned() + &all("own", "example.org")), &[]),
            resources(&strict, &[]),
            plain.clone(),
        ),
        (
            "provider to provider",
            resources(&(NO_CA.to_owned() + &all("old", "example.org")), &[]),
            resources(
                &(NO_CA.to_owned() + &all(late, "example.org")),
                &[(late, "example.org", &[late])],
            ),
            plain.clone(),
        ),
        (
            "provider to provider with one MeshTrust",
            resources(
                &(NO_CA.to_owned() + &all("old", "example.org")),
                &[("shared", "example.org", &["old"])],
            ),
            resources(
                &(NO_CA.to_owned() + &all(early, "example.org")),
                &[("shared", "example.org", &[early])],
            ),
            plain.clone(),
        ),
        (
            "provider to provider whose MeshTrust nobody makes",
            resources(&(NO_CA.to_owned() + &all("old", "example.org")), &[]),
            resources(
                &(NO_CA.to_owned()
                    + &all("new", "example.org")
                        .replace("bundled: {", "bundled: {meshTrustCreation: Disabled, ")),
                &[("by-hand", "example.org", &["new"])],
            ),
            plain.clone(),
        ),
        (
            "trust domain to trust domain, the new one wins",
            resources(&(NO_CA.to_owned() + &all("old", "old.example.org")), &[]),
            resources(&(NO_CA.to_owned() + &all(early, "example.org")), &[]),
            plain.clone().with_canary([("app", "web")]),
        ),
        (
            "trust domain to trust domain, the old one wins",
            resources(&(NO_CA.to_owned() + &all("old", "old.example.org")), &[]),
            resources(&(NO_CA.to_owned() + &all(late, "example.org")), &[]),
            plain,
        ),
    ]
}

const TWO: Extent = Extent {
    proxies: &[0, 1],
    back: true,
    forth: false,
    together: false,
};

fn planned() -> impl Iterator<Item = (&'static str, Plan)> {
    moves().into_iter().map(|(name, from, to, options)| {
        let plan = plan(&from, &to, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, plan)
    })
}

fn explore(name: &str, plan: &Plan, extent: Extent) -> Seen {
    let seen = Explorer::new(plan.clone(), extent).run();
    let seen = seen.unwrap_or_else(|violation| panic!("{name}: {violation}\n{plan}"));
    eprintln!(
        "{name}: {} states, {} transitions, {} plans; {:?}",
        seen.states, seen.transitions, seen.plans, seen.actions
    );
    // Each step was applied, and each gate was both closed and open: the step after it was
    // applied, or the end reached.
    for (index, step) in plan.steps().iter().enumerate() {
        for outcome in ["apply", "wait"] {
            // Who was strict and stays so has nothing to acknowledge, and whoever issues already
            // is accepted.
            let is_so = |requirement: &Requirement| match requirement {
                Requirement::Mode => true,
                Requirement::Holds => step.title == "Clean up",
                Requirement::Accepts(BackendKey::Modern(name)) => {
                    let mut issuing = plan.from.identities.iter();
                    issuing.any(|it| it.metadata.name == *name && it.provider.is_some())
                }
                _ => false,
            };
            let nothing_to_wait_for = outcome == "wait" && step.gate.iter().all(is_so);
            assert!(
                nothing_to_wait_for || seen.outcomes.contains(&(0, index + 1, outcome)),
                "{name}: never {outcome} at step {}: {}",
                index + 1,
                step.title
            );
        }
    }
    let all: BTreeSet<usize> = (0..seen.plans).collect();
    assert_eq!(seen.done, all, "{name}: a plan that never ends");
    for action in [
        "again",
        "apply",
        "ends",
        "gets a certificate",
        "is connected again",
        "is cut off",
        "ready",
        "restarts",
        "starts",
    ] {
        assert!(seen.actions.contains_key(action), "{name}: never {action}");
    }
    seen
}

/// Two proxies, one change at a time, and the way back from everywhere.
#[test]
fn every_order_of_every_move_and_of_every_way_back() {
    let mut states = 0;
    for (name, plan) in planned() {
        states += explore(name, &plan, TWO).states;
    }
    eprintln!("{states} states in all");
    assert!(states > 50_000, "{states}");
}

/// On the way back, operators change their minds once more.
#[test]
fn every_order_there_and_back_and_there_again() {
    let mut states = 0;
    for (name, plan) in planned().filter(|(_, plan)| plan.to.identities.len() < 2) {
        let extent = Extent { forth: true, ..TWO };
        states += explore(name, &plan, extent).states;
    }
    eprintln!("{states} states in all");
    assert!(states > 50_000, "{states}");
}

/// What two cannot show: that a third one stays behind while two are ahead.
#[test]
fn every_order_with_three_proxies() {
    let mut states = 0;
    for (name, plan) in planned() {
        let extent = Extent {
            proxies: &[0, 0, 1],
            back: !name.contains("two modern"),
            forth: false,
            together: true,
        };
        states += explore(name, &plan, extent).states;
    }
    eprintln!("{states} states in all");
    assert!(states > 50_000, "{states}");
}

fn find_violation(mut plan: Plan) -> Option<Violation> {
    plan.states.truncate(1);
    for step in &plan.steps {
        let mut after = plan.states.last().unwrap().clone();
        for change in &step.changes {
            change.apply_to(&mut after);
        }
        plan.states.push(after);
    }
    let extent = Extent { back: false, ..TWO };
    Explorer::new(plan, extent).run().err()
}

/// A check that cannot fail proves nothing.
#[test]
fn a_plan_without_one_of_its_gates_is_found_out() {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, plan) in planned() {
        for step in 0..plan.steps.len() {
            for requirement in plan.steps[step].gate.clone() {
                let kind = match requirement {
                    Requirement::Ready(_) => "ready",
                    Requirement::Accepts(_) => "accepts",
                    Requirement::Trusts(_) => "trusts",
                    Requirement::Mode => "mode",
                    Requirement::Holds => "holds",
                    Requirement::Forgets(_) => "forgets",
                };
                let mut careless = plan.clone();
                // A requirement may be asked for twice, and once would be enough.
                for step in &mut careless.steps {
                    step.gate.retain(|it| *it != requirement || kind == "holds");
                }
                careless.steps[step].gate.retain(|it| *it != requirement);
                if let Some(violation) = find_violation(careless) {
                    assert!(!violation.trace.is_empty());
                    if found.entry(kind).or_default().insert(name) {
                        eprintln!("{name}, without {kind}: {violation}");
                    }
                }
            }
        }
    }
    for (name, plan) in planned() {
        assert!(found["trusts"].contains(name), "{name}: {found:#?}");
        let forgets = |it: &Requirement| matches!(it, Requirement::Forgets(_));
        // Where nothing is forgotten, nothing is lost too early.
        let forgetful = plan.steps.iter().any(|step| step.gate.iter().any(forgets));
        assert_eq!(
            found["holds"].contains(name),
            forgetful,
            "{name}: {found:#?}"
        );
    }
    // Where all have the same SPIFFE IDs, there is nothing to accept.
    assert!(found["accepts"].len() >= 6, "{found:#?}");
}

#[test]
fn a_plan_that_opens_a_door_is_found_out() {
    let (_, plan) = planned().nth(1).unwrap();
    let mut careless = plan;
    let metadata = Metadata::universal("a-door").with_mesh("default");
    let door = MeshTls::new(metadata, TlsRule::with_mode(Mode::Permissive));
    careless.steps[2]
        .changes
        .insert(0, Change::put(door, "open"));
    let violation = find_violation(careless).unwrap();
    assert!(violation.what.contains("accepts plaintext"), "{violation}");
    assert!(
        violation.trace.last().unwrap().contains("gets its mode"),
        "{violation}"
    );
}

#[test]
fn a_plan_in_another_order_is_found_out() {
    // The selector moves before anyone was told of the SPIFFE IDs.
    let (_, plan) = planned().nth(1).unwrap();
    let mut careless = plan;
    let rotate = careless.steps[3].changes.clone();
    careless.steps[0].changes = rotate;
    let violation = find_violation(careless).unwrap();
    assert!(!violation.trace.is_empty(), "{violation}");
}
