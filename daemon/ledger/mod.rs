//! The ledger as one machine believes it: peers' static files, checked against checkpoints.
//!
//! Owns: the newest checkpoint that was verified, kept over restarts, and the way to a newer one.
//! Never: shows a byte that no acceptable checkpoint vouches for, or goes back to a smaller size.
//! Invariant: what is remembered is on disk before it is shown, so no restart forgets it.
//!
//! | file in the state directory | holds |
//! | --- | --- |
//! | ledger-seen | the trail of the newest verified checkpoint, and its note |
//! | ledger-contradiction-SIZE-ROOT.note | a signed note that contradicts another one |

mod advance;
pub mod fetch;
mod outline;
mod tiles;
mod trail;
mod tree;
mod view;

use crate::store::durable::DiskError;
use bytes::Bytes;
use fetch::Fetch;
use mictlan::codec::DecodeError;
use mictlan::id::{LedgerHash, NetworkId, Position, TimeMs};
use mictlan::ledger::checkpoint::{Accepted, Checkpoint, CheckpointError};
use mictlan::ledger::roster::Roster;
use mictlan::ledger::tile::{self, Row, TileId, WIDTH};
use mictlan::meta::error::FsError;
use mictlan::wire::Head;
use outline::Outlines;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tiles::{Edge, Tiles};
use tokio::sync::watch;
use tokio::time::Instant;
pub use trail::{Trail, TrailError};
pub use tree::{LedgerTree, Pinned};

/// A view younger than this is not checked again: `tar` of the tree asks a million times.
const FRESH: Duration = Duration::from_secs(1);
/// How long a question waits for a newer checkpoint when an older one is at hand.
const SOON: Duration = Duration::from_secs(1);
/// How long it waits for the first one: a large log is read whole once.
const FIRST_WITHIN: Duration = Duration::from_secs(60);
/// Notes of this many sizes are at hand for `at/<size>/` without asking a peer.
const NOTES_MAX: usize = 1024;
const FILE_MODE: u32 = 0o600;

#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    #[error("{0}; it is what this machine trusts the network by: remove it only if you trust anew")]
    Remembered(String),
    #[error("no peer gives {path}: {why}")]
    Unreachable { path: String, why: String },
    #[error(
        "{path}: the bytes of every peer that answered contradict the checkpoint of size {size}"
    )]
    Tampered { path: String, size: u64 },
    #[error("the records up to {size} are not those of the checkpoint: {why}")]
    Records { size: u64, why: String },
    #[error("the checkpoint is not acceptable: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "two histories are signed: {a} and {b}; nothing of this ledger is shown any more; both \
         notes are kept in {}", .dir.display()
    )]
    Contradiction { a: Named, b: Named, dir: PathBuf },
    #[error("the ledger's files are damaged: {0}")]
    Damaged(#[from] DecodeError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the network has published no checkpoint yet")]
    NothingPublished,
    #[error("the first reading of the ledger is still under way")]
    NotYet,
}

impl LedgerError {
    /// What a program that reads the tree is told.
    pub fn errno(&self) -> FsError {
        match self {
            Self::Unreachable { .. } | Self::NothingPublished | Self::NotYet => FsError::TimedOut,
            _ => FsError::Io,
        }
    }
}

/// A checkpoint in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    pub size: u64,
    pub root: LedgerHash,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "size {} with root {}", self.size, self.root)
    }
}

/// The newest verified checkpoint and what was learned on the way to it.
pub struct Seen {
    pub accepted: Accepted,
    pub note: Bytes,
    trail: Trail,
    /// The right edge of its tree, fetched when the first tile is needed.
    edge: tokio::sync::OnceCell<Edge>,
}

impl Seen {
    pub fn size(&self) -> u64 {
        self.accepted.checkpoint.size
    }

    pub fn root(&self) -> LedgerHash {
        self.accepted.checkpoint.root
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.accepted.checkpoint
    }

