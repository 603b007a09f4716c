//! One CA: a certificate, what leads from it to its root, and something that signs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use der::Decode;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::settings::CaSettings;
use crate::certificate::Constructed;
use crate::encode::{Contents, Template};
use crate::key::Signer;
use crate::time::{later, rfc3339, seconds, whole_seconds};
use crate::x509::key_oid::RSA;
use crate::x509::{self, Parsed};
use crate::{
    Capabilities, CertificateRequest, CertificateSpec, Error, ErrorKind, KeyType, PrivateKey,
    Profile, Result, SecretValue, SignedChain, TrustBundle, Validity,
};

/// How far before now a certificate begins, so that peers whose clock is behind accept it at once: ten seconds, as Kuma, SPIRE and Linkerd do.
pub const BACKDATE: Duration = Duration::from_secs(10);

/// How many certificates the chain of a provided CA may have.
const MAX_CHAIN: usize = 8;

/// A CA that the operator provides: a certificate chain and what signs for it.
#[derive(Debug)]
pub struct ProvidedCa {
    pub(super) chain: Vec<(usize, CertificateDer<'static>)>,
    pub(super) signer: Arc<dyn Signer>,
    key_is_ours: bool,
    pub(super) allow_self_signed: bool,
}

impl ProvidedCa {
    /// A CA from PEM: its certificate, then the ones above it up to the root; and its key.
    ///
    /// A self-signed CA is refused until it is [allowed](Self::allow_self_signed).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] with the line of what is wrong.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self> {
        Self::new(certificates, Arc::new(PrivateKey::from_pem(key)?), true)
    }

    /// A CA whose key is kept elsewhere, in an HSM for example; the example is at [`Signer`].
    ///
    /// What such a signer signs is verified like the answer of any other CA.
    ///
    /// # Errors
    ///
    /// As [`from_pem`](Self::from_pem).
    pub fn with_signer(certificates: &str, signer: Arc<dyn Signer>) -> Result<Self> {
        Self::new(certificates, signer, false)
    }

    /// The same from secrets.
    pub(super) fn from_secrets(certificates: &SecretValue, key: &SecretValue) -> Result<Self> {
        let refused = |what| {
            let why = format!("the CA's {what} is not PEM text");
            Error::new(ErrorKind::InvalidConfig, why)
        };
        Self::from_pem(
            certificates
                .expose_str()
                .ok_or_else(|| refused("certificate"))?,
            key.expose_str().ok_or_else(|| refused("key"))?,
        )
    }

    fn new(certificates: &str, signer: Arc<dyn Signer>, key_is_ours: bool) -> Result<Self> {
        Ok(Self {
            chain: super::secrets::certificates(certificates, "the CA's certificates")?,
            signer,
            key_is_ours,
            allow_self_signed: false,
        })
    }

    /// Accepts a CA that vouches for itself. `MeshIdentity` calls it
    /// `insecureAllowSelfSigned`: a stolen key of such a CA cannot be revoked by anything above it.
    #[must_use]
    pub fn allow_self_signed(mut self, allow: bool) -> Self {
        self.allow_self_signed = allow;
        self
    }
}

/// A CA that is ready to sign.
#[derive(derive_more::Debug)]
#[debug("Authority({subject}, {signer:?})")]
pub(super) struct Authority {
    /// What is sent along: the CA's own certificate, then those above it. A root is not sent.
    chain: Vec<CertificateDer<'static>>,
    /// The last certificate of the CA. It is no root if its owner has provided none.
    pub(super) root: Arc<CertificateDer<'static>>,
    /// Of its own certificate.
    pub(super) validity: Validity,
    /// The SPIFFE IDs in its own certificate.
    spiffe_ids: Vec<String>,
    signer: Arc<dyn Signer>,
    /// Whether the key is in our memory, so that a signature is known to be good without looking.
    key_is_ours: bool,
    /// Whether a CA on the way to the root may sign some names only.
    constrained: bool,
    template: Template,
    /// When the first of all its certificates ends.
    pub(super) not_after: SystemTime,
    path_len: Option<u8>,
    pub(super) subject: String,
}

