//! One entry of an earlier mount's journal, done again.
//!
//! Owns: whether it has its place, or is kept because another mount was there; what has to be on
//! its way before it.
//! Invariant: an entry is placed once, with its origin, or kept with it.

use super::choose::{Again, Bytes, Copied};
use super::overtaken::overtaken_by;
use crate::volume::Volume;
use crate::volume::data::STREAM_BYTES;
use crate::volume::epoch::Moved;
use crate::volume::file::{OpenFile, What};
use crate::volume::journal::{Holds, Journaled, Origin};
use crate::volume::local::Under;
use mictlan::id::{Ino, Position, SessionId};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{Allocate, AllocateMode, Op, SetTime};
use std::sync::Arc;
use tokio::time::timeout;

impl Volume {
    pub(super) async fn place_again(
        self: &Arc<Self>,
        origin: Origin,
        again: Again,
    ) -> Result<(), FsError> {
        match again {
            // An heir that died later than its commit made it; another name for it must not begin.
            Again::Op { op: Op::Make(make), .. } if self.is_there(make.ino).await? => Ok(()),
            Again::Op { now, base, op, copied } => {
                self.bytes_before(now, &op).await?;
                match copied {
                    Some(copied) => self.place_copy(origin, now, base, op, copied).await,
                    None => self.place_unless_overtaken(origin, now, base, op).await,
                }
            }
            Again::Data(bytes) => {
                let kept = match self.bytes_overtaken(origin, &bytes) {
                    _ if !self.is_there(bytes.ino).await? => true,
                    Some(at) => {
                        tracing::error!(inode = %bytes.ino, record = %at,
                            "bytes that were acknowledged are kept in a file of their own, because \
                             another mount changed theirs meanwhile");
                        true
                    }
                    None => false,
                };
                self.take_bytes(origin, bytes, kept).await
            }
        }
    }

    async fn place_unless_overtaken(
        &self,
        origin: Origin,
        now: Stamp,
        base: Position,
        op: Op,
    ) -> Result<(), FsError> {
        let (under, taken, origin) = (Under::Certification, origin, Some(origin));
        let holds = Holds { origin, ..Holds::default() };
        if let Some(at) = self.overtaken(taken, base, now, &op).await? {
            return self.refused_again(now, op, &overtaken_by(at), origin, under).await;
        }
        match self.place(&op, now, holds, under).await {
            Ok(_) => {
                self.forgotten_with(&op, taken.session).await;
                Ok(())
            }
            Err(error @ (FsError::Io | FsError::TimedOut | FsError::NoSpace)) => Err(error),
            Err(error) => self.refused_again(now, op, &error.to_string(), origin, under).await,
        }
    }

