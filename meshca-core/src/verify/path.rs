//! Proving that a certificate leads to the trust bundle, by rustls-webpki and a few rules that it leaves out.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage,
    RequiredEkuNotFoundContext, VerifiedPath,
};

use super::{CLOCK_SKEW, Refusal, bad};
use crate::encode::{Contents, Template};
use crate::key::KeyMaterial;
use crate::time::rfc3339;
use crate::x509::{CLIENT_AUTH, Parsed, SERVER_AUTH};
use crate::{CertificateRequest, Error, ErrorKind, Profile, TrustBundle, TrustRoot, Validity};

/// The way from a leaf to the root, the leaf left out.
pub(super) struct Path<'a> {
    pub(super) intermediates: Vec<&'a Parsed<'a>>,
    pub(super) root: &'a TrustRoot,
}

/// Both purposes, where a certificate names purposes at all; that the leaf names them has been checked.
struct ServerAndClient;

impl ExtendedKeyUsageValidator for ServerAndClient {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        // No purposes at all is how the library says that the extension is absent.
        let (mut any, mut server, mut client) = (false, false, false);
        for purpose in purposes {
            let purpose = purpose?;
            any = true;
            server |= purpose == KeyPurposeId::new(SERVER_AUTH.as_bytes());
            client |= purpose == KeyPurposeId::new(CLIENT_AUTH.as_bytes());
        }
        let required = match (any, server, client) {
            (false, ..) | (true, true, true) => return Ok(()),
            (true, false, _) => KeyUsage::server_auth(),
            (true, true, false) => KeyUsage::client_auth(),
        };
        Err(webpki::Error::RequiredEkuNotFoundContext(
            RequiredEkuNotFoundContext {
                required,
                present: Vec::new(),
            },
        ))
    }
}

pub(super) fn prove<'a>(
    leaf: &'a Parsed<'a>,
    others: &[&'a Parsed<'a>],
    request: &CertificateRequest,
    bundle: &'a TrustBundle,
    now: SystemTime,
) -> Result<Path<'a>, Refusal> {
    let throwaway;
    let (end_entity, candidates) = match (request.spec().profile(), request.held_key()) {
        (Profile::Workload, _) => (leaf.der, others.to_vec()),
        (Profile::Intermediate { .. }, Some(key)) => {
            throwaway = sign_throwaway(leaf, key, request)?;
            (
                &throwaway,
                [leaf].into_iter().chain(others.iter().copied()).collect(),
            )
        }
        (Profile::Intermediate { .. }, None) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "an intermediate is proven with its own key, which is not held here",
            )
            .into());
        }
    };
    let prover = Prover {
        leaf,
        candidates,
        bundle,
        why_not: RefCell::new(None),
    };
    // What begins a moment from now is proven for that moment: the caller holds it back until then.
    let soon = now.checked_add(CLOCK_SKEW).unwrap_or(now);
    let roots = bundle.roots().iter().map(TrustRoot::validity);
    let sent = others.iter().copied().chain([leaf]);
    let begins = sent.map(|certificate| certificate.validity).chain(roots);
    let begins = begins.map(|validity| validity.not_before());
    let moment = begins.filter(|begin| *begin <= soon).max().unwrap_or(now);
    match prover.prove(end_entity, leaf.validity.not_before().max(now)) {
        Err(_) if moment > now => prover.prove(end_entity, moment),
        result => result,
    }
}

struct Prover<'a> {
    leaf: &'a Parsed<'a>,
    candidates: Vec<&'a Parsed<'a>>,
    bundle: &'a TrustBundle,
    /// Why the last path that webpki would have taken was not good enough.
    why_not: RefCell<Option<Unfit>>,
}

