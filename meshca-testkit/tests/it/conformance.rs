//! The built-in CA keeps the contract, in every form, behind every pointer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::builtin::{
    BuiltinIssuer, CaSecrets, CaSettings, DelegatedIssuer, DelegatedSecrets, DelegatedSettings,
    ProvidedCa, RELOAD_INTERVAL,
};
use meshca_core::{
    Capabilities, CertificateRequest, CertificateSpec, CheckReport, Clock, Error, ErrorKind,
    Issuer, KeyType, MemorySecretStore, Result, SignedChain, SpiffeId, TrustBundle,
};
use meshca_testkit::conformance::{self, Report, Rotation, Subject};
use meshca_testkit::pki::{TestCa, TestCaOptions};
use meshca_testkit::samples::{domain, id, rsa_keys};
use meshca_testkit::{FakeClock, FaultyIssuer};

fn subject<'a>(issuer: &'a dyn Issuer, clock: &'a FakeClock) -> Subject<'a> {
    let elsewhere = SpiffeId::new("spiffe://example.com/ns/shop/sa/cart").unwrap();
    rsa_keys()
        .iter()
        .fold(Subject::new(issuer, clock, id()), Subject::with_key)
        .with_refusal(CertificateSpec::workload(elsewhere), ErrorKind::Denied)
}

async fn builtin(clock: &FakeClock) -> BuiltinIssuer {
    let settings = CaSettings::new(domain(), CaSecrets::for_backend("default", "ca-1").unwrap());
    let store = Arc::new(MemorySecretStore::new());
    BuiltinIssuer::load_or_create(settings, store, Arc::new(clock.clone()))
        .await
        .unwrap()
}

fn provided(ca: &TestCa, clock: &FakeClock) -> BuiltinIssuer {
    let ca = ProvidedCa::from_pem(&ca.chain_pem(), &ca.key_pem().unwrap())
        .unwrap()
        .allow_self_signed(true);
    BuiltinIssuer::provided(domain(), ca, Arc::new(clock.clone())).unwrap()
}

/// What a check is said to have declared.
fn declared<'a>(report: &'a Report, check: &str) -> Vec<&'a str> {
    let outcome = report
        .outcomes()
        .find_map(|(name, outcome)| (name == check).then_some(outcome));
    let declared = outcome.unwrap().declared().iter();
    declared.map(String::as_str).collect()
}

struct BuiltinRotation<'a> {
    issuer: &'a BuiltinIssuer,
    clock: FakeClock,
}

#[async_trait]
impl Rotation for BuiltinRotation<'_> {
    async fn prepare(&self) -> Result<()> {
        self.issuer.prepare_next().await.map(|_| ())
    }

    async fn activate(&self) -> Result<()> {
        self.clock.advance(RELOAD_INTERVAL);
        self.issuer.activate_next().await
    }
}

#[tokio::test]
async fn a_built_in_ca_conforms_and_so_does_its_rotation() {
    let clock = FakeClock::new();
    let issuer = builtin(&clock).await;
    let rotation = BuiltinRotation {
        issuer: &issuer,
        clock: clock.clone(),
    };
    let subject = subject(&issuer, &clock).with_rotation(&rotation);
    let report = conformance::run_all(&subject).await;
    report.assert_passed();
    assert_eq!(report.issuer(), "built-in CA of example.org");
    assert!(declared(&report, "rotation").is_empty());
    let text = report.to_string();
    for line in [
        "conformance of built-in CA of example.org\n",
        "\n  holds     requested_id\n",
        "\n            the new root was published before it signed, and old leaves stay valid\n",
    ] {
        assert!(text.contains(line), "`{line}` is missing in\n{text}");
    }
    let (_, quirks) = report
        .outcomes()
        .find(|(name, _)| *name == "quirks")
        .unwrap();
    assert_eq!(quirks.proved(), QUIRKS);
    assert_eq!(quirks.declared(), [""; 0]);
    for quirk in QUIRKS {
        assert!(text.contains(&format!("            {quirk}\n")), "{text}");
    }
}

