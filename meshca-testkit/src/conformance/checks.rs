//! The checks that look at one answer each.

use std::time::Duration;

use meshca_core::{
    CertificateRequest, CertificateSpec, Csr, Error, ErrorKind, KeyType, PrivateKey, Retry,
    SpiffeId,
};

use super::faults::{Faults, told};
use super::{Outcome, Subject};

/// Its `Display` names it in one line, as logs need it; and neither that nor its `Debug` shows key material.
pub async fn names_itself(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let (name, debug) = (subject.issuer.to_string(), format!("{:?}", subject.issuer));
    if name.trim().is_empty() || name.contains('\n') {
        outcome.fail("its `Display` is not one line that names it");
    }
    if format!("{name}\n{debug}").contains("PRIVATE KEY") {
        outcome.fail("its `Display` or `Debug` shows a private key");
    }
    outcome
}

/// [`Issuer::check`](meshca_core::Issuer::check) passes for a CA that is about to sign.
pub async fn checks_itself(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let report = subject.call("check", subject.issuer.check()).await?;
        for warning in report.warnings {
            outcome.prove(format!("it warns: {warning}"));
        }
        Ok(())
    })
    .await
}

/// The bundle is of the right trust domain, and holds a root that is valid now; asking again gives
/// no less.
pub async fn publishes_trust(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let (bundle, refreshed) = (subject.bundle().await?, subject.bundle().await?);
        if bundle.trust_domain() != subject.trust_domain() {
            outcome.fail(format!(
                "the bundle is of the trust domain {} where {} was expected",
                bundle.trust_domain(),
                subject.trust_domain()
            ));
        }
        let now = subject.clock.now();
        let mut roots = bundle.roots().iter();
        if !roots.any(|root| root.validity().contains(now)) {
            outcome.fail("the bundle holds no root that is valid now");
        }
        for root in bundle.roots() {
            let (name, validity) = (root.subject(), root.validity());
            if !refreshed.contains(root.der()) {
                outcome.fail(format!(
                    "the root `{name}` is gone from the bundle when it is asked for again, though the CA was not replaced"
                ));
            }
            outcome.prove(format!("root `{name}`, valid {validity}"));
        }
        Ok(())
    })
    .await
}

/// The certificate has the SPIFFE ID that was requested, and only it; is for the key of the request;
/// leads to the bundle; is a workload's, for server and client; valid now.
pub async fn requested_id(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let request = subject.new_request(subject.spec())?;
        let signed = subject.signed(&request, None).await;
        outcome.expect("a certificate for a key that we hold", signed);
        Ok(())
    })
    .await
}

/// Core's own verification hands it out, as [`IssuingCa`](meshca_core::IssuingCa) has it verify
/// every answer.
pub async fn passes_core(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let request = subject.new_request(subject.spec())?;
        let chain = subject.chain(&request).await?;
        let bundle = subject.bundle().await?;
        let certificate = chain
            .verify(&request, &bundle, subject.clock.now())
            .map_err(|error| format!("core refuses it: {}", told(&error)))?;
        outcome.prove(certificate.proof().to_string());
        for seen in certificate.observations() {
            outcome.prove(format!("core observes: {seen}"));
        }
        Ok(())
    })
    .await
}

/// The key may be one that only a CSR vouches for, as with a proxy that makes its own; and the names
/// are those of the request, whatever the CSR says.
///
/// A CA that takes the names from the CSR may refuse a CSR with other names, but must not sign it.
pub async fn key_of_a_csr(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let of_a_proxy = |id: &SpiffeId| -> meshca_core::Result<_> {
            let request = subject.new_request(subject.spec_for(id.clone()))?;
            let csr = request.csr()?.clone();
            CertificateRequest::for_csr(subject.spec(), csr, subject.clock.now())
        };
        let signed = subject.signed(&of_a_proxy(&subject.id)?, None).await;
        outcome.expect("a certificate for the key of a CSR", signed);

        let what = "a CSR that names somebody else";
        let other = SpiffeId::new(format!("spiffe://{}/testkit/admin", subject.trust_domain()))
            .map_err(|error| error.to_string())?;
        let greedy = of_a_proxy(&other)?;
        match subject.signed(&greedy, None).await {
            Ok(_) => outcome.prove(format!("{what}: the names of the request count")),
            Err(faults) => match subject.sign(&greedy).await {
                Ok(Err(error)) => outcome.expect_refusal(what, &error),
                _ => outcome.fail_all(what, faults),
            },
        }
        Ok(())
    })
    .await
}

