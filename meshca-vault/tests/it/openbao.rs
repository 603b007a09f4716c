//! Vault and OpenBao answer differently. What follows from it is the same, and what is said names the one that answered.

use std::time::Duration;

use meshca_core::resource::{AppRoleAuth, DataSource, VaultAuth, VaultConf};
#[cfg(feature = "aws-auth")]
use meshca_core::resource::{AwsAuth, AwsAuthType};
use meshca_core::{Error, ErrorKind, Issuer, IssuingCa, Retry};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_vault::{VaultIssuer, VaultSettings};
use serde_json::json;

use crate::common::*;

/// How a product answers.
struct Answers {
    name: &'static str,
    health: &'static str,
    /// To any request with a token that is dead.
    dead: &'static str,
    /// To a request that no policy allows.
    policy: &'static str,
}

const VAULT: Answers = Answers {
    name: "Vault",
    health: r#"{"initialized":true,"sealed":false,"standby":false,"version":"1.21.0","enterprise":false}"#,
    dead: "{\"errors\":[\"2 errors occurred:\\n\\t* permission denied\\n\\t* invalid token\\n\\n\"]}",
    policy: "{\"errors\":[\"1 error occurred:\\n\\t* permission denied\\n\\n\"]}",
};

/// As OpenBao 2.6 answers.
const OPENBAO: Answers = Answers {
    name: "OpenBao",
    health: r#"{"initialized":true,"sealed":false,"standby":false,"version":"2.6.0"}"#,
    dead: r#"{"errors":["permission denied"]}"#,
    policy: VAULT.policy,
};

/// A server that says of itself what it is.
async fn server(answers: &Answers) -> CannedServer {
    let server = CannedServer::start().await.unwrap();
    for _ in 0..4 {
        server.answer(CannedResponse::json(200, answers.health).for_path("/v1/sys/health"));
    }
    server
}

fn login(server: &CannedServer, token: &str) {
    let auth = json!({"auth": {"client_token": token, "lease_duration": 3600, "renewable": true}});
    let path = "/v1/auth/approle/login";
    server.answer(CannedResponse::json(200, auth.to_string()).for_path(path));
}

fn app_role() -> VaultAuth {
    let secret = DataSource::Secret("secret-id".to_owned());
    VaultAuth::AppRole(AppRoleAuth::new("role-id", secret))
}

async fn issuer_at(server: &CannedServer, auth: VaultAuth) -> IssuingCa<VaultIssuer> {
    let store = secrets(&[("secret-id", "hush"), ("vault-token", "hvs.given")]).await;
    let conf = VaultConf::new(server.url(), ROLE, auth);
    issuer(VaultSettings::new(conf, domain()), &store)
}

async fn sign(issuer: &IssuingCa<VaultIssuer>) -> Result<(), Error> {
    let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
    let now = meshca_core::Clock::now(&*clock());
    let request = meshca_core::CertificateRequest::for_key(spec(), &key, now).unwrap();
    issuer.sign(&request).await.map(drop)
}

fn tokens(server: &CannedServer, path: &str) -> Vec<String> {
    let requests = server.requests();
    let requests = requests.iter().filter(|it| it.path().starts_with(path));
    let token = |request: &meshca_testenv::http::RecordedRequest| {
        request
            .header("x-vault-token")
            .unwrap_or_default()
            .to_owned()
    };
    requests.map(token).collect()
}

#[tokio::test]
async fn a_dead_token_is_replaced_within_the_same_call() {
    for product in [VAULT, OPENBAO] {
        let server = server(&product).await;
        login(&server, "one");
        login(&server, "two");
        let chain = meshca_testkit::pki::TestCa::root("Root", std::time::SystemTime::UNIX_EPOCH);
        let signed = json!({"data": {"certificate": chain.unwrap().pem()}}).to_string();
        for answer in [
            CannedResponse::json(403, product.dead),
            CannedResponse::json(200, signed),
        ] {
            server.answer(answer.for_path("/v1/pki/sign/"));
        }
        server
            .answer(CannedResponse::json(403, product.dead).for_path("/v1/auth/token/lookup-self"));
        sign(&issuer_at(&server, app_role()).await).await.unwrap();
        assert_eq!(
            tokens(&server, "/v1/pki/sign/"),
            ["one", "two"],
            "{}",
            product.name
        );
    }
}

