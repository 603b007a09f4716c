//! Certificate authorities for tests: roots, intermediates, cross-signed, renewed, expired,
//! constrained to names, with keys of any type.
//!
//! Everything takes the time as an argument, so that a whole PKI can stand in the past of a
//! [`FakeClock`](crate::FakeClock) or in the present of a real server.
//!
//! ```
//! use meshca_core::TrustDomain;
//! use meshca_testkit::FakeClock;
//! use meshca_testkit::pki::{TestCa, TestCaOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = FakeClock::start();
//! let root = TestCa::root("root", now)?;
//! let issuing = root.intermediate_with(TestCaOptions::new("issuing", now).with_path_len(0))?;
//! assert_eq!(issuing.chain().len(), 2);
//! assert!(issuing.bundle(TrustDomain::new("example.org")?)?.contains(root.certificate()));
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use der::asn1::{AnyRef, BitString};
use der::{Decode as _, Encode as _, Tagged as _};
use meshca_core::{
    CertificateRequest, Error, ErrorKind, KeyType, PrivateKey, Profile, Result, Signer,
    TrustBundle, TrustDomain,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, PublicKeyData,
    SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use time::OffsetDateTime;
use x509_cert::der::oid::db::rfc5912::{
    ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1,
};
use x509_cert::der::oid::db::rfc8410::ID_ED_25519;
use x509_cert::spki::SubjectPublicKeyInfoRef;

/// How long before "now" the certificates of a [`TestCa`] begin.
const CA_BACKDATE: Duration = Duration::from_secs(24 * 3600);
/// How long they live from "now" on unless told otherwise: ten years.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long before "now" what they sign begins.
const LEAF_BACKDATE: Duration = Duration::from_secs(10);

/// How a [`TestCa`] is made.
#[derive(Clone, Debug)]
#[must_use]
pub struct TestCaOptions {
    name: String,
    key_type: KeyType,
    not_before: SystemTime,
    not_after: SystemTime,
    path_len: Option<u8>,
    permitted_dns: Vec<String>,
    excluded_dns: Vec<String>,
    version_1: bool,
    sha1: bool,
    critical_policies: bool,
}

impl TestCaOptions {
    /// A CA with this common name and a P-256 key, valid from a day before `now` to ten years after.
    pub fn new(name: impl Into<String>, now: SystemTime) -> Self {
        Self {
            name: name.into(),
            key_type: KeyType::default(),
            not_before: now.checked_sub(CA_BACKDATE).unwrap_or(now),
            not_after: now.checked_add(CA_LIFETIME).unwrap_or(now),
            path_len: None,
            permitted_dns: Vec::new(),
            excluded_dns: Vec::new(),
            version_1: false,
            sha1: false,
            critical_policies: false,
        }
    }

    /// Writes a root as version 1, without extensions, as the oldest ones are. It is of no effect on
    /// other CAs.
    pub fn with_version_1(mut self) -> Self {
        self.version_1 = true;
        self
    }

    /// Has a root say that it signed itself with SHA-1. The signature is one that no verifier accepts.
    /// It is of no effect on other CAs.
    pub fn with_sha1(mut self) -> Self {
        self.sha1 = true;
        self
    }

    /// Names any policy in a critical extension (RFC 5280 §4.2.1.4), as some enterprise CAs do.
    pub fn with_critical_policies(mut self) -> Self {
        self.critical_policies = true;
        self
    }

    /// The type of its key.
    pub fn with_key_type(mut self, key_type: KeyType) -> Self {
        self.key_type = key_type;
        self
    }

    /// From when to when it is valid: in the past for an expired CA.
    pub fn with_validity(mut self, not_before: SystemTime, not_after: SystemTime) -> Self {
        self.not_before = not_before;
        self.not_after = not_after;
        self
    }

    /// How many CAs may stand below it (RFC 5280 §4.2.1.9); any number otherwise.
    pub fn with_path_len(mut self, path_len: u8) -> Self {
        self.path_len = Some(path_len);
        self
    }

    /// Constrains the DNS names of what it signs to this domain and those below it (RFC 5280
    /// §4.2.1.10). SPIFFE IDs are URIs and not touched by it.
    pub fn with_permitted_dns(mut self, domain: impl Into<String>) -> Self {
        self.permitted_dns.push(domain.into());
        self
    }

    /// Forbids DNS names in this domain.
    pub fn with_excluded_dns(mut self, domain: impl Into<String>) -> Self {
        self.excluded_dns.push(domain.into());
        self
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(Some(&self.name));
        params.is_ca = IsCa::Ca(match self.path_len {
            Some(path_len) => BasicConstraints::Constrained(path_len),
            None => BasicConstraints::Unconstrained,
        });
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params.not_before = calendar(self.not_before);
        params.not_after = calendar(self.not_after);
        let subtrees = |domains: &[String]| {
            let domains = domains.iter().cloned();
            domains.map(GeneralSubtree::DnsName).collect()
        };
        if self.critical_policies {
            let mut policies =
                CustomExtension::from_oid_content(CERTIFICATE_POLICIES, ANY_POLICY.to_vec());
            policies.set_criticality(true);
            params.custom_extensions = vec![policies];
        }
        if !self.permitted_dns.is_empty() || !self.excluded_dns.is_empty() {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: subtrees(&self.permitted_dns),
                excluded_subtrees: subtrees(&self.excluded_dns),
            });
        }
        params
    }
}

