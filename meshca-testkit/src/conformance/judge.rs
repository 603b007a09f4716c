//! What an issuer's answer must be, judged without core.
//!
//! If the kit asked core whether a certificate is sound, a hole in core's verification would be a
//! hole in the kit. So everything here reads the certificates itself and has rustls-webpki prove the
//! path, called directly. It collects every fault rather than stopping at the first.

use std::time::{Duration, SystemTime};

use der::asn1::BitString;
use der::{Any, Decode, Encode};
use meshca_core::{CertificateRequest, PrivateKey, Profile, Signer, TrustBundle};
use rcgen::CertificateParams;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_cert::der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage as KeyUsageExtension, SubjectAltName,
};
use x509_cert::{Certificate, TbsCertificate};

use super::faults::Faults;
use crate::pki::{self, Key};

/// What an answer is held against.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    pub(super) request: &'a CertificateRequest,
    /// The key of a requested intermediate, to prove it by signing.
    pub(super) key: Option<&'a PrivateKey>,
    pub(super) bundle: &'a TrustBundle,
    pub(super) now: SystemTime,
    /// The most by which the lifetime may differ from the requested one; `None` if the CA decides.
    pub(super) tolerance: Option<Duration>,
    /// The longest that the issuer says it gives.
    pub(super) max_lifetime: Option<Duration>,
    pub(super) any_order: bool,
    pub(super) clock_ahead: Duration,
    pub(super) any_path_length: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) faults: Faults,
    /// Whether newer roots might help.
    pub(super) root_unknown: bool,
    pub(super) serial: String,
    pub(super) not_after: Option<SystemTime>,
}

struct Read {
    der: CertificateDer<'static>,
    certificate: Certificate,
    spki: Vec<u8>,
}

impl Read {
    fn new(der: &CertificateDer<'static>) -> Result<Self, der::Error> {
        let certificate = Certificate::from_der(der)?;
        let spki = certificate
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()?;
        Ok(Self {
            der: der.clone(),
            certificate,
            spki,
        })
    }

    fn fields(&self) -> &TbsCertificate {
        self.certificate.tbs_certificate()
    }

    fn subject(&self) -> String {
        name(self.fields().subject())
    }

    fn issuer(&self) -> String {
        name(self.fields().issuer())
    }

    fn not_before(&self) -> SystemTime {
        self.fields().validity().not_before.to_system_time()
    }

    fn not_after(&self) -> SystemTime {
        self.fields().validity().not_after.to_system_time()
    }

    fn extension<'a, T>(&'a self, what: &str) -> Result<Option<T>, String>
    where
        T: Decode<'a, Error = der::Error> + der::oid::AssociatedOid,
    {
        let found = self.fields().get_extension::<T>();
        found
            .map(|found| found.map(|(_, value)| value))
            .map_err(|error| format!("the certificate's {what} cannot be read: {error}"))
    }
}

fn name(name: &x509_cert::name::Name) -> String {
    if name.is_empty() {
        "the certificate without a subject".to_owned()
    } else {
        format!("`{name}`")
    }
}

/// Judges what `sign` returned.
pub(super) fn judge(chain: &[CertificateDer<'static>], expected: &Expected<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    if chain.is_empty() {
        let fault = "the answer holds no certificate at all";
        verdict.faults.push(fault);
        return verdict;
    }
    let mut certificates = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        match Read::new(der) {
            Ok(read) => certificates.push(read),
            Err(error) => verdict.faults.push(format!(
                "what came as certificate {} of {} is none: {error}",
                index + 1,
                chain.len()
            )),
        }
    }
    let requested_key: &[u8] = expected.request.public_key();
    let own = certificates
        .iter()
        .find(|certificate| certificate.spki == requested_key);
    let Some(leaf) = own.or(certificates.first()) else {
        return verdict;
    };
    if own.is_none() {
        verdict
            .faults
            .push("no certificate of the answer is for the key of the request (wrong key)");
    }
    let faults = &mut verdict.faults;
    check_names(leaf, expected.request, faults);
    check_purpose(leaf, expected, faults);
    check_lifetime(leaf, expected, faults);
    verdict.serial = check_serial(leaf, faults);
    verdict.not_after = Some(leaf.not_after());
    match prove(leaf, &certificates, expected) {
        Ok(path) => {
            for above in &path {
                if leaf.not_after() > above.not_after() {
                    verdict.faults.push(format!(
                        "the certificate outlives its issuer {} by {}s",
                        above.subject(),
                        seconds(above.not_after(), leaf.not_after())
                    ));
                }
            }
            if !expected.any_order {
                check_order(leaf, &path, chain, &mut verdict.faults);
            }
        }
        Err((why, root_unknown)) => {
            verdict.root_unknown = root_unknown;
            verdict.faults.push(why);
        }
    }
    verdict
}

