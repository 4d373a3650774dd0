//! What an earlier mount of this host acknowledged and did not commit comes back here.
//!
//! Owns: the fence of that mount's session, the choice of its entries that were not committed, and
//! what happens to those that the namespace now refuses.
//!
//! The order, and what a crash leaves at each step:
//! 1. the old session is fenced, naming this one: it can commit nothing any more (crash: the next
//!    mount is told who was named, and fences that one, naming itself);
//! 2. its entries after the last accepted request are placed again, into this session's journal,
//!    each with its origin (crash: both journals are there, and both sessions are taken over);
//! 3. they are committed (crash: what the next mount is told of this session's last request says
//!    which origins are done; the others are placed again from where they come);
//! 4. the old journals are removed, the oldest first (crash: what an heir's journal has of one that
//!    is gone is committed).
//!
//! A session can take one other's place, and with that the places which that one took. Journals of
//! sessions that have nothing to do with each other need a session each: `recover` does what it
//! can and says that there are more.
//!
//! Invariant: an acknowledged entry is committed once, or kept as `keep` says.

mod again;
mod choose;
pub(super) mod keep;
pub(super) mod overtaken;
mod plans;

use self::choose::{Again, Known, choose, chunks_of, done, only_on_peers};
use self::overtaken::oldest_base;
use self::plans::counting;
use super::Volume;
use super::epoch::Moved;
use super::journal::{Left, Origin, Seq};
use super::start::OpenError;
use crate::chunks::{Charges, GetError};
use crate::link::LinkError;
use mictlan::cluster::place::Copies;
use mictlan::cluster::refusal::Refusal;
use mictlan::cluster::state::Outcome;
use mictlan::id::{Attempt, ChunkId, Epoch, Position, SessionId};
use mictlan::ledger::record::body::{Body, Fence};
use mictlan::meta::error::FsError;
use mictlan::seal::Sealed;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// So long a peer is asked again which cannot be asked.
const ASKED_FOR: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// How the session of a journal stands.
enum Fenced {
    /// It can commit nothing more.
    Now(Past),
    /// Nobody knows what it committed: so many sessions were fenced since.
    Forgotten,
    /// This session has another's place already.
    NotByThis(String),
}

/// What became of a journal.
enum Taken {
    Over(Ended),
    /// There was nothing in it.
    Empty,
    /// It stays for somebody to look at.
    NotAtAll,
    /// Another session can do it.
    NotByThis(String),
}

/// What is known of a session that was fenced.
struct Past {
    /// Its last accepted request.
    last: Option<(Attempt, u64)>,
    /// Itself, those that went on in its place, and this one.
    lineage: HashSet<SessionId>,
}

/// A journal whose session commits nothing more.
struct Ended {
    left: Left,
    past: Past,
    /// Of the chunks that it names, those that are on the peers.
    durable: HashSet<ChunkId>,
}

