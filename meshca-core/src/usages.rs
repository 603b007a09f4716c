//! The uses that a certificate's extensions allow.

use crate::x509::{CLIENT_AUTH, Parsed, SERVER_AUTH};

/// Checks the usages of a trust anchor. They never change, so this is done once for each root and not
/// for each path.
///
/// An anchor need not be a certificate for RFC 5280. It is one for Envoy, Go and OpenSSL, and its
/// extended key usage binds all certificates below it.
pub(crate) fn check_root(root: &Parsed<'_>) -> Result<(), String> {
    check_ca(root)?;
    let both = [SERVER_AUTH, CLIENT_AUTH];
    match root.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(purposes)) if both.iter().all(|one| purposes.0.contains(one)) => Ok(()),
        _ => Err(format!(
            "the root `{}` is restricted to other purposes than server and client authentication",
            root.subject()
        )),
    }
}

/// Checks that a CA may sign certificates (RFC 5280 §6.1.4 (n)). webpki ignores key usages.
pub(crate) fn check_ca(ca: &Parsed<'_>) -> Result<(), String> {
    match ca.key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.key_cert_sign() => Ok(()),
        Ok(Some(_)) => Err(format!(
            "`{}` may not sign certificates (its key usage lacks `keyCertSign`)",
            ca.subject()
        )),
        Err(_) => Err(format!(
            "`{}` has a damaged KeyUsage extension",
            ca.subject()
        )),
    }
}

/// Checks that a leaf is a workload's. The error continues a sentence about it.
///
/// A CA must not pass for a workload (SPIFFE X.509-SVID §5.2), and in TLS 1.3 each side that shows a
/// certificate signs with its key (RFC 8446 §4.4.2.2).
pub(crate) fn check_workload(leaf: &Parsed<'_>) -> Result<(), &'static str> {
    match leaf.basic_constraints() {
        Ok(Some(constraints)) if constraints.ca => {
            return Err("is a CA's, which no workload may hold (X.509-SVID §5.2)");
        }
        Ok(_) => {}
        Err(_) => return Err("has a damaged BasicConstraints extension"),
    }
    match leaf.key_usage() {
        Ok(Some(usage)) if usage.key_cert_sign() || usage.crl_sign() => {
            Err("may sign certificates or CRLs, which no workload may (X.509-SVID §5.2)")
        }
        Ok(Some(usage)) if !usage.digital_signature() => Err(
            "lacks the key usage `digitalSignature` (X.509-SVID §4.3), which TLS 1.3 needs; add it to the CA's profile",
        ),
        Ok(_) => Ok(()),
        Err(_) => Err("has a damaged KeyUsage extension"),
    }
}
