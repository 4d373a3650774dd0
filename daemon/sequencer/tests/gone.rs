//! A directory of which a part is gone is refused, whichever part it is.

use super::world::{SOON, World, accepted};
use crate::sequencer::OpenError;
use crate::sequencer::raft::log;
use crate::store::durable::rename;
use mictlan::id::{PeerId, Position};
use std::fs;
use std::path::{Path, PathBuf};

/// A voter alone that ordered and signed so many records in segments of a few records each.
async fn ended(records: u64, entries_per_snapshot: u64) -> World {
    let mut world = World::new();
    world.limits.wal_segment_bytes = 16 << 10;
    world.limits.entries_per_snapshot = entries_per_snapshot;
    world.found().await;
    let first = world.voters[&PeerId(1)].clone();
    for n in 0..records {
        accepted(world.note(&first, n).await);
    }
    first.wait_published(Position(records), SOON).await.expect("published");
    drop(first);
    world.crash(1).await;
    world
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("wal")).expect("a log").map(|e| e.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "wal")).collect();
    files.sort();
    files
}

/// What a start says while `file` is away.
async fn without(world: &mut World, file: &Path) -> OpenError {
    let away = file.with_extension("away");
    rename(file, &away).expect("moved");
    let refused = world.try_start(1).await.err().expect("refused");
    let said = refused.to_string();
    assert!(said.contains("is gone") && said.contains("away and start this peer again"), "{said}");
    rename(&away, file).expect("moved back");
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_one_of_its_segments_is_refused_whichever_it_is() {
    let mut world = ended(150, 5000).await;
    let all = segments(world.dir(1));
    let [first, second, .., last] = &all[..] else { panic!("{all:?}") };
    let refused = without(&mut world, first).await;
    assert!(matches!(refused, OpenError::Log(log::OpenError::Content { .. })), "{refused:?}");
    let refused = without(&mut world, last).await;
    assert!(matches!(refused, OpenError::Gone { gone: "wal", .. }), "{refused:?}");
    // One in the middle is damage, as before: later frames say that it was durable.
    let away = second.with_extension("away");
    rename(second, &away).expect("moved");
    let refused = world.try_start(1).await.err().expect("refused");
    assert!(matches!(refused, OpenError::Log(log::OpenError::Wal(_))), "{refused:?}");
    rename(&away, second).expect("moved back");
    world.start(1).await;
    accepted(world.note(&*world.leader(&[1]).await, 150).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_snapshot_is_gone_or_older_is_refused() {
    let mut world = ended(150, 40).await;
    let snapshot = world.dir(1).join("snapshot");
    assert!(segments(world.dir(1)).len() > 1, "there is a log behind it");
    let refused = without(&mut world, &snapshot).await;
    assert!(matches!(refused, OpenError::Gone { gone: "snapshot", .. }), "{refused:?}");
    world.start(1).await;
    accepted(world.note(&*world.leader(&[1]).await, 150).await);
}
