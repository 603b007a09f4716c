//! One call at a time, however many want its result.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use meshca_core::{Error, ErrorKind, Result};

/// Whoever comes while a call is under way waits for that one's result.
///
/// The call is a task of its own: a caller that gives up does not take it away from the others.
pub(crate) struct Flight<T: Clone>(Mutex<Option<Shared<BoxFuture<'static, Result<T>>>>>);

impl<T: Clone> Default for Flight<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Waits for the call that is under way, or for the one that `start` makes.
    pub(crate) async fn join<F>(&self, start: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let call = self.current_or(start);
        let result = call.await;
        // What is finished is not kept: it may hold a token.
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|call| call.peek().is_some());
        result
    }

    fn current_or<F>(&self, start: impl FnOnce() -> F) -> Shared<BoxFuture<'static, Result<T>>>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(call) = current.as_ref()
            && call.peek().is_none()
        {
            return call.clone();
        }
        let task = tokio::spawn(start());
        let call = async move {
            task.await.unwrap_or_else(|error| {
                Err(Error::new(
                    ErrorKind::Internal,
                    "a call to Vault was dropped before it ended: is the runtime shutting down?",
                )
                .with_source(error))
            })
        }
        .boxed()
        .shared();
        current.replace(call.clone());
        call
    }
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
}
