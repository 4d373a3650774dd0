//! The log, applied to the view in order: others' commits, and our own when they come back.
//!
//! Owns: what is checked of a record before it changes anything here.
//! Invariant: records are applied by position, each once; a payload that is missing stops the view
//! there, one that is void is skipped by the same rule everywhere.

use super::file::OpenFile;
use super::journal::Seq;
use super::state::{Core, Progress};
use super::void::Void;
use super::{Stale, Volume};
use crate::link::Link;
use mictlan::id::{ChunkId, Label, LedgerHash, Position, TimeMs};
use mictlan::ledger::merkle;
use mictlan::ledger::record::body::{Body, Commit};
use mictlan::ledger::record::{Line, NO_RECORD, RecordError};
use mictlan::ledger::roots::Claim;
use mictlan::ledger::roster::{Roster, RosterError};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::Stamp;
use mictlan::meta::key::Key;
use mictlan::meta::namespace;
use mictlan::meta::tag::TagList;
use mictlan::meta::value::Value;
use mictlan::meta::write::WriteSet;
use mictlan::seal::{self, KeyRing};
use mictlan::wire::{Barrier, Follow, Followed, LeaseUnit, Page};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a peer holds a question for news back. A view may be 3 s old before that is told, so
/// also an empty page has to come sooner.
const WAIT: Duration = Duration::from_secs(2);
/// One page of the log.
const PAGE_BYTES: u32 = 4 << 20;
/// After a page that could not be had or applied.
const PAUSE: Duration = Duration::from_millis(500);

/// The part of the follower's state that only the follower needs.
pub(super) struct Applied {
    /// The next position to apply.
    pub next: Position,
    /// The hash of the record before it, when that record was seen.
    pub chain: Option<LedgerHash>,
    pub roster: Roster,
    /// Secrets of an epoch that has not begun.
    pub coming: Option<KeyRing>,
}

#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("record {at}: {error}")]
    NotARecord { at: Position, error: RecordError },
    #[error("record {at} says that it is record {says}")]
    WrongPlace { at: Position, says: Position },
    #[error("record {at} does not follow the record before it: its `prev` is another")]
    Broken { at: Position },
    #[error("record {at}: {error}")]
    Roster { at: Position, error: RosterError },
    #[error("record {at} is not signed by {actor}, whom it names")]
    Forged { at: Position, actor: String },
    #[error("record {at}: its tag list is not the one that was signed")]
    OtherTags { at: Position },
    #[error("record {at}: chunk {chunk} of the payload is missing: {why}")]
    Missing { at: Position, chunk: ChunkId, why: String },
    #[error("record {at}: no key of epoch {epoch} here; ask an owner for access again")]
    NoKey { at: Position, epoch: mictlan::id::Epoch },
}

