//! The environment decides nothing that the settings decide: no proxy, endpoint, region, FIPS or key.

use std::fs;
use std::path::Path;
use std::process::Command;

use meshca_acm::{AcmSettings, AssumedRole};
use meshca_core::Issuer;
use meshca_core::resource::AcmConf;
use meshca_testenv::http::RecordedRequest;

use crate::common::*;

/// What the parent tells its child: what to do, and where the server and the proxy of the settings are.
const TASK: &str = "MESHCA_TEST_TASK";
const SERVER: &str = "MESHCA_TEST_SERVER";
const ROLE: &str = "arn:aws:iam::210987654321:role/pca-issuer";

/// Has the CA described, of which nothing comes.
async fn ask(settings: AcmSettings) {
    bare(settings).trust_bundle().await.unwrap_err();
}

/// What the program itself does under the environment of the next tests.
#[tokio::test]
async fn child_under_an_environment() {
    let (Ok(task), Ok(server)) = (std::env::var(TASK), std::env::var(SERVER)) else {
        return;
    };
    let plain = |fips: bool| {
        let mut conf = conf(ARN);
        conf.fips = fips;
        AcmSettings::new(conf, domain()).unwrap()
    };
    match task.as_str() {
        "endpoints" => ask(settings(server, ARN)).await,
        "sts endpoint" => {
            let role = AssumedRole::new(ROLE).with_sts_endpoint(server);
            ask(plain(false).with_role(role)).await;
        }
        "no endpoint" => ask(plain(false).with_proxy(server)).await,
        "no sts endpoint" => {
            let role = AssumedRole::new(ROLE);
            ask(plain(false).with_role(role).with_proxy(server)).await;
        }
        "own identity" => {
            let settings = AcmSettings::new(AcmConf::new(ARN), domain()).unwrap();
            ask(settings.with_endpoint(&server).with_proxy(server)).await;
        }
        "fips of sts" => {
            let role = AssumedRole::new(ROLE);
            ask(plain(true).with_role(role).with_proxy(server)).await;
        }
        other => panic!("{other}"),
    }
}

/// The program for a task, where the environment says something else of everything.
fn child(task: &str, server: &str, elsewhere: &str) -> Command {
    let temp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = temp.join(format!("aws-{}", task.replace(' ', "-")));
    let profile = format!(
        "region = eu-west-3\nuse_fips_endpoint = true\nendpoint_url = {elsewhere}\n\
         aws_access_key_id = AKIAELSEWHERE\naws_secret_access_key = elsewhere\n"
    );
    let profiles = format!("[default]\n{profile}[profile other]\n{profile}[other]\n{profile}");
    fs::write(&file, profiles).unwrap();

    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", "environment::child_under_an_environment"]);
    program.env(TASK, task).env(SERVER, server);
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        program.env(variable, elsewhere);
        program.env(variable.to_lowercase(), elsewhere);
    }
    program.env_remove("NO_PROXY").env_remove("no_proxy");
    for variable in [
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_ACM_PCA",
        "AWS_ENDPOINT_URL_STS",
    ] {
        program.env(variable, elsewhere);
    }
    for (variable, value) in [
        ("AWS_USE_FIPS_ENDPOINT", "true"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "true"),
        ("AWS_REGION", "eu-west-3"),
        ("AWS_DEFAULT_REGION", "eu-west-3"),
        ("AWS_PROFILE", "other"),
        ("AWS_ACCESS_KEY_ID", "AKIAELSEWHERE"),
        ("AWS_SECRET_ACCESS_KEY", "elsewhere"),
    ] {
        program.env(variable, value);
    }
    program.env("AWS_CONFIG_FILE", &file);
    program.env("AWS_SHARED_CREDENTIALS_FILE", &file);
    program
}

async fn run(mut program: Command) {
    let output = tokio::task::spawn_blocking(move || program.output());
    let output = output.await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Does a task, and returns what reached the server of the settings. Nothing reaches another one.
async fn under_another_environment(task: &str) -> Vec<RecordedRequest> {
    let (server, elsewhere) = (canned().await, canned().await);
    run(child(task, &server.url(), &elsewhere.url())).await;
    assert_eq!(elsewhere.connections(), 0, "{task}");
    let requests = server.requests();
    assert!(!requests.is_empty(), "{task}");
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_those_of_the_settings() {
    const SETTINGS: &str = "Credential=AKIAIOSFODNN7EXAMPLE/";
    for (task, key, scope) in [
        ("endpoints", SETTINGS, "/us-east-1/acm-pca/aws4_request"),
        ("sts endpoint", SETTINGS, "/us-east-1/sts/aws4_request"),
        // Only who the control plane is stands in the environment.
        (
            "own identity",
            "Credential=AKIAELSEWHERE/",
            "/us-east-1/acm-pca/aws4_request",
        ),
    ] {
        for request in under_another_environment(task).await {
            let signed = request.header("authorization").unwrap();
            assert!(signed.contains(scope), "{task}: {signed}");
            assert!(signed.contains(key), "{task}: {signed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_those_of_the_settings() {
    for (task, target) in [
        ("no endpoint", "acm-pca.us-east-1.amazonaws.com:443"),
        ("no sts endpoint", "sts.us-east-1.amazonaws.com:443"),
        ("fips of sts", "sts-fips.us-east-1.amazonaws.com:443"),
    ] {
        for request in under_another_environment(task).await {
            assert_eq!((request.method(), request.path()), ("CONNECT", target));
        }
    }
}

/// The exception that the guide names: a web identity is shown where the environment says.
#[tokio::test(flavor = "multi_thread")]
async fn the_own_identity_comes_from_the_standard_places() {
    let (server, elsewhere) = (canned().await, canned().await);
    let mut program = child("own identity", &server.url(), &elsewhere.url());
    let token = Path::new(env!("CARGO_TARGET_TMPDIR")).join("aws-web-identity");
    fs::write(&token, "a.b.c").unwrap();
    for variable in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
    ] {
        program.env_remove(variable);
    }
    // No profile of the user who runs this.
    program.env("HOME", env!("CARGO_TARGET_TMPDIR"));
    program.env("AWS_WEB_IDENTITY_TOKEN_FILE", &token);
    program.env("AWS_ROLE_ARN", ROLE);
    run(program).await;
    assert_eq!(elsewhere.connections(), 0);
    let requests = server.requests();
    assert!(!requests.is_empty());
    for request in requests {
        // By the proxy of the settings, as everything.
        assert!(request.path().starts_with(&elsewhere.url()), "{request:?}");
        assert!(request.text().contains("Action=AssumeRoleWithWebIdentity"));
    }
}
