//! What is verified: the rules that every certificate must satisfy before it is handed out.
//!
//! Its peers decide. **What Envoy refuses is not called verified, and what is sound and Envoy accepts is
//! not refused.** [`peer`](crate::peer) applies the same rules to the certificates of a handshake, at
//! its moment and for one side.
//!
//! # Modern certificates
//!
//! Those of a MeshIdentity are X.509-SVIDs.
//!
//! | rule | source |
//! |---|---|
//! | at most [`MAX_CERTIFICATES`] certificates came back, each of them readable for BoringSSL: strings in names, object identifiers, fields of its version | bounded work; Envoy |
//! | one of them is for the key of the request, and is the leaf; of several, the first that satisfies the rules, each standing for itself | RFC 2986 §1 |
//! | it has exactly one URI name, the SPIFFE ID of the request; its DNS names are those of the request; there are no others | SPIFFE X.509-SVID §2 |
//! | its common name is the one requested, if one was | |
//! | a workload's: it is no CA (no BasicConstraints counts as none), lists the key usage `digitalSignature`, may not sign certificates or CRLs | SPIFFE X.509-SVID §4; Envoy takes a certificate without usages for a CA's |
//! | a workload's: its key is P-256, P-384 or RSA. A request for another is refused before a CA is asked. CAs may have keys of other types | Envoy accepts no others in handshakes |
//! | a workload's: if it lists extended key usages, server **and** client authentication are among them: a mesh proxy is both | SPIFFE X.509-SVID §4.4, RFC 5280 §4.2.1.12 |
//! | an intermediate's: it is a CA that may sign certificates, with a path length no larger than requested; proven by signing a throwaway leaf with its key | RFC 5280 §4.2.1.9 |
//! | it has not ended, and begins at most [`CLOCK_SKEW`] from now | clocks differ |
//! | it ends no later than requested, under [`LifetimePolicy::AtMostRequested`] | |
//! | signatures, names, name constraints, path lengths, extended key usages and validity hold from the leaf to a root of the bundle | RFC 5280 §6, by rustls-webpki |
//! | every CA on that path may sign certificates, if it lists key usages; a key identifier or serial number by which a certificate names its issuer is that issuer's; extensions that peers read are not damaged | RFC 5280 §6.1.4, §4.2.1.1; Envoy and OpenSSL |
//! | no CA on that path demands certificate policies; what else they say of policies does not matter, even if it is critical | RFC 5280 §6.1.5 (g) |
//! | it ends no later than any CA on that path; where there are several paths, one that fits is taken | a chain is as good as its weakest link |
//!
//! # Classic certificates
//!
//! Those of a backend of a Mesh follow the product. The rules are the same but for the URI names:
//!
//! | rule | source |
//! |---|---|
//! | the first URI name is the SPIFFE ID: Envoy looks at no other | Envoy's SPIFFE validator |
//! | the others are the tags of the request (`kuma://…`), in any order | the product |
//!
//! # Trust anchors
//!
//! Of an anchor count its name, its key, its constraints and its dates, and that peers can read it.
//!
//! | rule | source |
//! |---|---|
//! | it is a CA: it says so, or is a root of version 1, which could not | RFC 5280 §6.1.4 (k); Envoy |
//! | it is self-issued, or a path leads from it to an anchor that is. [Partial chains](TrustBundle::allow_partial_chains) can be allowed in meshes without Envoy | Envoy and OpenSSL; [`TrustBundle::ends`], [`TrustBundle::dead_ends`] |
//! | its dates, path length and extended key usage hold, and it may sign certificates if it lists key usages | Envoy, Go and OpenSSL look at them |
//!
//! Its own signature never counts: a root that signed itself with SHA-1 is a root.
//!
//! A CA may name an intermediate as its only anchor. What it signs is verified against that anchor,
//! [completed](TrustBundle::completed_by) by what its peers hold; without a root there, it is refused.
//!
//! # Chains
//!
//! The chain is rebuilt from whatever came back – any order, repetitions, the root, strangers –
//! and is delivered in order without the root. A chain that ends nowhere is "root unknown"; the last certificate is
//! never taken for a root because it came last. What is unusual but sound becomes an [`Observation`].
//!
//! # Differences
//!
//! The oracle of the facade crate (`tests/it/oracle`) compares these verdicts with those of Envoy 1.40,
//! OpenSSL 3, Go's `crypto/x509` and go-spiffe, and holds its list of differences (`differences.txt`) to be exact.
//! The table lists their kinds. The column `others` names those who decide otherwise than we do. The column `profile`
//! says by which rules for names the difference shows, those of modern or of classic certificates.
//!
//! | what | profile | we | others | reason |
//! |---|---|---|---|---|
//! | a leaf that begins within the skew of clocks | both | accept | Envoy, OpenSSL, Go, go-spiffe | it is held back until it begins |
//! | critical extensions of a root that are not understood | both | accept | OpenSSL, Go, go-spiffe | an anchor is a name and a key; Envoy ignores them |
//! | a critical authority key identifier of a root | both | accept | OpenSSL, Go, go-spiffe | Envoy ignores it |
//! | P-384 keys of servers | both | accept | Envoy in TLS 1.2 | contexts for Envoy speak TLS 1.3 as clients, where Envoy accepts them, unless the policy of the mesh forbids it |
//! | name constraints without names | both | accept | Go, go-spiffe | Envoy accepts them |
//! | tags behind the SPIFFE ID | classic | accept | go-spiffe | the product's classic certificates are no X.509-SVIDs |
//! | the certificate type of Netscape | both | accept | OpenSSL | it is obsolete, and Envoy ignores it |
//! | policies of a root that are damaged, or named twice | both | accept | Go, go-spiffe | an anchor is a name and a key; Envoy ignores them |
//! | negative serial numbers | both | accept | Go, go-spiffe | Envoy accepts them |
//! | `VisibleString` in names | both | accept | OpenSSL, Go, go-spiffe | Envoy reads it |
//! | an intermediate as the only anchor | both | refuse | Go, go-spiffe | Envoy and OpenSSL refuse it |
//! | an anchor that is not a CA, or that has damaged extensions or dates | both | refuse the bundle | Envoy, OpenSSL | Envoy reads the bundle, but not every peer accepts what leads to such an anchor; OpenSSL accepts a root without BasicConstraints, which Go refuses |
//! | faults of an intermediate in the bundle, or of its root | both | refuse | Go, go-spiffe | Go takes the intermediate for an anchor; for Envoy it is on the way to its root |
//! | critical extensions of an intermediate in the bundle | both | refuse | Envoy | it is on the way to its root, and Envoy refuses it where it is sent |
//! | critical CRL distribution points below the root | both | refuse | OpenSSL, Go, go-spiffe | Envoy refuses them |
//! | an end after that of the issuer, or after the one requested; an end in the past | both | refuse what a CA returns | Envoy, OpenSSL, Go, go-spiffe | peers would refuse it before it is renewed; [`LifetimePolicy`] is the requester's |
//! | the name of the issuer in another case or another type of string | both | refuse | Envoy, OpenSSL | rustls-webpki and Go compare bytes, so rustls peers would refuse it |
//! | identifiers of the issuer's key or certificate that do not fit | both | refuse | Go, go-spiffe | Envoy and OpenSSL refuse them |
//! | name constraints of URIs and directory names | both | refuse | Envoy, OpenSSL, Go, go-spiffe | rustls-webpki knows neither, whether the leaf satisfies them or not |
//! | tags in the modern model | modern | refuse | Envoy, OpenSSL, Go | X.509-SVID §2; go-spiffe refuses them |
//! | further URI names that are not tags | both | refuse | Envoy, OpenSSL, Go | one reader would take one name, another the other |
//! | no SPIFFE ID of a workload as the first URI name | both | refuse | OpenSSL, Go, go-spiffe | Envoy refuses it; go-spiffe accepts an ID without a path |
//! | names that were not requested, or are missing, or repeated | both | refuse what a CA returns | Envoy, OpenSSL, Go, go-spiffe | the requester is entitled to its names and no others |
//! | path lengths of a root | both | refuse | Envoy | RFC 5937; Go and OpenSSL refuse them |
//! | a path length larger than requested | both | refuse what a CA returns | Envoy, OpenSSL, Go, go-spiffe | it gives more than was requested |
//! | cA or a path length in a leaf | both | refuse | OpenSSL, Go, go-spiffe | X.509-SVID §5.2, RFC 5280 §4.2.1.9; Envoy refuses them |
//! | types of keys of a leaf that Envoy does not accept | both | refuse | OpenSSL, Go, go-spiffe | Envoy refuses each handshake with Ed25519 and P-521 keys |
//! | policies below the root that are damaged, named twice or demanded | both | refuse | Envoy, OpenSSL | Envoy and Go refuse all but damaged mappings in a leaf; `requireExplicitPolicy` is not supported |
//! | extended key usages without the purpose of the peer | both | refuse | Envoy, Go, go-spiffe | RFC 5280 §4.2.1.12, which OpenSSL and rustls check; `any` is no purpose of a peer |
//! | `OctetString`, `UniversalString` and noncharacters in names | both | refuse | Envoy, OpenSSL, Go, go-spiffe | not all peers read them |
//! | key usages of a leaf without `digitalSignature`, or those of a CA | both | refuse | OpenSSL, Go, go-spiffe | X.509-SVID §4.3; Envoy refuses them, or TLS does |
//! | key usages of a CA that are empty; bits beyond the length of any | both | refuse | OpenSSL, Go, go-spiffe | Envoy refuses them |
//! | unique identifiers | both | refuse | Envoy, OpenSSL, Go, go-spiffe | rustls-webpki does not read them (RFC 5280 §4.1.2.8), so rustls peers would refuse them |
//! | versions other than 3 below the root; fields that a version does not allow | both | refuse | Envoy, OpenSSL, Go, go-spiffe | such a leaf cannot say that it is a workload's; Envoy reads a bundle with an intermediate of version 1, and refuses the others |
//! | SHA-1 in signatures below the root | both | refuse | Envoy, OpenSSL | they can be forged; rustls-webpki and Go refuse them |