/// Why a path is not good enough, and whether newer roots might give a better one.
struct Unfit {
    why: String,
    root_unknown: bool,
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
    fn prove(&self, end_entity: &CertificateDer<'_>, at: SystemTime) -> Result<Path<'a>, Refusal> {
        let explain = |error| self.refusal(error, at);
        let intermediates: Vec<CertificateDer<'_>> = self
            .candidates
            .iter()
            .map(|candidate| CertificateDer::from(candidate.der.as_ref()))
            .collect();
        let time = UnixTime::since_unix_epoch(
            at.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        );
        let end_entity = EndEntityCert::try_from(end_entity).map_err(explain)?;
        let found = RefCell::new(None);
        // An error here makes webpki look for another path; it takes the first that has none.
        let good_enough = |path: &VerifiedPath<'_>| match self.examine(path, at) {
            Ok(path) => {
                *found.borrow_mut() = Some(path);
                Ok(())
            }
            Err(why) => {
                *self.why_not.borrow_mut() = Some(why);
                Err(webpki::Error::UnknownIssuer)
            }
        };
        end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                self.bundle.anchors(),
                &intermediates,
                time,
                ServerAndClient,
                None,
                Some(&good_enough),
            )
            .map_err(explain)?;
        found
            .take()
            .ok_or_else(|| bad("the path was not examined").into())
    }

    /// What webpki leaves out, and Envoy, Go and OpenSSL look at: key usages of CAs, and everything
    /// about a root but its name, key and name constraints (RFC 5280 §6.1.4; a trust anchor need
    /// not be a certificate for RFC 5280, but it is one for them). And that nothing outlives its issuer.
    fn examine(&self, path: &VerifiedPath<'_>, at: SystemTime) -> Result<Path<'a>, Unfit> {
        let cas: Vec<&'a Parsed<'a>> = path
            .intermediate_certificates()
            .filter_map(|used| {
                self.candidates
                    .iter()
                    .copied()
                    .find(|candidate| *candidate.der == used.der())
            })
            .collect();
        for ca in &cas {
            check_ca(ca)?;
            check_end(self.leaf, ca.validity, || ca.subject())?;
        }
        // A renewed root has the name and key of the one it renews: the one that lasts longest decides.
        let fitting = self.bundle.roots().iter().zip(self.bundle.anchors());
        let root = fitting
            .filter(|(_, anchor)| *anchor == path.anchor())
            .map(|(root, _)| root)
            .max_by_key(|root| root.validity().not_after())
            .ok_or_else(|| Unfit {
                why: "root unknown".to_owned(),
                root_unknown: true,
            })?;
        if !root.validity().contains(at) {
            return Err(Unfit {
                why: format!(
                    "root unknown: the root `{}` in the trust bundle is valid only from {}",
                    root.subject(),
                    root.validity()
                ),
                root_unknown: true,
            });
        }
        root.authority().clone()?;
        check_path_length(root, &cas)?;
        check_end(self.leaf, root.validity(), || root.subject())?;
        let intermediates = cas
            .into_iter()
            .filter(|ca| ca.der != self.leaf.der)
            .collect();
        Ok(Path {
            intermediates,
            root,
        })
    }

    fn refusal(&self, error: webpki::Error, at: SystemTime) -> Refusal {
        let (what, root_unknown) = match (&error, self.why_not.take()) {
            (webpki::Error::UnknownIssuer, Some(unfit)) => (unfit.why, unfit.root_unknown),
            (webpki::Error::UnknownIssuer, None) => {
                let why = explain_unknown_issuer(self.leaf, &self.candidates, self.bundle, at);
                (why, true)
            }
            (webpki::Error::InvalidSignatureForPublicKey, _) => (in_words(&error).to_owned(), true),
            _ => (in_words(&error).to_owned(), false),
        };
        Refusal {
            error: bad(what).with_source(error),
            root_unknown,
        }
    }
}

/// Says in words what the library says in codes.
fn in_words(error: &webpki::Error) -> &'static str {
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
            "a certificate in the chain has a critical extension that is not understood, such as \
             certificate policies marked critical; have the CA leave it out or not mark it"
        }
        _ => "the certificate does not lead to the trust bundle",
    }
}

/// What can be said of a root once and for all: its usages.
pub(crate) fn check_root(root: &Parsed<'_>) -> Result<(), String> {
    check_ca(root)?;
    check_purposes(root)
}

