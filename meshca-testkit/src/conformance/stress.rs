//! The checks that make many calls, break some off, or change the CA.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use futures_util::future::join_all;
use meshca_core::{CertificateRequest, Error, ErrorKind, Retry, SignedChain};

use super::subject::Signed;
use super::{CONCURRENT_REQUESTS, Outcome, Subject};

/// At how many await points a call is dropped, at most.
const MAX_AWAIT_POINTS: usize = 32;

/// The same request can be made again, as after an answer that was lost.
pub async fn repeated_request(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let request = subject.new_request(subject.spec())?;
        let mut seen: Option<Signed> = None;
        for what in ["the first time", "the same request again"] {
            let signed = subject.signed(&request, None).await;
            let Some(signed) = outcome.expect(what, signed) else {
                continue;
            };
            // The same certificate again is as right as a new one.
            if seen.as_ref().is_some_and(|before| {
                before.verdict.serial == signed.verdict.serial
                    && before.chain.certificates() != signed.chain.certificates()
            }) {
                outcome.fail(format!(
                    "two certificates have the same serial number {} (RFC 5280 §4.1.2.2)",
                    signed.verdict.serial
                ));
            }
            seen = Some(signed);
        }
        Ok(())
    })
    .await
}

/// A `sign` that is dropped at any of its await points leaves nothing behind that spoils the same
/// request the next time. That one may be refused for the moment, but not for good; and others must be unharmed.
pub async fn cancellation(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let mut dropped = 0;
        for polls in 0..MAX_AWAIT_POINTS {
            let request = subject.new_request(subject.spec())?;
            let cut = dropped_after(polls, subject.issuer.sign(&request));
            match subject.within("sign", cut).await {
                // It answered before it could be dropped: there are no further await points.
                Ok(Some(_)) => break,
                Ok(None) => dropped += 1,
                Err(late) => {
                    outcome.fail_all("dropped", late);
                    break;
                }
            }
            let what = format!(
                "after `sign` was dropped having been polled {polls} times, the same request"
            );
            if let Err(faults) = subject.signed(&request, None).await {
                match subject.sign(&request).await {
                    Ok(Err(error)) if may_pass(&error) => {
                        outcome.prove(format!("{what}: {error}"));
                    }
                    _ => outcome.fail_all(&what, faults),
                }
            }
        }
        outcome.prove(format!("dropped at {dropped} points"));
        let request = subject.new_request(subject.spec())?;
        let signed = subject.signed(&request, None).await;
        outcome.expect("another request afterwards", signed);
        Ok(())
    })
    .await
}

/// [`CONCURRENT_REQUESTS`] at once, each with a key of its own: every one gets a certificate for its own
/// key, and no two have the same serial number.
pub async fn concurrency(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let requests = (0..CONCURRENT_REQUESTS).map(|_| subject.new_request(subject.spec()));
        let requests: Vec<_> = requests.collect::<meshca_core::Result<_>>()?;
        // Its callers share one call for the roots, which a CA may limit.
        let bundle = subject.bundle().await?;
        let calls = requests
            .iter()
            .map(|request| subject.signed_under(&bundle, request, None));
        let mut serials = HashMap::new();
        for answer in join_all(calls).await {
            match answer {
                Ok(signed) => *serials.entry(signed.verdict.serial).or_insert(0) += 1,
                Err(faults) => outcome.fail_all("one of many at once", faults),
            }
        }
        for (serial, times) in serials.iter().filter(|(_, times)| **times > 1) {
            outcome.fail(format!(
                "{times} certificates have the same serial number {serial} (RFC 5280 §4.1.2.2)"
            ));
        }
        outcome.prove(format!(
            "{} of {CONCURRENT_REQUESTS}, each with its own serial number",
            serials.len()
        ));
        Ok(())
    })
    .await
}

/// A new root is in the bundle before a leaf under it; a leaf of before stays valid afterwards.
///
/// Changes the CA, and only where the subject says [how](Subject::with_rotation).
pub async fn rotation(subject: &Subject<'_>) -> Outcome {
    Outcome::of(async |outcome| {
        let Some(rotation) = subject.rotation else {
            outcome.declare("not tried: the subject says no way to replace the CA");
            return Ok(());
        };
        let before = subject.bundle().await?;
        let old_request = subject.new_request(subject.spec())?;
        let old = subject.signed(&old_request, None).await?.chain;

        subject.call("prepare", rotation.prepare()).await?;
        let published = subject.bundle().await?;
        let mut new_roots = published.clone();
        for root in before.roots() {
            if !published.contains(root.der()) {
                outcome.fail(format!(
                    "the root `{}` left the bundle while certificates under it are alive",
                    root.subject()
                ));
            }
            new_roots = new_roots.without_root(root.der())?;
        }
        if new_roots.is_empty() {
            return Err("the next CA was prepared, but the bundle holds no new root".into());
        }
        let proven = |chain: &SignedChain, request: &CertificateRequest, bundle| {
            subject.judge(chain, request, None, bundle).faults
        };
        outcome.fail_all(
            "the leaf of before, once the next CA was prepared",
            proven(&old, &old_request, &published),
        );
        let request = subject.new_request(subject.spec())?;
        let between = subject.chain(&request).await?;
        outcome.fail_all(
            "a leaf signed once the next CA was prepared",
            proven(&between, &request, &published),
        );

        subject.call("activate", rotation.activate()).await?;
        let request = subject.new_request(subject.spec())?;
        let new = subject.chain(&request).await?;
        outcome.fail_all(
            "a leaf of the next CA, by the roots that were published before it signed",
            proven(&new, &request, &published),
        );
        outcome.fail_all(
            "a leaf signed after the activation, by the new roots alone",
            proven(&new, &request, &new_roots),
        );
        let after = subject.bundle().await?;
        outcome.fail_all(
            "the leaf of before, by the bundle of afterwards",
            proven(&old, &old_request, &after),
        );
        outcome.fail_all(
            "the new leaf, by the bundle of afterwards",
            proven(&new, &request, &after),
        );
        if outcome.passed() {
            outcome.prove("the new root was published before it signed, and old leaves stay valid");
        }
        Ok(())
    })
    .await
}

/// Whether an error says that the same may succeed later.
fn may_pass(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict || error.retry() != Retry::Never
}

/// Polls a future this often, each time when it asks for it, then drops it; its output if it was
/// faster.
async fn dropped_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left > 0 {
            left -= 1;
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
        }
        match left {
            0 => Poll::Ready(None),
            _ => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_call_is_dropped_at_each_of_its_await_points() {
        for polls in 0..6 {
            let reached = AtomicUsize::new(0);
            let call = async {
                for _ in 0..3 {
                    reached.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
                "done"
            };
            // Three points, so the fourth poll finishes it.
            let expected = (polls >= 4).then_some("done");
            assert_eq!(dropped_after(polls, call).await, expected, "{polls}");
            assert_eq!(reached.load(Ordering::SeqCst), polls.min(3), "{polls}");
        }
    }

    #[tokio::test]
    async fn all_run_at_once_and_answer_in_order() {
        let barrier = tokio::sync::Barrier::new(CONCURRENT_REQUESTS);
        let calls = (0..CONCURRENT_REQUESTS).map(|index| {
            let barrier = &barrier;
            async move {
                // Nobody passes before everybody is here.
                barrier.wait().await;
                index
            }
        });
        let answers = join_all(calls).await;
        assert_eq!(answers, (0..CONCURRENT_REQUESTS).collect::<Vec<_>>());
    }
}
