//! Roots as old companies have them. An anchor is a name and a key, whatever else it says.

use meshca_core::resource::DataSource;
use meshca_core::{Clock, Issuer};
use meshca_testkit::pki::{TestCa, TestCaOptions, to_pem};
use meshca_testkit::samples::*;
use serde_json::json;

use crate::api::server::*;

#[tokio::test(start_paused = true)]
async fn old_roots_are_roots() {
    let now = clock().now();
    let options = || TestCaOptions::new("Old root", now);
    for (what, options) in [
        ("version 1", options().with_version_1()),
        ("SHA-1", options().with_sha1()),
        ("both", options().with_version_1().with_sha1()),
    ] {
        let root = TestCa::root_with(options).unwrap();
        let issuing = root.intermediate("Issuing CA").unwrap();
        for pinned in [true, false] {
            let server = Server::new();
            *server.issuer.lock().unwrap() = Some(json!({
                "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": {"name": "mesh-ca"},
                "spec": {"ca": {}},
                "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "x", "message": ""}]},
            }));
            let request = request();
            let leaf = to_pem(&issuing.sign(&request, now).unwrap());
            let mut verdict = ready(&(leaf + &issuing.pem()));
            verdict["ca"] = json!(k8s_openapi::ByteString(root.pem().into_bytes()));
            server.decide(verdict);
            let mut conf = conf("mesh-ca");
            if pinned {
                conf.ca_cert = Some(DataSource::InlineString(root.pem().as_str().into()));
            }
            let issuer = server.issuer(settings_for(conf, "replica-1", MINUTE));
            let warnings = issuer.check().await.unwrap().warnings;
            assert_eq!(warnings.is_empty(), pinned, "{what}: {warnings:?}");
            let issued = issuer.issue_for(&request, &*clock()).await.unwrap();
            assert_eq!(issued.root().der(), root.certificate(), "{what}");
            let trusted = issuer.trust_bundle().await.unwrap();
            assert_eq!(trusted, root.bundle(domain()).unwrap(), "{what}");
        }
    }
}