    /// Whose keys count.
    pub fn roster(&self) -> Option<&Roster> {
        self.trail.roster()
    }

    fn named(&self) -> Named {
        Named { size: self.size(), root: self.root() }
    }
}

/// What peers say of records that are ordered and not yet published.
#[derive(Clone)]
struct Heard {
    head: Head,
    /// Since when there are more records than the published ones.
    pending_since: Option<TimeMs>,
    missing: Vec<String>,
}

pub struct Ledger {
    network: NetworkId,
    dir: PathBuf,
    fetch: Fetch,
    tiles: Tiles,
    outlines: Outlines,
    seen: watch::Sender<Option<Arc<Seen>>>,
    /// Counts attempts to find a newer checkpoint that ended, and how the last one did.
    rounds: watch::Sender<(u64, Option<LedgerError>)>,
    /// Whether such an attempt runs: there is one at a time.
    under_way: AtomicBool,
    /// Covers when the last one ended.
    checked: Mutex<Option<Instant>>,
    /// Covers verified notes by size.
    notes: Mutex<BTreeMap<u64, Bytes>>,
    /// Covers what was heard last.
    heard: Mutex<Option<Heard>>,
    contradiction: OnceLock<LedgerError>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holds one value that is replaced whole, so a panic elsewhere leaves it right.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// `dir` is the network's state directory. Nothing is fetched yet.
    pub fn open(network: NetworkId, dir: &Path, fetch: Fetch) -> Result<Arc<Self>, LedgerError> {
        let seen = advance::load(network, dir)?;
        let notes = seen.iter().map(|seen| (seen.size(), seen.note.clone())).collect();
        Ok(Arc::new(Self {
            network,
            dir: dir.to_owned(),
            fetch,
            tiles: Tiles::new(),
            outlines: Outlines::new(),
            seen: watch::Sender::new(seen.map(Arc::new)),
            rounds: watch::Sender::new((0, None)),
            under_way: AtomicBool::new(false),
            checked: Mutex::new(None),
            notes: Mutex::new(notes),
            heard: Mutex::new(None),
            contradiction: OnceLock::new(),
        }))
    }

    /// The checkpoint that is remembered in a state directory, for who verifies from outside.
    pub fn remembered(network: NetworkId, dir: &Path) -> Result<Option<Checkpoint>, LedgerError> {
        Ok(advance::load(network, dir)?.map(|seen| seen.accepted.checkpoint))
    }

    /// The newest verified checkpoint, without a look for a newer one.
    pub fn seen(&self) -> Option<Arc<Seen>> {
        self.seen.borrow().clone()
    }

    /// Why nothing of this ledger is believed any more, if that is so.
    pub fn contradiction(&self) -> Option<&LedgerError> {
        self.contradiction.get()
    }

    /// What a peer says of its own end of the log; shown in `status.json`, believed by nobody.
    pub fn heard(&self, head: Head, now: TimeMs, missing: Vec<String>) {
        let published = self.seen().map_or(0, |seen| seen.size());
        let mut heard = lock(&self.heard);
        let before = heard.as_ref().and_then(|heard| heard.pending_since);
        let pending_since = (head.size.0 > published).then(|| before.unwrap_or(now));
        *heard = Some(Heard { head, pending_since, missing });
    }

    /// The newest checkpoint, at most a second old where peers answer; else the last one there
    /// was. Waits long only for the very first.
    pub async fn newest(self: &Arc<Self>) -> Result<Arc<Seen>, LedgerError> {
        self.intact()?;
        let fresh = lock(&self.checked).is_some_and(|checked| checked.elapsed() < FRESH);
        match self.seen() {
            Some(seen) if fresh => return Ok(seen),
            // Another question waits for it already; a network that is away is waited for once.
            Some(seen) if self.under_way.load(Ordering::Acquire) => return Ok(seen),
            Some(_) => {
                // Late or out of reach: the last one holds, and `status.json` tells its age.
                let _ = tokio::time::timeout(SOON, self.refresh()).await;
            }
            None => {
                let first = tokio::time::timeout(FIRST_WITHIN, self.refresh()).await;
                return first.map_err(|_| LedgerError::NotYet)?;
            }
        }
        self.intact()?;
        self.seen().ok_or(LedgerError::NotYet)
    }

