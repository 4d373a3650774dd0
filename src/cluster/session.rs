//! Sessions of one network: who commits, in which order, exactly once, and who succeeds whom.
//!
//! Owns: a session's attempt and next request, its remembered answers, fences and lineage.
//! Never: looks at tags, keys or roles; `state` and `certify` do.
//! Invariant: a request (attempt, n) is accepted at most once, requests of an attempt are accepted
//! without a gap, a fenced session accepts nothing, and a fence names one successor at most.

use crate::cluster::refusal::Refusal;
use crate::id::{Attempt, Label, Position, SessionId, TimeMs, VolumeId};
use crate::ledger::record::Ulid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// A session may have this many commits on their way; older answers are forgotten.
pub const ANSWERS_REMEMBERED: usize = 256;

/// More open sessions than this are refused, so that no principal can fill the state.
pub const SESSIONS_MAX: usize = 4_096;

/// An ended session, fenced or closed, is told apart from an unknown one for so long: a host that
/// comes back after this still gets the answer that matters, that it was ended.
pub const ENDED_REMEMBERED: usize = 16_384;

/// The place of a commit in its session: the `n`th request (from 1) of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Turn {
    pub attempt: Attempt,
    pub n: u64,
}

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.attempt, self.n)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fence {
    /// The record that ended the session (the first one, if a later one named the successor).
    pub at: Position,
    pub successor: Option<SessionId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    pub volume: VolumeId,
    /// Whose it is. A name, as it may get new keys meanwhile.
    pub actor: Label,
    /// The first session of the chain that this one succeeds, itself without one. Tags of one
    /// lineage never conflict with each other.
    pub lineage: SessionId,
    pub opened: TimeMs,
    /// The base of the last accepted commit of the chain; the next one's is not before it.
    pub base: Position,
    pub fence: Option<Fence>,
    /// The last accepted commit of this session itself.
    pub last: Option<(Turn, Position)>,
    next: Turn,
    succeeds: Option<SessionId>,
    /// With the digest of the body, so that another request of the same turn is not taken for it.
    answers: VecDeque<(Turn, Position, [u8; 8])>,
    req: Ulid,
    /// The refusal that ended the attempt before `next.attempt`, for a repeat of that request.
    ended_by: Option<(Turn, Refusal)>,
}

impl Session {
    /// The next request that can be accepted, unless a later attempt is begun.
    pub fn next(&self) -> Turn {
        self.next
    }

    pub fn succeeds(&self) -> Option<SessionId> {
        self.succeeds
    }

    /// What was answered to `turn` before, if it was.
    pub fn answered(&self, turn: Turn, digest: [u8; 8]) -> Option<Result<Position, Refusal>> {
        if let Some((refused, why)) = &self.ended_by
            && *refused == turn
        {
            return Some(Err(why.clone()));
        }
        let (_, position, known) = *self.answers.iter().rev().find(|(t, ..)| *t == turn)?;
        Some(if known == digest {
            Ok(position)
        } else {
            Err(Refusal::TurnReused { turn, position })
        })
    }

    /// Whether `turn` can be accepted now; an answered turn is for `answered`.
    pub fn admit(&self, turn: Turn) -> Result<(), Refusal> {
        if let Some(fence) = &self.fence {
            return Err(Refusal::Fenced { at: fence.at, successor: fence.successor });
        }
        if turn.attempt < self.next.attempt {
            return Err(Refusal::OldAttempt { turn, expected: self.next });
        }
        let expected = if turn.attempt == self.next.attempt { self.next.n } else { 1 };
        match turn.n {
            n if n == expected => Ok(()),
            n if n < expected => Err(Refusal::Forgotten { turn }),
            _ => Err(Refusal::OutOfOrder { turn, expected: Turn { n: expected, ..turn } }),
        }
    }

    /// `turn`, which `admit` let in, became the record at `position`.
    fn accepted(&mut self, turn: Turn, base: Position, position: Position, digest: [u8; 8]) {
        self.next = Turn { attempt: turn.attempt, n: turn.n.saturating_add(1) };
        self.base = base;
        self.last = Some((turn, position));
        self.answers.push_back((turn, position, digest));
        if self.answers.len() > ANSWERS_REMEMBERED {
            self.answers.pop_front();
        }
    }

    /// `turn`, which `admit` let in, was refused for good: its attempt ends.
    fn refused(&mut self, turn: Turn, why: Refusal) {
        // At the last attempt of all there is no next one: the session can commit no more, and
        // says `Forgotten`; 2^32 refusals are no honest session's.
        let attempt = Attempt(turn.attempt.0.saturating_add(1));
        let n = if attempt == turn.attempt { u64::MAX } else { 1 };
        self.next = Turn { attempt, n };
        self.ended_by = Some((turn, why));
    }
}

