//! One inode that is open, or whose bytes are not committed yet.
//!
//! Owns: its dirty bytes, those being sealed, what of them is in the journal, and who has it open.
//! Never: knows extents; the view does.
//! Invariant: a byte that was written is in exactly one place newer than all others: `dirty`, then
//! `sealing`, then the view's extents. A reader asks them in this order. Appended bytes are in
//! `tail` instead, and while there are any, nothing is written to `dirty`.

use super::journal::{Journaled, Seq};
use super::tail::Tail;
use crate::chunks::Put;
use crate::chunks::budget::Charge;
use bytes::Bytes;
use mictlan::file::{Cutter, Dirty};
use mictlan::id::Ino;
use mictlan::meta::inode::{Inode, ModeChange, Stamp};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::time::Instant;

/// So much goes into one entry of the journal.
pub const ENTRY_BYTES: u64 = 4 << 20;

pub struct OpenFile {
    pub ino: Ino,
    /// Held while bytes go from dirty to extents and while the size is changed, so that these
    /// happen one after another. Taken before `data` and before the volume's core.
    pub order: Arc<tokio::sync::Mutex<()>>,
    data: Mutex<FileData>,
}

#[derive(Default)]
pub struct FileData {
    pub dirty: Dirty,
    /// Taken out of `dirty`, on its way into chunks; still what a reader must see.
    pub sealing: Vec<(u64, Bytes)>,
    /// Appended since, and at no place yet.
    pub tail: Tail,
    /// Memory that the bytes of `dirty` and `tail` are accounted with, by write.
    pub charges: VecDeque<(usize, Charge)>,
    /// When the oldest byte of them was written.
    pub since: Option<Instant>,
    /// Of the last write that is not in the view yet.
    pub pending: Option<Pending>,
    /// Ranges of `dirty` that the journal does not have.
    pub unjournaled: Vec<Range<u64>>,
    /// Where bytes of `dirty` are in journals, if they are: the next commit takes them along.
    pub journaled: Option<Journaled>,
    /// The same of the bytes in `sealing`.
    pub journaled_sealing: Option<Journaled>,
    /// Bytes of `dirty` or `sealing` were acknowledged under the lease.
    pub leased: bool,
    /// Chunks of this file on their way to their peers.
    pub puts: Vec<Put>,
    /// Open handles.
    pub handles: u32,
    /// The last reader's end, for read-ahead.
    pub read_end: u64,
    /// An error that a `write` could not report, because it came after: the next call does.
    pub failed: Option<mictlan::meta::error::FsError>,
}

/// What of a file's dirty bytes is sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// What the cutter finds whole: the file is still being written.
    WholeChunks,
    Everything,
    /// What was appended, if nothing before it waits.
    Tail,
}

/// Bytes with their places in the file.
pub enum Pieces {
    /// One chunk of a stream, as the cutter makes it.
    Chunk([(u64, Bytes); 1]),
    /// Runs that are to be cut or packed.
    Runs(Vec<(u64, Bytes)>),
}

impl std::ops::Deref for Pieces {
    type Target = [(u64, Bytes)];

    fn deref(&self) -> &Self::Target {
        match self {
            Pieces::Chunk(chunk) => chunk,
            Pieces::Runs(runs) => runs,
        }
    }
}

/// What the bytes written since the last operation on this inode change besides bytes.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// Of the last write, or what `utimensat` set since.
    pub mtime: Stamp,
    /// Of the last write, whatever was set.
    pub ctime: Stamp,
    pub end: u64,
    pub kill_priv: bool,
}

impl OpenFile {
    pub fn new(ino: Ino) -> Self {
        Self { ino, order: Arc::default(), data: Mutex::new(FileData::default()) }
    }

