//! Trust bundles: the roots that peers must hold.

mod jwks;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor};
use spiffe::TrustDomain;

use crate::x509::{self, Parsed};
use crate::{Error, ErrorKind, Result, Validity, pem, usages};

/// The CA certificates that vouch for one trust domain, without repetition, in the order given.
///
/// Cheap to clone: clones share the roots. Bundles change by making another
/// ([`with_root`](Self::with_root), [`without_root`](Self::without_root), [`union`](Self::union)), so a
/// holder of one never sees it change.
///
/// ```
/// use meshca_core::{TrustBundle, TrustDomain};
///
/// let pem = include_str!("../../tests/data/root.pem");
/// let domain = TrustDomain::new("example.org").expect("a trust domain");
/// let bundle = TrustBundle::from_pem(domain.clone(), pem)?;
/// let again = TrustBundle::from_spiffe_json(domain, &bundle.to_spiffe_json())?;
/// assert_eq!(bundle, again);
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, derive_more::Debug)]
pub struct TrustBundle {
    #[debug("{trust_domain}")]
    trust_domain: TrustDomain,
    roots: Arc<[TrustRoot]>,
    /// The trust anchors that webpki reads in the roots.
    #[debug(skip)]
    anchors: Arc<[TrustAnchor<'static>]>,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
}

/// One root of a [`TrustBundle`], and what an operator wants to know of it.
///
/// Cheap to clone: clones share the certificate.
#[derive(Clone, PartialEq, Eq, derive_more::Debug)]
#[debug("TrustRoot({}, {}, sha256 {})", _0.subject, _0.validity, _0.fingerprint)]
pub struct TrustRoot(Arc<RootInner>);

/// All that follows from the certificate, read once.
#[derive(PartialEq, Eq)]
struct RootInner {
    der: CertificateDer<'static>,
    subject: String,
    name: Vec<u8>,
    public_key: SubjectPublicKeyInfoDer<'static>,
    validity: Validity,
    fingerprint: String,
    authority: Result<(), String>,
    path_len: Option<u8>,
}

impl TrustBundle {
    /// A bundle of these certificates; doubles are dropped.
    ///
    /// None at all is allowed: it is how SPIFFE says that nobody vouches for the domain any more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if one is no X.509 certificate, or is not a CA.
    pub fn new(
        trust_domain: TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self> {
        let roots = roots
            .into_iter()
            .map(TrustRoot::new)
            .collect::<Result<Vec<_>, String>>()
            .map_err(|why| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    format!("not a trust anchor: {why}"),
                )
                .with_context("trust domain", &trust_domain)
            })?;
        Self::of(trust_domain, roots)
    }

    fn of(trust_domain: TrustDomain, roots: impl IntoIterator<Item = TrustRoot>) -> Result<Self> {
        let mut seen = BTreeSet::new();
        let roots: Vec<TrustRoot> = roots
            .into_iter()
            .filter(|root| seen.insert(root.0.fingerprint.clone()))
            .collect();
        let anchor = |root: &TrustRoot| {
            webpki::anchor_from_trusted_cert(root.der()).map(|anchor| anchor.to_owned())
        };
        let anchors = roots.iter().map(anchor).collect::<Result<_, _>>();
        let anchors = anchors.map_err(|error| {
            Error::new(ErrorKind::InvalidConfig, "not a usable trust anchor").with_source(error)
        })?;
        Ok(Self {
            trust_domain,
            anchors,
            roots: roots.into(),
            sequence: None,
            refresh_hint: None,
        })
    }

