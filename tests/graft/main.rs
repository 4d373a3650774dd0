//! `/ledger` in a mount: what it lists and holds, that nobody writes it, and that no peer can lie.

mod flat;
mod program;
mod world;

use mictlan::id::{Ino, Name};
use mictlan::ledger::record::record_hash;
use mictlan::meta::error::FsError;
use mictlan::meta::inode::FileKind;
use mictlan_daemon::ledger::{Ledger, LedgerError};
use mictlan_mount::vfs::{
    Allocate, CopyRange, Make, OpenHow, RenameHow, SetAttr, Vfs, WriteAt, XattrFlags,
};
use mictlan_tests::sample_log::{ALICE, BOB_LATER, Log};
use serde_json::json;
use std::time::Duration;
use world::{Mount, Peer, WHO, names};

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).expect("a name")
}

fn sample() -> Mount {
    Mount::new(vec![Peer::honest(&Log::sample())])
}

#[tokio::test]
async fn the_root_lists_the_ledger_once_and_last() {
    let mount = sample();
    for (limit, with_attr) in [(1, false), (2, true), (100, false), (100, true)] {
        let lines = mount.list(Ino::ROOT, limit, with_attr).await;
        assert_eq!(names(&lines), ["a", "z", "ledger"]);
        let last = &lines[2];
        assert_eq!((last.cookie, last.ino, last.kind), (1 << 62, Ino(1 << 63), FileKind::Dir));
        assert_eq!(last.attr.is_some(), with_attr);
    }
    let found = mount.stat("ledger").await.expect("it is there");
    assert_eq!(
        (found.ino, found.inode.mode, found.inode.kind),
        (Ino(1 << 63), 0o555, FileKind::Dir)
    );
    assert_eq!(mount.stat("a").await.expect("the volume's").ino, Ino(7));
}

#[tokio::test]
async fn with_noledger_it_is_neither_listed_nor_found_and_stays_reserved() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = Mount::in_dir(vec![Peer::honest(&Log::sample())], dir, true);
    assert_eq!(names(&mount.list(Ino::ROOT, 10, true).await), ["a", "z"]);
    assert_eq!(mount.stat("ledger").await.err(), Some(FsError::NotFound));
    let made = mount.graft.clone().make(WHO, Ino::ROOT, name("ledger"), directory()).await;
    assert_eq!(made.err(), Some(FsError::ReadOnly));
}

#[tokio::test]
async fn files_hold_the_logs_bytes_at_their_exact_size() {
    let log = Log::sample();
    let mount = sample();
    let newest = log.newest().as_bytes();
    assert_eq!(mount.cat("ledger/checkpoint").await.expect("it reads"), newest);
    let all = mount.cat("ledger/records/000/000/000.ndjson").await;
    assert_eq!(all.expect("it reads"), log.lines.concat());
    let record = mount.cat("ledger/records/000/000/000/000000000257.json").await;
    assert_eq!(record.expect("it reads"), log.lines[257]);
    for (id, bytes) in log.tiles() {
        let path = format!("ledger/{}", id.path());
        assert_eq!(mount.cat(&path).await.expect("it reads"), bytes, "{path}");
    }
    let sums = mount.cat("ledger/records/000/000/000/SHA256SUMS").await.expect("it reads");
    let sum = |(n, line): (usize, &Vec<u8>)| format!("{}  {n:012}.json\n", record_hash(line));
    assert_eq!(sums, log.lines.iter().enumerate().map(sum).collect::<String>().into_bytes());
    let status = mount.cat("ledger/status.json").await.expect("it reads");
    let status: serde_json::Value = serde_json::from_slice(&status).expect("JSON");
    assert_eq!((&status["published"]["size"], &status["ordered"]), (&json!(300), &json!(300)));
    for path in ["ledger/keys/policy", "ledger/README.txt", "ledger/keys/log.pem"] {
        assert!(!mount.cat(path).await.expect("it reads").is_empty(), "{path}");
    }
    assert_eq!(mount.stat("ledger/records/000/000/001").await.err(), Some(FsError::NotFound));
}

