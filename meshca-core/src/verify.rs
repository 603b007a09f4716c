//! The rules that every certificate must satisfy before it is handed out.
//!
//! | rule | source |
//! |---|---|
//! | at most [`MAX_CERTIFICATES`] certificates came back, each of them readable | bounded work |
//! | one of them is for the key of the request, and is the leaf | RFC 2986 §1 |
//! | its URI names are exactly those requested, among them the one SPIFFE ID; so are its DNS names; there are no others | SPIFFE X.509-SVID §2 |
//! | its common name is the one requested, if one was | |
//! | a workload's: it is no CA (no BasicConstraints counts as none), may sign (`digitalSignature`), may not sign certificates or CRLs | SPIFFE X.509-SVID §4 |
//! | a workload's: extended key usage names server **and** client authentication: a mesh proxy is both | RFC 5280 §4.2.1.12 |
//! | an intermediate's: it is a CA that may sign certificates, with a path length no larger than requested; proven by signing a throwaway leaf with its key | RFC 5280 §4.2.1.9 |
//! | it has not ended, and begins at most [`CLOCK_SKEW`] from now | clocks differ |
//! | it ends no later than requested, under [`LifetimePolicy::AtMostRequested`] | |
//! | it ends no later than any CA above it | a chain is as good as its weakest link |
//! | signatures, names, name constraints, path lengths and validity hold from the leaf to a root of the bundle that has not ended | RFC 5280 §6, by rustls-webpki |
//!
//! The chain is rebuilt from whatever came back – any order, repetitions, the root, strangers –
//! and is delivered in order without the root. A chain that ends nowhere is "root unknown"; the last certificate is
//! never taken for a root because it came last. What is unusual but sound becomes an [`Observation`].
//!
//! Not supported: CAs with *URI* name constraints, which rustls-webpki refuses as a whole.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage,
    RequiredEkuNotFoundContext, VerifiedPath,
};
use x509_cert::ext::pkix::name::GeneralName;

use crate::certificate::Constructed;
use crate::key::KeyMaterial;
use crate::time::rfc3339;
use crate::x509::{CLIENT_AUTH, Parsed, SERVER_AUTH};
use crate::{
    CertificateRequest, Error, ErrorKind, IssuedCertificate, LifetimePolicy, Observation, Profile,
    Proof, SignedChain, TrustBundle, TrustRoot, Validity,
};

/// How far a CA's clock may be ahead of ours: a minute. NTP keeps within seconds, and Istio needed to allow two minutes.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// How many certificates a CA may return: real chains have two to five.
pub const MAX_CERTIFICATES: usize = 32;

/// Why a chain was refused, and whether newer roots might change that.
pub(crate) struct Refusal {
    pub(crate) error: Error,
    pub(crate) root_unknown: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            error,
            root_unknown: false,
        }
    }
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadResponse, message.into())
}

pub(crate) fn verify(
    chain: &SignedChain,
    request: &CertificateRequest,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<IssuedCertificate, Refusal> {
    let domain = request.spiffe_id().trust_domain();
    if bundle.trust_domain() != domain {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "the trust bundle is of another trust domain",
        )
        .with_context("bundle", bundle.trust_domain())
        .with_context("request", domain)
        .into());
    }
    #[cfg(feature = "builtin")]
    if let Some(by) = chain.construction().filter(|by| by.request.is(request))
        && let Some(root) = bundle.root(&by.root)
    {
        return constructed(chain, by, root, now)
            .map_err(|error| error.with_context("spiffe id", request.spiffe_id()).into());
    }
    verify_signatures(chain, request, bundle, now).map_err(|refusal| Refusal {
        error: refusal.error.with_context("spiffe id", request.spiffe_id()),
        ..refusal
    })
}

/// The CA of this process built it for exactly this request; all that can be wrong by now is the time.
#[cfg(feature = "builtin")]
fn constructed(
    chain: &SignedChain,
    by: &Constructed,
    root: &TrustRoot,
    now: SystemTime,
) -> Result<IssuedCertificate, Error> {
    let mut observations = notes(chain);
    check_lifetime(by.validity, &by.request, now, &mut observations)?;
    Ok(IssuedCertificate {
        chain: chain.certificates().to_vec(),
        spiffe_id: by.request.spiffe_id().clone(),
        public_key: by.request.public_key().clone(),
        serial: by.serial.clone(),
        validity: by.validity,
        issued_at: now,
        root: root.clone(),
        proof: Proof::Construction,
        observations,
    })
}

