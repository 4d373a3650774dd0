//! The verified ledger as the source of the pure `/ledger` tree.
//!
//! Owns: one question's snapshot: one checkpoint, and everything fetched for the question.
//! Invariant: what was fetched stays until the question is answered, so each fetch brings the
//! answer nearer, whatever the caches drop meanwhile.

use super::outline::Outline;
use super::tiles;
use super::{Ledger, LedgerError, Seen, lock};
use bytes::Bytes;
use mictlan::codec::DecodeError;
use mictlan::id::{LedgerHash, Position, TimeMs};
use mictlan::ledger::checkpoint::Policy;
use mictlan::ledger::files::status::Status;
use mictlan::ledger::files::{self, FilesError, Need, Node, Published, Source, What};
use mictlan::ledger::merkle::{self, Span};
use mictlan::ledger::tile::{self, Row, TileId, WIDTH};
use std::collections::HashMap;
use std::sync::Arc;

/// No question needs more: 64 levels of tiles, or the bundles of one read.
const NEEDS_MAX: usize = 4096;

pub struct View<'a> {
    ledger: &'a Ledger,
    pub seen: &'a Seen,
    /// The bundle whose first byte counts as 0: only distances within one file are asked for, so
    /// no table of the whole log is needed.
    anchor: u64,
    tiles: HashMap<(Row, u64), (u16, Bytes)>,
    notes: HashMap<u64, Option<Published>>,
    outlines: HashMap<u64, Arc<Outline>>,
}

/// The bundle that a file's records begin in.
fn anchor(node: Node) -> u64 {
    match node.what {
        What::Tile(TileId { row: Row::Entries, index, .. }) => index,
        What::Record(record) => record / WIDTH,
        What::Sums(thousand) | What::Ndjson(thousand) => thousand * 1000 / WIDTH,
        _ => 0,
    }
}

impl Source for View<'_> {
    fn newest(&self) -> Option<Published> {
        Some(Published { size: self.seen.size(), note: self.seen.note.clone() })
    }

    fn published(&self, size: u64) -> Result<Option<Published>, Need> {
        if size == self.seen.size() {
            return Ok(self.newest());
        }
        if size > self.seen.size() || size == 0 {
            return Ok(None);
        }
        self.notes.get(&size).cloned().ok_or(Need::Note(size))
    }

    fn tile(&self, id: TileId) -> Result<Bytes, Need> {
        if let Some((width, bytes)) = self.tiles.get(&(id.row, id.index))
            && *width >= id.width
        {
            return Ok(bytes.clone());
        }
        self.ledger.tiles.get(id).ok_or(Need::Tile(id))
    }

    fn offset(&self, record: u64) -> Result<u64, Need> {
        let need = Need::Offset(record);
        let (bundle, inside) = (record / WIDTH, record % WIDTH);
        let mut sum = 0;
        for full in self.anchor..bundle {
            let outline = self.outlines.get(&full).ok_or(need)?;
            sum += outline.before(WIDTH).ok_or(need)?;
        }
        if inside > 0 {
            let outline = self.outlines.get(&bundle).ok_or(need)?;
            sum += outline.before(inside).ok_or(need)?;
        }
        Ok(sum)
    }

    fn policy(&self, size: u64) -> Result<Policy, Need> {
        self.seen.trail.policy(size).ok_or(Need::Policy(size))
    }

    fn status(&self) -> Bytes {
        let heard = lock(&self.ledger.heard).clone();
        let size = self.seen.size();
        let heard = heard.filter(|heard| heard.head.size.0 >= size);
        let policy = self.seen.trail.policy(size);
        let (_, time) = self.seen.trail.times();
        let status = Status {
            published: policy.as_ref().map(|policy| (&self.seen.accepted, policy)),
            ordered: heard.as_ref().map_or(size, |heard| heard.head.size.0),
            head: heard.as_ref().map_or(self.seen.trail.head(), |h| LedgerHash(h.head.chain)),
            time: heard.as_ref().map_or(time, |heard| heard.head.t),
            pending_since: heard
                .as_ref()
                .filter(|heard| heard.head.size.0 > size)
                .and_then(|heard| heard.pending_since),
            missing: heard.as_ref().map_or(&[], |heard| &heard.missing),
        };
        status.text().into()
    }
}

