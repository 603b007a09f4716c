//! What `check` says of an issuer: everything at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use meshca_core::resource::{CertManagerUsage, DataSource, IssuerRef};
use meshca_core::{Clock, ErrorKind, Issuer, Retry};
use meshca_testkit::pki::{TestCa, TestCaOptions};
use meshca_testkit::samples::*;
use serde_json::{Value, json};

use crate::api::server::*;

fn object(ready: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": {"name": "mesh-ca"},
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "x", "message": "secret \"ca\" not found"}]},
    })
}

#[tokio::test(start_paused = true)]
async fn all_that_is_wrong_is_in_one_report() {
    let server = Server::new();
    *server.issuer.lock().unwrap() = Some(object("False", json!({"acme": {}})));
    *server.denied.lock().unwrap() = vec!["watch", "delete"];
    let mut conf = conf("mesh-ca");
    conf.ca_cert = Some(DataSource::Secret("gone".to_owned()));
    let issuer = server.issuer(settings_for(conf, "replica-1", MINUTE));
    let error = issuer.check().await.unwrap_err();
    let text = error.to_string();
    for words in [
        "4 problems",
        "is an ACME issuer",
        "is not ready: secret \"ca\" not found (see `kubectl describe issuers.cert-manager.io mesh-ca -n mesh-system`)",
        "lacks the verbs `watch`, `delete` on `certificaterequests`",
        "setting: caCert",
    ] {
        assert!(text.contains(words), "`{words}` is missing in: {text}");
    }
    *server.issuer.lock().unwrap() = Some(Value::Null);
    let text = issuer.check().await.unwrap_err().to_string();
    assert!(text.contains("there is no Issuer `mesh-ca`"), "{text}");
    assert!(text.contains("lacks the verbs"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn one_command_grants_what_is_missing() {
    for (user, subject) in [
        (
            "system:serviceaccount:mesh-system:control-plane",
            "--serviceaccount=mesh-system:control-plane",
        ),
        ("O'Hara", r"--user='O'\''Hara'"),
        ("", "--serviceaccount=mesh-system:SERVICE-ACCOUNT"),
    ] {
        let server = Server::new();
        *server.issuer.lock().unwrap() = Some(object("True", json!({"ca": {}})));
        *server.denied.lock().unwrap() = vec!["watch"];
        *server.user.lock().unwrap() = user.to_owned();
        let issuer = server.issuer(settings(MINUTE));
        let text = issuer.check().await.unwrap_err().to_string();
        let command = format!(
            "`(kubectl create role meshca --verb=create,get,list,watch,delete --resource=certificaterequests.cert-manager.io -n mesh-system --dry-run=client -o yaml; echo ---; kubectl create rolebinding meshca --role=meshca {subject} -n mesh-system --dry-run=client -o yaml) | kubectl auth reconcile -f -`"
        );
        assert!(text.contains(&command), "{text}");
    }
}

/// Signing says the same as the check.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_refused_says_which_rights_to_grant() {
    let server = Server::new();
    *server.issuer.lock().unwrap() = Some(object("True", json!({"ca": {}})));
    *server.user.lock().unwrap() = "system:serviceaccount:mesh-system:control-plane".to_owned();
    let issuer = server.issuer(settings(MINUTE));
    *server.denied.lock().unwrap() = vec!["create", "watch"];
    let refused = sign(&issuer, &request()).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.retry()),
        (ErrorKind::Denied, Retry::Backoff)
    );
    let text = refused.to_string();
    let told = "the control plane may not create a certificate request: its role lacks the verbs `create`, `watch` on \
        `certificaterequests` of the group `cert-manager.io`. Grant them in the namespace `mesh-system`";
    assert!(text.contains(told), "{text}");
    let check = issuer.check().await.unwrap_err().to_string();
    let command = |text: &str| {
        let (_, command) = text.split_once("One command: `").unwrap();
        command.split('`').next().unwrap().to_owned()
    };
    assert_eq!(command(&text), command(&check));

    // It has the rights, and something else refuses.
    server.denied.lock().unwrap().clear();
    server.webhook_refuses.store(true, Ordering::SeqCst);
    let refused = sign(&issuer, &request()).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.retry()),
        (ErrorKind::Denied, Retry::Backoff)
    );
    let text = refused.to_string();
    assert!(
        text.contains("though the control plane's role allows it"),
        "{text}"
    );
    assert!(
        text.contains("admission webhook \"policy.example\" denied"),
        "{text}"
    );
}

