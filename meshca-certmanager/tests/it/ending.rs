//! An issuer whose CA is near its end, and which signs past it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use meshca_certmanager::CertManagerIssuer;
use meshca_core::resource::{CertManagerConf, DataSource};
use meshca_core::{
    CertificateRequest, CertificateSpec, Clock, Csr, ErrorKind, Identity, IssuingCa,
    LifetimePolicy, Observation,
};
use meshca_testkit::TokioClock;
use meshca_testkit::pki::{TestCa, to_pem};
use meshca_testkit::samples::*;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::api::server::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA issuer of cert-manager: it signs for as long as it is asked to, whenever its CA ends, and
/// for 90 days if it is not told.
#[derive(Clone)]
pub(crate) struct CaIssuer {
    pub(crate) clock: TokioClock,
    /// The CA by which it signs, and the certificate that it says is its own.
    ca: Arc<Mutex<(TestCa, TestCa)>>,
    /// Whether it gives more than it is asked for.
    stubborn: bool,
    /// Whether it names its CA.
    silent: bool,
}

impl CaIssuer {
    pub(crate) fn new(clock: &TokioClock, lives: Duration) -> Self {
        let signs = TestCa::root("Example root", clock.now()).unwrap();
        let ends = ending(&signs, clock, lives);
        Self {
            clock: clock.clone(),
            ca: Arc::new(Mutex::new((signs, ends))),
            stubborn: false,
            silent: false,
        }
    }

    /// One that names this CA in `status.ca`.
    pub(crate) fn of(clock: &TokioClock, ca: TestCa) -> Self {
        let new = Self::new(clock, DAY);
        *new.ca.lock().unwrap() = (ca.clone(), ca);
        new
    }

    /// Another CA, with a key of its own.
    pub(crate) fn replace(&self, lives: Duration) {
        let signs = TestCa::root("Example root", self.clock.now()).unwrap();
        let ends = ending(&signs, &self.clock, lives);
        *self.ca.lock().unwrap() = (signs, ends);
    }

    /// The same key, certified until later.
    pub(crate) fn renew(&self, lives: Duration) {
        let mut ca = self.ca.lock().unwrap();
        ca.1 = ending(&ca.0, &self.clock, lives);
    }

    pub(crate) fn certificate_pem(&self) -> String {
        self.ca.lock().unwrap().1.pem()
    }

    pub(crate) fn status(&self, object: &Value) -> Value {
        use base64::Engine as _;
        let csr = object["spec"]["request"].as_str().unwrap();
        let csr = base64::engine::general_purpose::STANDARD
            .decode(csr)
            .unwrap();
        let csr = Csr::from_pem(std::str::from_utf8(&csr).unwrap()).unwrap();
        let asked = object["spec"]["duration"].as_str();
        let asked = asked.map(|it| it.strip_suffix('s').unwrap().parse().unwrap());
        let lifetime = match asked {
            Some(seconds) if !self.stubborn => Duration::from_secs(seconds),
            _ => 90 * DAY,
        };
        let now = self.clock.now();
        let spec = CertificateSpec::workload(id()).with_lifetime(lifetime);
        let request = CertificateRequest::for_csr(spec, csr, now).unwrap();
        let ca = self.ca.lock().unwrap();
        let mut status = ready(&to_pem(&ca.0.sign(&request, now).unwrap()));
        if !self.silent {
            status["ca"] = json!(k8s_openapi::ByteString(ca.1.pem().into_bytes()));
        }
        status
    }
}

fn ending(ca: &TestCa, clock: &TokioClock, lives: Duration) -> TestCa {
    ca.renewed(clock.now() - DAY, clock.now() + lives).unwrap()
}

struct World {
    server: Arc<Server>,
    clock: TokioClock,
    issuer: IssuingCa<CertManagerIssuer>,
}

impl World {
    fn new(ca: &CaIssuer, conf: CertManagerConf) -> Self {
        let server = Server::new();
        let signing = ca.clone();
        server.decide_by(move |object| signing.status(object));
        let clock = ca.clock.clone();
        let settings = settings_for(conf, "replica-1", MINUTE);
        let issuer = server.issuer_at(settings, Arc::new(clock.clone()));
        Self {
            server,
            clock,
            issuer,
        }
    }

    async fn issue(&self, spec: &CertificateSpec) -> Identity {
        self.issuer.issue(spec, &self.clock).await.unwrap()
    }

    fn left(&self, identity: &Identity) -> Duration {
        let validity = identity.certificate().validity();
        validity.remaining(self.clock.now())
    }
}