    /// Looks for a newer checkpoint now and waits for the outcome. An attempt goes on when the
    /// one who waits for it gives up.
    pub async fn refresh(self: &Arc<Self>) -> Result<Arc<Seen>, LedgerError> {
        let mut rounds = self.rounds.subscribe();
        let before = rounds.borrow_and_update().0;
        if !self.under_way.swap(true, Ordering::AcqRel) {
            let ledger = self.clone();
            tokio::spawn(async move {
                // Dropped at the end, and by a panic too: who waits is always woken.
                let round = Round(ledger);
                let outcome = round.0.advance().await;
                // Mounts look every few seconds: one line each time that it stops working.
                let worked = round.0.rounds.borrow().1.is_none();
                match &outcome {
                    Err(error) if worked => {
                        tracing::warn!(%error, "no newer checkpoint of the ledger");
                    }
                    Err(error) => tracing::debug!(%error, "no newer checkpoint of the ledger"),
                    Ok(()) => {}
                }
                round.0.rounds.send_modify(|(_, last)| *last = outcome.err());
            });
        }
        let _ = rounds.wait_for(|(count, _)| *count > before).await;
        self.intact()?;
        match (rounds.borrow().1.clone(), self.seen()) {
            (Some(error), _) => Err(error),
            (None, Some(seen)) => Ok(seen),
            (None, None) => Err(LedgerError::NothingPublished),
        }
    }

    fn intact(&self) -> Result<(), LedgerError> {
        self.contradiction.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The bytes of a file from the first peer whose answer `accept` takes.
    async fn fetch_with<T>(
        &self,
        path: &str,
        size: u64,
        accept: impl Fn(&Bytes) -> Option<T>,
    ) -> Result<T, LedgerError> {
        let (mut why, mut lied) = ("there is no peer".to_owned(), false);
        for turn in 0.. {
            let Some(answer) = (self.fetch)(turn, path.to_owned()) else { break };
            match answer.await {
                Ok(Some(bytes)) => match accept(&bytes) {
                    Some(accepted) => return Ok(accepted),
                    None => {
                        tracing::warn!(path, size, turn, "a peer's bytes are not the ledger's");
                        lied = true;
                    }
                },
                Ok(None) => why = "it is not there".to_owned(),
                Err(error) => why = error,
            }
        }
        let path = path.to_owned();
        Err(match lied {
            true => LedgerError::Tampered { path, size },
            false => LedgerError::Unreachable { path, why },
        })
    }

    /// The leaf of a record in the tree that `seen` vouches for.
    pub async fn leaf(&self, seen: &Seen, at: Position) -> Result<LedgerHash, LedgerError> {
        let short = DecodeError::Short("tile of the published size");
        let id = TileId::of(Row::Level(0), at.0 / WIDTH, seen.size()).ok_or(short)?;
        let bytes = self.tile(seen, id).await?;
        tile::hashes(&bytes).nth((at.0 % WIDTH) as usize).ok_or(short.into())
    }

    /// A tile of the verified tree, at least as wide as `id`.
    async fn tile(&self, seen: &Seen, id: TileId) -> Result<Bytes, LedgerError> {
        tiles::tile(self, seen, id).await
    }
}

/// An attempt under way.
struct Round(Arc<Ledger>);

impl Drop for Round {
    fn drop(&mut self) {
        *lock(&self.0.checked) = Some(Instant::now());
        self.0.under_way.store(false, Ordering::Release);
        self.0.rounds.send_modify(|(count, _)| *count += 1);
    }
}
