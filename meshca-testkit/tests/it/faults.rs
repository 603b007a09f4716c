//! Every fault is refused or repaired by core, and noticed by the kit on its own.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meshca_core::{
    CertificateRequest, CertificateSpec, Clock, ErrorKind, IssuedCertificate, Issuer, IssuingCa,
    KeyType, Observation, PrivateKey, Retry, SpiffeId, TrustDomain,
};
use meshca_testkit::conformance::{self, Subject};
use meshca_testkit::{FakeClock, Fault, FaultyIssuer};

const HOUR: Duration = Duration::from_secs(3600);

fn id() -> SpiffeId {
    SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").unwrap()
}

fn faulty(clock: &FakeClock) -> IssuingCa<FaultyIssuer> {
    let domain = TrustDomain::new("example.org").unwrap();
    IssuingCa::new(FaultyIssuer::new(domain, Arc::new(clock.clone())).unwrap())
}

fn request() -> CertificateRequest {
    let key = PrivateKey::generate(KeyType::P256).unwrap();
    let spec = CertificateSpec::workload(id()).with_lifetime(HOUR);
    CertificateRequest::for_key(spec, &key, FakeClock::start()).unwrap()
}

/// What core does about a fault.
enum Core {
    /// Refuses it, saying this.
    Refuses(&'static str),
    /// Hands it out as if nothing had happened.
    Accepts,
    /// Hands it out and reports what it repaired.
    Rebuilds,
    /// Hands it out, to be held until it begins.
    Holds(Duration),
    /// Passes an error on as it is.
    PassesOn(ErrorKind),
}

/// What core does about each fault, and what the kit says of it.
fn expected(fault: &Fault) -> (Core, &'static str) {
    use Core::{Accepts, Holds, PassesOn, Rebuilds, Refuses};
    match fault {
        Fault::WrongKey => (
            Refuses("none of the 2 certificates that the CA returned is for the key"),
            "for the key of the request (wrong key)",
        ),
        Fault::SecondSpiffeId => (
            Refuses("the URI `spiffe://example.org/ns/admin/sa/root` that was not requested"),
            "the certificate has 2 SPIFFE IDs where an SVID has exactly one",
        ),
        Fault::ExtraUri => (
            Refuses("the URI `urn:example:not-requested` that was not requested"),
            "the URI `urn:example:not-requested` that was not requested",
        ),
        Fault::ExtraDnsName => (
            Refuses("the DNS name `not-requested.example.org` that was not requested"),
            "the DNS name `not-requested.example.org` that was not requested",
        ),
        Fault::MissingSan => (
            Refuses("lacks the requested URI `spiffe://example.org/ns/shop/sa/cart`"),
            "lacks the requested URI `spiffe://example.org/ns/shop/sa/cart`",
        ),
        Fault::CaCertificate => (
            Refuses("is a CA's, which no workload may hold"),
            "is a CA's, which no workload may hold",
        ),
        Fault::KeyCertSign => (
            Refuses("may sign certificates or CRLs"),
            "the key usage `keyCertSign` or `cRLSign`, which no workload may",
        ),
        Fault::MissingKeyUsage => (
            Refuses("has no key usages (X.509-SVID §4.3), so Envoy refuses it"),
            "lacks the key usage `digitalSignature`",
        ),
        Fault::MissingClientEku => (
            Refuses("lacks the extended key usage `clientAuth`"),
            "lacks the extended key usage `clientAuth`",
        ),
        Fault::ExpiredLeaf => (
            Refuses("had ended when it arrived"),
            "had ended 60s before it arrived",
        ),
        Fault::OverlongLeaf => (
            Refuses("where at most 3600s were requested"),
            "where 3600s were requested, though the issuer declares that it honours lifetimes",
        ),
        Fault::NotBeforeAhead(by) if *by < Duration::from_secs(60) => {
            (Holds(*by), "begins 30s ahead of now")
        }
        Fault::NotBeforeAhead(_) => (
            Refuses("more than 60s ahead of now"),
            "begins 7200s ahead of now",
        ),
        Fault::OutlivesIssuer => (
            Refuses("outlives its issuer `CN=issuing CA near its end`"),
            "outlives its issuer `CN=issuing CA near its end` by 1800s",
        ),
        Fault::ReorderedChain => (Rebuilds, "the chain is out of order"),
        Fault::DuplicatedCertificates => (Rebuilds, "the chain repeats certificates"),
        Fault::IncompleteChain => (
            Refuses("root unknown: the certificate was signed by `CN=faulty issuing CA`"),
            "the certificate without a subject was signed by `CN=faulty issuing CA`, which is neither in the answer nor",
        ),
        Fault::ForeignChain => (
            Refuses("root unknown: `CN=foreign issuing CA` was signed by `CN=foreign root`"),
            "does not verify to the bundle (which holds `CN=faulty root`): `CN=foreign issuing CA` was signed by `CN=foreign root`",
        ),
        Fault::Garbage => (
            Refuses("certificate 1 of the 2 that the CA returned: not an X.509 certificate"),
            "what came as certificate 1 of 2 is none",
        ),
        Fault::EmptyAnswer => (
            Refuses("the CA returned no certificate"),
            "the answer holds no certificate at all",
        ),
        Fault::Slow(_) => (Accepts, "`sign` did not answer within 30s"),
        Fault::Error(kind) => (
            PassesOn(*kind),
            "`sign` failed: the faulty issuer was told to fail",
        ),
        other => panic!("a new fault, {other:?}: say what is expected of it"),
    }
}

#[tokio::test(start_paused = true)]
async fn core_refuses_or_repairs_every_fault() {
    let clock = FakeClock::new();
    let issuer = faulty(&clock);
    for fault in Fault::all() {
        issuer.misbehave_once(fault.clone());
        let request = request();
        let result = issuer.issue_for(&request, &clock).await;
        match (expected(&fault).0, result) {
            (Core::Refuses(message), Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::BadResponse, "{fault:?}: {error}");
                assert_eq!(error.retry(), Retry::Never, "{fault:?}");
                assert!(
                    error.to_string().contains(message),
                    "{fault:?}\nexpected: {message}\nfound:    {error}"
                );
            }
            (Core::PassesOn(kind), Err(error)) => {
                assert_eq!(error.kind(), kind, "{fault:?}: {error}");
                assert!(error.to_string().contains("issuer: faulty issuer of"));
            }
            (Core::Accepts, Ok(certificate)) => {
                assert_eq!(certificate.observations(), [], "{fault:?}");
            }
            (Core::Rebuilds, Ok(certificate)) => {
                assert_eq!(
                    certificate.observations(),
                    [Observation::ChainRebuilt],
                    "{fault:?}"
                );
                assert_in_order(&certificate, &request);
            }
            (Core::Holds(by), Ok(certificate)) => {
                assert_eq!(certificate.usable_from(), clock.now() + by, "{fault:?}");
            }
            (_, result) => panic!("{fault:?}: {result:?}"),
        }
        let healed = issuer.issue_for(&self::request(), &clock).await.unwrap();
        assert_eq!(healed.observations(), [], "after {fault:?}");
    }
}

