//! Trust bundles: the roots that peers must hold.

mod jwks;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor};
use spiffe::TrustDomain;

use crate::usages::{Authority, Purposes};
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
    /// What webpki needs of those roots in which a chain may end.
    #[debug(skip)]
    anchors: Arc<[TrustAnchor<'static>]>,
    partial_chains: bool,
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
    authority: Result<Purposes, String>,
    path_len: Option<u8>,
    identifiers: Authority,
    /// The name of its issuer, if a data plane does not let a chain end in it.
    above: Option<(Vec<u8>, String)>,
    anchor: TrustAnchor<'static>,
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
        Ok(Self::of(trust_domain, roots))
    }

    pub(crate) fn of(
        trust_domain: TrustDomain,
        roots: impl IntoIterator<Item = TrustRoot>,
    ) -> Self {
        let mut seen = BTreeSet::new();
        let roots: Vec<TrustRoot> = roots
            .into_iter()
            .filter(|root| seen.insert(root.0.fingerprint.clone()))
            .collect();
        Self {
            trust_domain,
            anchors: anchors(&roots, false),
            roots: roots.into(),
            partial_chains: false,
            sequence: None,
            refresh_hint: None,
        }
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
        Ok(Self::of(trust_domain, roots))
    }

    /// Reads `CERTIFICATE` blocks, without those that cannot be an anchor: the second list says why, with their lines.
    pub(crate) fn readable(trust_domain: TrustDomain, text: &str) -> (Self, Vec<String>) {
        let (mut roots, mut left_out) = (Vec::new(), Vec::new());
        match pem::certificates(text) {
            Err(error) => left_out.push(error.to_string()),
            Ok(certificates) => {
                for (line, der) in certificates {
                    match TrustRoot::new(der) {
                        Ok(root) => roots.push(root),
                        Err(why) => left_out.push(format!("line {line}: {why}")),
                    }
                }
            }
        }
        (Self::of(trust_domain, roots), left_out)
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

    /// The root with this certificate, if a chain may end in it.
    #[cfg(feature = "builtin")]
    pub(crate) fn end(&self, certificate: &CertificateDer<'_>) -> Option<&TrustRoot> {
        let found = self.root(certificate);
        found.filter(|root| self.may_end_in(root))
    }

    /// The same with one more root, at the end.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_root(&self, certificate: CertificateDer<'static>) -> Result<Self> {
        let one = Self::new(self.trust_domain.clone(), [certificate])?;
        Ok(self.replaced(self.roots.iter().chain(one.roots())))
    }

    /// The same without one root.
    ///
    /// # Errors
    ///
    /// None that [`new`](Self::new) would not have given before.
    pub fn without_root(&self, certificate: &CertificateDer<'_>) -> Result<Self> {
        let others = self.roots.iter().filter(|root| root.der() != certificate);
        Ok(self.replaced(others))
    }

    /// The roots of both, ours first: several sources may vouch for one domain.
    ///
    /// [Partial chains](Self::allow_partial_chains) are allowed only if both allow them: a bundle that
    /// was made for Envoy must not lose that by what it is joined with.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if they are of different trust domains: a root of one must never vouch for the other.
    pub fn union(&self, other: &Self) -> Result<Self> {
        self.require_domain_of(other)?;
        let both = self.replaced(self.roots.iter().chain(other.roots()));
        Ok(both.allow_partial_chains(self.partial_chains && other.partial_chains))
    }

    /// The same with those certificates of `peers` that lead on from its intermediates: from each, the
    /// issuer and all above that. Chains may end where `peers` lets them.
    ///
    /// A CA may know no more than its own certificate, an intermediate. This is the bundle to
    /// [verify](crate::SignedChain::verify) against what it signs if its peers hold `peers`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] if they are of different trust domains.
    pub fn completed_by(&self, peers: &Self) -> Result<Self> {
        self.require_domain_of(peers)?;
        let mut all = self.roots.to_vec();
        let mut next = 0;
        while let Some(anchor) = all.get(next) {
            let above = peers.roots.iter().filter(|root| root.signed(anchor));
            let above = above.filter(|root| !all.contains(root));
            let above: Vec<TrustRoot> = above.cloned().collect();
            all.extend(above);
            next += 1;
        }
        let completed = self.replaced(all.iter());
        Ok(completed.allow_partial_chains(peers.partial_chains))
    }

    fn require_domain_of(&self, other: &Self) -> Result<()> {
        if self.trust_domain == other.trust_domain {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            "bundles of different trust domains cannot be joined",
        )
        .with_context("one", &self.trust_domain)
        .with_context("other", &other.trust_domain))
    }

    /// The same with other roots.
    fn replaced<'a>(&self, roots: impl Iterator<Item = &'a TrustRoot>) -> Self {
        let replaced = Self {
            sequence: self.sequence,
            refresh_hint: self.refresh_hint,
            ..Self::of(self.trust_domain.clone(), roots.cloned())
        };
        replaced.allow_partial_chains(self.partial_chains)
    }

    /// Lets chains end in an intermediate of this bundle. **No Envoy accepts that**, nor does OpenSSL
    /// by default: it is for meshes in which rustls or Go verifies every peer.
    ///
    /// Without it, an intermediate in a bundle is good for nothing but the way to its root, which must
    /// be in the bundle as well; [`dead_ends`](Self::dead_ends) says where it is not.
    #[must_use]
    pub fn allow_partial_chains(mut self, allow: bool) -> Self {
        if self.partial_chains != allow {
            self.partial_chains = allow;
            self.anchors = anchors(&self.roots, allow);
        }
        self
    }

    /// The certificates in which a chain may end: roots, and intermediates where [partial
    /// chains](Self::allow_partial_chains) are allowed. Without those whose own extensions forbid them
    /// to vouch for workloads. Dates are not looked at.
    ///
    /// Whatever leads to none of them is refused, so a bundle without any is as good as an empty one.
    pub fn ends(&self) -> impl Iterator<Item = &TrustRoot> {
        self.roots.iter().filter(|root| {
            let allowed = root.authority().as_ref();
            self.may_end_in(root) && allowed.is_ok_and(|it| it.server && it.client)
        })
    }

    fn may_end_in(&self, root: &TrustRoot) -> bool {
        self.partial_chains || root.0.above.is_none()
    }

    /// Finds the certificates in this bundle from which no path leads to one of its
    /// [`ends`](Self::ends), each with the reason and the way out of it, for people. Envoy ignores
    /// these certificates; it does not refuse the bundle for them.
    ///
    /// An intermediate is one of them if its root is not in the bundle, unless [partial
    /// chains](Self::allow_partial_chains) are allowed. So is a root whose own extensions forbid it to
    /// vouch for workloads. Dates are not looked at.
    pub fn dead_ends(&self) -> impl Iterator<Item = (&TrustRoot, String)> {
        self.roots.iter().filter_map(|anchor| {
            match anchor.authority() {
                Err(why) => return Some((anchor, why.clone())),
                Ok(it) if !(it.server && it.client) => return Some((anchor, anchor.restricted())),
                Ok(_) => {}
            }
            let missing = self.missing_above(anchor)?;
            let subject = anchor.subject();
            Some((
                anchor,
                format!(
                    "`{subject}` in the trust bundle is an intermediate, and Envoy accepts no chain that ends in one; add its root to the bundle, for which the certificate of `{missing}` is missing"
                ),
            ))
        })
    }

    /// Follows the signatures from an anchor upwards, and returns the name of what the bundle lacks, if
    /// chains may not end in the anchor.
    pub(crate) fn missing_above(&self, anchor: &TrustRoot) -> Option<String> {
        if self.may_end_in(anchor) {
            return None;
        }
        let mut last = anchor;
        // A circle has no end either.
        for _ in 0..=self.roots.len() {
            let (_, shown) = last.0.above.as_ref()?;
            let mut above = self.roots.iter().filter(|root| root.signed(last));
            match above.next() {
                Some(next) => last = above.find(|it| it.0.above.is_none()).unwrap_or(next),
                None => return Some(shown.clone()),
            }
        }
        last.0.above.as_ref().map(|(_, shown)| shown.clone())
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

    /// In these a chain may end.
    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// The roots that webpki knows by this anchor: a renewed one has the name and key of the old one.
    pub(crate) fn roots_of(&self, anchor: &TrustAnchor<'_>) -> impl Iterator<Item = &TrustRoot> {
        let ends = self.roots.iter().filter(|root| self.may_end_in(root));
        let ends = ends.zip(self.anchors.iter());
        ends.filter_map(move |(root, its)| (its == anchor).then_some(root))
    }

    /// The certificates that are no end of a chain, and may be on the way to one.
    pub(crate) fn intermediates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        let on_the_way = self.roots.iter().filter(|root| !self.may_end_in(root));
        on_the_way.map(TrustRoot::der)
    }
}

