//! Another session was first: what waits here is planned again on what is true now.
//!
//! Owns: the end of an attempt, and the second plan of what was in it.
//! Invariant: an operation that somebody waits for is given back to him; one that was acknowledged
//! is placed again, or, where it is refused now, kept as `recover` keeps it.

use super::Volume;
use super::journal::Entry;
use super::local::{Tried, Under, journal_failed};
use super::state::{Batch, Placed};
use crate::chunks::Charges;
use mictlan::id::Attempt;
use mictlan::meta::error::FsError;
use tokio::time::Instant;

impl Volume {
    /// After a refusal that ended the attempt.
    pub(super) async fn after_conflict(&self) -> Result<(), FsError> {
        let Some(batches) = self.take_back()? else { return Ok(()) };
        let deadline = Instant::now() + self.options.deadline;
        self.catch_up(deadline).await?;
        let mut puts = Vec::new();
        let mut again = Vec::new();
        for batch in batches {
            puts.extend(batch.puts);
            puts.extend(batch.inline.map(|sealed| self.chunks.put(sealed, Charges::new())));
            again.extend(batch.placed.into_iter().filter(|placed| !placed.waited_for));
        }
        for placed in again {
            self.place_second(placed).await?;
        }
        let mut core = self.core();
        if let Some(batch) = core.queue.back_mut() {
            batch.puts.extend(puts);
        }
        Ok(())
    }

    /// Takes everything that is not committed out of the view, and begins the next attempt.
    fn take_back(&self) -> Result<Option<Vec<Batch>>, FsError> {
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        let mut core = self.core();
        let batches: Vec<Batch> = core.queue.drain(..).collect();
        let first = batches.iter().flat_map(|batch| &batch.placed).map(|placed| placed.seq).min();
        let Some(first) = first else { return Ok(None) };
        let until = journal.next();
        let dropped = Entry::Dropped { from: first, until };
        journal.append(&dropped).map_err(|error| journal_failed(&error))?;
        core.view.drop_local(first.0);
        core.session.attempt = Attempt(core.session.attempt.0 + 1);
        core.session.n = 1;
        core.session.waiting = None;
        drop(core);
        self.progress.send_modify(|progress| {
            progress.conflicts += 1;
            progress.committed = progress.committed.max(until);
        });
        Ok(Some(batches))
    }

    async fn place_second(&self, placed: Placed) -> Result<(), FsError> {
        let Placed { now, covers, op, .. } = placed;
        loop {
            let tried = {
                let mut core = self.core();
                self.try_place(&mut core, &op, now, covers, Under::Certification)
            };
            match tried {
                Ok(Tried::Missing(node)) => self.fetch_node(node).await?,
                Ok(_) => return Ok(()),
                Err(error @ (FsError::Io | FsError::TimedOut | FsError::NoSpace)) => {
                    return Err(error);
                }
                Err(error) => return self.refused_again(now, op, error).await,
            }
        }
    }
}
