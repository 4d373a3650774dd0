//! Disks that fill, rot, tear and lose power, and daemons that are killed: what was acknowledged is
//! there afterwards, and what cannot be had is an error, never zeros.
//!
//! tests/PROMISES.md names which promise each of these keeps.

use mictlan_tests::disk::{Disk, needs_root};
use mictlan_tests::files::{close, same, write_and_close};
use mictlan_tests::harness::{Home, program, wait_until};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

/// Content that no compression or deduplication makes smaller, the same for the same number.
fn content(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    // SAFETY: the descriptor is open as long as `file` lives.
    match unsafe { libc::fsync(file.as_raw_fd()) } {
        0 => close(file),
        _ => Err(io::Error::last_os_error()),
    }
}

fn store(home: &Home) -> PathBuf {
    home.path().join("home/data/networks/home/store")
}

/// The segment files of the store, the largest last.
fn segments(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(store(home).join("segments")).expect("a store");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort_by_key(|path| path.metadata().expect("a segment").len());
    paths
}

/// Writes files of 3 MiB, each with an fsync, until there is no room: how many there are. The
/// write itself must say so, and never an fsync after it.
fn fill(dir: &Path, most: u64, home: &Home) -> u64 {
    for n in 0..most {
        let mut file = File::create(dir.join(n.to_string())).expect("a name takes no room");
        if let Err(why) = file.write_all(&content(n, 3 << 20)) {
            assert_eq!(why.raw_os_error(), Some(libc::ENOSPC), "{why}{}", home.log());
            let more = file.write_all(&content(n, 3 << 20)).expect_err("it is still full");
            assert_eq!(more.raw_os_error(), Some(libc::ENOSPC), "{more}{}", home.log());
            return n;
        }
        // SAFETY: the descriptor is open as long as `file` lives.
        let synced = unsafe { libc::fsync(file.as_raw_fd()) };
        let why = io::Error::last_os_error();
        assert_eq!(synced, 0, "what was taken in has no room: {why}{}", home.log());
        close(file).unwrap_or_else(|why| panic!("close: {why}{}", home.log()));
    }
    panic!("there is room for {most} files of 3 MiB{}", home.log());
}

/// More than there is room for is refused before a byte of it is written.
fn fallocate_fails(path: &Path, len: i64, home: &Home) {
    let file = File::create(path).expect("a name takes no room");
    // SAFETY: the descriptor is open as long as `file` lives.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) };
    let why = io::Error::last_os_error();
    assert_eq!((done, why.raw_os_error()), (-1, Some(libc::ENOSPC)), "{why}{}", home.log());
    assert_eq!(file.metadata().expect("there").len(), 0);
}

/// What `df` shows in bytes: size, used, available.
fn df(dir: &Path) -> (u64, u64, u64) {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).expect("a plain path");
    // SAFETY: the path is a C string, and the structure is filled before it is read.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &mut stat), 0, "statvfs");
        let used = stat.f_blocks - stat.f_bfree;
        (stat.f_blocks * stat.f_frsize, used * stat.f_frsize, stat.f_bavail * stat.f_frsize)
    }
}

#[test]
fn a_full_disk_is_told_keeps_what_it_took_and_goes_on_with_room() {
    needs_root("a small disk");
    let home = Home::new();
    let disk = Disk::small(&home.path().join("home/data"), "96m");
    let dir = home.mount_with("mnt", &["-o", "deadline=5"]);
    let kept = fill(&dir, 40, &home);
    assert!(kept > 0, "nothing fits{}", home.log());
    fallocate_fails(&dir.join("large"), 1 << 30, &home);
    for n in 0..kept {
        same(&dir.join(n.to_string()), &content(n, 3 << 20), &home);
    }
    disk.resize("400m");
    // The store looks at its disk again by itself; a write that comes too early is told so.
    wait_until("there is room, and it is used", || {
        write_synced(&dir.join("more"), &content(99, 3 << 20)).is_ok()
    });
    home.unmount(&dir);
    let dir = home.mount("mnt");
    for n in 0..kept {
        same(&dir.join(n.to_string()), &content(n, 3 << 20), &home);
    }
    same(&dir.join("more"), &content(99, 3 << 20), &home);
}

