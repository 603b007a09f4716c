//! What can be seen of a CA by its certificate, before it signs anything.
//!
//! The proof is core's, once there is a certificate to prove. This only says beforehand, and in an operator's words, what
//! that proof is going to find.

use std::time::{Duration, SystemTime};

use meshca_core::TrustDomain;
use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::{ObjectIdentifier, Uint};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use x509_cert::der::oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, ID_EC_PUBLIC_KEY, ID_RSASSA_PSS,
    RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1, SECP_521_R_1, SHA_256_WITH_RSA_ENCRYPTION,
    SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};
use x509_cert::der::oid::db::rfc8410::ID_ED_25519;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, NameConstraints};

/// The signatures that are verified (RFC 4055, RFC 5758, RFC 8410).
const VERIFIED: [ObjectIdentifier; 8] = [
    SHA_256_WITH_RSA_ENCRYPTION,
    SHA_384_WITH_RSA_ENCRYPTION,
    SHA_512_WITH_RSA_ENCRYPTION,
    ID_RSASSA_PSS,
    ECDSA_WITH_SHA_256,
    ECDSA_WITH_SHA_384,
    ECDSA_WITH_SHA_512,
    ID_ED_25519,
];

/// The smallest RSA key whose signatures are verified.
const RSA_BITS: usize = 2048;

/// Whether a certificate bears the name of its issuer, as roots do.
pub(crate) fn is_anchor(der: &CertificateDer<'_>) -> bool {
    Certificate::from_der(der).is_ok_and(|certificate| {
        let tbs = certificate.tbs_certificate();
        tbs.subject() == tbs.issuer()
    })
}

/// What a CA is wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) trust_domain: &'a TrustDomain,
    /// The lifetime of what it signs.
    pub(crate) lifetime: Duration,
    /// Whether it signs CAs, or leaves.
    pub(crate) intermediates: bool,
    pub(crate) now: SystemTime,
}

/// What was found. Each is the rest of a sentence that begins with the name of the CA.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// Nothing that it signs will be verified.
    pub(crate) faults: Vec<String>,
    /// It may work, or will for a while.
    pub(crate) doubts: Vec<String>,
}

/// The subject, for messages.
pub(crate) fn subject(der: &CertificateDer<'_>) -> String {
    match Certificate::from_der(der) {
        Ok(certificate) => certificate.tbs_certificate().subject().to_string(),
        Err(_) => "(a certificate that cannot be read)".to_owned(),
    }
}

