//! A host with a mount: its session, its lease, its journal, its retries.
//!
//! Owns: which operations it acknowledged, under what right, and what became of each.
//! Invariant: `journal` is what survives its crash; everything else is lost with it.

use crate::actors::{Actor, Requests, Say, commit};
use mictlan::cluster::lease::{Moment, Term, Ticket};
use mictlan::cluster::state::{Outcome, Refusal, State, Submission};
use mictlan::id::{Position, SessionId};
use mictlan::ledger::record::Ulid;
use mictlan::meta::tag::TagList;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Not ordered, as far as the host knows.
    Pending,
    Committed(Position),
    /// Refused for good, and reported to the user as recovered.
    Recovered,
}

/// One operation in the journal.
#[derive(Clone, Debug)]
pub struct Op {
    pub content: u64,
    pub base: Position,
    pub tags: TagList,
    /// Its caller was told that it is done.
    pub acknowledged: bool,
    /// Acknowledged under a lease, before it was ordered.
    pub local: bool,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Down,
    /// Waits for its session.
    Opening(Ulid),
    /// Ends the session before it, to go on with its journal.
    Fencing(SessionId),
    Live,
}

pub struct Host {
    pub actor: Actor,
    pub journal: Vec<Op>,
    /// The session whose work the journal holds: written before anything is sent in it.
    pub written_by: Option<SessionId>,
    pub phase: Phase,
    pub session: Option<SessionId>,
    pub attempt: u32,
    /// The next request's number.
    pub n: u64,
    pub seen: Position,
    pub lease: Option<Term>,
    /// The ticket of the lease that the leader wants back.
    pub give_back: Option<Ticket>,
    pub granted: Ticket,
    pub beat: u64,
    /// When it last asked for the lease and has no answer.
    pub asked: Option<u64>,
    /// The one commit that is under way, and which operation it is.
    pub under_way: Option<(usize, Submission)>,
}

impl Host {
    pub fn new(name: &str) -> Self {
        Self {
            actor: Actor::new(name),
            journal: Vec::new(),
            written_by: None,
            phase: Phase::Down,
            session: None,
            attempt: 1,
            n: 1,
            seen: Position(0),
            lease: None,
            give_back: None,
            granted: Ticket(0),
            beat: 0,
            asked: None,
            under_way: None,
        }
    }

    /// All but the journal is gone.
    pub fn crash(&mut self) {
        let (journal, written_by) = (std::mem::take(&mut self.journal), self.written_by);
        *self = Self { journal, written_by, ..Self::new(self.actor.name.as_str()) };
    }

    pub fn may_acknowledge(&self, now: Moment) -> bool {
        let relies = self.lease.is_some_and(|term| term.holds_at(now));
        self.phase == Phase::Live && relies && self.give_back.is_none()
    }

    pub fn first_pending(&self) -> Option<usize> {
        self.journal.iter().position(|op| op.fate == Fate::Pending)
    }

    /// The next commit, signed once: a retry sends the same bytes.
    pub fn propose(&mut self, state: &State, reqs: &mut Requests, now: u64) -> Option<Submission> {
        if self.under_way.is_none() {
            let (index, session) = (self.first_pending()?, self.session?);
            let op = &self.journal[index];
            let (attempt, n, base) = (self.attempt, self.n, op.base);
            let (tags, content) = (op.tags.clone(), op.content);
            let say = Say { session, attempt, n, base, epoch: 1, tags, content };
            let req = reqs.next(crate::simulated::clock(now));
            let submission = commit(&self.actor, state, req, &say);
            self.under_way = Some((index, submission));
        }
        self.under_way.as_ref().map(|(_, submission)| submission.clone())
    }

    /// The answer to `p`; answers to what is not under way any more are late repeats.
    pub fn answered(&mut self, p: &[u8], outcome: &Outcome) {
        let Some((index, submission)) = &self.under_way else { return };
        if submission.p != p {
            return;
        }
        let op = &mut self.journal[*index];
        match outcome {
            Outcome::Refused(why) if !why.ends_attempt() => {
                let lost = matches!(why, Refusal::Fenced { .. } | Refusal::SessionEnded { .. });
                if lost {
                    self.crash();
                }
                return;
            }
            Outcome::Refused(_) => {
                op.fate = Fate::Recovered;
                self.attempt += 1;
                self.n = 1;
            }
            answer => {
                let position = answer.position().expect("a record's answer");
                op.fate = Fate::Committed(position);
                op.acknowledged = true;
                self.n += 1;
            }
        }
        self.under_way = None;
    }

    /// After the fence: the ledger says which of the journal's operations were ordered.
    pub fn settle(&mut self, ordered: impl Fn(u64) -> Option<Position>) {
        for op in &mut self.journal {
            if let (Fate::Pending, Some(position)) = (op.fate, ordered(op.content)) {
                op.fate = Fate::Committed(position);
                op.acknowledged = true;
            }
        }
    }
}