impl Ledger {
    /// Asks `question` until nothing is missing any more.
    pub(super) async fn ask<T>(
        &self,
        seen: &Seen,
        node: Node,
        question: impl Fn(&View<'_>) -> Result<T, FilesError>,
    ) -> Result<T, LedgerError> {
        let mut view = View {
            ledger: self,
            seen,
            anchor: anchor(node),
            tiles: HashMap::new(),
            notes: HashMap::new(),
            outlines: HashMap::new(),
        };
        for _ in 0..NEEDS_MAX {
            match question(&view) {
                Ok(answer) => return Ok(answer),
                Err(FilesError::Damaged(error)) => return Err(error.into()),
                Err(FilesError::Missing(need)) => self.meet(&mut view, need).await?,
            }
        }
        Err(DecodeError::TooLarge("question of the ledger's tree").into())
    }

    async fn meet(&self, view: &mut View<'_>, need: Need) -> Result<(), LedgerError> {
        let size = view.seen.size();
        match need {
            Need::Tile(id) => {
                let bytes = self.tile(view.seen, id).await?;
                let wide = TileId::of(id.row, id.index, size).map_or(id.width, |wide| wide.width);
                view.tiles.insert((id.row, id.index), (wide, bytes));
            }
            Need::Offset(record) => {
                for bundle in view.anchor..record.div_ceil(WIDTH) {
                    if !view.outlines.contains_key(&bundle) {
                        let outline = self.outline(view.seen, bundle).await?;
                        view.outlines.insert(bundle, outline);
                    }
                }
            }
            Need::Note(asked) => {
                // Boxed: to judge an old note is a question of its own.
                let note = Box::pin(self.old_note(view.seen, asked)).await?;
                view.notes.insert(asked, note.map(|note| Published { size: asked, note }));
            }
            Need::Policy(_) => return Err(LedgerError::NothingPublished),
        }
        Ok(())
    }

    /// Where the records of a bundle end.
    pub(super) async fn outline(
        &self,
        seen: &Seen,
        bundle: u64,
    ) -> Result<Arc<Outline>, LedgerError> {
        let id = TileId::of(Row::Entries, bundle, seen.size());
        let id = id.ok_or(DecodeError::Short("bundle of the published size"))?;
        if let Some(outline) = self.outlines.get(bundle, id.width) {
            return Ok(outline);
        }
        let outline = Arc::new(Outline::of(&self.tile(seen, id).await?, id.width)?);
        self.outlines.insert(bundle, outline.clone());
        Ok(outline)
    }

    /// The proof that a record is under the checkpoint of `seen`: the text of its `.tlog-proof`.
    pub async fn proof(&self, seen: &Seen, record: Position) -> Result<Bytes, LedgerError> {
        let node = Node { at: None, what: What::Proof(record.0) };
        self.ask(seen, node, |view| files::read(view, node, 0, usize::MAX)).await
    }

    /// The time of a record.
    pub(super) async fn time_of(&self, seen: &Seen, record: u64) -> Result<TimeMs, LedgerError> {
        let outline = self.outline(seen, record / WIDTH).await?;
        outline.time(record % WIDTH).ok_or(DecodeError::Short("bundle").into())
    }

    /// The note that was published at a smaller size; `None` when no peer knows of one.
    async fn old_note(&self, seen: &Seen, size: u64) -> Result<Option<Bytes>, LedgerError> {
        if let Some(note) = lock(&self.notes).get(&size) {
            return Ok(Some(note.clone()));
        }
        let policy = seen.trail.policy(size).ok_or(LedgerError::NothingPublished)?;
        let root = self.root_at(seen, size).await?;
        let accept = |note: &Bytes| {
            let accepted = policy.accept(note).ok()?;
            let said = (accepted.checkpoint.size, accepted.checkpoint.root);
            (said == (size, root)).then(|| note.clone())
        };
        match self.fetch_with(&format!("at/{size}/checkpoint"), size, accept).await {
            Ok(note) => {
                self.note_seen(size, &note);
                Ok(Some(note))
            }
            // No peer that answers keeps a note of this size.
            Err(LedgerError::Unreachable { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The root of the verified tree's first `size` records.
    pub async fn root_at(&self, seen: &Seen, size: u64) -> Result<LedgerHash, LedgerError> {
        let root = |view: &View<'_>| tile::root(size, |id| view.tile(id).map_err(FilesError::from));
        self.ask(seen, Node::ROOT, root).await
    }

    /// A proof out of the tiles of a tree that is not the verified one: past the caches.
    pub(super) async fn prove_apart(
        &self,
        theirs: &Seen,
        spans: &[Span],
    ) -> Result<Vec<LedgerHash>, LedgerError> {
        let mut known = tiles::Edge::new();
        for _ in 0..NEEDS_MAX {
            let read = |id: TileId| known.get(&id).cloned().ok_or(Need::Tile(id).into());
            let hash = |node| tile::node_hash::<Bytes, FilesError>(theirs.size(), node, read);
            match merkle::prove(spans, hash) {
                Ok(proof) => return Ok(proof),
                Err(FilesError::Missing(Need::Tile(id))) => {
                    known.insert(id, tiles::apart(self, theirs, id).await?);
                }
                Err(FilesError::Missing(_)) => return Err(LedgerError::NotYet),
                Err(FilesError::Damaged(error)) => return Err(error.into()),
            }
        }
        Err(DecodeError::TooLarge("proof").into())
    }
}
