//! `fs.commit`: the one kind that comes with parts, a turn in its session, and certification.
//!
//! Owns: the order of a commit's checks, and which refusals end its attempt.
//! Invariant: certification is the last check, so a commit that it passes becomes a record.

use super::State;
use super::entry::{CommitParts, INSIDE_MAX};
use super::rules::{Asked, Change};
use crate::cluster::refusal::Refusal;
use crate::cluster::session::Turn;
use crate::hash;
use crate::id::{Label, Position};
use crate::ledger::record::body::{ChunkRef, Commit};
use crate::meta::tag::TagList;

/// Collection spares a chunk for days after its stamp; a commit that names it comes long before.
pub const RECEIPT_MAX_AGE_MS: u64 = 6 * 3_600_000;

/// A chunk of 4 MiB of plaintext with its header, tags and the links of a large payload.
const CHUNK_MAX: u64 = 8 << 20;

/// A commit whose parts are what its record names.
#[derive(Debug)]
pub(super) struct Certified {
    pub body: Commit,
    pub tags: TagList,
}

impl Certified {
    pub fn turn(&self) -> Turn {
        turn(&self.body)
    }
}

pub(super) fn turn(body: &Commit) -> Turn {
    Turn { attempt: body.attempt, n: body.n }
}

/// What is checked of a commit whatever the state: its parts are those that were signed.
pub(super) fn parts_fit(body: &Commit, parts: &CommitParts) -> Result<TagList, Refusal> {
    if hash::address(&parts.tags).0 != body.tags.b3 {
        return malformed("the tag list is not the one that was signed");
    }
    let tags = match TagList::decode(&parts.tags) {
        Ok(tags) => tags,
        Err(why) => return malformed(&format!("the tag list: {why}")),
    };
    if tags.len() != body.tags.count as usize {
        return malformed("the tag list has another number of tags");
    }
    let fits = |bytes: &Option<Vec<u8>>, named: Option<&ChunkRef>| match (bytes, named) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(bytes), Some(named)) => {
            bytes.len() as u64 == named.size && hash::address(bytes) == named.b3
        }
    };
    if !fits(&parts.payload, Some(&body.payload)) || !fits(&parts.inline, body.inline.as_ref()) {
        return malformed("a chunk inside is not the one that was signed");
    }
    let inside = [&parts.payload, &parts.inline].into_iter().flatten().map(Vec::len);
    if inside.sum::<usize>() > INSIDE_MAX {
        return malformed("more than 16 KiB of chunks inside; put them on their peers first");
    }
    let chunks = [Some(&body.payload), body.inline.as_ref()];
    if chunks.into_iter().flatten().any(|chunk| chunk.size > CHUNK_MAX) {
        return malformed("no chunk is so large");
    }
    let outside = parts.payload.is_none() || parts.inline.is_none() && body.inline.is_some();
    if outside && parts.oldest_receipt.is_none() {
        return malformed("chunks that do not travel inside need a receipt");
    }
    if body.n == 0 || body.attempt.0 == 0 {
        return malformed("attempts and their requests are counted from 1");
    }
    Ok(tags)
}

fn malformed<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal::Malformed(why.to_owned()))
}

/// What became of a commit before its rule was asked.
pub(super) enum Known {
    /// A request of this turn was answered.
    Before(Result<Position, Refusal>),
    /// It is next.
    Next,
}

impl State {
    /// Where a commit stands in its session. Whether the session is fenced is asked before all
    /// else; its turn before its key epoch, as only what is next in turn may end an attempt.
    pub(super) fn turn_of(
        &self,
        body: &Commit,
        actor: &Label,
        digest: [u8; 8],
    ) -> Result<Known, Refusal> {
        let session = self.sessions.find(body.session)?;
        if session.actor != *actor || session.volume != body.volume {
            let why = format!(
                "session {} is {}'s, of volume {}",
                body.session, session.actor, session.volume
            );
            return Err(Refusal::NotAllowed { actor: actor.clone(), why });
        }
        if let Some(answer) = session.answered(turn(body), digest) {
            return Ok(Known::Before(answer));
        }
        session.admit(turn(body))?;
        Ok(Known::Next)
    }
}

impl Asked<'_> {
    /// The rule of a commit that is next in turn.
    pub(super) fn commit(&self, body: Commit, parts: &CommitParts) -> Result<Change, Refusal> {
        let tags = parts_fit(&body, parts)?;
        let volume = self.known_volume(body.volume)?;
        if !self.state.people.may_write(self.actor, body.volume, self.now) {
            return self.not_allowed("commits are made by an owner or writer of the volume");
        }
        if body.key_epoch != volume.epoch() {
            let (epoch, current) = (body.key_epoch, volume.epoch());
            return Err(Refusal::WrongEpoch { epoch, current });
        }
        let session = self.state.sessions.find(body.session)?;
        if body.base < session.base {
            return Err(Refusal::BaseGoesBack { base: body.base, last: session.base });
        }
        if body.base.0 >= self.state.size() {
            return Err(Refusal::BaseAhead { base: body.base, size: self.state.size() });
        }
        if let Some(stamp) = parts.oldest_receipt
            && self.now.0.saturating_sub(stamp.0) > RECEIPT_MAX_AGE_MS
        {
            return Err(Refusal::StaleReceipt { stamp });
        }
        if volume.is_far_behind() {
            return Err(Refusal::Behind { volume: body.volume });
        }
        volume.window().certify(session.lineage, body.base, &tags)?;
        Ok(Change::Commit(Certified { body, tags }))
    }
}
