//! What `check` says of a CA: everything at once.

use std::time::Duration;

use meshca_core::resource::DataSource;
use meshca_core::{CertificateRequest, Clock, ErrorKind, Issuer, KeyType, PrivateKey};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_testkit::pki::{TestCa, TestCaOptions, to_pem};
use serde_json::json;

use crate::common::*;

fn refused(code: &str) -> CannedResponse {
    CannedResponse::json(
        400,
        json!({"__type": code, "message": "as told"}).to_string(),
    )
}

/// A CA that AWS describes like this, with the answers to the two questions about rights.
async fn canned(
    ca: &TestCa,
    status: &str,
    key: &str,
    short_lived: bool,
    rights: &str,
) -> CannedServer {
    let server = CannedServer::start().await.unwrap();
    let mode = match short_lived {
        true => "SHORT_LIVED_CERTIFICATE",
        false => "GENERAL_PURPOSE",
    };
    let described = json!({"CertificateAuthority": {
        "Arn": ARN, "Status": status, "UsageMode": mode,
        "CertificateAuthorityConfiguration": {
            "KeyAlgorithm": key, "SigningAlgorithm": "SHA256WITHECDSA", "Subject": {"CommonName": "a"},
        },
    }});
    for response in [
        CannedResponse::json(200, described.to_string()),
        CannedResponse::json(200, json!({"Certificate": ca.pem()}).to_string()),
        refused(rights),
        refused(rights),
    ] {
        server.answer(response);
    }
    server
}

#[tokio::test]
async fn all_that_is_wrong_is_in_one_report() {
    let now = clock().now();
    let day = Duration::from_secs(24 * 3600);
    let options = TestCaOptions::new("Example root", now).with_permitted_dns("example.org");
    let root = TestCa::root_with(options).unwrap();
    let aws = canned(
        &root,
        "DISABLED",
        "EC_prime256v1",
        true,
        "AccessDeniedException",
    )
    .await;
    let mut conf = conf(ARN);
    let other = TestCa::root("Another root", now).unwrap();
    conf.ca_cert = Some(DataSource::InlineString(other.pem().as_str().into()));
    let settings = meshca_acm::AcmSettings::new(conf, domain()).unwrap();
    let issuer = bare(settings.with_endpoint(aws.url()).with_lifetime(30 * day));
    let error = issuer.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let text = error.to_string();
    for words in [
        "4 problems",
        r#""Action": "acm-pca:IssueCertificate""#,
        r#""Action": "acm-pca:GetCertificate""#,
        "--status ACTIVE",
        "`CN=Example root`, which is not in `caCert`",
        "warnings: (1)",
        "seven days at most",
        "is constrained to some names",
        "AWS bills each certificate",
    ] {
        assert!(text.contains(words), "`{words}` is missing in: {text}");
    }
}

/// Whether peers have its root from elsewhere is not known here.
#[tokio::test]
async fn a_ca_cert_that_is_an_intermediate_alone_is_a_warning() {
    let root = TestCa::root("Corporate root", clock().now()).unwrap();
    let below = root.intermediate("Mesh CA").unwrap();
    for (pem, warned) in [(below.pem(), true), (below.pem() + &root.pem(), false)] {
        let aws = canned(
            &below,
            "ACTIVE",
            "EC_prime256v1",
            false,
            "AccessDeniedException",
        )
        .await;
        let mut conf = conf(ARN);
        conf.ca_cert = Some(DataSource::InlineString(pem.as_str().into()));
        let settings = meshca_acm::AcmSettings::new(conf, domain()).unwrap();
        let issuer = bare(settings.with_endpoint(aws.url()));
        let text = issuer.check().await.unwrap_err().to_string();
        for words in [
            "`caCert` holds the intermediate CA `CN=Mesh CA` and not the root that it leads to",
            "add the certificate of `CN=Corporate root` to `caCert`",
        ] {
            assert_eq!(text.contains(words), warned, "`{words}`: {text}");
        }
    }
}

