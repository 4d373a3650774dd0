//! Another session was first: what waits here is planned again on what is true now.
//!
//! Owns: the end of an attempt, and the second plan of what was in it.
//!
//! The order, and what a crash leaves at each step:
//! 1. what the other session did is applied here;
//! 2. what was refused, and all after it, is taken out of the view and of the batches;
//! 3. each of it that was acknowledged is planned again, into the journal and the view, with the
//!    number that it had (crash: the first plans count, and not those that name one of them);
//! 4. the journal notes that the first are void (crash: the second count).
//!
//! Invariant: an operation that somebody waits for is given back to him; one that was acknowledged
//! is placed again, or, where it is refused now, kept as `recover` keeps it. Until that is done
//! nothing else is placed, so that nothing is planned on a state in which it is missing; what
//! cannot be placed yet waits here and is tried again.

use super::Volume;
use super::epoch::Moved;
use super::journal::{Entry, Holds, Origin, Seq};
use super::local::{Tried, Under, journal_failed};
use super::recover::overtaken::overtaken_by;
use super::state::{Core, Mode, Placed};
use crate::chunks::{Charges, Put};
use mictlan::id::Attempt;
use mictlan::meta::error::FsError;
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::Op;
use std::collections::VecDeque;
use tokio::time::{Instant, timeout};

/// Operations between two attempts.
pub struct Replan {
    /// Those that were refused have these numbers.
    from: Seq,
    until: Seq,
    /// What is still to be placed, in order.
    again: VecDeque<Placed>,
    /// Chunks that they name.
    puts: Vec<Put>,
    /// Of an epoch that is over: what became of each chunk so far.
    moved: Option<Moved>,
    /// The oldest entry of the journal that they need.
    pub floor: Seq,
}

impl Volume {
    /// Before anything is proposed: what a refusal left to do is done.
    pub(super) async fn next_attempt(&self) -> Result<(), FsError> {
        if self.core().session.attempt_ended {
            self.replan().await?; // an epoch can begin in the midst of it
            self.catch_up(Instant::now() + self.options.deadline).await?; // step 1
            if self.mode() == Mode::Lost {
                return Err(self.lost_errno());
            }
            self.take_back()?; // step 2
        }
        self.replan().await
    }

    /// Takes everything that is not committed out of the view, and begins the next attempt.
    fn take_back(&self) -> Result<(), FsError> {
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        let mut core = self.core();
        assert!(core.replan.is_none(), "nothing is proposed while operations are planned again");
        let placed = || core.queue.iter().flat_map(|batch| &batch.placed);
        let until = journal.next();
        let from = placed().map(|placed| placed.seq).min().unwrap_or(until);
        let floor = core.queue.iter().map(|batch| batch.floor).min().unwrap_or(from);
        let moved = std::mem::take(&mut core.session.epoch_moved).then(Moved::new);
        let (is_new_epoch, epoch) = (moved.is_some(), core.session.epoch);
        let mut replan = Replan { from, until, again: VecDeque::new(), puts: vec![], moved, floor };
        let mut refused = Vec::new();
        for batch in std::mem::take(&mut core.queue) {
            replan.puts.extend(batch.puts);
            let put = |(sealed, copies)| self.chunks.put(sealed, copies, Charges::new());
            replan.puts.extend(batch.inline.map(put));
            // In a new epoch what they carry is sealed again.
            replan.puts.retain(|put| !is_new_epoch || put.epoch >= epoch);
            for placed in batch.placed {
                match placed.waited_for {
                    true => refused.push(placed.seq),
                    false => replan.again.push_back(placed),
                }
            }
        }
        core.refused.extend(refused);
        core.view.drop_local(from.0);
        core.session.attempt = Attempt(core.session.attempt.0 + 1);
        core.session.n = 1;
        core.session.attempt_ended = false;
        core.session.waiting = None;
        core.replan = Some(replan);
        Ok(())
    }