/// A CA of a test, with its key. Cheap to clone.
#[derive(Clone, derive_more::Debug)]
#[debug("TestCa {{ name: {:?}, key: {key:?}, chain: {}, .. }}", options.name, chain.len())]
pub struct TestCa {
    options: TestCaOptions,
    params: CertificateParams,
    key: Arc<PrivateKey>,
    own: CertificateDer<'static>,
    root: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
}

impl TestCa {
    /// A root with the defaults of [`TestCaOptions`].
    ///
    /// # Errors
    ///
    /// As [`root_with`](Self::root_with).
    pub fn root(name: impl Into<String>, now: SystemTime) -> Result<Self> {
        Self::root_with(TestCaOptions::new(name, now))
    }

    /// A root.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if the key or the certificate cannot be made.
    pub fn root_with(options: TestCaOptions) -> Result<Self> {
        let key = Arc::new(PrivateKey::generate(options.key_type)?);
        Self::self_signed(options, key)
    }

    fn self_signed(options: TestCaOptions, key: Arc<PrivateKey>) -> Result<Self> {
        let params = options.params();
        let certificate = params.self_signed(&Key::pair(&key)?).map_err(failed)?;
        let own = aged(certificate.der().clone(), &options, &key)?;
        Ok(Self {
            chain: vec![own.clone()],
            root: own.clone(),
            own,
            options,
            params,
            key,
        })
    }

    /// A CA below this one, with its validity and a P-256 key.
    ///
    /// # Errors
    ///
    /// As [`root_with`](Self::root_with).
    pub fn intermediate(&self, name: impl Into<String>) -> Result<Self> {
        let Self { options, .. } = self;
        self.intermediate_with(
            TestCaOptions::new(name, options.not_before)
                .with_validity(options.not_before, options.not_after),
        )
    }

    /// A CA below this one.
    ///
    /// # Errors
    ///
    /// As [`root_with`](Self::root_with).
    pub fn intermediate_with(&self, options: TestCaOptions) -> Result<Self> {
        let key = Arc::new(PrivateKey::generate(options.key_type)?);
        let params = options.params();
        let own = self.sign_params(&params, &Key::pair(&key)?)?;
        let mut chain = vec![own.clone()];
        chain.extend(self.chain.iter().cloned());
        Ok(Self {
            root: self.root.clone(),
            own,
            chain,
            options,
            params,
            key,
        })
    }

    /// The same root with the same name and key, valid at another time: what renewing a root without
    /// replacing its key gives.
    ///
    /// # Errors
    ///
    /// As [`root_with`](Self::root_with).
    pub fn renewed(&self, not_before: SystemTime, not_after: SystemTime) -> Result<Self> {
        let options = self.options.clone().with_validity(not_before, not_after);
        Self::self_signed(options, Arc::clone(&self.key))
    }

