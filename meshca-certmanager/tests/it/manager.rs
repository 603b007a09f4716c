//! The trust of a mesh whose CA is an issuer of cert-manager, under the manager.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::BackendRegistry;
use meshca_core::resource::Resource;
use meshca_core::spiffe::{Environment, Workload};
use meshca_core::{Clock, MemorySecretStore, TrustRoot};
use meshca_identity::manager::{DriverTask, Health};
use meshca_identity::select::SelectOptions;
use meshca_identity::{Handle, Manager, ManagerOptions, MeshResources};
use meshca_testkit::TokioClock;
use tokio::time::sleep;

use crate::api::server::*;
use crate::ending::CaIssuer;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

const RESOURCES: &str = "
{type: Mesh, name: default}
---
type: MeshIdentity
name: identity
mesh: default
spec:
  selector: {dataplane: {matchLabels: {}}}
  spiffeID: {trustDomain: example.org, path: /ns/shop/sa/cart}
  provider: {type: Extension, extension: {name: certmanager, config: {issuerRef: {name: mesh-ca}}}}
";

struct World {
    server: Arc<Server>,
    clock: TokioClock,
    manager: Manager,
    _driver: DriverTask,
    handles: Vec<Handle>,
}

impl World {
    async fn new(ca: &CaIssuer) -> Self {
        let server = Server::new();
        let signing = ca.clone();
        server.decide_by(move |object| signing.status(object));
        let clock = ca.clock.clone();
        let factory = meshca_certmanager::factory(server.client(), "mesh-system", "replica-1");
        let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        options.seed = Some(1);
        let (manager, driver) = Manager::new(
            BackendRegistry::new().with(factory),
            Arc::new(MemorySecretStore::new()),
            Arc::new(clock.clone()),
            options,
        );
        let driver = driver.spawn();
        let resources = Resource::parse(RESOURCES).unwrap();
        let resources = MeshResources::from_resources(resources).unwrap();
        manager.apply(resources).await.unwrap();
        let mut handles = Vec::new();
        for name in ["a", "b", "c"] {
            let workload = Workload::new().with_label("app", name);
            let mut handle = manager.connect("default", name, workload).await.unwrap();
            handle.ready().await.unwrap();
            handles.push(handle);
        }
        Self {
            server,
            clock,
            manager,
            _driver: driver,
            handles,
        }
    }

    fn trusted(&self) -> Vec<TrustRoot> {
        let bundles = self.manager.mesh("default").trust();
        bundles.iter().flat_map(|it| it.roots().to_vec()).collect()
    }

    fn fingerprints(&self) -> BTreeSet<String> {
        let trusted = self.trusted().into_iter();
        trusted.map(|root| root.fingerprint().to_owned()).collect()
    }

    /// Lets time pass. All the while every identity is valid, and its root trusted.
    async fn pass(&self, time: Duration) {
        let end = self.clock.now() + time;
        while self.clock.now() < end {
            sleep(Duration::from_secs(600)).await;
            let trusted = self.fingerprints();
            for handle in &self.handles {
                let identity = handle.identity().unwrap();
                let certificate = identity.certificate();
                assert!(certificate.validity().contains(self.clock.now()));
                assert!(trusted.contains(certificate.root().fingerprint()));
            }
        }
    }
}

/// Its root goes when the last certificate under it has ended, and not when the process does.
#[tokio::test(start_paused = true)]
async fn the_root_of_a_replaced_ca_goes_with_its_last_certificate() {
    let ca = CaIssuer::new(&TokioClock::new(), 3650 * DAY);
    let world = World::new(&ca).await;
    let old = world.fingerprints();
    assert_eq!(old.len(), 1);
    world.pass(30 * HOUR).await;
    assert_eq!(world.fingerprints(), old);
    ca.replace(3650 * DAY);
    // A renewal each half day, say, shows the new root; the last certificate ends a day later.
    world.pass(16 * HOUR).await;
    let both = world.fingerprints();
    assert!(both.len() == 2 && both.is_superset(&old), "{both:?}");
    world.pass(24 * HOUR).await;
    let new = world.fingerprints();
    assert!(new.len() == 1 && new.is_disjoint(&old), "{new:?}");
    world.pass(DAY).await;
    assert_eq!(world.fingerprints(), new);
}

/// A CA that is renewed under its key before it ends, again and again.
#[tokio::test(start_paused = true)]
async fn roots_that_have_expired_go() {
    let ca = CaIssuer::new(&TokioClock::new(), 30 * HOUR);
    let world = World::new(&ca).await;
    for _ in 0..4 {
        world.pass(12 * HOUR).await;
        ca.renew(30 * HOUR);
    }
    world.pass(5 * HOUR).await;
    let now = world.clock.now();
    let trusted = world.trusted();
    assert!((1..=3).contains(&trusted.len()), "{trusted:?}");
    assert!(
        trusted.iter().all(|root| root.validity().not_after() > now),
        "{trusted:?}"
    );
}

/// Until the CA ends every proxy has a certificate, which is renewed as often as it must.
#[tokio::test(start_paused = true)]
async fn a_ca_that_is_not_renewed_serves_until_its_end() {
    let ca = CaIssuer::new(&TokioClock::new(), 48 * HOUR);
    let world = World::new(&ca).await;
    world.pass(47 * HOUR + Duration::from_secs(40 * 60)).await;
    for handle in &world.handles {
        assert_eq!(handle.health(), Health::Fresh);
    }
    // Three workloads, each with a dozen of renewals.
    assert!(world.server.created() < 60, "{}", world.server.created());
    assert_eq!(world.server.names(), [] as [String; 0]);
}
