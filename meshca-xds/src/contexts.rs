//! TLS contexts for the listeners and clusters that a control plane sends to Envoy: who is asked for which secret, whom a peer may be,
//! which versions and ciphers, and how an inbound that still takes plaintext tells the two apart.
//!
//! Secrets say who a proxy is and which roots it believes. What it *accepts* is said here: an inbound takes every workload of the trust
//! domains that it believes (what they may do is for policies), an outbound takes exactly the SPIFFE IDs of the service that it calls.
//!
//! The groups of the key exchange are left to Envoy, whose default for TLS 1.3 is post-quantum first: Envoy 1.40 agrees on X25519MLKEM768
//! with another Envoy, with rustls and with Go. As a client it stops at TLS 1.2 unless it is told otherwise, so an outbound names TLS 1.3
//! as its newest version wherever the policy leaves that open.

use envoy_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier,
};
use envoy_types::pb::envoy::config::listener::v3::FilterChainMatch;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use meshca_core::resource::{Mode, TlsVersion};
use meshca_core::{SpiffeId, TrustDomain};
use meshca_identity::tls::TlsPolicy;

/// What proxies of a mesh say in ALPN when they speak with each other, so that a permissive inbound tells their TLS from that of the
/// application behind it. It is the one of Kuma.
pub const MESH_ALPN: &str = "kuma";

/// How the two ends of a proxy's connections are set up; [`inbound`](Self::inbound) and [`outbound`](Self::outbound) make the messages.
///
/// ```
/// use meshca_core::TrustDomain;
/// use meshca_identity::tls::TlsPolicy;
/// use meshca_xds::contexts::TlsContexts;
/// use meshca_xds::names;
///
/// let contexts = TlsContexts::new(names::classic_identity("default"), names::classic_trust("default"));
/// let domains = [TrustDomain::new("example.org").expect("a trust domain")];
/// let inbound = contexts.inbound(&TlsPolicy::default(), &domains);
/// assert!(inbound.require_client_certificate.is_some_and(|it| it.value));
/// ```
#[derive(Clone, Debug)]
pub struct TlsContexts {
    identity: String,
    trust: String,
    source: ConfigSource,
}

impl TlsContexts {
    /// Contexts that ask for these [names](crate::names) over the aggregated stream that brought them (ADS).
    pub fn new(identity: impl Into<String>, trust: impl Into<String>) -> Self {
        Self {
            identity: identity.into(),
            trust: trust.into(),
            source: ConfigSource {
                resource_api_version: ApiVersion::V3.into(),
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(
                    AggregatedConfigSource::default(),
                )),
                ..ConfigSource::default()
            },
        }
    }

    /// The same, but the secrets come from elsewhere, such as a cluster of the proxy's bootstrap.
    #[must_use]
    pub fn with_source(mut self, source: ConfigSource) -> Self {
        self.source = source;
        self
    }

    /// For a listener. Every peer shows a certificate, of one of these trust domains; with none, nobody is accepted.
    ///
    /// A domain is matched with the slash that ends it: `spiffe://example.org` alone is also the beginning of `spiffe://example.orgi/…`.
    pub fn inbound(
        &self,
        policy: &TlsPolicy,
        trust_domains: &[TrustDomain],
    ) -> DownstreamTlsContext {
        let prefix = |domain: &TrustDomain| MatchPattern::Prefix(format!("spiffe://{domain}/"));
        let mut domains: Vec<_> = trust_domains.iter().collect();
        domains.sort();
        domains.dedup();
        let accepted = domains.into_iter().map(prefix).collect();
        DownstreamTlsContext {
            common_tls_context: Some(self.common(policy, accepted)),
            require_client_certificate: Some(BoolValue { value: true }),
            // A resumed session is not verified again: neither an ended certificate nor a root that is gone would end it.
            disable_stateful_session_resumption: true,
            session_ticket_keys_type: Some(
                envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType::DisableStatelessSessionResumption(true),
            ),
            ..DownstreamTlsContext::default()
        }
    }

    /// For a cluster, whose endpoints are exactly these: all that the service behind it has, or is announced to have soon. With none, nobody
    /// is accepted.
    pub fn outbound(
        &self,
        policy: &TlsPolicy,
        sni: impl Into<String>,
        peers: &[SpiffeId],
    ) -> UpstreamTlsContext {
        let mut ids: Vec<_> = peers.iter().map(SpiffeId::to_string).collect();
        ids.sort();
        ids.dedup();
        let accepted = ids.into_iter().map(MatchPattern::Exact).collect();
        let mut common = self.common(policy, accepted);
        // What a client leaves to Envoy is TLS 1.2, which has no post-quantum key exchange.
        let parameters = common.tls_params.get_or_insert_default();
        if parameters.tls_maximum_protocol_version() == TlsProtocol::TlsAuto {
            parameters.set_tls_maximum_protocol_version(TlsProtocol::TlSv13);
        }
        UpstreamTlsContext {
            common_tls_context: Some(common),
            sni: sni.into(),
            max_session_keys: Some(UInt32Value { value: 0 }),
            ..UpstreamTlsContext::default()
        }
    }

    fn common(&self, policy: &TlsPolicy, mut accepted: Vec<MatchPattern>) -> CommonTlsContext {
        if accepted.is_empty() {
            // Without a matcher Envoy takes every peer that the roots vouch for. No SPIFFE ID is this.
            accepted.push(MatchPattern::Exact("spiffe://".to_owned()));
        }
        let combined = CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                match_typed_subject_alt_names: accepted.into_iter().map(matcher).collect(),
                ..CertificateValidationContext::default()
            }),
            validation_context_sds_secret_config: Some(self.reference(&self.trust)),
            ..CombinedCertificateValidationContext::default()
        };
        CommonTlsContext {
            tls_params: parameters(policy),
            tls_certificate_sds_secret_configs: vec![self.reference(&self.identity)],
            alpn_protocols: vec![MESH_ALPN.to_owned()],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                combined,
            )),
            ..CommonTlsContext::default()
        }
    }

    fn reference(&self, name: &str) -> SdsSecretConfig {
        SdsSecretConfig {
            name: name.to_owned(),
            sds_config: Some(self.source.clone()),
        }
    }
}

