//! The ways to log in, beside what the conformance suite proves of them.

use meshca_core::resource::{
    AppRoleAuth, DataSource, JwtAuth, KubernetesAuth, TlsAuth, VaultAuth, VaultConf,
};
use meshca_core::{ErrorKind, Issuer};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_vault::VaultSettings;
use serde_json::{Value, json};

use crate::common::*;

/// The path and the body of the login that these settings make.
async fn login(auth: VaultAuth) -> (String, Value) {
    login_by(auth, None).await
}

/// The same with another endpoint of STS.
async fn login_by(auth: VaultAuth, sts_endpoint: Option<&str>) -> (String, Value) {
    let server = CannedServer::start().await.unwrap();
    let store = secrets(&[("secret", "hush"), ("jwt", "a.b.c\n")]).await;
    let conf = VaultConf::new(server.url(), ROLE, auth);
    let settings = VaultSettings::new(conf, domain());
    #[cfg(feature = "aws-auth")]
    let settings = {
        let settings = settings.with_aws_access_key("AKIAEXAMPLE", "hush".into(), None);
        match sts_endpoint {
            Some(url) => settings.with_sts_endpoint(url),
            None => settings,
        }
    };
    #[cfg(not(feature = "aws-auth"))]
    assert_eq!(sts_endpoint, None);
    let issuer = issuer(settings, &store);
    let auth = json!({"auth": {"client_token": "t", "lease_duration": 60, "renewable": false}});
    server.answer(CannedResponse::json(200, auth.to_string()).for_path("/v1/auth/"));
    let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
    let now = meshca_core::Clock::now(&*clock());
    let request = meshca_core::CertificateRequest::for_key(spec(), &key, now).unwrap();
    issuer.sign(&request).await.unwrap_err();
    let requests = server.requests();
    let login = requests.iter().find(|it| it.path().ends_with("/login"));
    let login = login.unwrap();
    let body = serde_json::from_slice(login.body()).unwrap();
    (login.path().to_owned(), body)
}

#[tokio::test]
async fn each_method_can_be_mounted_anywhere() {
    let secret = |name: &str| DataSource::Secret(name.to_owned());
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a.b.c").unwrap();
    // A method at a mount, or at its usual one.
    type At = Box<dyn Fn(Option<String>) -> VaultAuth>;
    let mut methods: Vec<(&str, At, Value)> = vec![
        (
            "approle",
            Box::new(|mount| {
                let mut auth = AppRoleAuth::new("id", DataSource::Secret("secret".to_owned()));
                auth.mount = mount;
                VaultAuth::AppRole(auth)
            }),
            json!({"role_id": "id", "secret_id": "hush"}),
        ),
        (
            "kubernetes",
            Box::new(move |mount| {
                let mut auth = KubernetesAuth::new("cp");
                auth.mount = mount;
                auth.service_account_token_path = Some(token.clone());
                VaultAuth::Kubernetes(auth)
            }),
            json!({"role": "cp", "jwt": "a.b.c"}),
        ),
        (
            "jwt",
            Box::new(move |mount| {
                let mut auth = JwtAuth::new(secret("jwt"));
                auth.mount = mount;
                auth.role = Some("cp".to_owned());
                VaultAuth::Jwt(auth)
            }),
            json!({"role": "cp", "jwt": "a.b.c"}),
        ),
        (
            "jwt",
            Box::new(|mount| {
                let mut auth = JwtAuth::new(DataSource::Secret("jwt".to_owned()));
                auth.mount = mount;
                VaultAuth::Jwt(auth)
            }),
            json!({"jwt": "a.b.c"}),
        ),
    ];
    let ca = meshca_testkit::pki::TestCa::root("CA", std::time::SystemTime::UNIX_EPOCH).unwrap();
    let (certificate, key) = (ca.pem(), ca.key_pem().unwrap());
    methods.push((
        "cert",
        Box::new(move |mount| {
            let inline = |text: &str| DataSource::InlineString(text.into());
            let mut auth = TlsAuth::new(inline(&key), inline(&certificate));
            auth.mount = mount;
            VaultAuth::Tls(auth)
        }),
        json!({}),
    ));
    for (usual, auth, body) in methods {
        for (mount, path) in [(None, usual), (Some("teams/mesh"), "teams/mesh")] {
            let made = login(auth(mount.map(str::to_owned))).await;
            assert_eq!(made, (format!("/v1/auth/{path}/login"), body.clone()));
        }
    }
}

