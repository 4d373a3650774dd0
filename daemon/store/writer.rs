//! Group commit: what waits is written together, synced once, then everybody is answered.
//!
//! Owns: the end of the last segment, and all changes of the index while the store is open.
//! Never: waits for company (a group is what queued up while the last one synced), and never
//! answers before the sync.
//! Invariant: an answer `Ok` follows sync, then index; after the first failure there is no other
//! write.

use super::durable::{self, Appender, DiskError};
use super::index::{Changes, Entry, IndexError, Mark};
use super::lock::StoreDir;
use super::segment::{
    FRAME_HEADER_LEN, Frame, FrameKey, FrameKind, SEGMENT_HEADER_LEN, SegmentHeader, frame_len,
    hole,
};
use super::{ADDRESSES_MAX, Checked, OpenError, Receipt, Room, Shared, WriteError};
use bytes::Bytes;
use mictlan::cluster::place::Copies;
use mictlan::hash;
use mictlan::id::{ChunkId, TimeMs};
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// A group is closed at this size, so that the first in it does not wait for ever.
const GROUP_BYTES: u64 = 32 << 20;
const GROUP_REQUESTS: usize = 1024;
const PADDING: [u8; 8] = [0; 8];

type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

pub enum Request {
    Put {
        chunks: Vec<Checked>,
        /// How many there shall be, where this store is to remember it.
        copies: Option<Copies>,
        /// The ledger ordered it, so it may use the reserve.
        ordered: bool,
        reply: Reply<Vec<Receipt>>,
    },
    /// The copies of these were found, or are not asked for any more.
    Settled {
        chunks: Vec<ChunkId>,
        reply: Reply<()>,
    },
    Have {
        chunks: Vec<ChunkId>,
        reply: Reply<Vec<Option<Receipt>>>,
    },
    Remove {
        chunks: Vec<ChunkId>,
        stamped_before: TimeMs,
        reply: Reply<usize>,
    },
    /// A reader found the copy at `place` bad; `false` when the chunk is no longer there.
    Damaged {
        chunk: ChunkId,
        place: Mark,
        why: String,
        reply: oneshot::Sender<bool>,
    },
}

impl Request {
    fn bytes(&self) -> u64 {
        match self {
            Self::Put { chunks, .. } => {
                chunks.iter().map(|c| frame_len(c.bytes.len() as u64)).sum()
            }
            Self::Have { chunks, .. } | Self::Remove { chunks, .. } => 32 * chunks.len() as u64,
            Self::Settled { .. } | Self::Damaged { .. } => 0,
        }
    }
}

/// The segment that grows.
pub struct Tail {
    pub number: u64,
    pub key: FrameKey,
    pub log: Appender,
}

impl Tail {
    /// Makes the segment file `number`, empty but for its header.
    pub fn create(dir: &StoreDir, number: u64, now: TimeMs) -> Result<Self, OpenError> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(OpenError::Random)?;
        let header = SegmentHeader { number, salt, made: now };
        let log = Appender::create(&dir.segment(number), 0o600, &header.encode())?;
        Ok(Self { number, key: header.frame_key(), log })
    }

    pub fn mark(&self) -> Mark {
        Mark { segment: self.number, offset: self.log.end() }
    }
}

/// Why a group failed; all in it hear it, and everybody after them.
#[derive(Debug, thiserror::Error)]
enum GroupError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Segment(#[from] OpenError),
}

