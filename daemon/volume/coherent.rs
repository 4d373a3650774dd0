//! A read-only mount that sees what others have closed: `-o ro,coherent`.
//!
//! Owns: its session, by which writers give way to it, and the question that each look waits for.
//! Never: holds a lease or sends a heartbeat, so that a term after its last look it slows nobody
//! down; answers from what is known here while the leader cannot be asked.
//! Invariant: a look is answered from a view that has all that was ordered, or held back under
//! another's lease, when the look began.

use super::Volume;
use super::journal::{About, Journal, Left};
use super::start::{Opening, Start};
use crate::network::CallError;
use mictlan::id::VolumeId;
use mictlan::meta::error::FsError;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Before a voter is asked again to close a killed mount's session.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Coherent {
    /// How many questions were sent.
    begun: AtomicU64,
    /// The last of them whose answer the view has. Held by whoever asks.
    done: tokio::sync::Mutex<u64>,
    /// A journal that nothing is written to: after a kill it names the session that is to be closed.
    /// `None`: the disk had no room for it, and a command does not end for that.
    note: Option<Journal>,
    /// Its session is closed, and nothing is asked any more.
    over: AtomicBool,
}

fn notes(start: &Start, volume: VolumeId) -> PathBuf {
    start.journals.with_file_name("readers").join(volume.to_string())
}

impl Coherent {
    /// Also what killed mounts of this kind left on this host.
    pub fn begin(start: &Start, about: About) -> Opening<(Self, Vec<Left>)> {
        let dir = notes(start, about.volume);
        // One of another key is closed when a mount with that key begins.
        let left = Left::find(&dir, &start.principal, &mut Vec::new())?;
        let owner = start.principal.public();
        let note = match Journal::note(&dir.join(about.session.to_string()), about, owner) {
            Err(error) if start.once => {
                tracing::debug!(%error, "no note of this command's session");
                None
            }
            note => Some(note?),
        };
        let done = tokio::sync::Mutex::new(0);
        Ok((Self { begun: AtomicU64::new(0), done, note, over: AtomicBool::new(false) }, left))
    }

    /// Whether each look asks the leader.
    pub fn asks(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// No look asks from here on.
    pub fn is_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Volume {
    /// Before a question is answered on such a mount. Those that look at the same time share a
    /// question, if it was sent after each of them began.
    pub(super) async fn look(&self, coherent: &Coherent) -> Result<(), FsError> {
        if !self.is_member() {
            return Err(FsError::Denied);
        }
        let deadline = Instant::now() + self.options.deadline;
        let wanted = coherent.begun.load(Ordering::SeqCst) + 1;
        let looked = async {
            let mut done = coherent.done.lock().await;
            if *done >= wanted {
                return Ok(());
            }
            let asking = coherent.begun.fetch_add(1, Ordering::SeqCst) + 1;
            self.catch_up(deadline).await?;
            *done = asking;
            Ok(())
        };
        timeout_at(deadline, looked).await.unwrap_or(Err(FsError::TimedOut))
    }

    /// Closes the sessions of killed mounts: they hold nothing, and count among those that are open.
    pub(super) async fn close_left(self: Arc<Self>, left: Vec<Left>) {
        for left in left {
            let session = left.about.session;
            while let Err(error) = self.close_session(session).await {
                tracing::debug!(%session, %error, "the session of a killed mount stays open");
                if self.ending.load(Ordering::Relaxed) {
                    return;
                }
                if matches!(error, CallError::Refused(_)) {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            if let Err(error) = left.remove() {
                tracing::debug!(%session, %error, "a note of a killed mount stays");
            }
        }
    }

    /// At the end of the mount, or of a command's one look. A session that stays open is closed by
    /// the next one.
    pub(super) async fn end_coherent(&self, coherent: &Coherent) {
        let session = self.core().session.id;
        let closed = self.close_session(session).await;
        let removed = closed.map(|()| coherent.note.as_ref().map(Journal::remove));
        tracing::debug!(%session, ?removed, "this mount's session");
    }
}
