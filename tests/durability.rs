//! P1 and the mount's own life: what was acknowledged is there, whatever ends the daemon.

use mictlan_tests::harness::{Home, assert_same_tree, wait_until};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

/// A real tree: this project's own core.
fn tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../src"))
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().expect("cp is installed");
    assert!(done.success());
}

#[test]
fn a_copied_tree_is_there_after_unmount_and_mount() {
    let home = Home::new();
    let dir = home.mount("mnt");
    copy(tree(), &dir.join("src"));
    assert_same_tree(tree(), &dir.join("src"));
    home.unmount(&dir);
    assert!(!home.log().contains("Unmount failed"), "that was what was asked for{}", home.log());
    let dir = home.mount("mnt");
    assert_same_tree(tree(), &dir.join("src"));
}

#[test]
fn after_close_killing_the_daemon_loses_nothing() {
    let home = Home::new();
    let dir = home.mount("mnt");
    copy(tree(), &dir.join("src"));
    fs::write(dir.join("large"), vec![7u8; 9 << 20]).expect("written");
    home.kill_daemon(&dir);
    // The dead mount is cleared away by the next one.
    let dir = home.mount("mnt");
    assert_same_tree(tree(), &dir.join("src"));
    let large = fs::read(dir.join("large")).expect("readable");
    assert!(large == vec![7u8; 9 << 20], "{} bytes came back{}", large.len(), home.log());
    home.kill_daemon(&dir);
    let dir = home.mount("mnt");
    assert_same_tree(tree(), &dir.join("src"));
}

#[test]
fn sigterm_commits_everything_and_unmounts() {
    let home = Home::new();
    let dir = home.mount("mnt");
    fs::write(dir.join("file"), b"content").expect("written");
    let daemon = home.daemon_of(&dir);
    mictlan_tests::harness::signal(daemon, libc::SIGTERM);
    wait_until("the daemon ends", || !mictlan_tests::harness::alive(daemon));
    let left = fs::read_dir(&dir).expect("the directory is no mount any more, not a dead one");
    assert_eq!(left.count(), 0);
    // Nothing of it is in a journal alone.
    let said = home.ok(&["status"]);
    assert!(!said.contains("[journal-waits]"), "{said}");
    let dir = home.mount("mnt");
    assert_eq!(fs::read(dir.join("file")).expect("readable"), b"content");
}

#[test]
fn a_closed_terminal_ends_a_mount_in_front_in_order() {
    let home = Home::new();
    for (name, how) in [("hangup", libc::SIGHUP), ("quit", libc::SIGQUIT)] {
        let dir = home.adopt(home.empty(name));
        let text = dir.to_str().expect("a plain path");
        let mount = home.start(&["mount", "--foreground", "--json", text], "\"pid\"");
        let mut open = File::create(dir.join(name)).expect("created");
        open.write_all(&[7; 1000]).expect("written");
        mictlan_tests::harness::signal(mount, libc::SIGUSR1);
        mictlan_tests::harness::signal(mount, libc::SIGUSR2);
        assert_eq!(home.stop(mount, how), Some(0), "{name}{}", home.log());
        let left = fs::read_dir(&dir).expect("no mount any more, not a dead one");
        assert_eq!(left.count(), 0, "{name}");
        drop(open);
        let said = home.ok(&["status"]);
        assert!(!said.contains("[journal-waits]"), "{said}");
        assert_eq!(home.ok(&["get", &format!("/{name}"), "-"]).into_bytes(), [7; 1000]);
    }
}

#[test]
fn a_mount_in_the_background_outlives_a_hangup() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let daemon = home.daemon_of(&dir);
    for how in [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
        mictlan_tests::harness::signal(daemon, how);
    }
    fs::write(dir.join("file"), b"content").expect("it goes on");
    home.unmount(&dir);
    assert_eq!(home.ok(&["get", "/file", "-"]), "content");
}

#[test]
fn a_closed_terminal_ends_a_peer_in_order() {
    let home = Home::new();
    home.ok(&["init"]);
    let address = mictlan_tests::three::addresses(1).remove(0);
    for how in [libc::SIGHUP, libc::SIGQUIT] {
        let peer = home.start(&["serve", "--listen", &address], "serving");
        mictlan_tests::harness::signal(peer, libc::SIGUSR1);
        mictlan_tests::harness::signal(peer, libc::SIGUSR2);
        assert_eq!(home.stop(peer, how), Some(0), "{how}{}", home.log());
    }
}

