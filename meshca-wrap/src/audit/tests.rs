use std::error::Error as _;
use std::sync::Mutex;
use std::time::Duration;

use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
use meshca_core::{
    CertificateSpec, MemorySecretStore, PrivateKey, SpiffeId, SystemClock, TrustDomain,
};

use super::*;
use crate::testing::{Answer, OPERATIONS, Recorder, Still, call, request};

/// Keeps records in memory, or fails.
#[derive(Debug, Default)]
struct Memory {
    records: Mutex<Vec<AuditRecord>>,
    full: bool,
}

impl AuditSink for Memory {
    fn record(&self, record: &AuditRecord) -> Result<()> {
        if self.full {
            return Err(Error::new(ErrorKind::Unavailable, "the disk is full"));
        }
        self.records.lock().unwrap().push(record.clone());
        Ok(())
    }
}

/// 2026-01-01T00:00:00.250Z
const NOW: Still = Still(1_767_225_600_250);

fn audited(sink: &Arc<Memory>, answers: impl IntoIterator<Item = Answer>) -> Audited<Recorder> {
    let inner = Recorder::new().with_answers(answers);
    Audited::new(inner, Arc::clone(sink), Arc::new(NOW))
}

async fn builtin(clock: &Arc<SystemClock>) -> BuiltinIssuer {
    let secrets = CaSecrets::for_backend("default", "ca-1").unwrap();
    let settings = CaSettings::new(TrustDomain::new("example.org").unwrap(), secrets);
    let store = Arc::new(MemorySecretStore::new());
    BuiltinIssuer::load_or_create(settings, store, clock.clone())
        .await
        .unwrap()
}

/// A request for a certificate with every kind of name, and what the built-in CA makes of it.
async fn signed() -> (CertificateRequest, SignedChain) {
    let clock = Arc::new(SystemClock::new());
    let ca = builtin(&clock).await;
    let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").unwrap();
    let spec = CertificateSpec::workload(id)
        .with_lifetime(Duration::from_secs(3600))
        .with_dns_name("cart.shop")
        .with_uri("kuma://kuma.io/service/cart")
        .with_common_name("cart");
    let key = PrivateKey::generate(spec.key_type()).unwrap();
    let request = CertificateRequest::for_key(spec, &key, clock.now()).unwrap();
    let chain = ca.sign(&request).await.unwrap();
    (request, chain)
}

#[tokio::test]
async fn what_was_signed_is_read_from_the_certificate() {
    let (request, chain) = signed().await;
    let sink = Arc::new(Memory::default());
    let issuer = audited(&sink, [Answer::Signs(chain.clone())]);
    issuer.sign(&request).await.unwrap();

    let records = sink.records.lock().unwrap();
    let [record] = &records[..] else {
        panic!("one record for one call")
    };
    assert_eq!(record.issuer, "recorder");
    assert_eq!(record.request_id, request.id().as_str());
    assert_eq!(record.spiffe_id, "spiffe://example.org/ns/shop/sa/cart");
    assert_eq!(record.profile, "workload");
    assert_eq!(record.requested.uris, ["kuma://kuma.io/service/cart"]);
    assert_eq!(record.requested.dns_names, ["cart.shop"]);
    assert_eq!(record.requested.common_name.as_deref(), Some("cart"));
    assert_eq!(record.requested.lifetime, Duration::from_secs(3600));
    let Outcome::Signed(signed) = &record.outcome else {
        panic!("{record:?}")
    };
    assert_eq!(
        signed.names,
        [
            "URI:spiffe://example.org/ns/shop/sa/cart",
            "URI:kuma://kuma.io/service/cart",
            "DNS:cart.shop"
        ]
    );
    assert_eq!(signed.subject.as_deref(), Some("CN=cart"));
    assert_eq!(signed.note, None);
    let (from, until) = (signed.not_before.unwrap(), signed.not_after.unwrap());
    let lifetime = until.duration_since(from).unwrap().as_secs();
    assert_eq!(signed.lifetime_secs, Some(lifetime));
    assert!((3600..3620).contains(&lifetime), "{lifetime}");
}

