//! Mounts that ended without a word, and those that go on with what their journals hold.

use mictlan::id::SessionId;
use mictlan_tests::files::names;
use mictlan_tests::forger;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Three, files, noise, write_through};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is made while nobody takes a commit: names, bytes, and bytes that were asked to be durable.
fn work_without_peers(dir: &Path, word: &str) {
    for n in 0..3 {
        let made = dir.join(format!("{word}-{n}"));
        fs::create_dir(&made).expect("acknowledged");
        fs::write(made.join("file"), format!("{word} {n}")).expect("acknowledged");
    }
    let refused = write_through(&dir.join(format!("{word}-0/through")), word.as_bytes());
    let refused = refused.expect_err("no peer has it");
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}");
}

/// The session whose journal waits.
fn only_journal(home: &Home) -> SessionId {
    let journals = files(&home.path().join("home/state/journals"));
    let mut names = journals.iter().filter_map(|(file, _)| file.parent()?.file_name()?.to_str());
    SessionId(names.next().expect("a journal").parse().expect("a session's number"))
}

fn assert_there(dir: &Path, word: &str, who: &Home) {
    for n in 0..3 {
        let file = dir.join(format!("{word}-{n}/file"));
        let read = fs::read_to_string(&file);
        let read = read.unwrap_or_else(|error| panic!("{}: {error}{}", file.display(), who.log()));
        assert_eq!(read, format!("{word} {n}"), "{}", who.log());
    }
}

#[test]
fn an_heir_that_dies_too_leaves_all_to_the_next_and_everybody_sees_it() {
    let three = Three::start();
    let (alice, bob, carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());
    three.peers.iter().for_each(|peer| peer.kill());
    work_without_peers(&dir, "first");
    alice.kill_daemon(&dir);

    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    forger::heir_that_dies(&alice, only_journal(&alice));
    // Others begin from here on, with a root that has that record in it.
    let other = bob.mount("mnt");
    fs::write(other.join("bob"), b"bob").expect("bob is alone");
    bob.unmount(&other);

    let other = carol.mount("mnt");
    let dir = alice.mount("mnt");
    assert_there(&dir, "first", &alice);
    assert_there(&other, "first", &carol);
    fs::write(other.join("first-1/carol"), b"carol").expect("work goes on");
    alice.unmount(&dir);
    carol.unmount(&other);
    let other = bob.mount("mnt");
    assert_there(&other, "first", &bob);
    assert_eq!(fs::read(other.join("first-1/carol")).expect("there"), b"carol");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program's own rename and fsync are tested")]
fn what_an_heir_had_committed_when_it_died_is_not_made_again() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());
    three.peers.iter().for_each(|peer| peer.kill());
    fs::write(dir.join("new"), b"saved").expect("acknowledged");
    fs::rename(dir.join("new"), dir.join("name")).expect("acknowledged");
    alice.kill_daemon(&dir);
    let journals = alice.path().join("home/state/journals");
    let kept = alice.path().join("kept");
    copy(&journals, &kept);
    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    let dir = alice.mount("mnt");
    fs::write(dir.join("later"), b"later").expect("written");
    File::open(&dir).and_then(|root| root.sync_all()).expect("all is committed");
    alice.kill_daemon(&dir);
    // As if it had died a moment earlier: the journal that it took over is still there.
    copy(&kept, &journals);
    let dir = alice.mount("mnt");
    let other = bob.mount("mnt");
    for (dir, who) in [(&dir, &alice), (&other, &bob)] {
        assert_eq!(fs::read(dir.join("name")).expect("there"), b"saved", "{}", who.log());
        assert_eq!(fs::read(dir.join("later")).expect("there"), b"later", "{}", who.log());
        assert!(!dir.join("new").exists(), "{}", who.log());
        assert!(!who.log().contains("it is void"), "{}", who.log());
    }
    alice.unmount(&dir);
    fs::write(other.join("after"), b"after").expect("they agree on what there is");
}

/// What is in `from` is in `to` too.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    let done = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(done.expect("cp is there").success());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn a_journal_that_has_all_the_bytes_waits_for_no_peer_that_is_away() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());
    three.peers.iter().for_each(|peer| peer.kill());
    fs::write(dir.join("file"), noise(1, 100_000)).expect("acknowledged");
    // It is sealed now, and the journal names a chunk that no peer has.
    let again = File::options().write(true).open(dir.join("file")).expect("it is there");
    let refused = again.sync_all().expect_err("no peer takes it");
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}");
    drop(again);
    alice.kill_daemon(&dir);
    three.peers[..2].iter().for_each(|peer| peer.serve_until("serving"));
    let dir = alice.mount("mnt");
    assert!(fs::read(dir.join("file")).expect("readable") == noise(1, 100_000), "{}", alice.log());
}

fn set_attribute(path: &Path, name: &str, value: &str) {
    let mut command = Command::new("setfattr");
    let set = command.args(["-n", name, "-v", value]).arg(path).status();
    assert!(set.expect("setfattr is installed").success(), "{name}");
}

