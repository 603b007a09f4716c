//! Which roots are trusted: those to which a CA that signs leads, and those that the settings name.

use std::sync::{Arc, Mutex};

use meshca_core::resource::{AlsoTrust, DataSource, VaultConf};
use meshca_core::{Issuer, IssuingCa, TrustBundle};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_testkit::pki::{TestCa, TestCaOptions};
use meshca_vault::{VaultIssuer, VaultSettings};

use crate::common::*;

fn subjects(bundle: &TrustBundle) -> Vec<String> {
    let mut subjects: Vec<_> = bundle.roots().iter().map(|root| root.subject()).collect();
    subjects.sort();
    subjects
}

fn root(name: &str) -> TestCa {
    TestCa::root(name, meshca_core::Clock::now(&*clock())).unwrap()
}

async fn with(
    address: &str,
    token: &str,
    change: impl FnOnce(&mut VaultConf),
) -> IssuingCa<VaultIssuer> {
    let store = secrets(&[("vault-token", token), ("roots", &root("Named root").pem())]).await;
    let mut conf = VaultConf::new(address, ROLE, token_auth());
    change(&mut conf);
    issuer(VaultSettings::new(conf, domain()), &store)
}

/// Where a proxy, or a policy, hides the list, and the chain of the CA that signs is open.
#[tokio::test]
async fn where_the_list_of_issuers_is_refused() {
    let server = CannedServer::start().await.unwrap();
    let denied = || CannedResponse::json(403, r#"{"errors":["permission denied"]}"#);
    let (default, pinned, next) = (root("Default"), root("Pinned"), root("Next"));
    let chain = |ca: &TestCa| {
        serde_json::json!({"data": {"certificate": ca.pem(), "ca_chain": [ca.pem()]}}).to_string()
    };
    for _ in 0..4 {
        for _ in 0..4 {
            server.answer(denied().for_path("/v1/pki/issuers"));
            server.answer(denied().for_path("/v1/auth/token/lookup-self"));
        }
        let text = serde_json::json!({"data": {"ca_chain": default.pem()}}).to_string();
        server.answer(CannedResponse::json(200, text).for_path("/v1/pki/cert/ca_chain"));
        server.answer(
            CannedResponse::json(200, chain(&pinned)).for_path("/v1/pki/issuer/pinned/json"),
        );
        server.answer(CannedResponse::json(200, chain(&next)).for_path("/v1/pki/issuer/next/json"));
    }
    let pin = |conf: &mut VaultConf| conf.issuer = Some("pinned".to_owned());
    let also = |also: AlsoTrust| {
        move |conf: &mut VaultConf| {
            pin(conf);
            conf.also_trust = vec![also];
        }
    };
    let named = move |conf: &mut VaultConf| {
        pin(conf);
        conf.ca_cert = Some(DataSource::Secret("roots".to_owned()));
    };
    let partner = root("Partner").pem();
    type Change = Box<dyn FnOnce(&mut VaultConf)>;
    let cases: [(Change, Vec<&str>); 5] = [
        (Box::new(|_| {}), vec!["CN=Default"]),
        (Box::new(pin), vec!["CN=Pinned"]),
        (
            Box::new(also(AlsoTrust::Issuer("next".to_owned()))),
            vec!["CN=Next", "CN=Pinned"],
        ),
        (
            Box::new(also(AlsoTrust::Pem(partner))),
            vec!["CN=Partner", "CN=Pinned"],
        ),
        (Box::new(named), vec!["CN=Named root"]),
    ];
    for (change, trusted) in cases {
        let issuer = with(&server.url(), "hvs.token", change).await;
        assert_eq!(subjects(&issuer.trust_bundle().await.unwrap()), trusted);
    }
}

/// Whether peers have its root from elsewhere is not known here.
#[tokio::test]
async fn a_ca_cert_that_is_an_intermediate_alone_is_a_warning() {
    let corporate = root("Corporate root");
    let below = corporate.intermediate("Mesh CA").unwrap();
    for (pem, warned) in [(below.pem(), true), (below.pem() + &corporate.pem(), false)] {
        let server = CannedServer::start().await.unwrap();
        let health = r#"{"initialized":true,"sealed":false,"standby":false,"version":"1.20.0"}"#;
        server.answer(CannedResponse::json(200, health).for_path("/v1/sys/health"));
        let issuer = with(&server.url(), "hvs.token", |conf| {
            conf.ca_cert = Some(DataSource::InlineString(pem.as_str().into()));
        })
        .await;
        let text = issuer.check().await.unwrap_err().to_string();
        for words in [
            "`caCert` holds the intermediate CA `CN=Mesh CA` and not the root that it leads to",
            "add the certificate of `CN=Corporate root` to `caCert`",
        ] {
            assert_eq!(text.contains(words), warned, "`{words}`: {text}");
        }
    }
}

#[tokio::test]
async fn an_outage_takes_no_root_away() {
    let server = CannedServer::start().await.unwrap();
    let pinned = root("Pinned");
    let text = serde_json::json!({"data": {"certificate": pinned.pem()}}).to_string();
    server.answer(CannedResponse::json(200, text).for_path("/v1/pki/issuer/pinned/json"));
    server.answer(
        CannedResponse::json(503, r#"{"errors":["later"]}"#).for_path("/v1/pki/issuer/next/json"),
    );
    let issuer = with(&server.url(), "hvs.token", |conf| {
        conf.issuer = Some("pinned".to_owned());
        conf.also_trust = vec![AlsoTrust::Issuer("next".to_owned())];
    })
    .await;
    let error = issuer.trust_bundle().await.unwrap_err();
    assert_eq!(error.kind(), meshca_core::ErrorKind::Unavailable, "{error}");
}

/// What the log was told about roots.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Roots<'l>(&'l Log);

        impl tracing::field::Visit for Roots<'_> {
            fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}

            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                if field.name() == "roots" {
                    self.0.0.lock().unwrap().push(value.to_owned());
                }
            }
        }

        event.record(&mut Roots(self));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