#[tokio::test]
async fn serial_and_validity_are_those_that_core_verifies() {
    use meshca_core::IssuerExt as _;

    let clock = Arc::new(SystemClock::new());
    let ca = builtin(&clock).await;
    let sink = Arc::new(Memory::default());
    let issuer = Audited::new(ca, Arc::clone(&sink), clock.clone());
    let id = SpiffeId::new("spiffe://example.org/cart").unwrap();
    let identity = issuer
        .issue(&CertificateSpec::workload(id), &*clock)
        .await
        .unwrap();
    let certificate = identity.certificate();
    let records = sink.records.lock().unwrap();
    let Outcome::Signed(signed) = &records[0].outcome else {
        panic!("{records:?}")
    };
    assert_eq!(signed.serial.as_deref(), Some(certificate.serial()));
    assert_eq!(
        signed.issuer.as_deref(),
        Some(certificate.issuer().as_str())
    );
    let validity = certificate.validity();
    assert_eq!(signed.not_before, Some(validity.not_before()));
    assert_eq!(signed.not_after, Some(validity.not_after()));
}

#[tokio::test(start_paused = true)]
async fn each_outcome_has_its_record() {
    let (other_request, chain) = signed().await;
    assert_ne!(other_request.spiffe_id(), request("cart").spiffe_id());
    let denied =
        Error::new(ErrorKind::Denied, "no such role\nforged: line").with_context("role", "dp");
    let note = |count| format!("none of the {count} certificates is for the requested key");
    for (answer, expected, kind, text) in [
        (Answer::Passes, "signed", None, Some(note(0))),
        (
            Answer::Signs(chain.clone()),
            "signed",
            None,
            Some(note(chain.certificates().len())),
        ),
        (
            Answer::Fails(denied.with_source(Error::new(ErrorKind::Internal, "the secret is 42"))),
            "refused",
            Some("denied"),
            Some("no such role\nforged: line (role: dp)".to_owned()),
        ),
        (
            Answer::Passes.later(Duration::from_secs(60)),
            "cancelled",
            None,
            None,
        ),
    ] {
        let sink = Arc::new(Memory::default());
        let issuer = audited(&sink, [answer]);
        let limit = Duration::from_secs(1);
        let _ = tokio::time::timeout(limit, issuer.sign(&request("cart"))).await;
        let records = sink.records.lock().unwrap();
        assert_eq!(records.len(), 1, "{expected}");
        assert_eq!(records[0].outcome.as_str(), expected);
        let took = if expected == "cancelled" {
            limit
        } else {
            Duration::ZERO
        };
        assert_eq!(records[0].duration, took);
        let json = serde_json::to_value(&records[0]).unwrap();
        assert_eq!(json["time"], "2026-01-01T00:00:00.25Z");
        assert_eq!(json["outcome"], expected);
        assert_eq!(json["refusal"]["kind"].as_str(), kind);
        let said = json["refusal"]["message"]
            .as_str()
            .or_else(|| json["signed"]["note"].as_str());
        assert_eq!(said.map(str::to_owned), text);
        assert!(
            !json.to_string().contains("the secret is"),
            "sources stay out: {json}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn only_signing_is_recorded() {
    for (operation, records) in OPERATIONS.into_iter().zip([1, 0, 0, 0]) {
        let sink = Arc::new(Memory::default());
        call(&audited(&sink, []), operation).await.unwrap();
        assert_eq!(sink.records.lock().unwrap().len(), records, "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_record_is_counted_and_by_default_holds_the_certificate_back() {
    let denied = || Answer::Fails(Error::new(ErrorKind::Denied, "no"));
    for (on_lost, answer, expected) in [
        (
            OnLostRecord::default(),
            Answer::Passes,
            Some(ErrorKind::Unavailable),
        ),
        (OnLostRecord::Continue, Answer::Passes, None),
        (OnLostRecord::Refuse, denied(), Some(ErrorKind::Denied)),
        (OnLostRecord::Continue, denied(), Some(ErrorKind::Denied)),
    ] {
        let sink = Arc::new(Memory {
            full: true,
            ..Memory::default()
        });
        let issuer = audited(&sink, [answer]).with_on_lost_record(on_lost);
        let result = issuer.sign(&request("cart")).await;
        assert_eq!(issuer.lost(), 1);
        assert_eq!(result.as_ref().err().map(Error::kind), expected);
        if let Err(error) = result {
            let told = format!("{error} {:?}", error.source().map(ToString::to_string));
            assert!(told.contains("the disk is full"), "{told}");
        }
    }
}

#[test]
fn the_default_leaves_syncing_to_the_system() {
    assert_eq!(SyncPolicy::default(), SyncPolicy::System);
    assert_eq!(OnLostRecord::default(), OnLostRecord::Refuse);
}

#[tokio::test]
async fn a_file_has_a_line_for_each_record() {
    let (request, chain) = signed().await;
    let folder = tempfile::tempdir().unwrap();
    for sync in [SyncPolicy::System, SyncPolicy::EveryRecord] {
        let path = folder.path().join(format!("{sync:?}.jsonl"));
        let sink = JsonLinesSink::open(&path, sync).unwrap();
        let issuer = Audited::new(
            Recorder::new().with_answers(vec![Answer::Signs(chain.clone()); 20]),
            sink,
            Arc::new(NOW),
        );
        for _ in 0..20 {
            issuer.sign(&request).await.unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 20);
        let mut at = 0;
        for line in lines {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(json["signed"]["names"][2], "DNS:cart.shop");
            let start = at + line.len() - line.trim_start().len();
            at += line.len() + 1;
            assert_eq!(start / 4096, (at - 1) / 4096, "a line crosses a page");
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}

#[cfg(feature = "audit-tracing")]
mod events {
    use std::fmt::Write as _;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    /// Keeps what it is told as text.
    #[derive(Clone, Debug, Default)]
    struct Listener(Arc<Mutex<Vec<(Level, String)>>>);

    struct Text(String);

    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            let _ = write!(self.0, "{field}={value:?};");
        }
    }

    impl Subscriber for Listener {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "meshca::audit"
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut text = Text(String::new());
            event.record(&mut text);
            let level = *event.metadata().level();
            self.0.lock().unwrap().push((level, text.0));
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn each_record_is_an_event_that_forges_no_line() {
        let (cart, chain) = signed().await;
        let denied = Error::new(ErrorKind::Denied, "no\nforged: line");
        for (answer, level, fields) in [
            (
                Answer::Signs(chain),
                Level::INFO,
                vec![
                    "outcome=\"signed\";",
                    "names=[\"URI:spiffe://example.org/ns/shop/sa/cart\", \"URI:kuma://kuma.io/service/cart\", \
                     \"DNS:cart.shop\"];",
                    "message=certificate signed;",
                    "serial=\"",
                ],
            ),
            (
                Answer::Fails(denied),
                Level::WARN,
                vec![
                    "outcome=\"refused\";",
                    "kind=\"denied\";",
                    "error=no\\nforged: line;",
                ],
            ),
            (
                Answer::Passes.later(Duration::from_secs(60)),
                Level::WARN,
                vec![
                    "outcome=\"cancelled\";",
                    "spiffe_id=\"spiffe://example.org/ns/shop/sa/cart\";",
                ],
            ),
        ] {
            let listener = Listener::default();
            let inner = Recorder::new().with_answers([answer]);
            let issuer = Audited::new(inner, TracingSink::new(), Arc::new(NOW));
            let guard = tracing::subscriber::set_default(listener.clone());
            let _ = tokio::time::timeout(Duration::from_secs(1), issuer.sign(&cart)).await;
            drop(guard);
            let events = listener.0.lock().unwrap();
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].0, level);
            for field in fields {
                assert!(events[0].1.contains(field), "{field} in {}", events[0].1);
            }
            assert!(!events[0].1.contains('\n'));
        }
    }
}
