//! What is asked of a CA.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, SanType};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use spiffe::{SpiffeId, TrustDomain};

use crate::key::{KeyMaterial, encoding};
use crate::spiffe::tag_uri;
use crate::{Csr, Error, ErrorKind, KeyType, PrivateKey, Result, x509};

/// How long a certificate is asked for where nobody says otherwise: 24 hours, as the field does.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What the certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Profile {
    /// A workload's own: an X.509-SVID that cannot sign (SPIFFE X.509-SVID §4.1).
    Workload,
    /// A CA below the one that is asked, which may sign workloads' certificates.
    Intermediate {
        /// How many further CAs may stand below it (RFC 5280 §4.2.1.9).
        path_len: u8,
    },
}

/// What to do with a CA that does not keep to the lifetime it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LifetimePolicy {
    /// A certificate that lives longer than asked is refused; a shorter one is accepted and
    /// [reported](crate::Observation::ShorterLifetime).
    #[default]
    AtMostRequested,
    /// It is asked for the lifetime, and decides; what differs is [reported](crate::Observation).
    AcceptIssuer,
    /// It decides, and is not even asked where its protocol allows that (cert-manager's does). What differs from the lifetime of
    /// the request is reported as well.
    LeftToIssuer,
}

/// Which certificate is wanted: names, lifetime, purpose. The key comes with the
/// [`CertificateRequest`].
///
/// ```
/// use std::time::Duration;
/// use meshca_core::{CertificateSpec, SpiffeId};
///
/// let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").expect("a SPIFFE ID");
/// let spec = CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600));
/// assert_eq!(spec.spiffe_id().path(), "/ns/shop/sa/cart");
/// ```
///
/// Cloning is cheap: the next certificate of a workload is nearly always asked for with the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSpec(Arc<Spec>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    spiffe_id: SpiffeId,
    profile: Profile,
    lifetime: Duration,
    lifetime_policy: LifetimePolicy,
    common_name: Option<String>,
    dns_names: Vec<String>,
    uris: Vec<String>,
    key_type: KeyType,
}

impl CertificateSpec {
    /// A workload's certificate with this SPIFFE ID, the one it is entitled to.
    pub fn workload(spiffe_id: SpiffeId) -> Self {
        Self(Arc::new(Spec {
            spiffe_id,
            profile: Profile::Workload,
            lifetime: DEFAULT_LIFETIME,
            lifetime_policy: LifetimePolicy::default(),
            common_name: None,
            dns_names: Vec::new(),
            uris: Vec::new(),
            key_type: KeyType::default(),
        }))
    }

    fn with(mut self, set: impl FnOnce(&mut Spec)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }

