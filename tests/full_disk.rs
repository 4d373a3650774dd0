//! Disks of a mount's machine that are full: the mount goes on, says what is wrong, and loses
//! nothing that it acknowledged.

use mictlan_tests::disk::{Disk, needs_root};
use mictlan_tests::harness::{Home, signal, wait_until};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::Path;
use std::process::Stdio;

/// `close` is what promises something here, so its answer is heard.
fn write_and_close(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    // SAFETY: the descriptor is this function's own, and nothing uses it afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes all that is left of the disk below `dir`, to the last byte.
fn fill(dir: &Path) {
    let mut file =
        File::options().create(true).append(true).open(dir.join("fill")).expect("a file");
    let full = (0..).find_map(|n| file.write_all(&vec![7; if n < 64 { 1 << 20 } else { 1 }]).err());
    assert_eq!(full.and_then(|why| why.raw_os_error()), Some(libc::ENOSPC));
}

/// Small enough for `close` to put it into the journal, and too much for what a full disk has left.
const LARGE: usize = 900_000;

/// fsync of the root: everything of the mount is committed.
fn sync_all(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    // SAFETY: the descriptor is open as long as `dir` lives.
    match unsafe { libc::fsync(dir.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether `status` names the disk.
fn is_named(home: &Home) -> bool {
    let report = home.run(&["status", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
    let problems = report["problems"].as_array().expect("a list");
    problems.iter().any(|problem| problem["code"] == "journal-disk-full")
}

#[test]
fn a_mount_goes_on_when_the_disk_of_its_log_and_journal_is_full() {
    needs_root("a small disk");
    let home = Home::new();
    let state = home.path().join("home/state");
    let _disk = Disk::small(&state, "8m");
    let dir = home.mount("mnt");
    write_and_close(&dir.join("before"), b"before").expect("there is room");
    assert!(!is_named(&home), "there is room");
    fill(&state);
    // Each of these has something to say, and nowhere to say it.
    for _ in 0..20 {
        let refused = write_and_close(&dir.join("more"), &[7; LARGE]).expect_err("no room");
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "the cause is told: {refused}");
        assert_eq!(fs::read(dir.join("before")).expect("the mount is there"), b"before");
    }
    assert!(is_named(&home), "status does not say which disk is full");
    fs::remove_file(state.join("fill")).expect("removable");
    wait_until("there is room, and it is used", || {
        write_and_close(&dir.join("after"), &[8; LARGE]).is_ok()
    });
    wait_until("everything is committed", || sync_all(&dir).is_ok());
    home.unmount(&dir);
    let dir = home.mount("mnt");
    assert_eq!(fs::read(dir.join("before")).expect("it was acknowledged"), b"before");
    assert!(fs::read(dir.join("after")).expect("it was acknowledged") == [8; LARGE]);
    home.unmount(&dir);
}

#[test]
fn a_peer_goes_on_when_nobody_takes_its_log() {
    let full = || File::options().write(true).open("/dev/full").expect("a full device").into();
    let closed = || {
        let (_, writer) = io::pipe().expect("a pipe");
        writer.into()
    };
    let logs: [(&str, &dyn Fn() -> Stdio); 2] = [("full", &full), ("closed", &closed)];
    for (what, log) in logs {
        let home = Home::new();
        home.ok(&["init"]);
        let mut serve = home.command(&["serve", "--listen", "127.0.0.1:0"]);
        // So that it has much to say.
        serve.env("MICTLAN_LOG", "debug");
        let serve = serve.stdout(Stdio::piped()).stderr(log()).spawn();
        let mut peer = serve.expect("the program starts");
        let out = BufReader::new(peer.stdout.take().expect("it was piped"));
        let said = out.lines().map_while(Result::ok).any(|line| line.starts_with("serving"));
        assert!(said, "the peer does not answer: its log is {what}");
        let dir = home.mount("mnt");
        write_and_close(&dir.join("file"), b"kept").expect("the peer takes it");
        home.unmount(&dir);
        assert!(peer.try_wait().expect("a child").is_none(), "the peer ended: its log is {what}");
        signal(peer.id() as i32, libc::SIGTERM);
        assert_eq!(peer.wait().expect("a child").code(), Some(0), "its log is {what}");
    }
}
