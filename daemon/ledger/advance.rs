//! From the newest verified checkpoint to a newer one, and what is done when two contradict.
//!
//! Owns: the file that remembers, and the judgement of a note that a peer gives.
//! Invariant: a note is taken only with its signatures, its quorum and all records up to it; one
//! that is signed and does not continue what is remembered ends the view for good.

use super::{FILE_MODE, Ledger, LedgerError, Named, Seen, Trail, lock};
use crate::store::durable;
use bytes::Bytes;
use futures::{StreamExt, stream};
use mictlan::id::NetworkId;
use mictlan::ledger::checkpoint::{Accepted, Checkpoint, Note};
use mictlan::ledger::merkle;
use mictlan::ledger::tile::{self, TileId, WIDTH};
use std::path::Path;
use std::sync::Arc;

/// How many peers are asked for their newest note in one attempt.
const ASKED_MAX: usize = 4;
/// Bundles under way from one peer while the log is read.
const AHEAD: usize = 8;
const FILE: &str = "ledger-seen";

/// What a state directory remembers of the network's ledger.
pub fn load(network: NetworkId, dir: &Path) -> Result<Option<Seen>, LedgerError> {
    let path = dir.join(FILE);
    let wrong = |why: String| LedgerError::Remembered(format!("{}: {why}", path.display()));
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| wrong(error.to_string()))?,
    };
    let (trail, note) = Trail::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
    if trail.network() != network {
        return Err(wrong(format!("it is of the network {}", trail.network())));
    }
    // Checked again, because a disk is trusted as little as a peer.
    let accepted = accept(&trail, &note).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(seen(accepted, trail, note.into())))
}

fn seen(accepted: Accepted, trail: Trail, note: Bytes) -> Seen {
    Seen { accepted, note, trail, edge: Default::default() }
}

/// The note as the checkpoint of exactly the trail's records.
fn accept(trail: &Trail, note: &[u8]) -> Result<Accepted, LedgerError> {
    let size = trail.size();
    let policy = trail.policy(size).ok_or(LedgerError::NothingPublished)?;
    let accepted = policy.accept(note)?;
    let Checkpoint { size: said, root, .. } = accepted.checkpoint;
    if (said, root) != (size, trail.root()) {
        let why = format!("they give the root {}", trail.root());
        return Err(LedgerError::Records { size: said, why });
    }
    Ok(accepted)
}

