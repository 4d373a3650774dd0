//! Leases: which session may answer from its own state, or change it before committing.
//!
//! Owns: the leader's soft table of one volume: live sessions, holders, who waits, terms.
//! Never: decides whether a commit is right. `certify` does, so that a wrong lease costs time or a
//! recovered file, never a silent loss. Sends nothing, sleeps never, reads no clock: the driver
//! brings events and its boot clock's time, and does what the effects say.
//! Invariant: from its grant until its release, or until its session's fence is ordered, a write
//! lease overlaps no lease of another session, and nothing passes it.

use crate::id::SessionId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A lease is good for so long after the request that granted or renewed it was *sent*. Long
/// enough for four lost heartbeats, short enough that a dead holder is no more than a pause.
pub const TERM_MS: u64 = 10_000;

/// Sessions send heartbeats this often; each renews all that the session holds.
pub const HEARTBEAT_MS: u64 = 2_000;

/// A holder that lives but has not given way so long after its recall is fenced: others wait at
/// most 60 s for anything, and the fence, too, takes time.
pub const RECALL_MAX_MS: u64 = 40_000;

/// Requests that wait on one volume; more are told to come back.
pub const WAITING_MAX: usize = 1_024;

/// Milliseconds of a clock that goes on while the machine sleeps, from any origin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    pub fn after_ms(self, ms: u64) -> Moment {
        Moment(self.0.saturating_add(ms))
    }
}

/// What a lease covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Unit {
    /// The whole volume: for a session that is alone on it.
    Volume,
    /// A directory, or a file of several links, by a keyed hash: voters learn no inode number.
    Part([u8; 8]),
    /// The right to build the next snapshot root, beside whatever else is held.
    Snapshot,
}

