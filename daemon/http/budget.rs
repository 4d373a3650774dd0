//! What bodies may take of this process's memory, in sum over all connections of a port.
//!
//! Owns: one budget for each kind of body, so that none can starve another: a flood of chunks keeps
//! no commit from being ordered, and members' messages keep no voter from being heard.
//! Never: counts what a request or a reply takes beside its body.
//! Invariant: a share is given back when the last reference to what it was taken for is gone.

use crate::http::admission::Limits;
use bytes::Bytes;
use mictlan::wire::Failure;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Shares are counted in these, so that the widest budget fits a semaphore.
const UNIT_BYTES: usize = 1024;

pub struct Budget {
    units: Arc<Semaphore>,
    /// How long a request waits for its share.
    patience: Duration,
    /// In words, for whoever is refused.
    what: &'static str,
}

/// So many bytes of a budget.
pub struct Share {
    _units: OwnedSemaphorePermit,
}

impl Budget {
    pub fn new(bytes: usize, patience: Duration, what: &'static str) -> Self {
        Self { units: Arc::new(Semaphore::new(bytes / UNIT_BYTES)), patience, what }
    }

    /// A share for `bytes`, as soon as there is room.
    pub async fn take(&self, bytes: usize) -> Result<Share, Failure> {
        let share = self.units.clone().acquire_many_owned(units(bytes));
        match tokio::time::timeout(self.patience, share).await {
            Ok(Ok(units)) => Ok(Share { _units: units }),
            // The semaphore is never closed, so this is the deadline.
            _ => Err(self.busy()),
        }
    }

    /// The same for what is in memory already, which must not wait there for room.
    pub fn take_now(&self, bytes: usize) -> Result<Share, Failure> {
        let share = self.units.clone().try_acquire_many_owned(units(bytes));
        share.map(|units| Share { _units: units }).map_err(|_| self.busy())
    }

    fn busy(&self) -> Failure {
        Failure::Busy(format!("too many {} at once", self.what))
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Share {
    /// Gives `bytes` the share, until the connection has sent them.
    pub fn keep(self, bytes: Bytes) -> Bytes {
        struct Kept {
            bytes: Bytes,
            _share: Share,
        }
        impl AsRef<[u8]> for Kept {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Kept { bytes, _share: self })
    }
}

/// The budgets of one port.
pub struct Budgets {
    pub chunks: Budget,
    pub messages: Budget,
    /// Entries, snapshots and records between voters.
    pub voters: Budget,
    /// Of keys that no record names.
    pub strangers: Budget,
    /// Chunks on their way to their readers, and pages of the log and its files.
    pub replies: Budget,
    pub pages: Budget,
}

impl Budgets {
    pub fn new(limits: &Limits) -> Self {
        let budget = |bytes, what| Budget::new(bytes, limits.budget_wait, what);
        Self {
            chunks: budget(limits.inbound_bytes_max, "chunks are arriving"),
            messages: budget(limits.message_bytes_max, "messages are arriving"),
            voters: budget(limits.voter_bytes_max, "messages of voters are arriving"),
            strangers: budget(limits.stranger_bytes_max, "strangers knock"),
            replies: budget(limits.reply_bytes_max, "chunks are waiting for their readers"),
            pages: budget(limits.page_bytes_max, "pages are waiting for their readers"),
        }
    }
}
