//! Disks of a mount's machine that are full: the mount goes on, says what is wrong, and loses
//! nothing that it acknowledged.

use mictlan_tests::disk::{Disk, needs_root};
use mictlan_tests::files::{close, same, write_and_close};
use mictlan_tests::harness::{Home, signal, wait_until};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;

fn append_and_close(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    file.write_all(bytes)?;
    close(file)
}

/// Takes all that is left of the disk below `dir`, to the last byte.
fn fill(dir: &Path) {
    let mut file =
        File::options().create(true).append(true).open(dir.join("fill")).expect("a file");
    let full = (0..).find_map(|n| file.write_all(&vec![7; if n < 64 { 1 << 20 } else { 1 }]).err());
    assert_eq!(full.and_then(|why| why.raw_os_error()), Some(libc::ENOSPC));
}

/// What has more bytes than are left beside what a journal keeps for commits, and is small enough
/// to go into one.
const LARGE: usize = 900_000;

fn errno(done: io::Result<()>) -> Option<i32> {
    done.err().and_then(|why| why.raw_os_error())
}

/// fsync of the root: everything of the mount is committed.
fn sync_all(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    // SAFETY: the descriptor is open as long as `dir` lives.
    match unsafe { libc::fsync(dir.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn problems(home: &Home) -> Vec<String> {
    let report = home.run(&["status", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
    let problems = report["problems"].as_array().expect("a list");
    problems.iter().map(|one| one["code"].as_str().expect("a code").to_owned()).collect()
}

#[test]
fn a_mount_goes_on_when_the_disk_of_its_log_and_journal_is_full() {
    needs_root("a small disk");
    let home = Home::new();
    let state = home.path().join("home/state");
    let _disk = Disk::small(&state, "8m");
    let dir = home.mount("mnt");
    write_and_close(&dir.join("before"), b"before").expect("there is room");
    fill(&state);
    // Each of these has something to say, and nowhere to say it.
    for _ in 0..20 {
        let refused = write_and_close(&dir.join("more"), &[7; LARGE]);
        assert_eq!(errno(refused), Some(libc::ENOSPC), "the cause is told");
        assert_eq!(fs::read(dir.join("before")).expect("the mount is there"), b"before");
    }
    let full = "journal-disk-full".to_owned();
    assert!(problems(&home).contains(&full), "status does not name the disk");
    fs::remove_file(state.join("fill")).expect("removable");
    wait_until("there is room, and it is used", || {
        write_and_close(&dir.join("after"), &[8; LARGE]).is_ok()
    });
    assert!(!problems(&home).contains(&full), "the disk has room again");
    wait_until("everything is committed", || sync_all(&dir).is_ok());
    home.unmount(&dir);
    let dir = home.mount("mnt");
    assert_eq!(fs::read(dir.join("before")).expect("it was acknowledged"), b"before");
    same(&dir.join("after"), &[8; LARGE], &home);
    home.unmount(&dir);
}

#[test]
fn a_journal_on_a_full_disk_commits_what_it_has_and_gives_the_room_back() {
    needs_root("a small disk");
    let home = Home::new();
    let state = home.path().join("home/state");
    let _disk = Disk::small(&state, "8m");
    let dir = home.mount("mnt");
    let kept = |n: usize| vec![n as u8; if n < 20 { 100_000 } else { 100 }];
    for n in 0..200 {
        write_and_close(&dir.join(n.to_string()), &kept(n)).expect("there is room");
    }
    fill(&state);
    sync_all(&dir).unwrap_or_else(|why| panic!("commits have no room: {why}{}", home.log()));
    wait_until("the journal gives back what is committed", || {
        write_and_close(&dir.join("after"), &[8; LARGE]).is_ok()
    });
    home.kill_daemon(&dir);
    home.forget(&dir);
    fs::remove_file(state.join("fill")).expect("removable");
    let dir = home.mount("mnt");
    for n in 0..200 {
        same(&dir.join(n.to_string()), &kept(n), &home);
    }
    same(&dir.join("after"), &[8; LARGE], &home);
    home.unmount(&dir);
}

#[test]
fn a_journal_that_filled_its_disk_while_the_peers_were_away_empties_itself() {
    needs_root("a small disk");
    let home = Home::new();
    let _disk = Disk::small(&home.path().join("home/state"), "4m");
    home.ok(&["init"]);
    let peer = home.start(&["serve", "--listen", "127.0.0.1:0"], "serving");
    let dir = home.mount_with("mnt", &["-o", "deadline=10"]);
    let kept = |n: usize| vec![n as u8; 100_000];
    signal(peer, libc::SIGSTOP);
    let write = |n: usize| write_and_close(&dir.join(n.to_string()), &kept(n));
    let refused = (0..).map(|n| (n, write(n))).find(|(_, done)| done.is_err());
    let (closed, refused) = refused.expect("an endless search ends with a find");
    // A file of which the journal has the beginning, and no room for the rest.
    let lines = (0..).find(|_| append_and_close(&dir.join("lines"), &[7; 4096]).is_err());
    let lines = lines.expect("an endless search ends with a find");
    signal(peer, libc::SIGCONT);
    // On a machine so slow that the lease ran out first, there was nothing to fill.
    let known = matches!(errno(refused), Some(libc::ENOSPC | libc::ETIMEDOUT));
    assert!(known, "after {closed} files{}", home.log());
    wait_until("commits go on, and so do changes", || {
        write_and_close(&dir.join("after"), &[8; LARGE]).is_ok()
    });
    wait_until("everything is committed", || sync_all(&dir).is_ok());
    home.unmount(&dir);
    let dir = home.mount("mnt");
    for n in 0..closed {
        same(&dir.join(n.to_string()), &kept(n), &home);
    }
    let found = fs::read(dir.join("lines")).unwrap_or_default();
    assert!(found.len() >= lines * 4096, "{} of {lines} lines{}", found.len(), home.log());
    assert!(found.iter().all(|byte| *byte == 7), "a line came back as another");
    home.unmount(&dir);
}

#[test]
fn a_mount_without_room_for_its_journal_is_refused_and_says_where_to_make_room() {
    needs_root("a small disk");
    let home = Home::new();
    let state = home.path().join("home/state");
    let _disk = Disk::small(&state, "8m");
    let dir = home.mount("mnt");
    write_and_close(&dir.join("before"), b"before").expect("there is room");
    home.unmount(&dir);
    fill(&state);
    let filled = File::options().write(true).open(state.join("fill")).expect("a file");
    let len = filled.metadata().expect("a file").len();
    // Enough for all but what a journal keeps for commits.
    filled.set_len(len - (512 << 10)).expect("shorter");
    drop(filled);
    let refused = home.run(&["mount", dir.to_str().expect("a plain path")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(7), "{said}{}", home.log());
    assert!(said.contains("1 MiB") && said.contains("df -h /"), "{said}");
    fs::remove_file(state.join("fill")).expect("removable");
    let dir = home.mount("mnt");
    assert_eq!(fs::read(dir.join("before")).expect("it was committed"), b"before");
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
