//! The checks that look at one answer each.

use std::time::Duration;

use meshca_core::{
    CertificateRequest, CertificateSpec, Csr, Error, ErrorKind, KeyType, PrivateKey, Retry,
    SpiffeId,
};

use super::subject::told;
use super::{Outcome, Subject};

/// Its `Display` names it in one line, as logs need it; and neither that nor its `Debug` shows key material.
pub async fn names_itself(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let (name, debug) = (subject.issuer.to_string(), format!("{:?}", subject.issuer));
    if name.trim().is_empty() || name.contains('\n') {
        outcome.fail("its `Display` is not one line that names it");
    }
    if [&name, &debug]
        .iter()
        .any(|text| text.contains("PRIVATE KEY"))
    {
        outcome.fail("its `Display` or `Debug` shows a private key");
    }
    outcome
}

/// [`Issuer::check`](meshca_core::Issuer::check) passes for a CA that is about to sign.
pub async fn checks_itself(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    match subject.within("check", subject.issuer.check()).await {
        Ok(Ok(report)) => {
            for warning in report.warnings {
                outcome.prove(format!("it warns: {warning}"));
            }
        }
        Ok(Err(error)) => outcome.fail(format!("`check` failed: {}", told(&error))),
        Err(late) => outcome.fail(late),
    }
    outcome
}

/// The bundle is of the right trust domain, and holds a root that is valid now; asking again gives
/// no less.
pub async fn publishes_trust(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let (bundle, refreshed) = match (subject.bundle().await, subject.bundle().await) {
        (Ok(bundle), Ok(refreshed)) => (bundle, refreshed),
        (bundle, refreshed) => {
            for why in [bundle.err(), refreshed.err()].into_iter().flatten() {
                outcome.fail(why);
            }
            return outcome;
        }
    };
    if bundle.trust_domain() != subject.trust_domain() {
        outcome.fail(format!(
            "the bundle is of the trust domain {} where {} was expected",
            bundle.trust_domain(),
            subject.trust_domain()
        ));
    }
    let now = subject.clock.now();
    if !bundle
        .roots()
        .iter()
        .any(|root| root.validity().contains(now))
    {
        outcome.fail("the bundle holds no root that is valid now");
    }
    for root in bundle.roots() {
        if !refreshed.contains(root.der()) {
            outcome.fail(format!(
                "the root `{}` is gone from the bundle when it is asked for again, though the CA was not replaced",
                root.subject()
            ));
        }
        outcome.prove(format!(
            "root `{}`, valid {}",
            root.subject(),
            root.validity()
        ));
    }
    outcome
}

/// The certificate has the SPIFFE ID that was requested, and only it; is for the key of the request;
/// leads to the bundle; is a workload's, for server and client; valid now.
pub async fn requested_id(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    match subject.new_request(subject.spec()) {
        Ok((request, _)) => {
            let what = "a certificate for a key that we hold";
            subject
                .expect_signed(&mut outcome, what, &request, None)
                .await;
        }
        Err(why) => outcome.fail(why),
    }
    outcome
}

/// Core's own verification hands it out, as [`IssuingCa`](meshca_core::IssuingCa) has it verify
/// every answer.
pub async fn passes_core(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(why) = verified(subject, &mut outcome).await {
        outcome.fail(why);
    }
    outcome
}

async fn verified(subject: &Subject<'_>, outcome: &mut Outcome) -> Result<(), String> {
    let (request, _) = subject.new_request(subject.spec())?;
    let chain = subject.sign(&request).await?;
    let chain = chain.map_err(|error| format!("`sign` failed: {}", told(&error)))?;
    let bundle = subject.bundle().await?;
    let certificate = chain
        .verify(&request, &bundle, subject.clock.now())
        .map_err(|error| format!("core refuses it: {}", told(&error)))?;
    outcome.prove(certificate.proof().to_string());
    for seen in certificate.observations() {
        outcome.prove(format!("core observes: {seen}"));
    }
    Ok(())
}

