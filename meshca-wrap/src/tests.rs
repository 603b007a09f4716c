//! All wrappers around one issuer.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
use meshca_core::{
    CertificateSpec, Clock, Error, ErrorKind, Issuer, IssuerExt, KeyType, MemorySecretStore,
    SpiffeId, SystemClock, TrustDomain,
};

use super::testing::{Answer, OPERATIONS, Recorder, Still, call, request};
use super::*;

/// Every wrapper, in the order that the documentation recommends.
fn stacked<I: Issuer>(
    inner: I,
    sink: impl AuditSink,
    clock: Arc<dyn Clock>,
) -> Audited<impl Issuer> {
    let rate = Rate::per_second(NonZeroU32::new(100_000).unwrap());
    let limited = RateLimited::new(TimeLimited::new(inner))
        .with_sign(rate)
        .with_refresh_trust_bundle(rate);
    let breaker = Breaker::new(limited, Arc::clone(&clock));
    let metered = Metered::new(Retrying::new(breaker), "recorder");
    Audited::new(metered, sink, clock)
}

/// The other way round, each behind a `dyn`.
fn reversed(
    inner: Arc<dyn Issuer>,
    sink: impl AuditSink,
    clock: Arc<dyn Clock>,
) -> Arc<dyn Issuer> {
    let audited: Arc<dyn Issuer> = Arc::new(Audited::new(inner, sink, Arc::clone(&clock)));
    let metered: Arc<dyn Issuer> = Arc::new(Metered::new(audited, "recorder"));
    let retrying: Arc<dyn Issuer> = Arc::new(Retrying::new(metered));
    let breaker: Arc<dyn Issuer> = Arc::new(Breaker::new(retrying, clock));
    let limited: Arc<dyn Issuer> = Arc::new(RateLimited::new(breaker));
    Arc::new(TimeLimited::new(limited))
}

#[derive(Debug)]
struct Nowhere;