fn notes(chain: &SignedChain) -> Vec<Observation> {
    chain
        .notes()
        .iter()
        .cloned()
        .map(Observation::IssuerNote)
        .collect()
}

fn verify_signatures(
    chain: &SignedChain,
    request: &CertificateRequest,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<IssuedCertificate, Refusal> {
    let sent = read_all(chain)?;
    let mut seen = HashSet::new();
    let distinct: Vec<&Parsed> = sent
        .iter()
        .filter(|certificate| seen.insert(&certificate.der))
        .collect();
    let Some(leaf) = distinct
        .iter()
        .copied()
        .find(|certificate| certificate.public_key == *request.public_key())
    else {
        return Err(bad(format!(
            "none of the {} certificates that the CA returned is for the key of the request",
            sent.len()
        ))
        .into());
    };

    let mut observations = notes(chain);
    check_names(leaf, request, &mut observations)?;
    check_purpose(leaf, request)?;
    check_lifetime(leaf.validity, request, now, &mut observations)?;

    let others: Vec<&Parsed> = distinct
        .into_iter()
        .filter(|other| other.der != leaf.der)
        .collect();
    let path = prove(leaf, &others, request, bundle, now)?;
    for above in path
        .intermediates
        .iter()
        .copied()
        .chain([path.root.parsed()])
    {
        if leaf.validity.not_after() > above.validity.not_after() {
            return Err(bad(format!(
                "the certificate outlives its issuer `{}`: peers will refuse it from {} on; renew the CA or ask for a shorter lifetime",
                above.subject(),
                rfc3339(above.validity.not_after()),
            ))
            .into());
        }
    }

    let delivered: Vec<&Parsed> = std::iter::once(leaf)
        .chain(path.intermediates.iter().copied())
        .collect();
    // The root behind its chain is common and nothing to report; anything else that differs is.
    let with_root = delivered.iter().copied().chain([path.root.parsed()]);
    let sent_in_order = |expected: &mut dyn Iterator<Item = &Parsed>| {
        expected
            .map(|certificate| &certificate.der)
            .eq(chain.certificates())
    };
    if !sent_in_order(&mut delivered.iter().copied()) && !sent_in_order(&mut with_root.into_iter())
    {
        observations.push(Observation::ChainRebuilt);
    }
    Ok(IssuedCertificate {
        chain: delivered
            .into_iter()
            .map(|certificate| certificate.der.clone())
            .collect(),
        spiffe_id: request.spiffe_id().clone(),
        public_key: leaf.public_key.clone(),
        serial: leaf.serial(),
        validity: leaf.validity,
        issued_at: now,
        root: path.root.clone(),
        proof: Proof::Signatures,
        observations,
    })
}

fn read_all(chain: &SignedChain) -> Result<Vec<Parsed>, Error> {
    let count = chain.certificates().len();
    if count == 0 {
        return Err(bad("the CA returned no certificate"));
    }
    if count > MAX_CERTIFICATES {
        return Err(bad(format!(
            "the CA returned {count} certificates; at most {MAX_CERTIFICATES} are looked at"
        )));
    }
    chain
        .certificates()
        .iter()
        .enumerate()
        .map(|(index, der)| {
            Parsed::read(der.clone()).map_err(|why| {
                bad(format!(
                    "certificate {} of the {count} that the CA returned: {why}",
                    index + 1
                ))
            })
        })
        .collect()
}

fn check_names(
    leaf: &Parsed,
    request: &CertificateRequest,
    observations: &mut Vec<Observation>,
) -> Result<(), Error> {
    let spec = request.spec();
    let names = leaf.subject_alt_names().map_err(|error| {
        bad("the certificate's subject alternative names are damaged").with_source(error)
    })?;
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    for name in &names {
        match name {
            GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.as_str().to_owned()),
            GeneralName::DnsName(name) => dns.push(name.as_str().to_owned()),
            other => {
                return Err(bad(format!(
                    "the certificate has a name that was not requested: {}",
                    kind_of(other)
                )));
            }
        }
    }
    // An intermediate may go without its trust domain's ID (SPIFFE X.509-SVID §3.2, §5).
    let optional = spec.profile() != Profile::Workload;
    compare_names("URI", &uris, &spec.all_uris().collect::<Vec<_>>(), optional)?;
    compare_names("DNS name", &dns, spec.dns_names(), optional)?;
    match (leaf.common_name(), spec.common_name()) {
        (Some(name), Some(wanted)) if name != wanted => Err(bad(format!(
            "the certificate has the common name `{}` where `{wanted}` was requested",
            name.escape_debug()
        ))),
        (None, Some(wanted)) => Err(bad(format!(
            "the certificate lacks the requested common name `{wanted}`"
        ))),
        (Some(name), None) => {
            observations.push(Observation::UnrequestedCommonName { name });
            Ok(())
        }
        _ => Ok(()),
    }
}

