//! One chunk on its way to its copies.
//!
//! Owns: which peers were asked, which answered, when to ask another, when to stop waiting.
//! Never: sends, sleeps, or reads a clock; the driver does, and tells.
//! Invariants: a peer counts once; `Durable` is said at most once, after `need` receipts, in
//! domains other than the mount's own as far as peers there can be reached; exactly one of `Done`
//! and `GaveUp` is said, last.

use super::place::Place;
use crate::id::{Label, PeerId, TimeMs};
use std::collections::BTreeMap;

/// A peer that has not answered after this is slow: the next in the order is asked as well, and
/// whoever answers counts. Well above a healthy fsync, well below the deadline of an operation.
pub const PATIENCE_MS: u64 = 3_000;

/// Where the copies go and how many count.
#[derive(Debug, Clone)]
pub struct Plan {
    /// All placed peers, in rendezvous order.
    pub order: Vec<Place>,
    /// The failure domain of the mount's machine.
    pub own: Label,
    /// How many copies there shall be.
    pub copies: usize,
    /// How many of them `fsync` waits for (`place::durable_need`).
    pub need: usize,
    pub give_up_at: TimeMs,
}

/// What the driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A receipt: the peer has it on its disk, stamped.
    Stored {
        peer: PeerId,
        stamp: TimeMs,
    },
    Failed {
        peer: PeerId,
        why: Failure,
    },
    Tick,
}

/// Why a peer did not store a chunk; the next in the order is asked, whatever it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("cannot be reached")]
    Unreachable,
    #[error("is full")]
    Full,
    #[error("takes no writes because its disk failed")]
    OutOfService,
    #[error("refused it")]
    Refused,
}

/// What the driver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Send(PeerId),
    /// Enough copies: `fsync` may go on. The oldest stamp is what a commit's receipt carries.
    Durable {
        oldest: TimeMs,
    },
    /// All that will be asked have answered. Fewer `stored` than copies wanted is a debt (`owed`).
    Done {
        stored: Vec<PeerId>,
    },
    /// Not durable, and nobody is left to ask or the time is over: what to tell the caller.
    GaveUp {
        stored: Vec<PeerId>,
        need: usize,
        failed: Vec<(PeerId, Failure)>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    Asked {
        slow_at: TimeMs,
    },
    /// Asked, and another was asked beside it.
    Slow,
    Stored {
        stamp: TimeMs,
    },
    Failed(Failure),
}

/// The machine. `need`, `copies` and the order do not change while it runs.
#[derive(Debug)]
pub struct PutChunk {
    plan: Plan,
    /// What became of each peer that was asked, by its place in the order.
    asked: Vec<Copy>,
    durable: bool,
    over: bool,
}

impl PutChunk {
    /// Asks the first `copies` peers.
    ///
    /// # Panics
    /// If `need` is 0 or above `copies`: a caller that waits for nothing needs no machine.
    pub fn start(plan: Plan, now: TimeMs) -> (Self, Vec<Effect>) {
        assert!(
            plan.need >= 1 && plan.need <= plan.copies,
            "need {} of {}",
            plan.need,
            plan.copies
        );
        let mut put = Self { plan, asked: Vec::new(), durable: false, over: false };
        let effects = put.go_on(now);
        (put, effects)
    }

    pub fn on(&mut self, now: TimeMs, event: Event) -> Vec<Effect> {
        if self.over {
            return Vec::new();
        }
        match event {
            Event::Stored { peer, stamp } => self.answer(peer, Copy::Stored { stamp }),
            Event::Failed { peer, why } => self.answer(peer, Copy::Failed(why)),
            Event::Tick => {}
        }
        self.go_on(now)
    }

    /// When to call `on` with a `Tick`, if nothing else happens.
    pub fn next_tick(&self) -> Option<TimeMs> {
        if self.over {
            return None;
        }
        let slow = self.asked.iter().filter_map(|copy| match copy {
            Copy::Asked { slow_at } if self.asked.len() < self.plan.order.len() => Some(*slow_at),
            _ => None,
        });
        slow.chain([self.plan.give_up_at]).min()
    }

    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// A receipt stays a receipt: a failure that crosses it changes nothing.
    fn answer(&mut self, peer: PeerId, answer: Copy) {
        let place = self.plan.order.iter().position(|place| place.peer == peer);
        match place.and_then(|at| self.asked.get_mut(at)) {
            Some(Copy::Stored { .. }) | None => {}
            Some(copy) => *copy = answer,
        }
    }

    fn go_on(&mut self, now: TimeMs) -> Vec<Effect> {
        let late = now >= self.plan.give_up_at;
        for copy in &mut self.asked {
            if matches!(copy, Copy::Asked { slow_at } if now >= *slow_at) {
                *copy = Copy::Slow;
            }
        }
        let mut effects = Vec::new();
        if !late {
            let slow_at = TimeMs(now.0.saturating_add(PATIENCE_MS));
            while self.hopeful() < self.plan.copies && self.asked.len() < self.plan.order.len() {
                effects.push(Effect::Send(self.plan.order[self.asked.len()].peer));
                self.asked.push(Copy::Asked { slow_at });
            }
        }
        if !self.durable && self.enough() {
            self.durable = true;
            let oldest = self.stamps().min().expect("need is at least one");
            effects.push(Effect::Durable { oldest });
        }
        effects.extend(self.end(late));
        effects
    }

