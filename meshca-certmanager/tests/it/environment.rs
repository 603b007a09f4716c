//! What the guide says of kube's client and the environment.

use std::process::Command;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

const PROXY: &str = "MESHCA_TEST_PROXY";

/// A configuration as kube makes it from a kubeconfig.
async fn config(proxy_url: Option<&str>) -> Config {
    let mut cluster = json!({"server": "https://kubernetes.invalid"});
    if let Some(url) = proxy_url {
        cluster["proxy-url"] = json!(url);
    }
    let file = json!({
        "clusters": [{"name": "a", "cluster": cluster}],
        "contexts": [{"name": "a", "context": {"cluster": "a"}}],
        "current-context": "a",
    });
    let file = Kubeconfig::from_yaml(&file.to_string()).unwrap();
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(file, &options)
        .await
        .unwrap()
}

/// What the program itself does under the environment of the next test.
#[tokio::test]
async fn child_under_an_environment() {
    let Ok(proxy) = std::env::var(PROXY) else {
        return;
    };
    let mut from_file = config(None).await;
    assert_eq!(from_file.proxy_url.as_ref().unwrap().to_string(), proxy);
    let other = config(Some("http://other.invalid/")).await;
    assert_eq!(
        other.proxy_url.unwrap().to_string(),
        "http://other.invalid/"
    );
    let made = Config::new("https://kubernetes.invalid".parse().unwrap());
    assert_eq!(made.proxy_url, None);

    // The feature for it is not built in here.
    let error = Client::try_from(from_file.clone()).err().unwrap();
    assert!(error.to_string().contains("proxy"), "{error}");
    from_file.proxy_url = None;
    Client::try_from(from_file).unwrap();
}

#[tokio::test]
async fn kube_takes_a_proxy_from_the_environment_unless_it_is_told_otherwise() {
    for variable in ["HTTPS_PROXY", "https_proxy"] {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "environment::child_under_an_environment"]);
        for other in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"] {
            program.env_remove(other);
        }
        let proxy = "http://proxy.invalid:3128/";
        program.env(PROXY, proxy).env(variable, proxy);
        let output = tokio::task::spawn_blocking(move || program.output());
        let output = output.await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