/// A `caCert` that no proxy will use, and one of which a part can be used.
#[tokio::test(start_paused = true)]
async fn the_roots_of_ca_cert_are_judged() {
    let now = clock().now();
    let day = std::time::Duration::from_secs(24 * 3600);
    let former = TestCaOptions::new("Former root", now).with_validity(now - 9 * day, now - day);
    let former = TestCa::root_with(former).unwrap().pem();
    let present = TestCa::root("Present root", now).unwrap().pem();
    for (pem, sound) in [(former.clone(), false), (former + &present, true)] {
        let server = Server::new();
        *server.issuer.lock().unwrap() = Some(object("True", json!({"ca": {}})));
        let mut conf = conf("mesh-ca");
        conf.ca_cert = Some(DataSource::InlineString(pem.as_str().into()));
        let report = server
            .issuer(settings_for(conf, "replica-1", MINUTE))
            .check()
            .await;
        let text = match report {
            Ok(report) if sound => report.warnings.join("\n"),
            Err(error) if !sound => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(
            text.contains("the root `CN=Former root` cannot be used"),
            "{text}"
        );
        assert!(
            text.contains("it has ended. Add the next root to `caCert`"),
            "{text}"
        );
        assert!(!text.contains("Present"), "{text}");
    }
}

/// Whether peers have its root from elsewhere is not known here.
#[tokio::test(start_paused = true)]
async fn a_ca_cert_that_is_an_intermediate_alone_is_a_warning() {
    let root = TestCa::root("Corporate root", clock().now()).unwrap();
    let below = root.intermediate("Mesh CA").unwrap();
    for (pem, warned) in [(below.pem(), true), (below.pem() + &root.pem(), false)] {
        let server = Server::new();
        *server.issuer.lock().unwrap() = Some(object("True", json!({"ca": {}})));
        let mut conf = conf("mesh-ca");
        conf.ca_cert = Some(DataSource::InlineString(pem.as_str().into()));
        let issuer = server.issuer(settings_for(conf, "replica-1", MINUTE));
        let warnings = issuer.check().await.unwrap().warnings.join("\n");
        let words =
            "`caCert` holds the intermediate CA `CN=Mesh CA` and not the root that it leads to";
        assert_eq!(warnings.contains(words), warned, "{warnings}");
        let repair = "add the certificate of `CN=Corporate root` to `caCert`";
        assert_eq!(warnings.contains(repair), warned, "{warnings}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_known_is_a_warning() {
    let now = clock().now();
    let ending = |days: u64| {
        let end = now + std::time::Duration::from_secs(days * 24 * 3600);
        let options = TestCaOptions::new("Example root", now).with_validity(now, end);
        let root = TestCa::root_with(options).unwrap();
        Some(DataSource::InlineString(root.pem().as_str().into()))
    };
    let external = || {
        let mut issuer = IssuerRef::new("mesh-ca");
        issuer.group = Some("awspca.cert-manager.io".to_owned());
        issuer.kind = Some("AWSPCAClusterIssuer".to_owned());
        issuer
    };
    let two = vec![CertManagerUsage::ServerAuth, CertManagerUsage::ClientAuth];
    for (issuer, ca_cert, usages, expected) in [
        (IssuerRef::new("mesh-ca"), ending(400), vec![], vec![]),
        (
            IssuerRef::new("mesh-ca"),
            ending(9),
            vec![],
            vec!["ends in 8 days"],
        ),
        (
            IssuerRef::new("mesh-ca"),
            None,
            vec![],
            vec!["`caCert` is not set"],
        ),
        (
            external(),
            ending(400),
            two,
            vec!["cannot be seen from here"],
        ),
        (
            external(),
            ending(400),
            vec![],
            vec![
                "cannot be seen from here",
                "`usages: [server auth, client auth]`",
            ],
        ),
    ] {
        let server = Server::new();
        *server.issuer.lock().unwrap() = Some(object("True", json!({"ca": {}})));
        let mut conf = conf("mesh-ca");
        (conf.issuer, conf.ca_cert, conf.usages) = (issuer, ca_cert, usages);
        let issuer = server.issuer(settings_for(conf, "replica-1", MINUTE));
        let warnings = issuer.check().await.unwrap().warnings;
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        for (warning, words) in warnings.iter().zip(&expected) {
            assert!(
                warning.contains(words),
                "`{words}` is missing in: {warning}"
            );
        }
    }
}

/// An issuer that reports "not ready", and signs.
#[tokio::test(start_paused = true)]
async fn a_certificate_outranks_a_check_that_fails() {
    let server = Server::new();
    *server.issuer.lock().unwrap() = Some(object("False", json!({"ca": {}})));
    let issuer = server.issuer(settings(MINUTE));
    let issuer = Arc::new(issuer);
    issuer.check().await.unwrap_err();
    let (request, root) = (request(), root());
    let mut verdict = signed(&request, &root);
    verdict["ca"] = json!(k8s_openapi::ByteString(root.pem().into_bytes()));
    server.decide(verdict);
    issuer.issue_for(&request, &*clock()).await.unwrap();
    let warnings = issuer.check().await.unwrap().warnings;
    assert!(
        warnings[0].contains("a certificate was issued since the last one")
            && warnings[0].contains("is not ready"),
        "{warnings:?}"
    );
    // It is proven once.
    let error = issuer.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

/// What a request has beside its CSR.
#[tokio::test(start_paused = true)]
async fn usages_and_annotations_of_requests() {
    let server = Server::new();
    server.decide(failed());
    for (usages, expected) in [
        (
            vec![],
            json!([
                "digital signature",
                "key encipherment",
                "server auth",
                "client auth"
            ]),
        ),
        (
            vec![CertManagerUsage::ClientAuth, CertManagerUsage::ServerAuth],
            json!(["client auth", "server auth"]),
        ),
    ] {
        let seen = Arc::new(std::sync::Mutex::new(Value::Null));
        let sees = Arc::clone(&seen);
        server.decide_by(move |object| {
            *sees.lock().unwrap() = object.clone();
            failed()
        });
        let mut conf = conf("mesh-ca");
        let annotated = !usages.is_empty();
        conf.usages = usages;
        if annotated {
            let policy = (
                "firefly.venafi.com/policy-name".to_owned(),
                "mesh".to_owned(),
            );
            conf.annotations.extend([policy]);
        }
        let issuer = server.issuer(settings_for(conf, "replica-1", MINUTE));
        sign(&issuer, &request()).await.unwrap_err();
        let object = seen.lock().unwrap().clone();
        assert_eq!(object["spec"]["usages"], expected);
        let annotations = match annotated {
            true => json!({"firefly.venafi.com/policy-name": "mesh"}),
            false => Value::Null,
        };
        assert_eq!(object["metadata"]["annotations"], annotations);
    }
}
