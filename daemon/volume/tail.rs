//! Bytes that were appended to a file and have no place yet.
//!
//! Owns: those bytes in the order of their writes, and how much of them is in the journal.
//! Never: knows where the file ends. They are shown behind its end as it is at that moment, and
//! get their place when a commit holds them, so that another session's bytes are never under them.
//! Invariant: they are taken all together or not at all, so every write stays whole.

use super::journal::{Journaled, Seq};
use bytes::Bytes;
use mictlan::file::Dirty;
use std::ops::Range;

#[derive(Default)]
pub struct Tail {
    /// Counted from 0.
    waiting: Dirty,
    /// So many bytes of `waiting`, from its front, are in the journal.
    journaled: u64,
    /// Where those are.
    place: Option<Journaled>,
    sealing: Sealing,
}

/// What was taken, until it has its place. It stands before what waits.
#[derive(Default)]
struct Sealing {
    bytes: Bytes,
    journaled: u64,
    place: Option<Journaled>,
}

impl Tail {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sealing.bytes.is_empty()
    }

    /// All bytes without a place.
    pub fn len(&self) -> u64 {
        self.sealing.bytes.len() as u64 + self.waiting.bytes()
    }

    /// Those that nobody has taken.
    pub fn waiting(&self) -> u64 {
        self.waiting.bytes()
    }

    pub fn append(&mut self, data: &[u8]) {
        self.waiting.write(self.waiting.end(), data);
    }

    /// What of `range` of the file they are, when the file ends at `end` without them.
    pub fn unsealed(&self, end: u64, range: &Range<u64>) -> Vec<(u64, Bytes)> {
        let sealed = end + self.sealing.bytes.len() as u64;
        let mut over = Vec::new();
        let (from, to) = (range.start.max(end), range.end.min(sealed));
        if from < to {
            let part = (from - end) as usize..(to - end) as usize;
            over.push((from, self.sealing.bytes.slice(part)));
        }
        let (from, to) = (range.start.max(sealed), range.end.min(sealed + self.waiting.bytes()));
        if from < to {
            let mut bytes = vec![0; (to - from) as usize];
            self.waiting.read_over(from - sealed, &mut bytes);
            over.push((from, bytes.into()));
        }
        over
    }

    /// All that waits. `None` when nothing does.
    pub fn take(&mut self) -> Option<Bytes> {
        assert!(self.sealing.bytes.is_empty(), "one sealing at a time");
        let (_, bytes) = self.waiting.take_all().into_iter().next()?;
        let (journaled, place) = (std::mem::take(&mut self.journaled), self.place.take());
        self.sealing = Sealing { bytes: bytes.clone(), journaled, place };
        Some(bytes)
    }

    /// What was taken has its place. The first entry of the journal that had some of it.
    pub fn placed(&mut self) -> Option<Seq> {
        std::mem::take(&mut self.sealing).place.map(|place| place.first)
    }

    /// What was taken waits again, before what came since.
    pub fn put_back(&mut self) {
        let Sealing { bytes, journaled, place } = std::mem::take(&mut self.sealing);
        if bytes.is_empty() {
            return;
        }
        // Whoever journals and whoever seals hold the file's order.
        assert_eq!(self.journaled, 0, "nothing is journaled while bytes before it are sealed");
        let since = self.waiting.take_all();
        self.waiting.write(0, &bytes);
        since.iter().for_each(|(_, bytes)| self.append(bytes));
        (self.journaled, self.place) = (journaled, place);
    }

    /// The first `at_most` bytes of what the journal does not have yet.
    pub fn unjournaled(&self, at_most: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; (self.waiting.bytes() - self.journaled).min(at_most) as usize];
        self.waiting.read_over(self.journaled, &mut bytes);
        (!bytes.is_empty()).then_some(bytes)
    }

    /// A journal has so many more of them now; the last of these at `place`.
    pub fn journaled(&mut self, bytes: u64, place: Journaled) {
        self.journaled += bytes;
        assert!(self.journaled <= self.waiting.bytes(), "what waits is what is journaled");
        self.place = Some(self.place.map_or(place, |first| first.and(Some(place))));
    }

    /// Where those that wait are. If anywhere, a commit would make entries of a journal useless.
    pub fn place(&self) -> Option<Journaled> {
        self.place
    }

    /// The oldest entry of the journal that a replay would still need for these bytes.
    pub fn floor(&self) -> Option<Seq> {
        self.place.into_iter().chain(self.sealing.place).map(|place| place.first).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tail: &Tail, end: u64, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![b'.'; (range.end - range.start) as usize];
        for (at, piece) in tail.unsealed(end, &range) {
            let at = (at - range.start) as usize;
            bytes[at..at + piece.len()].copy_from_slice(&piece);
        }
        bytes
    }

    #[test]
    fn appended_bytes_are_shown_behind_the_end_wherever_that_is() {
        let mut tail = Tail::default();
        tail.append(b"ab");
        assert_eq!(tail.take().as_deref(), Some(&b"ab"[..]));
        tail.append(b"cd");
        assert_eq!(shown(&tail, 2, 0..8), b"..abcd..");
        assert_eq!(shown(&tail, 3, 4..6), b"bc");
        assert_eq!((tail.len(), tail.waiting()), (4, 2));
        tail.placed();
        assert_eq!(shown(&tail, 4, 0..8), b"....cd..");
    }

    #[test]
    fn what_could_not_be_placed_comes_back_first_and_is_journaled_once() {
        let mut tail = Tail::default();
        tail.append(b"ab");
        assert_eq!(tail.unjournaled(9), Some(b"ab".to_vec()));
        assert_eq!(tail.unjournaled(1), Some(b"a".to_vec()));
        tail.journaled(1, Journaled::here(Seq(7)));
        assert_eq!(tail.unjournaled(9), Some(b"b".to_vec()));
        tail.journaled(1, Journaled::here(Seq(8)));
        assert_eq!(tail.take().as_deref(), Some(&b"ab"[..]));
        tail.append(b"c");
        tail.put_back();
        assert_eq!((tail.unjournaled(9), tail.floor()), (Some(b"c".to_vec()), Some(Seq(7))));
        assert_eq!(tail.take().as_deref(), Some(&b"abc"[..]), "in the order of the writes");
        assert_eq!((tail.placed(), tail.is_empty()), (Some(Seq(7)), true));
    }
}
