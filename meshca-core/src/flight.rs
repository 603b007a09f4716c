//! One call at a time, however many want its result.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::sync::lock;
use crate::{Error, ErrorKind, Result};

/// Whoever comes while a call is under way waits for that one's result, be it an error.
///
/// For implementors of [`Issuer`](crate::Issuer): thousands of proxies that start together ask for the same bundle, or need the
/// same login, and one answer serves them all.
///
/// The call is a task of its own: a caller that gives up does not take it away from the others, and a call that takes longer than
/// any caller waits still ends. When it ends it is forgotten, whether anybody still waits or not: its result is of that moment,
/// and may hold a token. This crate knows no runtime, so whoever has one says how a task is spawned.
///
/// ```
/// # use meshca_core::Result;
/// use meshca_core::issuer::Flight;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let flight = Flight::new(|task| drop(tokio::spawn(task)));
/// let (one, other) = tokio::join!(flight.join(|| async { Ok(1) }), flight.join(|| async { Ok(2) }));
/// assert_eq!((one?, other?), (1, 1), "the second one shared the call of the first");
/// # Ok(())
/// # }
/// ```
#[derive(derive_more::Debug)]
#[debug("Flight")]
pub struct Flight<T: Clone> {
    slot: Slot<T>,
    spawn: fn(Task),
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

type Slot<T> = Arc<Mutex<Option<Call<T>>>>;
type Call<T> = Shared<BoxFuture<'static, Result<T>>>;

/// Empties the slot when the call ends, be it by a panic.
struct Forget<T: Clone>(Slot<T>);

impl<T: Clone> Drop for Forget<T> {
    fn drop(&mut self) {
        // It is this call's: there is no other before the slot is empty.
        *lock(&self.0) = None;
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Calls run as tasks that `spawn` starts: `|task| drop(tokio::spawn(task))`.
    pub fn new(spawn: fn(Pin<Box<dyn Future<Output = ()> + Send>>)) -> Self {
        Self {
            slot: Arc::default(),
            spawn,
        }
    }

    /// Waits for the call that is under way, or for the one that `start` makes.
    ///
    /// # Errors
    ///
    /// The error of the call, to all who waited for it. [`Internal`](ErrorKind::Internal) if the task was dropped or panicked.
    pub async fn join<F>(&self, start: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut task = None;
        let call = lock(&self.slot)
            .get_or_insert_with(|| {
                let (done, result) = oneshot::channel();
                let (work, forget) = (start(), Forget(Arc::clone(&self.slot)));
                task = Some(async move {
                    let _forget = forget;
                    let _ = done.send(work.await);
                });
                let call = async move { result.await.unwrap_or_else(|_| Err(dropped())) };
                call.boxed().shared()
            })
            .clone();
        // Without the lock: a runtime that shuts down drops the task at once, and that empties the slot.
        if let Some(task) = task {
            (self.spawn)(Box::pin(task));
        }
        call.await
    }
}

fn dropped() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a call to the CA was dropped before it ended: is the runtime shutting down?",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn new<T: Clone + Send + Sync + 'static>() -> Flight<T> {
        Flight::new(|task| drop(tokio::spawn(task)))
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_come_meanwhile_share_one_call() {
        let flight = Arc::new(new());
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
        assert!(flight.slot.lock().unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_is_not_served_later() {
        let flight = new();
        let slow = |value: u32| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(value)
        };
        let given_up = tokio::time::timeout(Duration::from_millis(5), flight.join(|| slow(1)));
        given_up.await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(
            flight.slot.lock().unwrap().is_none(),
            "what it returned lingers"
        );
        assert_eq!(flight.join(|| slow(2)).await.unwrap(), 2);

        let panics = flight.join(|| async { panic!("on purpose") }).await;
        assert_eq!(panics.unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(flight.join(|| slow(3)).await.unwrap(), 3);
    }
}
