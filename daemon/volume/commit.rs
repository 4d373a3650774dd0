//! From batches of operations to records in the ledger.
//!
//! Owns: when a commit is made, what it waits for, and what its answer means.
//!
//! The order of durability of one batch, and what a crash leaves at each step:
//! 1. its chunks are durable on enough peers: nothing refers to them yet; the journal's replay
//!    does, or they are collected one day;
//! 2. its payload is durable, or travels inside the entry: the same;
//! 3. the journal notes the request (attempt, n) and what it holds: replay asks the sequencer
//!    whether that request was accepted;
//! 4. the record is ordered: committed; replay finds it in the fence's answer and skips it;
//! 5. the view takes it over; when a checkpoint covers it, the journal gives its space back (crash:
//!    as before).
//!
//! Invariant: one request is on its way at a time; a repeat carries the same bytes.

use super::Volume;
use super::file::OpenFile;
use super::journal::{Entry, Seq};
use super::local::journal_failed;
use super::state::{BATCH_BYTES, Batch, Inline, Mode};
use crate::chunks::{Charges, Put};
use crate::counts::COUNTS;
use crate::network::CallError;
use mictlan::cluster::refusal::Refusal;
use mictlan::cluster::state::{CommitParts, INSIDE_MAX, Outcome, Submission};
use mictlan::hash;
use mictlan::id::{Position, TimeMs};
use mictlan::ledger::record::body::{Body, ChunkRef, Commit, TagsRef};
use mictlan::ledger::record::{Proposal, Ulid, record_message};
use mictlan::meta::cover;
use mictlan::meta::error::FsError;
use mictlan::meta::payload;
use mictlan::meta::tag::TagList;
use mictlan::seal::{self, Codec, KeyRing, Kind, Sealed};
use mictlan::wire::{Append, LeaseUnit};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// What is older than this is committed, if nobody asks sooner.
const BEHIND: Duration = Duration::from_secs(1);
/// Between two tries while the sequencer does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// The end of one commit of an operation that waited for it.
pub(super) enum Committed {
    Yes,
    Conflict,
}

/// A batch in the form in which it is proposed, however often.
struct Request {
    n: u64,
    attempt: mictlan::id::Attempt,
    until: Seq,
    submission: Submission,
}

impl Volume {
    /// Commits whatever is due, until the volume ends. The only caller of `commit_front`.
    pub(super) async fn commit_behind(self: Arc<Self>) {
        loop {
            let due = self.next_due();
            tokio::select! {
                () = self.work.notified() => {}
                () = crate::chunks::until(due) => {}
            }
            if self.core().session.mode == Mode::Lost || self.ending.load(Ordering::Relaxed) {
                return;
            }
            while self.is_due() {
                if let Err(error) = self.commit_round().await {
                    self.stuck(error);
                    tokio::time::sleep(PAUSE).await;
                }
                // A round that found nothing to wait for must not keep others from this thread.
                tokio::task::yield_now().await;
            }
        }
    }

    /// When the oldest of what waits will have waited long enough.
    fn next_due(&self) -> Option<Instant> {
        let core = self.core();
        let batch = core.queue.front().map(|batch| batch.since);
        let files: Vec<Arc<OpenFile>> = core.files.values().cloned().collect();
        drop(core);
        let dirty = files.iter().filter_map(|file| file.data().since);
        batch.into_iter().chain(dirty).min().map(|since| since + BEHIND)
    }

    fn is_due(&self) -> bool {
        let progress = *self.progress.borrow();
        let core = self.core();
        let full =
            |batch: &Batch| batch.closed || batch.gathered.writes.size_bytes() >= BATCH_BYTES;
        let wanted = progress.wanted > progress.committed && !core.queue.is_empty();
        let between = core.is_between_attempts();
        let batch_due = core.queue.front().is_some_and(full);
        drop(core);
        if wanted || between || batch_due {
            return true;
        }
        // Memory can be full of chunks that are on their way to their last copies: then there is
        // nothing to do here.
        let tight = progress.room_wanted || self.budget.is_tight();
        self.next_due().is_some_and(|due| tight || due <= Instant::now())
    }

