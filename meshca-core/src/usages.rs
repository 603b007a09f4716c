//! The uses that a certificate's extensions allow, by the rules of those who look at them: Envoy,
//! OpenSSL and Go.

use der::Encode;
use der::oid::AssociatedOid;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, CertificatePolicies, CrlDistributionPoints,
    ExtendedKeyUsage, InhibitAnyPolicy, KeyUsage, NameConstraints, PolicyConstraints,
    PolicyMappings, SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::serial_number::SerialNumber;

use crate::key::encoding::is_for_workloads;
use crate::x509::{CLIENT_AUTH, Parsed, SERVER_AUTH};

/// The purposes that a trust anchor allows.
///
/// An anchor need not be a certificate for RFC 5280. It is one for Envoy, Go and OpenSSL, and its
/// extended key usage binds all certificates below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purposes {
    pub(crate) server: bool,
    pub(crate) client: bool,
}

/// Checks the usages of a trust anchor. They never change, so this is done once for each root and not
/// for each path.
pub(crate) fn check_root(root: &Parsed<'_>) -> Result<Purposes, String> {
    { signs(root, true) }
        .and_then(|()| purposes(root))
        .map_err(|why| format!("`{}` {why}", root.subject()))
}

/// Reads the purposes that a CA allows. The error continues a sentence about it.
pub(crate) fn purposes(ca: &Parsed<'_>) -> Result<Purposes, &'static str> {
    match ca.extended_key_usage() {
        Ok(None) => Ok(Purposes {
            server: true,
            client: true,
        }),
        Ok(Some(purposes)) => Ok(Purposes {
            server: purposes.0.contains(&SERVER_AUTH),
            client: purposes.0.contains(&CLIENT_AUTH),
        }),
        Err(_) => Err("has a damaged ExtendedKeyUsage extension"),
    }
}

/// Checks that a CA may sign certificates (RFC 5280 §6.1.4 (n)), and that its extensions can be read.
/// webpki ignores key usages.
pub(crate) fn check_ca(ca: &Parsed<'_>) -> Result<(), String> {
    signs(ca, false).map_err(|why| format!("`{}` {why}", ca.subject()))
}

/// Does what [`check_ca`] and, for an anchor, [`check_root`] say. The error continues a sentence about
/// the CA.
pub(crate) fn signs(ca: &Parsed<'_>, anchor: bool) -> Result<(), &'static str> {
    match ca.key_usage() {
        Ok(Some(usage)) if !usage.key_cert_sign() => {
            return Err("may not sign certificates (its key usage lacks `keyCertSign`)");
        }
        Ok(_) => {}
        Err(_) => return Err("has a damaged KeyUsage extension"),
    }
    // No name of a CA counts, but a damaged one makes others refuse the certificate.
    if ca.subject_alt_names().is_err() {
        return Err("has a damaged SubjectAltName extension");
    }
    check_readable(ca, anchor)
}

/// Checks that a leaf is a workload's. The error continues a sentence about it.
///
/// A CA must not pass for a workload (SPIFFE X.509-SVID §5.2), and in TLS 1.3 each side that shows a
/// certificate signs with its key (RFC 8446 §4.4.2.2). Envoy takes a certificate without key usages for
/// one that has them all, those of a CA among them.
pub(crate) fn check_workload(leaf: &Parsed<'_>) -> Result<(), &'static str> {
    if !is_for_workloads(&leaf.public_key) {
        return Err(
            "has a key of a type that Envoy refuses in every handshake; use P-256, P-384 or RSA",
        );
    }
    match leaf.basic_constraints() {
        Ok(Some(constraints)) if constraints.ca => {
            return Err("is a CA's, which no workload may hold (X.509-SVID §5.2)");
        }
        Ok(Some(constraints)) if constraints.path_len_constraint.is_some() => {
            return Err("has a path length and is not a CA's (RFC 5280 §4.2.1.9)");
        }
        Ok(_) => {}
        Err(_) => return Err("has a damaged BasicConstraints extension"),
    }
    match leaf.key_usage() {
        Ok(Some(usage)) if usage.key_cert_sign() || usage.crl_sign() => {
            return Err("may sign certificates or CRLs, which no workload may (X.509-SVID §5.2)");
        }
        Ok(Some(usage)) if !usage.digital_signature() => {
            return Err(
                "lacks the key usage `digitalSignature` (X.509-SVID §4.3), which TLS 1.3 needs; add it to the CA's profile or role (`key_usage` of a role of Vault)",
            );
        }
        Ok(Some(_)) => {}
        Ok(None) => {
            return Err(
                "has no key usages (X.509-SVID §4.3), so Envoy refuses it; set the key usage `digitalSignature` in the CA's profile or role (`key_usage` of a role of Vault)",
            );
        }
        Err(_) => return Err("has a damaged KeyUsage extension"),
    }
    Ok(())
}

/// Checks those extensions that nothing else here reads: others read them all before they look at
/// anything, and refuse the certificate if they cannot. The error continues a sentence about it.
pub(crate) fn check_extensions(certificate: &Parsed<'_>) -> Result<(), &'static str> {
    check_readable(certificate, false)
}

/// Of an anchor, Envoy ignores policies and what it does not understand.
fn check_readable(certificate: &Parsed<'_>, anchor: bool) -> Result<(), &'static str> {
    let policies = [
        CertificatePolicies::OID,
        PolicyMappings::OID,
        InhibitAnyPolicy::OID,
        PolicyConstraints::OID,
    ];
    for extension in certificate.extensions() {
        let id = extension.id;
        if anchor && policies.contains(&id) {
            continue;
        }
        let read = match id {
            SubjectKeyIdentifier::OID => certificate.extension::<SubjectKeyIdentifier>().map(drop),
            AuthorityKeyIdentifier::OID => {
                certificate.extension::<AuthorityKeyIdentifier>().map(drop)
            }
            NameConstraints::OID => certificate.extension::<NameConstraints>().map(drop),
            CrlDistributionPoints::OID if extension.critical && !anchor => {
                return Err("has critical CRL distribution points, which Envoy refuses");
            }
            CrlDistributionPoints::OID => {
                certificate.extension::<CrlDistributionPoints>().map(drop)
            }
            CertificatePolicies::OID => {
                let policies = certificate.extension::<CertificatePolicies>();
                if policies.as_ref().is_ok_and(repeats_a_policy) {
                    return Err("names a certificate policy twice (RFC 5280 §4.2.1.4)");
                }
                policies.map(drop)
            }
            PolicyMappings::OID => certificate.extension::<PolicyMappings>().map(drop),
            InhibitAnyPolicy::OID => certificate.extension::<InhibitAnyPolicy>().map(drop),
            PolicyConstraints::OID => match certificate.extension::<PolicyConstraints>() {
                Ok(Some(constraints)) if constraints.require_explicit_policy.is_some() => {
                    return Err(
                        "demands that each certificate below it names a policy (policyConstraints), which is not supported",
                    );
                }
                read => read.map(drop),
            },
            BasicConstraints::OID | KeyUsage::OID | ExtendedKeyUsage::OID | SubjectAltName::OID => {
                Ok(())
            }
            _ if !anchor && extension.critical => {
                return Err("has a critical extension that is not understood");
            }
            _ => Ok(()),
        };
        if read.is_err() {
            return Err(match id {
                NameConstraints::OID => "has a damaged NameConstraints extension",
                SubjectKeyIdentifier::OID | AuthorityKeyIdentifier::OID => {
                    "has a damaged key identifier"
                }
                CrlDistributionPoints::OID => "has a damaged CRLDistributionPoints extension",
                _ => "has a damaged extension about policies",
            });
        }
    }
    Ok(())
}

fn repeats_a_policy(policies: &Option<CertificatePolicies>) -> bool {
    let mut all = policies.iter().flat_map(|policies| &policies.0);
    let mut seen = Vec::new();
    all.any(|policy| {
        let repeated = seen.contains(&policy.policy_identifier);
        seen.push(policy.policy_identifier);
        repeated
    })
}

/// The features of a CA's certificate by which what it signs may name it (RFC 5280 §4.2.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    key: Option<Vec<u8>>,
    serial: SerialNumber,
    issuer: Vec<u8>,
}

impl Authority {
    pub(crate) fn of(ca: &Parsed<'_>) -> Self {
        Self {
            key: ca.subject_key_identifier(),
            serial: ca.serial_number().clone(),
            issuer: ca.issuer_name().der().to_owned(),
        }
    }

    /// Whether a certificate may have this issuer. Envoy and OpenSSL do not even try one that does not
    /// fit, whatever its name and key. Go and webpki leave it at the signature.
    pub(crate) fn fits(&self, below: &Parsed<'_>) -> bool {
        let named = match below.extension::<AuthorityKeyIdentifier>() {
            Ok(None) => return true,
            Ok(Some(named)) => named,
            Err(_) => return false,
        };
        let key = match (&named.key_identifier, &self.key) {
            (Some(named), Some(own)) => named.as_bytes() == own.as_slice(),
            _ => true,
        };
        let serial = { named.authority_cert_serial_number }.is_none_or(|it| it == self.serial);
        let issuers = named.authority_cert_issuer.iter().flatten();
        let issuer = { issuers }.find_map(|name| match name {
            GeneralName::DirectoryName(name) => Some(name),
            _ => None,
        });
        key && serial && issuer.is_none_or(|it| it.to_der().is_ok_and(|it| it == self.issuer))
    }
}

/// Whether Envoy and OpenSSL let a chain end in this anchor: they take it for self-signed by its names
/// and identifiers, without a look at its signature. Any other anchor needs its own issuer beside it
/// (no `X509_V_FLAG_PARTIAL_CHAIN`).
pub(crate) fn ends_chains(anchor: &Parsed<'_>) -> bool {
    anchor.is_self_issued() && Authority::of(anchor).fits(anchor)
}
