//! Who is let in and who is not, over real sockets, at both ends.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::*;
use meshca_core::{CertificateSpec, Clock};
use meshca_identity::TrustBundles;
use meshca_identity::rustls023::{PeerPolicy, PeerRule, Settings};
use meshca_testkit::FakeClock;
use meshca_testkit::pki::{TestCa, TestCaOptions};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn both_ends_see_who_the_other_is() {
    let clock = FakeClock::new();
    let root = ca("root");
    let issuing = root.intermediate("issuing").unwrap();
    let settings = settings(PeerPolicy::SameDomain, &clock).with_alpn(["h2", "http/1.1"]);
    for (of_client, of_server) in [(&root, &root), (&issuing, &root), (&root, &issuing)] {
        let client = own(of_client, "spiffe://example.org/ns/shop/sa/cart");
        let server = own(of_server, "spiffe://example.org/ns/shop/sa/stock");
        let (client, server) = (
            settings.client_config(&client).unwrap(),
            settings.server_config(&server).unwrap(),
        );
        let (mut client, mut server) = shake(&client, &server).await.both();
        assert_eq!(
            server.peer,
            Some(id("spiffe://example.org/ns/shop/sa/cart"))
        );
        assert_eq!(
            client.peer,
            Some(id("spiffe://example.org/ns/shop/sa/stock"))
        );
        assert_eq!(client.version, ProtocolVersion::TLSv1_3);
        assert_eq!(client.kind, HandshakeKind::Full);
        assert_eq!(client.alpn.as_deref(), Some(&b"h2"[..]));
        talk(&mut client.stream, &mut server.stream).await;
    }
}

/// The warnings in the log.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message<'w>(&'w Warnings);

        impl tracing::field::Visit for Message<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0.0.lock().unwrap().push(format!("{value:?}"));
                }
            }
        }

        event.record(&mut Message(self));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Whatever the provider has, in whatever order, the hybrid group comes first; a provider without it keeps its order.
#[tokio::test]
async fn the_key_exchange_is_post_quantum_where_the_provider_is() {
    use NamedGroup::{X25519, X25519MLKEM768, secp256r1, secp384r1};

    let (clock, root) = (FakeClock::new(), ca("root"));
    let ours = own(&root, "spiffe://example.org/ours");
    let peer = shown(
        &root,
        workload("spiffe://example.org/peer"),
        FakeClock::start(),
    );
    let groups = provider().kx_groups.clone();
    for (has, post_quantum, offered, with_stock, in_tls12) in [
        (
            vec![secp384r1, X25519, X25519MLKEM768, secp256r1],
            true,
            vec![X25519MLKEM768, X25519, secp256r1, secp384r1],
            Some(X25519MLKEM768),
            Some(X25519),
        ),
        (
            vec![secp256r1, X25519MLKEM768],
            true,
            vec![X25519MLKEM768, secp256r1],
            Some(X25519MLKEM768),
            Some(secp256r1),
        ),
        (
            vec![secp384r1, X25519, secp256r1],
            false,
            vec![secp384r1, X25519, secp256r1],
            Some(secp384r1),
            Some(secp384r1),
        ),
    ] {
        let find = |name: &NamedGroup| groups.iter().find(|group| group.name() == *name);
        let kx_groups = has.iter().filter_map(find).copied().collect();
        let provider = Arc::new(CryptoProvider {
            kx_groups,
            ..(*provider()).clone()
        });
        let warnings = Warnings::default();
        let settings = tracing::subscriber::with_default(warnings.clone(), || {
            Settings::new(PeerPolicy::SameDomain, provider, Arc::new(clock.clone()))
        });
        assert_eq!(settings.is_post_quantum(), post_quantum, "{has:?}");
        let warnings = warnings.0.lock().unwrap().clone();
        match post_quantum {
            true => assert_eq!(warnings, [""; 0]),
            false => assert!(
                matches!(warnings.as_slice(), [one] if one.contains("has no X25519MLKEM768")),
                "{warnings:?}"
            ),
        }
        let (client, server) = (
            settings.client_config(&ours).unwrap(),
            settings.server_config(&ours).unwrap(),
        );
        let names = |provider: &CryptoProvider| -> Vec<_> {
            provider.kx_groups.iter().map(|it| it.name()).collect()
        };
        assert_eq!(names(client.crypto_provider()), offered, "{has:?}");
        assert_eq!(names(server.crypto_provider()), offered, "{has:?}");
        for (version, expected) in [(&TLS13, with_stock), (&TLS12, in_tls12)] {
            let stock = stock_server(peer.clone(), &[version]);
            let (client, server) = shake(&client, &stock).await.both();
            assert_eq!(
                (client.group, server.group),
                (expected, expected),
                "{has:?}"
            );
        }
        let (client, server) = shake(&client, &server).await.both();
        assert_eq!(
            (client.group, server.group),
            (with_stock, with_stock),
            "{has:?}"
        );
    }
}

