//! The bytes of one inode that were written and are not yet sealed.
//!
//! Owns: those byte ranges and nothing else: not the file's size, not its extents.
//! Never: bounds itself; the caller holds `bytes()` against its budget and makes writers wait.
//! Invariant: segments are not empty and do not overlap. They may touch: joining costs a copy, so
//! a segment takes in the next one only when that one is no longer than itself. Any order of
//! writes then copies each byte a logarithmic number of times. Nor does a segment grow beyond
//! `SEGMENT_MAX`: its memory is one block, which is given back only with the last of its bytes.

use crate::file::Cutter;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::ops::Range;

pub struct Dirty {
    segments: BTreeMap<u64, BytesMut>,
    bytes: u64,
    /// `SEGMENT_MAX`, but in tests.
    segment_max: usize,
}

/// Two of the largest chunks, so that a stream is mostly cut where it lies.
const SEGMENT_MAX: usize = 2 * Cutter::MAX;

/// A growing segment reserves as much again as it has, up to this: a stream is drained from the
/// front while it grows, so more would only be memory held for nothing.
const RESERVE_MAX: usize = 4 << 20;

impl Default for Dirty {
    fn default() -> Self {
        Self { segments: BTreeMap::new(), bytes: 0, segment_max: SEGMENT_MAX }
    }
}

impl Dirty {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// How many bytes are held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One past the last dirty byte; 0 when there is none.
    pub fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(start, s)| start + s.len() as u64)
    }

    /// The dirty ranges in order, touching ones joined.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (start, segment) in &self.segments {
            let end = start + segment.len() as u64;
            match ranges.last_mut() {
                Some(last) if last.end == *start => last.end = end,
                _ => ranges.push(*start..end),
            }
        }
        ranges
    }

    /// What of `range` is not dirty, so has to come from the file's extents.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut from = range.start;
        for (start, segment) in self.meeting(&range) {
            if from < start {
                gaps.push(from..start);
            }
            from = start + segment.len() as u64;
        }
        if from < range.end {
            gaps.push(from..range.end);
        }
        gaps
    }

    /// Copies what is dirty of `[offset, offset + buffer.len())` over the caller's bytes.
    pub fn read_over(&self, offset: u64, buffer: &mut [u8]) {
        let range = offset..offset + buffer.len() as u64;
        for (start, segment) in self.meeting(&range) {
            let from = start.max(range.start);
            let to = (start + segment.len() as u64).min(range.end);
            let source = &segment[(from - start) as usize..(to - start) as usize];
            buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
    }

    /// Segments that meet `range`, in order.
    fn meeting(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, &BytesMut)> {
        let first =
            self.segments.range(..=range.start).next_back().map_or(range.start, |(s, _)| *s);
        let range = range.clone();
        self.segments
            .range(first..range.end.max(first))
            .filter(move |(start, segment)| **start + segment.len() as u64 > range.start)
            .map(|(start, segment)| (*start, segment))
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        // A write inside one segment changes it in place, as databases do all day.
        if let Some((start, segment)) = self.segments.range_mut(..=offset).next_back()
            && end <= start + segment.len() as u64
        {
            segment[(offset - start) as usize..][..data.len()].copy_from_slice(data);
            return;
        }
        self.punch(offset..end);
        self.bytes += data.len() as u64;
        let most = self.segment_max;
        let before = self.segments.range_mut(..offset).next_back();
        let start = match before {
            Some((start, segment))
                if start + segment.len() as u64 == offset && segment.len() + data.len() <= most =>
            {
                append(segment, data);
                *start
            }
            _ => {
                self.segments.insert(offset, BytesMut::from(data));
                offset
            }
        };
        self.join_next(start);
    }

    /// Takes touching segments behind the one at `start` into it, while they are no longer.
    fn join_next(&mut self, start: u64) {
        while let Some(segment) = self.segments.get(&start)
            && let len = segment.len()
            && let end = start + len as u64
            && let most = self.segment_max.saturating_sub(len).min(len)
            && self.segments.get(&end).is_some_and(|next| next.len() <= most)
            && let Some(next) = self.segments.remove(&end)
            && let Some(segment) = self.segments.get_mut(&start)
        {
            append(segment, &next);
        }
    }

    /// Forgets what is dirty at and behind `size`.
    pub fn truncate(&mut self, size: u64) {
        self.punch(size..u64::MAX);
    }

    /// Forgets what is dirty in `range`.
    pub fn punch(&mut self, range: Range<u64>) {
        if range.start < range.end {
            self.split_at(range.start);
            self.split_at(range.end);
            let gone: Vec<u64> = self.segments.range(range).map(|(start, _)| *start).collect();
            for start in gone {
                self.remove(start);
            }
        }
    }

    /// Makes `at` a boundary between segments; the bytes stay where they are.
    fn split_at(&mut self, at: u64) {
        if let Some((start, segment)) = self.segments.range_mut(..at).next_back()
            && at < start + segment.len() as u64
        {
            let tail = segment.split_off((at - start) as usize);
            self.segments.insert(at, tail);
        }
    }

    fn remove(&mut self, start: u64) -> Option<BytesMut> {
        let segment = self.segments.remove(&start)?;
        self.bytes -= segment.len() as u64;
        Some(segment)
    }

    /// Takes what is ready to be a chunk: the first piece of a run of at least `Cutter::MAX`
    /// bytes. The bytes behind it stay in place, uncopied. `None` when every run is shorter.
    pub fn take_chunk(&mut self, cutter: &Cutter) -> Option<(u64, Bytes)> {
        let long = |run: &Range<u64>| run.end - run.start >= Cutter::MAX as u64;
        let run = self.ranges().into_iter().find(long)?;
        self.join(run.start, Cutter::MAX);
        let len = cutter
            .next_cut(&self.segments[&run.start], false)
            .expect("a cut is always found within the largest chunk");
        self.split_at(run.start + len as u64);
        let chunk = self.remove(run.start)?;
        Some((run.start, chunk.freeze()))
    }

    /// Takes everything, in order: each run of touching bytes as one.
    pub fn take_all(&mut self) -> Vec<(u64, Bytes)> {
        let runs = self.ranges();
        for run in &runs {
            self.join(run.start, usize::MAX);
        }
        self.bytes = 0;
        let segments = std::mem::take(&mut self.segments);
        debug_assert_eq!(segments.len(), runs.len(), "each run is one segment now");
        segments.into_iter().map(|(start, segment)| (start, segment.freeze())).collect()
    }

    /// Joins touching segments until the one at `start` has `len` bytes or the run ends.
    fn join(&mut self, start: u64, len: usize) {
        while let Some(segment) = self.segments.get(&start)
            && segment.len() < len
            && let at = start + segment.len() as u64
            && let Some(mut next) = self.segments.remove(&at)
            && let Some(segment) = self.segments.get_mut(&start)
        {
            let part = next.len().min(len - segment.len());
            append(segment, &next[..part]);
            if part < next.len() {
                self.segments.insert(at + part as u64, next.split_off(part));
            }
        }
    }
}

