use std::error::Error as _;

use super::*;
use crate::testing::{Answer, OPERATIONS, Recorder, Still, call, request};

fn breaker() -> Breaker<Recorder> {
    // 2026-01-01
    Breaker::new(Recorder::new(), Arc::new(Still(1_767_225_600_000)))
}

fn unavailable() -> Answer {
    Answer::Fails(Error::new(ErrorKind::Unavailable, "connection refused"))
}

async fn fail(issuer: &Breaker<Recorder>, identities: usize) {
    for identity in 0..identities {
        issuer.inner.answer(unavailable());
        let error = issuer
            .sign(&request(&format!("workload-{identity}")))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }
}

async fn secs(secs: u64) {
    tokio::time::advance(Duration::from_secs(secs)).await;
}

#[tokio::test(start_paused = true)]
async fn defaults_are_what_the_docs_say() {
    let issuer = breaker();
    fail(&issuer, 9).await;
    assert_eq!(issuer.state(), BreakerState::Closed, "9 of 10");
    fail(&issuer, 10).await;
    assert_eq!(issuer.state(), BreakerState::Open);
    secs(29).await;
    assert_eq!(issuer.state(), BreakerState::Open);
    secs(1).await;
    assert_eq!(issuer.state(), BreakerState::HalfOpen);
    let rules = issuer.shared.state().breaking.rules();
    assert_eq!(rules.window, Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn while_open_it_says_since_when_why_and_when_to_come_back() {
    let issuer = breaker();
    fail(&issuer, 10).await;
    secs(10).await;
    issuer.inner.take_calls();
    for (operation, refused) in OPERATIONS.into_iter().zip([true, false, true, false]) {
        let result = call(&issuer, operation).await;
        assert_eq!(result.is_err(), refused, "{operation}");
        let asked = issuer.inner.take_calls();
        assert_eq!(asked.is_empty(), refused, "{operation}: {asked:?}");
        let Err(error) = result else { continue };
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(20)));
        assert_eq!(
            error.to_string(),
            "the CA is not asked for a while, because it failed for one identity after the other \
             (identities: 10, since: 2026-01-01T00:00:00Z)"
        );
        assert_eq!(error.source().unwrap().to_string(), "connection refused");
    }
}

#[tokio::test(start_paused = true)]
async fn only_failures_that_may_pass_count() {
    for (kind, retry, opens) in [
        (ErrorKind::Unavailable, None, true),
        (ErrorKind::Timeout, None, true),
        (ErrorKind::Internal, Some(Retry::Backoff), true),
        (ErrorKind::Unavailable, Some(Retry::Never), false),
        (ErrorKind::RateLimited, None, false),
        (
            ErrorKind::RateLimited,
            Some(Retry::After(Duration::from_secs(1))),
            false,
        ),
        (ErrorKind::Denied, None, false),
        (ErrorKind::BadResponse, None, false),
        (ErrorKind::Unauthenticated, None, false),
    ] {
        let issuer = breaker();
        for identity in 0..20 {
            let mut error = Error::new(kind, "no");
            if let Some(retry) = retry {
                error = error.with_retry(retry);
            }
            issuer.inner.answer(Answer::Fails(error));
            let _ = issuer.sign(&request(&format!("workload-{identity}"))).await;
        }
        let open = issuer.state() == BreakerState::Open;
        assert_eq!(open, opens, "{kind:?} {retry:?}");
        assert_eq!(issuer.inner.calls().len(), if opens { 10 } else { 20 });
    }
}

#[tokio::test(start_paused = true)]
async fn one_workload_that_fails_does_not_stop_the_others() {
    let issuer = breaker();
    let request = request("broken");
    for _ in 0..100 {
        issuer.inner.answer(unavailable());
        let _ = issuer.sign(&request).await;
    }
    assert_eq!(issuer.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_passes_closes_it_and_forgets() {
    let issuer = breaker();
    fail(&issuer, 10).await;
    secs(30).await;
    call(&issuer, "sign").await.unwrap();
    assert_eq!(issuer.state(), BreakerState::Closed);
    fail(&issuer, 9).await;
    assert_eq!(issuer.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_leaves_its_place() {
    let issuer = breaker();
    fail(&issuer, 10).await;
    secs(30).await;
    issuer
        .inner
        .answer(Answer::Passes.later(Duration::from_secs(60)));
    let first = request("first");
    let mut probe = Box::pin(issuer.sign(&first));
    assert!(futures_pending(&mut probe).await);
    let error = call(&issuer, "sign").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "one at a time");
    drop(probe);
    call(&issuer, "sign").await.unwrap();
    assert_eq!(issuer.state(), BreakerState::Closed);
}

/// Whether it is still waiting after having been polled once.
async fn futures_pending<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    tokio::select! {
        biased;
        _ = future => false,
        () = std::future::ready(()) => true,
    }
}

#[tokio::test(start_paused = true)]
async fn clones_and_settings() {
    let Some(two) = NonZeroUsize::new(2) else {
        unreachable!()
    };
    let issuer = Breaker::new(Arc::new(Recorder::new()), Arc::new(Still(0)))
        .with_threshold(two)
        .with_window(Duration::from_secs(5))
        .with_open_for(Duration::from_secs(7));
    let clone = issuer.clone();
    for (identity, wait) in [("a", 5), ("b", 4), ("c", 0)] {
        assert_eq!(clone.state(), BreakerState::Closed);
        issuer.inner.answer(unavailable());
        let _ = issuer.sign(&request(identity)).await;
        secs(wait).await;
    }
    assert_eq!(clone.state(), BreakerState::Open);
    secs(7).await;
    assert_eq!(clone.state(), BreakerState::HalfOpen);
}