fn anchors(roots: &[TrustRoot], partial_chains: bool) -> Arc<[TrustAnchor<'static>]> {
    let ends = roots
        .iter()
        .filter(|root| partial_chains || root.0.above.is_none());
    ends.map(|root| root.0.anchor.clone()).collect()
}

impl TrustRoot {
    fn new(der: CertificateDer<'static>) -> Result<Self, String> {
        let parsed = Parsed::read(&der)?;
        let subject = parsed.subject();
        let constraints = parsed.basic_constraints().map_err(|error| {
            format!("`{subject}` has a damaged BasicConstraints extension: {error}")
        })?;
        if !parsed.is_ca() {
            return Err(format!(
                "`{subject}` is not a CA (BasicConstraints cA is not set)"
            ));
        }
        let anchor = webpki::anchor_from_trusted_cert(&der);
        let anchor = anchor.map_err(|error| format!("`{subject}` cannot be used: {error}"))?;
        let anchor = anchor.to_owned();
        let issuer = || (parsed.issuer_name().der().to_owned(), parsed.issuer());
        Ok(Self(Arc::new(RootInner {
            name: parsed.subject_name().der().to_owned(),
            public_key: parsed.public_key.to_vec().into(),
            validity: parsed.validity,
            fingerprint: x509::fingerprint(&der),
            authority: usages::check_root(&parsed),
            path_len: constraints.and_then(|constraints| constraints.path_len_constraint),
            identifiers: Authority::of(&parsed),
            above: (!usages::ends_chains(&parsed)).then(issuer),
            anchor,
            subject,
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

    /// Whether it is self-signed, as a root is. A signature by an algorithm that is not verified here,
    /// such as SHA-1, counts as its own: nothing depends on it (RFC 5280 §6.1).
    pub fn is_self_signed(&self) -> bool {
        Parsed::read(&self.0.der).is_ok_and(|root| root.is_self_signed())
    }

    /// Whether it signed this other one, which is not a root.
    fn signed(&self, below: &Self) -> bool {
        let named = below.0.above.as_ref();
        named.is_some_and(|(issuer, _)| self.name() == issuer)
            && Parsed::read(&below.0.der).is_ok_and(|below| below.is_signed_by(self.public_key()))
    }

    /// The features by which what it signed may name it.
    pub(crate) fn identifiers(&self) -> &Authority {
        &self.0.identifiers
    }

    /// Its subject in DER.
    pub(crate) fn name(&self) -> &[u8] {
        &self.0.name
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfoDer<'static> {
        &self.0.public_key
    }

    /// What its extensions allow it to vouch for, or why that is nothing.
    pub(crate) fn authority(&self) -> &Result<Purposes, String> {
        &self.0.authority
    }

    /// Says that its extended key usage leaves out a purpose.
    pub(crate) fn restricted(&self) -> String {
        format!(
            "the root `{}` is restricted to other purposes than server and client authentication",
            self.subject()
        )
    }

    /// How many CAs may be below it.
    pub(crate) fn path_len(&self) -> Option<u8> {
        self.0.path_len
    }
}