/// As sets, but for the number: a CA that repeats a name has a defect that we would rather see.
fn compare_names(
    kind: &str,
    found: &[String],
    wanted: &[String],
    optional: bool,
) -> Result<(), Error> {
    if let Some(extra) = found.iter().find(|name| !wanted.contains(name)) {
        return Err(bad(format!(
            "the certificate has the {kind} `{}` that was not requested",
            extra.escape_debug()
        )));
    }
    if found.len() > wanted.len() {
        return Err(bad(format!("the certificate repeats a {kind}")));
    }
    match wanted.iter().find(|name| !found.contains(name)) {
        Some(missing) if !optional => Err(bad(format!(
            "the certificate lacks the requested {kind} `{}`; does the CA take names from the CSR, and does its policy allow this one?",
            missing.escape_debug()
        ))),
        _ => Ok(()),
    }
}

fn kind_of(name: &GeneralName) -> String {
    match name {
        GeneralName::Rfc822Name(mail) => {
            format!("the e-mail address `{}`", mail.as_str().escape_debug())
        }
        GeneralName::IpAddress(address) => {
            format!("an IP address ({} bytes)", address.as_bytes().len())
        }
        GeneralName::DirectoryName(name) => format!("the directory name `{name}`"),
        GeneralName::RegisteredId(id) => format!("the registered ID `{id}`"),
        _ => "one of another kind".to_owned(),
    }
}

fn check_purpose(leaf: &Parsed, request: &CertificateRequest) -> Result<(), Error> {
    let damaged = |extension: &'static str| {
        move |error| {
            bad(format!(
                "the certificate's {extension} extension is damaged"
            ))
            .with_source(error)
        }
    };
    let constraints = leaf
        .basic_constraints()
        .map_err(damaged("BasicConstraints"))?;
    let usage = leaf.key_usage().map_err(damaged("KeyUsage"))?;
    let extended = leaf
        .extended_key_usage()
        .map_err(damaged("ExtendedKeyUsage"))?;
    let is_ca = constraints
        .as_ref()
        .is_some_and(|constraints| constraints.ca);
    match request.spec().profile() {
        Profile::Workload => {
            if is_ca {
                return Err(bad("the certificate is a CA's, which no workload may hold"));
            }
            if usage.is_some_and(|usage| usage.key_cert_sign() || usage.crl_sign()) {
                return Err(bad(
                    "the certificate may sign certificates or CRLs, which no workload may",
                ));
            }
            if usage.is_some_and(|usage| !usage.digital_signature()) {
                return Err(bad(
                    "the certificate lacks the key usage `digitalSignature`, which TLS 1.3 needs; add it to the CA's profile",
                ));
            }
            let purposes = extended.map(|extended| extended.0).unwrap_or_default();
            for (purpose, name) in [(SERVER_AUTH, "serverAuth"), (CLIENT_AUTH, "clientAuth")] {
                if !purposes.contains(&purpose) {
                    return Err(bad(format!(
                        "the certificate lacks the extended key usage `{name}`; a proxy is both server and client: add it to the CA's profile or role"
                    )));
                }
            }
        }
        Profile::Intermediate { path_len } => {
            if !is_ca {
                return Err(bad(
                    "the certificate is not a CA's, though an intermediate was requested",
                ));
            }
            if usage.is_some_and(|usage| !usage.key_cert_sign()) {
                return Err(bad("the intermediate lacks the key usage `keyCertSign`"));
            }
            match constraints.and_then(|constraints| constraints.path_len_constraint) {
                Some(granted) if granted <= path_len => {}
                granted => {
                    let granted = granted.map_or("none".to_owned(), |granted| granted.to_string());
                    return Err(bad(format!(
                        "the intermediate has the path length {granted} where {path_len} was requested"
                    )));
                }
            }
        }
    }
    Ok(())
}

