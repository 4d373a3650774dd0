//! One chunk on its way from a copy to the reader.
//!
//! Owns: whom to ask next, when to ask a second peer beside a slow one, when to give up.
//! Never: sends, sleeps, reads a clock, or checks bytes; the driver checks before it says
//! `Arrived`, and says `Lied` when the bytes are not the chunk.
//! Invariants: a peer is asked again only after every peer was asked and a pause; a liar is never
//! asked again and is reported once; nobody is asked to fetch what the reader can have directly;
//! exactly one of `Done` and `GaveUp` is said, last.

use super::latency::Latencies;
use crate::id::{PeerId, TimeMs};

/// A second peer is asked when the first takes this many times as long as it usually does.
const HEDGE_FACTOR: u64 = 3;
/// Below this a hedge costs more than the wait; above, a reader notices.
const HEDGE_MIN_MS: u64 = 20;
const HEDGE_MAX_MS: u64 = 2_000;
/// Each request that is late doubles the wait before the next, up to this many times:
/// a slow network is not made slower, and no silent peers can hide a good one for long.
const DOUBLED_MAX: usize = 4;
/// The pause after a round in which nobody had it; doubles up to the longest.
const FIRST_PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 5_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The chunk's bytes, checked against its address.
    Arrived {
        peer: PeerId,
    },
    Failed {
        peer: PeerId,
        why: Failure,
    },
    /// What came of `Fetch`.
    NotFetched {
        peer: PeerId,
        why: Failure,
    },
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("cannot be reached")]
    Unreachable,
    #[error("does not have it")]
    Missing,
    /// Its own copy is damaged, and it said so.
    #[error("has a damaged copy")]
    Damaged,
    /// It sent bytes that are not the chunk.
    #[error("sent bytes that are not it")]
    Lied,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask for what this peer has itself.
    Ask(PeerId),
    /// This peer answers and has no good copy: have it fetch one from those that do not answer us.
    Fetch(PeerId),
    /// This peer sent wrong bytes: log it, tell the others, have its copy replaced.
    Report {
        liar: PeerId,
    },
    /// Take the bytes; requests still on their way may be dropped.
    Done {
        from: PeerId,
    },
    GaveUp {
        failed: Vec<(PeerId, Failure)>,
    },
}

/// For whom a chunk is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Who needs it: asks again until the deadline, and has others fetch it.
    Reader,
    /// A peer that lacks it, for a reader who asks again himself: one round. It has nobody else
    /// fetch, so no two peers ever wait for each other.
    Peer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Not,
    Waiting {
        hedge_at: TimeMs,
    },
    /// Still on its way, later than usual: another peer is asked beside it.
    Hedged,
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Own,
    Fetch,
}

/// One peer, and one way to get the chunk from it.
#[derive(Debug)]
struct Source {
    peer: PeerId,
    way: Way,
    /// How long it may take before another is asked beside it.
    hedge_ms: u64,
    ask: Ask,
}

#[derive(Debug)]
pub struct GetChunk {
    asker: Asker,
    /// In the order in which they are asked: what peers have, then what they can fetch.
    sources: Vec<Source>,
    give_up_at: TimeMs,
    /// Nobody is asked before: the pause between rounds.
    resume_at: TimeMs,
    pause_ms: u64,
    over: bool,
}

impl GetChunk {
    /// `holders` are the placed copies, `others` every other peer: whoever stored it may have it
    /// still. Each list is asked in the order of measured latency.
    pub fn start(
        asker: Asker,
        holders: &[PeerId],
        others: &[PeerId],
        latencies: &Latencies,
        now: TimeMs,
        give_up_at: TimeMs,
    ) -> (Self, Vec<Effect>) {
        let mut order: Vec<PeerId> = latencies.fastest_first(holders, now);
        for peer in latencies.fastest_first(others, now) {
            if !order.contains(&peer) {
                order.push(peer);
            }
        }
        let source = |peer| {
            let usual = latencies.usual_ms(peer);
            let hedge_ms = (usual * HEDGE_FACTOR).clamp(HEDGE_MIN_MS, HEDGE_MAX_MS);
            Source { peer, way: Way::Own, hedge_ms, ask: Ask::Not }
        };
        let sources = order.into_iter().map(source).collect();
        let (resume_at, pause_ms) = (now, FIRST_PAUSE_MS);
        let mut get = Self { asker, sources, give_up_at, resume_at, pause_ms, over: false };
        let effects = get.go_on(now);
        (get, effects)
    }