    /// Places what was taken back. After an error the rest waits for the next call.
    async fn replan(&self) -> Result<(), FsError> {
        loop {
            let next = match &self.core().replan {
                Some(replan) => replan.again.front().cloned(),
                None => return Ok(()),
            };
            let Some(placed) = next else { break };
            let placed = self.of_this_epoch(placed).await?;
            self.place_second(placed).await?; // step 3
        }
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        let mut core = self.core();
        let Some(Replan { from, until, puts, .. }) = core.replan.take() else { return Ok(()) };
        if let Err(error) = journal.append(&Entry::Dropped { from, until }) {
            // step 4
            let (again, moved, floor) = (VecDeque::new(), None, from);
            core.replan = Some(Replan { from, until, again, puts, moved, floor });
            return Err(journal_failed(&error));
        }
        for batch in &mut core.queue {
            batch.puts.extend_from_slice(&puts);
        }
        drop(core);
        self.progress.send_modify(|progress| {
            progress.conflicts += 1;
            progress.committed = progress.committed.max(until);
        });
        Ok(())
    }

    /// After an epoch, `placed` names chunks of the new one.
    async fn of_this_epoch(&self, placed: Placed) -> Result<Placed, FsError> {
        let moved = self.core().replan.as_mut().and_then(|replan| replan.moved.take());
        let Some(mut moved) = moved else { return Ok(placed) };
        let op = self.resealed(placed.op.clone(), &mut moved).await;
        if let Some(replan) = &mut self.core().replan {
            let new = moved.values().flatten();
            let known = |put: &Put| {
                let same = |known: &&Put| known.chunk == put.chunk && known.copies >= put.copies;
                replan.puts.iter().any(|known| same(&known))
            };
            let new: Vec<Put> = new.filter(|put| !known(put)).cloned().collect();
            replan.puts.extend(new);
            replan.moved = Some(moved);
        }
        Ok(Placed { op: op?, ..placed })
    }

    async fn place_second(&self, placed: Placed) -> Result<(), FsError> {
        let Placed { seq, now, holds, op, leased, .. } = placed;
        let holds = holds.again_for(Origin { session: self.core().session.id, seq });
        // Of an earlier mount's programs nobody waits to hear what others did.
        if let Some(origin) = holds.origin
            && let Some(at) = self.overtaken_again(origin, now, &op).await?
        {
            return self.kept_instead(now, op, &overtaken_by(at), holds).await;
        }
        loop {
            let tried = {
                let mut core = self.core();
                let tried = self.try_place(&mut core, &op, now, holds, Under::Again);
                if let Ok(Tried::Done(..)) = tried {
                    let done = core.replan.as_mut().map(|replan| {
                        replan.again.pop_front();
                        replan.floor
                    });
                    if let (Some(batch), Some(floor)) = (core.queue.back_mut(), done) {
                        batch.floor = batch.floor.min(floor);
                        batch.leased |= leased;
                    }
                }
                tried
            };
            match tried {
                Ok(Tried::Missing(node)) => self.fetch_node(node).await?,
                Ok(_) => return Ok(()),
                Err(error @ (FsError::Io | FsError::TimedOut | FsError::NoSpace)) => {
                    return Err(error);
                }
                Err(error) => return self.kept_instead(now, op, &error.to_string(), holds).await,
            }
        }
    }

    /// The next of those that are planned again is kept, and not done.
    async fn kept_instead(
        &self,
        now: Stamp,
        op: Op,
        why: &str,
        holds: Holds,
    ) -> Result<(), FsError> {
        self.refused_again(now, op, why, holds.origin, Under::Again).await?;
        if let Some(replan) = &mut self.core().replan {
            replan.again.pop_front();
        }
        Ok(())
    }

    /// Waits until operations may be placed.
    pub(super) async fn replanned(&self) -> Result<(), FsError> {
        self.wait_while(|core| core.replan.is_some()).await
    }

    /// Waits until what is in the batches is all that is not committed.
    pub(super) async fn attempted_again(&self) -> Result<(), FsError> {
        self.wait_while(Core::is_between_attempts).await
    }

    async fn wait_while(&self, goes_on: impl Fn(&Core) -> bool) -> Result<(), FsError> {
        let mut progress = self.progress.subscribe();
        let wait = async {
            while goes_on(&self.core()) {
                let news = progress.changed().await.map(|()| progress.borrow_and_update().stuck);
                match news {
                    Ok(Some(error)) => return Err(error),
                    Ok(None) => {}
                    Err(_) => return Err(FsError::Io),
                }
            }
            Ok(())
        };
        timeout(self.options.deadline, wait).await.map_err(|_| FsError::TimedOut)?
    }
}
