//! One chunk on its way to its copies.
//!
//! Owns: which peers were asked, which answered, when to ask another, when to stop waiting.
//! Never: sends, sleeps, or reads a clock; the driver does, and tells.
//! Invariants: a peer counts once; `Durable` is said at most once, after `need` receipts, in
//! domains other than the mount's own as far as peers there can be reached; exactly one of `Done`
//! and `GaveUp` is said, last.

use super::place::Place;
use crate::id::{Label, PeerId, TimeMs};

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
    /// A receipt: the peer has it on its disk. It is as old as the question, by the driver's clock.
    Stored {
        peer: PeerId,
        asked: TimeMs,
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
    /// It gave a receipt, for something else.
    #[error("gave receipts for something else")]
    Lied,
}

/// What the driver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Send(PeerId),
    /// Enough copies: `fsync` may go on. A commit says how old the oldest receipt is.
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
        asked: TimeMs,
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
            Event::Stored { peer, asked } => self.answer(peer, Copy::Stored { asked }),
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

    /// Ends a put whose bytes can be kept no longer: what is missing is a debt. `None` when it is
    /// not durable, because then the bytes are nowhere else, or when it is over already.
    pub fn let_go(&mut self) -> Option<Effect> {
        let ends = self.durable && !self.over;
        self.over |= ends;
        ends.then(|| Effect::Done { stored: self.stored() })
    }

    /// Who was asked and has said nothing yet.
    pub fn unanswered(&self) -> impl Iterator<Item = PeerId> {
        let open = self.asked().filter(|(_, c)| matches!(c, Copy::Asked { .. } | Copy::Slow));
        open.map(|(place, _)| place.peer)
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
            let oldest = self.receipts().min().expect("need is at least one");
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
        let stored = self.receipts().count();
        stored >= self.plan.need && (stored_away >= self.plan.need || hoped_away == 0)
    }

    fn asked(&self) -> impl Iterator<Item = (&Place, Copy)> {
        self.plan.order.iter().zip(self.asked.iter().copied())
    }

    fn receipts(&self) -> impl Iterator<Item = TimeMs> {
        self.asked.iter().filter_map(|copy| match copy {
            Copy::Stored { asked } => Some(*asked),
            _ => None,
        })
    }

    fn stored(&self) -> Vec<PeerId> {
        let stored = self.asked().filter(|(_, copy)| matches!(copy, Copy::Stored { .. }));
        stored.map(|(place, _)| place.peer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: TimeMs = TimeMs(60_000);

    /// Peers 0, 1, … each in a domain of its own; the mount is on peer `own`'s machine.
    fn put(peers: u64, own: u64, copies: usize, need: usize) -> (PutChunk, Vec<Effect>) {
        let domain = |n: u64| Label::parse(&format!("d{n}")).expect("a label");
        let order = (0..peers).map(|n| Place { peer: PeerId(n), domain: domain(n) }).collect();
        let plan = Plan { order, own: domain(own), copies, need, give_up_at: END };
        PutChunk::start(plan, TimeMs(0))
    }

    fn stored(peer: u64) -> Event {
        Event::Stored { peer: PeerId(peer), asked: TimeMs(100 + peer) }
    }

    fn failed(peer: u64) -> Event {
        Event::Failed { peer: PeerId(peer), why: Failure::Unreachable }
    }

    fn send(peer: u64) -> Effect {
        Effect::Send(PeerId(peer))
    }

    fn done(peers: &[u64]) -> Effect {
        Effect::Done { stored: peers.iter().map(|n| PeerId(*n)).collect() }
    }

    #[test]
    fn a_durable_put_can_be_let_go_and_another_cannot() {
        let (mut put, _) = put(3, 9, 3, 2);
        assert_eq!(put.let_go(), None, "the bytes are nowhere else");
        put.on(TimeMs(1), stored(0));
        assert_eq!(put.let_go(), None, "one copy of two");
        put.on(TimeMs(2), stored(2));
        assert_eq!(put.unanswered().collect::<Vec<_>>(), [PeerId(1)]);
        let done = Effect::Done { stored: vec![PeerId(0), PeerId(2)] };
        assert_eq!(put.let_go(), Some(done));
        assert_eq!((put.let_go(), put.next_tick()), (None, None), "the end is said once");
        assert_eq!(put.on(TimeMs(3), stored(1)), []);
    }

    #[test]
    fn a_chunk_is_durable_only_after_enough_peers_stored_it() {
        let (mut put, sent) = put(3, 9, 3, 2);
        assert_eq!(sent, [send(0), send(1), send(2)]);
        assert_eq!(put.on(TimeMs(1), stored(1)), []);
        assert_eq!(put.on(TimeMs(2), stored(1)), [], "one peer counts once");
        assert_eq!(put.on(TimeMs(2), failed(1)), [], "a receipt stays a receipt");
        let durable = put.on(TimeMs(3), stored(0));
        assert_eq!(durable, [Effect::Durable { oldest: TimeMs(100) }]);
        assert_eq!(put.on(TimeMs(4), stored(2)), [done(&[0, 1, 2])], "on to all copies");
        assert_eq!(put.next_tick(), None);
    }

    #[test]
    fn the_mounts_own_machine_does_not_count_where_others_can_be_reached() {
        let (mut put, _) = put(3, 0, 3, 2);
        assert_eq!(put.on(TimeMs(1), stored(0)), []);
        assert_eq!(put.on(TimeMs(2), stored(1)), [], "peer 2 may still answer");
        let durable = put.on(TimeMs(3), failed(2));
        let oldest = TimeMs(100);
        assert_eq!(durable, [Effect::Durable { oldest }, done(&[0, 1])], "it cannot be reached");
    }

    #[test]
    fn two_peers_both_count_and_one_peer_is_this_machine() {
        let (mut two, _) = put(2, 0, 2, 2);
        assert_eq!(two.on(TimeMs(1), stored(0)), []);
        assert_eq!(two.on(TimeMs(2), stored(1)).len(), 2, "durable and done");
        let (mut one, _) = put(1, 0, 1, 1);
        assert_eq!(one.on(TimeMs(1), stored(0)).len(), 2);
    }

    #[test]
    fn a_failed_peer_is_replaced_by_the_next_in_the_order() {
        let (mut put, sent) = put(4, 9, 2, 2);
        assert_eq!(sent, [send(0), send(1)]);
        assert_eq!(put.on(TimeMs(1), failed(0)), [send(2)]);
        assert_eq!(put.on(TimeMs(2), failed(2)), [send(3)]);
        put.on(TimeMs(3), stored(3));
        let end = put.on(TimeMs(4), stored(1));
        assert_eq!(end, [Effect::Durable { oldest: TimeMs(101) }, done(&[1, 3])]);
    }

    #[test]
    fn a_slow_peer_gets_another_beside_it_and_whoever_answers_counts() {
        let (mut put, _) = put(3, 9, 2, 2);
        put.on(TimeMs(1), stored(0));
        assert_eq!(put.next_tick(), Some(TimeMs(PATIENCE_MS)));
        assert_eq!(put.on(TimeMs(PATIENCE_MS), Event::Tick), [send(2)]);
        let end = put.on(TimeMs(PATIENCE_MS + 1), stored(1));
        assert_eq!(end.last(), Some(&done(&[0, 1])));
    }

    #[test]
    fn it_gives_up_at_the_deadline_and_names_who_failed() {
        let (mut put, _) = put(2, 9, 2, 2);
        put.on(TimeMs(1), stored(0));
        let end = put.on(END, Event::Tick);
        let failed = vec![(PeerId(1), Failure::Unreachable)];
        assert_eq!(end, [Effect::GaveUp { stored: vec![PeerId(0)], need: 2, failed }]);
        assert_eq!(put.on(END, stored(1)), [], "too late");
    }

    proptest! {
        /// Peers answer, fail or keep silent in any order; the machine keeps its promises.
        #[test]
        fn durable_is_said_once_and_only_after_need_receipts(
            peers in 1u64..6, own in 0u64..7, copies in 1usize..4, need in 1usize..4,
            events in prop::collection::vec((0u64..6, 0u8..3, 0u64..9_000), 0..40),
        ) {
            let need = need.min(copies);
            let (mut put, mut effects) = put(peers, own, copies, need);
            let (mut asked, mut receipts) = (Vec::new(), std::collections::BTreeSet::new());
            let (mut durable, mut ends, mut now) = (0, 0, TimeMs(0));
            let tail = [(0, 2, END.0)];
            for (peer, what, wait) in events.into_iter().chain(tail) {
                for effect in effects.drain(..) {
                    prop_assert_eq!(ends, 0, "nothing after the end");
                    match effect {
                        Effect::Send(peer) => {
                            prop_assert!(!asked.contains(&peer), "asked once");
                            asked.push(peer);
                        }
                        Effect::Durable { .. } => {
                            durable += 1;
                            prop_assert!(receipts.len() >= need);
                        }
                        Effect::Done { stored } => {
                            ends += 1;
                            prop_assert_eq!(durable, 1);
                            prop_assert!(stored.iter().all(|peer| receipts.contains(peer)));
                        }
                        Effect::GaveUp { .. } => {
                            ends += 1;
                            prop_assert_eq!(durable, 0);
                        }
                    }
                }
                now = TimeMs(now.0 + wait);
                let peer = PeerId(peer);
                effects = match what {
                    0 if asked.contains(&peer) => {
                        receipts.insert(peer);
                        put.on(now, Event::Stored { peer, asked: now })
                    }
                    1 if asked.contains(&peer) => {
                        put.on(now, Event::Failed { peer, why: Failure::Full })
                    }
                    _ => put.on(now, Event::Tick),
                };
            }
            let last = effects.iter().filter(|effect| {
                matches!(effect, Effect::Done { .. } | Effect::GaveUp { .. })
            });
            prop_assert_eq!(ends + last.count(), 1, "exactly one end");
        }
    }
}
