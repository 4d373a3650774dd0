//! Walks over a segment file and tells what is whole, what is damage, what a crash tore.
//!
//! Owns: the rule that tells the three apart. Every frame says up to where its segment was durable
//! when it was written; what is unreadable below any such offset was acknowledged once and is
//! *damage*; what is unreadable above all of them was never acknowledged and is *torn*.
//! Never: writes; the caller truncates and reports.
//! Invariant: a frame that is returned is durable and, unless a later frame proves that it was
//! synced, its body was hashed.

use super::durable::DiskError;
use super::segment::{
    BODY_MAX, FRAME_ALIGN, FRAME_HEADER_LEN, Frame, FrameKey, FrameKind, looks_like_a_frame,
};
use mictlan::codec::{DecodeError, Reader};
use mictlan::hash;
use mictlan::id::ChunkId;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much of a damaged stretch is read at once in the search for the next frame.
const WINDOW: usize = 1 << 20;

/// A whole frame and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub at: u64,
    pub frame: Frame,
}

/// What a segment holds from some offset on.
#[derive(Debug, PartialEq, Eq)]
pub struct Walk {
    pub frames: Vec<Found>,
    /// Stretches that were durable once and do not read as frames.
    pub damage: Vec<Range<u64>>,
    /// Where the next frame goes.
    pub end: u64,
    /// Bytes after `end` that a crash left and nobody was told to be durable.
    pub torn: u64,
}

/// One segment to be walked.
pub struct Segment<'a> {
    pub file: &'a File,
    pub path: &'a Path,
    pub key: &'a FrameKey,
    /// Only the last segment can be torn: the next one is made after the sync of the one before.
    pub last: bool,
}

impl Segment<'_> {
    /// Walks from `from`, before which all is known to be durable.
    pub fn walk(&self, from: u64) -> Result<Walk, DiskError> {
        let len = self.file.metadata().map_err(|e| DiskError::new("read", self.path, e))?.len();
        let (frames, gaps) = self.frames(from, len);
        let synced = frames.iter().map(|found| found.frame.synced).max().unwrap_or(0);
        let proven = if self.last { synced.max(from) } else { len.max(from) };
        let whole = self.whole_until(&frames, &gaps, proven, len);
        let end = whole.max(proven);
        let frames = frames.into_iter().filter(|found| found.at < end).collect();
        let damage = gaps.into_iter().filter(|gap| gap.start < proven).collect();
        Ok(Walk { frames, damage, end, torn: len.saturating_sub(end) })
    }

    /// Every frame with a valid header, and the stretches between them that have none.
    fn frames(&self, from: u64, len: u64) -> (Vec<Found>, Vec<Range<u64>>) {
        let (mut frames, mut gaps) = (Vec::new(), Vec::new());
        let mut at = from;
        while at < len {
            if let Some(frame) = self.frame_at(at, len) {
                at += frame.len();
                frames.push(Found { at: at - frame.len(), frame });
                continue;
            }
            let next = self.next_frame(at, len).unwrap_or(len);
            gaps.push(at..next);
            at = next;
        }
        if len < from {
            gaps.push(len..from); // the file lost its end
        }
        (frames, gaps)
    }

    /// Above `proven`, everything up to here is frames whose bodies hash to what they should.
    fn whole_until(&self, frames: &[Found], gaps: &[Range<u64>], proven: u64, len: u64) -> u64 {
        let gap = gaps.iter().map(|gap| gap.start).find(|start| *start >= proven).unwrap_or(len);
        let unproven = frames.iter().filter(|found| found.at >= proven && found.at < gap);
        for found in unproven {
            if !self.body_is_whole(found) {
                return found.at;
            }
        }
        gap
    }

    fn body_is_whole(&self, found: &Found) -> bool {
        match (found.frame.kind, self.body(found)) {
            (FrameKind::Pad, _) => true,
            (_, Ok(body)) => hash::address(&body).0 == found.frame.hash,
            (_, Err(_)) => false, // a sector that does not read is not whole
        }
    }

    fn frame_at(&self, at: u64, len: u64) -> Option<Frame> {
        let mut header = [0; FRAME_HEADER_LEN as usize];
        self.file.read_exact_at(&mut header, at).ok()?;
        let frame = Frame::parse(self.key, at, &header).ok()?;
        (at + frame.len() <= len).then_some(frame)
    }

    /// The first valid frame after `at`.
    fn next_frame(&self, at: u64, len: u64) -> Option<u64> {
        let mut window = vec![0; WINDOW];
        let mut from = at + FRAME_ALIGN;
        while from < len {
            let want = (len - from).min(WINDOW as u64) as usize;
            let bytes = &mut window[..want];
            if self.file.read_exact_at(bytes, from).is_err() {
                bytes.fill(0); // an unreadable stretch holds no frame; go on behind it
            }
            for (i, place) in bytes.chunks(FRAME_ALIGN as usize).enumerate() {
                let here = from + i as u64 * FRAME_ALIGN;
                if looks_like_a_frame(place) && self.frame_at(here, len).is_some() {
                    return Some(here);
                }
            }
            from += want as u64;
        }
        None
    }

    pub fn body(&self, found: &Found) -> io::Result<Vec<u8>> {
        read_body(self.file, found.at, found.frame.body_len)
    }

    /// The addresses that a stamp or a tombstone lists; `None` when its body is damaged.
    pub fn addresses(&self, found: &Found) -> Option<Vec<ChunkId>> {
        let body = self.body(found).ok()?;
        let whole = hash::address(&body).0 == found.frame.hash;
        if whole { parse_addresses(&body).ok() } else { None }
    }
}

