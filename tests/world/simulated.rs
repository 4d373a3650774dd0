//! A world of voters and hosts on one thread: a seed replays its network, crashes and clocks.
//!
//! Ordering is an oracle (what a leader flushes while it is up is ordered); everything around it
//! is real: the state on every voter, the leader's leases, the hosts' journals and retries.
//! Messages are lost, doubled, delayed past each other and cut off; voters and hosts crash.

use crate::actors::{Founded, MAIN, Requests, START, founded};
use crate::client::Host;
use mictlan::cluster::lease::{Ask, Effect, Event, Leases, Mode, Moment, Ticket, Unit};
use mictlan::cluster::state::{Entry, Item, Outcome, State, Submission};
use mictlan::id::{ChunkId, Position, SessionId, TimeMs};
use mictlan::ledger::record::body::{Commit, Fence};
use mictlan::ledger::record::{Body, Line, Signed};
use mictlan::meta::tag::TagList;
use std::collections::{BTreeMap, BTreeSet};

mod hosts;
mod promises;

const HOSTS: usize = 3;
const VOTERS: usize = 3;
/// Faults stop here, and what is under way may end.
const CALM_AFTER: u64 = 240_000;
const END: u64 = 480_000;
const RETRY_MS: u64 = 700;

pub fn clock(now: u64) -> TimeMs {
    TimeMs(START.0 + now)
}

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// What a host says to the leader.
#[derive(Clone, Debug)]
enum Call {
    Propose(Item),
    /// A synchronous commit: it waits for the leases of others.
    Commit(Submission),
    Heartbeat {
        session: SessionId,
        sent: u64,
        claims: Option<Ticket>,
    },
    Hold {
        session: SessionId,
        sent: u64,
    },
    Release {
        session: SessionId,
        granted: Ticket,
    },
}

#[derive(Clone, Debug)]
enum Reply {
    Done { item: Item, outcome: Outcome },
    Beat { sent: u64, holds: bool, give_back: Option<Ticket>, size: u64 },
    Granted { ticket: Ticket, sent: u64, size: u64 },
}

#[derive(Clone, Debug)]
enum Happens {
    Step(usize),
    ToLeader(usize, Call),
    ToHost(usize, Reply),
    Flush,
    Follow(usize),
    Fault,
}

struct Leader {
    voter: usize,
    leases: Leases,
    next_ticket: u64,
    passes: BTreeMap<Ticket, (usize, Submission)>,
    holds: BTreeMap<Ticket, (usize, u64)>,
    /// What the next flush orders, for whom, and the pass that ends with it.
    waiting: Vec<(Option<usize>, Item, Option<Ticket>)>,
}

struct Voter {
    state: State,
    applied: usize,
    snapshot: (State, usize),
}

struct World {
    dice: Dice,
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Happens>,
    log: Vec<Entry>,
    /// Every record, as the first voter to apply it made it.
    lines: Vec<Vec<u8>>,
    lists: BTreeMap<Position, TagList>,
    voters: Vec<Voter>,
    leader: Option<Leader>,
    leaders: u64,
    hosts: Vec<Host>,
    cut: BTreeSet<usize>,
    reqs: Requests,
    contents: u64,
    founded: Founded,
}

impl World {
    fn new(seed: u64) -> Self {
        let founded = founded();
        let state = founded.state.clone();
        let voter = || Voter { state: state.clone(), applied: 0, snapshot: (state.clone(), 0) };
        let mut world = Self {
            dice: Dice(seed),
            now: 1,
            order: 0,
            queue: BTreeMap::new(),
            log: Vec::new(),
            lines: founded.lines.clone(),
            lists: BTreeMap::new(),
            voters: (0..VOTERS).map(|_| voter()).collect(),
            leader: None,
            leaders: 0,
            hosts: (0..HOSTS).map(|_| Host::new("alice")).collect(),
            cut: BTreeSet::new(),
            reqs: Requests::new(),
            contents: 0,
            founded,
        };
        // The requests of the founding are used up already.
        (0..100).for_each(|_| {
            world.reqs.next(START);
        });
        world.elect();
        (0..HOSTS).for_each(|host| world.later(host as u64 * 3_000, Happens::Step(host)));
        world.later(500, Happens::Fault);
        world
    }

    fn later(&mut self, wait: u64, what: Happens) {
        self.order += 1;
        self.queue.insert((self.now + wait.max(1), self.order), what);
    }

    fn calm(&self) -> bool {
        self.now >= CALM_AFTER
    }

    /// Sends over a network that loses, doubles and delays, until it is calm.
    fn carry(&mut self, host: usize, message: Happens) {
        let copies = match self.dice.roll(20) {
            0 if !self.calm() => 0,
            1 if !self.calm() => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let slow = if self.dice.roll(30) == 0 && !self.calm() { 8_000 } else { 40 };
            let wait = 1 + self.dice.roll(slow);
            if !self.cut.contains(&host) {
                self.later(wait, message.clone());
            }
        }
    }

