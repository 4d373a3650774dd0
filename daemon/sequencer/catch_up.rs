//! Records fetched from another peer: before a snapshot is taken over, and to follow as no voter.
//!
//! Owns: the walk over full bundles, and the check that they lead to the root that is claimed.
//! Never: believes a bundle by itself: only the root over all of them counts.
//! Invariant: our own tail moves only after everything before it was verified and is on disk.

use super::files::{Files, Full, ReadError, TILE, Tail};
use super::raft::network::{Call, CallError, RaftTransport, pack, unpack};
use crate::store::durable::DiskError;
use bytes::Bytes;
use mictlan::id::{PeerId, Position};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const BUNDLE_WITHIN: Duration = Duration::from_secs(20);

/// Why records could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum CatchUpError {
    #[error("no peer gives bundle {number}; the last one asked said: {last}")]
    NoPeer { number: u64, last: CallError },
    #[error("the records that peers gave have another root than the snapshot says")]
    Root,
    #[error("the snapshot ends at record {theirs}, before our own {ours}")]
    Behind { theirs: u64, ours: u64 },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Asks for one full bundle.
#[derive(Serialize, Deserialize)]
pub struct Wanted {
    pub number: u64,
}

/// Records and their tag lists, in order.
#[derive(Serialize, Deserialize)]
pub struct Bundle {
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Answers another peer's `Call::Bundle`.
pub fn answer(files: &Files, body: &[u8]) -> Result<Bytes, CallError> {
    let Wanted { number } = unpack(body)?;
    let refused = |e: ReadError| CallError::Refused(e.to_string());
    let from = number.checked_mul(TILE).ok_or(CallError::Refused("no such bundle".into()))?;
    let records = files.page(Position(from)).map_err(refused)?;
    if (records.len() as u64) < TILE {
        return Err(CallError::Refused(format!("bundle {number} is not full here")));
    }
    Ok(pack(&Bundle { records }))
}

/// Brings every full tile to disk that `end`, the tail of a snapshot, says is full.
pub async fn fetch_full_tiles(
    files: &Files,
    end: &Tail,
    peers: &[PeerId],
    transport: &dyn RaftTransport,
) -> Result<(), CatchUpError> {
    let mut tail = files.copy_tail();
    if tail.size() > end.size() {
        return Err(CatchUpError::Behind { theirs: end.size(), ours: tail.size() });
    }
    while tail.size() < end.start() {
        let number = tail.size() / TILE;
        let bundle = fetch(number, peers, transport).await?;
        let skip = (tail.size() % TILE) as usize;
        let mut full: Vec<Full> = Vec::new();
        for (record, tags) in bundle.records.iter().skip(skip) {
            full.extend(tail.append(record, tags));
        }
        for tile in &full {
            files.write(tile)?; // crash here: tiles behind our tail, written again next time
        }
    }
    // The open tiles of every level but the first cover exactly the full bundles.
    let levels = end.levels().max(tail.levels());
    let same = (1..levels).all(|level| tail.hashes(level) == end.hashes(level));
    if same { Ok(()) } else { Err(CatchUpError::Root) }
}

async fn fetch(
    number: u64,
    peers: &[PeerId],
    transport: &dyn RaftTransport,
) -> Result<Bundle, CatchUpError> {
    let mut last = CallError::Refused("there is no other voter".into());
    for peer in peers {
        let body = pack(&Wanted { number });
        match transport.call(*peer, Call::Bundle, body, BUNDLE_WITHIN).await {
            Ok(bytes) => match unpack::<Bundle>(&bytes) {
                Ok(bundle) if is_whole(&bundle) => return Ok(bundle),
                Ok(_) => last = CallError::Refused("a bundle of another length".into()),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(CatchUpError::NoPeer { number, last })
}

/// The limits that `Tail::append` asserts, since these bytes come from a peer.
fn is_whole(bundle: &Bundle) -> bool {
    let fits =
        |(record, tags): &(Vec<u8>, Vec<u8>)| record.len() <= 1 << 14 && tags.len() <= 1 << 16;
    bundle.records.len() as u64 == TILE && bundle.records.iter().all(fits)
}
