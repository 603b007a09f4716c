//! The driver writes cells while others read them and wait: in every order in which that can happen, as loom finds them.
//!
//! The sources are those that are used; only what they are made of is loom's. An [`ArcSwap`](primitives::ArcSwap) is a lock here: that it
//! takes none is its own affair, and so is what tokio's `Notify` is made of.

#![allow(clippy::duplicate_mod, reason = "that is the point")]

#[path = "cell.rs"]
#[allow(dead_code, reason = "not all of it is of interest here")]
mod cell;
#[path = "signal.rs"]
mod signal;

use std::sync::{Arc, OnceLock};

use loom::future::block_on;
use loom::thread;
use meshca_core::{Clock, Identity, IssuingCa, SpiffeId, TrustDomain};
use meshca_testkit::{FakeClock, FaultyIssuer};

use super::{health, status};
use crate::{BackendKey, TrustVersion};
use cell::{MeshCell, PublishedTrust, WorkloadCell};
use primitives::{AtomicBool, AtomicU8, Ordering};
use signal::{Signal, news};

mod primitives {
    use std::collections::BTreeMap;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use loom::sync::Mutex;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

    #[derive(Debug)]
    pub(crate) struct ArcSwap<T>(Mutex<Arc<T>>);

    impl<T: Default> Default for ArcSwap<T> {
        fn default() -> Self {
            Self(Mutex::new(Arc::default()))
        }
    }

    impl<T> ArcSwap<T> {
        pub(crate) fn load(&self) -> Arc<T> {
            Arc::clone(&self.0.lock().unwrap())
        }

        pub(crate) fn store(&self, new: Arc<T>) {
            *self.0.lock().unwrap() = new;
        }
    }

    #[derive(Debug)]
    pub(crate) struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

    impl<T> Default for ArcSwapOption<T> {
        fn default() -> Self {
            Self(Mutex::new(None))
        }
    }

    impl<T> ArcSwapOption<T> {
        pub(crate) fn load(&self) -> Option<Arc<T>> {
            self.0.lock().unwrap().clone()
        }

        pub(crate) fn load_full(&self) -> Option<Arc<T>> {
            self.load()
        }

        pub(crate) fn store(&self, new: Option<Arc<T>>) {
            self.swap(new);
        }

        pub(crate) fn swap(&self, new: Option<Arc<T>>) -> Option<Arc<T>> {
            std::mem::replace(&mut *self.0.lock().unwrap(), new)
        }
    }

    /// As far as signals use it: whoever has asked to be notified is, by all that comes after.
    #[derive(Debug, Default)]
    pub(crate) struct Notify(Mutex<Waiting>);

    #[derive(Debug, Default)]
    struct Waiting {
        times: u64,
        asked: u64,
        wakers: BTreeMap<u64, Waker>,
    }

    impl Notify {
        pub(crate) fn notified(&self) -> Notified<'_> {
            let mut waiting = self.0.lock().unwrap();
            waiting.asked += 1;
            Notified {
                of: self,
                times: waiting.times,
                number: waiting.asked,
            }
        }

        pub(crate) fn notify_waiters(&self) {
            let mut waiting = self.0.lock().unwrap();
            waiting.times += 1;
            let wakers = std::mem::take(&mut waiting.wakers);
            drop(waiting);
            wakers.into_values().for_each(Waker::wake);
        }
    }

    pub(crate) struct Notified<'a> {
        of: &'a Notify,
        times: u64,
        number: u64,
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let mut waiting = self.of.0.lock().unwrap();
            if waiting.times != self.times {
                return Poll::Ready(());
            }
            waiting.wakers.insert(self.number, context.waker().clone());
            Poll::Pending
        }
    }

    impl Drop for Notified<'_> {
        fn drop(&mut self) {
            self.of.0.lock().unwrap().wakers.remove(&self.number);
        }
    }
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // How often one thread may take the place of another that could go on. With any number it takes hours; those that these have found took
    // two and three.
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Two identities.
fn identities() -> [Arc<Identity>; 2] {
    static MADE: OnceLock<[Arc<Identity>; 2]> = OnceLock::new();
    let make = || {
        let clock = FakeClock::new();
        let domain = TrustDomain::new("example.org").unwrap();
        let ca = IssuingCa::new(FaultyIssuer::new(domain, Arc::new(clock.clone())).unwrap());
        ["one", "two"].map(|name| {
            let id = SpiffeId::new(format!("spiffe://example.org/{name}")).unwrap();
            let spec = meshca_core::CertificateSpec::workload(id);
            let clock: &dyn Clock = &clock;
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            Arc::new(runtime.unwrap().block_on(ca.issue(&spec, clock)).unwrap())
        })
    };
    MADE.get_or_init(make).clone()
}

