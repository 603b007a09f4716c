//! What CAs do that is odd, and what is wrong, played with the issuer's own answers.

use std::time::{Duration, SystemTime};

use meshca_core::verify::CLOCK_SKEW;
use meshca_core::{
    CertificateRequest, CertificateSpec, IssuedCertificate, LifetimePolicy, Observation,
    PrivateKey, Result, SignedChain, TrustBundle,
};
use rustls_pki_types::CertificateDer;

use super::faults::{Faults, told};
use super::{Outcome, Subject};
use crate::pki::{TestCa, TestCaOptions, to_pem};

/// What `openssl x509 -text` and `openssl s_client -showcerts` write around a certificate.
const TEXT: &str = "Certificate:\n    Data:\n        Version: 3 (0x2)\n---\n 0 s:CN=leaf\n   i:CN=issuing\n   a:PKEY: EC, (prime256v1); sigalg: ecdsa-with-SHA256\n";

/// Core takes what is odd and sound, holds back what is early, and refuses what is wrong, in answers of
/// this issuer.
///
/// The answers are altered on their way, or the issuer is asked for something else than core believes.
/// So the CA need not have the quirk, and the report shows what happened if it had:
///
/// | the CA's quirk | what comes of it |
/// |---|---|
/// | the certificates come root first, or twice, or with the root, or with a stranger among them | taken |
/// | the PEM text has CRLF line ends, or text around the blocks | taken |
/// | another root of the same name is trusted as well | taken |
/// | the root was renewed under its key | taken (shown with a CA of the kit, whose key is at hand) |
/// | its clock is ahead of ours: within [`CLOCK_SKEW`], or by more | held back until then; refused |
/// | its clock is behind ours, so that the certificate has ended already | refused |
/// | the certificate is for another key, or one of another type | refused |
/// | it lives for longer, or for a shorter time | refused; taken |
/// | a name is missing, or one too many | refused |
pub async fn quirks(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let key = PrivateKey::generate(subject.key_type())?;
        let sound = Answer::of(subject, subject.spec(), &key).await?;
        let issued = sound.verified().map_err(|error| told(&error))?;
        odd_chains(outcome, &sound, &issued)?;
        odd_roots(outcome, &sound, subject)?;
        // Some CAs begin certificates an hour ago, so that a clock which is behind that sees a longer life.
        let patient = subject
            .spec()
            .with_lifetime_policy(LifetimePolicy::AcceptIssuer);
        let patient = CertificateRequest::for_key(patient, &key, sound.now)?;
        odd_clocks(outcome, &sound.to(&patient), &issued);
        wrong_keys(outcome, &sound, subject).await?;
        wrong_lifetimes(outcome, &sound, subject, &key).await?;
        wrong_names(outcome, &sound, subject, &key).await?;
        Ok(())
    })
    .await
}

/// An answer of the issuer, and what core is told of it.
#[derive(Clone)]
struct Answer {
    request: CertificateRequest,
    chain: SignedChain,
    bundle: TrustBundle,
    now: SystemTime,
}

/// What must come of a quirk.
enum Wanted {
    Taken,
    HeldBack,
    /// With these words.
    Refused(&'static str),
}

impl Answer {
    async fn of(
        subject: &Subject<'_>,
        spec: CertificateSpec,
        key: &PrivateKey,
    ) -> Result<Self, Faults> {
        let now = subject.clock.now();
        let request = CertificateRequest::for_key(spec, key, now)?;
        let chain = subject.chain(&request).await?;
        Ok(Self {
            // Core must look at the certificates themselves, also where the issuer could tell it what they are.
            chain: SignedChain::new(chain.certificates().to_vec()),
            bundle: subject.bundle().await?,
            now: subject.clock.now(),
            request,
        })
    }

    fn verified(&self) -> Result<IssuedCertificate> {
        let chain = self.chain.clone();
        chain.verify(&self.request, &self.bundle, self.now)
    }

    /// The same certificates, as the answer to another request.
    fn to(&self, request: &CertificateRequest) -> Self {
        Self {
            request: request.clone(),
            ..self.clone()
        }
    }

