//! Inodes without a name: they live while somebody has them open, and go by an ordinary commit.
//!
//! Owns: when an unlinked inode of this mount's own making or closing is reaped.
//! Invariant: an inode that is open here is never reaped from here; one that may be open elsewhere
//! is left to a session that holds the lease on the whole volume.

use super::Volume;
use super::file::OpenFile;
use super::state::Mode;
use mictlan::id::Ino;
use mictlan::meta::error::FsError;
use mictlan::meta::namespace::{Op, read};
use std::sync::Arc;

/// Orphans looked for at a time when a lease is taken up.
const PAGE: usize = 256;

impl Volume {
    /// The last name of `ino` is gone. If nobody has it open here, it goes at once.
    pub(super) async fn lost_last_name(self: &Arc<Self>, ino: Ino) {
        let file = self.core().files.get(&ino).cloned();
        let open = file.as_ref().is_some_and(|file| file.data().handles > 0);
        if open {
            return;
        }
        if let Some(file) = &file {
            let _order = file.order.lock().await;
            file.data().forget_bytes();
        }
        drop(file);
        self.reap(ino).await;
        self.forget_idle(ino);
    }

    /// The last handle of a file is gone: if its last name was gone before, so is the inode.
    pub(super) async fn reap_if_orphan(self: &Arc<Self>, file: &Arc<OpenFile>) {
        match self.inode(file.ino).await {
            Ok(inode) if inode.nlink == 0 => self.lost_last_name(file.ino).await,
            _ => {}
        }
    }

    async fn reap(&self, ino: Ino) {
        if !matches!(self.mode(), Mode::Leased { .. }) {
            return;
        }
        match self.run(Op::Reap { ino }).await {
            // Linked again, or reaped by another: nothing to do.
            Ok(_) | Err(FsError::NotFound | FsError::Stale | FsError::Busy) => {}
            Err(error) => tracing::warn!(inode = ino.0, %error, "an unlinked inode stays for now"),
        }
    }

    /// Under the lease on the whole volume, with no other session alive: orphans that nobody here
    /// has open are nobody's.
    pub(super) async fn reap_left_behind(self: Arc<Self>) {
        let mut after = Ino(0);
        loop {
            let page = self.ask(|core| read::orphans(&core.view, after, PAGE)).await;
            let Ok(page) = page else { return };
            let Some(last) = page.last() else { return };
            after = *last;
            for ino in page {
                let open = self.core().files.get(&ino).cloned();
                if open.is_none_or(|file| file.data().handles == 0) {
                    self.reap(ino).await;
                }
            }
        }
    }
}
