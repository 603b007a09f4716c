//! Tells an operator what is wrong before the first proxy asks.

use bytes::Bytes;
use http::Method;
use meshca_core::resource::VaultAuth;
use meshca_core::{CheckReport, Error, ErrorKind, Profile, Result};
use std::time::Duration;
use vaultrs::api::pki::requests::ReadRoleRequest;
use vaultrs::api::token::requests::LookupTokenSelfRequest;

use crate::api::{self, Role, TokenInfo};
use crate::client::Failure;
use crate::issuer::VaultIssuer;
use crate::transport::Call;

pub(crate) async fn check(issuer: &VaultIssuer) -> Result<CheckReport> {
    let mut report = CheckReport::new();
    // A caCert or client certificate that was replaced counts as it is now.
    issuer.client.reload().await?;
    report.warnings.extend(health(issuer).await?);
    issuer.sessions.token_now().await?;
    if issuer.settings.intermediates {
        probe(issuer, Profile::Intermediate { path_len: 0 }).await?;
    } else {
        probe(issuer, Profile::Workload).await?;
        report.warnings.extend(role(issuer).await?);
    }
    let now = issuer.clock.now();
    for root in issuer.bundle().await?.roots() {
        let left = root.validity().remaining(now);
        if left < ROOT_NEARLY_OVER {
            report = report.with_warning(format!(
                "the root `{}` ends in {} days: make the next one, and remove this one once nothing needs it",
                root.subject(),
                left.as_secs() / (24 * 3600)
            ));
        }
    }
    if let VaultAuth::Token(_) = issuer.client.conf().auth
        && ends(issuer).await
    {
        report = report.with_warning(
            "the token of `auth.token` has a maximum lifetime, and somebody must replace it before that ends: use one with a `period`, or another way to log in",
        );
    }
    if issuer.client.is_open() {
        report = report.with_warning(
            "the connection is not encrypted, so the token can be read on the way: use `https://`",
        );
    }
    let tls = issuer.client.conf().tls.as_ref();
    if tls.is_some_and(|tls| tls.skip_verify) {
        report = report.with_warning(
            "`tls.skipVerify` trusts any server with the token and with every identity: set `tls.caCert` instead",
        );
    }
    Ok(report)
}

/// A root that lives no longer is worth a word.
const ROOT_NEARLY_OVER: Duration = Duration::from_secs(60 * 24 * 3600);

/// Whether the token ends for good some day. One that may not look itself up is not suspected.
async fn ends(issuer: &VaultIssuer) -> bool {
    let Ok(call) = api::call(&LookupTokenSelfRequest::default()) else {
        return false;
    };
    issuer.ask::<TokenInfo>(&call).await.is_ok_and(|told| {
        told.data.expire_time.is_some() && told.data.period.is_none_or(|period| period == 0)
    })
}

/// `sys/health` answers without a login, and with a status of its own for each state.
async fn health(issuer: &VaultIssuer) -> Result<Option<String>> {
    let answer = issuer.client.send(&api::get("sys/health"), None).await?;
    let address = issuer.client.address();
    let unavailable = |message: String| Err(Error::new(ErrorKind::Unavailable, message));
    match answer.status.as_u16() {
        200 | 204 | 429 | 473 => Ok(None),
        472 => unavailable(format!(
            "{address} is a secondary of Vault's disaster recovery, which serves nobody: use the address of the primary"
        )),
        501 => unavailable(format!(
            "the Vault at {address} is new and not initialised: run `vault operator init`"
        )),
        503 => unavailable(format!(
            "the Vault at {address} is sealed: unseal it with `vault operator unseal`"
        )),
        // A proxy that hides it, perhaps: what counts is whether it signs.
        status => Ok(Some(format!(
            "`sys/health` at {address} answers {status}, which no Vault does: is a proxy in between?"
        ))),
    }
}

/// Asks for a signature without saying for what: Vault looks at the policy, then at the role, and then refuses.
async fn probe(issuer: &VaultIssuer, profile: Profile) -> Result<()> {
    let call = Call {
        method: Method::POST,
        path: issuer.path_for(profile),
        body: Bytes::from_static(b"{}"),
    };
    match issuer.ask::<serde::de::IgnoredAny>(&call).await {
        Ok(_) => Ok(()),
        Err(Failure::Refused(refusal))
            if refusal.status.as_u16() == 400 && refusal.says("\"csr\" is empty") =>
        {
            Ok(())
        }
        Err(failure) => Err(issuer.refused(failure, profile)),
    }
}

