//! The session's life: heartbeats, the lease on the whole volume, its recall.
//!
//! Owns: when this mount may answer from its own state, and for how long the kernel may.
//! Invariant: the lease is used only until 90 % of its term after the heartbeat that got it was
//! *sent*, on a clock that also counts sleep; it is given back only when everything done under it
//! is committed and what the kernel was told has run out.

use super::Volume;
use super::state::Mode;
use crate::host::since_start;
use crate::network::CallError;
use mictlan::id::{Position, SessionId};
use mictlan::meta::error::FsError;
use mictlan::wire::{
    Barrier, CloseSession, Heartbeat, HeartbeatReply, Lease, LeaseMode, LeaseUnit, Ticket,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long the leader may hold a heartbeat back for news; a fraction of any term.
const NEWS_WAIT: Duration = Duration::from_millis(2_000);
/// After a heartbeat that nobody answered.
const PAUSE: Duration = Duration::from_millis(300);
/// The kernel may answer by itself for this long; a recall waits for it to run out.
pub(super) const LIFETIME: Duration = Duration::from_secs(1);
/// Without a lease, a reader waits this long for the leader's word on where the log stands, and
/// then reads what is known here: with no quorum nobody can have committed anything newer.
const CONFIRM_WAIT: Duration = Duration::from_secs(3);
/// At the end of a mount: for copies beyond those that make a chunk durable.
const LAST_COPIES_WAIT: Duration = Duration::from_secs(10);
/// For so long nobody else waits for a leader that just was not there.
const UNCONFIRMED_FOR: Duration = Duration::from_secs(5);

/// The lease on the whole volume, by whichever grant.
fn whole(granted: Ticket) -> Lease {
    Lease { unit: LeaseUnit::Volume, mode: LeaseMode::Write, granted }
}

impl Volume {
    /// Beats until the volume ends.
    pub(super) async fn beat(self: Arc<Self>) {
        loop {
            let sent = since_start();
            match self.heartbeat().await {
                Ok(reply) => self.heard(sent, reply).await,
                Err(error) => {
                    tracing::debug!(%error, "no voter answers heartbeats");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if self.core().session.mode == Mode::Lost || self.ending.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    async fn heartbeat(&self) -> Result<HeartbeatReply, CallError> {
        let release = match self.releasing.swap(false, Ordering::Relaxed) {
            true => vec![(LeaseUnit::Volume, Ticket(self.grant.load(Ordering::Relaxed)))],
            false => Vec::new(),
        };
        let wait_ms = NEWS_WAIT.as_millis() as u32;
        let heartbeat = Heartbeat { release, wait_ms, ..self.beat_of(self.credit_said()) };
        self.network
            .voter_with_news(NEWS_WAIT, self.options.deadline, |link| {
                let heartbeat = heartbeat.clone();
                async move { link.heartbeat(heartbeat).await }
            })
            .await
    }

    /// What is said of this session at this moment.
    fn beat_of(&self, credit: u64) -> Heartbeat {
        let core = self.core();
        let leased = matches!(core.session.mode, Mode::Leased { .. });
        // While a recall is being served the lease is still held, and not wanted again.
        let giving = self.recalled.load(Ordering::Relaxed);
        let grant = Ticket(self.grant.load(Ordering::Relaxed));
        Heartbeat {
            volume: self.id,
            session: core.session.id,
            attempt: core.session.attempt,
            applied: core.view.position(),
            want: if giving { Vec::new() } else { vec![whole(Ticket(0))] },
            held: if leased || giving { vec![whole(grant)] } else { Vec::new() },
            release: Vec::new(),
            open_orphans: Vec::new(),
            reap: Vec::new(),
            credit,
            wait_ms: 0,
        }
    }

    /// A question for credit alone: what it might say of the lease, the regular heartbeat says.
    pub(super) fn beat_for_credit(&self, credit: u64) -> Heartbeat {
        Heartbeat { want: Vec::new(), held: Vec::new(), ..self.beat_of(credit) }
    }

    async fn heard(self: &Arc<Self>, sent: Duration, reply: HeartbeatReply) {
        let held = reply.held.iter().find(|lease| lease.unit == LeaseUnit::Volume);
        let holds = held.is_some();
        if let Some(lease) = held {
            self.grant.store(lease.granted.0, Ordering::Relaxed);
        }
        let recalled = reply.recall.iter().any(|(unit, _)| *unit == LeaseUnit::Volume);
        if recalled && holds {
            if !self.recalled.swap(true, Ordering::Relaxed) {
                tokio::spawn(self.clone().give_back());
            }
            return;
        }
        if !holds || self.recalled.load(Ordering::Relaxed) {
            let mut core = self.core();
            if matches!(core.session.mode, Mode::Leased { .. }) {
                core.session.mode = Mode::Synchronous;
            }
            return;
        }
        // 10 % of the term are left for clocks that run apart.
        let term = Duration::from_millis(u64::from(reply.term_ms)) * 9 / 10;
        let Some(left) = (sent + term).checked_sub(since_start()) else { return };
        let until = Instant::now() + left;
        // What was committed before the grant must be seen before anything is answered under it.
        if self.leased_from(reply.read).await.is_ok() {
            let mut core = self.core();
            if core.session.mode != Mode::Lost {
                core.session.mode = Mode::Leased { until };
            }
            drop(core);
            self.lease_changed.notify_waiters();
        }
    }

    async fn leased_from(&self, read: Position) -> Result<(), FsError> {
        if self.progress.borrow().applied >= read {
            return Ok(());
        }
        // An operation that goes all the way to its commit must not meet the change of mode.
        let _turn = self.turn.lock().await;
        self.wait_until_applied(read).await
    }

    /// Serves a recall: nothing more is answered locally, everything is committed, what the kernel
    /// was told runs out, and with the next heartbeat the lease goes back.
    async fn give_back(self: Arc<Self>) {
        {
            let mut core = self.core();
            if matches!(core.session.mode, Mode::Leased { .. }) {
                core.session.mode = Mode::Synchronous;
            }
        }
        let told_until = Instant::now() + LIFETIME;
        let mut said = false;
        while let Err(error) = self.flush(self.options.deadline).await {
            if self.core().session.mode == Mode::Lost {
                return;
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(%error,
                    "the lease is asked for, and waits for commits of this mount");
            }
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep_until(told_until).await;
        self.releasing.store(true, Ordering::Relaxed);
        self.recalled.store(false, Ordering::Relaxed);
    }

    pub(super) async fn close_session(&self, session: SessionId) -> Result<(), CallError> {
        let close = CloseSession { volume: self.id, session, req: crate::host::ulid_bytes() };
        let closed = self.network.voter(CONFIRM_WAIT, |link| {
            let close = close.clone();
            async move { link.close_session(close).await }
        });
        closed.await
    }

    /// Without the lease: each change waits for its commit.
    pub fn is_beside_others(&self) -> bool {
        self.mode() == Mode::Synchronous
    }

    /// Before a question is answered: under the lease and on a read-only mount at once, otherwise
    /// when everything that others have closed is seen.
    pub(super) async fn fresh(&self) -> Result<(), FsError> {
        self.believed()?;
        if let Some(coherent) = self.coherent.as_ref().filter(|coherent| coherent.asks()) {
            return self.look(coherent).await;
        }
        if self.mode() != Mode::Synchronous {
            return Ok(());
        }
        let now = Instant::now();
        let unconfirmed = *self.unconfirmed_until();
        if unconfirmed.is_some_and(|until| now < until) {
            return Ok(());
        }
        match self.catch_up(now + CONFIRM_WAIT.min(self.options.deadline)).await {
            Ok(()) => *self.unconfirmed_until() = None,
            // A quorum answers, so somebody is slow to give a lease back: that is waited for.
            Err(FsError::TimedOut) if self.has_quorum().await => {
                self.catch_up(now + self.options.deadline).await?;
            }
            Err(FsError::TimedOut) => {
                tracing::warn!("no quorum of voters answers: reads go on with what is known here");
                *self.unconfirmed_until() = Some(Instant::now() + UNCONFIRMED_FOR);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn has_quorum(&self) -> bool {
        self.network.read_position(&Barrier::default(), CONFIRM_WAIT).await.is_ok()
    }

    fn unconfirmed_until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.unconfirmed.lock().expect("nothing panics while it is locked")
    }

    /// For how long the kernel may answer by itself what it is told now.
    pub(super) fn lifetime(&self) -> Duration {
        match self.core().session.mode {
            Mode::Leased { until } => LIFETIME.min(until.saturating_duration_since(Instant::now())),
            Mode::Reader if self.coherent.is_none() => LIFETIME,
            Mode::Reader | Mode::Synchronous | Mode::Lost => Duration::ZERO,
        }
    }

    /// Whether an acknowledgement may rest on the journal. Asked under the lock of what it is
    /// about: whoever is told yes is seen by `end` before that looks for what is not committed.
    pub(super) fn takes_changes(&self) -> Result<(), FsError> {
        match self.closed_to_changes.load(Ordering::SeqCst) {
            true => Err(FsError::ReadOnly),
            false => Ok(()),
        }
    }

    /// Everything is committed and the session closed, as far as the deadline allows. What is not
    /// committed by then stays in the journal, and the caller says so.
    pub async fn end(&self) -> Result<(), FsError> {
        // The kernel's mount may still be there, and programs that write. First, so that nothing
        // comes into the journal behind the last look at it.
        self.closed_to_changes.store(true, Ordering::SeqCst);
        // If that fails, the session stays open: the next mount fences it and takes its journal
        // over.
        let journal = self.journal.as_ref().filter(|_| self.has_uncommitted());
        if let Some(journal) = journal {
            journal.ends(true);
        }
        self.flush(self.options.deadline).await?;
        // Whatever the reason: a journal that somebody needs is not removed.
        if self.has_uncommitted() {
            return Err(FsError::TimedOut);
        }
        if let Some(journal) = journal {
            journal.ends(false);
        }
        self.last_snapshot().await;
        self.chunks.settle(LAST_COPIES_WAIT).await;
        self.believed()?;
        self.is_ordered_by_most().await?;
        self.ending.store(true, Ordering::Relaxed);
        self.work.notify_one();
        if let Some(coherent) = self.coherent.as_ref().filter(|coherent| coherent.asks()) {
            self.end_coherent(coherent).await;
        }
        if self.core().session.mode == Mode::Reader {
            return Ok(());
        }
        // Before the session is closed, because it has a use only as long as the session is known
        // (crash: nothing is left of either but a session, which is fenced when it is in the way).
        if let Some(Err(error)) = self.journal.as_ref().map(|journal| journal.remove()) {
            tracing::warn!(%error, "an empty journal is left behind");
        }
        let session = self.core().session.id;
        if let Err(error) = self.close_session(session).await {
            tracing::debug!(%error, "the session is left to be fenced");
        }
        Ok(())
    }
}