#[test]
fn a_file_that_came_and_went_takes_nothing_else_with_it() {
    // Made, written and removed between two commits, as databases and compilers do all the time:
    // the commit in which it ends is one that everybody accepts.
    let home = Home::new();
    let dir = home.mount("mnt");
    for round in 0..3 {
        fs::write(dir.join(format!("kept-{round}")), b"kept").expect("written");
        let passing = dir.join("passing");
        fs::write(&passing, vec![7; 50_000]).expect("written");
        fs::remove_file(&passing).expect("removed");
        let opened = File::create(&passing).expect("created");
        fs::remove_file(&passing).expect("removed while it is open");
        (&opened).write_all(b"more").expect("written");
        drop(opened);
        let link = dir.join("link");
        std::os::unix::fs::symlink("nowhere", &link).expect("a link");
        fs::remove_file(&link).expect("removed");
        fs::create_dir(&link).expect("a directory");
        fs::remove_dir(&link).expect("removed");
        let done = Command::new("sync").arg(dir.join(format!("kept-{round}"))).status();
        assert!(done.expect("sync is installed").success(), "{}", home.log());
    }
    home.kill_daemon(&dir);
    let dir = home.mount("mnt");
    let log = home.log();
    assert!(!log.contains("void"), "{log}");
    for round in 0..3 {
        let kept = fs::read(dir.join(format!("kept-{round}"))).expect("it was synced");
        assert_eq!(kept, b"kept", "{round}{log}");
    }
    assert_eq!(fs::read_dir(&dir).expect("readable").count(), 3 + 1, "they and the ledger");
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the rename and the syncs are what is tested")]
fn a_file_without_a_name_from_its_first_commit_on_stops_nothing() {
    // What tmpfile(3) does: made, unlinked, and in use over many commits.
    let home = Home::new();
    let dir = home.mount("mnt");
    let path = dir.join("nameless");
    let open = || File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let mut nameless: Vec<File> = Vec::new();
    for round in 0..3 {
        let file = open().expect("created");
        fs::remove_file(&path).expect("removed");
        nameless.push(file);
        let replaced = dir.join("replaced");
        nameless.push(File::create(&replaced).expect("created"));
        fs::write(dir.join("new"), b"new").expect("written");
        fs::rename(dir.join("new"), &replaced).expect("renamed over an open file");
        let kept = dir.join(format!("kept-{round}"));
        fs::write(&kept, b"kept").expect("written");
        File::open(&kept).and_then(|file| file.sync_all()).expect("committed");
        for file in &mut nameless {
            file.write_all(b"more").expect("it is in use");
            file.sync_all().expect("committed");
        }
    }
    // And once more with all of it in the journal alone.
    nameless.push(open().expect("created"));
    fs::remove_file(&path).expect("removed");
    fs::write(dir.join("kept-3"), b"kept").expect("written");
    home.kill_daemon(&dir);
    drop(nameless);
    let dir = home.mount("mnt");
    let log = home.log();
    assert!(!log.contains("void"), "{log}");
    for round in 0..4 {
        let kept = fs::read(dir.join(format!("kept-{round}"))).expect("it was acknowledged");
        assert_eq!(kept, b"kept", "{round}{log}");
    }
}

#[test]
fn each_of_two_closes_at_once_waits_for_the_chunks() {
    // Two descriptors of one open file, as a child that is started meanwhile has: whichever close
    // returns first has promised that the bytes are there.
    let home = Home::new();
    let dir = home.mount("mnt");
    for round in 0..8 {
        let path = dir.join(format!("file-{round}"));
        let mut file = File::create(&path).expect("created");
        let other = file.try_clone().expect("a second descriptor");
        file.write_all(&noise(round, 9 << 20)).expect("written");
        let (closed, first) = mpsc::channel();
        let closers = [file, other].map(|file| {
            let closed = closed.clone();
            std::thread::spawn(move || {
                drop(file);
                closed.send(())
            })
        });
        first.recv().expect("one of them closes");
        home.kill_daemon(&dir);
        for closer in closers {
            // The one that was still waiting hears that the daemon is gone.
            let _ = closer.join().expect("no panic");
        }
        home.mount("mnt");
        let back = fs::read(&path).expect("readable");
        assert!(back == noise(round, 9 << 20), "{} bytes came back{}", back.len(), home.log());
    }
}

#[test]
fn what_is_written_to_a_file_that_stays_open_is_committed_too() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let seen = home.mount_with("seen", &["-o", "ro"]);
    let mut log = File::create(dir.join("log")).expect("made");
    for line in ["first", "second", "third"] {
        log.write_all(line.as_bytes()).expect("taken");
        wait_until("others see it", || {
            fs::read_to_string(seen.join("log")).is_ok_and(|read| read.ends_with(line))
        });
    }
}

/// Bytes that neither compress nor repeat, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let word = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..len).map(word).collect()
}
