//! Proving that what a CA returned leads to the trust bundle, and saying why it does not.

use std::fmt::Write as _;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::path::{NoPath, Path, Prover, Purpose, in_words};
use super::{CLOCK_SKEW, Refusal, bad};
use crate::encode::{Contents, Template};
use crate::key::KeyMaterial;
use crate::x509::Parsed;
use crate::{CertificateRequest, Error, ErrorKind, Profile, TrustBundle, TrustRoot};

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
        candidates,
        bundle,
        purpose: Purpose::Issued {
            until: leaf.validity.not_after(),
        },
        algorithms: webpki::ALL_VERIFICATION_ALGS,
    };
    let at = |moment| {
        let explain = |no_path| refusal(no_path, leaf, &prover, moment);
        prover.prove(end_entity, moment).map_err(explain)
    };
    // What begins a moment from now is proven for that moment: the caller holds it back until then.
    let soon = now.checked_add(CLOCK_SKEW).unwrap_or(now);
    let roots = bundle.roots().iter().map(TrustRoot::validity);
    let sent = others.iter().copied().chain([leaf]);
    let begins = sent.map(|certificate| certificate.validity).chain(roots);
    let begins = begins.map(|validity| validity.not_before());
    let moment = begins.filter(|begin| *begin <= soon).max().unwrap_or(now);
    let mut path = match at(leaf.validity.not_before().max(now)) {
        Err(_) if moment > now => at(moment),
        result => result,
    }?;
    // The throwaway leaf has led to the root through the intermediate that it proves.
    path.intermediates.retain(|ca| ca.der != leaf.der);
    Ok(path)
}

fn refusal(no_path: NoPath, leaf: &Parsed<'_>, prover: &Prover<'_>, at: SystemTime) -> Refusal {
    let NoPath { error, unfit } = no_path;
    let (what, root_unknown) = match (&error, unfit) {
        (webpki::Error::UnknownIssuer, Some(unfit)) => (unfit.why, unfit.root_unknown),
        (webpki::Error::UnknownIssuer, None) => {
            let why = explain_unknown_issuer(leaf, &prover.candidates, prover.bundle, at);
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