fn warned(identity: &Identity) -> bool {
    let seen = identity.certificate().observations();
    let note = |it: &Observation| matches!(it, Observation::IssuerNote(note) if note.contains("renew the CA"));
    seen.iter().any(note)
}

/// `status.ca` is the highest intermediate where the secret of a CA issuer lacks the root.
#[tokio::test(start_paused = true)]
async fn an_issuer_that_names_an_intermediate_serves_peers_with_its_root() {
    let clock = TokioClock::new();
    let root = TestCa::root("Example root", clock.now()).unwrap();
    let ca = root.intermediate("Example issuing").unwrap();
    let world = World::new(&CaIssuer::of(&clock, ca.clone()), conf("mesh-ca"));
    let spec = spec().with_lifetime(HOUR);
    let named = world.issuer.trust(&clock).await.unwrap();
    assert!(named.contains(ca.certificate()));
    assert_eq!(named.ends().count(), 0);
    let error = world.issuer.issue(&spec, &clock).await.unwrap_err();
    assert!(error.to_string().contains("is an intermediate"), "{error}");
    let peers = root.bundle(domain()).unwrap();
    let for_peers = world.issuer.for_peers_with(peers);
    let identity = for_peers.issue(&spec, &clock).await.unwrap();
    let held = identity.certificate().root();
    assert_eq!(held.der(), root.certificate());
    // The peers' root is not the issuer's word: it does not stay when they give it up.
    assert_eq!(world.issuer.refresh().await.unwrap(), named);
}

/// Two days of a CA whose renewal is broken: a workload has a certificate until the CA ends, and a
/// new one gets one at any time. Only one of all that was signed is thrown away.
#[tokio::test(start_paused = true)]
async fn until_the_ca_ends_there_is_a_certificate() {
    let clock = TokioClock::new();
    let world = World::new(&CaIssuer::new(&clock, 48 * HOUR), conf("mesh-ca"));
    let end = clock.now() + 48 * HOUR;
    let spec = spec().with_lifetime(DAY);
    let first = world.issue(&spec).await;
    assert!(!warned(&first));
    // The throwaway certificate that shows the root, and the first one.
    assert_eq!(world.server.created(), 2);
    let (mut held, mut renewed) = (first, 0);
    while end.duration_since(clock.now()).unwrap() > Duration::from_secs(150) {
        let left = world.left(&held);
        assert!(
            !left.is_zero(),
            "it has none {:?} before the end",
            end.duration_since(clock.now())
        );
        sleep(left / 2).await;
        held = world.issue(&spec).await;
        renewed += 1;
        let not_after = held.certificate().validity().not_after();
        assert!(not_after <= end);
        assert!(
            not_after + 2 * MINUTE >= end.min(clock.now() + DAY),
            "{renewed}"
        );
        assert_eq!(warned(&held), clock.now() + DAY > end, "{renewed}");
    }
    // It is known when the CA ends, so no answer is thrown away.
    assert_eq!(world.server.created(), 2 + renewed);
    assert!(renewed < 20, "{renewed}");
    assert_eq!(world.server.names(), [] as [String; 0]);
}

/// At first nothing is known of a CA that `caCert` alone names. The end of one that names itself is
/// known from the throwaway certificate.
#[tokio::test(start_paused = true)]
async fn what_outlives_the_ca_is_requested_again_for_what_is_left() {
    for (silent, policy, thrown_away) in [
        (true, LifetimePolicy::AtMostRequested, 1),
        (true, LifetimePolicy::LeftToIssuer, 1),
        (true, LifetimePolicy::AcceptIssuer, 1),
        (false, LifetimePolicy::AtMostRequested, 0),
        (false, LifetimePolicy::LeftToIssuer, 1),
    ] {
        let clock = TokioClock::new();
        let mut ca = CaIssuer::new(&clock, 6 * HOUR);
        ca.silent = silent;
        let mut conf = conf("mesh-ca");
        if silent {
            conf.ca_cert = Some(DataSource::InlineString(
                ca.certificate_pem().as_str().into(),
            ));
        }
        let world = World::new(&ca, conf);
        let spec = spec().with_lifetime(DAY).with_lifetime_policy(policy);
        let before = usize::from(!silent);
        for certificates in 1..=3 {
            let identity = world.issue(&spec).await;
            let left = world.left(&identity);
            assert!(left > 5 * HOUR && left < 6 * HOUR, "{policy:?}: {left:?}");
            assert!(warned(&identity), "{policy:?}");
            assert_eq!(
                world.server.created(),
                before + thrown_away + certificates,
                "{policy:?}"
            );
        }
        // The first certificate after a renewal shows it, and the next ones live as they should.
        if !silent {
            ca.renew(3650 * DAY);
            let _ = world.issue(&spec).await;
            let identity = world.issue(&spec).await;
            let expected = match policy {
                LifetimePolicy::LeftToIssuer => 90 * DAY,
                _ => DAY,
            };
            let left = world.left(&identity);
            assert!(left > expected - HOUR, "{policy:?}: {left:?}");
            assert!(!warned(&identity), "{policy:?}");
        }
    }
}

