//! Secrets as Envoy takes them: pure functions of an identity and of trust.
//!
//! The same input makes the same bytes and the same version, in every process: what has not changed is not sent again, not even
//! by another replica of the control plane.

use aws_lc_rs::digest::{Context, SHA256};
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TypedExtensionConfig, data_source::Specifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
    spiffe_cert_validator_config,
};
use envoy_types::pb::google::protobuf::Any;
use meshca_core::{Identity, Result, TrustBundle, TrustDomain};
use meshca_identity::TrustBundles;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost::{Message, Name};

/// What the `Any` around a secret says that it is.
pub const SECRET_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The name by which Envoy knows its validator of SPIFFE certificates.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// An identity: leaf and intermediates, and the private key, as PEM (Envoy's `TlsCertificate` takes nothing else).
///
/// **The key is in it**, in memory that nobody wipes, and `Debug` of the generated types would print it: do not keep it, and do not log it.
///
/// # Errors
///
/// [`ErrorKind::Internal`](meshca_core::ErrorKind::Internal) if the key cannot be encoded.
pub fn identity_secret(name: impl Into<String>, identity: &Identity) -> Result<Secret> {
    let key = identity.expose_key_pem()?;
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(identity.chain_pem())),
        private_key: Some(inline(key.expose_str().unwrap_or_default().to_owned())),
        ..TlsCertificate::default()
    };
    Ok(Secret {
        name: name.into(),
        r#type: Some(secret::Type::TlsCertificate(certificate)),
    })
}

/// Whom a proxy believes: Envoy's SPIFFE validator with one entry for each trust domain, in their order.
///
/// A peer is judged by the roots of the trust domain in its SPIFFE ID and by no others (SPIFFE X509-SVID §5.1); with one list of
/// roots for all (`trusted_ca`), each root could vouch for every domain. The validator takes no certificate without a SPIFFE ID.
///
/// ```
/// use meshca_core::{TrustBundle, TrustDomain};
/// use meshca_identity::TrustBundles;
/// use meshca_xds::{names, secrets};
///
/// # let pem = include_str!("../../meshca-core/tests/data/root.pem");
/// let domain = TrustDomain::new("example.org").expect("a trust domain");
/// let mut bundles = TrustBundles::new();
/// bundles.add(&TrustBundle::from_pem(domain, pem)?)?;
/// let secret = secrets::trust_secret(names::SYSTEM_TRUST_BUNDLE, &bundles);
/// assert_eq!(secret.name, "system_trust_bundle");
/// # Ok::<(), meshca_core::Error>(())
/// ```
pub fn trust_secret(name: impl Into<String>, bundles: &TrustBundles) -> Secret {
    validation(name.into(), bundles.iter())
}

/// The same for one trust domain alone: peers of others are refused.
pub fn bundle_secret(name: impl Into<String>, bundle: &TrustBundle) -> Secret {
    validation(name.into(), std::iter::once(bundle))
}

fn validation<'a>(name: String, bundles: impl Iterator<Item = &'a TrustBundle>) -> Secret {
    let trust_domains = bundles
        .filter(|bundle| !bundle.is_empty())
        .map(|bundle| spiffe_cert_validator_config::TrustDomain {
            name: bundle.trust_domain().to_string(),
            trust_bundle: Some(inline(bundle.to_pem())),
            workload_trust_domain: String::new(),
        })
        .collect();
    let config = SpiffeCertValidatorConfig {
        trust_domains,
        trust_bundles: None,
    };
    let context = CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: SPIFFE_VALIDATOR.to_owned(),
            typed_config: Some(Any {
                type_url: SpiffeCertValidatorConfig::type_url(),
                value: config.encode_to_vec(),
            }),
        }),
        ..CertificateValidationContext::default()
    };
    Secret {
        name,
        r#type: Some(secret::Type::ValidationContext(context)),
    }
}

fn inline(text: String) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineString(text)),
        ..DataSource::default()
    }
}

/// A secret as it is sent.
pub(crate) fn packed(secret: &Secret) -> Any {
    Any {
        type_url: SECRET_TYPE.to_owned(),
        value: secret.encode_to_vec(),
    }
}

