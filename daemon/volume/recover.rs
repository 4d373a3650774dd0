//! What an earlier mount of this host acknowledged and did not commit comes back here.
//!
//! Owns: the fence of that mount's session, the choice of its entries that were not committed, and
//! what happens to those that the namespace now refuses.
//!
//! The order, and what a crash leaves at each step:
//! 1. the old session is fenced, naming this one: it can commit nothing any more (crash: the next
//!    mount is told who was named, and fences that one, naming itself);
//! 2. its entries after the last accepted request are placed again, into this session's journal
//!    (crash: both journals are there; the second replay finds what this session committed);
//! 3. they are committed (crash: the old journal is replayed once more; what it made is there and
//!    is not made again, bytes at their places are written once more, appended ones are appended
//!    once more, and a name that went meanwhile is a refused operation);
//! 4. the old journal is removed.
//!
//! A session can take one other's place, and with that the places which that one took. Journals of
//! sessions that have nothing to do with each other need a session each: `recover` does what it
//! can and says that there are more.
//!
//! Invariant: an acknowledged entry is committed again, or kept as `keep` says.

mod choose;
pub(super) mod keep;

use self::choose::{Again, choose, chunks_of, only_on_peers};
use super::Volume;
use super::epoch::Moved;
use super::file::{OpenFile, What};
use super::journal::Left;
use super::local::Under;
use super::start::OpenError;
use mictlan::cluster::refusal::Refusal;
use mictlan::cluster::state::Outcome;
use mictlan::id::{Attempt, ChunkId, Epoch, Ino, Position, SessionId};
use mictlan::ledger::record::body::{Body, Fence};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{Op, SetTime};
use mictlan::wire::{Answer, Query};
use std::collections::HashSet;
use std::sync::Arc;

/// How the session of a journal stands.
enum Fenced {
    /// It can commit nothing more; its last accepted request.
    Now(Option<(Attempt, u64)>),
    /// Nobody knows what it committed: so many sessions were fenced since.
    Forgotten,
    /// This session has another's place already.
    NotByThis(String),
}

/// What became of a journal.
enum Taken {
    Over,
    /// It stays for somebody to look at.
    NotAtAll,
    /// Another session can do it.
    NotByThis(String),
}