impl Unit {
    pub fn overlaps(self, other: Unit) -> bool {
        let part = |unit| unit != Unit::Snapshot;
        let either = self == Unit::Volume || other == Unit::Volume;
        self == other || either && part(self) && part(other)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Mode {
    Read,
    Write,
}

/// What a session asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// To keep the unit until it is recalled.
    Hold(Unit, Mode),
    /// To do one operation on these units, without keeping anything: a synchronous commit
    /// (write), or a read at the leader's confirmed position.
    Pass(Vec<Unit>, Mode),
}

/// The driver's name for a request that it will have to answer, never used twice. A lease is
/// known by the ticket that granted it last, so that a release which comes late, or twice, does
/// not give away a lease that was granted anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Ticket(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The replicated state has this session open: said for each one when a leader begins.
    Opened(SessionId),
    /// Its close, or its fence, is applied.
    Ended(SessionId),
    Heartbeat(SessionId),
    Asked {
        ticket: Ticket,
        session: SessionId,
        ask: Ask,
    },
    /// What a session held under the last leader, told to the new one in its first term.
    Claimed {
        session: SessionId,
        unit: Unit,
        mode: Mode,
        granted: Ticket,
    },
    Released {
        session: SessionId,
        unit: Unit,
        granted: Ticket,
    },
    /// Nobody waits for the answer any more.
    Withdrawn(Ticket),
    /// What a passed write was for is ordered or refused, so it can come no more.
    Done(Ticket),
    Tick,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A `Hold` is granted, for `TERM_MS` from when its request was sent.
    Granted {
        ticket: Ticket,
    },
    /// A `Pass` may happen now; a write is `Done` later, and until then nobody gets a lease that
    /// it would break into.
    Passed {
        ticket: Ticket,
    },
    Denied {
        ticket: Ticket,
        why: Denial,
    },
    /// The session is to commit what it holds back under `unit`, and to release it.
    Recall {
        session: SessionId,
        unit: Unit,
        granted: Ticket,
    },
    /// Order a `net.fence` of this session, without a successor: it died or does not give way.
    Fence {
        session: SessionId,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Denial {
    #[error("another session is on the volume; commit each operation instead")]
    NotAlone,
    #[error("the session is not open")]
    NotOpen,
    #[error("too many requests wait on this volume; try again")]
    Busy,
    #[error("another session claimed an overlapping lease first, or the time for claims is over")]
    ClaimedOtherwise,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Live {
    heard: Moment,
    /// A fence was asked for; nothing is renewed any more.
    doomed: bool,
    /// When its oldest unanswered recall was sent.
    recalled: Option<Moment>,
    holds: BTreeMap<Unit, (Mode, Ticket)>,
    /// Writes that passed and are not done.
    passing: BTreeMap<Ticket, Vec<Unit>>,
}

impl Live {
    fn is_idle(&self) -> bool {
        self.holds.is_empty() && self.passing.is_empty()
    }

    /// Whether what it has excludes another session's wish. Passes do not exclude each other:
    /// certification lets the first one through.
    fn excludes(&self, wish: &Waiter) -> bool {
        let overlaps = |unit: &Unit| wish.units.iter().any(|wanted| wanted.overlaps(*unit));
        let mut held = self.holds.iter();
        held.any(|(unit, (by, _))| wish.mode.max(*by) == Mode::Write && overlaps(unit))
            || wish.holds && self.passing.values().flatten().any(overlaps)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Waiter {
    ticket: Ticket,
    session: SessionId,
    units: Vec<Unit>,
    mode: Mode,
    /// Keeps what it gets.
    holds: bool,
}

/// One volume's leases, as its leader sees them.
///
/// The driver owes one thing: an event is fed only after a quorum has confirmed, since the event
/// arrived, that this voter still leads. Otherwise a deposed leader could renew a term past the
/// new one's first term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leases {
    /// Until then only claims are granted: the last leader's terms are running out.
    claims_until: Moment,
    live: BTreeMap<SessionId, Live>,
    waiting: VecDeque<Waiter>,
}

impl Leases {
    /// The table of a leader that began at `now`. `first` says that no leader was there before.
    pub fn new(now: Moment, first: bool) -> Self {
        let claims_until = if first { now } else { now.after_ms(TERM_MS) };
        Self { claims_until, live: BTreeMap::new(), waiting: VecDeque::new() }
    }

    pub fn on(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Opened(session) => self.opened(now, session),
            Event::Ended(session) => self.ended(session, &mut effects),
            Event::Heartbeat(session) => self.heard(now, session),
            Event::Asked { ticket, session, ask } => {
                self.asked(now, ticket, session, ask, &mut effects);
            }
            Event::Claimed { session, unit, mode, granted } => {
                self.claimed(now, session, unit, mode, granted);
            }
            Event::Released { session, unit, granted } => self.released(session, unit, granted),
            Event::Withdrawn(ticket) => self.waiting.retain(|w| w.ticket != ticket),
            Event::Done(ticket) => self.done(ticket),
            Event::Tick => {}
        }
        self.recall_what_shares(now, &mut effects);
        self.serve(now, &mut effects);
        effects
    }

    /// When the driver should send a `Tick`, if nothing happens before.
    pub fn next_tick(&self) -> Option<Moment> {
        let recalls = self.live.values().filter(|l| !l.doomed).filter_map(|live| {
            let recalled = live.recalled?;
            Some(recalled.after_ms(RECALL_MAX_MS).min(live.heard.after_ms(TERM_MS)))
        });
        let claims = (!self.waiting.is_empty()).then_some(self.claims_until);
        recalls.chain(claims).min()
    }

    /// Whether `session` holds `unit`, or more, in `mode`, or more.
    pub fn holds(&self, session: SessionId, unit: Unit, mode: Mode) -> bool {
        let Some(live) = self.live.get(&session) else { return false };
        live.holds.iter().any(|(held, (by, _))| {
            *by >= mode && (*held == unit || *held == Unit::Volume && unit.overlaps(*held))
        })
    }

    /// What `session` is to give back: repeated with each heartbeat's answer, as a recall is lost
    /// as easily as any message.
    pub fn recalled(&self, session: SessionId) -> Vec<(Unit, Ticket)> {
        let Some(live) = self.live.get(&session) else { return Vec::new() };
        let all = || live.holds.iter().map(|(unit, (_, granted))| (*unit, *granted)).collect();
        live.recalled.map_or_else(Vec::new, |_| all())
    }

    fn opened(&mut self, now: Moment, session: SessionId) {
        let (holds, passing) = (BTreeMap::new(), BTreeMap::new());
        let fresh = Live { heard: now, doomed: false, recalled: None, holds, passing };
        self.live.entry(session).or_insert(fresh);
    }

    fn ended(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        self.live.remove(&session);
        let (gone, rest) = self.waiting.drain(..).partition(|w| w.session == session);
        self.waiting = rest;
        let gone: VecDeque<Waiter> = gone;
        effects.extend(gone.iter().map(|w| denied(w.ticket, Denial::NotOpen)));
    }

    fn heard(&mut self, now: Moment, session: SessionId) {
        if let Some(live) = self.live.get_mut(&session) {
            live.heard = live.heard.max(now);
        }
    }

    fn asked(
        &mut self,
        now: Moment,
        ticket: Ticket,
        session: SessionId,
        ask: Ask,
        effects: &mut Vec<Effect>,
    ) {
        self.heard(now, session);
        let open = self.live.get(&session).is_some_and(|live| !live.doomed);
        let (units, mode, holds) = match ask {
            Ask::Hold(unit, mode) => (vec![unit], mode, true),
            Ask::Pass(units, mode) => (units, mode, false),
        };
        let why = match () {
            () if !open => Denial::NotOpen,
            () if self.waiting.len() >= WAITING_MAX => Denial::Busy,
            () if holds && units[0] == Unit::Volume && !self.is_alone(now, session) => {
                Denial::NotAlone
            }
            () => {
                self.waiting.push_back(Waiter { ticket, session, units, mode, holds });
                return;
            }
        };
        effects.push(denied(ticket, why));
    }

    fn claimed(
        &mut self,
        now: Moment,
        session: SessionId,
        unit: Unit,
        mode: Mode,
        granted: Ticket,
    ) {
        let wish = Waiter { ticket: granted, session, units: vec![unit], mode, holds: true };
        // A claim that cannot be taken needs no answer: the holder's term runs out by itself.
        if now < self.claims_until && self.in_the_way(&wish).is_empty() {
            self.heard(now, session);
            self.keep(session, unit, mode, granted);
        }
    }

    fn released(&mut self, session: SessionId, unit: Unit, granted: Ticket) {
        if let Some(live) = self.live.get_mut(&session) {
            if live.holds.get(&unit).is_some_and(|(_, newest)| *newest == granted) {
                live.holds.remove(&unit);
            }
            if live.is_idle() {
                live.recalled = None;
            }
        }
    }

    fn done(&mut self, ticket: Ticket) {
        for live in self.live.values_mut() {
            if live.passing.remove(&ticket).is_some() && live.is_idle() {
                live.recalled = None;
            }
        }
    }

    fn keep(&mut self, session: SessionId, unit: Unit, mode: Mode, granted: Ticket) {
        if let Some(live) = self.live.get_mut(&session) {
            let (held, newest) = live.holds.entry(unit).or_insert((mode, granted));
            (*held, *newest) = (mode.max(*held), granted);
        }
    }

    /// Silent sessions that hold and do nothing are not counted: a laptop that sleeps must not keep
    /// everybody else slow. If it wakes, the holder is recalled again.
    fn is_alone(&self, now: Moment, session: SessionId) -> bool {
        let counts = |live: &Live| !live.is_idle() || now < live.heard.after_ms(TERM_MS);
        self.live.iter().all(|(id, live)| *id == session || !counts(live))
    }

    /// The sessions whose leases, or writes under way, exclude this wish.
    fn in_the_way(&self, wish: &Waiter) -> BTreeSet<SessionId> {
        let others = self.live.iter().filter(|(id, _)| **id != wish.session);
        others.filter(|(_, live)| live.excludes(wish)).map(|(id, _)| *id).collect()
    }

    /// A lease on the whole volume is for a session that is alone: as soon as another is heard of,
    /// its holder gives way, or the other would not see what is not committed yet.
    fn recall_what_shares(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let alone = |id| self.is_alone(now, id);
        let shares = |(id, live): (&SessionId, &Live)| {
            (live.holds.contains_key(&Unit::Volume) && !alone(*id)).then_some(*id)
        };
        let sharing: Vec<SessionId> = self.live.iter().filter_map(shares).collect();
        for session in sharing {
            self.recall(now, session, effects);
        }
    }

    /// Asks for everything back, once; then waits; then breaks.
    fn recall(&mut self, now: Moment, session: SessionId, effects: &mut Vec<Effect>) {
        let Some(live) = self.live.get_mut(&session) else { return };
        if live.doomed {
            return;
        }
        let asked_before = live.recalled.is_some();
        let first = *live.recalled.get_or_insert(now);
        let dead = now >= live.heard.after_ms(TERM_MS);
        let stubborn = now >= first.after_ms(RECALL_MAX_MS);
        if dead || stubborn {
            live.doomed = true;
            effects.push(Effect::Fence { session });
        } else if !asked_before {
            let held = live.holds.iter().map(|(unit, (_, granted))| (*unit, *granted));
            let recall = |(unit, granted)| Effect::Recall { session, unit, granted };
            effects.extend(held.map(recall));
        }
    }

    /// Serves the queue in order. Who must wait holds up all that come after it and overlap it:
    /// nobody starves.
    fn serve(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if now < self.claims_until {
            return;
        }
        let mut still_waiting = VecDeque::new();
        while let Some(waiter) = self.waiting.pop_front() {
            // A holder need not queue for what it holds: it commits so that it can give way.
            let covered =
                waiter.units.iter().all(|unit| self.holds(waiter.session, *unit, waiter.mode));
            let behind = !covered && still_waiting.iter().any(|w| stand_in_line(w, &waiter));
            let blockers = self.in_the_way(&waiter);
            if behind || !blockers.is_empty() {
                for session in blockers {
                    self.recall(now, session, effects);
                }
                still_waiting.push_back(waiter);
            } else if !waiter.holds {
                if let (Mode::Write, Some(live)) = (waiter.mode, self.live.get_mut(&waiter.session))
                {
                    live.passing.insert(waiter.ticket, waiter.units);
                }
                effects.push(Effect::Passed { ticket: waiter.ticket });
            } else if waiter.units[0] == Unit::Volume && !self.is_alone(now, waiter.session) {
                effects.push(denied(waiter.ticket, Denial::NotAlone));
            } else {
                self.keep(waiter.session, waiter.units[0], waiter.mode, waiter.ticket);
                effects.push(Effect::Granted { ticket: waiter.ticket });
            }
        }
        self.waiting = still_waiting;
    }
}

fn denied(ticket: Ticket, why: Denial) -> Effect {
    Effect::Denied { ticket, why }
}

/// Whether `later` has to stay behind `earlier`: they are different sessions' and do not go
/// together.
fn stand_in_line(earlier: &Waiter, later: &Waiter) -> bool {
    let overlap = earlier.units.iter().any(|a| later.units.iter().any(|b| a.overlaps(*b)));
    let exclude = earlier.mode.max(later.mode) == Mode::Write;
    earlier.session != later.session && overlap && exclude
}

/// The holder's side: how long a granted lease may be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Term {
    until: Moment,
}

impl Term {
    /// `sent` is when the request, or the heartbeat that renewed it, left: the leader counts from
    /// later, and the tenth that is missing covers clocks of different speed.
    pub fn since(sent: Moment) -> Self {
        Self { until: sent.after_ms(TERM_MS - TERM_MS / 10) }
    }

    pub fn holds_at(self, now: Moment) -> bool {
        now < self.until
    }

    pub fn left_ms(self, now: Moment) -> u64 {
        self.until.0.saturating_sub(now.0)
    }
}

#[cfg(test)]
mod tests;