fn check_names(leaf: &Read, request: &CertificateRequest, faults: &mut Faults) {
    let spec = request.spec();
    let names = match leaf.extension::<SubjectAltName>("subject alternative names") {
        Ok(names) => names.map(|names| names.0).unwrap_or_default(),
        Err(why) => return faults.push(why),
    };
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    for name in names {
        match name {
            GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.as_str().to_owned()),
            GeneralName::DnsName(name) => dns.push(name.as_str().to_owned()),
            _ => faults.push(
                "the certificate has an alternative name that is neither a URI nor a DNS name",
            ),
        }
    }
    let spiffe = |uri: &&String| {
        uri.get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
    };
    let ids = uris.iter().filter(spiffe).count();
    if ids > 1 {
        faults.push(format!(
            "the certificate has {ids} SPIFFE IDs where an SVID has exactly one"
        ));
    }
    let workload = spec.profile() == Profile::Workload;
    let wanted: Vec<String> = spec.all_uris().collect();
    compare("URI", &uris, &wanted, workload, faults);
    compare("DNS name", &dns, spec.dns_names(), workload, faults);
    if let Some(wanted) = spec.common_name() {
        let found = leaf.fields().subject().common_name().ok().flatten();
        let found = found.map(|name| name.value().into_owned());
        if found.as_deref() != Some(wanted) {
            faults.push(format!(
                "the certificate's common name is {} where `{wanted}` was requested",
                found.map_or("absent".to_owned(), |found| format!("`{found}`"))
            ));
        }
    }
}

fn compare(kind: &str, found: &[String], wanted: &[String], all_needed: bool, faults: &mut Faults) {
    for name in found.iter().filter(|name| !wanted.contains(name)) {
        let name = name.escape_debug();
        faults.push(format!(
            "the certificate has the {kind} `{name}` that was not requested"
        ));
    }
    for name in wanted {
        match found.iter().filter(|found| *found == name).count() {
            0 if all_needed => faults.push(format!(
                "the certificate lacks the requested {kind} `{}`",
                name.escape_debug()
            )),
            0 | 1 => {}
            _ => faults.push(format!(
                "the certificate repeats the {kind} `{}`",
                name.escape_debug()
            )),
        }
    }
}

fn check_purpose(leaf: &Read, expected: &Expected<'_>, faults: &mut Faults) {
    let profile = expected.request.spec().profile();
    let read = || -> Result<_, String> {
        Ok((
            leaf.extension::<BasicConstraints>("BasicConstraints")?,
            leaf.extension::<KeyUsageExtension>("KeyUsage")?,
            leaf.extension::<ExtendedKeyUsage>("ExtendedKeyUsage")?,
        ))
    };
    let (constraints, usage, extended) = match read() {
        Ok(extensions) => extensions,
        Err(why) => return faults.push(why),
    };
    let is_ca = constraints
        .as_ref()
        .is_some_and(|constraints| constraints.ca);
    if let Profile::Intermediate { path_len } = profile {
        if !is_ca {
            faults.push("an intermediate was requested, and the certificate is no CA's");
        }
        if usage.is_some_and(|usage| !usage.key_cert_sign()) {
            faults.push("the intermediate lacks the key usage `keyCertSign`");
        }
        match constraints.and_then(|constraints| constraints.path_len_constraint) {
            Some(granted) if granted <= path_len => {}
            None if expected.any_path_length => {}
            granted => faults.push(format!(
                "the intermediate has the path length {} where {path_len} was requested",
                granted.map_or("none".to_owned(), |granted| granted.to_string())
            )),
        }
        return;
    }
    if is_ca {
        faults.push("the certificate is a CA's, which no workload may hold");
    }
    if usage.is_some_and(|usage| usage.key_cert_sign() || usage.crl_sign()) {
        faults.push(
            "the certificate has the key usage `keyCertSign` or `cRLSign`, which no workload may",
        );
    }
    // Without the extension, Envoy takes it for a certificate with all usages, those of a CA too.
    if usage.is_none_or(|usage| !usage.digital_signature()) {
        faults.push("the certificate lacks the key usage `digitalSignature`");
    }
    // Without the extension, a certificate is good for every purpose (RFC 5280 §4.2.1.12).
    let Some(ExtendedKeyUsage(purposes)) = extended else {
        return;
    };
    for (purpose, name) in [
        (ID_KP_SERVER_AUTH, "serverAuth"),
        (ID_KP_CLIENT_AUTH, "clientAuth"),
    ] {
        if !purposes.contains(&purpose) {
            faults.push(format!(
                "the certificate lacks the extended key usage `{name}`"
            ));
        }
    }
}

