//! Mounts that are killed between two steps: their journals are cut where the kill would have.

use mictlan::id::{Ino, Name, Position};
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{Op, Place};
use mictlan_daemon::volume::journal::{About, Entry, Holds, Journal, Left};
use mictlan_tests::files::{close, names};
use mictlan_tests::forger;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Three, files, noise, write_through};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the only journal of a home.
fn journal_of(home: &Home) -> PathBuf {
    let all = files(&home.path().join("home/state/journals"));
    let segment = all.iter().find(|(file, _)| file.extension().is_some_and(|e| e == "seg"));
    let (segment, _) = segment.expect("a journal");
    segment.parent().expect("a directory").to_owned()
}

/// What that journal has, also while its mount lives.
fn entries(home: &Home) -> Vec<Entry> {
    let (dir, copy) = (journal_of(home), tempfile::tempdir().expect("a directory"));
    for (file, _) in files(&dir) {
        let name = file.file_name().expect("a name");
        fs::create_dir_all(copy.path().join("one")).expect("made");
        fs::copy(&file, copy.path().join("one").join(name)).expect("copied");
    }
    let found = Left::find(copy.path(), &forger::key(home), &mut Vec::new()).expect("readable");
    found.into_iter().flat_map(|left| left.entries).map(|(_, entry)| entry).collect()
}

/// The journal of a mount that is gone as it was before its entry `last` came.
fn cut(home: &Home, last: impl Fn(&Entry) -> bool) {
    let (dir, key) = (journal_of(home), forger::key(home));
    let parent = dir.parent().expect("of the volume").to_owned();
    let left = Left::find(&parent, &key, &mut Vec::new()).expect("readable").remove(0);
    let (about, entries) = (left.about, left.entries.clone());
    assert_eq!(entries[0].0.0, 1, "nothing was committed of it");
    let until = entries.iter().rposition(|(_, entry)| last(entry)).expect("it came");
    let entries: Vec<Entry> = entries[..until].iter().map(|(_, entry)| entry.clone()).collect();
    left.remove().expect("removed");
    rewrite(home, &dir, about, &entries);
}

/// A journal that has these entries, in the place of one of the session, if there is.
fn rewrite(home: &Home, dir: &Path, about: About, entries: &[Entry]) {
    let _ = fs::remove_dir_all(dir);
    let journal = Journal::create(dir, about, forger::key(home).public()).expect("created");
    for entry in entries {
        journal.append(entry).expect("appended");
    }
}

fn is_dropped(entry: &Entry) -> bool {
    matches!(entry, Entry::Dropped { .. })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program's own rename and fsync are tested")]
fn a_mount_that_is_killed_while_it_plans_again_does_nothing_twice() {
    let three = Three::start();
    let (alice, _carol) = (three.user("alice"), three.user("carol"));
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    for name in ["a", "fill", "log", "old"] {
        fs::write(dir.join(name), format!("{name}: first, ")).expect("written");
    }
    File::open(&dir).and_then(|root| root.sync_all()).expect("all is committed");
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());

    three.peers.iter().for_each(|peer| peer.kill());
    // No commit holds it without a chunk beside it, and what comes after it waits for it.
    let value = format!("0x{}", hex::encode(noise(1, 60_000)));
    let mut set = Command::new("setfattr");
    let set = set.args(["-n", "user.noise", "-v", &value]).arg(dir.join("fill")).status();
    assert!(set.expect("setfattr is installed").success());
    fs::remove_file(dir.join("old")).expect("acknowledged");
    fs::rename(dir.join("a"), dir.join("b")).expect("acknowledged");
    let log = OpenOptions::new().append(true).open(dir.join("log"));
    log.and_then(|mut log| log.write_all(b"appended")).expect("acknowledged");

    // Two peers have room for what is ordered, and not for that chunk. An epoch begins, in which all
    // of it is planned again.
    three.peers[0].serve_until("serving");
    three.peers[1..].iter().for_each(|peer| peer.offer("50K"));
    three.peers[0].home.ok(&["member", "rm", "carol"]);
    wait_until("it is planned again", || entries(&alice).iter().any(is_dropped));
    alice.kill_daemon(&dir);
    cut(&alice, is_dropped);

    three.peers[1..].iter().for_each(|peer| {
        peer.kill();
        peer.offer("100G");
    });
    let dir = alice.mount("mnt");
    assert_eq!(names(&dir), ["b", "fill", "ledger", "log"], "{}", alice.log());
    for (name, text) in [("b", "a: first, "), ("log", "log: first, appended")] {
        let read = fs::read_to_string(dir.join(name)).expect("there");
        assert_eq!(read, text, "{name}{}", alice.log());
    }
}

