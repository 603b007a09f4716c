//! Tells an operator what is wrong before the first proxy asks, without a certificate that is billed.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_acmpca::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_acmpca::primitives::Blob;
use aws_sdk_acmpca::types::{SigningAlgorithm, Validity, ValidityPeriodType};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use meshca_core::issuer::{CaUse, Findings};
use meshca_core::{Error, ErrorKind, Profile, Result, TrustBundle};

use crate::arn::CaArn;
use crate::authority::Authority;
use crate::error::from_sdk;
use crate::facts::{Facts, not_pinned};
use crate::settings::Template;

/// How many certificates a CA signs in its life, unless AWS has raised it ("AWS Private CA endpoints and quotas").
const LIFETIME_QUOTA: f64 = 1_000_000.0;
/// A quota that is used up sooner is worth a word.
const SOON: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest certificate of a CA for short-lived ones.
const SHORT_LIVED: Duration = Duration::from_secs(7 * 24 * 3600);
/// The part of its life after which a certificate is renewed.
const RENEWED_AFTER: f64 = 0.55;

/// Looks at everything, also where something is wrong: an operator wants to hear of it together.
pub(crate) async fn check(authority: &Arc<Authority>, found: &mut Findings) {
    let settings = &authority.settings;
    let profile = match settings.intermediates {
        true => Profile::Intermediate { path_len: 0 },
        false => Profile::Workload,
    };
    let described = authority.refresh().await;
    // Where AWS cannot be asked, nothing is known of rights.
    let asked = !described.as_ref().is_err_and(|error| {
        use ErrorKind::{RateLimited, Timeout, Unauthenticated, Unavailable};
        matches!(
            error.kind(),
            RateLimited | Timeout | Unauthenticated | Unavailable
        )
    });
    let facts = found.take(described);
    let pinned = found.take(authority.pinned_roots().await).flatten();
    if let Some(pinned) = &pinned {
        found.judge_dead_ends(pinned, "caCert");
    }
    // Without facts, what may be asked for is tried with what most CAs take.
    let algorithm = facts.as_ref().map(|facts| facts.signing_algorithm.clone());
    let algorithm = algorithm.unwrap_or(SigningAlgorithm::Sha256Withecdsa);
    let template = match &facts {
        Some(facts) => found.take(facts.template(profile, settings)),
        None => Some(settings.arn.template(settings.template.name())),
    };
    if asked {
        if let Some(template) = template {
            found.take(may_issue(authority, algorithm, &template).await);
        }
        found.take(may_fetch(authority).await);
    }
    if let Some(facts) = facts {
        judge(found, authority, &facts, pinned.as_ref());
    }
    if !settings.intermediates {
        if let Some(warning) = burn(settings.fleet, settings.lifetime) {
            found.warn(warning);
        }
        if settings.template == Template::EndEntityClientAuth {
            found.warn(
                "the template `EndEntityClientAuthCertificate/V1` gives certificates of clients, and verification refuses what is not for servers as well: use `EndEntity`",
            );
        }
    }
}

/// What is known of the CA and does not fit.
fn judge(found: &mut Findings, authority: &Authority, facts: &Facts, pinned: Option<&TrustBundle>) {
    let settings = &authority.settings;
    // AWS says so of this moment, which no earlier certificate disproves.
    if let Err(inactive) = facts.require_active() {
        found.failure(inactive);
    }
    let roots = facts.roots(&settings.trust_domain);
    match (&roots, pinned) {
        // Where the chain goes up to a root, that is the only one that certificates can lead to.
        (Ok(roots), Some(pinned)) => {
            if !roots.roots().iter().any(|root| pinned.contains(root.der()))
                && let Some(root) = roots.ends().next()
            {
                found.problem(not_pinned(root));
            }
        }
        (Ok(roots), None) if roots.ends().next().is_none() => found.warn(
            "the chain that was imported with the CA has no root, so Envoy accepts none of its certificates unless the mesh has the root in a MeshTrust: set `caCert` to the root that it leads to",
        ),
        (Err(_), Some(_)) | (Ok(_), None) => {}
        (Err(error), None) => found.problem(error.clone()),
    }
    let now = authority.clock.now();
    if facts.short_lived && !settings.intermediates && settings.lifetime > SHORT_LIVED {
        found.warn(
            "the CA is for short-lived certificates: they live for seven days at most, and not as long as is asked for",
        );
    }
    let wanted = match settings.intermediates {
        true => CaUse::intermediates(settings.lifetime, now),
        false => CaUse::leaves(settings.lifetime, now),
    };
    found.judge_authorities(&facts.chain, wanted, |place, _| {
        let arn = &settings.arn;
        let import = format!(
            "`aws acm-pca import-certificate-authority-certificate --certificate-authority-arn {arn} --certificate fileb://ca.pem --certificate-chain fileb://chain.pem`"
        );
        match place {
            0 => format!(
                "Renew it: have the CSR signed that `aws acm-pca get-certificate-authority-csr --certificate-authority-arn {arn} --output text` prints, and import the certificate: {import}"
            ),
            _ => format!("Have it certified again, and import the chain again: {import}"),
        }
    });
}