/// The key may be one that only a CSR vouches for, as with a proxy that makes its own; and the names
/// are those of the request, whatever the CSR says.
///
/// A CA that takes the names from the CSR may refuse a CSR with other names, but must not sign it.
pub async fn key_of_a_csr(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let of_a_proxy = |id: &SpiffeId| -> Result<Csr, String> {
        let (request, _) = subject.new_request(subject.spec_for(id.clone()))?;
        request.csr().cloned().map_err(|error| told(&error))
    };
    let request = of_a_proxy(&subject.id).and_then(|csr| {
        CertificateRequest::for_csr(subject.spec(), csr, subject.clock.now())
            .map_err(|error| told(&error))
    });
    match request {
        Ok(request) => {
            let what = "a certificate for the key of a CSR";
            subject
                .expect_signed(&mut outcome, what, &request, None)
                .await;
        }
        Err(why) => outcome.fail(why),
    }

    let greedy = SpiffeId::new(format!("spiffe://{}/testkit/admin", subject.trust_domain()))
        .map_err(|error| error.to_string())
        .and_then(|id| of_a_proxy(&id))
        .and_then(|csr| {
            CertificateRequest::for_csr(subject.spec(), csr, subject.clock.now())
                .map_err(|error| told(&error))
        });
    let what = "a CSR that names somebody else";
    match greedy {
        Ok(request) => match subject.signed(&request, None).await {
            Ok(_) => outcome.prove(format!("{what}: the names of the request count")),
            Err(faults) => {
                let refused = subject.sign(&request).await;
                match refused {
                    Ok(Err(error)) => match refusal(&error) {
                        Ok(()) => outcome.prove(format!("{what}: refused ({error})")),
                        Err(why) => outcome.fail(format!("{what}: {why}")),
                    },
                    _ => outcome.fail_all(what, faults),
                }
            }
        },
        Err(why) => outcome.fail(why),
    }
    outcome
}

/// The same for every type of key that is declared; the others appear as declared.
pub async fn key_types(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let capabilities = subject.issuer.capabilities();
    if capabilities.key_types().is_empty() {
        outcome.fail("it declares no type of key at all");
    }
    for key_type in KeyType::ALL {
        if !capabilities.key_types().contains(&key_type) {
            outcome.declare(format!("not supported: {key_type}"));
            continue;
        }
        let made;
        let held = subject.keys.iter().find(|key| key.key_type() == key_type);
        let key = match held {
            Some(key) => *key,
            None => match PrivateKey::generate(key_type) {
                Ok(key) => {
                    made = key;
                    &made
                }
                Err(error) => {
                    outcome.fail(told(&error));
                    continue;
                }
            },
        };
        let spec = subject.spec().with_key_type(key_type);
        match CertificateRequest::for_key(spec, key, subject.clock.now()) {
            Ok(request) => {
                let what = key_type.to_string();
                subject
                    .expect_signed(&mut outcome, &what, &request, None)
                    .await;
            }
            Err(error) => outcome.fail(told(&error)),
        }
    }
    outcome
}

/// The lifetime is the one requested, or declared not to be; and never more than the declared maximum.
pub async fn lifetime(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let capabilities = subject.issuer.capabilities();
    let whole = subject.granted_lifetime();
    for asked in [whole, whole / 2] {
        let spec = subject.spec().with_lifetime(asked);
        let (request, _) = match subject.new_request(spec) {
            Ok(made) => made,
            Err(why) => {
                outcome.fail(why);
                continue;
            }
        };
        match subject.signed(&request, None).await {
            Err(faults) => {
                outcome.fail_all(&format!("asked for {}s", asked.as_secs()), faults);
            }
            Ok(signed) => {
                let now = subject.clock.now();
                let granted = signed
                    .verdict
                    .not_after
                    .and_then(|end| end.duration_since(now).ok())
                    .unwrap_or_default();
                let what = format!(
                    "{}s of the {}s asked for",
                    granted.as_secs(),
                    asked.as_secs()
                );
                if capabilities.lifetime_honoured() {
                    outcome.prove(what);
                } else {
                    outcome.declare(format!("lifetimes are not honoured: it gave {what}"));
                }
            }
        }
    }
    let Some(max) = capabilities.max_lifetime() else {
        outcome.declare("no maximum is known");
        return outcome;
    };
    let more = max.saturating_add(Duration::from_secs(3600));
    let spec = subject.spec().with_lifetime(more);
    match subject.new_request(spec) {
        Err(why) => outcome.fail(why),
        // Whether it is cut or refused is the CA's choice.
        Ok((request, _)) => match subject.sign(&request).await {
            Err(late) => outcome.fail(late),
            Ok(Err(error)) => match refusal(&error) {
                Ok(()) => outcome.prove(format!("more than {}s: refused", max.as_secs())),
                Err(why) => outcome.fail(format!("more than {}s: {why}", max.as_secs())),
            },
            Ok(Ok(chain)) => match subject.bundle().await {
                Err(why) => outcome.fail(why),
                Ok(bundle) => {
                    let verdict = subject.judge(&chain, &request, None, &bundle);
                    // That it is shorter than requested is what the maximum is for.
                    let too_long = verdict
                        .faults
                        .into_iter()
                        .filter(|fault| fault.contains("maximum"));
                    let before = outcome.failures.len();
                    outcome.fail_all(&format!("asked for {}s", more.as_secs()), too_long);
                    if outcome.failures.len() == before {
                        outcome.prove(format!("more than {}s: cut", max.as_secs()));
                    }
                }
            },
        },
    }
    outcome
}