fn append(segment: &mut BytesMut, data: &[u8]) {
    if segment.capacity() - segment.len() < data.len() {
        segment.reserve(data.len().max(segment.len().min(RESERVE_MAX)));
    }
    segment.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 300;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Punch(u64, u64),
        TakeAll,
    }

    fn op() -> impl Strategy<Value = Op> {
        let at = 0u64..250;
        prop_oneof![
            6 => (at.clone(), prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(a, d)| Op::Write(a, d)),
            1 => at.clone().prop_map(Op::Truncate),
            2 => (at, 0u64..60).prop_map(|(a, len)| Op::Punch(a, a + len)),
            1 => Just(Op::TakeAll),
        ]
    }

    /// The runs of dirty bytes of the model, with their bytes.
    fn runs(model: &[Option<u8>]) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (i, byte) in model.iter().enumerate() {
            let Some(byte) = byte else { continue };
            match runs.last_mut() {
                Some((at, bytes)) if *at as usize + bytes.len() == i => bytes.push(*byte),
                _ => runs.push((i as u64, vec![*byte])),
            }
        }
        runs
    }

    fn check(dirty: &Dirty, model: &[Option<u8>]) {
        let expected = runs(model);
        let ranges = expected.iter().map(|(at, b)| *at..*at + b.len() as u64);
        assert_eq!(dirty.ranges(), ranges.collect::<Vec<_>>());
        assert_eq!(dirty.bytes() as usize, model.iter().flatten().count());
        assert_eq!(
            dirty.end() as usize,
            model.iter().rposition(Option::is_some).map_or(0, |i| i + 1)
        );
        assert!(dirty.segments.values().all(|segment| !segment.is_empty()));
        for (from, to) in [(0, SIZE), (37, 121), (100, 101), (250, 260)] {
            let mut read = vec![0xee; to - from];
            dirty.read_over(from as u64, &mut read);
            let under: Vec<u8> = model[from..to].iter().map(|b| b.unwrap_or(0xee)).collect();
            assert_eq!(read, under);
            let mut clean = vec![true; SIZE];
            for gap in dirty.gaps(from as u64..to as u64) {
                assert!(gap.start < gap.end);
                clean[gap.start as usize..gap.end as usize].fill(false);
            }
            for i in from..to {
                assert_eq!(clean[i], model[i].is_some(), "byte {i} of {from}..{to}");
            }
        }
    }

    proptest! {
        #[test]
        fn dirty_bytes_behave_like_a_plain_array(
            segment_max in 1usize..200,
            ops in prop::collection::vec(op(), 1..40),
        ) {
            let (mut dirty, mut model) = (Dirty::new(), vec![None; SIZE]);
            dirty.segment_max = segment_max;
            for op in ops {
                match op {
                    Op::Write(at, data) => {
                        dirty.write(at, &data);
                        for (i, byte) in data.iter().enumerate() {
                            model[at as usize + i] = Some(*byte);
                        }
                    }
                    Op::Truncate(size) => {
                        dirty.truncate(size);
                        model[size as usize..].fill(None);
                    }
                    Op::Punch(from, to) => {
                        dirty.punch(from..to);
                        model[from as usize..(to as usize).min(SIZE)].fill(None);
                    }
                    Op::TakeAll => {
                        let taken = dirty.take_all().into_iter().map(|(at, b)| (at, b.to_vec()));
                        prop_assert_eq!(taken.collect::<Vec<_>>(), runs(&model));
                        model.fill(None);
                    }
                }
                check(&dirty, &model);
            }
        }
    }

    #[test]
    fn a_stream_is_taken_in_the_chunks_that_the_cutter_makes_of_it() {
        let mut stream = vec![0; 14 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut stream);
        let cutter = Cutter::new(&[1; 32]);
        // In order, and with neighbouring blocks swapped, as several kernel threads write.
        for swap in [0, 1] {
            let (mut dirty, mut taken) = (Dirty::new(), Vec::<Bytes>::new());
            for i in 0..stream.len() >> 17 {
                let at = (i ^ swap) << 17;
                dirty.write(7 + at as u64, &stream[at..at + (1 << 17)]);
                while let Some((at, bytes)) = dirty.take_chunk(&cutter) {
                    assert_eq!(at, 7 + taken.concat().len() as u64);
                    taken.push(bytes);
                }
                assert!(
                    dirty.bytes() < Cutter::MAX as u64 + (1 << 18),
                    "taken as soon as it can be"
                );
            }
            for (_, rest) in dirty.take_all() {
                taken.extend(cutter.pieces(rest));
            }
            assert!(dirty.is_empty() && dirty.bytes() == 0);
            assert!(taken.concat() == stream);
            assert!(taken == cutter.pieces(Bytes::copy_from_slice(&stream)), "cut alike");
        }
    }

    #[test]
    fn no_segment_outgrows_its_block_and_the_rest_is_cut_all_the_same() {
        let mut stream = vec![0; 40 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut stream);
        let cutter = Cutter::new(&[1; 32]);
        let mut dirty = Dirty::new();
        // A writer that is faster than whoever takes chunks.
        for (i, piece) in stream.chunks(1 << 20).enumerate() {
            dirty.write((i << 20) as u64, piece);
        }
        assert!(dirty.segments.values().all(|segment| segment.capacity() <= SEGMENT_MAX));
        let mut taken = Vec::new();
        while let Some((_, bytes)) = dirty.take_chunk(&cutter) {
            taken.push(bytes);
        }
        for (_, rest) in dirty.take_all() {
            taken.extend(cutter.pieces(rest));
        }
        assert!(taken == cutter.pieces(Bytes::from(stream)), "cut alike");
    }

    #[test]
    fn a_file_written_backwards_is_still_one_run() {
        let mut dirty = Dirty::new();
        for at in (0..4096u64).rev() {
            dirty.write(at, &[at as u8]);
        }
        assert_eq!(dirty.ranges(), vec![0..4096; 1]);
        assert!(dirty.segments.len() <= 13, "joined as they grow");
        let all = dirty.take_all();
        assert!(all.len() == 1 && all[0].1.iter().enumerate().all(|(i, b)| i as u8 == *b));
    }
}
