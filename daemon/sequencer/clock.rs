//! The voters' clocks as their replies tell them, and the rule that keeps a wrong one from ordering.
//!
//! Owns: how far each voter's clock is from ours.
//! Never: changes an entry: `t` is the leader's, and every voter takes it as it is.
//! Invariant: a leader more than 10 s ahead of the median of a majority proposes nothing.

use mictlan::id::{PeerId, TimeMs};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How far a leader's clock may run ahead. The ledger's time never decreases, so a wrong one
/// would drag the whole network with it.
pub const AHEAD_MAX_MS: i64 = 10_000;

/// The wall clock; a test's is its own.
pub type WallClock = Arc<dyn Fn() -> TimeMs + Send + Sync>;

pub struct Clocks {
    now: WallClock,
    /// Their clock less ours, in milliseconds, as of each voter's last reply.
    offsets: Mutex<BTreeMap<PeerId, i64>>,
}

impl Clocks {
    pub fn new(now: WallClock) -> Self {
        Self { now, offsets: Mutex::default() }
    }

    pub fn now(&self) -> TimeMs {
        (self.now)()
    }

    /// `peer` answered a call of ours, sent at `sent`, and its clock showed `theirs`.
    pub fn heard(&self, peer: PeerId, sent: TimeMs, theirs: TimeMs) {
        let ours = sent.0 + self.now().0.saturating_sub(sent.0) / 2;
        let offset = (theirs.0 as i64).saturating_sub(ours as i64);
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, offset);
    }

    /// How far we are ahead of the median of a majority of `voters`; 0 while fewer answered.
    pub fn ahead_ms(&self, me: PeerId, voters: &[PeerId]) -> i64 {
        let offsets = self.offsets.lock().unwrap_or_else(PoisonError::into_inner);
        let known = voters.iter().filter(|v| **v != me).filter_map(|v| offsets.get(v).copied());
        ahead_ms(known.collect(), voters.len())
    }
}

fn ahead_ms(mut others: Vec<i64>, voters: usize) -> i64 {
    if others.len() < voters / 2 {
        return 0;
    }
    others.push(0);
    others.sort_unstable();
    // Of two middle offsets the higher one: a single late clock must not stop a leader.
    let median = others[others.len() / 2];
    -median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_ahead_of_the_majority_is_ahead() {
        assert_eq!(ahead_ms(vec![], 1), 0, "alone one is never ahead");
        assert_eq!(ahead_ms(vec![], 3), 0, "nothing is known yet");
        assert_eq!(ahead_ms(vec![-20_000, -20_000], 3), 20_000, "both others are behind");
        assert_eq!(ahead_ms(vec![-20_000, 5], 3), 0, "one other is behind");
        assert_eq!(ahead_ms(vec![-20_000], 3), 0, "one against one");
        assert_eq!(ahead_ms(vec![30_000, 30_000], 3), -30_000, "behind is allowed");
    }
}