    fn run(mut self) -> Self {
        while let Some(((at, _), what)) = self.queue.pop_first() {
            if at > END {
                break;
            }
            self.now = at;
            match what {
                Happens::Step(host) => self.step(host),
                Happens::ToLeader(host, call) => self.heard(host, call),
                Happens::ToHost(host, reply) => self.told(host, reply),
                Happens::Flush => self.flush(),
                Happens::Follow(voter) => drop(self.follow(voter)),
                Happens::Fault => self.fault(),
            }
            let relying = self.hosts.iter().filter(|h| h.may_acknowledge(Moment(self.now)));
            assert!(relying.count() <= 1, "two hosts rely on a write lease");
        }
        self
    }

    fn fault(&mut self) {
        if self.calm() {
            self.cut.clear();
            if self.leader.is_none() {
                self.elect();
            }
            return;
        }
        let host = self.dice.roll(HOSTS as u64) as usize;
        match self.dice.roll(12) {
            0 => self.hosts[host].crash(),
            1 | 2 => drop(self.cut.insert(host)),
            3..=5 => drop(self.cut.remove(&host)),
            6 => self.leader = None,
            7 => {
                // A voter starts again from its snapshot, and follows the log anew.
                let voter = self.dice.roll(VOTERS as u64) as usize;
                if self.leader.as_ref().is_some_and(|leader| leader.voter == voter) {
                    self.leader = None;
                }
                let snapshot = self.voters[voter].snapshot.clone();
                let bytes = postcard::to_allocvec(&snapshot.0).expect("plain data");
                let state = postcard::from_bytes(&bytes).expect("its own bytes");
                self.voters[voter] = Voter { state, applied: snapshot.1, snapshot };
            }
            8 => {
                let voter = &mut self.voters[self.now as usize % VOTERS];
                voter.snapshot = (voter.state.clone(), voter.applied);
            }
            _ => {}
        }
        if self.leader.is_none() && self.dice.roll(2) == 0 {
            self.elect();
        }
        let wait = 200 + self.dice.roll(4_000);
        self.later(wait, Happens::Fault);
    }

    /// A new leader has applied all that is ordered, and knows no lease.
    fn elect(&mut self) {
        let voter = self.dice.roll(VOTERS as u64) as usize;
        self.follow(voter);
        let mut leases = Leases::new(Moment(self.now), self.leaders == 0);
        self.leaders += 1;
        for (session, _) in self.voters[voter].state.open_sessions() {
            leases.on(Moment(self.now), Event::Opened(session));
        }
        let (passes, holds, waiting) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let next_ticket = self.leaders << 32;
        self.leader = Some(Leader { voter, leases, next_ticket, passes, holds, waiting });
    }

    /// Applies what a voter has not applied yet; whoever is first gives the records.
    fn follow(&mut self, voter: usize) -> Vec<Outcome> {
        let mut last = Vec::new();
        let voter = &mut self.voters[voter];
        for entry in &self.log[voter.applied..] {
            last = voter.state.apply(entry);
            for (position, parts) in entry.kept(&last) {
                let list = TagList::decode(&parts.tags).expect("it was certified");
                self.lists.insert(position, list);
            }
            for outcome in &last {
                let Outcome::Accepted { position, record } = outcome else { continue };
                match self.lines.get(position.0 as usize) {
                    Some(line) => assert_eq!(line, record, "replicas differ at {position}"),
                    None => self.lines.push(record.clone()),
                }
            }
        }
        voter.applied = self.log.len();
        last
    }

    fn flush(&mut self) {
        let Some(leader) = &mut self.leader else { return };
        if leader.waiting.is_empty() {
            return;
        }
        let (voter, group) = (leader.voter, std::mem::take(&mut leader.waiting));
        let items: Vec<Item> = group.iter().map(|(_, item, _)| item.clone()).collect();
        // A leader's clock may be off; time never goes back all the same.
        let t = TimeMs(clock(self.now).0 - self.dice.roll(2_000));
        self.log.push(Entry { t, items });
        let outcomes = self.follow(voter);
        for other in 0..VOTERS {
            let wait = 5 + self.dice.roll(3_000);
            self.later(wait, Happens::Follow(other));
        }
        for ((host, item, ticket), outcome) in group.into_iter().zip(outcomes) {
            self.lease_of(&item, &outcome);
            if let Some(ticket) = ticket {
                self.lease(Event::Done(ticket));
            }
            if let Some(host) = host {
                self.carry(host, Happens::ToHost(host, Reply::Done { item, outcome }));
            }
        }
    }