    fn with_chain(&self, chain: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        Self {
            chain: SignedChain::new(chain),
            ..self.clone()
        }
    }

    fn at(&self, now: SystemTime) -> Self {
        Self {
            now,
            ..self.clone()
        }
    }

    /// Writes down whether what came of a quirk is what was wanted.
    fn must_be(&self, wanted: &Wanted, quirk: &str, outcome: &mut Outcome) {
        let early = |it: &Observation| matches!(it, Observation::NotYetValid { .. });
        let seen = self.verified();
        match (wanted, &seen) {
            (Wanted::Taken, Ok(_)) => outcome.prove(format!("taken: {quirk}")),
            (Wanted::HeldBack, Ok(it)) if it.observations().iter().any(early) => {
                outcome.prove(format!("held back: {quirk}"));
            }
            (Wanted::Refused(why), Err(error)) if error.to_string().contains(why) => {
                outcome.prove(format!("refused: {quirk}"));
            }
            (_, Ok(_)) => outcome.fail(format!("{quirk}: core hands it out")),
            (_, Err(error)) => outcome.fail(format!("{quirk}: core says {}", told(error))),
        }
    }
}

fn odd_chains(outcome: &mut Outcome, sound: &Answer, issued: &IssuedCertificate) -> Result<()> {
    let (chain, root) = (issued.chain(), issued.root().der());
    let with_root: Vec<_> = chain.iter().chain([root]).cloned().collect();
    let stranger = TestCa::root("stranger", sound.now)?;
    let text: String = chain
        .iter()
        .map(|it| format!("{TEXT}{}", to_pem(it)))
        .collect();
    let crlf = issued.chain_pem().replace('\n', "\r\n");
    let read = |pem: &str| SignedChain::from_pem(pem).map(|it| it.certificates().to_vec());
    for (quirk, chain) in [
        ("the root is left out", chain.to_vec()),
        ("the root comes behind its chain", with_root.clone()),
        (
            "the root comes first and the leaf last",
            with_root.iter().rev().cloned().collect(),
        ),
        ("every certificate comes twice", [chain, chain].concat()),
        (
            "a certificate comes along that does not belong to the chain",
            [chain, &[stranger.certificate().clone()]].concat(),
        ),
        ("the PEM text has CRLF line ends", read(&crlf)?),
        (
            "the PEM text has explanations around its blocks",
            read(&text)?,
        ),
    ] {
        sound
            .with_chain(chain)
            .must_be(&Wanted::Taken, quirk, outcome);
    }
    Ok(())
}

fn odd_roots(outcome: &mut Outcome, sound: &Answer, subject: &Subject<'_>) -> Result<()> {
    let domain = subject.trust_domain().clone();
    // A CA of the kit, since the key of the one under test is not at hand.
    let lifetime = subject.granted_lifetime();
    let later = sound.now + lifetime.saturating_mul(4) + Duration::from_secs(24 * 3600);
    let options = TestCaOptions::new("renewed", sound.now);
    let before = TestCa::root_with(options.with_validity(sound.now - CLOCK_SKEW, later))?;
    let answer = Answer {
        chain: SignedChain::new([before.sign(&sound.request, sound.now)?]),
        ..sound.clone()
    };
    let renewed = before.renewed(sound.now, later)?;
    for (quirk, roots) in [
        ("the root was renewed under its key", vec![&renewed]),
        (
            "the root was renewed under its key, and both are trusted",
            vec![&renewed, &before],
        ),
        (
            "another root of the same name is trusted as well",
            vec![&TestCa::root("renewed", sound.now)?, &before],
        ),
    ] {
        let roots = roots.into_iter().map(|root| root.certificate().clone());
        let answer = Answer {
            bundle: TrustBundle::new(domain.clone(), roots)?,
            ..answer.clone()
        };
        answer.must_be(&Wanted::Taken, quirk, outcome);
    }
    Ok(())
}

fn odd_clocks(outcome: &mut Outcome, sound: &Answer, issued: &IssuedCertificate) {
    let validity = issued.validity();
    let (begin, end) = (validity.not_before(), validity.not_after());
    let little = CLOCK_SKEW / 2;
    for (quirk, now, wanted) in [
        (
            "its clock is ahead of ours, a little",
            begin - little,
            Wanted::HeldBack,
        ),
        (
            "its clock is far ahead of ours",
            begin - 120 * CLOCK_SKEW,
            Wanted::Refused("compare the clocks"),
        ),
        (
            "it arrives a second before it ends",
            end - Duration::from_secs(1),
            Wanted::Taken,
        ),
        (
            "it has ended when it arrives",
            end,
            Wanted::Refused("had ended"),
        ),
    ] {
        sound.at(now).must_be(&wanted, quirk, outcome);
    }
}

async fn wrong_keys(
    outcome: &mut Outcome,
    sound: &Answer,
    subject: &Subject<'_>,
) -> Result<(), Faults> {
    let wrong = Wanted::Refused("is for the key of the request");
    let other = subject.new_request(subject.spec())?;
    sound
        .to(&other)
        .must_be(&wrong, "the certificate is for another key", outcome);
    let capabilities = subject.issuer.capabilities();
    let mut types = capabilities.key_types().iter();
    let other = types.find(|it| it.is_for_workloads() && **it != subject.key_type());
    if let Some(other) = other {
        let other = subject.new_request(subject.spec().with_key_type(*other))?;
        let quirk = "the certificate is for a key of another type";
        sound.to(&other).must_be(&wrong, quirk, outcome);
    } else {
        outcome.declare("it signs one type of key only");
    }
    Ok(())
}

async fn wrong_lifetimes(
    outcome: &mut Outcome,
    sound: &Answer,
    subject: &Subject<'_>,
    key: &PrivateKey,
) -> Result<(), Faults> {
    if !subject.issuer.capabilities().lifetime_honoured() {
        outcome.declare("it decides on lifetimes itself");
        return Ok(());
    }
    let longer = subject
        .spec()
        .with_lifetime(subject.granted_lifetime().saturating_mul(2));
    let asked_for_more = CertificateRequest::for_key(longer.clone(), key, sound.now)?;
    let quirk = "it lives for half as long";
    sound
        .to(&asked_for_more)
        .must_be(&Wanted::Taken, quirk, outcome);
    let quirk = "it lives for twice as long";
    match Answer::of(subject, longer, key).await {
        Ok(answer) if outlives(&answer, &sound.request) => {
            let wrong = Wanted::Refused("where at most");
            answer.to(&sound.request).must_be(&wrong, quirk, outcome);
        }
        Ok(_) => outcome.declare(format!("{quirk}: not tried, since it gave no more")),
        Err(Faults(why)) => {
            outcome.declare(format!(
                "{quirk}: not tried, since it refuses ({})",
                why.join("; ")
            ));
        }
    }
    Ok(())
}

/// Whether an answer ends after a request wanted it to.
fn outlives(answer: &Answer, request: &CertificateRequest) -> bool {
    let end = answer
        .verified()
        .map(|issued| issued.validity().not_after());
    end.is_ok_and(|end| end > request.not_after() + 2 * CLOCK_SKEW)
}

async fn wrong_names(
    outcome: &mut Outcome,
    sound: &Answer,
    subject: &Subject<'_>,
    key: &PrivateKey,
) -> Result<(), Faults> {
    if !subject.issuer.capabilities().dns_names() {
        outcome.declare("it signs no DNS names, so that none can be missing");
        return Ok(());
    }
    let named = subject.spec().with_dns_name(subject.dns_name.clone());
    let named = Answer::of(subject, named, key).await?;
    let missing = Wanted::Refused("lacks the requested DNS name");
    sound
        .to(&named.request)
        .must_be(&missing, "a name is missing", outcome);
    let extra = Wanted::Refused("that was not requested");
    named
        .to(&sound.request)
        .must_be(&extra, "there is a name too many", outcome);
    Ok(())
}