    pub fn on(&mut self, now: TimeMs, event: Event) -> Vec<Effect> {
        if self.over {
            return Vec::new();
        }
        let mut effects = Vec::new();
        match event {
            Event::Arrived { peer } => {
                self.over = true;
                return vec![Effect::Done { from: peer }];
            }
            Event::Failed { peer, why } => {
                effects.extend(self.failed(peer, Way::Own, why));
                if matches!(why, Failure::Missing | Failure::Damaged) {
                    self.may_fetch(peer);
                }
            }
            Event::NotFetched { peer, why } => effects.extend(self.failed(peer, Way::Fetch, why)),
            Event::Tick => {}
        }
        effects.extend(self.go_on(now));
        effects
    }

    fn failed(&mut self, peer: PeerId, way: Way, why: Failure) -> Option<Effect> {
        let lied = Ask::Failed(Failure::Lied);
        let known = self.sources.iter().any(|source| source.peer == peer && source.ask == lied);
        let of = |source: &&mut Source| source.peer == peer && source.way == way;
        let source = self.sources.iter_mut().find(of)?;
        if source.ask != lied {
            source.ask = Ask::Failed(why);
        }
        (why == Failure::Lied && !known).then_some(Effect::Report { liar: peer })
    }

    /// A peer that answered can be asked to fetch, when it comes to that.
    fn may_fetch(&mut self, peer: PeerId) {
        let known = |source: &Source| source.peer == peer && source.way == Way::Fetch;
        if self.asker == Asker::Reader && !self.sources.iter().any(known) {
            // It asks several others in turn before it answers.
            let (way, hedge_ms) = (Way::Fetch, HEDGE_MAX_MS);
            self.sources.push(Source { peer, way, hedge_ms, ask: Ask::Not });
        }
    }

    /// When to call `on` with a `Tick`, if nothing else happens.
    pub fn next_tick(&self) -> Option<TimeMs> {
        if self.over {
            return None;
        }
        let hedges = self.sources.iter().filter_map(|source| match source.ask {
            Ask::Waiting { hedge_at } => Some(hedge_at),
            _ => None,
        });
        let resume = (!self.fresh() && self.next().is_some()).then_some(self.resume_at);
        hedges.chain(resume).chain([self.give_up_at]).min()
    }

    fn go_on(&mut self, now: TimeMs) -> Vec<Effect> {
        if now >= self.give_up_at {
            return vec![self.give_up()];
        }
        for source in &mut self.sources {
            if matches!(source.ask, Ask::Waiting { hedge_at } if now >= hedge_at) {
                source.ask = Ask::Hedged;
            }
        }
        if self.fresh() {
            return Vec::new();
        }
        if self.next().is_none() {
            let again = self.sources.iter().any(|source| may_change(source.ask));
            if again && self.asker == Asker::Reader {
                self.next_round(now);
            } else if !self.sources.iter().any(|source| source.ask == Ask::Hedged) {
                return vec![self.give_up()];
            }
        }
        if now < self.resume_at {
            return Vec::new();
        }
        self.ask_next(now).into_iter().collect()
    }

    /// Nobody is left to ask: after a pause those are asked again whose answer may be another then.
    fn next_round(&mut self, now: TimeMs) {
        for source in &mut self.sources {
            if may_change(source.ask) {
                source.ask = Ask::Not;
            }
        }
        self.resume_at = TimeMs(now.0 + self.pause_ms);
        self.pause_ms = (self.pause_ms * 2).min(LONGEST_PAUSE_MS);
    }

