//! The proof that a certificate leads to a trust bundle, by rustls-webpki and a few rules that it
//! leaves out.
//!
//! Certificates that a CA has issued and those that a peer shows have the same prover. Its verdict
//! depends on the certificates, the bundle, the purpose, the algorithms and the time only.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage,
    RequiredEkuNotFoundContext, VerifiedPath,
};

use super::critical::{OfOriginals, Uncritical};
use crate::time::rfc3339;
use crate::usages::{Authority, check_ca};
use crate::x509::{CLIENT_AUTH, Parsed, SERVER_AUTH};
use crate::{TrustBundle, TrustRoot, Validity};

/// The use that a path must allow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// A certificate that is handed out. A proxy uses it as client and as server, until it ends.
    Issued {
        /// The end of the certificate.
        until: SystemTime,
    },
    /// The client of one handshake.
    Client,
    /// The server of one handshake.
    Server,
}

impl ExtendedKeyUsageValidator for Purpose {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        // No purposes at all is how the library says that the extension is absent.
        let (mut any, mut server, mut client) = (false, false, false);
        for purpose in purposes {
            let purpose = purpose?;
            any = true;
            server |= purpose == KeyPurposeId::new(SERVER_AUTH.as_bytes());
            client |= purpose == KeyPurposeId::new(CLIENT_AUTH.as_bytes());
        }
        let required = match self {
            _ if !any => return Ok(()),
            Self::Issued { .. } | Self::Server if !server => KeyUsage::server_auth(),
            Self::Issued { .. } | Self::Client if !client => KeyUsage::client_auth(),
            _ => return Ok(()),
        };
        Err(webpki::Error::RequiredEkuNotFoundContext(
            RequiredEkuNotFoundContext {
                required,
                present: Vec::new(),
            },
        ))
    }
}

/// A question: whether some of these certificates lead to one of these roots.
pub(crate) struct Prover<'a> {
    /// The certificates that a path may go through, in any order.
    pub(crate) candidates: Vec<&'a Parsed<'a>>,
    pub(crate) bundle: &'a TrustBundle,
    pub(crate) purpose: Purpose,
    /// The signatures that count.
    pub(crate) algorithms: &'a [&'a dyn SignatureVerificationAlgorithm],
}

/// The way from a certificate to the root, the certificate left out.
pub(crate) struct Path<'a> {
    pub(crate) intermediates: Vec<&'a Parsed<'a>>,
    pub(crate) root: &'a TrustRoot,
}

/// The reason why there is no path.
pub(crate) struct NoPath {
    pub(crate) error: webpki::Error,
    /// Why the last path that webpki would have taken was not good enough, if there was one.
    pub(crate) unfit: Option<Unfit>,
    /// Whether it is the certificate itself that cannot be read.
    pub(crate) unreadable: bool,
}

/// Why a path is not good enough, and whether newer roots might give a better one.
pub(crate) struct Unfit {
    pub(crate) why: String,
    pub(crate) root_unknown: bool,
}

/// Of a certificate that cannot be read.
impl From<webpki::Error> for NoPath {
    fn from(error: webpki::Error) -> Self {
        Self {
            error,
            unfit: None,
            unreadable: true,
        }
    }
}

impl From<String> for Unfit {
    fn from(why: String) -> Self {
        Self {
            why,
            root_unknown: false,
        }
    }
}