fn hand_out(cell: &WorkloadCell, identity: &Arc<Identity>, by: &Arc<BackendKey>) {
    cell.prepare_issuer(by);
    cell.set_identity(Some(Arc::clone(identity)));
    cell.set_issuer(by);
    cell.announce();
}

#[test]
fn whoever_waits_sees_what_was_announced_last() {
    explore(|| {
        let signals = loom::sync::Arc::new([Signal::default(), Signal::default()]);
        let health = loom::sync::Arc::new(AtomicU8::new(0));
        let (of_driver, its_health) = (signals.clone(), health.clone());
        let driver = thread::spawn(move || {
            let [workload, mesh] = &*of_driver;
            workload.announce();
            its_health.store(1, Ordering::Release);
            mesh.announce();
        });
        let [workload, mesh] = &*signals;
        let never = AtomicBool::new(false);
        let mut seen = [0; 2];
        // If a wake-up were lost, this would wait for ever, and loom would say so.
        while seen != [1; 2] {
            assert!(block_on(news(workload, Some(mesh), &mut seen, &never)));
        }
        assert_eq!(health.load(Ordering::Acquire), 1);
        driver.join().unwrap();
    });
}

#[test]
fn whoever_waits_hears_of_the_end() {
    explore(|| {
        let signal = loom::sync::Arc::new((Signal::default(), AtomicBool::new(false)));
        let of_driver = signal.clone();
        let driver = thread::spawn(move || {
            of_driver.0.announce();
            of_driver.1.store(true, Ordering::Release);
            of_driver.0.wake();
        });
        let (it, ended) = &*signal;
        let mut seen = [0; 2];
        let mut heard = 0;
        while block_on(news(it, None, &mut seen, ended)) {
            heard += 1;
        }
        // What was announced before the end is told before it.
        assert_eq!((heard, seen), (1, [1, 0]));
        driver.join().unwrap();
    });
}

#[test]
fn an_identity_is_never_taken_for_that_of_another_ca() {
    let [one, two] = identities();
    let [a, b] = ["a", "b"].map(|it| Arc::new(BackendKey::Modern(it.to_owned())));
    explore(move || {
        let cell = loom::sync::Arc::new(WorkloadCell::default());
        hand_out(&cell, &one, &a);
        let of_driver = cell.clone();
        let [its_one, its_two] = [Arc::clone(&one), Arc::clone(&two)];
        let [its_a, its_b] = [Arc::clone(&a), Arc::clone(&b)];
        let driver = thread::spawn(move || {
            // There and back: what is seen before and after is the same.
            hand_out(&of_driver, &its_two, &its_b);
            hand_out(&of_driver, &its_one, &its_a);
        });
        if let Some((identity, by)) = cell.issued() {
            let of_one = Arc::ptr_eq(&identity, &one);
            assert_eq!(of_one, Arc::ptr_eq(&by, &a));
        }
        driver.join().unwrap();
        let (identity, by) = cell.issued().unwrap();
        assert!(Arc::ptr_eq(&identity, &one) && Arc::ptr_eq(&by, &a));
    });
}

#[test]
fn whoever_reads_the_identity_first_has_the_trust_that_it_needs() {
    let [one, two] = identities();
    let new_version = TrustVersion::default().next();
    explore(move || {
        let cell = loom::sync::Arc::new(WorkloadCell::default());
        let mesh = loom::sync::Arc::new(MeshCell::new("default".to_owned()));
        cell.set_identity(Some(Arc::clone(&one)));
        let (of_driver, its_mesh, new) = (cell.clone(), mesh.clone(), Arc::clone(&two));
        let driver = thread::spawn(move || {
            let trust = PublishedTrust {
                version: new_version,
                ..PublishedTrust::default()
            };
            its_mesh.trust.store(Arc::new(trust));
            of_driver.set_identity(Some(new));
        });
        let identity = cell.identity().unwrap();
        let trust = mesh.trust.load().version;
        assert!(trust == new_version || Arc::ptr_eq(&identity, &one));
        driver.join().unwrap();
    });
}