    /// An intermediate CA of this trust domain, with the common name that its subject needs
    /// (RFC 5280 §4.1.2.6: a CA's subject is not empty), for signing leaves only.
    pub fn intermediate(
        trust_domain: &TrustDomain,
        common_name: impl Into<String>,
    ) -> Result<Self> {
        let spiffe_id = SpiffeId::new(format!("spiffe://{trust_domain}")).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, "not a trust domain").with_source(error)
        })?;
        Ok(Self::workload(spiffe_id).with(|it| {
            it.profile = Profile::Intermediate { path_len: 0 };
            it.common_name = Some(common_name.into());
        }))
    }

    /// Asks for this lifetime, counted from issuance; [`DEFAULT_LIFETIME`] otherwise.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        self.with(|it| it.lifetime = lifetime)
    }

    /// What to do when the CA chooses another lifetime; refuse longer ones by default.
    #[must_use]
    pub fn with_lifetime_policy(self, policy: LifetimePolicy) -> Self {
        self.with(|it| it.lifetime_policy = policy)
    }

    /// Puts a common name into the subject, which is empty otherwise.
    #[must_use]
    pub fn with_common_name(self, name: impl Into<String>) -> Self {
        self.with(|it| it.common_name = Some(name.into()))
    }

    /// Adds a DNS name beside the SPIFFE ID.
    #[must_use]
    pub fn with_dns_name(self, name: impl Into<String>) -> Self {
        self.with(|it| it.dns_names.push(name.into()))
    }

    /// Adds a URI beside the SPIFFE ID: the classic `kuma://<tag>/<value>`, and nothing of another shape. A second
    /// `spiffe:` URI is refused: an X.509-SVID has exactly one (SPIFFE X.509-SVID §2).
    #[must_use]
    pub fn with_uri(self, uri: impl Into<String>) -> Self {
        self.with(|it| it.uris.push(uri.into()))
    }

    /// The type of the key where one is made for it; P-256 by default. A workload's must be [for
    /// workloads](KeyType::is_for_workloads).
    #[must_use]
    pub fn with_key_type(self, key_type: KeyType) -> Self {
        self.with(|it| it.key_type = key_type)
    }

    /// Lets an intermediate sign further CAs, this many levels deep. Workloads have none.
    #[must_use]
    pub fn with_path_len(self, path_len: u8) -> Self {
        match self.profile() {
            Profile::Workload => self,
            Profile::Intermediate { .. } => {
                self.with(|it| it.profile = Profile::Intermediate { path_len })
            }
        }
    }

    /// The SPIFFE ID; an intermediate's is that of its trust domain.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// What it is for.
    pub fn profile(&self) -> Profile {
        self.0.profile
    }

    /// The lifetime asked for.
    pub fn lifetime(&self) -> Duration {
        self.0.lifetime
    }

    /// What to do when the CA chooses another lifetime.
    pub fn lifetime_policy(&self) -> LifetimePolicy {
        self.0.lifetime_policy
    }

    /// The common name of the subject, if there is to be one.
    pub fn common_name(&self) -> Option<&str> {
        self.0.common_name.as_deref()
    }

    /// DNS names beside the SPIFFE ID.
    pub fn dns_names(&self) -> &[String] {
        &self.0.dns_names
    }

    /// URIs beside the SPIFFE ID.
    pub fn uris(&self) -> &[String] {
        &self.0.uris
    }

    /// The type of key to make.
    pub fn key_type(&self) -> KeyType {
        self.0.key_type
    }

    /// All URI names of the certificate, the SPIFFE ID first.
    pub fn all_uris(&self) -> impl Iterator<Item = String> {
        let id = &self.0.spiffe_id;
        // What `to_string` makes by way of a formatter, in a twentieth of the time.
        let id = ["spiffe://", id.trust_domain().as_str(), id.path()].concat();
        std::iter::once(id).chain(self.0.uris.iter().cloned())
    }

    fn validate(&self) -> Result<()> {
        let refuse = |why: &'static str, value: &str| {
            let error = Error::new(ErrorKind::InvalidRequest, why);
            Err(error.with_context("value", value.escape_debug()))
        };
        if self.0.profile == Profile::Workload && self.0.spiffe_id.path().is_empty() {
            return refuse(
                "a workload's SPIFFE ID must have a path (SPIFFE X.509-SVID §4.1)",
                &self.0.spiffe_id.to_string(),
            );
        }
        if self.0.lifetime < Duration::from_secs(1) {
            return refuse(
                "a certificate must live for a second at least",
                &format!("{:?}", self.0.lifetime),
            );
        }
        for uri in &self.0.uris {
            let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme);
            if scheme.eq_ignore_ascii_case("spiffe") {
                let why = "a certificate has exactly one SPIFFE ID (SPIFFE X.509-SVID §2)";
                return refuse(why, uri);
            }
            if scheme.is_empty() || !uri.bytes().all(|byte| byte.is_ascii_graphic()) {
                return refuse("not a URI in ASCII characters", uri);
            }
            if let Err(why) = tag_uri::check(uri) {
                return refuse(why, uri);
            }
        }
        for name in &self.0.dns_names {
            let label = |label: &str| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            };
            let host = name.strip_prefix("*.").unwrap_or(name);
            if name.len() > 253 || !host.split('.').all(label) {
                return refuse("not a DNS name", name);
            }
        }
        let printable = |name: &&String| {
            (1..=64).contains(&name.chars().count()) && !name.chars().any(char::is_control)
        };
        match self.0.common_name.as_ref().filter(|name| !printable(name)) {
            Some(name) => refuse(
                "a common name has 1 to 64 printable characters (RFC 5280 appendix A.1)",
                name,
            ),
            None => Ok(()),
        }
    }
}

/// Names a request: the same wish for the same key has the same ID, however often it is tried.
///
/// 32 hexadecimal digits, short enough for AWS' idempotency token and fit for the name of a
/// Kubernetes object. The time of the request is no part of it, so that a restarted control
/// plane that repeats a workload's CSR finds what it had asked for before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display)]
pub struct RequestId(String);

