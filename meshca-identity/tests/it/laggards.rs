//! Proxies that do not acknowledge: who is named, who is left behind, and when nobody is.

use std::sync::Arc;
use std::time::Duration;

use crate::world::*;
use meshca_identity::Handle;
use meshca_identity::manager::Health;
use meshca_testkit::FaultyIssuer;

const S: Duration = Duration::from_secs(1);

/// What is the case beside one proxy that stops to acknowledge.
#[derive(Clone, Copy, Debug, Default)]
struct Case {
    proxies: usize,
    laggards: usize,
    /// The control plane does not tell what it sends.
    untold: bool,
    /// So many proxies have refused the new trust, those who lag first.
    refused: usize,
    /// The laggards have lost their connections.
    disconnected: bool,
    never: bool,
    /// The CA signs under the old root, and names the new one.
    announced: bool,
}

struct Outcome {
    named: usize,
    released: usize,
    expired: usize,
}

async fn run(case: Case) -> Outcome {
    let world = World::with_ca(|o| {
        o.acknowledgements = true;
        o.linger = 3 * DAY;
        if case.never {
            o.release_laggards_at = None;
        }
    })
    .await;
    let mut proxies = Vec::new();
    for n in 0..case.proxies {
        let mut proxy = world.connect(&format!("w-{n}")).await;
        proxy.ready().await.unwrap();
        proxy.sent(proxy.trust_version());
        proxy.acknowledge(proxy.trust_version());
        proxies.push(proxy);
    }
    pass(2 * HOUR).await;
    let before = proxies[0].trust_version();
    let ca = world.cas.get("ca-a");
    let domain = meshca_core::TrustDomain::new("example.org").unwrap();
    let new = FaultyIssuer::new(domain, Arc::new(world.clock.clone())).unwrap();
    let new = Arc::new(new);
    match case.announced {
        true => ca.exchange(ca.issuer(), vec![new]),
        false => ca.exchange(new, Vec::new()),
    }
    pass(31 * S).await;
    assert!(proxies[0].trust_version() > before);
    let mut disconnected = Vec::new();
    if case.disconnected {
        disconnected = proxies.drain(..case.laggards).collect();
    }
    drop(disconnected);
    let laggards = match case.disconnected {
        true => 0,
        false => case.laggards,
    };
    let tell = |proxy: &Handle, acknowledges: bool| {
        let version = proxy.trust_version();
        if !case.untold {
            proxy.sent(version);
        }
        if acknowledges {
            proxy.acknowledge(version);
        }
    };
    for (n, proxy) in proxies.iter().enumerate() {
        tell(proxy, n >= laggards);
    }
    for proxy in proxies.iter().take(case.refused) {
        for _ in 0..2 {
            proxy.rejected(proxy.trust_version());
        }
    }
    pass(90 * S).await;
    let named = world.log.count("of the trust, and not");
    let mut expired = 0;
    for _ in 0..30 {
        pass(HOUR).await;
        expired = expired.max(
            { proxies.iter() }
                .filter(|it| it.health() == Health::Expired)
                .count(),
        );
        for (n, proxy) in proxies.iter().enumerate() {
            tell(proxy, n >= laggards);
        }
    }
    assert_eq!(world.log.count("of the trust, and not"), named, "said once");
    assert_eq!(world.log.count("refuses version"), case.refused);
    let suspected = world.log.count("proxies of several owners refuse");
    assert_eq!(suspected, usize::from(case.refused > 1));
    Outcome {
        named,
        released: world.log.count("is left behind"),
        expired,
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_stops_to_acknowledge_is_named_and_costs_nobody_else() {
    let case = Case {
        proxies: 20,
        laggards: 1,
        ..Case::default()
    };
    for (case, released) in [
        (case, 1),
        (Case { proxies: 2, ..case }, 1),
        // What one proxy refuses is its own affair.
        (Case { refused: 1, ..case }, 1),
        (
            Case {
                proxies: 40,
                laggards: 2,
                ..case
            },
            2,
        ),
    ] {
        let outcome = run(case).await;
        assert_eq!(outcome.named, case.laggards, "{case:?}");
        assert_eq!(outcome.released, released, "{case:?}");
        assert_eq!(outcome.expired, 0, "{case:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_left_behind_without_need_or_knowledge() {
    let case = Case {
        proxies: 20,
        laggards: 1,
        ..Case::default()
    };
    for case in [
        Case {
            laggards: 2,
            ..case
        },
        Case {
            untold: true,
            ..case
        },
        Case { refused: 2, ..case },
        Case {
            disconnected: true,
            ..case
        },
        Case {
            never: true,
            ..case
        },
    ] {
        let outcome = run(case).await;
        assert_eq!(outcome.released, 0, "{case:?}");
        let connected = match case.disconnected {
            true => case.proxies - case.laggards,
            false => case.proxies,
        };
        assert_eq!(outcome.expired, connected, "{case:?}");
    }
    // The CA works on.
    let outcome = run(Case {
        announced: true,
        ..case
    })
    .await;
    assert_eq!(
        (outcome.named, outcome.released, outcome.expired),
        (1, 0, 0)
    );
}

/// A proxy that was left behind is waited for again once it answers.
#[tokio::test(start_paused = true)]
async fn one_that_was_left_behind_comes_back() {
    let world = World::with_ca(|o| o.acknowledgements = true).await;
    let (mut quick, mut slow) = (world.connect("quick").await, world.connect("slow").await);
    for proxy in [&mut quick, &mut slow] {
        proxy.ready().await.unwrap();
        proxy.acknowledge(proxy.trust_version());
    }
    pass(S).await;
    let domain = meshca_core::TrustDomain::new("example.org").unwrap();
    let ca = world.cas.get("ca-a");
    let new =
        || Arc::new(FaultyIssuer::new(domain.clone(), Arc::new(world.clock.clone())).unwrap());
    for released in [1, 2] {
        ca.exchange(new(), Vec::new());
        pass(31 * S).await;
        slow.sent(slow.trust_version());
        quick.acknowledge(quick.trust_version());
        pass(DAY.mul_f64(0.7)).await;
        assert_eq!(world.log.count("is left behind"), released - 1);
        pass(DAY.mul_f64(0.15)).await;
        assert_eq!(world.log.count("is left behind"), released);
        assert_eq!(quick.health(), Health::Fresh);
        for proxy in [&quick, &slow] {
            proxy.acknowledge(proxy.trust_version());
        }
        pass(S).await;
        let gate = world.manager.gate("default").await.unwrap();
        assert!(gate.is_open(), "{gate:?}");
    }
}

/// The certificates of a CA that is about to end get shorter and shorter: there is no time between late and too late.
#[tokio::test(start_paused = true)]
async fn one_that_stops_to_acknowledge_costs_nobody_else_the_builtin_ca() {
    let world = World::with(|o| {
        o.acknowledgements = true;
        o.trust_refresh = 600 * S;
    });
    let built_in = classic("builtin").replace(
        "type: builtin, conf: {}",
        "type: builtin, dpCert: {rotation: {expiration: 6h}}, conf: {caCert: {expiration: 48h}}",
    );
    world.apply(&built_in).await;
    let (mut quick, mut slow) = (world.connect("quick").await, world.connect("slow").await);
    for proxy in [&mut quick, &mut slow] {
        proxy.ready().await.unwrap();
        proxy.sent(proxy.trust_version());
        proxy.acknowledge(proxy.trust_version());
    }
    for step in 0..(6 * 60) {
        pass(600 * S).await;
        for proxy in [&quick, &slow] {
            proxy.sent(proxy.trust_version());
            assert_eq!(proxy.health(), Health::Fresh, "{step}: {:?}", proxy.error());
        }
        quick.acknowledge(quick.trust_version());
    }
    assert!(world.log.count("is left behind") > 0);
    assert!(world.log.count("signs with its next CA") > 0);
}