    /// One round: what is dirty and due is sealed, then the oldest batch is committed.
    async fn commit_round(&self) -> Result<(), FsError> {
        let tight = self.budget.is_tight() || self.progress.borrow().room_wanted;
        self.progress.send_if_modified(|progress| {
            progress.room_wanted = false;
            false
        });
        self.next_attempt().await?;
        let sealed = self.seal_small(self.due_files(tight)).await;
        // Where the journal has no room for a sealing, commits of what was sealed before give it.
        if sealed.is_err_and(|error| error != FsError::NoSpace) {
            return sealed;
        }
        let committed = self.commit_front().await;
        self.forget_all_idle();
        match committed? {
            Ok(()) => {
                if sealed.is_err() {
                    // Its bytes wait for room. Who waits for commits is not told: they go on.
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            }
            Err(refusal) => self.refused(refusal).await,
        }
    }

    /// Files whose bytes have waited long enough, and all whose bytes only the journal has: a
    /// commit takes those along, so that the journal before it is of no more use.
    fn due_files(&self, tight: bool) -> Vec<Arc<OpenFile>> {
        let files: Vec<Arc<OpenFile>> = self.core().files.values().cloned().collect();
        let now = Instant::now();
        let due = |file: &Arc<OpenFile>| {
            let data = file.data();
            let journaled = data.journaled.is_some() || data.tail.place().is_some();
            data.since.is_some_and(|since| tight || journaled || since + BEHIND <= now)
        };
        files.into_iter().filter(due).collect()
    }

    /// All that waits becomes commits; for unmount, recall and whoever has no lease.
    pub(super) async fn flush(&self, within: Duration) -> Result<(), FsError> {
        let files: Vec<Arc<OpenFile>> = self.core().files.values().cloned().collect();
        let sealed = async {
            match self.seal_small(files.clone()).await {
                // Commits of what could be sealed give the journal room for the rest.
                Err(FsError::NoSpace) => {
                    self.commit_all().await?;
                    self.seal_small(files).await?;
                }
                sealed => sealed?,
            }
            self.commit_all().await
        };
        timeout(within, sealed).await.map_err(|_| FsError::TimedOut)?
    }

    /// Waits for the commit of the operation `seq`, which was placed without a lease.
    pub(super) async fn commit_now(
        &self,
        seq: Seq,
        deadline: Instant,
    ) -> Result<Committed, FsError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let done = timeout(left, self.commit_until(Seq(seq.0 + 1))).await;
        let refused = self.core().refused.remove(&seq);
        match done {
            Ok(Ok(())) if refused => Ok(Committed::Conflict),
            Ok(Ok(())) => Ok(Committed::Yes),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(FsError::TimedOut),
        }
    }

    /// Commits the oldest batch. The inner error is the sequencer's word; the outer one means that
    /// nothing is known to have happened and the batch waits on.
    async fn commit_front(&self) -> Result<Result<(), Refusal>, FsError> {
        let ring = {
            let core = self.core();
            if core.session.attempt_ended {
                return Ok(Ok(()));
            }
            // One epoch for all of it: when another begins from here on, the commit is refused.
            self.ring()
        };
        let Some((puts, inline)) = self.close_front() else { return Ok(Ok(())) };
        if puts.iter().any(|put| put.epoch < ring.current().epoch()) {
            let mut core = self.core();
            core.session.attempt_ended = true;
            core.session.epoch_moved = true;
            tracing::error!("a commit would name chunks of an older epoch: they are sealed again");
            return Ok(Ok(()));
        }
        let mut oldest = self.wait_for(&puts).await?; // step 1
        let payload = self.seal_payload(&ring)?;
        let beside = inline.as_ref().map_or(0, |(chunk, _)| chunk.bytes.len());
        let copies = self.chunks.copies();
        let inside =
            payload.bytes.len() + beside <= INSIDE_MAX && self.chunks.voters_are_enough(copies);
        if !inside {
            let chunks = [Some((payload.clone(), copies)), inline.clone()].into_iter().flatten();
            let put = |(chunk, copies)| self.chunks.put(chunk, copies, Charges::new());
            let puts: Vec<Put> = chunks.map(put).collect();
            oldest = min(oldest, self.wait_for(&puts).await?); // step 2
        }
        let inline = inline.map(|(chunk, _)| chunk);
        let request = self.request(&ring, payload, inline, inside, oldest)?;
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        let (attempt, n, until) = (request.attempt, request.n, request.until);
        let waiting = Some((attempt, n, until));
        if self.core().session.waiting != waiting {
            // Once, however often it is sent: while nobody answers the journal does not grow.
            let proposed = Entry::Proposed { attempt, n, until };
            let appended = journal.append(&proposed);
            appended.map_err(|error| journal_failed(&error))?; // step 3
            self.core().session.waiting = waiting;
        }
        let pass = match self.mode() {
            Mode::Leased { .. } => Vec::new(),
            _ => vec![LeaseUnit::Volume],
        };
        let append = Append { submission: request.submission, pass };
        let outcome = self.network.append(&append, self.options.deadline).await;
        COUNTS.commit(match &outcome {
            Ok(Outcome::Accepted { .. } | Outcome::Repeated { .. }) => "ordered",
            Ok(_) | Err(CallError::Refused(_)) => "refused",
            Err(_) => "unanswered",
        });
        match outcome {
            Ok(Outcome::Accepted { position, record }) => {
                self.ordered(position, &record).await?; // steps 4 and 5
                Ok(Ok(()))
            }
            Ok(Outcome::Repeated { position }) => {
                self.wait_until_applied(Position(position.0 + 1)).await?;
                Ok(Ok(()))
            }
            Ok(Outcome::Refused(refusal)) => Ok(Err(refusal)),
            Ok(other) => {
                tracing::error!(?other, "an answer that does not fit a commit");
                Err(FsError::Io)
            }
            Err(CallError::Refused(why)) => {
                tracing::error!(%why, "the network refuses this mount's commits");
                Err(FsError::Io)
            }
            Err(error) => {
                tracing::warn!(%error, "not committed yet; what was written stays in the journal");
                Err(FsError::TimedOut)
            }
        }
    }