impl Authority {
    /// Checks a CA once, so that nothing has to be checked when it signs.
    ///
    /// Without a time, one that has ended is taken as well: it signs nothing, but it has to be
    /// loaded to be replaced.
    pub(super) fn new(provided: ProvidedCa, now: Option<SystemTime>) -> Result<Self> {
        let count = provided.chain.len();
        if !(1..=MAX_CHAIN).contains(&count) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "the CA is refused: its chain has {count} certificates; 1 to {MAX_CHAIN} are expected"
                ),
            ));
        }
        let chain = linked(&provided.chain, &*provided.signer, now)?;
        if let Some((_, first)) = chain.first()
            && first.is_self_signed()
            && !provided.allow_self_signed
        {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "self-signed certificates are not allowed; set `insecureAllowSelfSigned: true` or provide an intermediate CA with its root",
            )
            .with_context("subject", first.subject()));
        }
        Self::assemble(&chain, provided.signer, provided.key_is_ours)
    }

    /// A CA that was verified when it was issued: its certificate, what leads from it to its root, and the root, which
    /// may be any trust anchor. One that has ended can be had, and signs nothing. The key is one of ours.
    pub(super) fn issued(
        chain: Vec<(usize, CertificateDer<'static>)>,
        signer: Arc<dyn Signer>,
    ) -> Result<Self> {
        let chain = linked(&chain, &*signer, None)?;
        if chain.len() < 2 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the CA is refused: its chain lacks the root",
            ));
        }
        Self::assemble(&chain, signer, true)
    }

    fn assemble(
        linked: &[(usize, Parsed<'_>)],
        signer: Arc<dyn Signer>,
        key_is_ours: bool,
    ) -> Result<Self> {
        let all = || linked.iter().map(|(_, certificate)| certificate);
        let not_after = all().map(|certificate| certificate.validity.not_after());
        let (Some(own), Some(root), Some(not_after)) =
            (all().next(), all().next_back(), not_after.min())
        else {
            return Err(Error::new(ErrorKind::Internal, "the CA has no certificate"));
        };
        let without_root = all().take_while(|certificate| !certificate.is_self_signed());
        let constraints = own.basic_constraints().ok().flatten();
        let mut spiffe_ids = own.uris().unwrap_or_default();
        spiffe_ids.retain(|uri| uri.starts_with("spiffe://"));
        Ok(Self {
            template: Template::of(own, signer.key_type())?,
            not_after,
            path_len: constraints.and_then(|constraints| constraints.path_len_constraint),
            subject: own.subject(),
            validity: own.validity,
            spiffe_ids,
            constrained: all().any(Parsed::has_name_constraints),
            chain: without_root
                .map(|certificate| certificate.der.clone().into_owned())
                .collect(),
            root: Arc::new(root.der.clone().into_owned()),
            signer,
            key_is_ours,
        })
    }

    /// Makes the certificate of a new self-signed CA: O=meshca, OU=Mesh, CN=name, the trust domain's ID.
    pub(super) fn self_signed(
        settings: &CaSettings,
        name: &str,
        key: &PrivateKey,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>> {
        let calendar = |time| {
            let seconds = i64::try_from(seconds(time)).ok();
            let time = seconds.and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
            time.ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidRequest,
                    "the lifetime ends after the year 9999, which X.509 cannot express",
                )
            })
        };
        let id = format!("spiffe://{}", settings.trust_domain);
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "meshca");
        subject.push(DnType::OrganizationalUnitName, "Mesh");
        subject.push(DnType::CommonName, name);
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.subject_alt_names = vec![SanType::URI(id.try_into().map_err(internal)?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        let not_after = now
            .checked_add(settings.lifetime)
            .ok_or_else(|| Error::new(ErrorKind::InvalidConfig, "the CA's lifetime is too long"))?;
        params.not_before = calendar(backdated(now))?;
        params.not_after = calendar(not_after)?;
        let certificate = params.self_signed(&**key.material()).map_err(internal)?;
        Ok(certificate.der().clone())
    }

    /// Signs a certificate, throws it away, and has it verified like anybody's: path lengths,
    /// usages, constraints and chain are right for all that follow. For a key in a device there is
    /// no need, since everything it signs is verified.
    pub(super) fn prove(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<()> {
        if !self.key_is_ours {
            return Ok(());
        }
        let id = SpiffeId::new(format!("spiffe://{trust_domain}/throwaway")).map_err(|error| {
            Error::new(ErrorKind::Internal, "not a SPIFFE ID").with_source(error)
        })?;
        let spec = CertificateSpec::workload(id).with_lifetime(Duration::from_secs(60));
        let key = PrivateKey::generate(KeyType::P256)?;
        let request = CertificateRequest::for_key(spec, &key, now)?;
        let bundle = TrustBundle::new(trust_domain.clone(), [self.root.as_ref().clone()])?;
        // Whether peers have the root of an intermediate is not known here.
        let bundle = bundle.allow_partial_chains(true);
        let signed = self.sign(&request, now, self.not_after)?;
        let proven = SignedChain::new(signed.certificates().iter().cloned());
        let proven = proven.verify(&request, &bundle, now);
        proven.map(drop).map_err(|error| {
            let why = error.message();
            let why = format!("the CA is refused, since peers would refuse what it signs: {why}");
            Error::new(ErrorKind::InvalidConfig, why).with_context("subject", &self.subject)
        })
    }

    /// Declares what it signs, with leaves of up to this lifetime.
    pub(super) fn capabilities(&self, max_leaf_lifetime: Duration) -> Capabilities {
        Capabilities::new()
            .with_lifetime_honoured(true)
            .with_max_lifetime(max_leaf_lifetime)
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
            .with_intermediates(self.allows_intermediate(0))
            .with_key_types(KeyType::ALL)
    }

    /// A SPIFFE ID in the CA's own certificate that is not the trust domain's.
    pub(super) fn foreign_id(&self, trust_domain: &TrustDomain) -> Option<String> {
        let own = format!("spiffe://{trust_domain}");
        self.spiffe_ids.iter().find(|id| **id != own).cloned()
    }

    /// Whether the signer holds the key that the certificate names. Nothing to find out for a key of ours.
    pub(super) fn check_signer(&self) -> Result<()> {
        if self.key_is_ours {
            return Ok(());
        }
        let message = b"meshca asks whether this key signs for its certificate";
        let signature = self.signer.sign(message)?;
        x509::verify_with_any_algorithm(self.signer.public_key(), message, &signature).map_err(|_| {
            Error::new(
                ErrorKind::InvalidConfig,
                "what the CA's signer signs does not verify under its own public key; is it the right key and algorithm?",
            )
            .with_context("subject", &self.subject)
        })
    }

    /// Whether a CA with this path length may stand below it (RFC 5280 §4.2.1.9).
    pub(super) fn allows_intermediate(&self, path_len: u8) -> bool {
        self.path_len.is_none_or(|own| own > path_len)
    }

    /// Signs what was requested, with an end no later than its own, and that of a leaf no later than
    /// `last_leaf`.
    pub(super) fn sign(
        &self,
        request: &CertificateRequest,
        now: SystemTime,
        last_leaf: SystemTime,
    ) -> Result<SignedChain> {
        let spec = request.spec();
        let is_rsa = is_rsa(request)?;
        let latest = match spec.profile() {
            Profile::Workload => last_leaf.min(self.not_after),
            // A CA that its owner rotates; it may live for as long as this one.
            Profile::Intermediate { path_len } if self.allows_intermediate(path_len) => {
                self.not_after
            }
            Profile::Intermediate { path_len } => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the CA's own path length allows no such CA below it",
                )
                .with_context("path length", path_len));
            }
        };
        let unavailable = |why: String| {
            let subject = &self.subject;
            Error::new(ErrorKind::Unavailable, format!("the CA `{subject}` {why}"))
        };
        let wanted = now.checked_add(spec.lifetime()).unwrap_or(latest);
        let not_after = whole_seconds(wanted.min(latest));
        if not_after <= now {
            let end = rfc3339(self.not_after);
            return Err(unavailable(format!("ended at {end}; rotate it")));
        }
        let not_before = backdated(now).max(self.validity.not_before());
        if not_before >= not_after {
            let begin = rfc3339(self.validity.not_before());
            return Err(unavailable(format!(
                "begins only at {begin}; compare the clocks"
            )));
        }
        let serial = random_serial()?;
        let significant = serial.iter().position(|byte| *byte != 0);
        let significant = significant.and_then(|first| serial.get(first..));
        let uris: Vec<String> = spec.all_uris().collect();
        let contents = Contents {
            serial: &serial,
            not_before,
            not_after,
            common_name: spec.common_name(),
            uris: &uris,
            dns_names: spec.dns_names(),
            public_key: request.public_key(),
            is_rsa,
            profile: spec.profile(),
        };
        let leaf = self
            .template
            .sign(&contents, |message| self.signer.sign(message))?;
        let above = self.chain.iter().cloned();
        let certificates = std::iter::once(leaf).chain(above).collect();
        if spec.profile() != Profile::Workload || !self.key_is_ours || self.constrained {
            // A device may sign with another key, or badly; a constrained CA may not sign every
            // name; an intermediate is proven with its own key. All take the ordinary way.
            return Ok(SignedChain::new(certificates));
        }
        Ok(SignedChain::constructed(
            certificates,
            Constructed {
                request: request.clone(),
                serial: x509::hex(significant.unwrap_or_default()),
                validity: Validity::new(not_before, not_after)?,
                root: Arc::clone(&self.root),
            },
        ))
    }
}

