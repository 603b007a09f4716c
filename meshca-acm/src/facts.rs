//! What AWS says of a CA.

use std::time::SystemTime;

use aws_sdk_acmpca::types::{CertificateAuthorityStatus, KeyAlgorithm, SigningAlgorithm};
use meshca_core::{
    Error, ErrorKind, Profile, Result, Retry, SignedChain, TrustBundle, TrustDomain, TrustRoot,
};
use tokio::time::Instant;

use crate::settings::AcmSettings;

/// The longest path length that there is a template for.
const MAX_PATH_LEN: u8 = 3;

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) status: CertificateAuthorityStatus,
    pub(crate) signing_algorithm: SigningAlgorithm,
    pub(crate) short_lived: bool,
    /// When the CA's own certificate ends.
    pub(crate) not_after: Option<SystemTime>,
    /// The CA's certificate and those above it.
    pub(crate) chain: SignedChain,
    /// When AWS was asked, which is before it answered.
    pub(crate) asked: Instant,
}

impl Facts {
    /// Whether the CA signs. What it has signed stays good when it does not any more.
    pub(crate) fn require_active(&self) -> Result<()> {
        match self.status {
            CertificateAuthorityStatus::Active => Ok(()),
            _ => Err(not_active(&self.status)),
        }
    }

    /// The ARN of the template by which the CA signs a certificate of this profile.
    pub(crate) fn template(&self, profile: Profile, settings: &AcmSettings) -> Result<String> {
        let unsupported = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
        let name = match profile {
            Profile::Intermediate { .. } if self.short_lived => {
                return unsupported(
                    "the CA is for short-lived certificates, and cannot sign intermediates: use one of the mode GENERAL_PURPOSE, or `mode: Leaf`"
                        .to_owned(),
                );
            }
            Profile::Intermediate { path_len } if path_len > MAX_PATH_LEN => {
                return unsupported(format!(
                    "AWS has templates for path lengths up to {MAX_PATH_LEN}, and none for {path_len}"
                ));
            }
            Profile::Intermediate { path_len } => {
                format!("SubordinateCACertificate_PathLen{path_len}")
            }
            _ => settings.template.name().to_owned(),
        };
        Ok(settings.arn.template(&name))
    }

    /// The root that the CA leads to, by what it is and not by where it stands. A chain that was
    /// imported without its root ends in an intermediate: then its CAs are named, and whether peers
    /// have their root is known elsewhere.
    pub(crate) fn roots(&self, domain: &TrustDomain) -> Result<TrustBundle> {
        let certificates = self.chain.certificates().iter().cloned();
        let all = TrustBundle::new(domain.clone(), certificates)?;
        let mut others = all.roots().iter().filter(|root| !root.is_self_signed());
        let roots = others.try_fold(all.clone(), |kept, other| kept.without_root(other.der()))?;
        Ok(if roots.is_empty() { all } else { roots })
    }

    /// Whether what the CA signs can lead to one of these roots. By names, which a renewed root shares with the one that it renews;
    /// what has the name and is another is left to verification, and so is a chain without a root.
    pub(crate) fn require_below(&self, pinned: &TrustBundle) -> Result<()> {
        let certificates = self.chain.certificates();
        if certificates.iter().any(|it| pinned.contains(it)) {
            return Ok(());
        }
        let all = TrustBundle::new(pinned.trust_domain().clone(), certificates.iter().cloned())?;
        let known = |above: &TrustRoot| {
            let mut roots = pinned.roots().iter();
            roots.any(|root| root.subject() == above.subject())
        };
        match all.roots().iter().find(|above| above.is_self_signed()) {
            Some(root) if !all.roots().iter().any(known) => Err(not_pinned(root)),
            _ => Ok(()),
        }
    }
}

/// Certificates lead to a root that `caCert` does not have.
pub(crate) fn not_pinned(root: &TrustRoot) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "the CA leads to `{}`, which is not in `caCert`: correct `caCert`, or all that the CA signs is refused",
            root.subject()
        ),
    )
    .with_retry(Retry::Backoff)
}

/// A certificate and those above it, as AWS has both in PEM.
pub(crate) fn chain(certificate: &str, above: Option<&str>) -> Result<SignedChain> {
    SignedChain::from_pem(&[certificate, above.unwrap_or_default()].join("\n"))
}

pub(crate) fn not_active(status: &CertificateAuthorityStatus) -> Error {
    use CertificateAuthorityStatus::{Creating, Deleted, Disabled, Expired, PendingCertificate};
    let advice = match status {
        Creating => "wait until AWS has made it",
        PendingCertificate => {
            "install its certificate (`acm-pca:ImportCertificateAuthorityCertificate`)"
        }
        Disabled => {
            "enable it (`aws acm-pca update-certificate-authority --status ACTIVE --certificate-authority-arn …`)"
        }
        Expired => "renew its certificate",
        Deleted => {
            "restore it (`aws acm-pca restore-certificate-authority --certificate-authority-arn …`), or use another one"
        }
        _ => "see what AWS' console says of it",
    };
    Error::new(
        ErrorKind::Unavailable,
        format!("the CA is not active but {}: {advice}", status.as_str()),
    )
    .with_retry(Retry::Backoff)
}

/// It must be of the family of the CA's key (`IssueCertificate` of the API reference).
pub(crate) fn signing_algorithm(key: &KeyAlgorithm) -> Result<SigningAlgorithm> {
    match key {
        KeyAlgorithm::EcPrime256v1 => Ok(SigningAlgorithm::Sha256Withecdsa),
        KeyAlgorithm::EcSecp384r1 => Ok(SigningAlgorithm::Sha384Withecdsa),
        KeyAlgorithm::EcSecp521r1 => Ok(SigningAlgorithm::Sha512Withecdsa),
        KeyAlgorithm::Rsa2048 | KeyAlgorithm::Rsa3072 | KeyAlgorithm::Rsa4096 => {
            Ok(SigningAlgorithm::Sha256Withrsa)
        }
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the key of the CA is {}, whose signatures proxies cannot verify: use a CA with an EC or RSA key",
                other.as_str()
            ),
        )),
    }
}