fn check_lifetime(leaf: &Read, expected: &Expected<'_>, faults: &mut Faults) {
    let now = expected.now;
    let (not_before, not_after) = (leaf.not_before(), leaf.not_after());
    if not_after <= now {
        faults.push(format!(
            "the certificate had ended {}s before it arrived",
            seconds(not_after, now)
        ));
        return;
    }
    let ahead = not_before.duration_since(now).unwrap_or_default();
    if ahead > expected.clock_ahead {
        faults.push(format!(
            "the certificate begins {}s ahead of now: no peer accepts it before",
            ahead.as_secs()
        ));
    }
    let granted = not_after.duration_since(now).unwrap_or_default();
    if let Some(tolerance) = expected.tolerance {
        let requested = expected.request.spec().lifetime();
        // Counted from the request by some CAs and from signing by others; both are right.
        let earliest = expected
            .request
            .not_after()
            .checked_sub(tolerance)
            .unwrap_or(now);
        if granted > requested.saturating_add(tolerance) || not_after < earliest {
            faults.push(format!(
                "the certificate lives for {}s where {}s were requested, though the issuer declares that it honours lifetimes",
                granted.as_secs(),
                requested.as_secs()
            ));
        }
    }
    if let Some(max) = expected.max_lifetime
        && granted > max.saturating_add(Duration::from_secs(60))
    {
        faults.push(format!(
            "the certificate lives for {}s, longer than the {}s that the issuer declares as its maximum",
            granted.as_secs(),
            max.as_secs()
        ));
    }
}

fn check_serial(leaf: &Read, faults: &mut Faults) -> String {
    let serial = leaf.fields().serial_number();
    if serial.as_bytes().iter().all(|byte| *byte == 0) {
        faults.push("the serial number is zero (RFC 5280 §4.1.2.2)");
    }
    serial.to_string()
}

/// The leaf first, then its issuers in order, with or without the root: what every TLS server sends.
fn check_order(leaf: &Read, path: &[Read], chain: &[CertificateDer<'static>], faults: &mut Faults) {
    let repeated = chain
        .iter()
        .enumerate()
        .any(|(index, certificate)| chain.iter().take(index).any(|before| before == certificate));
    if repeated {
        faults.push("the chain repeats certificates");
        return;
    }
    let with_root: Vec<_> = std::iter::once(&leaf.der)
        .chain(path.iter().map(|above| &above.der))
        .collect();
    let without_root = with_root.split_last().map_or(&[][..], |(_, rest)| rest);
    if !chain.iter().eq(with_root.iter().copied()) && !chain.iter().eq(without_root.iter().copied())
    {
        faults.push(
            "the chain is out of order or has certificates that do not belong to it: the leaf comes first, then the CA that signed it, and so on",
        );
    }
}

/// The path from the leaf (exclusive) to the root (inclusive), or why there is none.
fn prove(
    leaf: &Read,
    certificates: &[Read],
    expected: &Expected<'_>,
) -> Result<Vec<Read>, (String, bool)> {
    let certain = |why: String| (why, false);
    // A leaf outside its time is reported already; here the question is whether the rest is sound.
    let at = expected
        .now
        .clamp(leaf.not_before(), leaf.not_after().max(leaf.not_before()));
    let time = UnixTime::since_unix_epoch(
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    );
    let intermediate = matches!(
        expected.request.spec().profile(),
        Profile::Intermediate { .. }
    );
    let end_entity = match (intermediate, expected.key) {
        (true, Some(key)) => throwaway(leaf, key)
            .map_err(|why| certain(format!("the intermediate cannot be tried out: {why}")))?,
        (true, None) => {
            return Err(certain(
                "an intermediate can be proven only with its key".to_owned(),
            ));
        }
        (false, _) => leaf.der.clone(),
    };
    let candidates: Vec<_> = certificates
        .iter()
        .filter(|certificate| intermediate || certificate.der != leaf.der)
        .map(|certificate| certificate.der.clone())
        .collect();
    let valid = expected.bundle.roots().iter();
    let (anchors, roots): (Vec<_>, Vec<_>) = valid
        .filter(|root| root.validity().contains(at))
        .filter_map(|root| Some((webpki::anchor_from_trusted_cert(root.der()).ok()?, root)))
        .unzip();
    let end_entity = EndEntityCert::try_from(&end_entity)
        .map_err(|error| certain(format!("webpki cannot read the certificate: {error}")))?;
    let mut path = Vec::new();
    for usage in [KeyUsage::client_auth, KeyUsage::server_auth] {
        let proven = end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &candidates,
                time,
                usage(),
                None,
                None,
            )
            .map_err(|error| explain(&error, leaf, certificates, expected))?;
        path = proven
            .intermediate_certificates()
            .map(|used| used.der().into_owned())
            .filter(|used| *used != leaf.der)
            .collect();
        let root = anchors
            .iter()
            .zip(&roots)
            .find(|(anchor, _)| *anchor == proven.anchor());
        path.extend(root.map(|(_, root)| root.der().clone().into_owned()));
    }
    path.iter()
        .map(|der| Read::new(der).map_err(|error| certain(error.to_string())))
        .collect()
}