mod vault {
    use meshca_core::resource::VaultTls;
    use meshca_core::{CertificateRequest, CertificateSpec, KeyType, PrivateKey, SpiffeId};
    use meshca_testenv::needs;
    use meshca_testenv::servers::Vault;
    use serde_json::json;

    use super::*;

    const PINNED: &str = r#"
path "pki/issuer/a/sign/mesh-dp" { capabilities = ["update"] }
path "pki/issuer/b/sign/mesh-dp" { capabilities = ["update"] }
path "pki/issuer/partner/sign/mesh-dp" { capabilities = ["update"] }
path "pki/roles/mesh-dp" { capabilities = ["read"] }
path "pki/sign/mesh-dp" { capabilities = ["update"] }
"#;

    /// Two roots that can sign, `a` by default, and a partner's certificate.
    async fn shared_mount(partner: &TestCa) -> (Vault, String) {
        let vault = Vault::start().await.unwrap();
        mount(&vault, "pki").await;
        for name in ["a", "b"] {
            let root = json!({"common_name": format!("Root {name}"), "issuer_name": name, "key_type": "ec", "ttl": "87600h"});
            vault
                .write("pki/root/generate/internal", root)
                .await
                .unwrap();
        }
        vault
            .write("pki/root/replace", json!({"default": "a"}))
            .await
            .unwrap();
        let imported = vault
            .write(
                "pki/issuers/import/cert",
                json!({"pem_bundle": partner.pem()}),
            )
            .await
            .unwrap();
        let id = imported["data"]["imported_issuers"][0].as_str().unwrap();
        vault
            .write(
                &format!("pki/issuer/{id}"),
                json!({"issuer_name": "partner"}),
            )
            .await
            .unwrap();
        roles(&vault).await;
        vault
            .write("sys/policies/acl/mesh", json!({"policy": PINNED}))
            .await
            .unwrap();
        let token = token(&vault, json!({"period": "24h"})).await;
        (vault, token)
    }

