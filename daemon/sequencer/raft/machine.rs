//! Openraft's state machine: the replicated state, the ledger's files and the voter's chunks.
//!
//! Owns: the order in which one applied group becomes visible, and what a snapshot holds.
//! Never: decides what is accepted; `cluster::state` does, the same on every voter.
//! Invariant: when a record counts as applied, its leaf is in the tail or a full tile, and the
//! chunks that travelled with it are durable in this voter's store.

use super::log::LogStore;
use super::recall::Voters;
use super::snapshot::{self, Content, SnapshotError, storage_error};
use super::{Answers, Entry, LogId, SnapshotMeta, StorageError, StoredMembership, Types};
use crate::sequencer::catch_up;
use crate::sequencer::files::{Files, TILE};
use crate::sequencer::group::Grouped;
use crate::sequencer::recent::{Kept, Recent};
use crate::sequencer::{Chunks, RaftTransport};
use bytes::Bytes;
use mictlan::cluster::state::{CommitParts, Item, Outcome, State};
use mictlan::id::{NetworkId, PeerId, Position};
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{EntryPayload, ErrorVerb, OptionalSend, RaftLogReader, RaftSnapshotBuilder};
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;

/// Where the log and the membership stand with what is applied.
#[derive(Clone, Default)]
struct Mark {
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

/// Everything applied, for readers; the machine alone writes it.
pub struct Applied {
    pub network: NetworkId,
    pub me: PeerId,
    pub files: Files,
    pub chunks: Arc<dyn Chunks>,
    pub recent: Recent,
    dir: PathBuf,
    /// Covers the state; written by apply and install, read briefly by everyone else. None before
    /// the genesis record.
    state: RwLock<Option<State>>,
    /// Covers the mark.
    mark: RwLock<Mark>,
    /// Full tiles that `prepare` brought cover this many records.
    prepared: AtomicU64,
    /// The ledger's size, told after everything else is in place.
    pub size: watch::Sender<u64>,
}

impl Applied {
    /// What the last snapshot in `dir` says; the log replays the rest.
    pub fn open(
        dir: PathBuf,
        network: NetworkId,
        me: PeerId,
        chunks: Arc<dyn Chunks>,
    ) -> Result<Self, SnapshotError> {
        let bytes = snapshot::load(&dir.join("snapshot"))?;
        let content = bytes.map(|b| Content::decode(&b, &network)).transpose()?;
        let (mark, tail, state) = match content {
            Some(c) => {
                let (last_applied, membership) = (c.meta.last_log_id, c.meta.last_membership);
                (Mark { last_applied, membership }, c.tail, c.state)
            }
            None => Default::default(),
        };
        let (size, _) = watch::channel(tail.size());
        let files = Files::open(&dir.join("ledger"), tail)?;
        Ok(Self {
            network,
            me,
            files,
            chunks,
            recent: Recent::default(),
            dir,
            state: RwLock::new(state),
            mark: RwLock::new(mark),
            prepared: AtomicU64::new(0),
            size,
        })
    }