    /// Closes the oldest batch, so that it stays what it is while it is proposed.
    fn close_front(&self) -> Option<(Vec<Put>, Option<Inline>)> {
        let mut core = self.core();
        let batch = core.queue.front_mut()?;
        batch.closed = true;
        Some((batch.puts.clone(), batch.inline.clone()))
    }

    /// When the oldest of the receipts was asked for, once all are durable.
    pub(super) async fn wait_for(&self, puts: &[Put]) -> Result<Option<TimeMs>, FsError> {
        let mut oldest = None;
        for put in puts {
            let stamp = match timeout(self.options.deadline, put.durable()).await {
                Ok(Ok(stamp)) => stamp,
                Ok(Err(_)) => return Err(FsError::Io),
                Err(_) => {
                    return Err(not_durable(put));
                }
            };
            if stamp != TimeMs(u64::MAX) {
                oldest = min(oldest, Some(stamp));
            }
        }
        Ok(oldest)
    }

    fn seal_payload(&self, ring: &KeyRing) -> Result<Sealed, FsError> {
        let core = self.core();
        let batch = core.queue.front().expect("only this task takes batches away");
        let links = payload::links(&batch.gathered.writes);
        let plaintext = payload::encode(&batch.gathered.writes);
        drop(core);
        let sealed = seal::seal(ring.current(), Kind::Payload, Codec::Zstd, &links, &plaintext);
        sealed.map_err(|error| {
            tracing::error!(%error, "a commit's payload cannot be sealed");
            FsError::Io
        })
    }

    fn request(
        &self,
        ring: &KeyRing,
        payload: Sealed,
        inline: Option<Sealed>,
        inside: bool,
        oldest: Option<TimeMs>,
    ) -> Result<Request, FsError> {
        let keys = ring.current();
        let core = self.core();
        let batch = core.queue.front().expect("only this task takes batches away");
        let tags = batch.gathered.facts.tags(keys.tag_key()).map_err(|error| {
            tracing::error!(%error, "a batch was allowed too many facts");
            FsError::Io
        })?;
        // Whoever follows the log would skip it; then it must not be called committed.
        let fresh = |ino| batch.gathered.begins(ino);
        if let Err(why) = cover::covered(&batch.gathered.writes, &tags, keys.tag_key(), fresh) {
            tracing::error!(%why, "a commit would be void; it is kept in the journal");
            return Err(FsError::Io);
        }
        let (attempt, n, until) = (core.session.attempt, core.session.n, batch.until);
        let body = Body::Commit(Commit {
            attempt,
            base: batch.base,
            changes: batch.gathered.writes.len() as u64,
            inline: inline.as_ref().map(chunk_ref),
            key_epoch: keys.epoch(),
            n,
            payload: chunk_ref(&payload),
            session: core.session.id,
            tags: TagsRef { b3: tags.b3(), count: tags.len() as u32 },
            volume: self.id,
        });
        drop(core);
        let req = self.network.request_name();
        let submission = self.sign(req, body)?;
        let commit = CommitParts {
            tags: TagList::encode(&tags),
            payload: inside.then(|| payload.bytes.to_vec()),
            inline: inline.filter(|_| inside).map(|chunk| chunk.bytes.to_vec()),
            oldest_receipt: oldest.map(|asked| in_the_ledgers_time(asked, req.time())),
        };
        Ok(Request {
            n,
            attempt,
            until,
            submission: Submission { commit: Some(commit), ..submission },
        })
    }

