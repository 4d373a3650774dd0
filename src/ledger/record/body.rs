//! The typed bodies of the kinds that this program knows; each field is in docs/FORMAT.md.
//!
//! Owns: which fields a kind has and their written form.
//! Never: judges them against the state of the network; `roster` and the sequencer do.
//! Invariant: a body has one form: what is parsed is written again byte for byte.

use super::json;
use super::text::{as_base64, as_hex, as_hex_or_absent, as_signature};
use super::{Origin, RecordError};
use crate::id::{
    Attempt, ChunkId, Epoch, Label, PeerId, Position, PrincipalId, SessionId, VolumeId,
};
use serde::{Deserialize, Serialize};

/// The public keys of a principal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKeys {
    /// X25519: what secrets for this principal are wrapped to.
    #[serde(with = "as_hex")]
    pub agreement: [u8; 32],
    /// Ed25519: what it signs with, and its name for machines.
    #[serde(with = "as_hex")]
    pub signing: PrincipalId,
}

/// `net.genesis`: all that is needed to check record 0 and whatever follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// How many voters may lie without showing two histories; absent: by the number of voters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<u32>,
    /// The log's first Ed25519 key.
    #[serde(with = "as_hex")]
    pub log_key: [u8; 32],
    /// The secret of `log_key`, wrapped for the first peer.
    #[serde(with = "as_base64")]
    pub log_wrap: Vec<u8>,
    pub network: Label,
    /// The first peer; it is a voter and its number is 1.
    pub peer: Peer,
    /// The keys of the actor of this record, the network's first owner.
    pub principal: PublicKeys,
    /// Drawn once, so that two networks of one name differ.
    #[serde(with = "as_hex")]
    pub random: [u8; 32],
}

/// `net.key`: from this record on the log signs with another key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRotate {
    #[serde(with = "as_hex")]
    pub log_key: [u8; 32],
    /// By the old key, over `log_key_message`.
    #[serde(with = "as_signature")]
    pub old_sig: [u8; 64],
    /// How many rotations came before, plus one, so that an old rotation is never valid again.
    pub serial: u32,
    pub wraps: Vec<LogWrap>,
}

/// The log key's secret, wrapped for one voter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogWrap {
    pub peer: PeerId,
    #[serde(with = "as_base64")]
    pub wrap: Vec<u8>,
}

/// `net.peer`: all that is known of a peer; a later record of the same number replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// `host:port`, most useful first; empty for a peer that does not listen.
    pub addresses: Vec<String>,
    pub keys: PublicKeys,
    /// Its actor name.
    pub name: Label,
    pub peer: PeerId,
    /// A removed peer neither keeps, nor votes, nor signs.
    pub state: PeerState,
    pub storage: bool,
    pub voter: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    Active,
    Draining,
    Removed,
}

/// `net.layout`: what changes in where chunks are placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// A new number of tolerated lying voters; absent: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<u32>,
    /// Peers that get no chunks any more, ascending.
    pub remove: Vec<PeerId>,
    /// Peers that get chunks, by this weight and in this failure domain, ascending.
    pub set: Vec<LayoutPeer>,
    /// One more than the layout before; the first is 1.
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutPeer {
    /// The failure domain: copies are spread over domains.
    pub domain: String,
    pub peer: PeerId,
    /// GiB of capacity, at least 1.
    pub weight: u64,
}

/// `net.fence`: a session ends, and what it had under way is refused from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    pub reason: String,
    pub session: SessionId,
    /// The one session that may propose what was left in the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<SessionId>,
    #[serde(with = "as_hex")]
    pub volume: VolumeId,
}

/// What an invite is good for. Its one-time secret is the seed of a principal of its own, whose
/// one record may be the `id.principal` of the one who joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// What the joiner becomes, in `volume` or in the network.
    pub role: Role,
    /// A time as text; later the invite is refused.
    pub until: String,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_hex_or_absent")]
    pub volume: Option<VolumeId>,
    /// Whether the joiner may register itself as a voter.
    pub voter: bool,
}

/// `id.principal`: from here on this name signs with these keys. Again for a name: new keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// This is no person or device, but an invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<Invite>,
    pub keys: PublicKeys,
    pub name: Label,
    /// By the new signing key, over `principal_message`: nobody registers another's key.
    #[serde(with = "as_signature")]
    pub proof: [u8; 64],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Owner,
    Writer,
    Reader,
    Auditor,
    Storage,
}

/// `id.grant`: who may do what, until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub member: Label,
    pub role: Role,
    /// A time as text; absent: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Absent: the role is in the network.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_hex_or_absent")]
    pub volume: Option<VolumeId>,
}

/// `id.revoke`: the opposite of the grants of this member in this volume, or in the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// The volume's epoch from here on, whose wraps for those who remain came before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_epoch: Option<Epoch>,
    pub member: Label,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_hex_or_absent")]
    pub volume: Option<VolumeId>,
}

/// `id.wrap`: a volume's key ring up to an epoch, wrapped for one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrap {
    /// Whether the data secrets are in it; not for auditors.
    pub data: bool,
    pub key_epoch: Epoch,
    pub member: Label,
    /// The agreement key that it is wrapped to, so that it is clear after a change of keys.
    #[serde(with = "as_hex")]
    pub to: [u8; 32],
    #[serde(with = "as_hex")]
    pub volume: VolumeId,
    #[serde(with = "as_base64")]
    pub wrap: Vec<u8>,
}

