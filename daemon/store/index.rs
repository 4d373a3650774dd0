//! Where each chunk lies: a cache of what the segments say, rebuildable from them alone.
//!
//! Owns: the key-value files under `index/`: chunk → place and stamp, the damaged chunks, how far
//! into the segments it is complete, and the totals.
//! Never: is the only place of anything but of what other peers are owed; it may be deleted while
//! the store is closed, and then that is forgotten.
//! Invariant: it never runs ahead of the segments (it is written after their sync), and each write
//! moves the mark together with the entries below it, so that after a crash the store reads on
//! from the mark.

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::id::{ChunkId, TimeMs};
use std::collections::HashMap;
use std::path::Path;

/// The layout of keys and values here; another one makes the store build the index anew.
const FORMAT: u8 = 1;
/// Memory for the index's blocks; entries are 60 bytes, so this covers the hot ones of a TiB.
const CACHE_BYTES: u64 = 8 << 20;
const MEMTABLE_BYTES: u64 = 4 << 20;
const JOURNAL_BYTES: u64 = 64 << 20;

const CHUNKS: &str = "chunks";
const DAMAGED: &str = "damaged";
const OWED: &str = "owed";
const STATE: &str = "state";
const STATE_KEY: &[u8] = b"state";

/// The index could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IndexError {
    #[error("the store's index fails: {0}")]
    Database(std::sync::Arc<fjall::Error>),
    #[error("the store's index holds an entry that does not read: {0}")]
    Entry(#[from] DecodeError),
}

impl From<fjall::Error> for IndexError {
    fn from(error: fjall::Error) -> Self {
        Self::Database(std::sync::Arc::new(error))
    }
}

/// A place in the segments: before it, all is in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    pub segment: u64,
    pub offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where the chunk's frame begins.
    pub place: Mark,
    pub len: u32,
    pub stamp: TimeMs,
    /// It did not read back as what it is; never served, and the next put writes it anew.
    pub damaged: bool,
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u64(self.place.segment).u64(self.place.offset).u32(self.len).u64(self.stamp.0);
        w.u8(u8::from(self.damaged));
        w.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let place = Mark { segment: r.u64("segment")?, offset: r.u64("offset")? };
        let (len, stamp) = (r.u32("length")?, TimeMs(r.u64("stamp")?));
        let damaged = match r.u8("damaged")? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::NotCanonical("flag")),
        };
        r.finish()?;
        Ok(Self { place, len, stamp, damaged })
    }
}

/// Sums over the whole store, kept so that opening does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub chunks: u64,
    pub damaged: u64,
    /// Bytes of the segment files, less the holes.
    pub used: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    mark: Mark,
    totals: Totals,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(FORMAT).u64(self.mark.segment).u64(self.mark.offset);
        w.u64(self.totals.chunks).u64(self.totals.damaged).u64(self.totals.used);
        w.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("version")? {
            FORMAT => {}
            other => return Err(DecodeError::Version(other)),
        }
        let mark = Mark { segment: r.u64("segment")?, offset: r.u64("offset")? };
        let totals =
            Totals { chunks: r.u64("chunks")?, damaged: r.u64("damaged")?, used: r.u64("used")? };
        r.finish()?;
        Ok(Self { mark, totals })
    }
}

pub struct Index {
    database: Database,
    chunks: Keyspace,
    damaged: Keyspace,
    /// How many copies there shall be of a chunk, until they were found.
    owed: Keyspace,
    state: Keyspace,
}

impl Index {
    /// Opens it, or makes an empty one.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let chunks = database.keyspace(CHUNKS, options)?;
        let damaged = database.keyspace(DAMAGED, options)?;
        let owed = database.keyspace(OWED, options)?;
        let state = database.keyspace(STATE, options)?;
        Ok(Self { database, chunks, damaged, owed, state })
    }

    pub fn entry(&self, chunk: &ChunkId) -> Result<Option<Entry>, IndexError> {
        match self.chunks.get(chunk.0)? {
            Some(bytes) => Ok(Some(Entry::decode(&bytes)?)),
            None => Ok(None),
        }
    }

    /// Up to `limit` entries after `after`, in the order of their addresses.
    pub fn after(
        &self,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Entry)>, IndexError> {
        let mut out = Vec::new();
        for item in page(&self.chunks, after).take(limit) {
            let (key, value) = item.into_inner()?;
            out.push((address(&key)?, Entry::decode(&value)?));
        }
        Ok(out)
    }

    /// Up to `limit` damaged chunks after `after`.
    pub fn damaged_after(
        &self,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkId>, IndexError> {
        let mut out = Vec::new();
        for item in page(&self.damaged, after).take(limit) {
            out.push(address(&item.key()?)?);
        }
        Ok(out)
    }

    /// Up to `limit` chunks whose copies were not found yet, and how many there shall be.
    pub fn owed(&self, limit: usize) -> Result<Vec<(ChunkId, u8)>, IndexError> {
        let mut out = Vec::new();
        for item in page(&self.owed, None).take(limit) {
            let (key, value) = item.into_inner()?;
            out.push((address(&key)?, copies(&value)?));
        }
        Ok(out)
    }

    /// How far it is complete, and the totals up to there; zeros when it is new.
    pub fn state(&self) -> Result<(Mark, Totals), IndexError> {
        match self.state.get(STATE_KEY)? {
            Some(bytes) => State::decode(&bytes).map(|s| (s.mark, s.totals)).map_err(Into::into),
            None => Ok((Mark::default(), Totals::default())),
        }
    }

    /// A set of changes over what the index holds; nothing is written before `commit`.
    pub fn changes(&self, mark: Mark, totals: Totals) -> Changes<'_> {
        let (entries, owed) = Default::default();
        Changes { index: self, entries, owed, mark, totals }
    }

    /// After a power cut no more than what came after this call has to be read again.
    pub fn persist(&self) -> Result<(), IndexError> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }
}

