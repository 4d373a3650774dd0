//! What other sessions committed after an earlier mount's entries were planned.
//!
//! Owns: the commits that this volume applies while journals are taken over, and those of the log
//! before them; the question whether an entry would undo one.
//! Never: decides; `cluster::since` does.
//! Invariant: from the oldest base that is asked about on, every commit was looked at.

use super::choose::{Again, Bytes};
use crate::volume::Volume;
use crate::volume::journal::{Origin, Seq};
use crate::volume::past::What;
use mictlan::cluster::since::{About, Shown, Since};
use mictlan::id::{Position, SessionId};
use mictlan::ledger::record::body::Commit;
use mictlan::ledger::tile::WIDTH;
use mictlan::meta::error::{FsError, ReadError};
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{self, Env, Op};
use mictlan::meta::tag::{Facts, TagList};
use std::collections::{HashMap, HashSet};
use std::sync::MutexGuard;
use tokio::time::Instant;

/// What was committed since, while journals wait to be taken over.
pub(in crate::volume) struct Watch {
    /// Commits up to it are in `shown` only as far as the log was read back.
    from: Position,
    /// From here on all of them are.
    back_to: Position,
    shown: Shown,
    journals: HashMap<SessionId, Journal>,
}

struct Journal {
    since: Since,
    /// Of its entries that were asked about.
    bases: HashMap<Seq, Position>,
}

