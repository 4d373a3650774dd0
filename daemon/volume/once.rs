//! The one look of a command that reads and ends: `get` and `ls`.
//!
//! Owns: that it sees what others had closed when it began, and what it says when it does not.
//! Never: keeps anybody waiting after that look: its session ends with it.
//! Invariant: what may be missing is told; a command that says nothing showed all of it.

use super::Volume;
use super::quorum;
use super::start::{OpenError, Opening, Start};
use crate::network::CallError;
use mictlan::id::{SessionId, VolumeId};
use mictlan::ledger::record::time;
use mictlan::meta::error::FsError;
use std::time::Duration;

/// A leader that is there has answered by then, also a new one.
const SESSION_WAIT: Duration = Duration::from_secs(15);

/// What a command shows where it could not be known what is newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    pub what: String,
    /// Of when that state is; `None`: of now, but for what others have closed and not committed.
    pub as_of: Option<String>,
}

/// The session by which others give way to a look; `None` where none can be had, though voters
/// answer.
pub(super) async fn open_session_once(
    start: &Start,
    volume: VolumeId,
) -> Opening<Option<SessionId>> {
    let wait = start.options.deadline.min(SESSION_WAIT);
    let opened = start.network.open_session(volume, wait);
    match quorum::or_none(&start.network, opened).await {
        Some(Ok(opened)) => Ok(Some(opened.session)),
        Some(Err(error @ CallError::NobodyKnown)) => Err(error.into()),
        Some(Err(error)) => {
            tracing::debug!(%error, "a command looks without a session");
            Ok(None)
        }
        None => Err(OpenError::NoQuorum),
    }
}

impl Volume {
    /// Brings the view to what others had closed, and lets them go on as before.
    pub(super) async fn look_once(&self) -> Opening<()> {
        let Some(coherent) = &self.coherent else {
            let _ = self.unseen.set("the leader opened no session for the question".to_owned());
            return self.first_catch_up().await;
        };
        let looked = self.first_catch_up().await;
        if !matches!(looked, Err(OpenError::NoQuorum)) {
            self.end_coherent(coherent).await;
            coherent.is_over();
            self.core().session.id = SessionId::default();
        }
        match looked {
            Err(OpenError::Fs(FsError::TimedOut)) => {
                let why = "another mount does not give its lease back in time";
                let _ = self.unseen.set(why.to_owned());
                self.first_catch_up().await
            }
            looked => looked,
        }
    }

    /// What a command must say of what it shows, if that may not be the newest.
    pub fn behind(&self) -> Option<Behind> {
        if let Some((records, signed)) = self.proven_at() {
            let as_of = time::format(signed);
            let what = format!(
                "a majority of the voters does not answer: this is the volume as of {as_of} (the \
                 {records} records that a checkpoint proves), and what was changed since is missing"
            );
            return Some(Behind { what, as_of: Some(as_of) });
        }
        let why = self.unseen.get()?;
        let what = format!(
            "all that is committed is shown, and what other mounts closed a moment ago may be \
             missing or older: {why}"
        );
        Some(Behind { what, as_of: None })
    }
}
