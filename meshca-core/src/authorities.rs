//! What verification will refuse of a CA, found before the CA signs anything.

use std::time::{Duration, SystemTime};

use der::{Decode, Encode};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::NameConstraints;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use crate::issuer::Findings;
use crate::usages::{self, purposes};
use crate::verify::CLOCK_SKEW;
use crate::x509::{Parsed, RsaPublicKey, key_oid};
use crate::{Error, ErrorKind, Retry, SignedChain, TrustBundle};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A CA that lives no longer should be renewed now.
const NEARLY_OVER: Duration = Duration::from_secs(30 * DAY.as_secs());
/// A root takes longer: its successor must reach every proxy first.
const ROOT_NEARLY_OVER: Duration = Duration::from_secs(60 * DAY.as_secs());
/// The smallest and the largest RSA keys whose signatures rustls-webpki verifies.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The certificates for which a CA is wanted.
#[derive(Clone, Copy, Debug)]
pub struct CaUse {
    lifetime: Duration,
    intermediates: bool,
    now: SystemTime,
}

impl CaUse {
    /// Certificates of workloads, with this lifetime from now on.
    pub fn leaves(lifetime: Duration, now: SystemTime) -> Self {
        Self {
            lifetime,
            intermediates: false,
            now,
        }
    }

    /// Certificates of CAs that sign for workloads, with this lifetime from now on.
    pub fn intermediates(lifetime: Duration, now: SystemTime) -> Self {
        Self {
            intermediates: true,
            ..Self::leaves(lifetime, now)
        }
    }
}

/// Each of these continues a sentence that begins with the CA.
#[derive(Debug, Default)]
struct Judgement {
    faults: Vec<String>,
    doubts: Vec<String>,
}

impl Findings {
    /// Judges a CA by its certificate and those above it, the certificate of the CA first: what
    /// [verification](crate::verify) is going to refuse below them is a [problem](Self::problem), and
    /// what cannot be known before the first certificate is a warning.
    ///
    /// `repair` says how to get a better certificate for one of them, by its place in the chain and
    /// whether it is a root, in sentences that follow a full stop.
    pub fn judge_authorities(
        &mut self,
        chain: &SignedChain,
        wanted: CaUse,
        repair: impl Fn(usize, bool) -> String,
    ) {
        let mut all = Vec::new();
        let mut places = Vec::new();
        for (place, der) in chain.certificates().iter().enumerate() {
            match Parsed::read(der) {
                Ok(ca) => {
                    all.push(ca);
                    places.push(place);
                }
                Err(why) => self.unusable(
                    "a certificate of the CA",
                    &format!("is {why}"),
                    &repair(place, false),
                ),
            }
        }
        let judged = all.iter().map(|ca| judge(ca, below(ca, &all), wanted));
        let judged: Vec<_> = all.iter().zip(judged).collect();
        for ((ca, Judgement { faults, doubts }), place) in judged.iter().zip(places) {
            let root = usages::ends_chains(ca);
            let kind = if root { "root" } else { "CA" };
            let (name, repair) = (
                format!("the {kind} `{}`", ca.subject()),
                repair(place, root),
            );
            // A CA that was certified again is in the chain twice, and one is enough.
            let another = judged.iter().any(|(other, judgement)| {
                judgement.faults.is_empty()
                    && other.subject_name() == ca.subject_name()
                    && other.public_key == ca.public_key
            });
            if !faults.is_empty() && !another {
                self.unusable(&name, &faults.join("; it "), &repair);
            }
            for doubt in doubts {
                self.warn(format!("{name} {doubt}. {repair}"));
            }
        }
    }