fn assert_in_order(certificate: &IssuedCertificate, request: &CertificateRequest) {
    assert_eq!(certificate.public_key(), request.public_key());
    assert_eq!(certificate.chain().len(), 2);
    assert_eq!(
        certificate.path(),
        ["(empty)", "CN=faulty issuing CA", "CN=faulty root"]
    );
}

#[tokio::test(start_paused = true)]
async fn what_ended_on_its_way_is_refused() {
    let clock = FakeClock::new();
    let issuer = faulty(&clock);
    issuer.misbehave(Fault::Slow(2 * HOUR));
    let request = request();
    let (result, ()) = tokio::join!(issuer.issue_for(&request, &clock), async {
        clock.advance(2 * HOUR);
    });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert!(
        error.to_string().contains("had ended when it arrived"),
        "{error}"
    );
}

#[tokio::test]
async fn faults_last_as_long_as_they_were_told_to() {
    let clock = FakeClock::new();
    let issuer = faulty(&clock);
    let fails = async || issuer.issue_for(&request(), &clock).await.is_err();
    assert!(!fails().await);
    issuer.misbehave_times(2, Fault::EmptyAnswer);
    assert_eq!(
        issuer.to_string(),
        "faulty issuer of example.org (EmptyAnswer)"
    );
    assert_eq!(
        [fails().await, fails().await, fails().await],
        [true, true, false]
    );
    assert_eq!(issuer.to_string(), "faulty issuer of example.org (sound)");
    issuer.misbehave(Fault::Error(ErrorKind::Denied));
    assert_eq!([fails().await, fails().await], [true, true]);
    issuer.behave();
    assert!(!fails().await);
    assert_eq!(issuer.times_asked(), 7);
}

#[tokio::test(start_paused = true)]
async fn the_kit_notices_every_fault_and_says_what_is_wrong() {
    for fault in Fault::all() {
        let clock = FakeClock::new();
        let issuer = faulty(&clock);
        issuer.misbehave(fault.clone());
        let report = conformance::run_all(&subject(&*issuer, &clock)).await;
        assert!(!report.passed(), "{fault:?} went unnoticed:\n{report}");
        let message = expected(&fault).1;
        let said = |check: &str| {
            report
                .failures()
                .any(|(name, why)| name == check && why.contains(message))
        };
        for check in ["requested_id", "concurrency", "cancellation"] {
            assert!(
                said(check),
                "{fault:?}: {check} does not say `{message}`:\n{report}"
            );
        }
    }
}

/// Core and the kit have one rule: a certificate that lists no purposes is good for all.
#[tokio::test(start_paused = true)]
async fn a_leaf_without_extended_key_usages_has_no_fault() {
    let clock = FakeClock::new();
    let issuer = faulty(&clock);
    issuer.misbehave(Fault::MissingEku);
    let issued = issuer.issue_for(&request(), &clock).await.unwrap();
    assert_eq!(issued.observations(), []);
    let report = conformance::run_all(&subject(&*issuer, &clock)).await;
    assert!(report.passed(), "{report}");
}

/// RSA keys take seconds to make, and these tests are about answers.
fn subject<'a>(issuer: &'a dyn Issuer, clock: &'a FakeClock) -> Subject<'a> {
    static KEYS: OnceLock<Vec<PrivateKey>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let rsa = KeyType::ALL
            .into_iter()
            .filter(|key_type| key_type.is_rsa());
        rsa.map(|key_type| PrivateKey::generate(key_type).unwrap())
            .collect()
    });
    keys.iter()
        .fold(Subject::new(issuer, clock, id()), Subject::with_key)
}
