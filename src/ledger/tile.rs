//! Tiles and entry bundles: the log as static files, in the layout of C2SP `tlog-tiles`.
//!
//! Owns: which tiles a tree of a size has, their paths and bytes, and the growing right edge.
//! Never: reads or writes a file; a reader is passed in and may answer "missing" in its own words.
//! Invariant: a full tile never changes, and a partial one is a prefix of what it grows into.
//!
//! ```text
//! tile    width × 32 bytes of hashes            bundle  width × (length u16 big-endian, record)
//! path    tile/<level>/<index>[.p/<width>]      path    tile/entries/<index>[.p/<width>]
//! index   in groups of three digits, all but the last with `x`: 1234067 is x001/x234/067
//! ```

use super::merkle::{self, NodeIndex, Span};
use super::record::RECORD_MAX;
use crate::codec::DecodeError;
use crate::id::LedgerHash;

/// Hashes in a full tile, and records in a full bundle.
pub const WIDTH: u64 = 256;
/// Levels of the tree that one tile spans.
pub const HEIGHT: u8 = 8;
/// The highest level a path may name; the tree of 2^53 records ends at level 6.
const LEVEL_MAX: u8 = 63;

/// Which row of tiles: hashes of one level, or the records themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    Level(u8),
    Entries,
}

impl Row {
    /// How many hashes or records this row has in a tree of `size`, over all its tiles.
    pub fn len(self, size: u64) -> u64 {
        match self {
            Row::Entries => size,
            Row::Level(level) => size.checked_shr(u32::from(level) * 8).unwrap_or(0),
        }
    }
}

/// A tile or bundle: row, index in it, and how many hashes or records are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    pub row: Row,
    pub index: u64,
    /// 1 to 256; less than 256 is a partial tile.
    pub width: u16,
}

impl TileId {
    /// The tile of this row and index as wide as a tree of `size` has it; `None` when it is empty.
    pub fn of(row: Row, index: u64, size: u64) -> Option<Self> {
        let start = index.checked_mul(WIDTH)?;
        let width = row.len(size).checked_sub(start)?.min(WIDTH);
        (width > 0).then_some(Self { row, index, width: width as u16 })
    }

    /// The bundle that holds a record of a tree of `size`.
    pub fn bundle(record: u64, size: u64) -> Self {
        assert!(record < size, "only a record of the tree has a bundle");
        Self::of(Row::Entries, record / WIDTH, size).expect("a record before the end has a bundle")
    }

    pub fn is_full(&self) -> bool {
        u64::from(self.width) == WIDTH
    }

    /// The path below the log's root, as C2SP writes it.
    pub fn path(&self) -> String {
        let row = match self.row {
            Row::Entries => "entries".to_owned(),
            Row::Level(level) => level.to_string(),
        };
        let partial = if self.is_full() { String::new() } else { format!(".p/{}", self.width) };
        format!("tile/{row}/{}{partial}", index_path(self.index))
    }

    /// The strict opposite of `path`.
    pub fn parse(path: &str) -> Option<Self> {
        let (row, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let row = match row {
            "entries" => Row::Entries,
            level => Row::Level(decimal(level).filter(|l| *l <= u64::from(LEVEL_MAX))? as u8),
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => (index, decimal(width).filter(|w| (1..WIDTH).contains(w))?),
            None => (rest, WIDTH),
        };
        let mut n = 0u64;
        let mut groups = index.split('/').peekable();
        while let Some(group) = groups.next() {
            let digits = if groups.peek().is_some() { group.strip_prefix('x')? } else { group };
            let plain = digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit());
            let value = plain.then(|| digits.parse::<u64>().ok()).flatten()?;
            n = n.checked_mul(1000)?.checked_add(value)?;
        }
        let id = Self { row, index: n, width: width as u16 };
        // A leading group of zeros would be a second path of the same tile.
        (id.path() == path).then_some(id)
    }
}

/// An index in groups of three digits, all but the last with an `x` before them.
fn index_path(index: u64) -> String {
    let mut path = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    path
}

/// Decimal digits without a leading zero.
pub fn decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (canonical && digits).then(|| text.parse().ok()).flatten()
}

/// All tiles and bundles of a tree of `new` records that one of `old` records has not, or has
/// narrower; the order is the order to write them in: entries, then hashes from the leaves up.
pub fn grown(old: u64, new: u64) -> Vec<TileId> {
    let mut tiles = Vec::new();
    let rows = std::iter::once(Row::Entries).chain((0..=LEVEL_MAX).map(Row::Level));
    for row in rows.take_while(|row| row.len(new) > 0) {
        if row.len(old) < row.len(new) {
            let first = row.len(old) / WIDTH;
            tiles.extend((first..).map_while(|index| TileId::of(row, index, new)));
        }
    }
    tiles
}

