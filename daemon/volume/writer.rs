//! Who changed a file last, and the proof that the ledger says so.
//!
//! Owns: the search for the newest commit that changed an inode, its bounds, and what it found.
//! Never: goes by the times of a file, which are whatever its writer said: the log is read
//! backwards without a gap, so the first commit found is the newest.
//! Invariant: an answer is a record that a cosigned checkpoint covers and whose change is what is
//! there. What is not found within the bounds has no answer, never another one. A void commit is
//! passed over, but for one that this mount did not apply and that only what was there before it
//! makes void: that one can name nobody but who signed it.

use super::Volume;
use super::file::What as Dirty;
use super::past::{Past, PastCommit, What};
use super::state::Core;
use super::void;
use crate::ledger::Seen;
use bytes::Bytes;
use mictlan::id::{Epoch, Ino, Position, PrincipalId, SessionId};
use mictlan::ledger::record::{Line, time};
use mictlan::ledger::tile::WIDTH;
use mictlan::meta::cover;
use mictlan::meta::error::{FsError, ReadError};
use mictlan::meta::history::{self, Marks, Subject};
use mictlan::meta::key::Key;
use mictlan::meta::value::Value;
use mictlan::meta::write::WriteSet;
use mictlan::seal;
use quick_cache::sync::Cache;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// Records that one question goes back; the next one for the same file goes on from there.
const RECORDS_MAX: u64 = 1 << 16;
/// Files of which it is remembered how far back was looked.
const FILES_MAX: usize = 1_024;
/// Each holds up to a bundle of the log in memory.
const AT_ONCE: usize = 2;
/// Between two looks for a checkpoint that covers what is shown.
const PAUSE: Duration = Duration::from_millis(100);

/// How far the log was searched for one inode: nothing in `(next, upto]` changed it, but `found`.
#[derive(Clone)]
struct Searched {
    upto: Position,
    /// Where the search goes on: the record after the next one to look at.
    next: u64,
    found: Option<Arc<Changed>>,
}

/// The commit that an inode is what it is by.
struct Changed {
    at: Position,
    line: Vec<u8>,
}

/// What is remembered of questions, and how many are answered at once.
pub(super) struct Writers {
    searched: Cache<Ino, Searched>,
    turns: Semaphore,
}

impl Default for Writers {
    fn default() -> Self {
        Self { searched: Cache::new(FILES_MAX), turns: Semaphore::new(AT_ONCE) }
    }
}

/// One search under way.
struct Search<'a> {
    volume: &'a Volume,
    seen: &'a Seen,
    subject: Subject,
    marks: HashMap<Epoch, Marks>,
    /// Records that may still be looked at.
    left: u64,
    until: Instant,
}

/// The end of a search that found nothing.
enum Ended {
    /// Before this record nothing was looked at.
    At(u64),
    Failed(FsError),
}

impl From<FsError> for Ended {
    fn from(error: FsError) -> Self {
        Self::Failed(error)
    }
}

impl Volume {
    /// `user.mictlan.writer`: lines of a word and its value.
    pub(super) async fn writer(&self, ino: Ino) -> Result<Bytes, FsError> {
        let (changed, seen) = self.last_change(ino).await?;
        let line = Line::parse(&changed.line).map_err(|error| {
            tracing::error!(record = %changed.at, %error, "a signed record is none");
            FsError::Io
        })?;
        let Some(key) = signer(&seen, &line) else {
            tracing::error!(record = %changed.at, actor = line.p.actor,
                "a signed record is not by a key of the actor that it names");
            return Err(FsError::Io);
        };
        let (actor, at, t) = (line.p.actor, changed.at, time::format(line.t));
        Ok(format!("actor {actor}\nkey {key}\nrecord {at}\ntime {t}\n").into())
    }

    /// `user.mictlan.proof`: the C2SP `tlog-proof` of the same record.
    pub(super) async fn proof(&self, ino: Ino) -> Result<Bytes, FsError> {
        let (changed, seen) = self.last_change(ino).await?;
        self.ledger().proof(&seen, changed.at).await.map_err(|error| {
            tracing::warn!(record = %changed.at, %error, "it cannot be proved now");
            error.errno()
        })
    }

    /// The newest commit that changed the inode, and a checkpoint that covers it.
    async fn last_change(&self, ino: Ino) -> Result<(Arc<Changed>, Arc<Seen>), FsError> {
        let until = Instant::now() + self.options.deadline;
        self.settle(ino).await?;
        let turn = timeout_at(until, self.writers.turns.acquire()).await;
        let _turn = turn.map_err(|_| FsError::TimedOut)?.map_err(|_| FsError::Io)?;
        let (subject, upto) = self
            .ask(|core| match core.view.committed(&Key::Inode(ino))? {
                Some(Value::Inode(inode)) => Ok((Subject { ino, inode }, core.view.position())),
                _ => Err(ReadError::Refused(FsError::Stale)),
            })
            .await?;
        let seen = self.covering(upto, until).await?;
        let known = self.writers.searched.get(&ino).filter(|known| known.upto <= upto);
        let marks = HashMap::new();
        let mut search =
            Search { volume: self, seen: &seen, subject, marks, left: RECORDS_MAX, until };
        let (next, outcome) = match search.run(upto, known.as_ref()).await {
            Ok(found) => (found.at.0, Ok(found)),
            Err(Ended::At(next)) => (next, Err(FsError::NoXattr)),
            Err(Ended::Failed(error)) => return Err(error),
        };
        let found = outcome.as_ref().ok().cloned();
        self.writers.searched.insert(ino, Searched { upto, next, found });
        if outcome.is_err() && next > self.made.0 {
            tracing::info!(%ino, record = next,
                "who changed a file last is not in the log from this record on; ask again to have \
                 the search go on before it");
        }
        Ok((outcome?, seen))
    }

