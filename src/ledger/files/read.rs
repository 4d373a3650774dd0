//! Sizes and bytes of the files of the tree.
//!
//! Owns: how each file is made out of notes, tiles, bundles and the offset table.
//! Invariant: `read` over the whole of a pinned file gives exactly `size` bytes.

use super::super::merkle;
use super::super::proof::Proof;
use super::super::record::record_hash;
use super::super::tile::{self, Row, TileId, WIDTH};
use super::{FilesError, Node, Published, Source, What, tree_size};
use crate::codec::DecodeError;
use crate::id::Position;
use bytes::Bytes;
use std::ops::Range;

const README: &str = include_str!("readme.txt");
/// `<64 hex>  <12 digits>.json` and LF.
const SUM_LEN: u64 = 84;
/// Records of one ndjson file, names of one directory.
const THOUSAND: u64 = 1000;

/// The same file at the size that is newest now: what an open file goes on showing.
pub fn pin(source: &impl Source, node: Node) -> Node {
    let newest = source.newest().map(|published| published.size);
    Node { at: node.at.or(newest), ..node }
}

/// Whether the bytes will never change, so that they may be cached for ever.
pub fn settled(source: &impl Source, node: Node) -> Result<bool, FilesError> {
    if node.at.is_some() && node.what != What::Status {
        return Ok(true);
    }
    let size = tree_size(source, node)?;
    Ok(match node.what {
        What::Readme | What::Record(_) | What::Tile(_) => true,
        What::Sums(thousand) | What::Ndjson(thousand) => (thousand + 1) * THOUSAND <= size,
        _ => false,
    })
}

/// The exact number of bytes of a file.
pub fn size(source: &impl Source, node: Node) -> Result<u64, FilesError> {
    let end = tree_size(source, node)?;
    match node.what {
        What::Tile(TileId { row: Row::Level(_), width, .. }) => Ok(u64::from(width) * 32),
        What::Tile(id) => Ok(span(source, bundle_records(id))? + 2 * u64::from(id.width)),
        What::Record(index) => span(source, index..index + 1),
        What::Ndjson(thousand) => span(source, thousand_records(thousand, end)),
        What::Sums(thousand) => {
            let records = thousand_records(thousand, end);
            Ok((records.end - records.start) * SUM_LEN)
        }
        What::Proof(index) => {
            let note = published(source, node)?.note;
            Ok(Proof::text_len(index, end, note.len()) as u64)
        }
        _ => Ok(whole(source, node)?.len() as u64),
    }
}

/// The bytes of a file from `offset` on, at most `len`; fewer only at its end.
pub fn read(
    source: &impl Source,
    node: Node,
    offset: u64,
    len: usize,
) -> Result<Bytes, FilesError> {
    let end = tree_size(source, node)?;
    match node.what {
        What::Ndjson(thousand) => {
            let records = thousand_records(thousand, end);
            concatenated(source, records, end, offset, len)
        }
        What::Sums(thousand) => sums(source, thousand_records(thousand, end), end, offset, len),
        _ => Ok(part(&whole(source, node)?, offset, len)),
    }
}

fn part(bytes: &Bytes, offset: u64, len: usize) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(start..bytes.len().min(start.saturating_add(len)))
}

/// All bytes of a file that is small, or that is stored in one piece.
fn whole(source: &impl Source, node: Node) -> Result<Bytes, FilesError> {
    let end = tree_size(source, node)?;
    let policy = || source.policy(end);
    Ok(match node.what {
        What::Readme => Bytes::from_static(README.as_bytes()),
        What::Checkpoint => published(source, node)?.note,
        What::Status => source.status(),
        What::LogVkey => (policy()?.log.vkey() + "\n").into(),
        What::LogPem => policy()?.log.pem().into(),
        What::Policy => policy()?.text().into(),
        What::PolicyJson => policy()?.json().into(),
        What::Tile(id) => tile_bytes(source, id)?,
        What::Record(index) => record(source, index, end)?,
        What::Proof(index) => proof(source, index, node)?.into(),
        _ => Bytes::new(),
    })
}

fn published(source: &impl Source, node: Node) -> Result<Published, FilesError> {
    let found = match node.at {
        None => source.newest(),
        Some(size) => source.published(size)?,
    };
    Ok(found.unwrap_or(Published { size: 0, note: Bytes::new() }))
}