/// The body of the frame at `at`; not checked.
pub fn read_body(file: &File, at: u64, len: u32) -> io::Result<Vec<u8>> {
    assert!(len as usize <= BODY_MAX, "a body above the limit");
    let mut body = vec![0; len as usize];
    file.read_exact_at(&mut body, at + FRAME_HEADER_LEN)?;
    Ok(body)
}

fn parse_addresses(body: &[u8]) -> Result<Vec<ChunkId>, DecodeError> {
    let mut r = Reader::new(body);
    let mut out = Vec::with_capacity(body.len() / 32);
    while !r.rest().is_empty() {
        out.push(ChunkId(r.array("address")?));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::segment::SEGMENT_HEADER_LEN;
    use super::super::segment::SegmentHeader;
    use super::*;
    use mictlan::id::TimeMs;

    const START: u64 = SEGMENT_HEADER_LEN;

    fn gap(from: u64, to: u64) -> Vec<Range<u64>> {
        std::iter::once(from..to).collect()
    }

    /// Bytes of a segment with one group a list of bodies; each group is synced before the next.
    fn segment(groups: &[&[&[u8]]]) -> (FrameKey, Vec<u8>, Vec<u64>) {
        let header = SegmentHeader { number: 1, salt: [5; 32], made: TimeMs(1) };
        let (key, mut bytes, mut starts) = (header.frame_key(), header.encode(), Vec::new());
        for group in groups {
            let synced = bytes.len() as u64;
            for body in *group {
                let at = bytes.len() as u64;
                let hash = hash::address(body).0;
                let body_len = body.len() as u32;
                let kind = FrameKind::Chunk;
                let frame = Frame { kind, body_len, time: TimeMs(1), synced, hash };
                bytes.extend(frame.encode(&key, at));
                bytes.extend(*body);
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                starts.push(at);
            }
        }
        (key, bytes, starts)
    }

    fn walk(key: &FrameKey, bytes: &[u8], from: u64, last: bool) -> Walk {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(bytes, 0).expect("written");
        let path = Path::new("test.seg");
        Segment { file: &file, path, key, last }.walk(from).expect("walked")
    }

    fn starts(walk: &Walk) -> Vec<u64> {
        walk.frames.iter().map(|found| found.at).collect()
    }

    #[test]
    fn a_whole_segment_is_walked_to_its_end() {
        let (key, bytes, at) = segment(&[&[b"one", b""], &[b"three"]]);
        let seen = walk(&key, &bytes, START, true);
        assert_eq!((starts(&seen), seen.end, seen.torn), (at, bytes.len() as u64, 0));
        assert_eq!(seen.damage, []);
    }

    #[test]
    fn a_torn_tail_is_cut_wherever_the_crash_came() {
        let (key, bytes, at) = segment(&[&[b"one"], &[b"two", b"three"]]);
        for len in at[1] as usize..bytes.len() {
            let seen = walk(&key, &bytes[..len], START, true);
            let ends = at[1..].iter().copied().chain([bytes.len() as u64]);
            let whole = ends.filter(|end| *end <= len as u64).count();
            assert_eq!(starts(&seen), at[..whole], "cut at {len}");
            assert_eq!(seen.damage, [], "cut at {len}");
            assert_eq!(seen.end + seen.torn, len as u64);
            assert!(seen.end >= at[1], "what was synced stays");
        }
    }

    #[test]
    fn blocks_of_an_unsynced_group_may_be_missing_in_any_order() {
        let (key, mut bytes, at) = segment(&[&[b"one"], &[b"two", b"three"]]);
        bytes[at[1] as usize..at[2] as usize].fill(0);
        let seen = walk(&key, &bytes, START, true);
        assert_eq!((starts(&seen), seen.end), (vec![at[0]], at[1]));
        assert_eq!(seen.damage, [], "nobody was told that it was durable");
    }

    #[test]
    fn damage_below_a_synced_offset_is_told_and_stepped_over() {
        let (key, mut bytes, at) = segment(&[&[b"one", b"two"], &[b"three"]]);
        bytes[at[1] as usize + 9] ^= 1;
        let seen = walk(&key, &bytes, START, true);
        assert_eq!((starts(&seen), seen.torn), (vec![at[0], at[2]], 0));
        assert_eq!(seen.damage, gap(at[1], at[2]));
    }

    #[test]
    fn the_index_and_the_next_segment_prove_what_was_synced() {
        let (key, mut bytes, at) = segment(&[&[b"one", b"two"]]);
        let end = bytes.len() as u64;
        bytes[at[1] as usize] ^= 1;
        let seen = walk(&key, &bytes, START, false);
        assert_eq!((seen.damage, seen.end, seen.torn), (gap(at[1], end), end, 0));
        let seen = walk(&key, &bytes[..at[1] as usize], end, true);
        assert_eq!((seen.damage, seen.end), (gap(at[1], end), end), "shorter than the index says");
    }

    #[test]
    fn a_chunk_that_holds_a_frame_is_not_taken_for_one() {
        let (key, inner, at) = segment(&[&[b"forged"]]);
        let stolen = &inner[at[0] as usize..];
        let (_, mut bytes, outer) = segment(&[&[stolen], &[b"after"]]);
        bytes[outer[0] as usize] ^= 1;
        let seen = walk(&key, &bytes, START, true);
        assert_eq!(starts(&seen), [outer[1]]);
    }
}
