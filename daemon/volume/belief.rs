//! Whether what this mount was shown is what a quorum of the voters signed.
//!
//! Owns: the comparison of applied records with the verified ledger, and the end of belief.
//! Never: judges; `ledger::inclusion` does, and `crate::ledger` verifies the checkpoints.
//! Invariant: belief that ended does not come back in this mount: nothing is read, changed or
//! committed any more. No checkpoint at all ends nothing; it is told.

use super::Volume;
use super::state::Mode;
use crate::host;
use crate::ledger::{Ledger, LedgerError, Seen};
use mictlan::cluster::refusal::Refusal;
use mictlan::id::{Label, LedgerHash, Position, TimeMs};
use mictlan::ledger::inclusion::{self, Inclusion, Signed};
use mictlan::ledger::record::time;
use mictlan::meta::error::FsError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// How often the ledger is asked while applied records wait for a checkpoint, and otherwise.
const EVERY: Duration = Duration::from_secs(3);
const EVERY_AT_REST: Duration = Duration::from_secs(5);
/// A follower hears at least an empty page in every two seconds.
const SILENT: Duration = Duration::from_secs(3);
/// Voters cosign every 10 s, also when nothing happens.
const UNSIGNED: Duration = Duration::from_secs(60);
/// Commits that wait for so long are told.
const UNCOMMITTED: Duration = Duration::from_secs(60);
/// A program that tries to write again and again is told in the log so often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Why nothing of the volume is believed any more.
#[derive(Debug, thiserror::Error)]
pub enum Disbelief {
    #[error(transparent)]
    Record(#[from] inclusion::Broken),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Either it is wrong, or the root that this mount began with.
    #[error(
        "record {record}, signed by {by}, names as a snapshot root a tree that the commits up to \
         record {position} do not make here"
    )]
    Root { record: Position, by: Label, position: Position },
}

impl Disbelief {
    /// What to do about it.
    fn next(&self) -> &'static str {
        match self {
            Self::Root { .. } => "mictlan verify --replay",
            _ => "mictlan ledger verify, then unmount and mount",
        }
    }
}

/// What a mount has to say of itself; `mictlan status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub code: &'static str,
    pub what: String,
    pub next: &'static str,
    pub severe: bool,
}

/// What this mount knows of its own standing.
pub(super) struct Belief {
    ledger: Arc<Ledger>,
    began: Instant,
    /// Covers what waits for a checkpoint.
    inclusion: Mutex<Inclusion>,
    ended: OnceLock<Disbelief>,
    /// Covers when the log was last heard of.
    heard: Mutex<Heard>,
    /// It came up without a quorum: only what a checkpoint covers is applied, nothing is changed.
    proven: Option<Position>,
    /// This key may not change the volume, so nothing is changed here.
    reads: bool,
    /// The refusal after which nothing was committed any more.
    refused: OnceLock<Refusal>,
    /// Covers since when no commit gets on, if one waits.
    stuck: Mutex<Option<(Instant, TimeMs)>>,
    /// Covers when a refused writer was last told why.
    said: Mutex<Option<Instant>>,
    /// Shown once that a checkpoint is late, until one comes.
    late: AtomicBool,
}

struct Heard {
    log: (Instant, TimeMs),
    /// The newest cosignature, by the voters' clocks, and when it was first seen here.
    signed: u64,
    signed_at: (Instant, TimeMs),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is locked")
}

fn moment() -> (Instant, TimeMs) {
    (Instant::now(), host::now())
}

