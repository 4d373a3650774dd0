//! Makes the index agree with the segments when a store opens.
//!
//! Owns: reading what the index lacks (after a crash: the last group; without an index: all frame
//! headers), cutting a torn tail, telling damage.
//! Never: drops anything that was acknowledged without a line in the log and in `OpenReport`.
//! Invariant: afterwards the index is complete up to the end of the last segment.

use super::OpenError;
use super::durable::{self, Appender, DiskError};
use super::index::{Changes, Entry, Index, IndexError, Mark, Totals};
use super::lock::StoreDir;
use super::scan::{Found, Segment};
use super::segment::{FrameKind, SEGMENT_HEADER_LEN, SegmentHeader, hole};
use super::writer::Tail;
use mictlan::codec::DecodeError;
use mictlan::id::{ChunkId, TimeMs};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Index entries that are written at once while segments are read in.
const ENTRIES_AT_ONCE: usize = 8192;

/// A stretch of a segment that was durable once and is not readable now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub segment: u64,
    pub bytes: Range<u64>,
}

/// What was found and done when the store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// There was no store before.
    pub made: bool,
    /// Frames that were read into the index.
    pub frames: u64,
    /// Bytes of a torn tail that were cut off; nobody was told that they are durable.
    pub torn: u64,
    pub damage: Vec<Damage>,
}

pub struct Healed {
    pub tail: Tail,
    pub totals: Totals,
    pub report: OpenReport,
}

/// Opens the index; one that does not open is made anew, since the segments have it all.
pub fn open_index(dir: &StoreDir) -> Result<Index, OpenError> {
    let open = || {
        let index = Index::open(&dir.index())?;
        index.state()?;
        Ok::<_, IndexError>(index)
    };
    open().or_else(|error| {
        tracing::warn!(%error, dir = %dir.path().display(), "the index is built anew");
        std::fs::remove_dir_all(dir.index())
            .map_err(|e| DiskError::new("remove", &dir.index(), e))?;
        Ok(open()?)
    })
}

pub fn heal(
    dir: &StoreDir,
    index: &Index,
    clock: &(dyn Fn() -> TimeMs + Send + Sync),
) -> Result<Healed, OpenError> {
    let (mark, totals) = index.state()?;
    let changes = index.changes(mark, totals);
    let report = OpenReport { made: dir.made, ..OpenReport::default() };
    let lost = Vec::new();
    let mut healing = Healing { dir, index, changes, report, lost, next: mark.segment + 1 };
    let numbers = healing.segments()?;
    for number in (1..=mark.segment).filter(|number| numbers.binary_search(number).is_err()) {
        healing.lose(Damage { segment: number, bytes: 0..u64::MAX });
    }
    let mut tail = None;
    for number in numbers.iter().copied().filter(|number| *number >= mark.segment) {
        let from = if number == mark.segment { mark.offset } else { 0 };
        tail = healing.read_in(number, from, Some(&number) == numbers.last())?;
    }
    healing.sweep()?;
    healing.finish(tail, clock())
}

struct Healing<'a> {
    dir: &'a StoreDir,
    index: &'a Index,
    changes: Changes<'a>,
    report: OpenReport,
    /// Stretches below the index's mark that are gone: what the index places there is damaged.
    lost: Vec<Damage>,
    /// The number of the next new segment.
    next: u64,
}

