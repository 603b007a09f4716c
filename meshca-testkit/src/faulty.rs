//! An issuer that misbehaves as told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer, KeyType,
    PrivateKey, Result, SignedChain, TrustBundle, TrustDomain,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;

use crate::pki::{self, Key, TestCa, TestCaOptions};

/// One way in which a CA, or the way to it, goes wrong.
///
/// Each is something that real CAs and their operators have done. [`Fault::all`] has them all, with
/// durations that hurt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The certificate is for another key than the one of the request.
    WrongKey,
    /// It has a second `spiffe:` URI.
    SecondSpiffeId,
    /// It has a URI that was not requested.
    ExtraUri,
    /// It has a DNS name that was not requested.
    ExtraDnsName,
    /// It has no subject alternative name at all.
    MissingSan,
    /// It is a CA's.
    CaCertificate,
    /// It may sign certificates (key usage `keyCertSign`) without being a CA's.
    KeyCertSign,
    /// It has no key usages, so Envoy takes them to be those of a CA, and refuses it.
    MissingKeyUsage,
    /// It has no extended key usage. It is good for every purpose then (RFC 5280 §4.2.1.12), and no
    /// peer minds: neither core nor the suite finds a fault in it.
    MissingEku,
    /// It is good for servers only.
    MissingClientEku,
    /// It had ended before it arrived.
    ExpiredLeaf,
    /// It lives for twice as long as asked, and a day.
    OverlongLeaf,
    /// It begins this much ahead of our clock. Core holds it back where that is within its
    /// [`CLOCK_SKEW`](meshca_core::verify::CLOCK_SKEW), and refuses it otherwise.
    NotBeforeAhead(Duration),
    /// The intermediate that signed it ends before it does.
    OutlivesIssuer,
    /// The certificates come root first, leaf last. Core puts them in order.
    ReorderedChain,
    /// Every certificate comes twice. Core drops the doubles.
    DuplicatedCertificates,
    /// The leaf comes without the intermediate that signed it.
    IncompleteChain,
    /// A whole and sound chain, below a root that is not in the bundle.
    ForeignChain,
    /// Something that is no certificate comes in the place of the leaf.
    Garbage,
    /// Nothing comes at all, and it counts as success.
    EmptyAnswer,
    /// The right answer, which arrives this much of tokio's time after it was signed.
    Slow(Duration),
    /// An error of this kind, with the kind's own retry advice.
    Error(ErrorKind),
}

impl Fault {
    /// All that the suite finds, which is all but `MissingEku`: `NotBeforeAhead` by 30 seconds and by 2 hours, `Slow` by an hour, `Error` with
    /// every kind.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::WrongKey,
            Self::SecondSpiffeId,
            Self::ExtraUri,
            Self::ExtraDnsName,
            Self::MissingSan,
            Self::CaCertificate,
            Self::KeyCertSign,
            Self::MissingKeyUsage,
            Self::MissingClientEku,
            Self::ExpiredLeaf,
            Self::OverlongLeaf,
            Self::NotBeforeAhead(Duration::from_secs(30)),
            Self::NotBeforeAhead(Duration::from_secs(2 * 3600)),
            Self::OutlivesIssuer,
            Self::ReorderedChain,
            Self::DuplicatedCertificates,
            Self::IncompleteChain,
            Self::ForeignChain,
            Self::Garbage,
            Self::EmptyAnswer,
            Self::Slow(Duration::from_secs(3600)),
        ];
        all.extend(ERROR_KINDS.map(Self::Error));
        all
    }
}

/// Every kind of error there is; core's enum may grow, so it cannot list itself.
const ERROR_KINDS: [ErrorKind; 12] = [
    ErrorKind::BadResponse,
    ErrorKind::Conflict,
    ErrorKind::Denied,
    ErrorKind::InvalidConfig,
    ErrorKind::InvalidRequest,
    ErrorKind::NotFound,
    ErrorKind::RateLimited,
    ErrorKind::Timeout,
    ErrorKind::Unauthenticated,
    ErrorKind::Unavailable,
    ErrorKind::Unsupported,
    ErrorKind::Internal,
];

