//! Who waits for an issuer: the most urgent first, and those that are as urgent in the order in which they came.

use std::collections::VecDeque;

use super::entry::{Entry, Phase, Priority};

/// How many places of those who have left may be kept, however short the queue is.
const SPARE: usize = 64;

/// Whoever leaves is not searched for: its place is found to be empty when it is its turn.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By priority: the number under which it came, and who.
    places: [VecDeque<(u64, u32)>; 3],
    /// How many places are taken.
    taken: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// The numbers go up.
    pub(super) fn push(&mut self, priority: Priority, seq: u64, index: u32) {
        if let Some(places) = self.places.get_mut(priority as usize) {
            places.push_back((seq, index));
            self.taken += 1;
        }
    }

    /// Somebody has left, and is not [`Phase::Queued`] any more.
    pub(super) fn left(&mut self, entries: &[Entry]) {
        self.taken = self.taken.saturating_sub(1);
        let all: usize = self.places.iter().map(VecDeque::len).sum();
        if all > 2 * self.taken + SPARE {
            for places in &mut self.places {
                places.retain(|place| is_taken(*place, entries));
            }
        }
    }

    /// Takes the first of those who are no more urgent than this.
    pub(super) fn pop(&mut self, from: Priority, entries: &[Entry]) -> Option<u32> {
        for places in self.places.iter_mut().skip(from as usize) {
            while let Some(place) = places.pop_front() {
                if is_taken(place, entries) {
                    self.taken = self.taken.saturating_sub(1);
                    return Some(place.1);
                }
            }
        }
        None
    }
}

/// A number is given once: who has come anew, here or elsewhere, has another one.
fn is_taken((number, index): (u64, u32), entries: &[Entry]) -> bool {
    entries
        .get(index as usize)
        .is_some_and(|entry| matches!(entry.phase, Phase::Queued { seq, .. } if seq == number))
}