impl AuditSink for Nowhere {
    fn record(&self, _: &AuditRecord) -> meshca_core::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn every_method_is_forwarded_to_the_issuer_and_its_answer_back() {
    let recorder = Arc::new(Recorder::new());
    let clock = Arc::new(Still(0));
    let inner: Arc<dyn Issuer> = recorder.clone();
    let stacks: [Box<dyn Issuer>; 2] = [
        Box::new(stacked(Arc::clone(&inner), Nowhere, clock.clone())),
        Box::new(reversed(inner, Nowhere, clock)),
    ];
    for issuer in stacks {
        assert_eq!(issuer.to_string(), "recorder");
        assert!(!format!("{issuer:?}").is_empty());
        assert!(issuer.capabilities().dns_names());
        assert!(issuer.capabilities().key_types().contains(&KeyType::P256));
        assert_eq!(recorder.take_calls(), ["capabilities"; 2]);
        for operation in OPERATIONS {
            call(&issuer, operation).await.unwrap();
            assert_eq!(recorder.take_calls(), [operation]);

            let denied = Error::new(ErrorKind::Denied, "no").with_context("role", "dp");
            recorder.answer(Answer::Fails(denied));
            let error = call(&issuer, operation).await.unwrap_err();
            assert_eq!(error.to_string(), "no (role: dp)");
            assert_eq!(recorder.take_calls(), [operation]);
        }
        assert_eq!(issuer.trust_bundle().await.unwrap().sequence(), None);
        assert_eq!(
            issuer.refresh_trust_bundle().await.unwrap().sequence(),
            Some(2)
        );
        assert_eq!(issuer.check().await.unwrap().warnings, ["recorded"]);
        let cart = request("cart");
        issuer.sign(&cart).await.unwrap();
        assert_eq!(recorder.requests().last(), Some(cart.id()));
        recorder.take_calls();

        let refused = Error::new(ErrorKind::BadResponse, "refused");
        let shop = request("shop");
        issuer.settled(&shop, Err(&refused)).await;
        assert_eq!(recorder.requests().last(), Some(shop.id()));
        let rotation = issuer.rotation().unwrap();
        rotation.rotate(rotation.due().unwrap()).await.unwrap();
        assert_eq!(recorder.take_calls(), ["settled", "rotate"]);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_outermost_future_drops_the_innermost() {
    let recorder = Arc::new(Recorder::new());
    let clock = Arc::new(Still(0));
    let inner: Arc<dyn Issuer> = recorder.clone();
    let stacks: [Box<dyn Issuer>; 2] = [
        Box::new(stacked(Arc::clone(&inner), Nowhere, clock.clone())),
        Box::new(reversed(inner, Nowhere, clock)),
    ];
    for issuer in stacks {
        for operation in OPERATIONS {
            let dropped = recorder.dropped();
            recorder.answer(Answer::Passes.later(Duration::from_secs(5)));
            let limit = Duration::from_secs(1);
            let cancelled = tokio::time::timeout(limit, call(&issuer, operation)).await;
            assert!(cancelled.is_err(), "{operation}");
            assert_eq!(recorder.dropped(), dropped + 1, "{operation}");
            call(&issuer, operation).await.unwrap();
        }
    }
}

/// The recommended order, from the outside: a CA that hangs is given up on and tried again; when it hangs for enough
/// identities, it is left alone, and the callers are told at once.
#[tokio::test(start_paused = true)]
async fn the_recommended_order_bears_an_outage() {
    let recorder = Arc::new(Recorder::new());
    let limited = TimeLimited::new(Arc::clone(&recorder)).with_sign(Duration::from_secs(1));
    let breaker = Breaker::new(RateLimited::new(limited), Arc::new(Still(0)))
        .with_threshold(NonZeroUsize::new(2).unwrap())
        .with_open_for(Duration::from_secs(60));
    let issuer = Retrying::new(breaker);
    for name in ["a", "b"] {
        for _ in 0..3 {
            recorder.answer(Answer::Passes.later(Duration::from_secs(600)));
        }
        let error = issuer.sign(&request(name)).await.unwrap_err();
        // "b" meets the breaker when it tries again, and does not wait for longer than it may.
        let (kind, attempts) = match name {
            "a" => (ErrorKind::Timeout, "3"),
            _ => (ErrorKind::Unavailable, "2"),
        };
        assert_eq!(error.kind(), kind, "{name}: {error}");
        let told: Vec<_> = error.context().collect();
        assert!(told.contains(&("attempts", attempts)), "{told:?}");
    }
    assert_eq!(recorder.take_calls().len(), 4);
    let began = tokio::time::Instant::now();
    let error = issuer.sign(&request("c")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(recorder.take_calls().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once_all_get_their_certificate() {
    let clock = Arc::new(SystemClock::new());
    let settings = CaSettings::new(
        TrustDomain::new("example.org").unwrap(),
        CaSecrets::for_backend("default", "ca-1").unwrap(),
    );
    let store = Arc::new(MemorySecretStore::new());
    let ca = BuiltinIssuer::load_or_create(settings, store, clock.clone())
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let sink = JsonLinesSink::open(&path, SyncPolicy::System).unwrap();
    let issuer = Arc::new(stacked(ca, sink, clock.clone()));

    let mut tasks = tokio::task::JoinSet::new();
    for workload in 0..1000 {
        let (issuer, clock) = (Arc::clone(&issuer), Arc::clone(&clock));
        tasks.spawn(async move {
            let id = SpiffeId::new(format!("spiffe://example.org/workload/{workload}")).unwrap();
            let spec = CertificateSpec::workload(id);
            let identity = issuer.issue(&spec, &*clock).await.unwrap();
            identity.certificate().serial().to_owned()
        });
    }
    let mut issued = tasks.join_all().await;
    issued.sort_unstable();

    let text = std::fs::read_to_string(&path).unwrap();
    let mut recorded: Vec<_> = text
        .lines()
        .map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            json["signed"]["serial"].as_str().unwrap().to_owned()
        })
        .collect();
    recorded.sort_unstable();
    assert_eq!(issued, recorded);
    assert_eq!(issued.len(), 1000);
    assert_eq!(issuer.lost(), 0);
}