    /// What was taken and has no place yet waits again, under what was written since.
    pub fn put_back(&self) {
        let mut data = self.data();
        for (offset, bytes) in std::mem::take(&mut data.sealing) {
            let end = offset + bytes.len() as u64;
            for gap in data.dirty.gaps(offset..end) {
                let (from, to) = ((gap.start - offset) as usize, (gap.end - offset) as usize);
                data.dirty.write(gap.start, &bytes[from..to]);
                // A sealing is in a journal as a whole or not at all.
                if data.journaled_sealing.is_none() {
                    data.unjournaled.push(gap);
                }
            }
        }
        let (sealing, since) = (data.journaled_sealing.take(), data.journaled);
        data.journaled = sealing.map_or(since, |sealing| Some(sealing.and(since)));
        data.tail.put_back();
        if data.waiting_bytes() > 0 {
            data.since.get_or_insert_with(tokio::time::Instant::now);
        }
    }

    /// Never held across an await.
    pub fn data(&self) -> MutexGuard<'_, FileData> {
        self.data.lock().expect("nothing panics while a file is locked")
    }
}

impl FileData {
    /// Nothing would be lost if this was forgotten.
    pub fn is_idle(&self) -> bool {
        let unsealed = self.unsealed_bytes() + self.tail.len();
        let noted = self.pending.is_some() || self.floor().is_some() || self.failed.is_some();
        let on_the_way = self.puts.iter().any(|put| !put.is_durable());
        self.handles == 0 && unsealed == 0 && !noted && !on_the_way
    }

    /// Takes in written bytes. `charge` is what they were accounted with.
    pub fn write(&mut self, offset: u64, data: &[u8], now: Stamp, kill_priv: bool, charge: Charge) {
        self.dirty.write(offset, data);
        self.charges.push_back((data.len(), charge));
        self.since.get_or_insert_with(Instant::now);
        let end = offset + data.len() as u64;
        match self.unjournaled.last_mut() {
            Some(last) if last.end == offset => last.end = end,
            _ => self.unjournaled.push(offset..end),
        }
        self.changed(end, now, kill_priv);
    }

    /// The dirty bytes are in a journal now; the last of them at `place`.
    pub fn journaled(&mut self, place: Journaled) {
        self.journaled = Some(self.journaled.map_or(place, |first| first.and(Some(place))));
    }

    /// Takes in bytes that belong behind the end, wherever that will be.
    pub fn append(&mut self, data: &[u8], now: Stamp, kill_priv: bool, charge: Charge) {
        self.tail.append(data);
        self.charges.push_back((data.len(), charge));
        self.since.get_or_insert_with(Instant::now);
        self.changed(0, now, kill_priv);
    }

    fn changed(&mut self, end: u64, now: Stamp, kill_priv: bool) {
        let pending =
            self.pending.get_or_insert(Pending { mtime: now, ctime: now, end, kill_priv });
        (pending.mtime, pending.ctime) = (now, now);
        pending.end = pending.end.max(end);
        pending.kill_priv |= kill_priv;
    }

    /// Where bytes are that were acknowledged under the lease, and are in no batch.
    pub fn leased_ranges(&self) -> Vec<Range<u64>> {
        if !self.leased {
            return Vec::new();
        }
        let sealing = self.sealing.iter().map(|(at, bytes)| *at..at + bytes.len() as u64);
        self.dirty.ranges().into_iter().chain(sealing).collect()
    }

    /// Of dirty bytes nothing is left here; `pending` stays as far as appended ones need it.
    pub fn dirty_placed(&mut self) {
        self.leased = false;
        match &mut self.pending {
            Some(pending) if !self.tail.is_empty() => pending.end = 0,
            pending => {
                *pending = None;
                self.charges.clear();
            }
        }
    }

    /// All that was written and is in no extent goes: nobody can read it any more.
    pub fn forget_bytes(&mut self) {
        self.dirty.truncate(0);
        self.tail = Tail::default();
        self.pending = None;
        self.since = None;
        self.charges.clear();
        self.unjournaled.clear();
        (self.journaled, self.leased) = (None, false);
    }

    /// Where the file ends without what was appended, when the view says `size`.
    pub fn end(&self, size: u64) -> u64 {
        size.max(self.pending.map_or(0, |pending| pending.end))
    }

    /// What was written and nobody has taken yet.
    pub fn waiting_bytes(&self) -> u64 {
        self.dirty.bytes() + self.tail.waiting()
    }

