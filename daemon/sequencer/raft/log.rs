//! Openraft's log store over the write-ahead log.
//!
//! Owns: the thread that writes, and the order of durability of vote, entries and purges.
//! Never: answers an append before it is on disk; purges before the snapshot that covers it is.
//! Invariant: a reader gets exactly the entries of the range it asked for that are in the log.

use super::index::{Change, FrameError, Index};
use super::wal::{Wal, WalError};
use super::{Entry, LogId, StorageError, Types, Vote};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader, StorageIOError};
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use tokio::sync::oneshot;

/// Why the log store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(
        "a part of the log {dir} is gone: {error}; put no older copy back: move the whole \
         directory sequencer/ away and start this peer again, and the other voters bring its log \
         back"
    )]
    Content { dir: std::path::PathBuf, error: FrameError },
}

struct Job {
    change: Change,
    done: oneshot::Sender<io::Result<()>>,
}

/// The log store; clones are readers of the same log.
#[derive(Clone)]
pub struct LogStore {
    /// Covers the index; held for a lookup or an update, never across a write.
    index: Arc<Mutex<Index>>,
    /// To the writing thread, which ends with the last clone.
    jobs: mpsc::Sender<Job>,
}

impl LogStore {
    /// Opens the log in `dir`, repairing a torn tail.
    pub fn open(dir: &Path, segment_bytes: u64) -> Result<Self, OpenError> {
        let mut index = Index::default();
        let wal = Wal::open(dir, segment_bytes, |place, body| {
            let (change, lens) = Change::decode(body).map_err(|e| e.to_string())?;
            index.apply(place, change, &lens);
            Ok(())
        })?;
        let fail = |error| OpenError::Content { dir: dir.to_owned(), error };
        index.check().map_err(fail)?;
        let index = Arc::new(Mutex::new(index));
        let (jobs, todo) = mpsc::channel();
        let of_thread = index.clone();
        std::thread::Builder::new()
            .name("wal".into())
            .spawn(move || write_all(wal, &of_thread, &todo))
            .map_err(|e| WalError::from(crate::store::durable::DiskError::new("serve", dir, e)))?;
        Ok(Self { index, jobs })
    }

    /// Whether nothing was ever promised by it: no entry, no vote.
    pub fn is_empty(&self) -> bool {
        let index = self.index();
        index.last().is_none() && index.vote.is_none()
    }

    /// The last entry.
    pub fn last(&self) -> Option<LogId> {
        self.index().last()
    }

    pub fn vote(&self) -> Option<Vote> {
        self.index().vote
    }

    /// Who led before the start stands for election again. In memory: the vote itself stays.
    pub fn lead_no_longer(&self, me: u64) {
        if let Some(vote) = &mut self.index().vote
            && vote.leader_id.node_id == me
        {
            vote.committed = false;
        }
    }

    /// What a snapshot has instead of the log.
    pub fn purged(&self) -> Option<LogId> {
        self.index().purged
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    /// Hands one change to the thread and waits until it is carried out.
    async fn write(&self, change: Change) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        let ended = || io::Error::other("the log's thread has ended");
        self.jobs.send(Job { change, done }).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    // The index is changed by infallible steps only; a panic elsewhere leaves it whole.
    index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The thread: one change after another, each durable before it is answered.
fn write_all(mut wal: Wal, index: &Mutex<Index>, todo: &mpsc::Receiver<Job>) {
    while let Ok(Job { change, done }) = todo.recv() {
        let result = write_one(&mut wal, index, change);
        // A caller that went away needs no answer.
        let _ = done.send(result);
    }
}

fn write_one(wal: &mut Wal, index: &Mutex<Index>, change: Change) -> io::Result<()> {
    let (body, lens) = change.encode();
    // The committed id is a hint that shortens replay: losing the last one costs nothing, and the
    // next append or vote brings it to disk before anything depends on it.
    let sync = !matches!(change, Change::Committed(_));
    let purge = matches!(change, Change::Purge(_));
    let place = wal.append(&body, sync, || lock(index).start()).map_err(io::Error::other)?;
    // Crash before here: the change was never answered. After: replay makes the same call.
    lock(index).apply(&place, change, &lens);
    if purge {
        // Only now, when the purge itself is on disk, may the entries' files go.
        let first = lock(index).first_segment().unwrap_or(place.segment);
        wal.release_before(first).map_err(io::Error::other)?;
    }
    Ok(())
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let found = self.index().find(range);
        let entries: Result<Vec<Entry>, io::Error> = found.into_iter().map(|f| f.read()).collect();
        entries.map_err(|e| StorageIOError::read_logs(&e).into())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let index = self.index();
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = self.write(Change::Vote(*vote)).await;
        saved.map_err(|e| StorageIOError::write_vote(&e).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.index().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let saved = self.write(Change::Committed(committed)).await;
        saved.map_err(|e| StorageIOError::write(&e).into())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.index().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        let written = self.write(Change::Entries(entries)).await;
        let told = match &written {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        callback.log_io_completed(told);
        written.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let cut = self.write(Change::Truncate(since.index)).await;
        cut.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let purged = self.write(Change::Purge(upto)).await;
        purged.map_err(|e| StorageIOError::write_logs(&e).into())
    }
}