/// The same for every type of key that is declared; the others appear as declared. A type that is
/// not [for workloads](KeyType::is_for_workloads) is proven with an intermediate, where these are
/// declared.
pub async fn key_types(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let capabilities = subject.issuer.capabilities();
        if capabilities.key_types().is_empty() {
            outcome.fail("it declares no type of key at all");
        }
        for key_type in KeyType::ALL {
            if !capabilities.key_types().contains(&key_type) {
                outcome.declare(format!("not supported: {key_type}"));
                continue;
            }
            let mut held = subject.keys.iter().copied();
            let made;
            let key = match held.find(|key| key.key_type() == key_type) {
                Some(key) => key,
                None => {
                    made = PrivateKey::generate(key_type)?;
                    &made
                }
            };
            let spec = match key_type.is_for_workloads() {
                true => subject.spec(),
                false if capabilities.intermediates() => intermediate(subject)?,
                false => {
                    outcome.declare(format!("not for workloads: {key_type}"));
                    continue;
                }
            };
            let spec = spec.with_key_type(key_type);
            let request = CertificateRequest::for_key(spec, key, subject.clock.now())?;
            let signed = subject.signed(&request, Some(key)).await;
            outcome.expect(&key_type.to_string(), signed);
        }
        Ok(())
    })
    .await
}

/// The lifetime is the one requested, or declared not to be; and never more than the declared maximum.
pub async fn lifetime(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let capabilities = subject.issuer.capabilities();
        let whole = subject.granted_lifetime();
        for asked in [whole, whole / 2] {
            let request = subject.new_request(subject.spec().with_lifetime(asked))?;
            let asked = asked.as_secs();
            match subject.signed(&request, None).await {
                Err(faults) => outcome.fail_all(&format!("asked for {asked}s"), faults),
                Ok(signed) => {
                    let now = subject.clock.now();
                    let granted = signed
                        .verdict
                        .not_after
                        .and_then(|end| end.duration_since(now).ok())
                        .unwrap_or_default();
                    let what = format!("{}s of the {asked}s asked for", granted.as_secs());
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
            return Ok(());
        };
        let more = max.saturating_add(Duration::from_secs(3600));
        let request = subject.new_request(subject.spec().with_lifetime(more))?;
        let what = format!("more than {}s", max.as_secs());
        // Whether it is cut or refused is the CA's choice.
        match subject.sign(&request).await? {
            Err(error) => outcome.expect_refusal(&what, &error),
            Ok(chain) => {
                let bundle = subject.bundle().await?;
                let mut faults = subject.judge(&chain, &request, None, &bundle).faults;
                // That it is shorter than requested is what the maximum is for.
                faults.0.retain(|fault| fault.contains("maximum"));
                if faults.0.is_empty() {
                    outcome.prove(format!("{what}: cut"));
                }
                outcome.fail_all(&format!("asked for {}s", more.as_secs()), faults);
            }
        }
        Ok(())
    })
    .await
}

/// DNS names, further URIs, common names: signed where declared; refused early, as
/// [`ErrorKind::Unsupported`], where not.
pub async fn further_names(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let able = subject.issuer.capabilities();
    let spec = subject.spec();
    let dns_name = spec.clone().with_dns_name(&subject.dns_name);
    let uri = spec.clone().with_uri(&subject.uri);
    let common_name = spec.with_common_name(&subject.common_name);
    for (what, able, spec) in [
        ("DNS names", able.dns_names(), dns_name),
        ("URIs beside the SPIFFE ID", able.extra_uris(), uri),
        ("common names", able.common_name(), common_name),
    ] {
        signed_or_declared(subject, &mut outcome, what, able, spec).await;
    }
    outcome
}

/// Intermediates are signed where declared, and able to sign; refused early where not.
pub async fn intermediates(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let able = subject.issuer.capabilities().intermediates();
        let spec = intermediate(subject)?;
        signed_or_declared(subject, outcome, "intermediates", able, spec).await;
        Ok(())
    })
    .await
}

