//! Requests that wait for minutes, and what comes of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshca_core::resource::DataSource;
use meshca_core::{CertificateRequest, Clock, ErrorKind, Issuer, Retry, SignedChain, TrustBundle};
use meshca_testkit::pki::TestCa;
use meshca_testkit::samples::*;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::api::server::*;

fn bundle(ca: &TestCa) -> TrustBundle {
    let domain = request().spiffe_id().trust_domain().clone();
    TrustBundle::from_pem(domain, &ca.pem()).unwrap()
}

/// Has an answer refused, and waits for what the issuer does then.
async fn refuse(chain: SignedChain, request: &CertificateRequest) {
    let foreign = TestCa::root("Somebody else", clock().now()).unwrap();
    let verified = chain.verify(request, &bundle(&foreign), clock().now());
    verified.unwrap_err();
    sleep(Duration::from_millis(10)).await;
}

/// The objects of one look left over to the other, whose callers would have given up long ago.
#[tokio::test(start_paused = true)]
async fn issuers_of_one_process_leave_each_other_alone() {
    let server = Server::new();
    let hasty = server.issuer(settings(Duration::from_secs(10)));
    let patient = server.issuer(settings(5 * MINUTE));
    let (short, long) = (request(), request());
    sign(&hasty, &short).await.unwrap_err();
    let waiting = tokio::spawn({
        let (patient, long) = (patient.clone(), long.clone());
        async move { patient.sign(&long).await }
    });
    sleep(4 * MINUTE).await;
    let mine = format!("meshca-{}", long.id());
    assert_eq!(server.names(), std::slice::from_ref(&mine));
    server.set_status(&mine, &signed(&long, &root()));
    let chain = waiting.await.unwrap().unwrap();
    refuse(chain, &long).await;
    assert_eq!(server.names(), [] as [String; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_for_an_issuer_of_before_is_cleaned_up() {
    let server = Server::new();
    for instance in ["replica-1", "replica-2"] {
        let before = server.issuer(settings_for(conf("before"), instance, MINUTE));
        sign(&before, &request()).await.unwrap_err();
    }
    assert_eq!(server.names().len(), 2);
    let now = server.issuer(settings(MINUTE));
    sign(&now, &request()).await.unwrap_err();
    sleep(5 * MINUTE).await;
    // That of the other instance is not ours.
    let objects = server.objects.lock().unwrap().clone();
    let left: Vec<&Value> = objects
        .values()
        .map(|object| &object["metadata"]["labels"]["meshca.io/instance"])
        .collect();
    assert_eq!(left, [&json!("replica-2")]);
}

#[tokio::test(start_paused = true)]
async fn a_request_may_fail_more_than_a_hundred_times() {
    let server = Server::new();
    server.decide(failed());
    let (issuer, request) = (server.issuer(settings(MINUTE)), request());
    for _ in 0..120 {
        let error = sign(&issuer, &request).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, Retry::Backoff),
            "{error}"
        );
        sleep(MINUTE / 2).await;
    }
    server.decide(signed(&request, &root()));
    sign(&issuer, &request).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_call_steps_over_so_many_objects_and_the_next_goes_on() {
    let server = Server::new();
    let request = request();
    // All for another issuer.
    for number in 0..150 {
        let name = match number {
            0 => format!("meshca-{}", request.id()),
            _ => format!("meshca-{}-{number}", request.id()),
        };
        let object = json!({
            "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
            "metadata": {"name": name},
            "spec": {"request": "eA==", "issuerRef": {"name": "other"}},
        });
        Arc::clone(&server).create(object);
    }
    server.decide(signed(&request, &root()));
    let issuer = server.issuer(settings(MINUTE));
    let error = sign(&issuer, &request).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Conflict, Retry::Backoff),
        "{error}"
    );
    sign(&issuer, &request).await.unwrap();
    let last = format!("meshca-{}-150", request.id());
    assert!(server.names().contains(&last), "{:?}", server.names());
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_and_is_not_ours_is_stepped_over() {
    let server = Server::new();
    let (request, root) = (request(), root());
    let gone = server.issuer(settings_for(conf("mesh-ca"), "replica-2", MINUTE));
    sign(&gone, &request).await.unwrap_err();
    drop(gone);
    let name = format!("meshca-{}", request.id());
    let mut conf = conf("mesh-ca");
    conf.ca_cert = Some(DataSource::InlineString(root.pem().as_str().into()));
    let foreign = TestCa::root("Somebody else", clock().now()).unwrap();
    for refused in [ready("no PEM"), signed(&request, &foreign)] {
        server.set_status(&name, &refused);
        server.decide(signed(&request, &root));
        let issuer = server.issuer(settings_for(conf.clone(), "replica-1", MINUTE));
        let error = issuer.issue_for(&request, &*clock()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
        issuer.issue_for(&request, &*clock()).await.unwrap();
        assert_eq!(
            server.names(),
            std::slice::from_ref(&name),
            "ours alone is deleted"
        );
    }
}

/// Nothing is left to hear of what was decided before one asked.
#[tokio::test(start_paused = true)]
async fn an_answer_in_hand_is_worth_more_than_old_news() {
    let server = Server::new();
    let (issuer, request) = (server.issuer(settings(MINUTE)), request());
    sign(&issuer, &request).await.unwrap_err();
    server.mute.store(true, Ordering::SeqCst);
    server.set_status(&server.names()[0], &signed(&request, &root()));
    let begun = Instant::now();
    sign(&issuer, &request).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn nobody_settles_what_another_caller_waits_for() {
    let server = Server::new();
    let (issuer, request) = (server.issuer(settings(MINUTE)), request());
    server.decide(signed(&request, &root()));
    let chain = issuer.sign(&request).await.unwrap();
    let other = tokio::spawn({
        let (issuer, request) = (issuer.clone(), request.clone());
        async move { sign(&issuer, &request).await }
    });
    tokio::task::yield_now().await;
    let foreign = TestCa::root("Somebody else", clock().now()).unwrap();
    let verified = chain
        .clone()
        .verify(&request, &bundle(&foreign), clock().now());
    verified.unwrap_err();
    other.await.unwrap().unwrap();
    assert_eq!((server.created(), server.deleted().len()), (1, 0));
    refuse(chain, &request).await;
    assert_eq!(server.names(), [] as [String; 0]);
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_trust_share_one_error() {
    let server = Server::new();
    let issuer = server.issuer(settings(MINUTE));
    let begun = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..10 {
        let issuer = issuer.clone();
        callers.spawn(async move {
            match number % 2 {
                0 => issuer.trust(&*clock()).await,
                _ => issuer.refresh().await,
            }
        });
    }
    for outcome in callers.join_all().await {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Timeout);
    }
    assert!(begun.elapsed() < 2 * MINUTE);
    assert_eq!(server.created(), 1);
    // The next one asks again, and hears of the root.
    let root = root();
    let mut verdict = ready(root.pem().as_str());
    verdict["ca"] = json!(k8s_openapi::ByteString(root.pem().as_str().into()));
    server.decide(verdict);
    let bundle = issuer.trust_bundle().await.unwrap();
    assert_eq!(bundle.roots().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn timeouts_of_no_time_and_of_all_time() {
    let server = Server::new();
    let hasty = server.issuer(settings(Duration::ZERO));
    let error = sign(&hasty, &request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    sleep(MINUTE).await;
    assert_eq!(server.names(), [] as [String; 0], "it cleans up");

    let patient = server.issuer(settings(Duration::MAX));
    let request = request();
    let waiting = tokio::spawn({
        let (patient, request) = (patient.clone(), request.clone());
        async move { sign(&patient, &request).await }
    });
    sleep(24 * 60 * MINUTE).await;
    server.set_status(&server.names()[0], &signed(&request, &root()));
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_cannot_be_read_does_not_hold_up_the_check() {
    let issuer = Server::new().issuer(settings(MINUTE));
    let begun = Instant::now();
    let error = issuer.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(begun.elapsed() < MINUTE / 2);
}

/// Whoever calls `sign` and verifies the answer itself leaves no more behind than whoever has that
/// done.
#[tokio::test(start_paused = true)]
async fn what_is_verified_by_hand_is_settled_as_well() {
    let server = Server::new();
    let (issuer, root) = (server.issuer(settings(MINUTE)), root());
    let foreign = TestCa::root("Somebody else", clock().now()).unwrap();
    for (trusted, accepted) in [(&root, true), (&foreign, false)] {
        let request = request();
        server.decide(signed(&request, &root));
        let before = server.created();
        for again in 1..=2 {
            let chain = issuer.sign(&request).await.unwrap();
            let verified = chain.verify(&request, &bundle(trusted), clock().now());
            assert_eq!(verified.is_ok(), accepted);
            sleep(Duration::from_millis(10)).await;
            assert_eq!(server.names(), [] as [String; 0], "accepted: {accepted}");
            assert_eq!(server.created(), before + again, "accepted: {accepted}");
        }
        // What nobody verified may be good: it is found again.
        drop(issuer.sign(&request).await.unwrap());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(server.names().len(), 1);
        let chain = issuer.sign(&request).await.unwrap();
        assert_eq!(server.created(), before + 3);
        let _ = chain.verify(&request, &bundle(&root), clock().now());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(server.names(), [] as [String; 0]);
    }
}
