//! From nothing to an identity: a new key, a certificate for it, both in the form that a proxy gets.

use std::hint::black_box;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use meshca::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
use meshca::{CertificateSpec, IssuingCa, MemorySecretStore, SpiffeId, SystemClock, TrustDomain};

use super::{Case, Result, each, ready};

pub(super) const TRUST_DOMAIN: &str = "default.eu-1.mesh.local";
const PATH: &str = "/ns/shop/sa/cart";

/// About how many bytes of a leaf like ours are signed.
const TBS_LENGTH: usize = 420;

/// A built-in CA with a P-256 key, as it is for a mesh that says nothing else.
pub(super) fn issuer(clock: SystemClock) -> Result<BuiltinIssuer> {
    let settings = CaSettings::new(
        TrustDomain::new(TRUST_DOMAIN)?,
        CaSecrets::for_backend("default", "ca-1")?,
    );
    Ok(ready(BuiltinIssuer::load_or_create(
        settings,
        Arc::new(MemorySecretStore::new()),
        Arc::new(clock),
    ))??)
}

/// What is asked for: a workload's certificate, by the defaults.
pub(super) fn spec() -> Result<CertificateSpec> {
    Ok(CertificateSpec::workload(SpiffeId::new(format!(
        "spiffe://{TRUST_DOMAIN}{PATH}"
    ))?))
}

/// Ours.
pub(super) fn builtin() -> Result<Box<dyn Case>> {
    let clock = SystemClock::new();
    let ca = IssuingCa::new(issuer(clock)?);
    let spec = spec()?;
    each(move || {
        let identity = ready(ca.issue(&spec, &clock))??;
        black_box(identity.key().expose_pkcs8()?);
        black_box(identity.certificate().chain());
        Ok(())
    })
}

/// What no issuer on this library can beat: a key, and one signature.
pub(super) fn aws_lc_rs() -> Result<Box<dyn Case>> {
    let ca = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
    let message = [0x30; TBS_LENGTH];
    each(move || {
        black_box(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?);
        black_box(ca.sign(&SystemRandom::new(), black_box(&message))?);
        Ok(())
    })
}