/// A CA in this process that misbehaves as told, and is sound until it is told to.
///
/// It is an intermediate below a root, and signs every profile and type of key for one trust domain. Only
/// [`sign`](Issuer::sign) misbehaves: the bundle is right, which is what makes the fault stand out.
///
/// ```
/// use std::sync::Arc;
/// use meshca_core::{CertificateSpec, ErrorKind, IssuingCa, SpiffeId, TrustDomain};
/// use meshca_testkit::{FakeClock, Fault, FaultyIssuer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let clock = FakeClock::new();
/// let ca = IssuingCa::new(FaultyIssuer::new(TrustDomain::new("example.org")?, Arc::new(clock.clone()))?);
/// let spec = CertificateSpec::workload(SpiffeId::new("spiffe://example.org/cart")?);
///
/// ca.misbehave_once(Fault::SecondSpiffeId);
/// let error = ca.issue(&spec, &clock).await.expect_err("core refuses it");
/// assert_eq!(error.kind(), ErrorKind::BadResponse);
///
/// ca.issue(&spec, &clock).await?;
/// # Ok(())
/// # }
/// ```
#[derive(derive_more::Debug, derive_more::Display)]
#[debug("FaultyIssuer {{ trust_domain: \"{trust_domain}\", plan: {:?}, .. }}", self.plan())]
#[display("faulty issuer of {trust_domain} ({})", self.plan())]
pub struct FaultyIssuer {
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    root: TestCa,
    issuing: TestCa,
    foreign: TestCa,
    bundle: TrustBundle,
    plan: Mutex<Plan>,
    asked: AtomicUsize,
}

/// What goes wrong, and how often it still does.
#[derive(Debug, Default, derive_more::Display)]
#[display("{}", fault.as_ref().map_or("sound".to_owned(), |fault| format!("{fault:?}")))]
struct Plan {
    fault: Option<Fault>,
    times: usize,
}

impl FaultyIssuer {
    /// A sound issuer with a new CA.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if the CA cannot be made.
    pub fn new(trust_domain: TrustDomain, clock: Arc<dyn Clock>) -> Result<Self> {
        let now = clock.now();
        let root = TestCa::root("faulty root", now)?;
        let bundle = root.bundle(trust_domain.clone())?;
        Ok(Self {
            issuing: root.intermediate("faulty issuing CA")?,
            foreign: TestCa::root("foreign root", now)?.intermediate("foreign issuing CA")?,
            trust_domain,
            clock,
            root,
            bundle,
            plan: Mutex::default(),
            asked: AtomicUsize::new(0),
        })
    }

    /// Makes every answer from now on faulty.
    pub fn misbehave(&self, fault: Fault) {
        self.misbehave_times(usize::MAX, fault);
    }

    /// Makes the next answer faulty, and those after it sound.
    pub fn misbehave_once(&self, fault: Fault) {
        self.misbehave_times(1, fault);
    }

    /// Makes the next answers faulty, and those after them sound.
    pub fn misbehave_times(&self, times: usize, fault: Fault) {
        *self.plan() = Plan {
            fault: (times > 0).then_some(fault),
            times,
        };
    }

    /// Makes every answer sound from now on.
    pub fn behave(&self) {
        *self.plan() = Plan::default();
    }

