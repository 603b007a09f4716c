//! An issuer that says one thing and does another is found out.
//!
//! Nothing here passes through core's verification: the kit judges what `sign` returns itself.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CertificateSpec, CheckReport, Error, ErrorKind, Issuer,
    KeyType, Profile, RequestId, Result, Retry, SignedChain, SpiffeId, TrustBundle, TrustDomain,
};
use meshca_testkit::conformance::{self, Rotation, Subject};
use meshca_testkit::{FakeClock, FaultyIssuer};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Gives half of the lifetime asked for, and says that it honours it.
    Lifetime,
    /// Says that it gives less than it does.
    Maximum,
    /// Says that it signs DNS names, and leaves them out.
    DnsNames,
    /// Says that it signs intermediates, and signs leaves.
    Intermediates,
    /// Signs for P-256 keys only, and says otherwise.
    KeyTypes,
    /// Publishes the roots of another CA.
    Bundle,
    /// Publishes a bundle of another trust domain.
    BundleDomain,
    /// Signs for everybody.
    ForeignDomain,
    /// Takes the names from the CSR.
    NamesOfTheCsr,
    /// Gives the same answer to every request.
    SameAnswer,
    /// Counts its serial numbers from one for each request.
    SameSerial,
    /// Says that a refusal may pass.
    RetryForever,
    /// Says that what it refuses is its own defect.
    RefusesAsInternal,
    /// Fails for good where an earlier call was dropped half way.
    Cancellation,
    /// `check` fails although it can sign.
    Check,
    /// Shows its key in its `Display`.
    ShowsKey,
    /// Replaces its CA, and publishes the new root too late.
    Rotation,
}

/// What each lie is found out by, and what is said about it.
const LIES: [(Lie, &str, &str); 19] = [
    (
        Lie::Lifetime,
        "lifetime",
        "lives for 1800s where 3600s were requested, though the issuer declares",
    ),
    (
        Lie::Maximum,
        "lifetime",
        "longer than the 600s that the issuer declares as its maximum",
    ),
    (
        Lie::DnsNames,
        "further_names",
        "lacks the requested DNS name `testkit.example.org`",
    ),
    (
        Lie::DnsNames,
        "quirks",
        "there is a name too many: core hands it out",
    ),
    (
        Lie::Intermediates,
        "intermediates",
        "an intermediate was requested, and the certificate is no CA's",
    ),
    (Lie::KeyTypes, "key_types", "P-384: `sign` failed"),
    (
        Lie::Bundle,
        "requested_id",
        "does not verify to the bundle (which holds `CN=faulty root`)",
    ),
    (
        Lie::BundleDomain,
        "publishes_trust",
        "the bundle is of the trust domain example.com where example.org was expected",
    ),
    (
        Lie::ForeignDomain,
        "foreign_trust_domain",
        "it signed spiffe://foreign.example.org/ns/shop/sa/cart",
    ),
    (
        Lie::NamesOfTheCsr,
        "key_of_a_csr",
        "a CSR that names somebody else: the certificate has the URI `spiffe://example.org/testkit/admin`",
    ),
    (Lie::SameAnswer, "concurrency", "(wrong key)"),
    (
        Lie::SameSerial,
        "concurrency",
        "64 certificates have the same serial number 01",
    ),
    (
        Lie::SameSerial,
        "repeated_request",
        "two certificates have the same serial number 01",
    ),
    (
        Lie::RetryForever,
        "errors_classified",
        "`denied` is final, but its retry advice is Backoff",
    ),
    (
        Lie::RefusesAsInternal,
        "foreign_trust_domain",
        "refused as `internal` where",
    ),
    (
        Lie::Cancellation,
        "cancellation",
        "dropped having been polled 1 times, the same request: `sign` failed",
    ),
    (Lie::Check, "checks_itself", "`check` failed"),
    (Lie::ShowsKey, "names_itself", "shows a private key"),
    (
        Lie::Rotation,
        "rotation",
        "the next CA was prepared, but the bundle holds no new root",
    ),
];

#[derive(Debug)]
struct Liar {
    lie: Lie,
    honest: FaultyIssuer,
    other: FaultyIssuer,
    foreign: FaultyIssuer,
    one: AlwaysOne,
    answer: Mutex<Option<SignedChain>>,
    begun: Mutex<Vec<RequestId>>,
}

impl Liar {
    fn new(lie: Lie, clock: &FakeClock) -> Self {
        let issuer = |domain: &str| {
            FaultyIssuer::new(TrustDomain::new(domain).unwrap(), Arc::new(clock.clone())).unwrap()
        };
        Self {
            lie,
            honest: issuer("example.org"),
            other: issuer("example.org"),
            foreign: issuer("foreign.example.org"),
            one: AlwaysOne::new(),
            answer: Mutex::default(),
            begun: Mutex::default(),
        }
    }
}

/// The same request with another spec, for the same key.
fn with_spec(request: &CertificateRequest, spec: CertificateSpec) -> Result<CertificateRequest> {
    CertificateRequest::for_csr(spec, request.csr()?.clone(), request.created())
}