    /// Judges roots that are trusted, as [`judge_authorities`](Self::judge_authorities) does. One of them
    /// may be the next root or a former one, so it is a problem only if none of them can be used.
    pub fn judge_roots(&mut self, roots: &TrustBundle, wanted: CaUse, repair: &str) {
        let judged = roots.roots().iter().map(|root| {
            let mut judged = Self::new();
            let chain = SignedChain::new([root.der().clone()]);
            judged.judge_authorities(&chain, wanted, |_, _| repair.to_owned());
            judged
        });
        let judged: Vec<_> = judged.collect();
        let none = judged.iter().all(|one| !one.problems().is_empty());
        judged.into_iter().for_each(|one| self.include(one, none));
    }

    /// Warns of each intermediate in the bundle whose root is not there, which a setting has named as the
    /// roots of a CA. Peers refuse what leads to it, unless the mesh has the root from elsewhere.
    pub fn judge_dead_ends(&mut self, roots: &TrustBundle, setting: &str) {
        for anchor in roots.roots() {
            let Some(missing) = roots.missing_above(anchor) else {
                continue;
            };
            self.warn(format!(
                "`{setting}` holds the intermediate CA `{}` and not the root that it leads to, so Envoy accepts nothing below it unless the mesh has the root in a MeshTrust: add the certificate of `{missing}` to `{setting}`",
                anchor.subject()
            ));
        }
    }

    fn unusable(&mut self, name: &str, faults: &str, repair: &str) {
        let why = format!(
            "{name} cannot be used, and what is signed below it will be refused: it {faults}. {repair}"
        );
        let error = Error::new(ErrorKind::InvalidConfig, why);
        // Repaired where the CA is, which changes no setting here.
        self.problem(error.with_retry(Retry::Backoff));
    }
}

/// How many CAs of the chain are below this one. Self-issued ones do not count (RFC 5280 §6.1.4 (l)).
fn below(ca: &Parsed<'_>, chain: &[Parsed<'_>]) -> usize {
    let (mut at, mut count) = (chain.first(), 0);
    for _ in chain {
        let Some(here) = at.filter(|here| here.der != ca.der) else {
            break;
        };
        count += usize::from(!here.is_self_issued());
        at = chain
            .iter()
            .find(|above| above.subject_name() == here.issuer_name() && above.der != here.der);
    }
    count
}

fn judge(ca: &Parsed<'_>, below: usize, wanted: CaUse) -> Judgement {
    let root = usages::ends_chains(ca);
    let mut found = Judgement::default();
    let Judgement { faults, doubts } = &mut found;
    let mut fault = |why: String| faults.push(why);
    match ca.basic_constraints() {
        Err(_) => fault("has a damaged BasicConstraints extension".to_owned()),
        Ok(_) if !ca.is_ca() => fault("is not a CA (BasicConstraints cA is not set)".to_owned()),
        Ok(constraints) => {
            let below = below + usize::from(wanted.intermediates);
            let most = constraints.and_then(|constraints| constraints.path_len_constraint);
            if let Some(most) = most.filter(|most| below > usize::from(*most)) {
                fault(format!(
                    "may have {most} CAs below it, and {below} are needed (path length)"
                ));
            }
        }
    }
    if let Err(why) = usages::signs(ca, root) {
        fault(why.to_owned());
    }
    match purposes(ca) {
        Ok(allowed) if allowed.server && allowed.client => {}
        Ok(_) => fault(
            "is restricted to other purposes than server and client authentication (extended key usage)"
                .to_owned(),
        ),
        Err(why) => fault(why.to_owned()),
    }
    // Nobody relies on the signature of a root.
    if !root && let Some(id) = unknown_signature(ca) {
        fault(format!(
            "is signed with an algorithm that is not accepted ({id})"
        ));
    }
    if let Some(why) = unknown_key(ca) {
        fault(why);
    }
    if let Ok(Some(NameConstraints {
        permitted_subtrees,
        excluded_subtrees,
    })) = ca.extension()
    {
        let constrained = permitted_subtrees
            .iter()
            .chain(&excluded_subtrees)
            .flatten();
        let mut others = false;
        let mut unsupported = Vec::new();
        for subtree in constrained {
            match &subtree.base {
                GeneralName::UniformResourceIdentifier(_) => unsupported.push("URIs"),
                // It concerns every certificate, also one with an empty subject.
                GeneralName::DirectoryName(_) => unsupported.push("directory names"),
                _ => others = true,
            }
        }
        unsupported.sort_unstable();
        unsupported.dedup();
        if !unsupported.is_empty() {
            fault(format!(
                "constrains {} (name constraints), which is not supported, so no SPIFFE ID is accepted below it",
                unsupported.join(" and ")
            ));
        }
        if others {
            let doubt = "is constrained to some names (name constraints): whether those of the mesh are among them is seen with the first certificate";
            doubts.push(doubt.to_owned());
        }
    }
    let validity = ca.validity;
    let left = validity.remaining(wanted.now);
    let ended = validity.not_after() < wanted.now;
    if ended {
        fault("has ended".to_owned());
    }
    let ahead = validity.not_before().duration_since(wanted.now);
    if ahead.is_ok_and(|ahead| ahead > CLOCK_SKEW) {
        fault(format!(
            "is valid from {} on only: compare the clocks",
            crate::time::rfc3339(validity.not_before())
        ));
    }
    let soon = if root { ROOT_NEARLY_OVER } else { NEARLY_OVER };
    if !ended && left < wanted.lifetime {
        doubts.push(format!(
            "ends in {} h, and certificates for {} h are asked for, which will be shorter",
            left.as_secs() / 3600,
            wanted.lifetime.as_secs() / 3600
        ));
    } else if !ended && left < soon {
        let days = left.as_secs() / DAY.as_secs();
        doubts.push(format!("ends in {days} days"));
    }
    found
}

