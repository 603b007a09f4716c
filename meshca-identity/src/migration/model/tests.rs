use meshca_core::resource::{MeshTls, MeshTrust, Metadata, Mode, Resource, TlsRule};

use super::explore::{Explorer, Extent, Seen};
use super::world::{ZONE, pem};
use crate::MeshResources;
use crate::migration::{Action, Change, Condition, Plan, PlanOptions, plan};

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
            "trust domain to trust domain, the new one wins",
            resources(&(NO_CA.to_owned() + &all("old", "old.example.org")), &[]),
            resources(&(NO_CA.to_owned() + &all(early, "example.org")), &[]),
            plain.clone(),
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

fn explore(name: &str, plan: &Plan, extent: Extent) -> Seen {
    let seen = match Explorer::new(plan.clone(), extent).run() {
        Ok(seen) => seen,
        Err(violation) => panic!(
            "{name}: {}\n{plan}\n{}",
            violation.what,
            violation.trace.join("\n")
        ),
    };
    eprintln!(
        "{name}: {} states, {} transitions, {} plans, done in {}; {:?}",
        seen.states, seen.transitions, seen.plans, seen.done, seen.actions
    );
    seen
}

#[test]
fn wip() {
    for (name, from, to, options) in moves() {
        let plan = plan(&from, &to, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        eprintln!("{plan}");
        let start = std::time::Instant::now();
        explore(name, &plan, Extent { back: false, ..TWO });
        eprintln!("{:?}", start.elapsed());
        let start = std::time::Instant::now();
        explore(name, &plan, TWO);
        eprintln!("{:?}", start.elapsed());
    }
    let _ = (Mode::Strict, Condition::Holds);
    let _ = |metadata, change: Change| {
        (
            MeshTls::new(metadata, TlsRule::default()),
            matches!(change.action, Action::Put(_)),
        )
    };
}
