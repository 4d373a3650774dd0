//! The `/ledger` tree as a pure lookup: names to nodes, nodes to sizes and bytes.
//!
//! Owns: which names exist at a published size, in which order they are listed, what they hold.
//! Never: waits; what it lacks it names (`Need`), the caller fetches that and calls again.
//! Invariant: nothing is made in advance, no directory lists more than 2,100 names, and the size
//! of a file is exactly the number of bytes that reading it gives.

mod read;
pub mod status;

use super::checkpoint::Policy;
use super::tile::{Row, TileId, WIDTH, decimal};
use crate::codec::DecodeError;
use bytes::Bytes;
pub use read::{pin, read, settled, size};

/// What the tree lacks for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// A tile or bundle, checked with `tile::authentic` before it is handed over.
    Tile(TileId),
    /// Where this record begins in the concatenation of all records.
    Offset(u64),
    /// The published note of this size, if there was one.
    Note(u64),
    /// The policy of the records before this size.
    Policy(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    #[error("{0:?} is needed first")]
    Missing(Need),
    /// What the source handed over cannot be what it vouched for: an I/O error.
    #[error("the ledger's files are damaged: {0}")]
    Damaged(#[from] DecodeError),
}

impl From<Need> for FilesError {
    fn from(need: Need) -> Self {
        Self::Missing(need)
    }
}

/// A published checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub size: u64,
    pub note: Bytes,
}

/// What the machine has at hand. Everything it gives was checked against a published checkpoint.
pub trait Source {
    /// The newest one; `None` in the first moments of a network.
    fn newest(&self) -> Option<Published>;
    /// The one of this size; `None` when no checkpoint of this size was published.
    fn published(&self, size: u64) -> Result<Option<Published>, Need>;
    /// At least `id.width` hashes or records of the tile.
    fn tile(&self, id: TileId) -> Result<Bytes, Need>;
    /// The number of bytes of all records before this one.
    fn offset(&self, record: u64) -> Result<u64, Need>;
    fn policy(&self, size: u64) -> Result<Policy, Need>;
    /// The text of `status.json` now.
    fn status(&self) -> Bytes;
}

/// A file or directory, small enough to be a key of the table of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    /// The published size that it is frozen at; `None`: whatever is newest.
    pub at: Option<u64>,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    Root,
    Readme,
    Checkpoint,
    Status,
    /// The directory of frozen trees.
    At,
    Keys,
    LogVkey,
    LogPem,
    Policy,
    PolicyJson,
    Tiles,
    /// A directory of tiles whose indices begin with these digits; 0 is the row's own.
    Row(Row, u64),
    /// `NNN.p`
    Partial(Row, u64),
    Tile(TileId),
    /// A directory of records: so many of the twelve digits (0, 3, 6, 9) are fixed to this.
    Records {
        digits: u8,
        prefix: u64,
    },
    Record(u64),
    Proof(u64),
    /// `SHA256SUMS` of a thousand.
    Sums(u64),
    /// A thousand records, concatenated.
    Ndjson(u64),
}

impl Node {
    pub const ROOT: Node = Node { at: None, what: What::Root };

    pub fn is_dir(&self) -> bool {
        matches!(
            self.what,
            What::Root
                | What::At
                | What::Keys
                | What::Tiles
                | What::Row(..)
                | What::Partial(..)
                | What::Records { .. }
        )
    }
}

/// The node of a name in a directory; `None` when there is none.
pub fn lookup(source: &impl Source, dir: Node, name: &str) -> Result<Option<Node>, FilesError> {
    if let What::At = dir.what {
        let Some(size) = decimal(name) else { return Ok(None) };
        let found = source.published(size)?;
        return Ok(found.map(|_| Node { at: Some(size), what: What::Root }));
    }
    let size = tree_size(source, dir)?;
    let frozen = dir.at.is_some();
    let what = match dir.what {
        What::Root => match name {
            "README.txt" if !frozen => Some(What::Readme),
            "at" if !frozen => Some(What::At),
            "status.json" if !frozen => Some(What::Status),
            "checkpoint" if size > 0 => Some(What::Checkpoint),
            "keys" if size > 0 => Some(What::Keys),
            "records" => Some(What::Records { digits: 0, prefix: 0 }),
            "tile" => Some(What::Tiles),
            _ => None,
        },
        What::Keys => match name {
            "log.pem" => Some(What::LogPem),
            "log.vkey" => Some(What::LogVkey),
            "policy" => Some(What::Policy),
            "policy.json" => Some(What::PolicyJson),
            _ => None,
        },
        What::Tiles => row(name).filter(|row| row.len(size) > 0).map(|row| What::Row(row, 0)),
        What::Row(row, prefix) => in_row(row, prefix, size, name),
        What::Partial(row, index) => {
            let width = TileId::of(row, index, size).map_or(0, |id| id.width).min(255);
            let asked = decimal(name).filter(|w| (1..=u64::from(width)).contains(w));
            asked.map(|w| What::Tile(TileId { row, index, width: w as u16 }))
        }
        What::Records { digits, prefix } => in_records(digits, prefix, size, name),
        _ => None,
    };
    Ok(what.map(|what| Node { at: dir.at, what }))
}

