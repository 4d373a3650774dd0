//! A mount whose session is over, and that goes on with what it has in memory.

use super::liar::{Liar, World};
use super::{WHO, file, name};
use mictlan::id::Ino;
use mictlan::meta::error::FsError;
use mictlan::meta::namespace::Op;
use mictlan_daemon::volume::Volume;
use mictlan_daemon::volume::journal::{Entry, Left};
use mictlan_mount::options::Options;
use mictlan_mount::vfs::{Found, OpenHow, Vfs, WriteAt};
use mictlan_tests::harness::DEADLINE;
use std::path::Path;
use std::sync::Arc;

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// The file `over`, open.
async fn open(volume: &Arc<Volume>) -> (Ino, u64) {
    let found = volume.clone().lookup(WHO, Ino::ROOT, name("over")).await;
    let Ok(Found::Here { attr, .. }) = found else { panic!("it is not there: {found:?}") };
    let how = OpenHow { read: true, write: true, ..OpenHow::default() };
    let opened = volume.clone().open(WHO, attr.ino, how).await.expect("open");
    (attr.ino, opened.handle)
}

async fn write(volume: &Arc<Volume>, (ino, handle): (Ino, u64), bytes: &'static [u8]) {
    let write = WriteAt { offset: 0, append: false, kill_privileges: false, data: bytes.into() };
    volume.clone().write(WHO, ino, handle, write).await.expect("taken");
}

async fn make(volume: &Arc<Volume>, text: &str) {
    let made = volume.clone().make(WHO, Ino::ROOT, name(text), file()).await;
    assert!(matches!(made, Ok(Found::Here { .. })), "it is made");
}

/// What the journal of a living mount has, in a copy of it in `dir`.
fn journal(world: &World, volume: &Volume, dir: &Path) -> Left {
    let (own, _) = volume.journal_left().expect("it has one");
    let of_volume = own.parent().and_then(Path::file_name).expect("a directory for each volume");
    let parent = dir.join(of_volume);
    let copy = parent.join(own.file_name().expect("named by its session"));
    std::fs::create_dir_all(&copy).expect("made");
    for file in std::fs::read_dir(own).expect("listed").flatten() {
        std::fs::copy(file.path(), copy.join(file.file_name())).expect("copied");
    }
    Left::find(&parent, &world.user, &mut Vec::new()).expect("readable").remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_was_fenced_seals_nothing_over_what_others_did_since() {
    let (world, copies) = (World::found().await, tempfile::tempdir().expect("a directory"));
    let liar = Liar::of(&world);
    let options = Options { deadline: 10 * DEADLINE, ..Options::default() };
    let fenced = world.mount_with(&liar, options).await;
    make(&fenced, "over").await;
    fenced.clone().fsync(Ino::ROOT, None).await.expect("committed");
    let over = open(&fenced).await;
    until("it is alone", || !fenced.is_beside_others()).await;
    // Who commits has this one on its way, and seals nothing of what is closed meanwhile.
    make(&fenced, "another").await;
    liar.holds_commits_back();
    let waiting = tokio::spawn(fenced.clone().fsync(Ino::ROOT, None));
    tokio::time::timeout(DEADLINE, liar.has_a_commit()).await.expect("it is sent");
    write(&fenced, over, b"of the fenced one").await;
    fenced.clone().flush(over.0, over.1).await.expect("acknowledged");
    let about = journal(&world, &fenced, &copies.path().join("first")).about;
    world.fence(about).await;
    let is_told = || fenced.troubles().iter().any(|trouble| trouble.code == "commits-wait");
    until("it knows that it was fenced", is_told).await;

    let other = world.mount(&Liar::of(&world)).await;
    let theirs = open(&other).await;
    write(&other, theirs, b"since").await;
    other.clone().fsync(theirs.0, None).await.expect("committed");
    until("both see it", || fenced.applied_position() >= other.applied_position()).await;
    other.end().await.expect("all is committed");
    let refused = fenced.clone().fsync(Ino::ROOT, None).await.err();
    assert_eq!(refused, Some(FsError::Io), "it commits nothing any more");
    assert!(waiting.await.expect("no panic").is_err(), "nor what was on its way");
    let left = journal(&world, &fenced, &copies.path().join("second"));
    let is_sealing =
        |entry: &Entry| matches!(entry, Entry::Op { op: Op::Write(op), .. } if op.ino == over.0);
    let sealings = left.entries.iter().filter(|(_, entry)| is_sealing(entry)).count();
    assert_eq!(sealings, 0, "it would seem to be newer than what the other one did");
    drop(left);

    let journals = copies.path().join("second");
    let next = world.mount_from(&Liar::of(&world), Options::default(), journals).await;
    let (ino, handle) = open(&next).await;
    let bytes = next.clone().read(ino, handle, 0, 100).await.expect("readable");
    assert_eq!(&bytes[..], b"since");
    let listed = next.clone().list(Ino::ROOT, 0, 100, false).await.expect("listed");
    let kept = listed.iter().filter(|entry| entry.name.starts_with(b"over.recovered-")).count();
    assert_eq!(kept, 1, "what was acknowledged is there, too: {listed:?}");
    world.end().await;
}