impl Volume {
    /// Follows the log until the volume ends.
    pub(super) async fn follow(self: Arc<Self>) {
        while !self.ending.load(Ordering::Relaxed) && self.believed().is_ok() && self.is_member() {
            let from = self.applying.lock().await.next;
            if self.belief.limit().is_some_and(|limit| from >= limit) {
                // Without a quorum at the start, what no checkpoint covers is not applied.
                self.is_anybody_there().await;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            match self.page(from, WAIT).await {
                Ok(page) => {
                    if let Err(error) = self.apply_page(page).await {
                        tracing::error!(%error, "the volume stands still before this record");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no peer shows the log at the moment");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn is_anybody_there(&self) {
        let head = self.network.voter(WAIT, |link| async move { link.head().await }).await;
        if head.is_ok() {
            self.belief.heard();
        }
    }

    async fn page(
        &self,
        from: Position,
        wait: Duration,
    ) -> Result<Page, crate::network::CallError> {
        let follow = Follow {
            volume: Some(self.id),
            from,
            max_bytes: PAGE_BYTES,
            wait_ms: wait.as_millis() as u32,
        };
        let page = self
            .network
            .voter_with_news(wait, self.options.deadline + wait, |link| {
                let follow = follow.clone();
                async move { link.follow(follow).await }
            })
            .await?;
        self.belief.heard();
        Ok(page)
    }

    /// The next page as one peer has it; `None` at `end`, or when it has none.
    pub(super) async fn page_of(&self, link: &Link, end: Position) -> Option<Page> {
        let from = self.applying.lock().await.next;
        let follow = Follow { volume: Some(self.id), from, max_bytes: PAGE_BYTES, wait_ms: 0 };
        if from >= end { None } else { link.follow(follow).await.ok() }
    }

    /// Applies a page; what was applied meanwhile is skipped.
    pub(super) async fn apply_page(&self, page: Page) -> Result<(), FollowError> {
        let page = match self.belief.limit() {
            Some(limit) => cut(page, limit),
            None => page,
        };
        let mut applied = self.applying.lock().await;
        for entry in page.entries {
            if entry.position >= applied.next {
                self.apply(&mut applied, entry).await?;
                self.spill_what_is_too_much();
            }
        }
        if page.next > applied.next {
            // Records of other volumes lie between: nothing here for this view.
            applied.next = page.next;
            applied.chain = None;
            self.skip(Position(page.next.0 - 1));
        }
        drop(applied);
        self.applied_to(self.applied_next());
        Ok(())
    }

    /// Our own commit was ordered: if it is the next record, it need not come back to be applied.
    pub(super) async fn ordered(&self, position: Position, line: &[u8]) -> Result<(), FsError> {
        {
            let mut applied = self.applying.lock().await;
            if applied.next == position {
                let entry = Followed {
                    position,
                    line: line.to_vec(),
                    tags: None,
                    payload: None,
                    inline: None,
                };
                self.apply(&mut applied, entry).await.map_err(|error| {
                    tracing::error!(%error, "the sequencer's answer is not what was sent");
                    FsError::Io
                })?;
                self.spill_what_is_too_much();
                drop(applied);
                self.applied_to(self.applied_next());
                return Ok(());
            }
        }
        self.wait_until_applied(Position(position.0 + 1)).await
    }

    /// Waits until everything before `position` is in the view.
    pub(super) async fn wait_until_applied(&self, position: Position) -> Result<(), FsError> {
        let mut progress = self.progress.subscribe();
        let wait = progress.wait_for(|progress| progress.applied >= position);
        match tokio::time::timeout(self.options.deadline, wait).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(FsError::Io),
            Err(_) => Err(FsError::TimedOut),
        }
    }

    /// Brings the view to where the leader's log was at the time of the call.
    pub(super) async fn catch_up(&self, deadline: Instant) -> Result<(), FsError> {
        let left = deadline.saturating_duration_since(Instant::now());
        // What another session acknowledged under its lease comes first.
        let session = Some(self.core().session.id).filter(|id| id.0 > 0);
        let pass = if session.is_some() { vec![LeaseUnit::Volume] } else { Vec::new() };
        let barrier = Barrier { session, pass };
        let position = self.network.read_position(&barrier, left).await.map_err(|error| {
            tracing::warn!(%error, "what others changed cannot be known now");
            FsError::TimedOut
        })?;
        self.apply_until(position, deadline).await
    }

    /// Brings the view to `position`, page by page; each has until `deadline`, or as long as all
    /// together were given, from where the one before was applied. A volume that is just coming up
    /// has nobody else who would fetch them; later its follower may be first.
    async fn apply_until(&self, position: Position, deadline: Instant) -> Result<(), FsError> {
        let (mut by, mut warned) = (deadline, false);
        let mut progress = self.progress.subscribe();
        loop {
            let applied = self.progress.borrow().applied;
            if applied >= position {
                return Ok(());
            }
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(%applied, %position, "the log could not be read up to here in time");
                return Err(FsError::TimedOut);
            }
            let page = tokio::time::timeout(left, self.page(applied, WAIT.min(left)));
            let page = tokio::select! {
                page = page => page,
                // The volume's own follower has it from another voter.
                () = reached(&mut progress, position) => continue,
            };
            match page {
                Ok(Ok(page)) => self.apply_page(page).await.map_err(|error| {
                    tracing::error!(%error, "the volume stands still before this record");
                    FsError::Io
                })?,
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(%error, "the next page of the log cannot be had now");
                    }
                    let pause = PAUSE.min(left);
                    let _ = tokio::time::timeout(pause, reached(&mut progress, position)).await;
                }
                Err(_) => {}
            }
            if self.progress.borrow().applied > applied {
                by = by.max(Instant::now() + self.options.deadline);
            }
        }
    }

    /// Records up to `at` change nothing here.
    fn skip(&self, at: Position) {
        self.core().view.apply(at, &WriteSet::new());
    }

    fn applied_next(&self) -> Position {
        Position(self.core().view.position().0 + 1)
    }

    fn applied_to(&self, next: Position) {
        self.progress.send_modify(|progress| progress.applied = progress.applied.max(next));
    }

    async fn apply(&self, applied: &mut Applied, entry: Followed) -> Result<(), FollowError> {
        let (at, leaf) = (entry.position, merkle::leaf(&entry.line));
        let follows = at == applied.next && applied.chain.is_some();
        self.fold_in(applied, entry).await?;
        self.belief.applied(at, leaf, follows);
        Ok(())
    }

    /// One record, checked and made part of the view. Whether a quorum signed it is the caller's
    /// to find out.
    pub(super) async fn fold_in(
        &self,
        applied: &mut Applied,
        entry: Followed,
    ) -> Result<(), FollowError> {
        let at = entry.position;
        let line =
            Line::parse(&entry.line).map_err(|error| FollowError::NotARecord { at, error })?;
        let hash = line.hash();
        check_place(applied, at, &line)?;
        let body = check_actor(applied, at, &line)?;
        match &body {
            Body::Commit(commit) if commit.volume == self.id => {
                let by = line.p.actor_label();
                self.apply_commit(at, &by, commit, &entry).await?;
            }
            Body::Root(root) if root.volume == self.id && root.position < at => {
                self.skip(at);
                self.named.add(Claim::of(at, line.p.actor_label(), root));
            }
            Body::Fence(fence) if fence.volume == self.id => {
                let mut writes = WriteSet::new();
                if let Some(heir) = fence.successor {
                    writes.put(Key::Heir(heir), Value::Heir(fence.session));
                }
                self.fenced(at, fence.session);
                self.changes(at, &writes);
            }
            Body::Wrap(wrap) if wrap.volume == self.id => {
                self.secrets_come(applied, at, wrap);
                self.skip(at);
            }
            Body::Revoke(revoke) if revoke.volume == Some(self.id) => {
                self.named.forget(&revoke.member);
                self.member_gone(applied, at, revoke);
                self.skip(at);
            }
            Body::Peer(_) | Body::Layout(_) => {
                self.network_changed.notify_one();
                self.skip(at);
            }
            Body::Volume(made) if made.volume == self.id => {
                self.network_changed.notify_one();
                self.compress.store(made.compress, Ordering::Relaxed);
                self.epoch_begins(applied, at, made.key_epoch);
                // A later record of the volume changes its settings, not its root.
                let writes = if at == self.made { founding(line.t) } else { WriteSet::new() };
                self.changes(at, &writes);
            }
            _ => self.skip(at),
        }
        applied.next = Position(at.0 + 1);
        applied.chain = Some(hash);
        Ok(())
    }

    async fn apply_commit(
        &self,
        at: Position,
        by: &Label,
        commit: &Commit,
        entry: &Followed,
    ) -> Result<(), FollowError> {
        if self.take_over_own(at, commit) {
            return Ok(());
        }
        let writes = match self.open_payload(at, commit, entry).await? {
            Ok(writes) => writes,
            Err(why) => {
                tracing::error!(record = %at, %by, session = %commit.session, %why,
                    "a commit changes what it did not say it would: it is void, here and for all");
                self.voids().add(Void { record: at, by: by.clone(), why });
                WriteSet::new()
            }
        };
        let tags = entry.tags.as_deref().and_then(|tags| TagList::decode(tags).ok());
        if let Some(tags) = tags.filter(|_| !writes.is_empty()) {
            self.overtakes(at, commit, &tags);
            self.watched(at, commit, tags);
        }
        self.changes(at, &writes);
        self.tell_kernel(&writes);
        Ok(())
    }

    fn changes(&self, at: Position, writes: &WriteSet) {
        self.trail.append(&self.spill, at, writes);
        self.core().view.apply(at, writes);
    }

    /// If `commit` is the one on its way from here, its operations are committed now.
    fn take_over_own(&self, at: Position, commit: &Commit) -> bool {
        let mut core = self.core();
        if commit.session != core.session.id {
            return false;
        }
        let Some((attempt, n, until)) = core.session.waiting else { return false };
        if (attempt, n) != (commit.attempt, commit.n) {
            return false;
        }
        core.session.waiting = None;
        core.session.n += 1;
        core.view.commit_local(until.0 - 1, at);
        let batch = core.queue.pop_front();
        if let Some(batch) = &batch {
            core.unproven.committed(at, (attempt, n), batch.floor);
        }
        drop(core);
        if let Some(batch) = &batch {
            self.trail.append(&self.spill, at, &batch.gathered.writes);
        }
        for (inline, _) in batch.iter().flat_map(|batch| &batch.inline) {
            self.chunks.let_go(inline.address);
        }
        let floor = self.journal_floor();
        self.committed(until, floor);
        true
    }

    /// The oldest entry of the journal that a replay would still need.
    ///
    /// The order of looking keeps it right while others go on: what is journaled later has a higher
    /// number, and what moves from a file into a batch meanwhile is seen in one of the two.
    fn journal_floor(&self) -> Option<Seq> {
        let next = self.journal.as_ref().map(|journal| journal.next());
        let files: Vec<Arc<OpenFile>> = self.core().files.values().cloned().collect();
        let of_files = files.iter().filter_map(|file| file.data().floor()).min();
        let of_batches = {
            let core = self.core();
            let between = core.replan.iter().map(|replan| replan.floor);
            core.queue.iter().map(|batch| batch.floor).chain(between).min()
        };
        next.into_iter().chain(of_files).chain(of_batches).min()
    }

    /// Whether something acknowledged is in the journal alone.
    pub(super) fn has_uncommitted(&self) -> bool {
        let files: Vec<Arc<OpenFile>> = self.core().files.values().cloned().collect();
        let waits = |core: &Core| !core.queue.is_empty() || core.is_between_attempts();
        waits(&self.core()) || files.iter().any(|file| file.data().floor().is_some())
    }

    /// Gives back what the journal has kept beyond that.
    pub(super) fn trim_journal(&self) {
        self.trim(self.journal_floor());
    }

    fn committed(&self, until: Seq, floor: Option<Seq>) {
        self.commit_came();
        // First, so that whoever waited for room finds it.
        self.trim(floor);
        self.progress.send_modify(|progress| {
            progress.committed = progress.committed.max(until);
            progress.stuck = None;
        });
    }

    fn trim(&self, floor: Option<Seq>) {
        let unproven = self.core().unproven.floor();
        if let (Some(journal), Some(floor)) = (&self.journal, floor)
            && let Err(error) = journal.trim(floor, unproven)
        {
            tracing::warn!(%error, "the journal keeps what is committed; nothing is lost");
        }
    }

    /// What the kernel may have cached of what another session changed.
    fn tell_kernel(&self, writes: &WriteSet) {
        for (key, _) in writes.changes() {
            let stale = match key.key() {
                Key::Inode(ino) | Key::Extent { ino, .. } | Key::Xattr { ino, .. } => {
                    Stale::Inode(ino)
                }
                Key::Dirent { dir, name, .. } => Stale::Entry(dir, name),
                _ => continue,
            };
            // The thread behind it ends only with the mount.
            let _ = self.stale.send(stale);
        }
    }
}

/// Waits until everything before `position` is in the view.
async fn reached(progress: &mut watch::Receiver<Progress>, position: Position) {
    // The volume, whose progress it is, outlives whoever waits for it.
    let _ = progress.wait_for(|progress| progress.applied >= position).await;
}

/// The part of a page before `limit`.
fn cut(mut page: Page, limit: Position) -> Page {
    page.entries.retain(|entry| entry.position < limit);
    page.next = page.next.min(limit);
    page
}

fn check_place(applied: &Applied, at: Position, line: &Line) -> Result<(), FollowError> {
    if line.i != at {
        return Err(FollowError::WrongPlace { at, says: line.i });
    }
    let expected = if at.0 == 0 { Some(NO_RECORD) } else { applied.chain };
    let follows = at > applied.next || expected.is_none_or(|chain| chain == line.prev);
    if follows { Ok(()) } else { Err(FollowError::Broken { at }) }
}

/// The record's body, if its actor's key signed it; the roster takes its news over.
fn check_actor(applied: &mut Applied, at: Position, line: &Line) -> Result<Body, FollowError> {
    let roster = |error| FollowError::Roster { at, error };
    let actor = line.p.actor_label();
    let key = applied.roster.key_of(actor.as_str()).map_err(roster)?;
    if !seal::verify(&key, &line.message(&applied.roster.origin()), &line.sig) {
        return Err(FollowError::Forged { at, actor: actor.to_string() });
    }
    let body = line.p.body().map_err(|error| FollowError::NotARecord { at, error })?;
    applied.roster.apply(&actor, &body).map_err(roster)?;
    Ok(body)
}

/// The first state of a volume, the same for everyone: a root directory of the record's time.
fn founding(t: TimeMs) -> WriteSet {
    let stamp = Stamp { secs: (t.0 / 1000) as i64, nanos: (t.0 % 1000) as u32 * 1_000_000 };
    namespace::founding(stamp, 0, 0, 0o755)
}
