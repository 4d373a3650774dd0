//! A key epoch that begins under a running mount.
//!
//! Owns: the change of keys, and sealing again what was sealed under the old ones and is in no
//! record yet.
//! Invariant: a commit of an epoch names for the first time only chunks that were sealed under it,
//! so a removed member can open nothing that is committed later. All keys change at one moment
//! under the core's lock; what was placed before belongs to an attempt that is over then.

use super::Volume;
use super::follow::Applied;
use super::read::not_read;
use super::state::Mode;
use crate::chunks::{Charges, GetError, Put};
use mictlan::cluster::place::Copies;
use mictlan::file::{Cutter, Extent};
use mictlan::id::{ChunkId, Epoch, Ino, Position};
use mictlan::ledger::record::body::{Revoke, Wrap, wrap_info};
use mictlan::meta::error::FsError;
use mictlan::meta::namespace::Op;
use mictlan::seal::{self, Header, KeyRing, Kind};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// For what some peer may still give to a key that was removed.
const REMOVED_WAIT: Duration = Duration::from_secs(2);

/// Chunks of an older epoch, and what carries their bytes now; `None`: it was of this epoch.
pub(super) type Moved = HashMap<ChunkId, Option<Put>>;

impl Volume {
    /// Secrets of an epoch that is to begin come before the record that begins it.
    pub(super) fn secrets_come(&self, applied: &mut Applied, at: Position, wrap: &Wrap) {
        if wrap.member != self.actor || wrap.key_epoch <= self.ring().current().epoch() {
            return;
        }
        let about = wrap_info(&self.origin, &self.id, wrap.key_epoch, &self.actor);
        let plain = seal::unwrap(&self.principal, &about, &wrap.wrap);
        match plain.ok().and_then(|plain| KeyRing::decode(&plain).ok()) {
            Some(ring) => applied.coming = Some(ring),
            None => tracing::error!(record = %at, "the secrets wrapped for this key do not open"),
        }
    }

    /// A member was removed: this one, or another, and then a new epoch begins.
    pub(super) fn member_gone(&self, applied: &mut Applied, at: Position, revoke: &Revoke) {
        let now = self.ring().current().epoch();
        if revoke.key_epoch.is_some_and(|epoch| epoch <= now) {
            // The secrets of that epoch are here: it was passed, or this key was let in again since.
            return;
        }
        match revoke.key_epoch {
            _ if revoke.member == self.actor => self.removed(at),
            Some(epoch) => self.epoch_begins(applied, at, epoch),
            None => {}
        }
    }

    pub(super) fn epoch_begins(&self, applied: &mut Applied, at: Position, epoch: Epoch) {
        if epoch <= self.ring().current().epoch() {
            return;
        }
        let ring = applied.coming.take().filter(|ring| ring.current().epoch() >= epoch);
        let Some(ring) = ring else { return self.removed(at) };
        let cutter = ring.current().cut_key().map(Cutter::new).map(Arc::new);
        let mut core = self.core();
        *self.cutter.write().expect("nothing panics while it is locked") = cutter;
        *self.ring.write().expect("nothing panics while the ring is locked") = Arc::new(ring);
        core.session.epoch = epoch;
        // Every request of the old epoch that was accepted stands before this record, and was
        // taken over: what waits now can only be refused.
        if !core.queue.is_empty() {
            core.session.attempt_ended = true;
            core.session.epoch_moved = true;
        }
        drop(core);
        tracing::info!(record = %at, %epoch, "a key epoch begins");
        self.work.notify_one();
    }

    /// The secrets from here on are not for this key.
    fn removed(&self, at: Position) {
        if self.removed.set(at).is_err() {
            return;
        }
        tracing::error!(record = %at,
            "this key was removed from the volume: nothing can be changed any more, and nothing \
             that is written from here on can be read; what was not committed is kept in the \
             journal: ask an owner (mictlan member add), then unmount and mount again");
        let mut core = self.core();
        if core.session.mode != Mode::Reader {
            core.session.mode = Mode::Lost;
        }
        drop(core);
        self.progress.send_modify(|progress| progress.stuck = Some(FsError::Denied));
        self.work.notify_one();
    }

    pub(super) fn is_member(&self) -> bool {
        self.removed.get().is_none()
    }

    /// For how long bytes are waited for. Peers refuse a key that may read nothing any more, and that
    /// is what its programs are told, soon.
    pub(super) fn patience(&self) -> Duration {
        let deadline = self.options.deadline;
        if self.is_member() { deadline } else { deadline.min(REMOVED_WAIT) }
    }

    /// What a program is told of a chunk that could not be had.
    pub(super) fn unread(&self, error: &GetError) -> FsError {
        if self.is_member() { not_read(error) } else { FsError::Denied }
    }

    /// What a mount that can commit nothing more answers.
    pub(super) fn lost_errno(&self) -> FsError {
        let denied = !self.is_member() || self.may_not_commit();
        if denied { FsError::Denied } else { FsError::Io }
    }

    /// `op` on chunks of the present epoch.
    pub(super) async fn resealed(&self, mut op: Op, moved: &mut Moved) -> Result<Op, FsError> {
        let (ino, extents): (Ino, &mut [Extent]) = match &mut op {
            Op::Write(write) => (write.ino, &mut write.extents),
            Op::Append(append) => (append.ino, &mut append.extents),
            // Nothing else names a chunk that is not in a record yet.
            _ => return Ok(op),
        };
        let copies = self.copies_for(ino).await?;
        for extent in extents {
            let new = match moved.get(&extent.chunk) {
                // Sealed for another file, which asks for fewer.
                Some(Some(put)) if put.copies < copies => {
                    Some(self.put_again(put.chunk, copies).await?)
                }
                Some(put) => put.clone(),
                None => self.seal_again(extent.chunk, copies).await?,
            };
            moved.insert(extent.chunk, new.clone());
            extent.chunk = new.map_or(extent.chunk, |put| put.chunk);
        }
        Ok(op)
    }

    async fn seal_again(&self, chunk: ChunkId, copies: Copies) -> Result<Option<Put>, FsError> {
        let failed = |why: String| {
            tracing::error!(%chunk, %why, "data waits to be sealed under the new keys");
            FsError::Io
        };
        let bytes = self.chunks.get(chunk, self.options.deadline).await;
        let bytes = bytes.map_err(|error| failed(error.to_string()))?;
        let header = Header::parse(&bytes).map_err(|error| failed(error.to_string()))?;
        let ring = self.ring();
        if header.epoch >= ring.current().epoch() {
            return Ok(None);
        }
        let opened = seal::open(&ring, chunk, &bytes).map_err(|error| failed(error.to_string()))?;
        let again = seal::seal(ring.current(), Kind::Data, header.codec, &[], &opened.plaintext);
        let again = again.map_err(|error| failed(error.to_string()))?;
        Ok(Some(self.chunks.put(again, copies, Charges::new())))
    }
}