#[tokio::test]
async fn what_never_changes_is_cached_for_ever_and_what_grows_is_not() {
    let mount = sample();
    let lifetime = async |path| mount.stat(path).await.expect("it is there").lifetime;
    for path in ["ledger/records/000/000/000/000000000007.json", "ledger/tile/entries/000"] {
        assert!(lifetime(path).await > Duration::from_secs(1 << 31), "{path}");
    }
    for path in ["ledger/checkpoint", "ledger/status.json", "ledger/records/000/000/000.ndjson"] {
        assert_eq!(lifetime(path).await, Duration::ZERO, "{path}");
    }
    assert!(lifetime("ledger/at/300/records/000/000/000.ndjson").await > Duration::from_secs(9));
    // 2026-11-21T19:27:14.000Z and half a second a record.
    let record = mount.stat("ledger/records/000/000/000/000000000007.json").await;
    let mtime = record.expect("it is there").inode.mtime;
    assert_eq!((mtime.secs, mtime.nanos), (1_795_289_237, 500_000_000));
}

fn directory() -> Make {
    Make { kind: FileKind::Dir, mode: 0o755, umask: 0, rdev: 0, target: Box::default() }
}

#[tokio::test]
async fn nothing_in_it_and_not_its_name_can_be_written() {
    let mount = sample();
    let ledger = mount.stat("ledger").await.expect("it is there").ino;
    let file = mount.stat("ledger/checkpoint").await.expect("it is there").ino;
    let g = || mount.graft.clone();
    let refused = Some(FsError::ReadOnly);
    for (dir, text) in [(ledger, "x"), (ledger, "checkpoint"), (Ino::ROOT, "ledger")] {
        let at = || (dir, name(text));
        let how = OpenHow { write: true, ..OpenHow::default() };
        assert_eq!(g().make(WHO, dir, name(text), directory()).await.err(), refused);
        let created = g().create(WHO, dir, name(text), directory(), how, false).await;
        assert_eq!(created.err(), refused);
        assert_eq!(g().unlink(WHO, dir, name(text)).await.err(), refused);
        assert_eq!(g().rmdir(WHO, dir, name(text)).await.err(), refused);
        assert_eq!(g().link(WHO, Ino(7), dir, name(text)).await.err(), refused);
        let other = || (Ino::ROOT, name("b"));
        for how in [RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange] {
            assert_eq!(g().rename(WHO, at(), other(), how).await.err(), refused);
            assert_eq!(g().rename(WHO, other(), at(), how).await.err(), refused);
        }
    }
    assert_eq!(g().setattr(WHO, file, None, SetAttr::default()).await.err(), refused);
    let data = WriteAt { offset: 0, append: false, kill_privileges: false, data: "x".into() };
    assert_eq!(g().write(WHO, file, 1, data).await.err(), refused);
    let flags = XattrFlags::default();
    assert_eq!(g().setxattr(WHO, file, (*b"user.x").into(), "".into(), flags).await.err(), refused);
    assert_eq!(g().removexattr(WHO, file, (*b"user.x").into()).await.err(), refused);
    let punch = g().allocate(WHO, file, 1, 0, 1, Allocate::Punch).await;
    assert_eq!(punch.err(), refused);
    for how in [
        OpenHow { write: true, ..OpenHow::default() },
        OpenHow { read: true, truncate: true, ..OpenHow::default() },
    ] {
        assert_eq!(g().open(WHO, file, how).await.err(), refused);
    }
    let copy = |from, to| CopyRange {
        from,
        from_handle: 1,
        from_offset: 0,
        to,
        to_handle: 1,
        to_offset: 0,
        len: 1,
    };
    assert_eq!(g().copy_range(WHO, copy(Ino(7), file)).await.err(), refused);
    assert_eq!(g().copy_range(WHO, copy(file, Ino(7))).await.err(), Some(FsError::CrossDevice));
    assert_eq!(g().link(WHO, file, Ino::ROOT, name("b")).await.err(), Some(FsError::CrossDevice));
}

