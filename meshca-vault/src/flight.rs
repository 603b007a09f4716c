//! One call at a time, however many want its result.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use meshca_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

/// Whoever comes while a call is under way waits for that one's result.
///
/// The call is a task of its own: a caller that gives up does not take it away from the others. When it ends it is forgotten,
/// whether anybody still waits or not: its result is of that moment, and may hold a token.
pub(crate) struct Flight<T: Clone>(Slot<T>);

type Slot<T> = Arc<Mutex<Option<Call<T>>>>;
type Call<T> = Shared<BoxFuture<'static, Result<T>>>;

impl<T: Clone> Default for Flight<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }
}

/// Empties the slot when the call ends, be it by a panic.
struct Forget<T: Clone>(Slot<T>);

impl<T: Clone> Drop for Forget<T> {
    fn drop(&mut self) {
        // It is this call's: there is no other before the slot is empty.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Waits for the call that is under way, or for the one that `start` makes.
    pub(crate) async fn join<F>(&self, start: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (call, task) = {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.as_ref() {
                Some(call) => (call.clone(), None),
                None => {
                    let (done, result) = oneshot::channel();
                    let call = async move { result.await.unwrap_or_else(|_| Err(dropped())) };
                    let call = call.boxed().shared();
                    *slot = Some(call.clone());
                    let (work, forget) = (start(), Forget(Arc::clone(&self.0)));
                    let task = async move {
                        let _forget = forget;
                        let _ = done.send(work.await);
                    };
                    (call, Some(task))
                }
            }
        };
        // Without the lock: a runtime that shuts down drops the task at once, and that empties the slot.
        if let Some(task) = task {
            tokio::spawn(task);
        }
        call.await
    }
}

fn dropped() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a call to Vault was dropped before it ended: is the runtime shutting down?",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_come_meanwhile_share_one_call() {
        let flight = Arc::new(Flight::default());
        let calls = Arc::new(AtomicUsize::new(0));
        let join = || {
            let (flight, calls) = (Arc::clone(&flight), Arc::clone(&calls));
            tokio::spawn(async move {
                flight
                    .join(|| async move {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        Ok(calls.fetch_add(1, Ordering::SeqCst))
                    })
                    .await
            })
        };
        let waiters: Vec<_> = (0..100).map(|_| join()).collect();
        // One that gives up takes nothing from the others.
        tokio::task::yield_now().await;
        let mut waiters = waiters.into_iter();
        waiters.next().unwrap().abort();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap(), 0);
        }
        assert_eq!(join().await.unwrap().unwrap(), 1);
        assert!(flight.0.lock().unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_is_not_served_later() {
        let flight = Flight::default();
        let slow = |value: u32| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(value)
        };
        let given_up = tokio::time::timeout(Duration::from_millis(5), flight.join(|| slow(1)));
        given_up.await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(
            flight.0.lock().unwrap().is_none(),
            "what it returned lingers"
        );
        assert_eq!(flight.join(|| slow(2)).await.unwrap(), 2);

        let panics = flight.join(|| async { panic!("on purpose") }).await;
        assert_eq!(panics.unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(flight.join(|| slow(3)).await.unwrap(), 3);
    }
}