fn explain(
    error: &webpki::Error,
    leaf: &Read,
    certificates: &[Read],
    expected: &Expected<'_>,
) -> (String, bool) {
    use webpki::Error as E;
    let held: Vec<String> = expected
        .bundle
        .roots()
        .iter()
        .map(|root| format!("`{}`", root.subject()))
        .collect();
    let why = match error {
        E::UnknownIssuer => {
            // The names lead upwards until nobody goes by the next one.
            let mut last = leaf;
            for _ in certificates {
                let issuer = last.issuer();
                match certificates
                    .iter()
                    .find(|above| above.subject() == issuer && above.der != last.der)
                {
                    Some(above) => last = above,
                    None => break,
                }
            }
            format!(
                "{} was signed by {}, which is neither in the answer nor a valid root of the bundle",
                last.subject(),
                last.issuer()
            )
        }
        E::CaUsedAsEndEntity => "the certificate is a CA's".to_owned(),
        E::RequiredEkuNotFoundContext(_) => {
            "it is not for server and client authentication".to_owned()
        }
        other => format!("{other}"),
    };
    let root_unknown = matches!(error, E::UnknownIssuer | E::InvalidSignatureForPublicKey);
    (
        format!(
            "the chain does not verify to the bundle (which holds {}): {why}",
            if held.is_empty() {
                "nothing".to_owned()
            } else {
                held.join(", ")
            }
        ),
        root_unknown,
    )
}

/// A leaf signed with an intermediate's own key, since webpki proves leaves only.
fn throwaway(
    intermediate: &Read,
    key: &PrivateKey,
) -> Result<CertificateDer<'static>, Box<dyn std::error::Error>> {
    let mut params = pki::workload_params();
    params.subject_alt_names = vec![pki::uri("spiffe://example.org/throwaway")?];
    params.not_before = pki::calendar(intermediate.not_before());
    params.not_after = pki::calendar(intermediate.not_after());
    let issuer_params = CertificateParams::default();
    let key_pair = Key::pair(key)?;
    let issuer = rcgen::Issuer::from_params(&issuer_params, &key_pair);
    let signed = params.signed_by(&key_pair, &issuer)?;

    // rcgen cannot repeat every CA's name byte for byte, which path building insists on. So the name
    // is put in afterwards, and the whole signed again (TBSCertificate is a SEQUENCE whose fourth
    // field is the issuer, RFC 5280 §4.1).
    let subject = intermediate.fields().subject();
    let fields = Vec::<Any>::from_der(signed.der())?;
    let [tbs, algorithm, _] = fields.as_slice() else {
        return Err("rcgen made no certificate".into());
    };
    let mut tbs: Vec<Any> = tbs.decode_as()?;
    if let Some(issuer) = tbs.get_mut(3) {
        *issuer = Any::from_der(&subject.to_der()?)?;
    }
    let signature = Signer::sign(key, &tbs.to_der()?)?;
    let signature = BitString::from_bytes(&signature)?;
    let certificate = vec![
        Any::encode_from(&tbs)?,
        algorithm.clone(),
        Any::encode_from(&signature)?,
    ];
    Ok(certificate.to_der()?.into())
}

fn seconds(from: SystemTime, to: SystemTime) -> u64 {
    to.duration_since(from).unwrap_or_default().as_secs()
}