mod critical;
mod ends;
mod issued;
pub(crate) mod path;

use std::time::{Duration, SystemTime};

use x509_cert::ext::pkix::ExtendedKeyUsage;
use x509_cert::ext::pkix::name::GeneralName;

pub use self::ends::ChainEnds;

#[cfg(feature = "builtin")]
use crate::certificate::Constructed;
use crate::time::{later, rfc3339};
use crate::usages::{check_extensions, check_workload};
use crate::x509::{CLIENT_AUTH, Parsed, SERVER_AUTH};
use crate::{
    CertificateRequest, Error, ErrorKind, IssuedCertificate, LifetimePolicy, Observation, Profile,
    Proof, SignedChain, TrustBundle, Validity,
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

impl SignedChain {
    /// Proves that this answers the request and leads to the bundle; see the
    /// [module `verify`](self) for the rules. It is the only way to an [`IssuedCertificate`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadResponse`] saying which rule is broken, by which certificate;
    /// [`ErrorKind::InvalidRequest`] if the bundle is of another trust domain.
    pub fn verify(
        self,
        request: &CertificateRequest,
        bundle: &TrustBundle,
        now: SystemTime,
    ) -> Result<IssuedCertificate, Error> {
        let verified = verify(&self, request, bundle, now);
        let verified = verified.map_err(|refusal| refusal.error);
        drop(self.settle(verified.as_ref()));
        verified
    }
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
        && let Some(root) = bundle.end(&by.root)
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
    root: &crate::TrustRoot,
    now: SystemTime,
) -> Result<IssuedCertificate, Error> {
    let mut observations = notes(chain);
    check_lifetime(by.validity, &by.request, now, &mut observations)?;
    Ok(IssuedCertificate {
        chain: chain.certificates().to_vec(),
        spec: by.request.spec().clone(),
        public_key: by.request.public_key().clone(),
        serial: by.serial.clone(),
        validity: by.validity,
        issued_at: now,
        usable_from: by.validity.not_before().max(now),
        root: root.clone(),
        proof: Proof::Construction,
        observations,
    })
}

fn notes(chain: &SignedChain) -> Vec<Observation> {
    let notes = chain.notes().iter().cloned();
    notes.map(Observation::IssuerNote).collect()
}

fn verify_signatures(
    chain: &SignedChain,
    request: &CertificateRequest,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<IssuedCertificate, Refusal> {
    let mut sent = read_all(chain)?;
    let count = sent.len();
    let held = bundle.intermediates();
    sent.extend(held.filter_map(|der| Parsed::read(der).ok()));
    let (mut leaves, mut others): (Vec<&Parsed<'_>>, Vec<&Parsed<'_>>) = Default::default();
    for certificate in &sent {
        let group = if certificate.public_key == *request.public_key() {
            &mut leaves
        } else {
            &mut others
        };
        if group.iter().all(|known| known.der != certificate.der) {
            group.push(certificate);
        }
    }
    // A CA may certify one key twice, or send an older certificate along. None proves another: what
    // an intermediate's key signs would lead to the root by way of any of them.
    let mut refused: Option<Refusal> = None;
    for leaf in leaves {
        match verify_leaf(leaf, &others, chain, request, bundle, now) {
            Ok(issued) => return Ok(issued),
            Err(refusal) => {
                let root_unknown = refusal.root_unknown;
                refused.get_or_insert(refusal).root_unknown |= root_unknown;
            }
        }
    }
    Err(refused.unwrap_or_else(|| {
        bad(format!(
            "none of the {count} certificates that the CA returned is for the key of the request"
        ))
        .into()
    }))
}

fn verify_leaf(
    leaf: &Parsed<'_>,
    others: &[&Parsed<'_>],
    chain: &SignedChain,
    request: &CertificateRequest,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<IssuedCertificate, Refusal> {
    let mut observations = notes(chain);
    check_names(leaf, request, &mut observations)?;
    check_purpose(leaf, request, &mut observations)?;
    check_lifetime(leaf.validity, request, now, &mut observations)?;

    let path = issued::prove(leaf, others, request, bundle, now)?;
    let delivered = || std::iter::once(leaf).chain(path.intermediates.iter().copied());
    let expected = delivered().map(|certificate| certificate.der);
    // The root behind its chain is common and nothing to report; anything else that differs is.
    if !expected.clone().eq(chain.certificates())
        && !expected.chain([path.root.der()]).eq(chain.certificates())
    {
        observations.push(Observation::ChainRebuilt);
    }
    // A chain is valid when all of it is.
    let begins = delivered().map(|certificate| certificate.validity);
    let begins = begins.chain([path.root.validity()]);
    let begins = begins.map(|validity| validity.not_before());
    let usable_from = begins.max().unwrap_or(now).max(now);
    let wait = usable_from.duration_since(now).unwrap_or_default();
    if !wait.is_zero() {
        observations.push(Observation::NotYetValid { wait });
    }
    Ok(IssuedCertificate {
        chain: delivered()
            .map(|certificate| certificate.der.clone().into_owned())
            .collect(),
        spec: request.spec().clone(),
        public_key: request.public_key().clone(),
        serial: leaf.serial(),
        validity: leaf.validity,
        issued_at: now,
        usable_from,
        root: path.root.clone(),
        proof: Proof::Signatures,
        observations,
    })
}

fn read_all(chain: &SignedChain) -> Result<Vec<Parsed<'_>>, Error> {
    let count = chain.certificates().len();
    if count == 0 {
        return Err(bad("the CA returned no certificate"));
    }
    if count > MAX_CERTIFICATES {
        return Err(bad(format!(
            "the CA returned {count} certificates; at most {MAX_CERTIFICATES} are looked at"
        )));
    }
    let read = |(number, der)| {
        Parsed::read(der).map_err(|why| {
            bad(format!(
                "certificate {number} of the {count} that the CA returned: {why}"
            ))
        })
    };
    (1..).zip(chain.certificates()).map(read).collect()
}

fn check_names(
    leaf: &Parsed<'_>,
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
            GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.as_str()),
            GeneralName::DnsName(name) => dns.push(name.as_str()),
            other => {
                let kind = kind_of(other);
                return Err(bad(format!(
                    "the certificate has a name that was not requested: {kind}"
                )));
            }
        }
    }
    // An intermediate may go without its trust domain's ID (SPIFFE X.509-SVID §3.2, §5).
    let optional = spec.profile() != Profile::Workload;
    compare_names("URI", &uris, &spec.all_uris().collect::<Vec<_>>(), optional)?;
    check_first(&uris)?;
    compare_names("DNS name", &dns, spec.dns_names(), optional)?;
    let names = leaf.common_names();
    match spec.common_name() {
        None => {
            let unrequested = |name| Observation::UnrequestedCommonName { name };
            observations.extend(names.into_iter().map(unrequested));
            Ok(())
        }
        Some(wanted) => match names.iter().find(|name| *name != wanted) {
            Some(other) => Err(bad(format!(
                "the certificate has the common name `{}` where `{wanted}` was requested",
                other.escape_debug()
            ))),
            None if names.is_empty() => Err(bad(format!(
                "the certificate lacks the requested common name `{wanted}`"
            ))),
            None => Ok(()),
        },
    }
}