/// DNS names, further URIs, common names: signed where declared; refused early, as
/// [`ErrorKind::Unsupported`], where not.
pub async fn further_names(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let capabilities = subject.issuer.capabilities();
    let spec = subject.spec();
    let cases = [
        (
            "DNS names",
            capabilities.dns_names(),
            spec.clone().with_dns_name(&subject.dns_name),
        ),
        (
            "URIs beside the SPIFFE ID",
            capabilities.extra_uris(),
            spec.clone().with_uri(&subject.uri),
        ),
        (
            "common names",
            capabilities.common_name(),
            spec.with_common_name(&subject.common_name),
        ),
    ];
    for (what, able, spec) in cases {
        signed_or_declared(subject, &mut outcome, what, able, spec).await;
    }
    outcome
}

/// Intermediates are signed where declared, and able to sign; refused early where not.
pub async fn intermediates(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    match CertificateSpec::intermediate(subject.trust_domain(), "testkit intermediate") {
        Ok(spec) => {
            let able = subject.issuer.capabilities().intermediates();
            let spec = subject.with_policy(spec.with_lifetime(subject.granted_lifetime()));
            signed_or_declared(subject, &mut outcome, "intermediates", able, spec).await;
        }
        Err(error) => outcome.fail(told(&error)),
    }
    outcome
}

async fn signed_or_declared(
    subject: &Subject<'_>,
    outcome: &mut Outcome,
    what: &str,
    able: bool,
    spec: CertificateSpec,
) {
    let (request, key) = match subject.new_request(spec) {
        Ok(made) => made,
        Err(why) => return outcome.fail(format!("{what}: {why}")),
    };
    if able {
        subject
            .expect_signed(outcome, what, &request, Some(&key))
            .await;
        return;
    }
    outcome.declare(format!("not supported: {what}"));
    match subject.issuer.capabilities().require(&request) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        Err(error) => outcome.fail(format!(
            "{what}: declared as not supported, and not refused as `unsupported` but: {}",
            told(&error)
        )),
        Ok(()) => outcome.fail(format!("{what}: declared as not supported, and yet issued")),
    }
}

/// An ID of another trust domain is refused by the issuer itself, and not as something to try again.
pub async fn foreign_trust_domain(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(id) = &subject.foreign_id else {
        outcome.fail("no foreign ID is known; give one with `Subject::with_foreign_id`");
        return outcome;
    };
    match subject.new_request(subject.spec_for(id.clone())) {
        Err(why) => outcome.fail(why),
        Ok((request, _)) => match subject.sign(&request).await {
            Err(late) => outcome.fail(late),
            Ok(Ok(_)) => outcome.fail(format!(
                "it signed {id}, which is of a foreign trust domain"
            )),
            Ok(Err(error)) => match refusal(&error) {
                Ok(()) => outcome.prove(format!("{id}: refused ({error})")),
                Err(why) => outcome.fail(format!("{id}: {why}")),
            },
        },
    }
    outcome
}