/// The tile cut to its width, however much wider the source's copy is.
fn tile_bytes(source: &impl Source, id: TileId) -> Result<Bytes, FilesError> {
    let bytes = source.tile(id)?;
    let len = match id.row {
        Row::Level(_) => usize::from(id.width) * 32,
        Row::Entries => tile::bundle_prefix(&bytes, id.width)?.len(),
    };
    if bytes.len() < len {
        return Err(DecodeError::Short("tile").into());
    }
    Ok(bytes.slice(..len))
}

fn record(source: &impl Source, index: u64, end: u64) -> Result<Bytes, FilesError> {
    let bundle = source.tile(TileId::bundle(index, end))?;
    let before = tile::bundle_prefix(&bundle, (index % WIDTH) as u16)?.len();
    let through = tile::bundle_prefix(&bundle, (index % WIDTH) as u16 + 1)?.len();
    Ok(bundle.slice(before + 2..through))
}

fn proof(source: &impl Source, index: u64, node: Node) -> Result<String, FilesError> {
    let Published { size, note } = published(source, node)?;
    let spans = merkle::inclusion_spans(index, size);
    let read = |node| tile::node_hash(size, node, |id| source.tile(id).map_err(FilesError::from));
    let hashes = merkle::prove(&spans, read)?;
    let note = String::from_utf8_lossy(&note).into_owned();
    Ok(Proof { index: Position(index), hashes, note }.text())
}

fn bundle_records(id: TileId) -> Range<u64> {
    id.index * WIDTH..id.index * WIDTH + u64::from(id.width)
}

fn thousand_records(thousand: u64, end: u64) -> Range<u64> {
    let start = thousand * THOUSAND;
    start..(start + THOUSAND).min(end).max(start)
}

/// The number of bytes of consecutive records.
fn span(source: &impl Source, records: Range<u64>) -> Result<u64, FilesError> {
    let (start, end) = (source.offset(records.start)?, source.offset(records.end)?);
    end.checked_sub(start).ok_or(DecodeError::NotCanonical("offset table").into())
}

/// A range of the concatenation of records.
fn concatenated(
    source: &impl Source,
    records: Range<u64>,
    end: u64,
    offset: u64,
    len: usize,
) -> Result<Bytes, FilesError> {
    let base = source.offset(records.start)?;
    let from = base.saturating_add(offset);
    // The last record that begins at or before the first byte asked for.
    let (mut low, mut high) = (records.start, records.end);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if source.offset(middle)? <= from {
            low = middle;
        } else {
            high = middle;
        }
    }
    let mut out = Vec::new();
    let mut skip = (from - source.offset(low)?) as usize;
    each_record(source, low..records.end, end, |_, bytes| {
        out.extend_from_slice(bytes.get(skip..).unwrap_or_default());
        skip = skip.saturating_sub(bytes.len());
        out.len() < len
    })?;
    out.truncate(len);
    Ok(out.into())
}

/// Hands over consecutive records until it is told to stop; each bundle is taken apart once.
fn each_record(
    source: &impl Source,
    records: Range<u64>,
    end: u64,
    mut more: impl FnMut(u64, &[u8]) -> bool,
) -> Result<(), FilesError> {
    let mut next = records.start;
    while next < records.end {
        let id = TileId::bundle(next, end);
        let bundle = source.tile(id)?;
        let skip = (next - id.index * WIDTH) as usize;
        for bytes in tile::bundle_records(&bundle, id.width)?.into_iter().skip(skip) {
            if next == records.end || !more(next, bytes) {
                return Ok(());
            }
            next += 1;
        }
    }
    Ok(())
}

/// A range of the list of sums; only the records of its lines are hashed.
fn sums(
    source: &impl Source,
    records: Range<u64>,
    end: u64,
    offset: u64,
    len: usize,
) -> Result<Bytes, FilesError> {
    let first = records.start.saturating_add(offset / SUM_LEN);
    let skip = (offset % SUM_LEN) as usize;
    let mut out = String::new();
    if first < records.end && len > 0 {
        each_record(source, first..records.end, end, |index, bytes| {
            let hash = record_hash(bytes);
            out.push_str(&format!("{hash}  {index:012}.json\n"));
            out.len() < len.saturating_add(skip)
        })?;
    }
    Ok(part(&out.into(), skip as u64, len))
}
