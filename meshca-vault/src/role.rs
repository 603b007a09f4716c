//! What a role will say about the certificates of a mesh.

use std::time::Duration;

use meshca_core::resource::VaultConf;

use crate::api::Role;
use crate::settings::VaultSettings;

/// A longer command would be cut by whatever shows it.
const MAX_COMMAND: usize = 1024;

/// The bits of the keys of workloads (P-256).
const KEY_BITS: u64 = 256;

/// OIDs of the extended key usages (RFC 5280 §4.2.1.12).
const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH: &str = "1.3.6.1.5.5.7.3.2";

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// Everything for which it issues nothing of use, and one command that repairs it.
    pub(crate) problem: Option<String>,
    pub(crate) warnings: Vec<String>,
}

/// What is wrong, and the parameters of the role that repair it.
#[derive(Default)]
struct Faults {
    texts: Vec<String>,
    /// In the form of the command line; the values are quoted for a shell.
    parameters: Vec<String>,
}

impl Faults {
    fn add(&mut self, text: impl Into<String>, parameter: &str, value: &str) {
        self.texts.push(text.into());
        self.parameters
            .push(format!("{parameter}={}", quoted(value)));
    }
}

/// Judges a role for certificates of leaves.
pub(crate) fn judge(
    role: &Role,
    conf: &VaultConf,
    settings: &VaultSettings,
    command: &str,
) -> Judgement {
    let (mount, name) = (conf.mount(), conf.role.as_str());
    let mut faults = Faults::default();
    names(role, settings, &mut faults);
    common_name(role, conf, &mut faults);
    usages(role, &mut faults);
    if let Some(key_type) = &role.key_type {
        match key_type.as_str() {
            "any" => {}
            "ec" if role.key_bits.is_none_or(|bits| bits <= KEY_BITS) => {}
            "ec" => faults.add(
                format!(
                    "it wants keys of {} bits, and workloads have P-256 ones: set `key_type=any` on it",
                    role.key_bits.unwrap_or_default()
                ),
                "key_type",
                "any",
            ),
            other => faults.add(
                format!(
                    "it signs `{other}` keys only, and workloads have P-256 ones: set `key_type=any` or `key_type=ec` on it"
                ),
                "key_type",
                "any",
            ),
        }
        if faults
            .parameters
            .last()
            .is_some_and(|it| it == "key_type=any")
        {
            // The bits of the other type would stay.
            faults.parameters.push("key_bits=0".to_owned());
        }
    }
    let problem = (!faults.texts.is_empty()).then(|| {
        let repair = format!(
            "{command} patch {mount}/roles/{name} {}",
            faults.parameters.join(" ")
        );
        let repair = match repair.len() {
            0..=MAX_COMMAND => format!(". One command repairs it: `{repair}`"),
            _ => String::new(),
        };
        format!(
            "the role `{name}` issues nothing that this mesh can use: {}{repair}",
            faults.texts.join("; ")
        )
    });
    Judgement {
        problem,
        warnings: warnings(role, name, settings.lifetime),
    }
}

fn names(role: &Role, settings: &VaultSettings, faults: &mut Faults) {
    let trust_domain = &settings.trust_domain;
    let mut needed = vec![format!("spiffe://{trust_domain}/")];
    if settings.tag_uris {
        needed.push("kuma://".to_owned());
    }
    needed.retain(|prefix| !role.allows(prefix));
    let missing: Vec<_> = needed.iter().map(|prefix| format!("`{prefix}*`")).collect();
    if !missing.is_empty() {
        let text = format!(
            "it does not allow the URIs of this mesh: add {} to its `allowed_uri_sans`",
            missing.join(" and ")
        );
        let added = needed.iter().map(|prefix| format!("{prefix}*"));
        let all: Vec<_> = role.allowed_uri_sans.iter().cloned().chain(added).collect();
        faults.add(text, "allowed_uri_sans", &all.join(","));
    }
}

fn common_name(role: &Role, conf: &VaultConf, faults: &mut Faults) {
    let unchecked = role
        .cn_validations
        .as_ref()
        .is_some_and(|kinds| matches!(kinds.as_slice(), [one] if one == "disabled"));
    match &conf.common_name {
        None if role.require_cn == Some(true) => faults.add(
            "it insists on a common name, which a SPIFFE certificate has not: set `require_cn=false` on it, or `commonName` here",
            "require_cn",
            "false",
        ),
        None => {}
        Some(_) if role.allow_any_name || unchecked => {}
        // Whether it allows a name that a template makes depends on the workload.
        Some(_) if role.allowed_domains.as_ref().is_none_or(Vec::is_empty) => faults.add(
            "it allows no common name, and `commonName` asks for one: set `allowed_domains` and `allow_subdomains=true` on it",
            "allow_any_name",
            "true",
        ),
        Some(_) if !(role.allow_bare_domains || role.allow_subdomains || role.allow_glob_domains) => {
            faults.add(
                "it has `allowed_domains` and allows neither them nor what is below them, and `commonName` asks for a name: set `allow_subdomains=true` on it",
                "allow_subdomains",
                "true",
            );
        }
        Some(_) => {}
    }
}

