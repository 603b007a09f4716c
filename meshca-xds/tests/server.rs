//! The server with clients that speak its protocol, well and badly.

mod world;

use std::time::Duration;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret;
use meshca_xds::{SdsOptions, names};

use crate::world::{KRI, MODERN, World, secrets};

#[tokio::test]
async fn a_proxy_gets_its_identity_and_the_trust_of_its_mesh() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.sotw("web").await;
    let wanted = [KRI, names::SYSTEM_TRUST_BUNDLE];
    web.ask(&wanted);
    // The trust is there at once or soon, the identity when it is issued.
    let mut got = std::collections::BTreeMap::new();
    while got.len() < 2 {
        let response = web.next().await;
        got.extend(secrets(&response.resources));
        web.ack(&response, &wanted);
    }
    assert!(matches!(got[KRI], secret::Type::TlsCertificate(_)));
    let trust = &got[names::SYSTEM_TRUST_BUNDLE];
    assert!(matches!(trust, secret::Type::ValidationContext(_)));
    web.quiet(Duration::from_millis(200)).await;
    world.events.until("has taken into use").await;
    let gate = world.manager.gate("default").await.unwrap();
    assert!(gate.is_open(), "{gate:?}");
    let observed = world.server.observe("default").await.unwrap();
    assert_eq!(observed.proxies.len(), 1);
    assert!(observed.proxies[0].holds.is_some());
    drop(web);
    world.events.until("has ended").await;
    assert_eq!(world.server.connected(), 0);
    world.stop().await;
}

#[tokio::test]
async fn delta_tells_what_is_there_and_what_is_not() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let mut web = world.delta("web").await;
    let other = "kri_mid_default_east__admins_";
    web.subscribe(&["default", "ALL", other]);
    let mut got = std::collections::BTreeMap::new();
    let mut removed = Vec::new();
    while got.len() < 2 || removed.is_empty() {
        let response = web.next().await;
        for resource in &response.resources {
            got.insert(resource.name.clone(), resource.version.clone());
        }
        removed.extend(response.removed_resources.iter().cloned());
        web.ack(&response);
    }
    assert_eq!(removed, [other]);
    world
        .events
        .until("asks for `kri_mid_default_east__admins_`, which is not its own")
        .await;
    world.stop().await;
}
