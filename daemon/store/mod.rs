//! A peer's chunks on its disk.
//!
//! Owns: one directory: segments (append-only, the truth), an index (rebuildable), an identity and
//! a lock. docs/FORMAT.md has the bytes.
//! Never: opens a chunk, knows a key, or talks to anybody.
//! Invariants: a receipt is given only after the bytes and the stamp are on the disk; no bytes are
//! stored or returned whole under an address that is not theirs; after a write or sync that failed
//! the store takes no more writes and says why, while reads go on.
//!
//! | file | promise |
//! | --- | --- |
//! | durable | the only caller of fsync and rename |
//! | lock | whose directory this is, one process at a time |
//! | segment | the bytes of segment files |
//! | scan | what is whole, damaged, torn |
//! | index | where each chunk lies |
//! | heal | the index agrees with the segments when the store opens |
//! | read | chunks back from the disk, checked |
//! | prove | parts of chunks with their path to the address |
//! | writer | group commit |

pub mod durable;
mod heal;
mod index;
mod lock;
mod prove;
mod read;
mod scan;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

pub use durable::DiskError;
pub use heal::OpenReport;
pub use index::IndexError;
pub use lock::DirError;
pub use read::{Held, ReadError};
pub use segment::BODY_MAX as CHUNK_BYTES_MAX;

use bytes::{Bytes, BytesMut};
use index::{Index, Totals};
use lock::StoreDir;
use mictlan::cluster::place::Copies;
use mictlan::hash;
use mictlan::id::{ChunkId, NetworkId, PeerId, TimeMs};
use read::Files;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::{Semaphore, mpsc, oneshot};
use writer::{Request, Writer};

/// A new segment begins when the last one is at least this long.
pub const SEGMENT_BYTES: u64 = 256 << 20;
/// Bytes of chunks that may wait for the disk; more callers wait before they queue.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Requests that may wait for the disk.
const WAITING_MAX: usize = 4096;
/// Addresses in one `have` or `remove`, so that one caller cannot hold the writer for long.
pub const ADDRESSES_MAX: usize = 65_536;

/// Milliseconds since 1970; a parameter, so that tests replay.
pub type Clock = Arc<dyn Fn() -> TimeMs + Send + Sync>;

/// How a store is opened.
pub struct Options {
    pub dir: PathBuf,
    pub network: NetworkId,
    pub peer: PeerId,
    /// At most this many bytes of disk; `None`: what the file system has.
    pub capacity: Option<u64>,
    /// `SEGMENT_BYTES` but in tests.
    pub segment_bytes: u64,
    pub clock: Clock,
}

/// Why a store did not open. Nothing was changed but a torn tail, if any.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Dir(#[from] DirError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(
        "segment {number:016x} has format {format}, which this program does not know; \
         use a newer mictlan"
    )]
    NewerSegment { number: u64, format: u8 },
    #[error("no randomness for a new segment: {0}")]
    Random(getrandom::Error),
}

/// Why nothing was written for a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    #[error("chunk {chunk}: the bytes that came hash to {actual}")]
    WrongAddress { chunk: ChunkId, actual: ChunkId },
    #[error("chunk {chunk}: more than {CHUNK_BYTES_MAX} bytes")]
    TooLarge { chunk: ChunkId },
    #[error("{count} addresses in one request; at most {ADDRESSES_MAX} are taken")]
    TooMany { count: usize },
    #[error(
        "the store is full: {asked} bytes asked for, {used} of {space} used, {reserve} kept in \
         reserve; free disk space, raise --capacity, or add a peer"
    )]
    Full { asked: u64, used: u64, space: u64, reserve: u64 },
    #[error(
        "the store takes no writes since {}: {cause}; check the disk, then restart this peer",
        mictlan::ledger::record::time::format(*.since)
    )]
    OutOfService { since: TimeMs, cause: String },
    #[error("the store is closed")]
    Closed,
}

/// Bytes that hash to their address: what the writer accepts.
#[derive(Debug, Clone)]
pub struct Checked {
    chunk: ChunkId,
    bytes: Bytes,
}

impl Checked {
    /// Takes bytes that came under the name `chunk`; 0.12 cpu-seconds a GiB.
    pub fn new(chunk: ChunkId, bytes: Bytes) -> Result<Self, WriteError> {
        if bytes.len() > CHUNK_BYTES_MAX {
            return Err(WriteError::TooLarge { chunk });
        }
        match hash::address(&bytes) {
            actual if actual == chunk => Ok(Self { chunk, bytes }),
            actual => Err(WriteError::WrongAddress { chunk, actual }),
        }
    }

