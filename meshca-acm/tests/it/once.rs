//! That a certificate is paid for once, also where answers are lost and callers give up, and what is asked for again.

mod moto {
    use std::time::Duration;

    use meshca_core::{
        CertificateRequest, Clock, ErrorKind, Issuer, KeyType, PrivateKey, Retry, SignedChain,
    };
    use meshca_testenv::http::{CannedResponse, CannedServer};
    use meshca_testenv::servers::{Aws, AwsCaOptions};
    use meshca_testkit::pki::TestCa;
    use serde_json::json;
    use tokio::time::{sleep, timeout};

    use crate::common::*;
    use crate::needs;

    /// A request that was made so long ago.
    fn request(key: &PrivateKey, ago: Duration) -> CertificateRequest {
        CertificateRequest::for_key(spec(), key, clock().now() - ago).unwrap()
    }

    fn key() -> PrivateKey {
        PrivateKey::generate(KeyType::P256).unwrap()
    }

    /// AWS that has said what there is to say of a CA, with an EC key.
    async fn canned() -> CannedServer {
        let server = CannedServer::start().await.unwrap();
        let root = TestCa::root("AWS", clock().now()).unwrap();
        let described = json!({"CertificateAuthority": {
            "Status": "ACTIVE",
            "CertificateAuthorityConfiguration": {
                "KeyAlgorithm": "EC_prime256v1", "SigningAlgorithm": "SHA256WITHECDSA", "Subject": {},
            },
        }});
        server.answer(CannedResponse::json(200, described.to_string()));
        server.answer(CannedResponse::json(
            200,
            json!({"Certificate": root.pem()}).to_string(),
        ));
        server
    }

    fn bought() -> CannedResponse {
        let body = json!({"CertificateArn": format!("{ARN}/certificate/1")});
        CannedResponse::json(200, body.to_string())
    }

    fn asked(server: &CannedServer, operation: &str) -> usize {
        let requests = server.requests();
        let operations = requests.iter().filter_map(|it| it.header("x-amz-target"));
        operations.filter(|it| it.ends_with(operation)).count()
    }

