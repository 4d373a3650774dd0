//! What is committed and in no snapshot root yet: bounded in memory, and never lost.

use mictlan_tests::harness::{Home, wait_until};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Links whose targets are metadata, and far more of it than such a mount keeps in memory.
const LINKS: usize = 6_000;
const SMALL: &[&str] = &["-o", "memory=64M"];

fn target(n: usize) -> PathBuf {
    format!("{n}/").repeat(3_900 / (n.to_string().len() + 1)).into()
}

fn make(dir: &Path, home: &Home) {
    for n in 0..LINKS {
        let made = symlink(target(n), dir.join(format!("link-{n}")));
        made.unwrap_or_else(|error| panic!("link {n}: {error}{}", home.log()));
    }
}

fn check(dir: &Path, home: &Home) {
    for n in 0..LINKS {
        let found = fs::read_link(dir.join(format!("link-{n}")));
        let found = found.unwrap_or_else(|error| panic!("link {n}: {error}{}", home.log()));
        assert!(found == target(n), "link {n}{}", home.log());
    }
    let names = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("an entry"));
    let links = names.filter(|entry| entry.file_name() != "ledger").count();
    assert_eq!(links, LINKS, "{}", home.log());
}

/// Open files of a process that have no name any more.
fn runs(pid: i32) -> usize {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let text = targets.map(|target| target.to_string_lossy().into_owned());
    text.filter(|target| target.contains("/overlay/") && target.ends_with("(deleted)")).count()
}

#[test]
fn commits_that_memory_has_no_room_for_are_read_from_the_local_disk() {
    let home = Home::new();
    let dir = home.mount_with("mnt", SMALL);
    make(&dir, &home);
    let daemon = home.daemon_of(&dir);
    wait_until("runs are on the local disk", || runs(daemon) > 1);
    check(&dir, &home);
    let left = fs::read_dir(home.path().join("home/cache/overlay")).expect("a directory");
    assert_eq!(left.count(), 0, "a crash leaves nothing of them");
    // The next mount builds the same view from the log, then from the root of an unmount.
    home.kill_daemon(&dir);
    let dir = home.mount_with("mnt", SMALL);
    assert!(runs(home.daemon_of(&dir)) > 0, "catching up is bounded as well");
    check(&dir, &home);
    home.unmount(&dir);
    let dir = home.mount_with("mnt", SMALL);
    assert_eq!(runs(home.daemon_of(&dir)), 0, "all is in a snapshot root");
    check(&dir, &home);
}

#[test]
fn without_room_on_the_local_disk_a_root_is_built_early_and_nothing_is_lost() {
    let home = Home::new();
    fs::create_dir_all(home.path().join("home/cache")).expect("made");
    fs::write(home.path().join("home/cache/overlay"), b"no room here").expect("written");
    let dir = home.mount_with("mnt", SMALL);
    make(&dir, &home);
    let roots = || {
        let text =
            fs::read_to_string(dir.join("ledger/records/000/000/000.ndjson")).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"kind\":\"fs.root\"")).count()
    };
    wait_until("a root is built", || roots() > 0);
    check(&dir, &home);
    assert!(home.log().contains("no room on the local disk"), "{}", home.log());
    home.kill_daemon(&dir);
    let dir = home.mount_with("mnt", SMALL);
    check(&dir, &home);
}
