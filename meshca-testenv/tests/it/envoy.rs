//! Envoy as a test has it: it starts, serves, stops when told, and leaves nothing behind.

use std::time::Duration;

use meshca_testenv::needs;
use meshca_testenv::servers::{Envoy, Port};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

const WITHIN: Duration = Duration::from_secs(30);

/// One that answers every request on the port with the text.
fn bootstrap(port: &Port, text: &str) -> Value {
    json!({
        "node": {"id": "web-1", "cluster": "web"},
        "static_resources": {"listeners": [listener(port, text)]},
    })
}

fn listener(port: &Port, text: &str) -> Value {
    let routes = json!({"virtual_hosts": [{
        "name": "all",
        "domains": ["*"],
        "routes": [{
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": text}},
        }],
    }]});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network\
            .http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "route_config": routes,
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        }],
    });
    let filter = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    });
    json!({
        "name": "web",
        "address": address(port),
        "filter_chains": [{"filters": [filter]}],
    })
}

fn address(port: &Port) -> Value {
    let address = port.address();
    json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }})
}

async fn live(bootstrap: &Value) -> Envoy {
    let envoy = Envoy::start(bootstrap).await.unwrap();
    envoy.until_live(WITHIN).await.unwrap();
    envoy
}

/// Asks what listens on the port, over a connection of its own.
async fn ask(port: &Port, patience: Duration) -> reqwest::Result<String> {
    let client = Client::builder().no_proxy().timeout(patience).build()?;
    let answer = client.get(format!("http://{}/", port.address())).send();
    answer.await?.error_for_status()?.text().await
}

#[tokio::test]
async fn an_envoy_serves_and_counts() {
    needs!(Envoy::program());
    let port = Port::free().unwrap();
    let begun = Instant::now();
    let mut envoy = live(&bootstrap(&port, "hello")).await;
    println!("Envoy {}, live in {:?}", envoy.version(), begun.elapsed());
    assert!(
        envoy
            .version()
            .starts_with(|first: char| first.is_ascii_digit())
    );
    for _ in 0..3 {
        assert_eq!(ask(&port, WITHIN).await.unwrap(), "hello");
    }
    let stats = envoy
        .until_stats(r"^http\.web\.downstream_rq_\d", WITHIN, |stats| {
            stats["http.web.downstream_rq_2xx"] == 3
        })
        .await
        .unwrap();
    assert_eq!(stats["http.web.downstream_rq_5xx"], 0);
    assert!(!stats.contains_key("server.live"));
    // Gauges, too, and whatever else there is.
    assert_eq!(envoy.stats("").await.unwrap()["server.live"], 1);
    assert!(envoy.stats("(").await.is_err());

    let listeners = envoy.config_dump("static_listeners").await.unwrap();
    assert_eq!(listeners[0]["listener"]["name"], "web");
    assert!(
        envoy
            .config_dump("dynamic_active_secrets")
            .await
            .unwrap()
            .is_empty()
    );
    assert!(envoy.config_dump("nonsense").await.is_err());
    assert!(envoy.certs().await.unwrap().is_empty());
    assert!(envoy.log().unwrap().contains("starting main dispatch loop"));
    assert!(envoy.get("nonsense").await.is_err());
    let ready = envoy.get_text("ready").await.unwrap();
    assert_eq!(ready.trim(), "LIVE");

    envoy.post("healthcheck/fail").await.unwrap();
    assert_eq!(envoy.state().await.unwrap(), "DRAINING");
    envoy.quit().await.unwrap();
    TcpStream::connect(port.address()).await.unwrap_err();
    assert!(envoy.state().await.is_err());
    assert!(envoy.log().unwrap().contains("main dispatch loop exited"));
}

#[tokio::test]
async fn a_paused_envoy_answers_nothing_until_it_goes_on() {
    needs!(Envoy::program());
    let port = Port::free().unwrap();
    let mut envoy = live(&bootstrap(&port, "hello")).await;
    for _ in 0..3 {
        envoy.pause().await.unwrap();
        let short = Duration::from_millis(200);
        let error = ask(&port, short).await.unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
        // One that was asked while it was paused is answered late.
        let asked = ask(&port, WITHIN);
        let resumed = async {
            tokio::time::sleep(short).await;
            envoy.resume().unwrap();
        };
        let (answer, ()) = tokio::join!(asked, resumed);
        assert_eq!(answer.unwrap(), "hello");
    }
    // A process that is stopped ends, too.
    envoy.pause().await.unwrap();
    envoy.kill();
    TcpStream::connect(port.address()).await.unwrap_err();
    assert!(envoy.pause().await.is_err());
    assert!(envoy.resume().is_err());
}

