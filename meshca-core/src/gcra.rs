//! Counting requests against a rate.

use std::num::NonZeroU32;
use std::time::Duration;

/// Holds requests to a rate with a burst, by the generic cell rate algorithm (GCRA).
///
/// It neither reads a clock nor sleeps. The caller passes the time since an origin of its own, which
/// never goes back, so tests decide what time it is.
///
/// ```
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use meshca_core::time::Gcra;
///
/// let Some(two) = NonZeroU32::new(2) else { unreachable!() };
/// let mut rate = Gcra::new(Duration::from_secs(1), two);
/// let now = Duration::from_secs(60);
/// for _ in 0..2 {
///     assert_eq!(rate.wait(0, now), Duration::ZERO);
///     rate.take(now);
/// }
/// assert_eq!(rate.wait(0, now), Duration::from_secs(1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    every: Duration,
    /// How far `next` may be ahead of the time: what is left of it is what is left of the burst.
    ahead: Duration,
    /// When the next request would come if all had come evenly.
    next: Duration,
}

impl Gcra {
    /// Allows one request in each of these intervals, and so many at once after a pause.
    pub fn new(every: Duration, burst: NonZeroU32) -> Self {
        Self {
            every,
            ahead: every.saturating_mul(burst.get() - 1),
            next: Duration::ZERO,
        }
    }

    /// Returns how long a request must wait that has so many others before it. Zero means that it
    /// may be made now.
    pub fn wait(&self, others: u32, now: Duration) -> Duration {
        let turn = self
            .next
            .max(now)
            .saturating_add(self.every.saturating_mul(others));
        turn.saturating_sub(now.saturating_add(self.ahead))
    }

    /// Counts a request that is made now.
    pub fn take(&mut self, now: Duration) {
        self.next = self.next.max(now).saturating_add(self.every);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However long callers pause: those who wait as long as they must never exceed the rate in any
        /// stretch of time, and none waits longer than that takes.
        #[test]
        fn no_stretch_of_time_has_more_than_the_rate_and_the_burst(
            every in 1_u64..1000,
            burst in 1_u32..20,
            pauses in prop::collection::vec(prop_oneof![Just(0), 0_u64..3000], 1..200),
        ) {
            let burst = NonZeroU32::new(burst).unwrap();
            let mut rate = Gcra::new(Duration::from_millis(every), burst);
            let mut now = Duration::ZERO;
            let mut made = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause);
                let wait = rate.wait(0, now);
                prop_assert!(wait <= Duration::from_millis(every));
                now += wait;
                prop_assert_eq!(rate.wait(0, now), Duration::ZERO);
                rate.take(now);
                made.push(now);
            }
            for (count, from) in made.iter().enumerate() {
                for (more, to) in made.iter().skip(count).enumerate() {
                    let allowed = u128::from(burst.get()) + (*to - *from).as_millis() / u128::from(every);
                    prop_assert!((more as u128) < allowed, "{more} more between {from:?} and {to:?}");
                }
            }
        }

        /// The place in a line tells the wait: with that many requests made in between, each as soon as
        /// it may be, it is the same.
        #[test]
        fn the_wait_behind_others_is_what_it_turns_out_to_be(
            every in 1_u64..1000,
            burst in 1_u32..20,
            before in 0_u32..30,
            others in 0_u32..30,
        ) {
            let mut rate = Gcra::new(Duration::from_millis(every), NonZeroU32::new(burst).unwrap());
            let begun = Duration::from_secs(60);
            let mut now = begun;
            let pass = |rate: &mut Gcra, now: &mut Duration| {
                *now += rate.wait(0, *now);
                rate.take(*now);
            };
            for _ in 0..before {
                pass(&mut rate, &mut now);
            }
            let (said, asked) = (rate.wait(others, now), now);
            for _ in 0..others {
                pass(&mut rate, &mut now);
            }
            now += rate.wait(0, now);
            prop_assert_eq!(now - asked, said);
        }
    }

    #[test]
    fn the_largest_values_are_counted_without_a_panic() {
        let mut rate = Gcra::new(Duration::MAX, NonZeroU32::MAX);
        rate.take(Duration::MAX);
        assert_eq!(rate.wait(u32::MAX, Duration::MAX), Duration::ZERO);
        let mut rate = Gcra::new(Duration::MAX, NonZeroU32::MIN);
        rate.take(Duration::ZERO);
        assert_eq!(rate.wait(0, Duration::ZERO), Duration::MAX);
    }
}
