//! Telling of changes to whoever waits, without keeping anything for those who do not.

use super::primitives::{AtomicBool, AtomicU64, Notify, Ordering};

/// Counts changes, and wakes those who wait for the next.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    count: AtomicU64,
    changed: Notify,
}

impl Signal {
    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// There is another one: call it after what it tells of is there to be read.
    pub(crate) fn announce(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Has those who wait look again, at [`ended`](news) for example.
    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }
}

/// Waits until one, or another if there is another, has told of more than was seen. `false`: it has ended, and nothing more will come.
///
/// Whoever ends it sets `ended` first, and wakes one of the two then.
pub(crate) async fn news(
    of: &Signal,
    or: Option<&Signal>,
    seen: &mut [u64; 2],
    ended: &AtomicBool,
) -> bool {
    let mut is_news = || {
        let now = [of.count(), or.map_or(0, Signal::count)];
        std::mem::replace(seen, now) != now
    };
    loop {
        // First without waiting in line, which all workloads of a mesh do.
        if is_news() {
            return true;
        }
        // Who has this is woken by all that comes from here on, so what is looked at after it cannot be missed.
        let (one, other) = (of.changed.notified(), or.unwrap_or(of).changed.notified());
        // Before the last look: what was announced before the end is told before it.
        let ended = ended.load(Ordering::Acquire);
        if is_news() {
            return true;
        }
        if ended {
            return false;
        }
        tokio::select! {
            biased;
            () = one => {}
            () = other => {}
        }
    }
}
