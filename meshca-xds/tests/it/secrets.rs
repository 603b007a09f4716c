//! Secrets and TLS contexts as messages.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, Secret, SpiffeCertValidatorConfig, secret,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use meshca_core::resource::{Mode, Resource};
use meshca_core::spiffe::Workload;
use meshca_core::{Issuer, SpiffeId, SystemClock, TrustBundle, TrustDomain};
use meshca_identity::tls::{Proxy, TlsPolicy};
use meshca_identity::{MeshResources, TrustBundles};
use meshca_testkit::FaultyIssuer;
use meshca_xds::contexts::{MESH_ALPN, TlsContexts, inbound_chains};
use meshca_xds::{names, secrets};
use prost::Message;

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

async fn bundle(name: &str) -> TrustBundle {
    let ca = FaultyIssuer::new(domain(name), Arc::new(SystemClock::new())).unwrap();
    ca.trust_bundle().await.unwrap()
}

fn validator(secret: &Secret) -> SpiffeCertValidatorConfig {
    let Some(secret::Type::ValidationContext(context)) = &secret.r#type else {
        panic!("not a validation context: {}", secret.name);
    };
    let custom = context.custom_validator_config.as_ref().unwrap();
    assert_eq!(custom.name, "envoy.tls.cert_validator.spiffe");
    let any = custom.typed_config.as_ref().unwrap();
    assert_eq!(
        any.type_url,
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
    );
    SpiffeCertValidatorConfig::decode(&*any.value).unwrap()
}

#[tokio::test]
async fn trust_is_one_entry_for_each_domain_in_their_order() {
    let (a, b, c) = (
        bundle("a.org").await,
        bundle("b.org").await,
        bundle("c.org").await,
    );
    let mut one = TrustBundles::new();
    let mut other = TrustBundles::new();
    for bundle in [&a, &b, &c] {
        one.add(bundle).unwrap();
    }
    for bundle in [&c, &a, &b] {
        other.add(bundle).unwrap();
    }
    let secret = secrets::trust_secret(names::SYSTEM_TRUST_BUNDLE, &one);
    assert_eq!(secret.name, "system_trust_bundle");
    let again = secrets::trust_secret(names::SYSTEM_TRUST_BUNDLE, &other);
    assert_eq!(secret.encode_to_vec(), again.encode_to_vec());
    let validator = validator(&secret);
    let domains: Vec<_> = validator
        .trust_domains
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(domains, ["a.org", "b.org", "c.org"]);
    for (entry, bundle) in validator.trust_domains.iter().zip([&a, &b, &c]) {
        let source = entry.trust_bundle.as_ref().unwrap();
        let Some(Specifier::InlineString(pem)) = &source.specifier else {
            panic!("not inline");
        };
        assert_eq!(*pem, bundle.to_pem());
    }
}

#[tokio::test]
async fn one_domain_alone_is_that_domain_alone() {
    let secret = secrets::bundle_secret(names::SPIRE_BUNDLE, &bundle("a.org").await);
    assert_eq!(validator(&secret).trust_domains.len(), 1);
}

/// The URIs that a context accepts, with how it matches them.
fn accepted(common: &CommonTlsContext) -> Vec<String> {
    let Some(ValidationContextType::CombinedValidationContext(combined)) =
        &common.validation_context_type
    else {
        panic!("not combined");
    };
    let trust = combined
        .validation_context_sds_secret_config
        .as_ref()
        .unwrap();
    assert_eq!(trust.name, "trust");
    let context = combined.default_validation_context.as_ref().unwrap();
    let matchers = context.match_typed_subject_alt_names.iter().map(|matcher| {
        assert_eq!(matcher.san_type(), SanType::Uri);
        match matcher.matcher.as_ref().unwrap().match_pattern.as_ref() {
            Some(MatchPattern::Exact(id)) => format!("exact {id}"),
            Some(MatchPattern::Prefix(prefix)) => format!("prefix {prefix}"),
            other => panic!("{other:?}"),
        }
    });
    matchers.collect()
}

