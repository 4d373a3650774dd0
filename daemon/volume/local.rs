//! One operation on the namespace: planned, journaled, in the view, then answered.
//!
//! Owns: that order, and whether an operation is answered at once or after its commit.
//! Invariant: an operation is in the journal before it is in the view, and in the view before it
//! is answered.

use super::journal::{Entry, Holds, JournalError, Seq};
use super::state::{BATCHES_MAX, Core, Mode, Placed};
use super::{Volume, commit::Committed};
use mictlan::id::{Ino, Name};
use mictlan::meta::error::{FsError, ReadError};
use mictlan::meta::inode::{Inode, Stamp};
use mictlan::meta::key::Key;
use mictlan::meta::namespace::{self, Env, Op, Planned, Reply, Write};
use mictlan::meta::tree::NodeRef;
use mictlan::meta::value::Value;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// A full disk is told to everybody who changes something, and to the log so often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What one try at an operation gave.
pub(super) enum Tried {
    Done(Reply, Option<Seq>),
    Missing(NodeRef),
    /// The lease went between the question and now: the operation has to wait for its commit.
    LeaseGone,
    /// What was refused is planned again first.
    Replanning,
}

/// What an operation on the way into the view relies on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Under {
    Lease,
    /// It was acknowledged already, or its acknowledgement waits for more than this.
    Certification,
    /// Its caller waits for its commit.
    Wait,
    /// It was acknowledged and refused, and is planned again.
    Again,
}

impl Volume {
    /// Runs `op` as of now. See `run_at`.
    pub(super) async fn run(&self, op: Op) -> Result<Reply, FsError> {
        self.run_at(op, now()).await
    }

    /// Runs `op` with the time `now`: under the lease it is answered from here and committed
    /// behind; without it, it is answered when its commit is ordered.
    pub(super) async fn run_at(&self, op: Op, now: Stamp) -> Result<Reply, FsError> {
        self.believed()?;
        self.not_too_far_behind().await?;
        match self.mode() {
            Mode::Leased { .. } => {}
            Mode::Synchronous => return self.run_synchronously(&op, now).await,
            Mode::Reader => return Err(self.read_only()),
            Mode::Lost => return Err(self.lost_errno()),
        }
        loop {
            let tried =
                self.try_place(&mut self.core(), &op, now, Holds::default(), Under::Lease)?;
            match tried {
                Tried::Done(reply, _) => {
                    self.work.notify_one();
                    return Ok(reply);
                }
                Tried::Missing(node) => self.fetch_node(node).await?,
                Tried::LeaseGone => return self.run_synchronously(&op, now).await,
                Tried::Replanning => self.replanned().await?,
            }
        }
    }

    /// Without a lease: catch up, plan, commit, and on a conflict all of it again.
    async fn run_synchronously(&self, op: &Op, now: Stamp) -> Result<Reply, FsError> {
        let deadline = Instant::now() + self.options.deadline;
        let _turn = self.turn.lock().await;
        loop {
            self.catch_up(deadline).await?;
            let (reply, seq) = self.place(op, now, Holds::default(), Under::Wait).await?;
            let Some(seq) = seq else { return Ok(reply) };
            match self.commit_now(seq, deadline).await? {
                Committed::Yes => return Ok(reply),
                // Another session was first with something that this relied on; its commit is
                // ours to see now, and the operation's answer may be another.
                Committed::Conflict => {}
            }
            if Instant::now() >= deadline {
                return Err(FsError::TimedOut);
            }
        }
    }

    /// Plans `op` on the view and puts it into the journal, the view and the batch. The number is
    /// `None` when there was nothing to change.
    pub(super) async fn place(
        &self,
        op: &Op,
        now: Stamp,
        holds: Holds,
        under: Under,
    ) -> Result<(Reply, Option<Seq>), FsError> {
        loop {
            let tried = self.try_place(&mut self.core(), op, now, holds, under)?;
            match tried {
                Tried::Done(reply, seq) => return Ok((reply, seq)),
                Tried::Missing(node) => self.fetch_node(node).await?,
                Tried::LeaseGone => unreachable!("no lease was relied on"),
                Tried::Replanning => self.replanned().await?,
            }
        }
    }

