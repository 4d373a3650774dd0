//! What a journal keeps, gives back and lets go.

use super::*;
use mictlan::id::{Attempt, Ino};
use mictlan::meta::inode::Stamp;
use mictlan::seal::{Principal, Secret};

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
        journal.take_in(&entry).expect("appended");
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
        journal.take_in(&data(n, 4 << 20)).expect("appended");
    }
    journal.trim(Seq(2), None).expect("trimmed");
    assert!(journal.bytes() > 12 << 20, "entry 2 shares a file with the first");
    journal.trim(Seq(4), None).expect("trimmed");
    assert!(journal.bytes() < 12 << 20, "entries 1 and 2 are gone, 4 is pending");
    journal.trim(Seq(5), None).expect("trimmed");
    assert!(journal.bytes() < 4096);
    journal.take_in(&data(9, 9)).expect("appended");
    drop(journal);
    assert_eq!(left(temp.path(), &key).0[0].entries, [(Seq(5), data(9, 9))]);
}

#[test]
fn a_journal_that_keeps_all_gives_nothing_back_until_it_need_not() {
    let (_temp, dir, key) = world();
    let journal = Journal::create(&dir, ABOUT, key.public()).expect("created");
    journal.keep_all(true);
    for n in 0..4 {
        journal.take_in(&data(n, 4 << 20)).expect("appended");
    }
    journal.trim(Seq(5), None).expect("nothing to do");
    assert!(journal.bytes() > 16 << 20);
    journal.keep_all(false);
    journal.trim(Seq(5), None).expect("trimmed");
    assert!(journal.bytes() < 4096);
}

#[test]
fn a_torn_or_flipped_entry_ends_the_journal_and_is_reported() {
    let (temp, dir, key) = world();
    let journal = Journal::create(&dir, ABOUT, key.public()).expect("created");
    for n in 0..3 {
        journal.take_in(&data(n, 100)).expect("appended");
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

#[test]
fn what_no_checkpoint_covers_stays_while_it_is_little() {
    let (_temp, dir, key) = world();
    let journal = Journal::create(&dir, ABOUT, key.public()).expect("created");
    for n in 0..8 {
        journal.take_in(&data(n, 4 << 20)).expect("appended");
    }
    // All is committed; from entry 3 on it is not proven. Two entries are in one file.
    journal.trim(Seq(9), Some(Seq(3))).expect("trimmed");
    let kept = journal.bytes();
    assert!((24 << 20..32 << 20).contains(&kept), "1 and 2 are gone, and no other: {kept}");
    for n in 8..40 {
        journal.take_in(&data(n, 4 << 20)).expect("appended");
        journal.trim(journal.next(), Some(Seq(3))).expect("trimmed");
        assert!(journal.bytes() <= UNPROVEN_BYTES + 2 * SEGMENT_BYTES, "and no more than that");
    }
    assert!(journal.bytes() > UNPROVEN_BYTES / 2, "the newest");
    journal.trim(journal.next(), None).expect("trimmed");
    assert!(journal.bytes() < 2 * SEGMENT_BYTES, "a checkpoint came");
}