    /// Takes bytes that came without a name: the receipt says what they hash to.
    pub fn hashed(bytes: Bytes) -> Result<Self, WriteError> {
        let chunk = hash::address(&bytes);
        match bytes.len() > CHUNK_BYTES_MAX {
            true => Err(WriteError::TooLarge { chunk }),
            false => Ok(Self { chunk, bytes }),
        }
    }

    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// A chunk that arrives in pieces: hashed while it comes, so that nothing is read twice.
pub struct Arriving {
    chunk: ChunkId,
    hasher: blake3::Hasher,
    bytes: BytesMut,
}

impl Arriving {
    /// `len` is what the sender announced; it only sizes the first buffer.
    pub fn new(chunk: ChunkId, len: usize) -> Self {
        let bytes = BytesMut::with_capacity(len.min(CHUNK_BYTES_MAX));
        Self { chunk, hasher: blake3::Hasher::new(), bytes }
    }

    pub fn take(&mut self, piece: &[u8]) -> Result<(), WriteError> {
        if self.bytes.len() + piece.len() > CHUNK_BYTES_MAX {
            return Err(WriteError::TooLarge { chunk: self.chunk });
        }
        self.hasher.update(piece);
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    pub fn finish(self) -> Result<Checked, WriteError> {
        match ChunkId(*self.hasher.finalize().as_bytes()) {
            actual if actual == self.chunk => {
                Ok(Checked { chunk: actual, bytes: self.bytes.freeze() })
            }
            actual => Err(WriteError::WrongAddress { chunk: self.chunk, actual }),
        }
    }
}

/// The chunk and its stamp are on this peer's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub chunk: ChunkId,
    pub stamp: TimeMs,
}

/// What `status` prints of a store.
#[derive(Debug, Clone)]
pub struct Stat {
    pub chunks: u64,
    pub damaged: u64,
    pub used: u64,
    /// All that it may ever use: the capacity, or less where the disk has less.
    pub space: u64,
    /// The part of `space` that only the ledger's own chunks may use.
    pub reserve: u64,
    /// It was empty when it was opened, and its peer had another before.
    pub is_new: bool,
    /// Why it takes no writes, if it does not.
    pub out_of_service: Option<WriteError>,
    /// What was found when it was opened.
    pub opened: OpenReport,
}

/// What the writer thread and the readers both see.
struct Shared {
    dir: StoreDir,
    index: Index,
    files: Files,
    capacity: Option<u64>,
    clock: Clock,
    /// Set once, by the first write or sync that failed; always `OutOfService`.
    failure: OnceLock<WriteError>,
    /// As of the last commit to the index; only the writer changes them.
    totals: Mutex<Totals>,
}

/// An open store. Every clone of the `Arc` around it shares one writer thread.
pub struct Store {
    shared: Arc<Shared>,
    outlines: prove::Outlines,
    queue: Option<mpsc::Sender<Request>>,
    waiting: Arc<Semaphore>,
    opened: OpenReport,
    is_new: AtomicBool,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Store {
    /// Opens or makes the store; reads on from where the index ends, so it takes as long as what a
    /// crash left takes to read, or a walk over all frame headers when the index was deleted.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let dir = StoreDir::open(&options.dir, options.network, options.peer)?;
        let index = heal::open_index(&dir)?;
        let healed = heal::heal(&dir, &index, options.clock.as_ref())?;
        let shared = Arc::new(Shared {
            files: Files::new(),
            dir,
            index,
            capacity: options.capacity,
            clock: options.clock,
            failure: OnceLock::new(),
            totals: Mutex::new(healed.totals),
        });
        let (queue, requests) = mpsc::channel(WAITING_MAX);
        let writer = Writer::new(shared.clone(), healed.tail, options.segment_bytes);
        let thread = std::thread::Builder::new()
            .name("store writer".to_owned())
            .spawn(move || writer.run(requests))
            .map_err(|e| DiskError::new("start a thread for", &options.dir, e))?;
        Ok(Self {
            shared,
            outlines: prove::outlines(),
            queue: Some(queue),
            waiting: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            opened: healed.report,
            is_new: AtomicBool::new(false),
            writer: Some(thread),
        })
    }

    /// Whoever opened it knows that its peer had another, which is gone.
    pub fn is_in_place_of_another(&self) {
        self.is_new.store(true, Ordering::Relaxed);
    }

    /// Stores chunks, or stamps those already here; all durable when it returns. A request is
    /// taken whole or refused whole.
    pub async fn put(&self, chunks: Vec<Checked>) -> Result<Vec<Receipt>, WriteError> {
        self.put_of(chunks, None).await
    }

    /// The same, remembering how many `copies` there shall be among all peers, until `settled`.
    pub async fn put_of(
        &self,
        chunks: Vec<Checked>,
        copies: Option<Copies>,
    ) -> Result<Vec<Receipt>, WriteError> {
        self.put_as(chunks, copies, false).await
    }