    /// Reads `CERTIFICATE` blocks; nothing else may stand in the text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] with the line of the first fault, or if there is no certificate.
    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self> {
        let invalid = |why: String| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("not a PEM trust bundle: {why}"),
            )
            .with_context("trust domain", &trust_domain)
        };
        let certificates = pem::certificates(text).map_err(|error| invalid(error.to_string()))?;
        if certificates.is_empty() {
            return Err(invalid("there is no certificate in it".to_owned()));
        }
        let root =
            |(line, der)| TrustRoot::new(der).map_err(|why| invalid(format!("line {line}: {why}")));
        let roots: Vec<_> = certificates.into_iter().map(root).collect::<Result<_>>()?;
        Self::of(trust_domain, roots)
    }

    /// All roots as `CERTIFICATE` blocks.
    pub fn to_pem(&self) -> String {
        self.roots
            .iter()
            .map(|root| pem::encode("CERTIFICATE", root.der()))
            .collect()
    }

    /// Reads a SPIFFE bundle: a JWK Set whose `x509-svid` keys carry a certificate each
    /// (SPIFFE Trust Domain and Bundle §4, X.509-SVID §6). Keys of other uses are ignored, as the
    /// specification asks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] naming the key that is at fault.
    pub fn from_spiffe_json(trust_domain: TrustDomain, json: &str) -> Result<Self> {
        jwks::read(trust_domain, json)
    }

    /// Writes the SPIFFE bundle format.
    pub fn to_spiffe_json(&self) -> String {
        jwks::write(self)
    }

    /// Whose bundle it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots.
    pub fn roots(&self) -> &[TrustRoot] {
        &self.roots
    }

    /// Whether there is no root in it.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Whether exactly this certificate is one of the roots.
    pub fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.root(certificate).is_some()
    }

    pub(crate) fn root(&self, certificate: &CertificateDer<'_>) -> Option<&TrustRoot> {
        self.roots.iter().find(|root| root.der() == certificate)
    }

    /// The same with one more root, at the end.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_root(&self, certificate: CertificateDer<'static>) -> Result<Self> {
        self.union(&Self::new(self.trust_domain.clone(), [certificate])?)
    }

    /// The same without one root.
    ///
    /// # Errors
    ///
    /// None that [`new`](Self::new) would not have given before.
    pub fn without_root(&self, certificate: &CertificateDer<'_>) -> Result<Self> {
        self.replaced(self.roots.iter().filter(|root| root.der() != certificate))
    }

    /// The roots of both, ours first: several sources may vouch for one domain.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if they are of different trust domains: a root of one must never vouch for the other.
    pub fn union(&self, other: &Self) -> Result<Self> {
        if self.trust_domain != other.trust_domain {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "bundles of different trust domains cannot be joined",
            )
            .with_context("one", &self.trust_domain)
            .with_context("other", &other.trust_domain));
        }
        self.replaced(self.roots.iter().chain(other.roots()))
    }

    /// The same with other roots.
    fn replaced<'a>(&self, roots: impl Iterator<Item = &'a TrustRoot>) -> Result<Self> {
        Ok(Self {
            sequence: self.sequence,
            refresh_hint: self.refresh_hint,
            ..Self::of(self.trust_domain.clone(), roots.cloned())?
        })
    }

    /// The publisher's count of changes (`spiffe_sequence`), if it keeps one.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How often the publisher wants to be asked (`spiffe_refresh_hint`, whole seconds).
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// The same with a sequence number.
    #[must_use]
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// The same with a refresh hint; fractions of a second are dropped.
    #[must_use]
    pub fn with_refresh_hint(mut self, hint: Duration) -> Self {
        self.refresh_hint = Some(Duration::from_secs(hint.as_secs()));
        self
    }

    /// The same roots in the `spiffe` crate's own type.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if that crate refuses a certificate that we read.
    #[cfg(feature = "svid")]
    pub fn to_x509_bundle(&self) -> Result<spiffe::X509Bundle> {
        let mut bundle = spiffe::X509Bundle::new(self.trust_domain.clone());
        for root in self.roots.iter() {
            bundle.add_authority(root.der()).map_err(|error| {
                Error::new(ErrorKind::Internal, "the spiffe crate refuses a root")
                    .with_source(error)
            })?;
        }
        Ok(bundle)
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl TrustRoot {
    fn new(der: CertificateDer<'static>) -> Result<Self, String> {
        let parsed = Parsed::read(&der)?;
        let subject = parsed.subject();
        let constraints = parsed.basic_constraints().map_err(|error| {
            format!("`{subject}` has a damaged BasicConstraints extension: {error}")
        })?;
        let constraints = constraints
            .filter(|constraints| constraints.ca)
            .ok_or_else(|| format!("`{subject}` is not a CA (BasicConstraints cA is not set)"))?;
        Ok(Self(Arc::new(RootInner {
            subject,
            name: parsed.subject_name().der().to_owned(),
            public_key: parsed.public_key.to_vec().into(),
            validity: parsed.validity,
            fingerprint: x509::fingerprint(&der),
            authority: usages::check_root(&parsed),
            path_len: constraints.path_len_constraint,
            der,
        })))
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0.der
    }

    /// Its subject.
    pub fn subject(&self) -> String {
        self.0.subject.clone()
    }

    /// From when to when it is valid.
    pub fn validity(&self) -> Validity {
        self.0.validity
    }

    /// SHA-256 of the certificate in lower-case hex.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// Whether it is self-signed, as a root is; an intermediate may be a trust anchor as well.
    pub fn is_self_signed(&self) -> bool {
        Parsed::read(&self.0.der).is_ok_and(|root| root.is_self_signed())
    }

    /// Its subject in DER.
    pub(crate) fn name(&self) -> &[u8] {
        &self.0.name
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        &self.0.public_key
    }

    /// Whether its usages allow it to vouch for mesh certificates, and why not.
    pub(crate) fn authority(&self) -> &Result<(), String> {
        &self.0.authority
    }

    /// How many CAs may be below it.
    pub(crate) fn path_len(&self) -> Option<u8> {
        self.0.path_len
    }
}