#[tokio::test]
async fn a_policy_is_blamed_when_a_fresh_token_is_refused_as_well() {
    for product in [VAULT, OPENBAO] {
        // A token that may look itself up, and one that may not: only of the second it is not known at once.
        let alive =
            json!({"data": {"ttl": 3600, "expire_time": "2100-01-01T00:00:00Z"}}).to_string();
        for (look_up, used) in [
            (CannedResponse::json(200, alive), vec!["one"]),
            (
                CannedResponse::json(403, product.policy),
                vec!["one", "two"],
            ),
        ] {
            let server = server(&product).await;
            login(&server, "one");
            login(&server, "two");
            for _ in 0..2 {
                server.answer(CannedResponse::json(403, product.policy).for_path("/v1/pki/sign/"));
            }
            server.answer(look_up.for_path("/v1/auth/token/lookup-self"));
            let error = sign(&issuer_at(&server, app_role()).await)
                .await
                .unwrap_err();
            assert_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::Denied, Retry::Never),
                "{error}"
            );
            let begin = format!(
                "{} refused to sign: a policy of the token must grant `update` on `pki/sign/mesh-dp`",
                product.name
            );
            assert!(error.to_string().starts_with(&begin), "{error}");
            assert_eq!(tokens(&server, "/v1/pki/sign/"), used);
        }
    }
}

/// Before there is another token nobody can tell, and the identity must be tried again.
#[tokio::test]
async fn a_given_token_that_may_be_dead_is_never_given_up() {
    let server = server(&OPENBAO).await;
    for _ in 0..3 {
        server.answer(CannedResponse::json(403, OPENBAO.dead).for_path("/v1/pki/sign/"));
        server
            .answer(CannedResponse::json(403, OPENBAO.dead).for_path("/v1/auth/token/lookup-self"));
    }
    let error = sign(&issuer_at(&server, token_auth()).await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(
        matches!(error.retry(), Retry::After(wait) if wait <= Duration::from_secs(30)),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.starts_with(
            "OpenBao refused to sign, and does not say why: the token in secret vault-token is dead"
        ),
        "{text}"
    );
    assert!(
        text.contains("grant `update` on `pki/sign/mesh-dp`"),
        "{text}"
    );
}

#[tokio::test]
async fn messages_name_the_product_that_answered() {
    let sealed = r#"{"errors":["Vault is sealed"]}"#;
    let hidden = Answers {
        name: "the server",
        health: r#"{"status":"ok"}"#,
        ..VAULT
    };
    for product in [VAULT, OPENBAO, hidden] {
        let server = server(&product).await;
        let looked_up = r#"{"data":{"ttl":0,"expire_time":null}}"#;
        server.answer(CannedResponse::json(200, looked_up).for_path("/v1/auth/token/lookup-self"));
        server.answer(CannedResponse::json(503, sealed).for_path("/v1/pki/sign/"));
        server.answer(CannedResponse::json(404, r#"{"errors":[]}"#).for_path("/v1/pki/sign/"));
        let issuer = issuer_at(&server, token_auth()).await;
        let text = sign(&issuer).await.unwrap_err().to_string();
        let expected = format!("{} is sealed: unseal it ({0}: ", product.name);
        assert!(text.starts_with(&expected), "{text}");
        let text = sign(&issuer).await.unwrap_err().to_string();
        let command = if product.name == "OpenBao" {
            "bao"
        } else {
            "vault"
        };
        let expected = format!(
            "{} has no PKI engine at `pki`: enable it with `{command} secrets",
            product.name
        );
        assert!(text.starts_with(&expected), "{text}");
        // It is asked once: what it is does not change from one error to the next.
        assert_eq!(tokens(&server, "/v1/sys/health").len(), 1);
    }
}

#[cfg(feature = "aws-auth")]
#[tokio::test]
async fn a_login_by_aws_is_missed_in_another_way() {
    let no_route =
        r#"{"errors":["no handler for route \"auth/aws/login\". route entry not found."]}"#;
    for (product, expected) in [
        (
            VAULT,
            "Vault has no auth method at `auth/aws`: enable it with `vault auth enable",
        ),
        (
            OPENBAO,
            "OpenBao has no login by AWS identities: use another way under `auth`",
        ),
    ] {
        let server = server(&product).await;
        server.answer(CannedResponse::json(404, no_route).for_path("/v1/auth/aws/login"));
        let mut auth = AwsAuth::new(AwsAuthType::Iam);
        auth.role = Some("cp".to_owned());
        let conf = VaultConf::new(server.url(), ROLE, VaultAuth::Aws(auth));
        let settings = VaultSettings::new(conf, domain());
        let settings = settings.with_aws_access_key("AKIAEXAMPLE", "hush".into(), None);
        let issuer = issuer(settings, &secrets(&[]).await);
        let text = sign(&issuer).await.unwrap_err().to_string();
        assert!(text.starts_with(expected), "{text}");
    }
}