    /// How often it was asked to sign, in whatever way that ended.
    pub fn times_asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self) -> Option<Fault> {
        let mut plan = self.plan();
        plan.times = plan.times.saturating_sub(1);
        match plan.times {
            0 => plan.fault.take(),
            _ => plan.fault.clone(),
        }
    }

    fn answer(
        &self,
        request: &CertificateRequest,
        fault: Option<&Fault>,
    ) -> Result<Vec<CertificateDer<'static>>> {
        let now = self.clock.now();
        let later = |by: Duration| now.checked_add(by).unwrap_or(now);
        let lifetime = request.spec().lifetime();
        let mut params = self.issuing.leaf_params(request, now)?;
        let mut ca = self.issuing.clone();
        match fault {
            Some(Fault::ExpiredLeaf) => {
                let ago = |by: u64| now.checked_sub(Duration::from_secs(by)).unwrap_or(now);
                params.not_before = pki::calendar(ago(120));
                params.not_after = pki::calendar(ago(60));
            }
            Some(Fault::OverlongLeaf) => {
                let day = Duration::from_secs(24 * 3600);
                params.not_after = pki::calendar(later(lifetime.saturating_mul(2) + day));
            }
            Some(Fault::NotBeforeAhead(by)) => {
                params.not_before = pki::calendar(later(*by));
                // A certificate that ends before it begins would be another fault.
                if *by >= lifetime {
                    params.not_after = pki::calendar(later(by.saturating_add(lifetime)));
                }
            }
            Some(Fault::OutlivesIssuer) => {
                let options = TestCaOptions::new("issuing CA near its end", now)
                    .with_validity(now, later(lifetime / 2));
                ca = self.root.intermediate_with(options)?;
            }
            Some(Fault::ForeignChain) => ca = self.foreign.clone(),
            Some(fault) => spoil(&mut params, fault, &self.trust_domain)?,
            None => {}
        }
        let leaf = if fault == Some(&Fault::WrongKey) {
            let other = PrivateKey::generate(KeyType::P256)?;
            ca.sign_params(&params, &Key::pair(&other)?)?
        } else {
            ca.sign_params(&params, &Key::of(request)?)?
        };
        let mut chain = vec![leaf];
        chain.extend(ca.intermediates().iter().cloned());
        match fault {
            Some(Fault::ReorderedChain) => {
                chain.push(ca.root_certificate().clone());
                chain.reverse();
            }
            Some(Fault::DuplicatedCertificates) => chain.extend(chain.clone()),
            Some(Fault::IncompleteChain) => chain.truncate(1),
            Some(Fault::EmptyAnswer) => chain.clear(),
            Some(Fault::Garbage) => {
                if let Some(leaf) = chain.first_mut() {
                    *leaf = CertificateDer::from(b"<html>504 Gateway Time-out</html>".to_vec());
                }
            }
            _ => {}
        }
        Ok(chain)
    }
}

/// The faults that are in the text of the certificate itself.
fn spoil(params: &mut CertificateParams, fault: &Fault, domain: &TrustDomain) -> Result<()> {
    match fault {
        Fault::SecondSpiffeId => params
            .subject_alt_names
            .push(pki::uri(&format!("spiffe://{domain}/ns/admin/sa/root"))?),
        Fault::ExtraUri => params
            .subject_alt_names
            .push(pki::uri("urn:example:not-requested")?),
        Fault::ExtraDnsName => params
            .subject_alt_names
            .push(pki::dns("not-requested.example.org")?),
        Fault::MissingSan => params.subject_alt_names.clear(),
        Fault::CaCertificate => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        Fault::KeyCertSign => params.key_usages.push(KeyUsagePurpose::KeyCertSign),
        Fault::MissingKeyUsage => params.key_usages.clear(),
        Fault::MissingEku => params.extended_key_usages.clear(),
        Fault::MissingClientEku => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
        _ => {}
    }
    Ok(())
}

#[async_trait]
impl Issuer for FaultyIssuer {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(true)
            .with_key_types(KeyType::ALL)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let fault = self.next_fault();
        if let Some(Fault::Error(kind)) = &fault {
            return Err(Error::new(*kind, "the faulty issuer was told to fail"));
        }
        request.require_trust_domain(&self.trust_domain)?;
        let chain = SignedChain::new(self.answer(request, fault.as_ref())?);
        if let Some(Fault::Slow(delay)) = &fault {
            tokio::time::sleep(*delay).await;
        }
        Ok(chain)
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        Ok(self.bundle.clone())
    }

    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::new())
    }
}
