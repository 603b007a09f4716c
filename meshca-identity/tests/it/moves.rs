//! A plan that is carried out by the manager: what it sees opens the gates.

use std::time::Duration;

use crate::world::{World, classic, identity, pass, resources};
use meshca_identity::Handle;
use meshca_identity::migration::{Next, PlanOptions, plan};

const STRICT: &str = "---\n{type: MeshTLS, name: all, mesh: default, spec: {targetRef: {kind: Mesh}, rules: [{default: {mode: Strict}}]}}\n";
const EXCLUSIVE: &str = "{type: Mesh, name: default, meshServices: {mode: Exclusive}}\n";

fn all_trust_each_other(handles: &[Handle]) {
    for from in handles {
        let Some(identity) = from.identity() else {
            continue;
        };
        let root = identity.certificate().root().der();
        for to in handles {
            let trust = to.trust();
            let bundle = trust.for_peer(identity.spiffe_id()).unwrap();
            assert!(bundle.contains(root));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn from_the_classic_ca_to_another_and_back_by_the_gates_that_the_manager_sees() {
    let world = World::with(|options| options.acknowledgements = true);
    let from = classic("ca-a").replace(
        "name: default, mtls",
        "name: default, meshServices: {mode: Exclusive}, mtls",
    );
    let to = EXCLUSIVE.to_owned() + &identity("id", "ca-b") + STRICT;
    let (from, to) = (resources(&from), resources(&to));
    let there = plan(&from, &to, &PlanOptions::new("east")).unwrap();
    world.manager.apply(from.clone()).await.unwrap();
    let mut handles = Vec::new();
    for n in 0..5 {
        handles.push(world.connect(&format!("w-{n}")).await);
    }
    for handle in &mut handles {
        handle.ready().await.unwrap();
    }

    let mut waited_for_slow = false;
    let mut plans = vec![there];
    let mut arrived = Vec::new();
    while let Some(plan) = plans.pop() {
        for round in 0.. {
            assert!(round < 400, "it does not arrive");
            let mut observed = world.manager.observe("default").await.unwrap();
            for proxy in &mut observed.proxies {
                // In this world every peer is accepted whose root is trusted.
                proxy.accepts = plan_names(&observed.resources);
            }
            match plan.next(&observed) {
                Next::Apply { changes, .. } => {
                    for change in &changes {
                        change.apply_to(&mut observed.resources);
                    }
                    world.manager.apply(observed.resources).await.unwrap();
                }
                Next::Wait { waiting, .. } => {
                    waited_for_slow |= waiting.iter().any(|it| it.proxy.as_deref() == Some("w-4"));
                    // One of them takes its time.
                    let prompt = if round % 10 == 9 { 5 } else { 4 };
                    for handle in &handles[..prompt] {
                        handle.acknowledge(handle.trust_version());
                    }
                }
                Next::Done => break,
                Next::Diverged { resources } => panic!("{resources:?}"),
                _ => unreachable!(),
            }
            for _ in 0..10 {
                pass(Duration::from_secs(60)).await;
                all_trust_each_other(&handles);
            }
            // What was retired is gone from proxies too.
            if round > 150 {
                pass(crate::world::DAY).await;
            }
        }
        let id = handles[0].identity().unwrap().spiffe_id().to_string();
        arrived.push(id);
        if arrived.len() == 1 {
            let now = world.manager.observe("default").await.unwrap().resources;
            plans.push(
                meshca_identity::migration::plan(&now, &from, &PlanOptions::new("east")).unwrap(),
            );
        }
    }
    assert_eq!(
        arrived,
        ["spiffe://example.org/workload/w-0", "spiffe://default/w-0"]
    );
    assert!(waited_for_slow);
}

/// All CAs that the resources name.
fn plan_names(
    resources: &meshca_identity::MeshResources,
) -> std::collections::BTreeSet<meshca_identity::BackendKey> {
    use meshca_identity::BackendKey;
    let classic = resources.mesh.mtls.iter().flat_map(|mtls| &mtls.backends);
    let modern = resources.identities.iter();
    let classic = classic.map(|it| BackendKey::Classic(it.name.clone()));
    classic
        .chain(modern.map(|it| BackendKey::Modern(it.metadata.name.clone())))
        .collect()
}