impl Volume {
    /// Whether that was all of them. If not, another session goes on: each one does at least one.
    pub(super) async fn recover(self: &Arc<Self>, left: Vec<Left>) -> Result<bool, OpenError> {
        let (mut done, mut refused) = (0, None);
        for left in left {
            match self.recover_one(left).await? {
                Taken::Over => done += 1,
                Taken::NotAtAll => {}
                Taken::NotByThis(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if done == 0 => Err(OpenError::TakeOver(why)),
            refused => Ok(refused.is_none()),
        }
    }

    async fn recover_one(self: &Arc<Self>, left: Left) -> Result<Taken, OpenError> {
        let session = left.about.session;
        if left.unread_bytes > 0 {
            tracing::warn!(%session, bytes = left.unread_bytes,
                "the journal of an earlier mount ends in bytes that are not whole; \
                 what stands before them is replayed");
        }
        if left.entries.is_empty() {
            left.remove()?;
            return Ok(Taken::Over);
        }
        // First, because it can fail: then nobody was named as an heir in vain.
        let durable = self.durable_of(&left).await?;
        let last = match self.fence(session).await? {
            Fenced::Now(last) => last, // step 1
            Fenced::NotByThis(why) => return Ok(Taken::NotByThis(why)),
            Fenced::Forgotten => {
                tracing::warn!(%session, dir = %left.dir().display(),
                    "the network does not know any more what this journal's mount had committed: \
                     it stays as it is, and nothing of it is done again; what it names may be in \
                     the volume already. Move the directory away when it is not needed");
                return Ok(Taken::NotAtAll);
            }
        };
        let again = choose(&left.entries, last, &durable);
        let count = again.len();
        tracing::info!(%session, ?last, entries = left.entries.len(), durable = durable.len(), count,
            "taking over the journal of an earlier mount");
        let mut moved = Moved::new();
        for entry in again {
            let entry = self.again_in_this_epoch(entry, &mut moved).await?;
            self.place_again(entry).await?; // step 2
        }
        self.flush(self.options.deadline).await?; // step 3
        if count > 0 {
            tracing::info!(%session, count, "what an earlier mount had not committed is committed");
        }
        left.remove()?; // step 4
        Ok(Taken::Over)
    }

    /// Ends the old session in favour of this one: the last request of it that was accepted. An
    /// heir that did not get to the end is followed: without its place, what the old session made
    /// would not be this one's to commit.
    async fn fence(&self, old: SessionId) -> Result<Fenced, OpenError> {
        let own = self.core().session.id;
        let (mut session, mut seen) = (old, HashSet::from([own]));
        let fenced = loop {
            match self.order_fence(session, own).await? {
                Outcome::Accepted { position, .. } | Outcome::Repeated { position } => {
                    break position;
                }
                Outcome::Refused(Refusal::Fenced { successor: Some(heir), .. })
                    if seen.insert(heir) =>
                {
                    session = heir;
                }
                Outcome::Refused(Refusal::Fenced { at, .. }) => break at,
                Outcome::Refused(Refusal::SessionEnded { session: ended }) if ended != own => {
                    return Ok(Fenced::Forgotten);
                }
                Outcome::Refused(refusal) => {
                    let why = format!("session {session} could not be fenced: {refusal}");
                    return match refusal {
                        Refusal::UnfitSuccessor { .. } => Ok(Fenced::NotByThis(why)),
                        _ => Err(OpenError::TakeOver(why)),
                    };
                }
                other => {
                    let why = format!("a fence was answered with {other:?}");
                    return Err(OpenError::Ledger(why));
                }
            }
        };
        self.wait_until_applied(Position(fenced.0 + 1)).await?;
        match self.network.query(Query::LastOf(old), self.options.deadline).await? {
            Answer::LastOf(last) => Ok(Fenced::Now(last)),
            _ => Err(OpenError::Ledger("a peer answered another question".to_owned())),
        }
    }

    async fn order_fence(&self, old: SessionId, heir: SessionId) -> Result<Outcome, OpenError> {
        let body = Body::Fence(Fence {
            reason: "its mount ended without closing it".to_owned(),
            session: old,
            successor: Some(heir),
            volume: self.id,
        });
        let sign = |req| Ok::<_, OpenError>(self.sign(req, body.clone())?.into());
        self.network.order(self.options.deadline, sign).await
    }

    /// Which of the chunks that the journal's operations name are on the peers. One that cannot be
    /// found while a peer is away counts as lost only if the journal has its bytes too.
    async fn durable_of(&self, left: &Left) -> Result<HashSet<ChunkId>, OpenError> {
        let named = left.entries.iter().flat_map(|(_, entry)| chunks_of(entry));
        let named: HashSet<ChunkId> = named.collect();
        let (found, failed) = self.chunks.have(named.into_iter().collect()).await;
        let nowhere_else = left.entries.iter().flat_map(|(_, entry)| only_on_peers(entry));
        match failed {
            Some(error) if nowhere_else.into_iter().any(|chunk| !found.contains(&chunk)) => {
                Err(OpenError::TakeOver(format!(
                    "it names chunks that a peer may have which cannot be asked ({error}): start \
                     that peer, then mount again"
                )))
            }
            _ => Ok(found),
        }
    }

    /// What was sealed in an epoch that is over is sealed again, and on its peers, before a commit
    /// may name it.
    async fn again_in_this_epoch(&self, again: Again, moved: &mut Moved) -> Result<Again, FsError> {
        match again {
            Again::Op(now, op) if self.ring().current().epoch() > Epoch(1) => {
                let op = self.resealed(op, moved).await?;
                let puts: Vec<_> = moved.values().flatten().cloned().collect();
                self.wait_for(&puts).await?;
                Ok(Again::Op(now, op))
            }
            again => Ok(again),
        }
    }

    async fn place_again(self: &Arc<Self>, again: Again) -> Result<(), FsError> {
        match again {
            // An heir that died later than its commit made it; another name for it must not begin.
            Again::Op(_, Op::Make(make)) if self.is_there(make.ino).await? => Ok(()),
            Again::Op(now, op) => {
                self.bytes_before(now, &op).await?;
                match self.place(&op, now, Under::Certification).await {
                    Ok(_) => Ok(()),
                    Err(error @ (FsError::Io | FsError::TimedOut | FsError::NoSpace)) => Err(error),
                    Err(error) => self.refused_again(now, op, error, Under::Certification).await,
                }
            }
            Again::Data { ino, place, mtime, kill_priv, bytes } => {
                let under = Under::Certification;
                let there = self.is_there(ino).await?;
                let ino = if there { ino } else { self.file_for_bytes(ino, mtime, under).await? };
                let charge = self.budget.charge(bytes.len()).await;
                let file = self.core().file(ino);
                match place {
                    Some(offset) => {
                        if !file.data().tail.is_empty() {
                            self.seal_now(&file).await?;
                        }
                        file.data().write(offset, &bytes, mtime, kill_priv, charge);
                    }
                    None => file.data().append(&bytes, mtime, kill_priv, charge),
                }
                Ok(())
            }
        }
    }

    /// Whether there is such an inode. Where that cannot be known now, nothing is decided.
    async fn is_there(&self, ino: Ino) -> Result<bool, FsError> {
        match self.inode(ino).await {
            Ok(_) => Ok(true),
            Err(FsError::Stale) => Ok(false),
            Err(error) => Err(error),
        }
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