#[test]
fn a_full_peer_is_told_by_the_write_and_by_df() {
    let home = Home::new();
    home.ok(&["init"]);
    let serve = ["serve", "--listen", "127.0.0.1:0", "--capacity", "64M"];
    home.start(&serve, "serving");
    let dir = home.mount_with("mnt", &["-o", "deadline=5"]);
    wait_until("df knows the capacity", || df(&dir).2 <= 64 << 20);
    fallocate_fails(&dir.join("large"), 70 << 20, &home);
    let kept = fill(&dir, 30, &home);
    assert!(kept >= 12, "only {kept} files fit into 64 MiB{}", home.log());
    // At once, whenever the peer was asked last: all that there is was just refused.
    let (size, used, available) = df(&dir);
    assert!(size <= 64 << 20, "{size} bytes on a peer of 64 MiB");
    assert!(used >= (kept - 2) * (3 << 20), "{used} bytes used by {kept} files");
    assert!(available < 12 << 20, "{available} bytes after a write was refused");
    // What is removed or renamed needs no room of its own.
    fs::remove_file(dir.join("0")).expect("removable");
    let moved = Command::new("mv").args([dir.join("1"), dir.join("renamed")]).status();
    assert!(moved.expect("mv is installed").success(), "a rename needs room{}", home.log());
    same(&dir.join("renamed"), &content(1, 3 << 20), &home);
    for n in 2..kept {
        same(&dir.join(n.to_string()), &content(n, 3 << 20), &home);
        fs::remove_file(dir.join(n.to_string())).expect("removable");
    }
    let (_, used, available) = df(&dir);
    assert!(used > 32 << 20, "nothing is collected yet, and {used} bytes are shown as used");
    assert!(available < 12 << 20, "{available} bytes that removing has not freed");
    home.unmount(&dir);
}

#[test]
fn a_flipped_bit_is_an_error_and_never_wrong_bytes() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let wanted = content(1, 6 << 20);
    write_synced(&dir.join("large"), &wanted).expect("written");
    write_synced(&dir.join("small"), b"still here").expect("written");
    home.unmount(&dir);
    let path = segments(&home).pop().expect("a segment");
    let mut bytes = fs::read(&path).expect("a segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("a writable segment");
    let dir = home.mount_with("mnt", &["-o", "deadline=5"]);
    let error = fs::read(dir.join("large")).expect_err("a copy that is damaged is not returned");
    // Nobody else has it, and the only peer said so: nothing to wait for.
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}{}", home.log());
    assert!(home.log().contains("chunk"), "the log names the chunk{}", home.log());
    same(&dir.join("small"), b"still here", &home);
    // A chunk has at most 4 MiB of the 6: every page of the others is right, and of that one none.
    let file = File::open(dir.join("large")).expect("opens");
    let (mut right, mut lost) = (0, 0);
    for at in (0..wanted.len()).step_by(64 << 10) {
        let mut page = [0; 4096];
        match file.read_exact_at(&mut page, at as u64) {
            Ok(()) => {
                assert_eq!(page, wanted[at..at + 4096], "wrong bytes at {at}");
                right += 1;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "at {at}: {error}{}", home.log());
                lost += 1;
            }
        }
    }
    assert!(right > 0 && lost > 0, "{right} pages are right, {lost} are lost");
}