/// An issuer that does what it likes is not asked twice for each certificate.
#[tokio::test(start_paused = true)]
async fn an_issuer_that_gives_more_than_is_left_is_not_asked_on_and_on() {
    let clock = TokioClock::new();
    let mut ca = CaIssuer::new(&clock, 6 * HOUR);
    ca.stubborn = true;
    let world = World::new(&ca, conf("mesh-ca"));
    let spec = spec().with_lifetime_policy(LifetimePolicy::AcceptIssuer);
    for certificates in 1..=5 {
        let error = world.issuer.issue(&spec, &clock).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
        assert!(error.to_string().contains("outlives its issuer"), "{error}");
        assert_eq!(world.server.created(), 1 + certificates);
    }
}

/// A CA that ends, and is renewed while no certificate is requested.
#[tokio::test(start_paused = true)]
async fn a_ca_that_has_ended_is_asked_whether_it_was_renewed() {
    let clock = TokioClock::new();
    let ca = CaIssuer::new(&clock, 6 * HOUR);
    let world = World::new(&ca, conf("mesh-ca"));
    let spec = spec().with_lifetime(DAY);
    let _ = world.issue(&spec).await;
    sleep(7 * HOUR).await;
    world.issuer.issue(&spec, &clock).await.unwrap_err();
    ca.renew(30 * DAY);
    let short = world.issue(&spec).await;
    assert!(world.left(&short) <= MINUTE);
    let identity = world.issue(&spec).await;
    assert!(world.left(&identity) > DAY - MINUTE);
    let _: SystemTime = identity.certificate().issued_at();
}

mod certmanager {
    mod kube {
        use std::time::Duration;

        use meshca_core::{Clock, Issuer};
        use meshca_testenv::servers::{CertManager, Kube};
        use meshca_testkit::pki::{TestCa, TestCaOptions};

        use super::super::{HOUR, warned};
        use crate::common::*;
        use crate::needs;

        /// The CA issuer of cert-manager itself signs past the end of its CA, and has no shortest
        /// lifetime.
        #[tokio::test(flavor = "multi_thread")]
        async fn what_is_left_of_the_ca() {
            needs!();
            let kube = Kube::start().await.unwrap();
            let cert_manager = CertManager::start(&kube).await.unwrap();
            set_up(&kube).await;
            let ca = |lives: Duration| {
                let now = clock().now();
                let options = TestCaOptions::new("Example root", now);
                TestCa::root_with(options.with_validity(now - HOUR, now + lives)).unwrap()
            };
            replace_ca_secret(&kube, NAMESPACE, &ca(6 * HOUR)).await;
            issuer_object(&kube, "Issuer").await;
            let client = client(&kube).await;
            let spec = spec().with_lifetime(24 * HOUR);
            for lives in [6 * HOUR, Duration::from_secs(100)] {
                let ca = ca(lives);
                replace_ca_secret(&kube, NAMESPACE, &ca).await;
                let mut conf = conf("Issuer");
                conf.ca_cert = Some(meshca_core::resource::DataSource::InlineString(
                    ca.pem().as_str().into(),
                ));
                let issuer = issuer(settings(conf), client.clone());
                // cert-manager takes a moment to see another secret.
                let issued = async {
                    loop {
                        match issuer.issue(&spec, &*clock()).await {
                            Ok(identity) => return identity,
                            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                        }
                    }
                };
                let identity = tokio::time::timeout(Duration::from_secs(20), issued);
                let identity = identity.await.unwrap();
                let left = identity.certificate().validity().remaining(clock().now());
                assert!(left <= lives && left >= lives / 2, "{lives:?}: {left:?}");
                assert!(warned(&identity));
                let warnings = issuer.check().await.unwrap().warnings;
                assert!(
                    warnings.iter().any(|it| it.contains("renew it")),
                    "{warnings:?}"
                );
            }
            drop(cert_manager);
        }
    }
}