    fn ask_next(&mut self, now: TimeMs) -> Option<Effect> {
        let at = self.next()?;
        let slow = self.sources.iter().filter(|source| source.ask == Ask::Hedged).count();
        let doubled = slow.min(DOUBLED_MAX);
        let source = &mut self.sources[at];
        source.ask = Ask::Waiting { hedge_at: TimeMs(now.0 + (source.hedge_ms << doubled)) };
        Some(match source.way {
            Way::Own => Effect::Ask(source.peer),
            Way::Fetch => Effect::Fetch(source.peer),
        })
    }

    /// A request is on its way that may still come in its usual time.
    fn fresh(&self) -> bool {
        self.sources.iter().any(|source| matches!(source.ask, Ask::Waiting { .. }))
    }

    /// Who is to be asked next. To fetch only while somebody who may have it cannot be reached:
    /// what all peers have said that they lack, none of them can fetch.
    fn next(&self) -> Option<usize> {
        let away = Ask::Failed(Failure::Unreachable);
        let away = self.sources.iter().any(|s| s.way == Way::Own && s.ask == away);
        let due = |s: &Source| s.ask == Ask::Not && (s.way == Way::Own || away);
        self.sources.iter().position(due)
    }

    fn give_up(&mut self) -> Effect {
        self.over = true;
        let own = self.sources.iter().filter(|source| source.way == Way::Own);
        let failed = own.map(|source| match source.ask {
            Ask::Failed(why) => (source.peer, why),
            // One that was to be asked, again or at all, may have a copy, and has not said so.
            Ask::Waiting { .. } | Ask::Hedged | Ask::Not => (source.peer, Failure::Unreachable),
        });
        Effect::GaveUp { failed: failed.collect() }
    }
}