impl Belief {
    pub fn new(ledger: Arc<Ledger>, proven: Option<Position>, reads: bool) -> Self {
        Self {
            ledger,
            began: Instant::now(),
            inclusion: Mutex::default(),
            ended: OnceLock::new(),
            heard: Mutex::new(Heard { log: moment(), signed: 0, signed_at: moment() }),
            proven,
            reads,
            refused: OnceLock::new(),
            stuck: Mutex::default(),
            said: Mutex::default(),
            late: AtomicBool::new(false),
        }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// A record was applied, or relied on; `follows`: it names the one applied before it.
    pub fn applied(&self, at: Position, leaf: LedgerHash, follows: bool) {
        lock(&self.inclusion).applied(self.now_ms(), at, leaf, follows);
    }

    /// The end of what was compared with what a quorum signed, of records before `end`.
    pub fn proven_before(&self, end: Position) -> Position {
        lock(&self.inclusion).oldest().map_or(end, |oldest| oldest.min(end))
    }

    /// A voter answered a question about the log.
    pub fn heard(&self) {
        lock(&self.heard).log = moment();
    }

    /// How many records are under the newest checkpoint that this machine verified.
    pub fn signed(&self) -> u64 {
        self.ledger.seen().map_or(0, |seen| seen.size())
    }

    /// The end of what may be applied: all of it, unless this mount came up without a quorum.
    pub fn limit(&self) -> Option<Position> {
        self.proven.map(|proven| proven.max(Position(self.signed())))
    }

    /// Compares what waits with a verified tree.
    async fn compare(&self, seen: &Seen) -> Result<(), Disbelief> {
        let waiting = lock(&self.inclusion).below(seen.size());
        for at in waiting {
            let signed = self.ledger.leaf(seen, at).await?;
            lock(&self.inclusion).compare(at, signed)?;
        }
        let times = || seen.accepted.cosigned.iter().map(|(_, time)| *time);
        let (oldest, newest) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        let note = Signed { size: seen.size(), oldest, newest };
        lock(&self.inclusion).signed(self.now_ms(), note)?;
        let mut heard = lock(&self.heard);
        if newest > heard.signed {
            heard.signed = newest;
            heard.signed_at = moment();
        }
        Ok(())
    }

    /// One look at the ledger: an error is the end of belief; what cannot be had now is not one.
    async fn look(&self) -> Result<(), Disbelief> {
        let seen = match self.ledger.refresh().await {
            Ok(seen) => seen,
            Err(error @ LedgerError::Contradiction { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "what was applied is not compared with a checkpoint now");
                return Ok(());
            }
        };
        match self.compare(&seen).await {
            Err(Disbelief::Ledger(error)) => {
                tracing::debug!(%error, "what was applied is not compared with a checkpoint now");
                Ok(())
            }
            compared => compared,
        }
    }

    fn say_if_late(&self) {
        let at = lock(&self.inclusion).late_at(self.now_ms());
        match at {
            Some(at) if !self.late.swap(true, Ordering::Relaxed) => tracing::warn!(record = %at,
                "no cosigned checkpoint covers what was applied 10 s ago; the voters that \
                 do not cosign are in ledger/status.json"),
            Some(_) => {}
            None => self.late.store(false, Ordering::Relaxed),
        }
    }
}

impl Volume {
    /// The network's ledger as this machine verified it.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.belief.ledger
    }

    /// Gate of every question and change.
    pub(super) fn believed(&self) -> Result<(), FsError> {
        self.belief.ended.get().map_or(Ok(()), |_| Err(FsError::Io))
    }

    /// Everything that was applied is in a tree that a quorum signed; asked of a mount that came up
    /// without one.
    pub(super) async fn all_proven(&self, seen: &Seen) -> Result<(), Disbelief> {
        self.belief.compare(seen).await
    }

    /// Compares until the volume ends, or belief does.
    pub(super) async fn watch_ledger(self: Arc<Self>) {
        loop {
            let rest = lock(&self.belief.inclusion).is_empty();
            tokio::time::sleep(if rest { EVERY_AT_REST } else { EVERY }).await;
            if self.ending.load(Ordering::Relaxed) {
                return;
            }
            if let Err(why) = self.belief.look().await {
                return self.disbelieve(why);
            }
            self.let_go_of_what_is_proven().await;
            self.belief.say_if_late();
        }
    }

    /// From here on every call gets EIO, and nothing is committed.
    pub(super) fn disbelieve(&self, why: Disbelief) {
        match why {
            Disbelief::Root { .. } => tracing::error!(%why,
                "what this mount shows and what the volume's members say it is differ: nothing of \
                 it is read or written any more, and what was not committed stays in the journal; \
                 find out who is wrong (mictlan verify --replay)"),
            _ => tracing::error!(%why,
                "this mount was shown a log that the voters did not sign: nothing of it is read or \
                 written any more, and what was not committed stays in the journal; find the voter \
                 that lied (mictlan ledger verify, asking each), then unmount and mount again"),
        }
        // A second one says nothing more.
        let _ = self.belief.ended.set(why);
        let mut core = self.core();
        if core.session.mode != Mode::Reader {
            core.session.mode = Mode::Lost;
        }
        drop(core);
        self.progress.send_modify(|progress| progress.stuck = Some(FsError::Io));
        self.work.notify_one();
    }

