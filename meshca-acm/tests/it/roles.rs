//! Temporary keys, and roles that are assumed with what is there.

use std::sync::Arc;

use meshca_acm::{AcmFactory, AcmIssuer, AcmSettings, AssumedRole};
use meshca_core::registry::{BackendConfig, BuildContext};
use meshca_core::resource::{DataSource, Resource};
use meshca_core::secret::{ListedSources, LocalSources};
use meshca_core::{ErrorKind, Issuer, IssuerFactory, MemorySecretStore, Result};
use meshca_testenv::http::{CannedResponse, CannedServer, RecordedRequest};

use crate::common::*;

const ROLE: &str = "arn:aws:iam::210987654321:role/pca-issuer";

async fn canned(response: CannedResponse) -> CannedServer {
    let server = CannedServer::start().await.unwrap();
    for _ in 0..20 {
        server.answer(response.clone());
    }
    server
}

fn assumed() -> CannedResponse {
    CannedResponse::new(200)
        .with_header("content-type", "text/xml")
        .with_body(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
             <AssumedRoleUser><AssumedRoleId>AROA:meshca</AssumedRoleId>\
             <Arn>arn:aws:sts::210987654321:assumed-role/pca-issuer/meshca</Arn></AssumedRoleUser>\
             <Credentials><AccessKeyId>ASIAOFTHEROLE</AccessKeyId><SecretAccessKey>secret-of-the-role</SecretAccessKey>\
             <SessionToken>token-of-the-role</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
             </AssumeRoleResult></AssumeRoleResponse>",
        )
}

/// The key that signed a request, and its session token.
fn signed_by(request: &RecordedRequest) -> (String, Option<String>) {
    let authorization = request.header("authorization").unwrap();
    let key = authorization.split("Credential=").nth(1).unwrap();
    let key = key.split('/').next().unwrap().to_owned();
    (
        key,
        request.header("x-amz-security-token").map(str::to_owned),
    )
}

#[tokio::test]
async fn a_temporary_key_needs_its_token() {
    let aws = canned(CannedResponse::new(400)).await;
    let with = |key: &str, token: Option<&str>| {
        let mut conf = conf(ARN);
        let keys = conf.credentials.as_mut().unwrap();
        keys.access_key = DataSource::InlineString(key.into());
        keys.session_token = token.map(|token| DataSource::InlineString(token.into()));
        bare(
            AcmSettings::new(conf, domain())
                .unwrap()
                .with_endpoint(aws.url()),
        )
    };
    let error = with("ASIAEXAMPLE", None).check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(
        error
            .to_string()
            .contains("set `auth.awsCredentials.sessionToken`"),
        "{error}"
    );
    assert_eq!(aws.connections(), 0, "nothing is sent");

    let error = with("ASIAEXAMPLE", Some("\n"))
        .trust_bundle()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("sessionToken"), "{error}");
    for (key, token) in [("ASIAEXAMPLE", Some("the-token")), ("AKIAEXAMPLE", None)] {
        let issuer = with(key, token);
        issuer.trust_bundle().await.unwrap_err();
        assert!(!format!("{issuer:?}").contains("the-token"));
        let request = aws.requests().pop().unwrap();
        assert_eq!(
            signed_by(&request),
            (key.to_owned(), token.map(str::to_owned))
        );
    }
}