    pub(super) fn try_place(
        &self,
        core: &mut Core,
        op: &Op,
        now: Stamp,
        holds: Holds,
        under: Under,
    ) -> Result<Tried, FsError> {
        if under == Under::Lease && !matches!(core.session.mode, Mode::Leased { .. }) {
            return Ok(Tried::LeaseGone);
        }
        // What is in the journal keeps its base: placed now, it would seem to be newer than what others
        // did meanwhile.
        if core.session.mode == Mode::Lost {
            return Err(self.lost_errno());
        }
        if core.replan.is_some() && under != Under::Again {
            return Ok(Tried::Replanning);
        }
        let can_be_refused = matches!(under, Under::Lease | Under::Wait);
        // What nobody waits for may come too late: the next mount does it.
        if can_be_refused && !matches!(op, Op::Reap { .. }) {
            self.takes_changes()?;
        }
        let ring = self.ring();
        let env = Env { now, dirent_key: ring.dirent_key() };
        let planned = match namespace::plan(&core.view, &env, op) {
            Ok(planned) => planned,
            Err(ReadError::Missing(node)) => return Ok(Tried::Missing(node)),
            Err(ReadError::Refused(error)) => return Err(error),
            Err(ReadError::Broken(node)) => return Err(broken(node)),
        };
        if planned.writes.is_empty() {
            return Ok(Tried::Done(planned.reply, None));
        }
        let base = core.view.position();
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        let entry = Entry::Op { now, base, holds, op: op.clone() };
        let then = |copy| {
            let (len, write) = copied(op, now, &planned)?;
            Some(Entry::Copied { copy, len, write })
        };
        let journaled = match can_be_refused {
            true => journal.take_in_with(&entry, then),
            false => journal.append_with(&entry, then),
        };
        let (seq, last) = journaled.map_err(|error| journal_failed(&error))?;
        let until = Seq(last.0 + 1);
        let made = match (op, &planned.reply) {
            (Op::Make(_), Reply::Entry { ino, .. }) => Some(*ino),
            _ => None,
        };
        let writes = Arc::new(planned.writes);
        core.view.push_local(seq.0, writes.clone());
        let leased = under != Under::Wait && matches!(core.session.mode, Mode::Leased { .. });
        let batch = core.batch(&planned.facts, seq);
        batch.gathered.add(&writes, planned.facts, made);
        let (op, waited_for) = (op.clone(), under == Under::Wait);
        batch.leased |= leased;
        batch.placed.push(Placed { seq, now, holds, op, waited_for, leased });
        batch.until = until;
        Ok(Tried::Done(planned.reply, Some(seq)))
    }

    /// Waits while more is uncommitted than memory should hold: writers are slowed, not buffered.
    pub(super) async fn not_too_far_behind(&self) -> Result<(), FsError> {
        let behind = || {
            let tight = self.journal.as_ref().is_some_and(|journal| journal.is_tight());
            tight || self.core().queue.len() >= BATCHES_MAX || self.overlay_is_full()
        };
        if !behind() {
            return Ok(());
        }
        self.work.notify_one();
        let mut progress = self.progress.subscribe();
        let wait = async {
            while behind() {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(self.options.deadline, wait).await.map_err(|_| FsError::TimedOut)
    }

    /// An answer from the view, fetching what nodes it needs.
    pub(super) async fn ask<T>(
        &self,
        question: impl Fn(&Core) -> Result<T, ReadError>,
    ) -> Result<T, FsError> {
        loop {
            let answer = { question(&self.core()) };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(ReadError::Refused(error)) => return Err(error),
                Err(ReadError::Missing(node)) => self.fetch_node(node).await?,
                Err(ReadError::Broken(node)) => return Err(broken(node)),
            }
        }
    }

    /// The inode with what is written and not in the view yet.
    pub(super) async fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        loop {
            let file = self.core().files.get(&ino).cloned();
            let answer = {
                let data = file.as_ref().map(|file| file.data());
                let inode = namespace::read::getattr(&self.core().view, ino);
                inode.map(|mut inode| {
                    if let Some(data) = &data {
                        data.show(&mut inode);
                    }
                    inode
                })
            };
            match answer {
                Ok(inode) => return Ok(inode),
                Err(ReadError::Refused(error)) => return Err(error),
                Err(ReadError::Missing(node)) => self.fetch_node(node).await?,
                Err(ReadError::Broken(node)) => return Err(broken(node)),
            }
        }
    }

    pub(super) async fn find(&self, dir: Ino, name: &Name) -> Result<(Ino, Inode), FsError> {
        let ring = self.ring();
        let (ino, _) = self
            .ask(|core| namespace::read::lookup(&core.view, ring.dirent_key(), dir, name))
            .await?;
        Ok((ino, self.inode(ino).await?))
    }

    pub(super) fn mode(&self) -> Mode {
        let core = self.core();
        match core.session.mode {
            // A lease that ran out without an answer from the leader is none.
            Mode::Leased { until } if until <= Instant::now() => Mode::Synchronous,
            mode => mode,
        }
    }
}

/// Of a copy: how many bytes it placed, and which extents.
fn copied(op: &Op, mtime: Stamp, planned: &Planned) -> Option<(u64, Write)> {
    let (Op::Copy(copy), Reply::Copied { len, .. }) = (op, &planned.reply) else { return None };
    let range = copy.to_offset..copy.to_offset + len;
    let extents = planned.writes.puts().filter_map(|(key, value)| match (key, value) {
        (Key::Extent { ino, offset }, Value::Extent(extent))
            if ino == copy.to && range.contains(&offset) =>
        {
            Some(*extent)
        }
        _ => None,
    });
    let (ino, extents, kill_priv) = (copy.to, extents.collect(), copy.kill_priv);
    Some((*len, Write { ino, extents, end: range.end, mtime, kill_priv }))
}

/// A tree node that contradicts its parent: whoever built the root is to be named.
pub(super) fn broken(node: NodeRef) -> FsError {
    tracing::error!(chunk = %node.address, "a tree node contradicts the one that refers to it");
    FsError::Io
}

pub(super) fn journal_failed(error: &JournalError) -> FsError {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().expect("nothing panics while it is locked");
    if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
        *said = Some(Instant::now());
        tracing::error!(%error,
            "a change was refused, and nothing of it was done; changes are taken again when \
             commits have given back room, or there is more on that disk");
    }
    match error.is_full() {
        true => FsError::NoSpace,
        false => FsError::Io,
    }
}

/// The time of day, as files carry it.
pub(super) fn now() -> Stamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Stamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}