#[tokio::test]
async fn nothing_comes_to_the_name_of_past_states_and_what_is_there_can_go() {
    let dir = tempfile::tempdir().expect("a directory");
    for mount in [sample(), Mount::in_dir(vec![Peer::honest(&Log::sample())], dir, true)] {
        let g = || mount.graft.clone();
        let refused = Some(FsError::ReadOnly);
        let at = || (Ino::ROOT, name(".at"));
        let how = OpenHow { write: true, ..OpenHow::default() };
        assert_eq!(mount.stat(".at").await.err(), Some(FsError::NotFound));
        assert_eq!(g().make(WHO, Ino::ROOT, name(".at"), directory()).await.err(), refused);
        let created = g().create(WHO, Ino::ROOT, name(".at"), directory(), how, false).await;
        assert_eq!(created.err(), refused);
        assert_eq!(g().link(WHO, Ino(7), Ino::ROOT, name(".at")).await.err(), refused);
        let other = || (Ino::ROOT, name("b"));
        for how in [RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange] {
            assert_eq!(g().rename(WHO, other(), at(), how).await.err(), refused);
        }
        assert_eq!(g().rename(WHO, at(), other(), RenameHow::Exchange).await.err(), refused);
        assert!(g().make(WHO, Ino(9), name(".at"), directory()).await.is_ok(), "elsewhere");
        // As a program made it that knew nothing of the name.
        let volume = mount.graft.inner().clone();
        volume.make(WHO, Ino::ROOT, name(".at"), directory()).await.expect("made");
        assert!(mount.stat(".at").await.is_ok());
        assert!(names(&mount.list(Ino::ROOT, 10, true).await).contains(&".at".to_owned()));
        for how in [RenameHow::Replace, RenameHow::NoReplace] {
            assert_eq!(g().rename(WHO, at(), other(), how).await, Ok(()));
        }
        assert_eq!(g().unlink(WHO, Ino::ROOT, name(".at")).await, Ok(()));
    }
}

#[tokio::test]
async fn everything_else_is_the_volumes() {
    let mount = sample();
    let g = || mount.graft.clone();
    assert!(g().make(WHO, Ino(9), name("ledger"), directory()).await.is_ok(), "below a directory");
    assert_eq!(g().read(Ino(7), 41, 0, 10).await.expect("the volume's"), "41");
    assert_eq!(g().unlink(WHO, Ino::ROOT, name("a")).await, Ok(()));
    g().forget(Ino(7), 3);
}

#[tokio::test]
async fn an_open_file_goes_on_showing_what_it_showed() {
    let mut log = Log::sample();
    let mount = sample();
    let how = OpenHow { read: true, ..OpenHow::default() };
    let mut open = Vec::new();
    for path in ["records/000/000/000.ndjson", "checkpoint", "status.json", "tile/0/001.p/44"] {
        let path = format!("ledger/{path}");
        let (before, attr) = (mount.cat(&path).await.expect("it reads"), mount.stat(&path).await);
        let ino = attr.expect("it is there").ino;
        let opened = mount.graft.clone().open(WHO, ino, how).await.expect("it opens");
        open.push((path, ino, opened.handle, before));
    }
    log.commit(BOB_LATER);
    log.publish();
    mount.grow(&log).await;
    for (path, ino, handle, before) in open {
        assert_eq!(mount.rest(ino, handle).await.expect("it reads"), before, "{path}");
        let attr = mount.graft.clone().getattr(ino, Some(handle)).await.expect("it is open");
        assert_eq!(attr.inode.size, before.len() as u64, "{path}");
    }
    let now = mount.cat("ledger/records/000/000/000.ndjson").await.expect("it reads");
    assert_eq!(now, log.lines.concat());
    assert_eq!(mount.cat("ledger/checkpoint").await.expect("it reads"), log.newest().as_bytes());
}

