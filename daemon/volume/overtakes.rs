//! A session that others took for dead, or that was not heard for longer than its lease.
//!
//! Owns: the end of all commits at its fence; the look, at each commit of another session, whether it
//! changed what was acknowledged under the lease and is not committed.
//! Never: merges; the mount that comes next does, from the journal, entry by entry.
//! Invariant: what was acknowledged under the lease is not done over what another session
//! committed after the lease had run out.

use super::Volume;
use super::file::OpenFile;
use super::state::Mode;
use mictlan::cluster::refusal::Refusal;
use mictlan::cluster::since;
use mictlan::id::{Position, SessionId};
use mictlan::ledger::record::body::Commit;
use mictlan::meta::error::FsError;
use mictlan::meta::tag::{Facts, TagList};
use std::sync::Arc;

impl Volume {
    /// Before a commit of another session is in the view. Where it undid, or would be undone by,
    /// what was acknowledged here before, this mount commits nothing any more, as if it had been
    /// fenced.
    pub(super) fn overtakes(&self, position: Position, commit: &Commit, tags: &TagList) {
        let ring = self.ring();
        let Some(keys) = ring.epoch(commit.key_epoch) else { return };
        let clash = |facts: &Facts| since::clash(tags, facts, keys.tag_key());
        let (in_batches, files) = {
            let core = self.core();
            if commit.session == core.session.id {
                return;
            }
            let leased = core.queue.iter().filter(|batch| batch.leased);
            let in_batches = leased.filter_map(|batch| clash(&batch.gathered.facts)).next();
            (in_batches, core.files.values().cloned().collect::<Vec<Arc<OpenFile>>>())
        };
        let in_files = || {
            files.iter().find_map(|file| {
                let mut facts = Facts::default();
                for range in file.data().leased_ranges() {
                    facts.write_range(file.ino, range);
                }
                clash(&facts)
            })
        };
        if let Some(tag) = in_batches.or_else(in_files) {
            self.lost(&Refusal::Conflict { tag, position });
        }
    }

    /// A fence of this very session: nothing of it will be accepted any more.
    pub(super) fn fenced(&self, at: Position, session: SessionId) {
        let mut core = self.core();
        if core.session.id == session && core.session.mode != Mode::Reader {
            core.session.mode = Mode::Lost;
            drop(core);
            self.refused_for_good(&Refusal::Fenced { at, successor: None });
            tracing::error!(record = %at,
                "this mount was fenced by another; what it had not committed is in its journal: \
                 unmount and mount again");
            self.progress.send_modify(|progress| progress.stuck = Some(FsError::Io));
        }
    }
}
