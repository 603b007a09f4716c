//! What a [`TlsPolicy`] means for rustls.

use std::sync::Arc;

use meshca_core::resource::{TlsCipher, TlsVersion};
use meshca_core::{Error, ErrorKind, Result};
use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion, version};

use crate::tls::TlsPolicy;

/// The groups for the key exchange, best first. The hybrid (draft-ietf-tls-ecdhe-mlkem) keeps what is recorded today
/// from a quantum computer of tomorrow; the others are what peers have that lack it.
const GROUPS: [NamedGroup; 4] = [
    NamedGroup::X25519MLKEM768,
    NamedGroup::X25519,
    NamedGroup::secp256r1,
    NamedGroup::secp384r1,
];

/// Versions, and a provider that offers no other suites.
#[derive(Clone, Debug)]
pub(super) struct Protocol {
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Protocol {
    /// All that the provider and rustls can do, with the [hybrid group first](GROUPS) where the provider has it.
    pub(super) fn of_provider(provider: Arc<CryptoProvider>) -> Self {
        let mut protocol = Self {
            versions: vec![&version::TLS13, &version::TLS12],
            provider,
        };
        if protocol.is_post_quantum() {
            // A client sends its share for the first group that it offers, so the order decides what is agreed on.
            let place = |group: NamedGroup| GROUPS.iter().position(|it| *it == group);
            let provider = Arc::make_mut(&mut protocol.provider);
            provider
                .kx_groups
                .sort_by_key(|group| place(group.name()).unwrap_or(GROUPS.len()));
        } else {
            tracing::warn!(
                "the crypto provider has no X25519MLKEM768: what is recorded of connections today can be read by a quantum computer of tomorrow"
            );
        }
        protocol
    }

    /// Whether the provider has the hybrid group.
    pub(super) fn is_post_quantum(&self) -> bool {
        let mut groups = self.provider.kx_groups.iter();
        groups.any(|group| group.name() == NamedGroup::X25519MLKEM768)
    }

    pub(super) fn restricted(&self, policy: &TlsPolicy) -> Result<Self> {
        let (min, max) = (policy.min_version.value, policy.max_version.value);
        let allowed = |version: TlsVersion| {
            (min == TlsVersion::Auto || min <= version)
                && (max == TlsVersion::Auto || version <= max)
        };
        let (mut versions, mut suites) = (Vec::new(), Vec::new());
        if allowed(TlsVersion::Tls13) {
            versions.push(&version::TLS13);
            suites.extend(self.suites(&version::TLS13));
        }
        if allowed(TlsVersion::Tls12) {
            let chosen = self.tls12_suites(policy)?;
            versions.push(&version::TLS12);
            suites.extend(chosen);
        }
        if versions.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "rustls has TLS 1.2 and 1.3 only, and `max` is {} {}",
                    max.as_str(),
                    policy.max_version.by
                ),
            ));
        }
        Ok(Self {
            versions,
            provider: Arc::new(CryptoProvider {
                cipher_suites: suites,
                ..CryptoProvider::clone(&self.provider)
            }),
        })
    }

    fn suites(
        &self,
        version: &'static SupportedProtocolVersion,
    ) -> impl Iterator<Item = SupportedCipherSuite> {
        self.provider
            .cipher_suites
            .iter()
            .copied()
            .filter(move |suite| suite.version() == version)
    }

    /// In the order of the policy.
    fn tls12_suites(&self, policy: &TlsPolicy) -> Result<Vec<SupportedCipherSuite>> {
        let ciphers = &policy.ciphers;
        let all = self.suites(&version::TLS12);
        if ciphers.value.is_empty() {
            return Ok(all.collect());
        }
        let all: Vec<SupportedCipherSuite> = all.collect();
        let chosen: Vec<SupportedCipherSuite> = ciphers
            .value
            .iter()
            .filter_map(|cipher| suite_of(*cipher))
            .filter_map(|wanted| all.iter().copied().find(|suite| suite.suite() == wanted))
            .collect();
        if chosen.is_empty() {
            let names: Vec<_> = ciphers.value.iter().map(|it| it.as_str()).collect();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the crypto provider has none of the ciphers {} {}; allow others, or set `tlsVersion.min` to `TLS13`",
                    names.join(", "),
                    ciphers.by
                ),
            ));
        }
        Ok(chosen)
    }
}

/// OpenSSL's name as IANA's (RFC 5289 §3.2, RFC 7905 §2).
fn suite_of(cipher: TlsCipher) -> Option<CipherSuite> {
    Some(match cipher {
        TlsCipher::EcdheEcdsaAes128GcmSha256 => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        }
        TlsCipher::EcdheEcdsaAes256GcmSha384 => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        }
        TlsCipher::EcdheEcdsaChacha20Poly1305 => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        TlsCipher::EcdheRsaAes128GcmSha256 => CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TlsCipher::EcdheRsaAes256GcmSha384 => CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        TlsCipher::EcdheRsaChacha20Poly1305 => {
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ => return None,
    })
}