/// As sets, but for the number: a CA that repeats a name has a defect that we would rather see.
fn compare_names(
    kind: &str,
    found: &[&str],
    wanted: &[String],
    optional: bool,
) -> Result<(), Error> {
    let unwanted = |name: &&&str| wanted.iter().all(|wanted| wanted != **name);
    if let Some(extra) = found.iter().find(unwanted) {
        let extra = extra.escape_debug();
        return Err(bad(format!(
            "the certificate has the {kind} `{extra}` that was not requested"
        )));
    }
    if found.len() > wanted.len() {
        return Err(bad(format!("the certificate repeats a {kind}")));
    }
    match wanted.iter().find(|name| !found.contains(&name.as_str())) {
        Some(missing) if !optional => Err(bad(format!(
            "the certificate lacks the requested {kind} `{}`; does the CA take names from the CSR, and does its policy allow this one?",
            missing.escape_debug()
        ))),
        _ => Ok(()),
    }
}

/// Envoy takes the first URI for the name of the workload, and looks at no other.
fn check_first(uris: &[&str]) -> Result<(), Error> {
    match uris.first() {
        Some(first) if !first.starts_with("spiffe://") => Err(bad(format!(
            "the first URI of the certificate is `{}`, so Envoy does not find its SPIFFE ID; have the CA keep the order of the names in the CSR",
            first.escape_debug()
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

fn check_purpose(
    leaf: &Parsed<'_>,
    request: &CertificateRequest,
    observations: &mut Vec<Observation>,
) -> Result<(), Error> {
    let damaged = |extension: &'static str| {
        move |error| {
            let why = format!("the certificate's {extension} extension is damaged");
            bad(why).with_source(error)
        }
    };
    match request.spec().profile() {
        Profile::Workload => {
            check_workload(leaf)
                .and_then(|()| check_extensions(leaf))
                .map_err(|why| bad(format!("the certificate {why}")))?;
            let extended = leaf.extended_key_usage();
            let extended = extended.map_err(damaged("ExtendedKeyUsage"))?;
            // Without the extension it is for any purpose (X.509-SVID §4.4, RFC 5280 §4.2.1.12).
            let Some(ExtendedKeyUsage(purposes)) = extended else {
                return Ok(());
            };
            for (purpose, name) in [(SERVER_AUTH, "serverAuth"), (CLIENT_AUTH, "clientAuth")] {
                if !purposes.contains(&purpose) {
                    return Err(bad(format!(
                        "the certificate lacks the extended key usage `{name}`; a proxy is both server and client: add it to the CA's profile or role"
                    )));
                }
            }
        }
        Profile::Intermediate { path_len } => {
            let constraints = leaf
                .basic_constraints()
                .map_err(damaged("BasicConstraints"))?
                .filter(|constraints| constraints.ca);
            let usage = leaf.key_usage().map_err(damaged("KeyUsage"))?;
            let Some(constraints) = constraints else {
                return Err(bad(
                    "the certificate is not a CA's, though an intermediate was requested",
                ));
            };
            if usage.is_some_and(|usage| !usage.key_cert_sign()) {
                return Err(bad("the intermediate lacks the key usage `keyCertSign`"));
            }
            match constraints.path_len_constraint {
                Some(granted) if granted <= path_len => {}
                // Some CAs cannot set it. It gives more than was asked for to a key that is ours.
                None => observations.push(Observation::UnlimitedPathLength),
                Some(granted) => {
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
    let (begin, end) = (validity.not_before(), validity.not_after());
    if end <= now {
        return Err(bad(format!(
            "the certificate had ended when it arrived, at {}; it is now {}: is the CA's clock right?",
            rfc3339(end),
            rfc3339(now)
        )));
    }
    if begin > later(now, CLOCK_SKEW) {
        return Err(bad(format!(
            "the certificate begins at {}, more than {}s ahead of now, {}: compare the clocks",
            rfc3339(begin),
            CLOCK_SKEW.as_secs(),
            rfc3339(now)
        )));
    }
    let requested = request.spec().lifetime();
    let granted = validity.remaining(now);
    // Counted from now, not from the request: a CA that counts from signing may do so after a retry.
    if granted > requested.saturating_add(CLOCK_SKEW) {
        match request.spec().lifetime_policy() {
            LifetimePolicy::AcceptIssuer | LifetimePolicy::LeftToIssuer => {
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
    } else if later(end, CLOCK_SKEW.min(requested / 10)) < request.not_after() {
        observations.push(Observation::ShorterLifetime { requested, granted });
    }
    Ok(())
}