/// When the CA's quota is used up, if that is soon.
fn burn(fleet: Option<u64>, lifetime: Duration) -> Option<String> {
    let Some(fleet) = fleet else {
        return Some(
            "AWS bills each certificate, and a CA signs 1,000,000 in its life unless the quota is raised: for more than a few hundred workloads use `mode: Intermediate`"
                .to_owned(),
        );
    };
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let per_second = fleet as f64 / (lifetime.as_secs_f64() * RENEWED_AFTER).max(1.0);
    let lasts = LIFETIME_QUOTA / per_second.max(f64::MIN_POSITIVE);
    (lasts < SOON.as_secs_f64()).then(|| {
        format!(
            "{fleet} workloads with certificates for {} hours take about {:.0} certificates a day, each of which is billed: the CA's quota of 1,000,000 is used up in {:.0} days. Use `mode: Intermediate`",
            lifetime.as_secs() / 3600,
            per_second * 86_400.0,
            (lasts / 86_400.0).floor()
        )
    })
}

/// Asks for a certificate with a CSR that is none. Who may issue is told so; who may not is told that first.
async fn may_issue(
    authority: &Authority,
    algorithm: SigningAlgorithm,
    template: &str,
) -> Result<()> {
    let arn = &authority.settings.arn;
    let validity = Validity::builder()
        .r#type(ValidityPeriodType::Days)
        .value(1)
        .build()
        .map_err(|error| Error::new(ErrorKind::Internal, "no validity").with_source(error))?;
    let answer = authority
        .client
        .issue_certificate()
        .certificate_authority_arn(arn.as_str())
        .csr(Blob::new("no CSR: a check of permissions"))
        .signing_algorithm(algorithm)
        .template_arn(template)
        .validity(validity)
        .send()
        .await;
    let refusals = [
        "MalformedCSRException",
        "InvalidArgsException",
        "ValidationException",
        // Of a CA that is not active, which is seen elsewhere.
        "InvalidStateException",
    ];
    match done_unless(answer, &refusals, "IssueCertificate", arn)? {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::BadResponse,
            "AWS has issued a certificate for a CSR that is none",
        )),
    }
}

/// Asks for a certificate that there is not.
async fn may_fetch(authority: &Authority) -> Result<()> {
    let arn = &authority.settings.arn;
    let answer = authority
        .client
        .get_certificate()
        .certificate_authority_arn(arn.as_str())
        .certificate_arn(arn.no_certificate())
        .send()
        .await;
    let refusals = [
        "ResourceNotFoundException",
        "InvalidArnException",
        "ValidationException",
    ];
    done_unless(answer, &refusals, "GetCertificate", arn).map(drop)
}

/// What was answered; nothing if it was refused for one of these reasons, which come after that of a missing right.
fn done_unless<T, E>(
    answer: std::result::Result<T, SdkError<E, HttpResponse>>,
    refusals: &[&str],
    operation: &str,
    arn: &CaArn,
) -> Result<Option<T>>
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    match answer {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.code().is_some_and(|code| refusals.contains(&code)) => Ok(None),
        Err(error) => Err(from_sdk(error, operation, arn)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_reckoned_with() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        for (fleet, lifetime, words) in [
            (None, hours(24), Some("few hundred workloads")),
            (Some(10), hours(24), None),
            // The example of AWS' users: three weeks at half the lifetime.
            (Some(1000), hours(1), Some("43636 certificates a day")),
            (Some(1000), hours(1), Some("in 22 days")),
            (Some(100_000), hours(24), Some("in 5 days")),
            (Some(0), hours(24), None),
        ] {
            let warning = burn(fleet, lifetime);
            match words {
                Some(words) => assert!(warning.clone().unwrap().contains(words), "{warning:?}"),
                None => assert_eq!(warning, None),
            }
        }
    }
}