#[tokio::test]
async fn an_envoy_that_was_killed_serves_again_on_its_port() {
    needs!(Envoy::program());
    let port = Port::free().unwrap();
    let mut envoy = live(&bootstrap(&port, "hello")).await;
    assert_eq!(ask(&port, WITHIN).await.unwrap(), "hello");
    envoy.kill();
    let error = ask(&port, WITHIN).await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    envoy.until_live(WITHIN).await.unwrap_err();
    for _ in 0..2 {
        envoy.restart().await.unwrap();
        envoy.until_live(WITHIN).await.unwrap();
        assert_eq!(ask(&port, WITHIN).await.unwrap(), "hello");
    }
    let starts = "starting main dispatch loop";
    assert_eq!(envoy.log().unwrap().matches(starts).count(), 3);
}

#[tokio::test]
async fn a_bootstrap_that_envoy_refuses_is_an_error_with_its_words() {
    needs!(Envoy::program());
    let port = Port::free().unwrap();
    let mut refused = bootstrap(&port, "hello");
    refused["static_resources"]["nonsense"] = json!(true);
    let error = Envoy::start(&refused).await.unwrap_err().to_string();
    assert!(error.contains("envoy.log"), "{error}");
    assert!(error.contains("nonsense"), "{error}");

    let mut ours = bootstrap(&port, "hello");
    ours["admin"] = json!({"address": address(&port)});
    let error = Envoy::start(&ours).await.unwrap_err().to_string();
    assert!(error.contains("admin"), "{error}");
    Envoy::start(&json!([])).await.unwrap_err();
}

#[tokio::test]
async fn an_envoy_without_its_secret_answers_for_itself_and_is_not_live() {
    needs!(Envoy::program());
    let (port, sds) = (Port::free().unwrap(), Port::free().unwrap());
    let mut waiting = bootstrap(&port, "hello");
    let secret = json!({"name": "default", "sds_config": {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
        },
    }});
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    waiting["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{tls}.DownstreamTlsContext"),
            "common_tls_context": {"tls_certificate_sds_secret_configs": [secret]},
        },
    });
    let http = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    // Nobody listens there.
    waiting["static_resources"]["clusters"] = json!([{
        "name": "sds",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "sds", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(&sds)}}]},
        ]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": http,
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
    }]);
    let envoy = Envoy::start(&waiting).await.unwrap();
    envoy
        .until_stats(r"^cluster\.sds\.", WITHIN, |stats| {
            stats["cluster.sds.upstream_cx_connect_fail"] > 0
        })
        .await
        .unwrap();
    assert_eq!(envoy.state().await.unwrap(), "INITIALIZING");
    let warming = envoy.config_dump("dynamic_warming_secrets").await.unwrap();
    assert_eq!(warming[0]["name"], "default");
    let short = Duration::from_millis(200);
    let error = envoy.until_live(short).await.unwrap_err().to_string();
    assert!(error.contains("not live in 200ms"), "{error}");
    assert!(ask(&port, short).await.is_err());
}

#[tokio::test]
async fn envoys_do_not_meet_and_are_gone_when_they_are_dropped() {
    needs!(Envoy::program());
    let (a, b) = (Port::free().unwrap(), Port::free().unwrap());
    let (for_a, for_b) = (bootstrap(&a, "a"), bootstrap(&b, "b"));
    let (first, mut second) = tokio::join!(live(&for_a), live(&for_b));
    assert_eq!(ask(&a, WITHIN).await.unwrap(), "a");
    assert_eq!(ask(&b, WITHIN).await.unwrap(), "b");
    second.kill();
    assert_eq!(ask(&a, WITHIN).await.unwrap(), "a");
    second.restart().await.unwrap();
    second.until_live(WITHIN).await.unwrap();
    first.pause().await.unwrap();
    drop(first);
    assert_eq!(ask(&b, WITHIN).await.unwrap(), "b");
    drop(second);
    for port in [a, b] {
        TcpStream::connect(port.address()).await.unwrap_err();
    }
}