fn page(keyspace: &Keyspace, after: Option<ChunkId>) -> fjall::Iter {
    use std::ops::Bound::{Excluded, Unbounded};
    let from = after.map_or(Unbounded, |chunk| Excluded(chunk.0));
    keyspace.range::<[u8; 32], _>((from, Unbounded))
}

fn address(key: &[u8]) -> Result<ChunkId, DecodeError> {
    let mut r = Reader::new(key);
    let chunk = ChunkId(r.array("address")?);
    r.finish()?;
    Ok(chunk)
}

fn copies(value: &[u8]) -> Result<u8, DecodeError> {
    let mut r = Reader::new(value);
    let copies = r.u8("copies")?;
    r.finish()?;
    Ok(copies)
}

struct Change {
    /// The index lists it as damaged; only then is there anything to take off that list.
    was_damaged: bool,
    /// `None`: removed.
    now: Option<Entry>,
}

/// Changes that become visible together, with the mark that they reach.
pub struct Changes<'a> {
    index: &'a Index,
    entries: HashMap<ChunkId, Change>,
    /// `None`: no more.
    owed: HashMap<ChunkId, Option<u8>>,
    pub mark: Mark,
    pub totals: Totals,
}

impl Changes<'_> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn entry(&self, chunk: &ChunkId) -> Result<Option<Entry>, IndexError> {
        match self.entries.get(chunk) {
            Some(change) => Ok(change.now),
            None => self.index.entry(chunk),
        }
    }

    /// Replaces (or removes) an entry and keeps the counts.
    pub fn set(&mut self, chunk: ChunkId, entry: Option<Entry>) -> Result<(), IndexError> {
        let was = self.entry(&chunk)?;
        let damaged = |e: Option<Entry>| e.is_some_and(|e| e.damaged);
        self.totals.chunks += u64::from(entry.is_some());
        self.totals.chunks -= u64::from(was.is_some());
        self.totals.damaged += u64::from(damaged(entry));
        self.totals.damaged -= u64::from(damaged(was));
        let first = Change { was_damaged: damaged(was), now: None };
        self.entries.entry(chunk).or_insert(first).now = entry;
        Ok(())
    }

    /// There shall be so many copies, or as many as were asked for before.
    pub fn owe(&mut self, chunk: ChunkId, wanted: u8) -> Result<(), IndexError> {
        let before = match self.owed.get(&chunk) {
            Some(before) => *before,
            None => match self.index.owed.get(chunk.0)? {
                Some(value) => Some(copies(&value)?),
                None => None,
            },
        };
        self.owed.insert(chunk, Some(wanted.max(before.unwrap_or(0))));
        Ok(())
    }

    pub fn settle(&mut self, chunk: ChunkId) {
        self.owed.insert(chunk, None);
    }

    /// Writes all of it at once; the operating system has it then, so a killed process loses
    /// nothing, and after a power cut the segments are read from an older mark.
    pub fn commit(self) -> Result<(), IndexError> {
        let mut batch = self.index.database.batch().durability(Some(PersistMode::Buffer));
        for (chunk, change) in self.entries {
            match change.now {
                Some(entry) => batch.insert(&self.index.chunks, chunk.0, entry.encode()),
                None => batch.remove(&self.index.chunks, chunk.0),
            }
            match (change.was_damaged, change.now.is_some_and(|entry| entry.damaged)) {
                (false, true) => batch.insert(&self.index.damaged, chunk.0, []),
                (true, false) => batch.remove(&self.index.damaged, chunk.0),
                _ => {}
            }
        }
        for (chunk, copies) in self.owed {
            match copies {
                Some(copies) => batch.insert(&self.index.owed, chunk.0, [copies]),
                None => batch.remove(&self.index.owed, chunk.0),
            }
        }
        let state = State { mark: self.mark, totals: self.totals };
        batch.insert(&self.index.state, STATE_KEY, state.encode());
        Ok(batch.commit()?)
    }
}
