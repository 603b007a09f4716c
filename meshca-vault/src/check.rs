//! Tells an operator what is wrong before the first proxy asks: all of it at once.

use bytes::Bytes;
use http::Method;
use meshca_core::resource::VaultAuth;
use meshca_core::{CheckReport, Error, ErrorKind, Profile, Result, Retry, TrustBundle};
use rustls_pki_types::CertificateDer;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vaultrs::api::pki::requests::ReadRoleRequest;
use vaultrs::api::token::requests::LookupTokenSelfRequest;

use crate::api::{self, Role, TokenInfo};
use crate::ca::{self, Wanted};
use crate::client::Failure;
use crate::issuer::VaultIssuer;
use crate::role;
use crate::transport::Call;
use crate::trust::{Survey, certificates};

/// What was found so far.
#[derive(Debug, Default)]
struct Findings {
    /// What keeps it from signing.
    problems: Vec<Error>,
    /// Whether one of them was seen and not concluded: the server is away, or lets us not in.
    certain: bool,
    /// What works and will be regretted, and what cannot be known.
    warnings: Vec<String>,
}

impl Findings {
    fn problem(&mut self, problem: Error) {
        let said = problem.message();
        if self.problems.iter().all(|known| known.message() != said) {
            self.problems.push(problem);
        }
    }

    fn lacks_something(&self) -> bool {
        let mut problems = self.problems.iter();
        problems.any(|problem| problem.kind() == ErrorKind::NotFound)
    }

    fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// `proven`: a certificate was signed and verified since the last check. What was only concluded is then no failure.
    fn report(self, proven: bool) -> Result<CheckReport> {
        let mut report = CheckReport::new();
        if self.problems.is_empty() || (proven && !self.certain) {
            let doubts = self.problems.into_iter().map(|problem| {
                format!("this does not keep it from signing, as a certificate since the last check shows, but: {problem}")
            });
            report.warnings = doubts.chain(self.warnings).collect();
            return Ok(report);
        }
        Err(joined(self.problems, &self.warnings))
    }
}

/// One error for all problems. Its kind is that of the first.
fn joined(mut problems: Vec<Error>, warnings: &[String]) -> Error {
    if let ([_], []) = (problems.as_slice(), warnings) {
        return problems.remove(0);
    }
    let list = |things: &[String]| {
        let numbered = (1..).zip(things);
        let numbered = numbered.map(|(number, thing)| format!("({number}) {thing}"));
        numbered.collect::<Vec<_>>().join("; ")
    };
    let kind = problems.first().map_or(ErrorKind::Internal, Error::kind);
    let hopeless = problems.iter().any(|it| it.retry() == Retry::Never);
    let retry = match problems.first() {
        Some(first) if !hopeless => first.retry(),
        _ => Retry::Never,
    };
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let mut message = match texts.as_slice() {
        [one] => one.clone(),
        many => format!("{} things keep it from signing: {}", many.len(), list(many)),
    };
    if !warnings.is_empty() {
        message.push_str(&format!("; beside that: {}", list(warnings)));
    }
    let error = Error::new(kind, message).with_retry(retry);
    match problems.into_iter().next() {
        Some(first) => error.with_source(first),
        None => error,
    }
}

