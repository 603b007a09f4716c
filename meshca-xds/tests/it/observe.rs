//! What a plan for moving a mesh is told of proxies: what they have acknowledged.

use std::time::Duration;

use crate::world::{MODERN, SOON, World};
use meshca_identity::BackendKey;
use meshca_xds::SdsOptions;

/// The same with another MeshIdentity, which wins over `everyone`, and this selector for that one.
fn with_another(selector: &str) -> String {
    let everyone = MODERN.replace("matchLabels: {}", selector);
    let another = MODERN
        .replace("{type: Mesh, name: default}\n---\n", "")
        .replace("everyone", "another");
    format!("{everyone}\n---\n{another}")
}

/// Waits until this is what `web` holds.
async fn until_holds(world: &World, wanted: Option<&str>) {
    let wanted = wanted.map(|name| BackendKey::Modern(name.to_owned()));
    let mut held = None;
    let waiting = async {
        loop {
            let observed = world.server.observe("default").await.unwrap();
            let web = observed.proxies.iter().find(|it| it.name() == "web");
            held = Some(web.and_then(|it| it.holds.clone()));
            if held.as_ref() == Some(&wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "it holds {held:?} and not {wanted:?}");
}

#[tokio::test]
async fn nobody_knows_what_a_proxy_holds_that_is_away() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    web.ask(&["default"]);
    let response = web.next().await;
    web.ack(&response, &["default"]);
    until_holds(&world, Some("everyone")).await;

    // It is given another certificate while it is away, and has the one that it had.
    drop(web);
    world.apply(&with_another("matchLabels: {}")).await;
    until_holds(&world, None).await;
    let ticket = world
        .manager
        .connect("default", "web", crate::world::workload("web"));
    let handle = ticket.await.unwrap();
    let issued = async {
        while handle
            .issued()
            .is_none_or(|(_, by)| *by != BackendKey::Modern("another".to_owned()))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, issued).await.unwrap();
    until_holds(&world, None).await;

    let mut web = world.sotw("web").await;
    web.ask(&["default"]);
    let response = web.next().await;
    until_holds(&world, None).await;
    web.ack(&response, &["default"]);
    until_holds(&world, Some("another")).await;
    world.stop().await;
}

#[tokio::test]
async fn a_name_that_is_not_its_own_any_more_does_not_count() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut old = world.sotw("web").await;
    old.ask(&[crate::world::KRI]);
    let response = old.next().await;
    old.ack(&response, &[crate::world::KRI]);
    until_holds(&world, Some("everyone")).await;

    world
        .apply(&with_another("matchLabels: {app: nobody}"))
        .await;
    until_holds(&world, None).await;
    let name = "kri_mid_default_east__another_";
    let mut new = world.delta("web").await;
    new.subscribe(&[name]);
    let response = new.next().await;
    new.ack(&response);
    // Listeners that drain still ask for the old one.
    until_holds(&world, Some("another")).await;
    old.quiet(Duration::from_millis(50)).await;
    world.stop().await;
}