    /// Signs a record's body in this mount's name.
    pub(super) fn sign(&self, req: Ulid, body: Body) -> Result<Submission, FsError> {
        let proposal = Proposal::new(self.actor.clone(), req, body);
        let p = proposal.encode().map_err(|error| {
            tracing::error!(%error, "a record cannot be written down");
            FsError::Io
        })?;
        let sig = self.principal.sign(&record_message(&self.origin, &p));
        Ok(Submission { p, sig, commit: None })
    }

    /// What a refusal means for the operations in the batch.
    async fn refused(&self, refusal: Refusal) -> Result<(), FsError> {
        tracing::warn!(%refusal, "the sequencer refused a commit");
        match refusal {
            Refusal::StaleReceipt { .. } => self.stamp_again().await,
            // Some clock was set. The next request is named by the time that the refusal told, and
            // the turn in the session keeps it from being done twice.
            Refusal::ReqTooOld { .. } => Ok(()),
            Refusal::Behind { .. } | Refusal::TooManyRequests => {
                self.snapshot_wanted.notify_one();
                Err(FsError::TimedOut)
            }
            Refusal::Conflict { .. } | Refusal::StaleBase { .. } => {
                self.core().session.attempt_ended = true;
                self.next_attempt().await
            }
            Refusal::WrongEpoch { .. } => {
                // The record that began it is applied before the next attempt.
                {
                    let mut core = self.core();
                    core.session.attempt_ended = true;
                    core.session.epoch_moved = true;
                }
                self.next_attempt().await
            }
            Refusal::Fenced { .. }
            | Refusal::SessionEnded { .. }
            | Refusal::OldAttempt { .. }
            | Refusal::UnknownSession { .. }
            | Refusal::NotAllowed { .. } => {
                self.lost(&refusal);
                Err(self.lost_errno())
            }
            _ => {
                self.lost(&refusal);
                Err(self.lost_errno())
            }
        }
    }

    /// The session cannot commit any more. What waits is in the journal: the next mount orders it,
    /// or brings it back under another name.
    pub(super) fn lost(&self, refusal: &Refusal) {
        tracing::error!(%refusal,
            "this mount can commit nothing any more; what waited is kept in its journal: \
             unmount and mount again");
        self.refused_for_good(refusal);
        self.core().session.mode = Mode::Lost;
        self.stuck(self.lost_errno());
    }

    /// Chunks that were put over six hours ago may be near their collection: stamp them again.
    async fn stamp_again(&self) -> Result<(), FsError> {
        let puts = self.close_front().map(|(puts, _)| puts).unwrap_or_default();
        for put in &puts {
            let again = self.put_again(put.chunk, put.copies).await?;
            let mut core = self.core();
            if let Some(batch) = core.queue.front_mut() {
                batch.puts.retain(|old| old.chunk != put.chunk);
                batch.puts.push(again);
            }
        }
        Ok(())
    }

    fn stuck(&self, error: FsError) {
        self.no_commit();
        self.progress.send_modify(|progress| progress.stuck = Some(error));
    }
}

/// Why a chunk is not durable by the deadline, for the log and for whoever waits.
pub(super) fn not_durable(put: &Put) -> FsError {
    let trouble = put.trouble();
    let what = trouble.as_ref().map_or_else(|| "no answer".to_owned(), ToString::to_string);
    tracing::error!(chunk = %put.chunk, trouble = %what,
        "not enough peers took the data; it stays here and is put again");
    match trouble {
        Some(trouble) if trouble.full => FsError::NoSpace,
        _ => FsError::TimedOut,
    }
}

fn chunk_ref(sealed: &Sealed) -> ChunkRef {
    debug_assert_eq!(hash::address(&sealed.bytes), sealed.address, "sealing gives the address");
    ChunkRef { b3: sealed.address, size: sealed.bytes.len() as u64 }
}

/// A receipt's age is measured here, by a clock that nobody sets, so that it says the same whatever
/// the store's time of day is, and is told in the ledger's time.
fn in_the_ledgers_time(asked: TimeMs, ledger: TimeMs) -> TimeMs {
    let age_ms = crate::chunks::asked_now().0.saturating_sub(asked.0);
    TimeMs(ledger.0.saturating_sub(age_ms))
}

fn min(a: Option<TimeMs>, b: Option<TimeMs>) -> Option<TimeMs> {
    a.into_iter().chain(b).min()
}
