//! What each answer means: those that a healthy Vault cannot be made to give are canned.

use std::time::Duration;

use crate::common::*;
use meshca_core::{Error, ErrorKind, Issuer, IssuingCa, Retry};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_vault::VaultIssuer;

const TOKEN: &str = "hvs.do-not-repeat-me";

async fn issuer_at(server: &CannedServer) -> IssuingCa<VaultIssuer> {
    let store = secrets(&[("vault-token", TOKEN)]).await;
    let settings =
        settings(&server.url(), token_auth()).with_request_timeout(Duration::from_secs(1));
    issuer(settings, &store)
}

/// What signing ends with, when Vault answers like this.
async fn signed(answers: impl IntoIterator<Item = CannedResponse>) -> Result<Vec<String>, Error> {
    let server = CannedServer::start().await.unwrap();
    // For the keeper, which looks up the token.
    let looked_up = r#"{"data":{"ttl":0,"expire_time":null}}"#;
    for _ in 0..3 {
        server.answer(CannedResponse::json(200, looked_up).for_path("/v1/auth/token/lookup-self"));
    }
    for answer in answers {
        server.answer(answer.for_path("/v1/pki/sign/"));
    }
    let issuer = issuer_at(&server).await;
    let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
    let now = meshca_core::Clock::now(&*clock());
    let request = meshca_core::CertificateRequest::for_key(spec(), &key, now).unwrap();
    let outcome = issuer.sign(&request).await;
    if let Err(error) = &outcome {
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains(TOKEN), "{text}");
            assert!(!text.contains("do-not-repeat"), "{text}");
        }
    }
    outcome.map(|chain| chain.notes().to_vec())
}

fn errors(text: &str) -> String {
    serde_json::json!({"errors": [text]}).to_string()
}