/// After a change of mode: an heir seals what was written before it, and does not wait for more.
fn change_mode(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("acknowledged");
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).expect("it is there");
    file.write_all(bytes).expect("acknowledged");
    drop(file);
    change_mode(path);
}

fn overwrite(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all_at(bytes, 0)
}

/// Mounts, and is killed as soon as it has committed what `done` sees.
fn mount_and_die(home: &Home, dir: &Path, done: impl Fn() -> bool) {
    let log = File::options().append(true).open(home.path().join("processes.log"));
    let mut mount = home.command(&["mount".as_ref(), dir.as_os_str()]);
    let mut mount = mount.stderr(log.expect("a log")).spawn().expect("the program starts");
    wait_until("it has committed a part", done);
    mount.kill().and_then(|()| mount.wait()).expect("it waits for the mount");
    home.kill_daemon(dir);
}

/// In the directory whose files have one copy each.
fn one(dir: &Path, name: &str) -> PathBuf {
    dir.join("one").join(name)
}

/// More than one commit holds, and then what no commit holds without a chunk beside it.
#[expect(clippy::disallowed_methods, reason = "a program's own rename is tested")]
fn change(dir: &Path) {
    append(&one(dir, "log"), b"appended");
    overwrite(&one(dir, "shared"), b"alice").expect("acknowledged");
    change_mode(&one(dir, "shared"));
    fs::remove_file(one(dir, "old")).expect("acknowledged");
    fs::rename(one(dir, "a"), one(dir, "b")).expect("acknowledged");
    for n in 0..20 {
        set_attribute(&one(dir, "fill"), &format!("user.{n}"), &"x".repeat(60_000));
    }
    let value = format!("0x{}", hex::encode(noise(1, 60_000)));
    set_attribute(&one(dir, "fill"), "user.last", &value);
    append(&one(dir, "log2"), b"appended");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn what_an_heir_had_committed_when_it_was_killed_is_not_done_again() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    fs::create_dir(dir.join("one")).expect("made");
    set_attribute(&dir.join("one"), "user.mictlan.replicas", "1");
    for name in ["log", "log2", "shared", "old", "a", "fill"] {
        fs::write(one(&dir, name), format!("{name}: first, ")).expect("written");
    }
    File::open(&dir).and_then(|root| root.sync_all()).expect("all is committed");
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());

    three.peers.iter().for_each(|peer| peer.kill());
    change(&dir);
    alice.kill_daemon(&dir);

    // Two peers have room for what is ordered, and not for the chunk of the last commit, which has
    // one copy of two then.
    three.peers[0].serve_until("serving");
    three.peers[1..].iter().for_each(|peer| peer.offer("50K"));
    let seen = bob.mount_with("seen", &["-o", "ro"]);
    mount_and_die(&alice, &dir, || one(&seen, "b").exists());
    bob.unmount(&seen);

    // Others go on with what was there.
    three.peers[1..].iter().for_each(|peer| {
        peer.kill();
        peer.offer("100G");
    });
    let other = bob.mount("mnt");
    assert_eq!(fs::read(one(&other, "log")).expect("there"), b"log: first, appended");
    // It is known a moment later that there is room again.
    wait_until("it is written", || overwrite(&one(&other, "shared"), b"bob..").is_ok());
    for name in ["old", "a"] {
        wait_until("it is written", || fs::write(one(&other, name), b"bob").is_ok());
    }
    bob.unmount(&other);

    let dir = alice.mount("mnt");
    let other = bob.mount("mnt");
    let expected = [
        ("a", "bob"),
        ("b", "a: first, "),
        ("fill", "fill: first, "),
        ("log", "log: first, appended"),
        ("log2", "log2: first, appended"),
        ("old", "bob"),
        ("shared", "bob..d: first, "),
    ];
    for (dir, who) in [(&dir, &alice), (&other, &bob)] {
        assert_eq!(names(dir), ["ledger", "one"], "{}", who.log());
        assert_eq!(names(&dir.join("one")), expected.map(|(name, _)| name), "{}", who.log());
        for (name, text) in expected {
            let read = fs::read_to_string(one(dir, name)).expect("there");
            assert_eq!(read, text, "{name}{}", who.log());
        }
    }
}

#[test]
fn one_mount_takes_over_the_journals_of_several() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let words = ["one", "two", "three"];
    let mounts = words.map(|word| alice.mount(word));
    for (dir, word) in mounts.iter().zip(words) {
        for n in 0..3 {
            let made = dir.join(format!("{word}-{n}"));
            fs::create_dir(&made).expect("a new name");
            fs::write(made.join("file"), format!("{word} {n}")).expect("written and closed");
        }
    }
    mounts.iter().for_each(|dir| alice.kill_daemon(dir));
    let dir = alice.mount("one");
    let elsewhere = bob.mount("mnt");
    for word in words {
        assert_there(&dir, word, &alice);
        assert_there(&elsewhere, word, &bob);
    }
}