/// Judges a CA on the way from a leaf to its root. `anchor`: whether it is the root, of which only the key and the
/// restrictions count.
pub(crate) fn judge(der: &CertificateDer<'_>, anchor: bool, wanted: Wanted<'_>) -> Judgement {
    let mut found = Judgement::default();
    let Ok(certificate) = Certificate::from_der(der) else {
        found.doubts.push("cannot be read here".to_owned());
        return found;
    };
    let tbs = certificate.tbs_certificate();
    if !anchor && !VERIFIED.contains(&certificate.signature_algorithm().oid) {
        found.faults.push(format!(
            "is signed with an algorithm that is not accepted ({})",
            certificate.signature_algorithm().oid
        ));
    }
    found.faults.extend(weak_key(&certificate));
    match tbs.get_extension::<BasicConstraints>() {
        Ok(Some((
            _,
            BasicConstraints {
                ca: true,
                path_len_constraint,
            },
        ))) => {
            if wanted.intermediates && path_len_constraint == Some(0) {
                found
                    .faults
                    .push("may not have a CA below it (its path length is 0)".to_owned());
            }
        }
        Ok(_) => found
            .faults
            .push("is not a CA's certificate (BasicConstraints cA is not set)".to_owned()),
        Err(_) => found
            .doubts
            .push("has a BasicConstraints extension that cannot be read here".to_owned()),
    }
    match tbs.get_extension::<KeyUsage>() {
        Ok(Some((_, usage))) if !usage.key_cert_sign() => found
            .faults
            .push("may not sign certificates (its key usage lacks `keyCertSign`)".to_owned()),
        Ok(_) => {}
        Err(_) => found
            .doubts
            .push("has a KeyUsage extension that cannot be read here".to_owned()),
    }
    if let Ok(Some((_, ExtendedKeyUsage(purposes)))) = tbs.get_extension()
        && ![ID_KP_SERVER_AUTH, ID_KP_CLIENT_AUTH]
            .iter()
            .all(|one| purposes.contains(one))
    {
        found.faults.push(
            "is restricted to other purposes than server and client authentication".to_owned(),
        );
    }
    names(&certificate, wanted.trust_domain, &mut found);
    let not_after = tbs.validity().not_after.to_system_time();
    match not_after.duration_since(wanted.now) {
        Err(_) => found.faults.push("has ended".to_owned()),
        Ok(left) if left < wanted.lifetime => found.doubts.push(format!(
            "ends in {} h, and certificates for {} h are asked for: they will be shorter",
            left.as_secs() / 3600,
            wanted.lifetime.as_secs() / 3600
        )),
        Ok(left) if !anchor && left < NEARLY_OVER => found
            .doubts
            .push(format!("ends in {} days", left.as_secs() / (24 * 3600))),
        Ok(_) => {}
    }
    if tbs.validity().not_before.to_system_time() > wanted.now {
        found
            .doubts
            .push("is not valid yet: compare the clocks".to_owned());
    }
    let critical = tbs.extensions().into_iter().flatten();
    for extension in critical.filter(|it| it.critical && !KNOWN.contains(&it.extn_id)) {
        found.doubts.push(format!(
            "has a critical extension that peers may refuse ({}): have its issuer not mark it as critical",
            named(extension.extn_id)
        ));
    }
    found
}

/// An intermediate that lives no longer is worth a word.
const NEARLY_OVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// The extensions that every verifier knows.
const KNOWN: [ObjectIdentifier; 4] = [
    BasicConstraints::OID,
    KeyUsage::OID,
    ExtendedKeyUsage::OID,
    NameConstraints::OID,
];

fn named(extension: ObjectIdentifier) -> String {
    use x509_cert::ext::pkix::{CertificatePolicies, PolicyConstraints};
    match extension {
        CertificatePolicies::OID => "certificatePolicies".to_owned(),
        PolicyConstraints::OID => "policyConstraints".to_owned(),
        other => other.to_string(),
    }
}

fn weak_key(certificate: &Certificate) -> Option<String> {
    let key = certificate.tbs_certificate().subject_public_key_info();
    let parameters = key.algorithm.parameters.as_ref();
    match key.algorithm.oid {
        RSA_ENCRYPTION => {
            // The modulus and the exponent (RFC 8017 appendix A.1.1).
            let numbers = Vec::<Uint>::from_der(key.subject_public_key.raw_bytes()).ok()?;
            let bytes = numbers.first()?.as_bytes();
            let unused = bytes.first().map_or(0, |first| first.leading_zeros());
            let bits = (bytes.len() * 8).saturating_sub(unused as usize);
            (bits < RSA_BITS)
                .then(|| format!("has an RSA key of {bits} bits, and {RSA_BITS} are needed"))
        }
        ID_EC_PUBLIC_KEY => {
            let curve = parameters?.decode_as::<ObjectIdentifier>().ok()?;
            let known = [SECP_256_R_1, SECP_384_R_1, SECP_521_R_1].contains(&curve);
            (!known).then(|| {
                format!("has a key of a curve that is not accepted ({curve}): use P-256 or P-384")
            })
        }
        ID_ED_25519 => None,
        other => Some(format!(
            "has a key of a type that is not accepted ({other})"
        )),
    }
}