/// How often bytes that were appended got their place in the next commit.
fn sealings(home: &Home) -> usize {
    let sealing = |entry: &&Entry| matches!(entry, Entry::Op { op: Op::Append(_), .. });
    entries(home).iter().filter(sealing).count()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn what_was_sealed_while_its_file_was_open_is_there_after_close_and_kill() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    fs::write(dir.join("file"), b"first, ").expect("written");
    File::open(&dir).and_then(|root| root.sync_all()).expect("all is committed");
    // Without peers the lease ends after some seconds, and then `close` waits for them.
    let acknowledged = (0..20).any(|n| {
        wait_until("the mount is alone on the volume", || !alice.is_beside_others());
        let before = sealings(&alice);
        let mut file = OpenOptions::new().append(true).open(dir.join("file")).expect("open");
        three.peers.iter().for_each(|peer| peer.kill());
        // Whose turn it is to be committed takes along what was written before.
        let made = |()| fs::create_dir(dir.join(n.to_string()));
        let acknowledged = file.write_all(b"last").and_then(made).is_ok() && {
            wait_until("it is sealed", || sealings(&alice) > before);
            close(file).is_ok()
        };
        if !acknowledged {
            three.peers.iter().for_each(|peer| peer.serve_until("serving"));
        }
        acknowledged
    });
    assert!(acknowledged, "{}", alice.log());
    alice.kill_daemon(&dir);
    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    let dir = alice.mount("mnt");
    let read = fs::read_to_string(dir.join("file")).expect("there");
    assert!(read.ends_with("last"), "{read}{}", alice.log());
}

fn data(ino: u64, bytes: &[u8]) -> Entry {
    let (mtime, bytes) = (Stamp { secs: 1, nanos: 0 }, bytes.to_vec());
    Entry::Data { base: None, ino: Ino(ino), offset: 0, mtime, kill_priv: false, bytes }
}

/// The removal of a file that nobody has open, as its mount notes it.
fn removal(name: &str, ino: u64) -> [Entry; 2] {
    let at = Place { dir: Ino::ROOT, name: Name::parse(name.as_bytes()).expect("a name") };
    [Op::Unlink(at), Op::Reap { ino: Ino(ino) }].map(|op| {
        let (now, base) = (Stamp { secs: 2, nanos: 0 }, Position(0));
        Entry::Op { now, base, holds: Holds::default(), op }
    })
}

#[test]
fn bytes_whose_file_is_removed_while_they_are_taken_over_are_kept() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount("mnt");
    for name in ["own", "another's"] {
        write_through(&dir.join(name), b"first").expect("committed");
    }
    let ino = |name: &str| fs::metadata(dir.join(name)).expect("there").ino();
    let (own, anothers) = (ino("own"), ino("another's"));
    alice.kill_daemon(&dir);
    // What the heir wrote is taken first; then what the one before it removed.
    let first = journal_of(&alice);
    let left =
        Left::find(first.parent().expect("of the volume"), &forger::key(&alice), &mut vec![]);
    let about = left.expect("readable").remove(0).about;
    let session = forger::heir_that_dies(&alice, about.session);
    let heirs = first.with_file_name(session.to_string());
    rewrite(&alice, &heirs, About { session, ..about }, &[data(anothers, b"kept")]);
    let removals = [removal("own", own), removal("another's", anothers)].concat();
    rewrite(&alice, &first, about, &[&[data(own, b"gone")], &removals[..]].concat());

    let dir = alice.mount("mnt");
    let there = names(&dir);
    assert_eq!(there.len(), 2, "a file and the ledger: {there:?}{}", alice.log());
    assert!(there[0].starts_with(&format!("inode-{anothers}.recovered-")), "{there:?}");
    assert_eq!(fs::read(dir.join(&there[0])).expect("kept"), b"kept", "{}", alice.log());
}
