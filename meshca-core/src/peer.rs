//! Proving who is at the other end of a TLS connection, by the certificates that it shows.
//!
//! [`Peer::prove`] is a pure function of these certificates, the trust bundles, the side and the
//! time. It demands, in this order:
//!
//! | rule | source |
//! |---|---|
//! | exactly one URI name in the leaf, and that is a SPIFFE ID with a path, to the letter: nothing is made lower case. Where [tags](Peer::allow_tags) are allowed, `kuma://` names may follow | SPIFFE X.509-SVID §2, §3.1 |
//! | the leaf is not a CA's, may not sign certificates or CRLs, and lists the key usage `digitalSignature` | SPIFFE X.509-SVID §4.3, §5.2 |
//! | its key is P-256, P-384 or RSA | Envoy accepts no others |
//! | the chain leads to a root of **the trust domain in the leaf's own SPIFFE ID**: a root of one domain never vouches for another | SPIFFE X.509-SVID §5.1 |
//! | every certificate of the chain *and the root* is valid now | RFC 5280 §6.1.3; Envoy and Go look at the root as well |
//! | every CA may sign certificates; path lengths, name constraints and extended key usages hold, those of the root as well | RFC 5280 §6.1.4 |
//! | where a certificate lists purposes, they include what the peer does: a server's, a client's | RFC 5280 §4.2.1.12 |
//! | a certificate that names the key of its issuer names the key that its issuer has | RFC 5280 §4.2.1.1; Envoy and OpenSSL demand it |
//!
//! The module [`verify`](crate::verify) uses the same prover of paths for certificates that a CA
//! has issued. These must hold for longer and for more than one handshake, so there:
//!
//! - a certificate serves as client and as server;
//! - it ends no later than any CA above it;
//! - a renewed root has the name and key of the one that it renews. If the bundle holds both, the
//!   one that lasts longest must fit. For a peer, either may.
//!
//! DNS names, IP addresses and common names are never looked at. The caller decides whether the
//! proven peer may connect.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use x509_cert::ext::pkix::name::GeneralName;

use crate::TrustBundle;
use crate::time::{at, rfc3339};
use crate::usages::{check_extensions, check_workload};
use crate::verify::path::{NoPath, Prover, Purpose, in_words};
use crate::x509::Parsed;

/// The most characters of a foreign name that a message repeats.
const SHOWN: usize = 128;

/// The certificates that a peer shows in a handshake.
///
/// ```
/// use meshca_core::peer::Peer;
/// # use meshca_core::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
/// # use meshca_core::{Clock, SpiffeId, TrustBundle, peer::Refusal};
/// # fn client(
/// #     leaf: &CertificateDer<'_>,
/// #     intermediates: &[CertificateDer<'_>],
/// #     bundle: &TrustBundle,
/// #     algorithms: &[&dyn SignatureVerificationAlgorithm],
/// #     clock: &dyn Clock,
/// # ) -> Result<SpiffeId, Refusal> {
/// let peer = Peer::client(leaf, intermediates);
/// let roots_of = |domain: &_| Some(bundle).filter(|bundle| bundle.trust_domain() == domain);
/// let id = peer.prove(roots_of, algorithms, clock.now())?;
/// println!("{id} is calling");
/// # Ok(id)
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    leaf: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    purpose: Purpose,
    tags: bool,
}