fn usages(role: &Role, faults: &mut Faults) {
    let has = |list: &Option<Vec<String>>, usage: &str| {
        let mut list = list.iter().flatten();
        list.any(|one| one.trim().eq_ignore_ascii_case(usage))
    };
    for (flag, value, side, usage, oid) in [
        (
            "server_flag",
            role.server_flag,
            "server",
            "ServerAuth",
            SERVER_AUTH,
        ),
        (
            "client_flag",
            role.client_flag,
            "client",
            "ClientAuth",
            CLIENT_AUTH,
        ),
    ] {
        let listed = has(&role.ext_key_usage, usage) || has(&role.ext_key_usage_oids, oid);
        if value == Some(false) && !listed {
            faults.add(
                format!(
                    "its certificates are of no use to a {side} (extended key usage), and a proxy is both: set `{flag}=true` on it"
                ),
                flag,
                "true",
            );
        }
    }
    if role.key_usage.is_none() {
        return;
    }
    let signs_certificates = has(&role.key_usage, "CertSign") || has(&role.key_usage, "CRLSign");
    if !has(&role.key_usage, "DigitalSignature") {
        faults.add(
            "its certificates lack the key usage `DigitalSignature`, without which no peer takes them (SPIFFE X.509-SVID §4.3, TLS 1.3): set `key_usage=DigitalSignature,KeyEncipherment` on it",
            "key_usage",
            "DigitalSignature,KeyEncipherment",
        );
    } else if signs_certificates {
        faults.add(
            "its certificates may sign certificates or CRLs, which no workload may (SPIFFE X.509-SVID §4.3): set `key_usage=DigitalSignature,KeyEncipherment` on it",
            "key_usage",
            "DigitalSignature,KeyEncipherment",
        );
    }
}

fn warnings(role: &Role, name: &str, lifetime: Duration) -> Vec<String> {
    let mut warnings = Vec::new();
    let max = Duration::from_secs(role.max_ttl);
    if !max.is_zero() && max < lifetime {
        warnings.push(format!(
            "the role `{name}` gives {} s at most, and {} s are asked for: certificates will be renewed earlier; raise `max_ttl` or ask for less",
            max.as_secs(),
            lifetime.as_secs()
        ));
    }
    if role.not_after.as_ref().is_some_and(|end| !end.is_empty()) {
        warnings.push(format!(
            "the role `{name}` ends every certificate at its `not_after`, whatever was asked for: set `not_after=''`"
        ));
    }
    if role.use_csr_sans == Some(true) {
        warnings.push(format!(
            "the role `{name}` takes the names from the CSR: with `use_csr_sans=false`, it takes those that this control plane vouches for"
        ));
    }
    if !role.no_store {
        warnings.push(format!(
            "the role `{name}` has every certificate stored: with `no_store=true` it is faster and does not grow"
        ));
    }
    if role.generate_lease {
        warnings.push(format!(
            "the role `{name}` has a lease kept for every certificate, until a quota is used up: set `generate_lease=false`"
        ));
    }
    warnings
}

/// A value as an argument in a shell.
pub(crate) fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,/:".contains(c);
    match !value.is_empty() && value.chars().all(plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', r"'\''")),
    }
}

impl Role {
    /// Whether a pattern may allow a URI that begins like this. `*` stands for anything, `/` included; templates are
    /// filled in by the server from whoever asks, so nobody else can tell.
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
    use meshca_core::TrustDomain;
    use meshca_core::resource::{DataSource, VaultAuth};
    use serde_json::{Value, json};

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

    /// A role that is good, as a server shows it.
    fn good() -> Value {
        json!({
            "allowed_uri_sans": ["spiffe://example.org/*"], "require_cn": false, "use_csr_sans": false, "no_store": true,
            "server_flag": true, "client_flag": true, "key_type": "any", "key_bits": 0, "max_ttl": 0,
            "key_usage": ["DigitalSignature", "KeyAgreement", "KeyEncipherment"],
            "ext_key_usage": [], "ext_key_usage_oids": [], "allowed_domains": [], "cn_validations": ["email", "hostname"],
            "issuer_ref": "default", "not_after": "", "generate_lease": false,
        })
    }