impl<'a> Prover<'a> {
    /// Finds a path from this certificate that holds at this time.
    pub(crate) fn prove(
        &self,
        end_entity: &Parsed<'_>,
        at: SystemTime,
    ) -> Result<Path<'a>, NoPath> {
        let candidates = self.candidates.iter();
        let mut copies: Vec<Uncritical<'_>> =
            candidates.filter_map(|it| Uncritical::of(it)).collect();
        copies.extend(Uncritical::of(end_entity));
        if copies.is_empty() {
            let candidates = self.candidates.iter().copied();
            let shown = candidates.map(|it| (CertificateDer::from(it.der.as_ref()), it));
            return self.prove_by(
                end_entity,
                end_entity.der,
                &shown.unzip(),
                self.algorithms,
                at,
            );
        }
        let shown = |certificate: &Parsed<'_>| {
            let mut copies = copies.iter();
            let copy = copies.find(|copy| copy.is_of(certificate));
            copy.map_or(certificate.der.as_ref(), |copy| copy.der.as_ref())
                .to_vec()
                .into()
        };
        let algorithms = self.algorithms.iter().map(|algorithm| OfOriginals {
            algorithm: *algorithm,
            copies: &copies,
        });
        let algorithms: Vec<_> = algorithms.collect();
        let algorithms: Vec<&dyn SignatureVerificationAlgorithm> =
            { algorithms.iter().map(|one| one as _) }.collect();
        let candidates = self.candidates.iter().copied();
        let candidates = candidates.map(|it| (shown(it), it)).unzip();
        let leaf: CertificateDer<'static> = shown(end_entity);
        self.prove_by(end_entity, &leaf, &candidates, &algorithms, at)
    }

    fn prove_by(
        &self,
        leaf: &Parsed<'_>,
        shown: &CertificateDer<'_>,
        (shown_candidates, candidates): &(Vec<CertificateDer<'_>>, Vec<&'a Parsed<'a>>),
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        at: SystemTime,
    ) -> Result<Path<'a>, NoPath> {
        let end_entity = EndEntityCert::try_from(shown)?;
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let time = UnixTime::since_unix_epoch(since.unwrap_or_default());
        let examined = RefCell::new(None);
        let known = |der: CertificateDer<'_>| {
            let place = shown_candidates.iter().position(|shown| *shown == der);
            place.and_then(|place| candidates.get(place).copied())
        };
        // An error here makes webpki look for another path; it takes the first that has none.
        let good_enough = |path: &VerifiedPath<'_>| {
            let used = path.intermediate_certificates();
            let used: Option<Vec<_>> = used.map(|used| known(used.der())).collect();
            let result = match used {
                Some(used) => self.examine(leaf, used, path.anchor(), at),
                None => Err("a CA in the chain cannot be read".to_owned().into()),
            };
            let verdict = result.as_ref().map(drop);
            let verdict = verdict.map_err(|_| webpki::Error::UnknownIssuer);
            *examined.borrow_mut() = Some(result);
            verdict
        };
        let proven = end_entity.verify_for_usage(
            algorithms,
            self.bundle.anchors(),
            shown_candidates,
            time,
            self.purpose,
            None,
            Some(&good_enough),
        );
        let proven = proven.map(drop);
        match (proven, examined.into_inner()) {
            (Ok(()), Some(Ok(path))) => Ok(path),
            (proven, examined) => Err(NoPath {
                error: proven.err().unwrap_or(webpki::Error::UnknownIssuer),
                unfit: examined.and_then(Result::err),
                unreadable: false,
            }),
        }
    }

    /// Applies the rules that webpki leaves out, and Envoy, Go and OpenSSL apply: key usages of CAs,
    /// identifiers of keys, and dates, path length and usages of the root. (RFC 5280 §6.1.4 takes only
    /// a name and a key of a trust anchor. For them it is a certificate.)
    fn examine(
        &self,
        leaf: &Parsed<'_>,
        intermediates: Vec<&'a Parsed<'a>>,
        anchor: &TrustAnchor<'_>,
        at: SystemTime,
    ) -> Result<Path<'a>, Unfit> {
        let mut last = leaf;
        for ca in &intermediates {
            check_ca(ca)?;
            check_link(last, &Authority::of(ca), || ca.subject())?;
            self.check_end(ca.validity, || ca.subject())?;
            last = ca;
        }
        // Self-issued certificates do not count (RFC 5280 §6.1.4 (l)).
        let counted = intermediates.iter().filter(|ca| !ca.is_self_issued());
        let below = counted.count();
        // A renewed root has the name and key of the one that it renews: the path leads to both.
        let mut roots: Vec<&'a TrustRoot> = self.bundle.roots_of(anchor).collect();
        roots.sort_by_key(|root| Reverse(root.validity().not_after()));
        if let Purpose::Issued { .. } = self.purpose {
            // Envoy takes one of them, whatever its dates. The root that stays for longest decides.
            roots.truncate(1);
        }
        let mut unfit = Unfit {
            why: "root unknown".to_owned(),
            root_unknown: true,
        };
        for root in roots {
            let checked = check_link(last, root.identifiers(), || root.subject())
                .and_then(|()| self.check_root(root, below, at));
            match checked {
                Ok(()) => {
                    return Ok(Path {
                        intermediates,
                        root,
                    });
                }
                Err(why) => unfit = why,
            }
        }
        Err(unfit)
    }

    fn check_root(&self, root: &TrustRoot, below: usize, at: SystemTime) -> Result<(), Unfit> {
        if !root.validity().contains(at) {
            return Err(Unfit {
                why: format!("root unknown: {}", outdated(root)),
                root_unknown: true,
            });
        }
        let allowed = root.authority().clone()?;
        let allowed = match self.purpose {
            Purpose::Issued { .. } => allowed.server && allowed.client,
            Purpose::Server => allowed.server,
            Purpose::Client => allowed.client,
        };
        if !allowed {
            return Err(root.restricted().into());
        }
        match root.path_len() {
            Some(most) if below > usize::from(most) => Err(format!(
                "the root `{}` may have {most} CAs below it, and {below} are (path length)",
                root.subject()
            ))?,
            _ => {}
        }
        // A root that was renewed under its key may be known to the CA already.
        let end = self.check_end(root.validity(), || root.subject());
        end.map_err(|why| Unfit {
            why,
            root_unknown: true,
        })
    }

    /// Checks that an issued certificate ends no later than its issuer. For a peer this moment counts.
    fn check_end(&self, issuer: Validity, subject: impl FnOnce() -> String) -> Result<(), String> {
        match self.purpose {
            Purpose::Issued { until } if until > issuer.not_after() => Err(format!(
                "the certificate outlives its issuer `{}`: peers will refuse it from {} on; renew the CA or ask for a shorter lifetime",
                subject(),
                rfc3339(issuer.not_after()),
            )),
            _ => Ok(()),
        }
    }
}

