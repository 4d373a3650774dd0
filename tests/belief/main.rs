//! What a mount believes: only a log that a quorum of the voters signed, and never a shorter one.

mod ended;
mod liar;

use liar::{Liar, World};
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::FileKind;
use mictlan_daemon::volume::Volume;
use mictlan_mount::options::Options;
use mictlan_mount::vfs::{Caller, Found, Make, OpenHow, Vfs, WriteAt};
use mictlan_tests::harness::{DEADLINE, Home, wait_until};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const WHO: Caller = Caller { uid: 0, gid: 0, pid: 1 };

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).expect("a name")
}

fn file() -> Make {
    Make { kind: FileKind::File, mode: 0o644, umask: 0, rdev: 0, target: [].into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_the_voters_did_not_sign_ends_all_belief() {
    let world = World::found().await;
    let liar = Liar::of(&world);
    let volume = world.mount(&liar).await;
    let how = OpenHow { read: true, write: true, ..OpenHow::default() };
    let made = volume.clone().create(WHO, Ino::ROOT, name("kept"), file(), how, true).await;
    let (attr, _, opened) = made.expect("a new file");
    let data = b"kept".as_slice().into();
    let write = WriteAt { offset: 0, append: false, kill_privileges: false, data };
    volume.clone().write(WHO, attr.ino, opened.handle, write).await.expect("written");
    volume.clone().fsync(attr.ino, None).await.expect("committed");
    let worst = volume.troubles().into_iter().find(|trouble| trouble.severe);
    assert_eq!(worst, None, "an honest log is believed");

    liar.shows_a_record_of_its_own().await;
    world.order_a_note().await;
    let lookup = || volume.clone().lookup(WHO, Ino::ROOT, name("kept"));
    let refused = async {
        while !matches!(lookup().await, Err(FsError::Io)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, refused).await.expect("it is found out");
    let read = volume.clone().read(attr.ino, opened.handle, 0, 4).await;
    assert_eq!(read.err(), Some(FsError::Io), "also what is open already");
    let made = volume.clone().make(WHO, Ino::ROOT, name("new"), file()).await;
    assert_eq!(made.err(), Some(FsError::Io), "nothing is changed any more");
    let codes: Vec<_> = volume.troubles().iter().map(|trouble| trouble.code).collect();
    assert_eq!(codes, ["contradiction"]);
    let view = volume.clone().getxattr(Ino::ROOT, b"user.mictlan.view".as_slice().into()).await;
    let view = String::from_utf8(view.expect("it is answered always").to_vec()).expect("text");
    assert!(view.contains("contradiction"), "{view}");
    world.end().await;
}

/// Whoever finds out that it is dead has its fence ordered, and may be gone before that is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_session_is_fenced_whoever_gives_up_waiting_for_it() {
    let world = World::found().await;
    let waiting = world.session_beside_a_dead_one().await;
    let passed = async {
        for n in 0.. {
            // More and more, so that in the end there is time enough on any machine.
            let long = Duration::from_millis(5 + n / 100);
            if world.passes_within(waiting, n as usize % 10, long).await {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, passed).await.expect("the dead one is out of the way");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_shows_other_payloads_makes_no_commit_void() {
    let world = World::found().await;
    let volume = world.mount(&Liar::of(&world)).await;
    let made = volume.clone().make(WHO, Ino::ROOT, name("kept"), file()).await;
    assert!(matches!(made, Ok(Found::Here { .. })), "it is made");
    volume.clone().fsync(Ino::ROOT, None).await.expect("committed");
    let liar = Liar::of(&world);
    liar.shows_other_payloads();
    let reader = Options { read_only: true, ..Options::default() };
    let other = world.mount_with(&liar, reader).await;
    let found = other.clone().lookup(WHO, Ino::ROOT, name("kept")).await;
    let Ok(Found::Here { attr, .. }) = found else { panic!("it is not there") };
    let writer = b"user.mictlan.writer".as_slice().into();
    let writer = other.clone().getxattr(attr.ino, writer).await.expect("it is known");
    assert!(writer.starts_with(b"actor default\n"), "{writer:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_log_that_grows_beside_a_mount_is_believed() {
    let world = World::found().await;
    let volume = world.mount(&Liar::of(&world)).await;
    let proven = async {
        for n in ["first", "second"] {
            world.order_a_note().await;
            let made = volume.clone().make(WHO, Ino::ROOT, name(n), file()).await;
            assert!(matches!(made, Ok(Found::Here { .. })), "it is made");
            volume.clone().fsync(Ino::ROOT, None).await.expect("committed");
            let size = world.size();
            // The note is known a moment before what was applied is compared with its tree.
            let covered = || volume.ledger().seen().is_some_and(|seen| seen.size() >= size);
            while !covered() || !volume.troubles().is_empty() {
                let found = volume.clone().lookup(WHO, Ino::ROOT, name(n)).await;
                assert!(matches!(found, Ok(Found::Here { .. })), "it goes on");
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(DEADLINE, proven).await.expect("checkpoints come");
    assert_eq!(volume.troubles(), []);
    world.end().await;
}

/// What it looks for is shown to the volume's follower, and to nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_is_answered_when_the_follower_has_what_it_waits_for() {
    let world = World::found().await;
    let liar = Liar::of(&world);
    let deadline = 10 * DEADLINE;
    let options = Options { read_only: true, coherent: true, deadline, ..Options::default() };
    let volume = world.mount_with(&liar, options).await;
    liar.holds_the_log_back().await;
    world.order_a_note().await;
    let look = volume.clone().lookup(WHO, Ino::ROOT, name("none"));
    let found = tokio::time::timeout(DEADLINE, look).await.expect("it does not wait in vain");
    assert!(
        matches!(found, Ok(Found::Nothing { .. }) | Err(FsError::NotFound)),
        "nothing is there"
    );
    world.end().await;
}

/// A mount with threads of its own, which end when it is dropped, as those of a process that is
/// killed.
fn killable() -> tokio::runtime::Runtime {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.worker_threads(2).enable_all().build().expect("threads")
}

/// More than one file of the journal has.
const MUCH: usize = 10;

fn content(n: usize) -> Vec<u8> {
    (0..1_000_000).map(|at: usize| ((at * (n + 3)) >> 4) as u8).collect()
}

/// Writes, closes and fsyncs files that the leader calls ordered, and no other voter ever has.
async fn fsync_what_is_swallowed(volume: &Arc<Volume>, liar: &Liar) {
    let how = OpenHow { read: true, write: true, ..OpenHow::default() };
    volume.clone().fsync(Ino::ROOT, None).await.expect("committed");
    liar.swallows_what_it_accepts();
    for n in 0..MUCH {
        let name = name(&format!("file-{n}"));
        let made = volume.clone().create(WHO, Ino::ROOT, name, file(), how, true).await;
        let (attr, _, opened) = made.expect("a new file");
        let data = content(n).into();
        let write = WriteAt { offset: 0, append: false, kill_privileges: false, data };
        volume.clone().write(WHO, attr.ino, opened.handle, write).await.expect("written");
        volume.clone().flush(attr.ino, opened.handle).await.expect("closed");
        volume.clone().fsync(attr.ino, None).await.expect("it is called committed");
    }
}

async fn nothing_is_missing(volume: &Arc<Volume>) {
    for n in 0..MUCH {
        assert!(content_of(volume, &format!("file-{n}")).await == content(n), "file {n}");
    }
}

async fn content_of(volume: &Arc<Volume>, of: &str) -> Vec<u8> {
    let found = volume.clone().lookup(WHO, Ino::ROOT, name(of)).await;
    let Ok(Found::Here { attr, .. }) = found else { panic!("{of} is not there") };
    let how = OpenHow { read: true, ..OpenHow::default() };
    let opened = volume.clone().open(WHO, attr.ino, how).await.expect("it is opened");
    let read = volume.clone().read(attr.ino, opened.handle, 0, 1 << 20).await;
    read.expect("it is read").to_vec()
}

#[test]
fn what_a_leader_only_called_ordered_is_in_the_journal_when_that_comes_out() {
    let here = killable();
    let world = here.block_on(World::found());
    let mount = killable();
    mount.block_on(async {
        let liar = Liar::of(&world);
        let volume = world.mount(&liar).await;
        fsync_what_is_swallowed(&volume, &liar).await;
        let found_out = async {
            // The voters sign a log that has something else in that place.
            world.order_a_note().await;
            while volume.troubles().first().map(|trouble| trouble.code) != Some("contradiction") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, found_out).await.expect("it comes out");
        assert_eq!(volume.end().await, Err(FsError::Io), "it is not called committed");
    });
    mount.shutdown_background();
    here.block_on(async {
        let volume = world.mount(&Liar::of(&world)).await;
        nothing_is_missing(&volume).await;
        world.end().await;
    });
}

#[test]
fn a_mount_that_ends_asks_most_voters_for_what_it_was_told_last() {
    let here = killable();
    let world = here.block_on(World::found());
    let mount = killable();
    mount.block_on(async {
        let liar = Liar::of(&world);
        let volume = world.mount(&liar).await;
        fsync_what_is_swallowed(&volume, &liar).await;
        assert!(volume.end().await.is_err(), "most voters do not have it");
    });
    mount.shutdown_background();
    here.block_on(async {
        let volume = world.mount(&Liar::of(&world)).await;
        nothing_is_missing(&volume).await;
        world.end().await;
    });
}

#[test]
fn a_network_that_was_set_back_is_not_mounted_again() {
    let home = Home::new();
    let data = home.path().join("home/data");
    let kept = home.path().join("kept");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let done = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
        assert!(done.success());
    };
    let signed = |dir: &std::path::Path| -> u64 {
        let note = fs::read_to_string(dir.join("ledger/checkpoint")).unwrap_or_default();
        note.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
    };
    let dir = home.mount("mnt");
    fs::write(dir.join("first"), b"first").expect("written");
    home.unmount(&dir);
    copy(&data, &kept);
    let report: serde_json::Value =
        serde_json::from_str(&home.ok(&["status", "--json"])).expect("one JSON object");
    let records = report["records"].as_u64().expect("a number");
    let dir = home.mount_with("mnt", &["-o", "durability=peers"]);
    for n in 0..5 {
        fs::write(dir.join(format!("later-{n}")), b"later").expect("written and committed");
    }
    // A look at the ledger remembers the checkpoint that it shows.
    wait_until("what was written is signed", || signed(&dir) >= records + 5);
    home.unmount(&dir);
    fs::remove_dir_all(&data).expect("removed");
    copy(&kept, &data);
    let refused = home.run(&["mount", dir.to_str().expect("a plain path")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("records were taken back"), "{said}");
    assert!(!dir.join("first").exists(), "nothing is mounted");
}
