//! What a mount left in its journal, and others changed the same before it came back.

use mictlan_tests::harness::{Home, alive, signal, wait_until};
use mictlan_tests::three::{Three, write_through};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

const FILES: [&str; 8] = ["over", "trunc", "log", "pre", "doc", "place", "gone", "other"];

fn overwrite(path: &Path, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("it is there");
    file.write_all_at(bytes, 0).expect("acknowledged");
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).expect("it is there");
    file.write_all(bytes).expect("acknowledged");
}

/// As a careful program does it.
#[expect(clippy::disallowed_methods, reason = "a program's own rename is what is tested")]
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).expect("acknowledged");
    fs::rename(new, path).expect("acknowledged");
}

#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn commit(dir: &Path) {
    File::open(dir).and_then(|root| root.sync_all()).expect("all is committed");
}

fn read(dir: &Path, name: &str, who: &Home) -> String {
    let bytes = fs::read(dir.join(name));
    let bytes = bytes.unwrap_or_else(|error| panic!("{name}: {error}{}", who.log()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What came back of `name`, in a file of its own.
fn recovered(dir: &Path, name: &str, who: &Home) -> String {
    let names = fs::read_dir(dir).expect("listed").flatten().map(|entry| entry.file_name());
    let names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
    let found = names.iter().find(|other| other.starts_with(&format!("{name}.recovered-")));
    read(dir, found.unwrap_or_else(|| panic!("{name} in {names:?}{}", who.log())), who)
}

/// Acknowledged, and in the journal alone.
fn left_by_alice(dir: &Path) {
    overwrite(&dir.join("over"), b"ALI");
    fs::write(dir.join("trunc"), b"alice's").expect("acknowledged");
    append(&dir.join("log"), b"alice's line\n");
    replace(&dir.join("pre"), b"alice's");
    fs::copy(dir.join("doc"), dir.join("backup")).expect("acknowledged");
    fs::copy(dir.join("doc"), dir.join("place")).expect("acknowledged");
    fs::remove_file(dir.join("gone")).expect("acknowledged");
    overwrite(&dir.join("other"), b"ALI");
    fs::create_dir(dir.join("made")).expect("acknowledged");
}

fn done_by_bob(dir: &Path) {
    overwrite(&dir.join("over"), b"BOB's");
    fs::write(dir.join("trunc"), b"bob's, later").expect("acknowledged");
    append(&dir.join("log"), b"bob's line\n");
    replace(&dir.join("pre"), b"bob's, later");
    replace(&dir.join("doc"), b"bob's, later");
    overwrite(&dir.join("place"), b"BOB's");
    append(&dir.join("gone"), b"bob's line\n");
    commit(dir);
}

/// Whatever bob committed stands, and whatever alice was told that it is there is somewhere.
fn check(dir: &Path, who: &Home) {
    for (name, text) in [
        ("over", "BOB's first\n"),
        ("trunc", "bob's, later"),
        ("log", "log: first\nbob's line\nalice's line\n"),
        ("pre", "bob's, later"),
        ("doc", "bob's, later"),
        ("backup", "doc: first\n"),
        ("place", "BOB's: first\n"),
        ("gone", "gone: first\nbob's line\n"),
        ("other", "ALIer: first\n"),
        ("pre.new", "alice's"),
    ] {
        assert_eq!(read(dir, name, who), text, "{name}{}", who.log());
    }
    assert!(dir.join("made").is_dir(), "{}", who.log());
    assert_eq!(recovered(dir, "over", who), "ALI");
    assert_eq!(recovered(dir, "trunc", who), "alice's");
    assert_eq!(recovered(dir, "place", who), "doc: first\n");
    let list = recovered(dir, "operations", who);
    for line in ["set size 0 of /trunc: another", "rename /pre.new to /pre: another"] {
        assert!(list.contains(line), "{line} in {list}");
    }
    assert!(list.contains("remove /gone: another mount has changed the same since"), "{list}");
    assert_eq!(list.lines().count(), 5, "and of `place` its size and its mode: {list}");
}

fn overtaken(bob_leaves: bool) {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    for name in FILES {
        fs::write(dir.join(name), format!("{name}: first\n")).expect("written");
    }
    commit(&dir);
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());
    three.peers.iter().for_each(|peer| peer.kill());
    left_by_alice(&dir);
    alice.kill_daemon(&dir);
    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    let other = bob.mount("mnt");
    wait_until("bob is alone on the volume", || !bob.is_beside_others());
    done_by_bob(&other);
    if bob_leaves {
        // With a root that has what he did: who comes next applies none of it.
        bob.unmount(&other);
    }
    let dir = alice.mount("mnt");
    check(&dir, &alice);
    if bob_leaves {
        bob.mount("mnt");
    }
    check(&other, &bob);
}

#[test]
fn what_others_committed_since_a_mount_died_is_not_overwritten_by_its_journal() {
    overtaken(false);
}

#[test]
fn what_others_committed_and_made_a_root_of_is_not_overwritten_by_an_old_journal() {
    overtaken(true);
}

#[test]
fn a_mount_that_slept_and_was_fenced_says_so_and_what_it_had_comes_back() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    for name in ["over", "other"] {
        fs::write(dir.join(name), format!("{name}: first\n")).expect("written");
    }
    commit(&dir);
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());
    three.peers.iter().for_each(|peer| peer.kill());
    overwrite(&dir.join("over"), b"ALI");
    overwrite(&dir.join("other"), b"ALI");
    let daemon = alice.daemon_of(&dir);
    signal(daemon, libc::SIGSTOP);
    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    let other = bob.mount("mnt");
    wait_until("bob is alone on the volume", || !bob.is_beside_others());
    write_through(&other.join("over"), b"bob's, later").expect("committed");
    signal(daemon, libc::SIGCONT);
    wait_until("status says that nothing is committed any more", || {
        let report = alice.run(&["status"]).stdout;
        String::from_utf8_lossy(&report).contains("[commits-wait]")
    });
    assert_eq!(alice.run(&["umount", &dir.display().to_string()]).status.code(), Some(11));
    wait_until("the daemon ends", || !alive(daemon));
    let dir = alice.mount("mnt");
    assert_eq!(read(&dir, "over", &alice), "bob's, later", "{}", alice.log());
    assert_eq!(recovered(&dir, "over", &alice), "ALI");
    assert_eq!(read(&dir, "other", &alice), "ALIer: first\n", "{}", alice.log());
}