fn intermediate(subject: &Subject<'_>) -> meshca_core::Result<CertificateSpec> {
    let spec = CertificateSpec::intermediate(subject.trust_domain(), "testkit intermediate")?;
    Ok(subject.with_policy(spec.with_lifetime(subject.granted_lifetime())))
}

async fn signed_or_declared(
    subject: &Subject<'_>,
    outcome: &mut Outcome,
    what: &str,
    able: bool,
    spec: CertificateSpec,
) {
    let made = PrivateKey::generate(spec.key_type()).and_then(|key| {
        let request = CertificateRequest::for_key(spec, &key, subject.clock.now())?;
        Ok((request, key))
    });
    let (request, key) = match made {
        Ok(made) => made,
        Err(error) => return outcome.fail_all(what, error.into()),
    };
    if able {
        outcome.expect(what, subject.signed(&request, Some(&key)).await);
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
    Outcome::of(async |outcome| {
        let unknown = "no foreign ID is known; give one with `Subject::with_foreign_id`";
        let id = subject.foreign_id.as_ref().ok_or(unknown)?;
        let request = subject.new_request(subject.spec_for(id.clone()))?;
        match subject.sign(&request).await? {
            Ok(_) => outcome.fail(format!(
                "it signed {id}, which is of a foreign trust domain"
            )),
            Err(error) => outcome.expect_refusal(&id.to_string(), &error),
        }
        Ok(())
    })
    .await
}

/// A malformed CSR never reaches an issuer.
///
/// Requests carry a [`Csr`], whose constructors verify it; there is no other way to one. So what is
/// checked is that door, with the issuer's own kind of CSR: cut short, altered, signed with another key.
pub async fn malformed_csr(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let request = subject.new_request(subject.spec())?;
        let sound = request.csr()?.der().to_vec();
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
        Ok(())
    })
    .await
}

/// Every refusal has the kind and the retry advice of the contract: of the foreign trust domain, and of
/// whatever the subject [says](Subject::with_refusal) that the CA refuses.
pub async fn errors_classified(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    if subject.refusals.is_empty() {
        outcome.declare("no refusals of the CA's own policy were given to try");
    }
    let foreign = subject.foreign_id.iter();
    let foreign = foreign.map(|id| (subject.spec_for(id.clone()), None));
    let given = subject.refusals.iter();
    let given = given.map(|(spec, kind)| (spec.clone(), Some(*kind)));
    for (spec, kind) in foreign.chain(given) {
        let what = spec.spiffe_id().to_string();
        match refused(subject, spec, kind).await {
            Ok(kind) => outcome.prove(format!("{what}: `{kind}`")),
            Err(faults) => outcome.fail_all(&what, faults),
        }
    }
    outcome
}

/// The kind of error by which something is refused that must be.
async fn refused(
    subject: &Subject<'_>,
    spec: CertificateSpec,
    kind: Option<ErrorKind>,
) -> Result<&'static str, Faults> {
    let request = subject.new_request(spec)?;
    let Err(error) = subject.sign(&request).await? else {
        return Err("signed where it must be refused".into());
    };
    let found = error.kind().as_str();
    match kind.filter(|kind| error.kind() != *kind) {
        Some(kind) => Err(format!(
            "refused as `{found}` where `{}` was expected: {error}",
            kind.as_str()
        ))?,
        None => classified(&error)?,
    }
    Ok(found)
}

/// Whether an error is a refusal for good, as the contract wants it.
pub(super) fn refusal(error: &Error) -> Result<(), String> {
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
    use ErrorKind as K;
    let (says, fits) = match (error.kind(), error.retry()) {
        (K::Denied | K::InvalidConfig | K::InvalidRequest | K::Unsupported, advice) => {
            ("is final", advice == Retry::Never)
        }
        (K::RateLimited | K::Timeout | K::Unavailable, advice) => {
            ("may pass", advice != Retry::Never)
        }
        // Both are right for the others, depending on the CA.
        _ => return Ok(()),
    };
    match fits {
        true => Ok(()),
        false => Err(format!(
            "`{}` {says}, but its retry advice is {:?}: {error}",
            error.kind().as_str(),
            error.retry()
        )),
    }
}