    fn unsealed_bytes(&self) -> u64 {
        self.dirty.bytes() + self.sealing.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>()
    }

    /// What of `range` is not in the view yet, oldest first, so that the newest is put over last.
    /// The view says that the file has `size` bytes.
    pub fn unsealed(&self, size: u64, range: &Range<u64>) -> Option<Vec<(u64, Bytes)>> {
        let mut over = Vec::new();
        for (start, bytes) in &self.sealing {
            let (from, to) =
                ((*start).max(range.start), (start + bytes.len() as u64).min(range.end));
            if from < to {
                over.push((from, bytes.slice((from - start) as usize..(to - start) as usize)));
            }
        }
        for dirty in self.dirty.ranges() {
            let (from, to) = (dirty.start.max(range.start), dirty.end.min(range.end));
            if from < to {
                let mut bytes = vec![0; (to - from) as usize];
                self.dirty.read_over(from, &mut bytes);
                over.push((from, bytes.into()));
            }
        }
        over.extend(self.tail.unsealed(self.end(size), range));
        (!over.is_empty()).then_some(over)
    }

    /// Takes dirty bytes to be sealed: one chunk of a long run, or all there is.
    ///
    /// Of a file that has bytes in the journal all is taken: the sealing is noted there as standing
    /// for every byte that was noted before, also after a crash.
    pub fn take_pieces(&mut self, what: What, cutter: &Cutter) -> Pieces {
        let whole = match self.journaled {
            _ if what == What::Tail => return Pieces::Runs(Vec::new()),
            None => self.dirty.take_chunk(cutter),
            // Only when the stream has grown enough for a chunk.
            Some(_) if what == What::WholeChunks && self.dirty.bytes() < Cutter::MAX as u64 => {
                return Pieces::Runs(Vec::new());
            }
            Some(_) => return Pieces::Runs(self.dirty.take_all()),
        };
        match (whole, what) {
            (Some(chunk), _) => Pieces::Chunk([chunk]),
            (None, What::WholeChunks | What::Tail) => Pieces::Runs(Vec::new()),
            // Long runs went chunk by chunk: as one they would be in memory twice.
            (None, What::Everything) => Pieces::Runs(self.dirty.take_all()),
        }
    }

    /// Gives away what `bytes` of dirty bytes were accounted with.
    pub fn take_charges(&mut self, mut bytes: usize) -> Vec<Charge> {
        let mut taken = Vec::new();
        while bytes > 0
            && let Some((len, mut charge)) = self.charges.pop_front()
        {
            if bytes < len {
                // The rest of that write is still dirty, and must still be accounted for.
                taken.push(charge.split(bytes));
                self.charges.push_front((len - bytes, charge));
                break;
            }
            bytes -= len;
            taken.push(charge);
        }
        taken
    }

    /// The oldest entry of the journal that a replay would still need for this file.
    pub fn floor(&self) -> Option<Seq> {
        let dirty = self.journaled.into_iter().chain(self.journaled_sealing);
        dirty.map(|place| place.first).chain(self.tail.floor()).min()
    }

    /// The attributes as the writer must see them.
    pub fn show(&self, inode: &mut Inode) {
        if let Some(pending) = &self.pending {
            inode.size = self.end(inode.size) + self.tail.len();
            inode.mtime = pending.mtime;
            inode.ctime = inode.ctime.max(pending.ctime);
            if pending.kill_priv {
                inode.mode = ModeChange::KillPrivileges.apply(inode.mode);
            }
        }
        // How much of them lies over extents is known when they are sealed; a file that was just
        // written must not look like one that is all hole.
        let unsealed = self.unsealed_bytes() + self.tail.len();
        if unsealed > 0 {
            inode.bytes = inode.bytes.saturating_add(unsealed).min(inode.size).max(inode.bytes);
        }
    }