#[test]
fn a_torn_tail_of_a_segment_costs_nothing_acknowledged() {
    let home = Home::new();
    let dir = home.mount("mnt");
    write_synced(&dir.join("file"), &content(2, 2 << 20)).expect("written");
    home.unmount(&dir);
    for path in segments(&home) {
        let mut segment = File::options().append(true).open(path).expect("a segment");
        // What a crash in the middle of a frame leaves: its beginning, and then nothing.
        segment.write_all(b"MCTF").expect("appended");
        segment.write_all(&content(3, 70_001)).expect("appended");
    }
    let dir = home.mount("mnt");
    same(&dir.join("file"), &content(2, 2 << 20), &home);
    write_synced(&dir.join("next"), &content(4, 2 << 20)).expect("written");
    home.unmount(&dir);
    let dir = home.mount("mnt");
    same(&dir.join("file"), &content(2, 2 << 20), &home);
    same(&dir.join("next"), &content(4, 2 << 20), &home);
}

#[test]
fn a_segment_that_was_cut_off_gives_whole_files_or_errors() {
    let home = Home::new();
    let dir = home.mount("mnt");
    write_synced(&dir.join("0"), &content(0, 2 << 20)).expect("written");
    // The tree is written at the end of a mount; what comes later is in the log and its chunks.
    home.unmount(&dir);
    let dir = home.mount("mnt");
    for n in 1..4 {
        write_synced(&dir.join(n.to_string()), &content(n, 2 << 20)).expect("written");
    }
    home.kill_daemon(&dir);
    home.forget(&dir);
    let path = segments(&home).pop().expect("a segment");
    let len = path.metadata().expect("a segment").len();
    let segment = File::options().write(true).open(path).expect("a segment");
    segment.set_len(len - (3 << 20)).expect("cut");
    let dir = home.mount_with("mnt", &["-o", "deadline=5"]);
    let read = |n: u64| fs::read(dir.join(n.to_string()));
    for n in 0..2 {
        same(&dir.join(n.to_string()), &content(n, 2 << 20), &home);
    }
    for n in 2..4 {
        let error = read(n).err().unwrap_or_else(|| panic!("file {n} has lost bytes and reads"));
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "file {n}: {error}{}", home.log());
    }
    let log = home.log();
    assert!(log.contains("was durable is damaged"), "the damage is told{log}");
    assert!(!log.contains("bytes=0"), "nothing was cut off, so nothing is told of it{log}");
    let damaged = || {
        let status = home.run(&["status", "--json"]);
        assert_eq!(status.status.code(), Some(12), "{status:?}");
        let report: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let problems = report["problems"].as_array().expect("a list").clone();
        let problem = problems.into_iter().find(|problem| problem["code"] == "damaged-chunks");
        let chunks = report["peers"][0]["damaged_chunks"].as_u64().expect("a number");
        let what = problem.expect("the peer is named")["what"].to_string();
        assert!(what.contains(&format!(") holds {chunks} damaged chunks")), "{what}");
        chunks
    };
    // What it says to do: the same bytes, written again.
    let before = damaged();
    write_synced(&dir.join("2.new"), &content(2, 2 << 20)).expect("written");
    same(&dir.join("2.new"), &content(2, 2 << 20), &home);
    same(&dir.join("2"), &content(2, 2 << 20), &home);
    assert!(damaged() < before, "whole copies take the place of damaged ones");
}

#[test]
fn a_store_without_its_index_builds_it_again() {
    let home = Home::new();
    let dir = home.mount("mnt");
    write_synced(&dir.join("file"), &content(5, 3 << 20)).expect("written");
    home.unmount(&dir);
    fs::remove_dir_all(store(&home).join("index")).expect("there was one");
    let dir = home.mount("mnt");
    same(&dir.join("file"), &content(5, 3 << 20), &home);
    assert!(store(&home).join("index").exists(), "and it is there again");
}

#[test]
fn names_of_any_bytes_come_back() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let names: Vec<Vec<u8>> =
        vec![vec![0xff, 0xfe, b'x'], vec![0x80; 255], b"new\nline".to_vec(), b"-o\t*".to_vec()];
    let path = |name: &[u8], dir: &Path| dir.join(std::ffi::OsStr::from_bytes(name));
    for name in &names {
        write_and_close(&path(name, &dir), name).expect("any byte but NUL and '/'");
    }
    home.unmount(&dir);
    let dir = home.mount("mnt");
    let mut found: Vec<Vec<u8>> = fs::read_dir(&dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().as_bytes().to_vec())
        .filter(|name| name != b"ledger")
        .collect();
    found.sort();
    let mut wanted = names.clone();
    wanted.sort();
    assert_eq!(found, wanted);
    for name in &names {
        same(&path(name, &dir), name, &home);
    }
}

