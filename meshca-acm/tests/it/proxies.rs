//! Which way requests take to AWS: that of the settings, and no other.

use meshca_acm::AcmSettings;
use meshca_core::Issuer;
use meshca_testenv::proxy::Proxy;

use crate::common::*;

/// Has the CA described, of which nothing comes.
async fn ask(settings: AcmSettings) {
    bare(settings).trust_bundle().await.unwrap_err();
}

#[tokio::test]
async fn each_endpoint_is_reached_by_the_proxy() {
    let proxy = Proxy::start().await.unwrap();
    let aws = canned().await;
    let port = aws.address().port();
    let by_proxy = || {
        let settings = AcmSettings::new(conf(ARN), domain()).unwrap();
        settings.with_proxy(proxy.url())
    };
    // A plain endpoint is asked for as a whole URL, and it answers.
    ask(by_proxy().with_endpoint(aws.url())).await;
    assert_eq!(proxy.targets(), [format!("127.0.0.1:{port}")]);
    assert_eq!(aws.requests().len(), 1);
    let mut known = proxy.targets().len();
    for (fips, endpoint, target) in [
        (false, Some("https://vpce.invalid"), "vpce.invalid:443"),
        (false, None, "acm-pca.us-east-1.amazonaws.com:443"),
        (true, None, "acm-pca-fips.us-east-1.amazonaws.com:443"),
    ] {
        let mut conf = conf(ARN);
        conf.fips = fips;
        let mut settings = AcmSettings::new(conf, domain()).unwrap();
        // This one leads nowhere, so that AWS is not called.
        let nowhere = canned().await;
        settings = settings.with_proxy(nowhere.url());
        if let Some(endpoint) = endpoint {
            settings = settings.with_endpoint(endpoint);
        }
        ask(settings).await;
        let requests = nowhere.requests();
        assert!(!requests.is_empty(), "{target}");
        for request in requests {
            assert_eq!((request.method(), request.path()), ("CONNECT", target));
        }
    }
    known = proxy.targets().len() - known;
    assert_eq!(known, 0);
}

#[test]
fn what_is_no_proxy() {
    for broken in [
        "proxy.example:3128",
        "https://proxy.example",
        "http://",
        "http://user:pw@proxy.example",
        "",
    ] {
        let settings = AcmSettings::new(conf(ARN), domain()).unwrap();
        let settings = settings.with_proxy(broken);
        let error = meshca_acm::AcmIssuer::new(settings, sources(), clock()).unwrap_err();
        assert!(
            error.to_string().contains("http://proxy.example:3128"),
            "{broken}: {error}"
        );
        assert!(!error.to_string().contains("pw"), "{error}");
    }
}

mod moto {
    use meshca_testenv::proxy::Proxy;
    use meshca_testenv::servers::{Aws, AwsCaOptions};

    use crate::common::*;
    use crate::needs;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_certificate_by_way_of_a_proxy() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let proxy = Proxy::start().await.unwrap();
        let issuer = issuer(settings(aws.address(), &arn).with_proxy(proxy.url()));
        issuer.issue(&spec(), &*clock()).await.unwrap();
        let target = aws.address().replace("http://", "");
        assert!(!proxy.targets().is_empty());
        assert!(
            proxy.targets().iter().all(|it| *it == target),
            "{:?}",
            proxy.targets()
        );
    }
}