    #[tokio::test]
    async fn what_is_paid_for_is_forgotten_when_aws_says_so_only() {
        let whole = || CannedResponse::json(200, json!({"Certificate": "x"}).to_string());
        for (answer, kind, bought_again) in [
            // Answers that are none of AWS'.
            (whole().truncated_at(5), ErrorKind::BadResponse, false),
            (
                CannedResponse::new(200).with_body("<html>"),
                ErrorKind::BadResponse,
                false,
            ),
            (
                CannedResponse::new(404).with_body("<html>"),
                ErrorKind::BadResponse,
                false,
            ),
            (CannedResponse::close(), ErrorKind::Unavailable, false),
            // Those that are.
            (whole(), ErrorKind::BadResponse, true),
            (
                CannedResponse::json(200, "{}"),
                ErrorKind::BadResponse,
                true,
            ),
            (
                CannedResponse::json(
                    400,
                    json!({"__type": "ResourceNotFoundException"}).to_string(),
                ),
                ErrorKind::NotFound,
                true,
            ),
        ] {
            let server = canned().await;
            server.answer(bought());
            let issuer = issuer(settings(server.url(), ARN));
            let request = request(&key(), Duration::ZERO);
            // The SDK asks again by itself where an answer is none.
            for _ in 0..4 {
                server.answer(answer.clone());
            }
            let error = issuer.sign(&request).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{answer:?}: {error:?}");
            assert_eq!(asked(&server, "IssueCertificate"), 1, "{answer:?}");
            let fetched = asked(&server, "GetCertificate");
            for _ in 0..8 {
                server.answer(bought());
            }
            issuer.sign(&request).await.unwrap_err();
            let again = asked(&server, "IssueCertificate") > 1;
            assert_eq!(again, bought_again, "{answer:?}");
            let fetched_again = asked(&server, "GetCertificate") > fetched;
            assert!(fetched_again || bought_again, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn what_is_bought_for_a_caller_who_gave_up_is_fetched_by_the_next() {
        let server = canned().await;
        server.answer(bought().after(Duration::from_millis(500)));
        let issuer = issuer(settings(server.url(), ARN));
        let request = request(&key(), Duration::ZERO);
        tokio::select! {
            outcome = issuer.sign(&request) => panic!("{outcome:?}"),
            _ = server.received(3) => {}
        }
        sleep(Duration::from_millis(1500)).await;
        server.answer(CannedResponse::json(200, "{}"));
        issuer.sign(&request).await.unwrap_err();
        assert_eq!(asked(&server, "IssueCertificate"), 1);
        assert_eq!(asked(&server, "GetCertificate"), 1);
    }

    #[tokio::test]
    async fn a_request_that_is_too_old_is_to_be_made_anew() {
        let server = canned().await;
        let issuer = issuer(settings(server.url(), ARN));
        let old = request(&key(), Duration::from_secs(365 * 24 * 3600));
        let error = issuer.sign(&old).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::InvalidRequest, Retry::Never),
            "{error}"
        );
        assert!(error.to_string().contains("a new request"), "{error}");
        assert_eq!(asked(&server, "IssueCertificate"), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn calls_for_one_request_join() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let issuer = issuer(settings(aws.address(), &arn));
        issuer.trust_bundle().await.unwrap();
        aws.control(json!({"reset": true, "polls": 1}))
            .await
            .unwrap();
        let request = request(&key(), Duration::ZERO);
        let (one, two, three) = tokio::join!(
            issuer.sign(&request),
            issuer.sign(&request),
            issuer.sign(&request)
        );
        let one = one.unwrap();
        for other in [two.unwrap(), three.unwrap()] {
            assert_eq!(one.certificates(), other.certificates());
        }
        assert_eq!(calls(&aws, "IssueCertificate").await, 1);
    }

    /// They have the same ID, and other ends.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_later_request_for_the_same_key_gets_its_own_end() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let issuer = issuer(settings(aws.address(), &arn));
        let bundle = issuer.trust_bundle().await.unwrap();
        aws.control(json!({"reset": true})).await.unwrap();
        let key = key();
        for ago in [3000, 0] {
            let request = request(&key, Duration::from_secs(ago));
            // Verified without its receipt, as if the caller had died before.
            let chain = issuer.sign(&request).await.unwrap();
            let chain = SignedChain::new(chain.certificates().to_vec());
            let certificate = chain.verify(&request, &bundle, clock().now()).unwrap();
            assert_eq!(certificate.validity().not_after(), request.not_after());
        }
        assert_eq!(issued(&aws, &arn).await, 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refusal_by_what_was_known_is_looked_into_once() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let issuer = issuer(settings(aws.address(), &arn));
        issuer.trust_bundle().await.unwrap();
        aws.control(json!({"reset": true})).await.unwrap();
        let fail = json!({"fail": {
            "operation": "IssueCertificate", "error": "ValidationException", "times": 2,
        }});
        aws.control(fail).await.unwrap();
        let request = request(&key(), Duration::ZERO);
        for (retry, looked) in [(Retry::Backoff, 0), (Retry::Never, 1)] {
            let error = issuer.sign(&request).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::InvalidRequest, retry),
                "{error}"
            );
            assert_eq!(calls(&aws, "DescribeCertificateAuthority").await, looked);
        }
        issuer.sign(&request).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn durations_without_end_and_without_length() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        aws.control(json!({"polls": 1})).await.unwrap();
        for (duration, at_once) in [(Duration::MAX, true), (Duration::ZERO, false)] {
            let settings = settings(aws.address(), &arn)
                .with_timeout(duration)
                .with_ca_refresh(duration)
                .with_lifetime(duration);
            let issuer = issuer(settings);
            issuer.check().await.unwrap();
            let request = request(&key(), Duration::ZERO);
            let call = timeout(Duration::from_secs(30), issuer.sign(&request));
            assert_eq!(call.await.unwrap().is_ok(), at_once, "{duration:?}");
            issuer.issue_for(&request, &*clock()).await.unwrap();
        }
    }
}