/// Where the key of the CA is of no use, the rights are looked at all the same.
#[tokio::test]
async fn a_key_that_proxies_cannot_verify() {
    let root = TestCa::root("Example root", clock().now()).unwrap();
    let aws = canned(&root, "ACTIVE", "ML_DSA_65", false, "AccessDeniedException").await;
    let issuer = bare(settings(aws.url(), ARN));
    let text = issuer.check().await.unwrap_err().to_string();
    for words in ["ML_DSA_65", "acm-pca:IssueCertificate"] {
        assert!(text.contains(words), "`{words}` is missing in: {text}");
    }
}

/// An AWS that cannot be reached says nothing of rights: that is one problem and not three.
#[tokio::test]
async fn what_cannot_be_asked_is_one_problem() {
    let issuer = bare(settings("http://127.0.0.1:9", ARN).with_fleet(1));
    let error = issuer.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(!error.to_string().contains("problems"), "{error}");
}

mod moto {
    use meshca_core::Issuer;
    use meshca_testenv::servers::{Aws, AwsCaOptions};
    use serde_json::json;

    use crate::common::*;
    use crate::needs;

    /// A policy that lacks what only the check needs.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_certificate_outranks_a_check_that_fails() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let issuer = issuer(settings(aws.address(), &arn).with_fleet(1));
        issuer.issue(&spec(), &*clock()).await.unwrap();
        let denied = json!({"fail": {
            "operation": "DescribeCertificateAuthority", "error": "AccessDeniedException",
            "message": "as told", "status": 400, "times": 100, "after": false,
        }});
        aws.control(denied).await.unwrap();
        let warnings = issuer.check().await.unwrap().warnings;
        assert!(
            warnings[0].contains("a certificate was issued since the last one")
                && warnings[0].contains("acm-pca:DescribeCertificateAuthority"),
            "{warnings:?}"
        );
        // It is proven once.
        issuer.check().await.unwrap_err();
    }
}

/// Roots as old companies have them, above a CA at AWS. An anchor is a name and a key.
#[tokio::test]
async fn old_roots_are_roots() {
    let now = clock().now();
    let options = || TestCaOptions::new("Old root", now);
    for (what, options) in [
        ("version 1", options().with_version_1()),
        ("SHA-1", options().with_sha1()),
        ("both", options().with_version_1().with_sha1()),
    ] {
        let root = TestCa::root_with(options).unwrap();
        let ca = root.intermediate("Issuing CA").unwrap();
        let server = CannedServer::start().await.unwrap();
        let described = json!({"CertificateAuthority": {
            "Arn": ARN, "Status": "ACTIVE", "UsageMode": "GENERAL_PURPOSE",
            "CertificateAuthorityConfiguration": {
                "KeyAlgorithm": "EC_prime256v1", "SigningAlgorithm": "SHA256WITHECDSA", "Subject": {"CommonName": "a"},
            },
        }});
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        let request = CertificateRequest::for_key(spec(), &key, now).unwrap();
        let leaf = to_pem(&ca.sign(&request, now).unwrap());
        for answer in [
            described,
            json!({"Certificate": ca.pem(), "CertificateChain": root.pem()}),
            json!({"CertificateArn": format!("{ARN}/certificate/1")}),
            json!({"Certificate": leaf, "CertificateChain": ca.pem() + &root.pem()}),
        ] {
            server.answer(CannedResponse::json(200, answer.to_string()));
        }
        let issuer = issuer(settings(server.url(), ARN));
        let issued = issuer.issue_for(&request, &*clock()).await.unwrap();
        assert_eq!(issued.root().der(), root.certificate(), "{what}");
        let known = issuer.known().unwrap();
        assert_eq!(known, root.bundle(domain()).unwrap(), "{what}");
        for _ in 0..2 {
            server.answer(refused("MalformedCSRException"));
        }
        let text = format!("{:?}", issuer.check().await);
        assert!(!text.contains("Old root"), "{what}: {text}");
    }
}
