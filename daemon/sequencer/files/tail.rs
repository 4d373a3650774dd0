//! The end of the ledger that fills no whole tile yet, in memory and in every state snapshot.
//!
//! Owns: the open entry bundle, the open hash tile of each level, the records' lengths and the tag
//! lists of the bundle.
//! Never: touches a file; `append` says which tiles became full.
//! Invariant: the same records give the same tail and the same full tiles, byte for byte.

use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::id::LedgerHash;
use mictlan::ledger::merkle;

pub use mictlan::ledger::tile::WIDTH as TILE;
/// `tile/<L>` of 2^63 records would be the eighth level of tiles.
const LEVELS_MAX: usize = 8;
const RECORD_BYTES_MAX: usize = 1 << 14;
/// A list of 4,096 tags in its clear format, with room.
const TAGS_BYTES_MAX: usize = 1 << 16;

/// A file that is complete and never changes again.
#[derive(Debug, PartialEq, Eq)]
pub enum Full {
    Hashes {
        level: u8,
        number: u64,
        bytes: Vec<u8>,
    },
    /// The bundle, its tag lists, and the running total of record bytes after each record.
    Bundle {
        number: u64,
        entries: Vec<u8>,
        tags: Vec<u8>,
        totals: Vec<u8>,
    },
}

#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Tail {
    size: u64,
    /// Bytes of all records so far.
    total: u64,
    /// Each a u16 big-endian length and the record, as C2SP bundles have it.
    entries: Vec<u8>,
    /// Each a u32 little-endian length and the tag list; empty for records without one.
    tags: Vec<u8>,
    /// Little-endian u64 each: the bytes of all records up to and with this one.
    totals: Vec<u8>,
    /// By level: the hashes of the open tile.
    levels: Vec<Vec<LedgerHash>>,
}

impl Tail {
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first record of the open bundle.
    pub fn start(&self) -> u64 {
        self.size - self.size % TILE
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// Appends a record and its tag list (empty without one); answers with what became full.
    pub fn append(&mut self, record: &[u8], tags: &[u8]) -> Vec<Full> {
        assert!(record.len() <= RECORD_BYTES_MAX, "a record has at most 16,384 bytes");
        assert!(tags.len() <= TAGS_BYTES_MAX, "a tag list is bounded");
        self.entries.extend_from_slice(&(record.len() as u16).to_be_bytes());
        self.entries.extend_from_slice(record);
        self.tags.extend_from_slice(&(tags.len() as u32).to_le_bytes());
        self.tags.extend_from_slice(tags);
        self.total += record.len() as u64;
        self.totals.extend_from_slice(&self.total.to_le_bytes());
        let number = self.size / TILE;
        self.size += 1;
        let mut full = Vec::new();
        self.push(0, number, merkle::leaf(record), &mut full);
        if self.size.is_multiple_of(TILE) {
            full.push(Full::Bundle {
                number,
                entries: std::mem::take(&mut self.entries),
                tags: std::mem::take(&mut self.tags),
                totals: std::mem::take(&mut self.totals),
            });
        }
        full
    }

    fn push(&mut self, level: usize, number: u64, hash: LedgerHash, full: &mut Vec<Full>) {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        let tile = &mut self.levels[level];
        tile.push(hash);
        if tile.len() as u64 == TILE {
            let hashes = std::mem::take(tile);
            let bytes = hashes.iter().flat_map(|h| h.0).collect();
            full.push(Full::Hashes { level: level as u8, number, bytes });
            let mut range = merkle::CompactRange::new();
            range_of(&mut range, &hashes);
            self.push(level + 1, number / TILE, range.root(), full);
        }
    }

    /// The hashes of the open tile of a level.
    pub fn hashes(&self, level: u8) -> &[LedgerHash] {
        self.levels.get(usize::from(level)).map_or(&[], Vec::as_slice)
    }

    pub fn levels(&self) -> u8 {
        self.levels.len() as u8
    }

    /// The first `width` entries of the open bundle, as a bundle.
    pub fn bundle(&self, width: u64) -> &[u8] {
        let mut at = 0;
        for _ in 0..width {
            at += 2 + usize::from(u16::from_be_bytes([self.entries[at], self.entries[at + 1]]));
        }
        &self.entries[..at]
    }

    pub fn tag_lists(&self) -> &[u8] {
        &self.tags
    }

    pub fn totals(&self) -> &[u8] {
        &self.totals
    }

    /// The root over everything, from the open tiles alone.
    pub fn root(&self) -> LedgerHash {
        let mut right: Option<LedgerHash> = None;
        for hashes in &self.levels {
            for span in peaks(hashes).iter().rev() {
                right = Some(match right {
                    None => *span,
                    Some(r) => merkle::node(span, &r),
                });
            }
        }
        right.unwrap_or_else(merkle::empty_root)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.size).u64(self.total);
        out.bytes(&self.entries).bytes(&self.tags).bytes(&self.totals);
        out.varint(self.levels.len() as u64);
        for hashes in &self.levels {
            out.varint(hashes.len() as u64);
            for hash in hashes {
                out.raw(&hash.0);
            }
        }
        out.finish()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let (size, total) = (input.u64("size")?, input.u64("total")?);
        let open = (size % TILE) as usize;
        let entries = input.bytes(open * (RECORD_BYTES_MAX + 2), "open bundle")?.to_vec();
        let tags = input.bytes(open * (TAGS_BYTES_MAX + 4), "open tag lists")?.to_vec();
        let totals = input.bytes(open * 8, "totals")?.to_vec();
        let count = input.count(1, "levels")?;
        if count > LEVELS_MAX {
            return Err(DecodeError::TooLarge("number of levels"));
        }
        let mut levels = Vec::with_capacity(count);
        for level in 0..count {
            let width = input.count(32, "hashes")?;
            if width as u64 != (size >> (8 * level)) % TILE {
                return Err(DecodeError::NotCanonical("width of an open tile"));
            }
            let hashes: Result<Vec<_>, _> =
                (0..width).map(|_| input.array("hash").map(LedgerHash)).collect();
            levels.push(hashes?);
        }
        input.finish()?;
        if totals.len() != open * 8 {
            return Err(DecodeError::Short("totals"));
        }
        Ok(Self { size, total, entries, tags, totals, levels })
    }
}

fn range_of(range: &mut merkle::CompactRange, hashes: &[LedgerHash]) {
    for hash in hashes {
        range.append(*hash);
    }
}

/// The roots of the perfect subtrees over `hashes`, widest first.
fn peaks(hashes: &[LedgerHash]) -> Vec<LedgerHash> {
    let mut range = merkle::CompactRange::new();
    range_of(&mut range, hashes);
    range.peaks().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_has_the_trees_root_and_survives_encoding() {
        let (mut tail, mut whole) = (Tail::default(), merkle::CompactRange::new());
        for i in 0..70_000u32 {
            assert!(i % 4999 != 0 || tail.root() == whole.root(), "at {i}");
            let record = i.to_string();
            let full = tail.append(record.as_bytes(), if i % 3 == 0 { b"tags" } else { b"" });
            assert_eq!(full.iter().any(|f| matches!(f, Full::Bundle { .. })), i % 256 == 255);
            whole.append(merkle::leaf(record.as_bytes()));
        }
        assert_eq!(tail.root(), whole.root());
        assert_eq!(Tail::decode(&tail.encode()), Ok(tail.clone()));
        let mut more = tail.encode();
        more.push(0);
        assert_eq!(Tail::decode(&more), Err(DecodeError::LeftOver));
    }
}
