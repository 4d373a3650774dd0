//! Chunks from the disk back to those who ask.
//!
//! Owns: open segment files, and the check of whole chunks against their address (0.12 cpu-seconds
//! a GiB; a copy that is bad must be found by the peer that can replace it, not by its readers).
//! Never: returns a whole chunk that is not what its address says; a range is returned unchecked,
//! `prove` and its reader check it.
//! Invariant: a chunk that does not read back is taken out of service before the error is given.

use super::index::{Entry, IndexError, Mark};
use super::lock::StoreDir;
use super::scan::read_body;
use super::segment::FRAME_HEADER_LEN;
use super::writer::Request;
use super::{Shared, Store};
use bytes::Bytes;
use lru::LruCache;
use mictlan::hash;
use mictlan::id::{ChunkId, TimeMs};
use mictlan::seal::RangeError;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// Segment files that stay open: 64 GiB of chunks by random reads without an `open` each.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("chunk {chunk}: this peer's copy is damaged ({why}) and is no longer served")]
    Damaged { chunk: ChunkId, why: String },
    #[error("chunk {chunk}: bytes {}..{} of {len} do not exist", range.start, range.end)]
    Range { chunk: ChunkId, range: Range<u32>, len: u32 },
    /// The machine is short of something (memory, file handles); the copy may well be good.
    #[error("chunk {chunk}: cannot be read now: {cause}")]
    NotNow { chunk: ChunkId, cause: io::Error },
    #[error(transparent)]
    NotProved(#[from] RangeError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("the store is closed")]
    Closed,
}

/// What the store knows of a chunk without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub chunk: ChunkId,
    pub len: u32,
    pub stamp: TimeMs,
    pub damaged: bool,
}

/// The open segment files. The lock covers the table only, never a read.
pub struct Files {
    open: Mutex<LruCache<u64, Arc<File>>>,
}

impl Files {
    pub fn new() -> Self {
        Self { open: Mutex::new(LruCache::new(FILES_MAX)) }
    }

    pub fn of(&self, dir: &StoreDir, segment: u64) -> io::Result<Arc<File>> {
        if let Some(file) = self.table().get(&segment) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::options().read(true).write(true).open(dir.segment(segment))?);
        self.table().put(segment, file.clone());
        Ok(file)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, LruCache<u64, Arc<File>>> {
        self.open.lock().expect("no holder of the table panics")
    }
}

impl Store {
    /// The bytes of a chunk, checked against its address; `None` when it is not here.
    pub async fn get(&self, chunk: ChunkId) -> Result<Option<Bytes>, ReadError> {
        loop {
            let shared = self.shared.clone();
            let read = run(move || shared.whole(chunk)).await?;
            if let Some(settled) = self.settle(chunk, read).await? {
                return Ok(settled);
            }
        }
    }

    /// A range of a chunk's bytes, not checked: the reader holds the proof or the address.
    pub async fn get_range(
        &self,
        chunk: ChunkId,
        range: Range<u32>,
    ) -> Result<Option<Bytes>, ReadError> {
        loop {
            let (shared, range) = (self.shared.clone(), range.clone());
            let read = run(move || shared.part(chunk, range)).await?;
            if let Some(settled) = self.settle(chunk, read).await? {
                return Ok(settled);
            }
        }
    }

    /// What is known of a chunk; no disk is read and no stamp is given.
    pub fn held(&self, chunk: ChunkId) -> Result<Option<Held>, ReadError> {
        let entry = self.shared.index.entry(&chunk)?;
        Ok(entry.map(|entry| held(chunk, entry)))
    }

    /// Up to `limit` chunks after `after` by address: for inventories and scrubs.
    pub fn after(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<Held>, ReadError> {
        let page = self.shared.index.after(after, limit)?;
        Ok(page.into_iter().map(|(chunk, entry)| held(chunk, entry)).collect())
    }

    /// Up to `limit` damaged chunks after `after`: what healing fetches anew.
    pub fn damaged(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<ChunkId>, ReadError> {
        Ok(self.shared.index.damaged_after(after, limit)?)
    }

    /// Gives what was read, or takes the copy out of service first. `None`: the chunk was removed
    /// or written anew while its old place was read, so the read says nothing.
    async fn settle(&self, chunk: ChunkId, read: Read) -> Result<Option<Option<Bytes>>, ReadError> {
        let (place, why) = match read {
            Read::Absent => return Ok(Some(None)),
            Read::Whole(bytes) => return Ok(Some(Some(bytes))),
            Read::KnownBad => {
                let why = "found before".to_owned();
                return Err(ReadError::Damaged { chunk, why });
            }
            Read::Bad { place, why } => (place, why),
        };
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().expect("the queue lives as long as the store");
        let told = queue.send(Request::Damaged { chunk, place, why: why.clone(), reply }).await;
        told.map_err(|_| ReadError::Closed)?;
        match answer.await {
            Ok(false) => Ok(None),
            Ok(true) | Err(_) => Err(ReadError::Damaged { chunk, why }),
        }
    }
}

fn held(chunk: ChunkId, entry: Entry) -> Held {
    Held { chunk, len: entry.len, stamp: entry.stamp, damaged: entry.damaged }
}

/// A disk read, off the threads that serve others.
pub(super) async fn run<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    tokio::task::spawn_blocking(read).await.map_err(|_| ReadError::Closed)?
}

enum Read {
    Absent,
    Whole(Bytes),
    KnownBad,
    Bad { place: Mark, why: String },
}

impl Shared {
    fn whole(&self, chunk: ChunkId) -> Result<Read, ReadError> {
        let Some(entry) = self.index.entry(&chunk)? else { return Ok(Read::Absent) };
        if entry.damaged {
            return Ok(Read::KnownBad);
        }
        let place = entry.place;
        let body = self
            .files
            .of(&self.dir, place.segment)
            .and_then(|file| read_body(&file, place.offset, entry.len));
        match body {
            Ok(body) if hash::address(&body) == chunk => Ok(Read::Whole(body.into())),
            Ok(_) => {
                let why = "its bytes do not hash to its address".to_owned();
                Ok(Read::Bad { place, why })
            }
            Err(e) => unreadable(chunk, place, e),
        }
    }

    fn part(&self, chunk: ChunkId, range: Range<u32>) -> Result<Read, ReadError> {
        let Some(entry) = self.index.entry(&chunk)? else { return Ok(Read::Absent) };
        if entry.damaged {
            return Ok(Read::KnownBad);
        }
        if range.start > range.end || range.end > entry.len {
            return Err(ReadError::Range { chunk, range, len: entry.len });
        }
        let place = entry.place;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let at = place.offset + FRAME_HEADER_LEN + u64::from(range.start);
        let read = self
            .files
            .of(&self.dir, place.segment)
            .and_then(|file| file.read_exact_at(&mut bytes, at));
        match read {
            Ok(()) => Ok(Read::Whole(bytes.into())),
            Err(e) => unreadable(chunk, place, e),
        }
    }
}

/// A bad sector, a lost file or a lost end condemns the copy; a shortage of the machine does not.
fn unreadable(chunk: ChunkId, place: Mark, cause: io::Error) -> Result<Read, ReadError> {
    let lost = [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof];
    let bad_sector = cause.raw_os_error() == Some(libc::EIO);
    if bad_sector || lost.contains(&cause.kind()) {
        return Ok(Read::Bad { place, why: cause.to_string() });
    }
    Err(ReadError::NotNow { chunk, cause })
}
