//! Space credit: how many bytes a session may still write before it must ask.
//!
//! Owns: the leader's soft account of free space and of what is promised to whom.
//! Never: counts exactly what is stored; peers do. Credit keeps a full network from being
//! discovered after a write was acknowledged.
//! Invariant: what is promised in all never exceeds what is free, so every promised byte fits.

use crate::cluster::lease::Moment;
use crate::id::{PeerId, SessionId};
use std::collections::BTreeMap;

/// What one grant brings at most: a second or two of fast writing.
pub const GRANT_MAX: u64 = 1 << 30;

/// A session that asks again gets at most this part of what is left, so that others get some.
const SHARE: u64 = 4;

/// A peer's report of free bytes counts for so long.
pub const REPORT_MS: u64 = 60_000;

/// The smallest grant that is worth a round trip; less is full.
pub const GRANT_MIN: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Report {
    free: u64,
    heard: Moment,
}

/// One network's account. A new leader begins with an empty one: sessions tell what they hold with
/// their first heartbeat (`claim`), peers what is free.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credits {
    free: BTreeMap<PeerId, Report>,
    promised: BTreeMap<SessionId, u64>,
}

impl Credits {
    /// `peer` has room for `free` bytes of chunks, its reserve apart.
    pub fn reported(&mut self, now: Moment, peer: PeerId, free: u64) {
        self.free.insert(peer, Report { free, heard: now });
    }

    /// What the session holds and has not written yet.
    pub fn claim(&mut self, session: SessionId, unused: u64) {
        self.promised.insert(session, unused);
    }

    /// `bytes` of the session's credit are chunks on their peers now.
    pub fn used(&mut self, session: SessionId, bytes: u64) {
        if let Some(left) = self.promised.get_mut(&session) {
            *left = left.saturating_sub(bytes);
        }
    }

    pub fn ended(&mut self, session: SessionId) {
        self.promised.remove(&session);
    }

    /// How many bytes the session may write more: 0 says that the network is full.
    pub fn grant(&mut self, now: Moment, session: SessionId, wish: u64, copies: u32) -> u64 {
        let left = self.left(now, copies);
        let share = if left >= SHARE * GRANT_MIN { left / SHARE } else { left };
        let granted = wish.min(share).min(GRANT_MAX);
        if granted < GRANT_MIN.min(wish) {
            return 0;
        }
        let held = self.promised.entry(session).or_default();
        *held = held.saturating_add(granted);
        granted
    }

    /// Bytes of content that still fit, `copies` of each, and are promised to nobody.
    pub fn left(&self, now: Moment, copies: u32) -> u64 {
        let young = self.free.values().filter(|r| now < r.heard.after_ms(REPORT_MS));
        let free: Vec<u64> = young.map(|report| report.free).collect();
        let promised = self.promised.values().fold(0u64, |sum, n| sum.saturating_add(*n));
        room(&free, copies).saturating_sub(promised)
    }
}

/// How much content fits on peers with so much room, each copy on another peer: the most `x` such
/// that each peer's part, at most `x`, sums up to `copies` times `x`.
fn room(free: &[u64], copies: u32) -> u64 {
    let copies = u64::from(copies).clamp(1, free.len().max(1) as u64);
    let mut ascending = free.to_vec();
    ascending.sort_unstable();
    // With the `large` greatest peers filled to `x` each, the others give all that they have.
    let mut best = 0;
    for large in 0..copies.min(ascending.len() as u64) {
        let rest = &ascending[..ascending.len() - large as usize];
        let sum = rest.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
        let x = sum / (copies - large);
        let fits = rest.last().is_none_or(|greatest| *greatest <= x);
        if fits || large + 1 == copies {
            best = x;
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn promises_never_exceed_what_is_free() {
        let mut credits = Credits::default();
        for peer in 1..4 {
            credits.reported(Moment(0), PeerId(peer), 100 * MIB);
        }
        let mut sum = 0;
        for session in 1..200 {
            sum += credits.grant(Moment(1), SessionId(session), 50 * MIB, 3);
        }
        assert!((98 * MIB..=100 * MIB).contains(&sum), "{sum}");
        assert_eq!(credits.grant(Moment(1), SessionId(9), MIB * 2, 3), 0, "full says 0");
        credits.ended(SessionId(1));
        assert!(credits.grant(Moment(1), SessionId(9), MIB, 3) > 0);
        assert_eq!(credits.left(Moment(REPORT_MS), 3), 0, "old reports promise nothing");
    }

    proptest! {
        #[test]
        fn room_is_what_copies_on_different_peers_can_fill(
            free in prop::collection::vec(0..40u64, 1..6), copies in 1..5u32,
        ) {
            let x = room(&free, copies);
            let n = u64::from(copies).min(free.len() as u64);
            let fits = |x: u64| free.iter().map(|f| (*f).min(x)).sum::<u64>() >= n * x;
            prop_assert!(fits(x) && !fits(x + 1), "{x}");
        }
    }
}
