//! The local journal: what was acknowledged and is not committed yet.
//!
//! Owns: its directory, its segments, their encryption, and which process has it.
//! Never: fsyncs. It outlives the daemon, not the machine: that is what `fsync` is for.
//! Invariant: an entry is in the kernel's hands before `append` returns, so that `kill -9` right
//! after it loses nothing; entries come back in order, up to the first that is not whole.

pub mod entry;
mod segment;

pub use entry::{Entry, Holds, Journaled, Origin, Seq};

use mictlan::id::{SessionId, VolumeId};
use mictlan::seal::{Principal, Public};
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
const LOCK: &str = "lock";

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal at {0}: {1}")]
    Disk(PathBuf, #[source] std::io::Error),
    #[error("the journal at {0} is full: {BYTES_MAX} bytes wait to be committed")]
    Full(PathBuf),
    #[error("the journal at {0} is in use by another mount")]
    InUse(PathBuf),
    #[error("the journal at {0}: {1}")]
    Segment(PathBuf, #[source] SegmentError),
}

impl JournalError {
    /// Whether it is only that there is no room.
    pub fn is_full(&self) -> bool {
        let cause = match self {
            Self::Full(_) => return true,
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
    next: Seq,
    next_segment: u64,
    /// Nothing is trimmed, and what comes is no more than what it is taken from, which has a limit.
    keeps_all: bool,
}

impl Journal {
    /// Starts an empty journal in the new directory `dir`.
    pub fn create(dir: &Path, about: About, owner: Public) -> Result<Self, JournalError> {
        std::fs::create_dir_all(dir).map_err(|error| JournalError::Disk(dir.into(), error))?;
        let lock = lock(dir)?.ok_or_else(|| JournalError::InUse(dir.into()))?;
        let segment = Segment::create(&path(dir, 1), about, &owner, Seq(1))
            .map_err(|error| JournalError::Segment(dir.into(), error))?;
        let state = State {
            segment,
            older: VecDeque::new(),
            older_bytes: 0,
            next: Seq(1),
            next_segment: 2,
            keeps_all: false,
        };
        Ok(Self { dir: dir.into(), _lock: lock, owner, about, state: Mutex::new(state) })
    }

    /// Appends `entry` and returns its number. `Full` changes nothing; wait for a commit.
    pub fn append(&self, entry: &Entry) -> Result<Seq, JournalError> {
        let bytes = entry.encode();
        let mut state = self.state();
        let all = state.older_bytes + state.segment.bytes() + bytes.len() as u64;
        if all > BYTES_MAX && !state.keeps_all {
            return Err(JournalError::Full(self.dir.clone()));
        }
        if state.segment.bytes() >= SEGMENT_BYTES {
            self.next_segment(&mut state)?;
        }
        let appended = state.segment.append(&bytes);
        appended.map_err(|error| JournalError::Segment(self.dir.clone(), error))?;
        let seq = state.next;
        state.next = Seq(seq.0 + 1);
        Ok(seq)
    }

    /// Goes on in a new file. A crash in between leaves an empty newest segment, which is read as
    /// one without entries.
    fn next_segment(&self, state: &mut State) -> Result<(), JournalError> {
        let fresh = path(&self.dir, state.next_segment);
        let segment = Segment::create(&fresh, self.about, &self.owner, state.next)
            .map_err(|error| JournalError::Segment(self.dir.clone(), error))?;
        let old = std::mem::replace(&mut state.segment, segment);
        state.next_segment += 1;
        state.older_bytes += old.bytes();
        let (path, bytes, until) = (old.path().to_owned(), old.bytes(), state.next);
        state.older.push_back(Older { path, bytes, until });
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
        self.bytes() > BYTES_MAX / 4 * 3
    }

    /// Whether what is committed stays too. While another journal is taken over, this one says how
    /// far that is.
    pub fn keep_all(&self, keep: bool) {
        self.state().keeps_all = keep;
    }

    /// Everything before `until` is committed or of no use any more: whole segments of it go.
    pub fn trim(&self, until: Seq) -> Result<(), JournalError> {
        let mut state = self.state();
        if state.keeps_all {
            return Ok(());
        }
        if until >= state.next && state.segment.bytes() >= SEGMENT_BYTES {
            self.next_segment(&mut state)?;
        }
        while state.older.front().is_some_and(|older| older.until <= until) {
            let Some(older) = state.older.pop_front() else { break };
            state.older_bytes -= older.bytes;
            remove(&older.path)?; // crash here: its commits are known to the sequencer
        }
        Ok(())
    }

    /// Ends a journal that holds nothing pending: its directory goes.
    pub fn remove(&self) -> Result<(), JournalError> {
        remove_dir(&self.dir)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens while the journal is locked")
    }
}

/// The journal that a mount which is gone left behind; locked, so that one heir alone replays it.
pub struct Left {
    dir: PathBuf,
    _lock: File,
    pub about: About,
    /// In order, numbered; what follows the first damaged entry is not among them.
    pub entries: Vec<(Seq, Entry)>,
    /// Bytes behind the first entry that was not whole: a torn tail, or damage.
    pub unread_bytes: u64,
}

impl Left {
    /// Takes over the journals below `parent` whose mounts are gone. One that another key sealed
    /// stays as it is and is named in `strange`.
    pub fn find(
        parent: &Path,
        key: &Principal,
        strange: &mut Vec<(PathBuf, SegmentError)>,
    ) -> Result<Vec<Left>, JournalError> {
        let mut found = Vec::new();
        let failed = |error| JournalError::Disk(parent.into(), error);
        let listing = match std::fs::read_dir(parent) {
            Ok(listing) => listing,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(failed(error)),
        };
        for entry in listing {
            let dir = entry.map_err(failed)?.path();
            let Some(lock) = lock(&dir)? else { continue };
            match read_segments(&dir, key) {
                Ok(None) => remove_dir(&dir)?, // it was made and never written to
                Ok(Some((about, entries, unread_bytes))) => {
                    found.push(Left { dir, _lock: lock, about, entries, unread_bytes });
                }
                Err(error) => strange.push((dir, error)),
            }
        }
        found.sort_by_key(|left| left.about.session);
        Ok(found)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything in it was taken over by the new session's journal or commits.
    pub fn remove(self) -> Result<(), JournalError> {
        remove_dir(&self.dir)
    }
}

type Entries = (About, Vec<(Seq, Entry)>, u64);

fn read_segments(dir: &Path, key: &Principal) -> Result<Option<Entries>, SegmentError> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    files.sort();
    let mut all: Option<Entries> = None;
    for file in files {
        let Some((about, first, entries, unread)) = segment::read(&file, key)? else { continue };
        let (_, known, behind) = all.get_or_insert_with(|| (about, Vec::new(), 0));
        let expected = known.last().map(|(seq, _)| Seq(seq.0 + 1));
        if *behind > 0 || expected.is_some_and(|expected| expected != first) {
            // A gap: what comes after it may rest on what is missing.
            *behind += unread + entries.iter().map(|(_, e)| e.encode().len() as u64).sum::<u64>();
            continue;
        }
        known.extend(entries);
        *behind = unread;
    }
    Ok(all)
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
mod tests {
    use super::*;
    use mictlan::id::{Attempt, Ino};
    use mictlan::meta::inode::Stamp;
    use mictlan::seal::Secret;

    const ABOUT: About = About { volume: VolumeId([3; 16]), session: SessionId(5) };

    fn data(offset: u64, len: usize) -> Entry {
        let bytes = vec![7; len];
        let (base, mtime) = (None, Stamp::default());
        Entry::Data { base, ino: Ino(9), offset, mtime, kill_priv: false, bytes }
    }

    fn world() -> (tempfile::TempDir, PathBuf, Principal) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().join("one");
        (temp, dir, Principal::from_seed(Secret::from_bytes([1; 32])))
    }

    fn left(parent: &Path, key: &Principal) -> (Vec<Left>, usize) {
        let mut strange = Vec::new();
        let found = Left::find(parent, key, &mut strange).expect("readable");
        (found, strange.len())
    }

    #[test]
    fn a_killed_mount_leaves_all_that_it_journaled_to_its_heir() {
        let (temp, dir, key) = world();
        let journal = Journal::create(&dir, ABOUT, key.public()).expect("created");
        let proposed = Entry::Proposed { attempt: Attempt(1), n: 1, until: Seq(2) };
        for entry in [data(0, 10), data(10, 5_000_000), proposed.clone()] {
            journal.append(&entry).expect("appended");
        }
        assert!(left(temp.path(), &key).0.is_empty(), "a living mount's journal is its own");
        drop(journal);
        let (found, _) = left(temp.path(), &key);
        assert_eq!(found[0].about, ABOUT);
        let seqs: Vec<u64> = found[0].entries.iter().map(|(seq, _)| seq.0).collect();
        assert_eq!((seqs, &found[0].entries[2].1), (vec![1, 2, 3], &proposed));
        assert_eq!(found[0].unread_bytes, 0);
    }

    #[test]
    fn a_journal_gives_its_space_back_when_all_is_committed() {
        let (temp, dir, key) = world();
        let journal = Journal::create(&dir, ABOUT, key.public()).expect("created");
        for n in 0..4 {
            journal.append(&data(n, 4 << 20)).expect("appended");
        }
        journal.trim(Seq(2)).expect("trimmed");
        assert!(journal.bytes() > 12 << 20, "entry 2 shares a file with the first");
        journal.trim(Seq(4)).expect("trimmed");
        assert!(journal.bytes() < 12 << 20, "entries 1 and 2 are gone, 4 is pending");
        journal.trim(Seq(5)).expect("trimmed");
        assert!(journal.bytes() < 4096);
        journal.append(&data(9, 9)).expect("appended");
        drop(journal);
        assert_eq!(left(temp.path(), &key).0[0].entries, [(Seq(5), data(9, 9))]);
    }

    #[test]
    fn a_journal_that_keeps_all_gives_nothing_back_until_it_need_not() {
        let (_temp, dir, key) = world();
        let journal = Journal::create(&dir, ABOUT, key.public()).expect("created");
        journal.keep_all(true);
        for n in 0..4 {
            journal.append(&data(n, 4 << 20)).expect("appended");
        }
        journal.trim(Seq(5)).expect("nothing to do");
        assert!(journal.bytes() > 16 << 20);
        journal.keep_all(false);
        journal.trim(Seq(5)).expect("trimmed");
        assert!(journal.bytes() < 4096);
    }

    #[test]
    fn a_torn_or_flipped_entry_ends_the_journal_and_is_reported() {
        let (temp, dir, key) = world();
        let journal = Journal::create(&dir, ABOUT, key.public()).expect("created");
        for n in 0..3 {
            journal.append(&data(n, 100)).expect("appended");
        }
        drop(journal);
        let file = path(&dir, 1);
        let whole = std::fs::read(&file).expect("readable");
        let mut flipped = whole.clone();
        let at = flipped.len() - 200;
        flipped[at] ^= 1;
        for (bytes, kept) in [(&whole[..whole.len() - 1], 2), (&flipped[..], 1)] {
            std::fs::write(&file, bytes).expect("written");
            let (found, _) = left(temp.path(), &key);
            assert_eq!(found[0].entries.len(), kept);
            assert!(found[0].unread_bytes > 0);
        }
    }

    #[test]
    fn another_key_cannot_read_it_and_does_not_remove_it() {
        let (temp, dir, key) = world();
        drop(Journal::create(&dir, ABOUT, key.public()).expect("created"));
        let other = Principal::from_seed(Secret::from_bytes([2; 32]));
        assert_eq!((left(temp.path(), &other).0.len(), left(temp.path(), &other).1), (0, 1));
        assert!(dir.exists());
        let secret = std::fs::read(path(&dir, 1)).expect("readable");
        assert!(!secret.windows(4).any(|w| w == [7; 4]));
    }
}