    /// Stores what the ledger has ordered, if need be in the reserve: a voter that cannot keep it
    /// has to end.
    pub async fn put_ordered(&self, chunks: Vec<Checked>) -> Result<Vec<Receipt>, WriteError> {
        self.put_as(chunks, None, true).await
    }

    async fn put_as(
        &self,
        chunks: Vec<Checked>,
        copies: Option<Copies>,
        ordered: bool,
    ) -> Result<Vec<Receipt>, WriteError> {
        if chunks.len() > ADDRESSES_MAX {
            return Err(WriteError::TooMany { count: chunks.len() });
        }
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        // A request above the whole allowance waits for all of it, not for ever.
        let share = bytes.min(WAITING_BYTES_MAX) as u32;
        let waiting = self.waiting.clone().acquire_many_owned(share).await;
        let _waiting = waiting.map_err(|_| WriteError::Closed)?;
        self.ask(|reply| Request::Put { chunks, copies, ordered, reply }).await
    }

    /// Nothing is to be remembered of these any more.
    pub async fn settled(&self, chunks: Vec<ChunkId>) -> Result<(), WriteError> {
        self.ask(|reply| Request::Settled { chunks, reply }).await
    }

    /// Up to `limit` chunks that are not `settled`, and how many copies there shall be of each.
    pub fn owed(&self, limit: usize) -> Result<Vec<(ChunkId, Copies)>, IndexError> {
        let owed = self.shared.index.owed(limit)?;
        Ok(owed.into_iter().filter_map(|(chunk, n)| Some((chunk, Copies::new(n)?))).collect())
    }

    /// Stamps those of `chunks` that are here and whole, durably; `None` for the others.
    pub async fn have(&self, chunks: Vec<ChunkId>) -> Result<Vec<Option<Receipt>>, WriteError> {
        if chunks.len() > ADDRESSES_MAX {
            return Err(WriteError::TooMany { count: chunks.len() });
        }
        self.ask(|reply| Request::Have { chunks, reply }).await
    }

    /// Removes those of `chunks` whose stamp is still older than `stamped_before` when the writer
    /// comes to them; how many that were. Works in the reserve.
    pub async fn remove(
        &self,
        chunks: Vec<ChunkId>,
        stamped_before: TimeMs,
    ) -> Result<usize, WriteError> {
        if chunks.len() > ADDRESSES_MAX {
            return Err(WriteError::TooMany { count: chunks.len() });
        }
        self.ask(|reply| Request::Remove { chunks, stamped_before, reply }).await
    }

    /// What the store holds and how it is; asks the disk for its free space.
    pub fn stat(&self) -> Stat {
        if let Err(gone) = self.shared.dir.is_there() {
            self.shared.fail(gone.to_string());
        }
        let totals = self.shared.totals();
        let room = self.shared.room(totals.used);
        Stat {
            chunks: totals.chunks,
            damaged: totals.damaged,
            used: totals.used,
            space: room.space,
            reserve: room.reserve,
            is_new: self.is_new.load(Ordering::Relaxed),
            out_of_service: self.shared.failure.get().cloned(),
            opened: self.opened.clone(),
        }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, WriteError>>) -> Request,
    ) -> Result<T, WriteError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().expect("the queue lives as long as the store");
        queue.send(request(reply)).await.map_err(|_| WriteError::Closed)?;
        // A request that is dropped unanswered fell to the failure that ended all writes.
        let failed = || self.shared.failure.get().cloned().unwrap_or(WriteError::Closed);
        answer.await.unwrap_or_else(|_| Err(failed()))
    }
}

impl Drop for Store {
    /// Lets the writer finish what waits and mark the end of what is durable.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

/// What a store may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    space: u64,
    reserve: u64,
}

/// At most this much is kept back so that removing always works.
const RESERVE_MAX: u64 = 1 << 30;

impl Shared {
    /// The space is the capacity, or what is used and free where that is less.
    fn room(&self, used: u64) -> Room {
        let free = self.dir.free_bytes().unwrap_or(0);
        let space = used.saturating_add(free).min(self.capacity.unwrap_or(u64::MAX));
        Room { space, reserve: (space / 20).min(RESERVE_MAX) }
    }

    fn totals(&self) -> Totals {
        *self.totals.lock().expect("no holder of the totals panics")
    }

    fn set_totals(&self, totals: Totals) {
        *self.totals.lock().expect("no holder of the totals panics") = totals;
    }

    /// The first failure decides; every later error repeats it.
    fn fail(&self, cause: String) {
        let since = (self.clock)();
        self.failure.get_or_init(|| {
            tracing::error!(%cause, "the store takes no more writes; reads go on");
            WriteError::OutOfService { since, cause }
        });
    }
}