pub struct Writer {
    shared: Arc<Shared>,
    tail: Tail,
    segment_bytes: u64,
    /// Something was written after the last frame that says that all before it is durable.
    unclosed: bool,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, tail: Tail, segment_bytes: u64) -> Self {
        Self { shared, tail, segment_bytes, unclosed: false }
    }

    /// Until every sender is gone.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut bytes = first.bytes();
            let mut group = vec![first];
            while bytes < GROUP_BYTES
                && group.len() < GROUP_REQUESTS
                && let Ok(next) = requests.try_recv()
            {
                bytes += next.bytes();
                group.push(next);
            }
            self.serve(group);
        }
        if self.shared.failure.get().is_none()
            && let Err(error) = self.close()
        {
            self.shared.fail(error.to_string());
        }
    }

    /// Carries one group through. On failure its requests are dropped unanswered, after the
    /// failure is known: whoever waits for an answer then reads that.
    fn serve(&mut self, requests: Vec<Request>) {
        if self.shared.failure.get().is_some() {
            return;
        }
        match self.carry(&requests) {
            Ok(outcomes) => {
                for (request, outcome) in requests.into_iter().zip(outcomes) {
                    outcome.answer(request);
                }
            }
            Err(error) => {
                self.shared.fail(error.to_string());
            }
        }
    }

    fn carry(&mut self, requests: &[Request]) -> Result<Vec<Outcome>, GroupError> {
        let shared = self.shared.clone();
        let now = (shared.clock)();
        if self.tail.log.end() >= self.segment_bytes {
            self.roll(now)?;
        }
        let totals = shared.totals();
        let changes = shared.index.changes(self.tail.mark(), totals);
        let room = shared.room(totals.used);
        let mut group = Group::new(changes, self.tail.log.synced(), now, room);
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            outcomes.push(group.plan(request)?);
        }
        group.list_stamped();
        self.commit(&shared, group)?;
        Ok(outcomes)
    }

    fn commit(&mut self, shared: &Shared, group: Group<'_>) -> Result<(), GroupError> {
        if !group.frames.is_empty() {
            self.write(&group.frames)?; // crash here: any part of unacknowledged frames
            assert_eq!(self.tail.mark(), group.changes.mark, "planned and written places agree");
            self.unclosed = true;
        }
        // crash here: durable, and the next start reads it into the index and makes the holes
        for (segment, hole) in group.holes {
            let path = shared.dir.segment(segment);
            match shared.files.of(&shared.dir, segment) {
                Ok(file) => durable::punch(&file, &path, hole).map(drop)?,
                // A lost segment, whose chunks are put anew, has nothing to give back.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(DiskError::new("open", &path, e).into()),
            }
        }
        // Before anybody is told that it is durable.
        shared.dir.takes(self.tail.number, self.tail.log.file())?;
        let totals = group.changes.totals;
        group.changes.commit()?;
        shared.set_totals(totals);
        Ok(())
    }

    fn write(&mut self, frames: &[(Frame, Bytes)]) -> Result<(), DiskError> {
        let mut at = self.tail.log.end();
        let mut headers = Vec::with_capacity(frames.len());
        for (frame, _) in frames {
            headers.push(frame.encode(&self.tail.key, at));
            at += frame.len();
        }
        let mut parts = Vec::with_capacity(3 * frames.len());
        for ((frame, body), header) in frames.iter().zip(&headers) {
            let padding = frame.len() - FRAME_HEADER_LEN - body.len() as u64;
            parts.push(IoSlice::new(header));
            parts.push(IoSlice::new(body));
            parts.push(IoSlice::new(&PADDING[..padding as usize]));
        }
        self.tail.log.append_and_sync(&mut parts)
    }

    /// The last frame that a segment gets says that all before it is durable, so that a walk
    /// without an index can tell damage of its last group from a crash.
    fn close(&mut self) -> Result<(), GroupError> {
        if !self.unclosed {
            return Ok(());
        }
        let shared = self.shared.clone();
        let changes = shared.index.changes(self.tail.mark(), shared.totals());
        let room = shared.room(0);
        let mut group = Group::new(changes, self.tail.log.synced(), (shared.clock)(), room);
        group.push(FrameKind::Stamp, Bytes::new());
        self.commit(&shared, group)?;
        self.unclosed = false;
        Ok(shared.index.persist()?)
    }

    fn roll(&mut self, now: TimeMs) -> Result<(), GroupError> {
        self.close()?; // crash here: the next start goes on in this segment
        self.tail = Tail::create(&self.shared.dir, self.tail.number + 1, now)?;
        let mut totals = self.shared.totals();
        totals.used += SEGMENT_HEADER_LEN;
        self.shared.index.changes(self.tail.mark(), totals).commit()?;
        self.shared.set_totals(totals);
        Ok(())
    }
}

/// What a request is told once the group is durable.
enum Outcome {
    Put(Result<Vec<Receipt>, WriteError>),
    Settled,
    Have(Vec<Option<Receipt>>),
    Remove(usize),
    Damaged(bool),
}

impl Outcome {
    /// A caller that went away is no matter.
    fn answer(self, request: Request) {
        match (request, self) {
            (Request::Put { reply, .. }, Self::Put(result)) => drop(reply.send(result)),
            (Request::Settled { reply, .. }, Self::Settled) => drop(reply.send(Ok(()))),
            (Request::Have { reply, .. }, Self::Have(found)) => drop(reply.send(Ok(found))),
            (Request::Remove { reply, .. }, Self::Remove(count)) => drop(reply.send(Ok(count))),
            (Request::Damaged { reply, .. }, Self::Damaged(there)) => drop(reply.send(there)),
            _ => unreachable!("an outcome is planned for its own request"),
        }
    }
}

/// Frames and index changes of one group, none of them written yet.
struct Group<'a> {
    changes: Changes<'a>,
    frames: Vec<(Frame, Bytes)>,
    stamped: Vec<ChunkId>,
    /// Blocks to give back once the frames that justify it are durable, by segment.
    holes: Vec<(u64, std::ops::Range<u64>)>,
    synced: u64,
    now: TimeMs,
    room: Room,
}

impl<'a> Group<'a> {
    fn new(changes: Changes<'a>, synced: u64, now: TimeMs, room: Room) -> Self {
        let (frames, stamped, holes) = Default::default();
        Self { changes, frames, stamped, holes, synced, now, room }
    }

    fn plan(&mut self, request: &Request) -> Result<Outcome, IndexError> {
        Ok(match request {
            Request::Put { chunks, copies, ordered, .. } => {
                Outcome::Put(self.put(chunks, *copies, *ordered)?)
            }
            Request::Settled { chunks, .. } => {
                chunks.iter().for_each(|chunk| self.changes.settle(*chunk));
                Outcome::Settled
            }
            Request::Have { chunks, .. } => Outcome::Have(self.have(chunks)?),
            Request::Remove { chunks, stamped_before, .. } => {
                Outcome::Remove(self.remove(chunks, *stamped_before)?)
            }
            Request::Damaged { chunk, place, why, .. } => {
                Outcome::Damaged(self.condemn(*chunk, *place, why)?)
            }
        })
    }