    /// A leaf that nobody of ours signed.
    fn forged(partner: &TestCa) -> (CertificateRequest, meshca_core::SignedChain) {
        let admin = SpiffeId::new("spiffe://example.org/admin").unwrap();
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        let now = meshca_core::Clock::now(&*clock());
        let spec =
            CertificateSpec::workload(admin).with_lifetime(std::time::Duration::from_secs(600));
        let request = CertificateRequest::for_key(spec, &key, now).unwrap();
        let leaf = partner.sign(&request, now).unwrap();
        (request, meshca_core::SignedChain::new([leaf]))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_a_shared_mount_those_that_sign_for_us() {
        needs!(Vault::program());
        let partner = root("Partner");
        let (vault, token) = shared_mount(&partner).await;
        let issuer = |also: Vec<AlsoTrust>| {
            with(vault.address(), &token, move |conf| {
                conf.issuer = Some("a".to_owned());
                conf.also_trust = also;
            })
        };

        // One is pinned.
        let pinned = issuer(Vec::new()).await;
        let trusted = pinned.trust_bundle().await.unwrap();
        assert_eq!(subjects(&trusted), ["CN=Root a"]);
        pinned.issue(&spec(), &*clock()).await.unwrap();
        let (request, forged) = forged(&partner);
        let now = meshca_core::Clock::now(&*clock());
        forged.verify(&request, &trusted, now).unwrap_err();
        let warnings = pinned.check().await.unwrap().warnings;
        let [beyond, late] = warnings.as_slice() else {
            panic!("{warnings:?}")
        };
        for part in [
            "`CN=Root b` (issuer `b`)",
            "`CN=Partner` (issuer `partner`, without a key)",
        ] {
            assert!(beyond.contains(part), "{beyond}");
        }
        assert!(
            late.contains("`issuer` pins `a`, and nothing announces the next one"),
            "{late}"
        );

        // The next one is announced, by name and as a certificate.
        let next = issuer(vec![AlsoTrust::Issuer("b".to_owned())]).await;
        let trusted = next.trust_bundle().await.unwrap();
        assert_eq!(subjects(&trusted), ["CN=Root a", "CN=Root b"]);
        let warnings = next.check().await.unwrap().warnings;
        assert!(
            matches!(warnings.as_slice(), [beyond] if beyond.contains("CN=Partner")),
            "{warnings:?}"
        );
        let next = issuer(vec![AlsoTrust::Pem(root("Offline").pem())]).await;
        let trusted = next.trust_bundle().await.unwrap();
        assert_eq!(subjects(&trusted), ["CN=Offline", "CN=Root a"]);
        let typo = issuer(vec![AlsoTrust::Issuer("c".to_owned())]).await;
        assert_eq!(subjects(&typo.trust_bundle().await.unwrap()), ["CN=Root a"]);
        let warnings = typo.check().await.unwrap().warnings;
        assert!(
            warnings
                .iter()
                .any(|it| it.contains("`alsoTrust` names `c`")),
            "{warnings:?}"
        );

        // None is: all that can sign count, and nobody else.
        let unpinned = with(vault.address(), &token, |_| {}).await;
        let trusted = unpinned.trust_bundle().await.unwrap();
        assert_eq!(subjects(&trusted), ["CN=Root a", "CN=Root b"]);
        let warnings = unpinned.check().await.unwrap().warnings;
        assert!(
            matches!(warnings.as_slice(), [beyond] if beyond.contains("CN=Partner")),
            "{warnings:?}"
        );

        // The roots are named outright.
        let named = with(vault.address(), &token, |conf| {
            conf.ca_cert = Some(DataSource::Secret("roots".to_owned()));
        })
        .await;
        assert_eq!(
            subjects(&named.trust_bundle().await.unwrap()),
            ["CN=Named root"]
        );
        let text = named.check().await.unwrap_err().to_string();
        assert!(
            text.contains("leads to the root `CN=Root a`, which is not trusted"),
            "{text}"
        );

        // One without a key is pinned.
        let keyless = with(vault.address(), &token, |conf| {
            conf.issuer = Some("partner".to_owned());
        })
        .await;
        let text = keyless
            .issue(&spec(), &*clock())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("the issuer that is to sign has no key in `pki`"),
            "{text}"
        );
        let text = keyless.check().await.unwrap_err().to_string();
        assert!(
            text.contains("the issuer `partner` has no key in `pki`"),
            "{text}"
        );
        assert!(text.contains("(those that have one: `a`, `b`)"), "{text}");
        // One that is not there.
        let gone = with(vault.address(), &token, |conf| {
            conf.issuer = Some("gone".to_owned());
        })
        .await;
        let text = gone.trust_bundle().await.unwrap_err().to_string();
        assert!(text.contains("has no issuer `gone`"), "{text}");
    }