fn check_lifetime(
    validity: Validity,
    request: &CertificateRequest,
    now: SystemTime,
    observations: &mut Vec<Observation>,
) -> Result<(), Error> {
    let later = |by: Duration| now.checked_add(by).unwrap_or(now);
    if validity.not_after() <= now {
        return Err(bad(format!(
            "the certificate had ended when it arrived, at {}; it is now {}: is the CA's clock right?",
            rfc3339(validity.not_after()),
            rfc3339(now)
        )));
    }
    if validity.not_before() > later(CLOCK_SKEW) {
        return Err(bad(format!(
            "the certificate begins at {}, more than {}s ahead of now, {}: compare the clocks",
            rfc3339(validity.not_before()),
            CLOCK_SKEW.as_secs(),
            rfc3339(now)
        )));
    }
    if let Ok(wait) = validity.not_before().duration_since(now)
        && !wait.is_zero()
    {
        observations.push(Observation::NotYetValid { wait });
    }
    let requested = request.spec().lifetime();
    let granted = validity.remaining(now);
    // Counted from now, not from the request: a CA that counts from signing may do so after a retry.
    if granted > requested.saturating_add(CLOCK_SKEW) {
        match request.spec().lifetime_policy() {
            LifetimePolicy::AcceptIssuer => {
                observations.push(Observation::LongerLifetime { requested, granted })
            }
            LifetimePolicy::AtMostRequested => {
                return Err(bad(format!(
                    "the certificate lives for {}s where at most {}s were requested; use `LifetimePolicy::AcceptIssuer` if the CA is meant to decide",
                    granted.as_secs(),
                    requested.as_secs()
                )));
            }
        }
    } else if validity.not_after()
        < request
            .not_after()
            .checked_sub(CLOCK_SKEW.min(requested / 10))
            .unwrap_or(now)
    {
        observations.push(Observation::ShorterLifetime { requested, granted });
    }
    Ok(())
}

struct Path<'a> {
    intermediates: Vec<&'a Parsed>,
    root: &'a TrustRoot,
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

fn prove<'a>(
    leaf: &'a Parsed,
    others: &[&'a Parsed],
    request: &CertificateRequest,
    bundle: &'a TrustBundle,
    now: SystemTime,
) -> Result<Path<'a>, Refusal> {
    // What begins a moment from now is proven for that moment: the caller holds it back until then.
    let soon = now.checked_add(CLOCK_SKEW).unwrap_or(now);
    let begins = others
        .iter()
        .chain([&leaf])
        .map(|certificate| certificate.validity.not_before())
        .filter(|begin| *begin <= soon);
    let at = begins.max().unwrap_or(now).max(now);
    let time = UnixTime::since_unix_epoch(
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    );

    let throwaway;
    let (end_entity, candidates) = match (request.spec().profile(), request.held_key()) {
        (Profile::Workload, _) => (&leaf.der, others.to_vec()),
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
    let intermediates: Vec<CertificateDer<'_>> = candidates
        .iter()
        .map(|candidate| candidate.der.clone())
        .collect();

    let end_entity = EndEntityCert::try_from(end_entity)
        .map_err(|error| bad("the certificate cannot be read").with_source(error))?;
    // Trust anchors have no dates for the library, but peers look at those of the root as well.
    let root_has_not_ended = |path: &VerifiedPath<'_>| {
        valid_root(path, bundle, at)
            .map(|_| ())
            .ok_or(webpki::Error::UnknownIssuer)
    };
    let proven = end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            bundle.anchors(),
            &intermediates,
            time,
            ServerAndClient,
            None,
            Some(&root_has_not_ended),
        )
        .map_err(|error| refusal(error, leaf, others, bundle, at))?;
    let root =
        valid_root(&proven, bundle, at).ok_or_else(|| bad("the root of the path has ended"))?;
    let path = proven
        .intermediate_certificates()
        .filter_map(|used| {
            candidates
                .iter()
                .copied()
                .find(|candidate| candidate.der == used.der())
        })
        .filter(|used| used.der != leaf.der)
        .collect();
    Ok(Path {
        intermediates: path,
        root,
    })
}