pub(crate) async fn check(issuer: &VaultIssuer) -> Result<CheckReport> {
    let proven = issuer.proven.swap(false, Ordering::Relaxed);
    let mut found = Findings::default();
    // A caCert or client certificate that was replaced counts as it is now.
    issuer.client.reload().await?;
    // Of a server that is away or sealed nothing else can be known.
    found.warnings.extend(health(issuer).await?);
    // This needs no login, but for a server that hides what is open elsewhere.
    let survey = issuer.survey().await;
    let mut signer = None;
    match issuer.sessions.token_now().await {
        Ok(_) => {
            let profile = match issuer.settings.intermediates {
                true => Profile::Intermediate { path_len: 0 },
                false => Profile::Workload,
            };
            if survey.as_ref().map_or(true, |survey| !survey.lacks_key()) {
                probe(issuer, profile, &mut found).await;
            }
            if profile == Profile::Workload {
                signer = look_at_role(issuer, &mut found).await;
            }
        }
        Err(error) => {
            found.certain = true;
            found.problem(error);
        }
    }
    let mut trusted = None;
    match survey {
        Ok(survey) => {
            trust(issuer, &survey, &mut found);
            trusted = Some(survey.trusted);
        }
        // The probe has found that the mount is missing.
        Err(error) if error.kind() == ErrorKind::NotFound && found.lacks_something() => {}
        Err(error) => found.problem(error),
    }
    authority(issuer, signer.as_deref(), trusted.as_ref(), &mut found).await;
    if !found.certain {
        token(issuer, &mut found).await;
    }
    if issuer.client.is_open() {
        found.warn(
            "the connection is not encrypted, so the token can be read on the way: use `https://`",
        );
    }
    let tls = issuer.client.conf().tls.as_ref();
    if tls.is_some_and(|tls| tls.skip_verify) {
        found.warn(
            "`tls.skipVerify` trusts any server with the token and with every identity: set `tls.caCert` instead",
        );
    }
    found.report(proven)
}

/// `sys/health` answers without a login, and with a status of its own for each state.
async fn health(issuer: &VaultIssuer) -> Result<Option<String>> {
    let answer = issuer.client.health().await?;
    let (address, product) = (issuer.client.address(), issuer.client.known_product());
    let command = product.command();
    let unavailable = |message: String| Err(Error::new(ErrorKind::Unavailable, message));
    match answer.status.as_u16() {
        200 | 204 | 429 | 473 => Ok(None),
        472 => unavailable(format!(
            "{address} is a secondary for disaster recovery, which serves no requests: use the address of the primary"
        )),
        501 => unavailable(format!(
            "{product} at {address} is new and not initialised: run `{command} operator init`"
        )),
        503 => unavailable(format!(
            "{product} at {address} is sealed: unseal it with `{command} operator unseal`"
        )),
        // A proxy that hides it, perhaps: what counts is whether it signs.
        status => Ok(Some(format!(
            "`sys/health` at {address} answers {status}, which neither Vault nor OpenBao does: is a proxy in between?"
        ))),
    }
}

/// Asks for a signature without saying for what: the server looks at the policy, then at the role, and then refuses.
async fn probe(issuer: &VaultIssuer, profile: Profile, found: &mut Findings) {
    let call = Call {
        method: Method::POST,
        path: issuer.path_for(profile),
        body: Bytes::from_static(b"{}"),
    };
    match issuer.ask::<serde::de::IgnoredAny>(&call).await {
        Ok(_) => {}
        Err(Failure::Refused(refusal))
            if refusal.status.as_u16() == 400 && refusal.says("\"csr\" is empty") => {}
        Err(failure) => found.problem(issuer.refused(failure, profile)),
    }
}

/// Judges the role by what it will say about the certificates of a mesh, if the policy lets us see it. Returns the issuer
/// that it signs with.
async fn look_at_role(issuer: &VaultIssuer, found: &mut Findings) -> Option<String> {
    let conf = issuer.client.conf();
    let (mount, name) = (conf.mount(), conf.role.as_str());
    let request = ReadRoleRequest {
        mount: mount.to_owned(),
        name: name.to_owned(),
    };
    let call = match api::call(&request) {
        Ok(call) => call,
        Err(error) => {
            found.problem(error);
            return None;
        }
    };
    match issuer.ask::<Role>(&call).await {
        Ok(told) => {
            let command = issuer.client.known_product().command();
            let judgement = role::judge(&told.data, conf, &issuer.settings, command);
            if let Some(problem) = judgement.problem {
                found.problem(Error::new(ErrorKind::Denied, problem));
            }
            found.warnings.extend(judgement.warnings);
            told.data.issuer_ref.filter(|issuer| !issuer.is_empty())
        }
        Err(Failure::Refused(refusal)) if refusal.status.as_u16() == 403 => {
            found.warn(format!(
                "the role cannot be checked: to have that, grant `read` on `{mount}/roles/{name}`"
            ));
            None
        }
        // The probe has found it.
        Err(Failure::Refused(refusal)) if refusal.status.as_u16() == 404 => None,
        Err(_) if !found.problems.is_empty() => None,
        Err(failure) => {
            let error = failure.into_error("show the role");
            found.warn(format!("the role cannot be checked: {error}"));
            None
        }
    }
}

