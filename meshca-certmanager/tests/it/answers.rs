//! Answers that a real API server cannot be made to give.

use std::time::Duration;

use kube::{Client, Config};
use meshca_certmanager::KubeSecretStore;
use meshca_core::{ErrorKind, SecretKey, SecretStore};
use meshca_testenv::http::{CannedResponse, CannedServer};
use serde_json::{Value, json};

const SECRETS: &str = "/api/v1/namespaces/mesh-system/secrets";

fn store(server: &CannedServer) -> KubeSecretStore {
    let config = Config::new(server.url().parse().unwrap());
    KubeSecretStore::new(Client::try_from(config).unwrap(), "mesh-system")
}

fn key() -> SecretKey {
    SecretKey::new("default", "token").unwrap()
}

fn secret(version: &str, value: &str) -> Value {
    json!({
        "metadata": {"name": "token", "resourceVersion": version},
        "type": "system.kuma.io/secret",
        "data": {"value": value},
    })
}

fn list(version: &str, items: Value) -> CannedResponse {
    let list = json!({"metadata": {"resourceVersion": version}, "items": items});
    CannedResponse::json(200, list.to_string()).for_path(format!("{SECRETS}?"))
}

#[tokio::test]
async fn a_watch_that_is_too_old_begins_anew() {
    let server = CannedServer::start().await.unwrap();
    let gone = json!({
        "type": "ERROR",
        "object": {"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"},
    });
    for response in [
        list("10", json!([secret("9", "b25l")])),
        CannedResponse::json(200, format!("{gone}\n")).for_path(format!("{SECRETS}?")),
        list("20", json!([secret("19", "dHdv")])),
        CannedResponse::hang().for_path(format!("{SECRETS}?")),
        CannedResponse::json(200, secret("9", "b25l").to_string())
            .for_path(format!("{SECRETS}/token")),
    ] {
        server.answer(response);
    }
    let store = store(&server);
    let seen = async {
        loop {
            let stored = store.get(&key()).await.unwrap().unwrap();
            if stored.value.expose() == b"two" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_no_secret_is_an_error_and_not_an_absence() {
    let absent = json!({
        "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": "secrets \"token\" not found", "details": {"name": "token", "kind": "secrets"},
    });
    let with_value = |value: Value| {
        let mut secret = secret("1", "");
        secret["data"]["value"] = value;
        secret.to_string()
    };
    for (response, expected) in [
        (CannedResponse::json(404, absent.to_string()), None),
        (
            CannedResponse::new(404).with_body("<html>no such page</html>"),
            Some(ErrorKind::NotFound),
        ),
        (
            CannedResponse::json(200, with_value(json!("c2VjcmV0LXZhbHVl!"))),
            Some(ErrorKind::Unavailable),
        ),
        (
            CannedResponse::json(200, with_value(json!(["secret-value"]))),
            Some(ErrorKind::Unavailable),
        ),
        (
            CannedResponse::json(200, with_value(json!("c2VjcmV0LXZhbHVl"))).truncated_at(60),
            Some(ErrorKind::Unavailable),
        ),
        (CannedResponse::close(), Some(ErrorKind::Unavailable)),
        (CannedResponse::new(401), Some(ErrorKind::Unauthenticated)),
        (CannedResponse::new(500), Some(ErrorKind::Unavailable)),
        // kube itself asks again after 429, for longer than we wait.
        (CannedResponse::new(429), Some(ErrorKind::Unavailable)),
    ] {
        let server = CannedServer::start().await.unwrap();
        // The watch has nothing to say.
        server.answer(CannedResponse::hang().for_path(format!("{SECRETS}?")));
        for _ in 0..20 {
            server.answer(response.clone().for_path(format!("{SECRETS}/token")));
        }
        let outcome = store(&server).get(&key()).await;
        match (&outcome, expected) {
            (Ok(None), None) => {}
            (Err(error), Some(kind)) => {
                assert_eq!(error.kind(), kind, "{response:?}: {error:?}");
                let text = format!("{error:?} {error}");
                assert!(
                    !text.contains("secret-value") && !text.contains("c2VjcmV0"),
                    "{text}"
                );
            }
            _ => panic!("{response:?}: {outcome:?}"),
        }
    }
}
