//! A small PKI, and a clock that stands still, for the tests of this crate.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use meshca_core::{
    CertificateRequest, CertificateSpec, Clock, PrivateKey, SpiffeId, TrustBundle, TrustDomain,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// 2026-01-01T00:00:00Z.
pub(crate) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

#[derive(Clone, Debug)]
pub(crate) struct FakeClock(Arc<Mutex<SystemTime>>);

impl FakeClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(start())))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    pub(crate) fn set(&self, to: SystemTime) {
        *self.0.lock().unwrap() = to;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

pub(crate) fn spiffe_id() -> SpiffeId {
    SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").unwrap()
}

pub(crate) fn spec() -> CertificateSpec {
    CertificateSpec::workload(spiffe_id()).with_lifetime(HOUR)
}

pub(crate) struct Ca {
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
    pub(crate) der: CertificateDer<'static>,
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (start() - DAY).into();
    params.not_after = (start() + 365 * DAY).into();
    params.use_authority_key_identifier_extension = true;
    params
}

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(ca_params(name))
    }

    pub(crate) fn root_with(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        self.below_with(ca_params(name))
    }

    pub(crate) fn below_with(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params
            .signed_by(&key, &self.issuer())
            .unwrap()
            .der()
            .clone();
        Self { params, key, der }
    }

    /// The same name and key, certified by somebody else.
    pub(crate) fn cross_signed_by(&self, other: &Ca) -> CertificateDer<'static> {
        self.params
            .signed_by(&self.key, &other.issuer())
            .unwrap()
            .der()
            .clone()
    }

    pub(crate) fn issuer(&self) -> rcgen::Issuer<'_, &KeyPair> {
        rcgen::Issuer::from_params(&self.params, &self.key)
    }

    pub(crate) fn leaf(
        &self,
        request: &CertificateRequest,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = leaf_params(request);
        change(&mut params);
        params
            .signed_by(&RequestKey(request), &self.issuer())
            .unwrap()
            .der()
            .clone()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(domain(), [self.der.clone()]).unwrap()
    }

    pub(crate) fn pem(&self) -> String {
        pem(&self.der)
    }
}

pub(crate) fn leaf_params(request: &CertificateRequest) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(
        request.spiffe_id().to_string().as_str().try_into().unwrap(),
    )];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = (request.created() - Duration::from_secs(10)).into();
    params.not_after = (request.created() + request.spec().lifetime()).into();
    params.use_authority_key_identifier_extension = true;
    params
}

/// The P-256 key of a request.
pub(crate) struct RequestKey<'a>(pub &'a CertificateRequest);

impl PublicKeyData for RequestKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        let spki = self.0.public_key();
        &spki[spki.len() - 65..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

pub(crate) fn request(key: &PrivateKey) -> CertificateRequest {
    CertificateRequest::for_key(spec(), key, start()).unwrap()
}

pub(crate) fn pem(der: &CertificateDer<'_>) -> String {
    TrustBundlePem(der).to_string()
}

struct TrustBundlePem<'a>(&'a CertificateDer<'a>);

impl std::fmt::Display for TrustBundlePem<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(self.0);
        writeln!(f, "-----BEGIN CERTIFICATE-----")?;
        for line in body.as_bytes().chunks(64) {
            writeln!(f, "{}", std::str::from_utf8(line).unwrap())?;
        }
        writeln!(f, "-----END CERTIFICATE-----")
    }
}