    fn lease_of(&mut self, item: &Item, outcome: &Outcome) {
        match (item, outcome) {
            (_, Outcome::Opened { session }) => self.lease(Event::Opened(*session)),
            (_, Outcome::Closed { session }) => self.lease(Event::Ended(*session)),
            (Item::Record(submission), Outcome::Accepted { record, .. }) => {
                let line = Line::parse(record).expect("a record");
                assert_eq!(line.p.bytes, submission.p);
                if let Ok(Body::Fence(fence)) = line.p.body() {
                    self.lease(Event::Ended(fence.session));
                }
            }
            _ => {}
        }
    }

    fn lease(&mut self, event: Event) {
        let now = Moment(self.now);
        let Some(leader) = &mut self.leader else { return };
        for effect in leader.leases.on(now, event) {
            let Some(leader) = &mut self.leader else { return };
            match effect {
                Effect::Granted { ticket } => {
                    let size = self.voters[leader.voter].state.size();
                    if let Some((host, sent)) = leader.holds.remove(&ticket) {
                        self.carry(
                            host,
                            Happens::ToHost(host, Reply::Granted { ticket, sent, size }),
                        );
                    }
                }
                Effect::Passed { ticket } => {
                    let (host, submission) = leader.passes.remove(&ticket).expect("it waited");
                    let item = Item::Record(submission);
                    leader.waiting.push((Some(host), item, Some(ticket)));
                    self.later(4, Happens::Flush);
                }
                Effect::Denied { ticket, .. } => {
                    leader.holds.remove(&ticket);
                    // The session ended: the order says so, as the answer to the commit itself.
                    if let Some((host, submission)) = leader.passes.remove(&ticket) {
                        leader.waiting.push((Some(host), Item::Record(submission), None));
                        self.later(4, Happens::Flush);
                    }
                }
                // The heartbeats' answers carry it.
                Effect::Recall { .. } => {}
                Effect::Fence { session } => {
                    let req = self.reqs.next(clock(self.now));
                    let reason = "no heartbeat".to_owned();
                    let body = Fence { reason, session, successor: None, volume: MAIN };
                    let state = &self.voters[leader.voter].state;
                    let fence = self.founded.peer.submit(state, req, Body::Fence(body));
                    leader.waiting.push((None, Item::Record(fence), None));
                    self.later(4, Happens::Flush);
                }
            }
        }
    }

    fn heard(&mut self, host: usize, call: Call) {
        self.lease(Event::Tick);
        let Some(leader) = &mut self.leader else { return };
        let ticket = Ticket(leader.next_ticket);
        leader.next_ticket += 1;
        match call {
            Call::Propose(item) => {
                leader.waiting.push((Some(host), item, None));
                self.later(4, Happens::Flush);
            }
            Call::Commit(submission) => {
                let Some(session) = session_of(&submission) else { return };
                leader.passes.insert(ticket, (host, submission));
                let ask = Ask::Pass(vec![Unit::Volume], Mode::Write);
                self.lease(Event::Asked { ticket, session, ask });
            }
            Call::Heartbeat { session, sent, claims } => {
                if let Some(granted) = claims {
                    let (unit, mode) = (Unit::Volume, Mode::Write);
                    self.lease(Event::Claimed { session, unit, mode, granted });
                }
                self.lease(Event::Heartbeat(session));
                let Some(leader) = &self.leader else { return };
                let holds = leader.leases.holds(session, Unit::Volume, Mode::Write);
                let give_back =
                    leader.leases.recalled(session).first().map(|(_, granted)| *granted);
                let size = self.voters[leader.voter].state.size();
                let reply = Reply::Beat { sent, holds, give_back, size };
                self.carry(host, Happens::ToHost(host, reply));
            }
            Call::Hold { session, sent } => {
                leader.holds.insert(ticket, (host, sent));
                let ask = Ask::Hold(Unit::Volume, Mode::Write);
                self.lease(Event::Asked { ticket, session, ask });
            }
            Call::Release { session, granted } => {
                self.lease(Event::Released { session, unit: Unit::Volume, granted });
            }
        }
    }
}

fn session_of(submission: &Submission) -> Option<SessionId> {
    match Signed::parse(&submission.p).and_then(|signed| signed.body()) {
        Ok(Body::Commit(body)) => Some(body.session),
        _ => None,
    }
}

fn payload(content: u64) -> ChunkId {
    mictlan::hash::address(&content.to_be_bytes())
}

fn commits(lines: &[Vec<u8>]) -> impl Iterator<Item = (Position, Commit)> {
    lines.iter().filter_map(|line| {
        let line = Line::parse(line).expect("a record");
        match line.p.body() {
            Ok(Body::Commit(body)) => Some((line.i, body)),
            _ => None,
        }
    })
}