impl<'a> Peer<'a> {
    /// The client of a connection: its own certificate, and those that it sent along.
    pub fn client(leaf: &'a CertificateDer<'a>, intermediates: &'a [CertificateDer<'a>]) -> Self {
        Self {
            leaf,
            intermediates,
            purpose: Purpose::Client,
            tags: false,
        }
    }

    /// The server of a connection: its own certificate, and those that it sent along.
    pub fn server(leaf: &'a CertificateDer<'a>, intermediates: &'a [CertificateDer<'a>]) -> Self {
        Self {
            leaf,
            intermediates,
            purpose: Purpose::Server,
            tags: false,
        }
    }

    /// Accepts the certificates of the classic model, in which the tags of a Dataplane follow the
    /// SPIFFE ID as further URI names (`kuma://…`). They are no X.509-SVIDs, but Envoy accepts them:
    /// it takes the first URI name, and looks at no other.
    #[must_use]
    pub fn allow_tags(self, allow: bool) -> Self {
        Self {
            tags: allow,
            ..self
        }
    }

    /// Proves who the peer is, and returns its SPIFFE ID. The TLS library proves that the peer
    /// holds the key of its certificate.
    ///
    /// `roots_of` returns the bundle of a trust domain. It is called with the domain in the peer's
    /// SPIFFE ID, and a bundle of another domain counts as none. `algorithms` are the signatures
    /// that count: those that the TLS library verifies.
    ///
    /// # Errors
    ///
    /// The first rule of the [module](self) that the peer breaks.
    pub fn prove<'b>(
        &self,
        roots_of: impl FnOnce(&TrustDomain) -> Option<&'b TrustBundle>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        at: SystemTime,
    ) -> Result<SpiffeId, Refusal> {
        let leaf = read(self.leaf)?;
        let id = spiffe_id(&leaf, self.tags)?;
        check_workload(&leaf)
            .map_err(|why| Refusal::NotALeaf(format!("the peer's certificate {why}")))?;
        check_extensions(&leaf)
            .map_err(|why| Refusal::Encoding(format!("the peer's certificate {why}")))?;
        let domain = id.trust_domain();
        let bundle = roots_of(domain)
            .filter(|bundle| bundle.trust_domain() == domain && !bundle.is_empty())
            .ok_or_else(|| {
                Refusal::UnknownTrustDomain(format!(
                    "the peer says that it is {id}, and there are no roots for the trust domain `{domain}`"
                ))
            })?;
        // A certificate that cannot be read does no harm unless the path needs it.
        let sent = self.intermediates.iter();
        let mut sent: Vec<Parsed<'_>> = sent.filter_map(|der| Parsed::read(der).ok()).collect();
        let held = bundle.intermediates();
        sent.extend(held.filter_map(|der| Parsed::read(der).ok()));
        let prover = Prover {
            candidates: sent.iter().collect(),
            bundle,
            purpose: self.purpose,
            algorithms,
        };
        match prover.prove(&leaf, at) {
            Ok(_) => Ok(id),
            Err(no_path) => Err(self.refusal(no_path, &id, &leaf, bundle, at)),
        }
    }

    fn refusal(
        &self,
        NoPath {
            error,
            unfit,
            unreadable,
        }: NoPath,
        id: &SpiffeId,
        leaf: &Parsed<'_>,
        bundle: &TrustBundle,
        at: SystemTime,
    ) -> Refusal {
        let path = |why: &str| {
            let domain = bundle.trust_domain();
            Refusal::Path(format!(
                "the certificate of {id} does not lead to the roots of `{domain}`: {why}"
            ))
        };
        match error {
            error if unreadable => {
                Refusal::Encoding(format!("the peer's certificate cannot be used: {error}"))
            }
            webpki::Error::CertExpired { time, not_after } => Refusal::Expired { time, not_after },
            webpki::Error::CertNotValidYet { time, not_before } => {
                Refusal::NotYetValid { time, not_before }
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => {
                let purpose = match self.purpose {
                    Purpose::Client => "client",
                    _ => "server",
                };
                Refusal::Purpose(format!(
                    "the certificate of {id}, or a CA above it, is not for {purpose} authentication (extended key usage)"
                ))
            }
            webpki::Error::UnknownIssuer => match unfit {
                Some(unfit) if !unfit.root_unknown => path(&unfit.why),
                _ => path(&unknown_issuer(leaf, bundle, at)),
            },
            error => path(in_words(&error)),
        }
    }
}

/// Returns the SPIFFE ID that a peer's certificate claims, and proves nothing of it. Tags may
/// [follow](Peer::allow_tags) the ID.
///
/// # Errors
///
/// [`Refusal::Encoding`] and [`Refusal::SpiffeId`].
pub fn claimed_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Refusal> {
    spiffe_id(&read(leaf)?, true)
}

fn read<'a>(leaf: &'a CertificateDer<'a>) -> Result<Parsed<'a>, Refusal> {
    Parsed::read(leaf)
        .map_err(|why| Refusal::Encoding(format!("cannot read the peer's certificate: {why}")))
}