/// A peer, what the verifying side believes and allows, and how that must end.
struct Case {
    what: &'static str,
    peer: Shown,
    trust: TrustBundles,
    allowed: PeerPolicy,
    /// When they meet, after the start.
    at: Duration,
    expected: Result<(), (PeerRule, &'static str)>,
}

/// Every peer tries as a client and as a server, in TLS 1.2 and 1.3.
async fn check(root: &TestCa, cases: Vec<Case>) {
    for Case {
        what,
        peer,
        trust,
        allowed,
        at,
        expected,
    } in cases
    {
        let clock = FakeClock::at(FakeClock::start() + at);
        let settings = settings(allowed, &clock);
        let ours = credentials(root, "spiffe://example.org/ours", trust);
        for version in [&TLS12, &TLS13] {
            let outcome = shake(
                &stock_client(Some(peer.clone()), &[version]),
                &settings.server_config(&ours).unwrap(),
            )
            .await;
            let as_client = match expected {
                Ok(()) => Ok(outcome.both()).map(|_| ()),
                Err(_) => Err(outcome.refused_by_server()),
            };
            let outcome = shake(
                &settings.client_config(&ours).unwrap(),
                &stock_server(peer.clone(), &[version]),
            )
            .await;
            let as_server = match expected {
                Ok(()) => Ok(outcome.both()).map(|_| ()),
                Err(_) => Err(outcome.refused_by_client()),
            };
            for (side, got) in [("client", as_client), ("server", as_server)] {
                match (expected, got) {
                    (Ok(()), Ok(())) => {}
                    (Err((rule, words)), Err((broken, message))) => {
                        assert_eq!(rule, broken, "{what}, as {side}: {message}");
                        assert!(message.contains(words), "{what}, as {side}: {message}");
                    }
                    (expected, got) => panic!("{what}, as {side}: {expected:?} {got:?}"),
                }
            }
        }
    }
}

fn both_domains() -> PeerPolicy {
    PeerPolicy::domains([domain("example.org"), domain("partner.org")])
}

#[tokio::test]
async fn a_root_vouches_for_its_own_trust_domain_only() {
    let (root, partner) = (ca("root"), ca("partner"));
    let now = FakeClock::start();
    let own = || trust(&[("example.org", &root)]);
    let federated = || trust(&[("example.org", &root), ("partner.org", &partner)]);
    let case = |what, peer, trust, allowed, expected| Case {
        what,
        peer,
        trust,
        allowed,
        at: Duration::ZERO,
        expected,
    };
    let web = shown(&root, workload("spiffe://example.org/web"), now);
    let confusable = shown(&root, workload("spiffe://example.orgi/web"), now);
    let longer = shown(&root, workload("spiffe://example.org.evil/web"), now);
    let guest = shown(&partner, workload("spiffe://partner.org/web"), now);
    let same = || PeerPolicy::SameDomain;
    check(
        &root,
        vec![
            case("sound", web.clone(), own(), same(), Ok(())),
            case("a name that begins alike, signed by our own root", confusable.clone(), own(), same(),
                Err((PeerRule::UnknownTrustDomain, "the peer says that it is spiffe://example.orgi/web, and there are no roots for the trust domain `example.orgi`"))),
            case("the same where that domain is known", confusable.clone(),
                trust(&[("example.org", &root), ("example.orgi", &root)]), same(),
                Err((PeerRule::NotAllowed, "the peer is spiffe://example.orgi/web, and the policy does not allow it"))),
            case("the same where domains are listed", confusable,
                trust(&[("example.org", &root), ("example.orgi", &root)]), both_domains(),
                Err((PeerRule::NotAllowed, "example.orgi"))),
            case("a longer name", longer, own(), same(), Err((PeerRule::UnknownTrustDomain, "`example.org.evil`"))),
            case("our root, in the name of the partner",
                shown(&root, workload("spiffe://partner.org/web"), now), federated(), both_domains(),
                Err((PeerRule::Path, "the certificate of spiffe://partner.org/web does not lead to the roots of `partner.org`: root unknown (its issuer is `CN=root`)"))),
            case("the partner's root, in our name",
                shown(&partner, workload("spiffe://example.org/web"), now), federated(), both_domains(),
                Err((PeerRule::Path, "does not lead to the roots of `example.org`"))),
            case("federation", guest.clone(), federated(), both_domains(), Ok(())),
            case("federation does not shut ours out", web.clone(), federated(), both_domains(), Ok(())),
            case("known and not allowed", guest.clone(), federated(), same(), Err((PeerRule::NotAllowed, "partner.org"))),
            case("allowed and not known", guest.clone(), own(), both_domains(), Err((PeerRule::UnknownTrustDomain, "partner.org"))),
            case("only the partner is meant", web.clone(), federated(), PeerPolicy::domains([domain("partner.org")]),
                Err((PeerRule::NotAllowed, "example.org"))),
            case("nobody is meant", web.clone(), own(), PeerPolicy::domains([]), Err((PeerRule::NotAllowed, ""))),
            case("exactly this one", web.clone(), own(), PeerPolicy::exact([id("spiffe://example.org/web")]), Ok(())),
            case("exactly another one", web.clone(), own(), PeerPolicy::exact([id("spiffe://example.org/we"), id("spiffe://example.org/web/1")]),
                Err((PeerRule::NotAllowed, "the peer is spiffe://example.org/web, and the policy does not allow it"))),
            case("exactly this one of the partner", guest, federated(), PeerPolicy::exact([id("spiffe://partner.org/web")]), Ok(())),
            case("nobody is believed", web, TrustBundles::new(), same(), Err((PeerRule::UnknownTrustDomain, "example.org"))),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_chain_must_hold_now_and_up_to_the_root() {
    let now = FakeClock::start();
    let root = ca("root");
    let case = |what, peer, trust, at, expected| Case {
        what,
        peer,
        trust,
        allowed: PeerPolicy::SameDomain,
        at,
        expected,
    };
    let own = || trust(&[("example.org", &root)]);
    let hour = || workload("spiffe://example.org/web").with_lifetime(HOUR);
    let issuing = root.intermediate("issuing").unwrap();
    let mut without = shown(&issuing, hour(), now);
    without.chain.truncate(1);

    // The same key and name with an earlier and a later end: only the certificate in the bundle tells them apart.
    let short_options = TestCaOptions::new("short", now).with_validity(now - DAY, now + HOUR);
    let short = TestCa::root_with(short_options).unwrap();
    let renewed = short.renewed(now - DAY, now + 30 * DAY).unwrap();
    let under_renewed = shown(&renewed, workload("spiffe://example.org/web"), now);
    let both = || trust(&[("example.org", &short), ("example.org", &renewed)]);

    let no_subordinates =
        TestCa::root_with(TestCaOptions::new("flat", now).with_path_len(0)).unwrap();
    let below_flat = no_subordinates.intermediate("below").unwrap();
    check(
        &root,
        vec![
            case("fresh", shown(&root, hour(), now), own(), Duration::ZERO, Ok(())),
            case("at its very end", shown(&root, hour(), now), own(), HOUR, Ok(())),
            case("a second later", shown(&root, hour(), now), own(), HOUR + Duration::from_secs(1),
                Err((PeerRule::Validity, "certificate expired"))),
            case("from tomorrow", shown(&root, hour(), now + DAY), own(), Duration::ZERO,
                Err((PeerRule::Validity, "not valid yet"))),
            case("a root of another name", shown(&ca("stranger"), hour(), now), own(), Duration::ZERO,
                Err((PeerRule::Path, "root unknown (its issuer is `CN=stranger`)"))),
            case("a root of the same name", shown(&ca("root"), hour(), now), own(), Duration::ZERO,
                Err((PeerRule::Path, ""))),
            case("with its intermediate", shown(&issuing, hour(), now), own(), Duration::ZERO, Ok(())),
            case("without its intermediate", without, own(), Duration::ZERO,
                Err((PeerRule::Path, "root unknown (its issuer is `CN=issuing`)"))),
            case("a root that is valid", under_renewed.clone(), trust(&[("example.org", &short)]), HOUR, Ok(())),
            case("an expired root, though the certificate is valid", under_renewed.clone(), trust(&[("example.org", &short)]), 2 * HOUR,
                Err((PeerRule::Path, "roots that do not count now: `CN=short`, valid from 2025-12-31T00:00:00Z to 2026-01-01T01:00:00Z"))),
            case("the renewed root beside the expired one", under_renewed, both(), 2 * HOUR, Ok(())),
            case("a root that may have no CA below it", shown(&below_flat, hour(), now), trust(&[("example.org", &no_subordinates)]), Duration::ZERO,
                Err((PeerRule::Path, "the root `CN=flat` may have 0 CAs below it, and 1 are (path length)"))),
        ],
    )
    .await;
}

/// A CA that signs anything.
struct AnyCa {
    issuer: rcgen::Issuer<'static, KeyPair>,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl AnyCa {
    fn new() -> Self {
        Self::of(ca_params("any", true))
    }

    fn of(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            der,
        }
    }

    fn below(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            der,
        }
    }

    fn trust(&self) -> TrustBundles {
        let mut trust = TrustBundles::new();
        let bundle = meshca_core::TrustBundle::new(domain("example.org"), [self.der.clone()]);
        trust.add(&bundle.unwrap()).unwrap();
        trust
    }

    fn sign(&self, params: &CertificateParams) -> Shown {
        self.sign_for(&KeyPair::generate().unwrap(), params)
    }

    fn sign_for(&self, key: &KeyPair, params: &CertificateParams) -> Shown {
        let leaf = params.signed_by(key, &self.issuer).unwrap().der().clone();
        Shown {
            chain: vec![leaf],
            key: rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    params.not_before = time::OffsetDateTime::from(FakeClock::start() - DAY);
    params.not_after = time::OffsetDateTime::from(FakeClock::start() + DAY);
    params
}

fn ca_params(name: &str, may_sign: bool) -> CertificateParams {
    let mut params = dated(CertificateParams::default());
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![if may_sign {
        KeyUsagePurpose::KeyCertSign
    } else {
        KeyUsagePurpose::CrlSign
    }];
    params
}

fn leaf(names: &[&str]) -> CertificateParams {
    let mut params = dated(CertificateParams::default());
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.strip_prefix("dns:") {
            Some(name) => SanType::DnsName(name.try_into().unwrap()),
            None => SanType::URI((*name).try_into().unwrap()),
        })
        .collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

#[tokio::test]
async fn a_certificate_must_be_that_of_one_workload() {
    let root = ca("root");
    let any = AnyCa::new();
    let now = FakeClock::start();
    let web = "spiffe://example.org/web";
    let case = |what, peer, expected| Case {
        what,
        peer,
        trust: any.trust(),
        allowed: PeerPolicy::SameDomain,
        at: Duration::ZERO,
        expected,
    };
    let signed = |names: &[&str]| any.sign(&leaf(names));
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = leaf(&[web]);
        change(&mut params);
        any.sign(&params)
    };
    let below = |may_sign| {
        let issuing = any.below(ca_params("issuing", may_sign));
        let mut shown = issuing.sign(&leaf(&[web]));
        shown.chain.push(issuing.der);
        shown
    };
    let mut ca_key = shown(
        &root,
        CertificateSpec::intermediate(&domain("example.org"), "ca").unwrap(),
        now,
    );
    ca_key.chain.truncate(1);
    let with_key = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        any.sign_for(&key, &leaf(&[web]))
    };
    let refused_key = "has a key of a type that Envoy refuses in every handshake";
    let spiffe = PeerRule::SpiffeId;
    check(
        &root,
        vec![
            case("P-384", with_key(&rcgen::PKCS_ECDSA_P384_SHA384), Ok(())),
            case("RSA", with_key(&rcgen::PKCS_RSA_SHA256), Ok(())),
            case(
                "P-521",
                with_key(&rcgen::PKCS_ECDSA_P521_SHA512),
                Err((PeerRule::NotALeaf, refused_key)),
            ),
            case(
                "Ed25519",
                with_key(&rcgen::PKCS_ED25519),
                Err((PeerRule::NotALeaf, refused_key)),
            ),
            case("without extended key usages", signed(&[web]), Ok(())),
            case(
                "a DNS name beside it",
                signed(&[web, "dns:web.example.org"]),
                Ok(()),
            ),
            case(
                "two SPIFFE IDs",
                signed(&[web, "spiffe://example.org/admin"]),
                Err((spiffe, "has 2 URI names, where an X.509-SVID has one")),
            ),
            case(
                "the same SPIFFE ID twice",
                signed(&[web, web]),
                Err((spiffe, "has 2 URI names")),
            ),
            case(
                "tags of the classic model",
                signed(&[web, "kuma://app/web"]),
                Err((spiffe, "has 2 URI names")),
            ),
            case(
                "a DNS name alone",
                signed(&["dns:web.example.org"]),
                Err((spiffe, "has no URI name")),
            ),
            case("no name", signed(&[]), Err((spiffe, "has no URI name"))),
            case(
                "another scheme",
                signed(&["https://example.org/web"]),
                Err((spiffe, "`https://example.org/web`, is not a SPIFFE ID")),
            ),
            case(
                "upper case in the scheme",
                signed(&["SPIFFE://example.org/web"]),
                Err((
                    spiffe,
                    "is not a SPIFFE ID as it must be written: `spiffe://example.org/web`",
                )),
            ),
            case(
                "upper case in the domain",
                signed(&["spiffe://Example.org/web"]),
                Err((spiffe, "as it must be written")),
            ),
            case(
                "no path",
                signed(&["spiffe://example.org"]),
                Err((spiffe, "has no path, so it is no workload's")),
            ),
            case(
                "an empty path",
                signed(&["spiffe://example.org/"]),
                Err((spiffe, "is not a SPIFFE ID")),
            ),
            case(
                "a port",
                signed(&["spiffe://example.org:443/web"]),
                Err((spiffe, "is not a SPIFFE ID")),
            ),
            case(
                "a user",
                signed(&["spiffe://example.org@evil/web"]),
                Err((spiffe, "is not a SPIFFE ID")),
            ),
            case(
                "a way up",
                signed(&["spiffe://example.org/a/../web"]),
                Err((spiffe, "is not a SPIFFE ID")),
            ),
            case(
                "a query",
                signed(&["spiffe://example.org/web?a"]),
                Err((spiffe, "is not a SPIFFE ID")),
            ),
            case(
                "a CA",
                changed(|it| it.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
                Err((PeerRule::NotALeaf, "is a CA's")),
            ),
            case(
                "may sign certificates",
                changed(|it| it.key_usages.push(KeyUsagePurpose::KeyCertSign)),
                Err((PeerRule::NotALeaf, "may sign certificates or CRLs")),
            ),
            case(
                "may not sign handshakes",
                changed(|it| it.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
                Err((PeerRule::NotALeaf, "lacks the key usage `digitalSignature`")),
            ),
            case(
                "for another purpose",
                changed(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
                Err((PeerRule::Purpose, "is not for ")),
            ),
            case("an intermediate", below(true), Ok(())),
            case(
                "an intermediate that may not sign certificates",
                below(false),
                Err((PeerRule::Path, "`CN=issuing` may not sign certificates")),
            ),
        ],
    )
    .await;
    // The intermediate of a CA shows itself as a workload; the name in it is that of the trust domain.
    check(
        &root,
        vec![Case {
            what: "a CA below our root",
            peer: ca_key,
            trust: trust(&[("example.org", &root)]),
            allowed: PeerPolicy::SameDomain,
            at: Duration::ZERO,
            expected: Err((spiffe, "has no path")),
        }],
    )
    .await;
}

/// rustls itself shows no such certificate, so the verifier is asked without a handshake.
#[test]
fn a_critical_extension_that_is_not_known_is_a_matter_of_encoding() {
    use rustls::server::danger::ClientCertVerifier;
    let (root, any) = (ca("root"), AnyCa::new());
    let mut params = leaf(&["spiffe://example.org/web"]);
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1], vec![5, 0]);
    unknown.set_criticality(true);
    params.custom_extensions.push(unknown);
    let peer = any.sign(&params);
    let ours = credentials(&root, "spiffe://example.org/ours", any.trust());
    let settings = settings(PeerPolicy::SameDomain, &FakeClock::new());
    let verifier = settings.verifier(&ours).unwrap();
    let now = rustls::pki_types::UnixTime::since_unix_epoch(Duration::ZERO);
    let refused = verifier.verify_client_cert(&peer.chain[0], &[], now);
    let rule = PeerRule::find(&refused.unwrap_err());
    assert_eq!(rule, Some(PeerRule::Encoding));
}

#[tokio::test]
async fn a_client_is_no_server() {
    let (root, any, clock) = (ca("root"), AnyCa::new(), FakeClock::new());
    let ours = credentials(&root, "spiffe://example.org/ours", any.trust());
    let settings = settings(PeerPolicy::SameDomain, &clock);
    for (purpose, client, server) in [
        (ExtendedKeyUsagePurpose::ClientAuth, true, false),
        (ExtendedKeyUsagePurpose::ServerAuth, false, true),
    ] {
        let mut params = leaf(&["spiffe://example.org/web"]);
        params.extended_key_usages = vec![purpose];
        let peer = any.sign(&params);
        let as_client = shake(
            &stock_client(Some(peer.clone()), &[&TLS13]),
            &settings.server_config(&ours).unwrap(),
        )
        .await;
        let as_server = shake(
            &settings.client_config(&ours).unwrap(),
            &stock_server(peer, &[&TLS13]),
        )
        .await;
        if client {
            as_client.both();
        } else {
            assert_eq!(as_client.refused_by_server().0, PeerRule::Purpose);
        }
        if server {
            as_server.both();
        } else {
            assert_eq!(as_server.refused_by_client().0, PeerRule::Purpose);
        }
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let server = settings(PeerPolicy::SameDomain, &clock)
        .server_config(&own(&root, "spiffe://example.org/ours"))
        .unwrap();
    for version in [&TLS12, &TLS13] {
        let outcome = shake(&stock_client(None, &[version]), &server).await;
        assert_eq!(outcome.refused_by_server().0, PeerRule::NoCertificate);
    }
}

/// The certificate is copied from the right workload, the key is not its.
#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let (root, clock) = (ca("root"), FakeClock::new());
    let ours = own(&root, "spiffe://example.org/ours");
    let settings = settings(PeerPolicy::SameDomain, &clock);
    let of = |name| shown(&root, workload(name), clock.now());
    let (web, thief) = (
        of("spiffe://example.org/web"),
        of("spiffe://example.org/thief"),
    );
    // rustls does not let one configure this by accident.
    let key = provider().key_provider.load_private_key(thief.key).unwrap();
    let mismatched = std::sync::Arc::new(rustls::sign::CertifiedKey::new(web.chain, key));
    let mut client = (*stock_client(None, &[&TLS13])).clone();
    client.client_auth_cert_resolver =
        std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(mismatched));
    let outcome = shake(&client.into(), &settings.server_config(&ours).unwrap()).await;
    let error = outcome.server.unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

/// Pieces that a SPIFFE ID is made of, and what is near to them.
fn uris() -> impl Strategy<Value = String> {
    let scheme = prop_oneof![
        8 => Just("spiffe://"),
        1 => Just("spiffe:/"),
        1 => Just("SPIFFE://"),
        1 => Just("spiffe:///"),
        1 => Just("https://"),
        1 => Just(""),
    ];
    let host = prop_oneof![
        4 => Just("example.org".to_owned()),
        2 => Just("partner.org".to_owned()),
        1 => Just("example.orgi".to_owned()),
        1 => Just("Example.org".to_owned()),
        1 => Just("example.org.".to_owned()),
        1 => Just("example.org:1".to_owned()),
        1 => Just("evil@example.org".to_owned()),
        2 => "[a-z._%-]{0,6}(example\\.org)?[a-z._:@%-]{0,4}",
    ];
    let path = prop_oneof![
        4 => "(/[a-z0-9._-]{1,4}){0,3}",
        1 => "[ -~]{0,6}",
        1 => "/[a-z]{1,3}[?#%/ ][a-z]{0,3}",
    ];
    (scheme, host, path).prop_map(|(scheme, host, path)| format!("{scheme}{host}{path}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whoever passes has exactly one URI, and it is the SPIFFE ID of a workload in the trust domain, by the letter.
    #[test]
    fn no_other_name_passes(names in prop::collection::vec(uris(), 1..3)) {
        use rustls::server::danger::ClientCertVerifier;
        thread_local! {
            static CA: AnyCa = AnyCa::new();
            static ROOT: TestCa = ca("root");
        }
        let (passes, expected) = CA.with(|any| {
            let ours = ROOT.with(|root| credentials(root, "spiffe://example.org/ours", any.trust()));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let peer = any.sign(&leaf(&names));
            let verifier = settings(PeerPolicy::SameDomain, &FakeClock::new()).verifier(&ours).unwrap();
            let now = rustls::pki_types::UnixTime::since_unix_epoch(Duration::ZERO);
            let passes = verifier.verify_client_cert(&peer.chain[0], &[], now).is_ok();
            // Written down apart from the parser: SPIFFE-ID §2.
            let segment = |segment: &str| !segment.is_empty() && segment != "." && segment != ".."
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
            let expected = names.len() == 1
                && names[0].strip_prefix("spiffe://example.org/").is_some_and(|path| path.split('/').all(segment));
            (passes, expected)
        });
        prop_assert_eq!(passes, expected, "{:?}", names);
    }
}