/// URI constraints bind the host of a URI, which is the trust domain of a SPIFFE ID (RFC 5280 §4.2.1.10).
fn names(certificate: &Certificate, trust_domain: &TrustDomain, found: &mut Judgement) {
    let constraints = match certificate.tbs_certificate().get_extension() {
        Ok(None) => return,
        Ok(Some((_, constraints))) => constraints,
        Err(_) => {
            found
                .doubts
                .push("has name constraints that cannot be read here".to_owned());
            return;
        }
    };
    let NameConstraints {
        permitted_subtrees,
        excluded_subtrees,
    } = constraints;
    let uris = |subtrees: Option<Vec<_>>| -> Vec<String> {
        let subtrees = subtrees.into_iter().flatten();
        let uri =
            |subtree: x509_cert::ext::pkix::constraints::name::GeneralSubtree| match subtree.base {
                GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().to_owned()),
                _ => None,
            };
        subtrees.filter_map(uri).collect()
    };
    let (permitted, excluded) = (uris(permitted_subtrees), uris(excluded_subtrees));
    let host = trust_domain.as_str();
    let covers = |constraint: &String| match constraint.strip_prefix('.') {
        Some(parent) => host
            .strip_suffix(parent)
            .is_some_and(|rest| rest.ends_with('.')),
        None => constraint == host,
    };
    if excluded.iter().any(covers) || !(permitted.is_empty() || permitted.iter().any(covers)) {
        found.faults.push(format!(
            "is constrained to other names than those of the trust domain `{trust_domain}`"
        ));
    } else if !(permitted.is_empty() && excluded.is_empty()) {
        found
            .doubts
            .push("has name constraints on URIs, which not every verifier supports".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    };
    use x509_cert::der::Encode;
    use x509_cert::der::asn1::Ia5String;
    use x509_cert::ext::pkix::constraints::name::GeneralSubtree;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000
    }

    fn ca(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = ((now() - DAY).into(), (now() + DAY * 1000).into());
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn judged(der: &CertificateDer<'_>, intermediates: bool) -> Judgement {
        let wanted = Wanted {
            trust_domain: &TrustDomain::new("example.org").unwrap(),
            lifetime: DAY,
            intermediates,
            now: now(),
        };
        judge(der, false, wanted)
    }

    /// Name constraints on URIs, as a critical extension.
    fn uris(permitted: &[&str], excluded: &[&str]) -> CustomExtension {
        let subtrees = |uris: &[&str]| {
            let subtree = |uri: &&str| GeneralSubtree {
                base: GeneralName::UniformResourceIdentifier(Ia5String::new(uri).unwrap()),
                minimum: 0,
                maximum: None,
            };
            let subtrees: Vec<_> = uris.iter().map(subtree).collect();
            (!subtrees.is_empty()).then_some(subtrees)
        };
        let constraints = NameConstraints {
            permitted_subtrees: subtrees(permitted),
            excluded_subtrees: subtrees(excluded),
        };
        custom(&[2, 5, 29, 30], constraints.to_der().unwrap())
    }

    fn custom(oid: &[u64], content: Vec<u8>) -> CustomExtension {
        let mut extension = CustomExtension::from_oid_content(oid, content);
        extension.set_criticality(true);
        extension
    }

    #[test]
    fn what_is_wrong_with_a_ca_is_seen_before_it_signs() {
        let named =
            |extension: CustomExtension| ca(|params| params.custom_extensions = vec![extension]);
        for (what, der, fault, doubt) in [
            ("good", ca(|_| {}), "", ""),
            (
                "no key usage",
                ca(|params| params.key_usages.clear()),
                "",
                "",
            ),
            (
                "no keyCertSign",
                ca(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
                "lacks `keyCertSign`",
                "",
            ),
            (
                "a leaf",
                ca(|params| params.is_ca = IsCa::ExplicitNoCa),
                "is not a CA",
                "",
            ),
            (
                "servers only",
                ca(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
                "restricted to other purposes",
                "",
            ),
            (
                "both sides",
                ca(|params| {
                    params.extended_key_usages = vec![
                        ExtendedKeyUsagePurpose::ServerAuth,
                        ExtendedKeyUsagePurpose::ClientAuth,
                    ];
                }),
                "",
                "",
            ),
            (
                "ended",
                ca(|params| params.not_after = (now() - DAY / 2).into()),
                "has ended",
                "",
            ),
            (
                "nearly over",
                ca(|params| params.not_after = (now() + DAY * 20).into()),
                "",
                "ends in 20 days",
            ),
            (
                "shorter than what is asked for",
                ca(|params| params.not_after = (now() + DAY / 2).into()),
                "",
                "ends in 12 h",
            ),
            (
                "not yet valid",
                ca(|params| params.not_before = (now() + DAY).into()),
                "",
                "is not valid yet",
            ),
            (
                "these names",
                named(uris(&["example.org"], &[])),
                "",
                "not every verifier",
            ),
            (
                "names below",
                named(uris(&[".org"], &[])),
                "",
                "not every verifier",
            ),
            (
                "other names",
                named(uris(&["example.com", ".example.org"], &[])),
                "other names",
                "",
            ),
            (
                "not these names",
                named(uris(&[], &["example.org"])),
                "other names",
                "",
            ),
            (
                "not other names",
                named(uris(&[], &["example.com"])),
                "",
                "not every verifier",
            ),
            (
                "critical policies",
                named(custom(
                    &[2, 5, 29, 32],
                    vec![0x30, 0x06, 0x30, 0x04, 0x06, 0x02, 0x2a, 0x03],
                )),
                "",
                "certificatePolicies",
            ),
            ("garbage", vec![0x30, 0x00].into(), "", "cannot be read"),
        ] {
            let found = judged(&der, false);
            for (found, expected) in [(&found.faults, fault), (&found.doubts, doubt)] {
                match expected {
                    "" => assert!(found.is_empty(), "{what}: {found:?}"),
                    words => {
                        assert_eq!(found.len(), 1, "{what}: {found:?}");
                        assert!(found[0].contains(words), "{what}: {found:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_ca_above_cas_needs_room_below_it() {
        for (room, found) in [(0, 1), (1, 0)] {
            let der = ca(|params| {
                params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(room));
            });
            assert_eq!(judged(&der, true).faults.len(), found);
            assert!(judged(&der, false).faults.is_empty());
        }
    }

    #[test]
    fn of_an_anchor_the_signature_does_not_count() {
        // The name of the algorithm occurs twice: ecdsa-with-SHA224 differs in its last byte from ecdsa-with-SHA256.
        let mut der = ca(|_| {}).to_vec();
        let sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        for at in 0..der.len() - sha256.len() {
            if der[at..].starts_with(&sha256) {
                der[at + 7] = 0x01;
            }
        }
        let old = CertificateDer::from(der);
        let wanted = Wanted {
            trust_domain: &TrustDomain::new("example.org").unwrap(),
            lifetime: DAY,
            intermediates: false,
            now: now(),
        };
        assert_eq!(judge(&old, true, wanted), Judgement::default());
        assert!(judge(&old, false, wanted).faults[0].contains("not accepted"));
        let domain = TrustDomain::new("example.org").unwrap();
        let bundle = meshca_core::TrustBundle::new(domain.clone(), [old]).unwrap();
        assert!(bundle.roots()[0].is_self_signed());
        // A known algorithm is verified: this one bears its own name and is signed by another key.
        let altered = {
            let mut der = ca(|_| {}).to_vec();
            let last = der.len() - 1;
            der[last] ^= 1;
            CertificateDer::from(der)
        };
        let bundle = meshca_core::TrustBundle::new(domain, [altered]).unwrap();
        assert!(!bundle.roots()[0].is_self_signed());
    }
}