    /// What is dirty and not in the journal yet, in ranges that an entry holds.
    pub fn unjournaled(&self) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        for dirty in self.dirty.ranges() {
            for range in &self.unjournaled {
                let (from, to) = (range.start.max(dirty.start), range.end.min(dirty.end));
                let pieces = (from..to).step_by(ENTRY_BYTES as usize);
                out.extend(pieces.map(|at| at..to.min(at + ENTRY_BYTES)));
            }
        }
        out
    }

    /// Whether a sealing has to find all that it takes in the journal. A `small` one may travel
    /// inside a commit, and then its chunk is nowhere before that is ordered, though `close` does not
    /// wait for it. One that takes bytes which are there stands for all of them when it is taken for
    /// lost, so all of them must be there. What was taken over is in the journal that it comes from.
    pub fn is_to_be_journaled(&self, what: What, small: bool) -> bool {
        let places = || self.journaled.into_iter().chain(self.tail.place());
        let in_part = places().any(|place| place.origin.is_none());
        let takes = what != What::WholeChunks || self.waiting_bytes() >= Cutter::MAX as u64;
        takes && (small || in_part) && places().all(|place| place.origin.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::Origin;
    use super::*;
    use crate::chunks::budget::Budget;
    use mictlan::id::SessionId;

    #[tokio::test]
    async fn what_is_still_dirty_is_still_charged() {
        let budget = Budget::new(1 << 20);
        let mut data = FileData::default();
        for write in 0..10 {
            let charge = budget.charge(10_240).await;
            data.write(write * 10_240, &[7; 10_240], Stamp::default(), false, charge);
        }
        // Chunks end where the content says, not where a write ended.
        for left in (0..100).rev().map(|chunk| chunk * 1024) {
            drop(data.take_charges(1024));
            assert!(budget.used_bytes() >= left, "{left} dirty, {} charged", budget.used_bytes());
        }
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_sealing_is_in_the_journal_as_a_whole_or_not_at_all() {
        let file = OpenFile::new(Ino(7));
        let left = || file.data().unjournaled().iter().map(|r| r.end - r.start).collect::<Vec<_>>();
        file.data().dirty.write(0, &[1; 10]);
        file.data().unjournaled.push(0..10);
        assert!(file.data().is_to_be_journaled(What::Everything, true));
        assert!(
            !file.data().is_to_be_journaled(What::Everything, false),
            "its chunk is waited for"
        );
        let here = Journaled::here(Seq(3));
        let elsewhere =
            Journaled { origin: Some(Origin { session: SessionId(1), seq: Seq(2) }), ..here };
        for (place, expected) in [(here, true), (elsewhere, false)] {
            file.data().journaled = Some(place);
            assert_eq!(file.data().is_to_be_journaled(What::Everything, false), expected);
            assert!(!file.data().is_to_be_journaled(What::WholeChunks, false), "nothing is taken");
        }
        for (place, bytes) in [(Some(here), vec![]), (None, vec![10])] {
            let mut data = file.data();
            data.sealing = data.dirty.take_all();
            (data.journaled, data.journaled_sealing) = (None, place);
            data.unjournaled.clear();
            drop(data);
            file.put_back();
            assert_eq!(left(), bytes);
        }
        file.data().unjournaled.clear();
        file.data().dirty.write(0, &vec![1; 9 << 20]);
        file.data().unjournaled.push(0..9 << 20);
        assert_eq!(left(), [4 << 20, 4 << 20, 1 << 20]);
    }

    #[tokio::test]
    async fn bytes_in_the_journal_are_sealed_all_at_once_and_others_chunk_by_chunk() {
        let cutter = Cutter::new(&[1; 32]);
        for journaled in [None, Some(Journaled::here(Seq(3)))] {
            for what in [What::WholeChunks, What::Everything] {
                let mut data = FileData { journaled, ..FileData::default() };
                data.dirty.write(0, &vec![7; 2 * Cutter::MAX]);
                let taken: usize =
                    data.take_pieces(what, &cutter).iter().map(|(_, b)| b.len()).sum();
                let expected = if journaled.is_some() { 2 * Cutter::MAX } else { Cutter::MAX };
                assert_eq!(taken, expected, "{journaled:?}");
                data.dirty.truncate(100);
                data.dirty.write(0, &[1; 100]);
                let short = data.take_pieces(what, &cutter);
                assert_eq!(short.is_empty(), what == What::WholeChunks, "{journaled:?}");
            }
        }
    }
}