/// What the role will say about the certificates of a mesh, if the policy lets us see it.
async fn role(issuer: &VaultIssuer) -> Result<Vec<String>> {
    let conf = issuer.client.conf();
    let (mount, name) = (conf.mount(), conf.role.as_str());
    let call = api::call(&ReadRoleRequest {
        mount: mount.to_owned(),
        name: name.to_owned(),
    })?;
    let role: Role = match issuer.ask(&call).await {
        Ok(told) => told.data,
        Err(Failure::Refused(refusal)) if refusal.status.as_u16() == 403 => {
            return Ok(vec![format!(
                "the role cannot be checked: to have that, grant `read` on `{mount}/roles/{name}`"
            )]);
        }
        Err(failure) => return Err(failure.into_error("show the role")),
    };
    judge(issuer, name, &role)
}

fn judge(issuer: &VaultIssuer, name: &str, role: &Role) -> Result<Vec<String>> {
    let denied = |message: String| Err(Error::new(ErrorKind::Denied, message));
    let mut warnings = Vec::new();
    let trust_domain = &issuer.settings.trust_domain;
    let mut needed = vec![format!("spiffe://{trust_domain}/")];
    if issuer.settings.tag_uris {
        needed.push("kuma://".to_owned());
    }
    let missing: Vec<_> = needed
        .iter()
        .filter(|prefix| !role.allows(prefix))
        .map(|prefix| format!("`{prefix}*`"))
        .collect();
    if !missing.is_empty() {
        return denied(format!(
            "the role `{name}` does not allow the URIs of this mesh: add {} to its `allowed_uri_sans`",
            missing.join(" and ")
        ));
    }
    let common_name = issuer.client.conf().common_name.is_some();
    if role.require_cn == Some(true) && !common_name {
        return denied(format!(
            "the role `{name}` insists on a common name, which a SPIFFE certificate has not: set `require_cn=false` on it, or `commonName` here"
        ));
    }
    for (flag, value, side) in [
        ("server_flag", role.server_flag, "server"),
        ("client_flag", role.client_flag, "client"),
    ] {
        if value == Some(false) {
            return denied(format!(
                "the role `{name}` makes certificates that are of no use to a {side}, and a proxy is both: set `{flag}=true` on it"
            ));
        }
    }
    if let Some(key_type) = &role.key_type
        && !matches!(key_type.as_str(), "any" | "ec")
    {
        return denied(format!(
            "the role `{name}` signs `{key_type}` keys only, and workloads have P-256 ones: set `key_type=any` or `key_type=ec` on it"
        ));
    }
    let max = Duration::from_secs(role.max_ttl);
    if !max.is_zero() && max < issuer.settings.lifetime {
        warnings.push(format!(
            "the role `{name}` gives {} s at most, and {} s are asked for: certificates will be renewed earlier; raise `max_ttl` or ask for less",
            max.as_secs(),
            issuer.settings.lifetime.as_secs()
        ));
    }
    if role.use_csr_sans == Some(true) {
        warnings.push(format!(
            "the role `{name}` takes the names from the CSR: with `use_csr_sans=false`, it takes those that this control plane vouches for"
        ));
    }
    if !role.no_store {
        warnings.push(format!(
            "the role `{name}` has Vault store every certificate: with `no_store=true` it is faster and does not grow"
        ));
    }
    if role.generate_lease {
        warnings.push(format!(
            "the role `{name}` has Vault keep a lease for every certificate, until a quota is used up: set `generate_lease=false`"
        ));
    }
    Ok(warnings)
}

impl Role {
    /// Whether a pattern may allow a URI that begins like this. `*` stands for anything, `/` included; templates are
    /// filled in by Vault from whoever asks, so nobody else can tell.
    fn allows(&self, prefix: &str) -> bool {
        self.allowed_uri_sans.iter().any(|pattern| {
            if self.allowed_uri_sans_template && pattern.contains("{{") {
                return true;
            }
            let (literal, open) = match pattern.split_once('*') {
                Some((literal, _)) => (literal, true),
                None => (pattern.as_str(), false),
            };
            literal.starts_with(prefix) || (open && prefix.starts_with(literal))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_allows_a_trust_domain_or_part_of_it() {
        for (pattern, allows) in [
            ("*", true),
            ("spiffe://*", true),
            ("spiffe://example.org/*", true),
            ("spiffe://example.org/ns/*/sa/*", true),
            ("spiffe://example.org/one", true),
            ("spiffe://example.org*", true),
            ("spiffe://example.org", false),
            ("spiffe://example.orgi/*", false),
            ("spiffe://other/*", false),
            ("SPIFFE://example.org/*", false),
            ("", false),
        ] {
            let role = Role {
                allowed_uri_sans: vec![pattern.to_owned()],
                ..Role::default()
            };
            assert_eq!(role.allows("spiffe://example.org/"), allows, "{pattern}");
        }
        let template = Role {
            allowed_uri_sans: vec!["{{identity.entity.metadata.id}}".to_owned()],
            allowed_uri_sans_template: true,
            ..Role::default()
        };
        assert!(template.allows("spiffe://example.org/"));
        assert!(!Role::default().allows("spiffe://example.org/"));
    }
}
