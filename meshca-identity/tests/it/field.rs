//! What the field writes, and what its control planes say of it: the rules for MeshIdentity, with Kuma's conditions and reasons.

use std::sync::Arc;
use std::time::Duration;

use crate::world::{DAY, OFF, World, pass};
use meshca_core::{Clock, Expect, Issuer, SecretKey, SecretStore, SecretValue, TrustDomain};
use meshca_identity::manager::Assignment;
use meshca_testkit::pki::TestCa;
use meshca_testkit::{FakeClock, FaultyIssuer};

/// What `status.conditions` says: type, status and reason of each.
fn said(world: &World, name: &str) -> Vec<String> {
    let statuses = world.manager.mesh("default").identity_statuses();
    let status = statuses.iter().find(|it| it.name == name).unwrap();
    let one = |it: &meshca_identity::manager::Condition| {
        format!("{}={} {}", it.kind, it.status_str(), it.reason)
    };
    status.conditions.iter().map(one).collect()
}

fn spec(selector: &str, spiffe: &str, provider: &str) -> String {
    let parts = [selector, spiffe, provider];
    let parts: Vec<_> = parts.into_iter().filter(|it| !it.is_empty()).collect();
    format!(
        "---\n{{type: MeshIdentity, name: my-id, mesh: default, spec: {{{}}}}}\n",
        parts.join(", ")
    )
}

const ALL: &str = "selector: {dataplane: {matchLabels: {}}}";
const BUNDLED: &str = "provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}";

/// Selector, SPIFFE ID, provider; the SPIFFE ID that the workload gets, who gives it, and what is said.
#[tokio::test(start_paused = true)]
async fn a_mesh_identity_means_what_it_means_to_kuma() {
    let ready = "SpiffeIDProvider=True SpiffeIDProvided, Provider=True ProviderInitialized, \
                 MeshTrustCreated=True MeshTrustCreated, Ready=True Ready";
    let only_id = "SpiffeIDProvider=True SpiffeIDProvided, Ready=False PartiallyReady";
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        Result<&'static str, Assignment>,
        &'static str,
    );
    let cases: [Row; 13] = [
        // The defaults: `{{ .Mesh }}.{{ .Zone }}.mesh.local`, and on Universal `/workload/{{ .Workload }}`.
        (
            ALL,
            "",
            BUNDLED,
            Ok("spiffe://default.east.mesh.local/workload/w"),
            ready,
        ),
        (
            ALL,
            "spiffeID: {trustDomain: 'td.{{ .Zone }}', path: '/app/{{ label \"app\" }}'}",
            BUNDLED,
            Ok("spiffe://td.east/app/web"),
            ready,
        ),
        // No `selector`, or no `dataplane`: nothing. `matchLabels: {}`: all.
        ("", "", BUNDLED, Err(Assignment::Nobody), ready),
        ("selector: {}", "", BUNDLED, Err(Assignment::Nobody), ready),
        (
            "selector: {dataplane: {matchLabels: {app: web}}}",
            "",
            BUNDLED,
            Ok("spiffe://default.east.mesh.local/workload/w"),
            ready,
        ),
        (
            "selector: {dataplane: {matchLabels: {app: db}}}",
            "",
            BUNDLED,
            Err(Assignment::Nobody),
            ready,
        ),
        // A label of the workload that is missing is an error, not an empty segment.
        (
            ALL,
            "spiffeID: {path: '/t/{{ label \"team\" }}'}",
            BUNDLED,
            Err(Assignment::Waiting),
            ready,
        ),
        // A label of the MeshIdentity that is missing makes no trust domain.
        (
            ALL,
            "spiffeID: {trustDomain: '{{ label \"env\" }}.org'}",
            BUNDLED,
            Err(Assignment::Waiting),
            "SpiffeIDProvider=False Failure, Ready=False Failure",
        ),
        // Without a provider: the ID only.
        (ALL, "", "", Err(Assignment::Nobody), only_id),
        (
            ALL,
            "",
            "provider: {type: Spire, spire: {agent: {timeout: 1s}}}",
            Err(Assignment::Agent),
            "SpiffeIDProvider=True SpiffeIDProvided, Provider=True ProviderInitialized, Ready=True Ready",
        ),
        // Somebody else distributes the trust, and has not: nothing is handed out that peers cannot verify.
        (
            ALL,
            "",
            "provider: {type: Bundled, bundled: {meshTrustCreation: Disabled, insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}",
            Err(Assignment::Waiting),
            "SpiffeIDProvider=True SpiffeIDProvided, Provider=False ProviderValidationError, Ready=False Failure",
        ),
        // Its own root, and nobody has allowed that.
        (
            ALL,
            "",
            "provider: {type: Bundled, bundled: {ca: {certificate: {type: Secret, secretRef: {kind: Secret, name: ca.crt}}, \
             privateKey: {type: Secret, secretRef: {kind: Secret, name: ca.key}}}}}",
            Err(Assignment::Waiting),
            "SpiffeIDProvider=True SpiffeIDProvided, Provider=False ProviderValidationError, Ready=False Failure",
        ),
        // A type that nobody has registered.
        (
            ALL,
            "",
            "provider: {type: Extension, extension: {name: nobody, config: {}}}",
            Err(Assignment::Waiting),
            "SpiffeIDProvider=True SpiffeIDProvided, Provider=False ProviderNotFoundError, Ready=False Failure",
        ),
    ];
    for (selector, spiffe, provider, expected, conditions) in cases {
        let world = World::new();
        let ca = TestCa::root("root", FakeClock::start()).unwrap();
        for (name, value) in [("ca.crt", ca.pem()), ("ca.key", ca.key_pem().unwrap())] {
            let key = SecretKey::new("default", name).unwrap();
            let value = SecretValue::from(value.as_str());
            world
                .secrets
                .put(&key, value, Expect::Absent)
                .await
                .unwrap();
        }
        let text = spec(selector, spiffe, provider);
        world.apply(&(OFF.to_owned() + &text)).await;
        let handle = world.connect("w").await;
        pass(Duration::from_secs(2)).await;
        let got = match handle.identity() {
            Some(identity) => Ok(identity.spiffe_id().to_string()),
            None => Err(handle.assignment()),
        };
        assert_eq!(
            got,
            expected.map(str::to_owned),
            "{text}\n{:?}",
            handle.error()
        );
        assert_eq!(said(&world, "my-id").join(", "), conditions, "{text}");
    }
}