    /// What this mount changed of the inode is committed before anything is said of it.
    async fn settle(&self, ino: Ino) -> Result<(), FsError> {
        let file = self.core().files.get(&ino).cloned();
        if let Some(file) = file {
            let _order = file.order.lock().await;
            self.seal_file(&file, Dirty::Everything).await?;
        }
        let changed = history::changes(self.core().view.local(), ino);
        if changed { self.committed_all().await } else { Ok(()) }
    }

    /// Whether the session went on in the place of all of `theirs`.
    async fn has_places_of(
        &self,
        session: SessionId,
        theirs: HashSet<SessionId>,
    ) -> Result<bool, FsError> {
        for other in theirs {
            let has = |core: &Core| Ok(void::has_place_of(&core.view, session, other)?);
            if !self.ask(has).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A checkpoint that covers record `at`; within moments there is one.
    pub(super) async fn covering(
        &self,
        at: Position,
        until: Instant,
    ) -> Result<Arc<Seen>, FsError> {
        let there = || self.ledger().seen().filter(|seen| seen.size() > at.0);
        loop {
            if let Some(seen) = there() {
                return Ok(seen);
            }
            self.believed()?;
            let looked = timeout_at(until, self.ledger().refresh()).await;
            if there().is_some() {
                continue;
            }
            if Instant::now() + PAUSE >= until {
                let why = match looked {
                    Ok(Err(error)) => error.to_string(),
                    _ => "none came in time".to_owned(),
                };
                tracing::warn!(record = %at, why, "no cosigned checkpoint covers what is shown, so \
                    nobody can be named for it; ledger/status.json says which voters are missing");
                return Err(FsError::TimedOut);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whose key signed the record: the one that its actor had then.
fn signer(seen: &Seen, line: &Line<'_>) -> Option<PrincipalId> {
    let roster = seen.roster()?;
    let message = line.message(&roster.origin());
    let actor = line.p.actor_label();
    roster.keys_ever_of(&actor).find(|key| seal::verify(key, &message, &line.sig))
}

impl Search<'_> {
    /// Looks at all records from `upto` back, but those that were looked at before.
    async fn run(
        &mut self,
        upto: Position,
        known: Option<&Searched>,
    ) -> Result<Arc<Changed>, Ended> {
        let mut end = upto.0 + 1;
        // What is not known yet comes first, then what is before it.
        if let Some(known) = known {
            if let Some(found) = self.between(known.upto.0 + 1, &mut end).await? {
                return Ok(found);
            }
            if let Some(found) = &known.found {
                return Ok(found.clone());
            }
            end = known.next;
        }
        let found = self.between(self.volume.made.0, &mut end).await?;
        found.ok_or(Ended::At(end))
    }

    /// The newest change in `[from, end)`; `end` goes back with what was looked at.
    async fn between(&mut self, from: u64, end: &mut u64) -> Result<Option<Arc<Changed>>, Ended> {
        while *end > from {
            if self.left == 0 {
                return Err(Ended::At(*end));
            }
            let last = Position(*end - 1);
            let bundle = self.volume.past_bundle(self.seen, last, self.until).await?;
            let start = from.max(last.0 - last.0 % WIDTH);
            let inside = |past: &&Past| past.at <= last && past.at.0 >= start;
            for past in bundle.records.iter().rev().filter(inside) {
                if self.changed(past).await? {
                    let (at, line) = (past.at, past.line.clone());
                    return Ok(Some(Arc::new(Changed { at, line })));
                }
            }
            self.left = self.left.saturating_sub(*end - start);
            *end = start;
        }
        Ok(None)
    }

    async fn changed(&mut self, past: &Past) -> Result<bool, FsError> {
        match &past.what {
            What::Made => Ok(self.subject.ino == Ino::ROOT),
            What::Commit(commit) => self.committed(past.at, commit).await,
        }
    }

    /// Whether the commit is not void and changed the inode.
    async fn committed(&mut self, at: Position, commit: &PastCommit) -> Result<bool, FsError> {
        let ring = self.volume.ring();
        let Some(keys) = ring.epoch(commit.body.key_epoch) else {
            tracing::warn!(record = %at, epoch = %commit.body.key_epoch,
                "no key of this epoch here; ask an owner for access again");
            return Err(FsError::NoXattr);
        };
        let subject = &self.subject;
        let marks = self.marks.entry(commit.body.key_epoch);
        let marks = *marks.or_insert_with(|| subject.marks(keys.tag_key()));
        if !marks.are_among(&commit.tags) || self.volume.is_known_void(at) {
            return Ok(false);
        }
        let sealed = self.volume.past_payload(commit, self.until).await?;
        let Ok(opened) = void::open(&ring, &commit.body, &sealed) else {
            return Ok(false);
        };
        // Whose numbers they are is asked below, if it matters.
        let fresh = |ino: Ino| ino.session().is_some();
        let links = &opened.header.links;
        let judged = cover::judge(&opened.plaintext, links, &commit.tags, keys.tag_key(), fresh);
        let Ok(writes) = judged else { return Ok(false) };
        if !history::changes(&writes, subject.ino) || !subject.is_left_by(&writes) {
            return Ok(false);
        }
        let theirs = foreign(&writes, commit.body.session);
        self.volume.has_places_of(commit.body.session, theirs).await
    }
}

/// The sessions, other than its own, in whose blocks inodes begin.
fn foreign(writes: &WriteSet, session: SessionId) -> HashSet<SessionId> {
    let begun = writes.puts().filter_map(|(key, _)| match key {
        Key::Inode(ino) => ino.session(),
        _ => None,
    });
    begun.filter(|of| *of != session).collect()
}