/// The hash of a perfect subtree of a tree of `size`, out of the tile that spans it. `read` gives
/// at least the tile's bytes up to the width asked for.
pub fn node_hash<B: AsRef<[u8]>, E: From<DecodeError>>(
    size: u64,
    node: NodeIndex,
    mut read: impl FnMut(TileId) -> Result<B, E>,
) -> Result<LedgerHash, E> {
    let (level, inside) = (node.level / HEIGHT, node.level % HEIGHT);
    let first = node.index << inside;
    let tile = TileId::of(Row::Level(level), first / WIDTH, size);
    let tile = tile.expect("a subtree of the tree is in one of its tiles");
    let bytes = read(tile)?;
    let start = (first % WIDTH) as usize * 32;
    let Some(bytes) = bytes.as_ref().get(start..start + (32 << inside)) else {
        return Err(DecodeError::Short("tile").into());
    };
    Ok(perfect(bytes))
}

/// The root of hashes whose number is a power of two.
fn perfect(bytes: &[u8]) -> LedgerHash {
    let mut row: Vec<LedgerHash> = hashes(bytes).collect();
    while row.len() > 1 {
        row = row.chunks_exact(2).map(|pair| merkle::node(&pair[0], &pair[1])).collect();
    }
    row[0]
}

/// The hashes of a tile's bytes.
pub fn hashes(bytes: &[u8]) -> impl Iterator<Item = LedgerHash> {
    let hash = |bytes: &[u8]| LedgerHash(bytes.try_into().expect("chunks of 32 bytes"));
    bytes.chunks_exact(32).map(hash)
}

/// The root of a tree of `size` by its tiles alone.
pub fn root<B: AsRef<[u8]>, E: From<DecodeError>>(
    size: u64,
    mut read: impl FnMut(TileId) -> Result<B, E>,
) -> Result<LedgerHash, E> {
    if size == 0 {
        return Ok(merkle::empty_root());
    }
    let whole = [Span { start: 0, end: size }];
    Ok(merkle::prove(&whole, |node| node_hash(size, node, &mut read))?[0])
}

/// Whether `bytes` are the tile or bundle `id` of the tree `(size, root)`. `read` gives the hash
/// tiles above it, and of a partial tile the others of the right edge; one that lies makes this
/// `false`, never `true`.
pub fn authentic<B: AsRef<[u8]>, E: From<DecodeError>>(
    size: u64,
    root: &LedgerHash,
    id: TileId,
    bytes: &[u8],
    mut read: impl FnMut(TileId) -> Result<B, E>,
) -> Result<bool, E> {
    if TileId::of(id.row, id.index, size) != Some(id) {
        return Ok(false);
    }
    let (level, row) = match id.row {
        Row::Level(level) if bytes.len() == usize::from(id.width) * 32 => (level, bytes.to_vec()),
        Row::Level(_) => return Ok(false),
        Row::Entries => match decode_bundle(bytes, id.width) {
            Ok(records) => (0, records.iter().flat_map(|r| merkle::leaf(r).0).collect()),
            Err(_) => return Ok(false),
        },
    };
    // A proof of the whole tile as one subtree: its own hashes come from these bytes, all else
    // from the reader.
    let own = TileId { row: Row::Level(level), ..id };
    let found = self::root(size, |tile| match tile == own {
        true => Ok(Bytes::Own(row.clone())),
        false => read(tile).map(Bytes::Read),
    })?;
    if found != *root {
        return Ok(false);
    }
    let last = Row::Level(level).len(size) / WIDTH;
    if id.index >= last {
        // On the right edge every hash of the tile took part in the root just computed.
        return Ok(true);
    }
    let parent = TileId::of(Row::Level(level + 1), id.index / WIDTH, size);
    let parent_id = parent.expect("a full tile has its hash in the level above");
    let parent = read(parent_id)?;
    let at = (id.index % WIDTH) as usize * 32;
    if parent.as_ref().get(at..at + 32) != Some(&perfect(&row).0[..]) {
        return Ok(false);
    }
    let parent = parent.as_ref().get(..usize::from(parent_id.width) * 32);
    let Some(parent) = parent.map(<[u8]>::to_vec) else { return Ok(false) };
    authentic(size, root, parent_id, &parent, read)
}