fn row(name: &str) -> Option<Row> {
    match name {
        "entries" => Some(Row::Entries),
        level => decimal(level).filter(|level| *level < 64).map(|level| Row::Level(level as u8)),
    }
}

/// Exactly three digits.
fn three(text: &str) -> Option<u64> {
    let good = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    good.then(|| text.parse().ok()).flatten()
}

fn in_row(row: Row, prefix: u64, size: u64, name: &str) -> Option<What> {
    let below = |digits: u64| prefix.checked_mul(1000)?.checked_add(digits);
    if let Some(digits) = name.strip_prefix('x').and_then(three) {
        let group = below(digits).filter(|group| *group > 0)?;
        TileId::of(row, group.checked_mul(1000)?, size)?;
        return Some(What::Row(row, group));
    }
    if let Some(digits) = name.strip_suffix(".p").and_then(three) {
        let index = below(digits)?;
        return TileId::of(row, index, size).map(|_| What::Partial(row, index));
    }
    TileId::of(row, below(three(name)?)?, size).filter(TileId::is_full).map(What::Tile)
}

fn in_records(digits: u8, prefix: u64, size: u64, name: &str) -> Option<What> {
    if digits < 9 {
        let (text, ndjson) = match name.strip_suffix(".ndjson") {
            Some(text) if digits == 6 => (text, true),
            _ => (name, false),
        };
        let prefix = prefix * 1000 + three(text)?;
        let digits = digits + 3;
        let exists = prefix * 10u64.pow(12 - u32::from(digits)) < size;
        let what = if ndjson { What::Ndjson(prefix) } else { What::Records { digits, prefix } };
        return exists.then_some(what);
    }
    if name == "SHA256SUMS" {
        return Some(What::Sums(prefix));
    }
    let (index, what): (&str, fn(u64) -> What) = match name.split_once('.')? {
        (index, "json") => (index, What::Record),
        (index, "tlog-proof") => (index, What::Proof),
        _ => return None,
    };
    let plain = index.len() == 12 && index.bytes().all(|b| b.is_ascii_digit());
    let index = plain.then(|| index.parse::<u64>().ok()).flatten()?;
    (index / 1000 == prefix && index < size).then(|| what(index))
}

/// A name in a listing, and the cookie to go on after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub node: Node,
    pub next: u64,
}

/// Up to `limit` names from a cookie on (0 at first). A cookie means the same name however much
/// the log has grown since. Proofs, frozen trees and narrower tiles are found, but not listed.
pub fn list(
    source: &impl Source,
    dir: Node,
    from: u64,
    limit: usize,
) -> Result<Vec<Entry>, FilesError> {
    let size = tree_size(source, dir)?;
    let mut entries = Vec::new();
    for slot in from..SLOTS {
        if entries.len() == limit {
            break;
        }
        let Some(name) = slot_name(dir, size, slot) else { continue };
        if let Some(node) = lookup(source, dir, &name)? {
            entries.push(Entry { name, node, next: slot + 1 });
        }
    }
    Ok(entries)
}

/// No directory has more slots: a thousand tiles, the partial one, a thousand groups.
const SLOTS: u64 = 2001;

/// The name that may stand at a slot; `lookup` says whether it does.
fn slot_name(dir: Node, size: u64, slot: u64) -> Option<String> {
    const ROOT: [&str; 7] =
        ["README.txt", "at", "checkpoint", "keys", "records", "status.json", "tile"];
    const KEYS: [&str; 4] = ["log.pem", "log.vkey", "policy", "policy.json"];
    let fixed = |names: &[&str]| names.get(slot as usize).map(|name| (*name).to_owned());
    match dir.what {
        What::Root => fixed(&ROOT),
        What::Keys => fixed(&KEYS),
        What::At => (slot == 0).then(|| size.to_string()),
        What::Tiles if slot == 0 => Some("entries".to_owned()),
        What::Tiles => (slot <= 64).then(|| (slot - 1).to_string()),
        What::Row(row, prefix) => match slot {
            0..1000 => Some(format!("{slot:03}")),
            1000 => {
                let partial = row.len(size) / WIDTH;
                (partial / 1000 == prefix && !row.len(size).is_multiple_of(WIDTH))
                    .then(|| format!("{:03}.p", partial % 1000))
            }
            _ => Some(format!("x{:03}", slot - 1001)),
        },
        What::Partial(row, index) => {
            let id = TileId::of(row, index, size).filter(|id| slot == 0 && !id.is_full());
            id.map(|id| id.width.to_string())
        }
        What::Records { digits: 0 | 3, .. } => (slot < 1000).then(|| format!("{slot:03}")),
        What::Records { digits: 6, .. } if slot < 2000 => {
            let end = if slot.is_multiple_of(2) { "" } else { ".ndjson" };
            Some(format!("{:03}{end}", slot / 2))
        }
        What::Records { digits: 9, .. } if slot == 1000 => Some("SHA256SUMS".to_owned()),
        What::Records { digits: 9, prefix } if slot < 1000 => {
            Some(format!("{:012}.json", prefix * 1000 + slot))
        }
        _ => None,
    }
}

/// The published size that a node is seen at.
fn tree_size(source: &impl Source, node: Node) -> Result<u64, FilesError> {
    Ok(match node.at {
        Some(size) => size,
        None => source.newest().map_or(0, |published| published.size),
    })
}