    /// What a change gets on a mount that changes nothing.
    pub(super) fn read_only(&self) -> FsError {
        if self.belief.proven.is_some() {
            let mut said = lock(&self.belief.said);
            if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                *said = Some(Instant::now());
                tracing::warn!(
                    "a change was refused: this mount came up without a majority of the voters, \
                     so it is read-only; start them (mictlan serve), unmount and mount again"
                );
            }
        }
        FsError::ReadOnly
    }

    /// Whether this key may only read the volume.
    pub fn is_readers(&self) -> bool {
        self.belief.reads
    }

    /// A try to commit failed, and what it had waits on.
    pub(super) fn no_commit(&self) {
        lock(&self.belief.stuck).get_or_insert_with(moment);
    }

    pub(super) fn commit_came(&self) {
        *lock(&self.belief.stuck) = None;
    }

    /// Nothing is committed from here on, because of `refusal`.
    pub(super) fn refused_for_good(&self, refusal: &Refusal) {
        let _ = self.belief.refused.set(refusal.clone()); // the first says why
    }

    pub(super) fn may_not_commit(&self) -> bool {
        matches!(self.belief.refused.get(), Some(Refusal::NotAllowed { .. }))
    }

    /// Chunks that are durable and not yet at all their copies.
    pub fn copies_owed(&self) -> usize {
        self.chunks.owed()
    }

    /// Of the newest commit that this mount shows.
    pub fn applied_position(&self) -> Position {
        self.core().view.position()
    }

    /// Why what was written is not committed, if that is for long, and what to do.
    fn waiting(&self) -> Option<(String, &'static str)> {
        if let Some(refusal) = self.belief.refused.get() {
            let what = format!(
                "this mount can commit nothing any more: {refusal}; what was not committed is in \
                 its journal"
            );
            return Some((what, "unmount, and mount again with the same key"));
        }
        let (_, at) = lock(&self.belief.stuck).filter(|(at, _)| at.elapsed() > UNCOMMITTED)?;
        let what = format!(
            "nothing has been committed since {}, and something waits: it is in the journal, and \
             the mount's log has the cause",
            time::format(at)
        );
        Some((what, "mictlan status; if it lasts, unmount and mount again"))
    }

    /// The records that it shows where it came up without a quorum, and when they were last signed.
    pub(super) fn proven_at(&self) -> Option<(Position, TimeMs)> {
        let proven = self.belief.proven?;
        let signed = lock(&self.belief.heard).signed.saturating_mul(1_000);
        Some((proven, TimeMs(signed).min(time::LAST)))
    }

    /// What is wrong with this mount's view, for `mictlan status`.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut found = Vec::new();
        let mut tell = |code, severe, what: String, next| {
            found.push(Trouble { code, what, next, severe });
        };
        if let Some(why) = self.belief.ended.get() {
            let what = format!("nothing of this mount is believed any more, all is EIO: {why}");
            tell("contradiction", true, what, why.next());
            return found;
        }
        if let Some(at) = self.removed.get() {
            let what = format!(
                "record {at} removed this key from the volume; what was not committed is in the \
                 journal"
            );
            tell("removed", true, what, "an owner: mictlan member add; then unmount and mount");
            return found;
        }
        if let Some(proven) = self.belief.proven {
            let what = format!(
                "mounted read-only, because a majority of the voters did not answer; it began \
                 with the {proven} records that a checkpoint proves"
            );
            tell("mounted-without-quorum", true, what, "mictlan serve there, unmount and mount");
        }
        if self.belief.reads {
            let what = "this key may read the volume and not change it, so it is mounted read-only";
            let next = "an owner: mictlan member add NAME --role writer; then unmount and mount";
            tell("reader", false, what.to_owned(), next);
        }
        let since = |(_, at): (Instant, TimeMs)| time::format(at);
        if let Some((what, next)) = self.waiting() {
            tell("commits-wait", true, what, next);
        }
        let heard = lock(&self.belief.heard);
        if heard.log.0.elapsed() > SILENT {
            let what = format!("no voter has shown this mount the log since {}", since(heard.log));
            tell("stale-view", true, what, "mictlan status");
        } else if heard.signed_at.0.elapsed() > UNSIGNED {
            let at = since(heard.signed_at);
            let what = format!("no newly cosigned checkpoint has reached this mount since {at}");
            tell("stale-view", true, what, "mictlan status");
        }
        drop(heard);
        if let Some(at) = lock(&self.belief.inclusion).late_at(self.belief.now_ms()) {
            let what = format!("record {at} was applied, and no cosigned checkpoint covers it yet");
            tell("unproved", false, what, "mictlan status");
        }
        for (peer, at) in self.chunks.away() {
            let what =
                format!("peer {peer} has not answered this mount since {}", time::format(at));
            tell("peer-away", false, what, "on its machine: mictlan serve");
        }
        for (peer, lies) in self.chunks.liars() {
            let (count, last) = (lies.count, time::format(lies.last));
            let what = format!(
                "peer {peer} gave this mount {count} times what is not the chunk, or a receipt for \
                 something else, the last time at {last}; nothing of it was used, and its copies \
                 cannot be relied on"
            );
            tell("peer-lied", true, what, "find out what runs there; until then add another peer");
        }
        let owed = self.copies_owed();
        if owed > 0 {
            let what = format!(
                "{owed} chunks are durable and not yet at all their copies; this mount tries at \
                 least every minute, until the peers that were away have them or it ends"
            );
            tell(
                "copies-owed",
                false,
                what,
                "start the silent peers, make room on the full ones: mictlan status",
            );
        }
        found
    }

    /// The same in lines, as an attribute of every file.
    pub(super) fn view_in_words(&self) -> String {
        let mut text = format!("applied {}\n", self.applied_position());
        text.push_str(&format!("signed {}\n", self.belief.signed()));
        text.push_str(&format!("root {}\n", self.trail.from()));
        let heard_ms = lock(&self.belief.heard).log.0.elapsed().as_millis();
        text.push_str(&format!("heard_ms {heard_ms}\n"));
        for trouble in self.troubles() {
            text.push_str(&format!("{} {}\n", trouble.code, trouble.what));
        }
        text
    }
}