#[tokio::test]
async fn a_token_of_an_identity_provider_must_be_one_line_of_text() {
    let store = secrets(&[("jwt", "a.b\n.c")]).await;
    let auth = VaultAuth::Jwt(JwtAuth::new(DataSource::Secret("jwt".to_owned())));
    let server = CannedServer::start().await.unwrap();
    server.answer(CannedResponse::json(200, "{}").for_path("/v1/sys/health"));
    let error = issuer(settings(&server.url(), auth), &store)
        .check()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("JSON Web Token"), "{error}");
}

#[cfg(feature = "aws-auth")]
mod aws {
    use std::collections::BTreeMap;

    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use meshca_core::resource::{AwsAuth, AwsAuthType};

    use super::*;

    fn text(body: &Value, field: &str) -> String {
        let bytes = BASE64_STANDARD.decode(body[field].as_str().unwrap());
        String::from_utf8(bytes.unwrap()).unwrap()
    }

    /// Vault may be configured with a regional or private endpoint of STS, and AWS refuses what is signed for another region.
    #[tokio::test]
    async fn the_request_is_signed_for_the_region_and_made_out_to_the_endpoint() {
        for (mount, region, endpoint, host, scope) in [
            (None, None, None, "sts.amazonaws.com", "us-east-1"),
            (
                Some("aws-prod"),
                Some("eu-central-1"),
                None,
                "sts.eu-central-1.amazonaws.com",
                "eu-central-1",
            ),
            (
                None,
                Some("us-gov-west-1"),
                None,
                "sts.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
            ),
            (
                None,
                Some("cn-north-1"),
                None,
                "sts.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
            ),
            (
                None,
                None,
                Some("https://vpce-1-2.sts.eu-west-1.vpce.amazonaws.com"),
                "vpce-1-2.sts.eu-west-1.vpce.amazonaws.com",
                "eu-west-1",
            ),
            (
                None,
                Some("eu-west-1"),
                Some("https://sts.corp.example:8443"),
                "sts.corp.example:8443",
                "eu-west-1",
            ),
        ] {
            let mut auth = AwsAuth::new(AwsAuthType::Iam);
            auth.role = Some("cp".to_owned());
            auth.mount = mount.map(str::to_owned);
            auth.sts_region = region.map(str::to_owned);
            let (path, body) = login_by(VaultAuth::Aws(auth), endpoint).await;
            assert_eq!(path, format!("/v1/auth/{}/login", mount.unwrap_or("aws")));
            assert_eq!(body["role"], "cp");
            assert_eq!(text(&body, "iam_request_url"), format!("https://{host}/"));
            assert_eq!(
                text(&body, "iam_request_body"),
                "Action=GetCallerIdentity&Version=2011-06-15"
            );
            let headers: BTreeMap<String, Vec<String>> =
                serde_json::from_str(&text(&body, "iam_request_headers")).unwrap();
            assert_eq!(headers["host"], [host]);
            let signature = &headers["authorization"][0];
            assert!(
                signature.contains(&format!("/{scope}/sts/aws4_request")),
                "{signature}"
            );
        }
    }