    fn put(
        &mut self,
        chunks: &[Checked],
        copies: Option<Copies>,
        ordered: bool,
    ) -> Result<Result<Vec<Receipt>, WriteError>, IndexError> {
        let mut asked = 0;
        for chunk in chunks {
            if self.changes.entry(&chunk.chunk)?.is_none_or(|entry| entry.damaged) {
                asked += frame_len(chunk.bytes.len() as u64);
            }
        }
        let Room { space, reserve } = self.room;
        let used = self.changes.totals.used;
        let kept_back = if ordered { 0 } else { reserve };
        if asked > 0 && used + asked > space - kept_back {
            return Ok(Err(WriteError::Full { asked, used, space, reserve }));
        }
        let mut receipts = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            match self.stamp(chunk.chunk)? {
                Some(receipt) => receipts.push(receipt),
                None => receipts.push(self.add(chunk)?),
            }
            if let Some(copies) = copies {
                self.changes.owe(chunk.chunk, copies.count() as u8)?;
            }
        }
        Ok(Ok(receipts))
    }

    fn have(&mut self, chunks: &[ChunkId]) -> Result<Vec<Option<Receipt>>, IndexError> {
        chunks.iter().map(|chunk| self.stamp(*chunk)).collect()
    }

    /// Stamps a chunk that is here and whole.
    fn stamp(&mut self, chunk: ChunkId) -> Result<Option<Receipt>, IndexError> {
        match self.changes.entry(&chunk)? {
            Some(entry) if !entry.damaged => {
                let stamp = entry.stamp.max(self.now);
                if stamp > entry.stamp {
                    self.changes.set(chunk, Some(Entry { stamp, ..entry }))?;
                    self.stamped.push(chunk);
                }
                Ok(Some(Receipt { chunk, stamp }))
            }
            _ => Ok(None),
        }
    }

    /// Appends a chunk that is not here, or only as a damaged copy.
    fn add(&mut self, chunk: &Checked) -> Result<Receipt, IndexError> {
        if let Some(bad) = self.changes.entry(&chunk.chunk)? {
            self.free(&bad);
        }
        let place = self.push(FrameKind::Chunk, chunk.bytes.clone());
        let entry = Entry { place, len: chunk.bytes.len() as u32, stamp: self.now, damaged: false };
        self.changes.set(chunk.chunk, Some(entry))?;
        Ok(Receipt { chunk: chunk.chunk, stamp: self.now })
    }

    fn remove(&mut self, chunks: &[ChunkId], before: TimeMs) -> Result<usize, IndexError> {
        let mut removed = Vec::new();
        for chunk in chunks {
            match self.changes.entry(chunk)? {
                // What this very group wrote is not removed: its frame is not yet durable.
                Some(entry) if entry.stamp < before.min(self.now) => {
                    self.free(&entry);
                    self.changes.set(*chunk, None)?;
                    removed.extend_from_slice(&chunk.0);
                }
                _ => {}
            }
        }
        let count = removed.len() / 32;
        if count > 0 {
            // At once, not with the stamps at the group's end: a put later in the group wins.
            self.push(FrameKind::Tombstone, removed.into());
        }
        Ok(count)
    }

    /// Marks a copy that a reader found bad, unless it is gone or was written anew.
    fn condemn(&mut self, chunk: ChunkId, place: Mark, why: &str) -> Result<bool, IndexError> {
        match self.changes.entry(&chunk)? {
            Some(entry) if entry.place == place => {
                if !entry.damaged {
                    tracing::warn!(%chunk, why, "a chunk is damaged and no longer served");
                    self.changes.set(chunk, Some(Entry { damaged: true, ..entry }))?;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn free(&mut self, entry: &Entry) {
        if let Some(hole) = hole(entry.place.offset, u64::from(entry.len)) {
            self.changes.totals.used -= hole.end - hole.start;
            self.holes.push((entry.place.segment, hole));
        }
    }

    /// Writes down which chunks were stamped, a frame for each so many.
    fn list_stamped(&mut self) {
        let stamped = std::mem::take(&mut self.stamped);
        for some in stamped.chunks(ADDRESSES_MAX) {
            let body: Vec<u8> = some.iter().flat_map(|chunk| chunk.0).collect();
            self.push(FrameKind::Stamp, body.into());
        }
    }

    fn push(&mut self, kind: FrameKind, body: Bytes) -> Mark {
        let place = self.changes.mark;
        let hash = hash::address(&body).0;
        let body_len = body.len() as u32;
        let frame = Frame { kind, body_len, time: self.now, synced: self.synced, hash };
        self.changes.mark.offset += frame.len();
        self.changes.totals.used += frame.len();
        self.frames.push((frame, body));
        place
    }
}