impl Volume {
    fn watch(&self) -> MutexGuard<'_, Option<Watch>> {
        self.watch.lock().expect("nothing panics while it is locked")
    }

    /// Before anything is applied that others may have done since an earlier mount.
    pub(in crate::volume) fn watch_others(&self) {
        let from = self.applied_position();
        let (shown, journals) = (Shown::default(), HashMap::new());
        *self.watch() = Some(Watch { from, back_to: from, shown, journals });
    }

    /// A commit of another session, before it is in the view.
    pub(in crate::volume) fn watched(&self, at: Position, commit: &Commit, tags: TagList) {
        let mut watch = self.watch();
        if let Some(watch) = watch.as_mut().filter(|watch| at > watch.from) {
            watch.shown.add(at, commit.session, commit.key_epoch, tags);
        }
    }

    /// From here on nothing is taken over any more.
    pub(super) fn watch_no_more(&self) {
        *self.watch() = None;
    }

    /// Before entries of `session` are done again, of which `base` is the oldest: what was
    /// committed since. `lineage` are the sessions that went on in its place, and itself.
    pub(super) async fn look_back(
        &self,
        session: SessionId,
        lineage: HashSet<SessionId>,
        base: Option<Position>,
    ) -> Result<(), FsError> {
        let (from, back_to) = match &mut *self.watch() {
            Some(watch) => {
                let (since, bases) = (Since::of(lineage), HashMap::new());
                watch.journals.insert(session, Journal { since, bases });
                (watch.from, watch.back_to)
            }
            None => return Ok(()),
        };
        let base = base.unwrap_or(back_to).max(self.made);
        if base >= back_to {
            return Ok(());
        }
        let until = || Instant::now() + self.options.deadline;
        let seen = self.covering(from, until()).await?;
        let mut next = base.0 + 1;
        while next <= back_to.0 {
            let last = back_to.0.min(next - next % WIDTH + WIDTH - 1);
            let bundle = self.past_bundle(&seen, Position(last), until()).await?;
            let inside = bundle.records.iter().filter(|past| (next..=last).contains(&past.at.0));
            let mut watch = self.watch();
            let Some(watch) = watch.as_mut() else { return Ok(()) };
            for past in inside {
                if let What::Commit(commit) = &past.what {
                    let (session, epoch) = (commit.body.session, commit.body.key_epoch);
                    watch.shown.add(past.at, session, epoch, commit.tags.clone());
                }
            }
            next = last + 1;
        }
        if let Some(watch) = self.watch().as_mut() {
            watch.back_to = base;
        }
        Ok(())
    }

    /// The record of another session that an entry of `session`'s journal would undo.
    pub(in crate::volume) async fn overtaken(
        &self,
        origin: Origin,
        base: Position,
        now: Stamp,
        op: &Op,
    ) -> Result<Option<Position>, FsError> {
        // Wherever the end of a file is now, nothing is there that an append could undo; and what
        // takes a name takes one that is free, or is refused.
        let facts = match op {
            Op::Append(_) | Op::Make(_) | Op::Link { .. } => Facts::default(),
            op => match self.facts_of(op, now).await? {
                Some(facts) => facts,
                None => return Ok(None),
            },
        };
        Ok(self.undone(origin, base, &facts, about(op)))
    }

    /// Whether what a copy would read now, or what it would write to, is not what it was.
    pub(super) async fn source_overtaken(
        &self,
        origin: Origin,
        base: Position,
        now: Stamp,
        copy: &Op,
    ) -> Result<bool, FsError> {
        let facts = self.facts_of(copy, now).await?;
        Ok(facts.is_none_or(|facts| self.undone(origin, base, &facts, About::Names).is_some()))
    }

    /// `None`: it is refused as things are.
    async fn facts_of(&self, op: &Op, now: Stamp) -> Result<Option<Facts>, FsError> {
        let ring = self.ring();
        let env = Env { now, dirent_key: ring.dirent_key() };
        self.ask(|core| match namespace::plan(&core.view, &env, op) {
            Ok(planned) => Ok(Some(planned.facts)),
            Err(ReadError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    /// The same of an operation that was placed already and refused for what others did then.
    pub(in crate::volume) async fn overtaken_again(
        &self,
        origin: Origin,
        now: Stamp,
        op: &Op,
    ) -> Result<Option<Position>, FsError> {
        let base = {
            let watch = self.watch();
            let journal = watch.as_ref().and_then(|watch| watch.journals.get(&origin.session));
            journal.and_then(|journal| journal.bases.get(&origin.seq).copied())
        };
        match base {
            Some(base) => self.overtaken(origin, base, now, op).await,
            None => Ok(None),
        }
    }

    /// The same of bytes that are in the journal as they were written.
    pub(super) fn bytes_overtaken(&self, origin: Origin, bytes: &Bytes) -> Option<Position> {
        let (mut facts, ino) = (Facts::default(), bytes.ino);
        if let Some(offset) = bytes.place {
            facts.write_range(ino, offset..offset + bytes.bytes.len() as u64);
        }
        let base = bytes.base.unwrap_or(Position(u64::MAX));
        self.undone(origin, base, &facts, About::Bytes(ino))
    }

    fn undone(
        &self,
        origin: Origin,
        base: Position,
        facts: &Facts,
        about: About,
    ) -> Option<Position> {
        let ring = self.ring();
        let mut watch = self.watch();
        let Watch { shown, journals, .. } = watch.as_mut()?;
        let key = |epoch| ring.epoch(epoch).map(|keys| keys.tag_key());
        let journal = journals.get_mut(&origin.session)?;
        journal.bases.insert(origin.seq, base);
        journal.since.undone(shown, facts, base, about, key)
    }
}

/// Why an operation is kept, and not done.
pub(in crate::volume) fn overtaken_by(record: Position) -> String {
    format!("another mount has changed the same since (record {record})")
}

/// The oldest base among entries.
pub(super) fn oldest_base(again: &[(Seq, Again)]) -> Option<Position> {
    let bases = again.iter().filter_map(|(_, again)| match again {
        Again::Op { base, .. } => Some(*base),
        Again::Data(bytes) => bytes.base,
    });
    bases.min()
}

fn about(op: &Op) -> About {
    match op {
        Op::Write(write) => About::Bytes(write.ino),
        Op::Append(append) => About::Bytes(append.ino),
        Op::Allocate(allocate) => About::Bytes(allocate.ino),
        Op::Copy(copy) => About::Bytes(copy.to),
        Op::SetAttr(set) if set.size.is_some() => About::Bytes(set.ino),
        Op::SetAttr(set) => About::Attributes(set.ino),
        Op::SetXattr(set) => About::Attributes(set.ino),
        Op::RemoveXattr { ino, .. } => About::Attributes(*ino),
        Op::Make(_)
        | Op::Link { .. }
        | Op::Unlink(_)
        | Op::Rmdir(_)
        | Op::Rename { .. }
        | Op::Reap { .. } => About::Names,
    }
}
