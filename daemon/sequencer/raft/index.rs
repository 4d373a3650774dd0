//! What the log holds, in memory: where each entry stands, the newest ones themselves, the vote.
//!
//! Owns: the one meaning of a frame, used by replay and by live writes alike.
//! Never: touches a file.
//! Invariant: entries are consecutive; the first follows what was purged, or nothing was.

use super::wal::Place;
use super::{Entry, LogId, Vote};
use mictlan::codec::{DecodeError, Reader, Writer};
use openraft::RaftLogId;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::VecDeque;
use std::ops::RangeBounds;

/// Newest entries kept decoded, so that replication and apply read no file.
const CACHE_BYTES_MAX: usize = 16 << 20;

const ENTRIES: u8 = 1;
const VOTE: u8 = 2;
const COMMITTED: u8 = 3;
const TRUNCATE: u8 = 4;
const PURGE: u8 = 5;
const START: u8 = 6;

/// Why a frame's body makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("its {0} is not readable")]
    Part(&'static str),
    #[error("its entry {found} does not follow; {expected} would")]
    Hole { found: u64, expected: u64 },
}

/// One change of the log: the body of a frame.
pub enum Change {
    Entries(Vec<Entry>),
    Vote(Vote),
    Committed(Option<LogId>),
    /// Everything from this index on goes.
    Truncate(u64),
    /// Everything up to this goes.
    Purge(LogId),
    /// First in every segment: what older segments said of these.
    Start {
        vote: Option<Vote>,
        committed: Option<LogId>,
        purged: Option<LogId>,
    },
}

struct Slot {
    id: LogId,
    place: Place,
    /// Which entry of its frame it is.
    nth: usize,
    len: usize,
    cached: Option<Entry>,
}

#[derive(Default)]
pub struct Index {
    slots: VecDeque<Slot>,
    cached_bytes: usize,
    /// Slots before this one are not cached.
    cached_from: usize,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
}

/// An entry that was asked for: at hand, or to be read.
pub enum Found {
    Here(Entry),
    At { id: LogId, place: Place, nth: usize },
}

impl Index {
    /// Carries out one change; the same call for a live write and for replay.
    pub fn apply(&mut self, place: &Place, change: Change, lens: &[usize]) {
        match change {
            Change::Entries(entries) => {
                for (nth, entry) in entries.into_iter().enumerate() {
                    self.push(place, nth, entry, lens[nth]);
                }
                self.shrink();
            }
            Change::Vote(vote) => self.vote = Some(vote),
            Change::Committed(id) => self.committed = id,
            Change::Truncate(since) => self.truncate(since),
            Change::Purge(upto) => self.purge(upto),
            Change::Start { vote, committed, purged } => {
                self.vote = vote;
                self.committed = committed;
                if let Some(purged) = purged {
                    self.purge(purged);
                }
            }
        }
    }

    fn push(&mut self, place: &Place, nth: usize, entry: Entry, len: usize) {
        let id = *entry.get_log_id();
        // What is purged is in a snapshot: the entry adds nothing.
        if self.purged.is_some_and(|purged| id.index <= purged.index) {
            return;
        }
        // Raft itself appends without holes and truncates before it overwrites; openraft's suite
        // does neither. A hole would be found by `check` at the next start.
        self.truncate(id.index);
        self.cached_bytes += len;
        self.slots.push_back(Slot { id, place: place.clone(), nth, len, cached: Some(entry) });
    }

    fn truncate(&mut self, since: u64) {
        while self.slots.back().is_some_and(|s| s.id.index >= since) {
            let slot = self.slots.pop_back().expect("there is a last slot");
            self.forget(&slot);
        }
        self.cached_from = self.cached_from.min(self.slots.len());
    }

    fn purge(&mut self, upto: LogId) {
        while self.slots.front().is_some_and(|s| s.id.index <= upto.index) {
            let slot = self.slots.pop_front().expect("there is a first slot");
            self.forget(&slot);
            self.cached_from = self.cached_from.saturating_sub(1);
        }
        self.purged = self.purged.max(Some(upto));
    }

    fn forget(&mut self, slot: &Slot) {
        if slot.cached.is_some() {
            self.cached_bytes -= slot.len;
        }
    }

    fn shrink(&mut self) {
        while self.cached_bytes > CACHE_BYTES_MAX && self.cached_from + 1 < self.slots.len() {
            let slot = &mut self.slots[self.cached_from];
            if slot.cached.take().is_some() {
                self.cached_bytes -= slot.len;
            }
            self.cached_from += 1;
        }
    }

    /// The last entry's id, or what was purged last.
    pub fn last(&self) -> Option<LogId> {
        self.slots.back().map(|s| s.id).or(self.purged)
    }