/// A root that lives no longer is worth a word.
const ROOT_NEARLY_OVER: Duration = Duration::from_secs(60 * 24 * 3600);

fn trust(issuer: &VaultIssuer, survey: &Survey, found: &mut Findings) {
    let conf = issuer.client.conf();
    let mount = conf.mount();
    let now = issuer.clock.now();
    for root in survey.trusted.roots() {
        let left = root.validity().remaining(now);
        if left < ROOT_NEARLY_OVER {
            found.warn(format!(
                "the root `{}` ends in {} days: make the next one, and remove this one once nothing needs it",
                root.subject(),
                left.as_secs() / (24 * 3600)
            ));
        }
    }
    found.warnings.extend(survey.notes.iter().cloned());
    if survey.lacks_key()
        && let Some(name) = &conf.issuer
    {
        let signers = survey.listed.iter().flatten();
        let signers = signers.filter(|it| it.signs == Some(true));
        let mut signers: Vec<_> = signers.map(|it| format!("`{}`", it.called())).collect();
        signers.sort();
        let others = match signers.as_slice() {
            [] => "none has".to_owned(),
            _ => format!("those that have one: {}", signers.join(", ")),
        };
        let command = issuer.client.known_product().command();
        let problem = format!(
            "the issuer `{name}` has no key in `{mount}`, so it signs nothing: import its key with `{command} write {mount}/issuers/import/bundle pem_bundle=@ca-and-key.pem`, or set `issuer` to another ({others})"
        );
        found.problem(Error::new(ErrorKind::InvalidConfig, problem));
    }
    if !survey.beyond.is_empty() {
        let roots: Vec<_> = survey.beyond.iter().map(ToString::to_string).collect();
        let setting = match conf.ca_cert {
            Some(_) => "add it to `caCert`",
            None => "name its issuer in `alsoTrust`",
        };
        found.warn(format!(
            "`{mount}` holds roots that are not trusted: {}. If one is of the next CA, {setting}",
            roots.join(", ")
        ));
    }
    if let Some(name) = &conf.issuer
        && conf.ca_cert.is_none()
        && conf.also_trust.is_empty()
    {
        found.warn(format!(
            "`issuer` pins `{name}`, and nothing announces the next one: its root will be known only when it signs, and every renewal waits then until all proxies know it. Before you change `issuer`, name the next issuer, or its root, in `alsoTrust`"
        ));
    }
}

/// Looks at the CA that signs, and at those above it.
async fn authority(
    issuer: &VaultIssuer,
    of_role: Option<&str>,
    trusted: Option<&TrustBundle>,
    found: &mut Findings,
) {
    let conf = issuer.client.conf();
    let mount = conf.mount();
    let pinned = conf.issuer.as_deref();
    let signs = pinned.or(of_role).unwrap_or("default");
    let unseen = |why: String| format!("the CA that signs cannot be looked at: {why}");
    let info = match issuer.issuer(mount, signs).await {
        Ok(Some(info)) => info,
        // The probe or the look at the mount has found why.
        Ok(None) => return,
        Err(error) => return found.warn(unseen(error.to_string())),
    };
    let wanted = Wanted {
        trust_domain: &issuer.settings.trust_domain,
        lifetime: issuer.settings.lifetime,
        intermediates: issuer.settings.intermediates,
        now: issuer.clock.now(),
    };
    let chain = match certificates(&[info.pem()]) {
        Ok(chain) => chain,
        Err(error) => return found.warn(unseen(error.to_string())),
    };
    let command = issuer.client.known_product().command();
    let mut anchors = chain.iter().filter(|it| ca::is_anchor(it)).peekable();
    if let (Some(trusted), Some(anchor)) = (trusted, anchors.peek().copied()) {
        let root = ca::subject(anchor);
        // A root that was renewed has the name and key of the one before.
        let known = |anchor: &CertificateDer<'_>| {
            let name = ca::subject(anchor);
            let mut roots = trusted.roots().iter();
            roots.any(|root| root.subject() == name)
        };
        if !anchors.any(known) {
            let repair = match conf.ca_cert {
                Some(_) => "add that root to `caCert`".to_owned(),
                None => format!("set `issuer` to `{signs}`"),
            };
            let problem = format!(
                "the CA that signs leads to the root `{root}`, which is not trusted, so all that it signs is refused: {repair}"
            );
            found.problem(Error::new(ErrorKind::InvalidConfig, problem));
        }
    }
    for certificate in chain {
        let anchor = ca::is_anchor(&certificate);
        let judgement = ca::judge(&certificate, anchor, wanted);
        let subject = ca::subject(&certificate);
        let renew = match anchor {
            true => format!(
                "`{command} write {mount}/root/rotate/internal issuer_name=next common_name=… key_type=ec ttl=87600h`"
            ),
            false => format!(
                "`{command} write {mount}/intermediate/generate/internal common_name=… key_type=ec`, have the CSR signed, and import it with `{command} write {mount}/intermediate/set-signed certificate=@ca.pem`"
            ),
        };
        if !judgement.faults.is_empty() {
            let problem = format!(
                "the CA `{subject}` cannot be used: it {}. Make another one: {renew}",
                judgement.faults.join("; it ")
            );
            found.problem(Error::new(ErrorKind::InvalidConfig, problem));
        }
        for doubt in judgement.doubts {
            found.warn(format!("the CA `{subject}` {doubt}"));
        }
    }
}