impl RequestId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One request to a CA: a [`CertificateSpec`] for one key.
///
/// The private key never travels with it: issuers see the public key and a CSR, which is built
/// the first time that one asks for it (a CA in this process never does). Cloning is cheap, and a clone is the same request.
#[derive(Clone)]
pub struct CertificateRequest(Arc<Inner>);

struct Inner {
    spec: CertificateSpec,
    created: SystemTime,
    key: RequestKey,
    /// Not every CA asks for it.
    id: OnceLock<RequestId>,
}

enum RequestKey {
    /// We hold the key and can prove it on demand.
    Held {
        key: Arc<KeyMaterial>,
        csr: OnceLock<Csr>,
    },
    /// Somebody else holds the key, and proved it.
    Proved(Csr),
}

impl RequestKey {
    fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        match self {
            Self::Held { key, .. } => key.public_key(),
            Self::Proved(csr) => csr.public_key(),
        }
    }
}

impl CertificateRequest {
    /// A request for a key that we hold.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if the spec contradicts itself: a second SPIFFE ID, a name
    /// that is none, a workload without a path; and if the key is not [for
    /// workloads](KeyType::is_for_workloads) and a workload's certificate is requested.
    pub fn for_key(spec: CertificateSpec, key: &PrivateKey, now: SystemTime) -> Result<Self> {
        let (key, csr) = (Arc::clone(key.material()), OnceLock::new());
        Self::new(spec, RequestKey::Held { key, csr }, now)
    }

    /// A request for the key of a CSR that somebody else made, a proxy for example. The CSR proves
    /// possession of the key; the names are those of the spec.
    ///
    /// # Errors
    ///
    /// As [`for_key`](Self::for_key); and [`ErrorKind::Unsupported`] for an intermediate, which is proven
    /// with a throwaway leaf that only the holder of its key can sign.
    pub fn for_csr(spec: CertificateSpec, csr: Csr, now: SystemTime) -> Result<Self> {
        if spec.profile() != Profile::Workload {
            let message = "an intermediate is requested for a key held here, not for a CSR";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Self::new(spec, RequestKey::Proved(csr), now)
    }

    fn new(spec: CertificateSpec, key: RequestKey, now: SystemTime) -> Result<Self> {
        spec.validate()?;
        // Verification would refuse the certificate, after a CA has signed and perhaps billed it.
        let public_key = key.public_key();
        if spec.profile() == Profile::Workload && !encoding::is_for_workloads(public_key) {
            let message = "a workload's key must be P-256, P-384 or RSA: Envoy refuses keys of other types in every handshake";
            let error = Error::new(ErrorKind::InvalidRequest, message);
            return Err(error.with_context("key type", encoding::shown(public_key)));
        }
        if now.checked_add(spec.lifetime()).is_none() {
            let message = "the lifetime ends beyond all time";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        Ok(Self(Arc::new(Inner {
            spec,
            created: now,
            key,
            id: OnceLock::new(),
        })))
    }

    /// What is wanted.
    pub fn spec(&self) -> &CertificateSpec {
        &self.0.spec
    }

    /// The name of this request.
    pub fn id(&self) -> &RequestId {
        let Inner { id, spec, .. } = &*self.0;
        id.get_or_init(|| request_id(spec, self.public_key()))
    }

    /// Whether it is this very request, and not only an equal one.
    #[cfg(feature = "builtin")]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The SPIFFE ID that the certificate must have.
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.0.spec.spiffe_id()
    }

    /// For issuers that sign for one trust domain: whether this is a request for it. A root of one trust domain must never vouch for another.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] if the SPIFFE ID is of another one.
    pub fn require_trust_domain(&self, trust_domain: &TrustDomain) -> Result<()> {
        let requested = self.spiffe_id().trust_domain();
        if requested == trust_domain {
            return Ok(());
        }
        let message = format!("this issuer signs for the trust domain `{trust_domain}` only");
        Err(Error::new(ErrorKind::Denied, message).with_context("asked for", requested))
    }

    /// When it was made.
    pub fn created(&self) -> SystemTime {
        self.0.created
    }

    /// The end of the lifetime asked for, as a point in time that stays the same however often
    /// the request is tried. Whole seconds.
    pub fn not_after(&self) -> SystemTime {
        let created = self.0.created;
        let end = created.checked_add(self.0.spec.lifetime());
        crate::time::whole_seconds(end.unwrap_or(created))
    }

    /// The key that the certificate must be for.
    pub fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        self.0.key.public_key()
    }