#[async_trait]
impl Issuer for Liar {
    fn capabilities(&self) -> Capabilities {
        let capabilities = self.honest.capabilities();
        let capabilities = capabilities.with_key_types([KeyType::P256, KeyType::P384]);
        match self.lie {
            Lie::Maximum => capabilities.with_max_lifetime(Duration::from_secs(600)),
            _ => capabilities,
        }
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let spec = request.spec();
        let workload = spec.profile() == Profile::Workload;
        match self.lie {
            Lie::Lifetime if workload => {
                let half = spec.clone().with_lifetime(spec.lifetime() / 2);
                self.honest.sign(&with_spec(request, half)?).await
            }
            Lie::DnsNames if !spec.dns_names().is_empty() => {
                let bare = CertificateSpec::workload(spec.spiffe_id().clone())
                    .with_lifetime(spec.lifetime());
                self.honest.sign(&with_spec(request, bare)?).await
            }
            Lie::Intermediates if !workload => {
                let leaf = CertificateSpec::workload(id()).with_lifetime(spec.lifetime());
                self.honest.sign(&with_spec(request, leaf)?).await
            }
            // A P-256 key as X.509 carries it has 91 bytes.
            Lie::KeyTypes if request.public_key().len() != 91 => Err(Error::new(
                ErrorKind::InvalidRequest,
                "P-256 keys only, please",
            )),
            Lie::ForeignDomain if spec.spiffe_id().trust_domain() != id().trust_domain() => {
                self.foreign.sign(request).await
            }
            Lie::NamesOfTheCsr => {
                let csr = request.csr()?.der();
                let greedy = b"/testkit/admin";
                let spec = if csr.windows(greedy.len()).any(|part| part == greedy) {
                    let admin = SpiffeId::new("spiffe://example.org/testkit/admin").unwrap();
                    CertificateSpec::workload(admin).with_lifetime(spec.lifetime())
                } else {
                    return self.honest.sign(request).await;
                };
                self.honest.sign(&with_spec(request, spec)?).await
            }
            Lie::SameAnswer => {
                let fresh = self.honest.sign(request).await?;
                Ok(self.answer.lock().unwrap().get_or_insert(fresh).clone())
            }
            Lie::SameSerial if workload => self.one.sign(request),
            Lie::RetryForever => {
                let answer = self.honest.sign(request).await;
                answer.map_err(|error| error.with_retry(Retry::Backoff))
            }
            Lie::RefusesAsInternal => {
                let answer = self.honest.sign(request).await;
                answer.map_err(|_| Error::new(ErrorKind::Internal, "oops"))
            }
            Lie::Cancellation => {
                let known = self.begun.lock().unwrap().contains(request.id());
                if known {
                    return Err(Error::new(ErrorKind::Internal, "it is being worked on"));
                }
                self.begun.lock().unwrap().push(request.id().clone());
                tokio::task::yield_now().await;
                let answer = self.honest.sign(request).await;
                let mut begun = self.begun.lock().unwrap();
                begun.retain(|id| id != request.id());
                answer
            }
            _ => self.honest.sign(request).await,
        }
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        match self.lie {
            Lie::Bundle => self.other.trust_bundle().await,
            Lie::BundleDomain => TrustBundle::from_pem(
                TrustDomain::new("example.com").unwrap(),
                &self.honest.trust_bundle().await?.to_pem(),
            ),
            Lie::SameSerial => {
                TrustBundle::new(id().trust_domain().clone(), [self.one.der.clone()])
            }
            _ => self.honest.trust_bundle().await,
        }
    }

    async fn check(&self) -> Result<CheckReport> {
        match self.lie {
            Lie::Check => Err(Error::new(ErrorKind::Denied, "no")),
            _ => self.honest.check().await,
        }
    }
}

impl fmt::Display for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lie {
            Lie::ShowsKey => f.write_str("-----BEGIN PRIVATE KEY-----"),
            lie => write!(f, "a liar about {lie:?}"),
        }
    }
}

/// A CA whose certificates all have the serial number 1. For P-256 keys.
#[derive(Debug)]
struct AlwaysOne {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

impl AlwaysOne {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(
            request.spiffe_id().to_string().as_str().try_into().unwrap(),
        )];
        params.serial_number = Some(SerialNumber::from(1));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = (request.created() - Duration::from_secs(60)).into();
        params.not_after = request.not_after().into();
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let leaf = params.signed_by(&P256(request), &issuer).unwrap();
        Ok(SignedChain::new([leaf.der().clone()]))
    }
}

struct P256<'a>(&'a CertificateRequest);

impl PublicKeyData for P256<'_> {
    fn der_bytes(&self) -> &[u8] {
        let spki = self.0.public_key();
        spki.get(spki.len() - 65..).unwrap()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

struct Pretended;

#[async_trait]
impl Rotation for Pretended {
    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn activate(&self) -> Result<()> {
        Ok(())
    }
}

fn id() -> SpiffeId {
    SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_lie_is_found_out_by_the_check_that_it_is_about() {
    for (lie, check, message) in LIES {
        let clock = FakeClock::new();
        let liar = Liar::new(lie, &clock);
        let subject = Subject::new(&liar, &clock, id());
        let subject = match lie {
            Lie::Rotation => subject.with_rotation(&Pretended),
            _ => subject,
        };
        let report = conformance::run_all(&subject).await;
        assert!(
            report
                .failures()
                .any(|(name, why)| name == check && why.contains(message)),
            "{lie:?}: {check} does not say `{message}`:\n{report}"
        );
        let text = report.to_string();
        assert!(text.contains(&format!("\n  FAILED    {check}\n")), "{text}");
    }
}