    pub fn state(&self) -> RwLockReadGuard<'_, Option<State>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, Option<State>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self) -> Mark {
        self.mark.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_mark(&self, mark: Mark) {
        *self.mark.write().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// Before a received snapshot goes to raft, which takes a failure there for its end: fetches
    /// and verifies every record behind it.
    pub async fn prepare(
        &self,
        bytes: &[u8],
        from: PeerId,
        transport: &dyn RaftTransport,
    ) -> Result<(), InstallError> {
        let content = Content::decode(bytes, &self.network)?;
        let voters = content.meta.last_membership.voter_ids().map(PeerId);
        let mut peers = vec![from];
        peers.extend(voters.filter(|v| *v != self.me && *v != from));
        catch_up::fetch_full_tiles(&self.files, &content.tail, &peers, transport).await?;
        // Crash here: tiles beyond our own snapshot, written again by replay or the next try.
        self.prepared.fetch_max(content.tail.start(), Ordering::Release);
        Ok(())
    }

    /// Full tiles cover this many records.
    fn prepared(&self) -> u64 {
        let size = self.files.size();
        self.prepared.load(Ordering::Acquire).max(size - size % TILE)
    }

    /// Whether the ledger can have so many records when all of the log is applied.
    pub async fn can_reach(&self, log: &LogStore, records: u64) -> Result<bool, StorageError> {
        const AT_ONCE: u64 = 16;
        let (mut log, mut most) = (log.clone(), self.files.size());
        let mut from = self.last_applied().map_or(0, |last| last.index + 1);
        while most < records {
            let entries = log.try_get_log_entries(from..from + AT_ONCE).await?;
            if entries.is_empty() {
                return Ok(false);
            }
            from += AT_ONCE;
            most += entries.iter().map(records_at_most).sum::<u64>();
        }
        Ok(true)
    }

    /// The position up to which log entries are applied.
    pub fn last_applied(&self) -> Option<LogId> {
        self.mark().last_applied
    }
}

/// Fewer where some are refused.
fn records_at_most(entry: &Entry) -> u64 {
    match &entry.payload {
        EntryPayload::Normal(group) => match Grouped::decode(&group.0) {
            Some(Grouped::Entry(entry)) => entry.items.len() as u64,
            Some(Grouped::Genesis { .. }) => 1,
            None => 0,
        },
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// What one batch of log entries leaves to be kept.
#[derive(Default)]
struct Batch {
    answers: Vec<Answers>,
    records: Vec<Kept>,
    chunks: Vec<Bytes>,
}

impl Batch {
    fn group(&mut self, state: &mut Option<State>, bytes: &[u8]) {
        let Some(group) = Grouped::decode(bytes) else {
            // Only a leader that runs another program writes such a group; every voter skips it.
            self.answers.push(Answers::default());
            return;
        };
        let outcomes = group.apply(state);
        let items = match group {
            Grouped::Entry(entry) => entry.items,
            Grouped::Genesis { submission, .. } => vec![Item::Record(submission)],
        };
        for (item, outcome) in items.into_iter().zip(&outcomes) {
            if let Outcome::Accepted { position, record } = outcome {
                let parts = match item {
                    Item::Record(submission) => submission.commit,
                    _ => None,
                };
                self.keep(*position, record, parts);
            }
        }
        self.answers.push(Answers(outcomes));
    }

    fn keep(&mut self, position: Position, record: &[u8], parts: Option<CommitParts>) {
        let (tags, payload, inline) = match parts {
            Some(p) => (Some(p.tags), p.payload.map(Bytes::from), p.inline.map(Bytes::from)),
            None => (None, None, None),
        };
        self.chunks.extend([&payload, &inline].into_iter().flatten().cloned());
        let (line, tags) = (Bytes::copy_from_slice(record), tags.map(Bytes::from));
        self.records.push(Kept { position, line, tags, payload, inline });
    }
}

/// Who votes, as snapshot and log say before raft starts.
pub async fn voters(log: &LogStore, machine: &Machine) -> Result<Voters, StorageError> {
    let (mut log, mut machine) = (log.clone(), machine.clone());
    let found = openraft::StorageHelper::new(&mut log, &mut machine).get_membership().await?;
    let effective = found.effective();
    let sets = effective.membership().get_joint_config().clone();
    Ok(Voters { since: *effective.log_id(), sets })
}

/// Given to openraft; the only writer of `Applied`.
#[derive(Clone)]
pub struct Machine {
    pub applied: Arc<Applied>,
}

impl Machine {
    /// Applies a batch in memory, then brings what it leaves to disk, then shows it.
    async fn keep(&self, entries: Vec<Entry>) -> Result<Vec<Answers>, StorageError> {
        let applied = self.applied.clone();
        let mut mark = applied.mark();
        // Signatures are checked again here: many milliseconds that must not stop other tasks.
        let work = tokio::task::spawn_blocking(move || {
            let mut batch = Batch::default();
            let mut state = applied.state_mut();
            for entry in entries {
                mark.last_applied = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => batch.answers.push(Answers::default()),
                    EntryPayload::Membership(m) => {
                        mark.membership = StoredMembership::new(Some(entry.log_id), m);
                        batch.answers.push(Answers::default());
                    }
                    EntryPayload::Normal(group) => batch.group(&mut state, &group.0),
                }
            }
            (batch, mark)
        });
        let failed = |e: &(dyn std::error::Error + 'static)| storage_error(ErrorVerb::Write, e);
        let (batch, mark) = work.await.map_err(|e| failed(&e))?;
        // Crash from here on: nothing of this batch counts; the log replays it from the last
        // snapshot, and each step writes the same bytes again.
        if !batch.chunks.is_empty() {
            self.applied.chunks.put(batch.chunks).await.map_err(|e| failed(&e))?;
        }
        if !batch.records.is_empty() {
            let pair = |k: &'_ Kept| (k.line.clone(), k.tags.clone().unwrap_or_default());
            let pairs: Vec<(Bytes, Bytes)> = batch.records.iter().map(pair).collect();
            self.applied.files.append(&pairs).map_err(|e| failed(&e))?;
        }
        self.applied.recent.extend(batch.records);
        self.applied.set_mark(mark);
        self.applied.size.send_replace(self.applied.files.size());
        Ok(batch.answers)
    }

    /// Takes over another voter's state, for which `prepare` brought every full tile.
    fn install(&self, meta: &SnapshotMeta, bytes: &[u8]) -> Result<(), InstallError> {
        let applied = &self.applied;
        let mut content = Content::decode(bytes, &applied.network)?;
        content.meta = meta.clone();
        let (size, prepared) = (content.tail.size(), applied.prepared());
        if content.tail.start() > prepared {
            return Err(InstallError::Unprepared { size, prepared });
        }
        snapshot::save(&applied.dir.join("snapshot"), &content.encode(&applied.network))
            .map_err(SnapshotError::from)?;
        // Crash here: the new snapshot with an old log, which openraft purges at start.
        *applied.state_mut() = content.state;
        applied.files.replace_tail(content.tail);
        applied.recent.clear();
        applied.set_mark(Mark {
            last_applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
        });
        applied.size.send_replace(size);
        Ok(())
    }
}

/// Why another voter's snapshot was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    CatchUp(#[from] catch_up::CatchUpError),
    #[error("a snapshot of {size} records came, and full tiles only up to {prepared}")]
    Unprepared { size: u64, prepared: u64 },
}

/// A copy of the state at one log position, to be written while later entries are applied.
pub struct Builder {
    machine: Machine,
    content: Content,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let applied = &self.machine.applied;
        // Full tiles and chunks up to here were durable before they counted as applied, so the
        // snapshot leans on nothing that a crash could take; after it the log may be purged.
        let bytes = self.content.encode(&applied.network);
        snapshot::save(&applied.dir.join("snapshot"), &bytes)
            .map_err(|e| storage_error(ErrorVerb::Write, &e))?;
        Ok(Snapshot { meta: self.content.meta.clone(), snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let mark = self.applied.mark();
        Ok((mark.last_applied, mark.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let count = entries.len();
        let answers = self.keep(entries).await?;
        assert_eq!(answers.len(), count, "one answer an entry");
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let mark = self.applied.mark();
        let id = mark.last_applied.map_or_else(String::new, |l| l.to_string());
        let meta = SnapshotMeta {
            last_log_id: mark.last_applied,
            last_membership: mark.membership,
            snapshot_id: format!("{id}-{}", self.applied.files.size()),
        };
        let (tail, state) = (self.applied.files.copy_tail(), self.applied.state().clone());
        Builder { machine: self.clone(), content: Content { meta, tail, state } }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let installed = self.install(meta, snapshot.get_ref());
        installed.map_err(|e| storage_error(ErrorVerb::Write, &e))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let failed = |e: &(dyn std::error::Error + 'static)| storage_error(ErrorVerb::Read, e);
        let path = self.applied.dir.join("snapshot");
        let Some(bytes) = snapshot::load(&path).map_err(|e| failed(&e))? else { return Ok(None) };
        let content = Content::decode(&bytes, &self.applied.network).map_err(|e| failed(&e))?;
        Ok(Some(Snapshot { meta: content.meta, snapshot: Box::new(Cursor::new(bytes)) }))
    }
}