/// All sessions that are open, or fenced and perhaps to be succeeded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    last: SessionId,
    open: BTreeMap<SessionId, Session>,
    fenced: BTreeMap<SessionId, Session>,
}

impl Sessions {
    pub fn open(
        &mut self,
        volume: VolumeId,
        actor: Label,
        req: Ulid,
        now: TimeMs,
    ) -> Result<SessionId, Refusal> {
        // Inode blocks are numbered by session in 31 bits; see `Ino::of`.
        if self.open.len() >= SESSIONS_MAX || self.last.0 >= (1 << 31) - 1 {
            return Err(Refusal::TooManySessions { limit: SESSIONS_MAX as u32 });
        }
        let id = SessionId(self.last.0 + 1);
        self.last = id;
        let session = Session {
            volume,
            actor,
            lineage: id,
            opened: now,
            base: Position(0),
            fence: None,
            last: None,
            next: Turn { attempt: Attempt(1), n: 1 },
            succeeds: None,
            answers: VecDeque::new(),
            req,
            ended_by: None,
        };
        self.open.insert(id, session);
        Ok(id)
    }

    /// The session that this request opened, if it is open still.
    pub fn opened_by(&self, actor: &Label, volume: VolumeId, req: Ulid) -> Option<SessionId> {
        let by = |s: &Session| s.actor == *actor && s.volume == volume && s.req == req;
        self.open.iter().find(|(_, session)| by(session)).map(|(id, _)| *id)
    }

    /// A closed session has nothing left to say; what is said in its name later is refused.
    pub fn close(&mut self, id: SessionId) -> Result<Session, Refusal> {
        self.open.remove(&id).ok_or_else(|| self.missing(id))
    }

    /// An open or a fenced session.
    pub fn find(&self, id: SessionId) -> Result<&Session, Refusal> {
        let found = self.open.get(&id).or_else(|| self.fenced.get(&id));
        found.ok_or_else(|| self.missing(id))
    }

    pub fn open_ones(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.open.iter().map(|(id, session)| (*id, session))
    }

    fn missing(&self, id: SessionId) -> Refusal {
        if id.0 == 0 || id > self.last {
            Refusal::UnknownSession { session: id }
        } else {
            Refusal::SessionEnded { session: id }
        }
    }

    pub(super) fn accepted(
        &mut self,
        id: SessionId,
        turn: Turn,
        base: Position,
        at: Position,
        digest: [u8; 8],
    ) {
        if let Some(session) = self.open.get_mut(&id) {
            session.accepted(turn, base, at, digest);
        }
    }

    pub(super) fn refused(&mut self, id: SessionId, turn: Turn, why: Refusal) {
        if let Some(session) = self.open.get_mut(&id) {
            session.refused(turn, why);
        }
    }

    /// Whether `old` may be fenced, and `successor`, if named, may go on with its work.
    ///
    /// A successor is fresh: it has committed nothing and succeeds nobody. With two predecessors,
    /// or work of its own, the commits that must conflict would be of one lineage and would not.
    pub fn admit_fence(&self, old: SessionId, successor: Option<SessionId>) -> Result<(), Refusal> {
        let ended = self.find(old)?;
        if let Some(fence) = &ended.fence
            && (fence.successor.is_some() || successor.is_none())
        {
            return Err(Refusal::Fenced { at: fence.at, successor: fence.successor });
        }
        let Some(heir) = successor else { return Ok(()) };
        let unfit =
            |why: &str| Err(Refusal::UnfitSuccessor { successor: heir, why: why.to_owned() });
        let Some(fresh) = self.open.get(&heir) else { return Err(self.missing(heir)) };
        match fresh {
            _ if heir == old => unfit("a session cannot succeed itself"),
            s if s.volume != ended.volume => unfit("it is a session of another volume"),
            s if s.actor != ended.actor => unfit("it belongs to another principal"),
            s if s.succeeds.is_some() => unfit("it already succeeds a session"),
            s if s.last.is_some() => unfit("it has already committed"),
            _ => Ok(()),
        }
    }

    /// Applies a fence that `admit_fence` let in, and says what the old session last did.
    pub(super) fn fence(&mut self, old: SessionId, successor: Option<SessionId>, at: Position) {
        let found = self.open.remove(&old).or_else(|| self.fenced.remove(&old));
        let mut ended = found.expect("`admit_fence` found it");
        let first = ended.fence.as_ref().map_or(at, |fence| fence.at);
        ended.fence = Some(Fence { at: first, successor });
        if let Some(heir) = successor.and_then(|id| self.open.get_mut(&id)) {
            heir.lineage = ended.lineage;
            heir.base = ended.base;
            heir.succeeds = Some(old);
        }
        ended.answers.clear();
        self.fenced.insert(old, ended);
        // The oldest go first: a host away for so many other crashes recovers by hand.
        while self.fenced.len() > ENDED_REMEMBERED {
            self.fenced.pop_first();
        }
    }
}