fn check_ca(ca: &Parsed<'_>) -> Result<(), String> {
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

fn check_purposes(root: &Parsed<'_>) -> Result<(), String> {
    match root.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(purposes))
            if [SERVER_AUTH, CLIENT_AUTH]
                .iter()
                .all(|purpose| purposes.0.contains(purpose)) =>
        {
            Ok(())
        }
        _ => Err(format!(
            "the root `{}` is restricted to other purposes than server and client authentication",
            root.subject()
        )),
    }
}

/// Self-issued certificates do not count (RFC 5280 §6.1.4 (l)).
fn check_path_length(root: &TrustRoot, below: &[&Parsed<'_>]) -> Result<(), String> {
    let count = below.iter().filter(|ca| !ca.is_self_issued()).count();
    match root.path_len() {
        Some(most) if count > usize::from(most) => Err(format!(
            "the root `{}` may have {most} CAs below it, and {count} are (path length)",
            root.subject()
        )),
        _ => Ok(()),
    }
}

fn check_end(
    leaf: &Parsed<'_>,
    issuer: Validity,
    subject: impl FnOnce() -> String,
) -> Result<(), String> {
    if leaf.validity.not_after() <= issuer.not_after() {
        return Ok(());
    }
    Err(format!(
        "the certificate outlives its issuer `{}`: peers will refuse it from {} on; renew the CA or ask for a shorter lifetime",
        subject(),
        rfc3339(issuer.not_after()),
    ))
}

/// A leaf under the new intermediate, signed with its key and thrown away: it proves key, names,
/// path length, constraints and chain at once.
fn sign_throwaway(
    intermediate: &Parsed<'_>,
    key: &KeyMaterial,
    request: &CertificateRequest,
) -> Result<CertificateDer<'static>, Error> {
    let id = format!("spiffe://{}/throwaway", request.spiffe_id().trust_domain());
    let contents = Contents {
        serial: &[1],
        not_before: intermediate.validity.not_before(),
        not_after: intermediate.validity.not_after(),
        common_name: None,
        uris: &[id],
        dns_names: &[],
        public_key: key.public_key(),
        is_rsa: false,
        profile: Profile::Workload,
    };
    Template::of(intermediate, key.key_type())?.sign(&contents, |message| key.sign(message))
}

/// Follows the names from the leaf upwards and says where the trail ends.
fn explain_unknown_issuer(
    leaf: &Parsed<'_>,
    others: &[&Parsed<'_>],
    bundle: &TrustBundle,
    at: SystemTime,
) -> String {
    let mut last = leaf;
    for _ in 0..others.len() {
        let issuer = last.issuer_name();
        let next = others
            .iter()
            .copied()
            .find(|other| other.subject_name() == issuer);
        match next {
            Some(next) if !next.is_self_issued() => last = next,
            Some(root) => {
                last = root;
                break;
            }
            None => break,
        }
    }
    let mut text = String::from("root unknown: ");
    let expected = last.issuer_name();
    let roots_of_that_name: Vec<_> = bundle
        .roots()
        .iter()
        .filter(|root| root.name() == expected.der())
        .collect();
    let _ = if let Some(root) = roots_of_that_name
        .iter()
        .find(|root| !root.validity().contains(at))
    {
        write!(
            text,
            "the root `{}` in the trust bundle is valid only from {}",
            root.subject(),
            root.validity()
        )
    } else if last.is_self_issued() {
        write!(
            text,
            "the chain ends in `{}`, which is not in the trust bundle",
            last.subject()
        )
    } else if roots_of_that_name.is_empty() {
        write!(
            text,
            "{} was signed by `{}`, which the CA did not return and the trust bundle does not hold; import the CA's whole chain or add its root",
            if std::ptr::eq(last, leaf) {
                "the certificate".to_owned()
            } else {
                format!("`{}`", last.subject())
            },
            last.issuer()
        )
    } else {
        write!(
            text,
            "`{}` in the trust bundle did not sign what names it as issuer",
            last.issuer()
        )
    };
    let held: Vec<String> = bundle
        .roots()
        .iter()
        .take(8)
        .map(|root| format!("`{}`", root.subject()))
        .collect();
    let _ = write!(
        text,
        " (the bundle holds {})",
        if held.is_empty() {
            "no root at all".to_owned()
        } else {
            held.join(", ")
        }
    );
    text
}
