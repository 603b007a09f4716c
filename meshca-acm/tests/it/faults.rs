//! What goes wrong between us and AWS, and that a certificate is paid for once.

mod moto {
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::time::Duration;

    use meshca_acm::AcmIssuer;
    use meshca_core::resource::{AcmConf, AwsCredentials, DataSource};
    use meshca_core::secret::{LocalSources, SourceReader};
    use meshca_core::{
        CertificateRequest, Clock, Error, ErrorKind, Expect, Issuer, IssuingCa, KeyType,
        MemorySecretStore, PrivateKey, Retry, SecretKey, SecretStore,
    };
    use meshca_testenv::http::{CannedResponse, CannedServer};
    use meshca_testenv::relay::Relay;
    use meshca_testenv::servers::{Aws, AwsCaOptions};
    use serde_json::{Value, json};

    use crate::common::*;
    use crate::needs;

    async fn start() -> (Aws, String) {
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        aws.control(json!({"reset": true})).await.unwrap();
        (aws, arn)
    }

    fn request() -> CertificateRequest {
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        CertificateRequest::for_key(spec(), &key, clock().now()).unwrap()
    }

    fn fail(operation: &str, error: &str, status: u16, times: u32, after: bool) -> Value {
        json!({"fail": {
            "operation": operation, "error": error, "message": "as told",
            "status": status, "times": times, "after": after,
        }})
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_certificate_is_paid_for_once() {
        needs!();
        let (aws, arn) = start().await;
        let issuer = issuer(settings(aws.address(), &arn).with_timeout(Duration::from_secs(6)));
        // (what goes wrong, calls of IssueCertificate, whether the first try succeeds)
        for (controls, asked, at_once) in [
            (vec![], 1, true),
            (
                vec![fail(
                    "IssueCertificate",
                    "ThrottlingException",
                    400,
                    2,
                    false,
                )],
                3,
                true,
            ),
            (
                vec![fail("IssueCertificate", "InternalFailure", 500, 1, true)],
                2,
                true,
            ),
            (
                vec![fail("IssueCertificate", "ServiceUnavailable", 503, 2, true)],
                3,
                true,
            ),
            (
                vec![fail("GetCertificate", "ThrottlingException", 400, 2, false)],
                1,
                true,
            ),
            (
                vec![fail("GetCertificate", "InternalFailure", 500, 1, true)],
                1,
                true,
            ),
            (
                vec![fail(
                    "GetCertificate",
                    "AccessDeniedException",
                    400,
                    1,
                    false,
                )],
                1,
                false,
            ),
            (
                vec![fail(
                    "GetCertificate",
                    "RequestFailedException",
                    400,
                    1,
                    false,
                )],
                1,
                false,
            ),
            (vec![json!({"polls": 3})], 1, true),
            (vec![json!({"polls": 1000})], 1, false),
        ] {
            aws.control(json!({"reset": true})).await.unwrap();
            for control in &controls {
                aws.control(control.clone()).await.unwrap();
            }
            let request = request();
            let outcome = issuer.issue_for(&request, &*clock()).await;
            assert_eq!(outcome.is_ok(), at_once, "{controls:?}: {outcome:?}");
            if let Err(error) = outcome {
                assert_ne!(error.retry(), Retry::Never, "{error}");
                // The fault is over, but for the certificate that is in progress for ever: then for new ones.
                aws.control(json!({"polls": 0})).await.unwrap();
                let again = issuer.issue_for(&request, &*clock()).await;
                let stuck = controls.iter().any(|it| it["polls"] == 1000);
                assert!(again.is_ok() || stuck, "{again:?}");
            }
            assert_eq!(calls(&aws, "IssueCertificate").await, asked, "{controls:?}");
            assert_eq!(issued(&aws, &arn).await, 1, "{controls:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_quota_that_is_used_up_is_final_for_ten_minutes() {
        needs!();
        let (aws, arn) = start().await;
        aws.control(json!({"lifetime_quota": 2})).await.unwrap();
        let issuer = issuer(settings(aws.address(), &arn));
        let mut refused = 0;
        for _ in 0..3 {
            if let Err(error) = issuer.issue(&spec(), &*clock()).await {
                assert_eq!(
                    (error.kind(), error.retry()),
                    (ErrorKind::Denied, Retry::After(Duration::from_secs(600)))
                );
                assert!(error.to_string().contains("mode: Intermediate"), "{error}");
                refused += 1;
            }
        }
        assert!(refused >= 1);
        // The SDK takes it for throttling, and is told not to try again.
        assert_eq!(calls(&aws, "IssueCertificate").await, 3);
        // Once it was raised, nobody has to do anything here.
        aws.control(json!({"lifetime_quota": null})).await.unwrap();
        issuer.issue(&spec(), &*clock()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_aws_refuses() {
        needs!();
        let (aws, arn) = start().await;
        for (operation, code, status, kind, words) in [
            (
                "IssueCertificate",
                "AccessDeniedException",
                400,
                ErrorKind::Denied,
                r#""Action": "acm-pca:IssueCertificate""#,
            ),
            (
                "GetCertificate",
                "AccessDeniedException",
                400,
                ErrorKind::Denied,
                r#""Action": "acm-pca:GetCertificate""#,
            ),
            (
                "DescribeCertificateAuthority",
                "AccessDeniedException",
                400,
                ErrorKind::Denied,
                "acm-pca:DescribeCertificateAuthority",
            ),
            (
                "GetCertificateAuthorityCertificate",
                "AccessDeniedException",
                400,
                ErrorKind::Denied,
                "acm-pca:GetCertificateAuthorityCertificate",
            ),
            (
                "IssueCertificate",
                "ThrottlingException",
                400,
                ErrorKind::RateLimited,
                "raise the quota",
            ),
            (
                "IssueCertificate",
                "InvalidStateException",
                400,
                ErrorKind::Unavailable,
                "not active",
            ),
            (
                "IssueCertificate",
                "MalformedCSRException",
                400,
                ErrorKind::InvalidRequest,
                "CSR",
            ),
            (
                "IssueCertificate",
                "InvalidArgsException",
                400,
                ErrorKind::InvalidRequest,
                "InvalidArgs",
            ),
            (
                "IssueCertificate",
                "ExpiredTokenException",
                400,
                ErrorKind::Unauthenticated,
                "expired",
            ),
            (
                "IssueCertificate",
                "UnrecognizedClientException",
                400,
                ErrorKind::Unauthenticated,
                "does not know",
            ),
            (
                "IssueCertificate",
                "RequestExpired",
                400,
                ErrorKind::Unauthenticated,
                "clock",
            ),
            (
                "IssueCertificate",
                "InternalFailure",
                500,
                ErrorKind::Unavailable,
                "failed",
            ),
        ] {
            aws.control(json!({"reset": true})).await.unwrap();
            aws.control(fail(operation, code, status, 100, false))
                .await
                .unwrap();
            let issuer = issuer(settings(aws.address(), &arn));
            let error = issuer.issue(&spec(), &*clock()).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{operation} {code}: {error}");
            assert!(
                error.to_string().contains(words),
                "{operation} {code}: {error}"
            );
            // What check says is the same, and it costs nothing.
            let checked = issuer.check().await;
            if kind == ErrorKind::Denied {
                let error = checked.unwrap_err();
                assert!(
                    error.to_string().contains(words),
                    "{operation} {code}: {error}"
                );
            }
            assert_eq!(
                issued(&aws, &arn).await,
                u64::from(operation == "GetCertificate")
            );
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_ca_that_cannot_be_used() {
        needs!();
        let (aws, arn) = start().await;
        let pending = aws
            .call(
                "CreateCertificateAuthority",
                json!({
                    "CertificateAuthorityType": "ROOT",
                    "CertificateAuthorityConfiguration": {
                        "KeyAlgorithm": "EC_prime256v1",
                        "SigningAlgorithm": "SHA256WITHECDSA",
                        "Subject": {"CommonName": "pending"},
                    },
                }),
            )
            .await
            .unwrap();
        let pending = pending["CertificateAuthorityArn"]
            .as_str()
            .unwrap()
            .to_owned();
        let unknown = {
            let (before, _) = arn.rsplit_once('-').unwrap();
            format!("{before}-000000000000")
        };
        let deleted = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        aws.set_status(&deleted, "DISABLED").await.unwrap();
        aws.call(
            "DeleteCertificateAuthority",
            json!({"CertificateAuthorityArn": deleted}),
        )
        .await
        .unwrap();
        for (arn, kind, words) in [
            (&pending, ErrorKind::Unavailable, "install its certificate"),
            (&unknown, ErrorKind::NotFound, "correct the ARN"),
            (&deleted, ErrorKind::Unavailable, "restore it"),
        ] {
            let issuer = issuer(settings(aws.address(), arn));
            for error in [
                issuer.issue(&spec(), &*clock()).await.unwrap_err(),
                issuer.check().await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), kind, "{error}");
                assert!(error.to_string().contains(words), "{error}");
            }
        }
        // One that is disabled while it is in use, and enabled again.
        let issuer = issuer(settings(aws.address(), &arn));
        issuer.issue(&spec(), &*clock()).await.unwrap();
        aws.set_status(&arn, "DISABLED").await.unwrap();
        let error = issuer.issue(&spec(), &*clock()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, Retry::Backoff),
            "{error}"
        );
        let error = issuer.check().await.unwrap_err();
        assert!(error.to_string().contains("--status ACTIVE"), "{error}");
        aws.set_status(&arn, "ACTIVE").await.unwrap();
        issuer.issue(&spec(), &*clock()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_thousand_at_once_within_the_quotas() {
        needs!();
        let (aws, arn) = start().await;
        // As AWS has them, but for the factor of four that this test can spare.
        aws.control(json!({"rate": {"IssueCertificate": 100, "GetCertificate": 300}, "polls": 1}))
            .await
            .unwrap();
        let rate = |per_second| NonZeroU32::new(per_second).unwrap();
        let settings = settings(aws.address(), &arn)
            .with_issue_rate(rate(100))
            .with_fetch_rate(rate(300));
        let issuer = Arc::new(issuer(settings));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let issuer = Arc::clone(&issuer);
            tasks.spawn(async move { issuer.issue(&spec(), &*clock()).await.map(drop) });
        }
        let failed: Vec<Error> = tasks
            .join_all()
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed[0]);
        assert_eq!(issued(&aws, &arn).await, 1000);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn credentials() {
        needs!();
        let (aws, arn) = start().await;
        let named = |name: &str| {
            let mut conf = AcmConf::new(&arn);
            conf.credentials = Some(AwsCredentials::new(
                DataSource::Secret("aws-access-key".to_owned()),
                DataSource::Secret(name.to_owned()),
            ));
            meshca_acm::AcmSettings::new(conf, domain())
                .unwrap()
                .with_endpoint(aws.address())
        };
        let store = Arc::new(MemorySecretStore::new());
        for (name, value) in [
            ("aws-access-key", "AKIA"),
            ("good", "key-value"),
            ("empty", " \n"),
        ] {
            let key = SecretKey::new("default", name).unwrap();
            store.put(&key, value.into(), Expect::Absent).await.unwrap();
        }
        let with = |settings| {
            let sources = SourceReader::new(store.clone(), "default").unwrap();
            AcmIssuer::new(settings, sources, clock()).map(IssuingCa::new)
        };
        let issuer = with(named("good")).unwrap();
        issuer.issue(&spec(), &*clock()).await.unwrap();
        assert!(!format!("{issuer:?}").contains("key-value"));

        for (name, words) in [("gone", "gone"), ("empty", "accessKeySecret")] {
            let error = with(named(name))
                .unwrap()
                .issue(&spec(), &*clock())
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
            let text = error.to_string();
            assert!(text.contains(words), "{text}");
            assert!(text.contains("awsCredentials"), "{text}");
        }

        // A hosted control plane does not lend its own identity.
        let own = meshca_acm::AcmSettings::new(AcmConf::new(&arn), domain()).unwrap();
        let sources = SourceReader::new(store, "default")
            .unwrap()
            .with_local_sources(LocalSources::Refused);
        let error = AcmIssuer::new(own, sources, clock()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connections_that_fail() {
        needs!();
        let (aws, arn) = start().await;
        let address = aws.address();
        let target = address.trim_start_matches("http://").parse().unwrap();
        let relay = Relay::start(target).await.unwrap();
        let issuer = issuer(settings(format!("http://{}", relay.address()), &arn));
        issuer.issue(&spec(), &*clock()).await.unwrap();
        relay.cut();
        let error = issuer.issue(&spec(), &*clock()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, Retry::Backoff),
            "{error}"
        );
        relay.restore();
        issuer.issue(&spec(), &*clock()).await.unwrap();
        // Nobody there at all.
        let bundle = issuer.refresh().await.unwrap();
        drop(aws);
        let error = issuer.issue(&spec(), &*clock()).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Backoff, "{error}");
        // Whom to trust is known all the same.
        assert_eq!(issuer.trust(&*clock()).await.unwrap(), bundle);
    }

    /// What no AWS would say.
    #[tokio::test(flavor = "multi_thread")]
    async fn answers_that_are_none() {
        for (response, kind) in [
            (
                CannedResponse::new(200).with_body("<html>"),
                ErrorKind::BadResponse,
            ),
            (CannedResponse::json(200, "{}"), ErrorKind::BadResponse),
            (
                CannedResponse::new(403).with_body("<html>"),
                ErrorKind::Denied,
            ),
            (CannedResponse::new(404), ErrorKind::BadResponse),
        ] {
            let server = CannedServer::start().await.unwrap();
            for _ in 0..10 {
                server.answer(response.clone());
            }
            let issuer = issuer(settings(server.url(), ARN));
            let error = issuer.trust_bundle().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{response:?}: {error:?}");
        }
    }
}