impl Ledger {
    /// Asks peers for their newest notes and takes what is newer.
    pub(super) async fn advance(&self) -> Result<(), LedgerError> {
        let mut last = None;
        for turn in 0..ASKED_MAX {
            let Some(answer) = (self.fetch)(turn, "checkpoint".to_owned()) else { break };
            let path = "checkpoint".to_owned();
            let outcome = match answer.await {
                Ok(Some(note)) => self.consider(turn, &note).await,
                Ok(None) => Err(LedgerError::NothingPublished),
                Err(why) => Err(LedgerError::Unreachable { path, why }),
            };
            match outcome {
                Ok(()) => last = Some(Ok(())),
                Err(error @ LedgerError::Contradiction { .. }) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, turn, "a peer's checkpoint is not taken");
                    // One good answer is enough for the attempt to have succeeded.
                    last.get_or_insert(Err(error));
                }
            }
        }
        let why = "no peer is known".to_owned();
        last.unwrap_or(Err(LedgerError::Unreachable { path: "checkpoint".to_owned(), why }))
    }

    /// Judges the note that the `turn`th peer gives.
    async fn consider(&self, turn: usize, note: &Bytes) -> Result<(), LedgerError> {
        let said = Checkpoint::parse(Note::parse(note)?.text)?;
        let before = self.seen();
        match &before {
            Some(seen) if said.size < seen.size() => self.older(seen, note, &said).await,
            Some(seen) if said.size == seen.size() => self.same(seen, note, &said),
            _ => self.newer(before.as_deref(), turn, note, &said).await,
        }
    }

    /// A peer that is behind must have had the same history up to there.
    async fn older(
        &self,
        seen: &Arc<Seen>,
        note: &Bytes,
        said: &Checkpoint,
    ) -> Result<(), LedgerError> {
        let known = lock(&self.notes).contains_key(&said.size);
        let policy = seen.trail.policy(said.size).ok_or(LedgerError::NothingPublished)?;
        if known || said.size == 0 {
            return Ok(());
        }
        policy.accept(note)?;
        let root = match self.root_at(seen, said.size).await {
            // Only peers that are behind answer: they cannot show what they lack, and are no liars
            // for that. Nothing of theirs is shown.
            Err(LedgerError::Unreachable { .. }) => return Ok(()),
            root => root?,
        };
        if root != said.root {
            return Err(self.contradict(seen, note, said));
        }
        self.note_seen(said.size, note);
        Ok(())
    }

    /// The same size again: cosigned anew, or another history.
    fn same(&self, seen: &Seen, note: &Bytes, said: &Checkpoint) -> Result<(), LedgerError> {
        if *note == seen.note {
            return Ok(());
        }
        let policy = seen.trail.policy(said.size).ok_or(LedgerError::NothingPublished)?;
        let accepted = policy.accept(note)?;
        if said.root != seen.root() {
            return Err(self.contradict(seen, note, said));
        }
        let newest = |accepted: &Accepted| accepted.cosigned.iter().map(|(_, at)| *at).max();
        if newest(&accepted) > newest(&seen.accepted) {
            // Not written to disk: it says nothing more of the records.
            let mut renewed = self::seen(accepted, seen.trail.clone(), note.clone());
            renewed.edge = seen.edge.clone();
            self.note_seen(said.size, note);
            self.seen.send_replace(Some(Arc::new(renewed)));
        }
        Ok(())
    }

    async fn newer(
        &self,
        before: Option<&Seen>,
        turn: usize,
        note: &Bytes,
        said: &Checkpoint,
    ) -> Result<(), LedgerError> {
        let trail = before.map_or_else(|| Trail::new(self.network), |seen| seen.trail.clone());
        let read = self.read_on(trail, turn, said.size).await;
        let taken = read.and_then(|trail| Ok((accept(&trail, note)?, trail)));
        let (accepted, trail) = match (taken, before) {
            (Ok(taken), _) => taken,
            (Err(error), None) => return Err(error),
            // Either this peer's records are wrong, or the note does not continue our history.
            (Err(error), Some(seen)) => return Err(self.blame(seen, note, said, error).await),
        };
        let (path, bytes) = (self.dir.join("ledger-seen"), trail.encode(note));
        let (size, dir) = (said.size, self.dir.clone());
        let written = tokio::task::spawn_blocking(move || {
            durable::create_dir(&dir, 0o700)?;
            durable::replace_file(&path, FILE_MODE, &bytes)
        });
        written.await.map_err(|error| LedgerError::Records {
            size,
            why: format!("they could not be kept: {error}"),
        })??; // crash here: remembered and not shown yet, which the next start shows
        self.note_seen(size, note);
        self.seen.send_replace(Some(Arc::new(seen(accepted, trail, note.clone()))));
        Ok(())
    }

    /// Continues a trail with the records of one peer up to a size.
    async fn read_on(
        &self,
        mut trail: Trail,
        turn: usize,
        size: u64,
    ) -> Result<Trail, LedgerError> {
        let wrong = |why: String| LedgerError::Records { size, why };
        let first = trail.size() / WIDTH;
        let bundles = stream::iter(first..size.div_ceil(WIDTH))
            .map(|bundle| self.bundle(turn, TileId::bundle(bundle * WIDTH, size)))
            .buffered(AHEAD);
        let mut bundles = std::pin::pin!(bundles);
        while let Some(bundle) = bundles.next().await {
            let (id, bytes) = bundle?;
            // A bundle of common records takes half a millisecond.
            let skip = (trail.size() - id.index * WIDTH) as usize;
            for record in tile::bundle_records(&bytes, id.width)?.into_iter().skip(skip) {
                trail.push(record).map_err(|error| wrong(error.to_string()))?;
            }
        }
        Ok(trail)
    }

    /// A bundle as one peer has it, unchecked.
    async fn bundle(&self, turn: usize, id: TileId) -> Result<(TileId, Bytes), LedgerError> {
        let full = TileId { width: WIDTH as u16, ..id };
        let mut why = "it is not there".to_owned();
        for path in [id.path(), full.path()] {
            match (self.fetch)(turn, path) {
                None => break,
                Some(answer) => match answer.await {
                    Ok(Some(bytes)) => return Ok((id, bytes)),
                    Ok(None) => {}
                    Err(error) => why = error,
                },
            }
        }
        Err(LedgerError::Unreachable { path: id.path(), why })
    }

    /// Says whether a note that cannot be reached from what is remembered is a contradiction. Only
    /// a note that our own policy accepts accuses anyone; all else is one peer's fault.
    async fn blame(
        &self,
        seen: &Seen,
        note: &Bytes,
        said: &Checkpoint,
        error: LedgerError,
    ) -> LedgerError {
        let policy = seen.trail.policy(seen.size());
        let Some(Ok(accepted)) = policy.map(|policy| policy.accept(note)) else { return error };
        // Tiles that give the note's root, asked for the proof that it continues ours.
        let theirs = self::seen(accepted, seen.trail.clone(), note.clone());
        let spans = merkle::consistency_spans(seen.size(), said.size);
        let Ok(proof) = self.prove_apart(&theirs, &spans).await else { return error };
        let (old, new) = (seen.root(), said.root);
        match merkle::check_consistency(seen.size(), &old, said.size, &new, &proof) {
            true => error,
            false => self.contradict(seen, note, said),
        }
    }

    /// Keeps both notes, and ends the view of this ledger.
    fn contradict(&self, seen: &Seen, note: &Bytes, said: &Checkpoint) -> LedgerError {
        let (a, b) = (seen.named(), Named { size: said.size, root: said.root });
        let error = LedgerError::Contradiction { a, b, dir: self.dir.clone() };
        tracing::error!(%error, "the ledger contradicts itself");
        for (named, note) in [(a, &seen.note), (b, note)] {
            let short = hex::encode(&named.root.0[..8]);
            let name = format!("ledger-contradiction-{}-{short}.note", named.size);
            if let Err(error) = durable::replace_file(&self.dir.join(name), FILE_MODE, note) {
                tracing::error!(%error, note = %String::from_utf8_lossy(note), "a note is not kept");
            }
        }
        self.contradiction.get_or_init(|| error).clone()
    }

    pub(super) fn note_seen(&self, size: u64, note: &Bytes) {
        let mut notes = lock(&self.notes);
        notes.insert(size, note.clone());
        while notes.len() > super::NOTES_MAX {
            notes.pop_first();
        }
    }
}
