//! The state snapshot: one file, from which replay starts, and which a voter far behind receives.
//!
//! Owns: its bytes and its place.
//! Never: replaces the file before everything that it leans on (full tiles, chunks) is on disk.
//! Invariant: the file is whole or absent; what `decode` accepts has the root that it claims.
//!
//! ```text
//! magic "MSN1" | network [32] | meta length varint, postcard | tail length varint, bytes
//! | state length varint, postcard | BLAKE3 of all before [32]
//! ```

use super::{SnapshotMeta, StorageError};
use crate::sequencer::files::Tail;
use crate::store::durable::{self, DiskError};
use mictlan::cluster::state::State;
use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::id::NetworkId;
use openraft::{AnyError, ErrorSubject, ErrorVerb, StorageIOError};
use std::io;
use std::path::Path;

const MAGIC: &[u8; 4] = b"MSN1";
/// Two million remembered requests are most of it.
const PART_BYTES_MAX: usize = 1 << 30;

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the snapshot is damaged: {0}")]
    Decode(#[from] DecodeError),
    #[error("the snapshot's {0} is not readable")]
    Part(&'static str),
    #[error("the snapshot's bytes do not have the hash at their end")]
    Damaged,
    #[error("the snapshot belongs to network {0}")]
    OtherNetwork(NetworkId),
    #[error("the snapshot's records have another root than its state says")]
    Root,
}

pub struct Content {
    pub meta: SnapshotMeta,
    pub tail: Tail,
    /// None before the genesis record is applied.
    pub state: Option<State>,
}

impl Content {
    pub fn encode(&self, network: &NetworkId) -> Vec<u8> {
        let mut out = Writer::new();
        let pack = "raft's types and the state encode into memory";
        out.raw(MAGIC).raw(&network.0);
        out.bytes(&postcard::to_allocvec(&self.meta).expect(pack));
        out.bytes(&self.tail.encode());
        out.bytes(&postcard::to_allocvec(&self.state).expect(pack));
        let mut bytes = out.finish();
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8], network: &NetworkId) -> Result<Self, SnapshotError> {
        let (body, hash) = bytes.split_last_chunk::<32>().ok_or(SnapshotError::Damaged)?;
        if blake3::hash(body).as_bytes() != hash {
            return Err(SnapshotError::Damaged);
        }
        let mut input = Reader::new(body);
        if input.raw(4, "magic")? != MAGIC {
            return Err(DecodeError::Unknown("snapshot format").into());
        }
        let of = NetworkId(input.array("network")?);
        if of != *network {
            return Err(SnapshotError::OtherNetwork(of));
        }
        let meta = postcard::from_bytes(input.bytes(PART_BYTES_MAX, "meta")?)
            .map_err(|_| SnapshotError::Part("meta"))?;
        let tail = Tail::decode(input.bytes(PART_BYTES_MAX, "tail")?)?;
        let state: Option<State> = postcard::from_bytes(input.bytes(PART_BYTES_MAX, "state")?)
            .map_err(|_| SnapshotError::Part("state"))?;
        input.finish()?;
        let root = state
            .as_ref()
            .map_or_else(|| (0, Tail::default().root()), |s| (s.head().size, s.head().root));
        if (tail.size(), tail.root()) != root {
            return Err(SnapshotError::Root);
        }
        Ok(Self { meta, tail, state })
    }
}

/// The bytes of the snapshot in `path`, if there is one.
pub fn load(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::new("read", path, error)),
    }
}

pub fn save(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    durable::replace_file(path, 0o600, bytes)
}

/// Openraft stops for good on a storage error; the sequencer then ends the process.
pub fn storage_error(verb: ErrorVerb, error: &(dyn std::error::Error + 'static)) -> StorageError {
    let source = AnyError::error(error.to_string());
    StorageIOError::new(ErrorSubject::StateMachine, verb, source).into()
}
