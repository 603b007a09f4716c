//! What is known of a CA, while AWS is away, while the CA does not sign, and when it is renewed.

mod moto {
    use std::sync::Arc;
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use meshca_acm::AcmSettings;
    use meshca_core::resource::DataSource;
    use meshca_core::{Clock, Error, ErrorKind, Issuer, Retry};
    use meshca_testenv::http::{CannedResponse, CannedServer};
    use meshca_testenv::relay::Relay;
    use meshca_testenv::servers::{Aws, AwsCaOptions};
    use meshca_testkit::pki::TestCa;
    use serde_json::json;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep, timeout};

    use crate::common::*;
    use crate::needs;

    /// As long as the facade's wrapper gives an issuer for its trust bundle.
    const LIMIT: Duration = Duration::from_secs(10);

    /// Has another root sign the certificate of a subordinate CA.
    async fn move_below(aws: &Aws, arn: &str, root: &str) {
        let named = json!({"CertificateAuthorityArn": arn});
        let csr = aws.call("GetCertificateAuthorityCsr", named).await.unwrap();
        let order = json!({
            "CertificateAuthorityArn": root,
            "Csr": STANDARD.encode(csr["Csr"].as_str().unwrap()),
            "SigningAlgorithm": "SHA256WITHECDSA",
            "TemplateArn": "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen1/V1",
            "Validity": {"Type": "DAYS", "Value": 365},
        });
        let order = aws.call("IssueCertificate", order).await.unwrap();
        let order = order["CertificateArn"].as_str().unwrap();
        let made = aws.certificate(root, order).await.unwrap();
        let import = json!({
            "CertificateAuthorityArn": arn,
            "Certificate": STANDARD.encode(made["Certificate"].as_str().unwrap()),
            "CertificateChain": STANDARD.encode(made["CertificateChain"].as_str().unwrap()),
        });
        aws.call("ImportCertificateAuthorityCertificate", import)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn all_who_wait_share_one_failure() {
        let server = CannedServer::start().await.unwrap();
        let refused = CannedResponse::new(403).with_body("<html>");
        server.answer(refused.clone().after(Duration::from_millis(500)));
        let issuer = Arc::new(issuer(settings(server.url(), ARN)));
        let mut tasks = JoinSet::new();
        for _ in 0..10 {
            let issuer = Arc::clone(&issuer);
            tasks.spawn(async move { issuer.trust_bundle().await.unwrap_err().kind() });
        }
        assert_eq!(tasks.join_all().await, [ErrorKind::Denied; 10]);
        assert_eq!(server.requests().len(), 1);
        // It is of that moment: whoever comes later asks again.
        server.answer(refused);
        issuer.trust_bundle().await.unwrap_err();
        assert_eq!(server.requests().len(), 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_known_outlives_a_silent_aws() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let target = aws.address().trim_start_matches("http://").parse().unwrap();
        let relay = Relay::start(target).await.unwrap();
        // So long is AWS put off as well.
        let refresh = Duration::from_secs(4);
        let settings =
            settings(format!("http://{}", relay.address()), &arn).with_ca_refresh(refresh);
        let issuer = issuer(settings);
        let known = issuer.trust(&*clock()).await.unwrap();
        relay.go_silent();
        sleep(refresh).await;
        let bundle = timeout(LIMIT, issuer.trust(&*clock())).await.unwrap();
        assert_eq!(bundle.unwrap(), known);
        // Nobody waits for the same once more, for a while; AWS is still being asked.
        let begun = Instant::now();
        assert_eq!(issuer.trust(&*clock()).await.unwrap(), known);
        assert!(begun.elapsed() < Duration::from_millis(2500));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_ca_that_does_not_sign_is_still_trusted() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let known = issuer(settings(aws.address(), &arn));
        let bundle = known.trust_bundle().await.unwrap();
        aws.set_status(&arn, "DISABLED").await.unwrap();
        // One that knew it before, and one that has just been started.
        let started = issuer(settings(aws.address(), &arn));
        for issuer in [&known, &started] {
            assert_eq!(issuer.trust_bundle().await.unwrap(), bundle);
            for error in [
                issuer.issue(&spec(), &*clock()).await.unwrap_err(),
                issuer.check().await.unwrap_err(),
            ] {
                let (kind, retry) = (error.kind(), error.retry());
                assert_eq!((kind, retry), (ErrorKind::Unavailable, Retry::Backoff));
                assert!(error.to_string().contains("enable it"), "{error}");
            }
        }
        aws.set_status(&arn, "ACTIVE").await.unwrap();
        started.issue(&spec(), &*clock()).await.unwrap();

        // AWS does not give the certificate of a deleted CA.
        aws.set_status(&arn, "DISABLED").await.unwrap();
        let named = json!({"CertificateAuthorityArn": arn});
        aws.call("DeleteCertificateAuthority", named).await.unwrap();
        assert_eq!(known.trust_bundle().await.unwrap(), bundle);
        let error = known.issue(&spec(), &*clock()).await.unwrap_err();
        assert!(error.to_string().contains("restore it"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_root_that_is_replaced_stays_trusted() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let (one, other) = (
            aws.create_ca(&AwsCaOptions::new()).await.unwrap(),
            aws.create_ca(&AwsCaOptions::new()).await.unwrap(),
        );
        let below = AwsCaOptions::new().signed_by(&one).with_path_length(1);
        let arn = aws.create_ca(&below).await.unwrap();
        let issuer = issuer(settings(aws.address(), &arn));
        let before = issuer.trust_bundle().await.unwrap();
        let identity = issuer.issue(&spec(), &*clock()).await.unwrap();
        move_below(&aws, &arn, &other).await;
        // What ends in a root that is not known is what has it looked for.
        let after = issuer.issue(&spec(), &*clock()).await.unwrap();
        let bundle = issuer.trust_bundle().await.unwrap();
        assert_eq!(bundle.roots().len(), 2);
        for root in [
            identity.certificate().root(),
            after.certificate().root(),
            &before.roots()[0],
        ] {
            assert!(bundle.contains(root.der()), "{root:?}");
        }
        assert_ne!(identity.certificate().root(), after.certificate().root());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_bought_that_ca_cert_refuses() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let own = issuer(settings(aws.address(), &arn));
        let own = own.trust_bundle().await.unwrap().to_pem();
        aws.control(json!({"reset": true})).await.unwrap();
        let other = TestCa::root("Somebody else", clock().now()).unwrap().pem();
        for (pinned, accepted) in [(other.clone(), false), (own.clone() + &other, true)] {
            let mut conf = conf(&arn);
            conf.ca_cert = Some(DataSource::InlineString(pinned.as_str().into()));
            let settings = AcmSettings::new(conf, domain()).unwrap();
            let issuer = issuer(settings.with_endpoint(aws.address()));
            let refused = |error: Error| {
                assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
                assert!(error.to_string().contains("is not in `caCert`"), "{error}");
            };
            if let Err(error) = issuer.check().await {
                refused(error);
            }
            let outcome = issuer.issue(&spec(), &*clock()).await.map(drop);
            assert_eq!(outcome.is_ok(), accepted, "{outcome:?}");
            outcome.unwrap_or_else(refused);
            assert_eq!(issued(&aws, &arn).await, u64::from(accepted));
        }
    }
}
