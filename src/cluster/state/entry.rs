//! What goes into consensus, and what comes out of it.
//!
//! Owns: the entry, its items, and their outcomes; docs/FORMAT.md has their bytes.
//! Invariant: outcome `k` of an entry belongs to item `k`.

use crate::cluster::refusal::Refusal;
use crate::id::{ChunkId, Position, PrincipalId, SessionId, TimeMs, VolumeId};
use crate::ledger::record::Ulid;
use serde::{Deserialize, Serialize};

/// What of a commit's payload and inline chunk, together, travels inside an entry.
pub const INSIDE_MAX: usize = 16 * 1024;

/// A group of what waited when the leader proposed it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The leader's clock; the ledger's time is this or the last one, whichever is later.
    pub t: TimeMs,
    pub items: Vec<Item>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Item {
    Record(Submission),
    /// Sessions open and close outside the ledger: what they do is in it, signed. The peer that
    /// the principal is connected to vouches for it; in another's name one can open a session,
    /// but commit nothing.
    OpenSession {
        volume: VolumeId,
        principal: PrincipalId,
        /// A repeat of it gets the same session.
        req: Ulid,
    },
    CloseSession {
        session: SessionId,
        principal: PrincipalId,
    },
}

/// A signed proposal of a record, and what travels beside it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Submission {
    /// The canonical bytes of `p`.
    pub p: Vec<u8>,
    #[serde(with = "signature_bytes")]
    pub sig: [u8; 64],
    /// With `fs.commit`, and only with it.
    pub commit: Option<CommitParts>,
}

/// The parts of a commit that the record names by hash or not at all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitParts {
    /// The bytes of the tag list, whose hash is signed. Kept for ever, by position.
    pub tags: Vec<u8>,
    /// The bytes of the payload chunk, when they travel inside; otherwise it is on its peers.
    pub payload: Option<Vec<u8>>,
    pub inline: Option<Vec<u8>>,
    /// The oldest stamp of the receipts of all chunks that the commit names and that do not travel
    /// inside. Not signed: it guards the committer's own data against collection, an auditor
    /// cannot check it, and stamping again must not need another signature, as the request stays
    /// the same.
    pub oldest_receipt: Option<TimeMs>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The record's line, LF included, is the ledger's leaf at `position`.
    Accepted {
        position: Position,
        record: Vec<u8>,
    },
    /// It was accepted before, at `position`.
    Repeated {
        position: Position,
    },
    Opened {
        session: SessionId,
    },
    Closed {
        session: SessionId,
    },
    Refused(Refusal),
}

impl Outcome {
    /// Where the record is, whether it was made now or before.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Accepted { position, .. } | Self::Repeated { position } => Some(*position),
            _ => None,
        }
    }
}

impl Entry {
    /// The commits that became records: their tag lists, to be kept for ever, and their chunks,
    /// to be stored as such.
    pub fn kept<'a>(
        &'a self,
        outcomes: &'a [Outcome],
    ) -> impl Iterator<Item = (Position, &'a CommitParts)> {
        assert_eq!(self.items.len(), outcomes.len(), "outcome k belongs to item k");
        self.items.iter().zip(outcomes).filter_map(|pair| match pair {
            (Item::Record(submission), Outcome::Accepted { position, .. }) => {
                Some((*position, submission.commit.as_ref()?))
            }
            _ => None,
        })
    }
}

impl CommitParts {
    /// The chunks that travel inside, by address.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkId, &[u8])> {
        let inside = [&self.payload, &self.inline].into_iter().flatten();
        inside.map(|bytes| (crate::hash::address(bytes), bytes.as_slice()))
    }
}

/// Serde knows arrays of up to 32 items.
mod signature_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(sig: &[u8; 64], to: S) -> Result<S::Ok, S::Error> {
        sig.as_slice().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 64], D::Error> {
        let bytes = Vec::<u8>::deserialize(from)?;
        bytes.try_into().map_err(|_| D::Error::custom("a signature has 64 bytes"))
    }
}
