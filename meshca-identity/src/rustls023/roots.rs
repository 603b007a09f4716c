//! The roots of every trust domain, read once for a generation and not for each handshake.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::SystemTime;

use meshca_core::{Error, ErrorKind, Result, SpiffeId, TrustDomain, TrustRoot, Validity};
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_cert::der::asn1::ObjectIdentifier;

use super::refusal::{PeerRefusal, PeerRule};
use super::svid::Svid;
use crate::TrustBundles;

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// What the peer of a handshake is about to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Client,
    Server,
}

/// The roots by trust domain.
pub(super) struct Roots(BTreeMap<TrustDomain, Vec<Root>>);

struct Root {
    anchor: TrustAnchor<'static>,
    subject: String,
    validity: Validity,
    path_len: Option<u8>,
    /// Why it may not vouch for anybody, if so.
    unfit: Option<String>,
}

impl Root {
    fn read(root: &TrustRoot) -> Result<Self> {
        let unusable = |why: String| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("not a usable trust anchor: {why}"),
            )
            .with_context("root", root.subject())
        };
        let read = Svid::read(root.der()).map_err(|error| unusable(error.into_message()))?;
        let anchor = webpki::anchor_from_trusted_cert(root.der())
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            anchor: anchor.to_owned(),
            subject: root.subject(),
            validity: root.validity(),
            path_len: read.path_len(),
            unfit: read.check_ca().and_then(|()| check_purposes(&read)).err(),
        })
    }
}

/// A root that is a certificate restricts what is below it, for Envoy, Go and OpenSSL.
fn check_purposes(root: &Svid) -> Result<(), String> {
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

impl Roots {
    pub(super) fn new(bundles: &TrustBundles) -> Result<Self> {
        bundles
            .iter()
            .map(|bundle| {
                let roots = bundle.roots().iter().map(Root::read);
                Ok((
                    bundle.trust_domain().clone(),
                    roots.collect::<Result<Vec<_>>>()?,
                ))
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Proves that the chain leads to a root of the peer's own trust domain.
    pub(super) fn prove(
        &self,
        peer: &SpiffeId,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: SystemTime,
    ) -> Result<(), rustls::Error> {
        let domain = peer.trust_domain();
        let roots = self.0.get(domain).filter(|roots| !roots.is_empty());
        let roots = roots.ok_or_else(|| {
            PeerRefusal::new(
                PeerRule::UnknownTrustDomain,
                format!("the peer says that it is {peer}, and there are no roots for the trust domain `{domain}`"),
            )
        })?;
        let valid: Vec<&Root> = roots
            .iter()
            .filter(|root| root.validity.contains(now))
            .collect();
        let anchors: Vec<TrustAnchor<'_>> = valid.iter().map(|root| root.anchor.clone()).collect();
        let end_entity = EndEntityCert::try_from(leaf)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let (usage, purpose) = match side {
            Side::Client => (KeyUsage::client_auth(), "client"),
            Side::Server => (KeyUsage::server_auth(), "server"),
        };
        let time = UnixTime::since_unix_epoch(
            now.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        );
        let unfit = RefCell::new(None);
        // An error here makes webpki look for another path.
        let good_enough = |path: &VerifiedPath<'_>| {
            examine(path, &valid).map_err(|why| {
                *unfit.borrow_mut() = Some(why);
                webpki::Error::UnknownIssuer
            })
        };
        let proven = end_entity.verify_for_usage(
            algorithms,
            &anchors,
            intermediates,
            time,
            usage,
            None,
            Some(&good_enough),
        );
        let Err(error) = proven else {
            return Ok(());
        };
        let path = |why: &str| {
            PeerRefusal::new(
                PeerRule::Path,
                format!(
                    "the certificate of {peer} does not lead to the roots of `{domain}`: {why}"
                ),
            )
            .into()
        };
        Err(match error {
            webpki::Error::CertExpired { time, not_after } => {
                CertificateError::ExpiredContext { time, not_after }.into()
            }
            webpki::Error::CertNotValidYet { time, not_before } => {
                CertificateError::NotValidYetContext { time, not_before }.into()
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => PeerRefusal::new(
                PeerRule::Purpose,
                format!("the certificate of {peer}, or a CA above it, is not for {purpose} authentication (extended key usage)"),
            )
            .into(),
            webpki::Error::UnknownIssuer => match unfit.take() {
                Some(why) => path(&why),
                None => path(&unknown_issuer(leaf, roots, now)),
            },
            error => path(&error.to_string()),
        })
    }
}

/// What webpki leaves out: key usages of CAs, and everything about a root but its name, key and name constraints.
fn examine(path: &VerifiedPath<'_>, roots: &[&Root]) -> Result<(), String> {
    let mut below = 0;
    for used in path.intermediate_certificates() {
        let ca = Svid::read(&used.der()).map_err(PeerRefusal::into_message)?;
        ca.check_ca()?;
        below += usize::from(!ca.is_self_issued());
    }
    // A renewed root has the name and key of the one that it renews; one that fits is enough.
    let mut why = "root unknown".to_owned();
    for root in roots.iter().filter(|root| root.anchor == *path.anchor()) {
        why = match (&root.unfit, root.path_len) {
            (Some(unfit), _) => unfit.clone(),
            (None, Some(most)) if below > usize::from(most) => format!(
                "the root `{}` may have {most} CAs below it, and {below} are (path length)",
                root.subject
            ),
            (None, _) => return Ok(()),
        };
    }
    Err(why)
}

fn unknown_issuer(leaf: &CertificateDer<'_>, roots: &[Root], now: SystemTime) -> String {
    let outdated: Vec<String> = roots
        .iter()
        .filter(|root| !root.validity.contains(now))
        .map(|root| format!("`{}`, valid from {}", root.subject, root.validity))
        .collect();
    let issuer = Svid::read(leaf).map_or_else(PeerRefusal::into_message, |leaf| leaf.issuer());
    let mut why = format!("root unknown (its issuer is `{issuer}`)");
    if !outdated.is_empty() {
        why.push_str("; roots that do not count now: ");
        why.push_str(&outdated.join(", "));
    }
    why
}