/// What a report says of an issuer that can be asked for everything.
const QUIRKS: [&str; 20] = [
    "taken: the root is left out",
    "taken: the root comes behind its chain",
    "taken: the root comes first and the leaf last",
    "taken: every certificate comes twice",
    "taken: a certificate comes along that does not belong to the chain",
    "taken: the PEM text has CRLF line ends",
    "taken: the PEM text has explanations around its blocks",
    "taken: the root was renewed under its key",
    "taken: the root was renewed under its key, and both are trusted",
    "taken: another root of the same name is trusted as well",
    "held back: its clock is ahead of ours, a little",
    "refused: its clock is far ahead of ours",
    "taken: it arrives a second before it ends",
    "refused: it has ended when it arrives",
    "refused: the certificate is for another key",
    "refused: the certificate is for a key of another type",
    "taken: it lives for half as long",
    "refused: it lives for twice as long",
    "refused: a name is missing",
    "refused: there is a name too many",
];

#[tokio::test]
async fn it_conforms_behind_every_pointer() {
    let clock = FakeClock::new();
    let by_reference = builtin(&clock).await;
    let by_arc: Arc<dyn Issuer> = Arc::new(builtin(&clock).await);
    let by_box: Box<dyn Issuer> = Box::new(builtin(&clock).await);
    let issuers: [&dyn Issuer; 3] = [&by_reference, &by_arc, &by_box];
    for issuer in issuers {
        let report = conformance::run_all(&subject(issuer, &clock)).await;
        report.assert_passed();
        assert_eq!(
            declared(&report, "rotation"),
            ["not tried: the subject says no way to replace the CA"]
        );
    }
}

#[tokio::test]
async fn provided_cas_of_every_kind_conform() {
    let clock = FakeClock::new();
    let now = FakeClock::start();
    for key_type in [
        KeyType::P256,
        KeyType::P384,
        KeyType::Ed25519,
        KeyType::Rsa2048,
    ] {
        let options = |name: &str| {
            TestCaOptions::new(format!("{name} {key_type}"), now).with_key_type(key_type)
        };
        let root = TestCa::root_with(options("root")).unwrap();
        let last = root
            .intermediate_with(options("last CA").with_path_len(0))
            .unwrap();
        for (ca, signs_intermediates) in [(&root, true), (&last, false)] {
            let issuer = provided(ca, &clock);
            let report = conformance::run_all(&subject(&issuer, &clock)).await;
            report.assert_passed();
            assert_eq!(
                declared(&report, "intermediates").is_empty(),
                signs_intermediates,
                "{report}"
            );
        }
    }
}

#[tokio::test]
async fn a_faulty_issuer_that_behaves_conforms() {
    let clock = FakeClock::new();
    let issuer = FaultyIssuer::new(domain(), Arc::new(clock.clone())).unwrap();
    conformance::run_all(&subject(&issuer, &clock))
        .await
        .assert_passed();
}

#[tokio::test]
#[should_panic(expected = "does not keep the contract")]
async fn a_report_with_a_failure_panics_when_asserted() {
    let clock = FakeClock::new();
    let issuer = FaultyIssuer::new(domain(), Arc::new(clock.clone())).unwrap();
    issuer.misbehave(meshca_testkit::Fault::EmptyAnswer);
    let subject = Subject::new(&issuer, &clock, id())
        .with_deadline(Duration::from_secs(5))
        .with_lifetime(Duration::from_secs(600));
    let subject = rsa_keys().iter().fold(subject, Subject::with_key);
    conformance::run_all(&subject).await.assert_passed();
}

/// An issuer that can do as little as an issuer may, and says so.
#[derive(Debug)]
struct Modest {
    ca: TestCa,
    clock: FakeClock,
}

#[async_trait]
impl Issuer for Modest {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_max_lifetime(Duration::from_secs(1800))
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let csr = request.csr()?;
        let names_us = csr
            .der()
            .windows(id().path().len())
            .any(|part| part == id().path().as_bytes());
        if request.spiffe_id() != &id() || !names_us {
            return Err(Error::new(ErrorKind::Denied, "no"));
        }
        // It gives ten minutes, whatever one asks for; and its chains are upside down.
        let spec = CertificateSpec::workload(id()).with_lifetime(Duration::from_secs(600));
        let request = CertificateRequest::for_csr(spec, csr.clone(), request.created())?;
        let leaf = self.ca.sign(&request, self.clock.now())?;
        let mut chain = self.ca.chain().to_vec();
        chain.reverse();
        chain.push(leaf);
        Ok(SignedChain::new(chain))
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.ca.bundle(domain())
    }

    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::new().with_warning("it is modest"))
    }
}