/// A peer that could not be reached may be back; one that looked and found nothing will find
/// nothing a moment later, a damaged copy stays damaged, and a liar is not asked twice.
fn may_change(ask: Ask) -> bool {
    ask == Ask::Failed(Failure::Unreachable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: TimeMs = TimeMs(60_000);

    fn get(holders: &[u64], others: &[u64]) -> (GetChunk, Vec<Effect>) {
        get_for(Asker::Reader, holders, others)
    }

    fn get_for(asker: Asker, holders: &[u64], others: &[u64]) -> (GetChunk, Vec<Effect>) {
        let peers = |list: &[u64]| list.iter().map(|n| PeerId(*n)).collect::<Vec<_>>();
        let (holders, others) = (peers(holders), peers(others));
        GetChunk::start(asker, &holders, &others, &Latencies::new(), TimeMs(0), END)
    }

    fn failed(peer: u64, why: Failure) -> Event {
        Event::Failed { peer: PeerId(peer), why }
    }

    #[test]
    fn at_the_deadline_a_peer_that_was_to_be_asked_again_is_named_as_silent() {
        let (mut get, _) = get(&[1], &[]);
        assert_eq!(get.on(TimeMs(1), failed(1, Failure::Unreachable)), [], "a pause");
        let failed = vec![(PeerId(1), Failure::Unreachable)];
        assert_eq!(get.on(END, Event::Tick), [Effect::GaveUp { failed }]);
    }

    #[test]
    fn the_next_copy_is_asked_when_one_fails_and_then_any_peer() {
        let (mut get, effects) = get(&[1, 2], &[2, 3]);
        assert_eq!(effects, [Effect::Ask(PeerId(1))]);
        let next = get.on(TimeMs(1), failed(1, Failure::Unreachable));
        assert_eq!(next, [Effect::Ask(PeerId(2))]);
        let next = get.on(TimeMs(2), failed(2, Failure::Missing));
        assert_eq!(next, [Effect::Ask(PeerId(3))]);
        let done = get.on(TimeMs(3), Event::Arrived { peer: PeerId(3) });
        assert_eq!((done, get.next_tick()), (vec![Effect::Done { from: PeerId(3) }], None));
    }

    #[test]
    fn a_liar_is_reported_once_and_never_asked_again() {
        let (mut get, _) = get(&[1, 2], &[]);
        let next = get.on(TimeMs(1), failed(1, Failure::Lied));
        assert_eq!(next, [Effect::Report { liar: PeerId(1) }, Effect::Ask(PeerId(2))]);
        assert_eq!(get.on(TimeMs(1), failed(1, Failure::Lied)), [], "once");
        assert_eq!(get.on(TimeMs(2), failed(2, Failure::Unreachable)), [], "a pause");
        let resume = get.next_tick().expect("a round follows");
        assert_eq!(resume, TimeMs(2 + FIRST_PAUSE_MS));
        assert_eq!(get.on(resume, Event::Tick), [Effect::Ask(PeerId(2))]);
    }

    #[test]
    fn a_slow_read_is_hedged_and_the_first_answer_counts() {
        let (mut get, _) = get(&[1, 2], &[]);
        let hedge = get.next_tick().expect("a hedge");
        assert_eq!(hedge, TimeMs(30), "three times what is usual");
        assert_eq!(get.on(hedge, Event::Tick), [Effect::Ask(PeerId(2))]);
        assert_eq!(get.next_tick(), Some(TimeMs(90)), "twice as patient");
        assert_eq!(get.on(TimeMs(90), Event::Tick), []);
        assert_eq!(get.next_tick(), Some(END), "nobody is left to hedge with");
        let done = get.on(TimeMs(91), Event::Arrived { peer: PeerId(1) });
        assert_eq!(done, [Effect::Done { from: PeerId(1) }]);
    }

    #[test]
    fn it_gives_up_at_once_when_waiting_changes_nothing_and_else_at_the_deadline() {
        let (mut lost, _) = get(&[1], &[]);
        let gone = lost.on(TimeMs(1), failed(1, Failure::Missing));
        let why = vec![(PeerId(1), Failure::Missing)];
        assert_eq!(gone, [Effect::GaveUp { failed: why }]);
        let (mut silent, _) = get(&[1], &[]);
        let gone = silent.on(END, Event::Tick);
        let why = vec![(PeerId(1), Failure::Unreachable)];
        assert_eq!(gone, [Effect::GaveUp { failed: why }]);
        assert!(matches!(get(&[], &[]).1[..], [Effect::GaveUp { .. }]), "no peers at all");
    }

    #[test]
    fn a_peer_that_lacks_it_fetches_it_when_one_that_may_have_it_cannot_be_reached() {
        let (mut get, _) = get(&[1, 2], &[3]);
        assert_eq!(get.on(TimeMs(1), failed(1, Failure::Unreachable)), [Effect::Ask(PeerId(2))]);
        assert_eq!(get.on(TimeMs(2), failed(2, Failure::Missing)), [Effect::Ask(PeerId(3))]);
        let next = get.on(TimeMs(3), failed(3, Failure::Damaged));
        assert_eq!(next, [Effect::Fetch(PeerId(2))], "all were asked for what they have first");
        let not = Event::NotFetched { peer: PeerId(2), why: Failure::Unreachable };
        assert_eq!(get.on(TimeMs(4), not), [Effect::Fetch(PeerId(3))]);
        let done = get.on(TimeMs(5), Event::Arrived { peer: PeerId(3) });
        assert_eq!(done, [Effect::Done { from: PeerId(3) }]);
    }

    #[test]
    fn nobody_fetches_what_every_peer_says_that_it_lacks() {
        let (mut get, _) = get(&[1, 2], &[]);
        assert_eq!(get.on(TimeMs(1), failed(1, Failure::Missing)), [Effect::Ask(PeerId(2))]);
        let why = vec![(PeerId(1), Failure::Missing), (PeerId(2), Failure::Damaged)];
        let gone = get.on(TimeMs(2), failed(2, Failure::Damaged));
        assert_eq!(gone, [Effect::GaveUp { failed: why }]);
    }

    #[test]
    fn a_peer_asks_each_other_once_and_has_none_fetch() {
        let (mut get, _) = get_for(Asker::Peer, &[1], &[2]);
        assert_eq!(get.on(TimeMs(1), failed(1, Failure::Unreachable)), [Effect::Ask(PeerId(2))]);
        let why = vec![(PeerId(1), Failure::Unreachable), (PeerId(2), Failure::Missing)];
        let gone = get.on(TimeMs(2), failed(2, Failure::Missing));
        assert_eq!(gone, [Effect::GaveUp { failed: why }]);
    }

    /// How a simulated peer answers each time it is asked.
    #[derive(Debug, Clone, Copy)]
    enum Peer {
        Good(u64),
        Fails(Failure),
        Silent,
        /// It has the chunk; the other peers reach it, the reader does not.
        Behind,
    }

    fn any_peer() -> impl Strategy<Value = Peer> {
        let why = prop::sample::select(vec![
            Failure::Unreachable,
            Failure::Missing,
            Failure::Damaged,
            Failure::Lied,
        ]);
        prop_oneof![
            (1u64..5_000).prop_map(Peer::Good),
            why.prop_map(Peer::Fails),
            Just(Peer::Silent),
            Just(Peer::Behind)
        ]
    }

    proptest! {
        #[test]
        fn one_good_peer_that_somebody_reaches_is_enough_and_every_read_ends(
            peers in prop::collection::vec(any_peer(), 0..6),
        ) {
            let has = |peer: &Peer| matches!(peer, Peer::Good(_) | Peer::Behind);
            let found = peers.iter().any(has);
            let all: Vec<u64> = (0..peers.len() as u64).collect();
            let (holders, others) = all.split_at(all.len() / 2);
            let (mut get, mut effects) = get(holders, others);
            let mut answers: Vec<(TimeMs, Event)> = Vec::new();
            let (mut now, mut ends) = (TimeMs(0), Vec::new());
            for _ in 0..10_000 {
                for effect in effects.drain(..) {
                    match effect {
                        Effect::Ask(peer) => match peers[peer.0 as usize] {
                            Peer::Good(ms) => {
                                answers.push((TimeMs(now.0 + ms), Event::Arrived { peer }));
                            }
                            Peer::Fails(why) => {
                                answers.push((TimeMs(now.0 + 1), Event::Failed { peer, why }));
                            }
                            Peer::Behind => {
                                let why = Failure::Unreachable;
                                answers.push((TimeMs(now.0 + 1), Event::Failed { peer, why }));
                            }
                            Peer::Silent => {}
                        },
                        Effect::Fetch(peer) => {
                            let why = Failure::Missing;
                            answers.push((TimeMs(now.0 + 1), match found {
                                true => Event::Arrived { peer },
                                false => Event::NotFetched { peer, why },
                            }));
                        }
                        Effect::Report { .. } => {}
                        end => ends.push(end),
                    }
                }
                let Some(tick) = get.next_tick() else { break };
                answers.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
                let event = match answers.last() {
                    Some((at, _)) if *at <= tick => answers.pop().expect("just seen"),
                    _ => (tick.max(now), Event::Tick),
                };
                now = event.0;
                effects = get.on(now, event.1);
            }
            prop_assert_eq!(ends.len(), 1, "exactly one end");
            prop_assert!(now <= END);
            let lacks = |peer: &Peer| {
                matches!(peer, Peer::Fails(Failure::Missing | Failure::Damaged))
            };
            let good = peers.iter().any(|peer| matches!(peer, Peer::Good(_)));
            if good || (found && peers.iter().any(lacks)) {
                prop_assert!(matches!(ends[0], Effect::Done { .. }), "{ends:?}");
            }
        }
    }
}
