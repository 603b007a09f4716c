//! Many proxies at once: all connect, all hear of what is new, and one that does not read or answer holds up no other.
//!
//! A program of its own: beside other tests it would need more open files than a shell often allows.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

#[path = "it/world/mod.rs"]
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use futures_util::future::join_all;
use meshca_xds::{SdsOptions, names};
use tokio::time::Instant;

use crate::world::{KRI, MODERN, Sotw, World, secrets, with_root};

/// Each has two ends here, and shells often allow 1,024 files.
const PROXIES: usize = 400;
/// Of these so many stop listening.
const SLOW: usize = 50;
const WANTED: [&str; 2] = [KRI, names::SYSTEM_TRUST_BUNDLE];

/// Asks, and acknowledges until identity and trust are there.
async fn connected(world: &World, name: String) -> (Sotw, DiscoveryResponse) {
    let mut proxy = world.sotw(&name).await;
    proxy.ask(&WANTED);
    let response = until(&mut proxy, |response| response.resources.len() == 2).await;
    (proxy, response)
}

async fn until(
    proxy: &mut Sotw,
    mut enough: impl FnMut(&DiscoveryResponse) -> bool,
) -> DiscoveryResponse {
    loop {
        let response = proxy.next().await;
        proxy.ack(&response, &WANTED);
        if enough(&response) {
            return response;
        }
    }
}

fn has(response: &DiscoveryResponse, domain: &str) -> bool {
    let domain = domain.as_bytes();
    let mut resources = response.resources.iter();
    resources.any(|it| it.value.windows(domain.len()).any(|it| it == domain))
}

/// How long it takes until all of these have a domain in their trust.
async fn reach(world: &World, proxies: &mut [Sotw], domain: &str) -> Duration {
    let begun = Instant::now();
    world.apply(&with_root(domain)).await;
    join_all(
        proxies
            .iter_mut()
            .map(|proxy| until(proxy, |it| has(it, domain))),
    )
    .await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proxies_get_what_is_new_past_those_that_do_not_listen() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let all = (0..PROXIES).map(|n| connected(&world, format!("w-{n}")));
    let all = join_all(all).await;
    assert_eq!(world.server.connected(), PROXIES);
    // Each has its own identity.
    let identities: BTreeSet<String> = all
        .iter()
        .map(|(_, response)| format!("{:?}", secrets(&response.resources)))
        .collect();
    assert_eq!(identities.len(), PROXIES);
    assert_eq!(
        world
            .events
            .all()
            .iter()
            .filter(|it| it.contains("refused"))
            .count(),
        0
    );

    let mut proxies: Vec<Sotw> = all.into_iter().map(|(proxy, _)| proxy).collect();
    let before = reach(&world, &mut proxies, "second.example").await;

    // These read nothing any more, and answer nothing.
    let mut slow = proxies.split_off(PROXIES - SLOW);
    for domain in ["third.example", "fourth.example", "last.example"] {
        let with_slow = reach(&world, &mut proxies, domain).await;
        // It does not wait for the slow ones: only what is far from all noise of a machine would say that it does.
        assert!(
            with_slow < 10 * before + Duration::from_secs(2),
            "{with_slow:?}, {before:?}"
        );
    }
    // What was under way to them, and then the newest and nothing in between.
    let caught_up = slow.iter_mut().map(async |proxy| {
        let mut responses = 0;
        until(proxy, |response| {
            responses += 1;
            has(response, "last.example")
        })
        .await;
        responses
    });
    assert!(join_all(caught_up).await.iter().all(|&it| it <= 2));
    world.stop().await;
}

#[tokio::test]
async fn what_is_anothers_is_not_sent_and_is_an_event() {
    let world = World::new(MODERN, SdsOptions::default()).await;
    let (_victim, _) = connected(&world, "victim".to_owned()).await;
    let (mut web, own) = connected(&world, "web".to_owned()).await;
    let others = [
        "spiffe://example.org/workload/victim",
        "kri_mid_default_east__admins_",
        "identity_cert:secret:other",
        "mesh_ca:secret:other",
    ];
    let asked = [&WANTED[..], &others].concat();
    web.ack(&own, &asked);
    for name in others {
        let words = format!(
            "the proxy `web` of the mesh `default` asks for `{name}`, which is not its own"
        );
        world.events.until(&words).await;
    }
    web.quiet(Duration::from_millis(200)).await;
    world.stop().await;
}
