//! Bytes on their way in: write, close, fsync.
//!
//! Owns: what each of these waits for (docs/SEMANTICS.md has the same table for users):
//! - `write`: there is room for the bytes in the network, and they are in memory, within the budget;
//! - `close`: they are in the journal, or, of 1 MiB or more, their chunks are on their peers;
//!   with `durability=peers`, or without a lease, they are committed;
//! - `fsync`: they are committed, with everything that this mount did before.

use super::commit::not_durable;
use super::file::{ENTRY_BYTES, FileData, OpenFile, What};
use super::journal::{Entry, Journaled, Seq};
use super::local::{broken, journal_failed, now};
use super::state::Mode;
use super::{Stale, Volume};
use crate::chunks::budget::Charge;
use mictlan::id::Ino;
use mictlan::meta::error::{FsError, ReadError};
use mictlan::meta::namespace::{SIZE_MAX, read};
use mictlan_mount::options::Durability;
use mictlan_mount::vfs::WriteAt;
use std::ops::Range;
use std::sync::Arc;
use tokio::time::timeout;

/// From here on `close` waits for the peers instead of copying bytes into the journal.
const JOURNALED_BYTES_MAX: u64 = 1 << 20;
/// So much of a file may take room that the journal keeps for commits.
const NOTED_BYTES_MAX: u64 = 64 << 10;
/// A file with this much dirty is a stream: it is cut and sealed while it is written.
pub(super) const STREAM_BYTES: u64 = mictlan::file::Cutter::MAX as u64;
/// Small dirty data of all files together; above it a commit is worth its round trip.
const SMALL_BYTES: u64 = 8 << 20;

impl Volume {
    pub(super) async fn write_bytes(
        self: &Arc<Self>,
        ino: Ino,
        write: WriteAt,
    ) -> Result<u32, FsError> {
        self.believed()?;
        match self.mode() {
            Mode::Reader => return Err(self.read_only()),
            Mode::Lost => return Err(self.lost_errno()),
            Mode::Leased { .. } | Mode::Synchronous => {}
        }
        self.takes_changes()?;
        if self.chunks.is_full() {
            self.chunks.no_room();
            return Err(FsError::NoSpace);
        }
        let len = write.data.len();
        self.take_credit(len as u64).await?;
        let charge = match self.budget.try_charge(len) {
            Some(charge) => charge,
            None => {
                // Memory is full of bytes that are on their way out; they must not wait for
                // their second when a writer waits for their room.
                self.want_room();
                timeout(self.options.deadline, self.budget.charge(len))
                    .await
                    .map_err(|_| FsError::TimedOut)?
            }
        };
        let file = self.core().file(ino);
        let dirty = self.take_in(&file, &write, charge).await?;
        // The first that wait have a time at which they are due, also if nothing else happens.
        let first = dirty == len as u64;
        if dirty >= STREAM_BYTES {
            self.stream(file);
        } else if first || self.budget.is_tight() || self.budget.used_bytes() > SMALL_BYTES {
            self.work.notify_one();
        }
        Ok(len as u32)
    }

    /// Puts the bytes where they belong: at their offset, or, appended, behind whatever the end will
    /// be when they are committed. How much is dirty then.
    async fn take_in(
        &self,
        file: &Arc<OpenFile>,
        write: &WriteAt,
        charge: Charge,
    ) -> Result<u64, FsError> {
        loop {
            let missing = {
                let mut data = file.data();
                if let Some(error) = data.failed.take() {
                    return Err(error);
                }
                let offset = match write.append {
                    true => read::getattr(&self.core().view, file.ino).map(|mut inode| {
                        data.show(&mut inode);
                        inode.size
                    }),
                    false => Ok(write.offset),
                };
                let (kill, now) = (write.kill_privileges, now());
                match offset {
                    Ok(offset) if offset > SIZE_MAX - write.data.len() as u64 => {
                        return Err(FsError::FileTooBig);
                    }
                    Ok(offset) if write.append => {
                        data.append(&write.data, now, kill, charge);
                        if offset != write.offset {
                            // The kernel keeps these bytes at the end that it knew.
                            let _ = self.stale.send(Stale::Inode(file.ino));
                        }
                        return Ok(data.tail.waiting());
                    }
                    Ok(offset) if data.tail.is_empty() => {
                        data.write(offset, &write.data, now, kill, charge);
                        return Ok(data.dirty.bytes());
                    }
                    Ok(_) => None,
                    Err(ReadError::Refused(error)) => return Err(error),
                    Err(ReadError::Broken(node)) => return Err(broken(node)),
                    Err(ReadError::Missing(node)) => Some(node),
                }
            };
            match missing {
                Some(node) => self.fetch_node(node).await?,
                // What was appended before this write needs its place first.
                None => {
                    let _order = file.order.lock().await;
                    self.seal_file(file, What::Everything).await?;
                }
            }
        }
    }

