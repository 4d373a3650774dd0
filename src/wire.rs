//! What peers and mounts say to each other: the bodies of `/api/v4`.
//!
//! Owns: the message types, their one encoding (a version byte, then postcard) and their limits.
//! Never: sends anything, or decides whether a caller may ask it; `daemon/peer.rs` does.
//! Invariant: a message decodes only when its version is known and no byte is left over.
//!
//! Chunks do not travel as messages: they are bodies of their own, or `frame`d in a batch.

pub use crate::cluster::lease::{Mode as LeaseMode, Ticket, Unit as LeaseUnit};
pub use crate::cluster::state::{CommitParts, Outcome, Refusal, Submission};
use crate::codec::DecodeError;
use crate::id::{
    Attempt, ChunkId, Epoch, Label, NetworkId, PeerId, Position, PrincipalId, SessionId, TimeMs,
    VolumeId,
};
pub use crate::ledger::record::body::Role;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod chunks;

/// The first byte of every message. A peer that speaks another one is told so, not guessed at.
pub const VERSION: u8 = 1;
/// A message that is not a page of the log; tag lists (4,096 × 8 bytes) and small payloads fit.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// A page of the log, as one reply.
pub const PAGE_BYTES_MAX: usize = 8 << 20;

pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).expect("our messages have lengths and no maps")
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes {
        [] => Err(DecodeError::Short("version of a message")),
        [VERSION, body @ ..] => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            Ok(_) => Err(DecodeError::LeftOver),
            Err(_) => Err(DecodeError::NotCanonical("message")),
        },
        [version, ..] => Err(DecodeError::Version(*version)),
    }
}

/// Why a peer did not do what it was asked: the body of every reply that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// All that an unknown key ever learns.
    #[error("this key may not do that here; ask an owner of the network for an invite or a role")]
    NotAllowed,
    #[error("the request is malformed: {0}")]
    Malformed(String),
    #[error("{0}")]
    Refused(Refusal),
    #[error("chunk {0}: the bytes sent do not hash to it")]
    WrongAddress(ChunkId),
    #[error("the invite was refused: {0}")]
    InviteRefused(String),
    #[error("this peer does not lead{}", hint(.leader))]
    NotLeader { leader: Option<PeerId> },
    #[error("this peer keeps no {0}")]
    NotHere(Service),
    #[error("this peer's store is full")]
    StoreFull,
    #[error("this peer's store is out of service: {0}")]
    StoreFailed(String),
    #[error("busy: {0}")]
    Busy(String),
    #[error("not done within its deadline")]
    DeadlinePassed,
    /// It may or may not have been ordered; only the same request again tells.
    #[error("whether it was ordered is not known: {0}")]
    OutcomeUnknown(String),
    /// Said to who asked for what this peer has itself.
    #[error("this peer's copy of chunk {0} is damaged")]
    ChunkDamaged(ChunkId),
    #[error("chunk {0} is not here, and a peer that may have it does not answer")]
    NotFetched(ChunkId),
}

fn hint(leader: &Option<PeerId>) -> String {
    leader.map_or_else(String::new, |peer| format!("; peer {peer} did when last heard of"))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Service {
    Chunks,
    Ledger,
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Service::Chunks => "chunks",
            Service::Ledger => "ledger",
        })
    }
}

/// What asking someone else, or again, would change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing: the answer is no everywhere.
    Refused,
    /// Another peer may do it.
    FailedHere,
    /// It may have happened; never blindly again under another request id.
    Unknown,
}

impl Failure {
    pub fn kind(&self) -> Kind {
        use Failure::*;
        match self {
            NotAllowed | Malformed(_) | Refused(_) | WrongAddress(_) | InviteRefused(_) => {
                Kind::Refused
            }
            NotLeader { .. }
            | NotHere(_)
            | StoreFull
            | StoreFailed(_)
            | Busy(_)
            | ChunkDamaged(_)
            | NotFetched(_) => Kind::FailedHere,
            DeadlinePassed | OutcomeUnknown(_) => Kind::Unknown,
        }
    }
}