#[test]
fn inbounds_accept_domains_and_outbounds_names() {
    let contexts = TlsContexts::new("identity", "trust");
    let policy = TlsPolicy::default();
    let inbound = contexts.inbound(
        &policy,
        &[domain("b.org"), domain("a.org"), domain("b.org")],
    );
    assert!(inbound.require_client_certificate.unwrap().value);
    let common = inbound.common_tls_context.unwrap();
    assert_eq!(
        common.tls_certificate_sds_secret_configs[0].name,
        "identity"
    );
    assert_eq!(common.tls_params, None, "nothing is asked for");
    assert_eq!(common.alpn_protocols, [MESH_ALPN]);
    // Without the slash, `spiffe://a.organised-crime/x` would pass.
    assert_eq!(
        accepted(&common),
        ["prefix spiffe://a.org/", "prefix spiffe://b.org/"]
    );

    let id = |text: &str| SpiffeId::new(text).unwrap();
    let peers = [
        id("spiffe://b.org/web"),
        id("spiffe://a.org/web"),
        id("spiffe://a.org/web"),
    ];
    let outbound = contexts.outbound(&policy, "web.mesh", &peers);
    assert_eq!(outbound.sni, "web.mesh");
    assert_eq!(
        accepted(&outbound.common_tls_context.unwrap()),
        ["exact spiffe://a.org/web", "exact spiffe://b.org/web"]
    );
}

#[test]
fn nobody_named_is_nobody_accepted() {
    let contexts = TlsContexts::new("identity", "trust");
    let policy = TlsPolicy::default();
    // Envoy takes everybody where no matcher is given.
    let inbound = contexts.inbound(&policy, &[]).common_tls_context.unwrap();
    let outbound = contexts
        .outbound(&policy, "web", &[])
        .common_tls_context
        .unwrap();
    for accepted in [accepted(&inbound), accepted(&outbound)] {
        assert_eq!(accepted, ["exact spiffe://"]);
    }
}

/// Envoy's newest version as a client is TLS 1.2 if nothing is said, which has no post-quantum key exchange.
#[test]
fn an_outbound_speaks_tls_1_3_unless_the_policy_forbids_it() {
    use TlsProtocol::{TlSv12, TlSv13, TlsAuto};
    use meshca_core::resource::TlsVersion::{Auto, Tls12, Tls13};

    let contexts = TlsContexts::new("identity", "trust");
    for (min, max, expected) in [
        (Auto, Auto, (TlsAuto, TlSv13)),
        (Tls12, Auto, (TlSv12, TlSv13)),
        (Tls13, Auto, (TlSv13, TlSv13)),
        (Auto, Tls13, (TlsAuto, TlSv13)),
        (Auto, Tls12, (TlsAuto, TlSv12)),
    ] {
        let mut policy = TlsPolicy::default();
        policy.min_version.value = min;
        policy.max_version.value = max;
        let outbound = contexts.outbound(&policy, "web", &[]);
        let parameters = outbound.common_tls_context.unwrap().tls_params.unwrap();
        let said = (
            parameters.tls_minimum_protocol_version(),
            parameters.tls_maximum_protocol_version(),
        );
        assert_eq!(said, expected, "{min:?} {max:?}");
    }
}

#[test]
fn what_mesh_tls_says_is_in_the_context() {
    let resources = Resource::parse(
        "
{type: Mesh, name: default}
---
type: MeshTLS
name: all
mesh: default
spec:
  rules:
  - default:
      mode: Permissive
      tlsVersion: {min: TLS12, max: TLS13}
      tlsCiphers: [ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES128-GCM-SHA256]
",
    )
    .unwrap();
    let resources = MeshResources::from_resources(resources).unwrap();
    let policy = TlsPolicy::resolve(&resources, &Proxy::new("web", Workload::new())).unwrap();
    let contexts = TlsContexts::new("identity", "trust");
    let inbound = contexts.inbound(&policy, &[domain("a.org")]);
    let parameters = inbound.common_tls_context.unwrap().tls_params.unwrap();
    assert_eq!(
        parameters.tls_minimum_protocol_version(),
        TlsProtocol::TlSv12
    );
    assert_eq!(
        parameters.tls_maximum_protocol_version(),
        TlsProtocol::TlSv13
    );
    assert_eq!(
        parameters.cipher_suites,
        [
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES128-GCM-SHA256"
        ]
    );
    let chains: Vec<_> = inbound_chains(policy.mode.value)
        .into_iter()
        .map(|chain| {
            let alpn = chain.matches.application_protocols.join(",");
            (chain.matches.transport_protocol, alpn, chain.mesh_tls)
        })
        .collect();
    let chain = |transport: &str, alpn: &str, mesh| (transport.to_owned(), alpn.to_owned(), mesh);
    assert_eq!(
        chains,
        [
            chain("raw_buffer", "", false),
            chain("tls", "", false),
            chain("tls", MESH_ALPN, true)
        ]
    );
    assert_eq!(inbound_chains(Mode::Strict).len(), 1);
}