/// One way into an inbound.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct InboundChain {
    /// Which connections come in here.
    pub matches: FilterChainMatch,
    /// Whether they speak the mesh's TLS: the chain gets the [context](TlsContexts::inbound) as its transport socket. Else what comes is passed
    /// on as it is.
    pub mesh_tls: bool,
}

/// The filter chains of an inbound: one if it is strict, and if it is permissive two more, for plaintext and for TLS that is the
/// application's own. The listener needs the listener filter `envoy.filters.listener.tls_inspector` for those.
///
/// ```
/// use meshca_core::resource::Mode;
/// use meshca_xds::contexts::inbound_chains;
///
/// assert!(inbound_chains(Mode::Strict).iter().all(|chain| chain.mesh_tls));
/// assert_eq!(inbound_chains(Mode::Permissive).len(), 3);
/// ```
pub fn inbound_chains(mode: Mode) -> Vec<InboundChain> {
    let chain = |transport: &str, alpn: &[&str], mesh_tls| InboundChain {
        matches: FilterChainMatch {
            transport_protocol: transport.to_owned(),
            application_protocols: alpn.iter().map(|&it| it.to_owned()).collect(),
            ..FilterChainMatch::default()
        },
        mesh_tls,
    };
    match mode {
        Mode::Permissive => vec![
            chain("raw_buffer", &[], false),
            chain("tls", &[], false),
            chain("tls", &[MESH_ALPN], true),
        ],
        // What nobody knows of is not open.
        _ => vec![chain("", &[], true)],
    }
}

fn matcher(pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    }
}

/// What is left to the proxy is not said.
fn parameters(policy: &TlsPolicy) -> Option<TlsParameters> {
    let parameters = TlsParameters {
        tls_minimum_protocol_version: protocol(policy.min_version.value).into(),
        tls_maximum_protocol_version: protocol(policy.max_version.value).into(),
        cipher_suites: policy
            .ciphers
            .value
            .iter()
            .map(|cipher| cipher.as_str().to_owned())
            .collect(),
        ..TlsParameters::default()
    };
    (parameters != TlsParameters::default()).then_some(parameters)
}

fn protocol(version: TlsVersion) -> TlsProtocol {
    match version {
        TlsVersion::Tls10 => TlsProtocol::TlSv10,
        TlsVersion::Tls11 => TlsProtocol::TlSv11,
        TlsVersion::Tls12 => TlsProtocol::TlSv12,
        TlsVersion::Tls13 => TlsProtocol::TlSv13,
        _ => TlsProtocol::TlsAuto,
    }
}