/// A peer's word that it holds a chunk durably, and when it last said so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// Hashed by the peer from the bytes that came.
    pub chunk: ChunkId,
    pub stamp: TimeMs,
}

/// Where the ledger stands: as applied by the peer that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The number of records, so the position of the next one.
    pub size: Position,
    /// SHA-256 of the last record.
    pub chain: [u8; 32],
    pub t: TimeMs,
}

/// A keyed hash that names an unlinked inode to a leader who cannot read numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Handle(pub [u8; 8]);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    pub unit: LeaseUnit,
    pub mode: LeaseMode,
    /// Which grant of it this is; 0 in a wish.
    pub granted: Ticket,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenSession {
    pub volume: VolumeId,
    /// The request's ULID: the same one opens the same session once.
    pub req: [u8; 16],
    pub read_only: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionOpened {
    pub session: SessionId,
    pub attempt: Attempt,
    /// The volume's key epoch now.
    pub epoch: Epoch,
    /// Everything before it is what the session may rely on as its first base.
    pub at: Position,
    /// How long a silent session keeps its leases.
    pub term_ms: u32,
    /// Bytes that it may write before it asks for more.
    pub credit: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloseSession {
    pub volume: VolumeId,
    pub session: SessionId,
    pub req: [u8; 16],
}

/// A submission, and the lease units that it touches without holding a lease on them: the leader
/// recalls others' leases first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Append {
    pub submission: Submission,
    pub pass: Vec<LeaseUnit>,
}

impl From<Submission> for Append {
    fn from(submission: Submission) -> Self {
        Self { submission, pass: Vec::new() }
    }
}

/// Asks for a position before which everything lies that was acknowledged before the call.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Barrier {
    /// Whose writes under a lease need not come first.
    pub session: Option<SessionId>,
    /// What other sessions hold back under write leases on these comes first.
    pub pass: Vec<LeaseUnit>,
}

/// A session's sign of life, and what rides on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    pub volume: VolumeId,
    pub session: SessionId,
    pub attempt: Attempt,
    /// Up to where this session has applied the log.
    pub applied: Position,
    pub want: Vec<Lease>,
    /// All that the session believes it holds: a new leader learns its table from this.
    pub held: Vec<Lease>,
    pub release: Vec<(LeaseUnit, Ticket)>,
    /// Unlinked inodes that are still open here.
    pub open_orphans: Vec<Handle>,
    /// Orphans that this session would reap: are they open elsewhere?
    pub reap: Vec<Handle>,
    /// What is missing to the most that a session holds (`cluster::credit::HELD_MAX`); 0 says
    /// nothing of credit. Granted only where `wait_ms` is 0.
    pub credit: u64,
    /// How long the leader may hold the answer back for news (a grant or a recall).
    pub wait_ms: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// Measured by the holder from when it *sent* the heartbeat.
    pub term_ms: u32,
    pub held: Vec<Lease>,
    /// Units to commit and give back now.
    pub recall: Vec<(LeaseUnit, Ticket)>,
    /// Of the orphans asked about: those that some live session still has open.
    pub open_elsewhere: Vec<Handle>,
    pub credit: u64,
    /// The leader's confirmed read position.
    pub read: Position,
    pub epoch: Epoch,
    /// The leader's clock, for `status`; nothing is decided by it.
    pub now: TimeMs,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Follow {
    /// Only what concerns this volume, and what concerns everyone; `None` is every record.
    pub volume: Option<VolumeId>,
    pub from: Position,
    pub max_bytes: u32,
    /// A long poll: how long to wait for the first entry.
    pub wait_ms: u32,
}

/// One record as it was applied, with what its commit carried inside the consensus entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Followed {
    pub position: Position,
    /// The record's line, LF included.
    pub line: Vec<u8>,
    pub tags: Option<Vec<u8>>,
    /// The sealed chunk; absent when it was put on its peers instead.
    pub payload: Option<Vec<u8>>,
    pub inline: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Page {
    pub entries: Vec<Followed>,
    /// Where the next page begins: past everything that the filter left out.
    pub next: Position,
    pub head: Head,
}

