//! Mounts that are killed between two steps: their journals are cut where the kill would have.

use mictlan::meta::namespace::Op;
use mictlan_daemon::volume::journal::{Entry, Journal, Left};
use mictlan_tests::forger;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Three, files, noise};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::IntoRawFd;
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
    left.remove().expect("removed");
    let journal = Journal::create(&dir, about, key.public()).expect("created");
    for (_, entry) in &entries[..until] {
        journal.append(entry).expect("appended");
    }
}

fn is_dropped(entry: &Entry) -> bool {
    matches!(entry, Entry::Dropped { .. })
}

fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry"));
    let mut names: Vec<_> =
        listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
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
            // SAFETY: the descriptor is this file's, which is forgotten.
            unsafe { libc::close(file.into_raw_fd()) == 0 }
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