#[tokio::test]
async fn a_frozen_tree_is_the_log_of_that_size() {
    let log = Log::sample();
    let mount = sample();
    let all = mount.cat("ledger/at/256/records/000/000/000.ndjson").await;
    assert_eq!(all.expect("it reads"), log.lines[..256].concat());
    let note = mount.cat("ledger/at/256/checkpoint").await.expect("it reads");
    assert_eq!(note, log.notes[&256].as_bytes());
    let listed = mount.stat("ledger/at/256/records/000/000/000").await.expect("it is there");
    assert_eq!(mount.list(listed.ino, 50, true).await.len(), 257);
    assert_eq!(mount.stat("ledger/at/258").await.err(), Some(FsError::NotFound));
    assert_eq!(mount.stat("ledger/at/256/status.json").await.err(), Some(FsError::NotFound));
    // The same tree and times, however far the log has grown.
    let before = mount.stat("ledger/at/256/tile/entries/000").await.expect("it is there").inode;
    let mut grown = log.clone();
    grown.commit(BOB_LATER);
    grown.publish();
    mount.grow(&grown).await;
    let after = mount.stat("ledger/at/256/tile/entries/000").await.expect("it is there").inode;
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_listing_is_whole_from_any_cookie() {
    let mount = sample();
    let dir = mount.stat("ledger/records/000/000/000").await.expect("it is there").ino;
    let all = mount.list(dir, 512, false).await;
    assert_eq!(all.len(), 301);
    for limit in [1, 3, 128] {
        let again = mount.list(dir, limit, false).await;
        assert_eq!(names(&again), names(&all), "{limit} at a time");
    }
    let from = all[100].cookie;
    let rest = mount.graft.clone().list(dir, from, 1, false).await.expect("a listing");
    assert_eq!(rest[0].name, all[101].name);
    let dots = mount.graft.clone().list(dir, 0, 2, true).await.expect("a listing");
    assert_eq!(names(&dots), [".", ".."]);
}

#[tokio::test]
async fn what_the_kernel_forgets_is_forgotten() {
    let mount = sample();
    let dir = mount.stat("ledger/records/000/000/000").await.expect("it is there");
    let path_nodes = mount.graft.held_nodes();
    let listed = mount.list(dir.ino, 50, true).await;
    assert_eq!(mount.graft.held_nodes(), path_nodes + 301);
    for line in &listed {
        let found = mount.lookup(dir.ino, &String::from_utf8_lossy(&line.name)).await;
        let found = found.expect("an answer").expect("it is there");
        assert_eq!(found.ino, line.ino, "one number for listing and lookup");
        mount.graft.forget(line.ino, 1);
    }
    assert_eq!(mount.graft.held_nodes(), path_nodes + 301, "each had two references");
    listed.iter().for_each(|line| mount.graft.forget(line.ino, 1));
    assert_eq!(mount.graft.held_nodes(), path_nodes);
    let gone = mount.graft.clone().getattr(listed[0].ino, None).await;
    assert_eq!(gone.err(), Some(FsError::Stale));
}

#[tokio::test]
async fn a_peer_that_lies_is_passed_over_and_alone_gives_an_io_error() {
    let log = Log::sample();
    let liar = |path: &str| Peer { lies: Some(path.to_owned()), ..Peer::honest(&log) };
    let file = "ledger/records/000/000/000/000000000123.json";
    for path in ["tile/entries/000", "tile/0/001", "tile/1"] {
        let mount = Mount::new(vec![Peer::honest(&log)]);
        mount.ledger.refresh().await.expect("an honest start");
        *mount.peers.lock().expect("free") = vec![liar(path)];
        assert_eq!(mount.stat(file).await.err(), Some(FsError::Io), "{path}");
        mount.peers.lock().expect("free").push(Peer::honest(&log));
        assert_eq!(mount.cat(file).await.expect("the other peer's"), log.lines[123], "{path}");
    }
    let mount = Mount::new(vec![liar("tile/entries"), liar("checkpoint"), Peer::honest(&log)]);
    assert_eq!(mount.cat(file).await.expect("the third peer's"), log.lines[123]);
    let mount = Mount::new(vec![liar("tile/entries")]);
    assert_eq!(mount.stat(file).await.err(), Some(FsError::Io), "from the first moment on");
}

/// Two logs of the same keys that differ after a common beginning.
fn fork() -> (Log, Log) {
    let (mut one, mut other) = (Log::sample(), Log::sample());
    one.note("alice", ALICE, json!("one"));
    one.publish();
    other.note("alice", ALICE, json!("other"));
    (one, other)
}

#[tokio::test]
async fn a_second_history_is_refused_naming_both_and_both_notes_are_kept() {
    for more in [0, 1, 40] {
        let (one, mut other) = fork();
        (0..more).for_each(|_| other.commit(BOB_LATER));
        other.publish();
        let mount = Mount::new(vec![Peer::honest(&one)]);
        mount.ledger.refresh().await.expect("the first history");
        *mount.peers.lock().expect("free") = vec![Peer::honest(&other)];
        let Err(error) = mount.ledger.refresh().await else { panic!("it was taken") };
        assert!(matches!(error, LedgerError::Contradiction { .. }), "{more}: {error}");
        let text = error.to_string();
        for root in [one.root(), other.root()] {
            assert!(text.contains(&root.to_hex()), "{text}");
        }
        assert_eq!(mount.stat("ledger/checkpoint").await.err(), Some(FsError::Io));
        let kept = std::fs::read_dir(mount.dir.path()).expect("a directory");
        let notes = kept.flatten().filter(|e| e.file_name().to_string_lossy().ends_with(".note"));
        let mut notes: Vec<_> = notes.map(|e| std::fs::read(e.path()).expect("a note")).collect();
        notes.sort();
        let mut both = [one.newest().as_bytes().to_vec(), other.newest().as_bytes().to_vec()];
        both.sort();
        assert_eq!(notes, both);
        assert_eq!(names(&mount.list(Ino::ROOT, 9, true).await), ["a", "z", "ledger"]);
    }
}

#[tokio::test]
async fn what_was_verified_is_remembered_over_a_restart() {
    let (one, mut other) = fork();
    other.commit(BOB_LATER);
    other.publish();
    let Mount { dir, ledger, .. } = {
        let mount = Mount::new(vec![Peer::honest(&one)]);
        mount.ledger.refresh().await.expect("the first history");
        mount
    };
    drop(ledger);
    let again = Mount::in_dir(vec![Peer::honest(&other)], dir, false);
    assert_eq!(again.ledger.seen().expect("remembered").root(), one.root());
    let refused = again.ledger.refresh().await.err();
    assert!(matches!(refused, Some(LedgerError::Contradiction { .. })));
    // A peer that is merely behind is no liar, and takes nothing back.
    let dir = tempfile::tempdir().expect("a directory");
    let mount = Mount::in_dir(vec![Peer::honest(&one)], dir, false);
    mount.ledger.refresh().await.expect("the first history");
    mount.grow(&Log::sample()).await;
    assert_eq!(mount.ledger.seen().expect("there is one").size(), 301);
    // A file that is not ours is never taken for no memory at all.
    std::fs::write(mount.dir.path().join("ledger-seen"), b"\x07").expect("a file");
    let (_, fetch) = world::peers(vec![]);
    let opened = Ledger::open(one.roster().id(), mount.dir.path(), fetch);
    assert!(matches!(opened.err(), Some(LedgerError::Remembered(_))));
}

#[tokio::test]
async fn a_note_without_its_quorum_or_of_another_network_is_not_taken() {
    let mut few = Log::sample();
    few.notes.insert(300, few.signed(1));
    let mount = Mount::new(vec![Peer::honest(&few)]);
    assert!(matches!(mount.ledger.refresh().await.err(), Some(LedgerError::Checkpoint(_))));
    assert!(mount.ledger.contradiction().is_none());
    let (_, fetch) = world::peers(vec![Peer::honest(&Log::sample())]);
    let dir = tempfile::tempdir().expect("a directory");
    let other = Ledger::open(mictlan::id::NetworkId([9; 32]), dir.path(), fetch).expect("it opens");
    assert!(matches!(other.refresh().await.err(), Some(LedgerError::Records { .. })));
}
