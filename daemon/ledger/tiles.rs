//! Tiles and bundles of the verified tree: fetched, checked, kept.
//!
//! Owns: the order of checks (the right edge by the root, then from the top down) and the cache.
//! Invariant: what is in the cache was checked against a verified checkpoint; since a newer tree
//! begins with the older one, it stays right for ever.

use super::{Ledger, LedgerError, Seen};
use bytes::Bytes;
use mictlan::codec::DecodeError;
use mictlan::ledger::tile::{self, Row, TileId, WIDTH};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::HashMap;

/// What the tiles may hold in memory; a bundle of common records has about 128 KiB.
const BYTES_MAX: u64 = 24 << 20;
const TILE_BYTES: u64 = 32 << 10;

/// The partial hash tiles of a tree.
pub type Edge = HashMap<TileId, Bytes>;

#[derive(Clone)]
struct Held {
    width: u16,
    bytes: Bytes,
}

#[derive(Clone)]
struct Weight;

impl Weighter<(Row, u64), Held> for Weight {
    fn weight(&self, _: &(Row, u64), held: &Held) -> u64 {
        held.bytes.len() as u64 + 128
    }
}

pub struct Tiles {
    held: Cache<(Row, u64), Held, Weight>,
}

impl Tiles {
    pub fn new() -> Self {
        let items = (BYTES_MAX / TILE_BYTES) as usize;
        Self { held: Cache::with_weighter(items, BYTES_MAX, Weight) }
    }

    pub fn get(&self, id: TileId) -> Option<Bytes> {
        let held = self.held.get(&(id.row, id.index))?;
        (held.width >= id.width).then_some(held.bytes)
    }

    fn insert(&self, id: TileId, bytes: &Bytes) {
        self.held.insert((id.row, id.index), Held { width: id.width, bytes: bytes.clone() });
    }
}

/// A tile of the tree that `seen` vouches for, at least as wide as `id`.
pub async fn tile(ledger: &Ledger, seen: &Seen, id: TileId) -> Result<Bytes, LedgerError> {
    let size = seen.size();
    let wide = TileId::of(id.row, id.index, size).filter(|wide| wide.width >= id.width);
    let id = wide.ok_or(DecodeError::Short("tile of the published size"))?;
    match ledger.tiles.get(id) {
        Some(bytes) => Ok(bytes),
        None => checked(ledger, seen, id, Some(&ledger.tiles)).await,
    }
}

/// A tile of a tree whose root is signed, but which is not ours: kept nowhere.
pub async fn apart(ledger: &Ledger, theirs: &Seen, id: TileId) -> Result<Bytes, LedgerError> {
    checked(ledger, theirs, id, None).await
}

async fn checked(
    ledger: &Ledger,
    seen: &Seen,
    id: TileId,
    cache: Option<&Tiles>,
) -> Result<Bytes, LedgerError> {
    let mut known = seen.edge.get_or_try_init(|| edge(ledger, seen)).await?.clone();
    // Each is checked with the one above it, which was checked before.
    for id in above(id, seen.size()).into_iter().rev().chain([id]) {
        if known.contains_key(&id) {
            continue;
        }
        let bytes = match cache.and_then(|cache| cache.get(id)) {
            Some(bytes) => bytes,
            None => fetch(ledger, seen, id, &known).await?,
        };
        if let Some(cache) = cache {
            cache.insert(id, &bytes);
        }
        known.insert(id, bytes);
    }
    Ok(known.remove(&id).expect("it was the last one"))
}

/// The hash tiles over a tile up to the right edge, lowest first.
fn above(id: TileId, size: u64) -> Vec<TileId> {
    let (mut level, mut index) = match id.row {
        Row::Entries => (0, id.index),
        Row::Level(level) => (level, id.index),
    };
    let mut tiles = Vec::new();
    while index < Row::Level(level).len(size) / WIDTH {
        (level, index) = (level + 1, index / WIDTH);
        let tile = TileId::of(Row::Level(level), index, size);
        tiles.push(tile.expect("a full tile has its hash in the level above"));
    }
    tiles
}

async fn fetch(
    ledger: &Ledger,
    seen: &Seen,
    id: TileId,
    known: &Edge,
) -> Result<Bytes, LedgerError> {
    let (size, root) = (seen.size(), seen.root());
    let read = |id: TileId| known.get(&id).cloned().ok_or(DecodeError::Short("tile above"));
    let accept = |bytes: &Bytes| {
        let bytes = cut(id, bytes)?;
        let good = tile::authentic(size, &root, id, &bytes, read);
        good.unwrap_or(false).then_some(bytes)
    };
    match ledger.fetch_with(&id.path(), size, accept).await {
        // It may have become full since the checkpoint, and then it is served as that alone.
        Err(LedgerError::Unreachable { .. }) if !id.is_full() => {
            let full = TileId { width: WIDTH as u16, ..id };
            ledger.fetch_with(&full.path(), size, accept).await
        }
        fetched => fetched,
    }
}

/// The part of a tile's bytes that `id` means; `None` when they are too few.
fn cut(id: TileId, bytes: &Bytes) -> Option<Bytes> {
    let len = match id.row {
        Row::Level(_) => usize::from(id.width) * 32,
        Row::Entries => tile::bundle_prefix(bytes, id.width).ok()?.len(),
    };
    (bytes.len() >= len).then(|| bytes.slice(..len))
}

/// The right edge: only together are its tiles checked, so they come from one peer.
async fn edge(ledger: &Ledger, seen: &Seen) -> Result<Edge, LedgerError> {
    let size = seen.size();
    let rows = (0..64).map(Row::Level).take_while(|row| row.len(size) > 0);
    let ids: Vec<_> = rows.filter_map(|row| TileId::of(row, row.len(size) / WIDTH, size)).collect();
    let (mut why, mut lied) = (LedgerError::NothingPublished, false);
    for turn in 0.. {
        let mut edge = Edge::new();
        for id in &ids {
            match one(ledger, turn, *id).await {
                None => return Err(why),
                Some(Ok(bytes)) => drop(edge.insert(*id, bytes)),
                // A peer that lied goes before one that is away.
                Some(Err(error)) if !lied => why = error,
                Some(Err(_)) => {}
            }
        }
        if edge.len() < ids.len() {
            continue;
        }
        let read = |id: TileId| edge.get(&id).cloned().ok_or(DecodeError::Short("tile"));
        if tile::root(size, read).is_ok_and(|root| root == seen.root()) {
            return Ok(edge);
        }
        tracing::warn!(size, turn, "a peer's tiles do not give the checkpoint's root");
        why = LedgerError::Tampered { path: "tile/0".to_owned(), size };
        lied = true;
    }
    Err(why)
}

/// A tile of one peer, cut to its width; `None` when there is no such peer.
async fn one(ledger: &Ledger, turn: usize, id: TileId) -> Option<Result<Bytes, LedgerError>> {
    let full = TileId { width: WIDTH as u16, ..id };
    let mut why = "it is not there".to_owned();
    for path in [id.path(), full.path()] {
        match (ledger.fetch)(turn, path)?.await {
            Ok(Some(bytes)) => {
                let short = LedgerError::Damaged(DecodeError::Short("tile"));
                return Some(cut(id, &bytes).ok_or(short));
            }
            Ok(None) => {}
            Err(error) => why = error,
        }
    }
    Some(Err(LedgerError::Unreachable { path: id.path(), why }))
}