    /// Seals what is whole of a stream, beside the writer. One at a time for each file.
    fn stream(self: &Arc<Self>, file: Arc<OpenFile>) {
        let volume = self.clone();
        tokio::spawn(async move {
            let Ok(order) = file.order.try_lock() else { return };
            let sealed = volume.seal_file(&file, What::WholeChunks).await;
            drop(order);
            if let Err(error) = sealed {
                file.data().failed = Some(error);
            }
        });
    }

    /// `close`, once for each descriptor.
    pub(super) async fn close(self: &Arc<Self>, ino: Ino) -> Result<(), FsError> {
        let Some(file) = self.core().files.get(&ino).cloned() else { return Ok(()) };
        if let Some(error) = file.data().failed.take() {
            return Err(error);
        }
        let order = file.order.lock().await;
        let dirty = file.data().waiting_bytes();
        let must_commit = self.options.durability == Durability::Peers
            || self.takes_changes().is_err()
            || !matches!(self.mode(), Mode::Leased { .. });
        if dirty >= JOURNALED_BYTES_MAX || (must_commit && dirty > 0) {
            self.seal_file(&file, What::Everything).await?;
        } else if dirty > 0 {
            self.not_too_far_behind().await?;
            self.journal_data(&file)?;
            file.data().leased = true;
            self.work.notify_one();
        }
        drop(order);
        if must_commit {
            return self.commit_all().await;
        }
        self.wait_for_chunks(&file).await
    }

    /// Puts the file's dirty bytes into the journal; from here on a crash loses none of them.
    fn journal_data(&self, file: &OpenFile) -> Result<(), FsError> {
        let mut data = file.data();
        self.takes_changes()?;
        self.journal_rest(file.ino, &mut data, false)
    }

    /// The same, under the lock of the file's data. After an error the next call does the rest.
    /// `begun`: without these bytes nothing of what the journal has of the file can be committed.
    pub(super) fn journal_rest(
        &self,
        ino: Ino,
        data: &mut FileData,
        begun: bool,
    ) -> Result<(), FsError> {
        let journal = self.journal.as_ref().ok_or(FsError::ReadOnly)?;
        let Some(pending) = data.pending else { return Ok(()) };
        let (mtime, kill_priv) = (pending.mtime, pending.kill_priv);
        let append = |entry, bytes| {
            let taken = match journal.take_in(&entry) {
                Err(error) if error.is_full() && begun && bytes <= NOTED_BYTES_MAX => {
                    journal.append(&entry)
                }
                taken => taken,
            };
            taken.map_err(|error| journal_failed(&error))
        };
        for Range { start: offset, end } in data.unjournaled() {
            let mut bytes = vec![0; (end - offset) as usize];
            data.dirty.read_over(offset, &mut bytes);
            let base = Some(self.core().view.position());
            let entry = Entry::Data { base, ino, offset, mtime, kill_priv, bytes };
            let seq = append(entry, end - offset)?;
            data.journaled(Journaled::here(seq));
        }
        data.unjournaled.clear();
        while let Some(bytes) = data.tail.unjournaled(ENTRY_BYTES) {
            let len = bytes.len() as u64;
            let seq = append(Entry::Appended { ino, mtime, kill_priv, bytes }, len)?;
            data.tail.journaled(len, Journaled::here(seq));
        }
        Ok(())
    }