    /// This CA's name and key certified by another CA. Peers that trust only the other one accept
    /// what this one signs, if they are given this certificate with it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if the certificate cannot be made.
    pub fn cross_signed_by(&self, other: &Self) -> Result<CertificateDer<'static>> {
        other.sign_params(&self.params, &Key::pair(&self.key)?)
    }

    /// Signs what is requested as a sound CA does: exactly the names, the key and the profile of the
    /// request, for the lifetime asked for but not beyond the CA's own end, valid from ten seconds
    /// before `now`. It signs for any trust domain.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] for names or a key that cannot be written.
    pub fn sign(
        &self,
        request: &CertificateRequest,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>> {
        let params = self.leaf_params(request, now)?;
        self.sign_params(&params, &Key::of(request)?)
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.own
    }

    /// Its certificate, then those above it, the root last.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The same without the root: what a CA sends along with a leaf. Empty for a root.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        self.chain
            .split_last()
            .map_or(&[], |(_, intermediates)| intermediates)
    }

    /// The root that it stands below, or itself.
    pub fn root_certificate(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The bundle that vouches for what it signs: its root alone.
    ///
    /// # Errors
    ///
    /// Those of [`TrustBundle::new`].
    pub fn bundle(&self, trust_domain: TrustDomain) -> Result<TrustBundle> {
        TrustBundle::new(trust_domain, [self.root_certificate().clone()])
    }

    /// Its key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Its certificate as PEM.
    pub fn pem(&self) -> String {
        to_pem(self.certificate())
    }

    /// Its certificate and those above it as PEM, the root last: how an operator hands over a CA.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(to_pem).collect()
    }

    /// Its key as PEM. **Not wiped**: keys of tests are no secrets.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if the key cannot be encoded.
    pub fn key_pem(&self) -> Result<String> {
        Ok(self
            .key
            .expose_pem()?
            .expose_str()
            .unwrap_or_default()
            .to_owned())
    }

    pub(crate) fn leaf_params(
        &self,
        request: &CertificateRequest,
        now: SystemTime,
    ) -> Result<CertificateParams> {
        let spec = request.spec();
        let mut params = workload_params();
        params.distinguished_name = named(spec.common_name());
        for name in spec.all_uris() {
            params.subject_alt_names.push(uri(&name)?);
        }
        for name in spec.dns_names() {
            params.subject_alt_names.push(dns(name)?);
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        if let Profile::Intermediate { path_len } = spec.profile() {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.extended_key_usages.clear();
        }
        params.not_before = calendar(now.checked_sub(LEAF_BACKDATE).unwrap_or(now));
        let wanted = now.checked_add(spec.lifetime()).unwrap_or(now);
        params.not_after = calendar(wanted.min(self.options.not_after));
        Ok(params)
    }

    pub(crate) fn sign_params(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>> {
        let issuer = rcgen::Issuer::from_params(&self.params, Key::pair(&self.key)?);
        Ok(params
            .signed_by(key, &issuer)
            .map_err(failed)?
            .der()
            .clone())
    }
}

/// The extension `certificatePolicies`, and its content with `anyPolicy`.
const CERTIFICATE_POLICIES: &[u64] = &[2, 5, 29, 32];
const ANY_POLICY: &[u8] = b"\x30\x08\x30\x06\x06\x04\x55\x1d\x20\x00";

/// The algorithm identifiers of `sha1WithRSAEncryption` and `ecdsa-with-SHA1` in DER.
const SHA1_WITH_RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05\x05\x00";
const ECDSA_WITH_SHA1: &[u8] = b"\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01";

/// A root as its options age it.
fn aged(
    root: CertificateDer<'static>,
    options: &TestCaOptions,
    key: &PrivateKey,
) -> Result<CertificateDer<'static>> {
    if !(options.version_1 || options.sha1) {
        return Ok(root);
    }
    let broken = |error: der::Error| {
        Error::new(ErrorKind::Internal, "could not write an old root").with_source(error)
    };
    let parts = Vec::<AnyRef<'_>>::from_der(&root).map_err(broken)?;
    let [content, algorithm, _] = *parts.as_slice() else {
        return Ok(root.clone());
    };
    let algorithm = match (options.sha1, options.key_type) {
        (false, _) => algorithm,
        (true, KeyType::P256 | KeyType::P384 | KeyType::Ed25519) => {
            AnyRef::from_der(ECDSA_WITH_SHA1).map_err(broken)?
        }
        (true, _) => AnyRef::from_der(SHA1_WITH_RSA).map_err(broken)?,
    };
    let content = content.to_der().map_err(broken)?;
    let mut fields = Vec::<AnyRef<'_>>::from_der(&content).map_err(broken)?;
    // `[0]` is the version, and `[3]` the extensions. The algorithm stands behind the serial number.
    let numbered = |field: &AnyRef<'_>| field.tag().is_context_specific();
    if let Some(field) = fields.iter_mut().filter(|it| !numbered(it)).nth(1) {
        *field = algorithm;
    }
    if options.version_1 {
        fields.retain(|field| !numbered(field));
    }
    let content = fields.to_der().map_err(broken)?;
    let signature = Signer::sign(key, &content)?;
    let signature = BitString::from_bytes(&signature).and_then(|it| it.to_der());
    let signature = signature.map_err(broken)?;
    let aged = vec![
        AnyRef::from_der(&content).map_err(broken)?,
        algorithm,
        AnyRef::from_der(&signature).map_err(broken)?,
    ];
    Ok(aged.to_der().map_err(broken)?.into())
}

