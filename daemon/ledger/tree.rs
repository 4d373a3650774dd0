//! The mounted `/ledger`: the pure tree over the verified ledger, as the mount asks for it.
//!
//! Owns: which checkpoint a question sees, what an open file goes on showing, and files' times.
//! Never: says why in an errno alone: each failure is one line in the log.

use super::{Ledger, LedgerError, Seen};
use bytes::Bytes;
use mictlan::id::TimeMs;
use mictlan::ledger::files::{self, Node, What};
use mictlan::ledger::tile::{Row, TileId, WIDTH};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::Stamp;
use mictlan_mount::graft::{Shown, Tree, TreeLine};
use std::sync::Arc;

type Answer<T> = Result<T, FsError>;

/// Bytes as they were at `open`.
pub enum Pinned {
    /// A file of a published size, made anew from records and tiles at each read.
    Frozen(Node),
    /// A small file that changes without the log growing, or with a note in it: all its bytes.
    Whole(Bytes),
}

fn logged(error: LedgerError) -> FsError {
    let errno = error.errno();
    tracing::warn!(%error, "a file of the ledger cannot be shown");
    errno
}

fn stamp(time: TimeMs) -> Stamp {
    Stamp { secs: (time.0 / 1000) as i64, nanos: (time.0 % 1000) as u32 * 1_000_000 }
}

/// The last record that a file tells of, where it tells of records.
fn last_record(node: Node, size: u64) -> Option<u64> {
    let end = match node.what {
        What::Record(record) => record + 1,
        What::Sums(thousand) | What::Ndjson(thousand) => (thousand + 1) * 1000,
        What::Tile(TileId { row: Row::Entries, index, width }) => index * WIDTH + u64::from(width),
        _ => return None,
    };
    end.min(size).checked_sub(1)
}

impl Ledger {
    async fn shown(&self, seen: &Seen, node: Node) -> Result<Shown, LedgerError> {
        let dir = node.is_dir();
        let (first, last) = seen.trail.times();
        let (size, settled) = match dir {
            true => (0, node.at.is_some()),
            false => {
                let size = self.ask(seen, node, |view| files::size(view, node)).await?;
                (size, self.ask(seen, node, |view| files::settled(view, node)).await?)
            }
        };
        let time = match last_record(node, node.at.unwrap_or(seen.size())) {
            Some(record) => self.time_of(seen, record).await?,
            // What never changes has the network's first time, the same on every machine.
            None if settled => first,
            None => last,
        };
        Ok(Shown { dir, size, time: stamp(time), settled })
    }

    async fn pin(&self, seen: &Seen, node: Node) -> Result<(Pinned, Shown), LedgerError> {
        let mut shown = self.shown(seen, node).await?;
        if let What::Tile(_) | What::Record(_) | What::Sums(_) | What::Ndjson(_) = node.what {
            let node = self.ask(seen, node, |view| Ok(files::pin(view, node))).await?;
            return Ok((Pinned::Frozen(node), shown));
        }
        let read = self.ask(seen, node, |view| files::read(view, node, 0, usize::MAX));
        let bytes = read.await?;
        shown.size = bytes.len() as u64;
        Ok((Pinned::Whole(bytes), shown))
    }
}

/// The tree as `Graft` takes it.
pub struct LedgerTree(pub Arc<Ledger>);

impl Tree for LedgerTree {
    type Node = Node;
    type Open = Pinned;

    fn root(&self) -> Node {
        Node::ROOT
    }

    async fn lookup(&self, dir: Node, name: &str) -> Answer<Option<Node>> {
        let seen = self.0.newest().await.map_err(logged)?;
        let found = self.0.ask(&seen, dir, |view| files::lookup(view, dir, name)).await;
        found.map_err(logged)
    }

    async fn show(&self, node: Node) -> Answer<Shown> {
        if node == Node::ROOT {
            // Never waits: `df` and every walk of the mount's root come through here.
            let last = self.0.seen().map_or(TimeMs(0), |seen| seen.trail.times().1);
            return Ok(Shown { dir: true, size: 0, time: stamp(last), settled: false });
        }
        let seen = self.0.newest().await.map_err(logged)?;
        self.0.shown(&seen, node).await.map_err(logged)
    }

    async fn list(&self, dir: Node, from: u64, limit: usize) -> Answer<Vec<TreeLine<Node>>> {
        let seen = self.0.newest().await.map_err(logged)?;
        let list = self.0.ask(&seen, dir, |view| files::list(view, dir, from, limit)).await;
        let line = |entry: files::Entry| {
            let files::Entry { name, node, next } = entry;
            TreeLine { name, node, dir: node.is_dir(), next }
        };
        Ok(list.map_err(logged)?.into_iter().map(line).collect())
    }

    async fn open(&self, node: Node) -> Answer<(Pinned, Shown)> {
        let seen = self.0.newest().await.map_err(logged)?;
        self.0.pin(&seen, node).await.map_err(logged)
    }

    async fn read(&self, open: &Pinned, offset: u64, len: usize) -> Answer<Bytes> {
        match open {
            Pinned::Whole(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(start..bytes.len().min(start.saturating_add(len))))
            }
            Pinned::Frozen(node) => {
                self.0.intact().map_err(logged)?;
                // A newer tree begins with the one that the file was opened at.
                let seen = self.0.seen().ok_or(FsError::Io)?;
                let node = *node;
                let read = |view: &super::view::View<'_>| files::read(view, node, offset, len);
                self.0.ask(&seen, node, read).await.map_err(logged)
            }
        }
    }
}
