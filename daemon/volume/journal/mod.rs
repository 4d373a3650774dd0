//! The local journal: what was acknowledged and is not committed yet.
//!
//! Owns: its directory, its segments, their encryption, and which process has it.
//! Never: fsyncs. It outlives the daemon, not the machine: that is what `fsync` is for.
//! Invariant: an entry is in the kernel's hands before `append` returns, so that `kill -9` right
//! after it loses nothing; entries come back in order, up to the first that is not whole. A new
//! change is taken in only where what its commit needs has room, too: so a journal that is full
//! empties itself.

pub mod entry;
mod left;
mod room;
pub mod segment;

pub use entry::{Entry, Holds, Journaled, Origin, Seq};
pub use left::Left;
pub use room::RESERVE_BYTES;

use mictlan::id::{SessionId, VolumeId};
use mictlan::seal::Public;
use rustix::fs::{FlockOperation, flock};
use segment::{Segment, SegmentError};
use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// All segments of one journal together; a full journal makes writers wait for commits.
pub const BYTES_MAX: u64 = 1 << 30;
/// A segment that is larger is followed by a new one.
const SEGMENT_BYTES: u64 = 8 << 20;
/// So much is kept of what no checkpoint covers yet, beside what is not committed.
const UNPROVEN_BYTES: u64 = 64 << 20;
const LOCK: &str = "lock";
/// Says that whoever has the lock is about to end.
const ENDING: &str = "ending";

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal at {0}: {1}")]
    Disk(PathBuf, #[source] std::io::Error),
    #[error("the journal at {0} is full: {BYTES_MAX} bytes wait to be committed")]
    Full(PathBuf),
    #[error("the journal at {0} has no room left on its disk")]
    NoRoom(PathBuf),
    #[error("the journal at {0} is in use by another mount")]
    InUse(PathBuf),
    #[error("the journal at {0}: {1}")]
    Segment(PathBuf, #[source] SegmentError),
}

impl JournalError {
    /// A directory on the disk that it is about.
    pub fn disk(&self) -> &Path {
        let (Self::Disk(path, _)
        | Self::Full(path)
        | Self::NoRoom(path)
        | Self::InUse(path)
        | Self::Segment(path, _)) = self;
        path.ancestors().find(|dir| dir.is_dir()).unwrap_or(path)
    }

    /// Whether it is only that there is no room.
    pub fn is_full(&self) -> bool {
        let cause = match self {
            Self::Full(_) | Self::NoRoom(_) => return true,
            Self::Disk(_, cause) | Self::Segment(_, SegmentError::Disk(cause)) => cause.kind(),
            Self::InUse(_) | Self::Segment(..) => return false,
        };
        matches!(cause, ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    }
}

/// One mount's journal; its lock is held as long as this lives.
pub struct Journal {
    dir: PathBuf,
    _lock: File,
    owner: Public,
    about: About,
    /// Held for one `write` at a time.
    state: Mutex<State>,
}

/// A segment that takes no more entries.
struct Older {
    path: PathBuf,
    bytes: u64,
    owed: u64,
    /// Its entries are before this.
    until: Seq,
}

/// Whose entries these are; written at the head of each segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct About {
    pub volume: VolumeId,
    pub session: SessionId,
}

struct State {
    segment: Segment,
    /// Earlier segments, oldest first, of which some entry may still be pending.
    older: VecDeque<Older>,
    older_bytes: u64,
    /// What the commits of what is in them, and in `segment`, may have to append.
    older_owed: u64,
    owed: u64,
    next: Seq,
    /// Everything before this is of no more use.
    settled: Seq,
    /// From here on no checkpoint covers what is in it.
    unproven: Option<Seq>,
    /// The disk refused a change since the last one was taken in.
    short: bool,
    next_segment: u64,
    /// Nothing is trimmed, and what comes is no more than what it is taken from, which has a limit.
    keeps_all: bool,
}

impl Journal {
    /// Starts an empty journal in the new directory `dir`. Without room for what commits append it
    /// is refused, and leaves nothing.
    pub fn create(dir: &Path, about: About, owner: Public) -> Result<Self, JournalError> {
        let journal = Self::note(dir, about, owner)?;
        if journal.state().segment.make_room(RESERVE_BYTES).is_err() {
            journal.remove()?;
            return Err(JournalError::NoRoom(dir.into()));
        }
        Ok(journal)
    }

    /// One that names its session, and that nothing is written to.
    pub fn note(dir: &Path, about: About, owner: Public) -> Result<Self, JournalError> {
        std::fs::create_dir_all(dir).map_err(|error| JournalError::Disk(dir.into(), error))?;
        let lock = lock(dir)?.ok_or_else(|| JournalError::InUse(dir.into()))?;
        let failed = |error| JournalError::Segment(dir.into(), error);
        let segment = Segment::create(&path(dir, 1), about, &owner, Seq(1)).map_err(failed)?;
        let state = State {
            segment,
            older: VecDeque::new(),
            older_bytes: 0,
            older_owed: 0,
            owed: 0,
            next: Seq(1),
            settled: Seq(1),
            unproven: None,
            short: false,
            next_segment: 2,
            keeps_all: false,
        };
        Ok(Self { dir: dir.into(), _lock: lock, owner, about, state: Mutex::new(state) })
    }

    /// Takes in what somebody wants to change, who can be refused. An error changes nothing; after
    /// `Full` or `NoRoom` wait for a commit.
    pub fn take_in(&self, entry: &Entry) -> Result<Seq, JournalError> {
        self.take_in_with(entry, |_| None).map(|(seq, _)| seq)
    }

    /// The same with what belongs right behind it, given its number. There is room for both, or
    /// neither is taken in. The numbers of the first and of the last.
    pub fn take_in_with(
        &self,
        entry: &Entry,
        then: impl FnOnce(Seq) -> Option<Entry>,
    ) -> Result<(Seq, Seq), JournalError> {
        let mut state = self.state();
        let then = then(state.next);
        let (bytes, then_bytes) = (entry.encode(), then.as_ref().map(Entry::encode));
        let owed = room::owed(entry, bytes.len() as u64)
            + then.iter().zip(&then_bytes).map(|(e, b)| room::owed(e, b.len() as u64)).sum::<u64>();
        if !state.keeps_all {
            let all = [Some(&bytes), then_bytes.as_ref()];
            let wanted = all.into_iter().flatten().map(|b| room::ENTRY_BYTES + b.len() as u64);
            self.admit(&mut state, wanted.sum::<u64>() + owed)?;
        }
        let written = self.write_with(&mut state, &bytes, then_bytes.as_deref())?;
        state.owed += owed;
        Ok(written)
    }

    /// Appends what the commit of earlier entries needs: room was kept for it.
    pub fn append(&self, entry: &Entry) -> Result<Seq, JournalError> {
        self.append_with(entry, |_| None).map(|(seq, _)| seq)
    }

    /// The same with what belongs right behind it, given its number. The numbers of the first and
    /// of the last.
    pub fn append_with(
        &self,
        entry: &Entry,
        then: impl FnOnce(Seq) -> Option<Entry>,
    ) -> Result<(Seq, Seq), JournalError> {
        let mut state = self.state();
        // Where the disk has no room for another file, it goes on in this one.
        if state.segment.bytes() >= SEGMENT_BYTES
            && let Err(error) = self.next_segment(&mut state)
        {
            tracing::debug!(%error, "a segment of the journal grows beyond its size");
        }
        let then = then(state.next).map(|then| then.encode());
        self.write_with(&mut state, &entry.encode(), then.as_deref())
    }

    /// What comes behind an entry only spares its doing again: where the disk gave no room for it
    /// beforehand, and has none, the entry stands alone.
    fn write_with(
        &self,
        state: &mut State,
        bytes: &[u8],
        then: Option<&[u8]>,
    ) -> Result<(Seq, Seq), JournalError> {
        let seq = self.write(state, bytes)?;
        let last = then.and_then(|bytes| self.write(state, bytes).ok());
        Ok((seq, last.unwrap_or(seq)))
    }

    /// The number of the new entry.
    fn write(&self, state: &mut State, bytes: &[u8]) -> Result<Seq, JournalError> {
        let appended = state.segment.append(bytes);
        appended.map_err(|error| JournalError::Segment(self.dir.clone(), error))?;
        let seq = state.next;
        state.next = Seq(seq.0 + 1);
        Ok(seq)
    }

    /// Room for `bytes` more on the disk, beside what commits need.
    fn admit(&self, state: &mut State, bytes: u64) -> Result<(), JournalError> {
        if state.claimed() + bytes > BYTES_MAX {
            return Err(JournalError::Full(self.dir.clone()));
        }
        if state.segment.bytes() >= SEGMENT_BYTES {
            self.next_segment(state)?;
        }
        let wanted = bytes + state.kept();
        let is_settled = state.settled >= state.next && !state.segment.is_empty();
        if state.segment.make_room(wanted).is_err() {
            state.short = true;
            self.remove_settled(state)?;
            if is_settled {
                self.begin_anew(state)?;
            }
            let room = state.segment.make_room(wanted);
            room.map_err(|_| JournalError::NoRoom(self.dir.clone()))?;
        }
        state.short = false;
        Ok(())
    }

    /// All of it is committed: its room goes back to the disk.
    fn begin_anew(&self, state: &mut State) -> Result<(), JournalError> {
        state.owed = 0;
        state.segment.let_go_of_room();
        self.next_segment(state)?;
        self.remove_settled(state)
    }

    /// Goes on in a new file. A crash in between leaves an empty newest segment, which is read as
    /// one without entries.
    fn next_segment(&self, state: &mut State) -> Result<(), JournalError> {
        let fresh = path(&self.dir, state.next_segment);
        let mut segment = Segment::create(&fresh, self.about, &self.owner, state.next)
            .map_err(|error| JournalError::Segment(self.dir.clone(), error))?;
        if segment.make_room(state.kept()).is_err() {
            // Without what commits need it would be no place for changes.
            remove(&fresh)?;
            return Err(JournalError::NoRoom(self.dir.clone()));
        }
        let mut old = std::mem::replace(&mut state.segment, segment);
        old.let_go_of_room();
        state.next_segment += 1;
        let owed = std::mem::take(&mut state.owed);
        state.older_bytes += old.bytes();
        state.older_owed += owed;
        let (path, bytes, until) = (old.path().to_owned(), old.bytes(), state.next);
        state.older.push_back(Older { path, bytes, owed, until });
        Ok(())
    }

    /// The number that the next entry gets.
    pub fn next(&self) -> Seq {
        self.state().next
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn bytes(&self) -> u64 {
        let state = self.state();
        state.older_bytes + state.segment.bytes()
    }

    /// Nearly full: whoever would add to it should wait for commits first.
    pub fn is_tight(&self) -> bool {
        self.state().claimed() > BYTES_MAX / 4 * 3
    }

    /// Whether what is committed stays too. While another journal is taken over, this one says how
    /// far that is.
    pub fn keep_all(&self, keep: bool) {
        self.state().keeps_all = keep;
    }

    /// Everything before `until` is committed or of no use any more: whole segments of it go. What
    /// is `unproven` stays for longer, as long as there is little else.
    pub fn trim(&self, until: Seq, unproven: Option<Seq>) -> Result<(), JournalError> {
        let mut state = self.state();
        if state.keeps_all {
            return Ok(());
        }
        state.settled = state.settled.max(until);
        state.unproven = unproven;
        if until >= state.next {
            state.owed = 0;
            let large = state.segment.bytes() >= SEGMENT_BYTES;
            if large || (state.short && !state.segment.is_empty()) {
                return self.begin_anew(&mut state);
            }
        }
        self.remove_settled(&mut state)
    }

    fn remove_settled(&self, state: &mut State) -> Result<(), JournalError> {
        let State { older, older_owed, settled, .. } = state;
        for older in older.iter_mut().take_while(|older| older.until <= *settled) {
            *older_owed -= std::mem::take(&mut older.owed);
        }
        while state.older.front().is_some_and(|older| older.until <= state.settled) {
            if state.older.front().is_some_and(|older| state.keeps_unproven(older)) {
                break;
            }
            let Some(older) = state.older.pop_front() else { break };
            state.older_bytes -= older.bytes;
            remove(&older.path)?; // crash here: its commits are known to the sequencer
        }
        Ok(())
    }

    /// Whether its mount is about to end, and commits what it can until then: whoever takes
    /// journals over waits for it. A mount that is not told of it leaves the journal to the next.
    pub fn ends(&self, ends: bool) {
        let note = self.dir.join(ENDING);
        let noted = match ends {
            true => File::create(&note).map(drop),
            false => std::fs::remove_file(&note),
        };
        if let Err(error) = noted {
            tracing::debug!(%error, "no mount waits for the end of this one");
        }
    }

    /// Ends a journal that holds nothing pending: its directory goes.
    pub fn remove(&self) -> Result<(), JournalError> {
        remove_dir(&self.dir)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens while the journal is locked")
    }
}

impl State {
    /// Room that is kept for commits alone.
    fn kept(&self) -> u64 {
        RESERVE_BYTES + self.older_owed + self.owed
    }

    /// Whether a settled segment stays until a checkpoint covers it.
    fn keeps_unproven(&self, older: &Older) -> bool {
        let is_covered = self.unproven.is_none_or(|unproven| older.until <= unproven);
        !is_covered && !self.short && self.older_bytes + self.segment.bytes() <= UNPROVEN_BYTES
    }

    /// What counts against `BYTES_MAX`.
    fn claimed(&self) -> u64 {
        self.older_bytes + self.segment.bytes() + self.kept()
    }
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.seg"))
}

/// `None` when a living mount holds it.
fn lock(dir: &Path) -> Result<Option<File>, JournalError> {
    let failed = |error: std::io::Error| JournalError::Disk(dir.into(), error);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK))
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

fn remove(file: &Path) -> Result<(), JournalError> {
    std::fs::remove_file(file).map_err(|error| JournalError::Disk(file.into(), error))
}

fn remove_dir(dir: &Path) -> Result<(), JournalError> {
    std::fs::remove_dir_all(dir).map_err(|error| JournalError::Disk(dir.into(), error))
}

#[cfg(test)]
mod tests;