    /// The last effect, when there is nothing more to wait for.
    fn end(&mut self, late: bool) -> Option<Effect> {
        let stored = self.stored();
        let waiting = self.asked.iter().any(|copy| matches!(copy, Copy::Asked { .. } | Copy::Slow));
        let complete = self.durable && stored.len() >= self.plan.copies;
        if waiting && !late && !complete {
            return None;
        }
        self.over = true;
        if self.durable {
            return Some(Effect::Done { stored });
        }
        let failed = self.asked().filter_map(|(place, copy)| match copy {
            Copy::Failed(why) => Some((place.peer, why)),
            Copy::Asked { .. } | Copy::Slow => Some((place.peer, Failure::Unreachable)),
            Copy::Stored { .. } => None,
        });
        Some(Effect::GaveUp { need: self.plan.need, failed: failed.collect(), stored })
    }

    /// Peers that stored it or may do so in good time.
    fn hopeful(&self) -> usize {
        let good = |copy: &&Copy| matches!(copy, Copy::Asked { .. } | Copy::Stored { .. });
        self.asked.iter().filter(good).count()
    }

    /// `need` receipts, and as many of them from other domains as there are peers to hope for.
    fn enough(&self) -> bool {
        let away = |place: &Place| place.domain != self.plan.own;
        let stored_away = self
            .asked()
            .filter(|(place, copy)| away(place) && matches!(copy, Copy::Stored { .. }))
            .count();
        let hoped_away = self
            .asked()
            .filter(|(place, copy)| away(place) && matches!(copy, Copy::Asked { .. }))
            .count();
        let stored = self.stamps().count();
        stored >= self.plan.need && (stored_away >= self.plan.need || hoped_away == 0)
    }

    fn asked(&self) -> impl Iterator<Item = (&Place, Copy)> {
        self.plan.order.iter().zip(self.asked.iter().copied())
    }

    fn stamps(&self) -> impl Iterator<Item = TimeMs> {
        self.asked.iter().filter_map(|copy| match copy {
            Copy::Stored { stamp } => Some(*stamp),
            _ => None,
        })
    }

    fn stored(&self) -> Vec<PeerId> {
        let stored = self.asked().filter(|(_, copy)| matches!(copy, Copy::Stored { .. }));
        stored.map(|(place, _)| place.peer).collect()
    }
}

/// Chunks that are durable but have fewer copies than they should: finished later, oldest first.
///
/// Bounded: what does not fit is left to healing, which finds it in the peers' inventories.
#[derive(Debug, Default)]
pub struct Owed {
    chunks: BTreeMap<crate::id::ChunkId, Debt>,
}

/// One chunk's debt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    pub stored: Vec<PeerId>,
    pub copies: usize,
    pub since: TimeMs,
    again_at: TimeMs,
    wait_ms: u64,
}

/// How many debts are remembered; above it healing alone finds them.
pub const OWED_MAX: usize = 100_000;
const FIRST_WAIT_MS: u64 = 1_000;
const LONGEST_WAIT_MS: u64 = 60_000;

impl Owed {
    /// Notes what a put left. `false` when there is no room for it.
    pub fn note(
        &mut self,
        chunk: crate::id::ChunkId,
        stored: Vec<PeerId>,
        copies: usize,
        now: TimeMs,
    ) -> bool {
        if stored.len() >= copies {
            self.chunks.remove(&chunk);
            return true;
        }
        if self.chunks.len() >= OWED_MAX && !self.chunks.contains_key(&chunk) {
            return false;
        }
        let old = self.chunks.get(&chunk);
        let wait_ms = old.map_or(FIRST_WAIT_MS, |old| (old.wait_ms * 2).min(LONGEST_WAIT_MS));
        let since = old.map_or(now, |old| old.since);
        let again_at = TimeMs(now.0 + wait_ms);
        self.chunks.insert(chunk, Debt { stored, copies, since, again_at, wait_ms });
        true
    }

    /// Up to `limit` chunks to try again now; each comes back through `note`.
    pub fn due(&mut self, now: TimeMs, limit: usize) -> Vec<(crate::id::ChunkId, Debt)> {
        let mut due: Vec<_> = self.chunks.iter_mut().filter(|(_, d)| d.again_at <= now).collect();
        due.sort_by_key(|(_, debt)| (debt.stored.len(), debt.since));
        let taken = due.into_iter().take(limit).map(|(chunk, debt)| {
            debt.again_at = TimeMs(now.0 + LONGEST_WAIT_MS); // in case nobody comes back with it
            (*chunk, debt.clone())
        });
        taken.collect()
    }

    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// When something is due, if nothing else happens.
    pub fn next_tick(&self) -> Option<TimeMs> {
        self.chunks.values().map(|debt| debt.again_at).min()
    }
}