/// One certificate as a PEM `CERTIFICATE` block.
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines = body.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let body = lines.collect::<Vec<_>>().join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

fn named(common_name: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(common_name) = common_name {
        name.push(DnType::CommonName, common_name);
    }
    name
}

/// The parts that every workload's certificate shares.
pub(crate) fn workload_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

pub(crate) fn uri(name: &str) -> Result<SanType> {
    Ok(SanType::URI(name.try_into().map_err(not_ascii)?))
}

pub(crate) fn dns(name: &str) -> Result<SanType> {
    Ok(SanType::DnsName(name.try_into().map_err(not_ascii)?))
}

fn not_ascii(error: rcgen::Error) -> Error {
    Error::new(ErrorKind::InvalidRequest, "a name is not ASCII").with_source(error)
}

fn failed(error: rcgen::Error) -> Error {
    Error::new(ErrorKind::Internal, "could not make a test certificate").with_source(error)
}

/// A time as certificates have it, within the years that they can express.
pub(crate) fn calendar(time: SystemTime) -> OffsetDateTime {
    /// 9999-12-31T23:59:59Z.
    const LAST: i64 = 253_402_300_799;
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(LAST));
    OffsetDateTime::from_unix_timestamp(seconds.min(LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// rcgen's own serial number is a digest of the key, which would repeat for a repeated request.
fn random_serial() -> Result<SerialNumber> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Internal, "no randomness for a serial number"))?;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A key as rcgen wants it: the public one of a request, or one of core's, which can sign.
pub(crate) struct Key<'a, P> {
    bits: &'a [u8],
    algorithm: &'static SignatureAlgorithm,
    private: P,
}

impl<'a> Key<'a, ()> {
    pub(crate) fn of(request: &'a CertificateRequest) -> Result<Self> {
        Self::new(request.public_key(), ())
    }
}

impl<'a> Key<'a, &'a PrivateKey> {
    pub(crate) fn pair(key: &'a PrivateKey) -> Result<Self> {
        Self::new(key.public_key(), key)
    }
}

impl<'a, P> Key<'a, P> {
    fn new(spki: &'a SubjectPublicKeyInfoDer<'_>, private: P) -> Result<Self> {
        let unknown = "the key is none that a test CA signs for; use P-256, P-384, Ed25519 or RSA";
        let unknown = || Error::new(ErrorKind::InvalidRequest, unknown);
        let spki = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| unknown())?;
        let curve = || spki.algorithm.parameters?.decode_as().ok();
        let algorithm = match spki.algorithm.oid {
            ID_EC_PUBLIC_KEY if curve() == Some(SECP_256_R_1) => &rcgen::PKCS_ECDSA_P256_SHA256,
            ID_EC_PUBLIC_KEY if curve() == Some(SECP_384_R_1) => &rcgen::PKCS_ECDSA_P384_SHA384,
            ID_ED_25519 => &rcgen::PKCS_ED25519,
            RSA_ENCRYPTION => &rcgen::PKCS_RSA_SHA256,
            _ => return Err(unknown()),
        };
        Ok(Self {
            bits: spki.subject_public_key.raw_bytes(),
            algorithm,
            private,
        })
    }
}

impl<P> PublicKeyData for Key<'_, P> {
    fn der_bytes(&self) -> &[u8] {
        self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for Key<'_, &PrivateKey> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Signer::sign(self.private, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests;