impl Volume {
    /// Whether that was all of them. If not, another session goes on: each one does at least one.
    pub(super) async fn recover(self: &Arc<Self>, left: Vec<Left>) -> Result<bool, OpenError> {
        let (mut ended, mut empty, mut refused) = (Vec::new(), false, None);
        for left in left {
            match self.end_left(left).await? {
                Taken::Over(one) => ended.push(one),
                Taken::Empty => empty = true,
                Taken::NotAtAll => {}
                Taken::NotByThis(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if ended.is_empty() && !empty => return Err(OpenError::TakeOver(why)),
            _ if ended.is_empty() => {}
            _ => self.take_over(ended).await?,
        }
        self.watch_no_more();
        Ok(refused.is_none())
    }

    async fn end_left(&self, mut left: Left) -> Result<Taken, OpenError> {
        let session = left.about.session;
        if left.unread_bytes > 0 {
            tracing::warn!(%session, bytes = left.unread_bytes,
                "the journal of an earlier mount ends in bytes that are not whole; \
                 what stands before them is replayed");
        }
        if left.entries.is_empty() {
            left.remove()?;
            return Ok(Taken::Empty);
        }
        left.entries = counting(left.entries, session);
        // First, because it can fail: then nobody was named as an heir in vain.
        let durable = self.durable_of(&left).await?;
        match self.fence(session).await? {
            Fenced::Now(past) => Ok(Taken::Over(Ended { left, past, durable })), // step 1
            Fenced::NotByThis(why) => Ok(Taken::NotByThis(why)),
            Fenced::Forgotten => {
                tracing::warn!(%session, dir = %left.dir().display(),
                    "the network does not know any more what this journal's mount had committed: \
                     it stays as it is, and nothing of it is done again; what it names may be in \
                     the volume already. Move the directory away when it is not needed");
                Ok(Taken::NotAtAll)
            }
        }
    }

    async fn take_over(self: &Arc<Self>, ended: Vec<Ended>) -> Result<(), OpenError> {
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        journal.keep_all(true);
        let done =
            ended.iter().flat_map(|ended| done(&ended.left.entries, ended.past.last)).collect();
        // The newest first: what an heir did besides taking over is what the rest goes on from.
        for ended in ended.iter().rev() {
            self.place_left(ended, &done).await?; // step 2
        }
        let committed = || self.progress.borrow().committed;
        while_it_gets_on(committed, || self.flush(self.options.deadline)).await?; // step 3
        for Ended { left, .. } in ended {
            left.remove()?; // step 4
        }
        journal.keep_all(false);
        self.trim_journal();
        Ok(())
    }

    async fn place_left(
        self: &Arc<Self>,
        ended: &Ended,
        done: &HashSet<Origin>,
    ) -> Result<(), OpenError> {
        let Ended { left, past: Past { last, lineage }, durable } = ended;
        let session = left.about.session;
        let known = Known { session, last: *last, durable, done };
        let again = choose(&left.entries, &known);
        self.look_back(session, lineage.clone(), oldest_base(&again)).await?;
        tracing::info!(%session, ?last, entries = left.entries.len(), durable = durable.len(),
            again = again.len(), "taking over the journal of an earlier mount");
        let mut moved = Moved::new();
        for (seq, entry) in again {
            let entry = self.again_in_this_epoch(entry, &mut moved).await?;
            self.place_again(Origin { session, seq }, entry).await?;
        }
        Ok(())
    }

    /// Ends the old session in favour of this one. An
    /// heir that did not get to the end is followed: without its place, what the old session made
    /// would not be this one's to commit.
    async fn fence(&self, old: SessionId) -> Result<Fenced, OpenError> {
        let own = self.core().session.id;
        let (mut session, mut lineage) = (old, HashSet::from([own, old]));
        let fenced = loop {
            match self.order_fence(session, own).await? {
                Outcome::Accepted { position, .. } | Outcome::Repeated { position } => {
                    break position;
                }
                Outcome::Refused(Refusal::Fenced { successor: Some(heir), .. })
                    if lineage.insert(heir) =>
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
        let since = Position(fenced.0 + 1);
        self.wait_until_applied(since).await?;
        let last = self.network.last_of(old, since, self.options.deadline).await?;
        Ok(Fenced::Now(Past { last, lineage }))
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

    /// Which of the chunks that the journal's operations name are on enough peers: a commit may
    /// name no others, and one peer's word may be a lie. Of those that the journal has no bytes of,
    /// too few copies become enough; one that nobody has counts as lost, unless a peer is away.
    async fn durable_of(&self, left: &Left) -> Result<HashSet<ChunkId>, OpenError> {
        let named = left.entries.iter().flat_map(|(_, entry)| chunks_of(entry));
        let named: HashSet<ChunkId> = named.collect();
        let named: Vec<ChunkId> = named.into_iter().collect();
        let nowhere_else = left.entries.iter().flat_map(|(_, entry)| only_on_peers(entry));
        let nowhere_else: HashSet<ChunkId> = nowhere_else.collect();
        let (found, failed) = self.found_of(&named, &nowhere_else).await;
        let copies = self.chunks.copies();
        let need = self.chunks.need(copies);
        let enough = found.iter().filter(|(_, peers)| **peers >= need);
        let mut durable: HashSet<ChunkId> = enough.map(|(chunk, _)| *chunk).collect();
        for chunk in nowhere_else {
            if durable.contains(&chunk) {
                continue;
            }
            if found.contains_key(&chunk) && self.made_durable(chunk, copies).await? {
                durable.insert(chunk);
            } else if let Some(error) = &failed {
                return Err(OpenError::TakeOver(format!(
                    "it names chunks that a peer may have which cannot be asked ({error}): start \
                     that peer, then mount again"
                )));
            }
        }
        Ok(durable)
    }

    /// How many peers say that they have each chunk, and why one could not be asked. A peer may
    /// have begun to serve a moment ago, and a connection may break: while one that is `needed` is
    /// not found, each is asked more than once.
    async fn found_of(
        &self,
        named: &[ChunkId],
        needed: &HashSet<ChunkId>,
    ) -> (HashMap<ChunkId, usize>, Option<LinkError>) {
        let until = Instant::now() + ASKED_FOR.min(self.options.deadline);
        loop {
            let (found, failed) = self.chunks.have(named).await;
            let all = needed.iter().all(|chunk| found.contains_key(chunk));
            if all || failed.is_none() || Instant::now() >= until {
                return (found, failed);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether a chunk that some peer says it has could be read, and is on enough peers now.
    async fn made_durable(&self, chunk: ChunkId, copies: Copies) -> Result<bool, OpenError> {
        let bytes = match self.chunks.get(chunk, self.options.deadline).await {
            Ok(bytes) => bytes,
            Err(GetError::NoGoodCopy { failed, .. }) => {
                tracing::warn!(%chunk, %failed, "a peer says that it has a chunk, and nobody does");
                return Ok(false);
            }
            Err(error) => {
                let why = format!("{error}: start the peers that are away, then mount again");
                return Err(OpenError::TakeOver(why));
            }
        };
        let put = self.chunks.put(Sealed { address: chunk, bytes }, copies, Charges::new());
        self.wait_for(&[put]).await?;
        Ok(true)
    }

    /// What was sealed in an epoch that is over is sealed again, and on its peers, before a commit
    /// may name it.
    async fn again_in_this_epoch(&self, again: Again, moved: &mut Moved) -> Result<Again, FsError> {
        match again {
            Again::Op { now, base, op, copied } if self.ring().current().epoch() > Epoch(1) => {
                let op = self.resealed(op, moved).await?;
                let puts: Vec<_> = moved.values().flatten().cloned().collect();
                self.wait_for(&puts).await?;
                Ok(Again::Op { now, base, op, copied })
            }
            again => Ok(again),
        }
    }
}

/// Tries again as long as each try commits something: the deadline is not for all of it.
async fn while_it_gets_on<F>(
    committed: impl Fn() -> Seq,
    attempt: impl Fn() -> F,
) -> Result<(), FsError>
where
    F: Future<Output = Result<(), FsError>>,
{
    loop {
        let before = committed();
        match attempt().await {
            Err(FsError::TimedOut) if committed() > before => {}
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn each_commit_of_what_is_taken_over_has_the_deadline() {
        for (needed, gets_to) in [(3, 3), (9, 5)] {
            let committed = Cell::new(0);
            let tried = while_it_gets_on(
                || Seq(committed.get()),
                || async {
                    let next = committed.get() + 1;
                    if next <= 5 {
                        committed.set(next);
                    }
                    if next >= needed { Ok(()) } else { Err(FsError::TimedOut) }
                },
            );
            let enough = needed <= 5;
            assert_eq!(tried.await, if enough { Ok(()) } else { Err(FsError::TimedOut) });
            assert_eq!(committed.get(), gets_to);
        }
    }
}
