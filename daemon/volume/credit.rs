//! Space credit: what this mount may write before it asks again.
//!
//! Owns: what is left of the grants, and the question for more.
//! Invariant: a byte is taken in only with credit for it, as long as a leader answers; so a full
//! network is told by the write, and not by an `fsync` after it.

use super::Volume;
use mictlan::cluster::credit::{GRANT_MIN, HELD_MAX};
use mictlan::meta::error::FsError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a writer waits for the leader's word; then he goes on without, and memory is the limit.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// For so long nobody asks a leader that just was not there.
const UNANSWERED_FOR: Duration = Duration::from_secs(5);
/// Between two questions while this mount's own bytes are on their way to their peers: what they
/// take there is known when they have arrived.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Credit {
    left: AtomicU64,
    /// Something was taken since the last regular heartbeat.
    used: AtomicBool,
    asking: tokio::sync::Mutex<()>,
    unanswered_until: Mutex<Option<Instant>>,
}

impl Credit {
    fn take(&self, bytes: u64) -> bool {
        self.used.store(true, Ordering::Relaxed);
        let take = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn unanswered(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.unanswered_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volume {
    /// Credit for `bytes` that are about to be taken in.
    pub(super) async fn take_credit(&self, bytes: u64) -> Result<(), FsError> {
        if self.credit.take(bytes) {
            return Ok(());
        }
        let give_up = Instant::now() + self.options.deadline;
        let _turn = self.credit.asking.lock().await;
        loop {
            if self.credit.take(bytes) || !self.may_ask() {
                return Ok(());
            }
            let flying = self.budget.used_bytes();
            let Some(granted) = self.ask_for_credit(bytes).await else { return Ok(()) };
            self.credit.left.fetch_add(granted, Ordering::Relaxed);
            if self.credit.take(bytes) {
                return Ok(());
            }
            if granted > 0 {
                continue;
            }
            if flying == 0 || self.chunks.is_full() {
                self.chunks.no_room();
                return Err(FsError::NoSpace);
            }
            if Instant::now() >= give_up {
                return Err(FsError::TimedOut);
            }
            self.want_room();
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn may_ask(&self) -> bool {
        self.credit.unanswered().is_none_or(|until| Instant::now() >= until)
    }

    /// `None`: nobody answers.
    async fn ask_for_credit(&self, bytes: u64) -> Option<u64> {
        let wanted = self.credit_wanted().max(bytes);
        let beat = self.beat_for_credit(wanted);
        let asked = self.network.voter(ANSWER_WITHIN, |link| {
            let beat = beat.clone();
            async move { link.heartbeat(beat).await }
        });
        match asked.await {
            Ok(reply) => Some(reply.credit),
            Err(error) => {
                tracing::debug!(%error, "no leader grants space; memory is the limit");
                *self.credit.unanswered() = Some(Instant::now() + UNANSWERED_FOR);
                None
            }
        }
    }

    /// What is missing to the most that may be held, and so what is held: unwritten, or not on its
    /// peers yet. Never 0, which would say nothing.
    fn credit_wanted(&self) -> u64 {
        let held = self.credit.left.load(Ordering::Relaxed) + self.budget.used_bytes();
        HELD_MAX.saturating_sub(held).max(1)
    }

    /// For the regular heartbeat. Who wrote nothing since the last one keeps no more than the
    /// smallest grant, so that others have it.
    pub(super) fn credit_said(&self) -> u64 {
        if !self.credit.used.swap(false, Ordering::Relaxed) {
            self.credit.left.fetch_min(GRANT_MIN, Ordering::Relaxed);
        }
        self.credit_wanted()
    }
}