#[test]
fn after_a_power_cut_what_was_fsynced_is_whole() {
    needs_root("a disk whose power is cut");
    let home = Home::new();
    let disk = Disk::with_power(&home.path().join("home"), &home.path().join("disk.img"));
    for round in 0..3u64 {
        let dir = home.mount("mnt");
        for old in 0..round * 4 {
            same(&dir.join(old.to_string()), &content(old, 700_000), &home);
        }
        for n in round * 4..round * 4 + 4 {
            write_synced(&dir.join(n.to_string()), &content(n, 700_000)).expect("written");
        }
        // Not asked for by an fsync: may be gone, and must not be in the way.
        write_and_close(&dir.join("unsynced"), &content(round, 300_000)).expect("written");
        disk.cut_power();
        home.kill_daemon(&dir);
        home.forget(&dir);
        disk.power_again();
    }
    let dir = home.mount("mnt");
    for n in 0..12 {
        same(&dir.join(n.to_string()), &content(n, 700_000), &home);
    }
    home.unmount(&dir);
}

#[test]
fn the_store_alone_survives_power_cuts_and_full_disks() {
    needs_root("disks that fail");
    let driver = program().with_file_name("store-driver");
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/store/faults.sh"));
    let output = Command::new("bash").arg(script).arg(driver).arg("2").output().expect("bash");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
}

/// MICTLAN_SEED and MICTLAN_ROUNDS make it another, or a longer one.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Writes and closes files until the daemon is gone; says each that was closed.
fn write_until_it_ends(
    dir: &Path,
    from: u64,
    sizes: &[usize],
    closed: &mpsc::Sender<(u64, usize)>,
) {
    for n in from.. {
        let len = sizes[n as usize % sizes.len()];
        if write_and_close(&dir.join(n.to_string()), &content(n, len)).is_err() {
            return;
        }
        if closed.send((n, len)).is_err() {
            return;
        }
    }
}

#[test]
fn killing_the_daemon_at_any_moment_loses_no_closed_file() {
    // Below and above what goes into the journal whole, streams of several chunks, and an empty one.
    const SIZES: [usize; 7] = [100, 40_000, 3 << 20, 700_000, 0, 9 << 20, 1 << 20];
    let (seed, rounds) = (setting("MICTLAN_SEED", 1), setting("MICTLAN_ROUNDS", 8));
    let home = Home::new();
    let mut next = 0;
    let mut kept: Vec<(u64, usize)> = Vec::new();
    for round in 0..rounds {
        let dir = home.mount("mnt");
        for (n, len) in &kept {
            let path = dir.join(n.to_string());
            let found = fs::read(&path);
            let found = found.unwrap_or_else(|e| panic!("{e}: {}{}", path.display(), home.log()));
            assert!(
                found == content(*n, *len),
                "seed {seed}, round {round}: file {n} was closed with {len} bytes and has {}{}",
                found.len(),
                home.log()
            );
            // Only the files of the last round can still be in the journal alone.
            fs::remove_file(&path).expect("removable");
        }
        kept.clear();
        let (closed, heard) = mpsc::channel();
        let until = 1 + content(seed << 32 | round, 1)[0] as usize % 12;
        std::thread::scope(|scope| {
            let dir = &dir;
            scope.spawn(move || write_until_it_ends(dir, next, &SIZES, &closed));
            kept.extend(heard.iter().take(until));
            home.kill_daemon(dir);
        });
        kept.extend(heard.iter());
        next = kept.last().map_or(next, |(n, _)| n + 2);
    }
}
