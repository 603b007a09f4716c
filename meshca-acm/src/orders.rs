//! What was asked for: each certificate is paid for once.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use meshca_core::issuer::Flight;
use meshca_core::{CertificateRequest, RequestId, Result};
use tokio::time::Instant;

/// How long a certificate that was issued, and that nobody came back for, is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The same for every try of a request. One that was made later for the same key has the same ID, and wants a later end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wish {
    id: RequestId,
    end: SystemTime,
}

impl Wish {
    pub(crate) fn of(request: &CertificateRequest) -> Self {
        Self {
            id: request.id().clone(),
            end: request.not_after(),
        }
    }
}

/// A certificate that is issued and paid for, but perhaps not there yet.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) note: Option<String>,
}

/// Those that are being issued, and those that are and were not handed out yet.
#[derive(Debug, Default)]
pub(crate) struct Orders(Mutex<HashMap<Wish, Order>>);

#[derive(Debug)]
struct Order {
    flight: Arc<Flight<Issued>>,
    issued: Option<Issued>,
    at: Instant,
}

impl Order {
    fn new() -> Self {
        Self {
            flight: Arc::new(Flight::new(|task| drop(tokio::spawn(task)))),
            issued: None,
            at: Instant::now(),
        }
    }
}

impl Orders {
    fn all(&self) -> MutexGuard<'_, HashMap<Wish, Order>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn issued(&self, wish: &Wish) -> Option<Issued> {
        self.all().get(wish)?.issued.clone()
    }

    /// It was handed out, or is of no use: the next call asks for another one.
    pub(crate) fn forget(&self, wish: &Wish) {
        self.all().remove(wish);
    }

    /// Asks, unless another call for the same has asked or is asking. As a task of its own: what AWS answers is remembered even if
    /// whoever called has given up.
    pub(crate) async fn place<F>(self: &Arc<Self>, wish: &Wish, ask: F) -> Result<Issued>
    where
        F: Future<Output = Result<Issued>> + Send + 'static,
    {
        let flight = {
            let mut all = self.all();
            all.retain(|_, order| order.at.elapsed() < REMEMBERED);
            Arc::clone(&all.entry(wish.clone()).or_insert_with(Order::new).flight)
        };
        let (orders, wish) = (Arc::clone(self), wish.clone());
        let work = || async move {
            if let Some(issued) = orders.issued(&wish) {
                return Ok(issued);
            }
            let outcome = ask.await;
            match &outcome {
                Ok(issued) => {
                    let mut all = orders.all();
                    let order = all.entry(wish).or_insert_with(Order::new);
                    order.issued = Some(issued.clone());
                    order.at = Instant::now();
                }
                Err(_) => orders.forget(&wish),
            }
            outcome
        };
        flight.join(work).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use meshca_core::{Error, ErrorKind, KeyType, PrivateKey};
    use meshca_testkit::samples::spec;

    use super::*;

    fn wish(seconds: u64) -> Wish {
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Wish::of(&CertificateRequest::for_key(spec(), &key, at).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_for_all_and_a_failure_leaves_nothing() {
        let orders = Arc::new(Orders::default());
        let asked = Arc::new(AtomicUsize::new(0));
        let wish = wish(1_800_000_000);
        let place = |fails: bool| {
            let (orders, asked, wish) = (Arc::clone(&orders), Arc::clone(&asked), wish.clone());
            let ask = async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let number = asked.fetch_add(1, Ordering::SeqCst);
                match fails {
                    true => Err(Error::new(ErrorKind::Unavailable, "no")),
                    false => Ok(Issued {
                        certificate: number.to_string(),
                        note: None,
                    }),
                }
            };
            async move { orders.place(&wish, ask).await }
        };
        let (one, other) = tokio::join!(place(true), place(true));
        assert!(one.is_err() && other.is_err());
        assert!(orders.all().is_empty());
        // The first of these gives up before the answer is there.
        let impatient = tokio::time::timeout(Duration::from_millis(1), place(false));
        impatient.await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(orders.issued(&wish).unwrap().certificate, "1");
        assert_eq!(place(false).await.unwrap().certificate, "1");
        assert_eq!(asked.load(Ordering::SeqCst), 2);

        tokio::time::sleep(REMEMBERED).await;
        assert_eq!(place(false).await.unwrap().certificate, "2");
        orders.forget(&wish);
        assert!(orders.all().is_empty());
    }
}