/// Returns the one SPIFFE ID of a certificate (SPIFFE X.509-SVID §2). A second URI makes it void: one
/// reader would take the first for the peer's name and another the second. A tag is nobody's name.
fn spiffe_id(leaf: &Parsed<'_>, tags: bool) -> Result<SpiffeId, Refusal> {
    let names = leaf.subject_alt_names().map_err(|error| {
        Refusal::SpiffeId(format!(
            "the subject alternative names of the peer's certificate are damaged: {error}"
        ))
    })?;
    // Borrowed: this is done for each handshake.
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        _ => None,
    });
    let first = uris.next();
    let more = uris
        .filter(|uri| !(tags && uri.starts_with("kuma://")))
        .count();
    let only = match (first, more) {
        (None, _) => Err("the peer's certificate has no URI name, so no SPIFFE ID".to_owned()),
        (Some(uri), 0) => parse_spiffe_id(uri),
        (Some(_), more) => Err(format!(
            "the peer's certificate has {} URI names, where an X.509-SVID has one (X.509-SVID §2)",
            more.saturating_add(1)
        )),
    };
    only.map_err(Refusal::SpiffeId)
}

/// Reads a workload's SPIFFE ID, to the letter. The parser would make upper case lower case, and two
/// spellings would be one peer here and two elsewhere.
fn parse_spiffe_id(uri: &str) -> Result<SpiffeId, String> {
    let shown: String = uri.escape_debug().take(SHOWN).collect();
    let id = SpiffeId::new(uri).map_err(|error| {
        format!("the URI name of the peer's certificate, `{shown}`, is not a SPIFFE ID: {error}")
    })?;
    if id.to_string() != uri {
        return Err(format!(
            "the URI name of the peer's certificate, `{shown}`, is not a SPIFFE ID as it must be written: `{id}`"
        ));
    }
    if id.path().is_empty() {
        return Err(format!(
            "the SPIFFE ID of the peer's certificate, `{shown}`, has no path, so it is no workload's (X.509-SVID §3.1)"
        ));
    }
    Ok(id)
}

fn unknown_issuer(leaf: &Parsed<'_>, bundle: &TrustBundle, at: SystemTime) -> String {
    let roots = bundle.roots().iter();
    let outdated: Vec<String> = roots
        .filter(|root| !root.validity().contains(at))
        .map(|root| format!("`{}`, valid from {}", root.subject(), root.validity()))
        .collect();
    let mut why = format!("root unknown (its issuer is `{}`)", leaf.issuer());
    if !outdated.is_empty() {
        why.push_str("; roots that do not count now: ");
        why.push_str(&outdated.join(", "));
    }
    why
}

/// The rule that a peer broke. The texts are for a log: the peer itself hears of an alert only.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[non_exhaustive]
pub enum Refusal {
    /// Its certificate cannot be read, or has a critical extension that is not understood.
    Encoding(String),
    /// Its certificate does not carry exactly one URI that is the SPIFFE ID of a workload.
    SpiffeId(String),
    /// Its certificate is one to sign certificates with, or may not sign handshakes, or its key is of
    /// a type that Envoy accepts in none.
    NotALeaf(String),
    /// There are no roots for the trust domain in its SPIFFE ID.
    UnknownTrustDomain(String),
    /// Its chain does not lead to a root of the trust domain in its SPIFFE ID.
    Path(String),
    /// Its certificate, or a CA above it, is for another purpose.
    Purpose(String),
    /// A certificate of its chain has expired.
    #[display(
        "a certificate of the peer ended at {}, and it is {}",
        shown(not_after),
        shown(time)
    )]
    #[non_exhaustive]
    Expired {
        /// The time of the handshake.
        time: UnixTime,
        /// When the certificate ended.
        not_after: UnixTime,
    },
    /// A certificate of its chain is not valid yet.
    #[display(
        "a certificate of the peer begins at {}, and it is {}: compare the clocks",
        shown(not_before),
        shown(time)
    )]
    #[non_exhaustive]
    NotYetValid {
        /// The time of the handshake.
        time: UnixTime,
        /// When the certificate begins.
        not_before: UnixTime,
    },
}

fn shown(time: &UnixTime) -> String {
    rfc3339(at(time.as_secs()))
}

impl std::error::Error for Refusal {}