#[tokio::test]
async fn each_status_has_its_kind_and_its_advice() {
    use ErrorKind::*;
    for (status, text, kind, retry, words) in [
        (
            400,
            "malformed csr",
            InvalidRequest,
            Retry::Never,
            "malformed csr",
        ),
        (
            400,
            "unknown role: mesh-dp",
            NotFound,
            Retry::Never,
            "vault write pki/roles/mesh-dp",
        ),
        (
            400,
            "URI Subject Alternative Names are not allowed in this role",
            Denied,
            Retry::Never,
            "`spiffe://example.org/*`",
        ),
        (
            400,
            "the common_name field is required",
            Denied,
            Retry::Never,
            "`require_cn=false`",
        ),
        (
            400,
            "role requires keys of type rsa",
            Denied,
            Retry::Never,
            "does not allow",
        ),
        (
            403,
            "permission denied",
            Denied,
            Retry::Never,
            "must grant `update` on `pki/sign/mesh-dp`",
        ),
        (
            404,
            "no handler for route",
            NotFound,
            Retry::Never,
            "vault secrets enable -path=pki pki",
        ),
        (
            405,
            "unsupported operation",
            NotFound,
            Retry::Never,
            "no PKI engine",
        ),
        (
            412,
            "required index state not present",
            Unavailable,
            Retry::Backoff,
            "caught up",
        ),
        (
            413,
            "request body too large",
            InvalidRequest,
            Retry::Never,
            "too large",
        ),
        (
            429,
            "lease count quota exceeded",
            RateLimited,
            Retry::Backoff,
            "quota",
        ),
        (472, "", Unavailable, Retry::Backoff, "disaster recovery"),
        (473, "", Unavailable, Retry::Backoff, "standby"),
        (
            500,
            "1 error occurred:\n\t* internal error\n\n",
            Unavailable,
            Retry::Backoff,
            "internal error",
        ),
        (
            500,
            "no default issuer currently configured",
            InvalidConfig,
            Retry::Backoff,
            "has no CA yet",
        ),
        (502, "", Unavailable, Retry::Backoff, "502"),
        (
            503,
            "Vault is sealed",
            Unavailable,
            Retry::Backoff,
            "unseal it",
        ),
        (418, "", BadResponse, Retry::Never, "418"),
        (302, "", BadResponse, Retry::Never, "302"),
    ] {
        let error = signed([CannedResponse::json(status, errors(text))])
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (kind, retry),
            "{status}: {error}"
        );
        assert!(
            error.to_string().contains(words),
            "{status}: `{words}` is missing in: {error}"
        );
    }
    for status in [429, 503] {
        let answer = CannedResponse::json(status, errors("later")).with_header("retry-after", "7");
        let error = signed([answer]).await.unwrap_err();
        assert_eq!(
            error.retry(),
            Retry::After(Duration::from_secs(7)),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_is_not_vaults_is_not_repeated() {
    let page = format!("<html>you sent {TOKEN}</html>");
    for status in [403, 500, 502] {
        let answer = CannedResponse::new(status)
            .with_header("content-type", "text/html")
            .with_body(page.clone());
        let error = signed([answer]).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("is a proxy in between?"), "{text}");
    }
    // One that repeats the token in Vault's own form.
    let error = signed([CannedResponse::json(
        400,
        errors(&format!("bad token {TOKEN}")),
    )])
    .await
    .unwrap_err();
    assert!(
        error.to_string().contains("bad token [redacted]"),
        "{error}"
    );
}

#[tokio::test]
async fn broken_answers() {
    use ErrorKind::*;
    let whole = r#"{"data":{"certificate":"x","issuing_ca":"y"}}"#;
    for (answer, kind, words) in [
        (
            CannedResponse::json(200, "garbage"),
            BadResponse,
            "not the JSON that was expected",
        ),
        (CannedResponse::json(200, "{}"), BadResponse, "no `data`"),
        (
            CannedResponse::json(200, r#"{"data":{"certificate":7}}"#),
            BadResponse,
            "not the JSON",
        ),
        (CannedResponse::json(200, whole), BadResponse, ""),
        (
            CannedResponse::json(200, r#"{"wrap_info":{"token":"t"}}"#),
            BadResponse,
            "X-Vault-Wrap-TTL",
        ),
        (
            CannedResponse::json(200, whole).truncated_at(20),
            Unavailable,
            "",
        ),
        (
            CannedResponse::json(200, "x".repeat(2 << 20)),
            BadResponse,
            "larger than",
        ),
        (CannedResponse::raw("nonsense\r\n\r\n"), Unavailable, ""),
        (
            CannedResponse::close(),
            Unavailable,
            "broke before the answer",
        ),
        (CannedResponse::hang(), Timeout, "within 1000 ms"),
    ] {
        let what = format!("{answer:?}").chars().take(100).collect::<String>();
        let error = signed([answer]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains(words), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_standby_sends_us_to_the_active_node_once() {
    let active = CannedServer::start().await.unwrap();
    let chain =
        meshca_testkit::pki::TestCa::root("Root", std::time::SystemTime::UNIX_EPOCH).unwrap();
    let data = serde_json::json!({"data": {"certificate": chain.pem(), "ca_chain": null}, "warnings": ["TTL was capped"]});
    active.answer(CannedResponse::json(200, data.to_string()));
    let to = |location: String| CannedResponse::new(307).with_header("location", location);
    let notes = signed([to(format!("{}/v1/pki/sign/mesh-dp", active.url()))])
        .await
        .unwrap();
    assert_eq!(notes, ["TTL was capped"]);
    let request = &active.requests()[0];
    assert_eq!(request.header("x-vault-token"), Some(TOKEN));
    assert_eq!(request.header("x-vault-request"), Some("true"));

    let elsewhere = CannedServer::start().await.unwrap();
    for location in [
        format!("{}/v1/auth/token/create", elsewhere.url()),
        format!("{}/v1/pki/sign/mesh-dp?a=b", elsewhere.url()),
        format!(
            "{}/v1/pki/sign/mesh-dp",
            elsewhere.url().replace("http://", "https://")
        ),
    ] {
        let error = signed([to(location.clone())]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{location}: {error}");
    }
    assert_eq!(elsewhere.requests().len(), 0, "no token goes there");

    let circle = CannedServer::start().await.unwrap();
    circle.answer(to(format!("{}/v1/pki/sign/mesh-dp", circle.url())));
    let error = signed([to(format!("{}/v1/pki/sign/mesh-dp", circle.url()))])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("without a leader"), "{error}");
}

#[tokio::test]
async fn chains_come_in_many_shapes() {
    use meshca_testkit::pki::TestCa;
    let now = meshca_core::Clock::now(&*clock());
    let root = TestCa::root("Root", now).unwrap();
    let issuing = root.intermediate("Issuing").unwrap();
    let bundle = root.bundle(domain()).unwrap();
    let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
    let request = meshca_core::CertificateRequest::for_key(spec(), &key, now).unwrap();
    let leaf = meshca_testkit::pki::to_pem(&issuing.sign(&request, now).unwrap());
    let (ca, root_pem) = (issuing.pem(), root.pem());
    for data in [
        serde_json::json!({"certificate": leaf, "issuing_ca": ca}),
        serde_json::json!({"certificate": leaf, "issuing_ca": ca, "ca_chain": null}),
        serde_json::json!({"certificate": leaf, "issuing_ca": ca, "ca_chain": []}),
        serde_json::json!({"certificate": leaf, "issuing_ca": ca, "ca_chain": [ca]}),
        serde_json::json!({"certificate": leaf, "issuing_ca": ca, "ca_chain": [ca, root_pem]}),
        serde_json::json!({"certificate": leaf, "issuing_ca": ca, "ca_chain": [root_pem, ca, ca]}),
        serde_json::json!({"certificate": leaf, "ca_chain": [ca]}),
        serde_json::json!({"certificate": format!("{leaf}{ca}{root_pem}"), "issuing_ca": ca}),
        serde_json::json!({"certificate": format!("{leaf}\n"), "issuing_ca": ca, "expiration": "soon", "private_key_type": ""}),
    ] {
        let server = CannedServer::start().await.unwrap();
        server.answer(
            CannedResponse::json(200, serde_json::json!({"data": data}).to_string())
                .for_path("/v1/pki/sign/"),
        );
        let issuer = issuer_at(&server).await;
        let chain = issuer.sign(&request).await.unwrap();
        let issued = chain.verify(&request, &bundle, now).unwrap();
        assert_eq!(issued.chain().len(), 2, "{data}");
    }
}
