//! What most tests of issuers begin with: one trust domain, one workload in it, and keys that take long to make.
#![allow(clippy::unwrap_used, reason = "constants that are right")]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meshca_core::{CertificateSpec, KeyType, PrivateKey, SpiffeId, SystemClock, TrustDomain};

/// `example.org`.
pub fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

/// `spiffe://example.org/ns/shop/sa/cart`.
pub fn id() -> SpiffeId {
    SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").unwrap()
}

/// A certificate for [`id`] that lives for an hour.
pub fn spec() -> CertificateSpec {
    CertificateSpec::workload(id()).with_lifetime(Duration::from_secs(3600))
}

/// The real time, for tests with real servers.
pub fn clock() -> Arc<SystemClock> {
    Arc::new(SystemClock::new())
}

/// One key of each RSA type, made once for all tests of a program: they take seconds, and tests of CAs are not about them.
pub fn rsa_keys() -> &'static [PrivateKey] {
    static KEYS: OnceLock<Vec<PrivateKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        KeyType::ALL
            .into_iter()
            .filter(|key_type| key_type.is_rsa())
            .map(|key_type| PrivateKey::generate(key_type).unwrap())
            .collect()
    })
}