    /// Waits until every chunk of the file that was sealed is on its peers. Several descriptors may
    /// be closed at once, and each waits for all of them.
    async fn wait_for_chunks(&self, file: &OpenFile) -> Result<(), FsError> {
        let puts = file.data().puts.clone();
        for put in &puts {
            match timeout(self.options.deadline, put.durable()).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(FsError::Io),
                Err(_) => return Err(not_durable(put)),
            }
        }
        file.data().puts.retain(|put| !put.is_durable());
        Ok(())
    }

    /// `fsync`: the file's bytes and everything before them are committed. `None`: a directory.
    pub(super) async fn sync(self: &Arc<Self>, ino: Ino) -> Result<(), FsError> {
        let file = self.core().files.get(&ino).cloned();
        if let Some(file) = file {
            if let Some(error) = file.data().failed.take() {
                return Err(error);
            }
            let _order = file.order.lock().await;
            self.seal_file(&file, What::Everything).await?;
        }
        match ino {
            // Nobody else asks for all of it: the kernel keeps syncfs from a mount of this kind.
            Ino::ROOT => self.flush(self.options.deadline).await,
            _ => self.commit_all().await,
        }
    }

    /// Everything that is sealed and every operation so far is committed when this returns.
    pub(super) async fn commit_all(&self) -> Result<(), FsError> {
        self.committed_all().await?;
        self.kept_promises()
    }

    /// The same for a question, which does not get to know of broken promises: whoever changed
    /// something does.
    pub(super) async fn committed_all(&self) -> Result<(), FsError> {
        loop {
            let conflicts = self.progress.borrow().conflicts;
            self.attempted_again().await?;
            let last = {
                let core = self.core();
                if core.is_between_attempts() {
                    continue; // what was refused a moment ago is in no batch now
                }
                core.queue.back().map(|batch| batch.until)
            };
            let Some(until) = last else { return Ok(()) };
            self.commit_until(until).await?;
            // What was planned again after a conflict has other numbers.
            if self.progress.borrow().conflicts == conflicts {
                return Ok(());
            }
        }
    }

    /// Once: the error of something that was acknowledged and then refused for good.
    fn kept_promises(&self) -> Result<(), FsError> {
        self.core().broken_promise.take().map_or(Ok(()), Err)
    }

    /// Everything before `until` is committed when this returns.
    pub(super) async fn commit_until(&self, until: Seq) -> Result<(), FsError> {
        let mut progress = self.progress.subscribe();
        self.progress.send_if_modified(|progress| {
            let more = until > progress.wanted;
            progress.wanted = progress.wanted.max(until);
            more
        });
        self.work.notify_one();
        let wait =
            progress.wait_for(|progress| progress.committed >= until || progress.stuck.is_some());
        let progress = match timeout(self.options.deadline, wait).await {
            Ok(Ok(progress)) => *progress,
            Ok(Err(_)) => return Err(FsError::Io),
            Err(_) => return Err(FsError::TimedOut),
        };
        match progress.stuck {
            Some(error) if progress.committed < until => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn want_room(&self) {
        self.progress.send_modify(|progress| progress.room_wanted = true);
        self.work.notify_one();
    }

    pub(super) fn opened(&self, ino: Ino) -> u64 {
        // A file is locked before the core, never under it: two that wait for each other would stop
        // the mount. Held from here on, it is not idle, so that `forget_idle` leaves it in its place.
        let (file, handle) = {
            let mut core = self.core();
            core.next_handle += 1;
            (core.file(ino), core.next_handle)
        };
        file.data().handles += 1;
        handle
    }

    /// The last descriptor of a handle is gone.
    pub(super) async fn released(self: &Arc<Self>, ino: Ino) -> Result<(), FsError> {
        let Some(file) = self.core().files.get(&ino).cloned() else { return Ok(()) };
        let last = {
            let mut data = file.data();
            data.handles = data.handles.saturating_sub(1);
            data.handles == 0
        };
        if last {
            self.reap_if_orphan(&file).await;
            drop(file);
            self.forget_idle(ino);
        }
        Ok(())
    }

    /// The same of all files: what was sealed or committed after its last descriptor was closed.
    pub(super) fn forget_all_idle(&self) {
        let inos: Vec<Ino> = self.core().files.keys().copied().collect();
        inos.into_iter().for_each(|ino| self.forget_idle(ino));
    }

    /// How many files are open here, or have bytes that are not on their peers.
    pub fn open_files(&self) -> usize {
        self.core().files.len()
    }

    /// Drops the state of a file that nobody has open and that holds nothing. Whoever calls holds no
    /// reference to it.
    pub(super) fn forget_idle(&self, ino: Ino) {
        let Some(file) = self.core().files.get(&ino).cloned() else { return };
        // The order of locks is file, then core. Whoever opens it now took its own reference to it
        // under the core, which is counted here under the core.
        let data = file.data();
        let mut core = self.core();
        let ours = Arc::strong_count(&file) <= 2;
        if ours && data.is_idle() {
            core.files.remove(&ino);
        }
    }
}
