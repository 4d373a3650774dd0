//! The voters' clocks as their replies tell them, and the rule that keeps a wrong one from ordering.
//!
//! Owns: how far each voter's clock is from ours.
//! Never: changes an entry: `t` is the leader's, and every voter takes it as it is.
//! Invariant: a leader more than 10 s ahead of the median of a majority proposes nothing, and gives
//! its leadership up (`propose::may_lead`).

use mictlan::id::{PeerId, TimeMs};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How far a leader's clock may run ahead. The ledger's time never decreases, so a wrong one
/// would drag the whole network with it.
pub const AHEAD_MAX_MS: i64 = 10_000;

/// The wall clock; a test's is its own.
pub type WallClock = Arc<dyn Fn() -> TimeMs + Send + Sync>;

pub struct Clocks {
    now: WallClock,
    /// What is set when somebody sets this machine's clock does not move this one.
    started: Instant,
    /// Each voter's clock less `started`'s age, in milliseconds, as of its last reply.
    offsets: Mutex<BTreeMap<PeerId, i64>>,
}

impl Clocks {
    pub fn new(now: WallClock) -> Self {
        Self { now, started: Instant::now(), offsets: Mutex::default() }
    }

    pub fn now(&self) -> TimeMs {
        (self.now)()
    }

    /// `peer` answered a call of ours, sent at `sent`, and its clock showed `theirs`.
    pub fn heard(&self, peer: PeerId, sent: Instant, theirs: TimeMs) {
        let age = sent.duration_since(self.started) + sent.elapsed() / 2;
        let offset = (theirs.0 as i64).saturating_sub(age.as_millis() as i64);
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, offset);
    }

    /// How far we are ahead of the median of a majority of `voters`; 0 while fewer answered. When our
    /// clock is set, this says so at once, before anybody answers again.
    pub fn ahead_ms(&self, me: PeerId, voters: &[PeerId]) -> i64 {
        let offsets = self.offsets.lock().unwrap_or_else(PoisonError::into_inner);
        let own = (self.now().0 as i64).saturating_sub(self.started.elapsed().as_millis() as i64);
        let others = voters.iter().filter(|v| **v != me);
        let known = others.filter_map(|v| Some(offsets.get(v)?.saturating_sub(own)));
        ahead_ms(known.collect(), voters.len())
    }
}

fn ahead_ms(mut others: Vec<i64>, voters: usize) -> i64 {
    if others.len() < voters / 2 {
        return 0;
    }
    others.push(0);
    others.sort_unstable();
    // Of two middle offsets the lower one: who is right cannot be known, and the one that is behind
    // can lead without harm, while a time that leapt would stay.
    let median = others[(others.len() - 1) / 2];
    -median
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_clock_that_is_set_is_ahead_before_anybody_answers_again() {
        let time = Arc::new(AtomicU64::new(1_000_000_000));
        let clock = time.clone();
        let clocks = Clocks::new(Arc::new(move || TimeMs(clock.load(Ordering::Relaxed))));
        let voters = [PeerId(1), PeerId(2), PeerId(3)];
        for peer in [PeerId(2), PeerId(3)] {
            clocks.heard(peer, Instant::now(), clocks.now());
        }
        assert!(clocks.ahead_ms(PeerId(1), &voters) < AHEAD_MAX_MS);
        time.fetch_add(86_400_000, Ordering::Relaxed);
        assert!(clocks.ahead_ms(PeerId(1), &voters) > 80_000_000, "a day ahead at once");
    }

    #[test]
    fn only_a_clock_ahead_of_the_majority_is_ahead() {
        assert_eq!(ahead_ms(vec![], 1), 0, "alone one is never ahead");
        assert_eq!(ahead_ms(vec![], 3), 0, "nothing is known yet");
        assert_eq!(ahead_ms(vec![-20_000, -20_000], 3), 20_000, "both others are behind");
        assert_eq!(ahead_ms(vec![-20_000, 5], 3), 0, "one other is behind");
        assert_eq!(ahead_ms(vec![-20_000], 3), 20_000, "one against one: the later one leads");
        assert_eq!(ahead_ms(vec![30_000, 30_000], 3), -30_000, "behind is allowed");
    }
}