    fn judged(change: Value, common_name: Option<&str>) -> Judgement {
        let mut role = good();
        for (name, value) in change.as_object().unwrap() {
            role[name] = value.clone();
        }
        let token = VaultAuth::Token(DataSource::Secret("t".to_owned()));
        let mut conf = VaultConf::new("https://vault.example", "mesh-dp", token);
        conf.common_name = common_name.map(|text| text.parse().unwrap());
        let settings = VaultSettings::new(conf.clone(), TrustDomain::new("example.org").unwrap());
        judge(
            &serde_json::from_value(role).unwrap(),
            &conf,
            &settings,
            "vault",
        )
    }

    #[test]
    fn what_is_wrong_with_a_role_comes_at_once_with_one_command() {
        let command = |rest: &str| format!("`vault patch pki/roles/mesh-dp {rest}`");
        for (change, common_name, words, repair) in [
            (json!({}), None, vec![], None),
            (
                // The role of a tutorial.
                json!({
                    "allowed_uri_sans": [], "allowed_domains": ["mesh.example"], "allow_subdomains": true,
                    "require_cn": true, "key_type": "rsa", "key_bits": 2048, "key_usage": [], "client_flag": false,
                }),
                None,
                vec![
                    "`spiffe://example.org/*`",
                    "`require_cn=false`",
                    "`key_type=any`",
                    "`DigitalSignature`",
                    "`client_flag=true`",
                ],
                Some(
                    "allowed_uri_sans='spiffe://example.org/*' require_cn=false client_flag=true key_usage=DigitalSignature,KeyEncipherment key_type=any key_bits=0",
                ),
            ),
            (
                json!({"allowed_uri_sans": ["spiffe://other/it's"]}),
                None,
                vec!["`spiffe://example.org/*`"],
                Some(r"allowed_uri_sans='spiffe://other/it'\''s,spiffe://example.org/*'"),
            ),
            (
                json!({"server_flag": false, "client_flag": false, "ext_key_usage": ["serverauth"], "ext_key_usage_oids": [CLIENT_AUTH]}),
                None,
                vec![],
                None,
            ),
            (
                json!({"server_flag": false, "ext_key_usage": ["Any"]}),
                None,
                vec!["no use to a server"],
                Some("server_flag=true"),
            ),
            (
                json!({"key_type": "ec", "key_bits": 256}),
                None,
                vec![],
                None,
            ),
            (
                json!({"key_type": "ec", "key_bits": 384}),
                None,
                vec!["384 bits"],
                Some("key_type=any key_bits=0"),
            ),
            (
                json!({"key_usage": ["KeyEncipherment"]}),
                None,
                vec!["`DigitalSignature`"],
                Some("key_usage=DigitalSignature,KeyEncipherment"),
            ),
            (
                json!({"key_usage": ["digitalsignature", "CertSign"]}),
                None,
                vec!["which no workload may"],
                Some("key_usage=DigitalSignature,KeyEncipherment"),
            ),
            (
                json!({"require_cn": true, "allow_any_name": true}),
                Some("mesh"),
                vec![],
                None,
            ),
            (
                json!({"cn_validations": ["disabled"]}),
                Some("mesh"),
                vec![],
                None,
            ),
            (
                json!({"allowed_domains": ["mesh"], "allow_subdomains": true}),
                Some("a.mesh"),
                vec![],
                None,
            ),
            (
                json!({"allowed_domains": ["mesh"]}),
                Some("a.mesh"),
                vec!["`allow_subdomains=true`"],
                Some("allow_subdomains=true"),
            ),
            (
                json!({}),
                Some("mesh"),
                vec!["allows no common name"],
                Some("allow_any_name=true"),
            ),
            // An older server does not say everything, and what it does not say is not held against it.
            (
                json!({"key_usage": null, "ext_key_usage": null, "cn_validations": null, "key_type": null}),
                None,
                vec![],
                None,
            ),
        ] {
            let problem = judged(change.clone(), common_name)
                .problem
                .unwrap_or_default();
            for word in &words {
                assert!(
                    problem.contains(word),
                    "{change}: `{word}` is missing in: {problem}"
                );
            }
            match repair {
                Some(repair) => assert!(problem.ends_with(&command(repair)), "{change}: {problem}"),
                None => assert_eq!(problem, "", "{change}"),
            }
        }
    }

    #[test]
    fn what_will_be_regretted_is_a_warning() {
        for (change, words) in [
            (json!({"max_ttl": 600}), "gives 600 s at most"),
            (json!({"not_after": "2030-01-01T00:00:00Z"}), "`not_after`"),
            (
                json!({"use_csr_sans": true}),
                "takes the names from the CSR",
            ),
            (json!({"no_store": false}), "`no_store=true`"),
            (json!({"generate_lease": true}), "`generate_lease=false`"),
        ] {
            let judgement = judged(change.clone(), None);
            assert_eq!(judgement.problem, None, "{change}");
            let [warning] = judgement.warnings.as_slice() else {
                panic!("{change}: {judgement:?}")
            };
            assert!(warning.contains(words), "{warning}");
        }
    }
}