/// `id.disable`: nothing that this name signs is accepted from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disable {
    pub name: Label,
    pub reason: String,
}

/// A chunk by address, and its stored size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkRef {
    #[serde(with = "as_hex")]
    pub b3: ChunkId,
    pub size: u64,
}

/// The tag list of a commit, which travels beside it: plain BLAKE3 of its bytes, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagsRef {
    #[serde(with = "as_hex")]
    pub b3: [u8; 32],
    pub count: u32,
}

/// `fs.commit`: a volume changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    pub attempt: Attempt,
    /// The position up to which the session had seen the log when it decided this.
    pub base: Position,
    /// How many keys the write set changes.
    pub changes: u64,
    /// Small file data that rides beside the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<ChunkRef>,
    pub key_epoch: Epoch,
    /// The number of the request in its attempt.
    pub n: u64,
    pub payload: ChunkRef,
    pub session: SessionId,
    pub tags: TagsRef,
    #[serde(with = "as_hex")]
    pub volume: VolumeId,
}

/// `fs.root`: the tree that the commits up to a position fold to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    #[serde(with = "as_hex")]
    pub address: ChunkId,
    /// The position of the record whose root this one recomputed and found right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirms: Option<Position>,
    /// The root's identity, hashed under the epoch's meta key.
    #[serde(with = "as_hex")]
    pub identity: [u8; 32],
    pub key_epoch: Epoch,
    /// The last record that is folded in.
    pub position: Position,
    #[serde(with = "as_hex")]
    pub volume: VolumeId,
}

/// `fs.volume`: a volume is made; again for the same volume: its settings change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMade {
    /// Whether new chunks are compressed where that gains.
    pub compress: bool,
    pub key_epoch: Epoch,
    pub name: Label,
    /// How many copies of a chunk there shall be.
    pub replicas: u32,
    #[serde(with = "as_hex")]
    pub volume: VolumeId,
}

/// `note`: any JSON inside the profile, under a topic that its author chose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    pub data: serde_json::Value,
    pub topic: Label,
}

macro_rules! kinds {
    ($($variant:ident($body:ty) = $kind:literal),* $(,)?) => {
        /// A body of a kind that this program knows.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Body {
            $($variant($body),)*
        }

        impl Body {
            /// All kinds that this program knows.
            pub const KINDS: &[&str] = &[$($kind),*];

            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $kind,)*
                }
            }

            /// The canonical bytes.
            pub fn to_json(&self) -> Result<Vec<u8>, RecordError> {
                Ok(match self {
                    $(Self::$variant(body) => json::canonical(body)?,)*
                })
            }

            /// Strict: an unknown, missing or twofold field is an error, and so is another form.
            pub fn parse(kind: &str, bytes: &[u8]) -> Result<Self, RecordError> {
                json::check(bytes)?;
                let (body, name) = match kind {
                    $($kind => (serde_json::from_slice(bytes).map(Self::$variant), $kind),)*
                    _ => return Err(RecordError::UnknownKind(kind.to_owned())),
                };
                let fail = |why| RecordError::Body { kind: name, why };
                let body = body.map_err(|e| fail(e.to_string()))?;
                // Catches what serde reads in two ways, `null` for an absent field above all.
                if body.to_json()? != bytes {
                    return Err(fail("a field is not in its one written form".to_owned()));
                }
                Ok(body)
            }
        }
    };
}

kinds! {
    Genesis(Genesis) = "net.genesis",
    KeyRotate(KeyRotate) = "net.key",
    Peer(Peer) = "net.peer",
    Layout(Layout) = "net.layout",
    Fence(Fence) = "net.fence",
    Principal(Principal) = "id.principal",
    Grant(Grant) = "id.grant",
    Revoke(Revoke) = "id.revoke",
    Wrap(Wrap) = "id.wrap",
    Disable(Disable) = "id.disable",
    Commit(Commit) = "fs.commit",
    Root(Root) = "fs.root",
    Volume(VolumeMade) = "fs.volume",
    Note(Note) = "note",
}

/// What the old log key signs so that the next one is believed.
pub fn log_key_message(origin: &Origin, serial: u32, key: &[u8; 32]) -> Vec<u8> {
    format!("{origin}/log-key/v1\n{serial}\n{}\n", hex::encode(key)).into_bytes()
}

/// What a new principal's signing key signs, so that nobody registers a key that is not his.
pub fn principal_message(origin: &Origin, name: &Label, keys: &PublicKeys) -> Vec<u8> {
    let agreement = hex::encode(keys.agreement);
    format!("{origin}/principal/v1\n{name}\n{}\n{agreement}\n", keys.signing).into_bytes()
}

/// What binds a wrapped log key to its purpose (HPKE's `info`). The network's random value stands
/// for it, because the first wrap is inside the record whose hash would name it.
pub fn log_wrap_info(random: &[u8; 32], log_key: &[u8; 32]) -> Vec<u8> {
    let (random, key) = (hex::encode(random), hex::encode(log_key));
    format!("mictlan/log-wrap/v1\n{random}\n{key}\n").into_bytes()
}

/// What binds a wrapped key ring to its volume, epoch and member (HPKE's `info`).
pub fn wrap_info(origin: &Origin, volume: &VolumeId, epoch: Epoch, member: &Label) -> Vec<u8> {
    format!("{origin}/wrap/v1\n{volume}\n{epoch}\n{member}\n").into_bytes()
}