/// Checks that the identifiers in a certificate, if there are any, are those of its issuer.
fn check_link(
    below: &Parsed<'_>,
    issuer: &Authority,
    subject: impl FnOnce() -> String,
) -> Result<(), Unfit> {
    if issuer.fits(below) {
        return Ok(());
    }
    Err(Unfit {
        why: format!(
            "a certificate of serial number {} names another certificate as that of its issuer than the one of `{}` here (authority key identifier), so Envoy refuses it; renew what the CA signed with the certificate that it has now, or return that one",
            below.serial(),
            subject(),
        ),
        root_unknown: true,
    })
}

/// Says that a root of the bundle does not count now.
pub(super) fn outdated(root: &TrustRoot) -> String {
    let (subject, validity) = (root.subject(), root.validity());
    format!("the root `{subject}` in the trust bundle is valid only from {validity}")
}

/// Says in words what the library says in codes.
pub(crate) fn in_words(error: &webpki::Error) -> &'static str {
    use webpki::Error as E;
    match error {
        E::InvalidSignatureForPublicKey => {
            "a signature in the chain does not verify: a certificate was altered, or a CA was \
             replaced by another of the same name"
        }
        E::CertExpired { .. } => "a certificate in the chain has expired",
        E::CertNotValidYet { .. } => {
            "a certificate in the chain is not valid yet: compare the clocks"
        }
        E::NameConstraintViolation => {
            "a CA in the chain is constrained to other names (URI constraints are not supported \
             and count as a violation)"
        }
        E::PathLenConstraintViolated => {
            "a CA in the chain may not have a CA below it (path length)"
        }
        E::EndEntityUsedAsCa => "a certificate in the chain signed another without being a CA",
        E::RequiredEkuNotFoundContext(_) => {
            "a CA in the chain is restricted to other purposes than server and client \
             authentication"
        }
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a certificate in the chain is signed with an algorithm that is not accepted (SHA-1 \
             and RSA below 2048 bits are not)"
        }
        E::UnsupportedCriticalExtension => {
            "a certificate in the chain has a critical extension that is not understood; have the \
             CA leave it out or not mark it"
        }
        _ => "the certificate does not lead to the trust bundle",
    }
}