/// `mode: Intermediate`: the CA signs an intermediate, and that signs the workloads' certificates here.
#[tokio::test(start_paused = true)]
async fn an_intermediate_costs_the_ca_one_signature_for_all() {
    let world = World::with(|options| options.trust_refresh = Duration::from_secs(3600));
    let provider =
        "provider: {type: Extension, extension: {name: ca-a, config: {mode: Intermediate}}}";
    world
        .apply(&(OFF.to_owned() + &spec(ALL, "spiffeID: {trustDomain: example.org}", provider)))
        .await;
    let mut handles = Vec::new();
    for n in 0..50 {
        handles.push(world.connect(&format!("w-{n}")).await);
    }
    for handle in &mut handles {
        let identity = handle.ready().await.unwrap();
        assert!(identity.certificate().chain().len() >= 2);
    }
    let ca = world.cas.get("ca-a");
    assert_eq!(ca.times_asked(), 1);
    // Replaced before it ends, by the manager.
    for _ in 0..100 {
        pass(DAY).await;
        let identity = handles[0].identity().unwrap();
        assert!(
            identity
                .certificate()
                .validity()
                .contains(world.clock.now())
        );
    }
    assert!((2..20).contains(&ca.times_asked()), "{}", ca.times_asked());
    assert!(world.log.count("signs with its next CA") >= 1);
}

/// The CA above an intermediate is exchanged for one with another root, in the way that CAs should
/// be: it names the next root before anything leads to it.
#[tokio::test(start_paused = true)]
async fn the_ca_above_an_intermediate_may_rotate() {
    let second = Duration::from_secs(1);
    for (restarts, told) in [(false, false), (false, true), (true, false)] {
        let mut world = World::new();
        let provider =
            "provider: {type: Extension, extension: {name: ca-a, config: {mode: Intermediate}}}";
        let text = OFF.to_owned() + &spec(ALL, "spiffeID: {trustDomain: example.org}", provider);
        world.apply(&text).await;
        let mut handle = world.connect("w").await;
        let old = handle.ready().await.unwrap();
        let ca = world.cas.get("ca-a");
        let next = FaultyIssuer::new(
            TrustDomain::new("example.org").unwrap(),
            Arc::new(world.clock.clone()),
        );
        let next = Arc::new(next.unwrap());
        let new_root = next.trust_bundle().await.unwrap().roots()[0].clone();
        ca.exchange(Arc::clone(&next), vec![ca.issuer()]);
        let mut patience = 31 * second;
        if told {
            world.manager.secrets_changed();
            patience = second;
        }
        if restarts {
            world = world.restarted(|_| {}).await;
            world.apply(&text).await;
            handle = world.connect("w").await;
            handle.ready().await.unwrap();
        }
        pass(patience).await;
        let trust = handle.trust();
        let trusted = trust.for_peer(old.spiffe_id()).unwrap();
        let found = trusted.contains(new_root.der());
        assert!(found, "restarts: {restarts}, told: {told}: {trusted:?}");
        assert_eq!(ca.times_asked(), 1, "nothing leads to it yet");

        // Its old root is not its any more: the intermediate below it is replaced at once, and no
        // workload trusts less than it needs.
        ca.exchange(next, vec![]);
        let mut replaced = false;
        for _ in 0..100 {
            pass(600 * second).await;
            let identity = handle.identity().unwrap();
            let root = identity.certificate().root().der().clone();
            let trust = handle.trust();
            assert!(
                trust
                    .for_peer(identity.spiffe_id())
                    .unwrap()
                    .contains(&root)
            );
            replaced |= root == *new_root.der();
        }
        assert!(replaced, "restarts: {restarts}, told: {told}");
    }
}