/// The secret of an identity as it is sent: what [`identity_secret`] makes, written at once. It is made for each proxy anew, and the structures
/// between would be several copies of the key more.
pub(crate) fn packed_identity(name: &str, identity: &Identity) -> Result<Any> {
    let (chain, key) = (identity.chain_pem(), identity.expose_key_pem()?);
    let key = key.expose_str().unwrap_or_default();
    // `Secret` is a name and a `TlsCertificate`, which is two `DataSource`s, which are a string each.
    const NAME: u32 = 1;
    const TLS_CERTIFICATE: u32 = 2;
    const CHAIN: u32 = 1;
    const PRIVATE_KEY: u32 = 2;
    const INLINE_STRING: u32 = 3;
    let source = |text: &str| field_len(INLINE_STRING, text.len());
    let certificate = field_len(CHAIN, source(&chain)) + field_len(PRIVATE_KEY, source(key));
    let length = field_len(NAME, name.len()) + field_len(TLS_CERTIFICATE, certificate);
    let mut value = Vec::with_capacity(length);
    begin_field(NAME, name.len(), &mut value);
    value.extend_from_slice(name.as_bytes());
    begin_field(TLS_CERTIFICATE, certificate, &mut value);
    for (tag, text) in [(CHAIN, chain.as_str()), (PRIVATE_KEY, key)] {
        begin_field(tag, source(text), &mut value);
        begin_field(INLINE_STRING, text.len(), &mut value);
        value.extend_from_slice(text.as_bytes());
    }
    Ok(Any {
        type_url: SECRET_TYPE.to_owned(),
        value,
    })
}

/// How long a field is whose content is so long.
fn field_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

/// What stands before the content of a field.
fn begin_field(tag: u32, length: usize, to: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(length as u64, to);
}

/// What the version of an identity is made of: its certificates. They say nothing of the key, and no other key has them.
pub(crate) fn identity_version(identity: &Identity) -> String {
    let mut digest = Digest::new();
    for certificate in identity.certificate().chain() {
        digest.add(certificate);
    }
    digest.end()
}

/// What the version of trust is made of: the domains and their roots.
pub(crate) fn trust_version<'a>(bundles: impl IntoIterator<Item = &'a TrustBundle>) -> String {
    let mut digest = Digest::new();
    for bundle in bundles {
        let domain: &TrustDomain = bundle.trust_domain();
        digest.add(domain.as_ref());
        for root in bundle.roots() {
            digest.add(root.der());
        }
        // The next domain is no root of this one.
        digest.add([]);
    }
    digest.end()
}

/// A version of many parts.
pub(crate) struct Digest(Context);

impl Digest {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update(&part.len().to_be_bytes());
        self.0.update(part);
    }

    /// The first half, in hex: nobody finds another input for these 128 bits.
    pub(crate) fn end(self) -> String {
        let digest = self.0.finish();
        let mut quarters = digest.as_ref().as_chunks().0.iter();
        let mut quarter = || u64::from_be_bytes(quarters.next().copied().unwrap_or_default());
        // Formatting a `u128` takes several times as long.
        format!("{:016x}{:016x}", quarter(), quarter())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meshca_core::{CertificateSpec, IssuingCa, SpiffeId, SystemClock};
    use meshca_testkit::FaultyIssuer;

    use super::*;

    #[tokio::test]
    async fn an_identity_is_written_as_its_structures_would_be() {
        let clock = Arc::new(SystemClock::new());
        let domain = TrustDomain::new("example.org").unwrap();
        let ca = IssuingCa::new(FaultyIssuer::new(domain, Arc::clone(&clock) as _).unwrap());
        let id = SpiffeId::new("spiffe://example.org/web").unwrap();
        let spec = CertificateSpec::workload(id);
        let identity = ca.issue(&spec, &*clock).await.unwrap();
        for name in ["n", &"long ".repeat(100)] {
            let secret = identity_secret(name, &identity).unwrap();
            let written = packed_identity(name, &identity).unwrap();
            assert_eq!(written, packed(&secret));
            assert_eq!(Secret::decode(&*written.value).unwrap(), secret);
            assert_eq!(written.value.capacity(), written.value.len());
        }
    }

    #[test]
    fn a_version_is_hexadecimal() {
        // `printf '\0\0\0\0\0\0\0\1x' | sha256sum`
        let mut digest = Digest::new();
        digest.add("x");
        assert_eq!(digest.end(), "028f0df5b8596fbcd10c9720b7a4784f");
    }
}
