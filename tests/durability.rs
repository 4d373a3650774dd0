//! P1 and the mount's own life: what was acknowledged is there, whatever ends the daemon.

use mictlan_tests::harness::{Home, assert_same_tree, wait_until};
use std::fs;
use std::path::Path;
use std::process::Command;

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
    assert!(!dir.join("file").exists(), "the directory is no mount any more");
    let dir = home.mount("mnt");
    assert_eq!(fs::read(dir.join("file")).expect("readable"), b"content");
}