/// Looks at the token by what the server knows of it. One that may not look itself up is not suspected.
async fn token(issuer: &VaultIssuer, found: &mut Findings) {
    let Ok(call) = api::call(&LookupTokenSelfRequest::default()) else {
        return;
    };
    let Ok(told) = issuer.ask::<TokenInfo>(&call).await else {
        return;
    };
    let token = told.data;
    let endless = token.expire_time.is_none() || token.period.is_some_and(|period| period > 0);
    if let VaultAuth::Token(_) = issuer.client.conf().auth
        && !endless
    {
        found.warn(format!(
            "the token of `auth.token` has a maximum lifetime, and somebody must replace it before that ends: use one with a `period` (`{} token create -policy=… -period=24h`), or another way to log in",
            issuer.client.known_product().command()
        ));
    }
    if let Some(uses @ 1..) = token.num_uses {
        found.warn(format!(
            "the token ends after {uses} more requests: let its role give tokens without `token_num_uses`"
        ));
    }
    let policies = token.policies.unwrap_or_default();
    if policies.iter().any(|policy| policy == "root") {
        found.warn(
            "the token is a root token, which may do everything: use one with the policy of the guide",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(problems: &[(ErrorKind, Retry, &str)], warnings: &[&str]) -> Findings {
        let mut found = Findings::default();
        for (kind, retry, text) in problems {
            found.problem(Error::new(*kind, (*text).to_owned()).with_retry(*retry));
        }
        warnings.iter().for_each(|warning| found.warn(*warning));
        found
    }

    const ROLE: (ErrorKind, Retry, &str) = (ErrorKind::Denied, Retry::Never, "the role");
    const CA: (ErrorKind, Retry, &str) = (ErrorKind::InvalidConfig, Retry::Backoff, "the CA");

    #[test]
    fn one_report_has_everything() {
        let error = found(&[ROLE], &[]).report(false).unwrap_err();
        assert_eq!(error.to_string(), "the role");
        let error = found(&[CA, ROLE, CA], &["old"]).report(false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "2 things keep it from signing: (1) the CA; (2) the role; beside that: (1) old"
        );
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::InvalidConfig, Retry::Never)
        );
        let report = found(&[], &["old"]).report(false).unwrap();
        assert_eq!(report.warnings, ["old"]);
    }

    #[test]
    fn a_signature_outranks_what_was_concluded() {
        let report = found(&[ROLE], &["old"]).report(true).unwrap();
        let [first, second] = report.warnings.as_slice() else {
            panic!("{report:?}")
        };
        assert!(first.ends_with("but: the role"), "{first}");
        assert_eq!(second, "old");
        let mut away = found(&[CA], &[]);
        away.certain = true;
        away.report(true).unwrap_err();
    }
}