    /// After replay: nothing is missing behind what was purged, or from the first entry on. Only the
    /// whole log can say so: the oldest segment left may begin with entries that a later frame
    /// purges.
    pub fn check(&self) -> Result<(), FrameError> {
        let expected = self.purged.map_or(0, |p| p.index + 1)..;
        for (expected, slot) in expected.zip(&self.slots) {
            let found = slot.id.index;
            if found != expected {
                return Err(FrameError::Hole { found, expected });
            }
        }
        Ok(())
    }

    /// The oldest segment that still holds an entry.
    pub fn first_segment(&self) -> Option<u64> {
        self.slots.front().map(|s| s.place.segment)
    }

    /// Exactly the entries of `range` that are in the log.
    pub fn find(&self, range: impl RangeBounds<u64>) -> Vec<Found> {
        let from = match range.start_bound() {
            std::ops::Bound::Included(i) => *i,
            std::ops::Bound::Excluded(i) => *i + 1,
            std::ops::Bound::Unbounded => 0,
        };
        let skip = self.slots.partition_point(|s| s.id.index < from);
        let inside = self.slots.iter().skip(skip).take_while(|s| range.contains(&s.id.index));
        let found = |s: &Slot| match &s.cached {
            Some(entry) => Found::Here(entry.clone()),
            None => Found::At { id: s.id, place: s.place.clone(), nth: s.nth },
        };
        inside.map(found).collect()
    }

    /// What a new segment begins with.
    pub fn start(&self) -> Vec<u8> {
        let (vote, committed, purged) = (self.vote, self.committed, self.purged);
        Change::Start { vote, committed, purged }.encode().0
    }
}

impl Found {
    /// The entry, read from its frame where it is no longer in memory.
    pub fn read(self) -> Result<Entry, std::io::Error> {
        let (id, place, nth) = match self {
            Found::Here(entry) => return Ok(entry),
            Found::At { id, place, nth } => (id, place, nth),
        };
        let invalid = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
        let body = place.read()?;
        let (change, _) = Change::decode(&body).map_err(|e| invalid(e.to_string()))?;
        let Change::Entries(entries) = change else {
            return Err(invalid(format!("the frame of entry {id} holds no entries")));
        };
        let entry = entries.into_iter().nth(nth).filter(|e| *e.get_log_id() == id);
        entry.ok_or_else(|| invalid(format!("the frame of entry {id} holds another one")))
    }
}

impl Change {
    /// The frame's body, and the length of each entry in it.
    pub fn encode(&self) -> (Vec<u8>, Vec<usize>) {
        let mut out = Writer::new();
        let mut lens = Vec::new();
        match self {
            Change::Entries(entries) => {
                out.u8(ENTRIES).varint(entries.len() as u64);
                for entry in entries {
                    let bytes = pack(entry);
                    lens.push(bytes.len());
                    out.bytes(&bytes);
                }
            }
            Change::Vote(vote) => {
                out.u8(VOTE).raw(&pack(vote));
            }
            Change::Committed(id) => {
                out.u8(COMMITTED).raw(&pack(id));
            }
            Change::Truncate(since) => {
                out.u8(TRUNCATE).u64(*since);
            }
            Change::Purge(upto) => {
                out.u8(PURGE).raw(&pack(upto));
            }
            Change::Start { vote, committed, purged } => {
                out.u8(START).raw(&pack(&(vote, committed, purged)));
            }
        }
        (out.finish(), lens)
    }

    pub fn decode(body: &[u8]) -> Result<(Self, Vec<usize>), FrameError> {
        let mut input = Reader::new(body);
        let mut lens = Vec::new();
        let change = match input.u8("frame kind")? {
            ENTRIES => {
                let count = input.count(2, "entries")?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    let bytes = input.bytes(u32::MAX as usize, "entry")?;
                    lens.push(bytes.len());
                    entries.push(unpack(bytes, "entry")?);
                }
                input.finish()?;
                Change::Entries(entries)
            }
            VOTE => Change::Vote(unpack(input.rest(), "vote")?),
            COMMITTED => Change::Committed(unpack(input.rest(), "committed id")?),
            TRUNCATE => {
                let since = input.u64("index")?;
                input.finish()?;
                Change::Truncate(since)
            }
            PURGE => Change::Purge(unpack(input.rest(), "purged id")?),
            START => {
                let (vote, committed, purged) = unpack(input.rest(), "start")?;
                Change::Start { vote, committed, purged }
            }
            _ => return Err(DecodeError::Unknown("frame kind").into()),
        };
        Ok((change, lens))
    }
}

fn pack(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("raft's types encode into memory")
}

fn unpack<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(FrameError::Part(what)),
    }
}