fn internal(error: rcgen::Error) -> Error {
    Error::new(ErrorKind::Internal, "could not build a certificate").with_source(error)
}

fn refuse(line: usize, why: String) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!("the CA is refused: line {line} of its certificates: {why}"),
    )
}

/// Reads a chain in which each certificate is a CA and was signed by the next, and the first
/// belongs to the signer; with `now`, each must be valid then.
fn linked<'a>(
    certificates: &'a [(usize, CertificateDer<'static>)],
    signer: &dyn Signer,
    now: Option<SystemTime>,
) -> Result<Vec<(usize, Parsed<'a>)>> {
    let mut chain: Vec<(usize, Parsed<'a>)> = Vec::with_capacity(certificates.len());
    for (line, der) in certificates {
        let line = *line;
        let certificate = Parsed::read(der).map_err(|why| refuse(line, why))?;
        check_ca(&certificate, chain.is_empty())
            .and_then(|()| now.map_or(Ok(()), |now| check_time(certificate.validity, now)))
            .map_err(|why| refuse(line, format!("`{}` {why}", certificate.subject())))?;
        if let Some((_, below)) = chain.last()
            && (!below.is_signed_by(&certificate.public_key)
                || below.issuer_name() != certificate.subject_name())
        {
            let (above, below) = (certificate.subject(), below.subject());
            let why = format!(
                "`{above}` did not sign `{below}` before it; order the chain from the CA to the root"
            );
            return Err(refuse(line, why));
        }
        chain.push((line, certificate));
    }
    if let Some((line, first)) = chain.first()
        && first.public_key != *signer.public_key()
    {
        let subject = first.subject();
        let why = format!("the key does not belong to the certificate `{subject}`");
        return Err(refuse(*line, why));
    }
    Ok(chain)
}

/// The field's rules for a provided CA, and for those above it: each is a CA and may sign certificates;
/// the key of the provided one is for nothing else. Without the extension a key is for every use
/// (RFC 5280 §4.2.1.3), as with the roots that `openssl req -x509` makes.
fn check_ca(certificate: &Parsed<'_>, provided: bool) -> Result<(), String> {
    if !certificate.is_ca() {
        return Err("is not a CA (BasicConstraints cA is not set)".to_owned());
    }
    let usage = certificate
        .key_usage()
        .map_err(|error| format!("has a damaged KeyUsage extension: {error}"))?;
    let why = match usage {
        Some(usage) if !usage.key_cert_sign() => {
            "may not sign certificates (key usage `keyCertSign` is missing)"
        }
        Some(usage) if provided && usage.key_agreement() => {
            "has the key usage `keyAgreement`, which a CA must not have"
        }
        _ => return Ok(()),
    };
    Err(why.to_owned())
}

fn check_time(validity: Validity, now: SystemTime) -> Result<(), String> {
    let (begin, end) = (validity.not_before(), validity.not_after());
    if end <= now {
        return Err(format!("ended at {}; renew it", rfc3339(end)));
    }
    if begin > later(now, crate::verify::CLOCK_SKEW) {
        return Err(format!("begins only at {}", rfc3339(begin)));
    }
    Ok(())
}

fn backdated(now: SystemTime) -> SystemTime {
    whole_seconds(now.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH))
}

/// 128 random bits (RFC 5280 §4.1.2.2 allows 160; CA/Browser Forum asks for 64).
fn random_serial() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Internal, "no randomness for a serial number"))?;
    Ok(bytes)
}

/// Whether the key that a certificate is for is one of RSA; an error if the CA does not sign for such a key.
fn is_rsa(request: &CertificateRequest) -> Result<bool> {
    if let Some(key_type) = request.key_type() {
        return Ok(key_type.is_rsa());
    }
    let refused = || {
        Error::new(
            ErrorKind::InvalidRequest,
            "the key is of a type that the CA does not sign for; use P-256, P-384, Ed25519 or RSA",
        )
    };
    let read = SubjectPublicKeyInfoRef::from_der(request.public_key())
        .map_err(|error| refused().with_source(error))?;
    match read.algorithm.oid {
        // Of a size that is not made here.
        RSA => Ok(true),
        _ => Err(refused()),
    }
}