/// A malformed CSR never reaches an issuer.
///
/// Requests carry a [`Csr`], whose constructors verify it; there is no other way to one. So what is
/// checked is that door, with the issuer's own kind of CSR: cut short, altered, signed with another key.
pub async fn malformed_csr(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let made = subject
        .new_request(subject.spec())
        .and_then(|(request, _)| {
            let csr = request.csr().map_err(|error| told(&error))?;
            Ok(csr.der().to_vec())
        });
    let sound = match made {
        Ok(der) => der,
        Err(why) => {
            outcome.fail(why);
            return outcome;
        }
    };
    if let Err(error) = Csr::from_der(sound.clone()) {
        outcome.fail(format!("a sound CSR was refused: {}", told(&error)));
    }
    let mut short = sound.clone();
    short.pop();
    let mut long = sound.clone();
    long.push(0);
    let mut altered = sound.clone();
    if let Some(last) = altered.last_mut() {
        *last ^= 1;
    }
    for (what, der) in [
        ("nothing", Vec::new()),
        ("a CSR cut short", short),
        ("a CSR with something behind it", long),
        ("a CSR with an altered signature", altered),
        ("text", b"not a CSR".to_vec()),
    ] {
        match Csr::from_der(der) {
            Ok(_) => outcome.fail(format!("{what} was accepted as a CSR")),
            Err(error) if error.kind() == ErrorKind::InvalidRequest => {}
            Err(error) => outcome.fail(format!(
                "{what} was refused, but not as `invalid_request`: {}",
                told(&error)
            )),
        }
    }
    outcome
}

/// Every refusal has the kind and the retry advice of the contract: of the foreign trust domain, and of
/// whatever the subject [says](Subject::with_refusal) that the CA refuses.
pub async fn errors_classified(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    if subject.refusals.is_empty() {
        outcome.declare("no refusals of the CA's own policy were given to try");
    }
    let foreign = subject
        .foreign_id
        .iter()
        .map(|id| (subject.spec_for(id.clone()), None));
    let given = subject
        .refusals
        .iter()
        .map(|(spec, kind)| (spec.clone(), Some(*kind)));
    for (spec, kind) in foreign.chain(given) {
        let what = spec.spiffe_id().to_string();
        let (request, _) = match subject.new_request(spec) {
            Ok(made) => made,
            Err(why) => {
                outcome.fail(format!("{what}: {why}"));
                continue;
            }
        };
        match (subject.sign(&request).await, kind) {
            (Err(late), _) => outcome.fail(late),
            (Ok(Ok(_)), _) => outcome.fail(format!("{what}: signed where it must be refused")),
            (Ok(Err(error)), Some(kind)) if error.kind() != kind => outcome.fail(format!(
                "{what}: refused as `{}` where `{}` was expected: {error}",
                error.kind().as_str(),
                kind.as_str()
            )),
            (Ok(Err(error)), _) => match classified(&error) {
                Ok(()) => outcome.prove(format!("{what}: `{}`", error.kind().as_str())),
                Err(why) => outcome.fail(format!("{what}: {why}")),
            },
        }
    }
    outcome
}

/// Whether an error is a refusal for good, as the contract wants it.
fn refusal(error: &Error) -> Result<(), String> {
    match error.kind() {
        ErrorKind::Denied | ErrorKind::InvalidRequest | ErrorKind::Unsupported => classified(error),
        kind => Err(format!(
            "refused as `{}` where `denied`, `invalid_request` or `unsupported` says that it is final: {error}",
            kind.as_str()
        )),
    }
}

/// Whether kind and retry advice fit each other.
fn classified(error: &Error) -> Result<(), String> {
    let final_kind = match error.kind() {
        ErrorKind::Denied
        | ErrorKind::InvalidConfig
        | ErrorKind::InvalidRequest
        | ErrorKind::Unsupported => true,
        ErrorKind::RateLimited | ErrorKind::Timeout | ErrorKind::Unavailable => false,
        // Both are right for the others, depending on the CA.
        _ => return Ok(()),
    };
    match (final_kind, error.retry()) {
        (true, Retry::Never) => Ok(()),
        (false, Retry::Backoff | Retry::After(_)) => Ok(()),
        (true, advice) => Err(format!(
            "`{}` is final, but its retry advice is {advice:?}: {error}",
            error.kind().as_str()
        )),
        (false, advice) => Err(format!(
            "`{}` may pass, but its retry advice is {advice:?}: {error}",
            error.kind().as_str()
        )),
    }
}