/// The bytes under question, or what the reader gave.
enum Bytes<B> {
    Own(Vec<u8>),
    Read(B),
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Bytes<B> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Read(bytes) => bytes.as_ref(),
        }
    }
}

/// The records of a bundle, each with its length before it.
pub fn encode_bundle<R: AsRef<[u8]>>(records: impl IntoIterator<Item = R>) -> Vec<u8> {
    let mut out = Vec::new();
    for record in records {
        let record = record.as_ref();
        assert!((1..=RECORD_MAX).contains(&record.len()), "a record is 1 to 16,384 bytes");
        out.extend_from_slice(&(record.len() as u16).to_be_bytes());
        out.extend_from_slice(record);
    }
    out
}

/// The first `width` records of a bundle. A bundle of just that width has nothing after them,
/// which is an error here; a wider one is cut by `bundle_prefix` first.
pub fn decode_bundle(bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, DecodeError> {
    let (records, len) = split_bundle(bytes, width)?;
    if len == bytes.len() { Ok(records) } else { Err(DecodeError::LeftOver) }
}

/// The first `width` records of a bundle that may be wider, taken apart.
pub fn bundle_records(bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, DecodeError> {
    split_bundle(bytes, width).map(|(records, _)| records)
}

/// The bytes of the first `width` records of a bundle that may be wider.
pub fn bundle_prefix(bytes: &[u8], width: u16) -> Result<&[u8], DecodeError> {
    split_bundle(bytes, width).map(|(_, len)| &bytes[..len])
}

fn split_bundle(bytes: &[u8], width: u16) -> Result<(Vec<&[u8]>, usize), DecodeError> {
    let mut records = Vec::with_capacity(usize::from(width));
    let mut rest = bytes;
    for _ in 0..width {
        let (len, after) = rest.split_first_chunk::<2>().ok_or(DecodeError::Short("length"))?;
        let len = usize::from(u16::from_be_bytes(*len));
        if len > RECORD_MAX {
            return Err(DecodeError::TooLarge("record"));
        }
        let (record, after) = after.split_at_checked(len).ok_or(DecodeError::Short("record"))?;
        records.push(record);
        rest = after;
    }
    Ok((records, bytes.len() - rest.len()))
}

/// The right edge of the growing tree: the hashes of the partial tile of each level.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edge {
    size: u64,
    levels: Vec<Vec<LedgerHash>>,
}

impl Edge {
    pub fn new() -> Self {
        Self::default()
    }

    /// The edge of a tree of `size`, read from its partial tiles.
    pub fn load<B: AsRef<[u8]>, E: From<DecodeError>>(
        size: u64,
        mut read: impl FnMut(TileId) -> Result<B, E>,
    ) -> Result<Self, E> {
        let mut levels = Vec::new();
        for row in (0..=LEVEL_MAX).map(Row::Level).take_while(|row| row.len(size) > 0) {
            let Some(tile) = TileId::of(row, row.len(size) / WIDTH, size) else {
                levels.push(Vec::new());
                continue;
            };
            let bytes = read(tile)?;
            let Some(bytes) = bytes.as_ref().get(..usize::from(tile.width) * 32) else {
                return Err(DecodeError::Short("tile").into());
            };
            levels.push(hashes(bytes).collect());
        }
        Ok(Self { size, levels })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf; tiles that it fills go to `full`, lowest level first.
    pub fn append(&mut self, leaf: LedgerHash, full: &mut Vec<(TileId, Vec<u8>)>) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(hash);
            if self.levels[level].len() < WIDTH as usize {
                return;
            }
            let row = Row::Level(level as u8);
            let index = row.len(self.size) / WIDTH - 1;
            let bytes = flat(&self.levels[level]);
            hash = perfect(&bytes);
            full.push((TileId { row, index, width: WIDTH as u16 }, bytes));
            self.levels[level].clear();
        }
    }

    /// The partial tiles as they are now.
    pub fn partial(&self) -> Vec<(TileId, Vec<u8>)> {
        let filled = self.levels.iter().enumerate().filter(|(_, hashes)| !hashes.is_empty());
        filled
            .map(|(level, hashes)| {
                let row = Row::Level(level as u8);
                let index = row.len(self.size) / WIDTH;
                (TileId { row, index, width: hashes.len() as u16 }, flat(hashes))
            })
            .collect()
    }
}