#[tokio::test]
async fn a_role_is_assumed_once_and_with_its_external_id() {
    let (sts, aws) = (
        canned(assumed()).await,
        canned(CannedResponse::new(400)).await,
    );
    let role = AssumedRole::new(ROLE)
        .with_external_id("mesh-1")
        .with_session_name("control-plane")
        .with_sts_endpoint(sts.url());
    let issuer = bare(settings(aws.url(), ARN).with_role(role));
    for _ in 0..3 {
        issuer.trust_bundle().await.unwrap_err();
    }
    let asked = sts.requests();
    assert_eq!(asked.len(), 1);
    let text = asked[0].text();
    for part in [
        "Action=AssumeRole",
        "RoleArn=arn%3Aaws%3Aiam%3A%3A210987654321%3Arole%2Fpca-issuer",
        "ExternalId=mesh-1",
        "RoleSessionName=control-plane",
    ] {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
    assert_eq!(signed_by(&asked[0]).0, "AKIAIOSFODNN7EXAMPLE");
    for request in aws.requests() {
        let token = Some("token-of-the-role".to_owned());
        assert_eq!(signed_by(&request), ("ASIAOFTHEROLE".to_owned(), token));
    }
    let text = format!("{issuer:?}");
    assert!(!text.contains("of-the-role"), "{text}");
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed() {
    let refusal = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>User: x is not authorized to perform: \
         sts:AssumeRole</Message></Error></ErrorResponse>";
    let sts = canned(CannedResponse::new(403).with_body(refusal)).await;
    let aws = canned(CannedResponse::new(400)).await;
    for (external_id, words) in [
        (None, "if it demands an external ID"),
        (
            Some("mesh-1"),
            "with the external ID that the control plane sends",
        ),
    ] {
        let mut role = AssumedRole::new(ROLE).with_sts_endpoint(sts.url());
        if let Some(id) = external_id {
            role = role.with_external_id(id);
        }
        let issuer = bare(settings(aws.url(), ARN).with_role(role));
        let error = issuer.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
        let text = error.to_string();
        for words in [ROLE, "not authorized to perform", words] {
            assert!(text.contains(words), "`{words}` is missing in: {text}");
        }
    }
    assert_eq!(aws.connections(), 0);
}

async fn build(factory: &AcmFactory, conf: &str, local: LocalSources) -> Result<Arc<dyn Issuer>> {
    let text = format!(
        "{{type: Mesh, name: default, mtls: {{backends: [{{name: a, type: acmpca, conf: {{arn: '{ARN}', {conf}}}}}]}}}}"
    );
    let Resource::Mesh(mesh) = Resource::parse(text).unwrap().into_iter().next().unwrap() else {
        panic!("a Mesh");
    };
    let backend = BackendConfig::classic(&mesh.mtls.as_ref().unwrap().backends[0]);
    let context = BuildContext::new(
        "default",
        domain(),
        Arc::new(MemorySecretStore::new()),
        clock(),
    );
    let context = context.with_local_sources(local);
    factory
        .build(&backend, &context)
        .await
        .map(|built| built.issuer)
}

const KEYS: &str = "auth: {awsCredentials: {accessKey: {inlineString: AKIAEXAMPLE}, accessKeySecret: {inlineString: key-value}}}";

/// The author of a resource chooses among what the control plane offers.
#[tokio::test]
async fn a_resource_names_what_the_factory_has() {
    let (chosen, default, sts) = (
        canned(CannedResponse::new(400)).await,
        canned(CannedResponse::new(400)).await,
        canned(assumed()).await,
    );
    let factory = meshca_acm::factory()
        .with_endpoint(default.url())
        .with_named_endpoint("vpce", chosen.url())
        .with_named_proxy("egress", "http://127.0.0.1:9")
        .with_named_role(
            "security",
            AssumedRole::new(ROLE).with_sts_endpoint(sts.url()),
        );
    for (settings, asked) in [
        (String::new(), &default),
        ("endpoint: vpce,".to_owned(), &chosen),
        ("endpoint: vpce, assumeRole: security,".to_owned(), &chosen),
    ] {
        let before = asked.requests().len();
        let conf = format!("{settings} {KEYS}");
        let issuer = build(&factory, &conf, LocalSources::Refused).await.unwrap();
        issuer.trust_bundle().await.unwrap_err();
        let after = asked.requests();
        assert_eq!(after.len(), before + 1, "{settings}");
        let role = settings.contains("assumeRole");
        assert_eq!(signed_by(&after[before]).0 == "ASIAOFTHEROLE", role);
    }
    let before = (
        chosen.connections(),
        default.connections(),
        sts.connections(),
    );
    for (settings, words) in [
        ("endpoint: other,", "(it has: `vpce`)"),
        ("proxy: other,", "(it has: `egress`)"),
        ("assumeRole: other,", "(it has: `security`)"),
    ] {
        let conf = format!("{settings} {KEYS}");
        let error = build(&factory, &conf, LocalSources::Allowed)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    // A role does not lend the control plane's own identity.
    for local in [
        LocalSources::Refused,
        LocalSources::Listed(ListedSources::new().with_folder("/etc")),
    ] {
        let error = build(&factory, "assumeRole: security", local)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
    assert_eq!(
        before,
        (
            chosen.connections(),
            default.connections(),
            sts.connections()
        )
    );
}

#[test]
fn addresses_and_roles_are_no_names() {
    for setting in [
        "endpoint: 'https://evil.example'",
        "proxy: 'http://evil.example'",
        "assumeRole: 'arn:aws:iam::1:role/a'",
    ] {
        let text = format!(
            "{{type: Mesh, name: default, mtls: {{backends: [{{name: a, type: acmpca, conf: {{arn: '{ARN}', {setting}}}}}]}}}}"
        );
        let error = Resource::parse(text).unwrap_err().to_string();
        assert!(
            error.contains("in the options of the control plane"),
            "{error}"
        );
    }
    let _: fn(AcmSettings, _, _) -> Result<AcmIssuer> = AcmIssuer::new;
}

mod moto {
    use meshca_acm::AssumedRole;
    use meshca_testenv::servers::{Aws, AwsCaOptions};

    use crate::common::*;
    use crate::needs;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_certificate_under_an_assumed_role() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let role = AssumedRole::new(super::ROLE)
            .with_external_id("mesh-1")
            .with_sts_endpoint(aws.address());
        let issuer = issuer(settings(aws.address(), &arn).with_role(role));
        issuer.issue(&spec(), &*clock()).await.unwrap();
    }
}
