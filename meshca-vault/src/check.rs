//! Tells an operator what is wrong before the first proxy asks: all of it at once.

use bytes::Bytes;
use http::Method;
use meshca_core::issuer::{CaUse, Findings};
use meshca_core::resource::VaultAuth;
use meshca_core::{Error, ErrorKind, Profile, Result, SignedChain, TrustBundle, TrustRoot};
use vaultrs::api::pki::requests::ReadRoleRequest;
use vaultrs::api::token::requests::LookupTokenSelfRequest;

use crate::api::{self, Role, TokenInfo};
use crate::client::Failure;
use crate::issuer::VaultIssuer;
use crate::policy;
use crate::role;
use crate::transport::Call;
use crate::trust::Survey;

/// Looks at everything, also where something is wrong: an operator wants to hear of it together.
pub(crate) async fn check(issuer: &VaultIssuer, found: &mut Findings) {
    // A caCert or client certificate that was replaced counts as it is now.
    let reachable = match issuer.client.reload().await {
        Ok(_) => health(issuer, found).await,
        Err(error) => Err(error),
    };
    // Nothing else can be known of a server that is away or sealed.
    if let Err(error) = reachable {
        found.failure(error);
        return settings(issuer, found);
    }
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
                probe(issuer, profile, found).await;
            }
            if profile == Profile::Workload {
                signer = look_at_role(issuer, found).await;
            }
        }
        Err(error) => found.failure(error),
    }
    let mut trusted = None;
    match survey {
        Ok(survey) => {
            trust(issuer, &survey, found);
            trusted = Some(survey.trusted);
        }
        // The probe has found that the mount is missing.
        Err(error) if error.kind() == ErrorKind::NotFound && lacks_something(found) => {}
        Err(error) => found.problem(error),
    }
    authority(issuer, signer.as_deref(), trusted.as_ref(), found).await;
    if !found.has_failed() {
        token(issuer, found).await;
    }
    settings(issuer, found);
}

fn lacks_something(found: &Findings) -> bool {
    let mut problems = found.problems().iter();
    problems.any(|problem| problem.kind() == ErrorKind::NotFound)
}

/// Warns of settings that weaken the connection.
fn settings(issuer: &VaultIssuer, found: &mut Findings) {
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
}

/// `sys/health` answers without a login, and with a status of its own for each state.
async fn health(issuer: &VaultIssuer, found: &mut Findings) -> Result<()> {
    let answer = issuer.client.health().await?;
    let (address, product) = (issuer.client.address(), issuer.client.known_product());
    let command = product.command();
    let unavailable = |message: String| Err(Error::new(ErrorKind::Unavailable, message));
    match answer.status.as_u16() {
        200 | 204 | 429 | 473 => Ok(()),
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
        status => {
            found.warn(format!(
                "`sys/health` at {address} answers {status}, which neither Vault nor OpenBao does: is a proxy in between?"
            ));
            Ok(())
        }
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
        Err(failure) => {
            let policies = policies(issuer).await;
            found.problem(issuer.refused(failure, profile, policy::own(&policies)));
        }
    }
}

/// The policies of the token, as far as it may look itself up.
async fn policies(issuer: &VaultIssuer) -> Vec<String> {
    let token = look_up(issuer).await;
    token.and_then(|token| token.policies).unwrap_or_default()
}

async fn look_up(issuer: &VaultIssuer) -> Option<TokenInfo> {
    let call = api::call(&LookupTokenSelfRequest::default()).ok()?;
    let told = issuer.ask::<TokenInfo>(&call).await.ok()?;
    Some(told.data)
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
            for warning in judgement.warnings {
                found.warn(warning);
            }
            told.data.issuer_ref.filter(|issuer| !issuer.is_empty())
        }
        Err(Failure::Refused(refusal)) if refusal.status.as_u16() == 403 => {
            let path = format!("{mount}/roles/{name}");
            let policies = policies(issuer).await;
            let repair = policy::repair(refusal.product, policy::own(&policies), &path, "read");
            found.warn(format!(
                "the role cannot be checked: to have that, grant `read` on `{path}`. {repair}"
            ));
            None
        }
        // The probe has found it.
        Err(Failure::Refused(refusal)) if refusal.status.as_u16() == 404 => None,
        Err(_) if !found.problems().is_empty() => None,
        Err(failure) => {
            let error = failure.into_error("show the role");
            found.warn(format!("the role cannot be checked: {error}"));
            None
        }
    }
}

fn trust(issuer: &VaultIssuer, survey: &Survey, found: &mut Findings) {
    let conf = issuer.client.conf();
    let mount = conf.mount();
    // Signers of this mount replace their roots by themselves, others by the settings.
    found.judge_roots(&survey.trusted, wanted(issuer), &renewal(issuer, true));
    // Without the setting, a note of the survey says it.
    if conf.ca_cert.is_some() {
        found.judge_dead_ends(&survey.trusted, "caCert");
    }
    for note in &survey.notes {
        found.warn(note.clone());
    }
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

/// What the CA is for.
fn wanted(issuer: &VaultIssuer) -> CaUse {
    let (lifetime, now) = (issuer.settings.lifetime, issuer.clock.now());
    match issuer.settings.intermediates {
        true => CaUse::intermediates(lifetime, now),
        false => CaUse::leaves(lifetime, now),
    }
}

/// How to get a better CA.
fn renewal(issuer: &VaultIssuer, root: bool) -> String {
    let (mount, command) = (
        issuer.client.conf().mount(),
        issuer.client.known_product().command(),
    );
    match root {
        true => format!(
            "Make the next one: `{command} write {mount}/root/rotate/internal issuer_name=next common_name=… key_type=ec ttl=87600h`"
        ),
        false => format!(
            "Make the next one: `{command} write {mount}/intermediate/generate/internal common_name=… key_type=ec`, have the CSR signed, and import it with `{command} write {mount}/intermediate/set-signed certificate=@ca.pem`"
        ),
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
    let chain = match SignedChain::from_pem(&info.pem()) {
        Ok(chain) => chain,
        Err(error) => return found.warn(unseen(error.to_string())),
    };
    let roots = issuer.roots(&[info.pem()]).map(|roots| roots.bundle);
    if let (Some(trusted), Ok(roots)) = (trusted, roots)
        && let Some(root) = roots.roots().first()
    {
        // A root that was renewed has the name and key of the one before.
        let known = |root: &TrustRoot| {
            let mut trusted = trusted.roots().iter();
            trusted.any(|trusted| trusted.subject() == root.subject())
        };
        if !roots.roots().iter().any(known) {
            let repair = match conf.ca_cert {
                Some(_) => "add that root to `caCert`".to_owned(),
                None => format!("set `issuer` to `{signs}`"),
            };
            let problem = format!(
                "the CA that signs leads to the root `{}`, which is not trusted, so all that it signs is refused: {repair}",
                root.subject()
            );
            found.problem(Error::new(ErrorKind::InvalidConfig, problem));
        }
    }
    found.judge_authorities(&chain, wanted(issuer), |_, root| renewal(issuer, root));
}

/// Looks at the token by what the server knows of it. One that may not look itself up is not suspected.
async fn token(issuer: &VaultIssuer, found: &mut Findings) {
    let Some(token) = look_up(issuer).await else {
        return;
    };
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