    /// A copy is made again where its source is what it was. Elsewhere what it had placed is placed.
    async fn place_copy(
        &self,
        origin: Origin,
        now: Stamp,
        base: Position,
        copy: Op,
        copied: Copied,
    ) -> Result<(), FsError> {
        let holds = Holds { origin: Some(origin), ..Holds::default() };
        if !self.source_overtaken(origin, base, now, &copy).await? {
            match self.place(&copy, now, holds, Under::Certification).await {
                Ok(_) => return Ok(()),
                Err(error @ (FsError::Io | FsError::TimedOut | FsError::NoSpace)) => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        let Copied { len, write } = copied;
        let (ino, kill_priv, offset) = (write.ino, write.kill_priv, write.end - len);
        let has: u64 = write.extents.iter().map(|extent| u64::from(extent.len)).sum();
        let again = Again::Op { now, base, op: Op::Write(write), copied: None };
        let Again::Op { op, .. } = self.again_in_this_epoch(again, &mut Moved::new()).await? else {
            unreachable!("it is one still")
        };
        if has < len && self.overtaken(origin, base, now, &op).await?.is_none() {
            // It may be done twice: the bytes, which have the origin, come after it.
            let zero = Allocate { ino, mode: AllocateMode::Zero, offset, len, kill_priv };
            let holds = Holds::default();
            let done = self.place(&Op::Allocate(zero), now, holds, Under::Certification).await;
            // A file that is gone has no place for the bytes either.
            if let Err(error @ (FsError::Io | FsError::TimedOut | FsError::NoSpace)) = done {
                return Err(error);
            }
        }
        self.place_unless_overtaken(origin, now, base, op).await
    }

    /// Bytes as they were written: into their file, or, where they have no place there, into one
    /// of their own.
    async fn take_bytes(
        self: &Arc<Self>,
        origin: Origin,
        bytes: Bytes,
        kept: bool,
    ) -> Result<(), FsError> {
        let Bytes { ino, place, mtime, kill_priv, bytes, .. } = bytes;
        let under = Under::Certification;
        let taking = if kept { self.file_for_bytes(ino, mtime, None, under).await? } else { ino };
        let charge = timeout(self.options.deadline, self.budget.charge(bytes.len()));
        let charge = charge.await.map_err(|_| FsError::TimedOut)?;
        let file = self.core().file(taking);
        let _order = file.order.lock().await;
        let (tail, waiting) = {
            let data = file.data();
            (!data.tail.is_empty(), data.waiting_bytes())
        };
        // One operation holds what one file lost, and not more than memory should.
        if kept || waiting >= STREAM_BYTES || tail && place.is_some() {
            self.seal_file(&file, What::Everything).await?;
        }
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        let at = Journaled { first: journal.next(), origin: Some(origin) };
        let mut data = file.data();
        match place {
            Some(offset) => {
                data.write(offset, &bytes, mtime, kill_priv, charge);
                data.journaled(at);
            }
            None => {
                data.append(&bytes, mtime, kill_priv, charge);
                data.tail.journaled(bytes.len() as u64, at);
            }
        }
        Ok(())
    }

    /// Who removed a file and had it open no more lost its bytes by that; not what another wrote.
    async fn forgotten_with(&self, op: &Op, by: SessionId) {
        let Op::Reap { ino } = op else { return };
        let Some(file) = self.core().files.get(ino).cloned() else { return };
        let _order = file.order.lock().await;
        let mut data = file.data();
        let mut places = data.journaled.into_iter().chain(data.tail.place());
        if places.all(|place| place.origin.is_some_and(|origin| origin.session == by)) {
            data.forget_bytes();
        }
    }

    /// Whether there is such an inode. Where that cannot be known now, nothing is decided.
    async fn is_there(&self, ino: Ino) -> Result<bool, FsError> {
        is_known_to_be_there(self.inode(ino).await)
    }

    /// Bytes that came back before `op` stay before it: what was cut off must not return, and a
    /// time that was set after a write outlives it.
    async fn bytes_before(&self, now: Stamp, op: &Op) -> Result<(), FsError> {
        let inos = match op {
            Op::SetAttr(set) if set.size.is_none() && set.mode.is_none() => {
                let file = self.core().files.get(&set.ino).cloned();
                let mtime = set.mtime.map(|mtime| match mtime {
                    SetTime::Now => now,
                    SetTime::At(stamp) => stamp,
                });
                if let (Some(file), Some(mtime)) = (file, mtime)
                    && let Some(pending) = &mut file.data().pending
                {
                    pending.mtime = mtime;
                }
                return Ok(());
            }
            Op::SetAttr(set) => vec![set.ino],
            Op::Write(write) => vec![write.ino],
            Op::Append(append) => vec![append.ino],
            Op::Allocate(allocate) => vec![allocate.ino],
            Op::Copy(copy) => vec![copy.from, copy.to],
            _ => return Ok(()),
        };
        for ino in inos {
            let Some(file) = self.core().files.get(&ino).cloned() else { continue };
            self.seal_now(&file).await?;
        }
        Ok(())
    }

    async fn seal_now(&self, file: &Arc<OpenFile>) -> Result<(), FsError> {
        let _order = file.order.lock().await;
        self.seal_file(file, What::Everything).await
    }
}

fn is_known_to_be_there<T>(looked: Result<T, FsError>) -> Result<bool, FsError> {
    match looked {
        Ok(_) => Ok(true),
        Err(FsError::Stale) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_that_cannot_be_looked_at_is_not_taken_for_gone() {
        assert_eq!(is_known_to_be_there(Ok(())), Ok(true));
        assert_eq!(is_known_to_be_there::<()>(Err(FsError::Stale)), Ok(false), "it is away");
        for error in [FsError::Io, FsError::TimedOut, FsError::NotFound] {
            assert_eq!(is_known_to_be_there::<()>(Err(error)), Err(error));
        }
    }
}