/// The algorithm of the signature, if no verifier here knows it.
fn unknown_signature(ca: &Parsed<'_>) -> Option<ObjectIdentifier> {
    let used = AlgorithmIdentifierRef::from_der(ca.signature_algorithm()).ok()?;
    let content = content(&used)?;
    let mut known = webpki::ALL_VERIFICATION_ALGS.iter();
    let is_known = known.any(|known| known.signature_alg_id().as_ref() == content);
    (!is_known).then_some(used.oid)
}

/// The reason why no verifier here takes a signature by this key.
fn unknown_key(ca: &Parsed<'_>) -> Option<String> {
    let key = SubjectPublicKeyInfoRef::from_der(ca.public_key.as_ref()).ok()?;
    let content = content(&key.algorithm)?;
    let mut known = webpki::ALL_VERIFICATION_ALGS.iter();
    if !known.any(|known| known.public_key_alg_id().as_ref() == content) {
        let id = match key.algorithm.oid {
            key_oid::EC => key.algorithm.parameters_oid().unwrap_or(key_oid::EC),
            other => other,
        };
        return Some(format!(
            "has a key of a type that is not accepted ({id}): use P-256 or P-384"
        ));
    }
    if key.algorithm.oid != key_oid::RSA {
        return None;
    }
    let bytes = key.subject_public_key.raw_bytes();
    let modulus = RsaPublicKey::from_der(bytes).ok()?.modulus;
    let bytes = modulus.as_bytes();
    let unused = bytes.first().map_or(0, |first| first.leading_zeros());
    let bits = (bytes.len() * 8).saturating_sub(unused as usize);
    (!RSA_BITS.contains(&bits)).then(|| {
        format!(
            "has an RSA key of {bits} bits, and from {} to {} are accepted",
            RSA_BITS.start(),
            RSA_BITS.end()
        )
    })
}

/// The content of an `AlgorithmIdentifier`, without its header, as webpki compares it.
fn content(algorithm: &AlgorithmIdentifierRef<'_>) -> Option<Vec<u8>> {
    let der = algorithm.to_der().ok()?;
    let content = der::AnyRef::from_der(&der).ok()?.value().to_vec();
    Some(content)
}

#[cfg(test)]
mod tests;