fn flat(hashes: &[LedgerHash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Files = BTreeMap<TileId, Vec<u8>>;

    fn log(size: u64) -> (Files, merkle::CompactRange) {
        let (mut files, mut edge, mut range) = (Files::new(), Edge::new(), Default::default());
        let mut full = Vec::new();
        for i in 0..size {
            let leaf = merkle::leaf(&i.to_be_bytes());
            edge.append(leaf, &mut full);
            merkle::CompactRange::append(&mut range, leaf);
        }
        files.extend(full);
        files.extend(edge.partial());
        (files, range)
    }

    fn reader(files: &Files) -> impl FnMut(TileId) -> Result<Vec<u8>, DecodeError> {
        |id| files.get(&id).cloned().ok_or(DecodeError::Short("tile"))
    }

    #[test]
    fn paths_are_those_of_the_specification() {
        for (row, index, width, path) in [
            (Row::Level(0), 1_234_067, 256, "tile/0/x001/x234/067"),
            (Row::Level(0), 0, 1, "tile/0/000.p/1"),
            (Row::Level(1), 1000, 255, "tile/1/x001/000.p/255"),
            (Row::Entries, 273, 112, "tile/entries/273.p/112"),
            (Row::Level(63), 5, 256, "tile/63/005"),
        ] {
            let id = TileId { row, index, width };
            assert_eq!(id.path(), path);
            assert_eq!(TileId::parse(path), Some(id));
        }
        for bad in [
            "tile/00/000",
            "tile/64/000",
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000/001",
            "tile/0/001/002",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/000/",
            "tile/0/",
            "tile/0/+01",
            "tile//000",
            "tile/data/000",
            "/tile/0/000",
            "tile/0/x001/x000",
            "tile/0/000.p/1.p/1",
        ] {
            assert_eq!(TileId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_tiles_of_70000_records_are_those_of_the_specification() {
        let tiles = grown(0, 70_000);
        let of = |row| tiles.iter().filter(|t| t.row == row).map(|t| t.width).collect::<Vec<_>>();
        assert_eq!((of(Row::Level(0)).len(), of(Row::Level(0)).last()), (274, Some(&112)));
        assert_eq!((of(Row::Level(1)), of(Row::Level(2))), (vec![256, 17], vec![1]));
        assert_eq!(of(Row::Entries), of(Row::Level(0)));
    }

    #[test]
    fn the_edge_writes_the_tiles_that_the_tree_has() {
        for size in [0, 1, 255, 256, 257, 600, 65_536, 66_000] {
            let (files, range) = log(size);
            let expected = grown(0, size).into_iter().filter(|t| t.row != Row::Entries);
            assert!(files.keys().copied().eq(expected), "{size}");
            assert_eq!(root(size, reader(&files)), Ok(range.root()), "{size}");
            let (again, all) =
                (Edge::load(size, reader(&files)).expect("all tiles are there"), log(size));
            assert_eq!(again.partial().into_iter().collect::<Files>(), {
                let mut partial = all.0;
                partial.retain(|id, _| !id.is_full());
                partial
            });
        }
    }

    #[test]
    fn only_growth_is_written_again() {
        assert_eq!(grown(300, 300), []);
        let paths: Vec<_> = grown(255, 257).iter().map(TileId::path).collect();
        let expected = [
            "tile/entries/000",
            "tile/entries/001.p/1",
            "tile/0/000",
            "tile/0/001.p/1",
            "tile/1/000.p/1",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_tile_is_authentic_only_with_all_its_bits() {
        let (files, range) = log(66_000);
        for (id, bytes) in files.iter().step_by(37).chain(files.iter().rev().take(4)) {
            let check = |bytes: &[u8]| authentic(66_000, &range.root(), *id, bytes, reader(&files));
            assert_eq!(check(bytes), Ok(true), "{}", id.path());
            let mut bad = bytes.clone();
            bad[bytes.len() / 2] ^= 1;
            assert_eq!(check(&bad), Ok(false), "{}", id.path());
            assert_eq!(check(&bytes[1..]), Ok(false), "{}", id.path());
        }
    }

    #[test]
    fn bundles_are_read_back_and_strict() {
        let records: [&[u8]; 3] = [b"one\n", b"two\n", b"three\n"];
        let bytes = encode_bundle(records);
        assert_eq!(decode_bundle(&bytes, 3), Ok(records.to_vec()));
        assert_eq!(decode_bundle(&bytes, 2), Err(DecodeError::LeftOver));
        assert_eq!(bundle_prefix(&bytes, 2), Ok(&encode_bundle(&records[..2])[..]));
        assert!(decode_bundle(&bytes, 4).is_err() && decode_bundle(&bytes[..9], 2).is_err());
        assert!(decode_bundle(&[0xff, 0xff], 1).is_err());
    }
}