/// The root that a path ends in. A renewed root has the same name and key as the one it renews, so
/// several may fit.
fn valid_root<'b>(
    path: &VerifiedPath<'_>,
    bundle: &'b TrustBundle,
    at: SystemTime,
) -> Option<&'b TrustRoot> {
    let mut fitting = bundle
        .roots()
        .iter()
        .zip(bundle.anchors())
        .filter(|(_, anchor)| *anchor == path.anchor());
    fitting
        .find(|(root, _)| root.validity().contains(at))
        .map(|(root, _)| root)
}

/// A leaf under the new intermediate, signed with its key and thrown away: it proves key, names,
/// path length, constraints and chain at once.
fn sign_throwaway(
    intermediate: &Parsed,
    key: &KeyMaterial,
    request: &CertificateRequest,
) -> Result<CertificateDer<'static>, Error> {
    let failed = |error: rcgen::Error| bad("the intermediate cannot sign").with_source(error);
    let mut issuer = CertificateParams::default();
    issuer.distinguished_name = crate::subject::to_rcgen(intermediate)?;
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    let id = format!("spiffe://{}/throwaway", request.spiffe_id().trust_domain());
    leaf.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(failed)?)];
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.not_before = intermediate.validity.not_before().into();
    leaf.not_after = intermediate.validity.not_after().into();
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = leaf
        .signed_by(key, &rcgen::Issuer::from_params(&issuer, key))
        .map_err(failed)?;
    Ok(certificate.der().clone())
}

/// Says in words what the library says in codes.
fn refusal(
    error: webpki::Error,
    leaf: &Parsed,
    others: &[&Parsed],
    bundle: &TrustBundle,
    at: SystemTime,
) -> Refusal {
    use webpki::Error as E;
    let root_unknown = matches!(error, E::UnknownIssuer | E::InvalidSignatureForPublicKey);
    let what = match &error {
        E::UnknownIssuer => explain_unknown_issuer(leaf, others, bundle, at),
        E::InvalidSignatureForPublicKey => {
            "a signature in the chain does not verify: a certificate was altered, or a CA was replaced by another of the same name".to_owned()
        }
        E::CertExpired { .. } => "a certificate in the chain has expired".to_owned(),
        E::CertNotValidYet { .. } => "a certificate in the chain is not valid yet: compare the clocks".to_owned(),
        E::NameConstraintViolation => {
            "a CA in the chain is constrained to other names (URI constraints are not supported and count as a violation)".to_owned()
        }
        E::PathLenConstraintViolated => "a CA in the chain may not have a CA below it (path length)".to_owned(),
        E::EndEntityUsedAsCa => "a certificate in the chain signed another without being a CA".to_owned(),
        E::RequiredEkuNotFoundContext(_) => "a CA in the chain is restricted to other purposes than server and client authentication".to_owned(),
        E::UnsupportedSignatureAlgorithmContext(_) | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a certificate in the chain is signed with an algorithm that is not accepted (SHA-1 and RSA below 2048 bits are not)".to_owned()
        }
        E::UnsupportedCriticalExtension => "a certificate in the chain has a critical extension that is not understood".to_owned(),
        _ => "the certificate does not lead to the trust bundle".to_owned(),
    };
    Refusal {
        error: bad(what).with_source(error),
        root_unknown,
    }
}

/// Follows the names from the leaf upwards and says where the trail ends.
fn explain_unknown_issuer(
    leaf: &Parsed,
    others: &[&Parsed],
    bundle: &TrustBundle,
    at: SystemTime,
) -> String {
    let name = |certificate: &Parsed| certificate.certificate.tbs_certificate().issuer().clone();
    let mut last = leaf;
    for _ in 0..others.len() {
        let issuer = name(last);
        let next = others
            .iter()
            .copied()
            .find(|other| *other.certificate.tbs_certificate().subject() == issuer);
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
    let expected = name(last);
    let roots_of_that_name: Vec<_> = bundle
        .roots()
        .iter()
        .filter(|root| *root.parsed().certificate.tbs_certificate().subject() == expected)
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