impl fmt::Display for Modest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("modest CA")
    }
}

#[tokio::test]
async fn what_is_declared_is_reported_and_not_a_failure() {
    let clock = FakeClock::new();
    let root = TestCa::root("root", FakeClock::start()).unwrap();
    let issuer = Modest {
        ca: root.intermediate("issuing").unwrap(),
        clock: clock.clone(),
    };
    let refused = SpiffeId::new("spiffe://example.org/ns/shop/sa/other").unwrap();
    let subject = || Subject::new(&issuer, &clock, id());
    let report = conformance::run_all(
        &subject()
            .with_unordered_chains()
            .with_refusal(CertificateSpec::workload(refused), ErrorKind::Denied),
    )
    .await;
    report.assert_passed();
    assert_eq!(
        declared(&report, "further_names"),
        [
            "not supported: DNS names",
            "not supported: URIs beside the SPIFFE ID",
            "not supported: common names"
        ]
    );
    assert_eq!(
        declared(&report, "intermediates"),
        ["not supported: intermediates"]
    );
    assert_eq!(
        declared(&report, "lifetime"),
        [
            "lifetimes are not honoured: it gave 600s of the 1800s asked for",
            "lifetimes are not honoured: it gave 600s of the 900s asked for"
        ]
    );
    assert_eq!(declared(&report, "key_types").len(), KeyType::ALL.len() - 1);
    assert_eq!(declared(&report, "errors_classified").len(), 0);
    let text = report.to_string();
    for line in [
        "  declared: its chains come in no particular order\n",
        "  it warns: it is modest\n",
        "  a CSR that names somebody else: refused (no)\n",
        "  all 18 checks hold",
    ] {
        assert!(text.contains(line), "`{line}` is missing in\n{text}");
    }

    let strict = conformance::run_all(&subject()).await;
    assert!(!strict.passed(), "what is not declared is a failure");
}

#[test]
fn a_run_can_be_spawned() {
    fn send<T: Send>(_: &T) {}
    let clock = FakeClock::new();
    let issuer = FaultyIssuer::new(domain(), Arc::new(clock.clone())).unwrap();
    let subject = Subject::new(&issuer, &clock, id());
    send(&conformance::run_all(&subject));
}

async fn delegated(upstream: Arc<dyn Issuer>, path_len: u8, clock: &FakeClock) -> DelegatedIssuer {
    let secrets = DelegatedSecrets::new("default", "mesh-ca").unwrap();
    let settings = DelegatedSettings::new(domain(), secrets).with_path_len(path_len);
    let store = Arc::new(MemorySecretStore::new());
    DelegatedIssuer::load_or_create(settings, upstream, store, Arc::new(clock.clone()))
        .await
        .unwrap()
}

/// The root stays in one CA; another one signs below it, and a third one below that.
#[tokio::test]
async fn delegated_issuers_at_two_levels() {
    let clock = FakeClock::new();
    let root: Arc<dyn Issuer> = Arc::new(builtin(&clock).await);
    let upper: Arc<dyn Issuer> = Arc::new(delegated(root, 1, &clock).await);
    let lower: Box<dyn Issuer> = Box::new(delegated(Arc::clone(&upper), 0, &clock).await);
    for issuer in [&*upper, &*lower] {
        conformance::run_all(&subject(issuer, &clock))
            .await
            .assert_passed();
    }
}

#[test]
fn the_suite_may_run_on_any_thread() {
    let clock = FakeClock::new();
    let issuer = FaultyIssuer::new(domain(), Arc::new(clock.clone())).unwrap();
    let subject = Subject::new(&issuer, &clock, id());
    let _: Box<dyn Send> = Box::new(conformance::run_all(&subject));
}