    #[tokio::test]
    async fn an_endpoint_without_a_region_is_refused_before_anything_is_sent() {
        let mut auth = AwsAuth::new(AwsAuthType::Iam);
        auth.role = Some("cp".to_owned());
        let store = secrets(&[]).await;
        let settings = settings("https://vault.example", VaultAuth::Aws(auth))
            .with_sts_endpoint("https://sts.corp.example");
        let error = meshca_vault::VaultIssuer::new(settings, sources(&store), clock()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(
            error.to_string().contains("`auth.aws.stsRegion`"),
            "{error}"
        );
    }
}

/// What STS answers is repeated by Vault, and says nothing about settings here.
#[cfg(feature = "aws-auth")]
#[tokio::test]
async fn a_login_for_another_region_names_the_setting() {
    use meshca_core::resource::{AwsAuth, AwsAuthType};

    let server = CannedServer::start().await.unwrap();
    let refusal = "error making upstream request: received error code 403 from STS: <ErrorResponse \
        xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>Sender</Type>\n    \
        <Code>SignatureDoesNotMatch</Code>\n    <Message>Credential should be scoped to a valid region, not \
        'us-east-1'. </Message>\n  </Error>\n</ErrorResponse>";
    let refusal = json!({"errors": [refusal]}).to_string();
    server.answer(CannedResponse::json(400, refusal).for_path("/v1/auth/"));
    let health = r#"{"version": "1.21.0", "enterprise": false}"#;
    for _ in 0..4 {
        server.answer(CannedResponse::json(200, health).for_path("/v1/sys/health"));
    }
    let auth = VaultAuth::Aws(AwsAuth::new(AwsAuthType::Iam));
    let conf = VaultConf::new(server.url(), ROLE, auth);
    let settings = VaultSettings::new(conf, domain());
    let settings = settings.with_aws_access_key("AKIAEXAMPLE", "hush".into(), None);
    let issuer = issuer(settings, &secrets(&[]).await);
    let key = meshca_core::PrivateKey::generate(meshca_core::KeyType::P256).unwrap();
    let now = meshca_core::Clock::now(&*clock());
    let request = meshca_core::CertificateRequest::for_key(spec(), &key, now).unwrap();
    let error = issuer.sign(&request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    let text = error.to_string();
    for words in [
        "set `stsRegion` under `auth.aws` to the `sts_region` of its config (`vault read auth/aws/config/client`)",
        "not 'us-east-1'",
    ] {
        assert!(text.contains(words), "{text}");
    }
}

mod vault {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use base64::Engine;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use meshca_testenv::needs;
    use meshca_testenv::servers::Vault;

    use super::*;

    /// An identity provider.
    struct Provider(EcdsaKeyPair);

    impl Provider {
        fn new() -> Self {
            Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
        }

        fn public_key(&self) -> String {
            let der = self.0.public_key().as_der().unwrap();
            let base64 = BASE64_STANDARD.encode(der.as_ref());
            format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n")
        }

        /// A JSON Web Token (RFC 7519) that is good for a minute.
        fn token(&self, subject: &str) -> String {
            let now = meshca_core::Clock::now(&*clock());
            let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let part = |json: Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
            let header = part(json!({"alg": "ES256", "typ": "JWT"}));
            let claims = part(json!({
                "iss": "https://idp.example", "sub": subject, "aud": "vault", "iat": now, "exp": now + 60,
            }));
            let message = format!("{header}.{claims}");
            let signature = self
                .0
                .sign(&SystemRandom::new(), message.as_bytes())
                .unwrap();
            format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_a_token_of_an_identity_provider() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        vault
            .write("sys/auth/gitlab", json!({"type": "jwt"}))
            .await
            .unwrap();
        set_up(&vault, "ec").await;
        let provider = Provider::new();
        let config = json!({
            "jwt_validation_pubkeys": provider.public_key(),
            "bound_issuer": "https://idp.example",
        });
        vault.write("auth/gitlab/config", config).await.unwrap();
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault",
            "bound_subject": "control-plane", "token_policies": "mesh",
        });
        vault
            .write("auth/gitlab/role/control-plane", role)
            .await
            .unwrap();
        let store = secrets(&[("jwt", &provider.token("control-plane"))]).await;
        let mut auth = JwtAuth::new(DataSource::Secret("jwt".to_owned()));
        auth.mount = Some("gitlab".to_owned());
        auth.role = Some("control-plane".to_owned());
        let settings = settings(vault.address(), VaultAuth::Jwt(auth));
        let ours = issuer(settings.clone(), &store);
        assert_eq!(ours.check().await.unwrap().warnings, [""; 0]);
        ours.issue(&spec(), &*clock()).await.unwrap();

        // Somebody else's, and a correction that is found without a restart.
        let other = provider.token("other");
        put(&store, "jwt", &other).await;
        let issuer = issuer(settings, &store);
        let error = issuer.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        let text = error.to_string();
        assert!(
            text.contains("refused the login at `auth/gitlab`"),
            "{text}"
        );
        assert!(text.contains("`bound_subject`"), "{text}");
        assert!(!text.contains(&other), "{text}");
        put(&store, "jwt", &provider.token("control-plane")).await;
        issuer.check().await.unwrap();
    }
}