    #[tokio::test]
    async fn the_log_is_told_once_of_each_root_that_is_not_trusted() {
        needs!(Vault::program());
        let (vault, token) = shared_mount(&root("Partner")).await;
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let issuer = with(vault.address(), &token, |conf| {
            conf.issuer = Some("a".to_owned());
            conf.also_trust = vec![AlsoTrust::Issuer("b".to_owned())];
        })
        .await;
        for _ in 0..3 {
            issuer.trust_bundle().await.unwrap();
        }
        let more = json!({"pem_bundle": root("Another").pem()});
        vault.write("pki/issuers/import/cert", more).await.unwrap();
        for _ in 0..3 {
            issuer.trust_bundle().await.unwrap();
        }
        let told = log.0.lock().unwrap().clone();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].contains("CN=Partner") && told[1].contains("CN=Another"),
            "{told:?}"
        );
    }

    /// Old roots signed themselves with SHA-1 or are of version 1, and head everything that a company has.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_root_whose_own_signature_nobody_verifies_is_a_root() {
        needs!(Vault::program());
        let options = || {
            let now = meshca_core::Clock::now(&*clock());
            TestCaOptions::new("Old root", now).with_key_type(KeyType::Rsa2048)
        };
        for (options, imported) in [
            (options().with_sha1(), true),
            // Vault imports none of version 1, since it has no BasicConstraints.
            (options().with_version_1(), false),
        ] {
            let old = TestCa::root_with(options).unwrap();
            let issuing = old.intermediate("Issuing CA").unwrap();
            let vault = Vault::start().await.unwrap();
            mount(&vault, "pki").await;
            roles(&vault).await;
            let with_key = format!("{}{}", issuing.pem(), issuing.key_pem().unwrap());
            vault
                .write("pki/config/ca", json!({"pem_bundle": with_key}))
                .await
                .unwrap();
            let root = json!({"pem_bundle": old.pem()});
            let import = vault.write("pki/issuers/import/cert", root).await;
            assert_eq!(import.is_ok(), imported, "{import:?}");
            let token = token(&vault, json!({})).await;
            let pem = old.pem();
            let issuer = with(vault.address(), &token, move |conf| {
                if !imported {
                    conf.ca_cert = Some(DataSource::InlineString(pem.as_str().into()));
                }
            })
            .await;
            let trusted = issuer.trust_bundle().await.unwrap();
            assert_eq!(subjects(&trusted), ["CN=Old root"]);
            issuer.check().await.unwrap();
            issuer.issue(&spec(), &*clock()).await.unwrap();
        }
    }

    /// An intermediate that is pinned leads to its root, and to no other of the mount.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_pinned_intermediate_beside_the_root_of_a_partner() {
        needs!(Vault::program());
        let (own, partner) = (root("Own root"), root("Partner"));
        let issuing = own.intermediate("Issuing CA").unwrap();
        let vault = Vault::start().await.unwrap();
        mount(&vault, "pki").await;
        roles(&vault).await;
        let bundle = format!(
            "{}{}{}",
            issuing.pem(),
            own.pem(),
            issuing.key_pem().unwrap()
        );
        let imported = vault
            .write("pki/issuers/import/bundle", json!({"pem_bundle": bundle}))
            .await
            .unwrap();
        vault
            .write(
                "pki/issuers/import/cert",
                json!({"pem_bundle": partner.pem()}),
            )
            .await
            .unwrap();
        // The one that has a key.
        let keys = imported["data"]["mapping"].as_object().unwrap();
        let (id, _) = keys.iter().find(|(_, key)| *key != "").unwrap();
        vault
            .write(&format!("pki/issuer/{id}"), json!({"issuer_name": "int"}))
            .await
            .unwrap();
        let policy = r#"path "pki/issuer/int/sign/mesh-dp" { capabilities = ["update"] }"#;
        vault
            .write("sys/policies/acl/mesh", json!({"policy": policy}))
            .await
            .unwrap();
        let token = token(&vault, json!({"period": "24h"})).await;
        let issuer = with(vault.address(), &token, |conf| {
            conf.issuer = Some("int".to_owned());
        })
        .await;
        let trusted = issuer.trust_bundle().await.unwrap();
        assert_eq!(subjects(&trusted), ["CN=Own root"]);
        let identity = issuer.issue(&spec(), &*clock()).await.unwrap();
        assert_eq!(
            identity.certificate().path()[1..],
            ["CN=Issuing CA", "CN=Own root"]
        );
        let (request, forged) = forged(&partner);
        let now = meshca_core::Clock::now(&*clock());
        forged.verify(&request, &trusted, now).unwrap_err();
        let warnings = issuer.check().await.unwrap().warnings.join("\n");
        assert!(warnings.contains("`CN=Partner`"), "{warnings}");
        assert!(!warnings.contains("`CN=Own root` ("), "{warnings}");
    }

    /// What trust rests on must not be asked of anyone.
    #[tokio::test]
    async fn roots_that_are_named_do_not_depend_on_the_server() {
        needs!(Vault::program());
        let mut vault = Vault::start().await.unwrap();
        vault.kill();
        let issuer = with(vault.address(), "hvs.token", |conf| {
            conf.ca_cert = Some(DataSource::Secret("roots".to_owned()));
            conf.tls = Some(VaultTls::default());
        })
        .await;
        let trusted = issuer.trust_bundle().await.unwrap();
        assert_eq!(subjects(&trusted), ["CN=Named root"]);
    }
}
