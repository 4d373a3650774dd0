//! How a voter is opened, and what its directory must hold for that.
//!
//! Owns: the refusal of a directory of which a part is gone.
//! Never: mends one; the other voters bring a whole log back.
//! Invariant: a log that opens has all that its own neighbours in the directory were built from.

use super::chunks::Chunks;
use super::clock::WallClock;
use super::publish::{PublishError, Publisher};
use super::raft;
use super::raft::guard::{self, Guard};
use super::raft::log::LogStore;
use super::raft::machine::Applied;
use super::raft::network::RaftTransport;
use crate::store::durable::DiskError;
use mictlan::id::{NetworkId, PeerId};
use mictlan::seal::Principal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a sequencer is opened.
pub struct Options {
    pub dir: PathBuf,
    pub network: NetworkId,
    pub me: PeerId,
    /// Signs cosignatures, and opens the log key that is wrapped for this voter.
    pub identity: Arc<Principal>,
    pub chunks: Arc<dyn Chunks>,
    pub transport: Arc<dyn RaftTransport>,
    pub now: WallClock,
    pub limits: Limits,
    /// No other peer is known that could bring a lost log back, and no network is founded.
    pub lone: bool,
}

impl Options {
    /// What may be done with the log as it was found.
    pub(super) fn guard(&self, log: &LogStore) -> Result<Arc<Guard>, OpenError> {
        let (dir, empty) = (self.dir.clone(), log.is_empty());
        if empty && !guard::is_marked(&dir)? {
            for kept in ["snapshot", "cosigned", "ledger/checkpoint"] {
                if dir.join(kept).exists() {
                    return Err(OpenError::Gone { gone: "wal", kept, dir });
                }
            }
        }
        if empty && self.lone {
            return Err(OpenError::Lone { dir });
        }
        Ok(Guard::open(&dir, self.me, empty, self.transport.clone())?)
    }
}

/// Sizes that tests make small.
#[derive(Clone, Copy)]
pub struct Limits {
    pub wal_segment_bytes: u64,
    pub entries_per_snapshot: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // Replay of some thousand groups takes a second or two; a snapshot of a busy state some
        // ten megabytes.
        Self { wal_segment_bytes: 16 << 20, entries_per_snapshot: 5000 }
    }
}

/// Why a sequencer does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Log(#[from] raft::log::OpenError),
    #[error(transparent)]
    Snapshot(#[from] raft::SnapshotError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(
        "{}, or a part of it, is gone: {} leans on it; put no older copy of it back: move the \
         whole {} away and start this peer again, and the other voters bring its log back",
        dir.join(gone).display(), dir.join(kept).display(), dir.display()
    )]
    Gone { gone: &'static str, kept: &'static str, dir: PathBuf },
    #[error("the log cannot be read: {0}")]
    Unreadable(String),
    #[error(
        "{} holds no log, and the configuration names no other peer that could bring it back: \
         nothing was begun. If this is the network's only voter, put the newest copy of the \
         directory back; if others vote, name one of them in the configuration of this network \
         (peers: id, key, addresses), and start again",
        dir.display()
    )]
    Lone { dir: PathBuf },
    #[error("the ordering engine does not start: {0}")]
    Raft(String),
}

/// Refuses a log or a snapshot that has less than what was built from it.
pub(super) async fn nothing_is_gone(
    dir: &Path,
    log: &LogStore,
    applied: &Applied,
    signed: &Publisher,
) -> Result<(), OpenError> {
    let gone = |gone, kept| Err(OpenError::Gone { gone, kept, dir: dir.to_owned() });
    if log.purged() > applied.last_applied() {
        return gone("snapshot", "wal");
    }
    for (size, kept) in signed.sizes() {
        match applied.can_reach(log, size).await {
            Ok(true) => {}
            Ok(false) => return gone("wal", kept),
            Err(error) => return Err(OpenError::Unreadable(error.to_string())),
        }
    }
    Ok(())
}