impl<'a> Healing<'a> {
    /// The numbers of the segment files, ascending.
    fn segments(&self) -> Result<Vec<u64>, DiskError> {
        let path = self.dir.segments();
        let fail = |e| DiskError::new("list", &path, e);
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            match number.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
                Some(number) if self.dir.segment(number) == path.join(&name) && number > 0 => {
                    numbers.push(number);
                }
                _ => tracing::warn!(?name, "a file that is no segment lies among them"),
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads a segment into the index from `from` on (0: it is new to the index). Where the next
    /// frame goes, if that is in this segment.
    fn read_in(&mut self, number: u64, from: u64, last: bool) -> Result<Option<Tail>, OpenError> {
        self.next = number + 1;
        let path = self.dir.segment(number);
        let fail = |e| DiskError::new("open", &path, e);
        let file = File::options().read(true).write(true).open(&path).map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        if last {
            durable::forget_cached(&file, &path)?;
        }
        let mut block = vec![0; SEGMENT_HEADER_LEN.min(len) as usize];
        let read = file.read_exact_at(&mut block, 0);
        let header = match SegmentHeader::parse(&block) {
            Ok(header) if read.is_ok() && header.number == number => header,
            Err(DecodeError::Version(format)) => {
                return Err(OpenError::NewerSegment { number, format });
            }
            _ if last && from == 0 && len <= SEGMENT_HEADER_LEN => {
                // A crash while it was made: nothing was ever written to it.
                durable::remove_file(&path)?;
                self.next = number;
                self.report.torn += len;
                return Ok(None);
            }
            _ => {
                self.damage(Damage { segment: number, bytes: from..len.max(from) });
                self.reach(Mark { segment: number, offset: len.max(from) });
                return Ok(None);
            }
        };
        let key = header.frame_key();
        let from = from.max(SEGMENT_HEADER_LEN);
        let segment = Segment { file: &file, path: &path, key: &key, last };
        let walk = segment.walk(from)?;
        for bytes in walk.damage {
            if bytes.end <= from && bytes.start < from {
                self.lose(Damage { segment: number, bytes });
            } else {
                self.damage(Damage { segment: number, bytes });
            }
        }
        let mut log = Appender::open(&path, walk.end)?;
        if last && walk.end != len {
            if walk.torn > 0 {
                tracing::warn!(
                    segment = number,
                    bytes = walk.torn,
                    "cut off what a crash left; nobody was told that it is durable"
                );
            }
            log.truncate(walk.end)?;
            self.report.torn += walk.torn;
        }
        for found in &walk.frames {
            self.apply(number, &segment, found)?;
        }
        self.reach(Mark { segment: number, offset: walk.end });
        Ok(last.then_some(Tail { number, key, log }))
    }

    /// The same changes that the writer made when it wrote the frame.
    fn apply(
        &mut self,
        number: u64,
        segment: &Segment<'_>,
        found: &Found,
    ) -> Result<(), OpenError> {
        let place = Mark { segment: number, offset: found.at };
        let time = found.frame.time;
        self.report.frames += 1;
        match found.frame.kind {
            FrameKind::Pad => {}
            FrameKind::Chunk => {
                let chunk = ChunkId(found.frame.hash);
                let old = self.changes.entry(&chunk)?;
                if let Some(old) = old {
                    self.free(&old)?; // it was damaged, and written anew here
                }
                let stamp = old.map_or(time, |old| old.stamp.max(time));
                let len = found.frame.body_len;
                self.changes.set(chunk, Some(Entry { place, len, stamp, damaged: false }))?;
            }
            FrameKind::Stamp | FrameKind::Tombstone => match segment.addresses(found) {
                Some(chunks) => self.apply_list(found.frame.kind, time, &chunks)?,
                None => {
                    let bytes = found.at..found.at + found.frame.len();
                    self.damage(Damage { segment: number, bytes });
                }
            },
        }
        self.reach(Mark { segment: number, offset: found.at + found.frame.len() });
        if self.changes.len() >= ENTRIES_AT_ONCE {
            self.write()?;
        }
        Ok(())
    }

    fn apply_list(
        &mut self,
        kind: FrameKind,
        time: TimeMs,
        chunks: &[ChunkId],
    ) -> Result<(), OpenError> {
        for chunk in chunks {
            let Some(entry) = self.changes.entry(chunk)? else { continue };
            if kind == FrameKind::Tombstone {
                self.free(&entry)?;
                self.changes.set(*chunk, None)?;
            } else {
                let stamp = entry.stamp.max(time);
                self.changes.set(*chunk, Some(Entry { stamp, ..entry }))?;
            }
        }
        Ok(())
    }

    /// Punches the hole that the writer punched, or was about to when it was killed.
    fn free(&mut self, entry: &Entry) -> Result<(), DiskError> {
        let Some(hole) = hole(entry.place.offset, u64::from(entry.len)) else { return Ok(()) };
        self.changes.totals.used -= hole.end - hole.start;
        let path = self.dir.segment(entry.place.segment);
        match File::options().write(true).open(&path) {
            Ok(file) => durable::punch(&file, &path, hole).map(|_| ()),
            Err(_) => Ok(()), // a lost segment has nothing to give back
        }
    }

    /// Moves the mark, and counts what lies between.
    fn reach(&mut self, mark: Mark) {
        let same = self.changes.mark.segment == mark.segment;
        let from = if same { self.changes.mark.offset } else { 0 };
        assert!(mark.offset >= from, "the walk goes forward");
        self.changes.totals.used += mark.offset - from;
        self.changes.mark = mark;
    }

    fn write(&mut self) -> Result<(), IndexError> {
        let next = self.index.changes(self.changes.mark, self.changes.totals);
        std::mem::replace(&mut self.changes, next).commit()
    }

    fn damage(&mut self, damage: Damage) {
        tracing::error!(
            segment = damage.segment,
            from = damage.bytes.start,
            to = damage.bytes.end,
            "a stretch that was durable is damaged; healing fetches its chunks from other peers"
        );
        self.report.damage.push(damage);
    }

    fn lose(&mut self, damage: Damage) {
        self.lost.push(damage.clone());
        self.damage(damage);
    }

    /// Marks what the index places in lost stretches, so that it is neither served nor stamped.
    fn sweep(&mut self) -> Result<(), IndexError> {
        if self.lost.is_empty() {
            return Ok(());
        }
        self.write()?;
        let mut after = None;
        loop {
            let page = self.index.after(after, ENTRIES_AT_ONCE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            for (chunk, entry) in page {
                let Mark { segment, offset } = entry.place;
                let end = offset + super::segment::frame_len(u64::from(entry.len));
                let gone = |lost: &Damage| {
                    lost.segment == segment && offset < lost.bytes.end && end > lost.bytes.start
                };
                if !entry.damaged && self.lost.iter().any(gone) {
                    self.changes.set(chunk, Some(Entry { damaged: true, ..entry }))?;
                }
            }
            self.write()?;
        }
    }

    fn finish(mut self, tail: Option<Tail>, now: TimeMs) -> Result<Healed, OpenError> {
        let tail = match tail {
            Some(tail) => tail,
            None => Tail::create(self.dir, self.next, now)?,
        };
        self.reach(tail.mark());
        let totals = self.changes.totals;
        self.changes.commit()?;
        Ok(Healed { tail, totals, report: self.report })
    }
}
