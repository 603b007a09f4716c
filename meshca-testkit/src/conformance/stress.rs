//! The checks that make many calls, break some off, or change the CA.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use meshca_core::{CertificateRequest, Error, ErrorKind, Retry, SignedChain};

use super::subject::{Signed, told};
use super::{CONCURRENT_REQUESTS, Outcome, Subject};

/// At how many await points a call is dropped, at most.
const MAX_AWAIT_POINTS: usize = 32;

/// The same request can be made again, as after an answer that was lost.
pub async fn repeated_request(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    match subject.new_request(subject.spec()) {
        Ok((request, _)) => {
            let mut seen: Option<Signed> = None;
            for what in ["the first time", "the same request again"] {
                let Some(signed) = subject
                    .expect_signed(&mut outcome, what, &request, None)
                    .await
                else {
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
        }
        Err(why) => outcome.fail(why),
    }
    outcome
}

/// A `sign` that is dropped at any of its await points leaves nothing behind that spoils the same
/// request the next time. That one may be refused for the moment, but not for good; and others must be unharmed.
pub async fn cancellation(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut dropped = 0;
    for polls in 0..MAX_AWAIT_POINTS {
        let (request, _) = match subject.new_request(subject.spec()) {
            Ok(made) => made,
            Err(why) => {
                outcome.fail(why);
                return outcome;
            }
        };
        let cut = dropped_after(polls, subject.issuer.sign(&request));
        match subject.within("sign", cut).await {
            // It answered before it could be dropped: there are no further await points.
            Ok(Some(_)) => break,
            Ok(None) => dropped += 1,
            Err(late) => {
                outcome.fail(late);
                break;
            }
        }
        let what =
            format!("after `sign` was dropped having been polled {polls} times, the same request");
        match subject.signed(&request, None).await {
            Ok(_) => {}
            Err(faults) => match subject.sign(&request).await {
                Ok(Err(error)) if may_pass(&error) => outcome.prove(format!("{what}: {error}")),
                _ => outcome.fail_all(&what, faults),
            },
        }
    }
    outcome.prove(format!("dropped at {dropped} points"));
    if let Ok((request, _)) = subject.new_request(subject.spec()) {
        let what = "another request afterwards";
        subject
            .expect_signed(&mut outcome, what, &request, None)
            .await;
    }
    outcome
}

/// [`CONCURRENT_REQUESTS`] at once, each with a key of its own: every one gets a certificate for its own
/// key, and no two have the same serial number.
pub async fn concurrency(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut requests = Vec::with_capacity(CONCURRENT_REQUESTS);
    for _ in 0..CONCURRENT_REQUESTS {
        match subject.new_request(subject.spec()) {
            Ok((request, _)) => requests.push(request),
            Err(why) => {
                outcome.fail(why);
                return outcome;
            }
        }
    }
    // Its callers share one call for the roots, which a CA may limit.
    let bundle = match subject.bundle().await {
        Ok(bundle) => bundle,
        Err(why) => {
            outcome.fail(why);
            return outcome;
        }
    };
    let calls = requests
        .iter()
        .map(|request| subject.signed_under(&bundle, request, None));
    let mut serials = HashMap::new();
    for answer in all(calls).await {
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
    outcome
}

/// A new root is in the bundle before a leaf under it; a leaf of before stays valid afterwards.
///
/// Changes the CA, and only where the subject says [how](Subject::with_rotation).
pub async fn rotation(subject: &Subject<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    match subject.rotation {
        Some(rotation) => {
            if let Err(why) = rotate(subject, rotation, &mut outcome).await {
                outcome.fail(why);
            }
        }
        None => outcome.declare("not tried: the subject says no way to replace the CA"),
    }
    outcome
}

async fn rotate(
    subject: &Subject<'_>,
    rotation: &dyn super::Rotation,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let one = |faults: Vec<String>| faults.join("; ");
    let before = subject.bundle().await?;
    let (old_request, _) = subject.new_request(subject.spec())?;
    let old = subject.signed(&old_request, None).await.map_err(one)?.chain;

    let prepared = subject.within("prepare", rotation.prepare()).await?;
    prepared.map_err(|error| format!("preparing the next CA failed: {}", told(&error)))?;
    let published = subject.bundle().await?;
    let mut new_roots = published.clone();
    for root in before.roots() {
        if !published.contains(root.der()) {
            outcome.fail(format!(
                "the root `{}` left the bundle while certificates under it are alive",
                root.subject()
            ));
        }
        new_roots = new_roots
            .without_root(root.der())
            .map_err(|error| told(&error))?;
    }
    if new_roots.is_empty() {
        return Err("the next CA was prepared, but the bundle holds no new root".to_owned());
    }
    let proven = |chain: &SignedChain, request: &CertificateRequest, bundle| {
        let verdict = subject.judge(chain, request, None, bundle);
        verdict.faults
    };
    outcome.fail_all(
        "the leaf of before, once the next CA was prepared",
        proven(&old, &old_request, &published),
    );
    let (request, _) = subject.new_request(subject.spec())?;
    let between = subject.sign(&request).await?;
    let between = between.map_err(|error| format!("`sign` failed: {}", told(&error)))?;
    outcome.fail_all(
        "a leaf signed once the next CA was prepared",
        proven(&between, &request, &published),
    );

    let activated = subject.within("activate", rotation.activate()).await?;
    activated.map_err(|error| format!("activating the next CA failed: {}", told(&error)))?;
    let (request, _) = subject.new_request(subject.spec())?;
    let new = subject.sign(&request).await?;
    let new = new.map_err(|error| format!("`sign` failed: {}", told(&error)))?;
    outcome.fail_all(
        "a leaf of the next CA, by the roots that were published before it signed",
        proven(&new, &request, &published),
    );
    outcome.fail_all(
        "a leaf signed after the activation, by the new roots alone",
        proven(&new, &request, &new_roots),
    );
    let after = subject.bundle().await?;
    for (what, chain, request) in [
        (
            "the leaf of before, by the bundle of afterwards",
            &old,
            &old_request,
        ),
        ("the new leaf, by the bundle of afterwards", &new, &request),
    ] {
        let verdict = subject.judge(chain, request, None, &after);
        outcome.fail_all(what, verdict.faults);
    }
    if outcome.passed() {
        outcome.prove("the new root was published before it signed, and old leaves stay valid");
    }
    Ok(())
}

/// Whether an error says that the same may succeed later.
fn may_pass(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict || error.retry() != Retry::Never
}

/// Polls a future this often, each time when it asks for it, then drops it; its output if it was
/// faster.
async fn dropped_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut done = 0;
    poll_fn(|context| {
        if done < polls {
            done += 1;
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
        }
        if done >= polls {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// All of these at once, in this task.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut waiting = false;
        for (future, output) in running.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(ready) => *output = Some(ready),
                    Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
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
        let answers = all(calls).await;
        assert_eq!(answers, (0..CONCURRENT_REQUESTS).collect::<Vec<_>>());
    }
}
