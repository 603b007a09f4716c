//! The proof that a CA's answer leads to the trust bundle, or the reason why it does not.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::path::{NoPath, Path, Prover, Purpose, in_words, outdated};
use super::{CLOCK_SKEW, Refusal, bad};
use crate::encode::{Contents, Template};
use crate::key::KeyMaterial;
use crate::time::later;
use crate::x509::Parsed;
use crate::{CertificateRequest, Error, ErrorKind, Profile, TrustBundle, TrustRoot};

pub(super) fn prove<'a>(
    leaf: &'a Parsed<'a>,
    others: &[&'a Parsed<'a>],
    request: &CertificateRequest,
    bundle: &'a TrustBundle,
    now: SystemTime,
) -> Result<Path<'a>, Refusal> {
    let (throwaway, parsed);
    let mut candidates = others.to_vec();
    let end_entity = match request.spec().profile() {
        Profile::Workload => leaf,
        Profile::Intermediate { .. } => {
            let key = request.held_key().ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    "an intermediate is proven with its own key, which is not held here",
                )
            })?;
            candidates.insert(0, leaf);
            throwaway = sign_throwaway(leaf, key, request)?;
            parsed =
                Parsed::read(&throwaway).map_err(|why| Error::new(ErrorKind::Internal, why))?;
            &parsed
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
        let path = prover.prove(end_entity, moment);
        path.map_err(|no_path| refusal(no_path, leaf, &prover, moment))
    };
    // What begins a moment from now is proven for that moment: the caller holds it back until then.
    let soon = later(now, CLOCK_SKEW);
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
    let NoPath { error, unfit, .. } = no_path;
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
        match others.iter().find(|other| other.subject_name() == issuer) {
            Some(next) if !last.is_self_issued() => last = next,
            _ => break,
        }
    }
    let (subject, issuer, expected) = (last.subject(), last.issuer(), last.issuer_name());
    let roots = bundle.roots().iter();
    let mut of_that_name = roots
        .filter(|root| root.name() == expected.der())
        .peekable();
    let nobody = of_that_name.peek().is_none();
    let dead_end = bundle.dead_ends().find_map(|(anchor, why)| {
        let used = [subject.as_str(), issuer.as_str()].contains(&anchor.subject().as_str());
        used.then_some(why)
    });
    let why = if let Some(root) = of_that_name.find(|root| !root.validity().contains(at)) {
        outdated(root)
    } else if let Some(why) = dead_end {
        why
    } else if last.is_self_issued() {
        format!("the chain ends in `{subject}`, which is not in the trust bundle")
    } else if nobody {
        let signed = match std::ptr::eq(last, leaf) {
            true => "the certificate".to_owned(),
            false => format!("`{subject}`"),
        };
        format!(
            "{signed} was signed by `{issuer}`, which the CA did not return and the trust bundle does not hold; import the CA's whole chain or add its root"
        )
    } else {
        format!("`{issuer}` in the trust bundle did not sign what names it as issuer")
    };
    let held = bundle.roots().iter().take(8);
    let held: Vec<String> = held.map(|root| format!("`{}`", root.subject())).collect();
    let held = match held.is_empty() {
        true => "no root at all".to_owned(),
        false => held.join(", "),
    };
    format!("root unknown: {why} (the bundle holds {held})")
}