/// A storage peer or voter as the applied state has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerInfo {
    pub id: PeerId,
    pub name: Label,
    pub principal: PrincipalId,
    pub addresses: Vec<String>,
    pub storage: bool,
    pub voter: bool,
    pub domain: String,
    /// GiB of capacity; 0 where no chunks are placed on it.
    pub weight: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeInfo {
    pub id: VolumeId,
    pub name: Label,
    pub epoch: Epoch,
    pub copies: u8,
    /// Whether new data chunks are compressed where that gains.
    pub compress: bool,
    /// The record that made it.
    pub made: Position,
    /// The newest `fs.root`: its position, and the record's index.
    pub root: Option<RootInfo>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RootInfo {
    /// The record that names it.
    pub record: Position,
    /// The tree equals all commits up to here.
    pub position: Position,
    pub address: ChunkId,
    /// Keyed hash of the root's identity under the epoch's meta key.
    pub identity: [u8; 32],
    pub epoch: Epoch,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    pub principal: PrincipalId,
    pub agreement: [u8; 32],
    pub name: Label,
    pub role: Role,
    pub until: Option<TimeMs>,
}

/// A volume's secrets of one epoch, sealed to one principal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrapInfo {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub to: PrincipalId,
    pub sealed: Vec<u8>,
}

/// A question about the applied state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Query {
    Peers,
    Volumes,
    Members(VolumeId),
    /// The last accepted commit of a session: what its heir need not do again.
    LastOf(SessionId),
    /// The snapshot roots that count, of the last 64 that were named.
    Roots(VolumeId),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Everyone in the layout of this version.
    Peers {
        layout: u64,
        peers: Vec<PeerInfo>,
    },
    Volumes(Vec<VolumeInfo>),
    Members(Vec<Member>),
    /// Attempt and number.
    LastOf(Option<(Attempt, u64)>),
    /// In the order of their records.
    Roots(Vec<RootInfo>),
}

/// What a peer tells a key that it does not know: just what an invite is checked against.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// Record 0: the hash of its `p` must be the network that the invite names.
    pub genesis: Vec<u8>,
    /// The answering peer's key, which the newcomer compares with the handshake's.
    pub peer: PrincipalId,
}

/// Redeems an invite: the newcomer's `id.principal`, signed by the key that the invite's secret
/// derives. The secret itself never leaves the newcomer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    pub submission: Submission,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// Where the newcomer's record stands.
    pub position: Position,
    pub peers: Vec<PeerInfo>,
    /// Secrets wrapped to the invite's own agreement key, which the newcomer can open.
    pub wraps: Vec<WrapInfo>,
}

/// What one peer says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub network: NetworkId,
    pub principal: PrincipalId,
    pub id: Option<PeerId>,
    /// The program's version, for people.
    pub version: String,
    pub leader: Option<PeerId>,
    pub head: Option<Head>,
    /// The size of the newest checkpoint that a quorum has cosigned.
    pub published: Option<Position>,
    pub store: Option<StoreStatus>,
    /// Chunks here of which it looked for all copies and did not find them.
    pub copies_missing: u64,
    pub now: TimeMs,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub chunks: u64,
    /// Of these, found damaged and not replaced yet: they are not served.
    pub damaged_chunks: u64,
    /// It began empty, under a peer that had one before.
    pub is_new: bool,
    /// Why it takes no chunks any more, when it does not.
    pub out_of_service: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_another_version_or_with_bytes_left_over_is_refused() {
        let message = Query::Members(VolumeId([7; 16]));
        let bytes = encode(&message);
        assert_eq!(decode::<Query>(&bytes), Ok(message));
        assert_eq!(decode::<Query>(&[]), Err(DecodeError::Short("version of a message")));
        assert_eq!(decode::<Query>(&bytes[..9]), Err(DecodeError::NotCanonical("message")));
        assert_eq!(decode::<Query>(&[bytes.clone(), vec![0]].concat()), Err(DecodeError::LeftOver));
        assert_eq!(decode::<Query>(&[2, 0]), Err(DecodeError::Version(2)));
    }
}