    /// The type of that key, unless it is none of those that are known here.
    pub(crate) fn key_type(&self) -> Option<KeyType> {
        match &self.0.key {
            RequestKey::Held { key, .. } => Some(key.key_type()),
            RequestKey::Proved(csr) => KeyType::of(csr.public_key()),
        }
    }

    /// The CSR, for a CA that takes the names from it, as cert-manager and AWS do.
    ///
    /// # Errors
    ///
    /// As [`csr`](Self::csr); and [`ErrorKind::InvalidRequest`] if the CSR is somebody else's and asks for other names than
    /// the spec: such a CA would certify those.
    pub fn named_csr(&self) -> Result<&Csr> {
        let csr = self.csr()?;
        // One that was made here has the names of the spec.
        if let RequestKey::Held { .. } = self.0.key {
            return Ok(csr);
        }
        let sorted = |mut names: Vec<String>| {
            names.sort_unstable();
            names
        };
        let spec = &self.0.spec;
        let same = csr.names().is_some_and(|(common_names, uris, dns_names)| {
            common_names == Vec::from_iter(spec.common_name().map(str::to_owned))
                && sorted(uris) == sorted(spec.all_uris().collect())
                && sorted(dns_names) == sorted(spec.dns_names().to_vec())
        });
        match same {
            true => Ok(csr),
            false => Err(Error::new(
                ErrorKind::InvalidRequest,
                "the CSR asks for other names than this identity has, and this CA takes the names from it: have it made anew",
            )),
        }
    }

    /// The CSR: always the same one, so that a retry is byte for byte the same request.
    ///
    /// It carries the names of the spec, for an intermediate the BasicConstraints, and no key
    /// usages: cert-manager refuses a CSR whose usages differ from those of its own `spec.usages`, and
    /// other CAs set them by policy.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if it cannot be signed.
    pub fn csr(&self) -> Result<&Csr> {
        match &self.0.key {
            RequestKey::Proved(csr) => Ok(csr),
            RequestKey::Held { key, csr } => match csr.get() {
                Some(made) => Ok(made),
                None => {
                    let made = build_csr(&self.0.spec, key)?;
                    Ok(csr.get_or_init(|| made))
                }
            },
        }
    }

    /// The key, where it is ours.
    pub(crate) fn held_key(&self) -> Option<&Arc<KeyMaterial>> {
        match &self.0.key {
            RequestKey::Held { key, .. } => Some(key),
            RequestKey::Proved(_) => None,
        }
    }
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateRequest")
            .field("id", self.id())
            .field("spec", &self.0.spec)
            .finish_non_exhaustive()
    }
}

fn request_id(spec: &CertificateSpec, public_key: &SubjectPublicKeyInfoDer<'_>) -> RequestId {
    let mut context = digest::Context::new(&digest::SHA256);
    // Every field is preceded by its length, so that no two different requests read the same.
    let mut add = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    add(spec.spiffe_id().to_string().as_bytes());
    add(&match spec.profile() {
        Profile::Workload => [0, 0],
        Profile::Intermediate { path_len } => [1, path_len],
    });
    add(&spec.lifetime().as_secs().to_be_bytes());
    add(spec.common_name().unwrap_or_default().as_bytes());
    for names in [spec.dns_names(), spec.uris()] {
        add(&(names.len() as u64).to_be_bytes());
        names.iter().for_each(|name| add(name.as_bytes()));
    }
    add(public_key);
    let digest = context.finish();
    RequestId(x509::hex(digest.as_ref().get(..16).unwrap_or_default()))
}

fn build_csr(spec: &CertificateSpec, key: &KeyMaterial) -> Result<Csr> {
    let ascii = |name: String| {
        name.as_str().try_into().map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, "a name is not ASCII").with_source(error)
        })
    };
    let mut params = CertificateParams::default();
    // rcgen's default is a name of its own.
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = spec.common_name() {
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, name);
    }
    for uri in spec.all_uris() {
        params.subject_alt_names.push(SanType::URI(ascii(uri)?));
    }
    for name in spec.dns_names() {
        let name = SanType::DnsName(ascii(name.clone())?);
        params.subject_alt_names.push(name);
    }
    if let Profile::Intermediate { path_len } = spec.profile() {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    }
    let csr = params.serialize_request(key).map_err(|error| {
        Error::new(ErrorKind::Internal, "could not build a CSR").with_source(error)
    })?;
    Ok(Csr::made(csr.der().clone(), key.public_key().clone()))
}
